"""What the report shows of documents that were dropped holds no personal data, wherever they were dropped."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.manifest import REPORT_NAME
from data.report import Report
from data.stages.excerpt import EXCERPT_CHARACTERS, excerpt
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write

EMAIL = "ada.lovelace@mailexample.org"
SECRETS = (EMAIL, "+44 20 7946 0958", "4111 1111 1111 1111")


@given(st.text("word ,\n山水", max_size=400))
def test_a_text_without_personal_data_is_shown_from_its_beginning(text: str) -> None:
    assert excerpt(text, "en") == text[:EXCERPT_CHARACTERS]


@pytest.mark.parametrize("before", range(EXCERPT_CHARACTERS - len(EMAIL) - 1, EXCERPT_CHARACTERS + 1))
def test_an_address_that_is_cut_by_the_end_is_not_shown_in_part(before: int) -> None:
    filler = "é" * (before - 1) + " "
    shown = excerpt(f"{filler}{EMAIL} " * 9, "en")
    assert shown.startswith(filler)
    assert shown[before:] in ("[EMAIL] ", "[EMAIL]", "")


def test_so_many_addresses_that_what_is_shown_is_short_show_none_that_was_not_seen_whole() -> None:
    shown = excerpt(f"{EMAIL} " * 90, "en")
    assert set(shown.split()) == {"[EMAIL]"}


def test_dropped_documents_are_shown_without_personal_data_whatever_dropped_them(
    tmp_path: Path, preparation: Preparation
) -> None:
    secret = ", then ".join(SECRETS)
    stories = [f"{secret} {text}" for text in texts(60, words=60)]
    short = f"Write to {EMAIL}"
    long = f"{secret} " + " ".join(texts(30, seed=3))
    exam = write(tmp_path / "exam.jsonl", json_lines([stories[-1]]))
    spec = data_spec(
        write(tmp_path / "a.jsonl", json_lines([*stories, *stories[:3], short, long])),
        stages=["normalise", {"stage": "length", "min_characters": 50}],
        decontaminate={"test_sets": [{"path": exam}]},
        document_tokens={"max": 2000, "longer": "drop"},
        held_out_fraction=0.1,
    )
    path = preparation(spec).path
    shown = {reason: examples for step in Report.read(path).steps for reason, examples in step.examples.items()}
    assert {"too_short", "duplicate", "test_set_overlap", "too_many_tokens"} <= set(shown)
    for reason, examples in shown.items():
        assert all("[EMAIL]" in example.text for example in examples), reason
    stored = json.loads((path / REPORT_NAME).read_text())
    assert not [secret for secret in SECRETS if secret in json.dumps(stored, ensure_ascii=False)]
