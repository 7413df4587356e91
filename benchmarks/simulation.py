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
from pathlib import Path

import psutil
import structlog
from results import machine, table, write_section
from simulated_day import LARGEST, OF_LARGEST, Day, Plan, Tally, check
from simulated_load import KINDS, client, prepare
from sqlalchemy import text
from virtual_time import VirtualDatabase, install_clock

from pared.state.keys import add_key
from pared.state.objects import DirectoryStore
from pared.state.owners import create_owner
from pared.state.session import make_engine, make_sessions, migrate
from pared.state.settings import Settings
from pared.state.sweep import AT_ONCE
from pared.state.tables import Dataset, Model

sys.path.append(str(Path(__file__).parents[1]))  # a script finds only what is beside it
from tests.support.processes import Processes
from tests.support.servers import Servers

HISTORY = 200_000
"""Jobs that ended before the day began, half of them one owner's."""
THINNED = 12
"""So many times more seldom than in the service leases are renewed, and last so much longer: each costs the same."""
CLIENTS = 4
"""Processes that load the database at once."""
LOAD_S = 6.0
PROGRESS_A_JOB = 100
"""Writes of a job's progress that the needs are reckoned with; the day itself makes six of each."""
LOOKS_A_S = 50
"""Of all workers for quick jobs, as `worker.tasks` has it."""
_ENDED = """
insert into jobs (id, owner, type, status, spec, report, outcome, result_bytes, created_at, started_at, finished_at,
  updated_at, attempt, crash_count, fence, held_s, run_after)
select 'job_0000000000' || lpad(n::text, 16, '0'),
  (cast(:owners as text[]))[case when n % 2 = 0 then 1 else 1 + n / 2 % :many end], 'prune', 'succeeded',
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
        held, waiting = prepare(url, database.now, owners)
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


def _loads(
    url: str, now: float, settings: Settings, owners: list[str], held: list[tuple[str, int]]
) -> list[tuple[str, float]]:
    """Kind, and how many of it several processes do a second."""
    found = []
    with multiprocessing.get_context("spawn").Pool(CLIENTS) as pool:
        pool.starmap(
            client, [(KINDS[0], url, now, settings, owners, held[n::CLIENTS], 0.0, 0.1) for n in range(CLIENTS)]
        )
        for kind in KINDS:
            begins_at = time.time() + 2.0
            mine = [held[n::CLIENTS] for n in range(CLIENTS)]
            running = pool.starmap_async(
                client, [(kind, url, now, settings, owners, part, begins_at, LOAD_S) for part in mine], chunksize=1
            )
            found.append((kind, sum(running.get(300))))
            print(f"{kind}: {found[-1][1]:.0f}/s", flush=True)
    return found


def _report(
    plan: Plan,
    tally: Tally,
    database: VirtualDatabase,
    sentence: str,
    took: float,
    loads: list[tuple[str, float]],
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
    load_rows = [[kind, f"{rate:,.0f}"] for kind, rate in loads]
    sustained = table([f"what {CLIENTS} processes do", "a second"], load_rows)
    waits = sorted(tally.waits)
    counts = ", ".join(
        f"{count:,} {name}" for name, count in sorted(tally.counts.items()) if not name.startswith("to ")
    )
    course = (
        f"{sentence}. On the way: {counts}. At most {tally.most_waiting:,} jobs waited and {tally.most_held:,} were "
        f"held; half of the jobs started within {waits[len(waits) // 2]:.1f} s of virtual time, 99 % within "
        f"{waits[int(len(waits) * 0.99)]:,.1f} s."
    )
    how = (
        f"{plan.jobs:,} jobs in {plan.span_s / 3600:.2f} h ({plan.jobs_a_day:,} a day), {plan.workers:,} workers, "
        f"{HISTORY:,} jobs from before, PostgreSQL on the same {machine()}, with other work beside it (load "
        f"{psutil.getloadavg()[1]:.0f}), which lengthens the times; it took {took / 60:.0f} minutes. *Server* is the "
        "processor time of PostgreSQL's process for the connection, a mean. *Needed* is a mean over the day by the "
        f"settings' defaults, with {PROGRESS_A_JOB} writes of progress a job; *cores* is what PostgreSQL then needs: "
        f"**{cores:.2f}** in all. Each worker by itself looking for quick jobs twice a second and sweeping every five "
        f"seconds, as before, would need **{cores + _alone(plan, database):.2f}**."
    )
    load = (
        f"As fast as {CLIENTS} processes can, with {waiting:,} jobs waiting and as many held as workers, all on the "
        "same cores:"
    )
    paragraphs = ["## A day of 1,000 workers", course, shown, how, load, sustained, "`make bench-simulation`"]
    text_ = "\n\n".join(paragraphs)
    print(text_)
    write_section("simulation", text_)


def _alone(plan: Plan, database: VirtualDatabase) -> float:
    """Cores more that it would need if no worker left to others what one can do for all."""
    usual, needs = {"sweep": plan.workers / 5, "look for quick jobs, while jobs wait": plan.workers * 2}, _needs(plan)
    return sum((rate - needs[name]) * database.costs[name].server_ms / 1000 for name, rate in usual.items())


def _needs(plan: Plan) -> dict[str, float]:
    """How often the service does each a second, on the day's mean."""
    usual = Settings()
    jobs = plan.jobs_a_day / 86_400
    running = jobs * plan.mean_s
    return {
        "submit": jobs * (1 - LARGEST),
        OF_LARGEST: jobs * LARGEST,
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
        "look for quick jobs, while jobs wait": min(plan.workers * 2, LOOKS_A_S),
        "sweep": min(plan.workers, AT_ONCE) / usual.sweep_s,
    }


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
