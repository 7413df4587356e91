"""What a report says of the code that made it."""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError
from typing import NoReturn

import pytest

import pared
from pared.compression.reporting import reproduce
from pared.compression.work import ModelFile, Work
from pared.specs import PruneSpec


def test_a_report_needs_no_package_metadata(monkeypatch, tmp_path) -> None:
    """From a checkout, and beside packages that were copied: what is left of a job is its report."""

    def none(name: str) -> NoReturn:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(Distribution, "from_name", none)
    with pytest.raises(PackageNotFoundError):
        Distribution.from_name("pared")
    spec = PruneSpec(type="prune", model=f"mdl_{'0' * 26}", amount=0.5)
    work = Work({"model": ModelFile(tmp_path / "net.pt", "net.pt", "0" * 64)}, None, tmp_path)
    versions = reproduce(spec, work, []).versions
    assert versions["pared"] == pared.__version__
    assert versions["numpy"] == "unknown"
