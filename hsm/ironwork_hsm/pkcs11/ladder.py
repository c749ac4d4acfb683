"""The mechanisms there are, best first, and which of them a master key wraps with.

A mechanism is chosen by trying: each trial is one round trip by one mechanism, and the caller puts
it on record. A device that refuses a mechanism costs that trial, and the next trial is of the next
one; a device that fails is tried again by the same, since a fault must never lead to a weaker
mechanism. Once one has worked it stays for the wrapper's life. Blobs say what made them: any
mechanism here opens its own, whichever wraps now.
"""

from collections.abc import Mapping
from types import MappingProxyType

from ironwork_hsm.interface import ConfigurationError, MechanismRefused
from ironwork_hsm.pkcs11.derived import CbcSeed, HmacDerive
from ironwork_hsm.pkcs11.gcm import AppendedIv, CallerIv, DeviceIv
from ironwork_hsm.pkcs11.keys import KeyKind
from ironwork_hsm.pkcs11.rung import Rung, Trial

_ALL: tuple[Rung, ...] = (CallerIv(), DeviceIv(), AppendedIv(), HmacDerive(), CbcSeed())
RUNGS: Mapping[str, Rung] = MappingProxyType({rung.mechanism: rung for rung in _ALL})


class Ladder:
    """One wrapper's choice. For one thread (the event loop's)."""

    def __init__(self, pinned: str | None) -> None:
        """pinned: the only mechanism to wrap with. Raises ConfigurationError if unknown."""
        if pinned is not None and pinned not in RUNGS:
            raise ConfigurationError(
                f"PKCS#11 URI: `ironwork-mechanism` is none of {', '.join(RUNGS)}."
            )
        self._pinned = pinned
        # For each kind of key, the rungs that are left; the first is the one in use.
        self._left: dict[KeyKind, tuple[Rung, ...]] = {
            kind: tuple(
                rung for rung in _ALL if rung.kind is kind and pinned in (None, rung.mechanism)
            )
            for kind in KeyKind
        }
        self._settled: set[KeyKind] = set()

    def new_kind(self, *, gcm: bool, hmac: bool) -> KeyKind:
        """The kind of key to generate in a token that lists these mechanisms."""
        if self._pinned is not None:
            return RUNGS[self._pinned].kind
        return KeyKind.AES if gcm or not hmac else KeyKind.HMAC

    def rung(self, kind: KeyKind) -> Rung:
        """What wraps with a key of this kind. Raises ConfigurationError if nothing does."""
        if not self._left[kind]:
            raise ConfigurationError(
                f"The pinned mechanism {self._pinned} needs another kind of key than the current "
                "master key; create a new version for it."
            )
        return self._left[kind][0]

    def canary(self, rung: Rung) -> Rung:
        """What tries the device after rung has failed on it: what wraps with keys of that kind."""
        return next(iter(self._left[rung.kind]), rung)

    def settle(self, rung: Rung, trial: Trial) -> None:
        """Take note of a trial of this rung.

        Raises MechanismRefused where the next trial will be of another rung, and
        ConfigurationError where none is left.
        """
        if trial is Trial.WORKS:
            self._settled.add(rung.kind)
        if trial is not Trial.REFUSED:
            return
        left = self._left[rung.kind]
        if rung.kind in self._settled or len(left) == 1:
            raise ConfigurationError(
                f"The token does not offer the mechanism {rung.mechanism} with this key."
            )
        if left[0] is rung:
            left = self._left[rung.kind] = left[1:]
        raise MechanismRefused(
            f"The token does not offer the mechanism {rung.mechanism}; {left[0].mechanism} is "
            "tried next."
        )
