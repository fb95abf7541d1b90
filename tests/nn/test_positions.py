"""Position tables: what an offset means, and that a resized table still means it."""

from __future__ import annotations

import pytest
import torch

from vesalius.nn.positions import relative_index, resize_absolute, resize_relative, sincos_2d


def test_relative_index_is_query_minus_key():
    index = relative_index(3, 4, cls=True)
    count = 5 * 7
    assert index[0, 0] == count + 2 and index[0, 5] == count and index[5, 0] == count + 1
    query, key = 1 + (2 * 4 + 3), 1 + (0 * 4 + 1)  # (2, 3) and (0, 1): offset (2, 2)
    assert index[query, key] == (2 + 2) * 7 + (2 + 3)
    assert index[1:, 1:].unique().numel() == count


def test_resized_relative_table_stays_upright():
    rows = torch.arange(-3.0, 4).view(7, 1).expand(7, 7)  # varies with dy only
    table = torch.cat([rows.reshape(-1, 1), torch.tensor([[7.0], [8.0], [9.0]])])
    new = resize_relative(table, (4, 4), (6, 6))
    body = new[:-3].view(11, 11)
    torch.testing.assert_close(body, body[:, :1].expand(11, 11))
    assert (body[1:, 0] > body[:-1, 0]).all() and torch.equal(new[-3:], table[-3:])
    published = resize_relative(table, (4, 4), (6, 6), as_published=True)[:-3].view(11, 11)
    torch.testing.assert_close(published[5, 1:-1], body[1:-1, 5])  # theirs is transposed


@pytest.mark.parametrize("side", [16, 24, 28, 32, 8])
def test_resized_relative_table_is_finite_to_the_border(side):
    table = torch.randn(27 * 27 + 3, 2, generator=torch.Generator().manual_seed(0))
    new = resize_relative(table, (14, 14), (side, side))
    assert new.shape == ((2 * side - 1) ** 2 + 3, 2) and new.isfinite().all()


def test_absolute_table_keeps_the_class_row_and_goes_through_non_square_grids():
    table = torch.randn(1, 1 + 16, 8)
    new = resize_absolute(table, (4, 4), (8, 6))
    assert new.shape == (1, 49, 8) and torch.equal(new[:, 0], table[:, 0])
    assert resize_absolute(table, (4, 4), (4, 4)) is table


def test_sincos_separates_column_and_row():
    table = sincos_2d(16, 3, 4)
    same_column = table.view(3, 4, 16)[:, 2, :8]
    assert torch.equal(same_column[0], same_column[2])
    assert not torch.equal(table.view(3, 4, 16)[0, 2, 8:], table.view(3, 4, 16)[2, 2, 8:])
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(6, 2, 2)
