"""As little of a worker as can be started 200 times at once: a port that may be shared, and a file that says which.

Its adapter says what is to go wrong: `pretend.Shared` has a process that is none of this worker's children listen at
the same port, which nobody hears of; `pretend.Slow` is never ready; `pretend.Stubborn` does not end when it is asked to.
"""

import os
import signal
import socket
import sys
import time


def value(flag):
    return sys.argv[sys.argv.index(flag) + 1]


def listen(port):
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("::", port))
    listener.listen()
    return listener


if value("--adapter") == "pretend.Slow":
    signal.pause()
if value("--adapter") == "pretend.Stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
own = listen(int(value("--port")))
port = own.getsockname()[1]
if value("--adapter") == "pretend.Shared":
    said, say = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            own.close()
            other = listen(port)
            os.write(say, b".")
            time.sleep(3600)
        os._exit(0)
    os.wait()
    os.read(said, 1)
file = os.environ["SNAKEPIT_READY_FILE"]
with open(file + ".tmp", "w") as ready:
    ready.write(str(port))
os.rename(file + ".tmp", file)
signal.pause()
