"""What a spec's numbers may be."""

from typing import Any

import pytest
from pydantic import ValidationError

from data.spec import DataSpec, SourceSpec, TokenizerSpec
from data.spec_base import Spec
from workers.spec import TrainingSpec


class Rate(Spec):
    rate: float = 1.0


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")], ids=str)
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Rate(rate=value)
    with pytest.raises(ValidationError, match="finite"):
        SourceSpec(path="a.txt", weight=value)
    with pytest.raises(ValidationError, match="finite"):
        TrainingSpec(learning_rate=value)


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite"):
        Rate.model_validate_json('{"rate": 1e999}')


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_is_what_generators_take(seed: int) -> None:
    with pytest.raises(ValidationError, match="seed"):
        DataSpec(seed=seed)
    with pytest.raises(ValidationError, match="seed"):
        TrainingSpec(seed=seed)


def test_the_ends_of_the_range_of_seeds() -> None:
    assert [DataSpec(seed=seed).seed for seed in (0, 2**63 - 1)] == [0, 2**63 - 1]


def test_documents_align_to_what_divides_a_row() -> None:
    with pytest.raises(ValidationError, match="document_alignment 24 does not divide sequence_length 256"):
        DataSpec(document_alignment=24)
    assert DataSpec(document_alignment=256).document_alignment == 256


def curriculum(*segments: tuple[int, float]) -> list[dict[str, float]]:
    return [{"sequence_length": length, "fraction": fraction} for length, fraction in segments]


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        (curriculum((64, 0.5), (128, 0.5)), "the curriculum ends with sequence_length 128, not with 256"),
        (curriculum((128, 0.5), (64, 0.2), (256, 0.3)), r"sequence lengths \[128, 64, 256\] do not rise"),
        (curriculum((96, 0.5), (256, 0.5)), "sequence_length 96 does not divide 256"),
        (curriculum((64, 0.2), (256, 0.7)), "fractions sum to 0.9, not to 1"),
        (curriculum((16, 0.2), (256, 0.8)), "document_alignment 32 does not divide sequence_length 16"),
    ],
)
def test_a_curriculum_that_does_not_add_up_is_named(segments: list[dict[str, float]], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DataSpec.model_validate({"curriculum": segments, "document_alignment": 32})


def test_without_a_curriculum_there_is_one_segment() -> None:
    assert [s.model_dump() for s in DataSpec(sequence_length=64).segments] == curriculum((64, 1.0))
    thirds = DataSpec.model_validate({"curriculum": curriculum((64, 1 / 3), (128, 1 / 3), (256, 1 / 3))})
    assert [s.sequence_length for s in thirds.segments] == [64, 128, 256]


@pytest.mark.parametrize("unknown", [{"wieght": 1.0}, {"path": "a.txt", "x": 1}], ids=str)
def test_unknown_keys_are_errors(unknown: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        SourceSpec.model_validate(unknown)
    with pytest.raises(ValidationError, match="Extra inputs"):
        TokenizerSpec.model_validate(unknown)
