#!/usr/bin/env bash
# Faces at vid2vid's full size, 512x512, on eight GPUs: one clip for each.
#
#     bash scripts/face/eight_gpus.sh DATA [RUNS] [more options of train-teacher]
#
# DATA is a folder with train_img/<sequence>/<frame>.jpg and train_keypoints/<sequence>/<frame>.txt, 68 lines "x,y" each.

source "$(dirname "$0")/../story.sh"
run accelerate launch --multi_gpu --num_processes 8 --num_machines 1 --mixed_precision no --dynamo_backend no \
    scripts/train_teacher.py face --data "$data" --run "$runs/512" --recipe.data.batch-size 8 \
    --recipe.train.steps 3520 --recipe.data.sampling.grow-every 440 "$@"
run fastv2v synthesize --run "$runs/512" --data "$data" --out "$runs/frames" --overwrite
