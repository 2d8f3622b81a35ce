/* tests/shadow_backend.h - a backend for tests whose memory is its own: tensors lie there as NHWC with every bit
 * inverted, so that code which reads or writes them directly computes garbage. It has nothing but memory: rows,
 * lincomb, normal and update run through the core's fallback (download, reference, upload), which it proves.
 * Contents: one function. */
#ifndef TESTS_SHADOW_BACKEND_H
#define TESTS_SHADOW_BACKEND_H
#include "ddpm.h"

const ddpm_backend *shadow_backend(void);

#endif /* TESTS_SHADOW_BACKEND_H */
