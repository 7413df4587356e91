"""Pages about jobs: live while a job goes on, with its result, listed and compared; for whoever may see them."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import bindparam, insert, select

from pared.state import lifecycle
from pared.state.keys import add_key, caller_of
from pared.state.owners import create_owner
from pared.state.tables import Job, Model, WorkerHeartbeat, new_id
from tests.integration.service.conftest import Api, serving
from tests.support.browsing import Visit
from tests.support.processes import PATIENCE_S, wait_for
from tests.support.servers import free_port
from tests.support.stack import Stack

REPORTS = Path(__file__).parents[1] / "support/reports"
HOSTILE = "\"'><script>document.title = 'run'</script>\x1b[31m\u202e{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("api"), max_requests_per_s=0) as api:
        yield api


def report_of(name: str) -> dict[str, Any]:
    return json.loads((REPORTS / f"{name}.json").read_text())


def write(api: Api, job_id: str, fence: int, values: dict[str, Any], *events: tuple[str, dict[str, Any]]) -> None:
    """What a worker writes down while it holds a job."""
    with api.parts.sessions.begin() as session:
        assert lifecycle.advance(session, job_id, fence, values, events)  # type: ignore[arg-type]


def enter(api: Api, job_id: str, fence: int, stage: str) -> None:
    write(api, job_id, fence, {"stage": stage}, ("status", {"status": "running", "stage": stage}))


def epochs(first: int, last: int) -> list[tuple[str, dict[str, Any]]]:
    said: list[tuple[str, dict[str, Any]]] = []
    for epoch in range(first, last + 1):
        for name, value in (("train_loss", 2 / epoch), ("validation_accuracy", 0.98 - 0.3 / epoch)):
            said.append(("metric", {"name": name, "value": value, "step": epoch, "phase": "retrain"}))
        said.append(("log", {"text": f"retrain: epoch {epoch} of {last}, loss {2 / epoch:.4g}"}))
    return said


def submitted(api: Api, filename: str = "digits_cnn.pt", **fields: Any) -> str:
    model = api.upload(str(time.monotonic_ns()).encode(), filename)["id"]
    api.inspected(model)
    job_id: str = api.submit(model=model, dataset="builtin:digits", **fields)["id"]
    return job_id


def test_a_page_follows_its_job_from_the_queue_to_the_result(api: Api, visiting: Callable[..., Visit]):
    job_id = submitted(api)
    visit = visiting(str(api.base_url))
    page = visit.page
    page.goto(f"/jobs/{job_id}")
    assert page.get_by_text("It is next").is_visible()
    assert page.get_by_text("No worker that can run jobs is alive").is_visible()
    visit.check()
    visit.context.grant_permissions(["notifications"])
    page.evaluate("window.stays = true")

    fence = api.claim(job_id)
    enter(api, job_id, fence, "validate")
    enter(api, job_id, fence, "retrain")
    progress = {"fraction": 0.42, "epoch": 4, "epochs": 10, "eta_s": 75.0}
    write(api, job_id, fence, {"progress": progress}, ("progress", progress), *epochs(1, 4))
    page.get_by_text("epoch 4 of 10, about 1 min 15 s left").wait_for()
    page.get_by_role("img", name="validation accuracy").wait_for()
    assert page.title().startswith("42 % · prune of digits_cnn.pt")
    assert page.locator("[aria-current=step]").inner_text().startswith("▸ Train")
    page.evaluate("document.querySelector('.charts svg').kept = true")
    write(api, job_id, fence, {}, *epochs(5, 5))
    page.get_by_text("epoch 5 of 5").wait_for()
    assert page.evaluate("document.querySelector('.charts svg').kept"), "elements stay while their content changes"
    visit.check()

    api.finish_claimed(job_id, fence, {"model.pt": b"small"}, report_of("search"))
    page.get_by_role("heading", name="Files").wait_for()
    assert page.title().startswith("✓ Succeeded")
    assert page.evaluate("window.stays")
    visit.check()


def test_jobs_are_listed_filtered_and_compared(api: Api, visiting: Callable[..., Visit]):
    jobs = []
    for name in ("search", "weights", "distill"):
        jobs.append(submitted(api, f"net_{name}.pt", amount=0.3 + 0.1 * len(jobs)))
        api.finish(jobs[-1], report=report_of(name))
    failed = submitted(api, HOSTILE)
    api.fail(failed)
    visit = visiting(str(api.base_url))
    page = visit.page
    page.goto("/jobs")
    assert page.get_by_role("link", name="net_distill.pt").is_visible()
    visit.check()
    page.get_by_label("State").select_option("failed")
    page.get_by_role("button", name="Show").click()
    assert page.locator("tbody tr").count() == 1
    assert "Training diverged" in page.locator("tbody").inner_text()
    page.get_by_role("link", name="All jobs").click()
    page.get_by_label("Name, id, error").fill("NET_w")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="net_weights.pt").wait_for()
    assert page.locator("tbody tr").count() == 1
    page.get_by_role("link", name="All jobs").click()
    for name in ("net_search.pt", "net_weights.pt", "net_distill.pt"):
        page.get_by_label(name).check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("heading", name="3 jobs side by side").wait_for()
    assert page.get_by_role("row", name="amount 0.5 0.4 0.3").is_visible()
    assert page.locator("figure svg a").count() == 3
    visit.check()
    page.goto(f"/v1/jobs/{jobs[0]}/report")
    page.get_by_role("heading", name="Before and after").wait_for()
    visit.check()


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/jobs/compare", 422, "Tick 2 to 5 jobs"),
        (f"/jobs/compare?job={'job_' + '0' * 26}&job=x", 404, "Job ids look like"),
        ("/jobs?status=done", 422, "is one of queued"),
        ("/jobs?text=%00", 422, "no name has"),
        ("/jobs?model=%25", 422, "the id of a model"),
        (f"/jobs/{'job_' + '0' * 26}", 404, "There is no job"),
        ("/jobs/%3Cscript%3E", 404, "Job ids look like"),
        (f"/jobs/{'job_' + '0' * 26}/live", 404, "There is no job"),
        (f"/jobs/{'job_' + '0' * 26}/log?before=0", 422, "The request is not valid"),
        ("/admin", 403, "pared keys add NAME --scope admin"),
    ],
)
def test_what_cannot_be_shown_is_a_page_that_says_why(api: Api, path: str, status: int, says: str):
    answer = api.get(path, headers={"Accept": "text/html"})
    assert answer.status_code == status
    assert says in answer.text
    assert answer.headers["content-type"].startswith("text/html")


def test_whoever_runs_the_service_sees_how_it_does(tmp_path: Path, visiting: Callable[..., Visit]):
    with serving(tmp_path / "data", require_keys=True, retention_days=30, max_stored_bytes=10**6) as api:
        sessions = api.parts.sessions
        owner = create_owner(sessions, "ann").id
        secret = add_key(sessions, owner, "browser", scopes=["read", "submit", "admin"]).secret
        add_key(sessions, owner, "old one", valid_s=3600)
        api.headers["X-API-Key"] = secret
        api.fail(submitted(api))
        api.claim(submitted(api))
        submitted(api)
        with sessions.begin() as session:
            session.add(WorkerHeartbeat(name="worker", sandbox="standard", device="cpu: 2 threads of an old one"))
        visit = visiting(str(api.base_url))
        page = visit.page
        page.goto("/sign-in?next=/admin")
        page.get_by_label("API key").fill(secret)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="The whole service").wait_for()
        assert "prune job_" in page.get_by_role("row", name="cpu: 2 threads").inner_text()
        assert page.get_by_role("row", name="diverged prune 1").is_visible()
        visit.check()
        page.get_by_role("link", name="Limits and keys").click()
        assert "this browser's" in page.get_by_role("row", name="browser").inner_text()
        assert page.get_by_text("30 days").is_visible()
        visit.check()


def test_a_job_that_failed_says_why_and_one_is_canceled_in_two_tabs(api: Api, visiting: Callable[..., Visit]):
    failed, canceled = submitted(api), submitted(api)
    api.fail(failed)
    fence = api.claim(canceled)
    visit = visiting(str(api.base_url))
    page = visit.page
    page.goto(f"/jobs/{failed}")
    assert page.get_by_role("heading", name="Training diverged").is_visible()
    assert page.get_by_text("The loss was NaN at epoch 2.").is_visible()
    assert (
        page.get_by_role("link", name="Submit again with changes").get_attribute("href") == f"/jobs/new?from={failed}"
    )
    assert page.get_by_role("button", name="Cancel").count() == 0
    visit.check()

    page.goto(f"/jobs/{canceled}")
    other = visit.context.new_page()
    other.goto(f"/jobs/{canceled}")
    while page.evaluate("document.activeElement.textContent") != "Cancel":  # by keyboard alone
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    for each in (page, other):
        each.locator(".state", has_text="Stopping").wait_for()
    with api.parts.sessions.begin() as session:
        assert lifecycle.finish_cancel(session, canceled, fence)
    for each in (page, other):
        each.get_by_text("It was canceled, so there is no result.").wait_for()
        assert each.title().startswith("✗ Canceled")
    page.reload()
    assert api.post(f"/jobs/{canceled}/cancel", follow_redirects=True).status_code == 200  # it has ended meanwhile


def test_a_job_is_pinned_and_unpinned_without_scripts(api: Api, visiting: Callable[..., Visit]):
    job_id = submitted(api)
    api.finish(job_id, report=report_of("search"))
    page = visiting(str(api.base_url), java_script_enabled=False).page
    page.goto(f"/jobs/{job_id}")
    page.get_by_role("button", name="Pin", exact=True).click()
    assert page.get_by_text("are kept whatever their age").is_visible()
    assert api.get(f"/v1/jobs/{job_id}").json()["pinned"]
    page.get_by_role("button", name="Unpin").click()
    page.get_by_role("button", name="Pin", exact=True).wait_for()
    assert page.get_by_text("are kept whatever their age").count() == 0
    assert not api.get(f"/v1/jobs/{job_id}").json()["pinned"]
    elsewhere = {"origin": "http://elsewhere.example", "sec-fetch-site": "cross-site"}
    assert api.post(f"/jobs/{job_id}/pin", headers=elsewhere).status_code == 403
    for unknown in ("x", "job_" + "0" * 26):
        assert api.post(f"/jobs/{unknown}/pin", headers={"Accept": "text/html"}).status_code == 404


def test_the_list_follows_its_jobs_until_all_have_ended(visiting: Callable[..., Visit], tmp_path: Path):
    with serving(tmp_path / "data", max_requests_per_s=0) as api:
        first, second = submitted(api, "first.pt"), submitted(api, "second.pt", amount=0.25)
        visit = visiting(str(api.base_url))
        page = visit.page

        def asked() -> int:
            return sum("/jobs/live" in url for url in visit.asked)

        page.goto("/jobs?type=prune")
        page.get_by_label("first.pt").check()
        page.get_by_label("Name, id, error").fill("not yet sent")
        page.get_by_role("link", name="second.pt").focus()
        fence = api.claim(first)
        enter(api, first, fence, "retrain")
        write(api, first, fence, {"progress": {"fraction": 0.42}})
        row = page.locator(f"tr#{first}")
        row.get_by_text("42 % Train").wait_for()
        third = submitted(api, "third.pt", amount=0.75)
        page.get_by_role("link", name="third.pt").wait_for()
        assert page.get_by_label("first.pt").is_checked()
        assert page.get_by_label("Name, id, error").input_value() == "not yet sent"
        assert page.evaluate("document.activeElement.textContent") == "prune of second.pt"
        assert page.locator("#spoken").inner_text() == ""
        visit.check()
        hide = (
            "hidden => { Object.defineProperty(document, 'hidden', { configurable: true, get: () => hidden });"
            "document.dispatchEvent(new Event('visibilitychange')) }"
        )
        page.evaluate(hide, True)
        api.finish_claimed(first, fence, report=report_of("search"))
        page.wait_for_timeout(1000)  # an answer that was under way is there
        before = asked()
        page.wait_for_timeout(4000)
        assert asked() == before
        page.evaluate(hide, False)
        row.get_by_text("Succeeded").wait_for()
        for each in (second, third):
            api.fail(each)
        page.locator("form[data-ended]").wait_for()
        before = asked()
        page.wait_for_timeout(4000)
        assert asked() == before
        assert api.get("/jobs/live?status=done").status_code == 422


def test_a_notice_tells_of_the_end_where_it_is_allowed(api: Api, visiting: Callable[..., Visit]):
    job_id = submitted(api)
    visit = visiting(str(api.base_url), permissions=["notifications"])
    visit.page.add_init_script(
        "window.told = []; const real = Notification;"
        "window.Notification = class extends real { constructor(text) { super(text); told.push(text); } };"
    )
    visit.page.goto(f"/jobs/{job_id}")
    visit.page.get_by_role("button", name="Tell me when it ends").click()
    visit.page.get_by_text("You will be told").wait_for()
    visit.page.evaluate(  # as when another tab is looked at, which a browser without a screen does not do
        "Object.defineProperty(document, 'hidden', { get: () => true });"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    wait_for(lambda: api.parts.changes.open_streams == 0, "a hidden page holds no stream")
    api.finish(job_id)
    visit.page.wait_for_function("() => told.length")
    assert visit.page.evaluate("told") == ["Succeeded: Prune of digits_cnn.pt"]


def test_a_thousand_epochs_stay_light_and_hostile_text_is_text(api: Api, visiting: Callable[..., Visit]):
    job_id = submitted(api, HOSTILE)
    fence = api.claim(job_id)
    enter(api, job_id, fence, "retrain")
    write(api, job_id, fence, {}, *epochs(1, 1000), ("log", {"text": HOSTILE}), ("log", {"text": "x" * 20_000}))
    hostile = {"name": HOSTILE, "value": float("1e308"), "step": 1, "phase": HOSTILE}
    write(api, job_id, fence, {"stage": HOSTILE[:16]}, ("metric", hostile), ("metric", {"name": "train_loss"}))
    visit = visiting(str(api.base_url))
    page = visit.page
    page.goto(f"/jobs/{job_id}")
    assert len(page.content().encode()) < 100_000
    assert page.locator("svg path.line").first.evaluate("line => line.getAttribute('d').split('L').length") <= 200
    log = page.get_by_role("region", name="Lines of the log")
    assert "␛[31m" in log.inner_text()
    assert "<script>" in log.inner_text()
    assert log.evaluate("log => log.scrollTop + log.clientHeight >= log.scrollHeight - 4")
    assert page.title() != "run"
    visit.check()
    page.get_by_role("link", name="Older lines").click()
    page.get_by_role("link", name="Older lines").click()
    assert "epoch 402 of 1000" in page.get_by_role("region", name="Log").inner_text()
    visit.check()

    report = report_of("weights")
    record = report["history"][0]
    report["history"] = [record | {"epoch": epoch, "phase": HOSTILE} for epoch in range(1000)]
    report["layers"] = [report["layers"][0] | {"name": f"{HOSTILE}{layer}"} for layer in range(1000)]
    api.finish_claimed(job_id, fence, {"model.pt": b"small", "x.report.json": b"{}"}, report)
    page.goto(f"/jobs/{job_id}")
    page.get_by_role("heading", name="Files").wait_for()
    assert len(page.content().encode()) < 300_000
    visit.check_requests()


def test_a_page_recovers_when_the_server_comes_back(tmp_path: Path, visiting: Callable[..., Visit]):
    folder, port = tmp_path / "data", free_port()
    with serving(folder, port=port) as api:
        job_id = submitted(api)
        fence = api.claim(job_id)
        visit = visiting(str(api.base_url))
        visit.page.goto(f"/jobs/{job_id}")
        visit.page.locator(".state", has_text="Running").wait_for()
    visit.page.locator("[data-trouble]").wait_for()
    with serving(folder, port=port) as api:
        visit.page.locator("[data-live]:not([data-trouble])").wait_for()
        api.finish_claimed(job_id, fence, report=report_of("search"))
        visit.page.get_by_role("heading", name="Files").wait_for()


def test_a_place_in_the_queue_moves_without_a_reload(tmp_path: Path, visiting: Callable[..., Visit]):
    with serving(tmp_path / "data") as api:
        first, second = submitted(api), submitted(api)
        visit = visiting(str(api.base_url))
        visit.page.goto(f"/jobs/{second}")
        assert visit.page.get_by_text("1 job comes before it.").is_visible()
        api.claim(first)
        visit.page.get_by_text("It is next").wait_for()


def test_a_page_is_its_owners_alone(tmp_path: Path, visiting: Callable[..., Visit]):
    with serving(tmp_path / "data", require_keys=True) as api:
        sessions = api.parts.sessions
        ann, bob = (add_key(sessions, create_owner(sessions, name).id, name).secret for name in ("ann", "bob"))
        reader = add_key(sessions, caller_of(sessions, ann).owner, "reader", scopes=["read"]).secret
        api.headers["X-API-Key"] = ann
        job_id = submitted(api)
        for secret, may_look, may_submit in ((ann, True, True), (reader, True, False), (bob, False, False)):
            answer = api.get(f"/jobs/{job_id}", headers={"X-API-Key": secret, "Accept": "text/html"})
            assert answer.status_code == (200 if may_look else 404)
            assert ("Cancel" in answer.text) == may_submit
            assert (job_id in api.get("/jobs", headers={"X-API-Key": secret}).text) == may_look
        refused = api.post(f"/jobs/{job_id}/cancel", headers={"X-API-Key": reader, "Accept": "text/html"})
        assert (refused.status_code, "Sign in with another key" in refused.text) == (403, True)
        assert api.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"


def test_without_scripts_a_job_is_followed_by_reloading(api: Api, visiting: Callable[..., Visit]):
    job_id = submitted(api)
    page = visiting(str(api.base_url), java_script_enabled=False).page
    page.goto(f"/jobs/{job_id}")
    page.get_by_role("button", name="Cancel").click()
    assert page.get_by_text("It was canceled").is_visible()
    assert page.get_by_role("button", name="Tell me").count() == 0
    done = submitted(api)
    api.finish(done, {"model.pt": b"small"}, report_of("search"))
    page.goto(f"/jobs/{done}")
    with page.expect_download() as download:
        page.get_by_role("link", name="model.pt").click()
    assert download.value.path().read_bytes() == b"small"
    page.get_by_text("The points in figures").click()
    first = page.get_by_role("region", name="The points in figures").get_by_role("link").first
    assert first.get_attribute("href") == f"/jobs/new?from={done}&amount=0.007813"


def test_ten_thousand_jobs_are_paged(tmp_path: Path, visiting: Callable[..., Visit]):
    with serving(tmp_path / "data", max_requests_per_s=0) as api:
        first = submitted(api)
        spec = api.get(f"/v1/jobs/{first}").json()["spec"]
        api.finish(first, report=report_of("search"))
        names = Job.__table__.columns.keys()
        copied = insert(Job).from_select(
            names,
            select(*(bindparam("other") if n == "id" else Job.__table__.c[n] for n in names)).where(Job.id == first),
        )
        with api.parts.sessions.begin() as session:  # copied by the database: the report is not written out again
            session.connection().execute(copied, [{"other": new_id("job")} for _ in range(10_000)])
        unused = api.upload(b"another model", "another.pt")["id"]
        api.inspected(unused)
        with api.parts.sessions.begin() as session:  # as if it were as old as the first job
            session.get_one(Model, unused).created_at -= 7200.0
        visit = visiting(str(api.base_url))
        page = visit.page
        for path in ("/jobs", f"/jobs?model={spec['model']}", "/jobs?text=digits_cnn", "/jobs?text=none"):
            page.goto(path)
            assert page.locator("tbody tr").count() == (0 if path.endswith("none") else 25)
            assert len(page.content().encode()) < 100_000
        page.goto(f"/models/{spec['model']}")
        assert page.get_by_role("region", name="Jobs of this model: table").locator("tbody tr").count() == 10
        page.goto(f"/models/{unused}")
        assert page.get_by_text("None of your newest 1,000 jobs names it.").is_visible()
        page.get_by_role("link", name="All its jobs").click()
        page.get_by_text("No job is like that.").wait_for()
        page.goto("/jobs")
        first = page.locator("tbody th small").first.inner_text()
        page.get_by_role("link", name="Older jobs").click()
        page.get_by_role("link", name="Newest").wait_for()
        assert page.locator("tbody th small").first.inner_text() < first
        visit.check_requests()


def test_the_page_of_a_real_job_goes_from_the_queue_to_the_result(stack: Stack, visiting: Callable[..., Visit]):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    model_id = stack.upload_model(file.getvalue(), "small.pt")
    stack.inspected(model_id)
    spec = {"type": "prune", "model": model_id, "dataset": "builtin:digits", "amount": 0.5, "retrain": {"epochs": 3}}
    job_id = stack.submit(spec)
    visit = visiting(stack.url)
    page = visit.page
    page.set_default_timeout(PATIENCE_S * 1000)
    page.goto(f"/jobs/{job_id}")
    page.evaluate("window.stays = true")
    page.get_by_role("heading", name="Files").wait_for()
    assert page.evaluate("window.stays")
    assert "retrain: epoch 3 of 3" in page.get_by_role("region", name="Lines of the log").inner_text()
    with page.expect_download() as download:
        page.get_by_role("link", name="model.pt").click()
    small = torch.jit.load(str(download.value.path()))
    assert small(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    page.get_by_role("link", name="The report as one file").click()
    page.wait_for_url("**/report")
    assert "report of a prune job" in page.content()

    page.goto(f"/jobs?text=SMALL.pt&type=prune&status=succeeded&model={model_id}&dataset=builtin:digits")
    assert page.locator("tbody tr").count() == 1
    page.goto(f"/jobs/compare?job={job_id}&job={stack.submit(spec | {'amount': 0.25})}")
    assert page.get_by_role("row", name="amount 0.5 0.25").is_visible()
    visit.check_requests()
    key = json.loads(stack.run("keys", "add", "operator", "--scope", "admin", "--json"))
    answer = stack.http.get("/admin", headers={"X-API-Key": key["secret"]})
    assert answer.status_code == 200, answer.text
    assert "prune" in answer.text
