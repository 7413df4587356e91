"""What goes with time and what stays, whether rows and files fit, and copies that are put back elsewhere."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from pared.cli.app import app as cli  # noqa: F401 - loads what the commands need once
from pared.errors import Conflict, NotFound
from pared.state.backup import backup, restore
from pared.state.fsck import check
from pared.state.objects import open_store
from pared.state.owners import create_owner, set_retention
from pared.state.retention import collect
from pared.state.session import make_engine, make_sessions, migrate
from pared.state.settings import Settings
from pared.state.tables import Artifact, Dataset, Job, JobEvent, Model, PartialUpload, db_now
from service.routes import tus
from tests.integration.service.conftest import Api, serving
from tests.integration.service.test_tus import FILE, create, send
from tests.support.forks import run_pared
from tests.support.processes import environment
from tests.support.s3 import S3Server
from tests.support.servers import Servers

DAY = 86_400.0


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path / "data", retention_days=30, keep_unreferenced_s=0.0) as api:
        # Its own sweep, the first of which comes with the first job, would take what is to be looked at.
        api.parts.dispatcher.stop()
        yield api


def age(api: Api, row_id: str, days: float) -> None:
    with api.parts.sessions.begin() as session:
        for table, column in (
            (Job, "created_at"),
            (Job, "finished_at"),
            (Model, "created_at"),
            (Dataset, "created_at"),
        ):
            session.execute(update(table).where(table.id == row_id).values({column: db_now() - days * DAY}))


def done_job(api: Api, content: bytes, days: float) -> tuple[str, str]:
    """An ended job of so many days ago, and its model."""
    model = api.upload(content, f"{content.decode()}.pt")["id"]
    job = api.submit(model=model)["id"]
    api.finish(job, {"model.pt": b"small " + content})
    with api.parts.sessions() as session:
        inspections = [
            row.id for row in session.query(Job).filter(Job.type == "inspect") if row.spec["subject"] == model
        ]
    for inspection in inspections:
        api.fail(inspection)
        age(api, inspection, days)
    api.inspected(model)
    for row in (model, job):
        age(api, row, days)
    return model, job


# -- retention ------------------------------------------------------------------------------------


def test_what_is_past_its_age_goes_and_pinned_jobs_stay_with_all_that_they_need(kept: Api):
    old_model, old = done_job(kept, b"old", 31)
    pinned_model, pinned = done_job(kept, b"pinned", 31)
    young_model, young = done_job(kept, b"young", 29)
    shared = kept.upload(b"shared", "shared.pt")["id"]
    kept.inspected(shared)
    age(kept, shared, 100)
    waiting = kept.submit(model=shared)["id"]
    for _ in range(2):
        assert kept.post(f"/v1/jobs/{pinned}/pin").status_code == 204
    assert kept.get(f"/v1/jobs/{pinned}").json()["pinned"]
    foretold = collect(kept.parts.sessions, kept.parts.store, kept.parts.settings, dry_run=True)
    assert kept.get(f"/v1/jobs/{old}").status_code == 200
    gone = collect(kept.parts.sessions, kept.parts.store, kept.parts.settings)
    assert foretold == gone
    assert old in gone.jobs
    assert gone.uploads == [old_model]
    assert gone.objects == 2, "the upload and what the job made of it"
    assert gone.object_bytes == len(b"old" + b"small old")
    for job in (pinned, young, waiting):
        assert kept.get(f"/v1/jobs/{job}").status_code == 200
    for model in (pinned_model, young_model, shared):
        assert kept.get(f"/v1/models/{model}").status_code == 200
    assert kept.get(f"/v1/jobs/{pinned}/artifacts/model.pt").content == b"small pinned"
    assert kept.get(f"/v1/jobs/{old}").status_code == 404
    with kept.parts.sessions() as session:
        assert not session.query(JobEvent).filter(JobEvent.job_id == old).count()
        assert not session.query(Artifact).filter(Artifact.job_id == old).count()
    assert kept.post(f"/v1/jobs/{pinned}/unpin").status_code == 204
    again = collect(kept.parts.sessions, kept.parts.store, kept.parts.settings)
    assert (again.jobs, again.uploads) == ([pinned], [pinned_model])
    assert check(kept.parts.sessions, kept.parts.store, kept.parts.settings).findings == []


def test_without_a_limit_everything_stays(tmp_path: Path):
    with serving(tmp_path, keep_unreferenced_s=0.0) as api:
        api.parts.dispatcher.stop()  # its sweep could come between an object and its row
        model, job = done_job(api, b"old", 5000)
        gone = collect(api.parts.sessions, api.parts.store, api.parts.settings)
        assert (gone.jobs, gone.uploads, gone.objects) == ([], [], 0)
        assert api.get(f"/v1/models/{model}").status_code == api.get(f"/v1/jobs/{job}").status_code == 200


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_an_owner_may_have_a_retention_of_their_own(where: str, tmp_path: Path, request: pytest.FixtureRequest):
    url = {} if where == "sqlite" else {"database_url": request.getfixturevalue("servers").new_database()}
    with serving(tmp_path, keep_unreferenced_s=0.0, **url) as api:
        api.parts.dispatcher.stop()
        sessions, store, settings = api.parts.sessions, api.parts.store, api.parts.settings
        ann = create_owner(sessions, "ann").id
        model, job = done_job(api, b"local", 31)
        with sessions() as session:
            before = session.scalars(select(Job.id)).all()
        anns_model, anns_job = done_job(api, b"anns", 31)
        with sessions.begin() as session:
            session.execute(update(Model).where(Model.id == anns_model).values(owner=ann))
            session.execute(update(Job).where(Job.id.not_in(before)).values(owner=ann))

        def gone(**changes: float) -> tuple[list[str], list[str]]:
            found = collect(sessions, store, settings.model_copy(update=changes), dry_run=True)
            return sorted({job, anns_job} & set(found.jobs)), found.uploads

        nothing, anns, locals_ = ([], []), ([anns_job], [anns_model]), ([job], [model])
        assert gone() == nothing
        assert set_retention(sessions, ann, 30.0)
        assert gone() == anns
        assert set_retention(sessions, ann, 32.0)
        assert gone() == nothing
        assert gone(retention_days=30.0) == locals_
        assert set_retention(sessions, ann, 0.0)
        assert gone(retention_days=30.0) == locals_, "an owner's may stay for ever"
        assert set_retention(sessions, ann, None)
        assert gone(retention_days=30.0) == (sorted([job, anns_job]), sorted([model, anns_model]))
        assert not set_retention(sessions, "own_nobody", 1.0)


def test_others_cannot_pin(guarded: Api):
    assert guarded.post("/v1/jobs/job_01K9Q5X8C3F6H9K2M5P8S1V4Y7/pin").status_code == 401


# -- fsck -----------------------------------------------------------------------------------------


def findings(api: Api, *, repair: bool = False) -> dict[str, tuple[str, bool]]:
    checked = check(api.parts.sessions, api.parts.store, api.parts.settings, repair=repair)
    return {finding.what: (finding.problem, finding.repaired) for finding in checked.findings}


def test_each_way_in_which_rows_and_files_differ_is_found_and_mended_where_it_can_be(kept: Api):
    store, sessions = kept.parts.store, kept.parts.sessions
    _, job = done_job(kept, b"twin", 1)
    with sessions() as session:
        artifact = session.query(Artifact).filter(Artifact.job_id == job).one()
    kept.upload(b"small twin", "twin of the artifact.pt")
    lost = kept.upload(b"lost", "lost.pt")
    bad = kept.upload(b"whole", "bad.pt")
    data = kept.upload(b"data", "d.npz", kind="datasets")["id"]
    preview = store.put([b"{}"], key="previews/1/preview.json")
    columns = {"preview_key": preview.key, "preview_sha256": preview.sha256, "preview_bytes": 2}
    kept.inspected(data, **columns)
    stray = store.put([b"of nobody"])
    partial = create(kept)
    partial_id = partial.rpartition("/")[2]
    with sessions.begin() as session:
        session.get(PartialUpload, partial_id).received_bytes = 100
    kept.parts.partial.path(partial_id).write_bytes(FILE[:100])
    assert findings(kept) == {stray.key: ("unnamed", False)}
    keys = {name: f"sha256/{row['sha256'][:2]}/{row['sha256']}" for name, row in (("lost", lost), ("bad", bad))}
    store.path(artifact.object_key).write_bytes(b"small TWIN")
    store.path(keys["lost"]).unlink()
    store.path(keys["bad"]).write_bytes(b"WHOLE")
    store.path(preview.key).write_bytes(b"[]")
    kept.parts.partial.path(partial_id).write_bytes(b"")
    found = {
        artifact.object_key: "damaged",
        keys["lost"]: "missing",
        keys["bad"]: "damaged",
        preview.key: "damaged",
        stray.key: "unnamed",
        partial_id: "partial",
    }
    assert findings(kept) == {what: (problem, False) for what, problem in found.items()}
    mendable = {artifact.object_key, preview.key, stray.key, partial_id}
    assert findings(kept, repair=True) == {what: (problem, what in mendable) for what, problem in found.items()}
    assert findings(kept) == {keys["lost"]: ("missing", False), keys["bad"]: ("damaged", False)}
    assert kept.get(f"/v1/jobs/{job}/artifacts/model.pt").content == b"small twin"
    assert kept.get(f"/v1/datasets/{data}/preview").status_code == 404
    # What cannot be mended here is mended by what the finding says.
    kept.upload(b"lost", "lost.pt")
    kept.upload(b"whole", "bad.pt")
    assert findings(kept) == {}


def test_what_is_too_young_to_be_collected_is_no_finding(tmp_path: Path):
    with serving(tmp_path) as api:
        api.parts.store.put([b"its row comes in a moment"])
        checked = check(api.parts.sessions, api.parts.store, api.parts.settings)
        assert (checked.findings, checked.waiting, checked.objects) == ([], 1, 1)


def test_the_commands_say_what_they_did(kept: Api, tmp_path: Path):
    done_job(kept, b"old", 31)
    env = environment(PARED_DATA_DIR=str(kept.parts.settings.data_dir), PARED_RETENTION_DAYS="30")
    env["PARED_KEEP_UNREFERENCED_S"] = "0"

    def pared(line: str) -> subprocess.CompletedProcess[str]:
        return run_pared(line.split(), cwd=tmp_path, env=env)

    foretold = json.loads(pared("gc --dry-run --json").stdout)
    assert (len(foretold["jobs"]), len(foretold["uploads"]), foretold["objects"]) == (2, 1, 2)
    assert "2 objects of 12 bytes would go" in pared("gc --dry-run").stdout
    assert "2 objects of 12 bytes gone" in pared("gc").stdout
    assert pared("owners retain local --days 20").returncode == 0
    assert [owner["retention_days"] for owner in json.loads(pared("owners ls --json").stdout)] == [20.0]
    assert pared("owners retain local").returncode == 2, "it must say how long"
    assert pared("fsck").returncode == 0
    row = kept.upload(b"bytes", "m.pt")
    kept.parts.store.path(f"sha256/{row['sha256'][:2]}/{row['sha256']}").write_bytes(b"BYTES")
    bad = pared("fsck")
    assert bad.returncode == 1
    assert "upload the file again" in bad.stdout
    assert json.loads(pared("fsck --json").stdout)["findings"][0]["problem"] == "damaged"
    made = pared("backup copy")
    assert made.returncode == 0, made.stderr
    again = pared("restore copy")
    assert again.returncode == 1
    assert "PARED_DATA_DIR" in again.stderr


# -- backups --------------------------------------------------------------------------------------


def restored(settings: Settings, folder: Path) -> Api:
    restore(settings, folder)
    return serving(settings.data_dir, **settings.model_dump(exclude={"data_dir", "port"}))


def test_a_backup_of_a_busy_service_is_whole_and_later_ones_only_add(tmp_path: Path):
    copy = tmp_path / "copy"
    with serving(tmp_path / "data", keep_unreferenced_s=0.0) as api:
        api.parts.dispatcher.stop()  # its sweep could come between an object and its row
        ended = done_job(api, b"ended", 0)[1]
        queued = api.submit()["id"]
        partial = create(api)
        send(api, partial, 0, FILE[:100])
        stop = threading.Event()

        def busy() -> None:
            number = 0
            while not stop.is_set():
                row = api.upload(f"model {number}".encode(), f"{number}.pt")
                if number % 2:
                    with api.parts.sessions.begin() as session:
                        session.get(Model, row["id"]).deleted_at = 1.0
                    collect(api.parts.sessions, api.parts.store, api.parts.settings)
                number += 1

        thread = threading.Thread(target=busy)
        thread.start()
        try:
            for _ in range(3):
                manifest = backup(api.parts.settings, copy)
        finally:
            stop.set()
            thread.join()
        assert manifest.objects > 2
        linked = next((copy / "objects").rglob("[0-9a-f]*[0-9a-f]"))
        assert linked.stat().st_nlink >= 1
    where = Settings(data_dir=tmp_path / "elsewhere", keep_unreferenced_s=0.0)
    with restored(where, copy) as back:
        checked = check(back.parts.sessions, back.parts.store, back.parts.settings)
        assert [finding for finding in checked.findings if finding.problem != "unnamed"] == []
        assert back.get(f"/v1/jobs/{ended}/artifacts/model.pt").content == b"small ended"
        assert back.get(f"/v1/jobs/{queued}").json()["status"] == "queued"
        assert back.head(partial, headers={"Tus-Resumable": tus.VERSION}).status_code == 404
        with back.parts.sessions() as session:
            assert not session.query(PartialUpload).count()
    with pytest.raises(Conflict, match="already"):
        restore(where, copy)
    assert manifest.objects == len([path for path in (copy / "objects").rglob("*") if path.is_file()])


def test_what_is_no_backup_is_neither_written_to_nor_restored(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    settings = Settings(data_dir=tmp_path / "data")
    migrate(settings)
    with pytest.raises(Conflict, match="neither empty nor a backup"):
        backup(settings, tmp_path / "notes")
    with pytest.raises(NotFound, match=r"backup\.json"):
        restore(Settings(data_dir=tmp_path / "new"), tmp_path / "notes")
    backup(settings, tmp_path / "copy")
    manifest = tmp_path / "copy" / "backup.json"
    manifest.write_text(manifest.read_text().replace('"revision": "0', '"revision": "9'))
    with pytest.raises(Conflict, match="newer"):
        restore(Settings(data_dir=tmp_path / "new"), tmp_path / "copy")
    assert not (tmp_path / "new").exists()


def test_postgresql_is_dumped_and_restored(servers: Servers, tmp_path: Path):
    settings = Settings(data_dir=tmp_path / "data", database_url=servers.new_database())
    migrate(settings)
    with serving(tmp_path / "data", database_url=settings.database_url) as api:
        ended = done_job(api, b"ended", 0)[1]
        backup(api.parts.settings, tmp_path / "copy")
    target = Settings(data_dir=tmp_path / "elsewhere", database_url=servers.new_database())
    with restored(target, tmp_path / "copy") as back:
        assert back.get(f"/v1/jobs/{ended}/artifacts/model.pt").content == b"small ended"
        assert check(back.parts.sessions, back.parts.store, back.parts.settings).findings == []
    with pytest.raises(Conflict, match="already"):
        restore(target, tmp_path / "copy")


def test_a_backup_of_files_moves_into_a_bucket_and_one_of_a_bucket_is_of_rows_alone(s3: S3Server, tmp_path: Path):
    migrate(Settings(data_dir=tmp_path / "data"))
    with serving(tmp_path / "data") as api:
        ended = done_job(api, b"ended", 0)[1]
        backup(api.parts.settings, tmp_path / "copy")
    there = Settings(data_dir=tmp_path / "elsewhere", objects_url=s3.new_url())
    with restored(there, tmp_path / "copy") as back:
        assert back.get(f"/v1/jobs/{ended}/artifacts/model.pt").content == b"small ended"
        assert check(back.parts.sessions, back.parts.store, back.parts.settings).findings == []
        assert backup(there, tmp_path / "rows").objects == 0
    again = Settings(data_dir=tmp_path / "again", objects_url=there.objects_url)
    with restored(again, tmp_path / "rows") as back:
        assert back.get(f"/v1/jobs/{ended}/artifacts/model.pt").content == b"small ended"


def test_a_backup_on_another_disk_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = Settings(data_dir=tmp_path / "data")
    migrate(settings)
    sessions = make_sessions(make_engine(settings.effective_database_url))
    stored = open_store(settings).put([b"bytes"])

    def elsewhere(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", elsewhere)
    backup(settings, tmp_path / "copy")
    copied = tmp_path / "copy" / "objects" / stored.key
    assert copied.read_bytes() == b"bytes"
    assert copied.stat().st_nlink == 1
    first = copied.stat().st_ino
    backup(settings, tmp_path / "copy")
    assert copied.stat().st_ino == first, "what is there already is left alone"
    sessions.engine.dispose()
