"""What a worker finds to compute on: a card counts once a confined child has computed on it, and not before."""

from __future__ import annotations

import sys
import time

import pytest

from pared.gpus import Gpu, device_files
from tests.support.ended_children import end_next_child
from worker import devices
from worker.devices import CPU_ALONE, Serving

H100 = Gpu("GPU-0a", "NVIDIA H100")
TRIALS = {
    "dies": "os.kill(os.getpid(), 11)",
    "leaves": "print('out of luck', flush=True); os._exit(3)",
    "hangs": "time.sleep(60)",
    "fails": 'say({"problem": "error 304: OS call failed"})',
    "rambles": "os.write(request['messages'], b'[1]\\n')",
    "works": 'say({"name": "H100", "uuid": None})',
    "works elsewhere": (
        'say({"problem": "broken"} if os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-0a" else {"name": "another"})'
    ),
    "sees": 'say({"name": os.environ.get("CUDA_VISIBLE_DEVICES", "all")})',
}


@pytest.fixture
def find(tmp_path, confinement):
    def found(trial: str, *visible: Gpu, wanted: str = "auto", limit_s: float = 30) -> Serving:
        program = tmp_path / "trial.py"
        program.write_text(
            "import json, os, time\nfrom worker import forkserver\nrequest = forkserver.enter()\n"
            "assert request['gpu']\n"
            "def say(told): os.write(request['messages'], json.dumps(told).encode() + b'\\n')\n" + TRIALS[trial]
        )
        command = (sys.executable, "-P", str(program))
        folder = tmp_path / "scratch"
        return devices.find_devices(wanted, visible, folder, confinement, trial=command, limit_s=limit_s)

    return found


def test_a_card_that_computed_serves_jobs_on_cuda_and_on_the_processor(find):
    serving = find("works", H100)
    assert (serving.devices, serving.problem) == (("cpu", "cuda"), None)
    assert serving.in_words(16) == "16 CPUs, H100"
    assert [serving.device_for(asked) for asked in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]


@pytest.mark.parametrize(
    ("trial", "says"),
    [
        ("dies", "was ended by SIGSEGV"),
        ("leaves", "ended with exit status 3. Its last words: out of luck"),
        ("hangs", "gave no answer within 3 seconds"),
        ("fails", "error 304: OS call failed"),
        ("rambles", "what no trial of ours does"),
    ],
)
def test_a_card_that_did_not_compute_is_not_served_and_it_is_said_why(find, trial, says):
    limit_s = 3 if trial == "hangs" else 30
    began = time.monotonic()
    for wanted, taken in (("auto", ("cpu",)), ("cuda", ())):
        serving = find(trial, H100, wanted=wanted, limit_s=limit_s)
        assert (serving.devices, serving.card) == (taken, None)
        assert serving.problem.startswith("NVIDIA H100 cannot be used: ")
        assert says in serving.problem
        assert ("takes no jobs" in serving.problem) == (wanted == "cuda")
        assert serving.in_words(1) == "1 CPU"
    assert time.monotonic() - began < 2 * limit_s + 20


@pytest.mark.parametrize("given", [None, "0"])
def test_a_card_that_is_alone_is_seen_as_it_is_and_one_of_several_by_its_name(find, monkeypatch, given):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    alone, first = find("sees", H100), find("sees", H100, Gpu("GPU-0b", "NVIDIA H200"))
    assert (alone.card.token, alone.card.name) == (None, given or "all")
    assert (first.card.token, first.card.name) == ("GPU-0a", "GPU-0a")


def test_a_trial_that_others_ended_is_made_again(find, monkeypatch):
    kills = end_next_child(monkeypatch)
    assert find("works", H100).problem is None
    assert kills == []


def test_the_next_card_serves_where_the_first_is_broken(find):
    serving = find("works elsewhere", H100, Gpu("GPU-0b", "NVIDIA H200"))
    assert (serving.devices, serving.card.token) == (("cpu", "cuda"), "GPU-0b")
    assert serving.problem == "NVIDIA H100 cannot be used: broken."


def test_without_a_card_auto_is_the_processor_and_cuda_takes_no_jobs(find):
    assert find("works") == CPU_ALONE
    serving = find("works", wanted="cuda")
    assert serving.devices == ()
    assert "No NVIDIA GPU is visible" in serving.problem
    assert find("works", H100, wanted="cpu") == CPU_ALONE  # not even tried


def test_a_trial_that_cannot_load_is_a_reason_too(tmp_path, confinement):
    command = (sys.executable, "-c", "raise SystemExit(3)")
    serving = devices.find_devices("auto", [H100], tmp_path, confinement, trial=command)
    assert serving.devices == ("cpu",)
    assert "ended with exit status 3" in serving.problem


@pytest.mark.skipif(bool(device_files()), reason="there may be a GPU that works")
def test_the_trial_itself_says_what_cuda_says(tmp_path, confinement):
    serving = devices.find_devices("auto", [H100], tmp_path, confinement)
    assert serving.devices == ("cpu",)
    assert "CUDA" in serving.problem
    assert "Last words" not in serving.problem


def test_a_child_may_be_given_one_card_of_several(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / name).touch()
    shared = {"nvidiactl", "nvidia-uvm", "nvidia-caps"}
    assert {path.name for path in device_files(1, tmp_path)} == {"nvidia1"} | shared
    assert {path.name for path in device_files(None, tmp_path)} == {"nvidia0", "nvidia1", "nvidia10"} | shared
