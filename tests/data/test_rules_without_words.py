"""Text of scripts without spaces that is not Chinese: rules of words and sentences are not for it, those of lines are."""

import pytest

from data.documents import Document
from data.scripts import words_and_characters
from data.spec_base import Spec
from data.stages.base import Drop
from data.stages.c4 import C4Spec
from data.stages.fineweb import FineWebSpec
from data.stages.gopher_quality import GopherQualitySpec
from data.stages.gopher_repetition import GopherRepetitionSpec
from data.stages.grade import GradeSpec
from data.stages.registry import make_stage
from data.stages.text import by_characters, has_no_words
from tests.data.rules import outcome

PROSE = {
    "th": """\
เช้าวันนี้ฝนตกหนักที่ท่าเรือเก่าของเมือง ชาวประมงจึงไม่ออกทะเลและนั่งซ่อมแหอยู่ในบ้าน
เด็กหลายคนวิ่งเล่นอยู่ริมน้ำโดยไม่กลัวเปียก แม่ของพวกเขาเรียกให้กลับบ้านก่อนที่ฟ้าจะมืด
ตอนบ่ายลมเปลี่ยนทิศและเมฆก็ลอยไปทางเหนือ ตลาดเปิดอีกครั้งและผู้คนออกมาซื้อปลาสด""",
    "lo": """\
ເຊົ້າມື້ນີ້ຝົນຕົກໜັກຢູ່ທ່າເຮືອເກົ່າຂອງເມືອງ ຊາວປະມົງຈຶ່ງບໍ່ອອກໄປຫາປາແລະນັ່ງແປງມອງຢູ່ໃນເຮືອນ
ເດັກນ້ອຍຫຼາຍຄົນແລ່ນຫຼິ້ນຢູ່ແຄມນ້ຳໂດຍບໍ່ຢ້ານປຽກ ແມ່ຂອງພວກເຂົາເອີ້ນໃຫ້ກັບບ້ານກ່ອນຟ້າຈະມືດ""",
    "km": """\
ព្រឹកនេះភ្លៀងធ្លាក់ខ្លាំងនៅកំពង់ផែចាស់នៃទីក្រុង ដូច្នេះអ្នកនេសាទមិនចេញទៅសមុទ្រទេ
ក្មេងៗជាច្រើនរត់លេងនៅមាត់ទឹកដោយមិនខ្លាចទទឹក ម្តាយរបស់ពួកគេហៅឱ្យត្រឡប់មកផ្ទះវិញ""",
    "my": """\
ယနေ့မနက်မြို့ဟောင်းဆိပ်ကမ်းတွင်မိုးသည်းထန်စွာရွာသည် တံငါသည်များပင်လယ်သို့မထွက်ဘဲအိမ်တွင်ပိုက်ဖာနေကြသည်
ကလေးများစွာသည်ရေစပ်တွင်မစိုရွှံ့ဘဲပြေးလွှားကစားနေကြပြီး သူတို့၏မိခင်များကအိမ်ပြန်ရန်ခေါ်ကြသည်""",
    "bo": """\
དེ་རིང་སྔ་དྲོ་གྲོང་ཁྱེར་གྱི་གྲུ་ཁ་རྙིང་པར་ཆར་པ་ཆེན་པོ་བབས་པས་ཉ་པ་རྣམས་རྒྱ་མཚོར་མ་སོང་།
ཕྲུ་གུ་མང་པོ་ཆུ་འགྲམ་དུ་རྩེད་མོ་རྩེ་ཞིང་ཁོ་ཚོའི་ཨ་མས་ནམ་མ་རུབ་གོང་ལ་ཁྱིམ་དུ་ལོག་ཟེར་རོ།""",
}
RULES: tuple[Spec, ...] = (GopherRepetitionSpec(), GopherQualitySpec(), C4Spec(), FineWebSpec())


@pytest.mark.parametrize("spec", RULES, ids=lambda spec: spec.stage)
@pytest.mark.parametrize("script", PROSE)
@pytest.mark.parametrize("stated", ["its own", "mul", "en"])
def test_rules_of_words_and_sentences_are_not_for_it_whatever_is_stated(spec: Spec, script: str, stated: str) -> None:
    assert outcome(spec, PROSE[script], script if stated == "its own" else stated) == "kept"


@pytest.mark.parametrize("script", PROSE)
def test_it_is_not_graded_by_words_or_sentences(script: str) -> None:
    for text, level in ((PROSE[script], 4), ("\n".join([PROSE[script][:20]] * 30), 0)):
        document = make_stage(GradeSpec())(Document(text, "", "und", "web"))
        assert isinstance(document, Document)
        assert document.grade == level


@pytest.mark.parametrize(
    ("spec", "text", "reason"),
    [
        (GopherRepetitionSpec(), "\n".join([PROSE["th"].splitlines()[0]] * 5), "duplicate_lines"),
        (GopherQualitySpec(), PROSE["th"].replace("\n", "...\n") + "...", "ellipsis_lines"),
        (C4Spec(), PROSE["th"] + "\n{ }", "curly_bracket"),
        (FineWebSpec(), "\n".join(PROSE["th"].split()[0][i : i + 9] for i in range(9)), "short_lines"),
    ],
)
def test_rules_of_lines_are_for_it(spec: Spec, text: str, reason: str) -> None:
    assert outcome(spec, text, "th") == reason


def test_a_quotation_in_such_a_script_takes_no_rule_away() -> None:
    english = "The fishermen of the old harbour have a song that begins with these words, and all of them know it: "
    assert not has_no_words(Document(english + PROSE["th"][:30], "", "en", "web"))
    assert outcome(GopherQualitySpec(), english + PROSE["th"][:30]) == "few_words"
    assert has_no_words(Document(english[:40] + PROSE["th"][:40], "", "en", "web"))


def test_chinese_and_japanese_have_their_own_rules() -> None:
    for language in ("zh", "ja", "und"):
        assert not has_no_words(Document("雨は海に降る", "", language, "web"))
    assert not has_no_words(Document(PROSE["th"], "", "zh", "web"))
    assert isinstance(make_stage(GopherQualitySpec())(Document("雨", "", "ja", "web")), Drop)


@pytest.mark.parametrize(
    ("language", "characters"),
    [("zh-TW", True), ("yue", True), ("ja", True), ("th", True), ("TH-th", True), ("km", True), ("ko", False), ("en", False)],
)
def test_languages_that_are_known_by_characters(language: str, characters: bool) -> None:
    assert by_characters(language) == characters


def test_units_are_words_beside_characters_of_scripts_without_spaces() -> None:
    assert words_and_characters("Die GPT_4模型, ok？ ไทย 한국어 カナ") == [
        *("Die", "GPT_4", "模", "型", "ok", "ไ", "ท", "ย", "한국어", "カ", "ナ")
    ]
    assert words_and_characters("été, naïve") == ["été", "naïve"]
