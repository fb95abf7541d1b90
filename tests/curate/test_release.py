"""The loop end to end with a simulated annotator, and what a release holds."""

from __future__ import annotations

import csv
import hashlib
import json
import re

import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from monai.transforms import LoadImage

from vesalius.cli import main
from vesalius.curate.project import Atlas
from vesalius.curate.release import release
from vesalius.curate.rounds import next_round
from vesalius.curate.simulate import Annotator, annotate
from vesalius.curate.steps import run_step
from vesalius.data.table import load_table
from vesalius.errors import VesaliusError
from vesalius.images import read_volume


@pytest.fixture(scope="module")
def project(phantoms, tmp_path_factory) -> Atlas:
    """Stepped and reviewed to the end by a simulated annotator."""
    folder = tmp_path_factory.mktemp("release") / "atlas"
    words = ["curate", "atlas", "init", str(folder), "--volumes", str(phantoms / "cts")]
    words += ["--classes", f"{phantoms}/classes.yaml"]
    assert main([*words, "--predictors", *(str(phantoms / f"{name}.yaml") for name in "abc")]) == 0
    assert main(["curate", "atlas", "step", str(folder), "--simulate", str(phantoms / "truth.yaml")]) == 0
    return Atlas.open(folder)


def error(atlas: Atlas, phantoms) -> int:
    """Voxels of all structures that are not as in the truth."""
    annotator, wrong = Annotator(str(phantoms / "truth.yaml")), 0
    for case in atlas.cases():
        for name, mask in annotator.draws(atlas, case, atlas.image(case)).items():
            wrong += int((mask != atlas.current(case, name)[1]).sum())
    return wrong


def test_reviews_of_the_queue_mend_what_models_dispute(project, phantoms):
    queue = project.queue()
    assert queue and {item.state for item in queue} == {"done"}
    proposed = sum(int((project.version_mask(*key, 0) != project.current(*key)[1]).sum())
                   for key in ((item.case, item.structure) for item in queue))  # fmt: skip
    assert proposed > 0 and error(project, phantoms) < proposed / 5
    assert next_round(project).stop


def test_the_annotator_has_a_rate_and_errors(phantoms, project, tmp_path):
    atlas = Atlas.create(
        tmp_path / "atlas",
        load_table(project.path / "cases.parquet"),
        classes=project.classes,
        predictors=project.predictors,
    )
    run_step(atlas)
    first = atlas.queue()[0]
    cost = atlas.settings.minutes(first.mm3)
    assert annotate(atlas, Annotator(str(phantoms / "truth.yaml")), minutes=cost * 0.9) == []
    (review,) = annotate(atlas, Annotator(str(phantoms / "truth.yaml"), error=0.3), minutes=cost * 1.01)
    assert (review.case, review.structure) == (first.case, first.structure)
    assert review.seconds == pytest.approx(60 * cost, abs=0.1) and review.marked_mm3 == first.mm3
    truth = Annotator(str(phantoms / "truth.yaml")).draws(atlas, first.case, atlas.image(first.case))[first.structure]
    wrong = (truth != atlas.current(first.case, first.structure)[1]).sum()
    assert 0 < wrong < truth.sum()


def test_a_release_can_be_loaded_checked_and_traced(project, tmp_path, capsys):
    out = tmp_path / "dataset"
    assert main(["curate", "atlas", "assemble", str(project.path), "--out", str(out), "--licence", "CC BY 4.0"]) == 0
    assert "release 1: 6 cases" in capsys.readouterr().out
    for line in (out / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    table = load_table(out / "index.parquet")
    assert table["split"].to_list() == [project.row(case)["split"] for case in project.cases()]
    assert table["mask_classes"][0].to_list() == list(project.classes.names)
    listed = [
        case
        for key in ("training", "validation", "test")
        if json.loads((out / "dataset.json").read_text())[key]
        for case in load_decathlon_datalist(str(out / "dataset.json"), data_list_key=key)
    ]
    assert len(listed) == 6
    image, label = (LoadImage(image_only=True)(listed[0][key]) for key in ("image", "label"))
    assert image.shape == label.shape and np.allclose(image.affine, label.affine)
    rows = list(csv.DictReader((out / "provenance.csv").open()))
    reviewed = {(row["case"], row["structure"]) for row in rows if row["source"] == "revised"}
    assert reviewed == {(item.case, item.structure) for item in project.queue()}
    assert all(row["who"] == "simulated" and row["version"] == "1" for row in rows if row["source"] == "revised")
    assert all(row["models"] == "a b c" for row in rows)
    sheet = (out / "datasheet.md").read_text()
    assert "CC BY 4.0" in sheet and "simulated, first reader" in sheet
    assert "quality report" in (out / "report.html").read_text()
    # What is released says nothing of the files that the volumes came from.
    for path in out.rglob("*"):
        assert "ct_00" not in path.name
        assert path.is_dir() or not re.search(rb"ct_00\d", path.read_bytes())
    with pytest.raises(VesaliusError, match="does not change"):
        release(project, out)
    assert release(project, tmp_path / "again")["release"] == 2


def test_released_masks_are_the_reviewed_ones(project, tmp_path):
    release(project, tmp_path / "dataset")
    for case in project.cases():
        (path,) = (tmp_path / "dataset").glob(f"labels*/{case}.nii.gz")
        values = read_volume(path).array[0]
        spleen = project.current(case, "spleen")[1]
        assert np.array_equal(values == 1 + project.classes.names.index("spleen"), spleen)


def test_masks_edited_elsewhere_come_back(project, phantoms, tmp_path, capsys):
    from vesalius.curate.masks import write_values
    from vesalius.data.phantoms.volume_files import write_nifti

    case = project.cases()[-1]
    image = project.image(case)
    version, mask = project.current(case, "spleen")
    edited = mask.copy()
    edited[:2, :2, :2] = True
    turned = tmp_path / f"{case}_spleen.nii.gz"
    write_nifti(edited.astype(np.uint8), image.affine, turned, orientation="RAS")
    words = ["curate", "atlas", "import", str(project.path), str(turned), "--who", "KB", "--reader", "second"]
    assert main(words) == 0
    assert f"{case}: spleen version {version + 1}, corrected, 8 voxels" in capsys.readouterr().out
    assert np.array_equal(project.current(case, "spleen")[1], edited)
    nowhere = tmp_path / "who_knows.nii.gz"
    write_values(edited, image, nowhere)
    assert main([*words[:4], str(nowhere), "--who", "KB"]) == 2
    assert "its name says no case" in capsys.readouterr().err
    moved = tmp_path / "moved" / f"{case}_spleen.nii.gz"
    affine = image.affine.copy()
    affine[0, 3] += 30
    write_nifti(edited.astype(np.uint8), affine, moved)
    assert main([*words[:4], str(moved), "--who", "KB"]) == 2
    assert "lies 30 mm from" in capsys.readouterr().err
    assert project.newest(case, "spleen").version == version + 1
