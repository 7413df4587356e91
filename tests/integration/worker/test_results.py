"""What a child leaves and says is looked at before it is copied or believed."""

from __future__ import annotations

import json
import threading
import time
import tracemalloc

import pytest
from sqlalchemy import select

from pared.errors import StorageFull
from pared.state.tables import Model
from tests.support.processes import wait_for
from tests.support.raw_child import LINES
from worker import protocol, waiting_results
from worker.protocol import Malformed, Reader

SIZE = 1 << 29
"""Of a sparse file that is within what one file may have, and beyond what the tests below let be copied."""


@pytest.fixture
def copied(bench, monkeypatch):
    """Bytes that were written into the store from now on."""
    total = []
    real = bench.store.put

    def put(chunks, **options):
        return real((total.append(len(chunk)) or chunk for chunk in chunks), **options)

    monkeypatch.setattr(bench.store, "put", put)
    return total


@pytest.mark.parametrize("name", ["out/evil.bin", "out/preview.png", "checkpoints/1", "tmp/evil.bin"])
def test_of_an_inspection_nothing_is_copied_that_no_row_will_name(bench, copied, name):
    job_id = bench.submit_inspection("sparse", name, str(SIZE))
    copied.clear()
    job = bench.run(job_id)
    assert job.status == "succeeded", job.error
    with bench.sessions() as session:
        assert session.scalars(select(Model)).one().status == "ready"
    assert sum(copied) == 0
    assert bench.objects("jobs") + bench.objects("checkpoints") == []
    assert list((bench.settings.data_dir / "scratch").iterdir()) == []


@pytest.mark.parametrize("name", ["out/evil.bin", "checkpoints/1", "tmp/evil.bin"])
def test_a_sparse_file_counts_by_its_length_and_is_never_copied_past_the_limit(make_bench, name):
    bench = make_bench(memory_bytes=2**28)
    job_id = bench.submit("sparse", name, str(5 << 28))
    job = bench.run(job_id)
    assert job.status == "failed", "the kernel refuses it, or the file is weighed"
    assert bench.objects("jobs") + bench.objects("checkpoints") == []


def test_several_sparse_files_count_together(make_bench):
    bench = make_bench(memory_bytes=2**28)
    job = bench.run(bench.submit("sparse_many", "3", str(2 << 28)))
    assert (job.status, job.error["code"]) == ("failed", "storage-full")
    assert bench.objects("jobs") == []


def test_thousands_of_nested_folders_end_the_job_that_made_them_and_no_other(make_bench):
    bench = make_bench()
    hostile = bench.run(bench.submit_inspection("nest", "1500"))
    assert (hostile.status, hostile.error["code"]) == ("failed", "storage-full")
    assert bench.run(bench.submit_inspection("raise_named")).error["code"] == "nothing-to-prune"


def test_an_inspection_that_would_fill_every_list_is_cut_short(bench):
    job = bench.run(bench.submit_inspection("talk"))
    assert job.status == "succeeded", job.error
    with bench.sessions() as session:
        (model,) = session.scalars(select(Model))
    assert len(json.dumps(model.inspection)) < 2 << 20
    assert "There is more in this file than an inspection shows" in model.inspection["warnings"][0]


def test_a_report_that_is_too_long_to_be_sent_is_a_failure_that_says_so(bench):
    job = bench.run(bench.submit("report_much"))
    assert (job.status, job.error["code"], job.crash_count) == ("failed", "unsupported-model", 0)
    assert "a report has at most 16,777,216" in job.error["detail"]


@pytest.mark.parametrize("what", ["digest", "name", "size", "parameters"])
def test_a_report_that_disagrees_with_the_files_is_a_crash(make_bench, what):
    bench = make_bench(max_attempts=1)
    job_id = bench.submit("lie", what)
    job = bench.run(job_id)
    assert (job.status, job.error["code"]) == ("failed", "model-crashes-worker")
    assert "its report" in job.error["detail"]
    assert bench.artifacts(job_id) == []
    assert bench.objects("jobs") == [], "and what was stored of it is gone"


def test_a_report_that_agrees_with_the_files_is_kept(bench):
    job_id = bench.submit("lie", "nothing")
    assert bench.run(job_id).status == "succeeded"
    assert [artifact.name for artifact in bench.artifacts(job_id)] == ["model.safetensors"]


def full(*_, **__):
    raise StorageFull("The server's disk is full.")


def test_a_result_that_finds_no_room_waits_beside_the_worker(bench, monkeypatch):
    monkeypatch.setattr(waiting_results, "RETRY_S", 0.05)
    monkeypatch.setattr(bench.store, "check_room", full)
    job_id = bench.submit("succeed")
    assert bench.run(job_id).status == "running", "the worker is free again"
    assert bench.run(bench.submit("raise_named")).status == "failed", "and takes the next job"
    monkeypatch.undo()
    monkeypatch.setattr(waiting_results, "RETRY_S", 0.05)
    wait_for(lambda: bench.job(job_id).status == "succeeded", "there is room")
    assert [artifact.name for artifact in bench.artifacts(job_id)] == ["model.pt"]
    waiting_results.join(60)
    assert list((bench.settings.data_dir / "scratch").iterdir()) == []


def test_a_stop_hands_back_a_result_that_waits_for_room(bench, monkeypatch):
    monkeypatch.setattr(bench.store, "check_room", full)
    job_id = bench.submit("succeed")
    bench.run(job_id)
    bench.worker.shutdown.request()
    waiting_results.join(60)
    job = bench.job(job_id)
    assert (job.status, job.attempt) == ("queued", 0)
    assert "waiting result" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("line", sorted(LINES))
def test_no_line_of_a_child_takes_much_memory_of_the_worker(line):
    """The worker itself is held to no limit."""
    began = time.process_time()
    tracemalloc.start()
    reader = Reader()
    content = LINES[line]
    try:
        for start in range(0, len(content), 1 << 20):
            list(reader.feed(content[start : start + (1 << 20)]))
    except Malformed:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * protocol.MAX_LINE_BYTES
    assert time.process_time() - began < 5


def test_what_our_own_children_say_passes_whole(bench):
    report = {"removed": {f"t{number}": {"0": list(range(2000))} for number in range(200)}, "é": "\U0001f600"}
    line = protocol.encode(protocol.Result(type="result", report=report))
    assert line.isascii()
    assert len(line) > protocol.MAX_SHORT_LINE_BYTES
    [message] = Reader().feed(line)
    assert message.report == report
