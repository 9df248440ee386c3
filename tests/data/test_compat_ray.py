"""Fails when an upgrade of Ray moves what ``data/compat_ray.py`` leans on; that it ends tasks is in ``test_executors.py``."""

import inspect

import pytest
from ray.data import Dataset
from ray.data._internal.execution.interfaces.physical_operator import OpTask, PhysicalOperator
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.data._internal.iterator.iterator_impl import DataIteratorImpl


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (Dataset, "_create_executor", ["self"]),
        (StreamingExecutor, "shutdown", ["self", "force", "exception"]),
        (PhysicalOperator, "shutdown", ["self", "timer", "force"]),
    ],
)
def test_ray_still_has_what_is_called(owner: object, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


@pytest.mark.parametrize(
    ("owner", "lines"),
    [
        (DataIteratorImpl._to_ref_bundle_iterator, "self._base_dataset._execute_to_iterator()"),
        (Dataset, "        executor = self._create_executor()\n        bundle_iter = self._build_bundle_iterator(executor)\n"),
        (StreamingExecutor.shutdown, "op.shutdown(timer, force=force)"),
        (PhysicalOperator._do_shutdown, "self._cancel_active_tasks(force=force)"),
        (OpTask._cancel, "ray.cancel(waitable, recursive=True, force=force)"),
    ],
)
def test_rows_are_still_carried_out_by_it_and_ending_it_still_ends_its_tasks(owner: object, lines: str) -> None:
    assert lines in inspect.getsource(owner)  # type: ignore[arg-type]
