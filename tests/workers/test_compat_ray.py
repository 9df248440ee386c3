"""Fails when an upgrade of Ray moves what ``workers/compat_ray.py`` leans on."""

import inspect
import threading
from types import SimpleNamespace

import pytest
from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group
from ray.train.v2._internal.execution.worker_group.thread_runner import ThreadRunner
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.torch.torch_trainer import TorchTrainer

from workers import compat_ray
from workers.compat_ray import ControllerError, TrainingFailedError, WorkerGroupError
from workers.early import TrainWorker, settle


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (DataParallelTrainer, "_create_default_callbacks", ["self"]),
        (DataParallelTrainer, "_initialize_and_run_controller", ["self", "controller_init_kwargs"]),
        (WorkerGroup, "_init_train_context_on_workers", ["self", "workers", "sync_actor", "train_context_args"]),
        (WorkerGroup, "_get_worker_runtime_env", ["custom_runtime_env"]),
        (WorkerGroup, "_create_placement_group", ["self", "scaling_config", "worker_group_context"]),
        (
            WorkerGroup,
            "_assign_worker_ranks",
            ["workers", "starting_world_rank", "world_size", "replica_group_size"],
        ),
        (FixedScalingPolicy, "_maybe_send_resource_request", ["self"]),
        (FixedScalingPolicy, "after_controller_start", ["self", "train_run_context"]),
        (TrainController, "run", ["self"]),
        (TrainController, "get_result", ["self"]),
        (TrainController, "get_worker_group", ["self"]),
        (state, "_shutdown_sync_actor", ["sync_actor"]),
        (state, "_shutdown_workers", ["workers", "patience_s"]),
    ],
)
def test_ray_still_has_what_is_overridden(owner: object, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_ray_still_makes_the_barrier_from_that_name() -> None:
    assert "SynchronizationActor.options(" in inspect.getsource(WorkerGroup._start_impl)
    with compat_ray._lean_group():
        assert worker_group.SynchronizationActor is compat_ray._NoBarrier
        assert worker_group.SynchronizationActor.options(label_selector={}).remote(timeout_s=None) is not None
    assert worker_group.SynchronizationActor is not compat_ray._NoBarrier


def test_the_controller_makes_its_group_from_that_attribute() -> None:
    assert TrainController.worker_group_cls is WorkerGroup
    assert "self.worker_group_cls.create(" in inspect.getsource(TrainController._start_worker_group)


def test_the_trainer_is_torch_trainers_base() -> None:
    assert TorchTrainer.__bases__ == (DataParallelTrainer,)
    assert issubclass(compat_ray.LeanTrainer, DataParallelTrainer)


def test_the_early_worker_answers_whatever_a_worker_group_asks() -> None:
    asked = {"execute", "run_train_fn", "get_metadata", "poll_status", "init_train_context", "shutdown"}
    assert asked <= {name for name, _ in inspect.getmembers(RayTrainWorker, inspect.isfunction)}
    assert asked <= {name for name, _ in inspect.getmembers(TrainWorker, inspect.isfunction)}
    only_for_replicas_and_preemption = {"clear_result_queue", "mark_preempt", "__init__"}
    have = {name for name, _ in inspect.getmembers(RayTrainWorker, inspect.isfunction)}
    assert have - asked - only_for_replicas_and_preemption == set()


def test_a_worker_sleeps_until_its_training_has_ended() -> None:
    runner, end, statuses = ThreadRunner(), threading.Event(), []
    worker = TrainWorker.__new__(TrainWorker)
    worker._context = lambda: SimpleNamespace(execution_context=SimpleNamespace(training_thread_runner=runner))
    worker._worker = SimpleNamespace(poll_status=lambda: "running" if runner.is_running() else "ended")
    assert worker.poll_status() == "ended"  # before training there is nothing to wait for
    runner.run(end.wait)
    asker = threading.Thread(target=lambda: statuses.append(worker.poll_status()))
    asker.start()
    end.set()
    asker.join()
    assert statuses == ["ended"]


def test_settings_of_the_controller_do_not_outlive_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    monkeypatch.delenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", raising=False)
    import os

    with compat_ray._environment(compat_ray.CONTROLLER_SETTINGS):
        assert (
            os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]
            == compat_ray.CONTROLLER_SETTINGS["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]
        )
    assert os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7"
    assert "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER" not in os.environ


def test_settings_of_a_worker_reach_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TRAIN_ENABLE_PRINT_PATCH", raising=False)
    travelled = cloudpickle.loads(cloudpickle.dumps(settle))
    travelled(compat_ray.WORKER_SETTINGS)
    import os

    assert os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] == "0"


class Policy:
    """With a budget of two restarts; every worker's failure may be tried again."""

    def __init__(self) -> None:
        self.told: list[BaseException] = []
        self._policy = compat_ray._AskingPolicy(FailureConfig(max_failures=2), lambda error: True, self.told.append)

    def says(self, *errors: TrainingFailedError) -> list[str]:
        return [self._policy.make_decision(error).name for error in errors]


@pytest.mark.parametrize("cause", [WorkerGroupStartupFailedError("a worker died at its start"), RayActorError()])
def test_workers_that_die_at_their_start_spend_the_budget_of_restarts(cause: Exception) -> None:
    policy = Policy()
    assert policy.says(*[ControllerError(cause)] * 3) == ["RETRY", "RETRY", "RAISE"]
    assert policy.told == [cause] * 3


def test_it_is_the_same_budget_as_that_of_workers_that_die_later() -> None:
    died, not_started = WorkerGroupError("died", {0: RayActorError()}), ControllerError(WorkerGroupStartupFailedError("died"))
    assert Policy().says(died, not_started, died) == ["RETRY", "RETRY", "RAISE"]


def test_a_group_for_which_there_is_no_room_yet_waits_its_turn() -> None:
    policy = Policy()
    assert policy.says(*[ControllerError(WorkerGroupStartupTimeoutError(2))] * 5) == ["RETRY"] * 5
    assert len(policy.told) == 5


def test_a_fault_of_the_controller_is_not_tried_again() -> None:
    assert Policy().says(ControllerError(ValueError("a bug"))) == ["RAISE"]
