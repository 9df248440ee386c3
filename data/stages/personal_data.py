"""Emails, phone numbers, internet addresses and numbers of cards, accounts and persons: a placeholder takes their place, or the
document is dropped.

What has a checksum is believed by it; what has none (phones, US social security numbers, short IP addresses) by the ranges that
are given out and by the words before it. Names and postal addresses are not looked for: that takes a model.
"""

from collections import Counter
from typing import Literal

from pydantic import Field

from data.documents import Document
from data.stages.base import Drop, StageSettings
from data.stages.personal_finder import KINDS, Find, Finder, redacted
from data.stages.text import names_chinese

Action = Literal["redact", "drop", "keep"]


class PersonalDataSpec(StageSettings):
    """Redacts personal data, or drops documents that hold it: ``redact`` puts the placeholder in its place, ``drop`` drops the
    document (reason: the kind), ``keep`` does not look for it."""

    stage: Literal["personal_data"] = "personal_data"
    email: Action = "redact"
    phone: Action = "redact"
    """International (``+``), North American and Chinese numbers; others after words such as ``Tel.``, ``电话``."""
    ip_address: Action = "redact"
    """Versions 4 and 6."""
    card: Action = "redact"
    """Payment cards: issuer, length and the Luhn checksum."""
    iban: Action = "redact"
    us_ssn: Action = "redact"
    """Social security numbers: with hyphens, or after words that call it one."""
    cn_resident_id: Action = "redact"
    """身份证号码: 18 digits with a date and a checksum."""
    special_addresses: bool = False
    """IP addresses that are nobody's count as well: private, loopback, link-local, documentation (RFC 6890)."""
    placeholder: str = "[{kind}]"
    """``{kind}`` becomes ``EMAIL``, ``PHONE``, ``IP_ADDRESS``, ``CARD``, ``IBAN``, ``US_SSN``, ``CN_RESIDENT_ID``."""
    max_redactions: int | None = Field(default=5, ge=0)
    """A document with more is dropped (``too_much_personal_data``). Dolma (Soldaini et al., arXiv 2402.00159) masks up to 5 and
    drops what has more. None: any number is redacted."""


class PersonalData:
    redacts = True

    def __init__(self, spec: PersonalDataSpec) -> None:
        self._actions: dict[str, Action] = {kind: getattr(spec, kind) for kind in KINDS}
        self._placeholders = {kind: spec.placeholder.replace("{kind}", kind.upper()).encode() for kind in KINDS}
        self._most = spec.max_redactions
        looked_for = [kind for kind, action in self._actions.items() if action != "keep"]
        self._find = Finder(looked_for, spec.special_addresses, spec.stage)

    def __call__(self, document: Document) -> Document | Drop:
        text = document.text.encode()
        found: list[Find] = []
        for find in self._find(text, names_chinese(document.language)):
            if self._actions[find.kind] == "drop":
                return Drop(find.kind, f"at byte {find.start}", confidential=True)
            found.append(find)
            if self._most is not None and len(found) > self._most:
                return Drop("too_much_personal_data", f"more than {self._most}", confidential=True)
        document.redactions = Counter(find.kind for find in found)
        if found:
            document.text = redacted(text, found, self._placeholders).decode()
        return document
