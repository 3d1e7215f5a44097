"""A worker that says who it is: its slot, to whoever asks `/who.v1.Who/Are`."""

import os
import signal
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
slot = os.environ["TETHER_SLOT"].encode()
answer = grpc.unary_unary_rpc_method_handler(lambda request, context: slot)
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("who.v1.Who", {"Are": answer}),))
healthy = health.HealthServicer()
healthy.set("", health_pb2.HealthCheckResponse.SERVING)
health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
server.add_insecure_port(os.environ["TETHER_LISTEN"])
server.start()
signal.sigwait({signal.SIGTERM})
server.stop(1).wait()
os._exit(0)
