"""gRPC's servicer context, in the one form that this package uses."""

from typing import Any, Final, TypeAlias

import grpc.aio

# The messages' types are the generated stubs'; the wrapper around handlers serves them all.
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

# No message of a stream comes near it: a head has 64 KiB of headers and a body 16 KiB. What is
# somewhat too long is parsed, and told by its field.
MAX_STREAM_MESSAGE_BYTES: Final = 1024 * 1024
# Stands for a longer one.
TOO_LONG: Final = object()
