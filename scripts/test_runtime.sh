#!/usr/bin/env bash
# Tests the runtime where there is nothing but numpy, OpenCV, one engine and the test tools: no torch, no onnx.
# The first argument names the engine, onnxruntime (default) or openvino; what follows goes to pytest.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
engine="${1:-onnxruntime}"
shift || true
place="$root/.venv-runtime-$engine"

if [ ! -e "$place/.complete" ]; then
    echo "== making $place (once)"
    "${PYTHON:-python3}" -m venv --clear "$place"
    "$place/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt \
        numpy opencv-python-headless "$engine" pytest hypothesis
    touch "$place/.complete"
fi
PYTHONPATH="$root" exec "$place/bin/python" -m pytest -p no:cacheprovider \
    tests/test_runtime.py tests/test_runtime_sources.py tests/test_schema.py \
    tests/test_fill.py tests/test_extrapolate.py tests/test_keyframes.py "$@"
