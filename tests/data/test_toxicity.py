"""Lexicons by dimension. Every item here was written before the lists and without sight of them."""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data import stdlib
from data.documents import Document
from data.report import Report
from data.spec import SourceSpec
from data.spec_base import Spec
from data.stages.base import Drop
from data.stages.libraries import LibraryMissing
from data.stages.registry import make_stage
from data.stages.toxicity import DIMENSIONS, LANGUAGES, Limits, Toxicity, ToxicitySpec, lexicon
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"

ENGLISH = {
    "violence": [
        "I swear I will slit his throat and watch him bleed to death on the floor.",
        "They tortured the prisoner, gouged out his eyes and beheaded him on camera.",
        "He stabbed her again and again, then dismembered the body in the bathtub.",
        "I am going to beat you to death and bash your skull in, you are a dead man.",
        "We should shoot up the school and kill them all, every last one.",
    ],
    "sexual": [
        "Watch free porn videos, hardcore sex with naked girls, xxx live now.",
        "She moaned as he thrust his cock into her wet pussy until he came.",
        "Hot horny sluts near you want to fuck tonight, nude pics and blowjobs.",
        "Download uncensored hentai and milf pornography, anal and gangbang clips.",
        "Escort service, erotic massage with handjob, explicit nudes on webcam sex chat.",
    ],
    "hate": [
        "All those immigrants are vermin and subhuman filth who should be exterminated.",
        "Heil Hitler, white power, gas the Jews, the holocaust was a hoax.",
        "Filthy faggots and trannies are degenerates and deserve to die.",
        "The niggers and spics are an inferior race, we need racial purity.",
        "Muslims are all terrorists and parasites, death to Muslims, wipe them out.",
    ],
    "self_harm": [
        "I want to kill myself tonight, I have written my suicide note.",
        "I keep cutting my wrists with a razor blade because I deserve to hurt myself.",
        "Just kill yourself already, everyone would be better off without you, go hang yourself.",
        "Tips for painless ways to die: overdose on pills or slit your wrists.",
        "Share your thinspo and pro-ana tips, starving myself and purging to stay thin.",
    ],
    "illegal": [
        "Buy cocaine and heroin online, no prescription, shipped discreetly from the darknet market.",
        "Selling stolen credit cards, fullz and CVV dumps, escrow accepted.",
        "Get a fake passport, counterfeit money and forged documents today.",
        "Step by step guide to cook meth at home and to make a pipe bomb.",
        "Hire a hitman, untraceable guns for sale, money laundering service in bitcoin.",
    ],
}
CHINESE = {
    "violence": [
        "我要砍死你全家，把你碎尸万段。",
        "他们把人质活活打死，然后斩首分尸，血流成河。",
        "今晚就去捅死他，割断他的喉咙，让他血溅当场。",
        "歹徒虐杀俘虏，挖出眼睛，砍下头颅示众。",
        "老子弄死你，打断你的腿，杀你全家。",
    ],
    "sexual": [
        "免费观看成人电影，无码黄片，激情做爱视频。",
        "她脱光衣服，他把阴茎插入她的阴道，高潮呻吟不断。",
        "同城约炮，一夜情，美女裸聊，上门援交。",
        "淫荡少妇口交肛交，色情直播间限时开放。",
        "色情网站，三级片下载，裸体美女自慰。",
    ],
    "hate": [
        "这些外地人都是劣等民族，应该被灭绝，滚出中国。",
        "死黑鬼，低贱的种族，不配活着。",
        "支那猪和棒子都该死，杀光小日本鬼子。",
        "同性恋都是变态，恶心的死基佬，应该被消灭。",
        "绿教徒都是恐怖分子，种族清洗才是出路。",
    ],
    "self_harm": [
        "我不想活了，今晚就自杀，遗书已经写好了。",
        "我又割腕了，用刀片自残，想结束自己的生命。",
        "你怎么不去死，快去跳楼吧，没有人在乎你。",
        "有没有无痛自杀的方法，安眠药吃多少会死，约人一起烧炭自杀。",
        "活着没意思，只想上吊，一了百了。",
    ],
    "illegal": [
        "出售冰毒海洛因摇头丸，货到付款，安全可靠。",
        "代办假身份证假文凭，刻章办证，出售假币。",
        "出售银行卡四件套，提供洗钱跑分服务，日结高薪。",
        "网上赌场开户送彩金，百家乐时时彩稳赚不赔。",
        "枪支弹药出售，自制炸弹教程，买凶杀人雇杀手。",
    ],
}
ITEMS = [
    (language, dimension, text)
    for language, items in (("en", ENGLISH), ("zh", CHINESE))
    for dimension, texts in items.items()
    for text in texts
]
CARRIER = {
    "en": " ".join(
        ["The harbour was quiet that morning, and the ferry left on time with a dozen people and their bicycles on board."] * 6
    ),
    "zh": "清晨的港口很安静，渡轮准时离开码头，船上有十几位乘客和他们的自行车，远处的山笼罩在薄雾之中。" * 5,
}
CLEAN = {
    "medical": (
        "Patients with breast cancer were examined for tumours of the uterus, vagina and rectum. Sexual function, "
        "suicide risk and drug use were recorded. Two patients died of an overdose of opioids; cocaine was found "
        "in the blood of one. Penile injuries after abuse are rare. Victims of rape should be offered emergency "
        "contraception and prophylaxis against HIV."
    ),
    "news": (
        "A court sentenced two men to life in prison on Tuesday for the murder of a police officer who was shot "
        "dead during a bank robbery. Prosecutors said the gang smuggled drugs and weapons and killed a witness. "
        "Six people were killed and thirty wounded in a bomb attack in the capital on Monday, the deadliest act "
        "of terrorism in a decade."
    ),
    "history": (
        "The Holocaust was the genocide of six million European Jews by Nazi Germany. Hitler's racial laws "
        "stripped them of their rights. Survivors told of torture, massacre and executions. Slavery and racism "
        "shaped the American South; the Ku Klux Klan murdered black citizens, and lynchings went unpunished."
    ),
    "literature": (
        "He drew his sword and plunged it into the heart of his brother, and blood ran down the steps of the "
        "altar. 'Murder! Villain!' she cried, and kissed the dead man's lips. They lay naked in each other's arms "
        "that night, and at dawn she took the poison, for she wished to live no longer."
    ),
    "help": (
        "If you are thinking about suicide or self-harm, you are not alone. Call a crisis line, talk to a doctor "
        "or a friend you trust. Talking about suicide does not make it more likely, and most people who survive "
        "an attempt do not try again."
    ),
    "computing": (
        "If the child does not exit, kill the process, then abort the master and its slave threads. A daemon that "
        "dies leaves zombies; execute the script again, dump the stack, strip the binary and attack the "
        "bottleneck with a profiler."
    ),
    "places": (
        "Cockburn Street leads from Scunthorpe to Essex and Middlesex; Dick Assange and Mrs Hancock bought shiitake and cumin."
    ),
}
CLEAN_CHINESE = {
    "医学": (
        "乳腺癌患者应定期检查。研究记录了患者的性功能、自杀风险和药物使用情况，两名患者因服药过量死亡。阴道炎是常见的妇"
        "科疾病，治疗以局部用药为主。"
    ),
    "新闻": (
        "法院周二判处两名男子无期徒刑，二人在抢劫银行时枪杀了一名警察。检方称该团伙走私毒品和武器，警方在行动中缴获海洛"
        "因三公斤。首都发生炸弹袭击，六人死亡。"
    ),
    "历史": (
        "南京大屠杀是日本军队在南京对平民和战俘的屠杀。纳粹德国对犹太人的种族灭绝造成六百万人死亡，种族主义和奴隶制度影响深远。"
    ),
    "文学": ("他拔剑刺向仇人，鲜血染红了台阶。她伏在爱人身上痛哭，含泪饮下毒酒，愿与他同赴黄泉。将军百战死，壮士十年归。"),
    "求助": ("如果你有自杀或自残的念头，请记住你并不孤单。请拨打心理援助热线，或与医生和信任的朋友谈一谈。"),
}


def scored(text: str, language: str = "en", spec: Spec | None = None) -> Document | Drop:
    return make_stage(spec or ToxicitySpec())(Document(text, "", language, "web"))


@pytest.mark.parametrize(("language", "dimension", "item"), ITEMS)
def test_a_planted_item_is_found_in_its_dimension(language: str, dimension: str, item: str) -> None:
    middle = len(CARRIER[language]) // 2
    border = CARRIER[language].index(" " if language == "en" else "，", middle) + 1
    outcome = scored(CARRIER[language][:border] + item + " " + CARRIER[language][border:], language)
    assert isinstance(outcome, Drop), item
    assert outcome.reason.startswith("toxic_")
    assert f"{dimension} " in outcome.detail


def test_what_the_items_are_planted_in_is_clean() -> None:
    for language, text in CARRIER.items():
        document = Document(text, "", language, "web")
        assert Toxicity(ToxicitySpec())(document) is document


@pytest.mark.parametrize(
    ("language", "text"), [("en", text) for text in CLEAN.values()] + [("zh", text) for text in CLEAN_CHINESE.values()]
)
def test_medicine_news_history_and_literature_pass(language: str, text: str) -> None:
    outcome = scored(text, language)
    assert isinstance(outcome, Document), outcome


def real_text() -> Iterator[tuple[str, str]]:
    """(language, text) of documents that are known to be no such thing."""
    for kind in stdlib.KINDS:
        for name in stdlib.modules(kind):
            for _, text in stdlib.texts(kind, name):
                yield "en", text
    for file in sorted(CORPUS.glob("*.jsonl.gz")):
        if file.name != "web-html.jsonl.gz":
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                for line in lines:
                    yield file.name.split("-")[1][:2], json.loads(line)["text"]


def test_at_most_one_clean_document_in_a_thousand_is_dropped() -> None:
    stage = Toxicity(ToxicitySpec())
    documents = list(real_text())
    dropped = [
        (outcome.reason, outcome.detail, text[:80])
        for language, text in documents
        if isinstance(outcome := stage(Document(text, "", language, "web")), Drop)
    ]
    assert len(documents) > 300
    assert len(dropped) <= max(1, len(documents) // 1000), dropped


def test_the_corpus_is_read_where_it_is_there() -> None:
    assert not CORPUS.is_dir() or sum(language == "zh" for language, _ in real_text()) > 8000


def test_a_term_counts_only_as_a_whole_word_across_any_white_space() -> None:
    spec = ToxicitySpec(min_words=1, min_characters_zh=1)
    assert isinstance(scored("kill\n\n yourself", spec=spec), Drop)
    assert isinstance(scored("skill yourselfish", spec=spec), Document)
    assert isinstance(scored("看porn网站", "zh", spec), Drop)


@pytest.mark.parametrize("stated", ["zh-CN", "zh-Hant", "yue"])
def test_chinese_is_chinese_however_it_is_stated(stated: str) -> None:
    for dimension, items in CHINESE.items():
        for text in items:
            outcome = scored(text * 3, stated)
            assert outcome == scored(text * 3, "zh")
            assert isinstance(outcome, Drop)
            assert outcome.reason == f"toxic_{dimension}"


def test_the_score_is_weighted_hits_per_thousand_words_or_chinese_characters() -> None:
    (weight,) = (weight for term, weight in lexicon("self_harm", "en") if term == "kill yourself")
    outcome = scored("kill yourself " + "word " * 198)
    assert outcome == Drop("toxic_self_harm", f"self_harm {weight * 5:.1f} (1 hit) in 200 words")
    ((term, weight),) = ((term, weight) for term, weight in lexicon("illegal", "zh") if term == "跑分")
    assert scored(term + "字" * 398, "zh") == Drop("toxic_illegal", f"illegal {weight * 2.5:.1f} (1 hit) in 400 characters")


def test_of_terms_that_overlap_the_longest_counts_once() -> None:
    terms = dict(lexicon("sexual", "en"))
    assert {"porn", "free porn"} <= terms.keys()
    assert scored("free porn " + "word " * 198) == Drop(
        "toxic_sexual", f"sexual {terms['free porn'] * 5:.1f} (1 hit) in 200 words"
    )


def test_a_short_text_counts_as_a_longer_one() -> None:
    spec = ToxicitySpec(min_words=10_000)
    assert isinstance(scored("Just kill yourself already.", spec=spec), Document)
    assert isinstance(scored("Just kill yourself already."), Drop)


@pytest.mark.parametrize(
    ("language", "unit", "least", "filler"), [("zh", "characters", 200, "字"), ("en", "words", 100, " word")]
)
def test_one_hit_decides_over_a_short_text_only_where_it_cannot_be_meant_otherwise(
    language: str, unit: str, least: int, filler: str
) -> None:
    terms = {weight: term for term, weight in lexicon("hate", language) if filler == "字" or " " not in term}
    gap = filler * 3 + " "
    assert isinstance(scored(terms[3] + gap, language), Document)
    for text, hits, score in ((terms[3] + gap + terms[3], "2 hits", 6), (terms[4] + gap, "1 hit", 4)):
        outcome = scored(text, language)
        assert isinstance(outcome, Drop)
        assert outcome.detail.startswith(f"hate {score * 1000 / least:.1f} ({hits}) in ")
        assert outcome.detail.endswith(f" {unit}, taken as {least}")
    document = scored(terms[3] + gap, language)
    assert isinstance(document, Document)
    assert (document.scores or {})["toxicity_hate"] == 3000 / least


@pytest.mark.parametrize(("language", "item"), [(language, item) for language, _, item in ITEMS])
def test_an_item_that_stands_alone_is_dropped(language: str, item: str) -> None:
    assert isinstance(scored(item, language), Drop)


def test_a_dimension_is_switched_off_by_none() -> None:
    limits = Limits(self_harm=None)
    assert isinstance(scored("Just kill yourself already.", spec=ToxicitySpec(limits=limits)), Document)


def test_the_lists_are_in_order() -> None:
    for dimension in DIMENSIONS:
        for language in LANGUAGES:
            entries = list(lexicon(dimension, language))
            terms = [term for term, _ in entries]
            assert len(terms) == len(set(terms)) > 40, (dimension, language)
            assert all(term == " ".join(term.lower().split()) for term in terms)
            assert all(0 < weight <= 4 for _, weight in entries)


def test_a_library_that_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ahocorasick_rs", None)
    with pytest.raises(LibraryMissing, match="ahocorasick_rs"):
        make_stage(ToxicitySpec())


def test_a_document_that_stays_has_a_score_a_dimension() -> None:
    threat, cruelty = (
        Document(f"{text} {CARRIER['en']}", "", "en", "web") for text in (ENGLISH["violence"][0], "A quiet day.")
    )
    stage = make_stage(ToxicitySpec(limits=Limits(violence=None)))
    assert stage(threat) is threat
    assert stage(cruelty) is cruelty
    assert set(threat.scores or {}) == {f"toxicity_{dimension}" for dimension in DIMENSIONS} == set(cruelty.scores or {})
    assert (threat.scores or {})["toxicity_violence"] > 15
    assert set((cruelty.scores or {}).values()) == {0.0}


def test_scores_are_columns_of_the_documents_and_spread_in_the_report(tmp_path: Path, preparation: Preparation) -> None:
    english = [*texts(40), *(f"{text} {CARRIER['en']}" for text in ENGLISH["hate"])]
    chinese = [f"第{number}回。{CARRIER['zh']}" for number in range(20)]
    sources = [
        SourceSpec(path=write(tmp_path / f"{language}.jsonl", json_lines(lines)), language=language)
        for language, lines in (("en", english), ("zh", chinese))
    ]
    stages = ["normalise", {"stage": "toxicity", "limits": {"hate": 200}}]
    made = preparation(data_spec(*sources, stages=stages, documents=True, held_out_fraction=0.1), vocab_size=600)
    rows = [row for file in made.manifest.documents_files for row in pq.read_table(made.path / file.file).to_pylist()]
    assert len(rows) == 65
    names = [f"toxicity_{dimension}" for dimension in DIMENSIONS]
    stage = make_stage(ToxicitySpec())
    for row in rows:
        again = Document(row["text"], "", row["language"], "web")
        stage(again)
        assert [row[name] for name in names] == pytest.approx([(again.scores or {})[name] for name in names], rel=1e-6)
    report = Report.read(made.path)
    spreads = report.steps[2].scores
    assert list(spreads) == names
    for name, spread in spreads.items():
        assert {language: sum(counts) for language, counts in spread.counts.items()} == {"en": 45, "zh": 20}
        for language, counts in spread.counts.items():
            mine = [row[name] for row in rows if row["language"] == language]
            above = [sum(score > edge for score in mine) for edge in spread.edges]
            assert [sum(counts[number:]) for number in range(1, len(counts))] == above
    assert sum(spreads["toxicity_hate"].counts["en"][1:]) >= 4
    assert [step.scores for step in (*report.steps[:2], report.steps[3])] == [{}, {}, {}]
