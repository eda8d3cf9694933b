"""The spool: usage records as lines of a local file, flushed in batches to the ledger.

`append` is one write(2): a killed process loses nothing, and it costs microseconds. A full segment is closed, sent, and
deleted only when the ledger has all of it; the ledger ignores records that it already has, so a segment may be sent twice.
"""

import asyncio
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import structlog

from services.common.errors import MeshError
from services.common.yaml_file import ConfigError
from services.edge.domain.ledger import Ledger, UsageRecord

log = structlog.get_logger()

BATCH = 200
_SEGMENT = "segment-*.jsonl"


class FileSpool:
    """A folder of segments, owned by one process at a time."""

    def __init__(self, folder: Path, ledger: Ledger, flush_s: float, fsync_s: float) -> None:
        self._folder = folder
        self._ledger = ledger
        self._flush_s, self._fsync_s = flush_s, fsync_s
        self._unwritten: list[bytes] = []
        self._pending = 0
        self._dirty = False
        self._tasks: list[asyncio.Task[None]] = []
        self._flushing = asyncio.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: another edge writes its records here; give each replica a folder") from None
        except OSError as error:
            raise ConfigError(f"{folder}: {error.strerror}: the spool needs a writable folder") from None
        left = sorted(folder.glob(_SEGMENT))
        self._pending = sum(_count_lines(path) for path in left)
        self._number = int(left[-1].stem.split("-")[1]) + 1 if left else 0
        self._file = self._open()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._flush_forever()), asyncio.create_task(self._fsync_forever())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        with suppress(MeshError):
            await self.flush()
        os.fsync(self._file)
        os.close(self._file)
        os.close(self._lock)

    @property
    def pending(self) -> int:
        """Records that the ledger does not have yet."""
        return self._pending

    def append(self, record: UsageRecord) -> None:
        line = json.dumps(record.to_json(), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        self._pending += 1
        self._dirty = True
        try:
            os.write(self._file, line)
        except OSError as error:
            # A full disk: keep it in memory and try again with the next flush.
            self._unwritten.append(line)
            log.error("spool_write_failed", error=error.strerror, held_in_memory=len(self._unwritten))

    async def flush(self) -> None:
        """Sends everything. Raises MeshError when the ledger cannot be reached; the records stay in the spool."""
        async with self._flushing:
            self._retry_unwritten()
            segments = sorted(self._folder.glob(_SEGMENT))
            if segments and segments[-1].stat().st_size:
                old = self._file
                self._number += 1
                self._file = self._open()
                os.close(old)
            else:
                segments = segments[:-1]
            for path in segments:
                await self._send(path)

    def _retry_unwritten(self) -> None:
        while self._unwritten:
            try:
                os.write(self._file, self._unwritten[0])
            except OSError:
                return
            self._unwritten.pop(0)

    async def _send(self, path: Path) -> None:
        sent = 0
        for batch in _batches(path):
            await self._ledger.write(batch)
            sent += len(batch)
        path.unlink()
        self._pending = max(self._pending - sent, 0)

    async def _flush_forever(self) -> None:
        down = False
        while True:
            await asyncio.sleep(self._flush_s)
            try:
                await self.flush()
                if down:
                    log.info("spool_flushed", pending=self._pending)
                down = False
            except MeshError as error:
                if not down:
                    log.warning("ledger_unreachable", pending=self._pending, error=error.message)
                down = True
            except Exception:
                log.exception("flush_failed", pending=self._pending)

    async def _fsync_forever(self) -> None:
        while True:
            await asyncio.sleep(self._fsync_s)
            if self._dirty:
                self._dirty = False
                # A duplicate, since a flush may close the segment meanwhile.
                copy = os.dup(self._file)
                try:
                    await asyncio.to_thread(os.fsync, copy)
                finally:
                    os.close(copy)

    def _open(self) -> int:
        path = self._folder / f"segment-{self._number:012d}.jsonl"
        return os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _batches(path: Path) -> Iterator[list[UsageRecord]]:
    batch: list[UsageRecord] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                batch.append(UsageRecord.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                # A line torn by a crash of the machine; the rest of the segment counts.
                log.error("spool_line_unreadable", segment=path.name, line=number, bytes=len(line))
            if len(batch) == BATCH:
                yield batch
                batch = []
    if batch:
        yield batch
