"""SentencePiece BPE with byte fallback: every text has tokens, and decoding gives the text back."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from data.errors import SourceError
from data.spec import TokenizerSpec

# SentencePiece skips longer lines; they are cut here instead.
_LINE_BYTES = 4192
_LINE_CHARACTERS = _LINE_BYTES // 4
_FIXED_PIECES = 3 + 256
_LEAST_COVERAGE = 0.98
_POINTER = "/tokenizer"

ORDINARY, UNKNOWN, BYTE = range(3)


class Tokenizer:
    """Text to token ids and back. White space, tabs and newlines are kept exactly."""

    def __init__(self, model: bytes) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """
        Raises:
            SourceError: there is no such file, or it is not a SentencePiece model with begin and end marks.
        """
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}", pointer=f"{_POINTER}/path") from error
        try:
            tokenizer = cls(model)
        except RuntimeError as error:
            raise SourceError(f"{path} is not a SentencePiece model: {error}", pointer=f"{_POINTER}/path") from error
        if tokenizer.bos_id < 0 or tokenizer.eos_id < 0:
            raise SourceError(f"{path} has no begin or no end mark (bos, eos)", pointer=f"{_POINTER}/path")
        return tokenizer

    @property
    def vocab_size(self) -> int:
        return int(self._processor.vocab_size())

    @property
    def pieces(self) -> list[str]:
        """By id."""
        return [str(self._processor.id_to_piece(i)) for i in range(self.vocab_size)]

    @property
    def bos_id(self) -> int:
        return int(self._processor.bos_id())

    @property
    def eos_id(self) -> int:
        return int(self._processor.eos_id())

    @cached_property
    def kind_V(self) -> npt.NDArray[np.uint8]:
        """Of each piece: ``ORDINARY``, ``UNKNOWN``, or ``BYTE`` (one byte of a character that has no piece)."""
        ids = list(range(self.vocab_size))
        unknown, byte = (np.array(ask(ids), np.bool_) for ask in (self._processor.is_unknown, self._processor.is_byte))
        return np.where(unknown, UNKNOWN, np.where(byte, BYTE, ORDINARY)).astype(np.uint8)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without begin and end marks."""
        ids: list[int] = self._processor.encode(text)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._processor.decode([int(i) for i in ids]))


def train_tokenizer(texts: Iterable[str], spec: TokenizerSpec) -> bytes:
    """A BPE model trained on ``texts``; the same texts give the same bytes.

    Pieces: unknown, begin, end, 256 bytes, then characters and merges; fewer than ``vocab_size`` when the text holds no more.
    At most half of the room is given to single characters: a script with more of them than that (Chinese at a small
    ``vocab_size``) keeps the frequent ones whole and spells the rare ones in bytes.

    Raises:
        SourceError: ``vocab_size`` has no room for the characters that make up 98% of the text, SentencePiece's least coverage.
    """
    lines = list(_lines(texts))
    room = _coverage(lines, (spec.vocab_size - _FIXED_PIECES) // 2)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=spec.vocab_size,
            character_coverage=min(spec.character_coverage, max(room, _LEAST_COVERAGE)),
            hard_vocab_limit=False,
            byte_fallback=True,
            split_digits=True,
            # Text is kept as it is: indentation is meaning in code.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=_LINE_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise SourceError(
            f"no tokenizer of {spec.vocab_size} pieces can be trained on this text; raise vocab_size"
            f" (SentencePiece: {str(error).rpartition('] ')[2]})",
            pointer=f"{_POINTER}/vocab_size",
        ) from error
    return model.getvalue()


def _coverage(lines: list[str], characters: int) -> float:
    """Share of the text that its ``characters`` most frequent characters make up."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    return sum(count for _, count in counts.most_common(characters)) / max(1, counts.total())


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LINE_CHARACTERS):
                yield line[start : start + _LINE_CHARACTERS]
