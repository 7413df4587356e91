"""Asks OSV, by pip-audit, whether a pinned version of constraints.txt has a known vulnerability: a part of `make lint`.

Exit code 1: one has, or the list of those that are accepted is not right. Where no answer is to be had, as without a
network, it says so and exits with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KNOWN_TO_BE_VULNERABLE = "jinja2==2.4.1"
"""Asked about first. pip-audit calls this one faultless too where its service knows no package, and exits with 0."""


class NotChecked(Exception):
    """pip-audit gave no answer; the text says why."""


@dataclass(frozen=True)
class Vulnerability:
    """One that a pinned version has."""

    package: str
    ids: frozenset[str]
    fixed_in: Sequence[str]

    def __str__(self) -> str:
        fixed = ", ".join(self.fixed_in) or "no version"
        return f"{self.package}: {', '.join(sorted(self.ids))}; mended in {fixed}"


def vulnerabilities(requirements: str, *options: str) -> list[Vulnerability]:
    """What pip-audit finds in pinned requirements, one a line. Raises: NotChecked."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", "/dev/stdin", "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--vulnerability-service", "osv", *options]
    done = subprocess.run(command, input=requirements, capture_output=True, text=True, check=False)
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        raise NotChecked(done.stderr.strip().rpartition("\n")[2] or f"pip-audit exited {done.returncode}") from None
    if skipped := [f"{each['name']} ({each['skip_reason']})" for each in dependencies if "skip_reason" in each]:
        raise NotChecked(f"pip-audit left out {', '.join(skipped)}")
    return [
        Vulnerability(
            f"{each['name']} {each['version']}", frozenset([found["id"], *found["aliases"]]), found["fix_versions"]
        )
        for each in dependencies
        for found in each["vulns"]
    ]


def wrong(found: Iterable[Vulnerability], accepted: Mapping[str, str]) -> list[str]:
    """What makes the check fail: what was found and is not accepted, and what is accepted without need or reason.

    Args:
        accepted: id of a vulnerability -> why it does no harm here.
    """
    found = list(found)
    ids = frozenset[str]().union(*(each.ids for each in found))
    return [
        *(str(each) for each in found if each.ids.isdisjoint(accepted)),
        *(
            f"{name} is accepted in pyproject.toml, and no pinned version has it"
            for name in accepted
            if name not in ids
        ),
        *(
            f"{name} is accepted in pyproject.toml without a reason"
            for name, why in accepted.items()
            if not why.strip()
        ),
    ]


def main(root: Path, *options: str) -> int:
    """Print what was found for the constraints.txt of this folder, and return the exit code.

    Args:
        root: also the folder of the pyproject.toml.
        options: further ones of pip-audit.
    """
    accepted = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["pared"]["accepted-vulnerabilities"]
    try:
        knows = vulnerabilities(KNOWN_TO_BE_VULNERABLE, *options)
        found = vulnerabilities((root / "constraints.txt").read_text(), *options) if knows else []
        reason = "" if knows else f"the service does not know that {KNOWN_TO_BE_VULNERABLE} is vulnerable"
    except NotChecked as error:
        reason = str(error)
    if reason:
        print(f"constraints.txt is not checked for known vulnerabilities: {reason}")
        return 0
    problems = wrong(found, accepted)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(
            "Raise the version in constraints.txt, or accept the id with a reason in pyproject.toml.", file=sys.stderr
        )
    else:
        print(f"No vulnerability is known of what constraints.txt pins, but for {len(accepted)} that are accepted.")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent.parent))
