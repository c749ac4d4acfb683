"""A throw-away certificate authority, for `ironwork-server dev` and for tests.

Everything that it makes is marked: the CA's subject has the organisation `ironwork dev`, and what
it issues names that subject as its issuer, so that `serve` can recognise and refuse it.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DEV_ORGANIZATION = "ironwork dev"
DEV_CA_NAME = "ironwork dev throw-away CA"
DEV_TRUST_DOMAIN = "dev.ironwork.internal"

CA_CERTIFICATE_FILE = "ca.pem"
CA_KEY_FILE = "ca-key.pem"

CA_LIFETIME = timedelta(days=365)
LEAF_LIFETIME = timedelta(days=30)
# Clocks of two machines differ; what is issued now is valid a little earlier.
BACKDATE = timedelta(minutes=5)

_LEAF_USES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key, both PEM (the key PKCS#8, unencrypted)."""

    certificate_pem: bytes
    private_key_pem: bytes = field(repr=False)

    def write(self, certificate: Path, private_key: Path) -> None:
        """Write both files, mode 0600, each atomically; the key first."""
        write_private(private_key, self.private_key_pem)
        write_private(certificate, self.certificate_pem)


@dataclass(frozen=True, slots=True)
class DevCa:
    """A CA with an EC P-256 key. certificate_pem is what verifiers are given."""

    certificate_pem: bytes
    private_key_pem: bytes = field(repr=False)

    @classmethod
    def create(cls, *, lifetime: timedelta = CA_LIFETIME) -> "DevCa":
        """A new CA, marked as a dev one."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(DEV_CA_NAME)
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, SHA256())
        )
        return cls(certificate.public_bytes(Encoding.PEM), _key_pem(key))

    @classmethod
    def load(cls, folder: Path) -> "DevCa":
        """The CA that save() wrote there. Raises OSError where it is missing."""
        return cls((folder / CA_CERTIFICATE_FILE).read_bytes(), (folder / CA_KEY_FILE).read_bytes())

    def save(self, folder: Path) -> None:
        """Write ca.pem and ca-key.pem, mode 0600, into a folder (made 0700 if missing)."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(folder / CA_KEY_FILE, self.private_key_pem)
        write_private(folder / CA_CERTIFICATE_FILE, self.certificate_pem)

    def server_certificate(
        self,
        *,
        dns: Sequence[str] = ("localhost",),
        addresses: Sequence[str] = ("127.0.0.1",),
        lifetime: timedelta = LEAF_LIFETIME,
    ) -> Issued:
        """A server's certificate for these names and IP addresses."""
        return self.issue(
            [
                *(x509.DNSName(name) for name in dns),
                *(x509.IPAddress(ip_address(address)) for address in addresses),
            ],
            common_name="ironwork dev server",
            lifetime=lifetime,
        )

    def client_certificate(self, spiffe_id: str, *, lifetime: timedelta = LEAF_LIFETIME) -> Issued:
        """A client's certificate (X.509-SVID) with this SPIFFE ID as its one URI name."""
        return self.issue([x509.UniformResourceIdentifier(spiffe_id)], lifetime=lifetime)

    def issue(
        self,
        names: Sequence[x509.GeneralName],
        *,
        common_name: str = "ironwork dev leaf",
        lifetime: timedelta = LEAF_LIFETIME,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        ca: bool | None = False,
        usage: x509.KeyUsage | None = None,
        omit_usage: bool = False,
        extended_usage: Sequence[x509.ObjectIdentifier] = _LEAF_USES,
        extensions: Sequence[x509.Extension[x509.ExtensionType]] = (),
    ) -> Issued:
        """A certificate with anything in it, also what no honest CA would sign.

        names: the subject alternative names; none leaves the extension out. not_before and
        not_after override lifetime, which counts from now. ca: basicConstraints, None leaves it
        out. usage: key usage, default digitalSignature; omit_usage leaves it out. extended_usage:
        empty leaves it out. extensions: added as they are.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(x509.load_pem_x509_certificate(self.certificate_pem).subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or now - BACKDATE)
            .not_valid_after(not_after or now + lifetime)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key().public_key()),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
        if not omit_usage:
            builder = builder.add_extension(
                usage or key_usage(digital_signature=True), critical=True
            )
        if extended_usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage(extended_usage), critical=False)
        for extension in extensions:
            builder = builder.add_extension(extension.value, critical=extension.critical)
        certificate = builder.sign(self._key(), SHA256())
        return Issued(certificate.public_bytes(Encoding.PEM), _key_pem(key))

    def _key(self) -> ec.EllipticCurvePrivateKey:
        key = load_pem_private_key(self.private_key_pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("a dev CA's key is an EC key")
        return key


def write_client_profile(
    folder: Path,
    name: str,
    issued: Issued,
    ca: DevCa,
    *,
    target: str,
    workspace: str | None = None,
    server_name: str | None = None,
) -> Path:
    """Write what a client needs into a folder (made 0700 if missing); return the profile's path.

    Files: {name}.toml (the client's profile), {name}.pem, {name}-key.pem and ca.pem. target is
    the server's `host:port`.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(folder / CA_CERTIFICATE_FILE, ca.certificate_pem)
    issued.write(folder / f"{name}.pem", folder / f"{name}-key.pem")
    settings = {
        "target": target,
        "ca": CA_CERTIFICATE_FILE,
        "certificate": f"{name}.pem",
        "private_key": f"{name}-key.pem",
        "workspace": workspace,
        "server_name": server_name,
    }
    # A JSON string is a TOML basic string.
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
        for key, value in settings.items()
        if value
    ]
    profile = folder / f"{name}.toml"
    write_private(profile, "".join(lines).encode())
    return profile


def is_dev_ca(pem: bytes) -> bool:
    """Whether any certificate in pem is a dev CA, or was issued by one.

    Raises ValueError where pem holds no certificates.
    """
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except x509.InvalidVersion:
        raise ValueError("a certificate has an unknown version") from None
    return any(
        _is_dev_name(name)
        for certificate in certificates
        for name in (certificate.subject, certificate.issuer)
    )


def key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    """The key-usage extension with only these bits."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 atomically: it is whole under its name, or not there.

    It is made 0600 before anything is written, in the same folder, then renamed over path.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _is_dev_name(name: x509.Name) -> bool:
    organizations = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return any(attribute.value == DEV_ORGANIZATION for attribute in organizations)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, DEV_ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
