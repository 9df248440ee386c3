"""Grouped products in half precision on a CPU: those of torch's own operator, in few shapes."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from workers.model.grouped_cpu import BLOCK, grouped_outer, grouped_rows

SIZES = {
    "uneven": [40, 7, 64, 33],
    "empty": [0, 70, 0, 1, 0],
    "smaller than a block at the end": [90, 3, 2, 1],
    "one": [BLOCK],
    "none": [0, 0],
}
IN, OUT = 16, 24


def case(sizes: list[int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = sum(sizes)
    x, y, w = (torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, IN), (rows, OUT), (len(sizes), IN, OUT)))
    return x, y, w, torch.tensor(sizes).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_they_are_the_products_group_by_group(sizes: list[int], dtype: torch.dtype) -> None:
    x, y, w, ends = case(sizes, dtype)
    groups = list(zip(x.split(sizes), y.split(sizes), w, strict=True))
    near = {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(grouped_rows(x, w, ends), torch.cat([a @ m for a, _, m in groups]), **near)
    torch.testing.assert_close(grouped_outer(y, x, ends), torch.stack([b.t() @ a for a, b, _ in groups]), **near)


def test_transposed_matrices_are_taken_as_they_lie() -> None:
    x, _, w, ends = case(SIZES["uneven"], torch.bfloat16)
    turned = w.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(grouped_rows(x, turned, ends), grouped_rows(x, w, ends))
    torch.testing.assert_close(grouped_rows(x, turned, ends), F.grouped_mm(x, turned, offs=ends), rtol=2e-2, atol=2e-2)


def test_a_group_that_overflowed_leaves_its_neighbours_alone() -> None:
    x, y, w, ends = case([33, 40], torch.bfloat16)
    x[33:], y[33:] = float("inf"), float("nan")
    assert grouped_rows(x, w, ends)[:33].isfinite().all()
    assert grouped_outer(y, x, ends)[0].isfinite().all()


class _Shapes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.rows: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (torch.ops.aten.mm.default, torch.ops.aten.mm.out):
            self.rows |= {args[0].shape[0], args[0].shape[1]}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_product_has_whole_blocks(sizes: list[int]) -> None:
    x, y, w, ends = case(sizes, torch.bfloat16)
    with _Shapes() as seen:
        grouped_rows(x, w, ends)
        grouped_outer(y, x, ends)
    assert {n % BLOCK for n in seen.rows - {IN, OUT}} <= {0}
    assert bool(seen.rows) == bool(sum(sizes))
