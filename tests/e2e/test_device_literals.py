"""A file that was made on a GPU through the whole service: inspected, pruned, and downloaded for any machine."""

from __future__ import annotations

import torch

from tests.integration.compression.test_device_literals import code_of, loaded, made_on, samples, traced
from tests.support.models import zoo
from tests.support.stack import Stack


def test_a_trace_made_on_cuda_is_inspected_pruned_and_loads_anywhere(embedded: Stack) -> None:
    model = embedded.upload_model(made_on("cuda:0", zoo.saved(traced())), "gru.pt")
    row = embedded.inspected(model)
    assert row["status"] == "ready"
    assert "(cuda:0) now follows where the model runs" in row["inspection"]["warnings"][0]
    data = embedded.upload_dataset(zoo.npz(*samples()), "tokens.npz")
    spec = {"type": "prune", "model": model, "dataset": data, "amount": 0.3, "retrain": {"epochs": 1}}
    job = embedded.submit(spec)
    report = embedded.succeeded(job)
    assert report["after"]["parameters"] < report["before"]["parameters"]
    assert "(cuda:0) now follows" in report["warnings"][0]
    file = embedded.download(job)
    assert "cuda" not in code_of(file)
    x, _ = samples(7)
    assert loaded(file)(torch.from_numpy(x)).shape == (7, 3)
