"""Who proposes: a Vesalius run, any command that writes NIfTI, or a folder of masks that exist; a YAML file each.

```yaml
run: runs/universal                 # a run, or a converted file; sigmoids or softmax give probabilities
retrain: {method: universal, steps: 200}   # how `next` trains it again; without, it stays as it is
```
```yaml
command: TotalSegmentator -i {image} -o {out}
labels: {inferior_vena_cava: postcava}     # names or values that differ from the classes'
hours: 2
```
```yaml
masks: masks/{stem}.nii.gz          # or {parent}/seg.nii.gz beside the image, or a folder of one file or folder a case
labels: {1: spleen, 2: kidney}      # a pair of the class table is divided into its sides; or dataset.json
```

A command sees the volume as ``case_0000.nii.gz`` (further channels as ``_0001``, ...) alone in a folder, with geometry
and no tags, so that nothing of the patient gets into its logs. What it leaves in ``{out}`` is one label map (``labels``
says of what), or a mask of each structure named after it.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from vesalius.curate.masks import read_labels, write_volume
from vesalius.curate.records import check_name
from vesalius.data.class_tables import LEFT, ClassTable, name_key
from vesalius.data.label_tables import left_side
from vesalius.data.volumes.transforms import grid_of
from vesalius.errors import ConfigError, VesaliusError, nearest
from vesalius.files import sha256
from vesalius.images import Image

SUFFIXES = (".nii.gz", ".nii", ".dcm")
Mask = NDArray[np.bool_]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Predictor:
    """A member of the ensemble; exactly one of run, command and masks is given.

    Args:
        name: in file names.
        run: a run folder, or a converted weights file.
        command: with {image} (a NIfTI file), or {images} (the folder it lies in), and {out}.
        masks: a folder, or a path with {stem} (of the image), {folder} (the name of the one that it is in), {parent}
            (that one's whole path) or {case}.
        labels: what its values or names mean, where they are not the classes' own names; "" leaves one out.
        hours: that a command may take for a case.
        retrain: how the next round trains a run again: method (universal or full), and options of that verb.
    """

    name: str
    run: str = ""
    command: str = ""
    masks: str = ""
    labels: Mapping[str | int, str] = field(default_factory=dict)
    hours: float = 6.0
    retrain: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        if sum(map(bool, (self.run, self.command, self.masks))) != 1:
            raise ConfigError(f"predictor {self.name!r}", remedy="give one of run, command and masks")
        if self.command and not ("{out}" in self.command and ("{image}" in self.command or "{images}" in self.command)):
            raise ConfigError(f"the command of {self.name!r}", remedy="write {image} (or {images}) and {out} in it")
        if self.retrain and self.retrain.get("method") not in ("universal", "full"):
            raise ConfigError(f"retrain of {self.name!r}", remedy="give method: universal, or method: full")

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, Any]) -> Predictor:
        """From YAML.

        Raises:
            ConfigError: an unknown key, or not one of run, command and masks.
        """
        known = [item.name for item in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"predictor {name!r} knows no {key!r}", remedy=nearest(key, known))
        return cls(**{"name": name, **values})

    @classmethod
    def load(cls, path: str | Path, table: ClassTable) -> Predictor:
        """From a file NAME.yaml; relative paths in it begin at its folder.

        Args:
            path: the file; its ``labels`` may name a ``dataset.json``, of which what is no class is left out.
            table: the classes.

        Raises:
            ConfigError: it is missing, or describes no predictor.
        """
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            if isinstance(listed := values.get("labels"), str):
                names = _dataset_labels(path.parent / listed)
                values["labels"] = {value: table.resolve(name) or "" for value, name in names.items()}
            found = cls.from_dict(path.stem, values)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", remedy="give one YAML file a predictor") from error
        except (yaml.YAMLError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ConfigError(f"{path} describes no predictor ({reason})", remedy="write run: FOLDER") from error
        base = path.parent.resolve()
        placed = {key: str(base / one) for key in ("run", "masks") if (one := getattr(found, key)) and one[0] != "{"}
        return cls(**{**asdict(found), **placed})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the name: what `from_dict` takes."""
        return {key: value for key, value in asdict(self).items() if value and key != "name"}

    def key(self, files: list[Path]) -> str:
        """What its predictions depend on: how it is described, and the checksums of its weights or existing masks."""
        weights = [weights_file(self.run)] if self.run else []
        described = {name: value for name, value in self.to_dict().items() if name not in ("hours", "retrain")}
        text = json.dumps([described, [_sha(path, path.stat().st_mtime_ns) for path in [*weights, *files]]])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def existing(self, image: Path, case: str) -> list[Path]:
        """The files with a case's masks, for a predictor of those; none where it has none of the case."""
        if not self.masks:
            return []
        stem = _stem(image)
        if "{" in self.masks:
            named = {"stem": stem, "folder": image.parent.name, "parent": image.parent, "case": case}
            places = [Path(self.masks.format(**named))]
        else:
            names = dict.fromkeys([stem, stem.removesuffix("_0000"), case])
            places = [Path(self.masks, name + suffix) for name in names for suffix in ("", *SUFFIXES)]
        for place in places:
            if place.is_file():
                return [place]
            if place.is_dir() and (found := list(_mask_files(place))):
                return found
        return []


@dataclass(frozen=True)
class Found:
    """What a predictor says of a case, on the image's voxels.

    Args:
        structures: those that it knows, present or not.
        labels: ``[D, H, W]`` uint8, value i + 1 being the i-th class; None where structures may overlap.
        masks: structure -> ``[D, H, W]`` bool, where there are no `labels`.
        probabilities: structure -> ``[D, H, W]`` uint8, 255 x p, of those that have one.
    """

    structures: tuple[str, ...]
    labels: Bytes | None = None
    masks: Mapping[str, Mask] = field(default_factory=dict)
    probabilities: Mapping[str, Bytes] = field(default_factory=dict)


def predict(predictor: Predictor, image: Image, table: ClassTable, *, files: list[Path]) -> Found:
    """What a predictor says of a volume.

    Args:
        predictor: a run is loaded once a process.
        image: ``[C, D, H, W]``.
        table: the classes; names of a pair are divided into sides.
        files: of existing masks.

    Raises:
        VesaliusError: a run or command fails, or what it wrote does not lie on the image.
    """
    if predictor.run:
        from vesalius.curate.run_predictor import predict_with_run  # networks take seconds to import

        return predict_with_run(predictor, image, table)
    if predictor.masks:
        return _read(predictor, files, image, table)
    with tempfile.TemporaryDirectory(prefix="vesalius-") as folder:
        given, out = Path(folder, "images", "case_0000.nii.gz"), Path(folder, "out")
        out.mkdir()
        for number, channel in enumerate(image.array):
            write_volume(channel, image, given.with_name(f"case_{number:04}.nii.gz"))
        words = [word.format(image=given, images=given.parent, out=out) for word in shlex.split(predictor.command)]
        _call(predictor, words)
        written = [out] if out.is_file() else list(_mask_files(out))
        if not written:
            raise VesaliusError(f"{predictor.name} wrote no .nii.gz", remedy="see that its command writes to {out}")
        return _read(predictor, written, image, table)


def _call(predictor: Predictor, words: list[str]) -> None:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=predictor.hours * 3600, check=False, errors="replace"
        )
    except FileNotFoundError as error:
        raise ConfigError(f"{predictor.name}: there is no program {words[0]!r}", remedy="install it") from error
    except subprocess.TimeoutExpired as error:
        raise VesaliusError(
            f"{predictor.name} took more than {predictor.hours:g} hours", remedy="give it more hours"
        ) from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise VesaliusError(
            f"{predictor.name} ended with code {done.returncode} ({said[-1][:160] if said else 'it said nothing'})",
            remedy="run its command by hand",
        )


def _read(predictor: Predictor, files: list[Path], image: Image, table: ClassTable) -> Found:
    """Existing masks: one label map, or one file a structure."""
    numbered = any(isinstance(key, int) for key in predictor.labels)
    if len(files) == 1 and (numbered or meaning(predictor, _stem(files[0]), table) is None):
        values, names = read_labels(files[0], image)
        meant: list[str | None] = ["", *(meaning(predictor, name, table) for name in names)]
        if not names and numbered:
            most = max(key for key in predictor.labels if isinstance(key, int))
            meant = [meaning(predictor, value, table) for value in range(most + 1)]
        if not any(meant) or values.max() >= len(meant):
            raise ConfigError(
                f"{predictor.name} has values up to {values.max()} whose meaning is not known",
                remedy=f"write labels: {{1: {table.names[0]}, ...}} in its YAML file",
            )
        return Found(structures(meant, table), told(values, meant, image, table))
    masks: dict[str, Mask] = {}
    for file in files:
        name = meaning(predictor, _stem(file), table)
        if not name:
            continue
        mask = read_labels(file, image)[0] > 0
        if name in table.pairs:
            grid = grid_of(image, orientation="RAS", spacing=None)
            left = grid.invert(left_side(grid.apply(mask, labels=True)))
            sides = dict(zip(table.pairs[name], (mask & ~left, mask & left), strict=True))
        else:
            sides = {name: mask}
        for side, part in sides.items():
            masks[side] = masks[side] | part if side in masks else part
    if not masks:
        raise ConfigError(
            f"{predictor.name} has no file that is named after a structure", remedy="say under labels which is which"
        )
    return Found(tuple(masks), masks=masks)


def told(values: NDArray[Any], meant: Sequence[str | None], image: Image, table: ClassTable) -> Bytes:
    """A label map in other names as one of the table's classes, with pairs divided into right and left.

    Args:
        values: ``[D, H, W]`` on the image's voxels.
        meant: what each value is called in the table (`ClassTable.sources`); None or "" for nothing.
        image: tells where the patient's right is.
        table: the classes; class i has the value i + 1 in the result.
    """
    codes = np.array([table.sources.index(name) + 1 if name else 0 for name in meant], np.uint8)[values]
    pairs = [name for name in table.pairs if name in meant]
    if not pairs:
        return codes
    grid = grid_of(image, orientation="RAS", spacing=None)
    sided = table.sides(grid.apply(codes, labels=True), pairs)
    final = np.arange(256, dtype=np.uint8) % LEFT
    for pair, sides in table.pairs.items():
        value = table.sources.index(pair) + 1
        final[[value, value + LEFT]] = [table.names.index(side) + 1 for side in sides]
    return grid.invert(final[sided])


def meaning(predictor: Predictor, name: str | int, table: ClassTable) -> str | None:
    """The class or pair that a predictor's name or value means; None for none.

    Raises:
        ConfigError: its labels name something that is no class.
    """
    for key, meant in predictor.labels.items():
        if key == name or (isinstance(name, str) and name_key(str(key)) == name_key(name)):
            found = table.resolve(meant) if meant else None
            if meant and found is None:
                raise ConfigError(f"{predictor.name}: {meant!r} is not a class", remedy=nearest(meant, table.sources))
            return found
    return table.resolve(name) if isinstance(name, str) else None


def _dataset_labels(path: Path) -> dict[int, str]:
    """Value -> name of a Decathlon's or nnU-Net's ``dataset.json``; the one maps values to names, the other back."""
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"].items()
        return {int(key): str(one) for key, one in labels} if "0" in dict(labels) else {int(v): k for k, v in labels}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} names no labels ({error})", remedy="write labels: {1: liver}") from error


def structures(meant: Sequence[str | None], table: ClassTable) -> tuple[str, ...]:
    """The classes that names stand for, a pair for both sides."""
    named = [side for name in meant if name for side in table.pairs.get(name, (name,))]
    return tuple(name for name in table.names if name in named)


def _stem(path: Path) -> str:
    name = path.name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _mask_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.name.endswith(SUFFIXES) and path.is_file())


def weights_file(run: str) -> Path:
    """The weights of a run folder, or of a converted file.

    Raises:
        ConfigError: there are none.
    """
    path = Path(run)
    path = path / "weights.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(
            f"{run} holds no trained weights", remedy="give a run folder of Vesalius, or a converted file"
        )
    return path


@lru_cache(1024)
def _sha(path: Path, changed: int) -> str:
    return sha256(path)
