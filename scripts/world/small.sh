#!/usr/bin/env bash
# World-consistent vid2vid on a CPU, in about half an hour: a teacher, the same one without guidance, a student, a stream.
#
#     bash scripts/world/small.sh DATA [RUNS] [more options of train-teacher]
#
# DATA is where the procedural world goes: streets whose camera turns away and comes back, with the point of the world
# behind each pixel. Runs go on where they were stopped; frames and bundle are made anew each time.

source "$(dirname "$0")/../story.sh"
run fastv2v world --out "$data" --world.size 64 128 --world.camera return --world.num-frames 48 --train-clips 8 \
    --test-clips 2 --unprojections
run fastv2v train-teacher world-small-plain --data "$data" --run "$runs/plain" "$@"
run fastv2v train-teacher world-small --data "$data" --run "$runs/teacher" "$@"
run fastv2v train-skd world-small --data "$data" --teacher "$runs/teacher" --run "$runs/spatial"
run fastv2v train-tkd world-small --data "$data" --teacher "$runs/teacher" --student "$runs/spatial" \
    --run "$runs/temporal"
run fastv2v export --run "$runs/temporal" --data "$data" --out "$runs/world.v2v" --overwrite
run fastv2v stream --bundle "$runs/world.v2v" --data "$data" --given-frame --out "$runs/world.mp4" --overwrite
run fastv2v benchmark --data "$data" --teacher "$runs/teacher" --bundle "$runs/world.v2v" --out "$runs/benchmark"
run fastv2v synthesize --run "$runs/teacher" --data "$data" --out "$runs/frames" --parts --overwrite
