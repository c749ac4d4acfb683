"""The PKCS#11 backend: a KeyWrapper (and KeyCreator) over lanes of one token."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ironwork_hsm.interface import (
    BackendOptions,
    BlobRejected,
    KeyMissing,
    KeyVersion,
    Unavailable,
    WrappedKey,
)
from ironwork_hsm.pkcs11 import gcm, login
from ironwork_hsm.pkcs11.blob import (
    DATA_KEY_BYTES,
    MAX_CONTEXT_BYTES,
    MAX_VERSION,
    MECHANISM,
    associated_data,
    new_iv,
    pack,
    unpack,
)
from ironwork_hsm.pkcs11.errors import translate
from ironwork_hsm.pkcs11.keys import MasterKey, find_keys, generate_key
from ironwork_hsm.pkcs11.lanes import Lanes, keep
from ironwork_hsm.pkcs11.module import Module, load_module
from ironwork_hsm.uri import Pkcs11Uri, parse_pkcs11_uri

Result = TypeVar("Result")


@dataclass(slots=True)
class _Lane:
    """What one thread owns: a session opened without the PIN, and that session's key handles."""

    module: Module
    token: Any
    session: Any
    label: str
    keys: dict[int, MasterKey] = field(default_factory=dict)

    def search(self) -> dict[int, MasterKey]:
        self.keys = find_keys(self.session, self.label)
        return self.keys

    def key(self, version: int) -> Any:
        """The handle; searches once where it is unknown, since another process may have made it."""
        master = self.keys.get(version) or self.search().get(version)
        if master is None:
            raise KeyMissing(f"The token holds no version {version} of `{self.label}`.")
        return master.key


class Pkcs11KeyWrapper:
    """Implements KeyWrapper and KeyCreator. Made by open_pkcs11."""

    def __init__(self, uri: Pkcs11Uri, options: BackendOptions) -> None:
        self._uri = uri
        self._name = uri.name
        self._options = options
        # The greatest version known; only grows. Written by the loop's thread alone.
        self._current = 0
        # Held by the lane that generates a key.
        self._creating = threading.Lock()
        # Set by the first lane; None until the module is loaded.
        self._module: Module | None = None
        self._lanes: Lanes[_Lane] = Lanes(
            setup=self._open_lane,
            teardown=_close_lane,
            translate=translate,
            count=options.lanes,
            capacity=options.queue,
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def current_version(self) -> int:
        """Raises KeyMissing while there is no version (opened with allow_missing)."""
        if self._current == 0:
            raise _no_key(self._uri)
        return self._current

    @property
    def mechanism(self) -> str:
        return MECHANISM

    async def start(self) -> None:
        """Open the lanes and look at the keys. Closes again what it opened where it fails."""
        try:
            await self._lanes.start(deadline_s=self._options.slow_deadline_s)
            await self._list_versions(self._options.slow_deadline_s)
        except BaseException:
            await self.close()
            raise

    async def wrap(
        self, data_key: bytes | bytearray, context: bytes, *, reference: str = ""
    ) -> WrappedKey:
        """See KeyWrapper.wrap. Raises ValueError for a data key that is not 32 bytes long or a
        context over 64 KiB, KeyMissing, Unavailable.
        """
        if len(data_key) != DATA_KEY_BYTES:
            raise ValueError(f"a data key has {DATA_KEY_BYTES} bytes")
        _check_context(context)
        version = self.current_version
        iv = new_iv()
        associated = self._associated(version, context)
        # A copy, since the caller may wipe its own as soon as it is cancelled.
        copy = bytearray(data_key)
        try:
            sealed = await self._run(
                lambda lane: gcm.seal(lane.key(version), copy, iv=iv, associated=associated)
            )
        finally:
            _wipe(copy)
        return WrappedKey(self._name, version, MECHANISM, pack(iv, sealed))

    async def unwrap(
        self, wrapped: WrappedKey, context: bytes, *, reference: str = ""
    ) -> bytearray:
        """See KeyWrapper.unwrap. Raises ValueError for a context over 64 KiB."""
        _check_context(context)
        version = wrapped.key_version
        if wrapped.backend != self._name or wrapped.mechanism != MECHANISM:
            raise BlobRejected("The wrapped key was made by another backend or mechanism.")
        if not 1 <= version <= MAX_VERSION:
            raise BlobRejected("The wrapped key names a version that cannot exist.")
        iv, sealed = unpack(wrapped.blob)
        associated = self._associated(version, context)
        return await self._run(
            lambda lane: gcm.open_sealed(lane.key(version), sealed, iv=iv, associated=associated),
            discard=_wipe,
        )

    async def versions(self) -> Sequence[KeyVersion]:
        """See KeyWrapper.versions. Asks the token; a newer version found is current from now on."""
        return await self._list_versions(self._options.deadline_s)

    async def _list_versions(self, deadline_s: float) -> Sequence[KeyVersion]:
        found = await self._run(_describe_all, deadline_s=deadline_s)
        if found:
            self._learn(found[-1].version)
        return found

    async def check(self) -> None:
        """See KeyWrapper.check. Raises KeyMissing, Unavailable."""
        version = self.current_version
        if not await self._run(lambda lane: gcm.round_trip(lane.key(version))):
            raise Unavailable("The HSM does not decrypt what it has just encrypted.")

    async def create_version(self) -> KeyVersion:
        """See KeyCreator.create_version."""
        created = await self._run(self._create_next, deadline_s=self._options.slow_deadline_s)
        self._learn(created.version)
        return created

    async def close(self) -> None:
        """End the lanes and leave the token. A second call does nothing. Never raises HsmError."""
        if self._module is not None and self._module.is_foreign():
            return  # after a fork: the lanes and the login are the parent's
        await self._lanes.close(deadline_s=self._options.deadline_s)

    async def _run(
        self,
        function: Callable[[_Lane], Result],
        *,
        discard: Callable[[Result], None] = keep,
        deadline_s: float | None = None,
    ) -> Result:
        if self._module is not None:
            self._module.check_process()
        return await self._lanes.run(
            function,
            deadline_s=self._options.deadline_s if deadline_s is None else deadline_s,
            discard=discard,
        )

    def _associated(self, version: int, context: bytes) -> bytes:
        return associated_data(
            name=self._name, version=version, mechanism=MECHANISM, context=context
        )

    def _learn(self, version: int) -> None:
        self._current = max(self._current, version)

    def _open_lane(self) -> _Lane:
        """In the lane's thread; the first one initialises the module and logs in."""
        module = self._module = load_module(self._uri.module_path)
        token = login.find_token(module, self._uri)
        login.acquire(module, token, self._uri)
        try:
            session = token.open()
        except BaseException:
            login.release(module, token)
            raise
        return _Lane(module, token, session, self._uri.object)

    def _create_next(self, lane: _Lane) -> KeyVersion:
        """On a lane. One at a time; the others are refused, since waiting would block lanes."""
        if not self._creating.acquire(blocking=False):
            raise Unavailable("Another version is just being created; try again.")
        try:
            version = max(lane.search(), default=0) + 1
            # The lanes' own sessions are read-only; this one lives for one key.
            session = lane.token.open(rw=True)
            try:
                return generate_key(session, lane.label, version).description
            finally:
                session.close()
        finally:
            self._creating.release()


async def open_pkcs11(
    uri: str, *, allow_missing: bool = False, options: BackendOptions | None = None
) -> Pkcs11KeyWrapper:
    """Open the master key at uri; see ironwork_hsm.open_backend."""
    parsed = parse_pkcs11_uri(uri)
    wrapper = Pkcs11KeyWrapper(parsed, options or BackendOptions())
    await wrapper.start()
    if not allow_missing:
        try:
            await wrapper.check()
        except BaseException:
            await wrapper.close()
            raise
    return wrapper


def _describe_all(lane: _Lane) -> list[KeyVersion]:
    return [master.description for master in lane.search().values()]


def _close_lane(lane: _Lane) -> None:
    try:
        lane.session.close()
    finally:
        login.release(lane.module, lane.token)


def _no_key(uri: Pkcs11Uri) -> KeyMissing:
    return KeyMissing(
        f"The token holds no master key `{uri.name}`; create it with: "
        "ironwork-server master-key create"
    )


def _check_context(context: bytes) -> None:
    if len(context) > MAX_CONTEXT_BYTES:
        raise ValueError(f"a wrapping context has at most {MAX_CONTEXT_BYTES} bytes")


def _wipe(buffer: bytearray) -> None:
    buffer[:] = bytes(len(buffer))
