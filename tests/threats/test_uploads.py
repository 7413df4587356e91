"""Damaged uploads sent to the whole service: each is inspected or rejected with a reason, and all are served after."""

from __future__ import annotations

import io
import random
from collections import Counter

import torch
from safetensors.torch import save as safetensors_bytes

from tests.support.campaign import counted
from tests.support.models import zoo
from tests.support.mutants import mutant
from tests.support.processes import wait_for
from tests.support.stack import Stack

AT_ONCE = 50


def originals() -> list[bytes]:
    """A file of each form that holds what can be damaged."""
    state = {"fc.weight": torch.randn(8, 8), "fc.bias": torch.randn(8)}
    old, new = io.BytesIO(), io.BytesIO()
    torch.save(state, old, _use_new_zipfile_serialization=False)
    torch.save(state, new)
    forms = [zoo.upload("mlp", "scripted"), zoo.upload("mlp", "traced"), zoo.upload("mlp", "program")]
    return [*forms, old.getvalue(), new.getvalue(), safetensors_bytes(state)]


@counted(8, 4000)
def test_no_damaged_upload_ends_a_worker_or_is_forgotten(embedded: Stack, count: int) -> None:
    rng, files = random.Random(5), originals()
    processes = {worker.psutil.pid for worker in embedded.workers}
    ended: Counter[str] = Counter()
    for first in range(0, count, AT_ONCE):
        sent = [mutant(files[turn % len(files)], rng) for turn in range(first, min(count, first + AT_ONCE))]
        ids = [embedded.upload_model(content or b"-", f"{number}.pt") for number, content in enumerate(sent)]
        for upload in ids:
            row = embedded.inspected(upload)
            reason = (row.get("reason") or {}).get("code", "") if row["status"] != "ready" else ""
            assert reason != "internal", row
            ended[f"{row['status']} {reason}".strip()] += 1
    assert sum(ended.values()) == count
    assert all(worker.alive for worker in embedded.workers)
    assert {worker.psutil.pid for worker in embedded.workers} == processes
    wait_for(lambda: embedded.http.get("/readyz").status_code == 200, "the service is ready")
    assert embedded.inspected(embedded.upload_model(files[0], "good.pt"))["status"] == "ready"
    print(f"\n{count} damaged uploads: {dict(ended)}; the same workers serve")
