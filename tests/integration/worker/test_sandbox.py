from __future__ import annotations

import io
import os
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pared import gpus
from tests.integration.worker.test_attempt import child_pids
from tests.support.campaign import counted
from tests.support.ended_children import end_next_child
from worker import landlock, sandbox, sandbox_probe
from worker.forkserver import ForkServer
from worker.sandbox import Confinement

STANDARD = Confinement("standard")
needs_landlock = pytest.mark.skipif(
    landlock.abi_version() < 6, reason="this kernel's Landlock is too old for `standard`"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("probe")


@pytest.fixture(params=[False, True], ids=["without a GPU", "with a GPU"])
def gpu(request) -> bool:
    """Both forms of a level hold on every machine; the GPU itself need not be there."""
    return request.param


@needs_landlock
@counted(1, 5)
def test_the_standard_level_refuses_every_attempt(folder, gpu, count):
    for _ in range(count):
        outcome = sandbox_probe.probe_level(folder, STANDARD, gpu=gpu)
        assert len(outcome) >= 55
        assert [name for name, held in outcome.items() if not held] == []
        assert (set(sandbox_probe._FOR_CUDA) <= set(outcome)) == gpu
    print(f"\n{len(outcome)} attempts to read, write, connect, run and signal, {count} times: none succeeded")


def test_most_attempts_get_through_without_a_sandbox(folder, gpu):
    outcome = sandbox_probe.probe_level(folder, Confinement("none"), gpu=gpu)
    escaped = {name for name, held in outcome.items() if not held}
    assert len(escaped) >= 35
    assert escaped.isdisjoint({"find a secret in the environment", "use an inherited descriptor"})


def test_the_weak_level_holds_everything_but_files(folder, gpu):
    outcome = sandbox_probe.probe_level(folder, Confinement("weak"), gpu=gpu)
    assert len(outcome) >= 55
    assert {name for name, held in outcome.items() if not held} <= sandbox_probe._FILES


@needs_landlock
def test_the_probe_finds_the_strongest_level(folder):
    probe = sandbox_probe.probe(folder)
    assert probe.confinement.level == "standard"
    assert sandbox_probe.probe(folder, "weak").confinement.level == "weak"
    assert sandbox_probe.probe(folder, "none").confinement.level == "none"


@needs_landlock
def test_a_level_must_hold_in_both_forms_where_there_are_gpus(folder, monkeypatch):
    release, tried = sandbox_probe.probe_level, []

    def leaky(folder, confinement, *, gpu):
        tried.append((confinement.level, gpu))
        leaks = {"connect": False} if gpu and confinement.level == "standard" else {}
        too_tight = {"let CUDA name a thread": False} if gpu else {}  # of no use for a GPU, and safe
        return release(folder, confinement, gpu=gpu) | leaks | too_tight

    monkeypatch.setattr(sandbox_probe, "probe_level", leaky)
    probe = sandbox_probe.probe(folder, gpu=True)
    assert probe.confinement.level == "weak"
    assert ["connect"] in probe.escaped.values()
    assert tried[-2:] == [("weak", False), ("weak", True)]
    monkeypatch.setattr(gpus, "device_files", list)
    assert sandbox_probe.probe(folder).confinement.level == "standard"


@needs_landlock
def test_what_others_end_says_nothing_about_the_level(folder, confinement, monkeypatch):
    """As the kernel does where memory is short: such a worker would refuse programs for as long as it lives."""
    of_server, servers, children = ForkServer._start, [1], end_next_child(monkeypatch)

    def start(self):
        control = of_server(self)
        if servers:
            servers.pop()
            self._process.kill()
        return control

    monkeypatch.setattr(ForkServer, "_start", start)
    assert sandbox_probe.probe(folder).confinement == confinement
    assert (servers, children) == ([], [])
    servers += [1] * 3
    with pytest.raises(sandbox_probe.NothingShown, match="signal 9"):
        sandbox_probe.probe(folder)


def _confined(folder: Path, gpu: bool, body: str) -> str:
    """What the lines print, in a process of its own that is confined to a scratch folder."""
    scratch = folder / "scratch"
    scratch.mkdir()
    sandbox.make_scratch(scratch, None)
    code = f"""
import os
from pathlib import Path
from pared import gpus
from worker import sandbox
gpus.device_files = lambda card=None: [Path({str(folder / "nvidia0")!r})]
sandbox.restrict(
    "standard", folder=Path({str(scratch)!r}), parent=os.getppid(), memory_bytes=1 << 30, gpu={gpu},
)
"""
    done = subprocess.run([sys.executable, "-c", code + body], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_landlock
def test_a_device_is_open_to_the_child_that_is_given_it(tmp_path, gpu):
    (tmp_path / "nvidia0").write_text("a card")
    device = str(tmp_path / "nvidia0")
    body = f"""
try:
    os.close(os.open({device!r}, os.O_RDWR))
    print("open")
except PermissionError:
    print("closed")
"""
    assert _confined(tmp_path, gpu, body) == ("open\n" if gpu else "closed\n")


@needs_landlock
def test_rules_in_proc_are_held_for_the_kernel_would_forget_them_where_memory_is_short(tmp_path):
    body = """
for fd in os.listdir("/proc/self/fd"):
    if os.path.islink(f"/proc/self/fd/{fd}"):
        print(os.readlink(f"/proc/self/fd/{fd}").replace(str(os.getpid()), "self"))
"""
    held = set(_confined(tmp_path, True, body).split())
    assert {"/proc/self", "/proc/self/task", "/proc/cpuinfo", "/proc/meminfo"} <= held


def test_a_folder_with_a_very_long_name_is_probed_too(folder):
    deep = folder / ("x" * 120)
    deep.mkdir()
    assert sandbox_probe.probe(deep).confinement.level == sandbox_probe.probe(folder).confinement.level


def test_an_interpreter_that_the_unprivileged_user_may_not_read_is_no_standard_as_that_user(folder, monkeypatch):
    if os.geteuid():
        pytest.skip("only root can become another user")
    monkeypatch.setattr(sys, "executable", str(folder / "locked" / "python"))
    (folder / "locked").mkdir(mode=0o700)
    (folder / "locked" / "python").symlink_to("/nonexistent")
    assert sandbox_probe.probe_level(folder, Confinement("standard", sandbox.NOBODY)) == {}


def test_landlock_is_not_put_in_place_beside_running_threads(tmp_path):
    import threading

    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="before the first thread"):
            sandbox.restrict("standard", folder=tmp_path, parent=os.getppid(), memory_bytes=1 << 30, gpu=False)
    finally:
        done.set()
        thread.join()


# -- the same through files that people upload --------------------------------------------------


ENDLESS = """
def endless(x: torch.Tensor) -> torch.Tensor:
    turns = 0
    while turns >= 0:
        turns = (turns + 1) % 1000
    return x
"""


def _script(body: str, functions: str = "") -> bytes:
    """A TorchScript file whose `__setstate__` runs while it is being loaded."""
    import torch

    source = f"""
import torch
from typing import Tuple
{functions}
class Upload(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stolen = torch.zeros(1, dtype=torch.uint8)
    def forward(self, x):
        return x
    @torch.jit.export
    def __getstate__(self) -> Tuple[torch.Tensor, bool]:
        return self.stolen, self.training
    @torch.jit.export
    def __setstate__(self, state: Tuple[torch.Tensor, bool]) -> None:
        self.training = state[1]
        self.stolen = {body}
"""
    import linecache

    name = f"<upload {abs(hash(body))}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space: dict = {"__name__": "upload"}
    exec(compile(source, name, "exec"), space)
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(space["Upload"]()), out)
    return out.getvalue()


@needs_landlock
@counted(3, 20)
def test_a_torchscript_file_cannot_read_or_write_outside_while_it_loads(make_bench, count):
    bench = make_bench(lease_s=300.0)  # a busy machine is not the subject
    outside = bench.settings.data_dir.parent / "victim"
    outside.write_bytes(b"secret!!")
    outside.chmod(0o666)
    new = bench.settings.data_dir.parent / "made"
    other = next(path for path in bench.settings.data_dir.rglob("*") if path.name.startswith("pared.db"))
    read = ("/etc/passwd", "/proc/1/environ", f"/proc/{os.getpid()}/mem", f"/proc/{os.getpid()}/environ", str(other))
    read += ("/dev/sda", "/dev/mem", "/proc/1/maps")
    written = ("/tmp/pared-canary", "/dev/shm/pared-canary", str(Path.home() / "pared-canary"))
    canaries = [(path, shared) for shared in (True, False) for path in (str(outside), *read)]
    canaries = [(path, True) for path in (str(new), *written)] + canaries
    for path, shared in canaries[:count]:
        body = f'torch.from_file("{path}", shared={shared}, size=8, dtype=torch.uint8)'
        job = bench.run(bench.submit("from_file", content=_script(body)))
        assert (job.status, job.error["code"]) == ("failed", "internal"), (path, job.error)
        assert re.search("ermission denied|unable to (open|mmap)|not permitted|No such", job.error["detail"]), job.error
    assert outside.read_bytes() == b"secret!!"
    assert not any(Path(path).exists() for path in (new, *written))
    print(f"\n{len(canaries[:count])} TorchScript files that read or write outside while they load: none did")


@needs_landlock
@counted(1, 50)
def test_a_file_that_never_ends_loading_fails_in_time_and_leaves_no_process(make_bench, count):
    bench = make_bench(stall_s=3.0, lease_s=300.0, max_attempts=1)
    content = _script("endless(state[0])", ENDLESS)
    for _ in range(count):
        job = bench.run(bench.submit("from_file", content=content))
        assert (job.status, job.error["code"]) == ("failed", "stalled"), job.error
        assert child_pids(bench) == []
    print(f"\n{count} files that hang while they load: each failed in time, and no process was left")


@needs_landlock
def test_the_same_file_does_its_deed_where_nothing_holds_it(make_bench, tmp_path):
    bench = make_bench(allow_weak_sandbox=True)
    victim = tmp_path / "victim"
    body = f'torch.from_file("{victim}", shared=True, size=8, dtype=torch.uint8)'
    job = bench.run(bench.submit("from_file", content=_script(body)), confinement=Confinement("none"))
    assert job.status == "succeeded"
    assert victim.exists()


class _Reach:
    def __init__(self, port: int) -> None:
        self.port = port

    def __reduce__(self):
        return os.system, (
            f"{sys.executable} -c 'import socket; socket.create_connection((\"127.0.0.1\", {self.port}))'",
        )


@needs_landlock
def test_a_pickle_that_runs_reaches_nobody(bench):
    with socket.create_server(("127.0.0.1", 0)) as server:
        job = bench.run(bench.submit("unpickle", content=pickle.dumps(_Reach(server.getsockname()[1]))))
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert job.status == "succeeded"  # it ran, and came to nothing


def test_scratch_is_gone_though_the_child_locked_its_folders(bench):
    job = bench.run(bench.submit("lock_folders"))
    assert job.status == "succeeded"
    assert list((bench.settings.data_dir / "scratch").iterdir()) == []
