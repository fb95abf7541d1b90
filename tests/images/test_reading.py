"""Whatever a file holds, reading it gives an `Image` or one `UnreadableImage`: never another exception, never noise."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from samples import dicom, one_of_each, pixels

from vesalius.errors import UnreadableImage
from vesalius.images import is_image, probe, read

with tempfile.TemporaryDirectory() as _folder:
    SEEDS = one_of_each(Path(_folder))


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_every_family_is_read_and_probed_alike(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(SEEDS[name])
    header = probe(path)
    image = read(path, None if header.frames == 1 or len(header.size) == 3 else 1)
    assert is_image(path)
    assert (header.size, header.channels, header.frames) == (image.size, image.channels, image.frames)
    assert (header.spacing, header.modality, header.tags) == (image.spacing, image.modality, image.tags)


def error_of(function: Callable, *arguments: object) -> UnreadableImage | None:
    try:
        function(*arguments)
    except UnreadableImage as error:
        return error
    return None


def assert_one_line(path: Path, error: UnreadableImage | None) -> None:
    assert error is None or (str(error).startswith(f"{path}: ") and "\n" not in str(error))


edits = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["set", "big", "drop", "add"]), st.binary(min_size=1, max_size=4)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(SEEDS)), edits=edits, early=st.booleans(), frame=st.sampled_from([None, 0, 1]))
def test_mutated_files(tmp_path: Path, name: str, edits: list, early: bool, frame: int | None) -> None:
    content = bytearray(SEEDS[name])
    for place, kind, data in edits:
        at = int(place * (min(len(content), 400) if early else len(content)))
        if kind == "set":
            content[at : at + len(data)] = data
        elif kind == "big":
            content[at : at + 4] = b"\xff\xff\xff\x7f"
        elif kind == "drop":
            del content[at : at + len(data)]
        else:
            content[at:at] = data
    path = tmp_path / name
    path.write_bytes(content)
    assert_one_line(path, error_of(read, path, frame))
    assert_one_line(path, error_of(probe, path))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated_files_are_errors(tmp_path: Path, data: st.DataObject) -> None:
    # Formats that say how long they are; the last bytes of the others may be padding.
    name = data.draw(st.sampled_from(["clip.dcm", "deep.png", "grey.dcm", "j2k.dcm", "rle.dcm", "volume.nii"]))
    path = tmp_path / name
    path.write_bytes(SEEDS[name][: data.draw(st.integers(0, len(SEEDS[name]) - 40))])
    with pytest.raises(UnreadableImage):
        read(path, 0)


def test_mutated_real_files(tmp_path: Path, shared_data) -> None:
    rng = np.random.default_rng(0)
    for source in sorted(shared_data("dicom_zoo").glob("*.dcm")):
        content = source.read_bytes()
        if len(content) > 60_000:
            continue
        for _ in range(12):
            changed = np.frombuffer(content, np.uint8).copy()
            changed[rng.integers(0, len(changed), 20)] = rng.integers(0, 256, 20)
            path = tmp_path / "changed.dcm"
            path.write_bytes(changed.tobytes())
            assert_one_line(path, error_of(read, path, 0))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.png", b"", "is empty; copy it again"),
        ("empty.dcm", b"", "is empty"),
        ("text.png", b"not an image at all", "is not an image"),
        ("text.dcm", b"not an image at all", "cannot be read|has no pixels"),
        ("text.nii.gz", b"not an image at all", "cannot be read"),
        ("array.npz", b"PK\x03\x04" + bytes(200), "is not an image"),
    ],
)
def test_impostors(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for function in (read, probe):
        with pytest.raises(UnreadableImage, match=says) as caught:
            function(path)
        assert caught.value.path == path and caught.value.remedy


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="does not exist"):
        read(tmp_path / "none.png")
    with pytest.raises(UnreadableImage, match="is not a file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")  # would block for ever
    with pytest.raises(UnreadableImage, match="is not a file"):
        read(tmp_path / "pipe.png")
    assert not is_image(tmp_path / "pipe.png")


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_bombs_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png(side, side))
    with pytest.raises(UnreadableImage, match=r"too large|announces"):
        read(tmp_path / "bomb.png")


def test_is_image_by_suffix_or_content(tmp_path: Path) -> None:
    for name in SEEDS:
        (tmp_path / name).write_bytes(SEEDS[name])
    for bare, source in [("IM0001", "grey.dcm"), ("1.2.840.113", "grey.dcm"), ("scan", "grey.png")]:
        (tmp_path / bare).write_bytes(SEEDS[source])
        assert is_image(tmp_path / bare) and read(tmp_path / bare).array.shape == (1, 12, 17)
    for name, content in [
        ("weights.npz", b"PK\x03\x04" + bytes(300)),
        ("model.pkl", b"\x80\x04\x95" + bytes(300)),
        ("labels.csv", b"path,label\n" * 30),
        ("DICOMDIR", SEEDS["grey.dcm"]),
    ]:
        (tmp_path / name).write_bytes(content)
        assert not is_image(tmp_path / name), name
    assert not is_image(tmp_path) and not is_image(tmp_path / "none.png")


def test_content_wins_over_a_wrong_suffix(tmp_path: Path) -> None:
    Pillow.fromarray(pixels(12, 17)).save(tmp_path / "real.png")
    (tmp_path / "real.png").rename(tmp_path / "called.jpg")
    dicom(tmp_path / "called.png", pixels(12, 17))
    assert read(tmp_path / "called.jpg").modality is None
    assert read(tmp_path / "called.png").modality == "US"


def test_decoders_are_silent(tmp_path: Path, recwarn: pytest.WarningsRecorder, capfd) -> None:
    dicom(tmp_path / "odd.dcm", pixels(12, 17), BodyPartExamined="lower case, which pydicom warns of")
    pydicom.dcmread(tmp_path / "odd.dcm").BodyPartExamined  # noqa: B018 -- to see that it does
    assert recwarn.list
    recwarn.clear()
    read(tmp_path / "odd.dcm")
    assert not recwarn.list and capfd.readouterr() == ("", "")
