"""Starts real workers for the tests and always ends them."""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

from digits.v1 import digits_pb2, digits_pb2_grpc  # noqa: E402

PATIENCE_S = 20

# A shell's background job ignores SIGINT and so would every worker started from it, whatever the worker does.
signal.signal(signal.SIGINT, signal.default_int_handler)


class WorkerProcess:
    """One worker process on a unix socket of its own; a context that kills it at the end."""

    def __init__(self, *arguments, program="worker.py"):
        self._folder = tempfile.TemporaryDirectory(prefix="digits-")
        self.target = f"unix:{self._folder.name}/worker.sock"
        self.log_path = Path(self._folder.name, "log")
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, HERE / program, "--listen", self.target, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self.channel = grpc.insecure_channel(self.target, options=[("grpc.initial_reconnect_backoff_ms", 20)])
        self.digits = digits_pb2_grpc.DigitsServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._folder.cleanup()

    @property
    def pid(self):
        """Process id of the worker."""
        return self.process.pid

    @property
    def log(self):
        """What the worker has said on stderr."""
        return self.log_path.read_text()

    def watch(self, service=""):
        """The stream of health states."""
        return self.health.Watch(
            health_pb2.HealthCheckRequest(service=service), wait_for_ready=True, timeout=PATIENCE_S
        )

    def until_serving(self):
        """This worker, once it says SERVING."""
        watch = self.watch()
        for state in watch:
            if state.status == health_pb2.HealthCheckResponse.SERVING:
                watch.cancel()
                return self
        raise AssertionError("the worker stopped before it was SERVING")

    def predict(self, pixels, metadata=()):
        """One answer."""
        return self.digits.Predict(digits_pb2.PredictRequest(pixels=pixels), metadata=metadata, timeout=PATIENCE_S)

    def train(self, **fields):
        """A stream of progress."""
        return self.digits.Train(digits_pb2.TrainRequest(**fields), timeout=PATIENCE_S)

    def terminated(self):
        """Sends SIGTERM; the exit status and the seconds it took."""
        began = time.monotonic()
        self.process.terminate()
        return self.process.wait(PATIENCE_S), time.monotonic() - began


def held_out():
    """The images that no training learns from."""
    from client import images

    return [image for number, image in enumerate(images()) if number % 5 == 0]


def ended(pid):
    """Waits for a process that is nobody's child here; False if it is still there after all patience."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watched], [], [], PATIENCE_S)[0])
    finally:
        os.close(watched)
