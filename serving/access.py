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
        self._digests: list[bytes] = []
        self._look_at, self._problem = 0.0, ""

    def allows(self, authorization: bytes) -> bool:
        """Whether the value of an `Authorization` header holds a token; none is b""."""
        if time.monotonic() >= self._look_at:
            self._look()
        scheme, _, token = authorization.partition(b" ")
        found = sha256(token.strip()).digest()
        # Each is compared: the time says nothing about which it is.
        matches = sum(hmac.compare_digest(digest, found) for digest in self._digests)
        return matches > 0 and scheme.lower() == b"bearer"

    def _look(self) -> None:
        """Read the file: a few lines, so that no clock of a file system is relied on."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        before = self._problem
        try:
            tokens = tokens_of(self.tokens_file.read_bytes())
            self._problem = "" if tokens else "no token in it"
        except OSError as exc:
            tokens = []
            self._problem = str(exc.strerror)
        self._digests = [sha256(token).digest() for token in tokens]
        if self._problem and self._problem != before:
            logger.error("%s: %s: every request is refused", self.tokens_file, self._problem)
        elif before and not self._problem:
            logger.warning("%s: %d tokens are valid", self.tokens_file, len(tokens))
