"""The engine: the only code that knows the internals of transformers."""

__all__: list[str] = []
