#!/bin/sh
# tests/planted.sh - plants a wrong sign in every backward of ddpm_impl.c, one gradient at a time, in a copy, and
# shows that the checks of tests/check_grad.c catch each. Prints a line for each; the last is `N caught, M missed`.
# Fails if one is missed, if an operation has none, or if a line of the list below no longer fits the source: then
# bring the list up to date.
cd "$(dirname "$0")/.." || exit 2
: "${CC:=cc}"
work=$(mktemp -d "${TMPDIR:-/tmp}/ddpm-planted-XXXXXX") || exit 2
trap 'rm -rf "$work"' EXIT
trap 'exit 2' INT TERM
mkdir "$work/tests"
cp ddpm.h ddpm_impl.c "$work"
cp tests/check_grad.h tests/check_grad.c "$work/tests"
cat > "$work/main.c" << 'END'
#include "tests/check_grad.h"
int main(int arguments, char **argument)
{
    int failed = check_grad_run(arguments > 1 ? argument[1] : 0, 0, 0);
    return failed < 0 ? 3 : failed > 0; /* 0: all is well; 1: an error was caught; 3: no such operation */
}
END

# Operation ~ gradient ~ function ~ what sed looks for in it ~ what it puts there. It must change one line.
# shellcheck disable=SC2016
list='
conv2d ~ x ~ correlate ~ out\[x\] += in ~ out[x] += (w_tap < 0 ? -1 : 1) * in
conv2d ~ weight ~ conv2d_backward ~ dw\[\(.*\)\] += ~ dw[\1] -=
conv2d ~ bias ~ conv2d_backward ~ db\[o\] += ~ db[o] -=
linear ~ x ~ correlate ~ out\[x\] += in ~ out[x] += (w_tap < 0 ? -1 : 1) * in
linear ~ weight ~ conv2d_backward ~ dw\[\(.*\)\] += ~ dw[\1] -=
linear ~ bias ~ conv2d_backward ~ db\[o\] += ~ db[o] -=
group_norm ~ x ~ norm_backward_plane ~ dx\[p\] += ~ dx[p] -=
group_norm ~ x, by way of the mean ~ group_norm_backward ~ (-r \* mean_e) ~ (r * mean_e)
group_norm ~ x, by way of the variance ~ group_norm_backward ~ (-r \* mean_eh) ~ (r * mean_eh)
group_norm ~ weight ~ group_norm_backward ~ dw\[c\] += ~ dw[c] -=
group_norm ~ bias ~ group_norm_backward ~ db\[c\] += ~ db[c] -=
activation ~ x of silu ~ activation_backward ~ += dy\[i\] \* s \* (1 + x ~ -= dy[i] * s * (1 + x
activation ~ x of silu, inside ~ activation_backward ~ (1 + x ~ (1 - x
activation ~ x of relu ~ activation_backward ~ += x\[i\] ~ -= x[i]
activation ~ x of sigmoid ~ activation_backward ~ += dy\[i\] \* s \* (1 - s) ~ -= dy[i] * s * (1 - s)
attention ~ q ~ attention_backward ~ dq\[channel + i\] += ~ dq[channel + i] -=
attention ~ k ~ attention_backward ~ scale \* q\[channel ~ -scale * q[channel
attention ~ v ~ attention_backward ~ dy\[channel + i\] ~ -dy[channel + i]
attention ~ q and k, of the softmax ~ attention_backward ~ (ds\[j\] - mean) ~ (ds[j] + mean)
add ~ a ~ add_backward ~ if (da) add_scaled(plane, scale ~ if (da) add_scaled(plane, -scale
add ~ b ~ add_backward ~ wide) add_scaled(plane, scale ~ wide) add_scaled(plane, -scale
add ~ b, a vector ~ add_backward ~ db\[i\] += ~ db[i] -=
concat ~ a ~ concat_backward ~ add_scaled(a, 1 ~ add_scaled(a, -1
concat ~ b ~ concat_backward ~ add_scaled(b, 1 ~ add_scaled(b, -1
upsample ~ x ~ upsample_backward ~ += dy ~ -= dy
mse ~ x ~ mse_backward ~ dx\[i\] += ~ dx[i] -=
mse ~ target ~ mse_backward ~ dt\[i\] -= ~ dt[i] +=
modulate ~ x ~ modulate_backward ~ (plane, 1 + e ~ (plane, -1 - e
modulate ~ scale ~ modulate_backward ~ de\[scale\] += ~ de[scale] -=
modulate ~ shift ~ modulate_backward ~ de\[scale + c\] += ~ de[scale + c] -=
slice ~ x ~ slice_backward ~ add_scaled(part, 1 ~ add_scaled(part, -1
pool ~ x of the largest ~ pool_backward ~ += dy; ~ -= dy;
pool ~ x of the mean ~ pool_backward ~ += dy / ~ -= dy /
pixel_unshuffle ~ x ~ shuffle_add ~ += from\[in_coarse\] ~ += (from == node->out->grad ? -1 : 1) * from[in_coarse]
pixel_shuffle ~ x ~ shuffle_add ~ += from\[in_fine\] ~ += (from == node->out->grad ? -1 : 1) * from[in_fine]
dropout ~ x ~ dropout_add ~ += scale ~ += (from == node->out->grad ? -1 : 1) * scale
affine ~ x ~ affine_backward ~ (picture, ( ~ (picture, -(
embedding ~ table ~ embedding_backward ~ add_scaled(dim, 1 ~ add_scaled(dim, -1
batch_norm ~ x ~ norm_backward_plane ~ dx\[p\] += ~ dx[p] -=
batch_norm ~ x, by way of the mean ~ batch_norm_backward ~ -fixed \* scale \* sum_dy / ~ fixed * scale * sum_dy /
batch_norm ~ x, by way of the variance ~ batch_norm_backward ~ -fixed \* scale \* sum_dyh ~ fixed * scale * sum_dyh
batch_norm ~ weight ~ batch_norm_backward ~ dw\[i\] += ~ dw[i] -=
batch_norm ~ bias ~ batch_norm_backward ~ db\[i\] += ~ db[i] -=
bce ~ p ~ bce_backward ~ dx\[i\] += ~ dx[i] -=
'

# Builds the copy and runs the checks of one operation: exit status of main above; 9 if it does not compile.
judge() {
    "$CC" -std=c11 -O0 -D_POSIX_C_SOURCE=200809L -w -I"$work" "$work/tests/check_grad.c" "$work/main.c" -lm \
        -o "$work/judge" 2> "$work/log" || { cat "$work/log"; return 9; }
    "$work/judge" "$1"
}

judge "" # an unknown name: proves that it builds
[ $? = 3 ] || { echo "tests/check_grad.c does not build alone"; exit 1; }
for op in $(echo "$list" | cut -d ' ' -f 1 | sort -u); do
    "$work/judge" "$op" || { echo "$op fails before anything is planted"; exit 1; }
done

caught=0 missed=0
while read -r line; do
    [ -n "$line" ] || continue
    op=${line%% ~ *} rest=${line#* ~ }
    gradient=${rest%% ~ *} rest=${rest#* ~ }
    function=${rest%% ~ *} rest=${rest#* ~ }
    from=${rest%% ~ *} to=${rest#* ~ }
    sed "/^[^ ].* $function(/,/^}/ s~$from~$to~" ddpm_impl.c > "$work/ddpm_impl.c"
    changed=$(diff ddpm_impl.c "$work/ddpm_impl.c" | grep -c '^>')
    if [ "$changed" != 1 ]; then
        verdict="DOES NOT FIT: '$from' changes $changed lines of $function"
    else
        judge "$op"
        case $? in
        0) verdict="MISSED" ;;
        1) verdict=caught ;;
        9) verdict="DOES NOT COMPILE" ;;
        *) verdict="CRASHED or unknown" ;;
        esac
    fi
    if [ "$verdict" = caught ]; then caught=$((caught + 1)); else missed=$((missed + 1)); fi
    printf '%-16s %-28s %s\n' "$op" "$gradient" "$verdict"
done << END
$list
END

# Every row of the reference that has a backward must be in the list.
rows=$(sed -n 's/^ *\[DDPM_OP_\([A-Z0-9_]*\)\] = {[a-z0-9_]*, [a-z0-9_]*}.*/\1/p' ddpm_impl.c | tr 'A-Z' 'a-z')
[ -n "$rows" ] || { echo "no reference rows found in ddpm_impl.c"; missed=$((missed + 1)); }
for op in $rows; do
    echo "$list" | grep -q "^$op ~ " && continue
    printf '%-16s %-28s %s\n' "$op" "" "HAS NO PLANTED ERROR"
    missed=$((missed + 1))
done
echo "$caught caught, $missed missed"
[ $missed = 0 ]
