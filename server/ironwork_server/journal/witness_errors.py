"""How a witness can fail: an answer that does not come, and one that is an alarm."""


class WitnessFailed(Exception):
    """No cosignature. reason: of docs/operations.md. What the witness wrote is not repeated."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WitnessConflict(WitnessFailed):
    """The witness knows another history of this log than the one that it was shown."""
