"""A Python gRPC worker that recognises handwritten digits and learns to do it better.

    python worker.py --listen unix:/tmp/digits.sock
    python worker.py --listen 127.0.0.1:50061

SIGTERM ends it in order: NOT_SERVING, no new calls, calls in flight get `--grace`, exit status 0.
"""

import argparse
import logging
import os
import pathlib
import signal
import sys


def parser():
    """The command line of the worker."""
    parser = argparse.ArgumentParser(description="Recognises handwritten digits over gRPC.")
    parser.add_argument(
        "--listen",
        default=os.environ.get("TETHER_LISTEN"),
        help="unix:/PATH or 127.0.0.1:PORT (default: TETHER_LISTEN)",
    )
    parser.add_argument(
        "--insecure", action="store_true", help="listen in plain text where other machines can reach it"
    )
    parser.add_argument("--threads", type=int, default=16, help="calls served at the same time (default: 16)")
    parser.add_argument("--grace", type=float, default=2.0, help="seconds for calls in flight at the end (default: 2)")
    return parser


def parsed(parser, arguments=None):
    """The options, checked."""
    options = parser.parse_args(arguments)
    if not options.listen:
        parser.error("nowhere to listen: give `--listen unix:/PATH` or set TETHER_LISTEN")
    if options.threads < 3:
        parser.error("`--threads` must be at least 3: one for calls, one for health, one to follow a training")
    return options


def sigterm():
    """Waits for SIGTERM, which `prepare_signals` keeps for this."""
    signal.sigwait({signal.SIGTERM})


def run(options, until=sigterm, announces_ready=True, interceptors=()):
    """Serves for as long as `until()` takes; the exit status."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {os.getpid()} %(name)s: %(message)s"
    )
    # A reader of our log who has gone must not cost us a traceback for every line.
    logging.raiseExceptions = False

    # Imported this late so that the signals are in place first.
    from server import CannotListen, Server

    server = Server(options.listen, options.threads, interceptors, options.insecure)
    try:
        server.start()
    except CannotListen as error:
        print(f"digits: {error}", file=sys.stderr)
        return 1
    server.load()
    if announces_ready:
        server.announce_ready()
    until()
    server.stop(options.grace)
    return 0


def prepare_signals():
    """Keeps SIGTERM for `sigterm` to wait for, and leaves Ctrl-C to whoever started us.

    A blocked signal that is waited for cannot interrupt a lock or an import, as a handler would.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    # Ctrl-C reaches the whole group of the terminal; who ends when is the supervisor's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def prepare_numpy():
    """Lets the environment say how many threads numpy takes; one is plenty for 64 pixels."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def hold_life():
    """Has callers know at once when this process is killed, where the SDK is there; whether they will."""
    # An installed one is found without this.
    here = pathlib.Path(__file__).resolve()
    sys.path.append(str(here.parent.parent.parent / "clients" / "python"))
    try:
        from tether import life
    except ImportError:
        return False
    return life.hold()


def leave(status):
    """Ends the process without waiting for threads: a call that overstayed the grace must not keep it."""
    sys.stderr.flush()
    os._exit(status)


def main():
    """Runs the worker as a program."""
    prepare_signals()
    prepare_numpy()
    hold_life()
    leave(run(parsed(parser())))


if __name__ == "__main__":
    main()
