"""Decoders larger than what a job may hold, pruned layer by layer: peak memory by the size of the largest layer.

One decoder is Llama 7B at a tenth of its parameters. The other has two of the layers of Llama 7B in their true size,
for memory does not hang on how many follow. Weights are random, so that losses say nothing. Each job runs in a process
of its own, from whose peak that of a process is taken that imports the same. Run it with `make bench-large-decoder`; it
needs 6 GB of disk.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from results import Kept, machine, table, write_section
from safetensors.torch import save_file

SEVEN = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32}
TENTH = {"hidden_size": 1536, "intermediate_size": 4128, "num_attention_heads": 12, "num_hidden_layers": 22}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 4}
SMALL = "a few hundred kB"
JOBS: dict[str, dict[str, Any]] = {
    "width −25 %": {"granularity": "channel", "criterion": "activation", "amount": 0.25},
    "width −25 %, no texts": {"granularity": "channel", "criterion": "magnitude", "amount": 0.25},
}
DECODERS: dict[str, tuple[dict[str, int], int, list[str]]] = {
    SMALL: (TINY, 2_000, list(JOBS)),
    "two layers of 7 B": (SEVEN | {"num_hidden_layers": 2}, 2_000, ["width −25 %", "width −25 %, no texts"]),
    "7 B at a tenth": (TENTH, 32_000, ["width −25 %"]),
}
"""What it is -> sizes, vocabulary, and the jobs that it goes through."""
TEXTS, TOKENS = 20, 48
LIMIT = 1.5
IDLE = "imports alone"
WORK = Path("build/bench-large-decoder")
"""Where results are kept that a run has come to before it was ended."""


def main() -> None:
    """Measure what has not been yet, print, and write the section `large-decoder`."""
    results = Kept(WORK)
    with tempfile.TemporaryDirectory(prefix="pared-large-") as name:
        folder = Path(name)
        if IDLE not in results:
            results[IDLE] = measured(None, None, {}, folder / "out")
        texts = write_texts(folder / "texts.jsonl")
        for what, (sizes, vocabulary, jobs) in DECODERS.items():
            missing = [job for job in jobs if f"{what}, {job}" not in results]
            if not missing:
                continue
            packed = pack(write_decoder(folder / "model", sizes, vocabulary), folder / "model.zip")
            for job in missing:
                data = None if "no texts" in job else texts
                found = measured(packed, data, JOBS[job], folder / "out")
                results[f"{what}, {job}"] = found
                print(f"{what}, {job}: {found}", flush=True)
            packed.unlink()
    idle = results[IDLE]["peak"]
    rows, met = [], True
    for what, (sizes, _, jobs) in DECODERS.items():
        for job in jobs if what != SMALL else []:
            found, layer = results[f"{what}, {job}"], layer_bytes(sizes)
            more, alone = found["peak"] - idle, results[f"{SMALL}, {job}"]["peak"] - idle
            met = met and more <= LIMIT * layer + alone
            rows.append(
                [
                    f"{what}, {job}",
                    *(f"{count / 1e6:.0f} M" for count in found["parameters"]),
                    *(f"{size / 1e6:.0f}" for size in (found["file_bytes"][0], layer, more, alone)),
                    f"{more / layer:.2f}",
                    f"{max(more - alone, 0) / layer:.2f}",
                    f"{found['seconds']:.0f}",
                ]
            )
    columns = ["parameters", "after", "file, MB", "largest layer, MB", "peak, MB", "of a small one, MB"]
    shown = table(["decoder", *columns, "peak / layer", "without the small one's", "seconds"], rows)
    outcome = f"{'' if met else 'not '}within {LIMIT} times the largest layer and what a small decoder's job takes"
    print(f"{shown}\n{outcome}")
    whole = layer_bytes(SEVEN)
    gigabytes = (32 * whole + 2 * 2 * 32_000 * 4096) / 1e9
    text = (
        f"## A decoder larger than memory\n\n{shown}\n\nBfloat16 in shards, on {machine()}, torch "
        f"{torch.__version__}; weights are random numbers over and over, so that losses say nothing. {TEXTS} texts of "
        f"{TOKENS} tokens are what the loss before and after and the criterion `activation` are of. Peak is the job's "
        f"`VmHWM` without the {idle / 1e6:.0f} MB of a process that only imports the same. A small one is a decoder of "
        f"{SMALL}, whose job takes memory for its tokenizer, intervals and report. All are {outcome}. The result is "
        "written, read again and measured within these seconds; the machine was busy with other work.\n\n"
        f"**7 B by arithmetic.** {gigabytes:.1f} GB of weights, of which a layer is {whole / 1e6:.0f} MB: one buffer "
        "of that size, in which layers take turns; a fifth of it for the hidden states in work, or what one text takes "
        "where that is more (512 tokens: 0.1 GB); and blocks of a 32nd in float32. The two layers above have this "
        "size, and the other thirty only take their turns. Embedding and output layer are read by rows. On disk, "
        "hidden states of 160 texts of 512 tokens are 1.3 GB.\n\n`make bench-large-decoder`"
    )
    write_section("large-decoder", text)


def layer_bytes(sizes: dict[str, int]) -> int:
    """What a layer takes in bfloat16."""
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    return 2 * (4 * hidden**2 + 3 * hidden * inner + 2 * hidden)


def write_decoder(folder: Path, sizes: dict[str, int], vocabulary: int) -> Path:
    """A decoder of random weights, a shard for every four layers, with the tokenizer of its words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    torch.manual_seed(0)
    hidden, inner, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "num_key_value_heads": sizes["num_attention_heads"],
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        **sizes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    words = {"[UNK]": 0, **{f"w{index}": index for index in range(1, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    parts = [shapes]
    for layer in range(layers):
        if layer % 4 == 0:
            parts.append({})
        prefix = f"model.layers.{layer}."
        parts[-1] |= {f"{prefix}self_attn.{each}_proj.weight": (hidden, hidden) for each in "qkvo"}
        parts[-1] |= {f"{prefix}mlp.{each}_proj.weight": (inner, hidden) for each in ("gate", "up")}
        parts[-1] |= {f"{prefix}mlp.down_proj.weight": (hidden, inner)}
        parts[-1] |= {f"{prefix}{each}_layernorm.weight": (hidden,) for each in ("input", "post_attention")}
    parts.append({"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)})
    weight_map = {}
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file({each: random(shape) for each, shape in part.items()}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def random(shape: tuple[int, ...]) -> torch.Tensor:
    """Some thousand numbers of a normal distribution over and over, which gzip is soon through; norms of ones."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    some = (0.02 * torch.randn(4_093)).bfloat16()  # a prime number, so that rows differ
    count = shape[0] * shape[1]
    return some.repeat(-(-count // len(some)))[:count].view(shape)


def write_texts(path: Path) -> Path:
    """Random words that all decoders here know."""
    words = torch.randint(1, 2_000, (TEXTS, TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    lines = (json.dumps({"text": " ".join(f"w{word}" for word in line)}) for line in words)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def pack(folder: Path, path: Path) -> Path:
    """The zip that the folder is uploaded as; the folder's weights go."""
    from pared.folders import pack as as_zip

    as_zip(folder, path)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    return path


def measured(model: Path | None, texts: Path | None, fields: dict[str, Any], out: Path) -> dict[str, Any]:
    """Parameters, bytes, seconds and peak memory of a job in a process of its own; without a model, of imports."""
    arguments = json.dumps(
        {"model": model and str(model), "data": texts and str(texts), "out": str(out), "fields": fields}
    )
    done = subprocess.run([sys.executable, __file__, "--job", arguments], check=True, stdout=subprocess.PIPE, text=True)
    for path in out.iterdir() if model else []:
        path.unlink()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_job(arguments: dict[str, Any]) -> None:
    """One job, as the library runs it, and what it took."""
    import tokenizers  # noqa: F401 - which a job with texts loads

    from pared.compression import prune

    if arguments["model"] is None:
        print(json.dumps({"peak": peak()}))
        return
    started = time.monotonic()
    fields = {**arguments["fields"], "streamed": True}
    report = prune(arguments["model"], arguments["data"], directory=arguments["out"], **fields).report
    taken = time.monotonic() - started
    parts = (report.before, report.after)
    print(
        json.dumps(
            {
                "parameters": [part.parameters for part in parts],
                "file_bytes": [part.file_bytes for part in parts],
                "seconds": taken,
                "peak": peak(),
                "stages": report.seconds,
            }
        )
    )


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0]) << 10


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        run_job(json.loads(sys.argv[2]))
    else:
        main()
