"""Makes the int8 files of a quantize job, and the modules that run them: of TorchScript's kin, and of ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from pared.compression.data import Data
from pared.compression.export.formats import Formats, Written
from pared.compression.export.programs import load_program
from pared.compression.export.scripting import as_torchscript
from pared.compression.export.settings import Settings, settings_of
from pared.compression.export.writers import export
from pared.compression.jobs.stages import Stages
from pared.compression.loading import LoadedModel, is_parameter
from pared.compression.loading.own_form import Form, Forms
from pared.compression.measuring.onnx_runtime import OnnxModule
from pared.compression.names import layer_of, tensors
from pared.compression.quantization.int8 import Rounded, pays, rounded
from pared.compression.quantization.onnx_file import Calibrated, float_file, precisions_in, write_quantized, write_short
from pared.compression.quantization.script import SCALE, rounded_weights, with_int8_weights
from pared.compression.quantization.sensitivity import Precisions
from pared.compression.work import Work
from pared.errors import ExportFailed, telling_line
from pared.reports import FailedOutput, Precision
from pared.specs import Output
from pared.specs.quantization import Calibration, Method, QuantizeSpec

BATCH = 16
"""Samples that are run at once to find ranges, and to compare answers."""


class Int8Files(Protocol):
    """How a model becomes int8 in some formats."""

    runtime: Literal["onnxruntime", "torch"]
    usual: dict[str, Precision]
    """Layer -> what the job's method makes of it, in the order of the model."""
    parameters: dict[str, str]
    """Name of each weight in the model -> its layer."""

    def module(self, precisions: Precisions, *, alone: bool = False) -> nn.Module:
        """The model with these precisions, as the file will answer. `alone`: with nothing else int8."""

    def write(self, precisions: Precisions, directory: Path) -> Written:
        """The files.

        Raises:
            ExportFailed: none can be written.
        """

    def written_module(self, written: Written, output: Output) -> nn.Module:
        """The model as a written file has it."""

    def timed(self, written: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The float32 model and the written one, for measuring both in one form."""

    def float_module(self) -> nn.Module:
        """The float32 model as the same runtime runs it."""

    def precisions(self, precisions: Precisions) -> dict[str, Precision]:
        """What the layers came out as in what was written with these."""


class Int8Script:
    """TorchScript, programs, safetensors and packed files with int8 weights."""

    runtime: Literal["onnxruntime", "torch"] = "torch"

    def __init__(self, loaded: LoadedModel, example: tuple[Tensor, ...], formats: Formats) -> None:
        """Raises ModelFailed: a weight is not a finite number."""
        self._original, self._formats = loaded, formats
        self._script: torch.jit.ScriptModule | None = None
        if loaded.runs:
            self._script = as_torchscript(loaded.module, example)
            self._weights = rounded_weights(self._script)
        else:
            self._weights = {
                name: rounded(tensor.detach().float().numpy(), name=name)
                for name, tensor in loaded.module.named_parameters()
                if is_parameter(name, tensor) and pays(tensor.shape)
            }
        self.parameters = {name: layer_of(name) for name in self._weights}
        self.usual: dict[str, Precision] = dict.fromkeys(self.parameters.values(), "int8_weights")

    def module(self, precisions: Precisions, *, alone: bool = False) -> nn.Module:
        return self._loaded(precisions).module

    def write(self, precisions: Precisions, directory: Path) -> Written:
        return self._formats.write(self._loaded(precisions), directory)

    def try_out(self) -> None:
        """Say which formats will be missing, and fail where all will be."""
        self._formats.try_out(self._loaded(self.usual))

    def written_module(self, written: Written, output: Output) -> nn.Module:
        path = written.model(output)
        if path is not None and output == "torchscript":
            script: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
            given = self._original.given
            return (script if given is None else given.given_to(script)).eval()
        if path is not None and output == "exported_program":
            return _Called(load_program(path))
        assert self._last is not None  # noqa: S101 - it was written before
        return self._last.module

    def timed(self, written: nn.Module) -> tuple[nn.Module, nn.Module]:
        assert self._last is not None  # noqa: S101 - it was written before
        return self._original.module, self._last.module

    def float_module(self) -> nn.Module:
        return self._original.module

    def precisions(self, precisions: Precisions) -> dict[str, Precision]:
        return {name: precisions.get(name, its) for name, its in self.usual.items()}

    _last: LoadedModel | None = None

    def _loaded(self, precisions: Precisions) -> LoadedModel:
        chosen = self.precisions(precisions)
        weights = {name: its for name, its in self._weights.items() if chosen[self.parameters[name]] != "float32"}
        try:
            module = (
                _held(self._original, weights) if self._script is None else with_int8_weights(self._script, weights)
            )
        except RuntimeError as error:
            raise ExportFailed(f"The model's code cannot be given int8 weights: {telling_line(error)}.") from error
        self._last = replace(
            self._original,
            module=module,
            architecture=None,
            inlined=True,
            forms={} if self._script is not None else self._forms_beside(weights),
            onnx=None,
            folder=None,
        )
        return self._last

    def _forms_beside(self, weights: Mapping[str, Rounded]) -> Forms:
        """What the tensors of a state dict that stay as they are have; scales are float32."""
        kept = {name: form for name, form in self._original.forms.items() if name not in weights}
        return {**kept, **{name + SCALE: Form() for name in weights}} if kept else {}


class _Called(nn.Module):
    """A function as a module; torch.export's own modules refuse to be put into eval mode."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._functions = [function]  # a module would become a part of this one

    def forward(self, *inputs: Tensor) -> Any:
        """What the function returns."""
        return self._functions[0](*inputs)


def _held(loaded: LoadedModel, weights: Mapping[str, Rounded]) -> nn.Module:
    """The tensors of a state dict that nothing runs, some of them int8."""
    module = nn.Module()
    for name, tensor in loaded.module.state_dict().items():
        if name in weights:  # as they stand, full stops and all
            module._buffers[name] = torch.from_numpy(weights[name].codes)
            module._buffers[name + SCALE] = torch.from_numpy(weights[name].scales)
        else:
            module._buffers[name] = tensor
    return module.eval()


class Int8Onnx:
    """ONNX files, by ONNX Runtime's quantizer."""

    runtime: Literal["onnxruntime", "torch"] = "onnxruntime"

    def __init__(
        self,
        loaded: LoadedModel,
        example: tuple[Tensor, ...],
        method: Method,
        scratch: Path,
        *,
        settings: Settings,
        threads: int,
        calibration: Calibration,
        batches: Sequence[tuple[Tensor, ...]],
    ) -> None:
        """Write the float32 file, of which int8 files are made, into `scratch`.

        Args:
            calibration, batches: as `Calibrated` takes them, for the method static.

        Raises:
            ExportFailed: ONNX cannot hold the model.
        """
        form = None if loaded.onnx is None else replace(loaded.onnx, types={})
        plain = replace(loaded, forms={}, onnx=form)
        (self._float,) = export(plain, example, ["onnx"], scratch, settings)
        self._names, self._threads, self._scratch = None if form is None else form.inputs, threads, scratch
        with torch.no_grad():
            self._like = loaded.module(*example)
        self._file = float_file(self._float, loaded.module, method, scratch)
        self._calibrated = Calibrated(self._file, calibration, batches) if method == "static" else None
        self.usual = self._file.usual()
        known = tensors(loaded.module)
        self.parameters = {
            name: layer.name for layer in self._file.layers for name in layer.parameters if name in known
        }
        self._count = 0

    def module(self, precisions: Precisions, *, alone: bool = False) -> nn.Module:
        path = self._scratch / "candidate.onnx"
        write_quantized(self._file, {**self.usual, **precisions}, path, self._calibrated, alone=alone)
        return OnnxModule(path, self._names, self._like, threads=self._threads)

    def write(self, precisions: Precisions, directory: Path) -> Written:
        made, path = self._scratch / "made.onnx", directory / "model.onnx"
        write_quantized(self._file, {**self.usual, **precisions}, made, self._calibrated)
        write_short(made, path)
        return Written({"onnx": [path]}, [])

    def written_module(self, written: Written, output: Output) -> nn.Module:
        return OnnxModule(written.files[output][0], self._names, self._like, threads=self._threads)

    def timed(self, written: nn.Module) -> tuple[nn.Module, nn.Module]:
        return self.float_module(), written

    def float_module(self) -> nn.Module:
        return OnnxModule(self._float, self._names, self._like, threads=self._threads)

    def precisions(self, precisions: Precisions) -> dict[str, Precision]:
        return precisions_in(self._scratch / "made.onnx", self._file)


def int8_files(
    spec: QuantizeSpec,
    loaded: LoadedModel,
    data: Data | None,
    example: tuple[Tensor, ...],
    outputs: Sequence[Output],
    work: Work,
    stages: Stages,
    scratch: Path,
    calibrated_on: int | None = None,
) -> tuple[list[Int8Files], list[FailedOutput]]:
    """What makes the files of a job, that of the first format first, and which formats will be missing.

    Args:
        calibrated_on: samples, where other than the spec says.

    Raises:
        ExportFailed: no format can be written.
    """
    files: list[Int8Files] = []
    failed: list[FailedOutput] = []
    settings = settings_of(spec, loaded, example, outputs)
    kinds = dict.fromkeys("onnx" if output == "onnx" else "script" for output in outputs)
    for kind in kinds:
        stages.beat()
        if kind == "script":
            others: list[Output] = [output for output in outputs if output != "onnx"]
            formats = Formats(others, example, settings=settings, log=work.observer.log, tick=stages.beat)
            files.append(Int8Script(loaded, example, formats))
            continue
        calibration = spec.calibration
        if calibrated_on is not None:
            calibration = calibration.model_copy(update={"samples": calibrated_on})
        try:
            made = Int8Onnx(
                loaded,
                example,
                spec.method,
                scratch,
                settings=settings,
                threads=max(work.threads, 1),
                calibration=calibration,
                batches=[] if data is None else _calibration(data, calibration.samples),
            )
        except ExportFailed as error:
            if len(kinds) == 1:
                raise
            failed.append(FailedOutput(format="onnx", code=error.code, detail=error.detail))
            work.observer.log(f"onnx will be missing from the result: {error.detail}")
        else:
            files.append(made)
    return files, failed


def _calibration(data: Data, count: int) -> list[tuple[Tensor, ...]]:
    """Batches of training samples, all of one size."""
    rows = data.spread("train", count)
    rows = rows[: max(len(rows) // BATCH, 1) * BATCH]
    return [data.take("train", part, cut=False)[0] for part in torch.split(rows, BATCH)]
