#!/bin/sh
# `make demo`: the bundled model at work, in under two minutes on two cores with the build: draws the 32 label sets of
# data/test.json, has them scored, renders the same sets for comparison, and writes one page about it all.
set -e
cd "$(dirname "$0")/.."
: "${PROGRAM:=./ddpm}" "${DEMO:=demo}" "${MODEL:=data/mini}" "${DRAW:=}" # DRAW: more options of ddpm test
. scripts/figures.sh
run() {
    printf '\n$ %s\n' "$*" >&2
    "$@"
}
accuracy_of() { grep '^accuracy' "$DEMO/$1.log"; }
rm -rf "$DEMO"
mkdir -p "$DEMO"
run "$PROGRAM" test --test-type test --model "$MODEL" --out "$DEMO/drawn" $DRAW > "$DEMO/drawn.log"
accuracy_of drawn
run "$PROGRAM" render --labels-file data/test.json --out "$DEMO/rendered" --seed 1
run "$PROGRAM" eval --images "$DEMO/rendered" --labels-file data/test.json --evaluator "$MODEL/evaluator_judge" \
    --grid "$DEMO/rendered_grid.png" > "$DEMO/rendered.log"
accuracy_of rendered
run "$PROGRAM" report "$DEMO/drawn" --out "$DEMO/report.html" --title "What the bundled model draws"
rounded() { printf "%.$2f" "$(figure "$DEMO/drawn/results.json" test "$1")"; }
cat << END

$(rounded accuracy_mean_of_pictures 3) of what the labels ask for is in the drawn pictures (mean of 32 pictures), $(rounded seconds_a_picture 2) s each.
Look at:
  $DEMO/drawn/test_grid.png        what the model draws for the 32 label sets; a red frame: the judge misses an object
  $DEMO/rendered_grid.png          the same label sets rendered: what the model learned from
  $DEMO/drawn/required_strip.png   noise becoming "red sphere, cyan cylinder, cyan cube" in 11 frames
  $DEMO/report.html                all of it on one page, with a slider through the denoising
Draw what you like:   $PROGRAM sample "green cube, yellow sphere" --n 4 --out four.png
END
