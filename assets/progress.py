"""Progress of long work: a line in the run log every few seconds, and whoever listens."""

import time
from collections.abc import Callable

import dagster as dg

Listener = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

LISTENERS: list[Listener] = []
"""A headless run adds its progress bars here; assets run in its process."""

_LOG_EVERY_S = 5.0


def reporter(context: dg.AssetExecutionContext, what: str) -> Callable[[int, int], None]:
    """A progress callback for library code; ``what`` names the work."""
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        for listener in LISTENERS:
            listener(what, done, total)
        now = time.monotonic()
        if now - last >= _LOG_EVERY_S:
            last = now
            context.log.info(f"{what}: {done} of {total}")

    return report
