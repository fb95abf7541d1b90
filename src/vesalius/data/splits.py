"""Training, validation and test sets that share no patient, with the labels in like proportion in each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from vesalius.data.table import SPLITS
from vesalius.errors import ConfigError


class Groups:
    """Union-find over names: which belong together, and so in one split.

    >>> groups = Groups()
    >>> groups.join("patient 1", "patient 7")
    >>> groups.find("patient 7")
    'patient 1'
    """

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The name that stands for the group of `name`."""
        while (parent := self._parent.get(name, name)) != name:
            name = parent
        return name

    def join(self, first: str, second: str) -> None:
        """Put the groups of both into one, named by the alphabetically first."""
        low, high = sorted((self.find(first), self.find(second)))
        self._parent[high] = low


def split_by_group(
    groups: Sequence[str],
    strata: Sequence[Hashable],
    given: Sequence[str | None],
    *,
    val: float = 0.15,
    test: float = 0.15,
    seed: int = 0,
) -> list[str]:
    """A split for every image, the same for all images of a group.

    Groups are taken stratum by stratum in an order drawn from `seed`; each goes where images are most wanted, counting
    what its stratum and what the strata so far still lack, so that strata of a single group are shared out as well. The
    result depends on the names of groups and strata and on `seed`, not on the order of the images.

    Args:
        groups: each image's group (its patient).
        strata: each image's label, or what else should be spread evenly; a group counts under its rarest one.
        given: each image's split where it is fixed, else None; the other images of its group follow the first of them.
        val: fraction of the images for validation.  test: for testing.  seed: of the order.

    Returns:
        train, val or test per image.

    Raises:
        ConfigError: the fractions are negative or leave nothing to train on.

    >>> split_by_group(["a", "a", "b"], ["x", "x", "x"], [None, "test", None], val=0, test=0)
    ['test', 'test', 'train']
    """
    if val < 0 or test < 0 or val + test >= 1:
        raise ConfigError(f"val = {val} and test = {test}", remedy="give fractions that add up to less than 1")
    wanted = np.array([1 - val - test, val, test])
    sizes = Counter(groups)
    frequency = Counter(strata)
    chosen: dict[str, str] = {}
    stratum: dict[str, Hashable] = {}
    for group, kind, split in zip(groups, strata, given, strict=True):
        if split is not None:
            chosen.setdefault(group, split)
        held = stratum.setdefault(group, kind)
        stratum[group] = min(held, kind, key=lambda one: (frequency[one], str(one)))

    members: dict[Hashable, list[str]] = {}
    for group in sorted(set(groups) - set(chosen)):
        members.setdefault(stratum[group], []).append(group)
    generator = np.random.default_rng(seed)
    overall = np.zeros(3)  # images wanted minus images placed, over the strata so far
    for kind in sorted(members, key=lambda one: (frequency[one], str(one))):
        lack = wanted * sum(sizes[group] for group in members[kind])
        overall += lack
        for position in generator.permutation(len(members[kind])):
            group = members[kind][position]
            # A split of which nothing is wanted gets nothing, however rounding falls.
            place = int(np.argmax(np.where(wanted > 0, lack + overall, -np.inf)))
            chosen[group] = SPLITS[place]
            lack[place] -= sizes[group]
            overall[place] -= sizes[group]
    return [split or chosen[group] for group, split in zip(groups, given, strict=True)]
