"""What the typed sync clients share: one channel, a deadline for each call, closed at the end."""

from types import TracebackType
from typing import Self

import grpc

from ironwork_client._channel import channel_options
from ironwork_client.profile import Profile


class UnaryClient:
    """Base of the typed clients. A context manager; safe for threads."""

    def __init__(self, profile: Profile, *, deadline: float, max_receive_bytes: int) -> None:
        """deadline: seconds for each call. Raises ProfileError."""
        self._deadline = deadline
        self._channel = grpc.secure_channel(
            profile.target,
            profile.credentials(),
            options=channel_options(profile, max_receive_bytes=max_receive_bytes),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._channel.close()
