"""A checkpoint as a directory that ``from_pretrained`` loads.

``python -m workers.hf.export CHECKPOINT --spec FILE --tokenizer FILE --output DIR``

Prints one JSON document, of what was written or of what was wrong. Weights are read and written a part at a time, so that the
model need not fit in memory.
"""

import argparse
import json
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from data.errors import MantaError
from data.files import sync_directory
from data.tokenizer import Tokenizer
from workers.checkpoint_files import is_whole, read_info
from workers.hf.config import to_config
from workers.hf.convert import exported
from workers.hf.directory import CONFIG
from workers.hf.errors import CheckpointUnreadable, JobUnreadable, OutputExists, TokenizerMismatch
from workers.hf.families import CLASSES, family_of, training_only
from workers.hf.files import write_json, write_tensors
from workers.hf.tokenizer import write_tokenizer
from workers.model.spec import ModelSpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_PREFIX = "model."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workers.hf.export", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a checkpoint's directory, step-00000100")
    parser.add_argument("--spec", type=Path, required=True, help="the job, YAML or JSON")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the SentencePiece model that the data was made with")
    parser.add_argument("--output", type=Path, required=True, help="a directory that does not exist yet")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    a = parser.parse_args(arguments)
    try:
        print(json.dumps(export(a.checkpoint, read_model(a.spec), a.tokenizer, a.output, a.dtype)))
    except MantaError as error:
        said = {"code": error.code, "status": error.status, "detail": error.detail, "pointer": error.pointer}
        print(json.dumps(said))
        return 1
    return 0


def read_model(path: Path) -> ModelSpec:
    """The ``model`` of a job file. Raises JobUnreadable."""
    try:
        return ModelSpec.model_validate(yaml.safe_load(path.read_text()).get("model", {}))
    except ValidationError as error:
        first = error.errors()[0]
        raise JobUnreadable(f"{path}: {first['msg']}", pointer="/".join(["/model", *map(str, first["loc"])])) from error
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise JobUnreadable(f"{path} is no job file: {error}") from error


def export(checkpoint: Path, spec: ModelSpec, tokenizer: Path, output: Path, dtype: str = "fp32") -> dict[str, Any]:
    """Write ``output``, whole or not at all; returns what it is: ``{output, step, family, parameters, bytes, dtype, notes}``.

    Raises NotExportable, CheckpointUnreadable, TokenizerMismatch, OutputExists, SourceError (the tokenizer is no file of one).
    """
    family = family_of(spec)
    weights = CheckpointWeights(checkpoint)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputExists(f"{output} is there already; name another directory")
    vocab_size = weights.vocab_size
    if (has := Tokenizer.load(tokenizer).vocab_size) != vocab_size:
        raise TokenizerMismatch(
            f"{tokenizer} has {has} pieces, the model of {checkpoint} {vocab_size}; give the one that it was trained with",
            pointer="/tokenizer/path",
        )
    try:
        shapes = {name: x.shape for name, x in exported(spec, vocab_size, weights.on_meta())}
    except (ValueError, RuntimeError) as error:
        raise CheckpointUnreadable(f"{checkpoint} is not of this job's model: {error}", pointer="/model") from error
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        marks = write_tokenizer(tokenizer, partial)
        size = write_tensors(partial, exported(spec, vocab_size, weights), shapes, DTYPES[dtype])
        config = to_config(spec, vocab_size) | marks | {"dtype": str(DTYPES[dtype]).removeprefix("torch.")}
        write_json(partial / CONFIG, config)
        write_json(partial / "generation_config.json", marks)
        sync_directory(partial)
        if output.exists():
            output.rmdir()
        partial.rename(output)
        sync_directory(output.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return {
        "output": str(output),
        "step": weights.step,
        "family": CLASSES[family],
        "parameters": sum(shape.numel() for name, shape in shapes.items() if not name.endswith("e_score_correction_bias")),
        "bytes": size,
        "dtype": dtype,
        "notes": training_only(spec),
    }


class CheckpointWeights(Mapping[str, torch.Tensor]):
    """The model's tensors in a checkpoint, each read when it is asked for, whatever mesh wrote it.

    Raises CheckpointUnreadable: there is no whole checkpoint.
    """

    def __init__(self, path: Path) -> None:
        info = read_info(path)
        if info is None:
            raise CheckpointUnreadable(f"{path} is no committed checkpoint: it has no manifest")
        if not is_whole(path):
            raise CheckpointUnreadable(
                f"{path} is torn: a file is missing, or is not what the manifest says. Take another step"
            )
        self.path, self.step = path, info.step
        entries = FileSystemReader(path).read_metadata().state_dict_metadata
        self._entries = {
            name.removeprefix(_PREFIX): entry
            for name, entry in entries.items()
            if name.startswith(_PREFIX) and isinstance(entry, TensorStorageMetadata)
        }
        if "embedding" not in self._entries:
            raise CheckpointUnreadable(f"{path} holds no model")

    @property
    def vocab_size(self) -> int:
        return int(self._entries["embedding"].size[0])

    def on_meta(self) -> dict[str, torch.Tensor]:
        """The same shapes without data."""
        return {name: torch.empty(entry.size, device="meta") for name, entry in self._entries.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        entry = self._entries[name]
        tensor = torch.empty(entry.size, dtype=entry.properties.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load({"model": {name: tensor}}, storage_reader=FileSystemReader(self.path), no_dist=True)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


if __name__ == "__main__":
    sys.exit(main())
