#!/bin/sh
# `make lint`: what the compilers' warnings, clang-tidy, cppcheck and clang-format say with the repository's own settings,
# and the rules of the house that no tool knows: who includes whom, who prints, how long Part I may be.
#   scripts/lint.sh COMMAND_FILE      the compile command that the Makefile wrote
cd "$(dirname "$0")/.." || exit 1
: "${MAKE:=make}"
. scripts/report.sh
command_file=$1
missing=
for tool in clang clang-tidy cppcheck clang-format; do
    command -v $tool > /dev/null || missing="$missing $tool"
done
[ -z "$missing" ] || scripts/dependencies.sh --packages $missing || exit 1
jobs=$(getconf _NPROCESSORS_ONLN 2> /dev/null || echo 1)
own=$(ls ./*.[ch] io/*.[ch] lab/*.[ch] comm/*.[ch] cli/*.[ch] tests/*.[ch] tests/fuzz/*.[ch] examples/*.[ch] 2> /dev/null | sed 's|^\./||')
sources=$(printf '%s\n' $own | grep '\.c$' | grep -vE '^comm/(mpi|nccl)\.c$') # those two need what may not be here
library=$(printf '%s\n' $own | grep -vE '^(main\.c|cli/|tests/|examples/)')
includes=$(tr ' ' '\n' < "$command_file" | grep -A1 -E '^-(isystem|I)' | grep -v '^--$' | tr '\n' ' ')

part_one_limit=1600
parts() { # prints the length of each part of ddpm_impl.c; fails if Part I is too long
    awk -v limit=$part_one_limit '
        /^\/\* ==== Part I([^I]|$)/ { first = NR }
        /^\/\* ==== Part II/        { second = NR }
        END {
            if (!first || !second) { print "ddpm_impl.c: a marker \"/* ==== Part I\" or \"/* ==== Part II\" is missing"; exit 1 }
            printf "ddpm_impl.c: %d lines before and in Part I (at most %d), %d in Part II\n", second - 1, limit, NR - second + 1
            exit second - 1 > limit
        }' ddpm_impl.c
}

may_include() { # file -> pattern of our own headers that it may include
    case $1 in
    ddpm.h) echo 'ddpm_impl\.c' ;;
    tests/*) echo '.*\.h' ;;
    ddpm_impl.c | examples/*) echo 'ddpm\.h' ;;
    *_backend.c | *_kernels.h) echo "(ddpm|${1%%_*}_[a-z0-9_]+)\\.h" ;; # ddpm.h and its own
    bench.[ch]) echo '(ddpm|bench)\.h' ;;
    io/*) echo '(ddpm\.h|io/[a-z0-9_]+\.h)' ;;
    comm/*) echo '(ddpm\.h|comm/[a-z0-9_]+\.h)' ;;
    lab/*) echo '(ddpm\.h|(io|lab)/[a-z0-9_]+\.h)' ;;
    *) echo '.*\.h' ;; # main.c, cli/
    esac
}
include_rules() {
    wrong=0
    for file in $own; do
        [ "$file" != tests/check_grad.c ] || continue # includes the core again, in double precision
        bad=$(sed -n 's/^ *# *include *"\(.*\)".*/\1/p' "$file" | grep -vxE "$(may_include "$file")")
        [ -z "$bad" ] || { echo "$file may not include" $bad; wrong=1; }
        bad=$(grep -nE '# *include *[<"](stb|cjson)/' "$file" | grep -v '^$')
        case $file in io/* | lab/* | cli/* | tests/*) ;; *) [ -z "$bad" ] || { echo "$file: $bad: libraries are for io/ and lab/"; wrong=1; } ;; esac
    done
    return $wrong
}

silence() { # library code never prints, exits or aborts
    ! grep -nE '(^|[^a-z_0-9])(printf|vprintf|puts|putchar|perror|exit|abort)\(|fprintf\((stderr|stdout)' $library
}

columns() { ! grep -nE '^.{121,}' $own; }

# The analyzer cannot see that ddpm_fail never returns DDPM_OK: analyzer.h tells it, except where the core itself is compiled.
tidy() {
    printf '%s\n' $sources | xargs -n 1 -P "$jobs" sh -c '
        told="-include scripts/analyzer.h" checks=
        if [ "$1" = ddpm_impl.c ] || grep -q "^#define DDPM_IMPLEMENTATION" "$1"; then told= checks=-clang-analyzer-core.*; fi
        said=$(clang-tidy --quiet --checks="$checks" "$1" -- -std=c11 -D_POSIX_C_SOURCE=200809L -DFUZZ_STANDALONE -I. \
            '"$includes"' $told 2> /dev/null) || { echo "$said" | grep -E " (error|warning):"; exit 1; }' -
}
check_cpp() { # suppressed: its mistakes about arrays that a called function or an unrolled loop fills, and about memory of two uses
    cppcheck --quiet --std=c11 --language=c --enable=warning,portability,performance --inline-suppr --error-exitcode=1 \
        --suppress=missingIncludeSystem --suppress=legacyUninitvar --suppress=memleak --suppress=invalidPointerCast \
        --suppress=negativeIndex:cpu_kernels.h --suppress=uninitvar:cpu_kernels.h \
        -j "$jobs" -D_POSIX_C_SOURCE=200809L -D__GNUC__=12 -I. $sources
}

heading "House rules"
parts
check "Part I of ddpm_impl.c is at most $part_one_limit lines" parts
check "who includes whom" include_rules
check "only main.c and cli/ print or exit" silence
check "no line over 120 columns" columns
[ ! -f examples/embed.c ] || check "examples/embed.c has fewer than 60 lines" test "$(wc -l < examples/embed.c)" -lt 60
heading "Compilers"
check "gcc: no warning" "$MAKE" --no-print-directory -k CC=gcc objects
check "clang: no warning" "$MAKE" --no-print-directory -k CC=clang CFLAGS=-O0 objects
for language in "c c11" "c++ c++17"; do
    set -- $language
    check "ddpm.h as $2" sh -c "echo '#include \"ddpm.h\"' | clang -x $1 -std=$2 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I. -"
done
heading "Tools"
check "clang-tidy" tidy
check "cppcheck" check_cpp
check "clang-format (scripts/format.sh FILE mends it)" scripts/format.sh --check $own
finish
