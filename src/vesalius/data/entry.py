"""What a layout finds out about an image before the image is opened, and the words that folder names are made of."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from vesalius.errors import VesaliusError
from vesalius.images import is_image

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "train_set", "training_set", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "val_set", "validation_set"), "val"),
    **dict.fromkeys(("test", "testing", "test_set", "testing_set", "ts"), "test"),
}
"""Names of folders, and values of a list's split column, with the split that they mean."""

ORGANS = {
    name: organ
    for organ, names in {
        "abdomen": "abdomen abdominal",
        "adrenal": "adrenal",
        "aorta": "aorta",
        "bladder": "bladder",
        "brain": "brain hippocampus glioma",
        "breast": "breast mamma",
        "carotid": "carotid",
        "chest": "chest thorax cxr",
        "colon": "colon colorectal",
        "eye": "eye retina fundus",
        "fetus": "fetus fetal foetus foetal",
        "gallbladder": "gallbladder",
        "heart": "heart cardiac echo",
        "kidney": "kidney kidneys renal",
        "knee": "knee",
        "liver": "liver hepatic",
        "lung": "lung lungs",
        "muscle": "muscle",
        "nerve": "nerve",
        "ovary": "ovary ovarian",
        "pancreas": "pancreas",
        "pelvis": "pelvis",
        "prostate": "prostate",
        "skin": "skin",
        "spine": "spine vertebra vertebrae",
        "spleen": "spleen",
        "stomach": "stomach",
        "thyroid": "thyroid",
        "uterus": "uterus uterine",
    }.items()
    for name in names.split()
}
"""Words in folder names, and the organ that they mean."""


@dataclass(frozen=True)
class Entry:
    """One image that a layout lists, with all that names and lists say about it.

    Args:
        path: the image file.
        frame: the frame it is about; None for the whole file.
        labels: class names; None where nobody looked, empty where none was found.
        annotated: the classes that were looked for in a labelled image; None for all labels of the dataset.
        masks: files of its segmentation, to be merged by OR.
        mask_classes: names of the mask's values 1, 2, ...; None where the dataset does not say.
        target: the paired clean image.
        split: train, val or test, where the dataset says.
        patient: an id within the dataset.
        study, organ, modality: as in the table.
        spacing: mm along (H, W), for files that do not say themselves.
        files: of a volume that is several, one a channel, or that is a DICOM series (its folder, or one of its files);
            `path` is the first.
        channels: names of a volume's channels, in the order of `files` or of a 4-D file's volumes.
    """

    path: Path
    frame: int | None = None
    labels: tuple[str, ...] | None = None
    annotated: tuple[str, ...] | None = None
    masks: tuple[Path, ...] = ()
    mask_classes: tuple[str, ...] | None = None
    target: Path | None = None
    split: str | None = None
    patient: str | None = None
    study: str | None = None
    organ: str | None = None
    modality: str | None = None
    spacing: tuple[float, ...] | None = None
    files: tuple[Path, ...] = ()
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Folder:
    """A folder, and the image files beneath it.

    Args:
        root: the folder.
        files: image files relative to it, sorted.
        notes: filled by layouts with what the user should know.
    """

    root: Path
    files: tuple[Path, ...]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def known(self) -> frozenset[Path]:
        """`files`, for looking one up."""
        return frozenset(self.files)

    @classmethod
    def walk(cls, root: Path) -> Folder:
        """List the image files; hidden ones (macOS leaves ``._name``) are passed over.

        Raises:
            VesaliusError: there is no such folder.
        """
        if not root.is_dir():
            what = "is a file, not a folder" if root.exists() else "there is no such folder"
            raise VesaliusError(what, path=root, remedy="name the folder that holds the images")
        files = []
        for parent, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            files += [Path(parent, name) for name in names if not name.startswith(".")]
        return cls(root, tuple(sorted(file.relative_to(root) for file in files if is_image(file))))


def split_of(path: Path) -> str | None:
    """The split that a folder in a relative path is named after.

    >>> split_of(Path("training_set/image/1.png")), split_of(Path("a/1.png"))
    ('train', None)
    """
    return next((SPLIT_NAMES[part.lower()] for part in path.parts[:-1] if part.lower() in SPLIT_NAMES), None)


def organ_of(name: str) -> str | None:
    """The one organ that a folder's name speaks of, if it is one.

    >>> organ_of("us_breast_busi"), organ_of("Fetal Planes"), organ_of("scans"), organ_of("liver_or_kidney")
    ('breast', 'fetus', None, None)
    """
    found = {ORGANS[word] for word in re.split(r"[\W\d_]+", name.lower()) if word in ORGANS}
    return found.pop() if len(found) == 1 else None


def stem(path: Path) -> str:
    """The file's name without suffix, of which ``.nii.gz`` is one.

    >>> stem(Path("a/case_1.nii.gz")), stem(Path("1.2.840.dcm"))
    ('case_1', '1.2.840')
    """
    return re.sub(r"\.nii(\.gz)?$", "", path.name) if ".nii" in path.name else path.stem
