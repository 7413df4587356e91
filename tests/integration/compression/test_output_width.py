"""`output_width: project`: the width that a model of embeddings answers with shrinks, and its output's does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pared.compression import prune
from pared.compression.architectures import build
from pared.compression.loading import LoadedModel
from pared.compression.pruning.channels import remove_channels
from pared.compression.pruning.output_projection import with_output_projections
from pared.errors import ValidationError
from tests.support.models.gallery import GALLERY, settled
from tests.support.models.gallery.structures import SentenceEncoder
from tests.support.models.reference import zeroed_outputs
from tests.unit.compression.test_coupling import as_file

IDS = (torch.randint(0, 30, (3, 6)),)
SHAPES = {"example_inputs": [{"shape": [3, 6], "dtype": "int64"}]}


class AllTokens(SentenceEncoder):
    """Answers with a dict, or a tuple: of each token, and of the first, through a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Linear(16, 16)

    def tokens(self, ids: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        return self.last(x + self.down(torch.relu(self.up(x))))

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.tokens(ids)
        return {"tokens": x, "first": torch.tanh(self.pool(x[:, 0]))}


class TwoOutputs(AllTokens):
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tokens(ids)
        return x, torch.tanh(self.pool(x[:, 0]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_a_narrowed_width_is_projected_to_what_the_output_had(form: str) -> None:
    module = settled(SentenceEncoder, IDS)
    loaded = LoadedModel(as_file(module, form, IDS), "torchscript", form)  # type: ignore[arg-type]
    projected = with_output_projections(loaded, IDS)
    assert projected is not None
    with torch.no_grad():
        torch.testing.assert_close(projected.module(*IDS), module(*IDS))
    removal = remove_channels(projected, IDS, amount=0.5)
    state = removal.loaded.module.state_dict()
    assert state["words.weight"].shape == (30, 8)
    assert state["output_projection"].shape == (16, 8)
    # Of the projection, which the original has not, columns go alone.
    removed = {name: dims for name, dims in removal.removed.items() if name != "output_projection"}
    with torch.no_grad():
        torch.testing.assert_close(removal.loaded.module(*IDS), zeroed_outputs(module, removed, *IDS))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [AllTokens, TwoOutputs])
def test_an_output_that_one_layer_makes_alone_gets_no_projection(kind: type[nn.Module]) -> None:
    script = torch.jit.trace(settled(kind, IDS), IDS, strict=False)
    result = prune(script, None, amount=0.5, output_width="project", outputs=["torchscript"], **SHAPES)  # type: ignore[arg-type]
    names = [name for name, _ in result.model.named_parameters() if name.startswith("output_projection")]
    assert names == ["output_projection_0"]
    outputs = result.model(*IDS)
    shapes = [tuple(each.shape) for each in (outputs.values() if isinstance(outputs, dict) else outputs)]
    assert shapes == [(3, 6, 16), (3, 16)]


@pytest.mark.filterwarnings("ignore")
def test_a_job_says_what_it_put_behind_the_output_and_trains_it() -> None:
    module = settled(SentenceEncoder, IDS)
    ids = torch.randint(0, 30, (200, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = module(ids)
    fields = {"task": "regression", "retrain": {"epochs": 8, "lr": 0.01, "optimizer": "adam"}}
    result = prune(torch.jit.script(module), (ids, answers), amount=0.25, output_width="project", **fields)  # type: ignore[arg-type]
    assert any("output_projection (12 to 16)" in warning for warning in result.report.warnings)
    assert result.report.after.parameters < result.report.before.parameters
    projection = dict(result.model.named_parameters())["output_projection"].detach()
    assert not bool(((projection == 0) | (projection == 1)).all())
    losses = [record.train_loss for record in result.report.history]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("module", "example", "words"),
    [
        (GALLERY["Perceptron"].make(), [{"shape": [3, 16]}], "no output whose width several of its layers share"),
        (
            build({"name": "mlp", "kwargs": {"in_features": 16, "classes": 3}}),
            [{"shape": [3, 16]}],
            "a state dict has none",
        ),
    ],
)
def test_models_without_a_width_to_project_are_refused(module: nn.Module, example: list[object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        prune(module, None, amount=0.5, output_width="project", example_inputs=example)  # type: ignore[arg-type]
