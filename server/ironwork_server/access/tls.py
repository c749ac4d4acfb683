"""The listener's credentials: checked when they are loaded, changed at the next handshake."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.reload import Reloading

MAX_PEM_BYTES = 1024 * 1024
MIN_RSA_BITS = 2048

_GROUP_OR_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The server's certificate chain (leaf first), its private key, and the client CAs; all PEM.

    expires_at: the leaf's notAfter, UTC. Made by load(), which checks them.
    """

    certificate_chain: bytes
    private_key: bytes = field(repr=False)
    client_ca: bytes
    expires_at: datetime

    @classmethod
    def load(
        cls, certificate: Path, private_key: Path, client_ca: Path, *, now: datetime | None = None
    ) -> "ServerTls":
        """Read and check the three files. Blocking. Raises AccessConfigurationError.

        Checked: that they parse, that the key is the leaf's, of a kind that TLS here can use, and
        readable by its owner alone; that the leaf and every client CA are valid at `now` (default:
        the present), that the CAs are CAs, and that their keys are of a kind that can vouch here.
        No error holds any of the files' content.
        """
        now = now or datetime.now(UTC)
        chain_pem = _read(certificate, "server certificate")
        chain = _certificates(chain_pem, certificate, "server certificate")
        key_pem = _read(private_key, "private key", private=True)
        _check_pair(key_pem, private_key, chain[0], certificate)
        _check_times(chain[:1], now, f"server certificate {certificate}")
        ca_pem = _read(client_ca, "client CA")
        authorities = _certificates(ca_pem, client_ca, "client CA")
        _check_authorities(authorities, client_ca)
        _check_times(authorities, now, f"client CA {client_ca}")
        return cls(
            certificate_chain=chain_pem,
            private_key=key_pem,
            client_ca=ca_pem,
            expires_at=chain[0].not_valid_after_utc,
        )

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The same in gRPC's form."""
        return grpc.ssl_server_certificate_configuration(
            [(self.private_key, self.certificate_chain)], self.client_ca
        )


def server_credentials(tls: Reloading[ServerTls]) -> grpc.ServerCredentials:
    """Credentials for one port that follow the reloads and demand a client certificate.

    Make one for each port: the object remembers what its port was told last. TLS 1.2 at least, by
    gRPC's default. Existing connections keep what they were made with.
    """
    source = _Source(tls)
    return grpc.dynamic_ssl_server_credentials(
        source.initial,
        source,  # type: ignore[arg-type]  # the stub lacks None, which the API documents
        require_client_authentication=True,
    )


class _Source:
    """gRPC calls it on its own threads before each handshake of its port.

    Its work is comparing two numbers, but for the handshake after a reload. A race of two
    handshakes hands the same configuration over twice, which is harmless.
    """

    def __init__(self, tls: Reloading[ServerTls]) -> None:
        self._tls = tls
        self._given = tls.value
        self.initial = self._given.configuration()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """The newest configuration; None where the port has it already."""
        newest = self._tls.value
        if newest is self._given:
            return None
        self._given = newest
        return newest.configuration()


def _read(path: Path, what: str, *, private: bool = False) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_PEM_BYTES + 1)
            mode = os.fstat(stream.fileno()).st_mode
    except OSError as error:
        raise AccessConfigurationError(
            f"{what} {path}", f"cannot be read ({_cause(error)})"
        ) from None
    if len(data) > MAX_PEM_BYTES:
        raise AccessConfigurationError(f"{what} {path}", f"is longer than {MAX_PEM_BYTES} bytes")
    if private and mode & _GROUP_OR_OTHERS:
        raise AccessConfigurationError(f"{what} {path}", "is open to group or others; chmod 600 it")
    return data


def _certificates(pem: bytes, path: Path, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion):
        raise AccessConfigurationError(
            f"{what} {path}", "is not a list of certificates in PEM"
        ) from None


def _check_pair(pem: bytes, path: Path, leaf: x509.Certificate, certificate: Path) -> None:
    source = f"private key {path}"
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise AccessConfigurationError(source, "is encrypted; give it without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise AccessConfigurationError(source, "is not a private key in PEM") from None
    if not _usable(key):
        raise AccessConfigurationError(
            source,
            f"is of a kind that TLS here cannot use; make an EC P-256, P-384 or RSA key "
            f"({MIN_RSA_BITS} bits at least)",
        )
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise AccessConfigurationError(source, f"does not belong to the certificate {certificate}")


def _usable(key: object) -> bool:
    """What gRPC's BoringSSL offers by default: no Ed25519, no P-521."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.key_size >= MIN_RSA_BITS
    return isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(
        key.curve, (ec.SECP256R1, ec.SECP384R1)
    )


def _check_times(certificates: Sequence[x509.Certificate], now: datetime, source: str) -> None:
    for certificate in certificates:
        if now < certificate.not_valid_before_utc:
            raise AccessConfigurationError(source, "is not valid yet; check the clock")
        if now > certificate.not_valid_after_utc:
            raise AccessConfigurationError(source, "has expired; renew it")


def _check_authorities(certificates: Sequence[x509.Certificate], path: Path) -> None:
    for certificate in certificates:
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        except (ValueError, x509.ExtensionNotFound):
            constraints = None
        if constraints is None or not constraints.value.ca:
            raise AccessConfigurationError(
                f"client CA {path}", "holds a certificate that is no CA (basicConstraints CA:TRUE)"
            )
        if not _can_vouch(certificate):
            raise AccessConfigurationError(
                f"client CA {path}",
                "holds a CA whose key cannot vouch for clients here; make one with an EC P-256, "
                f"P-384, P-521 or RSA key ({MIN_RSA_BITS} bits at least)",
            )


def _can_vouch(authority: x509.Certificate) -> bool:
    """Whether access.trust follows chains to it: the Web PKI's kinds, so no Ed25519."""
    try:
        key = authority.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size >= MIN_RSA_BITS
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(
        key.curve, (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
    )


def _cause(error: OSError) -> str:
    return error.strerror or type(error).__name__
