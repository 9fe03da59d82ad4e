#!/usr/bin/env bash
# Street on a CPU, in about half an hour: two scales, all Cityscapes classes, instance borders, movable foreground.
#
#     bash scripts/street/small.sh DATA [RUNS] [more options of train-teacher]
#
# DATA is a folder with train_A, train_B and train_inst (label ids 0 to 34), or a JSON file that lists its sequences.
# Runs go on where they were stopped; frames in RUNS/frames are made anew each time.

source "$(dirname "$0")/../story.sh"
run fastv2v train-teacher street-small --data "$data" --run "$runs/coarse" "$@"
run fastv2v train-teacher street-small-2 --data "$data" --run "$runs/fine" --init "$runs/coarse" "$@"
run fastv2v synthesize --run "$runs/fine" --data "$data" --out "$runs/frames" --parts --overwrite
