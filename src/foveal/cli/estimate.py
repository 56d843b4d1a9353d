"""`foveal estimate`: what a method can gain on a device, worked out without weights."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.budget import parse_keep
from foveal.cli.common import LayerOption, ModelOption, layer_option, print_json, screen
from foveal.cli.load_options import method_options, parse_dtype, parse_visual
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.compressors import Compressor
    from foveal.efficiency.reasons import Setting
    from foveal.efficiency.returns import Case, Point, Serving

__all__ = ["estimate"]


def estimate(
    model: ModelOption = None,
    method: Annotated[str, typer.Option(help="See `foveal list`.")] = "dart",
    keep: Annotated[str, typer.Option(help="Visual tokens kept, a number or a fraction.")] = "1/9",
    hardware: Annotated[
        str,
        typer.Option(
            help="`cpu` or `gpu`, this machine's, measured in a second; or `rtx3090`, `rtx4090`, `rtx5090`, `t4`, "
            "`v100`, `a10`, `a6000`, `a100`, `l4`, `l40s`, `h100`, `h200`, `b200`, `mi300x`."
        ),
    ] = "cpu",
    layer: LayerOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Another option of the method; several times.", show_default=False
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 1,
    text: Annotated[int, typer.Option(min=1, help="Text tokens of a prompt, the template's included.")] = 60,
    answer: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 20,
    images: Annotated[int, typer.Option(min=1, help="Images of a prompt.")] = 1,
    visual: Annotated[
        str | None,
        typer.Option(
            help="Visual tokens of an image, or ROWSxCOLUMNS of them. Default: what the config says, 32x32 where "
            "images have any size.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="`float32`, `bfloat16` or `float16`. Default: float32 on `cpu`, else bfloat16.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Draw what each budget returns into this PNG, PDF or SVG file.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Work out what a method can gain, before anything is downloaded: FLOPs, memory, and times at best.

    Times are a lower bound, the larger of products at the device's peak and of bytes at its bandwidth. Well-known
    models need no network. `foveal bench` measures what is really gained.

    Examples:
    - `foveal estimate`
    - `foveal estimate --model llava-hf/llava-1.5-7b-hf --method dart --keep 64 --hardware a100`
    - `foveal estimate --model llava-hf/llava-1.5-7b-hf --keep 64 --hardware h200 --batch 8 --out returns.png`
    - `foveal estimate --model Qwen/Qwen2.5-VL-7B-Instruct --visual 36x48 --method fastv --layer 3 --keep 0.2 --hardware
      rtx4090 --json`
    """
    from foveal.cli.estimate_tables import print_estimate
    from foveal.efficiency.reasons import Setting

    chosen = _method(method, keep, layer, option or [])
    kind = dtype or ("float32" if hardware == "cpu" else "bfloat16")
    load = {"batch": batch, "text": text, "answer": answer, "images": images}
    case, notes = _case(model, hardware, kind, visual, load)
    setting = Setting.of(case, chosen)
    name, where = model or "the bundled model", f"{case.hardware.name}, {kind}"
    if out is not None:
        _draw(setting, out, name, where)
    if as_json:
        print_json({"model": name, "dtype": kind, **_as_json(setting, notes)})
        return
    print_estimate(setting, name=name, dtype=kind, notes=notes)
    if out is not None:
        screen().print(f"drawn in {out}", style="dim", markup=False, soft_wrap=True)


def _method(name: str, keep: str, layer: int | None, options: list[str]) -> Compressor:
    """The method with its options.

    Raises:
        FovealError: there is none, or it has no such option.
    """
    from foveal.compressors import get, method_class

    if name == "none":
        raise FovealError(
            "--method none: every method is shown beside the plain model; name one, see foveal list"
        )
    kind = method_class(name)
    return get(name, keep=parse_keep(keep), **layer_option(kind, layer), **method_options(kind, options))


def _case(
    model: str | None, hardware: str, dtype: str, visual: str | None, load: dict[str, Any]
) -> tuple[Case, list[str]]:
    """What is asked where, and what was taken for granted."""
    from foveal.efficiency.configs import USUAL_SIDE
    from foveal.efficiency.cost import Load
    from foveal.efficiency.hardware import find_hardware
    from foveal.efficiency.returns import Case
    from foveal.efficiency.shape import model_shape

    kind = parse_dtype(dtype)
    with _reading(model):
        shape = model_shape(model)
    tokens = None if visual is None else parse_visual(visual)
    notes = []
    if tokens is None and shape.tile_tokens is None:
        tokens = (USUAL_SIDE, USUAL_SIDE)
        notes.append(
            f"an image of {USUAL_SIDE}x{USUAL_SIDE} visual tokens: this model takes any size (--visual ROWSxCOLUMNS)"
        )
    elif tokens is None and not shape.patchwise:
        notes.append("an image of one tile: if yours are split, say how many tokens that makes (--visual)")
    if dtype == "float32" and hardware not in ("cpu", "gpu"):
        notes.append(f"{hardware}'s peak is that of 16-bit products: float32 is slower than the times say")
    asked = Load(visual=tokens, bytes=kind.itemsize, **load)
    return Case(shape, asked, find_hardware(hardware, kind)), notes


def _reading(model: str | None) -> Any:
    """Says on a terminal what may take a while: the hub is asked several times if it does not answer."""
    from rich.console import Console
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return Console(stderr=True).status(f"reading the config of {model or 'the bundled model'}")


def _draw(setting: Setting, out: Path, name: str, where: str) -> None:
    from foveal.cli.estimate_tables import title_of
    from foveal.efficiency.plots import has_published, plot_returns

    load = setting.case.load
    title = f"{name}, {title_of(setting)} visual tokens: {where}, batch {load.batch}, {load.text} text tokens"
    published = has_published(name, setting.method, setting.case.load)
    plot_returns(setting.case, setting.method, out, title=title, published=published)


def _as_json(setting: Setting, notes: list[str]) -> dict[str, Any]:
    from foveal.cli.estimate_papers import as_papers_count
    from foveal.efficiency.reasons import reasons
    from foveal.efficiency.returns import QUANTITIES, area, curve, ladder, paying_batch, serving
    from foveal.efficiency.units import hardware_record

    case, method = setting.case, setting.method
    budgets = ladder(case.visual)
    areas = {name: area(case, method, quantity) for name, quantity in QUANTITIES.items()}
    both: dict[str, Compressor | None] = {"plain": None, "compressed": method}
    return {
        "method": method.card.name if method.card else type(method).__name__,
        "options": method.options(),
        "hardware": hardware_record(case.hardware),
        "load": asdict(case.load),
        "plain": _point(setting.plain),
        "compressed": _point(setting.compressed),
        "times_faster": _faster(setting),
        "as_papers_count": {
            name: dict(zip(both, values, strict=True)) for name, values in as_papers_count(setting).items()
        },
        "paying_batch": paying_batch(case, method),
        "serving": {name: _serving(serving(case, one)) for name, one in both.items()},
        "areas_visual_tokens": {
            name: None if found is None else asdict(found) for name, found in areas.items()
        },
        "curve": [
            {"keep": keep, "visual_tokens": point.visual, **_returned(point)}
            for keep, point in zip(budgets, curve(case, method, budgets), strict=True)
        ],
        "reasons": [asdict(reason) for reason in reasons(setting)],
        "notes": notes,
    }


def _point(point: Point) -> dict[str, Any]:
    from foveal.efficiency.units import cost_record, times_record

    return {**cost_record(point.cost), "seconds": times_record(point.times)}


def _serving(found: Serving) -> dict[str, float]:
    return {"batch": found.batch, "answers_per_second": found.rate}


def _returned(point: Point) -> dict[str, float]:
    """What a budget leaves until the first token."""
    from foveal.efficiency.returns import QUANTITIES

    names = {"flops": "flops", "time": "seconds", "cache": "cache_bytes"}
    return {names[name]: quantity(point) for name, quantity in QUANTITIES.items()}


def _faster(setting: Setting) -> dict[str, float | None]:
    """How many times faster at best; None where there is no such time."""
    before, after = setting.plain.times, setting.compressed.times
    found: dict[str, float | None] = {}
    for name in ("prefill", "first_token", "next_token", "answer"):
        least = getattr(after, name)
        found[name] = getattr(before, name) / least if least else None
    return found
