from __future__ import annotations

from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
from scipy.stats import chisquare
from torch.utils.data import DataLoader, Dataset

from vesalius.data.sampling import DrawSampler, organ_weights
from vesalius.errors import ConfigError

ORGANS = ["breast"] * 90 + ["thyroid"] * 7 + ["liver"] * 3


@pytest.mark.parametrize(("alpha", "shares"), [(0, [1 / 3] * 3), (1, [0.9, 0.07, 0.03]), (0.5, None)])
def test_organs_are_drawn_with_probability_n_to_the_alpha(alpha, shares):
    counts = np.array([90, 7, 3])
    shares = counts**alpha / (counts**alpha).sum() if shares is None else np.array(shares)
    weights = organ_weights(ORGANS, alpha)
    assert np.allclose([weights[:90].sum(), weights[90:97].sum(), weights[97:].sum()], shares)
    assert np.ptp(weights[:90]) == 0

    sampler = DrawSampler(100, seed=3, batch_size=50, weights=weights, total=20_000)
    drawn = np.bincount([index for batch in sampler for _, index in batch], minlength=100)
    assert chisquare(drawn, 20_000 * weights).pvalue > 0.01
    # The test has the power to tell the weights from others.
    assert chisquare(drawn, 20_000 * organ_weights(ORGANS, alpha + 0.2)).pvalue < 1e-4


def test_images_without_organ_count_as_one_organ_more():
    assert organ_weights([None, None, "liver"]).tolist() == [0.25, 0.25, 0.5]


@pytest.mark.parametrize("weights", [None, organ_weights(["a"] * 5 + ["b"] * 2)])
def test_two_processes_see_what_one_sees(weights):
    one = DrawSampler(7, seed=1, batch_size=6, weights=weights)
    two = [DrawSampler(7, seed=1, batch_size=3, weights=weights, rank=rank, world=2) for rank in (0, 1)]
    for whole, first, second in islice(zip(one, *two, strict=False), 10):
        assert whole == first + second


@pytest.mark.parametrize("weights", [None, np.arange(1.0, 8.0)])
def test_a_continued_run_draws_as_an_unbroken_one(weights):
    unbroken = list(islice(DrawSampler(7, seed=1, batch_size=4, weights=weights), 9))
    assert list(islice(DrawSampler(7, seed=1, batch_size=4, weights=weights, start=20), 4)) == unbroken[5:]
    # The batch size does not change the order either.
    small = list(islice(DrawSampler(7, seed=1, batch_size=2, weights=weights), 18))
    assert list(chain(*small)) == list(chain(*unbroken))


def test_without_weights_every_image_comes_once_an_epoch():
    indices = [index for batch in DrawSampler(7, seed=0, batch_size=1, total=21) for _, index in batch]
    assert Counter(indices) == dict.fromkeys(range(7), 3)
    assert indices[:7] != indices[7:14]


def test_a_total_gives_whole_global_batches_to_every_rank():
    batches = [list(DrawSampler(9, seed=0, batch_size=2, rank=rank, world=2, total=10)) for rank in (0, 1)]
    assert [len(batch) for batch in batches] == [2, 2]


class Echo(Dataset):
    def __getitem__(self, item):
        return item


def test_it_drives_a_loader():
    sampler = DrawSampler(5, seed=0, batch_size=2, total=6)
    loaded = [tuple(part.tolist() for part in batch) for batch in DataLoader(Echo(), batch_sampler=sampler)]
    assert [draws for draws, _ in loaded] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("weights", [[1.0], [1, -1, 1], [0, 0, 0], [1, np.nan, 1]])
def test_weights_must_be_probabilities(weights):
    with pytest.raises(ConfigError, match="sampling weights"):
        DrawSampler(3, seed=0, batch_size=1, weights=weights)
