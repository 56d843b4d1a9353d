"""`foveal ask`: one question about one picture, with few visual tokens."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.budget import Budget, parse_keep
from foveal.cli.common import (
    LayerOption,
    ModelOption,
    layer_option,
    load_model,
    make_method,
    print_json,
    screen,
)
from foveal.errors import FovealError

if TYPE_CHECKING:
    from PIL import Image

    from foveal.compressors import Compressor

__all__ = ["ask"]


def ask(
    image: Annotated[
        Path, typer.Argument(help="A picture: PNG, JPEG, WebP, of any size.", show_default=False)
    ],
    question: Annotated[str, typer.Argument(help="What to ask about it.", show_default=False)],
    model: ModelOption = None,
    method: Annotated[
        str | None, typer.Option(help="See `foveal list`; `none` keeps every token. Default: dart.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Visual tokens kept, a number or a fraction. Default: 1/9.")
    ] = None,
    layer: LayerOption = None,
    out: Annotated[Path | None, typer.Option(help="Draw the kept tokens into this PNG or JPEG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a question about a picture of your own.

    A checkpoint trained by Foveal knows its method; the options given here go before it.

    Examples:
    - `foveal ask photo.jpg "is there a cat in the image?"`
    - `foveal ask photo.jpg "what color is the car?" --model ./llava-1.5-7b-hf --method fastv --keep 64 --out kept.png`
    """
    from foveal.images import open_image

    picture = open_image(image)
    loaded, processor = load_model(model)
    compressor = _choose(loaded, method, None if keep is None else parse_keep(keep), layer)
    if out is not None and compressor is None:
        raise FovealError("--out draws the kept tokens: choose a --method other than none")
    reply = _reply(loaded, processor, picture, question, compressor=compressor, out=out)
    if as_json:
        print_json(reply)
        return
    screen().print(reply["answer"], style="bold", markup=False, soft_wrap=True)
    if compressor is not None:
        counts = f"{reply['kept']} of {reply['visual_tokens']} visual tokens {_where(reply['stages'])}"
        screen().print(f"{reply['method']} kept {counts}", style="dim")
    if out is not None:
        screen().print(f"kept tokens drawn in {out}", style="dim", markup=False, soft_wrap=True)


def _where(stages: list[dict[str, int]]) -> str:
    """Since when only the tokens kept are there."""
    *earlier, last = stages
    where = f"from layer {last['layer']} on" if last["layer"] else "before the decoder"
    before = ", ".join(f"{stage['kept']} from layer {stage['layer']}" for stage in earlier)
    return f"{where} ({before})" if before else where


def _choose(model: Any, method: str | None, keep: Budget | None, layer: int | None) -> Compressor | None:
    """The method named on the command line, else the one the checkpoint was trained for, else DART."""
    from foveal.loading import recorded_compressor

    recorded = recorded_compressor(model)
    if method is not None or recorded is None:
        return make_method(method or "dart", 1 / 9 if keep is None else keep, layer)
    changed: dict[str, Any] = {} if keep is None else {"keep": keep}
    return replace(recorded, **changed | layer_option(type(recorded), layer))


def _reply(
    model: Any,
    processor: Any,
    picture: Image.Image,
    question: str,
    *,
    compressor: Compressor | None,
    out: Path | None,
) -> dict[str, Any]:
    """The answer and what it was made from, ready for JSON; draws the kept tokens on the way."""
    from foveal.compression import compress
    from foveal.evaluation.runner import encode, generate_answers

    inputs = encode(processor, [picture], [question])
    tokens = int((inputs["input_ids"] == getattr(model.config, "image_token_id", -1)).sum())
    with compress(model, compressor) if compressor else nullcontext() as run:
        answer = generate_answers(model, processor, [picture], [question], max_new_tokens=64)[0]
        reply: dict[str, Any] = {"answer": answer, "visual_tokens": tokens, "kept": tokens, "method": "none"}
        if run is None or compressor is None:
            return reply
        if out is not None:
            _draw(run, inputs, processor, tokens, out)
        stages = run.stages
    kept = stages[-1].kept[0].tolist()
    return {
        **reply,
        "kept": len(kept),
        "positions": kept,
        "method": compressor.card.name if compressor.card else type(compressor).__name__,
        "options": compressor.options(),
        "stages": [{"layer": stage.layer, "kept": len(stage.kept[0])} for stage in stages],
    }


def _draw(run: Any, inputs: Any, processor: Any, tokens: int, out: Path) -> None:
    from foveal.show import seen_images, stage_pictures

    sheet = stage_pictures(run, seen_images(inputs["pixel_values"], processor), tokens)[0]
    try:
        sheet.save(out)
    except ValueError as error:
        raise FovealError(f"--out {out}: {error}; end the name in .png or .jpg") from error
