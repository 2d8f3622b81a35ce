#!/bin/sh
# Types the commands of docs/guide.md (its fenced sh blocks) in their order, in a folder of their own, at a small size, and
# then looks for every file that its text names as `runs/...`. `make check-long` calls it; alone: scripts/guide.sh [GUIDE.md]
# GUIDE_DIR=DIR keeps what was made there.
#
# The small size, as sed makes it of the commands: the tiny model at 16x16, a few epochs, steps and pictures.
cd "$(dirname "$0")/.." || exit 1
: "${PROGRAM:=./ddpm}" "${CC:=cc}"
guide=${1:-docs/guide.md}
root=$(pwd)
case $PROGRAM in /*) ;; *) PROGRAM=$root/$PROGRAM ;; esac
case $guide in /*) ;; *) guide=$root/$guide ;; esac
if [ -n "${GUIDE_DIR:-}" ]; then
    mkdir -p "$GUIDE_DIR" || exit 1
else
    GUIDE_DIR=$(mktemp -d "${TMPDIR:-/tmp}/ddpm-guide-XXXXXX") || exit 1
    trap 'rm -rf "$GUIDE_DIR"' EXIT
    trap 'exit 1' INT TERM
fi

# Commands continued with a backslash become one line first.
commands=$GUIDE_DIR/commands.sh
awk '/^```sh$/ { inside = 1; next } /^```/ { inside = 0 } inside' "$guide" |
    sed -e ':join' -e '/\\$/{N;s/\\\n *//;b join' -e '}' \
        -e 's|ddpm render |&--size 32x24 |' \
        -e 's/--scenes [0-9]*/--scenes 90/' \
        -e 's/ --resolution [0-9x]*//' \
        -e 's/--model \(lab\|small\|tiny\)/--model tiny --resolution 16/' \
        -e 's/train-evaluator [^ ]*/& --width 0.0625 --resolution 16 --held-out 9/' \
        -e 's/--epochs [0-9]*/--epochs 2/' \
        -e 's/--max-time 60$/--max-time 0.03/' \
        -e 's/--steps [0-9]*/--steps 4/' \
        -e 's/--held-out 300/--held-out 8/' \
        -e 's/--sample-every [0-9]*/--sample-every 4/' \
        -e 's/--n [0-9]*/--n 3/' > "$commands"
count=$(grep -c ddpm "$commands")
[ "$count" -gt 0 ] || { echo "$guide: no commands found" >&2; exit 1; }

cd "$GUIDE_DIR" || exit 1
ln -sf "$PROGRAM" ddpm
for name in data examples ddpm.h ddpm_impl.c; do ln -sfn "$root/$name" "$name"; done
sh -eux commands.sh
status=$?
[ $status = 0 ] || { echo "$guide: the last command above failed with status $status" >&2; exit 1; }

missing=0
for path in $(grep -o '`runs/[^` ]*`' "$guide" | tr -d '`' | grep -vx 'runs/\.\.\.'); do
    [ -e "$path" ] || { echo "$guide names $path, which its commands do not make" >&2; missing=1; }
done
[ $missing = 0 ] && echo "$count commands of $guide, and the files it names"
