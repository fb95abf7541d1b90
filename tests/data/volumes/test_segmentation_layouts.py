"""Each public set of volumes, built as it comes, recognised and read without being told which it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vesalius.data.abdomen import TEMPLATE
from vesalius.data.index import index
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.prepare import prepare
from vesalius.data.volumes.segmentation_layouts import BTCV, KITS, LITS


@pytest.fixture
def indexed(tmp_path: Path, volume, capsys):
    """Writes a set's files (masks by the values they hold), and indexes it: layout, then rows by patient."""

    def run(name: str, files: dict[str, tuple[int, ...] | None], **options) -> tuple[str, dict[str, dict]]:
        root = tmp_path / name
        for number, (file, values) in enumerate(files.items()):
            rng = np.random.default_rng(number)
            noise = rng.integers(-500, 900, (7, 6, 5)).astype(np.int16)
            volume(root / file, noise if values is None else rng.choice(values, (7, 6, 5)).astype(np.uint8))
        table = index(root, tmp_path / "t.parquet", volumes=True, **options)
        layout = capsys.readouterr().err.split("layout: ")[1].split(" (")[0]
        return layout, {row["patient"].removeprefix(f"{name}/"): row for row in table.to_dicts()}

    return run


def test_kits_of_three_years(indexed):
    layout, rows = indexed(
        "kits",
        {
            "case_00000/imaging.nii.gz": None,
            "case_00000/aggregated_MAJ_seg.nii.gz": (0, 1, 2, 3),
            "case_00000/aggregated_AND_seg.nii.gz": (0, 1),
            "case_00007/imaging.nii.gz": None,
            "case_00007/segmentation.nii.gz": (0, 2),
            "case_00210/imaging.nii.gz": None,
        },
    )
    assert layout == "kits"
    assert {case: Path(row["mask"] or "-").name for case, row in rows.items()} == {
        "case_00000": "aggregated_MAJ_seg.nii.gz",
        "case_00007": "segmentation.nii.gz",
        "case_00210": "-",
    }
    assert rows["case_00000"]["mask_classes"] == list(KITS)
    assert (rows["case_00000"]["organ"], rows["case_00000"]["modality"]) == ("kidney", "CT")


def test_lits_and_its_hidden_cases(indexed):
    layout, rows = indexed(
        "challenge",
        {
            "Training Batch 1/volume-0.nii": None,
            "Training Batch 1/segmentation-0.nii": (0, 1, 2),
            "Training Batch 2/volume-10.nii": None,
            "Training Batch 2/segmentation-10.nii": (0, 1),
            "test-volume-0.nii": None,
        },
    )
    assert layout == "lits"
    assert [Path(rows[name]["mask"]).name for name in ("volume-0", "volume-10")] == [
        "segmentation-0.nii",
        "segmentation-10.nii",
    ]
    assert rows["test-volume-0"]["mask"] is None
    assert rows["volume-0"]["mask_classes"] == list(LITS)


@pytest.mark.parametrize(
    ("root", "tumour"), [("LiTS", "liver tumor"), ("Pancreas", "pancreas tumor"), ("x", "class_2")]
)
def test_cases_with_a_segmentation_beside_the_image(indexed, root: str, tumour: str):
    files = {f"Training/{case}/{name}.nii.gz": v for case in "ab" for name, v in SIDE_BY_SIDE.items()}
    layout, rows = indexed(root, files)
    assert layout == "cases"
    assert set(rows) == {"a", "b"}
    assert rows["a"]["mask_classes"][1] == tumour


SIDE_BY_SIDE = {"image": None, "segmentation": (0, 1, 2)}


def test_btcv_and_one_class_of_two_adrenal_glands(indexed):
    files = {
        "Training/img/img0001.nii.gz": None,
        "Training/label/label0001.nii.gz": (0, 6, 12, 13),
        "Testing/img/img0061.nii.gz": None,
    }
    layout, rows = indexed("Abdomen", files)
    assert layout == "btcv"
    assert rows["img0001"]["mask_classes"] == list(BTCV)
    assert rows["img0061"]["mask"] is None
    # They join with the sets of the Universal Model by name.
    assert all(TEMPLATE.resolve(name) for name in (*BTCV, *KITS[1:], *LITS))


def test_prostates_of_several_sites(indexed, tmp_path: Path):
    files = {
        "BIDMC/Case00.nii.gz": None,
        "BIDMC/Case00_segmentation.nii.gz": (0, 1),
        "RUNMC/Case00.nii.gz": None,
        "RUNMC/Case00_Segmentation.nii.gz": (0, 1, 2),
    }
    layout, rows = indexed("prostates", files)
    assert layout == "prostate"
    assert set(rows) == {"BIDMC/Case00", "RUNMC/Case00"}
    mask = prepare(rows["RUNMC/Case00"], VolumeContract(("MR",)), classes=["prostate"]).mask
    assert mask is not None
    assert set(np.unique(mask)) == {0, 1}  # both zones are the gland
