/* tests/check_grad.h - gradients by backpropagation against central differences, in a private core of double
 * precision that links beside the float one: for every operation of the table, every block and whole small networks.
 * `ddpm check-grad` prints its rows, tests/test_check_grad.c wants them all to pass. Contents: two functions. */
#ifndef TESTS_CHECK_GRAD_H
#define TESTS_CHECK_GRAD_H

/* One gradient, as check_grad_run reports it.
 *   name, input    what was checked ("conv2d 3x3 stride 2") and with respect to what ("weight", or how many tensors)
 *   largest_error  the largest |g - r| / max(|r|, floor) of its elements; NaN if something failed: `input` says what
 *   bound          passed means largest_error <= bound; tests/check_grad.c derives it */
typedef void check_grad_row(void *user, const char *name, const char *input, double largest_error, double bound,
                            int passed);

/* Checks everything of that name, or all for NULL; row (may be NULL) is called with each result.
 * Returns how many rows failed, or -1 if there is no such name (nothing was called then). */
int check_grad_run(const char *op, check_grad_row *row, void *user);

/* The i-th name check_grad_run knows, operations as in ddpm_op_name() first; NULL when i is too large. */
const char *check_grad_names(int i);

#endif /* TESTS_CHECK_GRAD_H */
