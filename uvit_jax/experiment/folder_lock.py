"""One job at a time in a folder: a lock that the system frees however the process ends."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator

from uvit_jax.errors import UserError, say_once
from uvit_jax.parallel import hosts

if sys.platform != "win32":
    import fcntl

LOG = logging.getLogger("uvit_jax")

FILE_NAME = ".uvit_jax.lock"
# A killed process frees its memory before its locks. The server of a network's file system notices
# a dead host only after a while (NFS: 90 seconds).
SECONDS_TO_WAIT = {"here": 10.0, "elsewhere": 100.0}
_SECONDS_BETWEEN_TRIES = 0.1
_MOST_STRANGERS = (
    10  # file systems that give one file several numbers never show the one that was opened
)
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_held: set[int] = set()  # descriptors of this process


def _forget() -> None:
    """Closes the locks in a forked child, which would keep them beyond its parent's end."""
    while _held:
        os.close(_held.pop())


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def locked(folder: pathlib.Path, job: str) -> Iterator[None]:
    """Locks a folder against other jobs while the block runs; all hosts call this together.

    The first host's process holds the lock (`flock`), and none of its children does. The kernel
    frees it however the process ends, so that no lock is ever stale. On a file system without
    locks, and on Windows, a warning is logged once, and the block runs.

    Raises:
      UserError: where another process keeps holding the folder, naming that process; at the end of
        the block (also of one that failed for it), where the folder was removed meanwhile.
    """
    lock = hosts.on_first(_take, folder, job)
    try:
        yield
    except Exception as error:
        _check_there(folder, lock, job, error)
        raise
    else:
        _check_there(folder, lock, job, None)
    finally:
        if lock is not None:
            _give_back(folder, lock)


def _check_there(folder: pathlib.Path, lock: int | None, job: str, error: Exception | None) -> None:
    """Raises a UserError for a folder that was removed, even if a later write made it again."""
    # By its name: file systems of buckets may give one file several numbers.
    if not folder.exists() or (lock is not None and not (folder / FILE_NAME).exists()):
        raise UserError(
            f"{folder} was removed (or its {FILE_NAME}) while the job {job} wrote to it, expected "
            "it to stay: run the same command again for what is missing"
        ) from error


def _take(folder: pathlib.Path, job: str) -> int | None:
    """Locks the folder's file; returns its descriptor, None on a file system without locks."""
    if sys.platform == "win32":
        say_once(f"{folder} is not locked on Windows: run one job at a time there")
        return None
    began, strangers = time.monotonic(), 0
    while strangers < _MOST_STRANGERS:
        lock = _open(folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(lock)
            os.close(lock)
            if error.errno in _NO_LOCKS:
                break
            if error.errno not in _TAKEN:
                raise UserError(
                    f"{folder / FILE_NAME} can't be locked ({error.strerror})"
                ) from None
            _wait(folder, holder, time.monotonic() - began)
            continue
        if _is_named(folder, lock):
            note = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "job": job,
                "since": time.strftime("%F %T %Z"),
            }
            with contextlib.suppress(OSError):  # a full disk: the lock holds without a note
                os.ftruncate(lock, 0)
                os.pwrite(lock, json.dumps(note).encode(), 0)
            _held.add(lock)
            return lock
        os.close(lock)  # the file of a job that just ended and removed it
        strangers += 1
    say_once(f"{folder} is on a file system without locks: run one job at a time there")
    return None


def _give_back(folder: pathlib.Path, lock: int) -> None:
    """Removes the file while it is locked, so that no other job's is removed, and closes it."""
    if lock not in _held:  # in a forked child
        return
    with contextlib.suppress(OSError):  # the folder may be gone
        if _is_named(folder, lock):
            os.unlink(folder / FILE_NAME)
    _held.remove(lock)
    os.close(lock)


def _open(folder: pathlib.Path) -> int:
    try:
        return os.open(folder / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(
            f"{folder / FILE_NAME} can't be opened ({error.strerror}), expected a folder of yours"
        ) from None


def _is_named(folder: pathlib.Path, lock: int) -> bool:
    """True if the open file is the one that has the name now."""
    try:
        return os.path.samestat(os.stat(folder / FILE_NAME), os.fstat(lock))
    except FileNotFoundError:
        return False


def _holder(lock: int) -> dict[str, str]:
    """The note of the process that holds the lock; empty before it has written one."""
    try:
        return {name: str(value) for name, value in json.loads(os.pread(lock, 4096, 0)).items()}
    except (ValueError, AttributeError, OSError):
        return {}


def _wait(folder: pathlib.Path, holder: dict[str, str], waited: float) -> None:
    """Waits 0.1 seconds for another process, or raises a UserError naming it after too long."""
    host = holder.get("host", "")
    job = f"the job {holder['job']}" if "job" in holder else "another job"
    where = f" (process {holder.get('pid')} on {host}, since {holder.get('since')})" if host else ""
    patience = SECONDS_TO_WAIT["here" if host in ("", socket.gethostname()) else "elsewhere"]
    if waited > patience:
        raise UserError(
            f"{folder} is in use by {job}{where}, expected one job at a time there: wait for it to "
            "end, or take another folder"
        )
    say_once(
        f"{folder} is in use by {job}{where}: waiting up to {patience:.0f} seconds for it to end"
    )
    time.sleep(_SECONDS_BETWEEN_TRIES)
