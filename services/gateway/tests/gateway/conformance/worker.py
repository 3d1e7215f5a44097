"""The worker's side of the conformance contract on grpcio; `contract.rs` is its twin on tonic.

Listens at a port of its own, which is the first line it prints, until its input ends. What a call is to do stands in
its metadata: `h-*` comes back in the initial metadata and `t-*` in the trailing one; what begins with `do-` asks for
the rest.
"""

import pathlib
import sys
import threading
import time
import zlib
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

SERVICE = "conform.v1.Contract"
PERIOD = bytes((31 * at + 7) % 251 for at in range(251))
CODES = {code.value[0]: code for code in grpc.StatusCode}
PATIENCE = 10


def pattern(size):
    return (PERIOD * (size // len(PERIOD) + 1))[:size]


class Fate:
    """What became of one call, for whoever asks `Fate` about it."""

    def __init__(self):
        self.changed = threading.Condition()
        self.seen = 0
        self.how = None

    def change(self, edit):
        with self.changed:
            edit(self)
            self.changed.notify_all()

    def when(self, condition):
        with self.changed:
            return self.changed.wait_for(lambda: condition(self), PATIENCE)


fates = {}
fates_lock = threading.Lock()


def fate_of(name):
    with fates_lock:
        return fates.setdefault(name, Fate())


class Call:
    """One call under way: what its metadata asks for, and its fate."""

    def __init__(self, context):
        self.context = context
        self.metadata = context.invocation_metadata()
        self.asked = dict(self.metadata)
        self.fate = fate_of(self.asked["do-id"]) if "do-id" in self.asked else Fate()
        self.done = False
        self.left = threading.Event()
        if not context.add_callback(self.ended):
            self.ended()
        if "do-gzip" in self.asked:
            context.set_compression(grpc.Compression.Gzip)
        initial = [item for item in self.metadata if item[0].startswith("h-")]
        if initial or "do-flush" in self.asked:
            context.send_initial_metadata(initial)
        context.set_trailing_metadata(self.trailing())
        time.sleep(int(self.asked.get("do-wait", 0)) / 1000)

    def trailing(self):
        trailing = [item for item in self.metadata if item[0].startswith("t-")]
        trailing += [("t-big", "x" * int(self.asked.get("do-big", 0)))] if "do-big" in self.asked else []
        trailing += [(f"t-many-{at}", str(at)) for at in range(int(self.asked.get("do-many", 0)))]
        if "do-details-bin" in self.asked:
            trailing.append(("grpc-status-details-bin", self.asked["do-details-bin"]))
        return trailing

    def ended(self):
        how = "complete" if self.done else "cancelled"
        self.fate.change(lambda fate: setattr(fate, "how", f"{how} after {fate.seen}"))
        self.left.set()

    def saw(self, message):
        self.fate.change(lambda fate: setattr(fate, "seen", fate.seen + 1))
        return message

    def messages(self, requests):
        for message in requests:
            yield self.saw(message)

    def sizes(self):
        return [int(size) for size in self.asked.get("do-sizes", "").split()]

    def fail_if_asked(self):
        self.done = True
        if "do-code" in self.asked:
            text = self.asked.get("do-message-bin", b"").decode() or self.asked.get("do-message", "")
            self.context.abort(CODES[int(self.asked["do-code"])], text)

    def answers(self, messages):
        """These, with the failure that was asked for after the last, or after as many as it says."""
        after = int(self.asked.get("do-after", -1))
        for at, message in enumerate(messages):
            if at == after:
                break
            yield message
        self.fail_if_asked()


def unary(answer):
    def handle(request, context):
        call = Call(context)
        message = answer(call, call.saw(request))
        call.fail_if_asked()
        return message

    return grpc.unary_unary_rpc_method_handler(handle)


def hang(call, request):
    call.left.wait(PATIENCE)
    return b""


def inspect(call, request):
    """All metadata as it came, but the word of a gateway that it came through."""
    remaining = call.context.time_remaining()
    seen = [(key, value.hex() if isinstance(value, bytes) else value) for key, value in call.metadata]
    seen = [(key, value) for key, value in seen if key != "tether-via"]
    seen.append(("(deadline)", "none" if remaining is None else "some"))
    return "\n".join(f"{key}={value}" for key, value in sorted(seen, key=lambda item: item[0])).encode()


def fate(call, request):
    fate = fate_of(call.asked["do-of"])
    if "do-seen" in call.asked:
        least = int(call.asked["do-seen"])
        return b"seen" if fate.when(lambda fate: fate.seen >= least) else b"never seen"
    fate.when(lambda fate: fate.how is not None)
    return str(fate.how).encode()


def sizes(request, context):
    call = Call(context)
    call.saw(request)
    yield from call.answers(pattern(size) for size in call.sizes())


def one_then_hang(request, context):
    call = Call(context)
    yield call.saw(request)
    call.left.wait(PATIENCE)


def digest(requests, context):
    call = Call(context)
    count, size, sum = 0, 0, 0
    for message in call.messages(requests):
        count, size, sum = count + 1, size + len(message), zlib.crc32(message, sum)
    call.fail_if_asked()
    return f"{count} {size} {sum}".encode()


def deaf(requests, context):
    call = Call(context)
    call.fail_if_asked()
    return b"not read"


def ping_pong(requests, context):
    call = Call(context)
    yield from call.answers(call.messages(requests))


def reverse(requests, context):
    call = Call(context)
    yield from call.answers(reversed(list(call.messages(requests))))


def early(requests, context):
    call = Call(context)
    yield from call.answers(pattern(size) for size in call.sizes())


METHODS = {
    "Echo": unary(lambda call, request: request),
    "Size": unary(lambda call, request: pattern(call.sizes()[0])),
    "Inspect": unary(inspect),
    "Hang": unary(hang),
    "Fate": unary(fate),
    "Sizes": grpc.unary_stream_rpc_method_handler(sizes),
    "OneThenHang": grpc.unary_stream_rpc_method_handler(one_then_hang),
    "Digest": grpc.stream_unary_rpc_method_handler(digest),
    "Deaf": grpc.stream_unary_rpc_method_handler(deaf),
    "PingPong": grpc.stream_stream_rpc_method_handler(ping_pong),
    "Reverse": grpc.stream_stream_rpc_method_handler(reverse),
    "Early": grpc.stream_stream_rpc_method_handler(early),
}

LIMITS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 1 << 17),
    ("grpc.absolute_max_metadata_size", 1 << 17),
    ("grpc.so_reuseport", 0),
]


def main(certificates=None):
    server = grpc.server(futures.ThreadPoolExecutor(32), options=LIMITS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, METHODS),))
    # Otherwise it waits with its lock held, and hangs when one Watch begins while another ends.
    healthy = health.HealthServicer(experimental_non_blocking=False)
    healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection((health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    if certificates:
        key, certificate, authority = (
            pathlib.Path(certificates, name).read_bytes() for name in ("server.key", "server.pem", "ca.pem")
        )
        credentials = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(None)


main(*sys.argv[1:])
