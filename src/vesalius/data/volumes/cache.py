"""Prepared cases on disk, once for all epochs, workers, processes and runs that see them alike.

A case is a folder of ``.npy`` files that are memory-mapped, so that a patch costs its own bytes and all processes share
the pages. Its name is a hash of its files' contents and of all that was done to them: a changed file or contract is
another entry, never a wrong one. Two runs that start at once prepare each case once; a killed one leaves no half case.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from vesalius.data.progress import track
from vesalius.data.table import MASK_SEPARATOR
from vesalius.data.volumes.cases import is_nifti, probe_case
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.memory import gib
from vesalius.data.volumes.prepare import Prepared, Relabel, prepare
from vesalius.errors import VesaliusError
from vesalius.files import output_folder, sha256, write_text

VERSION = 1
"""Raised when the same case would be prepared otherwise."""
_FILES = ("image", "limits", "mask", "points")


class VolumeCache:
    """The prepared cases of a contract in a folder, which other contracts may share.

    Args:
        folder: made if need be; may be deleted whenever no run uses it.
        contract: what the network reads; its ``roi`` makes no difference.
        classes: names of the masks' values, None for no masks.
        crop: leave out the border without foreground.
        relabel: of `prepare`.

    Raises:
        VesaliusError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        contract: VolumeContract,
        *,
        classes: Sequence[str] | None = None,
        crop: bool = False,
        relabel: Relabel | None = None,
    ) -> None:
        self.folder = output_folder(folder)
        self.contract, self.crop, self.relabel = contract, crop, relabel
        self.classes = None if classes is None else list(classes)
        what = {**contract.to_dict(), "roi": None, "classes": self.classes, "crop": crop, "version": VERSION}
        if relabel is not None:
            what["relabel"] = relabel.key
        self._transform = json.dumps(what, sort_keys=True)
        self._keys: dict[str, str] = {}

    def build(self, rows: Sequence[Mapping[str, Any]], *, workers: int = 0) -> None:
        """Prepare the cases that are not there yet, after saying how much disk they take.

        Args:
            rows: of a table.
            workers: processes that prepare cases, each of which needs the memory of one; 0 is this one.

        Raises:
            VesaliusError: the disk is too small, a case cannot be prepared (names it), or a process was killed.
        """
        with ThreadPoolExecutor(max(workers, 1)) as readers:  # hashing waits for the disk
            entries = track(readers.map(self._entry, rows), len(rows), "looking at volumes")
            missing = [row for row, entry in zip(rows, list(entries), strict=True) if not entry.is_dir()]
        if not missing:
            return
        needed, free = sum(self.estimate(row) for row in missing), shutil.disk_usage(self.folder).free
        said = f"{len(missing)} of {len(rows)} volumes to prepare, at most {gib(needed)} ({gib(free)} free)"
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"cache {self.folder}: {said}", markup=False)
        if needed > free:
            raise VesaliusError(
                f"{said[0].upper()}{said[1:]}", path=self.folder, remedy="choose a folder on a larger disk"
            )
        if workers < 2:
            for row in track(missing, len(missing), "preparing volumes"):
                self.get(row)
            return
        # One thread a process: threads of the parent's are not there after a fork.
        with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            done = [pool.submit(self._prepare, row) for row in missing]
            try:
                for each in track(as_completed(done), len(done), "preparing volumes"):
                    each.result()
            except BrokenProcessPool as error:
                raise VesaliusError(
                    "a process that prepared volumes was killed, most often for lack of memory",
                    remedy="use fewer workers (0 prepares them in the training process)",
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    def get(self, row: Mapping[str, Any]) -> Prepared:
        """A row's case, prepared now if it is not there yet; arrays are memory-mapped, copied only where written to.

        Raises:
            VesaliusError: it cannot be prepared, or the disk is full.
        """
        entry = self._entry(row)
        if not entry.is_dir():
            with self._locked(entry.name):
                if not entry.is_dir():  # another process may have been first
                    options: dict[str, Any] = {"classes": self.classes, "crop": self.crop, "relabel": self.relabel}
                    self._write(entry, prepare(row, self.contract, **options), row)
        try:
            arrays = {
                name: np.load(entry / f"{name}.npy", mmap_mode="c" if name in ("image", "mask") else None)
                for name in _FILES
                if (entry / f"{name}.npy").exists()
            }
            return Prepared(arrays["image"], arrays["limits"], arrays.get("mask"), arrays["points"])
        except (OSError, ValueError, KeyError) as error:
            raise VesaliusError(f"cannot be read ({error})", path=entry, remedy="delete this folder") from error

    def _prepare(self, row: Mapping[str, Any]) -> None:
        """As `get`, for another process, which has no use for what it returns."""
        self.get(row)

    def estimate(self, row: Mapping[str, Any]) -> int:
        """Bytes that a row's case takes at most, from its size and spacing: 4 a voxel and channel, 1 for the mask."""
        voxels = float(np.prod(row["size"], dtype=np.float64))
        if self.contract.spacing is not None and row["spacing"]:
            voxels *= float(np.prod(row["spacing"]) / np.prod(self.contract.spacing))
        return int(voxels * (4 * len(self.contract.channels) + (self.classes is not None)))

    def _entry(self, row: Mapping[str, Any]) -> Path:
        """The folder of a row's case, by what is in its files and what is done to them."""
        name = f"{row['path']}|{row['mask']}|{row['frame']}"
        if name not in self._keys:
            told = [row["channels"], row["mask_classes"], row["frame"]]
            told += [] if self.relabel is None else [row["annotated"]]
            parts = [self._transform, json.dumps(told)]
            parts += [self._sha256(path) for path in _sources(row, masks=self.classes is not None)]
            self._keys[name] = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        return self.folder / self._keys[name]

    def _sha256(self, path: Path) -> str:
        """A file's hash, which is kept until the file changes: hashing a large set takes minutes."""
        try:
            stat = path.stat()
        except OSError as error:
            raise VesaliusError("is not there", path=path, remedy="put it back, or index again") from error
        known = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        note = self.folder / "hashes" / hashlib.sha256(known.encode()).hexdigest()[:32]
        if not note.exists():
            write_text(note, sha256(path))
        return note.read_text(encoding="ascii")

    def _write(self, entry: Path, case: Prepared, row: Mapping[str, Any]) -> None:
        """Write beside the entry, then rename; what a killed run left is swept away."""
        part = entry.with_name(f".{entry.name}")
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir()
            for name in _FILES:
                if (array := getattr(case, name)) is not None:
                    _save(part / f"{name}.npy", partial(np.save, arr=array))
            text = json.dumps({"case": row["path"], **json.loads(self._transform)}, indent=2)
            _save(part / "case.json", lambda stream: stream.write(text.encode()))
            part.rename(entry)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise VesaliusError(
                f"writing failed ({error.strerror or error})", path=entry, remedy="free some space"
            ) from error

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Alone at this entry among all processes; a lock ends with its process, however that ends."""
        path = self.folder / f".{name}.lock"
        with path.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)  # whoever still waits for it finds the entry


def _sources(row: Mapping[str, Any], *, masks: bool) -> list[Path]:
    """All files that a row's case is stored in."""
    found: list[Path] = []
    for name in row["path"].split(MASK_SEPARATOR):
        if Path(name).is_dir():
            found += sorted(file for file in Path(name).iterdir() if file.is_file())
        else:
            found += [Path(name)] if is_nifti(Path(name)) else probe_case([name])[1]
    if masks:
        found += [Path(name) for name in row["mask"].split(MASK_SEPARATOR)]
    return found


def _save(path: Path, write: Callable[[Any], Any]) -> None:
    with path.open("wb") as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())
