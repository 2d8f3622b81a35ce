/* tests/shadow_backend.c - see shadow_backend.h. Contents: 1 the form  2 memory  3 tensors */
#include "tests/shadow_backend.h"

#include <stdlib.h>
#include <string.h>

/* ---- 1. The form ---- */

/* Not a float's value any more: moved as bits only. */
static void invert(const ddpm_real *from, ddpm_real *to)
{
    uint32_t bits;
    memcpy(&bits, from, sizeof bits);
    bits = ~bits;
    memcpy(to, &bits, sizeof bits);
}

/* Where element (n,c,y,x) of a tensor lies: (n,y,x,c). */
static size_t place(const ddpm_tensor *t, size_t nchw)
{
    size_t c = (size_t)t->shape[1], plane = (size_t)t->shape[2] * (size_t)t->shape[3];
    size_t n = nchw / (c * plane), channel = nchw / plane % c, pixel = nchw % plane;
    return (n * plane + pixel) * c + channel;
}

/* ---- 2. Memory ---- */

static ddpm_result shadow_zero(void *state, void *memory, size_t bytes)
{
    (void)state;
    memset(memory, 0xFF, bytes); /* inverted, this is 0.0 */
    return DDPM_OK;
}

static ddpm_result shadow_alloc(void *state, size_t bytes, void **out)
{
    *out = malloc(bytes ? bytes : 1);
    if (!*out) return ddpm_fail(DDPM_ERR_MEMORY, "shadow: %zu bytes refused", bytes);
    return shadow_zero(state, *out, bytes);
}

static void shadow_free(void *state, void *memory)
{
    (void)state;
    free(memory);
}

/* ---- 3. Tensors ---- */

static ddpm_result shadow_upload(void *state, ddpm_tensor *x, int which, int n, const ddpm_real *host)
{
    (void)state;
    ddpm_real *to = which == DDPM_DATA ? x->data : x->grad;
    for (size_t i = 0, count = ddpm_elements(x, n); i < count; i++)
        invert(&host[i], &to[place(x, i)]);
    return DDPM_OK;
}

static ddpm_result shadow_download(void *state, const ddpm_tensor *x, int which, int n, ddpm_real *host)
{
    (void)state;
    const ddpm_real *from = which == DDPM_DATA ? x->data : x->grad;
    for (size_t i = 0, count = ddpm_elements(x, n); i < count; i++)
        invert(&from[place(x, i)], &host[i]);
    return DDPM_OK;
}

const ddpm_backend *shadow_backend(void)
{
    static const ddpm_row no_rows[DDPM_OP_COUNT];
    static const ddpm_backend shadow = {
        .name = "shadow",
        .rows = no_rows,
        .alloc = shadow_alloc,
        .free = shadow_free,
        .zero = shadow_zero,
        .upload = shadow_upload,
        .download = shadow_download,
    };
    return &shadow;
}
