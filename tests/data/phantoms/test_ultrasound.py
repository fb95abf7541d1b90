"""The ultrasound phantoms: reproducible, their truth visible in the pixels, organs and patients as promised."""

from __future__ import annotations

import numpy as np
import polars as pl
import pydicom
import pytest
from PIL import Image
from scipy.ndimage import uniform_filter

from vesalius.data.phantoms.ultrasound import SHARES, _patients, patient, ultrasound
from vesalius.errors import ConfigError


def _files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_also_with_workers(tmp_path):
    first, second, other = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    ultrasound(first, n=6, seed=3, size=48)
    ultrasound(second, n=6, seed=3, size=48, workers=2)
    ultrasound(other, n=6, seed=4, size=48)
    assert _files(first) == _files(second)
    assert _files(first) != _files(other)


def test_patients_have_frames_of_one_anatomy_and_the_organs_keep_their_shares():
    jobs = list(_patients(2000, 0, SHARES))
    assert sum(job.frames for job in jobs) == 2000
    assert {job.frames for job in jobs} == {1, 2, 3, 4}
    for organ, share in SHARES.items():
        assert sum(job.organ == organ for job in jobs) / len(jobs) == pytest.approx(share, abs=0.01)
    label, frames = patient(1, 5, "liver", frames=3, size=64)
    assert label == patient(1, 5, "liver", frames=1, size=64)[0]
    areas = [frame.mask.sum() for frame in frames]
    assert max(areas) < 1.3 * min(areas)
    assert not np.array_equal(frames[0].image, frames[1].image)


def _lesions(label, organ, count=6):
    found = []
    number = 0
    while len(found) < count:
        number += 1
        kind, (frame,) = patient(11, number, organ, size=128)
        if kind == label:
            found.append(frame)
    return found


def _roughness(mask):
    """Perimeter squared over area; 4 pi for a disc, more for a ragged margin."""
    edge = sum(np.abs(np.diff(mask.astype(int), axis=axis)).sum() for axis in (0, 1))
    return edge**2 / mask.sum()


@pytest.mark.parametrize("organ", ["breast", "kidney"])
def test_lesions_are_dark_and_malignant_ones_darker_and_rougher(organ):
    benign, malignant = _lesions("benign", organ), _lesions("malignant", organ)

    def contrast(frame):
        y, x = np.argwhere(frame.mask).mean(0).astype(int)
        near = np.zeros_like(frame.mask)
        near[max(y - 18, 0) : y + 8, max(x - 18, 0) : x + 18] = True
        return frame.target[frame.mask].mean() - frame.target[near & ~frame.mask].mean()

    mild, marked = (np.mean([contrast(frame) for frame in frames]) for frames in (benign, malignant))
    assert marked < mild - 10 and mild < -10
    smooth, rough = (np.median([_roughness(frame.mask) for frame in frames]) for frames in (benign, malignant))
    assert rough > 1.2 * smooth


def test_normal_organs_have_an_empty_mask_and_the_target_has_less_speckle():
    (frame, *_) = _lesions("normal", "liver", count=1)
    assert not frame.mask.any()
    inside = np.s_[24:80, 40:88]

    def speckle(pixels):
        pixels = pixels[inside].astype(float)
        return np.median(np.abs(pixels - uniform_filter(pixels, 7)))

    assert speckle(frame.target) < 0.6 * speckle(frame.image)


def test_png_collection_is_complete(tmp_path):
    table = ultrasound(tmp_path, n=7, seed=0, size=48)
    assert len(table) == 7
    assert pl.read_csv(tmp_path / "index.csv", infer_schema=False)["path"].to_list() == table["path"].to_list()
    for row in table.to_dicts():
        for column in ("path", "mask", "target"):
            with Image.open(tmp_path / row[column]) as picture:
                assert picture.size == (48, 48) and picture.mode == "L"
        mask = np.array(Image.open(tmp_path / row["mask"]))
        assert mask.any() == (row["label"] != "normal")


def test_dicom_is_one_calibrated_file_per_patient(tmp_path):
    table = ultrasound(tmp_path, n=9, seed=0, size=48, format="dicom")
    assert table["path"].n_unique() == table["group"].n_unique() < 9
    row = table.row(0, named=True)
    data = pydicom.dcmread(tmp_path / row["path"])
    assert data.PatientID == row["group"] and data.Modality == "US"
    assert data.SequenceOfUltrasoundRegions[0].PhysicalDeltaY * 10 == pytest.approx(float(row["spacing"]), rel=1e-4)
    pixels = data.pixel_array.reshape(-1, 48, 48)
    assert len(pixels) == data.NumberOfFrames == (table["path"] == row["path"]).sum()
    assert np.array_equal(pixels[0], patient(0, 1, row["organ"], size=48)[1][0].image)


def test_what_is_asked_for_wrongly_is_named(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'kidney'"):
        ultrasound(tmp_path, n=2, organs={"kidny": 1.0})
    with pytest.raises(ConfigError, match="known: dicom, png"):
        ultrasound(tmp_path, n=2, format="tiff")
    with pytest.raises(ConfigError, match="n = 0"):
        ultrasound(tmp_path, n=0)
