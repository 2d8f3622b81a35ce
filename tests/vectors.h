/* tests/vectors.h - small helpers over io/safetensors.h for tests that read tests/vectors/: a tensor by a composed
 * name, in memory that lives as long as the file, and the comparison against a truth with a bound for every element.
 * Contents: 1 files and tensors  2 comparison */
#ifndef TESTS_VECTORS_H
#define TESTS_VECTORS_H
#include "ddpm.h"
#include "io/safetensors.h"

/* ---- 1. Files and tensors ---- */

typedef struct vectors {
    io_safetensors file;
    ddpm_arena arena; /* of everything handed out below */
} vectors;

void vectors_open(vectors *v, const char *path); /* fails the running test if it cannot */
void vectors_close(vectors *v);

/* The tensor named by the printf-style text, or NULL if the file has none. */
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
const io_tensor *
vectors_find(const vectors *v, const char *format, ...);
/* Its values, converted; that there is none fails the test. */
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
float *
vectors_floats(vectors *v, const char *format, ...);
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
double *
vectors_doubles(vectors *v, const char *format, ...);
const char *vectors_metadata(const vectors *v, const char *key); /* NULL if absent */
void *vectors_alloc(vectors *v, size_t bytes);                   /* zeroed; fails the test rather than give NULL */

/* ---- 2. Comparison ---- */

/* The largest |value - truth| / bound over `count` elements; bound NULL: the same value to the bit, else infinity.
 * An element that is NaN, or off where its bound is 0, gives infinity. So: at most 1 passes. *where: the element it
 * was found at. */
double vectors_worst(size_t count, const float *value, const double *truth, const double *bound, size_t *where);

#endif /* TESTS_VECTORS_H */
