"""A vendor on loopback that behaves like Anthropic's Message Batches API on the wire."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.vendors.batches import BatchScript, LikeBatch, garbled, user_text
from tests.vendors.http import Connection, HttpServer, json_response, response

USAGE = {"input_tokens": 900, "output_tokens": 100, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 0}


class AnthropicBatchLike(HttpServer):
    """The vendor. `batches` are all that it ever took; the next `cut_files` results break off."""

    def __init__(self, api_key: str) -> None:
        super().__init__()
        self.batches: list[LikeBatch] = []
        self.usual = BatchScript()
        self.usage: Mapping[str, Any] = USAGE
        self.page_size = 2
        self.cut_files = 0
        self._api_key = api_key
        self._scripts: deque[BatchScript] = deque()

    def next_batch(self, *scripts: BatchScript) -> None:
        """How the next batches go; afterwards `usual` holds again."""
        self._scripts.extend(scripts)

    @property
    def bodies(self) -> list[tuple[str, dict[str, Any]]]:
        """(user text, params) of every item that was ever submitted."""
        return [(user_text(params), params) for batch in self.batches for params in batch.items.values()]

    def handle(self, connection: Connection, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        parts = urlsplit(path)
        steps = parts.path.removeprefix("/v1/messages/").split("/")
        if self._api_key not in (headers.get("x-api-key"), headers.get("authorization", "").removeprefix("Bearer ")):
            connection.send(_error(401, "authentication_error"))
            return
        batch = self._find(steps[1]) if len(steps) > 1 else None
        match (method, *steps):
            case ("POST", "batches"):
                self._create(connection, json.loads(body))
            case ("GET", "batches"):
                after = parse_qs(parts.query).get("after_id", [""])[0]
                connection.send(json_response(200, self._list(after)))
            case ("GET", "batches", _) if batch is not None:
                batch.polls += 1
                connection.send(json_response(200, self._seen(batch)))
            case ("GET", "batches", _, "results") if batch is not None and batch.over:
                lines = [
                    garbled(batch.script, user_text(params), json.dumps({"custom_id": name, "result": result}))
                    for name, params in batch.items.items()
                    for result in _results(batch, name, params, self.usage)
                ]
                whole = response(200, "application/x-jsonl", ("\n".join(lines) + "\n").encode())
                if self.cut_files:
                    self.cut_files -= 1
                    connection.send_slowly([whole[:-30]], then="drop")
                else:
                    connection.send(whole)
            case ("POST", "batches", _, "cancel") if batch is not None:
                if batch.over:
                    connection.send(_error(400, "invalid_request_error"))
                else:
                    batch.cancelled = True
                    connection.send(json_response(200, self._seen(batch)))
            case _:
                connection.send(_error(404, "not_found_error"))

    def _create(self, connection: Connection, request: dict[str, Any]) -> None:
        items = {entry["custom_id"]: entry["params"] for entry in request["requests"]}
        assert len(items) == len(request["requests"])
        assert all(len(name) <= 64 and name.replace("-", "").replace("_", "").isalnum() for name in items)
        script = self._scripts.popleft() if self._scripts else self.usual
        batch = LikeBatch(f"msgbatch_{len(self.batches)}", script, items, int(time.time()), {})
        self.batches.append(batch)
        if script.lost:
            connection.abort()
        else:
            connection.send(json_response(200, self._seen(batch)))

    def _find(self, batch_id: str) -> LikeBatch | None:
        return next((batch for batch in self.batches if batch.id == batch_id), None)

    def _list(self, after: str) -> dict[str, Any]:
        newest = self.batches[::-1]
        start = next((i + 1 for i, batch in enumerate(newest) if batch.id == after), 0)
        page = newest[start : start + self.page_size]
        return {
            "data": [self._seen(batch) for batch in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": start + len(page) < len(newest),
        }

    def _seen(self, batch: LikeBatch) -> dict[str, Any]:
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        kinds = {"errored": batch.script.errors, "expired": batch.script.undone}
        for params in batch.items.values():
            text = user_text(params)
            kind = next((kind for kind, texts in kinds.items() if text in texts), "succeeded")
            if kind == "expired" and batch.cancelled:
                kind = "canceled"
            counts[kind if batch.over else "processing"] += 1
        created = datetime.fromtimestamp(batch.created_at, UTC)
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if batch.over else "in_progress",
            "request_counts": counts,
            "created_at": created.isoformat(),
            "expires_at": created.isoformat(),
            "ended_at": created.isoformat() if batch.over else None,
            "results_url": f"{self.url}/v1/messages/batches/{batch.id}/results" if batch.over else None,
        }


def _results(batch: LikeBatch, name: str, params: dict[str, Any], usage: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    script, text = batch.script, user_text(params)
    if text in script.missing:
        return
    if text in script.undone:
        yield {"type": "canceled" if batch.cancelled else "expired"}
        return
    if text in script.errors:
        _, kind = script.errors[text]
        yield {"type": "errored", "error": {"type": "error", "error": {"type": kind, "message": f"about {text}"}}}
        return
    message = {
        "id": f"msg_{name}",
        "type": "message",
        "role": "assistant",
        "model": params["model"],
        "content": "none" if text in script.nonsense else [{"type": "text", "text": f"About {text}"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {} if text in script.no_usage else dict(usage),
    }
    for _ in range(2 if text in script.twice else 1):
        yield {"type": "succeeded", "message": message}


def _error(status: int, kind: str) -> bytes:
    return json_response(status, {"type": "error", "error": {"type": kind, "message": "No."}})
