"""Error responses as listed in the OpenAPI description."""

from typing import Any

from ner_cl_serve.schemas import ErrorResponse

__all__ = ["errors"]

_MEANINGS = {
    400: "The body is not valid JSON.",
    401: "A token is needed, and none or a wrong one was sent.",
    403: "The token may not do that, or nobody may.",
    404: "There is no such model folder below the model root.",
    408: "The body took too long to arrive.",
    409: "It cannot be done now, or the models differ too much.",
    413: "The body is too large.",
    415: "The body is not declared as application/json.",
    421: "The host has a name that this service does not answer to.",
    422: "The body is JSON, but not what is described here.",
    429: "Too much waits already; `Retry-After` says when to try again.",
    500: "Something failed here.",
    503: "Not ready, the answer took too long, or the service stopped before it had one.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI descriptions of the given error statuses."""
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse, "description": _MEANINGS[status]} for status in statuses
    }
    if 429 in found:
        found[429]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return found
