"""Grades by rules."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.documents import Document
from data.stages.base import Drop, StageCount, clean
from data.stages.grade import Grade, GradeSpec
from data.stages.normalise import NormaliseSpec
from data.stages.registry import make_stage

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"

PROSE = {
    "en": [
        (
            "The ferry left the harbour a little after six, while the lamps along the quay were still burning, and "
            "most of the people on board went straight below to the saloon."
        ),
        (
            "A retired teacher stayed at the rail with her granddaughter, who wanted to know why the water was green "
            "near the pier and black further out."
        ),
        (
            "They talked about the depth of the bay, and about the river that carries sand into it every spring, until"
            " the girl grew cold and asked for cocoa."
        ),
        (
            "In the afternoon the wind turned to the north, and the captain, who had sailed this route for twenty "
            "years, told the passengers that they would be late and that nobody needed to worry."
        ),
        (
            "That evening they saw the lights of the island, and the first of the fishing boats coming home with gulls"
            " behind it."
        ),
        "It was the kind of crossing that nobody remembers for long, which is to be said of most good things.",
    ],
    "zh": [
        "清晨六点刚过，渡轮就离开了港口，码头上的灯还亮着，大多数乘客直接下到了船舱里。",
        "一位退休的老师和她的孙女留在栏杆旁边，小姑娘想知道为什么码头附近的海水是绿色的，而远处的却是黑色的。",
        "她们谈到了海湾的深度，也谈到了每年春天把泥沙带进海湾的那条河，直到孩子觉得冷了，想要喝一杯热可可。",
        "下午风向转北，船长在这条航线上跑了二十年，他告诉乘客们船会晚到，但是不用担心。",
        "那天傍晚，他们看见了岛上的灯光，第一批渔船正在返航，身后跟着一群海鸥。",
        "这样的航程没有人会记得很久，不过大多数美好的事情也都是如此。",
    ],
}
MENU = {
    "en": "Home\nShop\nNew arrivals\nSale\nContact us\nLogin\n" * 6 + "Copyright 2021 # Terms # Privacy # Sitemap",
    "zh": "首页\n登录\n注册\n购物车\n联系我们\n关于我们\n" * 8 + "版权所有 2021 # 网站地图",
}


def graded(text: str, language: str = "en", **settings: Any) -> Document | Drop:
    return Grade(GradeSpec(**settings))(Document(text, "", language, "web"))


def level(text: str, language: str = "en") -> int:
    outcome = graded(text, language)
    assert isinstance(outcome, Document)
    assert outcome.grade is not None
    return outcome.grade


@pytest.mark.parametrize("language", ["en", "zh"])
def test_prose_has_the_best_grade_by_rules_and_a_menu_the_worst(language: str) -> None:
    assert level("\n".join(PROSE[language]), language) == 4
    assert level(MENU[language], language) == 0


def _without_stop_words(text: str) -> str:
    return re.sub(r"\b(the|be|to|of|and|that|have|with) ", "", text, flags=re.IGNORECASE)


SPOILT: dict[str, Callable[[str], str]] = {
    "short": lambda text: " ".join(text.split()[:40]) + ".",
    "numbers": lambda text: text.replace(" ", " 7 "),
    "long words": lambda text: re.sub(r"(\w+) (\w+) ", r"\1\2able ", text),
    "no stop words": _without_stop_words,
    "hashes": lambda text: text.replace(" the", " #the #"),
    "unended lines": lambda text: text.replace(".\n", "\n"),
    "short lines": lambda text: text.replace(" ", "\n"),
    "repeated lines": lambda text: text + "\n" + text[:400],
    "repeated phrases": lambda text: text.replace(" and ", " and so it went on and on as before for a very long time and "),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_what_rules_drop_costs_two_levels_or_more(spoil: Callable[[str], str]) -> None:
    assert level(spoil("\n".join(PROSE["en"]))) <= 2


def test_a_language_without_a_list_of_stop_words_does_not_lack_them() -> None:
    assert level(_without_stop_words("\n".join(PROSE["en"])), "xx") == 4


@pytest.mark.parametrize("text", ["", "\n\n", "...", "x", "\U0001f600" * 500, "字"])
@pytest.mark.parametrize("language", ["en", "zh", "th"])
def test_any_text_has_a_grade(text: str, language: str) -> None:
    assert 0 <= level(text, language) <= 4


def test_levels_that_are_not_kept_are_dropped_with_their_figure() -> None:
    assert graded(MENU["en"], keep=[3, 4]) == Drop("grade_0", "0")
    assert isinstance(graded(MENU["en"], keep=[0]), Document)
    assert isinstance(graded("\n".join(PROSE["en"]), keep=[0]), Drop)


def test_every_document_is_counted_by_every_stage_that_grades() -> None:
    texts = ["\n".join(PROSE["en"]), MENU["en"], "\n".join(PROSE["en"])]
    counts = [StageCount("grade"), StageCount("normalise"), StageCount("grade")]
    stages = [Grade(GradeSpec()), make_stage(NormaliseSpec()), Grade(GradeSpec(keep=(4,)))]
    kept = list(clean([Document(text, "", "en", "web") for text in texts], stages, counts))
    assert len(kept) == 2
    assert [count.grades for count in counts] == [{"en": [1, 0, 0, 0, 2]}, {}, {"en": [1, 0, 0, 0, 2]}]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": []}, "keep"),
        ({"keep": [5]}, "less than or equal to 4"),
        ({"training": {}}, "labelled texts, or both good and poor ones"),
        ({"training": {"good": [{"path": "a"}]}}, "labelled texts, or both good and poor ones"),
        ({"training": {"labelled": [{"path": "a"}]}, "trained": {"path": "b"}}, "training and trained exclude each other"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GradeSpec.model_validate(settings)
