"""One volume stored in any way is one input to a network, and its labels come back onto the voxels they belong to."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, NormalizeIntensity, Orientation, ScaleIntensityRange, Spacing
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.spatial.transform import Rotation

from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import Percentiles, Window, ZScore
from vesalius.errors import ConfigError, VesaliusError
from vesalius.images import Image, read_volume

SPACING = (1.2, 0.9, 3.0)
VOXELS = np.random.default_rng(0).normal(0, 300, (9, 11, 6)).astype(np.int16)  # (x, y, z) as NIfTI stores it
OBLIQUE = Rotation.from_euler("xyz", [-4, -7, 10], degrees=True).as_matrix()
CODES = ["RAS", "LPS", "LAS", "RPI", "ASR", "SPL", "ILA", "PIR"]
CONTRACT = VolumeContract(("CT",), spacing=(2.0, 1.1, 1.5), intensity=Window(-175, 250), roi=(8, 8, 8))


def stored(folder: Path, code: str, axes: np.ndarray = OBLIQUE) -> Image:
    """The same anatomy, its voxels stored along other axes."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * SPACING, (5, -6, 7)
    source = nibabel.Nifti1Image(VOXELS, affine)
    turned = source.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(code)))
    turned.to_filename(folder / f"{code}.nii.gz")
    return read_volume(folder / f"{code}.nii.gz")


def test_eight_orientations_give_one_input_and_one_answer(tmp_path: Path) -> None:
    first = CONTRACT(stored(tmp_path, "RAS"))
    labels = (first[0].numpy() > 0.6).astype(np.uint8)
    truth = None
    for code in CODES:
        image = stored(tmp_path, code)
        assert torch.equal(CONTRACT(image), first), code
        back = CONTRACT.restore(labels, image)
        assert back.shape == image.size and back.dtype == np.uint8
        # In the file's own axes it is another array; in patient space the same labels.
        label = nibabel.Nifti1Image(back.T, nibabel.load(image.path).affine)
        same = nibabel.as_closest_canonical(label)
        truth = np.asarray(same.dataobj) if truth is None else truth
        assert np.array_equal(np.asarray(same.dataobj), truth), code
    assert truth.any()


@pytest.mark.parametrize("orientation", ["RAS", "SPL", "ALI"])
def test_axes_of_the_contract_go_where_its_letters_say(tmp_path: Path, orientation: str) -> None:
    contract = VolumeContract(("CT",), orientation=orientation, intensity=Window(-2000, 2000), roi=(8, 8, 8))
    image = stored(tmp_path, "LPS")
    placed = contract.place(image)
    expected = nibabel.load(image.path)
    turn = ornt_transform(io_orientation(expected.affine), axcodes2ornt(orientation))
    assert np.array_equal(placed[0], np.asarray(expected.as_reoriented(turn).dataobj))
    assert np.array_equal(contract.restore(placed[0], image), image.array[0])  # without resampling nothing is lost


def test_monai_places_and_scales_the_same(tmp_path: Path) -> None:
    image = stored(tmp_path, "SPL", np.eye(3))
    header = nibabel.load(image.path)
    reference = MetaTensor(torch.from_numpy(np.asarray(header.dataobj).astype(np.float32))[None], affine=header.affine)
    geometry = [Orientation("RAS", labels=None), Spacing(CONTRACT.spacing, mode="bilinear", padding_mode="border")]
    expected = Compose([*geometry, ScaleIntensityRange(-175, 250, 0, 1, clip=True)])(reference)
    found = CONTRACT(image)
    assert found.shape == expected.shape
    assert (found - expected.as_tensor()).abs().max() < 1 / 425  # half a HU, to which the dtype is kept

    scores = VolumeContract(("CT",), spacing=CONTRACT.spacing, intensity=ZScore())
    as_float = image.with_array(image.array.astype(np.float32))
    expected = Compose([*geometry, NormalizeIntensity(nonzero=True, channel_wise=True)])(reference)
    assert torch.allclose(scores(as_float), expected.as_tensor(), atol=1e-4)


def test_channels_are_matched_by_name() -> None:
    array = np.stack([np.full((4, 4, 4), value, np.int16) for value in (10, 20, 30)])
    image = Image(array, ("T2", "fla", "t1gd"), affine=np.eye(4), spacing=(1, 1, 1), path=Path("case.nii.gz"))
    contract = VolumeContract(("t1ce", "flair"), intensity=Window(0, 100))
    assert contract(image)[:, 0, 0, 0].tolist() == pytest.approx([0.3, 0.2])
    with pytest.raises(VesaliusError, match=r"case.nii.gz: has no channel 't1' \(did you mean 't1gd'"):
        VolumeContract(("t1", "flair"))(image)
    with pytest.raises(VesaliusError, match="has no channel 't1'"):
        VolumeContract(("t1", "t2"))(Image(array[:1], ("gray",), affine=np.eye(4)))


@pytest.mark.parametrize("intensity", [Window(-175, 250), ZScore(nonzero=False), Percentiles(1, 99)])
def test_a_contract_survives_json(intensity: Window | ZScore | Percentiles) -> None:
    contract = VolumeContract(
        ("T1", "FLAIR"), spacing=(1, 1, 1), orientation="SPL", intensity=intensity, roi=(8, 16, 8)
    )
    assert VolumeContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


def test_zeros_stay_zero_and_a_patch_is_scaled_like_its_volume() -> None:
    array = np.random.default_rng(1).gamma(2, 50, (1, 6, 6, 6)).astype(np.float32)
    array[:, :3] = 0
    for intensity in (ZScore(), Percentiles()):
        contract = VolumeContract(("MR",), intensity=intensity)
        limits, placed = contract.limits(array), torch.from_numpy(array)
        whole = contract.normalise(placed, limits)
        assert not whole[:, :3].any() and whole[:, 3:].std() > 0.1
        assert torch.equal(contract.normalise(placed[:, 2:4, 1:], limits), whole[:, 2:4, 1:])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"affine": None}, "does not say how it lies in the patient"),
        ({"array": np.full((1, 4, 4, 4), np.nan, np.float32)}, "64 voxels are NaN or infinite"),
        ({"array": np.zeros((1, 4, 4), np.float32), "spacing": (1, 1)}, r"is 2-D \(4, 4\), not a volume"),
    ],
)
def test_an_image_that_cannot_be_placed(change: dict, says: str) -> None:
    values = {"array": np.zeros((1, 4, 4, 4), np.float32), "affine": np.eye(4), "spacing": (1, 1, 1)} | change
    with pytest.raises(VesaliusError, match=says):
        VolumeContract(("CT",))(Image(channels=("gray",), path=Path("x.nii"), **values))


def test_a_volume_beyond_memory_is_refused_before_it_is_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image(np.zeros((1, 10, 10, 10), np.int16), ("gray",), affine=np.eye(4) * [4, 4, 4, 1], spacing=(4, 4, 4))
    contract = VolumeContract(("CT",), spacing=(1, 1, 1))
    assert contract.memory(image.size, image.spacing) == pytest.approx(1000 * 2 + 64_000 * 10)
    monkeypatch.setattr("vesalius.data.volumes.memory.available_memory", lambda: 600_000)
    with pytest.raises(VesaliusError, match=r"needs 0.6 MiB of memory, and 0.6 MiB are free; use fewer workers"):
        contract(image)


@pytest.mark.parametrize(
    "values",
    [{"channels": ("t1", "T1n")}, {"channels": ()}, {"orientation": "RAL"}, {"orientation": "RA"}, {"roi": (0, 1, 1)}],
)
def test_a_contract_that_makes_no_sense(values: dict) -> None:
    with pytest.raises(ConfigError):
        VolumeContract(**values)


def test_every_code_of_three_letters_is_an_orientation() -> None:
    codes = ["".join(p) for triple in itertools.product("RL", "AP", "SI") for p in itertools.permutations(triple)]
    assert len({VolumeContract(orientation=code).orientation for code in codes}) == 48
