"""What the driver keeps of its tasks' results."""

import copy
import random

from data.funnel import FirstExamples, funnel_of
from data.spec import DataSpec
from data.stages.base import EXAMPLES, DroppedExample, StageCount
from data.tasks import CleanResult
from tests.data.conftest import data_spec


def _results(count: int, seed: int) -> list[CleanResult]:
    draw = random.Random(seed)

    def counted(name: str, index: int) -> StageCount:
        drops = {reason: draw.randrange(1, 9) for reason in ("short", "long") if draw.random() < 0.4}
        shown = {
            reason: [DroppedExample(f"{index}:{n}", "", "text") for n in range(number)] for reason, number in drops.items()
        }
        return StageCount(name, 100, 1000, drops, shown)

    return [
        CleanResult(index, counted("sources", index), (counted("normalise", index), counted("length", index)))
        for index in range(count)
    ]


def test_examples_are_the_first_in_order_whatever_order_results_come_in_and_few_are_kept() -> None:
    spec: DataSpec = data_spec("unused")
    for seed in range(20):
        results = _results(60, seed)
        expected = funnel_of(spec, copy.deepcopy(results))
        examples = FirstExamples()
        for result in random.Random(seed).sample(results, len(results)):
            examples.thin(result)
        assert funnel_of(spec, results) == expected
        counts = [count for result in results for count in (result.sources, *result.stages)]
        kept = sum(len(shown) for count in counts for shown in count.examples.values())
        assert kept < 6 * 2 * EXAMPLES
