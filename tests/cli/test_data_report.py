"""`manta data report`: which data set, and what is shown of it."""

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from api.cli import connect
from api.cli.main import app
from api.cli.report_html import document
from api.cli.report_page import OVERLAP_TITLE, bins, classifiers, grades, page, repeated, scores, shorten, tokenizer_title
from data.classifier.figures import ClassifierFigures, HeadFigures, LanguageFigures
from data.executors import SerialExecutor
from data.prepare import prepare
from data.report import Amount, Histogram, ReferenceFigures, Report, Step
from data.spec import DataSpec, TokenizerSpec
from data.stages.base import DroppedExample
from service.views import JobView, Page

HOSTILE = "<script>alert(1)</script> [bold red]x[/]"


def manta(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", "report", *arguments])


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 documents of which 3 are the same, and one that is too short and hostile."""
    root = tmp_path_factory.mktemp("data")
    lines = [f"Document number {i % 38} about rivers and stones, lanterns and a quiet harbour." for i in range(40)]
    (root / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*lines, HOSTILE]))
    stages = ["normalise", {"stage": "length", "min_characters": len(HOSTILE) + 1}]
    spec = DataSpec.model_validate({"sources": [{"path": str(root / "a.jsonl")}], "sequence_length": 32, "stages": stages})
    return prepare(spec, TokenizerSpec(vocab_size=300), root / "prepared", SerialExecutor(), lambda progress: None).path


def test_the_page_says_what_became_of_the_documents(data_set: Path) -> None:
    ended = manta(str(data_set))
    assert ended.exit_code == 0
    for words in ("deduplicate", "too_short", "duplicate", "language en", "domain web", "en/web", "bytes a token", "32-63"):
        assert words in ended.stdout
    assert HOSTILE in ended.stdout
    assert data_set.name in ended.stdout


def test_licences_have_their_table(data_set: Path) -> None:
    report = Report.read(data_set)
    free = report.licences[0].model_copy(update={"licence": "CC0-1.0 <b>[b]"})
    both = report.model_copy(update={"licences": (report.licences[0], free)})
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(page(both, None, None))
    for shown in (console.export_text(), Reader(document(both, None, None)).text):
        for licence in ("not stated", "CC0-1.0 <b>[b]"):
            assert re.search(rf"{re.escape(licence)}\s*1\s*41\s*[\d.]+ KiB\s*38\s*[\d.]+ KiB", shown), shown


def test_a_tokenizer_smaller_than_asked_is_shown(data_set: Path) -> None:
    report = Report.read(data_set)
    smaller = report.model_copy(update={"vocab_size_asked": 9999})
    assert tokenizer_title(smaller) == f"Tokenizer, {report.vocab_size} pieces of 9,999 asked: the sample held no more"
    assert tokenizer_title(smaller) in document(smaller, None, None)
    assert tokenizer_title(report.model_copy(update={"vocab_size_asked": None})) == f"Tokenizer, {report.vocab_size} pieces"


def test_json_is_the_report_and_the_run_where_one_is_named(data_set: Path) -> None:
    stored = json.loads((data_set / "report.json").read_text())
    stored["inputs"] = json.loads((data_set / "inputs.json").read_text())["files"]
    assert [(Path(file["path"]).name, file["documents"]) for file in stored["inputs"]] == [("a.jsonl", 41)]
    assert json.loads(manta(str(data_set), "-o", "json").stdout) == stored
    shown = json.loads(manta(str(data_set), "-o", "json", "--tokens", "64000").stdout)
    rows = stored["cells"][0]["train"]["rows"]
    assert shown == {**stored, "run": {"tokens": 64000, "epochs": {"en/web": pytest.approx(2000 / rows)}}}


@pytest.mark.parametrize("where", ["", "..", "../.."])
def test_the_directory_may_be_above_the_data_set(where: str, data_set: Path) -> None:
    assert json.loads(manta(str(data_set / where), "-o", "json").stdout)["hash"] == data_set.name


def test_grades_and_classifiers_have_their_tables(tmp_path: Path) -> None:
    lines = [f"Document number {i} about rivers and stones, lanterns and a quiet harbour." for i in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    stages = ["grade", "toxicity"]
    spec = DataSpec.model_validate({"sources": [{"path": str(tmp_path / "a.jsonl")}], "sequence_length": 32, "stages": stages})
    made = prepare(spec, TokenizerSpec(vocab_size=300), tmp_path / "prepared", SerialExecutor(), lambda progress: None)
    assert list(classifiers(Report.read(made.path))) == [
        ("1 grade, 2 toxicity", *[""] * 6, "off: nothing to learn from was given")
    ]
    [(graded, [(language, number, *shares)])] = grades(Report.read(made.path))
    assert (language, number, len(shares)) == ("en", "30", 5)
    [(title, columns, rows)] = scores(Report.read(made.path))
    assert columns == ("score", "language", "documents>", "0>", "to 1>", "to 2>", "to 4>", "to 8>", "to 15>", "over 15>")
    assert len(rows) == 5
    assert rows[0] == ("toxicity_violence", "en", "30", "30", *["0"] * 6)
    page = manta(str(made.path)).stdout
    assert graded == "Grades, from 0 (poor) to 4 (good), by the stage 1 grade"
    assert graded in page
    assert title in page
    assert manta(str(made.path), "--html", str(tmp_path / "report.html")).exit_code == 0
    read = Reader((tmp_path / "report.html").read_text()).text
    assert "off: nothing to learn from was given" in read
    assert title in read


def test_what_a_classifier_cannot_answer_is_told_with_its_reason() -> None:
    figures = ClassifierFigures(
        stage="grade",
        number=3,
        file="x.safetensors",
        languages=(
            LanguageFigures(language="de", examples=20, off="too few"),
            LanguageFigures(
                language="en",
                examples=1200,
                heads=(
                    HeadFigures(name="0-2", positive=700, calibration_error=0.012, ranking=0.91),
                    HeadFigures(name="2-4", positive=90, calibration_error=0.071, ranking=0.8, off="not calibrated"),
                ),
            ),
        ),
    )
    report = Report.model_construct(classifiers=(figures,))
    assert list(classifiers(report)) == [
        ("3 grade", "de", "", "20", "", "", "", "off: too few"),
        ("3 grade", "en", "0-2", "1,200", "700", "0.012", "0.910", "on"),
        ("3 grade", "en", "2-4", "1,200", "90", "0.071", "0.800", "off: not calibrated"),
    ]


class Reader(HTMLParser):
    """Text and tags of a page; what it would fetch or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.outside = "", set[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.outside += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_html_page_stands_alone_and_shows_text_as_text(data_set: Path, tmp_path: Path) -> None:
    ended = manta(str(data_set), "--html", str(tmp_path / "report.html"), "--tokens", "64000")
    assert ended.exit_code == 0
    assert ended.stdout == ""
    page = (tmp_path / "report.html").read_text()
    read = Reader(page)
    assert HOSTILE in read.text
    assert "script" not in read.tags
    assert read.outside == []
    assert "url(" not in page
    assert "@import" not in page
    assert len(page) < 30_000
    for words in ("deduplicate", "too_short", "en/web", "64,000", "bytes a token"):
        assert words in read.text


def test_overlaps_and_clusters_are_shown_on_both_pages(data_set: Path) -> None:
    plain = Report.read(data_set)
    exam = ReferenceFigures(name="<exam>", items=20, too_short=3, ngrams=812, found=7, dropped=11)
    report = plain.model_copy(update={"decontamination": (exam,)})
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(page(report, None, None))
    for shown in (console.export_text(), Reader(document(report, None, None)).text):
        assert OVERLAP_TITLE in shown
        assert re.search(r"<exam>\s*20\s*3\s*812\s*7\s*11", shown)
        assert "by size; the largest has 2" in shown
    assert OVERLAP_TITLE not in document(plain, None, None)


def test_cells_that_a_run_repeats_too_often_are_named(data_set: Path) -> None:
    assert repeated(None) == repeated({"en/web": 4.0}) == ""
    assert repeated({"en/web": 4.1, "en/code": 2.0, "zh/web": 30.0}).endswith(": en/web (4.1), zh/web (30.0)")
    assert "more than 4 times" in manta(str(data_set), "--tokens", "640000").stdout
    assert "more than 4 times" not in manta(str(data_set), "--tokens", "32").stdout


def test_a_page_that_cannot_be_written_is_a_users_error(data_set: Path, tmp_path: Path) -> None:
    ended = manta(str(data_set), "--html", str(tmp_path / "nowhere" / "report.html"))
    assert ended.exit_code == 2
    assert "cannot be written" in ended.stderr


def test_a_directory_without_data_or_with_too_much_is_said(data_set: Path, tmp_path: Path) -> None:
    ended = manta(str(tmp_path), "-o", "json")
    assert (ended.exit_code, json.loads(ended.stderr)["code"]) == (1, "data_set_not_found")
    for name in ("a", "b"):
        (tmp_path / "prepared" / name).mkdir(parents=True)
        for file in ("manifest.json", "tokenizer.model"):
            (tmp_path / "prepared" / name / file).touch()
    ended = manta(str(tmp_path), "-o", "json")
    assert (ended.exit_code, json.loads(ended.stderr)["code"]) == (1, "data_set_ambiguous")


def test_a_torn_report_ends_with_its_code(data_set: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "report.json", "tokenizer.model"):
        (tmp_path / name).write_bytes((data_set / name).read_bytes()[: -1 if name == "report.json" else None])
    ended = manta(str(tmp_path), "-o", "json")
    assert (ended.exit_code, json.loads(ended.stderr)["code"]) == (1, "shard_corrupt")


class FakeClient:
    """One job."""

    def __init__(self, job: JobView) -> None:
        self.job = job

    def get(self, job_id: str) -> JobView:
        assert job_id == self.job.id
        return self.job

    def list(self, **_: Any) -> Page[JobView]:
        return Page[JobView](items=[self.job], next_cursor=None)


@pytest.fixture
def home(tmp_path: Path, job: Callable[..., JobView], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one training job known to the service, and no directory of it yet."""
    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    monkeypatch.setattr(connect, "connect", lambda url: FakeClient(job(state="succeeded")))
    return tmp_path


def test_a_jobs_report_says_how_often_its_run_repeats_each_cell(home: Path, data_set: Path) -> None:
    directory = home / "jobs" / "j-8c1f02aa"
    directory.mkdir(parents=True)
    (directory / "prepared.json").write_text(json.dumps({"path": str(data_set), "hash": data_set.name}))
    shown = json.loads(manta("j-8c1f02aa", "-o", "json").stdout)
    assert shown["hash"] == data_set.name
    assert shown["run"]["tokens"] == 100 * 32 * 256  # the defaults: steps, rows in a step, tokens in a row
    assert shown["run"]["epochs"]["en/web"] == pytest.approx(100 * 32 * 256 / 32 / shown["cells"][0]["train"]["rows"])


def test_a_folder_without_data_that_has_a_jobs_name_does_not_hide_the_job(
    home: Path, data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = home / "jobs" / "j-8c1f02aa"
    directory.mkdir(parents=True)
    (directory / "prepared.json").write_text(json.dumps({"path": str(data_set), "hash": data_set.name}))
    (home / "here" / "j-8c1f02aa").mkdir(parents=True)
    monkeypatch.chdir(home / "here")
    assert json.loads(manta("j-8c1f02aa", "-o", "json").stdout)["hash"] == data_set.name
    assert manta("./j-8c1f02aa").exit_code == 1


def test_a_job_whose_storage_is_elsewhere_is_said(home: Path) -> None:
    ended = manta("j-8c1f02aa", "-o", "json")
    assert (ended.exit_code, json.loads(ended.stderr)["code"]) == (1, "data_set_not_found")
    assert "this machine does not see" in json.loads(ended.stderr)["detail"]


@pytest.mark.parametrize(
    ("state", "words"),
    [("preparing", "is preparing: its report comes"), ("failed", "failed before its data set"), ("succeeded", "no data set")],
)
def test_a_job_without_a_data_set_says_why(
    state: str, words: str, home: Path, job: Callable[..., JobView], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "connect", lambda url: FakeClient(job(state=state)))
    (home / "jobs" / "j-8c1f02aa").mkdir(parents=True)
    ended = manta("j-8c1f02aa", "-o", "json")
    assert (ended.exit_code, json.loads(ended.stderr)["code"]) == (1, "data_set_not_found")
    assert words in json.loads(ended.stderr)["detail"]


def test_bins_are_labelled_and_empty_ends_left_out() -> None:
    assert bins(Histogram.of([2, 9, 9])) == [("2-3", 1), ("4-7", 0), ("8-15", 2)]
    assert bins(Histogram.of([0, 1])) == [("0-1", 2)]
    assert bins(Histogram()) == []


def test_examples_are_one_printable_line() -> None:
    assert shorten("a\n\x1b[31mb\tc", 20) == "a [31mb c"
    assert shorten("x" * 30, 10) == "x" * 9 + "…"
    assert shorten("山水" * 30, 11) == "山水山水山…"


def test_the_page_shows_where_an_example_lay_and_no_text_where_there_is_none(data_set: Path) -> None:
    report = Report.read(data_set)
    examples = {
        "email": (
            DroppedExample(id="a.jsonl:7", detail="at byte 9", text=""),
            DroppedExample(id="a.jsonl:8", detail="", text="x"),
        )
    }
    step = Step(name="personal_data", came=Amount(documents=2), drops={"email": 2}, examples=examples)
    shown = document(report.model_copy(update={"steps": (step,)}), None, None)
    assert "a.jsonl:7 · at byte 9" in shown
    assert shown.count("<pre>") == 1


def test_the_funnel_draws_how_many_documents_came_to_each_step(data_set: Path) -> None:
    widths = re.findall(r'class="bar" style="width:([\d.]+)%"', document(Report.read(data_set), None, None))
    assert widths[:5] == ["100.0", "100.0", "100.0", "97.6", "92.7"]  # 41, 41, 41, 40 and 38 documents


def pages(report: Report) -> tuple[str, str]:
    """What the terminal and the HTML page show."""
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(page(report, None, None))
    return console.export_text(), Reader(document(report, None, None)).text


@pytest.fixture(scope="module")
def of_domains(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Web pages and poems, graded and scored by stages of their own; four pages hold emails, one too many."""
    root = tmp_path_factory.mktemp("domains")
    for domain in ("web", "poems", "plays"):
        lines = [f"Document number {i} of {domain} about rivers and stones, lanterns and a quiet harbour." for i in range(20)]
        for i in range(4) if domain == "web" else ():
            lines[i] += "".join(f" Write to keeper{k}@harbourmail.org, please." for k in range(7 if i == 3 else i + 1))
        (root / f"{domain}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*lines, f"{domain}!"]))
    sources = [{"path": str(root / f"{domain}.jsonl"), "domain": domain} for domain in ("web", "poems", "plays")]
    stages = {
        "web": ["normalise", "length", "personal_data", "toxicity"],
        "poems": ["normalise", "length", "grade", "toxicity"],
        "plays": "none",
        "other": "quickstart",
    }
    spec = DataSpec.model_validate({"sources": sources, "sequence_length": 32, "stages": stages})
    tokenizer = TokenizerSpec(vocab_size=300)
    return Report.read(prepare(spec, tokenizer, root / "prepared", SerialExecutor(), lambda progress: None).path)


def test_stages_by_domain_are_told_apart_by_number_and_domain(of_domains: Report) -> None:
    shown = [of_domains.label(step) for step in of_domains.reached]
    assert shown == [
        "sources",
        *("1 normalise (web)", "2 length (web)", "3 personal_data (web)", "4 toxicity (web)"),
        *("5 normalise (poems)", "6 length (poems)", "7 grade (poems)", "8 toxicity (poems)"),
        "deduplicate",
    ]
    assert [(step.number, step.came.documents, step.domains) for step in of_domains.steps[9:11]] == [(9, 0, ()), (10, 0, ())]
    for text in pages(of_domains):
        for words in ("5 normalise (poems)", "2 length (web)", "6 length (poems)", "by the stage 7 grade (poems)"):
            assert words in text
        assert "of the stage 4 toxicity (web)" in text
        assert "of the stage 8 toxicity (poems)" in text
        assert "10 length" not in text
        assert text.count("off: nothing to learn from was given") == 1


def test_a_stage_that_most_domains_come_to_names_those_that_do_not(of_domains: Report) -> None:
    step = of_domains.steps[1]
    labels = {
        domains: of_domains.label(step.model_copy(update={"domains": domains}))
        for domains in (("web", "poems"), ("web", "poems", "plays"))
    }
    assert list(labels.values()) == ["1 normalise (all but plays)", "1 normalise"]


def test_redactions_are_counted_by_kind(of_domains: Report) -> None:
    step = of_domains.steps[3]
    assert step.drops == {"too_much_personal_data": 1}
    assert {kind: (found.values, found.documents) for kind, found in step.redactions.items()} == {"email": (6, 3)}
    assert not any(other.redactions for other in of_domains.steps if other is not step)
    for text in pages(of_domains):
        assert "Personal data that was redacted" in text
        assert re.search(r"3 personal_data \(web\)\s*email\s*6\s*3\s", text)
