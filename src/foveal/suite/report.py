"""The report of a suite's runs: tables, pictures, and the questions that flipped, to leaf through, in one HTML file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from html import escape
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from foveal.errors import FovealError
from foveal.report import Report
from foveal.suite.answers import Answer
from foveal.suite.comparison import Comparison, average_of
from foveal.suite.paired import Pair, flips
from foveal.suite.plots import average_curves, category_bars, change_bars
from foveal.suite.tables import (
    MINUS,
    PUBLISHED,
    RUN,
    cells_of,
    change,
    columns_of,
    notes,
    published_title,
    rows,
)

__all__ = ["LISTED", "PICTURED", "write_report"]

PICTURED = 60
LISTED = 1000

# Of each answer what every run was shown, in the order of the runs.
Draw = Callable[[Sequence[Answer]], Sequence[Sequence[Image.Image]]]


class _Page(Report):
    """A report with parts that react to the reader."""

    def markup(self, text: str) -> None:
        """Add HTML as it stands."""
        self._parts.append(text)


def write_report(comparison: Comparison, path: Path, title: str, draw: Draw | None = None) -> None:
    """Write the page.

    Args:
        comparison: what it is about.
        path: of the HTML file.
        title: what was measured.
        draw: makes pictures of what each run kept, for at most `PICTURED` questions; None where the benchmarks' data is
            not at hand.
    """
    first = comparison.names[0]
    page = _Page(title, _lead(comparison))
    page.markup(f"<style>\n{_STYLE}\n</style>")
    page.heading("Scores")
    _add_scores(page, comparison)
    if average_of(comparison.runs[0].scores) is not None:
        page.picture(average_curves(comparison), "average score against visual tokens kept")
    if comparison.differences:
        page.heading(f"Against {first}")
        page.table(*change(comparison), caption=_CHANGE)
        page.picture(change_bars(comparison), f"differences from {first} by benchmark, with 95 % intervals")
    _add_categories(page, comparison)
    if comparison.differences:
        _add_flips(page, comparison, draw)
    page.heading("What the columns are")
    for benchmark in comparison.benchmarks:
        page.paragraph(f"{benchmark.title}: {benchmark.protocol}.")
    page.heading("Where these numbers come from")
    page.listing(
        json.dumps(
            [{**run.settings, **run.provenance} for run in comparison.runs], indent=2, ensure_ascii=False
        )
    )
    page.write(path)


_CHANGE = (
    "The same questions under both. 95 % intervals: Bonett and Price's for means, the bootstrap's for F1 and, by "
    "picture, for MME, which needs two pictures of each category. * p < 0.05 in McNemar's exact test."
)


def _add_scores(page: _Page, comparison: Comparison) -> None:
    """The runs, the published rows and the differences, a table each."""
    header, found = columns_of(comparison), rows(comparison)
    for kind in (RUN, PUBLISHED, MINUS):
        lines = [cells_of(row, comparison) for row in found if row.kind == kind]
        if lines:
            if kind != RUN:
                page.paragraph(
                    f"{published_title(comparison) if kind == PUBLISHED else 'minus published'}:".capitalize()
                )
            marked = range(len(lines)) if kind == RUN else ()
            page.table(header, lines, marked=marked)
    for line in notes(comparison):
        page.paragraph(f"{line}.")


def _lead(comparison: Comparison) -> str:
    questions = len(comparison.runs[0].answers)
    limit = comparison.runs[0].settings.get("limit")
    some = f", at most {limit} of each benchmark" if limit else ""
    return f"{questions:,} questions{some}, the same for each run: {'; '.join(comparison.names)}."


def _add_categories(page: _Page, comparison: Comparison) -> None:
    drawn = [(each.title, category_bars(comparison, each.column)) for each in comparison.benchmarks]
    if not any(figure for _, figure in drawn):
        return
    page.heading("By category")
    for title, figure in drawn:
        if figure is not None:
            page.markup(f"<details><summary>{escape(title)}</summary>")
            page.picture(figure, f"{title}: right answers by category, with 95 % intervals")
            page.markup("</details>")


def _add_flips(page: _Page, comparison: Comparison, draw: Draw | None) -> None:
    groups = _groups(comparison)
    total = len({_key(pair.before) for group in groups for pair in group})
    page.heading("Questions that flipped")
    if not total:
        page.paragraph("None: every run answers every question alike.")
        return
    listed = _spread(groups, LISTED)
    shown, why = _pictures(listed[:PICTURED], draw)
    pictured = f"{len(shown)} of them with pictures" if shown else f"without pictures ({why})"
    page.paragraph(
        f"{total:,} questions are not answered alike by every run. {len(listed):,} are listed here, {pictured}, spread "
        "evenly over benchmarks and directions; suite.json holds all answers. Arrow keys go on and back."
    )
    runs = [{_key(answer): answer for answer in run.answers} for run in comparison.runs]
    questions = [
        _question([run[_key(answer)] for run in runs], shown[place] if place < len(shown) else ())
        for place, answer in enumerate(listed)
    ]
    told = {
        "runs": comparison.names,
        "whole": next((n for n, run in enumerate(comparison.runs) if run.settings["method"] == "none"), None),
        "benchmarks": {each.column: each.title for each in comparison.benchmarks},
        "questions": questions,
    }
    # "<" would let a question's text end the script.
    data = json.dumps(told, ensure_ascii=False).replace("<", "\\u003c")
    page.markup(f'<script type="application/json" id="flips-data">{data}</script>')
    page.markup(_BROWSER)
    page.markup(f"<script>\n{_SCRIPT}\n</script>")


def _groups(comparison: Comparison) -> list[list[Pair]]:
    """The questions that flipped, by benchmark, run and direction."""
    groups = []
    for benchmark in comparison.benchmarks:
        for run in comparison.runs[1:]:
            found = flips(comparison.runs[0], run, benchmark.column)
            groups += [[p for p in found if p.change < 0], [p for p in found if p.change > 0]]
    return groups


def _spread(groups: Sequence[Sequence[Pair]], most: int) -> list[Answer]:
    """One question of each group in turn, each question once."""
    turns = chain.from_iterable(zip_longest(*groups))
    found = {_key(pair.before): pair.before for pair in turns if pair is not None}
    return list(found.values())[:most]


def _key(answer: Answer) -> tuple[str, str]:
    return answer.benchmark, answer.id


def _pictures(answers: Sequence[Answer], draw: Draw | None) -> tuple[Sequence[Sequence[Image.Image]], str]:
    """Pictures, or why there are none."""
    if draw is None:
        return [], "the benchmarks' data is not at hand"
    try:
        return draw(answers), ""
    except FovealError as error:
        return [], str(error)


def _question(given: Sequence[Answer], pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """What the page knows of a question: `given` are its answers, a run each."""
    return {
        "benchmark": given[0].benchmark,
        "category": given[0].category,
        "question": given[0].question,
        "answers": given[0].answers[:5],
        "said": [each.prediction for each in given],
        "scores": [round(each.score, 3) for each in given],
        "pictures": [_uri(picture) for picture in pictures],
    }


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


_STYLE = """
main { max-width: 1180px; }
th, td { padding: 5px 7px; font-size: .85rem; }
details { margin: 10px 0; }
summary { cursor: pointer; font-weight: 600; }
#flips .bar { display: flex; flex-wrap: wrap; gap: 10px 16px; align-items: center; }
#flips label { color: var(--soft); font-size: .85rem; }
#flips select, #flips button { font: inherit; padding: 4px 8px; border: 1px solid var(--line); border-radius: 8px;
                               background: #fff; color: var(--ink); }
#flips .views { display: flex; flex-wrap: wrap; gap: 16px; margin: 14px 0 4px; }
#flips .view { flex: 1 1 240px; max-width: 340px; }
#flips .view img { width: 100%; image-rendering: auto; }
#flips .said { font-weight: 600; margin: 6px 0 0; overflow-wrap: anywhere; }
#flips .right { color: #1d7a46; } #flips .wrong { color: #b3261e; }
#flips .asked { white-space: pre-wrap; overflow-wrap: anywhere; max-width: none; }
#flips .list { max-height: 320px; overflow-y: auto; margin-top: 12px; border-top: 1px solid var(--line); }
#flips .list button { display: grid; grid-template-columns: 110px 1fr 150px 150px; gap: 12px; width: 100%; border: 0;
                      border-bottom: 1px solid var(--line); border-radius: 0; text-align: left; font-size: .85rem; }
#flips .list button > * { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
#flips .list button[aria-current=true] { background: var(--mark); }
@media (max-width: 600px) { #flips .list button { grid-template-columns: 70px 1fr 60px 60px; } }
""".strip()

_BROWSER = """
<div class="card" id="flips">
<div class="bar">
<label>from <select id="flips-from"></select></label>
<label>to <select id="flips-to"></select></label>
<label>benchmark <select id="flips-benchmark"></select></label>
<label>direction <select id="flips-direction">
<option value="">lost and won</option><option value="-1">lost</option><option value="1">won</option></select></label>
<span><button id="flips-back" aria-label="back">&larr;</button>
<button id="flips-on" aria-label="on">&rarr;</button></span><span id="flips-count"></span>
</div>
<div id="flips-detail"></div>
<div class="list" id="flips-list"></div>
</div>
""".strip()

_SCRIPT = r"""
(() => {
  const data = JSON.parse(document.getElementById("flips-data").textContent);
  const get = (name) => document.getElementById("flips-" + name);
  let shown = [], place = 0;

  const make = (tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const fill = (select, entries, chosen) => {
    for (const [value, text] of entries) select.add(new Option(text, value, false, value === chosen));
  };
  const verdict = (question, run) =>
    make("span", question.said[run] || "(nothing)", question.scores[run] >= 0.5 ? "right" : "wrong");

  const runs = data.runs.map((name, index) => [String(index), name]);
  fill(get("from"), runs, "0");
  fill(get("to"), runs, "1");
  fill(get("benchmark"), [["", "all"], ...Object.entries(data.benchmarks)], "");

  const view = (question, run, title) => {
    const made = make("div", undefined, "view");
    made.append(make("label", title));
    if (question.pictures.length) {
      const picture = make("img");
      picture.src = question.pictures[run];
      picture.alt = "visual tokens kept: " + data.runs[run];
      made.append(picture);
    }
    const said = make("p", undefined, "said");
    said.append(verdict(question, run));
    made.append(said);
    return made;
  };

  const detail = () => {
    const box = get("detail");
    box.replaceChildren();
    get("count").textContent = shown.length ? `${place + 1} of ${shown.length}` : "none";
    if (!shown.length) return;
    const question = shown[place];
    const views = make("div", undefined, "views");
    const chosen = ["from", "to"].map((name) => Number(get(name).value));
    if (data.whole !== null && !chosen.includes(data.whole)) chosen.unshift(data.whole);
    for (const run of chosen) views.append(view(question, run, data.runs[run]));
    const words = make("div", undefined, "view");
    const where = data.benchmarks[question.benchmark] + (question.category ? ", " + question.category : "");
    words.append(make("label", where), make("p", question.question, "asked"));
    words.append(make("label", "accepted"), make("p", question.answers.join(" | ")));
    views.append(words);
    box.append(views);
    const list = get("list");
    for (const row of list.children) row.setAttribute("aria-current", Number(row.dataset.place) === place);
    const row = list.children[place];
    list.scrollTop = row.offsetTop - list.offsetTop - list.clientHeight / 2;
  };

  const filter = () => {
    const from = Number(get("from").value), to = Number(get("to").value);
    const benchmark = get("benchmark").value, direction = Number(get("direction").value);
    shown = data.questions.filter((question) => {
      const change = Math.sign(question.scores[to] - question.scores[from]);
      return change && (!benchmark || question.benchmark === benchmark) && (!direction || change === direction);
    });
    place = 0;
    get("list").replaceChildren(...shown.map((question, index) => {
      const row = make("button");
      row.dataset.place = index;
      row.append(make("span", data.benchmarks[question.benchmark]), make("span", question.question));
      row.append(verdict(question, from), verdict(question, to));
      row.onclick = () => { place = index; detail(); };
      return row;
    }));
    detail();
  };

  const move = (step) => {
    if (!shown.length) return;
    place = (place + step + shown.length) % shown.length;
    detail();
  };
  for (const name of ["from", "to", "benchmark", "direction"]) get(name).onchange = filter;
  get("back").onclick = () => move(-1);
  get("on").onclick = () => move(1);
  document.addEventListener("keydown", (event) => {
    if (["SELECT", "INPUT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!step) return;
    const box = document.getElementById("flips").getBoundingClientRect();
    if (box.bottom < 0 || box.top > innerHeight) return;
    event.preventDefault();
    move(step);
  });
  filter();
})();
""".strip()
