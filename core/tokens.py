"""Bearer tokens of serving, from a file with one token a line.

A line is `TOKEN` or `NAME:TOKEN`; `#` begins a comment. A token has no colon (RFC 6750, section 2.1).
"""

from pathlib import Path

from core.errors import SettingsError
from core.settings import Settings


def read_tokens(file: Path) -> tuple[list[bytes], str]:
    """Read the tokens of a file.

    Returns:
        The tokens, and the problem of the file (empty: none). A line with two colons is left out,
        as its token could begin at either.

    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError as exc:
        return [], str(exc.strerror)
    tokens = []
    problem = ""
    for number, line in enumerate(lines, start=1):
        content = line.strip()
        if content.startswith(b"#"):
            continue
        name, _, token = content.rpartition(b":")
        if b":" in name:
            problem = f"line {number}: expected TOKEN or NAME:TOKEN, found two colons"
        elif token.strip():
            tokens.append(token.strip())
    if not tokens:
        problem = problem or "no token in the file"
    return tokens, problem


def serving_headers(settings: Settings) -> dict[str, str]:
    """Return the headers of the stack's own requests to serving.

    Raises:
        SettingsError: The file of tokens cannot be read, has no token, or has a malformed line.

    """
    file = settings.serving_tokens_file
    if file is None:
        return {}
    tokens, problem = read_tokens(file)
    if problem:
        raise SettingsError(f"GYRE_SERVING_TOKENS_FILE: {file}: {problem}")
    return {"authorization": f"Bearer {tokens[0].decode('ascii', 'replace')}"}
