"""What callers of the PKCS#11 backend see of a device that stalls or fails, on a real token."""

import asyncio
import threading
from typing import Any

import pytest

from fixtures.softhsm import MakeToken, opened
from ironwork_hsm import BackendOptions, Busy, Unavailable
from ironwork_hsm.pkcs11 import backend as module
from ironwork_hsm.pkcs11 import rung
from ironwork_hsm.pkcs11.errors import DeviceAnswer
from ironwork_hsm.pkcs11.gcm import CallerIv

LONG = 30.0
CONTEXT = b"context"


class SlowDecrypt:
    """Stands in for the device's decryption: real, but it waits until it is released."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.results: list[bytearray] = []
        self._real = rung.open_blob

    def __call__(self, *args: Any, **kwargs: Any) -> bytearray:
        self.entered.set()
        if not self.release.wait(LONG):
            raise AssertionError("nobody released the device")
        self.results.append(self._real(*args, **kwargs))
        return self.results[-1]


class Wiped:
    """The backend's wipe, and an event that says when it has been called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = threading.Event()
        self._real = module.wipe
        monkeypatch.setattr(module, "wipe", self)

    def __call__(self, buffer: bytearray) -> None:
        self._real(buffer)
        self.done.set()


async def test_a_stalled_device_is_unavailable_in_time(
    make_token: MakeToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that hangs costs its caller the deadline and no more; its late plaintext is wiped."""
    slow = SlowDecrypt()
    async with opened(make_token(with_key=True).uri, lanes=1) as backend:
        wrapped = await backend.wrap(b"k" * 32, CONTEXT)
        with monkeypatch.context() as patch:
            wiped = Wiped(patch)
            patch.setattr(rung, "open_blob", slow)
            patch.setattr(backend, "_options", BackendOptions(deadline_s=0.01))
            with pytest.raises(Unavailable, match="did not answer"):
                await backend.unwrap(wrapped, CONTEXT)
            slow.release.set()
            assert await asyncio.to_thread(wiped.done.wait, LONG)
            assert slow.results == [bytearray(32)]
        assert await backend.unwrap(wrapped, CONTEXT) == b"k" * 32


async def test_a_cancelled_unwrap_leaves_no_plaintext(
    make_token: MakeToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decrypted for a caller that has gone is wiped."""
    slow = SlowDecrypt()
    async with opened(make_token(with_key=True).uri) as backend:
        wrapped = await backend.wrap(b"k" * 32, CONTEXT)
        wiped = Wiped(monkeypatch)
        monkeypatch.setattr(rung, "open_blob", slow)
        call = asyncio.create_task(backend.unwrap(wrapped, CONTEXT))
        await asyncio.to_thread(slow.entered.wait, LONG)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        slow.release.set()
        assert await asyncio.to_thread(wiped.done.wait, LONG)
        assert slow.results == [bytearray(32)]


async def test_a_full_queue_is_busy_behind_the_interface(
    make_token: MakeToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls beyond lanes and queue are refused at once, and the others are served later."""
    slow = SlowDecrypt()
    async with opened(make_token(with_key=True).uri, lanes=1, queue=2) as backend:
        wrapped = await backend.wrap(b"k" * 32, CONTEXT)
        monkeypatch.setattr(rung, "open_blob", slow)
        inside = asyncio.create_task(backend.unwrap(wrapped, CONTEXT))
        await asyncio.to_thread(slow.entered.wait, LONG)
        waiting = [asyncio.create_task(backend.unwrap(wrapped, CONTEXT)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="busy"):
            await backend.unwrap(wrapped, CONTEXT)
        slow.release.set()
        assert await asyncio.gather(inside, *waiting) == [b"k" * 32] * 3


@pytest.mark.parametrize("fail", [False, True])
async def test_wrap_wipes_its_copy_of_the_data_key(
    make_token: MakeToken, monkeypatch: pytest.MonkeyPatch, fail: bool
) -> None:
    """The copy that wrap makes is wiped when it is done, whether it worked or not."""
    copies: list[bytearray] = []
    real = CallerIv.wrap

    def wrap(self: CallerIv, key: Any, data_key: bytearray, bound: bytes) -> bytes:
        copies.append(data_key)
        assert data_key == b"k" * 32
        if fail:
            raise DeviceAnswer(0x30)
        return real(self, key, data_key, bound)

    async with opened(make_token(with_key=True).uri) as backend:
        monkeypatch.setattr(CallerIv, "wrap", wrap)
        if fail:
            with pytest.raises(Unavailable, match="0x030"):
                await backend.wrap(b"k" * 32, CONTEXT)
        else:
            await backend.wrap(b"k" * 32, CONTEXT)
        assert copies == [bytearray(32)]


async def test_check_notices_a_device_that_does_not_decrypt(
    make_token: MakeToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed round trip is Unavailable."""
    async with opened(make_token(with_key=True).uri) as backend:
        monkeypatch.setattr(rung, "round_trip", lambda *_: rung.Trial.FAILS)
        with pytest.raises(Unavailable, match="has just encrypted"):
            await backend.check()


async def test_contexts_are_bounded(make_token: MakeToken) -> None:
    """A context over 64 KiB is refused on both sides."""
    async with opened(make_token(with_key=True).uri) as backend:
        wrapped = await backend.wrap(bytes(32), bytes(65536))
        assert await backend.unwrap(wrapped, bytes(65536)) == bytes(32)
        with pytest.raises(ValueError, match="65536"):
            await backend.wrap(bytes(32), bytes(65537))
        with pytest.raises(ValueError, match="65536"):
            await backend.unwrap(wrapped, bytes(65537))
