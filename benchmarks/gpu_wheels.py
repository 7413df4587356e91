"""Downloads the wheels that a machine with torch and a card, but no package registry, lacks: `make gpu-wheels`.

`python benchmarks/gpu_wheels.py FOLDER [PYTHON_VERSION]`: what pared's service and worker, and their tests, need beyond
torch and the scientific packages that come with it, in the versions installed here (those of constraints.txt).
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

WANTED = ("pared[service,worker]", "pytest", "pytest-timeout", "psutil")
THERE = {"torch", "numpy", "scipy", "scikit-learn"}
"""Whoever has a card has these; they and what they need alone stay behind."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main(folder: Path, python: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    wanted = [f"{name}=={version}" for name, version in sorted(needed(python).items())]
    subprocess.run([*command, "-d", str(folder), *wanted], check=True)
    wheels = list(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels for Python {python} in {folder}, {size / 2**20:.1f} MiB")


def needed(python: str) -> dict[str, str]:
    """Name -> version of all that is needed, found by following the requirements of what is installed here."""
    found: dict[str, str] = {}
    queue = [Requirement(name) for name in WANTED]
    seen: set[tuple[str, str]] = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if name in THERE:
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue  # for another system or Python: what is needed here is installed
        if name != "pared":
            found[name] = installed.version
        for extra in ["", *requirement.extras]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            environment = {"extra": extra, "python_version": python, "python_full_version": f"{python}.0"}
            for line in installed.requires or []:
                further = Requirement(line)
                if further.marker is None or further.marker.evaluate(environment):
                    queue.append(further)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "3.12")
