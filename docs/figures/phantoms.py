"""Draws docs/figures/phantom_brain.png and phantom_torso.png: python docs/figures/phantoms.py."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from vesalius.data.phantoms.brain import brain_volume
from vesalius.data.phantoms.torso import LABELS, torso_volume

HERE = Path(__file__).parent
Panel = tuple[str, np.ndarray, tuple[float, float], np.ndarray | None]


def main() -> None:
    """Draw both."""
    brain = brain_volume(1, 3, size=(56, 160, 136), spacing=(3.0, 1.2, 1.2), lesions=1)
    slice_ = int((brain["labels"] == 4).sum((1, 2)).argmax())
    panels: list[Panel] = []
    for name, title in (("t1", "T1"), ("t1ce", "T1 with contrast medium"), ("t2", "T2"), ("flair", "FLAIR")):
        image = brain["images"][brain["channels"].index(name)]
        panels.append((title, image[slice_], (0, float(np.percentile(image, 99.7))), None))
    panels.append(("labels", panels[3][1], panels[3][2], brain["labels"][slice_]))
    _draw(panels, HERE / "phantom_brain.png")

    options = {"size": (46, 176, 176), "spacing": (7, 2.1, 2.1)}
    organs = ["liver", "liver", "kidney", "pancreas", "colon"]
    ct = torso_volume(6, 1, tumors=organs, **options)
    mr = torso_volume(6, 1, tumors=organs, weighting="t2", **options)
    window, bright = (-110.0, 230.0), (0.0, 380.0)
    at = int((ct["labels"] == LABELS.index("spleen") + 1).sum((1, 2)).argmax())
    low = int((ct["labels"] == LABELS.index("right kidney") + 1).sum((1, 2)).argmax())
    front = np.repeat(ct["images"][0, ::-1, 80], 3, axis=0)
    panels = [
        ("CT at the spleen", ct["images"][0, at], window, None),
        ("CT at the kidneys", ct["images"][0, low], window, None),
        ("labels", ct["images"][0, at], window, ct["labels"][at]),
        ("CT, coronal", front, window, None),
        ("MR, T2-weighted", mr["images"][0, low], bright, None),
    ]
    _draw(panels, HERE / "phantom_torso.png")


def _draw(panels: list[Panel], path: Path) -> None:
    figure, axes = plt.subplots(1, len(panels), figsize=(2.1 * len(panels), 2.9))
    for axis, (title, image, (low, high), labels) in zip(axes, panels, strict=True):
        axis.imshow(image, cmap="gray", vmin=low, vmax=high)
        if labels is not None:
            axis.imshow(np.ma.masked_equal(labels, 0), cmap="tab20", alpha=0.5, interpolation="nearest")
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    with Image.open(path) as picture:  # small enough for a repository
        few = picture.convert("RGB").quantize(96)
    few.save(path, optimize=True)


if __name__ == "__main__":
    main()
