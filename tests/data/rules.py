"""What the tests of rules share: a rule's verdict on a text, rules one at a time, and text."""

import itertools
import random
from typing import Any

from data.documents import Document
from data.spec_base import Spec
from data.stages.base import Drop
from data.stages.c4 import C4Spec
from data.stages.code import CodeSpec
from data.stages.fineweb import FineWebSpec
from data.stages.gopher_quality import GopherQualitySpec
from data.stages.gopher_repetition import GopherRepetitionSpec
from data.stages.registry import make_stage

RULES: tuple[Spec, ...] = (GopherRepetitionSpec(), GopherQualitySpec(), C4Spec(), FineWebSpec(), CodeSpec())
GOOD = "The rain falls on the sea."


def outcome(spec: Spec, text: str, language: str = "en") -> str:
    """``kept``, or why it was dropped."""
    result = make_stage(spec)(Document(text, "", language, "web"))
    return result.reason if isinstance(result, Drop) else "kept"


def only(spec: type[Spec], **rules: Any) -> Spec:
    """All rules off but these."""
    off: dict[type[Spec], dict[str, Any]] = {
        GopherQualitySpec: dict.fromkeys(
            (
                *("min_words", "max_words", "min_mean_word_characters", "max_mean_word_characters", "max_symbols"),
                *("max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words", "min_stop_words"),
            )
        ),
        GopherRepetitionSpec: dict.fromkeys(
            (
                *("max_duplicate_lines", "max_duplicate_paragraphs", "max_duplicate_line_characters"),
                *("max_duplicate_paragraph_characters", "max_top_n_gram", "max_duplicate_n_grams"),
            )
        ),
        FineWebSpec: dict.fromkeys(
            ("min_punctuated_lines", "max_short_lines", "max_duplicate_line_characters", "max_newlines")
        ),
        CodeSpec: {"max_line_characters": None, "max_mean_line_characters": None, "min_alphanumeric": None, "drop_xml": False},
        C4Spec: {
            "require_terminal_punctuation": False,
            "remove_citations": False,
            "min_line_words": None,
            "max_word_characters": None,
            "drop_javascript_lines": False,
            "policy_phrases": (),
            "drop_lorem_ipsum": False,
            "drop_curly_brackets": False,
            "min_sentences": None,
        },
    }
    return spec(**{**off[spec], **rules})


def words(count: int, seed: int = 0) -> list[str]:
    """Different words of five letters."""
    every = ["".join(letters) for letters in itertools.islice(itertools.product("abcdefghijk", repeat=5), 20_000)]
    return random.Random(seed).sample(every, count)


def lines(*counts: tuple[int, str]) -> str:
    return "\n".join(line for count, line in counts for _ in range(count))
