"""The rules of C4, FineWeb and code, each on both sides of its threshold and switched off."""

from typing import Any

import pytest

from data.documents import Document
from data.stages.c4 import C4Spec
from data.stages.code import CodeSpec
from data.stages.fineweb import FineWebSpec
from data.stages.registry import make_stage
from tests.data.rules import GOOD, lines, only, outcome


@pytest.mark.parametrize(
    ("rule", "line", "stays"),
    [
        ({"require_terminal_punctuation": True}, "The rain falls.", True),
        ({"require_terminal_punctuation": True}, "Does the rain fall?", True),
        ({"require_terminal_punctuation": True}, "The rain falls!", True),
        ({"require_terminal_punctuation": True}, 'She said: "rain"', True),
        ({"require_terminal_punctuation": True}, "She said: 'rain'", True),
        ({"require_terminal_punctuation": True}, "She said: ‘rain’", True),
        ({"require_terminal_punctuation": True}, "Menu and contact", False),
        ({"require_terminal_punctuation": True}, "The rain falls...", False),
        ({"min_line_words": 3}, "The rain falls", True),
        ({"min_line_words": 3}, "The rain", False),
        ({"min_line_words": 5}, "The rain falls on us", True),
        ({"min_line_words": 5}, "The rain falls on", False),
        ({"max_word_characters": 1000}, "one " + "a" * 1000, True),
        ({"max_word_characters": 1000}, "one " + "a" * 1001, False),
        ({"drop_javascript_lines": True}, "Please enable JavaScript to read this.", False),
        ({"drop_javascript_lines": True}, "Please enable Java to read this.", True),
        ({"policy_phrases": C4Spec().policy_phrases}, "Read our Privacy Policy before the rain falls.", False),
        ({"policy_phrases": C4Spec().policy_phrases}, "This site uses cookies to count the rain.", False),
        ({"policy_phrases": C4Spec().policy_phrases}, "She eats cookies in the rain.", True),
    ],
)
def test_c4_takes_out_lines(rule: dict[str, Any], line: str, stays: bool) -> None:
    long = f"{GOOD}\n{line}\n{GOOD}"
    document = make_stage(only(C4Spec, **rule))(Document(long, "", "en", "web"))
    assert isinstance(document, Document)
    assert document.text == (long if stays else f"{GOOD}\n{GOOD}")
    untouched = make_stage(only(C4Spec))(Document(long, "", "en", "web"))
    assert isinstance(untouched, Document)
    assert untouched.text == long


@pytest.mark.parametrize(
    ("rule", "inside", "outside", "reason"),
    [
        ({"drop_lorem_ipsum": True}, GOOD, f"{GOOD}\nLorem Ipsum dolor sit amet.", "lorem_ipsum"),
        ({"drop_curly_brackets": True}, f"{GOOD} (x)", f"{GOOD}\nif (x) {{ y }}", "curly_bracket"),
        ({"min_sentences": 5}, lines((5, GOOD)), lines((4, GOOD)), "few_sentences"),
        ({"min_sentences": 5}, " ".join([GOOD] * 5), " ".join([GOOD] * 4), "few_sentences"),
        ({"min_sentences": 3}, 'Rain! "Rain?" Rain.', "Rain at 3.15 p.m. Rain.", "few_sentences"),
        ({"min_sentences": 3}, lines((2, GOOD), (1, "no end")), lines((2, GOOD)), "few_sentences"),
        ({"min_line_words": 3}, GOOD, "The rain\nthe sea", "no_lines"),
    ],
)
def test_c4_drops_documents(rule: dict[str, Any], inside: str, outside: str, reason: str) -> None:
    assert outcome(only(C4Spec, **rule), inside) == "kept"
    assert outcome(only(C4Spec, **rule), outside) == reason
    assert outcome(only(C4Spec), outside) == "kept"


def test_c4_looks_for_brackets_before_policies_and_after_javascript() -> None:
    """As both codes that are public do."""
    assert outcome(C4Spec(), lines((5, GOOD), (1, "Our terms of use { a } are long."))) == "curly_bracket"
    assert outcome(C4Spec(), lines((5, GOOD), (1, "Our javascript { a } is long."))) == "kept"
    assert outcome(C4Spec(), lines((5, GOOD), (1, "Our lorem ipsum javascript is long."))) == "lorem_ipsum"


def test_c4_counts_words_before_marks_of_citations_go() -> None:
    spec = only(C4Spec, remove_citations=True, min_line_words=3)
    for line, left in [("Rain falls [3]", "Rain falls"), ("Rain [3]", ""), ("[1] [2] [3] [4]", "")]:
        document = make_stage(spec)(Document(f"{GOOD}\n{line}\n{GOOD}", "", "en", "web"))
        assert isinstance(document, Document)
        assert document.text.split("\n") == [GOOD, *([left] if left else []), GOOD]


def test_c4_removes_marks_of_citations() -> None:
    document = make_stage(only(C4Spec, remove_citations=True))(
        Document("Rain[edit] falls[3] on the sea. [citation needed]", "", "en", "web")
    )
    assert isinstance(document, Document)
    assert document.text == "Rain falls on the sea."


def test_sentences_are_counted_in_the_lines_that_stay() -> None:
    spec = only(C4Spec, require_terminal_punctuation=True, min_sentences=2)
    assert outcome(spec, f"{GOOD}\nRain. More rain. And no end") == "few_sentences"


LONG = "a line with thirty characters."
assert len(LONG) == 30


@pytest.mark.parametrize(
    ("rule", "inside", "outside", "reason"),
    [
        (
            {"min_punctuated_lines": 0.12},
            lines((13, "End."), (87, "menu")),
            lines((12, "End."), (88, "menu")),
            "few_punctuated_lines",
        ),
        (
            {"min_punctuated_lines": 0.12},
            lines((1, "End?"), (7, "menu")),
            lines((1, "end:"), (1, "menu")),
            "few_punctuated_lines",
        ),
        ({"max_short_lines": 0.67}, lines((66, "short"), (34, LONG)), lines((67, "short"), (33, LONG)), "short_lines"),
        ({"max_short_lines": 0.67}, LONG, LONG[1:], "short_lines"),
        (
            {"max_duplicate_line_characters": 0.1},
            f"ten chars!\nten chars!\n{'z' * 81}",
            f"ten chars!\n\nten chars!\n{'z' * 80}",
            "characters_in_duplicate_lines",
        ),
        (
            {"max_newlines": 0.3},
            "one two\nthree\nfour\nfive six seven eight nine ten",
            "one\ntwo\nthree\nfour five six seven eight nine",
            "many_newlines",
        ),
    ],
)
def test_fineweb(rule: dict[str, Any], inside: str, outside: str, reason: str) -> None:
    assert outcome(only(FineWebSpec, **rule), inside) == "kept"
    assert outcome(only(FineWebSpec, **rule), outside) == reason
    assert outcome(only(FineWebSpec), outside) == "kept"


@pytest.mark.parametrize(
    ("rule", "inside", "outside", "reason"),
    [
        ({"max_line_characters": 1000}, "a" * 1000, "a" * 1001, "long_line"),
        ({"max_mean_line_characters": 100}, f"{'a' * 150}\n{'a' * 50}", f"{'a' * 150}\n{'a' * 51}", "long_lines"),
        ({"min_alphanumeric": 0.25}, "ab......", "a.......", "few_alphanumeric_characters"),
        ({"min_alphanumeric": 0.25}, "ä中......", "ä.......", "few_alphanumeric_characters"),
        ({"drop_xml": True}, " " * 87 + '<?xml version="1.0"?>', " " * 86 + '<?xml version="1.0"?>', "xml"),
    ],
)
def test_code(rule: dict[str, Any], inside: str, outside: str, reason: str) -> None:
    assert outcome(only(CodeSpec, **rule), inside) == "kept"
    assert outcome(only(CodeSpec, **rule), outside) == reason
    assert outcome(only(CodeSpec), outside) == "kept"
