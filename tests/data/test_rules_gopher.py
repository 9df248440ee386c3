"""Gopher's rules, each on both sides of its threshold and switched off; repeats as plain counting finds them."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.stages.gopher_quality import GopherQualitySpec
from data.stages.gopher_repetition import GopherRepetitionSpec
from data.stages.repeats import Repeats
from tests.data.rules import lines, only, outcome, words


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


@pytest.mark.parametrize("language", ["en-US", "en-GB", "EN", "en"])
@pytest.mark.parametrize("listed", ["en", "en-US"])
def test_stop_words_are_a_languages_however_it_is_stated(language: str, listed: str) -> None:
    spec = only(GopherQualitySpec, min_stop_words=1, stop_words={listed: ("the",)})
    assert outcome(spec, "the rain", language) == "kept"
    assert outcome(spec, "a rain", language) == "few_stop_words"
    assert outcome(spec, "a rain", "eng-US") == "kept"


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


@settings(max_examples=300, deadline=None)
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
