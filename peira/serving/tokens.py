"""Who may ask what: tokens with a role."""

from __future__ import annotations

import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

ROLES = ("caller", "operator")
FILE = "token"
VARIABLE = "PEIRA_TOKEN"
SHORTEST = 16


@dataclass(frozen=True)
class Tokens:
    """Pairs of role and token; ValueError for a role that there is not, and a token that is too short."""

    pairs: tuple[tuple[str, bytes], ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("tokens: expected at least one, got none")
        for role, token in self.pairs:
            if role not in ROLES:
                raise ValueError(f"tokens: expected a role of {' or '.join(ROLES)}, got {role!r}")
            if len(token) < SHORTEST or not token.isascii():
                raise ValueError(
                    f"tokens: expected at least {SHORTEST} ASCII characters, got {len(token)}; "
                    "make one with: openssl rand -hex 24"
                )

    def role(self, authorization: bytes) -> str | None:
        """The role of an Authorization header's value, `Bearer TOKEN`; None for any other."""
        scheme, _, given = authorization.partition(b" ")
        found = None
        # All are compared, and each in constant time: how long it takes says nothing of a token.
        for role, token in self.pairs:
            if hmac.compare_digest(given, token):
                found = role
        return found if scheme.lower() == b"bearer" else None


def read_tokens(folder: Path, file: Path | None) -> tuple[Tokens, str]:
    """The tokens of a service, and where they are from: a file, PEIRA_TOKEN, or DIR/token, which is made if need be.

    ValueError, which shows no token, where the file cannot be read.
    """
    if file is None and (given := os.environ.get(VARIABLE)):
        return Tokens((("operator", given.encode()),)), VARIABLE
    path = folder / FILE if file is None else file
    if file is None and not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(secrets.token_urlsafe(32) + "\n")
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise ValueError(f"token_file: {path} cannot be read ({type(fault).__name__})") from fault
    pairs = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if len(words) > 2:
            raise ValueError(
                f"token_file: line {number} of {path}: expected ROLE TOKEN, got {len(words)} words"
            )
        if words:
            pairs.append((words[0] if len(words) == 2 else "operator", words[-1].encode()))
    return Tokens(tuple(pairs)), str(path)
