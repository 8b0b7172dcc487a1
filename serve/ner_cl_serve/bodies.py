"""Reads the body of a request: never more than is allowed, and validated before use."""

from typing import TypeVar

import anyio
from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ner_cl.registry import nearest
from ner_cl_serve.problems import Problem
from ner_cl_serve.settings import Limits

__all__ = ["read_body"]

Body = TypeVar("Body", bound=BaseModel)

_MESSAGES = {
    "missing": "is missing",
    "string_type": "must be a string",
    "list_type": "must be a list",
    "bool_type": "must be true or false",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_pattern_mismatch": "holds a NUL character; remove it",
    "model_type": "must be an object",
    "string_too_short": "must not be empty",
    "string_too_long": "is too long",
    "too_short": "must not be empty",
}


# The rest of a refused body is not read, so the connection cannot be used for another request.
_CLOSE = {"Connection": "close"}


async def read_body(request: Request, model: type[Body], limits: Limits) -> Body:
    """Reads and validates the body.

    Raises:
        Problem: if it is not JSON, is too large, arrives too slowly, or does not match `model`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Browsers let foreign web pages post other types without a CORS preflight, but not JSON.
        raise Problem(415, "not_json", "send the body as JSON, with the header content-type: application/json")
    raw = await _raw(request, limits)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise Problem(400, "invalid_json", f"the body is not valid JSON: {_json_fault(first['msg'])}") from None
        raise Problem(422, "invalid_request", _sentence(first, model)) from None


async def _raw(request: Request, limits: Limits) -> bytes:
    too_large = Problem(
        413, "body_too_large", f"the body is larger than {limits.body_bytes} bytes; send it in parts", _CLOSE
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limits.body_bytes:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_seconds:g} seconds; send it again"
        raise Problem(408, "body_too_slow", message, _CLOSE) from None
    return b"".join(parts)


def _json_fault(message: str) -> str:
    """The parser's message, made clearer if half of a surrogate pair is missing."""
    reason = message.removeprefix("Invalid JSON: ")
    if "hex escape" in reason:
        _, _, place = reason.partition(" at line ")
        return f"half of a surrogate pair stands alone at line {place}"
    return reason


def _sentence(first: ErrorDetails, model: type[BaseModel]) -> str:
    """Says where a body is wrong, and what is wrong there."""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] == "extra_forbidden":
        known = model.model_fields
        name = str(first["loc"][-1])[:64]
        return f"the key {name!r} is unknown{nearest(name, known)}; known: {', '.join(known)}"
    message = _MESSAGES.get(first["type"], first["msg"].removeprefix("Value error, ").removeprefix("Input "))
    return f"{where or 'the body'}{':' if first['type'] == 'value_error' else ''} {message}"
