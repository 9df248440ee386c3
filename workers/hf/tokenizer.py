"""A SentencePiece BPE model as tokenizer.json, the format of Hugging Face's ``tokenizers``.

Both begin with characters (bytes where a character has no piece) and merge the best pair of neighbours until none is left.
SentencePiece takes any two whose union is a piece, the piece of the best score first; tokenizer.json lists such pairs in order.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as sentencepiece_pb2

from data.files import write_atomically
from data.tokenizer import Tokenizer
from workers.hf.errors import NotExportable
from workers.hf.files import SENTENCEPIECE, write_json

SPACE = "▁"
"""How SentencePiece writes a blank."""
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
"""``ModelProto.SentencePiece.Type``"""
_BPE = 2
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
    wrong = [
        (trainer.model_type != _BPE, "is no BPE model"),
        (not trainer.byte_fallback, "has no byte fallback"),
        (trainer.treat_whitespace_as_suffix, "treats white space as a suffix"),
        (bool(normalizer.precompiled_charsmap), f"normalises text ({normalizer.name})"),
        (normalizer.remove_extra_whitespaces, "removes white space"),
        (not normalizer.escape_whitespaces, "keeps blanks as they are"),
        (any(p.type not in (_NORMAL, _UNKNOWN, _CONTROL, _BYTE) for p in model.pieces), "has pieces of its user's own"),
    ]
    if said := [what for is_so, what in wrong if is_so]:
        raise NotExportable(f"{path} {', '.join(said)}: tokenizer.json cannot say this exactly", pointer="/tokenizer/path")


def _tokenizer_json(model: Any, unknown: str, bos: str, bos_id: int) -> dict[str, Any]:
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    text = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    normalizers: list[dict[str, Any]] = [blanks]
    if model.normalizer_spec.add_dummy_prefix:
        normalizers = [{"type": "Prepend", "prepend": SPACE}, blanks]
        text.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    marks = [(i, p.piece) for i, p in enumerate(model.pieces) if p.type in (_UNKNOWN, _CONTROL)]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": piece, **plain} for i, piece in marks],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
        },
        "decoder": {"type": "Sequence", "decoders": text},
        "model": {
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
        },
    }


def _merges(model: Any) -> Iterator[list[str]]:
    """Pairs of pieces whose union is a piece, the best score first."""
    normal = {p.piece: p.score for p in model.pieces if p.type == _NORMAL}
    for piece in sorted(normal, key=lambda piece: -normal[piece]):
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in normal and right in normal:
                yield [left, right]
