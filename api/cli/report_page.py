"""A data set's report as a page of the terminal. Pure functions of the report."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from api.cli.text import count, size
from data.report import MOST_EPOCHS, Amount, Histogram, Report

_BAR = 30
_EXAMPLES = 2
_EXAMPLE_CHARACTERS = 90


def page(report: Report, tokens: int | None, epochs: Mapping[str, float] | None) -> RenderableType:
    """Everything but all examples: of each reason the first two.

    Args:
        tokens: of a run, which goes ``epochs`` times through each cell; both None where no run is known.
    """
    parts: list[RenderableType] = [
        Text.assemble(("data set ", "dim"), (report.hash, "bold")),
        Text(f"{count(report.kept.documents)} documents, {size(report.kept.bytes)} kept", "dim"),
        *_section("Funnel", _funnel(report)),
    ]
    if any(step.drops for step in report.steps):
        parts += _section("Why documents were dropped", _reasons(report))
    if any(step.redactions for step in report.steps):
        parts += _section(REDACTION_TITLE, _written(REDACTION_COLUMNS, redactions(report)))
    for title, written in grades(report):
        parts += _section(title, _written(GRADE_COLUMNS, written))
    for title, of_step in groupby(scores(report), key=itemgetter(0)):
        tables = (part for _, columns, written in of_step for part in (_written(columns, written), Text()))
        parts += _section(title, Group(*list(tables)[:-1]))
    if report.classifiers:
        parts += _section("Classifiers", _written(CLASSIFIER_COLUMNS, classifiers(report)))
    parts += _section("Shares of the text", _shares(report))
    parts += _section("Cells", _cells(report, epochs))
    if tokens is not None:
        parts.append(Text(f"times: how often a run of {count(tokens)} tokens goes through the cell", "dim"))
    if often := repeated(epochs):
        parts.append(Text(often, "yellow"))
    parts += _section("Licences", _written(LICENCE_COLUMNS, licences(report)))
    parts += _section("Documents by length in tokens", histogram(report.lengths))
    parts += _section("Rows", _written(ROW_COLUMNS, rows(report)))
    if report.duplicate_clusters.total:
        parts += _section(clusters_title(report), histogram(report.duplicate_clusters))
    if report.decontamination:
        parts += _section(OVERLAP_TITLE, _overlaps(report))
    parts += _section(tokenizer_title(report), _tokenizer(report))
    return Group(*parts)


def _section(title: str, body: RenderableType) -> list[RenderableType]:
    return [Text(), Text(title, style="bold"), body]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left")
    return table


def _row(table: Table, *cells: str) -> None:
    """Cells are text, not markup: a document may hold anything."""
    table.add_row(*(Text(cell) for cell in cells))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share < 0.9995 or share == 1 else "99.9%"


def _funnel(report: Report) -> Table:
    table = _table("step", "documents>", "text>", "dropped>", "of what came>")
    for step in report.reached:
        came = step.came.documents
        dropped = _percent(step.dropped / came) if came else "-"
        _row(table, report.label(step), count(came), size(step.came.bytes), count(step.dropped), dropped)
    _row(table, "kept", count(report.kept.documents), size(report.kept.bytes), "", "")
    return table


def _reasons(report: Report) -> Table:
    table = _table("step", "reason", "documents>", "for example")
    for step in report.steps:
        for reason, number in sorted(step.drops.items(), key=lambda item: (-item[1], item[0])):
            shown = step.examples.get(reason, ())[:_EXAMPLES]
            # The file's name is enough to recognise it; JSON has the whole path.
            parts = [(each.id.rpartition("/")[2], each.detail, each.text) for each in shown]
            lines = [shorten(" ".join(part), _EXAMPLE_CHARACTERS) for part in parts]
            _row(table, report.label(step), reason, count(number), "\n".join(lines))
    return table


def shorten(text: str, most: int) -> str:
    """One line of printable characters, at most so many columns wide (a Chinese character has two), cut with an ellipsis."""
    line = Text(" ".join("".join(c if c.isprintable() else " " for c in text).split()))
    line.truncate(most, overflow="ellipsis")
    return line.plain


def _written(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = _table(*columns)
    for row in rows:
        _row(table, *row)
    return table


GRADE_COLUMNS = ("language", "documents>", *(f"{level}>" for level in range(5)))
REDACTION_TITLE = "Personal data that was redacted"
REDACTION_COLUMNS = ("step", "kind", "values>", "in documents>")
CLASSIFIER_COLUMNS = ("stage", "language", "question", "examples>", "yes>", "calibration error>", "ranking>", "is")


def redactions(report: Report) -> Iterator[tuple[str, ...]]:
    """A row a stage and kind."""
    for step in report.steps:
        for kind, found in step.redactions.items():
            yield report.label(step), kind, count(found.values), count(found.documents)


def grades(report: Report) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Shares of the documents that came to a stage that grades, by language: a table a stage, with its title."""
    for step in report.steps:
        written = []
        for language, levels in step.grades.items():
            total = sum(levels)
            written.append((language, count(total), *(f"{100 * level / total:.1f}%" for level in levels)))
        if written:
            yield f"Grades, from 0 (poor) to 4 (good), by the stage {report.label(step)}", written


def scores(report: Report) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Tables with their titles and columns, one for the scores of a step that are counted in the same bins."""
    for step in report.steps:
        for edges in dict.fromkeys(spread.edges for spread in step.scores.values()):
            written = [
                (name, language, count(sum(counts)), *map(count, counts))
                for name, spread in step.scores.items()
                if spread.edges == edges
                for language, counts in spread.counts.items()
            ]
            labels = (
                "0" if edges[0] == 0 else f"to {edges[0]:g}",
                *(f"to {edge:g}" for edge in edges[1:]),
                f"over {edges[-1]:g}",
            )
            columns = ("score", "language", "documents>", *(f"{label}>" for label in labels))
            yield f"Documents by their scores of the stage {report.label(step)}", columns, written


def classifiers(report: Report) -> Iterator[tuple[str, ...]]:
    """A row a question; of what has no model, why. Stages that go by rules alone have one row together."""
    names = {stage.number: f"{stage.number} {stage.stage}" for stage in report.classifiers}
    if rules := [names[stage.number] for stage in report.classifiers if not stage.file]:
        yield ", ".join(rules), *[""] * 6, "off: nothing to learn from was given"
    for stage in report.classifiers:
        name = names[stage.number]
        for language in stage.languages:
            examples = count(language.examples)
            if not language.heads:
                yield name, language.language, "", examples, "", "", "", f"off: {language.off}"
            for head in language.heads:
                off = head.off or language.off
                figures = (count(head.positive), f"{head.calibration_error:.3f}", f"{head.ranking:.3f}")
                yield name, language.language, head.name, examples, *figures, f"off: {off}" if off else "on"


def _shares(report: Report) -> Table:
    table = _table("", "read>", "cleaned>", "kept>")
    for by in ("language", "domain"):
        moments = [report.shares(by, moment) for moment in ("read", "cleaned", "kept")]
        for name in moments[0]:
            _row(table, f"{by} {name}", *(_percent(shares[name]) for shares in moments))
    total = sum((amount.bytes for amount in report.languages_found.values()), 0)
    for name, amount in report.languages_found.items():
        _row(table, f"found {name}", "", _percent(amount.bytes / total) if total else "-", "")
    return table


LICENCE_COLUMNS = ("licence", "sources>", "read>", "text read>", "kept>", "text kept>")


def licences(report: Report) -> Iterator[tuple[str, ...]]:
    """A row a licence."""
    for flow in report.licences:
        amounts = [shown for each in (flow.read, flow.kept) for shown in (count(each.documents), size(each.bytes))]
        yield flow.licence or "not stated", count(len(flow.sources)), *amounts


ROW_COLUMNS = ("split", "tokens a row>", "rows>", "documents>", "tokens>", "padding>")


def rows(report: Report) -> Iterator[tuple[str, ...]]:
    """A row a split and length."""
    for fill in report.rows:
        amounts = (fill.row_length, fill.rows, fill.documents, fill.tokens)
        yield fill.split, *map(count, amounts), f"{100 * fill.padding:.1f}%"


def _cells(report: Report, epochs: Mapping[str, float] | None) -> Table:
    table = _table("cell", "read>", "cleaned>", "kept>", "text kept>", "training tokens>", "held-out>", "times>")
    for cell in report.cells:
        amounts: list[Amount] = [cell.read, cell.cleaned, cell.kept]
        times = "-" if epochs is None else f"{epochs[cell.name]:.2f}"
        documents = [count(amount.documents) for amount in amounts]
        tokens = [count(cell.train.tokens), count(cell.held_out.tokens)]
        _row(table, cell.name, *documents, size(cell.kept.bytes), *tokens, times)
    return table


def repeated(epochs: Mapping[str, float] | None) -> str:
    """Which cells a run repeats too often; empty if none."""
    cells = [f"{name} ({times:.1f})" for name, times in (epochs or {}).items() if times > MOST_EPOCHS]
    return f"more than {MOST_EPOCHS:g} times, when repeated text teaches less and less: {', '.join(cells)}" if cells else ""


def clusters_title(report: Report) -> str:
    largest = f"; the largest has {count(report.largest_cluster)}" if report.largest_cluster else ""
    return f"Groups of documents that are the same, or nearly, by size{largest}"


OVERLAP_TITLE = "Training documents that overlap held-out documents or test sets"
OVERLAP_COLUMNS = ("compared with", "items>", "too short to tell>", "n-grams>", "items found>", "documents dropped>")


def overlap_rows(report: Report) -> list[tuple[str, ...]]:
    return [
        (each.name, *map(count, (each.items, each.too_short, each.ngrams, each.found, each.dropped)))
        for each in report.decontamination
    ]


def _overlaps(report: Report) -> Table:
    table = _table(*OVERLAP_COLUMNS)
    for row in overlap_rows(report):
        _row(table, *row)
    return table


def histogram(values: Histogram) -> Table:
    """A bar a bin, from the first to the last that is not empty."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right")
    grid.add_column(justify="right")
    grid.add_column()
    most = max(values.counts, default=0)
    for label, number in bins(values):
        grid.add_row(Text(label, "dim"), count(number), "█" * max(round(_BAR * number / most), 1 if number else 0))
    return grid


def bins(values: Histogram) -> list[tuple[str, int]]:
    """``("64-127", 12)`` and so on, empty ones at both ends left out."""
    filled = [place for place, number in enumerate(values.counts) if number]
    if not filled:
        return []
    labels = ["0-1", *(f"{count(2**b)}-{count(2 ** (b + 1) - 1)}" for b in range(1, len(values.counts)))]
    return [(labels[b], values.counts[b]) for b in range(filled[0], filled[-1] + 1)]


def tokenizer_title(report: Report) -> str:
    fewer = (
        f" of {count(report.vocab_size + report.pieces_fewer)} asked: the sample held no more" if report.pieces_fewer else ""
    )
    return f"Tokenizer, {count(report.vocab_size)} pieces{fewer}"


def _tokenizer(report: Report) -> Table:
    table = _table("language", "text>", "tokens>", "bytes a token>", "unknown>", "single bytes>")
    for name, each in report.token_rows():
        figures = each.figures
        shares = (f"{100 * each.unknown_share:.3f}%", f"{100 * each.byte_share:.2f}%")
        _row(table, name, size(figures.bytes), count(figures.tokens), f"{each.bytes_per_token:.2f}", *shares)
    return table
