"""Worker processes that start, and import what they will need, while the driver is still importing Ray Train.

Light on purpose: Ray itself and nothing of Ray Train is imported here. What is started is adopted by the first worker group.
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


def settle(settings: Mapping[str, str]) -> None:
    """Run in a worker: sets variables of its process. (``os.environ.update`` would travel with a copy, and change that.)"""
    os.environ.update(settings)


class TrainWorker:
    """Ray Train's own worker, behind a class that can be started without importing Ray Train first."""

    def __init__(self) -> None:
        from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

        self._worker = RayTrainWorker()
        for module in MODULES:
            importlib.import_module(module)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        return self._worker.execute(*args, **kwargs)

    def run_train_fn(self, *args: Any) -> None:
        self._worker.run_train_fn(*args)

    def get_metadata(self) -> Any:
        return self._worker.get_metadata()

    def poll_status(self) -> Any:
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
    resources: dict[str, float]


def worker_resources(spec: TrainSpec) -> dict[str, float]:
    """What one worker takes of the cluster."""
    cpus: dict[str, float] = {"CPU": spec.gpu_config.cpus_per_worker}
    return cpus | {"GPU": 1.0} if spec.gpu_config.gpus_per_node > 0 else cpus


def start_workers(number: int, resources: Mapping[str, float]) -> EarlyWorkers:
    """Ask for ``number`` workers with ``resources`` (``CPU``, ``GPU``) each; returns at once."""
    group = placement_group([dict(resources)] * number, strategy="PACK")
    worker = ray.remote(num_cpus=resources.get("CPU", 0), num_gpus=resources.get("GPU", 0))(TrainWorker)
    strategies = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i) for i in range(number)]
    return EarlyWorkers(group, [worker.options(scheduling_strategy=s).remote() for s in strategies], dict(resources))
