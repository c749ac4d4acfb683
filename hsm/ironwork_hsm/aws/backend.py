"""The AWS KMS backend: a KeyWrapper over Encrypt and Decrypt of one symmetric KMS key.

boto3 blocks, so it is called on lanes (threads), whose queue and deadlines are those of PKCS#11.
KMS rotates a key's material itself and finds the right one by the ciphertext, so for us one KMS
key is one version, 1; a new version of the master key is another KMS key, listed as another URI.
"""

import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from ironwork_hsm.aws.blob import (
    MAX_CIPHERTEXT_BYTES,
    MAX_CONTEXT_BYTES,
    MECHANISM,
    VERSION,
    encryption_context,
    pack,
    unpack,
)
from ironwork_hsm.aws.client import make_client, persist
from ironwork_hsm.aws.errors import BrokenAnswer, is_ambiguous, translate
from ironwork_hsm.aws.uri import AwsKmsUri, parse_aws_uri
from ironwork_hsm.binding import CANARY, CANARY_CONTEXT, DATA_KEY_BYTES, wipe
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

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient
    from mypy_boto3_kms.type_defs import KeyMetadataTypeDef

Result = TypeVar("Result")


class AwsKmsKeyWrapper:
    """Implements KeyWrapper. Made by open_aws_kms."""

    def __init__(
        self, uri: AwsKmsUri, options: BackendOptions, *, endpoint_url: str | None = None
    ) -> None:
        """endpoint_url: for tests, whose KMS is on loopback; no setting leads here."""
        self._uri = uri
        self._options = options
        self._endpoint_url = endpoint_url
        # The key's ARN, once KMS has told it; aliases are followed once, when opening.
        self._arn: str | None = None
        # Made by the first lane and shared by all: botocore's clients are safe for threads.
        self._client: KMSClient | None = None
        self._lanes: Lanes[KMSClient] = Lanes(
            setup=self._open_lane,
            teardown=keep,
            translate=translate,
            count=options.lanes,
            capacity=options.queue,
        )

    @property
    def name(self) -> str:
        return self._uri.name

    @property
    def current_version(self) -> int:
        """Always 1. Raises KeyMissing where there is no such key (opened with allow_missing)."""
        self._known_arn()
        return VERSION

    @property
    def mechanism(self) -> str:
        return MECHANISM

    async def start(self, *, allow_missing: bool) -> None:
        """Open the lanes and look at the key. Closes again what it opened where it fails."""
        try:
            await self._lanes.start(deadline_s=self._options.slow_deadline_s)
            try:
                metadata = await self._run(
                    lambda client: describe(client, self._uri.key),
                    deadline_s=self._options.slow_deadline_s,
                )
            except KeyMissing:
                if not allow_missing:
                    raise
                return
            check_kind(metadata)
            self._arn = metadata["Arn"]
            if not allow_missing:
                await self._check(self._options.slow_deadline_s)
        except BaseException:
            await self.close()
            raise

    async def mechanism_of(self, version: int) -> str:
        """See KeyWrapper.mechanism_of."""
        self._require_known(version)
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
        arn = self._require_known(version)
        bound = self._bound(context)
        # A copy, since the caller may wipe its own as soon as it is cancelled.
        copy = bytearray(data_key)
        try:
            ciphertext = await self._run(lambda client: _encrypt(client, arn, copy, bound))
        finally:
            wipe(copy)
        return WrappedKey(self.name, VERSION, MECHANISM, pack(arn, ciphertext))

    async def unwrap(
        self, wrapped: WrappedKey, context: bytes, *, reference: str = ""
    ) -> bytearray:
        """See KeyWrapper.unwrap. Raises ValueError for a context over 5,000 bytes."""
        bound = self._bound(context)
        check_made_by(wrapped, self.name, (MECHANISM,))
        arn = self._require_known(wrapped.key_version)
        made_by, ciphertext = unpack(wrapped.blob)
        if made_by != arn:
            # Not asked of KMS: else whoever writes rows could name a key of their own.
            raise BlobRejected(
                f"The wrapped key was made by another KMS key than `{self.name}` is now; where "
                "that is an alias, point it back, or list the other key's URI."
            )
        canary = self._bound(CANARY_CONTEXT)
        return await self._run(
            lambda client: _open(client, arn, ciphertext, bound, canary=canary),
            discard=wipe,
        )

    async def versions(self) -> Sequence[KeyVersion]:
        """See KeyWrapper.versions: the one KMS key, as DescribeKey tells of it; none where there is
        no such key. KMS gives no key's material out; `local` is whether KMS generated it.
        """
        try:
            metadata = await self._run(lambda client: describe(client, self._uri.key))
        except KeyMissing:
            return []
        local = metadata.get("Origin") in ("AWS_KMS", "AWS_CLOUDHSM")
        return [
            KeyVersion(
                version=VERSION,
                label=metadata["Arn"],
                sensitive=True,
                extractable=False,
                never_extractable=local,
                local=local,
                mechanism=MECHANISM,
            )
        ]

    async def check(self, version: int | None = None) -> None:
        """See KeyWrapper.check. Raises KeyMissing, ConfigurationError, Unavailable."""
        self._require_known(version)
        await self._check(self._options.deadline_s)

    async def close(self) -> None:
        """End the lanes and close the connections. A second call does nothing."""
        await self._lanes.close(deadline_s=self._options.deadline_s)
        if self._client is not None:
            self._client.close()

    async def _check(self, deadline_s: float) -> None:
        arn = self._known_arn()
        bound = self._bound(CANARY_CONTEXT)
        await self._run(
            lambda client: _round_trip(client, arn, bound),
            deadline_s=deadline_s,
        )

    async def _run(
        self,
        function: "Callable[[KMSClient], Result]",
        *,
        discard: Callable[[Result], None] = keep,
        deadline_s: float | None = None,
    ) -> Result:
        """On a lane, again where the failure is passing and somebody still waits."""
        limit = self._options.deadline_s if deadline_s is None else deadline_s
        until = time.monotonic() + limit
        return await self._lanes.run(
            lambda client: persist(lambda: function(client), until=until),
            deadline_s=limit,
            discard=discard,
        )

    def _open_lane(self) -> "KMSClient":
        """In the lane's thread. Lanes start one after the other, so one client is made."""
        if self._client is None:
            self._client = make_client(
                self._uri.region, self._options, endpoint_url=self._endpoint_url
            )
        return self._client

    def _require_known(self, version: int | None) -> str:
        """The key's ARN, for the version that there is."""
        if version not in (None, VERSION):
            raise KeyMissing(f"A KMS key has one version here, {VERSION}.")
        return self._known_arn()

    def _known_arn(self) -> str:
        if self._arn is None:
            raise KeyMissing(
                f"AWS KMS knows no key `{self.name}`; make a symmetric one (aws kms create-key) "
                "and start again."
            )
        return self._arn

    def _bound(self, context: bytes) -> dict[str, str]:
        check_context(context, MAX_CONTEXT_BYTES)
        return encryption_context(name=self.name, context=context)


async def open_aws_kms(
    uri: str,
    *,
    allow_missing: bool = False,
    options: BackendOptions | None = None,
    endpoint_url: str | None = None,
) -> AwsKmsKeyWrapper:
    """Open the KMS key at uri; see ironwork_hsm.open_backend. endpoint_url: for tests."""
    wrapper = AwsKmsKeyWrapper(
        parse_aws_uri(uri), options or BackendOptions(), endpoint_url=endpoint_url
    )
    await wrapper.start(allow_missing=allow_missing)
    return wrapper


def describe(client: "KMSClient", key: str) -> "KeyMetadataTypeDef":
    """What KMS says of a key. Raises BrokenAnswer, botocore's errors."""
    answer = client.describe_key(KeyId=key)
    _require(answer, "KeyMetadata")
    return answer["KeyMetadata"]


def check_kind(metadata: "KeyMetadataTypeDef") -> None:
    """Raises ConfigurationError for a key that cannot wrap."""
    if (
        metadata.get("KeyUsage") != "ENCRYPT_DECRYPT"
        or metadata.get("KeySpec") != "SYMMETRIC_DEFAULT"
        or metadata.get("KeyManager") != "CUSTOMER"
    ):
        raise ConfigurationError(
            "The KMS key must be a customer's own symmetric key for encryption "
            "(SYMMETRIC_DEFAULT, ENCRYPT_DECRYPT)."
        )


def _encrypt(
    client: "KMSClient", arn: str, data: bytes | bytearray, bound: dict[str, str]
) -> bytes:
    answer = client.encrypt(
        KeyId=arn,
        Plaintext=data,  # type: ignore[arg-type]  # botocore takes a bytearray, its stubs do not
        EncryptionContext=bound,
    )
    _require(answer, "KeyId", "CiphertextBlob")
    ciphertext = answer["CiphertextBlob"]
    if answer["KeyId"] != arn or not 1 <= len(ciphertext) <= MAX_CIPHERTEXT_BYTES:
        raise Unavailable("AWS KMS answered for another key than it was asked for.")
    return ciphertext


def _open(
    client: "KMSClient",
    arn: str,
    ciphertext: bytes,
    bound: dict[str, str],
    *,
    canary: dict[str, str],
) -> bytearray:
    """The data key, for the caller to wipe. Raises BlobRejected, Unavailable, botocore's errors."""
    try:
        return _decrypt(client, arn, ciphertext, bound)
    except Exception as error:
        if not is_ambiguous(error):
            raise
    # Outside the handler, so that what follows carries no foreign error as its context. If the key
    # is not to be used at all, this raises why.
    _round_trip(client, arn, canary)
    raise BlobRejected("The wrapped key does not open in this context.")


def _decrypt(client: "KMSClient", arn: str, ciphertext: bytes, bound: dict[str, str]) -> bytearray:
    answer = client.decrypt(KeyId=arn, CiphertextBlob=ciphertext, EncryptionContext=bound)
    _require(answer, "KeyId", "Plaintext")
    data_key = bytearray(answer["Plaintext"])
    if answer["KeyId"] != arn or len(data_key) != DATA_KEY_BYTES:
        wipe(data_key)
        raise Unavailable("AWS KMS answered with another key than it was asked for.")
    return data_key


def _round_trip(client: "KMSClient", arn: str, bound: dict[str, str]) -> None:
    """Encrypt and decrypt a known value. Raises Unavailable, botocore's errors."""
    ciphertext = _encrypt(client, arn, CANARY, bound)
    opened = _decrypt(client, arn, ciphertext, bound)
    if not hmac.compare_digest(opened, CANARY) or CANARY in ciphertext:
        raise Unavailable("AWS KMS does not decrypt what it has just encrypted.")


def _require(answer: Mapping[str, object], *names: str) -> None:
    if not answer.keys() >= set(names):
        raise BrokenAnswer
