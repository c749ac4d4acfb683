"""Doctor: the master key's devices, and what this server could do at each. No key is used."""

from pathlib import Path
from typing import Any

from ironwork_hsm import HsmError
from ironwork_hsm.pkcs11.inspect import KeyReport, PinTries, Power, TokenReport, inspect_token
from ironwork_hsm.remote.place import folder_owner, parse_unix_uri
from ironwork_hsm.remote.status import read_status
from ironwork_hsm.uri import Pkcs11Uri, parse_pkcs11_uri
from ironwork_server.app.dev.tokens import TOKEN_LABEL
from ironwork_server.app.doctor_kms import kms_key
from ironwork_server.app.doctor_report import Finding, fail, ok, warn
from ironwork_server.app.settings import Settings

_MEND_URI = "Mend the URI in master_key.uris, or what it names."
_TRIES = {
    PinTries.LOW: "few tries of the PIN are left",
    PinTries.LAST: "one try of the PIN is left",
    PinTries.LOCKED: "the PIN is locked",
}
# Attribute, the value that it should have, and what another one means.
_WANTED = (
    ("SENSITIVE", True, "its value can be read"),
    ("EXTRACTABLE", False, "it can be wrapped out"),
)
_WISHED = (
    ("NEVER_EXTRACTABLE", True, "it may have left the token once, or the token cannot tell"),
    ("LOCAL", True, "it was not made in the token, or the token cannot tell"),
    ("MODIFIABLE", False, "whoever has the PIN can give it further uses"),
    ("COPYABLE", False, "whoever has the PIN can copy it"),
)
_USES = ("WRAP", "UNWRAP", "DERIVE")


async def master_keys(settings: Settings) -> list[Finding]:
    """Every URI's device."""
    found = []
    for uri in settings.master_key.uris:
        scheme = uri.partition(":")[0].lower()
        try:
            if scheme == "pkcs11":
                found += await _token(parse_pkcs11_uri(uri))
            elif scheme == "unix":
                found += await _process(parse_unix_uri(uri))
            else:
                found += await kms_key(uri)
        except HsmError as error:
            found.append(fail(f"hsm {scheme}", str(error), _MEND_URI))
    return found


async def _token(uri: Pkcs11Uri) -> list[Finding]:
    check = f"hsm {uri.name}"
    found = [
        warn(
            "hsm in-process",
            f"this server reads the PIN of {uri.name} itself: whoever takes it over has the PIN",
            "Let ironwork-hsmd hold the PIN, under a user of its own: master_key.uris ="
            ' ["unix:/run/ironwork-hsmd/hsm.sock"].',
        )
    ]
    if (uri.token or "").startswith(TOKEN_LABEL):
        found.append(fail(check, "the token of a dev server", "Use a token of your own."))
    report = await inspect_token(uri)
    if report.keys is None or report.power is None:
        mend = "Nobody logged in, so that none is used up. Have the security officer reset the PIN."
        return [*found, fail(check, _TRIES[report.tries], mend)]
    found.append(ok(check, f"{report.manufacturer} {report.model}, serial {report.serial}"))
    found += _keys(check, report)
    found += _powers(report.power)
    return found


def _keys(check: str, report: TokenReport) -> list[Finding]:
    if not report.keys:
        mend = "ironwork-server master-key create"
        return [fail(f"{check} keys", "the token holds no key with this label", mend)]
    return [_key(f"{check} key {key.identifier}", key) for key in report.keys]


def _key(check: str, key: KeyReport) -> Finding:
    said = key.attributes
    wrong = [what for name, value, what in _WANTED if said[name] is not value]
    if wrong:
        mend = "Make a new version in the token (`master-key create`) and move to it."
        return fail(check, f"{key.key_type}: {'; '.join(wrong)}", mend)
    loose = [what for name, value, what in _WISHED if said[name] is not value]
    loose += [f"it may be used for C_{name.title()}Key" for name in _USES if said[name]]
    if loose:
        mend = "Keys that this version makes are tighter where the token can: rotate to a new one."
        return warn(check, f"{key.key_type}: {'; '.join(loose)}", mend)
    return ok(check, f"{key.key_type}: sensitive, never extractable, local, not changeable")


def _powers(power: Power) -> list[Finding]:
    """What the PIN could do. PKCS#11 has one user for all of a token: no right to use a key
    without the right to make and destroy objects.
    """
    check = "hsm what the PIN could do"
    could = ["use the master key"]
    if power.makes_keys:
        could.append("make keys")
    if power.writes:
        could += ["destroy this master key", "change the PIN"]
    if power.others:
        could.append(f"use {power.others} other keys in the token")
    if power.readable:
        could.append(f"take {power.readable} keys out of the token")
    says = ", ".join(could)
    if power.readable:
        mend = "Give the master key a token of its own, in which no key is extractable."
        return [fail(check, says, mend)]
    if power.others:
        return [warn(check, says, "Give the master key a token of its own.")]
    if power.writes:
        mend = (
            "PKCS#11 gives every user's PIN this. Let ironwork-hsmd hold it (it makes and destroys"
            " nothing for a server), keep a backup of the token, and use the device's own roles"
            " where it has them."
        )
        return [warn(check, says, mend)]
    return [ok(check, says)]


async def _process(socket: Path) -> list[Finding]:
    check = f"hsm unix:{socket}"
    owner = folder_owner(socket)
    report = await read_status(socket)
    found = [ok(check, f"the HSM process answers; its folder is user {owner}'s")]
    if report.get("healthy") is not True:
        mend = "Ask it: ironwork-hsmd status --config FILE."
        found.append(fail(f"{check} health", f"not healthy: {_problems(report)}", mend))
    found += _record(check, report)
    found.append(
        ok(
            "hsm what this server could do",
            "ask for wraps and unwraps, each on the HSM process' own record and bounded in rate;"
            " it has no PIN",
        )
    )
    return found


def _record(check: str, report: dict[str, Any]) -> list[Finding]:
    """Whether the process' own record is signed."""
    record = report.get("record")
    signature = record.get("signature") if isinstance(record, dict) else None
    if signature == "SIGNED":
        return [ok(f"{check} record", "signed by a key of its own")]
    if signature == "UNSIGNED":
        mend = "Give it a key in a token of its own: record.signing_key (docs/master-key.md)."
        says = "UNSIGNED: whoever holds its folder can rewrite it"
        return [warn(f"{check} record", says, mend)]
    mend = "Ask it: ironwork-hsmd status --config FILE; see to the token of record.signing_key."
    return [fail(f"{check} record", f"its checkpoints fail: {signature}", mend)]


def _problems(report: dict[str, Any]) -> str:
    """Which devices are not ready, in the process' own words."""
    devices = report.get("devices")
    said = [
        f"{device.get('name')}: {device.get('state')}"
        for device in (devices if isinstance(devices, list) else [])
        if isinstance(device, dict) and device.get("state") != "READY"
    ]
    return ", ".join(said) or "its record cannot be written"
