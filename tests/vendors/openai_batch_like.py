"""A vendor on loopback that behaves like OpenAI on the wire, its Files and Batch APIs included."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.vendors.batches import BatchScript, LikeBatch, garbled, user_text
from tests.vendors.http import Connection, json_response, response
from tests.vendors.openai_like import OpenAILike

TOKENS = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}


class OpenAIBatchLike(OpenAILike):
    """The vendor. `batches` are all that it ever took; the next `cut_files` downloads break off."""

    def __init__(self, api_key: str | None = None) -> None:
        super().__init__(api_key)
        self.files: dict[str, bytes] = {}
        self.batches: list[LikeBatch] = []
        self.usual = BatchScript()
        self.usage: Mapping[str, Any] = TOKENS
        self.refusals: deque[tuple[int, Mapping[str, str]]] = deque()
        self.page_size = 2
        self.cut_files = 0
        self._scripts: deque[BatchScript] = deque()

    def next_batch(self, *scripts: BatchScript) -> None:
        """How the next batches go; afterwards `usual` holds again."""
        self._scripts.extend(scripts)

    @property
    def bodies(self) -> list[tuple[str, dict[str, Any]]]:
        """(user text, body) of every item that was ever submitted."""
        return [(user_text(body), body) for batch in self.batches for body in batch.items.values()]

    def handle(self, connection: Connection, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        parts = urlsplit(path)
        steps = parts.path.removeprefix("/v1/").split("/")
        if steps[0] not in ("files", "batches") or headers.get("authorization") != f"Bearer {self._api_key}":
            super().handle(connection, method, path, headers, body)
            return
        if self.refusals and method == "POST" and steps == ["batches"]:
            status, more = self.refusals.popleft()
            connection.send(json_response(status, {"error": {"message": "no", "code": "scripted"}}, more))
            return
        match (method, *steps):
            case ("POST", "files"):
                connection.send(json_response(200, self._upload(headers["content-type"], body)))
            case ("GET", "files", file_id, "content") if file_id in self.files:
                whole = response(200, "application/octet-stream", self.files[file_id])
                if self.cut_files:
                    self.cut_files -= 1
                    connection.send_slowly([whole[:-30]], then="drop")
                else:
                    connection.send(whole)
            case ("POST", "batches"):
                self._create(connection, json.loads(body))
            case ("GET", "batches"):
                query = parse_qs(parts.query)
                connection.send(json_response(200, self._list(query.get("after", [""])[0])))
            case ("GET", "batches", batch_id) if (batch := self._find(batch_id)) is not None:
                batch.polls += 1
                connection.send(json_response(200, self._seen(batch)))
            case ("POST", "batches", batch_id, "cancel") if (batch := self._find(batch_id)) is not None:
                if batch.over:
                    connection.send(json_response(409, {"error": {"message": "it has ended", "code": "conflict"}}))
                else:
                    batch.cancelled = True
                    connection.send(json_response(200, self._seen(batch)))
            case _:
                connection.send(json_response(404, {"error": {"message": "No such thing", "code": "not_found"}}))

    def _upload(self, content_type: str, body: bytes) -> dict[str, Any]:
        boundary = content_type.partition("boundary=")[2].strip('"').encode()
        fields = {}
        for part in body.split(b"--" + boundary)[1:-1]:
            head, _, content = part.partition(b"\r\n\r\n")
            name = head.partition(b'name="')[2].partition(b'"')[0].decode()
            fields[name] = content.removesuffix(b"\r\n")
        assert fields["purpose"] == b"batch"
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = fields["file"]
        return {"id": file_id, "object": "file", "bytes": len(fields["file"]), "purpose": "batch", "created_at": 1}

    def _create(self, connection: Connection, request: dict[str, Any]) -> None:
        assert request["completion_window"] == "24h"
        assert request["endpoint"] == "/v1/chat/completions"
        lines = [json.loads(line) for line in self.files[request["input_file_id"]].splitlines()]
        assert all(line["method"] == "POST" and line["url"] == "/v1/chat/completions" for line in lines)
        items = {line["custom_id"]: line["body"] for line in lines}
        assert len(items) == len(lines)
        script = self._scripts.popleft() if self._scripts else self.usual
        batch = LikeBatch(f"batch_{len(self.batches)}", script, items, int(time.time()), request.get("metadata") or {})
        batch.file_id = request["input_file_id"]
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
            "object": "list",
            "data": [self._seen(batch) for batch in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": start + len(page) < len(newest),
        }

    def _seen(self, batch: LikeBatch) -> dict[str, Any]:
        seen: dict[str, Any] = {
            "id": batch.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": batch.file_id,
            "completion_window": "24h",
            "status": batch.status,
            "created_at": batch.created_at,
            "metadata": dict(batch.marker),
            "request_counts": {"total": len(batch.items), "completed": 0, "failed": 0},
        }
        if not batch.over:
            return seen
        if batch.status == "failed":
            data = [
                {"code": "invalid_request", "message": "bad", "line": number, "param": None}
                for number, body in enumerate(batch.items.values(), 1)
                if user_text(body) in batch.script.refused
            ]
            seen["errors"] = {"object": "list", "data": data}
            return seen
        good, bad = [], []
        for custom_id, body in batch.items.items():
            for line in self._lines(batch, custom_id, body):
                (bad if line.get("error") or line["response"]["status_code"] != 200 else good).append(line)
        for kind, lines in (("output", good), ("error", bad)):
            if lines:
                file_id = f"file-{kind}-{batch.id}"
                texts = [user_text(batch.items[line["custom_id"]]) for line in lines]
                shown = [garbled(batch.script, text, json.dumps(line)) for text, line in zip(texts, lines, strict=True)]
                self.files[file_id] = "\n".join(shown).encode() + b"\n"
                seen[f"{kind}_file_id"] = file_id
        seen["request_counts"] |= {"completed": len(good), "failed": len(bad)}
        return seen

    def _lines(self, batch: LikeBatch, custom_id: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        script, text = batch.script, user_text(body)
        line: dict[str, Any] = {"id": f"r-{custom_id}", "custom_id": custom_id, "response": None, "error": None}
        if text in script.missing:
            return
        if text in script.undone:
            code = "batch_cancelled" if batch.status == "cancelled" else "batch_expired"
            yield line | {"error": {"code": code, "message": "This request could not be executed."}}
            return
        if text in script.errors:
            status, code = script.errors[text]
            said = {"error": {"message": f"about {text}", "type": "invalid_request_error", "code": code}}
            yield line | {"response": {"status_code": status, "request_id": "q", "body": said}}
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": f"About {text}"}, "finish_reason": "stop"}
        answer: dict[str, Any] = {
            "id": f"chatcmpl-{custom_id}",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [] if text in script.nonsense else [choice],
        }
        if text not in script.no_usage:
            answer["usage"] = dict(self.usage)
        for _ in range(2 if text in script.twice else 1):
            yield line | {"response": {"status_code": 200, "request_id": "q", "body": answer}}
