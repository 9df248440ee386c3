"""Text that was decoded as what it is not (mojibake: ``â€™`` for ``’``) is put right again, where that is certain."""

from typing import Literal

from data.documents import Document
from data.stages.base import Drop, StageSettings
from data.stages.libraries import library


class UnicodeRepairSpec(StageSettings):
    """Mojibake is decoded again as what it was (ftfy, Speer 2019, doi 10.5281/zenodo.2591652).

    What else ftfy offers changes text that is in order, and is not done: quotes made straight, ligatures and wide characters
    taken apart. HTML entities are a parameter.
    """

    stage: Literal["unicode_repair"] = "unicode_repair"
    unescape_html: bool = False
    """``&amp;`` becomes ``&`` where the text has no ``<``."""
    skip_domains: tuple[str, ...] = ("code",)
    """A program may mean ``Ã©``."""


class UnicodeRepair:
    def __init__(self, spec: UnicodeRepairSpec) -> None:
        ftfy = library("ftfy", spec.stage)
        self._fix_text, self._is_bad = ftfy.fix_text, ftfy.is_bad
        self._config = ftfy.TextFixerConfig(
            unescape_html="auto" if spec.unescape_html else False,
            restore_byte_a0=False,
            fix_latin_ligatures=False,
            fix_character_width=False,
            uncurl_quotes=False,
            fix_line_breaks=False,
            remove_terminal_escapes=False,
            remove_control_chars=False,
            normalization=None,
            explain=False,
        )

    def __call__(self, document: Document) -> Document | Drop:
        if self._config.unescape_html or self._suspicious(document.text):
            document.text = self._fix_text(document.text, self._config)
        return document

    def _suspicious(self, text: str) -> bool:
        """What ftfy asks of every line before it touches it; asked here, most documents never get there."""
        return not text.isascii() and any(not line.isascii() and self._is_bad(line) for line in text.split("\n"))
