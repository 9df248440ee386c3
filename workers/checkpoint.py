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
import os
import pickle
import shutil
import threading
import warnings
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
import xxhash
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load

from data.errors import MantaError

MANIFEST = "manifest.json"
_PARTIAL = ".partial"
_FENCE = "fence.json"
_FIRST_POLL_SECONDS = 0.005
_LAST_POLL_SECONDS = 0.2


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


@dataclass(frozen=True)
class CheckpointInfo:
    """A whole checkpoint: ``step`` optimizer steps are done in it; ``bytes`` on disk."""

    step: int
    path: Path
    bytes: int


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

    def close(self) -> None:
        """Give up waiting for other ranks, end the writer thread. Call ``wait`` first to keep the write in flight."""
        self._closing.set()
        self._writer.shutdown(wait=True, cancel_futures=True)

    def committed(self) -> list[CheckpointInfo]:
        """Committed checkpoints, oldest first. Hashes are not verified."""
        return sorted((i for p in self.directory.glob("step-*") if (i := _read_info(p))), key=lambda i: i.step)

    def latest(self) -> CheckpointInfo | None:
        """The newest whole checkpoint: its manifest is there and every file has its size and hash."""
        for path in sorted(self.directory.glob("step-*"), reverse=True):
            if _PARTIAL in path.name:
                continue
            if (info := _read_info(path)) is not None and _is_whole(path):
                return info
            self._on_event({"type": "torn", "step": _step_of(path), "path": str(path), "bytes": 0})
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
        for path in self.directory.glob(f"step-*{_PARTIAL}"):
            shutil.rmtree(path, ignore_errors=True)
        if (self._attempt, generation) > self._fence():
            text = json.dumps({"attempt": self._attempt, "generation": generation})
            temporary = self.directory / f"{_FENCE}.{self._attempt}-{generation}"
            _write_synced(temporary, text.encode())
            temporary.rename(self.directory / _FENCE)

    def _fence(self) -> tuple[int, int]:
        try:
            fence = json.loads((self.directory / _FENCE).read_text())
        except FileNotFoundError:
            return (0, 0)
        return (fence["attempt"], fence["generation"])

    def _write(self, step: int, planner: "_HostCopyPlanner", local_plan: SavePlan, member: Member) -> None:
        name = f"step-{step:08d}"
        partial = self.directory / f"{name}.a{self._attempt}-g{member.generation}{_PARTIAL}"
        try:
            partial.mkdir(exist_ok=True)
            self._write_rank(partial, planner, local_plan, member)
            if member.rank == 0:
                self._commit(partial, self.directory / name, step, planner, member)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns an OSError into a RuntimeError
            cause = _root_cause(error)
            with contextlib.suppress(OSError):
                (partial / f"failed-{member.rank}").write_text(str(cause))
            if member.world_size == 1:
                shutil.rmtree(partial, ignore_errors=True)  # give the disk back; with peers rank 0's next commit does
            raise CheckpointWriteError(f"checkpoint of step {step} could not be written to {partial}: {cause}") from error

    def _write_rank(self, partial: Path, planner: "_HostCopyPlanner", local_plan: SavePlan, member: Member) -> None:
        writer = _HashingWriter(partial)
        writer.set_up_storage_writer(member.rank == 0)
        local_plan = writer.prepare_local_plan(local_plan)
        _put(partial, f"plan-{member.rank}", local_plan)
        plans = [self._get(partial, f"plan-{rank}", member) for rank in range(member.world_size)]
        # Pure: every rank computes the same global plan, in which each replicated tensor has one writer.
        plans, planner.global_metadata = planner.create_global_plan(plans)
        plan = planner.finish_plan(writer.prepare_global_plan(plans)[member.rank])
        results = writer.write_data(plan, planner).value()
        for file in writer.hashes:
            _verify(partial / file, writer.hashes[file])
        _put(partial, f"done-{member.rank}", _Receipt(results, writer.hashes))

    def _commit(self, partial: Path, final: Path, step: int, planner: "_HostCopyPlanner", member: Member) -> None:
        receipts: list[_Receipt] = [self._get(partial, f"done-{rank}", member) for rank in range(member.world_size)]
        writer = _HashingWriter(partial)
        writer.finish(planner.global_metadata, [receipt.results for receipt in receipts])
        hashes = dict(writer.metadata_hashes())
        for receipt in receipts:
            hashes |= receipt.hashes
        files = {name: {"bytes": size, "xxh3_128": digest} for name, (size, digest) in sorted(hashes.items())}
        for rank in range(member.world_size):
            (partial / f"plan-{rank}").unlink()
            (partial / f"done-{rank}").unlink()
        manifest = {
            "format": 1,
            "step": step,
            "world_size": member.world_size,
            "attempt": self._attempt,
            "generation": member.generation,
            "files": files,
        }
        _write_synced(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync_directory(partial)
        info = CheckpointInfo(step, final, sum(size for size, _ in hashes.values()))
        if self._fence() > (self._attempt, member.generation):
            shutil.rmtree(partial, ignore_errors=True)
            self._on_event({"type": "fenced", "step": step, "path": str(partial), "bytes": 0})
            return
        if final.exists():
            if _is_whole(final):  # the same step of the same run, saved before a restart
                shutil.rmtree(partial)
                return
            shutil.rmtree(final)
        partial.rename(final)
        _sync_directory(self.directory)
        self._on_event({"type": "committed", "step": step, "path": str(final), "bytes": info.bytes})
        self._prune(final)

    def _prune(self, newest: Path) -> None:
        for info in self.committed()[: -self.keep_last]:
            (info.path / MANIFEST).unlink()  # first, so that a half-deleted checkpoint is a torn one
            shutil.rmtree(info.path)
            self._on_event({"type": "deleted", "step": info.step, "path": str(info.path), "bytes": info.bytes})
        for path in self.directory.glob(f"step-*{_PARTIAL}"):
            if _step_of(path) <= _step_of(newest):
                shutil.rmtree(path, ignore_errors=True)

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


class _HashingStream(io.RawIOBase):
    """Passes writes on to ``file`` and hashes what it was given, so that what the disk holds can be compared with it."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._hash = xxhash.xxh3_128()
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self._size += len(view)
        written = 0
        while written < len(view):
            written += self._file.write(view[written:]) or 0
        return len(view)

    def tell(self) -> int:
        return self._size

    def fileno(self) -> int:
        return self._file.fileno()

    def receipt(self) -> tuple[int, str]:
        return (self._size, self._hash.hexdigest())


class _HashingFileSystem(FileSystem):
    def __init__(self) -> None:
        self.hashes: dict[str, tuple[int, str]] = {}

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        with open(path, mode, buffering=0) as file:
            stream = _HashingStream(cast(io.FileIO, file))
            yield stream
            self.hashes[Path(path).name] = stream.receipt()


class _HashingWriter(FileSystemWriter):
    """torch's own file system writer, with the hash of every file that it wrote."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, single_file_per_rank=True, sync_files=True)
        self.fs: _HashingFileSystem = _HashingFileSystem()

    @property
    def hashes(self) -> dict[str, tuple[int, str]]:
        return self.fs.hashes

    def metadata_hashes(self) -> dict[str, tuple[int, str]]:
        """After ``finish``: torch writes its metadata under a temporary name and renames it."""
        found = {name.removesuffix(".tmp"): receipt for name, receipt in self.hashes.items()}
        for name, receipt in found.items():
            _verify(Path(self.path) / name, receipt)
        return found


def _verify(path: Path, expected: tuple[int, str]) -> None:
    if (found := _hash_file(path)) != expected:
        raise OSError(f"{path} reads back as {found}, {expected} was written")


def _hash_file(path: Path) -> tuple[int, str]:
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return (size, digest.hexdigest())


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None


def _read_info(path: Path) -> CheckpointInfo | None:
    if _PARTIAL in path.name or (manifest := _read_manifest(path)) is None:
        return None
    return CheckpointInfo(manifest["step"], path, sum(file["bytes"] for file in manifest["files"].values()))


def _is_whole(path: Path) -> bool:
    if (manifest := _read_manifest(path)) is None:
        return False
    try:
        return all(_hash_file(path / name) == (f["bytes"], f["xxh3_128"]) for name, f in manifest["files"].items())
    except OSError:
        return False


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-")[:8])


def _put(partial: Path, name: str, value: Any) -> None:
    """Appears to the other ranks whole: written under another name, then renamed."""
    temporary = partial / f".{name}"
    temporary.write_bytes(pickle.dumps(value))
    temporary.rename(partial / name)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _root_cause(error: BaseException) -> BaseException:
    """The OSError (with its errno and path) below torch's wrapping, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error
