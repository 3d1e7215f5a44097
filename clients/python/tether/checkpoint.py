"""The checkpoints of the job that this thread does.

    from tether import checkpoint

    state = checkpoint.load()               # none for a first attempt
    for step in range(checkpoint.step(), STEPS):
        ...
        checkpoint.save(state, step=step + 1)

A handler of `tether.worker.Worker` runs in a thread of its own, and is meant by that; in any other thread `using` says
which job is.
"""

from __future__ import annotations

import contextlib
import contextvars
from typing import BinaryIO, Iterator, Optional

from tether import job

_current: contextvars.ContextVar[Optional[job.Job]] = contextvars.ContextVar("tether-job", default=None)


@contextlib.contextmanager
def using(work: job.Job) -> Iterator[job.Job]:
    """Has this be the job of this thread."""
    token = _current.set(work)
    try:
        yield work
    finally:
        _current.reset(token)


def current() -> job.Job:
    """The job that this thread does."""
    work = _current.get()
    if work is None:
        raise RuntimeError("this thread does no job: call this in a handler of a Worker, or within `using`")
    return work


def save(data: job.Data, step: Optional[int] = None) -> job.Checkpoint:
    """Saves bytes, or what is in a file: durable when this returns."""
    return current().save(data, step)


def load(to: Optional[BinaryIO] = None) -> Optional[bytes]:
    """The bytes of the last checkpoint; none where there is none."""
    return current().load(to)


def step() -> int:
    """Up to where an attempt has saved; 0 where none has."""
    return current().step


def progress(fraction: float, message: str = "") -> None:
    """Tells how far the job is, from 0 to 1."""
    current().progress(fraction, message)
