"""Small training runs on real conversations: a tiny LLaVA, its processor, and processes that train together."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor, PrinterCallback
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from foveal.distillation import EpicConfig, EpicTrainer
from support import processors
from support.tiny import llava


def processor() -> Any:
    """Of `support.tiny.llava`, with a byte for each token."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
        ),
        tokenizer=processors.tokenizer([], "right", image_token="<image>"),
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=processors.LLAVA,
        num_additional_image_tokens=1,
    )


def model(dtype: torch.dtype = torch.float64) -> Any:
    """A tiny LLaVA that knows the processor's tokens."""
    tokenizer = processor().tokenizer
    found = llava(dtype=dtype)
    torch.manual_seed(1)
    found.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    found.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    with torch.no_grad():  # what is dropped must matter for what is said
        found.lm_head.weight.normal_(0, 0.5)
        found.get_input_embeddings().weight.normal_()
        for parameter in found.model.multi_modal_projector.parameters():
            parameter.mul_(8)
    return found.train()


def conversations(
    count: int = 24, text_only: Callable[[int], bool] = lambda index: index % 3 == 2
) -> list[Any]:
    """Questions with answers of 1 to 5 letters, some with two turns; `text_only` says which have no picture."""
    draw = random.Random(0)
    found = []
    for index in range(count):
        question: list[dict[str, str]] = [{"type": "text", "text": _word(draw, 4 + index % 5)}]
        images = []
        if not text_only(index):
            question.insert(0, {"type": "image"})
            images = [Image.frombytes("RGB", (24, 24), draw.randbytes(24 * 24 * 3))]
        messages: list[Any] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": _word(draw, 1 + index % 5)},
        ]
        if index % 4 == 1:
            messages += [
                {"role": "user", "content": "and?"},
                {"role": "assistant", "content": _word(draw, 2)},
            ]
        found.append({"id": index, "images": images, "messages": messages})
    return found


def _word(draw: random.Random, length: int) -> str:
    return "".join(draw.choices("abcdefgh", k=length))


def make_trainer(folder: Path, samples: Any = None, learner: Any = None, **options: Any) -> EpicTrainer:
    """A trainer of `model()` on `conversations()`; options are EpicConfig's, or Trainer's where it has that name."""
    AcceleratorState._reset_state()  # of an earlier trainer in this process
    own = {name: options.pop(name) for name in ("callbacks", "eval_dataset") if name in options}
    defaults = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    config = EpicConfig(**{**defaults, **options})
    if config.fsdp:
        config.device  # noqa: B018 (joins the processes)
        PartialState().distributed_type = (
            DistributedType.MULTI_GPU
        )  # Accelerate, unlike torch, shards on no CPU
    trainer = EpicTrainer(
        model=model() if learner is None else learner,
        args=config,
        train_dataset=conversations() if samples is None else samples,
        processing_class=processor(),
        **own,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def weights(trainer: Any) -> dict[str, Tensor]:
    """A copy of the model's weights, whole where they are sharded."""
    found = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    return {name: _whole(tensor).detach().clone() for name, tensor in found.items()}


def _whole(tensor: Any) -> Tensor:
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of any weight."""
    assert one.keys() == other.keys()
    found = torch.stack([(one[name] - other[name]).abs().max().double() for name in one]).max()
    assert not found.isnan()
    return found.item()


def losses(trainer: Any) -> list[float]:
    """What was logged, step by step."""
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


# ---------------------------------------------------------------------- processes


def in_two_processes(work: Callable[[Path], Any], folder: Path) -> list[Any]:
    """What `work(folder)` returns in each of two processes that torch.distributed joins, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_of_two, args=(work, folder, port), nprocs=2)
    return [torch.load(folder / f"found-{rank}", weights_only=False) for rank in range(2)]


def _one_of_two(rank: int, work: Callable[[Path], Any], folder: Path, port: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    torch.save(work(folder), folder / f"found-{rank}")
