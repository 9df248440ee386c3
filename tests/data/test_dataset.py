"""Packed rows on disk: what was written is what is read, and what is damaged is refused."""

from pathlib import Path

import numpy as np
import pytest

from data import shards
from data.dataset import Batch, PackedDataset
from data.errors import ShardError
from data.files import checksum
from data.manifest import SPLITS, Split
from data.ngrams import held_out_losses
from data.shards import Shard, write_shard
from data.tokenizer import Tokenizer
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write


@pytest.fixture
def dataset(tmp_path: Path, preparation: Preparation) -> PackedDataset:
    path = write(tmp_path / "a.jsonl", json_lines(texts(60)))
    return PackedDataset.open(preparation(data_spec(path, shard_documents=16)).path)


def test_rows_hold_tokens_borders_and_positions(tmp_path: Path) -> None:
    info = write_shard(tmp_path, "a.u32", [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]], split="train", cell=0, row_length=5)
    shard = Shard(tmp_path / "a.u32", info, 5)
    assert shard.tokens_RT.tolist() == [[4, 5, 6, 7, 8], [1, 2, 3, 9, 10]]
    assert [shard.pieces(row).tolist() for row in range(2)] == [[5], [3, 1, 1]]
    assert (info.rows, info.pieces, info.tokens, info.documents) == (2, 4, 10, 3)


def test_documents_begin_at_multiples_of_the_alignment(tmp_path: Path, preparation: Preparation) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(texts(60)))
    dataset = PackedDataset.open(preparation(data_spec(path, sequence_length=128, document_alignment=16)).path)
    plain = PackedDataset.open(preparation(data_spec(path, sequence_length=128)).path)

    def documents(of: PackedDataset) -> list[list[int]]:
        batch = of.rows("train", range(of.num_rows("train")))
        found = zip(batch.tokens, batch.document_ids, strict=True)
        return sorted(tokens[ids == d].tolist() for tokens, ids in found for d in range(ids.max() + 1))

    batch = dataset.rows("train", range(dataset.num_rows("train")))
    first = np.diff(batch.document_ids, axis=1, prepend=-1) != 0
    starts = np.nonzero(first & (batch.document_ids >= 0))[1]
    assert len(starts) > dataset.num_rows("train")
    assert not (starts % 16).any()
    assert (batch.positions[first] == 0).all()
    assert (batch.tokens[batch.document_ids < 0] == 0).all()
    assert documents(dataset) == documents(plain)


def test_a_row_of_a_chain_is_consecutive_segments(tmp_path: Path, preparation: Preparation) -> None:
    path = write(tmp_path / "a.jsonl", json_lines([*texts(40, words=12), *texts(20, seed=1, words=400)]))
    dataset = PackedDataset.open(preparation(data_spec(path, chain_segments=4)).path)
    assert (dataset.manifest.sequence_length, dataset.manifest.row_length()) == (32, 128)
    batch = dataset.rows("train", range(dataset.num_rows("train")))
    tokens, ids, positions = batch.tokens, batch.document_ids, batch.positions
    assert tokens.shape == (dataset.num_rows("train"), 4 * 32)
    # Over a border between segments a document goes on: same id, next position, and the last token still predicts.
    over_RS = ids[:, 31:-1:32] == ids[:, 32::32]
    assert (positions[:, 32::32] == positions[:, 31:-1:32] + 1)[over_RS & (ids[:, 32::32] >= 0)].all()
    assert (batch.target_mask[:, 31::32] == over_RS & (ids[:, 32::32] >= 0)).all()
    assert over_RS.any()
    assert dataset.rows("held_out", [0]).tokens.shape == (1, 128)


def test_chains_aligned_to_segments_have_one_document_in_each(tmp_path: Path, preparation: Preparation) -> None:
    path = write(tmp_path / "a.jsonl", json_lines([*texts(40, words=12), *texts(20, seed=1, words=400)]))
    dataset = PackedDataset.open(preparation(data_spec(path, chain_segments=4, document_alignment=32)).path)
    ids_CT = dataset.rows("train", range(dataset.num_rows("train"))).document_ids.reshape(-1, 32)
    inside = ids_CT >= 0
    assert (ids_CT == ids_CT[:, :1])[inside].all()
    assert (inside[:, :-1] >= inside[:, 1:]).all()
    assert dataset.manifest.tokens("train") == inside.sum()


def test_a_batch_has_the_rows_asked_for_in_that_order(dataset: PackedDataset) -> None:
    last = dataset.num_rows("train") - 1
    batch = dataset.rows("train", [last, 0, last])
    assert batch.tokens.shape == batch.document_ids.shape == batch.positions.shape == (3, 32)
    assert (batch.tokens.dtype, batch.document_ids.dtype, batch.positions.dtype) == (np.uint32, np.int32, np.int32)
    assert (batch.tokens[0] == batch.tokens[2]).all()
    assert (batch.tokens[1] == dataset.rows("train", [0]).tokens[0]).all()


def test_positions_begin_again_in_every_document(dataset: PackedDataset) -> None:
    batch = dataset.rows("train", range(dataset.num_rows("train")))
    starts = np.diff(batch.document_ids, axis=1, prepend=-2) != 0
    assert (batch.positions[starts] == 0).all()
    inside = batch.target_mask
    assert (batch.positions[:, 1:][inside] == batch.positions[:, :-1][inside] + 1).all()


def test_targets_never_cross_a_border_or_reach_into_padding() -> None:
    ids = np.array([[0, 0, 1, 1, -1, -1]], np.int32)
    assert Batch(ids.astype(np.uint32), ids, ids).target_mask.tolist() == [[True, False, True, False, False]]


def test_rows_carry_the_numbers_of_their_samples(dataset: PackedDataset) -> None:
    assert dataset.rows("train", [1, 0, 1]).samples.tolist() == [0, 0, 0]
    batch = dataset.rows("train", [1, 0, 1], range(2**40, 2**40 + 3))
    assert (batch.samples.dtype, batch.samples.tolist()) == (np.int64, [2**40, 2**40 + 1, 2**40 + 2])


def test_padding_is_small(dataset: PackedDataset) -> None:
    batch = dataset.rows("train", range(dataset.num_rows("train")))
    assert (batch.document_ids >= 0).mean() > 0.9
    assert (batch.document_ids >= 0).sum() == dataset.manifest.tokens("train")


def test_the_documents_can_be_read_back(tmp_path: Path, preparation: Preparation) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(texts(60)))
    dataset = PackedDataset.open(preparation(data_spec(path, sequence_length=1024)).path)
    tokenizer = Tokenizer.load(dataset.tokenizer_path)
    found = []
    for split in SPLITS:
        batch = dataset.rows(split, range(dataset.num_rows(split)))
        for tokens, ids in zip(batch.tokens, batch.document_ids, strict=True):
            for document in range(ids.max() + 1):
                begin, *inner, end = tokens[ids == document].tolist()
                assert (begin, end) == (tokenizer.bos_id, tokenizer.eos_id)
                found.append(tokenizer.decode(inner))
    assert sorted(found) == sorted(texts(60))


def test_a_mapped_shard_holds_no_open_file(tmp_path: Path, preparation: Preparation) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(texts(60)))
    dataset = PackedDataset.open(preparation(data_spec(path, shard_documents=4)).path)
    dataset.rows("train", range(dataset.num_rows("train")))
    mapped = [link for link in Path("/proc/self/fd").iterdir() if link.resolve().suffix == ".u32"]
    assert mapped == []
    # And is mapped all the same.
    assert str(dataset.path) in Path("/proc/self/maps").read_text()


def test_few_shards_are_mapped_at_once_and_each_is_verified_once(
    tmp_path: Path, preparation: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(texts(60)))
    whole = PackedDataset.open(preparation(data_spec(path, shard_documents=4)).path)
    read: list[Path] = []

    def verified(file: Path) -> str:
        read.append(file)
        return checksum(file)

    monkeypatch.setattr(shards, "checksum", verified)
    narrow = PackedDataset(whole.path, whole.manifest, most_open=2)
    expected = [whole.rows("train", [row]).tokens.tolist() for row in range(whole.num_rows("train"))]
    read.clear()
    for _ in range(2):
        assert [narrow.rows("train", [row]).tokens.tolist() for row in range(len(expected))] == expected
    assert len(read) == len(set(read)) > 4
    assert len(narrow._open) == 2


def test_no_such_row(dataset: PackedDataset) -> None:
    with pytest.raises(IndexError, match="row -1"):
        dataset.rows("train", [-1])
    with pytest.raises(IndexError):
        dataset.rows("held_out", [dataset.num_rows("held_out")])


def test_damage_is_noticed_before_a_row_is_given(dataset: PackedDataset) -> None:
    shard = dataset.path / dataset.manifest.shards[0].file
    content = bytearray(shard.read_bytes())
    content[8] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ShardError, match="does not match its checksum"):
        PackedDataset.open(dataset.path).rows("train", [0])
    shard.write_bytes(content[:-4])
    with pytest.raises(ShardError, match="is torn"):
        PackedDataset.open(dataset.path).rows("train", [0])
    shard.unlink()
    with pytest.raises(ShardError, match="is missing"):
        PackedDataset.open(dataset.path).rows("train", [0])


def test_a_directory_without_manifest_is_no_data_set(dataset: PackedDataset) -> None:
    (dataset.path / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"it has no manifest\.json"):
        PackedDataset.open(dataset.path)


def test_a_manifest_of_another_version_is_refused(dataset: PackedDataset) -> None:
    path = dataset.path / "manifest.json"
    older = dataset.manifest.model_copy(update={"format": dataset.manifest.format - 1})
    path.write_text(older.model_dump_json())
    with pytest.raises(ShardError, match=rf"has format {older.format}, and this version reads {dataset.manifest.format}"):
        PackedDataset.open(dataset.path)
    path.write_text('{"format": 0}')
    with pytest.raises(ShardError, match="not a manifest of this version"):
        PackedDataset.open(dataset.path)


def test_a_tokenizer_that_was_swapped_is_refused(dataset: PackedDataset) -> None:
    dataset.tokenizer_path.write_bytes(b"another")
    with pytest.raises(ShardError, match=r"tokenizer\.model"):
        PackedDataset.open(dataset.path)


def test_ngram_losses_are_those_counted_by_hand(dataset: PackedDataset) -> None:
    def pairs(split: Split) -> list[tuple[int, int]]:
        batch = dataset.rows(split, range(dataset.num_rows(split)))
        found = []
        for tokens, ids in zip(batch.tokens.tolist(), batch.document_ids.tolist(), strict=True):
            found += [(tokens[t], tokens[t + 1]) for t in range(31) if ids[t] == ids[t + 1] >= 0]
        return found

    train, tested = pairs("train"), pairs("held_out")
    vocab = dataset.manifest.vocab_size
    unigram = {w: (sum(b == w for _, b in train) + 1) / (len(train) + vocab) for w in range(vocab)}

    def bigram(h: int, w: int) -> float:
        after = [b for a, b in train if a == h]
        kinds = len(set(after))
        return (after.count(w) + kinds * unigram[w]) / (len(after) + kinds) if after else unigram[w]

    expected = (
        -sum(np.log(unigram[w]) for _, w in tested) / len(tested),
        -sum(np.log(bigram(h, w)) for h, w in tested) / len(tested),
    )
    assert held_out_losses(dataset) == pytest.approx(expected, abs=1e-6)
    assert (dataset.manifest.unigram_loss, dataset.manifest.bigram_loss) == held_out_losses(dataset)
    assert dataset.manifest.bigram_loss < dataset.manifest.unigram_loss


def test_ngram_losses_are_the_same_however_few_rows_are_counted_at_a_time(
    dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = held_out_losses(dataset)
    monkeypatch.setattr("data.ngrams._TOKENS_AT_A_TIME", 1)
    assert held_out_losses(dataset) == at_once


def test_ngram_losses_can_be_measured_on_the_rows_that_a_model_is_measured_on(dataset: PackedDataset) -> None:
    rows = range(dataset.num_rows("held_out"))
    assert held_out_losses(dataset, rows) == held_out_losses(dataset)
    assert held_out_losses(dataset, rows[:1]) != held_out_losses(dataset)
