"""Reads what a classifier learns from. Unlike a source's, a broken example always stops the work: labels are made with care."""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from data.classifier.features import MOST_CHARACTERS
from data.documents import Bad
from data.errors import DocumentError, MantaError, SourceError
from data.selection import text_hash
from data.sources import InputFile, read_file, require_unchanged
from data.sources.streams import about_bytes, open_file
from data.spec import SourceSpec

MOST_BYTES = 16 * 2**20
"""Of an example, or of its line."""


class TrainingError(MantaError):
    """The examples are in order, and no classifier can be made of them."""

    code = "training_examples_unusable"
    status = 422


@dataclass(frozen=True, slots=True)
class LabelledText:
    text: str
    language: str
    label: Any
    """What the stage that reads it takes a label to be."""


@dataclass(frozen=True, slots=True)
class ExampleFiles:
    """The files of one entry of a stage's training."""

    source: SourceSpec
    files: tuple[InputFile, ...]
    pointer: str
    """``/data_pipeline/stages/3/training/good/0``"""


ReadLabel = Callable[[dict[str, Any]], Any]
"""A line's label. What it raises as ``ValueError`` says what is wrong."""


def labelled(entry: ExampleFiles, read_label: ReadLabel) -> Iterator[LabelledText]:
    """
    Raises:
        DocumentError: a line is broken; the message names file and line.
        OSError: storage does not answer.
    """
    for file in entry.files:
        for number, line in enumerate(_lines(file, entry), 1):
            if line.strip():
                try:
                    yield _parse(line, entry.source, read_label)
                except (ValueError, RecursionError) as error:
                    raise DocumentError(f"{file.path}:{number}: {_said(error)}", pointer=f"{entry.pointer}/path") from error
        _require_unchanged(file, entry)


def corpus(entry: ExampleFiles, label: Any) -> Iterator[LabelledText]:
    """Every document of a corpus, with one label for all. Raises as ``labelled`` does."""
    for file in entry.files:
        try:
            for document in read_file(file, entry.source, MOST_BYTES):
                if isinstance(document, Bad):
                    raise DocumentError(document.detail, pointer=f"{entry.pointer}/{document.field}")
                yield LabelledText(document.text, document.language, label)
        except SourceError as error:
            raise type(error)(error.detail, pointer=error.pointer or f"{entry.pointer}/path") from error
        _require_unchanged(file, entry)


def _lines(file: InputFile, entry: ExampleFiles) -> Iterator[bytes]:
    try:
        with open_file(file.path) as stream:
            while line := stream.readline(MOST_BYTES + 1):
                if len(line) > MOST_BYTES:
                    raise DocumentError(
                        f"{file.path}: a line is longer than {MOST_BYTES} bytes", pointer=f"{entry.pointer}/path"
                    )
                yield line
    except OSError as error:
        if not about_bytes(error):
            raise
        raise DocumentError(f"{file.path}: cannot be decompressed: {error}", pointer=f"{entry.pointer}/path") from error


def _parse(line: bytes, source: SourceSpec, read_label: ReadLabel) -> LabelledText:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    text, language = value.get(source.text_field), value.get("language", source.language)
    if not isinstance(text, str):
        raise ValueError(f"no text in a field {source.text_field!r}; it has {', '.join(sorted(value)[:8]) or 'none'}")
    if not isinstance(language, str):
        raise ValueError(f"its language is {language!r}, not a code such as 'en'")
    text.encode()  # half of a surrogate pair raises
    return LabelledText(text, language, read_label(value))


def _said(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    if isinstance(error, UnicodeError):
        return "not UTF-8"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


def _require_unchanged(file: InputFile, entry: ExampleFiles) -> None:
    try:
        require_unchanged(file)
    except SourceError as error:
        raise SourceError(error.detail, pointer=f"{entry.pointer}/path") from error


@dataclass(slots=True)
class Sample:
    """Of any number of examples of a language those whose hashes are lowest, so that reading order decides nothing."""

    most: int
    most_characters: int
    """Of all together; the first one stays whatever its length."""
    _held: list[tuple[int, str, Any]] = field(default_factory=list)
    _characters: int = 0

    def add(self, example: LabelledText) -> None:
        text = example.text[:MOST_CHARACTERS]
        self._held.append((text_hash(example.text), text, example.label))
        self._characters += len(text)
        if len(self._held) >= 2 * self.most or self._characters >= 2 * self.most_characters:
            self._held = self.lowest()
            self._characters = sum(len(text) for _, text, _ in self._held)

    def lowest(self) -> list[tuple[int, str, Any]]:
        """(hash, beginning of the text, label), by hash."""
        chosen = sorted(self._held, key=lambda each: (*each[:2], repr(each[2])))[: self.most]
        until = accumulate(len(text) for _, text, _ in chosen)
        return chosen[: max(1, bisect_right(list(until), self.most_characters))]
