"""Tables come from migrations alone, writers take turns, and readers never wait for them."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import bindparam, delete, func, literal, literal_column, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from pared.errors import Unavailable
from pared.state.data_version import DataVersion
from pared.state.objects import open_store
from pared.state.owners import create_owner
from pared.state.plain_rows import PlainQuery, PlainQueryByKeys, read_each
from pared.state.queue import enqueue, make_app, messages_waiting
from pared.state.session import alembic_config, database_problem, make_engine, make_sessions, migrate, to_json
from pared.state.settings import Settings
from pared.state.tables import Base, Job, Outbox, Owner, db_now, new_id
from tests.support.forks import fork
from tests.support.processes import environment


def test_migrations_make_exactly_the_tables_of_the_code(sessions):
    with sessions.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_job_from_before_request_ids_is_kept_by_the_upgrade(sessions):
    with sessions.begin() as session:
        command.downgrade(alembic_config(session.connection()), "0003")
        session.execute(
            text(
                "insert into jobs (id, owner, type, status, spec, created_at, updated_at, attempt, crash_count, fence, "
                "held_s, run_after) values ('job_1', 'local', 'prune', 'queued', '{}', 1, 1, 0, 0, 0, 0, 0)"
            )
        )
    with sessions.begin() as session:
        command.upgrade(alembic_config(session.connection()), "head")
    with sessions() as session:
        assert session.get(Job, "job_1").request_id is None


def test_six_processes_may_migrate_at_once(tmp_path: Path):
    how = {"cwd": tmp_path, "env": environment(PARED_DATA_DIR=str(tmp_path)), "files": (os.devnull,) * 3}
    started = [fork("pared.cli", ["migrate"], **how) for _ in range(6)]
    assert [process.wait(120) for process in started] == [0] * 6
    migrate(Settings(data_dir=tmp_path))  # and again changes nothing


def test_a_path_with_odd_characters_works(tmp_path: Path):
    settings = Settings(data_dir=tmp_path / "a#b ?mode=ro 50% of %25 ünits")
    migrate(settings)
    with make_sessions(make_engine(settings.effective_database_url))() as session:
        assert session.scalars(select(Job)).all() == []
    store, queue = open_store(settings), make_app(settings)
    assert store.exists(store.put([b"abc"]).key)
    enqueue("job_1", queue=queue)
    assert messages_waiting(queue=queue) == 1
    assert {path.name for path in settings.data_dir.iterdir()} >= {"pared.db", "objects", "broker"}
    assert [path.name for path in tmp_path.iterdir()] == [settings.data_dir.name]


def test_writers_take_turns_and_lose_no_update(sessions):
    job_id = new_id("job")
    with sessions.begin() as session:
        session.add(Job(id=job_id, owner="local", type="prune", spec={}))

    def add_one(_):
        with sessions.begin() as session:
            # Read, then write: the pattern that loses updates where writers don't take turns.
            job = session.scalar(select(Job).where(Job.id == job_id).with_for_update())
            job.attempt += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add_one, range(80)))
    with sessions() as session:
        assert session.get(Job, job_id).attempt == 80


def test_a_reader_does_not_wait_for_a_writer(sessions):
    with sessions.begin() as writer:
        writer.add(Job(id=new_id("job"), owner="local", type="prune", spec={}))
        writer.flush()
        seen = []
        reader = threading.Thread(target=lambda: seen.append(_count_jobs(sessions)))
        reader.start()
        reader.join(120)
        assert seen == [0]  # it answered, and saw nothing of what is not committed


def _count_jobs(sessions) -> int:
    with sessions() as session:
        return len(session.scalars(select(Job)).all())


def test_a_failed_block_leaves_nothing(sessions):
    with pytest.raises(IntegrityError), sessions.begin() as session:
        session.add_all([Job(id=new_id("job"), owner="local", type="prune", spec={}), Outbox(job_id="job_of_nobody")])
    assert _count_jobs(sessions) == 0


def test_an_absent_json_value_is_null_to_sql(sessions):
    with sessions.begin() as session:
        session.add(Job(id=new_id("job"), owner="local", type="prune", spec={"a": None}, error=None))
    with sessions() as session:
        assert session.scalars(select(Job.spec).where(Job.error.is_(None))).all() == [{"a": None}]


def test_what_no_json_holds_is_stored_as_the_nearest_that_it_does(sessions):
    job_id = new_id("job")
    odd = {"loss": float("nan"), "line": "a\0b", "path": "c:\\u0000", "half": "\ud800"}
    with sessions.begin() as session:
        session.add(Job(id=job_id, owner="local", type="prune", spec=odd))
    with sessions() as session:
        spec = session.get(Job, job_id).spec
    assert spec == {"loss": None, "line": "a\ufffdb", "path": "c:\\u0000", "half": "?"}
    assert to_json({"inf": float("inf")}) == '{"inf":null}'


def test_the_clock_is_the_databases_and_moves_within_a_transaction(sessions):
    with sessions.begin() as session:
        first = session.scalar(select(db_now()))
        later = first
        while later == first:
            later = session.scalar(select(db_now()))
    assert 0 < later - first < 5


def test_an_absent_server_is_unavailable_and_a_wrong_statement_is_not(sessions):
    with pytest.raises(Unavailable):
        migrate(Settings(database_url="postgresql://nobody@127.0.0.1:1/none"))
    with pytest.raises(DBAPIError) as wrong, sessions() as session:
        session.execute(text("select * from no_such_table"))
    with pytest.raises(DBAPIError):
        database_problem(wrong.value)


def test_sqlite_keeps_every_commit(tmp_path: Path):
    engine = make_engine(f"sqlite:///{tmp_path}/pared.db")
    with engine.connect() as connection:
        pragma = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10000}


def test_a_job_update_that_changes_no_row_says_so(sessions):
    with sessions.begin() as session:
        assert session.execute(update(Job).where(Job.id == "job_x").values(stage="x")).rowcount == 0


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
def test_reading_sends_nothing_but_its_queries(sessions, monkeypatch):
    asked = []
    monkeypatch.setattr(sessions.engine.dialect, "do_ping", asked.append)
    for _ in range(3):
        with sessions() as session:
            session.scalars(select(Job)).all()
            connection = session.connection().connection.dbapi_connection
            assert connection.info.transaction_status.name == "IDLE", "no transaction was begun"
    assert not asked


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
def test_a_connection_that_died_in_the_pool_is_replaced(sessions, monkeypatch):
    with sessions() as session, sessions() as other:
        ended = [each.scalar(text("select pg_backend_pid()")) for each in (session, other)]
    with sessions() as session:
        assert session.scalar(text("select pg_backend_pid()")) in ended
    killer = make_engine(sessions.engine.url.render_as_string(hide_password=False))
    with killer.connect() as connection:
        for pid in ended:
            assert connection.scalar(text("select pg_terminate_backend(:pid, 10000)"), {"pid": pid})
    killer.dispose()
    monkeypatch.setattr("pared.state.session.ASKED_AGAIN_S", 0.0)
    with sessions() as session, sessions() as other:
        assert session.scalars(select(Job)).all() == other.scalars(select(Job)).all() == []


def test_plain_rows_are_those_of_a_session(sessions):
    shown = select(Owner.id, Owner.created_at, Owner.disabled_at, db_now().label("now") > Owner.created_at)
    ids = [create_owner(sessions, name).id for name in ("ann", "bob", "eve")]
    by_keys = PlainQueryByKeys(sessions, shown, Owner.__table__.c.id)
    with sessions() as session:
        expected = {row.id: tuple(row) for row in session.execute(shown.where(Owner.id.in_(ids[:2]))).all()}
    for _ in range(8):  # PostgreSQL's driver prepares a statement that it is given often
        assert {row[0]: tuple(row) for row in by_keys.read([*ids[:2], "own_none"])} == expected
    assert not by_keys.read(["own_none"])
    some = PlainQuery(sessions, shown.where(Owner.id > bindparam("after")).limit(bindparam("most")), ["after", "most"])
    assert len(some.read(after="own_", most=2)) == 2
    with sessions.begin() as session:  # the connection, used as plain rows are read, begins transactions again
        session.execute(delete(Owner).where(Owner.id == ids[2]))
        session.rollback()
    assert len(by_keys.read(ids)) == 3
    for _ in range(8):
        together = [(some, {"after": after, "most": 2}) for after in ("own_", max(ids), "own_")]
        assert [len(rows) for rows in read_each(together)] == [2, 0, 2]


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
@pytest.mark.parametrize("at_once", [1, 3])
def test_plain_rows_come_over_another_connection_where_one_has_died(sessions, at_once: int):
    plain = PlainQuery(sessions, select(func.pg_backend_pid(), literal("a").label("a")), [])
    ((pid, _),) = plain.read()
    killer = make_engine(sessions.engine.url.render_as_string(hide_password=False))
    with killer.connect() as connection:
        assert connection.scalar(text("select pg_terminate_backend(:pid, 10000)"), {"pid": pid})
    killer.dispose()
    for ((other, _),) in read_each([(plain, {})] * at_once):
        assert other != pid
    ((other, _),) = plain.read()
    assert other != pid


def test_connections_that_read_are_as_many_as_are_used_at_once_and_go_with_the_engine(sessions):
    kept, pool = sessions.reading_connections, sessions.engine.pool
    plain = PlainQuery(sessions, select(literal("a").label("a")), [])
    for _ in range(3):
        assert [tuple(row) for row in plain.read()] == [("a",)]
    assert pool.checkedout() == 1
    with kept.one() as one, kept.one() as other:
        assert one is not other
        assert plain.read()
    assert pool.checkedout() == 3
    with pytest.raises(RuntimeError), kept.one() as one:
        raise RuntimeError  # whatever state it is in
    assert not one.is_valid
    assert pool.checkedout() == 2
    free = list(kept._free)
    sessions.engine.dispose()
    assert [each.is_valid for each in free] == [False, False]
    assert plain.read(), "an engine that was disposed of opens others"


def test_a_plain_query_that_is_wrong_says_so_as_a_session_does(sessions):
    with pytest.raises(DBAPIError):
        PlainQuery(sessions, select(literal_column("nothing.at_all")), []).read()
    with pytest.raises(DBAPIError):
        read_each([(PlainQuery(sessions, select(literal_column(each)), []), {}) for each in ("1", "nothing.at_all")])


def test_the_data_version_is_another_after_each_change_by_whomever(sessions):
    version, others = DataVersion(sessions.engine), make_engine(sessions.engine.url.render_as_string(False))
    assert version.read() is None, "before it is opened"
    version.open()
    seen = [version.read()]
    for number in range(30):
        create_owner(make_sessions(others) if number % 2 else sessions, f"owner {number}")
        seen.append(version.read())
        with sessions() as session:
            assert len(session.scalars(select(Owner.id)).all()) > number
        assert version.read() == seen[-1], "reading changes nothing"
    version.close()
    others.dispose()
    known = sessions.engine.dialect.name == "sqlite"
    assert len(set(seen)) == (31 if known else 1)
    assert version.read() is None


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_the_data_version_of_a_file_that_was_replaced_is_not_known(sessions, settings):
    version, file = DataVersion(sessions.engine), settings.data_dir / "pared.db"
    version.open()
    before = version.read()
    assert before is not None
    aside = file.rename(file.with_name("aside.db"))
    assert version.read() is None
    file.write_bytes(aside.read_bytes())
    assert version.read() is None
    aside.rename(file)
    assert version.read() == before
    version.close()


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_the_data_version_waits_for_no_lock(sessions):
    version = DataVersion(sessions.engine)
    version.open()
    before = version.read()
    with sessions.begin() as session:
        session.add(Owner(id=new_id("own"), name="ann", created_at=0.0))
        session.flush()
        assert version.read() == before
    assert version.read() != before
    version.close()


def test_old_specs_are_read_a_few_at_a_time(sessions):
    with sessions.in_transaction() as session:
        assert session.scalars(select(Job).execution_options(yield_per=10)).all() == []
