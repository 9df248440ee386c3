"""Token ids of a text by way of its words: the few that make up most of any text are encoded once.

Exact for BPE without normalisation whose pieces never go over the border of a word: merges only join neighbours, so those on
one side of a border that no piece crosses do not see the other side.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_pb2

from data.remembered import Remembered

Ids = npt.NDArray[np.int32]

# A word has the spaces before it; newlines are by themselves.
_WORD = re.compile("[ \u2581]+[^ \u2581\n]*|[^ \u2581\n]+|\n+")
_SPACE = "\u2581"  # in pieces; in a text it counts as one
_BPE = 2  # ``TrainerSpec.ModelType``


def has_borders(model: bytes) -> bool:
    """Whether words may be encoded apart."""
    proto = sentencepiece_pb2.ModelProto.FromString(model)
    normalizer = proto.normalizer_spec
    changes = normalizer.precompiled_charsmap or normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces
    if proto.trainer_spec.model_type != _BPE or not proto.trainer_spec.byte_fallback or changes:
        return False
    return normalizer.escape_whitespaces and not any(_crosses(piece.piece) for piece in proto.pieces)


def _crosses(piece: str) -> bool:
    """Whether it goes over a border: a space after something else, a newline beside something else."""
    return _SPACE in piece.lstrip(_SPACE) or ("\n" in piece and piece.strip("\n") != "")


class WordEncoder:
    """What ``processor.encode`` gives, for models that ``has_borders``."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        # As they lie in memory, so that those of a text are joined and not counted out.
        self._ids = Remembered(lambda word: np.array(processor.encode(word), np.int32).tobytes())

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        return [np.frombuffer(b"".join(self._ids.of(_WORD.findall(text))), np.int32) for text in texts]
