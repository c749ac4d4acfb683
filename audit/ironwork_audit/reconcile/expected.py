"""Which calls an entry of ours stands for: docs/adr/0017 (PKCS#11) and 0018 (KMS) as rules."""

from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Final

from ironwork_audit.reconcile.match import Slot
from ironwork_audit.reconcile.steps import Step

# An operation that was given up may still reach the device, and one that was cut off by the
# process's end has no end on record: a lane's deadlines, opening included.
_LATE_MS: Final = 30_000

# (function, mechanism) of the one call that wraps, and of the one that unwraps.
_GCM: Final = (("C_Encrypt", "CKM_AES_GCM"), ("C_Decrypt", "CKM_AES_GCM"))
_HMAC: Final = (("C_Sign", "CKM_SHA256_HMAC"), ("C_Sign", "CKM_SHA256_HMAC"))
_CBC: Final = (("C_Encrypt", "CKM_AES_CBC"), ("C_Decrypt", "CKM_AES_CBC"))
# Of an operation that failed before its mechanism was known.
_ANY: Final = (("C_Encrypt", ""), ("C_Decrypt", ""))
_BY_MECHANISM: Final = {
    "aes-256-gcm": _GCM,
    "aes-256-gcm-device-iv": _GCM,
    "aes-256-gcm-appended-iv": _GCM,
    "hmac-sha256-derive": _HMAC,
    "aes-256-cbc-seed": _CBC,
}
# One AES key serves both, so what wraps now may be the other one than what made a wrapped key.
_OTHER_OF_AES: Final = {"CKM_AES_GCM": "CKM_AES_CBC", "CKM_AES_CBC": "CKM_AES_GCM"}
_SIGNING: Final = {"ed25519": "CKM_EDDSA", "ecdsa-p256": "CKM_ECDSA"}
# A checkpoint's key is a pair; a master key is one key.
_CHECKPOINT: Final = "checkpoint"
# Opening and listing look for keys and use none.
_NO_CALLS: Final = frozenset({"hsm.open", "hsm.list"})

# A repeat after a lost answer leaves a line in CloudTrail each time: three attempts at most.
_KMS_ATTEMPTS: Final = 3

_Call = tuple[str, str]


class UnknownStep(Exception):
    """An operation that these rules do not know; a newer ironwork-audit may."""


class _Does(Enum):
    """What an operation does in the device."""

    MAKE = auto()  # a wrapped key
    USE = auto()  # a wrapped key
    TRY_MAKE = auto()  # a known value there, by the mechanism that wraps now
    TRY_USE = auto()  # and back
    SIGN = auto()
    GENERATE = auto()
    DESTROY = auto()


# (what an operation that succeeded did, what one that did not may have done).
_OPERATIONS: Final = {
    "hsm.wrap": ((_Does.MAKE,), (_Does.MAKE,)),
    # After a refusal, a known value there and back tells whose fault it was; then the wrapped key
    # is tried once more.
    "hsm.unwrap": ((_Does.USE,), (_Does.USE, _Does.TRY_MAKE, _Does.TRY_USE, _Does.USE)),
    "hsm.probe": ((_Does.MAKE, _Does.USE), (_Does.MAKE, _Does.USE)),
    "hsm.sign": ((_Does.SIGN,), (_Does.SIGN,)),
    # Where another process was first, ours is taken away again: a pair is two objects.
    "hsm.generate": ((_Does.GENERATE,), (_Does.GENERATE, _Does.DESTROY, _Does.DESTROY)),
    "hsm.destroy": ((_Does.DESTROY,), (_Does.DESTROY,)),
}


def slots_for_pkcs11(steps: Sequence[Step], skew_ms: int) -> Iterator[Slot]:
    """The calls in a device's log. Raises UnknownStep."""
    for number, step in enumerate(steps):
        if step.operation in _NO_CALLS:
            continue
        if step.operation not in _OPERATIONS:
            raise UnknownStep(f"{step.place}: {step.operation} is an operation not known here")
        done, perhaps = _OPERATIONS[step.operation]
        if step.success:
            for does in done:
                yield _slot(step, number, _pkcs11(step, does), True, True, skew_ms)
        else:
            for does in perhaps:
                slot = _slot(step, number, _pkcs11(step, does), None, False, skew_ms)
                if does in (_Does.TRY_MAKE, _Does.TRY_USE):
                    slot = slot._replace(or_subject=_OTHER_OF_AES.get(slot.subject, ""))
                yield slot


def _pkcs11(step: Step, does: _Does) -> _Call:
    match does:
        case _Does.SIGN:
            return "C_Sign", _SIGNING.get(step.mechanism, "")
        case _Does.GENERATE:
            is_pair = step.purpose == _CHECKPOINT
            return "C_GenerateKeyPair" if is_pair else "C_GenerateKey", ""
        case _Does.DESTROY:
            return "C_DestroyObject", ""
    if step.success and step.mechanism not in _BY_MECHANISM:
        raise UnknownStep(f"{step.place}: {step.operation} by a mechanism not known here")
    made, used = _BY_MECHANISM.get(step.mechanism, _ANY)
    return made if does in (_Does.MAKE, _Does.TRY_MAKE) else used


def slots_for_kms(steps: Sequence[Step], skew_ms: int) -> Iterator[Slot]:
    """The calls in AWS CloudTrail: of each call that succeeded one line at least, and others where
    an answer was lost and the call repeated. Raises UnknownStep.
    """
    for number, step in enumerate(steps):
        if step.operation in _NO_CALLS:
            continue
        for function, subject in _kms(step):
            call = function, subject
            if step.success:
                yield _slot(step, number, call, True, True, skew_ms)
            for _ in range(_KMS_ATTEMPTS - bool(step.success)):
                yield _slot(step, number, call, None, False, skew_ms)


def _kms(step: Step) -> Iterator[_Call]:
    """(event name, which context)."""
    subject = step.key_id or PEPPER
    match step.operation:
        case "hsm.wrap":
            yield "Encrypt", subject
        case "hsm.unwrap":
            yield "Decrypt", subject
            if not step.success:
                yield "Encrypt", CANARY
                yield "Decrypt", CANARY
        case "hsm.probe":
            yield "Encrypt", CANARY
            yield "Decrypt", CANARY
        case _:
            raise UnknownStep(f"{step.place}: {step.operation} is an operation not known here")


# What a Call of KMS is about, where that is no stored key.
PEPPER: Final = "the pepper"
CANARY: Final = "a probe"


def _slot(
    step: Step, number: int, call: _Call, ok: bool | None, required: bool, skew_ms: int
) -> Slot:
    ended = step.end_ms is not None and step.success is True
    end_ms = step.end_ms if ended and step.end_ms is not None else None
    late_ms = (step.end_ms or step.start_ms) + _LATE_MS
    return Slot(
        function=call[0],
        subject=call[1],
        start_ms=step.start_ms - skew_ms,
        end_ms=(late_ms if end_ms is None else end_ms) + skew_ms,
        ok=ok,
        required=required,
        step=number,
    )
