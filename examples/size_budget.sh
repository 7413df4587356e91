#!/usr/bin/env bash
# Fails when a model cannot be made as small as it has to be: for a step of continuous integration, and for your own shell.
#
#   examples/size_budget.sh MODEL DATA [FOLDER]
#
#   BUDGET     what may be left of the model, as `pared compress --target` takes it; file_bytes=40%
#   MAX_DROP   how much quality may be lost for it; 2%
#   PARED_URL  a pared server; without it one is started here, and ended with this script
#
# FOLDER gets the smaller model and report.html. Exit codes are those of pared: 0 the budget is met, 3 it is missed, else it failed.
set -euo pipefail

model=$1 data=$2 folder=${3:-size-budget}
mkdir -p "$folder"

if [ -z "${PARED_URL:-}" ]; then
  export PARED_DATA_DIR=${PARED_DATA_DIR:-$folder/pared-data} PARED_URL=http://127.0.0.1:${PARED_PORT:-8000}
  pared up --port "${PARED_PORT:-8000}" > "$folder/pared.log" 2>&1 &
  trap 'kill %1; wait' EXIT
  for _ in $(seq 120); do
    curl -fs "$PARED_URL/readyz" > "$folder/ready.json" && break
    kill -0 %1 2> /dev/null || { cat "$folder/pared.log" >&2; exit 1; }
    sleep 1
  done
fi

code=0
pared compress "$model" --data "$data" --target "${BUDGET:-file_bytes=40%}" --max-quality-drop "${MAX_DROP:-2%}" \
  -o "$folder/small.${model##*.}" ${EPOCHS:+--epochs "$EPOCHS"} || code=$?
case $code in
  0) echo "The budget of ${BUDGET:-file_bytes=40%} is met." ;;
  3) echo "::error title=Size budget missed::$model cannot be made as small as ${BUDGET:-file_bytes=40%} without losing more than ${MAX_DROP:-2%}." ;;
  *) echo "::error title=pared failed::pared compress ended with exit code $code." ;;
esac
if [ "$code" = 0 ] || [ "$code" = 3 ]; then
  pared report "$(pared jobs ls --quiet --limit 1)" --html "$folder/report.html"
fi
exit "$code"
