"""Bytes of a checkpoint on their way, from memory or a file and back."""

from __future__ import annotations

import hashlib
import os
from typing import Any, BinaryIO, Iterator, Optional

PIECE = 1 << 20

# Bytes a second that a store takes at least; a call has so much longer.
SLOWEST = 1 << 20


class Source:
    """What is saved: read twice, once for its hash, so a file must not change meanwhile."""

    def __init__(self, data: Any) -> None:
        self._data: Optional[memoryview] = None
        self._file: Optional[BinaryIO] = None
        self._start, self._is_own = 0, False
        if isinstance(data, (bytes, bytearray, memoryview)):
            self._data = memoryview(data).cast("B")
        elif isinstance(data, (str, os.PathLike)):
            self._file, self._is_own = open(data, "rb"), True
        else:
            self._file, self._start = data, data.tell()
        digest, self.size = hashlib.sha256(), 0
        for piece in self.pieces():
            digest.update(piece)
            self.size += len(piece)
        self.sha256 = digest.digest()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._file and self._is_own:
            self._file.close()

    def pieces(self) -> Iterator[bytes]:
        """All of it, from the start."""
        if self._data is not None:
            for at in range(0, len(self._data), PIECE):
                yield bytes(self._data[at : at + PIECE])
            return
        assert self._file is not None
        self._file.seek(self._start)
        while True:
            piece = self._file.read(PIECE)
            if not piece:
                return
            yield piece


class Sink:
    """What is loaded: kept, or written to a file."""

    def __init__(self, file: Optional[BinaryIO], start: int) -> None:
        self._file, self._kept, self._digest = file, bytearray(), hashlib.sha256()
        if file is not None:
            file.seek(start)
            file.truncate()

    def write(self, piece: bytes) -> None:
        """Takes the next bytes."""
        self._digest.update(piece)
        if self._file is None:
            self._kept += piece
        else:
            self._file.write(piece)

    def sha256(self) -> bytes:
        """Of all that was taken."""
        return self._digest.digest()

    def done(self) -> Optional[bytes]:
        """What was kept; none where it is in a file."""
        return bytes(self._kept) if self._file is None else None
