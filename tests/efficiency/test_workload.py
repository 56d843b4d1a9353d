from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import foveal
from foveal import FovealError
from foveal.efficiency import Load, workload
from foveal.efficiency.workload import of_model
from foveal.efficiency.workload import workload as build
from support import families, tiny, vlm

CPU = torch.device("cpu")


@pytest.mark.parametrize("text", [30, 60, 200])
def test_a_processors_prompt_is_as_long_as_asked_for(text: int) -> None:
    model = vlm.model()
    work = of_model(model, vlm.processor(), name="tiny", load=Load(text=text))
    ids = work.sample["input_ids"]
    visual = int((ids == model.config.image_token_id).sum())
    assert (work.load.visual, visual) == (144, 144)
    assert work.load.text == ids.shape[1] - 144 == text
    assert work.preprocess is not None
    assert len(work.preprocess(3)["input_ids"]) == 3


def test_a_prompt_without_a_processor() -> None:
    work = of_model(tiny.llava(), name="tiny", load=Load(text=9, answer=2))
    ids = work.sample["input_ids"]
    assert ids.shape == (1, 9 + tiny.TOKENS)
    assert int((ids == tiny.IMAGE).sum()) == tiny.TOKENS
    assert (work.load.text, work.load.visual) == (9, tiny.TOKENS)
    assert work.preprocess is None
    work.model.generate(**work.batch(2), max_new_tokens=1)


def test_a_batch_repeats_the_sample() -> None:
    work = of_model(tiny.llava(), name="tiny", load=Load(text=9))
    inputs = work.batch(3)
    assert all(len(value) == 3 for value in inputs.values())
    assert all(torch.equal(value[2:], work.sample[name]) for name, value in inputs.items())


def test_words_are_nothing_special() -> None:
    work = of_model(tiny.llava(), name="tiny", load=Load(text=9))
    ids = work.words(2, 500)["input_ids"]
    assert ids.shape == (2, 500)
    assert not {tiny.PAD, tiny.IMAGE, 1} & set(ids.flatten().tolist())
    assert len(set(ids[0].tolist())) > 50


def test_pictures_of_any_size_need_rows_and_columns() -> None:
    model = families.FAMILIES["qwen2_5_vl"].build(4, "sdpa")
    work = of_model(model, name="qwen", load=Load(text=9, visual=(4, 6)))
    assert work.sample["image_grid_thw"].tolist() == [[1, 8, 12]]
    assert work.load.visual == (4, 6)
    with foveal.compress(model, foveal.DART(keep=5)) as run:
        model.generate(**work.batch(2), max_new_tokens=1)
    assert [len(kept) for kept in run.kept] == [5, 5]
    with pytest.raises(FovealError, match="rows and columns such as --visual 24x24"):
        of_model(model, name="qwen", load=Load(text=9, visual=24))


def test_a_layout_that_nobody_knows() -> None:
    model = families.FAMILIES["llava_next"].build(4, "sdpa")
    with pytest.raises(FovealError, match="pass a folder that holds one"):
        of_model(model, name="next", load=Load(text=9))


def test_random_weights_of_the_bundled_models_shape() -> None:
    work = build(None, random_weights=True, load=Load(text=40), dtype=torch.bfloat16)
    assert work.name == "the bundled model"
    assert work.model.dtype == torch.bfloat16
    assert work.load.bytes == 2
    assert work.preprocess is not None
    answer = work.model.generate(**work.sample, max_new_tokens=2)
    assert answer.shape[1] == work.sample["input_ids"].shape[1] + 2


def test_a_random_text_tower_reads_the_question() -> None:
    work = build(None, [foveal.TRIM(keep=9)], random_weights=True)
    assert work.text_tower is not None
    assert work.load.question == 16
    assert work.question is None  # it is read off the prompt
    with foveal.compress(work.model, foveal.TRIM(keep=9), text_tower=work.text_tower) as run:
        work.model.generate(**work.sample, max_new_tokens=1)
    assert len(run.kept[0]) == 9


def test_no_text_tower_is_known() -> None:
    with pytest.raises(FovealError, match="leave out methods that read the question"):
        workload.random_text_tower(tiny.llava())


def test_too_little_memory_is_refused_before_anything_is_built(monkeypatch: Any) -> None:
    def nothing(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(workload, "free_memory", lambda device: 12 * 2**30)
    monkeypatch.setattr(workload, "_random_model", nothing)
    with pytest.raises(FovealError, match=r"needs 1\d\.\d GiB with batch 1, but cpu has 12.0 free: pass"):
        build("llava-hf/llava-1.5-7b-hf", random_weights=True, dtype=torch.bfloat16)


def test_a_batch_that_does_not_fit_beside_a_loaded_model(monkeypatch: Any) -> None:
    monkeypatch.setattr(workload, "free_memory", lambda device: 2**30)
    build(None, load=Load(batch=8))
    with pytest.raises(
        FovealError, match=r"the bundled model needs .* GiB more with batch 9999, but cpu has 1.0"
    ):
        build(None, load=Load(batch=9999))


@pytest.mark.parametrize("visual", [100, (5, 20)])
def test_a_processor_makes_its_own_number_of_tokens(visual: Any) -> None:
    with pytest.raises(FovealError, match="makes 144 visual tokens of a picture of 640 x 480, not 100"):
        of_model(vlm.model(), vlm.processor(), name="tiny", load=Load(visual=visual))
    work = of_model(vlm.model(), vlm.processor(), name="tiny", load=Load(visual=(12, 12)))
    assert work.load.visual == (12, 12)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FovealError, match="this machine has no GPU"):
        build(None, device="cuda")


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FovealError, match="nowhere"):
        build(str(tmp_path / "nowhere"))
