"""The published rules, each on both sides of its threshold and switched off; on any text; on real text."""

import gzip
import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data import stdlib
from data.documents import Document
from data.spec import DataSpec
from data.spec_base import Spec
from data.stages.base import Drop
from data.stages.c4 import C4Spec
from data.stages.code import CodeSpec
from data.stages.fineweb import FineWebSpec
from data.stages.gopher_quality import GopherQualitySpec
from data.stages.gopher_repetition import ChineseRepetition, GopherRepetitionSpec
from data.stages.registry import PRESETS, make_stage
from data.stages.repeats import Repeats
from data.stages.text import cjk_share, is_chinese, tokens

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
RULES: tuple[Spec, ...] = (GopherRepetitionSpec(), GopherQualitySpec(), C4Spec(), FineWebSpec(), CodeSpec())


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


@pytest.mark.parametrize(
    ("rule", "inside", "outside", "reason"),
    [
        ({"min_words": 50}, "word " * 50, "word " * 49, "few_words"),
        ({"min_words": 50}, "word, " * 50, "word, " * 49, "few_words"),
        ({"max_words": 100_000}, "word " * 100_000, "word " * 100_001, "many_words"),
        ({"min_mean_word_characters": 3}, "to the cats", "to the cat", "short_words"),
        ({"max_mean_word_characters": 10}, "abcdefghij " * 9 + "abcdefghij", "abcdefghij " * 9 + "abcdefghijk", "long_words"),
        ({"max_symbols": 0.1}, "word " * 10 + "#", "word " * 9 + "#", "hash_symbols"),
        ({"max_symbols": 0.1}, "word " * 10 + "...", "word " * 9 + "...", "ellipses"),
        ({"max_symbols": 0.1}, "word " * 10 + "…", "word " * 9 + "…", "ellipses"),
        ({"max_bullet_lines": 0.9}, lines((9, "- word"), (1, "word")), lines((10, "- word")), "bullet_lines"),
        ({"max_bullet_lines": 0.9}, lines((9, "• word"), (1, "word")), lines((19, " • word"), (1, "word")), "bullet_lines"),
        ({"max_bullet_lines": 0.9}, "word", "\n\n".join(["- word"] * 5), "bullet_lines"),
        ({"max_ellipsis_lines": 0.3}, lines((3, "more..."), (7, "word")), lines((4, "more..."), (6, "word")), "ellipsis_lines"),
        ({"max_ellipsis_lines": 0.3}, lines((3, "more…"), (7, "word")), lines((4, "more… "), (6, "word")), "ellipsis_lines"),
        ({"min_alphabetic_words": 0.8}, "word " * 80 + "17 " * 20, "word " * 79 + "17 " * 21, "few_alphabetic_words"),
        ({"min_alphabetic_words": 0.8}, "word, " * 80 + "17 " * 20, "word, " * 79 + "17 " * 21, "few_alphabetic_words"),
        (
            {"min_alphabetic_words": 0.8, "symbols_are_words": True},
            *("word, " * 20 + "word " * 60, "word, " * 21 + "word " * 60, "few_alphabetic_words"),
        ),
        ({"min_alphabetic_words": 0.8}, "b2 " * 80 + "1,000.5 " * 20, "b2 " * 79 + "1,000.5 " * 21, "few_alphabetic_words"),
        ({"min_stop_words": 2}, "rain and the sea", "the rain, the sea", "few_stop_words"),
    ],
)
def test_gopher_quality(rule: dict[str, Any], inside: str, outside: str, reason: str) -> None:
    assert outcome(only(GopherQualitySpec, **rule), inside) == "kept"
    assert outcome(only(GopherQualitySpec, **rule), outside) == reason
    assert outcome(only(GopherQualitySpec), outside) == "kept"


@pytest.mark.parametrize("word", ["the", "be", "to", "of", "and", "that", "have", "with"])
def test_each_stop_word_counts_once(word: str) -> None:
    spec = only(GopherQualitySpec, min_stop_words=1)
    assert outcome(spec, f"rain {word} sea") == "kept"
    assert outcome(only(GopherQualitySpec, min_stop_words=2), f"rain {word} {word} sea") == "few_stop_words"


def test_a_language_without_stop_words_has_no_such_rule() -> None:
    text = "der Regen und das Meer"
    assert outcome(only(GopherQualitySpec, min_stop_words=2), text, "de") == "kept"
    german = only(GopherQualitySpec, min_stop_words=2, stop_words={"de": ("der", "und", "das")})
    assert outcome(german, text, "de") == "kept"
    assert outcome(german, "viel Regen und wenig Meer", "de") == "few_stop_words"


def paragraphs(*counts: tuple[int, str]) -> str:
    return "\n\n".join(part for count, part in counts for _ in range(count))


def numbered(count: int) -> list[tuple[int, str]]:
    return [(1, word) for word in words(count)]


TWENTY = "a line of twenty let"


def padded(size: int, start: str) -> str:
    """``start`` and one more long word, ``size`` characters in all."""
    return f"{start} {'z' * (size - len(start) - 1)}"


def top(n: int) -> str:
    """An n-gram of three letters a word, twice, with a word between."""
    gram = " ".join(("aaa", "bbb", "ccc", "ddd")[:n])
    return f"{gram} x {gram}"


def twice(n: int) -> str:
    gram = " ".join(words(n))
    return f"{gram} x {gram}"


@pytest.mark.parametrize(
    ("rule", "inside", "outside", "reason"),
    [
        # One of the same lines is the first; the others are its duplicates.
        ({"max_duplicate_lines": 0.3}, lines((4, "same"), *numbered(6)), lines((5, "same"), *numbered(5)), "duplicate_lines"),
        ({"max_duplicate_lines": 0.3}, "one\n\n\n\ntwo\n \n \nthree", lines((2, "one"), (2, "two")), "duplicate_lines"),
        (
            {"max_duplicate_paragraphs": 0.3},
            paragraphs((4, "same\nagain"), *numbered(6)),
            paragraphs((5, "same\nagain"), *numbered(5)),
            "duplicate_paragraphs",
        ),
        (
            {"max_duplicate_line_characters": 0.2},
            f"{TWENTY}\n{TWENTY}\n{'z' * 58}",
            f"{TWENTY}\n{TWENTY}\n{'z' * 57}",
            "duplicate_line_characters",
        ),
        (
            {"max_duplicate_paragraph_characters": 0.2},
            f"{TWENTY}\n\n{TWENTY}\n\n{'z' * 56}",
            f"{TWENTY}\n\n\n{TWENTY}\n\n{'z' * 54}",
            "duplicate_paragraph_characters",
        ),
        # The most frequent n-gram twice: 2 * 7, 2 * 11 and 2 * 15 characters.
        ({"max_top_n_gram": {2: 0.2}}, padded(70, top(2)), padded(69, top(2)), "top_2_gram"),
        ({"max_top_n_gram": {3: 0.18}}, padded(123, top(3)), padded(122, top(3)), "top_3_gram"),
        ({"max_top_n_gram": {4: 0.16}}, padded(188, top(4)), padded(187, top(4)), "top_4_gram"),
        # The second occurrence: five letters a word.
        ({"max_duplicate_n_grams": {5: 0.15}}, padded(167, twice(5)), padded(166, twice(5)), "duplicate_5_grams"),
        ({"max_duplicate_n_grams": {6: 0.14}}, padded(215, twice(6)), padded(214, twice(6)), "duplicate_6_grams"),
        ({"max_duplicate_n_grams": {7: 0.13}}, padded(270, twice(7)), padded(269, twice(7)), "duplicate_7_grams"),
        ({"max_duplicate_n_grams": {8: 0.12}}, padded(334, twice(8)), padded(333, twice(8)), "duplicate_8_grams"),
        ({"max_duplicate_n_grams": {9: 0.11}}, padded(410, twice(9)), padded(409, twice(9)), "duplicate_9_grams"),
        ({"max_duplicate_n_grams": {10: 0.10}}, padded(500, twice(10)), padded(499, twice(10)), "duplicate_10_grams"),
    ],
)
def test_gopher_repetition(rule: dict[str, Any], inside: str, outside: str, reason: str) -> None:
    assert outcome(only(GopherRepetitionSpec, **rule), inside) == "kept"
    assert outcome(only(GopherRepetitionSpec, **rule), outside) == reason
    assert outcome(only(GopherRepetitionSpec), outside) == "kept"


def plain_top(parts: list[str], n: int, size: int) -> float:
    grams = [" ".join(parts[i : i + n]) for i in range(len(parts) - n + 1)]
    gram, count = Counter(grams).most_common(1)[0]
    return len(gram) * count / size


def plain_duplicates(parts: list[str], n: int, size: int) -> float:
    seen, start, characters = set(), 0, 0
    while start + n <= len(parts):
        gram = tuple(parts[start : start + n])
        if gram in seen:
            characters += len("".join(gram))
            start += n
        else:
            seen.add(gram)
            start += 1
    return characters / size


LIMITS = {2: 0.20, 3: 0.18, 4: 0.16, 5: 0.15, 10: 0.10}
VOCABULARY = [w[: 1 + i % 5] for i, w in enumerate(words(300))]


@settings(max_examples=300)
@given(st.integers(1, 300), st.integers(0, 400), st.integers(0, 2**32), st.integers(0, 3000))
def test_repeats_are_those_of_plain_counting(vocabulary: int, count: int, seed: int, rest: int) -> None:
    parts = random.Random(seed).choices(VOCABULARY[:vocabulary], k=count)
    size = len(" ".join(parts)) + rest + 1
    repeats = Repeats(tuple(parts), 1, size)
    fitting = [n for n in LIMITS if n <= count]
    tops = [(n, plain_top(parts, n, size)) for n in fitting]
    duplicates = [(n, plain_duplicates(parts, n, size)) for n in fitting]
    assert repeats.top(LIMITS) == next((each for each in tops if each[1] > LIMITS[each[0]]), None)
    assert repeats.duplicates(LIMITS) == next((each for each in duplicates if each[1] > LIMITS[each[0]]), None)


GOOD = "The rain falls on the sea."


@pytest.mark.parametrize(
    ("rule", "line", "stays"),
    [
        ({"require_terminal_punctuation": True}, "The rain falls.", True),
        ({"require_terminal_punctuation": True}, "Does the rain fall?", True),
        ({"require_terminal_punctuation": True}, "The rain falls!", True),
        ({"require_terminal_punctuation": True}, 'She said: "rain"', True),
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


HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))
"""Different characters."""


@pytest.mark.parametrize(
    ("spec", "inside", "outside", "reason"),
    [
        (GopherQualitySpec(), HAN[:75], HAN[:74], "few_characters"),
        (GopherQualitySpec(), HAN[:30] + "x" * 70, HAN[:29] + "x" * 71, "few_chinese_characters"),
        (GopherQualitySpec(), HAN[:90] + "#" * 10, HAN[:89] + "#" * 11, "hash_symbols"),
        (GopherQualitySpec(), HAN[:110] + "\n- " + HAN[:9], "\n".join("·" + HAN[i : i + 9] for i in range(10)), "bullet_lines"),
        (
            GopherRepetitionSpec(chinese=ChineseRepetition(max_top_n_gram=None)),
            *(HAN[:8] + HAN[100:138] + HAN[:8], HAN[:8] + HAN[100:137] + HAN[:8], "duplicate_8_grams"),
        ),
        (
            GopherRepetitionSpec(chinese=ChineseRepetition(max_top_n_gram={3: 0.2})),
            *(HAN[:3] + HAN[10:34] + HAN[:3], HAN[:3] + HAN[10:33] + HAN[:3], "top_3_gram"),
        ),
        (C4Spec(), (HAN[:9] + "。") * 5, (HAN[:9] + "。") * 4, "few_sentences"),
        (C4Spec(), (HAN[:9] + "？”") * 5, (HAN[:9] + "，") * 9 + "。", "few_sentences"),
        (C4Spec(), (HAN[:5] + "！\n") * 5, (HAN[:5] + "\n") * 5, "few_sentences"),
        (C4Spec(), (HAN[:4] + "！\n") * 5, (HAN[:3] + "！\n") * 5, "few_sentences"),
        (
            FineWebSpec(),
            lines((1, HAN[:40] + "。”"), (7, HAN[50:90])),
            lines((1, HAN[:40]), (7, HAN[50:90])),
            "few_punctuated_lines",
        ),
        (FineWebSpec(), HAN[:8] + "。", HAN[:7] + "。", "short_lines"),
    ],
)
def test_chinese_has_rules_of_its_own(spec: Spec, inside: str, outside: str, reason: str) -> None:
    if isinstance(spec, FineWebSpec):
        spec = spec.model_copy(update={"max_duplicate_line_characters": None})
    assert outcome(spec, inside, "zh") == "kept"
    assert outcome(spec, outside, "zh") == reason


def test_chinese_is_known_by_its_characters_too() -> None:
    assert is_chinese(Document("word", "", "zh-TW", "web"))
    assert is_chinese(Document(HAN[:4] + "word", "", "en", "web"))
    assert is_chinese(Document("これは雨です", "", "ja", "web"))
    assert not is_chinese(Document(HAN[:3] + "a word or two", "", "en", "web"))
    assert cjk_share("雨 a b\n") == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don't, really.", ["I", "don't", ",", "really", "."]),
        ("1,000.5 or 3.", ["1,000.5", "or", "3", "."]),
        ("well-known (x) -- …", ["well", "-", "known", "(", "x", ")", "--", "…"]),
        ("हिन्दी है।", ["हिन्दी", "है", "।"]),
        ("snake_case...", ["snake_case", "..."]),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert list(tokens(text)) == expected


ODD = st.sampled_from(
    [*"\n\t \x00\u2028\u200b.…#-•{[雨。あ", "word", "\n\n", "...", "[3]", "lorem ipsum", "javascript", "\U0001f600", "\ud800"]
)
TEXT = st.one_of(
    st.text(max_size=200),
    st.lists(ODD, max_size=200).map("".join),
    st.builds(lambda t, n: t * n, st.text(max_size=9), st.integers(0, 200)),
)


@settings(max_examples=200)
@given(TEXT, st.sampled_from(["en", "zh", "hi", ""]))
def test_no_text_breaks_a_rule_and_the_same_text_has_the_same_outcome(text: str, language: str) -> None:
    for spec in RULES:
        stage = make_stage(spec)
        first = stage(Document(text, "", language, "web"))
        stage(Document("another text", "", "en", "web"))
        assert stage(Document(text, "", language, "web")) == first
        if isinstance(first, Drop):
            assert first.reason


@pytest.mark.parametrize("spec", RULES, ids=lambda spec: spec.stage)
def test_a_rule_survives_json(spec: Spec) -> None:
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        ({"stage": "gopher_repetition", "max_top_n_gram": {"0": 0.1}}, "max_top_n_gram"),
        ({"stage": "gopher_repetition", "max_duplicate_lines": 1.1}, "max_duplicate_lines"),
        ({"stage": "gopher_quality", "chinese": {"min_words": 3}}, "chinese.min_words"),
        ({"stage": "fineweb", "max_short_lines": 0}, "max_short_lines"),
        ({"stage": "c4", "min_sentences": -1}, "min_sentences"),
    ],
)
def test_a_wrong_setting_is_named(stage: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        DataSpec.model_validate({"stages": [stage]})


@pytest.mark.parametrize("name", ["web", "papers"])
def test_presets_have_the_rules_in_the_published_order(name: str) -> None:
    stages = [spec.model_dump()["stage"] for spec in DataSpec.model_validate({"stages": name}).stages]
    assert [s for s in stages if s in ("gopher_repetition", "gopher_quality", "c4", "fineweb")] == [
        *("gopher_repetition", "gopher_quality", "c4", "fineweb")
    ]


def kept_share(specs: tuple[Spec, ...], documents: list[Document]) -> float:
    stages = [make_stage(spec) for spec in specs]
    kept, reasons = 0, Counter[str]()
    for document in documents:
        result: Document | Drop = document
        for stage in stages:
            result = stage(result)
            if isinstance(result, Drop):
                reasons[result.reason] += 1
                break
        else:
            kept += 1
    print(f"kept {kept} of {len(documents)}; {dict(reasons)}")
    return kept / len(documents)


def corpus(name: str, language: str) -> list[Document]:
    path = CORPUS / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {name} here")
    return [Document(json.loads(line)["text"], "", language, "web") for line in gzip.open(path)]


RULES_OF_WEB = tuple(spec for spec in PRESETS["web"] if isinstance(spec, tuple(map(type, RULES))))


def test_encyclopedia_articles_are_kept() -> None:
    assert kept_share(RULES_OF_WEB, corpus("wiki-en", "en")) > 0.9


def test_chinese_passages_are_kept() -> None:
    assert kept_share(RULES_OF_WEB, corpus("wiki-zh", "zh")) > 0.9


def test_prose_of_the_library_is_not_called_repetition() -> None:
    names = stdlib.modules("stdlib:prose")[:40]
    prose = [Document(text, key, "en", "web") for name in names for key, text in stdlib.texts("stdlib:prose", name)]
    assert kept_share((GopherRepetitionSpec(),), [document for document in prose if len(document.text) > 1000]) > 0.7


def test_source_files_that_people_wrote_are_kept() -> None:
    names = stdlib.modules("stdlib:code")[:40]
    code = [Document(text, key, "en", "code") for name in names for key, text in stdlib.texts("stdlib:code", name)]
    assert kept_share((CodeSpec(),), code) > 0.95


def test_lists_of_links_and_stuffed_keywords_are_dropped() -> None:
    rng = random.Random(0)
    menu = "\n".join(" ".join(rng.sample(words(500), 2)) for _ in range(100))
    stuffed = " ".join(rng.choices(["buy cheap watches online", "best cheap watches", "watches sale now"], k=100))
    documents = [Document(text, "", "en", "web") for text in (menu, stuffed, "word " * 1000, f"{GOOD}\n" * 50)]
    assert kept_share(RULES_OF_WEB, documents) == 0
