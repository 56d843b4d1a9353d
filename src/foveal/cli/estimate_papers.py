"""What papers would say of an estimate's two models, each by its own convention."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveal.efficiency.reasons import Setting

__all__ = ["as_papers_count"]


def as_papers_count(setting: Setting) -> dict[str, tuple[float, float]]:
    """Plain and compressed, of one sample, by name; only what a convention can be applied to.

    EPIC's speaks of 576 visual tokens of which some are dropped at one decoder layer; LLM-Viewer's of a prompt that is
    as long in every layer.
    """
    from foveal.efficiency.conventions import epic_cache, epic_flops, fastv_flops, llm_viewer

    case, shape = setting.case, setting.case.shape
    before, after = setting.plain.cost.rows, setting.compressed.cost.rows
    found = {"FLOPs of a layer, as FastV counts": (fastv_flops(shape, before), fastv_flops(shape, after))}
    stages = setting.method.stages(len(shape.layers))
    one_layer = len(stages) == 1 and stages[0].layer > 0
    if one_layer and case.visual == 576 and case.load.images == 1:
        layer, kept = stages[0].layer, setting.compressed.visual
        found["FLOPs, as EPIC counts"] = epic_flops(shape, 576, layer), epic_flops(shape, kept, layer)
        found["KV cache, as EPIC counts"] = epic_cache(shape, 576), epic_cache(shape, kept)
    if len(set(after)) == 1:
        viewed = llm_viewer(shape, before[0]), llm_viewer(shape, after[0])
        found["FLOPs, prefill by LLM-Viewer"] = viewed[0].flops, viewed[1].flops
        found["time, prefill by LLM-Viewer, V100"] = viewed[0].seconds, viewed[1].seconds
    return found
