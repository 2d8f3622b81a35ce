/* tests/vectors.c - see vectors.h. */
#include "tests/vectors.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* ---- 1. Files and tensors ---- */

void vectors_open(vectors *v, const char *path)
{
    *v = (vectors){0};
    if (io_safetensors_open(path, &v->file) != DDPM_OK) fail_msg("%s", ddpm_error());
}

void vectors_close(vectors *v)
{
    io_safetensors_close(&v->file);
    ddpm_arena_free(&v->arena);
}

static const io_tensor *find(const vectors *v, const char *format, va_list args, int needed)
{
    char name[512];
    vsnprintf(name, sizeof name, format, args);
    const io_tensor *tensor = io_safetensors_find(&v->file, name);
    if (!tensor && needed) fail_msg("%s: no tensor '%s'", v->file.path, name);
    return tensor;
}

const io_tensor *vectors_find(const vectors *v, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const io_tensor *tensor = find(v, format, args, 0);
    va_end(args);
    return tensor;
}

void *vectors_alloc(vectors *v, size_t bytes)
{
    void *memory = ddpm_arena_alloc(&v->arena, bytes);
    assert_non_null(memory);
    return memory;
}

float *vectors_floats(vectors *v, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const io_tensor *tensor = find(v, format, args, 1);
    va_end(args);
    float *out = vectors_alloc(v, tensor->elements * sizeof *out);
    assert_int_equal(io_tensor_floats(tensor, out), DDPM_OK);
    return out;
}

double *vectors_doubles(vectors *v, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const io_tensor *tensor = find(v, format, args, 1);
    va_end(args);
    double *out = vectors_alloc(v, tensor->elements * sizeof *out);
    assert_int_equal(io_tensor_doubles(tensor, out), DDPM_OK);
    return out;
}

const char *vectors_metadata(const vectors *v, const char *key)
{
    for (int i = 0; i < v->file.pairs; i++)
        if (!strcmp(v->file.metadata[i].key, key)) return v->file.metadata[i].value;
    return NULL;
}

/* ---- 2. Comparison ---- */

double vectors_worst(size_t count, const float *value, const double *truth, const double *bound, size_t *where)
{
    double worst = 0;
    *where = 0;
    for (size_t i = 0; i < count; i++) {
        double error = fabs((double)value[i] - truth[i]), ratio = error == 0 ? 0 : bound ? error / bound[i] : INFINITY;
        if (isnan(ratio)) ratio = INFINITY;
        if (ratio > worst) worst = ratio, *where = i;
    }
    return worst;
}
