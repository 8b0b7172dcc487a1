"""Who may ask what."""

from typing import Annotated, final

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ner_cl_serve.problems import Problem
from ner_cl_serve.settings import Access
from ner_cl_serve.tokens import Token, Tokens

__all__ = ["Guard", "admin_only", "anybody_allowed"]

_bearer = HTTPBearer(auto_error=False, description="A token made with `python -m ner_cl_serve.tokens`.")
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
_ASK = {"WWW-Authenticate": "Bearer"}


@final
class Guard:
    """Checks bearer tokens.

    Args:
        tokens: those that are valid.
        access: whether routes other than those of an admin need one too.
    """

    def __init__(self, tokens: Tokens, access: Access) -> None:
        self._tokens, self._access = tokens, access

    def check_client(self, given: HTTPAuthorizationCredentials | None) -> None:
        """Problem if a token is needed and none, or a wrong one, was given."""
        if self._access == "token":
            self._whose(given)

    def check_admin(self, given: HTTPAuthorizationCredentials | None) -> None:
        """Problem if the token is not that of an admin."""
        if not self._tokens.entries:
            message = "this service takes no orders; start it with --tokens FILE to publish models"
            raise Problem(403, "no_admin", message)
        if self._whose(given).role != "admin":
            raise Problem(403, "not_admin", "this token may not do that; use one with the role admin")

    def _whose(self, given: HTTPAuthorizationCredentials | None) -> Token:
        if given is None:
            raise Problem(401, "no_token", "send a token: Authorization: Bearer TOKEN", _ASK)
        found = self._tokens.find(given.credentials)
        if found is None:
            raise Problem(401, "wrong_token", "this token is not known here", _ASK)
        return found


async def anybody_allowed(request: Request, given: _Credentials) -> None:
    """For routes that are open, or ask for any token, as the service was told."""
    request.app.state.service.guard.check_client(given)


async def admin_only(request: Request, given: _Credentials) -> None:
    """For routes of an admin."""
    request.app.state.service.guard.check_admin(given)
