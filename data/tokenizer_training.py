"""The tokenizer of a preparation: which documents it is trained on, and the one task that trains it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.corpus import Corpus, cells
from data.executors import Executor
from data.files import write_atomically
from data.manifest import TOKENIZER_NAME
from data.selection import sample
from data.spec import DataSpec, TokenizerSpec
from data.tasks import Rows, read_texts
from data.tokenizer import Tokenizer, train_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenizerTask:
    index: int
    path: Path
    """Where the model is to lie."""
    spec: TokenizerSpec
    lexicon: tuple[str, ...]
    documents: tuple[tuple[Path, Rows], ...]
    """The sample: parts, and the rows of each."""
    sample_bytes: int


def make_tokenizer(
    spec: TokenizerSpec,
    given: Tokenizer | None,
    lexicon: Sequence[str],
    data: DataSpec,
    corpus: Corpus,
    work: Path,
    executor: Executor,
) -> Tokenizer:
    """Writes the tokenizer into ``work``, or trains it there; one that a stopped preparation left is used again.

    Args:
        given: the one at ``spec.path``, as it was when the preparation began: its file may be another by now.

    Raises:
        SourceError, NotEnoughData: as ``train_tokenizer`` does.
    """
    path = work / TOKENIZER_NAME
    if not path.is_file():
        if given is not None:
            write_atomically(path, given.model)
        else:
            task = _task(spec, lexicon, data, corpus, path)
            for made in executor.map(train, [task]):
                if made < spec.vocab_size:
                    said = "a sample of %d bytes gave a tokenizer of %d pieces, fewer than %d"
                    logger.warning(said, task.sample_bytes, made, spec.vocab_size)
    return Tokenizer(path.read_bytes())


def _task(spec: TokenizerSpec, lexicon: Sequence[str], data: DataSpec, corpus: Corpus, path: Path) -> TokenizerTask:
    weights = list(cells(data).values())
    shares = [weight / sum(weights) for weight in weights]
    figures = corpus.hash_N, corpus.bytes_N, corpus.cell_N
    chosen = sample(*figures, shares, spec.sample_bytes, data.seed, corpus.held_out_N)
    return TokenizerTask(
        index=0,
        path=path,
        spec=spec,
        lexicon=tuple(lexicon),
        documents=corpus.rows_of(chosen),
        sample_bytes=int(corpus.bytes_N[chosen].sum()),
    )


def train(task: TokenizerTask) -> int:
    """Writes the model; how many pieces it has."""
    texts = (text for part, rows in task.documents for text in read_texts(part, rows))
    model = train_tokenizer(texts, task.spec, task.lexicon)
    write_atomically(task.path, model)
    return Tokenizer(model).vocab_size
