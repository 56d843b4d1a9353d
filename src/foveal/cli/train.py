"""`foveal train`: EPIC on the bundled model or one of your own."""

from __future__ import annotations

import time
from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any

import typer

from foveal.cli.common import ModelOption, load_model, parse_keep, screen
from foveal.errors import FovealError

__all__ = ["fine_tune", "train"]


def train(
    out: Annotated[Path, typer.Option(help="Folder for the trained checkpoint.", show_default=False)],
    data: Annotated[
        str, typer.Option(help="`scenes`, or a JSON or JSONL file: LLaVA's format or chat messages.")
    ] = "scenes",
    model: ModelOption = None,
    method: Annotated[str, typer.Option(help="The method to train with, see `foveal list`.")] = "dart",
    schedule: Annotated[
        str, typer.Option(help="`tcd` (EPIC), `direct` (fixed compression), `none` (plain fine-tuning).")
    ] = "tcd",
    keep: Annotated[str, typer.Option(help="Fraction of visual tokens that the model is meant for.")] = "1/9",
    layer: Annotated[int, typer.Option(help="Decoder layer at whose entry tokens are dropped, from 0.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Conversations per step.")] = 32,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0, help="At its peak. Default: the paper's 2e-5; 5e-4 for the bundled model."),
    ] = None,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints to go on from.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=1023, help="Draws other batches and plans.")] = 0,
) -> None:
    """Fine-tune a model so that it stays accurate with few visual tokens.

    Writes an ordinary Hugging Face checkpoint that names its method: `foveal.load` and `foveal ask` use it. A run that
    was stopped goes on from its last checkpoint when the same command is given again.

    Examples:
    - `foveal train --steps 200 --out my-model`
    - `foveal train --data llava_665k.json --model ./llava-1.5-7b-hf --steps 5000 --out llava-epic`
    """
    if learning_rate is None:
        learning_rate = 5e-4 if model is None else 2e-5
    samples = _samples(data, steps * batch_size, seed)
    loaded, processor = load_model(model)
    seconds = fine_tune(
        loaded,
        processor,
        samples,
        label=schedule,
        folder=out,
        save_steps=save_steps,
        method=method,
        schedule=schedule,
        keep=_fraction(keep),
        layer=layer,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    loaded.save_pretrained(out)
    processor.save_pretrained(out)
    for checkpoint in out.glob("checkpoint-*"):
        rmtree(checkpoint)
    rate = steps * batch_size / seconds
    told = f"{steps} steps in {seconds:.0f} s, {rate:.1f} conversations/s"
    screen().print(told, markup=False, soft_wrap=True)
    following = f'next: foveal ask photo.jpg "what is in the image?" --model {out}'
    screen().print(following, style="dim", markup=False, soft_wrap=True)


def _fraction(text: str) -> float:
    keep = parse_keep(text)
    if keep == "auto":
        raise FovealError(
            "--keep auto: a model is trained for a budget that is known: pass a fraction such as 1/9"
        )
    return float(keep)


def _samples(data: str, size: int, seed: int) -> Any:
    if data == "scenes":
        from foveal.mini import SceneConversations

        return SceneConversations("train", size, seed=seed)
    from foveal.distillation import load_conversations

    return load_conversations(data)


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

    The vision tower stays as it is, as in the paper: the projector and the language model learn.

    Args:
        model: the model to train.
        processor: its processor.
        samples: see `VisionCollator`.
        label: the progress bar's text.
        folder: for checkpoints; the run goes on from the last one found there.
        save_steps: steps between checkpoints, None for none.
        options: of EpicConfig.
    """
    import torch
    from transformers import PrinterCallback

    from foveal.cli.progress import TrainingBar
    from foveal.distillation import EpicConfig, EpicTrainer, last_checkpoint
    from foveal.hardware import has_bfloat16

    config = EpicConfig(
        output_dir=str(folder),
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 0,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        bf16=has_bfloat16(),
        **options,
    )
    tower = model.get_encoder(modality="image")
    if tower is not model:
        tower.requires_grad_(False)
    trainer = EpicTrainer(
        model=model,
        args=config,
        train_dataset=samples,
        processing_class=processor,
        callbacks=[TrainingBar(label)],
    )
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    checkpoint = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return time.perf_counter() - started
