"""How calls and restarts of a PKCS#11 module keep out of each other's way, on a real token."""

import asyncio
import threading

import pytest
from pkcs11 import TokenFlag

from fixtures.hsm_faults import Device
from fixtures.softhsm import opened
from ironwork_hsm import PinRefused, Recoverable, Unavailable
from ironwork_hsm.pkcs11.recovery import Turnstile

CONTEXT = b"context"
SHORT_S = 0.01
LONG_S = 30.0


def test_a_restart_waits_for_calls_and_gives_up_where_one_hangs() -> None:
    """C_Finalize beside a call is undefined: while one is inside there is no restart, and calls go
    on as before.
    """
    turnstile = Turnstile()
    generation = turnstile.enter()
    with pytest.raises(Unavailable, match="hangs"), turnstile.alone(SHORT_S):
        raise AssertionError("entered beside a call")
    assert turnstile.enter() == generation
    turnstile.leave()
    turnstile.leave()
    with turnstile.alone(SHORT_S):
        pass
    assert turnstile.enter() == generation + 1


def test_a_call_waits_for_a_restart_and_finds_another_generation() -> None:
    """A call that comes during a restart waits for its end, at most as long as it may."""
    turnstile = Turnstile()
    found: list[int] = []
    caller = threading.Thread(target=lambda: found.append(turnstile.enter(LONG_S)))
    with turnstile.alone(SHORT_S):
        with pytest.raises(Unavailable, match="started anew"):
            turnstile.enter(SHORT_S)
        with pytest.raises(Unavailable, match="already"), turnstile.alone(SHORT_S):
            raise AssertionError("two restarts at once")
        caller.start()
    caller.join(LONG_S)
    assert found == [1]


def test_a_restart_that_fails_is_a_generation_too() -> None:
    """What was open before it is lost, however it ended."""
    turnstile = Turnstile()
    with pytest.raises(ZeroDivisionError), turnstile.alone():
        raise ZeroDivisionError
    assert turnstile.enter() == 1


async def test_every_user_of_a_module_goes_on_after_a_restart(device: Device) -> None:
    """A restart for one wrapper ends the sessions of another, which notices nothing: each logs in
    and searches again, and no handle of before is used.
    """
    async with opened(device.uri) as one, opened(device.uri, lanes=2) as two:
        assert isinstance(one, Recoverable)
        wrapped = await two.wrap(b"k" * 32, CONTEXT)
        for _ in range(3):
            await one.recover()
            results = await asyncio.gather(*(two.unwrap(wrapped, CONTEXT) for _ in range(20)))
            assert all(result == b"k" * 32 for result in results)
        assert device.get("initialized") == 4
        # One login for both in each generation.
        assert device.get("logins") == 4


async def test_nobody_is_logged_out_by_a_lane_of_before(device: Device) -> None:
    """A wrapper that closes after a restart leaves the login that others have now alone."""
    async with opened(device.uri) as stays:
        async with opened(device.uri) as goes:
            wrapped = await stays.wrap(b"k" * 32, CONTEXT)
            await stays.recover()
            await goes.check()
            await stays.recover()
        assert await stays.unwrap(wrapped, CONTEXT) == b"k" * 32


@pytest.mark.parametrize("flag", [TokenFlag.USER_PIN_LOCKED, TokenFlag.USER_PIN_FINAL_TRY])
async def test_a_start_spends_no_last_try(device: Device, flag: TokenFlag) -> None:
    """A service that is started again and again never locks a PIN."""
    device.set(token_flags=int(flag))
    for _ in range(3):
        with pytest.raises(PinRefused):
            async with opened(device.uri):
                raise AssertionError("it opened")
    assert device.get("logins") == 0


@pytest.mark.parametrize("code", [0x05, 0x06, 0x80000001])
async def test_a_login_that_fails_unclearly_is_not_repeated(device: Device, code: int) -> None:
    """A code that a device may mean a wrong PIN by is asked for once, whoever opens the token."""
    device.set(login=code)
    for _ in range(3):
        with pytest.raises(PinRefused):
            async with opened(device.uri):
                raise AssertionError("it opened")
    assert device.get("logins") == 1


async def test_a_refused_pin_is_remembered_by_its_file(device: Device) -> None:
    """The same file is not tried twice, whoever opens the token; one that was written again is."""
    right = device.token.pin_file.read_text()
    device.token.pin_file.write_text("wrong-pin\n")
    for _ in range(3):
        with pytest.raises(PinRefused):
            async with opened(device.uri):
                raise AssertionError("it opened")
    assert device.get("logins") == 1
    device.token.pin_file.write_text(right)
    async with opened(device.uri) as backend:
        await backend.check()
    assert device.get("refused") == 1


@pytest.mark.parametrize("fault", [{"wrong": 1}, {"encrypt": 0x30}, {"decrypt": 0x30}])
async def test_a_device_that_answers_wrongly_fails_its_check(
    device: Device, fault: dict[str, int]
) -> None:
    """A round trip compares what comes back, so an answer of OK alone is not believed; a device
    that is sound again passes the next.
    """
    async with opened(device.uri) as backend:
        device.set(**fault)
        with pytest.raises(Unavailable):
            await backend.check()
        device.set(**dict.fromkeys(fault, 0))
        await backend.check()
