"""Foveal's own scores are lmms-eval's, for every benchmark and whatever a model may say."""

import random
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmms_eval.tasks as lmms_eval_tasks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.metrics import exact_match_hf_evaluate
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from lmms_eval.tasks._task_utils import mcq_extract
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
from lmms_eval.utils import load_yaml_config

import foveal
from foveal.evaluation import METRICS, normalize_vqa
from foveal.evaluation.benchmark_rules import mmbench_letter
from foveal.evaluation.normalize import normalize_vqav2
from foveal.suite.answering import Answerer
from foveal.suite.benchmarks import BENCHMARKS, SUITES
from foveal.suite.lmms import FovealModel
from foveal.suite.lmms_environment import quiet
from foveal.suite.references import Reference, reference, suite_scores
from foveal.suite.scene_tasks import write_scene_tasks
from foveal.suite.tasks import bundled_prompt, make_task

COLUMNS = [benchmark.column for benchmark in SUITES["epic10"]]

MESSY = (
    "{}.",
    "The {}",
    "{}!",
    "{}, {}",
    "Yes, {}",
    "It is not {}.",
    "({})",
    "{}. because",
    "A {} or B",
    "the answer is {}",
    "The answer is A. No, the answer is {}",
    "答案是{}",
    "选{}。",
    "  {}\n",
    "I see a {} here, and two others",
    "option:{}",
    "{} B C",
    "an 1,000 {}",
)
OTHERS = (
    "",
    ".",
    "yes",
    "No.",
    "not sure",
    "A",
    "E",
    "B or D",
    "D)",
    "unanswerable",
    "１２",
    "left",
    "y",
    "n",
    "nope",
)


class Parrot(lmms):  # type: ignore[misc]
    """Says what it was told to, by task and row."""

    is_simple = False

    def __init__(self, says: dict[str, list[str]]) -> None:
        super().__init__()
        self.says = says

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        rows = ((request.args[4], request.args[3]) for request in requests)
        return [GenerationResult(text=self.says[task][row]) for task, row in rows]

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError


@dataclass
class Heard:
    """What lmms-eval made of what a model said, by column."""

    results: dict[str, dict[str, Any]]
    said: dict[str, list[str]]


def through_lmms_eval(model: lmms, tasks: list[Any], folder: Path) -> Heard:
    arguments = Namespace(output_path=str(folder), process_with_media=False)
    with quiet():
        found = simple_evaluate(
            model,
            tasks=tasks,
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            cli_args=arguments,
        )
    samples = {task: sorted(rows, key=lambda row: row["doc_id"]) for task, rows in found["samples"].items()}
    said = {task: [row["filtered_resps"][0] for row in rows] for task, rows in samples.items()}
    return Heard(found["results"], said)


def asked(column: str, task: Any) -> list[Reference]:
    return [reference(BENCHMARKS[column], doc, row) for row, doc in enumerate(task.eval_docs_no_media)]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene_tasks(tmp_path_factory.mktemp("scenes") / "data", questions=24)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tasks(data: Path, cache: Path) -> dict[str, Any]:
    return {column: make_task(BENCHMARKS[column], data, cache=cache) for column in COLUMNS}


@pytest.fixture(scope="session")
def references(tasks: dict[str, Any]) -> dict[str, list[Reference]]:
    return {column: asked(column, task) for column, task in tasks.items()}


def right(item: Reference) -> str:
    return max(item.answers, key=item.answers.count)


def wrong(item: Reference) -> str:
    return {"yes": "no", "no": "yes"}.get(right(item).lower(), "perhaps")


def messy(item: Reference, draw: random.Random) -> str:
    said = right(item)
    form = draw.choice(MESSY)
    choice = draw.choice((said, said.upper(), said.capitalize(), draw.choice(OTHERS), *item.choices))
    return draw.choice((form.format(*[choice] * form.count("{}")), choice, draw.choice(OTHERS)))


SAYERS: dict[str, Callable[[Reference, random.Random], str]] = {
    "right": lambda item, _: right(item),
    "wrong": lambda item, _: wrong(item),
    "mostly": lambda item, draw: right(item) if draw.random() < 0.8 else wrong(item),
    "messy": messy,
}


@pytest.fixture(scope="session")
def parrots(
    tasks: dict[str, Any], references: dict[str, list[Reference]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, list[str]], Heard]]:
    """What was said in each manner, and what lmms-eval made of it."""
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for kind, says in SAYERS.items():
        draw = random.Random(kind)
        said = {column: [says(item, draw) for item in items] for column, items in references.items()}
        found[kind] = (said, through_lmms_eval(Parrot(said), list(tasks.values()), folder))
    assert not list(folder.iterdir())  # no submission files
    return found


@pytest.mark.parametrize("column", COLUMNS)
def test_the_same_answers_get_the_same_scores(
    column: str,
    parrots: dict[str, tuple[dict[str, list[str]], Heard]],
    references: dict[str, list[Reference]],
) -> None:
    benchmark = BENCHMARKS[column]
    totals = {}
    for kind, (said, heard) in parrots.items():
        results = heard.results[column]
        own = suite_scores(benchmark, references[column], said[column])
        totals[kind] = own.pop(column)
        assert totals[kind] == benchmark.score(results)
        assert {key: own[key] for key in benchmark.extra(results)} == benchmark.extra(results)
    best = {"mme": 2800.0, "ocrbench": 1000.0}.get(column, 100.0)
    assert totals["right"] > 0.95 * best  # of ten annotators some err
    assert totals["wrong"] < 0.1 * best  # and some err with the model
    assert totals["wrong"] < totals["mostly"] < totals["right"]


@pytest.fixture(scope="session")
def bundled(data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Heard:
    """The bundled model on the ten tasks, through the plugin."""
    model, processor = foveal.load()
    tasks = [
        make_task(BENCHMARKS[column], data, cache=cache, prompt=bundled_prompt(BENCHMARKS[column], model))
        for column in COLUMNS
    ]
    answerer = Answerer(model, processor, [], batch_size=24, max_new_tokens=8)
    return through_lmms_eval(
        FovealModel(answerer, report=lambda *_: None), tasks, tmp_path_factory.mktemp("files")
    )


@pytest.mark.parametrize("column", COLUMNS)
def test_the_bundled_model_is_scored_alike(
    column: str, bundled: Heard, references: dict[str, list[Reference]]
) -> None:
    benchmark, items, said = BENCHMARKS[column], references[column], bundled.said[column]
    score = benchmark.score(bundled.results[column])
    assert suite_scores(benchmark, items, said)[column] == score
    assert score > {"mme": 1400.0, "ocrbench": 800.0, "mmbench": 20.0, "mmbench_cn": 20.0}.get(column, 70.0)


@pytest.mark.parametrize("column", COLUMNS)
def test_wrong_answers_change_what_lmms_eval_says(
    column: str, bundled: Heard, tasks: dict[str, Any], references: dict[str, list[Reference]], tmp_path: Path
) -> None:
    benchmark, items, said = BENCHMARKS[column], references[column], bundled.said[column]
    spoilt = [wrong(item) for item in items[:8]] + said[8:]
    heard = through_lmms_eval(Parrot({column: spoilt}), [tasks[column]], tmp_path)
    assert benchmark.score(heard.results[column]) < benchmark.score(bundled.results[column])
    assert suite_scores(benchmark, items, spoilt)[column] == benchmark.score(heard.results[column])


def test_runs_in_one_process_do_not_add_up(
    tasks: dict[str, Any], references: dict[str, list[Reference]], tmp_path: Path
) -> None:
    says = Parrot({"ocrbench": [right(item) for item in references["ocrbench"]]})
    found = [through_lmms_eval(says, [tasks["ocrbench"]], tmp_path).results["ocrbench"] for _ in range(2)]
    assert [BENCHMARKS["ocrbench"].score(results) for results in found] == [1000.0, 1000.0]


def test_ocrbench_is_lmms_evals_own_share_of_a_thousand(
    tasks: dict[str, Any], references: dict[str, list[Reference]], tmp_path: Path
) -> None:
    """Its own sum, on a fresh count, of as many questions as there are in the original."""
    task, said = tasks["ocrbench"], [right(item) for item in references["ocrbench"]]
    docs = list(task.eval_docs_no_media)
    rows = [
        task.config.process_results(docs[i % 24], [said[i % 23]])["ocrbench_accuracy"] for i in range(1000)
    ]
    own = load_yaml_config(f"{lmms_eval_tasks.__path__[0]}/ocrbench/ocrbench.yaml")["metric_list"][0]
    theirs = own["aggregation"](rows, Namespace(output_path=str(tmp_path)))
    assert 0 < theirs < 1
    assert task.aggregation()["ocrbench_accuracy"](rows) == theirs


def test_pope_names_three_scores() -> None:
    benchmark = BENCHMARKS["pope"]
    docs = [
        {"question_id": str(row), "question": "?", "answer": answer, "category": subset}
        for row, (answer, subset) in enumerate(
            [("yes", "random"), ("no", "random"), ("yes", "popular"), ("no", "popular")]
        )
    ]
    references = [reference(benchmark, doc, row) for row, doc in enumerate(docs)]
    found = suite_scores(benchmark, references, ["Yes.", "no", "yes", "No, none"])
    # lmms-eval wants the word alone: "Yes." is wrong, and recall leaves it out
    assert found == {"pope": 100.0, "pope_accuracy": 50.0, "pope_subset_f1": 100.0}


# The rules themselves, on anything that might be said.

TOKENS = (
    *(
        "a",
        "an",
        "The",
        "two",
        "none",
        "Ten",
        "1,000",
        "3.5",
        "3.",
        "U.S.A.",
        "dont",
        "couldn'tve",
        "it's",
        "she's",
    ),
    *("t-shirt", "-", " - ", "'s", "?", ",", "!", ";", "/", "`", "'", '"', "\n", "\t", "\r", "  ", " "),
    *(
        "A",
        "B",
        "C",
        "D",
        "E",
        "A.",
        "(B)",
        "C)",
        "D:",
        ":A",
        "B,",
        "answer is",
        "the answer is",
        "my choice is",
    ),
    *(
        "I pick",
        "选",
        "答案是",
        "答案为",
        "정답은",
        "yes",
        "No",
        "y",
        "n",
        "know",
        "ＹＥＳ",
        "（Ａ）",
        "　",
        "fox",
        "Foxes",
    ),
)
SAID = st.lists(
    st.one_of(
        st.sampled_from(TOKENS),
        st.sampled_from((" ", "")),
        # numpy, which lmms-eval compares GQA's answers with, cannot hold a NUL or a letter that grows in lower case
        st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0İ"), max_size=4),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="session")
def scored(tasks: dict[str, Any]) -> dict[str, Any]:
    """lmms-eval's own functions that score one answer."""
    return {column: task.config.process_results for column, task in tasks.items()}


@given(SAID)
def test_normalisation(said: str) -> None:
    process = EvalAIAnswerProcessor()
    assert normalize_vqa(said) == process(said)
    cleaned = said.replace("\n", " ").replace("\t", " ").strip()
    assert normalize_vqav2(said) == process.process_digit_article(process.process_punctuation(cleaned))


@pytest.mark.parametrize("table", [EvalAIAnswerProcessor.CONTRACTIONS, EvalAIAnswerProcessor.NUMBER_MAP])
def test_normalisation_knows_every_word_of_the_tables(table: dict[str, str]) -> None:
    process = EvalAIAnswerProcessor()
    for word in [*table, *table.values()]:
        assert normalize_vqa(word) == process(word)
        assert normalize_vqav2(word) == process.process_digit_article(process.process_punctuation(word))


@given(said=SAID, answers=st.lists(SAID, min_size=10, max_size=10), same=st.integers(0, 10))
def test_vqa_accuracy(scored: dict[str, Any], said: str, answers: list[str], same: int) -> None:
    said = said.strip()
    answers = [said] * same + answers[same:]
    rows = [{"answer": answer, "answer_id": person} for person, answer in enumerate(answers)]
    vqav2 = scored["vqav2"]({"question_id": 0, "answers": rows}, [said])
    assert METRICS["vqav2"](said, answers, ()) == vqav2["exact_match"]
    for column in ("vizwiz", "textvqa"):
        theirs = scored[column]({"question_id": 0, "answers": list(answers)}, [said])
        assert METRICS["vqa"](said, answers, ()) == theirs["exact_match"]


@given(said=SAID, answer=SAID)
def test_exact_match(said: str, answer: str) -> None:
    for true in (answer, said, said.upper(), f"{said}."):
        theirs = exact_match_hf_evaluate([said.strip()], [true], ignore_case=True, ignore_punctuation=True)
        assert METRICS["gqa"](said, [true], ()) == theirs["exact_match"]


@given(said=SAID, answer=st.sampled_from("ABCD"))
def test_science_qa(scored: dict[str, Any], said: str, answer: str) -> None:
    doc = {"choices": ["1", "2", "3", "4"], "answer": "ABCD".index(answer)}
    assert METRICS["sqa"](said, [answer], ()) == scored["sqa_img"](doc, [said])["exact_match"]


@given(
    said=st.one_of(SAID, st.sampled_from(("yes", "Yes ", "no", "No."))), answer=st.sampled_from(("yes", "no"))
)
def test_pope(scored: dict[str, Any], said: str, answer: str) -> None:
    theirs = scored["pope"]({"question_id": 0, "answer": answer}, [said])
    assert METRICS["pope_exact"](said, [answer], ()) == theirs["pope_accuracy"]["score"]


@given(said=SAID, answer=st.sampled_from(("Yes", "No")))
def test_mme(scored: dict[str, Any], said: str, answer: str) -> None:
    (theirs,) = scored["mme"]({"question_id": 0, "category": "count", "answer": answer}, [said]).values()
    assert METRICS["mme"](said, [answer], ()) == theirs["score"]


@given(
    said=SAID, answers=st.lists(SAID, min_size=1, max_size=3), origin=st.sampled_from(("TextVQA", "HME100k"))
)
def test_ocrbench(scored: dict[str, Any], said: str, answers: list[str], origin: str) -> None:
    doc = {"answer": answers, "dataset": origin, "question_type": "", "question": ""}
    theirs = scored["ocrbench"](doc, [said])["ocrbench_accuracy"]["score"]
    assert METRICS["ocrbench_math" if origin == "HME100k" else "ocrbench"](said, answers, ()) == theirs


LETTERS = (
    "A",
    "B",
    "C",
    "D",
    "E",
    "A.",
    "B,",
    "(C)",
    "D)",
    "(A).",
    "B:",
    ":C",
    "xD",
    "Ax",
    "B。",
    "选",
    "\n",
    "?",
)
WORDS = ("or", "a", "fox", "not", "answer is", "The answer is", "the best option is", "I choose", "答案是C")
LETTERED = st.lists(st.sampled_from((*LETTERS, *WORDS)), max_size=7).map(" ".join)


@settings(max_examples=500)
@given(
    said=st.one_of(LETTERED, SAID),
    choices=st.lists(
        st.one_of(st.sampled_from(("fox", "Foxes", "nan", "owl")), SAID), min_size=2, max_size=4
    ),
)
def test_mmbench(said: str, choices: list[str]) -> None:
    import pandas as pd

    row = (
        {"index": 0, "prediction": said.strip()}
        | dict.fromkeys("ABCD")
        | dict(zip("ABCD", choices, strict=False))
    )
    frame = pd.DataFrame([row]).astype(dict.fromkeys("ABCD", object))
    judged = [
        letter
        for letter in "ABCDE"
        if MMBench_Evaluator().eval_sub_data(frame, {0: letter}, static_only=True)
    ]
    chosen = mmbench_letter(said, choices)
    assert judged == ([chosen] if chosen else [])


@pytest.mark.parametrize("phrase", mcq_extract._ANSWER_PHRASES)
def test_mmbench_knows_every_phrase(phrase: str) -> None:
    said = f"answer is xC xB {phrase} xC"
    assert mmbench_letter(said) == mcq_extract.extract_mcq_answer(said)
