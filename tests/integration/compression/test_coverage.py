"""Which architectures lose channels, in which form of file: a table, and that what is left answers as it must."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from pared.compression.loading import load_model
from pared.compression.pruning.channels import remove_channels
from pared.compression.work import ModelFile
from pared.errors import NothingToPrune
from tests.support.campaign import each_nth
from tests.support.models import zoo
from tests.support.models.gallery import GALLERY, Architecture
from tests.support.models.reference import zeroed_outputs

FORMS = ("scripted", "traced", "program", "state_dict")
CELLS = [
    (name, form)
    for name, family in GALLERY.items()
    for form in FORMS
    if (family.layers if form == "state_dict" else family.kind)
]
QUICK = ("state_dict", "scripted", "traced")
SHORT = [
    next((name, form) for form in QUICK[turn % 3 :] + QUICK if (name, form) in CELLS)
    for turn, name in enumerate(GALLERY)
]
"""One form of each architecture, in turn. A program takes seconds to make."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for models this small, more only wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "form"), each_nth(SHORT, 4))
def test_half_of_the_channels_go_from_an_architecture(name: str, form: str, tmp_path: Path) -> None:
    assert cell(GALLERY[name], form, tmp_path / "upload").startswith("×")


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_nineteen_of_twenty_files_lose_channels_and_the_others_name_the_operator(tmp_path: Path) -> None:
    table = {(name, form): cell(GALLERY[name], form, tmp_path / "upload") for name, form in CELLS}
    print(f"\n{'parameters left':24}" + "".join(f"{form:>12}" for form in FORMS))
    for name in GALLERY:
        cells = [table.get((name, form), "-") for form in FORMS]
        print(f"{name:24}" + "".join(f"{text if len(text) < 12 else 'refused':>12}" for text in cells))
    refused = {where: text for where, text in table.items() if not text.startswith("×")}
    for (name, form), text in refused.items():
        print(f"refused: {name}, {form}: {text}")
    shrank = len(table) - len(refused)
    print(f"{len(GALLERY)} architectures, {len(table)} files: {shrank} shrank ({100 * shrank / len(table):.1f} %)")
    assert len([family for family in GALLERY.values() if family.kind]) >= 40
    assert shrank >= 0.95 * len(table)
    assert all(re.search(r"torch\.\w+", text) for text in refused.values())


def cell(family: Architecture, form: str, path: Path) -> str:
    """What is left of the parameters, or why no channel goes; anything but the right answer fails."""
    module, example = family.build() if form == "state_dict" else family.make(), family.example()
    path.write_bytes(upload(module, form, example))
    loaded = load_model(ModelFile(path, path.name, "0" * 64), family.layers if form == "state_dict" else None)
    try:
        removal = remove_channels(loaded, example, amount=0.5)
    except NothingToPrune as refusal:
        return refusal.detail
    small = removal.loaded.module
    for rows in (3, 5):  # of a batch, the example's and another
        inputs = tuple(tensor[torch.arange(rows) % 3] for tensor in example)
        expected = zeroed_outputs(module, removal.removed, *inputs)
        with torch.no_grad():
            torch.testing.assert_close(small(*inputs), expected, atol=1e-5, rtol=1e-5)
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in module.parameters())
    assert left < 1
    return f"× {left:.2f}"


def upload(module: nn.Module, form: str, example: tuple[torch.Tensor, ...]) -> bytes:
    """The file that its user would upload."""
    match form:
        case "scripted":
            return zoo.saved(torch.jit.script(module))
        case "traced":
            return zoo.saved(torch.jit.trace(module, example, check_trace=False))
        case "program":
            return zoo.exported(module, *example)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.getvalue()
