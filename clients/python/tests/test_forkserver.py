"""A real fork server, real keepers that are killed, and a look at what is left."""

import importlib.util
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEADLINE = 20


def gone(pidfd):
    """Whether the process behind a pidfd ends in time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(DEADLINE * 1000))


class Forked(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.dir.name, "fork.sock")
        self.modules = getattr(self, self._testMethodName).__dict__.get("modules", ["json"])
        flags = [flag for module in self.modules for flag in ("--import", module)]
        environment = dict(os.environ, TETHER_LISTEN="unix:" + self.path, PYTHONPATH=HERE + ":" + self.dir.name)
        if importlib.util.find_spec(self.modules[0].split(".")[0]) is None and self.modules != ["threaded"]:
            self.skipTest(f"{self.modules[0]} is not installed here")
        self.noisy()
        self.server = subprocess.Popen([sys.executable, "-m", "tether_forkserver", *flags], env=environment)
        self.pidfd = os.pidfd_open(self.server.pid)
        until = time.monotonic() + DEADLINE
        while not os.path.exists(self.path) and time.monotonic() < until:
            time.sleep(0.005)

    def tearDown(self):
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self.server.wait()
        os.close(self.pidfd)
        self.dir.cleanup()

    def noisy(self):
        with open(os.path.join(self.dir.name, "threaded.py"), "w") as file:
            file.write("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n")

    def script(self, text):
        descriptor, path = tempfile.mkstemp(suffix=".py", dir=self.dir.name)
        with open(descriptor, "w") as file:
            file.write(text)
        return path

    def ask(self, text, *more, fields=b"", path=None):
        """Asks for a worker; its keeper, what it answered, the pidfds, and the worker's output."""
        keeper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Its end is the worker's: not before the test's.
        self.addCleanup(keeper.close)
        keeper.settimeout(DEADLINE)
        keeper.connect(self.path)
        read, write = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        packet = b"a" + (path or self.script(text)).encode() + b"\0e" + b"KIND=forked\0d" + self.dir.name.encode() + b"\0" + fields
        socket.send_fds(keeper, [packet], [null, write, write, *more])
        os.close(write)
        os.close(null)
        said, descriptors, _, _ = socket.recv_fds(keeper, 4096, 4)
        out = os.fdopen(read, "rb")
        self.addCleanup(out.close)
        return keeper, said, descriptors, out

    def test_a_worker_has_its_own_session_streams_environment_and_sockets_and_its_end_is_told(self):
        extra, far = socket.socketpair()
        keeper, said, (pidfd,), out = self.ask(
            "import os, sys\n"
            "assert 'json' in sys.modules and os.getsid(0) == os.getpid()\n"
            "import gc; gc.collect(); [os.fstat(fd) for fd in range(3, 9)]\n"
            "os.write(3, os.environ['LISTEN_PID'].encode())\n"
            "print(os.environ['KIND'], os.getcwd(), sorted(map(int, os.listdir('/proc/self/fd')))[:4], 'HOME' in os.environ)\n"
            "sys.exit(7)\n",
            *[extra.fileno()] * 6,
            fields=b"eLISTEN_FDS=6\0",
        )
        self.assertEqual(said, b"+")
        self.assertEqual(out.read().decode().split(), ["forked", self.dir.name, "[0,", "1,", "2,", "3]", "False"])
        status, max_rss_kib, cpu_ms = map(int, keeper.recv(64)[1:].split())
        self.assertEqual(os.waitstatus_to_exitcode(status), 7)
        self.assertTrue(max_rss_kib > 1000 and cpu_ms < 10_000, (max_rss_kib, cpu_ms))
        self.assertGreater(int(far.recv(64)), 1)
        self.assertTrue(gone(pidfd))

    def test_a_worker_dies_with_its_keeper_although_it_blocks_signals_and_the_server_is_stopped(self):
        keeper, said, (pidfd,), out = self.ask(
            "import os, signal, time\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
            "os.closerange(3, 1024)\n"
            "print('up', flush=True)\n"
            "time.sleep(600)\n"
        )
        self.assertEqual((said, out.readline()), (b"+", b"up\n"))
        signal.pidfd_send_signal(self.pidfd, signal.SIGSTOP)
        os.waitid(os.P_PIDFD, self.pidfd, os.WSTOPPED)
        keeper.close()
        self.assertTrue(gone(pidfd))

    def test_a_script_that_is_changed_runs_as_it_is_now_and_is_main_as_any(self):
        path = self.script("")
        draws = []
        for text in ["one", "two", "six"]:
            with open(path, "w") as file:
                file.write(f"import sys\nprint({text!r}, __name__, __file__, vars(sys.modules['__main__']) is globals())\n")
            # Long ago, so that it is kept; and the time of the next one is another.
            os.utime(path, (1000 + len(draws), 1000 + len(draws)))
            draws += [self.ask("", path=path)[3].read().decode().split() for _ in range(2)]
        expected = [[text, "__main__", path, "True"] for text in ["one", "two", "six"] for _ in range(2)]
        self.assertEqual(draws, expected)
        with open(path, "w") as file:
            file.write("print('new')\n")
        self.assertEqual(self.ask("", path=path)[3].read(), b"new\n")

    def test_what_is_wrong_with_a_script_is_said_by_the_worker_and_not_by_the_server(self):
        for text, expected in [("1 +\n", b"SyntaxError"), ("1 is 1\n", b"SyntaxWarning"), ("\0", b"null bytes")]:
            _, said, _, out = self.ask(text)
            self.assertEqual(said, b"+")
            self.assertIn(expected, out.read())

    def test_a_keeper_that_is_gone_before_the_fork_gets_no_worker(self):
        made = os.path.join(self.dir.name, "made")
        signal.pidfd_send_signal(self.pidfd, signal.SIGSTOP)
        os.waitid(os.P_PIDFD, self.pidfd, os.WSTOPPED)
        for _ in range(20):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper, open(os.devnull, "w") as null:
                keeper.connect(self.path)
                packet = b"a" + self.script(f"open({made!r}, 'w')").encode() + b"\0"
                socket.send_fds(keeper, [packet], [null.fileno()] * 3)
        signal.pidfd_send_signal(self.pidfd, signal.SIGCONT)

        # Served after all of those.
        self.assertEqual(self.ask("pass")[1], b"+")
        self.assertFalse(os.path.exists(made))

    def test_it_says_once_that_it_is_ready(self):
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(told.close)
        told.settimeout(DEADLINE)
        told.bind(os.path.join(self.dir.name, "notify.sock"))
        path = os.path.join(self.dir.name, "second.sock")
        environment = dict(os.environ, TETHER_LISTEN="unix:" + path, NOTIFY_SOCKET=told.getsockname())
        script = os.path.join(HERE, "tether_forkserver.py")
        server = subprocess.Popen([sys.executable, script, "--import", "json"], env=environment)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)

        self.assertEqual(told.recv(64), b"READY=1")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
            keeper.connect(path)

    def test_all_workers_die_with_the_server(self):
        workers = [self.ask("import time\nprint('up', flush=True)\ntime.sleep(600)\n") for _ in range(3)]
        for _, _, _, out in workers:
            self.assertEqual(out.readline(), b"up\n")
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        for _, _, (pidfd,), _ in workers:
            self.assertTrue(gone(pidfd))

    def test_a_worker_is_in_its_cgroup_before_its_first_line_and_nothing_of_it_survives_its_keeper(self):
        mount = next((line.split()[1] for line in open("/proc/mounts") if line.split()[2] == "cgroup2"), None)
        leaf = mount and os.path.join(mount, f"tether-forkserver-{os.getpid()}")
        try:
            os.mkdir(leaf or "")
        except OSError:
            self.skipTest("no cgroup v2 can be made here")
        self.addCleanup(os.rmdir, leaf)
        keeper, said, (pidfd,), out = self.ask(
            "import os, signal, time\n"
            "print(open('/proc/self/cgroup').read().splitlines()[-1], flush=True)\n"
            "if os.fork() == 0:\n"
            "    os.setsid()\n"
            "    print(os.getpid(), flush=True)\n"
            "time.sleep(600)\n",
            fields=b"g" + leaf.encode() + b"\0",
        )
        self.assertEqual(said, b"+")
        self.assertTrue(out.readline().decode().strip().endswith(os.path.basename(leaf)))
        daemon = os.pidfd_open(int(out.readline()))
        keeper.close()
        self.assertTrue(gone(pidfd) and gone(daemon))
        until = time.monotonic() + DEADLINE
        while "populated 1" in open(os.path.join(leaf, "cgroup.events")).read() and time.monotonic() < until:
            time.sleep(0.005)

    def test_what_cannot_be_is_refused_and_the_server_goes_on(self):
        _, said, _, _ = self.ask("pass", fields=b"g/nowhere/at/all\0")
        self.assertTrue(said.startswith(b"-2 ") and b"/nowhere/at/all" in said, said)
        _, said, _, _ = self.ask("pass", fields=b"d/not/there\0")
        self.assertTrue(said.startswith(b"-2 ") and b"/not/there" in said, said)
        _, said, _, _ = self.ask("pass", fields=b"?what\0")
        self.assertTrue(said.startswith(b"-") and b"expected one of" in said, said)
        self.assertEqual(self.ask("pass")[1], b"+")

    def test_nothing_is_forked_beside_a_thread(self):
        _, said, _, _ = self.ask("pass")
        self.assertTrue(said.startswith(b"-") and b"thread" in said, said)

    test_nothing_is_forked_beside_a_thread.modules = ["threaded"]

    def test_workers_do_not_draw_the_same_numbers(self):
        script = "import random, numpy.random\nprint(random.random())\nprint(numpy.random.random())\n"
        draws = [self.ask(script)[3].read().split() for _ in range(3)]
        for kind in zip(*draws, strict=True):
            self.assertEqual(len(set(kind)), 3, draws)

    test_workers_do_not_draw_the_same_numbers.modules = ["numpy.random"]


if __name__ == "__main__":
    unittest.main()
