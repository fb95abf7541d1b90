"""What the page's server refuses, one thing at a time, and that what it shows names nobody."""

from __future__ import annotations

import base64
import gzip
import json

import nibabel
import numpy as np
import pytest

from vesalius.curate.project import Atlas
from vesalius.errors import ConfigError
from vesalius.review.edits import Grid, encode, pack

pytest.importorskip("fastapi", reason="the page needs the extra vesalius[review]")

from vesalius.review import security  # needs starlette


@pytest.fixture(scope="module")
def page(serve, made):
    """Nothing here saves, so one will do."""
    return serve(made)


def _path(atlas: Atlas, rest: str) -> str:
    return f"/api/cases/{atlas.cases()[0]}/liver/{rest}"


def _judgement(atlas: Atlas, data: bytes | None = None, **changes) -> dict:
    if data is None:
        data = pack(atlas.proposal(atlas.cases()[0], "liver"), Grid.of(atlas.image(atlas.cases()[0])))
    text = base64.b64encode(data).decode()
    return {"based_on": 0, "verdict": "corrected", "who": "KB", "mask": text, **changes}


def test_nothing_is_told_without_the_token(page):
    for path in ("/", "/api/queue", "/page/review.js", _path(page.atlas, "versions/0")):
        assert page.ask(path, cookie="")[0] == 401
        assert page.ask(path, cookie=f"vesalius-{page.port}=wrong")[0] == 401
    assert page.ask("/api/queue?token=" + page.token, cookie="")[0] == 401  # in the link of the page only
    status, content = page.ask("/?token=" + page.token, cookie="")
    assert status == 200 and b"<title>Vesalius review" in content
    kept = page.headers["set-cookie"]
    assert "HttpOnly" in kept and "SameSite=Strict" in kept
    assert page.ask("/api/queue")[0] == 200


def test_without_a_token_only_this_machine_may_listen():
    security.check_exposure("127.0.0.1", None)
    with pytest.raises(ConfigError, match="leave the token on"):
        security.check_exposure("0.0.0.0", None)


def test_a_foreign_name_for_this_machine_is_refused(page):
    assert page.ask("/api/queue", host="evil.example")[0] == 421  # DNS rebinding
    assert page.ask("/api/queue", host=f"localhost:{page.port}")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"x_vesalius": ""},  # a form or a script of another site cannot add the header
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},  # another server on this machine
    ],
)
def test_changes_come_from_the_page_alone(page, headers):
    status, answer = page.post(_path(page.atlas, "reviews"), _judgement(page.atlas), **headers)
    assert status == 403 and "review page" in answer["message"]
    assert not page.atlas.reviews(page.atlas.cases()[0], "liver")


@pytest.mark.parametrize(
    "path",
    [
        "/page/../server.py",
        "/page/..%2Fserver.py",
        "/page/%2e%2e/%2e%2e/errors.py",
        "/page//etc/passwd",
        "/../../../etc/passwd",
        "/api/cases/..%2F..%2Fetc/liver",
        "/api/cases/CASE/..%2F..%2Fatlas",
        "/api/cases/CASE/liver/proposals/..%2F..%2F..%2Fatlas.yaml",
        "/api/cases/CASE/liver/maps/..%2Fsummary.json",
        "/api/cases/CASE/liver/versions/..%2F0",
        "/api/cases/CASE/liver/versions/-1",
        "/api/cases/CASE/liver/versions/9",
        "/api/cases/CASE/image/7",
        "/api/cases/CASE/spine",
        "/docs",
        "/openapi.json",
    ],
)
def test_paths_lead_nowhere_else(page, path):
    status, content = page.ask(path.replace("CASE", page.atlas.cases()[0]))
    assert status in (404, 422)
    assert b"root:" not in bytes(str(content), "utf-8") and "predictors" not in str(content)


def test_uploads_have_a_limit_that_a_lie_does_not_lift(serve, made):
    page = serve(made, limit=1000)
    assert page.post(_path(made, "reviews"), b"x" * 1001)[0] == 413
    told_nothing = iter([b"y" * 600, b"y" * 600])  # sent in chunks, without a length
    status, answer = page.post(_path(made, "reviews"), told_nothing)
    assert status == 413 and "compress" in answer["message"]


def _nifti(values: np.ndarray, affine: np.ndarray) -> bytes:
    return gzip.compress(nibabel.Nifti1Image(values, affine).to_bytes())


def _bomb(grid: Grid) -> bytes:
    return gzip.compress(encode(np.zeros(grid.size, bool), grid) + bytes(200 * 2**20), 1)


WRONG = {
    "no NIfTI": lambda grid, ras: b"not a volume at all" * 40,
    "compression is damaged": lambda grid, ras: b"\x1f\x8b" + b"broken" * 40,
    "ends too early": lambda grid, ras: _nifti(np.zeros(grid.size[::-1], np.uint8), ras)[:-30],
    "larger than a mask": lambda grid, ras: _bomb(grid),
    "ends before its voxels": lambda grid, ras: nibabel.Nifti1Image(
        np.zeros(grid.size[::-1], np.uint8), ras
    ).to_bytes()[:-9],
    "voxels, the image": lambda grid, ras: _nifti(np.zeros((7, 8, 9), np.uint8), ras),
    "mm off the image": lambda grid, ras: _nifti(np.zeros(grid.size[::-1], np.uint8), ras + np.eye(4, k=3) * 5),
    "not whole numbers": lambda grid, ras: _nifti(np.zeros(grid.size[::-1], np.float32), ras),
    "not 0 and 1": lambda grid, ras: _nifti(np.full(grid.size[::-1], 2, np.uint8), ras),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_mask_that_does_not_fit_is_refused(page, message):
    case = page.atlas.cases()[0]
    grid = Grid.of(page.atlas.image(case))
    status, answer = page.post(_path(page.atlas, "reviews"), _judgement(page.atlas, WRONG[message](grid, grid.affine)))
    assert status == 422 and message in answer["message"]
    assert not page.atlas.reviews(case, "liver")


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"verdict": "delete"}, "verdict"),
        ({"who": "   "}, "who"),
        ({"reader": "third"}, "reader"),
        ({"based_on": -1}, "based_on"),
        ({"based_on": 5}, "version 5"),
        ({"seconds": 1e9}, "seconds"),
        ({"comment": "x" * 4001}, "comment"),
        ({"mask": None}, "needs its mask"),
        ({"mask": "!!!"}, "base64"),
    ],
)
def test_a_malformed_judgement_is_refused(page, changes, place):
    status, answer = page.post(_path(page.atlas, "reviews"), _judgement(page.atlas, **changes))
    assert status == 422 and place in answer["message"]
    assert "x" * 100 not in answer["message"]
    assert page.post(_path(page.atlas, "reviews"), b"{broken")[0] == 422
    assert not page.atlas.reviews(page.atlas.cases()[0], "liver")


def test_what_leaves_the_project_names_nobody(page):
    project = page.atlas
    case = project.cases()[0]
    told = [json.dumps(page.ask(path)[1]) for path in ("/api/project", "/api/queue", f"/api/cases/{case}")]
    told.append(json.dumps(page.ask(f"/api/cases/{case}/liver")[1]))
    for path in ("versions/0", "proposals/unet", "maps/attention"):
        told.append(str(gzip.decompress(page.ask(_path(project, path))[1])[:352]))
    told.append(str(page.ask(f"/api/cases/{case}/image/0")[1][:352]))
    assert "DOE" in project.image_path(case).name  # the project does know
    for text in told:
        assert "DOE" not in text and str(project.path) not in text and "scans" not in text


def test_every_answer_says_what_a_browser_may_do_with_it(page):
    for path in ("/", "/api/queue", "/nowhere"):
        page.ask(path)
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "no-referrer"
