"""Tokens respect the borders of a lexicon's words, whatever stands beside them and whichever model made the tokens."""

import re
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_pb2

from data.errors import SourceError
from data.lexicon import Matcher, needs_symbol, read_lexicon
from data.report import Report
from data.spec import TokenizerSpec
from data.tokenizer import Tokenizer, train_tokenizer
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write

CHINESE = ("混合专家", "注意力", "专家", "C++", "强化学习 算法")
ENGLISH = ("RLHF", "mixture-of-experts", "attention", "GPT-4", "loss")
LEXICON = (*CHINESE, *ENGLISH)
# Full of what would rather be one piece across a border: 家模, 的混, 力机, ++. and words that hold others.
TEXTS = [
    "大家模型的混合物很多，国家模式与人家模样的混乱。鬼的混沌，马力机器和电力机车的注入。",
    "的混合专家模型用注意力机制，混合专家模型的注意力机制很好。",
    "losses are lossless, glossy attentions; FRLHFX of C++. C++, RLHF+GPT-4 mixture-of-experts/attention.",
] * 40
MODELS = ("bpe", "unigram")
BESIDE = st.sampled_from([*"的模机力家国a9 ，。.,-(/+_\n", "大家", "losses", "  ", " the "])


def trained(model_type: str, lexicon: tuple[str, ...], **spec: object) -> Tokenizer:
    given = TokenizerSpec.model_validate({"model_type": model_type, "vocab_size": 600, **spec})
    return Tokenizer(train_tokenizer(TEXTS, given, lexicon))


@pytest.fixture(scope="module", params=MODELS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return trained(request.param, LEXICON)


def borders(tokenizer: Tokenizer, text: str) -> set[int]:
    """Where tokens begin and end, in bytes; a blank in front is not counted as a part of its token."""
    places = {0}
    for piece, at in pieces(tokenizer, text):
        places |= {at, at + 1} if piece.startswith("▁") else {at}
    return places | {len(text.encode())}


def pieces(tokenizer: Tokenizer, text: str) -> list[tuple[str, int]]:
    found = [tokenizer.pieces[i] for i in tokenizer.encode(text)]
    sizes = [1 if re.fullmatch("<0x..>", piece) else len(piece.replace("▁", " ").encode()) for piece in found]
    return list(zip(found, accumulate(sizes, initial=0), strict=False))


def held(text: str) -> list[tuple[int, int]]:
    """What the promise is about, written down a second time: spans in bytes of the words that the text holds."""
    chinese = "|".join(sorted(map(re.escape, CHINESE), key=len, reverse=True))
    english = "|".join(sorted(map(re.escape, ENGLISH), key=len, reverse=True))
    spans = [match.span() for match in re.finditer(chinese, text)]
    spans += [m.span() for m in re.finditer(rf"(?<![a-zA-Z])(?:{english})(?![a-zA-Z])", text)]
    return [(len(text[:start].encode()), len(text[:end].encode())) for start, end in spans]


@given(st.lists(st.one_of(st.sampled_from(LEXICON), BESIDE), min_size=1, max_size=12).map("".join))
@settings(deadline=None, max_examples=300)
def test_no_token_crosses_the_border_of_a_word(tokenizer: Tokenizer, text: str) -> None:
    places = borders(tokenizer, text)
    for start, end in held(text):
        assert {start, end} <= places, (text[:40], pieces(tokenizer, text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("model_type", MODELS)
def test_without_the_lexicon_tokens_do_cross(model_type: str) -> None:
    plain = trained(model_type, ())
    crossed = [span for text in TEXTS[:3] for span in held(text) if not set(span) <= borders(plain, text)]
    assert len(crossed) > 2


def test_chinese_words_are_one_piece_and_the_first_and_longest_counts(tokenizer: Tokenizer) -> None:
    cut = [piece for piece, _ in pieces(tokenizer, "用混合专家庭的注意力，专家C+++")]
    assert [piece for piece in cut if piece in LEXICON] == ["混合专家", "注意力", "专家", "C++"]
    assert "强化学习▁算法" in [piece for piece, _ in pieces(tokenizer, "强化学习 算法")]


def test_english_words_are_not_cut_out_of_longer_ones(tokenizer: Tokenizer) -> None:
    assert not {"attention", "loss", "RLHF"} & {p.piece for p in proto(tokenizer).pieces if p.type == 4}
    assert not any(needs_symbol(word) for word in (*ENGLISH, "3D", "Übertragung", "обучение"))
    assert all(needs_symbol(word) for word in (*CHINESE, ".NET", "X光", "T恤", "µ", "การ", "강화"))


def proto(tokenizer: Tokenizer) -> sentencepiece_pb2.ModelProto:
    return sentencepiece_pb2.ModelProto.FromString(tokenizer._processor.serialized_model_proto())


def test_a_unigram_model_cannot_prefer_a_path_across_a_symbol() -> None:
    model = proto(trained("unigram", (), user_symbols=["混合专家"]))
    for piece in ("龙混", "家鸡", "合专"):
        model.pieces.add(piece=piece, score=-0.5, type=1)
    tokenizer = Tokenizer(model.SerializeToString())
    assert tokenizer._processor.encode("龙混合专家鸡", out_type=str) == ["龙混", "合专", "家鸡"]
    assert tokenizer.pieces[tokenizer.encode("龙混合专家鸡")[3]] == "混合专家"
    assert tokenizer.decode(tokenizer.encode("龙混合专家鸡")) == "龙混合专家鸡"


@given(st.text("ab混", max_size=20), st.sets(st.text("ab混", min_size=1, max_size=3), min_size=1, max_size=5))
def test_strings_are_found_as_an_alternation_finds_them(text: str, strings: set[str]) -> None:
    longest_first = re.compile("|".join(sorted(strings, key=len, reverse=True)))
    assert list(Matcher(strings).spans(text)) == [match.span() for match in longest_first.finditer(text)]


def test_a_file_of_words_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "words.txt", "\ufeff混合专家\r\n\n  RLHF \nRLHF\ne\u0301lan\n".encode())
    assert read_lexicon(path) == ("混合专家", "RLHF", "élan")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "holds no word"),
        (b"\n \r\n", "holds no word"),
        ("好\n\xff".encode("latin-1", "replace"), "words.txt:2: not UTF-8"),
        (b"ok\n" + b"a" * 200, "words.txt:2: a line of 200 characters is no word"),
        (b"a\tb\n", "words.txt:1: a word holds no control characters"),
        ("a▁b".encode(), "U\\+2581"),
        (b"x\n</s>\n", "words.txt:2: </s> is a control piece"),
    ],
    ids=["none", "empty", "blank", "not UTF-8", "long", "tab", "space mark", "control"],
)
def test_a_file_that_is_no_lexicon_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=message) as raised:
        read_lexicon(str(path))
    assert raised.value.pointer == "/tokenizer/lexicon"


def test_more_words_than_pieces_are_an_error() -> None:
    with pytest.raises(SourceError, match=r"user_symbols and words of the lexicon are 400 more") as raised:
        trained("bpe", tuple(chr(0x4E00 + i) * 2 for i in range(400)))
    assert raised.value.pointer == "/tokenizer/vocab_size"


def test_a_data_set_respects_its_lexicon_and_is_another_one_with_other_words(tmp_path: Path, preparation: Preparation) -> None:
    source = write(tmp_path / "a.jsonl", json_lines([f"{text} 第混合专家模型{i}" for i, text in enumerate(texts(30))]))
    words = tmp_path / "words.txt"
    made = []
    for content in ("混合专家\n", "混合专家\n模型\n", "混合专家\n"):
        write(words, content.encode())
        made.append(preparation(data_spec(source), vocab_size=400, lexicon=str(words)))
    assert [each.reused for each in made] == [False, False, True]
    assert made[0].path == made[2].path != made[1].path
    first = Tokenizer.load(made[0].path / "tokenizer.model")
    assert "混合专家" in [piece for piece, _ in pieces(first, "第混合专家模型")]
    assert Report.read(made[0].path).vocab_size == first.vocab_size
