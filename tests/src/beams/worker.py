"""A worker as a user has one, with a daemon that it sheds: it serves calls that take as long as is asked for, and does jobs."""

import os
import signal


def shed_a_daemon():
    """Leaves a process in a session of its own, which is nobody's child and ends on no request."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


# Before there are threads.
shed_a_daemon()

import asyncio  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402

import grpc  # noqa: E402
from tether.worker import Worker  # noqa: E402

# Of this start of this worker, and of no other; its process id may be that of a namespace.
ME = f"{os.environ['TETHER_WORKER']}:{os.environ.get('TETHER_INCARNATION', '')}:{os.getpid()}".encode()


async def pid(_request, _context):
    return ME


async def nap(request, _context):
    """Begins, and is busy in a thread that nobody can interrupt."""
    yield ME
    await asyncio.to_thread(time.sleep, float(request))
    yield b"over"


def register(server):
    handlers = {
        "Pid": grpc.unary_unary_rpc_method_handler(pid),
        "Nap": grpc.unary_stream_rpc_method_handler(nap),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.Lab", handlers),))


def train(work):
    """Adds up squares, a step at a time; without a number of steps, until the file `until` is there."""
    spec = json.loads(work.spec)
    saved = work.load()
    total = json.loads(saved)["total"] if saved else 0
    step, steps = work.step, spec.get("steps")
    while step != steps and not ("until" in spec and os.path.exists(spec["until"])):
        work.wait(spec["seconds"])
        total += step * step
        step += 1
        if step % spec["save_every"] == 0:
            work.save(json.dumps({"total": total}).encode(), step=step)
        # Of one that has no end, as if it were this long.
        work.progress(step / (steps or 1_000_000))
    return f"{step}:{total}"


Worker(register=register, jobs=train, grace=0.3).run()
