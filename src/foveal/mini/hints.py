"""Hints: a loss that shows a few attention heads where to look.

To answer "where is the fox?" the answering token must find the name in the question, and the name's own token must
find the fox in the picture. Neither helps without the other, and left to itself training stays at chance for
thousands of steps. So in one layer two heads are told where a phrase's object, disc, cell or category is and two
heads where the next letter of a word is; and in a later layer, from the tokens that answer, one head is told where
the first name of the question is, one where the last is, and two where the right option is. The weight of the hints
fades with the learning rate, so that at the end nothing holds the heads there but what they are good for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from foveal.mini.atlas import CATEGORIES, CLASSES, COLORS
from foveal.mini.easy_vqa import SHAPES
from foveal.mini.packing import IGNORE, PADDING, Codec, Pack
from foveal.mini.questions import CELLS_CN
from foveal.mini.scenes import CELLS, GRID, cell_of_patch

__all__ = ["ANSWERING_LAYER", "LOOKING_LAYER", "Guide", "Hints"]

LOOKING_LAYER = 3
ANSWERING_LAYER = 5

_PHRASES = (
    ([item.name for item in CLASSES], [item.chinese for item in CLASSES]),
    (list(COLORS), [chinese for _, chinese in COLORS.values()]),
    (CELLS, CELLS_CN),
    ([f"{category} pictures" for category in CATEGORIES],),
    tuple([shape] for shape in (*SHAPES, "shape")),
)


class Guide:
    """Shows two heads of a layer where to look.

    Args:
        heads: the heads, (first, last + 1).
        rows: which row of the batch each hint is for, (hints,).
        columns: which token, (hints,).
        targets: what its attention should fall on, bool (hints, length).
    """

    def __init__(self, heads: tuple[int, int], rows: Tensor, columns: Tensor, targets: Tensor) -> None:
        self.heads, self.rows, self.columns, self.targets = slice(*heads), rows, columns, targets
        self.loss = torch.zeros((), device=rows.device)

    def hear(self, weights: Tensor) -> None:
        """Note how little of the attention (batch, heads, rows, columns) falls on the targets."""
        mass = (weights[self.rows, self.heads, self.columns].float() * self.targets[:, None]).sum(-1)
        if mass.numel():
            self.loss = -(mass + 1e-4).log().mean()


class Hints:
    """Knows the phrases that name something, and finds in a batch what they should look at."""

    def __init__(self, codec: Codec) -> None:
        self._phrases = [
            [[tuple(codec.encode(text)) for text in texts] for texts in languages] for languages in _PHRASES
        ]
        self._letters = torch.tensor([token for letter in "ABCD" for token in codec.encode(letter)])
        categories = [list(CATEGORIES).index(item.category) + 1 for item in CLASSES]
        self._category_of = torch.tensor([0, *categories])
        self._places = torch.from_numpy(cell_of_patch()) + 1
        (self._end,) = codec.encode("</s>")

    def guides(self, pack: Pack, patches: Tensor) -> tuple[list[Guide], list[Guide]]:
        """The guides of `LOOKING_LAYER` and of `ANSWERING_LAYER`.

        Args:
            pack: the questions.
            patches: what each patch shows: kind, disc, letter and shape, -100 where unknown, (4, batch, 144).
        """
        device = pack.ids.device
        kinds, discs, _, shapes = patches
        objects, colors, cells, categories, forms = (_named(pack.ids, phrases) for phrases in self._phrases)
        looking = [
            _to_picture(pack, objects, kinds),
            _to_picture(pack, colors, discs),
            _to_picture(pack, cells, self._places.to(device).expand(len(kinds), -1)),
            _to_picture(pack, categories, self._category_of.to(device)[kinds.clamp(min=0)]),
            _to_picture(pack, forms, (shapes > 0).long()),
            _to_letter(pack),
        ]
        things = objects + colors + categories + forms
        return looking, [*_to_names(pack, things, self._end), _to_option(pack, self._letters.to(device))]


def _named(ids: Tensor, phrases: Sequence[Sequence[tuple[int, ...]]]) -> Tensor:
    """Where a phrase ends, in whichever language: the thing's number, from 1; 0 elsewhere; like `ids`."""
    found = torch.zeros_like(ids)
    for language in phrases:
        for number, phrase in enumerate(language, 1):
            ends = torch.ones_like(ids, dtype=torch.bool)
            for back, token in enumerate(reversed(phrase)):
                ends &= functional.pad(ids, (back, 0), value=PADDING)[:, : ids.shape[1]] == token
            found[ends] = number
    return found


def _to_picture(pack: Pack, named: Tensor, patches: Tensor) -> Guide:
    """From the end of a phrase in a question to the patches (batch, 144) that show what it names."""
    shown = patches[:, None, :] == named[..., None]
    asked = (named > 0) & (pack.labels == IGNORE) & shown.any(-1)
    rows, columns = torch.nonzero(asked, as_tuple=True)
    return Guide((0, 2), rows, columns, _on_image(pack, shown[rows, columns]))


def _to_letter(pack: Pack) -> Guide:
    """From the token before each letter of an answer to the patches that show the letter."""
    rows, columns, patch = pack.looks.unbind(-1)
    shown = patch[:, None] == torch.arange(GRID * GRID, device=patch.device)
    below = patch[:, None] + GRID == torch.arange(GRID * GRID, device=patch.device)
    return Guide((2, 4), rows, columns, _on_image(pack, shown | below))


def _to_names(pack: Pack, named: Tensor, end: int) -> list[Guide]:
    """From every token that an answer's word must follow to the question's one or two names: a head for each."""
    told = functional.pad(pack.labels[:, 1:], (0, 1), value=IGNORE)
    rows, columns = torch.nonzero((told != IGNORE) & (told != end), as_tuple=True)
    same = pack.segments[rows] == pack.segments[rows, columns][:, None]
    before = torch.arange(pack.ids.shape[1], device=rows.device) < columns[:, None]
    targets = same & before & ((named > 0) & (pack.labels == IGNORE))[rows]
    count = targets.cumsum(-1)
    few = (count[:, -1] > 0) & (count[:, -1] <= 2)
    first, last = targets & (count == 1), targets & (count == count[:, -1:])
    return [
        Guide((head, head + 1), rows[few], columns[few], wanted[few])
        for head, wanted in enumerate((first, last))
    ]


def _to_option(pack: Pack, letters: Tensor) -> Guide:
    """From the token that must answer with a letter to the option that has it."""
    told = functional.pad(pack.labels[:, 1:], (0, 1), value=IGNORE)
    rows, columns = torch.nonzero(torch.isin(told, letters), as_tuple=True)
    ids, place = pack.ids[rows], torch.arange(pack.ids.shape[1], device=rows.device)
    within = (pack.segments[rows] == pack.segments[rows, columns][:, None]) & (place < columns[:, None])
    option = (torch.isin(ids, letters) & within).cumsum(-1)
    first = (within & (ids == told[rows, columns][:, None])).int().mul(place).argmax(-1)
    return Guide((2, 4), rows, columns, within & (option == option.gather(-1, first[:, None])))


def _on_image(pack: Pack, patches: Tensor) -> Tensor:
    """Patches (hints, 144) as columns of the sequence (hints, length)."""
    start = int((pack.segments[0] == 0).sum()) - GRID * GRID
    return functional.pad(patches, (start, pack.ids.shape[1] - start - GRID * GRID))
