"""Draws that are functions of the integers which name them."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from workers.mesh import Membership, Mesh
from workers.random import element_indices, random_bits, round_to_bf16, uniform

ROWS, COLUMNS = torch.arange(512)[:, None], torch.arange(512)
MANY = ROWS.numel() * COLUMNS.numel()
COUNT = torch.arange(MANY)
WORDS = st.integers(0, 2**63 - 1)


def splitmix_in_plain_integers(*parts: int) -> int:
    """The documented function, by integers without a width."""
    key = 0
    for part in parts[:-1]:
        x = ((key ^ part) + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        key = x ^ x >> 31
    x = (parts[-1] ^ key) * (key >> 32 | 1) % 2**32
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


@given(st.lists(WORDS, min_size=1, max_size=5), st.integers(0, 31))
def test_bits_are_a_function_of_the_numbers_whether_integers_or_tensors(parts: list[int], tensors: int) -> None:
    mixed = [torch.tensor([p]) if tensors >> i & 1 else p for i, p in enumerate(parts)]
    bits = random_bits(*mixed)
    assert bits.dtype == torch.int32
    assert bits.item() % 2**32 == splitmix_in_plain_integers(*parts)


@given(st.lists(st.integers(0, 511), min_size=1, max_size=9), st.lists(st.integers(0, 511), min_size=1, max_size=9))
def test_a_part_of_a_tensor_draws_what_the_whole_draws_there(rows: list[int], columns: list[int]) -> None:
    whole = random_bits(7, ROWS, COLUMNS)
    part = random_bits(7, torch.tensor(rows)[:, None], torch.tensor(columns))
    assert torch.equal(part, whole[rows][:, columns])


def test_parts_broadcast() -> None:
    a, b = torch.arange(3)[:, None, None], torch.arange(4)[:, None]
    bits = random_bits(a, 1, b, torch.arange(5))
    assert bits.shape == (3, 4, 5)
    assert bits[2, 3, 4] == random_bits(2, 1, 3, 4)


def test_their_order_matters_and_so_does_every_bit_of_a_seed() -> None:
    draws = [random_bits(*parts, COLUMNS) for parts in [(1, 2), (2, 1), (1 + 2**32, 2), (1 + 2**62, 2), (1, 2, 0)]]
    assert len({tuple(d.tolist()) for d in draws}) == len(draws)


PLANES = {
    "last two parts": (3, ROWS, COLUMNS),
    "last part strided": (3, ROWS, COLUMNS * 4096),
    "seed and last": (ROWS, 5, COLUMNS),
    "middle and high half": (3, ROWS, COLUMNS << 32, 1),
}


@pytest.mark.parametrize("parts", PLANES.values(), ids=PLANES.keys())
def test_uniform_has_the_moments_and_the_histogram_of_a_uniform_distribution(parts: tuple[Any, ...]) -> None:
    u = uniform(*parts).double()
    assert 0.0 <= u.min() <= u.max() < 1.0
    deviation = math.sqrt(1 / 12 / MANY)
    assert abs(u.mean() - 0.5) < 4 * deviation
    assert u.var() == pytest.approx(1 / 12, rel=0.01)
    bins = 256
    observed = torch.histc(u, bins, 0.0, 1.0)
    chi_square = ((observed - MANY / bins) ** 2 / (MANY / bins)).sum()
    assert abs(chi_square - (bins - 1)) < 4 * math.sqrt(2 * (bins - 1))


@pytest.mark.parametrize("parts", PLANES.values(), ids=PLANES.keys())
@pytest.mark.parametrize("dim", [0, 1])
def test_every_bit_is_fair_and_neighbours_are_independent_in_it(parts: tuple[Any, ...], dim: int) -> None:
    bits = random_bits(*parts)
    bound = 4.5 / math.sqrt(MANY)
    for bit in range(32):
        sign = (bits >> bit & 1).float() * 2 - 1
        assert abs(sign.mean()) < bound, bit
        for distance in (1, 2, 128):  # less than half the length: roll then pairs no two twice
            assert abs((sign * sign.roll(distance, dim)).mean()) < bound, (bit, distance)


def test_two_keys_do_not_draw_the_same_numbers_in_another_order() -> None:
    # Chance has 16 of 2**18 draws of 32 bits in common. A key that only moves the last part would share all, or none.
    shared = [len(set(random_bits(key, COUNT).tolist()) & set(random_bits(0, COUNT).tolist())) for key in range(1, 6)]
    assert 0 < min(shared) <= max(shared) < 50


def test_a_compiled_draw_is_the_same() -> None:
    compiled = torch.compile(lambda r, c: random_bits(9, r, c), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(ROWS, COLUMNS), random_bits(9, ROWS, COLUMNS))


def test_rounding_to_bf16_keeps_the_mean() -> None:
    x = torch.tensor([1.0, -1.0, 1 + 2**-9, -1 - 2**-9, 3.14159, 1e-30, 0.0, float("inf")]).repeat(20_000, 1)
    rounded = round_to_bf16(x, random_bits(4, torch.arange(x.shape[0])[:, None], torch.arange(8)))
    assert rounded.dtype == torch.bfloat16
    exact = x == x.bfloat16()
    assert torch.equal(rounded[exact].float(), x[exact]), "what bf16 can hold is kept"
    finite = slice(0, 7)
    mean, spacing = rounded[:, finite].double().mean(0), x[0, finite].abs() * 2.0**-7
    assert torch.all((mean - x[0, finite]).abs() <= 4 * spacing / math.sqrt(x.shape[0]))
    assert torch.all((rounded[:, finite] - x[:, finite]).abs() < spacing + 1e-45), "to one of the two nearest"


@pytest.mark.parametrize("shape", [(), (3,), (5, 4), (2, 3, 4)])
def test_indices_name_each_element(shape: tuple[int, ...]) -> None:
    tensor = torch.empty(shape)
    strides = tensor.stride()
    flat = sum((i * s for i, s in zip(element_indices(tensor), strides, strict=True)), torch.zeros(shape).long())
    assert torch.equal(flat.flatten(), torch.arange(tensor.numel()))


def draw_of_a_shard(member: Membership) -> bool:
    mesh = Mesh.form(member, use_gpu=False)
    assert mesh.workers is not None
    whole = random_bits(1, *element_indices(torch.empty(5, 3, 4)))
    same = []
    for place in (Shard(0), Shard(1), Replicate()):
        tensor = distribute_tensor(torch.empty(5, 3, 4), mesh.workers, [place], src_data_rank=None)
        mine = distribute_tensor(whole, mesh.workers, [place], src_data_rank=None).to_local()
        same.append(torch.equal(random_bits(1, *element_indices(tensor)), mine))
    mesh.dissolve()
    return all(same)


@pytest.mark.gloo
def test_an_uneven_shard_draws_its_part_of_the_whole(gloo_pool: Any) -> None:
    assert gloo_pool.run(draw_of_a_shard) == [True, True]
