"""Error responses, which all have the same shape: `{"error": {"code": ..., "message": ...}}`."""

from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException

__all__ = ["Problem", "install_problem_handlers", "problem_response"]


class Problem(Exception):
    """Raised to refuse a request.

    Args:
        status: HTTP status of the response.
        code: one or two words for programs, stable between versions.
        message: one sentence for people: what is wrong, where, and what to do.
        headers: additional headers of the response.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


def problem_response(problem: Problem) -> Response:
    """The response that reports a problem."""
    body = to_json({"error": {"code": problem.code, "message": problem.message}})
    headers = dict(problem.headers) if problem.headers else None
    return Response(body, problem.status, headers, media_type="application/json")


def install_problem_handlers(app: FastAPI) -> None:
    """Gives every error the same shape, including those raised by the framework."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return problem_response(error)

    async def not_routed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem_response(_routing_problem(request, error))

    app.add_exception_handler(Problem, refused)
    app.add_exception_handler(HTTPException, not_routed)


def _methods_at(request: Request) -> str:
    """The methods of all routes at a path; the framework lists only those of the first one."""
    there: dict[str, object] = request.app.openapi()["paths"].get(request.url.path, {})
    return ", ".join(sorted(method.upper() for method in there))


def _routing_problem(request: Request, error: HTTPException) -> Problem:
    if error.status_code == 404:
        return Problem(404, "not_found", "there is nothing at this path; see /openapi.json for those that exist")
    if error.status_code == 405:
        allowed = _methods_at(request) or (error.headers or {}).get("Allow", "GET")
        message = f"the method {request.method[:16]} is not allowed here; use {allowed}"
        return Problem(405, "method_not_allowed", message, {"Allow": allowed})
    return Problem(error.status_code, "refused", str(error.detail), error.headers)
