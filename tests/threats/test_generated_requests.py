"""Requests generated from the API's description, as two owners: answered as described, with nothing of the other's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection

from pared.state.keys import create_key
from pared.state.tables import WorkerHeartbeat
from tests.integration.service.conftest import Api, serving
from tests.support.campaign import counted
from tests.threats.test_requests import made_by

# Where a request that its schema allows may be refused all the same: a rule between fields, an upload without a byte or
# of more than this server takes, metadata in base64; and what tus answers to another version.
SAYS_NO = {
    "positive_data_acceptance": ["2xx", "304", "401", "403", "404", "405", "409", "413", "422", "429"],
    "negative_data_rejection": [
        "400",
        "401",
        "403",
        "404",
        "405",
        "406",
        "409",
        "412",
        "413",
        "415",
        "422",
        "428",
        "429",
    ],
}
PLACES = ("model_id", "dataset_id", "job_id", "plan_id", "upload_id", "webhook_id", "delivery_id", "name", "digest")
REFUSED_BY_MORE_THAN_THE_SCHEMA = (
    "/v1/models",
    "/v1/datasets",
    "/v1/uploads",
    "/v1/jobs",
    "/v1/jobs:plan",
    "/v1/webhooks",
)


@schemathesis.serializer("application/offset+octet-stream")
def _as_bytes(_context: Any, value: Any) -> dict[str, Any]:
    return {"data": value if isinstance(value, bytes) else str(value).encode()}


@dataclass
class Person:
    """An owner: a key, and what it has."""

    key: str
    things: dict[str, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    """Of all that it ever had."""

    def refill(self, api: Api, content: bytes) -> None:
        """One of each thing again, for requests delete them."""
        self.things = made_by(api, {"x-api-key": self.key}, content)
        self.ids |= {value for name, value in self.things.items() if name.endswith("_id")}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    unlimited = {
        "max_requests_per_s": 0,
        "max_waiting_jobs": 0,
        "max_waiting_plans": 0,
        "max_inspecting_uploads": 0,
        "max_webhooks": 0,
    }
    folder = tmp_path_factory.mktemp("generated")
    with serving(folder, require_keys=True, max_unfinished_uploads=0, **unlimited) as api:
        with api.parts.sessions.begin() as session:  # the service is ready where a worker lives
            session.add(WorkerHeartbeat(name="w", seen_at=4e9, sandbox="standard", device="cpu", devices=["cpu"]))
        yield api


def described(api: Api) -> Any:
    config = {
        "generation": {"with-security-parameters": False, "database": "none"},
        "operations": [
            {"include-path": path, "checks": {name: {"expected-statuses": said} for name, said in SAYS_NO.items()}}
            for path in REFUSED_BY_MORE_THAN_THE_SCHEMA
        ],
    }
    schema = schemathesis.openapi.from_dict(
        api.get("/openapi.json").json(), config=schemathesis.Config.from_dict(config)
    )
    schema.config.update(base_url=str(api.base_url))
    return schema


@counted(1, 50)
def test_generated_requests_are_answered_as_described_and_tell_nothing_of_others(api: Api, count: int) -> None:
    people = [Person(create_key(api.parts.sessions, name)) for name in ("ann", "bob")]
    for number, person in enumerate(people):
        person.refill(api, b"of %d" % number)
    operations = [found.ok() for found in described(api).get_all_operations()]
    assert len(operations) > 35
    tried = 0
    for number, operation in enumerate(operations):
        forms = [(me, whose, mode) for me in (0, 1) for whose in (me, 1 - me, None) for mode in modes_of(operation)]
        if count == 1:  # each operation once, by turns
            forms = [forms[number % len(forms)]]
        for me, whose, mode in forms:
            if count > 1 and operation.method != "get":
                people[me].refill(api, b"of %d" % me)
            in_path = {parameter.name for parameter in operation.path_parameters}
            named = {} if whose is None else {name: people[whose].things[name] for name in in_path if name in PLACES}
            tried += ask(operation, people[me], people[1 - me], named, mode, count)
    print(f"\n{tried} requests to {len(operations)} operations as two owners: as described, and nothing of the other's")


def modes_of(operation: schemathesis.APIOperation) -> list[GenerationMode]:
    """Nothing can be wrong with a request that takes nothing, or whose parts of the path may be any text."""
    takes = [*operation.query, *operation.headers, *operation.body]
    return [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if takes else [GenerationMode.POSITIVE]


def ask(
    operation: schemathesis.APIOperation,
    me: Person,
    other: Person,
    named: dict[str, str],
    mode: GenerationMode,
    count: int,
) -> int:
    """Send so many requests, and hold each answer against the description. Returns how many there were."""
    headers = {"authorization": f"Bearer {me.key}"}
    asked = 0

    def look(case: schemathesis.Case) -> None:
        nonlocal asked
        asked += 1
        if named:
            case.path_parameters = {**(case.path_parameters or {}), **named}
        answer = case.call(headers=headers, timeout=30)
        told = answer.content.decode(errors="replace") + str(dict(answer.headers))
        sent = f"{answer.request.url} {answer.request.body!r} {answer.request.headers}"
        assert [each for each in other.ids if each in told and each not in sent] == [], case.as_curl_command()
        # A path of which a part is set is no longer one that breaks its schema; in a form a number is text, as all is.
        of_a_form = case.media_type == "multipart/form-data"
        excluded = [negative_data_rejection] if (named or of_a_form) and mode is GenerationMode.NEGATIVE else []
        case.validate_response(answer, headers=headers, excluded_checks=excluded)

    strategy = operation.as_strategy(generation_mode=mode)
    given_case = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count == 1,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(given(case=strategy)(look))
    given_case()
    return asked
