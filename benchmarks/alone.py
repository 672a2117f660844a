"""Work in a process of its own, and the memory that it takes there."""

import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def alone(work: Callable[..., float], *args: Any) -> tuple[float, float]:
    """Seconds that the work says, and the peak memory in MiB of a process that did only that; what
    its imports take is part of it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_with_peak, work, *args).result()


def peak_mib() -> float:
    """Peak memory of this process.

    Linux counts into ``ru_maxrss`` what the process was that started this one; the high-water mark
    in ``/proc`` is its own.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (one for one in status.read_text().splitlines() if one.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _with_peak(work: Callable[..., float], *args: Any) -> tuple[float, float]:
    seconds = work(*args)
    return seconds, peak_mib()
