"""Bearer tokens, where a file of them is set: who carries none of them is refused."""

import hmac
import logging
import time
from hashlib import sha256
from pathlib import Path

from stack.tokens import tokens_of

OPEN = frozenset(
    {
        "/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready",
        "/ping", "/metrics",
    }
)  # fmt: skip
"""Probes, which have no secrets, and counts, which Prometheus and the monitor read."""
LOOK_SECONDS = 1.0
logger = logging.getLogger(__name__)


class Access:
    """Tokens of a file (see stack/tokens.py).

    What is replaced or removed there holds within a second. While the file is missing, cannot be
    read or holds no token, everything is refused. Nothing here writes a token anywhere.
    """

    def __init__(self, tokens_file: Path) -> None:
        self.tokens_file = tokens_file
        self._text: bytes | None = None
        self._digests: tuple[bytes, ...] = ()
        self._look_at, self._problem = 0.0, ""

    def allows(self, authorization: bytes) -> bool:
        """Whether the value of an `Authorization` header holds a token; none is b""."""
        if time.monotonic() >= self._look_at:
            self._look()
        scheme, _, token = authorization.partition(b" ")
        found, allowed = sha256(token.strip()).digest(), False
        for digest in self._digests:  # all of them: the time says nothing about which
            allowed |= hmac.compare_digest(digest, found)
        return allowed and scheme.lower() == b"bearer"

    def _look(self) -> None:
        """Read the file: a few lines, so that no clock of a file system is relied on."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        text, problem = b"", ""
        try:
            text = self.tokens_file.read_bytes()
        except OSError as exc:
            problem = str(exc.strerror)
        if text != self._text:
            self._text = text
            self._digests = tuple(sha256(token).digest() for token in tokens_of(text))
        self._say("" if self._digests else problem or "no token in it")

    def _say(self, problem: str) -> None:
        if problem and problem != self._problem:
            logger.error("%s: %s: every request is refused", self.tokens_file, problem)
        elif self._problem and not problem:
            logger.warning("%s: %d tokens are valid", self.tokens_file, len(self._digests))
        self._problem = problem
