"""Who is calling: from the peer's leaf certificate to a Principal.

The certificate is parsed here and not taken from gRPC's properties: those mix DNS and URI names
in one list, so that a DNS name `spiffe://…` looks like an identity. TLS has checked the chain and
the proof of possession already; what is checked here is the X.509-SVID profile (the X509-SVID
specification, sections 2 to 5) and our mapping.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from ironwork_server.access._cache import BoundedCache
from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.rules import IdentityRule, compile_rules
from ironwork_server.access.spiffe import MalformedSpiffeId, SpiffeId, check_trust_domain
from ironwork_server.core.errors import Unauthenticated
from ironwork_server.core.values import Principal

__all__ = ["IdentityMapper", "IdentityRule"]

MAX_CERTIFICATE_BYTES = 64 * 1024
CACHE_ENTRIES = 1024

T = TypeVar("T", bound=x509.ExtensionType)


class IdentityMapper:
    """Maps certificates of one trust domain to principals, by configured rules.

    Raises AccessConfigurationError where the trust domain or a rule is invalid or two rules are
    ambiguous. now: the clock, giving UTC.
    """

    def __init__(
        self,
        trust_domain: str,
        rules: Sequence[IdentityRule],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        try:
            check_trust_domain(trust_domain)
        except MalformedSpiffeId as error:
            raise AccessConfigurationError(f"trust domain {trust_domain!r}", str(error)) from None
        self._trust_domain = trust_domain
        self._rules = compile_rules(rules)
        self._now = now
        # By SHA-256 of the PEM: (not before, principal). Only accepted certificates are kept.
        self._known: BoundedCache[bytes, tuple[datetime, Principal]] = BoundedCache(CACHE_ENTRIES)

    def identify(self, certificate_pem: bytes) -> Principal:
        """The principal of one leaf certificate (PEM). Raises Unauthenticated, with a reason.

        Validity in time is checked at every call, also for a certificate that was seen before.
        """
        digest = sha256(certificate_pem).digest()
        found = self._known.get(digest)
        if found is None:
            certificate = _parse(certificate_pem)
            principal = self._principal(certificate)
            found = (certificate.not_valid_before_utc, principal)
            self._known.put(digest, found)
        not_before, principal = found
        self._check_time(not_before, principal.expires_at)
        return principal

    def _principal(self, certificate: x509.Certificate) -> Principal:
        try:
            extensions = certificate.extensions
            _check_profile(extensions)
            spiffe_id = _spiffe_id(extensions)
        # cryptography parses extensions lazily; ValueError covers what it makes of broken DER,
        # of a name that is not ASCII, of an unknown version and of an extension given twice.
        except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
            raise _refused(
                "CERTIFICATE_MALFORMED", "The certificate's extensions cannot be parsed."
            ) from None
        if spiffe_id.trust_domain != self._trust_domain:
            raise _refused(
                "TRUST_DOMAIN_FOREIGN", "The certificate's identity is of another trust domain."
            )
        role, workspace = self._map(spiffe_id)
        return Principal(
            spiffe_id=str(spiffe_id),
            role=role,
            workspace=workspace,
            expires_at=certificate.not_valid_after_utc,
        )

    def _map(self, spiffe_id: SpiffeId) -> tuple[str, str | None]:
        segments = spiffe_id.segments
        for rule in self._rules:
            if rule.fits(segments):
                return rule.role, rule.workspace(segments)
        raise _refused("IDENTITY_UNMAPPED", "No identity rule fits the certificate's identity.")

    def _check_time(self, not_before: datetime, not_after: datetime) -> None:
        now = self._now()
        if now < not_before:
            raise _refused("CERTIFICATE_NOT_YET_VALID", "The certificate is not valid yet.")
        if now > not_after:
            raise _refused("CERTIFICATE_EXPIRED", "The certificate has expired; renew it.")


def _parse(pem: bytes) -> x509.Certificate:
    if not pem:
        raise _refused("CERTIFICATE_MISSING", "A client certificate is required.")
    if len(pem) > MAX_CERTIFICATE_BYTES:
        raise _refused("CERTIFICATE_TOO_LARGE", "The certificate is too large.")
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion):
        certificates = []
    if len(certificates) != 1:
        raise _refused("CERTIFICATE_MALFORMED", "What was given is not one certificate in PEM.")
    return certificates[0]


def _check_profile(extensions: x509.Extensions) -> None:
    """X509-SVID sections 4.1 to 4.4: a leaf, which signs handshakes and no certificates."""
    constraints = _find(extensions, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise _refused("CERTIFICATE_IS_CA", "A CA's certificate is no identity; present a leaf.")
    usage = _find(extensions, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise _refused(
            "CERTIFICATE_KEY_USAGE", "The certificate's key usage must have digitalSignature."
        )
    if usage.key_cert_sign or usage.crl_sign:
        raise _refused(
            "CERTIFICATE_KEY_USAGE",
            "The certificate's key usage must not sign certificates or CRLs.",
        )
    extended = _find(extensions, x509.ExtendedKeyUsage)
    if extended is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in extended:
        raise _refused(
            "CERTIFICATE_EXTENDED_KEY_USAGE",
            "The certificate's extended key usage must have clientAuth.",
        )


def _spiffe_id(extensions: x509.Extensions) -> SpiffeId:
    """The one URI SAN. The subject's common name is never read."""
    names = _find(extensions, x509.SubjectAlternativeName)
    if names is None:
        raise _refused("SPIFFE_ID_MISSING", "The certificate has no subject alternative name.")
    for name in names:
        # The specification allows DNS names and others beside the URI. One that is written like
        # a SPIFFE ID has no honest use, whoever might read it later.
        if not isinstance(name, x509.UniformResourceIdentifier) and _looks_like_spiffe(name):
            raise _refused(
                "SPIFFE_ID_LOOKALIKE", "A name that is no URI is written like a SPIFFE ID."
            )
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if not uris:
        raise _refused("SPIFFE_ID_MISSING", "The certificate has no URI name.")
    if len(uris) > 1:
        raise _refused("SPIFFE_ID_AMBIGUOUS", "The certificate has more than one URI name.")
    try:
        return SpiffeId.parse(uris[0])
    except MalformedSpiffeId as error:
        raise _refused(
            "SPIFFE_ID_MALFORMED", f"The certificate's URI is no SPIFFE ID: {error}."
        ) from None


def _looks_like_spiffe(name: x509.GeneralName) -> bool:
    return isinstance(name.value, str) and "spiffe:" in name.value.lower()


def _find(extensions: x509.Extensions, kind: type[T]) -> T | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _refused(reason: str, message: str) -> Unauthenticated:
    return Unauthenticated(message, reason=reason)
