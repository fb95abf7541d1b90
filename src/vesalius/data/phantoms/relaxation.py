"""Grey values of spin-echo MR from protons, T1 and T2: the one equation that the brain and torso phantoms share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Tissue(NamedTuple):
    """What decides a tissue's grey value.

    The phantoms' values are typical ones between 1.5 and 3 T, within the ranges of Stanisz et al. (2005,
    doi:10.1002/mrm.20605) for the brain and de Bazelaire et al. (2004, doi:10.1148/radiol.2303021331) for the abdomen.

    Args:
        density: protons, water = 1.
        t1: ms.
        t2: ms.
        enhanced: T1 in ms after contrast medium, where that reaches the tissue.
    """

    density: float
    t1: float
    t2: float
    enhanced: float | None = None


@dataclass(frozen=True)
class Pulse:
    """A spin-echo sequence.

    Args:
        tr: repetition time, ms.
        te: echo time, ms.
        ti: inversion time, ms; 0 for none.
        agent: contrast medium was given.
    """

    tr: float
    te: float
    ti: float = 0.0
    agent: bool = False

    def signal(self, tissue: Tissue) -> float:
        """``density |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)``; ``1 - exp(-TR/T1)`` inside without inversion.

        >>> water = Tissue(1.0, 4200, 1700)
        >>> round(Pulse(5000, 95).signal(water), 2), round(Pulse(9000, 110, 2500).signal(water), 2)  # T2, FLAIR
        (0.66, 0.01)
        """
        t1 = tissue.enhanced if self.agent and tissue.enhanced else tissue.t1
        recovered = 1 - 2 * np.exp(-self.ti / t1) + np.exp(-self.tr / t1) if self.ti else 1 - np.exp(-self.tr / t1)
        return float(tissue.density * abs(recovered) * np.exp(-self.te / tissue.t2))
