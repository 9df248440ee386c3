"""From a spec to a directory of packed rows: documents, tokenizer, shards.

The directory is named by the hash of everything that decides its bytes. It grows as ``<hash>.partial`` under a lock and is
renamed when its manifest is written, so a reader sees a whole data set or none, a second preparation of the same input waits
and then uses the first one's, and one that was killed goes on where it stopped.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import product
from pathlib import Path

import sentencepiece
import xxhash

from data import dropped
from data.build_inputs import inputs_of
from data.build_manifest import manifest_of
from data.build_report import licences_of, summarise
from data.classifier.training import ClassifierSource, classifier_figures, list_classifiers, path_of, train_classifiers
from data.cleaned import FOLDER as CLEANED
from data.cleaned import clean_versions
from data.columns import pulsed
from data.corpus import Corpus, cells, clean_tasks
from data.dataset import PackedDataset
from data.decontamination.benchmarks import list_benchmarks, read_benchmarks
from data.digests import FOLDER as DIGESTS
from data.digests import Digests
from data.errors import MantaError, SourceError
from data.executors import Executor
from data.files import TEMPORARY_PREFIX, checksum, sync_directory, write_atomically
from data.funnel import FirstExamples
from data.leftovers import claim, discard, lock_of, tidy
from data.lexicon import read_lexicon
from data.locks import locked
from data.manifest import (
    FILE_NAME,
    FORMAT,
    INPUTS_NAME,
    REPORT_NAME,
    SPLITS,
    TOKENIZER_NAME,
    Manifest,
)
from data.ngrams import with_losses
from data.packing import PackResult, PackTask, pack_documents, require_cells
from data.sources import InputFile, list_files
from data.sources.listing import versions as input_versions
from data.spec import DataSpec, TokenizerSpec
from data.split import make_corpus
from data.stages.libraries import LibraryMissing
from data.stages.registry import make_stage, score_names
from data.tasks import CleanResult, CleanTask, clean_files
from data.tokenizer import Tokenizer
from data.tokenizer_training import make_tokenizer

logger = logging.getLogger(__name__)

# Cleaned text and markers, below the growing directory; gone when the data set is whole.
_SCRATCH = "scratch"
_PULSE_SECONDS = 1.0
# Of text in one shard, so that large documents do not make large tasks.
_SHARD_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase is. ``reused``: there was nothing to do."""

    phase: str
    """``documents``, ``tokenizer`` or ``shards``."""
    done: int
    total: int | None
    unit: str
    reused: bool = False
    waiting: bool = False
    """Another process prepares the same data set: this one will use it."""


OnProgress = Callable[[Progress], None]
_BEGINNING = Progress("documents", 0, None, "bytes")


@dataclass(frozen=True, slots=True)
class Prepared:
    path: Path
    reused: bool
    manifest: Manifest


def prepare(data: DataSpec, tokenizer: TokenizerSpec, root: Path, executor: Executor, on_progress: OnProgress) -> Prepared:
    """The data set of a spec, made or found below ``root``. The same bytes whatever the executor.

    Raises:
        LibraryMissing: a stage needs a library that is not installed here.
        SourceError: a source does not exist, is empty or of no known format; the tokenizer cannot be trained or loaded, its
            lexicon not read.
        DocumentError: a document is broken and ``on_bad_document`` is ``error``; the message names file and line.
        NotEnoughData: nothing is left to train on, in all or of one cell, or nothing to hold out.
        OSError: storage does not answer, or is full; what is done is kept, and the next call goes on there.

    ``on_progress`` is called about once a second before there is progress too: raising in it stops the preparation.
    """
    on_progress, pulse = _repeating(on_progress, _BEGINNING)
    pulse()
    _require_libraries(data)
    root = root.absolute()
    with Digests(root / DIGESTS, pulse) as digests:
        files = [list_files(source, f"/data_pipeline/sources/{i}", digests) for i, source in enumerate(data.sources)]
        test_files = list_benchmarks(data.decontaminate, digests)
        classifiers = list_classifiers(data, digests)
    lexicon = read_lexicon(tokenizer.lexicon) if tokenizer.lexicon is not None else ()
    given = None if tokenizer.path is None else Tokenizer.load(tokenizer.path)
    identity = _identity(data, tokenizer, given, [*files, *test_files], lexicon, classifiers)
    final = root / identity
    _, waiting = _repeating(on_progress, replace(_BEGINNING, waiting=True))
    with locked(lock_of(root, identity), waiting), pulsed(pulse):
        work = root / f"{identity}.partial"
        if (work / FILE_NAME).is_file():  # stopped when all was done but the tidying
            _commit(work, final)
        if final.exists():
            prepared = Prepared(final, True, PackedDataset.open(final).manifest)
            _report_reuse(prepared.manifest, on_progress)
            return prepared
        try:
            work.mkdir(parents=True, exist_ok=True)
            claim(root, identity, [path_of(source, root) for source in classifiers], pulse)
            data = train_classifiers(data, classifiers, root, executor)
            tasks = list(clean_tasks(data, files, root / CLEANED))
            claim(root, identity, [task.part for task in tasks], pulse)
            corpus, cleaned = _documents(data, tasks, test_files, work / _SCRATCH, executor, on_progress, pulse)
            on_progress(Progress("tokenizer", 0, 1, "model"))
            model = make_tokenizer(tokenizer, given, lexicon, data, corpus, work, executor)
            on_progress(Progress("tokenizer", 1, 1, "model"))
            packed = _shards(data, corpus, work, executor, on_progress)
            require_cells(data, packed)
        except MantaError:
            # The same input will never do; what is mended has another identity. (Storage that fails raises OSError.)
            discard(work)
            tidy(root, pulse, failed=True)
            raise
        manifest = manifest_of(identity, data, tokenizer, corpus, packed, files, model, work)
        manifest = with_losses(manifest, work, work / _SCRATCH / "losses.json", executor)
        manifest = _reported(data, tasks, cleaned, corpus, manifest, packed, work)
        del corpus  # whose columns are mapped from the scratch that goes
        write_atomically(work / FILE_NAME, manifest.model_dump_json(indent=1).encode())
        _commit(work, final)
        tidy(root, pulse)
    return Prepared(final, False, manifest)


def _repeating(on_progress: OnProgress, first: Progress) -> tuple[OnProgress, Callable[[], None]]:
    """Passes progress on; and a pulse, that says what was said last, or else ``first``, when nothing was said for a second."""
    last, due = first, 0.0

    def say(progress: Progress) -> None:
        nonlocal last, due
        last, due = progress, time.monotonic() + _PULSE_SECONDS
        on_progress(progress)

    def pulse() -> None:
        if time.monotonic() >= due:
            say(last)

    return say, pulse


def _require_libraries(data: DataSpec) -> None:
    """What lacks on this machine, and a classifier that cannot be read, is said before anything is read."""
    for number, spec in enumerate(data.stages):
        try:
            make_stage(spec)
        except LibraryMissing as error:
            raise LibraryMissing(error.detail, pointer=f"/data_pipeline/stages/{number}") from error
        except SourceError as error:
            raise SourceError(error.detail, pointer=f"/data_pipeline/stages/{number}/trained/path") from error


def _identity(
    data: DataSpec,
    tokenizer: TokenizerSpec,
    given: Tokenizer | None,
    files: list[list[InputFile]],
    lexicon: Sequence[str],
    classifiers: Sequence[ClassifierSource],
) -> str:
    """Hash of everything that decides the bytes: specs, inputs, and the versions of what turns one into the other."""
    digest = xxhash.xxh3_128()
    versions = {"format": FORMAT, "sentencepiece": sentencepiece.__version__}
    versions |= input_versions(file for of_source in files for file in of_source)
    versions |= clean_versions(data)
    if data.documents:
        versions["pyarrow"] = metadata.version("pyarrow")
    if given is not None:
        versions["tokenizer"] = xxhash.xxh3_128_hexdigest(given.model)
    versions |= {f"stages/{source.stage}": source.identity for source in classifiers}
    if lexicon:
        versions["lexicon"] = xxhash.xxh3_128_hexdigest("\n".join(lexicon).encode())
    digest.update(json.dumps([versions, data.model_dump(mode="json"), tokenizer.model_dump(mode="json")]).encode())
    for file in (file for of_source in files for file in of_source):
        digest.update(json.dumps([file.path, file.size, file.digest]).encode())
    return digest.hexdigest()


def _report_reuse(manifest: Manifest, on_progress: OnProgress) -> None:
    documents = manifest.documents("train") + manifest.documents("held_out")
    on_progress(Progress("documents", manifest.input_bytes, manifest.input_bytes, "bytes", reused=True))
    on_progress(Progress("tokenizer", 1, 1, "model", reused=True))
    on_progress(Progress("shards", documents, documents, "documents", reused=True))


def _documents(
    data: DataSpec,
    tasks: list[CleanTask],
    test_files: list[list[InputFile]],
    work: Path,
    executor: Executor,
    on_progress: OnProgress,
    pulse: Callable[[], None],
) -> tuple[Corpus, list[CleanResult]]:
    """With the results of the tasks, in their order."""
    benchmarks = read_benchmarks(data, test_files, work, executor, pulse)
    total = sum(task.bytes for task in tasks)
    done = 0
    on_progress(Progress("documents", done, total, "bytes"))
    results: dict[int, CleanResult] = {}
    examples = FirstExamples()
    for result in executor.map(clean_files, tasks):
        results[result.index] = examples.thin(result)
        done += tasks[result.index].bytes
        on_progress(Progress("documents", done, total, "bytes"))
    ordered = [results[task.index] for task in tasks]
    corpus = make_corpus(data, tasks, ordered, benchmarks, work, work.parent / dropped.FOLDER, executor, pulse)
    return corpus, ordered


def _shards(data: DataSpec, corpus: Corpus, work: Path, executor: Executor, on_progress: OnProgress) -> list[PackResult]:
    on_progress(Progress("shards", 0, None, "documents"))
    tasks = list(_pack_tasks(data, corpus, work))
    total, done = sum(task.size for task in tasks), 0
    on_progress(Progress("shards", done, total, "documents"))
    packed: dict[int, PackResult] = {}
    for result in executor.map(pack_documents, tasks):
        packed[result.index] = result
        done += tasks[result.index].size
        on_progress(Progress("shards", done, total, "documents"))
    return [packed[task.index] for task in tasks]


def _pack_tasks(data: DataSpec, corpus: Corpus, work: Path) -> Iterator[PackTask]:
    """Shards by split, then segment, then cell, then reading order: a cell's rows are numbered without a gap."""
    index = 0
    tokenizer = work / TOKENIZER_NAME
    digest = checksum(tokenizer)
    names = list(cells(data))
    for split, segment, cell in product(SPLITS, range(len(data.segments)), range(len(names))):
        segments: tuple[int, ...] = (segment,)
        if data.length_buckets:
            buckets = tuple(range(len(data.train_lengths)))
            segments = buckets if split == "train" else buckets[-1:]
        portions = corpus.portions(split == "held_out", segment, cell, data.shard_documents, _SHARD_BYTES)
        for number, chosen in enumerate(portions):
            yield PackTask(
                index=index,
                directory=work,
                name=f"{cell:03}-{number:06}",
                marker=work / _SCRATCH / f"shard-{index:06}.json",
                split=split,
                cell=cell,
                cell_name=names[cell],
                documents=corpus.rows_of(chosen),
                tokenizer=tokenizer,
                tokenizer_checksum=digest,
                segments=segments,
                row_lengths=tuple(data.train_lengths[number] for number in segments),
                align=data.document_alignment,
                one_document=data.packing == "one_document",
                limits=data.document_tokens,
                keep_documents=data.documents,
                scores=score_names(data.stages),
            )
            index += 1


def _reported(
    data: DataSpec,
    tasks: list[CleanTask],
    cleaned: list[CleanResult],
    corpus: Corpus,
    manifest: Manifest,
    packed: list[PackResult],
    work: Path,
) -> Manifest:
    """Writes the report and the list of inputs; the manifest with their checksums."""
    report = summarise(data, corpus, manifest, packed, tuple(classifier_figures(data)), licences_of(tasks, cleaned, corpus))
    checksums = {}
    for name, record in ((REPORT_NAME, report), (INPUTS_NAME, inputs_of(tasks, cleaned))):
        write_atomically(work / name, record.model_dump_json(indent=1).encode())
        checksums[name] = checksum(work / name)
    return manifest.model_copy(update={"report_checksum": checksums[REPORT_NAME], "inputs_checksum": checksums[INPUTS_NAME]})


def _commit(work: Path, final: Path) -> None:
    """Drops what a directory with a manifest no longer needs, and gives it its name."""
    shutil.rmtree(work / _SCRATCH, ignore_errors=True)
    for leftover in work.rglob(f"{TEMPORARY_PREFIX}*"):
        leftover.unlink(missing_ok=True)
    sync_directory(work)
    work.rename(final)
    sync_directory(final.parent)
