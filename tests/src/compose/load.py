"""Calls by gRPC's own client that go on without a pause, and a line of JSON for what became of them, each second.

    python3 load.py TARGET THREADS

Run in the image of agents, which has the messages. A call is made once: nothing but gRPC itself repeats it.
"""

import json
import sys
import threading
import time

sys.path.insert(0, "/opt/digits")

import grpc  # noqa: E402

from digits.v1 import digits_pb2, digits_pb2_grpc  # noqa: E402

OPTIONS = [
    # Both gateways, and each new one soon after it is there.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.dns_min_time_between_resolutions_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
DEADLINE = 10
LOCK = threading.Lock()
MADE = {"calls": 0, "failed": 0, "slowest_ms": 0, "errors": []}


def call(target):
    """Calls for ever."""
    request = digits_pb2.PredictRequest(pixels=[0] * 64)
    with grpc.insecure_channel(target, OPTIONS) as channel:
        stub = digits_pb2_grpc.DigitsServiceStub(channel)
        while True:
            begun = time.monotonic()
            error = None
            try:
                stub.Predict(request, metadata=[("tether-pool", "digits")], timeout=DEADLINE)
            except grpc.RpcError as failed:
                error = f"{failed.code().name}: {failed.details()}"
            took = (time.monotonic() - begun) * 1000
            with LOCK:
                MADE["calls"] += 1
                MADE["slowest_ms"] = max(MADE["slowest_ms"], round(took))
                if error is not None:
                    MADE["failed"] += 1
                    MADE["errors"] = [*MADE["errors"], error][-5:]
            time.sleep(0.01)


def main():
    """Runs the load as a program."""
    target, threads = sys.argv[1], int(sys.argv[2])
    for _ in range(threads):
        threading.Thread(target=call, args=(target,), daemon=True).start()
    while True:
        time.sleep(0.5)
        with LOCK:
            print(json.dumps(MADE), flush=True)
            MADE["slowest_ms"] = 0


if __name__ == "__main__":
    main()
