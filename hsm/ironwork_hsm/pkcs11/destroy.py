"""Destroying one version of the master key, under the PIN of the token's security officer.

PKCS#11 has no right of its own to destroy: whoever is logged in as the user may (C_DestroyObject,
2.40 section 5.7), the security officer does not even see private objects, and CKA_DESTROYABLE
false, which is set for good when a key is made, forbids it to everybody (tried on SoftHSM 2.6.1).
So the token checks the officer's PIN first, by a login of its own, and then the user destroys. The
token enforces that the PIN is the officer's; that it is asked for is enforced here.
"""

import struct
from pathlib import Path
from typing import Any

from pkcs11 import Attribute, ObjectClass

from ironwork_hsm.interface import ConfigurationError, KeyMissing, Unavailable
from ironwork_hsm.lanes import Lanes, keep
from ironwork_hsm.pin import read_pin
from ironwork_hsm.pkcs11 import login
from ironwork_hsm.pkcs11.errors import translate
from ironwork_hsm.pkcs11.module import CKU_SO, Module, load_module
from ironwork_hsm.pkcs11.recovery import Seat
from ironwork_hsm.uri import Pkcs11Uri


async def destroy(uri: Pkcs11Uri, version: int, admin_pin: Path, *, deadline_s: float) -> None:
    """Destroy the version in a thread of its own. admin_pin: the file with the officer's PIN.

    No session of this process may be open at the token. Raises ConfigurationError, PinRefused,
    KeyMissing, Unavailable.
    """
    lane: Lanes[None] = Lanes(
        setup=lambda: None, teardown=keep, translate=translate, count=1, capacity=1
    )
    await lane.start(deadline_s=deadline_s)
    try:
        await lane.run(lambda _: _destroy(uri, version, admin_pin), deadline_s=deadline_s)
    finally:
        await lane.close(deadline_s=deadline_s)


def _destroy(uri: Pkcs11Uri, version: int, admin_pin: Path) -> None:
    if admin_pin.resolve() == uri.pin_source.resolve():
        raise ConfigurationError(
            "The administrator's PIN file is the one that the service uses: destroying takes the "
            "PIN of the token's security officer."
        )
    module = load_module(uri.module_path, uri.init_args)
    with module.turnstile.call():
        _check_officer(module, login.find_token(module, uri), admin_pin)
    seat = Seat(module, uri)
    try:
        with seat.open():
            session = seat.token.open(rw=True)
            try:
                _destroy_named(session, uri.object, version)
            finally:
                session.close()
    finally:
        seat.close()


def _destroy_named(session: Any, label: str, version: int) -> None:
    named = {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.LABEL: label,
        Attribute.ID: struct.pack(">I", version),
    }
    keys = list(session.get_objects(named))
    if not keys:
        raise KeyMissing(f"The token holds no version {version} of `{label}`.")
    for key in keys:
        key.destroy()
    if list(session.get_objects(named)):
        raise Unavailable(f"The token still shows version {version}; try again.")


def _check_officer(module: Module, token: Any, admin_pin: Path) -> None:
    """One try. Raises PinRefused."""
    with read_pin(admin_pin) as pin:
        session = token.open(rw=True)
        try:
            module.login(session.handle, pin.reveal(), CKU_SO)
            module.logout(session.handle)
        finally:
            session.close()
