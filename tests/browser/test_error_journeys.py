"""Twelve ways in which something goes wrong: the page says what it is and what to do, and one can go on from there.

With `PARED_PICTURES=FOLDER` each leaves a picture of its page there: `make pictures` makes those of docs/errors.
What other tests have checked for everybody is not checked again: forms that are refused, jobs that wait, results.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect

from pared.state.keys import add_key, list_keys, revoke_key
from pared.state.owners import create_owner
from pared.state.retention import collect
from pared.state.tables import Job, WorkerHeartbeat
from tests.browser.test_jobs import report_of, submitted
from tests.integration.service.conftest import Api, serving
from tests.support.browsing import Visit
from tests.support.models import hostile, zoo
from tests.support.processes import PATIENCE_S, wait_for
from tests.support.servers import free_port
from tests.support.small_disk import small_disk
from tests.support.stack import Stack

Visiting = Callable[..., Visit]
PICTURE = {"width": 1000, "height": 640}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("api"), max_requests_per_s=0) as api:
        yield api


def picture(page: Page, name: str, of: Locator | None = None) -> None:
    """Leave a picture of what is to be seen now, or of a part of the page, small enough to be kept."""
    folder = os.environ.get("PARED_PICTURES")
    if not folder:
        return
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    page.set_viewport_size(PICTURE)  # type: ignore[arg-type]
    if of is None:
        height = min(PICTURE["height"], page.locator("body").evaluate("body => body.scrollHeight"))
        page.set_viewport_size(PICTURE | {"height": height})  # type: ignore[arg-type]
    content = Image.open(io.BytesIO((page if of is None else of).screenshot())).convert("RGB")
    content.quantize(48, dither=Image.Dither.NONE).save(Path(folder) / f"{name}.png", optimize=True)


def says(page: Page, *texts: str) -> None:
    """Each of these is to be seen in the page itself."""
    for text in texts:
        expect(page.get_by_role("main").get_by_text(text).first).to_be_visible()


def upload(page: Page, kind: str, name: str, content: bytes) -> None:
    page.get_by_label(f"{kind} file").set_input_files({"name": name, "mimeType": "", "buffer": content})
    page.get_by_role("button", name="Upload the model" if kind == "Model" else "Upload the data").click()


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


# -- what the workers find out --------------------------------------------------------------------


@pytest.fixture
def patient(visiting: Visiting, embedded: Stack) -> Visit:
    """A window on a service with a worker, which may take its time."""
    visit = visiting(embedded.url)
    visit.page.set_default_timeout(PATIENCE_S * 1000)
    expect.set_options(timeout=PATIENCE_S * 1000)
    return visit


@pytest.fixture(autouse=True)
def _usual_patience() -> Iterator[None]:
    expect.set_options(timeout=30_000)
    yield
    expect.set_options(timeout=5_000)


def test_a_wrong_file(patient: Visit):
    page = patient.page
    page.goto("/")
    upload(page, "Model", "net.pt", saved(zoo.trained("mlp")))
    says(
        page,
        "Not a model we open.",
        "This file is a pickled nn.Module",
        "torch.jit.save(torch.jit.script(model)",
        "What to do",
    )
    picture(page, "wrong-file")
    patient.check()
    page.get_by_role("link", name="Upload another file").click()
    upload(page, "Model", "net.pt", zoo.upload("mlp", "scripted"))
    page.get_by_role("link", name="Shrink this model").wait_for()
    patient.check_requests()


def test_wrong_data(patient: Visit):
    page, x = patient.page, np.random.default_rng(0).random((40, 16), np.float32)
    x[7, 3] = np.nan
    page.goto("/")
    upload(page, "Data", "sensors.npz", zoo.npz(x, np.arange(40) % 2))
    says(page, "The data cannot be used.", "NaN", "Mend the data and upload it again")
    picture(page, "wrong-data")
    page.get_by_role("link", name="Upload another file").click()
    upload(page, "Data", "sensors.npz", zoo.npz(np.nan_to_num(x), np.arange(40) % 2))
    page.get_by_role("region", name="Samples: table", exact=True).wait_for()
    patient.check_requests()


def test_a_model_that_the_sandbox_stops(patient: Visit):
    page = patient.page
    page.goto("/models")
    upload(page, "Model", "crashing.pt", zoo.saved(torch.jit.script(hostile.EndsItsProcess().eval())))
    says(page, "The model ended its process.", "was ended by SIGFPE", "Run the model by torch alone on one batch")
    picture(page, "stopped-by-the-sandbox")
    page.get_by_role("link", name="Why this comes").click()
    page.wait_for_url("**/problems/model-crashes-worker")
    page.go_back()
    page.get_by_role("link", name="Upload another file").click()
    upload(page, "Model", "mended.pt", zoo.upload("mlp", "scripted"))
    page.get_by_role("link", name="Shrink this model").wait_for()
    patient.check_requests()


# -- what the service alone can show --------------------------------------------------------------


def test_no_worker(api: Api, visiting: Visiting):
    job = submitted(api)
    visit = visiting(str(api.base_url))
    page = visit.page
    page.goto(f"/jobs/{job}")
    says(page, "No worker that can run jobs is alive", "Whoever runs this server starts one with pared worker")
    picture(page, "no-worker")
    with api.parts.sessions.begin() as session:
        session.add(WorkerHeartbeat(name="worker", sandbox="standard", device="cpu", devices=["cpu"]))
    fence = api.claim(job)
    page.locator(".state", has_text="Running").wait_for()
    expect(page.get_by_text("No worker that can run jobs")).to_have_count(0)
    api.finish_claimed(job, fence, report=report_of("search"))
    page.get_by_role("heading", name="Files").wait_for()
    visit.check_requests()
    with api.parts.sessions.begin() as session:
        session.delete(session.get(WorkerHeartbeat, "worker"))


def test_a_goal_that_cannot_be_reached(api: Api, visiting: Visiting):
    job = submitted(api)
    api.finish(job, {"model.pt": b"small"}, report_of("infeasible"))
    visit = visiting(str(api.base_url))
    page = visit.page
    page.goto(f"/jobs/{job}")
    says(page, "goal infeasible", "where at most 0 points was asked", "Its files are those of the nearest result")
    picture(page, "goal-infeasible")
    page.get_by_role("main").get_by_role("link", name="submit it again").click()
    page.wait_for_url(f"**/jobs/new?from={job}")
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/jobs/job_*")
    visit.check_requests()


def test_a_key_that_is_revoked_while_its_page_is_open(tmp_path: Path, visiting: Visiting):
    with serving(tmp_path / "data", require_keys=True) as api:
        sessions = api.parts.sessions
        owner = create_owner(sessions, "ann").id
        first, second = (add_key(sessions, owner, name).secret for name in ("old", "new"))
        api.headers["X-API-Key"] = second
        job = submitted(api)
        visit = visiting(str(api.base_url))
        page = visit.page

        def sign_in(secret: str) -> None:
            page.get_by_label("API key").fill(secret)
            page.get_by_role("button", name="Sign in").click()

        page.goto(f"/jobs/{job}")
        sign_in(first)
        page.get_by_text("It is next").wait_for()
        revoke_key(sessions, next(key.id for key in list_keys(sessions, owner) if key.name == "old"))
        page.wait_for_url("**/sign-in?next=*")
        says(page, "This API key is unknown or was revoked. Sign in with another one")
        picture(page, "key-revoked")
        visit.check()
        sign_in(second)
        page.wait_for_url(f"**/jobs/{job}")
        says(page, "It is next")
        visit.check_requests()


def test_a_disk_that_is_full(scratch: Path, visiting: Visiting):
    with small_disk(scratch / "disk of the pages", 48) as disk, serving(disk.folder / "data") as api:
        visit = visiting(str(api.base_url))
        page = visit.page
        page.goto("/")
        disk.fill()
        upload(page, "Model", "net.pt", bytes(300_000))
        says(page, "The server's disk has room for 0 bytes. Delete models you no longer need, or try again later.")
        picture(page, "disk-full")
        disk.empty()
        page.get_by_role("button", name="Upload the model").click()
        page.wait_for_url("**/models/mdl_*")
        visit.check_requests()


def test_a_server_that_is_restarted_while_one_watches(tmp_path: Path, visiting: Visiting):
    folder, port = tmp_path / "data", free_port()
    with serving(folder, port=port) as api:
        job = submitted(api)
        fence = api.claim(job)
        visit = visiting(str(api.base_url))
        page = visit.page
        page.goto(f"/jobs/{job}")
        page.locator(".state", has_text="Running").wait_for()
    says(page, "The server does not answer. This page asks again every few seconds")
    picture(page, "server-restarted")
    visit.check()
    with serving(folder, port=port) as api:
        expect(page.get_by_text("The server does not answer")).to_have_count(0)
        expect(page.locator("#spoken")).to_have_text("The server answers again.")
        api.finish_claimed(job, fence, report=report_of("search"))
        page.get_by_role("heading", name="Files").wait_for()
        visit.check_requests()


def test_an_upload_that_breaks_off(api: Api, visiting: Visiting):
    visit = visiting(str(api.base_url))
    page, offsets, held = visit.page, list[int](), list[Route]()

    def broken(route: Route) -> None:
        if route.request.method == "HEAD":
            held.append(route)
            return
        offsets.append(int(route.request.headers["upload-offset"]))
        if len(offsets) == 2:
            route.abort("connectionreset")
        else:
            route.continue_()

    page.route("**/v1/uploads/*", broken)
    page.goto("/")
    upload(page, "Model", "large.pt", b"pared" * 1_800_000)
    says(page, "The connection broke. It goes on by itself.")
    picture(page, "upload-broken-off")
    while not held:  # it waits a while before it asks how far it came; the test's own limit ends this
        page.wait_for_timeout(50)
    held.pop().continue_()
    page.wait_for_url("**/models/mdl_*")
    assert offsets == [0, 8 << 20, 8 << 20]
    visit.check_requests()


def test_two_tabs_of_which_one_deletes_what_the_other_needs(api: Api, visiting: Visiting):
    going, staying = (api.upload(name.encode(), name)["id"] for name in ("going.pt", "staying.pt"))
    for each in (going, staying):
        api.inspected(each)
    visit = visiting(str(api.base_url))
    form, other = visit.page, visit.context.new_page()
    form.goto(f"/jobs/new?type=prune&model={going}")
    other.goto(f"/models/{going}")
    other.get_by_text("Delete this model").click()
    other.get_by_role("button", name="Delete the model for good").click()
    other.wait_for_url("**/models")
    form.get_by_role("button", name="Start the job").click()
    summary = form.get_by_role("alert")
    expect(summary).to_contain_text("The job cannot be sent like this")
    expect(summary).to_contain_text("upload it first")
    picture(form, "two-tabs")
    form.get_by_label("Model model").select_option(staying)
    form.get_by_role("button", name="Start the job").click()
    form.wait_for_url("**/jobs/job_*")
    visit.check_requests()


def test_a_link_to_what_is_no_longer_kept(tmp_path: Path, visiting: Visiting):
    with serving(tmp_path / "data", retention_days=1) as api:
        job = submitted(api)
        api.finish(job)
        visit = visiting(str(api.base_url))
        page = visit.page
        page.goto(f"/jobs/{job}")
        with api.parts.sessions.begin() as session:
            session.get_one(Job, job).finished_at = time.time() - 2 * 86_400
        assert collect(api.parts.sessions, api.parts.store, api.parts.settings).jobs == [job]
        page.reload()
        says(page, f"There is no job {job}.", "What was deleted, or was kept for as long as your limits say, is gone.")
        picture(page, "expired-link")
        visit.check()
        page.get_by_role("main").get_by_role("link", name="your limits").click()
        says(page, "are deleted after 1 day.")
        page.go_back()
        page.get_by_role("main").get_by_role("link", name="the start").click()
        page.get_by_role("heading", name="Make a trained PyTorch model smaller").wait_for()
        visit.check_requests()


class Receiver(BaseHTTPRequestHandler):
    """Of webhooks; answers as its server is told."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.answer)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def receiving(answer: int) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.answer = answer  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_webhook_whose_receiver_is_gone(tmp_path: Path, visiting: Visiting):
    with receiving(410) as receiver, serving(tmp_path / "data", allow_private_webhooks=True) as api:
        address = f"http://127.0.0.1:{receiver.server_port}/pared"
        made = api.post("/v1/webhooks", json={"url": address, "description": "our CI"})
        assert made.status_code == 201, made.text
        api.finish(submitted(api))
        here = made.json()["links"]["self"]
        wait_for(lambda: api.get(here).json()["disabled_at"], "the webhook is disabled")
        visit = visiting(str(api.base_url))
        page = visit.page
        page.goto("/account")
        row = page.get_by_role("row", name="our CI")
        expect(row).to_contain_text("disabled")
        expect(row).to_contain_text("the receiver says that it is gone", ignore_case=True)
        says(page, "Mend what receives its notices, then send a test: delivered, it enables the webhook again")
        picture(page, "webhook-dead", page.get_by_role("region", name="Your webhooks", exact=True))
        visit.check()
        receiver.answer = 204  # type: ignore[attr-defined]
        page.get_by_role("button", name="Send a test").click()
        wait_for(lambda: not api.get(here).json()["disabled_at"], "the webhook is enabled")
        page.reload()
        expect(page.get_by_role("row", name="our CI")).to_contain_text("works")
        visit.check_requests()


def test_a_webhook_is_seen_and_tested_by_its_owner_alone(tmp_path: Path):
    with serving(tmp_path / "data", require_keys=True, allow_private_webhooks=True) as api:
        sessions = api.parts.sessions
        ann, bob = (add_key(sessions, create_owner(sessions, name).id, name).secret for name in ("ann", "bob"))
        asked = {"url": "http://127.0.0.1:9/pared", "description": "<img src=x onerror=alert(1)>\x1b[31m"}
        made = api.post("/v1/webhooks", json=asked, headers={"X-API-Key": ann})
        assert made.status_code == 201, made.text
        hook, page = made.json()["id"], {"Accept": "text/html"}
        shown = {key: api.get("/account", headers=page | {"X-API-Key": key}).text for key in (ann, bob)}
        assert hook in shown[ann]
        assert hook not in shown[bob]
        assert "<img" not in shown[ann]
        assert "\x1b" not in shown[ann]
        for key, each in ((bob, hook), (ann, "whk_" + "0" * 26), (ann, "%00<b>"), (ann, "..%2f" + "x" * 3000)):
            answer = api.post(f"/account/webhooks/{each}/test", headers=page | {"X-API-Key": key})
            assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8"), each
        for _ in range(2):  # the second while the first may be under way
            answer = api.post(f"/account/webhooks/{hook}/test", headers=page | {"X-API-Key": ann})
            assert (answer.status_code, answer.headers["location"]) == (303, "/account")
