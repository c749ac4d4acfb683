"""The Google Cloud KMS backend, over one symmetric CryptoKey.

Our versions are Google's (cryptoKeyVersions/N). Wrapping names the version, so that it can be
bound into the blob; Decrypt takes the key's name alone and finds the version in the ciphertext.

A blob is the layout byte 0x01 and Google's ciphertext. It is bound to the associated data of
ironwork_hsm/binding.py, which Google takes as additional authenticated data.
"""

import asyncio
import contextlib
import hmac
from collections.abc import Sequence

import grpc
from google.cloud.kms_v1 import (
    CreateCryptoKeyVersionRequest,
    CryptoKeyVersion,
    DestroyCryptoKeyVersionRequest,
    GetCryptoKeyRequest,
    GetCryptoKeyVersionRequest,
    ListCryptoKeyVersionsRequest,
    UpdateCryptoKeyPrimaryVersionRequest,
)

from ironwork_hsm.binding import (
    CANARY,
    CANARY_CONTEXT,
    DATA_KEY_BYTES,
    MAX_VERSION,
    associated_data,
    wipe,
)
from ironwork_hsm.checks import check_context, check_data_key, check_made_by
from ironwork_hsm.gcp.caller import Caller, Client
from ironwork_hsm.gcp.calls import decrypt, encrypt
from ironwork_hsm.gcp.errors import (
    VersionUnusable,
    rejected,
)
from ironwork_hsm.gcp.uri import SCHEME, parse_gcp_uri, version_name, version_of
from ironwork_hsm.interface import (
    BackendOptions,
    BlobRejected,
    ConfigurationError,
    KeyMissing,
    KeyVersion,
    Unavailable,
    WrappedKey,
)

State = CryptoKeyVersion.CryptoKeyVersionState

MECHANISM = "gcp-kms"
# With a key in an HSM, Google takes 8 KiB of plaintext and associated data together.
MAX_CONTEXT_BYTES = 5000
MAX_CIPHERTEXT_BYTES = 6144
MAX_VERSIONS = 1024

_LAYOUT = b"\x01"
# Seconds between two looks at a version that is being generated.
_LOOK_S = 0.5


class GcpKmsKeyWrapper:
    """Implements KeyWrapper, KeyCreator and VersionDestroyer. Made by open_gcp_kms, for the loop
    it was made on.
    """

    def __init__(
        self, key: str, options: BackendOptions, *, channel: grpc.aio.Channel | None = None
    ) -> None:
        """channel: for tests, whose KMS is on loopback; no setting leads here."""
        self._key = key
        self._options = options
        self._caller = Caller(options, channel=channel)
        # Google's primary version; 0 until it is known. Grows, but for one that proved unusable.
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
            await self._caller.open()
            try:
                await self._check(self._options.slow_deadline_s)
            except (KeyMissing, VersionUnusable):
                if not allow_missing:
                    raise
        except BaseException:
            await self.close()
            raise

    async def mechanism_of(self, version: int) -> str:
        """See KeyWrapper.mechanism_of. Google is not asked: whether it has such a version shows
        when it is used.
        """
        _require_possible(version)
        return MECHANISM

    async def wrap(
        self,
        data_key: bytes | bytearray,
        context: bytes,
        *,
        version: int | None = None,
        reference: str = "",
    ) -> WrappedKey:
        """See KeyWrapper.wrap. Raises ValueError for a data key that is not 32 bytes long or a
        context over 5,000 bytes, KeyMissing, ConfigurationError, Unavailable.
        """
        check_data_key(data_key)
        wanted = self.current_version if version is None else version
        _require_possible(wanted)
        associated = self._associated(wanted, context)
        asked = version_name(self._key, wanted)
        plaintext = bytes(data_key)
        try:
            used, ciphertext = await self._caller.call(
                lambda client, timeout: encrypt(
                    client, asked, plaintext, associated, timeout=timeout
                )
            )
        except VersionUnusable:
            # The next check asks Google which version is primary now.
            self._unusable = wanted
            raise
        if used != asked or not 1 <= len(ciphertext) <= MAX_CIPHERTEXT_BYTES:
            raise Unavailable("Google Cloud KMS answered for another key than it was asked for.")
        self._current = max(self._current, wanted)
        return WrappedKey(self.name, wanted, MECHANISM, _LAYOUT + ciphertext)

    async def unwrap(
        self, wrapped: WrappedKey, context: bytes, *, reference: str = ""
    ) -> bytearray:
        """See KeyWrapper.unwrap. Raises ValueError for a context over 5,000 bytes."""
        version = wrapped.key_version
        check_made_by(wrapped, self.name, (MECHANISM,))
        associated = self._associated(version, context)
        layout, ciphertext = wrapped.blob[:1], wrapped.blob[1:]
        if layout != _LAYOUT or not 1 <= len(ciphertext) <= MAX_CIPHERTEXT_BYTES:
            raise BlobRejected("The wrapped key is no gcp-kms blob of a layout known here.")
        data_key: bytearray | None = None
        # Told below, so that what is told carries no context.
        with contextlib.suppress(BlobRejected):
            data_key = await self._caller.call(
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
            wipe(data_key)
            raise Unavailable("Google Cloud KMS answered with another key than it was asked for.")
        return data_key

    async def versions(self) -> Sequence[KeyVersion]:
        """See KeyWrapper.versions: those that are enabled or disabled, not the destroyed. The
        primary version is current from now on, where it is newer. Needs roles/cloudkms.viewer.
        """
        key = await self._caller.call(
            lambda client, timeout: client.get_crypto_key(
                GetCryptoKeyRequest(name=self._key), retry=None, timeout=timeout
            )
        )
        self._learn(version_of(self._key, key.primary.name) or 0)
        found = [
            self._described(version)
            for version in await self._caller.call(self._listed)
            if version.state in (State.ENABLED, State.DISABLED)
        ]
        return sorted(found, key=lambda version: version.version)

    async def check(self, version: int | None = None) -> None:
        """See KeyWrapper.check. Raises KeyMissing, ConfigurationError, Unavailable."""
        await self._check(self._options.deadline_s, version)

    async def create_version(self) -> KeyVersion:
        """See KeyCreator.create_version: a new version, made primary. The key itself must be there:
        its place, protection level and rotation are for its owner to choose. Needs
        cloudkms.cryptoKeyVersions.create and cloudkms.cryptoKeys.update. Raises KeyMissing too.
        """
        slow = self._options.slow_deadline_s
        # Once: repeated after a lost answer it would make a version that nobody knows of.
        made = await self._caller.call(
            lambda client, timeout: client.create_crypto_key_version(
                CreateCryptoKeyVersionRequest(parent=self._key), retry=None, timeout=timeout
            ),
            deadline_s=slow,
            attempts=1,
        )
        version = self._described(made)
        await self._caller.within(slow, lambda: self._generated(made))
        await self._caller.call(
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

    async def destroy_version(self, version: int, *, admin_pin_source: str) -> None:
        """See VersionDestroyer.destroy_version. The version opens nothing from now on; Google
        destroys its material after the key's own delay (30 days by default), until when an
        administrator there may restore it. Needs cloudkms.cryptoKeyVersions.destroy.
        """
        if admin_pin_source:
            raise ConfigurationError("Google Cloud KMS has roles and no PIN; leave it out.")
        if version == self._current:
            raise ConfigurationError("The current version cannot be destroyed; rotate first.")
        _require_possible(version)
        destroyed = version_name(self._key, version)
        await self._caller.call(
            lambda client, timeout: client.destroy_crypto_key_version(
                DestroyCryptoKeyVersionRequest(name=destroyed), retry=None, timeout=timeout
            ),
            deadline_s=self._options.slow_deadline_s,
            attempts=1,
        )

    async def close(self) -> None:
        """Close the channel; calls on their way get Unavailable. A second call does nothing."""
        await self._caller.close()

    async def _check(self, deadline_s: float, version: int | None = None) -> None:
        if version is not None:
            _require_possible(version)
        # The key's own name is its primary version, which is learnt by the way.
        asked = self._key if version is None else version_name(self._key, version)
        used, ciphertext = await self._caller.call(
            lambda client, timeout: encrypt(client, asked, CANARY, CANARY_CONTEXT, timeout=timeout),
            deadline_s=deadline_s,
        )
        opened = await self._caller.call(
            lambda client, timeout: decrypt(
                client, self._key, ciphertext, CANARY_CONTEXT, timeout=timeout
            ),
            deadline_s=deadline_s,
        )
        proven = version_of(self._key, used)
        other = version is not None and proven != version
        if (
            proven is None
            or other
            or not hmac.compare_digest(opened, CANARY)
            or CANARY in ciphertext
        ):
            raise Unavailable("Google Cloud KMS does not decrypt what it has just encrypted.")
        if version is None:
            self._learn(proven)

    async def _generated(self, made: CryptoKeyVersion) -> None:
        """Wait until a version has been generated; in an HSM that takes a moment."""
        state = made.state
        while state == State.PENDING_GENERATION:
            await asyncio.sleep(_LOOK_S)
            looked = await self._caller.call(
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
            mechanism=MECHANISM,
        )

    def _associated(self, version: int, context: bytes) -> bytes:
        check_context(context, MAX_CONTEXT_BYTES)
        return associated_data(
            name=self.name, version=version, mechanism=MECHANISM, context=context
        )

    def _learn(self, version: int) -> None:
        """A primary version. Not simply taken over: Google may tell an older one for hours."""
        if self._current == self._unusable:
            self._current = version
        self._current = max(self._current, version)


def _require_possible(version: int) -> None:
    if not 1 <= version <= MAX_VERSION:
        raise KeyMissing("The master key cannot have such a version.")


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
