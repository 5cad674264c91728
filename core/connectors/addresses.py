"""Addresses of rows: the kind of place that one names, and what of it may be shown."""

import re
from urllib.parse import unquote

BUCKETS = ("s3", "s3a", "gs", "az")
"""Schemes of files in buckets: S3, Google Cloud Storage, Azure."""
ICEBERG = "iceberg"
"""Scheme of tables of Apache Iceberg: `iceberg://CATALOG#namespace.table`."""
SECRETS = r"(?<=://).+(?=@)|(?<=\?)[^#]+"
"""Parts of an address: user and password, and options."""


def is_url(address: str) -> bool:
    """Whether rows are named by an address, and not by a path."""
    return re.match(r"[A-Za-z][\w+.-]*://", address) is not None


def is_bucket(address: str) -> bool:
    """Whether rows are files in a bucket."""
    return is_url(address) and address.partition("://")[0] in BUCKETS


def shown_address(address: str) -> str:
    """Return an address without user, password and options."""
    if not is_url(address) or is_bucket(address):  # a bucket's has none, but patterns
        return address
    return re.sub(r"\?[^#]*", "", address.rpartition("@")[2])


def without_secrets(text: str, address: str) -> str:
    """Return a text in which no user with a password, password or option of an address is left.

    A client may quote a piece of a password alone, where a sign in it is not percent-encoded.
    """
    if not is_url(address) or is_bucket(address):
        return text
    for secret in re.findall(SECRETS, address):
        password = secret.partition(":")[2] or secret.partition("=")[2]
        pieces = [secret, password, *re.split(r"[:@/?#&=]", password)]
        decoded_pieces = [unquote(piece) for piece in pieces]
        for piece in sorted({*pieces, *decoded_pieces}, key=len, reverse=True):
            if len(piece) > 1:
                text = text.replace(piece, "…")
    return text
