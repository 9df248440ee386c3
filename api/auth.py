"""Who may ask: one static bearer token, or, on loopback, whoever is on this machine and is no web page from elsewhere."""

import hmac
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.settings import Settings, is_loopback
from data.errors import MantaError

bearer = HTTPBearer(auto_error=False, description="The token from MANTA_TOKEN; not needed where none is set (loopback only).")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


class Unauthorized(MantaError):
    """No bearer token, or a wrong one."""

    code = "unauthorized"
    status = 401


class ForeignOrigin(MantaError):
    """A service without a token was asked by a page of another site, or under a name that is not this machine's."""

    code = "foreign_origin"
    status = 403


def require_token(request: Request, credentials: Credentials) -> None:
    """Raises ``Unauthorized`` or ``ForeignOrigin``."""
    settings: Settings = request.app.state.settings
    if settings.token is None:
        _require_local(request)
    elif credentials is None:
        raise Unauthorized("this service asks for a bearer token (MANTA_TOKEN)")
    elif not _same(credentials.credentials, settings.token.get_secret_value()):
        raise Unauthorized("the bearer token is wrong")


def may_see_details(request: Request, credentials: Credentials) -> bool:
    """Whether an answer that everybody gets may say more to this one."""
    try:
        require_token(request, credentials)
    except (Unauthorized, ForeignOrigin):
        return False
    return True


def attempt_token(credentials: Credentials) -> str:
    """The attempt's own token of a report; the store knows whether it is right. Raises ``Unauthorized``."""
    if credentials is None:
        raise Unauthorized("a report carries its attempt's token as bearer token")
    return credentials.credentials


def _require_local(request: Request) -> None:
    # Any page that the user's browser shows can send requests to 127.0.0.1. Its Origin gives it away, and the Host does where
    # it has a name of its own resolve to loopback (DNS rebinding).
    addresses = [f"//{request.headers.get('host', '')}"]
    if (origin := request.headers.get("origin")) is not None:
        addresses.append(origin)
    for address in addresses:
        if not is_loopback(_host(address)):
            name = address.removeprefix("//") or "an unnamed host"
            raise ForeignOrigin(f"without MANTA_TOKEN this service answers its own machine only, not {name}")


def _host(address: str) -> str:
    """The host of a URL; empty where it has none or is no URL, such as ``//[``."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
