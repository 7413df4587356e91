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
from pared.specs import Output, PruneSpec
from pared.specs.running import why_run

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
    why = why_run(spec)
    if why is None:
        return load_weights(file)
    raise missing_architecture(file, why)


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
