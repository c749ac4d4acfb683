"""The token of the log's signing key fails under load: nothing is lost, and it is brought back."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fixtures.hsm_faults import (
    BACK_S,
    CLOSE_SESSION,
    LOGOUT,
    Device,
    Response,
    Site,
    under_load,
)
from fixtures.hsmd import Hsmd, MakeHsmd
from fixtures.journal_events import entries
from fixtures.server import StartService
from fixtures.signing import MakeSigningKey
from fixtures.softhsm import SoftHsm
from ironwork_audit import publishing
from ironwork_audit.cli.main import main as audit
from ironwork_hsm import BackendOptions, Unavailable
from ironwork_hsm.pkcs11.module import load_module
from ironwork_hsm.remote import open_unix
from ironwork_hsm.signers import open_signer

REFUSED = "CHECKPOINT_UNAVAILABLE"
PATIENT = BackendOptions(deadline_s=30, slow_deadline_s=60)


@pytest.fixture(params=["pkcs11", pytest.param("unix", marks=pytest.mark.slow)])
async def site(
    request: pytest.FixtureRequest,
    signing_device: Device,
    start_service: StartService,
    make_hsmd: MakeHsmd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Site]:
    """A service under load, whose log's key is in a faulty device, in its own process or behind the
    HSM process; late after 2 s, so that nobody waits for health.
    """
    monkeypatch.setattr(publishing, "LATE_S", 2.0)
    hsmd, uri, settings = None, signing_device.uri, {}
    if request.param == "unix":
        hsmd = make_hsmd(signer=uri, limits={"deadline_s": 3, "open_s": 20})
        uri, settings = hsmd.uri, {"master_key": {"uris": [hsmd.uri]}}
    signing = {"folder": tmp_path / "audit", "origin": "acme.example/one", "signing_key": uri}
    service = await start_service(
        audit=signing, limits={"max_keys": 10_000}, freshness_s=10.0, **settings
    )
    async with under_load(service, signing_device, hsmd) as site:
        yield site
    # Whatever happened, all of it is under a checkpoint of the one key, but its own signing.
    signer = await open_signer(uri, options=PATIENT)
    key = publishing.log_key(signing["origin"], signer.algorithm, signer.public_key)
    await signer.close()
    await service.stop()  # type: ignore[attr-defined]
    assert audit(["verify", str(signing["folder"]), "--key", str(key)]) == 0
    assert [entry.event.operation for entry in entries(tmp_path / "audit")[-2:]] == ["hsm.sign"] * 2


async def agents_go_on(site: Site) -> None:
    """So many more of their calls complete, whatever admins are told."""
    wanted = site.load.completed.total() + 20
    await site.load.until(lambda: site.load.completed.total() >= wanted)


async def is_back(site: Site) -> None:
    """Health says so, and an admin's call is answered, in the time that is promised."""
    async with asyncio.timeout(BACK_S):
        await site.health.becomes(Response.SERVING)
    await site.load.completes()
    assert set(site.load.reasons) <= {REFUSED, "AUDIT_UNAVAILABLE", "STORE_UNAVAILABLE"}


async def test_a_token_that_goes_and_comes_back(site: Site) -> None:
    """While the token is away admin calls are refused, agents' go on, and health says so; when it
    is back so are checkpoints, without anybody's help.
    """
    site.device.take_away(site.device.folder)
    await site.load.fails(REFUSED)
    await site.health.becomes(Response.NOT_SERVING)
    await agents_go_on(site)
    site.device.bring_back()
    await is_back(site)
    assert site.records("hsm.open")[-1].success is True


async def test_a_login_that_was_ended_elsewhere_is_made_again(site: Site) -> None:
    """Logged out by other code, the key is not found; it is logged in again, on record."""
    site.device.set(once=LOGOUT)
    await site.load.fails(REFUSED)
    await site.load.is_back()
    assert site.device.get("logins") > 1
    assert site.records("hsm.open")[-1].success is True


async def test_a_lost_session_costs_one_attempt(site: Site) -> None:
    """The next attempt has another session, and nobody is logged in again for it."""
    site.device.set(once=CLOSE_SESSION)
    await site.load.fails(REFUSED)
    await site.load.is_back()
    if site.shape == "pkcs11":
        assert site.device.get("logins") == 1
        assert site.records("hsm.open") == []


async def test_a_pin_that_was_changed_elsewhere(site: Site, softhsm: SoftHsm) -> None:
    """The old PIN is tried once, when it is needed, and then no more; once its file has the new one
    checkpoints resume.
    """
    token = site.device.token
    old, new = token.pin_file.read_text().strip(), "another-pin-000"
    found = load_module(softhsm.module).library.get_token(token_label=token.label)
    with found.open(rw=True, user_pin=old) as session:
        session.set_pin(old, new)
    await site.load.completes()
    site.device.set(once=LOGOUT)
    await site.load.fails(REFUSED)
    await site.health.becomes(Response.NOT_SERVING)
    await site.device.until("refused", lambda count: count == 1)
    await agents_go_on(site)
    if site.shape == "pkcs11":
        seen = len(site.records("hsm.open"))
        await site.load.until(lambda: len(site.records("hsm.open")) > seen + 1)
    assert site.device.get("refused") == 1
    token.pin_file.write_text(new + "\n")
    await is_back(site)
    assert site.device.get("refused") == 1


async def until_signature(hsmd: Hsmd, wanted: str) -> None:
    async with asyncio.timeout(60):
        while hsmd.status()["record"]["signature"] != wanted:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_the_hsm_process_own_record(
    signing_device: Device, make_hsmd: MakeHsmd, make_signing_key: MakeSigningKey
) -> None:
    """While the token of the record's key is away the HSM process serves on for a while, then
    refuses everything and says so; when the token is back so is all of it, and nothing is lost.
    """
    hsmd = make_hsmd(start=False, limits={"deadline_s": 3, "open_s": 20})
    hsmd.settings["record"]["signing_key"] = signing_device.uri
    hsmd.start()
    remote = await open_unix(hsmd.uri, allow_missing=False, options=PATIENT)
    wrapped = await remote.wrap(bytes(32), b"context")
    await until_signature(hsmd, "SIGNED")
    signing_device.take_away(signing_device.folder)
    assert await remote.unwrap(wrapped, b"context") == bytes(32)
    await until_signature(hsmd, "LATE")
    with pytest.raises(Unavailable, match="cannot sign its record"):
        await remote.unwrap(wrapped, b"context")
    status = hsmd.run("status")
    assert status.returncode == 1
    signing_device.bring_back()
    async with asyncio.timeout(BACK_S + 5):  # a status is a process
        await until_signature(hsmd, "SIGNED")
    assert await remote.unwrap(wrapped, b"context") == bytes(32)
    await remote.close()
    key = hsmd.run("audit-key", "show").stdout.strip()
    assert hsmd.end() == 0
    assert audit(["verify", str(hsmd.folder / "record"), "--key", key]) == 0
    refused = [e.event.reason for e in hsmd.record() if e.event.operation == "hsm.refused"]
    assert refused == ["RECORD_UNSIGNED"]
