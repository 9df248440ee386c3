"""SentencePiece with byte fallback: every text has tokens, and decoding gives the text back."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_pb2

from data.encoding import Ids, WordEncoder, has_borders
from data.errors import NotEnoughData, SourceError
from data.lexicon import Matcher, needs_symbol
from data.spec import FIXED_PIECES, SYMBOL_SPACE, TokenizerSpec

# SentencePiece skips longer lines; they are cut here instead.
_LINE_BYTES = 4192
_LINE_CHARACTERS = _LINE_BYTES // 4
# And lines that hold NUL or its own mark for the unknown.
_LINE_ENDS = re.compile("[\n\0\u2585]+")
_LEAST_COVERAGE = 0.98
SCORE_STEPS = 64
_POINTER = "/tokenizer"

# ``TrainerSpec.ModelType`` and ``ModelProto.SentencePiece.Type``
_UNIGRAM, _USER_DEFINED = 1, 4

ORDINARY, UNKNOWN, BYTE = range(3)


class Tokenizer:
    """Text to token ids and back. White space, tabs and newlines are kept exactly."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._symbols = _symbols_to_cut_out(model)
        self._matcher = Matcher(self._symbols) if self._symbols else None
        self._by_words = WordEncoder(self._processor) if has_borders(model) else None

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
        if model.lstrip()[:1] == b"{":
            raise SourceError(
                f"{path} is JSON, such as a tokenizer.json of Hugging Face's; give the SentencePiece model that lies beside it"
                " (tokenizer.model, spiece.model), or no path to train a tokenizer",
                pointer=f"{_POINTER}/path",
            )
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

    @cached_property
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
        """Of each piece: ``ORDINARY``, ``UNKNOWN``, or ``BYTE`` (one byte of a character that has no piece). The byte of a
        newline is ordinary: lines are trained on, so that a newline never has another piece."""
        ids = list(range(self.vocab_size))
        unknown, byte = (np.array(ask(ids), np.bool_) for ask in (self._processor.is_unknown, self._processor.is_byte))
        byte[self._processor.piece_to_id("<0x0A>")] = False
        return np.where(unknown, UNKNOWN, np.where(byte, BYTE, ORDINARY)).astype(np.uint8)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without begin and end marks."""
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Of each text what ``encode`` gives; faster than one by one, most of all for short texts."""
        if self._matcher is None:
            return self._encode(texts)
        return [self._encode_between_symbols(text, self._matcher) for text in texts]

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        if self._by_words is not None:
            return self._by_words(texts)
        ids: list[Ids] = self._processor.encode(list(texts), num_threads=1, return_type="numpy")
        return ids

    def _encode_between_symbols(self, text: str, matcher: Matcher) -> Ids:
        spans = list(matcher.spans(text))
        starts, ends = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(text)]
        between = self._encode([text[start:end] for start, end in zip(starts, ends, strict=True)])
        symbols = [np.array([self._symbols[text[start:end]]], np.int32) for start, end in spans]
        return np.concatenate([between[0], *(part for pair in zip(symbols, between[1:], strict=True) for part in pair)])

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._processor.decode([int(i) for i in ids]))


def train_tokenizer(texts: Iterable[str], spec: TokenizerSpec, lexicon: Sequence[str] = ()) -> bytes:
    """A model trained on ``texts``, which respects the words of ``lexicon``; the same texts give the same bytes.

    Pieces: unknown, begin, end, symbols, 256 bytes, then what is learnt, characters among it; fewer than ``vocab_size`` when
    the text holds no more. At most half of the room is given to single characters: a script with more of them than that
    (Chinese at a small ``vocab_size``) keeps the frequent ones whole and spells the rare ones in bytes.

    Raises:
        SourceError: ``vocab_size`` has no room for the lexicon's symbols, and for the characters that make up 98% of the text,
            SentencePiece's least coverage.
        NotEnoughData: the texts are empty.
    """
    lines = list(_lines(texts))
    if not lines:
        raise NotEnoughData("the training text holds nothing to train a tokenizer on", pointer="/data_pipeline/sources")
    symbols = _symbols(spec, lexicon)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=spec.model_type,
            vocab_size=spec.vocab_size,
            character_coverage=_coverage(lines, spec, len(symbols)),
            user_defined_symbols=[symbol.replace(" ", SYMBOL_SPACE) for symbol in symbols],
            required_chars=_required(spec),
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
    return _with_exact_ties(model.getvalue()) if spec.model_type == "unigram" else model.getvalue()


def _symbols(spec: TokenizerSpec, lexicon: Sequence[str]) -> list[str]:
    symbols = list(dict.fromkeys([*spec.user_symbols, *filter(needs_symbol, lexicon)]))
    if FIXED_PIECES + len(symbols) >= spec.vocab_size:
        raise SourceError(
            f"vocab_size {spec.vocab_size} leaves no room to learn a piece: every tokenizer has {FIXED_PIECES},"
            f" and user_symbols and words of the lexicon are {len(symbols)} more",
            pointer=f"{_POINTER}/vocab_size",
        )
    return symbols


def _coverage(lines: list[str], spec: TokenizerSpec, symbols: int) -> float:
    """The share of the text whose characters get pieces: as asked, or what half of the room allows.

    Raises:
        SourceError: all of the room is too little.
    """
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    frequent = [count for _, count in counts.most_common()]
    total = counts.total()
    room = max(0, spec.vocab_size - FIXED_PIECES - symbols - len(_required(spec)))
    if sum(frequent[:room]) < _LEAST_COVERAGE * total:
        raise SourceError(
            f"vocab_size {spec.vocab_size} has no room for the characters that make up {_LEAST_COVERAGE:.0%} of the text:"
            f" {room} pieces are left for {len(frequent)} different ones; raise it",
            pointer=f"{_POINTER}/vocab_size",
        )
    return min(spec.character_coverage, max(sum(frequent[: room // 2]) / total, _LEAST_COVERAGE))


def _required(spec: TokenizerSpec) -> str:
    """Characters that have pieces whatever the text: those that spell the marks and ``<0x0A>``, which a text may do. Libraries
    that look for the longest pieces first (a unigram's) tell them from marks and bytes by that."""
    return "<>/0123456789ABCDEFknsux" if spec.model_type == "unigram" else ""


def _with_exact_ties(model: bytes) -> bytes:
    """Scores of a unigram model in steps of 1/64 nat: sums are exact, so of two ways to write a text that score the same every
    library takes the same one, whichever precision it adds with."""
    proto = sentencepiece_pb2.ModelProto.FromString(model)
    for piece in proto.pieces:
        piece.score = round(piece.score * SCORE_STEPS) / SCORE_STEPS
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in _LINE_ENDS.split(text):
            for start in range(0, len(line), _LINE_CHARACTERS):
                yield line[start : start + _LINE_CHARACTERS]


def _symbols_to_cut_out(model: bytes) -> dict[str, int]:
    """The symbols of a unigram model with their ids. BPE cuts them out by itself; the unigram model only scores them well, and
    a better path may cross one. A model that changes text is left alone: its parts would not add up to the whole."""
    proto = sentencepiece_pb2.ModelProto.FromString(model)
    normalizer = proto.normalizer_spec
    if proto.trainer_spec.model_type != _UNIGRAM or normalizer.precompiled_charsmap:
        return {}
    if normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces or not normalizer.escape_whitespaces:
        return {}
    return {piece.piece.replace(SYMBOL_SPACE, " "): i for i, piece in enumerate(proto.pieces) if piece.type == _USER_DEFINED}
