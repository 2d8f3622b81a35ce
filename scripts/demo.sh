#!/bin/sh
# `make demo`: the whole way in under five minutes on two cores. Renders scenes to picture files, trains a tiny conditional
# model on them, draws the test label sets, and says where the pictures are and what to see in them.
set -e
cd "$(dirname "$0")/.."
: "${PROGRAM:=./ddpm}" "${DEMO:=demo}"
# Threads that wait sleep: on a machine that others use as well, spinning ones make each other several times slower.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}
start=$(date +%s)
rm -rf "$DEMO"
run "$PROGRAM" render --out "$DEMO/data" --scenes 400 --seed 1 --size 128x96
run "$PROGRAM" train "$DEMO/data" --out "$DEMO/run" --model tiny --epochs 3 --batch-size 8 --lr 2e-3
run "$PROGRAM" test "$DEMO/data" --model "$DEMO/run" --test-type test --out "$DEMO/test" --sampler ddim --steps 50 > "$DEMO/test.log"
cat << END

Done in $(($(date +%s) - start)) s. What to look at, in this order:
  $DEMO/data/*.png               rendered scenes of 1, 2 and 3 objects: what the model learned from
  $DEMO/run/loss.png             the error of the predicted noise: from 1 (knows nothing) down to about 0.03
  $DEMO/test/test_grid.png       one picture for each of the 32 label sets of $DEMO/data/test.json, row by row
  $DEMO/test/required_strip.png  "red sphere, cyan cylinder, cyan cube" coming out of noise, from left to right
The model has 0.7 M parameters and saw 450 batches of 8: expect a gray ground and small blobs, many in the colours asked
for. Clean shapes need the lab's model and hours: $PROGRAM train --help.
END
