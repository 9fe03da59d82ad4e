# Sourced by the stories of distillation, after story.sh: a teacher, what it teaches, and students in two stages.

seeds="${SEEDS:-0 1 2}" jobs="${JOBS:-1}"
first_seed="${seeds%% *}"
[ "$jobs" = 1 ] || export OMP_NUM_THREADS=1

# The teacher and its frames on disk: MINUTES [options of the data].
teacher() {
    local minutes="$1"
    shift
    run fastv2v train-teacher demo --data "$data" --run "$runs/teacher" --recipe.train.max-minutes "$minutes" "$@"
    [ -d "$runs/taught" ] || run fastv2v precompute --teacher "$runs/teacher" --data "$data" --out "$runs/taught" --flow
}

# One student through both stages, a quarter of the time for the first: NAME PRESET@GAP SEED MINUTES [options]. Options
# that only one stage knows stand in the arrays spatial_only and temporal_only.
student() {
    local name="$1" preset="${2%@*}" gap="${2#*@}" seed="$3" first second
    [[ "$2" == *@* ]] || { echo "name a student as PRESET@GAP, for example micro@3, not $2" >&2; exit 2; }
    first="$(python -c "print($4 / 4)")" second="$(python -c "print($4 * 3 / 4)")"
    shift 4
    local common=(--data "$data" --recipe.train.seed "$seed" --quiet)
    run fastv2v train-skd "demo:$preset" --run "$runs/$name/spatial" --recipe.train.max-minutes "$first" \
        "${common[@]}" "$@" "${spatial_only[@]}"
    run fastv2v train-tkd demo --run "$runs/$name/temporal" --student "$runs/$name/spatial" \
        --recipe.train.max-minutes "$second" --recipe.task.deployed-gap "$gap" "${common[@]}" "$@" "${temporal_only[@]}"
}
spatial_only=() temporal_only=()

# Wait until fewer trainings than the given number run; one that failed ends the story, whenever it did. Those that were
# started are in the array started.
started=()
until_fewer_than() {
    local pid
    while [ "${#started[@]}" -ge "$1" ] && [ "${#started[@]}" -gt 0 ]; do
        pid="${started[0]}" started=("${started[@]:1}")
        wait "$pid"
    done
}
