"""Clusters by ranges of documents, crowds, columns: the same as without bounds, and within them."""

import tracemalloc
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import corpus as corpus_module
from data.columns import new_column, spans
from data.corpus import Corpus, Documents
from data.dedup import near
from data.dedup.clusters import Duplicates, find_duplicates
from data.dedup.crowds import MOST_OF_A_KEY
from data.dedup.minhash import MinHash
from data.dedup.signatures import Method, signature_path
from data.dedup.simhash import SimHash
from data.dedup.spec import DeduplicateSpec, ExactSpec, MinHashSpec, NearSpec, SimHashSpec
from data.dedup.union import find, first_of_clusters, union
from data.executors import SerialExecutor
from data.files import mix64
from data.report import Histogram
from data.selection import Ints, held_out, partition, sample
from data.tasks import Rows

Made = TypeVar("Made")

EDGES = st.integers(1, 60).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=80))
)


def in_one_array(count: int, pairs: Ints) -> Ints:
    parent = np.arange(count)
    union(parent, pairs)
    return find(parent, np.arange(count))


def made_within(bytes_: int, call: Callable[[], Made]) -> Made:
    """What is made, if so much was allocated at once at most; columns are files."""
    for _ in range(2):  # once, the interpreter may enlarge its table of interned strings meanwhile
        tracemalloc.start()
        try:
            made, peak = call(), tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        if peak <= bytes_:
            return made
    raise AssertionError(f"{peak} bytes")


@given(EDGES, st.integers(1, 70))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_clusters_by_ranges_are_those_of_one_array(
    tmp_path: Path, graph: tuple[int, list[tuple[int, int]]], range_documents: int
) -> None:
    count, edges = graph
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    pieces = [pairs[: len(pairs) // 3], pairs[len(pairs) // 3 :]]
    memory = 2 * 64 * range_documents
    assert first_of_clusters(count, pieces, tmp_path / "x", memory).tolist() == in_one_array(count, pairs).tolist()


@pytest.mark.parametrize("count", [20_000, 160_000])
@pytest.mark.parametrize("shape", ["chain", "shuffled chain", "star", "random"])
def test_what_clusters_hold_does_not_grow_with_the_corpus(shape: str, count: int, tmp_path: Path) -> None:
    numbers = np.arange(count)
    chain = np.stack([numbers[1:], numbers[:-1]], axis=1)
    pairs = {
        "chain": chain,
        "shuffled chain": np.random.default_rng(0).permutation(count)[chain],
        "star": np.stack([numbers, np.full(count, count - 1)], axis=1),
        "random": np.random.default_rng(0).integers(0, count, (count // 2, 2)),
    }[shape]
    first = made_within(2**20, lambda: first_of_clusters(count, [pairs], tmp_path / "x", 2**20))
    assert (first == in_one_array(count, pairs)).all()


def documents_of(folder: Path, hashes: Ints, sizes: Ints | None = None) -> Documents:
    parts = [folder / "part.arrow"]
    nothing = np.zeros(len(hashes), np.int64)
    columns = (hashes, nothing, np.arange(len(hashes)), nothing + 1 if sizes is None else sizes, nothing)
    return Documents._of(parts, ([column[span] for column in columns] for span in spans(len(hashes))), folder / "columns")


def duplicates_of(spec: DeduplicateSpec | None, documents: Documents, folder: Path) -> Duplicates:
    return find_duplicates(spec, documents, folder / "work", SerialExecutor(), lambda: None)


@pytest.mark.parametrize("memory_bytes", [2**18, 2**28])
@pytest.mark.parametrize("method", ["exact", "minhash", "none"])
def test_equal_documents_are_those_of_equal_hash(method: str, memory_bytes: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(0).integers(0, 3000, 5000)
    _, first, which = np.unique(draw, return_index=True, return_inverse=True)
    documents = documents_of(tmp_path, mix64(draw.astype(np.uint64)))
    values = np.random.default_rng(1).integers(0, 2**32, (5000, 112), np.uint32)
    signature_path(tmp_path / "part.arrow").write_bytes(values.tobytes())
    specs = {"exact": ExactSpec(memory_bytes=memory_bytes), "minhash": MinHashSpec(memory_bytes=memory_bytes), "none": None}
    found = duplicates_of(specs[method], documents, tmp_path)
    assert (found.equal_N == first[which]).all()
    assert (found.cluster_N == first[which]).all()
    assert (found.kept_N == (np.arange(5000) if method == "none" else first[which])).all()
    histogram, largest = found.sizes(tmp_path)
    sizes = np.bincount(which)
    assert (histogram.total, largest) == ((sizes > 1).sum(), sizes.max())
    assert found.keep.sum() == (5000 if method == "none" else len(first))


def test_the_longest_of_a_cluster_is_kept_and_of_equally_long_ones_the_first(tmp_path: Path) -> None:
    count = 3000
    rng = np.random.default_rng(0)
    signature, text, size = rng.integers(0, 400, count), rng.integers(0, 1500, count), rng.integers(1, 6, 1500)
    signature = signature[np.unique(text, return_index=True)[1][np.unique(text, return_inverse=True)[1]]]
    values = mix64(np.arange(400 * 112, dtype=np.uint64)).astype(np.uint32).reshape(400, 112)[signature]
    signature_path(tmp_path / "part.arrow").write_bytes(values.tobytes())
    documents = documents_of(tmp_path, mix64(text.astype(np.uint64)), size[text])
    found = duplicates_of(MinHashSpec(keep="longest", memory_bytes=2**18), documents, tmp_path)
    for name in np.unique(signature):
        members = np.flatnonzero(signature == name)
        best = max(members.tolist(), key=lambda n: (size[text[n]], -n))
        assert (found.kept_N[members] == best).all()
        assert found.keep[members].sum() == 1


@pytest.mark.parametrize("count", [60_000, 240_000])
@pytest.mark.parametrize("method", ["exact", "minhash"])
def test_what_deduplication_holds_does_not_grow_with_the_corpus(method: str, count: int, tmp_path: Path) -> None:
    spec: DeduplicateSpec = ExactSpec(memory_bytes=2**22)
    if method == "minhash":
        spec = MinHashSpec(memory_bytes=2**22, bands=2, rows=1, keep="longest")
        values = mix64(np.arange(2 * count, dtype=np.uint64) // np.uint64(4)).astype(np.uint32)
        signature_path(tmp_path / "part.arrow").write_bytes(values.tobytes())
    documents = documents_of(tmp_path, mix64(np.random.default_rng(0).integers(0, count, count).astype(np.uint64)))
    found = made_within(2**22, lambda: duplicates_of(spec, documents, tmp_path))
    assert found.keep.sum() < 0.7 * count


class Counting:
    """Counts the pairs that a method compares."""

    def __init__(self, kind: type[MinHash] | type[SimHash], monkeypatch: pytest.MonkeyPatch) -> None:
        self.compared = 0
        agree: Callable[..., np.ndarray] = kind.agree

        def counted(method: Method, one: np.ndarray, other: np.ndarray) -> np.ndarray:
            self.compared += len(one)
            return agree(method, one, other)

        monkeypatch.setattr(kind, "agree", counted)


def crowded_pairs(spec: NearSpec, values: np.ndarray, folder: Path) -> Ints:
    signature_path(folder / "a.arrow").write_bytes(values.tobytes())
    files = [signature_path(folder / "a.arrow")]
    pairs = near.find_pairs(spec, files, [len(values)], folder / "near", SerialExecutor(), lambda: None)
    return np.sort(np.concatenate([np.empty((0, 2), np.int64), *pairs]), axis=1)


def pairs_joined(pairs: Ints, count: int, planted: Sequence[tuple[int, int]]) -> float:
    first = in_one_array(count, pairs)
    return float(np.mean([first[a] == first[b] for a, b in planted]))


def test_a_block_that_very_many_fingerprints_share_costs_few_comparisons_and_no_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, planted = 50_000, 2000
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**48, count, np.uint64)
    for i in range(planted):
        values[count - 1 - i] = values[i] ^ np.uint64(sum(1 << int(bit) for bit in rng.choice(48, 3, replace=False)))
    counting = Counting(SimHash, monkeypatch)
    pairs = crowded_pairs(SimHashSpec(), values, tmp_path)
    assert pairs_joined(pairs, count, [(i, count - 1 - i) for i in range(planted)]) == 1
    assert counting.compared < 100 * count < count**2 // 400


def test_fingerprints_that_are_nearly_all_the_same_cost_bounded_comparisons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50,000 of 18 low bits: every table but the last has one row."""
    count = 50_000
    values = np.random.default_rng(0).permutation(2**18)[:count].astype(np.uint64)
    counting = Counting(SimHash, monkeypatch)
    pairs = crowded_pairs(SimHashSpec(hamming=1, blocks=2), values, tmp_path)
    assert counting.compared <= 2 * MOST_OF_A_KEY * 2 * count
    first = in_one_array(count, pairs)
    listed = {int(value): number for number, value in enumerate(values.tolist())}
    near_by = [(n, listed[v ^ (1 << bit)]) for v, n in listed.items() for bit in range(18) if v ^ (1 << bit) in listed]
    assert np.mean([first[a] == first[b] for a, b in near_by]) > 0.7


def test_a_band_that_very_many_documents_share_costs_few_comparisons_and_hardly_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs agree in three quarters of their values, and share no band but everybody's."""
    count, spec = 5000, MinHashSpec(min_agreement=0.7)
    rng = np.random.default_rng(0)
    values = np.repeat(rng.integers(0, 2**32, (count // 2, 112), np.uint32), 2, axis=0)
    values[:, :8] = values[0, :8]
    differ = np.zeros((count // 2, 112), np.bool_)
    for band in range(1, 14):
        differ[
            np.arange(count // 2)[:, None], 8 * band + rng.permuted(np.tile(np.arange(8), (count // 2, 1)), axis=1)[:, :2]
        ] = True
    values[1::2][differ] ^= np.uint32(1)
    counting = Counting(MinHash, monkeypatch)
    pairs = crowded_pairs(spec, values, tmp_path)
    recall = pairs_joined(pairs, count, [(i, i + 1) for i in range(0, count, 2)])
    assert recall > 0.999  # 1 - 0.25^13
    assert counting.compared < (MOST_OF_A_KEY + 14) * count


def corpus_of(folder: Path, sizes: Ints, **columns: np.ndarray) -> Corpus:
    documents = documents_of(folder, np.arange(len(sizes)), sizes)
    given = {name: getattr(documents, name) for name in ("parts", "folder", "hash_N", "part_N", "row_N", "bytes_N")}
    nothing = {"clusters": Histogram(), "largest_cluster": 0, "funnel": (), "read_C": (), "cleaned_C": ()}
    return Corpus(**given, **columns, **nothing, decontamination=(), languages={})


@pytest.mark.parametrize("span", [7, 1 << 16])
def test_portions_are_full_runs_of_one_cell_whatever_the_span(
    span: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "spans", lambda count: spans(count, span))
    rng = np.random.default_rng(0)
    held_out_N, segment_N, cell_N = rng.random(500) < 0.1, rng.integers(0, 2, 500), rng.integers(0, 3, 500)
    sizes = np.where(rng.random(500) < 0.05, 500, rng.integers(1, 40, 500))
    corpus = corpus_of(tmp_path, sizes, held_out_N=held_out_N, segment_N=segment_N, cell_N=cell_N)
    for held, segment, cell in product((False, True), range(2), range(3)):
        portions = list(corpus.portions(held, segment, cell, 10, 200))
        chosen = (held_out_N == held) & (segment_N == segment) & (cell_N == cell)
        assert np.concatenate(portions).tolist() == np.flatnonzero(chosen).tolist()
        assert all(len(each) == 1 or (len(each) <= 10 and sizes[each].sum() <= 200) for each in portions)
        for each, following in pairwise(portions):
            assert len(each) == 10 or sizes[each].sum() + sizes[following[0]] > 200


@given(st.sets(st.integers(0, 300), min_size=1))
def test_rows_are_told_in_bits(numbers: set[int]) -> None:
    rows = Rows.of(np.array(sorted(numbers)))
    assert rows.numbers().tolist() == sorted(numbers)
    assert len(rows) == len(numbers)
    assert len(rows.bits) <= (max(numbers) - min(numbers)) // 8 + 1


@pytest.mark.parametrize("count", [100_000, 400_000])
def test_what_the_split_and_the_samples_hold_does_not_grow_with_the_corpus(count: int, tmp_path: Path) -> None:
    cells, sizes = np.arange(count) % 3, np.arange(count) % 100
    documents = documents_of(tmp_path, mix64(np.arange(count, dtype=np.uint64)))
    held_out_N = new_column(tmp_path / "held_out", np.bool_, count)
    segment_N = new_column(tmp_path / "segment", np.int64, count)

    def select() -> Ints:
        held_out(documents.hash_N, cells, 0.1, 0, held_out_N)
        partition(documents.hash_N, sizes, cells, [0.5, 0.5], 0, held_out_N, segment_N)
        documents.take(held_out_N, tmp_path / "taken")
        return sample(documents.hash_N, sizes, cells, [0.5, 0.3, 0.2], 100_000, 0, held_out_N)

    chosen = made_within(2**23, select)
    assert abs(held_out_N.mean() - 0.1) < 0.01
    assert not held_out_N[chosen].any()
    assert abs(sizes[chosen].sum() - 100_000) < 1000
    assert abs(segment_N[~held_out_N].mean() - 0.5) < 0.01
