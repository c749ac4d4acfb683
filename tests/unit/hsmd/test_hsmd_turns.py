"""Turns at a device: who is served next, who has to go, and when a process is silent."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from ironwork_audit import INTENT, Event
from ironwork_hsm import (
    Busy,
    ConfigurationError,
    HsmError,
    KeyMissing,
    PinRefused,
    Unavailable,
)
from ironwork_hsm.daemon.device import Device, Limits, State
from ironwork_hsm.daemon.record import Intent
from ironwork_hsm.daemon.turns import Asker, Turns
from ironwork_hsm.remote import wire
from ironwork_hsm.remote.codec import LENGTH
from ironwork_hsm.remote.link import TimedOut
from ironwork_hsm.remote.wire import KeyInfo


def done() -> wire.Frame:
    return wire.parse_body(memoryview(wire.done(1))[LENGTH.size :])


class Clock:
    """Stands where the loop does: time passes when told."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[tuple[float, asyncio.Handle, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, due: float, callback: Callable[[], None]) -> asyncio.Handle:
        handle = asyncio.Handle(lambda: None, (), asyncio.get_running_loop())
        self._timers.append((due, handle, callback))
        return handle

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.Handle:
        return self.call_at(self.now + delay, callback)

    def go_on(self, seconds: float) -> None:
        end = self.now + seconds
        while ripe := [timer for timer in self._timers if timer[0] <= end]:
            first = min(ripe, key=lambda timer: timer[0])
            self._timers.remove(first)
            self.now = max(self.now, first[0])
            if not first[1].cancelled():
                first[2]()
        self.now = end


class Process:
    """Stands where a link does: keeps what it is asked, and answers when told."""

    is_live = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._heard: list[Callable[[Any], None]] = []

    def request(
        self, build: Callable[[int], bytes], answered: Callable[[Any], None], *, deadline_s: float
    ) -> None:
        self.asked.append(build(1).decode())
        self._heard.append(answered)

    def answer(self, answer: Any = None) -> None:
        self._heard.pop(0)(done() if answer is None else answer)


class Bench:
    """Turns with a window of 2 and room for 4, at a process."""

    def __init__(self, *, alive: bool = True) -> None:
        self.silences = 0
        self.clock, self.process = Clock(), Process()
        self.heard: dict[str, Any] = {}
        self.turns = Turns(
            deadline_s=3, window=2, capacity=4, on_silent=self._silent, on_answer=lambda *_: alive
        )
        self.turns._loop = self.clock  # type: ignore[assignment]
        self.turns.use(self.process)  # type: ignore[arg-type]

    def _silent(self, _: HsmError) -> None:
        self.silences += 1

    def ask(self, name: str, uid: int, connection: int) -> None:
        def answered(answer: Any) -> None:
            self.heard[name] = answer

        self.turns.ask(Asker(uid, connection), lambda _: name.encode(), answered)


async def test_users_and_their_connections_have_turns() -> None:
    """Whoever asks for little is served after one call of each other user, however many wait."""
    bench = Bench()
    for name in ("a1", "a2", "a3", "a4"):
        bench.ask(name, 1, 1)
    bench.ask("b1", 1, 2)
    bench.ask("c1", 2, 3)
    assert bench.process.asked == ["a1", "a2"]
    for _ in range(4):
        bench.process.answer()
    assert bench.process.asked[2:] == ["a3", "c1", "b1", "a4"]


async def test_a_full_queue_has_room_for_who_has_least() -> None:
    """Whoever has the most in it loses its newest call; nobody else is refused for it."""
    bench = Bench()
    for number in range(6):
        bench.ask(f"a{number}", 1, 1)
    with pytest.raises(Busy):
        bench.ask("a6", 1, 1)
    bench.ask("b0", 1, 2)
    bench.ask("c0", 2, 3)
    assert [name for name, answer in bench.heard.items() if isinstance(answer, Busy)] == [
        "a5",
        "a4",
    ]
    for _ in range(6):
        bench.process.answer()
    assert set(bench.process.asked) == {"a0", "a1", "a2", "a3", "b0", "c0"}


async def test_a_late_answer_among_others_is_no_silence() -> None:
    """A call may run into its deadline, in the queue (Busy) or in the process (timed out), while
    the process answers others: it is not silent.
    """
    bench = Bench()
    for name in ("a", "b", "c", "d"):
        bench.ask(name, 1, 1)
    bench.clock.go_on(2)
    bench.process.answer()
    bench.clock.go_on(1)
    assert isinstance(bench.heard["b"], TimedOut)
    assert isinstance(bench.heard["c"], TimedOut)
    assert isinstance(bench.heard["d"], Busy)
    bench.clock.go_on(1.9)
    bench.process.answer()
    bench.process.answer()
    assert isinstance(bench.heard["b"], TimedOut)
    bench.clock.go_on(100)
    assert bench.silences == 0
    bench.ask("e", 1, 1)
    assert bench.process.asked == ["a", "b", "c", "e"]


async def test_a_process_that_answers_nothing_is_silent() -> None:
    """Nothing for a deadline, counted from its last answer, while something is under way in it."""
    bench = Bench()
    bench.ask("a", 1, 1)
    bench.ask("b", 1, 1)
    bench.clock.go_on(2)
    bench.process.answer()
    bench.clock.go_on(2.9)
    assert bench.silences == 0
    bench.clock.go_on(0.2)
    assert bench.silences == 1


async def test_answers_that_the_device_did_not_make_are_silence() -> None:
    """A child that gives calls up by itself does not show that its module lives."""
    bench = Bench(alive=False)
    bench.ask("a", 1, 1)
    bench.ask("b", 1, 1)
    bench.clock.go_on(2.9)
    bench.process.answer()
    bench.clock.go_on(0.2)
    assert bench.silences == 1


async def test_a_process_that_is_given_up_leaves_nobody_waiting() -> None:
    """What waits hears Unavailable, and the next process is given new calls only."""
    bench = Bench()
    for name in ("a", "b", "c"):
        bench.ask(name, 1, 1)
    bench.turns.stop()
    assert isinstance(bench.heard["c"], Unavailable)
    with pytest.raises(Unavailable):
        bench.ask("d", 1, 1)
    old, bench.process = bench.process, Process()
    bench.turns.use(bench.process)  # type: ignore[arg-type]
    old.answer(Unavailable("gone"))
    for name in ("e", "f", "g"):
        bench.ask(name, 1, 1)
    assert bench.process.asked == ["e", "f"]


class Watch:
    """Records nothing; the child is gone once its round trip was answered."""

    async def opening(self, device: Device) -> Intent:
        now = datetime.now(UTC)
        event = Event(phase=INTENT, operation="hsm.open", correlation_id="c", time=now)
        return Intent(event, 0)

    async def opened(self, intent: Intent, error: HsmError | None) -> None:
        pass

    async def probe(self, device: Device) -> HsmError | None:
        device.replace(Unavailable("The device's process ended."))
        return None


@pytest.mark.parametrize(
    ("error", "starts"),
    [
        (Unavailable("The HSM answered with a fault. (GeneralError)"), 3),
        (KeyMissing("no key"), 1),
        (ConfigurationError("no module"), 1),
        (PinRefused("wrong"), 1),
    ],
)
async def test_how_a_device_stands_is_told_after_what_may_be_passing(
    monkeypatch: pytest.MonkeyPatch, error: HsmError, starts: int
) -> None:
    """A process that starts waits for a device that is Unavailable, three starts long; what no
    repeat can mend is told at once.
    """
    device = new_device()
    told: list[bool] = []

    async def start_child() -> wire.Info:
        told.append(device.settled.is_set())
        raise error

    monkeypatch.setattr(device, "_start_child", start_child)
    running = asyncio.ensure_future(device.run())
    await asyncio.wait_for(device.settled.wait(), 30)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert told == [False] * starts


def new_device() -> Device:
    return Device(
        "wrapper", "pkcs11:", "name", Limits(3, 6, 4, 8), latch=None, watch=Watch(),
        trial=lambda _: None,
    )  # fmt: skip


async def test_a_child_that_dies_after_its_round_trip_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device is ready only with a child that is still there when it has been tried."""
    device = new_device()

    async def start_child() -> wire.Info:
        device._link = Process()  # type: ignore[assignment]
        return wire.Info((KeyInfo("name", 1, "aes-256-gcm"),), None, None)

    monkeypatch.setattr(device, "_start_child", start_child)
    with pytest.raises(Unavailable, match="as soon as"):
        await device._start()
    assert device.state is State.STARTING
    with pytest.raises(Unavailable):
        device.send(Asker(1, 1), wire.check, lambda _: None)
