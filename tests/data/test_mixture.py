"""Targets by language and domain, fitted to the cells that there are; what cannot be met is said with what can."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.apportion import batch_counts
from data.errors import NotEnoughData
from data.manifest import Cell, Count
from data.mixture import Infeasible, MixtureSpec, exact_shares
from data.order import SampleOrder
from data.spec import DataSpec, SourceSpec
from tests.data.conftest import WORDS, Preparation, data_spec, json_lines, texts, write
from tests.data.test_order import manifest

LANGUAGES = {"zh": 45.0, "en": 35.0, "other": 20.0}
DOMAINS = {"web": 50.0, "papers": 20.0, "code": 15.0, "encyclopedia": 15.0}
BOTH = MixtureSpec(languages=LANGUAGES, domains=DOMAINS)
EVERY = dict.fromkeys(product(("zh", "en", "fr", "de"), DOMAINS), 1.0)


def margins(mixture: MixtureSpec, parts: dict[tuple[str, str], int]) -> tuple[dict[str, float], dict[str, float]]:
    """In percent."""
    sums: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for cell, part in parts.items():
        for of_kind, line in zip(sums, mixture.lines(*cell), strict=True):
            of_kind[line] = of_kind.get(line, 0) + 100 * part / sum(parts.values())
    return sums


def test_both_margins_are_met_exactly_and_languages_without_a_target_share_one() -> None:
    parts = BOTH.fit(EVERY)
    assert margins(BOTH, parts) == (LANGUAGES, DOMAINS)
    assert sum(part for (language, _), part in parts.items() if language == "fr") == sum(parts.values()) // 10
    # Nothing but the margins decides where weights are equal: independent, but for rounding.
    assert abs(parts["zh", "papers"] / sum(parts.values()) - 0.45 * 0.2) < 0.001


def test_the_weights_of_the_sources_decide_what_the_targets_leave_open() -> None:
    cells = {("zh", "web"): 3.0, ("zh", "code"): 1.0, ("en", "web"): 1.0, ("en", "code"): 1.0}
    parts = MixtureSpec(languages={"zh": 1, "en": 1}).fit(cells)
    total = sum(parts.values())
    assert {cell: part / total for cell, part in parts.items()} == {
        **{("zh", "web"): 0.375, ("zh", "code"): 0.125, ("en", "web"): 0.25, ("en", "code"): 0.25}
    }
    # The fit keeps the odds ratio of the weights, 3, whatever the margins are.
    fitted = MixtureSpec(languages={"zh": 3, "en": 1}, domains={"web": 2, "code": 3}).fit(cells)
    odds = fitted["zh", "web"] * fitted["en", "code"] / (fitted["zh", "code"] * fitted["en", "web"])
    assert odds == pytest.approx(3, rel=0.05)


def test_code_counts_as_the_language_that_the_setting_says() -> None:
    cells = {("zh", "web"): 1.0, ("en", "web"): 1.0, ("none", "code"): 1.0}
    targets: dict[str, Any] = {"languages": {"zh": 50, "en": 50}, "domains": {"web": 80, "code": 20}}
    assert MixtureSpec(**targets, code_language="en").fit(cells) == {
        ("zh", "web"): 500,
        ("en", "web"): 300,
        ("none", "code"): 200,
    }
    assert MixtureSpec(**targets, code_language="zh").fit(cells)["zh", "web"] == 300
    with pytest.raises(Infeasible, match="language none has sources and no target"):
        MixtureSpec(**targets).fit(cells)


def test_a_target_without_a_source_is_named_with_the_nearest_mix() -> None:
    cells = {("zh", "web"): 1.0, ("en", "web"): 1.0}
    with pytest.raises(Infeasible, match=r"no source counts as language other.*languages zh 55, en 45, other 0"):
        MixtureSpec(languages=LANGUAGES).fit(cells)


def test_margins_that_leave_a_cell_nothing_are_infeasible() -> None:
    # Papers and code are English only and fill its 35.
    cells = dict.fromkeys((("en", "papers"), ("en", "code"), ("zh", "web"), ("zh", "encyclopedia"), ("fr", "web")), 1.0)
    assert BOTH.fit(cells)["en", "papers"] == 200
    with pytest.raises(Infeasible, match=r"each of the 6 pairs.*en 35, other 20; domains web 50.1, papers 20, code 14.9"):
        BOTH.fit({**cells, ("en", "web"): 1.0})


TARGETS = st.sets(st.integers(1, 19), min_size=2, max_size=2).map(
    lambda cuts: [min(cuts), max(cuts) - min(cuts), 20 - max(cuts)]
)
WEIGHTS = st.lists(st.integers(1, 50), min_size=9, max_size=9)


@given(st.sets(st.integers(0, 8), min_size=1), TARGETS, TARGETS, WEIGHTS)
@settings(deadline=None, max_examples=40)
def test_a_mix_is_met_or_the_nearest_one_is_named(
    cells: set[int], languages: list[int], domains: list[int], weights: list[int]
) -> None:
    every = list(product("abc", "xyz"))
    weighed = {every[cell]: float(weights[cell]) for cell in sorted(cells)}
    mixture = MixtureSpec(languages=dict(zip("abc", languages, strict=True)), domains=dict(zip("xyz", domains, strict=True)))
    targets = [
        {name: part / sum(parts) for name, part in zip(names, parts, strict=True)}
        for names, parts in (("abc", languages), ("xyz", domains))
    ]
    try:
        parts = mixture.fit(weighed)
    except Infeasible as error:
        named = [{name: part for name, part in of_kind.items() if part} for of_kind in error.nearest]
        parts = MixtureSpec(languages=named[0], domains=named[1]).fit(weighed)
        assert list(margins(mixture, parts)) == [
            pytest.approx({n: 100 * p / sum(of.values()) for n, p in of.items()}) for of in named
        ]
        # No other mix of these cells is nearer: not the one by weight, and none that moves a part of one cell to another.
        other = [dict(parts), {cell: int(weight) for cell, weight in weighed.items()}]
        for one, two in product(parts, parts):
            if parts[one] > 1:
                other.append({cell: part + (cell == two) - (cell == one) for cell, part in parts.items()})
        distances = [
            sum((margins(mixture, mix)[k].get(n, 0) - 100 * t) ** 2 for k in (0, 1) for n, t in targets[k].items())
            for mix in other
        ]
        assert distances[0] <= min(distances) + 1e-6
    else:
        assert min(parts.values()) >= 1
        for target, shares in zip(targets, margins(mixture, parts), strict=True):
            assert shares == pytest.approx({name: 100 * share for name, share in target.items()}, abs=100 / sum(parts.values()))


def test_targets_of_a_fine_common_denominator_are_met_however_long_the_run() -> None:
    # Languages in thousandths and domains in elevenths: one part of 11,000.
    mixture = MixtureSpec(languages={"zh": 0.451, "en": 0.349, "other": 0.2}, domains={"web": 5, "papers": 3, "code": 3})
    cells = list(product(("zh", "en", "de"), ("web", "papers", "code")))[:8]
    parts = list(mixture.fit(dict.fromkeys(cells, 1.0)).values())
    lines = [mixture.lines(*cell) for cell in cells]
    counts_KC = batch_counts(exact_shares(parts), 1024, lines)
    web = counts_KC[:, [domain == "web" for _, domain in lines]].sum(axis=1)
    # A whole period, so however long.
    assert 11 * int(web.sum()) == 5 * 1024 * len(counts_KC)
    assert len(counts_KC) == 1375


def test_targets_that_are_too_fine_to_be_exact_are_rounded_and_the_log_tells_to_what(caplog: pytest.LogCaptureFixture) -> None:
    cells = dict.fromkeys(product(("zh", "en"), ("web", "papers")), 1.0)
    # Each kind is coarse enough by itself, but not both.
    mixture = MixtureSpec(languages={"zh": 1, "en": 6}, domains={"web": 49_990, "papers": 50_009})
    parts = mixture.fit(cells)
    [record] = caplog.records
    assert record.getMessage().endswith("met are languages zh 14.29%, en 85.71%; domains web 49.99%, papers 50.01%")
    met = ({"zh": 14.29, "en": 85.71}, {"web": 49.99, "papers": 50.01})
    assert list(margins(mixture, parts)) == [pytest.approx(of_kind, abs=1e-9) for of_kind in met]
    caplog.clear()
    mixture.model_copy(update={"domains": {}}).fit(cells)
    assert not caplog.records


def test_a_spec_is_refused_at_the_mixture() -> None:
    sources = [{"path": "a", "language": "zh"}, {"path": "b", "language": "en"}]
    spec = DataSpec.model_validate({"sources": sources, "mixture": {"languages": {"zh": 1, "en": 3}}})
    assert spec.cells == {("zh", "web"): 250, ("en", "web"): 750}
    with pytest.raises(ValidationError, match="no source counts as language fr") as caught:
        DataSpec.model_validate({"sources": sources, "mixture": {"languages": {"zh": 1, "en": 3, "fr": 1}}})
    assert caught.value.errors()[0]["ctx"]["error"].fields[0] == "mixture.languages"
    with pytest.raises(ValidationError, match="needs targets"):
        DataSpec.model_validate({"mixture": {}})


FRENCH = texts(9, seed=2, words=60)
TOO_FEW = {
    "cleaning": (["short"], {}, "no document is left of fr/web"),
    "deduplication": (texts(2), {}, "no document is left of fr/web"),
    "decontamination": (
        FRENCH,
        {"decontaminate": {"test_sets": [{"path": "fr.jsonl"}]}},
        "no training document is left of fr/web",
    ),
    "document_tokens": (["A short one."], {"document_tokens": {"min": 16}}, "every document that fr/web has to train on ("),
    "curriculum": (
        FRENCH[:1],
        {"curriculum": [{"sequence_length": 16, "fraction": 0.5}, {"sequence_length": 32, "fraction": 0.5}]},
        "1 training documents of fr/web are too few for the curriculum",
    ),
    "document_tokens and curriculum": (
        ["A quiet river.", *(f"Number {i}: " + " ".join(WORDS * 8) for i in range(5))],
        {
            "document_tokens": {"max": 100, "longer": "drop"},
            "curriculum": [{"sequence_length": 16, "fraction": 0.5}, {"sequence_length": 32, "fraction": 0.5}],
        },
        "every document that fr/web has to train on in a part of the curriculum (",
    ),
}
REST = {
    "not without it": (
        {"languages": {"zh": 2, "en": 1, "fr": 1}},
        "without it, no mix of the sources meets these targets: no source counts as language fr."
        " The nearest, in percent: languages zh 62.5, en 37.5, fr 0",
    ),
    "without it": ({"domains": {"web": 1}}, "the mixture can be met without it: leave its sources out"),
}


@pytest.mark.parametrize(("mixture", "rest"), REST.values(), ids=REST)
@pytest.mark.parametrize(("french", "settings", "message"), TOO_FEW.values(), ids=TOO_FEW)
def test_whatever_empties_a_cell_the_error_names_the_nearest_mix_without_it(
    french: list[str],
    settings: dict[str, Any],
    message: str,
    mixture: dict[str, Any],
    rest: str,
    tmp_path: Path,
    preparation: Preparation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = [
        SourceSpec(path=write(tmp_path / f"{language}.jsonl", json_lines(documents)), language=language)
        for language, documents in (("zh", texts(19)), ("en", texts(19, seed=1)), ("fr", french))
    ]
    with pytest.raises(NotEnoughData) as raised:
        preparation(data_spec(*sources, mixture=mixture, **settings))
    assert message in raised.value.detail
    assert raised.value.detail.endswith(f"; {rest}")
    with pytest.raises(NotEnoughData) as raised:
        preparation(data_spec(*sources, **settings))
    assert message in raised.value.detail
    assert "without" not in raised.value.detail


def test_cells_that_are_empty_together_are_named_together(tmp_path: Path, preparation: Preparation) -> None:
    sources = [
        SourceSpec(path=write(tmp_path / f"{language}.jsonl", json_lines(documents)), language=language)
        for language, documents in (("zh", texts(9)), ("fr", ["short"]), ("de", ["few"]))
    ]
    with pytest.raises(
        NotEnoughData, match=r"is left of fr/web .*; without fr/web and de/web, no mix.*languages zh 100, other 0"
    ):
        preparation(data_spec(*sources, mixture={"languages": {"zh": 3, "other": 1}}))
    with pytest.raises(NotEnoughData, match="the mixture can be met without fr/web and de/web: leave their sources out"):
        preparation(data_spec(*sources, mixture={"domains": {"web": 1}}))
    with pytest.raises(NotEnoughData, match="without it there is nothing to mix"):
        preparation(data_spec(sources[1], mixture={"domains": {"web": 1}}))


def test_a_prepared_mixture_is_met_in_every_batch(tmp_path: Any, preparation: Preparation) -> None:
    cells = [("zh", "web"), ("zh", "prose"), ("en", "web"), ("fr", "code")]
    sources = [
        SourceSpec(path=write(tmp_path / f"{i}.jsonl", json_lines(texts(30, seed=i))), language=language, domain=domain)
        for i, (language, domain) in enumerate(cells)
    ]
    mixture = {"languages": {"zh": 45, "en": 55}, "domains": {"web": 50, "other": 50}, "code_language": "en"}
    made = preparation(data_spec(*sources, mixture=mixture)).manifest
    assert [cell.lines for cell in made.cells] == [("zh", "web"), ("zh", "other"), ("en", "web"), ("en", "other")]
    order = SampleOrder(made, seed=0, global_batch_size=8)
    ranges = made.cell_rows("train")
    for step in range(40):
        rows = order.batch(step)
        count = {made.cells[c].lines: sum(row in ranges[c] for row in rows) for c in range(4)}
        assert abs(count["zh", "web"] + count["zh", "other"] - 0.45 * 8) < 1
        assert count["zh", "web"] + count["en", "web"] == 4


def test_the_order_keeps_the_targets_that_cells_count_as() -> None:
    plain = manifest([40, 40, 40, 40], [3.0, 1.0, 1.0, 3.0])
    cells = [cell.model_copy(update={"counts_as": (str(i // 2), str(i % 2))}) for i, cell in enumerate(plain.cells)]
    assert all(isinstance(cell, Cell) and isinstance(cell.train, Count) for cell in cells)
    order = SampleOrder(plain.model_copy(update={"cells": tuple(cells)}), seed=0, global_batch_size=2)
    for step in range(16):
        first, second = (row // 40 for row in order.batch(step))
        # One row of each language and one of each domain: opposite corners of the table.
        assert first + second == 3
