"""pared and Torch-Pruning on the same trained models, to the same multiply-adds: `make bench-torch-pruning`.

Three networks on a part of MNIST, five seeds, 2×, 4× and 10× fewer multiply-adds. pared's results are jobs posted to a
running pared; what Torch-Pruning leaves is retrained by the very loop that pared's jobs retrain with, on the same
samples in the same order. An interrupted run goes on where it stopped: results are kept in `build/bench-torch-pruning`.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from networks import NETWORKS, PREPROCESS, RETRAIN, Encoder, EncoderLayer, head, prepared_data, resnet50, trained
from results import Kept, machine, mnist_file, table, write_section
from server import running_pared
from torch import Tensor, nn
from torch_pruning.pruner import function

import pared
from pared.compression.data import Data
from pared.compression.data.samples import Split
from pared.compression.export.formats import Formats
from pared.compression.jobs.goal_search import SizeSearch
from pared.compression.jobs.prune_job import PruneJob
from pared.compression.jobs.stages import Stages
from pared.compression.loading import load_model
from pared.compression.measuring.quality import assess
from pared.compression.measuring.size import count_macs
from pared.compression.pruning.channels import remove_channels
from pared.compression.tasks.classification import Classification
from pared.compression.training.calibration import learn_labels
from pared.compression.training.loop import fit
from pared.compression.training.seeds import seed_of
from pared.compression.work import ModelFile, SilentObserver, Work
from pared.specs import PruneSpec, Retrain

SEEDS = (0, 1, 2, 3, 4)
SHARES = {"2×": 0.5, "4×": 0.25, "10×": 0.1}
WORK = Path("build/bench-torch-pruning")
T_OF_FIVE = 2.7764451051977987  # the quantile of Student's t for a two-sided 95 % interval of five differences
SAME = {"criterion": "magnitude", "scope": "layer", "retrain": {**RETRAIN, "teach": None}}
DEFAULT = {"retrain": RETRAIN}
SPLITS: tuple[Split, ...] = ("train", "val", "test")
ARMS = ("Torch-Pruning, Σ|w|", "pared, Σ|w|", "Torch-Pruning, its default", "pared, its default")

Importance = Callable[[Any], Tensor]


def main() -> None:
    """Run what is still missing, then write the section `torch-pruning`."""
    mnist = mnist_file()
    results = Kept(WORK)
    with running_pared(WORK / "data") as url, pared.Client(url) as client:
        for seed in SEEDS:
            path, data = prepared_data(mnist, seed, "test", WORK)
            for network in NETWORKS:
                module = trained(network, data, seed, WORK)
                for arm, share in [(None, "1×"), *((arm, share) for share in SHARES for arm in ARMS)]:
                    name = f"{seed}/{network}/{share}/{arm}"
                    if name not in results:
                        results[name] = outcome(client, module, path, data, arm, share, seed)
                        print(f"{name}: {results[name]}", flush=True)
    text = section(results, times())
    print(text)
    write_section("torch-pruning", text)


def outcome(
    client: pared.Client, module: nn.Module, path: Path, data: Data, arm: str | None, share: str, seed: int
) -> dict[str, float]:
    """Test error in percent, and the share of the multiply-adds that is left."""
    if arm is None:
        return judged(module, module, data)
    if arm.startswith("pared"):
        return by_pared(client, module, path, SHARES[share], seed, SAME if "Σ" in arm else DEFAULT)
    importance = incoming_weights if "Σ" in arm else torch_pruning.importance.GroupMagnitudeImportance()
    smaller = to_share(module, data.example(4), importance, SHARES[share])
    task, seed_of_training = Classification(), seed_of(seed, "retrain", 0)
    config = Retrain.model_validate(RETRAIN)
    fit(smaller, data, config, learn_labels(task), task=task, seed=seed_of_training, phase="retrain")
    return judged(smaller, module, data)


def judged(module: nn.Module, dense: nn.Module, data: Data) -> dict[str, float]:
    """The result, by the same measurements as a job's report."""
    quality, example = assess(module, data, Classification()).quality, data.example(4)
    return {
        "error": 100 * (1 - quality.test.value),
        "macs": (count_macs(module, example) or 0) / (count_macs(dense, example) or 1),
    }


# -- pared --------------------------------------------------------------------------------------


def by_pared(
    client: pared.Client, module: nn.Module, path: Path, share: float, seed: int, fields: dict[str, Any]
) -> dict[str, float]:
    """The result of a job."""
    target = {"macs": share}
    file = saved(module)
    report = client.prune(file, path, target=target, seed=seed, preprocess=PREPROCESS, **fields).wait().report()
    assert report.after.quality is not None
    assert report.before.macs is not None
    assert report.after.macs is not None
    return {"error": 100 * (1 - report.after.quality.test.value), "macs": report.after.macs / report.before.macs}


def saved(module: nn.Module) -> Path:
    """The module as a TorchScript file, which is what pared takes."""
    path = WORK / "dense.pt"
    torch.jit.script(copy.deepcopy(module).eval()).save(str(path))
    return path


# -- Torch-Pruning ------------------------------------------------------------------------------


def incoming_weights(group: Any) -> Tensor:
    """Σ|w| over the incoming weights of all layers that make a channel, which is pared's magnitude."""
    makers = (function.prune_conv_out_channels, function.prune_linear_out_channels)
    total = torch.zeros(len(group[0].idxs))
    for index, (dependency, channels) in enumerate(group):
        if dependency.handler in makers:
            sums = dependency.target.module.weight.detach().abs().flatten(1).sum(1)[channels]
            total.index_add_(0, torch.tensor(group[index].root_idxs), sums)
    return total


def removed(module: nn.Module, example: tuple[Tensor, ...], importance: Importance, ratio: float) -> nn.Module:
    """The module itself, without this ratio of each layer's channels and of each attention's heads."""
    attention = [layer for layer in module.modules() if isinstance(layer, EncoderLayer)]
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example,
        importance,
        pruning_ratio=ratio,
        ignored_layers=[head(module)],
        num_heads={part: layer.heads for layer in attention for part in (layer.q, layer.k, layer.v)},
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=ratio,
        unwrapped_parameters=[(module.position, 1)] if isinstance(module, Encoder) else None,
        in_channel_groups={},  # the default is one dict for all pruners
        out_channel_groups={},
    )
    pruner.step()
    return module


def to_share(
    module: nn.Module,
    example: tuple[Tensor, ...],
    importance: Importance,
    share: float,
    count: Callable[[nn.Module, tuple[Tensor, ...]], float] = count_macs,
) -> nn.Module:
    """A copy with the least ratio removed that leaves this share of the multiply-adds, found by halving."""
    allowed = share * count(module, example)
    low, high, best = 0.0, 1.0, None
    for _ in range(10):
        ratio = (low + high) / 2
        candidate = removed(copy.deepcopy(module), example, importance, ratio)
        if count(candidate, example) <= allowed:
            high, best = ratio, candidate
        else:
            low = ratio
    assert best is not None
    return best


def count_by_torch_pruning(module: nn.Module, example: tuple[Tensor, ...]) -> float:
    """Torch-Pruning's own count, which its users have at hand; it counts norms and biases too."""
    macs: float = torch_pruning.utils.count_ops_and_params(module, example[0][:1])[0]
    return macs


# -- time ---------------------------------------------------------------------------------------


def times() -> list[list[str]]:
    """A row for each network: seconds that removing takes, in this process, in turns."""
    rows = []
    torch.manual_seed(0)
    networks = {**{name: (make(), torch.rand(4, 1, 14, 14)) for name, make in NETWORKS.items()}}
    networks["ResNet-50, 224 pixels"] = (resnet50(), torch.rand(2, 3, 224, 224))
    for name, (module, images) in networks.items():
        example = (images,)
        module.eval()
        file = ModelFile(saved(module), "dense.pt", "")
        loaded = load_model(file)
        ways: dict[str, Callable[[], object]] = {
            "one, Torch-Pruning": lambda m=module, x=example: removed(copy.deepcopy(m), x, incoming_weights, 0.5),
            "one, pared": lambda m=loaded, x=example: remove_channels(m, x, amount=0.5),
            "goal, Torch-Pruning": lambda m=module, x=example: to_share(
                m, x, incoming_weights, 0.25, count_by_torch_pruning
            ),
            "goal, pared": lambda f=file, m=loaded, x=example: to_goal(f, m, x),
        }
        seconds = {way: [] for way in ways}
        for turn in range(6 if len(images) == 4 else 3):
            for way, run in ways.items():
                began = time.perf_counter()
                run()
                if turn:  # the first is to warm up
                    seconds[way].append(time.perf_counter() - began)
        medians = {way: statistics.median(runs) for way, runs in seconds.items()}
        print(f"{name}: {medians}", flush=True)
        cells = []
        for what in ("one", "goal"):
            theirs, ours = medians[f"{what}, Torch-Pruning"], medians[f"{what}, pared"]
            cells += [f"{1000 * theirs:.0f}", f"{1000 * ours:.0f}", f"{ours / theirs:.2f}"]
        rows.append([name, *cells])
    return rows


def to_goal(file: ModelFile, loaded: Any, example: tuple[Tensor, ...]) -> Any:
    """What a job does between opening its model and data, and retraining it."""
    labels = torch.zeros(len(example[0]), dtype=torch.long)
    data = Data(
        {split: list(example) for split in SPLITS}, dict.fromkeys(SPLITS, labels), Classification(), 10, "given", "x"
    )
    spec = PruneSpec.model_validate({"type": "prune", "model": f"mdl_{'0' * 26}", "target": {"macs": 0.25}})
    work, stages = Work({"model": file}, None, WORK), Stages(SilentObserver())
    given = PruneJob(spec, work, stages, loaded, example, data, None, Formats(["torchscript"], example))
    search = SizeSearch(given)
    return search.run(None, lambda _: None)


# -- the tables ---------------------------------------------------------------------------------


def section(results: dict[str, Any], timed: list[list[str]]) -> str:
    """Both tables over all seeds, with what they were measured on."""
    rows = []
    errors = {key: found["error"] for key, found in results.items()}
    same = {seed: [] for seed in SEEDS}
    default = {seed: [] for seed in SEEDS}
    for network in NETWORKS:
        dense = statistics.mean(errors[f"{seed}/{network}/1×/None"] for seed in SEEDS)
        for share in SHARES:
            of = {arm: [errors[f"{seed}/{network}/{share}/{arm}"] for seed in SEEDS] for arm in ARMS}
            apart = [
                [ours - theirs for ours, theirs in zip(of[mine], of[other], strict=True)]
                for mine, other in ((ARMS[1], ARMS[0]), (ARMS[3], ARMS[2]))
            ]
            for seed, *differences in zip(SEEDS, *apart, strict=True):
                same[seed].append(differences[0])
                default[seed].append(differences[1])
            means = [f"{statistics.mean(of[arm]):.2f}" for arm in ARMS]
            cells = [*means[:2], interval(apart[0]), *means[2:], interval(apart[1])]
            rows.append([f"{network}, {share}", f"{dense:.2f}", *cells])
    over_all = [interval([statistics.mean(of_seed) for of_seed in kind.values()]) for kind in (same, default)]
    rows.append(["all", "", "", "", over_all[0], "", "", over_all[1]])
    header = ["test error, %", "dense", *ARMS[:2], "difference", *ARMS[2:], "difference"]
    left = {
        arm: statistics.mean(
            results[f"{seed}/{network}/{share}/{arm}"]["macs"] / SHARES[share]
            for seed in SEEDS
            for network in NETWORKS
            for share in SHARES
        )
        for arm in ARMS
    }
    time_header = ["milliseconds", "Torch-Pruning, once", "pared, once", "ratio"]
    time_header += ["Torch-Pruning, to 4×", "pared, to 4×", "ratio"]
    return (
        f"## Beside Torch-Pruning\n\n{table(header, rows)}\n\n"
        "Mean test error of the seeds 0 to 4; differences are pared's minus Torch-Pruning's, the mean with its 95 % "
        "interval (Student's t over the paired seeds); below zero pared is better. "
        f"{RETRAIN['epochs']} epochs of retraining on 8,000 images of 14×14 pixels, by the same loop, samples and "
        "order for both; epochs are chosen on 2,000 other training images. Σ|w|: the same criterion, layer by layer, "
        "labels alone. Defaults: `GroupMagnitudeImportance()` there; no criterion, scope or teacher given here. Each "
        "is the least that leaves the wanted multiply-adds: of what was allowed "
        f"{', '.join(f'{100 * share:.1f} % ({arm})' for arm, share in left.items())} were left.\n\n"
        f"{table(time_header, timed)}\n\n"
        "Wall-clock medians in one process, in turns, without retraining. Once: half of all channels; pared's time "
        "holds the check that the shrunk model answers as the original with the same channels zeroed. To 4×: with the "
        "search for the amount that leaves a quarter of the multiply-adds; Torch-Pruning has none of its own, so its "
        f"ratio is halved ten times. {machine()}; torch {torch.__version__}, torch-pruning {version('torch-pruning')}, "
        f"{torch.get_num_threads()} threads.\n\n"
        "`make bench-torch-pruning PARED_MNIST=mnist.npz`"
    )


def interval(differences: list[float]) -> str:
    """Mean and 95 % interval of five paired differences."""
    mean = statistics.mean(differences)
    half = T_OF_FIVE * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


if __name__ == "__main__":
    main()
