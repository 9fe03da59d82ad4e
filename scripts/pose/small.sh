#!/usr/bin/env bash
# A dancer on a CPU, in about a quarter of an hour, 192 pixels high.
#
#     bash scripts/pose/small.sh DATA [RUNS] [more options of train-teacher]
#
# DATA is a folder with train_img/<sequence>/<frame>.jpg, train_openpose/<sequence>/<frame>_keypoints.json (BODY_25) and
# train_densepose/<sequence>/<frame>_IUV.png.
# Runs go on where they were stopped; frames in RUNS/frames are made anew each time.

source "$(dirname "$0")/../story.sh"
run fastv2v train-teacher pose-small --data "$data" --run "$runs/teacher" "$@"
run fastv2v synthesize --run "$runs/teacher" --data "$data" --out "$runs/frames" --parts --overwrite
