"""Windows are blended as MONAI blends them, in a memory that is stated beforehand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from vesalius.data.phantoms.volume_files import write_series
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import Window
from vesalius.errors import ConfigError, VesaliusError
from vesalius.evaluation.sliding import above, argmax, segment_volume, sliding_memory, sliding_window
from vesalius.images import read_segmentation, read_volume, write_mask

VOLUME = torch.randn(2, 17, 23, 14, generator=torch.Generator().manual_seed(0))


def network(classes: int = 3) -> nn.Module:
    """One that sees more than a voxel, and not the same in every direction."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.GELU(), nn.Conv3d(4, classes, 3, padding=1)).eval()


@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize(
    ("roi", "overlap"), [((8, 8, 8), 0.5), ((8, 6, 10), 0.25), ((20, 8, 16), 0.6), ((32, 32, 32), 0)]
)
def test_scores_are_those_of_monai(roi: tuple[int, int, int], overlap: float, blending: str) -> None:
    net = network()
    with torch.inference_mode():
        expected = sliding_window_inference(VOLUME[None], roi, 1, net, overlap=overlap, mode=blending)[0]
    found = sliding_window(net, VOLUME, roi=roi, overlap=overlap, blending=blending, decide=lambda scores: scores)
    assert np.abs(found - expected.numpy()).max() < 2e-6
    labels = sliding_window(net, VOLUME, roi=roi, overlap=overlap, blending=blending, batch=3)
    assert labels.dtype == np.uint8 and np.array_equal(labels, expected.argmax(0).numpy())
    masks = sliding_window(net, VOLUME, roi=roi, overlap=overlap, blending=blending, decide=above(0.4), classes=[2, 0])
    assert np.array_equal(masks, (expected.sigmoid()[[2, 0]] > 0.4).numpy())


def test_every_axis_may_be_the_longest() -> None:
    net = network()
    for order in [(0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]:
        volume = VOLUME.permute(0, *(axis + 1 for axis in order))
        with torch.inference_mode():
            expected = sliding_window_inference(volume[None], (8, 8, 8), 4, net, overlap=0.5, mode="gaussian")[0]
        assert np.array_equal(sliding_window(net, volume, roi=(8, 8, 8)), expected.argmax(0).numpy())


def test_flips_make_the_answer_the_same_for_a_mirrored_volume() -> None:
    net, options = network(), {"roi": (8, 8, 8), "decide": lambda scores: scores}
    both = sliding_window(net, VOLUME[:, :16, :16, :8], flips=(0, 1), **options)
    mirrored = sliding_window(net, VOLUME[:, :16, :16, :8].flip(1, 2), flips=(0, 1), **options)
    assert np.abs(mirrored[:, ::-1, ::-1] - both).max() < 2e-6
    plain = sliding_window(net, VOLUME[:, :16, :16, :8], **options)
    assert np.abs(plain - both).max() > 0.01


def test_half_precision_decides_nearly_alike_and_other_weights_are_used() -> None:
    net = network()
    full = sliding_window(net, VOLUME, roi=(8, 8, 8))
    assert np.mean(sliding_window(net, VOLUME, roi=(8, 8, 8), half=True) == full) > 0.98
    ones = sliding_window(net, VOLUME, roi=(8, 8, 8), weights=torch.ones(8, 8, 8))
    assert np.array_equal(ones, sliding_window(net, VOLUME, roi=(8, 8, 8), blending="constant"))
    assert not np.array_equal(ones, full)


def test_an_image_is_placed_predicted_and_put_back(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-300, 300, (21, 18, 9)).astype(np.int16)
    affine = np.array([[0, 1.5, 0, 3], [-1.5, 0, 0, 4], [0, 0, 3, 5], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "v.nii.gz")
    image = read_volume(tmp_path / "v.nii.gz")

    def bright(window: Tensor) -> Tensor:
        return torch.cat([0.5 - window, window - 0.5], dim=1)

    contract = VolumeContract(("CT",), intensity=Window(-100, 100), roi=(8, 8, 8))
    labels = segment_volume(bright, image, contract, decide=argmax)
    assert np.array_equal(labels, image.array[0] > 0)
    coarse = VolumeContract(("CT",), spacing=(3, 3, 3), intensity=Window(-100, 100), roi=(8, 8, 8))
    assert segment_volume(bright, image, coarse).shape == image.size


def test_air_around_the_patient_is_not_asked_about(tmp_path: Path) -> None:
    voxels = np.full((30, 24, 20), -1000, np.int16)
    voxels[8:20, 6:18, 5:15] = 40
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1])), tmp_path / "v.nii.gz")
    image = read_volume(tmp_path / "v.nii.gz")

    def everywhere(window: Tensor) -> Tensor:
        return torch.cat([0 * window, 0 * window + 1], dim=1)

    labels = segment_volume(everywhere, image, VolumeContract(("CT",), intensity=Window(-100, 100), roi=(8, 8, 8)))
    assert np.array_equal(labels, image.array[0] > -1000)


def test_a_predicted_series_is_the_same_as_segmentation_and_as_nifti(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-300, 300, (7, 12, 10)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [20, -35, 110], degrees=True).as_matrix() * (0.8, 1.2, -3.5)
    affine[:3, 3] = 10, -20, 30  # oblique, anisotropic, and from the head down
    write_series(voxels, affine, tmp_path / "ct", modality="CT", identity="p", series="thin")
    image = read_volume(tmp_path / "ct")
    contract = VolumeContract(("CT",), spacing=(2, 2, 2), intensity=Window(-100, 100), roi=(8, 8, 8))
    labels = segment_volume(lambda window: torch.cat([0.5 - window, window - 0.5], dim=1), image, contract)
    assert 0.2 < labels.mean() < 0.8
    write_mask(labels, image, tmp_path / "seg.dcm", classes=["bright"])
    write_mask(labels, image, tmp_path / "seg.nii.gz", classes=["bright"])
    assert np.array_equal(read_segmentation(tmp_path / "seg.dcm", image)[0], labels)
    nifti = read_volume(tmp_path / "seg.nii.gz")
    assert np.array_equal(nifti.array[0], labels) and np.allclose(nifti.affine, image.affine, atol=1e-3)
    # highdicom's own volume, voxel by voxel in patient space
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    rows = np.argwhere(volume.array > 0)
    at = np.linalg.inv(nifti.affine) @ volume.affine @ np.c_[rows, np.ones(len(rows))].T
    column, row, slice_ = np.rint(at[:3]).astype(int)
    assert len(rows) == labels.sum() and labels[slice_, row, column].all()


MEASURE = """
import json
from pathlib import Path
import torch
from monai.inferers import sliding_window_inference
from vesalius.evaluation.sliding import sliding_memory, sliding_window

size, roi, classes = (150, 160, 210), (32, 32, 32), 24
torch.set_num_threads(1)
volume = torch.randint(-500, 500, (1, *size), dtype=torch.int16)
slopes = torch.linspace(-1, 1, classes).view(1, classes, 1, 1, 1)
network = lambda window: window * slopes
sliding_window(network, volume[:, :40, :40, :40], roi=roi, overlap=0)  # what is loaded once is no part of the peak


def peak(run):  # Linux: the high-water mark of the resident set, put back first
    Path("/proc/self/clear_refs").write_text("5")
    resident = lambda name: int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) * 1024
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


@torch.inference_mode()
def monai():
    sliding_window_inference(volume[None].float(), roi, 1, network, overlap=0, mode="gaussian")


found = []
for half in (True, False):
    mark = peak(lambda: sliding_window(network, volume, roi=roi, overlap=0, half=half))
    found.append((mark, sliding_memory(size, roi, classes, half=half)))
found.append((peak(monai), 0))
print(json.dumps(found))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="measures as Linux does")
def test_peak_memory_is_within_the_stated_bound() -> None:
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    half, full, monai = json.loads(run.stdout)
    slack = 8 * 2**20  # of the allocator; the bounds are 65 and 109 MiB
    for peak, bound in (half, full):
        assert bound / 2 < peak < bound + slack
    assert monai[0] > 4 * full[1]


def test_too_little_memory_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vesalius.data.volumes.memory.available_memory", lambda: 1000)
    with pytest.raises(VesaliusError, match=r"needs .* of memory"):
        sliding_window(network(), VOLUME, roi=(8, 8, 8))
    assert sliding_memory((512, 512, 600), (96, 96, 96), 32) < 4.2 * 2**30


@pytest.mark.parametrize("options", [{"overlap": 1.0}, {"batch": 0}, {"flips": (3,)}])
def test_options_that_make_no_sense(options: dict) -> None:
    with pytest.raises(ConfigError):
        sliding_window(network(), VOLUME, roi=(8, 8, 8), **options)
