"""Fuzzes one parser, guided by which branches its inputs reach: `python -m tests.threats.fuzz NAME SECONDS FOLDER`.

libFuzzer ends the process itself: with 0 when the time is up, with something else at the first input that the parser
neither takes nor refuses, takes too long over or fills the memory with. Inputs of interest and findings lie in FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

from tests.threats.parsers import PARSERS, Parser

GUIDING = ["pared", "service", "worker", "zipfile", "json", "pickle", "pickletools", "csv", "python_multipart"]
"""Packages whose branches guide it."""
LONGEST_S = 30
MEMORY_MIB = 4096


def planted(content: bytes) -> None:
    """What no random input finds, and a guided one within seconds."""
    if len(content) > 5 and content[0] == 0x50 and content[1] == 0x41:  # noqa: SIM102 - each is a branch
        if content[2] == 0x52:  # noqa: SIM102
            if content[3] == 0x45:
                raise KeyError("planted")


PLANTED = {"planted": Parser(lambda: [b"......"], planted)}


def main() -> None:
    name, seconds, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    parser = (PARSERS | PLANTED)[name]
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    with atheris.instrument_imports(include=GUIDING):
        for number, seed in enumerate(parser.seeds()):  # which imports what it needs
            parser.parse(seed)
            (corpus / f"seed-{number}").write_bytes(seed)
    parse = atheris.instrument_func(parser.parse) if name in PLANTED else parser.parse
    options = {
        "max_total_time": seconds,
        "timeout": LONGEST_S,
        "rss_limit_mb": MEMORY_MIB,
        "max_len": 1 << 16,
        "artifact_prefix": f"{folder}/",
        "print_final_stats": 1,
    }
    atheris.Setup([sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)], parse)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
