"""A worker with the contract of Snakepit's own, for tests: what it is asked and when it ends, but not what it is for.

It takes the flags and the environment of Snakepit 0.13, waits until its BEAM answers Ping, says its port in a file and
nowhere else, asks its BEAM at each call without a deadline, and ends itself where its heartbeats fail and it is told
to depend on them.
"""

import argparse
import concurrent.futures
import json
import os
import signal
import sys
import threading
import time
import uuid

import grpc
import wire

SERVICE = "snakepit.bridge.BridgeService"
IDENTITY = str(uuid.uuid4())
done = threading.Event()


def flags():
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--elixir-address", required=True)
    parser.add_argument("--snakepit-run-id", default="")
    parser.add_argument("--snakepit-instance-name", default="")
    parser.add_argument("--snakepit-instance-token", default="")
    parser.add_argument("--health-check", action="store_true")
    parser.add_argument("--heartbeat-dependent", action="store_true")
    parser.add_argument("--heartbeat-independent", action="store_true")
    return parser.parse_args()


class Beam:
    """What this worker asks of its BEAM."""

    def __init__(self, address):
        # Snakepit's channel too is made once, for the worker's life.
        self.channel = grpc.insecure_channel(address)

    def call(self, method, request=b"", timeout=None):
        return self.channel.unary_unary(f"/{SERVICE}/{method}")(request, timeout=timeout)

    def wait(self):
        delay = 0.05
        for _ in range(60):
            try:
                return self.call("Ping", wire.field(1, "hello"), timeout=5)
            except grpc.RpcError:
                time.sleep(delay)
                delay = min(delay * 2, 2)
        sys.exit(1)

    def exchange(self, texts):
        """Sends texts over a stream one by one, each when the one before came back; tells what came and how it ended."""
        seen, go = [], concurrent.futures.ThreadPoolExecutor(1)
        turn = threading.Semaphore(1)

        def say():
            for said in texts:
                turn.acquire()
                yield wire.field(1, said)
            # Left open: the other end says when it is over.
            done.wait()

        try:
            for answer in self.channel.stream_stream(f"/{SERVICE}/StreamTelemetry")(say()):
                seen.append(wire.text(answer, 1))
                turn.release()
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
        go.shutdown(wait=False)
        return {"seen": seen, "code": code}


class Heart:
    """Beats once there is a session."""

    def __init__(self, beam, dependent):
        config = {"interval_ms": 2000, "max_missed_heartbeats": 3, "dependent": dependent}
        config |= json.loads(os.environ.get("SNAKEPIT_HEARTBEAT_CONFIG") or "{}")
        self.beam, self.config, self.beats, self.begun = beam, config, 0, False

    def begin(self, session):
        if not self.begun:
            self.begun = True
            threading.Thread(target=self.beat, args=(session,), daemon=True).start()

    def beat(self, session):
        missed, pause = 0, self.config["interval_ms"] / 1000
        while not done.wait(pause):
            try:
                self.beam.call("Heartbeat", wire.field(1, session), timeout=pause)
                self.beats, missed = self.beats + 1, 0
            except grpc.RpcError:
                missed += 1
            if missed >= self.config["max_missed_heartbeats"] and self.config["dependent"]:
                os.kill(os.getpid(), signal.SIGTERM)


def tools(beam, heart):
    def elixir(session, argument):
        request = wire.field(1, session) + wire.field(2, argument)
        answer = wire.fields(beam.call("ExecuteElixirTool", request))
        return json.loads(wire.fields(answer[2])[2])

    return {
        "who": lambda *_: {"identity": IDENTITY, "argv": sys.argv, "env": dict(os.environ)},
        "elixir": elixir,
        "beats": lambda *_: heart.beats,
        "stream": lambda _, argument: beam.exchange(argument.split(",")),
        "exit": lambda _, argument: os._exit(int(argument)),
        "kill": lambda _, argument: os.kill(os.getpid(), int(argument)),
        "fail": lambda _, argument: [][int(argument)],
        "work": lambda _, argument: time.sleep(float(argument)),
    }


def main():
    asked = flags()
    if not asked.adapter.startswith("pretend."):
        print(f"no adapter is called {asked.adapter}", file=sys.stderr)
        sys.exit(1)
    if asked.health_check:
        sys.exit(0)
    beam = Beam(asked.elixir_address)
    beam.wait()
    heart = Heart(beam, asked.heartbeat_dependent)
    known, registered = tools(beam, heart), set()

    def execute(request, _context):
        session, (name, _, argument) = wire.text(request, 1), wire.text(request, 2).partition(":")
        try:
            # As in Snakepit: nothing says how long this may take.
            beam.call("InitializeSession", wire.field(1, session))
            if session not in registered:
                beam.call("RegisterTools", wire.field(1, session) + wire.field(3, IDENTITY))
                registered.add(session)
            heart.begin(session)
            result = json.dumps(known[name](session, argument)).encode()
        except grpc.RpcError as error:
            failed = {"type": "RpcError", "message": error.code().name}
            return wire.field(1, False) + wire.field(3, json.dumps(failed))
        except Exception as error:
            failed = {"type": type(error).__name__, "message": str(error)}
            return wire.field(1, False) + wire.field(3, json.dumps(failed))
        kind = wire.field(1, "type.googleapis.com/google.protobuf.StringValue")
        return wire.field(1, True) + wire.field(2, kind + wire.field(2, result))

    pool = concurrent.futures.ThreadPoolExecutor(4)
    server = grpc.server(pool)
    methods = {
        "Ping": grpc.unary_unary_rpc_method_handler(lambda *_: wire.field(1, "pong")),
        "ExecuteTool": grpc.unary_unary_rpc_method_handler(execute),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    port = server.add_insecure_port(f"[::]:{asked.port}")
    server.start()
    file = os.environ["SNAKEPIT_READY_FILE"]
    with open(file + ".tmp", "w") as ready:
        ready.write(str(port))
        ready.flush()
        os.fsync(ready.fileno())
    os.rename(file + ".tmp", file)
    done.wait()
    server.stop(2).wait()


if __name__ == "__main__":
    main()
