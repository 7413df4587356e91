"""The dry run and the inspection of a decoder that goes layer by layer: by shapes alone, without reading a weight."""

from __future__ import annotations

import math

from pared.compression.decoders.config import PROJECTIONS
from pared.compression.decoders.stored import opened, usual_dtype
from pared.compression.jobs.stages import Stages
from pared.compression.jobs.streamed_sizes import every, first_of, goal_of, layer_reports, left_of, sizes_of
from pared.compression.names import layer_of
from pared.compression.report.verdict import plan_verdict
from pared.compression.work import ModelFile, Work
from pared.reports import LayerInspection, ModelInspection, Plan, PlannedFile, PlannedLayer, Size
from pared.specs import PruneSpec

_BY_SHAPES = (
    "Layer by layer a plan reads shapes alone: zeros that the upload has are not counted, multiply-adds neither, the "
    "file is foreseen to within a few kB, and whether texts fit the model is seen by the job."
)
_LARGE = (
    "A prune job takes this folder layer by layer, in the memory of about one layer and without retraining, unless it "
    "asks for what needs the model as a whole."
)


def plan_streamed(spec: PruneSpec, work: Work, stages: Stages) -> Plan:
    """The plan of a job that goes layer by layer.

    Raises:
        NothingToPrune: nothing can go.
        ParedError: what is wrong with the folder.
    """
    source = work.models["model"].path
    stages.enter("validate")
    upload_bytes = source.stat().st_size
    with opened(source, stages.beat) as stored:
        left, amount = left_of(spec, stored, upload_bytes)
        kept = first_of(stored.decoder, left)
        (all_of, whole), (rest, weight_bytes) = (
            sizes_of(stored, each) for each in (first_of(stored.decoder, every(stored.decoder)), kept)
        )
        file_bytes = upload_bytes - whole + weight_bytes
        before, after = (
            Size(parameters=count, nonzero_parameters=count, file_bytes=size)
            for count, size in ((all_of, upload_bytes), (rest, file_bytes))
        )
        layers = [
            PlannedLayer(
                name=layer.name,
                shape_before=layer.shape_before,
                shape_after=layer.shape_after,
                removed_units=len(layer.removed_units or []),
                reason=layer.reason,
            )
            for layer in layer_reports(stored, kept, {}, spec.granularity)
        ]
    goal = goal_of(spec, amount, rest / all_of, file_bytes / upload_bytes)
    verdict = plan_verdict(spec.granularity, before, after)
    return Plan(
        verdict=verdict if goal is None else f"{goal.sentence} {verdict}",
        amount=amount,
        round_to=spec.round_to,
        goal=goal,
        exact=True,
        before=before,
        after=after,
        files={"model.zip": PlannedFile(size_bytes=file_bytes, exact=False)},
        layers=layers,
        notes=[_BY_SHAPES],
        warnings=list(work.models["model"].notes),
    )


def inspect_large(file: ModelFile) -> ModelInspection:
    """What a folder holds that is too large to be built for a look at it.

    Raises:
        ParedError: what is wrong with the folder.
    """
    with opened(file.path) as stored:
        decoder = stored.decoder
        layers: dict[str, LayerInspection] = {}
        for name, place in stored.places.items():
            layer, shape = layer_of(name), place.entry.shape
            linear = any(layer.endswith(f".{each}") for each in PROJECTIONS)
            found = layers.setdefault(
                layer,
                LayerInspection(
                    name=layer,
                    kind="linear" if linear or layer == "lm_head" else "embedding" if len(shape) == 2 else "rms_norm",
                    weights={},
                    parameters=0,
                    channels=shape[0] if linear else None,
                    prunable_channels=linear and not layer.endswith(("o_proj", "down_proj")),
                    reason="the hidden width stays where a decoder is pruned layer by layer"
                    if len(shape) == 2 and (not linear or layer.endswith(("o_proj", "down_proj")))
                    else None,
                ),
            )
            found.weights[name] = list(shape)
            found.parameters += math.prod(shape)
        parameters, _ = sizes_of(stored, first_of(decoder, every(decoder)))
        kind = f"{decoder.settings['architectures'][0]}, {usual_dtype(stored)}"
        return ModelInspection(
            format="huggingface",
            flavour="traced",
            parameters=parameters,
            trainable_parameters=parameters,
            inputs=[{"shape": [1, 16], "dtype": "int64"}],
            layers=list(layers.values()),
            warnings=[*file.notes, f"{kind}. {_LARGE}"],
        )
