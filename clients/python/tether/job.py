"""A job, as the worker that does it sees it: progress, checkpoints, the result, and the moment it is another's.

    from tether import job

    work = job.attach("train-7")            # this worker's pool; raises Fenced where another does it
    if work.saved:                          # an attempt before this one came so far
        load(work.saved.uri)
    for step in range(work.saved.seq if work.saved else 0, STEPS):
        train()
        work.checkpoint(save(f"/models/train-7/{work.fence}/{step}"), seq=step + 1)
    work.done(b"accuracy 0.97")

Each attempt has a fence, greater than that of any attempt before. A worker that was cut off, paused or taken for
dead may still run when another has taken its job over: whatever it tells from then on is refused, and raises
`Fenced` here. Stop working then, and write nothing more. Bytes belong into a place of one's own fence, as above:
so not even a paused writer overwrites what a later attempt has saved.

Or have the agent keep the bytes, which needs no place of one's own and no credentials:

    state = work.load()                     # of the last checkpoint, whoever saved it; none for a first attempt
    for step in range(work.step, STEPS):
        train()
        work.save(state, step=step + 1)     # bytes, a path or a file; on disk when this returns

Calls go to the agent of this node, which `TETHER_AGENT` names, or to the gateway at `TETHER_GATEWAY`, or where
`attach` is told. What must not be lost (`save`, `checkpoint`, `done`) is told until it is acknowledged, for `patience`
seconds; telling it twice does no harm.

Needs Python 3.8 and grpcio.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from typing import Any, BinaryIO, Callable, Iterator, NamedTuple, Optional, Union

import grpc

from tether import _bytes, _wire as wire

log = logging.getLogger("tether.jobs")

SERVICE = "/tether.job.v1.JobService/"
CHECKPOINTS = "/tether.checkpoint.v1.CheckpointService/"

# Of the arbiter: what it would refuse is not sent.
URI_MAX, RESULT_MAX = 2048, 65536

ERROR_MAX = 4096

# How long it is tried to say how far a job is, in seconds.
PROGRESS = 5

RUNNING, DONE, LOST, ORPHANED = 1, 2, 3, 4

# Of calls that may be made again.
AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN}
BROKEN = {grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL}

# What can be saved.
Data = Union[bytes, bytearray, memoryview, str, "os.PathLike[str]", BinaryIO]


class Checkpoint(NamedTuple):
    """Where the state of a job was saved."""

    seq: int
    uri: str
    sha256: bytes
    bytes: int
    fence: int


class Failed(Exception):
    """A call was refused, or nobody answered it."""

    # Whether asking again may help.
    passes = False

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason


class Fenced(Failed):
    """Another attempt does this job, or it is over. Stop working on it, and write nothing more."""

    def __init__(self, text: str, holder: str = "", fence: int = 0) -> None:
        super().__init__(text, "LEASE_FENCED")
        self.holder, self.fence = holder, fence


class Elsewhere(Failed):
    """This worker's node cannot get at the checkpoints of its job, where another one may: let this pass."""


class Cancelled(Exception):
    """Somebody has cancelled this job: save nothing more, and let this pass."""


class Stopping(Exception):
    """This worker is to end: another one goes on from the last checkpoint. Let this pass."""


def attach(
    key: str, pool: Optional[str] = None, gateway: Optional[str] = None, patience: float = 30.0
) -> Job:
    """The job with this key, where this worker does it."""
    worker = os.environ.get("TETHER_WORKER", "")
    gateway = gateway or whom()
    if not worker:
        raise Failed("TETHER_WORKER is not set: only a worker of Tether does jobs")
    return Job(key, pool or worker.partition("/")[0], worker, gateway, patience)


def whom() -> str:
    """Who is told of jobs: the agent of this node, or a gateway."""
    found = os.environ.get("TETHER_AGENT") or os.environ.get("TETHER_GATEWAY", "")
    if not found:
        raise Failed("nobody to tell: set TETHER_GATEWAY in the template's `env`, or give `gateway`")
    return found


def connect(address: str) -> grpc.Channel:
    """A channel to an agent or a gateway."""
    # Of a unix socket's path grpcio makes a name of a host that no HTTP/2 server of ours takes for one. And whoever is
    # restarted is to be found again soon.
    options = (("grpc.default_authority", "localhost"), ("grpc.max_reconnect_backoff_ms", 1000))
    return grpc.insecure_channel(address, options=options)


class Job:
    """One attempt at a job."""

    def __init__(self, key: str, pool: str, worker: str, gateway: str, patience: float) -> None:
        self.key, self.pool, self.worker, self._patience = key, pool, worker, patience
        self._ended: Optional[Callable[[], Exception]] = None
        self._news = threading.Event()
        # How far it is: whether that is being told, what is to be told after it, and whether its end was.
        self._telling = threading.Condition()
        self._tells, self._concluded = False, False
        self._untold: Optional[bytes] = None
        self._channel: Any = connect(gateway)
        ask = wire.field(1, pool) + wire.field(2, key)
        job = wire.last(wire.last(self._persist("GetJob", ask)).get(1, b""))
        self.spec: bytes = job.get(12, b"")
        holder = _worker(job.get(3, b""))
        self.fence: int = job.get(9, 0)
        self.attempt: int = job.get(10, 0)
        if holder != worker or job.get(4) not in (RUNNING, ORPHANED):
            self.close()
            raise Fenced(f"job `{key}` is not done by `{worker}` but by `{holder}`", holder, self.fence)
        saved = job.get(11)
        self.saved: Optional[Checkpoint] = _checkpoint(saved) if saved is not None else None

    @property
    def step(self) -> int:
        """Up to where an attempt has saved; 0 where none has."""
        return self.saved.seq if self.saved else 0

    def check(self) -> None:
        """Raises `Cancelled`, `Fenced` or `Stopping` where this job is not to go on here."""
        if self._ended:
            raise self._ended()

    def wait(self, seconds: float) -> None:
        """Sleeps, and raises as `check` does as soon as that would."""
        self._news.wait(seconds)
        self.check()

    def end(self, why: Callable[[], Exception]) -> None:
        """Has `check` raise from now on; the first reason counts."""
        self._ended = self._ended or why
        self._news.set()

    def save(self, data: Data, step: Optional[int] = None) -> Checkpoint:
        """Saves bytes, or what is in a file, as the checkpoint of this step: it is durable when this returns. `step`
        is greater each time, over all attempts; the next one where it is not given."""
        self.check()
        seq = self.step + 1 if step is None else step
        with _bytes.Source(data) as source:
            begin = [(1, self.pool), (2, self.key), (3, self.fence), (4, seq), (5, source.sha256), (6, source.size)]
            first = wire.present(1, b"".join(wire.field(*it) for it in begin))

            def save(timeout: float) -> bytes:
                call = self._channel.stream_unary(CHECKPOINTS + "SaveCheckpoint")
                return call(_parts(first, source), timeout=timeout + source.size / _bytes.SLOWEST)

            answer = self._until(save)
        self.saved = _checkpoint(wire.last(answer).get(1, b""))
        return self.saved

    def load(self, to: Optional[BinaryIO] = None) -> Optional[bytes]:
        """The bytes of the last checkpoint, none where there is none; written to `to` instead where that is given,
        from where it stands."""
        if not self.saved:
            return None
        ask, start = wire.field(1, self.pool) + wire.field(2, self.key), to.tell() if to else 0

        def load(timeout: float) -> Optional[bytes]:
            sink = _bytes.Sink(to, start)
            call = self._channel.unary_stream(CHECKPOINTS + "LoadCheckpoint")
            size = self.saved.bytes if self.saved else 0
            for part in call(ask, timeout=timeout + size / _bytes.SLOWEST):
                for number, value in wire.fields(part):
                    if number == 1:
                        self.saved = _checkpoint(value)
                    else:
                        sink.write(value)
            if self.saved and sink.sha256() != self.saved.sha256:
                raise Failed(f"the bytes at `{self.saved.uri}` are not those that were saved there")
            return sink.done()

        return self._until(load)

    def progress(self, part: float, message: str = "") -> None:
        """Tells how far it is, from 0 to 1, and waits for nobody. While one is under way only the newest is kept to be
        told after it; one that nobody hears is lost. Where the answer is that this job is another's, `check` raises
        from then on."""
        self.check()
        with self._telling:
            self._untold = self._report(part, message)
            if not self._tells:
                self._tell()

    def checkpoint(
        self, uri: str, seq: Optional[int] = None, sha256: bytes = b"", size: int = 0
    ) -> Checkpoint:
        """Records where the state was saved; it is on disk when this returns. `seq` is the next one where it is
        not given."""
        seq = seq if seq is not None else (self.saved.seq + 1 if self.saved else 1)
        if not 1 <= len(uri.encode()) <= URI_MAX:
            raise ValueError(f"a checkpoint's `uri` has 1 to {URI_MAX} bytes")
        ask = [(1, self.pool), (2, self.key), (3, self.fence), (4, seq), (5, uri), (6, sha256), (7, size)]
        self._persist("PutCheckpoint", b"".join(wire.field(*it) for it in ask))
        self.saved = Checkpoint(seq, uri, sha256, size, self.fence)
        return self.saved

    def done(self, result: bytes = b"", message: str = "") -> None:
        """Gives the result, which is kept until the owner acknowledges it."""
        if len(result) > RESULT_MAX:
            raise ValueError(f"a result has at most {RESULT_MAX} bytes: keep it elsewhere and give its address")
        self._conclude(self._report(1.0, message) + wire.present(5, result))

    def failed(self, why: str) -> None:
        """Says that it cannot be done, and that no other attempt would: why is kept as a result is."""
        cut = why.encode()[:ERROR_MAX].decode(errors="ignore")
        self._conclude(self._report(0.0, "") + wire.present(7, cut.encode()), to_the_end=True)

    def cancelled(self) -> None:
        """Says that it has stopped, as it was asked to."""
        self._conclude(self._report(0.0, "") + wire.field(8, 1), to_the_end=True)

    def close(self) -> None:
        """Lets go of the connection, once it was told how far it is."""
        with self._telling:
            self._telling.wait_for(lambda: not self._tells, PROGRESS)
            self._untold = None
        self._channel.close()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _report(self, part: float, message: str) -> bytes:
        pool, _, rest = self.worker.partition("/")
        slot, _, incarnation = rest.partition(".")
        worker = wire.field(1, pool) + wire.field(2, int(slot)) + wire.field(3, int(incarnation or 0))
        told = [(1, worker), (2, self.key), (3, float(part)), (4, message), (6, self.fence)]
        return b"".join(wire.field(*it) for it in told)

    def _tell(self) -> None:
        """Tells what is to be told; with the lock."""
        told, self._untold = self._untold, None
        self._tells = told is not None
        if told is None:
            self._telling.notify_all()
            return
        call = self._channel.unary_unary(SERVICE + "ReportJob").future(told, timeout=PROGRESS)
        call.add_done_callback(self._on_told)

    def _on_told(self, call: Any) -> None:
        failed = None if call.code() is grpc.StatusCode.OK else _failed(call)
        with self._telling:
            # Behind the end a job is nobody's.
            if isinstance(failed, Fenced) and not self._concluded:
                fenced = failed
                self.end(lambda: fenced)
            self._tell()

    def _conclude(self, report: bytes, to_the_end: bool = False) -> None:
        """Tells how it ended, behind which nobody asks how far it is."""
        with self._telling:
            self._untold, self._concluded = None, True
        self._persist("ReportJob", report, to_the_end)

    def _persist(self, method: str, ask: bytes, to_the_end: bool = False) -> bytes:
        call = self._channel.unary_unary(SERVICE + method)
        return self._until(lambda timeout: call(ask, timeout=timeout), to_the_end)

    def _until(self, call: Callable[[float], Any], to_the_end: bool = False) -> Any:
        """Asks until there is an answer, or a refusal that will stay one; or raises as `check` does, unless it is to
        be said although this job has ended here."""
        deadline, pause = time.monotonic() + self._patience, 0.05
        while True:
            left = deadline - time.monotonic()
            try:
                return call(max(0.1, min(left, 10)))
            except grpc.RpcError as error:
                failed = _failed(error)
            if not failed.passes or left <= pause:
                raise failed from None
            # So that a thousand workers do not ask in the same moment.
            wait = time.sleep if to_the_end else self.wait
            wait(pause * random.uniform(0.5, 1))
            before, pause = pause, min(pause * 2, 2)
            if before < pause == 2:
                log.warning("job %s: no answer yet: %s", self.key, failed)


def _parts(first: bytes, source: _bytes.Source) -> Iterator[bytes]:
    yield first
    for piece in source.pieces():
        yield wire.present(2, piece)


def _failed(error: Any) -> Failed:
    """What a status says, with the reason and the facts of its `google.rpc.ErrorInfo`."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    reason, facts = "", {}
    for number, detail in wire.fields(details):
        packed = wire.last(detail) if number == 3 else {}
        if packed.get(1, b"").endswith(b"/google.rpc.ErrorInfo"):
            for kind, value in wire.fields(packed.get(2, b"")):
                if kind == 1:
                    reason = value.decode()
                elif kind == 3:
                    pair = wire.last(value)
                    facts[pair.get(1, b"").decode()] = pair.get(2, b"").decode()
    if reason == "LEASE_FENCED":
        return Fenced(error.details(), facts.get("holder", ""), int(facts.get("fence") or 0))
    text = f"{error.code().name}: {error.details()}"
    if reason == "STORE_FAILED" and "node" in facts:
        return Elsewhere(f"{text} (node `{facts['node']}`)", reason)
    failed = Failed(text, reason)
    # Results wait for their owner to acknowledge others, and a store for its disk.
    failed.passes = error.code() in AWAY or reason in ("STORE_FAILED", "MESSAGE_TOO_LARGE")
    # Without a reason it is not the arbiter that says so but something on the way, as where a connection breaks.
    failed.passes = failed.passes or not reason and error.code() in BROKEN
    return failed


def _worker(ref: bytes) -> str:
    parts = wire.last(ref)
    return f"{parts.get(1, b'').decode()}/{parts.get(2, 0)}.{parts.get(3, 0)}"


def _checkpoint(data: bytes) -> Checkpoint:
    parts = wire.last(data)
    return Checkpoint(parts.get(1, 0), parts.get(2, b"").decode(), parts.get(3, b""), parts.get(4, 0), parts.get(5, 0))
