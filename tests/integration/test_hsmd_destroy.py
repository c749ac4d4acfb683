"""`ironwork-hsmd destroy`: what it destroys, what it refuses, and what is on record of it."""

import asyncio
import json
from pathlib import Path

import pytest

from fixtures.hsmd import Hsmd, MakeHsmd, entries_of
from fixtures.softhsm import MakeToken, opened
from ironwork_hsm import BackendOptions, KeyMissing, Unavailable, WrappedKey
from ironwork_hsm.remote import RemoteKeyWrapper, open_unix

CONTEXT = b"workspace\x00key-7"
PATIENT = BackendOptions(deadline_s=30, slow_deadline_s=60)


def officer(hsmd: Hsmd) -> str:
    return f"file:{hsmd.token.so_pin_file}"


async def connect(hsmd: Hsmd) -> RemoteKeyWrapper:
    return await open_unix(hsmd.uri, allow_missing=False, options=PATIENT)


async def destroy(hsmd: Hsmd, version: int, *more: str, pin: str | None = None) -> tuple[int, str]:
    """The command; its exit code and what it said."""
    arguments = ["--version", str(version), "--admin-pin-source", pin or officer(hsmd), *more]
    done = await asyncio.to_thread(hsmd.run, "destroy", *arguments)
    return done.returncode, done.stdout or done.stderr


def operators_record(hsmd: Hsmd) -> list[tuple[str, str, object, str]]:
    """(operation, phase, version, reason) of each entry of the commands' record."""
    return [
        (
            entry.event.operation,
            entry.event.phase,
            entry.event.details.get("master_key_version"),
            entry.event.reason,
        )
        for entry in entries_of(hsmd.folder / "record" / "operator")
    ]


async def old_and_new(hsmd: Hsmd, remote: RemoteKeyWrapper) -> tuple[WrappedKey, WrappedKey]:
    """Make version 2 beside the running process; what each version wrapped."""
    old = await remote.wrap(bytes(32), CONTEXT)
    assert (await asyncio.to_thread(hsmd.run, "create", "--next")).returncode == 0
    return old, await remote.wrap(bytes(32), CONTEXT, version=2)


async def test_a_destroyed_version_opens_nothing_at_a_running_process(make_hsmd: MakeHsmd) -> None:
    """A process that has used a version, in every lane, opens nothing with it any more: each lane
    finds at its next use that its handle is void, and then that the version is gone. No device is
    replaced, the other versions go on working. The destruction is on record.
    """
    hsmd = make_hsmd()
    remote = await connect(hsmd)
    old, new = await old_and_new(hsmd, remote)
    await asyncio.gather(*(remote.unwrap(old, CONTEXT) for _ in range(40)))
    code, said = await destroy(hsmd, 1)
    assert (code, json.loads(said)) == (0, {"destroyed": 1})
    kinds: set[type] = set()
    async with asyncio.timeout(60):
        while kinds != {KeyMissing}:
            results = await asyncio.gather(
                *(remote.unwrap(old, CONTEXT) for _ in range(40)), return_exceptions=True
            )
            kinds = {type(result) for result in results}
            assert kinds <= {KeyMissing, Unavailable}
    assert await remote.unwrap(new, CONTEXT) == bytes(32)
    assert [found.version for found in await remote.versions()] == [2]
    with pytest.raises(KeyMissing):
        await remote.wrap(bytes(32), CONTEXT, version=1)
    assert hsmd.status()["devices"][0]["starts"] == 1
    await remote.close()
    assert operators_record(hsmd)[-2:] == [
        ("hsm.destroy", "intent", 1, ""),
        ("hsm.destroy", "outcome", 1, ""),
    ]


async def test_what_is_in_use_or_not_there_is_not_destroyed(make_hsmd: MakeHsmd) -> None:
    """The newest version, the one that the running process wrapped with last, one that is not there
    and one of an unknown key are refused by what is wrong, before any PIN is tried or anything is
    on record.
    """
    hsmd = make_hsmd()
    remote = await connect(hsmd)
    await old_and_new(hsmd, remote)
    before = operators_record(hsmd)
    await remote.wrap(bytes(32), CONTEXT, version=1)
    for version, more, why in (
        (1, (), "wrapped with last"),
        (2, (), "is the newest"),
        (7, (), "holds no version 7, so nothing was destroyed; it holds 1, 2"),
        (1, ("--backend", "pkcs11:token=another;object=o"), "lists no such key"),
    ):
        code, said = await destroy(hsmd, version, *more, pin="file:/nowhere")
        assert (code, why in said) == (1, True), said
    assert operators_record(hsmd) == before
    assert [found.version for found in await remote.versions()] == [1, 2]
    await remote.close()


async def test_a_refused_officers_pin_is_tried_no_more(make_hsmd: MakeHsmd, tmp_path: Path) -> None:
    """A wrong PIN of the officer's costs the token one try, is on record, and is not tried again
    until its file changes; the service's own PIN is not taken for it.
    """
    hsmd = make_hsmd(start=False)
    assert hsmd.run("create", "--next").returncode == 0
    pin = tmp_path / "so-pin"
    pin.write_text("0000\n")
    pin.chmod(0o600)
    code, said = await destroy(hsmd, 1, pin=f"file:{pin}")
    assert (code, "until its file changes" in said) == (1, False), said
    code, said = await destroy(hsmd, 1, pin=f"file:{pin}")
    assert (code, "until its file changes" in said) == (1, True), said
    code, said = await destroy(hsmd, 1, pin=f"file:{hsmd.token.pin_file}")
    assert (code, "security officer" in said) == (1, True), said
    reasons = [entry for entry in operators_record(hsmd) if entry[0] == "hsm.destroy"]
    assert [entry[3] for entry in reasons] == [
        *("", "PIN_REFUSED") * 2,
        *("", "CONFIGURATION"),
    ]
    async with opened(hsmd.token.uri) as backend:
        assert [found.version for found in await backend.versions()] == [1, 2]
    pin.write_bytes(hsmd.token.so_pin_file.read_bytes())
    assert (await destroy(hsmd, 1, pin=f"file:{pin}"))[0] == 0
    assert not list((hsmd.folder / "state").glob("pin-refused-*"))


async def test_destroying_keeps_to_a_refused_pin(
    make_hsmd: MakeHsmd, make_token: MakeToken
) -> None:
    """Where the token refused the service's PIN, `destroy` does not try it either."""
    token = make_token(with_key=True)
    token.pin_file.write_text("wrong-pin-000\n")
    hsmd = make_hsmd(start=False, token=token)
    assert hsmd.run("create", "--next").returncode == 1
    code, said = await destroy(hsmd, 1)
    assert (code, "until its file changes" in said) == (1, True), said


async def test_a_version_of_a_later_backend_is_destroyed_by_name(
    make_hsmd: MakeHsmd, make_token: MakeToken
) -> None:
    """Of several keys behind the process, the one that is named loses the version, and no other."""
    old = make_token(with_key=True)
    async with opened(old.uri) as backend:
        await backend.create_version()
        name = backend.name
    new = make_token(with_key=True)
    hsmd = make_hsmd(start=False, token=new, backends=[new.uri, old.uri])
    pin = f"file:{old.so_pin_file}"
    assert (await destroy(hsmd, 1, "--backend", name, pin=pin))[0] == 0
    for token, versions in ((old, [2]), (new, [1])):
        async with opened(token.uri) as backend:
            assert [found.version for found in await backend.versions()] == versions
