#!/usr/bin/env bash
# World-consistent vid2vid on one GPU, at 512x256 with half the widths.
#
#     bash scripts/world/one_gpu.sh DATA [RUNS] [more options of train-teacher]
#
# DATA is a folder with train_A, train_B (Cityscapes label ids 0 to 34) and train_unprojections, as fastv2v unproject
# makes them. Watch it with tensorboard --logdir RUNS. Every command goes on where it was stopped.

source "$(dirname "$0")/../story.sh"
half=(--recipe.data.folder.geometry.size 256 512)
run fastv2v train-first world --data "$data" --run "$runs/first" "${half[@]}" --recipe.generator.finest-width 64
run fastv2v train-teacher world --data "$data" --run "$runs/teacher" --first-frames "$runs/first" "${half[@]}" \
    --recipe.generator.max-width 512 --recipe.generator.flow-scale 20 "$@"
run fastv2v train-skd world --data "$data" --teacher "$runs/teacher" --run "$runs/spatial" "${half[@]}"
run fastv2v train-tkd world --data "$data" --teacher "$runs/teacher" --student "$runs/spatial" \
    --run "$runs/temporal" "${half[@]}"
run fastv2v export --run "$runs/temporal" --data "$data" --out "$runs/world.v2v" --overwrite
run fastv2v stream --bundle "$runs/world.v2v" --data "$data" --given-frame --out "$runs/world.mp4" --overwrite
run fastv2v benchmark --data "$data" --teacher "$runs/teacher" --bundle "$runs/world.v2v" --out "$runs/benchmark"
