"""The AWS KMS backend beyond the contract: faults, whose they are, and what KMS gets to see."""

import asyncio
import base64
import logging
from typing import Any

import pytest

from fixtures.aws import REGION, AwsKms, Fault, answer, change
from ironwork_hsm import (
    BackendOptions,
    BlobRejected,
    Busy,
    ConfigurationError,
    HsmError,
    KeyMissing,
    Unavailable,
    WrappedKey,
)
from ironwork_hsm.aws import client as client_module
from ironwork_hsm.aws import open_aws_kms
from ironwork_hsm.aws.blob import pack, unpack

CONTEXT = b"workspaces/acme key 7"
HASTY = BackendOptions(lanes=2, deadline_s=1.0, slow_deadline_s=60)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without waiting."""
    monkeypatch.setattr(client_module, "_PAUSES_S", (0.0, 0.0))


def told(error: HsmError) -> bool:
    """Whether foreign text got into our error."""
    return "told" in str(error) or error.__context__ is not None or error.__cause__ is not None


@pytest.mark.parametrize(
    ("code", "status", "ours", "attempts"),
    [
        ("AccessDeniedException", 400, ConfigurationError, 1),
        ("NotFoundException", 400, KeyMissing, 1),
        ("DisabledException", 400, Unavailable, 1),
        ("KMSInvalidStateException", 400, Unavailable, 1),
        ("InvalidKeyUsageException", 400, ConfigurationError, 1),
        ("UnrecognizedClientException", 400, ConfigurationError, 1),
        ("InvalidSignatureException", 403, ConfigurationError, 1),
        ("ExpiredTokenException", 400, Unavailable, 1),
        ("NeverHeardOfException", 400, Unavailable, 1),
        ("ThrottlingException", 400, Busy, 3),
        ("KMSInternalException", 500, Unavailable, 3),
        ("DependencyTimeoutException", 500, Unavailable, 3),
        ("NeverHeardOfException", 503, Unavailable, 3),
    ],
)
async def test_errors_by_code(
    aws_kms: AwsKms, code: str, status: int, ours: type[HsmError], attempts: int
) -> None:
    """AWS's code decides which of our errors it is, and whether the request is repeated, at most
    twice; no text of AWS's gets out.
    """
    async with aws_kms.opened(aws_kms.make_uri()) as backend:
        aws_kms.front.requests.clear()
        aws_kms.front.next.extend([answer(status, code)] * attempts)
        with pytest.raises(ours) as caught:
            await backend.wrap(bytes(32), CONTEXT)
        assert type(caught.value) is ours
        assert not told(caught.value)
        assert aws_kms.front.operations() == ["Encrypt"] * attempts
        await backend.check()


@pytest.mark.parametrize(
    "fault",
    [
        answer(400, "ThrottlingException"),
        answer(500, "KMSInternalException"),
        Fault(cut=True),
        Fault(lost=True),
        Fault(garbage=True),
        Fault(garbage=True, change=lambda _status, body: (500, body)),
    ],
    ids=["throttled", "500", "cut", "lost", "garbage", "garbage 500"],
)
async def test_a_passing_fault_is_mended_by_a_repeat(aws_kms: AwsKms, fault: Fault) -> None:
    """One throttling, fault, cut or lost answer costs a repeat, and the right answer comes."""
    async with aws_kms.opened(aws_kms.make_uri()) as backend:
        wrapped = await backend.wrap(b"k" * 32, CONTEXT)
        aws_kms.front.requests.clear()
        aws_kms.front.next.append(fault)
        assert await backend.unwrap(wrapped, CONTEXT) == b"k" * 32
        assert aws_kms.front.operations() == ["Decrypt"] * 2


async def test_a_code_of_the_blob_rejects_it(aws_kms: AwsKms) -> None:
    """InvalidCiphertext and IncorrectKey reject the blob, in one request."""
    async with aws_kms.opened(aws_kms.make_uri()) as backend:
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        aws_kms.front.requests.clear()
        for code in ("InvalidCiphertextException", "IncorrectKeyException"):
            aws_kms.front.next.append(answer(400, code))
            with pytest.raises(BlobRejected) as caught:
                await backend.unwrap(wrapped, CONTEXT)
            assert not told(caught.value)
        assert aws_kms.front.operations() == ["Decrypt"] * 2


async def test_a_denial_never_rejects_a_blob(aws_kms: AwsKms) -> None:
    """A Decrypt that KMS denies is a matter of its policies, which may allow other contexts: no
    record is called damaged for it.
    """
    async with aws_kms.opened(aws_kms.make_uri()) as backend:
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        aws_kms.front.requests.clear()
        aws_kms.front.next.append(answer(400, "AccessDeniedException"))
        with pytest.raises(ConfigurationError, match="kms:Decrypt") as caught:
            await backend.unwrap(wrapped, CONTEXT)
        assert not told(caught.value)
        assert aws_kms.front.operations() == ["Decrypt"]


async def test_an_unknown_key_may_be_the_blobs_or_the_keys(aws_kms: AwsKms) -> None:
    """Where KMS knows no key for a Decrypt, a known value tells whose fault it is: the key works
    and the blob is rejected, or the key is unknown too and that is the error.
    """
    unknown = answer(400, "NotFoundException")
    async with aws_kms.opened(aws_kms.make_uri()) as backend:
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        aws_kms.front.next.append(unknown)
        with pytest.raises(BlobRejected) as caught:
            await backend.unwrap(wrapped, CONTEXT)
        assert not told(caught.value)
        aws_kms.front.next.extend([unknown, unknown])
        with pytest.raises(KeyMissing):
            await backend.unwrap(wrapped, CONTEXT)


def _flip(text: str) -> str:
    raw = bytearray(base64.b64decode(text))
    raw[-1] ^= 1
    return base64.b64encode(raw).decode()


@pytest.mark.parametrize(
    "fault",
    [
        change(KeyId=lambda arn: arn[:-1] + ("1" if arn.endswith("0") else "0")),
        change(KeyId=lambda _: ""),
        change(Plaintext=lambda _: base64.b64encode(bytes(31)).decode()),
        change(Plaintext=lambda _: ""),
    ],
    ids=["another key", "no key", "31 bytes", "nothing"],
)
async def test_a_wrong_answer_is_no_data_key(aws_kms: AwsKms, fault: Fault) -> None:
    """An answer for another key, of another length, or that is none, is never handed on."""
    async with aws_kms.opened(aws_kms.make_uri()) as backend:
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        aws_kms.front.next.append(fault)
        with pytest.raises(Unavailable):
            await backend.unwrap(wrapped, CONTEXT)
        assert await backend.unwrap(wrapped, CONTEXT) == bytes(32)


@pytest.mark.parametrize(
    "fault",
    [
        change(KeyId=lambda arn: arn[:-1] + ("1" if arn.endswith("0") else "0")),
        change(CiphertextBlob=lambda _: ""),
        change(CiphertextBlob=lambda _: base64.b64encode(bytes(6145)).decode()),
    ],
    ids=["another key", "nothing", "too long"],
)
async def test_a_wrong_answer_is_no_blob(aws_kms: AwsKms, fault: Fault) -> None:
    """A ciphertext of another key, or that cannot be one, is never stored."""
    async with aws_kms.opened(aws_kms.make_uri()) as backend:
        aws_kms.front.next.append(fault)
        with pytest.raises(Unavailable):
            await backend.wrap(bytes(32), CONTEXT)


async def test_check_finds_a_kms_that_errs(aws_kms: AwsKms) -> None:
    """A KMS that does not give back what it encrypted does not pass the check, nor the start."""
    uri = aws_kms.make_uri()
    wrong = change(Plaintext=_flip)
    async with aws_kms.opened(uri) as backend:
        aws_kms.front.next.extend([Fault(), wrong])
        with pytest.raises(Unavailable, match="does not decrypt what it has just encrypted"):
            await backend.check()
    aws_kms.front.next.extend([Fault(), Fault(), wrong])
    with pytest.raises(Unavailable):
        async with aws_kms.opened(uri):
            pass


async def test_a_hanging_kms_costs_a_deadline_and_no_more(aws_kms: AwsKms) -> None:
    """A call that hangs is Unavailable at its deadline, the loop runs on, and other calls work."""
    async with aws_kms.opened(aws_kms.make_uri(), HASTY) as backend:
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        aws_kms.front.next.append(Fault(hang=True))
        loop = asyncio.get_running_loop()
        before = loop.time()
        hanging = asyncio.create_task(backend.unwrap(wrapped, CONTEXT))
        await asyncio.to_thread(aws_kms.front.hanging.wait, 20)
        assert await backend.unwrap(wrapped, CONTEXT) == bytes(32)
        with pytest.raises(Unavailable, match="within 1 s"):
            await hanging
        assert loop.time() - before >= HASTY.deadline_s


async def test_what_kms_sees(aws_kms: AwsKms, caplog: pytest.LogCaptureFixture) -> None:
    """KMS gets the key's ARN and, by name, all that the blob is bound to; logs get none of it."""
    caplog.set_level(logging.DEBUG)
    arn = aws_kms.make_key()
    async with aws_kms.opened(f"awskms:///{arn}") as backend:
        aws_kms.front.requests.clear()
        wrapped = await backend.wrap(b"k" * 32, CONTEXT)
        await backend.unwrap(wrapped, CONTEXT)
    bound = {
        "ironwork:format": "ironwork-wrap-v1",
        "ironwork:master-key": f"awskms:///{arn}",
        "ironwork:version": "1",
        "ironwork:mechanism": "aws-kms",
        "ironwork:context": base64.b64encode(CONTEXT).decode(),
    }
    encrypt, decrypt = aws_kms.front.requests
    assert encrypt.body == {
        "KeyId": arn,
        "Plaintext": base64.b64encode(b"k" * 32).decode(),
        "EncryptionContext": bound,
    }
    assert decrypt.body == {
        "KeyId": arn,
        "CiphertextBlob": base64.b64encode(unpack(wrapped.blob).ciphertext).decode(),
        "EncryptionContext": bound,
    }
    assert base64.b64encode(b"k" * 32).decode() not in caplog.text
    assert unpack(wrapped.blob).arn == arn


async def test_a_blob_that_names_another_key_is_not_tried(aws_kms: AwsKms) -> None:
    """Whoever writes rows cannot have another key asked: only the configured one ever is."""
    async with aws_kms.opened(aws_kms.make_uri()) as backend:
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        other = aws_kms.make_key()
        aws_kms.front.requests.clear()
        blob = pack(other, unpack(wrapped.blob).ciphertext)
        with pytest.raises(BlobRejected, match="another KMS key"):
            await backend.unwrap(WrappedKey(backend.name, 1, backend.mechanism, blob), CONTEXT)
        assert aws_kms.front.requests == []


async def test_an_alias_is_followed_once(aws_kms: AwsKms) -> None:
    """An alias means the key it led to at the start; moved, it opens the older blobs no more."""
    first = aws_kms.make_key()
    alias = "alias/ironwork-" + first[-12:]
    aws_kms.client.create_alias(AliasName=alias, TargetKeyId=first)
    uri = f"awskms:///{alias}?region={REGION}"
    async with aws_kms.opened(uri) as backend:
        assert backend.name == f"awskms:///{alias}"
        wrapped = await backend.wrap(bytes(32), CONTEXT)
        aws_kms.client.update_alias(AliasName=alias, TargetKeyId=aws_kms.make_key())
        assert await backend.unwrap(wrapped, CONTEXT) == bytes(32)
    async with aws_kms.opened(uri) as backend:
        with pytest.raises(BlobRejected, match="point it back"):
            await backend.unwrap(wrapped, CONTEXT)


async def test_a_missing_key(aws_kms: AwsKms) -> None:
    """A key that is not there is KeyMissing; with allow_missing, as soon as it is needed."""
    uri = f"awskms:///arn:aws:kms:{REGION}:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    with pytest.raises(KeyMissing):
        async with aws_kms.opened(uri):
            pass
    async with aws_kms.opened(uri, allow_missing=True) as backend:
        assert await backend.versions() == []
        for call in (backend.wrap(bytes(32), b""), backend.check()):
            with pytest.raises(KeyMissing, match="create-key"):
                await call


async def test_a_key_of_another_kind(aws_kms: AwsKms) -> None:
    """A key for signatures is refused at the start."""
    arn = aws_kms.make_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")
    with pytest.raises(ConfigurationError, match="SYMMETRIC_DEFAULT"):
        async with aws_kms.opened(f"awskms:///{arn}"):
            pass


async def test_a_key_whose_material_was_imported(aws_kms: AwsKms) -> None:
    """Of imported material KMS cannot say that it never was elsewhere, and neither do we."""
    arn = aws_kms.make_key(Origin="EXTERNAL")
    async with aws_kms.opened(f"awskms:///{arn}", allow_missing=True) as backend:
        (version,) = await backend.versions()
        assert not version.local
        assert not version.never_extractable


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS"])
async def test_no_endpoint_from_the_environment(
    aws_kms: AwsKms, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Data keys go to AWS's own endpoint: a variable that names another stops the start."""
    monkeypatch.setenv(name, aws_kms.url)
    with pytest.raises(ConfigurationError, match=name):
        await open_aws_kms(aws_kms.make_uri())
    assert aws_kms.front.requests == []


async def test_no_endpoint_from_a_file_and_no_proxy(
    aws_kms: AwsKms, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Neither AWS's configuration file nor the environment's proxy leads the client elsewhere."""
    config = tmp_path / "config"
    config.write_text(f"[default]\nendpoint_url = {aws_kms.url}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    client = client_module.make_client(REGION, HASTY, endpoint_url=None)
    assert client.meta.endpoint_url == f"https://kms.{REGION}.amazonaws.com"
    client.close()
    async with aws_kms.opened(aws_kms.make_uri()) as backend:
        await backend.check()


async def test_no_credentials_and_no_region(
    aws_kms: AwsKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without credentials, or without a region, the start says what is missing."""
    with pytest.raises(ConfigurationError, match="region"):
        async with aws_kms.opened("awskms:///alias/any"):
            pass
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigurationError, match="found no credentials"):
        async with aws_kms.opened(aws_kms.make_uri()):
            pass


async def test_nobody_answers(aws_kms: AwsKms) -> None:
    """A KMS that cannot be reached is Unavailable."""
    async with aws_kms.opened(aws_kms.make_uri()) as backend:
        aws_kms.front.close()
        with pytest.raises(Unavailable, match="cannot be reached"):
            await backend.wrap(bytes(32), CONTEXT)


async def test_a_context_has_a_bound(aws_kms: AwsKms) -> None:
    """A context that KMS would not take is refused before it is asked."""
    async with aws_kms.opened(aws_kms.make_uri()) as backend:
        with pytest.raises(ValueError, match="at most 5000 bytes"):
            await backend.wrap(bytes(32), bytes(5001))
