"""One spec, one directory, the same bytes: whoever prepares it, how often, and however often it is stopped."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from data.dataset import PackedDataset
from data.errors import DocumentError, SourceError
from data.executors import Executor, SerialExecutor
from data.files import checksum
from data.locks import locked
from data.manifest import TOKENIZER_NAME, Split
from data.prepare import Prepared, Progress, prepare
from data.sources import streams
from data.spec import CurriculumSegment, DataSpec, SourceSpec, TokenizerSpec
from data.stages.registry import PRESETS
from data.tokenizer import train_tokenizer
from tests.data.conftest import WORDS, Preparation, data_spec, json_lines, texts, write

TOKENIZER = TokenizerSpec(vocab_size=300)
CURRICULUM = (CurriculumSegment(sequence_length=16, fraction=0.4), CurriculumSegment(sequence_length=32, fraction=0.6))


def files(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): checksum(file) for file in sorted(path.rglob("*")) if file.is_file()}


def prepared_in(root: Path, spec: DataSpec, executor: Executor) -> Prepared:
    return prepare(spec, TOKENIZER, root, executor, lambda progress: None)


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    """Two cells, several files and several shards of each."""
    for part in range(4):
        write(tmp_path / "en" / f"{part}.jsonl", json_lines(texts(40, seed=part)))
        write(tmp_path / "zh" / f"{part}.jsonl.gz", json_lines([f"第{part}回 {text}" for text in texts(25, seed=part + 9)]))
    return data_spec(
        SourceSpec(path=str(tmp_path / "en" / "*.jsonl"), weight=0.7),
        SourceSpec(path=str(tmp_path / "zh" / "*.jsonl.gz"), language="zh", domain="stories", weight=0.3),
        shard_documents=30,
        held_out_fraction=0.1,
    )


def test_the_manifest_tells_what_is_in_each_cell(spec: DataSpec, preparation: Preparation) -> None:
    manifest = preparation(spec).manifest
    assert [(cell.name, cell.weight) for cell in manifest.cells] == [("en/web", 0.7), ("zh/stories", 0.3)]
    assert [cell.train.documents + cell.held_out.documents for cell in manifest.cells] == [160, 100]
    assert manifest.cell_rows("train")[1].start == manifest.cells[0].train.rows
    assert sum(cell.train.rows for cell in manifest.cells) == manifest.rows("train")
    assert (manifest.input_files, manifest.documents_read, manifest.drops) == (8, 260, {})
    assert len(manifest.shards) >= 8


def test_progress_counts_up_to_the_whole_of_each_phase(spec: DataSpec, preparation: Preparation) -> None:
    steps: list[Progress] = []
    preparation(spec, steps)
    assert list(dict.fromkeys(step.phase for step in steps)) == ["documents", "tokenizer", "shards"]
    for phase in ("documents", "tokenizer", "shards"):
        done = [step.done for step in steps if step.phase == phase]
        assert done == sorted(done)
        assert done[0] == 0
        assert done[-1] == [step.total for step in steps if step.phase == phase][-1]
    assert not any(step.reused for step in steps)


def test_a_second_preparation_uses_the_first(spec: DataSpec, preparation: Preparation) -> None:
    first = preparation(spec)
    steps: list[Progress] = []
    second = preparation(spec, steps)
    assert (first.reused, second.reused) == (False, True)
    assert (first.path, first.manifest) == (second.path, second.manifest)
    assert [(step.phase, step.reused, step.done == step.total) for step in steps if step.total is not None] == [
        ("documents", True, True),
        ("tokenizer", True, True),
        ("shards", True, True),
    ]


def _changed_content(spec: DataSpec, folder: Path) -> DataSpec:
    write(folder / "en" / "0.jsonl", json_lines(texts(40, seed=77)))
    return spec


def _another_file(spec: DataSpec, folder: Path) -> DataSpec:
    write(folder / "en" / "9.jsonl", json_lines(texts(4, seed=78)))
    return spec


CHANGES: dict[str, Callable[[DataSpec, Path], DataSpec]] = {
    "content of a file": _changed_content,
    "one more file": _another_file,
    "sequence length": lambda spec, _: spec.model_copy(update={"sequence_length": 64}),
    "curriculum": lambda spec, _: spec.model_copy(update={"curriculum": CURRICULUM}),
    "chains": lambda spec, _: spec.model_copy(update={"chain_segments": 2}),
    "alignment": lambda spec, _: spec.model_copy(update={"document_alignment": 8}),
    "seed": lambda spec, _: spec.model_copy(update={"seed": 1}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_input_is_another_data_set(
    change: Callable[[DataSpec, Path], DataSpec], spec: DataSpec, tmp_path: Path, preparation: Preparation
) -> None:
    first = preparation(spec)
    second = preparation(change(spec, tmp_path))
    assert not second.reused
    assert first.path != second.path


class StopAfter:
    """Carries out some tasks, then dies."""

    def __init__(self, tasks: int) -> None:
        self.left = tasks
        self.done: list[Any] = []

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        for task in shards:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.done.append(fn(task))
            yield self.done[-1]


class Backwards:
    """Carries out tasks in another order."""

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        return map(fn, reversed(shards))


@pytest.mark.parametrize("tasks", [0, 1, 2, 5])
def test_a_stopped_preparation_leaves_no_data_set_and_is_finished_by_the_next(
    tasks: int, spec: DataSpec, tmp_path: Path
) -> None:
    whole = prepared_in(tmp_path / "whole", spec, SerialExecutor())
    with pytest.raises(KeyboardInterrupt):
        prepared_in(tmp_path / "stopped", spec, StopAfter(tasks))
    assert not (tmp_path / "stopped" / whole.path.name).exists()
    again = prepared_in(tmp_path / "stopped", spec, SerialExecutor())
    assert not again.reused
    assert files(again.path) == files(whole.path)
    assert [path.name for path in again.path.parent.iterdir() if not path.name.startswith(".")] == [again.path.name]


def test_what_was_done_before_a_stop_is_not_done_again(spec: DataSpec, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepared_in(tmp_path / "a", spec, StopAfter(1))
    [part] = (tmp_path / "a").glob(".cleaned/documents-*.arrow")
    before = part.stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt):
        prepared_in(tmp_path / "a", spec, StopAfter(2))
    assert part.stat().st_mtime_ns == before


@pytest.mark.parametrize("error", [OSError(errno.EIO, "mount gone"), TimeoutError()], ids=["errno", "time-out"])
def test_storage_that_fails_is_no_users_error_and_costs_only_what_it_hit(
    error: OSError, spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = streams.open_raw

    def failing(path: str) -> BinaryIO:
        if path.endswith(".gz"):
            raise error
        return opened(path)

    with monkeypatch.context() as broken:
        broken.setattr(streams, "open_raw", failing)
        with pytest.raises(type(error)) as raised:
            prepared_in(tmp_path / "a", spec, SerialExecutor())
    assert raised.value is error
    before = {part: part.stat().st_mtime_ns for part in (tmp_path / "a").glob(".cleaned/documents-*.arrow")}
    assert before
    with pytest.raises(KeyboardInterrupt):
        prepared_in(tmp_path / "a", spec, StopAfter(len(before) + 1))
    assert {part: part.stat().st_mtime_ns for part in before} == before
    assert prepared_in(tmp_path / "a", spec, SerialExecutor()).manifest.documents_read == 260


class ChangeFirst:
    """Something happens between listing and reading."""

    def __init__(self, change: Callable[[], object]) -> None:
        self.change = change

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        self.change()
        return map(fn, shards)


def test_a_file_that_changes_under_the_reader_is_named(spec: DataSpec, tmp_path: Path) -> None:
    file = tmp_path / "en" / "2.jsonl"
    changed = ChangeFirst(lambda: write(file, json_lines(texts(41, seed=50))))
    with pytest.raises(SourceError, match=r"en/2\.jsonl changed while it was read") as raised:
        prepared_in(tmp_path / "a", spec, changed)
    assert raised.value.pointer == "/data_pipeline/sources/0/path"
    assert not any(left.is_dir() for left in (tmp_path / "a").glob("[!.]*"))


def test_a_file_that_is_torn_because_somebody_writes_to_it_is_said_to_change(spec: DataSpec, tmp_path: Path) -> None:
    with (tmp_path / "en" / "2.jsonl").open("ab") as file:
        torn = ChangeFirst(lambda: (file.write(b'{"text": "half of a '), file.flush()))
        with pytest.raises(SourceError, match=r"en/2\.jsonl changed while it was read"):
            prepared_in(tmp_path / "a", spec, torn)
    with pytest.raises(DocumentError, match=r"en/2\.jsonl:\d+: not JSON"):
        prepared_in(tmp_path / "a", spec, SerialExecutor())


def test_the_tokenizer_is_the_one_that_the_preparation_began_with(spec: DataSpec, tmp_path: Path) -> None:
    model = tmp_path / "given.model"
    given, other = (train_tokenizer(texts(100), TokenizerSpec(vocab_size=size)) for size in (300, 320))
    model.write_bytes(given)

    def swap(progress: Progress) -> None:
        if progress.phase == "documents" and progress.done:
            model.write_bytes(other)

    prepared = prepare(spec, TokenizerSpec(path=str(model)), tmp_path / "root", SerialExecutor(), swap)
    assert (prepared.path / TOKENIZER_NAME).read_bytes() == given


def test_a_file_that_is_only_touched_is_the_same(spec: DataSpec, tmp_path: Path) -> None:
    touched = ChangeFirst(lambda: os.utime(tmp_path / "en" / "2.jsonl", ns=(1, 1)))
    assert prepared_in(tmp_path / "a", spec, touched).manifest.documents_read == 260


class Stop(Exception):
    pass


def _stop_at(call: int) -> Callable[[Progress], None]:
    calls: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        calls.append(progress)
        if len(calls) == call:
            raise Stop

    return on_progress


@pytest.mark.parametrize("call", [1, 2, 9])
def test_listing_can_be_stopped(call: int, spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.prepare._PULSE_SECONDS", 0.0)
    with pytest.raises(Stop):
        prepare(spec, TOKENIZER, tmp_path / "a", SerialExecutor(), _stop_at(call))
    assert not [path for path in (tmp_path / "a").glob("*") if path.name != ".digests"]


def test_what_the_driver_does_between_tasks_can_be_stopped(
    spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.prepare._PULSE_SECONDS", 0.0)
    events: list[str] = []

    class Recorded(SerialExecutor):
        def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
            events.append(fn.__name__)
            return super().map(fn, shards)

    def on_progress(progress: Progress) -> None:
        events.append(f"{progress.phase} {progress.done}")

    prepare(spec, TOKENIZER, tmp_path / "a", Recorded(), on_progress)
    begin, trained, packed = events.index("tokenizer 0"), events.index("train"), events.index("pack_documents")
    assert events[begin:trained].count("tokenizer 0") > 1  # the sample
    assert events[trained:packed].count("shards 0") > 2  # what each task is to pack
    assert events[packed:].count(events[-1]) > 1  # the report
    assert not any(event.startswith("documents") for event in events[begin:])


def test_waiting_for_the_lock_can_be_stopped(tmp_path: Path) -> None:
    def pulse() -> None:
        raise Stop

    with locked(tmp_path / "lock", pulse), pytest.raises(Stop), locked(tmp_path / "lock", pulse):
        pass


def test_the_order_of_work_does_not_matter(spec: DataSpec, tmp_path: Path) -> None:
    one, other = (prepared_in(tmp_path / name, spec, e) for name, e in (("a", SerialExecutor()), ("b", Backwards())))
    assert files(one.path) == files(other.path)


def test_of_two_at_once_one_prepares_and_the_other_uses_it(spec: DataSpec, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from data.executors import SerialExecutor
from data.prepare import prepare
from data.spec import DataSpec, TokenizerSpec
spec = DataSpec.model_validate_json(sys.argv[1])
prepared = prepare(spec, TokenizerSpec(vocab_size=300), Path(sys.argv[2]), SerialExecutor(), lambda progress: None)
print(prepared.reused, prepared.path.name)
"""
    command = [sys.executable, "-c", script, spec.model_dump_json(), str(tmp_path / "root")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = sorted(process.communicate(timeout=120)[0].split() for process in both)
    alone = prepared_in(tmp_path / "alone", spec, SerialExecutor()).path
    assert answers == [["False", alone.name], ["True", alone.name]]
    assert files(tmp_path / "root" / alone.name) == files(alone)


def test_one_large_text_file_is_enough(tmp_path: Path, preparation: Preparation) -> None:
    book = write(tmp_path / "book.txt", "\n\n".join(texts(600)).encode())
    manifest = preparation(data_spec(book)).manifest
    assert manifest.documents_read == manifest.documents("train") + manifest.documents("held_out") > 20


def test_duplicates_are_dropped_across_sources_unless_told_otherwise(tmp_path: Path, preparation: Preparation) -> None:
    one = write(tmp_path / "a.jsonl", json_lines(texts(20)))
    two = write(tmp_path / "b.jsonl", json_lines([text.upper() for text in texts(20)[:5]] + texts(9, seed=4)))
    assert preparation(data_spec(one, two)).manifest.drops == {"duplicate": 5}
    assert preparation(data_spec(one, two, deduplicate=False)).manifest.drops == {}


def test_sources_of_one_cell_add_their_weights(tmp_path: Path, preparation: Preparation) -> None:
    given = [
        SourceSpec(path=write(tmp_path / f"{i}.jsonl", json_lines(texts(20, seed=i))), weight=0.2, domain=domain)
        for i, domain in enumerate(["web", "books", "web"])
    ]
    assert [(cell.name, cell.weight) for cell in preparation(data_spec(*given)).manifest.cells] == [
        ("en/web", 0.4),
        ("en/books", 0.2),
    ]


def test_an_existing_tokenizer_is_taken_as_it_is(tmp_path: Path, preparation: Preparation) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(texts(30)))
    first = preparation(data_spec(path))
    other = write(tmp_path / "b.jsonl", json_lines(texts(30, seed=3)))
    second = preparation(data_spec(other), path=str(first.path / "tokenizer.model"))
    assert second.manifest.tokenizer_checksum == first.manifest.tokenizer_checksum


def _documents(dataset: PackedDataset, split: Split, rows: range) -> set[bytes]:
    """Those that lie in one row, whole."""
    batch, manifest = dataset.rows(split, rows), dataset.manifest
    found = [
        tokens[ids == d] for tokens, ids in zip(batch.tokens, batch.document_ids, strict=True) for d in range(ids.max() + 1)
    ]
    return {one.tobytes() for one in found if (one[0], one[-1]) == (manifest.bos_id, manifest.eos_id)}


def test_each_segment_of_a_curriculum_has_documents_and_a_row_length_of_its_own(
    tmp_path: Path, preparation: Preparation
) -> None:
    spec = data_spec(write(tmp_path / "a.jsonl", json_lines(texts(300, words=10))), sequence_length=256, held_out_fraction=0.1)
    whole = PackedDataset.open(preparation(spec).path)
    segments = [{"sequence_length": 128, "fraction": 0.25}, {"sequence_length": 256, "fraction": 0.75}]
    dataset = PackedDataset.open(preparation(DataSpec.model_validate({**spec.model_dump(), "curriculum": segments})).path)
    manifest = dataset.manifest
    assert [segment.sequence_length for segment in manifest.segments] == [128, 256]
    [short], [long] = manifest.cell_rows("train", 0), manifest.cell_rows("train", 1)
    assert (short.start, short.stop, long.stop) == (0, long.start, dataset.num_rows("train"))
    assert dataset.rows("train", short).tokens.shape == (len(short), 128)
    assert dataset.rows("train", long).tokens.shape == (len(long), 256)
    assert dataset.rows("held_out", range(dataset.num_rows("held_out"))).tokens.shape[1] == 256
    with pytest.raises(ValueError, match=r"rows of \[128, 256\] tokens in one batch"):
        dataset.rows("train", [short[-1], long[0]])

    parts = [_documents(dataset, "train", rows) for rows in (short, long)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == _documents(whole, "train", range(whole.num_rows("train")))
    tokens = [segment.cells[0].tokens for segment in manifest.segments]
    assert 0.2 < tokens[0] / sum(tokens) < 0.3
    assert sum(tokens) == manifest.cells[0].train.tokens == whole.manifest.tokens("train")
    # Counting within rows sees the same pairs, as no document here is cut.
    assert (manifest.unigram_loss, manifest.bigram_loss) == (whole.manifest.unigram_loss, whole.manifest.bigram_loss)


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("deduplicate", ["exact", "minhash", "simhash"])
def test_ray_data_gives_the_same_bytes(spec: DataSpec, tmp_path: Path, deduplicate: str) -> None:
    from data.ray_executor import RayDataExecutor

    spec = DataSpec.model_validate({**spec.model_dump(), "deduplicate": deduplicate})
    serial = prepared_in(tmp_path / "serial", spec, SerialExecutor())
    spread = prepared_in(tmp_path / "ray", spec, RayDataExecutor())
    assert files(serial.path) == files(spread.path)


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_an_error_on_a_worker_arrives_as_it_was(tmp_path: Path) -> None:
    from data.ray_executor import RayDataExecutor

    path = write(tmp_path / "a.jsonl", json_lines(texts(9)) + b"broken\n")
    with pytest.raises(DocumentError, match=r"a\.jsonl:10: not JSON") as raised:
        prepared_in(tmp_path / "ray", data_spec(path), RayDataExecutor())
    assert raised.value.pointer == "/data_pipeline/sources/0/path"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_of_stages_prepares(preset: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines([_story(i) for i in range(60)]))
    made = prepared_in(tmp_path / preset, data_spec(path, stages=preset), SerialExecutor())
    assert made.manifest.documents("train") > 20, made.manifest.drops


def _story(number: int) -> str:
    """Ten lines of fifteen words, no two alike."""
    draw = np.random.default_rng(number)
    words = [*WORDS, "that", "have", "with", "of", "the", "to", "and", "be"]
    return "\n".join(f"In year {draw.integers(9999)} the " + " ".join(draw.permutation(words)[:12]) + "." for _ in range(10))
