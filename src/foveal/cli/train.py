"""`foveal train`: EPIC on the bundled model or one of your own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from foveal.cli.common import LayerOption, ModelOption, load_model, parse_keep, screen

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
    layer: LayerOption = 2,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Conversations per step.")] = 32,
    learning_rate: Annotated[float, typer.Option(min=0, help="At its peak.")] = 5e-4,
    seed: Annotated[int, typer.Option(min=0, max=1023, help="Draws other batches and plans.")] = 0,
) -> None:
    """Fine-tune a model so that it stays accurate with few visual tokens.

    Writes an ordinary Hugging Face checkpoint that names its method: `foveal.load` and `foveal ask` use it.

    Examples: `foveal train --steps 200 --out my-model`,
    `foveal train --data llava_665k.json --model ./llava-1.5-7b-hf --learning-rate 2e-5 --out llava-epic`
    """
    samples = _samples(data, steps * batch_size, seed)
    loaded, processor = load_model(model)
    seconds = fine_tune(
        loaded,
        processor,
        samples,
        label=schedule,
        folder=out,
        method=method,
        schedule=schedule,
        keep=float(parse_keep(keep)),
        layer=layer,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    loaded.save_pretrained(out)
    processor.save_pretrained(out)
    rate = steps * batch_size / seconds
    screen().print(
        f"{steps} steps in {seconds:.0f} s, {rate:.1f} conversations/s", markup=False, soft_wrap=True
    )
    screen().print(
        f'next: foveal ask photo.jpg "what is in the image?" --model {out}', style="dim", markup=False
    )


def _samples(data: str, size: int, seed: int) -> Any:
    if data == "scenes":
        from foveal.mini import SceneConversations

        return SceneConversations("train", size, seed=seed)
    from foveal.distillation import load_conversations

    return load_conversations(data)


def fine_tune(
    model: Any, processor: Any, samples: Any, *, label: str, folder: str | Path, **options: Any
) -> float:
    """Train `model` in place under a live progress bar, with `options` of EpicConfig; returns the seconds it took."""
    import torch
    from transformers import PrinterCallback

    from foveal.cli.progress import TrainingBar
    from foveal.distillation import EpicConfig, EpicTrainer

    config = EpicConfig(
        output_dir=str(folder),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        dataloader_pin_memory=torch.cuda.is_available(),
        **options,
    )
    trainer = EpicTrainer(
        model=model,
        args=config,
        train_dataset=samples,
        processing_class=processor,
        callbacks=[TrainingBar(label)],
    )
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started
