"""What a transport is made with, checked once."""

import re
from dataclasses import dataclass

from ironwork.keys.v1 import keys_pb2
from ironwork_client.profile import Profile

DEFAULT_IDLE_STREAMS = 8
DEFAULT_STREAMS = 64

# A WithKey message holds at most 16 KiB of body; heads are larger only by their headers.
MAX_RECEIVE_BYTES = 1 << 20

_CLAIM = re.compile(r"[\x21-\x7e]{0,128}")


@dataclass(frozen=True, slots=True)
class Settings:
    """The bounds of a transport's pool, and what it says of itself in Start."""

    profile: Profile
    start: keys_pb2.Start
    max_idle_streams: int
    max_streams: int

    @classmethod
    def checked(
        cls, profile: Profile, *, task: str, agent: str, max_idle_streams: int, max_streams: int
    ) -> "Settings":
        """Raises ValueError, and ProfileError where the profile has no workspace."""
        for name, value in (("task", task), ("agent", agent)):
            if not _CLAIM.fullmatch(value):
                raise ValueError(f"{name} must be at most 128 visible ASCII characters")
        if max_streams < 1 or not 0 <= max_idle_streams <= max_streams:
            raise ValueError(
                "max_streams must be at least 1, and max_idle_streams between 0 and max_streams"
            )
        start = keys_pb2.Start(parent=profile.parent, task=task, agent=agent)
        return cls(profile, start, max_idle_streams, max_streams)
