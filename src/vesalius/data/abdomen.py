"""The Universal Model's 32 classes of abdominal CT and its 19 datasets, as the authors' code has them.

Facts of the release (Liu 2024, github.com/ljwztc/CLIP-Driven-Universal-Model), kept once: in ``abdomen.yaml`` the
classes, in the order of the outputs, and what the values of each dataset mean; in ``abdomen.json`` the values in which
predictions are exported, and what the datasets that were only tested on are labelled for.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from vesalius.data.class_tables import ClassTable
from vesalius.data.label_tables import LabelTable
from vesalius.errors import ConfigError, nearest

TEMPLATE = ClassTable.load()
"""The published classes, and what the datasets call them."""
CLASSES, NAMES = TEMPLATE.classes, TEMPLATE.names


def _table(entry: dict[str, Any]) -> LabelTable:
    """The label table of an entry; a pair is its right class, from which the left one is split."""
    named = TEMPLATE.datasets.get(Path(entry.get("folder", "")).name, {})
    meant = {int(value): name for value, name in named.items() if name}
    pairs = [TEMPLATE.pairs[name] for name in meant.values() if name in TEMPLATE.pairs]
    values = {value: TEMPLATE.pairs.get(name, (name,))[0] for value, name in meant.items()}
    labelled = entry.get("labelled", [*values.values(), *(left for _, left in pairs)])
    entries = [TEMPLATE.entry(name) for name in values.values()]
    return LabelTable(
        values=values,
        labelled=tuple(labelled),
        split=tuple(pairs),
        within={
            one.name: organ
            for one in entries
            if one.kind != "organ" and one.counts
            for organ in [name for name in one.organs if name in labelled][:1]
        },
        export=tuple((name, value) for name, value in entry.get("export", ())),
        export_sides=tuple((name, value) for name, value in entry.get("export_sides", ())),
    )


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
