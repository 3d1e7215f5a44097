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

Calls go to the gateway at `TETHER_GATEWAY`, or where `attach` is told. What must not be lost (`checkpoint`, `done`)
is told until it is acknowledged, for `patience` seconds; telling it twice does no harm.

Needs Python 3.8 and grpcio.
"""

import os
import random
import time
from collections import namedtuple

import grpc

from tether import _wire as wire

SERVICE = "/tether.job.v1.JobService/"

# Of the arbiter: what it would refuse is not sent.
URI_MAX, RESULT_MAX = 2048, 65536

RUNNING, DONE, LOST, ORPHANED = 1, 2, 3, 4

Checkpoint = namedtuple("Checkpoint", "seq uri sha256 bytes fence")


class Failed(Exception):
    """A call was refused, or nobody answered it."""

    # Whether asking again may help.
    passes = False

    def __init__(self, text, reason=""):
        super().__init__(text)
        self.reason = reason


class Fenced(Failed):
    """Another attempt does this job, or it is over. Stop working on it, and write nothing more."""

    def __init__(self, text, holder="", fence=0):
        super().__init__(text, "LEASE_FENCED")
        self.holder, self.fence = holder, fence


def attach(key, pool=None, gateway=None, patience=30.0):
    """The job with this key, where this worker does it."""
    worker = os.environ.get("TETHER_WORKER", "")
    gateway = gateway or os.environ.get("TETHER_GATEWAY", "")
    if not worker:
        raise Failed("TETHER_WORKER is not set: only a worker of Tether does jobs")
    if not gateway:
        raise Failed("nobody to tell: set TETHER_GATEWAY in the template's `env`, or give `gateway`")
    return Job(key, pool or worker.partition("/")[0], worker, gateway, patience)


class Job:
    """One attempt at a job."""

    def __init__(self, key, pool, worker, gateway, patience):
        self.key, self.pool, self.worker, self._patience = key, pool, worker, patience
        # Of a unix socket's path grpcio makes a name of a host that no HTTP/2 server of ours takes for one.
        self._channel = grpc.insecure_channel(gateway, options=(("grpc.default_authority", "localhost"),))
        ask = wire.field(1, pool) + wire.field(2, key)
        job = wire.last(wire.last(self._persist("GetJob", ask)).get(1, b""))
        holder = _worker(job.get(3, b""))
        self.fence, self.attempt = job.get(9, 0), job.get(10, 0)
        if holder != worker or job.get(4) not in (RUNNING, ORPHANED):
            self.close()
            raise Fenced(f"job `{key}` is not done by `{worker}` but by `{holder}`", holder, self.fence)
        saved = job.get(11)
        self.saved = _checkpoint(saved) if saved is not None else None

    def progress(self, part, message=""):
        """Tells how far it is, from 0 to 1. False where nobody heard it, which matters to nobody either."""
        try:
            self._call("ReportJob", self._report(part, message), 5)
        except Fenced:
            raise
        except Failed:
            return False
        return True

    def checkpoint(self, uri, seq=None, sha256=b"", size=0):
        """Records where the state was saved; it is on disk when this returns. `seq` is the next one where it is
        not given."""
        seq = seq if seq is not None else (self.saved.seq + 1 if self.saved else 1)
        if not 1 <= len(uri.encode()) <= URI_MAX:
            raise ValueError(f"a checkpoint's `uri` has 1 to {URI_MAX} bytes")
        ask = [(1, self.pool), (2, self.key), (3, self.fence), (4, seq), (5, uri), (6, sha256), (7, size)]
        self._persist("PutCheckpoint", b"".join(wire.field(*it) for it in ask))
        self.saved = Checkpoint(seq, uri, sha256, size, self.fence)
        return self.saved

    def done(self, result=b"", message=""):
        """Gives the result, which is kept until the owner acknowledges it."""
        if len(result) > RESULT_MAX:
            raise ValueError(f"a result has at most {RESULT_MAX} bytes: keep it elsewhere and give its address")
        self._persist("ReportJob", self._report(1.0, message) + wire.present(5, result))

    def close(self):
        """Lets go of the connection."""
        self._channel.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _report(self, part, message):
        pool, _, rest = self.worker.partition("/")
        slot, _, incarnation = rest.partition(".")
        worker = wire.field(1, pool) + wire.field(2, int(slot)) + wire.field(3, int(incarnation or 0))
        told = [(1, worker), (2, self.key), (3, float(part)), (4, message), (6, self.fence)]
        return b"".join(wire.field(*it) for it in told)

    def _persist(self, method, ask):
        """Asks until there is an answer, or a refusal that will stay one."""
        deadline, pause = time.monotonic() + self._patience, 0.05
        while True:
            left = deadline - time.monotonic()
            try:
                return self._call(method, ask, max(0.1, min(left, 10)))
            except Fenced:
                raise
            except Failed as failed:
                if not failed.passes or left <= pause:
                    raise
            # So that a thousand workers do not ask in the same moment.
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, 2)

    def _call(self, method, ask, timeout):
        call = self._channel.unary_unary(SERVICE + method)
        try:
            return call(ask, timeout=timeout)
        except grpc.RpcError as error:
            raise _failed(error) from None


def _failed(error):
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
    failed = Failed(f"{error.code().name}: {error.details()}", reason)
    away = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN}
    # Results wait for their owner to acknowledge others, and a store for its disk.
    failed.passes = error.code() in away or reason in ("STORE_FAILED", "MESSAGE_TOO_LARGE")
    return failed



def _worker(ref):
    parts = wire.last(ref)
    return f"{parts.get(1, b'').decode()}/{parts.get(2, 0)}.{parts.get(3, 0)}"


def _checkpoint(data):
    parts = wire.last(data)
    return Checkpoint(parts.get(1, 0), parts.get(2, b"").decode(), parts.get(3, b""), parts.get(4, 0), parts.get(5, 0))
