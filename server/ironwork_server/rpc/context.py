"""gRPC's servicer context, in the one form that this package uses."""

from typing import Any, TypeAlias

import grpc.aio

# The messages' types are the generated stubs'; the wrapper around handlers serves them all.
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
