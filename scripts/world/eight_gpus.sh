#!/usr/bin/env bash
# World-consistent vid2vid at its published size, 1024x512, on eight GPUs: first frames, then videos.
#
#     bash scripts/world/eight_gpus.sh DATA [RUNS] [more options of train-teacher]
#
# DATA is a folder with train_A, train_B (Cityscapes label ids 0 to 34) and train_unprojections, as fastv2v unproject
# makes them. One clip for each GPU; on several machines, give accelerate launch their number and addresses: nothing else
# changes.

source "$(dirname "$0")/../story.sh"
# Eight clips a step: an eighth of the steps, for the recipes count in clips.
all=(accelerate launch --multi_gpu --num_processes 8 --num_machines 1 --mixed_precision no --dynamo_backend no)
batch=(--data "$data" --recipe.data.batch-size 8)
run "${all[@]}" --module fastv2v.cli train-first world --run "$runs/first" "${batch[@]}" --recipe.train.steps 37180
run "${all[@]}" scripts/train_teacher.py world --run "$runs/teacher" --first-frames "$runs/first" "${batch[@]}" \
    --recipe.train.steps 37180 --recipe.data.sampling.grow-every 7440 "$@"
run "${all[@]}" scripts/train_skd.py world --teacher "$runs/teacher" --run "$runs/spatial" "${batch[@]}" \
    --recipe.train.steps 37180
run "${all[@]}" scripts/train_tkd.py world --teacher "$runs/teacher" --student "$runs/spatial" --run "$runs/temporal" \
    "${batch[@]}" --recipe.train.steps 37180
run fastv2v export --run "$runs/temporal" --data "$data" --out "$runs/world.v2v" --overwrite
run fastv2v stream --bundle "$runs/world.v2v" --data "$data" --given-frame --out "$runs/world.mp4" --overwrite
run fastv2v benchmark --data "$data" --teacher "$runs/teacher" --bundle "$runs/world.v2v" --out "$runs/benchmark"
