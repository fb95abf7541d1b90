"""Images per second: `vesalius.images.read` beside raw Pillow and pydicom, the dataset beside a plain Pillow loop.

    python benchmarks/reader.py [--n 40] [--size 512] [--zoo FOLDER]

Files are generated: speckle, so that they compress as ultrasound does. `--zoo` (or what VESALIUS_SHARED names)
adds a collection of real DICOM files of many kinds, those that both sides can decode.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import torch
from PIL import Image as Pillow
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage, generate_uid
from torchvision.transforms.v2 import functional as F

from vesalius.data.contract import InputContract
from vesalius.data.datasets import ImageDataset
from vesalius.data.index import index
from vesalius.errors import VesaliusError
from vesalius.images import read

from measure import Row, interleaved, show


def speckle(size: int, rng: np.random.Generator) -> np.ndarray:
    """A grey image ``[size, size]`` uint8 of log-compressed speckle under a smooth echogenicity."""
    coarse = rng.random((8, 8))
    smooth = np.asarray(Pillow.fromarray(coarse.astype(np.float32)).resize((size, size), Pillow.Resampling.BICUBIC))
    noise = np.hypot(*rng.standard_normal((2, size, size))) * (0.1 + smooth.clip(0))
    return (255 * np.log1p(20 * noise) / np.log1p(20 * noise.max())).astype(np.uint8)


def write_dicom(path: Path, pixels: np.ndarray, *, rle: bool) -> None:
    """A minimal secondary-capture DICOM of ``pixels [H, W]`` uint8."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.PatientID, data.Modality = path.stem, "US"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = pixels.tobytes()
    if rle:
        data.compress(RLELossless)
    data.save_as(path)


def generate(folder: Path, *, n: int, size: int) -> dict[str, list[Path]]:
    """`n` files of each kind."""
    rng = np.random.default_rng(0)
    files: dict[str, list[Path]] = {}
    for kind in ("png", "jpg", "tiff", "dicom", "dicom-rle"):
        place = folder / kind
        place.mkdir()
        for i in range(n):
            path = place / f"p{i:03d}.{'dcm' if kind.startswith('dicom') else kind}"
            pixels = speckle(size, rng)
            if kind.startswith("dicom"):
                write_dicom(path, pixels, rle=kind == "dicom-rle")
            else:
                Pillow.fromarray(pixels).save(path)
            files.setdefault(kind, []).append(path)
    return files


def with_pillow(path: Path) -> np.ndarray:
    """The pixels, nothing else."""
    with Pillow.open(path) as picture:
        return np.asarray(picture)


def with_pydicom(path: Path) -> np.ndarray:
    """The stored pixels of the first frame, nothing else."""
    return pydicom.dcmread(path).pixel_array


def both_read(path: Path) -> bool:
    """Whether both sides can decode this file as one image."""
    try:
        read(path)
        with_pydicom(path)
    except (VesaliusError, AttributeError, KeyError, NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def rate(work: str, peer: str, n: int, ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> Row:
    """Images per second of two ways to go through `n` images."""
    seconds = interleaved({"ours": ours, "theirs": theirs}, repeats=repeats, warmup=1)
    return Row(work, peer, "images/s", n / seconds["ours"], n / seconds["theirs"], repeats)


def each(function: Callable[[Path], object], paths: list[Path]) -> Callable[[], object]:
    """`function` on all of `paths`, results dropped."""
    return lambda: [function(path) is None for path in paths]


def main() -> None:
    """Generate, measure, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=40, help="files of each kind")
    parser.add_argument("--size", type=int, default=512, help="pixels of their side")
    parser.add_argument(
        "--zoo", type=Path, default=Path(os.environ.get("VESALIUS_SHARED", "../shared")) / "data/dicom_zoo"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, paths in generate(folder, n=options.n, size=options.size).items():
            raw, peer = (with_pydicom, "pydicom") if kind.startswith("dicom") else (with_pillow, "Pillow")
            work = f"read {kind}, {options.size} px"
            rows.append(rate(work, peer, len(paths), each(read, paths), each(raw, paths), options.repeats))

        contract = InputContract()
        dataset = ImageDataset(index(folder / "png", folder / "png.parquet"), contract)
        paths = sorted((folder / "png").glob("*.png"))

        def plain(path: Path) -> torch.Tensor:
            with Pillow.open(path) as picture:
                small = picture.convert("L").resize((contract.size, contract.size), Pillow.Resampling.BICUBIC)
            return F.to_dtype(F.to_image(small), torch.float32, scale=True).expand(3, -1, -1)

        rows.append(
            rate(
                f"dataset and contract: png to [3, {contract.size}, {contract.size}]",
                "Pillow",
                len(paths),
                lambda: [contract.resize(dataset[i]["image"]).shape for i in range(len(dataset))],
                each(plain, paths),
                options.repeats,
            )
        )
    if options.zoo.is_dir():
        paths = [path for path in sorted(options.zoo.glob("*.dcm")) if both_read(path)]
        work = f"read {len(paths)} real DICOM files of many kinds"
        rows.append(rate(work, "pydicom", len(paths), each(read, paths), each(with_pydicom, paths), options.repeats))
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
