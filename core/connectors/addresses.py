"""Addresses of rows: the kind of place that one names, and what of it may be shown."""

import re
from unicodedata import normalize
from urllib.parse import unquote

BUCKETS = ("s3", "s3a", "gs", "az")
"""Schemes of files in buckets: S3, Google Cloud Storage, Azure."""
ICEBERG = "iceberg"
"""Scheme of tables of Apache Iceberg: `iceberg://CATALOG#namespace.table`."""
SCHEME = re.compile(r"[A-Za-z][\w+.-]+:/*")
"""The beginning of an address, also of one with a missing or a doubled slash."""
SECRET_NAME = re.compile(
    r"""(?<!//)(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|sas|sig(?:nature)?|credentials?
    |auth(?:orization)?|(?:api|access|account|private|secret|signing|encryption)[ _-]?key)\d*
    ["']?\s*[:=]+>?(?!//)\s*(?=\S)""",
    re.IGNORECASE | re.VERBOSE,
)
"""The name of a secret in front of it, wherever it stands: `host=… password='…'`, `"api_key": "…"`."""
HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d{0,5})?")
"""A host, with or without a port."""
ENCODED_AT = re.compile("%(?:25)*40")
"""An @ that a person has encoded together with the password in front of it."""
SIGNS = {
    code: normalize("NFKC", chr(code))
    for code in range(0xFE10, 0xFF5F)
    if normalize("NFKC", chr(code)) in set("@:/?#=&;%")
}
"""Wide and small forms of the signs of an address, which a person may have typed."""
MOTHERDUCK = "duckdb://md:"
"""Beginning of an address whose colon is in front of a database's name."""


def is_url(address: str) -> bool:
    """Whether rows are named by an address, and not by a path."""
    return re.match(r"[A-Za-z][\w+.-]*://", address) is not None


def is_bucket(address: str) -> bool:
    """Whether rows are files in a bucket."""
    return is_url(address) and address.partition("://")[0] in BUCKETS


def shown_address(address: str) -> str:
    """Return an address without user, password and options, also if it is not well formed."""
    address = address.translate(SIGNS)
    scheme = SCHEME.match(address)
    if _is_unclear(address):
        # Without a slash behind it, a scheme may be a user.
        return f"{scheme[0]}…" if scheme and "/" in scheme[0] else "…"
    login, options = _login_and_options(address)
    shown = address
    if login:
        # The scheme of a bucket says which of several clouds has it.
        kind = scheme[0] if scheme and is_bucket(address) else ""
        shown = kind + address.rpartition("@")[2]
        if _has_options(login):  # a password, or an option with an `@`: nobody knows
            shown = f"{kind}…"
    if options:
        shown = shown.replace(f"?{options}", "")
    has_table = is_url(address) and not is_bucket(address)
    parts = shown.rsplit("#", 1) if has_table else [shown]
    return "#".join(_without_named_secret(part) for part in parts)


def without_secrets(text: str, address: str) -> str:
    """Return a text in which no user with a password, password or option of an address is left.

    A client may quote a piece of a password alone, where a sign in it is not percent-encoded.
    """
    text = text.translate(SIGNS)
    address = address.translate(SIGNS)
    login, options = _login_and_options(address)
    _, colon, password = login.partition(":")
    values = [password if colon else login]
    scheme = SCHEME.match(address)
    may_be_user = scheme is not None and "/" not in scheme[0]
    if may_be_user:
        values.append(login)
    for option in options.split("&"):
        value = option.partition("=")[2]
        values.append(value or option)
    if _has_options(login):
        values.append(address.rpartition("@")[2])
    if _is_unclear(address):
        begin = scheme.end() if scheme and not may_be_user else 0
        values.append(address[begin:])
    name = SECRET_NAME.search(address.replace(f"?{options}", ""))
    if name:
        values.append(name.string[name.end() :])
    pieces = {login, options}
    for value in values:
        for form in (value, unquote(value), unquote(unquote(value))):
            pieces |= {form, *re.split(r"""[:@/?#&=;,%\s'"{}\\]""", form)}
    for piece in sorted(pieces, key=len, reverse=True):
        if len(piece) > 1:
            text = text.replace(piece, "…")
    return text


def _without_named_secret(text: str) -> str:
    """Return a text up to the first secret that has a name: where its value ends, nobody knows."""
    name = SECRET_NAME.search(text)
    return f"{text[: name.end()]}…" if name else text


def _is_unclear(address: str) -> bool:
    """Whether a password may be anywhere in an address.

    The `@` behind a password may be encoded: in the place of a host, or behind a colon. It may be
    missing: then a colon without a port is in the place of a host. And a secret with a name may have
    an `@` of its own.
    """
    name = SECRET_NAME.search(address)
    if "@" in address:
        return name is not None and "@" in address[name.end() :]
    scheme = SCHEME.match(address)
    rest = address[scheme.end() :] if scheme else address
    first_host, *more_hosts = rest.split("//")
    hosts = [first_host] if scheme else []
    if is_bucket(address):
        rest = rest.partition("/")[0]
    else:
        hosts += more_hosts
    if scheme and "/" not in scheme[0]:  # it may be a user
        rest = address
    encoded_at = ENCODED_AT.search(rest)
    if encoded_at:
        before = rest[: encoded_at.start()]
        is_in_host = scheme is not None and "/" not in before
        if is_in_host or ":" in unquote(unquote(before)):
            return True
    if address.startswith(MOTHERDUCK):
        return False
    for host in hosts:
        for replica in re.split("[/?#]", host)[0].split(","):
            if not HOST.fullmatch(replica):
                return True
    return False


def _login_and_options(address: str) -> tuple[str, str]:
    """Return the user with the password, and the options of an address; "" where it has none.

    A person may write an address wrongly, and nobody knows then where its password ends. So all in
    front of the last `@` counts as user and password if a `:` is in it. `?` begins the options of a
    server, and others if a `=` follows. The name of a file or of an object has neither, but may have
    `@`, and patterns.
    """
    scheme = SCHEME.match(address)
    rest = address[scheme.end() :] if scheme else address
    before, sign, _ = rest.rpartition("@")
    first_part = before.partition("/")[0]
    # Without a slash behind it, a scheme may be a user, whose password may have one.
    is_host = scheme is not None and ("/" not in before or "/" not in scheme[0])
    has_colon = ":" in (first_part if is_bucket(address) else before)
    login = before if sign and (is_host or has_colon or _has_options(before)) else ""
    options = rest[len(login) :].partition("?")[2]
    if "#" in options and not is_bucket(address):  # the last one begins a table's name
        options = options.rpartition("#")[0]
    is_server = is_url(address) and not is_bucket(address)
    return login, options if "=" in options or is_server else ""


def _has_options(text: str) -> bool:
    return "=" in text.partition("?")[2]
