"""A model of toxicity, trained on made-up examples and real harmless text, tried on other examples and other real text."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data.classifier.figures import LanguageFigures
from data.classifier.training import list_classifiers, train
from data.documents import Document
from data.errors import DocumentError
from data.report import Report
from data.spec import DataSpec
from data.stages.base import Drop
from data.stages.toxicity import DIMENSIONS, LANGUAGES, Toxicity, ToxicitySpec, _pieces
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write
from tests.data.test_toxicity import CARRIER, CLEAN, CLEAN_CHINESE, real_text
from tests.data.toxic_examples import UNSEEN, training


def labelled(path: Path, examples: list[tuple[str, str, list[str]]]) -> str:
    lines = [json.dumps({"language": language, "text": text, "labels": labels}) for language, text, labels in examples]
    return write(path, "\n".join(lines).encode())


def spec(path: str, **settings: Any) -> DataSpec:
    stage = {"stage": "toxicity", "training": {"labelled": [{"path": path}], **settings}}
    return data_spec("unused.txt", stages=["normalise", stage])


class Trained:
    """And the half of the real text that it has not seen."""

    def __init__(self, folder: Path) -> None:
        documents = list(real_text())
        random.Random(3).shuffle(documents)
        seen, self.unseen = documents[::2], documents[1::2]
        examples = []
        for language in LANGUAGES:
            examples += [(language, text, labels) for text, labels in training(language, 120)]
            harmless = [piece for of, text in seen if of == language for piece in _pieces(text)]
            examples += [(language, piece, []) for piece in harmless[:500]]
        [source] = list_classifiers(spec(labelled(folder / "examples.jsonl", examples)))
        classifier = train(source)
        self.figures = classifier.figures.languages
        self.path = write(folder / "model.safetensors", classifier.dump())

    def stage(self, **settings: Any) -> Toxicity:
        return Toxicity(ToxicitySpec.model_validate({"trained": {"path": self.path}, **settings}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("toxicity"))


def outcome(stage: Toxicity, text: str, language: str) -> Document | Drop:
    return stage(Document(text, "", language, "web"))


def found(stage: Toxicity, language: str) -> int:
    """Unseen examples whose dimension is found."""
    return sum(
        isinstance(drop := outcome(stage, text, language), Drop) and f"{dimension} " in drop.detail
        for dimension, items in UNSEEN[language].items()
        for text in items
    )


# Of 40 and 30. Lexicons alone find 4 and 0; with the model they were 22 and 17.
@pytest.mark.parametrize(("language", "least"), [("en", 18), ("zh", 13)])
def test_with_a_model_more_of_what_nobody_has_listed_is_found(language: str, least: int, trained: Trained) -> None:
    by_lexicon, with_model = found(Toxicity(ToxicitySpec()), language), found(trained.stage(), language)
    assert with_model >= max(least, by_lexicon + 10)


def test_at_most_two_clean_documents_in_a_thousand_are_dropped(trained: Trained) -> None:
    stage = trained.stage()
    dropped = [drop for language, text in trained.unseen if isinstance(drop := outcome(stage, text, language), Drop)]
    assert len(dropped) <= max(2, len(trained.unseen) // 500), dropped


@pytest.mark.parametrize(
    ("language", "text"), [("en", text) for text in CLEAN.values()] + [("zh", text) for text in CLEAN_CHINESE.values()]
)
def test_medicine_news_history_and_literature_pass(language: str, text: str, trained: Trained) -> None:
    assert isinstance(result := outcome(trained.stage(), text, language), Document), result


def test_each_dimension_of_each_language_is_calibrated(trained: Trained) -> None:
    assert [(figures.language, figures.off) for figures in trained.figures] == [("en", ""), ("zh", "")]
    for figures in trained.figures:
        assert tuple(head.name for head in figures.heads) == DIMENSIONS
        assert all(head.calibration_error <= 0.05 and not head.off for head in figures.heads)


def test_the_probability_is_told_beside_the_score_of_the_lexicon(trained: Trained) -> None:
    drop = outcome(trained.stage(), "Buy cocaine online with bitcoin, discreet delivery.", "en")
    assert isinstance(drop, Drop)
    assert drop.reason == "toxic_illegal"
    assert " by model" in drop.detail


def test_a_passage_in_a_long_document_is_found(trained: Trained) -> None:
    passage = "We sell pills without a prescription, no questions asked, to your door."
    carrier = (CARRIER["en"] + "\n") * 12
    assert isinstance(outcome(trained.stage(), carrier, "en"), Document)
    assert isinstance(outcome(trained.stage(), carrier + "\n".join([passage] * 20) + "\n" + carrier, "en"), Drop)


def test_a_limit_of_none_switches_a_dimension_of_the_model_off(trained: Trained) -> None:
    text = "We sell pills without a prescription, no questions asked, to your door."
    assert isinstance(outcome(trained.stage(), text, "en"), Drop)
    assert isinstance(outcome(trained.stage(model_limits={"illegal": None}), text, "en"), Document)
    assert isinstance(outcome(trained.stage(), text, "fr"), Document)


@given(st.text(alphabet=st.sampled_from("ab \n。字"), max_size=9000) | st.text(max_size=300))
def test_pieces_are_the_text_in_order_none_too_long(text: str) -> None:
    pieces = list(_pieces(text))
    assert "".join(pieces) == text
    assert all(len(piece) <= 2000 for piece in pieces)
    assert len(pieces) >= 1


def test_a_piece_ends_with_a_line_where_it_can() -> None:
    lines = ["x" * 700 + "\n"] * 5
    assert list(_pieces("".join(lines))) == [lines[0] * 2, lines[0] * 2, lines[0]]


def test_a_dimension_with_few_examples_has_its_lexicon_only(tmp_path: Path) -> None:
    examples = [("en", text, labels) for text, labels in training("en", 60) if "hate" not in labels]
    [source] = list_classifiers(spec(labelled(tmp_path / "a.jsonl", examples)))
    classifier = train(source)
    assert classifier.models["en"].heads == tuple(dimension for dimension in DIMENSIONS if dimension != "hate")


def test_without_examples_the_report_says_that_there_is_no_model(tmp_path: Path, preparation: Preparation) -> None:
    made = preparation(data_spec(write(tmp_path / "a.jsonl", json_lines(texts(30))), stages=["normalise", "toxicity"]))
    [figures] = Report.read(made.path).classifiers
    assert (figures.stage, figures.number, figures.file, figures.languages) == ("toxicity", 2, "", ())


def test_a_preparation_trains_and_drops_by_the_model(tmp_path: Path, preparation: Preparation) -> None:
    path = labelled(tmp_path / "examples.jsonl", [("en", text, labels) for text, labels in training("en", 60)])
    toxic = [text for text, labels in training("en", 40, seed=1) if labels == ["illegal"]]
    source = write(tmp_path / "a.jsonl", json_lines([*[f"{text} It was a quiet harbour." for text in texts(60)], *toxic]))
    stages = spec(path).model_dump()["stages"]
    made = preparation(data_spec(source, stages=stages, documents=True))
    report = Report.read(made.path)
    rows = [row for file in made.manifest.documents_files for row in pq.read_table(made.path / file.file).to_pylist()]
    assert all(0 <= row[f"toxicity_model_{dimension}"] < 0.5 for row in rows for dimension in DIMENSIONS)
    assert sum(report.steps[2].scores["toxicity_model_illegal"].counts["en"][4:]) == report.steps[2].drops["toxic_illegal"]
    assert report.steps[2].drops.get("toxic_illegal", 0) > 30
    assert report.steps[2].dropped < 45
    assert [type(language) for language in report.classifiers[0].languages] == [LanguageFigures]
    assert report.classifiers[0].languages[0].off == ""


@pytest.mark.parametrize("labels", [None, "hate", ["rudeness"], [1], {"hate": True}])
def test_labels_that_are_none_are_named(labels: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "a", "labels": labels}).encode())
    [source] = list_classifiers(spec(path))
    with pytest.raises(
        DocumentError, match=r"a\.jsonl:1: field 'labels' is .*, not a list of any of violence, sexual"
    ) as raised:
        train(source)
    assert raised.value.pointer == "/data_pipeline/stages/1/training/labelled/0/path"


def test_training_needs_examples() -> None:
    with pytest.raises(ValidationError, match="labelled"):
        ToxicitySpec.model_validate({"training": {"labelled": []}})
