"""Where personal data lies in a text.

One scan for anything like seven digits, an internet address or an account finds the windows in which the patterns of each kind
are tried, and each find is then checked: checksum, ranges, what stands beside it. RE2 takes linear time whatever the text, and
reads UTF-8 as bytes, so no offset needs translation.
"""

import ipaddress
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data.stages import personal_patterns as patterns
from data.stages.identifiers import iban_length, is_card, is_cn_resident_id, is_iban, is_international, is_us_ssn
from data.stages.libraries import library
from data.stages.personal_fold import FORMS, fold

KINDS = ("email", "phone", "ip_address", "card", "iban", "us_ssn", "cn_resident_id")

_WORD = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_DIGITS = frozenset(b"0123456789")
_NO_DIGITS = bytes(set(range(256)) - _DIGITS)
# An address has two numbers of this size or stands after words that call it one; else it is a version.
_LARGE_OCTET = 20


@dataclass(frozen=True, slots=True)
class Find:
    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: str
    digits: int
    """Fewest that a find can have; a window of fewer is not searched."""
    needs: bytes
    """What else must be in the window."""
    pattern: Any
    check: Callable[[bytes, int, int, bool], int]
    """(text, start, end, whether it is Chinese) of a match to where the find ends; 0: it is none."""


def redacted(text: bytes, found: Iterable[Find], placeholders: Mapping[str, bytes]) -> bytes:
    """The text with placeholders, by kind, in place of what was found."""
    pieces, at = [], 0
    for find in sorted(found, key=lambda find: find.start):
        pieces += [text[at : find.start], placeholders[find.kind]]
        at = find.end
    return b"".join([*pieces, text[at:]])


class _Taken:
    """Stretches of text that do not overlap, by their starts: a window may be the whole text, and hold thousands of finds."""

    def __init__(self, finds: list[Find]) -> None:
        self._starts = [find.start for find in finds]
        self._ends = [find.end for find in finds]

    def frees(self, start: int, end: int) -> bool:
        """Whether nothing is taken between the two."""
        at = bisect_right(self._starts, start)
        return not (at and self._ends[at - 1] > start) and not (at < len(self._starts) and self._starts[at] < end)

    def add(self, start: int, end: int) -> None:
        at = bisect_right(self._starts, start)
        self._starts.insert(at, start)
        self._ends.insert(at, end)


class Finder:
    """Finds the kinds asked for. ``special_addresses``: also IP addresses that are nobody's (private, loopback, documentation).

    Raises:
        LibraryMissing: ``google-re2`` is not installed.
    """

    def __init__(self, kinds: Collection[str], special_addresses: bool, stage: str) -> None:
        self._re2 = library("re2", stage)
        self._special = special_addresses
        ipv6 = patterns.ANY_IPV6 if special_addresses else patterns.IPV6
        # Of two finds that overlap the earlier rule's counts.
        rules = (
            ("iban", 2, b"", patterns.IBAN, self._iban),
            ("cn_resident_id", 17, b"", patterns.RESIDENT, self._resident),
            ("card", 12, b"", patterns.CARD, self._card),
            ("ip_address", 4, b".", patterns.IPV4, self._ipv4),
            ("ip_address", 1, b":", ipv6, self._ipv6),
            ("us_ssn", 9, b"", patterns.SSN, self._ssn),
            ("phone", 8, b"+", patterns.INTERNATIONAL, self._international),
            ("phone", 10, b"", patterns.NANP, self._nanp),
            ("phone", 11, b"", patterns.CN_MOBILE, self._cn_mobile),
            ("phone", 10, b"", patterns.CN_LANDLINE, self._cn_landline),
            ("phone", 7, b"", patterns.LABELLED, self._labelled),
        )
        self._rules = [
            _Rule(kind, digits, needs, self._compile(pattern), check)
            for kind, digits, needs, pattern, check in rules
            if kind in kinds
        ]
        windows = [patterns.IBAN] * ("iban" in kinds) + [patterns.IPV4, ipv6] * ("ip_address" in kinds)
        windows += [patterns.SEVEN_DIGITS] * bool(set(kinds) & {"cn_resident_id", "card", "us_ssn", "phone"})
        self._window = self._compile(b"|".join(windows)) if windows else None
        self._email = self._compile(patterns.email()) if "email" in kinds else None
        self._context = {name: self._compile(pattern) for name, pattern in patterns.CONTEXT.items()}
        self._first_digits = self._compile(rb"[^0-9]*[0-9]+")
        self._date = self._compile(patterns.DATE)
        self._forms = self._compile(FORMS)
        self._domains = patterns.domains()

    def __call__(self, text: bytes, chinese: bool) -> Iterator[Find]:
        """All finds; no two overlap. Emails come first, then the others in their order."""
        folded, back = fold(text, self._forms)
        found = self._in_folded(folded, chinese)
        return found if back is None else (Find(back(find.start), back(find.end), find.kind) for find in found)

    def _in_folded(self, text: bytes, chinese: bool) -> Iterator[Find]:
        emails: list[Find] = []
        if self._email is not None and b"@" in text:
            for match in self._email.finditer(text):
                start, end = match.span()
                if self._is_email(text, start, end):
                    emails.append(Find(start, end, "email"))
                    yield emails[-1]
        if self._window is None:
            return
        at = before = 0
        while (window := self._window.search(text, at)) is not None:
            start, end = window.span()
            while before < len(emails) and emails[before].end <= start:
                before += 1
            # A plus and a bracket before the digits, a check letter or an extension behind.
            near = [email for email in emails[before : before + 64] if email.start < end + 16]
            found = self._in_window(text, max(at, start - 3), end, chinese, near)
            yield from found
            at = max([end, *(find.end for find in found)])

    def _in_window(self, text: bytes, start: int, border: int, chinese: bool, emails: list[Find]) -> list[Find]:
        """What begins between ``start`` and ``border``."""
        found: list[Find] = []
        taken, stop = _Taken(emails), min(border + 16, len(text))
        window = text[start:stop]
        digits = len(window.translate(None, _NO_DIGITS))
        for rule in self._rules:
            if digits < rule.digits or rule.needs not in window:
                continue
            at = start
            while (match := rule.pattern.search(text, at, stop)) is not None and match.start() < border:
                if match.end() == stop:
                    match = rule.pattern.match(text, match.start())
                begin, end = match.span()
                end = rule.check(text, begin, end, chinese) if taken.frees(begin, end) else 0
                if end:
                    found.append(Find(begin, end, rule.kind))
                    taken.add(begin, end)
                    at = end
                else:
                    # A false start must not hide what begins in its middle; but nothing begins inside a run of digits.
                    run = self._first_digits.match(text, begin, match.end())
                    at = run.end() if run and rule.kind != "ip_address" else match.end()
        return found

    def _compile(self, pattern: bytes) -> Any:
        options = self._re2.Options()
        options.encoding = self._re2.Options.Encoding.LATIN1
        options.longest_match = options.never_capture = True
        return self._re2.compile(pattern, options)

    def _after(self, text: bytes, start: int, *contexts: str) -> bool:
        """Whether words of one of the contexts stand right before ``start``."""
        before = text[max(0, start - patterns.CONTEXT_BYTES) : start]
        return any(self._context[name].search(before) is not None for name in contexts)

    def _is_email(self, text: bytes, start: int, end: int) -> bool:
        local, _, domain = text[start:end].rpartition(b"@")
        if len(local) > 64 or len(domain) > 255:
            return False
        before = text[max(0, start - 256) : start].split()
        if text[max(0, start - 1) : start] in (b"/", b":") and before and b"://" in before[-1]:
            return False  # The user and password of a URL.
        if domain.startswith(b"["):
            return True
        if end < len(text) and (text[end] in _WORD or text[end : end + 2] == b":~"):
            return False
        if local in (b"git", b"hg", b"svn") and text[end : end + 1] in (b":", b"/"):
            return False  # A repository's address.
        last = domain.rpartition(b".")[2].decode()
        if last.lower() in patterns.FILES:
            return False
        called = text[end : end + 1] in (b"(", b"[")
        if len(last) == 2 and last.isascii():
            # Short names are countries, and in programs attributes: q@k.mT, a@b.to(device), icon@2x.js.
            return (last.islower() or last.isupper()) and not called
        return last.lower() in self._domains and (not called or last.lower() in patterns.OLDEST)

    def _iban(self, text: bytes, start: int, end: int, chinese: bool) -> int:
        length = iban_length(text[start : start + 2].decode())
        if length is None:
            return 0
        end, read, gap = start, bytearray(), 0
        while end < len(text) and len(read) < length and gap < 2:
            if text[end] in _WORD:
                read.append(text[end])
                gap = 0
            elif text[end] in b" -":
                gap += 1
            else:
                return 0
            end += 1
        return end if _free(text, start, end) and is_iban(read.decode()) else 0

    def _resident(self, text: bytes, start: int, end: int, chinese: bool) -> int:
        number = text[start:end].translate(None, b" -").decode()
        return end if _free(text, start, end) and is_cn_resident_id(number) else 0

    def _card(self, text: bytes, start: int, end: int, chinese: bool) -> int:
        if not _free(text, start, end) or len(set(text[start:end]) - _DIGITS) > 1:
            return 0
        stated = self._after(text, start, "card")
        if not stated and self._after(text, start, "other"):
            return 0
        return end if is_card(_digits(text, start, end), stated=stated) else 0

    def _ipv4(self, text: bytes, start: int, end: int, chinese: bool) -> int:
        octets = text[start:end].split(b".")
        if not _free(text, start, end) or any(int(o) > 255 or (len(o) > 1 and o.startswith(b"0")) for o in octets):
            return 0
        if not self._special and not ipaddress.IPv4Address(text[start:end].decode()).is_global:
            return 0
        if self._after(text, start, "version"):
            return 0
        return end if sum(int(o) >= _LARGE_OCTET for o in octets) > 1 or self._after(text, start, "ip") else 0

    def _ipv6(self, text: bytes, start: int, end: int, chinese: bool) -> int:
        while text[end - 1] in b".:" and text[end - 2 : end] != b"::":
            end -= 1
        if not _free(text, start, end) or (start and text[start - 1] in b":.") or not set(text[start:end]) & _DIGITS:
            return 0
        try:
            address = ipaddress.IPv6Address(text[start:end].decode())
        except ValueError:
            return 0
        return end if self._special or address.is_global else 0

    def _ssn(self, text: bytes, start: int, end: int, chinese: bool) -> int:
        gaps = bytes(b for b in text[start:end] if b not in _DIGITS)
        if gaps not in (b"", b"--", b"  ") or not _free(text, start, end) or not is_us_ssn(_digits(text, start, end)):
            return 0
        if self._after(text, start, "ssn"):
            return end
        return end if gaps == b"--" and not self._after(text, start, "other", "phone", "call") else 0

    def _international(self, text: bytes, start: int, end: int, chinese: bool) -> int:
        whole, point, fraction = text[start + 1 : end].partition(b".")
        if (start and text[start - 1] in _WORD) or (point and whole.isdigit() and fraction.isdigit()):
            return 0  # A sum, or a number with a fraction.
        # What follows a number may be another: ends of groups of digits, the longest first.
        while end > start:
            if _free(text, start, end) and is_international(_digits(text, start, end)):
                return end
            while end > start and text[end - 1] in _DIGITS:
                end -= 1
            while end > start and text[end - 1] not in _DIGITS:
                end -= 1
        return 0

    def _nanp(self, text: bytes, start: int, end: int, chinese: bool) -> int:
        if not _free(text, start, end):
            return 0
        if self._after(text, start, "phone", "call"):
            return end
        number = text[start:end]
        if number.isdigit() or self._after(text, start, "other"):
            return 0
        if set(number) - _DIGITS == {32} and (_digit_beside(text, start - 2) or _digit_beside(text, end + 1)):
            return 0  # A row of a table.
        return end

    def _cn_mobile(self, text: bytes, start: int, end: int, chinese: bool) -> int:
        if not _free(text, start, end):
            return 0
        stated = self._after(text, start, "phone", "call")
        plain = text[start:end].isdigit() and not chinese
        return end if stated or not (plain or self._after(text, start, "other")) else 0

    def _cn_landline(self, text: bytes, start: int, end: int, chinese: bool) -> int:
        return end if _free(text, start, end) and not self._after(text, start, "other") else 0

    def _labelled(self, text: bytes, start: int, end: int, chinese: bool) -> int:
        if not self._after(text, start, "phone") or self._date.match(text, start, end):
            return 0
        return end if _free(text, start, end) else 0


def _digits(text: bytes, start: int, end: int) -> str:
    return bytes(b for b in text[start:end] if b in _DIGITS).decode()


def _digit_beside(text: bytes, at: int) -> bool:
    return 0 <= at < len(text) and text[at] in _DIGITS


def _free(text: bytes, start: int, end: int) -> bool:
    """Whether no letters and digits touch it, and no hyphen, dot or slash joins it to some: it is no part of a longer name."""
    if start:
        left, beyond = text[start - 1], text[start - 2] if start > 1 else 32
        if left in _WORD or (left in b"-/" and beyond in _WORD) or (left == 0x2E and beyond in _DIGITS):
            return False
    if end < len(text):
        right, beyond = text[end], text[end + 1] if end + 1 < len(text) else 32
        return right not in _WORD and not (right == 0x2D and beyond in _WORD) and not (right == 0x2E and beyond in _DIGITS)
    return True
