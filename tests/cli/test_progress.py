from __future__ import annotations

from foveal.cli.progress import EvaluationBar


def test_one_bar_counts_all_runs() -> None:
    with EvaluationBar(3, 10, shown=False) as bar:
        bar.begin("first")
        bar.advance(4)
        bar.advance(6)
        assert bar.left == 20
        bar.begin("second")
        bar.advance(4)
        bar.give_up()
        assert bar.left == 10
        bar.begin("third")
        bar.advance(10)
        assert bar.left == 0


def test_a_run_that_never_began_to_ask_is_left_out() -> None:
    with EvaluationBar(2, 10, shown=False) as bar:
        bar.begin("first")
        bar.give_up()
        assert bar.left == 10
