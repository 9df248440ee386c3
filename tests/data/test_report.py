"""A report says what became of every document, is the same whoever made it, and is noticed when torn."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import NotEnoughData, ShardError
from data.executors import Executor, SerialExecutor
from data.manifest import REPORT_NAME
from data.prepare import prepare
from data.report import Histogram, Report, epochs
from data.spec import DataSpec, SourceSpec, TokenizerSpec
from data.stages import libraries
from data.stages.libraries import LibraryMissing
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write


class Backwards:
    """Carries out tasks in another order."""

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        return map(fn, reversed(shards))


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    """30 English documents, 4 of them again, 12 too short, 2 broken; 20 Chinese ones in two files."""
    english = json_lines([*texts(30), *texts(30)[:4], *["short"] * 12]) + b"{\n[]\n"
    for part in range(2):
        write(tmp_path / "zh" / f"{part}.jsonl", json_lines([f"第{part}回 {text}" for text in texts(10, seed=part + 9)]))
    return data_spec(
        SourceSpec(path=write(tmp_path / "en.jsonl", english)),
        SourceSpec(path=str(tmp_path / "zh" / "*.jsonl"), language="zh", domain="stories"),
        on_bad_document="drop",
        held_out_fraction=0.1,
        shard_documents=8,
    )


def test_every_document_is_somewhere_in_the_funnel(spec: DataSpec, preparation: Preparation) -> None:
    prepared = preparation(spec)
    report = Report.read(prepared.path)
    assert [(step.name, step.came.documents, step.drops) for step in report.steps] == [
        ("sources", 68, {"broken_json": 1, "no_text_field": 1}),
        ("normalise", 66, {}),
        ("length", 66, {"too_short": 12}),
        ("deduplicate", 54, {"duplicate": 4}),
    ]
    assert report.kept.documents == 50
    for step, after in zip(report.steps, [*(s.came for s in report.steps[1:]), report.kept], strict=True):
        assert step.came.documents - step.dropped == after.documents
        assert step.came.bytes >= after.bytes
    assert prepared.manifest.drops == {"broken_json": 1, "duplicate": 4, "no_text_field": 1, "too_short": 12}
    assert prepared.manifest.documents_read == 68


def test_each_reason_has_its_first_ten_examples(spec: DataSpec, preparation: Preparation) -> None:
    sources, _, length, deduplicate = Report.read(preparation(spec).path).steps
    assert len(length.examples["too_short"]) == 10
    assert length.examples["too_short"][0].id.endswith("en.jsonl:35")
    assert (length.examples["too_short"][0].detail, length.examples["too_short"][0].text) == ("5", "short")
    assert "en.jsonl:47: not JSON" in sources.examples["broken_json"][0].detail
    assert [example.text for example in deduplicate.examples["duplicate"]] == [text[:200] for text in texts(30)[:4]]


def test_cells_are_followed_to_their_rows(spec: DataSpec, preparation: Preparation) -> None:
    prepared = preparation(spec)
    report = Report.read(prepared.path)
    english, chinese = report.cells
    assert [amount.documents for amount in (english.read, english.cleaned, english.kept)] == [48, 34, 30]
    assert [amount.documents for amount in (chinese.read, chinese.cleaned, chinese.kept)] == [20, 20, 20]
    assert english.kept.bytes == sum(len(text.encode()) for text in texts(30))
    assert [(cell.train, cell.held_out) for cell in report.cells] == [
        (cell.train, cell.held_out) for cell in prepared.manifest.cells
    ]
    assert {language: amount.documents for language, amount in report.languages_found.items()} == {"en": 34, "zh": 20}
    shares = report.shares("language", "kept")
    assert shares["en"] == english.kept.bytes / (english.kept.bytes + chinese.kept.bytes)
    assert sum(report.shares("domain", "read").values()) == pytest.approx(1)


def test_the_tokenizers_figures_are_of_every_document(spec: DataSpec, preparation: Preparation) -> None:
    prepared = preparation(spec)
    report = Report.read(prepared.path)
    assert report.lengths.total == report.kept.documents
    marks = 2 * report.kept.documents
    assert sum(each.figures.tokens for each in report.tokens) == sum(s.tokens for s in prepared.manifest.shards) - marks
    assert sum(each.figures.bytes for each in report.tokens) == report.kept.bytes
    english, chinese = report.tokens
    assert (english.language, chinese.language) == ("en", "zh")
    assert english.bytes_per_token == pytest.approx(english.figures.bytes / english.figures.tokens, abs=1e-4)
    assert english.unknown_share == chinese.unknown_share == 0


def test_the_tokenizers_figures_are_by_cell_too(tmp_path: Path, preparation: Preparation) -> None:
    sources = [
        SourceSpec(
            path=write(tmp_path / f"{number}.jsonl", json_lines(texts(9 + number, seed=number))), domain=domain, language=of
        )
        for number, (of, domain) in enumerate([("en", "web"), ("zh", "web"), ("en", "books")])
    ]
    prepared = preparation(data_spec(*sources))
    report = Report.read(prepared.path)
    named = [(each.language, each.domain) for each in report.cell_tokens]
    assert named == [("en", "web"), ("zh", "web"), ("en", "books")]
    for cell, each in zip(report.cells, report.cell_tokens, strict=True):
        assert each.figures.bytes == cell.kept.bytes
        assert each.figures.tokens == cell.train.tokens + cell.held_out.tokens - 2 * cell.kept.documents
    english, web, books, chinese = report.token_rows()
    assert [name for name, _ in (english, web, books, chinese)] == ["en", "  en/web", "  en/books", "zh"]
    assert english[1].figures == web[1].figures + books[1].figures


def test_a_tokenizer_smaller_than_asked_is_told(
    tmp_path: Path, preparation: Preparation, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(texts(20)))
    first = preparation(data_spec(path), vocab_size=100_000)
    report = Report.read(first.path)
    assert report.vocab_size == first.manifest.vocab_size < report.vocab_size_asked == 100_000
    assert report.pieces_fewer == 100_000 - report.vocab_size
    assert f"a tokenizer of {report.vocab_size} pieces, fewer than 100000" in caplog.text
    caplog.clear()
    again = Report.read(preparation(data_spec(path, seed=1), path=str(first.path / "tokenizer.model")).path)
    assert (again.vocab_size, again.vocab_size_asked, again.pieces_fewer) == (report.vocab_size, None, 0)
    assert caplog.text == ""


def test_bytes_of_characters_without_a_piece_are_counted(tmp_path: Path, preparation: Preparation) -> None:
    first = preparation(data_spec(write(tmp_path / "a.jsonl", json_lines(texts(40)))), vocab_size=600)
    other = write(tmp_path / "b.jsonl", json_lines([f"{text} 龍" for text in texts(40, seed=5)]))
    report = Report.read(preparation(data_spec(other), path=str(first.path / "tokenizer.model")).path)
    assert report.tokens[0].figures.byte_pieces == 3 * 40
    assert report.tokens[0].byte_share == pytest.approx(120 / report.tokens[0].figures.tokens, abs=1e-6)


def test_sizes_of_groups_of_equal_documents(tmp_path: Path, preparation: Preparation) -> None:
    one, two, three, *others = texts(30)
    path = write(tmp_path / "a.jsonl", json_lines([one] * 2 + [two] * 3 + [three] * 5 + others))
    report = Report.read(preparation(data_spec(path)).path)
    assert (report.duplicate_clusters.counts, report.largest_cluster) == ((0, 2, 1), 5)
    shown = report.steps[-1].examples["duplicate"]
    assert [example.id.rpartition(":")[2] for example in shown] == ["2", "4", "5", "7", "8", "9", "10"]
    assert Report.read(preparation(data_spec(path, deduplicate=False)).path).steps[-1].drops == {}


def test_the_report_does_not_depend_on_the_order_of_work_nor_do_grades_and_scores(spec: DataSpec, tmp_path: Path) -> None:
    judged = DataSpec.model_validate(
        {**spec.model_dump(), "stages": [*spec.model_dump()["stages"], "grade", "toxicity"], "documents": True}
    )

    def written(name: str, executor: Executor) -> dict[str, bytes]:
        made = prepare(judged, TokenizerSpec(vocab_size=300), tmp_path / name, executor, lambda progress: None).path
        return {path.name: path.read_bytes() for path in (made / REPORT_NAME, *made.glob("documents/*.parquet"))}

    whole = written("a", SerialExecutor())
    assert len(whole) > 3
    assert written("b", Backwards()) == whole


@pytest.mark.parametrize("damage", ["cut", "edited", "gone"])
def test_a_torn_report_is_noticed(damage: str, spec: DataSpec, preparation: Preparation) -> None:
    path = preparation(spec).path / REPORT_NAME
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-20] if damage == "cut" else content.replace(b'"too_short": 12', b'"too_short": 13'))
    with pytest.raises(ShardError, match=r"report\.json"):
        Report.read(path.parent)


TAKEN: dict[str, tuple[bytes, list[Any], str]] = {
    "length": (json_lines(["a", "b"]), ["normalise", "length"], "stage 2 (length) took the last 2"),
    "an earlier stage": (
        json_lines(["a", "b"]),
        [{"stage": "length", "min_characters": 8}, "normalise"],
        "stage 1 (length) took the last 2",
    ),
    "the last of several": (
        json_lines(["a", "b", "c" * 50]),
        [{"stage": "length", "min_characters": 8}, "normalise", {"stage": "length", "min_characters": 90}],
        "stage 3 (length) took the last 1",
    ),
    "all broken": (b"{\n[]\n", ["normalise"], "(2 read; left out: 1 broken_json, 1 no_text_field); every one is broken"),
    "in the other source": (json_lines(texts(3)), ["normalise"], "deduplication took the last 3"),
}


@pytest.mark.parametrize(("content", "stages", "message"), TAKEN.values(), ids=TAKEN)
def test_what_took_all_documents_of_a_cell_is_named(
    content: bytes, stages: list[Any], message: str, tmp_path: Path, preparation: Preparation
) -> None:
    good = write(tmp_path / "good.jsonl", json_lines([text.ljust(99, "!") for text in texts(9)] + texts(3)))
    empty = SourceSpec(path=write(tmp_path / "empty.jsonl", content), domain="books")
    with pytest.raises(NotEnoughData, match="no document is left of en/books") as raised:
        preparation(data_spec(good, empty, stages=stages, on_bad_document="drop"))
    assert message in raised.value.detail
    assert raised.value.pointer == "/data_pipeline/sources/1/path"


def test_a_library_that_lacks_is_said_before_anything_is_read(
    tmp_path: Path, preparation: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(libraries.importlib, "import_module", missing)
    path = write(tmp_path / "a.jsonl", json_lines(texts(9)))
    with pytest.raises(LibraryMissing) as raised:
        preparation(data_spec(path, stages=["normalise", "language"]))
    assert raised.value.pointer == "/data_pipeline/stages/1"
    assert not (tmp_path / "prepared").exists()


def test_found_languages_are_told_beside_those_of_the_sources(tmp_path: Path, preparation: Preparation) -> None:
    english = [f"The committee met again on day {i} and could not agree on who should pay for the bridge." for i in range(12)]
    german = [f"Der Ausschuss kam am Tag {i} zusammen und konnte sich nicht einigen, wer die Brücke bezahlt." for i in range(6)]
    path = write(tmp_path / "a.jsonl", json_lines(english + german))
    every = Report.read(preparation(data_spec(path, stages=["normalise", {"stage": "language", "keep": None}])).path)
    assert {language: amount.documents for language, amount in every.languages_found.items()} == {"de": 6, "en": 12}
    stated = Report.read(preparation(data_spec(path, stages=["normalise", "language"])).path)
    assert stated.steps[2].drops == {"other_language": 6}
    assert list(stated.languages_found) == ["en"]


def test_a_run_goes_through_a_cell_as_often_as_its_share_asks(spec: DataSpec, preparation: Preparation) -> None:
    manifest = preparation(spec).manifest
    rows = {cell.name: cell.train.rows for cell in manifest.cells}
    assert epochs(manifest, 64_000) == {name: pytest.approx(1000 / number) for name, number in rows.items()}


NUMBERS = st.lists(st.integers(0, 5000), max_size=40)


@given(NUMBERS, NUMBERS)
def test_histograms_add_up(one: list[int], other: list[int]) -> None:
    both = Histogram.of(one) + Histogram.of(other)
    assert both == Histogram.of(one + other)
    assert both.total == len(one) + len(other)


def test_a_bin_holds_what_its_number_says() -> None:
    assert Histogram.of([0, 1, 2, 3, 4, 7, 8]).counts == (2, 2, 2, 1)
