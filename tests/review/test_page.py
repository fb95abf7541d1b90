"""The page as a reader uses it, in a real browser: look, draw, save, come back, disagree, collide.

With ``VESALIUS_SCREENSHOTS=docs/figures/annotate`` the guide's pictures are made on the way, from a finer phantom.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from vesalius.curate.masks import read_values
from vesalius.curate.project import Atlas
from vesalius.review.edits import Grid

pytest.importorskip("fastapi", reason="the page needs the extra vesalius[review]")

SHOTS = os.environ.get("VESALIUS_SCREENSHOTS")
SIZE, WINDOW = ((56, 112, 112), (1440, 900)) if SHOTS else ((24, 40, 40), (1000, 640))

STROKES = 3
"""How often a stroke is tried: a browser that draws in software on a busy machine may miss a key."""


@pytest.fixture(scope="module")
def served(tmp_path_factory, make_project, serve):
    """One project for all: every test has structures of its own in the queue."""
    atlas = make_project(tmp_path_factory.mktemp("abdomen-ct"), cases=3, size=SIZE)
    return serve(atlas, who="KB")


@pytest.fixture(scope="module")
def visit(browser):
    """A function that opens a served page as a new person would."""
    contexts = []

    def start(served, *, shown: str = "#layers li"):
        context = browser.new_context(viewport={"width": WINDOW[0], "height": WINDOW[1]})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.asked, page.wrong = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.goto(served.link)
        page.wait_for_selector(shown)
        return page

    yield start
    for context in contexts:
        assert not [error for page in context.pages for error in page.wrong]
        context.close()


@pytest.fixture(scope="module")
def page(visit, served):
    """KB's page."""
    return visit(served)


@pytest.fixture
def atlas(served) -> Atlas:
    """The project."""
    return served.atlas


def _open(page, served, item) -> None:
    """Follow a link to a structure, and take the tool that a page starts with."""
    page.goto(f"http://127.0.0.1:{served.port}/#{item.case}/{item.structure}")
    _shows(page, item)
    page.keyboard.press("r")


def _shows(page, item) -> None:
    page.locator("#loading").wait_for(state="hidden")
    current = page.locator("#queue [aria-current=true]", has_text=item.case)
    current.filter(has_text=item.structure.replace("_", " ").capitalize()).wait_for()
    page.wait_for_load_state("networkidle")  # a page that had saved may have been on its way to the next structure
    current.filter(has_text=item.structure.replace("_", " ").capitalize()).wait_for()
    page.locator("body[aria-busy=false]").wait_for()


def _shot(page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(1500)
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SHOTS, f"{name}.png"))


def _place(page, across: float = 0.25, down: float = 0.25) -> tuple[float, float]:
    """A point of the page in the axial tile, which is the upper left quarter."""
    box = page.locator("#over").bounding_box()
    return box["x"] + across * box["width"], box["y"] + down * box["height"]


def _paint(page, start: tuple[float, float], *, right: float = 0, down: float = 0) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] + right, start[1] + down, steps=4)
    page.mouse.up()


def _ml(page) -> float:
    return float(page.locator("[data-layer=mask]").get_attribute("data-ml"))


def _position(page) -> tuple[int, ...]:
    return tuple(int(part) - 1 for part in page.locator("#position").inner_text().split(" · ")[0].split(", "))


def _says(page, text: str) -> None:
    page.locator("#toast", has_text=re.compile(text)).wait_for()


def _on_disk(atlas: Atlas, case: str, voxel: tuple[int, ...]) -> tuple[int, ...]:
    """Where a voxel of the page lies in ``[D, H, W]``."""
    grid = Grid.of(atlas.image(case))
    turned, affine = grid.out(np.zeros(grid.size, np.uint8))
    turned = turned.copy()
    turned[voxel] = 1
    return tuple(int(at[0]) for at in np.nonzero(grid.back(turned, affine)))


def test_open_scroll_paint_save_reload(page, served, atlas):
    assert "token" not in page.url
    item = atlas.queue()[0]
    _open(page, served, item)
    assert page.locator("#structure").inner_text().lower() == item.structure

    axial = _place(page)
    page.mouse.click(*axial)
    before = _position(page)
    page.mouse.wheel(0, -100)
    assert _position(page) == (before[0], before[1], before[2] + 1)
    page.keyboard.press(",")
    assert _position(page) == before

    outside = _place(page, 0.09, 0.42)  # beside the patient
    page.mouse.click(*outside)
    voxel = _position(page)
    old = _ml(page)
    page.keyboard.press("b")
    _paint(page, outside, right=20)
    drawn = _ml(page)
    assert drawn > old
    page.keyboard.press("z")
    assert _ml(page) == old
    page.keyboard.press("y")
    assert _ml(page) == drawn
    assert page.locator("#accept").is_disabled()

    page.keyboard.press("c")
    page.keyboard.type("dome was missing")
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    _says(page, "Saved as version 1")
    record = atlas.reviews(item.case, item.structure)[0]
    assert (record.who, record.verdict, record.comment) == ("KB", "corrected", "dome was missing")
    assert record.seconds > 0
    kept, proposed = atlas.current(item.case, item.structure)[1], atlas.proposal(item.case, item.structure)
    place = _on_disk(atlas, item.case, voxel)
    assert kept[place] and not proposed[place]
    assert record.changed == (kept != proposed).sum()
    current = page.locator("#queue [aria-current=true]", has_text=item.case).filter(
        has_text=item.structure.capitalize()
    )
    current.wait_for(state="hidden")  # the next one opens by itself

    _open(page, served, item)
    page.reload()
    _shows(page, item)
    assert _ml(page) == drawn
    assert "KB corrected, first reader" in page.locator("#history").inner_text().replace("\n", " ")
    assert re.match(r"[1-9] of 9 structures", page.locator("#progress-text").inner_text())
    assert all(url.startswith((f"http://127.0.0.1:{served.port}/", "data:", "blob:")) for url in page.asked)


def test_the_keyboard_is_enough(page, served, atlas):
    first, second, third = atlas.queue()[1:4]
    _open(page, served, first)
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    _shot(page, "keys")
    page.keyboard.press("Escape")
    page.locator("#help").wait_for(state="hidden")  # until then the keys are the dialog's
    old = _ml(page)
    for key in ("e", "+", "+", "o", "v", "v", "v", "v", "w", "1", "m", "m", "m", "]", "Home", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    for _ in range(STROKES):
        page.keyboard.press("e")
        page.keyboard.down(" ")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowUp")
        page.keyboard.up(" ")
        if _ml(page) < old:
            break
    assert _ml(page) < old
    page.keyboard.press("j")  # to the next one, with a change that is not saved
    page.locator("#leave").wait_for()
    page.keyboard.press("Escape")
    assert _ml(page) < old
    page.keyboard.press("o")
    page.keyboard.press("s")
    _says(page, "Saved as version 1")
    _shows(page, second)  # the next one opens by itself
    page.keyboard.press("a")
    _says(page, "accepted")
    _shows(page, third)
    page.keyboard.press("x")
    _says(page, "could not tell")
    given = [atlas.newest(item.case, item.structure).verdict for item in (first, second, third)]
    assert given == ["corrected", "accept", "cannot_tell"]
    kept = atlas.current(second.case, second.structure)[1]
    np.testing.assert_array_equal(kept, atlas.proposal(second.case, second.structure))


def test_one_key_leads_to_where_the_models_disagree(page, served, atlas):
    item = atlas.queue()[7]
    _open(page, served, item)
    page.keyboard.press("h")
    page.keyboard.press("g")
    _says(page, "Here the models disagree most")
    heat = read_values(atlas.map_path(item.case, "attention", item.structure))
    assert heat[_on_disk(atlas, item.case, _position(page))] >= 0.8 * heat.max()
    _shot(page, "heat")
    for key in ("h", "v", "]", "]", "]", "b"):
        page.keyboard.press(key)
    page.keyboard.down(" ")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "ArrowRight"):
        page.keyboard.press(key)
    page.keyboard.up(" ")
    page.mouse.move(*_place(page, 0.34, 0.5))
    _shot(page, "brush")
    for key in ("z", "Home", "v", "v", "v"):
        page.keyboard.press(key)


def test_a_second_reader_judges_first_and_then_sees_how_far_apart_they_are(page, served, atlas):
    item = atlas.queue()[4]
    proposed = atlas.proposal(item.case, item.structure)
    mask = proposed.copy()
    mask[:, : int(np.nonzero(mask)[1].mean())] = False
    atlas.save_review(item.case, item.structure, mask, based_on=0, verdict="corrected", who="Ada", comment="too large")
    page.click("#reader-second")
    _open(page, served, item)
    history = page.locator("#history").inner_text().replace("\n", " ")
    assert "Ada has judged" in history and "too large" not in history
    assert page.locator("#history button").count() == 0 and page.locator("#agreement").is_hidden()
    page.keyboard.press("a")
    _says(page, "Saved as version 2")
    page.locator("#agreement").wait_for()
    told = float(page.locator("#agreement-text b").inner_text())
    assert told == pytest.approx(2 * (mask & proposed).sum() / (mask.sum() + proposed.sum()), abs=1e-3)
    assert "too large" in page.locator("#history").inner_text()
    assert page.locator("#layers", has_text="Ada, version 1").count() == 1
    page.locator("#filters button", has_text="Differ").click()
    assert page.locator("#queue li", has_text=f"{told:.2f}").count() == 1
    _shot(page, "second-reader")
    page.locator("#filters button", has_text="To do").click()
    page.click("#reader-first")


def test_two_people_on_one_structure_lose_nothing(page, visit, served, atlas):
    item = atlas.queue()[5]
    other = visit(served)
    other.fill("#who", "Ben")
    other.keyboard.press("Escape")
    amounts = []
    for one, down in ((page, 0.38), (other, 0.1)):
        _open(one, served, item)
        one.keyboard.press("b")
        _paint(one, _place(one, 0.1, down), right=25 if one is page else 50)
        amounts.append(_ml(one))
    page.keyboard.press("s")
    _says(page, "Saved as version 1")
    other.keyboard.press("s")
    other.locator("#conflict").wait_for()
    told = other.locator("#conflict-text").inner_text()
    assert "KB corrected this structure as version 1" in told and "you opened version 0" in told
    _shot(other, "conflict")
    other.click("#conflict-theirs")
    _says(other, "KB's version 1")
    assert _ml(other) == amounts[0] != amounts[1]
    other.keyboard.press("z")
    assert _ml(other) == amounts[1]
    other.keyboard.press("s")  # now knowingly on top
    _says(other, "Saved as version 2")

    _open(page, served, item)
    assert _ml(page) == amounts[1]
    atlas.save_review(item.case, item.structure, None, based_on=2, verdict="cannot_tell", who="Cleo")
    for number in range(STROKES):
        page.keyboard.press("b")
        _paint(page, _place(page, 0.1, 0.2 + 0.05 * number), right=50)  # another place than before
        if _ml(page) != amounts[1]:
            break
    page.keyboard.press("s")
    page.click("#conflict-mine")
    _says(page, "Saved as version 4")
    assert [one.who for one in atlas.reviews(item.case, item.structure)] == ["KB", "Ben", "Cleo", "KB"]


def test_fill_between_range_and_files(page, served, atlas, tmp_path):
    item = atlas.queue()[6]
    _open(page, served, item)
    spot = _place(page, 0.1, 0.42)  # air beside the patient
    page.mouse.click(*spot)
    voxel = _position(page)
    page.keyboard.press("b")
    start = _ml(page)
    _paint(page, spot)
    one = _ml(page)
    for _ in range(4):
        page.keyboard.press(".")
    _paint(page, spot)
    two = _ml(page)
    page.keyboard.press("f")
    _says(page, "3 axial slices were filled")
    assert two - one == pytest.approx(one - start) and two > one
    assert _ml(page) - two == pytest.approx(3 * (two - one))  # discs like those at both ends

    page.keyboard.press("t")
    page.fill("#low", "0")
    page.keyboard.press("Tab")
    before = _ml(page)
    page.locator("#over").focus()
    _paint(page, _place(page, 0.14, 0.46), right=5)  # still air, which is not from 0 HU up
    assert _ml(page) == before
    page.keyboard.press("t")

    grid = Grid.of(atlas.image(item.case))
    mask = np.zeros(grid.size, np.uint8)
    mask[_on_disk(atlas, item.case, voxel)] = 1
    nibabel.save(nibabel.Nifti1Image(mask.T, grid.affine), tmp_path / "edited.nii.gz")
    page.set_input_files("#file", tmp_path / "edited.nii.gz")
    _says(page, "The mask is now the file's")
    page.keyboard.press("s")
    _says(page, "Saved as version 1")
    np.testing.assert_array_equal(atlas.current(item.case, item.structure)[1], mask.astype(bool))
    (tmp_path / "notes.nii.gz").write_text("no volume")
    page.set_input_files("#file", tmp_path / "notes.nii.gz")
    _says(page, "Not taken: the file is no NIfTI")


def test_without_the_viewer_the_page_says_how_to_get_it(visit, serve, made, monkeypatch, tmp_path):
    from vesalius.review import viewer

    monkeypatch.setattr(viewer, "FILE", tmp_path / "nothing.js")
    page = visit(serve(made), shown="#loading p")
    page.locator("#loading p", has_text="--download").wait_for()
