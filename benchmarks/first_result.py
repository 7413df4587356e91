"""Seconds from a service that is ready to a smaller model on disk: on the pages, by CLI, Python and curl.

Each way has a script of its own in `first_result/`, and a service of its own that has seen nothing before. The model is
one that a user brings: a CNN that plain PyTorch trained beforehand. Run it with `make bench-first-result`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from results import machine, table, trained_digits, write_section
from server import running_pared

HERE = Path(__file__).parent / "first_result"
WORK = HERE.parents[1] / "build/first-look"
SECONDS = 180
WAYS = {
    "the pages": ("by_web.py", "a goal: prune, then distill, 3 epochs each"),
    "`pared compress`": ("by_cli.sh", "a goal: prune, then distill, 3 epochs each"),
    "Python": ("by_python.py", "prune for a goal, 3 epochs"),
    "curl": ("by_curl.sh", "prune for a goal, 3 epochs"),
}


def main() -> None:
    """Measure each way, print, and write the section `first-result`."""
    files = trained_digits(WORK)
    rows = []
    for way, (script, job) in WAYS.items():
        load = os.getloadavg()[0]
        seconds, share = first_result(script, files)
        rows.append(
            [way, job, f"{seconds:.0f}", "yes" if seconds < SECONDS else "**no**", f"{share:.0%}", f"{load:.0f}"]
        )
        print(*rows[-1], sep="\t", flush=True)
    text = (
        "## First result\n\n"
        f"{table(['by', 'job', 'seconds', f'within {SECONDS} s', 'file left', 'load before'], rows)}\n\n"
        "From a `pared up` that has just become ready and knows nothing, to the smaller model on disk: upload of a "
        "TorchScript CNN of 85,066 parameters and of 1,797 images, inspection, the job with its search and its "
        "measurements, download. A quarter of the parameters is the goal. Each way is a script in "
        "`benchmarks/first_result`, with a service of its own; the browser's start counts. "
        f"{machine()}; a load above that number is other work that shared them.\n\n"
        "`make bench-first-result`"
    )
    write_section("first-result", text)


def first_result(script: str, files: Path) -> tuple[float, float]:
    """Seconds that the script takes, and the share of the file's bytes that is left."""
    folder = files / Path(script).stem
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("digits_cnn.pt", "digits.npz"):
        shutil.copy(files / name, folder)
    with running_pared(files / "pared-data") as url:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        program = [sys.executable, "-P"] if script.endswith(".py") else ["bash"]
        began = time.monotonic()
        subprocess.run(
            [*program, str(HERE / script)], cwd=folder, env=os.environ | {"PARED_URL": url, "PATH": path}, check=True
        )
        seconds = time.monotonic() - began
    return seconds, (folder / "small.pt").stat().st_size / (folder / "digits_cnn.pt").stat().st_size


if __name__ == "__main__":
    main()
