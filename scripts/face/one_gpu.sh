#!/usr/bin/env bash
# Faces on one GPU: 256x256, then 512x512 by a second scale.
#
#     bash scripts/face/one_gpu.sh DATA [RUNS] [more options of train-teacher]
#
# DATA is a folder with train_img/<sequence>/<frame>.jpg and train_keypoints/<sequence>/<frame>.txt, 68 lines "x,y" each.

source "$(dirname "$0")/../story.sh"
run fastv2v train-teacher face-one-gpu --data "$data" --run "$runs/256" "$@"
run fastv2v train-teacher face-one-gpu --data "$data" --run "$runs/512" --init "$runs/256" \
    --recipe.data.folder.geometry.load-size 512 --recipe.data.sampling.num-frames 8 \
    --recipe.data.sampling.grow-every 1408 --recipe.generator.num-scales 2 --recipe.task.fixed-coarse-steps 3520 \
    --recipe.task.objective.image-discriminator.num-scales 3 \
    --recipe.task.objective.temporal-discriminator.num-scales 3 --recipe.task.rollout.chunk-frames 2 \
    --recipe.task.objective.weights.flow 5 "$@"
run fastv2v synthesize --run "$runs/512" --data "$data" --out "$runs/frames" --overwrite
