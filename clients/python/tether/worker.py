"""A worker, whole: it serves, says how it is, does jobs, and ends in good order.

    from tether.worker import Worker

    def register(server):                       # servicers of `grpc.aio`
        add_DigitsServicer_to_server(Digits(), server)

    def train(work):                            # one attempt at a job, in a thread of its own
        spec = json.loads(work.spec)
        state = work.load()
        for step in range(work.step, spec["steps"]):
            ...
            work.save(state, step=step + 1)
            work.progress((step + 1) / spec["steps"])
        return b"result"

    Worker(register=register, jobs=train).run()

It listens at `TETHER_LISTEN`, answers `grpc.health.v1`, says READY=1 when it is ready, refuses calls that come too late
(`tether.lease`), and hears of its jobs from the agent of its node. On SIGTERM it takes no more calls and jobs, lets calls
end, has jobs stop at their next step (another worker goes on from their last checkpoint), and ends within `grace`.

Needs Python 3.8, Linux and grpcio.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import sys
import threading
from typing import Any, Callable, Optional, Sequence

import grpc

from tether import _attempts, guard, lease, life, trace
from tether.health import Health
from tether.notify import notify

log = logging.getLogger("tether.worker")

MESSAGE_BYTES_MAX = 100 * 1024 * 1024


class Worker:
    """A worker that serves what `register` adds, and does what `jobs` can do.

    `prepare` is called before it is ready, and may be a coroutine function: it loads what takes long, and is cancelled where
    the worker is asked to end meanwhile. `on_warning` is
    called in the event loop when half of the permission is gone and was not renewed, with the seconds that are left.
    `grace` is how long ending may take: less than the template's, which ends with SIGKILL.
    """

    def __init__(
        self,
        register: Optional[Callable[[grpc.aio.Server], None]] = None,
        jobs: Optional[_attempts.Handler] = None,
        prepare: Optional[Callable[[], Any]] = None,
        on_warning: Optional[Callable[[float], Any]] = None,
        grace: float = 8.0,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        options: Sequence[Any] = (),
    ) -> None:
        self._register, self._jobs, self._prepare = register, jobs, prepare
        self._on_warning, self._grace = on_warning, grace
        self._interceptors, self._options = interceptors, options
        self.name = os.environ.get("TETHER_WORKER", "")
        self.listen = os.environ.get("TETHER_LISTEN", "")
        self.agent = os.environ.get("TETHER_AGENT") or os.environ.get("TETHER_GATEWAY", "")

    def run(self) -> None:
        """Serves until it is asked to end, and ends the process."""
        asyncio.run(self.serve())
        sys.stdout.flush()
        sys.stderr.flush()
        # A job that does not stop is no reason to stay: its thread would be waited for.
        os._exit(0)

    async def serve(self) -> None:
        """The same within a loop; comes back when all is over."""
        if not self.listen:
            raise RuntimeError("TETHER_LISTEN is not set: only a worker of Tether listens there")
        asked_to_end = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked_to_end.set)
        if threading.current_thread() is threading.main_thread():
            life.hold()
        watching = guard.Guard(self._warn_in(loop) if self._on_warning else None)
        watching.start()

        health, server = Health(), self._server()
        server.add_generic_rpc_handlers((health,))
        if self._register:
            self._register(server)
        await server.start()
        if not await self._prepared(asked_to_end):
            notify("STOPPING=1")
            await server.stop(None)
            watching.stop()
            return
        health.set(True)
        notify("READY=1")
        beating = asyncio.ensure_future(_beat())
        attempts = self._attempts()
        log.info("worker %s serves at %s", self.name, self.listen)

        await asked_to_end.wait()
        notify("STOPPING=1")
        health.end()
        deadline = loop.time() + self._grace
        if attempts:
            attempts.stop()
        await server.stop(self._grace)
        if attempts:
            left = max(0.0, deadline - loop.time())
            await loop.run_in_executor(None, attempts.drain, left)
        beating.cancel()
        watching.stop()

    async def _prepared(self, asked_to_end: asyncio.Event) -> bool:
        """Whether it is ready to serve, and not asked to end before that."""
        if self._prepare:
            # A function keeps the loop, and what it says is heard after it.
            preparing = asyncio.ensure_future(_maybe(self._prepare()))
            asked = asyncio.ensure_future(asked_to_end.wait())
            await asyncio.wait((preparing, asked), return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            if not preparing.done():
                preparing.cancel()
                await asyncio.wait((preparing,), timeout=self._grace)
                return False
            preparing.result()
        # A signal that came while the loop was kept is heard in its next turn.
        await asyncio.sleep(0)
        return not asked_to_end.is_set()

    def _server(self) -> grpc.aio.Server:
        options = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            # Otherwise a second worker on the same port would take half of the calls and nobody would know.
            ("grpc.so_reuseport", 0),
            *self._options,
        ]
        interceptors = [trace.AioInterceptor(), lease.AioInterceptor(), *self._interceptors]
        server = grpc.aio.server(interceptors=interceptors, options=options)
        server.add_insecure_port(self.listen)
        return server

    def _attempts(self) -> Optional[_attempts.Attempts]:
        if not self._jobs:
            return None
        if not (self.name and self.agent):
            raise RuntimeError("TETHER_WORKER and TETHER_AGENT are not set: only a worker of Tether does jobs")
        attempts = _attempts.Attempts(self._jobs, self.name, self.agent)
        attempts.start()
        return attempts

    def _warn_in(self, loop: asyncio.AbstractEventLoop) -> Callable[[float], None]:
        def warned(left: float) -> None:
            async def warn() -> None:
                assert self._on_warning
                await _maybe(self._on_warning(left))

            asyncio.run_coroutine_threadsafe(warn(), loop)

        return warned


async def _maybe(answer: Any) -> None:
    if inspect.isawaitable(answer):
        await answer


async def _beat() -> None:
    """Says WATCHDOG=1 for as long as the loop turns, where the template has `watchdog`."""
    usec = int(os.environ.get("WATCHDOG_USEC") or 0)
    while usec:
        notify("WATCHDOG=1")
        await asyncio.sleep(usec / 3e6)
