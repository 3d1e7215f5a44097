"""The worker's gRPC server: where it listens, what it says about its health, and how it stops."""

import ipaddress
import logging
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from digits.v1 import digits_pb2, digits_pb2_grpc
from service import DigitsService

log = logging.getLogger("digits.server")

MESSAGE_BYTES_MAX = 100 * 1024 * 1024
SERVICE = digits_pb2.DESCRIPTOR.services_by_name["DigitsService"].full_name

# Threads that streams of trainings leave to everything else.
THREADS_KEPT = 2

# The whole comes last, so that it is never ready before its part.
HEALTH_NAMES = (SERVICE, health.OVERALL_HEALTH)


class CannotListen(Exception):
    """The address is not one to listen on, or is taken."""


class Server:
    """Listens from `start` on; serves once `load` and `announce_ready` were called."""

    def __init__(self, listen, threads, interceptors=(), insecure=False):
        self._listen = listen
        self._insecure = insecure
        self._service = DigitsService(followers_max=max(1, threads - THREADS_KEPT))
        self._health = EndingHealth()
        for name in HEALTH_NAMES:
            self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        self._grpc = grpc.server(
            futures.ThreadPoolExecutor(max_workers=threads),
            interceptors=interceptors,
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
                # Otherwise a second worker on the same port would take half of the calls and nobody would know.
                ("grpc.so_reuseport", 0),
            ],
        )
        digits_pb2_grpc.add_DigitsServiceServicer_to_server(self._service, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc
        )

    def start(self):
        """Listens. Raises `CannotListen`."""
        if not self._insecure:
            check_local(self._listen)
        try:
            port = self._grpc.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise CannotListen(
                f"cannot listen on `{self._listen}`: it is in use, not permitted or its folder is missing"
            ) from error
        self._grpc.start()
        log.info("listening on %s%s", self._listen, f" (port {port})" if self._listen.endswith(":0") else "")

    def load(self):
        """Gets the model ready."""
        accuracy = self._service.load()
        log.info("start model trained, accuracy %.3f", accuracy)

    def announce_ready(self):
        """Says SERVING to whoever asks or watches."""
        for name in HEALTH_NAMES:
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("serving")

    def stop(self, grace):
        """Says NOT_SERVING, takes no more calls, and gives those in flight `grace` seconds to finish."""
        log.info("stopping")
        self._health.end()
        self._service.stop()
        self._grpc.stop(grace).wait()
        log.info("stopped")


class EndingHealth(health.HealthServicer):
    """Health whose watchers are told NOT_SERVING and let go when the server ends.

    A watch never ends by itself, so that a server with one watcher would use up its whole grace at every stop.
    """

    def __init__(self):
        super().__init__()
        self._watchers = set()

    def Watch(self, request, context, send_response_callback=None):
        self._watchers.add(send_response_callback)
        context.add_callback(lambda: self._watchers.discard(send_response_callback))
        return super().Watch(request, context, send_response_callback)

    def end(self):
        """Says the last word to every watcher."""
        self.enter_graceful_shutdown()
        for send in list(self._watchers):
            send(None)


def check_local(listen):
    """Refuses addresses that other machines can reach: the worker speaks plain text."""
    if listen.startswith("unix:"):
        return
    host = listen.rpartition(":")[0].strip("[]")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise CannotListen(
            f"refused to listen on `{listen}` in plain text; use `unix:/PATH` or a loopback address such as `127.0.0.1:PORT`,"
            " or say `--insecure` where the network is your own"
        )
