"""Workers on the SDK, under the services as they ship: `cargo build --bins` makes those."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
SDK = os.path.dirname(HERE)
ROOT = os.path.dirname(os.path.dirname(SDK))
PROGRAMS = os.environ.get("TETHER_PROGRAMS", os.path.join(ROOT, "target", "debug"))
DEADLINE = 60

sys.path.insert(0, SDK)

try:
    import grpc

    from tether import _wire as wire, health, job
except ImportError:
    grpc = None

# What a job does is in its `spec`, a word for each thing.
WORKER = '''
import os, signal, sys, time
from tether import checkpoint, lease, trace
from tether.worker import Worker

def do(work):
    words = work.spec.decode().split()
    if "raise" in words:
        raise ValueError("no such data")
    if "from" in words:
        state = checkpoint.load()
        if state is None:
            checkpoint.save(b"x" * 3_000_000, step=7)
            checkpoint.progress(0.5, "saved")
            work.wait(1000)
        return b"%d bytes of step %d in attempt %d" % (len(state), checkpoint.step(), work.attempt)
    if "file" in words:
        path = os.path.join(os.environ["TETHER_DIR"], "model")
        with open(path, "wb") as file:
            file.write(os.urandom(2_500_000))
        work.save(path, step=1)
        with open(path, "rb") as saved, open(path + ".again", "w+b") as again:
            work.load(to=again)
            again.seek(0)
            return str(saved.read() == again.read())
    if "stay" in words:
        time.sleep(1000)
    work.wait(1000)

async def echo(ask, context):
    return repr((dict(trace.metadata()), lease.remaining() > 0)).encode()

async def slow(ask, context):
    import asyncio
    print("slow call", flush=True)
    await asyncio.sleep(1)
    return b"done"

def register(server):
    import grpc
    handlers = {name: grpc.unary_unary_rpc_method_handler(it) for name, it in (("Echo", echo), ("Slow", slow))}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))

Worker(register=register, jobs=do, grace=5).run()
'''

# Takes for ever to get ready.
PREPARES = """
import asyncio
from tether.worker import Worker

async def prepare():
    print("prepares", flush=True)
    try:
        await asyncio.sleep(1000)
    finally:
        print("is told", flush=True)

Worker(prepare=prepare).run()
"""

POOL = """
[template.t]
command = "{python}"
args = ["{worker}"]
env = {{ PYTHONPATH = "{sdk}" }}
readiness = {{ kind = "{readiness}" }}
[pool.p]
template = "t"
mode = "independent"
size = {size}
"""


def eventually(what, look):
    """Waits until there is something, and answers it."""
    deadline = time.monotonic() + DEADLINE
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not so in {DEADLINE} s: {what}")
        time.sleep(0.05)


class Cluster:
    """A `tether up`, and the pool `p` on it."""

    def __init__(self, test, size=1, readiness="grpc"):
        self.dir = tempfile.mkdtemp(prefix="tether-")
        test.addCleanup(shutil.rmtree, self.dir, True)
        self.gateway = f"unix:{self.dir}/run/gateway.sock"
        sets = {
            "listen.gateway": f'["{self.gateway}"]',
            "listen.runtime_dir": f"{self.dir}/run",
            "agent.checkpoints.store": f"file://{self.dir}/checkpoints",
        }
        flags = [flag for key, value in sets.items() for flag in ("--set", f"{key}={value}")]
        self.log = open(f"{self.dir}/log", "w+b")
        test.addCleanup(self.log.close)
        environment = {name: value for name, value in os.environ.items() if name != "TETHER_CONFIG"}
        self.up = subprocess.Popen(
            [f"{PROGRAMS}/tether", "up", "--store", "memory:", *flags], env=environment, stderr=self.log
        )
        test.addCleanup(self.end)
        worker, pool = f"{self.dir}/worker.py", f"{self.dir}/pool.toml"
        with open(worker, "w", encoding="utf-8") as file:
            file.write(WORKER)
        with open(pool, "w", encoding="utf-8") as file:
            file.write(POOL.format(python=sys.executable, worker=worker, sdk=SDK, size=size, readiness=readiness))
        eventually("the gateway answers", lambda: self.run("nodes", check=False).stdout.count(b'"up": true'))
        self.run("pool", "apply", "--file", pool, "--owner", "beam")
        eventually("all are ready", lambda: len(self.workers()) == size)

    def end(self):
        # The pool goes first, and with it what would outlive these services.
        self.run("pool", "rm", "p", check=False)
        try:
            eventually("the pool is gone", lambda: self.run("ps", check=False).stdout.strip() in (b"[]", b""))
        finally:
            self.up.send_signal(signal.SIGTERM)
            self.up.wait(DEADLINE)

    def run(self, *args, check=True):
        command = [f"{PROGRAMS}/tether", "--gateway", self.gateway, "--output", "json", *args]
        return subprocess.run(command, check=check, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=DEADLINE)

    def workers(self):
        all_of_them = json.loads(self.run("ps", "p").stdout)
        return [worker for worker in all_of_them if worker["phase"] == "ready"]

    def start(self, key, spec):
        path = f"{self.dir}/{key}.spec"
        with open(path, "w", encoding="utf-8") as file:
            file.write(spec)
        return json.loads(self.run("job", "start", "p", key, "--spec", path).stdout)

    def show(self, key):
        return json.loads(self.run("job", "show", "p", key).stdout)

    def until(self, key, is_so):
        def look():
            shown = self.show(key)
            return shown if is_so(shown) else None

        return eventually(f"job {key}", look)

    def pid_of(self, shown):
        return next(worker["pid"] for worker in self.workers() if worker["worker"] == shown["worker"])

    def channel(self):
        return job.connect(self.workers()[0]["address"])


@unittest.skipUnless(grpc, "grpcio is not installed")
class Workers(unittest.TestCase):
    def test_jobs_end_as_their_handler_does_and_go_on_elsewhere_from_what_was_saved(self):
        cluster = Cluster(self, size=2)
        cluster.start("model", "file")
        cluster.start("wrong", "raise")
        first = cluster.start("long", "from")

        self.assertEqual(cluster.until("model", lambda it: it["state"] == "done")["result"], "True")
        failed = cluster.until("wrong", lambda it: it["state"] == "failed")
        self.assertEqual((failed["message"], failed["attempt"]), ("ValueError: no such data", 1))
        saved = cluster.until("long", lambda it: it["message"] == "saved")
        self.assertEqual(saved["checkpoint"]["bytes"], 3_000_000)
        os.kill(cluster.pid_of(first), signal.SIGKILL)
        done = cluster.until("long", lambda it: it["state"] == "done")
        self.assertEqual(done["result"], "3000000 bytes of step 7 in attempt 2")
        self.assertEqual(done["last_death"], "SIGNALED")

        # The bytes of an attempt that was fenced off count for nothing, and do not stay.
        agent = job.connect(f"unix:{cluster.dir}/run/agent.sock")
        self.addCleanup(agent.close)
        late = job.Job.__new__(job.Job)
        late.key, late.pool, late.fence, late.saved = "long", "p", first["fence"], None
        late._channel, late._patience, late._ended, late._news = agent, 5, None, threading.Event()
        before = kept(cluster)
        with self.assertRaises(job.Fenced):
            late.save(b"late", step=99)
        self.assertEqual(kept(cluster), before)
        # Those that count do, whoever is refused: it may not have heard that they were recorded.
        late.saved = None
        with self.assertRaises(job.Fenced):
            late.save(b"x" * 3_000_000, step=7)
        self.assertEqual(kept(cluster), before)

    def test_a_cancelled_job_stops_and_one_that_does_not_is_ended_with_its_worker(self):
        cluster = Cluster(self)
        shown = cluster.start("kind", "wait")
        pid = cluster.pid_of(shown)
        cluster.run("job", "cancel", "p", "kind")
        cancelled = cluster.until("kind", lambda it: it["state"] == "cancelled")
        self.assertEqual(cancelled["cancelled_by"], "an operator")
        self.assertEqual(cluster.pid_of(shown), pid, "its worker stays")

        cluster.start("deaf", "stay")
        cluster.run("job", "cancel", "p", "deaf", "--grace", "300ms")
        cluster.until("deaf", lambda it: it["state"] == "cancelled")
        eventually("its worker is another", lambda: [it for it in cluster.workers() if it["pid"] != pid])
        # Nothing begins it again.
        self.assertEqual(cluster.show("deaf")["attempt"], 1)

    def test_health_traces_and_a_stop_that_lets_calls_end(self):
        cluster = Cluster(self, readiness="notify")
        with cluster.channel() as channel:
            check = channel.unary_unary(health.SERVICE + "Check")
            self.assertEqual(wire.last(check(b"", timeout=10)), {1: health.SERVING})
            with self.assertRaises(grpc.RpcError) as unknown:
                check(wire.field(1, "other"), timeout=10)
            self.assertEqual(unknown.exception.code(), grpc.StatusCode.NOT_FOUND)
            echo = channel.unary_unary("/test.Test/Echo")
            trace = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("other", "x"))
            said = echo(b"", metadata=trace, timeout=10)
            self.assertEqual(said.decode(), repr((dict(trace[:1]), True)))

            watching = channel.unary_stream(health.SERVICE + "Watch")(b"", timeout=DEADLINE)
            self.assertEqual(wire.last(next(watching)), {1: health.SERVING})
            shown = cluster.start("long", "wait")
            name = cluster.workers()[0]["worker"]
            slow = channel.unary_unary("/test.Test/Slow").future(b"", timeout=DEADLINE)
            eventually("the call began", lambda: b"slow call" in cluster.run("logs", name).stdout)
            os.kill(cluster.pid_of(shown), signal.SIGTERM)
            self.assertEqual(wire.last(next(watching)), {1: health.NOT_SERVING})
            self.assertEqual(slow.result(), b"done")
        # It has not said that the job is over: another worker goes on.
        again = cluster.until("long", lambda it: it["attempt"] == 2)
        self.assertEqual((again["state"], again["last_death"]), ("running", "EXITED"))


@unittest.skipUnless(grpc, "grpcio is not installed")
class Alone(unittest.TestCase):
    def test_a_worker_that_is_asked_to_end_before_it_is_ready_ends(self):
        with tempfile.TemporaryDirectory(prefix="tether-") as place:
            environment = dict(os.environ, TETHER_LISTEN=f"unix:{place}/worker.sock", PYTHONPATH=SDK)
            worker = subprocess.Popen([sys.executable, "-c", PREPARES], env=environment, stdout=subprocess.PIPE)
            self.addCleanup(worker.kill)
            self.assertEqual(worker.stdout.readline(), b"prepares\n")

            worker.send_signal(signal.SIGTERM)

            said, _ = worker.communicate(timeout=DEADLINE)
            self.assertEqual((worker.returncode, said), (0, b"is told\n"))


def kept(cluster):
    """How many checkpoints there are."""
    return sum(len(files) for _, _, files in os.walk(f"{cluster.dir}/checkpoints"))


if __name__ == "__main__":
    unittest.main()
