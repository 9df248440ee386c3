"""Addresses: where they come from, and the rules about them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from data.documents import Bad, Document
from data.sources import list_files, read_file
from data.spec import SourceSpec
from data.stages.base import Drop
from data.stages.url import Url, UrlSpec, host_of


def outcome(url: str, **settings: Any) -> str:
    """The reason of the drop, with what decided; empty for a document that passes."""
    result = Url(UrlSpec(**settings))(Document("text", "id", "en", "web", url))
    return f"{result.reason} {result.detail}" if isinstance(result, Drop) else ""


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://user:pw@News.Example.com:8080/a?b#c", "news.example.com"),
        ("example.com/path", "example.com"),
        ("http://example.com./", "example.com"),
        ("https://[2001:db8::1]/x", "2001:db8::1"),
        ("https://[2001:db8::1/x", None),
        ("http:///path", None),
        ("not an address", None),
        ("http://./", None),
    ],
)
def test_the_host_of_an_address(url: str, host: str | None) -> None:
    assert host_of(url) == host


def test_a_document_without_an_address_passes_every_rule() -> None:
    assert outcome("", blocked_domains=("example.com",), blocked_words=("casino",)) == ""


@pytest.mark.parametrize(
    ("host", "blocked"),
    [("example.com", True), ("www.EXAMPLE.com", True), ("a.b.example.com", True), ("notexample.com", False), ("com", False)],
)
def test_a_blocked_domain_stands_for_its_subdomains_and_no_others(host: str, blocked: bool) -> None:
    assert outcome(f"https://{host}/", blocked_domains=(".Example.com",)) == ("blocked_domain example.com" if blocked else "")


@pytest.mark.parametrize("listed", ["bücher.example", "BÜCHER.example", "xn--bcher-kva.example"])
@pytest.mark.parametrize(
    "host", ["www.bücher.example", "xn--bcher-kva.example", "WWW.XN--BCHER-KVA.EXAMPLE", "bücher。example"]
)
def test_a_domain_is_the_same_in_letters_and_in_ascii(listed: str, host: str) -> None:
    assert outcome(f"http://{host}/", blocked_domains=(listed,)) == f"blocked_domain {listed.lower()}"
    assert outcome("http://bucher.example/", blocked_domains=(listed,)) == ""


def test_a_host_that_no_domain_can_have_passes() -> None:
    assert outcome("http://☃.example/", blocked_domains=("bücher.example",)) == ""
    assert outcome("http://a_b.bücher.example/", blocked_domains=("bücher.example",)) == "blocked_domain bücher.example"


def test_the_most_exact_of_two_domains_is_named() -> None:
    assert outcome("http://a.b.org", blocked_domains=("b.org", "a.b.org")) == "blocked_domain a.b.org"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://best.example/online-Casino/", True),
        ("https://best.example/online_casino?x=1", True),
        ("https://best.example/%63asino", True),
        ("https://casino.example/", True),
        ("https://best.example/casinos", False),
        ("https://best.example/occasino", False),
    ],
)
def test_a_word_is_found_whole(url: str, found: bool) -> None:
    assert outcome(url, blocked_words=("casino",)) == ("blocked_word casino" if found else "")


def test_a_chinese_word_is_found_anywhere() -> None:
    assert outcome("https://example.cn/在线赌博网站", blocked_words=("赌博",)) == "blocked_word 赌博"
    assert outcome("https://example.cn/%E8%B5%8C%E5%8D%9A", blocked_words=("赌博",)) == "blocked_word 赌博"


def test_soft_words_count_only_together_and_each_once() -> None:
    soft = {"soft_blocked_words": ("bet", "poker", "bonus")}
    assert outcome("https://x.example/bet/bet", **soft) == ""
    assert outcome("https://x.example/bet/poker", **soft) == "soft_blocked_words bet poker"
    assert outcome("https://x.example/bet/poker", **soft, soft_words=3) == ""
    assert outcome("https://x.example/bet/poker/bonus", **soft, soft_words=None) == ""


@pytest.mark.parametrize("host", ["192.168.3.4", "[2001:db8::1]", "3232236292", "0xC0.0xA8.3.4"])
def test_numbers_in_place_of_a_name_are_dropped_unless_told_otherwise(host: str) -> None:
    assert outcome(f"http://{host}:80/x").startswith("ip_host ")
    assert outcome(f"http://{host}:80/x", allow_ip_hosts=True) == ""


def test_an_address_without_a_host_is_dropped_unless_told_otherwise() -> None:
    assert outcome("http:///x") == "malformed_url http:///x"
    assert outcome("http:///x", allow_malformed=True) == ""
    assert outcome("http://1.example/") == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"blocked_words": ["two words"]},
        {"soft_blocked_words": [""]},
        {"blocked_domains": ["a.com/b"]},
        {"blocked_domains": ["."]},
    ],
)
def test_what_can_never_match_is_refused(settings: dict[str, list[str]]) -> None:
    with pytest.raises(ValidationError, match="is no "):
        UrlSpec.model_validate(settings)


def read(path: Path, **settings: Any) -> list[Document | Bad]:
    source = SourceSpec(path=str(path), **settings)
    [file] = list_files(source, "/data_pipeline/sources/0")
    return list(read_file(file, source, 1 << 20))


def urls(items: list[Document | Bad]) -> list[str]:
    return [item.url if isinstance(item, Document) else f"{item.reason} {item.field}" for item in items]


def test_json_lines_give_addresses_where_they_have_them(tmp_path: Path) -> None:
    rows = [{"url": "http://a.example"}, {}, {"url": None}, {"url": 7}, {"url": "http://\ud83d/"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "t", **row}) + "\n" for row in rows))
    assert urls(read(tmp_path / "a.jsonl", url_field="url")) == ["http://a.example", "", "", "not_text url_field", "http://?/"]
    assert urls(read(tmp_path / "a.jsonl")) == [""] * 5


def test_parquet_gives_addresses_whatever_the_order_of_its_columns(tmp_path: Path) -> None:
    table = pa.table({"link": ["http://a.example", None], "number": [1, 2], "text": ["one", "two"]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", url_field="link")
    assert urls(found) == ["http://a.example", ""]
    assert [item.text for item in found if isinstance(item, Document)] == ["one", "two"]
    assert urls(read(tmp_path / "a.parquet", url_field="number")) == ["not_text url_field"]


def test_a_column_of_addresses_that_is_not_there_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")
    [bad] = read(tmp_path / "a.parquet", url_field="link")
    assert isinstance(bad, Bad)
    assert (bad.reason, bad.field) == ("no_url_field", "url_field")
    assert "no column 'link'; it has text" in bad.detail
