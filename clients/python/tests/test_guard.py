"""The guard on a real lease page."""

import math
import os
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

try:
    import grpc
except ImportError:
    grpc = None
else:
    from tether import guard

from test_lease import Page, now  # noqa: E402

SECOND = 10**9

# A process whose event loop hangs, and its guard.
HANGS = """
import asyncio, sys, time
from tether import guard
guard.Guard().start()
async def hang():
    time.sleep(60)
asyncio.run(hang())
"""


@unittest.skipUnless(grpc, "grpcio is not installed")
class Guards(unittest.TestCase):
    def test_half_of_a_permission_is_warned_of_once_and_a_renewal_starts_anew(self):
        page, warned = Page(), []
        watching = guard.Guard(warned.append, page.lease(), self.fail)
        page.node(now() + 4 * SECOND)
        watching.look()
        self.assertEqual(warned, [])

        # As if half of it had gone by: what was seen as the whole stays.
        watching._whole = 8.0
        watching.look()
        watching.look()
        self.assertEqual(len(warned), 1)
        self.assertAlmostEqual(warned[0], 4.0, delta=1.0)

        page.node(now() + 60 * SECOND)
        watching.look()
        watching._whole = 200.0
        watching.look()
        self.assertEqual(len(warned), 2, "a renewal is another permission")

    def test_where_there_is_no_end_nothing_is_warned_of(self):
        warned = []
        watching = guard.Guard(warned.append, Page().lease(), self.fail)
        self.assertGreater(watching.look(), 0)
        self.assertEqual((warned, watching._whole), ([], math.inf))

    def test_a_process_whose_loop_hangs_ends_with_its_permission(self):
        page = Page()
        page.own(now() + SECOND // 2, alive=now() + SECOND)
        os.set_inheritable(page.descriptor, True)
        environment = {
            **os.environ,
            "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
            "TETHER_LEASE": f"{page.descriptor}:5:9",
            "TETHER_INCARNATION": "42",
        }
        start = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-c", HANGS], env=environment, close_fds=False, timeout=50, stderr=subprocess.PIPE
        )
        self.assertEqual(ended.returncode, guard.EXIT_LOST, ended.stderr.decode())
        self.assertLess(time.monotonic() - start, 40)


if __name__ == "__main__":
    unittest.main()
