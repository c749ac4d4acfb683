"""Doctor on files, certificates and policies: each check, in the case in which it fails."""

import os
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509

from fixtures.doctor import Glance, Look, Sick, of
from fixtures.production import TRUST_DOMAIN
from ironwork_server.app.devpki import DevCa
from ironwork_server.app.doctor_report import Finding, Status, fail, ok

AGENTS_EVERYWHERE = """
permit (principal in Ironwork::Role::"agent", action == Ironwork::Action::"WithKey", resource);
"""
AGENTS_ADD = """
permit (principal in Ironwork::Role::"agent", action == Ironwork::Action::"AddKey", resource)
when { principal has workspace && principal.workspace == resource };
"""


async def test_a_sound_set_up_fails_nothing(look: Look) -> None:
    """Where all is as the operator's page has it, nothing fails, and what warns is named."""
    findings = await look()
    assert of(findings, Status.FAIL) == {}
    assert set(of(findings, Status.WARN)) <= {
        "hsm in-process",
        "hsm what the PIN could do",
        "pin apart from database",
        "clock",
        "store.space",
        "audit.space",
    }
    assert {"role agent", "role key-admin", "role auditor"} <= set(of(findings, Status.OK))
    assert of(findings, Status.OK)["role agent"] == "may WithKey"


def test_whatever_is_not_ok_says_how_to_mend_it() -> None:
    """A finding without a mend can only be ok, and one that is ok has none."""
    with pytest.raises(ValueError, match="mend"):
        fail("check", "is wrong", "")
    with pytest.raises(ValueError, match="mend"):
        Finding("check", Status.OK, "is right", "chmod it")
    assert ok("check", "is right").mend == ""


def settings_open_to_all(sick: Sick) -> None:
    sick.production.write().chmod(0o666)


def pin_open_to_others(sick: Sick) -> None:
    sick.production.token.pin_file.chmod(0o640)


def pin_folder_open_to_others(sick: Sick) -> None:
    sick.production.token.pin_file.parent.chmod(0o770)


def pin_of_somebody_else(sick: Sick) -> None:
    os.chown(sick.production.token.pin_file, 12345, -1)


def pin_beside_the_database(sick: Sick) -> None:
    pin = sick.production.folder / "db" / "pin"
    pin.write_bytes(sick.production.token.pin_file.read_bytes())
    pin.chmod(0o600)
    uri = sick.production.token.uri.replace(str(sick.production.token.pin_file), str(pin))
    sick.production.settings["master_key"] = {"uris": [uri]}


def private_key_open_to_others(sick: Sick) -> None:
    sick.production.files.private_key.chmod(0o644)


def no_private_key(sick: Sick) -> None:
    sick.production.files.private_key.unlink()


def proxy_credentials_open_to_others(sick: Sick) -> None:
    path = sick.production.folder / "proxy"
    path.write_text("user:password\n")
    path.chmod(0o644)
    sick.production.settings["upstream"] = {
        "proxy": "http://127.0.0.1:3128",
        "proxy_credentials": str(path),
    }


def client_ca_open_to_others(sick: Sick) -> None:
    sick.production.files.client_ca.chmod(0o666)


def expired(sick: Sick) -> None:
    issued = sick.production.ca.server_certificate(lifetime=timedelta(seconds=-1))
    issued.write(sick.production.files.certificate, sick.production.files.private_key)


def foreign_spiffe_id(sick: Sick) -> None:
    names = [x509.DNSName("localhost"), x509.UniformResourceIdentifier("spiffe://other.org/s")]
    issued = sick.production.ca.issue(names)
    issued.write(sick.production.files.certificate, sick.production.files.private_key)


def no_name(sick: Sick) -> None:
    issued = sick.production.ca.issue([])
    issued.write(sick.production.files.certificate, sick.production.files.private_key)


def ambiguous_rules(sick: Sick) -> None:
    rules = [{"path": "/a/{x}", "role": "agent"}, {"path": "/a/{y}", "role": "auditor"}]
    sick.production.settings["identity"] = {"trust_domain": TRUST_DOMAIN, "rules": rules}


def broken_policy(sick: Sick) -> None:
    (sick.production.folder / "policy" / "more.cedar").write_text("permit (")


def policy_folder_open_to_others(sick: Sick) -> None:
    (sick.production.folder / "policy").chmod(0o777)


def policy_open_to_others(sick: Sick) -> None:
    (sick.production.folder / "policy" / "roles.cedar").chmod(0o666)


def agents_use_any_workspace(sick: Sick) -> None:
    (sick.production.folder / "policy" / "more.cedar").write_text(AGENTS_EVERYWHERE)


@pytest.mark.parametrize(
    ("break_it", "check", "says"),
    [
        (settings_open_to_all, "settings.file", "written by group or others"),
        (pin_open_to_others, "pin of master_key.uris", "open to group or others"),
        (pin_folder_open_to_others, "pin of master_key.uris", "written by group or others"),
        (pin_of_somebody_else, "pin of master_key.uris", "belongs to user 12345"),
        (pin_beside_the_database, "pin apart from database", "lie in one place"),
        (private_key_open_to_others, "tls.private_key", "open to group or others"),
        (no_private_key, "tls.private_key", "No such file"),
        (proxy_credentials_open_to_others, "upstream.proxy_credentials", "open to group"),
        (client_ca_open_to_others, "tls.client_ca file", "written by group or others"),
        (expired, "tls", "expired"),
        (foreign_spiffe_id, "tls.certificate names", "outside spiffe://"),
        (no_name, "tls.certificate names", "no DNS name"),
        (ambiguous_rules, "identity.rules", "ambiguous"),
        (broken_policy, "policy", "more.cedar"),
        (policy_folder_open_to_others, "policy.folder", "written by group or others"),
        (policy_open_to_others, "policy.folder", "others can write it"),
        (agents_use_any_workspace, "role agent", "not its own: WithKey"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_fails(
    sick: Sick, glance: Glance, break_it: Callable[[Sick], None], check: str, says: str
) -> None:
    """Each of these fails, by name, with the way to mend it."""
    if break_it is settings_open_to_all:
        # The fixture writes the file anew for each look, and keeps its mode.
        sick.production.write()
    break_it(sick)
    assert says in of(glance(), Status.FAIL)[check]


def ends_soon(sick: Sick) -> None:
    issued = sick.production.ca.issue([x509.DNSName("localhost")], lifetime=timedelta(minutes=1))
    issued.write(sick.production.files.certificate, sick.production.files.private_key)


def an_idle_role(sick: Sick) -> None:
    sick.production.settings["identity"]["rules"].append(
        {"path": "/cleaner/{x}", "role": "cleaner"}
    )


def agents_add_keys(sick: Sick) -> None:
    (sick.production.folder / "policy" / "more.cedar").write_text(AGENTS_ADD)


@pytest.mark.parametrize(
    ("break_it", "check", "says"),
    [
        (ends_soon, "tls.certificate", "ends "),
        (an_idle_role, "role cleaner", "may do nothing"),
        (agents_add_keys, "role agent", "may AddKey, WithKey: more than"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_warns(
    sick: Sick, glance: Glance, break_it: Callable[[Sick], None], check: str, says: str
) -> None:
    """Each of these warns."""
    break_it(sick)
    assert says in of(glance(), Status.WARN)[check]


def test_dev_certificates(sick: Sick, glance: Glance, dev_ca: DevCa) -> None:
    """Certificates of a throw-away CA fail."""
    files = sick.production.files
    dev_ca.server_certificate().write(files.certificate, files.private_key)
    assert "throw-away CA" in of(glance(), Status.FAIL)["tls.dev"]
