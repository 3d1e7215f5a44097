"""The client's side of the conformance suite on grpcio: makes the calls that it reads, and tells how each one ended.

    client.py TARGET WAY [CERTIFICATES]

A line of input is a case, a line of output is its record; both are JSON. WAY makes the names of calls unique. With
a folder of CERTIFICATES it speaks TLS, and shows its own.
"""

import json
import pathlib
import queue
import sys
import threading
import zlib

import grpc

SERVICE = "/conform.v1.Contract/"
PERIOD = bytes((31 * at + 7) % 251 for at in range(251))
PATIENCE = 60
LIMITS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 1 << 17),
    ("grpc.absolute_max_metadata_size", 1 << 17),
]


def pattern(size):
    return (PERIOD * (size // len(PERIOD) + 1))[:size]


def message(said):
    return bytes.fromhex(said) if isinstance(said, str) else pattern(said)


def readable(metadata):
    pairs = [(key, value.hex() if isinstance(value, bytes) else value) for key, value in metadata or ()]
    return sorted(pairs, key=lambda pair: pair[0])


class Requests:
    """A request's messages: all at once, or each when the one before was answered; then the end, unless it stays open."""

    def __init__(self, case):
        self.rest = [message(said) for said in case["messages"]]
        self.open = case["open"]
        self.over = threading.Event()
        self.turns = queue.SimpleQueue() if case["lockstep"] else None
        self.answered()

    def answered(self):
        if self.turns:
            self.turns.put(None)

    def __iter__(self):
        for message in self.rest:
            if self.turns:
                self.turns.get()
            yield message
        if self.open:
            self.over.wait()


class Client:
    def __init__(self, target, way, certificates=None):
        if certificates:
            files = (pathlib.Path(certificates, name).read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
            self.channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(*files), options=LIMITS)
        else:
            self.channel = grpc.insecure_channel(target, options=LIMITS)
        self.way = way
        grpc.channel_ready_future(self.channel).result(PATIENCE)

    def fate(self, call, seen=None):
        metadata = [("tether-pool", "digits"), ("do-of", call)]
        metadata += [("do-seen", str(seen))] if seen is not None else []
        return self.channel.unary_unary(SERVICE + "Fate")(b"", timeout=PATIENCE, metadata=metadata).decode()

    def play(self, case):
        path = case["method"] if case["method"].startswith("/") else SERVICE + case["method"]
        call_id = f"{self.way} {case['name']}"
        metadata = [(key, bytes.fromhex(value) if key.endswith("-bin") else value) for key, value in case["metadata"]]
        if case["fate"]:
            metadata.append(("do-id", call_id))
        ways = {
            "timeout": case["timeout_ms"] / 1000 if case["timeout_ms"] is not None else PATIENCE,
            "metadata": metadata,
            "compression": grpc.Compression.Gzip if case["gzip"] else None,
        }
        if case["timeout_ms"] is None:
            del ways["timeout"]
        requests = Requests(case)
        kind = case["kind"]
        if kind == "unary":
            call = self.channel.unary_unary(path).future(requests.rest[0], **ways)
        elif kind == "client_stream":
            call = self.channel.stream_unary(path).future(iter(requests), **ways)
        elif kind == "server_stream":
            call = self.channel.unary_stream(path)(requests.rest[0], **ways)
        else:
            call = self.channel.stream_stream(path)(iter(requests), **ways)
        answers = []
        try:
            if case["cancel_after"] == 0:
                self.fate(call_id, len(requests.rest))
                call.cancel()
            if kind in ("unary", "client_stream"):
                answers.append(call.result(PATIENCE))
            else:
                for answer in call:
                    answers.append(answer)
                    requests.answered()
                    if len(answers) == case["cancel_after"]:
                        call.cancel()
        except grpc.FutureTimeoutError:
            call.cancel()
            raise
        except (grpc.RpcError, grpc.FutureCancelledError):
            pass
        requests.over.set()
        return {
            "name": case["name"],
            "code": call.code().value[0],
            "details": call.details() or "",
            "initial": readable(call.initial_metadata()),
            "messages": [[len(answer), zlib.crc32(answer)] for answer in answers],
            "trailing": readable(call.trailing_metadata()),
            "fate": self.fate(call_id) if case["fate"] else None,
        }


def main():
    client = Client(*sys.argv[1:])
    for line in sys.stdin:
        print(json.dumps(client.play(json.loads(line))), flush=True)


main()
