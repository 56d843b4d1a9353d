"""Rotary tables at other positions than those the model counted, for methods that re-pack."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from foveal.engine.rows import map_tensors

__all__ = ["RotaryTables"]


class RotaryTables:
    """Asks the decoder's own rotary embedding, whatever its scaling rule."""

    @classmethod
    def of(cls, decoder: nn.Module) -> RotaryTables | None:
        """None where the decoder has no rotary embedding."""
        return cls(decoder) if hasattr(decoder, "rotary_emb") else None

    def __init__(self, decoder: nn.Module) -> None:
        rotary: Any = decoder.rotary_emb
        self._rotary = rotary
        config: Any = decoder.config
        typed = "layer_type" in inspect.signature(rotary.forward).parameters
        self._types = config.layer_types if typed else None

    def shifted(
        self,
        kwargs: dict[str, Any],
        layer: int,
        rows: Tensor | None,
        past: Tensor | None,
        memo: dict[Any, tuple[Any, Any]],
        view: int,
    ) -> dict[str, Any]:
        """A layer's arguments at positions that lie `rows` (batch, rows) and `past` (batch,) further back.

        Args:
            kwargs: the layer's arguments.
            layer: which layer it is.
            rows: how far each row; None for not at all.
            past: how far each sample; None for not at all.
            memo: tables made already; layers of one stage share them.
            view: names the cache view that `past` comes from.
        """
        if rows is None and past is None:
            return kwargs
        tables = kwargs["position_embeddings"]
        key = (id(tables), view, "shifted")
        if key not in memo:
            memo[key] = (tables, self.moved(kwargs, layer, rows, past))
        moved = memo[key][1]
        return {**kwargs, **{name: moved[name] for name in ("position_ids", "position_embeddings")}}

    def moved(
        self, kwargs: dict[str, Any], layer: int, rows: Tensor | None, past: Tensor | None
    ) -> dict[str, Any]:
        """The same, remembering nothing: a compiled step must not depend on it."""
        if rows is None and past is None:
            return kwargs
        positions = kwargs["position_ids"]
        for shift in (rows, None if past is None else past[:, None]):
            if shift is not None:
                positions = positions - shift.to(positions.device)
        tables = self._at(positions, layer, kwargs["position_embeddings"])
        return {**kwargs, "position_ids": positions, "position_embeddings": tables}

    def _at(self, positions: Tensor, layer: int, tables: Any) -> Any:
        like = tables[0] if isinstance(tables, tuple | list) else tables
        kind = () if self._types is None else (self._types[layer],)
        return map_tensors(lambda table: table.to(like.device), self._rotary(like, positions, *kind))
