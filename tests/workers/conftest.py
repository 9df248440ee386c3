"""What the engine's tests share: a tiny prepared data set, and a session's pool of two processes that form gloo groups."""

import random
import socket
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from data.executors import SerialExecutor
from data.prepare import prepare
from data.spec import DataSpec, SourceSpec, TokenizerSpec
from workers.mesh import Membership

ROOT = str(Path(__file__).parents[2])
TIMEOUT_SECONDS = 120
WORDS = ["the", "a", "cat", "dog", "bird", "sees", "hears", "likes", "old", "red", "green", "house", "and", "when", "because"]


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred short documents as packed rows of 32 tokens (vocabulary 300), prepared as the product does it."""
    root = tmp_path_factory.mktemp("tiny")
    draw = random.Random(0)
    for i in range(200):
        (root / f"{i:03}.txt").write_text(" ".join(draw.choices(WORDS, k=draw.randint(20, 60))) + f" number {i}.")
    source = SourceSpec(path=str(root / "*.txt"))
    data = DataSpec(sources=(source,), sequence_length=32, held_out_fraction=0.1)
    return prepare(data, TokenizerSpec(vocab_size=300), root / "prepared", SerialExecutor(), lambda progress: None).path


class GlooPool:
    """Processes that outlive their groups: each call runs one function on the first ``world_size`` of them."""

    def __init__(self, size: int) -> None:
        context = get_context("spawn")
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []
        self.generation = 0
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self.processes.append(process)
            self.pipes.append(ours)

    def run(self, fn: Callable[..., Any], *arguments: Any, world_size: int = 2) -> list[Any]:
        """``fn(membership, *arguments)`` on each rank of a new generation; the results by rank. ``fn`` is a module's own."""
        self.generation += 1
        port = free_port()
        for rank in range(world_size):
            member = Membership(generation=self.generation, rank=rank, world_size=world_size, local_rank=rank, master_port=port)
            self.pipes[rank].send((fn, member, arguments))
        return [self._answer(rank) for rank in range(world_size)]

    def _answer(self, rank: int) -> Any:
        assert self.pipes[rank].poll(TIMEOUT_SECONDS), f"rank {rank} does not answer"
        good, value = self.pipes[rank].recv()
        if not good:
            pytest.fail(f"rank {rank}: {value}")
        return value

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            process.kill()


def _serve(pipe: Connection) -> None:
    import traceback

    import torch

    torch.set_num_threads(1)
    while True:
        try:
            fn, member, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, fn(member, *arguments)))
        except Exception:  # noqa: BLE001 - whatever a rank raises belongs in the test's report
            pipe.send((False, traceback.format_exc()))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="session")
def gloo_pool() -> Iterator[GlooPool]:
    # The spawned processes import the tests' modules by name, as this one did.
    if ROOT not in sys.path:
        sys.path.insert(0, ROOT)
    pool = GlooPool(2)
    yield pool
    pool.close()
