"""Addresses of rows: the kind of place that one names, and what of it may be shown."""

import re
from urllib.parse import unquote

BUCKETS = ("s3", "s3a", "gs", "az")
"""Schemes of files in buckets: S3, Google Cloud Storage, Azure."""
ICEBERG = "iceberg"
"""Scheme of tables of Apache Iceberg: `iceberg://CATALOG#namespace.table`."""
SCHEME = re.compile(r"[A-Za-z][\w+.-]+:/*")
"""The beginning of an address, also of one with a missing or a doubled slash."""
NAMED_SECRET = re.compile(
    r"""((?:pass(?:word|wd)?|pwd|secret|token|sig(?:nature)?|(?:account|access)_?key)\s*=\s*)
    ([^\s&;]+?)(?=\#[^\#]*$|[\s&;]|$)""",
    re.IGNORECASE | re.VERBOSE,
)
"""A secret by its name, wherever it stands: `host=… password=…`, `?sig=…`."""


def is_url(address: str) -> bool:
    """Whether rows are named by an address, and not by a path."""
    return re.match(r"[A-Za-z][\w+.-]*://", address) is not None


def is_bucket(address: str) -> bool:
    """Whether rows are files in a bucket."""
    return is_url(address) and address.partition("://")[0] in BUCKETS


def shown_address(address: str) -> str:
    """Return an address without user, password and options, also if it is not well formed."""
    address = NAMED_SECRET.sub(r"\1…", address)
    login, options = _login_and_options(address)
    shown = address
    if login:
        scheme = SCHEME.match(address)
        # The scheme of a bucket says which of several clouds has it.
        kind = scheme[0] if scheme and is_bucket(address) else ""
        shown = kind + address.rpartition("@")[2]
        if _has_options(login):  # a password, or an option with an `@`: nobody knows
            shown = f"{kind}…"
    if options:
        shown = shown.replace(f"?{options}", "")
    return shown


def without_secrets(text: str, address: str) -> str:
    """Return a text in which no user with a password, password or option of an address is left.

    A client may quote a piece of a password alone, where a sign in it is not percent-encoded.
    """
    login, options = _login_and_options(address)
    _, colon, password = login.partition(":")
    values = [password if colon else login]
    scheme = SCHEME.match(address)
    if scheme and "/" not in scheme[0]:  # it may be a user
        values.append(login)
    values += [option.partition("=")[2] for option in options.split("&")]
    values += [match[2] for match in NAMED_SECRET.finditer(address)]
    if _has_options(login):
        values.append(address.rpartition("@")[2])
    pieces = {login, options}
    for value in values:
        for form in (value, unquote(value)):
            pieces |= {form, *re.split(r"[:@/?#&=]", form)}
    for piece in sorted(pieces, key=len, reverse=True):
        if len(piece) > 1:
            text = text.replace(piece, "…")
    return text


def _login_and_options(address: str) -> tuple[str, str]:
    """Return the user with the password, and the options of an address; "" where it has none.

    A person may write an address wrongly, and nobody knows then where its password ends. So all in
    front of the last `@` counts as user and password if a `:` is in it, and `?` begins options if a
    `=` follows. The name of a file or of an object has neither, but may have `@`, and patterns.
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
    return login, options if "=" in options else ""


def _has_options(text: str) -> bool:
    return "=" in text.partition("?")[2]
