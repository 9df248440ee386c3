"""What personal data looks like: patterns of RE2 in Latin-1 mode, over UTF-8 bytes, without look-around.

``WINDOW`` is for the one scan of every text; the others are tried within the windows that it finds; ``CONTEXT`` are words that
stand right before a find.
"""

# What people write between the digits of one number: also no-break space and the hyphens and dashes U+2010 to U+2013.
_GAP = rb"(?:[ .\-]|\xc2\xa0|\xe2\x80[\x90-\x93])"
_GAPS = rb"(?:[ ()./\-]|\xc2\xa0|\xe2\x80[\x90-\x93]){0,3}"

IPV4 = rb"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}"
# All public addresses of version 6 begin with 2 or 3 (2000::/3).
IPV6 = rb"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:.]+"
ANY_IPV6 = rb"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*"
IBAN = rb"[A-Z]{2}[0-9]{2}(?:" + _GAP + rb"?[A-Z0-9]){11}"
SEVEN_DIGITS = rb"[0-9](?:" + _GAPS + rb"[0-9]){6,}"

_LATIN = rb"[\xc3-\xca][\x80-\xbf]"
_ALNUM = rb"(?:[A-Za-z0-9]|" + _LATIN + rb")"
EMAIL = (
    rb'(?:"[^"\s@]+(?: [^"\s@]+)*"|(?:[A-Za-z0-9_]|' + _LATIN + rb")(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\-]|" + _LATIN + rb")*)"
    rb"@(?:\[[0-9.]+\]|(?:" + _ALNUM + rb"(?:-*" + _ALNUM + rb")*\.)+[A-Za-z]{2,24})"
)  # fmt: skip

RESIDENT = rb"[0-9]{17}[0-9Xx]"
SSN = rb"[0-9]{3}[ \-]?[0-9]{2}[ \-]?[0-9]{4}"
CARD = rb"[0-9]{4}[ \-][0-9]{4}[ \-][0-9]{4}[ \-][0-9]{4}(?:[ \-][0-9]{3})?|[0-9]{4}[ \-][0-9]{6}[ \-][0-9]{4,5}|[0-9]{12,19}"

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
        gap=r"(?:[ .:()+\-]|\bme\b|\bus\b|\bhim\b|\bher\b|\bthem\b|\bat\b|\bon\b|\bto\b|方式|我|：|（){0,8}",
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

# Generic top-level domains in which people have mail; any two letters are a country's.
_DOMAINS = b"""
    com org net edu gov mil int info biz name pro mobi asia tel jobs aero coop museum cat post travel arpa example
    invalid test localhost local app dev page web site online website tech store shop blog cloud email mail live life
    world today news media agency studio design digital group team company inc llc ltd gmbh solutions services systems
    network software consulting academy school university education institute foundation ngo ong health care clinic
    dental law legal finance capital money bank insure xyz top vip club wang win work works space fun icu ink link click
    art photo photos video music games game berlin london paris nyc tokyo amsterdam wien hamburg koeln quebec swiss eus
    gal bzh scot wales africa lat global international support center expert guru zone press social community church
    family one plus
"""
DOMAINS = frozenset(_DOMAINS.split())
# Endings of files that look like domains: logo@2x.png.
FILES = frozenset((b"py", b"js", b"ts", b"md", b"rs", b"sh", b"so", b"cc", b"pl", b"ps", b"gz"))
