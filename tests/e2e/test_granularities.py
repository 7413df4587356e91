"""2:4, blocks, whole heads and whole residual blocks over HTTP, each retrained.

One that masks and one that cuts do so twice with one seed.
"""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from tests.support.clean_process import CleanProcess
from tests.support.models import zoo
from tests.support.stack import Stack

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "n:m": ("mlp", {"n_m": [2, 4]}),
    "block": ("mlp", {"block": [4, 4], "amount": 0.5}),
    "head": ("text_transformer", {"amount": 0.5}),
    "residual_block": ("resnet", {"amount": 0.4}),
}
TWICE = ("n:m", "residual_block")
RETRAIN = {"epochs": 2, "momentum": 0.9, "weight_decay": 0.001}


@pytest.fixture(scope="module")
def posted(embedded: Stack) -> dict[str, list[str]]:
    """The jobs of each granularity, all posted up front so that the workers are busy while results are looked at."""
    jobs = {}
    for granularity, (family, fields) in WAYS.items():
        spec = {
            "type": "prune",
            "model": embedded.upload_model(zoo.upload(family, "scripted"), f"{family}.pt"),
            "dataset": embedded.upload_dataset(zoo.dataset(family), f"{family}.npz"),
            "granularity": granularity,
            "retrain": RETRAIN,
            "seed": 7,
            **fields,
        }
        jobs[granularity] = [embedded.submit(spec) for _ in range(2 if granularity in TWICE else 1)]
    return jobs


@pytest.mark.parametrize("granularity", WAYS)
def test_the_file_runs_its_mask_is_exact_and_the_same_seed_gives_the_same_bytes(
    granularity: str, embedded: Stack, posted: dict[str, list[str]], clean: CleanProcess
) -> None:
    family = WAYS[granularity][0]
    for job in posted[granularity]:
        assert len(embedded.succeeded(job)["history"]) == RETRAIN["epochs"]
    file, *again = (embedded.download(job) for job in posted[granularity])
    assert again == ([file] if granularity in TWICE else [])

    kind, original = zoo.FAMILIES[family], zoo.trained(family)
    report = embedded.report(posted[granularity][0])
    one, seven = kind.inputs(1), kind.inputs(7)
    ran = clean.run(file, one=one, seven=seven)
    assert ran["shapes"] == {"one": list(original(one).shape), "seven": list(original(seven).shape)}
    assert ran["parameters"] == report["after"]["parameters"]

    weights = dict(torch.jit.load(io.BytesIO(file)).named_parameters())
    before = dict(original.named_parameters())
    if granularity in ("head", "residual_block"):
        assert ran["parameters"] < report["before"]["parameters"]
        assert any(name not in weights or weights[name].shape != before[name].shape for name in before)
        return
    assert {name: weight.shape for name, weight in weights.items()} == {n: w.shape for n, w in before.items()}
    matrices = [name for name, weight in weights.items() if weight.dim() >= 2]
    assert any(
        not torch.equal(weights[name][weights[name] != 0], before[name][weights[name] != 0]) for name in matrices
    )
    for name in matrices:
        kept = weights[name].flatten(1) != 0
        if granularity == "n:m":
            assert (kept.unflatten(1, (-1, 4)).sum(2) == 2).all(), f"{name}: two of four neighbours"
        else:
            blocks = kept.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).sum((1, 3))
            assert ((blocks == 0) | (blocks == 16)).all(), f"{name}: whole blocks"
    assert ran["zeros"] == pytest.approx(ran["of"] / 2, abs=8)
