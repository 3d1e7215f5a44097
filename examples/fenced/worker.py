"""A worker that acts in the world, and only while it may: each act is one line, with the tokens that tell whose it is.

    python worker.py FILE

A line is the worker's incarnation, its owner's epoch and the time of `CLOCK_BOOTTIME` in nanoseconds. Whoever reads the
file sees whether two ever acted at once: lines of a later incarnation come after all of those before it.
"""

import os
import pathlib
import sys
import time

# An installed SDK is found without this.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "clients" / "python"))

from tether import lease  # noqa: E402

BETWEEN_ACTS = 0.01


def main():
    acts = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    while True:
        # Right before the act: what was true a moment ago may not be any more.
        if lease.is_valid():
            now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            # One write is one line, whoever else appends.
            os.write(acts, b"%d %d %d\n" % (lease.incarnation(), lease.epoch(), now))
        time.sleep(BETWEEN_ACTS)


if __name__ == "__main__":
    main()
