#!/usr/bin/env bash
# What the painted world is worth: a guided teacher, the same one without guidance, and a part-time student of the first,
# each trained for a stated time; then one comparison that says whether the guided teacher's world-consistency
# error lies at least 30 % below the other's, and whether the student keeps at least 80 % of that gain. A blurred video is
# consistent too, so the guided teacher may also lose at most 3 % of the other's PSNR (in dB), and its Frechet distance of
# frames may lie at most 10 % above the other's.
#
#     bash scripts/world/consistency.sh DATA [RUNS] [MINUTES] [PRESET]
#
# DATA is where the procedural world goes, whose camera turns away and comes back. MINUTES (15) is what each teacher may
# take, on all cores; the student takes STUDENT_MINUTES (a variable, as much by default) in two stages. PRESET
# (world-small) is a teacher recipe; the one without guidance is the same recipe without point ids. The student is held to
# its guidance more strictly than the teacher was (GUIDANCE, 20): it sees fewer frames. Verdicts, tables and side-by-side
# videos lie in RUNS/comparison; the exit status is 1 where a verdict fails.

source "$(dirname "$0")/../story.sh"
minutes=${1:-15} preset=${2:-world-small}
spatial=$(awk "BEGIN { print 0.4 * ${STUDENT_MINUTES:-$minutes} }")
temporal=$(awk "BEGIN { print 0.6 * ${STUDENT_MINUTES:-$minutes} }")
guided=(--quiet --recipe.data.folder.guidance-levels 3)
plain=(--quiet --recipe.data.folder.guidance-levels 0)
student=("${guided[@]}" --recipe.task.objective.weights.guidance "${GUIDANCE:-20}")
run fastv2v world --out "$data" --world.size 64 128 --world.camera return --world.num-frames 48 --train-clips 8 \
    --test-clips 2 --unprojections
run fastv2v train-teacher "$preset" --data "$data" --run "$runs/guided" "${guided[@]}" \
    --recipe.train.max-minutes "$minutes"
run fastv2v train-teacher "$preset" --data "$data" --run "$runs/plain" "${plain[@]}" \
    --recipe.train.max-minutes "$minutes"
run fastv2v train-skd "$preset" --data "$data" --teacher "$runs/guided" --run "$runs/spatial" "${student[@]}" \
    --recipe.train.max-minutes "$spatial"
run fastv2v train-tkd "$preset" --data "$data" --teacher "$runs/guided" --student "$runs/spatial" \
    --run "$runs/student" "${student[@]}" --recipe.train.max-minutes "$temporal"
run fastv2v compare --teacher "$runs/guided" --plain "$runs/plain" --student "student=$runs/student" --gap 2 \
    --data "$data" --out "$runs/comparison" --world-gain 0.3 --keeps-gain 0.8 \
    --guidance-costs-psnr 0.03 --guidance-costs-fd 0.1
