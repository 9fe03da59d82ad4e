# Sourced by the stories: sets up, reads DATA and RUNS from the command line, and says what is run.
set -euo pipefail
story="$0"
if [ $# -lt 1 ]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$story" >&2
    exit 2
fi
data="$(realpath -m -- "$1")"
shift
runs=""
case "${1:--}" in
    -*) ;;
    *) runs="$(realpath -m -- "$1")" && shift ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
runs="${runs:-runs/$(basename "$(dirname "$story")")-$(basename "$story" .sh)}"
source scripts/setup.sh

# Run a command and show it, so that the story can be told again by hand.
run() {
    printf '\n$ %s\n' "$*" >&2
    "$@"
}
