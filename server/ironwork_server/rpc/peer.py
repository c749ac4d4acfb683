"""Who is at the other end: the peer's certificate and address, and nothing that it says itself."""

import logging
import re
from collections.abc import Callable

from ironwork_server.access.identity import IdentityMapper
from ironwork_server.access.trust import ClientTrust
from ironwork_server.core.errors import Unauthenticated
from ironwork_server.core.values import Principal
from ironwork_server.rpc.context import Context

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"(?:ipv4:[0-9.]+|ipv6:[0-9A-Fa-f:%.\[\]]+):[0-9]{1,5}|unix:")


class Peers:
    """Identifies callers; refusals go to on_refused by reason, to be aggregated."""

    def __init__(
        self, mapper: IdentityMapper, trust: ClientTrust, *, on_refused: Callable[[str], None]
    ) -> None:
        self._mapper = mapper
        self._trust = trust
        self._on_refused = on_refused

    def principal(self, context: Context) -> Principal:
        """Errors: Unauthenticated, with the reason why the certificate names nobody."""
        try:
            # gRPC's own reading of SANs mixes DNS and URI names: only the certificate counts.
            principal = self._mapper.identify(_only(_certificates(context)))
            self._require_trusted(context)
        except Unauthenticated as error:
            self._on_refused(error.reason)
            raise
        return principal

    def require_trusted(self, context: Context) -> None:
        """For those RPCs that any peer of a client CA may call. Errors: Unauthenticated."""
        try:
            self._require_trusted(context)
        except Unauthenticated as error:
            self._on_refused(error.reason)
            raise

    def trusts(self, context: Context) -> bool:
        """Whether the peer's chain leads to a client CA that is in force now."""
        certificates = _certificates(context)
        # The peer's other certificates, as BoringSSL has them on a server: without the leaf.
        others = list(context.auth_context().get("x509_pem_cert_chain", ()))
        return len(certificates) == 1 and self._trust.trusts(certificates[0], others)

    def _require_trusted(self, context: Context) -> None:
        if not self.trusts(context):
            raise untrusted()


def untrusted() -> Unauthenticated:
    """The CA was taken out after the handshake."""
    return Unauthenticated(
        "The client certificate's CA is no longer trusted here; connect with another certificate.",
        reason="CERTIFICATE_UNTRUSTED",
    )


def _certificates(context: Context) -> list[bytes]:
    return list(context.auth_context().get("x509_pem_cert", ()))


def _only(certificates: list[bytes]) -> bytes:
    if len(certificates) != 1:
        raise Unauthenticated("A client certificate is needed.", reason="NO_CLIENT_CERTIFICATE")
    return certificates[0]


def address(context: Context) -> str:
    """The peer's address as gRPC gives it, `ipv4:127.0.0.1:50000`; empty where it is odd."""
    peer = context.peer() or ""
    return peer if len(peer) <= 64 and _ADDRESS.fullmatch(peer) else ""
