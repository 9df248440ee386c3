"""Libraries that only some stages need: imported when such a stage is made, and named with their extra where they lack."""

import importlib
from typing import Any

from data.errors import MantaError


class LibraryMissing(MantaError):
    """A stage needs a library that is not installed here."""

    code = "library_missing"
    status = 422


def library(module: str, stage: str) -> Any:
    """The module of that name.

    Raises:
        LibraryMissing: it is not installed. It has no pointer; who makes the stages knows their places.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise LibraryMissing(f"the stage {stage} needs {error.name}: pip install -e '.[data]'") from error
