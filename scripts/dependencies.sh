#!/bin/sh
# Finds the libraries of the build by compiling small programs with $CC, installs what is missing, saying the command
# first, and writes the flags it found as a makefile.
#   scripts/dependencies.sh OUTPUT.mk LIBRARY...      openmp stb cjson csv gif cmocka mpi
#   scripts/dependencies.sh --packages PACKAGE...     programs rather than libraries: only installs
# Missing packages come from apt-get: installed as root or with a sudo that asks nothing, else unpacked into build/deps.
# INSTALL=no only names them. FORCE_LOCAL_DEPS=1 looks into build/deps alone, to test that way.
set -u
CC=${CC:-cc} BUILD=${BUILD:-build} INSTALL=${INSTALL:-yes}
local_root=$BUILD/deps
scratch=$(mktemp -d "${TMPDIR:-/tmp}/ddpm-deps-XXXXXX") || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM

# ---- what there is to find ----

program() { # a program that needs library $1 to compile, link and run
    case $1 in
    openmp) echo '#include <omp.h>
int main(void) { int n = 0; _Pragma("omp parallel") { _Pragma("omp atomic") n++; } return n < 1 || omp_get_max_threads() < 1; }' ;;
    stb) echo '#include <stb/stb_image.h>
#include <stb/stb_image_write.h>
int main(void) { return STBI_rgb != 3; }' ;;
    cjson) echo '#include <cjson/cJSON.h>
int main(void) { cJSON *j = cJSON_Parse("[1]"); int bad = !j; cJSON_Delete(j); return bad; }' ;;
    csv) echo '#include <csv.h>
int main(void) { struct csv_parser p; int bad = csv_init(&p, CSV_STRICT); csv_free(&p); return bad; }' ;;
    gif) echo '#include <gif_lib.h>
int main(void) { return !GifErrorString(E_GIF_ERR_NOT_ENOUGH_MEM); }' ;;
    cmocka) echo '#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
int main(void) { assert_true(1); return 0; }' ;;
    mpi) echo '#include <mpi.h>
int main(void) { char text[MPI_MAX_LIBRARY_VERSION_STRING]; int length; return MPI_Get_library_version(text, &length); }' ;;
    esac
}

package() { # Debian's name of what brings library $1
    case $1 in openmp) echo libomp-dev ;; stb) echo libstb-dev ;; cjson) echo libcjson-dev ;; csv) echo libcsv-dev ;; gif) echo libgif-dev ;; cmocka) echo libcmocka-dev ;; mpi) echo libopenmpi-dev openmpi-bin ;; esac
}

candidates() { # flags under which library $1 may be found, one set a line: compile flags | link flags
    case $1 in
    openmp)
        echo '-fopenmp |'
        for p in /opt/homebrew/opt/libomp /usr/local/opt/libomp; do # Apple's clang with Homebrew's libomp
            [ ! -d $p ] || echo "-Xclang -fopenmp -isystem $p/include | -L$p/lib -lomp"
        done
        return ;;
    mpi) # only the compiler's wrapper knows
        mpicc --showme:compile > "$scratch/mpi" 2> /dev/null && # OpenMPI
            echo "$(sed 's/-I/-isystem /g' "$scratch/mpi") | $(mpicc --showme:link)"
        pkg-config --exists mpich 2> /dev/null && echo "$(pkg-config --cflags mpich) | $(pkg-config --libs mpich)"
        return ;;
    stb) link='' name=stb probe=stb/stb_image.h ;;
    cjson) link=-lcjson name=libcjson probe=cjson/cJSON.h ;;
    csv) link=-lcsv name=libcsv probe=csv.h ;;
    gif) link=-lgif name=libgif probe=gif_lib.h ;;
    cmocka) link=-lcmocka name=cmocka probe=cmocka.h ;;
    esac
    if [ -z "${FORCE_LOCAL_DEPS:-}" ]; then
        echo "| $link"
        pkg-config --exists "$name" 2>/dev/null && echo "$(pkg-config --cflags "$name") | $(pkg-config --libs "$name")"
        for p in /opt/homebrew /usr/local /opt/local; do
            [ ! -f "$p/include/$probe" ] || echo "-isystem $p/include | -L$p/lib $link"
        done
    fi
    if [ -f "$local_root/usr/include/$probe" ]; then
        library=$(find "$local_root/usr/lib" -name "lib$1.so" 2>/dev/null | head -n 1)
        where=$(cd "$(dirname "${library:-$local_root/usr/lib/none}")" && pwd)
        echo "-isystem $local_root/usr/include | ${link:+-L'$where' -Wl,-rpath,'$where' $link}"
    fi
}

find_library() { # sets compile_flags and link_flags; fails if no candidate works
    program "$1" > "$scratch/$1.c"
    candidates "$1" > "$scratch/candidates"
    while IFS='|' read -r compile_flags link_flags; do
        if eval "$CC $compile_flags \"$scratch/$1.c\" -o \"$scratch/$1\" $link_flags" > "$scratch/log" 2>&1 &&
            "$scratch/$1" >> "$scratch/log" 2>&1; then
            return 0
        fi
    done < "$scratch/candidates"
    return 1
}

# ---- installing ----

run() { # says a command, then runs it
    echo "+ $*" >&2
    "$@" >&2
}

install_as() { # $1: empty for root, or sudo; then packages
    become=$1
    shift
    apt-cache show "$@" > /dev/null 2>&1 || run $become apt-get update || return 1
    run $become env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" && return 0
    run $become apt-get update && # the lists may be older than the archive
        run $become env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

unpack() { # packages, and what they need at run time, into $local_root without root
    mkdir -p "$local_root/apt/lists/partial" "$local_root/apt/cache/archives/partial" "$local_root/packages" || return 1
    apt="$(cd "$local_root" && pwd)/apt"
    set_apart="-o Dir::State=$apt -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache=$apt/cache -o Debug::NoLocking=1"
    (
        cd "$local_root/packages" || exit 1
        fetch() {
            run apt-get $options download "$@" || {
                [ -z "$options" ] || return 1
                options=$set_apart # no lists, or stale ones, and not ours to update: use our own
                run apt-get $options update && run apt-get $options download "$@"
            }
        }
        options=
        apt-cache show "$@" > /dev/null 2>&1 || { options=$set_apart; run apt-get $options update || exit 1; }
        fetch "$@" || exit 1
        for name in "$@"; do # libcjson-dev needs libcjson1
            needs="${needs:-} $(dpkg-deb -f "${name}"_*.deb Depends | tr ',' '\n' | sed 's/^ *\([^ ]*\).*/\1/' | grep -v '^libc6')"
        done
        fetch $needs || exit 1
    ) || return 1
    for file in "$local_root"/packages/*.deb; do
        run dpkg-deb -x "$file" "$local_root" || return 1
    done
    rm -rf "$local_root/apt" "$local_root/packages"
}

install_packages() { # succeeds if it installed something
    [ "$INSTALL" != no ] && command -v apt-get > /dev/null || return 1
    if [ -n "${FORCE_LOCAL_DEPS:-}" ]; then unpack "$@"
    elif [ "$(id -u)" != 0 ] && [ "$1" = libopenmpi-dev ]; then return 1 # mpirun finds its parts where they are installed
    elif [ "$(id -u)" = 0 ]; then install_as "" "$@"
    elif command -v sudo > /dev/null && sudo -n true 2> /dev/null; then install_as "sudo -n" "$@"
    else unpack "$@"
    fi
}

refuse() { # what is missing, and the way out
    {
        echo "ddpm.c needs, and could not install: $*"
        echo "      hint: sudo apt-get update && sudo apt-get install$(printf ' %s' "$@")"
        echo "            on other systems the packages that bring stb/stb_image.h, cjson/cJSON.h, csv.h, gif_lib.h and (tests only) cmocka.h;"
        echo "            they are looked for with $CC, pkg-config and in Homebrew's folders"
    } >&2
    exit 1
}

if [ "$1" = --packages ]; then
    shift
    if [ "$INSTALL" != no ] && command -v apt-get > /dev/null; then
        if [ "$(id -u)" = 0 ]; then install_as "" "$@" && exit 0
        elif command -v sudo > /dev/null && sudo -n true 2> /dev/null; then install_as "sudo -n" "$@" && exit 0
        fi
    fi
    refuse "$@"
fi

# ---- the answer ----

output=$1
shift
missing=
for library in "$@"; do
    find_library "$library" || missing="$missing $(package "$library")"
done
# Without OpenMP one thread does the work: worth installing, but no reason to stop, and nothing to unpack by hand.
required=$(printf '%s\n' $missing | grep -v '^libomp-dev$')
if [ "$missing" != "${missing#* libomp-dev}" ] && [ "$(id -u)" = 0 ]; then
    install_packages libomp-dev || true
fi
[ -z "$required" ] || install_packages $required || refuse $required

mkdir -p "$(dirname "$output")" || exit 1
all_compile= all_link= openmp=
for library in "$@"; do
    if find_library "$library"; then
        case $library in
        openmp) openmp=$compile_flags all_link="$all_link $link_flags" ;;
        cmocka) printf 'CMOCKA_CFLAGS := %s\nCMOCKA_LIBS := %s\n' "$compile_flags" "$link_flags" ;;
        *) all_compile="$all_compile $compile_flags" all_link="$all_link $link_flags" ;;
        esac
        [ "$library" != openmp ] || echo "OPENMP_FOUND := yes"
    elif [ "$library" = openmp ]; then
        echo "OPENMP_FOUND := no"
        openmp=-Wno-unknown-pragmas
    else
        cat "$scratch/log" >&2
        refuse "$(package "$library")"
    fi
done > "$scratch/answer" || exit 1
printf 'OPENMP := %s\nDEPS_CFLAGS := %s\nDEPS_LIBS := %s\n' "$openmp" "$all_compile" "$all_link" >> "$scratch/answer"
mv "$scratch/answer" "$output"
