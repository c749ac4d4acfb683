"""Doctor on master keys in a cloud: each check, in the case in which it fails."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fixtures.aws import answer
from fixtures.clouds import Clouds
from fixtures.doctor import Look, Sick, of
from fixtures.journal_events import entries
from fixtures.processes import command
from fixtures.softhsm import MakeToken
from ironwork_hsm.kms_report import KmsReport
from ironwork_hsm.pkcs11 import inspect
from ironwork_hsm.pkcs11.inspect import PinTries
from ironwork_server.app.doctor_kms import POWER, findings
from ironwork_server.app.doctor_report import Status

AWS = KmsReport(
    "awskms:///alias/one", "eu-central-1", kind="SYMMETRIC_DEFAULT, AWS_KMS", state="Enabled",
    usable=True,
)  # fmt: skip
GCP = KmsReport(
    "gcpkms://projects/p/one", "europe-west3", allowed=frozenset({"use"}), needed=("use",),
    further=("destroy", "give"),
)  # fmt: skip


def said(report: KmsReport, status: Status) -> dict[str, str]:
    return of([*findings(report)], status)


def test_a_sound_key_is_ok_and_what_is_not_known_is_said() -> None:
    """Nothing is wrong with either; of AWS's permissions, and of the state that Google tells only
    viewers, doctor says that it does not know, and what would show it.
    """
    for report in (AWS, GCP):
        assert {found.status for found in findings(report)} == {Status.OK}
    aws, gcp = said(AWS, Status.OK), said(GCP, Status.OK)
    assert "doctor --probe shows" in aws[POWER]
    assert aws["hsm awskms:///alias/one"] == "Enabled, SYMMETRIC_DEFAULT, AWS_KMS, eu-central-1"
    assert "--probe tries it" in gcp["hsm gcpkms://projects/p/one"]
    assert gcp[POWER] == "encrypt and decrypt with this key; not change, destroy or give it away"


@pytest.mark.parametrize(
    ("report", "check", "status", "text"),
    [
        (replace(AWS, state="Disabled", usable=False), "", Status.FAIL, "Disabled"),
        (replace(AWS, imported=True), " origin", Status.WARN, "elsewhere before"),
        (replace(AWS, expires=True), " expiry", Status.WARN, "goes by itself"),
        (replace(AWS, lasting=True), " credentials", Status.WARN, "does not end by itself"),
        (replace(GCP, allowed=frozenset()), POWER, Status.FAIL, "it lacks use"),
        (replace(GCP, allowed=frozenset({"use", "destroy"})), POWER, Status.WARN, "and destroy"),
        (
            replace(GCP, state="primary version DISABLED", usable=False),
            "",
            Status.FAIL,
            "primary version DISABLED",
        ),
    ],
)
def test_what_is_wrong_with_a_key(report: KmsReport, check: str, status: Status, text: str) -> None:
    """Each thing that is wrong is one finding, with its mend."""
    name = check if check == POWER else f"hsm {report.name}{check}"
    assert text in said(report, status)[name]


Doctor = Callable[..., dict[str, Any]]


@pytest.fixture
def doctor(sick: Sick, clouds: Clouds) -> Doctor:
    """doctor(uri, *arguments): what the command says of a master key there, by check; run as a
    process, which finds the clouds by their names.
    """

    def run(uri: str, *arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
        sick.production.settings["master_key"] = {"uris": [uri]}
        config = str(sick.production.write())
        every = {**sick.production.token.env, **clouds.env, **(env or {})}
        done = command("doctor", "--config", config, "--json", *arguments, env=every)
        told = json.loads(done.stdout)
        assert done.returncode == (0 if told["ok"] else 1)
        return {found["check"]: found for found in told["findings"]}

    return run


def test_the_command_on_aws(doctor: Doctor, clouds: Clouds) -> None:
    """It asks AWS without using the key; with --probe it uses it once."""
    arn = clouds.aws.make_key()
    told = doctor(f"awskms:///{arn}")
    assert told[f"hsm awskms:///{arn}"]["status"] == "ok"
    assert clouds.aws.front.operations() == ["DescribeKey"]
    assert not any(check.startswith("probe") for check in told)
    told = doctor(f"awskms:///{arn}", "--probe")
    assert told[f"probe awskms:///{arn}"]["says"] == "wraps and unwraps: version 1, aws-kms"
    assert {"Encrypt", "Decrypt"} <= set(clouds.aws.front.operations())


@pytest.mark.slow
def test_a_key_that_may_be_described_and_not_used(doctor: Doctor, clouds: Clouds) -> None:
    """Without a probe nothing is wrong, since AWS tells no more; a probe finds the denial."""
    uri = clouds.aws.make_uri()
    clouds.aws.front.fail(answer(400, "AccessDeniedException"), "Decrypt")
    assert doctor(uri)[f"hsm {uri}"]["status"] == "ok"
    found = doctor(uri, "--probe")[f"probe {uri}"]
    assert found["status"] == "fail"
    assert "kms:Decrypt" in found["says"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("AccessDeniedException", "AWS KMS denies the use of the key"),
        ("NotFoundException", "knows no such key in this region"),
    ],
)
def test_a_key_that_aws_does_not_tell_of(
    doctor: Doctor, clouds: Clouds, code: str, says: str
) -> None:
    """What AWS denies or does not know fails, with its mend."""
    uri = clouds.aws.make_uri()
    clouds.aws.front.fail(answer(400, code))
    found = doctor(uri)[f"hsm {uri}"]
    assert (found["status"], says in found["says"]) == ("fail", True)
    assert found["mend"]


@pytest.mark.slow
def test_clouds_that_cannot_be_reached(doctor: Doctor, clouds: Clouds) -> None:
    """No connection fails; the check ends by itself."""
    nowhere = {"TEST_NAMES": re.sub(r"=\d+", "=1", clouds.names["TEST_NAMES"])}
    for uri in (clouds.aws.make_uri(), clouds.gcp_uri):
        found = doctor(uri, env=nowhere)[f"hsm {uri}"]
        assert (found["status"], "cannot be reached" in found["says"]) == ("fail", True)


def test_the_command_on_google(doctor: Doctor, clouds: Clouds, sick: Sick) -> None:
    """It asks Google what it may, without using the key; with --probe it uses it once, and that is
    in the commands' log as the operator's.
    """
    uri = clouds.gcp_uri
    told = doctor(uri)
    assert told[POWER]["status"] == "ok"
    assert told[f"hsm {uri} credentials"]["status"] == "warn"
    assert clouds.gcp.methods() == ["TestIamPermissions"]
    assert doctor(uri, "--probe")[f"probe {uri}"]["status"] == "ok"
    log = sick.production.folder / "audit-commands"
    probes = [e.event for e in entries(log) if e.event.operation == "hsm.probe"]
    assert [event.success for event in probes] == [None, True]
    assert probes[0].principal.startswith(f"unix:{os.getuid()}")


async def test_a_probe_of_a_token_is_on_record(sick: Sick, look: Look) -> None:
    """Each master key is used once, on record; without --probe nothing is written."""
    log = sick.production.folder / "audit-commands"
    assert of(await look(), Status.FAIL) == {}
    assert not log.exists()
    token = sick.production.token
    found = of(await look(probe=True), Status.OK)
    assert found[f"probe {token.uri.partition('?')[0]}"].startswith("wraps and unwraps: version 1")
    assert [e.event.operation for e in entries(log)].count("hsm.probe") == 2


async def test_a_probe_that_fails(sick: Sick, look: Look, make_token: MakeToken) -> None:
    """A key that cannot be used fails the probe, and those after it are probed all the same."""
    empty, sound = make_token(), sick.production.token
    sick.production.settings["master_key"] = {"uris": [empty.uri, sound.uri]}
    findings = await look(probe=True)
    assert f"probe {empty.uri.partition('?')[0]}" in of(findings, Status.FAIL)
    assert f"probe {sound.uri.partition('?')[0]}" in of(findings, Status.OK)


async def test_a_probe_spends_no_try_of_a_pin(
    sick: Sick, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where few tries of the PIN are left nothing is probed."""
    monkeypatch.setattr(inspect, "tries_left", lambda _: PinTries.LAST)
    name = f"probe {sick.production.token.uri.partition('?')[0]}"
    assert "few tries" in of(await look(probe=True), Status.FAIL)[name]


async def test_a_probe_without_its_log(sick: Sick, look: Look) -> None:
    """What cannot be recorded is not done: the probe fails where the commands' log cannot be
    written.
    """
    (sick.production.folder / "audit-commands").write_text("not a folder")
    assert "audit-commands" in of(await look(probe=True), Status.FAIL)["probe"]
