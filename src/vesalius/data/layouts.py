"""The forms in which public datasets come, read as they are: which files are images, masks, classes, patients.

A layout is two functions of a folder: whether it looks like this, and the list of its images. `detect` tries them from
the most to the least particular.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vesalius.data import medfmc
from vesalius.data.entry import SPLIT_NAMES, Entry, Folder, organ_of, split_of, stem
from vesalius.data.lists import find_list, read_list
from vesalius.data.masks import OUTLINE, RASTER
from vesalius.data.table import SPLITS, shorten
from vesalius.data.volumes import layouts as volumes
from vesalius.data.volumes import segmentation_layouts as organs
from vesalius.errors import ConfigError, VesaliusError, nearest

BUSI_MASK = re.compile(r"(?P<image>.+)_mask(_\d+)?$")
HC18_IMAGE = re.compile(r"(?P<patient>\d+)_\d*HC$")
HC18_LIST = "*_set_pixel_size*.csv"
MSD_MODALITIES = {"mri": "MR", "mr": "MR", "ct": "CT", "us": "US", "pet": "PT"}
MOST_CLASSES = 100
"""More folders than this are taken for patients, not classes."""


@dataclass(frozen=True)
class Layout:
    """A form of dataset.

    Args:
        name: for ``layout=``.
        describes: what it looks like, in a line.
        fits: whether a folder looks like it.
        entries: the images of a folder that does.
    """

    name: str
    describes: str
    fits: Callable[[Folder], bool]
    entries: Callable[[Folder], list[Entry]]


def detect(folder: Folder) -> Layout:
    """The first layout that `folder` fits; "folder", the last, fits all."""
    return next(layout for layout in LAYOUTS.values() if layout.fits(folder))


def choose(name: str, folder: Folder) -> Layout:
    """The layout called `name`, or for "auto" the one detected.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == "auto":
        return detect(folder)
    if name not in LAYOUTS:
        raise ConfigError(f"unknown layout {name!r}", remedy=nearest(name, ["auto", *LAYOUTS]))
    return LAYOUTS[name]


# Medical Segmentation Decathlon, and nnU-Net's descendants of it -----------------------------------------------------


def _fits_msd(folder: Folder) -> bool:
    return (folder.root / "dataset.json").is_file() and any(file.parts[0] == "imagesTr" for file in folder.files)


def _msd(folder: Folder) -> list[Entry]:
    """``imagesTr``, ``imagesTs`` and ``labelsTr``, paired by name; a case is a patient.

    ``imagesTs`` has no labels; its cases are split like the others, as images without annotation.
    """
    path = folder.root / "dataset.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        labels = dict(description["labels"])
        # The Decathlon maps values to names, nnU-Net v2 names to values.
        values = (
            {int(k): str(v) for k, v in labels.items()} if "0" in labels else {int(v): k for k, v in labels.items()}
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VesaliusError(f"its labels cannot be read ({error})", path=path, remedy="see a Decathlon task") from error
    channels = description.get("modality") or description.get("channel_names") or {}
    modality = MSD_MODALITIES.get(str(channels.get("0", "")).lower())
    names_of = tuple(str(channels[key]) for key in sorted(channels, key=int))
    classes = tuple(values.get(value, f"class_{value}") for value in range(1, max(values) + 1))
    organ = organ_of(str(description.get("name", "")))

    entries: list[Entry] = []
    paired = set()
    for file in folder.files:
        if file.parts[0] not in ("imagesTr", "imagesTs"):
            continue
        case = re.sub(r"_\d{4}$", "", stem(file))
        names = (file.name, file.name.replace(stem(file), case, 1))
        label = next((one for name in names if (one := Path("labelsTr", name)) in folder.known), None)
        paired.add(label)
        entries.append(
            Entry(
                folder.root / file,
                channels=names_of if len(names_of) > 1 else (),
                masks=(folder.root / label,) if label else (),
                mask_classes=classes if label else None,
                patient=case,
                organ=organ,
                modality=modality,
            )
        )
    alone = [str(file) for file in folder.files if file.parts[0] == "labelsTr" and file not in paired]
    if alone:
        folder.notes.append(f"labels without an image: {shorten(alone)}")
    entries = _cases(entries)
    unlabelled = [str(e.path.name) for e in entries if not e.masks and e.path.parent.name == "imagesTr"]
    if unlabelled:
        folder.notes.append(f"training images without a label: {shorten(unlabelled)}")
    return entries


def _cases(entries: list[Entry]) -> list[Entry]:
    """Of nnU-Net's files ``case_0000``, ``case_0001``, ..., one for each channel, one entry a case."""
    cases: dict[tuple[Path, str], Entry] = {}
    for entry in entries:
        case = entry.path.parent, entry.patient or ""
        if not entry.channels or stem(entry.path) == entry.patient:  # one channel, or all of them in a 4-D file
            cases[entry.path.parent, entry.path.name] = entry
        else:
            first = cases.get(case, entry)
            cases[case] = replace(first, files=(*first.files, entry.path))
    return list(cases.values())


# A CSV list -----------------------------------------------------------------------------------------------------------


def _list(folder: Folder) -> list[Entry]:
    path = find_list(folder.root)
    if path is None:
        raise VesaliusError("holds no CSV list, or several", path=folder.root, remedy="call the list index.csv")
    entries = read_list(path, folder)
    listed = {file for entry in entries for file in (entry.path, *entry.files, *entry.masks, entry.target)}
    # A series is listed as its folder.
    others = [str(file) for file in folder.files if not listed & {folder.root / file, (folder.root / file).parent}]
    if others:
        folder.notes.append(
            f"{len(others)} image files are not in {path.name} and left out (layout folder has all): {shorten(others)}"
        )
    return entries


# HC18 -----------------------------------------------------------------------------------------------------------------


def _fits_hc18(folder: Folder) -> bool:
    return any(file.name.endswith(OUTLINE) for file in folder.files) or bool(_hc18_lists(folder))


def _hc18_lists(folder: Folder) -> list[Path]:
    return [*folder.root.glob(HC18_LIST), *folder.root.glob(f"*/{HC18_LIST}")]


def _hc18(folder: Folder) -> list[Entry]:
    """``training_set/010_2HC.png`` with ``..._Annotation.png`` beside it; the number is the patient's.

    ``test_set`` counts its patients from 0 again, and has no annotation; it is split like the other.
    """
    sizes = {}
    for path in _hc18_lists(folder):
        with path.open(newline="", encoding="utf-8-sig") as stream:
            for row in csv.DictReader(stream):
                side = next((value for key, value in row.items() if key and key.startswith("pixel size")), None)
                # "test_set" or "training_set", which the list's own name begins with.
                sizes[path.name.split("_")[0], row["filename"]] = (float(side),) * 2 if side else None
    entries = []
    for file in folder.files:
        name = HC18_IMAGE.match(stem(file))
        if not name:
            continue
        mask = file.with_name(f"{stem(file)}_Annotation.png")
        part = "test" if "test_set" in file.parts else "training"
        entries.append(
            Entry(
                folder.root / file,
                masks=(folder.root / mask,) if mask in folder.known else (),
                mask_classes=("fetal head",),
                patient=f"{part}_set/{name['patient']}",
                organ="fetus",
                modality="US",
                spacing=sizes.get((part, file.name)),
            )
        )
    return entries


# BUSI -----------------------------------------------------------------------------------------------------------------


def _busi_masks(folder: Folder) -> dict[Path, list[Path]]:
    """The mask files of each image that has any, by the image's name without suffix."""
    images = {file.with_name(stem(file)) for file in folder.files}
    masks: dict[Path, list[Path]] = {}
    for file in folder.files:
        name = BUSI_MASK.match(stem(file))
        if name and (image := file.with_name(name["image"])) in images:
            masks.setdefault(image, []).append(file)
    return masks


def _busi(folder: Folder) -> list[Entry]:
    """``benign/benign (1).png`` with ``benign (1)_mask.png``, and ``_mask_1.png`` for a further lesion.

    The folder is the class. Patients are not given.
    """
    masks = _busi_masks(folder)
    every = {file for files in masks.values() for file in files}
    return [
        Entry(
            folder.root / file,
            labels=(file.parent.name,) if len(file.parts) > 1 and file.parent.name.lower() not in SPLIT_NAMES else None,
            masks=tuple(folder.root / mask for mask in masks.get(file.with_name(stem(file)), ())),
            mask_classes=("lesion",),
            split=split_of(file),
            modality="US",
        )
        for file in folder.files
        if file not in every
    ]


# Parallel trees of images and masks -----------------------------------------------------------------------------------


def _fits_usfm(folder: Folder) -> bool:
    heads = {file.parts[:2] for file in folder.files if len(file.parts) > 2}
    return any(head[0].lower() in SPLIT_NAMES and head[1] == "image" for head in heads) and any(
        head[1] == "mask" for head in heads
    )


def _usfm(folder: Folder) -> list[Entry]:
    """``training_set/image/any/name.png`` with ``training_set/mask/any/name.png``; so too ``val_set``, ``test_set``."""
    return [
        Entry(folder.root / file, masks=_mask_beside(folder, Path(file.parts[0], "mask", *file.parts[2:])), split=split)
        for file in folder.files
        if len(file.parts) > 2 and file.parts[1] == "image" and (split := split_of(Path(file.parts[0], "x")))
    ]


def _fits_paired(folder: Folder) -> bool:
    heads = {file.parts[:2] for file in folder.files if len(file.parts) == 3}
    return all(any(head == (tree, split) for split in SPLITS for head in heads) for tree in ("images", "masks"))


def _paired(folder: Folder) -> list[Entry]:
    """``images/train/1.png`` with ``masks/train/1.png``.

    ``images_gaussian``, the blurred copy, is passed over: blurring is part of the network's input contract here.
    """
    return [
        Entry(folder.root / file, masks=_mask_beside(folder, Path("masks", *file.parts[1:])), split=split_of(file))
        for file in folder.files
        if len(file.parts) == 3 and file.parts[0] == "images"
    ]


def _fits_voc(folder: Folder) -> bool:
    return any(file.parts[0] == "JPEGImages" for file in folder.files) and (folder.root / "ImageSets").is_dir()


def _voc(folder: Folder) -> list[Entry]:
    """``JPEGImages/x.jpg`` with ``SegmentationClass/x.png``; ``ImageSets/{train,val,test}.txt`` list the names."""
    splits: dict[str, str] = {}
    for split in SPLITS:
        for path in sorted((folder.root / "ImageSets").rglob(f"{split}.txt")):
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    splits.setdefault(line.split()[0], split)
    return [
        Entry(
            folder.root / file,
            masks=_mask_beside(folder, Path("SegmentationClass", file.name)),
            split=splits.get(stem(file)),
        )
        for file in folder.files
        if file.parts[0] == "JPEGImages"
    ]


def _mask_beside(folder: Folder, mask: Path) -> tuple[Path, ...]:
    """The mask of that name, if need be with another suffix than the image's."""
    names = (mask, *(mask.with_suffix(suffix) for suffix in (".png", ".bmp", ".tif", ".jpg")))
    return next(((folder.root / name,) for name in names if name in folder.known), ())


# Class folders, and any folder ----------------------------------------------------------------------------------------


def _fits_image_folders(folder: Folder) -> bool:
    """Raster files all in ``class/`` or ``split/class/``, in few folders that are not named after organs."""
    if not folder.files or any(file.suffix.lower() not in RASTER for file in folder.files):
        return False
    parents = Counter(file.parent for file in folder.files)
    in_splits = all(len(p.parts) == 2 and p.parts[0].lower() in SPLIT_NAMES for p in parents)
    flat = all(len(p.parts) == 1 and p.name.lower() not in SPLIT_NAMES for p in parents)
    classes = {parent.name for parent in parents}
    named_after_organs = all(organ_of(name) for name in classes)
    single_images = all(count == 1 for count in parents.values())
    return (in_splits or flat) and 2 <= len(classes) <= MOST_CLASSES and not named_after_organs and not single_images


def _image_folders(folder: Folder) -> list[Entry]:
    return [
        Entry(folder.root / file, labels=(file.parent.name,), split=split_of(file))
        for file in folder.files
        if len(file.parts) > 1
    ]


def _folder(folder: Folder) -> list[Entry]:
    """Any files; the organ from the nearest folder that is named after one."""
    return [
        Entry(
            folder.root / file,
            organ=next((organ for part in reversed(file.parts[:-1]) if (organ := organ_of(part))), None),
            split=split_of(file),
        )
        for file in folder.files
    ]


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("msd", "Medical Segmentation Decathlon: dataset.json, imagesTr, labelsTr", _fits_msd, _msd),
        Layout(
            "list", "a CSV list", lambda folder: find_list(folder.root) is not None and not _hc18_lists(folder), _list
        ),
        Layout(
            "brats",
            "BraTS: CASE/CASE_flair, _t1, _t1ce, _t2, _seg, or CASE-t2f, ...",
            volumes.fits_brats,
            volumes.brats,
        ),
        Layout(
            "atlas",
            "ATLAS v2.0: sub-X/ses-Y/anat/*_T1w, *_label-L_desc-T1lesion_mask",
            volumes.fits_atlas,
            volumes.atlas,
        ),
        Layout("kits", "KiTS: case_00000/imaging, segmentation", organs.fits_kits, organs.kits),
        Layout("lits", "LiTS: volume-0, segmentation-0", organs.fits_lits, organs.lits),
        Layout("btcv", "BTCV (Synapse): img/img0001, label/label0001", organs.fits_btcv, organs.btcv),
        Layout("prostate", "six sites: SITE/Case00, Case00_segmentation", organs.fits_prostate, organs.prostate),
        Layout("cases", "CASE/image, CASE/segmentation", organs.fits_cases, organs.cases),
        Layout("hc18", "HC18: 010_HC.png, 010_HC_Annotation.png", _fits_hc18, _hc18),
        Layout("medfmc", "MedFMC: chest, colon, endo with images, trainval.txt, ...", medfmc.fits, medfmc.entries),
        Layout("usfm", "USFM: training_set/image, training_set/mask, val_set, test_set", _fits_usfm, _usfm),
        Layout("voc", "Pascal VOC: JPEGImages, SegmentationClass, ImageSets", _fits_voc, _voc),
        Layout("paired", "paired trees: images/train, masks/train, val, test", _fits_paired, _paired),
        Layout("busi", "BUSI: image.png, image_mask.png, image_mask_1.png", lambda f: bool(_busi_masks(f)), _busi),
        Layout("image-folders", "a folder per class, perhaps in train, val, test", _fits_image_folders, _image_folders),
        Layout("folder", "a folder of images", lambda folder: True, _folder),
    )
}
"""By name, in the order of detection."""
