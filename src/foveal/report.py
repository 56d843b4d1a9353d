"""A report in one HTML file: text, tables and pictures, readable on a phone and without a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from foveal.evaluation.intervals import Estimate

__all__ = ["Report", "accuracy_curve"]

_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #e3e7ec; --mark: #fff4e0; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3em; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.2em 0 .5em; }
p { margin: .5em 0; max-width: 68ch; }
.lead { color: var(--soft); font-size: 1.05rem; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; margin: 14px 0;
        overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: .85rem; }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; }
tr.marked td { background: var(--mark); font-weight: 600; }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: 8px; }
@media (max-width: 600px) { th, td { padding: 6px 4px; font-size: .8rem; white-space: normal; } }
pre { white-space: pre-wrap; word-break: break-word; font-size: .82rem; color: var(--soft); margin: 0; }
""".strip()


class Report:
    """Collects sections and writes them as one self-contained HTML file.

    Args:
        title: heading and window title.
        lead: a sentence or two under it.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]
        if lead:
            self._parts.append(f'<p class="lead">{escape(lead)}</p>')

    def heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add plain text."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def listing(self, text: str) -> None:
        """Add preformatted text, such as a JSON record."""
        self._parts.append(f'<div class="card"><pre>{escape(text)}</pre></div>')

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        marked: Sequence[int] = (),
        caption: str = "",
    ) -> None:
        """Add a table, first column to the left and the rest to the right; the `marked` rows stand out."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join(
            f"<tr{' class=marked' if number in marked else ''}>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in row)
            + "</tr>"
            for number, row in enumerate(rows)
        )
        note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        self._parts.append(f'<div class="card"><table><tr>{head}</tr>{body}</table>{note}</div>')

    def picture(self, image: Image.Image | Figure, alt: str, caption: str = "") -> None:
        """Add a picture, stored inside the file."""
        data = base64.b64encode(_png(image)).decode()
        note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        source = f'<img src="data:image/png;base64,{data}" alt="{escape(alt, quote=True)}">'
        self._parts.append(f'<figure class="card">{source}{note}</figure>')

    def write(self, path: str | Path) -> None:
        """Write the file."""
        body = "\n".join(self._parts)
        Path(path).write_text(
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self._title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n"
            f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n",
            encoding="utf-8",
        )


def _png(image: Image.Image | Figure) -> bytes:
    buffer = io.BytesIO()
    if isinstance(image, Figure):
        image.savefig(buffer, format="png", dpi=160)
    else:
        image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


_COLORS = ("#8a94a3", "#e07b00", "#1f6fd6", "#2f9e5b", "#a855c7", "#c0392b")
_MARKERS = "osD^vP"


def accuracy_curve(curves: Mapping[str, Mapping[int, Estimate]], title: str = "") -> Figure:
    """Accuracy against visual tokens kept, with intervals.

    Args:
        curves: per line its label, and per number of tokens the accuracy there.
        title: above the axes.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (label, points) in enumerate(curves.items()):
        tokens = sorted(points)
        values = [100 * points[count].value for count in tokens]
        below = [100 * (points[count].value - points[count].low) for count in tokens]
        above = [100 * (points[count].high - points[count].value) for count in tokens]
        # A small shift keeps the intervals of neighbouring lines apart.
        shifted = [count * 1.02 ** (place - (len(curves) - 1) / 2) for count in tokens]
        axes.errorbar(
            shifted,
            values,
            yerr=(below, above),
            label=label,
            color=_COLORS[place % len(_COLORS)],
            marker=_MARKERS[place % len(_MARKERS)],
            linewidth=2,
            elinewidth=1,
            capsize=3,
        )
    axes.set_xscale("log", base=2)
    every = sorted({count for points in curves.values() for count in points})
    axes.set_xticks(every, [str(count) for count in every])
    axes.minorticks_off()
    axes.set(xlabel="visual tokens kept per image (log scale)", ylabel="accuracy, %", title=title)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
