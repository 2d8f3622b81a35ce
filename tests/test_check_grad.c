/* tests/test_check_grad.c - backpropagation against central differences: tests/check_grad.c's rows, one test for
 * each name. Contents: the rows, what must be among them, main. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ddpm.h"
#include "tests/check_grad.h"

typedef struct tally {
    int rows;
    double largest; /* error in units of its bound */
} tally;

static void note_row(void *user, const char *name, const char *input, double largest_error, double bound, int passed)
{
    tally *t = user;
    t->rows++;
    if (!passed) print_error("%s, gradient of %s: error %.3g, bound %.3g\n", name, input, largest_error, bound);
    if (largest_error / bound > t->largest) t->largest = largest_error / bound;
}

static void test_name(void **state)
{
    tally t = {0, 0};
    int failed = check_grad_run(*state, note_row, &t);
    print_message("           %d gradients, worst error %.3f of its bound\n", t.rows, t.largest);
    assert_true(t.rows > 0);
    assert_int_equal(failed, 0);
}

/* Each operation of the table is checked, or shown to refuse a gradient. */
static void test_every_operation_is_there(void **state)
{
    (void)state;
    for (int op = 0; op < DDPM_OP_COUNT; op++) {
        int found = 0;
        for (int i = 0; check_grad_names(i); i++)
            found |= !strcmp(check_grad_names(i), ddpm_op_name((ddpm_op)op));
        if (!found) fail_msg("operation %s has no case in tests/check_grad.c", ddpm_op_name((ddpm_op)op));
    }
}

static void test_names_occur_once(void **state)
{
    (void)state;
    for (int i = 0; check_grad_names(i); i++)
        for (int k = 0; k < i; k++)
            assert_string_not_equal(check_grad_names(i), check_grad_names(k));
}

static void test_unknown_name(void **state)
{
    (void)state;
    tally t = {0, 0};
    assert_int_equal(check_grad_run("conv3d", note_row, &t), -1);
    assert_int_equal(t.rows, 0);
}

int main(void)
{
    enum { MOST = 100 };
    struct CMUnitTest test[MOST] = {
        cmocka_unit_test(test_every_operation_is_there),
        cmocka_unit_test(test_names_occur_once),
        cmocka_unit_test(test_unknown_name),
    };
    size_t tests = 3;
    for (int i = 0; check_grad_names(i) && tests < MOST; i++)
        test[tests++] =
            (struct CMUnitTest){check_grad_names(i), test_name, NULL, NULL, (void *)(uintptr_t)check_grad_names(i)};
    return _cmocka_run_group_tests("check_grad", test, tests, NULL, NULL);
}
