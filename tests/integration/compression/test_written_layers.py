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
from tests.support.campaign import one_form_each
from tests.support.models.layers import LAYERS, Kind

FORMS = ("scripted", "traced", "exported")
FILES: dict[Output, str] = {"torchscript": "model.pt", "exported_program": "model.pt2", "onnx": "model.onnx"}


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


@pytest.mark.parametrize(("name", "form"), one_form_each(LAYERS, FORMS, n=4))
def test_every_layer_is_written_in_every_format_at_any_batch(
    name: str, form: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kind = LAYERS[name]
    path = written(form, kind, tmp_path / "upload.pt")
    capfd.readouterr()
    loaded = load_model(ModelFile(path, path.name, ""))
    export(loaded, kind.inputs(3), list(FILES), tmp_path)
    assert capfd.readouterr().out == ""
    for output, file_name in FILES.items():
        file = tmp_path / file_name
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
