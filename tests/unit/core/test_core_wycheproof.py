"""The envelope's AES-GCM against Wycheproof's vectors (96-bit nonce, 256-bit key, 128-bit tag)."""

import json
from pathlib import Path

import pytest

from ironwork_server.core.envelope import gcm_open_into, gcm_seal
from ironwork_server.core.errors import DataLoss

VECTORS = Path(__file__).parents[2] / "vectors" / "wycheproof" / "aes_gcm_test.json"


def load() -> list[dict[str, object]]:
    groups = json.loads(VECTORS.read_text("utf-8"))["testGroups"]
    return [{"keySize": group["keySize"], **test} for group in groups for test in group["tests"]]


def is_ours(test: dict[str, object]) -> bool:
    return test["keySize"] == 256 and len(str(test["iv"])) == 24


def parts(test: dict[str, object]) -> list[bytes]:
    return [bytes.fromhex(str(test[name])) for name in ("key", "iv", "aad", "msg", "ct", "tag")]


def named(test: dict[str, object]) -> str:
    return f"{test['tcId']}-{test['result']}"


OURS = [test for test in load() if is_ours(test)]


def test_all_vectors_are_there() -> None:
    """The file is whole: 66 vectors fit our parameters, 39 of them valid."""
    assert len(load()) == 316
    assert [test["result"] for test in OURS].count("valid") == 39
    assert len(OURS) == 66


@pytest.mark.parametrize("test", OURS, ids=named)
def test_opens_what_is_valid_and_nothing_else(test: dict[str, object]) -> None:
    """Valid vectors open to their message and are sealed alike; invalid ones leave zeros."""
    key, nonce, context, message, ciphertext, tag = parts(test)
    target = bytearray(b"z" * len(message))
    with memoryview(target) as view:
        if test["result"] == "valid":
            gcm_open_into(bytearray(key), nonce, ciphertext + tag, context, view)
            assert target == message
            assert gcm_seal(bytearray(key), nonce, message, context) == ciphertext + tag
        else:
            with pytest.raises(DataLoss):
                gcm_open_into(bytearray(key), nonce, ciphertext + tag, context, view)
            assert target == bytes(len(message))


@pytest.mark.parametrize("test", [test for test in load() if not is_ours(test)], ids=named)
def test_refuses_every_other_parameter(test: dict[str, object]) -> None:
    """Other key and nonce lengths are refused, valid or not: there is one cipher."""
    key, nonce, context, message, ciphertext, tag = parts(test)
    with pytest.raises(DataLoss), memoryview(bytearray(len(message))) as view:
        gcm_open_into(bytearray(key), nonce, ciphertext + tag, context, view)
    with pytest.raises(ValueError, match="32 bytes"):
        gcm_seal(bytearray(key), nonce, message, context)
