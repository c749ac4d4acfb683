"""Certificates become principals, or are refused with a reason."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fixtures.pki import agent_id, auditor_id, key_admin_id
from ironwork_server.access import identity
from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.identity import MAX_CERTIFICATE_BYTES, IdentityMapper
from ironwork_server.access.rules import DEFAULT_RULES, IdentityRule
from ironwork_server.app.devpki import DEV_TRUST_DOMAIN, DevCa, key_usage
from ironwork_server.core.errors import Unauthenticated


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


@pytest.fixture(name="mapper")
def make_mapper() -> IdentityMapper:
    return IdentityMapper(DEV_TRUST_DOMAIN, DEFAULT_RULES)


def refusal(mapper: IdentityMapper, pem: bytes) -> Unauthenticated:
    """The refusal of a certificate; nothing of it may be in its text."""
    with pytest.raises(Unauthenticated) as caught:
        mapper.identify(pem)
    text = f"{caught.value.message} {caught.value.metadata}"
    assert "canary" not in text
    assert DEV_TRUST_DOMAIN not in text
    return caught.value


@pytest.mark.parametrize(
    ("spiffe_id", "role", "workspace"),
    [
        (agent_id("acme", "Any_segment.1"), "agent", "acme"),
        (key_admin_id("globex"), "key-admin", "globex"),
        (auditor_id(), "auditor", None),
    ],
)
def test_a_good_certificate_is_mapped_to_its_role_and_workspace(
    mapper: IdentityMapper, dev_ca: DevCa, spiffe_id: str, role: str, workspace: str | None
) -> None:
    """The SPIFFE path decides role and workspace; expires_at is the certificate's notAfter."""
    issued = dev_ca.client_certificate(spiffe_id, lifetime=timedelta(hours=1))
    principal = mapper.identify(issued.certificate_pem)
    assert (principal.spiffe_id, principal.role, principal.workspace) == (
        spiffe_id,
        role,
        workspace,
    )
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
    assert principal.expires_at == certificate.not_valid_after_utc
    assert principal.expires_at.tzinfo is UTC


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "SPIFFE_ID_MISSING"),
        ([x509.DNSName("canary.example.com")], "SPIFFE_ID_MISSING"),
        ([x509.DNSName(agent_id())], "SPIFFE_ID_LOOKALIKE"),
        ([uri(agent_id()), x509.DNSName(agent_id("globex"))], "SPIFFE_ID_LOOKALIKE"),
        ([x509.DNSName("SPIFFE://canary/a"), uri(agent_id())], "SPIFFE_ID_LOOKALIKE"),
        ([uri(agent_id()), x509.RFC822Name("spiffe://canary/a")], "SPIFFE_ID_LOOKALIKE"),
        ([uri(agent_id()), uri(agent_id("globex"))], "SPIFFE_ID_AMBIGUOUS"),
        ([uri(agent_id()), uri(agent_id())], "SPIFFE_ID_AMBIGUOUS"),
        ([uri(agent_id()), uri("https://canary.example.com")], "SPIFFE_ID_AMBIGUOUS"),
        ([uri("https://canary.example.com/a")], "SPIFFE_ID_MALFORMED"),
        ([uri(agent_id() + "?canary")], "SPIFFE_ID_MALFORMED"),
        ([uri(agent_id() + "/../canary")], "SPIFFE_ID_MALFORMED"),
        ([uri(agent_id().upper())], "SPIFFE_ID_MALFORMED"),
        ([uri("spiffe://other.example/workspace/acme/agent/a")], "TRUST_DOMAIN_FOREIGN"),
        ([uri(f"spiffe://{DEV_TRUST_DOMAIN}")], "IDENTITY_UNMAPPED"),
        ([uri(f"spiffe://{DEV_TRUST_DOMAIN}/canary")], "IDENTITY_UNMAPPED"),
        ([uri(agent_id("acme", "a") + "/canary")], "IDENTITY_UNMAPPED"),
        ([uri(agent_id("Acme"))], "IDENTITY_UNMAPPED"),
        ([uri(agent_id("1acme"))], "IDENTITY_UNMAPPED"),
        ([uri(agent_id("a" * 64))], "IDENTITY_UNMAPPED"),
        ([uri(agent_id("a.b"))], "IDENTITY_UNMAPPED"),
    ],
)
def test_names_that_are_not_exactly_one_mapped_spiffe_uri_are_refused(
    mapper: IdentityMapper, dev_ca: DevCa, names: list[x509.GeneralName], reason: str
) -> None:
    """One URI SAN that is a SPIFFE ID of ours: nothing less, nothing beside it, no look-alike."""
    issued = dev_ca.issue(names, common_name=agent_id()[:64])
    assert refusal(mapper, issued.certificate_pem).reason == reason


def test_honest_names_beside_the_uri_are_allowed(mapper: IdentityMapper, dev_ca: DevCa) -> None:
    """The specification lets DNS names, addresses and others stand beside the one URI."""
    names = [
        x509.DNSName("agent.example.com"),
        x509.IPAddress(ip_address("192.0.2.1")),
        x509.RegisteredID(ObjectIdentifier("1.2.3.4")),
        uri(agent_id()),
    ]
    assert mapper.identify(dev_ca.issue(names).certificate_pem).spiffe_id == agent_id()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ca": True}, "CERTIFICATE_IS_CA"),
        ({"omit_usage": True}, "CERTIFICATE_KEY_USAGE"),
        ({"usage": key_usage()}, "CERTIFICATE_KEY_USAGE"),
        (
            {"usage": key_usage(digital_signature=True, key_cert_sign=True)},
            "CERTIFICATE_KEY_USAGE",
        ),
        ({"usage": key_usage(digital_signature=True, crl_sign=True)}, "CERTIFICATE_KEY_USAGE"),
        (
            {"extended_usage": [ExtendedKeyUsageOID.SERVER_AUTH]},
            "CERTIFICATE_EXTENDED_KEY_USAGE",
        ),
    ],
)
def test_a_certificate_outside_the_svid_profile_is_refused(
    mapper: IdentityMapper, dev_ca: DevCa, options: dict[str, object], reason: str
) -> None:
    """A leaf signs handshakes, and neither certificates nor CRLs (X509-SVID 4)."""
    issue: Callable[..., object] = dev_ca.issue
    issued = issue([uri(agent_id())], **options)
    assert refusal(mapper, issued.certificate_pem).reason == reason  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "options",
    [
        {"ca": None},
        {"extended_usage": ()},
        {"extended_usage": [ExtendedKeyUsageOID.CLIENT_AUTH]},
    ],
)
def test_extensions_that_the_profile_leaves_open_may_be_missing(
    mapper: IdentityMapper, dev_ca: DevCa, options: dict[str, object]
) -> None:
    """basicConstraints and extended key usage are optional in a leaf."""
    issue: Callable[..., object] = dev_ca.issue
    issued = issue([uri(agent_id())], **options)
    assert mapper.identify(issued.certificate_pem).role == "agent"  # type: ignore[attr-defined]


def test_what_is_not_exactly_one_certificate_is_refused(
    mapper: IdentityMapper, dev_ca: DevCa
) -> None:
    """No certificate, no PEM, two certificates and an oversized one each have their reason."""
    pem = dev_ca.client_certificate(agent_id()).certificate_pem
    assert refusal(mapper, b"").reason == "CERTIFICATE_MISSING"
    assert refusal(mapper, b"canary").reason == "CERTIFICATE_MALFORMED"
    assert refusal(mapper, pem + pem).reason == "CERTIFICATE_MALFORMED"
    assert refusal(mapper, pem[:200]).reason == "CERTIFICATE_MALFORMED"
    padded = pem + b"\n" * MAX_CERTIFICATE_BYTES
    assert refusal(mapper, padded).reason == "CERTIFICATE_TOO_LARGE"


def test_extensions_that_do_not_parse_are_refused(mapper: IdentityMapper, dev_ca: DevCa) -> None:
    """A SAN extension of broken DER is a refusal like any other, never an unhandled exception."""
    broken = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.17"), b"\x30\x05\x86\x7fab")
    extension = x509.Extension(broken.oid, critical=False, value=broken)
    issued = dev_ca.issue([], extensions=[extension])
    assert refusal(mapper, issued.certificate_pem).reason == "CERTIFICATE_MALFORMED"


def test_a_subject_alternative_name_given_twice_is_refused(
    mapper: IdentityMapper, dev_ca: DevCa
) -> None:
    """Two SAN extensions could each hold an identity: the certificate is refused as a whole."""
    names = x509.SubjectAlternativeName([uri(agent_id())])
    # The builder refuses duplicates, so a private OID of the same length becomes the second SAN's.
    stand_in = ObjectIdentifier("2.5.29.99")
    extension = x509.Extension(
        stand_in, critical=False, value=x509.UnrecognizedExtension(stand_in, names.public_bytes())
    )
    issued = dev_ca.issue([uri(agent_id())], extensions=[extension])
    der = x509.load_pem_x509_certificate(issued.certificate_pem).public_bytes(Encoding.DER)
    forged = x509.load_der_x509_certificate(der.replace(b"\x55\x1d\x63", b"\x55\x1d\x11"))
    assert refusal(mapper, forged.public_bytes(Encoding.PEM)).reason == "CERTIFICATE_MALFORMED"


@pytest.fixture(name="der", scope="session")
def make_der(dev_ca: DevCa) -> bytes:
    names = [uri(agent_id()), x509.DNSName("a.example"), x509.DirectoryName(x509.Name([]))]
    pem = dev_ca.issue(names).certificate_pem
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


# A serial number of zero or below is a warning of cryptography's, not an error.
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@settings(max_examples=400)
@example([(12, 0x7F)])  # a version that does not exist
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_damaged_certificate_is_refused_or_maps_into_our_own_trust_domain(
    der: bytes, damage: list[tuple[int, int]]
) -> None:
    """Whatever the bytes, no exception but a refusal leaves identify()."""
    damaged = bytearray(der)
    for position, value in damage:
        damaged[position] = value
    body = base64.encodebytes(bytes(damaged))
    pem = b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"
    try:
        principal = IdentityMapper(DEV_TRUST_DOMAIN, DEFAULT_RULES).identify(pem)
    except Unauthenticated:
        return
    assert principal.spiffe_id.startswith(f"spiffe://{DEV_TRUST_DOMAIN}/")


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.time


def test_validity_is_checked_at_every_use(dev_ca: DevCa) -> None:
    """A certificate that was accepted before is refused once it has expired."""
    clock = Clock()
    mapper = IdentityMapper(DEV_TRUST_DOMAIN, DEFAULT_RULES, now=clock)
    pem = dev_ca.client_certificate(agent_id(), lifetime=timedelta(minutes=10)).certificate_pem
    expires_at = mapper.identify(pem).expires_at
    clock.time = expires_at
    assert mapper.identify(pem).expires_at == expires_at
    clock.time = expires_at + timedelta(seconds=1)
    assert refusal(mapper, pem).reason == "CERTIFICATE_EXPIRED"
    clock.time = expires_at - timedelta(days=1)
    assert refusal(mapper, pem).reason == "CERTIFICATE_NOT_YET_VALID"


def test_a_certificate_is_parsed_once(
    mapper: IdentityMapper, dev_ca: DevCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Identification costs a hash after the first time."""
    parsed = []
    parse = identity._parse
    monkeypatch.setattr(identity, "_parse", lambda pem: parsed.append(pem) or parse(pem))
    pem = dev_ca.client_certificate(agent_id()).certificate_pem
    assert mapper.identify(pem) is mapper.identify(pem)
    assert len(parsed) == 1


def test_the_memory_of_certificates_is_bounded(
    dev_ca: DevCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many certificates come, only the latest are remembered."""
    monkeypatch.setattr(identity, "CACHE_ENTRIES", 2)
    mapper = IdentityMapper(DEV_TRUST_DOMAIN, DEFAULT_RULES)
    for number in range(4):
        mapper.identify(dev_ca.client_certificate(agent_id("acme", f"a{number}")).certificate_pem)
    assert len(mapper._known) == 2


def test_a_mapper_with_a_wrong_trust_domain_or_rule_is_not_made() -> None:
    """Configuration errors come at the start, and name what is wrong."""
    with pytest.raises(AccessConfigurationError, match=r"trust domain 'Example\.com'"):
        IdentityMapper("Example.com", DEFAULT_RULES)
    with pytest.raises(AccessConfigurationError, match="ambiguous"):
        IdentityMapper("td", [IdentityRule("/{a}", "agent"), IdentityRule("/{b}", "auditor")])
