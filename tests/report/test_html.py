"""Pages: well-formed, self-contained, safe with any text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure as MatplotlibFigure

from vesalius.report.figures import learning_curves
from vesalius.report.html import Card, Cards, Code, Details, Figure, Gallery, Heading, Page, Table, Text

VOID = {"meta", "img", "link", "br", "hr", "input"}
EVIL = '<script>alert("1")</script> & "quoted"'


class Parser(HTMLParser):
    """Keeps the open elements, all ids and all texts."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.ids, self.tags, self.attributes = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _plot(title: str = "loss") -> MatplotlibFigure:
    return learning_curves({title: {"step": [0, 1, 2], "loss": [3.0, 2.0, 1.0]}}, ["loss"], titles={"loss": title})


def _page(text: str = "plain") -> Page:
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
    blocks = [
        Heading(text),
        Text(f"{text} **bold** *italic* `a * b * c`\n\n- one\n- two\n\n### part\n{text}"),
        Code(text),
        Cards([Card(text, text, text)]),
        Figure(_plot(text), text, wide=True),
        Figure(picture, text, alt=text),
        Table([text, "n"], [[text, 1], ["b", None]], text),
        Gallery([(picture, text)], text),
        Heading("Second"),
        Details(text, [Heading("Third"), Figure(_plot(), text)]),
        Heading("Last"),
    ]
    return Page(text, text, blocks, footer=text)


@pytest.mark.parametrize("text", ["plain", EVIL])
def test_page_is_well_formed_and_loads_nothing(text, tmp_path):
    html = _page(text).save(tmp_path / "page.html").read_text(encoding="utf-8")
    parsed = Parser(html)
    assert not parsed.open
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "script" not in parsed.tags
    assert not re.search(r"https?:|//[a-z]+\.", html)
    for name, value in parsed.attributes:
        if name in ("src", "href"):
            assert value.startswith(("#", "data:image/png;base64,"))
        if name == "href":
            assert value[1:] in parsed.ids or value.startswith("data:")


def test_every_picture_has_an_alternative():
    parsed = Parser(_page("a < b").html())
    alts = [value for name, value in parsed.attributes if name in ("alt", "aria-label")]
    assert parsed.tags.count("img") + parsed.tags.count("svg") <= len(alts)
    assert "a < b" in alts and all(alts)


def test_same_page_same_bytes():
    assert _page().html() == _page().html()


def test_figures_take_the_page_colours():
    html = Page("p", sections=[Figure(_plot())]).html()
    assert "var(--ink)" in html and "var(--rule)" in html and "#24292f" not in html


def test_table_marks_the_best_of_comparable_numbers():
    rows = [["a", (0.5, 0.1), 2.0], ["b", (0.7, float("nan")), 1.0], ["c", None, 3.0]]
    table = Table(["arm", "Dice", "HD95"], rows, best={"Dice": "max", "HD95": "min"})
    cells = table.cells()
    assert [[table.is_best(cell, k) for k, cell in enumerate(row)] for row in cells] == [
        [False, False, False],
        [False, True, True],
        [False, False, False],
    ]
    assert (cells[0][1].text, cells[0][1].spread, cells[1][1].spread, cells[2][1].text) == ("0.500", "0.100", "", "–")
    equal = Table(["arm", "n"], [["a", 1.0], ["b", 1.0]], best={"n": "max"})
    assert not equal.is_best(equal.cells()[0][1], 1)
    with pytest.raises(ValueError, match="2 values"):
        Table(["arm"], [["a", 1.0]])


def test_numbers_are_readable():
    cells = Table(["a", "b", "c", "d"], [["x", 12345, 0.00001, True]]).cells()[0]
    assert [cell.text for cell in cells[1:]] == ["12\u2009345", "1.0e-05", "yes"]
