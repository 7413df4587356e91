#!/usr/bin/env bash
# Makes the first change that CONTRIBUTING.md describes, line by line, in a copy of the checkout; set-up aside, it must
# take less than five minutes. The copy uses the checkout's .venv where that is up to date, else it sets up its own.
set -euo pipefail

limit_s=300
root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

git -C "$root" ls-files -z --cached --others --exclude-standard |
    tar -C "$root" --null --files-from=- --ignore-failed-read -cf - | tar -C "$copy" -xf -
cd "$copy"

stamp=.venv/.dev-$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1) # as in the Makefile
if [ -e "$root/$stamp" ]; then
    ln -s "$root/.venv" .venv
else
    make fix
    echo "Set up in $SECONDS s."
fi

mapfile -t steps < <(awk '/^## /{ours = $0 == "## A first change"} ours && /^```/{inside = $0 == "```bash"; next} ours && inside' CONTRIBUTING.md)
[ "${#steps[@]}" -gt 0 ] || { echo "CONTRIBUTING.md has no bash block under \"A first change\"." >&2; exit 1; }

SECONDS=0
for step in "${steps[@]}"; do
    echo "[$SECONDS s] $step"
    ((SECONDS < limit_s)) && timeout "$((limit_s - SECONDS))" bash -euo pipefail -c "$step" ||
        { echo "After $SECONDS s of $limit_s s this step failed or was too slow: $step" >&2; exit 1; }
done
echo "Changed, linted and tested in $SECONDS s."
