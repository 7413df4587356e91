"""Which GPUs are visible, by the files of a driver, and what the worker of each one is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from pared.gpus import VISIBLE, Gpu, driver_version, installed, visible
from pared.local_workers import chosen_gpus
from pared.supervisor import worker_processes

NOWHERE = Path("/nowhere")
UUIDS = [f"GPU-{number}000aaaa-1111-2222-3333-444444444444" for number in range(3)]


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    return three_cards(tmp_path / "driver")


def three_cards(folder: Path) -> Path:
    """Three cards, as the kernel lists them; the numbers of their files are not in the order of the bus."""
    for place, (uuid, number) in enumerate(zip(UUIDS, (1, 0, 2), strict=True)):
        information = folder / "gpus" / f"0000:{place}a:00.0" / "information"
        information.parent.mkdir(parents=True)
        information.write_text(
            f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 42\nGPU UUID: \t {uuid}\nVideo BIOS: \t 96.00\n"
            f"Bus Location: \t 0000:{place}a:00.0\nDevice Minor: \t {number}\n"
        )
    (folder / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (builder@host)\n"
        "GCC version:  gcc version 13.3.0 (Ubuntu)\n"
    )
    return folder


def tokens(driver: Path, given: str | None) -> list[str]:
    return [gpu.token for gpu in visible({} if given is None else {VISIBLE: given}, driver, NOWHERE)]


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (None, UUIDS),
        ("2,0", ["2", "0"]),  # as CUDA counts them, which need not be as the bus does
        (f"{UUIDS[2]},{UUIDS[0]}", [UUIDS[2], UUIDS[0]]),
        ("GPU-1", ["GPU-1"]),
        ("MIG-5c7e", ["MIG-5c7e"]),
        ("", []),
        ("-1", []),
        ("0,7,1", ["0"]),  # CUDA passes over what comes after a name that it does not know
        ("0,0", ["0"]),
        ("GPU-", []),
    ],
)
def test_what_is_visible_already_is_taken_from(driver: Path, given: str | None, seen: list[str]) -> None:
    assert tokens(driver, given) == seen


def test_a_card_is_called_by_its_uuid_and_has_its_own_file(driver: Path) -> None:
    assert [(gpu.token, gpu.uuid, gpu.number) for gpu in installed(driver, NOWHERE)] == [
        (UUIDS[0], UUIDS[0], 1),
        (UUIDS[1], UUIDS[1], 0),
        (UUIDS[2], UUIDS[2], 2),
    ]


def test_cards_whose_files_are_not_in_the_container_are_not_its_own(driver: Path, tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidiactl"):
        (tmp_path / name).touch()
    assert [gpu.uuid for gpu in installed(driver, tmp_path)] == [UUIDS[1]]


def test_a_card_that_nobody_has_used_yet_is_called_by_its_place(driver: Path) -> None:
    path = next(iter(sorted(driver.glob("gpus/*/information"))))
    path.write_text(path.read_text().replace(UUIDS[0], "GPU-????????-????-????-????-????????????"))
    assert [gpu.token for gpu in installed(driver, NOWHERE)] == ["0", *UUIDS[1:]]


def test_without_the_drivers_list_the_files_of_the_cards_are_counted(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    (tmp_path / "nvidia-caps").mkdir()
    assert [gpu.number for gpu in installed(NOWHERE, tmp_path)] == [0, 1, 10]
    assert installed(NOWHERE, tmp_path / "nvidia-caps") == []


def test_the_driver_says_its_version(driver: Path) -> None:
    assert driver_version(driver) == "580.95.05"
    (driver / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
    )
    assert driver_version(driver) == "535.104.05"
    assert driver_version(NOWHERE) is None


THREE = [Gpu(token, f"card {token}") for token in ("a", "b", "c")]


@pytest.mark.parametrize(("given", "chosen"), [("all", "abc"), ("0,2", "ac"), ("1", "b"), ("2, 0", "ca")])
def test_gpus_are_chosen_among_those_that_are_visible(given: str, chosen: str) -> None:
    assert "".join(gpu.token for gpu in chosen_gpus(given, THREE)) == chosen


@pytest.mark.parametrize(
    ("given", "says"),
    [("0,3", "no GPU 3 here; visible: 0: card a"), ("0,0", "twice"), ("some", "all or 0,2"), ("-1", "all or 0,2")],
)
def test_what_is_not_there_is_named(given: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        chosen_gpus(given, THREE)
    assert chosen_gpus("all", []) == []


@pytest.mark.parametrize(
    ("gpus", "given", "threads"),
    [
        (THREE, {}, "5"),
        (THREE, {"PARED_THREADS": "0"}, "5"),
        (THREE, {"PARED_THREADS": "3"}, "3"),
        (THREE[:1], {}, None),
    ],
)
def test_each_worker_sees_its_own_card_and_its_share_of_the_cores(gpus, given, threads) -> None:
    made = worker_processes(gpus, {"A": "b", VISIBLE: "0,1,2", **given}, 16)
    assert [process.environment[VISIBLE] for process in made] == [gpu.token for gpu in gpus]
    assert {process.environment.get("PARED_THREADS") for process in made} == {threads}
    assert {process.environment["A"] for process in made} == {"b"}
    assert len({process.name for process in made}) == len(gpus)


def test_without_cards_there_is_one_worker_and_nothing_is_hidden_from_it() -> None:
    [process] = worker_processes([], {"A": "b"}, 16)
    assert (process.name, dict(process.environment)) == ("worker", {"A": "b"})


SUPERVISOR = """
import json, os, sys
from pathlib import Path
from pared import supervisor
from pared.gpus import visible
from pared.local_workers import chosen_gpus

child = '''
import json, os, pathlib, signal, sys, time
def end(*_):
    pathlib.Path(f"{os.getpid()}.drained").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
told = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "PARED_THREADS")}
pathlib.Path(f"{os.getpid()}.part").write_text(json.dumps(told))
os.rename(f"{os.getpid()}.part", f"{os.getpid()}.json")
time.sleep(60)
'''
gpus = chosen_gpus("0,2", visible(os.environ, Path(sys.argv[1]), Path("/nowhere")))
made = supervisor.worker_processes(gpus, os.environ, 16)
for process in made:
    process.command = [sys.executable, "-c", child]
    process.delay_s = 0.05
supervisor.Supervisor(made).run()
"""
