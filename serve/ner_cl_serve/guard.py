"""Who may call which route."""

from ipaddress import ip_address
from typing import Any, final
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ner_cl_serve.problems import Problem
from ner_cl_serve.settings import Access
from ner_cl_serve.tokens import Token, Tokens

__all__ = ["Guard", "admin_only", "anybody_allowed", "guard_of"]

_HINT = "A token made with `python -m ner_cl_serve.tokens`."
_ASK = {"WWW-Authenticate": "Bearer"}


@final
class Guard:
    """Checks bearer tokens.

    Args:
        tokens: the valid tokens.
        access: who may call routes that are not for admins only; see `Settings`.
    """

    def __init__(self, tokens: Tokens, access: Access) -> None:
        self._tokens, self._access = tokens, access

    def check_client(self, given: HTTPAuthorizationCredentials | None, host: str, facts: dict[str, Any]) -> None:
        """Raises Problem if a required token is missing or wrong, or if `host` must be local but is not.

        Args:
            given: the token that was sent, if any.
            host: whom the request is addressed to.
            facts: for the log, which gets to know the name of the token.
        """
        if self._access == "token":
            self._whose(given, facts)
        elif self._access == "local" and not _is_local(host):
            message = (
                f"this service answers for this machine, not for {host[:64]!r}; start it with --access open or token"
            )
            raise Problem(421, "wrong_host", message)

    def check_admin(self, given: HTTPAuthorizationCredentials | None, facts: dict[str, Any]) -> None:
        """Raises Problem unless the token belongs to an admin; see `check_client`."""
        if not self._tokens.entries:
            message = "this service takes no orders; start it with --tokens FILE to publish models"
            raise Problem(403, "no_admin", message)
        if self._whose(given, facts).role != "admin":
            raise Problem(403, "not_admin", "this token may not do that; use one with the role admin")

    def _whose(self, given: HTTPAuthorizationCredentials | None, facts: dict[str, Any]) -> Token:
        if given is None:
            raise Problem(401, "no_token", "send a token: Authorization: Bearer TOKEN", _ASK)
        found = self._tokens.find(given.credentials)
        if found is None:
            raise Problem(401, "wrong_token", "this token is not known here", _ASK)
        facts["token"] = found.name
        return found


def _is_local(host: str) -> bool:
    """Whether `Host` is an IP address, has no domain, or ends in .localhost: no outsider can point such names here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return "." not in name or name.endswith(".localhost") or bool(ip_address(name))
    except ValueError:
        return False


# One dependency per route both checks tokens and describes them in /openapi.json: each costs time per request.
@final
class _Client(HTTPBearer):
    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        host = request.headers.get("host", "")
        guard_of(request).check_client(await super().__call__(request), host, request.state.facts)


@final
class _Admin(HTTPBearer):
    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        guard_of(request).check_admin(await super().__call__(request), request.state.facts)


def guard_of(request: Request) -> Guard:
    """The guard of the service that received a request."""
    guard: Guard = request.app.state.service.guard
    return guard


anybody_allowed = _Client(auto_error=False, scheme_name="token", description=_HINT)
"""For routes that are open or need any valid token, depending on `access`."""

admin_only = _Admin(auto_error=False, scheme_name="token", description=_HINT)
"""For routes that need an admin's token."""
