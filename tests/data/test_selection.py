"""What is held out where cells have texts in common, as they do where equal documents are kept."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.selection import held_out


def sides(texts_by_cell: list[list[int]], fraction: float, seed: int) -> tuple[list[set[int]], list[set[int]]]:
    """The texts of each cell that are held out, and those that are for training."""
    hashes = np.array([text for texts in texts_by_cell for text in texts], np.uint64)
    cells = np.array([cell for cell, texts in enumerate(texts_by_cell) for _ in texts])
    mask = held_out(hashes, cells, fraction, seed)
    split = [(cell, text, bool(held)) for cell, text, held in zip(cells.tolist(), hashes.tolist(), mask, strict=True)]
    by_cell = [list(of_cell) for _, of_cell in groupby(split, key=lambda document: document[0])]
    return tuple([{text for _, text, held in of_cell if held == side} for of_cell in by_cell] for side in (True, False))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "texts_by_cell",
    [
        # The one text of a cell is for training, so the other cell holds its other one out.
        [[1, 2], [1]],
        [[1], [1, 2]],
        # What the second cell needs for training was what the first held out.
        [[1, 2], [1, 1]],
        [[1, 2], [3], [2, 3, 4]],
        # What the last holds out must not take what the first trains on.
        [[1, 2], [2, 3, 4], [3, 4, 5], [5]],
    ],
)
@pytest.mark.parametrize("fraction", [0.01, 0.5])
def test_a_text_of_two_cells_takes_neither_side_from_one_of_them(
    texts_by_cell: list[list[int]], seed: int, fraction: float
) -> None:
    held, training = sides(texts_by_cell, fraction, seed)
    for texts, out, kept in zip(texts_by_cell, held, training, strict=True):
        assert kept
        assert bool(out) == (len(set(texts)) > 1)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=1, max_size=5), st.integers(0, 9))
@settings(deadline=None)
def test_only_what_another_cell_has_left_to_train_on_is_not_held_out(texts_by_cell: list[list[int]], seed: int) -> None:
    held, training = sides(texts_by_cell, 0.3, seed)
    assert not set().union(*held) & set().union(*training)
    assert all(training)
    last = {next(iter(texts)) for texts in training if len(texts) == 1}
    for out, kept in zip(held, training, strict=True):
        assert out or kept <= last
