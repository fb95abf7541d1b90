"""A simulated annotator, so that a whole project can run on volumes whose truth is known.

Reviews are what the loop spends; whether an order of reviewing is worth anything shows only when they cost minutes and
are not perfect. The annotator here knows the truth, takes the minutes that the project's settings say, and gets a share
of the voxels at the surface wrong.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesalius.curate.masks import member_mask
from vesalius.curate.predictors import Predictor, predict
from vesalius.curate.project import Atlas
from vesalius.curate.records import Review
from vesalius.data.progress import track
from vesalius.errors import VesaliusError
from vesalius.images import Image

SIMULATED = "simulated"
"""Who signs the reviews."""


@dataclass(frozen=True)
class Annotator:
    """Somebody who knows the truth, at a rate and with an error.

    Args:
        truth: a YAML file that describes its masks as a predictor's, or a folder of label maps or masks.
        error: share of the voxels on either side of the true surface that are drawn wrongly.
        tolerance: voxels that may differ for a proposal to be accepted as it is.
        seed: of the errors.
    """

    truth: str
    error: float = 0.0
    tolerance: int = 0
    seed: int = 0

    def draws(self, atlas: Atlas, case: str, image: Image) -> dict[str, NDArray[np.bool_]]:
        """The structures of a case that have a truth, as this annotator draws them."""
        source = Predictor.load(self.truth, atlas.classes) if self.truth.endswith((".yaml", ".yml")) else None
        source = source or Predictor("truth", masks=str(Path(self.truth).resolve()))
        files = source.existing(atlas.image_path(case), case)
        if not files:
            raise VesaliusError(f"no truth of {case}", path=self.truth, remedy="name the files as the volumes")
        found = predict(source, image, atlas.classes, files=files)
        if found.labels is None:
            return {name: self._slips(found.masks[name], case, name) for name in found.structures}
        masks = {name: member_mask(atlas.classes, found.labels, name) for name in found.structures}
        return {name: self._slips(mask, case, name) for name, mask in masks.items()}

    def _slips(self, mask: NDArray[np.bool_], case: str, structure: str) -> NDArray[np.bool_]:
        """`mask` with `error` of the voxels at its surface flipped; the same for the same case and structure."""
        if not self.error:
            return mask
        surface = ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask)
        generator = np.random.default_rng((self.seed, zlib.crc32(f"{case} {structure}".encode())))
        drawn: NDArray[np.bool_] = mask ^ (surface & (generator.random(mask.shape) < self.error))
        return drawn


def annotate(atlas: Atlas, annotator: Annotator, *, minutes: float | None = None) -> list[Review]:
    """Review from the top of the queue until the minutes are spent or the queue is empty.

    Args:
        atlas: a project with a queue.
        annotator: who reviews.
        minutes: to spend; None for as many as it takes.

    Returns:
        The reviews, in order.
    """
    queue = [item for item in atlas.queue() if item.state == "open"]
    left, done = np.inf if minutes is None else minutes, list[Review]()
    case, drawn = "", dict[str, NDArray[np.bool_]]()
    cost = atlas.settings.minutes
    for item in track(queue, len(queue), "reviewing"):
        needed = cost(item.mm3)
        if needed > left:
            break
        if item.case != case:  # the queue goes case by case
            case, drawn = item.case, annotator.draws(atlas, item.case, atlas.image(item.case))
        if item.structure not in drawn:
            continue
        version, proposed = atlas.current(case, item.structure)
        wrong = int((drawn[item.structure] != proposed).sum())
        accepted = wrong <= annotator.tolerance
        review = atlas.save_review(
            case,
            item.structure,
            None if accepted else drawn[item.structure],
            based_on=version,
            verdict="accept" if accepted else "corrected",
            who=SIMULATED,
            seconds=60 * needed,
        )
        done.append(review)
        left -= needed
    return done
