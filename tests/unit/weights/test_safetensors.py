"""Headers are read as the safetensors library reads them, or refused in a sentence."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pared.weights.safetensors import BITS, BadSafetensors, read_header

SHORT = settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
# Mostly what headers are made of, put together wrongly.
NUMBERS = st.sampled_from([0, 1, 2, 4, 8, 16, -1, 2**31, 2**63, 2**200, 1.5, True, None, "4"])
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*BITS, "X9", "", 4, None]),
        "shape": st.lists(NUMBERS, max_size=3) | NUMBERS,
        "data_offsets": st.lists(NUMBERS, max_size=3) | NUMBERS,
        "more": NUMBERS,
    },
)
JSON = st.recursive(NUMBERS, lambda some: st.lists(some) | st.dictionaries(st.sampled_from("ab"), some), max_leaves=4)
HEADERS = st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "\ud800", "é"]), ENTRIES | JSON)


def content(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def opens(path: Path) -> bool:
    """Whether the header is read; anything but a sentence is a failure, and so is what the library would refuse."""
    try:
        header = read_header(path)
    except BadSafetensors as error:
        said = str(error)
    else:
        said = ""
    assert said.isprintable()
    if said:
        return False
    with safetensors.safe_open(path, "numpy") as library:
        assert set(library.keys()) == {entry.name for entry in header.tensors}
        for entry in header.tensors:
            assert library.get_slice(entry.name).get_dtype() == entry.dtype
            assert tuple(library.get_slice(entry.name).get_shape()) == entry.shape
    return True


@given(header=HEADERS, size=st.integers(0, 40))
@SHORT
def test_any_header_is_read_or_refused(header, size: int, tmp_path: Path) -> None:
    (tmp_path / "any").write_bytes(content(header, bytes(size)))
    opens(tmp_path / "any")


@given(raw=st.binary(max_size=60), length=st.integers(0, 60) | st.integers(0, 2**64 - 1))
@SHORT
def test_any_bytes_are_read_or_refused(raw: bytes, length: int, tmp_path: Path) -> None:
    (tmp_path / "any").write_bytes(length.to_bytes(8, "little") + raw)
    opens(tmp_path / "any")
    (tmp_path / "any").write_bytes(raw)
    opens(tmp_path / "any")


def test_what_the_library_writes_is_read_and_its_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.int64, torch.bool]
    state = {f"w{number}.é": torch.zeros(3, number, dtype=kind) for number, kind in enumerate(kinds)}
    save_file(state, path, metadata={"a": "b"})
    assert opens(path)
    header = read_header(path)
    assert {entry.name: entry.shape for entry in header.tensors} == {n: tuple(t.shape) for n, t in state.items()}
    assert [entry.start for entry in header.tensors] == sorted(entry.start for entry in header.tensors)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(header.head))] = rng.choice(b'"{}[],:0123456789 x\x00\xff')
        path.write_bytes(damaged)
        refused += not opens(path)
    assert refused > 200


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": 3}', b"1", "twice"),
        (b"[" * 100_000, b"", "not JSON"),
        (b"[]", b"", "not a JSON object"),
        ('{"a": 1}'.encode("utf-16"), b"", "not JSON"),
        ({"__metadata__": {"a": 1}}, b"", "metadata"),
        ({"a\x1b[2J": 1}, b"", r"'a\\x1b\[2J' is malformed"),
        ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]}}, bytes(8), "another size"),
        ({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, bytes(2), "another size"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, bytes(5), "cut off"),
        ({}, b"1", "cut off"),
    ],
)
def test_a_header_that_lies_is_refused(header, data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(content(header, data))
    with pytest.raises(BadSafetensors, match=says):
        read_header(path)


def test_a_header_that_claims_more_than_there_is_is_not_read(tmp_path: Path) -> None:
    for length in (1, 2**63, 2**64 - 1):
        (tmp_path / "a").write_bytes(length.to_bytes(8, "little"))
        with pytest.raises(BadSafetensors, match="claims"):
            read_header(tmp_path / "a")
    with (tmp_path / "sparse").open("wb") as file:
        file.write((1 << 30).to_bytes(8, "little"))
        file.truncate(2 << 30)
    with pytest.raises(BadSafetensors, match="16 MiB"):
        read_header(tmp_path / "sparse")
