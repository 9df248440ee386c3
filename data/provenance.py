"""Where the documents of a data set came from, and under which licences. Pure."""

from collections.abc import Sequence

import numpy as np

from data.corpus import Corpus
from data.funnel import read_of
from data.inputs import Input, Inputs
from data.report import Amount, LicenceFlow
from data.tasks import CleanResult, CleanTask


def inputs_of(tasks: Sequence[CleanTask], results: Sequence[CleanResult]) -> Inputs:
    """
    Args:
        results: of the tasks, in their order.
    """
    return Inputs(
        files=tuple(
            Input(
                path=file.path,
                source=task.source.path,
                licence=task.source.licence,
                size=file.size,
                digest=file.digest,
                documents=documents,
            )
            for task, result in zip(tasks, results, strict=True)
            for file, documents in zip(task.files, result.read, strict=True)
        )
    )


def licences_of(tasks: Sequence[CleanTask], results: Sequence[CleanResult], corpus: Corpus) -> tuple[LicenceFlow, ...]:
    """In the order of the sources.

    Args:
        results: of the tasks, in their order.
        corpus: whose parts are the tasks'.
    """
    licences = list(dict.fromkeys(task.source.licence for task in tasks))
    licence_P = np.array([licences.index(task.source.licence) for task in tasks])
    licence_N = licence_P[corpus.part_N]
    flows = []
    for number, licence in enumerate(licences):
        kept = corpus.bytes_N[licence_N == number]
        flows.append(
            LicenceFlow(
                licence=licence,
                sources=tuple(dict.fromkeys(task.source.path for task in tasks if task.source.licence == licence)),
                read=read_of(results[task] for task in np.flatnonzero(licence_P == number).tolist()),
                kept=Amount(documents=len(kept), bytes=int(kept.sum())),
            )
        )
    return tuple(flows)
