"""A preparation that is killed at a step of each kind in turn and then finished: ``python -m tests.data.killed SPEC FOLDER``.

A step is whatever changes a name on disk; before the chosen one the process sends itself SIGKILL. Of steps that differ in
numbers alone it is the second, so that something is done already. This is a process of its own because it forks. Its last line
is the answer, for ``tests/data/test_resume.py``.
"""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from data.digests import FOLDER as DIGESTS
from data.errors import MantaError
from data.executors import SerialExecutor
from data.files import checksum
from data.prepare import prepare
from data.spec import DataSpec, TokenizerSpec

TOKENIZER = TokenizerSpec(vocab_size=400)


class Attempt(TypedDict):
    killed: bool
    steps: list[str]
    """``replace FOLDER/FILE``, ``rename``, ``unlink``, ``rmdir``; last, where it is one, ``error CODE``."""


class Answer(TypedDict):
    whole: Attempt
    killed: list[Attempt]
    again: list[Attempt]
    same: list[bool]
    """Whether what is there in the end is, to the byte, what is there without a kill."""


def attempt(spec: DataSpec, root: Path, kill_at: int | None = None) -> Attempt:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        _count_steps(write, kill_at)
        try:
            prepare(spec, TOKENIZER, root, SerialExecutor(), lambda progress: None)
        except MantaError as error:
            os.write(write, f"error {error.code}\n".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        steps = file.read().splitlines()
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return Attempt(killed=os.WIFSIGNALED(status), steps=steps)


def _count_steps(write: int, kill_at: int | None) -> None:
    taken = 0

    def counted(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def step(*paths: Any, **options: Any) -> None:
            nonlocal taken
            taken += 1
            if taken == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            change(*paths, **options)
            # Where a file goes to; what is deleted is deleted in an order of the file system's.
            os.write(write, f"{name} {'/'.join(Path(paths[1]).parts[-2:]) if name == 'replace' else ''}\n".encode())

        return step

    for name in ("replace", "rename", "unlink", "rmdir"):
        setattr(os, name, counted(name, getattr(os, name)))


def _one_of_each_kind(steps: list[str]) -> list[int]:
    chosen: dict[str, list[int]] = {}
    for number, step in enumerate(steps, 1):
        what, _, path = step.partition(" ")
        kind = re.sub(r"[\da-f]{32}|[\d-]+|train|held_out", "", f"{what} {Path(path).name}")
        chosen.setdefault(kind, []).append(number)
    return [numbers[:2][-1] for kind, numbers in chosen.items() if not kind.startswith("error")]


def files(root: Path) -> dict[str, str]:
    """But for locks and what is remembered of inputs."""
    found = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock" and DIGESTS not in path.parts)
    return {str(path.relative_to(root)): checksum(path) for path in found}


def main(spec: DataSpec, folder: Path) -> Answer:
    answer = Answer(whole=attempt(spec, folder / "whole"), killed=[], again=[], same=[])
    for step in _one_of_each_kind(answer["whole"]["steps"]):
        root = folder / "killed"
        answer["killed"].append(attempt(spec, root, step))
        answer["again"].append(attempt(spec, root))
        answer["same"].append(files(root) == files(folder / "whole"))
        shutil.rmtree(root)
    return answer


if __name__ == "__main__":
    print(json.dumps(main(DataSpec.model_validate_json(sys.argv[1]), Path(sys.argv[2]))))
