"""What compression gains on a GPU, at the shapes of LLaVA-1.5-7B in bfloat16, beside what FLOPs allow.

    python benchmarks/gpu.py                     # on a machine with a GPU of 40 GB or more; 15 minutes, we guess
    python benchmarks/gpu.py --only prefill-8    # one part by itself, again if need be: some minutes each, we guess
    python benchmarks/gpu.py --page              # docs/efficiency.md and its picture from the result, anywhere
    python benchmarks/gpu.py --tiny              # the same code on a CPU in a minute; writes nothing

The parts are prefill-1, prefill-8, answers-1 and answers-8, the number being the batch. Each is written when it is
done, and a run that was stopped goes on with those that are missing.

Weights are random: speed does not depend on them. 576 visual and 60 text tokens.

**prefill**: plain, FastV, DART, Random, TRIM and VisionZip at 192, 128, 64 and 36 tokens, decoding without compilation.
Time to first token, decode step, memory, and what was realised of the bound by FLOPs. Target: 0.90 of it for the
prefill at batch 8.

**answers**: a load like POPE's, answers of three tokens, at 64 tokens. All with a static cache and compiled decode
steps (CUDA graphs), beside plain transformers without them. Targets: 1.6x over the plain model with the same compiled
decode, 2.5x over plain transformers. Published (EPIC, arXiv 2510.00515, POPE on an A100): 1.47x FastV, 1.48x DART,
1.58x Random at 84 % fewer FLOPs.

TRIM's text tower is CLIP-L's, its question 16 tokens. Preprocessing is not part of it: there is no picture.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import LlamaConfig
from transformers.utils import logging

import foveal
from foveal.cli.bench import progress_bar
from foveal.efficiency import Load
from foveal.efficiency.bench_report import Report, record
from foveal.efficiency.measure import Case, measure
from foveal.efficiency.workload import Workload, needs_text, of_model, random_text_tower, workload
from foveal.errors import FovealError
from foveal.evaluation import write_json
from shared import llava

METHODS = ("fastv", "dart", "random", "trim", "visionzip")
KEEPS, BATCHES, CHOSEN = (192, 128, 64, 36), (1, 8), 64
PUBLISHED = {"fastv": 1103.5 / 749.1, "dart": 1103.5 / 744.3, "random": 1103.5 / 697.3}
PARTS = tuple(f"{kind}-{batch}" for kind in ("prefill", "answers") for batch in BATCHES)
COLOURS = ("#D55E00", "#0072B2", "#000000", "#009E73", "#CC79A7")  # Okabe and Ito (2008), a method each
EAGER, EAGER_ATTENTION = "plain, not compiled", "plain, eager attention, not compiled"
RESULT = Path(__file__).parent / "results" / "gpu.json"
PAGE = Path(__file__).parent.parent / "docs" / "efficiency.md"
PICTURE = "gpu.png"
BEGIN, END = "<!-- made by benchmarks/gpu.py --page -->", "<!-- end of what benchmarks/gpu.py makes -->"

NOT_YET = (
    "Not run on a GPU yet. `python benchmarks/gpu.py` measures plain, FastV, DART, Random, TRIM and VisionZip at the "
    "shapes of LLaVA-1.5-7B and writes `benchmarks/results/gpu.json`; `python benchmarks/gpu.py --page` then puts its "
    "figures here."
)
PUBLISHED_WHERE = "Published: EPIC (arXiv 2510.00515), all of POPE on an A100, 84 % fewer FLOPs by its count."

Result = dict[str, Any]


def build(batch: int, *, tiny: bool, answer: int) -> Workload:
    """LLaVA-1.5-7B's shape on a GPU; or a small decoder behind two narrow layers of CLIP-L's width on the CPU."""
    load = Load(batch=batch, answer=answer)
    methods = [foveal.get(name, keep=max(KEEPS)) for name in METHODS]
    if not tiny:
        place = {"device": "cuda", "dtype": torch.bfloat16}
        return workload("llava-hf/llava-1.5-7b-hf", methods, load=load, random_weights=True, **place)
    torch.manual_seed(0)
    language = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2, vocab_size=512
    )
    model = llava(language, hidden_size=1024, intermediate_size=256, num_attention_heads=16)
    text_tower = random_text_tower(model) if any(map(needs_text, methods)) else None
    return of_model(model, name="tiny", load=load, text_tower=text_tower)


def measured(part: str, *, tiny: bool) -> Report:
    """Measure a part."""
    kind, _, batch = part.partition("-")
    return {"prefill": prefill, "answers": answers}[kind](int(batch), tiny=tiny)


def prefill(batch: int, *, tiny: bool) -> Report:
    """All methods and budgets, without compilation."""
    work = build(batch, tiny=tiny, answer=2 if tiny else 9)
    keeps = KEEPS[-1:] if tiny else KEEPS
    methods = {f"{name} {keep}": foveal.get(name, keep=keep) for name in METHODS for keep in keeps}
    with progress_bar() as progress:
        return measure(work, methods, batches=(batch,), rounds=1 if tiny else 9, progress=progress)


def answers(batch: int, *, tiny: bool) -> Report:
    """Short answers at one budget, with compiled decode steps, beside plain transformers."""
    work = build(batch, tiny=tiny, answer=3)
    names = METHODS[1:2] if tiny else METHODS
    cases: dict[str, foveal.Compressor | Case] = {
        f"{name} {CHOSEN}": foveal.get(name, keep=CHOSEN) for name in names
    }
    cases[EAGER] = Case(compiled=False)
    cases[EAGER_ATTENTION] = Case(compiled=False, attention="eager")
    with progress_bar() as progress:
        return measure(
            work,
            cases,
            batches=(batch,),
            rounds=1 if tiny else 15,
            compiled=True,
            progress=progress,
        )


# ----------------------------------------------------------------------------------------------------------- page


def page(result: Result) -> list[str]:
    """The section of docs/efficiency.md that says what was gained on a GPU."""
    if not result:
        return [NOT_YET]
    lines = []
    prefills, whole = parts(result, "prefill"), parts(result, "answers")
    if prefills:
        lines += prefill_lines(prefills)
    if whole:
        lines += ["", *answer_lines(whole)]
    return [*lines, "", "[Result](../benchmarks/results/gpu.json) of `python benchmarks/gpu.py`."]


def parts(result: Result, kind: str) -> Result:
    """The parts of a kind as one: the rows of all batches; empty if there is none."""
    found = [part for name, part in result.items() if name.startswith(kind)]
    return {**found[0], "rows": [row for part in found for row in part["rows"]]} if found else {}


def prefill_lines(part: Result) -> list[str]:
    """Every case: times, memory, and what was realised."""
    setting, hardware = part["setting"], part["machine"]["name"]
    about = (
        f"{hardware}, {setting['dtype']}, random weights at the shapes of {setting['model']}, "
        f"{setting['visual']} visual and {setting['text']} text tokens. Medians of {part['rows'][0]['rounds']} rounds; "
        "x over the plain model, of what FLOPs allow."
    )
    lines = [
        about,
        "",
        f"![prefill by tokens kept]({PICTURE})",
        "",
        "| | batch | first token, ms | x | prefill x | realised | next token, ms | x | MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(row) for row in part["rows"]]
    gained = [row for row in part["rows"] if row["times_faster"] and row["batch"] == max(BATCHES)]
    best = [row["times_faster"]["prefill"] for row in gained]
    if best:
        shares = sorted(gain["measured"]["median"] / gain["flops"] for gain in best)
        ends = f"{shares[0]:.2f} to {shares[-1]:.2f}"
        told = f"At batch {max(BATCHES)} prefills realise {ends} of what FLOPs allow; the target is 0.90."
        lines += ["", told]
    return lines


def _row(row: Result) -> str:
    first, following = row["seconds"]["first_token"]["median"], row["seconds"]["next_token"]
    cells = [
        row["name"],
        str(row["batch"]),
        f"{1e3 * first:.1f}",
        "",
        "",
        "",
        "",
        "",
        f"{row['memory_bytes'] / 2**20:,.0f}",
    ]
    if following is not None:
        cells[6] = f"{1e3 * following['median']:.1f}"
    gains = row["times_faster"]
    if gains:
        cells[3], cells[4] = _of(gains["first_token"]), _of(gains["prefill"])
        cells[5] = f"{gains['prefill']['measured']['median'] / gains['prefill']['flops']:.2f}"
        if "next_token" in gains:
            cells[7] = f"{gains['next_token']['measured']['median']:.2f}"
    return f"| {' | '.join(cells)} |"


def _of(gain: Result) -> str:
    return f"{gain['measured']['median']:.2f} of {gain['flops']:.2f}"


def answer_lines(part: Result) -> list[str]:
    """Whole requests with short answers against both plain models, beside what was published."""
    setting = part["setting"]
    about = (
        f"Whole requests with answers of {setting['answer']} tokens, as POPE's; decode steps compiled, with a static "
        "cache. x over the plain model with the same decode (target 1.6), over transformers as it comes, and over "
        "transformers with eager attention (target 2.5 over either)."
    )
    lines = [
        about,
        "",
        "| | batch | ms | x | x not compiled | x eager attention | published |",
        "|---|---|---|---|---|---|---|",
    ]
    for batch in sorted({row["batch"] for row in part["rows"]}):
        rows = {row["name"]: row for row in part["rows"] if row["batch"] == batch}
        eager, attention = rows[EAGER], rows[EAGER_ATTENTION]
        for name, row in rows.items():
            own = row["seconds"]["answer"]["median"]
            gain = row["times_faster"].get("answer")
            times = [1.0 if gain is None else gain["measured"]["median"]]
            times += [other["seconds"]["answer"]["median"] / own for other in (eager, attention)]
            known = PUBLISHED.get(name.partition(" ")[0])
            cells = [name, str(batch), f"{1e3 * own:.1f}", *(f"{value:.2f}" for value in times)]
            lines.append(f"| {' | '.join([*cells, '' if known is None else f'{known:.2f}'])} |")
    return [*lines, "", PUBLISHED_WHERE]


def draw(part: Result, path: Path) -> None:
    """The prefill's speed-up by tokens kept, a panel a batch; dashed what FLOPs allow."""
    batches = sorted({row["batch"] for row in part["rows"]})
    figure = Figure(figsize=(9, 4), dpi=150, layout="constrained")
    panels: Any = figure.subplots(1, len(batches), squeeze=False, sharey=True)[0]
    for axes, batch in zip(panels, batches, strict=True):
        for index, method in enumerate(METHODS):
            rows = [row for row in part["rows"] if row["batch"] == batch and row["name"].startswith(method)]
            kept = [int(row["name"].split()[1]) for row in rows]
            gains = [row["times_faster"]["prefill"] for row in rows]
            colour = COLOURS[index]
            axes.plot(kept, [gain["measured"]["median"] for gain in gains], "o-", color=colour, label=method)
            axes.plot(kept, [gain["flops"] for gain in gains], "--", color=colour, alpha=0.6)
        axes.set(title=f"batch {batch}", xlabel="visual tokens kept", ylim=(0, None))
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("prefill, x faster (dashed: FLOPs)")
    figure.suptitle(part["machine"]["name"], fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    FigureCanvasAgg(figure).print_figure(path)


def write_page(result: Result, document: Path) -> None:
    """Put the section between its two marks.

    Raises:
        FovealError: the marks are not there.
    """
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise FovealError(f"{document} lacks the lines {BEGIN!r} and {END!r} that the section goes between")
    text = "\n".join([before + BEGIN, "", *page(result), "", END + after])
    document.write_text(text, encoding="utf-8")
    prefills = parts(result, "prefill")
    if prefills:
        draw(prefills, document.parent / PICTURE)


def release() -> None:
    """Give back the memory of a part: compiled steps hold on to their models, and those to each other."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    """Measure and write the result file, or the page from it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, help="this part, even if it was measured before")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--page", action="store_true", help="only write docs/efficiency.md from the result")
    parser.add_argument("--out", type=Path, help=f"the result file; default: {RESULT.name}, of --tiny none")
    options = parser.parse_args()
    logging.set_verbosity_error()
    out = options.out or (None if options.tiny else RESULT)
    result: Result = json.loads(out.read_text()) if out is not None and out.exists() else {}
    if options.page:
        write_page(result, PAGE)
        return
    missing = [part for part in (PARTS[::2] if options.tiny else PARTS) if part not in result]
    for part in [options.only] if options.only else missing:
        start = time.perf_counter()
        result[part] = record(measured(part, tiny=options.tiny))
        release()
        if out is not None:
            write_json(out, result)
        print(f"{part}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print("\n".join(page(result)))


if __name__ == "__main__":
    main()
