#!/usr/bin/env bash
# On a CUDA machine: run the gpu tests, train the default and (with its folder) the real pair, measure steps; one Markdown file.
#   scripts/gpu_check.sh docs/benchmarks/gpu.md [<open_ms_data>]
set -uo pipefail
cd "$(dirname "$0")/.."
report=${1:-gpu_check.md} data=${2:-} python=${PYTHON:-.venv/bin/python}
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "error: no CUDA device; expected one" >&2; exit 2; }
runs=$(mktemp -d) failed=0
section() { printf '\n## %s\n\n' "$1" >> "$report"; }
block() { # a command and the end of what it says
  printf '```\n$ %s\n' "$*" >> "$report"
  "$@" > "$runs/said" 2>&1; local status=$?
  tail -n 25 "$runs/said" >> "$report"
  printf 'status %s\n```\n' "$status" >> "$report"
  [ "$status" = 0 ] || [ "$status" = 5 ] || failed=1   # 5: no test of that kind
}
waits() { # seconds a step waits for data, and takes, at the end of a run
  "$python" - "$1/timings.csv" >> "$report" <<'PY'
import csv, sys
rows = [(row["name"], float(row["value"])) for row in csv.DictReader(open(sys.argv[1]))]
wait, step = (sorted(v for n, v in rows if n == name) for name in ("data_wait_s", "step_s"))
wait, step = wait[len(wait) // 2], step[len(step) // 2]
print(f"\nMedian step {step:.4f} s, waiting for data {wait:.4f} s: {wait / (wait + step):.1%} of the time.")
PY
}
printf '# GPU check\n\n%s, commit %s\n\n```\n%s\n```\n' "$(date -u +%F)" "$(git rev-parse --short HEAD 2>/dev/null)" "$(nvidia-smi -L 2>/dev/null)" > "$report"
section "Tests"; block "$python" -m pytest -q -m gpu
section "Steps"; "$python" benchmarks/training_step.py --side 128 --steps 20 >> "$report" 2> "$runs/said" || { cat "$runs/said" >> "$report"; failed=1; }
section "Default run"; block "$python" train.py trainer.device=cuda output_dir="$runs/default"; waits "$runs/default"
if [ -n "$data" ]; then
  section "Real pair"; block "$python" train.py data=lesjak2017 data.root="$data" trainer=quick trainer.device=cuda output_dir="$runs/pair"; waits "$runs/pair"
fi
echo "$report"
exit $failed
