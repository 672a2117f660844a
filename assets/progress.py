"""Progress of long work: a line in the run log every few seconds, and whoever listens."""

import time
from collections.abc import Callable

import dagster as dg

Listener = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

LISTENERS: list[Listener] = []
"""A headless run adds its progress bars here; assets run in its process."""

_LOG_EVERY_S = 5.0


class Reporter:
    """Progress of one step, which may work on many things one after the other."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._log = context.log
        self._last = time.monotonic()

    def of(self, what: str) -> Callable[[int, int], None]:
        """A progress callback for library code; ``what`` names the work."""

        def report(done: int, total: int) -> None:
            for listener in LISTENERS:
                listener(what, done, total)
            now = time.monotonic()
            if now - self._last >= _LOG_EVERY_S:
                self._last = now
                self._log.info(f"{what}: {done} of {total}")

        return report
