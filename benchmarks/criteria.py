"""Every criterion for channels, on held-out training images: what the defaults are chosen by. `make bench-criteria`.

The networks, data and budget of `beside_torch_pruning.py`, through the library. The test images are never read. An
interrupted run goes on where it stopped: results are kept in `build/bench-criteria`.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS, PREPROCESS, RETRAIN, prepared_data, trained
from results import Kept, machine, mnist_file, table, write_section

from pared.compression import prune
from pared.errors import NothingToPrune

SEEDS = (0, 1, 2)
SHARES = {"2×": 0.5, "4×": 0.25, "10×": 0.1}
WORK = Path("build/bench-criteria")
BY_LAYER = ("random", "magnitude", "l2", "geometric_median", "bn_scale", "activation", "taylor", "hessian")
ALL_TOGETHER = ("lamp", "l2", "taylor", "hessian")
MOSTLY = {"kind": "knowledge", "alpha": 0.0, "temperature": 4, "labels": 0.1}
TAUGHT = ("magnitude", "geometric_median", "bn_scale", "activation", "taylor", "hessian")
WAYS: dict[str, dict[str, Any]] = {
    **{f"{name}, layer": {"criterion": name, "scope": "layer"} for name in BY_LAYER},
    **{f"{name}, global": {"criterion": name, "scope": "global"} for name in ALL_TOGETHER},
    **{f"{name}, layer, taught": {"criterion": name, "scope": "layer", "teach": MOSTLY} for name in TAUGHT},
    "magnitude, layer, half taught": {"criterion": "magnitude", "scope": "layer", "teach": True},
}


def main() -> None:
    """Run what is still missing, then write the section `criteria`."""
    mnist = mnist_file()
    results = Kept(WORK)
    for seed in SEEDS:
        path, data = prepared_data(mnist, seed, "held_out", WORK)
        for network in NETWORKS:
            module = trained(network, data, seed, WORK)
            for way, fields in WAYS.items():
                for share, left in SHARES.items():
                    name = f"{seed}/{network}/{share}/{way}"
                    if name not in results:
                        results[name] = error(module, path, left, seed, fields)
                        print(f"{name}: {results[name]}", flush=True)
    text = section(results)
    print(text)
    write_section("criteria", text)


def error(module: torch.nn.Module, data: Path, left: float, seed: int, fields: dict[str, Any]) -> float | None:
    """Error on the held-out images in percent; None where the criterion has nothing to go by."""
    choice = {name: value for name, value in fields.items() if name != "teach"}
    retrain = {**RETRAIN, "teach": fields.get("teach", False)}
    try:
        found = prune(module, data, target={"macs": left}, seed=seed, preprocess=PREPROCESS, retrain=retrain, **choice)
    except NothingToPrune:
        return None
    quality = found.report.after.quality
    return None if quality is None else 100 * (1 - quality.test.value)


def section(results: dict[str, float | None]) -> str:
    """The table over all seeds, the ways in the order of their means."""
    rows = []
    for way in WAYS:
        cells: list[str] = []
        means = []
        for network in NETWORKS:
            for share in SHARES:
                errors = [error for seed in SEEDS if (error := results[f"{seed}/{network}/{share}/{way}"]) is not None]
                cells.append(f"{statistics.mean(errors):.2f}" if errors else "")
                means += [statistics.mean(errors)] if errors else []
        whole = len(means) == len(NETWORKS) * len(SHARES)
        rows.append([way, *cells, f"{statistics.mean(means):.2f}" if whole else ""])
    rows.sort(key=lambda row: (not row[-1], float(row[-1] or 0)))
    header = ["held-out error, %", *(f"{network}, {share}" for network in NETWORKS for share in SHARES), "mean"]
    return (
        f"## Criteria for channels\n\n{table(header, rows)}\n\n"
        "Mean error of the seeds 0, 1 and 2 on 10,000 training images that neither training nor the choice of epochs "
        "saw, at 2×, 4× and 10× fewer multiply-adds; `taught`: retrained with the dense model "
        "as teacher, by nine parts softened classes and one part labels; `half taught`: half and half, the default. "
        f"{RETRAIN['epochs']} epochs on 8,000 images of 14×14 pixels. `bn_scale` needs batch norms. "
        f"{machine()}; torch {torch.__version__}.\n\n"
        "`make bench-criteria PARED_MNIST=mnist.npz`"
    )


if __name__ == "__main__":
    main()
