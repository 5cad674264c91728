"""Bearer tokens of serving: a file with one a line, `token` or `name:token`, `#` for comments."""

from core.errors import SettingsError
from core.settings import Settings


def tokens_of(text: bytes) -> list[bytes]:
    lines = (line.strip() for line in text.splitlines())
    tokens = (
        line.rpartition(b":")[2].strip() for line in lines if not line.startswith(b"#")
    )
    return [token for token in tokens if token]


def serving_headers(settings: Settings) -> dict[str, str]:
    """Headers with which the stack itself asks its serving.

    Raises:
        SettingsError: the file cannot be read or holds no token.

    """
    file = settings.serving_tokens_file
    if file is None:
        return {}
    try:
        tokens = tokens_of(file.read_bytes())
    except OSError as exc:
        raise SettingsError(
            f"GYRE_SERVING_TOKENS_FILE: {file}: {exc.strerror}"
        ) from exc
    if not tokens:
        raise SettingsError(f"GYRE_SERVING_TOKENS_FILE: {file}: no token in it")
    return {"authorization": f"Bearer {tokens[0].decode('ascii', 'replace')}"}
