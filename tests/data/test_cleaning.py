"""Stages, and the choice of what is kept and held out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.documents import Document
from data.selection import held_out, partition, sample, text_hash
from data.stages.base import StageCount, clean
from data.stages.length import Length, LengthSpec
from data.stages.normalise import _NEWLINES, _UNWANTED, Normalise, NormaliseSpec


def cleaned(*texts: str, minimum: int = 0) -> tuple[list[str], dict[str, int]]:
    stages = [Normalise(NormaliseSpec()), Length(LengthSpec(min_characters=minimum))]
    counts = [StageCount("normalise"), StageCount("length")]
    documents = (Document(text, "", "en", "web") for text in texts)
    return [d.text for d in clean(documents, stages, counts)], counts[0].drops | counts[1].drops


def test_text_is_normalised() -> None:
    assert cleaned("  cafe\u0301\r\nau\x00 lait\ufeff \x07\n") == (["caf\u00e9\nau lait"], {})


@pytest.mark.parametrize("c", ["\v", "\f", "\x85", "\x1c", "\x1d", "\x1e", "\u2028", "\u2029", "\r", "\r\n"])
def test_what_ends_a_line_elsewhere_ends_one_here(c: str) -> None:
    assert cleaned(f"one{c}two") == (["one\ntwo"], {})


def test_a_control_character_that_is_a_space_parts_words() -> None:
    assert cleaned("one\x1ftwo") == (["one two"], {})


@given(st.text(st.characters(max_codepoint=0x3000)), st.sampled_from([chr(c) for c in _UNWANTED] + ["\r", "\u2028", "\u2029"]))
def test_nothing_unwanted_stays(text: str, unwanted: str) -> None:
    assert not _NEWLINES.search(kept := "".join(cleaned(f"x{text}{unwanted}{text}x")[0]))
    assert kept == kept.translate(_UNWANTED)


def test_indentation_inside_a_document_stays() -> None:
    assert cleaned("def f():\n\treturn  1\n")[0] == ["def f():\n\treturn  1"]


def test_every_drop_has_a_reason() -> None:
    assert cleaned("", " \n ", "short", "long enough", minimum=8) == (["long enough"], {"empty": 2, "too_short": 1})


def test_documents_count_as_the_same_whatever_their_case_and_spacing() -> None:
    assert text_hash("One  Two\nthree") == text_hash("one two three ")
    assert text_hash("one two") != text_hash("onetwo")


HASHES = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2)), min_size=1, max_size=50, unique_by=lambda d: d[0])


@given(HASHES, st.floats(0.01, 0.49), st.integers(0, 9))
def test_each_cell_of_two_documents_has_both_sides(documents: list[tuple[int, int]], fraction: float, seed: int) -> None:
    hashes = np.array([d[0] for d in documents], np.uint64)
    cells = np.array([d[1] for d in documents])
    mask = held_out(hashes, cells, fraction, seed)
    for cell in set(cells.tolist()):
        inside = mask[cells == cell]
        assert not inside.all()
        assert inside.any() == (len(inside) > 1)


def test_the_held_out_share_is_about_what_was_asked() -> None:
    hashes = np.arange(20_000, dtype=np.uint64)
    assert 0.045 < held_out(hashes, np.zeros(20_000, np.int64), 0.05, 0).mean() < 0.055


def test_the_split_of_a_document_does_not_depend_on_the_others() -> None:
    hashes = np.arange(5000, dtype=np.uint64)
    cells = np.zeros(5000, np.int64)
    whole = held_out(hashes, cells, 0.1, 0)
    assert (held_out(hashes[1000:], cells[1000:], 0.1, 0) == whole[1000:]).all()


def test_equal_texts_are_on_one_side() -> None:
    hashes = np.repeat(np.arange(500, dtype=np.uint64), 2)
    mask = held_out(hashes, np.zeros(1000, np.int64), 0.1, 0)
    assert (mask[::2] == mask[1::2]).all()


def test_segments_have_their_share_of_each_cells_bytes() -> None:
    hashes = np.arange(6000, dtype=np.uint64)
    cells = np.repeat([0, 1], 3000)
    sizes = np.random.default_rng(0).integers(1, 1000, 6000)
    segments = partition(hashes, sizes, cells, [0.2, 0.5, 0.3], 0)
    for cell in (0, 1):
        inside = np.bincount(segments, weights=sizes * (cells == cell)) / sizes[cells == cell].sum()
        assert np.abs(inside - [0.2, 0.5, 0.3]).max() < 1000 / sizes[cells == cell].sum()


def test_the_segment_of_a_document_is_another_draw_than_its_place_and_its_split() -> None:
    hashes, cells, sizes = np.arange(4000, dtype=np.uint64), np.zeros(4000, np.int64), np.ones(4000, np.int64)
    segments = partition(hashes, sizes, cells, [0.5, 0.5], 0)
    assert abs(segments[:2000].mean() - 0.5) < 0.05
    assert abs(segments[held_out(hashes, cells, 0.3, 0)].mean() - 0.5) < 0.05
    assert (segments != partition(hashes, sizes, cells, [0.5, 0.5], 1)).mean() > 0.4


@given(HASHES, st.integers(1, 4), st.integers(0, 9))
def test_equal_texts_are_in_one_segment(documents: list[tuple[int, int]], count: int, seed: int) -> None:
    hashes = np.array([d[0] for d in documents] * 2, np.uint64)
    cells = np.array([d[1] for d in documents] * 2)
    segments = partition(hashes, np.arange(1, len(hashes) + 1), cells, [1 / count] * count, seed)
    assert (segments[: len(documents)] == segments[len(documents) :]).all()
    assert set(segments.tolist()) <= set(range(count))


def test_the_tokenizers_sample_follows_the_shares_up_to_the_budget() -> None:
    hashes = np.arange(2000, dtype=np.uint64)
    cells = np.repeat([0, 1], 1000)
    sizes = np.full(2000, 100)
    chosen = sample(hashes, sizes, cells, [0.8, 0.2], 50_000, 0)
    assert np.bincount(cells[chosen]).tolist() == [400, 100]
    assert chosen.tolist() == sorted(chosen)
    assert sample(hashes, sizes, cells, [0.8, 0.2], 50_000, 1).tolist() != chosen.tolist()
