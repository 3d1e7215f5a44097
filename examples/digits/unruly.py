"""The same worker with bad manners, to show what a supervisor does about them.

    python unruly.py --listen unix:/tmp/digits.sock --ignore-sigterm --daemonize-child

Each flag is something that real workers do. What is forked says its process id on stderr and keeps stdout and stderr
open, as forgotten helpers do.
"""

import os
import signal
import sys
import threading

import worker

FLOOD_BYTES = 64 * 1024 * 1024


def parser():
    """The command line of the worker, and a flag for each kind of bad manners."""
    parser = worker.parser()
    parser.description = "Recognises handwritten digits over gRPC, and misbehaves as told."
    unruly = parser.add_argument_group("bad manners")
    unruly.add_argument("--ignore-sigterm", action="store_true", help="go on after SIGTERM")
    unruly.add_argument(
        "--daemonize-child", action="store_true", help="leave behind a daemon in its own session that ignores SIGTERM"
    )
    unruly.add_argument("--fork-children", type=int, default=0, metavar="N", help="fork N children that sleep")
    unruly.add_argument(
        "--flood-stdout", action="store_true", help="write 64 MiB each to stdout and stderr before listening"
    )
    unruly.add_argument("--never-ready", action="store_true", help="listen and serve, but stay NOT_SERVING")
    unruly.add_argument("--exit-after", type=float, metavar="SECONDS", help="exit this long after the start")
    unruly.add_argument("--exit-code", type=int, default=1, metavar="N", help="exit status for --exit-after (default: 1)")
    unruly.add_argument(
        "--crash-on-predict",
        action="store_true",
        help="a call with the metadata `x-crash: 1` exits with status 3 in the middle, `x-crash: abort` dies of SIGABRT",
    )
    return parser


def main():
    """Runs the unruly worker as a program."""
    options = worker.parsed(parser())

    # Before any thread and any blocked signal, so that the children are as plain as a shell's.
    for number in range(options.fork_children):
        fork_sleeper(f"child {number}")
    if options.daemonize_child:
        fork_daemon()

    if options.exit_after is not None:
        timer = threading.Timer(options.exit_after, os._exit, (options.exit_code,))
        timer.daemon = True
        timer.start()
    if options.flood_stdout:
        flood()

    worker.prepare_signals()
    worker.prepare_numpy()
    worker.leave(
        worker.run(
            options,
            until=never if options.ignore_sigterm else worker.sigterm,
            announces_ready=not options.never_ready,
            interceptors=[crasher()] if options.crash_on_predict else [],
        )
    )


def never():
    """Leaves SIGTERM pending for good, so that only SIGKILL ends the worker."""
    threading.Event().wait()


def fork_sleeper(what):
    """Forks a child that sleeps until a signal ends it."""
    pid = os.fork()
    if pid == 0:
        # It stays in our process group, but Ctrl-C is not for it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sleep_forever(what)


def fork_daemon():
    """Leaves a process behind that is in no session, group or family of ours and ignores SIGTERM."""
    first = os.fork()
    if first == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            sleep_forever("daemon")
        os._exit(0)
    os.waitpid(first, 0)


def sleep_forever(what):
    """Says who it is and never returns."""
    os.write(2, f"unruly: {what} has pid {os.getpid()}\n".encode())
    while True:
        signal.pause()


def flood():
    """Fills stdout and stderr; blocks for as long as nobody reads them."""
    line = b"x" * 1023 + b"\n"
    for _ in range(FLOOD_BYTES // len(line)):
        for stream in (1, 2):
            # A pipe may take less than a line at a time.
            rest = line
            while rest:
                rest = rest[os.write(stream, rest) :]


def crasher():
    """An interceptor that ends the process in the middle of a call that asks for it."""
    import grpc

    class Crasher(grpc.ServerInterceptor):
        """Reads `x-crash` in the metadata of each call."""

        def intercept_service(self, continuation, handler_call_details):
            how = dict(handler_call_details.invocation_metadata).get("x-crash")
            if how == "1":
                os._exit(3)
            if how == "abort":
                os.abort()
            return continuation(handler_call_details)

    return Crasher()


if __name__ == "__main__":
    main()
