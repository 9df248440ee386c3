"""A SentencePiece model as tokenizer.json, the format of Hugging Face's ``tokenizers``.

BPE: both begin with characters (bytes where a character has no piece) and merge the best pair of neighbours until none is left.
SentencePiece takes any two whose union is a piece, the piece of the best score first; tokenizer.json lists such pairs in order.

Unigram: both take the best path (Viterbi). SentencePiece adds scores in single precision and ``tokenizers`` in double, so
scores must be such that both sums are exact, or runs of one character come out in another order.

Symbols of the user's are cut out first, from the left, the longest of those that begin together: by ``tokenizers`` as added
tokens, by SentencePiece for BPE, by ``data.tokenizer.Tokenizer`` for unigram.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as sentencepiece_pb2

from data.files import write_atomically
from data.spec import SYMBOL_SPACE
from data.tokenizer import SCORE_STEPS, Tokenizer
from workers.hf.errors import NotExportable
from workers.hf.files import SENTENCEPIECE, write_json

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
"""``ModelProto.SentencePiece.Type``"""
_UNIGRAM, _BPE = 1, 2
"""``TrainerSpec.ModelType``"""


def write_tokenizer(path: Path, directory: Path) -> dict[str, int]:
    """Write ``tokenizer.json``, its config and the SentencePiece model itself; returns the ids of the begin and end marks.

    A text gets the ids of ``data.tokenizer.Tokenizer``, behind a begin mark as in training; marks that a text spells out are
    plain text. Raises NotExportable and SourceError.
    """
    tokenizer = Tokenizer.load(path)
    content = path.read_bytes()
    model = sentencepiece_pb2.ModelProto.FromString(content)
    _require_plain(path, model)
    bos, eos = (model.pieces[i].piece for i in (tokenizer.bos_id, tokenizer.eos_id))
    unknown = next(p.piece for p in model.pieces if p.type == _UNKNOWN)
    write_atomically(directory / SENTENCEPIECE, content)
    write_json(directory / "tokenizer.json", _tokenizer_json(model, unknown, bos, tokenizer.bos_id))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": unknown,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    write_json(directory / "tokenizer_config.json", config)
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}


def _require_plain(path: Path, model: Any) -> None:
    """Raises NotExportable: tokenizer.json would give other ids."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    unigram = trainer.model_type == _UNIGRAM
    symbols = [p.piece for p in model.pieces if p.type == _USER_DEFINED]
    wrong = [
        (not unigram and trainer.model_type != _BPE, "is neither a BPE nor a unigram model"),
        (unigram and not _has_exact_ties(model), "is a unigram model whose ties each library breaks in its way"),
        (unigram and not _spells_its_marks(model), "has no pieces for the characters of <s> and <0x0A>"),
        (bool(symbols) and normalizer.add_dummy_prefix, "has symbols of its user's and puts a blank before every text"),
        (not trainer.byte_fallback, "has no byte fallback"),
        (trainer.treat_whitespace_as_suffix, "treats white space as a suffix"),
        (bool(normalizer.precompiled_charsmap), f"normalises text ({normalizer.name})"),
        (normalizer.remove_extra_whitespaces, "removes white space"),
        (not normalizer.escape_whitespaces, "keeps blanks as they are"),
        (any(p.type not in (_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE) for p in model.pieces), "has unused pieces"),
    ]
    if said := [what for is_so, what in wrong if is_so]:
        raise NotExportable(f"{path} {', '.join(said)}: tokenizer.json cannot say this exactly", pointer="/tokenizer/path")


def _has_exact_ties(model: Any) -> bool:
    return all((p.score * SCORE_STEPS).is_integer() for p in model.pieces if p.type == _NORMAL)


def _spells_its_marks(model: Any) -> bool:
    normal = {p.piece for p in model.pieces if p.type == _NORMAL}
    return all(set(p.piece) <= normal for p in model.pieces if p.type in (_UNKNOWN, _CONTROL, _BYTE))


def _tokenizer_json(model: Any, unknown: str, bos: str, bos_id: int) -> dict[str, Any]:
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": SYMBOL_SPACE}
    text = [
        {"type": "Replace", "pattern": {"String": SYMBOL_SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    normalizers: list[dict[str, Any]] = [blanks]
    if model.normalizer_spec.add_dummy_prefix:
        normalizers = [{"type": "Prepend", "prepend": SYMBOL_SPACE}, blanks]
        text.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    added = [(i, p) for i, p in enumerate(model.pieces) if p.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)]
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": p.piece, **_how(p)} for i, p in added],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
        },
        "decoder": {"type": "Sequence", "decoders": text},
        "model": _unigram(model, unknown) if model.trainer_spec.model_type == _UNIGRAM else _bpe(model, unknown),
    }


def _how(piece: Any) -> dict[str, bool]:
    """How ``tokenizers`` looks for an added token: a user's symbol in the text as the model reads it, blanks replaced."""
    of_user = piece.type == _USER_DEFINED
    return {"single_word": False, "lstrip": False, "rstrip": False, "normalized": of_user, "special": not of_user}


def _unigram(model: Any, unknown: str) -> dict[str, Any]:
    """Marks and bytes lie among the pieces there: they score worse than any spelling of theirs, so no text becomes one."""
    never = 8 * min(p.score for p in model.pieces)
    return {
        "type": "Unigram",
        "unk_id": next(i for i, p in enumerate(model.pieces) if p.piece == unknown),
        "byte_fallback": True,
        "vocab": [[p.piece, p.score if p.type == _NORMAL else never] for p in model.pieces],
    }


def _bpe(model: Any, unknown: str) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {p.piece: i for i, p in enumerate(model.pieces)},
        "merges": list(_merges(model)),
    }


def _merges(model: Any) -> Iterator[list[str]]:
    """Pairs of pieces whose union is a piece, the best score first."""
    normal = {p.piece: p.score for p in model.pieces if p.type == _NORMAL}
    for piece in sorted(normal, key=lambda piece: -normal[piece]):
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in normal and right in normal:
                yield [left, right]
