"""A fork server: imports what workers need once, and forks workers that have it in milliseconds.

    python3 -m tether_forkserver --import grpc --import numpy

It listens at the unix socket in ``TETHER_LISTEN`` (packets, one connection for each worker). A keeper, the
process that answers for one worker, sends one packet: strings that end in NUL, the first letter of each
telling what it is (``a`` an argument, ``e`` NAME=VALUE, ``d`` the working directory, ``g`` a cgroup, the first of
them the one that ends as a whole), and beside it descriptors: standard input, output and error, then any to be
placed from 3 on. The answer is ``+`` with the worker's pidfd, or ``-``, an error number and why not; later ``x``
with the wait status, the largest resident set in KiB and the processor time in ms, once it has ended. A connection
that ends without a packet is closed: so is seen from outside that there is still somebody who serves.

Nobody outlives its keeper. The connection's end is made the worker's death by the kernel itself (``F_SETSIG``
with SIGKILL on the connection, owned by the worker), which needs nobody awake; so a keeper says nothing more
on it. And the death of this process is the death of all it forked (``PR_SET_PDEATHSIG``).
"""

import argparse
import builtins
import ctypes
import errno
import fcntl
import gc
import importlib
import io
import os
import runpy
import select
import selectors
import signal
import socket
import stat
import sys
import threading
import time
import types
import warnings

PACKET_MAX = 1 << 20
DESCRIPTORS_MAX = 253
PR_SET_PDEATHSIG = 1
F_SETSIG = 10

# Seconds after which a file's time tells any later change from the one before.
SETTLED = 2

# The process that serves: children are forked later.
SERVER = os.getpid()

libc = ctypes.CDLL(None, use_errno=True)


class Order:
    """What a keeper asked for."""

    def __init__(self, packet):
        self.argv, self.env, self.cwd, self.cgroups, self.code = [], {}, "/", [], None
        for field in packet.split(b"\0")[:-1]:
            kind, text = field[:1], os.fsdecode(field[1:])
            if kind == b"a":
                self.argv.append(text)
            elif kind == b"e":
                name, _, value = text.partition("=")
                self.env[name] = value
            elif kind == b"d":
                self.cwd = text
            elif kind == b"g":
                self.cgroups.append(text)
            else:
                raise ValueError(f"a field begins with {kind!r}, expected one of a, e, d and g")
        if not self.argv:
            raise ValueError("there is nothing to run: send at least one argument")


class Scripts:
    """What workers run, compiled before the fork and once for all of them."""

    def __init__(self):
        self.known = {}

    def code(self, order):
        """A script's code. None of what Python itself finds in other ways, or has something to say about: that it does
        in the worker."""
        if order.argv[0] == "-m":
            return None
        path = os.path.join(order.cwd, order.argv[0])
        try:
            # Looked at before it is read: of a file that changes in between, the change is seen the next time.
            about = os.stat(path)
            if not stat.S_ISREG(about.st_mode):
                return None  # Reading it might take for ever.
            stamp = (order.argv[0], about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
            known, code = self.known.get(path, (None, None))
            if stamp != known:
                with io.open_code(path) as file, warnings.catch_warnings():
                    warnings.simplefilter("error")
                    code = compile(file.read(), order.argv[0], "exec", dont_inherit=True)
                # One that was changed just now may be changed again within the same tick of its file system's clock.
                if time.time() - about.st_mtime > SETTLED:
                    self.known[path] = (stamp, code)
            return code
        except Exception:
            return None


class Worker:
    """One that was forked, and the connection to its keeper."""

    def __init__(self, pid, pidfd, keeper, cgroups):
        self.pid, self.pidfd, self.keeper, self.cgroups = pid, pidfd, keeper, cgroups

    def kill(self):
        """Kills it, and all that it left in its cgroup."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if self.cgroups:
            try:
                with open(os.path.join(self.cgroups[0], "cgroup.kill"), "w") as file:
                    file.write("1")
            except OSError:
                pass  # Its keeper's agent has removed it, and that takes an empty one.


class Server:
    """Serves keepers until it is killed; in a child, `serve` returns what to run."""

    def __init__(self, path):
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Its name comes last: whoever finds it finds somebody listening.
        mask = os.umask(0o177)
        self.listener.bind(path + ".new")
        os.umask(mask)
        self.listener.listen(128)
        os.rename(path + ".new", path)
        self.scripts = Scripts()
        self.events = selectors.DefaultSelector()
        self.events.register(self.listener, selectors.EVENT_READ, self.accept)

    def serve(self):
        while True:
            for key, _ in self.events.select():
                # One that was taken off by an event before it has nothing to say.
                if self.events.get_map().get(key.fd) is key:
                    order = key.data()
                    if order is not None:
                        return order

    def accept(self):
        keeper, _ = self.listener.accept()
        self.events.register(keeper, selectors.EVENT_READ, lambda: self.hear(keeper))

    def hear(self, keeper):
        """The one packet of a keeper. Returns in the child with what to run."""
        descriptors = []
        self.events.unregister(keeper)
        try:
            packet, descriptors, _, _ = socket.recv_fds(keeper, PACKET_MAX, DESCRIPTORS_MAX)
            if not packet:
                keeper.close()
                return None
            order = Order(packet)
            if len(descriptors) < 3:
                raise ValueError(f"{len(descriptors)} descriptors came, expected at least 3")
            if threading.active_count() > 1:
                raise RuntimeError("an import has started a thread, and no child could use what it held")
            order.code = self.scripts.code(order)
            forked = self.fork(order, keeper, descriptors)
        except (OSError, ValueError, RuntimeError) as error:
            number = getattr(error, "errno", None) or errno.EINVAL
            answer(keeper, b"-%d %s" % (number, str(error).encode()))
            keeper.close()
            return None
        finally:
            if os.getpid() == SERVER:
                for descriptor in descriptors:
                    os.close(descriptor)
        if isinstance(forked, Order):
            return forked
        self.events.register(keeper, selectors.EVENT_READ, lambda: self.lost(forked))
        self.events.register(forked.pidfd, selectors.EVENT_READ, lambda: self.ended(forked))
        return None

    def fork(self, order, keeper, descriptors):
        start, go = os.pipe()
        report, told = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            # Nothing of the worker runs before its death is tied to its keeper's.
            os.close(go)
            if os.read(start, 1) == b"":
                os._exit(127)
            try:
                self.let_go(keeper)
                become(order, descriptors)
            except OSError as error:
                try:
                    os.write(told, b"%d %s" % (error.errno or errno.EIO, str(error).encode()[:500]))
                finally:
                    os._exit(127)
            return order
        os.close(start)
        os.close(told)
        worker = Worker(pid, os.pidfd_open(pid), keeper, order.cgroups)
        fcntl.fcntl(keeper, fcntl.F_SETOWN, pid)
        fcntl.fcntl(keeper, F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(keeper, fcntl.F_GETFL)
        fcntl.fcntl(keeper, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
        # A keeper that went before its end was made the worker's sends no signal any more: no worker comes of it.
        if not has_hung_up(keeper):
            os.write(go, b"g")
        os.close(go)
        why = os.read(report, 512)
        os.close(report)
        if why or has_hung_up(keeper):
            worker.kill()
            os.waitpid(pid, 0)
            os.close(worker.pidfd)
            number, _, text = why.decode().partition(" ")
            raise OSError(int(number or errno.EPIPE), text or "the keeper is gone")
        # A keeper that went before this line is seen as its connection's end.
        answer(keeper, b"+", [worker.pidfd])
        return worker

    def let_go(self, keeper):
        """In a child: takes the server's descriptors off their objects, so that none closes a number that is another's
        by then. All are closed in one call later."""
        held = [key.fileobj for key in self.events.get_map().values()]
        self.events.close()
        for thing in [*held, keeper]:
            if isinstance(thing, socket.socket):
                thing.detach()

    def lost(self, worker):
        """The keeper is gone: the kernel has killed its worker, and this kills what that left."""
        self.events.unregister(worker.keeper)
        worker.kill()

    def ended(self, worker):
        self.events.unregister(worker.pidfd)
        _, status, usage = os.wait4(worker.pid, 0)
        os.close(worker.pidfd)
        if worker.keeper in self.events.get_map():
            self.events.unregister(worker.keeper)
            cpu_ms = round((usage.ru_utime + usage.ru_stime) * 1000)
            answer(worker.keeper, b"x%d %d %d" % (status, usage.ru_maxrss, cpu_ms))
        worker.keeper.close()


def has_hung_up(keeper):
    poll = select.poll()
    poll.register(keeper, select.POLLRDHUP)
    return bool(poll.poll(0))


def answer(keeper, text, descriptors=()):
    try:
        if descriptors:
            socket.send_fds(keeper, [text], descriptors)
        else:
            keeper.send(text)
    except OSError:
        pass  # It is gone, which is seen as its connection's end.


def become(order, descriptors):
    """Makes this child the worker, up to its first line."""
    os.setsid()
    for cgroup in order.cgroups:
        procs = os.open(os.path.join(cgroup, "cgroup.procs"), os.O_WRONLY)
        os.write(procs, b"0")
        os.close(procs)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the parent-death signal is refused")
    # One that died before the line above will never send that signal.
    if os.getppid() != SERVER:
        os._exit(127)
    # What may fail comes before the descriptors: after that nobody hears of it.
    os.chdir(order.cwd)
    # Out of the way first: one of them may be where another one goes.
    above = max(64, 3 + len(descriptors))
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in descriptors]
    for number, fd in enumerate(moved):
        os.dup2(fd, number, inheritable=True)
    os.closerange(len(moved), os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(order.env)
    if "LISTEN_FDS" in os.environ:
        os.environ["LISTEN_PID"] = str(os.getpid())
    if "WATCHDOG_USEC" in os.environ:
        os.environ["WATCHDOG_PID"] = str(os.getpid())
    # Each worker its own numbers: numpy drew its seed before the fork. Python sees to its own.
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def run(order):
    """Runs a script, or a module after `-m`, as Python itself would."""
    if order.argv[0] == "-m":
        sys.argv = order.argv[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = order.argv
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
        if order.code is None:
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            main = types.ModuleType("__main__")
            vars(main).update(__file__=sys.argv[0], __builtins__=builtins, __cached__=None, __package__="")
            sys.modules["__main__"] = main
            exec(order.code, vars(main))


def announce():
    """Tells whoever waits for it that forks can be had, in the words of sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.sendto(b"READY=1", path)


def main():
    parser = argparse.ArgumentParser(prog="tether_forkserver", description="Forks workers from what it has imported.")
    parser.add_argument("--import", dest="modules", action="append", default=[], metavar="MODULE")
    arguments = parser.parse_args()
    listen = os.environ.get("TETHER_LISTEN", "")
    if not listen.startswith("unix:"):
        parser.error("TETHER_LISTEN names no unix socket: start it through an agent, or set TETHER_LISTEN=unix:/path")
    # What a module run in the working directory would find, also where this was started as a script.
    sys.path[0] = os.getcwd()
    for module in arguments.modules:
        importlib.import_module(module)
    gc.collect()
    # What is never looked at again is never copied.
    gc.freeze()
    server = Server(listen.removeprefix("unix:"))
    announce()
    run(server.serve())


if __name__ == "__main__":
    main()
