"""Owns what pages say of an inspection. It comes from the sandbox, from any release: anything in it may be missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pared.report_page import numbers, texts
from pared.report_page.sections import Bars, Table, Tile

Sort = Literal["order", "name", "parameters", "macs"]
Show = Literal["all", "shrink", "stay"]

ROWS = 100
"""Layers on one page of the table."""
_REASONS, _NAMES, _CLASSES = 8, 3, 100
_CELL = 120
"""Characters of one input of one sample in the preview."""

FORMATS = {
    "torchscript": "TorchScript",
    "state_dict": "state dict",
    "exported_program": "torch.export program",
    "onnx": "ONNX",
    "huggingface": "Hugging Face folder",
    "builtin": "part of pared",
    "image_folder": "folder of images",
    "image_masks": "images and masks",
}
_ORDER = ("all", "train", "val", "test")
_SPLITS = {"given": "as the file has them", "by_seed": "drawn by each job's seed"}


@dataclass(frozen=True)
class Layer:
    """One layer with weights."""

    name: str
    kind: str
    weights: Any
    parameters: float
    macs: float | None
    channels: Any
    shrinks: bool
    reason: str


@dataclass(frozen=True)
class Line:
    """A layer as a row of the table."""

    layer: Layer
    shape: str
    parameters: str
    macs: str
    bars: Bars


@dataclass(frozen=True)
class LayerPage:
    """The rows that were asked for, and where they stand among all."""

    lines: list[Line]
    first: int
    found: int
    of_all: int
    number: int
    pages: int


def layers_of(inspection: Mapping[str, Any] | None) -> list[Layer]:
    """The layers, in the order in which the model runs them."""
    return [_layer(raw) for raw in _list(inspection, "layers") if isinstance(raw, Mapping)]


def _layer(raw: Mapping[str, Any]) -> Layer:
    return Layer(
        name=texts.name(raw.get("name", "?")),
        kind=texts.name(raw.get("kind", "")),
        weights=raw.get("weights"),
        parameters=numbers.finite(raw.get("parameters")) or 0.0,
        macs=numbers.finite(raw.get("macs")),
        channels=raw.get("channels"),
        shrinks=raw.get("prunable_channels") is True,
        reason=texts.sentence(_text(raw.get("reason")), 300),
    )


def layer_page(layers: Sequence[Layer], q: str, sort: Sort, show: Show, number: int) -> LayerPage:
    """The layers that are asked for, a page of them."""
    words = q.casefold().split()
    chosen = [
        layer
        for layer in layers
        if (show == "all" or layer.shrinks == (show == "shrink"))
        and all(word in f"{layer.name} {layer.kind} {layer.reason}".casefold() for word in words)
    ]
    if sort == "name":
        chosen.sort(key=lambda layer: layer.name)
    elif sort != "order":
        chosen.sort(key=lambda layer: -(getattr(layer, sort) or 0.0))
    pages = max(1, -(-len(chosen) // ROWS))
    number = min(number, pages)
    first = (number - 1) * ROWS
    total = sum(layer.parameters for layer in layers)
    of_macs = sum(layer.macs or 0.0 for layer in layers)
    largest = (
        _share(max((layer.parameters for layer in layers), default=0.0), total),
        _share(max((layer.macs or 0.0 for layer in layers), default=0.0), of_macs),
    )
    widest = max(largest) or 1.0
    lines = [_line(layer, total, of_macs, widest) for layer in chosen[first : first + ROWS]]
    return LayerPage(lines, first + 1 if lines else 0, len(chosen), len(layers), number, pages)


def _line(layer: Layer, total: float, of_macs: float, widest: float) -> Line:
    parameters, macs = _share(layer.parameters, total), _share(layer.macs, of_macs)
    said = f"{numbers.percent(parameters)} of the parameters"
    if layer.macs is not None:
        said += f", {numbers.percent(macs)} of the multiply-adds"
    bars = Bars(round(100 * parameters / widest, 1), round(100 * macs / widest, 1), said)
    shown = "" if layer.macs is None else numbers.short(layer.macs)
    return Line(layer, _shape(layer.weights), numbers.short(layer.parameters), shown, bars)


def _shape(weights: Any) -> str:
    """That of the tensor with most dimensions."""
    shapes = [shape for shape in weights.values() if isinstance(shape, list)] if isinstance(weights, Mapping) else []
    lengths = [length for length in max(shapes, key=len, default=[]) if isinstance(length, int)]
    return texts.shape(lengths) if lengths else ""


def model_tiles(size_bytes: int, inspection: Mapping[str, Any], layers: Sequence[Layer]) -> Iterator[Tile]:
    """The figures that the card begins with."""
    flavour = texts.name(inspection.get("flavour") or "")
    yield Tile("File", numbers.size(size_bytes), format_name(inspection.get("format"), flavour))
    trainable = f"{numbers.count(inspection.get('trainable_parameters'))} trainable"
    if any(layer.kind == "weights" for layer in layers):  # of a file without an architecture
        trainable = "all numbers of the file, also those that are not trained"
    yield Tile("Parameters", numbers.short(numbers.finite(inspection.get("parameters"))), trainable)
    if (macs := numbers.finite(inspection.get("macs"))) is not None:
        of_what = "; ".join(inputs_of(inspection))
        yield Tile(
            "Multiply-adds",
            numbers.short(macs),
            f"for one sample; tried with {of_what}" if of_what else "for one sample",
        )
    shrinking = [layer for layer in layers if layer.shrinks]
    if shrinking:
        total = sum(layer.parameters for layer in layers)
        part = numbers.percent(_share(sum(layer.parameters for layer in shrinking), total))
        small = f"of {len(layers):,} with weights; they hold {part} of the parameters"
        yield Tile("Layers that can lose channels", f"{len(shrinking):,}", small)
    elif layers:
        yield Tile("Layers that can lose channels", "0", f"of {len(layers):,} with weights")


def format_name(name: Any, flavour: str = "") -> str:
    """A format and its flavour, in words."""
    known = FORMATS.get(str(name), texts.name(name or ""))
    redundant = flavour in {"", "state_dict", "onnx", "exported"}
    return known if redundant else f"{known}, {flavour}"


def what_stays(layers: Sequence[Layer]) -> tuple[list[tuple[str, str]], str]:
    """Each reason why layers keep their channels, with the layers; the one that holds most parameters first."""
    by_reason: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.reason and not layer.shrinks:
            by_reason.setdefault(layer.reason, []).append(layer)
    ordered = sorted(by_reason.items(), key=lambda entry: -sum(layer.parameters for layer in entry[1]))
    found = []
    for reason, of_it in ordered[:_REASONS]:
        largest = sorted(of_it, key=lambda layer: -layer.parameters)
        names = ", ".join(layer.name for layer in largest[:_NAMES])
        more = f" and {len(largest) - _NAMES:,} more" if len(largest) > _NAMES else ""
        held = numbers.short(sum(layer.parameters for layer in of_it))
        found.append((reason, f"{names}{more} ({held} parameters)"))
    left = len(ordered) - len(found)
    return found, f"And {left:,} more reasons: the table below has them all." if left > 0 else ""


def between_layers(inspection: Mapping[str, Any], layers: Sequence[Layer]) -> str:
    """A sentence on multiply-adds that belong to no layer, where they are more than a hundredth; else empty."""
    total = numbers.finite(inspection.get("macs")) or 0.0
    other = total - sum(layer.macs or 0.0 for layer in layers)
    if not layers or other <= total / 100:
        return ""
    part = numbers.percent(_share(other, total))
    return f"{numbers.short(other)} multiply-adds ({part}) are with no layer's own weights, such as those of attention."


def inputs_of(inspection: Mapping[str, Any] | None) -> list[str]:
    """Each input: its name, shape and type."""
    found = []
    for raw in _list(inspection, "inputs")[:20]:
        if isinstance(raw, Mapping):
            shape = [length for length in raw.get("shape") or [] if isinstance(length, int)]
            parts = (texts.name(raw["name"]) if "name" in raw else "", texts.shape(shape), _text(raw.get("dtype")))
            found.append(texts.name(" ".join(filter(None, parts))))
    return found


def warnings_of(inspection: Mapping[str, Any] | None) -> list[str]:
    """What the inspection warns of."""
    return [texts.sentence(_text(each), texts.PARAGRAPH) for each in _list(inspection, "warnings")[:20]]


# -- data sets ----------------------------------------------------------------------------------


def dataset_facts(size_bytes: int | None, inspection: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is in a data set, name by name."""
    yield "Kind", format_name(inspection.get("format"))
    if size_bytes is not None:
        yield "File", numbers.size(size_bytes)
    if inspection.get("task"):
        yield "Task", texts.name(inspection["task"])
    yield "One sample", "; ".join(inputs_of(inspection)) or numbers.NOTHING
    yield "Splits", _SPLITS.get(str(inspection.get("splits")), numbers.NOTHING)
    target = inspection.get("target")
    if inspection.get("labelled") is False:
        yield "Labels", "none: jobs compare with the answers of the uploaded model"
    elif isinstance(target, Mapping):
        shape = [length for length in target.get("shape") or [] if isinstance(length, int)]
        each = texts.shape(shape) if shape else "one"
        yield "Labels", f"{each} {texts.name(target.get('dtype', ''))} a sample"
        if target.get("classes") is not None:
            yield "Classes", numbers.count(target["classes"])


def class_names(inspection: Mapping[str, Any]) -> tuple[list[str], str]:
    """The names of the classes, and a sentence on those that are left out."""
    target = inspection.get("target")
    names = _list(target if isinstance(target, Mapping) else None, "class_names")
    more = f"And {len(names) - _CLASSES:,} more." if len(names) > _CLASSES else ""
    return [texts.name(each) for each in names[:_CLASSES]], more


def split_rows(inspection: Mapping[str, Any]) -> list[tuple[str, str, Bars]]:
    """The splits, with how many samples are in each."""
    samples = inspection.get("samples")
    counted = samples if isinstance(samples, Mapping) else {}
    # PostgreSQL keeps no order of names.
    names = sorted(counted, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))[:10]
    total = sum(numbers.finite(count) or 0.0 for count in counted.values())
    rows = []
    for name in names:
        share = _share(counted[name], total)
        shown = "validation" if name == "val" else texts.name(name)
        rows.append((shown, numbers.count(counted[name]), Bars(0.0, round(100 * share, 1), numbers.percent(share))))
    return rows


def preview_table(content: bytes) -> Table | None:
    """The samples of a preview in JSON as a table; None where they cannot be read."""
    try:
        preview = json.loads(content)
    except (ValueError, RecursionError):
        return None
    samples = _list(preview if isinstance(preview, Mapping) else None, "samples")
    rows = [each for each in samples if isinstance(each, Mapping) and isinstance(each.get("inputs"), Mapping)]
    names = list(rows[0]["inputs"])[:10] if rows else []
    labelled = any("target" in row for row in rows)
    table = Table(["Sample", *(["Label"] if labelled else []), *map(texts.name, names)])
    for row in rows[:48]:
        label = [_cell(row.get("class", row.get("target")))] if labelled else []
        table.rows.append([_cell(row.get("index")), *label, *(_cell(row["inputs"].get(name)) for name in names)])
    return table


def _cell(value: Any) -> str:
    return texts.sentence(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), _CELL)


def _share(part: Any, whole: float) -> float:
    return min(1.0, max(0.0, numbers.share(part, whole) or 0.0))


def _list(parent: Mapping[str, Any] | None, name: str) -> list[Any]:
    found = (parent or {}).get(name)
    return found if isinstance(found, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
