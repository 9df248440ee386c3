"""A run's first weights out of a directory in Hugging Face's format: ``init_from``."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from data.tokenizer import Tokenizer
from workers.hf.config import from_config
from workers.hf.convert import imported
from workers.hf.directory import read_config, require_same_model
from workers.hf.errors import PretrainedMismatch, PretrainedUnreadable
from workers.hf.files import SENTENCEPIECE, TensorFiles
from workers.hf.rules import Rule
from workers.model.spec import ModelSpec
from workers.spec import TrainSpec

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_TABLES = re.compile(r"\.rotary_emb\.inv_freq$")


def initial_state(spec: TrainSpec, tokenizer: Tokenizer) -> Mapping[str, torch.Tensor] | None:
    """The weights that ``spec.init_from`` names, by the decoder's names, each read when it is asked for; None without it.

    Modules of multi-token prediction are not among them: no export has them, they begin as the seed says. Every rank calls this
    and reads what it needs. Raises PretrainedUnreadable and PretrainedMismatch, here or when a tensor is asked for.
    """
    if spec.init_from is None:
        return None
    directory = Path(spec.init_from).expanduser()
    weights = load_pretrained(directory, spec.model, tokenizer.vocab_size)
    _require_same_pieces(directory, tokenizer)
    return weights


def load_pretrained(directory: Path, spec: ModelSpec, vocab_size: int) -> "Pretrained":
    """The model in ``directory`` as weights for ``spec``.

    Names, shapes and types are checked here, numbers as they are read. Raises PretrainedUnreadable (missing, torn, incomplete,
    not finite) and PretrainedMismatch (another architecture, other sizes, another vocabulary).
    """
    directory = directory.expanduser()
    config = read_config(directory)
    theirs, their_vocabulary = from_config(config)
    require_same_model(directory, theirs, spec)
    _require_same_vocabulary(directory, their_vocabulary, vocab_size)
    files = TensorFiles(directory)
    known = {str(rule.name): rule for rule in imported(config, theirs, their_vocabulary)}
    _require_all_used(directory, files, {name for rule in known.values() for name in rule.theirs}, theirs.num_hidden_layers)
    for rule in known.values():
        _require_shapes(directory, files, rule)
    return Pretrained(directory, files, known)


class Pretrained(Mapping[str, torch.Tensor]):
    """Weights by the decoder's names, in fp32."""

    def __init__(self, directory: Path, files: TensorFiles, known: Mapping[str, Rule]) -> None:
        self._directory, self._files, self._rules = directory, files, known

    def __getitem__(self, name: str) -> torch.Tensor:
        rule = self._rules[name]
        parts = [self._files[theirs].float() for theirs in rule.theirs]
        for theirs, part in zip(rule.theirs, parts, strict=True):
            if not part.isfinite().all():
                count = int((~part.isfinite()).sum())
                raise PretrainedUnreadable(
                    f"{self._directory}: {count} of {part.numel()} numbers in {theirs} are NaN or infinite"
                )
        return rule.join(parts)

    def __contains__(self, name: object) -> bool:
        return name in self._rules  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)


def _require_same_vocabulary(directory: Path, theirs: int, ours: int) -> None:
    if theirs == ours:
        return
    model = directory / SENTENCEPIECE
    hint = "train with the tokenizer that the model was made with (tokenizer.path)"
    if model.is_file() and Tokenizer.load(model).vocab_size == theirs:
        hint = f"set tokenizer.path to {model}"
    raise PretrainedMismatch(f"{directory} has a vocabulary of {theirs}, the job's tokenizer one of {ours}; {hint}")


def _require_same_pieces(directory: Path, tokenizer: Tokenizer) -> None:
    """As many pieces need not be the same ones. A directory without SentencePiece's own file is taken at its word."""
    path = directory / SENTENCEPIECE
    if not path.is_file():
        return
    pairs = enumerate(zip(Tokenizer.load(path).pieces, tokenizer.pieces, strict=True))
    if differing := [(i, theirs, ours) for i, (theirs, ours) in pairs if theirs != ours]:
        i, theirs, ours = differing[0]
        raise PretrainedMismatch(
            f"{directory} was made with another tokenizer than the job's: {len(differing)} of {tokenizer.vocab_size} pieces"
            f" differ, the first is {i}, {theirs!r} there and {ours!r} here; set tokenizer.path to {path}"
        )


def _require_all_used(directory: Path, files: TensorFiles, used: set[str], layers: int) -> None:
    """A tensor that nothing reads would mean another model. Layers behind the last are of multi-token prediction."""
    for name in files:
        layer = _LAYER.match(name)
        tied_head = name == "lm_head.weight"  # an own one is among ``used``
        if name in used or tied_head or _TABLES.search(name) or (layer and int(layer[1]) >= layers):
            continue
        raise PretrainedMismatch(f"{directory} holds the tensor {name}, which the decoder has no place for")


def _require_shapes(directory: Path, files: TensorFiles, rule: Rule) -> None:
    parts = rule.split(torch.empty(rule.shape, device="meta"))
    for name, part in zip(rule.theirs, parts, strict=True):
        if name not in files:
            raise PretrainedUnreadable(f"{directory}: the tensor {name} is missing")
        if (found := files.shape(name)) != tuple(part.shape):
            raise PretrainedUnreadable(f"{directory}: {name} has shape {list(found)}; config.json asks for {list(part.shape)}")
        files.require_floating(name)
