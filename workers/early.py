"""Worker processes, which start and import what they will need while the driver is still importing Ray Train.

Light on purpose: Ray itself and nothing of Ray Train is imported here. What is started early is adopted by the first worker
group; later groups start the same workers.
"""

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from workers.spec import TrainSpec

MODULES = ("workers.rank", "workers.loop", "torch.distributed.fsdp", "torch._dynamo", "ray.air._internal.torch_utils")
"""What every rank imports sooner or later; the last two lazily, when its model is sharded and when it is done."""

POLL_SECONDS = 30.0
"""How long a worker lets Ray's controller wait for its status while it trains. The controller sees a death meanwhile, and
takes a worker that has not answered for one that runs, up to ten minutes."""


def settle(settings: Mapping[str, str]) -> None:
    """Run in a worker: sets variables of its process. (``os.environ.update`` would travel with a copy, and change that.)"""
    os.environ.update(settings)


class TrainWorker:
    """Ray Train's own worker, behind a class that can be started without importing Ray Train first."""

    def __init__(self) -> None:
        from ray.train.v2._internal.execution.context import get_train_context
        from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

        self._worker = RayTrainWorker()
        self._context = get_train_context
        for module in MODULES:
            importlib.import_module(module)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        return self._worker.execute(*args, **kwargs)

    def run_train_fn(self, *args: Any) -> None:
        self._worker.run_train_fn(*args)

    def get_metadata(self) -> Any:
        return self._worker.get_metadata()

    def poll_status(self) -> Any:
        """Answers when training has ended, or after ``POLL_SECONDS``.

        A main thread with nothing to do is woken by Ray a hundred times a second to look for signals, each time at the cost
        of the training thread's caches: 3 to 5 % of a small step. Asleep in here it is not, and signals still reach it.
        """
        training = self._context().execution_context.training_thread_runner._thread
        if training is not None:
            training.join(POLL_SECONDS)
        return self._worker.poll_status()

    def init_train_context(self, **settings: Any) -> None:
        self._worker.init_train_context(**settings)

    def shutdown(self) -> None:
        self._worker.shutdown()


@dataclass(frozen=True)
class EarlyWorkers:
    """One worker in each bundle of the group; they start when the cluster has room for all of them."""

    group: PlacementGroup
    actors: list[Any]


def worker_resources(spec: TrainSpec) -> dict[str, float]:
    """What one worker takes of the cluster."""
    cpus: dict[str, float] = {"CPU": spec.gpu_config.cpus_per_worker}
    return cpus | {"GPU": 1.0} if spec.gpu_config.gpus_per_node > 0 else cpus


def start_workers(number: int, resources: Mapping[str, float]) -> EarlyWorkers:
    """Ask for ``number`` workers with ``resources`` (``CPU``, ``GPU``) each; returns at once."""
    group = placement_group([dict(resources)] * number, strategy="PACK")
    return EarlyWorkers(group, workers_in(group, number, resources))


def workers_in(group: PlacementGroup, number: int, resources: Mapping[str, float]) -> list[Any]:
    """Ask for a worker in each of the first ``number`` bundles of ``group``; returns at once."""
    worker = ray.remote(num_cpus=resources.get("CPU", 0), num_gpus=resources.get("GPU", 0))(TrainWorker)
    strategies = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i) for i in range(number)]
    return [worker.options(scheduling_strategy=strategy).remote() for strategy in strategies]
