"""What is timed: a model with its weights or random ones, and a prompt with a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPModel

from foveal.compressors import Compressor, TowerCompressor
from foveal.efficiency.configs import USUAL_SIDE, empty_clip, empty_model, read_config
from foveal.efficiency.cost import Load, cost, resolve
from foveal.efficiency.hardware import GIB
from foveal.efficiency.memory import free_memory
from foveal.efficiency.shape import ModelShape, model_shape
from foveal.engine.families import Parts, find_parts
from foveal.errors import FovealError
from foveal.loading import load as load_checkpoint
from foveal.text_tower import TextTower

__all__ = ["Workload", "needs_text", "of_model", "random_text_tower", "workload"]

_PICTURE = (640, 480)
_ASKED = "what is in the image?"
_QUESTION = 16  # tokens of a random text tower's question, begin and end included


@dataclass(frozen=True)
class Workload:
    """A model and what it is asked.

    Attributes:
        name: of the model.
        model: in eval mode, uncompressed.
        shape: of the model.
        load: of one sample.
        sample: the model's inputs of one sample, on its device; a batch repeats them.
        question: what is asked, for methods that read it; None to read it off the prompt.
        text_tower: for methods that read the question.
        preprocess: makes the inputs of so many samples of a picture and a text; None where no processor is at hand.
    """

    name: str
    model: Any
    shape: ModelShape
    load: Load
    sample: dict[str, Tensor]
    question: str | None = None
    text_tower: TextTower | None = None
    preprocess: Callable[[int], Any] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = self.model.device
        return found

    def batch(self, size: int) -> dict[str, Tensor]:
        """The inputs of `size` samples, all alike."""
        return {name: torch.cat([value] * size) for name, value in self.sample.items()}

    def words(self, size: int, rows: int) -> dict[str, Tensor]:
        """The inputs of `size` samples of `rows` text tokens without an image."""
        ids = _words(find_parts(self.model), rows).to(self.device).repeat(size, 1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def workload(
    source: str | None = None,
    methods: Sequence[Compressor] = (),
    *,
    load: Load | None = None,
    random_weights: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Workload:
    """Load a model, or build it with random weights, and make a prompt for it.

    With a processor at hand the prompt is its own, of a picture of 640 x 480, and the text about as long as asked for;
    without, it is put together from token ids.

    Args:
        source: a directory, a hub name, or with random weights one whose shape is known; None for the bundled model.
        methods: that will be measured: some need a text tower, some memory.
        load: batch (the largest), text, answer and visual tokens; one image.
        random_weights: build the model from its config alone. Speed does not depend on weights.
        device: where to put it.
        dtype: of weights and activations.

    Raises:
        FovealError: the model cannot be loaded, does not fit into memory, or nothing is known about its prompts.
    """
    device, load = torch.device(device), replace(load or Load(), bytes=dtype.itemsize)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FovealError("device cuda: this machine has no GPU that torch can use; pass cpu")
    name = source or "the bundled model"
    if not random_weights:
        model, processor = load_checkpoint(source, device=device, dtype=dtype, compressed=False)
    else:
        config = read_config(source)
        shape = model_shape(empty_model(config))
        _refuse_memory(name, shape, methods, _sized(shape, load), device, loaded=False)
        model, processor = _random_model(config, device, dtype), _own_processor(source)
    text_tower = None
    if any(needs_text(method) for method in methods):
        text_tower = random_text_tower(model, processor) if random_weights else TextTower.beside(model)
    work = of_model(model, processor, name=name, load=load, text_tower=text_tower)
    _refuse_memory(name, work.shape, methods, replace(work.load, batch=load.batch), device, loaded=True)
    return work


def of_model(
    model: Any, processor: Any = None, *, name: str, load: Load, text_tower: TextTower | None = None
) -> Workload:
    """The workload of a model that is there already.

    Args:
        model: uncompressed.
        processor: its processor, if there is one.
        name: what to call it.
        load: text, answer and visual tokens asked for.
        text_tower: for methods that read the question.

    Raises:
        FovealError: nothing is known about the model's prompts, or its processor makes another number of visual
            tokens than was asked for.
    """
    shape, parts = model_shape(model), find_parts(model)
    load = replace(load, batch=1, images=1, bytes=model.dtype.itemsize)
    if processor is None:
        load = _sized(shape, load)
        sample, preprocess = _made(parts, shape, load), None
    else:
        preprocess = _preprocessing(processor, load.text, parts)
        sample = dict(preprocess(1))
    ids = sample["input_ids"]
    visual = int((ids == parts.placeholders["image"]).sum())
    if load.visual is not None and load.tokens != visual:
        raise FovealError(
            f"the processor of {name} makes {visual} visual tokens of a picture of {_PICTURE[0]} x {_PICTURE[1]}, not "
            f"{load.tokens}: leave --visual out"
        )
    if text_tower is not None:
        question = getattr(preprocess, "question", _ASKED)
        load = replace(load, question=len(text_tower.tokenizer([question])["input_ids"][0]))
    load = replace(
        load,
        text=ids.shape[1] - visual,
        visual=load.visual if isinstance(load.visual, tuple) else visual,
        tiles=load.tiles if processor is None else None,
    )
    moved = {
        key: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for key, value in sample.items()
    }
    return Workload(
        name=name,
        model=model,
        shape=shape,
        load=resolve(shape, load),
        sample=moved,
        question=None if text_tower is None or processor is not None else _ASKED,
        text_tower=text_tower,
        preprocess=preprocess,
    )


def _sized(shape: ModelShape, load: Load) -> Load:
    """With a number of visual tokens, also for a model that takes pictures of any size."""
    if load.visual is None and shape.tile_tokens is None:
        load = replace(load, visual=(USUAL_SIDE, USUAL_SIDE))
    return resolve(shape, load)


def _refuse_memory(
    name: str,
    shape: ModelShape,
    methods: Sequence[Compressor],
    load: Load,
    device: torch.device,
    *,
    loaded: bool,
) -> None:
    """Refuse a load that does not fit beside what is there; `loaded` if the weights are."""
    room = free_memory(device)
    if room is None:
        return
    costs = [cost(shape, method, load) for method in (None, *methods)]
    needed = max(each.memory - loaded * sum(each.weights.values()) for each in costs)
    if needed > room:
        raise FovealError(
            f"{name} needs {needed / GIB:.1f} GiB{' more' if loaded else ''} with batch {load.batch}, but {device} "
            f"has {room / GIB:.1f} free: pass a smaller batch, --dtype bfloat16, another device, or a smaller model"
        )


def _random_model(config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A model that is made where it will run, by the library's own initialisation."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return model.to(device).eval()


def _own_processor(source: str | None) -> Any:
    """The processor of a checkpoint on disk."""
    if source is None:
        from foveal.mini import weights_path

        source = str(weights_path())
    if not Path(source).is_dir():
        return None
    try:
        return AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, KeyError):
        return None  # a folder with a config only


def needs_text(method: Compressor | None) -> bool:
    """Whether a method reads the question."""
    return isinstance(method, TowerCompressor) and method.needs_text


class _Words:
    """Stands in for CLIP's tokenizer: every text has the same number of tokens."""

    def __init__(self, end: int) -> None:
        self.eos_token_id = end

    def __call__(self, texts: Sequence[str], **_options: Any) -> dict[str, list[list[int]]]:
        begin = 0 if self.eos_token_id else 1
        return {"input_ids": [[begin] * (_QUESTION - 1) + [self.eos_token_id] for _ in texts]}


def random_text_tower(model: nn.Module, processor: Any = None) -> TextTower:
    """A text tower with random weights, of the size that belongs to the model's vision tower.

    Args:
        model: to read pictures for.
        processor: of the model, if there is one, to read the question off its prompts.

    Raises:
        FovealError: no such pair is known.
    """
    parts = find_parts(model)
    empty = empty_clip(parts)
    if empty is None:
        raise FovealError(
            f"no CLIP text model is known beside the vision tower of this {type(parts.top).__name__}: leave out "
            "methods that read the question (trim, cdpruner)"
        )
    weight = next(parts.tower.parameters())
    with weight.device:
        clip: Any = CLIPModel._from_config(empty.config, dtype=weight.dtype)
    end = empty.config.text_config.eos_token_id
    return TextTower(clip, _Words(end), processor).to(weight.device)


# -------------------------------------------------------------------------------------------------------- prompts


@dataclass(frozen=True)
class _Preprocessing:
    """A processor, a picture and a question, made into inputs as often as asked."""

    processor: Any
    picture: Any
    question: str

    def __call__(self, size: int) -> Any:
        from foveal.evaluation.runner import encode

        return encode(self.processor, [self.picture] * size, [self.question] * size)


def _preprocessing(processor: Any, text: int, parts: Parts) -> _Preprocessing:
    """With a question that makes the prompt's text about as long as asked for."""
    from PIL import Image

    picture = Image.effect_noise(_PICTURE, 64).convert("RGB")

    def rows(words: int) -> int:
        ids = _Preprocessing(processor, picture, _question(words))(1)["input_ids"]
        return int((ids != parts.placeholders["image"]).sum())

    least, each = rows(1), rows(2) - rows(1)
    words = 1 + max(0, round((text - least) / max(each, 1)))
    return _Preprocessing(processor, picture, _question(words))


def _question(words: int) -> str:
    return " ".join(["the"] * words)


def _made(parts: Parts, shape: ModelShape, load: Load) -> dict[str, Tensor]:
    """A prompt of token ids: a word, the image, and all other words."""
    assert load.visual is not None
    rows, columns = (1, load.visual) if isinstance(load.visual, int) else load.visual
    words, image = _words(parts, load.text), torch.full((1, rows * columns), parts.placeholders["image"])
    ids = torch.cat([words[:, :1], image, words[:, 1:]], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    config: Any = parts.top.config
    vision = config.vision_config
    if parts.family.patchwise and rows * columns == shape.tile_tokens:
        side = int(vision.image_size)
        return inputs | {"pixel_values": torch.randn(1, 3, side, side)}
    if hasattr(vision, "temporal_patch_size") and rows > 1:  # Qwen's: a row a patch
        grid = torch.tensor([[1, rows * vision.spatial_merge_size, columns * vision.spatial_merge_size]])
        width = 3 * vision.temporal_patch_size * vision.patch_size**2
        kinds = {"mm_token_type_ids": (ids == parts.placeholders["image"]).long(), "image_grid_thw": grid}
        return inputs | kinds | {"pixel_values": torch.randn(int(grid.prod()), width)}
    raise FovealError(
        f"no prompt of {rows * columns} visual tokens can be made for a {config.model_type} model without its "
        "processor: pass a folder that holds one, or with Qwen's models rows and columns such as --visual 24x24"
    )


def _words(parts: Parts, count: int) -> Tensor:
    """(1, count) ids that stand for nothing special."""
    text: Any = parts.decoder.config
    ends = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    special = {*parts.placeholders.values(), text.pad_token_id, text.bos_token_id, *ends}
    plain = torch.tensor([word for word in range(min(text.vocab_size, 4096)) if word not in special])
    generator = torch.Generator().manual_seed(0)
    return plain[torch.randint(len(plain), (1, count), generator=generator)]
