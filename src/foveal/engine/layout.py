"""Which rows of a batch are visual tokens, and of which image.

Budgets hold per image, so methods see one padded row per image, whatever the samples they sit in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["VisualLayout", "image_numbers"]


def image_numbers(visual: Tensor, tokens_per_image: int | None) -> Tensor:
    """Number the images of a batch.

    An image is a run of neighbouring visual tokens; a longer run of a family with a fixed number of tokens per
    image holds several.

    Args:
        visual: (batch, rows) bool.
        tokens_per_image: the family's fixed count, or None.

    Returns:
        (batch, rows) int64: the image's number in reading order over the batch, -1 for text.
    """
    before = torch.nn.functional.pad(visual, (1, 0))[:, :-1]
    first = visual & ~before
    if tokens_per_image is not None:
        row = torch.arange(visual.shape[1], device=visual.device).expand_as(visual)
        run_start = torch.where(first, row, -1).cummax(dim=1).values
        first = visual & ((row - run_start) % tokens_per_image == 0)
    number = first.flatten().cumsum(0).view_as(visual) - 1
    return torch.where(visual, number, -1)


@dataclass(frozen=True)
class VisualLayout:
    """The visual tokens among the rows that reach a layer, one padded line per image.

    Attributes:
        sample: (images,) the sample each image belongs to.
        rows: (images, tokens) the row of each visual token; 0 where `valid` is False.
        valid: (images, tokens) bool, False for padding.
        lengths: visual tokens of each image, on the host.
    """

    sample: Tensor
    rows: Tensor
    valid: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, numbers: Tensor, lengths: tuple[int, ...]) -> VisualLayout:
        """Group rows by image.

        Args:
            numbers: (batch, rows) image number of each row, -1 for text; ascending in reading order.
            lengths: how many rows each image has, known on the host so that nothing waits for the device.
        """
        device, row_count = numbers.device, numbers.shape[1]
        flat = torch.nonzero_static(numbers.flatten() >= 0, size=sum(lengths)).squeeze(1)
        length = torch.tensor(lengths, device=device)
        start = length.cumsum(0) - length
        offset = torch.arange(max(lengths), device=device)
        valid = offset < length[:, None]
        position = flat[(start[:, None] + offset).clamp(max=sum(lengths) - 1)]
        return cls(
            sample=position[:, 0] // row_count,
            rows=torch.where(valid, position % row_count, 0),
            valid=valid,
            lengths=lengths,
        )

    def gather(self, source: Tensor) -> Tensor:
        """(batch, rows, ...) -> (images, tokens, ...): the entries of every image's visual tokens."""
        return source[self.sample[:, None], self.rows]

    def scatter(self, kept: Tensor, shape: torch.Size) -> Tensor:
        """(images, tokens) bool -> (batch, rows) bool, False for every row that is no visual token."""
        batch, row_count = shape
        full = torch.zeros(batch, row_count + 1, dtype=torch.bool, device=kept.device)
        full[self.sample[:, None], torch.where(self.valid, self.rows, row_count)] = kept
        return full[:, :row_count]
