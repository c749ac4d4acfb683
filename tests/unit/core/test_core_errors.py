"""The error tree, and the small values."""

from datetime import UTC, datetime

import pytest

from ironwork_hsm import WrappedKey
from ironwork_server.core import errors, ports
from ironwork_server.core.errors import FieldViolation, InvalidRequest, IronworkError
from ironwork_server.core.values import KeyState, Replay, SealedKey, StoredKey

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def test_every_error_has_a_code() -> None:
    """Each class of the tree stands for one gRPC code."""
    classes = IronworkError.__subclasses__()
    assert len(classes) == 12
    for kind in classes:
        error = kind("What is wrong.", reason="WHY", metadata={"a": "b"}, retry_after_s=2.5)
        assert isinstance(error.code, errors.Code)
        assert (str(error), error.reason, error.metadata) == ("What is wrong.", "WHY", {"a": "b"})
        assert error.retry_after_s == 2.5


def test_a_wrong_field_is_named() -> None:
    """A field's refusal names the field in the message, the metadata and the violation."""
    error = InvalidRequest.field("api_key", "is empty", reason="API_KEY_MALFORMED")
    assert error.message == "api_key: is empty"
    assert error.metadata == {"field": "api_key"}
    assert error.violations == (FieldViolation("api_key", "is empty"),)
    assert InvalidRequest.field("x", "y").reason == "INVALID_FIELD"


def test_forbidden_and_missing_answer_alike() -> None:
    """The one refusal is the same each time, and says nothing of what was asked."""
    first, second = errors.permission_denied(), errors.permission_denied()
    assert str(first) == str(second)
    assert (first.reason, first.metadata) == ("PERMISSION_DENIED", {})


def test_a_row_shows_no_ciphertext() -> None:
    """A stored key's repr holds its name, and neither ciphertext nor fingerprint."""
    sealed = SealedKey(1, b"nonce", b"cipher", WrappedKey("hsm", 1, "aes-256-gcm", b"blob"))
    row = StoredKey(
        workspace="acme",
        key_id="k1",
        sequence=1,
        display_name="",
        mask="sk-ant-api…wxyz",
        state=KeyState.ACTIVE,
        organization_id="",
        created_at=NOW,
        created_by="",
        validated_at=NOW,
        fingerprint=b"finger",
        sealed=sealed,
    )
    assert row.name == "workspaces/acme/keys/k1"
    shown = repr(row) + repr(Replay("acme", "AddKey", "id", b"digest", b"answer", NOW))
    for hidden in ("cipher", "finger", "nonce", "digest=", "answer"):
        assert hidden not in shown


def test_the_ports_refusals_say_what_they_are_about() -> None:
    """What a store refuses with carries the value that the use case needs."""
    replay = Replay("acme", "AddKey", "id", b"", b"", NOW)
    assert ports.KeyExists("k1").key_id == "k1"
    assert ports.OrganizationDiffers(frozenset({"o"})).organizations == {"o"}
    assert ports.AlreadyAnswered(replay).replay is replay


@pytest.mark.parametrize("code", errors.Code)
def test_codes_are_grpc_numbers(code: errors.Code) -> None:
    """The core's codes have gRPC's numbers, so that they map without a table."""
    grpc = pytest.importorskip("grpc")
    assert grpc.StatusCode[code.name].value[0] == code.value
