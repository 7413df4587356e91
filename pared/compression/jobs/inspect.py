"""The method of an inspection job."""

from __future__ import annotations

from pared.compression.data import inspect_dataset
from pared.compression.jobs.stages import plain, settled
from pared.compression.loading import (
    guess_example_inputs,
    inspect_model,
    inspect_weights,
    is_without_architecture,
    load_model,
    with_architecture,
)
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
        file = with_architecture(file, plain(spec.architecture))
        if is_without_architecture(file):
            inspection = inspect_weights(file)
        else:
            loaded = load_model(file)
            inspection = inspect_model(loaded, guess_example_inputs(loaded))
        return inspection.model_copy(update={"sandbox": work.sandbox})
