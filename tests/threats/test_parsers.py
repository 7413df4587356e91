"""Whatever bytes come from outside, a parser takes or refuses them: damaged copies, and fuzzing guided by coverage."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mutants import mutant
from tests.threats.parsers import PARSERS

MINUTES = float(os.environ.get("PARED_FUZZ_MINUTES", "60"))


@pytest.mark.parametrize("name", [name for name, parser in PARSERS.items() if parser.runs])
def test_a_parser_takes_or_refuses_damaged_inputs(name: str) -> None:
    parser, rng = PARSERS[name], random.Random(11)
    seeds = parser.seeds()
    for seed in [*seeds, b""]:
        parser.parse(seed)
    for turn in range(parser.runs):
        parser.parse(mutant(seeds[turn % len(seeds)], rng))


def fuzzed(name: str, seconds: float, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.threats.fuzz", name, str(round(seconds)), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=seconds + 900)


def test_fuzzing_finds_what_only_branches_lead_to(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="there is no wheel of atheris for this Python")
    done = fuzzed("planted", 60, tmp_path)
    assert done.returncode != 0
    assert "KeyError: 'planted'" in done.stderr + done.stdout
    [finding] = tmp_path.glob("crash-*")
    assert finding.read_bytes().startswith(b"PARE")


@pytest.mark.campaign
@pytest.mark.timeout(MINUTES * 60 + 1000)
@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_survives_fuzzing_guided_by_coverage(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="there is no wheel of atheris for this Python")
    done = fuzzed(name, MINUTES * 60, tmp_path)
    findings = [path.read_bytes() for path in tmp_path.glob("*-*") if path.is_file()]
    assert done.returncode == 0, f"{findings}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    runs = int(re.findall(r"number_of_executed_units: (\d+)", done.stderr)[-1])
    reached = re.findall(r"cov: (\d+)", done.stderr)[-1]
    print(f"\n{name}: {runs:,} inputs in {MINUTES:g} minutes, {reached} branches: each taken or refused")
