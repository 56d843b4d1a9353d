"""`foveal train`: EPIC on the bundled model or one of your own, from a recipe, options, or both."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.common import ModelOption, print_json, screen
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.distillation.recipe import Recipe

__all__ = ["fine_tune", "train"]

_BUNDLED = "bundled"


def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [--OPTION VALUE]...",
            help="A YAML file or a bundled recipe's name, and any field of EpicConfig (transformers' TrainingArguments "
            "included), which wins over the recipe: `--weight_decay 0.1 --report_to tensorboard`.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="`scenes`, or a file of conversations: LLaVA's format or chat messages.", show_default=False
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(help="Folder of its images. Default: where the file is.", show_default=False),
    ] = None,
    model: ModelOption = None,
    out: Annotated[
        str | None, typer.Option(help="Folder for the trained checkpoint.", show_default=False)
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Trained with, see `foveal list`. Default: dart.", show_default=False)
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="`tcd`, `lcd`, `icd` (EPIC), `direct` (fixed compression), `none` (plain fine-tuning). Default: tcd.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Fraction of visual tokens that the model is meant for. Default: 1/9.", show_default=False
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            help="Decoder layer at whose entry tokens are dropped, from 0. Default: 2.", show_default=False
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimizer steps. Default: one epoch of your data.", show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Conversations per micro-batch and GPU.", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="At its peak. Default: the paper's 2e-5.", show_default=False)
    ] = None,
    save_steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps between checkpoints to go on from. Default: 100.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=1023, help="Draws other batches and plans.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what the run would need, and where it fits. Trains nothing."),
    ] = False,
    list_recipes: Annotated[bool, typer.Option("--list", help="Show the bundled recipes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run or --list: print JSON.")] = False,
) -> None:
    """Fine-tune a model so that it stays accurate with few visual tokens.

    Writes an ordinary Hugging Face checkpoint with a model card, which names its method: `foveal.load` and `foveal ask`
    use it. A run that was stopped goes on from its last checkpoint when the same command is given again.

    Examples:
    - `foveal train --out my-model` (the bundled model on procedural scenes, minutes on a CPU)
    - `foveal train --data chats.jsonl --model ./llava-1.5-7b-hf --out my-llava --lora_rank 64`
    - `foveal train llava-1.5-7b-lora --data llava_v1_5_mix665k.json --images . --out llava-epic --dry-run`
    - `torchrun --nproc_per_node 8 -m foveal train recipe.yaml --data chats.jsonl --out llava-epic`
    """
    if list_recipes:
        _show_recipes(as_json)
        return
    if as_json and not dry_run:
        raise FovealError("--json goes with --dry-run or --list: a run writes its results to training.json")
    named = {
        "data": data,
        "images": images,
        "model": model,
        "out": out,
        "method": method,
        "schedule": schedule,
        "keep": keep,
        "layer": layer,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "save_steps": save_steps,
        "seed": seed,
    }
    recipe = _recipe(words or [], {name: value for name, value in named.items() if value is not None})
    if dry_run:
        from foveal.cli.dry_run import dry_run as show_needs

        show_needs(recipe, as_json=as_json)
        return
    try:
        _run(recipe)
    except KeyboardInterrupt:
        raise typer.Exit(_say_stopped(recipe)) from None


def _recipe(words: list[str], named: dict[str, Any]) -> Recipe:
    """What the recipe and the command line say; without a recipe, a model and data, the bundled recipe."""
    from foveal.distillation.recipe import SHORT_NAMES, parse_recipe

    options = [f"--{SHORT_NAMES.get(name, name)}={value}" for name, value in named.items()]
    recipe = parse_recipe([*words, *options], _defaults())
    if recipe.source is None and recipe.run.model is None and recipe.run.data == "scenes":
        recipe = parse_recipe([_BUNDLED, *words, *options], _defaults())
    return recipe


def _defaults() -> dict[str, Any]:
    """Options that fit this machine and a command that shows its own progress."""
    import torch

    from foveal.efficiency.hardware import has_bfloat16

    return {
        "bf16": has_bfloat16(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
        "logging_steps": 1,
        "report_to": "none",
        "save_steps": 100,
        "save_total_limit": 2,
        "use_cpu": not torch.cuda.is_available(),
    }


def _show_recipes(as_json: bool) -> None:
    from rich.table import Table

    from foveal.distillation.recipe import bundled_recipes

    recipes = bundled_recipes()
    if as_json:
        print_json(recipes)
        return
    table = Table("recipe", "what it is", box=None)
    for name, title in recipes.items():
        table.add_row(name, title)
    screen().print(table)
    screen().print("\nfoveal train RECIPE --out FOLDER; --dry-run says what it needs", style="dim")


def _run(recipe: Recipe) -> None:
    """Train, unless the folder holds the finished run already."""
    from foveal.cli.train_run import TrainingRun

    run = TrainingRun(recipe)
    if not run.finished():
        run.train()
        return
    run.say(f"{run.folder} is finished: nothing to do (choose another --out to train anew)")
    run.say_next()


def _say_stopped(recipe: Recipe) -> int:
    """Tell how to go on, once; the exit code of a program stopped by Ctrl-C."""
    from foveal.distillation import last_checkpoint

    if recipe.config.process_index == 0:
        folder = recipe.config.output_dir
        checkpoint = last_checkpoint(str(folder))
        how = f"goes on from {checkpoint.name}" if checkpoint else "begins anew, since nothing was saved yet"
        print(f"stopped; the same command {how} (in {folder})", file=sys.stderr)  # noqa: T201
    return 130


def fine_tune(
    model: Any,
    processor: Any,
    samples: Any,
    *,
    label: str,
    folder: str | Path,
    save_steps: int | None = None,
    **options: Any,
) -> float:
    """Train `model` in place under a live progress bar; returns the seconds it took.

    Args:
        model: the model to train.
        processor: its processor.
        samples: see `VisionCollator`.
        label: the progress bar's text.
        folder: for checkpoints; the run goes on from the last one found there.
        save_steps: steps between checkpoints, None for none.
        options: of EpicConfig.
    """
    from foveal.cli.train_run import fit
    from foveal.distillation import EpicConfig

    saving = {"save_strategy": "steps", "save_steps": save_steps} if save_steps else {"save_strategy": "no"}
    config = EpicConfig(output_dir=str(folder), **{**_defaults(), **saving, **options})
    started = time.perf_counter()
    fit(model, processor, samples, config, label)
    return time.perf_counter() - started
