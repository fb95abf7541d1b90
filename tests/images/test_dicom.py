"""DICOM: what stored values become, geometry from the tags, frames, and every file of the zoo."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import convert_color_space
from samples import dicom, pixels, region

from vesalius.errors import UnreadableImage
from vesalius.images import probe, read

GREY = pixels(12, 17)
CT = pixels(12, 17, high=4096, dtype="int16")
UNDECODABLE = "liver_nonbyte_aligned_rle.dcm"  # one-bit RLE, which no decoder reads


def test_every_file_of_the_zoo(shared_data) -> None:
    folder = shared_data("dicom_zoo")
    rows = list(csv.DictReader((folder / "index.csv").open()))
    assert len(rows) == 27
    for row in rows:
        path = folder / row["path"]
        header = probe(path)
        last = None if header.frames == 1 else header.frames - 1
        if row["path"] == UNDECODABLE:
            with pytest.raises(UnreadableImage, match=UNDECODABLE):
                read(path, last)
            continue
        image = read(path, last)
        assert (header.size, header.channels) == (image.size, image.channels)
        assert image.modality == (row["modality"] or None)
        if row["rows"]:
            assert (header.frames, *image.size) == (int(row["frames"]), int(row["rows"]), int(row["columns"]))
            colour = row["photometric"] not in ("MONOCHROME1", "MONOCHROME2")
            assert len(image.channels) == (3 if colour else 1), row["path"]
        if header.frames > 1:
            with pytest.raises(UnreadableImage, match=f"holds {header.frames} frames"):
                read(path)
        image.check()


def test_codecs_agree_on_the_same_frames(shared_data) -> None:
    folder = shared_data("dicom_zoo")
    for frame in range(10):
        plain = read(folder / "emri_small.dcm", frame).array
        for coding in ("RLE", "jpeg_ls_lossless", "jpeg_2k_lossless_too_short"):
            assert np.array_equal(read(folder / f"emri_small_{coding}.dcm", frame).array, plain)
    # Two exports of one scan, RCT-coded and plain: not equal, but of the same colours.
    coded, plain = (read(folder / name).array.ravel() for name in ("US1_J2KR.dcm", "US1_UNCI.dcm"))
    assert np.corrcoef(coded, plain)[0, 1] > 0.99


def test_cut_off_zoo_files_are_errors(tmp_path: Path, shared_data) -> None:
    """libjpeg would fill the missing rows with grey and say nothing."""
    for name in ("JPGLosslessP14SV1_1s_1f_8b.dcm", "cxr_rsna_sample.dcm", "color-px.dcm", "US1_J2KR.dcm"):
        whole = (shared_data("dicom_zoo") / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 9 // 10])
        with pytest.raises(UnreadableImage, match="copy it again"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"), [(1, -1024, np.int16), (20, 0, np.int32), (0.5, 1, np.float32)]
)
def test_rescale(tmp_path: Path, slope: float, intercept: float, dtype: type) -> None:
    tags = {"RescaleSlope": slope, "RescaleIntercept": intercept, "WindowCenter": [40, 1], "WindowWidth": [400, 2]}
    dicom(tmp_path / "ct.dcm", CT, BitsStored=13, HighBit=12, **tags)
    image = read(tmp_path / "ct.dcm")
    assert image.array.dtype == dtype and np.array_equal(image.array[0], CT.astype(float) * slope + intercept)
    assert image.window == (40, 400)


def test_dtype_does_not_depend_on_the_pixels(tmp_path: Path) -> None:
    for value in (0, 4095):
        dicom(tmp_path / "x.dcm", np.full_like(CT, value), BitsStored=13, RescaleSlope=1, RescaleIntercept=-1024)
        assert read(tmp_path / "x.dcm").array.dtype == np.int16


@pytest.mark.parametrize(("array", "total"), [(GREY, 255), (pixels(12, 17, high=1024, dtype="uint16"), 1023), (CT, -1)])
def test_monochrome1_is_inverted_with_its_window(tmp_path: Path, array: np.ndarray, total: int) -> None:
    bits = 10 if array.dtype == np.uint16 else array.dtype.itemsize * 8
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": bits, "WindowCenter": 50, "WindowWidth": 20}
    dicom(tmp_path / "m1.dcm", array, **tags)
    image = read(tmp_path / "m1.dcm")
    assert image.array.dtype == array.dtype
    assert np.array_equal(image.array[0], total - array.astype(int))
    assert image.window == (total - 50, 20)


def test_ybr_and_palette_become_rgb(tmp_path: Path) -> None:
    colour = pixels(12, 17, 3)
    dicom(tmp_path / "ybr.dcm", convert_color_space(colour, "RGB", "YBR_FULL"), PhotometricInterpretation="YBR_FULL")
    assert np.abs(read(tmp_path / "ybr.dcm").array.astype(int) - colour.transpose(2, 0, 1)).max() <= 2

    tables = pixels(3, 256, high=65536, dtype="uint16")
    tags: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    dicom(tmp_path / "palette.dcm", GREY, **tags)
    image = read(tmp_path / "palette.dcm")
    assert image.array.dtype == np.uint8 and np.array_equal(image.array, tables[:, GREY] >> 8)


def test_overlay_bits_are_cleared(tmp_path: Path) -> None:
    values = pixels(12, 17, high=4096, dtype="uint16")
    dicom(tmp_path / "overlay.dcm", values | 0x8000, BitsStored=12, HighBit=11)
    assert np.array_equal(read(tmp_path / "overlay.dcm").array[0], values)


@pytest.mark.parametrize(
    ("tags", "spacing"),
    [
        ({}, None),
        ({"PixelSpacing": [0.5, 0.25]}, (0.5, 0.25)),
        ({"PixelSpacing": [0, 0]}, None),
        ({"ImagerPixelSpacing": [0.1, 0.1]}, (0.1, 0.1)),
        ({"SequenceOfUltrasoundRegions": [region(delta_x=0.02, delta_y=-0.03)]}, (0.3, 0.2)),
        ({"SequenceOfUltrasoundRegions": [region(delta_x=0.02, delta_y=0.03, units=4)]}, None),
        ({"SequenceOfUltrasoundRegions": [region(delta_x=0.02, delta_y=0.03, kind=4)]}, None),
        ({"SequenceOfUltrasoundRegions": [region(delta_x=0.02, delta_y=0.02)] * 2}, (0.2, 0.2)),
        (
            {"SequenceOfUltrasoundRegions": [region(delta_x=step, delta_y=step) for step in (0.02, 0.05)]},
            None,  # two scales in one image: neither is the image's
        ),
    ],
)
def test_spacing_comes_from_the_tags_or_not_at_all(tmp_path: Path, tags: dict, spacing: tuple | None) -> None:
    dicom(tmp_path / "x.dcm", GREY, **tags)
    assert read(tmp_path / "x.dcm").spacing == probe(tmp_path / "x.dcm").spacing == spacing


def test_affine_maps_column_row_to_the_patient(tmp_path: Path) -> None:
    tags = {
        "PixelSpacing": [0.5, 0.25],  # down, across
        "SliceThickness": 3,
        "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],  # sagittal
        "ImagePositionPatient": [10, 20, 30],
    }
    dicom(tmp_path / "x.dcm", GREY, **tags)
    affine = read(tmp_path / "x.dcm").affine
    assert np.allclose(affine @ [4, 2, 0, 1], [10, 20 + 4 * 0.25, 30 - 2 * 0.5, 1])
    assert np.allclose(affine[:3, 2], [-3, 0, 0])

    dicom(tmp_path / "bad.dcm", GREY, **tags | {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]})
    with pytest.raises(UnreadableImage, match=r"bad.dcm: .*orthogonal"):
        read(tmp_path / "bad.dcm")


def item(**tags: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def test_functional_groups_place_each_frame(tmp_path: Path) -> None:
    frames = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 5 * index])],
            PixelValueTransformationSequence=[item(RescaleSlope=index + 1, RescaleIntercept=0)],
            FrameVOILUTSequence=[item(WindowCenter=10 * index, WindowWidth=4)],
        )
        for index in range(3)
    ]
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.5], SliceThickness=5)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    )
    clip = pixels(3, 12, 17, dtype="uint16")
    groups = {"PerFrameFunctionalGroupsSequence": frames, "SharedFunctionalGroupsSequence": [shared]}
    dicom(tmp_path / "x.dcm", clip, **groups)
    image = read(tmp_path / "x.dcm", frame=2)
    assert np.array_equal(image.array[0], clip[2] * 3) and image.window == (20, 4)
    assert image.spacing == (0.5, 0.5) and image.affine[2, 3] == 10 and image.affine[2, 2] == 5
    assert (image.frame, image.frames, image.tags["patient"]) == (2, 3, "p7")


def test_file_without_preamble_or_meta(tmp_path: Path) -> None:
    path = tmp_path / "bare"
    dataset = dicom(tmp_path / "x.dcm", GREY)
    del dataset.file_meta
    dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert np.array_equal(read(path).array[0], GREY)


def test_frame_of_another_size_inside_is_refused(tmp_path: Path) -> None:
    dataset = dicom(tmp_path / "x.dcm", pixels(64, 64))
    dataset.compress("1.2.840.10008.1.2.4.90")
    dataset.Rows = 32
    dataset.save_as(tmp_path / "x.dcm")
    with pytest.raises(UnreadableImage, match="64 x 64 inside, 32 x 64 by its header"):
        read(tmp_path / "x.dcm")


def test_missing_codec_names_what_to_install_or_convert(tmp_path: Path) -> None:
    dataset = dicom(tmp_path / "x.dcm", GREY)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.103"  # MPEG-4 video
    dataset.PixelData = pydicom.encaps.encapsulate([GREY.tobytes()])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "x.dcm")
    with pytest.raises(UnreadableImage, match=r"no decoder for MPEG-4 .*; convert it"):
        read(tmp_path / "x.dcm")


def test_deflated_bomb_is_counted_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom(tmp_path / "bomb.dcm", np.zeros((2000, 2000), np.uint8), deflated=True)
    assert read(tmp_path / "bomb.dcm").size == (2000, 2000)
    monkeypatch.setattr("vesalius.images.reading.LARGEST", 1 << 20)
    with pytest.raises(UnreadableImage, match="decodes to"):
        read(tmp_path / "bomb.dcm")


@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("has_table", [True, False])
def test_frames_in_fragments(tmp_path: Path, fragments: int, has_table: bool) -> None:
    clip = pixels(3, 64, 64)
    dataset = dicom(tmp_path / "x.dcm", clip)
    dataset.compress("1.2.840.10008.1.2.4.90")
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=3))
    dataset.PixelData = pydicom.encaps.encapsulate(frames, fragments_per_frame=fragments, has_bot=has_table)
    dataset.save_as(tmp_path / "x.dcm")
    for frame in range(3):
        assert np.array_equal(read(tmp_path / "x.dcm", frame).array[0], clip[frame])
