"""Reports and files: only when they are there, in any range, and never damaged."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
from pathlib import Path

import pytest

import pared
from pared.state.events import add_events
from pared.state.objects import READ_BYTES
from pared.state.tables import Artifact
from service.downloads import LARGE_AT_ONCE, LARGE_BYTES, pieces_of
from tests.integration.service.conftest import Api
from tests.support.campaign import counted
from tests.support.processes import wait_for

REPORTS = Path(__file__).parents[2] / "support/reports"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
CONTENT = os.urandom(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def job(api: Api) -> dict:
    job = api.submit()
    files = {"model.pt": CONTENT, "empty.txt": b"", 'größe "1".csv': b"x"}
    api.finish(job["id"], files, {"verdict": "2× smaller", "before": {"parameters": 2}, "odd": float("nan")})
    return api.get(job["links"]["self"]).json()


def test_a_download_is_whole_and_says_its_digest(api: Api, job: dict):
    answer = api.get(f"{job['links']['artifacts']}/model.pt")
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["etag"] == f'"{DIGEST}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(DIGEST)).decode()}:"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith('attachment; filename="model.pt"')
    head = api.head(f"{job['links']['artifacts']}/model.pt")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "3000000")
    empty = api.get(f"{job['links']['artifacts']}/empty.txt")
    assert (empty.status_code, empty.content) == (200, b"")


def test_a_client_that_leaves_in_the_middle_leaves_no_file_open(api: Api):
    job = api.submit()
    api.finish(job["id"], {"large.bin": bytes(64 << 20)})
    with api.stream("GET", f"{job['links']['artifacts']}/large.bin") as answer:
        next(answer.iter_raw(1))
    folder = str(api.parts.settings.data_dir)

    def open_files() -> list[str]:
        names = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                names.append(os.readlink(f"/proc/self/fd/{number}"))
        return [name for name in names if name.startswith(folder) and job["id"] in name]

    wait_for(lambda: not open_files(), "the file is closed")


def test_few_downloads_at_once_hold_large_pieces(api: Api):
    key = api.parts.store.put([bytes(LARGE_BYTES + 1)]).key
    begun = [pieces_of(api.parts.store, key, 1, LARGE_BYTES + 1) for _ in range(LARGE_AT_ONCE + 1)]
    assert [len(next(each)) for each in begun] == [*[LARGE_BYTES] * LARGE_AT_ONCE, READ_BYTES]
    begun[0].close()
    assert len(next(pieces_of(api.parts.store, key, 0, LARGE_BYTES))) == LARGE_BYTES
    assert 1 + sum(map(len, begun[-1])) + READ_BYTES == LARGE_BYTES + 1


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=2999999-", 2_999_999, 3_000_000),
        ("bytes=1048570-1048590", 1_048_570, 1_048_591),
        ("bytes=-7", 2_999_993, 3_000_000),
        ("bytes=-9999999", 0, 3_000_000),
        ("bytes=10-99999999", 10, 3_000_000),
    ],
)
def test_any_one_range_can_be_had(api: Api, job: dict, header: str, start: int, end: int):
    answer = api.get(f"{job['links']['artifacts']}/model.pt", headers={"range": header})
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/3000000"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize(
    "header", ["bytes=0-1,5-6", "bytes=9-5", "bytes=-", "bytes=a-b", "lines=1-2", "bytes", "bytes=0-" + "9" * 5000]
)
def test_ranges_not_understood_give_the_whole(api: Api, job: dict, header: str):
    answer = api.get(f"{job['links']['artifacts']}/model.pt", headers={"range": header})
    assert (answer.status_code, len(answer.content)) == (200, 3_000_000)


def test_a_range_past_the_end_is_named(api: Api, job: dict):
    for name, header, size in [("model.pt", "bytes=3000000-", 3_000_000), ("empty.txt", "bytes=-5", 0)]:
        answer = api.get(f"{job['links']['artifacts']}/{name}", headers={"range": header})
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{size}")
        assert answer.json()["type"] == "/problems/range-not-satisfiable"


def test_conditions_are_kept(api: Api, job: dict):
    path, tag = f"{job['links']['artifacts']}/model.pt", f'"{DIGEST}"'
    for value in (tag, f'"x", {tag}', f"W/{tag}", "*"):
        assert api.get(path, headers={"if-none-match": value}).status_code == 304
    assert api.get(path, headers={"if-none-match": '"x"'}).status_code == 200
    part = {"range": "bytes=0-9"}
    assert api.get(path, headers=part | {"if-range": tag}).status_code == 206
    assert api.get(path, headers=part | {"if-range": '"x"'}).status_code == 200
    assert api.get(path, headers=part | {"if-range": f"W/{tag}"}).status_code == 200
    assert api.get(path, headers=part | {"if-match": tag}).status_code == 206
    assert api.get(path, headers={"if-match": '"x"'}).status_code == 412


def test_names_survive_the_header(api: Api, job: dict):
    answer = api.get(f'{job["links"]["artifacts"]}/größe "1".csv')
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"gr__e _1_.csv\"; filename*=UTF-8''gr%C3%B6%C3%9Fe%20%221%22.csv"
    )
    listed = api.get(job["links"]["artifacts"]).json()["data"]
    assert [file["name"] for file in listed] == ["empty.txt", 'größe "1".csv', "model.pt"]
    assert all(api.get(file["links"]["self"]).status_code == 200 for file in listed)
    assert [file["sha256"] for file in job["result"]["artifacts"]] == [file["sha256"] for file in listed]


@counted(1, 200)
def test_a_flipped_bit_is_found_and_never_served(api: Api, count: int):
    job = api.submit()
    api.finish(job["id"], {"model.pt": CONTENT})
    path = f"{job['links']['artifacts']}/model.pt"
    assert api.get(path).status_code == 200
    with api.parts.sessions() as session:
        key = session.query(Artifact.object_key).filter(Artifact.job_id == job["id"]).scalar()

    def flip(place: int, bit: int) -> None:
        with api.parts.store.path(key).open("r+b") as file:
            byte = os.pread(file.fileno(), 1, place)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << bit]), place)

    for _ in range(count):
        place, bit = random.randrange(len(CONTENT)), random.randrange(8)
        flip(place, bit)
        for headers in ({}, {"range": "bytes=0-9"}):
            answer = api.get(path, headers=headers)
            assert (answer.status_code, answer.json()["type"]) == (500, "/problems/corrupt-object")
        flip(place, bit)
        answer = api.get(path)
        assert (answer.status_code, answer.content) == (200, CONTENT)
    print(f"\n{count} bits flipped in a stored result, {count} found, none served")
    api.parts.store.delete(key)
    assert api.get(path).json()["type"] == "/problems/corrupt-object"


def test_results_are_not_ready_before_the_end(api: Api):
    job = api.submit()
    for path in ("report", "artifacts"):
        answer = api.get(job["links"][path] + ("/model.pt" if path == "artifacts" else ""))
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/not-ready")
        assert answer.headers["retry-after"]
    assert api.get(job["links"]["artifacts"]).json() == {"data": []}
    api.fail(job["id"])
    answer = api.get(job["links"]["report"])
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")
    assert "The loss was NaN at epoch 2." in answer.json()["detail"]
    assert "retry-after" not in answer.headers


def test_a_report_is_the_workers_words(api: Api, job: dict):
    answer = api.get(job["links"]["report"])
    assert answer.json() == {"verdict": "2× smaller", "before": {"parameters": 2}, "odd": None}
    assert api.get(job["links"]["report"], headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    assert job["result"]["verdict"] == "2× smaller"
    assert api.get(f"{job['links']['artifacts']}/absent").status_code == 404


@pytest.fixture(scope="module")
def reported(api: Api) -> str:
    """The path of a real job's report."""
    job = api.submit()
    api.finish(job["id"], report=json.loads((REPORTS / "search.json").read_text()))
    return job["links"]["report"]


def test_a_report_is_a_page_to_who_asks_for_one(api: Api, reported: str):
    as_json, page = api.get(reported), api.get(reported, headers={"accept": BROWSER})
    assert as_json.headers["content-type"] == "application/json"
    assert as_json.json() == json.loads((REPORTS / "search.json").read_text())
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text == pared.Report.model_validate(as_json.json()).to_html()
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    for accept, answer in (("*/*", as_json), (BROWSER, page)):
        assert answer.headers["vary"] == "Accept"
        kept = {"accept": accept, "if-none-match": answer.headers["etag"]}
        assert api.get(reported, headers=kept).status_code == 304
    other = {"accept": BROWSER, "if-none-match": as_json.headers["etag"]}
    assert api.get(reported, headers=other).status_code == 200  # a cache that mixed them up would show JSON


def test_json_is_what_who_has_no_wish_gets(api: Api, reported: str):
    pages = ["text/html", "TEXT/HTML;q=0.1", "text/*", "text/html;level=1;q=0.9, */*;q=0.8", "application/json;q=0,*/*"]
    for accept in pages:
        kind = api.get(reported, headers={"accept": accept}).headers["content-type"]
        assert kind == "text/html; charset=utf-8", accept
    for accept in (
        "",
        "*/*",
        "application/json",
        "text/html, application/json",
        "text/html;q=0.5, */*",
        "text/html;q=0",
        "image/png",
        "text/html;q=x;q=0.2, application/*;q=0.3",
        ",;,/;q=2,text/html q=1",
    ):
        assert api.get(reported, headers={"accept": accept}).headers["content-type"] == "application/json", accept


def test_a_report_of_another_version_is_no_page(api: Api, job: dict):
    answer = api.get(job["links"]["report"], headers={"accept": BROWSER})
    assert (answer.status_code, answer.json()["type"]) == (406, "/problems/not-acceptable")
    assert "application/json" in answer.json()["detail"]


def test_a_job_names_the_formats_that_it_could_not_write(api: Api, job: dict):
    assert job["result"]["failed_outputs"] == []  # also where a report of an earlier version says nothing of them
    failed = {"format": "onnx", "code": "export-failed", "detail": "ONNX cannot hold this model: because."}
    posted = api.submit(outputs=["torchscript", "onnx"])
    api.finish(posted["id"], {"model.pt": b"small"}, {"verdict": "smaller", "failed_outputs": [failed]})
    seen = api.get(posted["links"]["self"]).json()
    assert (seen["status"], seen["error"]) == ("succeeded", None)
    assert seen["result"]["failed_outputs"] == [failed]
    assert [artifact["name"] for artifact in seen["result"]["artifacts"]] == ["model.pt"]
    (listed,) = [row for row in api.get("/v1/jobs").json()["data"] if row["id"] == posted["id"]]
    assert listed["result"]["failed_outputs"] == [failed]


def test_curves_are_a_table(api: Api):
    job = api.submit()
    with api.parts.sessions.begin() as session:
        points = [{"name": "train_loss", "value": 1 / n, "step": n, "phase": "retrain"} for n in (1, 2)]
        add_events(session, job["id"], [("metric", point) for point in [*points, {"name": "=cmd()", "value": None}]])
    lines = api.get(job["links"]["report"] + "/metrics.csv").text.splitlines()
    assert lines[0] == "at,phase,step,name,value"
    assert [line.partition(",")[2] for line in lines[1:]] == [
        "retrain,1,train_loss,1.0",
        "retrain,2,train_loss,0.5",
        ",,'=cmd(),",
    ]
