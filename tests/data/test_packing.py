"""From documents to shards: limits in tokens, one document a row, and the documents themselves as Parquet."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data.dataset import PackedDataset
from data.errors import NotEnoughData
from data.files import checksum
from data.manifest import SPLITS
from data.packing import cut
from data.report import Report
from data.spec import DocumentTokens
from data.tokenizer import Tokenizer
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write


def documents_of(dataset: PackedDataset) -> list[list[int]]:
    """Token ids of every document of a row."""
    found = []
    for split in SPLITS:
        for row in range(dataset.num_rows(split)):
            batch = dataset.rows(split, [row])
            ids = batch.document_ids[0]
            found += [batch.tokens[0][ids == document].tolist() for document in range(ids.max() + 1)]
    return found


@given(st.integers(0, 200), st.integers(3, 60))
def test_cutting_loses_no_token_and_pieces_are_about_as_long(tokens: int, most: int) -> None:
    ids = np.arange(tokens + 2, dtype=np.uint32)
    pieces = cut(ids, most)
    assert np.concatenate(pieces).tolist() == ids.tolist()
    lengths = [len(piece) for piece in pieces]
    assert max(lengths) <= most
    assert max(lengths) - min(lengths) <= 1
    assert len(pieces) == -(-(tokens + 2) // most)


@pytest.mark.parametrize("packing", ["one_document", "best_fit"])
def test_pieces_of_at_most_a_row_have_no_rest_in_another(tmp_path: Path, preparation: Preparation, packing: str) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(texts(40, words=60)))
    settings: dict[str, Any] = {"sequence_length": 64, "packing": packing}
    prepared = preparation(data_spec(path, **settings, document_tokens={"max": 64}))
    tokenizer = Tokenizer.load(prepared.path / "tokenizer.model")
    whole = [len(tokenizer.encode(text)) + 2 for text in texts(40, words=60)]
    assert max(whole) > 64
    expected = [-(-length // 64) for length in whole]
    sizes = sorted(len(document) for document in documents_of(PackedDataset.open(prepared.path)))
    assert sizes == sorted(
        length * (i + 1) // n - length * i // n for length, n in zip(whole, expected, strict=True) for i in range(n)
    )
    if packing == "one_document":
        assert sum(fill.rows for fill in Report.read(prepared.path).rows) == sum(expected)


@pytest.mark.parametrize("longer", ["cut", "drop"])
def test_limits_in_tokens_are_kept_and_what_they_drop_is_counted(tmp_path: Path, preparation: Preparation, longer: str) -> None:
    given_texts = texts(80, words=60)
    path = write(tmp_path / "a.jsonl", json_lines(given_texts))
    plain = preparation(data_spec(path, sequence_length=1024))
    tokenizer = Tokenizer.load(plain.path / "tokenizer.model")
    lengths = sorted(len(tokenizer.encode(text)) for text in given_texts)
    least, most = lengths[20], max(lengths[60], 2 * lengths[20]) + 2
    limits = {"min": least, "max": most, "longer": longer}
    prepared = preparation(data_spec(path, sequence_length=1024, document_tokens=limits))
    short, long = sum(n < least for n in lengths), sum(n + 2 > most for n in lengths)
    assert short > 0
    assert long > 0
    step = Report.read(prepared.path).steps[-1]
    expected = {"too_few_tokens": short, **({"too_many_tokens": long} if longer == "drop" else {})}
    assert (step.name, step.came.documents, step.drops) == ("document_tokens", 80, expected)
    assert {reason: prepared.manifest.drops[reason] for reason in expected} == expected
    example = step.examples["too_few_tokens"][0]
    assert int(example.detail) == len(tokenizer.encode(example.text)) < least
    documents = documents_of(PackedDataset.open(prepared.path))
    marks = {tokenizer.bos_id, tokenizer.eos_id}
    sizes = [len([token for token in document if token not in marks]) for document in documents]
    assert min(sizes) >= least
    assert max(map(len, documents)) <= most
    kept = [n for n in lengths if n >= least and (longer == "cut" or n + 2 <= most)]
    assert sum(sizes) == sum(kept)
    assert prepared.manifest.documents("train") + prepared.manifest.documents("held_out") == len(kept)
    assert Report.read(prepared.path).kept.documents == len(kept)


def test_limits_that_take_a_whole_cell_are_an_error(tmp_path: Path, preparation: Preparation) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(texts(20)))
    with pytest.raises(
        NotEnoughData, match=r"takes every document that en/web has to train on \(\d+ too_few_tokens\)"
    ) as caught:
        preparation(data_spec(path, document_tokens={"min": 10_000}))
    assert caught.value.pointer == "/data_pipeline/document_tokens"
    assert not list((tmp_path / "prepared").glob("*.partial"))


@pytest.mark.parametrize(
    ("limits", "detail"),
    [
        ({"min": 7, "max": 8}, "min 7 and begin and end marks are more than max 8"),
        ({"min": 8, "max": 16}, "a document of 17 tokens with its marks would be cut.*ask at most 7"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(limits: dict[str, Any], detail: str) -> None:
    with pytest.raises(ValidationError, match=detail):
        DocumentTokens.model_validate(limits)
    DocumentTokens.model_validate({"min": 7, "max": 16})
    DocumentTokens.model_validate({"min": 14, "max": 16, "longer": "drop"})


def test_one_document_a_row(tmp_path: Path, preparation: Preparation) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(texts(60)))
    shared = PackedDataset.open(preparation(data_spec(path)).path)
    alone = PackedDataset.open(preparation(data_spec(path, packing="one_document")).path)
    batch = alone.rows("train", range(alone.num_rows("train")))
    assert batch.document_ids.max() == 0
    assert alone.manifest.tokens("train") == shared.manifest.tokens("train") == (batch.document_ids == 0).sum()
    assert alone.num_rows("train") > shared.num_rows("train")
    for dataset in (shared, alone):
        fill = Report.read(dataset.path).rows[0]
        assert (fill.split, fill.row_length, fill.rows) == ("train", 32, dataset.num_rows("train"))
        assert fill.documents == dataset.manifest.documents("train")
        padding = (dataset.rows("train", range(dataset.num_rows("train"))).document_ids < 0).mean()
        assert fill.padding == pytest.approx(padding)
    assert Report.read(alone.path).rows[0].padding > Report.read(shared.path).rows[0].padding
    # Rows of one document are next to each other and full, but for the last.
    begins = np.flatnonzero(batch.tokens[:, 0] == alone.manifest.bos_id)
    assert len(begins) == alone.manifest.documents("train")
    assert ((batch.document_ids[:, -1] == 0) | np.isin(np.arange(len(batch.tokens)) + 1, [*begins, len(batch.tokens)])).all()


def test_the_documents_are_kept_with_where_they_came_from(tmp_path: Path, preparation: Preparation) -> None:
    given_texts = texts(40)
    path = write(tmp_path / "a.jsonl", json_lines(given_texts))
    spec = data_spec(path, documents=True, document_tokens={"min": 30}, shard_documents=16)
    prepared = preparation(spec)
    tables = [pq.read_table(prepared.path / file.file) for file in prepared.manifest.documents_files]
    for file, table in zip(prepared.manifest.documents_files, tables, strict=True):
        assert file.documents == table.num_rows
        assert file.checksum == checksum(prepared.path / file.file)
    rows = [row for table in tables for row in table.to_pylist()]
    tokenizer = Tokenizer.load(prepared.path / "tokenizer.model")
    assert sorted(row["text"] for row in rows) == sorted(text for text in given_texts if len(tokenizer.encode(text)) >= 30)
    for row in rows:
        file, line = row["id"].rsplit(":", 1)
        assert (Path(file).name, given_texts[int(line) - 1]) == ("a.jsonl", row["text"])
        assert (row["language"], row["domain"], row["cell"]) == ("en", "web", "en/web")
        assert row["tokens"] == len(tokenizer.encode(row["text"]))
    for split in SPLITS:
        assert sum(row["split"] == split for row in rows) == prepared.manifest.documents(split)
    assert {name for table in tables for name in table.column_names} == {
        *("text", "id", "url", "language", "grade", "domain", "cell", "split", "tokens")
    }
    assert preparation(data_spec(path)).manifest.documents_files == ()
