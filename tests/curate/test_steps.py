"""Steps of a project: proposals, maps and the queue; what a kill leaves; engines."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from vesalius.cli import main
from vesalius.curate.masks import read_values
from vesalius.curate.project import KINDS, Atlas
from vesalius.curate.steps import run_step, work
from vesalius.errors import VesaliusError


def begin(root: Path, where: Path, predictors: str = "abc", **options: str) -> Atlas:
    words = ["curate", "atlas", "init", str(where), "--volumes", str(root / "cts"), "--classes", f"{root}/classes.yaml"]
    words += ["--predictors", *(str(root / f"{name}.yaml") for name in predictors)]
    assert main([*words, *(word for name, value in options.items() for word in (f"--{name}", value))]) == 0
    return Atlas.open(where)


def test_a_step_ranks_the_cases_that_models_dispute(phantoms, tmp_path, capsys):
    atlas = begin(phantoms, tmp_path / "atlas")
    assert main(["curate", "atlas", "step", str(atlas.path)]) == 0
    said = capsys.readouterr().out
    assert "6 of 6 cases worked on" in said and "seconds a case: a " in said and "1000 more cases take" in said
    by_path = {atlas.image_path(case).name: case for case in atlas.cases()}
    hard = {by_path[name] for name in ("ct_001.nii.gz", "ct_002.nii.gz")}
    queue = atlas.queue()
    assert {item.case for item in queue} == hard and queue[0].mm3 > 0 and queue[0].minutes > 0
    assert {item.structure for item in queue} >= {"liver", "spleen"}
    case = queue[0].case
    assert list(atlas.proposals(case, "liver")) == ["average", "a", "b", "c"]
    proposals = np.stack([atlas.proposal(case, "liver", name) for name in "abc"])
    attended = read_values(atlas.map_path(case, "attention", "liver")) > 0
    disputed = proposals.any(0) & ~proposals.all(0)
    assert attended.any() and not (attended & ~disputed).any()
    easy = next(case for case in atlas.cases() if case not in hard)
    assert atlas.map_path(easy, "attention", "liver") is None and atlas.map_path(easy, "average", "liver")
    # Nothing is done twice.
    assert run_step(atlas).lines()[0].startswith("0 of 6 cases")
    assert main(["curate", "atlas", "status", str(atlas.path)]) == 0
    assert "6 of 6" in capsys.readouterr().out


def test_a_tumour_is_part_of_its_organ(phantoms, tmp_path):
    atlas = begin(phantoms, tmp_path / "atlas", predictors="a")
    for case in atlas.cases():
        assert work(atlas.only(case)).failed == {}
    with_tumour = [case for case in atlas.cases() if atlas.proposal(case, "liver_tumor", "a").any()]
    assert with_tumour
    for case in with_tumour:
        tumour = atlas.proposal(case, "liver_tumor", "a")
        assert (atlas.proposal(case, "liver", "a") & tumour).sum() == tumour.sum()
        assert (atlas.proposal(case, "liver") & tumour).sum() == tumour.sum()


def test_failures_are_named_and_the_rest_goes_on(phantoms, tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("command: 'false {image} {out}'\n")
    atlas = begin(phantoms, tmp_path / "atlas", predictors="a")
    broken = {**atlas.predictors, "bad": {"command": "false {image} {out}"}}
    changed = Atlas(atlas.path, atlas.classes, broken, atlas.targets, atlas.settings)
    changed.save()
    report = run_step(Atlas.open(atlas.path))
    assert len(report.failed) == 6 and "ended with code 1" in next(iter(report.failed.values()))["bad"]
    assert all(atlas.map_path(case, "average", "liver") for case in atlas.cases())
    assert main(["curate", "atlas", "step", str(atlas.path)]) == 1
    assert "ct_00" not in "\n".join(report.lines())


def test_a_command_gets_a_nameless_volume_and_is_asked_once(phantoms, tmp_path):
    script = tmp_path / "tool.py"
    script.write_text(
        "import sys, nibabel, numpy, pathlib\n"
        "image = nibabel.load(sys.argv[1])\n"
        "pathlib.Path(sys.argv[3]).open('a').write(sys.argv[1] + '\\n')\n"
        "mask = (numpy.asarray(image.dataobj) > 40).astype('uint8')\n"
        "nibabel.Nifti1Image(mask, image.affine).to_filename(sys.argv[2] + '/liver.nii.gz')\n"
        "nibabel.Nifti1Image(mask, image.affine).to_filename(sys.argv[2] + '/unknown_thing.nii.gz')\n"
    )
    log = tmp_path / "calls.txt"
    predictor = tmp_path / "tool.yaml"
    predictor.write_text(f"command: '{sys.executable} {script} {{image}} {{out}} {log}'\n")
    (phantoms / "tool.yaml").write_text(predictor.read_text())
    atlas = begin(phantoms, tmp_path / "atlas", predictors=["a", "tool"])
    only = atlas.only(atlas.cases()[0])
    assert work(only).failed == {} and work(only).seconds == {}
    calls = log.read_text().splitlines()
    assert len(calls) == 1 and calls[0].endswith("case_0000.nii.gz") and "ct_00" not in calls[0]
    case = atlas.cases()[0]
    found = atlas.proposal(case, "liver", "tool")
    assert np.array_equal(found, atlas.image(case).array[0] > 40)
    assert "spleen" not in atlas.done("tool", case)["structures"]


def _work_until(atlas: Atlas, event: int) -> None:
    seen = 0

    def watch(name: str, args: tuple) -> None:
        nonlocal seen
        if name in ("os.rename", "os.remove", "tempfile.mkstemp"):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    work(atlas)
    os._exit(0)


def test_a_step_survives_kill_at_ten_points(phantoms, tmp_path):
    """Killed ever later in a case: what there is, is whole; going on ends as if nothing had happened."""
    atlas = begin(phantoms, tmp_path / "atlas")
    whole = begin(phantoms, tmp_path / "whole")
    case = next(case for case in atlas.cases() if atlas.image_path(case).name == "ct_001.nii.gz")
    work(whole.only(case))
    codes = []
    for event in (2, 4, 6, 8, 11, 14, 18, 22, 26, 30, 34, 40, 10_000):
        process = multiprocessing.get_context("fork").Process(target=_work_until, args=(atlas.only(case), event))
        process.start()
        process.join(timeout=60)
        codes.append(process.exitcode)
        for path in atlas.path.rglob("*.nii.gz"):
            if not path.name.startswith("."):
                read_values(path)
        for path in atlas.path.rglob("*.json"):
            if not path.name.startswith("."):
                json.loads(path.read_text())
    assert codes.count(-signal.SIGKILL) >= 10 and codes[-1] == 0
    assert atlas.summary(case) == whole.summary(case)
    for structure in atlas.classes.names:
        for kind in KINDS:
            one, other = atlas.map_path(case, kind, structure), whole.map_path(case, kind, structure)
            assert (one is None) == (other is None)
            if one is not None:
                assert np.array_equal(read_values(one), read_values(other))


def test_two_steps_at_once_are_refused(phantoms, tmp_path):
    from vesalius.curate.steps import working_on

    atlas = begin(phantoms, tmp_path / "atlas", predictors="a")
    with working_on(atlas), pytest.raises(VesaliusError, match="another step is at work"):
        run_step(atlas)


def test_several_processes_do_the_same(phantoms, tmp_path):
    one, two = begin(phantoms, tmp_path / "one", "ab"), begin(phantoms, tmp_path / "two", "ab")
    run_step(one)
    report = run_step(two, workers=2)
    assert not report.failed and report.workers == 2
    assert two.queue() == one.queue() and two.queue()


def test_the_glioma_set_is_disputed_where_five_models_differ(shared_data, tmp_path):
    folder = shared_data("mri_brain_glioma")
    classes = tmp_path / "classes.yaml"
    classes.write_text("classes: [necrosis, oedema, enhancing]\n")
    models = ("hnfnetv1", "isen", "sanet0", "scan", "yixinmpl")
    for name in models:
        text = f"masks: '{folder}/{{folder}}/seg_{name}-20.nii.gz'\nlabels: {{1: necrosis, 2: oedema, 4: enhancing}}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    for case in ("TCGA-DU-7294", "TCGA-FG-6692"):
        (tmp_path / "scans" / case).mkdir(parents=True)
        (tmp_path / "scans" / case / "t1c.nii.gz").symlink_to(folder / case / "t1c.nii.gz")
    settings = tmp_path / "settings.yaml"
    settings.write_text("attention: {opening: 3}\n")
    words = ["curate", "atlas", "init", str(tmp_path / "atlas"), "--volumes", str(tmp_path / "scans")]
    words += ["--classes", str(classes), "--predictors", *(str(tmp_path / f"{name}.yaml") for name in models)]
    assert main([*words, "--settings", str(settings)]) == 0
    atlas = Atlas.open(tmp_path / "atlas")
    assert run_step(atlas).failed == {}
    sizes, totals = {}, {}
    for case in atlas.cases():
        source = folder / atlas.image_path(case).parent.name
        raw = np.stack([read_values(source / f"seg_{name}-20.nii.gz") for name in models])
        for structure, value in (("necrosis", 1), ("oedema", 2), ("enhancing", 4)):
            # A standard deviation above 0.1 of five votes is any vote that is not unanimous.
            votes = (raw == value).sum(0)
            disputed = ndimage.binary_opening((votes > 0) & (votes < 5), np.ones((3, 3, 3)))
            attended = read_values(atlas.map_path(case, "attention", structure)) > 0
            assert np.array_equal(attended, disputed)
            pieces, _ = ndimage.label(attended)
            sizes[source.name, structure] = int(np.bincount(pieces.ravel())[1:].max())
            totals[case] = totals.get(case, 0) + int(disputed.sum())
    # As the five masks themselves say: the oedema of the second case is what the models see most differently.
    assert max(sizes, key=lambda one: sizes[one]) == ("TCGA-FG-6692", "oedema")
    queue = atlas.queue()
    assert (atlas.image_path(queue[0].case).parent.name, queue[0].structure) == ("TCGA-FG-6692", "oedema")
    assert [item.case for item in queue] == sorted([item.case for item in queue], key=lambda case: -totals[case])
