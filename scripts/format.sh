#!/bin/sh
# clang-format with one addition: `#pragma omp` is indented like the loop it belongs to, not put at the margin.
#   scripts/format.sh FILE...            formats in place
#   scripts/format.sh --check FILE...    shows what it would change; exits 1 if anything
cd "$(dirname "$0")/.." || exit 1
formatted() {
    clang-format "$1" | awk '
        /^ *#pragma omp/ { sub(/^ */, ""); held = held $0 "\n"; next }
        held != "" {
            indent = $0
            sub(/[^ ].*/, "", indent)
            count = split(held, line, "\n")
            for (i = 1; i < count; i++) print indent line[i]
            held = ""
        }
        { print }'
}
check=
[ "$1" != --check ] || { check=1; shift; }
wrong=0
for file in "$@"; do
    new=$(mktemp "${TMPDIR:-/tmp}/ddpm-format-XXXXXX") || exit 1
    if ! formatted "$file" > "$new" || [ ! -s "$new" ]; then
        echo "$file: clang-format failed" >&2
        wrong=1
    elif ! cmp -s "$file" "$new"; then
        if [ -n "$check" ]; then
            diff -u "$file" "$new" | sed -n '1,20p'
            wrong=1
        else
            cat "$new" > "$file"
            echo "formatted $file"
        fi
    fi
    rm -f "$new"
done
exit $wrong
