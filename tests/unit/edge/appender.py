"""A process that appends records for ever and acknowledges each on stdout; it is killed by the test that starts it."""

import sys
from pathlib import Path

from services.edge.adapters.spool import FileSpool
from tests.unit.edge.test_edge_spool import MemoryLedger, record


def main() -> None:
    spool = FileSpool(Path(sys.argv[1]), MemoryLedger(), flush_s=60, fsync_s=60)
    number = 0
    while True:
        spool.append(record(number))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        number += 1


if __name__ == "__main__":
    main()
