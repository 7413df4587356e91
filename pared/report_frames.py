"""Owns the tables of a report as pandas DataFrames. Only who asks for one needs pandas."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

    from pared.reports import Report

Frame = Literal["layers", "history", "search"]
"""What a report has tables of."""

_COLUMNS: dict[Frame, dict[str, str]] = {
    "layers": {
        "name": "str",
        "shape_before": "object",
        "shape_after": "object",
        "weights_before": "Int64",
        "weights_after": "Int64",
        "removed_units": "Int64",
        "sparsity": "float64",
        "precision": "str",
        "sensitivity": "float64",
        "reason": "str",
    },
    "history": {
        "phase": "str",
        "epoch": "int64",
        "train_loss": "float64",
        "validation": "float64",
        "seconds": "float64",
    },
    "search": {
        "amount": "float64",
        "round_to": "Int64",
        "parameters": "Int64",
        "nonzero_parameters": "Int64",
        "macs": "Int64",
        "file_bytes": "Int64",
        "latency": "float64",
        "validation": "float64",
        "test": "float64",
        "met": "boolean",
    },
}
"""The columns of each table with their types: nullable ones where a value may be missing."""


def frame_of(report: Report, table: Frame) -> pd.DataFrame:
    """One table of a report.

    Raises:
        ImportError: pandas is not installed.
        ValueError: there is no such table.
    """
    if table not in _COLUMNS:
        raise ValueError(f"a report has no table {table!r}, only: {', '.join(_COLUMNS)}")
    pandas = _pandas()
    columns = _COLUMNS[table]
    rows = _rows(report, table)
    made = {name: _column(pandas, [row[name] for row in rows], dtype) for name, dtype in columns.items()}
    return pandas.DataFrame(made, columns=list(columns))


def _column(pandas: ModuleType, values: list[Any], dtype: str) -> pd.Series[Any]:
    column = pandas.Series(values, dtype="object")
    if dtype.lower() == "int64" and any(value is not None and abs(value) >= 1 << 63 for value in values):
        return column  # a count of what a model's side said, which no int64 holds
    return column.astype(dtype)


def _rows(report: Report, table: Frame) -> Sequence[dict[str, Any]]:
    if table == "history":
        return [record.model_dump() for record in report.history]
    if table == "search":
        return [point.model_dump() for point in report.frontier]
    return [
        layer.model_dump()
        | {
            "shape_before": tuple(layer.shape_before),
            "shape_after": tuple(layer.shape_after),
            "weights_before": prod(layer.shape_before),
            "weights_after": prod(layer.shape_after),
            "removed_units": None if layer.removed_units is None else len(layer.removed_units),
        }
        for layer in report.layers
    ]


def _pandas() -> ModuleType:
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "to_pandas needs pandas, which is not installed here: pip install pandas. "
            "Without it, report.model_dump() gives the same as plain Python data."
        ) from error
    module: ModuleType = pd
    return module
