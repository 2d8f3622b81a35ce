/* cli/check_grad.c - ddpm check-grad: backpropagation against central differences, as a table. The checks
 * themselves are tests/check_grad.c, which holds a second core in double precision. */
#include "tests/check_grad.h"

#include <stdio.h>

#include "cli/cli.h"

static struct {
    const char *op;
} set;

/* clang-format off */
static const cli_option options[] = {
    {"op", NULL, CLI_TEXT, "OP", "(all)",
     "only this operation, block or network: conv2d, group_norm, ...", &set.op, 0, 0, 1},
    {0},
};
/* clang-format on */

static void print_row(void *user, const char *name, const char *input, double largest_error, double bound, int passed)
{
    int *rows = user;
    if ((*rows)++ == 0) printf("%-44s %-24s %9s %9s\n", "what", "gradient of", "error", "bound");
    printf("%-44s %-24s %9.2g %9.2g  %s\n", name, input, largest_error, bound, passed ? "ok" : "WRONG");
    fflush(stdout);
}

static int run(const cli_context *context)
{
    (void)context;
    int rows = 0, failed = check_grad_run(set.op, print_row, &rows);
    if (failed < 0) {
        fprintf(stderr, "ddpm: check-grad: there is nothing named '%s'\n      hint: there are", set.op);
        for (int i = 0; check_grad_names(i) != NULL; i++)
            fprintf(stderr, "%s %s", i > 0 ? "," : "", check_grad_names(i));
        fprintf(stderr, "\n");
        return CLI_USAGE;
    }
    printf("%d gradients checked, %d wrong\n", rows, failed);
    return failed > 0 ? CLI_FAILED : CLI_DONE;
}

const cli_command cli_check_grad = {
    "check-grad",
    "[OP]",
    "checks every operation's gradient against central differences",
    "In double precision: g by backward, r = (L(x + h) - L(x - h)) / 2h; the error is |g - r| / max(|r|, floor).",
    options,
    run,
    NULL};
