#!/usr/bin/env bash
# Sets up, then runs all tests: style, types, behaviour. Arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"
ruff check .
ruff format --check .
mypy
exec python -m pytest "$@"
