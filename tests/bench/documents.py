"""Many documents out of little text: English, deterministic, hardly two the same.

The text is that of ``CORPUS`` where it is there (encyclopedia articles, scenes of plays), else the prose of the standard
library. A document is some lines in a row of one text, about as long as web pages are (log-normal), in which one word of eight
gives place to another word of that text; so documents over the same lines share few 5-grams. One document of ten is a
near copy of the one before it: one word of fifty differs.
"""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

from data import stdlib

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
_NAMES = ("wiki-en", "plays-en")
_REPLACED, _REPLACED_IN_COPIES, _COPIES = 1 / 8, 1 / 50, 1 / 10
_SPREAD = 0.6
"""Standard deviation of the logarithm of a document's length."""
_UNKNOWN = "<unk>"
"""What the articles have in place of rare words."""


def source_texts() -> tuple[str, list[str]]:
    """What the documents are made of, in a word, and the texts."""
    paths = [CORPUS / f"{name}.jsonl.gz" for name in _NAMES]
    if all(path.is_file() for path in paths):
        return ", ".join(_NAMES), [json.loads(line)["text"] for path in paths for line in gzip.open(path)]
    names = stdlib.modules("stdlib:prose")
    return "stdlib:prose", [text for name in names for _, text in stdlib.texts("stdlib:prose", name)]


def made_documents(texts: list[str], mean_characters: int, seed: int) -> Iterator[str]:
    """Without end."""
    draw = random.Random(seed)
    parts = [(text.split("\n"), [word for word in text.split() if word != _UNKNOWN]) for text in texts]
    parts = [(lines, words) for lines, words in parts if words]
    weights = [sum(map(len, lines)) for lines, _ in parts]
    while True:
        lines, words = draw.choices(parts, weights)[0]
        size = draw.lognormvariate(0.0, _SPREAD) * mean_characters
        text = _altered(_window(lines, size, draw), words, _REPLACED, draw)
        yield text
        if draw.random() < _COPIES:
            yield _altered(text, words, _REPLACED_IN_COPIES, draw)


def _window(lines: list[str], size: float, draw: random.Random) -> str:
    start = draw.randrange(len(lines))
    end, length = start, 0
    while end < len(lines) and length < size:
        length += len(lines[end]) + 1
        end += 1
    return "\n".join(lines[start:end])[: int(2 * size)]


def _altered(text: str, words: list[str], share: float, draw: random.Random) -> str:
    uniform = draw.random
    return "\n".join(
        " ".join(
            words[int(uniform() * len(words))] if uniform() < share or word == _UNKNOWN else word for word in line.split(" ")
        )
        for line in text.split("\n")
    )


def write_documents(
    folder: Path,
    texts: list[str],
    *,
    mean_characters: int,
    file_bytes: int,
    bytes_: int | None = None,
    documents: int | None = None,
    seed: int = 0,
) -> int:
    """JSON lines (``id``, which is ``file:line``, and ``text``), so many bytes of text or so many documents; the bytes."""
    folder.mkdir(parents=True)
    source = made_documents(texts, mean_characters, seed)
    written = number = file = 0
    while (bytes_ is None or written < bytes_) and (documents is None or number < documents):
        name, until, line = f"{file:04}.jsonl", written + file_bytes, 0
        with (folder / name).open("w") as out:
            while written < until and (documents is None or number < documents):
                text = next(source)
                number, line = number + 1, line + 1
                written += len(text.encode())
                out.write(json.dumps({"id": f"{name}:{line}", "text": text}, ensure_ascii=False) + "\n")
        file += 1
    return written
