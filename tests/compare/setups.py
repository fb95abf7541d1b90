"""The set-up that the tests of single cells share."""

from __future__ import annotations

from vesalius.compare.plan import Setup

SETUP = Setup(
    task="classification",
    classes=("coarse", "fine", "medium"),
    multilabel=False,
    lrs=(1e-3, 1e-2),
    steps=4,
    batch_size=4,
    views=3,
    image_size=32,
    unit="patient",
    images="one",
    published=False,
    as_published=False,
    data_hash="",
    split_hash="",
)
