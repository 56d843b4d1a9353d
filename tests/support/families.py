"""Tiny random models of the vision-language families, and ragged inputs in each family's own image layout.

Weights are spread so that attention is far from uniform, and two ways to compute the same logits agree to 1e-10: the
norms keep float64, so does eager attention under the `exact_softmax` fixture, and what the library still rounds to
float32 (tables of rotary positions, parts of vision towers) it rounds alike on every way.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, cycle, islice
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

PAD, BOS, START, END, BREAK, IMAGE, VIDEO, GLOBAL, FENCE, NEWLINE, STAMP, TILE = range(12)
FIRST_TEXT = 20  # ids from TILE on name the tiles of a split image
VOCABULARY = 120
WINDOW = 16

Shape = tuple[int, ...]
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Sight:
    """How a family takes images or videos.

    Attributes:
        shapes: height and width of the pictures of a batch, in turn, in units of the family (a video has its number of
            frames in front).
        tokens: shape -> the ids that stand for the picture, delimiters included.
        pixels: shape -> shape of the picture's pixel tensor.
        collate: the pictures of each sample -> inputs of the model.
        per_tile: every run of placeholders counts as an image.
    """

    shapes: tuple[Shape, ...]
    tokens: Callable[[Shape], list[int]]
    pixels: Callable[[Shape], Shape]
    collate: Callable[[list[list[Picture]]], Inputs]
    per_tile: bool = False

    def turns(self, count: int, frames: int) -> list[Shape]:
        """The shapes of the first `count` pictures."""
        time = (frames,) if frames else ()
        return [(*time, *shape) for shape in islice(cycle(self.shapes), count)]

    def lengths(self, shape: Shape) -> list[int]:
        """Visual tokens of each image that a picture of this shape counts as."""
        marks = "".join("x" if token in (IMAGE, VIDEO) else " " for token in self.tokens(shape))
        return [len(run) for run in marks.split()] if self.per_tile else [marks.count("x")]


@dataclass(frozen=True)
class Picture:
    """An image or a video."""

    sight: Sight
    shape: Shape
    pixels: Tensor


@dataclass(frozen=True)
class Sample:
    """Token ids, and the pictures that their placeholders stand for."""

    ids: list[int]
    pictures: list[Picture]


@dataclass(frozen=True)
class FamilyCase:
    """A family: its configuration but for the number of layers, and the form of its inputs.

    Attributes:
        image, video: how it takes them.
        type_ids: the input of token types (0 for the prompt's text): its name, the type of images, the type of
            generated tokens. Videos are of type 2.
        images_first: all images stand before the text.
        first_position: of generate's position ids.
        mrope: the model infers positions from token types where there are images.
        attentions: implementations that its language model has.
        plain_ragged_exact: the unmodified model passes every comparison of test_families.
    """

    name: str
    config: dict[str, Any]
    image: Sight
    video: Sight | None = None
    type_ids: tuple[str, int, int] | None = None
    images_first: bool = False
    first_position: int = 0
    mrope: bool = False
    attentions: tuple[str, ...] = ("sdpa", "eager")
    plain_ragged_exact: bool = True

    @property
    def sliding(self) -> bool:
        """Whether some decoder layers attend within a window only."""
        language = self.config["text_config"]
        return "sliding_attention" in language.get("layer_types", ()) or bool(language.get("sliding_window"))

    def build(self, layers: int, attention: str) -> Any:
        """The model in float64."""
        config = deepcopy(self.config)
        language = config.get("text_config", config)
        language["num_hidden_layers"] = layers
        if "layer_types" in language:
            language["layer_types"] = list(islice(cycle(language["layer_types"]), layers))
        auto = AutoModelForImageTextToText if "text_config" in config else AutoModelForCausalLM
        return built(auto, AutoConfig.for_model(**config), attention)

    def inputs(
        self, images: list[int], texts: list[int], side: str = "left", seed: int = 0, frames: int = 0
    ) -> Inputs:
        """A batch of `samples`."""
        return self.collate(self.samples(images, texts, seed, frames), side)

    def samples(self, images: list[int], texts: list[int], seed: int = 0, frames: int = 0) -> list[Sample]:
        """Sample i: images[i] images (or videos of `frames`) between texts[i] random words, two of them at the end."""
        sight, generator = self.sight(frames), torch.Generator().manual_seed(seed)
        shapes = iter(sight.turns(sum(images), frames))
        samples = []
        for count, length in zip(images, texts, strict=True):
            if length < count + 2:
                raise ValueError("the text has to go on for two words behind the last image")
            text = torch.randint(FIRST_TEXT, VOCABULARY, (length,), generator=generator).tolist()
            pictures = [picture(sight, shape, generator) for shape in islice(shapes, count)]
            samples.append(Sample(self.layout(text, pictures), pictures))
        return samples

    def sight(self, frames: int) -> Sight:
        """How it takes images, or videos if there are frames."""
        if not frames:
            return self.image
        if self.video is None:
            raise ValueError(f"{self.name} takes no videos")
        return self.video

    def layout(self, text: list[int], pictures: list[Picture]) -> list[int]:
        """The ids of a sample."""
        seen = [picture.sight.tokens(picture.shape) for picture in pictures]
        if self.images_first:
            return [*chain(*seen), BOS, *text, NEWLINE]
        mixed = chain(*([word, *tokens] for word, tokens in zip(text, seen, strict=False)))
        return [BOS, *mixed, *text[len(seen) :]]

    def collate(self, samples: list[Sample], side: str = "left") -> Inputs:
        """The model's inputs for these samples, padded on `side`."""
        length = max(len(sample.ids) for sample in samples)
        ids, mask = [], []
        for sample in samples:
            short = length - len(sample.ids)
            room = (short, 0) if side == "left" else (0, short)
            ids.append(pad(torch.tensor(sample.ids), room, value=PAD))
            mask.append(pad(torch.ones(len(sample.ids), dtype=torch.long), room))
        inputs = {"input_ids": torch.stack(ids), "attention_mask": torch.stack(mask)}
        if self.type_ids:
            name, of_images, _ = self.type_ids
            inputs[name] = (inputs["input_ids"] == IMAGE) * of_images + (inputs["input_ids"] == VIDEO) * 2
        for sight in (self.image, self.video):
            pictures = [[p for p in sample.pictures if p.sight is sight] for sample in samples]
            if sight and any(pictures):
                inputs |= sight.collate(pictures)
        return inputs


def side_by_side(sample: Sample) -> Sample:
    """A sample without the word between its first two images."""
    marks = [token == IMAGE for token in sample.ids]
    gap = marks.index(False, marks.index(True))
    return Sample([*sample.ids[:gap], *sample.ids[gap + 1 :]], sample.pictures)


@lru_cache
def model(name: str, layers: int = 6, attention: str = "sdpa") -> Any:
    """The family's tiny model: float64, evaluation mode, never the end of a text."""
    return ALL[name].build(layers, attention)


def batch(name: str, images: list[int], texts: list[int], side: str = "left", seed: int = 0) -> Inputs:
    """Everything the model's forward takes for a padded batch; sample i holds images[i] images and texts[i] words."""
    return ALL[name].inputs(images, texts, side, seed)


def video_batch(
    name: str, videos: list[int], texts: list[int], frames: int = 3, side: str = "left", seed: int = 0
) -> Inputs:
    """`batch` with videos of this many frames (of pairs of frames in Qwen's) instead of images."""
    return ALL[name].inputs(videos, texts, side, seed, frames)


def extended(name: str, inputs: Inputs, sequences: Tensor) -> Inputs:
    """The prompt with what was generated behind it, in generate's own positions.

    A plain forward counts padding as positions: the same angles between tokens, but other roundings of them.
    """
    family = ALL[name]
    new = (0, sequences.shape[1] - inputs["input_ids"].shape[1])
    mask = pad(inputs["attention_mask"], new, value=1)
    longer = {**inputs, "input_ids": sequences, "attention_mask": mask}
    if family.type_ids:
        types, _, generated = family.type_ids
        longer[types] = pad(inputs[types], new, value=generated)
    if not (family.mrope and visual(name, inputs).any()):
        longer["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + family.first_position
    return longer


def visual(name: str, inputs: Inputs) -> Tensor:
    """(batch, rows) bool: placeholders of images and videos."""
    return (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == VIDEO)


def image_lengths(name: str, images: list[int], frames: int = 0) -> list[int]:
    """Visual tokens of each image of `batch(name, images, ...)`, or of each video, in reading order."""
    sight = ALL[name].sight(frames)
    return [length for shape in sight.turns(sum(images), frames) for length in sight.lengths(shape)]


def built(auto: Any, config: Any, attention: str) -> Any:
    """A random model of this configuration, in full precision."""
    torch.manual_seed(0)
    options = {"attn_implementation": attention, "experts_implementation": "eager"}
    model = auto.from_config(config, **options).double().eval()
    spread(model)
    exact(model)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.suppress_tokens = list(range(FIRST_TEXT))
    return model


@torch.no_grad()
def spread(model: Any) -> None:
    """Draw weights large enough that attention is far from uniform; only text tokens are ever likely."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim > 1:
                inputs = parameter.shape[-1] if parameter.ndim == 3 else parameter[0].numel()
                parameter.normal_(0, 1 if isinstance(module, nn.Embedding) else 1.2 / inputs**0.5)
    model.lm_head.weight[:FIRST_TEXT] = 0


ONE_PLUS_WEIGHT = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm", "Qwen3_5RMSNorm")


class ExactNorm(nn.Module):
    """RMSNorm that stays in the model's own precision (the library's rounds to float32)."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = getattr(norm, "weight", 1)
        self.epsilon = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        self.offset = float(type(norm).__name__ in ONE_PLUS_WEIGHT)

    def forward(self, hidden: Tensor) -> Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return (self.weight + self.offset) * hidden * torch.rsqrt(variance + self.epsilon)


def exact(module: nn.Module) -> None:
    """Keep in full precision what the library rounds to float32 below `module`."""
    for name, child in module.named_children():
        if type(child).__name__.endswith("RMSNorm"):
            setattr(module, name, ExactNorm(child))
        else:
            exact(child)


def picture(sight: Sight, shape: Shape, generator: torch.Generator) -> Picture:
    """Noise of this shape."""
    return Picture(sight, shape, torch.randn(sight.pixels(shape), generator=generator, dtype=torch.float64))


def flat(samples: list[list[Picture]]) -> list[Picture]:
    return [picture for pictures in samples for picture in pictures]


def shapes_of(samples: list[list[Picture]]) -> Tensor:
    return torch.tensor([picture.shape for picture in flat(samples)])


def stacked(pixels: list[Tensor]) -> Tensor:
    """Stack tensors that differ in any dimension, zeros behind the shorter ones."""
    room = [max(sizes) for sizes in zip(*(tensor.shape for tensor in pixels), strict=True)]
    whole = pixels[0].new_zeros(len(pixels), *room)
    for place, tensor in zip(whole, pixels, strict=True):
        place[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole


def one_size(tokens: int, size: int, before: tuple[int, ...] = (), after: tuple[int, ...] = ()) -> Sight:
    """Every image is resized to the same square."""
    return Sight(
        shapes=((size, size),),
        tokens=lambda shape: [*before, *[IMAGE] * tokens, *after],
        pixels=lambda shape: (3, *shape),
        collate=lambda samples: {"pixel_values": torch.stack([p.pixels for p in flat(samples)])},
    )


PINPOINTS = [[12, 24], [24, 12], [24, 24]]
SIDE, PATCH = 12, 4  # of a LLaVA tile: 9 tokens


def anyres() -> Sight:
    """The whole image as one tile, then a grid of tiles, rows of padding cut away and a newline behind every row."""
    per_side = SIDE // PATCH

    def grid(shape: Shape) -> Shape:
        return get_anyres_image_grid_shape(shape, PINPOINTS, SIDE)

    def tokens(shape: Shape) -> list[int]:
        rows, columns = grid(shape)
        _, height, width = unpad_image(torch.empty(1, rows * per_side, columns * per_side), shape).shape
        return [IMAGE] * (per_side**2 + height * (width + 1))

    def collate(samples: list[list[Picture]]) -> Inputs:
        tiles = stacked([picture.pixels for picture in flat(samples)])
        return {"pixel_values": tiles, "image_sizes": shapes_of(samples)}

    return Sight(
        shapes=((12, 24), (5, 24), (24, 12), (20, 20)),
        tokens=tokens,
        pixels=lambda shape: (1 + grid(shape)[0] * grid(shape)[1], 3, SIDE, SIDE),
        collate=collate,
    )


POOLED_FRAMES = Sight(  # LLaVA-OneVision's videos: 2 x 2 tokens a frame, one newline at the end
    shapes=((),),
    tokens=lambda shape: [VIDEO] * (4 * shape[0] + 1),
    pixels=lambda shape: (*shape, 3, SIDE, SIDE),
    collate=lambda samples: {"pixel_values_videos": stacked([p.pixels for p in flat(samples)])},
)


def patches(kind: str, shapes: tuple[Shape, ...], stamped: bool = False) -> Sight:
    """Qwen: four patches a token; a stamped video has every frame between delimiters of its own."""
    placeholder = {"image": IMAGE, "video": VIDEO}[kind]
    pixel_values = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]

    def grid(shape: Shape) -> Shape:
        return (1, 1, *shape)[-3:]

    def tokens(shape: Shape) -> list[int]:
        frames, height, width = grid(shape)
        frame = [placeholder] * (height * width // 4)
        return [STAMP, START, *frame, END] * frames if stamped else [START, *frame * frames, END]

    def collate(samples: list[list[Picture]]) -> Inputs:
        pixels = torch.cat([picture.pixels for picture in flat(samples)])
        grids = torch.tensor([grid(picture.shape) for picture in flat(samples)])
        return {pixel_values: pixels, f"{kind}_grid_thw": grids}

    return Sight(
        shapes=shapes,
        tokens=tokens,
        pixels=lambda shape: (prod(grid(shape)), 3 * 2 * 4 * 4),  # channels, two frames, height, width
        collate=collate,
    )


QWEN_IMAGE = patches("image", ((8, 8), (6, 10), (4, 12)))
QWEN_VIDEO = patches("video", ((4, 6), (4, 4)))
QWEN_STAMPED_VIDEO = patches("video", ((4, 6), (4, 4)), stamped=True)

INTERNVL_IMAGE = Sight(
    shapes=((3,), (1,), (2,)),
    tokens=lambda shape: [START, *[IMAGE] * 9 * shape[0], END],
    pixels=lambda shape: (*shape, 3, 24, 24),
    collate=lambda samples: {"pixel_values": torch.cat([p.pixels for p in flat(samples)])},
)


def split_tokens(shape: Shape) -> list[int]:
    """Idefics3: named tiles row by row, then the whole image; or that one alone."""
    rows, columns = shape
    ids = []
    for row in range(rows):
        for column in range(columns):
            ids += [FENCE, TILE + row * columns + column, *[IMAGE] * 9]
        ids.append(NEWLINE)
    return [*ids, FENCE, GLOBAL, *[IMAGE] * 9, FENCE]


def split_collate(samples: list[list[Picture]]) -> Inputs:
    """(batch, tiles, ...): a sample's tiles, those of all its images together."""
    none = torch.zeros(0, 3, 24, 24, dtype=torch.float64)
    pixels = stacked([torch.cat([none, *(picture.pixels for picture in pictures)]) for pictures in samples])
    return {"pixel_values": pixels, "pixel_attention_mask": (pixels != 0).any(2).long()}


SPLIT_IMAGE = Sight(
    shapes=((1, 2), (0, 0), (2, 1)),
    tokens=split_tokens,
    pixels=lambda shape: (shape[0] * shape[1] + 1, 3, 24, 24),
    collate=split_collate,
    per_tile=True,
)


def pixtral_tokens(shape: Shape) -> list[int]:
    """A break behind every row, an end behind the last."""
    rows, columns = shape[0] // 8, shape[1] // 8
    return [*([*[IMAGE] * columns, BREAK] * rows)[:-1], END]


PIXTRAL_IMAGE = Sight(
    shapes=((32, 40), (24, 40), (40, 16)),
    tokens=pixtral_tokens,
    pixels=lambda shape: (3, *shape),
    collate=lambda samples: {
        "pixel_values": stacked([p.pixels for p in flat(samples)]),
        "image_sizes": shapes_of(samples),
    },
)


def text(model_type: str, **extra: Any) -> dict[str, Any]:
    """A language model's configuration but for the number of layers."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
    }
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": None}
    return {"model_type": model_type, **sizes, **ids, "tie_word_embeddings": False, **extra}


def tower(model_type: str, **extra: Any) -> dict[str, Any]:
    """A vision tower's configuration."""
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return {"model_type": model_type, **sizes, **extra}


def config(
    model_type: str, text_config: dict[str, Any], vision_config: dict[str, Any], **extra: Any
) -> dict[str, Any]:
    """A model's configuration."""
    return {
        "model_type": model_type,
        "text_config": text_config,
        "vision_config": vision_config,
        "tie_word_embeddings": False,
        **extra,
    }


CLIP = {"image_size": 20, "patch_size": 4, "num_hidden_layers": 3}
SIGLIP = {"vision_use_head": False}
LOCAL = ["sliding_attention", "full_attention"]
GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": WINDOW}
QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
MM_TYPES = ("mm_token_type_ids", 1, 0)


def qwen(
    name: str,
    vision: dict[str, Any],
    video: Sight = QWEN_VIDEO,
    plain_ragged_exact: bool = True,
    **extra: Any,
) -> FamilyCase:
    """A family with M-RoPE."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    language = text(f"{name}_text", rope_parameters=rope, **extra)
    sizes = {"patch_size": 4, "num_heads": 2, "depth": 2}
    return FamilyCase(
        name,
        config(name, language, {"model_type": f"{name}_vision", **sizes, **vision}, **QWEN_IDS),
        QWEN_IMAGE,
        video,
        type_ids=MM_TYPES,
        mrope=True,
        plain_ragged_exact=plain_ragged_exact,
    )


DEEPSTACK = {
    "depth": 4,
    "hidden_size": 24,
    "intermediate_size": 32,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1, 2],
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

CASES = [
    FamilyCase(
        "llava",
        config("llava", text("llama"), tower("clip_vision_model", **CLIP), image_token_index=IMAGE),
        one_size(25, 20),
    ),
    FamilyCase(
        "llava_mistral",
        config(
            "llava",
            text("mistral", sliding_window=WINDOW),
            tower("clip_vision_model", **CLIP),
            image_token_index=IMAGE,
        ),
        one_size(25, 20),
    ),
    FamilyCase(
        "llava_next",
        config(
            "llava_next",
            text("llama"),
            tower("clip_vision_model", **CLIP | {"image_size": SIDE, "patch_size": PATCH}),
            image_token_index=IMAGE,
            image_grid_pinpoints=PINPOINTS,
        ),
        anyres(),
    ),
    FamilyCase(
        "llava_onevision",
        config(
            "llava_onevision",
            text("qwen2"),
            tower("siglip_vision_model", image_size=SIDE, patch_size=PATCH, **SIGLIP),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
        ),
        anyres(),
        POOLED_FRAMES,
    ),
    qwen("qwen2_vl", {"embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2}),
    qwen(
        "qwen2_5_vl",
        {
            "hidden_size": 24,
            "intermediate_size": 32,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    ),
    qwen("qwen3_vl", DEEPSTACK, QWEN_STAMPED_VIDEO),
    qwen("qwen3_vl_moe", DEEPSTACK, QWEN_STAMPED_VIDEO, **EXPERTS),
    FamilyCase(
        "internvl",
        config(
            "internvl",
            text("qwen2"),
            tower("internvl_vision", image_size=24, patch_size=4),
            image_token_id=IMAGE,
            image_seq_length=9,
        ),
        INTERNVL_IMAGE,
    ),
    *(
        FamilyCase(
            name,
            config(
                name,
                text("llama"),
                tower(f"{name}_vision", image_size=24, patch_size=4),
                image_token_id=IMAGE,
            ),
            SPLIT_IMAGE,
        )
        for name in ("idefics3", "smolvlm")
    ),
    FamilyCase(
        "gemma3",
        config(
            "gemma3",
            text("gemma3_text", layer_types=["sliding_attention", *LOCAL], **GEMMA),
            tower("siglip_vision_model", image_size=20, patch_size=2, **SIGLIP),
            mm_tokens_per_image=25,
            boi_token_index=START,
            eoi_token_index=END,
            image_token_index=IMAGE,
        ),
        one_size(25, 20, (NEWLINE, START), (END, NEWLINE)),
        type_ids=("token_type_ids", 1, 0),
    ),
    FamilyCase(
        "paligemma",
        config(
            "paligemma",
            text("gemma"),
            tower("siglip_vision_model", image_size=20, patch_size=4, **SIGLIP),
            image_token_index=IMAGE,
            projection_dim=32,
            hidden_size=32,
        ),
        one_size(25, 20),
        type_ids=("token_type_ids", 0, 1),
        images_first=True,
        first_position=1,
    ),
    FamilyCase(
        "paligemma2",
        config(
            "paligemma",
            text("gemma2", layer_types=LOCAL, **GEMMA),
            tower("siglip_vision_model", image_size=20, patch_size=4, **SIGLIP),
            image_token_index=IMAGE,
            projection_dim=32,
            hidden_size=32,
        ),
        one_size(25, 20),
        type_ids=("token_type_ids", 0, 1),
        images_first=True,
        first_position=1,
        attentions=("eager",),
    ),
    FamilyCase(
        "mistral3",
        config(
            "mistral3",
            text("mistral", sliding_window=None),
            tower("pixtral", image_size=40, patch_size=4),
            image_token_index=IMAGE,
        ),
        PIXTRAL_IMAGE,
    ),
]


def positions(shape: Shape) -> Tensor:
    """Column and row of each patch."""
    rows, columns = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], dim=1)


GEMMA4_IMAGE = Sight(
    shapes=((8, 8), (6, 10), (4, 12)),
    tokens=lambda shape: [START, *[IMAGE] * (prod(shape) // 4), END],
    pixels=lambda shape: (prod(shape), 3 * 4 * 4),
    collate=lambda samples: {
        "pixel_values": stacked([p.pixels for p in flat(samples)]),
        "image_position_ids": stacked([positions(p.shape) + 1 for p in flat(samples)]) - 1,
    },
)


def gemma4(name: str, **extra: Any) -> FamilyCase:
    """Gemma 4: full layers have wider heads."""
    language = text(
        "gemma4_text",
        layer_types=LOCAL,
        sliding_window=WINDOW,
        global_head_dim=16,
        vocab_size_per_layer_input=VOCABULARY,
        **{"hidden_size_per_layer_input": 0, **extra},
    )
    vision = tower("gemma4_vision", head_dim=12, num_key_value_heads=2, patch_size=4, pooling_kernel_size=2)
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "boi_token_id": START, "eoi_token_id": END}
    return FamilyCase(name, config("gemma4", language, vision, **ids), GEMMA4_IMAGE, type_ids=MM_TYPES)


CASES += [
    gemma4("gemma4"),
    gemma4("gemma4_vision_blocks", use_bidirectional_attention="vision"),
    gemma4("gemma4_experts", enable_moe_block=True, top_k_experts=2, attention_k_eq_v=True, **EXPERTS),
]
FAMILIES = {case.name: case for case in CASES}
SLIDING = {case.name for case in CASES if case.sliding}
PAIRS = [(case.name, attention) for case in CASES for attention in case.attentions]
VIDEO_PAIRS = [(case.name, attention) for case in CASES if case.video for attention in case.attentions]


WORDS_ONLY = Sight(
    shapes=((16,),),
    tokens=lambda shape: [IMAGE] * shape[0],
    pixels=lambda shape: (0,),
    collate=lambda samples: {},
)
CROSS_IMAGE = Sight(
    shapes=((1, 2), (1, 1)),
    tokens=lambda shape: [IMAGE],
    pixels=lambda shape: (4, 3, 16, 16),
    collate=lambda samples: {
        "pixel_values": stacked([torch.stack([p.pixels for p in pictures]) for pictures in samples]),
        "aspect_ratio_ids": stacked([torch.tensor([p.shape[1] for p in pictures]) for pictures in samples]),
        "aspect_ratio_mask": stacked(
            [
                torch.tensor([[1] * prod(p.shape) + [0] * (4 - prod(p.shape)) for p in pictures])
                for pictures in samples
            ]
        ),
    },
)
UNUSUAL_CASES = [
    gemma4("gemma4_per_layer", hidden_size_per_layer_input=4),
    gemma4("gemma4_shared", hidden_size_per_layer_input=4, num_kv_shared_layers=2),
    FamilyCase(
        "gemma3n",  # without its vision tower, which comes from timm
        text(
            "gemma3n_text",
            layer_types=LOCAL,
            sliding_window=WINDOW,
            vocab_size_per_layer_input=VOCABULARY,
            hidden_size_per_layer_input=4,
            num_kv_shared_layers=2,
            laurel_rank=4,
        ),
        WORDS_ONLY,
        plain_ragged_exact=False,
    ),
    qwen(
        "qwen3_5",  # its linear attention computes in float32
        {key: value for key, value in DEEPSTACK.items() if key != "deepstack_visual_indexes"},
        QWEN_STAMPED_VIDEO,
        plain_ragged_exact=False,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    ),
    FamilyCase(
        "mllama",  # takes no batch in which only some samples have images
        config(
            "mllama",
            text("mllama_text_model", cross_attention_layers=[1, 4]),
            {
                "model_type": "mllama_vision_model",
                "hidden_size": 24,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 2,
                "image_size": 16,
                "patch_size": 4,
                "vision_output_dim": 48,
                "intermediate_layers_indices": [0],
            },
            image_token_index=IMAGE,
        ),
        CROSS_IMAGE,
        plain_ragged_exact=False,
    ),
]
UNUSUAL = {case.name: case for case in UNUSUAL_CASES}
ALL = FAMILIES | UNUSUAL
