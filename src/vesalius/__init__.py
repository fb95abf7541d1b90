"""Foundation models for medical images: pre-train one, adapt it with few labels, curate the data that both need.

The same few verbs as on the command line, from Python:

>>> import vesalius
>>> vesalius.info("usfm").chapter
'pretrain'

Names are imported when they are first used, so that ``import vesalius`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vesalius.adapt.networks import collapse_run
    from vesalius.claims import claim
    from vesalius.compare import compare_methods
    from vesalius.data.index import index
    from vesalius.data.phantoms import phantom
    from vesalius.data.table import load_table
    from vesalius.errors import VesaliusError
    from vesalius.evaluation.segment import segment
    from vesalius.evaluation.verbs import evaluate, predict
    from vesalius.evaluation.verify import verify
    from vesalius.images import read
    from vesalius.published.load import convert, load
    from vesalius.report.run import run_report
    from vesalius.systems import info
    from vesalius.training.extend import extend_run
    from vesalius.training.verbs import adapt_backbone, pretrain_system

__version__ = "0.1.0"

_HOME = {
    "VesaliusError": "vesalius.errors",
    "adapt_backbone": "vesalius.training.verbs",
    "claim": "vesalius.claims",
    "collapse_run": "vesalius.adapt.networks",
    "compare_methods": "vesalius.compare",
    "convert": "vesalius.published.load",
    "evaluate": "vesalius.evaluation.verbs",
    "extend_run": "vesalius.training.extend",
    "index": "vesalius.data.index",
    "info": "vesalius.systems",
    "load": "vesalius.published.load",
    "load_table": "vesalius.data.table",
    "phantom": "vesalius.data.phantoms",
    "predict": "vesalius.evaluation.verbs",
    "pretrain_system": "vesalius.training.verbs",
    "read": "vesalius.images",
    "run_report": "vesalius.report.run",
    "segment": "vesalius.evaluation.segment",
    "verify": "vesalius.evaluation.verify",
}

__all__ = [
    "VesaliusError",
    "adapt_backbone",
    "claim",
    "collapse_run",
    "compare_methods",
    "convert",
    "evaluate",
    "extend_run",
    "index",
    "info",
    "load",
    "load_table",
    "phantom",
    "predict",
    "pretrain_system",
    "read",
    "run_report",
    "segment",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vesalius' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
