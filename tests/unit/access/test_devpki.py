"""The throw-away CA: marked, complete, and careful with its files."""

import ssl
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fixtures.pki import agent_id
from ironwork_server.app.devpki import (
    DEV_CA_NAME,
    DEV_ORGANIZATION,
    DevCa,
    is_dev_ca,
    write_client_profile,
    write_private,
)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def stranger() -> bytes:
    """A self-signed CA that is not ours."""
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example Root")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.public_key(key.public_key()).sign(key, None).public_bytes(Encoding.PEM)


def test_the_ca_is_marked_in_its_subject(dev_ca: DevCa) -> None:
    """Whoever looks at the certificate sees what it is."""
    subject = x509.load_pem_x509_certificate(dev_ca.certificate_pem).subject.rfc4514_string()
    assert f"O={DEV_ORGANIZATION}" in subject
    assert "dev throw-away CA" in DEV_CA_NAME
    assert DEV_CA_NAME in subject


def test_a_dev_ca_and_what_it_issued_are_recognised(dev_ca: DevCa) -> None:
    """serve can refuse the CA, a leaf of it, and a bundle that hides one."""
    assert is_dev_ca(dev_ca.certificate_pem)
    assert is_dev_ca(dev_ca.server_certificate().certificate_pem)
    assert is_dev_ca(stranger() + dev_ca.certificate_pem)
    assert not is_dev_ca(stranger())
    with pytest.raises(ValueError, match="PEM"):
        is_dev_ca(b"no certificate")
    der = bytearray(ssl.PEM_cert_to_DER_cert(dev_ca.certificate_pem.decode()))
    der[12] = 0x7F
    with pytest.raises(ValueError, match="unknown version"):
        is_dev_ca(ssl.DER_cert_to_PEM_cert(bytes(der)).encode())


def test_what_is_issued_is_signed_by_the_ca(dev_ca: DevCa) -> None:
    """Server and client certificates verify against the CA's."""
    ca = x509.load_pem_x509_certificate(dev_ca.certificate_pem)
    server = x509.load_pem_x509_certificate(dev_ca.server_certificate().certificate_pem)
    client = x509.load_pem_x509_certificate(dev_ca.client_certificate(agent_id()).certificate_pem)
    for certificate in (server, client):
        certificate.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_a_saved_ca_is_the_same_ca_and_private(tmp_path: Path, dev_ca: DevCa) -> None:
    """save() and load() keep the CA, in a folder and files for the owner alone."""
    folder = tmp_path / "ca"
    dev_ca.save(folder)
    dev_ca.save(folder)
    assert DevCa.load(folder) == dev_ca
    assert mode(folder) == 0o700
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    assert "PRIVATE" not in repr(dev_ca)


def test_a_ca_whose_key_is_no_ec_key_issues_nothing(dev_ca: DevCa) -> None:
    """A foreign key file is an error of its own."""
    key = ed25519.Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with pytest.raises(TypeError, match="EC key"):
        DevCa(dev_ca.certificate_pem, key).server_certificate()


def test_a_client_profile_names_files_beside_it(tmp_path: Path, dev_ca: DevCa) -> None:
    """The profile's paths are relative to its folder, and every file is the owner's alone."""
    issued = dev_ca.client_certificate(agent_id())
    path = write_client_profile(
        tmp_path / "profiles", "agent", issued, dev_ca, target="127.0.0.1:1", workspace="acme"
    )
    profile = tomllib.loads(path.read_text())
    assert profile == {
        "target": "127.0.0.1:1",
        "ca": "ca.pem",
        "certificate": "agent.pem",
        "private_key": "agent-key.pem",
        "workspace": "acme",
    }
    assert (path.parent / profile["ca"]).read_bytes() == dev_ca.certificate_pem
    assert (path.parent / profile["certificate"]).read_bytes() == issued.certificate_pem
    assert (path.parent / profile["private_key"]).read_bytes() == issued.private_key_pem
    assert {mode(file) for file in path.parent.iterdir()} == {0o600}


def test_a_private_file_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails leaves the old file and no other."""
    path = tmp_path / "key.pem"
    write_private(path, b"old")

    def fail(_: int) -> None:
        raise OSError

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError):  # noqa: PT011  the error is the one that was injected
        write_private(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
