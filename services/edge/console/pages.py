"""The console's routes. Every page but the login takes a session, and every form the session's CSRF token."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import structlog
from google.protobuf.duration_pb2 import Duration
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from llmmesh.edge.v1 import keys_pb2
from services.common.clock import Clock
from services.common.deadline import set_remaining
from services.common.errors import InvalidInput, MeshError, PermissionDenied, TooLarge, Unauthenticated, Violation
from services.edge import key_convert
from services.edge.adapters.keys import TENANT, hash_key
from services.edge.console import charts, words
from services.edge.console.costs import (
    DAYS,
    Chart,
    Costs,
    Range,
    Totals,
    hit_rate_chart,
    range_of,
    stacked,
    waterfall,
)
from services.edge.console.sessions import (
    COOKIE,
    LIFETIME_S,
    LOGIN_COOKIE,
    Session,
    Sessions,
    csrf_fits,
    csrf_of,
    new_token,
)
from services.edge.domain.budgets import BudgetReader
from services.edge.domain.keys import DAY_S, HINT, KeptKey, KeyStore, Scope, made, new_secret, revoked, rotated
from services.edge.domain.ledger import CostQuery, CostSum
from services.edge.domain.upkeep import CacheUpkeep, Quality
from services.edge.http import errors

log = structlog.get_logger()

ROOT = "/console"
PAGE_S = 15.0
"""How long a page may take."""
MAX_FORM_BYTES = 16_384
MAX_ROWS = 200
"""Rows of a table of costs."""
MAX_SPACES = 200
"""Namespaces of the cache page; more takes a choice of tenant."""
AT_ONCE = 16
DIMENSIONS = {
    "tenant": "Tenant",
    "endpoint": "Endpoint",
    "user": "User",
    "model": "Model",
    "kind": "Kind of query",
    "namespace": "Namespace",
    "tier": "Tier",
    "outcome": "Outcome",
}
"""By which costs can be shown, in the order of the tabs; the first that is not yet chosen is where a link leads."""
OUTCOMES = {
    "exact_hit": "Cache: same question",
    "semantic_hit": "Cache: same in other words",
    "coalesced": "Shared with a request under way",
    "miss": "Asked a model",
    "bypass": "Asked a model, cache not wanted",
    "canary": "Asked a model, to compare",
    "shadow": "Check of a cached answer",
    "embedding": "Embedding",
    "error": "Failed",
}
REASONS = {
    "served": "judged the same question",
    "alias": "served before for these words",
    "judged": "a model judged it the same question",
    "judge_refused": "a model judged it another question",
    "unsure": "not sure enough",
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
_HERE = Path(__file__).parent

Form = Mapping[str, Sequence[str]]
Page = Callable[[Request, Session], Awaitable[Response]]
Action = Callable[[Request, Session, Form], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Space:
    """A namespace of a tenant as a row: `quality` is None where it could not be had."""

    tenant: str
    namespace: str
    quality: Quality | None

    @property
    def hit_rate(self) -> str:
        """Hits in all lookups."""
        found = self.quality
        return "–" if found is None else words.share(found.exact_hits + found.semantic_hits, self.asked)

    @property
    def asked(self) -> int:
        """Lookups of any sort."""
        return 0 if self.quality is None else self.quality.lookups + self.quality.exact_hits


class Console:
    """The pages and what they are made of."""

    def __init__(
        self,
        sessions: Sessions,
        costs: Costs,
        cache: CacheUpkeep,
        budgets: BudgetReader,
        keys: KeyStore,
        file_keys: Callable[[], Sequence[KeptKey]],
        clock: Clock,
    ) -> None:
        """`file_keys` are the keys out of the file, which only an editor changes."""
        self._sessions = sessions
        self._costs = costs
        self._cache = cache
        self._budgets = budgets
        self._keys = keys
        self._file_keys = file_keys
        self._clock = clock
        self._files = {
            name: Response((_HERE / name).read_bytes(), media_type=kind, headers={"cache-control": "max-age=300"})
            for name, kind in (("style.css", "text/css"), ("icon.svg", "image/svg+xml"))
        }
        self._pages = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._pages.globals.update(
            root=ROOT,
            dimensions=DIMENSIONS,
            outcomes=OUTCOMES,
            reasons=REASONS,
            days=DAYS,
            charts=charts,
            url=url,
            without=without,
        )
        told = (words.money, words.count, words.percent, words.moment, words.share, words.plural)
        self._pages.filters.update({one.__name__: one for one in told})
        self._pages.filters["part"] = lambda text: quote(text, safe="")

    def routes(self) -> list[BaseRoute]:
        """All of them; what else is asked for below the root is not found."""
        space = f"{ROOT}/cache/{{tenant}}/{{namespace}}"
        return [
            Route(ROOT, self._page(self.overview), methods=["GET"]),
            Route(f"{ROOT}/login", self._open(self.login_page), methods=["GET"]),
            Route(f"{ROOT}/login", self._open(self.login), methods=["POST"]),
            Route(f"{ROOT}/logout", self._action(self.logout), methods=["POST"]),
            Route(f"{ROOT}/costs", self._page(self.cost_page), methods=["GET"]),
            Route(f"{ROOT}/cache", self._page(self.cache_page), methods=["GET"]),
            Route(space, self._page(self.space_page), methods=["GET"]),
            Route(f"{space}/judge", self._action(self.judge), methods=["POST"]),
            Route(f"{ROOT}/budgets", self._page(self.budget_page), methods=["GET"]),
            Route(f"{ROOT}/keys", self._page(self.key_page), methods=["GET"]),
            Route(f"{ROOT}/keys", self._action(self.create_key), methods=["POST"]),
            Route(f"{ROOT}/keys/{{id}}/rotate", self._action(self.rotate_key), methods=["POST"]),
            Route(f"{ROOT}/keys/{{id}}/revoke", self._action(self.revoke_key), methods=["POST"]),
            *(Route(f"{ROOT}/{name}", self._open(self.file), methods=["GET"]) for name in self._files),
            Route(f"{ROOT}/{{rest:path}}", self._open(self.nothing)),
        ]

    # Signing in.

    async def login_page(self, request: Request) -> Response:
        """The form for the key."""
        return self._login_form(request, "", 200)

    async def login(self, request: Request) -> Response:
        """Takes the key."""
        form = await _form_of(request)
        if not csrf_fits(request.cookies.get(LOGIN_COOKIE), _one(form, "csrf")):
            return self._login_form(request, "The page had been open for too long. Please try again.", 403)
        try:
            session = await self._sessions.open(_one(form, "key").strip())
        except Unauthenticated as error:
            known = "expired" in error.message or "revoked" in error.message
            told = error.message if known else "This key is not known."
            return self._login_form(request, told, 401)
        except PermissionDenied:
            return self._login_form(request, "This key works, but it is no admin key.", 403)
        log.info("console_login", key_id=session.key.id)
        response = _see_other(_inside(_one(form, "next")))
        _set_cookie(request, response, COOKIE, session.token, LIFETIME_S)
        response.delete_cookie(LOGIN_COOKIE, path=ROOT)
        return response

    async def logout(self, request: Request, session: Session, form: Form) -> Response:
        """Ends the session."""
        await self._sessions.close(session)
        log.info("console_logout", key_id=session.key.id)
        response = _see_other(f"{ROOT}/login")
        response.delete_cookie(COOKIE, path=ROOT)
        return response

    def _login_form(self, request: Request, problem: str, status: int) -> Response:
        token = new_token()
        response = self._render(
            "login.html",
            None,
            status,
            problem=problem,
            csrf=csrf_of(token),
            next=_inside(request.query_params.get("next", "")),
        )
        _set_cookie(request, response, LOGIN_COOKIE, token, 3600)
        return response

    # What there is to see.

    async def overview(self, request: Request, session: Session) -> Response:
        """What was spent and saved."""
        now = self._clock.now()
        when = range_of(request.query_params.get("range", "7d"), now)
        month, today = range_of("30d", now), range_of("today", now)
        query = self._costs.sums
        (by_day, _), (by_hour, _), (_, total), (tenants, _) = await asyncio.gather(
            query(CostQuery(month.start, month.end, ("day", "outcome"))),
            query(CostQuery(today.start, today.end, ("hour", "outcome"))),
            query(CostQuery(when.start, when.end, ())),
            query(CostQuery(when.start, when.end, ("tenant",))),
        )
        days = _by_slot(by_day)
        cards = [(name, _sum_of(days, range_of(name, now))) for name in DAYS]
        slots = days if when.unit == "day" else _by_slot(by_hour)
        return self._render(
            "overview.html",
            session,
            when=when,
            cards=cards,
            total=dict(cards)[when.name],
            steps=waterfall(total),
            hits=hit_rate_chart(when, slots),
            spent=_spent_chart(when, slots),
            tenants=tenants[:5],
            empty=not dict(cards)["30d"].requests,
        )

    async def cost_page(self, request: Request, session: Session) -> Response:
        """Costs by a dimension over time, of what was chosen."""
        asked = request.query_params
        when = range_of(asked.get("range", "7d"), self._clock.now())
        chosen = {dimension: asked[dimension] for dimension in DIMENSIONS if dimension in asked}
        by = asked.get("by", "tenant")
        if by not in DIMENSIONS:
            by = "tenant"
        tenant = chosen.get("tenant")
        where = tuple((dimension, value) for dimension, value in chosen.items() if dimension != "tenant")
        (rows, total), (cells, _) = await asyncio.gather(
            self._costs.sums(CostQuery(when.start, when.end, (by,), tenant, where)),
            self._costs.sums(CostQuery(when.start, when.end, (when.unit, by), tenant, where)),
        )
        named = (OUTCOMES if by == "outcome" else {}) | {"": "not named"}
        here = {"range": when.name, "by": by, **chosen}
        after = next((dimension for dimension in DIMENSIONS if dimension not in chosen and dimension != by), by)
        return self._render(
            "costs.html",
            session,
            when=when,
            by=by,
            chosen=chosen,
            here=here,
            after=after,
            named=named,
            rows=rows[:MAX_ROWS],
            more=max(0, len(rows) - MAX_ROWS),
            total=total,
            chart=stacked(when, cells, named, f"Cost by {DIMENSIONS[by].lower()}, {when.title}"),
        )

    async def cache_page(self, request: Request, session: Session) -> Response:
        """How well the cache answers, by tenant and namespace."""
        month = range_of("30d", self._clock.now())
        sums, _ = await self._costs.sums(CostQuery(month.start, month.end, ("tenant",)))
        tenants = sorted({row.key[0] for row in sums if TENANT.fullmatch(row.key[0])})
        wanted = request.query_params.get("tenant", "")
        few = asyncio.Semaphore(AT_ONCE)

        async def namespaces(tenant: str) -> list[tuple[str, str]]:
            async with few:
                return [(tenant, name) for name in await self._cache.namespaces(tenant)]

        async def measured(tenant: str, namespace: str) -> Space:
            async with few:
                return Space(tenant, namespace, await self._cache.quality(tenant, namespace))

        listed = await asyncio.gather(*(namespaces(tenant) for tenant in tenants if wanted in ("", tenant)))
        pairs = [pair for some in listed for pair in some]
        spaces = await asyncio.gather(*(measured(*pair) for pair in pairs[:MAX_SPACES]))
        return self._render(
            "cache.html",
            session,
            spaces=sorted(spaces, key=lambda space: (-space.asked, space.tenant, space.namespace)),
            tenants=tenants,
            wanted=wanted,
            more=max(0, len(pairs) - MAX_SPACES),
        )

    async def space_page(self, request: Request, session: Session) -> Response:
        """One namespace, and the pairs to look through."""
        tenant, namespace = request.path_params["tenant"], request.path_params["namespace"]
        asked = request.query_params
        kind = asked.get("kind", "hit")
        hits = {"hit": True, "near": False}.get(kind)
        quality, (reviews, token) = await asyncio.gather(
            self._cache.quality(tenant, namespace),
            self._cache.reviews(
                tenant, namespace, hits=hits, unsettled=kind == "unsettled", token=asked.get("page", "")
            ),
        )
        return self._render(
            "space.html",
            session,
            space=Space(tenant, namespace, quality),
            kind=kind if kind in ("hit", "near", "unsettled") else "all",
            reviews=reviews,
            token=token,
            first="page" not in asked,
            done=asked.get("done", ""),
        )

    async def judge(self, request: Request, session: Session, form: Form) -> Response:
        """Takes the reviewer's word; a wrong answer goes at once."""
        tenant, namespace = request.path_params["tenant"], request.path_params["namespace"]
        request_id, entry_id = _one(form, "request_id"), _one(form, "entry_id")
        word = _one(form, "word")
        if word not in ("right", "wrong"):
            raise InvalidInput(violations=(Violation("word", "must be right or wrong"),))
        counted = await self._cache.judge(tenant, namespace, request_id, right=word == "right")
        done = word if counted else "late"
        if word == "wrong":
            purged = await self._cache.purge(tenant, namespace, entry_id)
            done = "purged" if purged else "gone"
        log.info("console_judged", tenant=tenant, namespace=namespace, word=done, by=session.key.id)
        kind = _one(form, "kind")
        return _see_other(
            url(f"{ROOT}/cache/{quote(tenant, safe='')}/{quote(namespace, safe='')}", kind=kind, done=done)
        )

    async def budget_page(self, request: Request, session: Session) -> Response:
        """How budgets stand."""
        return self._render("budgets.html", session, budgets=await self._budgets.status(None))

    # Keys.

    async def key_page(self, request: Request, session: Session) -> Response:
        """All keys, and a form for a new one."""
        return await self._key_list(session, 200)

    async def create_key(self, request: Request, session: Session, form: Form) -> Response:
        """Makes a key and shows its secret, this once."""
        try:
            wish = key_convert.wish_from_pb(_wish_of(form))
        except InvalidInput as error:
            return await self._key_list(session, 400, problem=error.message, form=form)
        secret = new_secret()
        kept = made(wish, hash_key(secret), secret[:HINT], self._clock.now())
        await self._keys.add(kept)
        scopes = sorted(wish.scopes)
        log.info("key_created", key_id=kept.key.id, key_tenant=wish.tenant, scopes=scopes, by=session.key.id)
        return await self._key_list(session, 200, secret=secret, new=kept)

    async def rotate_key(self, request: Request, session: Session, form: Form) -> Response:
        """Makes a key in another's place."""
        key_id = self._changeable(request)
        secret = new_secret()
        digest, now = hash_key(secret), self._clock.now()
        grace_s = key_convert.DEFAULT_GRACE_S
        old, new = await self._keys.change(key_id, lambda kept: rotated(kept, grace_s, digest, secret[:HINT], now))
        log.info("key_rotated", key_id=old.key.id, new_key_id=new.key.id, grace_s=grace_s, by=session.key.id)
        return await self._key_list(session, 200, secret=secret, new=new, old=old)

    async def revoke_key(self, request: Request, session: Session, form: Form) -> Response:
        """Ends a key."""
        now = self._clock.now()
        (kept,) = await self._keys.change(self._changeable(request), lambda kept: (revoked(kept, now),))
        log.info("key_revoked", key_id=kept.key.id, by=session.key.id)
        return _see_other(f"{ROOT}/keys")

    def _changeable(self, request: Request) -> str:
        key_id = key_convert.id_from(request.path_params["id"])
        if any(kept.key.id == key_id for kept in self._file_keys()):
            raise InvalidInput(
                violations=(Violation("id", "the key stands in the key file, where an editor changes it"),)
            )
        return key_id

    async def _key_list(
        self,
        session: Session,
        status: int,
        *,
        secret: str = "",
        new: KeptKey | None = None,
        old: KeptKey | None = None,
        problem: str = "",
        form: Form | None = None,
    ) -> Response:
        in_file = list(self._file_keys())
        kept, uses = await asyncio.gather(self._keys.kept(), self._keys.last_uses())
        keys = sorted([*in_file, *kept], key=lambda k: (k.key.tenant, k.created_at or 0.0, k.key.id))
        return self._render(
            "keys.html",
            session,
            status,
            keys=keys,
            uses=uses,
            in_file={one.key.id for one in in_file},
            now=self._clock.now(),
            scopes=[scope.value for scope in Scope],
            secret=secret,
            new=new,
            old=old,
            problem=problem,
            given={name: values[0] for name, values in (form or {}).items() if values},
            picked=list((form or {}).get("scopes", ("inference", "costs"))),
        )

    # What is the same for all.

    async def file(self, request: Request) -> Response:
        """What goes with the pages."""
        return self._files[request.url.path.rpartition("/")[2]]

    async def nothing(self, _: Request) -> Response:
        """What is not there."""
        return self._problem("There is no such page.", 404)

    def _page(self, handler: Page) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def shown(request: Request) -> Response:
            session = await self._sessions.of(request.cookies.get(COOKIE))
            if session is None:
                path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                return _see_other(url(f"{ROOT}/login", next=path))
            return await handler(request, session)

        return self._open(shown)

    def _action(self, handler: Action) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def done(request: Request) -> Response:
            session = await self._sessions.of(request.cookies.get(COOKIE))
            if session is None:
                return _see_other(f"{ROOT}/login")
            form = await _form_of(request)
            if not csrf_fits(session.token, _one(form, "csrf")):
                return self._problem(
                    "This form is not from a page of your session. Go back, reload and try again.", 403
                )
            return await handler(request, session, form)

        return self._open(done)

    def _open(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler with a deadline; what it raises becomes a page, and every response carries the headers."""

        async def answered(request: Request) -> Response:
            set_remaining(PAGE_S)
            try:
                response = await handler(request)
            except MeshError as error:
                response = self._problem(f"{error.message[:1].upper()}{error.message[1:]}.", errors.status_of(error))
            except Exception:
                log.exception("unexpected_error", method=request.url.path)
                response = self._problem("Something unexpected went wrong; the log of the edge says what.", 500)
            for name, value in _HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return answered

    def _problem(self, what: str, status: int) -> Response:
        return self._render("problem.html", None, status, what=what)

    def _render(self, page: str, session: Session | None, status: int = 200, **more: object) -> Response:
        content = {"session": session, "page": page.removesuffix(".html"), **more}
        if session is not None:
            content["csrf"] = session.csrf
        return HTMLResponse(self._pages.get_template(page).render(content), status)


def url(path: str, **query: str) -> str:
    """A path with its query; what is empty counts, since "" is a value of a dimension, too."""
    return f"{path}?{urlencode(query)}" if query else path


def without(query: Mapping[str, str], name: str) -> dict[str, str]:
    """A query without one of its parts."""
    return {key: value for key, value in query.items() if key != name}


def _by_slot(rows: Sequence[CostSum]) -> dict[str, Totals]:
    """Totals by the slot of keys that are slot and outcome."""
    found: dict[str, Totals] = {}
    for row in rows:
        slot, outcome = row.key
        found.setdefault(slot, Totals()).add(outcome, row)
    return found


def _sum_of(by_slot: Mapping[str, Totals], when: Range) -> Totals:
    """The totals of all slots that lie in a range, days or hours."""
    first, last = when.slots[0][:10], when.slots[-1][:10]
    total = Totals()
    for slot, some in by_slot.items():
        if first <= slot[:10] <= last:
            total.actual += some.actual
            total.baseline += some.baseline
            total.requests += some.requests
            total.hits += some.hits
            total.looked_up += some.looked_up
            total.unpriced += some.unpriced
    return total


def _spent_chart(when: Range, by_slot: Mapping[str, Totals]) -> Chart:
    """What was spent and what was saved on top of it."""
    spent = [by_slot[slot].actual if slot in by_slot else 0 for slot in when.slots]
    saved = [max(by_slot[slot].saved, 0) if slot in by_slot else 0 for slot in when.slots]
    series = [
        charts.Series("spent", 0, spent, [words.money(amount) for amount in spent]),
        charts.Series("saved", 2, saved, [words.money(amount) for amount in saved]),
    ]
    top = charts.top_of(max(a + b for a, b in zip(spent, saved, strict=True)))
    picture = charts.columns(series, when.words, top, f"Money spent and saved, {when.title}")
    legend = tuple((one.colour, one.name, words.money(sum(one.values))) for one in series)
    middle = when.words[len(when.slots) // 2]
    return Chart(
        picture, (words.money(top), words.money(top / 2), "$0"), (when.words[0], middle, when.words[-1]), legend
    )


async def _form_of(request: Request) -> Form:
    """The fields of a form. Raises TooLarge or InvalidInput."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_FORM_BYTES:
            raise TooLarge("the form is too large")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise InvalidInput(violations=(Violation("form", "is none"),)) from None
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def _one(form: Form, name: str) -> str:
    return next(iter(form.get(name, ())), "")


def _wish_of(form: Form) -> keys_pb2.CreateKeyRequest:
    """The form of a new key as the request that it stands for. Raises InvalidInput for what is no number."""
    wish = keys_pb2.CreateKeyRequest(
        tenant=_one(form, "tenant").strip(), name=_one(form, "name").strip(), scopes=form.get("scopes", ())
    )
    wish.requests_per_minute = _number(form, "requests_per_minute", "requests per minute")
    days = _number(form, "days", "days until it ends")
    if days:
        wish.lifetime.CopyFrom(Duration(seconds=round(days * DAY_S)))
    return wish


def _number(form: Form, name: str, called: str) -> int:
    text = _one(form, name).strip()
    if text and not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise InvalidInput(violations=(Violation(called, "a whole number, or nothing"),))
    return int(text or 0)


def _inside(path: str) -> str:
    """A path of the console, to go to after the login; the overview for any other."""
    plain = path.isascii() and path.isprintable() and "\\" not in path
    return path if plain and (path == ROOT or path.startswith((f"{ROOT}/", f"{ROOT}?"))) else ROOT


def _see_other(path: str) -> RedirectResponse:
    return RedirectResponse(path, 303)


def _set_cookie(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        path=ROOT,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
