from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vesalius.data.blur import METHODS, Blur, gaussian_kernel, line_kernel
from vesalius.errors import ConfigError

PARITY = Path(__file__).parents[1] / "parity"
OPENCV = {
    "gaussian_0.5": (Blur("gaussian", sigma=0.5), 1),
    "gaussian_1.1": (Blur("gaussian", sigma=1.1), 1),
    "gaussian_2.0": (Blur("gaussian", sigma=2.0), 1),
    "mean_5": (Blur("mean", size=5), 1),
    "median_5": (Blur("median", size=5), 0),
    "defocus_5": (Blur("defocus", size=5), 2),
}


@pytest.mark.parametrize("name", OPENCV)
def test_agrees_with_opencv(name):
    fixture = np.load(PARITY / "deblur_blur_a.npz")
    blur, tolerance = OPENCV[name]
    ours = blur.blur_uint8(fixture["in/image"]).reshape(-1)[fixture[f"out/{name}/index"]]
    difference = np.abs(ours.astype(int) - fixture[f"out/{name}/value"].astype(int))
    assert difference.max() <= tolerance


def test_gaussian_of_an_impulse_is_the_kernel():
    image = np.zeros((1, 21, 21), np.float32)
    image[0, 10, 10] = 1
    kernel = gaussian_kernel(1.1)
    np.testing.assert_allclose(Blur("gaussian", sigma=1.1)(image)[0, 6:15, 6:15], np.outer(kernel, kernel), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_keeps_shape_range_and_smooths(method):
    image = np.random.default_rng(0).random((2, 40, 32), dtype=np.float32)
    blurred = Blur(method)(image)
    assert blurred.shape == image.shape
    assert blurred.dtype == np.float32
    assert blurred.min() >= 0
    assert blurred.max() <= 1
    assert blurred.std() < image.std()
    np.testing.assert_array_equal(blurred, Blur(method)(image))


def test_motion_kernel_is_a_line_of_its_length():
    assert (line_kernel(5, 0.0)[2] == 0.2).all()
    assert np.count_nonzero(line_kernel(5, np.pi / 4)) in (3, 5)


def test_srad_smooths_speckle_more_than_an_edge():
    rng = np.random.default_rng(1)
    image = np.where(np.arange(64) < 32, 0.2, 0.8) * (1 + 0.1 * rng.standard_normal((64, 64)))
    out = Blur("srad", size=100)(image[None].clip(0, 1).astype(np.float32))[0]
    assert out[:, 4:28].std() < 0.5 * image[:, 4:28].std()
    assert out[:, 34:].mean() - out[:, :30].mean() > 0.55


def test_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="did you mean 'gaussian'"):
        Blur("gausian")
    with pytest.raises(ConfigError, match="odd"):
        Blur("mean", size=4)
