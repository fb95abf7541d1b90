"""The Universal Model's 32 classes of abdominal CT and its 19 datasets, as the authors' code has them.

Facts of the release (Liu 2024, github.com/ljwztc/CLIP-Driven-Universal-Model), kept in ``abdomen.yaml`` (classes)
and ``abdomen.json`` (datasets, with the values that each exports): the order of the classes is that of the outputs.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

from vesalius.data.class_tables import ClassTable
from vesalius.data.label_tables import LabelTable
from vesalius.errors import ConfigError, nearest


def _table(entry: dict[str, Any]) -> LabelTable:
    return LabelTable(
        values={int(value): name for value, name in entry.get("values", {}).items()},
        labelled=tuple(entry["labelled"]),
        split=tuple((right, left) for right, left in entry.get("split", ())),
        within=entry.get("within", {}),
        export=tuple((name, value) for name, value in entry.get("export", ())),
        export_sides=tuple((name, value) for name, value in entry.get("export_sides", ())),
    )


TEMPLATE = ClassTable.load()
"""The published classes, and what the datasets call them."""
CLASSES, NAMES = TEMPLATE.classes, TEMPLATE.names
_FACTS = json.loads(files("vesalius.data").joinpath("abdomen.json").read_text(encoding="utf-8"))
DATASETS = {entry["key"]: _table(entry) for entry in _FACTS["datasets"]}
"""Key of the published code ("04" LiTS, "10_07" MSD pancreas, ...) -> its label table."""


def dataset_of(path: str) -> LabelTable:
    """The label table of a file in the authors' folders, by its path below their root.

    Raises:
        ConfigError: the path starts with none of their folders.

    >>> dataset_of("10_Decathlon/Task07_Pancreas/labelsTr/pancreas_012.nii.gz").labelled
    ('pancreas', 'pancreas_tumor')
    """
    found = re.match(r"(\d\d)_(?:Decathlon/Task(\d\d)_)?", path)
    key = "_".join(part for part in found.groups() if part) if found else path
    if key not in DATASETS:
        raise ConfigError(f"no label table for {path!r}", remedy=nearest(key, DATASETS))
    return DATASETS[key]
