"""Bearer tokens: random, shown once, and stored only as hashes.

    python -m ner_cl_serve.tokens FILE NAME [--role admin|client]

adds a token to FILE and prints it. To revoke a token, delete its entry from the file by hand.
"""

import argparse
import hashlib
import hmac
import json
import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, final, get_args

from ner_cl.errors import ConfigError, NerClError
from ner_cl.files import replace_text

__all__ = ["Role", "Token", "Tokens", "add_token"]

Role = Literal["admin", "client"]
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Token:
    """A token's owner, role and SHA-256. (Tokens are 256 random bits, so no slower hash is needed.)"""

    name: str
    role: Role
    sha256: str


@final
class Tokens:
    """The tokens of a service.

    Args:
        entries: all tokens.
    """

    def __init__(self, entries: Sequence[Token] = ()) -> None:
        self.entries = tuple(entries)

    @classmethod
    def read(cls, path: Path) -> "Tokens":
        """Reads the tokens from a file.

        Raises:
            ConfigError: if it is missing, damaged or empty.
        """
        try:
            entries = [Token(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        except FileNotFoundError:
            raise ConfigError(
                f"--tokens {path}: no such file; make one with: python -m ner_cl_serve.tokens {path} NAME"
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"--tokens {path}: cannot be read as a list of tokens ({error})") from error
        for entry in entries:
            if entry.role not in get_args(Role) or not _SHA256.fullmatch(str(entry.sha256)):
                raise ConfigError(f"--tokens {path}: {entry.name!r} needs the role admin or client, and a SHA-256")
        if not entries:
            raise ConfigError(f"--tokens {path}: holds no token; add one with python -m ner_cl_serve.tokens")
        return cls(entries)

    def find(self, token: str) -> Token | None:
        """The entry for a token, or None. Compares every entry, each in constant time."""
        digest = _digest(token)
        found = [entry for entry in self.entries if hmac.compare_digest(entry.sha256, digest)]
        return found[0] if found else None


def add_token(path: Path, name: str, role: Role = "client") -> str:
    """Adds a new token to a file, which is created if needed, and returns it.

    Raises:
        ConfigError: if the name is empty or taken, or the file cannot be read or written.
    """
    if not name.strip():
        raise ConfigError("a token needs a name, by which it is found when it is to be taken back")
    entries = list(Tokens.read(path).entries) if path.exists() else []
    if any(entry.name == name for entry in entries):
        raise ConfigError(f"{path}: has a token called {name!r} already; choose another name, or delete it first")
    token = secrets.token_urlsafe(32)
    entries.append(Token(name, role, _digest(token)))
    try:
        replace_text(path, json.dumps([asdict(entry) for entry in entries], indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file") from error
    return token


def main(arguments: Sequence[str] | None = None) -> int:
    """Adds a token and prints it."""
    parser = argparse.ArgumentParser(prog="python -m ner_cl_serve.tokens", description="Add a token; it is shown once.")
    parser.add_argument("file", type=Path)
    parser.add_argument("name", help="whose it is")
    parser.add_argument("--role", choices=get_args(Role), default="client", help="an admin may publish models")
    given = parser.parse_args(arguments)
    try:
        sys.stdout.write(add_token(given.file, given.name, given.role) + "\n")
    except NerClError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
