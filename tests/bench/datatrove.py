"""datatrove as a peer: an environment of its own, made when it is missing, and processes that wait for each other."""

import json
import os
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

FOLDER = Path(__file__).parent / "peers" / "datatrove"
CACHE = Path(__file__).parents[2] / ".cache" / "bench"
# Manta's own packages are not to be found by the other environment.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
}


@dataclass(frozen=True)
class Spent:
    """Seconds, from when all was started and warm."""

    wall: float
    cpu: float
    """Of all processes."""

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.wall + other.wall, self.cpu + other.cpu)


class Datatrove:
    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._python = _environment()
        self.start_seconds = 0.0
        """The longest that a step's processes took until they were ready."""
        self.peak_bytes = 0

    def ask(self, step: str, **config: Any) -> Any:
        """What a step that is not timed answers."""
        command = [self._python, FOLDER / "run.py", json.dumps({"step": step, **config})]
        return json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout.splitlines()[-1]
        )

    def spend(self, *steps: str, **config: Any) -> Spent:
        """Runs steps one after another, each on all processes at once."""
        spent = Spent(0.0, 0.0)
        for step in steps:
            spent += self._step({"step": step, "world": self._processes, **config})
        return spent

    def _step(self, config: dict[str, Any]) -> Spent:
        before = time.perf_counter()
        processes = [
            subprocess.Popen(
                [self._python, FOLDER / "run.py", json.dumps({**config, "rank": rank})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=ENVIRONMENT,
            )
            for rank in range(self._processes)
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n", f"datatrove cannot start {config['step']}"
            self.start_seconds = max(self.start_seconds, time.perf_counter() - before)
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            answers = [json.loads(process.communicate()[0]) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        self.peak_bytes = max(self.peak_bytes, *(answer["peak_bytes"] for answer in answers))
        return Spent(max(answer["wall"] for answer in answers), sum(answer["cpu"] for answer in answers))


def _environment() -> Path:
    """The Python of a virtual environment with the pinned requirements; made once for each version of them."""
    requirements = FOLDER / "requirements.txt"
    home = CACHE / f"datatrove-{xxhash.xxh3_64_hexdigest(requirements.read_bytes())}"
    python, done = home / "bin" / "python", home / "installed"
    if not done.is_file():
        print(f"installing datatrove into {home}", file=sys.stderr, flush=True)
        venv.create(home, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", requirements]
        subprocess.run(install, check=True, env=ENVIRONMENT)
        done.touch()
    return python
