#!/usr/bin/env bash
# Builds fastqat on a bare CUDA machine, runs the whole test suite, the static report and the GPU benchmarks there: under ten minutes,
# no network. Options are those of `python -m bench.gpu_check --help`; results go to its first argument, else $OUT, else gpu_check/.
#
#   PYTHON=python3    the interpreter that has torch, triton and pytest
#   WHEELS=folder     wheels of packages that it lacks (pytest, hypothesis, pybind11, ...): used for this check only
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
if [[ -n ${WHEELS:-} ]]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$PYTHON" -m bench.gpu_check "$@"
