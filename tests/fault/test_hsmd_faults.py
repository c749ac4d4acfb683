"""The HSM process and a device that misbehaves: typed errors, one replacement, nothing wrong."""

import asyncio
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.hsmd import Hsmd, MakeHsmd
from fixtures.models import through
from fixtures.softhsm import MakeToken
from ironwork_hsm import BackendOptions, KeyMissing, PinRefused, Unavailable
from ironwork_hsm.pkcs11 import softhsm as tool
from ironwork_hsm.remote import RemoteKeyWrapper, open_unix
from ironwork_hsm.remote.status import read_status

CONTEXT = b"workspace\x00key-7"
PATIENT = BackendOptions(deadline_s=30, slow_deadline_s=60)


def stalling_module(place: Path) -> Path:
    """stalling_hsm.c, compiled to look at this folder."""
    source = Path(__file__).parents[1] / "fixtures" / "stalling_hsm.c"
    command = ["cc", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC"]
    command += ["-shared", f'-DSOFTHSM="{tool.find_module()}"', f'-DPLACE="{place}"']
    command += [str(source), "-o", str(place / "stalling.so"), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return place / "stalling.so"


async def connect(hsmd: Hsmd) -> RemoteKeyWrapper:
    return await open_unix(hsmd.uri, allow_missing=False, options=PATIENT)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  other processes have no event to wait for
            await asyncio.sleep(0.02)


async def back(remote: RemoteKeyWrapper) -> None:
    """Wait until the device serves again."""
    async with asyncio.timeout(60):
        while True:
            try:
                await remote.check()
            except (Unavailable, KeyMissing):
                await asyncio.sleep(0.05)
            else:
                return


async def child(hsmd: Hsmd) -> int:
    report = await read_status(hsmd.socket, options=PATIENT)
    return int(report["devices"][0]["pid"])


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL, signal.SIGSEGV])
async def test_a_device_that_hangs_or_crashes_is_replaced(
    make_hsmd: MakeHsmd, number: signal.Signals
) -> None:
    """Its calls become Unavailable (a hang: at the deadline), another process takes over, and the
    connection and everybody else's answers are never held up.
    """
    hsmd = make_hsmd(limits={"deadline_s": 2})
    remote = await connect(hsmd)
    wrapped = await remote.wrap(bytes(32), CONTEXT)
    before = await child(hsmd)
    os.kill(before, number)
    results = await asyncio.gather(
        *(remote.unwrap(wrapped, CONTEXT) for _ in range(20)), return_exceptions=True
    )
    assert all(isinstance(result, Unavailable) or result == bytes(32) for result in results)
    assert any(isinstance(result, Unavailable) for result in results)
    await back(remote)
    assert await remote.unwrap(wrapped, CONTEXT) == bytes(32)
    assert await child(hsmd) != before
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)
    await remote.close()


async def test_a_module_that_hangs_or_crashes_inside_a_call(
    make_hsmd: MakeHsmd, make_token: MakeToken, tmp_path: Path
) -> None:
    """A call that never comes back from the module, and one in which it dies of a segmentation
    fault: Unavailable, and as soon as the device is well again it serves, with every old blob.
    """
    module = stalling_module(tmp_path)
    token = make_token(with_key=True)
    hsmd = make_hsmd(
        token=token,
        backends=[through(token, module)],
        limits={"deadline_s": 2, "open_s": 10},
    )
    remote = await connect(hsmd)
    wrapped = await remote.wrap(bytes(32), CONTEXT)
    for fault in ("crash", "stall"):
        (tmp_path / fault).touch()
        results = await asyncio.gather(
            *(remote.unwrap(wrapped, CONTEXT) for _ in range(8)), return_exceptions=True
        )
        assert all(isinstance(result, Unavailable) for result in results)
        # The process itself never waits for its device.
        report = await read_status(hsmd.socket, options=PATIENT)
        assert report["healthy"] is False
        (tmp_path / fault).unlink(missing_ok=True)
        await back(remote)
        assert await remote.unwrap(wrapped, CONTEXT) == bytes(32)
    await remote.close()
    assert hsmd.end() == 0
    reasons = {entry.event.reason for entry in hsmd.record() if entry.event.success is False}
    assert {"TIMED_OUT", "UNAVAILABLE"} <= reasons


async def test_under_load_no_plaintext_is_wrong(make_hsmd: MakeHsmd) -> None:
    """The device killed again and again under load: each call is right or Unavailable."""
    hsmd = make_hsmd()
    remote = await connect(hsmd)
    data_keys = [os.urandom(32) for _ in range(16)]
    wrapped = [await remote.wrap(key, CONTEXT) for key in data_keys]
    stop = asyncio.Event()
    right = 0

    async def load(number: int) -> None:
        nonlocal right
        while not stop.is_set():
            try:
                assert await remote.unwrap(wrapped[number], CONTEXT) == data_keys[number]
                right += 1
            except Unavailable:
                await asyncio.sleep(0.005)

    tasks = [asyncio.ensure_future(load(number)) for number in range(16)]
    for _ in range(3):
        enough = right + 100
        await until(lambda enough=enough: right >= enough)
        os.kill(await child(hsmd), signal.SIGKILL)
    enough = right + 100
    await until(lambda: right >= enough)
    stop.set()
    await asyncio.gather(*tasks)
    await remote.close()


async def test_a_token_that_goes_and_comes_back(make_hsmd: MakeHsmd, tmp_path: Path) -> None:
    """The token's folder lost under a running device heals without anybody's help, once it is back:
    only a module that starts anew sees it.
    """
    files = tool.create_token(tmp_path / "softhsm", "going", object_label="master")
    hsmd = make_hsmd(token=files, start=False, env=files.env)
    assert hsmd.run("create").returncode == 0
    hsmd.start()
    remote = await connect(hsmd)
    wrapped = await remote.wrap(bytes(32), CONTEXT)
    tokens = tmp_path / "softhsm" / "tokens"
    tokens.rename(tmp_path / "away")
    # SoftHSM answers from what it holds until it looks at its files.
    lost = False
    async with asyncio.timeout(60):
        while not lost:
            try:
                await remote.versions()
                await remote.check()
            except (Unavailable, KeyMissing):
                lost = True
    (tmp_path / "away").rename(tokens)
    await back(remote)
    assert await remote.unwrap(wrapped, CONTEXT) == bytes(32)
    await remote.close()


async def test_a_refused_pin_is_tried_once_over_all_restarts(
    make_hsmd: MakeHsmd, make_token: MakeToken
) -> None:
    """A PIN that the token refused is latched: no restart tries it again, until its file changes;
    then it is tried at once, and service resumes. Nothing of the PIN is kept.
    """
    token = make_token(with_key=True)
    right = token.pin_file.read_text()
    token.pin_file.write_text("wrong-pin-000\n")
    hsmd = make_hsmd(token=token, start=False)
    for _ in range(3):
        hsmd.start()
        with pytest.raises(PinRefused):
            await connect(hsmd)
        assert hsmd.status()["devices"][0]["state"] == "PIN_REFUSED"
        assert hsmd.end() == 0
    tries = [entry.event for entry in hsmd.record() if entry.event.operation == "hsm.open"]
    assert [(event.phase, event.reason) for event in tries] == [
        ("intent", ""),
        ("outcome", "PIN_REFUSED"),
    ]
    for path in (hsmd.folder / "state").iterdir():
        assert "wrong-pin" not in path.read_text()
    hsmd.start()
    token.pin_file.write_text(right)
    async with asyncio.timeout(60):
        while not (await read_status(hsmd.socket, options=PATIENT))["healthy"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    remote = await connect(hsmd)
    await remote.wrap(bytes(32), CONTEXT)
    await remote.close()


async def test_a_full_disk_refuses_and_then_resumes(make_hsmd: MakeHsmd) -> None:
    """While the record cannot grow nothing reaches the device; when it can, service resumes."""
    hsmd = make_hsmd()
    remote = await connect(hsmd)
    wrapped = await remote.wrap(bytes(32), CONTEXT)
    assert hsmd.process is not None
    soft, hard = resource.prlimit(hsmd.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(hsmd.process.pid, resource.RLIMIT_FSIZE, (0, hard))
    for _ in range(3):
        with pytest.raises(Unavailable, match="record"):
            await remote.unwrap(wrapped, CONTEXT)
    assert (await read_status(hsmd.socket, options=PATIENT))["healthy"] is False
    resource.prlimit(hsmd.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
    assert await remote.unwrap(wrapped, CONTEXT) == bytes(32)
    assert (await read_status(hsmd.socket, options=PATIENT))["healthy"] is True
    await remote.close()
    assert hsmd.end() == 0
    # Of the refused ones there is nothing, since nothing was done.
    unwraps = [entry.event for entry in hsmd.record() if entry.event.operation == "hsm.unwrap"]
    assert [(event.phase, event.success) for event in unwraps] == [
        ("intent", None),
        ("outcome", True),
    ]
