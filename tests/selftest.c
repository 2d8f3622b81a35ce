/* tests/selftest.c - see selftest.h.
 *
 * Every case is the graph  y = op(inputs) + op(inputs)  with random inputs: backward stores the second node's
 * gradients, those of parameters too (as under DDPM_SHARE_GRADIENTS), and adds the first's, so that both are covered.
 * Before that all its memory is NaN, and it has room for one picture more than it is run with: what is read, or added
 * to, without having been written shows.
 *
 * Bounds. u = 2^-24. Most operations are sums of products of their inputs, and so are their gradients. Let A be the
 * same operation of the inputs' absolute values, computed by the reference. A float sum of T such terms errs, in any
 * order, by at most (T + 8) u A, and but for a probability below 1e-7 by at most (6 sqrt T + 8) u A (Higham & Mary
 * 2019, lambda 6); two are compared: twice the smaller. Operands that are rounded to a format of unit roundoff p
 * first add independent errors of at most sqrt 2 p |term| each: 6 standard deviations are below 6 p sqrt(S), S the
 * sum of the terms' squares, which is the operation of the inputs' squares.
 * A single term left out would be of size A / T, or sqrt(S / T): both bounds are below that up to T = 10^4.
 *
 * The others are compared with multiples of u times the tensor's largest value, given with each of them below.
 *
 * Contents: 1 cases   2 one case   3 all */
#include "tests/selftest.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        ddpm_result try_result = (call);                                                                               \
        if (try_result != DDPM_OK) return try_result;                                                                  \
    } while (0)

/* ---- 1. Cases ---- */

typedef struct test_case {
    ddpm_op op;
    int size;       /* SELFTEST_SMALL, or SELFTEST_FULL only */
    int n, c, h, w; /* of the first input */
    int out;        /* channels: of the output; of the second input of concat; labels of an embedding */
    double attr[4]; /* in the order of the builder's arguments */
} test_case;

/* clang-format off */
static const test_case cases[] = {
    /* kernel, stride, pad before and after; out 0: as many as in */
    {DDPM_OP_CONV2D, 0, 1, 3, 8, 8, 24, {3, 1, 1, 1}},   {DDPM_OP_CONV2D, 0, 3, 24, 4, 4, 3, {3, 1, 1, 1}},
    {DDPM_OP_CONV2D, 0, 3, 96, 2, 2, 24, {3, 1, 1, 1}},  {DDPM_OP_CONV2D, 0, 1, 24, 7, 5, 96, {3, 1, 1, 1}},
    {DDPM_OP_CONV2D, 0, 3, 24, 8, 8, 24, {3, 2, 1, 1}},  {DDPM_OP_CONV2D, 0, 1, 3, 9, 8, 5, {3, 2, 0, 1}},
    {DDPM_OP_CONV2D, 0, 3, 24, 6, 6, 96, {1, 1, 0, 0}},  {DDPM_OP_CONV2D, 0, 1, 4, 12, 12, 8, {5, 1, 2, 2}},
    {DDPM_OP_CONV2D, 0, 1, 8, 9, 9, 4, {3, 3, 1, 0}},    {DDPM_OP_CONV2D, 0, 1, 96, 2, 2, 96, {3, 1, 1, 1}},
    {DDPM_OP_CONV2D, 1, 3, 3, 64, 64, 96, {3, 1, 1, 1}}, {DDPM_OP_CONV2D, 1, 3, 96, 64, 64, 3, {3, 1, 1, 1}},
    {DDPM_OP_CONV2D, 1, 3, 96, 32, 32, 96, {3, 1, 1, 1}}, {DDPM_OP_CONV2D, 1, 1, 24, 64, 64, 96, {3, 2, 1, 1}},
    {DDPM_OP_CONV2D, 1, 3, 512, 2, 2, 512, {3, 1, 1, 1}}, {DDPM_OP_CONV2D, 1, 3, 384, 16, 16, 128, {1, 1, 0, 0}},
    {DDPM_OP_LINEAR, 0, 3, 24, 1, 1, 96, {0}},           {DDPM_OP_LINEAR, 0, 1, 96, 1, 1, 3, {0}},
    {DDPM_OP_LINEAR, 0, 3, 3, 5, 4, 24, {0}},            {DDPM_OP_LINEAR, 1, 3, 512, 4, 4, 512, {0}},
    /* groups, eps */
    {DDPM_OP_GROUP_NORM, 0, 3, 24, 8, 8, 0, {8, 1e-5}},  {DDPM_OP_GROUP_NORM, 0, 1, 96, 2, 2, 0, {24, 1e-5}},
    {DDPM_OP_GROUP_NORM, 0, 3, 3, 7, 5, 0, {1, 1e-6}},   {DDPM_OP_GROUP_NORM, 0, 1, 96, 4, 4, 0, {1, 1e-5}},
    {DDPM_OP_GROUP_NORM, 0, 3, 24, 1, 1, 0, {3, 1e-5}},  {DDPM_OP_GROUP_NORM, 0, 1, 24, 16, 16, 0, {4, 1e-5}},
    {DDPM_OP_GROUP_NORM, 0, 1, 8, 40, 40, 0, {2, 1e-5}},
    {DDPM_OP_GROUP_NORM, 0, 1, 4, 64, 64, 0, {1, 1e-5}}, {DDPM_OP_GROUP_NORM, 0, 1, 16, 64, 64, 0, {1, 1e-5}},
    {DDPM_OP_GROUP_NORM, 0, 1, 3, 64, 64, 0, {1, 1e-5}}, {DDPM_OP_GROUP_NORM, 0, 1, 8, 64, 64, 0, {1, 1e-5}},
    {DDPM_OP_GROUP_NORM, 1, 3, 96, 64, 64, 0, {24, 1e-5}},
    {DDPM_OP_GROUP_NORM, 1, 1, 3, 64, 64, 0, {3, 1e-5}}, {DDPM_OP_GROUP_NORM, 1, 3, 256, 64, 64, 0, {32, 1e-5}},
    {DDPM_OP_GROUP_NORM, 1, 1, 128, 64, 64, 0, {4, 1e-5}},
    {DDPM_OP_ACTIVATION, 0, 3, 3, 7, 5, 0, {DDPM_SILU}}, {DDPM_OP_ACTIVATION, 0, 1, 24, 4, 4, 0, {DDPM_RELU}},
    {DDPM_OP_ACTIVATION, 0, 3, 24, 3, 3, 0, {DDPM_SIGMOID}}, {DDPM_OP_ACTIVATION, 1, 3, 96, 64, 64, 0, {DDPM_SILU}},
    /* heads */
    {DDPM_OP_ATTENTION, 0, 3, 24, 4, 4, 0, {3}},         {DDPM_OP_ATTENTION, 0, 1, 96, 2, 2, 0, {1}},
    {DDPM_OP_ATTENTION, 0, 1, 3, 7, 7, 0, {1}},          {DDPM_OP_ATTENTION, 0, 1, 24, 6, 6, 0, {4}},
    {DDPM_OP_ATTENTION, 1, 3, 96, 32, 32, 0, {12}},      {DDPM_OP_ATTENTION, 1, 1, 512, 16, 16, 0, {1}},
    /* scale, second is (N,C,1,1) */
    {DDPM_OP_ADD, 0, 3, 3, 7, 5, 0, {0.5, 0}},           {DDPM_OP_ADD, 0, 3, 24, 4, 4, 0, {1, 1}},
    {DDPM_OP_ADD, 0, 1, 96, 1, 1, 0, {1, 1}},            {DDPM_OP_ADD, 0, 1, 3, 20, 20, 0, {1, 1}},
    {DDPM_OP_ADD, 1, 3, 96, 64, 64, 0, {1, 1}},
    {DDPM_OP_CONCAT, 0, 3, 3, 4, 4, 24, {0}},            {DDPM_OP_CONCAT, 0, 1, 24, 3, 5, 96, {0}},
    {DDPM_OP_CONCAT, 1, 3, 96, 64, 64, 96, {0}},
    {DDPM_OP_UPSAMPLE, 0, 3, 3, 4, 3, 0, {2}},           {DDPM_OP_UPSAMPLE, 0, 1, 24, 2, 2, 0, {3}},
    {DDPM_OP_UPSAMPLE, 1, 3, 96, 32, 32, 0, {2}},
    /* width, flip_sin_to_cos, freq_shift */
    {DDPM_OP_TIME_EMBEDDING, 0, 3, 1, 1, 1, 0, {24, 1, 0}}, {DDPM_OP_TIME_EMBEDDING, 0, 1, 1, 1, 1, 0, {7, 0, 1}},
    {DDPM_OP_MSE, 0, 3, 3, 8, 8, 0, {0}},                {DDPM_OP_MSE, 0, 1, 24, 5, 3, 0, {0}},
    {DDPM_OP_MSE, 1, 3, 3, 64, 64, 0, {0}},
    {DDPM_OP_MODULATE, 0, 3, 24, 4, 4, 0, {0}},          {DDPM_OP_MODULATE, 0, 1, 3, 7, 5, 0, {0}},
    {DDPM_OP_MODULATE, 1, 3, 96, 32, 32, 0, {0}},
    /* first, count */
    {DDPM_OP_SLICE, 0, 3, 24, 3, 3, 0, {3, 5}},          {DDPM_OP_SLICE, 0, 1, 96, 2, 2, 0, {8, 16}},
    /* kind, kernel, stride, pad */
    {DDPM_OP_POOL, 0, 3, 24, 8, 8, 0, {DDPM_POOL_MEAN, 2, 2, 0}},
    {DDPM_OP_POOL, 0, 1, 3, 7, 9, 0, {DDPM_POOL_MAX, 3, 2, 1}},
    {DDPM_OP_POOL, 0, 3, 3, 7, 7, 0, {DDPM_POOL_MEAN, 3, 1, 1}},
    {DDPM_OP_POOL, 1, 3, 96, 64, 64, 0, {DDPM_POOL_MAX, 3, 2, 1}},
    {DDPM_OP_PIXEL_UNSHUFFLE, 0, 3, 3, 6, 4, 0, {2}},    {DDPM_OP_PIXEL_SHUFFLE, 0, 1, 24, 3, 2, 0, {2}},
    {DDPM_OP_DROPOUT, 0, 3, 3, 7, 5, 0, {0.3}},          {DDPM_OP_DROPOUT, 0, 1, 24, 4, 4, 0, {0.5}},
    /* scale, shift, with a divisor */
    {DDPM_OP_AFFINE, 0, 3, 3, 7, 5, 0, {0.5, 0.25, 1}},  {DDPM_OP_AFFINE, 0, 1, 24, 4, 4, 0, {2, -1, 0}},
    {DDPM_OP_FOURIER_EMBEDDING, 0, 3, 1, 1, 1, 24, {0}}, {DDPM_OP_EMBEDDING, 0, 3, 1, 1, 1, 24, {5}},
    /* eps, momentum */
    {DDPM_OP_BATCH_NORM, 0, 3, 24, 4, 4, 0, {1e-5, 0.1}}, {DDPM_OP_BATCH_NORM, 0, 3, 3, 17, 9, 0, {1e-5, 0.1}},
    {DDPM_OP_BATCH_NORM, 1, 3, 96, 64, 64, 0, {1e-5, 0.1}},
    {DDPM_OP_BCE, 0, 3, 24, 1, 1, 0, {0}},               {DDPM_OP_BCE, 0, 1, 3, 5, 4, 0, {0}},
};
/* clang-format on */

/* Multiples of u and of the tensor's largest value that an operation and its gradients may be off; 0: a sum of
 * products, see above.
 *   activation   exp to 2 ulp, then three roundings, against another exp: below 16
 *   norms        a mean and a variance of T values in float, some 6 sqrt T u of themselves at worst and log T u in a
 *                tree, two subtractions that can cancel nothing (inputs are normal): 64
 *   attention    a score of d terms errs by (6 sqrt d + 8) u sqrt d, which is a relative error of its probability;
 *                forward twice that, backward a sum of products of two such: 1024 at d up to 96
 *   embeddings   angles are the same to the bit or one ulp of an angle up to 1000 off, that is 2^10 u
 *   losses       T terms of the same sign, of two roundings each, in double: 16
 *   maximum      exact; its gradient adds those of at most nine windows: 16 */
static double largest_units(const test_case *t)
{
    switch (t->op) {
    case DDPM_OP_POOL: return t->attr[0] == DDPM_POOL_MAX ? 16 : 0;
    case DDPM_OP_ACTIVATION:
    case DDPM_OP_MSE:
    case DDPM_OP_BCE: return 16;
    case DDPM_OP_GROUP_NORM:
    case DDPM_OP_BATCH_NORM: return 64;
    case DDPM_OP_ATTENTION: return 1024;
    case DDPM_OP_TIME_EMBEDDING:
    case DDPM_OP_FOURIER_EMBEDDING: return 2048;
    default: return 0;
    }
}

/* ---- 2. One case ---- */

enum { INPUTS = DDPM_MAX_INPUTS, RESULTS = INPUTS + 3 }; /* y, gradients of the inputs, two running statistics */
static const char *const result_name[RESULTS] = {"y", "dx0", "dx1", "dx2", "dx3", "dx4", "running mean", "running var"};

typedef struct values { /* in the host's form */
    size_t count[INPUTS], y_count;
    ddpm_real *in[INPUTS], *dy;
    ddpm_real *result[RESULTS]; /* NULL: there is none */
    size_t result_count[RESULTS];
} values;

static void free_values(values *v)
{
    for (int k = 0; k < INPUTS; k++)
        free(v->in[k]);
    for (int k = 0; k < RESULTS; k++)
        free(v->result[k]);
    free(v->dy);
}

static ddpm_real *room(size_t count)
{
    ddpm_real *p = calloc(count ? count : 1, sizeof *p);
    if (!p) ddpm_fail(DDPM_ERR_MEMORY, "selftest: out of memory");
    return p;
}

/* Shape of input k of a case; returns its number of channels, 0 if it has no such input. *param: it is a parameter. */
static int input_shape(const test_case *t, int k, int *param, int shape[4])
{
    int out = t->out ? t->out : t->c, kernel = t->op == DDPM_OP_CONV2D ? (int)t->attr[0] : 1;
    *param = 0;
    shape[0] = t->n, shape[1] = t->c, shape[2] = t->h, shape[3] = t->w;
    if (k == 0) return t->c;
    shape[1] = shape[2] = shape[3] = 1;
    switch (t->op) {
    case DDPM_OP_CONV2D:
    case DDPM_OP_LINEAR:
        *param = 1, shape[0] = out;
        if (k == 1) shape[1] = t->c, shape[2] = shape[3] = kernel;
        return k <= 2 ? shape[1] : 0;
    case DDPM_OP_GROUP_NORM:
    case DDPM_OP_BATCH_NORM: *param = 1, shape[0] = t->c; return k <= (t->op == DDPM_OP_GROUP_NORM ? 2 : 4);
    case DDPM_OP_FOURIER_EMBEDDING:
    case DDPM_OP_EMBEDDING:
        *param = 1, shape[0] = t->op == DDPM_OP_EMBEDDING ? (int)t->attr[0] : out;
        if (t->op == DDPM_OP_EMBEDDING) shape[1] = out;
        return k <= 1 ? shape[1] : 0;
    case DDPM_OP_AFFINE: return k == 1 && t->attr[2] != 0;
    case DDPM_OP_MODULATE: shape[1] = 2 * t->c; return k <= 1 ? shape[1] : 0;
    case DDPM_OP_ADD:
        shape[1] = t->c;
        if (t->attr[1] == 0) shape[2] = t->h, shape[3] = t->w;
        return k <= 1 ? shape[1] : 0;
    case DDPM_OP_CONCAT: shape[1] = out, shape[2] = t->h, shape[3] = t->w; return k <= 1 ? out : 0;
    case DDPM_OP_MSE:
    case DDPM_OP_BCE:
    case DDPM_OP_ATTENTION:
        shape[1] = t->c, shape[2] = t->h, shape[3] = t->w;
        return k <= (t->op == DDPM_OP_ATTENTION ? 2 : 1) ? t->c : 0;
    default: return 0;
    }
}

static int wants_gradient(ddpm_op op, int k)
{
    switch (op) {
    case DDPM_OP_TIME_EMBEDDING:
    case DDPM_OP_FOURIER_EMBEDDING: return 0;
    case DDPM_OP_EMBEDDING: return k == 1;
    case DDPM_OP_BATCH_NORM: return k < 3;
    case DDPM_OP_AFFINE:
    case DDPM_OP_BCE: return k == 0;
    default: return 1;
    }
}

/* The case's operation once. */
static ddpm_tensor *build(ddpm_graph *g, const test_case *t, ddpm_tensor *const *x)
{
    const double *a = t->attr;
    int first = (int)a[0];
    switch (t->op) {
    case DDPM_OP_CONV2D: return ddpm_conv2d(g, x[0], x[1], x[2], (int)a[1], (int)a[2], (int)a[3]);
    case DDPM_OP_LINEAR: return ddpm_linear(g, x[0], x[1], x[2]);
    case DDPM_OP_GROUP_NORM: return ddpm_group_norm(g, x[0], x[1], x[2], first, a[1]);
    case DDPM_OP_ACTIVATION: return ddpm_activation(g, x[0], first);
    case DDPM_OP_ATTENTION: return ddpm_attention(g, x[0], x[1], x[2], first);
    case DDPM_OP_ADD: return ddpm_add(g, x[0], x[1], a[0]);
    case DDPM_OP_CONCAT: return ddpm_concat(g, x[0], x[1]);
    case DDPM_OP_UPSAMPLE: return ddpm_upsample(g, x[0], first);
    case DDPM_OP_TIME_EMBEDDING: return ddpm_time_embedding(g, x[0], first, (int)a[1], a[2]);
    case DDPM_OP_MSE: return ddpm_mse(g, x[0], x[1]);
    case DDPM_OP_MODULATE: return ddpm_modulate(g, x[0], x[1]);
    case DDPM_OP_SLICE: return ddpm_slice(g, x[0], first, (int)a[1]);
    case DDPM_OP_POOL: return ddpm_pool(g, x[0], first, (int)a[1], (int)a[2], (int)a[3]);
    case DDPM_OP_PIXEL_UNSHUFFLE: return ddpm_pixel_unshuffle(g, x[0], first);
    case DDPM_OP_PIXEL_SHUFFLE: return ddpm_pixel_shuffle(g, x[0], first);
    case DDPM_OP_DROPOUT: return ddpm_dropout(g, x[0], a[0]);
    case DDPM_OP_AFFINE: return ddpm_affine(g, x[0], x[1], a[0], a[1]);
    case DDPM_OP_FOURIER_EMBEDDING: return ddpm_fourier_embedding(g, x[0], x[1]);
    case DDPM_OP_EMBEDDING: return ddpm_embedding(g, x[0], x[1]);
    case DDPM_OP_BATCH_NORM: return ddpm_batch_norm(g, x[0], x[1], x[2], x[3], x[4], a[0], a[1]);
    case DDPM_OP_BCE: return ddpm_bce(g, x[0], x[1]);
    default: return NULL;
    }
}

/* Standard normals, but for what has a range: times, labels, probabilities, a divisor, variances. */
static void fill(const test_case *t, int k, size_t count, ddpm_real *out)
{
    ddpm_normals((ddpm_address){(uint64_t)t->op, (uint64_t)k, 0, DDPM_RANDOM_USER}, count, out);
    for (size_t i = 0; i < count; i++) {
        ddpm_real part = out[i] / 12 + (ddpm_real)0.5; /* in (0,1) */
        if (t->op == DDPM_OP_TIME_EMBEDDING || (t->op == DDPM_OP_FOURIER_EMBEDDING && k == 0))
            out[i] = (ddpm_real)(int)(part * 999 + 1);
        if (t->op == DDPM_OP_EMBEDDING && k == 0) out[i] = (ddpm_real)(int)(part * (ddpm_real)t->attr[0]);
        if (t->op == DDPM_OP_BCE || (t->op == DDPM_OP_AFFINE && k == 1) || (t->op == DDPM_OP_BATCH_NORM && k == 4))
            out[i] = part;
    }
}

/* What happens to an input for a bound: nothing, its absolute value, its square. */
typedef enum measure { AS_IT_IS, ABSOLUTE, SQUARED } measure;

static void apply(measure m, size_t count, ddpm_real *x)
{
    for (size_t i = 0; i < count && m != AS_IT_IS; i++)
        x[i] = m == ABSOLUTE ? (ddpm_real)fabs((double)x[i]) : x[i] * x[i];
}

static ddpm_result device_room(const ddpm_device *device, size_t count, ddpm_real **out)
{
    void *memory = NULL;
    if (device->backend->alloc)
        TRY(device->backend->alloc(device->state, count * sizeof(ddpm_real), &memory));
    else if (!(memory = room(count)))
        return DDPM_ERR_MEMORY;
    *out = memory;
    return DDPM_OK;
}

static void device_release(const ddpm_device *device, ddpm_real *memory)
{
    if (memory && device->backend->free)
        device->backend->free(device->state, memory);
    else
        free(memory);
}

static ddpm_result fill_with_nan(const ddpm_device *device, size_t count, ddpm_real *memory)
{
    ddpm_tensor all = {.name = "memory", .dims = 1, .shape = {(int)count, 1, 1, 1}, .param = 1};
    all.data = memory;
    ddpm_real *host = room(count);
    if (!host) return DDPM_ERR_MEMORY;
    for (size_t i = 0; i < count; i++)
        host[i] = (ddpm_real)NAN;
    ddpm_result result = ddpm_upload(device, &all, DDPM_DATA, 0, host);
    free(host);
    return result;
}

static ddpm_result upload_inputs(const ddpm_device *device, const test_case *t, measure m, ddpm_tensor **x, values *v)
{
    for (int k = 0; k < INPUTS; k++) {
        if (!x[k]) continue;
        size_t count = v->count[k] = ddpm_elements(x[k], t->n);
        if (!(v->in[k] = room(count))) return DDPM_ERR_MEMORY;
        fill(t, k, count, v->in[k]);
        apply(m, count, v->in[k]);
        TRY(ddpm_upload(device, x[k], DDPM_DATA, t->n, v->in[k]));
    }
    return DDPM_OK;
}

static ddpm_result download(const ddpm_device *device, const ddpm_tensor *x, int which, int n, int result, values *v)
{
    v->result_count[result] = ddpm_elements(x, n);
    if (!(v->result[result] = room(v->result_count[result]))) return DDPM_ERR_MEMORY;
    return ddpm_download(device, x, which, n, v->result[result]);
}

static ddpm_result run_graph(ddpm_graph *g, const test_case *t, measure m, ddpm_tensor *parameter, values *v)
{
    ddpm_tensor *x[INPUTS] = {NULL}, *y;
    int gradients = 0, shape[4], param;
    for (int k = 0; k < INPUTS; k++) {
        if (!input_shape(t, k, &param, shape)) continue;
        gradients += wants_gradient(t->op, k);
        if (!param) {
            x[k] = ddpm_input(g, "x", shape[1], shape[2], shape[3], wants_gradient(t->op, k));
            continue;
        }
        x[k] = &parameter[k];
        *x[k] = (ddpm_tensor){.name = "parameter", .dims = 4, .param = 1, .trainable = wants_gradient(t->op, k) & 1};
        memcpy(x[k]->shape, shape, sizeof shape);
        TRY(device_room(g->device, ddpm_elements(x[k], 0), &x[k]->data));
        TRY(device_room(g->device, ddpm_elements(x[k], 0), &x[k]->grad));
        TRY(fill_with_nan(g->device, ddpm_elements(x[k], 0), x[k]->grad));
    }
    ddpm_tensor *first = build(g, t, x), *second = build(g, t, x);
    y = ddpm_add(g, first, second, 1);
    TRY(ddpm_graph_plan(g, gradients ? y : NULL, &y, 1));
    g->node[1]->accumulate = 0; /* the first to write a gradient: it stores */
    TRY(ddpm_graph_alloc(g));
    TRY(fill_with_nan(g->device, g->bytes / sizeof(ddpm_real), g->memory));
    TRY(upload_inputs(g->device, t, m, x, v));
    g->step.seed = 7, g->step.first_picture = 100;
    TRY(ddpm_graph_forward(g, t->n));
    TRY(download(g->device, y, DDPM_DATA, t->n, 0, v));
    if (t->op == DDPM_OP_BATCH_NORM)
        for (int k = 3; k < 5; k++)
            TRY(download(g->device, x[k], DDPM_DATA, t->n, INPUTS - 2 + k, v));
    if (!gradients) return DDPM_OK;
    v->y_count = v->result_count[0];
    if (!(v->dy = room(v->y_count))) return DDPM_ERR_MEMORY;
    ddpm_normals((ddpm_address){(uint64_t)t->op, INPUTS, 0, DDPM_RANDOM_USER}, v->y_count, v->dy);
    apply(m, v->y_count, v->dy);
    TRY(ddpm_graph_backward(g, v->dy, NULL, NULL));
    for (int k = 0; k < INPUTS; k++)
        if (x[k] && wants_gradient(t->op, k)) TRY(download(g->device, x[k], DDPM_GRADIENT, t->n, 1 + k, v));
    return DDPM_OK;
}

static ddpm_result run_on(const ddpm_device *device, const test_case *t, measure m, values *v)
{
    ddpm_tensor parameter[INPUTS] = {{0}};
    ddpm_graph *g;
    memset(v, 0, sizeof *v);
    TRY(ddpm_graph_create(&g, device, t->n + 1, 1));
    ddpm_result result = run_graph(g, t, m, parameter, v);
    for (int k = 0; k < INPUTS; k++) {
        device_release(device, parameter[k].data);
        device_release(device, parameter[k].grad);
    }
    ddpm_graph_free(g);
    return result;
}

/* Terms of the longest sum behind result k. */
static double terms_of(const test_case *t, int k, const values *v)
{
    int kernel = t->op == DDPM_OP_CONV2D ? (int)t->attr[0] : 1, out = t->out ? t->out : t->c;
    double pixels = (double)v->result_count[0] / out; /* of all pictures, of a convolution's output */
    if (t->op != DDPM_OP_CONV2D && t->op != DDPM_OP_LINEAR)
        return k == 0 ? 9 : (double)t->n * t->h * t->w; /* a window; all pixels */
    return k == 0 ? kernel * kernel * t->c : k == 1 ? kernel * kernel * out : pixels;
}

static double worst_share(const test_case *t, int k, double unit, const values *got, const values *wanted,
                          const values *absolute, const values *squared)
{
    double units = largest_units(t), largest = 0, worst = 0, terms = terms_of(t, k, wanted);
    int products = t->op == DDPM_OP_CONV2D || t->op == DDPM_OP_LINEAR;
    double sum = fmin(terms, 6 * sqrt(terms)) + 8;
    for (size_t i = 0; i < wanted->result_count[k]; i++)
        largest = fmax(largest, fabs((double)wanted->result[k][i]));
    for (size_t i = 0; i < wanted->result_count[k]; i++) {
        double error = fabs((double)got->result[k][i] - (double)wanted->result[k][i]), bound;
        if (units > 0)
            bound = units * 0x1p-24 * largest;
        else /* all values are those of two equal nodes: the two halves' errors are equal and add up */
            bound = 2 * sum * 0x1p-24 * (double)absolute->result[k][i] +
                    (products ? 6 * unit * sqrt(2 * (double)squared->result[k][i]) : 0);
        double share = error / (bound + 1e-30);
        if (!(share <= worst)) worst = isnan(share) ? INFINITY : share;
    }
    return worst;
}

static void describe(const test_case *t, char *text, size_t size)
{
    int used = snprintf(text, size, "(%d,%d,%d,%d)", t->n, t->c, t->h, t->w);
    if (t->out) used += snprintf(text + used, size - (size_t)used, " -> %d", t->out);
    for (int k = 0; k < 4; k++)
        used += snprintf(text + used, size - (size_t)used, "%s%g", k ? "," : " ", t->attr[k]);
}

static ddpm_result run_case(const ddpm_device *device, const test_case *t, double unit, const char *shape,
                            selftest_report report, void *user)
{
    ddpm_device reference;
    values got = {.y_count = 0}, wanted = got, absolute = got, squared = got;
    TRY(ddpm_device_open(&reference, ddpm_reference(), device->threads, NULL));
    ddpm_result result = run_on(device, t, AS_IT_IS, &got);
    if (result == DDPM_OK) result = run_on(&reference, t, AS_IT_IS, &wanted);
    if (result == DDPM_OK) result = run_on(&reference, t, ABSOLUTE, &absolute);
    if (result == DDPM_OK) result = run_on(&reference, t, SQUARED, &squared);
    selftest_result r = {t->op, shape, "y", 0};
    for (int k = 0; k < RESULTS && result == DDPM_OK; k++) {
        if (!wanted.result[k]) continue;
        double worst = worst_share(t, k, unit, &got, &wanted, &absolute, &squared);
        if (worst > r.worst) r.worst = worst, r.tensor = result_name[k];
    }
    if (result == DDPM_OK) report(user, &r);
    free_values(&got), free_values(&wanted), free_values(&absolute), free_values(&squared);
    ddpm_device_close(&reference);
    return result;
}

/* ---- 3. All ---- */

ddpm_result selftest_run(const ddpm_device *device, int size, double product_unit, selftest_report report, void *user)
{
    int seen[DDPM_OP_COUNT] = {0};
    for (size_t i = 0; i < LENGTH(cases); i++) {
        char shape[100], text[800];
        seen[cases[i].op] = 1;
        if (cases[i].size > size) continue;
        describe(&cases[i], shape, sizeof shape);
        ddpm_result result = run_case(device, &cases[i], product_unit, shape, report, user);
        if (result == DDPM_OK) continue;
        snprintf(text, sizeof text, "%s", ddpm_error());
        return ddpm_fail(result, "selftest, %s %s: %s", ddpm_op_name(cases[i].op), shape, text);
    }
    for (int op = 0; op < DDPM_OP_COUNT; op++)
        if (!seen[op]) return ddpm_fail(DDPM_ERR_UNSUPPORTED, "selftest has no case for %s", ddpm_op_name((ddpm_op)op));
    return DDPM_OK;
}
