"""MedFMC (Wang et al. 2023) as it comes: chest, colon and endo with their text lists, and the few-shot draws of them.

Each set is a folder ``images`` and lists of lines ``NAME FLAGS``, in the set's folder or in its counterpart beneath
``data_backup``. What is taken for a patient is part of the image's name: of endo the study (the first 18 characters),
of colon all but the last 9 characters, which is a region of a slide; chest names no patient.

The published few-shot lists draw K of these of every class, with all their images of that class. Their code meant to
take the drawn images out of the validation lists, and for chest and endo does not; `published_draws` does.

Wang D, Wang X, Wang L, et al. A real-world dataset and benchmark for foundation model adaptation in medical image
classification. Scientific Data 10, 574 (2023). doi:10.1038/s41597-023-02460-0
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vesalius.data.entry import Entry, Folder
from vesalius.data.table import shorten
from vesalius.errors import ConfigError, VesaliusError, nearest

DRAWS = 5
"""Published draws for each number of shots."""
TRAINING = ("trainval", "train_20", "val_20")
LABELLED_TEST, UNLABELLED_TEST = "test_WithLabel", "test_WithoutLabel"
LABELLED = (*TRAINING, LABELLED_TEST)
NAME = re.compile(r".+\.\w+")


@dataclass(frozen=True)
class MedFMC:
    """One of the three sets.

    Args:
        classes: in the order of the flags.
        flags: what a line ends in: one digit a class, or the number of the one class.
        patient: the part of a file's name that stands for the patient; None if the name does not tell.
        modality: DICOM's code.  organ: as in the table.
    """

    classes: tuple[str, ...]
    flags: str
    patient: slice | None
    modality: str
    organ: str | None

    def parse(self, line: str) -> tuple[str, tuple[int, ...]]:
        """A line's file name, which may hold spaces, and a flag for every class.

        Raises:
            ValueError: the line is something else.

        >>> SETS["endo"].parse("13333_2021.01_0000_50000001.png 0 0 1 0")
        ('13333_2021.01_0000_50000001.png', (0, 0, 1, 0))
        >>> SETS["colon"].parse("2019-1_2019-05-28 23_07_27-lv1-0-1-2-3p0004.png 1")
        ('2019-1_2019-05-28 23_07_27-lv1-0-1-2-3p0004.png', (0, 1))
        """
        match = re.fullmatch(rf"({NAME.pattern})\s+({self.flags})\s*", line)
        if match is None:
            raise ValueError(line)
        digits = [int(digit) for digit in re.findall(r"\d", match[2])]
        if len(digits) < len(self.classes):
            digits = [int(number == digits[0]) for number in range(len(self.classes))]
        return match[1], tuple(digits)

    def unit(self, name: str) -> str:
        """The patient of a file, or the file.

        >>> SETS["endo"].unit("13333_2021.01_0000_50000001.png")
        '13333_2021.01_0000'
        """
        return name if self.patient is None else name[self.patient]

    def named(self, flags: Sequence[int]) -> tuple[str, ...]:
        """The classes whose flags are set."""
        return tuple(name for name, flag in zip(self.classes, flags, strict=True) if flag)


SETS = {
    "chest": MedFMC(
        classes=(
            "pleural_effusion",
            "nodule",
            "pneumonia",
            "cardiomegaly",
            "hilar_enlargement",
            "fracture_old",
            "fibrosis",
            "aortic_calcification",
            "tortuous_aorta",
            "thickened_pleura",
            "TB",
            "pneumothorax",
            "emphysema",
            "atelectasis",
            "calcification",
            "pulmonary_edema",
            "increased_lung_markings",
            "elevated_diaphragm",
            "consolidation",
        ),
        flags=r"[01](?:,[01]){18}",
        patient=None,
        modality="DX",
        organ="chest",
    ),
    "colon": MedFMC(("negative", "positive"), r"[01]", slice(None, -9), "SM", "colon"),
    "endo": MedFMC(("ulcer", "erosion", "polyp", "tumor"), r"[01](?: [01]){3}", slice(18), "ES", None),
}
"""By the name of the folder."""


# The layout ----------------------------------------------------------------------------------------------------------


def fits(folder: Folder) -> bool:
    """Whether it is, or holds, a set's folder with a list that has one of its images in a line of the set's form."""
    return any(
        path.relative_to(folder.root) / "images" / name in folder.known
        for path, kind in _folders(folder)
        for part in LABELLED
        for name in _parsed(_lists(path) / f"{part}.txt", SETS[kind])
    )


def entries(folder: Folder) -> list[Entry]:
    """The images of the one set, or of the three.

    ``trainval`` is for training, but for what ``val_20`` holds; both test lists are for testing, the second without
    labels. Where lists share a patient, the patient goes whole to one side, and a note says so.
    """
    found = _folders(folder)
    if not found:
        raise VesaliusError(
            f"holds no folder {', '.join(SETS)} with images and lists such as trainval.txt",
            path=folder.root,
            remedy="put MedFMC's lists beside its images, or beneath data_backup",
        )
    return [entry for path, kind in found for entry in _entries(folder, path, kind)]


def _entries(folder: Folder, path: Path, kind: str) -> list[Entry]:
    one, lists = SETS[kind], _lists(path)
    flags: dict[str, tuple[int, ...]] = {}
    listed = {part: _read(lists / f"{part}.txt", one, flags) for part in LABELLED}
    listed[UNLABELLED_TEST] = _read_names(lists / f"{UNLABELLED_TEST}.txt")

    def note(names: Sequence[str], what: str) -> None:
        if names:
            folder.notes.append(f"{kind}: {len(names)} {what}: {shorten(sorted(names))}")

    splits = _splits(listed, one, note)
    images = path.relative_to(folder.root) / "images"
    there = [name for name in splits if images / name in folder.known]
    note([name for name in splits if images / name not in folder.known], "images of the lists are not there")
    every = {name for names in listed.values() for name in names}
    here = [file.name for file in folder.files if file.parent == images]
    note([name for name in here if name not in every], "images are in no list, and left out")
    if kind == "colon":
        regions: dict[str, set[str]] = defaultdict(set)
        for name in there:
            regions[_slide(name) or name].add(splits[name])
        # The dataset's own doing, but whoever tests should know.
        note(
            [slide for slide, parts in regions.items() if len(parts) > 1],
            f"of {len(regions)} slides have regions (MedFMC's patients) in more than one split",
        )
    return [
        Entry(
            folder.root / images / name,
            labels=one.named(flags[name]) if name in flags else None,
            annotated=one.classes if name in flags else None,
            split=splits[name],
            patient=None if one.patient is None else one.unit(name),
            study=one.unit(name) if kind == "endo" else _slide(name) if kind == "colon" else None,
            organ=one.organ,
            modality=one.modality,
        )
        for name in there
    ]


def _splits(listed: Mapping[str, list[str]], one: MedFMC, note: Callable[[Sequence[str], str], None]) -> dict[str, str]:
    """Each usable image's split, no patient in two: the labelled test keeps its patients, then training has its.

    Args:
        listed: the images of each list.
        one: which set.
        note: takes images or patients, and what is to be said of them.
    """
    everyone = [name for part in TRAINING for name in listed[part]]
    tested = {one.unit(name) for name in listed[LABELLED_TEST]}
    training = list(dict.fromkeys(name for name in everyone if one.unit(name) not in tested))
    trained = {one.unit(name) for name in training}
    unlabelled = [name for name in listed[UNLABELLED_TEST] if one.unit(name) not in trained]
    in_val = set(listed["val_20"])
    validation, shared = _validation([(one.unit(name), name in in_val) for name in training])
    note(sorted(shared), "patients are in train_20 and in val_20, and go whole to one of them")
    note(
        [name for name in dict.fromkeys(everyone) if one.unit(name) in tested],
        f"images for training left out, whose patients are in {LABELLED_TEST}",
    )
    note(
        [name for name in listed[UNLABELLED_TEST] if one.unit(name) in trained],
        f"images of {UNLABELLED_TEST} left out, whose patients are for training",
    )
    splits = {name: "val" if one.unit(name) in validation else "train" for name in training}
    return splits | dict.fromkeys([*listed[LABELLED_TEST], *unlabelled], "test")


def _validation(images: Sequence[tuple[str, bool]]) -> tuple[set[str], set[str]]:
    """Patients for validation, and those whom the lists put on both sides.

    Those with the largest share of their images in val_20 come first, until there are as many images as it lists: the
    list itself, where no patient is on both sides.

    Args:
        images: each image's patient, and whether val_20 lists it.
    """
    of_patient: dict[str, list[bool]] = defaultdict(list)
    for patient, listed in images:
        of_patient[patient].append(listed)
    share = {patient: sum(listed) / len(listed) for patient, listed in of_patient.items()}
    wanted = sum(listed for _, listed in images)
    chosen: set[str] = set()
    for patient in sorted(share, key=lambda one: (-share[one], one)):
        if wanted <= 0:
            break
        chosen.add(patient)
        wanted -= len(of_patient[patient])
    return chosen, {patient for patient, part in share.items() if 0 < part < 1}


def _slide(name: str) -> str | None:
    """The scan that a region of a colon slide was cut from, if the name tells."""
    return name.split("-lv1-")[0] if "-lv1-" in name else None


# Few-shot draws -------------------------------------------------------------------------------------------------------


def published_draws(folder: str | Path, *, shots: int, as_published: bool = False) -> list[tuple[list[str], list[str]]]:
    """The five published draws of a set: the file names for training and for validation.

    No file, and no patient, of a draw's training list is in its validation list, and no file is listed twice. What is
    left to validate on may be little, or lack a class: endo has few studies that ten shots of four classes do not draw.

    Args:
        folder: chest, colon or endo, with the lists ``chest_5-shot_train_exp1.txt``, ... or their place in data_backup.
        shots: 1, 5 or 10.
        as_published: the lists as they are: an image drawn for several classes several times, and of chest and endo
            most training images in the validation list as well.

    Raises:
        ConfigError: the folder is called something else.
        VesaliusError: a list is missing, or a line of it malformed.
    """
    path = Path(folder).resolve()
    kind = path.name.lower()
    if kind not in SETS:
        raise ConfigError(f"{path} is no set of MedFMC", remedy=nearest(path.name, SETS))
    one, lists = SETS[kind], _lists(path, f"{kind}_{shots}-shot_train_exp1")
    draws = []
    for number in range(1, DRAWS + 1):
        train, val = (
            _read(lists / f"{kind}_{shots}-shot_{part}_exp{number}.txt", one, {}, required=True)
            for part in ("train", "val")
        )
        if not as_published:
            taken = {one.unit(name) for name in train}
            train = list(dict.fromkeys(train))
            val = list(dict.fromkeys(name for name in val if one.unit(name) not in taken))
        draws.append((train, val))
    return draws


def published_rule(
    names: Sequence[str], flags: Sequence[Sequence[int]], *, kind: str, shots: int, seed: int
) -> list[list[int]]:
    """The rule by which the published lists were drawn, with Python's own source of chance.

    Chest: the images of a class are shuffled and the first K taken (all, unshuffled, if there are no more). Endo and
    colon: the patients of a class are shuffled, and all images of that class of the first K taken, in the list's order;
    colon shuffles its positive patients before its negative ones.

    Args:
        names: file names, in the list's order.
        flags: of every class, ``[N, K]``.
        kind: chest, colon or endo.
        shots: K.
        seed: of the draw.

    Returns:
        The rows chosen for each class, in the order of the classes.

    >>> names = ["13333_2021.01_0000_1.png", "13333_2021.01_0000_2.png", "13333_2021.02_0001_3.png"]
    >>> published_rule(names, [[1, 0, 0, 0]] * 3, kind="endo", shots=1, seed=0)
    [[0, 1], [], [], []]
    """
    one, chance = SETS[kind], random.Random(seed)
    drawn: dict[int, list[int]] = {}
    numbers = range(len(one.classes))
    for number in reversed(numbers) if kind == "colon" else numbers:
        rows = [row for row, has in enumerate(flags) if has[number]]
        if one.patient is None:
            if len(rows) > shots:
                chance.shuffle(rows)
            drawn[number] = rows[:shots]
        else:
            patients = list(dict.fromkeys(one.unit(names[row]) for row in rows))
            chance.shuffle(patients)
            chosen = set(patients[:shots])
            drawn[number] = [row for row in rows if one.unit(names[row]) in chosen]
    return [drawn[number] for number in numbers]


# Lists ---------------------------------------------------------------------------------------------------------------


def _folders(folder: Folder) -> list[tuple[Path, str]]:
    """The sets' folders in it, itself included, that have images and lists; and which set each is."""
    parents = sorted({file.parent.parent for file in folder.files if file.parent.name == "images"})
    paths = [folder.root / parent for parent in parents]
    return [(path, path.name.lower()) for path in paths if path.name.lower() in SETS and _has_any(_lists(path))]


def _has_any(folder: Path, lists: Sequence[str] = LABELLED) -> bool:
    return any((folder / f"{name}.txt").is_file() for name in lists)


def _lists(path: Path, *wanted: str) -> Path:
    """Where the lists of a set are: in its folder, or in ``data_backup`` beside one of the folders around it."""
    backups = [up / "data_backup" / tail for up in path.parents[:3] for tail in (Path("MedFMC", path.name), path.name)]
    return next((place for place in (path, *backups) if _has_any(place, wanted or LABELLED)), path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a list that are not empty, counted from 1; none if there is no list."""
    if path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if line.strip():
                yield number, line.strip()


def _parsed(path: Path, one: MedFMC) -> Iterator[str]:
    """The file names of those lines of a list that have the set's form."""
    for _, line in _lines(path):
        with suppress(ValueError):
            yield one.parse(line)[0]


def _read(path: Path, one: MedFMC, flags: dict[str, tuple[int, ...]], *, required: bool = False) -> list[str]:
    """The file names of a labelled list, in its order; their flags go into `flags`.

    Raises:
        VesaliusError: it is required and missing, or a line is malformed or contradicts one before.
    """
    if required and not path.is_file():
        raise VesaliusError("this list of MedFMC is missing", path=path, remedy="put it there, or ask for other shots")
    names = []
    for number, line in _lines(path):
        try:
            name, found = one.parse(line)
        except ValueError:
            ends = "one flag (0 or 1)" if len(one.classes) == 2 else f"{len(one.classes)} flags (0 or 1)"
            raise VesaliusError(
                f"line {number} is no file name with {ends}: {line!r}", path=path, remedy="correct the line"
            ) from None
        if flags.setdefault(name, found) != found:
            raise VesaliusError(
                f"line {number} gives {name} other labels than a line before", path=path, remedy="correct one of them"
            )
        names.append(name)
    return names


def _read_names(path: Path) -> list[str]:
    """The file names of a list without labels.

    Raises:
        VesaliusError: a line is no file name.
    """
    lines = list(_lines(path))
    for number, line in lines:
        if not NAME.fullmatch(line):
            raise VesaliusError(f"line {number} is no file name: {line!r}", path=path, remedy="correct the line")
    return list(dict.fromkeys(line for _, line in lines))
