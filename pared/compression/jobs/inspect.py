"""The method of an inspection job."""

from __future__ import annotations

from torch import Tensor, nn

from pared.compression.data import inspect_dataset
from pared.compression.jobs.plan_streamed import inspect_large
from pared.compression.jobs.stages import plain, settled
from pared.compression.jobs.streamed_sizes import is_large_decoder
from pared.compression.loading import (
    guess_example_inputs,
    inspect_model,
    inspect_weights,
    is_without_architecture,
    load_model,
    with_architecture,
)
from pared.compression.loading.file_format import recognise, refuse_damaged
from pared.compression.measuring.size import macs_by_weight
from pared.compression.work import Work
from pared.reports import DatasetInspection, ModelInspection
from pared.specs import InspectSpec


def inspect(spec: InspectSpec, work: Work) -> ModelInspection | DatasetInspection:
    """Open an upload and say what is in it. `work` holds one model, or else a data set."""
    with settled(work):
        work.observer.stage("validate")
        if work.dataset is not None:
            return inspect_dataset(work.dataset, work.directory)
        (file,) = work.models.values()
        refuse_damaged(file.path)
        file = with_architecture(file, plain(spec.architecture))
        if is_without_architecture(file):
            inspection = inspect_weights(file)
        elif recognise(file.path) == "huggingface" and is_large_decoder(file):
            inspection = inspect_large(file)
        else:
            loaded = load_model(file)
            example = guess_example_inputs(loaded)
            inspection = inspect_model(loaded, example)
            if example is not None:
                inspection = _with_macs(inspection, loaded.module, example)
        return inspection.model_copy(update={"sandbox": work.sandbox})


def _with_macs(inspection: ModelInspection, module: nn.Module, example: tuple[Tensor, ...]) -> ModelInspection:
    """The inspection with what each layer computes."""
    total, of_weights = macs_by_weight(module, example)
    layers = [
        layer.model_copy(update={"macs": sum(of_weights[name] for name in layer.weights if name in of_weights)})
        for layer in inspection.layers
    ]
    return inspection if total is None else inspection.model_copy(update={"macs": total, "layers": layers})
