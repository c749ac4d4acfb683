"""A gRPC peer as an OCSF network_endpoint, and back."""

import functools
import ipaddress
import re
from collections.abc import Mapping
from typing import Final

# What stands where there is no peer: the service itself acted.
_LOCAL: Final = "ironwork-server"
_IP_PEER: Final = re.compile(
    r"ipv4:(?P<v4>[0-9.]{7,15}):(?P<port4>[0-9]{1,5})"
    r"|ipv6:(?:\[|%5[Bb])(?P<v6>[0-9A-Fa-f:.]{2,45})(?:\]|%5[Dd]):(?P<port6>[0-9]{1,5})"
)


@functools.lru_cache(maxsize=1024)
def to_endpoint(peer: str) -> Mapping[str, str | int]:
    """`ip` and `port` for a TCP peer; `name` for any other; `svc_name` where there is none.

    The answer is shared between calls (a peer makes many): it is not to be changed.
    """
    if not peer:
        return {"svc_name": _LOCAL}
    match = _IP_PEER.fullmatch(peer)
    if match is None:
        return {"name": peer}
    port = int(match["port4"] or match["port6"])
    try:
        address = ipaddress.ip_address(match["v4"] or match["v6"])
    except ValueError:
        return {"name": peer}
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return {"ip": str(address), "port": port} if port <= 65535 else {"name": peer}


def to_peer(endpoint: Mapping[str, object]) -> str:
    """The peer in gRPC's notation, with the address in its canonical form. ValueError for an
    endpoint that to_endpoint does not make.
    """
    match endpoint:
        case {"svc_name": str(name)} if len(endpoint) == 1 and name == _LOCAL:
            return ""
        case {"name": str(name)} if len(endpoint) == 1:
            return name
        case {"ip": str(text), "port": int(port)} if len(endpoint) == 2:
            address = ipaddress.ip_address(text)
            bracketed = f"[{address}]" if address.version == 6 else str(address)
            return f"ipv{address.version}:{bracketed}:{port}"
        case _:
            raise ValueError("src_endpoint: not of the form that this log writes")
