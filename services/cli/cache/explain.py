"""`llmmesh cache explain`: what the cache would do with a question, and why."""

import json
import sys

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmmesh.cache.v1 import cache_pb2
from services.cli.cache.target import CALL_TIMEOUT_S, MAX_EMBED_BYTES, Asked, Doors, Target, answered, connect

OUTCOMES = {
    cache_pb2.OUTCOME_MISS: "miss",
    cache_pb2.OUTCOME_EXACT_HIT: "exact hit",
    cache_pb2.OUTCOME_SEMANTIC_HIT: "semantic hit",
}
BY_SIMILARITY = frozenset({"below_threshold", "no_threshold"})


async def explain(target: Target, asked: Asked, question: str, *, as_json: bool) -> None:
    """Prints the candidates and the decision. Raises MeshError."""
    async with connect(target) as doors:
        response, note = await ask(doors, asked, question)
    if as_json:
        shown = MessageToDict(response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        sys.stdout.write(json.dumps({**shown, "note": note}, ensure_ascii=False) + "\n")
    else:
        show(response, note, Console())


async def ask(doors: Doors, asked: Asked, question: str) -> tuple[cache_pb2.ExplainResponse, str]:
    """The explanation, and why there are no candidates where the question cannot have any. Raises MeshError."""
    vector, note = None, ""
    if len(question.encode()) > MAX_EMBED_BYTES:
        note = "The question is too long to be compared: only the same words hit."
    elif question.strip():
        embedded = await answered(doors.embed([question]), doors.target.embedder)
        if any(embedded.truncated):
            note = "The model cannot read all of the question, so it is not compared: only the same words hit."
        else:
            vector = embedded.vectors[0]
    request = cache_pb2.ExplainRequest(
        caller=doors.target.caller, chat=asked.chat(question), requested_model=asked.model, vector=vector
    )
    response = await answered(doors.cache.Explain(request, timeout=CALL_TIMEOUT_S), doors.target.cache)
    return response, note


def show(response: cache_pb2.ExplainResponse, note: str, console: Console) -> None:
    """The candidates as a table of at most 100 columns, and the decision."""
    verdict = response.verdict
    if verdict.candidates:
        table = Table(show_lines=True)
        for name in ("cosine", "verifier", "P"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("decision", max_width=16, overflow="fold")
        table.add_column("stored question, and what differs", overflow="fold", max_width=50)
        for candidate in verdict.candidates:
            served = candidate.reason == "served"
            table.add_row(
                f"{candidate.similarity:.3f}",
                f"{candidate.verifier:.4f}" if candidate.HasField("verifier") else "-",
                f"{candidate.probability:.4f}" if candidate.HasField("probability") else "-",
                f"[green]{candidate.reason}[/green]" if served else escape(candidate.reason),
                _about(candidate),
            )
        console.print(table)
    console.print(f"[bold]{OUTCOMES[response.outcome]}[/bold]{_why(response)}", highlight=False)
    if verdict.candidates:
        console.print(f"[dim]The first one's entry: {verdict.candidates[0].entry_id}[/dim]", highlight=False)
    if note:
        console.print(note, highlight=False)


def _about(candidate: cache_pb2.Candidate) -> str:
    """The stored question, and below it what speaks against it."""
    detail = candidate.detail or ", ".join(candidate.signals)
    differs = f"\n[dim]{escape(detail)}[/dim]" if detail else ""
    return f"{escape(candidate.question or '(gone)')}{differs}"


def _why(response: cache_pb2.ExplainResponse) -> str:
    if response.outcome == cache_pb2.OUTCOME_EXACT_HIT:
        return ": this very request has a stored answer"
    verdict = response.verdict
    if not verdict.reason:
        return ""
    if verdict.reason == "no_candidate":
        return ": nothing that resembles it is stored for this tenant, namespace and system text"
    by_similarity = any(candidate.reason in BY_SIMILARITY for candidate in verdict.candidates)
    judged = any(candidate.HasField("probability") for candidate in verdict.candidates)
    of = "a cosine of " if by_similarity else "a probability of " if judged else ""
    return f": {escape(verdict.reason)}; required is {of}{verdict.threshold:.4f}"
