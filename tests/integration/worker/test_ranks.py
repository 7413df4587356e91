"""Jobs whose training several confined processes share: they end together, however one of them ends."""

from __future__ import annotations

import io
import os

import pytest
import torch
from safetensors.torch import load
from torch import nn

from pared.state.jobs import cancel
from tests.integration.worker.test_attempt import child_pids, left_in_scratch
from tests.support.processes import wait_for
from worker.exchange import exchange
from worker.job_processes import folders


@pytest.fixture
def make_ranked(make_bench, monkeypatch):
    """Benches whose jobs have two processes."""

    def make(**settings):
        bench = make_bench(ranks=2, **settings)
        monkeypatch.setattr(bench.worker.children, "threads", 2)
        return bench

    return make


def submit(bench, *behaviour):
    return bench.submit("together", *behaviour, dataset="builtin:digits")


def texts(bench, job_id):
    return [event.data["text"] for event in bench.events(job_id, "log")]


def test_processes_train_together_and_the_first_alone_reports(make_ranked):
    bench = make_ranked()
    job_id = submit(bench, "1", "nothing")
    job = bench.run(job_id)
    assert (job.status, job.error) == ("succeeded", None)
    [artifact] = bench.artifacts(job_id)
    assert b"".join(bench.store.read(artifact.object_key)) == b"[3.0, 3.0, 3.0]a model"
    assert [text for text in texts(bench, job_id) if text.startswith("rank")] == ["rank 0 of 2"]
    assert "2 processes train together." in texts(bench, job_id)
    assert left_in_scratch(bench) == child_pids(bench) == []


def test_a_job_comes_to_the_same_with_two_processes(make_ranked):
    bench = make_ranked()
    torch.manual_seed(0)
    file = io.BytesIO()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    torch.jit.save(torch.jit.script(net.eval()), file)
    fields = {"content": file.getvalue(), "dataset": "builtin:digits", "outputs": ["state_dict"], "seed": 3}
    fields |= {"granularity": "channel", "retrain": {"epochs": 2, "lr": 0.1, "batch_size": 128, "teach": False}}
    found = []
    for ranks in (1, 2):
        settings = bench.settings.model_copy(update={"ranks": ranks})
        job = bench.run(bench.submit("prune", **fields), settings=settings)
        assert job.status == "succeeded", job.error
        [artifact] = [each for each in bench.artifacts(job.id) if each.name == "model.safetensors"]
        found.append((job.report, load(b"".join(bench.store.read(artifact.object_key)))))
    (alone, weights), (shared, others) = found
    assert (alone["reproduce"]["ranks"], shared["reproduce"]["ranks"]) == (1, 2)
    for one, other in zip(alone["history"], shared["history"], strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
        assert other["validation"] == pytest.approx(one["validation"], abs=0.01)
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-5
    assert shared["after"]["quality"]["test"]["value"] == pytest.approx(
        alone["after"]["quality"]["test"]["value"], abs=0.01
    )


def test_a_job_that_trains_nothing_has_one_process(make_ranked):
    bench = make_ranked()
    job_id = bench.submit("together", "1", "nothing")
    assert bench.run(job_id).status == "succeeded"
    assert "rank 0 of 1" in texts(bench, job_id)


@pytest.mark.parametrize(
    ("rank", "behaviour", "status", "words"),
    [
        ("1", "segfault", "queued", "Process 2 of the 2 that ran the model together was ended by SIGSEGV"),
        ("0", "leave", "queued", "Process 1 of the 2 that ran the model together ended with exit status 3"),
        ("1", "raise_named", "failed", "exclude less"),
    ],
)
def test_a_process_that_ends_ends_the_attempt_and_says_which(make_ranked, rank, behaviour, status, words):
    bench = make_ranked()
    job_id = submit(bench, rank, behaviour)
    job = bench.run(job_id)
    assert job.status == status
    assert words in str(job.error or texts(bench, job_id))
    assert job.crash_count == (status == "queued")
    assert left_in_scratch(bench) == child_pids(bench) == []


def test_a_process_that_hangs_ends_the_attempt(make_ranked):
    # The first process gives up after 0.8 of it. What is left must do for its word of that on a busy machine.
    bench = make_ranked(stall_s=5.0)
    job_id = submit(bench, "1", "hang")
    job = bench.run(job_id)
    assert (job.status, job.crash_count) == ("queued", 1)
    assert "Process 2 of the 2 that train together kept the others waiting" in str(texts(bench, job_id))
    assert child_pids(bench) == []


def test_the_memory_limit_is_of_all_processes_together(make_ranked):
    bench = make_ranked(memory_bytes=2**29)
    job = bench.run(submit(bench, "1", "hog"))
    assert (job.status, job.error["code"]) == ("failed", "out-of-memory")
    assert "The 2 processes of the job together used more than 0.5 GiB of memory" in job.error["detail"]


def test_a_canceled_job_ends_all_processes(make_ranked):
    bench = make_ranked()
    job_id = submit(bench, "1", "cancel")
    thread = bench.start(job_id)
    wait_for(lambda: "rank 0 of 2" in texts(bench, job_id), 30)
    assert len(child_pids(bench)) == 2
    with bench.sessions.begin() as session:
        cancel(session, "local", job_id)
    thread.join()
    assert bench.job(job_id).status == "canceled"
    assert left_in_scratch(bench) == child_pids(bench) == []


def test_a_worker_that_stops_ends_all_processes_and_hands_the_job_back(make_ranked):
    bench = make_ranked()
    job_id = submit(bench, "1", "cancel")
    thread = bench.start(job_id)
    wait_for(lambda: "rank 0 of 2" in texts(bench, job_id), 30)
    assert len(child_pids(bench)) == 2
    bench.worker.shutdown.request()
    thread.join()
    job = bench.job(job_id)
    assert (job.status, job.crash_count) == ("queued", 0)
    assert left_in_scratch(bench) == child_pids(bench) == []


def test_what_processes_share_cannot_grow_and_each_knows_when_another_has_ended(tmp_path):
    with exchange(3) as ends:
        kept = [[os.dup(end) for end in of_rank] for of_rank in ends]
    with pytest.raises(PermissionError):
        os.ftruncate(kept[0][0], 1 << 30)
    for end in kept[1]:
        os.close(end)
    assert os.read(kept[0][1], 1) == b""
    for end in (*kept[0], *kept[2]):
        os.close(end)
    assert folders(tmp_path, 2) == [tmp_path, tmp_path / "rank-1"]
