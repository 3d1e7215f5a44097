"""A sign of this worker's death that comes before the others.

    from tether import life

    life.hold()             # once, in the main thread

When a process of many gibibytes is killed, the kernel first takes its memory apart, and only then do its sockets close
and its parent hear of it: about a tenth of a second for each GiB, in which calls are still sent to it and nobody can say
what became of those it had. A lock of the kind that the kernel lets go of when its holder ends is let go of before that.
`hold` takes one for as long as this process lives, in memory that the agent of its node shares, and the agent then tells
gateways within a millisecond.

It costs a page of memory and nothing while the worker runs. Where it cannot be had, as outside of Tether or with a C
library without such locks, `hold` says so with False, and the death is seen as that of any other process.

Needs Python 3.8 and Linux.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import socket
import sys
import threading
from typing import Mapping, Optional

MARK = b"tetherH1"
BYTES = 4096

# Where the place of the lock's word is said, and where the lock is: longer than that of any C library.
PLACE_AT, LOCK_AT, LOCK_BYTES = 8, 64, 128

PTHREAD_PROCESS_SHARED = 1
PTHREAD_MUTEX_ROBUST = 1

_held = False


def hold(environment: Optional[Mapping[str, str]] = None) -> bool:
    """Has the agent know of this process's death early; whether that can be. To be called in the main thread."""
    global _held
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("life.hold() belongs in the main thread: the end of any other is not that of the worker")
    if _held:
        return True
    environment = os.environ if environment is None else environment
    path = environment.get("NOTIFY_SOCKET")
    if not path:
        return False
    try:
        descriptor = os.memfd_create("tether-life", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, BYTES)
            # Nobody can cut it short: whoever reads it is never answered with a signal.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            memory = mmap.mmap(descriptor, BYTES, mmap.MAP_SHARED)
            # Never let go of, whatever comes: the C library and the kernel find the lock in it.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))
            place = _take(memory)
            memory[PLACE_AT : PLACE_AT + 4] = place.to_bytes(4, sys.byteorder)
            memory[: len(MARK)] = MARK
            _share(path, descriptor)
            _held = True
        finally:
            os.close(descriptor)
    except (AttributeError, OSError):
        return False
    return True


def _take(memory):
    """Makes and takes the lock; answers where its word is, which names its holder."""
    libc = ctypes.CDLL(None, use_errno=True)
    room = (ctypes.c_char * LOCK_BYTES).from_buffer(memory, LOCK_AT)
    lock, kind = ctypes.byref(room), ctypes.create_string_buffer(64)
    _check(libc.pthread_mutexattr_init(kind))
    _check(libc.pthread_mutexattr_setpshared(kind, PTHREAD_PROCESS_SHARED))
    _check(libc.pthread_mutexattr_setrobust(kind, PTHREAD_MUTEX_ROBUST))
    _check(libc.pthread_mutex_init(lock, kind))
    _check(libc.pthread_mutex_lock(lock))
    words = (ctypes.c_uint32 * (LOCK_BYTES // 4)).from_buffer(memory, LOCK_AT)
    holder = threading.get_native_id()
    for number, word in enumerate(words):
        if word & 0x3FFFFFFF == holder:
            return LOCK_AT + 4 * number
    raise OSError("the lock does not say who holds it")


def _share(path, descriptor):
    if path.startswith("@"):
        path = "\0" + path[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as agent:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
        agent.sendmsg([b"TETHER_HOLD=1"], [rights], 0, path)


def _check(error):
    if error:
        raise OSError(error, os.strerror(error))

