#!/usr/bin/env bash
# Shows in one call what pared does on a machine with a card that reaches no package registry: from this checkout, with
# the wheels that `make gpu-wheels` left in .wheels/, it runs the tests and the benchmark that need a card.
#
#     benchmarks/on_a_gpu_machine.sh [test] [bench]        both, unless one is named
#
# Python (PYTHON, by default python3) must have torch, numpy, scipy and scikit-learn. What else it lacks, or has older, is
# installed among its packages, where a sandboxed child may read: for machines that are lent, and containers.
# A line of JSON is printed for each finding. All else is kept in the folder that OUT names, by default build/gpu.
# PARED_TEST_DEVICE=cpu tries all of it without a card.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
TEST_LIMIT_S=${TEST_LIMIT_S:-300}
BENCH_LIMIT_S=${BENCH_LIMIT_S:-200}
mkdir -p "${OUT:=build/gpu}"
OUT=$(realpath "$OUT")
export OUT PYTHONUNBUFFERED=1

install() {
    local site wanted
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || return
    wanted=$("$python" - .wheels/*.whl <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pip._vendor.packaging.utils import parse_wheel_filename
from pip._vendor.packaging.version import Version

for wheel in map(Path, sys.argv[1:]):
    name, offered, _, _ = parse_wheel_filename(wheel.name)
    try:
        if Version(version(name)) >= offered:
            continue
    except PackageNotFoundError:
        pass
    print(wheel)
PYTHON
    ) || { echo "There are no wheels in .wheels/: make gpu-wheels" >&2; return 1; }
    touch "$OUT/.began"
    if [ -n "$wanted" ]; then
        local pip=("$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile)
        # shellcheck disable=SC2086 # names of wheels hold no blanks
        "${pip[@]}" $wanted || "${pip[@]}" --upgrade --target "$site" $wanted || return
    fi
    pwd >"$site/pared-checkout.pth"
    # Once, on all cores, rather than in each of the processes; children of the worker may not write.
    find "$site" -mindepth 1 -maxdepth 1 -newer "$OUT/.began" -print0 | xargs -0r "$python" -m compileall -q -j 0
    "$python" -m compileall -q -j 0 pared service worker migrations tests >/dev/null
    rm -f "$OUT/.began"
    echo "installed: $(echo "$wanted" | grep -c .) of $(ls .wheels/*.whl | wc -l) wheels, $SECONDS s"
}

# Args: a name, seconds, and a command. It is interrupted when its time is over, and may say then how far it came.
limited() {
    local name=$1 seconds=$2
    shift 2
    timeout --signal=INT --kill-after=20 "$seconds" "$@" 2>&1 | tee "$OUT/$name.log" | grep --line-buffered '^{"t": '
    local status=${PIPESTATUS[0]}
    echo "$name: exit status $status, $SECONDS s since the beginning"
    return "$status"
}

install >"$OUT/install.log" 2>&1
status=$?
tail -n 3 "$OUT/install.log"
[ "$status" = 0 ] || exit 1
nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used --format=csv,noheader 2>/dev/null

failed=0
for step in "${@:-test bench}"; do
    for each in $step; do
        case $each in
        test) limited test-gpu "$TEST_LIMIT_S" "$python" -m pytest tests/gpu -m gpu -q -p no:cacheprovider || failed=1 ;;
        bench) limited bench-gpu "$BENCH_LIMIT_S" "$python" benchmarks/gpu.py || failed=1 ;;
        *) echo "$each? Only test and bench." >&2; exit 2 ;;
        esac
    done
done
cp benchmarks/RESULTS.md "$OUT/"
echo "what failed:"
grep -h '^{"t": .*"ok": false' "$OUT"/test-gpu.log "$OUT"/bench-gpu.log 2>/dev/null | cut -c1-400 | head -n 20
exit "$failed"
