"""Trainings that belong to the worker, not to whoever asked for them.

A training runs in a thread of its own from its start to its end. Callers attach to it by its key and leave
again as they like; what they read is always the current state, never a queue that could grow.
"""

import logging
import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

import model as digits

log = logging.getLogger("digits.training")

RUNNING_MAX = 8

# Ended trainings are remembered so that a caller who was away can still fetch the result; the oldest are forgotten
# first, so that a worker that lives for months does not grow.
ENDED_MAX = 64


class Spec(NamedTuple):
    """What was asked for, with every default filled in."""

    job: str
    epochs: int
    learning_rate: float
    seed: int
    throttle_s: float


class Progress(NamedTuple):
    """Where a training stands after `epoch` epochs."""

    epoch: int
    loss: float
    accuracy: float
    done: bool


class Differs(Exception):
    """The key belongs to a training that was asked for differently."""


class Busy(Exception):
    """As many trainings run as the worker takes on."""


class Stopped(Exception):
    """The training ended before it was done."""


class Training:
    """One training: its thread, and the state that callers read."""

    def __init__(self, spec, data, adopt, stop):
        self.spec = spec
        self._data = data
        self._adopt = adopt
        self._stop = stop
        self._changed = threading.Condition()
        self._progress = None
        self._failure = None
        self._thread = threading.Thread(target=self._run, name=f"training {spec.job}", daemon=True)

    def start(self):
        """Begins; to be called once."""
        self._thread.start()

    def running(self):
        """True until the last state is there to be read."""
        return self._failure is None and not (self._progress and self._progress.done)

    def follow(self, wanted):
        """Yields the current state and then each newer one, until it is done or `wanted()` says no.

        Raises `Stopped` if the training ends before it is done.
        """
        seen = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._progress is not seen or self._failure or not wanted())
                if not wanted():
                    return
                if self._progress is seen:
                    raise Stopped(self._failure)
                seen = self._progress
            yield seen
            if seen.done:
                return

    def wake(self):
        """Makes every follower look again whether it is still wanted."""
        with self._changed:
            self._changed.notify_all()

    def _run(self):
        try:
            self._train()
        except Stopped as stopped:
            self._fail(str(stopped))
        except Exception as error:
            log.exception("training %s failed", self.spec.job)
            self._fail(f"training `{self.spec.job}` failed: {error}")

    def _train(self):
        spec, data = self.spec, self._data
        rng = np.random.default_rng(spec.seed)
        model = digits.untrained(spec.job, rng)
        self._publish(model, 0, done=False)
        for epoch in range(1, spec.epochs + 1):
            model = digits.trained_for_one_epoch(model, data.training, spec.learning_rate, rng)
            if self._stop.wait(spec.throttle_s):
                raise Stopped(f"the worker stopped in epoch {epoch} of training `{spec.job}`")
            done = epoch == spec.epochs
            if done:
                # First in use, then done: whoever read `done` is answered by these weights.
                self._adopt(model)
            self._publish(model, epoch, done)

    def _publish(self, model, epoch, done):
        progress = Progress(
            epoch=epoch,
            loss=digits.loss_on(model, self._data.training),
            accuracy=digits.accuracy_on(model, self._data.held_out),
            done=done,
        )
        with self._changed:
            self._progress = progress
            self._changed.notify_all()
        log.info(
            "training %s: epoch %d of %d, loss %.4f, accuracy %.3f",
            self.spec.job, epoch, self.spec.epochs, progress.loss, progress.accuracy,
        )  # fmt: skip

    def _fail(self, reason):
        with self._changed:
            self._failure = reason
            self._changed.notify_all()


class Trainings:
    """Every training of this worker by its key."""

    def __init__(self, data, adopt):
        self._data = data
        self._adopt = adopt
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._by_job = OrderedDict()

    def start_or_attach(self, spec):
        """The training called `spec.job`, started if there is none. Raises `Differs` or `Busy`."""
        with self._lock:
            training = self._by_job.get(spec.job)
            if training is None:
                training = self._started(spec)
            elif training.spec != spec:
                raise Differs(_difference(training.spec, spec))
        return training

    def stop(self):
        """Ends every training and with them the streams of all who follow."""
        self._stop.set()

    def _started(self, spec):
        ended = [job for job, training in self._by_job.items() if not training.running()]
        if len(self._by_job) - len(ended) >= RUNNING_MAX:
            raise Busy(f"{RUNNING_MAX} trainings run already; wait for one to end or ask another worker")
        for job in ended[: max(0, len(ended) - ENDED_MAX + 1)]:
            del self._by_job[job]

        training = Training(spec, self._data, self._adopt, self._stop)
        self._by_job[spec.job] = training
        training.start()
        return training


def _difference(running, asked):
    pairs = [
        f"`{name}` is {getattr(running, name)}, not {getattr(asked, name)}"
        for name in Spec._fields
        if getattr(running, name) != getattr(asked, name)
    ]
    return f"training `{running.job}` exists and differs: {', '.join(pairs)}; repeat its fields or choose another `job`"
