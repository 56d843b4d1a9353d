"""Many questions: the same answers in every batch size, none asked twice, none that fails takes others along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import foveal
from foveal.compression import attached
from foveal.evaluation.chat import Chat
from foveal.suite import answering
from foveal.suite.answering import Answerer, Ask
from support import vlm

TEXTS = [
    "is there a cat?",
    "what is in the top left of the image?",
    "where?",
    "how many bee pictures are there?",
]


@pytest.fixture(scope="module")
def model() -> Any:
    return vlm.model()


def ask(number: int, *images: Any, generation: dict[str, Any] | None = None) -> Ask:
    """A question about a picture of its own; about `images`, if there are any, which may be none at all (None)."""
    text = TEXTS[number % len(TEXTS)]

    def read() -> Chat:
        pictures = [image for image in images or (vlm.picture(number),) if image is not None]
        parts = [{"type": "image", "image": picture} for picture in pictures]
        return Chat.of([{"role": "user", "content": [*parts, {"type": "text", "text": text}]}])

    return Ask("task", number, read, {"max_new_tokens": 4} if generation is None else generation, len(text))


def broken(number: int) -> Ask:
    def read() -> Chat:
        raise OSError("broken data stream\nwhen reading image file")

    return Ask("task", number, read, {"max_new_tokens": 4}, 5)


def said(found: Sequence[Any]) -> list[str | None]:
    return [None if answer is None else answer.text for answer in found]


def answerer(model: Any, *methods: Any, **options: Any) -> Answerer:
    return Answerer(model, vlm.processor(), methods, **options)


METHODS = [(), (foveal.DART(keep=9),), (foveal.Random(keep=0.5, layer=0), foveal.FastV(keep=5, layer=2))]


@pytest.mark.parametrize("methods", METHODS)
def test_batches_of_eight_answer_as_batches_of_one(model: Any, methods: tuple[Any, ...]) -> None:
    asks = [ask(number) for number in range(8)] + [ask(8, vlm.picture(1), vlm.picture(2)), ask(9, None)]
    asks += [ask(10, generation={"max_new_tokens": 2, "until": ["a"]})]
    one, eight = (answerer(model, *methods, batch_size=size) for size in (1, 8))
    expected = said(one.answer(asks))
    assert said(eight.answer(asks)) == expected
    assert None not in expected
    assert len(set(expected)) > 2, "the random model must not say one thing only"
    assert eight.accounts == pytest.approx(one.accounts)
    assert attached(model) == ()


def test_compression_reaches_the_answers_and_is_accounted_for(model: Any) -> None:
    asks = [ask(number) for number in range(6)]
    plain, compressed = (
        answerer(model, batch_size=4),
        answerer(model, foveal.DART(keep=4, layer=2), batch_size=4),
    )
    assert said(plain.answer(asks)) != said(compressed.answer(asks))
    assert plain.accounts == (0, 0, 0.0)
    images, kept, seen = compressed.accounts
    layers, whole = model.config.text_config.num_hidden_layers, vlm.TOKENS
    assert (images, kept) == (6, 24)
    assert seen / images == pytest.approx((2 * whole + (layers - 2) * 4) / layers)


def test_text_alone_counts_no_tokens(model: Any) -> None:
    only = answerer(model, foveal.DART(keep=4), batch_size=4)
    only.answer([ask(0), ask(1, None), ask(2, None)])
    assert only.accounts[:2] == (1, 4)


def test_questions_alike_share_a_batch_the_longest_first(model: Any, asked: list[int]) -> None:
    told: list[int] = []
    other = {"max_new_tokens": 3}
    asks = [ask(number, generation=other if number % 3 == 0 else None) for number in range(9)]
    answerer(model, batch_size=4).answer(asks, told.append)
    assert sorted(asked) == [2, 3, 4]
    assert sum(told) == 9


def test_a_question_that_fails_is_named_and_takes_none_along(model: Any, asked: list[int]) -> None:
    asks = [ask(0), broken(1), ask(2), ask(3)]
    found = answerer(model, batch_size=4)
    answers = said(found.answer(asks))
    assert answers[1] is None
    assert [answers[0], *answers[2:]] == said(answerer(model).answer([ask(0), ask(2), ask(3)]))
    assert found.failures == {"task 1": "OSError: broken data stream when reading image file"}


def test_a_batch_that_fails_is_asked_one_by_one(
    model: Any, monkeypatch: pytest.MonkeyPatch, asked: list[int]
) -> None:
    asks = [ask(number) for number in range(4)]
    expected = said(answerer(model).answer(asks))
    generate: Callable[..., Any] = answering.generate
    poison = asks[2].read()

    def too_much(model: Any, processor: Any, inputs: Any, *arguments: Any) -> Any:
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if torch.equal(inputs["pixel_values"], answering.encode(processor, [poison])["pixel_values"]):
            raise ValueError("NaN")
        return generate(model, processor, inputs, *arguments)

    monkeypatch.setattr(answering, "generate", too_much)
    found = answerer(model, batch_size=4)
    assert said(found.answer(asks)) == [expected[0], expected[1], None, expected[3]]
    assert found.failures == {"task 2": "ValueError: NaN"}


def test_a_processor_that_fails_on_one_question_serves_the_others(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = [ask(number) for number in range(4)]
    expected = said(answerer(model).answer(asks))
    encode: Callable[..., Any] = answering.encode
    poison = asks[1].read().images[0].tobytes()

    def picky(processor: Any, chats: Any) -> Any:
        if any(chat.images[0].tobytes() == poison for chat in chats):
            raise ValueError("mean must have 1 elements")
        return encode(processor, chats)

    monkeypatch.setattr(answering, "encode", picky)
    found = answerer(model, batch_size=4)
    assert said(found.answer(asks)) == [expected[0], None, *expected[2:]]


def test_nothing_answered_is_an_error(model: Any) -> None:
    with pytest.raises(
        foveal.FovealError, match="none of the 2 questions could be answered; the last was task 1"
    ):
        answerer(model).answer([broken(0), broken(1)])
    assert answerer(model).answer([]) == []


def test_too_many_failures_in_a_row_stop_the_run(model: Any, asked: list[int]) -> None:
    several = [broken(number) for number in range(1, 40)]
    with pytest.raises(
        foveal.FovealError, match=r"16 questions in a row could not be answered; the last was task"
    ):
        answerer(model, batch_size=8).answer([ask(0), *several])
    spread = [item for number in range(20) for item in (ask(4 * number), broken(4 * number + 1))]
    found = answerer(model, batch_size=1)
    found.answer([Ask(item.task, item.document, item.read, item.generation) for item in spread])
    assert len(found.failures) == 20


def test_a_method_that_asks_for_too_much_says_so(model: Any) -> None:
    with pytest.raises(foveal.FovealError, match="keep=999 is more than the"):
        answerer(model, foveal.DART(keep=999)).answer([ask(0)])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size=0 must be"), ({"max_new_tokens": 0}, "max_new_tokens=0 must be")],
)
def test_bad_options(model: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(foveal.FovealError, match=message):
        answerer(model, **options)


def test_what_does_not_fit_the_model_is_said_before_anything_is_read(model: Any) -> None:
    with pytest.raises(foveal.FovealError, match="layer"):
        answerer(model, foveal.DART(keep=4, layer=99))
    assert attached(model) == ()


def test_answers_are_kept_and_not_asked_again(model: Any, tmp_path: Path, asked: list[int]) -> None:
    asks = [ask(number) for number in range(10)]
    method = foveal.DART(keep=9)
    whole = answerer(model, method, batch_size=4)
    expected = said(whole.answer(asks))
    del asked[:]
    assert said(answerer(model, method, batch_size=4, log=tmp_path).answer([*asks[:5], broken(99)])) == [
        *expected[:5],
        None,
    ]
    assert sum(asked) == 5
    again = answerer(model, method, batch_size=4, log=tmp_path, rank=1)
    assert said(again.answer(asks)) == expected
    assert sum(asked) == 10
    assert again.accounts == pytest.approx(whole.accounts)


def test_sampled_answers_are_asked_again(model: Any, tmp_path: Path, asked: list[int]) -> None:
    sampled = {"max_new_tokens": 4, "do_sample": True}
    for seed in (0, 0, 1):
        answerer(model, log=tmp_path, seed=seed).answer([ask(0), ask(0, generation=sampled)])
    assert sum(asked) == 3 + 2  # the seed is a setting of the greedy one, too
    first, again, other = (
        said(answerer(model, seed=seed).answer([ask(0, generation=sampled)])) for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(
    "other",
    [
        {"methods": (foveal.DART(keep=8),)},
        {"methods": ()},
        {"methods": (foveal.FastV(keep=9),)},
        {"max_new_tokens": 3},
        {"seed": 1},
    ],
)
def test_other_settings_are_asked_anew(
    model: Any, tmp_path: Path, asked: list[int], other: dict[str, Any]
) -> None:
    asks = [ask(number) for number in range(3)]
    answerer(model, foveal.DART(keep=9), log=tmp_path).answer(asks)
    methods = other.pop("methods", (foveal.DART(keep=9),))
    answerer(model, *methods, log=tmp_path, **other).answer(asks)
    assert sum(asked) == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.generation_config, "repetition_penalty", 1.5),
        lambda model: model.set_attn_implementation("eager"),
        lambda model: model.lm_head.weight.data[7, 7].add_(1e-3),
    ],
)
def test_another_model_is_asked_anew(
    tmp_path: Path, asked: list[int], change: Callable[[Any], object]
) -> None:
    model = vlm.model()
    answerer(model, log=tmp_path).answer([ask(0)])
    change(model)
    answerer(model, log=tmp_path).answer([ask(0)])
    assert sum(asked) == 2


def test_methods_that_read_the_question_get_it_without_template_or_system_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, processor = foveal.load()
    read: list[list[str]] = []
    embed = foveal.TextTower.embed

    def reading(self: Any, questions: Any) -> Any:
        read.append(list(questions))
        return embed(self, questions)

    monkeypatch.setattr(foveal.TextTower, "embed", reading)
    system = {"role": "system", "content": [{"type": "text", "text": "be brief"}]}

    texts = [
        *TEXTS[:2],
        "what does ASSISTANT: mean?",
    ]  # a marker of the template, which cuts what is read off a prompt

    def chat(number: int) -> Callable[[], Chat]:
        parts = [{"type": "image", "image": vlm.picture(number)}, {"type": "text", "text": texts[number]}]
        return lambda: Chat.of([system, {"role": "user", "content": parts}])

    asks = [Ask("task", number, chat(number), {"max_new_tokens": 2}) for number in range(3)]
    Answerer(model, processor, [foveal.TRIM(keep=16)], batch_size=2).answer(asks)
    assert sorted(text for batch in read for text in batch) == sorted(texts)


def test_beams_count_each_picture_once(model: Any) -> None:
    beams = {"max_new_tokens": 2, "num_beams": 3}
    found = answerer(model, foveal.DART(keep=4), batch_size=2)
    answers = found.answer([ask(number, generation=beams) for number in range(2)])
    assert [set(answer.kept) for answer in answers if answer] == [{4}, {4}]
