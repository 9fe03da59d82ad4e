#!/usr/bin/env bash
# What distillation keeps: a teacher, students distilled from it and the same student alone, on one data set.
#
#     bash scripts/distillation/quality.sh DATA [RUNS] [options of the data, for every stage]
#
# Every network gets the same time: MINUTES (20) of training, a quarter of a student's for the spatial stage. The variables
# SEEDS ("0 1 2"), STUDENTS ("micro nano pico", judged is the first), JOBS (1, trainings at a time, each with one thread
# where there are several) and GAP (4) change what is run. Runs go on where they were stopped; RUNS/comparison is made
# anew each time. Ends with the table and with status 1 where the first student falls short of what is asked of it.

source "$(dirname "$0")/../story.sh"
source scripts/distillation/students.sh
minutes="${MINUTES:-20}" students="${STUDENTS:-micro nano pico}"
first="${students%% *}"

teacher "$minutes" "$@"
groups=()
for preset in $students; do
    members=()
    for seed in $seeds; do
        [ "$preset" = "$first" ] || [ "$seed" = "$first_seed" ] || continue
        until_fewer_than "$jobs"
        student "$preset-$seed" "$preset" "$seed" "$minutes" --teacher "$runs/teacher" --taught "$runs/taught" "$@" &
        started+=("$!")
        members+=("$runs/$preset-$seed/temporal")
    done
    groups+=(--student "$preset=$(IFS=,; echo "${members[*]}")")
done
members=()
for seed in $seeds; do
    until_fewer_than "$jobs"
    student "alone-$seed" "$first" "$seed" "$minutes" "$@" &
    started+=("$!")
    members+=("$runs/alone-$seed/temporal")
done
groups+=(--student "alone=$(IFS=,; echo "${members[*]}")")
until_fewer_than 1

run fastv2v compare --teacher "$runs/teacher" "${groups[@]}" --data "$data" --out "$runs/comparison" --gap "$gap" \
    --judge "$runs/judge.safetensors" --subject "$first" --alone alone --max-cost 0.05 \
    --within-psnr 0.3 --within-ssim 0.005 --within-vmaf 2 --within-miou 1 --no-worse-warping
