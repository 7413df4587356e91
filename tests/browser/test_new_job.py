"""The form of a new job: what is shown is what is sent, with a keyboard, without JavaScript, and whatever is typed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from sqlalchemy import func, select

from pared.job_types import listed_spec
from pared.state.keys import add_key
from pared.state.owners import create_owner
from pared.state.tables import Job
from service.openapi import PLAN
from service.pages.job_form import forms
from tests.integration.service.conftest import Api, serving
from tests.support.browsing import Visit
from tests.support.models import zoo
from tests.support.processes import wait_for
from tests.support.specs_of_all_kinds import EXAMPLE_MODEL_ID, OF_ALL_KINDS
from tests.support.stack import Stack

HOSTILE = "<img src=x onerror=alert(1)>\"'`$(id)\u202e"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("api")) as api:
        yield api


@pytest.fixture
def model(api: Api) -> str:
    made = api.upload(b"a model", "digits_cnn.pt")
    api.inspected(made["id"])
    return str(made["id"])


@pytest.fixture
def visit(api: Api, visiting: Callable[..., Visit]) -> Visit:
    return visiting(url(api))


def url(api: Api) -> str:
    return str(api.base_url).rstrip("/")


def newest_spec(api: Api) -> dict[str, Any]:
    with api.parts.sessions() as session:
        found = session.scalar(select(Job.spec).where(Job.type.in_(forms())).order_by(Job.id.desc()).limit(1))
    return dict(found or {})


def plans(api: Api) -> list[str]:
    with api.parts.sessions() as session:
        return list(session.scalars(select(Job.id).where(Job.type == "plan").order_by(Job.id)))


def jobs(api: Api) -> int:
    with api.parts.sessions() as session:
        return session.scalar(select(func.count()).select_from(Job).where(Job.type == "prune")) or 0


def written(spec: dict[str, Any]) -> dict[str, Any]:
    dumped: dict[str, Any] = listed_spec.validate_python(spec).model_dump(mode="json")
    return dumped


def shown_spec(visit: Visit) -> dict[str, Any]:
    """The spec in the curl command that the page shows."""
    command = visit.page.get_by_label("curl", exact=True).inner_text()
    found: dict[str, Any] = json.loads(shlex.split(command)[-1])
    return written(found)


def answer_plans(api: Api, known: int) -> str:
    """Do what a worker does with the next plan. Returns its id."""
    plan_id = wait_for(lambda: (plans(api)[known:] or [None])[-1], "a plan was asked for")
    api.finish(plan_id, report=PLAN)
    return str(plan_id)


@pytest.mark.parametrize("name", ["compress", "pipeline"])
def test_the_form_is_for_everybody(visit: Visit, model: str, name: str):
    visit.page.goto(f"/jobs/new?type={name}&model={model}&dataset=builtin:digits")
    visit.page.locator("#plan").get_by_text("Still working").wait_for()
    for folded in visit.page.locator("details.group").all():
        folded.evaluate("each => { each.open = true }")
    visit.check()


def test_sizes_and_requests_follow_the_slider(api: Api, visit: Visit, model: str):
    page, known = visit.page, len(plans(api))
    page.goto(f"/jobs/new?type=prune&model={model}&dataset=builtin:digits")
    first = answer_plans(api, known)
    page.locator("#plan").get_by_text("16,066").wait_for()
    assert shown_spec(visit) == written({"type": "prune", "model": model, "dataset": "builtin:digits", "amount": 0.5})
    slider = page.get_by_label("Amount: slider")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")  # in one go: only where it rests is planned
    expect(page.get_by_label("Amount amount")).to_have_value("0.53")
    second = answer_plans(api, known + 1)
    expect(page.locator(f'[data-plan="{second}"]')).to_be_visible()
    page.locator("#plan:not([aria-busy])").wait_for()
    assert shown_spec(visit)["amount"] == 0.53
    page.get_by_label("Amount amount").fill("0.5")
    expect(page.locator(f'[data-plan="{first}"]')).to_be_visible()  # it is known, and not made again
    page.locator("#plan").get_by_text("16,066").wait_for()
    assert len(plans(api)) == known + 2
    visit.check()
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/jobs/job_*")
    assert newest_spec(api) == written({"type": "prune", "model": model, "dataset": "builtin:digits", "amount": 0.5})


def test_a_plan_that_nobody_waits_for_is_canceled(api: Api, visit: Visit, model: str):
    known = len(plans(api))
    visit.page.goto(f"/jobs/new?type=prune&model={model}")
    [first] = wait_for(lambda: plans(api)[known:], "a plan was asked for")
    visit.page.locator(f'[data-plan="{first}"]').wait_for()
    visit.page.get_by_label("Amount amount").fill("0.6")
    wait_for(lambda: len(plans(api)) > known + 1, "another plan was asked for")

    def status() -> str | None:
        with api.parts.sessions() as session:  # of SQLite each sees the state at its beginning
            return session.scalar(select(Job.status).where(Job.id == first))

    wait_for(lambda: status() == "canceled", "it is canceled")


def test_what_is_wrong_is_told_at_its_field(api: Api, visit: Visit):
    page = visit.page
    page.goto("/jobs/new?type=prune")
    page.locator("#preview").get_by_text("Still to say").wait_for()
    page.get_by_label("Amount amount").fill("2")
    field = page.get_by_label("Amount amount")
    expect(field).to_have_attribute("aria-invalid", "true")
    assert "must be above 0 and below 1" in page.locator("#f-amount-error").inner_text()
    expect(page.locator("#f-model-error")).to_be_empty()  # nobody was asked for it yet
    page.get_by_role("button", name="Start the job").click()
    summary = page.get_by_role("alert")
    expect(summary).to_be_focused()
    assert "is required" in summary.inner_text()
    expect(page.get_by_label("Amount amount")).to_have_value("2")
    visit.check()
    summary.get_by_role("link", name="Amount").click()
    expect(page.get_by_label("Amount amount")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("0.5")
    expect(page.get_by_label("Amount amount")).not_to_have_attribute("aria-invalid", "true")


def test_what_was_deleted_in_another_tab_is_told_at_its_field(api: Api, visit: Visit):
    model = api.upload(b"a model that no plan of another test names", "digits_cnn.pt")["id"]
    api.inspected(model)
    page, known = visit.page, len(plans(api))
    page.goto(f"/jobs/new?type=prune&model={model}&dataset=builtin:digits")
    answer_plans(api, known)
    page.locator("#plan").get_by_text("16,066").wait_for()
    assert api.delete(f"/v1/models/{model}").status_code == 204
    with page.expect_response("**/jobs/new/preview"):
        page.get_by_role("button", name="Start the job").click()
    page.locator("#preview .wrongs").wait_for()  # the script has asked again, and what it was told is shown
    field = page.get_by_role("combobox", name="Model model")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#f-model-error")).to_contain_text(f"there is no model {model}")
    summary = page.get_by_role("alert")
    expect(summary).to_contain_text("there is no model")
    summary.get_by_role("link", name="Model").click()
    expect(field).to_be_focused()
    visit.check()


@pytest.mark.parametrize(
    ("type_", "gone", "fields"),
    [
        ("compress", {"model", "dataset"}, {"target.file_bytes": "0.25"}),
        ("pipeline", {"model", "dataset"}, {"steps.0": "prune", "target.file_bytes": "0.25"}),
        ("quantize", {"model", "dataset"}, {"method": "static"}),
        ("distill", {"teacher", "student", "dataset", "teachers"}, {}),
        ("prune", {"more"}, {"amount": "0.5"}),
    ],
)
def test_every_upload_that_is_gone_is_told_at_its_field(
    api: Api, model: str, type_: str, gone: set[str], fields: dict[str, str]
):
    ids = {}
    for name in gone:
        kind = "datasets" if name == "dataset" else "models"
        ids[name] = api.upload(f"{type_} {name}".encode(), "gone.npz" if kind == "datasets" else "gone.pt", kind)["id"]
        assert api.delete(f"/v1/{kind}/{ids[name]}").status_code == 204
    texts = {name: json.dumps([{"model": each}]) if name == "teachers" else each for name, each in ids.items()}
    if type_ == "prune":
        texts = {"model": model, "more": json.dumps({"dataset": ids["more"].replace("mdl", "dst")})}
    where = {"dataset"} if type_ == "prune" else gone
    form = {"type": type_, **fields, **texts}
    answers = api.post("/jobs/new", data=form), api.post("/jobs/new/preview", data=form | {"part": "1"})
    assert [each.status_code for each in answers] == [404, 200]
    for name in where:
        assert re.search(rf'id="f-{name}"[^>]* aria-invalid="true"', answers[0].text), answers[0].text
        assert f'<li><a href="#f-{name}">' in answers[0].text
        assert f'data-for="f-{name}"' in answers[1].text


def test_a_keyboard_is_enough(api: Api, visit: Visit, model: str):
    page = visit.page
    page.goto("/jobs/new?type=quantize")

    def tab_to(name: str) -> None:
        for _ in range(120):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.name || document.activeElement.textContent.trim()") == name:
                return
        raise AssertionError(f"{name} is not reached")

    tab_to("model")
    page.keyboard.type("digits_cnn")
    tab_to("method")
    page.keyboard.type("dyn")
    tab_to("The model's architecture and arguments")
    page.keyboard.press("Enter")
    tab_to("example_inputs")
    page.keyboard.type('[{"shape": [1, 1, 8, 8]}]')
    tab_to("Start the job")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs/job_*")
    said = {"method": "dynamic", "example_inputs": [{"shape": [1, 1, 8, 8]}]}
    assert newest_spec(api) == written({"type": "quantize", "model": model} | said)


def test_it_works_without_javascript(api: Api, visiting: Callable[..., Visit], model: str):
    page = visiting(url(api), java_script_enabled=False).page
    page.goto(f"/jobs/new?model={model}")
    page.get_by_role("link", name="Distill").click()
    expect(page.get_by_label("Teacher teacher")).to_have_value(model)
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/jobs/job_*")
    half = {"from_teacher": {"width": 0.5}}
    assert newest_spec(api) == written({"type": "distill", "teacher": model, "student": half})
    page.goto(f"/jobs/new?type=prune&model={model}")
    page.get_by_label("Amount amount").fill("0.4")
    known = len(plans(api))
    page.get_by_role("button", name="Preview").click(no_wait_after=True)
    answer_plans(api, known)
    page.locator("#plan").get_by_text("16,066").wait_for()
    expect(page.get_by_label("Amount amount")).to_have_value("0.4")
    expect(page.get_by_label("curl", exact=True)).to_contain_text('"amount": 0.4')


def test_a_folded_group_opens_where_something_is_said(api: Api, model: str):
    page = api.post("/jobs/new", data={"type": "prune", "model": model, "steps": "x", "quantize.bits": "4"}).text
    opened = [part.split("<")[0] for part in page.split('<details class="group" open><summary>')[1:]]
    assert opened == ["Schedule", "Weights that share values"]


def test_the_same_click_twice_makes_one_job(api: Api, model: str):
    page = api.get("/jobs/new", params={"type": "prune", "model": model}).text
    key = page.split('name="key" value="')[1].split('"')[0]
    known = jobs(api)
    form = {"type": "prune", "key": key, "model": model, "amount": "0.5"}
    first, second = (api.post("/jobs/new", data=form) for _ in range(2))
    assert (first.status_code, first.headers["location"]) == (303, second.headers["location"])
    assert jobs(api) == known + 1
    changed = api.post("/jobs/new", data=form | {"amount": "0.6"})  # after going back
    assert changed.status_code == 303
    assert jobs(api) == known + 2


@pytest.mark.parametrize(
    "name", ["prune: goal", "patterns", "layered student", "formats in another order", "eight steps"]
)
def test_a_job_is_sent_again_with_changes(api: Api, visit: Visit, model: str, name: str):
    spec = json.loads(json.dumps(OF_ALL_KINDS[name]).replace(EXAMPLE_MODEL_ID, model))
    job = api.post("/v1/jobs", json=spec).json()
    visit.page.goto(f"/jobs/new?from={job['id']}")
    visit.page.get_by_label("curl", exact=True).wait_for()
    assert shown_spec(visit) == job["spec"]
    visit.page.get_by_role("button", name="Start the job").click()
    visit.page.wait_for_url(lambda address: "/jobs/job_" in address and job["id"] not in address)
    assert newest_spec(api) == job["spec"]


def test_a_point_of_a_search_is_asked_for_instead_of_its_goal(api: Api, visit: Visit, model: str):
    spec = json.loads(json.dumps(OF_ALL_KINDS["prune: goal"]).replace(EXAMPLE_MODEL_ID, model))
    job = api.post("/v1/jobs", json=spec).json()
    visit.page.goto(f"/jobs/new?from={job['id']}&amount=0.375&round_to=8")
    visit.page.get_by_label("curl", exact=True).wait_for()
    assert shown_spec(visit) == job["spec"] | {"target": None, "amount": 0.375, "round_to": 8}


@pytest.mark.parametrize("within", [True, False])
def test_a_point_of_a_pipelines_search_goes_to_the_step_that_searched(api: Api, visit: Visit, model: str, within: bool):
    own = {"target": {"params": 0.5}} if within else {"criterion": "l2"}
    whole = {} if within else {"target": {"file_bytes": 0.5}}
    steps = [{"prune": {"amount": 0.1}}, {"distill": {}}, {"prune": own}]
    spec = {"type": "pipeline", "model": model, "dataset": "builtin:digits", "steps": steps, **whole}
    job = api.post("/v1/jobs", json=spec).json()
    reports = Path(__file__).parents[1] / "support/reports"
    found, report = (json.loads((reports / f"{name}.json").read_text()) for name in ("search", "pipeline"))
    report["goal"] = None if within else report["goal"]
    api.finish(job["id"], {"model.pt": b"small"}, report | {"frontier": found["frontier"]})
    visit.page.goto(f"/jobs/{job['id']}")
    expect(visit.page.get_by_text("In one of the steps")).to_be_visible()
    if not within:
        visit.check()
    visit.page.locator("figure svg a").first.click()
    visit.page.get_by_label("curl", exact=True).wait_for()
    shown = shown_spec(visit)
    assert shown["target"] is None
    assert shown["steps"][:2] == job["spec"]["steps"][:2]
    before, now = job["spec"]["steps"][2]["prune"], shown["steps"][2]["prune"]
    assert now == before | {"amount": found["frontier"][0]["amount"], "target": None}


def test_a_goal_without_points_to_pick_says_why(api: Api, model: str):
    reports = Path(__file__).parents[1] / "support/reports"
    goal = json.loads((reports / "pipeline.json").read_text())["goal"]
    for name, amount, why in (
        ("quantize", 0.5, "which layers stay in float32"),
        ("pipeline", None, "each step says its own"),
        ("pipeline", 0.5, "in the report of the step"),
        ("weights", None, ""),
    ):
        job_id = api.submit(model=model)["id"]
        report = json.loads((reports / f"{name}.json").read_text()) | {"goal": goal | {"amount": amount}}
        api.finish(job_id, report=report | ({} if why else {"goal": None}))
        page = api.get(f"/jobs/{job_id}").text
        assert why in page
        assert ("submit it again with changes" in page) == bool(why)


def test_hostile_values_are_text(api: Api, visit: Visit):
    made = api.upload(b"another model", HOSTILE + ".pt")
    api.inspected(made["id"])
    page = visit.page
    page.goto(f"/jobs/new?type=prune&model={made['id']}&dataset=builtin:digits")
    page.get_by_text("The task and the data").click()
    page.get_by_label("Output with the labels output").fill(json.dumps(HOSTILE))
    expect(page.get_by_label("curl", exact=True)).to_contain_text("onerror")
    assert shown_spec(visit)["output"] == HOSTILE
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/jobs/job_*")
    assert newest_spec(api)["output"] == HOSTILE
    visit.check_requests()


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"type": HOSTILE}, 422),
        ({"type": "inspect"}, 422),
        ({"type": "x" * 5000}, 422),
        ({"from": HOSTILE}, 404),
        ({"from": "job_" + "0" * 26}, 404),
        ({"model": HOSTILE}, 200),
        ({"model": "mdl_" + "0" * 26, "dataset": "dst_" + "0" * 26}, 200),
        ({"model": "x" * 5000}, 422),
        ({"type": "distill", "model": "dst_" + "0" * 26}, 200),
    ],
)
def test_bad_links_get_a_clear_page(api: Api, query: dict[str, str], status: int):
    answer = api.get("/jobs/new", params=query, headers={"accept": "text/html"})
    assert answer.status_code == status
    assert "<img" not in answer.text
    if query.get("model", "").endswith("0"):
        assert "among your uploads" in answer.text


@pytest.mark.parametrize("path", ["/jobs/new", "/jobs/new/preview"])
@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/x-www-form-urlencoded", 422),
        (b"type=prune&amount=%ff%00&model=%00", "application/x-www-form-urlencoded", None),
        (b"type=prune&key=%0d%0a&plan=../..&amount=.5", "application/x-www-form-urlencoded", None),
        (b"&".join([b"a=1"] * 2000), "application/x-www-form-urlencoded", 422),
        (b"type=prune&more=" + b"x" * (3 << 20), "application/x-www-form-urlencoded", 413),
        (b"{}", "application/json", 422),
        (b"type=prune", "multipart/form-data", 422),
    ],
)
def test_bad_bodies_get_a_clear_page(api: Api, path: str, body: bytes, content_type: str, status: int | None):
    answer = api.post(path, content=body, headers={"accept": "text/html", "content-type": content_type})
    assert answer.status_code == (status or (422 if path == "/jobs/new" else 200))
    assert answer.headers["content-type"].startswith("text/html")


def test_others_models_and_jobs_are_not_there(visiting: Callable[..., Visit], tmp_path: Path):
    with serving(tmp_path, require_keys=True) as api:
        sessions = api.parts.sessions
        ann, bob = (
            {"authorization": f"Bearer {add_key(sessions, create_owner(sessions, name).id, 'k').secret}"}
            for name in ("ann", "bob")
        )
        model = api.post("/v1/models?filename=secret.pt", content=b"x", headers=ann).json()["id"]
        api.inspected(model)
        job = api.post("/v1/jobs", json={"type": "prune", "model": model, "amount": 0.5}, headers=ann).json()["id"]
        assert "secret.pt" in api.get("/jobs/new", headers=ann).text
        shown = api.get("/jobs/new", params={"model": model}, headers=bob)
        assert (shown.status_code, "secret.pt" in shown.text) == (200, False)
        assert api.get("/jobs/new", params={"from": job}, headers=bob).status_code == 404
        form = {"type": "prune", "model": model, "amount": "0.5"}
        posted = api.post("/jobs/new", data=form, headers=bob)
        assert (posted.status_code, f"there is no model {model}" in posted.text) == (404, True)
        page = api.post("/jobs/new/preview", data=form, headers=ann).text
        plan_id = page.split('data-plan="')[1].split('"')[0]
        assert api.get(f"/jobs/new/plans/{plan_id}", headers=ann).status_code == 200
        assert api.get(f"/jobs/new/plans/{plan_id}", headers=bob).status_code == 404
        assert api.get("/jobs/new/plans/x", headers=bob).status_code == 404
        api.post("/jobs/new/preview", data={"type": "prune", "part": "1", "plan": plan_id}, headers=bob)
        with sessions() as session:
            assert session.get_one(Job, plan_id).status == "queued"  # bob cannot drop it
        assert "Authorization: Bearer $PARED_API_KEY" in page.replace("&#34;", '"')


def test_limits_are_told_on_the_form(tmp_path: Path):
    with serving(tmp_path, max_waiting_jobs=1) as api:
        model = api.upload()["id"]
        form = {"type": "prune", "model": model, "amount": "0.5"}
        assert api.post("/jobs/new", data=form).status_code == 303
        refused = api.post("/jobs/new", data=form)
        assert (refused.status_code, "The job cannot be sent like this" in refused.text) == (429, True)
        assert 'value="0.5"' in refused.text


def test_what_is_planned_is_what_comes_out(either_stack: Stack, visiting: Callable[..., Visit]):
    model = either_stack.upload_model(zoo.upload("plain_cnn", "scripted"), "plain_cnn.pt")
    data = either_stack.upload_dataset(zoo.dataset("plain_cnn"), "plain_cnn.npz")
    for each in (model, data):
        inspected = either_stack.inspected(each)
        assert inspected["status"] == "ready", inspected["reason"]
    visit = visiting(either_stack.url)
    page = visit.page
    page.goto(f"/jobs/new?type=prune&model={model}&dataset={data}")
    page.get_by_label("Epochs retrain.epochs").fill("1")
    page.get_by_label("torchscript").check()
    planned = page.locator("#plan:not([aria-busy]) .tiles b")
    planned.first.wait_for()
    parameters = planned.first.inner_text()
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/jobs/job_*")
    report = either_stack.succeeded(page.url.rpartition("/")[2])
    assert f"{report['after']['parameters']:,}" == parameters
    assert report["before"]["parameters"] > report["after"]["parameters"]
    visit.check_requests()
