"""DICOM through pydicom 3: one frame decoded at a time, display conventions undone, geometry from the tags or None."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, as_pixel_options, get_decoder, pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from vesalius.errors import UnreadableImage
from vesalius.images.codestreams import codestream_size
from vesalius.images.geometry import Geometry, geometry, lookup
from vesalius.images.image import Image
from vesalius.images.reading import DEFLATE, HARMLESS, LARGEST, Header, check_claim, choose_frame, native, reading

SUFFIXES = (".dcm", ".dicom", ".ima")

_TAGS = {
    "patient": "PatientID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "sop": "SOPInstanceUID",
    "frame_of_reference": "FrameOfReferenceUID",
    "body_part": "BodyPartExamined",
}
_PIXELS = {
    (0x7FE0, 0x0008): "FloatPixelData",
    (0x7FE0, 0x0009): "DoubleFloatPixelData",
    (0x7FE0, 0x0010): "PixelData",
}


def read_dicom(path: Path, frame: int | None = None) -> Image:
    """One frame of a DICOM file as ``[1, H, W]`` or ``[3, H, W]``; of several, `frame` (from 0) must choose one.

    The modality LUT is applied (integers stay integers when slope and intercept are), MONOCHROME1 is inverted over
    its stored range and its window with it, palettes and YBR become 8-bit RGB, unused high bits are cleared. The VOI
    window is handed on, not applied; a VOI lookup table is left out.

    Raises:
        UnreadableImage: for any reason, a missing codec and broken geometry tags included.
    """
    with reading(path), path.open("rb") as stream:
        dataset = read_header(path, stream)
        frames = frame_count(path, dataset)
        index = choose_frame(path, frame, frames)
        place = geometry(path, dataset, index)
        stored = _decode(path, stream, dataset, index)
        array, window = _values(dataset, stored, index)
        return Image(
            array,
            channel_names(dataset),
            spacing=place.spacing,
            affine=place.affine,
            window=window,
            modality=_text(dataset, "Modality"),
            path=path,
            frame=None if frames == 1 else index,
            frames=frames,
            tags=_provenance(dataset),
        )


def decode_frames(path: Path, frames: Iterable[int]) -> Iterator[tuple[np.ndarray, tuple[float, float] | None]]:
    """Values ``[C, H, W]`` and window of some frames of a file, as `read_dicom` gives them; the header is parsed once.

    Raises:
        UnreadableImage: for any reason.
    """
    with reading(path), path.open("rb") as stream:
        dataset = read_header(path, stream)
        start = stream.tell()
        for frame in frames:
            stream.seek(start)
            yield _values(dataset, _decode(path, stream, dataset, frame), frame)


def header_tags(dataset: Dataset) -> tuple[dict[str, str], str | None]:
    """Provenance and modality, as in `Image`."""
    return _provenance(dataset), _text(dataset, "Modality")


def probe_dicom(path: Path) -> Header:
    """The header of a DICOM image; its pixels are not read. The spacing is the first frame's.

    Raises:
        UnreadableImage: for any reason.
    """
    with reading(path), path.open("rb") as stream:
        dataset = read_header(path, stream)
        place: Geometry = geometry(path, dataset, 0)
        size = (int(dataset.Rows), int(dataset.Columns))
        modality = _text(dataset, "Modality")
        return Header(
            frame_count(path, dataset), size, channel_names(dataset), place.spacing, modality, tags=_provenance(dataset)
        )


def read_header(path: Path, stream: BinaryIO) -> Dataset:
    """The dataset up to its pixels, with a transfer syntax even where the file has no file meta information.

    Raises:
        UnreadableImage: it has no pixels, or is a deflated bomb.
    """
    _check_deflated(path, stream)
    dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    missing = [name for name in ("Rows", "Columns", "BitsAllocated") if not dataset.get(name)]
    if missing:
        raise UnreadableImage(f"has no pixels ({', '.join(missing)} missing)", path=path, remedy="leave it out")
    if dataset.get("SamplesPerPixel", 1) not in (1, 3):
        raise UnreadableImage(f"has {dataset.SamplesPerPixel} samples per pixel", path=path, remedy="export as RGB")
    return dataset


def _check_deflated(path: Path, stream: BinaryIO) -> None:
    """Inflate in constant memory and count, because pydicom inflates a deflated dataset whole."""
    start = stream.read(1024)
    stream.seek(0)
    if DeflatedExplicitVRLittleEndian.encode() not in start:
        return
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    # File meta is 132 bytes, its group length element 12, then as many bytes as that says.
    stream.seek(144 + meta.FileMetaInformationGroupLength)
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while chunk := stream.read(1 << 16):
        while chunk:
            total += len(inflater.decompress(chunk, 1 << 24))
            check_claim(path, total, stored=LARGEST, ratio=2)
            chunk = inflater.unconsumed_tail
    stream.seek(0)


def frame_count(path: Path, dataset: Dataset) -> int:
    """How many frames a file holds."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames < 1:
        raise UnreadableImage(f"NumberOfFrames is {frames}", path=path, remedy="export it again")
    return frames


def _decode(path: Path, stream: BinaryIO, dataset: Dataset, index: int) -> np.ndarray:
    """Stored values of one frame, ``[H, W]`` or ``[H, W, 3]`` (RGB), bounded before they are allocated.

    `stream` stands where `read_header` left it, at the pixel data element.
    """
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    bits = int(dataset.BitsAllocated)
    pixels = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1))
    length = path.stat().st_size
    if syntax == DeflatedExplicitVRLittleEndian:
        check_claim(path, pixels * bits // 8, stored=length, ratio=DEFLATE)
        stream.seek(0)
        return pixel_array(pydicom.dcmread(stream), index=index)

    options = as_pixel_options(dataset, **_enter_pixels(path, stream, syntax))
    if syntax.is_encapsulated:
        _check_codec(path, syntax)
        check_claim(path, pixels * max(bits, 8) // 8, stored=length, ratio=20 * DEFLATE)
        _check_codestream(path, stream, dataset, index)
    else:
        claimed = frame_count(path, dataset) * pixels * bits // 8
        if dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
            claimed = claimed * 2 // 3
        check_claim(path, claimed, stored=length - stream.tell(), ratio=1)
    return get_decoder(syntax).as_array(stream, index=index, **options)[0]


def _enter_pixels(path: Path, stream: BinaryIO, syntax: UID) -> dict[str, str]:
    """Read the pixel data element's tag, so that `stream` stands at its value; pydicom's names for what was found."""
    order: Literal["little", "big"] = "little" if syntax.is_little_endian else "big"
    start = stream.read(8 if syntax.is_implicit_VR else 12)
    tag = (int.from_bytes(start[:2], order), int.from_bytes(start[2:4], order))
    if tag not in _PIXELS:
        raise UnreadableImage("has no pixel data", path=path, remedy="it may be truncated: copy it again")
    found = {"pixel_keyword": _PIXELS[tag], "transfer_syntax_uid": syntax}
    return found if syntax.is_implicit_VR else {**found, "pixel_vr": start[4:6].decode("ascii")}


def _check_codec(path: Path, syntax: UID) -> None:
    try:
        decoder = get_decoder(syntax)
        if decoder.is_available:
            return
        remedy = f"install a decoder: {'; '.join(decoder.missing_dependencies)}"
    except NotImplementedError:
        remedy = "convert it to an uncompressed transfer syntax, as with dcmtk's dcmdjpeg or gdcmconv --raw"
    raise UnreadableImage(f"no decoder for {syntax.name}", path=path, remedy=remedy)


def _check_codestream(path: Path, stream: BinaryIO, dataset: Dataset, index: int) -> None:
    """Refuse what a codec would swallow: a cut-off fragment, or another size than the dataset's.

    libjpeg fills what is missing with grey, without a word, and every codec allocates by the size in its own header.
    """
    start, length = stream.tell(), path.stat().st_size
    fragments = list(_fragments(stream, index, frame_count(path, dataset)))
    if not fragments:
        raise UnreadableImage(f"has no compressed frame {index}", path=path, remedy="copy it again")
    if any(offset + size > length for offset, size in fragments):
        raise UnreadableImage("ends inside its compressed pixels", path=path, remedy="copy it again")
    offset, size = fragments[0]
    stream.seek(offset)
    inside = codestream_size(stream.read(min(size, 1 << 16)))
    stream.seek(start)
    if inside is not None and inside != (dataset.Rows, dataset.Columns):
        raise UnreadableImage(
            f"frame {index} is {inside[0]} x {inside[1]} inside, {dataset.Rows} x {dataset.Columns} by its header",
            path=path,
            remedy="it is damaged: copy or export it again",
        )


def _fragments(stream: BinaryIO, index: int, frames: int) -> Iterator[tuple[int, int]]:
    """Offset and length of the fragments of one frame; of all frames where nothing tells them apart."""
    table, count = next(_items(stream), (0, 0))
    if count != 4 * frames or count > HARMLESS:
        stream.seek(table + count)
        found = list(_items(stream))
        yield from found[index : index + 1] if len(found) == frames else found
        return
    stream.seek(table)
    starts = np.frombuffer(stream.read(count), "<u4").astype(np.int64) + table + count
    stream.seek(starts[index])
    for offset, size in _items(stream):
        if index + 1 < frames and offset > starts[index + 1]:
            return
        yield offset, size


def _items(stream: BinaryIO) -> Iterator[tuple[int, int]]:
    """Offset and length of each item (offset table, fragment) from here to the delimiter or to what is no item."""
    while (start := stream.read(8))[:4] == b"\xfe\xff\x00\xe0" and len(start) == 8:
        offset, size = stream.tell(), int.from_bytes(start[4:], "little")
        yield offset, size
        stream.seek(offset + size)


def _values(dataset: Dataset, stored: np.ndarray, index: int) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Values ``[C, H, W]`` that mean the same in every file, and the window in their units."""
    if stored.ndim == 3:
        return native(np.moveaxis(stored, -1, 0)), None
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        return native(np.moveaxis(_palette(dataset)[_as_index(dataset, stored)], -1, 0)), None

    window = _window(dataset, index)
    if stored.dtype.kind == "f":
        return native(stored[None]), window
    bits, signed = int(dataset.get("BitsStored") or dataset.BitsAllocated), stored.dtype.kind == "i"
    if not signed and bits < 8 * stored.dtype.itemsize:
        stored = stored & stored.dtype.type((1 << bits) - 1)  # old overlays live in the bits above
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)

    if dataset.get("ModalityLUTSequence"):
        values = apply_modality_lut(stored, dataset)
        low, high = 0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    else:
        slope = lookup(dataset, index, "PixelValueTransformationSequence", "RescaleSlope")
        intercept = lookup(dataset, index, "PixelValueTransformationSequence", "RescaleIntercept")
        slope, intercept = float(1 if slope is None else slope), float(intercept or 0)
        values = _rescale(stored, slope, intercept, low, high)
        low, high = sorted((low * slope + intercept, high * slope + intercept))

    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        values = _invert(values, low + high)
        window = None if window is None else (low + high - window[0], window[1])
    return native(values[None]), window


def _rescale(stored: np.ndarray, slope: float, intercept: float, low: float, high: float) -> np.ndarray:
    """``stored * slope + intercept``: the same dtype for every image of one header, integer where that is exact."""
    if slope == 1 and intercept == 0:
        return stored
    if not (slope.is_integer() and intercept.is_integer()):
        return (stored * slope + intercept).astype(np.float32)
    values = stored.astype(np.int64) * int(slope) + int(intercept)
    ends = [low * slope + intercept, high * slope + intercept, int(values.min()), int(values.max())]
    for dtype in (np.int16, np.int32):
        limits = np.iinfo(dtype)
        if limits.min <= min(ends) and max(ends) <= limits.max:
            return values.astype(dtype)
    return values.astype(np.float32)


def _invert(values: np.ndarray, total: float) -> np.ndarray:
    if values.dtype.kind == "f":
        return (total - values).astype(values.dtype)
    limits = np.iinfo(values.dtype)
    return np.clip(int(total) - values.astype(np.int64), limits.min, limits.max).astype(values.dtype)


def _palette(dataset: Dataset) -> np.ndarray:
    """The lookup table for every stored value, ``[2**bits, 3]`` uint8."""
    bits = min(int(dataset.BitsAllocated), 16)
    table = apply_color_lut(np.arange(1 << bits, dtype=f"uint{bits}"), dataset)[:, :3]
    if table.dtype == np.uint16:
        # Some writers put 8-bit colours into 16-bit entries.
        table = table >> 8 if table.max() > 255 else table
    return table.astype(np.uint8)


def _as_index(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    return stored.view(f"uint{min(int(dataset.BitsAllocated), 16)}") if stored.dtype.kind == "i" else stored


def _window(dataset: Dataset, index: int) -> tuple[float, float] | None:
    centre = lookup(dataset, index, "FrameVOILUTSequence", "WindowCenter")
    width = lookup(dataset, index, "FrameVOILUTSequence", "WindowWidth")
    if centre is None or width is None:
        return None
    # Several windows are alternatives; the first is the one a viewer opens with.
    centre, width = (float(np.atleast_1d(value)[0]) for value in (centre, width))
    return (centre, width) if np.isfinite([centre, width]).all() and width > 0 else None


def channel_names(dataset: Dataset) -> tuple[str, ...]:
    """As in `Image`."""
    colour = dataset.get("SamplesPerPixel", 1) == 3 or dataset.get("PhotometricInterpretation") == "PALETTE COLOR"
    return ("R", "G", "B") if colour else ("gray",)


def _text(dataset: Dataset, name: str) -> str | None:
    value: Any = dataset.get(name)
    return str(value).strip() or None if value is not None else None


def _provenance(dataset: Dataset) -> dict[str, str]:
    found = {name: _text(dataset, keyword) for name, keyword in _TAGS.items()}
    return {name: value for name, value in found.items() if value is not None}
