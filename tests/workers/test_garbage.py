"""Cyclic garbage is collected at steps that all ranks share, and nowhere between."""

import gc
import weakref

from workers.garbage import COLLECT_STEPS, after_step, collected_together


class Node:
    def __init__(self) -> None:
        self.me = self


def cycle() -> weakref.ref[Node]:
    return weakref.ref(Node())


def test_cycles_live_until_the_next_shared_step() -> None:
    with collected_together():
        assert not gc.isenabled()
        lost = cycle()
        after_step(COLLECT_STEPS - 1)
        assert lost() is not None
        after_step(COLLECT_STEPS)
        assert lost() is None


def test_afterwards_python_collects_as_before() -> None:
    with collected_together():
        assert gc.get_freeze_count() > 0
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_process_that_collects_by_itself_goes_on_so() -> None:
    gc.disable()
    try:
        with collected_together():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
