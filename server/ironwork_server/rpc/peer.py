"""Who is at the other end: the peer's certificate and address, and nothing that it says itself."""

import logging
import re
from collections.abc import Callable

from ironwork_server.access.identity import IdentityMapper
from ironwork_server.core.errors import Unauthenticated
from ironwork_server.core.values import Principal
from ironwork_server.rpc.context import Context

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"(?:ipv4:[0-9.]+|ipv6:[0-9A-Fa-f:%.\[\]]+):[0-9]{1,5}|unix:")


class Peers:
    """Identifies callers; refusals go to on_refused by reason, to be aggregated."""

    def __init__(self, mapper: IdentityMapper, *, on_refused: Callable[[str], None]) -> None:
        self._mapper = mapper
        self._on_refused = on_refused

    def principal(self, context: Context) -> Principal:
        """Errors: Unauthenticated, with the reason why the certificate names nobody."""
        try:
            # gRPC's own reading of SANs mixes DNS and URI names: only the certificate counts.
            certificates = list(context.auth_context().get("x509_pem_cert", ()))
            return self._mapper.identify(_only(certificates))
        except Unauthenticated as error:
            self._on_refused(error.reason)
            raise


def _only(certificates: list[bytes]) -> bytes:
    if len(certificates) != 1:
        raise Unauthenticated("A client certificate is needed.", reason="NO_CLIENT_CERTIFICATE")
    return certificates[0]


def address(context: Context) -> str:
    """The peer's address as gRPC gives it, `ipv4:127.0.0.1:50000`; empty where it is odd."""
    peer = context.peer() or ""
    return peer if len(peer) <= 64 and _ADDRESS.fullmatch(peer) else ""
