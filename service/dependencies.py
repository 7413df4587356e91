"""Owns what routes depend on: the process's parts, built once, and the owner that a request comes from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security.utils import get_authorization_scheme_param

from pared.errors import NotFound, ParedError, ScopeMissing, Unauthorized
from pared.state import keys
from pared.state.audit import Act, Actor, record_all
from pared.state.data_version import DataVersion
from pared.state.jobs import Submission, Submitted, find_job, submit_all
from pared.state.keys import Caller, Callers, KnownKey
from pared.state.limits import MuchRoom
from pared.state.objects import ObjectStore, open_store
from pared.state.owners import LOCAL_OWNER
from pared.state.partial_uploads import PartialUploads
from pared.state.queue import make_app
from pared.state.session import Sessions, make_engine, make_sessions
from pared.state.settings import Settings
from pared.state.sweep import Sweep
from pared.state.tables import Job
from service.admission import Admission
from service.batches import Batches
from service.changes import Changes
from service.dispatcher import Dispatcher
from service.job_answers import JobAnswer, JobAnswers, JobsPage
from service.metrics import Metrics
from service.origins import from_this_machine
from service.public_addresses import Resolver
from service.turns_of_the_loop import OncePerTurn
from service.verified_objects import VerifiedObjects
from service.webhook_sender import WebhookSender

ADMIN_PATH = "/v1/admin/"
"""What routes begin with that need the scope `admin`."""
ADMIN_PAGE = "/admin"
"""The page that needs it."""
METRICS_PATH = "/metrics"
"""The route that needs the scope `metrics`."""
KEY_COOKIE = "pared_key"
"""Holds the key of a browser that has signed in; no script can read it, and no page of another site sends it."""
KEPT_BYTES = 64 << 10
"""Of an answer that is given again without asking the database."""
_LOCAL = Caller(LOCAL_OWNER, None, frozenset({*keys.USUAL_SCOPES, "metrics"}))


@dataclass(frozen=True)
class Parts:
    """Everything one API process holds."""

    settings: Settings
    sessions: Sessions
    store: ObjectStore
    verified: VerifiedObjects
    queue: Celery
    dispatcher: Dispatcher
    admission: Admission
    changes: Changes
    partial: PartialUploads
    webhooks: WebhookSender
    resolver: Resolver
    """For webhooks that are being made."""
    metrics: Metrics
    version: DataVersion
    callers: Batches[str, KnownKey | Unauthorized]
    """By their keys' secrets."""
    jobs: Batches[tuple[str, str], JobAnswer]
    """As they are sent, by owner and id."""
    job_pages: Batches[JobsPage, bytes]
    submissions: Batches[Submission, Submitted | ParedError]
    acts: Batches[Act, None]
    """Of callers, written down in the audit log."""


def build_parts(settings: Settings) -> Parts:
    """Build the parts from the settings; start nothing."""
    sessions = make_sessions(make_engine(settings.effective_database_url))
    store = open_store(settings)
    queue = make_app(settings)
    sweep = Sweep(sessions, settings, store=store, queue=queue)
    dispatcher = Dispatcher(sessions, queue, sweep, settings.sweep_s)
    admission = Admission(sessions, settings)
    metrics = Metrics(sessions, settings)
    changes = Changes(sessions, settings.max_open_streams, metrics.set_open_streams)
    pieces = PartialUploads(sessions, store, settings)
    answers = JobAnswers(sessions)
    version = DataVersion(sessions.engine)
    version_now = OncePerTurn(version.read)
    return Parts(
        settings,
        sessions,
        store,
        VerifiedObjects(store),
        queue,
        dispatcher,
        admission,
        changes,
        pieces,
        WebhookSender(sessions, settings),
        Resolver(allow_private=settings.allow_private_webhooks, most=32),
        metrics,
        version,
        Batches(Callers(sessions).read, version=version_now),
        Batches(answers.read, version=version_now, keep=lambda job: len(job.content) <= KEPT_BYTES),
        Batches(answers.pages, version=version_now, keep=lambda page: len(page) <= KEPT_BYTES),
        Batches(
            partial(submit_all, sessions, settings=settings, room=MuchRoom()),
            lane_of=lambda submission: submission.owner,
        ),
        Batches(partial(record_all, sessions)),
    )


async def parts_of(request: Request) -> Parts:
    """The parts of the process that serves this request."""
    parts: Parts = request.app.state.parts
    return parts


async def caller_of(request: Request) -> Caller:
    """Whom this request acts for: its key's owner, or `local` where no key is needed and none was sent.

    Raises:
        Unauthorized: a key is needed and none was sent, or the one sent does not work.
        ScopeMissing: the key does not allow this.
        OverLimit: the owner sends more requests than may be.
    """
    parts = await parts_of(request)
    secret = _key_in(request)
    if secret is not None:
        known = await parts.callers.get(secret)
        assert known is not None  # noqa: S101 - each secret has an answer
        if isinstance(known, Unauthorized):
            # The same object tells others, too, and would gather all their tracebacks.
            raise Unauthorized(known.detail)
        caller = known.caller
        if not known.used_lately:
            await run_in_threadpool(keys.write_last_use, parts.sessions, caller.key_id)
    else:
        here = parts.settings.require_keys is not None or from_this_machine(request, parts.settings)
        if parts.settings.keys_required or not here:
            raise Unauthorized(
                "Send your key as `Authorization: Bearer pared_…`. Whoever runs this server makes one with "
                "`pared keys add NAME`."
            )
        caller = _LOCAL
    # From here on, whatever is answered is this caller's, and is written down as such.
    request.state.caller = caller
    needed = _scope_of(request)
    if needed not in caller.scopes:
        raise ScopeMissing(
            f"This needs a key with the scope `{needed}`, and yours has {', '.join(sorted(caller.scopes)) or 'none'}. "
            "Whoever runs this server makes one with `pared keys add`."
            if caller.key_id is not None
            else f"This needs a key with the scope `{needed}`: `pared keys add NAME --scope {needed}` makes one."
        )
    parts.admission.count_request(caller.owner)
    return caller


def _key_in(request: Request) -> str | None:
    headers = request.headers
    scheme, bearer = get_authorization_scheme_param(headers.get("authorization"))
    if bearer and scheme.lower() == "bearer":
        return bearer
    return headers.get("x-api-key") or (request.cookies.get(KEY_COOKIE) if "cookie" in headers else None)


# `CheckedRoute`, and `service.app` for pages, have `caller_of` asked before each route's own dependencies.
async def known_caller(request: Request) -> Caller:
    """Whom this request acts for."""
    caller: Caller = request.state.caller
    return caller


async def owner_of(request: Request) -> str:
    """The id of the owner that this request acts for."""
    return (await known_caller(request)).owner


async def actor_of(request: Request) -> Actor:
    """Who acts, for the audit log."""
    caller = await known_caller(request)
    return Actor(caller.owner, caller.key_id, request.state.request_id)


async def following(request: Request) -> AsyncIterator[None]:
    """Count a request that stays open, or may, before it does anything, until it is answered. Raises OverLimit.

    `request.state.follower` says when it has to end, for its key works no more.
    """
    admission = (await parts_of(request)).admission
    with admission.following(await known_caller(request)) as follower:
        request.state.follower = follower
        yield


def _scope_of(request: Request) -> str:
    path = request.scope["route"].path
    if path.startswith((ADMIN_PATH, f"{ADMIN_PAGE}/")) or path == ADMIN_PAGE:
        return "admin"
    if path == METRICS_PATH:
        return "metrics"
    return "read" if request.method in ("GET", "HEAD", "OPTIONS") else "submit"


async def request_id_of(request: Request) -> str:
    """The id that the middleware gave this request."""
    request_id: str = request.state.request_id
    return request_id


PartsOf = Annotated[Parts, Depends(parts_of)]
CallerOf = Annotated[Caller, Depends(known_caller)]
Owner = Annotated[str, Depends(owner_of)]
ActorOf = Annotated[Actor, Depends(actor_of)]
Following = Depends(following)
"""For event streams, and for what makes something before it waits."""
RequestId = Annotated[str, Depends(request_id_of)]


def owned_job(job_id: str, parts: PartsOf, owner: Owner) -> Job:
    """The job in the path, if it is the owner's. Raises NotFound."""
    check_id(job_id, "job")
    with parts.sessions() as session:
        return find_job(session, owner, job_id)


def check_id(value: str, prefix: str) -> None:
    """Raise NotFound for what cannot be an id of this kind; the detail shows how one looks."""
    if value.startswith(f"{prefix}_") and len(value) == 30 and value.isascii() and value[4:].isalnum():
        return
    raise NotFound(f"{_NAMES[prefix]} ids look like {prefix}_01K9Q5V7M3W8Z2X4Y6A0B1C2D3; there is no such one.")


_NAMES = {
    "mdl": "Model",
    "dst": "Data set",
    "job": "Job",
    "own": "Owner",
    "key": "Key",
    "upl": "Upload",
    "whk": "Webhook",
    "dlv": "Delivery",
}

OwnedJob = Annotated[Job, Depends(owned_job)]
