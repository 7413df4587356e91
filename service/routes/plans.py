"""Plans: what another job would do, computed in the sandbox and answered within seconds."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from pared.errors import BY_CODE, ParedError
from pared.reports import Plan
from pared.state.session import to_json
from service.checked_routes import CheckedRoute
from service.dependencies import CallerOf, Following, Owner, Parts, PartsOf, RequestId, check_id
from service.job_specs import PostedSpec
from service.long_polling import requested_wait_s, wait_headers
from service.openapi import PLAN, PLAN_BODY, PLAN_PENDING, answers
from service.schemas import PlanPending, plan_pending_view
from service.submissions import start_plan, wait_for_plan, why_it_waits

router = APIRouter(tags=["jobs"], route_class=CheckedRoute)

ANSWER_WITHIN_S = 30.0
_PENDING = answers(202, PLAN_PENDING, description="Not made yet: look at `Location`.")[202] | {"model": PlanPending}


@router.post(
    "/v1/jobs:plan",
    response_model=Plan,
    summary="Plan a job",
    description="What a *prune* or *quantize* job, or a *pipeline*, with this spec would do, without doing it: what "
    "each layer loses or why it cannot, and the parameters, multiply-adds and bytes of the result. It is found out by "
    "really removing and exporting, with the job's seeds, so the figures are those that the job will report; where "
    "training can still change one, the plan says so. Usually answered within seconds, also while a long job runs. "
    "After 30 s (or those of `Prefer: wait=…`) 202 comes with the `Location` where the answer will be, for an hour. A "
    "job that would fail before it trains is answered with its problem. A format that the job could not write is under "
    "`failed_outputs`, with the reason; where it could write none, that is its problem.",
    openapi_extra=PLAN_BODY,
    responses=answers(200, PLAN, 404, 409, 413, 415) | {202: _PENDING},
    dependencies=[Following],
)
async def plan_job(
    request: Request, parts: PartsOf, caller: CallerOf, request_id: RequestId, spec: PostedSpec
) -> Response:
    """Submit the plan, wait for a worker, answer."""
    plan_id = await run_in_threadpool(start_plan, parts, caller, spec, request_id)
    wait_s = requested_wait_s(request, otherwise_s=ANSWER_WITHIN_S)
    return await _answer(request, parts, caller.owner, plan_id, wait_s)


@router.get(
    "/v1/plans/{plan_id}",
    response_model=Plan,
    summary="Look at a plan",
    description="A plan that was not made at once: as `POST /v1/jobs:plan` answers. `Prefer: wait=30` waits for it.",
    responses=answers(200, PLAN, 404, 409, 415) | {202: _PENDING},
)
async def get_plan(request: Request, parts: PartsOf, owner: Owner, plan_id: str) -> Response:
    """The plan, at once or once made."""
    check_id(plan_id, "job")
    return await _answer(request, parts, owner, plan_id, requested_wait_s(request))


async def _answer(request: Request, parts: Parts, owner: str, plan_id: str, wait_s: float) -> Response:
    job = await wait_for_plan(request, parts, owner, plan_id, wait_s)
    headers = wait_headers(requested_wait_s(request))
    if job.status == "succeeded":
        return Response(to_json(job.report), media_type="application/json", headers=headers)
    if job.error is not None:
        raise BY_CODE.get(job.error["code"], ParedError)(job.error["detail"])
    pending = plan_pending_view(job, await why_it_waits(parts, job))
    headers |= {"Location": pending.links.self, "Retry-After": "1"}
    return Response(pending.model_dump_json(), status_code=202, media_type="application/json", headers=headers)
