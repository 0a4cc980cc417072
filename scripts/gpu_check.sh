#!/usr/bin/env bash
# Check this project on a machine with CUDA, and write the results as one Markdown page:
# the gpu tests, the time of training steps, the default run and, with its folder, the real pair.
#
#   scripts/gpu_check.sh docs/benchmarks/gpu.md [<open_ms_data>]
#
# Exit status: 0 all passed, 1 something failed (the page says what), 2 no CUDA device.
set -uo pipefail
cd "$(dirname "$0")/.."
report=${1:-gpu_check.md}
data=${2:-}
python=${PYTHON:-.venv/bin/python}
runs=$(mktemp -d)
failed=0

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "error: no CUDA device; expected one" >&2
  exit 2
fi

section() {
  printf '\n## %s\n\n' "$1" >> "$report"
}

# Run a command; write it and the end of its output.
run() {
  printf '```\n$ %s\n' "$*" >> "$report"
  "$@" > "$runs/output" 2>&1
  local status=$?
  tail -n 25 "$runs/output" >> "$report"
  printf 'status %s\n```\n' "$status" >> "$report"
  # Status 5 of pytest: there is no test of that kind.
  if [ "$status" != 0 ] && [ "$status" != 5 ]; then
    failed=1
  fi
}

# Write the median time of a run's steps, and how much of it they wait for data.
step_times() {
  "$python" - "$1/timings.csv" >> "$report" <<'PY'
import csv
import statistics
import sys

seconds = {"data_wait_s": [], "step_s": []}
with open(sys.argv[1], encoding="utf-8") as file:
    for row in csv.DictReader(file):
        if row["name"] in seconds:
            seconds[row["name"]].append(float(row["value"]))
wait = statistics.median_high(seconds["data_wait_s"])
step = statistics.median_high(seconds["step_s"])
share = wait / (wait + step)
print(f"\nMedian step {step:.4f} s, waiting for data {wait:.4f} s: {share:.1%} of the time.")
PY
}

commit=$(git rev-parse --short HEAD 2> /dev/null)
printf '# GPU check\n\n%s, commit %s\n\n' "$(date -u +%F)" "$commit" > "$report"
printf '```\n%s\n```\n' "$(nvidia-smi -L 2> /dev/null)" >> "$report"

section "Tests"
run "$python" -m pytest -q -m gpu

section "Steps"
# This script prints Markdown.
if ! "$python" benchmarks/training_step.py --side 128 --steps 20 >> "$report" 2> "$runs/output"; then
  cat "$runs/output" >> "$report"
  failed=1
fi

section "Default run"
run "$python" train.py trainer.device=cuda output_dir="$runs/default"
step_times "$runs/default"

if [ -n "$data" ]; then
  section "Real pair"
  run "$python" train.py data=lesjak2017 data.root="$data" trainer=quick trainer.device=cuda \
    output_dir="$runs/pair"
  step_times "$runs/pair"
fi

echo "$report"
exit $failed
