"""CLIP's opinion on question and image, for methods that need to know what was asked before the decoder runs.

tower = foveal.TextTower.beside(model)
text = tower.embed(["where is the owl?"])  # (1, shared)
patches = tower.project(hidden)  # (images, tokens, shared)
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from foveal.compressors.selection import on_device
from foveal.engine.families import Parts, find_parts
from foveal.errors import FovealError

__all__ = ["TextTower"]

# Vision towers of LLaVA models by (hidden size, layers, patch size, image size), and the pair they were taken from.
_PAIRS = {
    (1024, 24, 14, 336): "openai/clip-vit-large-patch14-336",
    (1024, 24, 14, 224): "openai/clip-vit-large-patch14",
}
_REMEDY = (
    "name the CLIP checkpoint that the tower comes from: text_tower=foveal.TextTower.beside(model, source=...), or "
    "clip= of foveal.load"
)
_NEEDED = ("text_model.", "text_projection.", "visual_projection.", "vision_model.post_layernorm.")
_ASK = "name the questions themselves, in run.questions"
_SENTINEL = "foveal-sentinel"


class TextTower(nn.Module):
    """CLIP's text tower, and the projections into the space it shares with the vision tower.

    Args:
        clip: a CLIPModel, or what has its `text_model`, `text_projection`, `visual_projection` and
            `vision_model.post_layernorm`. These are taken over and frozen; the vision encoder is not kept.
        tokenizer: CLIP's.
        processor: the vision-language model's, whose tokenizer and chat template tell where the question is.

    Raises:
        FovealError: parts that do not fit together.
    """

    def __init__(self, clip: Any, tokenizer: Any, processor: Any) -> None:
        super().__init__()
        self.text_model: Any = clip.text_model
        self.text_projection: Any = clip.text_projection
        self.visual_projection: Any = clip.visual_projection
        self.post_layernorm: Any = clip.vision_model.post_layernorm
        self.tokenizer = tokenizer
        self.processor = processor
        if self.text_projection.out_features != self.visual_projection.out_features:
            raise FovealError(
                f"CLIP's text projection makes {self.text_projection.out_features} features and its visual "
                f"projection {self.visual_projection.out_features}: they are not of one pair"
            )
        if tokenizer.eos_token_id is None:
            raise FovealError("the tokenizer has no end-of-text token: pass CLIP's own")
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def beside(cls, model: nn.Module, source: str | Path | None = None) -> TextTower:
        """The text tower that belongs to a model's vision tower, with its precision and on its device.

        Args:
            model: a vision-language model with a CLIP vision tower, loaded from a directory or hub name.
            source: a directory or hub name with a CLIPModel, or a directory with the folders ``text``
                (CLIPTextModelWithProjection and tokenizer) and ``vision`` (CLIPVisionModelWithProjection); None for
                the folder ``clip`` in the model's own, or else the hub name known for such a vision tower.

        Raises:
            FovealError: nothing was found, it cannot be loaded, or it belongs to another vision tower.
        """
        parts = find_parts(model)
        top: Any = parts.top
        tower = _vision_tower(parts)
        name = str(getattr(top, "name_or_path", None) or "")
        found = str(source) if source is not None else _find(name, tower.config, type(top).__name__)
        weight = next(parameter for parameter in tower.parameters() if parameter.is_floating_point())
        clip, tokenizer = _load_clip(found, weight.dtype)
        wanted, width = getattr(tower.config, "hidden_size", None), clip.visual_projection.in_features
        if width != wanted:
            raise FovealError(
                f"the CLIP checkpoint {found!r} projects features of width {width}, but the vision tower of this "
                f"{type(top).__name__} makes {wanted}: {_REMEDY}"
            )
        return cls(clip, tokenizer, _load_processor(name)).to(weight.device)

    @property
    def parameters_count(self) -> int:
        """Parameters of the text tower with its projection, which a model needs on top: 123.65 M for CLIP-L.

        Not counted: the visual projection (0.79 M for CLIP-L), and the norm, a copy of one that the vision tower has.
        """
        counted = (*self.text_model.parameters(), *self.text_projection.parameters())
        return sum(parameter.numel() for parameter in counted)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        found: torch.device = self.text_projection.weight.device
        return found

    def questions(self, ids: Tensor) -> list[str]:
        """What was asked last in each prompt: the text alone, without template, placeholders, padding and answer.

        The question lies between the markers that the chat template puts around a user's text; a text that contains
        such a marker itself is cut there. Without a template it is all text. Waits for the device: text is read on
        the host.

        Args:
            ids: (batch, rows) token ids, padded on either side.

        Raises:
            FovealError: the chat template cannot show where a user's text stands.
        """
        return [self._question(row) for row in ids.tolist()]

    def embed(self, questions: Sequence[str]) -> Tensor:
        """Embed texts in the shared space; a text beyond CLIP's limit (77 tokens) is cut there, with a warning.

        Returns:
            (batch, shared), not normalised, float32 or wider.

        Raises:
            FovealError: the tokenizer is not CLIP's own.
        """
        limit, end = int(self.text_model.config.max_position_embeddings), self.tokenizer.eos_token_id
        texts: list[list[int]] = self.tokenizer(list(questions), verbose=False)["input_ids"]
        for index, text in enumerate(texts):
            if end not in text:
                raise FovealError("the tokenizer puts no end-of-text token behind a text: pass CLIP's own")
            if len(text) > limit:
                warnings.warn(
                    f"CLIP reads {limit} tokens: the last {len(text) - limit} of sample {index}'s question are not "
                    "seen by the method",
                    stacklevel=2,
                )
                text[limit - 1 :] = [end]
        longest = max(map(len, texts))
        ids = torch.tensor([text + [end] * (longest - len(text)) for text in texts])
        lengths = torch.tensor([len(text) for text in texts])
        return self.embed_ids(ids, torch.arange(longest) < lengths[:, None])

    @torch.no_grad()
    def embed_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embed tokenised texts in the shared space.

        Args:
            ids: (batch, tokens) each text with its end-of-text token, padded on the right.
            mask: (batch, tokens) what is no padding.

        Returns:
            (batch, shared), not normalised, float32 or wider.
        """
        ids, mask = on_device(ids, self.device), on_device(mask, self.device)
        with _no_autocast(ids.device):
            states = self.text_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            # The model's own pooling takes the largest id as the end where its config says 2, as old ones do.
            end = ids.eq(self.tokenizer.eos_token_id).int().argmax(dim=1)
            pooled = states[torch.arange(len(ids), device=ids.device), end]
            dtype = _wide(pooled)
            return functional.linear(pooled.to(dtype), self.text_projection.weight.to(dtype))

    @torch.no_grad()
    def project(self, features: Tensor) -> Tensor:
        """Bring features of the vision tower into the shared space; the tower moves to the features' device.

        Args:
            features: (images, tokens, width) hidden states of the vision tower.

        Returns:
            (images, tokens, shared), not normalised, float32 or wider.

        Raises:
            FovealError: features of another width.
        """
        norm, matrix = self.post_layernorm, self.visual_projection.weight
        if features.shape[-1] != matrix.shape[1]:
            raise FovealError(
                f"CLIP projects features of width {matrix.shape[1]}, not {features.shape[-1]}: {_REMEDY}"
            )
        if features.device != self.device:
            self.to(features.device)
            matrix = self.visual_projection.weight
        dtype = torch.promote_types(_wide(features), matrix.dtype)
        with _no_autocast(features.device):
            weight, bias = norm.weight.to(dtype), norm.bias.to(dtype)
            states = functional.layer_norm(features.to(dtype), norm.normalized_shape, weight, bias, norm.eps)
            return functional.linear(states, matrix.to(dtype))

    def _question(self, row: list[int]) -> str:
        shown = [token for token in row if token >= 0 and token not in self._placeholders]
        if not getattr(self.processor, "chat_template", None):
            return self._decode(shown, skip_special_tokens=True).strip()
        opening, closing = self._markers
        text = self._decode(shown)
        if opening is not None:
            text = text[max((found.end() for found in opening.finditer(text)), default=0) :]
        if closing is not None:
            text = closing.split(text, maxsplit=1)[0]
        return self._special.sub("", text).strip()

    def _decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        text: str = self._prompt_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    @property
    def _prompt_tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    @cached_property
    def _placeholders(self) -> frozenset[int | None]:
        """Ids that stand for visual tokens."""
        return frozenset(getattr(self.processor, f"{kind}_token_id", None) for kind in ("image", "video"))

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Any special token as it is decoded."""
        tokenizer = self._prompt_tokenizer
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        tokens = sorted({*tokenizer.all_special_tokens, *added}, reverse=True)  # "<s>x" before "<s>"
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    @cached_property
    def _markers(self) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
        """What the template puts before and behind a user's text in any turn, as it is decoded.

        Read off a conversation of sentinels: what comes before the first question and before a later one ends alike,
        what comes behind a question begins alike whether it has been answered or not.
        """
        first, answer, later, rest = self._around_sentinels()
        opening = _shared(self._units(first)[::-1], self._units(later)[::-1])[::-1]
        closing = _shared(self._units(answer), self._units(rest))
        return self._pattern(opening), self._pattern(closing)

    def _around_sentinels(self) -> list[str]:
        """The template's text before a question, its answer, another question, and behind that."""
        roles = ("user", "assistant", "user")
        talk = [{"role": role, "content": [{"type": "text", "text": _SENTINEL}]} for role in roles]
        try:
            around: list[str] = self.processor.apply_chat_template(talk, add_generation_prompt=True).split(
                _SENTINEL
            )
        except Exception as error:  # a template may raise anything
            raise FovealError(f"the chat template cannot render a conversation ({error}): {_ASK}") from error
        if len(around) != len(roles) + 1:
            raise FovealError(f"the chat template drops or repeats what is said: {_ASK}")
        return around

    def _units(self, text: str) -> list[str]:
        """The text's special tokens and the characters between them, so that none is cut in two."""
        return re.findall(rf"{self._special.pattern}|.", text, re.DOTALL)

    def _pattern(self, units: Sequence[str]) -> re.Pattern[str] | None:
        """Finds the text of `units` where it was tokenised and decoded; None for nothing but space."""
        ids = self._prompt_tokenizer("".join(units), add_special_tokens=False)["input_ids"]
        # Where tokenizers put spaces depends on what is beside.
        letters = [re.escape(letter) for letter in self._decode(ids) if not letter.isspace()]
        return re.compile(r"\s*".join(letters)) if letters else None


def _shared(one: Sequence[str], two: Sequence[str]) -> list[str]:
    """What both begin with."""
    return [unit for unit, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False))]


def _no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Training may lower the precision of what it computes; this is not part of it."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _vision_tower(parts: Parts) -> Any:
    try:
        return parts.tower
    except AttributeError:
        raise FovealError(
            f"{type(parts.top).__name__} has no vision tower: a text tower belongs beside a vision-language model"
        ) from None


def _find(name: str, config: Any, model: str) -> str:
    """The checkpoint of the pair that a model's vision tower is from."""
    folder = Path(name) / "clip" if name else None
    if folder is not None and folder.is_dir():
        return str(folder)
    sizes = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")
    size = tuple(getattr(config, key, None) for key in sizes)
    kind = str(getattr(config, "model_type", "unknown"))
    if kind == "clip_vision_model" and size in _PAIRS:
        return _PAIRS[size]
    described = ", ".join(f"{key} {value}" for key, value in zip(sizes, size, strict=True))
    looked = f"there is no folder {str(folder)!r}" if folder else "it was loaded from no folder"
    raise FovealError(
        f"no text tower found for this {model}: {looked}, and no CLIP pair is known for its vision tower ({kind}, "
        f"{described}); {_REMEDY}"
    )


def _load_clip(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A CLIP pair, or the parts of it that are needed, and its tokenizer."""
    folder = Path(source)
    try:
        if (folder / "text").is_dir() and (folder / "vision").is_dir():
            text, missing = _load(CLIPTextModelWithProjection, folder / "text", dtype)
            vision, also = _load(CLIPVisionModelWithProjection, folder / "vision", dtype)
            missing, source = missing + also, str(folder / "text")
            clip = SimpleNamespace(
                text_model=text.text_model,
                text_projection=text.text_projection,
                vision_model=vision.vision_model,
                visual_projection=vision.visual_projection,
            )
        else:
            kind = AutoConfig.from_pretrained(source, local_files_only=folder.is_dir()).model_type
            if kind != "clip":
                raise OSError(f"it holds a {kind} model")
            clip, missing = _load(CLIPModel, source, dtype)
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=folder.is_dir())
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise FovealError(
            f"cannot load a CLIP pair from {source!r} ({_reason(error)}): {_REMEDY}, a directory or hub name of a "
            "CLIPModel with its tokenizer"
        ) from error
    if missing:
        raise FovealError(f"the CLIP checkpoint {source!r} lacks {missing[0]} and others: {_REMEDY}")
    return clip, tokenizer


def _load(kind: Any, source: str | Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """A model, and the names of the needed weights that its checkpoint lacks (they are random then)."""
    load: Callable[..., Any] = kind.from_pretrained
    local = Path(source).is_dir()
    model, report = load(source, dtype=dtype, local_files_only=local, output_loading_info=True)
    return model, sorted(name for name in report["missing_keys"] if name.startswith(_NEEDED))


def _load_processor(name: str) -> Any:
    try:
        if not name:
            raise OSError("it was loaded from no directory or hub name")
        return AutoProcessor.from_pretrained(name, local_files_only=Path(name).is_dir())
    except (OSError, ValueError, KeyError) as error:
        raise FovealError(
            f"cannot load the model's processor, whose chat template tells where the question is ({_reason(error)}): "
            "make the text tower with foveal.TextTower(clip, tokenizer, processor)"
        ) from error


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
