"""What a job costs beside its work, files, workers and event streams, by real processes on both backends.

    python benchmarks/service_jobs.py [times] [files] [many] [streams] [--backend embedded|servers] [sizes]

Without a name all parts run; each writes a section of its own. `--help` names the sizes.
"""

from __future__ import annotations

import argparse

import service_files
import service_load
import service_streams
import service_times
from services import BACKENDS, backends

PARTS = ("times", "files", "many", "streams")


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; without one, all")
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="without one, both")
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument("--small-jobs", type=int, default=40, help="times: jobs one at a time")
    sizes.add_argument("--epochs", type=int, default=40, help="times: of the job beside the library call")
    sizes.add_argument("--mib", type=int, default=512, help="files: of each file that is sent in turns")
    sizes.add_argument("--large-mib", type=int, default=1024, help="files: of the one during which memory is watched")
    sizes.add_argument("--jobs", type=int, default=200, help="many: from fifty clients, while workers are killed")
    sizes.add_argument("--streams", type=int, default=500, help="streams: open ones")
    sizes.add_argument("--rounds", type=int, default=3, help="of all that is measured in turns")
    chosen = parser.parse_args()
    parts = chosen.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part is called {unknown.pop()}; they are {', '.join(PARTS)}")
    with backends(chosen.backend or tuple(BACKENDS)) as on:
        if "times" in parts:
            service_times.measure(on, chosen.small_jobs, chosen.epochs, chosen.rounds)
        if "files" in parts:
            service_files.measure(on, chosen.mib << 20, chosen.large_mib << 20, chosen.rounds)
        if "many" in parts:
            service_load.measure(on, chosen.jobs, chosen.rounds)
        if "streams" in parts:
            service_streams.measure(on, chosen.streams)


if __name__ == "__main__":
    main()
