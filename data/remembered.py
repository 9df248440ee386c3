"""What was found out of the few words that make up most of any text is remembered."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Answer = TypeVar("Answer")

_LONGEST = 64


class Remembered(dict[str, Answer]):
    """A function's answers by word: of short words, and all of them forgotten when there are many, so memory stays bounded."""

    def __init__(self, answer: Callable[[str], Answer], most: int = 1 << 17) -> None:
        """
        Args:
            most: words, between one text and the next.
        """
        super().__init__()
        self._answer, self._most = answer, most

    def __missing__(self, word: str) -> Answer:
        answer = self._answer(word)
        if len(word) <= _LONGEST:
            self[word] = answer
        return answer

    def of(self, words: Iterable[str]) -> Iterator[Answer]:
        """The answer to each word of a text, in order."""
        if len(self) > self._most:
            self.clear()
        return map(self.__getitem__, words)
