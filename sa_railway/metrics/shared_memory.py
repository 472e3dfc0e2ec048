"""Numbers that every process of an application can read: each writes its own, any adds them up.

They lie in memory that all of these processes have mapped, so a write is a write to memory and is
seen at once, however its process may end. A process owns one slot, by a lock on one byte of the
file behind the memory. The kernel gives that lock back when the process ends, so no other process
has to learn of its death, nor can its id be taken for that of a successor. The next owner of the
slot counts on where the dead one has stopped; the sum over all slots never loses anything and never
shrinks.
"""

from __future__ import annotations

import errno
import itertools
import logging
import mmap
import os
import stat
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where no process is forked either
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("sa_railway.metrics.shared_memory")

_SLOTS = 256  # processes at the same time
_BLOCKS = 64  # names in each of them
_NAME_SIZE = 64  # bytes
_NUMBER_SIZE = 8  # of a double, which counts exactly up to 2**53


@dataclass(frozen=True)
class Block:
    """The numbers of one name in one process.

    Attributes:
        name: what they belong to.
        values: in the order of the fields.
        is_alive: whether the process is; what describes a moment counts only then.
    """

    name: str
    values: Sequence[float]
    is_alive: bool


class SharedNumbers:
    """Blocks of numbers under names, one block for each process.

    A process shares them with all that it forks, or, if the environment variable
    ``PROMETHEUS_MULTIPROC_DIR`` names a directory, with all processes that see the same one. Where
    neither can be had, or there are too many processes, they are private, and a warning says so.

    Safe from any thread. A forked child calls ``forget_parent()`` first.

    Args:
        fields: the names of the numbers in a block. Processes share only blocks of equal fields.
        close_open_gauges: is called with the numbers that a dead process has left, before they are
            added to.
    """

    def __init__(
        self, fields: Sequence[str], close_open_gauges: Callable[[memoryview[float]], object]
    ) -> None:
        self._width = len(fields)
        self._close_open_gauges = close_open_gauges
        self._block_size = _NAME_SIZE + self._width * _NUMBER_SIZE
        self._descriptor: int | None = None
        self._lock = threading.Lock()
        self._slot: int | None = None
        if fcntl is not None:
            self._descriptor = _open(f"sa_railway-{zlib.crc32(' '.join(fields).encode()):08x}.mmap")
        self._map()

    def _map(self) -> None:
        size = _SLOTS * _BLOCKS * self._block_size
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, size)
        self._memory = mmap.mmap(-1 if self._descriptor is None else self._descriptor, size)

    def forget_parent(self) -> None:
        """Begin afresh in a forked child, which has the memory of its parent but not its locks."""
        self._lock = threading.Lock()
        self._slot = None
        if self._descriptor is None:
            self._map()

    def claim(self, name: str) -> memoryview[float]:
        """Return the numbers of *name* in this process, to be written by it alone.

        They are zero, or what a dead process has left.
        """
        with self._lock:
            if self._slot is None:
                self._take_slot()
            encoded = name.encode()[:_NAME_SIZE]
            for start in self._starts(self._slot or 0):
                if self._name_at(start) in (b"", encoded):
                    self._write_name(start, encoded)
                    return self._values_at(start)
        logger.info("%s: not in the metrics, which have room for %d engines", name, _BLOCKS)
        return memoryview(bytearray(self._width * _NUMBER_SIZE)).cast("d")

    def read(self) -> Iterator[Block]:
        """Yield all blocks, those of dead processes included."""
        for slot in range(_SLOTS):
            starts = list(itertools.takewhile(self._name_at, self._starts(slot)))
            if not starts:
                continue
            with self._lock:
                is_alive = self._is_alive(slot)
            for start in starts:
                name = self._name_at(start).decode(errors="replace")
                yield Block(name, self._values_at(start).tolist(), is_alive)

    def _take_slot(self) -> None:
        if self._descriptor is not None:
            for slot in range(_SLOTS):
                if _try_lock(self._descriptor, slot, fcntl.LOCK_EX):
                    self._slot = slot
                    for start in filter(self._name_at, self._starts(slot)):
                        self._close_open_gauges(self._values_at(start))
                    return
            logger.warning("The metrics of this process are its own: none of %d slots free", _SLOTS)
            self._descriptor = None
            self._map()
        self._slot = 0

    def _is_alive(self, slot: int) -> bool:
        """Return whether a process owns *slot*; under the lock, or it might be just taking it."""
        if slot == self._slot:
            return True
        if self._descriptor is None:
            return False
        # a shared lock, so that two that ask at once do not take each other for the owner
        if not _try_lock(self._descriptor, slot, fcntl.LOCK_SH):
            return True
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, slot)
        return False

    def _starts(self, slot: int) -> range:
        first = slot * _BLOCKS * self._block_size
        return range(first, first + _BLOCKS * self._block_size, self._block_size)

    def _name_at(self, start: int) -> bytes:
        return self._memory[start : start + _NAME_SIZE].rstrip(b"\0")

    def _write_name(self, start: int, name: bytes) -> None:
        # the first byte last: a reader takes a block without it for an empty one
        self._memory[start + 1 : start + len(name)] = name[1:]
        self._memory[start] = name[0]

    def _values_at(self, start: int) -> memoryview[float]:
        values = start + _NAME_SIZE
        return memoryview(self._memory)[values : start + self._block_size].cast("d")


def _try_lock(descriptor: int, slot: int, kind: int) -> bool:
    try:
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB, 1, slot)
    except OSError:
        return False
    return True


def _open(name: str) -> int:
    """Open the file behind the memory: one that others find, or one that forked children inherit.

    It must stay open. A process that closes any descriptor of a file loses its locks on it.
    """
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if directory:
        try:
            return _open_file(Path(directory) / name)
        except OSError as error:
            logger.warning("Metrics are not shared in PROMETHEUS_MULTIPROC_DIR: %s", error)
    if hasattr(os, "memfd_create"):  # Linux
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _open_file(path: Path) -> int:
    """Open the file *path*, but no other one that a link to it stands there for.

    It is going to be made larger and written to, and in a directory such as /tmp any user can put a
    link to a file of another user there.

    Raises:
        OSError: it cannot be opened, or is a link or no file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EEXIST, "it is a link, or not a regular file", str(path))
