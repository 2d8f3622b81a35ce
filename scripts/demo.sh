#!/bin/sh
# `make demo`: the whole way in under five minutes on two cores: renders scenes to picture files, trains a tiny conditional
# model on them, draws the test label sets, and says where the pictures are and what to see.
set -e
cd "$(dirname "$0")/.."
: "${PROGRAM:=./ddpm}" "${DEMO:=demo}"
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}
rm -rf "$DEMO"
run "$PROGRAM" render --out "$DEMO/data" --scenes 400 --seed 1 --size 128x96
run "$PROGRAM" train "$DEMO/data" --out "$DEMO/run" --model tiny --epochs 3 --batch-size 16
run "$PROGRAM" test "$DEMO/data" --model "$DEMO/run" --test-type test --out "$DEMO/test" --sampler ddim --steps 50
cat << END

What to look at:
  $DEMO/data/           rendered scenes with 1, 2 and 3 objects: what the model learns from
  $DEMO/run/metrics.csv the loss of every epoch: it starts near 1 (the variance of the noise) and falls
$(find "$DEMO/test" "$DEMO/run" -name '*.png' ! -path '*/images/*' | sort | head -n 8 | sed 's/^/  /')
  The model is tiny and saw three epochs: expect the gray ground and blobs in the right colours, not yet clean shapes.
END
