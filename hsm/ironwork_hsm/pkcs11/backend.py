"""The PKCS#11 backend: a KeyWrapper (and KeyCreator) over lanes of one token."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pkcs11 import Mechanism

from ironwork_hsm.binding import associated_data, wipe
from ironwork_hsm.checks import check_context, check_data_key, check_made_by
from ironwork_hsm.interface import (
    BackendOptions,
    BlobRejected,
    ConfigurationError,
    KeyMissing,
    KeyVersion,
    Unavailable,
    WrappedKey,
)
from ironwork_hsm.lanes import Lanes, keep
from ironwork_hsm.pkcs11 import rung
from ironwork_hsm.pkcs11.blob import MAX_CONTEXT_BYTES
from ironwork_hsm.pkcs11.destroy import destroy
from ironwork_hsm.pkcs11.errors import translate
from ironwork_hsm.pkcs11.keys import KeyKind, MasterKey, find_keys, generate_key
from ironwork_hsm.pkcs11.known import KnownVersions
from ironwork_hsm.pkcs11.ladder import RUNGS, Ladder
from ironwork_hsm.pkcs11.module import Module, load_module
from ironwork_hsm.pkcs11.raw import RawKey
from ironwork_hsm.pkcs11.recovery import Seat
from ironwork_hsm.pkcs11.restarter import Restarter
from ironwork_hsm.pkcs11.rung import Rung, Trial
from ironwork_hsm.settle import settle
from ironwork_hsm.uri import Pkcs11Uri, parse_pkcs11_uri, pin_source

Result = TypeVar("Result")


@dataclass(slots=True)
class _Lane:
    """What one thread owns: a seat at the token, and its session's key handles."""

    seat: Seat
    label: str
    known: KnownVersions
    keys: dict[int, MasterKey] = field(default_factory=dict)

    def call(self, function: "Callable[[_Lane], Result]") -> Result:
        """function(self), inside the module. After a fault of the device the next call has another
        session; what failed is not done again.
        """
        if self.seat.enter():
            self.keys = {}
        try:
            return function(self)
        except (BlobRejected, ConfigurationError, KeyMissing):
            raise
        except Exception:
            self.seat.spoil()
            raise
        finally:
            self.seat.leave()

    def search(self) -> dict[int, MasterKey]:
        self.keys = find_keys(self.seat.session, self.label)
        self.known.found(self.keys)
        return self.keys

    def master(self, version: int) -> MasterKey:
        """Searches where it is unknown, since another process may have made it; how often, and
        that a version which was just made is found, KnownVersions says.
        """
        master = self.keys.get(version)
        if master is not None:
            return master
        searched = self.known.worth_a_search(version)
        master = self.search().get(version) if searched else None
        if master is None:
            if not self.seat.module.logged_in(self.seat.session.handle):
                # Private objects are not there for whoever is not logged in.
                raise Unavailable("The login at the token was lost.")
            if searched:
                self.known.missed(version)
            raise KeyMissing(f"The token holds no version {version} of `{self.label}`.")
        return master

    def key(self, version: int, kind: KeyKind) -> RawKey:
        """The version as this session's operations take it."""
        master = self.master(version)
        if master.kind is not kind:
            raise BlobRejected("The wrapped key was made by another kind of master key.")
        return RawKey(self.seat.module.functions, self.seat.session.handle, master.handle)

    def try_rung(self, tried: Rung, version: int) -> Trial:
        trial = rung.round_trip(tried, self.key(version, tried.kind))
        if trial is Trial.FAILS:
            self.seat.spoil()
        return trial


class Pkcs11KeyWrapper:
    """Implements KeyWrapper, KeyCreator, VersionDestroyer and Recoverable. Made by open_pkcs11."""

    def __init__(self, uri: Pkcs11Uri, options: BackendOptions) -> None:
        self._uri = uri
        self._name = uri.name
        self._options = options
        # The greatest version known, and each one's kind of key. Written by the loop's thread
        # alone, as is the ladder.
        self._current = 0
        self._kinds: dict[int, KeyKind] = {}
        self._ladder = Ladder(uri.mechanism)
        self._known = KnownVersions()
        # Held by the lane that generates a key.
        self._creating = threading.Lock()
        # Set by the first lane; None until the module is loaded.
        self._module: Module | None = None
        self._lanes = self._new_lanes()
        self._restarter = Restarter(uri, translate)

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
        """What wrap uses with the current version, and check tries until it has worked once. Raises
        ConfigurationError where that key cannot do the pinned mechanism.
        """
        return self._ladder.rung(self._kinds.get(self._current, KeyKind.AES)).mechanism

    async def mechanism_of(self, version: int) -> str:
        """See KeyWrapper.mechanism_of."""
        return (await self._rung_of(version)).mechanism

    async def start(self) -> None:
        """Open the lanes and look at the keys. Closes again what it opened where it fails."""
        try:
            await self._restarter.start(deadline_s=self._options.slow_deadline_s)
            await self._lanes.start(deadline_s=self._options.slow_deadline_s)
            await self._list_versions(self._options.slow_deadline_s)
        except BaseException:
            await self.close()
            raise

    async def wrap(
        self,
        data_key: bytes | bytearray,
        context: bytes,
        *,
        version: int | None = None,
        reference: str = "",
    ) -> WrappedKey:
        """See KeyWrapper.wrap. Raises ValueError for a data key that is not 32 bytes long or a
        context over 64 KiB, KeyMissing, Unavailable.
        """
        check_data_key(data_key)
        check_context(context, MAX_CONTEXT_BYTES)
        # A copy, since the caller may wipe its own as soon as it is cancelled.
        copy = bytearray(data_key)
        try:
            used = self.current_version if version is None else version
            chosen = await self._rung_of(used)
            bound = self._bound(used, chosen, context)
            blob = await self._run(
                lambda lane: chosen.wrap(lane.key(used, chosen.kind), copy, bound)
            )
        finally:
            wipe(copy)
        return WrappedKey(self._name, used, chosen.mechanism, blob)

    async def unwrap(
        self, wrapped: WrappedKey, context: bytes, *, reference: str = ""
    ) -> bytearray:
        """See KeyWrapper.unwrap. Raises ValueError for a context over 64 KiB."""
        check_context(context, MAX_CONTEXT_BYTES)
        version = wrapped.key_version
        check_made_by(wrapped, self._name, RUNGS)
        made_by = RUNGS[wrapped.mechanism]
        bound = self._bound(version, made_by, context)
        canary = self._ladder.canary(made_by)
        return await self._run(
            lambda lane: rung.open_blob(
                made_by, lane.key(version, made_by.kind), wrapped.blob, bound, canary=canary
            ),
            discard=wipe,
        )

    async def versions(self) -> Sequence[KeyVersion]:
        """See KeyWrapper.versions. Asks the token; a newer version found is current from now on."""
        return await self._list_versions(self._options.deadline_s)

    async def _list_versions(self, deadline_s: float) -> Sequence[KeyVersion]:
        found = await self._run(_search, deadline_s=deadline_s)
        for master in found:
            self._learn(master)
        return [self._described(master) for master in found]

    async def check(self, version: int | None = None) -> None:
        """See KeyWrapper.check. Raises KeyMissing, MechanismRefused, ConfigurationError,
        Unavailable.
        """
        used = self.current_version if version is None else version
        tried = await self._rung_of(used)
        trial = await self._run(lambda lane: lane.try_rung(tried, used))
        self._ladder.settle(tried, trial)
        if trial is not Trial.WORKS:
            raise Unavailable("The HSM does not decrypt what it has just encrypted.")

    async def recover(self) -> None:
        """See Recoverable.recover. Every other user of the module in this process goes on, with
        another session.
        """
        await self._restarter.restart(self._module, deadline_s=self._options.deadline_s)
        await self._list_versions(self._options.deadline_s)

    async def create_version(self) -> KeyVersion:
        """See KeyCreator.create_version."""
        created = await self._run(self._create_next, deadline_s=self._options.slow_deadline_s)
        self._learn(created)
        return self._described(created)

    async def destroy_version(self, version: int, *, admin_pin_source: str) -> None:
        """See VersionDestroyer.destroy_version, and destroy.py for what the device enforces. No
        other operation may be under way, nor anything else of this process use the token.
        """
        if version == self.current_version:
            raise ConfigurationError(f"Version {version} is the newest; it is not destroyed.")
        admin_pin = pin_source(admin_pin_source)
        # The token takes the security officer only while this process has no session there.
        await self._lanes.close(deadline_s=self._options.deadline_s)
        try:
            await destroy(self._uri, version, admin_pin, deadline_s=self._options.slow_deadline_s)
        finally:
            self._lanes = self._new_lanes()
            await self._lanes.start(deadline_s=self._options.slow_deadline_s)

    async def close(self) -> None:
        """End the lanes and leave the token. A second call does nothing. Never raises HsmError."""
        if self._module is not None and self._module.is_foreign():
            return  # after a fork: the lanes and the login are the parent's
        await self._lanes.close(deadline_s=self._options.deadline_s)
        await self._restarter.close(deadline_s=self._options.deadline_s)

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
            lambda lane: lane.call(function),
            deadline_s=self._options.deadline_s if deadline_s is None else deadline_s,
            discard=discard,
        )

    def _bound(self, version: int, chosen: Rung, context: bytes) -> bytes:
        return associated_data(
            name=self._name, version=version, mechanism=chosen.mechanism, context=context
        )

    async def _rung_of(self, version: int) -> Rung:
        """What wraps with a version. Raises KeyMissing, ConfigurationError, Unavailable."""
        if version not in self._kinds:
            self._learn(await self._run(lambda lane: lane.master(version)))
        return self._ladder.rung(self._kinds[version])

    def _learn(self, found: MasterKey) -> None:
        version = found.description.version
        self._kinds[version] = found.kind
        self._current = max(self._current, version)

    def _described(self, master: MasterKey) -> KeyVersion:
        try:
            mechanism = self._ladder.rung(master.kind).mechanism
        except ConfigurationError:  # the pinned one needs a key of another kind
            mechanism = ""
        return replace(master.description, mechanism=mechanism)

    def _new_lanes(self) -> Lanes[_Lane]:
        return Lanes(
            setup=self._open_lane,
            teardown=_close_lane,
            translate=translate,
            count=self._options.lanes,
            capacity=self._options.queue,
        )

    def _open_lane(self) -> _Lane:
        """In the lane's thread; the first one initialises the module and logs in."""
        module = self._module = load_module(self._uri.module_path, self._uri.init_args)
        lane = _Lane(Seat(module, self._uri), self._uri.object, self._known)
        try:
            with lane.seat.open():
                return lane
        except BaseException:
            lane.seat.close()
            raise

    def _create_next(self, lane: _Lane) -> MasterKey:
        """On a lane. One at a time; the others are refused, since waiting would block lanes."""
        if not self._creating.acquire(blocking=False):
            raise Unavailable("Another version is just being created; try again.")
        try:
            version = max(lane.search(), default=0) + 1
            listed = lane.seat.token.slot.get_mechanisms()
            kind = self._ladder.new_kind(
                gcm=Mechanism.AES_GCM in listed, hmac=Mechanism.SHA256_HMAC in listed
            )
            # The lanes' own sessions are read-only; this one lives for one key.
            session = lane.seat.token.open(rw=True)
            try:
                made = generate_key(session, lane.label, version, kind)
                self._known.found([version])
                return made
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
            await settle(wrapper)
        except BaseException:
            await wrapper.close()
            raise
    return wrapper


def _search(lane: _Lane) -> list[MasterKey]:
    return list(lane.search().values())


def _close_lane(lane: _Lane) -> None:
    lane.seat.close()


def _no_key(uri: Pkcs11Uri) -> KeyMissing:
    return KeyMissing(
        f"The token holds no master key `{uri.name}`; create it with: "
        "ironwork-server master-key create"
    )
