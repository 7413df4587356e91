"""Models and data sets by the pages: a file is dropped, sent over a bad line, looked at and deleted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import FileChooser, Route, expect
from torch import nn

from pared.state.keys import add_key
from pared.state.owners import create_owner
from tests.integration.service.conftest import Api, serving
from tests.integration.service.test_previews import inspect
from tests.support.browsing import Visit
from tests.support.inspections import inspection, layer, layers
from tests.support.processes import PATIENCE_S
from tests.support.stack import Stack

expect.set_options(timeout=PATIENCE_S * 1000 / 4)  # as long as windows wait

Visiting = Callable[..., Visit]
HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\"\u202e'&amp;.pt"


SMALL = inspection(
    *(layer(number) for number in range(4)),
    layer(4, name="norm", kind="batch_norm", channels=None, prunable_channels=False, macs=0, parameters=70),
    layer(5, name="classifier", kind="linear", channels=10, prunable_channels=False, reason="the model's output"),
    warnings=["This file was traced in eval mode: its batch-norm statistics stay as they are while it trains."],
)
DATA = {
    "format": "npz",
    "task": "classification",
    "inputs": [{"shape": [1, 8, 8], "dtype": "float32"}],
    "samples": {"train": 1257, "val": 270, "test": 270},
    "splits": "by_seed",
    "labelled": True,
    "target": {"dtype": "int64", "shape": [], "classes": 3, "class_names": ["ant", "bee", "<b>cat</b>"]},
    "warnings": [],
}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("pages")) as api:
        yield api


@pytest.fixture
def lenet(tmp_path: Path) -> Path:
    file = tmp_path / "lenet.pt"
    file.write_bytes(tmp_path.name.encode() * 1000)
    return file


@pytest.fixture
def big(tmp_path: Path) -> Path:
    file = tmp_path / "big.pt"
    file.write_bytes(tmp_path.name[-10:].encode() * 2_000_000)
    return file


def test_a_model_is_uploaded_and_its_card_follows_the_inspection(api: Api, visiting: Visiting, lenet: Path):
    visit = visiting(str(api.base_url))
    page = visit.page
    page.goto("/")
    visit.check()
    page.get_by_label("Model file").set_input_files(lenet)
    page.get_by_role("button", name="Upload the model").click()
    page.wait_for_url("**/models/mdl_*")
    expect(page.get_by_role("heading", level=1)).to_have_text("lenet.pt")
    expect(page.get_by_text("being opened in a sandbox")).to_be_visible()
    expect(page.get_by_text("No worker that can run jobs is alive")).to_be_visible()
    visit.check()
    model_id = page.url.rpartition("/")[2]
    api.inspected(model_id, inspection=SMALL, format="torchscript")
    expect(page.get_by_role("link", name="Shrink this model")).to_have_attribute("href", f"/jobs/new?model={model_id}")
    expect(page.locator("#spoken")).to_have_text("The model is ready.")
    row = page.get_by_role("row", name="classifier")
    assert "no: the model's output" in row.inner_text()
    job = api.submit(model=model_id)
    api.finish(job["id"])
    page.reload()
    expect(page.get_by_role("region", name="Jobs of this model")).to_contain_text("smaller")
    visit.check()
    page.goto("/")
    expect(page.get_by_role("link", name="Shrink it")).to_have_attribute("href", f"/jobs/new?model={model_id}")
    visit.check()


def test_without_a_script_the_forms_do_the_same(api: Api, visiting: Visiting, lenet: Path):
    visit = visiting(str(api.base_url), java_script_enabled=False)
    page = visit.page
    page.goto("/")
    page.get_by_text("It is a state dict").click()
    page.get_by_label("Architecture").fill("lenet5")
    page.get_by_label("Model file").set_input_files(lenet)
    page.get_by_role("button", name="Upload the model").click()
    page.wait_for_url("**/models/mdl_*")
    model = api.get(f"/v1/models/{page.url.rpartition('/')[2]}").json()
    assert (model["filename"], model["architecture"]) == ("lenet.pt", "lenet5")
    assert "<noscript><p>Load this page again" in page.content()
    page.get_by_text("Delete this model").click()
    page.get_by_role("button", name="Delete the model for good").click()
    page.wait_for_url("**/models")
    assert api.get(f"/v1/models/{model['id']}").status_code == 404
    page.goto("/datasets")
    page.get_by_label("Data file").set_input_files(lenet)
    page.get_by_role("button", name="Upload the data").click()
    page.wait_for_url("**/datasets/dst_*")


def test_what_cannot_be_is_said_with_and_without_a_script(api: Api, visiting: Visiting, lenet: Path, tmp_path: Path):
    for scripted in (True, False):
        page = visiting(str(api.base_url), java_script_enabled=scripted).page
        page.goto("/")
        page.get_by_text("It is a state dict").click()
        page.get_by_label("Architecture").fill('{"name": ')
        page.get_by_label("Model file").set_input_files(lenet)
        page.get_by_role("button", name="Upload the model").click()
        expect(page.get_by_text("The architecture is not valid JSON.")).to_be_visible()
    visit = visiting(str(api.base_url))
    empty = tmp_path / "empty.pt"
    empty.touch()
    visit.page.goto("/")
    visit.page.get_by_label("Model file").set_input_files(empty)
    visit.page.get_by_role("button", name="Upload the model").click()
    expect(visit.page.get_by_role("alert")).to_have_text("The upload is empty.")
    expect(visit.page.get_by_role("button", name="Upload the model")).to_be_enabled()
    visit.check()


def test_an_upload_that_breaks_off_goes_on_where_it_was(api: Api, visiting: Visiting, big: Path):
    visit = visiting(str(api.base_url))
    page = visit.page
    offsets: list[int] = []

    asked: list[Route] = []

    def broken_once(route: Route) -> None:
        if route.request.method == "HEAD":
            return asked.append(route)
        offsets.append(int(route.request.headers["upload-offset"]))
        return route.abort("connectionreset") if len(offsets) == 2 else route.continue_()

    page.route("**/v1/uploads/*", broken_once)
    page.goto("/")
    page.get_by_label("Model file").set_input_files(big)
    page.get_by_role("button", name="Upload the model").click()
    expect(page.get_by_role("main").get_by_text("It goes on by itself")).to_be_visible()
    visit.check()
    asked.pop().continue_()
    page.wait_for_url("**/models/mdl_*")
    assert offsets == [0, 8 << 20, 8 << 20, 16 << 20]
    model = api.get(f"/v1/models/{page.url.rpartition('/')[2]}").json()
    assert model["size_bytes"] == big.stat().st_size
    assert page.evaluate("localStorage.length") == 0


def test_an_upload_goes_on_after_the_page_was_closed_and_can_be_canceled(api: Api, visiting: Visiting, big: Path):
    visit = visiting(str(api.base_url))
    page = visit.page
    offsets: list[int] = []

    def held(route: Route) -> None:
        offsets.append(int(route.request.headers["upload-offset"]))
        if offsets[-1] == 0:
            route.continue_()  # the second piece gets no answer

    page.route("**/v1/uploads/*", lambda route: held(route) if route.request.method == "PATCH" else route.continue_())
    asked = list[str]()
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    waits = page.get_by_role("listitem").filter(has_text="big.pt is not finished: 41 % of 20.0 MB arrived.")

    def sent() -> None:
        page.get_by_label("Model file").set_input_files(big)
        with page.expect_request(lambda request: request.headers.get("upload-offset") == str(8 << 20)):
            page.get_by_role("button", name="Upload the model").click()

    page.goto("/")
    sent()
    page.goto("/")
    expect(waits).to_be_visible()
    visit.check()
    sent()
    expect(waits).to_have_count(0)
    expect(page.get_by_role("main").get_by_text(re.compile("^4[0-9] % of 20.0 MB"))).to_be_visible()
    expect(page.get_by_role("progressbar", name="The model is uploaded")).to_be_visible()
    visit.check()

    def deletes(button: str, says: str) -> None:
        with page.expect_request(lambda request: request.method == "DELETE") as deleted:
            page.get_by_role("button", name=button).click()
        expect(page.locator("#spoken")).to_have_text(says)
        answer = deleted.value.response()
        assert answer is not None
        assert answer.status == 204
        assert page.evaluate("localStorage.length") == 0

    deletes("Cancel", "The upload was canceled.")
    assert offsets == [0, 8 << 20, 8 << 20]
    sent()
    page.goto("/models")
    deletes("Discard it", "What arrived of big.pt is discarded.")
    expect(waits).to_have_count(0)
    assert asked == ["beforeunload"] * 2


def test_a_file_that_arrives_leaves_the_page_open_while_another_is_sent(api: Api, visiting: Visiting, lenet: Path):
    visit = visiting(str(api.base_url))
    page, held = visit.page, list[Route]()

    def hold(route: Route) -> None:
        held.append(route)

    page.goto("/")
    page.route("**/v1/uploads/*", hold)
    for number, kind in enumerate(("data", "model"), 1):
        page.get_by_label(f"{kind.capitalize()} file").set_input_files(lenet)
        page.get_by_role("button", name=f"Upload the {kind}").click()
        while len(held) < number:  # the test's own limit ends this
            page.wait_for_timeout(50)
    data, model = held
    model.continue_()
    with page.context.expect_page() as opened:
        page.locator(".arrived a").click()
    expect(opened.value.get_by_role("heading", level=1)).to_have_text("lenet.pt")
    visit.check()
    data.continue_()
    page.wait_for_url("**/datasets/dst_*")


def test_a_file_is_dropped_on_the_form(api: Api, visiting: Visiting):
    visit = visiting(str(api.base_url))
    page = visit.page
    page.goto("/")
    drop = """([form, names]) => {
        const data = new DataTransfer();
        for (const name of names) data.items.add(new File([`contents of ${name}`], name));
        form.dispatchEvent(new DragEvent("dragenter", {dataTransfer: data, bubbles: true}));
        form.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
    }"""
    form = page.locator("[data-upload=dataset]").element_handle()
    page.evaluate(drop, [form, ["a.csv", "b.csv"]])
    expect(page.get_by_role("alert")).to_contain_text("Drop one file")
    page.evaluate(drop, [form, ["a.csv"]])
    page.wait_for_url("**/datasets/dst_*")
    expect(page.get_by_role("heading", level=1)).to_have_text("a.csv")
    visit.check_requests()


def test_a_rejected_file_says_why_and_what_to_do(api: Api, visiting: Visiting):
    model = api.upload(b"a pickle", HOSTILE)["id"]
    visit = visiting(str(api.base_url))
    page = visit.page
    page.goto(f"/models/{model}")
    detail = "This file is a pickled nn.Module <b>x</b>; save it with torch.jit.save."
    api.inspected(model, status="rejected", reason={"code": "x", "title": "Not a model we open", "detail": detail})
    expect(page.get_by_role("main").get_by_text("Not a model we open")).to_be_visible()
    expect(page.get_by_role("main").get_by_text(detail)).to_be_visible()
    expect(page.get_by_role("link", name="Shrink this model")).to_have_count(0)
    visit.check()
    assert page.locator("main img").count() == 0
    page.goto("/models?status=rejected")
    page.get_by_role("link", name="onerror").click()
    page.wait_for_url(f"**/models/{model}")
    visit.check_requests()


def test_a_model_of_a_thousand_layers_is_searched_sorted_and_paged(api: Api, visiting: Visiting):
    reasons = ("the model's output", f"an operator named {HOSTILE}", "it is used twice, " * 40)
    model = api.upload(b"many layers", "many.pt")["id"]
    api.inspected(model, inspection=inspection(*layers(1010, reasons)), format="torchscript")
    visit = visiting(str(api.base_url), java_script_enabled=False)
    page = visit.page
    answer = page.goto(f"/models/{model}")
    assert answer is not None
    assert len(answer.body()) < 150_000
    rows = page.get_by_role("region", name="Layers: table").locator("tbody tr")
    assert rows.count() == 100
    page.get_by_role("link", name="Next").click()
    assert rows.first.inner_text().startswith("features.100")
    page.get_by_label("contains").fill("features.99")
    page.get_by_label("Sort by").select_option("parameters, most first")
    page.get_by_label("Show").select_option("can lose channels")
    page.get_by_role("button", name="Apply").click()
    assert rows.count() == 10  # of 99 and 990 … 999, without 994
    assert rows.first.inner_text().startswith("features.999")
    page.get_by_role("link", name="Layer", exact=True).click()
    assert rows.first.inner_text().startswith("features.99\t")
    assert page.get_by_role("columnheader", name="Layer", exact=True).get_attribute("aria-sort") == "ascending"
    page.goto(f"/models/{model}?q={'%00<script>' * 9}&page=77")
    expect(page.get_by_text("No layer is like that")).to_be_visible()
    with_script = visiting(str(api.base_url))
    with_script.page.goto(f"/models/{model}?sort=macs&page=11")  # ten layers: the rules are tried on each
    assert with_script.page.get_by_role("region", name="Layers: table").locator("tbody tr").count() == 10
    with_script.check()


@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"format": "x", "layers": [None, {}, {"name": None, "weights": {"a": None}, "parameters": 10**400}]},
        {"format": None, "layers": 7, "warnings": [1], "inputs": [{"shape": None}], "macs": "many", "architecture": []},
        {"layers": [{"name": "a", "parameters": -1, "macs": float(2**1000), "channels": "x", "reason": {}}]},
    ],
)
def test_an_inspection_of_any_shape_has_a_page(api: Api, strange: dict[str, Any]):
    for kind in ("models", "datasets"):
        upload = api.upload(json.dumps(strange).encode(), kind=kind)["id"]
        api.inspected(upload, inspection=strange)
        assert api.get(f"/{kind}/{upload}").status_code == 200


def test_data_sets_show_what_is_in_them(api: Api, visiting: Visiting):
    visit = visiting(str(api.base_url))
    page = visit.page
    images = api.upload(b"images", "digits.npz", "datasets")["id"]
    sheet = page.screenshot()
    inspect(api, images, {"preview.png": sheet})
    api.inspected(images, inspection=DATA)
    page.goto(f"/datasets/{images}")
    assert page.get_by_role("img", name=re.compile("Samples")).evaluate("image => image.naturalWidth") > 0
    expect(page.get_by_text("<b>cat</b>")).to_be_visible()
    visit.check()
    rows = {
        "split": "train",
        "inputs": [],
        "samples": [{"index": 4, "inputs": {HOSTILE: list(range(999))}, "target": 2}],
    }
    texts = api.upload(b"texts", "texts.npz", "datasets")["id"]
    inspect(api, texts, {"preview.json": json.dumps(rows).encode()})
    page.goto(f"/datasets/{texts}")
    expect(page.get_by_role("region", name="Some samples")).to_contain_text("0, 1, 2, 3")
    visit.check()
    page.goto("/datasets")
    visit.check()
    page.get_by_role("link", name="builtin:digits").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("builtin:digits")
    assert page.get_by_text("Delete this data set").count() == 0
    visit.check()


def test_lists_are_paged_and_filtered(api: Api, visiting: Visiting):
    for number in range(30):
        api.upload(f"{number}".encode(), f"net_{number:02}%.pt")
    visit = visiting(str(api.base_url))
    page = visit.page
    page.goto("/models?q=NET_")
    rows = page.get_by_role("region", name="Models: table").locator("tbody tr")
    assert rows.count() == 25
    visit.check()
    page.get_by_role("link", name="Older").click()
    expect(rows).to_have_count(5)
    page.get_by_role("link", name="Newest").click()
    page.get_by_label("Name contains").fill("07%")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=07*")
    expect(rows).to_have_count(1)
    page.goto("/models?q=%00%25%5C")
    expect(page.get_by_text("No model is like that")).to_be_visible()
    visit.check_requests()


def test_who_may_not_see_it_and_what_is_not_there_is_not_found(tmp_path_factory: pytest.TempPathFactory):
    with serving(tmp_path_factory.mktemp("guarded"), require_keys=True) as api:
        sessions = api.parts.sessions
        ann, bob = (add_key(sessions, create_owner(sessions, name).id, "k").secret for name in ("ann", "bob"))
        api.headers["Authorization"] = f"Bearer {ann}"
        model, data = api.upload()["id"], api.upload(kind="datasets")["id"]
        page = {"Accept": "text/html"}
        assert api.get(f"/models/{model}", headers=page).status_code == 200
        api.headers["Authorization"] = f"Bearer {bob}"
        ids = {
            "models": (model, "mdl_01K9Q5V7M3W8Z2X4Y6A0B1C2D3", "x" * 3000, "%00", "..%2f"),
            "datasets": (data, "builtin:x"),
        }
        for kind, each in ((kind, each) for kind, group in ids.items() for each in group):
            for path in ("", "/card", "/delete"):
                ask = api.post if path == "/delete" else api.get
                answer = ask(f"/{kind}/{each}{path}", headers=page)
                assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8"), each
        assert model not in api.get("/models", headers=page).text
        assert model not in api.get("/", headers=page).text
        for path in ("/models?after=<b>", "/models?status=x", f"/models/{model}?sort=x", "/models?q=" + "x" * 201):
            assert api.get(path, headers=page).status_code == 422, path
        assert api.post("/datasets/builtin:digits/delete", headers=page).status_code == 409
        for files in ({}, {"file": ("", b"")}, {"other": ("a.pt", b"")}):
            assert api.post("/models", files=files, headers=page).status_code == 422


def test_a_real_model_and_real_data_are_looked_into(either_stack: Stack, visiting: Visiting, tmp_path: Path):
    digits_cnn, digits = tmp_path / "cnn.pt", tmp_path / "digits.npz"
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    torch.jit.save(torch.jit.script(module.eval()), str(digits_cnn))
    np.savez(digits, x=np.random.default_rng(0).random((200, 1, 8, 8), np.float32), y=np.arange(200) % 10)
    visit = visiting(either_stack.url)
    page = visit.page
    page.goto("/")
    page.get_by_label("Model file").set_input_files(digits_cnn)
    page.get_by_role("button", name="Upload the model").click()
    page.get_by_role("link", name="Shrink this model").wait_for()
    shown = page.get_by_role("region", name="Layers: table")
    expect(shown.get_by_role("row").nth(1)).to_contain_text("yes: 8 channels")
    expect(shown.get_by_role("row").nth(2)).to_contain_text("no: the model's output")
    expect(shown.get_by_role("row").nth(2)).to_contain_text("2.88k")  # multiply-adds
    page.goto("/datasets")
    page.get_by_label("Data file").set_input_files(digits)
    page.get_by_role("button", name="Upload the data").click()
    page.get_by_role("img", name=re.compile("Samples")).wait_for()
    expect(page.get_by_role("region", name="Samples: table").get_by_role("row").nth(1)).to_contain_text("140")
    page.goto("/")
    expect(page.get_by_role("link", name="Shrink it")).to_have_attribute("href", re.compile("dataset=dst_"))
    visit.check_requests()


def test_the_keyboard_alone_is_enough(api: Api, visiting: Visiting, lenet: Path):
    visit = visiting(str(api.base_url))
    page, choosers = visit.page, list[FileChooser]()

    def chosen_in(chooser: FileChooser) -> None:
        choosers.append(chooser)

    page.on("filechooser", chosen_in)  # long before the key: of a later one the browser may learn too late
    page.goto("/")

    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"{selector} cannot be reached")

    tab_to("#model-file")
    page.keyboard.press("Space")
    while not choosers:  # the test's own limit ends this
        page.wait_for_timeout(50)
    choosers[0].set_files(lenet)
    tab_to("[data-upload=model] > button")
    page.keyboard.press("Enter")
    page.wait_for_url("**/models/mdl_*")
    api.inspected(page.url.rpartition("/")[2], inspection=SMALL)
    page.get_by_role("link", name="Shrink this model").wait_for()
    tab_to("#q")
    page.keyboard.type("classifier")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=classifier*")
    assert page.get_by_role("region", name="Layers: table").locator("tbody tr").count() == 1
    tab_to(".delete summary")
    page.keyboard.press("Enter")
    tab_to(".delete button")
    page.keyboard.press("Enter")
    page.wait_for_url("**/models")
    visit.check_requests()
