"""Keys are shown once, kept as digests, replaced without loss, and stop working when they should."""

from __future__ import annotations

import hashlib

import pytest
from alembic import command
from sqlalchemy import func, select, text, update

from pared.errors import Conflict, NotFound, Unauthorized
from pared.specs import PruneSpec
from pared.state.audit import Actor, entries
from pared.state.jobs import find_job, submit
from pared.state.keys import (
    LAST_USE_S,
    add_key,
    caller_of,
    create_key,
    list_keys,
    revoke_key,
    rotate_key,
    working,
)
from pared.state.owners import (
    LOCAL_OWNER,
    create_owner,
    disable_owner,
    enable_owner,
    find_owner,
    list_owners,
)
from pared.state.session import alembic_config
from pared.state.settings import Settings
from pared.state.tables import ApiKey, AuditEntry, Dataset, IdempotencyKey, Job, Model, Owner, db_now, new_id


def refused(sessions, secret: str) -> bool:
    try:
        caller_of(sessions, secret)
    except Unauthorized:
        return True
    return False


def test_a_key_names_its_owner_until_it_is_revoked(sessions):
    first, second = create_key(sessions, "laptop"), create_key(sessions, "ci")
    assert first.startswith("pared_")
    caller = caller_of(sessions, first)
    assert caller.owner.startswith("own_")
    assert caller.owner != caller_of(sessions, second).owner
    assert [key.name for key in list_keys(sessions)] == ["laptop", "ci"]
    assert revoke_key(sessions, caller.key_id)
    assert not revoke_key(sessions, caller.key_id)
    assert refused(sessions, first)
    assert [key.name for key in list_keys(sessions)] == ["ci"]


def test_all_keys_of_an_owner_see_the_same(sessions):
    owner = create_owner(sessions, "ann")
    laptop, cluster = (add_key(sessions, owner.id, name) for name in ("laptop", "cluster"))
    assert caller_of(sessions, laptop.secret).owner == caller_of(sessions, cluster.secret).owner == owner.id
    assert revoke_key(sessions, laptop.key.id)
    assert caller_of(sessions, cluster.secret).owner == owner.id


def test_a_rotated_key_keeps_owner_name_scopes_and_time_to_live(sessions):
    owner = create_owner(sessions, "ann")
    old = add_key(sessions, owner.id, "ci", scopes=["read"], valid_s=3600)
    new = rotate_key(sessions, old.key.id)
    assert refused(sessions, old.secret)
    assert (caller_of(sessions, new.secret).owner, caller_of(sessions, new.secret).scopes) == (owner.id, {"read"})
    assert new.key.name == "ci"
    assert new.key.expires_at - new.key.created_at == pytest.approx(3600, abs=1)
    assert rotate_key(sessions, old.key.id) is None

    newest = rotate_key(sessions, new.key.id, old_works_s=60)
    assert not refused(sessions, new.secret)
    assert not refused(sessions, newest.secret)
    with sessions() as session:
        left = session.scalar(select(ApiKey.expires_at - db_now()).where(ApiKey.id == new.key.id))
    assert 0 < left <= 60


def test_a_key_that_expires_or_whose_owner_is_disabled_works_no_more(sessions):
    owner = create_owner(sessions, "ann")
    brief, lasting = add_key(sessions, owner.id, "brief", valid_s=0.0), add_key(sessions, owner.id, "lasting")
    with pytest.raises(Unauthorized, match="expired"):
        caller_of(sessions, brief.secret)
    disable_owner(sessions, owner.id)
    with pytest.raises(Unauthorized, match="disabled"):
        caller_of(sessions, lasting.secret)
    with sessions() as session:
        assert working(session, [brief.key.id, lasting.key.id]) == set()
    assert enable_owner(sessions, owner.id)
    assert caller_of(sessions, lasting.secret).owner == owner.id
    with pytest.raises(Conflict):
        disable_owner(sessions, LOCAL_OWNER)
    with pytest.raises(Conflict):
        add_key(sessions, LOCAL_OWNER, "mine")
    with pytest.raises(NotFound):
        add_key(sessions, "own_" + "0" * 26, "mine")


def test_the_last_use_is_written_once_a_minute(sessions):
    secret = create_key(sessions, "laptop")

    def last_use() -> float:
        caller_of(sessions, secret)
        with sessions() as session:
            return session.scalar(select(ApiKey.last_used_at))

    first = last_use()
    assert first is not None
    assert last_use() == first
    with sessions.begin() as session:
        session.execute(update(ApiKey).values(last_used_at=ApiKey.last_used_at - LAST_USE_S - 1))
    assert last_use() >= first


def test_revoking_cancels_the_jobs_of_this_key_alone_if_asked(sessions):
    owner = create_owner(sessions, "ann")
    leaked, good = (add_key(sessions, owner.id, name) for name in ("leaked", "good"))
    model = new_id("mdl")
    with sessions.begin() as session:
        session.add(Model(id=model, owner=owner.id, filename="m", sha256="0" * 64, size_bytes=1, status="ready"))
    spec = PruneSpec(type="prune", model=model, amount=0.5)
    theirs, ours = (submit(sessions, owner.id, spec, key_id=each.key.id)[0].id for each in (leaked, good))
    revoke_key(sessions, leaked.key.id, cancel_jobs=True)
    with sessions() as session:
        assert find_job(session, owner.id, theirs).status == "canceled"
        assert find_job(session, owner.id, ours).status == "queued"
    assert disable_owner(sessions, owner.id, cancel_jobs=True) == 1


def test_owners_are_found_by_name_or_id(sessions):
    ann, bob, other = (create_owner(sessions, name) for name in ("ann", "bob", "bob"))
    with sessions() as session:
        assert find_owner(session, "ann").id == ann.id
        assert find_owner(session, other.id).id == other.id
        with pytest.raises(Conflict):
            find_owner(session, "bob")
        with pytest.raises(NotFound):
            find_owner(session, "carol")
        assert [owner.name for owner in list_owners(session)] == ["local", "ann", "bob", "bob"]
    assert bob.id != other.id


def test_the_secret_is_nowhere_in_the_tables(sessions):
    made = add_key(sessions, create_owner(sessions, "ann").id, "laptop")
    secrets = [made.secret, rotate_key(sessions, made.key.id).secret]
    with sessions() as session:
        rows = [row for table in (ApiKey, AuditEntry) for row in session.scalars(select(table))]
    text = "".join(repr(vars(row)) for row in rows)
    for secret in secrets:
        assert secret.removeprefix("pared_") not in text


def test_what_was_done_to_owners_and_keys_is_written_down(sessions):
    actor = Actor("own_x", "key_x", "request")
    owner = create_owner(sessions, "ann", actor)
    key = add_key(sessions, owner.id, "ci", actor=actor).key
    new = rotate_key(sessions, key.id, actor=actor).key
    revoke_key(sessions, new.id, actor=actor)
    disable_owner(sessions, owner.id, actor=actor)
    create_key(sessions, "bob")
    with sessions() as session:
        done = [(row.action, row.subject) for row in entries(session, actor="own_x")]
        newest = entries(session, limit=2)
        assert [row.actor for row in newest] == ["command line"] * 2
        assert entries(session, before=newest[-1].id, limit=1)[0].action == "owner.disable"
    assert done == [
        ("owner.disable", owner.id),
        ("key.revoke", new.id),
        ("key.rotate", key.id),
        ("key.create", new.id),
        ("key.create", key.id),
        ("owner.create", owner.id),
    ]


def test_keys_from_before_owners_keep_all_that_they_made(sessions):
    keys = {f"key_{number:026}": f"pared_{number}" for number in range(2)}
    with sessions.begin() as session:
        command.downgrade(alembic_config(session.connection()), "0006")
        for number, key in enumerate(keys):
            digest = hashlib.sha256(keys[key].encode()).hexdigest()
            session.execute(
                text("insert into api_keys (id, name, secret_sha256, created_at) values (:id, :name, :digest, 1)"),
                {"id": key, "name": f"user {number}", "digest": digest},
            )
        for number, owner in enumerate([*keys, "local"]):
            job = f"job_{number:026}"
            session.execute(
                text(
                    "insert into jobs (id, owner, type, status, spec, created_at, updated_at, attempt, crash_count, "
                    "fence, held_s, run_after) values (:id, :owner, 'prune', 'queued', '{}', 1, 1, 0, 0, 0, 0, 0)"
                ),
                {"id": job, "owner": owner},
            )
            session.execute(
                text(
                    "insert into idempotency_keys (owner, key, body_sha256, job_id, created_at) "
                    "values (:o, 'k', '', :j, 1)"
                ),
                {"o": owner, "j": job},
            )
            for table, prefix in (("models", "mdl"), ("datasets", "dst")):
                session.execute(
                    text(
                        f"insert into {table} (id, owner, filename, sha256, size_bytes, status, created_at) "
                        "values (:id, :owner, 'f', '', 1, 'ready', 1)"
                    ),
                    {"id": f"{prefix}_{number:026}", "owner": owner},
                )
    with sessions.begin() as session:
        command.upgrade(alembic_config(session.connection()), "head")
    owners = {caller_of(sessions, secret).owner: key for key, secret in keys.items()}
    assert set(owners) == {"own_" + key[4:] for key in keys}
    with sessions() as session:
        assert {owner.name for owner in list_owners(session)} == {"user 0", "user 1", "local"}
        for table in (Model, Dataset, Job, IdempotencyKey):
            rows = session.execute(select(table.owner, func.count()).group_by(table.owner)).all()
            assert dict(rows) == dict.fromkeys([*owners, "local"], 1)
        assert {key.owner_id: key.scopes for key in list_keys(sessions)} == dict.fromkeys(owners, "read submit")
    with sessions.begin() as session:  # and back
        command.downgrade(alembic_config(session.connection()), "0006")
        assert set(session.execute(text("select owner from jobs")).scalars()) == {*keys, "local"}
    with sessions.begin() as session:
        command.upgrade(alembic_config(session.connection()), "head")
        assert session.scalar(select(func.count()).select_from(Owner)) == 3


def test_keys_are_needed_beyond_loopback():
    for host in ("127.0.0.1", "127.0.0.9", "localhost", "::1"):
        assert not Settings(host=host).keys_required
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        assert Settings(host=host).keys_required
    assert Settings(require_keys=True).keys_required
    assert not Settings(host="0.0.0.0", require_keys=False).keys_required
