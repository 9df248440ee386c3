"""Opaque page cursors: what a list was, and the key of the last row shown."""

import base64
import binascii
import json

from data.errors import MantaError


class InvalidCursor(MantaError):
    """The cursor was not given out by this list."""

    code = "invalid_cursor"
    status = 422


def encode(listing: str, key: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([listing, key]).encode()).decode().rstrip("=")


def decode(listing: str, cursor: str) -> int:
    """The key of the last row that was shown. Raises ``InvalidCursor``."""
    try:
        value = json.loads(base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, UnicodeError, ValueError, RecursionError):
        value = None
    match value:
        case [str(name), int(key)] if name == listing and not isinstance(key, bool) and 0 <= key < 2**63:
            return key
        case _:
            raise InvalidCursor("the cursor is not one that this list gave out; start again without it")
