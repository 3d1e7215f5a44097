"""A worker that talks in plain bytes, and tells on stdout what becomes of its calls.

With `--daemonize-child` it leaves behind a daemon in its own session that ignores SIGTERM.
"""

import os
import signal
import sys
import threading
from concurrent import futures

import grpc


def say(text):
    print(text, flush=True)


def echo(request, context):
    """Answers what was asked, and what was said beside it."""
    said = dict(context.invocation_metadata())
    context.send_initial_metadata([("x-said", said.get("x-say", ""))])
    context.set_trailing_metadata([("x-epoch", said.get("tether-epoch", "")), ("x-bytes-bin", bytes([0, 255]))])
    return request


def fail(request, context):
    """Fails as a worker fails."""
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not like this")


def flood(request, context):
    """As many messages as are asked for, each as large."""
    for number, message in enumerate(quiet(request, context)):
        say(f"flood {number}")
        yield message


def quiet(request, context):
    """The same, and tells nothing of it."""
    count, size = (int(number) for number in request.split())
    for _ in range(count):
        yield bytes(size)


def chat(requests, context):
    """Says everything again."""
    yield from requests


def deaf(requests, context):
    """Hears nothing until it is told to by nobody."""
    hang(b"", context)
    yield b""


def hang(request, context):
    """Waits until nobody wants the answer."""
    gone = threading.Event()
    context.add_callback(gone.set)
    say("hangs")
    gone.wait()
    say("gone")
    return b""


def main():
    if "--daemonize-child" in sys.argv and os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "Flood": grpc.unary_stream_rpc_method_handler(flood),
        "Quiet": grpc.unary_stream_rpc_method_handler(quiet),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Deaf": grpc.stream_stream_rpc_method_handler(deaf),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("talk.Talk", handlers),))
    server.add_insecure_port(os.environ["TETHER_LISTEN"])
    server.start()
    server.wait_for_termination()


main()
