"""The form of a new job, what it would do, and the same request in other ways."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import pydantic
from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session, defer

from pared.errors import NotFound, ParedError, Unauthorized, ValidationError
from pared.reports import Plan
from pared.specs import BUILTIN_DATASETS
from pared.state.jobs import drop_plan, find_job
from pared.state.keys import Caller
from pared.state.references import check_references
from pared.state.tables import Dataset, Job, Model
from pared.state.uploads import find_upload, owned_uploads
from pared.statuses import ENDED
from service.dependencies import CallerOf, Following, Parts, PartsOf, RequestId, check_id
from service.job_specs import checked
from service.long_polling import requested_wait_s
from service.pages.form_bodies import FormTexts
from service.pages.job_form import MORE, Filled, JobForm, at_point, forms, place, read, texts_of
from service.pages.plan_view import shown_plan
from service.pages.site import render, see_other
from service.pages.snippets import snippets_of
from service.submissions import digest_of, start_plan, submit_job, wait_for_plan, why_it_waits

router = APIRouter(include_in_schema=False)

PREVIEW_WITHIN_S = 10.0
MOST_UPLOADS = 100

_Id = Annotated[str | None, Query(max_length=100)]
Upload = TypeVar("Upload", Model, Dataset)


@dataclass(frozen=True)
class Planned:
    """What is known of what a job would do."""

    id: str | None = None
    plan: Plan | None = None
    why_not: str | None = None
    """Why there is no plan of such a job: a sentence."""
    problem: str | None = None
    """Why the job would fail."""
    waits_for: str | None = None

    @property
    def pending(self) -> bool:
        """Whether it is still being made."""
        return self.id is not None and self.plan is None and self.problem is None


@router.get("/jobs/new")
def new_job(
    request: Request,
    parts: PartsOf,
    caller: CallerOf,
    type_: Annotated[str, Query(alias="type", max_length=100)] = "compress",
    model: _Id = None,
    dataset: _Id = None,
    from_: Annotated[str | None, Query(alias="from", max_length=100)] = None,
    amount: Annotated[float | None, Query(gt=0, lt=1)] = None,
    round_to: Annotated[int | None, Query(ge=1, le=1024)] = None,
) -> Response:
    """The form: with what is usual, or as another job was posted, or as that would make one point of its search."""
    if from_:
        check_id(from_, "job")
        with parts.sessions() as session:
            job = find_job(session, caller.owner, from_)
        spec = checked(job.spec)
        form, given = forms()[job.type], texts_of(forms()[job.type], spec)
    else:
        form, spec = _form_called(type_), None
        given = {name: [text] for name, text in form.usual.items()}
    if amount is not None:
        given = at_point(given, spec, amount, round_to)
    given |= {name: [text] for name, text in ((form.model, model), ("dataset", dataset)) if text}
    filled = read(form, given)
    for name in filled.missing:  # nobody has had the time to fill it in
        del filled.errors[name]
    return _page(request, parts, caller, filled, _new_key(), resubmitted=from_)


@router.post("/jobs/new", dependencies=[Following])
async def submit(
    request: Request, parts: PartsOf, caller: CallerOf, request_id: RequestId, texts: FormTexts
) -> Response:
    """Post the job, and show it."""
    filled, key = await run_in_threadpool(read, _form_called(_text(texts, "type")), texts), _key_in(texts)
    status = 422
    if filled.spec is not None:
        try:
            # Another spec under the same key is another job: somebody went back, and changed something.
            once = f"{key}-{digest_of(filled.spec)[:32]}"
            return see_other(f"/jobs/{await submit_job(parts, caller, filled.spec, once, request_id)}")
        except Unauthorized:
            raise
        except ParedError as error:
            place(filled, error)
            status = error.status
    return await run_in_threadpool(_page, request, parts, caller, filled, key, status=status)


@router.post("/jobs/new/preview", dependencies=[Following])
async def preview(
    request: Request, parts: PartsOf, caller: CallerOf, request_id: RequestId, texts: FormTexts
) -> Response:
    """The same request in other ways and its plan: as a part for the script, or with the whole page."""
    filled = await run_in_threadpool(read, _form_called(_text(texts, "type")), texts)
    key, previous, as_part = _key_in(texts), _text(texts, "plan"), bool(_text(texts, "part"))
    planned = await run_in_threadpool(_start, parts, caller, filled, key, request_id)
    if previous and previous != planned.id:
        await run_in_threadpool(drop_plan, parts.sessions, caller.owner, previous[:30])
    if planned.id is not None:
        planned = await _look(request, parts, caller, planned.id, 0.0 if as_part else PREVIEW_WITHIN_S)
    if not as_part:
        return await run_in_threadpool(_page, request, parts, caller, filled, key, planned=planned)
    for name in filled.missing:
        del filled.errors[name]
    context = await run_in_threadpool(_preview_context, request, caller, filled, planned)
    return render(request, "_new_job_preview.html.j2", context)


@router.get("/jobs/new/plans/{plan_id}", dependencies=[Following])
async def plan_part(request: Request, parts: PartsOf, caller: CallerOf, plan_id: str) -> Response:
    """What a job would do, at once or once it is known."""
    check_id(plan_id, "job")
    planned = await _look(request, parts, caller, plan_id, requested_wait_s(request))
    return render(request, "_plan.html.j2", {"planned": planned, **_shown(planned)})


# -- plans --------------------------------------------------------------------------------------------


def _start(parts: Parts, caller: Caller, filled: Filled, key: str, request_id: str) -> Planned:
    """Have the plan of the form's job made, unless it was before."""
    if filled.spec is None:
        return Planned()
    try:
        # A plan that was made before, or that no such job has, tells nothing of what was deleted since.
        with parts.sessions() as session:
            check_references(session, caller.owner, filled.spec)
        # No client's own key has a space in it.
        once = f"plan {key} {digest_of(filled.spec)}"
        return Planned(start_plan(parts, caller, filled.spec, request_id, once))
    except ValidationError as error:
        if filled.form.type == "distill":
            return Planned(why_not="A student is what you say it is, so there is nothing to find out beforehand.")
        return Planned(why_not=f"The goal {error.errors[0]['detail']}.")
    except ParedError as error:
        place(filled, error)
        return Planned()


async def _look(request: Request, parts: Parts, caller: Caller, plan_id: str, wait_s: float) -> Planned:
    job: Job = await wait_for_plan(request, parts, caller.owner, plan_id, wait_s)
    if job.status not in ENDED:
        return Planned(plan_id, waits_for=await why_it_waits(parts, job))
    if job.status != "succeeded":
        error = job.error or {"detail": "It was canceled."}
        return Planned(plan_id, problem=str(error["detail"]))
    try:
        return Planned(plan_id, Plan.model_validate(job.report))
    except pydantic.ValidationError:
        return Planned(plan_id, problem="The plan cannot be read.")


def _shown(planned: Planned) -> dict[str, Any]:
    return {"shown": None if planned.plan is None else shown_plan(planned.plan)}


# -- the page -----------------------------------------------------------------------------------------


def _page(
    request: Request,
    parts: Parts,
    caller: Caller,
    filled: Filled,
    key: str,
    *,
    status: int = 200,
    planned: Planned | None = None,
    resubmitted: str | None = None,
) -> Response:
    with parts.sessions() as session:
        uploads = {
            "mdl": _uploads(session, caller.owner, Model, "mdl", filled),
            "dst": _uploads(session, caller.owner, Dataset, "dst", filled),
        }
    context = {
        "scripts": ["job_form"],
        "forms": forms(),
        "form": filled.form,
        "filled": filled,
        "uploads": uploads,
        "key": key,
        "more": MORE,
        "resubmitted": resubmitted,
        **_preview_context(request, caller, filled, planned or Planned()),
    }
    return render(request, "new_job.html.j2", context, status=status)


def _preview_context(request: Request, caller: Caller, filled: Filled, planned: Planned) -> dict[str, Any]:
    controls = [*filled.form.controls, *(each for step in filled.form.steps for each in step)]
    labels = {each.name: (each.id, each.label) for each in controls} | {MORE: ("f-more", "More fields")}
    url = str(request.base_url).rstrip("/")
    with_key = caller.key_id is not None
    return {
        "filled": filled,
        "labels": labels,
        "planned": planned,
        "snippets": [] if filled.spec is None else snippets_of(filled.spec, url, with_key=with_key),
        **_shown(planned),
    }


def _uploads(session: Session, owner: str, table: type[Upload], kind: str, filled: Filled) -> list[tuple[str, str]]:
    """The ids and words of what can be chosen: the newest uploads that are ready, and whatever the form names."""
    ready = owned_uploads(owner, table).where(table.status == "ready").options(defer(table.inspection, raiseload=True))
    choices = {row.id: _words(row) for row in session.scalars(ready.order_by(table.id.desc()).limit(MOST_UPLOADS))}
    if kind == "dst":
        choices |= {name: f"{name} (part of pared)" for name in BUILTIN_DATASETS}
    for control in filled.form.controls:
        named = filled.text(control.name)[:100]
        if control.kind == "upload" and named.startswith(kind) and named not in choices:
            try:
                choices[named] = _words(find_upload(session, owner, table, named))
            except NotFound:
                filled.errors.setdefault(control.name, f"there is no {named} among your uploads")
                choices[named] = f"{named} (not among your uploads)"
    return list(choices.items())


def _words(row: Model | Dataset) -> str:
    state = "" if row.status == "ready" else f", {row.status}"
    return f"{row.filename} ({row.id[:4]}…{row.id[-6:]}{state})"


def _form_called(name: str) -> JobForm:
    if name not in forms():
        detail = f"must be one of {', '.join(forms())}"
        raise ValidationError(f"The type {detail}.", errors=[{"pointer": "/query/type", "detail": detail}])
    return forms()[name]


def _text(texts: Mapping[str, list[str]], name: str) -> str:
    return (texts.get(name) or [""])[-1]


def _new_key() -> str:
    return secrets.token_hex(16)


def _key_in(texts: Mapping[str, list[str]]) -> str:
    """What the page was given to tell its requests from others; a new one where somebody changed it."""
    key = _text(texts, "key")
    return key if re.fullmatch(r"[0-9a-f]{32}", key) else _new_key()
