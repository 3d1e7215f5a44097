"""The trace of a call, passed on: `traceparent` and `tracestate` of W3C, as they came.

    server = grpc.aio.server(interceptors=[trace.AioInterceptor()])      # a Worker does it
    await stub.Method(request, metadata=trace.metadata())                # within a call that is served
"""

from __future__ import annotations

import contextvars
from typing import Any, Sequence, Tuple

import grpc

PASSED = ("traceparent", "tracestate")

Metadata = Tuple[Tuple[str, str], ...]

_current: contextvars.ContextVar[Metadata] = contextvars.ContextVar("tether-trace", default=())


def metadata(more: Sequence[Tuple[str, str]] = ()) -> Metadata:
    """What to send with a call that is made for the one being served, with `more` beside it."""
    return (*_current.get(), *more)


class AioInterceptor(grpc.aio.ServerInterceptor):
    """Notes the trace of each call."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """As grpcio asks."""
        came = details.invocation_metadata or ()
        _current.set(tuple((key, value) for key, value in came if key in PASSED))
        return await continuation(details)
