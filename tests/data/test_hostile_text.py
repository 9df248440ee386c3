"""Text that nobody would write, and too much of it: every stage survives it, changes it the same way each time, and takes time
in proportion to its length."""

import json
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import columns
from data.dedup.shingles import shingle_hashes
from data.documents import Document
from data.executors import SerialExecutor
from data.prepare import prepare
from data.selection import text_hash
from data.spec import TokenizerSpec
from data.stages.base import Drop, Stage
from data.stages.registry import PRESETS, StageSpec, make_stage
from tests.data.conftest import data_spec, write
from tests.data.killed import files
from tests.data.test_resume import story

SPECS = {spec.model_fields["stage"].default: spec for spec in get_args(get_args(StageSpec)[0])}
SETTINGS: dict[str, dict[str, Any]] = {name: {"stage": name} for name in SPECS} | {
    "c4 without its cheap rules": {
        "stage": "c4",
        "require_terminal_punctuation": False,
        "min_line_words": None,
        "max_word_characters": None,
        "drop_curly_brackets": False,
    },
    "personal_data without an end": {"stage": "personal_data", "max_redactions": None, "special_addresses": True},
    "unicode_repair with HTML": {"stage": "unicode_repair", "unescape_html": True},
    "language all of it": {"stage": "language", "keep": None, "characters": None},
}
LANGUAGES = ("en", "zh")


@cache
def stage_of(name: str) -> Stage:
    given_settings = SETTINGS[name]
    return make_stage(SPECS[given_settings["stage"]].model_validate(given_settings))


# Repeated until it is long, each of these was slow in some program.
ATOMS = {
    "letters": "a",
    "digits": "7",
    "spaces": " ",
    "newlines": "\n",
    "blank lines": "\n \t",
    "paragraphs": "x\n\n",
    "full stops": ".",
    "exclamation marks": "!",
    "wide exclamation marks": "！",
    "Chinese full stops": "。",
    "quotation marks": '"',
    "ends and quotation marks": "。”",
    "brackets": "(",
    "citations": "[1",
    "braces": "{",
    "hyphens": "-",
    "apostrophes": "a'",
    "commas": "1,",
    "at signs": "a@b.",
    "addresses": "ab.c@example.com ",
    "cards": "4111111111111111 ",
    "phones": "(212) 555-0123 ",
    "IP addresses": "93.184.216.34 ",
    "parts of IP addresses": "12.",
    "IP addresses 6": "2001:db8:",
    "accounts": "DE89370400440532013000 ",
    "a row of numbers": "1 2 3 4 5 6 7 8 9 ",
    "Han": "山",
    "Han and Latin": "山a1，",
    "Hangul": "가",
    "mojibake": "â€™",
    "families": "👩\u200d👩\u200d👧",
    "marks without letters": "\u0301",
    "right to left": "\u202eשלום ",
    "zero": "\0",
    "sentences": "Ab. ",
    "Chinese sentences": "山！ ",
    "entities": "&amp;",
    "tags": "<a>",
    "a word of the lexicon": "kill ",
}
NASTY = {
    "nothing": "",
    "white space": " \t\n\r\u2028\u00a0\u3000 \n",
    "punctuation": "?!.,;:…—()[]{}'\"“”«»、。！？",
    "lone marks": "\u0301\u0302\u200d\ufe0f\u20e3",
    "noncharacters": "\ufffe\uffff\U0010ffff\ufdd0",
    "controls": "".join(map(chr, range(32))) + "\x7f\x85\ufeff\u2581",
    "two directions": "abc \u202e\u05e9\u05dc\u05d5\u05dd\u202c \u0627\u0644\u0633\u0644\u0627\u0645 123",
    "Chinese and English": "中文English混合text，没有空格no spaces。Does it work？能！",
    "emoji": "👍🏽👨‍👩‍👧‍👦🏳️‍🌈🇩🇪" * 9,
    "capitals that grow": "ßİŉǰΐ" * 9,
    **{name: atom * (2000 // len(atom)) for name, atom in ATOMS.items()},
}


def outcome(stage: Stage, text: str, language: str) -> tuple[str, ...]:
    found = stage(Document(text, "a.jsonl:1", language, "web", "http://例え.example/%ff"))
    answer = (found.reason, found.detail) if isinstance(found, Drop) else (found.text, found.language)
    for part in answer:
        part.encode()  # half a surrogate pair cannot be written
    return answer


@pytest.mark.parametrize("name", SETTINGS)
def test_every_stage_survives_what_nobody_would_write(name: str) -> None:
    for text in NASTY.values():
        for language in LANGUAGES:
            assert outcome(stage_of(name), text, language) == outcome(stage_of(name), text, language)


PIECES = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    st.sampled_from(list(ATOMS.values())).flatmap(lambda atom: st.integers(1, 30).map(lambda n: atom * n)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=8).map("".join), st.sampled_from([*LANGUAGES, "ja", "und", ""]))
def test_every_stage_survives_any_text(text: str, language: str) -> None:
    for name in SETTINGS:
        assert outcome(stage_of(name), text, language) == outcome(stage_of(name), text, language)
    assert len(shingle_hashes(text, 5)) >= 1
    assert 0 <= text_hash(text) < 2**64


def _cpu_seconds(work: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    work(text)
    return time.process_time() - start


def _in_proportion(work: Callable[[str], object], atom: str) -> bool:
    """Eight times the text takes about eight times as long, and not sixty-four times. What takes next to nothing may vary."""
    few, many = ("x. " + atom * (size // len(atom)) + "x" for size in (2**13, 2**16))
    return any(_cpu_seconds(work, many) <= 24 * max(_cpu_seconds(work, few), 0.002) for _ in range(3))


@pytest.mark.parametrize("name", SETTINGS)
def test_no_text_makes_a_stage_explode(name: str) -> None:
    stage = stage_of(name)
    languages = ("en",) if name.startswith(("personal_data", "unicode_repair")) else LANGUAGES  # the slow ones ask for none
    slow = [
        (atom, language)
        for atom in ATOMS
        for language in languages
        if not _in_proportion(lambda text, language=language: stage(Document(text, "", language, "web")), ATOMS[atom])  # type: ignore[misc]
    ]
    assert slow == []


def test_no_text_makes_shingles_explode() -> None:
    assert [atom for atom in ATOMS if not _in_proportion(lambda text: shingle_hashes(text, 5), ATOMS[atom])] == []


def test_what_users_look_for_is_no_pattern() -> None:
    """Words and phrases of a job's spec are found as they are written."""
    bomb = "(a+)+$"
    c4 = make_stage(SPECS["c4"].model_validate({"min_sentences": None, "policy_phrases": [bomb], "min_line_words": None}))
    kept = c4(Document("a" * 5000 + ".\nThis one has (a+)+$ in it.", "", "en", "web"))
    assert isinstance(kept, Drop) or bomb not in kept.text
    personal = make_stage(SPECS["personal_data"].model_validate({"placeholder": r"\1{kind}\g<0>"}))
    redacted = personal(Document("Write to someone@example.com today", "", "en", "web"))
    assert isinstance(redacted, Document)
    assert redacted.text == r"Write to \1EMAIL\g<0> today"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_prepares_what_nobody_would_write(preset: str, tmp_path: Path) -> None:
    stories = [story(number, "en") for number in range(30)]
    nasty = [*NASTY.values(), "x" * 100_000, "山" * 100_000, "[" * 50_000]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in [*stories, *nasty]).encode())
    spec = data_spec(path, stages=preset, deduplicate="minhash", held_out_fraction=0.2)
    tokenizer = TokenizerSpec(vocab_size=600)
    made = [prepare(spec, tokenizer, tmp_path / root, SerialExecutor(), lambda progress: None) for root in ("a", "b")]
    assert files(made[0].path) == files(made[1].path)
    assert made[0].manifest.documents_read == len(stories) + len(nasty)
    assert made[0].manifest.documents("train") > 20
    if preset == "none":
        assert set(made[0].manifest.drops) == {"duplicate", "near_duplicate"}


class Measured:
    """Memory: at the most while documents are cleaned, and in the driver between tasks from there to the first shard, which is
    not made."""

    def __init__(self) -> None:
        self.cleaning = self.choosing = 0

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        if fn.__name__ == "clean_files":
            tracemalloc.start()
        else:
            self.choosing = max(self.choosing, tracemalloc.get_traced_memory()[1])
        if fn.__name__ == "pack_documents":
            raise KeyboardInterrupt
        results = [fn(task) for task in shards]
        if fn.__name__ == "clean_files":
            self.cleaning = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        return iter(results)


def test_what_millions_of_tiny_documents_cost_in_memory_is_less_than_an_object_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns.spans, "__defaults__", (1024,))  # so that few documents are many spans
    measured = []
    for count in (300, 9_000, 27_000):  # the first loads what is loaded once
        lines = "".join(f'{{"text":"{i:x}"}}\n' for i in range(count))
        path = write(tmp_path / f"{count}.jsonl", lines.encode())
        spec = data_spec(path, stages="none", deduplicate={"method": "exact", "memory_bytes": 2**18})
        measured.append(Measured())
        tokenizer = TokenizerSpec(vocab_size=300, sample_bytes=1024)
        with pytest.raises(KeyboardInterrupt):
            prepare(spec, tokenizer, tmp_path / f"{count}", measured[-1], lambda progress: None)
        tracemalloc.stop()
    few, many = measured[1:]
    assert many.cleaning < 1.2 * few.cleaning  # a task holds a batch of documents, whatever the file has
    # Bytes a document at the most at once: what Python makes of one, be it a number, takes 32 and its place in a list.
    assert (many.choosing - few.choosing) / 18_000 < 8
