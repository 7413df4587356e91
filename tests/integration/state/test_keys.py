"""Keys are shown once, kept as digests, and stop working when revoked."""

from __future__ import annotations

from sqlalchemy import select

from pared.state.keys import create_key, key_of, list_keys, revoke_key
from pared.state.settings import Settings
from pared.state.tables import ApiKey


def test_a_key_names_its_owner_until_it_is_revoked(sessions):
    first, second = create_key(sessions, "laptop"), create_key(sessions, "ci")
    assert first.startswith("pared_")
    owner = key_of(sessions, first)
    assert owner != key_of(sessions, second)
    assert [key.name for key in list_keys(sessions)] == ["laptop", "ci"]
    assert revoke_key(sessions, owner)
    assert not revoke_key(sessions, owner)
    assert key_of(sessions, first) is None
    assert [key.name for key in list_keys(sessions)] == ["ci"]


def test_the_secret_is_nowhere_in_the_table(sessions):
    secret = create_key(sessions, "laptop")
    with sessions() as session:
        row = session.scalars(select(ApiKey)).one()
    assert secret not in repr(vars(row))
    assert secret.removeprefix("pared_") not in repr(vars(row))


def test_keys_are_needed_beyond_loopback():
    for host in ("127.0.0.1", "127.0.0.9", "localhost", "::1"):
        assert not Settings(host=host).keys_required
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        assert Settings(host=host).keys_required
    assert Settings(require_keys=True).keys_required
    assert not Settings(host="0.0.0.0", require_keys=False).keys_required
