"""A real gRPC server in the place of the gateway, which answers as the arbiter does."""

import concurrent.futures
import os
import struct
import sys
import threading
import time
import unittest
import unittest.mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

try:
    import grpc

    from tether import _attempts, job
except ImportError:
    grpc = None

from tether import _wire as wire  # noqa: E402


def info(reason, **facts):
    """`google.rpc.Status` with an `ErrorInfo`."""
    pairs = b"".join(wire.field(3, wire.field(1, name) + wire.field(2, value)) for name, value in facts.items())
    packed = wire.field(1, "type.googleapis.com/google.rpc.ErrorInfo")
    packed += wire.field(2, wire.field(1, reason) + wire.field(2, "tether") + pairs)
    return wire.field(1, 9) + wire.field(3, packed)


class Arbiter(grpc.GenericRpcHandler if grpc else object):
    """One job, done by `digits/0.7` under fence 40."""

    def __init__(self):
        self.asked, self.away, self.fence, self.saved = [], 0, 40, b""
        self.gone, self.refuses = grpc.StatusCode.UNAVAILABLE, {}
        self.watchers, self.ended, self.hang = None, threading.Event(), threading.Event()
        self.hang.set()

    def service(self, details):
        method = details.method.rpartition("/")[2]
        if method == "WatchJobs":
            return grpc.unary_stream_rpc_method_handler(self.watch)
        return grpc.unary_unary_rpc_method_handler(lambda ask, context: self.answer(method, ask, context))

    def watch(self, ask, context):
        yield self.answer("GetJob", ask, context)
        if self.watchers:
            self.watchers.release()
            # As of a machine that vanished: nothing, and no end either.
            context.add_callback(self.ended.set)
            self.ended.wait(20)

    def answer(self, method, ask, context):
        self.asked.append(method)
        if method == "ReportJob" and 5 not in wire.last(ask):
            self.hang.wait(20)
        if self.away:
            self.away -= 1
            context.abort(self.gone, "nobody there")
        if method in self.refuses:
            context.set_trailing_metadata((("grpc-status-details-bin", self.refuses[method]),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "refused")
        told = wire.last(ask)
        if method == "GetJob":
            worker = wire.field(1, "digits") + wire.field(3, 7)
            one = wire.field(1, "train") + wire.field(3, worker) + wire.field(4, 1) + wire.field(9, self.fence)
            return wire.field(1, one + wire.field(10, 2) + (wire.present(11, self.saved) if self.saved else b""))
        if told.get(3 if method == "PutCheckpoint" else 6) != self.fence:
            context.set_trailing_metadata(
                (("grpc-status-details-bin", info("LEASE_FENCED", holder="digits/1.9", fence=str(self.fence))),)
            )
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "fenced off")
        if method == "PutCheckpoint":
            self.saved = wire.field(1, told[4]) + wire.field(2, told[5]) + wire.field(5, told[3])
        else:
            self.report = told
        return b""


@unittest.skipUnless(grpc, "grpcio is not installed")
class Jobs(unittest.TestCase):
    def setUp(self):
        self.arbiter = Arbiter()
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=(self.arbiter,))
        gateway = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()
        self.addCleanup(self.server.stop, None)
        environment = unittest.mock.patch.dict(os.environ, TETHER_WORKER="digits/0.7", TETHER_GATEWAY=gateway)
        environment.start()
        self.addCleanup(environment.stop)

    def attach(self):
        work = job.attach("train", patience=10)
        self.addCleanup(work.close)
        return work

    def test_an_attempt_goes_on_from_what_was_saved(self):
        first = self.attach()
        self.assertIsNone(first.saved)
        first.checkpoint("s3://a", seq=5)
        self.assertEqual(first.checkpoint("s3://b").seq, 6)

        second = self.attach()

        self.assertEqual((second.saved.seq, second.saved.uri, second.attempt), (6, "s3://b", 2))

    def test_whoever_is_fenced_off_hears_by_whom(self):
        work = self.attach()
        self.arbiter.fence = 41

        def say_how_far():
            work.progress(0.5)
            # It waits for nobody, and the refusal comes soon.
            work.wait(10)

        for tell in (lambda: work.checkpoint("s3://a"), say_how_far, lambda: work.done(b"x")):
            with self.assertRaises(job.Fenced) as fenced:
                tell()
            self.assertEqual((fenced.exception.holder, fenced.exception.fence), ("digits/1.9", 41))

    def test_a_job_does_not_wait_for_those_who_hear_how_far_it_is(self):
        work = self.attach()
        self.addCleanup(self.arbiter.hang.set)
        self.arbiter.hang.clear()
        began = time.monotonic()
        for step in range(1000):
            work.progress(step / 1000)
        self.assertLess(time.monotonic() - began, job.PROGRESS / 2)
        self.was_asked(2)
        self.arbiter.hang.set()
        work.close()

        self.assertEqual(self.arbiter.asked.count("ReportJob"), 2, "the first and the newest")
        self.assertEqual(struct.unpack("<d", self.arbiter.report[3]), (0.999,))

    def test_what_comes_late_does_not_fence_off_a_job_that_has_ended(self):
        work = self.attach()
        self.addCleanup(self.arbiter.hang.set)
        self.arbiter.hang.clear()
        work.progress(0.5)
        self.was_asked(2)
        work.done(b"result")
        self.arbiter.fence = 41
        self.arbiter.hang.set()
        work.close()
        work.check()

    def test_another_workers_job_is_not_attached_to(self):
        with unittest.mock.patch.dict(os.environ, TETHER_WORKER="digits/0.6"):
            with self.assertRaises(job.Fenced) as fenced:
                job.attach("train")
        self.assertEqual(fenced.exception.holder, "digits/0.7")

    def test_what_must_not_be_lost_is_told_until_somebody_hears_it(self):
        work = self.attach()
        # The last two as where a connection breaks or is closed in the middle of a call.
        for gone in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL):
            self.arbiter.away, self.arbiter.gone, self.arbiter.asked = 3, gone, []
            work.done(b"\x00result")

            self.assertEqual(self.arbiter.asked.count("ReportJob"), 4)
            self.assertEqual((self.arbiter.report[5], self.arbiter.report[6]), (b"\x00result", 40))
        self.arbiter.away, self.arbiter.asked = 1, []
        work.progress(0.5)
        work.close()
        self.assertEqual(self.arbiter.asked, ["ReportJob"], "and progress is not")

    def test_what_nobody_hears_ends_with_its_job(self):
        for why in (job.Cancelled("by somebody"), job.Stopping("the worker ends")):
            work = self.attach()
            self.arbiter.asked, self.arbiter.away = [], 1_000_000
            ending = threading.Thread(target=lambda: (self.was_asked(2), work.end(lambda: why)))
            ending.start()
            with self.assertRaises(type(why)):
                work.checkpoint("s3://a")
            ending.join()
            self.arbiter.away = 1
            work.failed("it is said all the same")

    def was_asked(self, times):
        deadline = time.monotonic() + 10
        while len(self.arbiter.asked) < times and time.monotonic() < deadline:
            time.sleep(0.01)

    def attempt(self, handler):
        """What becomes of a job with this handler: how often its worker is ended."""
        attempts = _attempts.Attempts(handler, "digits/0.7", os.environ["TETHER_GATEWAY"])
        with unittest.mock.patch.object(_attempts, "end_worker") as end_worker, self.assertLogs("tether.jobs"):
            attempts._do("train", 40)
        self.assertTrue(attempts.drain(0))
        return end_worker.call_count

    def test_a_thread_that_cannot_be_had_is_asked_for_again(self):
        heard = threading.Event()
        attempts = _attempts.Attempts(lambda work: heard.set(), "digits/0.7", os.environ["TETHER_GATEWAY"])
        self.addCleanup(attempts.stop)
        begin, asked = attempts._begin, []

        def begin_later(*job):
            asked.append(job)
            if len(asked) == 1:
                raise RuntimeError("can't start new thread")
            begin(*job)

        attempts._begin = begin_later
        with unittest.mock.patch.object(_attempts, "PAUSE", 0.1), self.assertLogs("tether.jobs"):
            attempts.start()
            self.assertTrue(heard.wait(10))
        attempts.stop()
        attempts.join(10)
        self.assertTrue(attempts.drain(10))

    def test_whoever_tells_nothing_any_more_is_asked_again(self):
        self.arbiter.watchers, heard = threading.Semaphore(0), threading.Event()
        self.addCleanup(self.arbiter.ended.set)
        attempts = _attempts.Attempts(lambda work: heard.set(), "digits/0.7", os.environ["TETHER_GATEWAY"])
        self.addCleanup(attempts.stop)
        with unittest.mock.patch.multiple(_attempts, PAUSE=0.1, SILENCE=0.3):
            attempts.start()
            for _ in range(2):
                self.assertTrue(self.arbiter.watchers.acquire(timeout=10))
            attempts.stop()
            attempts.join(10)

    def test_however_a_handler_ends_its_job_has_an_end(self):
        def leave(work):
            raise SystemExit(3)

        for handler, why in (
            (leave, b"SystemExit: 3"),
            (lambda work: b"x" * 65537, b"ValueError: a result has at most 65536 bytes"),
            (lambda work: {"accuracy": 0.97}, b"TypeError: a job's result is bytes or a str, not dict"),
        ):
            self.arbiter.report = {}
            self.assertEqual(self.attempt(handler), 0)
            self.assertTrue(self.arbiter.report.get(7, b"").startswith(why), self.arbiter.report)

    def test_a_worker_whose_end_of_a_job_is_refused_for_good_ends(self):
        self.arbiter.refuses = {"ReportJob": info("CONFIG_INVALID")}
        self.assertEqual(self.attempt(lambda work: b"result"), 1)
        self.arbiter.refuses = {"ReportJob": info("UNKNOWN_JOB")}
        self.assertEqual(self.attempt(lambda work: b"result"), 0, "nobody waits for it")

    def test_a_job_whose_checkpoint_is_on_another_node_does_not_fail_but_goes_elsewhere(self):
        self.arbiter.report = {}
        self.arbiter.refuses = {"PutCheckpoint": info("STORE_FAILED", node="gpu-7")}
        self.assertEqual(self.attempt(lambda work: work.checkpoint("file:///elsewhere")), 1)
        self.assertNotIn(7, self.arbiter.report)
        self.assertIn(b"gpu-7", self.arbiter.report[4], "and people are told why")

    def test_what_would_be_refused_is_not_sent(self):
        work = self.attach()
        for wrong in (lambda: work.checkpoint(""), lambda: work.checkpoint("x" * 2049), lambda: work.done(b"x" * 65537)):
            with self.assertRaises(ValueError):
                wrong()
        self.assertEqual(self.arbiter.asked, ["GetJob"])


class Wire(unittest.TestCase):
    def test_messages_read_back_and_a_torn_one_is_an_error(self):
        data = wire.field(1, 300) + wire.field(2, "ä") + wire.field(3, 0.5) + wire.field(4, 2**64 - 1) + wire.field(5, 0)

        self.assertEqual([number for number, _ in wire.fields(data)], [1, 2, 3, 4])
        self.assertEqual((wire.last(data)[1], wire.last(data)[4]), (300, 2**64 - 1))
        for end in (1, 4, len(data) - 1):
            with self.assertRaises(ValueError):
                list(wire.fields(data[:end]))


if __name__ == "__main__":
    unittest.main()
