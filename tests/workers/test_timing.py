"""A step's time by part: what counts for what, on a clock that ticks at every look."""

from collections.abc import Iterator
from itertools import count

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.workers.tiny import VOCAB, rows, tiny_spec
from workers.engine import Engine, StepResult
from workers.mesh import Membership
from workers.timing import PARTS, StepTimer, Waiting, blocks_apart, enter, mark

CPU = torch.device("cpu")


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class OperatorClock(TorchDispatchMode):
    """One second an operator of torch, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.by_part: dict[str, set[str]] = {part: set() for part in PARTS}
        self.timer = StepTimer(CPU, clock=lambda: self.now)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.now += 1
        self.by_part[self.timer.part].add(func.name())
        return func(*args, **(kwargs or {}))


def engine(model: dict[str, object] | None = None, **training: object) -> Engine:
    spec = tiny_spec(**training)
    spec = spec.model_copy(update={"model": spec.model.model_copy(update=model or {})})
    return Engine.build(spec, Membership(), VOCAB)


def test_time_counts_for_the_part_that_was_entered_last() -> None:
    clock = Clock()
    timer = StepTimer(CPU, clock=clock)
    with timer:
        for part, seconds in (("attention", 2.0), ("loss", 3.0), ("attention", 5.0)):
            clock.now += 1.0
            enter(part)  # type: ignore[arg-type]
            clock.now += seconds
    clock.now += 100.0
    found = timer.seconds()
    # A second before each is still the part's before it, and the first one's the rest.
    assert found == dict.fromkeys(PARTS, 0.0) | {"rest": 1.0, "attention": 8.0, "loss": 4.0}


def test_a_gradient_that_passes_a_mark_is_back_in_the_part_before() -> None:
    timer = StepTimer(CPU)
    seen: list[str] = []
    x = torch.ones(2, requires_grad=True)
    with timer:
        a = mark(x * 2, "attention")
        a.register_hook(lambda _: seen.append(timer.part))
        b = mark(a * 2, "loss")
        b.register_hook(lambda _: seen.append(timer.part))
        mark(b.sum(), "rest").backward()
    assert seen == ["loss", "attention"]
    assert timer.part == "rest"
    assert x.grad is not None
    assert x.grad.tolist() == [4.0, 4.0]


def test_without_a_timer_a_mark_is_nothing() -> None:
    x = torch.ones(2, requires_grad=True)
    assert mark(x, "loss") is x
    enter("loss")


def test_two_steps_cannot_be_timed_at_once_and_a_fault_ends_the_timing() -> None:
    with StepTimer(CPU), pytest.raises(AssertionError, match="timed already"), StepTimer(CPU):
        pass
    with pytest.raises(ZeroDivisionError), StepTimer(CPU):
        raise ZeroDivisionError
    x = torch.ones(1)
    assert mark(x, "loss") is x


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_every_operator_of_a_step_is_in_a_part(checkpointing: str) -> None:
    e = engine(activation_checkpointing=checkpointing)
    e.train_step(rows(0, 2))
    with OperatorClock() as clock, clock.timer:
        e.train_step(rows(1, 2))
    shares = {part: seconds / clock.now for part, seconds in clock.timer.seconds().items()}
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-9)
    assert all(shares[part] > 0.005 for part in PARTS)


def test_parts_have_their_own_operators_forward_and_backward() -> None:
    e = engine()
    e.train_step(rows(0, 2))
    with OperatorClock() as clock, clock.timer:
        e.train_step(rows(1, 2))
    attention = {part for part, names in clock.by_part.items() if any("scaled_dot_product" in name for name in names)}
    assert attention == {"attention"}
    names = clock.by_part
    assert any("backward" in name for name in names["attention"] if "scaled_dot_product" in name)
    homes = {
        "manta::grouped_mm": "experts",
        "manta::grouped_mm_backward": "experts",
        "aten::silu_backward": "experts",
        "aten::sigmoid": "router",
        "aten::sigmoid_backward": "router",
        "aten::sort.stable": "dispatch",
        "aten::logsumexp": "loss",
        "aten::_fused_adamw_": "optimizer",
    }
    for operator, home in homes.items():
        assert {part for part, seen in names.items() if operator in seen} == {home}, operator


@pytest.mark.parametrize(
    "model",
    [{}, {"first_k_dense_replace": 1, "num_nextn_predict_layers": 1, "router_aux_loss_coef": 0.01}, {"n_routed_experts": 0}],
    ids=["moe", "dense first, two tokens, balance loss", "dense"],
)
def test_a_timed_step_gives_the_same_numbers(model: dict[str, object]) -> None:
    plain, timed = engine(model), engine(model)

    def both(step: int) -> tuple[StepResult, StepResult]:
        with StepTimer(CPU):
            b = timed.train_step(rows(step, 2))
        return plain.train_step(rows(step, 2)), b

    for step in range(3):
        a, b = both(step)
        assert (a.loss, a.grad_norm) == (b.loss, b.grad_norm)
    for name, value in plain.full_state()["model"].items():
        assert torch.equal(value, timed.full_state()["model"][name])


def test_a_timed_step_compiles_nothing_anew_and_sees_the_parts() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    @torch.compile(backend=backend)
    def block(x: torch.Tensor) -> torch.Tensor:
        return mark(mark(x, "attention") * 2, "rest")

    clock = Clock()
    timer = StepTimer(CPU, clock=clock)
    x = torch.ones(3)
    for timed in (False, True, False):
        if timed:
            with timer, blocks_apart():
                block(x)
        else:
            with blocks_apart():
                block(x)
        assert len(graphs) == 1
    assert len(timer.seconds()) == len(PARTS)
    assert [part for part, _ in timer._ticks] == ["rest", "attention", "rest", "rest"]


def test_what_is_waited_for_is_timed() -> None:
    clock = Clock()

    def items() -> Iterator[int]:
        for n in count():
            clock.now += n
            yield n

    waiting = Waiting(items(), clock)
    assert [(next(waiting), waiting.seconds) for _ in range(3)] == [(0, 0.0), (1, 1.0), (2, 2.0)]
