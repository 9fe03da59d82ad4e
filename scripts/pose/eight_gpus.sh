#!/usr/bin/env bash
# A dancer at vid2vid's full size on eight GPUs: 256, 512, then 1024 pixels high.
#
#     bash scripts/pose/eight_gpus.sh DATA [RUNS] [more options of train-teacher]
#
# DATA is a folder with train_img/<sequence>/<frame>.jpg, train_openpose/<sequence>/<frame>_keypoints.json (BODY_25) and
# train_densepose/<sequence>/<frame>_IUV.png. Three or four minutes of one person are enough.

source "$(dirname "$0")/../story.sh"
train() {
    local preset="$1"
    shift
    run accelerate launch --multi_gpu --num_processes 8 --num_machines 1 --mixed_precision no --dynamo_backend no \
        scripts/train_teacher.py "$preset" --data "$data" --recipe.data.batch-size 8 --recipe.train.steps 3750 "$@"
}
train pose --run "$runs/256" --recipe.data.sampling.grow-every 1875 "$@"
train pose-512 --run "$runs/512" --init "$runs/256" --recipe.data.sampling.grow-every 1875 \
    --recipe.task.fixed-coarse-steps 1125 "$@"
train pose-1024 --run "$runs/1024" --init "$runs/512" --recipe.data.sampling.grow-every 1875 \
    --recipe.task.fixed-coarse-steps 1125 --recipe.task.rollout.gradient-checkpointing "$@"
run fastv2v synthesize --run "$runs/1024" --data "$data" --out "$runs/frames" --given-frames 0 --overwrite
