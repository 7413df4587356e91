"""None"""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pared.errors import DamagedPacked, NewerPacked, NotPacked, PackedTooLarge, UnreadablePacked
from pared.weights.coding import BFLOAT16, DTYPES
from pared.weights.packed import Filled, Packed, Record, read, write
from tests.support.arrays import awkward

ROOT = Path(__file__).parents[3]
ARCHITECTURE = {"layers": [["Linear", {"in_features": 50, "out_features": 40}, "fc"]]}
PROGRAM = [
    Record("archive/data.pkl", b"\x80\x02."),
    Record("archive/data/0", Filled("dense")),
    Record("archive/data/1", Filled("tokens", (1, 0))),
]
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model.packed"
    write_whole(path)
    return path


def write_whole(path: Path) -> None:
    """A file with all that a packed file may hold."""
    write(path, awkward(), architecture=ARCHITECTURE, metadata={"made by": "a test"}, program=PROGRAM)


def header_of(data: bytes) -> dict:
    (length,) = struct.unpack_from("<I", data, 17)
    return json.loads(zlib.decompress(data[21 : 21 + length], -15))


def with_header(data: bytes, header: object) -> bytes:
    """The file with another header and a right checksum: what somebody might make who means harm."""
    (length,) = struct.unpack_from("<I", data, 17)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    head = zlib.compress(text, 9, -15)
    body = data[21 + length :]
    checked = struct.pack("<QI", 21 + len(head) + len(body), len(head)) + head + body
    return struct.pack("<4sBI", b"PARD", 1, zlib.crc32(checked)) + checked


def test_every_array_comes_back_bit_for_bit(whole):
    again = read(whole)
    expected = awkward()
    assert list(again.tensors) == list(expected)
    for name, array in expected.items():
        assert same(again.tensors[name], array), name
    assert (again.architecture, again.metadata, again.program) == (ARCHITECTURE, {"made by": "a test"}, PROGRAM)


def test_every_coding_is_chosen_where_it_is_smallest(whole):
    codings = {name: coding for name, *coding in header_of(whole.read_bytes())["tensors"]}
    assert codings["dense"][2:] == [0, "all"]
    assert codings["by gaps"][2:4] == [0, "gaps"]
    assert codings["by mask"][2:] == [0, "mask"]
    assert codings["codebook by gaps"][2:4] == [4, "gaps"]
    assert codings["codebook of all"][2:] == [4, "all"]
    assert codings["like dense"] == ["dense"]


@FUZZ
@given(
    array=hnp.arrays(
        st.sampled_from([dtype for dtype in DTYPES.values() if dtype != BFLOAT16]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40),
        fill=st.just(0),
    )
)
def test_any_array_comes_back(array, tmp_path):
    write(tmp_path / "a.packed", {"a": array})
    assert same(read(tmp_path / "a.packed").tensors["a"], array)


def test_the_order_of_bytes_in_memory_does_not_matter(tmp_path):
    big = np.arange(5, dtype=">f4")
    write(tmp_path / "a.packed", {"a": big})
    assert same(read(tmp_path / "a.packed").tensors["a"], big.astype("<f4"))


def test_the_same_arrays_give_the_same_bytes(whole, tmp_path):
    write(tmp_path / "b", awkward(), architecture=ARCHITECTURE, metadata={"made by": "a test"}, program=PROGRAM)
    assert (tmp_path / "b").read_bytes() == whole.read_bytes()


def test_equal_arrays_are_stored_once(tmp_path):
    array = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    write(tmp_path / "one", {"a": array})
    write(tmp_path / "two", {"a": array, "b": array.copy()})
    assert (tmp_path / "two").stat().st_size < (tmp_path / "one").stat().st_size + 50


def test_a_type_without_a_name_is_refused(tmp_path):
    with pytest.raises(TypeError, match="complex64"):
        write(tmp_path / "a", {"a": np.ones(2, np.complex64)})


def pruned_lenet5(pruned: int, bits: int) -> dict[str, np.ndarray]:
    """Weights as of LeNet-5 (431,080 of them), pruned so many times, in 2^bits values a tensor, biases too."""
    rng = np.random.default_rng(0)
    shapes = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)}
    share = {"conv1": 0.06, "conv2": 0.42, "fc1": 0.42, "fc2": 0.1}  # as in networks that were pruned globally
    tensors = {}
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        weight = np.zeros(size, np.float32)
        where = rng.choice(size, int(430_500 / pruned * share[name]), replace=False)
        values = rng.normal(size=1 << bits).astype(np.float32)
        weight[where] = values[rng.integers(0, 1 << bits, len(where))]
        tensors[f"{name}.weight"] = weight.reshape(shape)
        tensors[f"{name}.bias"] = values[rng.integers(0, 1 << bits, shape[0])]
    return tensors


@pytest.mark.parametrize(("pruned", "bits", "most"), [(250, 4, 4310), (250, 5, 4310), (500, 4, 2900), (500, 5, 3200)])
def test_lenet5_at_its_pruned_sizes_fits_in_a_four_hundredth(pruned, bits, most, tmp_path):
    layers = [
        ["Conv2d", {"in_channels": 1, "out_channels": 20, "kernel_size": 5}, "conv1"],
        ["MaxPool2d", {"kernel_size": 2}],
        ["Conv2d", {"in_channels": 20, "out_channels": 50, "kernel_size": 5}, "conv2"],
        ["MaxPool2d", {"kernel_size": 2}],
        ["Flatten", {}],
        ["Linear", {"in_features": 800, "out_features": 500}, "fc1"],
        ["ReLU", {}],
        ["Linear", {"in_features": 500, "out_features": 10}, "fc2"],
    ]
    write(tmp_path / "lenet5.packed", pruned_lenet5(pruned, bits), architecture={"layers": layers})
    size = (tmp_path / "lenet5.packed").stat().st_size
    print(pruned, bits, size)
    assert size <= most


def test_files_of_the_first_version_stay_readable():
    again = read(Path(__file__).parent / "files" / "v1.packed")
    assert all(same(again.tensors[name], array) for name, array in awkward().items())
    assert (again.architecture, again.program) == (ARCHITECTURE, PROGRAM)


def test_a_flipped_bit_is_told(whole, tmp_path):
    data = whole.read_bytes()
    rng = np.random.default_rng(0)
    places = [*range(8 * 40), *rng.integers(0, 8 * len(data), 300).tolist()]
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        (tmp_path / "m").write_bytes(changed)
        with pytest.raises(UnreadablePacked, match=r"again|newer|Give"):
            read(tmp_path / "m")


def test_a_file_that_is_cut_off_or_goes_on_is_told(whole, tmp_path):
    data = whole.read_bytes()
    for length in [*range(30), len(data) // 2, len(data) - 1]:
        (tmp_path / "m").write_bytes(data[:length])
        with pytest.raises(DamagedPacked if length >= 4 else NotPacked):
            read(tmp_path / "m")
    (tmp_path / "m").write_bytes(data + b"\0")
    with pytest.raises(DamagedPacked, match="added"):
        read(tmp_path / "m")


def test_a_newer_version_and_another_file_are_told_apart(whole, tmp_path):
    data = whole.read_bytes()
    (tmp_path / "m").write_bytes(data[:4] + b"\2" + data[5:])
    with pytest.raises(NewerPacked, match="Install a newer pared"):
        read(tmp_path / "m")
    (tmp_path / "m").write_bytes(b"PK\3\4" + data)
    with pytest.raises(NotPacked, match=r"model\.packed"):
        read(tmp_path / "m")


def test_what_a_file_claims_is_checked_before_room_is_made(whole, tmp_path):
    data = whole.read_bytes()
    claims = [
        {"tensors": [["a", "float32", [1 << 20, 1 << 20], 0, "gaps", 0, 0]], "streams": {}},
        {"tensors": [["a", "float32", [(1 << 31) + 1], 0, "all"]], "streams": {}},
        {"tensors": [], "streams": {"codes": ["lzma", 0, 1 << 40]}},
        {"tensors": [[str(i), "float64", [1 << 25], 0, "gaps", 0, 0] for i in range(100)], "streams": {}},
    ]
    for claim in claims:
        (tmp_path / "m").write_bytes(with_header(data, claim))
        with pytest.raises(PackedTooLarge, match="max_bytes"):
            read(tmp_path / "m")
    with pytest.raises(PackedTooLarge):
        read(whole, max_bytes=5000)


def test_a_stream_that_unpacks_to_more_than_it_says_is_stopped(tmp_path):
    bomb = zlib.compress(bytes(200 << 20), 9, -15)
    header = {"tensors": [["a", "uint8", [10], 0, "all"]], "streams": {"byte0": ["deflate", len(bomb), 10]}}
    empty = struct.pack("<4sBIQI", b"PARD", 1, 0, 0, 0) + bomb
    (tmp_path / "m").write_bytes(with_header(empty, header))
    with pytest.raises(DamagedPacked, match="another size"):
        read(tmp_path / "m")


@pytest.mark.parametrize(
    "header",
    [
        b"", b"[", b"null", b"[]", b"{}", b"[" * 100_000, b'{"tensors":[],"streams":{},"x":NaN}', b"\xff",
        {"tensors": {}, "streams": {}},
        {"tensors": [[]], "streams": {}},
        {"tensors": [["a", "b"]], "streams": {}},
        {"tensors": [["a", "float32", [2], 0, "all"]], "streams": {}},
        {"tensors": [["a", "float33", [0], 0, "all"]], "streams": {}},
        {"tensors": [["a", "float32", [-1], 0, "all"]], "streams": {}},
        {"tensors": [["a", "float32", [0, 1 << 47, 1 << 47], 0, "all"]], "streams": {}},
        {"tensors": [["a", "float32", [0] * 65, 0, "all"]], "streams": {}},
        {"tensors": [["a", "float32", [True], 0, "all"]], "streams": {}},
        {"tensors": [["a", "float32", [0], 0, "gaps", 1, 0]], "streams": {}},
        {"tensors": [["a", "float32", [5], 0, "gaps", 1, 63]], "streams": {}},
        {"tensors": [["a", "float32", [0], 0, "all"]] * 2, "streams": {}},
        {"tensors": [["a", "float32", [0], 0, "all"], ["a", "a"]], "streams": {}},
        {"tensors": [], "streams": {"codes": ["stored", 5, 5]}},
        {"tensors": [], "streams": {}, "program": [["x", "nowhere"]]},
        {"tensors": [], "streams": {}, "program": [["x"]]},
        {"tensors": [["a", "int8", [0], 0, "all"]], "streams": {}, "program": [["x", "a", [1]]]},
        {"tensors": [], "streams": {}, "metadata": {"a": 1}},
    ],
)  # fmt: skip
def test_a_header_that_makes_no_sense_is_told(header, tmp_path):
    (tmp_path / "m").write_bytes(with_header(bytes(21), header))
    with pytest.raises(DamagedPacked, match="contradicts itself"):
        read(tmp_path / "m")


def _somewhere(draw: st.DrawFn, value: object) -> object:
    """The value with one thing in it replaced."""
    if isinstance(value, (list, dict)) and value and draw(st.integers(0, 5)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        chosen = draw(st.sampled_from(keys))
        copied = dict(value) if isinstance(value, dict) else list(value)
        copied[chosen] = _somewhere(draw, copied[chosen])
        return copied
    odd = st.sampled_from(
        ["", "all", "mask", "gaps", "dense", "lzma", None, [], {}, 1.5, True, -1, 0, 1, 8, 255, 1 << 60]
    )
    return draw(odd | st.integers(0, 70_000))


@FUZZ
@given(data=st.data())
def test_a_changed_header_gives_an_error_or_arrays(data, whole, tmp_path):
    original = whole.read_bytes()
    header = header_of(original)
    for _ in range(data.draw(st.integers(1, 3))):
        header = _somewhere(data.draw, header)
    (tmp_path / "m").write_bytes(with_header(original, header))
    with contextlib.suppress(UnreadablePacked):
        assert isinstance(read(tmp_path / "m", max_bytes=1 << 24), Packed)


@FUZZ
@given(data=st.data())
def test_changed_streams_under_a_right_checksum_give_an_error_or_arrays(data, whole, tmp_path):
    original = whole.read_bytes()
    (length,) = struct.unpack_from("<I", original, 17)
    changed = bytearray(original)
    for place, bits in data.draw(st.lists(st.tuples(st.integers(21 + length, len(changed) - 1), st.integers(1, 255)))):
        changed[place] ^= bits
    (tmp_path / "m").write_bytes(with_header(bytes(changed), header_of(original)))
    with contextlib.suppress(DamagedPacked):
        assert list(read(tmp_path / "m").tensors) == list(awkward())
