"""One pass over each image: bytes read once; content hash, header, a small picture, measurements.

Decoders are large programs in C that meet any bytes the world holds. So files are inspected in
processes of their own, which have a time limit a file and a memory limit: a decoder that crashes,
hangs or takes all memory costs one rejected record, and a new process goes on with the next file.

Reasons of a rejected record: those of `labeling_pipeline.images.reading`, then ``decoder_crashed``
and ``decoder_timeout``. Reasons why a file has none: those of `labeling_pipeline.images.opening`.

The processes are plain Python ones that import this module only. Those of `multiprocessing` import
the caller's main module again, or inherit its open DuckDB. Memory is limited on Linux only.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from labeling_pipeline.errors import ConfigurationError, ImageError
from labeling_pipeline.images.hashing import content_hash, fingerprint
from labeling_pipeline.images.opening import Stamp, read_file
from labeling_pipeline.images.reading import decode

NEW, ACCEPTED, REJECTED = "new", "accepted", "rejected"

MEASURED_SIDE_PX = 320
"""Brightness, contrast, sharpness and entropy are measured at most this large, so that one
threshold fits photos of any resolution. JPEGs of 640, 1280, 2560 px are decoded to just this."""


_FINGERPRINTED_SIDE_PX = 192


@dataclass(frozen=True)
class ImageRecord:
    """A row of the table ``images``, without its number. The columns are explained there."""

    image_id: str
    size_bytes: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    format: str | None = None
    mode: str | None = None
    frames: int | None = None
    exif_orientation: int | None = None
    brightness: float | None = None
    contrast: float | None = None
    sharpness: float | None = None
    entropy: float | None = None
    perceptual_hash: str | None = None
    cluster: str | None = None
    status: str = NEW
    reason: str | None = None
    detail: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What one file may cost."""

    time_s: float = 8.0  # reading and decoding
    memory_bytes: int = 640 << 20  # of one process, beyond what it starts with


@dataclass(frozen=True)
class Job:
    """One file to inspect."""

    key: Any  # whatever names the file to the caller
    source: Path | bytes
    expected: Stamp | None = None  # how the file was seen; another one is refused
    known: tuple[str, ...] = ()  # contents that need no decoding, by their image_id


@dataclass(frozen=True)
class Inspected:
    """What came of a job: a record, a known content, or a reason why there is neither."""

    key: Any
    image_id: str | None = None
    record: ImageRecord | None = None
    problem: tuple[str, str] | None = None  # reason and detail


def inspect_image(
    data: bytes,
    admit: Callable[[int], None] = lambda pixels: None,
    image_id: str | None = None,
) -> ImageRecord:
    """Measure an image, in this process.

    Args:
        data: the bytes of the file.
        admit: see `labeling_pipeline.images.reading.decode`.
        image_id: of these bytes, where it is known already.

    Returns:
        The record with status new; rejected with reason and detail, and
        without measurements, if the image cannot be decoded.
    """
    record = ImageRecord(image_id or content_hash(data), len(data))
    try:
        decoded = decode(data, MEASURED_SIDE_PX, admit)
    except ImageError as error:
        return replace(record, status=REJECTED, reason=error.reason, detail=error.detail)
    picture = Image.fromarray(decoded.pixels)
    luma = picture.convert("L")
    luma.thumbnail((MEASURED_SIDE_PX, MEASURED_SIDE_PX), Image.Resampling.BOX)
    # Much more than a fingerprint keeps, and little to convert.
    small = picture.reduce(max(1, max(picture.size) // _FINGERPRINTED_SIDE_PX))
    brightness, contrast, entropy = _tones(luma)
    return replace(
        record,
        width_px=decoded.width_px,
        height_px=decoded.height_px,
        format=decoded.format,
        mode=decoded.mode,
        frames=decoded.frames,
        exif_orientation=decoded.exif_orientation,
        brightness=brightness,
        contrast=contrast,
        sharpness=_sharpness(np.asarray(luma, np.int16)),
        entropy=entropy,
        perceptual_hash=fingerprint(small.convert("YCbCr").split()),
    )


def inspect_files(
    jobs: Iterable[Job], limits: Limits | None = None, processes: int | None = None
) -> Iterator[Inspected]:
    """Inspect files in other processes, as many as there are cores and jobs to fill them.

    Args:
        jobs: taken as they are needed.
        limits: default: `Limits()`.
        processes: at most so many; default: the number of cores.

    Yields:
        One result a job, as they come.

    Raises:
        ConfigurationError: the processes cannot be started.
    """
    pool = _Pool(limits or Limits(), processes or _cores())
    try:
        yield from pool.run(iter(jobs))
    finally:
        pool.close()


def _tones(luma: Image.Image) -> tuple[float, float, float]:
    """Mean, standard deviation and entropy in bits of the values of a picture."""
    shares = np.array(luma.histogram()) / (luma.width * luma.height)
    mean = float(shares @ _LEVELS)
    used = shares[shares > 0]
    deviation = float(np.sqrt(shares @ (_LEVELS - mean) ** 2))
    # Of one value alone it would be -0.0.
    return mean, deviation, abs(float(used @ np.log2(used)))


_LEVELS = np.arange(256)


def _sharpness(luma: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian of (height, width) int16 luma; 0 under 3 px."""
    if min(luma.shape) < 3:
        return 0.0
    laplacian = (
        luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1]
    )
    values = laplacian.ravel().astype(np.float32)
    return float(values @ values) / values.size - float(laplacian.mean()) ** 2


# What the processes and their owner say to each other. Of several files that need much memory one
# is decoded at a time, so that the memory for one suffices: a process asks first, and waits.
_READY, _GO = "ready", "go"
_LARGE_PIXELS = 16 << 20
_LARGE_BYTES = 32 << 20
# What a file may take without leave: JPEG 2000, the hungriest, takes 24 bytes a pixel. One that
# turns out to need more is decoded once more, with leave.
_WITHOUT_LEAVE_BYTES = 400 << 20


@dataclass(frozen=True)
class _Hashed:
    """The content is known, decoding begins."""

    image_id: str
    size_bytes: int


@dataclass(frozen=True)
class _Large:
    """The file needs much memory; its process waits for leave."""

    left_s: float  # what it may take then


# The process ------------------------------------------------------------------------------------


def main() -> None:
    """Inspect what comes through the pipe that is the first argument, until it is closed."""
    limits = Limits(float(sys.argv[2]), int(sys.argv[3]))
    # Ctrl-C is for the owner, who then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _take_one_core()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _Worker(Connection(int(sys.argv[1])), limits).run()


# The owner ends a process that takes too long; its own alarm does where the owner is gone.
_GRACE_S = 5.0


class _Worker:
    def __init__(self, owner: "Connection[Any, Any]", limits: Limits) -> None:
        self._owner = owner
        self._limits = limits
        self._memory = _Memory(limits.memory_bytes)
        self._jobs: deque[Job] = deque()
        self._admitted = False

    def run(self) -> None:
        # Decoders complain there, of every second file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        self._owner.send(_READY)
        while True:
            while not self._jobs:
                self._jobs.extend(self._owner.recv())
            self._admitted = False
            _set_clock(self._limits.time_s + _GRACE_S)
            self._memory.limit(_WITHOUT_LEAVE_BYTES)
            inspected = self._inspect(self._jobs.popleft())
            self._memory.limit(self._limits.memory_bytes)
            if self._admitted:
                _give_back_memory()
            _set_clock(0)
            self._owner.send(inspected)

    def _inspect(self, job: Job) -> Inspected:
        try:
            data = self._read(job)
        except ImageError as error:
            return Inspected(job.key, problem=(error.reason, error.detail))
        image_id = content_hash(data)
        if image_id in job.known:
            return Inspected(job.key, image_id)
        self._owner.send(_Hashed(image_id, len(data)))
        record = inspect_image(
            data, lambda pixels: self._admit(pixels > _LARGE_PIXELS), image_id=image_id
        )
        if record.reason == "decoder_memory" and not self._admitted:
            self._admit(True)
            record = inspect_image(data, image_id=image_id)
        return Inspected(job.key, image_id, record)

    def _read(self, job: Job) -> bytes:
        """The bytes of a file that keeps still.

        Raises:
            ImageError: with a reason why there is no record.
        """
        if isinstance(job.source, bytes):
            self._admit(len(job.source) > _LARGE_BYTES)
            return job.source
        self._admit(job.expected is not None and job.expected.size_bytes > _LARGE_BYTES)
        try:
            return read_file(job.source, job.expected)
        except MemoryError as error:
            raise ImageError("file_too_large", "more than there is memory for") from error

    def _admit(self, large: bool) -> None:
        """Wait for the owner's leave to take much memory, once a file."""
        if not large or self._admitted:
            return
        left_s = _set_clock(0)
        self._owner.send(_Large(max(0.0, left_s - _GRACE_S)))
        while (message := self._owner.recv()) != _GO:
            self._jobs.extend(message)
        self._admitted = True
        self._memory.limit(self._limits.memory_bytes)
        _set_clock(left_s)


def _set_clock(seconds: float) -> float:
    """End this process in so many seconds, 0: not at all; what was left until then."""
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    return left_s


class _Memory:
    """What this process may take beyond what it holds at first; without effect but on Linux."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        statm = Path("/proc/self/statm")
        pages = int(statm.read_text().split()[5]) if statm.exists() else None
        self._first = None if pages is None else pages * os.sysconf("SC_PAGE_SIZE")

    def limit(self, bytes_: int) -> None:
        """Let it take so many bytes, but never more than at most."""
        if self._first is not None:
            import resource

            limits = (self._first + min(bytes_, self._most), self._first + self._most)
            resource.setrlimit(resource.RLIMIT_DATA, limits)


def _give_back_memory() -> None:
    """Without it a process may keep the heap of a large image, freed as it is, for good."""
    import ctypes

    # Other C libraries than glibc have no such function.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _take_one_core() -> None:
    """Files are decoded side by side, so a decoder needs no threads of its own."""
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with contextlib.suppress(ImportError):
        from pi_heif import options

        options.DECODE_THREADS = 1


# Its owner --------------------------------------------------------------------------------------

# Jobs that a process has ahead, so that it never waits; paths of so many fit into a pipe.
_AHEAD = 16
# What starting one may take, on a machine that is busy.
_START_S = 60.0


@dataclass(eq=False)
class _Process:
    popen: "subprocess.Popen[bytes]"
    connection: "Connection[Any, Any]"
    ready: bool = False
    jobs: deque[Job] = field(default_factory=deque)
    hashed: _Hashed | None = None
    until: float | None = None  # when the first of its jobs has to be done; None: it waits
    left_s: float = 0.0  # while it waits for leave: what the job may take then

    @classmethod
    def started(cls, limits: Limits) -> "_Process":
        ours, theirs = Pipe()
        path = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        with theirs:
            popen = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-c", f"from {__name__} import main; main()"),
                    *(str(theirs.fileno()), str(limits.time_s), str(limits.memory_bytes)),
                ],
                env=os.environ | single | {"PYTHONPATH": path},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        return cls(popen, ours)

    def give(self, jobs: list[Job]) -> None:
        self.jobs.extend(jobs)
        # One that died in between is noticed when it is asked for its answer.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(jobs)

    def end(self) -> tuple[int, str]:
        """Returns the exit status, and what it complained of before it was ready."""
        self.connection.close()
        self.popen.kill()
        _, complaints = self.popen.communicate()
        return self.popen.returncode, complaints.decode(errors="replace").strip()


class _Pool:
    def __init__(self, limits: Limits, most: int) -> None:
        self._limits = limits
        self._most = most
        self._processes: list[_Process] = []
        self._again: deque[Job] = deque()  # jobs of a process that died before it came to them
        self._large: deque[_Process] = deque()  # the first has leave, the others wait for it

    def run(self, jobs: Iterator[Job]) -> Iterator[Inspected]:
        while self._fill(jobs):
            ends = [p.until for p in self._processes if p.until is not None]
            timeout_s = max(0.0, min(ends) - time.monotonic()) if ends else None
            by_connection: dict[Any, _Process] = {
                p.connection: p for p in self._processes if p.jobs
            }
            for connection in wait(list(by_connection), timeout_s):
                yield from self._hear(by_connection[connection])
            for process in list(self._processes):
                late = process.until is not None and process.until <= time.monotonic()
                if late and not process.connection.poll():
                    yield self._lose(process, timed_out=True)

    def close(self) -> None:
        for process in self._processes:
            process.end()

    def _fill(self, jobs: Iterator[Job]) -> bool:
        """Give out jobs; whether any is under way."""
        while True:
            free = [p for p in self._processes if len(p.jobs) <= _AHEAD // 2]
            if not free and len(self._processes) == self._most:
                return True
            process = min(free, key=lambda p: len(p.jobs), default=None)
            given = self._next(jobs, process)
            if not given:
                return any(p.jobs for p in self._processes)
            if process is None:
                process = _Process.started(self._limits)
                process.until = time.monotonic() + _START_S
                self._processes.append(process)
            elif not process.jobs:
                process.until = self._deadline()
            process.give(given)

    def _next(self, jobs: Iterator[Job], process: _Process | None) -> list[Job]:
        """Up to half of what a process has ahead; of bytes one, and only where it waits for them:
        a pipe that is full of them would hold us up, too."""
        given: list[Job] = []
        while len(given) < _AHEAD // 2:
            job = self._again.popleft() if self._again else next(jobs, None)
            if job is None:
                break
            if isinstance(job.source, bytes) and (given or (process and process.jobs)):
                self._again.appendleft(job)
                break
            given.append(job)
            if isinstance(job.source, bytes):
                break
        return given

    def _hear(self, process: _Process) -> Iterator[Inspected]:
        try:
            message = process.connection.recv()
        except (EOFError, ConnectionResetError):
            yield self._lose(process)
            return
        if message == _READY:
            process.ready = True
            process.until = self._deadline()
        elif isinstance(message, _Large):
            process.left_s = message.left_s
            process.until = None
            self._large.append(process)
            if self._large[0] is process:
                self._let_go()
        elif isinstance(message, _Hashed):
            process.hashed = message
        else:
            process.jobs.popleft()
            process.hashed = None
            process.until = self._deadline() if process.jobs else None
            self._leave(process)
            yield message

    def _lose(self, process: _Process, timed_out: bool = False) -> Inspected:
        """What came of the job that a process was at when it ended, or had to be ended."""
        self._processes.remove(process)
        status, complaints = process.end()
        self._leave(process)
        if not process.ready:
            raise ConfigurationError(
                "expected a process that inspects images to start, but "
                + ("it took too long" if timed_out else f"it ended with {status}: {complaints}")
            )
        job = process.jobs.popleft()
        self._again.extend(process.jobs)
        reason, detail = "decoder_crashed", f"the decoder ended with {_signal_name(status)}"
        if timed_out:
            reason, detail = "decoder_timeout", f"took over {self._limits.time_s:g} s"
        if process.hashed is None:
            return Inspected(job.key, problem=("unreadable", f"reading it: {detail}"))
        record = ImageRecord(
            process.hashed.image_id,
            process.hashed.size_bytes,
            status=REJECTED,
            reason=reason,
            detail=f"{detail}; save it anew with another program",
        )
        return Inspected(job.key, record.image_id, record)

    def _leave(self, process: _Process) -> None:
        """A process needs no leave any more."""
        if process in self._large:
            had_leave = self._large[0] is process
            self._large.remove(process)
            if had_leave and self._large:
                self._let_go()

    def _deadline(self) -> float:
        return time.monotonic() + self._limits.time_s

    def _let_go(self) -> None:
        process = self._large[0]
        process.until = time.monotonic() + process.left_s
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.connection.send(_GO)


def _signal_name(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
