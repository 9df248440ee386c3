"""The documents that cleaning is measured on, and the arithmetic of the bench."""

import json
import os
from itertools import islice, pairwise
from pathlib import Path

import pytest

from data.dedup.shingles import shingle_hashes
from tests.bench.cluster import resident_bytes
from tests.bench.data import AT_LEAST, AT_MOST, Race, ids_of_lines, missed, write_words
from tests.bench.datatrove import FOLDER, Spent
from tests.bench.documents import made_documents, write_documents

TEXTS = ["\n".join(f"word{i}{n} stands in line {n} of text {i} beside {n * 7}." for n in range(300)) for i in range(3)]


def likeness(one: str, other: str) -> float:
    a, b = (set(shingle_hashes(text, 5).tolist()) for text in (one, other))
    return len(a & b) / len(a | b)


def test_documents_are_the_same_ones_again_and_differ() -> None:
    documents = list(islice(made_documents(TEXTS, 1500, seed=0), 300))
    assert documents == list(islice(made_documents(TEXTS, 1500, seed=0), 300))
    assert documents != list(islice(made_documents(TEXTS, 1500, seed=1), 300))
    assert len(set(documents)) > 295
    assert 1000 < sum(map(len, documents)) / len(documents) < 2000


def test_one_document_of_ten_is_a_near_copy() -> None:
    documents = list(islice(made_documents(TEXTS, 1500, seed=0), 600))
    alike = [likeness(a, b) for a, b in pairwise(documents)]
    assert 30 < sum(each > 0.6 for each in alike) < 90
    assert sum(0.3 < each <= 0.6 for each in alike) < 30


@pytest.mark.parametrize("limit", [{"documents": 57}, {"bytes_": 40_000}])
def test_files_name_their_lines(tmp_path: Path, limit: dict[str, int]) -> None:
    written = write_documents(tmp_path / "a", TEXTS, mean_characters=800, file_bytes=9000, **limit)
    lines = [json.loads(line) for path in sorted((tmp_path / "a").iterdir()) for line in path.open()]
    assert sum(len(line["text"].encode()) for line in lines) == written
    assert len(lines) == limit.get("documents", len(lines))
    assert limit.get("bytes_", 0) <= written < limit.get("bytes_", 10**6) + 9000
    assert len(list((tmp_path / "a").iterdir())) > 2
    for path in (tmp_path / "a").iterdir():
        assert [json.loads(line)["id"] for line in path.open()] == [
            f"{path.name}:{number}" for number, _ in enumerate(path.open(), 1)
        ]
    assert ids_of_lines(tmp_path / "a") == {line["id"] for line in lines}


def test_words_are_given_with_one_space_between_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jsonl").write_text(json.dumps({"id": "0:1", "text": "It's  the Sea;\nÜber 3.5"}))
    assert write_words(tmp_path, ["a"], tmp_path / "words") == len("it s the sea über 3 5".encode())
    (line,) = (tmp_path / "words" / "a-0.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == "it s the sea über 3 5"


def test_a_ratio_is_of_one_slice_and_a_rate_of_all() -> None:
    ours = [Spent(1.0, 2.0), Spent(2.0, 4.0), Spent(1.0, 2.0)]
    theirs = [Spent(3.0, 8.0), Spent(8.0, 20.0), Spent(9.0, 30.0)]
    assert Race(80_000_000, ours, theirs).figures("x") == {
        "x_vs_datatrove": 5.0,
        "x_vs_datatrove_wall": 4.0,
        "x_mb_per_core_second": 10.0,
        "datatrove_x_mb_per_core_second": pytest.approx(80 / 58, abs=1e-3),
    }
    assert Spent(1.0, 2.0) + Spent(0.5, 0.25) == Spent(1.5, 2.25)


def test_what_is_on_the_wrong_side_of_its_mark_is_named() -> None:
    good = {**AT_LEAST, **AT_MOST, "peak_worker_bytes": 5, "worker_limit_bytes": 5}
    assert missed(good) == {}
    for name in AT_LEAST:
        assert missed({**good, name: 0.0}) == {name: 0.0}
    for name in AT_MOST:
        assert missed({**good, name: 99.0}) == {name: 99.0}
    assert missed({**good, "peak_worker_bytes": 6}) == {"peak_worker_bytes": 6}


def test_the_most_that_a_process_held_is_more_than_nothing() -> None:
    assert 10**6 < resident_bytes(os.getpid()) < 10**11


def test_every_package_of_the_peer_is_pinned() -> None:
    pins = dict(line.split("==") for line in (FOLDER / "requirements.txt").read_text().split())
    assert int(pins["xxhash"].split(".")[0]) < 4  # datatrove's hashes fail with a newer one
    assert {"datatrove", "spacy", "tokenizers", "orjson"} <= pins.keys()
