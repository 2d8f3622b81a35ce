/* tests/selftest.h - the table test: every operation, forward and backward, on a backend and on the reference, at many
 * shapes; no file is needed. `ddpm selftest` prints it, tests/cuda/ runs it on the emulated GPU.
 * Contents: one function. */
#ifndef TESTS_SELFTEST_H
#define TESTS_SELFTEST_H
#include "ddpm.h"

typedef struct selftest_result { /* of one case */
    ddpm_op op;
    const char *shape;  /* "(3,24,8,8) -> 96, kernel 3" */
    const char *tensor; /* where it is worst: "y", "dx0", ... */
    double worst;       /* |value - reference| as a part of its bound: at most 1 passes; infinite for NaN */
} selftest_result;
typedef void (*selftest_report)(void *user, const selftest_result *result);

/* How much: a second or so on a processor; all shapes up to 64x64, for a device. */
enum { SELFTEST_SMALL, SELFTEST_FULL };
/* Runs all cases. product_unit: unit roundoff of the operands of products, if the device rounds them (TF32 2^-11, bf16
 * 2^-8), else 0. Returns the first failure to run, naming the case; a wrong value is no failure. */
ddpm_result selftest_run(const ddpm_device *device, int size, double product_unit, selftest_report report, void *user);

#endif /* TESTS_SELFTEST_H */
