"""Signed notes, keys, checkpoints and cosignatures."""

import base64

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_audit.tlog import (
    BadCheckpoint,
    BadNote,
    Checkpoint,
    KeyType,
    Note,
    Signature,
    VerifierKey,
    cosigned_message,
    format_note,
    pack_cosignature,
    parse_cosignature,
    parse_note,
)
from ironwork_audit.tlog.signed import (
    Cosignature,
    SignatureRefused,
    open_checkpoint,
    verify_signature,
)

# The example of Go's golang.org/x/mod/sumdb/note.
NEUMANN = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NEUMANN_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZ"
    "SNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()
# The Go checksum database's key, which every Go installation has built in.
SUMDB = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
# The example of c2sp.org/tlog-cosignature.
COSIGNED = (
    "example.com/behind-the-sofa\n"
    "20852163\n"
    "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    "\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5"
    "/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJs"
    "X3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
).encode()

ORIGIN = "keys.test/a"
LOG = ed25519.Ed25519PrivateKey.from_private_bytes(b"l" * 32)
LOG_KEY = VerifierKey(ORIGIN, KeyType.ED25519, LOG.public_key().public_bytes_raw())
EC = ec.derive_private_key(7, ec.SECP256R1())
EC_KEY = VerifierKey(
    ORIGIN,
    KeyType.ECDSA,
    EC.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
)
WITNESS = ed25519.Ed25519PrivateKey.from_private_bytes(b"w" * 32)
WITNESS_KEY = VerifierKey(
    "witness.test/w", KeyType.COSIGNATURE_V1, WITNESS.public_key().public_bytes_raw()
)
HEAD = Checkpoint(ORIGIN, 5, b"r" * 32)

names = st.text(
    st.characters(exclude_characters="+", exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]),
    min_size=1,
    max_size=20,
)
signatures = st.builds(
    Signature, names, st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=99)
)


def ecdsa(text: str) -> Signature:
    return Signature.of(EC_KEY, EC.sign(text.encode(), ec.ECDSA(hashes.SHA256())))


def signature(text: str) -> Signature:
    return Signature.of(LOG_KEY, LOG.sign(text.encode()))


def cosignature(text: str, time: int) -> Signature:
    signed = WITNESS.sign(cosigned_message(text, time))
    return Signature.of(WITNESS_KEY, pack_cosignature(time, signed))


def test_published_notes_and_keys() -> None:
    """Go's example verifies, its key and the checksum database's have the ids they are known by."""
    key = VerifierKey.parse(NEUMANN)
    note = parse_note(NEUMANN_NOTE)
    (line,) = note.signatures
    assert line.is_of(key)
    verify_signature(key, note.text.encode(), line.value)
    with pytest.raises(SignatureRefused):
        verify_signature(key, note.text.encode() + b"\n", line.value)
    for text in (NEUMANN, SUMDB):
        assert str(VerifierKey.parse(text)) == text
    assert format_note(note.text, note.signatures) == NEUMANN_NOTE


def test_a_published_checkpoint() -> None:
    """The specification's cosigned checkpoint is read: its lines, its witness and its time."""
    note = parse_note(COSIGNED)
    checkpoint = Checkpoint.parse(note.text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.text == note.text
    timestamp, _ = parse_cosignature(note.signatures[1].value)
    assert timestamp == 1679315147
    assert format_note(note.text, note.signatures) == COSIGNED
    message = cosigned_message(note.text, timestamp).decode()
    assert message.startswith("cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n")


def test_key_ids_by_type() -> None:
    """An ECDSA key's id is of its bytes alone; a cosigner's differs from a signer's by its type."""
    other = VerifierKey("keys.test/b", KeyType.ECDSA, EC_KEY.public)
    assert other.key_id == EC_KEY.key_id
    as_signer = VerifierKey(WITNESS_KEY.name, KeyType.ED25519, WITNESS_KEY.public)
    assert as_signer.key_id != WITNESS_KEY.key_id
    for key in (LOG_KEY, EC_KEY, WITNESS_KEY):
        assert VerifierKey.parse(str(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PeterNeumann",
        "PeterNeumann+c74f20a3",
        "+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+C74F20A3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10T",
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW\n",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+00000000+",
        "PeterNeumann+00000000+AQ==",
        "PeterNeumann+00000000+Ag==",
    ],
)
def test_wrong_keys_are_refused(text: str) -> None:
    """A key with another hash, length, type or spelling is none."""
    with pytest.raises(BadNote):
        VerifierKey.parse(text)


@settings(deadline=None)  # a slow machine is no failure
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20), max_size=5),
    st.lists(signatures, min_size=1, max_size=5),
)
def test_notes_are_read_as_they_were_written(lines: list[str], signed: list[Signature]) -> None:
    """Text and signatures come back; the blank line that counts is the last."""
    text = "".join(f"{line}\n" for line in lines) or "\n"
    note = parse_note(format_note(text, signed))
    assert note == Note(text, tuple(signed))


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note[:-1],
        lambda note: note + b"\n",
        lambda note: note.replace(b"\n\n", b"\n"),
        lambda note: note.replace("—".encode(), b"-"),
        lambda note: note.replace(b"PeterNeumann ", b"PeterNeumann  "),
        lambda note: note.replace(b"PeterNeumann", b"Peter+Neumann"),
        lambda note: note.replace(b"PeterNeumann", "Peter\u00a0Neumann".encode()),
        lambda note: note.replace(b"PeterNeumann ", b" "),
        lambda note: note.replace(b"AM=", b"AN="),
        lambda note: note.replace(b"AM=", b"AM"),
        lambda note: note.replace(b"AM=", b"AM= "),
        lambda note: note.replace(b"your", b"y\tur"),
        lambda note: note.replace(b"your", b"y\rur"),
        lambda note: note.replace(b"your", b"\xff"),
        lambda note: note + note.splitlines(keepends=True)[-1] * 64,
        lambda note: b"x" * (1 << 20) + note,
        lambda _: "a\n\n— name AAAAAA==\n".encode(),
        lambda _: b"",
        lambda _: b"\n\n",
    ],
)
def test_wrong_notes_are_refused(change) -> None:  # type: ignore[no-untyped-def]
    """A note has one form: no control character, no second encoding, no missing line end."""
    with pytest.raises(BadNote):
        parse_note(change(NEUMANN_NOTE))


@settings(deadline=None)  # a slow machine is no failure
@given(st.binary(max_size=120) | st.text(max_size=80).map(str.encode))
def test_any_bytes_are_a_note_or_refused(data: bytes) -> None:
    """Nothing but BadNote comes out of bytes that are no note, also near to one."""
    for candidate in (data, data + b"\n\n" + NEUMANN_NOTE.split(b"\n\n")[1]):
        try:
            note = parse_note(candidate)
        except BadNote:
            continue
        assert format_note(note.text, note.signatures) == candidate


def test_no_note_that_reads_otherwise_is_written() -> None:
    """A text without its line feed, a name with a space, or no signature: refused on writing."""
    good = Signature("a", b"1234", b"s")
    for text, lines in (
        ("no line feed", [good]),
        ("text\n", []),
        ("text\r\n", [good]),
        ("text\n", [Signature("a b", b"1234", b"s")]),
        ("text\n", [Signature("a", b"123", b"s")]),
    ):
        with pytest.raises(BadNote):
            format_note(text, lines)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n1\n",
        "o\n1\nAAAA\n",
        "\n1\n{root}\n",
        "o\n01\n{root}\n",
        "o\n-1\n{root}\n",
        "o\n+1\n{root}\n",
        "o\n1 \n{root}\n",
        "o\n１\n{root}\n",
        "o\n9223372036854775808\n{root}\n",
        "o\n1\n{root}",
        "o\n1\n{root}\n\n",
        "o\n1\n{root} \n",
        "o\n1\n{root}\next\n\next\n",
        "o\n1\n{root}\n" + "x\n" * 65,
    ],
)
def test_wrong_checkpoints_are_refused(text: str) -> None:
    """Three lines in their one form, and no empty line after them."""
    with pytest.raises(BadCheckpoint):
        Checkpoint.parse(text.replace("{root}", base64.b64encode(b"r" * 32).decode()))


@settings(deadline=None)  # a slow machine is no failure
@given(
    st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1),
    st.integers(0, 2**63 - 1),
    st.binary(min_size=32, max_size=32),
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
)
def test_checkpoints_are_read_as_they_were_written(
    origin: str, size: int, root: bytes, extensions: list[str]
) -> None:
    """Origin, size, root and extension lines come back."""
    checkpoint = Checkpoint(origin, size, root, tuple(extensions))
    assert Checkpoint.parse(checkpoint.text) == checkpoint


def test_a_checkpoint_is_opened_with_its_key() -> None:
    """Ed25519, ECDSA and a witness's signature are checked; other lines are passed over."""
    text = HEAD.text
    strange = Signature("someone.else/x", b"1234", b"whatever")
    data = format_note(text, [strange, signature(text), ecdsa(text), cosignature(text, 1234)])
    assert open_checkpoint(data, LOG_KEY).checkpoint == HEAD
    assert open_checkpoint(data, EC_KEY).checkpoint == HEAD
    opened = open_checkpoint(data, LOG_KEY, [WITNESS_KEY])
    assert opened.cosignatures == (Cosignature("witness.test/w", 1234),)


def test_a_checkpoint_of_another_key_stays_closed() -> None:
    """Missing, wrong and foreign signatures are refused, and so is an origin that is not the
    key's name.
    """
    text = HEAD.text
    right = signature(text)
    wrong = Signature.of(LOG_KEY, LOG.sign(b"other"))
    for lines in ([cosignature(text, 1)], [wrong], [right, wrong], [ecdsa("other")]):
        data = format_note(text, lines)
        with pytest.raises(SignatureRefused):
            open_checkpoint(data, LOG_KEY)
    with pytest.raises(SignatureRefused):
        open_checkpoint(format_note(text, [ecdsa("other")]), EC_KEY)
    with pytest.raises(SignatureRefused, match="witness"):
        open_checkpoint(format_note(text, [right]), LOG_KEY, [WITNESS_KEY])
    late = Signature.of(WITNESS_KEY, pack_cosignature(2, cosignature(text, 1).value[8:]))
    with pytest.raises(SignatureRefused, match="witness"):
        open_checkpoint(format_note(text, [right, late]), LOG_KEY, [WITNESS_KEY])
    foreign = Checkpoint("keys.test/b", 5, b"r" * 32).text
    with pytest.raises(SignatureRefused, match="origin"):
        open_checkpoint(format_note(foreign, [signature(foreign)]), LOG_KEY)
    no_checkpoint = format_note("text\n", [signature("text\n")])
    with pytest.raises(BadCheckpoint):
        open_checkpoint(no_checkpoint, LOG_KEY)


def test_a_key_serves_its_purpose_only() -> None:
    """A witness's key opens no log, a log's key is no witness, and ECDSA is P-256."""
    data = format_note(HEAD.text, [signature(HEAD.text), cosignature(HEAD.text, 1)])
    with pytest.raises(BadNote, match="witness"):
        open_checkpoint(data, WITNESS_KEY)
    with pytest.raises(BadNote, match="witness"):
        open_checkpoint(data, LOG_KEY, [LOG_KEY])
    p384 = ec.derive_private_key(7, ec.SECP384R1()).public_key()
    der = p384.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for public in (der, b"no key"):
        with pytest.raises(BadNote):
            verify_signature(VerifierKey(ORIGIN, KeyType.ECDSA, public), b"", b"")


@pytest.mark.parametrize("time", [-1, 2**63])
def test_times_have_bounds(time: int) -> None:
    """A cosignature's time is from 0 to 2**63 - 1, written and read."""
    with pytest.raises(BadNote):
        cosigned_message("text\n", time)
    with pytest.raises(BadNote):
        pack_cosignature(time, bytes(64))
    with pytest.raises(BadNote):
        parse_cosignature((2**63).to_bytes(8, "big") + bytes(64))
    with pytest.raises(BadNote):
        parse_cosignature(bytes(71))


@pytest.mark.parametrize(
    "changes", [{"size": -1}, {"size": 2**63}, {"root": b""}, {"origin": ""}, {"origin": "a\nb"}]
)
def test_no_wrong_checkpoint_is_made(changes: dict[str, object]) -> None:
    """A checkpoint that exists can be written."""
    values: dict[str, object] = {"origin": "o", "size": 1, "root": bytes(32)}
    with pytest.raises(BadCheckpoint):
        Checkpoint(**(values | changes))  # type: ignore[arg-type]
