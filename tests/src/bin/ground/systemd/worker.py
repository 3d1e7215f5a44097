"""A worker that answers every call."""

import concurrent.futures
import os

import grpc


class Every(grpc.GenericRpcHandler):
    def service(self, call):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"here")


server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=(Every(),))
server.add_insecure_port(os.environ["TETHER_LISTEN"])
server.start()
server.wait_for_termination()
