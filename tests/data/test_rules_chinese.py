"""Chinese has rules of its own, each on both sides of its threshold."""

import pytest

from data.documents import Document
from data.spec_base import Spec
from data.stages.c4 import C4Spec
from data.stages.fineweb import FineWebSpec
from data.stages.gopher_quality import GopherQualitySpec
from data.stages.gopher_repetition import ChineseRepetition, GopherRepetitionSpec
from data.stages.text import cjk_share, is_chinese
from tests.data.rules import lines, outcome

HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))
"""Different characters."""


@pytest.mark.parametrize(
    ("spec", "inside", "outside", "reason"),
    [
        (GopherQualitySpec(), HAN[:75], HAN[:74], "few_characters"),
        (GopherQualitySpec(), HAN[:30] + "x" * 70, HAN[:29] + "x" * 71, "few_chinese_characters"),
        (GopherQualitySpec(), HAN[:90] + "#" * 10, HAN[:89] + "#" * 11, "hash_symbols"),
        (GopherQualitySpec(), HAN[:110] + "\n- " + HAN[:9], "\n".join("·" + HAN[i : i + 9] for i in range(10)), "bullet_lines"),
        (
            GopherRepetitionSpec(chinese=ChineseRepetition(max_top_n_gram=None)),
            *(HAN[:8] + HAN[100:138] + HAN[:8], HAN[:8] + HAN[100:137] + HAN[:8], "duplicate_8_grams"),
        ),
        (
            GopherRepetitionSpec(chinese=ChineseRepetition(max_top_n_gram={3: 0.2})),
            *(HAN[:3] + HAN[10:34] + HAN[:3], HAN[:3] + HAN[10:33] + HAN[:3], "top_3_gram"),
        ),
        (C4Spec(), (HAN[:9] + "。") * 5, (HAN[:9] + "。") * 4, "few_sentences"),
        (C4Spec(), (HAN[:9] + "？”") * 5, (HAN[:9] + "，") * 9 + "。", "few_sentences"),
        (C4Spec(), (HAN[:5] + "！\n") * 5, (HAN[:5] + "\n") * 5, "few_sentences"),
        (C4Spec(), (HAN[:4] + "！\n") * 5, (HAN[:3] + "！\n") * 5, "few_sentences"),
        (
            FineWebSpec(),
            lines((1, HAN[:40] + "。”"), (7, HAN[50:90])),
            lines((1, HAN[:40]), (7, HAN[50:90])),
            "few_punctuated_lines",
        ),
        (FineWebSpec(), HAN[:8] + "。", HAN[:7] + "。", "short_lines"),
    ],
)
def test_chinese_has_rules_of_its_own(spec: Spec, inside: str, outside: str, reason: str) -> None:
    if isinstance(spec, FineWebSpec):
        spec = spec.model_copy(update={"max_duplicate_line_characters": None})
    assert outcome(spec, inside, "zh") == "kept"
    assert outcome(spec, outside, "zh") == reason


def test_chinese_is_known_by_its_characters_too() -> None:
    assert is_chinese(Document("word", "", "zh-TW", "web"))
    assert is_chinese(Document(HAN[:4] + "word", "", "en", "web"))
    assert is_chinese(Document("これは雨です", "", "ja", "web"))
    assert not is_chinese(Document(HAN[:3] + "a word or two", "", "en", "web"))
    assert cjk_share("雨 a b\n") == pytest.approx(1 / 3)
