"""AWS KMS URIs and blobs: one strict reading, and nothing that could lead elsewhere."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_hsm import BlobRejected, ConfigurationError, open_backend
from ironwork_hsm.aws.blob import MAX_CONTEXT_BYTES, encryption_context, pack, unpack
from ironwork_hsm.aws.uri import AwsKmsUri, parse_aws_uri

KEY = "1234abcd-12ab-34cd-56ef-1234567890ab"
ARN = f"arn:aws:kms:eu-central-1:111122223333:key/{KEY}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"awskms:///{ARN}", AwsKmsUri(ARN, "eu-central-1")),
        (f"awskms:///{ARN}?region=eu-central-1", AwsKmsUri(ARN, "eu-central-1")),
        (f"AWSKMS:///{KEY}", AwsKmsUri(KEY, None)),
        (f"awskms:///{KEY}?region=us-gov-west-1", AwsKmsUri(KEY, "us-gov-west-1")),
        ("awskms:///alias/iron/work_1", AwsKmsUri("alias/iron/work_1", None)),
        (
            "awskms:///arn:aws-cn:kms:cn-north-1:111122223333:alias/a",
            AwsKmsUri("arn:aws-cn:kms:cn-north-1:111122223333:alias/a", "cn-north-1"),
        ),
        (f"awskms:///mrk-{'a' * 32}", AwsKmsUri(f"mrk-{'a' * 32}", None)),
    ],
)
def test_uris_are_read(text: str, expected: AwsKmsUri) -> None:
    """A key's ARN, id or alias after three slashes; the name is all of it but the query."""
    assert parse_aws_uri(text) == expected
    assert parse_aws_uri(text).name == f"awskms:///{expected.key}"


@pytest.mark.parametrize(
    "text",
    [
        f"awskms:{KEY}",
        f"awskms://{KEY}",
        f"awskms://evil.example/{KEY}",
        "awskms:///",
        "awskms:///alias/",
        f"awskms:///{KEY}/",
        f"awskms:///{KEY}\n",
        f"awskms:///{KEY.upper()}",
        f"awskms:///{KEY}?",
        f"awskms:///{KEY}?region=",
        f"awskms:///{KEY}?region=eu-central-1.evil.example",
        f"awskms:///{KEY}?region=eu-central-1&endpoint=s3cret",
        f"awskms:///{KEY}?access-key-id=s3cret",
        f"awskms:///{ARN}?region=us-east-1",
        "awskms:///" + ARN.replace(":kms:", ":s3:"),
        "awskms:///alias/" + "a" * 600,
    ],
)
async def test_anything_else_is_refused(text: str) -> None:
    """No endpoint, no credential, nothing unknown; and the error repeats nothing of it."""
    with pytest.raises(ConfigurationError) as caught:
        parse_aws_uri(text)
    assert "s3cret" not in str(caught.value)
    assert "evil" not in str(caught.value)
    with pytest.raises(ConfigurationError):
        await open_backend(text)


@settings(deadline=None)  # a slow machine is no failure
@given(st.binary(min_size=1, max_size=6144))
def test_blobs_pack_and_unpack(ciphertext: bytes) -> None:
    """A blob is its layout byte, the key's ARN with its length, and KMS's ciphertext."""
    blob = pack(ARN, ciphertext)
    assert blob == b"\x01\x00" + bytes((len(ARN),)) + ARN.encode() + ciphertext
    assert unpack(blob) == (ARN, ciphertext)


@settings(deadline=None)  # a slow machine is no failure
@given(st.binary(max_size=64))
def test_other_bytes_are_no_blob(blob: bytes) -> None:
    """What unpacks, packs to the same bytes; all else is rejected."""
    try:
        arn, ciphertext = unpack(blob)
    except BlobRejected:
        return
    assert pack(arn, ciphertext) == blob


@pytest.mark.parametrize("blob", [pack(ARN, b""), pack("", b"c"), pack(ARN, bytes(6145))])
def test_parts_have_bounds(blob: bytes) -> None:
    """Neither part is empty, and no ciphertext is longer than KMS makes them."""
    with pytest.raises(BlobRejected):
        unpack(blob)


@settings(deadline=None)  # a slow machine is no failure
@given(st.binary(max_size=MAX_CONTEXT_BYTES), st.binary(max_size=MAX_CONTEXT_BYTES))
def test_the_encryption_context_is_unambiguous_and_fits(first: bytes, second: bytes) -> None:
    """Two contexts give the same encryption context only where they are the same, and none is
    longer than KMS takes.
    """
    contexts = [encryption_context(name="n", context=context) for context in (first, second)]
    assert (contexts[0] == contexts[1]) == (first == second)
    longest = encryption_context(name="n" * 512, context=os.urandom(MAX_CONTEXT_BYTES))
    assert sum(len(name) + len(value) for name, value in longest.items()) < 8000
