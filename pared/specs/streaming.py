"""Owns what a prune job may ask for where a decoder is read, pruned and written layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pared.wording import listed

if TYPE_CHECKING:
    from pared.specs.pruning import PruneSpec

GRANULARITIES = ("channel", "head", "residual_block")
CRITERIA_OF_LAYERS = ("magnitude", "l2", "activation", "random")
"""Those that look at one layer at a time, and at no gradients."""


def needs_whole_model(spec: PruneSpec) -> dict[str, str]:
    """Fields that ask for what only a model in memory as a whole can do -> why, and what to do."""
    if spec.granularity not in GRANULARITIES:
        return {"streamed": f"is for the granularities {listed(GRANULARITIES, 'and')}: leave it out"}
    found = {}
    if spec.trains:
        found["retrain"] = "is not done layer by layer: leave it out, or make it null, and train the smaller folder"
    if spec.schedule != "one_shot" or spec.stages:
        found["schedule"] = "must be one_shot, without `stages`, layer by layer, where nothing is trained between steps"
    if spec.criterion not in CRITERIA_OF_LAYERS:
        found["criterion"] = f"must look at one layer at a time: use {listed(CRITERIA_OF_LAYERS, 'or')}"
    if spec.granularity != "residual_block" and spec.scope == "global":
        found["scope"] = "must be layer, for config.json has one width for all layers: leave it out"
    if spec.target is not None:
        other = [name for name in spec.target.goals if name not in ("params", "file_bytes")]
        if other:
            found[f"target/{other[0]}"] = (
                "is not measured layer by layer: give `params` or `file_bytes`, or an `amount`"
            )
    if spec.outputs not in (None, ["huggingface"]):
        found["outputs"] = "must be huggingface alone, as it is if left out: layer by layer a folder is written"
    if spec.uniform is False:
        found["uniform"] = "must be true or left out: layer by layer a folder is written, of equal widths"
    if spec.task not in (None, "language_modeling"):
        found["task"] = "must be language_modeling, or be left out: a decoder is scored by the loss of its next token"
    if spec.output_width != "keep":
        found["output_width"] = "must be keep, for the hidden width stays layer by layer: leave it out"
    if spec.example_inputs is not None:
        found["example_inputs"] = "has no effect layer by layer, where texts are the inputs: leave it out"
    if spec.device == "cuda" or spec.latency_device is not None:
        field = "device" if spec.device == "cuda" else "latency_device"
        found[field] = "has no effect layer by layer, which computes on the processor and measures no latency"
    return found
