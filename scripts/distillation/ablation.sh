#!/usr/bin/env bash
# What each term of distillation does: the same student with one thing more or less, on one data set.
#
#     bash scripts/distillation/ablation.sh DATA [RUNS] [options of the data, for every stage]
#
# The teacher gets TEACHER_MINUTES (10), every student MINUTES (6), a quarter for the spatial stage; STUDENT (micro@3),
# SEEDS ("0 1 2") and JOBS (1) as in quality.sh, whose teacher is used where RUNS has one. Runs go on where they were
# stopped.

source "$(dirname "$0")/../story.sh"
source scripts/distillation/students.sh
minutes="${MINUTES:-6}" student="${STUDENT:-micro@3}"

teacher "${TEACHER_MINUTES:-10}" "$@"
groups=()

# One row of the table, over all seeds: NAME [options of both stages].
row() {
    local name="$1" seed members=()
    shift
    for seed in $seeds; do
        until_fewer_than "$jobs"
        student "ablation/$name-$seed" "$student" "$seed" "$minutes" "$@" &
        started+=("$!")
        members+=("$runs/ablation/$name-$seed/temporal")
    done
    groups+=(--student "$name@${student#*@}=$(IFS=,; echo "${members[*]}")")
    spatial_only=() temporal_only=()
}
weight=--recipe.task.weights.kd
live=(--teacher "$runs/teacher")
cached=("${live[@]}" --taught "$runs/taught")

row whole "${cached[@]}" "$@"
row alone "$@"
temporal_only=($weight-contrast 0)
row without-contrast "${cached[@]}" "$@"
temporal_only=($weight-contrast 0 --recipe.task.objective.weights.contrast 8)
row contrast-of-real "${cached[@]}" "$@"
row without-perceptual "${cached[@]}" $weight-perceptual 0 "$@"
temporal_only=($weight-temporal 0.5)
row with-temporal "${cached[@]}" "$@"
temporal_only=($weight-flow 1)
row with-flow "${cached[@]}" "$@"
row with-features "${live[@]}" $weight-features 1 "$@"
row with-alignment "${live[@]}" $weight-alignment 1 "$@"
row masked-by-motion "${cached[@]}" --recipe.task.mask motion "$@"
row without-lead-in "${cached[@]}" --recipe.task.lead-in 0 "$@"
row without-worn-starts "${cached[@]}" --recipe.task.rollout.start-from-worn 0 "$@"
until_fewer_than 1

run fastv2v compare --teacher "$runs/teacher" "${groups[@]}" --data "$data" --out "$runs/ablation/comparison" \
    --judge "$runs/judge.safetensors"
