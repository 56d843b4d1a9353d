"""`foveal schedule`: what a schedule does to student, teacher and layer, as a table or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.common import print_json, screen
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.distillation.trace import Moment

__all__ = ["schedule"]


def schedule(
    name: Annotated[
        str,
        typer.Argument(
            help="`tcd`, `tcd-released`, `lcd`, `icd`, `direct`, `none`, or an ablation such as `tcd-no-distill`.",
            show_default=False,
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[--OPTION VALUE]...",
            help="Fields of EpicConfig: `--gap_end 0.2 --layer 1 --method random`.",
            show_default=False,
        ),
    ] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Decoder layers. Default: 32.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Read the number of layers from this checkpoint.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Draw it into this PNG, PDF or SVG file.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how a schedule goes from easy to hard.

    Fractions are of visual tokens kept. A step's student is drawn from its range; the teacher follows at the gap of
    that moment.

    Examples:
    - `foveal schedule tcd`
    - `foveal schedule lcd --out lcd.png`
    - `foveal schedule icd --icd_layers 6 --gap_end 0.2 --model ./llava-1.5-7b-hf --json`
    """
    from foveal.distillation.recipe import parse_recipe
    from foveal.distillation.trace import trace

    if depth is not None and model is not None:
        raise FovealError("--depth and --model both say how many layers there are: leave one out")
    options = [*(words or []), f"--schedule={name}"]
    config = parse_recipe(options, {"use_cpu": True}).config
    layers = _layers(model) if model is not None else depth or 32
    moments = trace(config, layers, 11)
    if out is not None:
        from foveal.distillation.plots import plot_schedule

        plot_schedule(config, layers, out)
    if as_json:
        print_json({"schedule": name, "depth": layers, "moments": [_row(moment) for moment in moments]})
    elif out is not None:
        screen().print(f"drawn in {out}", style="dim", markup=False, soft_wrap=True)
    else:
        _print(name, layers, moments)


def _layers(model: str) -> int:
    from foveal.efficiency.configs import read_config

    return int(read_config(model).get_text_config().num_hidden_layers)


def _row(moment: Moment) -> dict[str, Any]:
    ranges = {"student": moment.student, "teacher": moment.teacher}
    rounded = {
        role: None if ends is None else [round(end, 6) for end in ends] for role, ends in ranges.items()
    }
    return {"t": round(moment.t, 6), "layer": moment.layer, **rounded}


def _print(name: str, depth: int, moments: list[Moment]) -> None:
    from rich.table import Table

    table = Table("t", "layer", "student keeps", "teacher keeps", box=None, title=f"{name}, {depth} layers")
    for moment in moments:
        layer = "none" if moment.layer is None else str(moment.layer)
        table.add_row(f"{moment.t:.1f}", layer, _range(moment.student), _range(moment.teacher))
    screen().print(table)


def _range(ends: tuple[float, float] | None) -> str:
    """A range in per cent."""
    if ends is None:
        return "none"
    low, high = (f"{100 * end:.0f}" for end in ends)
    return f"{low} %" if low == high else f"{low} to {high} %"
