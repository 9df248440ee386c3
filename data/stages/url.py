"""Rules about where a document was found. A document without an address passes.

After RefinedWeb's first step (Penedo et al., arXiv 2306.01116, appendix G.1), which FineWeb kept: a list of domains, then
words in the address, strict ones that decide alone and soft ones of which two are needed. The lists are the user's: what
belongs in them is a decision about content.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, model_validator

from data.documents import Document
from data.spec_base import Misfit
from data.stages.base import Drop, StageSettings
from data.stages.excerpt import excerpt

_WORD = re.compile(r"[^\W_]+")
_DOI = re.compile(r"10\.\d{4,9}/")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")


class UrlSpec(StageSettings):
    """Drops documents by their address (``url_field`` of a source).

    RefinedWeb: 4.6M blocked domains; strict words anywhere in the address; two or more soft words.
    """

    stage: Literal["url"] = "url"
    blocked_domains: tuple[str, ...] = ()
    """``example.com`` stands for its subdomains too, ``bücher.example`` for ``xn--bcher-kva.example``. Reason
    ``blocked_domain``."""
    blocked_words: tuple[str, ...] = ()
    """Each alone is enough, as a whole word of the address (``casino`` in ``/online-casino/``, not in ``casinos``); one with a
    Chinese character anywhere, as Chinese writes no space. Reason ``blocked_word``."""
    soft_blocked_words: tuple[str, ...] = ()
    """Reason ``soft_blocked_words``."""
    soft_words: int | None = Field(default=2, ge=1)
    """That many different soft words are enough; None switches the rule off."""
    allow_ip_hosts: bool = False
    """Whether a number may stand in place of a host's name. Reason ``ip_host``. A DOI (``10.1000/182``) is none."""
    allow_malformed: bool = False
    """Whether an address that has no host passes. Reason ``malformed_url``."""

    @model_validator(mode="after")
    def _lists_can_match(self) -> Self:
        for domain in self.blocked_domains:
            if not _domain(domain) or "/" in domain:
                raise Misfit(f"{domain!r} is no domain, such as example.com", "blocked_domains")
        for name in ("blocked_words", "soft_blocked_words"):
            for word in getattr(self, name):
                if not _WORD.fullmatch(word):
                    raise Misfit(f"{word!r} is no single word: an address is cut at everything but letters and digits", name)
        return self


class Url:
    def __init__(self, spec: UrlSpec) -> None:
        self._spec = spec
        self._domains = {_ascii(domain): domain for domain in map(_domain, spec.blocked_domains)}
        self._words = _Words(spec.blocked_words)
        self._soft_words = _Words(spec.soft_blocked_words if spec.soft_words is not None else ())

    def __call__(self, document: Document) -> Document | Drop:
        return self._judge(document.url) or document if document.url else document

    def _judge(self, url: str) -> Drop | None:
        host = host_of(url)
        if host is None:
            return None if self._spec.allow_malformed else Drop("malformed_url", excerpt(url, ""))
        if not self._spec.allow_ip_hosts and _is_ip(host) and not _DOI.match(url):
            return Drop("ip_host", host)
        for domain in _and_parents(_ascii(host)) if self._domains else ():
            if domain in self._domains:
                return Drop("blocked_domain", self._domains[domain])
        address = unquote(url).casefold()
        if found := self._words.of(address):
            return Drop("blocked_word", min(found))
        soft = self._soft_words.of(address)
        if soft and len(soft) >= (self._spec.soft_words or 0):
            return Drop("soft_blocked_words", " ".join(sorted(soft)))
        return None


class _Words:
    """A list of words that are looked for in addresses."""

    def __init__(self, words: Iterable[str]) -> None:
        folded = frozenset(word.casefold() for word in words)
        self._anywhere = frozenset(word for word in folded if _HAN.search(word))
        self._whole = folded - self._anywhere

    def of(self, address: str) -> set[str]:
        """Those that the address, case folded, has."""
        found = {word for word in self._anywhere if word in address}
        return found | self._whole.intersection(_WORD.findall(address)) if self._whole else found


def host_of(url: str) -> str | None:
    """The host that an address names, in lower case; None where it names none. ``http://`` may be left out."""
    try:
        host = urlsplit(url.strip() if "://" in url else f"http://{url.strip()}").hostname
    except ValueError:  # half an IPv6 address
        return None
    return host.rstrip(".") if host and not any(c.isspace() for c in host) and host.strip(".") else None


def _is_ip(host: str) -> bool:
    """IPv4 as browsers read it (also one number, or hexadecimal) and IPv6."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(re.fullmatch(r"(0x[0-9a-f]+|\d+)(\.(0x[0-9a-f]+|\d+)){0,3}", host))
    return True


def _domain(name: str) -> str:
    return name.strip().strip(".").lower()


def _ascii(host: str) -> str:
    """As it is looked up (UTS 46, IDNA 2008), so that one host has one name; a label that no domain can have stays."""
    if host.isascii():
        return host
    import idna

    try:
        host = idna.uts46_remap(host, std3_rules=False)
    except idna.IDNAError:
        return host
    return ".".join(map(_ascii_label, host.split(".")))


def _ascii_label(label: str) -> str:
    import idna

    try:
        return label if label.isascii() else idna.alabel(label).decode()
    except idna.IDNAError:
        return label


def _and_parents(host: str) -> Iterable[str]:
    """``a.b.c``, ``b.c``, ``c``."""
    labels = host.split(".")
    return (".".join(labels[at:]) for at in range(len(labels)))
