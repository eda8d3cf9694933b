"""`llmmesh cache measure`, `llmmesh cache purge` and `llmmesh feedback`."""

import json
import math
import sys

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from llmmesh.cache.v1 import cache_pb2
from llmmesh.edge.v1 import inference_pb2
from llmmesh.edge.v1.inference_pb2_grpc import InferenceServiceStub
from services.cache.domain.budget import wilson
from services.cli.cache.curve import least_rows
from services.cli.cache.target import CALL_TIMEOUT_S, Target, answered, connect
from services.cli.mesh import MeshError
from services.common.channels import open_channel

STALE_SHARE = 0.05
"""Lower bound of stale answers from which their lifetime is too long."""


async def measure(target: Target, *, as_json: bool) -> None:
    """Prints a namespace's record and what to make of it. Raises MeshError."""
    async with connect(target) as doors:
        request = cache_pb2.MeasureRequest(caller=target.caller)
        found = await answered(doors.cache.Measure(request, timeout=CALL_TIMEOUT_S), target.cache)
    if as_json:
        shown = MessageToDict(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        numbers = {name: int(value) if str(value).isdigit() else value for name, value in shown.items()}
        sys.stdout.write(json.dumps({**numbers, "advice": advice(found)}) + "\n")
    else:
        show(found, target, Console())


def show(found: cache_pb2.MeasureResponse, target: Target, console: Console) -> None:
    """The record as a table, and one sentence."""
    table = Table(title=f"{target.tenant}, namespace {target.namespace}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    lookups, low, high = found.lookups, found.wrong_rate_low, found.wrong_rate_high
    table.add_row("exact hits", f"{found.exact_hits:,}", "")
    table.add_row("other lookups", f"{lookups:,}", "questions that were compared with stored ones")
    share = f"{found.semantic_hits / lookups:.1%} of them" if lookups else ""
    table.add_row(
        "semantic hits", f"{found.semantic_hits:,}", f"{share}{', ' if share else ''}{found.alias_hits:,} by alias"
    )
    table.add_row("near misses", f"{found.near_misses:,}", "half the required probability or more")
    table.add_section()
    table.add_row("checked hits", f"{found.checked:,}", f"{found.wrong:,} of them wrong")
    table.add_row("wrong share", f"{low:.2%} – {high:.2%}", "of the other lookups, 95% interval")
    table.add_row("error budget", f"{found.error_budget:.2%}", "")
    table.add_row("state", found.state, f"P {found.threshold:.4f} is required now")
    table.add_section()
    table.add_row("learned", f"{found.learned:,}", f"labels from misses; {found.doubtful:,} comparisons could not tell")
    table.add_row("judged", f"{found.judged:,}", "uncertain pairs put to the judge")
    table.add_row(
        "feedback", f"{found.feedback_right + found.feedback_wrong:,}", f"{found.feedback_wrong:,} said wrong"
    )
    table.add_row("stale", f"{found.stale:,}", f"of {found.stale_checked:,} exact hits that were checked")
    console.print(table)
    console.print(advice(found), highlight=False)


def advice(found: cache_pb2.MeasureResponse) -> str:
    """The most useful thing to do about a record, in a sentence."""
    if not found.lookups + found.exact_hits:
        return "Nothing was asked here yet: `llmmesh warm` stores answers before anybody asks."
    if found.state == "tight":
        return (
            "It has overspent its error budget and serves only what is nearly certain: look for what was wrong with "
            "`llmmesh cache explain`, remove it with `llmmesh cache purge`, and it opens again by itself."
        )
    if wilson(found.stale, found.stale_checked)[0] > STALE_SHARE:
        return (
            "Stored answers age: choose a shorter ttl_class for this namespace, or purge by tag when the facts change."
        )
    if not found.semantic_hits:
        return "No question in other words was answered yet: `llmmesh cache explain` shows for any of them why not."
    if not found.checked:
        return "No semantic hit was checked yet, so the wrong share is unknown: raise shadow_share to know it sooner."
    if found.wrong_rate_high > found.error_budget:
        if found.wrong:
            return "Whether it keeps its error budget is not sure yet: more checks will tell, a higher shadow_share sooner."
        needed = _checks_needed(found)
        return f"None of the checked hits was wrong; about {needed:,} more checks would show that it keeps its error budget."
    if found.near_misses > found.semantic_hits:
        return "More questions nearly hit than do: `llmmesh calibrate` on pairs of yours shows whether the setting can loosen."
    if found.doubtful > found.learned:
        return "Most comparisons of answers cannot tell: learning is slow here, and feedback from callers helps more."
    return "It keeps its error budget; there is nothing to do."


def _checks_needed(found: cache_pb2.MeasureResponse) -> int:
    """Checks without a wrong one that bring the upper bound within the budget."""
    hits = min(1.0, found.semantic_hits / max(1, found.lookups))
    share = min(0.999, found.error_budget / max(hits, 1e-9))
    return max(1, math.ceil(least_rows(share) - found.checked))


async def purge(target: Target, selector: cache_pb2.InvalidateRequest, *, as_json: bool) -> None:
    """Removes answers and prints how many. Raises MeshError."""
    selector.caller.CopyFrom(target.caller)
    async with connect(target) as doors:
        removed = await answered(doors.cache.Invalidate(selector, timeout=CALL_TIMEOUT_S), target.cache)
    if as_json:
        shown = {"removed": removed.removed, "namespace_version": removed.namespace_version}
        sys.stdout.write(json.dumps(shown) + "\n")
        return
    place = f"{target.tenant}'s namespace {target.namespace}"
    if removed.removed < 0:
        said = f"All answers of {place} are out of reach now, and go as they expire."
    elif removed.removed:
        said = f"{removed.removed:,} answer{'s' if removed.removed > 1 else ''} of {place} removed."
    else:
        said = f"Nothing to remove: {place} holds no such answer (any more)."
    Console().print(said, highlight=False)


async def feedback(edge: str, key: str, request_id: str, right: bool, namespace: str) -> None:
    """Passes a word on an answer on. Raises MeshError, also when it did not count."""
    request = inference_pb2.GiveFeedbackRequest(request_id=request_id, right=right, namespace=namespace)
    async with open_channel(edge) as channel:
        call = InferenceServiceStub(channel).GiveFeedback(
            request, metadata=(("authorization", f"Bearer {key}"),), timeout=CALL_TIMEOUT_S
        )
        response = await answered(call, edge)
    if not response.counted:
        raise MeshError(
            f"it did not count: the cache did not answer request {request_id}, or no longer knows it, or was told already"
        )
    said = "right" if right else "wrong, and is not served for this question again"
    Console().print(f"Noted: the answer was {said}.", highlight=False)
