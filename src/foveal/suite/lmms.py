"""Foveal as a model of lmms-eval: every method and budget on every task that lmms-eval has.

    python -m lmms_eval --model foveal --model_args pretrained=my-llava,method=dart,keep=64,layer=2 --tasks pope,mme

`lmms_manifest` announces it. These two are the modules that need lmms-eval to be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
import yaml
from accelerate import dispatch_model, infer_auto_device_map
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.utils import simple_parse_args_string
from loguru import logger
from tqdm import tqdm

from foveal.budget import parse_keep
from foveal.compressors import Compressor, get, method_class
from foveal.errors import FovealError
from foveal.evaluation.chat import Chat
from foveal.loading import load, recorded_compressor
from foveal.suite import processes
from foveal.suite.answering import Answerer, Ask
from foveal.text_tower import TextTower

__all__ = ["FovealModel"]


class FovealModel(lmms):  # type: ignore[misc]
    """A model under one method, as lmms-eval wants to be handed it.

    Args:
        answerer: the model, its processor, the method and how to batch.
        system_prompt: said before every conversation.
        report: told after each batch how many questions were asked, and how many will be; by default a bar on stderr.
        shared: whether others go on with the model, so that it must not be let go when all is answered.
    """

    is_simple = False

    def __init__(
        self,
        answerer: Answerer,
        *,
        system_prompt: str = "",
        report: Callable[[int, int], object] | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.accelerator = processes.join()
        self._rank, self._world_size = processes.rank(), processes.size()
        self.answerer = answerer
        self._system_prompt, self._report, self._shared = system_prompt, report, shared

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> FovealModel:
        """What `lmms_eval --model_args` says; see `from_arguments`."""
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls.from_arguments(**simple_parse_args_string(arg_string), **given)

    @classmethod
    def from_arguments(
        cls,
        pretrained: str | None = None,
        method: str | None = None,
        keep: str | float | None = None,
        layer: int | None = None,
        positions: str | None = None,
        stages: str | Sequence[Mapping[str, Any]] | None = None,
        clip: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: str | None = None,
        attn_implementation: str | None = None,
        batch_size: int | str = 1,
        max_new_tokens: int | None = None,
        system_prompt: str = "",
        seed: int = 0,
        answers: str | None = None,
        **options: Any,
    ) -> FovealModel:
        """Load a model and put a method on it.

        Args:
            pretrained: a folder or hub name; the bundled model if left out.
            method: a name of `foveal list`, or none; the checkpoint's own, if it has one, when left out.
            keep: tokens kept: a number such as 64, a fraction such as 0.25 or 1/9, or auto.
            layer: the layer at whose entry tokens are dropped; by default the method's own.
            positions: original or packed.
            stages: instead of method, keep and layer, several: ``[{method: random, keep: 0.5, layer: 0}, ...]``.
            clip: the CLIP pair for methods that read the question; by default the one beside the model.
            dtype: float32, bfloat16, float16, or the checkpoint's own (auto).
            device: by default the process's GPU, if there is one.
            device_map: how Accelerate spreads one model over several GPUs: auto.
            attn_implementation: sdpa, eager, flash_attention_2, ...
            batch_size: questions a forward.
            max_new_tokens: longest answer, whatever the task says.
            system_prompt: said before every conversation.
            seed: for sampling, and for methods that draw.
            answers: a folder in which answers are kept, so that a run that was killed goes on there.
            **options: the method's own.

        Raises:
            FovealError: an option that does not fit.
        """
        here = processes.join().device
        model, processor = load(pretrained, dtype=_dtype(dtype), compressed=False)
        if attn_implementation is not None:
            _set_attention(model, attn_implementation)
        model = _placed(model, device, device_map, here)
        methods = _chosen(
            model, method, keep, stages, {"layer": layer, "positions": positions, **options}, seed
        )
        tower = None if clip is None else TextTower.beside(model, source=clip)
        answerer = Answerer(
            model,
            processor,
            methods,
            batch_size=_whole("batch_size", batch_size),
            max_new_tokens=max_new_tokens,
            seed=seed,
            log=answers,
            rank=processes.rank(),
            text_tower=tower,
        )
        return cls(answerer, system_prompt=system_prompt)

    @property
    def device(self) -> torch.device:
        """Where processes exchange how many questions each has."""
        device: torch.device = self.accelerator.device
        return device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer requests of any tasks; one that fails is answered with nothing, which no task takes for right."""
        real = [place for place, request in enumerate(requests) if not _is_padding(request)]
        started = perf_counter()
        with self._progress(len(real)) as advance:
            given = self.answerer.answer([self._ask(requests[place]) for place in real], advance)
        results = [GenerationResult(text="") for _ in requests]
        for place, answer in zip(real, given, strict=True):
            if answer is not None:
                counts = TokenCounts(input_tokens=answer.read, output_tokens=answer.written)
                results[place] = GenerationResult(text=answer.text, token_counts=counts)
        self._tell(perf_counter() - started, sum(answer.written for answer in given if answer), len(real))
        return results

    def _ask(self, request: Instance) -> Ask:
        context, *_, document, task, split = request.args
        generation = next(part for part in request.args if isinstance(part, dict))

        def read() -> Chat:
            messages = _messages(request, self.task_dict[task][split][document])
            return Chat.of(self._apply_system_prompt(messages, self._system_prompt))

        return Ask(task, document, read, generation, len(context) if isinstance(context, str) else 0)

    @contextmanager
    def _progress(self, total: int) -> Iterator[Callable[[int], object]]:
        done = 0
        with tqdm(total=total, desc="foveal", disable=self._report is not None or self.rank != 0) as bar:

            def advance(count: int) -> None:
                nonlocal done
                done += count
                bar.update(count)
                if self._report is not None:
                    self._report(done, total)

            yield advance

    def _tell(self, seconds: float, tokens: int, requests: int) -> None:
        """Hand lmms-eval what belongs in the results, and say which questions have no answer."""
        images, kept, seen = self.answerer.accounts
        found: dict[str, float] = {"total_requests": requests, "unanswered": len(self.answerer.failures)}
        if images:
            found |= {"visual_tokens_kept": kept / images, "visual_tokens_per_layer": seen / images}
        log_metrics(seconds, tokens, tokens / seconds if seconds else 0.0, found)
        for name, reason in self.answerer.failures.items():
            logger.error(f"not answered, counted as wrong: {name}: {reason}")

    def clean(self) -> None:
        """Let go of the model, so that a judge may take its place on the GPU."""
        if not self._shared:
            del self.answerer
            super().clean()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported.

        Raises:
            FovealError: always.
        """
        raise _unsupported(requests, "likelihoods of given answers")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported.

        Raises:
            FovealError: always.
        """
        raise _unsupported(requests, "several rounds")


def _unsupported(requests: Sequence[Instance], what: str) -> FovealError:
    tasks = ", ".join(sorted({request.task_name for request in requests}))
    return FovealError(f"{tasks}: asks for {what}, but foveal only generates answers: leave the task out")


def _is_padding(request: Instance) -> bool:
    """Whether it only makes all processes have as many requests."""
    return bool((request.metadata or {}).get("__padding_only__"))


def _messages(request: Instance, document: Any) -> list[dict[str, Any]]:
    """The conversation; tasks that were loaded for models without chat give pictures and text apart."""
    context, second, third, *_ = request.args
    if callable(second):
        return list(second(document))
    images = [{"type": "image", "url": image} for image in third(document) or ()]
    return [{"role": "user", "content": [*images, {"type": "text", "text": context}]}]


def _dtype(name: str) -> torch.dtype | None:
    found = None if name == "auto" else getattr(torch, name, None)
    if name != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise FovealError(f"dtype={name}: pass float32, bfloat16, float16 or auto")
    return found


def _whole(name: str, value: int | str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise FovealError(f"{name}={value}: pass a whole number such as 8") from error


def _set_attention(model: Any, name: str) -> None:
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FovealError(f"attn_implementation={name}: {reason}") from error


def _placed(model: Any, device: str | None, device_map: str | None, here: torch.device) -> Any:
    """The model on the process's own device, or spread over several."""
    if device_map is None:
        return model.to(here if device is None or processes.size() > 1 else device)
    if device_map != "auto" or processes.size() > 1:
        raise FovealError(f"device_map={device_map}: only auto is known, for a model in a single process")
    return dispatch_model(
        model, infer_auto_device_map(model, no_split_module_classes=model._no_split_modules)
    )


def _chosen(
    model: Any,
    method: str | None,
    keep: str | float | None,
    stages: str | Sequence[Mapping[str, Any]] | None,
    options: Mapping[str, Any],
    seed: int,
) -> list[Compressor]:
    """The methods asked for, by default the one that the checkpoint names."""
    if stages is not None:
        _refuse({"method": method, "keep": keep, **options})
        return _stages(stages)
    if method is not None:
        draws = method != "none" and "seed" in method_class(method).__dataclass_fields__
        return _method(method, keep, {**options, "seed": seed} if draws else options)
    _refuse({"keep": keep, **options})
    own = recorded_compressor(model)
    return [] if own is None else [own]


def _method(name: str, keep: str | float | None, options: Mapping[str, Any]) -> list[Compressor]:
    """The one method of that name, its options as YAML has them; none for "none"."""
    given = {option: value for option, value in options.items() if value is not None}
    if name == "none":
        _refuse({"keep": keep, **given})
        return []
    if keep is None:
        raise FovealError(
            f"method={name} needs a budget: pass keep=64, the visual tokens kept, or a fraction such as keep=1/9"
        )
    read = {
        option: yaml.safe_load(value) if isinstance(value, str) else value for option, value in given.items()
    }
    return [get(name, keep=parse_keep(str(keep), "keep="), **read)]


def _stages(given: str | Sequence[Mapping[str, Any]]) -> list[Compressor]:
    """Several methods, from YAML."""
    read = yaml.safe_load(given) if isinstance(given, str) else given
    if not isinstance(read, Sequence) or not all(
        isinstance(item, Mapping) and "method" in item for item in read
    ):
        raise FovealError(
            f"stages={given}: pass a list such as [{{method: random, keep: 0.5, layer: 0}}, {{method: dart, keep: 64}}]"
        )
    found: list[Compressor] = []
    for item in read:
        options = dict(item)
        found += _method(str(options.pop("method")), options.pop("keep", None), options)
    return found


def _refuse(options: Mapping[str, Any]) -> None:
    """Options that nothing would read."""
    given = sorted(name for name, value in options.items() if value is not None)
    if given:
        raise FovealError(
            f"{', '.join(given)}: belongs to a method, so pass method=NAME beside it, or leave it out"
        )
