"""``AutoTokenizer`` reads what is exported and gives the ids that training saw."""

import json
import random
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_pb2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data.spec import TokenizerSpec
from data.tokenizer import Tokenizer, train_tokenizer
from workers.hf.errors import NotExportable
from workers.hf.tokenizer import write_tokenizer

CODE = Path(__file__).read_text()
PROSE = ["the old cat sees a red house", "l'élève a vu « la mer » à 10 h 45", "0123456789 9.99 $5", "日本語のテキスト"]


SYMBOLS = ("<|tool|>", "if x", "日本", "日本語", " the", "\n\n", "        ")


@pytest.fixture(scope="module", params=["bpe", "unigram", "bpe with symbols", "unigram with symbols"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, PreTrainedTokenizerBase]:
    root = tmp_path_factory.mktemp("tokenizer")
    model_type, _, with_symbols = request.param.partition(" ")
    spec = TokenizerSpec(vocab_size=700, model_type=model_type, user_symbols=SYMBOLS if with_symbols else ())
    (root / "trained.model").write_bytes(train_tokenizer([CODE, *PROSE * 3], spec, ["テキスト"] if with_symbols else ()))
    out = root / "out"
    out.mkdir()
    ids = write_tokenizer(root / "trained.model", out)
    (out / "config.json").write_text(json.dumps({"model_type": "olmoe"}))  # a class that has a tokenizer of its own
    ours = Tokenizer.load(out / "tokenizer.model")
    assert ids == {"bos_token_id": ours.bos_id, "eos_token_id": ours.eos_id}
    return ours, AutoTokenizer.from_pretrained(out)


def require_same(both: tuple[Tokenizer, PreTrainedTokenizerBase], text: str) -> None:
    ours, theirs = both
    ids = ours.encode(text)
    assert theirs(text, add_special_tokens=False).input_ids == ids, repr(text)
    assert theirs.decode(ids) == ours.decode(ids)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "   ",
            "\n\n  \tx",
            " a",
            "a ",
            "a\r\nb",
            "\x00",
            "\ufeffx",
            "e\u0301",
            "▁ a▁b",
            "😀👍🏽",
            "한국어",
            "a" * 500,
        ),
        *("<s>", "x</s>y", "<unk>", "<0x41>", "if x:\n        return  1\n"),
        *("<|tool|>", "x<|tool|>y", "<|tool|> <|tool|>", "日本語のテキスト日本の the", "a\n\n\nif x", " " * 77, "=" * 50),
    ],
)
def test_a_text_has_the_ids_of_training(both: tuple[Tokenizer, PreTrainedTokenizerBase], text: str) -> None:
    require_same(both, text)


def test_so_have_many_texts(both: tuple[Tokenizer, PreTrainedTokenizerBase]) -> None:
    draw = random.Random(0)
    for line in CODE.splitlines(keepends=True):
        require_same(both, line)
    for _ in range(1000):
        require_same(both, "".join(draw.choices([*"  ___==\n\t\tabest(){}01é日", *SYMBOLS], k=draw.randint(1, 60))))


def test_a_text_begins_with_the_mark_that_documents_began_with(both: tuple[Tokenizer, PreTrainedTokenizerBase]) -> None:
    ours, theirs = both
    assert theirs("the old cat").input_ids == [ours.bos_id, *ours.encode("the old cat")]
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (ours.bos_id, ours.eos_id, ours.vocab_size)
    assert theirs.decode([ours.bos_id, *ours.encode("a  b"), ours.eos_id], skip_special_tokens=True) == "a  b"


def trained(path: Path, **options: object) -> Path:
    chosen = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", **options}
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([CODE[i : i + 1000] for i in range(0, len(CODE), 1000)]),
            model_writer=file,
            vocab_size=500,
            hard_vocab_limit=False,
            minloglevel=2,
            **{"remove_extra_whitespaces": False, **chosen},
        )
    return path


def test_a_tokenizer_with_a_blank_before_every_text_is_the_same_too(tmp_path: Path) -> None:
    path = trained(tmp_path / "llama.model", add_dummy_prefix=True)
    write_tokenizer(path, tmp_path)
    pair = Tokenizer.load(path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("return  1", " x", "", "\n", "for i in"):
        require_same(pair, text)


def test_a_unigram_model_that_cannot_spell_its_marks_is_refused(tmp_path: Path) -> None:
    model = sentencepiece_pb2.ModelProto.FromString(train_tokenizer(PROSE, TokenizerSpec(vocab_size=400, model_type="unigram")))
    next(piece for piece in model.pieces if piece.piece == "<").piece = "≮"
    (tmp_path / "other.model").write_bytes(model.SerializeToString())
    with pytest.raises(NotExportable, match="has no pieces for the characters of <s> and <0x0A>"):
        write_tokenizer(tmp_path / "other.model", tmp_path)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"model_type": "char"}, "is neither a BPE nor a unigram model"),
        ({"model_type": "unigram"}, "is a unigram model whose ties each library breaks in its way"),
        ({"byte_fallback": False}, "has no byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises text"),
        ({"remove_extra_whitespaces": True}, "removes white space"),
        ({"user_defined_symbols": ["<tool>"], "add_dummy_prefix": True}, "has symbols of its user's and puts a blank"),
        ({"treat_whitespace_as_suffix": True}, "as a suffix"),
    ],
)
def test_a_tokenizer_that_would_come_out_different_is_refused(options: dict[str, object], what: str, tmp_path: Path) -> None:
    path = trained(tmp_path / "other.model", **options)
    with pytest.raises(NotExportable, match=what) as caught:
        write_tokenizer(path, tmp_path)
    assert caught.value.pointer == "/tokenizer/path"
    assert not (tmp_path / "tokenizer.json").exists()
