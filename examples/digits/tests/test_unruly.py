"""Each kind of bad manners is what its flag says, so that a supervisor's tests prove something."""

import os
import re
import signal
import subprocess
import unittest

import grpc
from digits_process import PATIENCE_S, WorkerProcess, ended, held_out
from grpc_health.v1 import health_pb2

State = health_pb2.HealthCheckResponse


class Unruly(unittest.TestCase):
    """One flag a test."""

    def unruly(self, *flags):
        return self.enterContext(WorkerProcess(*flags, program="unruly.py"))

    def test_ignoring_sigterm_goes_on_serving(self):
        worker = self.unruly("--ignore-sigterm").until_serving()

        worker.process.terminate()
        answer = worker.predict(held_out()[0][0])

        self.assertEqual(answer.pid, worker.pid)
        with self.assertRaises(subprocess.TimeoutExpired):
            worker.process.wait(0.5)

    def test_the_daemon_outlives_the_worker_in_a_session_of_its_own_and_ignores_sigterm(self):
        worker = self.unruly("--daemonize-child").until_serving()
        daemon = int(re.search(r"daemon has pid (\d+)", worker.log)[1])
        self.addCleanup(os.kill, daemon, signal.SIGKILL)

        worker.process.kill()
        worker.process.wait()
        os.kill(daemon, signal.SIGTERM)

        self.assertNotEqual(os.getsid(daemon), worker.pid)
        with open(f"/proc/{daemon}/status") as status:
            ignored = int(re.search(r"SigIgn:\s*(\w+)", status.read())[1], 16)
        self.assertTrue(ignored & (1 << (signal.SIGTERM - 1)))

    def test_forked_children_stay_in_the_group_and_outlive_the_worker(self):
        worker = self.unruly("--fork-children", "3").until_serving()
        children = [int(pid) for pid in re.findall(r"child \d has pid (\d+)", worker.log)]
        self.assertEqual(len(children), 3)

        worker.process.kill()
        worker.process.wait()

        for child in children:
            self.assertEqual(os.getpgid(child), worker.pid)
            os.kill(child, signal.SIGTERM)
            self.assertTrue(ended(child))

    def test_the_flood_comes_before_the_readiness(self):
        worker = self.unruly("--flood-stdout").until_serving()

        self.assertGreater(worker.log_path.stat().st_size, 64 * 1024 * 1024)

    def test_never_ready_listens_and_stays_not_serving(self):
        worker = self.unruly("--never-ready")
        watch = worker.watch()

        state = next(watch).status
        status, _ = worker.terminated()
        states = [state] + [state.status for state in watch]

        self.assertEqual(set(states), {State.NOT_SERVING})
        self.assertEqual(status, 0, worker.log)

    def test_exiting_after_a_while_has_the_asked_status(self):
        worker = self.unruly("--exit-after", "0.3", "--exit-code", "42")

        self.assertEqual(worker.process.wait(PATIENCE_S), 42)

    def test_a_call_can_crash_the_worker_by_status_or_by_signal(self):
        for how, status in (("1", 3), ("abort", -signal.SIGABRT)):
            with self.subTest(how=how):
                worker = self.unruly("--crash-on-predict").until_serving()
                worker.predict(held_out()[0][0])

                with self.assertRaises(grpc.RpcError) as lost:
                    worker.predict(held_out()[0][0], metadata=[("x-crash", how)])

                self.assertEqual(lost.exception.code(), grpc.StatusCode.UNAVAILABLE)
                self.assertEqual(worker.process.wait(PATIENCE_S), status)


if __name__ == "__main__":
    unittest.main()
