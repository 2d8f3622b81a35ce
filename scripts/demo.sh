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
run "$PROGRAM" render --out "$DEMO/data" --scenes 600 --seed 1 --size 128x96
run "$PROGRAM" train "$DEMO/data" --out "$DEMO/run" --model tiny --epochs 4 --batch-size 16 --lr 1e-3 \
    --lr-schedule constant --save-every 4
run "$PROGRAM" test "$DEMO/data" --model "$DEMO/run" --test-type test --out "$DEMO/test" --steps 100 \
    --batch-size 16 > "$DEMO/test.log"
cat << END

What to look at:
  $DEMO/data/CLEVR_train_000000_2.png   a scene: 600 of them, each with 1, 2 and 3 objects, are what the model learns from
  $DEMO/run/loss.png                    the loss: near 1 at first (the variance of the noise), then falling
  $DEMO/test/test_grid.png              what the model draws for the 32 label sets of $DEMO/data/test.json
  $DEMO/test/required_strip.png         noise becoming "red sphere, cyan cylinder, cyan cube" in 11 frames

This model is tiny (0.7 million parameters at 32x32) and has seen each scene four times. It has learnt the lit ground and
that a few coloured solids stand on it, but hardly which ones the labels ask for: that comes later. Train longer for it:
  $PROGRAM train $DEMO/data --out runs/small --model small --epochs 50
END
