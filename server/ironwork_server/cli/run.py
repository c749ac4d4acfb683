"""Running until told to stop: SIGTERM and SIGINT drain; a second one ends at once."""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Iterator

log = logging.getLogger(__name__)


def leave_startup_to_itself() -> None:
    """Take what start-up made out of all later garbage collections. Most of it is the types of
    libraries, which stay: to walk them took 2 s when the interpreter ended, and is a pause
    whenever a full collection runs.
    """
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets; afterwards the signals act as ever."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    watched = (signal.SIGTERM, signal.SIGINT)

    def stopped(number: signal.Signals) -> None:
        log.info("signal.received", extra={"signal": number.name})
        stop.set()
        for other in watched:
            loop.remove_signal_handler(other)

    for number in watched:
        loop.add_signal_handler(number, stopped, number)
    try:
        yield stop
    finally:
        for number in watched:
            loop.remove_signal_handler(number)
