"""A data set's report as one HTML file: no script, nothing fetched. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from operator import itemgetter

from api.cli.report_page import (
    CLASSIFIER_COLUMNS,
    GRADE_COLUMNS,
    LICENCE_COLUMNS,
    OVERLAP_COLUMNS,
    OVERLAP_TITLE,
    REDACTION_COLUMNS,
    REDACTION_TITLE,
    ROW_COLUMNS,
    bins,
    classifiers,
    clusters_title,
    grades,
    licences,
    overlap_rows,
    redactions,
    repeated,
    rows,
    scores,
    tokenizer_title,
)
from api.cli.text import count, size
from data.report import Histogram, Report
from data.stages.base import DroppedExample

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--bar:#4a7fc1}
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin-top:2rem}code{font-size:.9em}
.wide{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse}
th,td{padding:.2rem .8rem .2rem 0;text-align:left;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td.b{width:22rem;min-width:6rem}.bar{background:var(--bar);height:.8em;min-width:1px}
details{margin:.3rem 0}details>div{margin:.4rem 0 .8rem 1rem}
.from{overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0;padding:.1rem 0 .1rem .6rem;border-left:3px solid var(--line)}
.dim{opacity:.7}.warn{border-left:3px solid #d08700;padding-left:.6rem}
"""


def document(report: Report, tokens: int | None, epochs: Mapping[str, float] | None) -> str:
    """The page, with every example that the report keeps.

    Args:
        tokens: of a run, which goes ``epochs`` times through each cell; both None where no run is known.
    """
    parts = [
        f"<h1>Data set <code>{escape(report.hash)}</code></h1>",
        f"<p>{count(report.kept.documents)} documents, {size(report.kept.bytes)} of text kept.</p>",
        "<h2>Funnel</h2>",
        _funnel(report),
        "<h2>Why documents were dropped</h2>",
        *(_reasons(report) or ["<p>None was.</p>"]),
        *(
            [f"<h2>{REDACTION_TITLE}</h2>", _table(REDACTION_COLUMNS, redactions(report))]
            if any(step.redactions for step in report.steps)
            else []
        ),
        *(f"<h2>{escape(title)}</h2>{_table(GRADE_COLUMNS, written)}" for title, written in grades(report)),
        *_scores(report),
        *(["<h2>Classifiers</h2>", _table(CLASSIFIER_COLUMNS, classifiers(report))] if report.classifiers else []),
        "<h2>Shares of the text</h2>",
        _shares(report),
        "<h2>Cells</h2>",
        _cells(report, epochs),
        *(
            []
            if tokens is None
            else [f'<p class="dim">times: how often a run of {count(tokens)} tokens goes through the cell</p>']
        ),
        *([f'<p class="warn">{escape(often)}</p>'] if (often := repeated(epochs)) else []),
        "<h2>Licences</h2>",
        _table(LICENCE_COLUMNS, licences(report)),
        "<h2>Documents by length in tokens</h2>",
        _histogram("tokens", report.lengths),
        "<h2>Rows</h2>",
        _table(ROW_COLUMNS, rows(report)),
        *(
            [f"<h2>{escape(clusters_title(report))}</h2>", _histogram("in a group", report.duplicate_clusters, "groups")]
            if report.duplicate_clusters.total
            else []
        ),
        *([f"<h2>{OVERLAP_TITLE}</h2>", _table(OVERLAP_COLUMNS, overlap_rows(report))] if report.decontamination else []),
        f"<h2>{escape(tokenizer_title(report))}</h2>",
        _tokenizer(report),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(report.hash)}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], bars: Sequence[float] = ()) -> str:
    """Columns whose name ends with ``>`` are numbers.

    Args:
        bars: one a row, behind it: its share of the longest, 0 to 1.
    """
    kinds = [' class="n"' if column.endswith(">") else "" for column in columns]
    head = "".join(f"<th{kind}>{escape(column.rstrip('>'))}</th>" for column, kind in zip(columns, kinds, strict=True))
    lines = ["".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) for row in rows]
    if bars:
        head += "<th></th>"
        drawn = (
            f'<td class="b"><div class="bar" style="width:{100 * bar:.1f}%"></div></td>' if bar else "<td></td>" for bar in bars
        )
        lines = [line + bar for line, bar in zip(lines, drawn, strict=True)]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _funnel(report: Report) -> str:
    rows = [
        (
            report.label(step),
            count(step.came.documents),
            size(step.came.bytes),
            count(step.dropped),
            _percent(step.dropped / step.came.documents) if step.came.documents else "-",
        )
        for step in report.reached
    ]
    rows.append(("kept", count(report.kept.documents), size(report.kept.bytes), "", ""))
    left = [*(step.came.documents for step in report.reached), report.kept.documents]
    return _table(("step", "documents>", "text>", "dropped>", "of what came>"), rows, _bars(left))


def _reasons(report: Report) -> list[str]:
    found = []
    for step in report.steps:
        label = escape(report.label(step))
        for reason, number in sorted(step.drops.items(), key=lambda item: (-item[1], item[0])):
            shown = "".join(map(_example, step.examples.get(reason, ())))
            found.append(f"<details><summary>{label}: <b>{escape(reason)}</b>, {count(number)}</summary>{shown}</details>")
    return found


def _example(example: DroppedExample) -> str:
    where = " · ".join(escape(part) for part in (example.id, example.detail) if part)
    text = f"<pre>{escape(example.text)}</pre>" if example.text else ""
    return f'<div><div class="dim from">{where}</div>{text}</div>'


def _scores(report: Report) -> Iterator[str]:
    """Tables of one step have one title."""
    for title, of_step in groupby(scores(report), key=itemgetter(0)):
        yield f"<h2>{escape(title)}</h2>"
        yield from (_table(columns, written) for _, columns, written in of_step)


def _shares(report: Report) -> str:
    rows: list[tuple[str, ...]] = []
    for by in ("language", "domain"):
        moments = [report.shares(by, moment) for moment in ("read", "cleaned", "kept")]
        rows += [(f"{by} {name}", *(_percent(shares[name]) for shares in moments)) for name in moments[0]]
    total = sum(amount.bytes for amount in report.languages_found.values())
    rows += [
        (f"found {name}", "", _percent(amount.bytes / total) if total else "-", "")
        for name, amount in report.languages_found.items()
    ]
    return _table(("", "read>", "cleaned>", "kept>"), rows)


def _cells(report: Report, epochs: Mapping[str, float] | None) -> str:
    rows = [
        (
            cell.name,
            *(count(amount.documents) for amount in (cell.read, cell.cleaned, cell.kept)),
            size(cell.kept.bytes),
            count(cell.train.tokens),
            count(cell.held_out.tokens),
            "-" if epochs is None else f"{epochs[cell.name]:.2f}",
        )
        for cell in report.cells
    ]
    return _table(("cell", "read>", "cleaned>", "kept>", "text kept>", "training tokens>", "held-out>", "times>"), rows)


def _histogram(of: str, values: Histogram, counted: str = "documents") -> str:
    rows = [(label, count(number)) for label, number in bins(values)]
    return _table((f"{of}>", f"{counted}>"), rows, _bars([number for _, number in bins(values)]))


def _bars(numbers: Sequence[int]) -> list[float]:
    return [number / max(*numbers, 1) for number in numbers]


def _tokenizer(report: Report) -> str:
    rows = [
        (
            name,
            size(each.figures.bytes),
            count(each.figures.tokens),
            f"{each.bytes_per_token:.2f}",
            f"{100 * each.unknown_share:.3f}%",
            f"{100 * each.byte_share:.2f}%",
        )
        for name, each in report.token_rows()
    ]
    return _table(("language", "text>", "tokens>", "bytes a token>", "unknown>", "single bytes>"), rows)
