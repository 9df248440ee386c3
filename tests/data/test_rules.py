"""The rules on any text and on real text, and their settings."""

import gzip
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
from data.stages.code import CodeSpec
from data.stages.gopher_repetition import GopherRepetitionSpec
from data.stages.registry import PRESETS, make_stage
from tests.data.rules import GOOD, RULES, words

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"

ODD = st.sampled_from(
    [*"\n\t \x00\u2028\u200b.…#-•{[雨。あ", "word", "\n\n", "...", "[3]", "lorem ipsum", "javascript", "\U0001f600", "\ud800"]
)
TEXT = st.one_of(
    st.text(max_size=200),
    st.lists(ODD, max_size=200).map("".join),
    st.builds(lambda t, n: t * n, st.text(max_size=9), st.integers(0, 200)),
)


@settings(max_examples=200, deadline=None)
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
