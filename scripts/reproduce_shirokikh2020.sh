#!/usr/bin/env bash
# Shirokikh et al. 2020 (arXiv 2007.10033): base and inverse-weighted losses.
#   scripts/reproduce_shirokikh2020.sh                           the synthetic cohort, minutes a run on two CPU cores
#   DATA=<folder> scripts/reproduce_shirokikh2020.sh             LiTS or LUNA16 as downloaded (DATASET=lits|luna16)
#   DRY_RUN=1 SCALE=full scripts/reproduce_shirokikh2020.sh      the commands at the paper's scale
# Further words go to every run (trainer.device=cuda). All variables: scripts/reproduce.py.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$([ -x "$here/../.venv/bin/python" ] && echo "$here/../.venv/bin/python" || echo python3)}
"$python" -c "import tversky_seg" 2>/dev/null || { echo "error: $python: tversky_seg is not installed; run make setup" >&2; exit 2; }
exec "$python" "$here/reproduce.py" shirokikh2020 "$@"
