"""Any text goes through the tokenizer and comes back as it was."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.spec import TokenizerSpec
from data.tokenizer import Tokenizer, train_tokenizer
from tests.data.conftest import texts

SPEC = TokenizerSpec(vocab_size=400)
CODE = ["def f(x):\n\tif x:\n        return  {'a': 1234}\n\n"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer([*texts(100), *CODE], SPEC))


# U+2581 is SentencePiece's space; cleaning turns it into one.
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\0"), max_size=80))
@settings(deadline=None)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_known_text_takes_fewer_tokens_than_characters(tokenizer: Tokenizer) -> None:
    text = texts(1)[0]
    assert len(tokenizer.encode(text)) < len(text) / 2


def test_marks_are_not_in_encoded_text(tokenizer: Tokenizer) -> None:
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(tokenizer.encode("<s> river </s> stone"))


def test_training_is_deterministic() -> None:
    assert train_tokenizer(texts(50), SPEC) == train_tokenizer(texts(50), SPEC)


def test_a_tiny_text_gives_a_smaller_vocabulary() -> None:
    assert 259 < Tokenizer(train_tokenizer(["river river"], TokenizerSpec(vocab_size=4096))).vocab_size < 300


def test_a_script_of_many_characters_fits_a_small_vocabulary() -> None:
    common, rare = "".join(chr(0x4E00 + i) for i in range(200)), "".join(chr(0x5E00 + i) for i in range(800))
    trained = Tokenizer(train_tokenizer([common] * 300 + [rare], TokenizerSpec(vocab_size=600)))
    assert len(trained.encode(common)) <= 200
    assert trained.decode(trained.encode(rare)) == rare


def test_long_lines_are_learnt_from() -> None:
    assert len(Tokenizer(train_tokenizer(["river stone " * 5000], SPEC)).encode("river stone river stone")) < 12
