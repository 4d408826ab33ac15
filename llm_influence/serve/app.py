"""The API over HTTP: limits, tokens, errors in four parts, health and metrics, and the page."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from llm_influence import __version__
from llm_influence.errors import DataError, ExplanationError, InfluenceError
from llm_influence.serve import schemas
from llm_influence.serve.jobs import BusyError, Jobs, Together
from llm_influence.serve.service import Service, explained, moved, ranked, says

logger = logging.getLogger("llm_influence.serve")

MOST_BYTES = 1_000_000
FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
OPEN = {"/health", *FILES}
"""Paths that need no token; the page holds no data."""
PROTECTION = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes:
        seconds: Longest time for an answer.
        token: Text that ``Authorization: Bearer`` must carry; None: none.
    """

    seconds: float = 30.0
    token: str | None = None


@dataclass
class Measured:
    """Counts and seconds of the requests, by path and status."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """The Prometheus text format."""
        lines = ["# TYPE llm_influence_requests_total counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'llm_influence_requests_total{{path="{path}",status="{status}"}} {count}')
        lines.append("# TYPE llm_influence_seconds_total counter")
        for path, seconds in sorted(self.seconds.items()):
            lines.append(f'llm_influence_seconds_total{{path="{path}"}} {seconds:.6f}')
        return "\n".join(lines) + "\n"


def make_app(service: Service, limits: Limits | None = None) -> FastAPI:
    """The application of one model.

    Args:
        service: What answers.
        limits: Default: 30 seconds and no token.
    """
    limits, measured, jobs = limits or Limits(), Measured(), Jobs()

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        yield
        jobs.close()

    app = FastAPI(title="llm_influence", version=__version__, lifespan=running)
    paths = _Paths(service, jobs, limits)

    @app.middleware("http")
    async def guarded(request: Request, call_next: Handler) -> Response:
        return await _guarded(request, call_next, limits, measured)

    app.add_exception_handler(InfluenceError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(BusyError, _busy)
    app.add_exception_handler(TimeoutError, _late)

    app.post("/recommend")(paths.recommend)
    app.post("/explain")(paths.explain)
    app.post("/what-if")(paths.what_if)
    app.post("/fewest-to-change")(paths.fewest_to_change)
    app.post("/fewest-to-keep")(paths.fewest_to_keep)
    app.post("/history")(paths.history)
    app.get("/users")(paths.users)
    app.get("/items")(paths.items)
    app.get("/about")(paths.about)
    app.get("/health")(paths.health)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Counts and seconds in the Prometheus text format."""
        return measured.text()

    for path, name in FILES.items():
        app.get(path, include_in_schema=False)(_file(name))
    return app


class _Paths:
    """The answers, one method a path."""

    def __init__(self, service: Service, jobs: Jobs, limits: Limits) -> None:
        self._service, self._jobs, self._limits = service, jobs, limits

    async def _wait(self, *futures: Future[Any]) -> list[Any]:
        waiting = [asyncio.wrap_future(future) for future in futures]
        return list(await asyncio.wait_for(asyncio.gather(*waiting), self._limits.seconds))

    async def recommend(self, question: schemas.RecommendIn) -> schemas.RecommendOut:
        """The best items after a history."""
        service = self._service
        job = self._jobs.submit(service.recommend, (service.asked(question), question.k))
        (best,) = await self._wait(job)
        return schemas.RecommendOut(items=ranked(best))

    async def explain(self, question: schemas.ExplainIn) -> schemas.ExplainOut:
        """Why this item, or why this one and not that."""
        service, history = self._service, self._service.asked(question)
        _some_events(len(history))
        if question.over is not None:
            if question.item is None:
                raise ExplanationError(
                    "another item without the item",
                    where="over",
                    expected="item and over",
                    fix="name the item that the other one is compared with",
                )
            job = self._jobs.submit(service.contrast, (history, question.item, question.over))
        else:
            job = self._jobs.submit(service.explain, (history, question.item))
        (influence,) = await self._wait(job)
        first = question.item is None
        return explained(influence, question.language, recommended=first)

    async def what_if(self, question: schemas.WhatIfIn) -> schemas.WhatIfOut:
        """The list before and after changes of the history, and what moved."""
        service, jobs = self._service, self._jobs
        history = service.history(question)
        changed = service.edited(history, question)
        lists = [jobs.submit(service.recommend, (one, question.k)) for one in (history, changed)]
        before, after = (ranked(best) for best in await self._wait(*lists))
        reasons: list[schemas.ExplainOut | None] = [None, None]
        if question.explain:
            present = [place for place, one in enumerate((history, changed)) if len(one)]
            pair = (history, changed)
            waiting = [jobs.submit(service.explain, (pair[place], None)) for place in present]
            for place, influence in zip(present, await self._wait(*waiting), strict=True):
                reasons[place] = explained(influence, question.language, recommended=True)
        changes = moved(before, after)
        return schemas.WhatIfOut(
            events=service.events_out(changed),
            before=before,
            after=after,
            moved=changes,
            changed=bool(changes),
            says=says(before, after, changes, question.language),
            explanation_before=reasons[0],
            explanation_after=reasons[1],
        )

    async def fewest_to_change(self, question: schemas.FewestIn) -> schemas.FewestOut:
        """What would change it: the fewest events whose removal brings another first item."""
        return await self._fewest(question, self._service.fewest_to_change)

    async def fewest_to_keep(self, question: schemas.FewestIn) -> schemas.FewestOut:
        """What keeps it: the fewest events that alone keep the first item."""
        return await self._fewest(question, self._service.fewest_to_keep)

    async def _fewest(self, question: schemas.FewestIn, find: Together) -> schemas.FewestOut:
        history = self._service.asked(question)
        _some_events(len(history))
        (found,) = await self._wait(self._jobs.submit(find, history))
        return self._service.fewest_out(history, found, question.language)

    async def history(self, question: schemas.Question) -> list[schemas.EventOut]:
        """The events of a user of the log, or of the question, with titles."""
        return self._service.events_out(self._service.asked(question))

    async def users(
        self,
        search: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> list[schemas.UserOut]:
        """Users of the log whose id contains a text."""
        return self._service.users(search, limit)

    async def items(
        self,
        search: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> list[schemas.ItemOut]:
        """Items whose title or id contains a text."""
        return self._service.items(search, limit)

    async def about(self) -> dict[str, Any]:
        """Behaviours, sizes and method of the server."""
        model, log = self._service.model, self._service.log
        return {
            "behaviors": list(model.encoder.vocabulary.behaviors),
            "items": model.num_items,
            "users": 0 if log is None else len(log),
            "method": self._service.method,
            "reads_values": "value" in model.encoder.template.fields,
            "version": __version__,
        }

    async def health(self) -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}


def _some_events(count: int) -> None:
    if not count:
        raise DataError(
            "a history without events",
            where="events",
            expected="at least one event: an empty history has nothing to explain",
            fix="send events, or use /recommend",
        )


def _file(name: str) -> Callable[[], Awaitable[Response]]:
    """A file of the page; names are fixed, nothing of a request reaches the file system."""
    place = resources.files("llm_influence.serve") / "page" / name
    kind = KINDS[name.rsplit(".", 1)[1]]

    async def read() -> Response:
        return Response(place.read_bytes(), media_type=f"{kind}; charset=utf-8")

    return read


async def _guarded(
    request: Request, call_next: Handler, limits: Limits, measured: Measured
) -> Response:
    """Check token and size, and log and count the request."""
    began, number = time.perf_counter(), uuid.uuid4().hex[:12]
    path = request.url.path
    if limits.token is not None and path not in OPEN and not _authorized(request, limits.token):
        response: Response = _problem(
            401,
            "no valid token",
            where="Authorization",
            expected="Authorization: Bearer TOKEN",
            fix="send the token that the server was started with",
        )
    elif not _fits(request):
        response = _problem(
            413,
            "a body that is too long, or of unknown length",
            where="body",
            expected=f"Content-Length of at most {MOST_BYTES:,} bytes",
            fix="send fewer events",
        )
    else:
        response = await call_next(request)
    route = request.scope.get("route")
    known = getattr(route, "path", "other")
    seconds = time.perf_counter() - began
    measured.requests[known, response.status_code] += 1
    measured.seconds[known] = measured.seconds.get(known, 0.0) + seconds
    response.headers["X-Request-Id"] = number
    for name, value in PROTECTION.items():
        if path != "/docs":  # whose scripts come from elsewhere
            response.headers.setdefault(name, value)
    logger.info(
        '{"request": "%s", "path": "%s", "status": %d, "ms": %.1f}',
        number,
        known,
        response.status_code,
        1000 * seconds,
    )
    return response


def _fits(request: Request) -> bool:
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return True
    length = request.headers.get("content-length", "")
    return length.isascii() and length.isdigit() and int(length) <= MOST_BYTES


def _authorized(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())


def _problem(status: int, found: str, **parts: str) -> JSONResponse:
    return JSONResponse(schemas.Problem(found=found, **parts).model_dump(), status_code=status)


async def _refused(_: Request, error: Exception) -> Response:
    parts = {name: str(getattr(error, name)) for name in ("where", "expected", "fix")}
    return _problem(422, str(getattr(error, "found", error)), **parts)


async def _invalid(_: Request, error: Exception) -> Response:
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    first = problems[0] if problems else {"loc": ("body",), "msg": "not readable"}
    where = ".".join(str(part) for part in first["loc"])
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return _problem(
        422,
        f"{first['msg']}{more}"[:500],
        where=where[:200],
        expected="a request as /docs describes it",
        fix="correct this part of the request",
    )


async def _http(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 400
    return _problem(
        status,
        str(getattr(error, "detail", error)),
        where="request",
        expected="a path and method of /docs",
        fix="correct the address or the method",
    )


async def _busy(_: Request, __: Exception) -> Response:
    return _problem(
        503,
        "too many requests wait for the model",
        where="queue",
        expected="fewer requests at a time",
        fix="try again later",
    )


async def _late(_: Request, __: Exception) -> Response:
    return _problem(
        503,
        "no answer in time",
        where="model",
        expected="an answer within the server's limit",
        fix="send fewer events, or start the server with a higher --seconds",
    )
