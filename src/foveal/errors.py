"""The one error class that means: what you passed cannot work, and here is what to change."""

__all__ = ["FovealError"]


class FovealError(ValueError):
    """Raised for a bad input, option or model; its message names the culprit and the remedy."""
