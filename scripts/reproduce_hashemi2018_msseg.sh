#!/usr/bin/env bash
# Hashemi et al. 2018 (arXiv 1803.11078) on MSSEG 2016: losses, networks, ablations.
#   scripts/reproduce_hashemi2018_msseg.sh                           the synthetic cohort, minutes a run on two CPU cores
#   DATA=<folder> scripts/reproduce_hashemi2018_msseg.sh             MSSEG 2016 as downloaded
#   DRY_RUN=1 SCALE=full scripts/reproduce_hashemi2018_msseg.sh      the commands at the paper's scale
# Further words go to every run (trainer.device=cuda). All variables: scripts/reproduce.py.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$([ -x "$here/../.venv/bin/python" ] && echo "$here/../.venv/bin/python" || echo python3)}
"$python" -c "import tversky_seg" 2>/dev/null || { echo "error: $python: tversky_seg is not installed; run make setup" >&2; exit 2; }
exec "$python" "$here/reproduce.py" hashemi2018_msseg "$@"
