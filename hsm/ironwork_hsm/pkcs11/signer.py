"""The PKCS#11 Signer: the audit log's key, in a token of its own, on lanes like the master key's.

The token, its login and its PIN are apart from the master key's; the module (one library in one
process) may be the same. Nothing is signed but what a caller asks for: opening reads the public
key and makes no signature, so that the device's log holds no operation that ours does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pkcs11 import exceptions as p11

from ironwork_hsm.interface import (
    MAX_MESSAGE_BYTES,
    BackendOptions,
    ConfigurationError,
    HsmError,
    KeyMissing,
    SignatureAlgorithm,
)
from ironwork_hsm.lanes import Lanes
from ironwork_hsm.pkcs11.errors import translate
from ironwork_hsm.pkcs11.module import Module, load_module
from ironwork_hsm.pkcs11.recovery import Seat
from ironwork_hsm.pkcs11.restarter import Restarter
from ironwork_hsm.pkcs11.signing_keys import (
    SigningKey,
    find_signing_key,
    generate_signing_key,
    offered_algorithm,
    sign_once,
)
from ironwork_hsm.uri import Pkcs11Uri, parse_pkcs11_uri

Result = TypeVar("Result")


@dataclass(slots=True)
class _Lane:
    """What one thread owns: a seat at the token, and the key's handle in its session (None where
    the token had no such key).
    """

    seat: Seat
    label: str
    key: SigningKey | None = None

    def call(self, function: "Callable[[_Lane], Result]") -> Result:
        """function(self), inside the module. After a fault of the device the next call has another
        session; a signature is never asked for twice.
        """
        if self.seat.enter():
            self.key = None
        try:
            if self.key is None:
                self.key = find_signing_key(self.seat.session, self.label)
            return function(self)
        except p11.PKCS11Error:
            # The session or the handle may be dead.
            self.seat.spoil()
            raise
        finally:
            self.seat.leave()

    def sign(self, message: bytes) -> bytes:
        """Raises KeyMissing, Unavailable, PKCS11Error."""
        if self.key is None:
            raise KeyMissing(f"The token holds no signing key `{self.label}`.")
        return sign_once(self.key, message)


class Pkcs11Signer:
    """Implements Signer and Recoverable. Made by open_signer and create_signing_key."""

    def __init__(self, uri: Pkcs11Uri, options: BackendOptions) -> None:
        self._uri = uri
        self._options = options
        # Set by the first lane; None until the module is loaded.
        self._module: Module | None = None
        self._algorithm: SignatureAlgorithm | None = None
        self._public_key: bytes | None = None
        self._lanes: Lanes[_Lane] = Lanes(
            setup=self._open_lane,
            teardown=lambda lane: lane.seat.close(),
            translate=_translate,
            count=options.lanes,
            capacity=options.queue,
        )
        self._restarter = Restarter(uri, _translate)

    @property
    def name(self) -> str:
        return self._uri.name

    @property
    def algorithm(self) -> SignatureAlgorithm:
        """Raises KeyMissing while there is no key (opened with allow_missing)."""
        if self._algorithm is None:
            raise self._no_key()
        return self._algorithm

    @property
    def public_key(self) -> bytes:
        """Raises KeyMissing while there is no key (opened with allow_missing)."""
        if self._public_key is None:
            raise self._no_key()
        return self._public_key

    async def start(self) -> None:
        """Open the lanes and read the public key. Closes again what it opened where it fails."""
        try:
            await self._restarter.start(deadline_s=self._options.slow_deadline_s)
            await self._lanes.start(deadline_s=self._options.slow_deadline_s)
            key = await self._lanes.run(
                lambda lane: lane.call(_key), deadline_s=self._options.slow_deadline_s
            )
        except BaseException:
            await self.close()
            raise
        if key is not None:
            self._algorithm, self._public_key = key.algorithm, key.public_bytes

    async def create(self, algorithm: SignatureAlgorithm | None) -> None:
        """Generate the key; for one that was not there at start. Raises ConfigurationError where
        there is one, Unavailable.
        """
        await self._lanes.run(
            lambda lane: lane.call(lambda lane: _generate(lane, algorithm)),
            deadline_s=self._options.slow_deadline_s,
        )

    async def sign(self, message: bytes, *, reference: str = "") -> bytes:
        """See Signer.sign. Raises ValueError for a message over 64 KiB."""
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message to sign has at most {MAX_MESSAGE_BYTES} bytes")
        if self._public_key is None:
            raise self._no_key()
        if self._module is not None:
            self._module.check_process()
        return await self._lanes.run(
            lambda lane: lane.call(lambda lane: lane.sign(message)),
            deadline_s=self._options.deadline_s,
        )

    async def recover(self) -> None:
        """See Recoverable.recover. Every other user of the module in this process goes on, with
        another session. Raises KeyMissing where the token is back without the key, and
        ConfigurationError where it holds another one.
        """
        await self._restarter.restart(self._module, deadline_s=self._options.deadline_s)
        key = await self._lanes.run(
            lambda lane: lane.call(_key), deadline_s=self._options.deadline_s
        )
        if key is None:
            raise self._no_key()
        if key.public_bytes != self._public_key:
            raise ConfigurationError(
                f"The signing key `{self._uri.name}` is another than before; a log's key is its"
                " identity."
            )

    async def close(self) -> None:
        """End the lanes and leave the token. A second call does nothing. Never raises HsmError."""
        if self._module is not None and self._module.is_foreign():
            return  # after a fork: the lanes and the login are the parent's
        await self._lanes.close(deadline_s=self._options.deadline_s)
        await self._restarter.close(deadline_s=self._options.deadline_s)

    def _open_lane(self) -> _Lane:
        """In the lane's thread; the first one initialises the module and logs in."""
        module = self._module = load_module(self._uri.module_path, self._uri.init_args)
        lane = _Lane(Seat(module, self._uri), self._uri.object)
        try:
            lane.call(_key)
        except BaseException:
            lane.seat.close()
            raise
        return lane

    def _no_key(self) -> KeyMissing:
        return KeyMissing(f"The token holds no signing key `{self._uri.name}`; create it first.")


async def open_pkcs11_signer(
    uri: str, *, allow_missing: bool, options: BackendOptions
) -> Pkcs11Signer:
    """Open the signing key at uri; see ironwork_hsm.signers.open_signer."""
    signer = Pkcs11Signer(parse_pkcs11_uri(uri), options)
    await signer.start()
    if not allow_missing:
        try:
            _ = signer.public_key
        except KeyMissing:
            await signer.close()
            raise
    return signer


async def create_pkcs11_signing_key(
    uri: str, *, algorithm: SignatureAlgorithm | None, options: BackendOptions
) -> Pkcs11Signer:
    """Generate the signing key that uri names; see ironwork_hsm.signers.create_signing_key."""
    maker = await open_pkcs11_signer(uri, allow_missing=True, options=options)
    try:
        await maker.create(algorithm)
    finally:
        await maker.close()
    # Opened anew, so that every lane has found the key and what is given back was read as always.
    return await open_pkcs11_signer(uri, allow_missing=False, options=options)


def _generate(lane: _Lane, algorithm: SignatureAlgorithm | None) -> None:
    # The lanes' own sessions are read-only; this one lives for one key.
    session = lane.seat.token.open(rw=True)
    try:
        generate_signing_key(session, lane.label, algorithm or offered_algorithm(lane.seat.token))
    finally:
        session.close()


def _key(lane: _Lane) -> SigningKey | None:
    return lane.key


def _translate(error: Exception) -> HsmError:
    return translate(error, noun="signing key")
