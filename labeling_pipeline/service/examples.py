"""Answers that the OpenAPI document shows: what the embedded models said of a drawn scene."""

import json
from pathlib import Path
from typing import Any

EXAMPLES: dict[str, Any] = json.loads(
    Path(__file__).with_name("examples.json").read_text(encoding="utf-8")
)
"""Endpoint -> its answer."""
