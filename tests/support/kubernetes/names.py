"""Answers names of Services for pods, from the API server; CoreDNS is in no registry of packages.

python -m tests.support.kubernetes.names LOGIN
"""

import socket
import ssl
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.kubernetes.cluster import ADDRESS

DOMAIN = "svc.cluster.local"
ANSWERED, UNKNOWN = 0, 3
ADDRESS_RECORD = 1
SECONDS = 5
"""That an answer may be kept."""


def api_client(login: Path) -> httpx.Client:
    """Return a client of the API server that logs in as a file says."""
    content = yaml.safe_load(login.read_text())
    server = content["clusters"][0]["cluster"]
    token = content["users"][0]["user"]["token"]
    return httpx.Client(
        base_url=server["server"],
        headers={"Authorization": f"Bearer {token}"},
        verify=ssl.create_default_context(cafile=server["certificate-authority"]),
    )


def addresses(api: httpx.Client, name: str) -> list[str] | None:
    """Return the IPv4 addresses of a name, or nothing if the cluster does not have it.

    Args:
        api: Client of the API server.
        name: `SERVICE.NAMESPACE.svc.cluster.local`, or with a pod of a headless Service before it.

    """
    if not name.endswith(f".{DOMAIN}"):
        return None
    *pod, service, namespace = name.removesuffix(f".{DOMAIN}").split(".")
    found = _get(api, f"/api/v1/namespaces/{namespace}/services/{service}")
    if found is None:
        return None
    if found["spec"]["clusterIP"] != "None":
        return [found["spec"]["clusterIP"]]
    selector = f"labelSelector=kubernetes.io/service-name={service}"
    slices = (
        f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?{selector}"
    )
    listed = _get(api, slices) or {"items": []}
    endpoints = [each for part in listed["items"] for each in part["endpoints"] or ()]
    return [
        address
        for endpoint in endpoints
        if endpoint["conditions"].get("ready")
        and pod in ([], [endpoint.get("hostname")])
        for address in endpoint["addresses"]
    ]


def _get(api: httpx.Client, path: str) -> Any:
    response = api.get(path)
    return response.json() if response.is_success else None


def answer(query: bytes, find: Callable[[str], list[str] | None]) -> bytes:
    """Return the answer to a query of one name, as RFC 1035 has it (section 4).

    Args:
        query: The datagram.
        find: Returns the addresses of a name, as `addresses`.

    """
    labels = []
    position = 12
    while length := query[position]:
        labels.append(query[position + 1 : position + 1 + length].decode().lower())
        position += 1 + length
    question = query[12 : position + 5]
    (kind,) = struct.unpack_from(">H", query, position + 1)
    found = find(".".join(labels))
    records = found if found and kind == ADDRESS_RECORD else []
    status = UNKNOWN if found is None else ANSWERED
    # An answer (0x8000) with authority (0x0400) to what was asked recursively (0x0180).
    head = struct.pack(">HHHHH", 0x8580 | status, 1, len(records), 0, 0)
    # 0xC00C stands for the name of the question; class 1 is the Internet.
    packed = [
        struct.pack(">HHHIH", 0xC00C, ADDRESS_RECORD, 1, SECONDS, 4)
        + socket.inet_aton(record)
        for record in records
    ]
    return query[:2] + head + question + b"".join(packed)


def main(login: str) -> None:
    """Answer until the process is killed."""
    api = api_client(Path(login))
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((ADDRESS, 53))
    while True:
        query, asker = server.recvfrom(4096)
        try:
            answered = answer(query, lambda name: addresses(api, name))
        except (IndexError, ValueError, struct.error, httpx.TransportError) as error:
            print(f"{query!r}: {error!r}", file=sys.stderr, flush=True)
            continue
        server.sendto(answered, asker)


if __name__ == "__main__":
    main(sys.argv[1])
