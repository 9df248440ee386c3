"""Checkpoints: torch's distributed checkpoint format, written in the background, whole or not there at all.

A checkpoint is a directory ``step-00000020``. It is written under another name that carries attempt and generation, so a
ghost of an older worker group never touches a newer one's files. Each rank writes its own shards, syncs them, reads them
back and compares hashes; rank 0 sees every rank's receipt, writes the manifest last and renames the directory. What has no
manifest, or whose hashes differ, is torn and is never loaded.

Ranks meet through files in that directory and not through collectives: the writer thread then cannot interleave with
the training thread's collectives, and no process group is needed at all.
"""

import contextlib
import io
import json
import pickle
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load

from data.errors import MantaError
from workers.checkpoint_files import (
    MANIFEST,
    PARTIAL,
    CheckpointInfo,
    HashingWriter,
    is_whole,
    put,
    read_info,
    root_cause,
    step_of,
    sync_directory,
    verify,
    write_synced,
)

__all__ = ["MANIFEST", "CheckpointInfo", "CheckpointStore", "CheckpointWriteError"]

_FENCE = "fence.json"
_FIRST_POLL_SECONDS = 0.005
_LAST_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 10.0


class CheckpointWriteError(MantaError):
    """A checkpoint could not be written, e.g. because the disk is full. Earlier checkpoints are untouched."""

    code: ClassVar[str] = "checkpoint_write_failed"
    status: ClassVar[int] = 507


class Member(Protocol):
    """What a writer must know of its worker group; ``workers.mesh.Membership`` fits."""

    @property
    def generation(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...


@dataclass(frozen=True)
class _Alone:
    generation: int = 0
    rank: int = 0
    world_size: int = 1


Event = dict[str, Any]


class CheckpointStore:
    """The checkpoints of one job, in one directory that every rank can reach.

    ``on_event`` is called, perhaps from the writer thread, with ``{type, step, path, bytes}``; ``type`` is ``committed``
    or ``deleted`` (from rank 0), ``torn`` (found while looking for the newest) or ``fenced`` (a newer worker group has
    taken over; nothing was committed).
    """

    def __init__(
        self,
        directory: Path,
        keep_last: int = 2,
        asynchronous: bool = True,
        on_event: Callable[[Event], None] | None = None,
        *,
        attempt: int = 0,
    ) -> None:
        self.directory = Path(directory)
        self.keep_last = keep_last
        self.asynchronous = asynchronous
        self._on_event = on_event or (lambda event: None)
        self._attempt = attempt
        self._name = uuid.uuid4().hex
        self._has_fenced = False
        self._closing = threading.Event()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="manta-checkpoint")
        self._pending: Future[None] | None = None
        self._buffers: dict[MetadataIndex, torch.Tensor] = {}
        self.directory.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, state: dict[str, Any], membership: Member | None = None) -> None:
        """Write ``state`` as the checkpoint of ``step``; every rank of ``membership`` calls this with the same step.

        Asynchronous: returns when the tensors are copied to host memory. A write that is still going is waited for first,
        and its error raised here. Raises CheckpointWriteError.
        """
        self.wait()
        member = membership or _Alone()
        planner = _HostCopyPlanner(self._buffers)
        planner.set_up_planner(state, is_coordinator=member.rank == 0)
        local_plan = planner.copy_to_host()
        self._pending = self._writer.submit(self._write, step, planner, local_plan, member)
        if not self.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Until the write in flight, if any, is done; raises what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def poll(self) -> None:
        """Raise what a write in the background has raised, if it has ended; waits for nothing."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def close(self) -> None:
        """Give up waiting for other ranks, end the writer thread. Call ``wait`` first to keep the write in flight."""
        self._closing.set()
        self._writer.shutdown(wait=True, cancel_futures=True)

    def committed(self) -> list[CheckpointInfo]:
        """Committed checkpoints, oldest first. Hashes are not verified."""
        return sorted((i for p in self.directory.glob("step-*") if (i := read_info(p))), key=lambda i: i.step)

    def latest(self) -> CheckpointInfo | None:
        """The newest whole checkpoint: its manifest is there and every file has its size and hash."""
        for path in sorted(self.directory.glob("step-*"), reverse=True):
            if PARTIAL in path.name:
                continue
            if (info := read_info(path)) is not None and is_whole(path):
                return info
            self._on_event({"type": "torn", "step": step_of(path), "path": str(path), "bytes": 0})
        return None

    def load(self, info: CheckpointInfo, state: dict[str, Any]) -> None:
        """Fill ``state`` in place. Every rank reads the slices that its own tensors need, whatever mesh wrote them."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(state, storage_reader=FileSystemReader(info.path), no_dist=True)

    def fence(self, generation: int) -> None:
        """From now on refuse commits of older generations (and attempts), and clear away what they left half-written.

        Rank 0 of a new worker group calls this before any of its ranks saves.
        """
        for path in self.directory.glob(f"step-*{PARTIAL}"):
            shutil.rmtree(path, ignore_errors=True)
        if (self._attempt, generation) >= self._fence():
            text = json.dumps({"attempt": self._attempt, "generation": generation, "holder": self._name})
            temporary = self.directory / f"{_FENCE}.{self._name}"
            write_synced(temporary, text.encode())
            temporary.rename(self.directory / _FENCE)

        self._has_fenced = True

    def _fence(self) -> tuple[int, int]:
        fence = self._read_fence()
        return (fence["attempt"], fence["generation"])

    def _read_fence(self) -> dict[str, Any]:
        try:
            fence: dict[str, Any] = json.loads((self.directory / _FENCE).read_text())
        except FileNotFoundError:
            return {"attempt": 0, "generation": 0, "holder": None}
        return fence

    def _is_fenced(self, generation: int) -> bool:
        """Whether a newer group, or (bare processes started twice) another one of the same number, has taken over."""
        fence, mine = self._fence(), (self._attempt, generation)
        return fence > mine or (self._has_fenced and fence == mine and self._read_fence()["holder"] != self._name)

    def _write(self, step: int, planner: "_HostCopyPlanner", local_plan: SavePlan, member: Member) -> None:
        name = f"step-{step:08d}"
        partial = self.directory / f"{name}.a{self._attempt}-g{member.generation}{PARTIAL}"
        try:
            partial.mkdir(exist_ok=True)
            self._write_rank(partial, planner, local_plan, member)
            if member.rank == 0:
                self._commit(partial, self.directory / name, step, planner, member)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns an OSError into a RuntimeError
            cause = root_cause(error)
            self._clear_away(partial, member, str(cause))
            raise CheckpointWriteError(f"checkpoint of step {step} could not be written to {partial}: {cause}") from error

    def _clear_away(self, partial: Path, member: Member, cause: str) -> None:
        """Give the disk back, this rank's own files first: then there is room for the word that it failed."""
        with contextlib.suppress(OSError):
            for file in partial.glob(f"__{member.rank}_*"):
                file.unlink()
            (partial / f"failed-{member.rank}").write_text(cause)
        if member.rank == 0 and self._all_ended(partial, member):
            shutil.rmtree(partial, ignore_errors=True)

    def _all_ended(self, partial: Path, member: Member) -> bool:
        """Wait until no peer writes to ``partial``; not for ever, as one may have died: then the next fence clears up."""

        def ended(rank: int) -> bool:
            return (partial / f"done-{rank}").exists() or (partial / f"failed-{rank}").exists()

        deadline = time.monotonic() + _PATIENCE_SECONDS
        while partial.exists() and not all(ended(rank) for rank in range(1, member.world_size)):
            if time.monotonic() > deadline or self._closing.wait(_FIRST_POLL_SECONDS):
                return False
        return True

    def _write_rank(self, partial: Path, planner: "_HostCopyPlanner", local_plan: SavePlan, member: Member) -> None:
        writer = HashingWriter(partial)
        writer.set_up_storage_writer(member.rank == 0)
        local_plan = writer.prepare_local_plan(local_plan)
        put(partial, f"plan-{member.rank}", local_plan)
        plans = [self._get(partial, f"plan-{rank}", member) for rank in range(member.world_size)]
        # Pure: every rank computes the same global plan, in which each replicated tensor has one writer.
        plans, planner.global_metadata = planner.create_global_plan(plans)
        plan = planner.finish_plan(writer.prepare_global_plan(plans)[member.rank])
        results = writer.write_data(plan, planner).value()
        for file in writer.hashes:
            verify(partial / file, writer.hashes[file])
        put(partial, f"done-{member.rank}", _Receipt(results, writer.hashes))

    def _commit(self, partial: Path, final: Path, step: int, planner: "_HostCopyPlanner", member: Member) -> None:
        receipts: list[_Receipt] = [self._get(partial, f"done-{rank}", member) for rank in range(member.world_size)]
        writer = HashingWriter(partial)
        writer.finish(planner.global_metadata, [receipt.results for receipt in receipts])
        hashes = dict(writer.metadata_hashes())
        for receipt in receipts:
            hashes |= receipt.hashes
        files = {name: {"bytes": size, "xxh3_128": digest} for name, (size, digest) in sorted(hashes.items())}
        manifest = {
            "format": 1,
            "step": step,
            "world_size": member.world_size,
            "attempt": self._attempt,
            "generation": member.generation,
            "files": files,
        }
        write_synced(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
        for rank in range(member.world_size):
            (partial / f"plan-{rank}").unlink()
            (partial / f"done-{rank}").unlink()
        sync_directory(partial)
        info = CheckpointInfo(step, final, sum(size for size, _ in hashes.values()))
        if self._is_fenced(member.generation):
            shutil.rmtree(partial, ignore_errors=True)
            self._on_event({"type": "fenced", "step": step, "path": str(partial), "bytes": 0})
            return
        if final.exists():
            if is_whole(final):  # the same step of the same run, saved before a restart
                shutil.rmtree(partial)
                return
            shutil.rmtree(final)
        partial.rename(final)
        sync_directory(self.directory)
        self._on_event({"type": "committed", "step": step, "path": str(final), "bytes": info.bytes})
        self._prune(final)

    def _prune(self, newest: Path) -> None:
        """Keep the last ones up to ``newest``. Whatever is newer was torn when the run went on from before it."""
        for path in self.directory.glob("step-*"):
            if PARTIAL in path.name:
                if step_of(path) <= step_of(newest):
                    shutil.rmtree(path, ignore_errors=True)
            elif step_of(path) > step_of(newest):
                self._delete(path)
        for info in self.committed()[: -self.keep_last]:
            self._delete(info.path)

    def _delete(self, path: Path) -> None:
        info = read_info(path)
        (path / MANIFEST).unlink(missing_ok=True)  # first, so that a half-deleted checkpoint is a torn one
        shutil.rmtree(path)
        self._on_event({"type": "deleted", "step": step_of(path), "path": str(path), "bytes": info.bytes if info else 0})

    def _get(self, partial: Path, name: str, member: Member) -> Any:
        """Another rank's file; waits for it. Ends when this store is closed or a rank says that it failed."""
        poll = _FIRST_POLL_SECONDS
        while not (partial / name).exists():
            for failed in partial.glob("failed-*"):
                raise OSError(f"rank {failed.name.partition('-')[2]} failed: {failed.read_text()}")
            if self._closing.wait(poll):
                raise OSError(f"closed while rank {member.rank} waited for {name}")
            poll = min(poll * 1.5, _LAST_POLL_SECONDS)
        return pickle.loads((partial / name).read_bytes())


@dataclass(frozen=True)
class _Receipt:
    """One rank's word that its files are on disk as meant."""

    results: list[Any]
    hashes: dict[str, tuple[int, str]]


class _HostCopyPlanner(DefaultSavePlanner):
    """Plans a save and answers for the tensors with copies in host memory, taken when ``copy_to_host`` is called.

    ``buffers`` are kept from save to save: only one write is in flight, so they are free again, and a fresh allocation's
    page faults would cost more than the copy.
    """

    def __init__(self, buffers: dict[MetadataIndex, torch.Tensor]) -> None:
        super().__init__()
        self._buffers = buffers
        self._bytes: dict[MetadataIndex, bytes] = {}
        self.global_metadata: Any = None

    def copy_to_host(self) -> SavePlan:
        plan = self.create_local_plan()
        for item in plan.items:
            value = super().resolve_data(item)
            if item.type == WriteItemType.BYTE_IO:
                self._bytes[item.index] = cast(io.BytesIO, value).getvalue()
            else:
                self._copy(item.index, cast(torch.Tensor, value).detach())
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        self.state_dict = {}  # the live tensors move on with training; nothing may read them from here
        return plan

    def _copy(self, index: MetadataIndex, tensor: torch.Tensor) -> None:
        buffer = self._buffers.get(index)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[index] = buffer
        buffer.copy_(tensor, non_blocking=True)

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            return io.BytesIO(self._bytes[write_item.index])
        return self._buffers[write_item.index]
