"""Which formats hold which kinds of layers: all that torch itself exports, of uploads in each form."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnxruntime
import pytest
import torch

from pared.compression.coupling.verify import flat_tensors
from pared.compression.export.programs import load_program
from pared.compression.export.writers import export
from pared.compression.loading import load_model
from pared.compression.work import ModelFile
from pared.specs import Output
from tests.support.models.layers import LAYERS, Kind

FORMS = ("scripted", "traced", "exported")
FILES: dict[Output, str] = {"torchscript": "model.pt", "exported_program": "model.pt2", "onnx": "model.onnx"}
OF_ALL: tuple[Output, ...] = ("torchscript", "exported_program", "onnx")
THROUGH_PROGRAMS = {
    "transposed conv",
    "multi-head attention",
    "encoder layer",
    "decoder layer",
    "causal language model",
}
"""What torch's older exporter for ONNX cannot hold, in one form at least: these take seconds, and one form each."""


def written(form: str, kind: Kind, path: Path) -> Path:
    """An upload of the network in this form."""
    torch.manual_seed(0)
    module, inputs = kind.make().eval(), kind.inputs(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        match form:
            case "scripted":
                torch.jit.save(torch.jit.script(module), path)
            case "traced":
                torch.jit.save(torch.jit.trace(module, inputs, check_trace=False), path)
            case _:
                free = tuple({0: torch.export.Dim.AUTO} for _ in inputs)
                program = torch.export.export(module, inputs, dynamic_shapes=free)
                torch.export.save(program, path.with_suffix(".pt2"))
                path = path.with_suffix(".pt2")
    return path


def cells() -> list[tuple[str, str, tuple[Output, ...]]]:
    """Of each kind of layer the forms of uploads and what they are written as.

    A program takes half a second or more: it is made of each kind in two of the three forms, by turns.
    """
    made: list[tuple[str, str, tuple[Output, ...]]] = []
    for index, name in enumerate(LAYERS):
        for position, form in enumerate(FORMS):
            turn = (index + position) % 3
            if name in THROUGH_PROGRAMS:
                made.append((name, form, OF_ALL if turn == 0 else ("torchscript",)))
            else:
                made.append((name, form, ("torchscript", "onnx") if turn == 0 else OF_ALL))
    return made


@pytest.mark.parametrize(("name", "form", "outputs"), cells(), ids=lambda each: each if isinstance(each, str) else "")
def test_every_layer_is_written_in_every_format_at_any_batch(
    name: str, form: str, outputs: tuple[Output, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kind = LAYERS[name]
    path = written(form, kind, tmp_path / "upload.pt")
    capfd.readouterr()
    loaded = load_model(ModelFile(path, path.name, ""))
    export(loaded, kind.inputs(3), outputs, tmp_path)
    assert capfd.readouterr().out == ""
    for output in outputs:
        file = tmp_path / FILES[output]
        for batch in (2, 5):
            inputs = kind.inputs(batch)
            with torch.no_grad():
                expected = flat_tensors(loaded.module(*inputs))
                match output:
                    case "torchscript":
                        actual = flat_tensors(torch.jit.load(file)(*inputs))
                    case "exported_program":
                        actual = flat_tensors(load_program(file)(*inputs))
                    case _:
                        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
                        arrays = {f"x{index}": x.numpy() for index, x in enumerate(inputs)}
                        actual = [torch.from_numpy(each) for each in session.run(None, arrays)]
            for one, other in zip(actual, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
