"""Which checkpoints are whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveal.distillation.checkpoints import is_whole, last_checkpoint, remove_cut_short, writing


def checkpoint(folder: Path, step: int, state: str = "{}") -> Path:
    found = folder / f"checkpoint-{step}"
    found.mkdir(parents=True)
    (found / "trainer_state.json").write_text(state)
    return found


def test_the_last_checkpoint_is_the_last_whole_one(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "nowhere") is None
    whole = [checkpoint(tmp_path, step) for step in (9, 10)]
    checkpoint(tmp_path, 11, state='{"epoch": 1')
    (tmp_path / "checkpoint-12").mkdir()
    checkpoint(tmp_path, 13).rename(tmp_path / "checkpoint-best")
    assert last_checkpoint(tmp_path) == whole[1]


def test_what_was_cut_short_is_removed_and_nothing_else(tmp_path: Path) -> None:
    whole, foreign = checkpoint(tmp_path, 1), tmp_path / "checkpoint-3"
    foreign.mkdir()  # weights that somebody put there
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "checkpoint-2"):
        raise KeyboardInterrupt
    assert not is_whole(tmp_path / "checkpoint-2")
    remove_cut_short(tmp_path)
    assert sorted(tmp_path.iterdir()) == [whole, foreign]


def test_a_checkpoint_that_is_written_anew_is_not_whole_meanwhile(tmp_path: Path) -> None:
    old = checkpoint(tmp_path, 1)
    with writing(old):
        assert last_checkpoint(tmp_path) is None
        (old / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == old
    assert [path.name for path in old.iterdir()] == ["trainer_state.json"]
