"""A day of 1,000 workers and 100,000 jobs on the real state code and a real PostgreSQL, in virtual time.

    python benchmarks/simulation.py [JOBS]

Fewer jobs are a shorter day at the same rates. Each operation is timed, with the processor time of PostgreSQL's process
for it; from that follows what the whole fleet needs a second, where workers renew, look and sweep by the settings' own
defaults. Then several processes do the same at once, as fast as they can. At the end every job has ended once.
"""

from __future__ import annotations

import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import structlog
from results import machine, table, write_section
from simulated_day import Day, Plan, Tally, check
from simulated_load import KINDS, client, prepare
from sqlalchemy import text
from virtual_time import VirtualDatabase, install_clock

from pared.state.keys import add_key
from pared.state.objects import DirectoryStore
from pared.state.owners import create_owner
from pared.state.session import make_engine, make_sessions, migrate
from pared.state.settings import Settings
from pared.state.tables import Dataset, Model

sys.path.append(str(Path(__file__).parents[1]))  # a script finds only what is beside it
from tests.support.processes import Processes
from tests.support.servers import Servers

HISTORY = 100_000
"""Jobs that ended before the day began."""
THINNED = 12
"""Leases are renewed so many times more seldom than in the service, and last so much longer; one renewal costs the same."""
PROGRESS_A_JOB = 100
"""Writes of a job's progress that the needs are reckoned with; the day itself makes six of each."""
_ENDED = """
insert into jobs (id, owner, type, status, spec, report, outcome, result_bytes, created_at, started_at, finished_at,
  updated_at, attempt, crash_count, fence, held_s, run_after)
select 'job_0000000000' || lpad(n::text, 16, '0'), (cast(:owners as text[]))[1 + n % :many], 'prune', 'succeeded',
  jsonb_build_object('type', 'prune', 'model', 'mdl_' || lpad(n::text, 26, '0'), 'amount', 0.5),
  jsonb_build_object('format', 'torchscript', 'verdict', 'smaller'), jsonb_build_object('verdict', 'smaller'),
  1000000, cast(:now as double precision) - n, cast(:now as double precision) - n, cast(:now as double precision) - n,
  cast(:now as double precision) - n, 1, 0, 1, 60, 0
from generate_series(1, :count) as n
"""


def main(jobs: int = 100_000) -> None:
    """Simulate, print, and write the section `simulation`."""
    logging.disable(logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    plan = Plan(jobs=jobs, workers=1000)
    processes = Processes()
    folder = Path(tempfile.mkdtemp(prefix="pared-simulation-"))
    folder.chmod(0o755)
    processes.remove_at_end(folder)
    try:
        url = Servers(folder, processes).new_database()
        settings = Settings(
            data_dir=folder / "data",
            database_url=url,
            lease_s=20.0 * THINNED,
            heartbeat_s=5.0 * THINNED,
        )
        migrate(settings)
        now = float(int(time.time()))
        owners = _fill(url, plan, now)
        database = VirtualDatabase(url, now)
        print(f"{HISTORY:,} jobs from before; the day begins", flush=True)
        begun = time.perf_counter()
        day = Day(database, plan, settings, DirectoryStore(folder / "objects"), owners)
        tally = day.run(lambda line: print(f"{time.perf_counter() - begun:6.0f} s: {line}", flush=True))
        sentence = check(database, tally, HISTORY)
        took = time.perf_counter() - begun
        print(sentence)
        held, waiting = prepare(database, settings, owners)
        loads = _loads(url, database.now, settings, owners, held)
        _report(plan, tally, database, sentence, took, loads, waiting)
        database.close()
    finally:
        processes.close()


def _fill(url: str, plan: Plan, now: float) -> list[str]:
    """Owners with keys, a model and a data set each, and the jobs from before. Returns the owners' ids."""
    engine = make_engine(url)
    sessions = make_sessions(engine)
    owners = []
    for n in range(plan.owners):
        owner = create_owner(sessions, f"owner {n}").id
        add_key(sessions, owner, f"key {n}")
        owners.append(owner)
        columns = {"owner": owner, "filename": "x", "sha256": "0" * 64, "size_bytes": 1 << 20, "status": "ready"}
        with sessions.begin() as session:
            session.add_all([Model(id=f"mdl_{n:026d}", **columns), Dataset(id=f"dst_{n:026d}", **columns)])
    with engine.begin() as connection:
        connection.execute(text(_ENDED), {"owners": owners, "many": len(owners), "now": now, "count": HISTORY})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze"))
    install_clock(engine)
    engine.dispose()
    return owners


def _loads(url: str, now: float, settings: Settings, owners: list[str], held: list[tuple[str, int]]) -> dict[str, Any]:
    """What several processes do a second, of each kind, and how much of a core PostgreSQL takes meanwhile."""
    found: dict[str, Any] = {}
    spawn = multiprocessing.get_context("spawn")
    for kind in KINDS:
        for count in (1, 4):
            with spawn.Pool(count) as pool:
                barrier_at = time.time() + 4.0 + count
                mine = [held[n::count] for n in range(count)]
                jobs = [(kind, url, now, settings, owners, part, barrier_at, 5.0) for part in mine]
                running = pool.starmap_async(client, jobs)
                time.sleep(max(0.0, barrier_at + 0.5 - time.time()))
                before, at = _server_seconds(), time.perf_counter()
                time.sleep(4.0)
                cores = (_server_seconds() - before) / (time.perf_counter() - at)
                rates = running.get(120)
            found[f"{kind}, {count}"] = (kind, count, sum(rates), cores)
            print(f"{kind}, {count} processes: {sum(rates):.0f}/s, PostgreSQL {cores:.2f} cores", flush=True)
    return found


def _server_seconds() -> float:
    """Processor time of all processes of PostgreSQL that live."""
    total = 0.0
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "postgres":
            try:
                used = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += used.user + used.system
    return total


def _report(
    plan: Plan,
    tally: Tally,
    database: VirtualDatabase,
    sentence: str,
    took: float,
    loads: dict[str, Any],
    waiting: int,
) -> None:
    needs = _needs(plan)
    rows, cores = [], 0.0
    for name, cost in sorted(database.costs.items(), key=lambda item: -needs.get(item[0], 0.0) * item[1].server_ms):
        rate = needs.get(name)
        used = None if rate is None else rate * cost.server_ms / 1000
        cores += used or 0.0
        rows.append(
            [
                name,
                f"{len(cost.seconds):,}",
                f"{statistics.fmean(cost.statements):.1f}",
                f"{cost.quantile_ms(0.5):.2f}",
                f"{cost.quantile_ms(0.99):.2f}",
                f"{cost.server_ms:.3f}",
                "" if rate is None else f"{rate:,.2f}",
                "" if used is None else f"{used:.3f}",
            ]
        )
    header = ["operation", "measured", "statements", "p50, ms", "p99, ms", "server, ms", "needed a second", "cores"]
    shown = table(header, rows)
    load_rows = [[kind, str(count), f"{rate:,.0f}", f"{cores_:.2f}"] for kind, count, rate, cores_ in loads.values()]
    sustained = table(["what processes do", "processes", "a second", "cores of PostgreSQL"], load_rows)
    waits = sorted(tally.waits)
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(tally.counts.items()) if not name.startswith("to "))
    text_ = f"""## A day of 1,000 workers

{sentence}. On the way: {counts}. At most {tally.most_waiting:,} jobs waited and {tally.most_held:,} were held; half of the jobs
started within {waits[len(waits) // 2]:.1f} s of virtual time, 99 % within {waits[int(len(waits) * 0.99)]:,.0f} s.

{shown}

{plan.jobs:,} jobs in {plan.span_s / 3600:.1f} h ({plan.jobs_a_day:,} a day), {plan.workers:,} workers, {HISTORY:,} jobs from before, PostgreSQL
on the same {machine()}, other work beside it; it took {took / 60:.0f} minutes. *Server* is the processor time of PostgreSQL's process for the
connection, a mean. *Needed* is a mean over the day by the settings' defaults, with {PROGRESS_A_JOB} writes of progress a job; *cores* is what
PostgreSQL then needs: **{cores:.2f}** in all.

As fast as processes can, with {waiting:,} jobs waiting and as many held as workers, all on the same cores:

{sustained}

`make bench-simulation`
"""
    print(text_)
    write_section("simulation", text_)


def _needs(plan: Plan) -> dict[str, float]:
    """How often the service does each a second, on the day's mean."""
    usual = Settings()
    jobs = plan.jobs_a_day / 86_400
    running = jobs * plan.mean_s
    return {
        "submit": jobs,
        "submit a plan": jobs * plan.plans,
        "choose": jobs,
        "claim": jobs,
        "claim a plan": jobs * plan.plans,
        "succeed a plan": jobs * plan.plans,
        "end: succeed": jobs,
        "renew": running / usual.heartbeat_s,
        "look for a cancel": running * 2,
        "write progress": jobs * PROGRESS_A_JOB,
        "write a worker's row": plan.workers / 10,
        "look for quick jobs, while jobs wait": plan.workers * 2,
        "sweep": plan.workers / usual.sweep_s,
    }


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
