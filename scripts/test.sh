#!/bin/sh
# `make test`: every check that is fast. Builds and runs the test programs plain and under sanitizers, replays the fuzz
# inputs, and compiles what a reader would compile by hand. The last line is `N passed, N failed`.
cd "$(dirname "$0")/.." || exit 1
: "${CC:=cc}" "${BUILD:=build}" "${COMPILER:=cc}" "${MAKE:=make}"
. scripts/report.sh
# Threads that wait sleep: on a busy machine spinning ones make each other several times slower.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
build() { # goes on after an error so that the rest is tested too
    "$MAKE" --no-print-directory -k "$@"
}
sources=$(ls tests/test_*.c 2> /dev/null)
fuzzers=$(ls tests/fuzz/fuzz_*.c 2> /dev/null)

programs() { # where VARIANT $1 has the programs of sources $2...
    directory=$BUILD/$COMPILER$1
    shift
    for source in "$@"; do echo "$directory/${source%.c}"; done
}

# Makes $1 look like an installed NCCL: the header that is here, and a library of the names that comm/nccl.c calls, so that
# linking can be checked where no GPU is. Fails if there is no header.
nccl_names() {
    for header in "${NCCL_HOME:-}/include" /usr/include /usr/local/include /usr/local/cuda/include; do
        [ -f "$header/nccl.h" ] || continue
        mkdir -p "$1/include" "$1/lib"
        cp "$header/nccl.h" "$1/include"
        grep -o 'nccl[A-Z][A-Za-z]*(' comm/nccl.c | sort -u | sed 's/(/(void) { return 0; }/; s/^/int /' |
            $CC -w -x c -shared -fPIC -Wl,-soname,libnccl.so.2 - -o "$1/lib/libnccl.so.2"
        return
    done
    return 1
}

# In sight, because it may install packages.
"$MAKE" --no-print-directory flags || { note_failure "dependencies are missing"; finish; }
openmp=$(sed -n 's/^OPENMP := //p' "$BUILD/$COMPILER/test-dependencies.mk")

heading "Headers and the one-line program ($CC)"
for compiler in $CC gcc clang; do
    if ! command -v "$compiler" > /dev/null; then
        skip "ddpm.h with $compiler" "not installed"
        continue
    fi
    file=$(readlink -f "$(command -v "$compiler")" 2> /dev/null || command -v "$compiler")
    case " ${seen:-} " in *" $file "*) continue ;; esac # cc is gcc or clang
    seen="${seen:-} $file"
    for language in "c c11" "c++ c++17"; do
        # shellcheck disable=SC2086
        set -- $language
        if echo 'int main(void) { return 0; }' | "$compiler" -x "$1" -fsyntax-only - 2> /dev/null; then
            check "ddpm.h as $2 with $compiler" sh -c "echo '#include \"ddpm.h\"' |
                $compiler -x $1 -std=$2 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I. -"
        else
            skip "ddpm.h as $2 with $compiler" "$compiler has no $1 here"
        fi
    done
done
if [ -f examples/embed.c ]; then
    check "examples/embed.c builds" $CC -O3 $openmp examples/embed.c -I. -lm -o "$BUILD/embed"
    check "examples/embed.c runs and prints" sh -c "'$BUILD/embed' > '$scratch/embed' && cat '$scratch/embed' && [ -s '$scratch/embed' ]"
fi

heading "Tests ($CC, optimised)"
check "builds" build program tests
run_tests "plain" $(programs "" $sources)

heading "The CUDA backend (on an emulated GPU)"
: "${CXX:=c++}"
if [ "$(uname -m)" != x86_64 ]; then skip "emulated GPU" "its fibers are for x86-64"
elif ! command -v "$CXX" > /dev/null; then skip "emulated GPU" "no C++ compiler $CXX"
else
    check "builds" build cuda-tests
    emulated=$BUILD/$COMPILER/cuda # the longest first
    run_tests "emulated GPU," "$emulated/checked/test_cuda" "$emulated/plain/test_vectors" "$emulated/plain/test_cuda" \
        "$emulated/checked/planted"
fi
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc /opt/cuda/bin/nvcc 2> /dev/null | head -n 1)
if [ -n "$nvcc" ]; then
    linked=$BUILD/$COMPILER-link-cuda
    if nccl_names "$BUILD/nccl"; then nccl=$BUILD/nccl
    else nccl=; fi
    cuda() { build VARIANT=link CUDA=yes CUDA_ARCH="80 89 90" NCCL_HOME="$nccl" INSTALL=no "$@"; }
    check "nvcc: sm_80, sm_89 and sm_90 without a warning" cuda "$linked/cuda_backend.o"
    check "the CUDA program links" cuda "$linked/ddpm"
    check "the CUDA program says that there is no device" sh -c \
        "CUDA_VISIBLE_DEVICES= '$linked/ddpm' selftest --backend cuda 2>&1 | grep 'cuda: no device'"
    if [ -n "$nccl" ]; then check "... and is linked with NCCL" sh -c "ldd '$linked/ddpm' | grep 'libnccl.so.2 => /'"
    else skip "the CUDA program with NCCL" "no nccl.h (NCCL_HOME says where)"; fi
    check "an NCCL_HOME without NCCL is refused" sh -c \
        "'$MAKE' -n CUDA=yes INSTALL=no NCCL_HOME='$scratch' program 2>&1 | grep 'NCCL_HOME=$scratch has no NCCL'"
else
    skip "nvcc for sm_80, sm_89 and sm_90" "no nvcc"
fi

heading "MPI"
if command -v mpicc > /dev/null && command -v mpirun > /dev/null; then
    check "builds with MPI" build MPI=yes INSTALL=no "$BUILD/$COMPILER-mpi/ddpm"
    check "mpirun -np 2: the bits of --ranks 2" scripts/mpi.sh "$BUILD/$COMPILER/ddpm" "$BUILD/$COMPILER-mpi/ddpm" "$scratch"
else
    skip "mpirun -np 2" "no mpicc and mpirun (make mpi installs them)"
fi

heading "Tests and fuzz inputs ($CC, AddressSanitizer and UndefinedBehaviorSanitizer)"
# Tests ask for impossible sizes on purpose; malloc must then return NULL, as it does without the sanitizer.
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
if echo 'int main(void) { return 0; }' | $CC -x c -fsanitize=address,undefined - -o "$scratch/probe" 2> /dev/null; then
    check "builds with sanitizers" build VARIANT=sanitize tests fuzzers
    run_tests "sanitized" $(programs -sanitize $sources)
    for program in $(programs -sanitize $fuzzers); do
        check "sanitized $(basename "$program")" "$program"
    done
else
    skip "sanitizers" "$CC has none here"
fi

if [ "$COMPILER" != clang ]; then
    heading "The other compiler (clang)"
    if command -v clang > /dev/null; then
        check "builds with clang" build CC=clang INSTALL=no CFLAGS=-O0 objects
    else
        skip "clang" "not installed"
    fi
fi
finish
