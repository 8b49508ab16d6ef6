"""The SHA-256 of a value: the name of what is made from it."""

import hashlib
import json
from typing import Any


def digest(value: Any, **options: Any) -> str:
    """SHA-256 of a value as JSON, in hex; the order of a mapping's keys does not matter. `options`: `json.dumps`'s."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, **options).encode()).hexdigest()
