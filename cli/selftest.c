/* cli/selftest.c - ddpm selftest: every operation of the chosen backend against the reference's, as a table and a block
 * to paste into a report. The cases and their bounds are tests/selftest.c's. */
#include "tests/selftest.h"

#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

static struct {
    int quick, verbose;
} set;

/* clang-format off */
static const cli_option options[] = {
    {"quick", NULL, CLI_FLAG, NULL, NULL,
     "only the small shapes: a second or two on a processor", &set.quick, 0, 0, 0},
    {"verbose", NULL, CLI_FLAG, NULL, NULL,
     "a line for every case, not only for every operation", &set.verbose, 0, 0, 0},
    {0},
};
/* clang-format on */

typedef struct tally {
    int cases[DDPM_OP_COUNT], wrong[DDPM_OP_COUNT], all, failed;
    double worst[DDPM_OP_COUNT];
} tally;

static void count(void *user, const selftest_result *r)
{
    tally *t = user;
    int wrong = r->worst > 1;
    t->cases[r->op]++, t->all++;
    t->wrong[r->op] += wrong, t->failed += wrong;
    if (r->worst > t->worst[r->op]) t->worst[r->op] = r->worst;
    if (set.verbose || wrong)
        printf("%-18s %-32s %-12s %8.2g of its bound  %s\n", ddpm_op_name(r->op), r->shape, r->tensor, r->worst,
               wrong ? "WRONG" : "ok");
    fflush(stdout);
}

/* Unit roundoff of what a backend rounds products' operands to, by the name it gives its arithmetic. The cpu backend's
 * Winograd convolutions round transformed ones, 4 to 16 times as large as they were (tests/test_cpu.c): 2^-20. */
static double product_unit(const ddpm_device *device)
{
    const char *isa = ddpm_device_isa(device);
    if (!strncmp(isa, "tf32", 4)) return 0x1p-11;
    if (!strncmp(isa, "bf16", 4)) return 0x1p-8;
    return !strcmp(device->backend->name, "cpu") && !strstr(isa, "exact") ? 0x1p-20 : 0;
}

static int run(const cli_context *context)
{
    tally t = {.all = 0};
    double start = cli_seconds();
    ddpm_result result = selftest_run(&context->device, set.quick ? SELFTEST_SMALL : SELFTEST_FULL,
                                      product_unit(&context->device), count, &t);
    if (result != DDPM_OK) return cli_exit(result);
    printf("---- ddpm selftest ----\nversion   %s\nbackend   %s, %s\n", cli_version(), context->device.backend->name,
           ddpm_device_isa(&context->device));
    for (int op = 0; op < DDPM_OP_COUNT; op++)
        if (t.cases[op])
            printf("%-18s %3d cases  worst %8.2g of its bound  %s\n", ddpm_op_name((ddpm_op)op), t.cases[op],
                   t.worst[op], t.wrong[op] ? "WRONG" : "ok");
    printf("%d cases, %d wrong, %.1f s%s\n---- end ----\n", t.all, t.failed, cli_seconds() - start,
           set.quick ? ", small shapes only" : "");
    return t.failed ? CLI_FAILED : CLI_DONE;
}

const cli_command cli_selftest = {
    "selftest",
    "[--quick] [--verbose]",
    "checks every operation of a backend against the reference",
    "Forward and backward at many shapes, with random inputs; an error is given as a part of its bound, so that 1 is\n"
    "the most that passes. --backend says which backend.",
    options,
    run,
    NULL};
