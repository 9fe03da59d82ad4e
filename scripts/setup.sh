# Sourced by the other scripts: installs the project into the active virtual environment, or into .venv beside it.
# Does nothing twice: a stamp in the environment remembers what was installed. $extra names a further extra of setup.py.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -x "$root/.venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$root/.venv"
    # shellcheck disable=SC1091
    . "$root/.venv/bin/activate"
fi

wanted="$(cat "$root/setup.py" "$root/constraints.txt" | cksum) $root"
stamp="$VIRTUAL_ENV/.fastv2v-installed${extra:+-$extra}"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    echo "== installing into $VIRTUAL_ENV (once, some minutes)"
    python -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "$root[docs,test${extra:+,$extra}]"
    echo "$wanted" > "$stamp"
fi
