"""Whether a peer's certificate still leads to a client CA that is in force.

TLS asks that once, at the handshake, and connections live for an hour: what a reload takes out of
the client CAs is found here, at each call and while calls are under way.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256

from cryptography import x509
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from ironwork_server.access._cache import BoundedCache

CACHE_ENTRIES = 1024
# More than a handshake's chain has; what is beyond it is not looked at.
MAX_INTERMEDIATES = 8
MAX_PEM_BYTES = 64 * 1024


class ClientTrust:
    """client_ca: the PEM of the client CAs in force, asked at each call; trust anchors all.

    The path is built anew (RFC 5280, section 6.1: signatures, names, times, CAs that are CAs) from
    the certificates that the peer sent. What else a certificate must be is for the handshake and
    for access/identity.py. Verdicts are kept by chain and CAs; expiry is looked at elsewhere.
    """

    def __init__(
        self,
        client_ca: Callable[[], bytes],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client_ca = client_ca
        self._now = now
        self._known: BoundedCache[bytes, bool] = BoundedCache(CACHE_ENTRIES)

    def trusts(self, leaf: bytes, intermediates: Sequence[bytes]) -> bool:
        """Both PEM, as gRPC gives them: an element of intermediates may hold several."""
        client_ca = self._client_ca()
        key = sha256()
        for part in (client_ca, leaf, *intermediates):
            key.update(sha256(part).digest())
        found = self._known.get(key.digest())
        if found is None:
            found = self._verify(client_ca, leaf, b"".join(intermediates))
            self._known.put(key.digest(), found)
        return found

    def _verify(self, client_ca: bytes, leaf: bytes, others: bytes) -> bool:
        if len(leaf) + len(others) > MAX_PEM_BYTES:
            return False
        try:
            roots = Store(x509.load_pem_x509_certificates(client_ca))
            (certificate,) = x509.load_pem_x509_certificates(leaf)
            chain = x509.load_pem_x509_certificates(others)[:MAX_INTERMEDIATES] if others else []
            verifier = (
                PolicyBuilder()
                .store(roots)
                .time(self._now())
                .extension_policies(ca_policy=_CA, ee_policy=ExtensionPolicy.permit_all())
                .build_client_verifier()
            )
            verifier.verify(certificate, chain)
        # ValueError covers what cryptography makes of broken DER, also where it parses lazily.
        except (VerificationError, ValueError, x509.InvalidVersion, x509.DuplicateExtension):
            return False
        return True


# With basicConstraints required, the path builder refuses what is not asserted to be a CA.
_CA = ExtensionPolicy.permit_all().require_present(
    x509.BasicConstraints, Criticality.AGNOSTIC, None
)
