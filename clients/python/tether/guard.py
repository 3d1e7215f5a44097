"""A thread that watches this worker's permission, beside whatever the worker does.

It says once when half of a permission is gone and nobody has renewed it, and ends the process when its life is over.
That is for what would otherwise be cut off in the middle; what is trusted is the shim, which needs no thread here to get
a turn: one that holds Python's lock for long keeps this one from its own.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from typing import Callable, Optional

from tether import lease

# As `tether run` ends when its session is lost.
EXIT_LOST = 75

# A renewal is seen no later than this.
LOOK = 0.25


class Guard(threading.Thread):
    """Watches until the process ends. `on_warning` is called in this thread, with the seconds that are left."""

    def __init__(
        self,
        on_warning: Optional[Callable[[float], None]] = None,
        of: Optional[lease.Lease] = None,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        super().__init__(name="tether-guard", daemon=True)
        self._on_warning, self._lease, self._end = on_warning, of or lease.own(), end
        self._until, self._whole, self._warned = -1, math.inf, False
        self._stop = threading.Event()

    def run(self) -> None:
        """Looks until it is told to stop, or the life of this worker is over."""
        pause = self.look()
        while pause is not None and not self._stop.wait(pause):
            pause = self.look()

    def stop(self) -> None:
        """Looks no more."""
        self._stop.set()

    def look(self) -> Optional[float]:
        """Looks once; says when to look again, or nothing where that was the end."""
        if self._lease.lifetime() <= 0:
            print("tether: this worker's permission is over", file=sys.stderr, flush=True)
            self._end(EXIT_LOST)
            return None
        until, left = self._lease.until(), self._lease.remaining()
        if until > self._until:
            self._whole, self._warned = left, False
        self._until = until
        if self._on_warning and not self._warned and left <= self._whole / 2 < math.inf:
            self._warned = True
            self._on_warning(left)
        return max(0.001, min(LOOK, self._lease.lifetime()))
