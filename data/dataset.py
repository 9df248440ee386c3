"""A prepared data set, read by row number.

Legend: R rows asked for, T tokens in a row.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.best_fit import aligned
from data.errors import ShardError
from data.files import checksum
from data.inputs import Inputs
from data.manifest import SPLITS, TOKENIZER_NAME, Manifest, ShardInfo, Split
from data.shards import Shard


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of T tokens.

    Padding has document id -1. A target of position t is the token at t + 1 of the same document, so
    ``document_ids[:, 1:] == document_ids[:, :-1]`` (and not -1) says where one is.
    """

    tokens: npt.NDArray[np.uint32]
    """[R, T]"""
    document_ids: npt.NDArray[np.int32]
    """[R, T]: 0, 1, ... within a row from the left"""
    positions: npt.NDArray[np.int32]
    """[R, T]: from 0 in each document; 0 in padding"""
    samples: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """[R]: each row's number among all rows of the run, in the order in which they are trained on, so that random draws are a
    row's own whatever mesh or restart it meets; zeros where none was given"""

    def __post_init__(self) -> None:
        if not len(self.samples):
            object.__setattr__(self, "samples", np.zeros(len(self.tokens), np.int64))

    @property
    def target_mask(self) -> npt.NDArray[np.bool_]:
        """[R, T - 1]: where position t predicts t + 1."""
        left, right = self.document_ids[:, :-1], self.document_ids[:, 1:]
        mask: npt.NDArray[np.bool_] = (left == right) & (left >= 0)
        return mask


class PackedDataset:
    """Random access to packed rows. A shard is mapped, and its checksum verified, when a row of it is first asked for.

    ``most_open`` shards stay mapped, those used last: a process may have some 65,000 mappings (Linux's ``vm.max_map_count``).
    """

    def __init__(self, path: Path, manifest: Manifest, most_open: int = 4096) -> None:
        self.path = path
        self.manifest = manifest
        self._infos: dict[Split, list[ShardInfo]] = {s: [i for i in manifest.shards if i.split == s] for s in SPLITS}
        self._starts = {split: [0, *accumulate(info.rows for info in infos)] for split, infos in self._infos.items()}
        self._most_open = most_open
        self._open: OrderedDict[str, Shard] = OrderedDict()
        self._verified: set[str] = set()

    @classmethod
    def open(cls, path: Path) -> "PackedDataset":
        """
        Raises:
            ShardError: there is no manifest, or the tokenizer does not match it.
        """
        dataset = cls(path, Manifest.read(path))
        if not dataset.tokenizer_path.is_file() or checksum(dataset.tokenizer_path) != dataset.manifest.tokenizer_checksum:
            raise ShardError(f"{dataset.tokenizer_path} is missing or does not match its checksum")
        return dataset

    @property
    def tokenizer_path(self) -> Path:
        return self.path / TOKENIZER_NAME

    @property
    def inputs(self) -> Inputs:
        """What it was made of. Raises ShardError: that is missing or torn."""
        return Inputs.read(self.path)

    def num_rows(self, split: Split) -> int:
        return self._starts[split][-1]

    def rows(self, split: Split, indices: Sequence[int], samples: Sequence[int] = ()) -> Batch:
        """The rows ``indices`` of a split, in that order, each the run's sample of that number in ``samples``.

        Raises:
            IndexError: there is no such row.
            ValueError: they are of different lengths, so of different segments of a curriculum.
            ShardError: a shard is missing, torn or does not match its checksum.
        """
        lengths = {self.row_length(split, index) for index in indices} or {self.manifest.row_length()}
        if len(lengths) > 1:
            raise ValueError(f"rows of {sorted(lengths)} tokens in one batch")
        shape = (len(indices), *lengths)
        tokens = np.zeros(shape, dtype=np.uint32)
        document_ids = np.full(shape, -1, dtype=np.int32)
        positions = np.zeros(shape, dtype=np.int32)
        for r, index in enumerate(indices):
            shard, row = self._locate(split, index)
            tokens[r] = shard.tokens_RT[row]
            at = 0
            for document, length in enumerate(shard.pieces(row).tolist()):
                document_ids[r, at : at + length] = document
                positions[r, at : at + length] = np.arange(length, dtype=np.int32)
                at += aligned(length, self.manifest.document_alignment)
        return Batch(tokens, document_ids, positions, np.array(samples, dtype=np.int64))

    def row_length(self, split: Split, index: int) -> int:
        """Tokens in a row. Raises IndexError: there is no such row."""
        info, _ = self._find(split, index)
        return self.manifest.row_length(info.segment)

    def _locate(self, split: Split, index: int) -> tuple[Shard, int]:
        info, row = self._find(split, index)
        shard = self._open.get(info.file)
        if shard is None:
            length, verify = self.manifest.row_length(info.segment), info.file not in self._verified
            shard = self._open[info.file] = Shard(self.path / info.file, info, length, verify=verify)
            self._verified.add(info.file)
            if len(self._open) > self._most_open:
                self._open.popitem(last=False)
        self._open.move_to_end(info.file)
        return shard, row

    def _find(self, split: Split, index: int) -> tuple[ShardInfo, int]:
        starts = self._starts[split]
        if not 0 <= index < starts[-1]:
            raise IndexError(f"row {index} of {starts[-1]} in {split}")
        number = bisect_right(starts, index) - 1
        return self._infos[split][number], index - starts[number]
