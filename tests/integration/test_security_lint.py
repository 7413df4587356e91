"""What lint says of security: exceptions carry reasons, and known vulnerabilities of pinned versions are found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.known_vulnerabilities import Vulnerability, main, wrong
from tests.support.scripted_server import Answer, Asked, Scripted

ROOT = Path(__file__).resolve().parents[2]
FLAW = Vulnerability("jinja2 2.4.1", frozenset({"PYSEC-1", "CVE-1"}), ["2.5"])


def test_each_exception_from_a_security_rule_says_why():
    files = [path for folder in ("pared", "service", "worker", "migrations") for path in (ROOT / folder).rglob("*.py")]
    lines = [(path, line) for path in files for line in path.read_text().splitlines()]
    made = [(path, line) for path, line in lines if re.search(r"# nosec|# noqa:.*\bS\d", line)]
    assert len(made) > 40
    silent = [(path, line) for path, line in made if not re.search(r"# (noqa: [^-]+ - |nosec [B\d, ]+ # )\S", line)]
    assert not silent


@pytest.mark.parametrize(
    ("found", "accepted", "said"),
    [
        ([], {}, []),
        ([FLAW], {}, ["jinja2 2.4.1: CVE-1, PYSEC-1; mended in 2.5"]),
        ([FLAW], {"CVE-1": "no template is a user's"}, []),
        ([FLAW], {"CVE-1": " "}, ["CVE-1 is accepted in pyproject.toml without a reason"]),
        ([], {"CVE-1": "once"}, ["CVE-1 is accepted in pyproject.toml, and no pinned version has it"]),
    ],
)
def test_what_is_found_must_be_accepted_with_a_reason(found, accepted, said):
    assert wrong(found, accepted) == said


class Osv(Scripted):
    """Answers as OSV does, of the packages that it knows to be vulnerable."""

    def __init__(self, vulnerable: set[str]) -> None:
        super().__init__(self._told)
        self.vulnerable = vulnerable

    def _told(self, asked: Asked) -> Answer:
        name = json.loads(asked.body)["package"]["name"]
        of_it = {"id": f"PYSEC-{name}", "affected": [{"package": {"name": name, "ecosystem": "PyPI"}}]}
        return Answer(body={"vulns": [of_it]} if name in self.vulnerable else {})


@pytest.fixture
def osv() -> Iterator[Osv]:
    with Osv({"jinja2", "torch"}) as server:
        yield server


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "constraints.txt").write_text("# exact versions\nhttpx==0.28.1\ntorch==2.13.0\n")
    (tmp_path / "pyproject.toml").write_text("[tool.pared.accepted-vulnerabilities]\n")
    return tmp_path


def test_a_pinned_version_with_a_known_vulnerability_fails(osv, project, capsys):
    assert main(project, "--osv-url", osv.url) == 1
    assert "torch 2.13.0: PYSEC-torch" in capsys.readouterr().err


def test_a_service_that_knows_nothing_has_checked_nothing(osv, project, capsys):
    osv.vulnerable.clear()
    assert main(project, "--osv-url", osv.url) == 0
    assert "is not checked for known vulnerabilities: the service does not know" in capsys.readouterr().out


def test_without_a_service_it_says_that_nothing_is_checked(osv, project, capsys):
    osv.close()
    assert main(project, "--osv-url", osv.url) == 0
    assert "is not checked for known vulnerabilities: " in capsys.readouterr().out
