"""Any text goes through the tokenizer and comes back as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.errors import MantaError, NotEnoughData, SourceError
from data.spec import TokenizerSpec
from data.tokenizer import BYTE, ORDINARY, UNKNOWN, Tokenizer, train_tokenizer
from tests.data.conftest import texts

SPEC = TokenizerSpec(vocab_size=400)
UNIGRAM = TokenizerSpec(vocab_size=400, model_type="unigram")
SYMBOLS = ("<|tool|>", "river stone", "\n\n", "    ", "模型")
CODE = ["def f(x):\n\tif x:\n        return  {'a': 1234}\n\n"] * 3


@pytest.fixture(scope="module", params=["bpe", "unigram", "bpe with symbols", "unigram with symbols"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    model_type, _, with_symbols = request.param.partition(" ")
    spec = TokenizerSpec(vocab_size=400, model_type=model_type, user_symbols=SYMBOLS if with_symbols else ())
    return Tokenizer(train_tokenizer([*texts(100), *CODE], spec))


# U+2581 is SentencePiece's space; cleaning turns it into one.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\0"), max_size=80)


@given(st.lists(st.one_of(ANY_TEXT, st.sampled_from(SYMBOLS)), max_size=5).map("".join))
@settings(deadline=None)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_many_texts_at_once_have_the_ids_of_each(tokenizer: Tokenizer) -> None:
    many = [*texts(20, seed=3), "", *CODE, "".join(SYMBOLS), *SYMBOLS]
    assert [ids.tolist() for ids in tokenizer.encode_batch(many)] == [tokenizer.encode(text) for text in many]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_symbol_is_one_piece_wherever_it_stands(model_type: str) -> None:
    spec = TokenizerSpec.model_validate({"vocab_size": 400, "model_type": model_type, "user_symbols": SYMBOLS})
    tokenizer = Tokenizer(train_tokenizer([*texts(100), *CODE], spec))
    for symbol in SYMBOLS:
        piece = tokenizer.pieces.index(symbol.replace(" ", "▁"))
        assert tokenizer.encode(f"x{symbol}y").count(piece) == 1
        assert tokenizer.encode(symbol * 2) == [piece] * 2
    assert tokenizer.pieces[:3] == ["<unk>", "<s>", "</s>"]


def test_known_text_takes_fewer_tokens_than_characters(tokenizer: Tokenizer) -> None:
    text = texts(1)[0]
    assert len(tokenizer.encode(text)) < len(text) / 2


def test_a_newline_is_no_byte_of_a_character_without_a_piece(tokenizer: Tokenizer) -> None:
    assert tokenizer.kind_V[tokenizer.encode("\n龍\n")].tolist() == [ORDINARY, BYTE, BYTE, BYTE, ORDINARY]
    assert tokenizer.kind_V[0] == UNKNOWN


def test_marks_are_not_in_encoded_text(tokenizer: Tokenizer) -> None:
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(tokenizer.encode("<s> river </s> stone"))


@pytest.mark.parametrize("spec", [SPEC, UNIGRAM], ids=["bpe", "unigram"])
def test_training_is_deterministic(spec: TokenizerSpec) -> None:
    assert train_tokenizer(texts(50), spec) == train_tokenizer(texts(50), spec)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_tiny_text_gives_a_smaller_vocabulary(model_type: str) -> None:
    spec = TokenizerSpec.model_validate({"vocab_size": 262_144, "model_type": model_type})
    assert 259 < Tokenizer(train_tokenizer(["river river"], spec)).vocab_size < 300


HAN = "".join(chr(0x4E00 + i) for i in range(200))
UNTRAINABLE: dict[str, tuple[list[str], dict[str, Any], type[MantaError], str, str]] = {
    "no text": ([], {}, NotEnoughData, "/data_pipeline/sources", "holds nothing to train a tokenizer on"),
    "only newlines": (["\n\n", "\0", "▅"], {}, NotEnoughData, "/data_pipeline/sources", "holds nothing"),
    "too many characters": (
        *([HAN] * 3, {"vocab_size": 300}, SourceError, "/tokenizer/vocab_size"),
        "vocab_size 300 has no room for the characters that make up 98% of the text",
    ),
    "little room beside symbols": (
        *([HAN[:30]], {"vocab_size": 300, "user_symbols": [f"w{i}" for i in range(30)]}, SourceError, "/tokenizer/vocab_size"),
        "pieces are left for 30 different ones",
    ),
    "no room beside symbols": (
        *([HAN], {"vocab_size": 300, "user_symbols": [f"w{i}" for i in range(41)]}, SourceError, "/tokenizer/vocab_size"),
        "vocab_size 300 leaves no room to learn a piece: every tokenizer has 259",
    ),
}


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(("sample", "spec", "error", "pointer", "message"), UNTRAINABLE.values(), ids=UNTRAINABLE)
def test_what_cannot_be_trained_says_why(
    sample: list[str], spec: dict[str, Any], error: type[MantaError], pointer: str, message: str, model_type: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        train_tokenizer(sample, TokenizerSpec.model_validate({**spec, "model_type": model_type}))
    assert raised.value.pointer == pointer


@pytest.mark.parametrize("symbols", [0, 10])
@pytest.mark.parametrize(("model_type", "room"), [("bpe", 41), ("unigram", 41 - 24)])
def test_the_smallest_vocabulary_has_room_for_so_many_characters(model_type: str, room: int, symbols: int) -> None:
    given = {"vocab_size": 300, "model_type": model_type, "user_symbols": [f"w{i}" for i in range(symbols)]}
    spec, room = TokenizerSpec.model_validate(given), room - symbols
    tokenizer = Tokenizer(train_tokenizer([HAN[:room]] * 5, spec))
    assert tokenizer.vocab_size <= 300
    assert len(tokenizer.encode(HAN[:room])) == room
    with pytest.raises(SourceError, match=rf"{room} pieces are left for {room + 1} different ones"):
        train_tokenizer([HAN[: room + 1]] * 5, spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"user_symbols": [""]}, "at least 1 character"),
        ({"user_symbols": ["a", "b", "a"]}, "'a' is given twice"),
        *(({"user_symbols": [mark]}, f"{mark} is a piece that") for mark in ("<s>", "</s>", "<unk>", "<0x0A>")),
        ({"user_symbols": ["a\u2581b"]}, "write the blank"),
        ({"user_symbols": ["a\0"]}, "neither NUL"),
        ({"user_symbols": [f"w{i}" for i in range(50)], "vocab_size": 300}, "no room for 50 user_symbols"),
        ({"user_symbols": ["a"], "path": "t.model"}, "a tokenizer that exists has its pieces"),
        ({"lexicon": "words.txt", "path": "t.model"}, "a tokenizer that exists has its pieces"),
        ({"model_type": "word"}, "'bpe' or 'unigram'"),
        ({"vocab_size": 262_145}, "262144"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TokenizerSpec.model_validate(spec)


def test_half_a_surrogate_pair_is_no_symbol() -> None:
    with pytest.raises(ValidationError):
        TokenizerSpec.model_validate(json.loads('{"user_symbols": ["\\ud800"]}'))


def test_a_tokenizer_of_hugging_face_says_what_to_give_instead(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(SourceError, match="give the SentencePiece model that lies beside it") as raised:
        Tokenizer.load(tmp_path / "tokenizer.json")
    assert raised.value.pointer == "/tokenizer/path"


def test_a_script_of_many_characters_fits_a_small_vocabulary() -> None:
    common, rare = "".join(chr(0x4E00 + i) for i in range(200)), "".join(chr(0x5E00 + i) for i in range(800))
    trained = Tokenizer(train_tokenizer([common] * 300 + [rare], TokenizerSpec(vocab_size=600)))
    assert len(trained.encode(common)) <= 200
    assert trained.decode(trained.encode(rare)) == rare


def test_long_lines_are_learnt_from() -> None:
    assert len(Tokenizer(train_tokenizer(["river stone " * 5000], SPEC)).encode("river stone river stone")) < 12
