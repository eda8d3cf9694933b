"""What the key commands do: calls, and what is printed.

The secret of a new key goes to standard output, alone; what is said about it goes to standard error.
"""

import json
import re
import sys
from datetime import UTC, datetime
from typing import TypedDict

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmmesh.edge.v1 import keys_pb2
from services.cli.keys.door import Door
from services.cli.mesh import MeshError

TIMEOUT_S = 10.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_SPAN = re.compile(r"(\d{1,9})([smhdw])")


class KeyJson(TypedDict):
    """A key in `--json`. Times are ISO 8601, UTC; null where there is none. `status`: active, ending, expired, revoked."""

    id: str
    tenant: str
    name: str
    scopes: list[str]
    requests_per_minute: int | None
    created_at: str | None
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    hint: str
    status: str


def span_of(text: str) -> Duration:
    """A span of time such as 90d, 24h, 30m, 45s, 2w or 0. Raises MeshError."""
    match = _SPAN.fullmatch(text)
    if match is None and text != "0":
        raise MeshError(f"{text!r} is no span of time: write 45s, 30m, 24h, 90d or 2w")
    return Duration(seconds=int(match[1]) * _UNITS[match[2]] if match else 0)


async def create(door: Door, request: keys_pb2.CreateKeyRequest, *, as_json: bool) -> None:
    """Makes a key. Raises MeshError."""
    made = await door.answered(door.stub.CreateKey(request, metadata=door.metadata, timeout=TIMEOUT_S))
    if as_json:
        _write({"secret": made.secret, "key": _json(made.key)})
        return
    key = made.key
    console = Console(stderr=True)
    _say(console, f"[green]✓[/green] Made [bold]{key.id}[/bold] for tenant {key.tenant}: {_rights(key)}{_until(key)}.")
    _show_secret(console, made.secret)


async def rotate(door: Door, request: keys_pb2.RotateKeyRequest, *, as_json: bool) -> None:
    """Makes a key that takes another's place. Raises MeshError."""
    made = await door.answered(door.stub.RotateKey(request, metadata=door.metadata, timeout=TIMEOUT_S))
    if as_json:
        _write({"secret": made.secret, "key": _json(made.key), "old": _json(made.old)})
        return
    console = Console(stderr=True)
    _say(console, f"[green]✓[/green] Made [bold]{made.key.id}[/bold] in place of {made.old.id}: {_rights(made.key)}.")
    if status_of(made.old) == "ending":
        _say(console, f"  The old key works until {_time(made.old.expires_at)}: give callers the new one before.")
    else:
        _say(console, "  The old key works no more.")
    _show_secret(console, made.secret)


async def revoke(door: Door, key_id: str, *, as_json: bool) -> None:
    """Ends a key. Raises MeshError."""
    request = keys_pb2.RevokeKeyRequest(id=key_id)
    done = await door.answered(door.stub.RevokeKey(request, metadata=door.metadata, timeout=TIMEOUT_S))
    if as_json:
        _write({"key": _json(done.key)})
        return
    _say(
        Console(),
        f"[green]✓[/green] Revoked [bold]{done.key.id}[/bold] of tenant {done.key.tenant}. All replicas refuse it within "
        "two seconds.",
    )


async def listing(door: Door, tenant: str, *, as_json: bool) -> None:
    """Prints the keys. Raises MeshError."""
    request = keys_pb2.ListKeysRequest(tenant=tenant)
    keys = (await door.answered(door.stub.ListKeys(request, metadata=door.metadata, timeout=TIMEOUT_S))).keys
    if as_json:
        _write([_json(key) for key in keys])
        return
    console = Console()
    if not keys:
        whose = f"Tenant {tenant} has no keys" if tenant else "There are no keys"
        _say(console, f"{whose}. `llmmesh keys create TENANT` makes one.")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("id", "tenant", "name", "begins", "scopes"):
        table.add_column(name, overflow="fold", no_wrap=name == "id")
    table.add_column("per minute", justify="right")
    for name in ("created", "last used", "status"):
        table.add_column(name)
    for key in keys:
        table.add_row(
            key.id,
            escape(key.tenant),
            escape(key.name) or "-",
            f"{escape(key.hint)}…" if key.hint else "-",
            " ".join(key.scopes),
            f"{key.requests_per_minute:,}" if key.requests_per_minute else "-",
            _time(key.created_at) if key.HasField("created_at") else "in the file",
            _time(key.last_used_at) if key.HasField("last_used_at") else "-",
            _STATUS[status_of(key)].format(at=_time(_end(key))),
        )
    console.print(table)


_STATUS = {
    "active": "[green]active[/green]",
    "ending": "[yellow]until {at}[/yellow]",
    "expired": "[dim]expired {at}[/dim]",
    "revoked": "[red]revoked {at}[/red]",
}


def status_of(key: keys_pb2.Key) -> str:
    """active, ending (works, but not for good), expired or revoked."""
    if key.HasField("revoked_at"):
        return "revoked"
    if not key.HasField("expires_at"):
        return "active"
    return "ending" if datetime.now(UTC).timestamp() < key.expires_at.ToMilliseconds() / 1000 else "expired"


def _end(key: keys_pb2.Key) -> Timestamp:
    return key.revoked_at if key.HasField("revoked_at") else key.expires_at


def _rights(key: keys_pb2.Key) -> str:
    limit = f", {key.requests_per_minute:,} requests per minute" if key.requests_per_minute else ""
    return f"{' and '.join(key.scopes)}{limit}"


def _until(key: keys_pb2.Key) -> str:
    return f", until {_time(key.expires_at)}" if key.HasField("expires_at") else ""


def _time(stamp: Timestamp) -> str:
    return f"{stamp.ToDatetime():%Y-%m-%d %H:%M}"


def _show_secret(console: Console, secret: str) -> None:
    _say(console, "[yellow]The key itself is shown now and never again; put it where your secrets are:[/yellow]\n")
    sys.stdout.write(secret + "\n")
    sys.stdout.flush()
    _say(console, "\nCallers send it as `authorization: Bearer <key>`.")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _json(key: keys_pb2.Key) -> KeyJson:
    def time(name: str) -> str | None:
        return getattr(key, name).ToJsonString() if key.HasField(name) else None  # type: ignore[arg-type] # one of the four

    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "scopes": list(key.scopes),
        "requests_per_minute": key.requests_per_minute or None,
        "created_at": time("created_at"),
        "expires_at": time("expires_at"),
        "revoked_at": time("revoked_at"),
        "last_used_at": time("last_used_at"),
        "hint": key.hint,
        "status": status_of(key),
    }


def _write(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
