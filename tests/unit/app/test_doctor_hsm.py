"""Doctor on the master key's devices: each check, in the case in which it fails."""

import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from pkcs11 import Attribute, KeyType, MechanismFlag, TokenFlag

from fixtures.doctor import Look, Sick, of
from fixtures.hsmd import Hsmd
from fixtures.nss import NewNssUri
from fixtures.softhsm import MakeToken, SoftHsm, TokenFiles, opened
from ironwork_hsm.pkcs11 import inspect
from ironwork_hsm.pkcs11.inspect import PinTries, inspect_token, tries_left
from ironwork_hsm.pkcs11.login import find_token
from ironwork_hsm.pkcs11.module import load_module
from ironwork_hsm.uri import parse_pkcs11_uri
from ironwork_server.app.doctor_report import Status
from ironwork_server.cli.main import main

POWER = "hsm what the PIN could do"
MakeForeignKey = Callable[..., None]


@pytest.fixture
def make_foreign_key(softhsm: SoftHsm) -> MakeForeignKey:
    """A key of somebody else's making in a token."""

    def make(token: TokenFiles, label: str, template: Mapping[Attribute, Any]) -> None:
        found = load_module(softhsm.module).library.get_token(token_label=token.label)
        with found.open(rw=True, user_pin=token.pin_file.read_text().strip()) as session:
            session.generate_key(
                KeyType.AES,
                256,
                id=b"\x00\x00\x00\x01",
                label=label,
                store=True,
                capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
                template=dict(template),
            )

    return make


def use(sick: Sick, token: TokenFiles) -> str:
    """Have the settings name this token; the name of its key's check."""
    sick.production.settings["master_key"] = {"uris": [token.uri]}
    return f"hsm pkcs11:token={token.label};object=master key 00000001"


async def test_a_key_of_ours_is_as_tight_as_the_token_makes_it(sick: Sick, look: Look) -> None:
    """A key that we generate can be given no further use, and cannot be copied."""
    check = use(sick, sick.production.token)
    assert of(await look(), Status.OK)[check] == (
        "AES: sensitive, never extractable, local, not changeable"
    )


async def test_nss_makes_a_key_too(nss_uri: NewNssUri) -> None:
    """A module that does not know every attribute makes a key all the same, and is looked at."""
    uri = nss_uri()
    async with opened(uri, allow_missing=True) as backend:
        await backend.create_version()
        report = await inspect_token(parse_pkcs11_uri(uri))
    assert report.tries is PinTries.ENOUGH
    assert report.keys is not None
    (key,) = report.keys
    assert key.attributes["EXTRACTABLE"] is False
    assert key.attributes["SENSITIVE"] is True
    # It refuses CKA_COPYABLE false, and takes the rest.
    assert key.attributes["MODIFIABLE"] is False


async def test_an_extractable_key(
    sick: Sick, look: Look, make_token: MakeToken, make_foreign_key: MakeForeignKey
) -> None:
    """A key that can be wrapped out fails, and so does a PIN that could do it."""
    token = make_token()
    make_foreign_key(token, "master", {Attribute.EXTRACTABLE: True})
    check = use(sick, token)
    said = of(await look(), Status.FAIL)
    assert "it can be wrapped out" in said[check]
    assert "take 1 keys out of the token" in said[POWER]


async def test_a_loose_key(
    sick: Sick, look: Look, make_token: MakeToken, make_foreign_key: MakeForeignKey
) -> None:
    """A key that can be changed, copied, or used for more, warns."""
    token = make_token()
    loose = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.UNWRAP: True}
    make_foreign_key(token, "master", loose)
    check = use(sick, token)
    said = of(await look(), Status.WARN)[check]
    assert "further uses" in said
    assert "copy it" in said
    assert "C_UnwrapKey" in said


async def test_what_the_pin_could_do(
    sick: Sick, look: Look, make_token: MakeToken, make_foreign_key: MakeForeignKey
) -> None:
    """What the PIN gives beside the master key's use is said, other keys too."""
    said = of(await look(), Status.WARN)[POWER]
    assert said == "use the master key, make keys, destroy this master key, change the PIN"
    token = make_token(with_key=True)
    make_foreign_key(token, "billing", {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False})
    use(sick, token)
    assert "use 1 other keys" in of(await look(), Status.WARN)[POWER]


async def test_a_token_without_the_key(sick: Sick, look: Look, make_token: MakeToken) -> None:
    """A token that holds no master key fails."""
    token = make_token()
    use(sick, token)
    found = of(await look(), Status.FAIL)
    assert "no key with this label" in found[f"hsm pkcs11:token={token.label};object=master keys"]


async def test_a_wrong_pin(sick: Sick, look: Look, make_token: MakeToken) -> None:
    """A refused PIN fails, is tried once, and is not shown."""
    token = make_token(with_key=True)
    token.pin_file.write_text("0000-canary\n")
    use(sick, token)
    said = of(await look(), Status.FAIL)["hsm pkcs11"]
    assert "PIN" in said
    assert "canary" not in said


async def test_a_token_that_is_not_there(sick: Sick, look: Look) -> None:
    """A token that the library does not have fails."""
    token = sick.production.token
    uri = token.uri.replace(token.label, "nobodys-token")
    sick.production.settings["master_key"] = {"uris": [uri]}
    assert "nobodys-token" in of(await look(), Status.FAIL)["hsm pkcs11"]


async def test_a_dev_token(sick: Sick, look: Look, make_token: MakeToken) -> None:
    """A dev server's token fails."""
    use(sick, make_token("ironwork-dev-of-the-doctor", with_key=True))
    found = of(await look(), Status.FAIL)
    assert "the token of a dev server" in found.values()


@pytest.mark.parametrize(
    ("flags", "tries"),
    [
        (TokenFlag(0), PinTries.ENOUGH),
        (TokenFlag.USER_PIN_COUNT_LOW, PinTries.LOW),
        (TokenFlag.USER_PIN_COUNT_LOW | TokenFlag.USER_PIN_FINAL_TRY, PinTries.LAST),
        (TokenFlag.USER_PIN_LOCKED, PinTries.LOCKED),
    ],
)
def test_how_many_tries_are_left(flags: TokenFlag, tries: PinTries) -> None:
    """The token's flags are all that says how many tries of the PIN are left."""
    assert tries_left(flags) is tries


@pytest.mark.parametrize("tries", [PinTries.LOW, PinTries.LAST, PinTries.LOCKED])
async def test_a_pin_with_few_tries_is_not_tried(
    look: Look, monkeypatch: pytest.MonkeyPatch, tries: PinTries
) -> None:
    """Where few tries are left the doctor does not log in: it must not be what locks a token."""
    monkeypatch.setattr(inspect, "tries_left", lambda _: tries)

    def refuse(*_: object) -> None:
        raise AssertionError("the doctor logged in")

    monkeypatch.setattr(inspect, "login", SimpleNamespace(find_token=find_token, acquire=refuse))
    said = of(await look(), Status.FAIL).values()
    assert any("of the PIN" in text or "the PIN is locked" in text for text in said)


async def test_the_hsm_process(sick: Sick, look: Look, shared_hsmd: Hsmd) -> None:
    """Behind the HSM process the server has no PIN, and the process says how it is."""
    sick.production.settings["master_key"] = {"uris": [shared_hsmd.uri]}
    findings = await look()
    assert of(findings, Status.FAIL) == {}
    said = of(findings, Status.OK)
    assert "it has no PIN" in said["hsm what this server could do"]
    assert "hsm in-process" not in of(findings, Status.WARN)
    assert any("UNSIGNED" in text for text in of(findings, Status.WARN).values())


async def test_an_hsm_process_that_is_not_there(sick: Sick, look: Look) -> None:
    """An HSM process that does not answer fails."""
    socket = sick.production.folder / "hsm.sock"
    sick.production.settings["master_key"] = {"uris": [f"unix:{socket}"]}
    assert "hsm unix" in of(await look(), Status.FAIL)


async def test_an_hsm_process_that_is_not_well(
    sick: Sick, look: Look, shared_hsmd: Hsmd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the HSM process says of its devices is handed on."""
    from ironwork_server.app import doctor_hsm

    async def refused(_: object) -> dict[str, Any]:
        return {"healthy": False, "devices": [{"name": "pkcs11:one", "state": "PIN_REFUSED"}]}

    monkeypatch.setattr(doctor_hsm, "read_status", refused)
    sick.production.settings["master_key"] = {"uris": [shared_hsmd.uri]}
    said = of(await look(), Status.FAIL)
    assert any("pkcs11:one: PIN_REFUSED" in text for text in said.values())


@pytest.mark.parametrize(
    ("signature", "status"),
    [("SIGNED", Status.OK), ("UNSIGNED", Status.WARN), ("LATE", Status.FAIL), (None, Status.FAIL)],
)
async def test_the_hsm_process_own_record(
    sick: Sick,
    look: Look,
    shared_hsmd: Hsmd,
    monkeypatch: pytest.MonkeyPatch,
    signature: str | None,
    status: Status,
) -> None:
    """Whether the HSM process' record is signed is told, and a signature that fails fails."""
    from ironwork_server.app import doctor_hsm

    async def told(_: object) -> dict[str, Any]:
        return {"healthy": True, "devices": [], "record": {"signature": signature}}

    monkeypatch.setattr(doctor_hsm, "read_status", told)
    sick.production.settings["master_key"] = {"uris": [shared_hsmd.uri]}
    assert any(check.endswith("record") for check in of(await look(), status))


def test_the_command(
    sick: Sick, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`doctor` exits with 1 where something failed and 0 where not, as a table or as JSON."""
    config = str(sick.production.write())
    assert main(["doctor", "--config", config, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is True
    assert {"check", "status", "says", "mend"} == set(said["findings"][0])
    monkeypatch.setenv("GRPC_TRACE", "all")
    assert main(["doctor", "--config", config]) == 1
    assert "GRPC_TRACE" in capsys.readouterr().out


def test_settings_that_cannot_be_read(sick: Sick, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown setting is the one finding then, and its value is not shown."""
    sick.production.settings["nonsense"] = "canary-value"
    assert main(["doctor", "--config", str(sick.production.write()), "--json"]) == 1
    out = capsys.readouterr().out
    assert json.loads(out)["findings"][0]["says"] == "nonsense: is not a setting"
    assert "canary-value" not in out
