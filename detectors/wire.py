"""What decoders have in common: an error that names its reason, and a JSON object of anybody."""

from __future__ import annotations

import json
from typing import Any

from ptystream.events import Buffer


class WireError(ValueError):
    """A message that cannot be understood; `reason` names it for the counters."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def json_object(raw: Buffer, limit: int, what: str) -> dict[str, Any]:
    """The JSON object that some bytes hold, `what` for the log. Raises `WireError`: 'oversized' above `limit` bytes,
    'malformed_header' where it is none."""
    view = memoryview(raw).cast("B")
    if view.nbytes > limit:
        raise WireError("oversized", f"{what} of {view.nbytes} bytes; {limit} are allowed")
    try:
        content = json.loads(bytes(view))
    except (ValueError, RecursionError) as error:
        raise WireError("malformed_header", f"{what} is no JSON: {str(error)[:120]}") from error
    if not isinstance(content, dict):
        raise WireError("malformed_header", f"{what} is no JSON object but {content!r:.60}")
    return content
