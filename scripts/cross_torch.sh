#!/usr/bin/env bash
# One wheel for any torch >= 2.10: build against one torch, install and test under another, then the reverse.
#   scripts/cross_torch.sh ["torch==2.13.0"] ["torch"]
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
first=${1:-torch==2.13.0}
second=${2:-torch}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

environment() { # name, torch requirement
  "${PYTHON:-python3}" -m venv "$work/$1"
  "$work/$1/bin/python" -m pip install --quiet --upgrade pip
  "$work/$1/bin/python" -m pip install --quiet "$2" "setuptools>=77" wheel numpy ninja "pybind11>=2.13" pytest hypothesis expecttest
}

build() { # name
  git -C "$root" ls-files -z | xargs -0 cp --parents --no-dereference -t "$work/src-$1"
  (cd "$work/src-$1" && FASTQAT_CUDA_ARCHS="${FASTQAT_CUDA_ARCHS:-90}" "$work/$1/bin/python" -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$work/wheel-$1" .)
}

check() { # builder, runner
  echo "wheel built against $("$work/$1/bin/python" -c 'import torch; print(torch.__version__)')," \
    "tested under $("$work/$2/bin/python" -c 'import torch; print(torch.__version__)')"
  "$work/$2/bin/python" -m pip install --quiet --force-reinstall --no-deps "$work/wheel-$1"/*.whl
  "$work/$2/bin/python" -m pip install --quiet "$work/wheel-$1"/*.whl
  # An empty folder of tests beside no source tree: what is imported is the wheel.
  rm -rf "$work/tests" && mkdir "$work/tests" && cp -r tests/ops tests/__init__.py tests/conftest.py "$work/tests/"
  (cd "$work" && "$work/$2/bin/python" -m pytest --quiet tests)
}

environment first "$first"
environment second "$second"
mkdir "$work/src-first" "$work/src-second"
build first
build second
check first second
check second first
