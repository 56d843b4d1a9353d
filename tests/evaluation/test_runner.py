from __future__ import annotations

import json
from dataclasses import dataclass, field
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


@dataclass(frozen=True, kw_only=True)
class Halves(foveal.Random):
    """A method with options that JSON does not know."""

    numbers: tuple[int, ...] = (1, 2)
    dtype: torch.dtype = torch.float16
    nested: Any = field(default_factory=lambda: {"a": (1.5, None), 2: [True]})


def test_rows_read_from_json_are_as_they_were_written(model: Any, questions: Any) -> None:
    staged = foveal.PyramidDrop(keep=7, layers=(1, 3), budgets=(20,))
    for method in (Halves(keep=9), staged):
        row = run(model, questions[:2], method).row()
        assert json.loads(json.dumps(row)) == row
    assert row["settings"]["layers"] == [1, 3]
    again = foveal.get("pyramiddrop", **{name: row["settings"][name] for name in staged.options()})
    assert again == staged


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        (None, None),
        (foveal.DART(keep=16), 16),
        (foveal.PyramidDrop(keep=7), 7),
        (foveal.AveragePooling(keep=47), 45),
        (foveal.VisionZip(keep=1.0), 144),
        (foveal.Random(keep=1 / 9), 16),
    ],
)
def test_the_tokens_really_kept_are_recorded(model: Any, questions: Any, method: Any, kept: Any) -> None:
    assert run(model, questions[:3], method, batch_size=2).row()["kept_per_image"] == kept


@dataclass(frozen=True, kw_only=True)
class Loud(foveal.Compressor):
    """Keeps as many tokens as it likes."""

    def select(self, context: foveal.TokenContext) -> foveal.Selection:
        size = context.layout.gather(context.hidden).norm(dim=-1)
        return foveal.Selection(kept=(size > size.mean(dim=1, keepdim=True)) & context.layout.valid)


def test_a_number_that_the_image_decides_is_averaged_over_all_images(
    model: Any, questions: Any, tmp_path: Path
) -> None:
    """One a batch, and one that cannot be read, which has no tokens."""
    method = Loud(keep=1)
    broken = {"image": tmp_path / "none.png", "question": "?", "answer": "yes"}
    counts = [run(model, [item], method).kept_per_image for item in questions]
    assert len(set(counts)) > 1
    together = run(model, [*questions[:9], broken, questions[9]], method, batch_size=1)
    assert together.kept_per_image == pytest.approx(sum(counts) / len(counts))
    assert run(model, [broken], method).kept_per_image is None


def test_someone_else_may_show_the_progress(model: Any, questions: Any, capsys: Any) -> None:
    counts: list[int] = []
    run(model, questions, batch_size=4, progress=counts.append)
    assert counts == [4, 4, 2]
    assert capsys.readouterr().err == ""


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
