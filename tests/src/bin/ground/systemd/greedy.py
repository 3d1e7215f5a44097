"""A worker with a daemon below it, that takes more memory than it may once /opt/go is there."""

import os
import socket
import time

path = os.environ["TETHER_LISTEN"].removeprefix("unix:")
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("/proc/self/comm", "w").write("grandchild")
        while True:
            time.sleep(3600)
    os._exit(0)
os.wait()

while not os.path.exists("/opt/go"):
    time.sleep(0.05)
# For this one alone, not for whoever is started after it.
os.remove("/opt/go")
taken = []
while True:
    taken.append(bytearray(b"x" * (1 << 20)))
