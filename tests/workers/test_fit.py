"""A job that is too large is told what is missing and what would make it fit; and that does."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from workers.fit import SIZES, Way, _divisors_below, limit, needed, ways_out
from workers.plan import plan
from workers.sizes import in_words, parse_bytes
from workers.spec import TrainSpec

GIB = 2**30


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("80GB/H100", 80 * GIB),
        ("80GB", 80 * GIB),
        ("80 gib", 80 * GIB),
        ("2TB/node", 2048 * GIB),
        ("1.5 TiB per node", 1536 * GIB),
        ("80G", 80 * GIB),
        ("80", 80 * GIB),
        (80, 80 * GIB),
        (79.5, int(79.5 * GIB)),
        (85899345920, 85899345920),
        ("512 MiB", GIB // 2),
        ("1048576 B", 2**20),
        ("much", None),
        ("80 apples", None),
        ("-1GB", None),
    ],
)
def test_sizes_are_read_as_people_write_them(size: str | float, expected: int | None) -> None:
    assert parse_bytes(size) == expected


def test_sizes_are_written_in_binary_units() -> None:
    assert [in_words(n) for n in (5, 1536, 80 * GIB, 5000 * GIB)] == ["5 B", "1.5 KiB", "80.0 GiB", "4.9 TiB"]


@pytest.mark.parametrize("field", ["gpu_memory", "cpu_memory"])
def test_what_is_no_size_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match="'plenty' is no size of memory; write one like 80GB"):
        of(gpu_config={field: "plenty"})


def of(**parts: Any) -> TrainSpec:
    return TrainSpec.model_validate(parts)


H100S = {"gpus_per_node": 8, "gpu_memory": "80GB/H100"}


def applied(spec: TrainSpec, way: Way) -> TrainSpec:
    training = spec.training.model_dump(exclude_unset=True) | way.changes
    rows = way.workers * training.get("micro_batch_size", spec.training.micro_batch_size)
    training["global_batch_size"] = max(spec.training.global_batch_size, rows)
    whole = spec.model_dump(exclude_unset=True) | {"parallel_strategy": {"data_parallel": way.workers}, "training": training}
    return TrainSpec.model_validate(whole)


def test_a_preset_too_large_for_its_devices() -> None:
    made = plan(of(model={"preset": "67b"}, gpu_config=H100S, training={"global_batch_size": 64}))
    (problem,) = made.problems
    assert (problem.code, problem.pointer) == ("too_large", "/gpu_config/gpu_memory")
    total = made.memory.total
    assert problem.detail.startswith(
        f"a worker needs {in_words(total)}, {in_words(total - 80 * GIB)} more than the 80.0 GiB that are there; these would"
    )
    assert problem.detail.count(";") == 3
    assert "activation_checkpointing full" in problem.detail


def test_what_fits_is_no_problem() -> None:
    assert plan(of(model={"preset": "tiny"}, gpu_config=H100S, training={"global_batch_size": 64})).problems == []


@pytest.mark.parametrize(
    "spec",
    [
        of(model={"preset": "67b"}, gpu_config=H100S, training={"global_batch_size": 64}),
        of(
            model={"preset": "1.3b"}, gpu_config={"gpus_per_node": 1, "gpu_memory": 40}, data_pipeline={"sequence_length": 2048}
        ),
        of(model={"preset": "13b"}, gpu_config={"gpus_per_node": 4, "gpu_memory": "80GB"}),
        of(gpu_config={"cpu_memory": "200MB"}),
        # Sizes that the experts' products take in fp32 alone.
        of(
            model={"hidden_size": 1020, "num_attention_heads": 10, "moe_intermediate_size": 1020, "num_hidden_layers": 40},
            gpu_config={"gpus_per_node": 1, "gpu_memory": "10GB"},
            training={"global_batch_size": 8},
        ),
    ],
)
def test_ways_out_fit_and_change_nothing_in_vain(spec: TrainSpec) -> None:
    allowed = limit(spec)
    assert allowed is not None
    ways = ways_out(spec, allowed.bytes)
    assert ways
    for way in ways:
        assert needed(applied(spec, way)).total <= allowed.bytes
        assert plan(applied(spec, way)).problems == []
        for name in way.changes:
            less = way._replace(changes={other: value for other, value in way.changes.items() if other != name})
            assert needed(applied(spec, less)).total > allowed.bytes, (way, name)


def test_the_simplest_change_comes_first_and_its_mildest_value() -> None:
    spec = of(training={"micro_batch_size": 8, "global_batch_size": 8})
    first, *_ = ways_out(spec, needed(of(training={"micro_batch_size": 4, "global_batch_size": 8})).total)
    assert (len(first.changes), first.workers) == (1, 1)
    halved = [way.changes["micro_batch_size"] for way in ways_out(spec, first.total) if "micro_batch_size" in way.changes]
    assert all(value in (4, 2, 1) for value in halved)
    slightly = ways_out(spec, needed(spec).total - 1)
    assert {"activation_checkpointing": "selective"} in [way.changes for way in slightly]


def test_a_model_that_no_number_of_workers_holds_is_named_smaller_ones() -> None:
    made = plan(of(model={"preset": "r1-1200b"}, gpu_config=H100S, training={"global_batch_size": 64}))
    (problem,) = made.problems
    assert re.search(r"model\.preset \S+ \(\d+\.\d GiB\)", problem.detail)


def test_a_smaller_preset_that_is_named_reads_the_jobs_rows() -> None:
    gpus = {"gpus_per_node": 8, "gpu_memory": "400GB"}
    made = plan(of(model={"preset": "r1-1200b"}, gpu_config=gpus, data_pipeline={"sequence_length": 8192}))
    (problem,) = (each for each in made.problems if each.code == "too_large")
    named = re.findall(r"model\.preset (\S+) ", problem.detail)
    assert named
    for name in named:
        of(model={"preset": name}, data_pipeline={"sequence_length": 8192})


def test_workers_of_one_machine_share_its_memory() -> None:
    two = of(gpu_config={"cpu_memory": "400MB"}, parallel_strategy={"data_parallel": 2})
    assert limit(two) == (200 * 2**20, "/gpu_config/cpu_memory")
    (problem,) = plan(two).problems
    assert (problem.code, problem.pointer) == ("too_large", "/gpu_config/cpu_memory")


def test_nothing_stated_is_nothing_compared() -> None:
    assert limit(of(gpu_config={"gpus_per_node": 8, "cpu_memory": "2TB"})) is None
    assert limit(TrainSpec()) is None


def test_where_nothing_of_the_recipe_helps_it_says_how_far_the_strongest_settings_get() -> None:
    made = plan(of(model={"preset": "deepseek-v3"}, gpu_config=H100S, training={"global_batch_size": 64}))
    detail = next(problem.detail for problem in made.problems if problem.code == "too_large")
    found = re.search(r"even \d+ workers with activation_checkpointing full, .*precision bf16 need (\d+\.\d) GiB each", detail)
    assert found is not None
    assert float(found[1]) > 80
    assert "; these would fit: model.preset " in detail


@pytest.mark.parametrize("preset", ["34b", "67b", "deepseek-v2-lite", "deepseek-v3", "r1-1200b"])
def test_three_ways_out_are_named_whatever_is_too_large(preset: str) -> None:
    made = plan(of(model={"preset": preset}, gpu_config=H100S, training={"global_batch_size": 256, "micro_batch_size": 32}))
    detail = next(problem.detail for problem in made.problems if problem.code == "too_large")
    assert detail.split("these would fit: ")[1].count("GiB)") + detail.split("these would fit: ")[1].count("MiB)") == 3


@pytest.mark.parametrize(("size", "tried"), [(1, []), (8, [4, 2, 1]), (7, [1])])
def test_smaller_micro_batches_are_divisors(size: int, tried: list[int]) -> None:
    assert _divisors_below(size) == tried


def test_of_a_micro_batch_of_many_divisors_only_some_are_tried() -> None:
    tried = _divisors_below(720720)
    assert len(tried) == SIZES
    assert (tried[0], tried[-1]) == (360360, 1)
    assert tried == sorted(tried, reverse=True)
    assert all(720720 % size == 0 for size in tried)
