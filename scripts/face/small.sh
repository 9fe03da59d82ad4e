#!/usr/bin/env bash
# Faces on a CPU, in about a quarter of an hour, at 128x128.
#
#     bash scripts/face/small.sh DATA [RUNS] [more options of train-teacher]
#
# DATA is a folder with train_img/<sequence>/<frame>.jpg and train_keypoints/<sequence>/<frame>.txt, 68 lines "x,y" each.
# Runs go on where they were stopped; frames in RUNS/frames are made anew each time.

source "$(dirname "$0")/../story.sh"
run fastv2v train-teacher face-small --data "$data" --run "$runs/teacher" "$@"
run fastv2v synthesize --run "$runs/teacher" --data "$data" --out "$runs/frames" --parts --overwrite
