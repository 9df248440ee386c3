"""How the command line writes numbers, sizes and times. Pure functions of their arguments."""

from datetime import datetime


def duration(seconds: float) -> str:
    """``48 s``, ``3 min 05 s``, ``2 h 10 min``; below ten seconds one decimal."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: float) -> str:
    """``950``, ``12,345``, ``1.25 M``, ``3.10 B``: never more than a glance can take."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(number) >= limit:
            return f"{number / limit:.2f} {unit}"
    if number == int(number) or abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}"


def size(number: float) -> str:
    """Bytes in binary units: ``512 B``, ``3.4 MiB``."""
    if number < 1024:
        return f"{number:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"


def clock(at: datetime | None) -> str:
    """A time of day in the reader's zone, to the second; ``-`` for none."""
    return at.astimezone().strftime("%H:%M:%S") if at else "-"


def day(at: datetime | None) -> str:
    """Date and time in the reader's zone; ``-`` for none."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else "-"


def percent_below(value: float, peer: float) -> str:
    """How far ``value`` is below ``peer``: ``18.2% below``."""
    share = 100 * (1 - value / peer) if peer else 0.0
    return f"{abs(share):.1f}% {'below' if share >= 0 else 'above'}"
