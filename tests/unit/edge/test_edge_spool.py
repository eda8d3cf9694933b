"""The spool on real files: nothing that was acknowledged is lost, and nothing is counted twice."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.errors import NotReady
from services.common.money import Bill, CostItem, Usage
from services.common.yaml_file import ConfigError
from services.edge.adapters import spool as spool_module
from services.edge.adapters.spool import FileSpool
from services.edge.domain.ledger import UsageRecord
from tests.waiting import until

ROOT = Path(__file__).parents[3]


def record(number: int, text: str = "") -> UsageRecord:
    return UsageRecord(
        f"record-{number}",
        f"request-{number}",
        1_700_000_000.0,
        "acme",
        "default",
        "faq",
        text,
        "gpt-4o",
        "medium",
        "miss",
        Usage(10, 5),
        Bill(number, number, items=(CostItem("provider", "gpt-4o", number),)),
    )


class MemoryLedger:
    """Like the real one: a record that is there already changes nothing."""

    def __init__(self) -> None:
        self.records: dict[str, UsageRecord] = {}
        self.down = False
        self.down_after: int | None = None
        self.writes = 0

    async def write(self, records: list[UsageRecord]) -> None:
        if self.down or (self.down_after is not None and self.writes >= self.down_after):
            raise NotReady("redis: ConnectionError")
        self.writes += 1
        for one in records:
            self.records.setdefault(one.record_id, one)


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


def open_spool(folder: Path, ledger: MemoryLedger) -> FileSpool:
    """A spool that flushes only when told to."""
    return FileSpool(folder, ledger, flush_s=3600, fsync_s=3600)


def lines(folder: Path) -> list[bytes]:
    return [line for path in sorted(folder.glob("segment-*")) for line in path.read_bytes().splitlines()]


async def test_records_reach_the_ledger_and_leave_the_disk(tmp_path, ledger):
    async with open_spool(tmp_path, ledger) as spool:
        for number in range(450):
            spool.append(record(number))
        assert spool.pending == 450
        assert len(lines(tmp_path)) == 450
        await spool.flush()
        assert spool.pending == 0
        assert lines(tmp_path) == []
    assert sorted(r.bill.actual for r in ledger.records.values()) == list(range(450))


async def test_flushing_nothing_does_nothing(tmp_path, ledger):
    async with open_spool(tmp_path, ledger) as spool:
        for _ in range(5):
            await spool.flush()
        assert ledger.writes == 0
        assert len(list(tmp_path.glob("segment-*"))) == 1


async def test_it_flushes_by_itself(tmp_path, ledger):
    async with FileSpool(tmp_path, ledger, flush_s=0.01, fsync_s=0.01) as spool:
        spool.append(record(1))
        await until(lambda: not spool.pending)
    assert set(ledger.records) == {"record-1"}


async def test_an_outage_of_the_ledger_is_carried_over(tmp_path, ledger):
    ledger.down = True
    async with FileSpool(tmp_path, ledger, flush_s=0.01, fsync_s=0.01) as spool:
        for number in range(30):
            spool.append(record(number))
            if number % 10 == 0:
                with pytest.raises(NotReady):
                    await spool.flush()
        assert spool.pending == 30
        ledger.down = False
        await until(lambda: not spool.pending)
    assert len(ledger.records) == 30


async def test_an_outage_in_the_middle_of_a_segment_sends_it_again_and_counts_it_once(tmp_path, ledger):
    async with open_spool(tmp_path, ledger) as spool:
        for number in range(500):
            spool.append(record(number))
        ledger.down_after = 1
        with pytest.raises(NotReady):
            await spool.flush()
        assert len(ledger.records) == 200
        assert spool.pending == 500
        ledger.down_after = None
        await spool.flush()
        assert (spool.pending, len(ledger.records)) == (0, 500)


async def test_what_an_earlier_process_left_is_sent_by_the_next(tmp_path, ledger):
    ledger.down = True
    async with open_spool(tmp_path, ledger) as spool:
        spool.append(record(1))
        with pytest.raises(NotReady):
            await spool.flush()
        spool.append(record(2))
    ledger.down = False
    async with open_spool(tmp_path, ledger) as spool:
        assert spool.pending == 2
        spool.append(record(3))
        await spool.flush()
        assert spool.pending == 0
    assert set(ledger.records) == {"record-1", "record-2", "record-3"}


async def test_stopping_flushes(tmp_path, ledger):
    async with open_spool(tmp_path, ledger) as spool:
        spool.append(record(1))
    assert set(ledger.records) == {"record-1"}


async def test_a_killed_process_loses_no_acknowledged_record(tmp_path, ledger):
    child = subprocess.Popen(  # noqa: ASYNC220 - it runs until we kill it
        [sys.executable, "-m", "tests.unit.edge.appender", str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(500)]
    child.kill()
    acknowledged += [int(line) for line in child.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    child.stdout.close()
    assert child.wait() == -9
    async with open_spool(tmp_path, ledger) as spool:
        await spool.flush()
        assert spool.pending == 0
    kept = {int(name.removeprefix("record-")) for name in ledger.records}
    assert set(acknowledged) <= kept
    # One may have been written and not acknowledged: between write(2) and the acknowledgement.
    assert len(kept) - len(acknowledged) <= 1


@pytest.mark.parametrize("keep", [1, 20, -2, "inside a character"])
async def test_a_torn_last_line_costs_that_line_only(tmp_path, ledger, keep):
    ledger.down = True
    async with open_spool(tmp_path, ledger) as spool:
        for number in range(5):
            spool.append(record(number, "ñandú"))
    (segment,) = (path for path in tmp_path.glob("segment-*") if path.stat().st_size)
    content = segment.read_bytes()
    last = content.rindex(b"\n", 0, -1) + 1
    cut = content.index("ñ".encode(), last) + 1 if isinstance(keep, str) else last + keep if keep > 0 else keep
    segment.write_bytes(content[:cut])
    ledger.down = False
    async with open_spool(tmp_path, ledger) as spool:
        spool.append(record(9))
        await spool.flush()
        assert spool.pending == 0
    assert set(ledger.records) == {f"record-{n}" for n in (0, 1, 2, 3, 9)}


async def test_garbage_in_a_segment_does_not_hold_up_the_rest(tmp_path, ledger):
    (tmp_path / "segment-000000000007.jsonl").write_bytes(b"\xff\xfe\x00\n[]\n5\n\n{}\n" + b"x" * 10_000)
    async with open_spool(tmp_path, ledger) as spool:
        spool.append(record(1))
        await spool.flush()
        assert spool.pending == 0
    assert set(ledger.records) == {"record-1"}


async def test_a_folder_has_one_owner(tmp_path, ledger):
    async with open_spool(tmp_path, ledger):
        with pytest.raises(ConfigError, match="another edge writes its records here"):
            open_spool(tmp_path, ledger)
    async with open_spool(tmp_path, ledger):
        pass


def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path, ledger):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="writable folder"):
        open_spool(tmp_path / "file" / "spool", ledger)


def test_segments_are_for_the_owner_only(tmp_path, ledger):
    spool = open_spool(tmp_path / "spool", ledger)
    spool.append(record(1))
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "spool").iterdir()} == {0o600}
    os.close(spool._file)
    os.close(spool._lock)


class FullDisk:
    """os with a disk that takes `room` more bytes; a write that does not fit is cut short or refused."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __getattr__(self, name: str):
        return getattr(os, name)

    def write(self, file: int, data: bytes) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = os.write(file, data[: self.room])
        self.room -= written
        return written

    def open(self, path: Path, flags: int, mode: int) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.open(path, flags, mode)


@pytest.mark.parametrize("room", [0, 1, 150, 700])
async def test_a_full_disk_loses_nothing_while_the_ledger_is_there(tmp_path, ledger, monkeypatch, room):
    async with open_spool(tmp_path, ledger) as spool:
        monkeypatch.setattr(spool_module, "os", FullDisk(room))
        for number in range(10):
            spool.append(record(number))
        # No half line is left behind.
        assert all(line.startswith(b"{") and line.endswith(b"}") for line in lines(tmp_path))
        await spool.flush()
        monkeypatch.undo()
        await spool.flush()
        assert spool.pending == 0
    assert len(ledger.records) == 10


async def test_a_full_disk_and_no_ledger_hold_records_in_memory(tmp_path, ledger, monkeypatch):
    async with open_spool(tmp_path, ledger) as spool:
        monkeypatch.setattr(spool_module, "os", FullDisk(0))
        ledger.down = True
        for number in range(10):
            spool.append(record(number))
        with pytest.raises(NotReady):
            await spool.flush()
        monkeypatch.undo()
        assert spool.pending == 10
        ledger.down = False
        await spool.flush()
        assert spool.pending == 0
    assert len(ledger.records) == 10


async def test_a_bug_in_a_flush_does_not_end_the_flushing(tmp_path, ledger, monkeypatch):
    real = ledger.write
    failures = [ValueError("bug"), OSError("disk")]

    async def write(records):
        if failures:
            raise failures.pop()
        await real(records)

    monkeypatch.setattr(ledger, "write", write)
    async with FileSpool(tmp_path, ledger, flush_s=0.01, fsync_s=0.01) as spool:
        spool.append(record(1))
        await until(lambda: not spool.pending)
    assert set(ledger.records) == {"record-1"}
