"""What the worker promises, on a real worker process over a unix socket."""

import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

import grpc
from digits_process import HERE, PATIENCE_S, WorkerProcess, held_out
from grpc_health.v1 import health_pb2

State = health_pb2.HealthCheckResponse

# Long enough to be met in the middle: 200 epochs of at least 50 ms.
LONG = {"epochs": 200, "throttle_ms": 50, "seed": 7}
LONG_AS_ARGUMENTS = ["--epochs", "200", "--throttle-ms", "50", "--seed", "7"]


class Predicting(unittest.TestCase):
    """Answers and refusals of the shared worker."""

    @classmethod
    def setUpClass(cls):
        cls.worker = cls.enterClassContext(WorkerProcess()).until_serving()

    def refused(self, call, code, *words):
        with self.assertRaises(grpc.RpcError) as refusal:
            call()
        self.assertEqual(refusal.exception.code(), code)
        for word in words:
            self.assertIn(word, refusal.exception.details())

    def test_an_untrained_worker_answers_from_its_start_model(self):
        pixels, label = held_out()[0]

        answer = self.worker.predict(pixels)

        self.assertEqual(answer.label, label)
        self.assertGreater(answer.probability, 0.5)
        self.assertEqual(answer.pid, self.worker.pid)

    def test_a_finished_training_is_what_answers_and_is_right_nine_times_in_ten(self):
        *_, last = self.worker.train(job="learns")
        known = held_out()
        answers = [self.worker.predict(pixels) for pixels, _ in known]

        self.assertEqual({answer.model_job for answer in answers}, {"learns"})
        right = sum(answer.label == label for answer, (_, label) in zip(answers, known))
        self.assertGreater(right / len(known), 0.9)
        self.assertAlmostEqual(right / len(known), last.accuracy, places=6)

    def test_equal_seeds_learn_equally_and_others_do_not(self):
        losses = []
        for job, seed in (("one", 1), ("one again", 1), ("two", 2)):
            *_, last = self.worker.train(job=job, epochs=3, seed=seed)
            losses.append(last.loss)

        self.assertEqual(losses[0], losses[1])
        self.assertNotEqual(losses[0], losses[2])

    def test_bad_images_are_refused_with_what_was_expected(self):
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        self.refused(lambda: self.worker.predict([0] * 63), invalid, "63", "64")
        self.refused(lambda: self.worker.predict([0] * 65), invalid, "65", "64")
        self.refused(lambda: self.worker.predict([0] * 63 + [17]), invalid, "`pixels[63]` is 17", "16")

    def test_bad_trainings_are_refused_with_the_field(self):
        for field, value in (
            ("job", ""),
            ("job", "x" * 129),
            ("epochs", 100_001),
            ("learning_rate", -1.0),
            ("learning_rate", float("nan")),
            ("throttle_ms", 60_001),
        ):
            with self.subTest(field=field, value=value):
                asked = {"job": "refused", field: value}
                self.refused(
                    lambda: list(self.worker.train(**asked)), grpc.StatusCode.INVALID_ARGUMENT, f"`{field}`"
                )

    def test_a_message_of_50_mib_is_read_before_it_is_refused(self):
        # Unpacked, each pixel is one byte on the wire.
        self.refused(
            lambda: self.worker.predict([0] * (50 * 1024 * 1024)), grpc.StatusCode.INVALID_ARGUMENT, "52428800"
        )


class Training(unittest.TestCase):
    """A training belongs to the worker."""

    def setUp(self):
        self.worker = self.enterContext(WorkerProcess("--threads", "5")).until_serving()

    def test_a_killed_client_does_not_stop_the_training(self):
        client = subprocess.Popen(
            [sys.executable, HERE / "client.py", "--target", self.worker.target, "train", "long", *LONG_AS_ARGUMENTS],
            stdout=subprocess.PIPE,
            text=True,
        )
        seen = 0
        for line in client.stdout:
            seen = int(line.split()[2])
            if seen >= 5:
                break
        client.kill()
        client.wait()
        client.stdout.close()

        stream = self.worker.train(job="long", **LONG)
        first = next(stream)
        later = [next(stream).epoch for _ in range(5)]
        stream.cancel()

        self.assertGreaterEqual(first.epoch, seen)
        self.assertEqual(first.pid, self.worker.pid)
        self.assertEqual(first.total, 200)
        self.assertFalse(first.done)
        self.assertEqual(later, sorted(set(later)))
        self.assertGreater(later[0], first.epoch)

    def test_a_training_goes_on_while_nobody_looks_and_its_end_can_be_fetched(self):
        stream = self.worker.train(job="alone", epochs=10, throttle_ms=20)
        next(stream)
        stream.cancel()

        # A later training that takes longer ends after the first.
        list(self.worker.train(job="other", epochs=40, throttle_ms=20))
        messages = list(self.worker.train(job="alone", epochs=10, throttle_ms=20))

        self.assertEqual([(at.epoch, at.done) for at in messages], [(10, True)])

    def test_every_follower_sees_the_same_training_to_its_end(self):
        seen = [[], []]

        def follow(place):
            seen[place] = [(at.epoch, at.loss, at.done) for at in self.worker.train(job="shared", epochs=15, throttle_ms=20)]

        followers = [threading.Thread(target=follow, args=(place,)) for place in range(2)]
        for follower in followers:
            follower.start()
        for follower in followers:
            follower.join(PATIENCE_S)

        self.assertEqual(seen[0][-1], seen[1][-1])
        self.assertEqual(seen[0][-1][0], 15)
        self.assertEqual([done for *_, done in seen[0]], [False] * (len(seen[0]) - 1) + [True])
        for epochs in ([epoch for epoch, *_ in one] for one in seen):
            self.assertEqual(epochs, sorted(set(epochs)))

    def test_the_same_key_with_another_spec_already_exists(self):
        stream = self.worker.train(job="long", **LONG)
        next(stream)

        with self.assertRaises(grpc.RpcError) as refusal:
            next(self.worker.train(job="long", **{**LONG, "seed": 8}))
        stream.cancel()

        self.assertEqual(refusal.exception.code(), grpc.StatusCode.ALREADY_EXISTS)
        self.assertIn("`seed` is 7, not 8", refusal.exception.details())

    def test_followers_leave_threads_for_predictions(self):
        streams = [self.worker.train(job="long", **LONG) for _ in range(3)]
        for stream in streams:
            next(stream)

        with self.assertRaises(grpc.RpcError) as refusal:
            next(self.worker.train(job="long", **LONG))
        answer = self.worker.predict(held_out()[0][0])
        for stream in streams:
            stream.cancel()

        self.assertEqual(refusal.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertEqual(answer.pid, self.worker.pid)


    def test_a_follower_who_leaves_is_let_go_before_the_next_message(self):
        slow = {"job": "slow", "throttle_ms": 60_000}
        streams = [self.worker.train(**slow) for _ in range(3)]
        for stream in streams:
            next(stream)

        for stream in streams:
            stream.cancel()

        # The worker hears of the cancellation a little later than we say it; the next message is a minute away.
        deadline = time.monotonic() + PATIENCE_S
        while True:
            stream = self.worker.train(**slow)
            try:
                self.assertEqual(next(stream).epoch, 0)
                break
            except grpc.RpcError as full:
                self.assertEqual(full.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
                self.assertLess(time.monotonic(), deadline)
        stream.cancel()

    def test_ended_trainings_are_forgotten_the_oldest_first(self):
        for number in range(66):
            list(self.worker.train(job=f"short {number}", epochs=1))

        # Forgotten, so that its key is free for another spec.
        *_, first = self.worker.train(job="short 0", epochs=2)
        with self.assertRaises(grpc.RpcError) as remembered:
            list(self.worker.train(job="short 65", epochs=2))

        self.assertTrue(first.done)
        self.assertEqual(remembered.exception.code(), grpc.StatusCode.ALREADY_EXISTS)

    def test_a_busy_worker_takes_no_more_trainings(self):
        worker = self.enterContext(WorkerProcess()).until_serving()
        for number in range(8):
            next(worker.train(**{**LONG, "job": f"long {number}"}))

        with self.assertRaises(grpc.RpcError) as refusal:
            next(worker.train(job="one too many", **LONG))

        self.assertEqual(refusal.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertIn("8 trainings", refusal.exception.details())


class Stopping(unittest.TestCase):
    """The end of a worker."""

    def setUp(self):
        self.worker = self.enterContext(WorkerProcess())

    def test_a_watcher_sees_serving_and_then_not_serving_at_sigterm(self):
        self.worker.until_serving()
        watch = self.worker.watch("digits.v1.DigitsService")
        states = [next(watch).status]

        status, seconds = self.worker.terminated()
        states += [state.status for state in watch]

        self.assertEqual(states, [State.SERVING, State.NOT_SERVING])
        self.assertEqual(status, 0, self.worker.log)
        # One watcher must not use up the grace of 2 s.
        self.assertLess(seconds, 1.5)

    def test_sigterm_in_the_middle_of_a_training_exits_0_within_3_seconds(self):
        self.worker.until_serving()
        stream = self.worker.train(job="long", **LONG)
        next(stream)

        status, seconds = self.worker.terminated()
        with self.assertRaises(grpc.RpcError) as ending:
            list(stream)

        self.assertEqual(status, 0, self.worker.log)
        self.assertLess(seconds, 3)
        self.assertEqual(ending.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertIn("the worker stopped", ending.exception.details())

    def test_sigterm_during_the_start_exits_0(self):
        watch = self.worker.watch()
        next(watch)

        status, _ = self.worker.terminated()

        self.assertEqual(status, 0, self.worker.log)

    def test_sigint_is_left_to_the_supervisor(self):
        self.worker.until_serving()

        self.worker.process.send_signal(signal.SIGINT)
        answer = self.worker.predict(held_out()[0][0])
        status, _ = self.worker.terminated()

        self.assertEqual(answer.pid, self.worker.pid)
        self.assertEqual(status, 0, self.worker.log)


class Listening(unittest.TestCase):
    """Addresses that are refused."""

    def refused(self, listen):
        run = subprocess.run(
            [sys.executable, HERE / "worker.py", *listen], capture_output=True, text=True, timeout=PATIENCE_S, env={}
        )
        return run.returncode, run.stderr

    def test_an_address_that_others_can_reach_is_refused(self):
        status, said = self.refused(["--listen", "0.0.0.0:0"])

        self.assertEqual(status, 1)
        self.assertIn("plain text", said)

    def test_an_address_that_others_can_reach_is_taken_where_that_is_said(self):
        with socket.create_server(("0.0.0.0", 0)) as taken:
            status, said = self.refused(["--insecure", "--listen", f"0.0.0.0:{taken.getsockname()[1]}"])

        self.assertEqual(status, 1)
        self.assertIn("in use", said)

    def test_a_port_that_is_taken_is_refused(self):
        # Sharing is allowed here, so it is the worker that refuses to share.
        with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
            status, said = self.refused(["--listen", f"127.0.0.1:{taken.getsockname()[1]}"])

        self.assertEqual(status, 1)
        self.assertIn("in use", said)

    def test_no_address_at_all_is_refused(self):
        status, said = self.refused([])

        self.assertEqual(status, 2)
        self.assertIn("TETHER_LISTEN", said)


if __name__ == "__main__":
    unittest.main()
