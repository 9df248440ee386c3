"""Near duplicates: found as often as theory says, and the same ones whoever looks."""

import math
import random
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import stdlib
from data.dedup import near
from data.dedup.minhash import MinHash
from data.dedup.shingles import shingle_hashes
from data.dedup.signatures import make_method, signature_path
from data.dedup.simhash import SimHash
from data.dedup.spec import MinHashSpec, NearSpec, SimHashSpec
from data.dedup.union import find, spanning_forest, union
from data.executors import Executor, SerialExecutor
from data.files import U64, mix64
from data.selection import Ints, text_hash

BINS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
PAIRS = 3000
WORDS = 260


def shingles(text: str) -> U64:
    return shingle_hashes(text, 5)


def jaccard(one: U64, other: U64) -> float:
    a, b = set(one.tolist()), set(other.tolist())
    return len(a & b) / len(a | b)


@cache
def vocabulary() -> list[str]:
    """Words of Python's own documentation."""
    topics = (text for _, text in stdlib.texts("stdlib:prose", stdlib.TOPICS))
    return sorted({word for text in topics for word in text.lower().split() if word.isalpha()})


def altered(words: list[str], similarity: float, rng: random.Random) -> list[str]:
    """The words with some replaced. A word amid others is in five shingles, the last t words are in t."""
    count = len(words) - 4
    broken = round(count * (1 - similarity) / (1 + similarity))
    words = list(words)
    tail = broken % 5
    places = rng.sample(range(1, count // 5 - 1), broken // 5)
    for at in [5 * place for place in places] + list(range(len(words) - tail, len(words))):
        words[at] = f"{rng.choice(vocabulary())}{rng.randrange(10**9)}"
    return words


@cache
def planted() -> tuple[list[U64], dict[float, list[U64]]]:
    """Shingles of documents, and of altered ones at each similarity, which is checked for every pair."""
    rng = random.Random(0)
    originals = [rng.choices(vocabulary(), k=WORDS) for _ in range(PAIRS)]
    hashed = [shingles(" ".join(words)) for words in originals]
    others = {s: [shingles(" ".join(altered(words, s, rng))) for words in originals] for s in BINS}
    for similarity, copies in others.items():
        for one, other in zip(hashed, copies, strict=True):
            common = len(np.intersect1d(one, other))
            assert abs(common / (len(one) + len(other) - common) - similarity) < 0.005
    return hashed, others


def found_pairs(spec: NearSpec, one: Sequence[U64], other: Sequence[U64]) -> np.ndarray:
    method = make_method(spec)
    first, second = method.sign(one), method.sign(other)
    met = (method.keys(first) == method.keys(second)).any(axis=1)
    return met & method.agree(first, second) if method.verifies else met


def assert_within_three_sigma(found: np.ndarray, expected: float) -> None:
    sigma = math.sqrt(expected * (1 - expected) / len(found))
    assert abs(found.mean() - expected) <= max(3 * sigma, 1 / len(found))


@pytest.mark.parametrize("similarity", BINS)
def test_minhash_finds_pairs_as_often_as_theory_says(similarity: float) -> None:
    one, others = planted()
    assert_within_three_sigma(found_pairs(MinHashSpec(), one, others[similarity]), 1 - (1 - similarity**8) ** 14)


def verified_recall(similarity: float, bands: int, rows: int, needed: int) -> float:
    """Exact: some band is whole, and so many values agree. One band's agreements are binomial; those of bands that are not
    whole add up by convolution."""
    band = np.array([math.comb(rows, k) * similarity**k * (1 - similarity) ** (rows - k) for k in range(rows + 1)])
    partial, every, none_whole = np.append(band[:-1], 0.0), np.ones(1), np.ones(1)
    for _ in range(bands):
        every, none_whole = np.convolve(every, band), np.convolve(none_whole, partial)
    return float((every - none_whole)[needed:].sum())


@pytest.mark.parametrize("similarity", [0.6, 0.7, 0.8])
def test_verified_candidates_are_those_that_agree(similarity: float) -> None:
    one, others = planted()
    expected = verified_recall(similarity, 14, 8, math.ceil(0.65 * 112))
    assert expected < 0.98 * (1 - (1 - similarity**8) ** 14) or similarity == 0.8
    assert_within_three_sigma(found_pairs(MinHashSpec(min_agreement=0.65), one, others[similarity]), expected)


def test_another_seed_is_another_draw() -> None:
    one, others = planted()
    draws = [found_pairs(MinHashSpec(seed=seed), one, others[0.7]) for seed in (0, 1)]
    for draw in draws:
        assert_within_three_sigma(draw, 1 - (1 - 0.7**8) ** 14)
    assert 0.4 < (draws[0] != draws[1]).mean() < 0.6  # 2 p (1 - p) of independent draws, p = 0.565


def clusters_of(spec: NearSpec, documents: Sequence[U64], folder: Path, executor: Executor | None = None) -> Ints:
    """First document of each one's cluster, through the shuffle; signatures in parts of uneven sizes."""
    folder.mkdir(exist_ok=True)
    borders = sorted({0, len(documents) // 7, len(documents) // 2, len(documents)})
    parts = [folder / f"part-{i}.arrow" for i in range(len(borders) - 1)]
    for part, begin, end in zip(parts, borders, borders[1:], strict=False):
        signature_path(part).write_bytes(make_method(spec).sign(documents[begin:end]).tobytes())
    counts = np.diff(borders).tolist()
    parent = np.arange(len(documents))
    for pairs in near.find_pairs(
        spec, list(map(signature_path, parts)), counts, folder / "near", executor or SerialExecutor(), lambda: None
    ):
        union(parent, pairs)
    return find(parent, np.arange(len(documents)))


def components(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Naively: the least member of each one's component."""
    neighbours = defaultdict(set)
    for a, b in pairs:
        neighbours[a].add(b)
        neighbours[b].add(a)
    least = [-1] * count
    for start in range(count):
        reached = [start] if least[start] < 0 else []
        while reached:
            at = reached.pop()
            if least[at] < 0:
                least[at] = start
                reached.extend(neighbours[at])
    return least


def mixed_documents(count: int, seed: int = 0) -> list[U64]:
    """Originals, altered ones at all similarities, copies."""
    one, others = planted()
    rng = random.Random(seed)
    documents = [one[i] for i in range(count)] + [others[s][rng.randrange(count)] for s in BINS for _ in range(count // 4)]
    documents += [documents[rng.randrange(len(documents))] for _ in range(count // 4)]
    rng.shuffle(documents)
    return documents


SPECS: dict[str, NearSpec] = {
    "minhash": MinHashSpec(),
    "minhash verified": MinHashSpec(min_agreement=0.6),
    "simhash": SimHashSpec(),
    "simhash, 6 blocks": SimHashSpec(blocks=6),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("memory_bytes", [2**18, 2**28])
def test_clusters_are_the_components_of_all_pairs_that_are_alike(spec: NearSpec, memory_bytes: int, tmp_path: Path) -> None:
    documents = mixed_documents(120)
    method = make_method(spec)
    signatures = method.sign(documents)
    keys = method.keys(signatures)
    everyone = np.array(list(combinations(range(len(documents)), 2)))
    met = (keys[everyone[:, 0]] == keys[everyone[:, 1]]).any(axis=1)
    if method.verifies:
        met &= method.agree(signatures[everyone[:, 0]], signatures[everyone[:, 1]])
    expected = components(len(documents), [(a, b) for a, b in everyone[met].tolist()])
    assert len(set(expected)) < len(documents) - 50
    found = clusters_of(spec.model_copy(update={"memory_bytes": memory_bytes}), documents, tmp_path)
    assert found.tolist() == expected


def test_what_is_dropped_is_like_what_stands_for_it(tmp_path: Path) -> None:
    one, others = planted()
    each = PAIRS // len(BINS)
    documents, partner = [], {}
    for i, similarity in enumerate(BINS):
        for j in range(i * each, (i + 1) * each):
            partner[len(documents) + 1] = len(documents)
            documents += [one[j], others[similarity][j]]
    cluster = clusters_of(MinHashSpec(), documents, tmp_path)
    dropped = np.flatnonzero(cluster != np.arange(len(documents)))
    assert len(dropped) > each * 5
    alike = 0
    for document in dropped.tolist():
        members = np.flatnonzero(cluster == cluster[document]).tolist()
        alike += any(jaccard(documents[document], documents[m]) >= 0.6 for m in members if m != document)
    assert alike / len(dropped) >= 0.98


def test_pairs_of_real_text_are_found_as_theory_says() -> None:
    """Passages of a manual, of which many repeat others in part."""
    words = " ".join(text for _, text in stdlib.texts("stdlib:prose", stdlib.TOPICS)).split()
    documents = [shingles(" ".join(words[at : at + 200])) for at in range(0, min(len(words), 60_000) - 200, 200)]
    sets = [set(each.tolist()) for each in documents]
    pairs = list(combinations(range(len(sets)), 2))
    common = np.array([len(sets[a] & sets[b]) for a, b in pairs])
    likeness = common / (np.array([len(sets[a]) + len(sets[b]) for a, b in pairs]) - common)
    expected = 1 - (1 - likeness**8) ** 14
    method = MinHash(MinHashSpec())
    keys = method.keys(method.sign(documents))
    index = np.array(pairs)
    found = (keys[index[:, 0]] == keys[index[:, 1]]).any(axis=1)
    assert (common > 0).sum() > 100
    assert abs(found.sum() - expected.sum()) <= 3 * math.sqrt((expected * (1 - expected)).sum()) + 1
    assert not found[likeness < 0.2].any()


FINGERPRINTS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(FINGERPRINTS, st.integers(0, 5), st.integers(1, 3), st.randoms(use_true_random=False))
def test_tables_bring_together_all_fingerprints_within_the_distance(
    values: list[int], hamming: int, more: int, rng: random.Random
) -> None:
    method = SimHash(SimHashSpec(hamming=hamming, blocks=hamming + more))
    assert method.tables == math.comb(hamming + more, hamming)
    flipped = [value ^ sum(1 << bit for bit in rng.sample(range(64), hamming)) for value in values]
    one, other = (np.array(each, np.uint64).reshape(-1, 1) for each in (values, flipped))
    assert (method.keys(one) == method.keys(other)).any(axis=1).all()
    assert method.agree(one, other).all()
    difference = (one ^ other).ravel().tolist()
    further = [next(1 << bit for bit in range(64) if not bits >> bit & 1) for bits in difference]
    assert not method.agree(one, other ^ np.array(further, np.uint64).reshape(-1, 1)).any()


def test_a_fingerprints_bit_is_what_most_shingles_have() -> None:
    hashes = mix64(np.arange(31, dtype=np.uint64))
    [[value]] = SimHash(SimHashSpec()).sign([hashes]).tolist()
    assert value == sum((sum(int(h) >> bit & 1 for h in hashes.tolist()) > 15) << bit for bit in range(64))


def test_simhash_finds_less_of_what_is_less_alike() -> None:
    one, others = planted()
    found = {s: found_pairs(SimHashSpec(), one, others[s]).mean() for s in BINS}
    assert list(found.values()) == sorted(found.values())
    assert found[0.5] < 0.001
    assert 0.1 < found[0.95] < found_pairs(MinHashSpec(), one, others[0.95]).mean()


def test_a_signature_does_not_depend_on_the_company() -> None:
    one, _ = planted()
    documents = [*one[:40], np.concatenate(one[:300]), *one[40:50]]  # one longer than what is computed at once
    for method in (MinHash(MinHashSpec()), SimHash(SimHashSpec())):
        together = method.sign(documents)
        assert (together == np.concatenate([method.sign([document]) for document in documents])).all()


EDGES = st.integers(1, 40).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=60))
)


@given(EDGES, st.randoms(use_true_random=False))
def test_union_gives_the_connected_components_in_any_order(
    graph: tuple[int, list[tuple[int, int]]], rng: random.Random
) -> None:
    count, pairs = graph
    expected = components(count, pairs)
    for _ in range(3):
        rng.shuffle(pairs)
        turned = np.array([pair[:: rng.choice((1, -1))] for pair in pairs], np.int64).reshape(-1, 2)
        cut = rng.randint(0, len(pairs))
        parent = np.arange(count)
        union(parent, turned[:cut])
        union(parent, turned[cut:])
        assert find(parent, np.arange(count)).tolist() == expected
        forest = spanning_forest(turned)
        assert components(count, [(a, b) for a, b in forest.tolist()]) == expected
        assert len(forest) == count - len(set(expected))


@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_a_long_chain_is_one_cluster(order: str) -> None:
    pairs = np.stack([np.arange(99_999), np.arange(1, 100_000)], axis=1)
    if order == "shuffled":
        names = np.random.default_rng(0).permutation(100_000)
        pairs = names[pairs]
    parent = np.arange(100_000)
    union(parent, pairs[::-1] if order == "backwards" else pairs)
    assert not find(parent, np.arange(100_000)).any()


def peak_bytes(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Measuring:
    """Records the most that any task held."""

    def __init__(self) -> None:
        self.peak = 0
        self.tasks = 0

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        for task in shards:
            self.peak = max(self.peak, peak_bytes(lambda task=task: fn(task)))
            self.tasks += 1
            assert self.peak <= task.memory_bytes
            yield task.index


@pytest.mark.parametrize("alike", ["nothing", "one band of all", "everything"])
@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (MinHashSpec(memory_bytes=2**22), 20_000),
        (MinHashSpec(memory_bytes=2**20, min_agreement=0.5), 2_000),
        (SimHashSpec(memory_bytes=2**20), 5_000),
    ],
    ids=["minhash", "minhash verified", "simhash"],
)
def test_a_task_stays_within_its_memory_whatever_the_corpus(alike: str, spec: NearSpec, count: int, tmp_path: Path) -> None:
    method = make_method(spec)
    draw = np.random.default_rng(0).integers(0, 2**64, (count, method.width), np.uint64, endpoint=False)
    if alike == "one band of all" and method.width == 1:
        draw %= 2**48
    values = (draw >> np.uint64(64 - 8 * method.dtype.itemsize)).astype(method.dtype)
    if alike == "one band of all" and method.width > 1:
        values[:, :8] = values[0, :8]
    if alike == "everything":
        values[:] = values[0]
    part = tmp_path / "a.arrow"
    signature_path(part).write_bytes(values.tobytes())
    executor = Measuring()
    pairs = near.find_pairs(spec, [signature_path(part)], [count], tmp_path / "near", executor, lambda: None)
    joined = sum(len(each) for each in pairs)
    assert executor.tasks > 8
    assert executor.peak <= spec.memory_bytes
    if alike == "everything" or (alike == "one band of all" and not method.verifies):
        assert joined >= count - 1
    else:
        assert joined == 0


def test_a_key_that_very_many_share_costs_no_more_memory_and_little_recall(tmp_path: Path) -> None:
    """One band is everybody's; every second document is the one before it but for a fifth of its values."""
    spec, count = MinHashSpec(memory_bytes=2**18, min_agreement=0.7), 3000
    draw = np.random.default_rng(0)
    values = np.repeat(draw.integers(0, 2**32, (count // 2, 112), np.uint32), 2, axis=0)
    values[1::2, ::5] += 1
    values[:, :8] = values[0, :8]
    part = tmp_path / "a.arrow"
    signature_path(part).write_bytes(values.tobytes())
    executor = Measuring()
    pairs = np.concatenate(
        list(near.find_pairs(spec, [signature_path(part)], [count], tmp_path / "near", executor, lambda: None))
    )
    assert count > spec.memory_bytes // near.RECORD_BYTES
    assert executor.peak <= spec.memory_bytes
    assert (pairs[:, 0] == pairs[:, 1] + 1).all()
    assert (pairs[:, 1] % 2 == 0).all()
    assert len(np.unique(pairs[:, 1])) > 0.9 * count / 2


def test_shingles_look_past_case_punctuation_and_white_space() -> None:
    assert (shingles("One, two:\nthree-four 'five' SIX!") == shingles("one two three four five six")).all()
    assert len(shingles("one two three four five six")) == 2
    assert shingles("one two three four five six")[0] == shingles("one two three four five")[0]
    assert len(set(shingles(" ".join(vocabulary()[:500])).tolist())) == 496


def test_words_are_the_same_in_ascii_and_beside_other_letters() -> None:
    ascii_text = "A_b c1! d.e\x1cf\tg--h ~ i's (j) k"
    assert shingles(ascii_text + " \u00e9").tolist()[:-1] == shingles(ascii_text).tolist()


def test_chinese_is_compared_by_characters() -> None:
    text = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
    assert len(shingles(text)) == 20 - 4
    assert jaccard(shingles(text), shingles(text.replace("，", " "))) == 1
    assert jaccard(shingles(text), shingles(text.replace("霜", "雪"))) == pytest.approx(11 / 21)


def test_words_amid_chinese_are_words() -> None:
    assert len(shingles("用 Transformer 模型翻译")) == 6 - 4
    assert (shingles("用Transformer模型翻译") == shingles("用 transformer 模型 翻译")).all()


def test_a_text_without_words_is_like_its_copies_only() -> None:
    assert shingles("!!! ...").tolist() == [text_hash("!!! ...")] != shingles("???").tolist()
    assert len(shingles("two words")) == 1
