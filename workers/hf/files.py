"""Weights in safetensors files, one or many, written and read as ``from_pretrained`` and ``save_pretrained`` do."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data.files import write_atomically
from workers.hf.directory import read_json
from workers.hf.errors import PretrainedMismatch, PretrainedUnreadable

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SENTENCEPIECE = "tokenizer.model"
FILE_BYTES = 5_000_000_000
"""No file of weights is larger, but for one with a single larger tensor."""
ALWAYS_FP32 = "e_score_correction_bias"
"""The balancing biases keep fp32 in every export, as in DeepSeek's: bf16 has no room for their small steps."""
FLOATING = {"F64", "F32", "F16", "BF16"}


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_tensors(
    directory: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    shapes: Mapping[str, torch.Size],
    dtype: torch.dtype,
    *,
    file_bytes: int = FILE_BYTES,
) -> int:
    """Write ``tensors`` in their order, never more than one file of them in memory; returns their bytes.

    ``shapes`` are those of all of them, known before the first one is made: file names carry the number of files.
    """
    sizes = {name: shape.numel() * _type_of(name, dtype).itemsize for name, shape in shapes.items()}
    files = list(_grouped(sizes, file_bytes))
    names = [ONE_FILE] if len(files) == 1 else [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    stream = iter(tensors)
    for name, members in zip(names, files, strict=True):
        held = {}
        for expected in members:
            given, tensor = next(stream)
            if given != expected or tensor.shape != shapes[given]:
                raise ValueError(
                    f"{given} {tuple(tensor.shape)} comes where {expected} {tuple(shapes[expected])} was announced"
                )
            # A tensor of its own: views of one parameter would be refused as sharing memory.
            held[given] = torch.empty(tensor.shape, dtype=_type_of(given, dtype)).copy_(tensor)
        save_file(held, directory / name, metadata={"format": "pt"})
        with (directory / name).open("rb") as file:
            os.fsync(file.fileno())
    if len(files) > 1:
        places = {tensor: name for name, members in zip(names, files, strict=True) for tensor in members}
        write_json(directory / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})
    return sum(sizes.values())


def _type_of(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if name.endswith(ALWAYS_FP32) else dtype


def _grouped(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    group: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if group and filled + size > limit:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += size
    yield group


def _places(index: Path) -> dict[str, str]:
    """The file of each tensor, which lies beside ``index``. Raises PretrainedUnreadable: it says something else."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise PretrainedUnreadable(f"{index} has no weight_map of tensors and their files")
    for file in places.values():
        if Path(file).name != file:
            raise PretrainedUnreadable(f"{index} names the file {file!r}, which does not lie beside it")
    return places


class TensorFiles(Mapping[str, torch.Tensor]):
    """The tensors of a directory, each read when it is asked for. Names and shapes are known at once.

    Raises PretrainedUnreadable: a file is missing, torn or none of safetensors.
    """

    def __init__(self, directory: Path) -> None:
        self._files: dict[str, Any] = {}
        index = directory / INDEX
        if index.exists():
            places = _places(index)
            for file in sorted(set(places.values())):
                self._open(directory / file)
            if lost := sorted(set(places) - set(self._files)):
                raise PretrainedUnreadable(f"{index} names the tensor {lost[0]}, which {places[lost[0]]} does not hold")
        else:
            self._open(directory / ONE_FILE)

    def _open(self, path: Path) -> None:
        if not path.is_file():
            raise PretrainedUnreadable(f"{path} is missing")
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise PretrainedUnreadable(
                f"{path} is torn or no safetensors file ({error}); it has {path.stat().st_size} bytes. Copy it again"
            ) from error
        self._files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def require_floating(self, name: str) -> None:
        """Raises PretrainedMismatch: it holds no floating-point numbers that can be trained on."""
        kind = self._files[name].get_slice(name).get_dtype()
        if kind not in FLOATING:
            raise PretrainedMismatch(f"the tensor {name} holds {kind}; the decoder takes over {', '.join(sorted(FLOATING))}")

    def __contains__(self, name: object) -> bool:
        return name in self._files  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
