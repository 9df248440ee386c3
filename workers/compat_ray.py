"""Everything private of Ray Train 2.60 that Manta leans on, and why. tests/workers/test_compat_ray.py fails when it moves.

Ray Train is the launcher and the safety net. Between a driver and its first step it starts four helper actors, each a
Python process of a second or more, and none of them does anything for Manta; stopping one of them takes 12 s (its
``stop`` waits for a thread that is asleep). So the trainer here

- runs Ray's controller in the driver's own process, not as an actor;
- leaves out the placement group cleaner: the group belongs to the driver's job, and Ray removes it when the driver is gone;
- leaves out the report barrier and the autoscaling coordinator: ranks report over HTTP, the placement group is the demand;
- has workers of its own (``workers.early``) without a ``runtime_env``: the first group takes those that the driver has
  started earlier, and a worker sleeps while it trains;
- derives from ``TorchTrainer``'s base: what ``TorchTrainer`` adds is the default process group, which Manta never uses,
  and an import of torch in the driver.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks import AcceleratorSetupCallback, BackendSetupCallback
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup
from ray.train.v2._internal.execution.worker_group import state as group_state
from ray.train.v2._internal.execution.worker_group import worker_group as group_module
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from workers.early import EarlyWorkers, settle, workers_in

__all__ = [
    "Backend",
    "BackendConfig",
    "ControllerError",
    "FailureDecision",
    "LeanTrainer",
    "TrainingFailedError",
    "WorkerGroupCallback",
    "WorkerGroupError",
    "is_dead",
]

CONTROLLER_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # Ray waits for so long and then sleeps for so long: a death is seen in 0.5 s
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",  # needs the controller to be an actor
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more actor
}

WORKER_SETTINGS = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every printed line comes twice
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",  # else every logged line does
}


def is_dead(error: BaseException) -> bool:
    """Whether Ray reports that a worker's process is gone, and not that its function raised."""
    return isinstance(error, (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError, ray.exceptions.RayActorError))


class LeanTrainer(DataParallelTrainer):
    """Ray Train's trainer without the helpers.

    ``watch`` stays in this process, unlike callbacks in ``RunConfig``, which travel to the workers. ``retry(error) -> bool``
    is asked before Ray's own count of failures; ``not_started(error)`` is told of every group that did not start.
    ``early``: workers of the first group.
    """

    def __init__(
        self,
        *args: Any,
        watch: WorkerGroupCallback,
        retry: Any,
        not_started: Any,
        early: EarlyWorkers | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._early = [] if early is None else [early]
        self._watch = watch
        self._retry = retry
        self._not_started = not_started

    def _create_default_callbacks(self) -> list[Any]:
        return [
            AcceleratorSetupCallback(self.backend_config, self.scaling_config),
            BackendSetupCallback(self.backend_config),
            self._watch,
        ]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        settings["scaling_policy"] = _NoAutoscaler(self.scaling_config)
        settings["failure_policy"] = _AskingPolicy(self.run_config.failure_config, self._retry, self._not_started)
        with _environment(CONTROLLER_SETTINGS), _lean_group():
            controller = _Controller(**settings)
            early = self._early

            class Group(_WorkerGroup):
                _early = early

            controller.worker_group_cls = Group
            try:
                asyncio.run(controller.run())
            finally:
                # SIGTERM ends up here: the workers go before the driver does.
                if (group := controller.get_worker_group()) is not None and group.has_started():
                    _kill(group.get_workers())
            return controller.get_result()


class _WorkerGroup(WorkerGroup):
    _early: ClassVar[list[EarlyWorkers]] = []
    """Taken by the first group that is created."""
    _taken: EarlyWorkers | None = None

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> Any:
        if not self._early:
            return super()._create_placement_group(scaling_config, worker_group_context)
        self._taken = self._early.pop()
        return DefaultPlacementGroupHandle(self._taken.group)

    def _create_workers(self, num_workers: int, placement_group: Any, resources_per_worker: Any, **settings: Any) -> list[Any]:
        early = None if self._taken is None else self._taken.actors
        actors = early or workers_in(placement_group, num_workers, resources_per_worker)
        try:
            found = ray.get([actor.get_metadata.remote() for actor in actors])
        except ray.exceptions.RayActorError as error:
            for actor in actors:
                ray.kill(actor)
            raise WorkerGroupStartupFailedError(f"a worker did not start: {error}") from error
        workers = [
            Worker(actor, metadata, resources_per_worker, placement_group_bundle_index=i)
            for i, (actor, metadata) in enumerate(zip(actors, found, strict=True))
        ]
        return WorkerGroup._assign_worker_ranks(workers)

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        """Ray's own asks for the handle of the controller's actor, which does not exist here."""
        settled = [worker.execute_async(settle, WORKER_SETTINGS) for worker in workers]
        ray.get(
            settled
            + [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[i] for name, values in train_context_args.items()},
                )
                for i, worker in enumerate(workers)
            ]
        )

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Mapping[str, Any]) -> dict[str, Any]:
        return dict(custom_runtime_env)


class _Controller(TrainController):
    worker_group_cls = _WorkerGroup


class _NoAutoscaler(FixedScalingPolicy):
    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _AskingPolicy(DefaultFailurePolicy):
    """Ray would start a group whose workers die at their start again for ever: that counts as a failure of workers here.

    A group that found no room in time is another matter: the job waits its turn, without limit as Ray has it.
    """

    def __init__(self, failure_config: Any, retry: Any, not_started: Any) -> None:
        super().__init__(failure_config)
        self._retry = retry
        self._not_started = not_started

    def make_decision(self, training_failed_error: Any) -> Any:
        if isinstance(training_failed_error, WorkerGroupError) and not self._retry(training_failed_error):
            return FailureDecision.RAISE
        if isinstance(training_failed_error, ControllerError):
            cause = training_failed_error.controller_failure
            self._not_started(cause)
            if isinstance(cause, WorkerGroupStartupFailedError) or is_dead(cause):
                self._worker_group_failures += 1
                spent = 0 <= self.failure_config.max_failures < self._worker_group_failures
                return FailureDecision.RAISE if spent else FailureDecision.RETRY
        return super().make_decision(training_failed_error)


class _NoBarrier:
    """In place of the actor behind ``ray.train.report``, which Manta never calls."""

    @classmethod
    def options(cls, **options: Any) -> "type[_NoBarrier]":
        return cls

    @classmethod
    def remote(cls, **settings: Any) -> "_NoBarrier":
        return cls()


@contextmanager
def _lean_group() -> Iterator[None]:
    """No actor for the report barrier, and none to stop. Workers have no hooks for their end: they go at once."""
    before = group_module.SynchronizationActor, group_state._shutdown_sync_actor, group_state._shutdown_workers
    group_module.SynchronizationActor = _NoBarrier
    group_state._shutdown_sync_actor = lambda sync_actor: None
    group_state._shutdown_workers = _kill
    try:
        yield
    finally:
        group_module.SynchronizationActor, group_state._shutdown_sync_actor, group_state._shutdown_workers = before


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        ray.kill(worker.actor)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
