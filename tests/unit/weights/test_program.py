from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pared.weights.packed import read, write
from pared.weights.program import join, split
from pared.weights.unpack import unpack, write_safetensors
from tests.support.arrays import awkward


class Odd(nn.Module):
    """Tied weights, a buffer that is a view, lists of tensors, whole numbers, channels-last and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(3)
        self.list = [torch.ones(2), torch.arange(3)]
        self.register_buffer("view", self.a.bias.detach()[1:3])
        self.register_buffer("part", torch.arange(12.0)[2:6])
        self.register_buffer("turned", torch.arange(6).reshape(2, 3).t())
        self.register_buffer("brief", torch.ones(3, dtype=torch.bfloat16))

    def forward(self, x):
        y = self.b(self.a(x)) + torch.tensor([1.0, 2.0, 3.0, 4.0]) + self.part + self.view.sum()
        return y + self.list[0].sum() + self.turned.sum() + self.norm(self.conv(x.reshape(1, 2, -1, 4))).sum()


def saved(module: torch.jit.ScriptModule) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer


@pytest.mark.parametrize("frozen", [False, True])
def test_a_program_comes_back_with_its_ties_and_strides_and_answers_bit_for_bit(frozen, tmp_path):
    torch.manual_seed(0)
    module = torch.jit.script(Odd().eval())
    module = torch.jit.freeze(module) if frozen else module
    program, tensors = split(saved(module))
    assert not [record.name for record in program if isinstance(record.content, bytes) and "/data/" in record.name]
    write(tmp_path / "m.packed", tensors, program=program)
    (path,) = unpack(read(tmp_path / "m.packed"), tmp_path / "m.pt")
    again = torch.jit.load(path)
    x = torch.randn(6, 4)
    assert torch.equal(again(x), module(x))
    for (name, tensor), (same_name, other) in zip(module.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == same_name
        assert torch.equal(tensor, other)
        assert tensor.stride() == other.stride()
    if not frozen:
        assert again.a.weight.data_ptr() == again.b.weight.data_ptr()
        assert tensors["conv.weight"].shape == (3, 2, 3, 3)
        assert tensors["list.1"].tolist() == [0, 1, 2]


def test_the_pieces_carry_the_names_of_the_module(tmp_path):
    module = torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval())
    _, tensors = split(saved(module))
    assert {name: array.shape for name, array in tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in module.state_dict().items()
    }


def test_what_cannot_be_an_array_stays_in_the_program():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("w", torch.ones(3, dtype=torch.complex64))

        def forward(self, x):
            return x * self.w

    module = torch.jit.script(Complex())
    program, tensors = split(saved(module))
    assert tensors == {}
    restored = io.BytesIO()
    join(program, tensors, restored)
    restored.seek(0)
    assert torch.equal(torch.jit.load(restored)(torch.ones(3)), torch.ones(3, dtype=torch.complex64))


def test_tensors_in_the_archive_begin_where_they_can_be_mapped(tmp_path):
    program, tensors = split(saved(torch.jit.script(nn.Linear(5, 7))))
    join(program, tensors, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as archive, (tmp_path / "m.pt").open("rb") as file:
        for entry in archive.infolist():
            file.seek(entry.header_offset + 26)
            name_length, extra_length = np.frombuffer(file.read(4), "<u2").tolist()
            assert (entry.header_offset + 30 + name_length + extra_length) % 64 == 0


def test_weights_become_a_file_that_safetensors_loads(tmp_path):
    arrays = {name: array for name, array in awkward().items() if name != "strange numbers"}
    write_safetensors(arrays, tmp_path / "m.safetensors")
    loaded = load_file(tmp_path / "m.safetensors")
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        tensor = loaded[name]
        found = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        assert found.numpy().tobytes() == array.tobytes(), name
        assert tuple(tensor.shape) == array.shape


def test_a_program_that_cannot_be_written_leaves_what_was_there(tmp_path):
    (tmp_path / "m.pt").write_text("mine")
    program, _ = split(saved(torch.jit.script(nn.Linear(2, 2))))
    write(tmp_path / "m.packed", {"weight": np.ones(1), "bias": np.ones(1)}, program=program)
    packed = read(tmp_path / "m.packed")
    packed.tensors.clear()
    with pytest.raises(KeyError):
        unpack(packed, tmp_path / "m.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.packed", "m.pt"]
    assert (tmp_path / "m.pt").read_text() == "mine"
