"""The jobs of this worker: which they are is followed, and each is done in a thread of its own."""

from __future__ import annotations

import functools
import logging
import math
import os
import random
import signal
import threading
import traceback
from typing import Any, Callable, Dict, Iterator, Optional, Set, Union

import grpc

from tether import _wire as wire, checkpoint, job

log = logging.getLogger("tether.jobs")

Handler = Callable[[job.Job], Union[bytes, str, None]]

# Why nobody waits to hear of a job.
FORGOTTEN = ("UNKNOWN_JOB", "UNKNOWN_POOL")

# The arbiter tells of jobs every 10 s, whether or not there is news: who is silent for so long is gone.
SILENCE = 30.0

# Between two attempts to hear of jobs.
PAUSE = 1.0


class Attempts(threading.Thread):
    """Follows the jobs of this worker until it is to stop."""

    def __init__(self, handler: Handler, worker: str, agent: str) -> None:
        super().__init__(name="tether-jobs", daemon=True)
        self._handler, self._worker, self._agent = handler, worker, agent
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._running: Dict[int, Optional[job.Job]] = {}
        self._ends: Dict[int, Callable[[], Exception]] = {}
        self._seen: Set[int] = set()
        self._idle = threading.Condition(self._lock)
        self._call: Any = None

    def run(self) -> None:
        """Hears of jobs, and hears again when nobody tells any more."""
        channel: Any = job.connect(self._agent)
        ask = wire.field(1, worker_ref(self._worker))
        while not self._stopping.is_set():
            try:
                self._call = channel.unary_stream(job.SERVICE + "WatchJobs")(ask)
                for told in until_silent(self._call):
                    self._told(told)
            except grpc.RpcError as error:
                log.debug("nobody tells of jobs: %s", error)
            except Exception:
                # Without this thread no job would be done here any more, and nobody would know.
                log.exception("what was told of jobs cannot be followed")
            self._stopping.wait(PAUSE * random.uniform(0.1, 1))
        channel.close()

    def stop(self) -> None:
        """Takes none any more, and has those that run stop at their next step."""
        self._stopping.set()
        if self._call:
            self._call.cancel()
        with self._lock:
            for fence in self._running:
                self._end(fence, lambda: job.Stopping("this worker is to end"))

    def drain(self, seconds: float) -> bool:
        """Waits for those that run; whether none does."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._running, seconds)

    def _told(self, data: bytes) -> None:
        jobs = {}
        for number, value in wire.fields(data):
            one = wire.last(value) if number == 1 else {}
            if 9 in one:
                jobs[one[9]] = one
        with self._lock:
            for fence in self._running:
                if fence not in jobs:
                    self._end(fence, lambda: job.Fenced("this job is another's, or over"))
                elif jobs[fence].get(15):
                    self._end(fence, functools.partial(job.Cancelled, f"{jobs[fence][15].decode()} has cancelled this job"))
            # What was done may be told once more, from before that was heard.
            self._seen &= jobs.keys()
            new = [] if self._stopping.is_set() else [fence for fence in jobs if fence not in self._seen]
            self._seen.update(new)
            self._running.update(dict.fromkeys(new))
        begun: Set[int] = set()
        try:
            for fence in new:
                key = jobs[fence].get(1, b"").decode()
                self._begin(key, fence)
                begun.add(fence)
        finally:
            # They begin when they are told of again.
            with self._idle:
                for fence in set(new) - begun:
                    self._seen.discard(fence)
                    self._running.pop(fence, None)
                self._idle.notify_all()

    def _begin(self, key: str, fence: int) -> None:
        threading.Thread(target=self._do, args=(key, fence), name=f"job {key}", daemon=True).start()

    def _end(self, fence: int, why: Callable[[], Exception]) -> None:
        work = self._running.get(fence)
        if work:
            work.end(why)
        else:
            self._ends.setdefault(fence, why)

    def _do(self, key: str, fence: int) -> None:
        try:
            pool = self._worker.partition("/")[0]
            # What it has to say is said for as long as it lives: a job is longer than anybody's absence.
            with job.Job(key, pool, self._worker, self._agent, math.inf) as work:
                with self._lock:
                    self._running[fence] = work
                    why = self._ends.pop(fence, None)
                if why:
                    work.end(why)
                if work.fence == fence:
                    self._finish(work)
        except job.Fenced as fenced:
            log.warning("job %s: %s", key, fenced)
        except BaseException as error:
            log.exception("job %s: nobody hears how it ended", key)
            if getattr(error, "reason", "") not in FORGOTTEN:
                # Its worker would be taken to be at it for as long as it lives.
                end_worker()
        finally:
            with self._idle:
                self._running.pop(fence, None)
                self._ends.pop(fence, None)
                self._idle.notify_all()

    def _finish(self, work: job.Job) -> None:
        try:
            with checkpoint.using(work):
                result = self._handler(work)
            work.done(as_bytes(result))
        except (job.Fenced, job.Stopping) as stopped:
            log.info("job %s: %s", work.key, stopped)
        except job.Cancelled:
            work.cancelled()
        except job.Elsewhere as elsewhere:
            log.error("job %s: %s", work.key, elsewhere)
            work.progress(0.0, str(elsewhere))
            # A worker of another node may have better luck.
            end_worker()
        except BaseException as error:
            log.exception("job %s cannot be done", work.key)
            last = traceback.format_exception_only(type(error), error)[-1].strip()
            work.failed(last)


def until_silent(call: Any) -> Iterator[bytes]:
    """What is told in a call, which is ended where nothing is for too long."""
    while True:
        silence = threading.Timer(SILENCE, call.cancel)
        silence.daemon = True
        silence.start()
        try:
            told = next(call)
        except StopIteration:
            return
        finally:
            silence.cancel()
        yield told


def as_bytes(result: Any) -> bytes:
    """What a handler returned, as a result."""
    if result is None:
        return b""
    if isinstance(result, str):
        return result.encode()
    if isinstance(result, (bytes, bytearray, memoryview)):
        return bytes(result)
    raise TypeError(f"a job's result is bytes or a str, not {type(result).__name__}")


def end_worker() -> None:
    """Has this process end in good order: what it does goes on in another one."""
    os.kill(os.getpid(), signal.SIGTERM)


def worker_ref(worker: str) -> bytes:
    """A worker's name as a message."""
    pool, _, rest = worker.partition("/")
    slot, _, incarnation = rest.partition(".")
    return wire.field(1, pool) + wire.field(2, int(slot)) + wire.field(3, int(incarnation or 0))
