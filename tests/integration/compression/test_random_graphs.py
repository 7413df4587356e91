"""Random graphs lose channels without a crash and without a wrong result: what is left answers as it must."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pared.compression.coupling.verify import flat_tensors
from pared.compression.loading import LoadedModel
from pared.compression.pruning.channels import remove_channels
from pared.errors import NothingToPrune
from tests.support.models.random_graphs import Drawn, models
from tests.support.models.reference import zeroed_outputs
from tests.unit.compression.test_coupling import as_file


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for models this small, more only wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [12, pytest.param(500, marks=pytest.mark.campaign)])
def test_random_graphs_lose_channels_and_answer_as_they_must(count: int) -> None:
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(drawn=models(), form=st.sampled_from(["scripted", "traced"]), amount=st.sampled_from([0.3, 0.5, 0.8]))
    def run(drawn: Drawn, form: str, amount: float) -> None:
        outcomes[outcome(drawn, form, amount)] += 1

    run()
    print(f"\n{outcomes.total()} graphs: " + ", ".join(f"{text} {number}" for text, number in outcomes.most_common()))
    assert not outcomes["refused without a reason"]
    assert outcomes["shrank"] >= 0.9 * outcomes.total()


def outcome(drawn: Drawn, form: str, amount: float) -> str:
    """How it went; a wrong answer fails."""
    file = as_file(drawn.module, form, drawn.example)
    loaded = LoadedModel(file, "torchscript", form)  # type: ignore[arg-type]
    try:
        removal = remove_channels(loaded, drawn.example, amount=amount)
    except NothingToPrune as refusal:
        named = re.search(r"torch\.|output|less than one channel", refusal.detail)
        return "refused" if named else "refused without a reason"
    small = removal.loaded.module
    for rows in (1, 2, 5):  # of a batch
        inputs = tuple(tensor[torch.arange(rows) % len(tensor)] for tensor in drawn.example)
        expected = flat_tensors(zeroed_outputs(drawn.module, removal.removed, *inputs))
        with torch.no_grad():
            answers = flat_tensors(small(*inputs))
        for want, got in zip(expected, answers, strict=True):
            assert (want - got).abs().max() <= 1e-5 * max(1.0, float(want.abs().max()))
    caught = [reason for reason in removal.reasons.values() if "differ" in reason or "does not run" in reason]
    return "shrank, some of it left by the check" if caught else "shrank"
