"""The gRPC face of the worker: checks what was asked, and answers from the model and the trainings."""

import math
import os
import threading

import grpc

from digits.v1 import digits_pb2, digits_pb2_grpc

PIXELS = 64
INK_MAX = 16
JOB_LENGTH_MAX = 128
EPOCHS_DEFAULT = 30
EPOCHS_MAX = 100_000
LEARNING_RATE_DEFAULT = 0.1
LEARNING_RATE_MAX = 10.0
THROTTLE_MS_MAX = 60_000

# What the worker trains at its start, to have an answer to Predict before anyone asked for a training.
START_EPOCHS = 5


class DigitsService(digits_pb2_grpc.DigitsServiceServicer):
    """Answers UNAVAILABLE until `load` was called, and again after `stop`."""

    def __init__(self, followers_max):
        self._model = None
        self._trainings = None
        self._stopping = False
        # A stream holds a thread for as long as it lasts. Some threads are kept from them, so that a worker whose
        # trainings are watched by many still answers Predict and its health check.
        self._followers_max = followers_max
        self._followers = threading.BoundedSemaphore(followers_max)

    def load(self):
        """Reads the data and trains the first model. Takes some tenths of a second."""
        # Loading numpy takes longest of all, and the worker listens already while it does.
        import numpy as np

        import model as digits
        from training import Trainings

        data = digits.load_digits()
        rng = np.random.default_rng(0)
        model = digits.untrained("", rng)
        for _ in range(START_EPOCHS):
            model = digits.trained_for_one_epoch(model, data.training, LEARNING_RATE_DEFAULT, rng)
        self._adopt(model)
        self._trainings = Trainings(data, self._adopt)
        return digits.accuracy_on(model, data.held_out)

    def stop(self):
        """Refuses what comes next and ends the trainings."""
        self._stopping = True
        if self._trainings:
            self._trainings.stop()

    def Predict(self, request, context):
        self._check_available(context)
        pixels = list(request.pixels)
        if len(pixels) != PIXELS:
            _refuse(context, f"`pixels` has {len(pixels)} values, expected {PIXELS} (8 rows of 8)")
        for place, value in enumerate(pixels):
            if value > INK_MAX:
                _refuse(context, f"`pixels[{place}]` is {value}, expected 0 to {INK_MAX}")

        # A training may end while this runs; one reference makes label, step and job belong together.
        model = self._model
        from model import probabilities, scaled

        odds = probabilities(model, scaled([pixels]))[0]
        label = int(odds.argmax())
        return digits_pb2.PredictResponse(
            label=label,
            probability=float(odds[label]),
            model_step=model.step,
            model_job=model.job,
            pid=os.getpid(),
        )

    def Train(self, request, context):
        self._check_available(context)
        from training import Busy, Differs, Stopped

        spec = _spec(request, context)
        if not self._followers.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._followers_max} streams follow trainings here already; close one or raise `--threads`",
            )
        try:
            training = self._trainings.start_or_attach(spec)
            context.add_callback(training.wake)
            for progress in training.follow(context.is_active):
                yield digits_pb2.TrainResponse(
                    job=spec.job,
                    epoch=progress.epoch,
                    total=spec.epochs,
                    loss=progress.loss,
                    accuracy=progress.accuracy,
                    pid=os.getpid(),
                    done=progress.done,
                )
        except Differs as differs:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, str(differs))
        except Busy as busy:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(busy))
        except Stopped as stopped:
            code = grpc.StatusCode.UNAVAILABLE if self._stopping else grpc.StatusCode.INTERNAL
            context.abort(code, str(stopped))
        finally:
            self._followers.release()

    def _adopt(self, model):
        self._model = model

    def _check_available(self, context):
        if self._stopping:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the worker is stopping; ask another one")
        if self._trainings is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the worker is loading its model; wait until it is SERVING")


def _spec(request, context):
    from training import Spec

    spec = Spec(
        job=request.job,
        epochs=request.epochs or EPOCHS_DEFAULT,
        learning_rate=request.learning_rate or LEARNING_RATE_DEFAULT,
        seed=request.seed,
        throttle_s=request.throttle_ms / 1000,
    )
    if not 1 <= len(spec.job) <= JOB_LENGTH_MAX:
        _refuse(context, f"`job` has {len(spec.job)} characters, expected 1 to {JOB_LENGTH_MAX}")
    if spec.epochs > EPOCHS_MAX:
        _refuse(context, f"`epochs` is {spec.epochs}, expected 1 to {EPOCHS_MAX}")
    if not (math.isfinite(spec.learning_rate) and 0 < spec.learning_rate <= LEARNING_RATE_MAX):
        _refuse(context, f"`learning_rate` is {spec.learning_rate}, expected above 0 and at most {LEARNING_RATE_MAX}")
    if request.throttle_ms > THROTTLE_MS_MAX:
        _refuse(context, f"`throttle_ms` is {request.throttle_ms}, expected at most {THROTTLE_MS_MAX}")
    return spec


def _refuse(context, reason):
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, reason)
