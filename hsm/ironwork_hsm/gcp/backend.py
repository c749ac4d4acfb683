"""The Google Cloud KMS backend: a KeyWrapper and KeyCreator over one symmetric CryptoKey.

Our versions are Google's (cryptoKeyVersions/N). Wrapping names the version, so that it can be
bound into the blob; Decrypt takes the key's name alone and finds the version in the ciphertext.

A blob is the layout byte 0x01 and Google's ciphertext. It is bound to the associated data of
pkcs11/blob.py, which Google takes as additional authenticated data.
"""

import asyncio
import contextlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
from google.cloud.kms_v1 import (
    CreateCryptoKeyVersionRequest,
    CryptoKeyVersion,
    GetCryptoKeyRequest,
    GetCryptoKeyVersionRequest,
    KeyManagementServiceAsyncClient,
    ListCryptoKeyVersionsRequest,
    UpdateCryptoKeyPrimaryVersionRequest,
)

from ironwork_hsm.gcp.calls import decrypt, encrypt, make_client
from ironwork_hsm.gcp.errors import (
    VersionUnusable,
    is_passing,
    is_rejection,
    rejected,
    translate,
)
from ironwork_hsm.gcp.uri import MAX_VERSION, SCHEME, parse_gcp_uri, version_name, version_of
from ironwork_hsm.interface import (
    BackendOptions,
    BlobRejected,
    HsmError,
    KeyMissing,
    KeyVersion,
    Unavailable,
    WrappedKey,
)
from ironwork_hsm.pkcs11.blob import DATA_KEY_BYTES, associated_data

Result = TypeVar("Result")
Client = KeyManagementServiceAsyncClient
State = CryptoKeyVersion.CryptoKeyVersionState

MECHANISM = "gcp-kms"
# With a key in an HSM, Google takes 8 KiB of plaintext and associated data together.
MAX_CONTEXT_BYTES = 5000
MAX_CIPHERTEXT_BYTES = 6144
ATTEMPTS = 3
MAX_VERSIONS = 1024

_CLOSED = "The Google Cloud KMS backend is closed."
_LAYOUT = b"\x01"
_CANARY = bytes(range(DATA_KEY_BYTES))
_CANARY_CONTEXT = b"ironwork-canary-v1"
# Seconds before another attempt, and between two looks at a version that is being generated.
_PAUSE_S = 0.1
_LOOK_S = 0.5


class GcpKmsKeyWrapper:
    """Implements KeyWrapper and KeyCreator. Made by open_gcp_kms, for the loop it was made on."""

    def __init__(
        self, key: str, options: BackendOptions, *, channel: grpc.aio.Channel | None = None
    ) -> None:
        """channel: for tests, whose KMS is on loopback; no setting leads here."""
        self._key = key
        self._options = options
        self._channel = channel
        self._client: Client | None = None
        self._closed = False
        # Calls on their way; at most options.lanes + options.queue.
        self._calls = 0
        # The version that wrap uses; 0 until one is known. Grows, but for one that proved unusable.
        self._current = 0
        self._unusable = 0

    @property
    def name(self) -> str:
        return f"{SCHEME}://{self._key}"

    @property
    def current_version(self) -> int:
        """Raises KeyMissing while there is no version (opened with allow_missing)."""
        if self._current == 0:
            raise KeyMissing(
                f"Google Cloud KMS holds no usable key `{self.name}`; make one with: gcloud kms "
                "keys create --purpose=encryption"
            )
        return self._current

    @property
    def mechanism(self) -> str:
        return MECHANISM

    async def start(self, *, allow_missing: bool) -> None:
        """Find credentials and look at the key. Closes again what it opened where it fails."""
        try:
            self._client = await self._within(
                self._options.slow_deadline_s, lambda: make_client(self._channel)
            )
            try:
                await self._check(self._options.slow_deadline_s)
            except (KeyMissing, VersionUnusable):
                if not allow_missing:
                    raise
        except BaseException:
            await self.close()
            raise

    async def wrap(
        self, data_key: bytes | bytearray, context: bytes, *, reference: str = ""
    ) -> WrappedKey:
        """See KeyWrapper.wrap. Raises ValueError for a data key that is not 32 bytes long or a
        context over 5,000 bytes, KeyMissing, ConfigurationError, Unavailable.
        """
        if len(data_key) != DATA_KEY_BYTES:
            raise ValueError(f"a data key has {DATA_KEY_BYTES} bytes")
        version = self.current_version
        associated = self._associated(version, context)
        asked = version_name(self._key, version)
        plaintext = bytes(data_key)
        try:
            used, ciphertext = await self._call(
                lambda client, timeout: encrypt(
                    client, asked, plaintext, associated, timeout=timeout
                )
            )
        except VersionUnusable:
            # The next check asks Google which version is primary now.
            self._unusable = version
            raise
        if used != asked or not 1 <= len(ciphertext) <= MAX_CIPHERTEXT_BYTES:
            raise Unavailable("Google Cloud KMS answered for another key than it was asked for.")
        return WrappedKey(self.name, version, MECHANISM, _LAYOUT + ciphertext)

    async def unwrap(
        self, wrapped: WrappedKey, context: bytes, *, reference: str = ""
    ) -> bytearray:
        """See KeyWrapper.unwrap. Raises ValueError for a context over 5,000 bytes."""
        version = wrapped.key_version
        if wrapped.backend != self.name or wrapped.mechanism != MECHANISM:
            raise BlobRejected("The wrapped key was made by another backend or mechanism.")
        if not 1 <= version <= MAX_VERSION:
            raise BlobRejected("The wrapped key names a version that cannot exist.")
        associated = self._associated(version, context)
        layout, ciphertext = wrapped.blob[:1], wrapped.blob[1:]
        if layout != _LAYOUT or not 1 <= len(ciphertext) <= MAX_CIPHERTEXT_BYTES:
            raise BlobRejected("The wrapped key is no gcp-kms blob of a layout known here.")
        data_key: bytearray | None = None
        # Told below, so that what is told carries no context.
        with contextlib.suppress(BlobRejected):
            data_key = await self._call(
                lambda client, timeout: decrypt(
                    client, self._key, ciphertext, associated, timeout=timeout
                ),
                decrypting=True,
            )
        if data_key is None:
            # Google cannot say that a version never was, only that this does not open.
            if version > self._current:
                raise KeyMissing(f"The key is not known to have a version {version}.")
            raise rejected()
        if len(data_key) != DATA_KEY_BYTES:
            _wipe(data_key)
            raise Unavailable("Google Cloud KMS answered with another key than it was asked for.")
        return data_key

    async def versions(self) -> Sequence[KeyVersion]:
        """See KeyWrapper.versions: those that are enabled or disabled, not the destroyed. The
        primary version is current from now on, where it is newer. Needs roles/cloudkms.viewer.
        """
        key = await self._call(
            lambda client, timeout: client.get_crypto_key(
                GetCryptoKeyRequest(name=self._key), retry=None, timeout=timeout
            )
        )
        self._learn(version_of(self._key, key.primary.name) or 0)
        found = [
            self._described(version)
            for version in await self._call(self._listed)
            if version.state in (State.ENABLED, State.DISABLED)
        ]
        return sorted(found, key=lambda version: version.version)

    async def check(self) -> None:
        """See KeyWrapper.check. Raises KeyMissing, ConfigurationError, Unavailable."""
        await self._check(self._options.deadline_s)

    async def create_version(self) -> KeyVersion:
        """See KeyCreator.create_version: a new version, made primary. The key itself must be there:
        its place, protection level and rotation are for its owner to choose. Needs
        cloudkms.cryptoKeyVersions.create and cloudkms.cryptoKeys.update. Raises KeyMissing too.
        """
        slow = self._options.slow_deadline_s
        # Once: repeated after a lost answer it would make a version that nobody knows of.
        made = await self._call(
            lambda client, timeout: client.create_crypto_key_version(
                CreateCryptoKeyVersionRequest(parent=self._key), retry=None, timeout=timeout
            ),
            deadline_s=slow,
            attempts=1,
        )
        version = self._described(made)
        await self._within(slow, lambda: self._generated(made))
        await self._call(
            lambda client, timeout: client.update_crypto_key_primary_version(
                UpdateCryptoKeyPrimaryVersionRequest(
                    name=self._key, crypto_key_version_id=str(version.version)
                ),
                retry=None,
                timeout=timeout,
            ),
            deadline_s=slow,
        )
        self._learn(version.version)
        return version

    async def close(self) -> None:
        """Close the channel; calls on their way get Unavailable. A second call does nothing."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await client.transport.close()  # type: ignore[no-untyped-call]

    async def _check(self, deadline_s: float) -> None:
        used, ciphertext = await self._call(
            lambda client, timeout: encrypt(
                client, self._key, _CANARY, _CANARY_CONTEXT, timeout=timeout
            ),
            deadline_s=deadline_s,
        )
        opened = await self._call(
            lambda client, timeout: decrypt(
                client, self._key, ciphertext, _CANARY_CONTEXT, timeout=timeout
            ),
            deadline_s=deadline_s,
        )
        primary = version_of(self._key, used)
        if primary is None or not hmac.compare_digest(opened, _CANARY) or _CANARY in ciphertext:
            raise Unavailable("Google Cloud KMS does not decrypt what it has just encrypted.")
        self._learn(primary)

    async def _generated(self, made: CryptoKeyVersion) -> None:
        """Wait until a version has been generated; in an HSM that takes a moment."""
        state = made.state
        while state == State.PENDING_GENERATION:
            await asyncio.sleep(_LOOK_S)
            looked = await self._call(
                lambda client, timeout: client.get_crypto_key_version(
                    GetCryptoKeyVersionRequest(name=made.name), retry=None, timeout=timeout
                )
            )
            state = looked.state
        if state != State.ENABLED:
            raise Unavailable("Google Cloud KMS did not generate the new version.")

    async def _listed(self, client: Client, timeout: float) -> list[CryptoKeyVersion]:
        pager = await client.list_crypto_key_versions(
            ListCryptoKeyVersionsRequest(parent=self._key), retry=None, timeout=timeout
        )
        found: list[CryptoKeyVersion] = []
        async for version in pager:
            found.append(version)
            if len(found) > MAX_VERSIONS:
                raise Unavailable(f"The key has over {MAX_VERSIONS} versions.")
        return found

    def _described(self, version: CryptoKeyVersion) -> KeyVersion:
        number = version_of(self._key, version.name)
        if number is None:
            raise Unavailable("Google Cloud KMS told of a version of another key.")
        # Google gives no key's material out. Imported material was elsewhere before.
        local = not version.import_job
        return KeyVersion(
            version=number,
            label=self._key.rpartition("/")[2],
            sensitive=True,
            extractable=False,
            never_extractable=local,
            local=local,
        )

    async def _call(
        self,
        function: Callable[[Client, float], Awaitable[Result]],
        *,
        deadline_s: float | None = None,
        attempts: int = ATTEMPTS,
        decrypting: bool = False,
    ) -> Result:
        """function with the client and seconds for one attempt; again where its failure is passing.

        decrypting: INVALID_ARGUMENT means a wrong blob, once it was said twice. Raises HsmError.
        """
        limit = self._options.deadline_s if deadline_s is None else deadline_s
        if self._calls >= self._options.lanes + self._options.queue:
            raise Unavailable("Google Cloud KMS is busy: too many calls are on their way to it.")
        self._calls += 1
        try:
            return await self._within(
                limit, lambda: self._attempt(function, limit, attempts, decrypting=decrypting)
            )
        finally:
            self._calls -= 1

    async def _attempt(
        self,
        function: Callable[[Client, float], Awaitable[Result]],
        limit: float,
        attempts: int,
        *,
        decrypting: bool,
    ) -> Result:
        rejections = 0
        for last in range(attempts - 1, -1, -1):
            if self._client is None:
                break
            try:
                # An attempt that hangs leaves time for another.
                return await function(self._client, limit if attempts == 1 else limit / 2)
            except Exception as error:
                rejections += decrypting and is_rejection(error)
                if rejections > 1:
                    raise rejected() from None
                if not last or not (is_passing(error) or rejections):
                    raise
            await asyncio.sleep(_PAUSE_S)
        raise Unavailable(_CLOSED)

    async def _within(self, limit: float, function: Callable[[], Awaitable[Result]]) -> Result:
        """The seam: whatever happens becomes an HsmError, without a context."""
        failure: HsmError
        try:
            async with asyncio.timeout(limit):
                return await function()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            # Not the caller's: closing the channel cancels the calls that are on it.
            failure = Unavailable(_CLOSED)
        except TimeoutError:
            failure = Unavailable(f"Google Cloud KMS did not answer within {limit:g} s.")
        except Exception as error:  # noqa: BLE001  the seam
            failure = translate(error)
        failure.__context__ = None
        raise failure

    def _associated(self, version: int, context: bytes) -> bytes:
        if len(context) > MAX_CONTEXT_BYTES:
            raise ValueError(f"a wrapping context has at most {MAX_CONTEXT_BYTES} bytes")
        return associated_data(
            name=self.name, version=version, mechanism=MECHANISM, context=context
        )

    def _learn(self, version: int) -> None:
        """A primary version. Not simply taken over: Google may tell an older one for hours."""
        if self._current == self._unusable:
            self._current = version
        self._current = max(self._current, version)


async def open_gcp_kms(
    uri: str,
    *,
    allow_missing: bool = False,
    options: BackendOptions | None = None,
    channel: grpc.aio.Channel | None = None,
) -> GcpKmsKeyWrapper:
    """Open the key at uri; see ironwork_hsm.open_backend. channel: for tests."""
    wrapper = GcpKmsKeyWrapper(parse_gcp_uri(uri), options or BackendOptions(), channel=channel)
    await wrapper.start(allow_missing=allow_missing)
    return wrapper


def _wipe(buffer: bytearray) -> None:
    buffer[:] = bytes(len(buffer))
