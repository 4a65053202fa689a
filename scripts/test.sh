#!/usr/bin/env bash
# [Task]: T105 [From]: specs/requirements.md
# Runs pytest with the given arguments. What fails is run once more, alone: some tests are about time,
# and a busy machine can make them fail. The log names what was retried and why.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

"$python" -m pytest -rfE "$@" | tee "$log"
status=${PIPESTATUS[0]}
# 1 says that tests failed; anything else is no matter of time.
((status == 1)) || exit "$status"
echo "Retried once, alone, because these failed:"
grep -E '^(FAILED|ERROR) ' "$log" | sed 's/^/  /'
again=()
for argument in "$@"; do
    # Neither in parallel nor measured again.
    case $argument in -n* | --dist* | --cov*) ;; *) again+=("$argument") ;; esac
done
exec "$python" -m pytest "${again[@]}" --last-failed --last-failed-no-failures=none
