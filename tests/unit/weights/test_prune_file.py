"""A file pruned a block at a time is the file that ranking all of its weights in memory gives."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pared.compression.pruning.weights import weight_masks
from pared.errors import NothingToPrune, ParedError, StorageFull, UnsupportedModel, ValidationError
from pared.weights import magnitudes, prune_file
from pared.weights.magnitudes import Cut, find_cut
from pared.weights.safetensors import read_header

State = dict[str, Tensor]
PARED = str(Path(sys.executable).with_name("pared"))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that a tensor of a test has several blocks, the last of them partial."""
    monkeypatch.setattr(prune_file, "BLOCK_BYTES", 1 << 10)


def weights(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(0.02).to(dtype)


def save_sharded(shards: dict[str, State], folder: Path) -> Path:
    folder.mkdir()
    for file, state in shards.items():
        save_file(state, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, state in shards.items() for name in state}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}, indent=2))
    return index


def module_of(*paths: Path) -> nn.Module:
    """A module with the tensors of these files as its parameters, in the order in which they lie."""
    root = nn.Module()
    for path in paths:
        state = load_file(path)
        for entry in read_header(path).tensors:
            layer, _, last = entry.name.rpartition(".")
            if layer and layer not in dict(root.named_children()):
                root.add_module(layer, nn.Module())
            floating = state[entry.name].is_floating_point()
            parameter = nn.Parameter(state[entry.name], requires_grad=floating)
            root.get_submodule(layer).register_parameter(last, parameter)
    return root


def masked(*paths: Path, **options) -> State:
    module = module_of(*paths)
    weight_masks(module, **options).apply(module)
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def bits(state: State) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    return {
        name: (t.dtype, t.shape, t.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        for name, t in state.items()
    }


MIXED = {
    "embed.weight": weights(70, 30, dtype=torch.bfloat16, seed=1),
    "layers-0-attn.weight": weights(64, 33, dtype=torch.float16, seed=2),
    "head.bias": weights(64, seed=3),
    "layers-0-norm.weight": torch.ones(64),
    "layers-1-mlp.weight": weights(50, 50, seed=4),
    "layers-1-mlp.position": torch.arange(12).reshape(3, 4),
    "conv.weight": weights(8, 3, 3, 3, seed=5),
    "scale": torch.tensor(3.0),
    "nothing.weight": torch.zeros(0, 5),
}


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("amount", [1e-6, 0.1, 0.5, 0.9, 0.999999])
@pytest.mark.parametrize(
    "state",
    [
        MIXED,
        {"a.weight": weights(90, 90, dtype=torch.bfloat16), "b.weight": weights(9, 9, dtype=torch.bfloat16)},
        {"a.weight": weights(90, 90, dtype=torch.float16)},
        {"a.weight": weights(90, 90), "b.weight": weights(40, 7, seed=1)},
    ],
    ids=["mixed", "bf16", "f16", "f32"],
)
def test_one_file_is_pruned_as_the_masks_prune_its_module(state: State, amount: float, scope, tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(state, source, metadata={"format": "pt", "π": "3"})
    done = prune_file.prune_file(source, target, amount=amount, scope=scope)
    expected = masked(source, amount=amount, scope=scope)
    assert bits(load_file(target)) == bits(expected)
    assert read_header(target).head == read_header(source).head
    assert [tensor.zeros for tensor in done.tensors] == [int((expected[t.name] == 0).sum()) for t in done.tensors]
    assert done.untouched + len(done.tensors) == len(state)


def test_shards_are_one_ranking_and_keep_their_names(tmp_path: Path) -> None:
    shards = {
        # Values of few kinds: the threshold is a tie that spans both files.
        "model-00002-of-00002.safetensors": {"z.weight": torch.full((40, 40), -0.5), "z.bias": torch.ones(3)},
        "model-00001-of-00002.safetensors": {"a.weight": torch.tensor([0.5, -0.25]).repeat(30, 20)},
    }
    index = save_sharded(shards, tmp_path / "in")
    before = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    for number, source in enumerate((index, tmp_path / "in")):
        out = tmp_path / f"out{number}"
        done = prune_file.prune_file(source, out, amount=0.6)
        paths = [tmp_path / "in" / name for name in sorted(shards)]
        found = {name: tensor for name in sorted(shards) for name, tensor in load_file(out / name).items()}
        assert bits(found) == bits(masked(*paths, amount=0.6))
        assert {path.name for path in out.iterdir()} == set(before)
        assert (out / index.name).read_bytes() == before[index.name]
        assert done.zeroed == done.zeros == round(0.6 * 2800)
        assert {tensor.threshold for tensor in done.tensors} == {0.5}
    assert {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before


def test_ties_go_in_the_order_of_the_data(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4, 300), "b": -torch.ones(4, 300)}, tmp_path / "a.safetensors")
    prune_file.prune_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", amount=0.75)
    pruned = load_file(tmp_path / "b.safetensors")
    assert torch.equal(pruned["a"], torch.zeros(4, 300))
    assert torch.equal(pruned["b"].flatten(), torch.cat([torch.zeros(600), -torch.ones(600)]))


def test_signed_zeros_subnormals_and_infinities_rank_as_numbers(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tiny = torch.finfo(dtype).smallest_normal
        row = torch.tensor([-0.0, tiny, -tiny / 2, 0.0, torch.inf, -1.0, -torch.inf, tiny / 4, -0.0, 1.0], dtype=dtype)
        source, target = tmp_path / f"{dtype}.safetensors", tmp_path / f"{dtype}-out.safetensors"
        save_file({"w": row[None]}, source)
        for amount in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            done = prune_file.prune_file(source, target, amount=amount)
            expected = row.clone()
            expected[row.double().abs().argsort(stable=True)[: round(amount * 10)]] = 0
            assert bits(load_file(target)) == bits({"w": expected[None]}), (dtype, amount)
            assert done.zeros == int((expected == 0).sum())
            target.unlink()


def test_float64_ranks_beyond_float32(tmp_path: Path) -> None:
    """In float32 these are all equal; a type that is wider than its neighbours is ranked in full."""
    close = (1 + torch.randperm(5000, generator=torch.Generator().manual_seed(0)).double() * 2**-50).reshape(50, 100)
    save_file({"w": close, "v": torch.full((7, 100), 1.0)}, tmp_path / "a.safetensors")
    done = prune_file.prune_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", amount=0.5)
    kept = load_file(tmp_path / "b.safetensors")["w"] != 0
    assert torch.equal(kept, close > close.flatten().sort().values[2850 - 700 - 1])
    assert done.tensors[0].threshold > 1


def test_a_pruned_file_pruned_further_keeps_what_is_gone(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(4)]
    save_file(MIXED, paths[0])
    for before, after, amount in zip(paths, paths[1:], (0.5, 0.8, 0.3), strict=False):
        done = prune_file.prune_file(before, after, amount=amount)
        assert bits(load_file(after)) == bits(masked(before, amount=amount))
    assert bits(load_file(paths[3])) == bits(load_file(paths[2]))  # 30 % of it is zero, as was asked
    assert done.zeros > done.zeroed
    assert done.tensors[0].threshold == 0


def test_layers_are_chosen_by_name(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(MIXED, source)
    choice = {"include": ["layers-*", "conv"], "exclude": ["layers-1-*"]}
    done = prune_file.prune_file(source, target, amount=0.5, **choice)
    assert bits(load_file(target)) == bits(masked(source, amount=0.5, **choice))
    assert {tensor.name for tensor in done.tensors} == {"layers-0-attn.weight", "conv.weight"}


def test_small_floats_stay_and_are_named(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    eight = weights(8, 8).to(torch.float8_e4m3fn)
    save_file({"q.weight": eight, "w.weight": weights(8, 8)}, source)
    done = prune_file.prune_file(source, target, amount=0.5)
    assert bits({"q": load_file(target)["q.weight"]}) == bits({"q": eight})
    assert "F8_E4M3" in done.notes[0]
    with pytest.raises(NothingToPrune, match="F8_E4M3"):
        prune_file.prune_file(source, tmp_path / "c.safetensors", amount=0.5, include=["q"])


def test_what_weights_are_computed_from_stays_as_it_is(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    state = {
        "a.weight": weights(20, 20),
        "b.weight_g": weights(8, 1, seed=1),
        "b.weight_v": weights(8, 20, seed=2),
        "c.parametrizations.weight.original": weights(9, 9, seed=3),
        "d.weight_orig": weights(6, 6, seed=4),
        "d.weight_mask": torch.ones(6, 6),
        "e.alone_v": weights(6, 6, seed=5),
    }
    save_file(state, source)
    done = prune_file.prune_file(source, target, amount=0.5)
    assert [tensor.name for tensor in done.tensors] == ["a.weight", "e.alone_v"]
    assert all(name in done.notes[0] for name in ("b.weight", "c.weight", "d.weight"))
    pruned = load_file(target)
    assert all(torch.equal(pruned[name], tensor) for name, tensor in state.items() if name[0] in "bcd")
    with pytest.raises(NothingToPrune, match="weights are computed from them"):
        prune_file.prune_file(source, tmp_path / "c.safetensors", amount=0.5, include=["b"])


@given(
    values=st.lists(st.integers(0, 2**31 - 1) | st.sampled_from([0, 1, 2**30, 2**31 - 1]), min_size=1, max_size=200),
    share=st.floats(0, 1),
    guess=st.integers(0, 2**31 - 1),
    common=st.sampled_from(["F32", "F64", "F16"]),
)
@settings(deadline=None, max_examples=60)
def test_the_cut_is_that_of_a_sort_whatever_the_guess(values, share: float, guess: int, common: str) -> None:
    scale = {"F32": 1, "F64": 2**32 - 1, "F16": 0}[common]
    keys = np.array([v * scale if scale else v >> 16 for v in values], magnitudes.UNSIGNED[common])
    count = round(share * len(keys))
    blocks = np.array_split(keys, 3)
    cut = find_cut(lambda: blocks, count, common, guess * scale if scale else guess >> 16)
    if not count:
        assert cut == Cut(0, 0)
    else:
        key = int(np.sort(keys)[count - 1])
        assert cut == Cut(key, count - int((keys < key).sum()))


def test_a_guess_that_is_right_needs_one_pass() -> None:
    keys = np.abs(np.random.default_rng(0).normal(size=10000).astype(np.float32)).view(np.uint32)
    passes = []

    def one():
        passes.append(1)
        return [keys]

    cut = find_cut(one, 9000, "F32", int(np.sort(keys)[9010]))
    assert (len(passes), cut.key) == (1, int(np.sort(keys)[8999]))
    assert find_cut(one, 9000, "F32", 3) == cut
    assert len(passes) == 4


def refused(error: type[Exception], match: str, folder: Path, source: Path, target: str, **options) -> None:
    """Refused in these words, and nothing is left behind."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(error, match=match):
        prune_file.prune_file(source, folder / target, **{"amount": 0.5} | options)
    assert sorted(folder.rglob("*")) == before


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(MIXED, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_what_cannot_be_written_is_refused_before_the_work(source: Path, tmp_path: Path, monkeypatch) -> None:
    for amount in (0, 1, -1, 1.5, float("nan")):
        refused(ValidationError, "between 0 and 1", tmp_path, source, "b.safetensors", amount=amount)
    refused(FileExistsError, "is what would be pruned", tmp_path, source, "a.safetensors")
    (tmp_path / "link.safetensors").symlink_to(source)
    refused(FileExistsError, "is what would be pruned", tmp_path, source, "link.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"precious")
    refused(FileExistsError, "exists", tmp_path, source, "b.safetensors")
    refused(ValidationError, "end in .safetensors", tmp_path, source, "b")
    refused(FileNotFoundError, "no", tmp_path, tmp_path / "no.safetensors", "c.safetensors")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 10))
    refused(StorageFull, "10 are free", tmp_path, source, "c.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == b"precious"


def test_a_full_disk_leaves_nothing(source: Path, tmp_path: Path, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(StorageFull, "no room", tmp_path, source, "b.safetensors")
    refused(StorageFull, "no room", tmp_path, save_sharded({"m.safetensors": MIXED}, tmp_path / "in"), "out")


def test_an_interruption_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total - 100:
            raise KeyboardInterrupt

    refused(KeyboardInterrupt, "^$", tmp_path, source, "b.safetensors", progress=stop)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("amount", [0.5, 1e-9])
def test_nan_is_refused_by_name(dtype: torch.dtype, amount: float, tmp_path: Path) -> None:
    broken = weights(40, 40, dtype=dtype)
    broken[39, 39] = -torch.nan
    source = tmp_path / "a.safetensors"
    save_file({"a.weight": weights(4, 4), "b.weight": broken}, source)
    refused(UnsupportedModel, "'b.weight' holds NaN", tmp_path, source, "c.safetensors", amount=amount)
    prune_file.prune_file(source, tmp_path / "c.safetensors", amount=amount, exclude=["b"])


def test_a_model_without_what_was_named_is_refused(source: Path, tmp_path: Path) -> None:
    refused(NothingToPrune, "layers-0-attn", tmp_path, source, "b.safetensors", include=["features.*"])
    save_file({"bias": torch.ones(3)}, tmp_path / "flat.safetensors")
    refused(NothingToPrune, "no tensor has two dimensions", tmp_path, tmp_path / "flat.safetensors", "b.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    refused(NothingToPrune, "no tensor", tmp_path, tmp_path / "empty.safetensors", "b.safetensors")


def test_what_is_no_safetensors_is_refused(source: Path, tmp_path: Path) -> None:
    whole = source.read_bytes()
    torch.save(MIXED, tmp_path / "saved.pt")
    contents = [
        b"",
        b"abc",
        whole[:100],
        whole[:-1],
        whole + b"\0",
        b"\xff" * 100,
        (tmp_path / "saved.pt").read_bytes(),
    ]
    for number, content in enumerate(contents):
        bad = tmp_path / f"bad{number}.safetensors"
        bad.write_bytes(content)
        refused(UnsupportedModel, "no safetensors file, or a damaged one: its", tmp_path, bad, "b.safetensors")
    (tmp_path / "none").mkdir()
    refused(UnsupportedModel, "holds no .safetensors", tmp_path, tmp_path / "none", "b.safetensors")
    refused(ValidationError, "several models", tmp_path, tmp_path, "b.safetensors")


def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path: Path) -> None:
    shards = {f"{name}.safetensors": {f"{name}.weight": weights(3, 3)} for name in "ab"}
    index = save_sharded(shards, tmp_path / "in")
    good = json.loads(index.read_text())["weight_map"]
    refused(ValidationError, "name a directory", tmp_path, index, "b.safetensors")
    for weight_map, says in [
        (good | {"c.weight": "c.safetensors"}, "not beside it: 'c.safetensors'"),
        (good | {"c.weight": "\ud800\x1b"}, r"not beside it: '\\ud800\\x1b'"),
        (good | {"c.weight": "a.safetensors"}, "says that a.safetensors has it"),
        ({"a.weight": "a.safetensors", "b.weight": "a.safetensors"}, "disagree on the tensor 'b.weight'"),
        (good | {"a.weight": "../in/a.safetensors"}, "only name files beside it"),
        (good | {"a.weight": "/etc/passwd"}, "only name files beside it"),
        ([], "no `weight_map`"),
        ({}, "no `weight_map`"),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        refused(UnsupportedModel, says, tmp_path, index, "out")
    for text in ("", "[]", "{}", "nonsense", "[" * 100_000, '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        refused(UnsupportedModel, "no `weight_map`", tmp_path, index, "out")
    # One tensor in two files: which of them is meant?
    save_file({"a.weight": weights(3, 3, seed=9), "b.weight": weights(3, 3)}, tmp_path / "in" / "b.safetensors")
    index.write_text(json.dumps({"weight_map": good}))
    refused(UnsupportedModel, "does not say that b.safetensors has it", tmp_path, index, "out")


def test_a_file_that_shrinks_while_it_is_read_is_refused(source: Path, tmp_path: Path) -> None:
    def cut(done: int, total: int) -> None:
        os.truncate(source, source.stat().st_size // 2)

    refused(ParedError, "became shorter", tmp_path, source, "b.safetensors", progress=cut)
