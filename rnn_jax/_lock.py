"""One process writes to a folder at a time: a lock that ends with the process, however it ends."""

import contextlib
import errno
import os
import socket
import threading
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on this platform
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """What `hold` gives; the process holds the folder while one of its objects refers to this.

    The lock is on the open file, so the kernel frees it at the end of the process, kill -9 too.
    """

    def __init__(self, file: int) -> None:
        self.close = weakref.finalize(self, os.close, file)

    @property
    def held(self) -> bool:
        """False in a forked child: the lock stays with the parent."""
        return self.close.alive


_HELD: weakref.WeakValueDictionary[tuple[int, int], FolderLock] = weakref.WeakValueDictionary()
_GUARD = threading.Lock()


def hold(folder: Path) -> FolderLock:
    """The lock of this process on `folder`; one, however often the process asks for it.

    Where the file system or the platform has no locks, nothing is locked.

    Raises:
      BlockingIOError: another process holds it.
      OSError: the file for the lock cannot be opened.
    """
    with _GUARD:
        file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        status = os.fstat(file)
        mine = _HELD.get((status.st_dev, status.st_ino))
        if mine is not None:
            os.close(file)
            return mine
        try:
            _lock(file, folder)
        except BaseException:
            os.close(file)
            raise
        lock = _HELD[status.st_dev, status.st_ino] = FolderLock(file)
        return lock


def _lock(file: int, folder: Path) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BlockingIOError(
                f"{folder}: {_owner(file)} is writing here, and one process may at a time. Wait "
                "until it ends or stop it, choose another folder, or, to read only, open this one "
                "with read_only=True."
            ) from error
    with contextlib.suppress(OSError):  # a full disk: the lock holds, its owner has no name
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _owner(file: int) -> str:
    return os.read(file, 200).decode(errors="replace") or "another process"


def _after_fork() -> None:
    """A child that outlives its parent must not keep the lock."""
    global _GUARD
    _GUARD = threading.Lock()
    for lock in list(_HELD.values()):
        lock.close()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
