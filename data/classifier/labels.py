"""How a classifier's examples are labelled, and what it is asked. Each stage that can have one says so in its own file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from data.classifier.features import Features


class LabelScheme(Protocol):
    """How the labels of a stage's examples are read, what is asked of a text, and what a classifier sees of it."""

    together: bool
    """One question that cannot be answered leaves the others without a model."""

    def read_label(self, line: dict[str, Any]) -> Any:
        """
        Raises:
            ValueError: there is none, or it is no label.
        """

    @property
    def corpora(self) -> Sequence[tuple[str, Any]]:
        """Fields of its training that name whole corpora, and the label of each."""

    def features(self, text: str, language: str) -> "Features": ...

    def questions(self, labels: Sequence[Any]) -> dict[str, "npt.NDArray[np.bool_]"]:
        """Of the labels of one language: what a classifier is to say of each."""
