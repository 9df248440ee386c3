"""The phase before cleaning: what stages learn from is listed, and each classifier is trained once, in one task.

It lies in ``.classifiers`` beside the prepared data sets, under the hash of what decides its bytes, so another preparation
finds it there. The stages that clean have the path and checksum of the file in their settings, and nothing to learn from.
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data import stdlib
from data.classifier.examples import ExampleFiles, LabelledText, Sample, TrainingError, corpus, labelled
from data.classifier.figures import ClassifierFigures
from data.classifier.fit import Examples, fit
from data.classifier.labels import LabelScheme
from data.classifier.model import FORMAT, Classifier
from data.classifier.spec import ExamplesSpec, Trainable, TrainedSpec, TrainingSpec
from data.cleaned import clean_versions
from data.digests import Digests
from data.documents import Document
from data.errors import SourceError
from data.executors import Executor
from data.files import checksum, write_atomically
from data.sources import list_files
from data.spec import DataSpec, SourceSpec
from data.stages.base import Drop, Stage
from data.stages.registry import CHANGES_TEXT, StageSpec, make_labels, make_stage
from data.stages.text import primary

FOLDER = ".classifiers"
# Of examples; stages for certain domains leave them alone.
_NO_DOMAIN = ""


@dataclass(frozen=True, slots=True)
class ClassifierSource:
    """Where the classifier of one stage comes from: listed examples, or the checksum of one that was trained before."""

    stage: int
    """Its place, from 0."""
    spec: Trainable
    checksum: str = ""
    labelled: tuple[ExampleFiles, ...] = ()
    corpora: tuple[tuple[ExampleFiles, Any], ...] = ()
    before: tuple[StageSpec, ...] = ()
    """Stages that change the texts before they come to this one."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what decides what those stages do."""

    @property
    def pointer(self) -> str:
        return f"/data_pipeline/stages/{self.stage}"

    @property
    def identity(self) -> str:
        """Hash of everything that decides the classifier's bytes, or of those bytes."""
        if self.checksum:
            return self.checksum
        assert self.spec.examples is not None
        digest = xxhash.xxh3_128()
        versions = [
            FORMAT,
            unicodedata.unidata_version,
            *(metadata.version(name) for name in ("numpy", "scipy", "scikit-learn")),
        ]
        settings = [spec.model_dump(mode="json") for spec in (self.spec.examples, *self.before)]
        digest.update(json.dumps([versions, self.versions, type(self.spec).__name__, settings]).encode())
        for entry in (*self.labelled, *(entry for entry, _ in self.corpora)):
            digest.update(json.dumps([[file.path, file.size, file.digest] for file in entry.files]).encode())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class ClassifierTask:
    index: int
    source: ClassifierSource
    path: Path
    """Where the classifier is to lie."""


def list_classifiers(data: DataSpec, digests: Digests | None = None) -> list[ClassifierSource]:
    """What the stages learn from, in their order; their files' content is hashed.

    Raises:
        SourceError: something is not there or of no known format; the pointer says where the spec names it.
        OSError: a classifier that was trained before cannot be read; the stage that is made of it says more.
    """
    return [
        _listed(number, spec, data, digests or Digests())
        for number, spec in enumerate(data.stages)
        if isinstance(spec, Trainable) and (spec.examples or spec.trained)
    ]


def _listed(number: int, spec: Trainable, data: DataSpec, digests: Digests) -> ClassifierSource:
    at = f"/data_pipeline/stages/{number}"
    if spec.trained is not None:
        return ClassifierSource(number, spec, checksum=checksum(Path(spec.trained.path), digests.pulse))
    assert spec.examples is not None

    def entries(field: str) -> Iterator[ExampleFiles]:
        given: tuple[ExamplesSpec, ...] = getattr(spec.examples, field)
        for i, entry in enumerate(given):
            source = SourceSpec(path=entry.path, language=entry.language, text_field=entry.text_field)
            pointer = f"{at}/training/{field}/{i}"
            if field == "labelled" and entry.path.startswith(stdlib.PREFIX):
                raise SourceError(f"{entry.path} has no labels: labelled examples are JSON lines", pointer=f"{pointer}/path")
            yield ExampleFiles(source, tuple(list_files(source, pointer, digests)), pointer)

    corpora = [(entry, label) for field, label in make_labels(spec).corpora for entry in entries(field)]
    before = tuple(stage for stage in data.stages[:number] if type(stage) in CHANGES_TEXT and stage.sees(_NO_DOMAIN))
    return ClassifierSource(
        number,
        spec,
        labelled=tuple(entries("labelled")),
        corpora=tuple(corpora),
        before=before,
        versions=clean_versions(data.model_copy(update={"stages": before, "keep_dropped": False})),
    )


def train_classifiers(data: DataSpec, classifiers: Sequence[ClassifierSource], root: Path, executor: Executor) -> DataSpec:
    """The same spec, whose stages have learned.

    Args:
        root: the classifiers lie below it.

    Raises:
        DocumentError: an example is broken; the message names file and line.
        SourceError: a file changed while it was read.
        TrainingError: there are too few examples, or of one kind only, in every language.
    """
    paths = {source.stage: path_of(source, root) for source in classifiers}
    tasks = [
        ClassifierTask(index, source, paths[source.stage])
        for index, source in enumerate(source for source in classifiers if not paths[source.stage].is_file())
    ]
    for _ in executor.map(train_classifier, tasks):
        pass
    stages = list(data.stages)
    for number, path in paths.items():
        trained = TrainedSpec(path=str(path), checksum=checksum(path))
        stages[number] = stages[number].model_copy(update={"training": None, "trained": trained})
    return data.model_copy(update={"stages": tuple(stages)})


def classifier_figures(data: DataSpec) -> Iterator[ClassifierFigures]:
    """Of every stage that may have one, those that have learned or not."""
    for number, spec in enumerate(data.stages, 1):
        if isinstance(spec, Trainable):
            figures = ClassifierFigures(stage=spec.stage, number=number)
            if spec.trained is not None:
                path = Path(spec.trained.path)
                learned = Classifier.load(path, spec.trained.checksum).figures
                update = {"languages": learned.languages, "file": path.name, "checksum": spec.trained.checksum}
                figures = figures.model_copy(update=update)
            yield figures


def path_of(source: ClassifierSource, root: Path) -> Path:
    """Where its classifier lies, trained or not."""
    if source.spec.trained is not None:
        return Path(source.spec.trained.path).absolute()
    return root / FOLDER / f"{source.identity}.safetensors"


def train_classifier(task: ClassifierTask) -> int:
    write_atomically(task.path, train(task.source).dump())
    return task.index


def train(source: ClassifierSource) -> Classifier:
    """Without files, phases or executors: the classifier of a source's examples. Raises as ``train_classifiers`` does."""
    spec, labels = source.spec.examples, make_labels(source.spec)
    before = [make_stage(stage) for stage in source.before]
    assert spec is not None
    languages = _sampled(source, labels, spec)

    def examples() -> Iterator[tuple[str, Examples]]:
        for language in sorted(languages):
            rows = languages.pop(language).lowest()
            questions = labels.questions([label for _, _, label in rows])
            yield (
                language,
                Examples(
                    hash_D=np.array([hash_ for hash_, _, _ in rows], np.uint64),
                    features=(labels.features(_changed(text, language, before), language) for _, text, _ in rows),
                    heads=tuple(questions),
                    answer_DH=np.stack(list(questions.values()), axis=1) if questions else np.zeros((len(rows), 0), np.bool_),
                ),
            )

    classifier = fit(examples(), spec, together=labels.together)
    if not any(figures.heads for figures in classifier.figures.languages):
        counts = ", ".join(f"{figures.examples} of {figures.language}" for figures in classifier.figures.languages) or "none"
        raise TrainingError(
            f"no classifier can be trained of these examples ({counts}): in one language at least, a question needs"
            f" {spec.min_examples} on each of its sides",
            pointer=f"{source.pointer}/training",
        )
    return classifier


def _changed(text: str, language: str, stages: Sequence[Stage]) -> str:
    """A text as it comes to the classifier's stage. What another stage would drop is left as it came there: whoever gave it a
    label wants it to be learned from."""
    document = Document(text, "", language, _NO_DOMAIN)
    for stage in stages:
        outcome = stage(document)
        document = document if isinstance(outcome, Drop) else outcome
    return document.text


def _sampled(source: ClassifierSource, labels: LabelScheme, spec: TrainingSpec) -> dict[str, Sample]:
    def read() -> Iterator[LabelledText]:
        for entry in source.labelled:
            yield from labelled(entry, labels.read_label)
        for entry, label in source.corpora:
            yield from corpus(entry, label)

    languages: dict[str, Sample] = {}
    for example in read():
        languages.setdefault(primary(example.language), Sample(spec.max_examples, spec.max_characters)).add(example)
    return languages
