"""One self-contained HTML page: a colleague can open it from an e-mail, print it, or read it on a phone.

A page is a list of blocks. Nothing is loaded from anywhere: figures are inline SVG whose text and axes follow the
reader's light or dark scheme, pictures are inline PNG, fonts are the system's. All text is escaped.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import ClassVar, Literal

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure as MatplotlibFigure
from PIL import Image

from vesalius.files import write_text
from vesalius.report.figures import GRID, INK, MUTED, SVG_STYLE

Number = float | int
Value = str | Number | tuple[Number, Number] | None
"""A table's cell: text, a number, (mean, standard deviation), or None for nothing."""


@dataclass(frozen=True)
class Heading:
    """A section's title; three or more make a line of contents under the page's title."""

    kind: ClassVar[str] = "heading"
    title: str

    @property
    def anchor(self) -> str:
        """The fragment it is reached by."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "section"


@dataclass(frozen=True)
class Text:
    """Paragraphs, ``-`` lists, ``### `` subheadings, ``**bold**``, ``*italic*`` and ```code``` in backquotes."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Code:
    """A command, a configuration: shown as it is."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Card:
    """One key number: what it is, the number as text, and what qualifies it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cards:
    """The few numbers to see first."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Figure:
    """A matplotlib figure (as SVG), or a picture ``[H, W]`` or ``[H, W, 3]`` uint8 (as PNG).

    Args:
        source: the figure or the picture.
        caption: what it shows; the same few marks as in `Text`.
        alt: for readers who cannot see it; the caption, if empty.
        wide: rather scrolled than shrunk on a narrow screen.
    """

    kind: ClassVar[str] = "figure"
    source: MatplotlibFigure | np.ndarray
    caption: str = ""
    alt: str = ""
    wide: bool = False

    @property
    def alternative(self) -> str:
        """The alternative text."""
        return self.alt or _plain(self.caption) or "figure"

    def markup(self) -> Markup:
        """Inline SVG, or an image with its data."""
        if isinstance(self.source, MatplotlibFigure):
            return Markup(_svg(self.source, self.alternative))
        height, width = self.source.shape[:2]
        alt = escape(self.alternative, quote=True)
        return Markup(f'<img alt="{alt}" width="{width}" height="{height}" src="{_png(self.source)}">')


@dataclass(frozen=True)
class Cell:
    """A table's value made ready: its text, its spread, the number to compare by."""

    text: str
    spread: str = ""
    number: float | None = None
    left: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of values; the first column names the row.

    Args:
        columns: headings.
        rows: as many values each; see `Value`.
        caption: what it shows.
        best: columns whose best value is marked, by ``max`` or ``min``.
        digits: decimals of floating-point numbers.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    caption: str = ""
    best: Mapping[str, Literal["max", "min"]] | None = None
    digits: int = 3

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} values {list(row)!r} for {len(self.columns)} columns")

    def cells(self) -> list[list[Cell]]:
        """The rows as text."""
        return [[self._cell(value) for value in row] for row in self.rows]

    def left(self, column: int) -> bool:
        """Whether a column holds text."""
        return column == 0 or any(isinstance(row[column], str) for row in self.rows)

    def is_best(self, cell: Cell, column: int) -> bool:
        """Whether a cell holds the best number of its column, there being several different ones."""
        how = (self.best or {}).get(self.columns[column])
        if how is None or cell.number is None:
            return False
        numbers = [n for row in self.rows if (n := self._cell(row[column]).number) is not None]
        return min(numbers) < max(numbers) and cell.number == (max if how == "max" else min)(numbers)

    def _cell(self, value: Value) -> Cell:
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return Cell("–")
        if isinstance(value, str):
            return Cell(value, left=True)
        if isinstance(value, tuple):
            mean, deviation = value
            spread = "" if np.isnan(deviation) else _number(deviation, self.digits)
            return Cell(_number(mean, self.digits), spread, float(mean))
        return Cell(_number(value, self.digits), number=float(value))


@dataclass(frozen=True)
class Gallery:
    """Pictures ``[H, W]`` or ``[H, W, 3]`` uint8 with captions, as many beside each other as fit.

    Args:
        items: (picture, caption) each.
        caption: what they show.
        tile: least width of a picture, rem.
    """

    kind: ClassVar[str] = "gallery"
    items: Sequence[tuple[np.ndarray, str]]
    caption: str = ""
    tile: float = 9.0

    def figures(self) -> list[Figure]:
        """One figure a picture."""
        return [Figure(picture, caption) for picture, caption in self.items]


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away behind a line of summary."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: Sequence[Block]


Block = Heading | Text | Code | Cards | Figure | Table | Gallery | Details


@dataclass(frozen=True)
class Page:
    """A page of blocks.

    >>> page = Page("Two arms", sections=[Table(["arm", "Dice"], [["a", 0.5], ["<b>", 0.625]], best={"Dice": "max"})])
    >>> "&lt;b&gt;" in page.html(), "0.625" in page.html()
    (True, True)
    """

    title: str
    subtitle: str = ""
    sections: Sequence[Block] = ()
    footer: str = ""

    def html(self) -> str:
        """The page as text."""
        headings = [block for block in self.sections if isinstance(block, Heading)]
        text = _environment().get_template("page.html").render(page=self, headings=headings)
        return _unique_ids(text)

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all.

        Raises:
            VesaliusError: the folder cannot be written.
        """
        return write_text(path, self.html())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vesalius.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"markdown": _markdown, "inline": _inline, "plain": _plain}
    return environment


def _inline(text: str) -> Markup:
    """Escaped text with bold, italic and code."""
    safe = escape(text, quote=False)
    parts = re.split(r"`([^`]+)`", safe)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\*\*(\S(?:.*?\S)?)\*\*", r"<b>\1</b>", parts[i])
        parts[i] = re.sub(r"(?<!\w)\*(\S(?:.*?\S)?)\*(?!\w)", r"<i>\1</i>", parts[i])
    return Markup("".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)))


def _markdown(text: str) -> Markup:
    """Paragraphs, lists and subheadings."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in block.splitlines()]
        if lines and lines[0].startswith("### "):
            blocks.append(f"<h3>{_inline(lines.pop(0)[4:])}</h3>")
        if lines and all(line.startswith("- ") for line in lines):
            blocks.append("<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>")
        elif lines:
            blocks.append(f"<p>{_inline(' '.join(lines))}</p>")
    return Markup("\n".join(blocks))


def _plain(text: str) -> str:
    """The text without its marks."""
    return re.sub(r"\*\*|`", "", text)


def _number(value: Number, digits: int) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace(",", "\u2009")
    small = value != 0 and abs(value) < 0.5 * 10**-digits
    return f"{value:.1e}" if small or abs(value) >= 1e6 else f"{value:.{digits}f}"


def _png(array: np.ndarray) -> str:
    """A data URL of ``[H, W]`` or ``[H, W, 3]`` uint8."""
    if array.dtype != np.uint8:
        raise ValueError(f"a picture is uint8, not {array.dtype}; scale it first")
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _svg(figure: MatplotlibFigure, alt: str) -> str:
    """The figure as an SVG element, its greys replaced by the page's colours."""
    stream = io.StringIO()
    with matplotlib.rc_context(SVG_STYLE):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows the namespaces; without them no URL is left
    svg = svg.replace("xlink:href", "href")
    for colour, variable in ((INK, "--ink"), (MUTED, "--muted"), (GRID, "--rule")):
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt, quote=True)}"', 1).strip()


def _unique_ids(html: str) -> str:
    """The page with the ids of each SVG made its own; matplotlib numbers every figure's parts from 1."""
    count = 0

    def rename(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>f{count}-", match.group())

    return re.sub(r"<svg.*?</svg>", rename, html, flags=re.DOTALL)
