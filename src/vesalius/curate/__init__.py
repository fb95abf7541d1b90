"""From unlabelled volumes to a dataset: models propose, people correct what matters, and what holds is released."""

from __future__ import annotations

CURATIONS = {
    "atlas": {
        "init": "vesalius.curate.verbs:init",
        "step": "vesalius.curate.verbs:step",
        "status": "vesalius.curate.verbs:status",
        "import": "vesalius.curate.verbs:import_",
        "next": "vesalius.curate.verbs:next_",
        "assemble": "vesalius.curate.verbs:assemble",
    },
}
"""The words that may follow ``vesalius curate``."""
