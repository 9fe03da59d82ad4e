#!/usr/bin/env bash
# What distillation keeps: a teacher, students distilled from it and the same student alone, on one data set.
#
#     bash scripts/distillation/quality.sh DATA [RUNS] [options of the data, for every stage]
#
# Every network gets the same time: MINUTES (20) of training, half of a student's for each stage. The variables
# SEEDS ("0 1 2"), STUDENTS ("micro nano pico", judged is the first), JOBS (1, trainings at a time, each with one thread
# where there are several) and GAP (4) change what is run. Runs go on where they were stopped; RUNS/comparison is made
# anew each time. Ends with the table and with status 1 where the first student falls short of what is asked of it.

source "$(dirname "$0")/../story.sh"
minutes="${MINUTES:-20}" seeds="${SEEDS:-0 1 2}" students="${STUDENTS:-micro nano pico}" jobs="${JOBS:-1}"
gap="${GAP:-4}"
half="$(python -c "print($minutes / 2)")"
first="${students%% *}" first_seed="${seeds%% *}"
[ "$jobs" = 1 ] || export OMP_NUM_THREADS=1

run fastv2v train-teacher demo --data "$data" --run "$runs/teacher" --recipe.train.max-minutes "$minutes" "$@"
[ -d "$runs/taught" ] || run fastv2v precompute --teacher "$runs/teacher" --data "$data" --out "$runs/taught"

# One student through both stages: NAME STUDENT SEED [options that only the distilled have].
student() {
    local name="$1" preset="$2" seed="$3"
    shift 3
    local common=(--data "$data" --recipe.train.seed "$seed" --recipe.train.max-minutes "$half" --quiet)
    run fastv2v train-skd "demo:$preset" --run "$runs/$name/spatial" "${common[@]}" "$@"
    run fastv2v train-tkd demo --run "$runs/$name/temporal" --student "$runs/$name/spatial" "${common[@]}" "$@"
}

# Wait until fewer than JOBS trainings run; a failed one ends the story.
room() {
    while [ "$(jobs -pr | wc -l)" -ge "$jobs" ]; do wait -n; done
}

taught=(--teacher "$runs/teacher" --taught "$runs/taught")
groups=()
for preset in $students; do
    members=()
    for seed in $seeds; do
        [ "$preset" = "$first" ] || [ "$seed" = "$first_seed" ] || continue
        room
        student "$preset-$seed" "$preset" "$seed" "${taught[@]}" "$@" &
        members+=("$runs/$preset-$seed/temporal")
    done
    groups+=(--student "$preset=$(IFS=,; echo "${members[*]}")")
done
members=()
for seed in $seeds; do
    room
    student "alone-$seed" "$first" "$seed" "$@" &
    members+=("$runs/alone-$seed/temporal")
done
groups+=(--student "alone=$(IFS=,; echo "${members[*]}")")
while [ "$(jobs -pr | wc -l)" -gt 0 ]; do wait -n; done

run fastv2v compare --teacher "$runs/teacher" "${groups[@]}" --data "$data" --out "$runs/comparison" --gap "$gap" \
    --judge "$runs/judge.safetensors" --subject "$first" --alone alone --max-cost 0.05 \
    --within-psnr 0.3 --within-ssim 0.005 --within-vmaf 2 --within-miou 1 --no-worse-warping
