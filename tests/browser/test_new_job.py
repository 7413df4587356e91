"""The form of a new job: what is shown is what is sent, with a keyboard, without JavaScript, and whatever is typed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.service.conftest import Api, serving
from tests.support.browsing import Visit


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("api")) as api:
        yield api


@pytest.fixture
def model(api: Api) -> str:
    made = api.upload(b"a model", "digits_cnn.pt")
    api.inspected(made["id"])
    return str(made["id"])


def test_the_form_of_each_type_is_for_everybody(api: Api, visiting: Callable[..., Visit], model: str, tmp_path: Path):
    visit = visiting(str(api.base_url))
    for name in ("compress", "prune", "distill", "quantize", "pipeline"):
        visit.page.goto(f"/jobs/new?type={name}&model={model}&dataset=builtin:digits")
        visit.page.get_by_text("curl", exact=True).wait_for()
        visit.check(Path("/tmp/w/shots-newjob"), name)
