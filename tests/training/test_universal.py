"""The Universal Model from tables to a run: two partially labelled sets, one network; killed, resumed and extended."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from vesalius.data.class_tables import ClassTable
from vesalius.data.phantoms.volume_files import write_nifti
from vesalius.data.table import make_table, save_table
from vesalius.errors import ConfigError, VesaliusError
from vesalius.nn.class_text import hashed
from vesalius.pretrain.extension import Extension, changed_tensors
from vesalius.pretrain.universal import PRESETS, Universal, UniversalConfig, build
from vesalius.published.load import load_weights
from vesalius.training.extend import extend_run
from vesalius.training.provenance import read_seen
from vesalius.training.runs import RunFolder
from vesalius.training.verbs import pretrain_system

OPTIONS = {"batch_size": 1, "val_every": 4, "save_every": 2, "log_every": 1, "progress": False}
MODEL = {"width": 8, "spacing": None, "crop": (16, 16, 16), "patches": 1, "controller": "per_class"}
PLACES = {"liver": (4, 4, 4), "spleen": (10, 4, 10), "kidney": (4, 10, 10), "cyst": (10, 10, 4)}
"""Where each class's cube lies in a volume of 16 voxels."""


def _dataset(folder, name, known, *, cases=3):
    """A table of volumes in which every class has a brightness, and the masks know some classes."""
    rows = []
    for case in range(cases):
        chance = np.random.default_rng([case, len(name)])
        volume, mask = chance.normal(0, 20, (16, 16, 16)), np.zeros((16, 16, 16), np.uint8)
        for number, (organ, corner) in enumerate(PLACES.items()):
            box = tuple(slice(start - 2, start + 3) for start in corner)
            volume[box] += 50 * (number + 1)
            if organ in known:
                mask[box] = known.index(organ) + 1
        image, label = folder / f"{name}_{case}.nii.gz", folder / f"{name}_{case}_label.nii.gz"
        write_nifti(volume.astype(np.int16), np.diag([-3.0, -3.0, 3.0, 1.0]), image)
        write_nifti(mask, np.diag([-3.0, -3.0, 3.0, 1.0]), label)
        split = "val" if case == cases - 1 else "train"
        rows.append(
            {
                "path": str(image),
                "mask": str(label),
                "size": [16, 16, 16],
                "spacing": [3.0, 3.0, 3.0],
                "frames": 1,
                "dataset": name,
                "patient": f"{name}/{case}",
                "split": split,
                "mask_classes": list(known),
                "annotated": list(known),
            }
        )
    return save_table(make_table(rows), folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    (folder / "classes.yaml").write_text(yaml.safe_dump({"classes": ["liver", "spleen", "kidney"]}), encoding="utf-8")
    paths = [_dataset(folder, "one", ["liver", "spleen"]), _dataset(folder, "two", ["kidney"])]
    return folder, paths


def _pretrain(tables, out, **changes):
    folder, paths = tables
    return pretrain_system(
        "universal",
        data=paths,
        classes=folder / "classes.yaml",
        out=out,
        **({"model": MODEL, "steps": 8} | OPTIONS | changes),
    )


@pytest.fixture(scope="module")
def run(tables, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "universal"
    return out, _pretrain(tables, out)


def test_a_run_knows_its_classes_and_scores_each_on_its_own_set(run):
    out, summary = run
    assert {"val/dice", "val/dice liver", "val/dice spleen", "val/dice kidney"} <= set(summary["val"])
    network = load_weights(out)
    assert network.classes == ("liver", "spleen", "kidney")
    assert ClassTable.from_dict(network.card.extra["classes"]).names == network.classes
    assert "hashed stand-ins" in network.card.notes[-1]


def test_a_killed_run_goes_on_to_the_same_weights(tables, run, tmp_path, monkeypatch):
    whole, _ = run
    step, count = Universal.training_step, iter(range(8))

    def dies(self, batch, batch_idx):
        if next(count) == 5:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Universal, "training_step", dies)
    with pytest.raises(VesaliusError, match="interrupted at step 5"):
        _pretrain(tables, tmp_path / "killed")
    monkeypatch.setattr(Universal, "training_step", step)
    assert _pretrain(tables, tmp_path / "killed", resume=True)["step"] == 8
    ours, theirs = (load_file(path / "weights.safetensors") for path in (tmp_path / "killed", whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_new_class_leaves_the_old_ones_as_they_were(tables, run, tmp_path):
    folder, _ = tables
    new = _dataset(folder, "three", ["cyst", "liver"])
    summary = extend_run(
        run[0], class_="cyst", organs=["kidney"], data=new, out=tmp_path / "cyst", **(OPTIONS | {"steps": 4})
    )
    before, after = (load_weights(path) for path in (run[0], tmp_path / "cyst"))
    assert after.classes == (*before.classes, "cyst")
    assert _hash(before.state_dict(), before) == _hash(after.state_dict(), before)
    assert set(summary["old"]) == {"liver", "spleen", "kidney"}
    assert all(row["before"] == row["after"] for row in summary["old"].values())
    assert summary["old"]["liver"]["cases"] == 2  # that of its own set, and the new one
    volume = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(after(volume, before.classes), before(volume), rtol=0, atol=1e-5)
    seen, learned = (read_seen(RunFolder(path)) for path in (run[0], tmp_path / "cyst"))
    assert seen["train"] < learned["train"]
    assert RunFolder(tmp_path / "cyst").read_config()["old_data"] == [str(path) for path in tables[1]]
    entry = ClassTable.from_dict(after.card.extra["classes"]).entry("cyst")
    assert (entry.kind, entry.organs, entry.rule) == ("tumor", ("kidney",), "inside")


def _hash(state, like):
    """Of the tensors that a network has, of the embeddings those rows."""
    digest = hashlib.sha256()
    for name, tensor in like.state_dict().items():
        digest.update((state[name][: len(tensor)] if name == "head.embedding" else state[name]).numpy().tobytes())
    return digest.hexdigest()


def test_pseudo_labels_train_everything(tables, run, tmp_path):
    folder, _ = tables
    new = _dataset(folder, "four", ["cyst"])
    summary = extend_run(
        run[0], class_="cyst", data=new, out=tmp_path / "cyst", pseudo_labels=True, lr=1e-3, **(OPTIONS | {"steps": 2})
    )
    before, after = (load_weights(path) for path in (run[0], tmp_path / "cyst"))
    changed = changed_tensors(before, after)
    assert any(name.startswith("encoder.") for name in changed)
    assert any(name.startswith("head.controller.0.") for name in changed)
    assert {row["cases"] for row in summary["old"].values()} == {1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"class_": "Spleen"}, "has the class 'spleen' already"),
        ({"class_": "vessel"}, "no training case is annotated for 'vessel'"),
    ],
)
def test_what_cannot_be_added(tables, run, tmp_path, options, said):
    new = _dataset(tables[0], "five", ["cyst", "kidney"])
    with pytest.raises(ConfigError, match=said):
        extend_run(run[0], data=new, out=tmp_path / "no", **options)


def test_one_controller_for_all_is_refused():
    torch.manual_seed(0)
    network = build(UniversalConfig(trunk="segresnet", width=8), ["a"], hashed(["a"]))
    table = ClassTable.from_dict({"classes": ["a", "b"]})
    with pytest.raises(ConfigError, match="one controller makes all classes"):
        Extension(PRESETS["tiny"], network, table=table, embeddings=hashed(["b"]))
