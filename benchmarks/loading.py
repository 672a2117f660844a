"""Loading the code location: what every run and every reload of the UI pays."""

import subprocess
import sys
import time
from collections.abc import Iterator

# As Dagster does, with every job and asset resolved.
_LOAD = "definitions.defs().get_repository_def().load_all_definitions()"
IMPORTS = {
    "import dagster": "import dagster",
    "our definitions": f"import definitions; {_LOAD}",
    "definitions and torch": f"import definitions, torch, transformers; {_LOAD}",
}


def measure() -> Iterator[tuple[str, str, str]]:
    """Rows of (what, seconds, ratio to Dagster alone); the best of three fresh processes."""
    base = None
    for what, code in IMPORTS.items():
        seconds = min(_time(code) for _ in range(3))
        base = base or seconds
        yield what, f"{seconds:.2f} s", f"{seconds / base:.2f}"


def _time(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - started
