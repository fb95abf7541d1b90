"""The Universal Model from tables to a run: two partially labelled sets, one network; killed, resumed and extended."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from vesalius.data.class_tables import ClassTable
from vesalius.data.phantoms.volume_files import write_nifti
from vesalius.data.table import make_table, save_table
from vesalius.errors import VesaliusError
from vesalius.published.load import load_weights
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
    from vesalius.pretrain.universal import Universal

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
