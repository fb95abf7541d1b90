"""An annotation project: identifiers that tell nothing, reviews that are neither lost nor half there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest

from vesalius.curate.masks import read_values, write_values
from vesalius.curate.project import Atlas
from vesalius.curate.records import Conflict
from vesalius.data.class_tables import ClassTable
from vesalius.data.index import index
from vesalius.data.phantoms.torso import ct
from vesalius.errors import VesaliusError

TABLE = ClassTable.from_dict({"classes": ["liver", "spleen"]})


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Two phantom CTs under a patient's name, without masks, and their index."""
    folder = tmp_path_factory.mktemp("volumes")
    ct(folder / "phantoms", n=2, size=(24, 24, 24), workers=1)
    for number, path in enumerate(sorted((folder / "phantoms" / "imagesTr").iterdir())):
        target = folder / "plain" / f"Doe_Jane_{number}.nii.gz"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    return folder / "plain"


@pytest.fixture
def atlas(volumes, tmp_path):
    table = index(volumes, tmp_path / "index.parquet", volumes=True)
    return Atlas.create(tmp_path / "atlas", table, classes=TABLE, predictors={"a": {"masks": "nowhere"}})


def propose(atlas: Atlas, case: str, structure: str = "liver") -> np.ndarray:
    """An average proposal: the middle of the volume."""
    image = atlas.image(case)
    mask = np.zeros(image.size, bool)
    mask[tuple(slice(side // 3, side // 2) for side in image.size)] = True
    write_values(mask, image, atlas.path / "maps" / case / "average" / f"{structure}.nii.gz")
    return mask


def test_cases_go_by_names_that_say_nothing(atlas, volumes):
    again = Atlas.open(atlas.path)
    assert again.cases() == atlas.cases()
    assert again.classes == atlas.classes and again.targets == ("liver", "spleen")
    assert not any("doe" in case.lower() for case in atlas.cases())
    case = atlas.cases()[0]
    propose(atlas, case)
    atlas.save_review(case, "liver", None, based_on=0, verdict="accept", who="kb")
    written = [path for path in atlas.path.rglob("*") if path.is_file() and path.name != "cases.parquet"]
    assert len(written) >= 4
    for path in written:
        assert "Doe" not in str(path.relative_to(atlas.path))
        assert b"Doe" not in path.read_bytes()


def test_reviews_build_on_each_other_and_refuse_what_is_stale(atlas):
    case = atlas.cases()[0]
    assert atlas.queue() == [] and atlas.reviews(case, "liver") == []
    proposed = propose(atlas, case)
    version, mask = atlas.current(case, "liver")
    assert version == 0 and np.array_equal(mask, proposed)

    edited = proposed.copy()
    edited[0, 0, :5] = True
    saved = atlas.save_review(case, "liver", edited, based_on=0, verdict="corrected", who="kb", seconds=12.34)
    assert (saved.version, saved.changed, saved.seconds) == (1, 5, 12.3)
    with pytest.raises(Conflict, match="kb saved version 1") as conflict:
        atlas.save_review(case, "liver", proposed, based_on=0, verdict="corrected", who="mz")
    assert conflict.value.newest == saved
    atlas.save_review(case, "liver", None, based_on=1, verdict="cannot_tell", who="mz", reader="second")
    version, mask = atlas.current(case, "liver")
    assert version == 2 and np.array_equal(mask, edited)
    assert atlas.state(case, "liver") == "cannot_tell" and atlas.state(case, "spleen") == "open"
    assert np.array_equal(atlas.version_mask(case, "liver", 1), edited)
    assert np.array_equal(atlas.version_mask(case, "liver", 0), proposed)


def test_what_was_accepted_outlives_its_proposal(atlas):
    case = atlas.cases()[1]
    proposed = propose(atlas, case)
    atlas.save_review(case, "liver", None, based_on=0, verdict="accept", who="kb")
    write_values(np.zeros_like(proposed), atlas.image(case), atlas.path / f"maps/{case}/average/liver.nii.gz")
    assert np.array_equal(atlas.current(case, "liver")[1], proposed)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"mask": np.zeros((2, 2, 2), bool)}, "a mask of"),
        ({"mask": None}, "without a mask"),
        ({"who": " "}, "name or initials"),
        ({"verdict": "fine"}, "cannot be 'fine'"),
        ({"based_on": 3}, "no version 3"),
        ({"structure": "livr"}, "did you mean 'liver'"),
        ({"case": "../x"}, "no case"),
    ],
)
def test_reviews_that_cannot_be(atlas, change, error):
    case = atlas.cases()[0]
    mask = propose(atlas, case)
    asked = {"case": case, "structure": "liver", "mask": mask, "based_on": 0, "verdict": "corrected", "who": "kb"}
    asked |= change
    with pytest.raises(VesaliusError, match=error):
        atlas.save_review(asked.pop("case"), asked.pop("structure"), asked.pop("mask"), **asked)
    assert atlas.reviews(case, "liver") == []


def _save(atlas: Atlas, who: str, gate, results) -> None:
    case = atlas.cases()[0]  # the table was read before the fork: polars' threads do not survive one
    gate.wait()
    try:
        atlas.save_review(case, "liver", None, based_on=0, verdict="accept", who=who)
        results.put(who)
    except Conflict:
        results.put("conflict")


def test_of_two_writers_one_wins(atlas):
    case = atlas.cases()[0]
    propose(atlas, case)
    context = multiprocessing.get_context("fork")
    gate, results = context.Barrier(4), context.Queue()
    writers = [context.Process(target=_save, args=(atlas, f"w{k}", gate, results)) for k in range(4)]
    for writer in writers:
        writer.start()
    said = sorted(results.get(timeout=20) for _ in writers)
    for writer in writers:
        writer.join()
    assert said[:3] == ["conflict"] * 3
    reviews = atlas.reviews(case, "liver")
    assert [one.who for one in reviews] == [said[3]]
    assert [path.name for path in (atlas.path / "reviews" / case / "liver").glob("*.nii.gz")] == [reviews[0].mask]


def _save_until(atlas: Atlas, event: int) -> None:
    """One save in a process that is killed when it comes to the given file operation."""
    case = atlas.cases()[0]
    version, mask = atlas.current(case, "liver")
    mask[0, 0, version % mask.shape[2]] ^= True
    seen = 0

    def watch(name: str, args: tuple) -> None:
        nonlocal seen
        writes = name == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or name in ("os.mkdir", "os.rename", "os.link", "os.remove", "os.chmod", "tempfile.mkstemp"):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    atlas.save_review(case, "liver", mask, based_on=version, verdict="corrected", who="kb")
    os._exit(0)


def test_a_save_survives_kill_at_ten_points(atlas):
    """Killed at each file operation in turn: the review is there whole or not at all, and the next one goes on."""
    case = atlas.cases()[0]
    propose(atlas, case)
    ends = []
    for event in range(1, 40):
        before = len(atlas.reviews(case, "liver"))
        process = multiprocessing.get_context("fork").Process(target=_save_until, args=(atlas, event))
        process.start()
        process.join(timeout=30)
        reviews = atlas.reviews(case, "liver")
        ends.append((process.exitcode, len(reviews) - before))
        assert [one.version for one in reviews] == list(range(1, len(reviews) + 1))
        for one in reviews:
            assert read_values(atlas.path / "reviews" / case / "liver" / one.mask).any()
        if process.exitcode == 0:
            break
    killed = ends[:-1]
    assert len(killed) >= 10 and all(code == -signal.SIGKILL for code, _ in killed)
    assert {more for _, more in killed} <= {0, 1} and killed[0] == (-signal.SIGKILL, 0)
    assert ends[-1] == (0, 1)
