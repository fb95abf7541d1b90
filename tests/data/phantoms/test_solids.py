"""Solids, smooth fields and grids: distances are distances, boxes hold, thick slices average, tilted grids agree."""

from __future__ import annotations

import numpy as np
import pytest

from vesalius.data.phantoms.solids import (
    Canvas,
    Ellipsoid,
    Field,
    Grid,
    Joined,
    Tube,
    acquire,
    middle,
    mirrored,
    smooth_path,
    warped,
)
from vesalius.errors import ConfigError

VIEW = (100.0, 100.0, 100.0)


def test_distances_are_signed_millimetres():
    points = np.array([[0, 12, 30], [0, 0, 0], [0, 0, 0]], dtype=np.float32)
    assert Ellipsoid((0, 0, 0), (10, 10, 10))(points[:, 1:]) == pytest.approx([2, 20], abs=1e-4)
    tube = Tube(((-20, 0, 0), (20, 0, 0)), (4, 8))
    assert tube(points) == pytest.approx([-6, -7.2, 2], abs=0.01)
    wide = Tube(((0, 0, -50), (0, 0, 50)), (5, 5), squash=(2, 1, 1))
    assert (wide(np.array([[9.0, 11], [0, 0], [0, 0]], dtype=np.float32)) < 0).tolist() == [True, False]
    bitten = Joined([Ellipsoid((0, 0, 0), (10, 10, 10))], cut=(Ellipsoid((10, 0, 0), (5, 5, 5)),), blend=1.0)
    assert (bitten(np.array([[0, 8], [0, 0], [0, 0]], dtype=np.float32)) < 0).tolist() == [True, False]


@pytest.mark.parametrize("oblique", [0.0, 25.0])
def test_boxes_cut_nothing_off(oblique):
    """Painting within a solid's box gives what painting everywhere gives, also on a tilted grid and in pieces."""
    grid = Grid.axial((24, 40, 32), (), view=VIEW, oblique=oblique)
    points = warped(grid.points(), np.random.default_rng(0), amplitude=3.0, length=40.0)
    path = smooth_path(((-30, -20, -25), (0, 30, 0), (25, -10, 30)), 6)
    for solid in (
        Ellipsoid((10, -5, 8), (22, 9, 14), (20, 30, 40)),
        Tube(path, np.linspace(9, 3, len(path)), (1, 2, 1)),
    ):
        canvas = Canvas(grid, points, margin=12.0)
        for one in (solid, mirrored(solid)):
            canvas.paint(1, one)
        everywhere = (solid(points) < 0) | (mirrored(solid)(points) < 0)
        assert everywhere.sum() > 300
        assert np.array_equal(canvas.labels == 1, everywhere)


def test_only_what_may_be_painted_over_is():
    grid = Grid.axial(16, (), view=VIEW)
    canvas = Canvas(grid, grid.points(), margin=1.0)
    canvas.paint(1, Ellipsoid((-20, 0, 0), (30, 30, 30)))
    canvas.paint(2, Ellipsoid((20, 0, 0), (30, 30, 30)), over=(0,))
    assert (canvas.labels == 1).sum() > (canvas.labels == 2).sum() > 0


def test_a_field_is_normal_smooth_and_the_same_anywhere():
    field = Field(np.random.default_rng(1), 24.0)
    points = Grid.axial(48, (), view=(288, 288, 288)).points()
    values = field(points)
    assert abs(values.mean()) < 0.05 and values.std() == pytest.approx(1, abs=0.1)
    step = np.array([2.0, 0, 0], dtype=np.float32).reshape(3, 1, 1, 1)
    assert np.abs(field(points + step) - values).mean() < 0.5
    assert np.allclose(field(points[:, ::2]), values[::2])
    folds = Field(np.random.default_rng(1), 24.0, width=0.25)(np.array([np.arange(0, 288, 1.0)] + [np.zeros(288)] * 2))
    crossings = (np.diff(np.sign(folds)) != 0).sum()  # a line meets sheets 12 mm apart at all angles
    assert 288 / 12 * 0.35 < crossings < 288 / 12


def test_thick_slices_average_and_keep_the_middle_label():
    grid = Grid.axial((4, 20, 20), (), view=VIEW)
    fine, parts = grid.finer()
    assert parts == (5, 1, 1) and fine.size == (20, 20, 20) and fine.affine.shape == (4, 4)
    centres = middle(fine.points(), parts)
    assert np.allclose(centres, grid.points(), atol=1e-3)
    ramp = np.arange(20, dtype=np.float32)[:, None, None] * np.ones((1, 20, 20), dtype=np.float32)
    assert acquire(ramp, parts, 0.0)[:, 0, 0].tolist() == [2, 7, 12, 17]


def test_a_tilted_grid_sees_the_same_places():
    grid = Grid.axial((10, 12, 14), (3, 2, 1), view=VIEW, oblique=30)
    assert np.linalg.det(grid.rotation) == pytest.approx(1)
    index = np.array([13, 11, 9, 1])  # column, row, slice
    assert grid.affine @ index == pytest.approx([*grid.points()[:, 9, 11, 13], 1], abs=1e-4)
    assert grid.points().mean((1, 2, 3)) == pytest.approx([0, 0, 0], abs=1e-4)


def test_impossible_grids_are_refused():
    with pytest.raises(ConfigError, match="4 or more"):
        Grid.axial(3, (), view=VIEW)
    with pytest.raises(ConfigError, match="size has 2 numbers"):
        Grid.axial((32, 32), (), view=VIEW)
    with pytest.raises(ConfigError, match="above 0"):
        Grid.axial(32, (1, 0, 1), view=VIEW)
