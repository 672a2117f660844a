"""The bytes of one file of this machine, if it is the one that was seen and keeps still.

Apart from `labeling_pipeline.images.sources`, so that the processes that inspect images start
without what lists them.

Reasons why the bytes cannot be had: ``vanished``, ``changed`` (since it was seen, or while it was
read), ``not_a_file``, ``file_too_large``, ``unreadable``.
"""

import os
import stat
from pathlib import Path
from typing import NamedTuple

from labeling_pipeline.errors import ImageError

MAX_FILE_BYTES = 256 * 2**20
"""A larger file is not read: it would fill the memory before a decoder could refuse it."""

VANISHED = "the file is not there any more; the next inventory drops it"


class Stamp(NamedTuple):
    """What tells whether a file is still the one that was seen."""

    size_bytes: int  # -1 where the storage does not say
    mtime_ns: int  # 0 where it does not
    etag: str | None = None  # what the storage calls this very content; None: it does not

    def differs(self, other: "Stamp") -> bool:
        """Whether the content may be another, by what is known of both. Times count only where
        contents have no names."""
        sizes, times = (self.size_bytes, other.size_bytes), (self.mtime_ns, other.mtime_ns)
        if -1 not in sizes and self.size_bytes != other.size_bytes:
            return True
        if self.etag is not None and other.etag is not None:
            return self.etag != other.etag
        return 0 not in times and self.mtime_ns != other.mtime_ns


def read_file(path: Path, expected: Stamp | None = None) -> bytes:
    """Read a file.

    expected: how it was seen; another one is refused.

    Raises:
        ImageError: with one of the reasons above.
    """
    try:
        # Opening a pipe that took the file's place would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise ImageError("not_a_file", "it is a folder, a pipe or a device")
            check_stamp(Stamp(before.st_size, before.st_mtime_ns), expected)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                # A byte more than there should be: a file that grows shows.
                data = file.read(before.st_size + 1)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise ImageError("vanished", VANISHED) from error
        raise ImageError("unreadable", f"the file cannot be read: {error.strerror}") from error
    if (len(data), after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise ImageError("changed", "the file changed while it was read")
    return data


def check_stamp(now: Stamp, expected: Stamp | None) -> None:
    """Refuse a file that is another one than was seen, or too large.

    Raises:
        ImageError: ``changed`` or ``file_too_large``.
    """
    if expected is not None and now.differs(expected):
        raise ImageError(
            "changed", "the file changed since the inventory; the next one takes it up anew"
        )
    if now.size_bytes > MAX_FILE_BYTES:
        raise ImageError(
            "file_too_large",
            f"{now.size_bytes / 2**20:.0f} MiB, at most {MAX_FILE_BYTES // 2**20} are read",
        )
