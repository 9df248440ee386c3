"""What personal data looks like: patterns of RE2 in Latin-1 mode, over UTF-8 bytes, without look-around.

``WINDOW`` is for the one scan of every text; the others are tried within the windows that it finds; ``CONTEXT`` are words that
stand right before a find. The text is folded (``personal_fold``), so blanks, hyphens and brackets are those of ASCII.
"""

from functools import cache
from pathlib import Path

# What people write between the digits of one number.
_GAP = rb"[ .\-]"
_GAPS = rb"[ ()./\-]{0,3}"

IPV4 = rb"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}"
# All public addresses of version 6 begin with 2 or 3 (2000::/3).
IPV6 = rb"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:.]+"
ANY_IPV6 = rb"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*"
IBAN = rb"[A-Z]{2}[0-9]{2}(?:" + _GAP + rb"?[A-Z0-9]){11}"
SEVEN_DIGITS = rb"[0-9](?:" + _GAPS + rb"[0-9]){6,}"

DOMAINS = Path(__file__).parents[1] / "domains"
"""The top-level domains in use, as IANA publishes them (data.iana.org/TLD/tlds-alpha-by-domain.txt)."""
# RFC 2606 and 6762: they are nobody's, and stand in examples.
_RESERVED = ("arpa", "example", "invalid", "test", "localhost", "local")


@cache
def domains() -> frozenset[str]:
    """In small letters; of those in other scripts both forms, with and without ``xn--``."""
    lines = (DOMAINS / "iana.txt").read_text(encoding="ascii").lower().splitlines()
    listed = [line for line in lines if not line.startswith("#")]
    return frozenset([*listed, *(name.encode().decode("idna") for name in listed), *_RESERVED])


# Latin, Greek, Cyrillic, Hebrew and Arabic letters. Who writes in others sets no blank before an address.
_WIDE = rb"[\xc3-\xca\xcf-\xd3\xda][\x80-\xbf]|\xce[\x86-\xbf]|\xd7[\x90-\xaa]|\xd8[\xa0-\xbf]|\xd9[\x81-\x8a]|\xdb[\x80-\x93]"
_ALNUM = rb"(?:[A-Za-z0-9]|" + _WIDE + rb")"


@cache
def email() -> bytes:
    others = b"|".join(sorted(name.encode() for name in domains() if not name.isascii()))
    return (
        rb'(?:"[^"\s@]+(?: [^"\s@]+)*"|(?:[A-Za-z0-9_]|' + _WIDE + rb")(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\-]|" + _WIDE + rb")*)"
        rb"@(?:\[[0-9.]+\]|(?:" + _ALNUM + rb"(?:-*" + _ALNUM + rb")*\.)+"
        rb"(?:[A-Za-z]{2,24}|[Xx][Nn]--[A-Za-z0-9\-]{2,24}|" + others + rb"))"
    )  # fmt: skip


RESIDENT = rb"[0-9]{6}[ \-]?[0-9]{4}[ \-]?[0-9]{4}[ \-]?[0-9]{3}[0-9Xx]"
SSN = rb"[0-9]{3}[ \-]?[0-9]{2}[ \-]?[0-9]{4}"
CARD = (
    rb"[0-9]{4}" + _GAP + rb"[0-9]{4}" + _GAP + rb"[0-9]{4}" + _GAP + rb"[0-9]{4}(?:" + _GAP + rb"[0-9]{3})?|"
    rb"[0-9]{4}" + _GAP + rb"[0-9]{6}" + _GAP + rb"[0-9]{4,5}|[0-9]{12,19}"
)  # fmt: skip

_AREA = rb"[2-9][0-9]{2}"
_EXTENSION = rb"(?: ?(?:x|ext\.?|#) ?[0-9]{1,6})?"
# The North American plan: area and exchange begin with 2 to 9.
NANP = (
    rb"(?:(?:\+?1|001)" + _GAP + rb"?)?(?:\(" + _AREA + rb"\)" + _GAP + rb"?" + _AREA + _GAP + rb"?[0-9]{4}|"
    + _AREA + rb"(?:" + _GAP + _AREA + _GAP + rb"|" + _AREA + rb")[0-9]{4})" + _EXTENSION
)  # fmt: skip
CN_MOBILE = rb"(?:(?:\+|00)?86" + _GAP + rb"?)?1[3-9][0-9](?:" + _GAP + rb"[0-9]{4}" + _GAP + rb"[0-9]{4}|[0-9]{8})"
_CN_AREA = rb"0(?:10|2[0-9]|[3-9][0-9]{2})"
CN_LANDLINE = rb"(?:\(" + _CN_AREA + rb"\) ?|" + _CN_AREA + rb"[ \-])[2-9][0-9]{2,3}[ \-]?[0-9]{4}"
INTERNATIONAL = rb"\+\(?[1-9](?:" + _GAPS + rb"[0-9]){7,14}"
LABELLED = rb"\(?[0-9](?:" + _GAPS + rb"[0-9]){6,14}" + _EXTENSION
DATE = rb"(?:19|20)[0-9]{2}[./\-][0-9]{1,2}[./\-][0-9]"


def _before(words: str, others: str, gap: str) -> bytes:
    """A word (``words``: in Latin letters, whole at their beginning; ``others``: anywhere), then ``gap``, before a find."""
    return rf"(?i)(?:\b(?:{'|'.join(words.split())})|{'|'.join(others.split())})(?:{gap})$".encode()


CONTEXT = {
    "phone": _before(
        "tel telephone phone mobile mob cell fax whatsapp handy telefon t(?:é|e)l(?:é|e)phone tel(?:é|e)fono",
        "电话 電話 手机 手機 传真 傳真 座机 热线 微信",
        gap=r"(?:[ .:()+=\-\"'/]|\bnumber|\bno\b|\bnr\b|\bis\b|\bat\b|\bon\b|号码|號碼|号|：|为|是|（){0,8}",
    ),
    "call": _before(
        "call text dial ring reach contact sms",
        "联系 聯繫 打给 致电 拨打",
        gap=r"(?:[ .:()+\-]|\bme\b|\bus\b|\bhim\b|\bher\b|\bthem\b|\bat\b|\bon\b|\bto\b|方式|我|：){0,8}",
    ),
    # Numbers that are something else, and say so.
    "other": _before(
        "orders? invoice ref reference isbn issn doi part serial sku model ticket case tracking id imei iccid item ean gtin",
        "# 订单 訂單 单号 編號 编号 流水 货号 发票 运单 快递",
        gap=r"(?:[ .:#=\-]|\bnumber|\bno\b|10|13|号码|号|號|：|为|是){0,8}",
    ),
    "card": _before(
        r"cards? visa master\s?card maestro amex american\sexpress discover diners jcb unionpay credit debit",
        "卡号 卡號 信用卡 银行卡 銀行卡 储蓄卡 借记卡",
        gap=r"\b?[^0-9\n]{0,24}",
    ),
    "ssn": _before(r"ssns? social[\s\-]security", r"\bsocial\ssec", gap=r"\b?[^0-9\n]{0,24}"),
    "version": _before(
        "versions? ver v releases? released build firmware sections? chapter clause rev revision figure table oid",
        r"版本 固件 § [=<>~!]= \^",
        gap=r"[\s.:=\"'(]{0,3}|：",
    ),
    "ip": _before(
        "ips? ipv4 address(?:es)? hosts? gateway dns ping ssh subnet peer nameserver login",
        "// @ 地址 主机",
        gap=r"(?:[ :=\[(\"'@]|\bis\b|\bof\b|\bfrom\b|：|为|是){0,6}",
    ),
}
CONTEXT_BYTES = 64
"""Before a find, that are looked at for such words."""

# After a domain in a program comes a call or an index (q@w.map(f)), after one of these an address ends all the same.
OLDEST = frozenset(("com", "org", "net", "edu", "gov", "mil", "info", "biz"))
# Endings of files that look like domains: logo@2x.zip.
FILES = frozenset(("py", "js", "ts", "md", "rs", "sh", "so", "cc", "pl", "ps", "gz", "zip", "mov"))
