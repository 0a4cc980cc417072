#!/usr/bin/env bash
# Check this project on a machine with CUDA, and write one Markdown page, targets beside figures.
#
#   scripts/gpu_check.sh [REPORT.md [OPEN_MS_DATA]] [--only NAME,NAME] [--seconds 480]
#
# Sections, by importance: steps, tests, losses, loader, prediction, convolution, run, norm, and with
# its folder pair. Each may fail alone and has a time limit of its own, in proportion to --seconds
# but not below 30, since kernels are compiled before the first figure; none begins after these.
# What a section prints goes to the page and to the terminal at once, so that nothing is lost when
# this is cut off. PYTHON names the interpreter; the project may be installed in it or be on
# PYTHONPATH.
# COMMIT names the commit where there is no git.
#
# Exit status: 0 all passed, 1 something failed (the page says what), 2 no CUDA device.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

report=gpu_check.md
data=
only=
seconds=480
positional=()
while [ $# -gt 0 ]; do
  case $1 in
    --only) only=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    *) positional+=("$1"); shift ;;
  esac
done
report=${positional[0]:-$report}
data=${positional[1]:-$data}
python=${PYTHON:-.venv/bin/python}
commit=${COMMIT:-$(git rev-parse --short HEAD 2> /dev/null)}
runs=$(mktemp -d)
failed=0
export COMMIT=$commit PYTHONUNBUFFERED=1 PYTHONPATH=${PYTHONPATH:-src}

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "error: no CUDA device; expected one" >&2
  exit 2
fi

# Print to the page and to the terminal.
write() {
  printf '%b\n' "$1" | tee -a "$report"
}

# Run a command for at most LIMIT of 480 seconds, or 30; what it prints is Markdown, or goes into a block.
#   section NAME LIMIT TITLE TARGETS text|markdown COMMAND...
section() {
  local name=$1 limit=$2 title=$3 targets=$4 kind=$5
  shift 5
  if [ -n "$only" ] && [[ ",$only," != *",$name,"* ]]; then
    return
  fi
  write "\n## $title\n"
  local left=$((seconds - SECONDS))
  if [ "$left" -lt 5 ]; then
    write "Left out: the time is over."
    return
  fi
  if [ -n "$targets" ]; then
    write "Targets: $targets\n"
  fi
  write "\`$(printf '%s ' "$@")\`\n"
  if [ "$kind" = text ]; then
    write '```'
  fi
  limit=$((limit * seconds / 480))
  limit=$((limit > 30 ? limit : 30))
  # pytest answers this signal by its summary.
  timeout --signal=INT --kill-after=10 $((limit < left ? limit : left)) "$@" 2>> "$runs/errors" | tee -a "$report"
  local status=${PIPESTATUS[0]}
  if [ "$kind" = text ]; then
    write '```'
  fi
  if [ "$status" != 0 ]; then
    failed=1
    write "\nStatus $status (124: cut off).\n\n\`\`\`"
    tail -n 12 "$runs/errors" | tee -a "$report"
    write '```'
  fi
  : > "$runs/errors"
}

# Train and evaluate by the command that users type, and say how long a step waits for data.
#   train NAME SETTING...
# shellcheck disable=SC2329
train() {
  local run=$runs/$1
  shift
  "$python" train.py trainer.device=cuda output_dir="$run" "$@" > "$runs/output" 2>&1
  local status=$?
  tail -n 25 "$runs/output"
  "$python" - "$run/timings.csv" << 'PY'
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
  return "$status"
}
export -f train
export python runs

describe() {
  "$python" - << 'PY'
import platform

import torch

print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
try:
    import triton

    print(f"triton {triton.__version__}")
except ImportError:
    print("no triton")
memory = torch.cuda.get_device_properties(0).total_memory / 2**30
print(f"{torch.cuda.get_device_name()}, {memory:.0f} GiB; Python {platform.python_version()}")
PY
}
gpu_tests=$(grep -rlE 'mark\.gpu|on_gpu' tests --include='test_*.py' | sort | tr '\n' ' ')

printf '# GPU check\n\n%s, commit %s\n\n' "$(date -u +%F)" "$commit" > "$report"
write '```'
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee -a "$report"
describe | tee -a "$report"
write '```'

section steps 190 "Training steps" \
  "bf16 2 x 128^3 at most 30 ms, compiled 20; FC-DenseNet 200; 4 x 32^3 8; peak of bf16 at most 0.55 of fp32, planned within 15 %" \
  markdown "$python" benchmarks/training_step.py --side 128 --seconds $((130 * seconds / 480))

# Several processes: most of the time goes into the compilation of kernels.
# shellcheck disable=SC2086
section tests 150 "Tests marked gpu" "all pass" \
  text "$python" -m pytest -q -m gpu -n auto --maxprocesses 8 --timeout 90 -p no:cacheprovider -p no:benchmark --tb=short -o filterwarnings=default $gpu_tests

section losses 40 "Losses" "Tversky, Dice and focal at most 0.6 ms each, forward and backward at 2 x 128^3" \
  markdown "$python" benchmarks/losses.py --device cuda --compiled

section loader 60 "Waiting for data and augmentation" \
  "a batch of 2 at 128^3: default 3 ms, strong 6, growth 6; 2 workers wait at most 3 % of the time" \
  markdown "$python" benchmarks/loader_gpu.py --seconds $((40 * seconds / 480))

section prediction 60 "Prediction" "150 x 182 x 150 by windows of 96^3 in bf16: at most 0.7 of MONAI's time" \
  markdown "$python" benchmarks/inference.py --device cuda --seconds $((35 * seconds / 480))

section convolution 30 "Convolutions" "each faster than cuDNN's, and the blocks that win are those of models/convolution_launches.py" \
  markdown "$python" benchmarks/convolution_gpu.py --seconds 20

section run 120 "Default run" "ends with status 0" \
  text bash -c 'train default'

section norm 45 "Parts of the networks" "norm and ReLU at (2, 16, 128^3) in bf16 at most 0.8 ms" \
  markdown "$python" benchmarks/networks_gpu.py

if [ -n "$data" ]; then
  section pair 120 "Real pair" "ends with status 0" \
    text bash -c "train pair data=lesjak2017 data.root='$data' trainer=quick"
fi

echo "$report"
exit $failed
