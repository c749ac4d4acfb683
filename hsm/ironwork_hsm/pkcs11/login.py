"""Finds the URI's token and keeps one login at it for as long as anybody in the process needs it.

A login belongs to the process and the token, not to a session; closing the session that logged in
logs everybody out. So each token has one session that does nothing else, shared by counting.

No PIN is tried into a lock-out. One that the token refused is not tried again until its file
changes (that it was refused is kept in memory; the HSM process keeps it on disk), and none is tried
where the token says that one try is left, or that the PIN is locked.
"""

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pkcs11 import TokenFlag
from pkcs11.exceptions import (
    ArgumentsBad,
    FunctionFailed,
    FunctionNotSupported,
    SessionReadOnly,
    TokenNotPresent,
    TokenNotRecognised,
)

from ironwork_hsm.interface import ConfigurationError, PinRefused
from ironwork_hsm.pin import FileIdentity, read_pin
from ironwork_hsm.uri import Pkcs11Uri

if TYPE_CHECKING:
    from ironwork_hsm.pkcs11.module import Module


class LoginKey(NamedTuple):
    """One token's login, in one generation of its module (recovery.Turnstile)."""

    module_path: str
    slot: int
    generation: int


@dataclass(slots=True)
class _Login:
    """session never carries an operation."""

    session: Any
    pin_source: str
    users: int


# Both are written under _lock only, which is held during a C_Login too: a second one for
# the same token must wait for the first's answer, not try the PIN again.
_lock = threading.Lock()
_logins: dict[LoginKey, _Login] = {}
# By module path and PIN file: the content that a token refused.
_refused: dict[tuple[str, str], FileIdentity] = {}


def find_token(module: "Module", uri: Pkcs11Uri) -> Any:
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


def acquire(module: "Module", token: Any, uri: Pkcs11Uri, generation: int) -> LoginKey:
    """Log in, or join the login that there is; pair each with release. Blocks.

    Raises ConfigurationError, PinRefused, Unavailable, PKCS11Error.
    """
    key = LoginKey(module.path, token.slot.slot_id, generation)
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
    return key


def release(module: "Module", key: LoginKey, generation: int) -> None:
    """Leave the login; the last one out logs out, unless the login ended with an earlier
    generation of the module. Raises PKCS11Error.
    """
    with _lock:
        login = _logins[key]
        login.users -= 1
        if login.users == 0:
            del _logins[key]
            if key.generation == generation:
                module.logout(login.session.handle)
                login.session.close()


def check_refused(module: "Module", uri: Pkcs11Uri) -> None:
    """Raise PinRefused where the PIN in the file, as it is now, is one that was refused."""
    refused = _refused.get(_pin_place(module, uri))
    if refused is not None and refused == FileIdentity.of(uri.pin_source):
        raise PinRefused(
            "The token refused the PIN, which is not tried again until its file changes."
        )


def _pin_place(module: "Module", uri: Pkcs11Uri) -> tuple[str, str]:
    return module.path, os.path.realpath(uri.pin_source)


def _logged_in_session(module: "Module", token: Any, uri: Pkcs11Uri) -> Any:
    check_refused(module, uri)
    _check_tries(token)
    # Before it is read: a file that changes meanwhile is not the refused one.
    tried = FileIdentity.of(uri.pin_source)
    with read_pin(uri.pin_source) as pin:
        session = open_session(token)
        try:
            module.login(session.handle, pin.reveal())
        except BaseException as error:
            session.close()
            if isinstance(error, PinRefused):
                _refused[_pin_place(module, uri)] = tried
            raise
    _refused.pop(_pin_place(module, uri), None)
    return session


def _check_tries(token: Any) -> None:
    """Raise PinRefused where a wrong PIN would lock the token, or it is locked (CK_TOKEN_INFO)."""
    if token.flags & TokenFlag.USER_PIN_LOCKED:
        raise PinRefused("The PIN is locked; the token's security officer has to unlock it.")
    if token.flags & TokenFlag.USER_PIN_FINAL_TRY:
        raise PinRefused(
            "The token has one try of the PIN left, which is not spent here: log in once with the "
            "device's own tool and the right PIN, and write that PIN into its file."
        )


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
