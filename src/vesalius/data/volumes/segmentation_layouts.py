"""Public sets of volumes with organs and tumours as they come on disk: KiTS, LiTS, BTCV, the prostates of six sites.

The Decathlon's tasks (pancreas, colon, liver, ...) have a layout of their own, ``msd``. Where a set names its masks'
values, the names are those of `vesalius.data.abdomen`, so that sets can be joined by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vesalius.data.entry import Entry, Folder, organ_of, stem

KITS = ("kidney", "kidney tumor", "kidney cyst")
KITS_MASKS = ("aggregated_MAJ_seg", "segmentation")
"""Of KiTS 2021 (of its votes, the majority's), and of KiTS 2019 and 2023."""
LITS = ("liver", "liver tumor")
BTCV = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal vein and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
CASES = {"liver": LITS, "pancreas": ("pancreas", "pancreas tumor")}
"""Values of masks that lie beside their image, by the organ that the set's folder is named after."""
_KITS_CASE = re.compile(r"case_\d+")
_LITS_VOLUME = re.compile(r"(?:test-)?volume-(\d+)")
_BTCV_IMAGE = re.compile(r"img(\d{4})")
_PROSTATE_MASK = re.compile(r"(case\d+)_segmentation", re.IGNORECASE)


def fits_kits(folder: Folder) -> bool:
    """Some ``case_00000`` has ``imaging.nii.gz``."""
    return any(_is_kits(file) for file in folder.files)


def kits(folder: Folder) -> list[Entry]:
    """``case_00000/imaging.nii.gz`` with ``segmentation.nii.gz``, or 2021's ``aggregated_MAJ_seg.nii.gz``.

    2019 has no cysts; name its two classes with ``mask_classes`` so that none counts as looked for. Its cases from
    00210 have no mask.
    """
    return [
        Entry(
            folder.root / file,
            masks=_first(folder, (file.with_name(file.name.replace("imaging", name)) for name in KITS_MASKS)),
            mask_classes=KITS,
            patient=file.parent.name,
            organ="kidney",
            modality="CT",
        )
        for file in folder.files
        if _is_kits(file)
    ]


def fits_lits(folder: Folder) -> bool:
    """There are ``volume-0.nii`` and ``segmentation-0.nii``."""
    return any(_LITS_VOLUME.fullmatch(stem(file)) for file in folder.files)


def lits(folder: Folder) -> list[Entry]:
    """``volume-0.nii`` with ``segmentation-0.nii``, in any folders; ``test-volume-0.nii`` has no mask.

    The challenge's two "Training Batch" are no split.
    """
    masks = {stem(file): file for file in folder.files if stem(file).startswith("segmentation-")}
    entries = []
    for file in folder.files:
        if found := _LITS_VOLUME.fullmatch(stem(file)):
            hidden = stem(file).startswith("test-")
            mask = None if hidden else masks.get(f"segmentation-{found[1]}")
            entries.append(
                Entry(
                    folder.root / file,
                    masks=(folder.root / mask,) if mask else (),
                    mask_classes=LITS,
                    patient=stem(file),
                    organ="liver",
                    modality="CT",
                )
            )
    return entries


def fits_cases(folder: Folder) -> bool:
    """Some folder holds ``image.nii.gz`` and ``segmentation.nii.gz``."""
    return any(_is_case(file, folder) for file in folder.files)


def cases(folder: Folder) -> list[Entry]:
    """``CASE/image.nii.gz`` with ``CASE/segmentation.nii.gz``, as 3DSAM-adapter repacked LiTS and MSD Pancreas.

    Where the set's folder is named after the liver (or LiTS) or the pancreas, the values are organ and tumour. The
    folder ``Training`` is no split, which is in a file of its own (``split.pkl``).
    """
    organ = "liver" if "lits" in folder.root.name.lower() else organ_of(folder.root.name)
    return [
        Entry(
            folder.root / file,
            masks=(folder.root / file.with_name(file.name.replace("image", "segmentation")),),
            mask_classes=CASES.get(organ or ""),
            patient=file.parent.name,
            organ=organ,
            modality="CT" if organ in CASES else None,
        )
        for file in folder.files
        if _is_case(file, folder)
    ]


def fits_btcv(folder: Folder) -> bool:
    """There are ``img0001.nii.gz`` and ``label0001.nii.gz``."""
    return bool(_btcv_masks(folder)) and any(_BTCV_IMAGE.fullmatch(stem(file)) for file in folder.files)


def btcv(folder: Folder) -> list[Entry]:
    """``img/img0001.nii.gz`` with ``label/label0001.nii.gz`` (Synapse's abdomen), or ``imagesTr`` with ``labelsTr``.

    Images without a label (``Testing``) are split like the others, without annotation. To make one class of both
    adrenal glands, as MA-SAM does, give them one name in ``mask_classes``.
    """
    masks = _btcv_masks(folder)
    return [
        Entry(
            folder.root / file,
            masks=(folder.root / masks[found[1]],) if found[1] in masks else (),
            mask_classes=BTCV,
            patient=stem(file),
            organ="abdomen",
            modality="CT",
        )
        for file in folder.files
        if (found := _BTCV_IMAGE.fullmatch(stem(file)))
    ]


def fits_prostate(folder: Folder) -> bool:
    """There are ``Case00.nii.gz`` and ``Case00_segmentation.nii.gz``."""
    return any(_PROSTATE_MASK.fullmatch(stem(file)) for file in folder.files)


def prostate(folder: Folder) -> list[Entry]:
    """``SITE/Case00.nii.gz`` with ``SITE/Case00_segmentation.nii.gz``: prostate MR of six sites (Liu 2020).

    Some sites tell zones of the gland apart (values 1 and 2), which are one class here. Case numbers begin anew in each
    site, so that a patient is named with it.
    """
    masks = {(file.parent, found[1]): file for file in folder.files if (found := _PROSTATE_MASK.fullmatch(stem(file)))}
    return [
        Entry(
            folder.root / file,
            masks=(folder.root / masks[file.parent, stem(file)],),
            mask_classes=("prostate", "prostate"),
            patient=f"{file.parent.name or folder.root.name}/{stem(file)}",
            organ="prostate",
            modality="MR",
        )
        for file in folder.files
        if (file.parent, stem(file)) in masks
    ]


def _is_kits(file: Path) -> bool:
    return stem(file) == "imaging" and _KITS_CASE.fullmatch(file.parent.name) is not None


def _is_case(file: Path, folder: Folder) -> bool:
    return file.name in ("image.nii.gz", "image.nii") and (
        file.with_name(file.name.replace("image", "segmentation")) in folder.known
    )


def _btcv_masks(folder: Folder) -> dict[str, Path]:
    return {found[1]: file for file in folder.files if (found := re.fullmatch(r"label(\d{4})", stem(file)))}


def _first(folder: Folder, files: Iterable[Path]) -> tuple[Path, ...]:
    """The first of the files that is there."""
    return next(((folder.root / file,) for file in files if file in folder.known), ())
