"""Files of JSON lines, as vendors' batch APIs send them."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any


async def objects_of(pieces: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any]]:
    """The objects, one a line. A line that is none is passed over: it is nobody's result, also when it is read again."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            if (found := _object(line)) is not None:
                yield found
    if (found := _object(rest)) is not None:
        yield found


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
