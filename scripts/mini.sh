#!/bin/sh
# `make mini`: the bundled model, data/mini, made anew: renders the scenes, trains the two evaluators and the model, packs
# them, finds how to draw with them (the sweep), scores what was packed, and writes data/mini/README.md from what it finds. Hours on two cores.
#   scripts/mini.sh [data|guide|judge|train|pack|sweep|score|readme]...      these stages alone; without a name all, in this order
#   scripts/mini.sh twin        the same model trained in PyTorch for the same time, and its score (needs Python; see parity.sh)
# What is done is passed over. Stopped, the same line goes on: the model from its last checkpoint, an evaluator from its
# beginning. `pack` takes a run as it stands, also one that is being trained.
cd "$(dirname "$0")/.." || exit 1
: "${PROGRAM:=./ddpm}"
: "${DATA:=runs/iclevr}" "${GUIDE:=runs/guide}" "${JUDGE:=runs/judge}" "${RUN:=runs/mini}" "${SCORE:=runs/mini-score}" "${MINI:=data/mini}"
: "${TWIN:=runs/twin}" "${HELD:=runs/held-out}"
: "${SCENES:=6003}" "${SIZE:=160x120}" "${HELD_SCENES:=1000}"     # the data: more pixels than the 64x64 that are learned from
: "${EVALUATOR_EPOCHS:=36}" "${EVALUATOR_OPTIONS:=}"              # the evaluators
: "${STEPS:=12000}" "${TRAIN_OPTIONS:=}"                          # the model
: "${SWEEP:=runs/sweep}" "${DRAW:=}"                              # how it is drawn: DRAW, else what the sweep found
: "${SEEDS:=1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20}"  # of its score
: "${LIMIT:=14000000}"                                            # bytes of data/mini
set -e
. scripts/figures.sh
run() {
    printf '$ %s\n' "$*"
    "$@"
}
rows() { tail -n +2 "$1" | awk 'END { print NR }'; }

data() { [ -f "$DATA/train.json" ] || run "$PROGRAM" render --out "$DATA" --scenes "$SCENES" --size "$SIZE" --seed 2024; }

evaluator() { # directory, seed
    [ -f "$1/metrics.csv" ] && [ "$(rows "$1/metrics.csv")" -ge "$EVALUATOR_EPOCHS" ] ||
        run "$PROGRAM" train-evaluator "$DATA" --out "$1" --epochs "$EVALUATOR_EPOCHS" --dtype f16 --seed "$2" $EVALUATOR_OPTIONS
}
guide() { evaluator "$GUIDE" 1; }
judge() { evaluator "$JUDGE" 2; }

train() {
    if [ -f "$RUN/args.json" ]; then run "$PROGRAM" train --resume --out "$RUN"
    else
        # v: at high noise the network says x_0, which the labels tell most about; predicting the noise, it learns them late.
        run "$PROGRAM" train "$DATA" --out "$RUN" --model scripts/mini.json --pixel-unshuffle 2 --max-steps "$STEPS" \
            --batch-size 16 --lr 6e-4 --lr-schedule cosine --warmup 500 --prediction-type v_prediction --cond-drop 0.1 \
            --ema-decay 0.999 --save-every 2 --save-minutes 10 --sample-every 1000 --held-out 300 $TRAIN_OPTIONS
    fi
}

# The latest averaged weights: which epoch has the lowest loss is chance.
pack() { # beside, then in its place: a stopped one leaves the old one whole
    fresh=$MINI.tmp-$$
    trap 'rm -rf "$fresh"' EXIT
    rm -rf "$fresh"
    mkdir -p "$(dirname "$MINI")"
    run "$PROGRAM" export "$RUN/latest" --out "$fresh" --dtype f16 \
        ${DRAW:-$(cat "$SWEEP/default" 2> /dev/null || echo --sampler ddim --steps 50 --guidance 2)}
    for pair in "$GUIDE evaluator" "$JUDGE evaluator_judge"; do
        set -- $pair
        mkdir "$fresh/$2"
        cp "$1/config.json" "$1/model.safetensors" "$fresh/$2/"
    done
    readme_of "$fresh"
    bytes=$(find "$fresh" -type f -exec cat {} + | wc -c)
    if [ "$bytes" -ge "$LIMIT" ]; then
        echo "mini.sh: $MINI would have $bytes bytes, $LIMIT are the limit" >&2
        exit 1
    fi
    rm -rf "$MINI"
    mv "$fresh" "$MINI"
    trap - EXIT
    echo "$MINI: $bytes bytes"
}

sweep() { scripts/sweep.sh "$MINI" "$MINI/evaluator_judge" "$SWEEP"; }

# The usual seed, whose grid and figures the model carries (tests/test_mini.c); each other seed and label file in a folder
# of its own; the ceiling, pictures rendered from the same labels; the floor, pictures judged against the next set's
# labels; and the evaluators on scenes that nobody has trained on.
score() {
    for type in test new_test; do
        scored "$SCORE/usual" $type "$MINI" || run "$PROGRAM" test data --test-type $type --model "$MINI" --out "$SCORE/usual"
    done
    [ -f "$HELD/train.json" ] || run "$PROGRAM" render --out "$HELD" --scenes "$HELD_SCENES" --size "$SIZE" --seed 4048
    for name in evaluator evaluator_judge; do
        "$PROGRAM" eval "$HELD" --labels-file "$HELD/train.json" --evaluator "$MINI/$name" > "$SCORE/held-out-$name.txt"
    done
    for type in test new_test; do
        for seed in $SEEDS; do
            out=$SCORE/$type-$seed
            scored "$out" $type "$MINI" ||
                run "$PROGRAM" test data --test-type $type --model "$MINI" --seed "$seed" --out "$out"
        done
        [ -f "$SCORE/ceiling-$type/31.png" ] || run "$PROGRAM" render --labels-file data/$type.json --out "$SCORE/ceiling-$type" --seed 1
        "$PROGRAM" eval "$SCORE/ceiling-$type" --labels-file data/$type.json --evaluator "$MINI/evaluator_judge" > "$SCORE/ceiling-$type.txt"
        # A set a line, in brackets: the first one goes to the end.
        tr -d '\n' < data/$type.json | sed 's/^ *\[//; s/\] *$//; s/\], *\[/]\n[/g' |
            awk 'NR == 1 { first = $0; next } { printf "%s%s", NR == 2 ? "[" : ",\n", $0 } END { print ",\n" first "]" }' > "$SCORE/shifted-$type.json"
        "$PROGRAM" eval "$SCORE/$type-${SEEDS%% *}/images/$type" --labels-file "$SCORE/shifted-$type.json" \
            --evaluator "$MINI/evaluator_judge" > "$SCORE/floor-$type.txt"
    done
}

# Its settings and its time are the run's; its score is that of the same seeds.
twin() {
    [ -f "$TWIN/twin.json" ] || scripts/parity.sh tests/parity/twin.py "$RUN" "$TWIN" \
        --threads "$(value "$RUN/args.json" threads)"
    for type in test new_test; do
        for seed in $SEEDS; do
            out=$SCORE/twin-$type-$seed
            scored "$out" $type "$TWIN" || run "$PROGRAM" test data --test-type $type --model "$TWIN" --evaluator "$MINI/evaluator_judge" \
                --seed "$seed" --out "$out" ${DRAW:-$(cat "$SWEEP/default")}
        done
    done
}

# ---- the README, from what there is -------------------------------------------------------------------------------
accuracy_row() { # type: the mean of the seeds, its 95% interval, the ceiling, the floor
    scores=$(for seed in $SEEDS; do
        scored "$SCORE/$1-$seed" "$1" "$2" && figure "$SCORE/$1-$seed/results.json" "$1" accuracy_mean_of_pictures
    done || true)
    if [ -z "$scores" ]; then return; fi
    set -- "$1" $(printf '%s\n' "$scores" | mean_and_error)
    beside() { sed -n 's/^accuracy (mean of pictures): \([0-9.]*\).*/\1/p' "$SCORE/$1-$2.txt" 2> /dev/null; }
    awk -v type="$1" -v m="$2" -v e="$3" -v n="$4" -v ceiling="$(beside ceiling "$1")" -v floor="$(beside floor "$1")" 'BEGIN {
        printf "| `%s.json` | %.4f | %.4f to %.4f | %d | %s | %s |\n", type, m, m - 1.96 * e, m + 1.96 * e, n, ceiling, floor }'
}
unseen() { # model: what is known of the label sets that no training picture has
    [ -f "$DATA/train.json" ] || return 0
    results=$(for type in test new_test; do for seed in $SEEDS; do
        if scored "$SCORE/$type-$seed" $type "$1"; then echo "$SCORE/$type-$seed/results.json"; fi
    done; done)
    [ -n "$results" ] || return 0
    tr -d '\n' < "$DATA/train.json" | sed 's/\]/]\
/g' | awk '
        function sorted(text,  n, part, i, k, held, out) {
            n = split(text, part, /, */)
            for (i = 2; i <= n; i++)
                for (k = i; k > 1 && part[k] < part[k - 1]; k--) { held = part[k]; part[k] = part[k - 1]; part[k - 1] = held }
            for (i = 1; i <= n; i++) out = out part[i] ","
            return out
        }
        FILENAME == "-" {
            if (sub(/.*\[ */, "")) { sub(/ *\].*/, ""); gsub(/"/, ""); trained[sorted($0)] = 1 }
            next
        }
        FNR == 1 { sets = 0 }
        /"sets":/ { sets = 1 }
        sets && /"labels":/ { gsub(/.*:[ \t]*"|",?$/, ""); set = sorted($0) }
        sets && /"objects":/ { gsub(/[^0-9]/, ""); objects = $0 }
        sets && /"hits":/ { gsub(/[^0-9]/, ""); if (!(set in trained)) { n++; sum += $0 / objects; if (!known[set]++) different++ } }
        END {
            if (!n) print "Every label set of the two files occurs in training."
            else printf "%d of the label sets never occur in training; their pictures alone: %.4f (%d pictures).\n", different, sum / n, n
        }' - $results
}
twins_of() {
    twins=$(twin_row test; twin_row new_test)
    [ -n "$twins" ] || return 0
    cat << END

The same network, data and settings in PyTorch and diffusers, on as many threads ($(value "$TWIN/twin.json" threads)) for the same time
($(value "$TWIN/twin.json" minutes) minutes: $(value "$TWIN/twin.json" steps) steps there, $(value "$TWIN/twin.json" run_steps) in $(value "$TWIN/twin.json" run_minutes) minutes here), drawn and judged in the same way:

| label sets | accuracy of PyTorch's | 95% interval | seeds |
| --- | --- | --- | --- |
$twins
END
}
value() { awk -F '"' -v name="$2" '$2 == name { sub(/^[^:]*:[ \t]*/, ""); gsub(/[",]/, ""); print; exit }' "$1"; } # of a JSON file
held_out() { sed -n "s/^accuracy ($2): \([0-9.]*\).*interval \([0-9.]* to [0-9.]*\):.*/\1 (\2)/p" "$SCORE/held-out-$1.txt" 2> /dev/null; }
evaluator_row() { # name, directory
    echo "| \`$1\` | $(rows "$2/metrics.csv") | $(held_out "$1" 'mean of pictures') | $(held_out "$1" 'pooled objects') |"
}
twin_row() { # type
    figures=$(for seed in $SEEDS; do
        scored "$SCORE/twin-$1-$seed" "$1" "$TWIN" && figure "$SCORE/twin-$1-$seed/results.json" "$1" accuracy_mean_of_pictures
    done || true)
    [ -n "$figures" ] || return 0
    printf '%s\n' "$figures" | mean_and_error | awk -v type="$1" '{
        printf "| `%s.json` | %.4f | %.4f to %.4f | %d |\n", type, $1, $1 - 1.96 * $2, $1 + 1.96 * $2, $3 }'
}
readme_of() { # the directory to write it into
    steps=$(tail -n 1 "$RUN/metrics.csv" | cut -d, -f 1)
    hours=$(awk -F, 'NR > 1 && $3 < last { sum += last } NR > 1 { last = $3 } END { printf "%.1f", (sum + last) / 3600 }' "$RUN/timing.csv")
    cp "$RUN/loss.png" "$1/loss.png"
    rows=$(accuracy_row test "$1"; accuracy_row new_test "$1")
    {
        cat << END
# The bundled model

A diffusers directory (weights in F16) with two evaluators, made by \`make mini\`: the pictures were rendered by
\`ddpm render\`, evaluators and model trained by this program. This file was written by \`scripts/mini.sh\`.

    ./ddpm sample "red sphere, cyan cube"
    ./ddpm test --test-type new_test

Where no option says otherwise it draws with $(value "$1/scheduler/scheduler_config.json" _class_name), $(value "$1/model_index.json" num_inference_steps) steps, guidance $(value "$1/model_index.json" guidance_scale).

## How it was made

| | |
| --- | --- |
END
        for name in version data pictures parameters pixel_unshuffle batch_size lr lr_schedule warmup cond_drop ema_decay \
            snr_gamma timesteps beta_schedule prediction_type seed; do
            echo "| $name | $(value "$RUN/args.json" "$name") |"
        done
        cat << END
| steps | $steps |
| hours of training | $hours |

![loss of each step](loss.png)

## The evaluators

ResNet18 in a quarter of its width. \`evaluator\` may guide (\`--guide\`); \`evaluator_judge\`, trained from another seed,
never does: it gives every accuracy below. Held out: $HELD_SCENES scenes rendered from another seed; 95% intervals in brackets.

| | epochs | held out, mean of pictures | held out, pooled objects |
| --- | --- | --- | --- |
$(evaluator_row evaluator "$GUIDE")
$(evaluator_row evaluator_judge "$JUDGE")

## Accuracy

END
        if [ -z "$rows" ]; then echo "These weights have not been scored yet: \`scripts/mini.sh score readme\`."
        else
            cat << END
Mean of pictures by \`evaluator_judge\`, the mean over seeds with its 95% interval (1.96 standard errors of that mean).
The ceiling are pictures freshly rendered from the same labels; the floor, drawn pictures judged by another set's labels.

| label sets | accuracy | 95% interval | seeds | ceiling | floor |
| --- | --- | --- | --- | --- | --- |
$rows

$(unseen "$1")
$(twins_of "$1")
Data and evaluator are our own: these figures do not compare with those of other programs on the course's pictures.

![the 32 sets of test.json, what was missed framed in red](test_grid.png)
END
        fi
    } > "$1/README.md"
    if scored "$SCORE/usual" test "$1"; then cp "$SCORE/usual/test_grid.png" "$SCORE/usual/results.json" "$1/"; fi
}
readme() { readme_of "$MINI"; }

[ $# -gt 0 ] || set -- data guide judge train pack sweep pack score readme
for stage; do
    case $stage in
    data | guide | judge | train | pack | sweep | score | twin | readme) "$stage" ;;
    *)
        sed -n '2,7s/^# *//p' "$0" >&2
        exit 2
        ;;
    esac
done
