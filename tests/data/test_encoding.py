"""Words encoded apart give the ids of the whole text."""

import io
from functools import cache
from typing import Any

import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data import stdlib
from data.encoding import WordEncoder, has_borders
from data.spec import TokenizerSpec
from data.tokenizer import train_tokenizer


@cache
def prose() -> list[str]:
    names = stdlib.modules("stdlib:prose")[1:40]
    return [text for name in names for _, text in stdlib.texts("stdlib:prose", name)]


@cache
def model() -> bytes:
    return train_tokenizer(["春眠不觉晓，处处闻啼鸟。", *prose()], TokenizerSpec(vocab_size=2000))


@cache
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model())


def trained(**settings: Any) -> bytes:
    out = io.BytesIO()
    given = {"model_type": "bpe", "normalization_rule_name": "identity", "byte_fallback": True, "add_dummy_prefix": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in prose() for line in text.split("\n")),
        model_writer=out,
        minloglevel=2,
        vocab_size=800,
        **{**given, "remove_extra_whitespaces": False, "hard_vocab_limit": False, **settings},
    )
    return out.getvalue()


def test_real_text_has_the_same_ids() -> None:
    encode = WordEncoder(processor())
    for text in prose():
        assert encode([text])[0].tolist() == processor().encode(text)


@settings(deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(st.sampled_from([*" \n\t\u2581a1.雨春\0", "the", "    ", "return", "<0x0A>", "</s>"]), max_size=60).map(
            "".join
        ),
    )
)
def test_any_text_has_the_same_ids(text: str) -> None:
    assert WordEncoder(processor())([text, text])[1].tolist() == processor().encode(text)


def test_only_models_whose_words_stand_apart_are_encoded_by_words() -> None:
    assert has_borders(model())
    assert has_borders(trained())
    assert not has_borders(trained(model_type="unigram"))
    assert not has_borders(trained(add_dummy_prefix=True))
    assert not has_borders(trained(remove_extra_whitespaces=True))
    assert not has_borders(trained(byte_fallback=False))
    assert not has_borders(trained(normalization_rule_name="nfkc"))
    assert not has_borders(trained(split_by_whitespace=False))
    assert not has_borders(trained(user_defined_symbols=["a\nb"]))
    assert has_borders(trained(user_defined_symbols=["\n\n"]))
