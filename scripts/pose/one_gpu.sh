#!/usr/bin/env bash
# A dancer on one GPU: 256 pixels high, then 512 by a second scale with a discriminator of faces.
#
#     bash scripts/pose/one_gpu.sh DATA [RUNS] [more options of train-teacher]
#
# DATA is a folder with train_img/<sequence>/<frame>.jpg, train_openpose/<sequence>/<frame>_keypoints.json (BODY_25) and
# train_densepose/<sequence>/<frame>_IUV.png. Three or four minutes of one person are enough.

source "$(dirname "$0")/../story.sh"
run fastv2v train-teacher pose --data "$data" --run "$runs/256" --recipe.generator.width 64 "$@"
run fastv2v train-teacher pose-512 --data "$data" --run "$runs/512" --init "$runs/256" --recipe.generator.width 64 "$@"
run fastv2v synthesize --run "$runs/512" --data "$data" --out "$runs/frames" --given-frames 0 --overwrite
