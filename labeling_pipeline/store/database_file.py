"""One DuckDB file among several processes: who may open it when, and what its errors mean.

DuckDB lets one process write and then no other even read. So a file is held for one query or one
transaction: compute first, then open, write, close. Writers queue on a side-car file lock; readers
open read-only and retry for a while, because a writer is gone in milliseconds.

Starting DuckDB costs more than opening a file with it. So it is started once a process, and files
are attached to it and detached again.

Beside a file may lie its log (``.wal``): what was committed after the file was last written whole.
DuckDB takes whatever log it finds for the file's own, so the two are only ever moved together.
"""

import errno
import itertools
import os
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import duckdb
from filelock import FileLock, Timeout
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from labeling_pipeline.errors import StoreBusyError, StoreError, StoreVersionError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_BROKEN = (duckdb.IOException, duckdb.InternalException, duckdb.FatalException)
_NEWER = "newer version of DuckDB"
"""How DuckDB says that it cannot read a file because a later release wrote it."""


class DatabaseFile:
    """A path, and the rules by which a DuckDB file there is opened. Cheap to construct.

    busy_timeout_s: how long to wait for other processes before ``StoreBusyError``.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float = 60.0) -> None:
        self.path = Path(path)
        self.busy_timeout_s = busy_timeout_s
        self._lock = FileLock(f"{self.path}.lock")

    @property
    def state(self) -> tuple[tuple[int, ...] | None, ...]:
        """Another one after every write: what the file system tells of the file and of its log."""
        return tuple(map(_stamp, (self.path, log_of(self.path))))

    @contextmanager
    def locked(self, timeout_s: float | None = None) -> Iterator[None]:
        """The writers' lock. timeout_s: default ``busy_timeout_s``.

        Raises:
            StoreBusyError: others wrote all the time.
            StoreError: nothing may be written here, or there is no room left.
        """
        timeout_s = self.busy_timeout_s if timeout_s is None else timeout_s
        with self.errors_explained():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=timeout_s, poll_interval=0.01)
            except Timeout as error:
                raise StoreBusyError(
                    f"{self.path}: another process has been writing for over {timeout_s:.0f} s; "
                    "wait for it, or find it and end it"
                ) from error
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def opened(self, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that has the file; what was not committed is rolled back at its end.

        Raises:
            StoreBusyError: other processes held the file for longer than ``busy_timeout_s``.
            StoreVersionError: a later release of DuckDB wrote the file.
            StoreError: the file is damaged, may not be opened, or there is no room left.
        """
        attempts = Retrying(
            retry=retry_if_exception(_is_held_elsewhere),
            wait=wait_random(0.005, 0.05),
            stop=stop_after_delay(self.busy_timeout_s),
            reraise=True,
        )
        try:
            file = attempts(_AttachedFile, self.path, read_only=read_only)
        except duckdb.Error as error:
            if _is_held_elsewhere(error):
                raise StoreBusyError(
                    f"{self.path}: held by another process for over {self.busy_timeout_s:.0f} s. "
                    f"Close other programs that have it open ({error})"
                ) from error
            raise self.explained(error) from error
        # Checksums of blocks are compared when the blocks are read, not when the file is opened;
        # and what fills a disk is written when the file is closed.
        try:
            try:
                yield file.connection
            finally:
                file.close()
        except _BROKEN as error:
            raise self.explained(error) from error

    @contextmanager
    def errors_explained(self) -> Iterator[None]:
        """Errors of the disk become errors that say what to do."""
        try:
            yield
        except _BROKEN as error:
            raise self.explained(error) from error
        except OSError as error:
            if not _is_one_of(error, (*_NO_ROOM, *_NOT_ALLOWED)):
                raise
            raise self.explained(error) from error

    def explained(self, error: Exception) -> StoreError:
        """What an error of the disk or of DuckDB means, and what to do."""
        if _is_one_of(error, _NO_ROOM):
            return StoreError(
                f"{self.path}: the disk is full ({error}). What was committed before is safe. Make "
                f"room where {self.path.parent} lies and run the same command again: it does only "
                "what is missing"
            )
        if _is_one_of(error, _NOT_ALLOWED):
            return StoreError(
                f"{self.path} may not be opened or written ({error}). Give this user the right to "
                f"write to {self.path.parent} and to every file in it, or choose another home with "
                "LABELING_HOME"
            )
        if _NEWER in str(error):
            return StoreVersionError(
                f"{self.path} was written by a later release of DuckDB than {duckdb.__version__}, "
                "which is installed here. Nothing is wrong with it: update the package duckdb"
            )
        return StoreError(
            f"{self.path} could not be read or written: {error}. If the file is damaged: "
            f"{how_to_restore(self.path)}"
        )


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        known = path.stat()
    except FileNotFoundError:
        return None
    return known.st_ino, known.st_size, known.st_mtime_ns


def log_of(path: Path) -> Path:
    """Where DuckDB keeps what is committed but not in the file yet."""
    return path.with_name(path.name + ".wal")


def backups_of(path: Path) -> list[Path]:
    """Backups of a database file, the newest first."""
    return sorted((path.parent / "backups").glob(f"{path.stem}-*Z{path.suffix}"), reverse=True)


def how_to_restore(path: Path) -> str:
    """What to do about a damaged file, in half a sentence that begins with a verb."""
    backups = backups_of(path)
    home = shlex.quote(str(path.parent))
    if backups:
        return (
            f"restore the newest backup, {backups[0].name}, with `python -m labeling_pipeline "
            f"store restore --home {home}`; the damaged file is kept beside it"
        )
    return (
        "there is no backup to restore, so move it away and run the same command again: all "
        "labels are made anew. Next time, `python -m labeling_pipeline store backup --home "
        f"{home}` makes one"
    )


def utc_stamp() -> str:
    """Now, for file names; later ones sort later."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A name to write a database under; at the end of the block it takes its place, whole.

    To be used under the writers' lock of what is written. Nobody ever sees half a file; what a
    process left that was killed here is cleared away by the next.
    """
    draft = path.with_name(path.name + ".new")
    remove(draft)
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        remove(draft)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove(path: Path) -> None:
    """Remove a database file and its log, if they are there."""
    for one in (path, log_of(path)):
        one.unlink(missing_ok=True)


def set_aside(path: Path) -> Path | None:
    """Give a database file and its log a second name, and take the log away from the first.

    So a whole file can take the first name at once. Returns the second name; ``None`` if there is
    neither file nor log.
    """
    aside = path.with_name(f"{path.name}.damaged-{utc_stamp()}")
    found = False
    for one, other in ((path, aside), (log_of(path), log_of(aside))):
        if one.exists():
            os.link(one, other)
            found = True
    log_of(path).unlink(missing_ok=True)
    return aside if found else None


class Engine:
    """The process's DuckDB, to which files are attached."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.connection = duckdb.connect(":memory:")
        self.aliases = itertools.count()

    _present: "Engine | None" = None
    _inherited: ClassVar[list["Engine"]] = []
    _starting = threading.Lock()

    @classmethod
    def present(cls) -> "Engine":
        """The one of this process: a fork starts its own."""
        with cls._starting:
            if cls._present is not None and cls._present.process != os.getpid():
                # Never closed here: what it had open when the process forked is the parent's.
                cls._inherited.append(cls._present)
                cls._present = None
            if cls._present is None:
                cls._present = cls()
            return cls._present

    def give_up(self) -> None:
        """A DuckDB that met an internal error answers nothing any more."""
        with self._starting:
            if Engine._present is self:
                Engine._present = None


class _AttachedFile:
    """A file attached to the process's DuckDB, under a name of its own.

    Raises:
        duckdb.Error: the file is held elsewhere, is no database or is damaged.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._engine = Engine.present()
        self._alias = f"store_{next(self._engine.aliases)}"
        self.connection = self._engine.connection.cursor()
        name = str(path.resolve()).replace("'", "''")
        try:
            self.connection.execute(
                f"ATTACH '{name}' AS {self._alias} (READ_ONLY {'true' if read_only else 'false'})"
            )
            self.connection.execute(f"USE {self._alias}")
        except BaseException:
            self._discard()
            raise

    def close(self) -> None:
        """Roll back what was not committed, and let the file go."""
        try:
            with suppress(duckdb.TransactionException):
                self.connection.rollback()
            self.connection.execute("USE memory")
            self.connection.execute(f"DETACH {self._alias}")
        except duckdb.Error:
            self._engine.give_up()
            raise
        finally:
            self.connection.close()

    def _discard(self) -> None:
        try:
            self.connection.execute("USE memory")
            self.connection.execute(f"DETACH DATABASE IF EXISTS {self._alias}")
        except duckdb.Error:
            self._engine.give_up()
        finally:
            self.connection.close()


def _is_one_of(error: Exception, codes: tuple[int, ...]) -> bool:
    if isinstance(error, OSError):
        return error.errno in codes
    # The whole phrase that ends the message of a system call: paths may hold any word.
    return any(f'": {os.strerror(code)}' in str(error) for code in codes)


def _is_held_elsewhere(error: BaseException) -> bool:
    """Whether opening failed only because another connection holds the file just now."""
    if isinstance(error, duckdb.ConnectionException):
        return "different configuration" in str(error)
    if isinstance(error, duckdb.BinderException):
        # Another thread of this process is just opening or closing it.
        return "already attached" in str(error)
    # The whole phrase: damaged files are reported by "block", and paths may hold any word.
    return isinstance(error, duckdb.IOException) and "could not set lock" in str(error).lower()
