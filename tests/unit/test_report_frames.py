"""Tables of a report as DataFrames."""

from __future__ import annotations

import sys

import pandas as pd
import pytest

from pared.reports import Report
from tests.unit.test_report_page import STORED, stored


def report(name: str) -> Report:
    return Report.model_validate(stored(name))


@pytest.mark.parametrize("name", STORED)
def test_every_report_has_its_tables(name: str) -> None:
    shown = report(name)
    for table, rows in (("layers", shown.layers), ("history", shown.history), ("search", shown.frontier)):
        assert len(shown.to_pandas(table)) == len(rows)


def test_layers_are_what_one_gets_without_a_word() -> None:
    frame = report("search").to_pandas()
    fc1 = frame.set_index("name").loc["fc1"]
    assert (fc1.shape_before, fc1.shape_after) == ((64, 1024), (63, 1008))
    assert (fc1.weights_before, fc1.weights_after, fc1.removed_units) == (65_536, 63_504, 1)
    assert frame.removed_units.isna().sum() == 2
    assert frame.weights_before.sum() - frame.weights_after.sum() == 2330


def test_columns_have_their_types_with_and_without_rows() -> None:
    for each in (report("distill"), report("distill").model_copy(update={"history": [], "layers": [], "frontier": []})):
        layers, history, search = (each.to_pandas(table) for table in ("layers", "history", "search"))
        assert str(layers.weights_after.dtype) == "Int64"
        assert str(layers.sparsity.dtype) == "float64"
        assert [str(dtype) for dtype in history.dtypes] == ["str", "int64", "float64", "float64", "float64"]
        assert str(search.met.dtype) == "boolean"
        assert str(search.macs.dtype) == "Int64"


def test_points_that_were_not_looked_at_are_missing() -> None:
    frame = report("search").to_pandas("search")
    assert frame.test.notna().sum() == 1
    assert frame.validation.dtype == "float64"
    assert frame[frame.met.fillna(value=False)].amount.min() > 0


def test_a_count_beyond_64_bits_is_told_as_it_is() -> None:
    huge = stored("search")
    huge["layers"][0]["shape_before"] = [2**40, 2**40]
    frame = Report.model_validate(huge).to_pandas()
    assert frame.weights_before[0] == 2**80


def test_another_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no table 'epochs', only: layers, history, search"):
        report("search").to_pandas("epochs")  # type: ignore[arg-type]


def test_without_pandas_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        report("search").to_pandas()


def test_frames_are_pandas_own() -> None:
    assert isinstance(report("search").to_pandas(), pd.DataFrame)
