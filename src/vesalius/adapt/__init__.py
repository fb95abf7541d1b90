"""Ways to adapt a backbone to a task with labels."""

from __future__ import annotations

METHODS = {
    "full": "fine-tune all weights, with smaller steps for earlier layers",
    "linear": "train the task's head; the backbone stays as it is",
}
"""Name -> what it does; both are `vesalius.adapt.full.Adaptation`."""
