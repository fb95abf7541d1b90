"""Procedural images with truth, written as real files: data to try everything on when there is none.

One module per kind of image, each with one function ``(out, *, n, seed, size, ...) -> table``.
"""

from __future__ import annotations

PHANTOMS = {"ultrasound": "vesalius.data.phantoms.ultrasound:ultrasound"}
"""Name -> module and function, imported when it is wanted."""
