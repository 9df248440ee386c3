"""What both databases can hold."""

import math
from typing import Any


def clean(value: Any) -> Any:
    """What both databases can hold and UTF-8 can carry: no NUL characters, no lone surrogates, and infinities and NaN as
    words (JSON has none)."""
    match value:
        case str():
            return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case dict():
            return {clean(str(name)): clean(each) for name, each in value.items()}
        case list() | tuple():
            return [clean(each) for each in value]
        case _:
            return value
