"""How long this worker may go on, and for whom: its own permission, read from the lease page of its node.

    from tether import lease

    lease.is_valid()        # may it act now?
    lease.remaining()       # for how many seconds
    lease.lifetime()        # for how many seconds it may be there, disabled or not
    lease.check()           # raises lease.Over, before an act that others see
    lease.incarnation()     # which start of its place it is: its fencing token
    lease.epoch()           # which session of its owner it works for
    grpc.server(..., interceptors=[lease.Interceptor()])

A worker is killed when its permission ends, by others and whatever it does. What is here is for before that: one
that is cut off may be disabled a while before it is ended, and what a paused one would still do is to be refused.
Disabled is not over: where its node is back in time it may act again, and one that has a job has time to wait for that.
Reading takes no call of the system but the clock's, and no agent: it is right also while that hangs.

Where `TETHER_LEASE` is not set, as outside of Tether, no end is known: it is valid for ever.

Needs Python 3.8 and Linux; grpcio only for the interceptors.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
import time
from typing import Mapping, Optional

from . import _wire

MARK = int.from_bytes(b"tetherL1", "little")

# In words of eight bytes; docs/reference/lease-page.md has the layout.
NODE_ENABLED, NODE_ALIVE, MOVES, SLOTS, SLOT_WORDS = 2, 3, 5, 8, 4
ENABLED, ALIVE, EPOCH, GENERATION = 0, 1, 2, 3

# Of the generation of a slot that is one worker's alone; the rest of it is the worker's incarnation.
OWN = 1 << 63

NEVER = 2**64 - 1


class Over(Exception):
    """This worker's permission is over, or it is disabled."""


class Lease:
    """One worker's view of its permission."""

    def __init__(self, environment: Optional[Mapping[str, str]] = None) -> None:
        environment = os.environ if environment is None else environment
        self._words, self._place, self._moves = None, (0, 0), 0
        self._incarnation = int(environment.get("TETHER_INCARNATION") or 0)
        self._lock, self._seen = threading.Lock(), 0
        place = environment.get("TETHER_LEASE")
        if place:
            descriptor, slot, generation = map(int, place.split(":"))
            page = mmap.mmap(descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ)
            # Its items are read whole, each with one load.
            self._words = memoryview(page).cast("Q")
            self._place = SLOTS + SLOT_WORDS * slot, generation
            if self._words[0] != MARK:
                raise ValueError("TETHER_LEASE names something that is no lease page of this version")

    def _seat(self):
        """Its slot and the generation of that: its pool's, and one of its own once it has had a job."""
        moves = self._words[MOVES]
        if moves != self._moves:
            # Somebody has moved: the count is read before the slots, as a slot is opened before it is counted.
            own = OWN | self._incarnation
            for slot in range(SLOTS, len(self._words), SLOT_WORDS):
                if self._incarnation and self._words[slot + GENERATION] == own:
                    self._place = slot, own
            self._moves = moves
        return self._place

    def _look(self, of_node, of_slot):
        """These words of its node and of its slot; none where it has lost its seat."""
        # Twice: one that begins a job has its own slot opened, the move counted and then the pool's slot closed. Who
        # finds that closed may have read the count before, and sees by now where it sits.
        for _ in range(2):
            slot, generation = self._seat()
            told = [self._words[word] for word in of_node] + [self._words[slot + word] for word in of_slot]
            # Whose it is comes last: the time of a slot's next owner is never taken for one's own.
            if self._words[slot + GENERATION] == generation:
                return told
        return None

    def _earliest(self, of_node, of_slot):
        """The earliest of these ends; `NEVER` where there is none, 0 where it has lost its seat."""
        if self._words is None:
            return NEVER
        ends = self._look(of_node, of_slot)
        return 0 if ends is None else min(ends)

    def until(self) -> int:
        """Until when it may act, in nanoseconds of CLOCK_BOOTTIME; `NEVER` where there is no end, 0 without a seat."""
        return self._earliest([NODE_ENABLED], [ENABLED])

    def alive_until(self) -> int:
        """Until when it may be there, in the same terms."""
        return self._earliest([NODE_ALIVE], [ENABLED, ALIVE])

    def remaining(self) -> float:
        """Seconds for which it may act; 0 when it may not, infinity where there is no end."""
        return _seconds_to(self.until())

    def lifetime(self) -> float:
        """Seconds for which it may be there, whether it may act or not; infinity where there is no end."""
        return _seconds_to(self.alive_until())

    def is_valid(self) -> bool:
        """Whether it may act."""
        return self.remaining() > 0

    def check(self) -> None:
        """Raises `Over` where it may not act."""
        if not self.is_valid():
            raise Over("this worker's permission is over: what it does is not to be seen any more")

    def incarnation(self) -> int:
        """Which start of its place this worker is, 0 outside of Tether: higher than that of any before it."""
        return self._incarnation

    def epoch(self) -> int:
        """Which session of its owner it works for: the highest it was told of, by its node or by a call."""
        told = None if self._words is None else self._look([], [EPOCH])
        with self._lock:
            self._seen = max([self._seen, *(told or [])])
            return self._seen

    def refusal(self, metadata):
        """Why a call with this metadata is refused: a reason and a text, or none."""
        if not self.is_valid():
            return "LEASE_EXPIRED", "this worker's permission is over, or it is disabled: call another"
        said = dict(metadata or ())
        worker = said.get("tether-worker", "")
        meant = worker.rpartition("/")[2].partition(".")[2]
        if meant and self._incarnation and meant != str(self._incarnation):
            return "LEASE_FENCED", f"this worker is incarnation {self._incarnation}, and `{worker}` another"
        text = said.get("tether-epoch")
        if text is None:
            return None
        if not (text.isascii() and text.isdigit()):
            return "METADATA_INVALID", "`tether-epoch` is the number of a session, as in `tether-epoch: 7`"
        epoch = int(text)
        known = self.epoch()
        if epoch < known:
            return "LEASE_FENCED", f"session {epoch} of the owner was followed by session {known}"
        # An owner may know of its new session before this node does; whoever comes with an earlier one is late.
        with self._lock:
            self._seen = max(self._seen, epoch)
        return None


def _seconds_to(end):
    if end == NEVER:
        return math.inf
    return max(0, end - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9


_own, _own_pid, _own_lock = None, None, threading.Lock()


def own() -> Lease:
    """This worker's own lease, looked up at the first question and again after a fork."""
    global _own, _own_pid
    with _own_lock:
        if _own is None or _own_pid != os.getpid():
            _own, _own_pid = Lease(), os.getpid()
        return _own


def remaining() -> float:
    """Seconds for which this worker may act; 0 when it may not, infinity where there is no end."""
    return own().remaining()


def lifetime() -> float:
    """Seconds for which this worker may be there, whether it may act or not; infinity where there is no end."""
    return own().lifetime()


def is_valid() -> bool:
    """Whether this worker may act."""
    return own().is_valid()


def check() -> None:
    """Raises `Over` where this worker may not act."""
    own().check()


def incarnation() -> int:
    """Which start of its place this worker is, 0 outside of Tether."""
    return own().incarnation()


def epoch() -> int:
    """Which session of its owner this worker works for, 0 where nobody has told."""
    return own().epoch()


def _field(number, content):
    return _wire.present(number, content.encode() if isinstance(content, str) else content)


def _details(code, reason, text, lease):
    """A `google.rpc.Status` with the `ErrorInfo` that all of Tether's refusals have."""
    facts = {"incarnation": str(lease.incarnation()), "epoch": str(lease.epoch())}
    entries = b"".join(_field(3, _field(1, name) + _field(2, fact)) for name, fact in facts.items())
    info = _field(1, reason) + _field(2, "tether") + entries
    packed = _field(1, "type.googleapis.com/google.rpc.ErrorInfo") + _field(2, info)
    return _wire.present(1, code) + _field(2, text) + _field(3, packed)


try:
    import grpc
except ImportError:
    grpc = None  # type: ignore[assignment]
else:
    # Whoever asks whether this process lives is to hear it for as long as it does.
    SPARED = "/grpc.health.v1.Health/"

    class _Status(grpc.Status):
        def __init__(self, code, text, trailers):
            self.code, self.details, self.trailing_metadata = code, text, trailers

    def _refusal(lease, details):
        """What to end a call with, or none."""
        if details.method.startswith(SPARED):
            return None
        refused = lease.refusal(details.invocation_metadata)
        if refused is None:
            return None
        reason, text = refused
        invalid = reason == "METADATA_INVALID"
        code = grpc.StatusCode.INVALID_ARGUMENT if invalid else grpc.StatusCode.FAILED_PRECONDITION
        return code, text, (("grpc-status-details-bin", _details(code.value[0], reason, text, lease)),)

    def _handler_like(handler, unary, streaming):
        """A handler of the kind of this one, which the runtime calls as it would have called that."""
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        behaviour = streaming if handler.response_streaming else unary
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    class Interceptor(grpc.ServerInterceptor):
        """Refuses calls to a worker that may not act, and calls that are meant for another one."""

        def __init__(self, lease=None):
            self._lease = lease

        def intercept_service(self, continuation, details):
            handler = continuation(details)
            refused = handler and _refusal(self._lease or own(), details)
            if not refused:
                return handler

            def refuse(_, context):
                context.abort_with_status(_Status(*refused))

            return _handler_like(handler, refuse, refuse)

    class AioInterceptor(grpc.aio.ServerInterceptor):
        """The same for a server of `grpc.aio`."""

        def __init__(self, lease=None):
            self._lease = lease

        async def intercept_service(self, continuation, details):
            handler = await continuation(details)
            refused = handler and _refusal(self._lease or own(), details)
            if not refused:
                return handler

            async def refuse(_, context):
                await context.abort(*refused)

            async def refuse_stream(_, context):
                await context.abort(*refused)
                yield  # Never reached: it makes this a stream.

            return _handler_like(handler, refuse, refuse_stream)
