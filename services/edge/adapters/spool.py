"""The spool: usage records as lines of a local file, flushed in batches to the ledger.

`append` is one write(2): a killed process loses nothing, and it costs microseconds. A full segment is closed, sent, and
deleted only when the ledger has all of it; the ledger ignores records that it already has, so a segment may be sent twice.
"""

import asyncio
import errno
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
# Made once: json.dumps would make an encoder for every record.
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class FileSpool:
    """A folder of segments, owned by one process at a time."""

    def __init__(self, folder: Path, ledger: Ledger, flush_s: float, fsync_s: float) -> None:
        self._folder = folder
        self._ledger = ledger
        self._flush_s, self._fsync_s = flush_s, fsync_s
        self._unwritten: list[UsageRecord] = []
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

    def oldest_at(self) -> float | None:
        """When the oldest of them was written, in unix seconds; None where there is none. May be asked by any thread."""
        for path in sorted(self._folder.glob(_SEGMENT)):
            try:
                with path.open("rb") as file:
                    return float(json.loads(file.readline())["ts"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # it was sent meanwhile, is empty or torn
        return None

    def append(self, record: UsageRecord) -> None:
        self._pending += 1
        self._dirty = True
        try:
            self._write(record)
        except OSError as error:
            # A full disk: it waits in memory for the next flush.
            self._unwritten.append(record)
            log.error("spool_write_failed", error=error.strerror, held_in_memory=len(self._unwritten))

    def _write(self, record: UsageRecord) -> None:
        """The whole line or, with OSError, nothing of it."""
        line = _encode(record.to_json()).encode() + b"\n"
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def flush(self) -> None:
        """Sends everything. Raises MeshError when the ledger cannot be reached; the records stay in the spool."""
        async with self._flushing:
            for path in await self._closed_segments():
                await self._send(path)
            while batch := self._unwritten[:BATCH]:
                await self._ledger.write(batch)
                del self._unwritten[: len(batch)]
                self._pending -= len(batch)

    async def _closed_segments(self) -> list[Path]:
        """Segments that nobody writes to any more, oldest first; the current one becomes one of them unless it is empty."""
        segments = sorted(self._folder.glob(_SEGMENT))
        if not os.fstat(self._file).st_size:
            return segments[:-1]
        old = self._file
        try:
            self._number += 1
            self._file = self._open()
        except OSError as error:
            log.error("spool_segment_failed", error=error.strerror)
            return segments[:-1]
        try:
            if self._dirty:
                # Should the ledger be down, this segment stays: then it must outlive the machine, too.
                await asyncio.to_thread(os.fsync, old)
        finally:
            os.close(old)
        return segments

    async def _send(self, path: Path) -> None:
        done = 0
        for batch, lines in _batches(path):
            if batch:
                await self._ledger.write(batch)
            done += lines
        path.unlink()
        self._pending -= done

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
                try:
                    await self._fsync()
                except OSError as error:
                    self._dirty = True
                    log.error("spool_fsync_failed", error=error.strerror)

    async def _fsync(self) -> None:
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


def _batches(path: Path) -> Iterator[tuple[list[UsageRecord], int]]:
    """Records, and how many lines they were read from."""
    batch: list[UsageRecord] = []
    lines = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            lines += 1
            try:
                batch.append(UsageRecord.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                # A line torn by a crash of the machine; the rest of the segment counts.
                log.error("spool_line_unreadable", segment=path.name, line=number, bytes=len(line))
            if lines == BATCH:
                yield batch, lines
                batch, lines = [], 0
    if lines:
        yield batch, lines
