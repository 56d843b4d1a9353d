from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import foveal
from foveal.evaluation import Question, evaluate
from support import vlm

TEXTS = [
    "is there a cat in the image?",
    "what is in the top left?",
    "where is the fox?",
    "how many bee pictures are there?",
]


@pytest.fixture(scope="module")
def model() -> Any:
    return vlm.model()


@pytest.fixture(scope="module")
def questions() -> list[dict[str, Any]]:
    return [
        {
            "image": vlm.picture(number),
            "question": TEXTS[number % 4],
            "answer": "yes",
            "type": TEXTS[number % 4][:5],
        }
        for number in range(10)
    ]


def run(model: Any, questions: Any, method: Any = None, **options: Any) -> Any:
    options = {"max_new_tokens": 4, "progress": False, **options}
    return evaluate(model, vlm.processor(), questions, method, **options)


def said(result: Any) -> list[str]:
    return [record.prediction for record in result.records]


@pytest.mark.parametrize(
    "method", [None, foveal.DART(keep=16), foveal.FastV(keep=16), foveal.Random(keep=16)]
)
def test_batches_of_eight_answer_as_batches_of_one(model: Any, questions: Any, method: Any) -> None:
    together, alone = run(model, questions, method, batch_size=8), run(model, questions, method, batch_size=1)
    assert said(together) == said(alone)
    assert len(set(said(together))) > 1, "the random model must not say one thing only"


def test_compression_reaches_the_answers(model: Any, questions: Any) -> None:
    assert said(run(model, questions)) != said(run(model, questions, foveal.DART(keep=4)))


def test_a_compressor_already_attached_is_used_and_named(model: Any, questions: Any) -> None:
    run_of_model = foveal.attach(model, foveal.DART(keep=9))
    try:
        result = run(model, questions)
    finally:
        run_of_model.detach()
    assert (result.settings["method"], result.settings["keep"]) == ("dart", 9)
    assert said(result) == said(run(model, questions, foveal.DART(keep=9)))
    assert run(model, questions[:1]).settings["method"] == "none"


def test_a_second_run_says_the_same(model: Any, questions: Any) -> None:
    assert said(run(model, questions, foveal.DART(keep=9))) == said(
        run(model, questions, foveal.DART(keep=9))
    )


def test_scores_types_and_settings(model: Any, questions: Any) -> None:
    first = run(model, questions)
    known = [
        {**item, "answer": record.prediction} for item, record in zip(questions, first.records, strict=True)
    ]
    known[0]["answer"] = "something else"
    result = run(model, known, foveal.compressors.get("random", keep=144))
    assert result.accuracy.value == pytest.approx(0.9)
    assert result.accuracy.count == 10
    assert result.by_type[TEXTS[0][:5]].value == pytest.approx(2 / 3)
    assert result.settings["method"] == "random"
    assert result.settings["keep"] == 144
    assert result.seconds > 0


def test_an_unreadable_image_is_named_and_counted(model: Any, questions: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    mixed = [*questions[:3], {"id": "bad", "image": broken, "question": "?", "answer": "yes"}, *questions[3:]]
    result = run(model, mixed)
    assert [record.id for record in result.unreadable] == ["bad"]
    assert "broken.png" in result.unreadable[0].error
    assert result.accuracy.count == 10
    assert [word for word in said(result) if word] == said(run(model, questions))
    assert result.row()["unreadable"] == {"bad": result.unreadable[0].error}


def test_only_unreadable_images_give_no_score(model: Any, tmp_path: Path) -> None:
    result = run(model, [Question(tmp_path / "none.png", "?", ("yes",))])
    assert result.accuracy.count == 0
    assert result.row()["accuracy"]["value"] == 0


def test_the_model_is_left_as_it_was(model: Any, questions: Any) -> None:
    model.train()
    state = torch.random.get_rng_state()
    settings = model.generation_config.to_dict()
    run(model, questions[:2], foveal.Random(keep=9))
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.generation_config.to_dict() == settings
    model.eval()


def test_sampling_settings_of_the_model_are_ignored(model: Any, questions: Any) -> None:
    expected = said(run(model, questions))
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=50, num_beams=2)
    try:
        assert said(run(model, questions)) == expected
    finally:
        model.generation_config.update(do_sample=False, temperature=1.0, num_beams=1)


def test_a_generator_of_questions_will_do(model: Any, questions: Any) -> None:
    assert said(run(model, iter(questions), batch_size=4)) == said(run(model, questions))


def test_what_is_refused(model: Any, questions: Any) -> None:
    with pytest.raises(foveal.FovealError, match="no questions"):
        run(model, [])
    with pytest.raises(foveal.FovealError, match="batch_size"):
        run(model, questions, batch_size=0)
    with pytest.raises(foveal.FovealError, match="keep=145"):
        run(model, questions, foveal.DART(keep=145))


def test_a_processor_without_chat_template_is_refused(model: Any, questions: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(vlm.processor(), "chat_template", None)
    with pytest.raises(foveal.FovealError, match="chat template"):
        run(model, questions)
