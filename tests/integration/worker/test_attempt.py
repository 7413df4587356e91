from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from sqlalchemy import insert, select, update

from pared.errors import StorageFull
from pared.state import lifecycle
from pared.state.jobs import cancel
from pared.state.tables import Job, Model, WorkerHeartbeat, db_now
from tests.integration.worker.conftest import RAW
from tests.support.processes import wait_for
from tests.support.raw_child import LINES
from worker import child_processes, recorder
from worker.sandbox import Confinement
from worker.scratch import scratch, written
from worker.shutdown import Shutdown


def child_pids(bench) -> list[int]:
    """Processes whose working folder is a scratch folder of this bench."""
    root = str(bench.settings.data_dir.resolve() / "scratch")
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                if os.readlink(f"/proc/{name}/cwd").startswith(root):
                    found.append(int(name))
            except OSError:
                continue
    return found


def left_in_scratch(bench) -> list[str]:
    root = bench.settings.data_dir / "scratch"
    return os.listdir(root) if root.exists() else []


def test_a_job_runs_to_its_end_with_report_artifacts_and_events(bench):
    job_id = bench.submit("succeed")
    job = bench.run(job_id)
    assert (job.status, job.error, job.attempt, job.sandbox) == ("succeeded", None, 1, bench.worker.confinement.level)
    assert job.report["verdict"] == "fine"
    assert job.report["sandbox"] == bench.worker.confinement.level
    [artifact] = bench.artifacts(job_id)
    assert (artifact.name, artifact.size_bytes) == ("model.pt", 7)
    assert b"".join(bench.store.read(artifact.object_key)) == b"ledom a"
    events = bench.events(job_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.data["status"] for event in events if event.kind == "status"] == [
        "queued", "running", "running", "succeeded",
    ]  # fmt: skip
    assert events[-1].kind == "done"
    assert [event.data["value"] for event in events if event.kind == "metric"] == [1.0, None, 0.5, None, 1 / 3, None]
    assert left_in_scratch(bench) == []
    assert child_pids(bench) == []


def test_a_message_that_comes_twice_starts_the_job_once(bench):
    job_id = bench.submit("succeed")
    bench.run(job_id)
    job = bench.run(job_id)
    assert (job.attempt, job.fence) == (1, 1)


@pytest.mark.parametrize(
    ("behaviour", "code", "words"),
    [
        ("raise_named", "nothing-to-prune", "exclude less"),
        ("raise_other", "internal", "KeyError"),
        ("one_huge_tensor", "out-of-memory", "memory"),
        ("hog", "out-of-memory", "smaller"),
    ],
)
def test_what_would_end_the_same_way_fails_at_once(make_bench, behaviour, code, words):
    bench = make_bench(memory_bytes=2**30)
    job = bench.run(bench.submit(behaviour))
    assert (job.status, job.error["code"], job.crash_count) == ("failed", code, 0)
    assert words in job.error["detail"]
    assert child_pids(bench) == []


def test_an_inspection_may_use_less_memory_than_a_job(make_bench):
    bench = make_bench(memory_bytes=2**32, inspect_memory_bytes=2**29)
    job = bench.run(bench.submit_inspection("hog"))
    assert (job.status, job.error["code"], job.crash_count) == ("failed", "out-of-memory", 0)


@pytest.mark.parametrize(("behaviour", "words"), [("segfault", "SIGSEGV"), ("leave", "exit status 3")])
def test_a_crash_is_tried_again_until_the_attempts_are_used_up(bench, behaviour, words):
    job_id = bench.submit(behaviour)
    for crashes in (1, 2):
        job = bench.run(job_id)
        assert (job.status, job.crash_count) == ("queued", crashes)
        bench.write(update(Job).values(run_after=0))
    job = bench.run(job_id)
    assert (job.status, job.error["code"]) == ("failed", "model-crashes-worker")
    assert words in job.error["detail"]
    assert "3 of 3" in job.error["detail"]
    if behaviour == "segfault":
        assert "about to fall over" in job.error["detail"]


def test_a_job_that_meets_a_full_disk_is_tried_again(make_bench):
    bench = make_bench(max_attempts=2)
    job_id = bench.submit("meet_a_full_disk")
    job = bench.run(job_id)
    assert (job.status, job.crash_count) == ("queued", 1)
    bench.write(update(Job).values(run_after=0))
    job = bench.run(job_id)
    assert (job.status, job.error["code"]) == ("failed", "unavailable")
    assert "disk is full" in job.error["detail"]


def test_a_silent_child_is_stalled_and_killed(make_bench):
    bench = make_bench(stall_s=4.0, max_attempts=1)
    job = bench.run(bench.submit("hang"))
    assert (job.status, job.error["code"]) == ("failed", "stalled")
    assert child_pids(bench) == []


def test_the_time_limit_fails_the_job_at_once(bench):
    job = bench.run(bench.submit("hang", time_limit_s=3))
    assert (job.status, job.error["code"], job.crash_count) == ("failed", "time-limit", 0)


def test_the_time_limit_spans_all_attempts(bench):
    job_id = bench.submit("hang", time_limit_s=3600)
    thread = bench.start(job_id)
    wait_for(lambda: bench.job(job_id).held_s > 0.5, "a heartbeat counted the time")
    bench.worker.shutdown.request()
    thread.join(120)
    job = bench.job(job_id)
    assert (job.status, 0.5 < job.held_s < 30) == ("queued", True)
    bench.write(update(Job).values(held_s=Job.held_s + 3600 - 0.5))
    job = bench.run(job_id, shutdown=Shutdown())
    assert (job.status, job.error["code"]) == ("failed", "time-limit")


def test_a_worker_that_cannot_start_the_child_says_so_and_comes_to_an_end(make_bench):
    bench = make_bench(max_lost_attempts=2)
    job_id = bench.submit("succeed")
    job = bench.run(job_id, command=("/nonexistent",))
    assert (job.status, job.attempt, job.crash_count) == ("queued", 1, 0)
    assert job.run_after > time.time() + 5
    assert "No such file or directory" in bench.events(job_id, "log")[-1].data["text"]
    bench.write(update(Job).values(run_after=0))
    job = bench.run(job_id, command=("/nonexistent",))
    assert (job.status, job.error["code"]) == ("failed", "unavailable")
    assert "No such file or directory" in job.error["detail"]
    assert "recorder" not in {thread.name for thread in threading.enumerate()}


def test_a_full_disk_of_the_worker_is_told_and_not_the_jobs_crash(bench, monkeypatch):
    def full(*_):
        raise StorageFull("The server's disk is full.")

    monkeypatch.setattr(bench.store, "fetch", full)
    job_id = bench.submit("succeed")
    job = bench.run(job_id)
    assert (job.status, job.attempt, job.crash_count) == ("queued", 1, 0)
    assert "disk is full" in bench.events(job_id, "log")[-1].data["text"]


def test_an_attempt_that_can_no_longer_be_written_down_ends(bench, monkeypatch):
    def broken(*_):
        raise RuntimeError

    monkeypatch.setattr(lifecycle, "advance", broken)
    job = bench.run(bench.submit("hang"))
    assert job.status == "running"  # until its lease runs out, and the sweep queues it again
    assert child_pids(bench) == []


def test_a_flood_of_steps_costs_no_more_events_than_are_kept(bench):
    job_id = bench.submit("flood_of_steps")
    job = bench.run(job_id)
    assert (job.status, job.progress["epoch"]) == ("succeeded", 5_999)
    assert len(bench.events(job_id, "status")) <= recorder.MAX_STAGES + 3
    assert len(bench.events(job_id, "progress")) < recorder.MAX_PROGRESS
    told = [event.data["text"] for event in bench.events(job_id, "log") if "no more are kept" in event.data["text"]]
    assert told == ["Too many status lines; no more are kept.", "Too many progress lines; no more are kept."]


def test_a_flood_of_output_costs_neither_memory_nor_the_job(bench):
    job_id = bench.submit("flood")
    job = bench.run(job_id)
    assert job.status == "succeeded"
    logs = bench.events(job_id, "log")
    assert len(logs) <= 2000
    assert "no more are kept" in logs[-1].data["text"]


def test_a_child_that_fills_the_disk_is_stopped(make_bench):
    bench = make_bench(memory_bytes=2**28)
    job = bench.run(bench.submit("fill_disk"))
    assert (job.status, job.error["code"]) == ("failed", "storage-full")
    assert left_in_scratch(bench) == []


@pytest.mark.parametrize("behaviour", ["leave_symlink", "bad_name"])
def test_results_that_are_no_plain_files_are_a_crash(make_bench, behaviour):
    bench = make_bench(max_attempts=1)
    job_id = bench.submit(behaviour)
    job = bench.run(job_id)
    assert (job.status, job.error["code"]) == ("failed", "model-crashes-worker")
    assert bench.artifacts(job_id) == []


def test_a_child_that_removes_the_folder_of_results_crashed(make_bench):
    bench = make_bench(max_attempts=1)
    # Landlock keeps the folder; and another user could not remove it either.
    job = bench.run(bench.submit("remove_the_results"), confinement=Confinement("weak"))
    assert (job.status, job.error["code"]) == ("failed", "model-crashes-worker")


def test_folders_nested_too_deep_for_any_path_are_weighed_and_removed(tmp_path):
    with scratch(tmp_path, None) as folder:
        (folder / "out" / "file").write_bytes(b"x" * 4096)
        fd = os.open(folder / "tmp", os.O_RDONLY)
        for _ in range(30):
            os.close(os.open("y" * 200, os.O_CREAT, dir_fd=fd))
            os.mkdir("x" * 200, dir_fd=fd)
            inner = os.open("x" * 200, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(fd)
        assert written(folder).size_bytes >= 4096
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_no_plain_file_is_not_kept(bench):
    job_id = bench.submit("rewrite_checkpoint")
    assert bench.run(job_id).status == "succeeded"


@pytest.mark.parametrize("line", sorted(LINES))
def test_what_no_child_of_ours_says_is_a_crash(make_bench, line):
    bench = make_bench(max_attempts=1)
    job = bench.run(bench.submit(line), command=RAW)
    assert (job.status, job.error["code"]) == ("failed", "model-crashes-worker")
    assert len(job.error["detail"]) < 2000
    assert child_pids(bench) == []


def test_cancel_ends_a_running_job_as_canceled_and_soon(bench):
    job_id = bench.submit("hang")
    thread = bench.start(job_id)
    wait_for(lambda: bench.events(job_id, "log"), "the child was started")
    began = time.monotonic()
    with bench.sessions.begin() as session:
        cancel(session, "local", job_id)
    thread.join(120)
    assert time.monotonic() - began < 30
    assert bench.job(job_id).status == "canceled"
    assert bench.events(job_id)[-1].data["status"] == "canceled"
    assert child_pids(bench) == []


def test_a_stop_hands_the_job_back_uncharged(bench):
    job_id = bench.submit("slow", "1000", "0.05")
    thread = bench.start(job_id)
    wait_for(lambda: bench.job(job_id).checkpoint_step, "a checkpoint")
    bench.worker.shutdown.request()
    thread.join(120)
    job = bench.job(job_id)
    assert (job.status, job.attempt, job.crash_count, job.lease_owner) == ("queued", 0, 0, None)
    kept = [job.checkpoint_key, job.previous_checkpoint_key]  # only one, if the stop came before the second
    assert bench.objects("checkpoints") == sorted(key for key in kept if key)
    assert child_pids(bench) == []


def test_a_lost_lease_kills_the_child_and_writes_nothing_more(bench):
    job_id = bench.submit("slow", "1000", "0.05")
    thread = bench.start(job_id)
    wait_for(lambda: bench.job(job_id).checkpoint_step, "a checkpoint")
    # As the sweep does for a worker that was away for too long, and another worker's claim.
    bench.write(update(Job).values(fence=Job.fence + 1, lease_owner="another", lease_expires_at=db_now() + 60))
    thread.join(120)
    after = bench.job(job_id)
    assert (after.status, after.lease_owner, after.fence) == ("running", "another", 2)
    assert child_pids(bench) == []
    assert len(bench.events(job_id, "done")) == 0


def test_a_database_away_for_longer_than_the_lease_ends_the_attempt(make_bench, monkeypatch):
    bench = make_bench(lease_s=4.0)
    job_id = bench.submit("hang")
    thread = bench.start(job_id)
    wait_for(lambda: child_pids(bench), "the child was started")
    database = bench.settings.data_dir / "pared.db"
    # No new connection can be made from here on, as with a server that is gone.
    moved = database.with_suffix(".away")
    database.rename(moved)
    database.mkdir()
    bench.sessions.engine.dispose()
    thread.join(120)
    assert not thread.is_alive()
    assert child_pids(bench) == []


def test_a_later_attempt_goes_on_from_the_newest_whole_checkpoint(bench):
    job_id = bench.submit("slow", "12", "0.3")
    thread = bench.start(job_id)
    wait_for(lambda: bench.job(job_id).previous_checkpoint_key, "two checkpoints")
    bench.worker.shutdown.request()
    thread.join(120)
    kept = bench.job(job_id)
    # The newest is damaged on disk; the one before it is used.
    bench.store.path(kept.checkpoint_key).write_bytes(b"flipped")
    job = bench.run(job_id, shutdown=Shutdown())
    assert job.status == "succeeded"
    starts = [event.data["text"] for event in bench.events(job_id, "log") if "starting at" in event.data["text"]]
    # Steps that come while one is being stored are passed over, so it need not be the step before.
    assert starts == ["starting at 0", f"starting at {kept.previous_checkpoint_key.rpartition('/')[2]}"]
    [artifact] = bench.artifacts(job_id)
    assert b"".join(bench.store.read(artifact.object_key)) == b"[12.0, 12.0, 12.0]"
    assert bench.objects("checkpoints") == [kept.checkpoint_key]  # the damaged one is left to the collector


def test_damaged_uploads_fail_the_job_and_are_never_opened(bench):
    job_id = bench.submit("succeed")
    with bench.sessions() as session:
        sha256 = session.query(Model).one().sha256
    bench.store.path(f"sha256/{sha256[:2]}/{sha256}").write_bytes(b"a m0del")
    job = bench.run(job_id)
    assert (job.status, job.error["code"]) == ("failed", "corrupt-object")


def test_a_deleted_upload_fails_the_job_with_a_reason(bench):
    job_id = bench.submit("succeed")
    bench.write(update(Model).values(deleted_at=1.0))
    job = bench.run(job_id)
    assert (job.status, job.error["code"]) == ("failed", "not-found")


def test_a_cancel_that_came_before_the_end_wins(bench):
    job_id = bench.submit("slow", "20", "0.5")
    thread = bench.start(job_id)
    wait_for(lambda: bench.job(job_id).status == "running", "claimed")
    with bench.sessions.begin() as session:
        cancel(session, "local", job_id)
    thread.join(120)
    assert bench.job(job_id).status == "canceled"
    assert bench.artifacts(job_id) == []


def test_scratch_folders_of_dead_workers_are_removed(bench):
    root = bench.settings.data_dir / "scratch"
    (root / "job-dead" / "out").mkdir(parents=True)
    bench.run(bench.submit("succeed"))
    assert left_in_scratch(bench) == []


def test_a_failed_inspection_rejects_the_upload(bench):
    job = bench.run(bench.submit_inspection("raise_other"))
    assert job.status == "failed"
    with bench.sessions() as session:
        model = session.scalars(select(Model)).one()
    assert (model.status, model.reason["code"]) == ("rejected", "internal")


def test_a_killed_worker_takes_its_child_with_it(bench):
    job_id = bench.submit("hang")
    worker = os.fork()
    if not worker:
        bench.sessions.engine.dispose(close=False)
        bench.run(job_id)
        os._exit(0)
    wait_for(lambda: child_pids(bench), "the child was started")
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    wait_for(lambda: not child_pids(bench), "the child ended with its parent")


def test_below_standard_programs_are_refused_but_weights_run(bench):
    import io
    import zipfile

    import torch

    script, exported = io.BytesIO(), io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    with zipfile.ZipFile(exported, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
    weak = Confinement("weak", bench.worker.confinement.uid)
    onnx = io.BytesIO(b"\x08\x08\x12\x07pytorch\x3a\x00")
    for content, kind in ((script, "TorchScript"), (exported, "torch.export"), (onnx, "ONNX")):
        job = bench.run(bench.submit("from_file", content=content.getvalue()), confinement=weak)
        assert (job.status, job.error["code"], job.sandbox) == ("failed", "sandbox-too-weak", "weak")
        assert f"is a {kind} program" in job.error["detail"]
    assert bench.run(bench.submit("succeed"), confinement=weak).status == "succeeded"
    # Where a worker lives that can, the job is left to it.
    bench.write(insert(WorkerHeartbeat).values(name="other", sandbox="standard", device="cpu"))
    job = bench.run(bench.submit("from_file", content=script.getvalue()), confinement=weak)
    assert (job.status, job.attempt, job.crash_count) == ("queued", 1, 0)


def test_one_setting_allows_torchscript_in_a_weak_sandbox(make_bench):
    import io

    import torch

    bench = make_bench(allow_weak_sandbox=True)
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    job = bench.run(bench.submit("from_file", content=script.getvalue()), confinement=Confinement("none"))
    assert (job.status, job.sandbox) == ("succeeded", "none")


def test_session_members_are_found_and_killed():
    import subprocess

    process = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"], start_new_session=True)
    wait_for(lambda: len(child_processes.session_members(process.pid)) >= 2, "both run")
    child_processes.kill_session(process.pid, signal.SIGKILL)
    process.wait(120)
    wait_for(lambda: child_processes.session_members(process.pid) == [], "none is left")


def test_memory_that_is_counted_is_what_a_process_allocates_not_the_files_that_it_maps(tmp_path):
    import mmap

    size = 64 << 20
    (tmp_path / "file").write_bytes(bytes(size))
    before = child_processes.memory_bytes(os.getpid())
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert not any(mapped[start] for start in range(0, size, mmap.PAGESIZE))
        assert child_processes.memory_bytes(os.getpid()) < before + size / 4
    with mmap.mmap(-1, size) as shared:
        shared.write(b"1" * size)
        assert child_processes.memory_bytes(os.getpid()) >= before + size
    held = b"1" * size
    assert child_processes.memory_bytes(os.getpid()) >= before + len(held)
