#!/usr/bin/env bash
# Sets up, then runs the whole line: data, teacher, spatial and temporal distillation, export, stream, benchmark, page.
#   bash scripts/demo.sh                    on the procedural street world
#   bash scripts/demo.sh --data FOLDER      on frames and label maps of your own
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec fastv2v demo "$@"
