#!/usr/bin/env bash
# Street at vid2vid's full size on eight GPUs: 512x256, then 1024x512, then 2048x1024.
#
#     bash scripts/street/eight_gpus.sh DATA [RUNS] [more options of train-teacher]
#
# DATA is a folder with train_A, train_B and train_inst (Cityscapes label ids 0 to 34). One clip for each GPU; on
# several machines, give accelerate launch their number and addresses: nothing else changes.

source "$(dirname "$0")/../story.sh"
# Eight clips a step: an eighth of the steps, for the recipes count in clips.
train() {
    local preset="$1" steps="$2"
    shift 2
    run accelerate launch --multi_gpu --num_processes 8 --num_machines 1 --mixed_precision no --dynamo_backend no \
        scripts/train_teacher.py "$preset" --data "$data" --recipe.data.batch-size 8 --recipe.train.steps "$steps" "$@"
}
train street 7440 --run "$runs/512" --recipe.data.sampling.grow-every 1860 "$@"
train street-1024 7440 --run "$runs/1024" --init "$runs/512" --recipe.data.sampling.grow-every 744 \
    --recipe.task.fixed-coarse-steps 3720 "$@"
train street-2048 3720 --run "$runs/2048" --init "$runs/1024" --recipe.data.sampling.grow-every 372 \
    --recipe.task.fixed-coarse-steps 1860 --recipe.task.rollout.gradient-checkpointing "$@"
run fastv2v synthesize --run "$runs/2048" --data "$data" --out "$runs/frames" --overwrite
