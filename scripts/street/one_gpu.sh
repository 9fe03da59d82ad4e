#!/usr/bin/env bash
# Street on one GPU, as the student edition of vid2vid does it: 256x128, then 512x256, then 896x448.
#
#     bash scripts/street/one_gpu.sh DATA [RUNS] [more options of train-teacher]
#
# DATA is a folder with train_A, train_B and train_inst (Cityscapes label ids 0 to 34). Watch it with
# tensorboard --logdir RUNS. Every command goes on where it was stopped.

source "$(dirname "$0")/../story.sh"
run fastv2v train-teacher street-one-gpu --data "$data" --run "$runs/256" "$@"
run fastv2v train-teacher street-one-gpu --data "$data" --run "$runs/512" --init "$runs/256" \
    --recipe.data.folder.geometry.load-size 512 --recipe.data.sampling.num-frames 6 \
    --recipe.generator.num-scales 2 --recipe.task.fixed-coarse-steps 23800 \
    --recipe.task.objective.image-discriminator.num-scales 2 \
    --recipe.task.objective.temporal-discriminator.num-scales 2 --recipe.task.rollout.chunk-frames 2 \
    --recipe.task.objective.weights.flow 5 "$@"
run fastv2v train-teacher street-one-gpu --data "$data" --run "$runs/896" --init "$runs/512" \
    --recipe.data.folder.geometry.load-size 896 --recipe.data.sampling.num-frames 6 \
    --recipe.generator.num-scales 3 --recipe.task.fixed-coarse-steps 23800 --recipe.train.optim.lr 1e-4 \
    --recipe.task.objective.image-discriminator.num-scales 3 \
    --recipe.task.objective.temporal-discriminator.num-scales 3 \
    --recipe.task.objective.weights.flow 2.5 \
    --recipe.task.rollout.chunk-frames 1 --recipe.task.rollout.gradient-checkpointing "$@"
run fastv2v train-first street --data "$data" --run "$runs/first" --recipe.data.folder.geometry.load-size 896
run fastv2v synthesize --run "$runs/896" --data "$data" --out "$runs/frames" --overwrite \
    --first-frames "$runs/first" --given-frames 2
