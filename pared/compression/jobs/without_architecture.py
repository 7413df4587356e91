"""Says what a prune job can do with weights whose architecture nobody named: all that runs nothing."""

from __future__ import annotations

from collections.abc import Sequence

from pared.compression.export.checkpoints import checkpoint_notes
from pared.compression.jobs.stages import plain
from pared.compression.loading import (
    LoadedModel,
    is_without_architecture,
    load_model,
    load_weights,
    missing_architecture,
    with_architecture,
)
from pared.compression.work import ModelFile
from pared.errors import InvalidArchitecture
from pared.specs import PHYSICAL, Output, PruneSpec

NOT_RUN = (
    "Not run: no architecture was given. Only the weights were looked at, so there are no figures of latency, "
    "multiply-adds or quality, nothing made up for what was removed, and all float tensors of two or more dimensions "
    "count as weights, tables and buffers too: `exclude` keeps layers as they are."
)


def open_for(spec: PruneSpec, file: ModelFile) -> LoadedModel:
    """Open the upload, as a model that runs or else, where the job runs nothing, as weights.

    Raises:
        InvalidArchitecture: it is a state dict without an architecture, and the job needs to run it.
        ParedError: as `load_model`.
    """
    file = with_architecture(file, plain(spec.architecture))
    if not is_without_architecture(file):
        return load_model(file)
    needs = needs_to_run(spec)
    if not needs:
        return load_weights(file)
    field, why = needs
    text = f"{missing_architecture(file).detail} Here the model has to run: {why}."
    raise InvalidArchitecture(text, errors=[{"pointer": f"/{field}", "detail": why}])


def upload_notes(upload: LoadedModel, outputs: Sequence[Output]) -> list[str]:
    """What a report says of an upload that did not run, and of the checkpoint that is written again."""
    notes = []
    if not upload.runs:
        notes.append(NOT_RUN)
    if upload.origin is not None and upload.origin.optimizers:
        notes.append(
            "The upload holds the state of optimizers beside the weights, and no result does: a part of what the file "
            "lost is theirs."
        )
    return notes + (checkpoint_notes(upload.origin) if "checkpoint" in outputs else [])


def needs_to_run(spec: PruneSpec) -> tuple[str, str] | None:
    """The first field that asks for something which runs the model, and why."""
    if spec.granularity in PHYSICAL:
        return "granularity", f"granularity {spec.granularity} finds out what belongs together by running it"
    if spec.dataset is not None:
        return "dataset", "a data set is for scoring, retraining and criteria that look at samples"
    if spec.example_inputs is not None:
        return "example_inputs", "`example_inputs` are to run it on"
    return None
