"""A real process that holds its lock and is killed, seen as an agent sees it."""

import array
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest

SDK = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, SDK)

from tether import life  # noqa: E402

OWNER_DIED = 0x40000000
WORKER = f"""
import sys; sys.path.insert(0, {SDK!r})
from tether import life
print(life.hold(), life.hold(), flush=True)
sys.stdin.read()
"""


class LifeTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "notify.sock")
        self.agent = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.agent.close)
        self.agent.bind(self.path)
        self.agent.settimeout(30)

    def worker(self):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "NOTIFY_SOCKET": self.path},
        )
        self.addCleanup(worker.stdin.close)
        self.addCleanup(worker.stdout.close)
        self.addCleanup(worker.wait)
        self.addCleanup(worker.kill)
        return worker

    def shared(self):
        """The memory that a worker shares."""
        said, rights, _, _ = self.agent.recvmsg(64, socket.CMSG_SPACE(4))
        self.assertEqual(said, b"TETHER_HOLD=1")
        descriptors = array.array("i")
        descriptors.frombytes(rights[0][2])
        memory = mmap.mmap(descriptors[0], life.BYTES)
        os.close(descriptors[0])
        return memory

    def word(self, memory):
        self.assertEqual(memory[:8], life.MARK)
        (place,) = struct.unpack_from("=I", memory, 8)
        return struct.unpack_from("=I", memory, place)[0]

    def test_a_lock_is_held_until_its_process_is_killed(self):
        worker = self.worker()
        memory = self.shared()
        self.assertEqual(worker.stdout.readline(), b"True True\n")
        self.assertEqual(self.word(memory), worker.pid)

        worker.send_signal(signal.SIGKILL)
        worker.wait()
        self.assertTrue(self.word(memory) & OWNER_DIED)

    def test_memory_that_is_shared_cannot_be_cut_short(self):
        self.worker()
        _, rights, _, _ = self.agent.recvmsg(64, socket.CMSG_SPACE(4))
        (descriptor,) = struct.unpack("=i", rights[0][2][:4])
        self.addCleanup(os.close, descriptor)
        with self.assertRaises(PermissionError):
            os.ftruncate(descriptor, 0)

    def test_where_nobody_listens_there_is_none(self):
        self.assertFalse(life.hold({}))
        self.assertFalse(life.hold({"NOTIFY_SOCKET": self.path + ".not"}))

    def test_a_thread_that_may_end_before_its_process_is_refused(self):
        refused = []

        def hold():
            try:
                life.hold({})
            except RuntimeError as error:
                refused.append(error)

        thread = threading.Thread(target=hold)
        thread.start()
        thread.join()
        self.assertEqual(len(refused), 1)


if __name__ == "__main__":
    unittest.main()
