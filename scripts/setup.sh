# Sourced by the other scripts: makes the project installed in the active virtual environment, or in .venv beside it.
# Does nothing twice: a stamp in the environment remembers what was installed.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    # shellcheck disable=SC1091
    . .venv/bin/activate
fi

wanted="$(cat setup.py constraints.txt | cksum) $root"
stamp="$VIRTUAL_ENV/.fastv2v-installed"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    echo "== installing into $VIRTUAL_ENV"
    python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
    echo "$wanted" > "$stamp"
fi
