"""The shape of the results file."""

from typing import TypedDict

from benchmarks.machine import Machine


class Row(TypedDict):
    """One contestant on one set.

    Shares are of all requests, 0 to 1, `wrong_share_of_hits` of those served. `order` tells streams of one set apart, 0 for
    pairs. `delta` is the error budget: what a contestant was given, or what a threshold, which takes none, is measured by;
    `kept` whether the wrong share stayed within it. Pairs have the area under the ROC curve, the share of same-answer pairs that
    is served while at most 1% or 5% of the traps are, and the shares of both served at the contestant's own setting; streams
    have None there. `cpu_ms_per_1k` is CPU milliseconds per 1,000 decisions, embedding apart; None where it was not measured.
    """

    set: str
    kind: str
    order: int
    contestant: str
    encoder: str
    delta: float
    rows: int
    hit_share: float
    wrong_share: float
    wrong_share_of_hits: float
    kept: bool
    auc: float | None
    served_at_1: float | None
    served_at_5: float | None
    same_served: float | None
    traps_served: float | None
    cpu_ms_per_1k: float | None


class Encoder(TypedDict):
    """An encoder as it ran. CPU milliseconds are per 1,000 texts, or per 1,000 pairs read by its verifier."""

    model: str
    backend: str
    texts: int
    cpu_ms_per_1k_texts: float
    cpu_ms_per_1k_pairs: float | None


class Curve(TypedDict):
    """What a contestant does over all its settings: hit share and wrong share of all requests at each."""

    set: str
    contestant: str
    settings: list[float]
    hit_share: list[float]
    wrong_share: list[float]


class Results(TypedDict):
    """The file. `skipped` are sentences: what was left out, and why."""

    machine: Machine
    quick: bool
    seed: int
    skipped: list[str]
    encoders: list[Encoder]
    rows: list[Row]
    curves: list[Curve]
