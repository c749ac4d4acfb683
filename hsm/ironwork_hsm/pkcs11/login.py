"""Finds the URI's token and keeps one login at it for as long as anybody in the process needs it.

A login belongs to the process and the token, not to a session; closing the session that logged in
logs everybody out. So each token has one session that does nothing else, shared by counting.
"""

import os
import threading
from dataclasses import dataclass
from typing import Any

from pkcs11.exceptions import (
    ArgumentsBad,
    FunctionFailed,
    FunctionNotSupported,
    SessionReadOnly,
    TokenNotPresent,
    TokenNotRecognised,
)

from ironwork_hsm.interface import ConfigurationError
from ironwork_hsm.pin import read_pin
from ironwork_hsm.pkcs11.module import Module
from ironwork_hsm.uri import Pkcs11Uri


@dataclass(slots=True)
class _Login:
    """One token's login. session never carries an operation."""

    session: Any
    pin_source: str
    users: int


# By module path and slot; read and written under _lock only, which is held during a C_Login too:
# a second one for the same token must wait for the first's answer, not try the PIN again.
_lock = threading.Lock()
_logins: dict[tuple[str, int], _Login] = {}


def find_token(module: Module, uri: Pkcs11Uri) -> Any:
    """python-pkcs11's Token. Raises ConfigurationError unless exactly one matches."""
    matching = []
    for slot in module.library.get_slots(token_present=True):
        try:
            token = slot.get_token()
        except (TokenNotPresent, TokenNotRecognised):
            continue
        if _matches(uri, slot, token):
            matching.append(token)
    if not matching:
        raise ConfigurationError(
            f"No token in {module.path} matches `{uri.name}`; check its label and that the "
            "library reads the configuration you mean."
        )
    if len(matching) > 1:
        raise ConfigurationError(
            f"{len(matching)} tokens in {module.path} match `{uri.name}`; add `serial`."
        )
    return matching[0]


def open_session(token: Any) -> Any:
    """A session without login of its own; read-only, unless the device has no such sessions.

    AWS CloudHSM's library has read-write sessions only; which code it refuses others with is not
    specified, so any that is no device fault is answered by asking for read-write. Raises
    PKCS11Error.
    """
    try:
        return token.open()
    except (ArgumentsBad, FunctionFailed, FunctionNotSupported, SessionReadOnly):
        return token.open(rw=True)


def acquire(module: Module, token: Any, uri: Pkcs11Uri) -> None:
    """Log in, or join the login that there is; pair each with release. Blocks.

    Raises ConfigurationError, PinRefused, Unavailable, PKCS11Error.
    """
    key = (module.path, token.slot.slot_id)
    pin_source = os.path.realpath(uri.pin_source)
    with _lock:
        login = _logins.get(key)
        if login is None:
            _logins[key] = _Login(_logged_in_session(module, token, uri), pin_source, 1)
        elif login.pin_source == pin_source:
            login.users += 1
        else:
            # The PIN in the other file would never be checked.
            raise ConfigurationError(
                f"The token of `{uri.name}` is open in this process with another pin-source; "
                "use one file for both."
            )


def release(module: Module, token: Any) -> None:
    """Leave the login; the last one out logs out. Raises PKCS11Error."""
    key = (module.path, token.slot.slot_id)
    with _lock:
        login = _logins[key]
        login.users -= 1
        if login.users == 0:
            del _logins[key]
            module.logout(login.session.handle)
            login.session.close()


def _logged_in_session(module: Module, token: Any, uri: Pkcs11Uri) -> Any:
    with read_pin(uri.pin_source) as pin:
        session = open_session(token)
        try:
            module.login(session.handle, pin.reveal())
        except BaseException:
            session.close()
            raise
    return session


def _matches(uri: Pkcs11Uri, slot: Any, token: Any) -> bool:
    serial = token.serial.decode("utf-8", errors="replace")
    pairs = (
        (uri.token, token.label),
        (uri.manufacturer, token.manufacturer_id),
        (uri.serial, serial),
        (uri.model, token.model),
        (uri.slot_manufacturer, slot.manufacturer_id),
        (uri.slot_description, slot.slot_description),
        (uri.slot_id, slot.slot_id),
    )
    return all(wanted is None or wanted == present for wanted, present in pairs)
