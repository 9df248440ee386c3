"""The shape of every error on the wire (RFC 9457)."""

from pydantic import BaseModel

MEDIA_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """One field at fault: ``pointer`` is a JSON pointer into the request body, or ``parameter`` names a query or header."""

    pointer: str | None = None
    parameter: str | None = None
    detail: str
    suggestion: str | None = None
    """The name that was probably meant."""


class Problem(BaseModel):
    """RFC 9457, with a stable ``code`` for programs."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldProblem] = []
