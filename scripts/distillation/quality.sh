#!/usr/bin/env bash
# What distillation keeps: a teacher, students distilled from it and the same student alone, on one data set.
#
#     bash scripts/distillation/quality.sh DATA [RUNS] [options of the data, for every stage]
#
# Every network gets the same time: MINUTES (20) of training, a quarter of a student's for the spatial stage. The variables
# SEEDS ("0 1 2"), STUDENTS ("micro@3 nano@3 pico@4": presets and how far apart their keyframes lie; judged is the first)
# and JOBS (1, trainings at a time, each with one thread where there are several) change what is run. Runs go on where
# they were stopped; RUNS/comparison is made anew each time. Ends with the table and with status 1 where the first student
# falls short of what is asked of it.

source "$(dirname "$0")/../story.sh"
source scripts/distillation/students.sh
minutes="${MINUTES:-20}" students="${STUDENTS:-micro@3 nano@3 pico@4}"
first="${students%% *}"
gap_of_first="${first#*@}"
for one in $students; do
    [[ "$one" == ?*@[1-9]* ]] || { echo "STUDENTS names PRESET@GAP, for example micro@3, not $one" >&2; exit 2; }
done

teacher "$minutes" "$@"
groups=()
for one in $students; do
    members=()
    for seed in $seeds; do
        [ "$one" = "$first" ] || [ "$seed" = "$first_seed" ] || continue
        until_fewer_than "$jobs"
        student "${one/@/-}-$seed" "$one" "$seed" "$minutes" --teacher "$runs/teacher" --taught "$runs/taught" "$@" &
        started+=("$!")
        members+=("$runs/${one/@/-}-$seed/temporal")
    done
    groups+=(--student "${one/@/-}@${one#*@}=$(IFS=,; echo "${members[*]}")")
done
members=()
for seed in $seeds; do
    until_fewer_than "$jobs"
    student "alone-$seed" "$first" "$seed" "$minutes" "$@" &
    started+=("$!")
    members+=("$runs/alone-$seed/temporal")
done
groups+=(--student "alone@$gap_of_first=$(IFS=,; echo "${members[*]}")")
until_fewer_than 1

run fastv2v compare --teacher "$runs/teacher" "${groups[@]}" --data "$data" --out "$runs/comparison" \
    --judge "$runs/judge.safetensors" --subject "${first/@/-}" --alone alone --max-cost 0.05 \
    --within-psnr 0.3 --within-ssim 0.005 --within-vmaf 2 --within-miou 1 --no-worse-warping
