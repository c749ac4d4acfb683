"""What lets a lane outlive faults of its device, as far as one process can.

A session that was lost is opened anew by the lane that had it. What else goes wrong (a login that
is gone, a token that was away, a PIN that was changed) a module forgets only by C_Finalize and
C_Initialize (PKCS#11 2.40 section 5.4): Module.restart. That ends every session of the process, so
it needs the module to itself (Turnstile), and each lane finds out by the generation it entered.

A call that hangs inside the module cannot be ended, and C_Finalize beside it is undefined: then
there is no restart until it returns. The HSM process kills the child that such a module is in.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pkcs11.exceptions import PKCS11Error

from ironwork_hsm.interface import Unavailable
from ironwork_hsm.pkcs11 import login
from ironwork_hsm.uri import Pkcs11Uri

if TYPE_CHECKING:
    from ironwork_hsm.pkcs11.module import Module

# Seconds that a call waits for a restart to end, and a restart for the calls inside.
CALL_WAIT_S = 3.0
RESTART_WAIT_S = 1.0


class Seat:
    """One lane's place at its token: a session without login of its own. For its thread alone."""

    def __init__(self, module: "Module", uri: Pkcs11Uri) -> None:
        self.module = module
        self.token: Any = None
        self.session: Any = None
        self._uri = uri
        self._login: login.LoginKey | None = None
        self._spoiled = False

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Enter and leave; see enter."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> bool:
        """Enter the module, with a session that is fit for use; pair it with leave.

        True where the session is another than the last time: handles from that one are void.
        Raises ConfigurationError, PinRefused, Unavailable, PKCS11Error; then nothing was entered.
        """
        generation = self.module.turnstile.enter()
        try:
            return self._make_ready(generation)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Leave the module."""
        self.module.turnstile.leave()

    def spoil(self) -> None:
        """The device failed at this session: the next enter opens another."""
        self._spoiled = True

    def close(self) -> None:
        """Give up session and login. Raises Unavailable, PKCS11Error."""
        with self.module.turnstile.call() as generation:
            self._give_up(generation)

    def _make_ready(self, generation: int) -> bool:
        if self._login is not None and self._login.generation != generation:
            self._give_up(generation)
        if self._login is None:
            token = login.find_token(self.module, self._uri)
            self._login = login.acquire(self.module, token, self._uri, generation)
            self.token = token
        if self.session is not None and not self._spoiled:
            return False
        self._close_session()
        self.session = login.open_session(self.token)
        self._spoiled = False
        return True

    def _give_up(self, generation: int) -> None:
        key, self._login = self._login, None
        if key is None:
            return
        if key.generation == generation:
            self._close_session()
        # What another generation opened ended with it; its handle may be a new session's by now.
        self.session = None
        login.release(self.module, key, generation)

    def _close_session(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            with contextlib.suppress(PKCS11Error):
                session.close()


class Turnstile:
    """Lets any number of calls into a module, or one restart of it, and never both. Generations
    count the restarts.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        # All are written by whoever holds _changed.
        self._inside = 0
        self._restarting = False
        self._generation = 0

    def enter(self, wait_s: float = CALL_WAIT_S) -> int:
        """The generation; pair it with leave. Raises Unavailable where a restart lasts too long."""
        with self._changed:
            if self._restarting and not self._changed.wait_for(self._is_open, wait_s):
                raise Unavailable("The PKCS#11 module is being started anew.")
            self._inside += 1
            return self._generation

    def leave(self) -> None:
        """A call has come out."""
        with self._changed:
            self._inside -= 1
            if self._inside == 0:
                self._changed.notify_all()

    @contextlib.contextmanager
    def call(self) -> Iterator[int]:
        """Enter and leave."""
        generation = self.enter()
        try:
            yield generation
        finally:
            self.leave()

    @contextlib.contextmanager
    def alone(self, wait_s: float = RESTART_WAIT_S) -> Iterator[None]:
        """Keep calls out; another generation begins at the end. Raises Unavailable where a call is
        inside that does not come out, or another restart is under way.
        """
        with self._changed:
            if self._restarting:
                raise Unavailable("The PKCS#11 module is being started anew already.")
            self._restarting = True
            if not self._changed.wait_for(self._is_empty, wait_s):
                self._open()
                raise Unavailable(
                    "A call hangs in the PKCS#11 module, which cannot be started anew before it"
                    " has returned."
                )
        try:
            yield
        finally:
            with self._changed:
                self._generation += 1
                self._open()

    def _open(self) -> None:
        self._restarting = False
        self._changed.notify_all()

    def _is_open(self) -> bool:
        return not self._restarting

    def _is_empty(self) -> bool:
        return self._inside == 0
