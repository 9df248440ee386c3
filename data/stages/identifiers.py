"""Numbers that carry their own proof: checksums, assigned prefixes, lengths. All are given without separators."""

from datetime import date

# ISO 13616, the registry of the IBAN: length by country.
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL SD FK",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK MN",
        21: "CH CR HR LI LV",
        22: "BG BH DE GB GE IE ME RS VA",
        23: "AE GI IL IQ TL OM SO",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}
# ITU-T E.164, the list of assigned country codes.
_CODES = """
    1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 86
    90 91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236 237 238
    239 240 241 242 243 244 245 246 247 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265 266 267 268
    269 290 291 297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 376 377 378 380 381 382 383
    385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592 593 594 595 596 597 598 599 670 672
    673 674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 690 691 692 800 808 850 852 853 855 856 870 878 880
    881 882 883 886 888 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 977 979 992 993 994 995 996 998
"""
_CALLING_CODES = frozenset(_CODES.split())
# GB/T 2260: the first two digits of a resident's number name the province.
_PROVINCES = frozenset(
    str(10 * region + province)
    for region, provinces in {1: 5, 2: 3, 3: 7, 4: 6, 6: 5}.items()
    for province in range(1, provinces + 1)
) | {"50", "51", "52", "53", "54", "71", "81", "82", "83"}
_RESIDENT_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
# ISO/IEC 7812 issuer ranges of the networks in use: first and last prefix, lengths.
_ISSUERS = (
    (4, 4, (16,)),  # Visa
    (51, 55, (16,)),  # Mastercard
    (2221, 2720, (16,)),
    (34, 34, (15,)),  # American Express
    (37, 37, (15,)),
    (6011, 6011, (16,)),  # Discover
    (644, 659, (16,)),
    (300, 305, (14,)),  # Diners Club
    (36, 36, (14,)),
    (38, 39, (14,)),
    (3528, 3589, (16,)),  # JCB
    (62, 62, (16, 17, 18, 19)),  # UnionPay
)


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B. One number in ten passes."""
    total = sum(int(d) for d in digits[-1::-2])
    return (total + sum(sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])) % 10 == 0


def is_card(digits: str, *, stated: bool = False) -> bool:
    """A payment card's number: checksum, issuer and length; of one that the text calls a card's (``stated``), checksum and
    length alone, 12 to 19: Maestro, old Visa."""
    if not luhn(digits) or len(set(digits)) == 1:
        return False
    if stated:
        return 12 <= len(digits) <= 19
    return any(len(digits) in lengths and first <= int(digits[: len(str(first))]) <= last for first, last, lengths in _ISSUERS)


def iban_length(country: str) -> int | None:
    return _IBAN_LENGTHS.get(country)


def is_iban(text: str) -> bool:
    """ISO 13616: the country's length, and ISO 7064 mod 97-10."""
    if _IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def is_us_ssn(digits: str) -> bool:
    """In the ranges that the Social Security Administration gives out; there is no checksum."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def is_cn_resident_id(text: str) -> bool:
    """GB 11643: province, date of birth, ISO 7064 mod 11-2. ``text`` is 17 digits and a digit or X."""
    try:
        born = date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    check = sum(int(d) * w for d, w in zip(text[:17], _RESIDENT_WEIGHTS, strict=True)) % 11
    return text[:2] in _PROVINCES and 1880 <= born.year < 2100 and "10X98765432"[check] == text[17].upper()


def is_international(digits: str) -> bool:
    """ITU-T E.164 without the plus: an assigned country code, a number of plausible length that begins as numbers there do."""
    code = next((digits[:n] for n in (1, 2, 3) if digits[:n] in _CALLING_CODES), None)
    if code is None or not 8 <= len(digits) <= 15:
        return False
    number = digits[len(code) :]
    if code == "1":
        return len(number) == 10 and number[0] > "1" and number[3] > "1"
    # "(0)", the trunk prefix, is written by many, against the standard; Italy's zero is part of the number.
    local = number.removeprefix("0")
    return len(local) >= 6 and local[0] != "0"
