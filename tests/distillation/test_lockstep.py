"""One forward in lock-step against two ordinary forwards: loss and every gradient, float64."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import foveal
from foveal.data import VisionCollator
from foveal.distillation import (
    SCHEDULES,
    EpicConfig,
    Objective,
    can_share,
    cross_entropy,
    distil,
    forward_kl,
    lockstep,
)
from foveal.mini import SceneConversations
from foveal.text_tower import TextTower
from support import families
from support.library import since_5_23
from support.tiny import IMAGE, batch, causal_lm, llava

pytestmark = pytest.mark.usefixtures("exact_softmax")

TOLERANCE = 1e-10
Inputs = dict[str, Tensor]
Pair = tuple[foveal.Compressor, foveal.Compressor | None]

BATCHES = {"one": ([1], [9]), "ragged": ([1, 2, 0], [9, 6, 12]), "text only": ([0, 0], [7, 5])}


def labelled(name: str, side: str) -> tuple[Inputs, Tensor]:
    """Inputs of the tiny LLaVA, and their labels."""
    inputs = batch(*BATCHES[name], side)
    return inputs, last_words(inputs)


def last_words(inputs: Inputs) -> Tensor:
    """Labels on the last 3 real tokens of each sample."""
    labels = torch.full_like(inputs["input_ids"], -100)
    for sample, mask in enumerate(inputs["attention_mask"]):
        last = mask.nonzero()[-3:, 0]
        labels[sample, last] = inputs["input_ids"][sample, last]
    return labels


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def weighted(supervised: Tensor, distilled: Tensor | None) -> Tensor:
    return (supervised if distilled is None else 0.3 * supervised + 0.7 * distilled).mean()


def two_forwards(
    model: Any, inputs: Inputs, labels: Tensor, methods: Pair, teacher_model: Any = None
) -> Tensor:
    """The textbook formulation: full logits of both, then the shifted answer rows."""
    answers = labels[:, 1:] != -100
    targets = labels[:, 1:][answers]
    logits = []
    for who, method, grad in zip((model, teacher_model or model), methods, (True, False), strict=True):
        if method is not None:
            with torch.set_grad_enabled(grad), foveal.compress(who, method):
                # Labels tell the methods where the prompt ends; the loss that comes with them is not used.
                logits.append(who(**inputs, labels=labels, use_cache=False).logits[:, :-1][answers])
    return weighted(cross_entropy(logits[0], targets), forward_kl(*logits) if methods[1] else None)


def one_forward(
    model: Any,
    inputs: Inputs,
    labels: Tensor,
    methods: Pair,
    teacher_model: Any = None,
    objective: Objective | None = None,
) -> Tensor:
    return weighted(
        *distil(model, inputs, labels, *methods, teacher_model=teacher_model, objective=objective)
    )


def assert_equal(model: Any, inputs: Inputs, labels: Tensor, methods: Pair, **options: Any) -> float:
    """Loss and all gradients agree; returns the loss."""
    teacher_model = options.get("teacher_model")
    results = []
    for function, more in ((two_forwards, {"teacher_model": teacher_model}), (one_forward, options)):
        model.zero_grad(set_to_none=True)
        loss = function(model, inputs, labels, methods, **more)
        loss.backward()
        results.append((loss.item(), gradients(model)))
    (expected, reference), (loss, found) = results
    assert abs(loss - expected) < TOLERANCE
    assert reference.keys() == found.keys()
    for name, gradient in reference.items():
        assert (found[name] - gradient).abs().max() < TOLERANCE, name
    return expected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(("method", "layer"), [("dart", 2), ("fastv", 2), ("random", 0), ("dart", 5)])
def test_lockstep_equals_two_forwards(method: str, layer: int, name: str, side: str, attention: str) -> None:
    model = llava(attention=attention).train()
    methods = [foveal.get(method, keep=keep, layer=layer) for keep in (0.15, 0.4)]
    assert_equal(model, *labelled(name, side), methods)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule(schedule: str, family: str, side: str, tmp_path: Path) -> None:
    """Text only and several images in the batch; the layer goes down to 1, among Qwen3-VL's DeepStack."""
    config = EpicConfig(output_dir=str(tmp_path), schedule=schedule, layer=1, icd_layers=3, use_cpu=True)
    model = families.model(family)
    planned = config.make_schedule(len(model.get_decoder().layers))
    inputs = families.batch(family, *BATCHES["ragged"], side)
    layers = set()
    for t in (0.0, 0.5, 0.8, 1.0):
        draw = random.Random(f"{t}")
        plan = planned.plan(t, draw)
        pair = config.make_pair(plan, draw)
        assert pair[1] is None or can_share(*pair)
        layers.add(plan.layer)
        assert_equal(model, inputs, last_words(inputs), pair)
    assert len(layers) == {"lcd": 4, "icd": 3}.get(schedule[:3], 1) or schedule.endswith("no-progress")


@pytest.mark.parametrize(("method", "layer"), [("random", 0), ("fastv", 1), ("dart", 2)])
@pytest.mark.parametrize(
    "family",
    # The library used to round Gemma 3's logits to float32 where there are labels, and to forget PaliGemma 2's cap.
    [
        pytest.param(name, marks=since_5_23 if name in ("gemma3", "paligemma2") else ())
        for name in families.FAMILIES
    ],
)
def test_every_family(family: str, method: str, layer: int) -> None:
    case = families.FAMILIES[family]
    model = case.build(4, case.attentions[0]).train()
    inputs = families.batch(family, *BATCHES["ragged"])
    methods = tuple(foveal.get(method, keep=keep, layer=layer) for keep in (0.15, 0.6))
    assert_equal(model, inputs, last_words(inputs), methods)


@pytest.mark.parametrize("rows", [1, 4, 9])
@pytest.mark.parametrize("family", ["llava", pytest.param("paligemma2", marks=since_5_23)])
def test_logits_in_chunks(family: str, rows: int) -> None:
    """Nine answers: in nine chunks, in three of which the last is short, at once. PaliGemma 2 caps its logits."""
    model = families.model(family, attention="eager")
    inputs = families.batch(family, *BATCHES["ragged"])
    methods = (foveal.DART(keep=0.2), foveal.DART(keep=0.5))
    assert_equal(model, inputs, last_words(inputs), methods, objective=Objective(rows=rows))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (foveal.FastV(keep=5), foveal.DART(keep=12)),
        (foveal.Random(keep=5), foveal.FastV(keep=12)),
        (foveal.DART(keep=5), foveal.DART(keep=12, positions="packed")),
        (foveal.DART(keep=5, positions="packed"), foveal.Random(keep=12)),
        (foveal.DivPrune(keep=5, layer=2), foveal.DART(keep=12)),
    ],
    ids=lambda method: f"{method.card.name}-{method.positions}",
)
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_teacher_and_student_may_be_different_methods(name: str, student: Any, teacher: Any) -> None:
    model = families.model(name)
    inputs = families.batch(name, [1, 2, 0], [9, 6, 12])
    assert_equal(model, inputs, last_words(inputs), (student, teacher))


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_merging_in_the_decoder(name: str) -> None:
    """Stages of PuMer by themselves; below Qwen3-VL's last DeepStack layer, too."""
    model = families.model(name)
    inputs = families.batch(name, [1, 2, 0], [9, 6, 12])
    for layer in (1, 2):
        student = foveal.PuMer(keep=5, layers=(layer,)).stages(6)[0]
        teacher = foveal.DivPrune(keep=12, layer=student.layer, positions="original")
        assert_equal(model, inputs, last_words(inputs), (student, teacher))


@since_5_23
# The checkpointed layers of the vision tower get pixels, which never need a gradient.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("checkpointing", [{"use_reentrant": False}, {"use_reentrant": True}])
def test_gradient_checkpointing(checkpointing: dict[str, bool]) -> None:
    model = llava().train()
    model.activation_checkpointing_enable(checkpointing)
    model.enable_input_require_grads()
    assert_equal(model, *labelled("ragged", "left"), [foveal.DART(keep=0.15), foveal.DART(keep=0.4)])


def test_the_teacher_differs_and_an_uncompressed_one_is_the_plain_model() -> None:
    model = llava().train()
    inputs, labels = labelled("ragged", "left")
    seen: list[Tensor] = []

    def peek(student: Tensor, teacher: Tensor, _temperature: float) -> Tensor:
        seen.extend([student, teacher])
        return student[:, 0]

    with lockstep(model, foveal.DART(keep=4), foveal.DART(keep=1.0), labels, Objective(peek)):
        model(**inputs, use_cache=False)
    plain = model(**inputs, use_cache=False).logits[:, :-1][labels[:, 1:] != -100]
    assert torch.allclose(seen[1], plain, atol=TOLERANCE)
    assert (seen[0] - plain).abs().max() > 1e-4


def test_a_teacher_may_keep_less_than_a_student_that_keeps_all() -> None:
    assert_equal(llava().train(), *labelled("ragged", "left"), [foveal.DART(keep=1.0), foveal.DART(keep=0.4)])


def test_without_a_teacher_only_the_students_answer_rows_are_computed() -> None:
    model = llava().train()
    inputs, labels = labelled("ragged", "left")
    rows: list[int] = []
    with model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:-1].numel())):
        with lockstep(model, foveal.FastV(keep=4), None, labels):
            losses = model(**inputs, use_cache=False)
        assert rows == [9]
    with torch.no_grad(), foveal.compress(model, foveal.FastV(keep=4)):
        full = model(**inputs, labels=labels).logits[:, :-1][labels[:, 1:] != -100]
    expected = cross_entropy(full, labels[:, 1:][labels[:, 1:] != -100])
    assert losses.shape == (1, 9)
    assert torch.allclose(losses[0], expected, atol=TOLERANCE)


def test_under_autocast_every_weight_still_gets_its_gradient() -> None:
    model = llava(dtype=torch.float32).train()
    inputs, labels = labelled("one", "left")
    inputs["pixel_values"] = inputs["pixel_values"].float()
    methods = [foveal.Random(keep=0.15), foveal.Random(keep=0.4)]
    found = []
    for function in (two_forwards, one_forward):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = function(model, inputs, labels, methods)
        loss.backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, rtol=0.1, atol=0.02 * gradient.abs().max().item()), (
            name
        )


def test_the_model_is_restored() -> None:
    model = llava()
    inputs, labels = labelled("one", "left")
    before = model(**inputs).logits
    with lockstep(model, foveal.DART(keep=4), foveal.DART(keep=9), labels):
        model(**inputs, use_cache=False)
    assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (foveal.PyramidDrop(keep=5), foveal.PyramidDrop(keep=12)),
        (foveal.PuMer(keep=5), foveal.DART(keep=12)),
        (foveal.VisionZip(keep=5), foveal.VisionZip(keep=12)),
        (foveal.ToMe(keep=9), foveal.ToMe(keep=18)),
        (foveal.AveragePooling(keep=4), foveal.Random(keep=12)),
        (foveal.DART(keep=5), foveal.DART(keep=12, layer=3)),
        (foveal.DART(keep=5, layer=3), foveal.VisionZip(keep=12)),
    ],
    ids=lambda method: f"{method.card.name}-{method.layer}",
)
@pytest.mark.parametrize("name", BATCHES)
def test_what_cannot_share_a_forward_takes_two(
    name: str, student: foveal.Compressor, teacher: foveal.Compressor
) -> None:
    model = llava().train()
    inputs, labels = labelled(name, "left")
    assert_equal(model, inputs, labels, (student, teacher))
    refused = pytest.raises(foveal.FovealError, match="cannot share a forward")
    with refused, lockstep(model, student, teacher, labels):
        pass


@pytest.mark.parametrize("keep", [12, 1.0])
def test_a_frozen_model_may_teach(keep: float) -> None:
    model, teacher = llava().train(), llava(layers=4).requires_grad_(False)
    with torch.no_grad():
        teacher.lm_head.weight.normal_()
    methods = (foveal.DART(keep=5), foveal.DART(keep=keep))
    loss = assert_equal(model, *labelled("ragged", "left"), methods, teacher_model=teacher)
    assert loss != pytest.approx(assert_equal(model, *labelled("ragged", "left"), methods), rel=1e-3)


def test_a_teacher_with_another_vocabulary_is_refused() -> None:
    model, teacher = llava(), llava()
    teacher.lm_head = torch.nn.Linear(32, 121, dtype=torch.float64)
    with pytest.raises(foveal.FovealError, match="predicts 121 tokens, the student 120"):
        one_forward(
            model, *labelled("one", "left"), (foveal.DART(keep=5), foveal.DART(keep=9)), teacher_model=teacher
        )


def test_refusals() -> None:
    model = llava()
    inputs, labels = labelled("one", "left")
    compressed, refused = (
        foveal.compress(model, "random", keep=4),
        pytest.raises(foveal.FovealError, match="detach"),
    )
    with compressed, refused, lockstep(model, foveal.DART(keep=4), None, labels):
        pass
    two_layers = lockstep(model, foveal.Random(keep=4), foveal.Random(keep=9, layer=3), labels)
    with pytest.raises(foveal.FovealError, match="Random at layer 2 and Random at layer 3"), two_layers:
        pass
    cached = pytest.raises(foveal.FovealError, match="use_cache=False")
    with cached, lockstep(model, foveal.Random(keep=4), None, labels):
        model(**inputs, use_cache=True)
    first = int((inputs["input_ids"][0] == IMAGE).nonzero()[0])
    labels[0, first + 8] = 9
    lost = pytest.raises(foveal.FovealError, match=f"label {first + 8} of sample 0")
    with lost, lockstep(model, foveal.DART(keep=1), None, labels):
        model(**inputs, use_cache=False)


def test_a_label_that_only_the_teacher_lost() -> None:
    model = llava()
    inputs, labels = labelled("one", "left")
    last = int((inputs["input_ids"][0] == IMAGE).nonzero()[-1])
    labels[0, last + 1] = inputs["input_ids"][0, last + 1]
    with pytest.raises(foveal.FovealError, match=f"label {last + 1} of sample 0"):
        distil(model, inputs, labels, foveal.DART(keep=1.0), foveal.Random(keep=1, seed=1))


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "sparsevlm", "pumer", "dart"])
def test_an_image_in_a_later_turn_is_chosen_from_as_at_inference(method: str) -> None:
    """The prompt goes on to the first answer behind the last image: earlier answers are part of it."""
    model = llava()
    turns = [batch([1], [9], seed=seed) for seed in (0, 1)]
    inputs = {
        name: torch.cat([turn[name] for turn in turns], dim=1) for name in ("input_ids", "attention_mask")
    }
    inputs["pixel_values"] = torch.cat([turn["pixel_values"] for turn in turns])
    labels = torch.cat([last_words(turn) for turn in turns], dim=1)
    labels[0, -3] = -100
    asked = {name: value[:, :-2] if value.ndim == 2 else value for name, value in inputs.items()}
    kept = []
    for given, told in ((asked, {}), (inputs, {"labels": labels})):
        with torch.no_grad(), foveal.compress(model, foveal.get(method, keep=6)) as run:
            model(**given, **told, use_cache=False)
        kept.append([stage.kept_in_image[1].tolist() for stage in run.stages])
    assert kept[0] == kept[1]


def test_two_blocks_on_one_model_are_refused() -> None:
    model = llava()
    _, labels = labelled("one", "left")
    inner = pytest.raises(foveal.FovealError, match="detach")
    with lockstep(model, foveal.DART(keep=4), None, labels), inner:
        foveal.attach(model, foveal.DART(keep=4))
    with foveal.compress(model, foveal.DART(keep=4)):
        pass


def test_a_bare_language_model_with_a_visual_mask() -> None:
    model = causal_lm()
    inputs, labels = labelled("ragged", "left")
    visual = inputs["input_ids"] == IMAGE
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    given = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    student, teacher = distil(
        model, given, labels, foveal.DART(keep=5), foveal.DART(keep=12), visual_mask=visual
    )
    with torch.no_grad(), foveal.compress(model, foveal.DART(keep=5), visual_mask=visual):
        logits = model(**given, labels=labels, use_cache=False).logits[:, :-1][labels[:, 1:] != -100]
    expected = cross_entropy(logits, labels[:, 1:][labels[:, 1:] != -100])
    assert torch.allclose(student, expected, atol=TOLERANCE)
    assert teacher is not None
    assert teacher.max() > 1e-6


def test_a_model_that_scales_its_logits_is_refused() -> None:
    model = llava()
    model.config.text_config.logits_scaling = 8.0
    with pytest.raises(foveal.FovealError, match="scales its logits"):
        distil(model, *labelled("one", "left"), foveal.DART(keep=5))


def test_the_text_tower_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = foveal.load(compressed=False)
    samples = SceneConversations("train", 2)
    inputs = VisionCollator(processor)([samples[0], samples[1]])
    labels = inputs.pop("labels")
    loaded: list[Any] = []
    beside = TextTower.beside
    monkeypatch.setattr(
        TextTower, "beside", lambda *args, **options: loaded.append(args) or beside(*args, **options)
    )
    for _ in range(2):
        distil(model, inputs, labels, foveal.TRIM(keep=9), foveal.CDPruner(keep=20))
    assert len(loaded) == 1
