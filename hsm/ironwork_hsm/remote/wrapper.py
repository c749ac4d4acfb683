"""The `unix:` backend: a KeyWrapper whose device is held by the HSM process.

Names, versions, mechanisms and blobs are those of the backends behind the process, so moving a
master key from this process into that one, or back, needs no re-wrapping.
"""

import shlex
from collections.abc import Sequence

from ironwork_hsm.binding import wipe
from ironwork_hsm.checks import check_context, check_data_key
from ironwork_hsm.interface import (
    BackendOptions,
    BlobRejected,
    ConfigurationError,
    KeyMissing,
    KeyVersion,
    MechanismRefused,
    Unavailable,
    WrappedKey,
)
from ironwork_hsm.remote import wire
from ironwork_hsm.remote.connection import Connection
from ironwork_hsm.remote.place import parse_unix_uri
from ironwork_hsm.remote.wire import Info, Kind


class RemoteKeyWrapper:
    """Implements KeyWrapper, FrontsKeys and KeptElsewhere. Made by open_unix."""

    def __init__(self, connection: Connection, info: Info) -> None:
        self._connection = connection
        self._name = info.keys[0].name
        self._names = frozenset(key.name for key in info.keys)
        self._version = 0
        self._mechanism = ""
        # Of each version that was heard of.
        self._mechanisms: dict[int, str] = {}
        self._learn(info)

    @property
    def name(self) -> str:
        return self._name

    @property
    def names(self) -> frozenset[str]:
        return self._names

    @property
    def current_version(self) -> int:
        """Raises KeyMissing while there is no version (opened with allow_missing)."""
        if self._version == 0:
            raise KeyMissing(
                f"The HSM process' token holds no master key `{self._name}`; create it with:"
                " ironwork-hsmd create"
            )
        return self._version

    @property
    def mechanism(self) -> str:
        return self._mechanism

    @property
    def create_command(self) -> str:
        """See KeptElsewhere.create_command."""
        return "ironwork-hsmd create --next --config FILE"

    def destroy_command(self, backend: str, version: int) -> str:
        """See KeptElsewhere.destroy_command."""
        return (
            f"ironwork-hsmd destroy --version {version} --backend {shlex.quote(backend)}"
            " --admin-pin-source file:/PATH --config FILE"
        )

    async def mechanism_of(self, version: int) -> str:
        """See KeyWrapper.mechanism_of."""
        if version not in self._mechanisms:
            await self.versions()
        if version not in self._mechanisms:
            raise KeyMissing(f"The HSM process' token holds no version {version} of `{self._name}`")
        if not self._mechanisms[version]:
            raise ConfigurationError(
                f"Version {version} of `{self._name}` is of another kind than the mechanism that"
                " is pinned needs."
            )
        return self._mechanisms[version]

    async def wrap(
        self,
        data_key: bytes | bytearray,
        context: bytes,
        *,
        version: int | None = None,
        reference: str = "",
    ) -> WrappedKey:
        """See KeyWrapper.wrap. Raises ValueError for a data key that is not 32 bytes long, a
        context over 64 KiB or a reference that is none; KeyMissing, Unavailable.
        """
        _require_possible(version)
        check_data_key(data_key)
        _check(context, reference)
        wrapped = await self._connection.call(
            lambda number: wire.wrap(number, data_key, context, reference, version),
            Kind.WRAPPED,
            wire.parse_wrapped,
        )
        used = wrapped.key_version
        if wrapped.backend != self._name or version not in (None, used):
            raise Unavailable("The HSM process wraps under another master key than it said.")
        self._mechanisms[used] = wrapped.mechanism
        if used >= self._version:  # another one was created since
            self._version, self._mechanism = used, wrapped.mechanism
        return wrapped

    async def unwrap(
        self, wrapped: WrappedKey, context: bytes, *, reference: str = ""
    ) -> bytearray:
        """See KeyWrapper.unwrap. Raises ValueError as wrap does."""
        _check(context, reference)
        if wrapped.backend not in self._names or not wire.fits(wrapped):
            raise BlobRejected("The wrapped key was made by another backend or mechanism.")
        return await self._connection.call(
            lambda number: wire.unwrap(number, wrapped, context, reference),
            Kind.OPENED,
            wire.parse_opened,
            discard=wipe,
        )

    async def versions(self) -> Sequence[KeyVersion]:
        """See KeyWrapper.versions. The process asks the token; a newer version is current from now
        on, there and here.
        """
        found = await self._connection.call(
            lambda number: wire.plain(Kind.VERSIONS, number), Kind.LISTED, wire.parse_listed
        )
        self._learn(await self._connection.hello())
        self._mechanisms.update({version.version: version.mechanism for version in found})
        return found

    async def check(self, version: int | None = None) -> None:
        """See KeyWrapper.check."""
        _require_possible(version)
        await self.check_within(None, version)

    async def check_within(self, deadline_s: float | None, version: int | None = None) -> None:
        """check, with another deadline for each of its two requests."""
        try:
            await self._connection.call(
                lambda number: wire.check(number, version=version),
                Kind.DONE,
                wire.check_done,
                deadline_s=deadline_s,
            )
        except MechanismRefused:
            # Of every version of that kind: asked for anew where they are needed.
            self._mechanisms.clear()
            self._learn(await self._connection.hello(deadline_s=deadline_s))
            raise
        self._learn(await self._connection.hello(deadline_s=deadline_s))

    async def close(self) -> None:
        await self._connection.close()

    def _learn(self, info: Info) -> None:
        first = info.keys[0]
        if first.name != self._name:
            raise Unavailable("The HSM process wraps under another master key than it said.")
        if first.mechanism:
            self._version, self._mechanism = first.version, first.mechanism
            self._mechanisms[first.version] = first.mechanism


async def open_unix(uri: str, *, allow_missing: bool, options: BackendOptions) -> RemoteKeyWrapper:
    """Open the master key that the process at uri holds; see ironwork_hsm.open_backend.

    Raises also what keeps the process from its device: PinRefused, ConfigurationError.
    """
    connection = Connection(parse_unix_uri(uri), options)
    info = await connection.open()
    try:
        if info.problem is not None:
            raise info.problem  # noqa: TRY301  the connection is closed in one place
        wrapper = RemoteKeyWrapper(connection, info)
        if not allow_missing:
            await wrapper.check_within(options.slow_deadline_s)
    except BaseException:
        await connection.close()
        raise
    return wrapper


def _require_possible(version: int | None) -> None:
    if version is not None and not 1 <= version <= wire.MAX_VERSION:
        raise KeyMissing("The master key cannot have such a version.")


def _check(context: bytes, reference: str) -> None:
    check_context(context, wire.MAX_CONTEXT_BYTES)
    check_reference(reference)


def check_reference(reference: str) -> None:
    """Raises ValueError for what is no correlation id: see KeyWrapper.wrap."""
    visible = reference.isascii() and reference.isprintable() and " " not in reference
    if reference and not (visible and len(reference) <= wire.MAX_REFERENCE_BYTES):
        raise ValueError("a reference has at most 64 visible ASCII characters")
