"""Who stores what: tenants from one entry to half of all, and the vectors of their questions. The same every time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 384
CENTRES = 2_000
"""Topics that questions gather around."""
SPREAD = 0.9
"""How far questions of a topic are apart, against the distance of topics from the middle."""
SCOPE_ENTRIES = 200
"""Entries of a scope of typical size: one assistant with one set of documents."""
WHOLE = "whole"

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tenant:
    """`first` is the number of its first entry; the others follow."""

    name: str
    first: int
    entries: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored question. It is in a scope of typical size and in one that holds all of the tenant's entries."""

    number: int
    tenant: str
    scopes: tuple[bytes, bytes]

    @property
    def entry_id(self) -> str:
        """Hexadecimal, as the cache makes them: 64 digits."""
        return f"{self.number:032x}{'0' * 32}"


def tenants(entries: int, count: int) -> list[Tenant]:
    """`count` tenants, 3 at the least: one with half of all entries, one with a single entry, the rest by Zipf's law."""
    largest = entries // 2
    left = entries - largest - 1
    if count < 3 or left < count - 2:
        raise ValueError(f"{entries} entries are too few for {count} tenants")
    weights = 1 / np.arange(1, count - 1)
    sizes = 1 + np.floor(weights / weights.sum() * (left - (count - 2))).astype(int)
    sizes[0] += left - sizes.sum()
    made: list[Tenant] = []
    first = 0
    for number, size in enumerate([largest, *sizes.tolist(), 1]):
        made.append(Tenant(f"tenant-{number}", first, size))
        first += size
    return made


def entry(tenant: Tenant, number: int) -> Entry:
    """The entry of that number, which the tenant must have."""
    part = (number - tenant.first) // SCOPE_ENTRIES
    return Entry(number, tenant.name, (scope(tenant, str(part)), scope(tenant, WHOLE)))


def scope(tenant: Tenant, part: str) -> bytes:
    """The 32 bytes of a scope."""
    return f"{tenant.name}/{part}".encode().ljust(32, b".")[-32:]


def vectors(first: int, count: int) -> Vectors:
    """Unit vectors of the entries from `first` on, (count, DIMENSIONS): the same whatever block they are asked for in."""
    rows = np.stack([_vector(number) for number in range(first, first + count)])
    unit: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def nearby(vector: Vectors, number: int, distance: float = 0.35) -> Vectors:
    """A paraphrase: a unit vector in a random direction from `vector`, with a cosine of about 1 / sqrt(1 + distance²)."""
    noise = np.random.default_rng((1, number)).normal(size=vector.shape).astype(np.float32)
    moved = vector + distance * noise / np.linalg.norm(noise)
    unit: Vectors = moved / np.linalg.norm(moved)
    return unit


def blocks(whole: Sequence[Tenant], size: int) -> Iterator[list[Entry]]:
    """All entries in blocks, in an order that mixes the tenants."""
    count = sum(tenant.entries for tenant in whole)
    starts = np.array([tenant.first for tenant in whole])
    order = np.random.default_rng(2).permutation(count)
    for at in range(0, count, size):
        numbers = order[at : at + size]
        owners = np.searchsorted(starts, numbers, side="right") - 1
        yield [entry(whole[owner], int(number)) for owner, number in zip(owners, numbers, strict=True)]


@cache
def _centres() -> Vectors:
    return np.random.default_rng(0).normal(size=(CENTRES, DIMENSIONS)).astype(np.float32)


def _vector(number: int) -> Vectors:
    chance = np.random.default_rng((0, number))
    centre = _centres()[chance.integers(CENTRES)]
    row: Vectors = centre + SPREAD * chance.normal(size=DIMENSIONS).astype(np.float32)
    return row
