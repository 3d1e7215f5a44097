"""`grpc.health.v1` for a server of `grpc.aio`, without generated code.

    health = Health()
    server.add_generic_rpc_handlers((health,))
    health.set(True)

The empty name, and each one that was set, is SERVING or NOT_SERVING; another one is not known.
"""

from __future__ import annotations

import asyncio
from typing import Any, AsyncIterator, Dict, Optional

import grpc

from tether import _wire as wire

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3

SERVICE = "/grpc.health.v1.Health/"


class Health(grpc.GenericRpcHandler):
    """What is said to whoever asks whether this worker serves."""

    def __init__(self) -> None:
        self._serving: Dict[str, bool] = {"": False}
        self._changed: asyncio.Event = asyncio.Event()
        self._over = False

    def set(self, serving: bool, service: str = "") -> None:
        """Says it of the whole, or of one service."""
        self._serving[service] = serving
        self._wake()

    def end(self) -> None:
        """Says NOT_SERVING of all, and lets watchers go: a watch never ends by itself, and would use up the grace."""
        self._serving = dict.fromkeys(self._serving, False)
        self._over = True
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def service(self, details: Any) -> Optional[grpc.RpcMethodHandler]:
        """As grpcio asks."""
        if details.method == SERVICE + "Check":
            return grpc.unary_unary_rpc_method_handler(self._check)
        if details.method == SERVICE + "Watch":
            return grpc.unary_stream_rpc_method_handler(self._watch)
        return None

    def _status(self, ask: bytes) -> Optional[int]:
        serving = self._serving.get(wire.last(ask).get(1, b"").decode())
        return None if serving is None else SERVING if serving else NOT_SERVING

    async def _check(self, ask: bytes, context: Any) -> bytes:
        status = self._status(ask)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service is known here")
        return wire.field(1, status)

    async def _watch(self, ask: bytes, context: Any) -> AsyncIterator[bytes]:
        told = None
        while True:
            changed, over = self._changed, self._over
            status = self._status(ask) or SERVICE_UNKNOWN
            if status != told:
                told = status
                yield wire.field(1, status)
            if over:
                return
            await changed.wait()
