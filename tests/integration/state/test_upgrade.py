"""The tables may be upgraded while the release before goes on: revisions add, and take nothing that its code uses."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    MetaData,
    Table,
    UniqueConstraint,
    delete,
    func,
    insert,
    select,
    text,
    update,
)

from pared.state import lifecycle
from pared.state import session as state_session
from pared.state.jobs import submit
from pared.state.session import alembic_config, make_engine, migrate
from pared.state.settings import Settings
from pared.state.sweep import Sweep
from pared.state.tables import Job, JobEvent, Model
from pared.state.turns import next_in_turn
from pared.statuses import ENDED
from tests.support.job_specs import MODEL_ID, PRUNE

BEFORE_THE_RULE = "0007"
"""It made owners of keys, which the release before could not have worked with."""
NEXT = '''
"""All that a revision may do to tables that are there."""
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "next", "{head}", None, None


def upgrade():
    op.create_table("more", sa.Column("id", sa.String(30), primary_key=True))
    op.add_column("jobs", sa.Column("note", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("weight", sa.Integer(), server_default="1", nullable=False))
    op.create_index("ix_jobs_weight", "jobs", ["weight"])
    op.execute("update jobs set note = 'from before'")
'''


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of a database without tables."""
    url = "" if request.param == "sqlite" else request.getfixturevalue("servers").new_database()
    return Settings(data_dir=tmp_path, database_url=url)


def revisions() -> list[str]:
    """All, oldest first."""
    found = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    return [revision.revision for revision in reversed([*found])]


def tables(connection: Connection) -> dict[str, Table]:
    """Those of the database, as the code that made them knows them."""
    found = MetaData()
    found.reflect(connection)
    return {table.name: table for table in found.sorted_tables if table.name != "alembic_version"}


def test_each_revision_leaves_the_code_of_the_one_before_all_that_it_uses(empty: Settings) -> None:
    engine = make_engine(empty.effective_database_url)
    with engine.execution_options(pared_writes=True).begin() as connection:
        config = alembic_config(connection)
        command.upgrade(config, BEFORE_THE_RULE)
        for revision in revisions()[revisions().index(BEFORE_THE_RULE) + 1 :]:
            before = tables(connection)
            command.upgrade(config, revision)
            _holds_what_was_there(revision, before, tables(connection))
            _code_from_before_works(connection, before)
    engine.dispose()


def _holds_what_was_there(revision: str, before: dict[str, Table], after: dict[str, Table]) -> None:
    for name, old in before.items():
        new = after.get(name)
        assert new is not None, f"{revision} drops the table {name}: let no release use it first"
        for column in old.columns:
            kept = new.columns.get(column.name)
            where = f"{name}.{column.name}"
            assert kept is not None, f"{revision} drops {where}: let no release use it first"
            assert str(kept.type) == str(column.type), f"{revision} makes {where} another type"
            assert kept.nullable >= column.nullable, f"{revision} wants a value in {where}, which others leave out"
        for column in new.columns:
            if column.name not in old.columns:
                free = column.nullable or column.server_default is not None
                assert free, f"{revision} adds {name}.{column.name}, which others leave out: give it a default"
        assert _unique(new) <= _unique(old), f"{revision} makes something of {name} unique that may be there twice"


def _unique(table: Table) -> set[tuple[str, ...]]:
    constraints = [each for each in table.constraints if isinstance(each, UniqueConstraint)]
    indexes = [each for each in table.indexes if each.unique]
    return {tuple(sorted(column.name for column in each.columns)) for each in (*constraints, *indexes)}


def _code_from_before_works(connection: Connection, before: dict[str, Table]) -> None:
    """It adds a row to each table, finds and changes it, and deletes it again."""
    rows: dict[str, dict[str, Any]] = {}
    for name, table in before.items():
        rows[name] = {column.name: _value(column, rows) for column in table.columns}
        connection.execute(insert(table).values(rows[name]))
    for name, table in reversed(before.items()):
        mine = [column == rows[name][column.name] for column in table.primary_key.columns]
        assert dict(connection.execute(select(table).where(*mine)).one()._mapping) == rows[name]
        assert connection.execute(update(table).where(*mine).values(rows[name])).rowcount == 1
        assert connection.execute(delete(table).where(*mine)).rowcount == 1


def _value(column: Column[Any], rows: dict[str, dict[str, Any]]) -> Any:
    for key in column.foreign_keys:
        return rows[key.column.table.name][key.column.name]
    if isinstance(column.type, JSON):
        return {"a": 1}
    kind = column.type.python_type
    return "queued" if column.name == "status" else kind(7)


@pytest.fixture
def one_more_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next release's, which `migrate` finds beside those that there are."""
    folder = tmp_path / "next"
    folder.mkdir()
    (folder / "next.py").write_text(NEXT.format(head=revisions()[-1]))

    def with_it(connection: Connection | None = None) -> Any:
        config = alembic_config(connection)
        ours = Path(config.get_main_option("script_location") or "") / "versions"
        config.set_main_option("path_separator", "os")
        config.set_main_option("version_locations", f"{ours}:{folder}")
        return config

    monkeypatch.setattr(state_session, "alembic_config", with_it)


def test_jobs_are_submitted_claimed_and_ended_while_the_tables_are_upgraded(
    sessions: Any, settings: Settings, one_more_revision: None
) -> None:
    with sessions.begin() as session:
        session.add(Model(id=MODEL_ID, owner="local", filename="m", sha256="0" * 64, size_bytes=1, status="ready"))
    upgraded, stop = threading.Event(), threading.Event()
    submitted: list[str] = []
    pauses: list[float] = []
    problems: list[BaseException] = []
    after = Counter[str]()

    def act(name: str, turns: Iterator[Any]) -> None:
        try:
            last = time.monotonic()
            for _ in turns:
                pauses.append(time.monotonic() - last)
                last = time.monotonic()
                after[name] += upgraded.is_set()
                if stop.wait(0.002):
                    return
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            problems.append(error)

    def owner() -> Iterator[None]:
        while True:
            submitted.append(submit(sessions, "local", PRUNE, settings=settings)[0].id)
            yield

    def worker() -> Iterator[None]:
        while True:
            with sessions() as session:
                job_id = next_in_turn(session, "jobs", ["cpu"])
            if job_id is not None:
                with sessions.begin() as session:
                    job = lifecycle.claim(session, job_id, "worker", 45.0, ["cpu"])
                if job is not None:
                    with sessions.begin() as session:
                        assert lifecycle.renew(session, job_id, job.fence, 45.0) is False
                    with sessions.begin() as session:
                        assert lifecycle.succeed(session, job_id, job.fence, {"verdict": "fine"})
            yield

    def sweeps() -> Iterator[None]:
        sweep = Sweep(sessions, settings)
        while True:
            assert sweep.expire() == []
            yield

    threads = [threading.Thread(target=act, args=(each.__name__, each())) for each in (owner, worker, worker, sweeps)]
    for thread in threads:
        thread.start()
    _until(lambda: len(submitted) > 10 or problems)
    assert migrate(settings) == "next"
    upgraded.set()
    _until(lambda: min(after[name] for name in ("owner", "worker", "sweeps")) > 5 or problems)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert problems == []
    finish = worker()
    while _open(sessions):
        next(finish)
    with sessions() as session:
        assert sorted(session.scalars(select(Job.id))) == sorted(submitted)
        ends = select(JobEvent.job_id, func.count()).where(JobEvent.kind == "done").group_by(JobEvent.job_id)
        assert dict(session.execute(ends).all()) == dict.fromkeys(submitted, 1)
        notes = dict(session.execute(text("select coalesce(note, ''), count(*) from jobs group by 1")).all())
        assert set(notes) == {"", "from before"}
        assert session.scalar(text("select count(*) from jobs where weight = 1")) == len(submitted)
    assert max(pauses) < 30


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
def test_an_upgrade_that_has_to_wait_for_a_backup_keeps_nobody_waiting(
    sessions: Any, settings: Settings, one_more_revision: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_session, "TABLE_LOCK_S", 0.2)
    done: list[str] = []
    with sessions.in_transaction() as backup:
        backup.execute(select(func.count()).select_from(Job))
        migration = threading.Thread(target=lambda: done.append(migrate(settings)))
        migration.start()
        with sessions.begin() as session:
            jobs = [lifecycle.create(session, "local", PRUNE).id for _ in range(3)]
        for job_id in jobs:
            with sessions.begin() as session:
                assert lifecycle.claim(session, job_id, "worker", 45.0, ["cpu"]) is not None
            time.sleep(0.2)
        assert not done
    migration.join(60)
    assert done == ["next"]


def _open(sessions: Any) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).where(Job.status.not_in(ENDED))) or 0


def _until(condition: Any) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
