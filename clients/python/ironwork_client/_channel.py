"""Channels to the server: their options, and the one that new streams share."""

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from ironwork_client.profile import Profile

# While a stream is open, a silent server is asked for a sign of life every 20 s and given up 10 s
# later: a partition is noticed within 30 s. The server must allow pings that often.
KEEPALIVE_S: Final = 20
KEEPALIVE_TIMEOUT_S: Final = 10

Options = list[tuple[str, str | int]]
C = TypeVar("C")


def channel_options(profile: Profile, *, max_receive_bytes: int) -> Options:
    """gRPC's settings for every channel of this client."""
    options: Options = [
        ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        # Without this a ping of gRPC's own bandwidth probe that is under way holds keepalive's ping
        # back for a minute (measured: a partition in a call was noticed after 60 s).
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        # An open stream may be silent for long (a model that thinks): pings go on all the same.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", max_receive_bytes),
        # A connection of its own for each channel: a new channel then really connects anew.
        ("grpc.use_local_subchannel_pool", 1),
        # Nothing is repeated behind the caller's back.
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        # No proxy from the environment: HTTP_PROXY would capture even loopback.
        ("grpc.enable_http_proxy", 0),
    ]
    if profile.server_name:
        options.append(("grpc.ssl_target_name_override", profile.server_name))
    return options


class Lease(Generic[C]):
    """One stream's share in a channel.

    A channel is proven once a stream on it was answered; until then a stream waits for `Started`
    before anything of a request leaves, so that a failed connection is known to have sent nothing.
    """

    __slots__ = ("channel", "leases", "proven", "retired", "stamp")

    def __init__(self, channel: C, stamp: object) -> None:
        self.channel = channel
        self.stamp = stamp
        self.leases = 0
        self.proven = False
        self.retired = False


class ChannelSlot(Generic[C]):
    """Owns the channel that new streams use, and those that still carry old ones.

    Not locked: its pool calls it under its own lock (sync) or from its loop (async). Channels that
    nobody uses any more are handed back to be closed where closing may wait.
    """

    def __init__(self, profile: Profile, make: Callable[[], C]) -> None:
        self._profile = profile
        self._make = make
        self._current: Lease[C] | None = None
        self._unused: list[C] = []

    def take(self) -> Lease[C]:
        """A share in the current channel; a new one where there is none, or where the profile's
        files have changed since (a renewed certificate). Raises ProfileError.
        """
        stamp = self._profile.stamp()
        lease = self._current
        if lease is not None and lease.stamp != stamp:
            self.retire(lease)
        if self._current is None:
            self._current = Lease(self._make(), stamp)
        self._current.leases += 1
        return self._current

    def give_back(self, lease: Lease[C]) -> None:
        """The stream has ended."""
        lease.leases -= 1
        self._sort_out(lease)

    def retire(self, lease: Lease[C]) -> None:
        """Give this channel to no further stream: it does not connect, or its server leaves."""
        if not lease.retired:
            lease.retired = True
            if self._current is lease:
                self._current = None
            self._sort_out(lease)

    def retire_current(self) -> None:
        if self._current is not None:
            self.retire(self._current)

    def unused(self) -> list[C]:
        """The channels to close now; each is returned once."""
        channels, self._unused = self._unused, []
        return channels

    def _sort_out(self, lease: Lease[C]) -> None:
        if lease.retired and lease.leases == 0:
            self._unused.append(lease.channel)
