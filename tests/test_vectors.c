/* tests/test_vectors.c - ddpm.c against PyTorch and diffusers: every operation, tiny networks that use every field
 * of the config, samplers on a network, the optimiser, on every backend of the list below.
 * tests/parity/make_vectors.py made the vectors; it says how they are laid out and derives each operation's bound,
 * which is stored beside its value. With "--distance PATHS.safetensors FILE.png" it draws how far sampling in PyTorch's
 * random numbers is from diffusers after each step.
 *
 * Contents: 1 backends  2 operations  3 networks  4 samplers  5 the optimiser  6 main */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <cmocka.h>

#include "cpu_backend.h"
#include "cuda_backend.h"
#include "ddpm.h"
#include "io/config.h"
#include "io/plot.h"
#include "tests/shadow_backend.h"
#include "tests/vectors.h"

#define VECTORS "tests/vectors/"
#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define OK(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != DDPM_OK) fail_msg("%s", ddpm_error());                                                           \
    } while (0)

/* ---- 1. Backends ---- */

static const struct {
    const ddpm_backend *(*backend)(void);
#ifdef DDPM_CUDA /* as tests/cuda/ builds it: the same vectors for that backend alone, in float32 */
} backends[] = {{ddpm_cuda}};
static const char *const isa = "fp32";
#else
} backends[] = {{ddpm_reference}, {shadow_backend}, {ddpm_cpu}};
static const char *const isa = NULL;
#endif
enum { BACKENDS = sizeof backends / sizeof *backends };

/* What one test runs: a backend, and an operation or the name of a network, of a sampler, of an optimiser. */
typedef struct subject {
    ddpm_device device;
    ddpm_op op;
    const char *name;
} subject;

static int open_device(void **state)
{
    subject *s = *state;
    return ddpm_device_open(&s->device, s->device.backend, 1, isa) == DDPM_OK ? 0 : -1;
}

static int close_device(void **state)
{
    subject *s = *state;
    const ddpm_backend *backend = s->device.backend;
    ddpm_device_close(&s->device);
    s->device.backend = backend;
    return 0;
}

/* ---- 2. Operations ----
 * A builder for each operation: attributes in the order of the file's `attr`, tensors in that of x0, x1, ...
 * `params` has a bit for each input that is a parameter; the rest are inputs of the graph. Trained statistics are
 * parameters too. */

typedef ddpm_tensor *build_fn(ddpm_graph *g, const double *a, ddpm_tensor **x);

static ddpm_tensor *build_CONV2D(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    return ddpm_conv2d(g, x[0], x[1], x[2], (int)a[0], (int)a[1], (int)a[2]);
}
static ddpm_tensor *build_LINEAR(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    (void)a;
    return ddpm_linear(g, x[0], x[1], x[2]);
}
static ddpm_tensor *build_GROUP_NORM(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    return ddpm_group_norm(g, x[0], x[1], x[2], (int)a[0], a[1]);
}
static ddpm_tensor *build_ACTIVATION(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    static const int kind[] = {DDPM_SILU, DDPM_RELU, DDPM_SIGMOID};
    return ddpm_activation(g, x[0], kind[(int)a[0]]);
}
static ddpm_tensor *build_ATTENTION(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    return ddpm_attention(g, x[0], x[1], x[2], (int)a[0]);
}
static ddpm_tensor *build_ADD(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    return ddpm_add(g, x[0], x[1], a[0]);
}
static ddpm_tensor *build_CONCAT(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    (void)a;
    return ddpm_concat(g, x[0], x[1]);
}
static ddpm_tensor *build_UPSAMPLE(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    return ddpm_upsample(g, x[0], (int)a[0]);
}
static ddpm_tensor *build_TIME_EMBEDDING(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    return ddpm_time_embedding(g, x[0], (int)a[0], (int)a[1], a[2]);
}
static ddpm_tensor *build_MSE(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    (void)a;
    return ddpm_mse(g, x[0], x[1]);
}
static ddpm_tensor *build_MODULATE(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    (void)a;
    return ddpm_modulate(g, x[0], x[1]);
}
static ddpm_tensor *build_SLICE(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    return ddpm_slice(g, x[0], (int)a[0], (int)a[1]);
}
static ddpm_tensor *build_POOL(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    return ddpm_pool(g, x[0], a[0] == 0 ? DDPM_POOL_MAX : DDPM_POOL_MEAN, (int)a[1], (int)a[2], (int)a[3]);
}
static ddpm_tensor *build_PIXEL_UNSHUFFLE(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    return ddpm_pixel_unshuffle(g, x[0], (int)a[0]);
}
static ddpm_tensor *build_PIXEL_SHUFFLE(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    return ddpm_pixel_shuffle(g, x[0], (int)a[0]);
}
static ddpm_tensor *build_DROPOUT(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    return ddpm_dropout(g, x[0], a[0]);
}
static ddpm_tensor *build_AFFINE(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    return ddpm_affine(g, x[0], x[1], a[0], a[1]);
}
static ddpm_tensor *build_FOURIER_EMBEDDING(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    (void)a;
    return ddpm_fourier_embedding(g, x[0], x[1]);
}
static ddpm_tensor *build_EMBEDDING(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    (void)a;
    return ddpm_embedding(g, x[0], x[1]);
}
static ddpm_tensor *build_BATCH_NORM(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    return ddpm_batch_norm(g, x[0], x[1], x[2], x[3], x[4], a[1], a[2]); /* a[0]: training */
}
static ddpm_tensor *build_BCE(ddpm_graph *g, const double *a, ddpm_tensor **x)
{
    (void)a;
    return ddpm_bce(g, x[0], x[1]);
}

static unsigned params_of(ddpm_op op)
{
    switch (op) {
    case DDPM_OP_CONV2D:
    case DDPM_OP_LINEAR:
    case DDPM_OP_GROUP_NORM: return 6;
    case DDPM_OP_FOURIER_EMBEDDING:
    case DDPM_OP_EMBEDDING: return 2;
    case DDPM_OP_BATCH_NORM: return 30;
    default: return 0;
    }
}

/* A new operation needs a builder above: this table does not compile without. */
#define BUILDER(op, name, reads) build_##op,
static build_fn *const builder[] = {DDPM_OPS(BUILDER)};

/* Zeroed memory of the backend, or of the host for a backend that has none of its own. */
static void *device_memory(const ddpm_device *device, size_t bytes)
{
    void *memory = NULL;
    if (device->backend->alloc)
        OK(device->backend->alloc(device->state, bytes, &memory));
    else
        memory = calloc(1, bytes);
    assert_non_null(memory);
    return memory;
}

static void release_memory(const ddpm_device *device, void *memory)
{
    if (device->backend->free)
        device->backend->free(device->state, memory);
    else
        free(memory);
}

/* A parameter outside any model. */
static void make_parameter(const ddpm_device *device, const io_tensor *file, int trainable, const float *value,
                           ddpm_tensor *x)
{
    *x = (ddpm_tensor){
        .name = file->name, .dims = file->dims, .shape = {1, 1, 1, 1}, .param = 1, .trainable = trainable != 0};
    for (int i = 0; i < file->dims; i++)
        x->shape[i] = (int)file->shape[i];
    x->data = device_memory(device, file->elements * sizeof(ddpm_real));
    x->grad = device_memory(device, file->elements * sizeof(ddpm_real));
    OK(ddpm_upload(device, x, DDPM_DATA, 0, value));
}

/* NaN in all that may be written and has not been: what is read before, or added to, shows. */
static void fill_with_nan(const ddpm_device *device, size_t count, ddpm_real *memory)
{
    ddpm_tensor all = {.name = "memory", .dims = 1, .shape = {(int)count, 1, 1, 1}, .param = 1};
    all.data = memory;
    float *host = malloc(count * sizeof *host);
    assert_non_null(host);
    for (size_t i = 0; i < count; i++)
        host[i] = NAN;
    OK(ddpm_upload(device, &all, DDPM_DATA, 0, host));
    free(host);
}

static double worst_of(vectors *v, const char *name, const char *key, const float *value, double widen)
{
    const io_tensor *truth = vectors_find(v, "%s/%s", name, key), *bound = vectors_find(v, "%s/%s.bound", name, key);
    double *limit = bound ? vectors_doubles(v, "%s", bound->name) : NULL;
    for (size_t i = 0; limit && i < bound->elements; i++)
        limit[i] *= widen;
    size_t where;
    double worst = vectors_worst(truth->elements, value, vectors_doubles(v, "%s", truth->name), limit, &where);
    if (!(worst <= 1))
        fail_msg("%s: %s[%zu] is %.9g, torch has %.9g: %.3g times the bound", name, key, where, (double)value[where],
                 vectors_doubles(v, "%s", truth->name)[where], worst);
    return worst;
}

/* Which values fall is chance, so: each output is 0 or the truth, its gradient likewise at the same places, and the
 * share that fell lies within 5 standard deviations of p. What fell is then put back, and the rest is compared.
 * y: the output as it was; value: the output again (key "y"), or the gradient (key "d0"). */
static void put_dropped_back(vectors *v, const char *name, const char *key, double p, const float *y, float *value)
{
    const double *full = vectors_doubles(v, "%s/y", name);
    const float *shown = vectors_floats(v, "%s/%s", name, key);
    size_t fell = 0, count = vectors_find(v, "%s/y", name)->elements;
    for (size_t i = 0; i < count; i++) {
        if (y[i] != 0 || full[i] == 0) continue;
        fell++;
        assert_true(value[i] == 0);
        value[i] = shown[i];
    }
    assert_true(fabs((double)fell - p * (double)count) <= 5 * sqrt(p * (1 - p) * (double)count));
}

enum { INPUTS = DDPM_MAX_INPUTS };
static const char *const input_key[INPUTS] = {"x0", "x1", "x2", "x3", "x4"};
static const char *const gradient_key[INPUTS] = {"d0", "d1", "d2", "d3", "d4"};
static const char *const after_key[INPUTS] = {"x0.after", "x1.after", "x2.after", "x3.after", "x4.after"};

typedef struct operation { /* one case: a graph of one node */
    vectors *v;
    const char *name; /* "conv2d/k3" */
    ddpm_device *device;
    ddpm_op op;
    const double *attr;
    int n, wanted;               /* pictures; how many inputs have a gradient */
    const io_tensor *in[INPUTS]; /* NULL: no such input */
    ddpm_tensor *x[INPUTS], *y, parameter[INPUTS];
    ddpm_graph *g;
    const float *out; /* downloaded y */
    double worst;     /* the largest error, as a part of its bound */
} operation;

/* A graph with room for n + 1 pictures, with everything uploaded. Batch norm has a case that does not train. */
static void build_operation(operation *o)
{
    o->attr = vectors_doubles(o->v, "%s/attr", o->name);
    o->n = (int)vectors_find(o->v, "%s/x0", o->name)->shape[0];
    OK(ddpm_graph_create(&o->g, o->device, o->n + 1, o->op != DDPM_OP_BATCH_NORM || o->attr[0] != 0));
    for (int i = 0; i < INPUTS; i++) {
        if (!(o->in[i] = vectors_find(o->v, "%s/%s", o->name, input_key[i]))) continue;
        const io_tensor *in = o->in[i];
        int gradient = vectors_find(o->v, "%s/%s", o->name, gradient_key[i]) != NULL;
        o->wanted += gradient;
        if (params_of(o->op) >> i & 1) {
            o->x[i] = &o->parameter[i];
            make_parameter(o->device, in, gradient, vectors_floats(o->v, "%s", in->name), o->x[i]);
        } else {
            o->x[i] = ddpm_input(o->g, in->name, (int)in->shape[1], (int)in->shape[2], (int)in->shape[3], gradient);
        }
    }
    o->y = builder[o->op](o->g, o->attr, o->x);
    OK(ddpm_graph_plan(o->g, o->wanted ? o->y : NULL, &o->y, 1));
    OK(ddpm_graph_alloc(o->g));
    fill_with_nan(o->device, o->g->bytes / sizeof(ddpm_real), o->g->memory);
    for (int i = 0; i < INPUTS; i++)
        if (o->x[i] && !o->x[i]->param)
            OK(ddpm_upload(o->device, o->x[i], DDPM_DATA, o->n, vectors_floats(o->v, "%s", o->in[i]->name)));
}

static void check_output(operation *o)
{
    const io_tensor *truth = vectors_find(o->v, "%s/y", o->name);
    assert_int_equal(truth->elements, ddpm_elements(o->y, o->n));
    float *out = vectors_alloc(o->v, truth->elements * sizeof *out),
          *compared = vectors_alloc(o->v, truth->elements * sizeof *out);
    OK(ddpm_download(o->device, o->y, DDPM_DATA, o->n, out));
    memcpy(compared, out, truth->elements * sizeof *out);
    if (o->op == DDPM_OP_DROPOUT) put_dropped_back(o->v, o->name, "y", o->attr[0], out, compared);
    o->out = out;
    o->worst = fmax(o->worst, worst_of(o->v, o->name, "y", compared, 1));
}

/* Backward, for the `round`th time: inputs' gradients come out the same again; parameters' add up, so that the second
 * time they are twice the truth, off by the first bound and twice it again (the sum is twice as large by then), which
 * is 1.5 times the bound of a half. The third time they are stored, as under DDPM_SHARE_GRADIENTS, over NaN. */
static void check_gradients(operation *o, int round)
{
    for (int i = 0; round == 3 && i < INPUTS; i++)
        if (o->x[i] && o->x[i]->param) fill_with_nan(o->device, o->in[i]->elements, o->x[i]->grad);
    for (int i = 0; round == 3 && i < o->g->nodes; i++) /* one, or none */
        o->g->node[i]->accumulate = 0;
    OK(ddpm_graph_backward(o->g, vectors_floats(o->v, "%s/dy", o->name), NULL, NULL));
    for (int i = 0; i < INPUTS; i++) {
        if (!o->x[i] || !vectors_find(o->v, "%s/%s", o->name, gradient_key[i])) continue;
        float *gradient = vectors_alloc(o->v, o->in[i]->elements * sizeof *gradient);
        OK(ddpm_download(o->device, o->x[i], DDPM_GRADIENT, o->n, gradient));
        if (o->op == DDPM_OP_DROPOUT) put_dropped_back(o->v, o->name, gradient_key[i], o->attr[0], o->out, gradient);
        int doubled = o->x[i]->param && round == 2;
        for (size_t k = 0; doubled && k < o->in[i]->elements; k++)
            gradient[k] /= 2;
        o->worst = fmax(o->worst, worst_of(o->v, o->name, gradient_key[i], gradient, doubled ? 1.5 : 1));
    }
}

/* What the operation left in its inputs: batch norm's running statistics. */
static void check_statistics(operation *o)
{
    for (int i = 0; i < INPUTS; i++) {
        if (!vectors_find(o->v, "%s/%s", o->name, after_key[i])) continue;
        float *value = vectors_alloc(o->v, o->in[i]->elements * sizeof *value);
        OK(ddpm_download(o->device, o->x[i], DDPM_DATA, o->n, value));
        o->worst = fmax(o->worst, worst_of(o->v, o->name, after_key[i], value, 1));
    }
}

static double run_case(vectors *v, subject *s, const char *name)
{
    operation o = {.v = v, .name = name, .device = &s->device, .op = s->op};
    build_operation(&o);
    OK(ddpm_graph_forward(o.g, o.n));
    check_output(&o);
    for (int round = 1; o.wanted && round <= 3; round++)
        check_gradients(&o, round);
    check_statistics(&o);
    ddpm_graph_free(o.g);
    for (int i = 0; i < INPUTS; i++) {
        if (!o.x[i] || !(params_of(o.op) >> i & 1)) continue;
        release_memory(o.device, o.parameter[i].data);
        release_memory(o.device, o.parameter[i].grad);
    }
    return o.worst;
}

static void test_operation(void **state)
{
    subject *s = *state;
    const char *op = ddpm_op_name(s->op);
    size_t length = strlen(op);
    int cases = 0;
    double worst = 0;
    vectors v;
    vectors_open(&v, VECTORS "operations.safetensors");
    for (int i = 0; i < v.file.tensors; i++) { /* every case has one tensor OP/NAME/attr */
        const char *name = v.file.tensor[i].name, *end = strstr(name, "/attr");
        if (!end || strncasecmp(name, op, length) || name[length] != '/') continue;
        char one[128];
        assert_true((size_t)(end - name) < sizeof one);
        memcpy(one, name, (size_t)(end - name));
        one[end - name] = 0;
        worst = fmax(worst, run_case(&v, s, one));
        cases++;
    }
    vectors_close(&v);
    if (!cases) fail_msg("operation %s has no vectors: add a case to tests/parity/make_vectors.py", op);
    print_message("           %d cases, worst error %.2f of its bound\n", cases, worst);
}

/* Every tensor of the file belongs to an operation of the table: none is stored and then forgotten. */
static void test_no_stray_vectors(void **state)
{
    (void)state;
    vectors v;
    vectors_open(&v, VECTORS "operations.safetensors");
    for (int i = 0; i < v.file.tensors; i++) {
        const char *name = v.file.tensor[i].name;
        size_t length = strcspn(name, "/");
        int known = 0;
        for (int op = 0; op < DDPM_OP_COUNT; op++)
            known |=
                strlen(ddpm_op_name((ddpm_op)op)) == length && !strncasecmp(name, ddpm_op_name((ddpm_op)op), length);
        if (!known) fail_msg("%s is of no operation", name);
    }
    vectors_close(&v);
}

/* ---- 3. Networks ----
 * Bounds. A network is a chain of some tens of operations, each with errors of a few u = 2^-24 relative to the
 * largest values that meet in it, and neither GroupNorm nor the residual sums let them grow much: torch's own
 * float32 is 3e-7 to 1.3e-6 of the largest value from the float64 truth (the file's `float32`), for other
 * summation orders than ours. A mistake in any term is some 1e-2. So 8 times torch's distance plus 16 u (should
 * torch's have been a lucky one) decides. Gradients are compared as tensors, |g - r| <= tolerance max(|r|, 1e-2
 * |r_all| / sqrt(tensors)): the floor, a hundredth of a typical tensor's norm, judges gradients that are zero but
 * for rounding. tolerance: 8 times torch's own such distance, plus 256 u (gradients of weights sum over all pixels). */

enum { PICTURES = 3 };
static const double unit = 0x1p-24;

static void make_model(vectors *v, const ddpm_device *device, unsigned arrays, ddpm_model **out)
{
    ddpm_model_config config = ddpm_model_default();
    const char *text = vectors_metadata(v, "config");
    assert_non_null(text);
    OK(io_unet_config_parse(text, strlen(text), v->file.path, &config.unet));
    if (vectors_find(v, "label")) {
        const float *label = vectors_floats(v, "label");
        config.label = (ddpm_label_config){(int)label[0], (int)label[1], (int)label[2]};
    }
    OK(ddpm_model_create(out, &config, device));
    OK(ddpm_model_alloc(*out, arrays));
    int weights = 0;
    for (int i = 0; i < v->file.tensors; i++)
        weights += !strncmp(v->file.tensor[i].name, "weight.", 7);
    assert_int_equal(weights, (*out)->params);
    for (int i = 0; i < (*out)->params; i++) {
        const ddpm_tensor *param = (*out)->param[i];
        const io_tensor *file = vectors_find(v, "weight.%s", param->name);
        int fits = file != NULL && file->dims == param->dims;
        for (int k = 0; fits && k < param->dims; k++)
            fits = file->shape[k] == param->shape[k];
        if (!fits) fail_msg("diffusers has no parameter '%s' of this shape", param->name);
        OK(ddpm_model_set(*out, DDPM_WEIGHT, param, vectors_floats(v, "weight.%s", param->name)));
    }
}

static double largest(size_t count, const double *x)
{
    double result = 0;
    for (size_t i = 0; i < count; i++)
        result = fabs(x[i]) > result ? fabs(x[i]) : result;
    return result;
}

/* Largest |value - truth| relative to the largest truth; infinite for a NaN. */
static double relative_error(size_t count, const float *value, const double *truth)
{
    double error = 0;
    for (size_t i = 0; i < count; i++) {
        double e = fabs((double)value[i] - truth[i]);
        if (!(e <= error)) error = isnan(e) ? INFINITY : e;
    }
    return error / largest(count, truth);
}

static double norm_of_difference(size_t count, const float *a, const double *b)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += ((a ? (double)a[i] : 0) - b[i]) * ((a ? (double)a[i] : 0) - b[i]);
    return sqrt(sum);
}

/* The worst |g - r| / max(|r|, 1e-2 |r_all| / sqrt(tensors)); *name: of which tensor. Frozen parameters have no
 * gradient. */
static double gradient_error(vectors *v, ddpm_model *model, const char **name)
{
    double total = 0, worst = 0;
    int tensors = 0;
    for (int i = 0; i < v->file.tensors; i++) {
        const io_tensor *file = &v->file.tensor[i];
        if (strncmp(file->name, "grad.", 5)) continue;
        double norm = norm_of_difference(file->elements, NULL, vectors_doubles(v, "%s", file->name));
        total += norm * norm;
        tensors++;
    }
    double floor = 1e-2 * sqrt(total / tensors);
    for (int i = 0; i < model->params; i++) {
        const ddpm_tensor *param = model->param[i];
        const io_tensor *file = vectors_find(v, "grad.%s", param->name);
        assert_true((file != NULL) == (param->trainable != 0));
        if (!file) continue;
        float *g = vectors_alloc(v, file->elements * sizeof *g);
        const double *r = vectors_doubles(v, "%s", file->name);
        OK(ddpm_model_get(model, DDPM_GRAD, param, g));
        double norm = norm_of_difference(file->elements, NULL, r);
        double error = norm_of_difference(file->elements, g, r) / (norm > floor ? norm : floor);
        if (!(error <= worst)) worst = isnan(error) ? INFINITY : error, *name = param->name;
    }
    return worst;
}

static void test_network(void **state)
{
    const subject *s = *state;
    char path[256];
    vectors v;
    snprintf(path, sizeof path, VECTORS "unet_%s.safetensors", s->name);
    vectors_open(&v, path);
    ddpm_model *model;
    make_model(&v, &s->device, DDPM_FOR_GRADIENTS, &model);
    const io_tensor *truth = vectors_find(&v, "prediction"), *labels = vectors_find(&v, "labels");
    if (!labels) labels = vectors_find(&v, "class_labels");
    assert_true((labels != NULL) == (ddpm_label_width(&model->config) > 0));
    const float *sample = vectors_floats(&v, "sample"), *t = vectors_floats(&v, "timestep"),
                *label = labels ? vectors_floats(&v, "%s", labels->name) : NULL, *target = vectors_floats(&v, "target");
    const double *expected = vectors_doubles(&v, "%s", truth->name);
    int h = (int)truth->shape[2], w = (int)truth->shape[3];
    float *prediction = vectors_alloc(&v, truth->elements * sizeof *prediction);
    const double *distance = vectors_doubles(&v, "float32"); /* of torch: prediction, gradients */
    double limit = 8 * distance[0] + 16 * unit, gradient_limit = 8 * distance[1] + 256 * unit;

    ddpm_net *net;
    OK(ddpm_net_create(&net, model, h, w, PICTURES + 1, 0));
    OK(ddpm_predict(net, PICTURES, sample, t, label, prediction));
    ddpm_net_free(net);
    double error = relative_error(truth->elements, prediction, expected);
    if (!(error <= limit))
        fail_msg("%s: prediction is %.3g of its largest value off, bound %.3g", s->name, error, limit);

    /* in a network for two pictures: micro-batches of two and one. Dropout would be chance. */
    model->config.unet.dropout = 0;
    OK(ddpm_net_create(&net, model, h, w, PICTURES - 1, 1));
    double loss, expected_loss = *vectors_doubles(&v, "loss");
    const char *name = "";
    memset(prediction, 0xFF, truth->elements * sizeof *prediction);
    OK(ddpm_loss_gradients(net, PICTURES, sample, t, label, target, prediction, &loss));
    double again = relative_error(truth->elements, prediction, expected), gradient = gradient_error(&v, model, &name);
    if (!(again <= limit))
        fail_msg("%s: prediction in training is %.3g of its largest value off, bound %.3g", s->name, again, limit);
    if (!(fabs(loss - expected_loss) <= 2 * limit * expected_loss))
        fail_msg("%s: loss %.9g, torch has %.9g", s->name, loss, expected_loss);
    if (!(gradient <= gradient_limit))
        fail_msg("%s: gradient of %s is %.3g off, bound %.3g", s->name, name, gradient, gradient_limit);
    print_message("           prediction %.1e (bound %.1e), gradients %.1e (bound %.1e, worst %s)\n", error, limit,
                  gradient, gradient_limit, name);
    ddpm_net_free(net);
    ddpm_model_free(model);
    vectors_close(&v);
}

/* ---- 4. Samplers ---- */

/* One step of a sampler in double: x becomes x_{t-1}, image the estimate of x_0; mass adds up the absolute terms,
 * each of whose coefficients has been through at most 8 rounded operations. */
static void step_in_double(const ddpm_step_terms *c, double *x, double eps, double z, double *image, double *mass)
{
    double x0 = c->x0_sample * *x + c->x0_prediction * eps,
           mass0 = fabs(c->x0_sample * *x) + fabs(c->x0_prediction * eps);
    *image = c->clamp > 0 ? fmin(fmax(x0, -c->clamp), c->clamp) : x0;
    *mass = fabs(c->image) * mass0 + fabs(c->sample * *x) + fabs(c->prediction * eps) + fabs(c->noise * z);
    *x = c->image * *image + c->sample * *x + c->prediction * eps + c->noise * z;
}

/* Drawing from the network 'lab' through the core's own loop. */
typedef struct drawing {
    vectors *v;
    const char *name;
    const ddpm_schedule *schedule;
    ddpm_sampler sampler;
    size_t count;           /* elements of x */
    const double *path;     /* NULL: only the arithmetic of each step is checked */
    const double *distance; /* torch's own float32 from the path, by step */
    float *x, *prediction, *noise, *image;
    double worst;
} drawing;

/* DDIM has no noise of its own: x_T is put in, and the whole path must be diffusers'. Errors grow from step to step
 * by what the network makes of them, for torch as for us: 8 times torch's own float32 distance at that step, plus 64
 * u. */
static ddpm_result compare_path(void *user, ddpm_net *net, int done, int steps)
{
    drawing *d = user;
    (void)steps;
    if (!done) return ddpm_upload(net->model->device, net->sample, DDPM_DATA, PICTURES, d->x);
    OK(ddpm_download(net->model->device, net->sample, DDPM_DATA, PICTURES, d->x));
    const double *expected = d->path + (size_t)(done - 1) * d->count;
    double error = relative_error(d->count, d->x, expected) * largest(d->count, expected),
           limit = 8 * d->distance[done - 1] + 64 * unit;
    if (!(error <= limit)) fail_msg("%s, after step %d: x is %.3g off, bound %.3g", d->name, done, error, limit);
    d->worst = fmax(d->worst, error / limit);
    return DDPM_OK;
}

/* DDPM draws its own noise: x_{t-1} must follow from x_t, the prediction and that noise, with a float's rounding of
 * each coefficient, product and sum: gamma(16) of the absolute terms. */
static ddpm_result compare_step(void *user, ddpm_net *net, int done, int steps)
{
    drawing *d = user;
    const ddpm_device *device = net->model->device;
    if (!done) return ddpm_download(device, net->sample, DDPM_DATA, PICTURES, d->x);
    OK(ddpm_download(device, net->prediction, DDPM_DATA, PICTURES, d->prediction));
    OK(ddpm_download(device, net->noise, DDPM_DATA, PICTURES, d->noise));
    OK(ddpm_download(device, net->image, DDPM_DATA, PICTURES, d->image));
    int t[64];
    OK(ddpm_timesteps(d->schedule, d->sampler, steps, t));
    ddpm_step_terms terms = ddpm_step_coefficients(d->schedule, d->sampler, t, steps, done - 1, 0);
    float *next = vectors_alloc(d->v, d->count * sizeof *next);
    OK(ddpm_download(device, net->sample, DDPM_DATA, PICTURES, next));
    for (size_t i = 0; i < d->count; i++) {
        double x = (double)d->x[i], x0, mass;
        step_in_double(&terms, &x, (double)d->prediction[i], (double)d->noise[i], &x0, &mass);
        double error = fabs(x - (double)next[i]) / (16 * unit * mass);
        if (!(error <= 1) || !(fabs(x0 - (double)d->image[i]) <= 16 * unit * mass / fmax(fabs(terms.image), 1e-3)))
            fail_msg("step %d, element %zu: %.9g, expected %.9g; x_0 %.9g, expected %.9g", done, i, (double)next[i], x,
                     (double)d->image[i], x0);
        d->worst = fmax(d->worst, error);
    }
    d->x = next;
    return DDPM_OK;
}

static void test_drawing(void **state)
{
    const subject *s = *state;
    vectors v, sampling;
    vectors_open(&v, VECTORS "unet_lab.safetensors");
    vectors_open(&sampling, VECTORS "sampling.safetensors");
    ddpm_model *model;
    make_model(&v, &s->device, DDPM_FOR_INFERENCE, &model);
    ddpm_schedule schedule;
    ddpm_net *net;
    OK(ddpm_schedule_create(&schedule, NULL));
    OK(ddpm_net_create(&net, model, 8, 8, PICTURES + 1, 0));
    const float *labels = vectors_floats(&sampling, "network/labels");
    const io_tensor *start = vectors_find(&sampling, "network/%s/start", s->name);
    drawing d = {.v = &sampling,
                 .name = s->name,
                 .schedule = &schedule,
                 .count = start->elements,
                 .x = vectors_floats(&sampling, "%s", start->name)};
    d.path = vectors_doubles(&sampling, "network/%s/path", s->name);
    d.distance = vectors_doubles(&sampling, "network/%s/float32", s->name);
    d.prediction = vectors_alloc(&sampling, d.count * sizeof(float));
    d.noise = vectors_alloc(&sampling, d.count * sizeof(float));
    d.image = vectors_alloc(&sampling, d.count * sizeof(float));
    const int steps = (int)vectors_find(&sampling, "network/%s/timestep", s->name)->elements;
    ddpm_sample_config config = ddpm_sample_default();
    config.steps = steps;
    if (!strcmp(s->name, "ddim")) {
        config.sampler = d.sampler = DDPM_SAMPLER_DDIM;
        OK(ddpm_sample(net, &schedule, &config, labels, PICTURES, d.image, compare_path, &d));
        assert_memory_equal(d.image, d.x, d.count * sizeof(float));
    } else {
        /* diffusers' path on its stored noise, by ddpm_predict and the coefficients; then the core's own loop on its
         * own noise */
        const double *z = vectors_doubles(&sampling, "network/ddpm/noise");
        int t[64];
        OK(ddpm_timesteps(&schedule, DDPM_SAMPLER_DDPM, steps, t));
        for (int k = 0; k < steps; k++) {
            float time[PICTURES] = {(float)t[k], (float)t[k], (float)t[k]};
            ddpm_step_terms terms = ddpm_step_coefficients(&schedule, DDPM_SAMPLER_DDPM, t, steps, k, 0);
            OK(ddpm_predict(net, PICTURES, d.x, time, labels, d.prediction));
            for (size_t i = 0; i < d.count; i++) {
                double x = (double)d.x[i], x0, mass;
                step_in_double(&terms, &x, (double)d.prediction[i], z[(size_t)k * d.count + i], &x0, &mass);
                d.x[i] = (float)x;
            }
            const double *expected = d.path + (size_t)k * d.count;
            double error = relative_error(d.count, d.x, expected) * largest(d.count, expected),
                   limit = 8 * d.distance[k] + 64 * unit;
            if (!(error <= limit)) fail_msg("ddpm, after step %d: x is %.3g off, bound %.3g", k + 1, error, limit);
            d.worst = fmax(d.worst, error / limit);
        }
        OK(ddpm_sample(net, &schedule, &config, labels, PICTURES, d.image, compare_step, &d));
        assert_memory_equal(d.image, d.x, d.count * sizeof(float));
    }
    print_message("           worst error %.2f of its bound\n", d.worst);
    ddpm_net_free(net);
    ddpm_model_free(model);
    ddpm_schedule_free(&schedule);
    vectors_close(&sampling);
    vectors_close(&v);
}

/* ddpm_add_noise on a network's tensors: two coefficients, two products, one sum: gamma(4) of the absolute terms. */
static void test_add_noise(void **state)
{
    enum { N = 4 };
    const subject *s = *state;
    vectors v, weights;
    vectors_open(&weights, VECTORS "unet_lab.safetensors");
    vectors_open(&v, VECTORS "sampling.safetensors");
    ddpm_model *model;
    make_model(&weights, &s->device, DDPM_FOR_GRADIENTS, &model);
    ddpm_schedule schedule;
    ddpm_net *net;
    OK(ddpm_schedule_create(&schedule, NULL));
    OK(ddpm_net_create(&net, model, 8, 8, N + 1, 1));
    OK(ddpm_graph_alloc(net->graph));
    const io_tensor *truth = vectors_find(&v, "add_noise/sample");
    const float *image = vectors_floats(&v, "add_noise/image"), *noise = vectors_floats(&v, "add_noise/noise"),
                *time = vectors_floats(&v, "add_noise/timestep");
    size_t count = truth->elements, where;
    int t[N];
    float *x = vectors_alloc(&v, count * sizeof *x), real[N];
    double *bound = vectors_alloc(&v, count * sizeof *bound);
    for (int i = 0; i < N; i++)
        t[i] = (int)time[i];
    for (size_t i = 0; i < count; i++) {
        double a = (double)schedule.alpha_bar[t[i / (count / N)]];
        bound[i] = 4 * unit * (fabs(sqrt(a) * (double)image[i]) + fabs(sqrt(1 - a) * (double)noise[i]));
    }
    OK(ddpm_upload(&s->device, net->image, DDPM_DATA, N, image));
    OK(ddpm_upload(&s->device, net->noise, DDPM_DATA, N, noise));
    OK(ddpm_add_noise(net, &schedule, t, N));
    OK(ddpm_download(&s->device, net->sample, DDPM_DATA, N, x));
    OK(ddpm_download(&s->device, net->timestep, DDPM_DATA, N, real));
    assert_true(vectors_worst(count, x, vectors_doubles(&v, "%s", truth->name), bound, &where) <= 1);
    assert_memory_equal(real, time, sizeof real);
    ddpm_net_free(net);
    ddpm_model_free(model);
    ddpm_schedule_free(&schedule);
    vectors_close(&v);
    vectors_close(&weights);
}

/* torch.rand to the bit. torch.randn: within the 4e-6 of its own float logarithm, cosine and sine (|value| < 5.8) from
 * 16 on; below, both compute in double and round once, so that only a tie in the last bit may differ: 2 u. */
static void test_torch_numbers(void **state)
{
    (void)state;
    static const uint64_t seeds[] = {0, 529, (UINT64_C(1) << 32) + 5, UINT64_C(12345678901234)};
    vectors v;
    vectors_open(&v, VECTORS "torch.safetensors");
    double worst = 0;
    for (size_t s = 0; s < LENGTH(seeds); s++) {
        unsigned long long seed = seeds[s];
        const float *uniform = vectors_floats(&v, "uniform/%llu", seed);
        ddpm_torch_rng rng;
        ddpm_torch_seed(&rng, seed);
        for (int i = 0; i < 2000; i++) {
            float u = ddpm_torch_uniform(&rng);
            if (i % 37 == 0 && u != uniform[i / 37]) fail_msg("seed %llu: rand %d", seed, i);
        }
        ddpm_torch_seed(&rng, seed);
        for (int k = 0; vectors_find(&v, "normal/%llu/%d", seed, k); k++) {
            size_t count = vectors_find(&v, "normal/%llu/%d", seed, k)->elements;
            const float *normal = vectors_floats(&v, "normal/%llu/%d", seed, k);
            float *ours = vectors_alloc(&v, count * sizeof *ours);
            ddpm_torch_normals(&rng, count, ours);
            for (size_t i = 0; i < count; i++) {
                double e = fabs((double)ours[i] - (double)normal[i]);
                if (e > (count < 16 ? 2 * unit * fabs((double)normal[i]) : 4e-6))
                    fail_msg("seed %llu, call %d of %zu: value %zu is %.9g, torch's %.9g", seed, k, count, i,
                             (double)ours[i], (double)normal[i]);
                worst = fmax(worst, e);
            }
        }
    }
    print_message("           normals at most %.1e from torch's\n", worst);
    vectors_close(&v);
}

/* The picture of diffusers' own loop on the CPU, in its random numbers, after rounding to 0..255: at most 1 apart. */
static void test_torch_picture(void **state)
{
    const subject *s = *state;
    vectors v, torch;
    vectors_open(&v, VECTORS "unet_lab.safetensors");
    vectors_open(&torch, VECTORS "torch.safetensors");
    ddpm_model *model;
    ddpm_net *net;
    ddpm_schedule schedule;
    make_model(&v, &s->device, DDPM_FOR_INFERENCE, &model);
    OK(ddpm_schedule_create(&schedule, NULL));
    OK(ddpm_net_create(&net, model, 8, 8, PICTURES, 0));
    const double *attr = vectors_doubles(&torch, "picture/%s/attr", s->name);
    const float *labels = vectors_floats(&torch, "picture/labels"),
                *x = vectors_floats(&torch, "picture/%s/x", s->name);
    size_t count = vectors_find(&torch, "picture/%s/x", s->name)->elements;
    float *ours = vectors_alloc(&torch, count * sizeof *ours);
    ddpm_sample_config config = ddpm_sample_default();
    config.sampler = strncmp(s->name, "ddim", 4) == 0 ? DDPM_SAMPLER_DDIM : DDPM_SAMPLER_DDPM;
    config.steps = (int)attr[0];
    config.eta = attr[1];
    config.torch_rng = 1;
    OK(ddpm_sample(net, &schedule, &config, labels, PICTURES, ours, NULL, NULL));
    double apart = 0, distance = 0;
    for (size_t i = 0; i < count; i++) {
        double a = fmin(fmax((double)ours[i] / 2 + 0.5, 0), 1), b = fmin(fmax((double)x[i] / 2 + 0.5, 0), 1);
        apart = fmax(apart, fabs(rint(255 * a) - rint(255 * b)));
        distance = fmax(distance, fabs(255 * (a - b)));
    }
    print_message("           %d steps: %.3g of 255 apart before rounding\n", config.steps, distance);
    if (!(apart <= 1)) fail_msg("%s: %g of 255 apart", s->name, apart);
    config.first_picture = 1; /* picture 1 alone, from its own generator */
    OK(ddpm_sample(net, &schedule, &config, labels + ddpm_label_width(&model->config), 1, ours, NULL, NULL));
    for (size_t i = 0; i < count / PICTURES; i++)
        if (!(fabs((double)ours[i] - (double)x[count / PICTURES + i]) <= 2.0 / 255)) fail_msg("alone: element %zu", i);
    ddpm_net_free(net);
    ddpm_schedule_free(&schedule);
    ddpm_model_free(model);
    vectors_close(&torch);
    vectors_close(&v);
}

/* No test, but a figure that `tests/parity/run.py --only distance` draws: how far x_t is from that of diffusers' loop
 * after each step, in levels of 255, for the loops whose paths paths_file has. */
static const char *paths_file, *figure_file;

typedef struct follower {
    const float *path; /* (steps + 1, PICTURES, C, H, W) */
    float *x;
    size_t count;
    double *share, *distance; /* by steps done: percent of the way, largest distance */
} follower;

static ddpm_result follow(void *user, ddpm_net *net, int done, int steps)
{
    follower *f = user;
    OK(ddpm_download(net->model->device, net->sample, DDPM_DATA, PICTURES, f->x));
    for (size_t i = 0; i < f->count; i++)
        f->distance[done] =
            fmax(f->distance[done], 127.5 * fabs((double)f->x[i] - (double)f->path[(size_t)done * f->count + i]));
    f->share[done] = 100.0 * done / steps;
    return DDPM_OK;
}

static void follow_loop(vectors *v, vectors *paths, const char *loop, const ddpm_backend *backend, io_series *series)
{
    ddpm_device device;
    ddpm_model *model;
    ddpm_net *net;
    ddpm_schedule schedule;
    follower f = {.path = vectors_floats(paths, "%s/path", loop)};
    const io_tensor *path = vectors_find(paths, "%s/path", loop);
    ddpm_sample_config config = ddpm_sample_default();
    config.sampler = strcmp(loop, "ddim") == 0 ? DDPM_SAMPLER_DDIM : DDPM_SAMPLER_DDPM;
    config.steps = (int)path->shape[0] - 1;
    config.torch_rng = 1;
    size_t points = (size_t)config.steps + 1;
    f.count = path->elements / points;
    f.x = vectors_alloc(paths, f.count * sizeof *f.x);
    f.share = vectors_alloc(paths, points * sizeof *f.share);
    f.distance = vectors_alloc(paths, points * sizeof *f.distance);
    OK(ddpm_device_open(&device, backend, 1, NULL));
    make_model(v, &device, DDPM_FOR_INFERENCE, &model);
    OK(ddpm_schedule_create(&schedule, NULL));
    OK(ddpm_net_create(&net, model, 8, 8, PICTURES, 0));
    OK(ddpm_sample(net, &schedule, &config, vectors_floats(paths, "labels"), PICTURES, f.x, follow, &f));
    double worst = 0;
    for (size_t i = 0; i < points; i++)
        worst = fmax(worst, f.distance[i]);
    char *name = vectors_alloc(paths, 64);
    snprintf(name, 64, "%s, %d steps, %s", loop, config.steps, backend->name);
    print_message("           %s: at most %.2g of 255 apart, %.2g at the end\n", name, worst, f.distance[points - 1]);
    *series = (io_series){.name = name, .x = f.share, .y = f.distance, .count = (int)points};
    ddpm_net_free(net);
    ddpm_schedule_free(&schedule);
    ddpm_model_free(model);
    ddpm_device_close(&device);
}

static void draw_distances(void **state)
{
    (void)state;
    vectors v, paths;
    io_series series[4];
    io_picture picture;
    vectors_open(&v, VECTORS "unet_lab.safetensors");
    vectors_open(&paths, paths_file);
    for (int i = 0; i < 4; i++)
        follow_loop(&v, &paths, i < 2 ? "ddpm" : "ddim", i % 2 ? ddpm_cpu() : ddpm_reference(), &series[i]);
    io_plot plot = {"--rng torch beside diffusers' own loop",
                    "steps done, percent",
                    "largest distance, levels of 255",
                    series,
                    4,
                    1,
                    0,
                    0};
    OK(io_plot_draw(&plot, &picture));
    OK(io_picture_write_png(figure_file, &picture, NULL, 0));
    io_picture_free(&picture);
    vectors_close(&paths);
    vectors_close(&v);
}

/* ---- 5. The optimiser ---- */

/* Step k, counted from 1; a: lr, beta1, beta2, eps, weight_decay, max_grad_norm, ema_decay. */
static ddpm_step optimiser_step(const double *a, int k)
{
    return (ddpm_step){.lr = a[0],
                       .beta1 = a[1],
                       .beta2 = a[2],
                       .eps = a[3],
                       .correction1 = 1 - pow(a[1], k),
                       .correction2 = 1 - pow(a[2], k),
                       .weight_decay = a[4],
                       .max_grad_norm = a[5],
                       .ema_decay = ddpm_ema_decay((uint64_t)k, a[6])};
}

/* The vectors' values are spread over the parameters of a whole model, one every STRIDE elements of an array; the
 * rest are left as they are. Parameters start at multiples of 16 elements, so a multiple of 16 never falls between
 * two of them. */
enum { STRIDE = 48 };

/* Writes the values there (set = 1), or reads them. */
static void spread(ddpm_model *model, ddpm_array array, int set, size_t count, float *value)
{
    for (int p = 0; p < model->params; p++) {
        const ddpm_tensor *x = model->param[p];
        size_t elements = ddpm_elements(x, 0), first = (x->offset + STRIDE - 1) / STRIDE;
        ddpm_real *part = malloc(elements * sizeof *part);
        assert_non_null(part);
        OK(ddpm_model_get(model, array, x, part));
        for (size_t i = first; i < count && i * STRIDE < x->offset + elements; i++) {
            float *at = &part[i * STRIDE - x->offset];
            if (set)
                *at = value[i];
            else
                value[i] = *at;
        }
        OK(ddpm_model_set(model, array, x, part));
        free(part);
    }
}

static void test_optimiser(void **state)
{
    static const struct {
        ddpm_array array;
        const char *key;
    } result[] = {{DDPM_WEIGHT, "weight"}, {DDPM_MOMENT1, "moment1"}, {DDPM_MOMENT2, "moment2"}, {DDPM_EMA, "ema"}};
    const subject *s = *state;
    vectors v, weights;
    vectors_open(&weights, VECTORS "unet_lab.safetensors");
    vectors_open(&v, VECTORS "optimiser.safetensors");
    ddpm_model *model;
    make_model(&weights, &s->device, DDPM_FOR_TRAINING, &model);
    const double *a = vectors_doubles(&v, "%s/attr", s->name), *norm = vectors_doubles(&v, "%s/norm", s->name);
    const io_tensor *gradients = vectors_find(&v, "%s/gradient", s->name);
    float *gradient = vectors_floats(&v, "%s", gradients->name), *start = vectors_floats(&v, "%s/start", s->name);
    size_t steps = (size_t)gradients->shape[0], count = (size_t)gradients->shape[1];
    assert_true(count <= 128 && (count - 1) * STRIDE < model->elements);
    spread(model, DDPM_WEIGHT, 1, count, start);
    spread(model, DDPM_EMA, 1, count, start);
    double worst = 0;
    for (size_t k = 0; k < steps; k++) {
        spread(model, DDPM_GRAD, 1, count, gradient + k * count);
        ddpm_step step = optimiser_step(a, (int)k + 1);
        OK(ddpm_update(model, &step));
        assert_true(fabs(step.grad_norm - norm[k]) <=
                    128 * unit * norm[k]); /* gamma(97 + 2), were it summed in float */
        for (size_t r = 0; r < sizeof result / sizeof *result; r++) {
            float value[128] = {0};
            size_t where;
            const double *truth = vectors_doubles(&v, "%s/%s", s->name, result[r].key) + k * count;
            const double *bound = vectors_doubles(&v, "%s/%s.bound", s->name, result[r].key) + k * count;
            spread(model, result[r].array, 0, count, value);
            double ratio = vectors_worst(count, value, truth, bound, &where);
            if (!(ratio <= 1))
                fail_msg("%s, step %zu: %s[%zu] is %.9g, torch has %.9g: %.3g times the bound", s->name, k + 1,
                         result[r].key, where, (double)value[where], truth[where], ratio);
            worst = fmax(worst, ratio);
        }
    }
    print_message("           worst error %.2f of its bound\n", worst);
    ddpm_model_free(model);
    vectors_close(&v);
    vectors_close(&weights);
}

/* In double, both: 16 roundings of 2^-53. */
static void test_rates(void **state)
{
    (void)state;
    static const int milestones[] = {15, 60, 150};
    vectors v;
    vectors_open(&v, VECTORS "optimiser.safetensors");
    const io_tensor *decays = vectors_find(&v, "ema/decay"), *rates = vectors_find(&v, "multistep/lr");
    const double *step = vectors_doubles(&v, "ema/step"), *decay = vectors_doubles(&v, "%s", decays->name),
                 *lr = vectors_doubles(&v, "%s", rates->name);
    for (size_t i = 0; i < decays->elements; i++)
        assert_true(fabs(ddpm_ema_decay((uint64_t)step[i], 0.9999) - decay[i]) <= 0x1p-49 * decay[i]);
    for (size_t i = 0; i < rates->elements; i++)
        assert_true(fabs(ddpm_multistep_lr(1e-4, (int)i, milestones, 3, 0.1) - lr[i]) <= 0x1p-49 * lr[i]);
    vectors_close(&v);
}

/* Five steps of the network 'lab': losses, gradient norms, and some parameters and their averages at the end, within
 * 16 times torch's own float32 distance plus 32 u of the value. (Parameters whose gradient is zero but for rounding,
 * such as to_k.bias, are not among them: Adam turns the sign of that rounding into steps of lr, in torch as here.) */
static void test_training(void **state)
{
    const subject *s = *state;
    vectors v, weights;
    vectors_open(&weights, VECTORS "unet_lab.safetensors");
    vectors_open(&v, VECTORS "optimiser.safetensors");
    ddpm_model *model;
    make_model(&weights, &s->device, DDPM_FOR_TRAINING, &model);
    for (int p = 0; p < model->params; p++)
        OK(ddpm_model_set(model, DDPM_EMA, model->param[p],
                          vectors_floats(&weights, "weight.%s", model->param[p]->name)));
    ddpm_net *net;
    OK(ddpm_net_create(&net, model, 8, 8, PICTURES, 1));
    const io_tensor *samples = vectors_find(&v, "training/sample"), *label_sets = vectors_find(&v, "training/labels");
    const float *sample = vectors_floats(&v, "%s", samples->name), *noise = vectors_floats(&v, "training/noise"),
                *labels = vectors_floats(&v, "%s", label_sets->name), *t = vectors_floats(&v, "training/timestep");
    const double *loss = vectors_doubles(&v, "training/loss"), *norm = vectors_doubles(&v, "training/norm"),
                 *loss32 = vectors_doubles(&v, "training/loss.float32"),
                 *norm32 = vectors_doubles(&v, "training/norm.float32");
    const double adam[] = {1e-3, 0.9, 0.999, 1e-8, 0, 1, 0.9999};
    size_t steps = (size_t)samples->shape[0], batch = samples->elements / steps, width = label_sets->elements / steps;
    for (size_t k = 0; k < steps; k++) {
        double ours;
        OK(ddpm_loss_gradients(net, PICTURES, sample + k * batch, t + k * PICTURES, labels + k * width,
                               noise + k * batch, NULL, &ours));
        ddpm_step step = optimiser_step(adam, (int)k + 1);
        OK(ddpm_update(model, &step));
        if (!(fabs(ours - loss[k]) <= 16 * loss32[k] + 32 * unit * loss[k]) ||
            !(fabs(step.grad_norm - norm[k]) <= 16 * norm32[k] + 32 * unit * norm[k]))
            fail_msg("step %zu: loss %.9g, torch %.9g; gradient norm %.9g, torch %.9g", k + 1, ours, loss[k],
                     step.grad_norm, norm[k]);
    }
    double worst = 0;
    int compared = 0;
    for (int p = 0; p < model->params; p++) {
        static const struct {
            ddpm_array array;
            const char *key;
        } result[] = {{DDPM_WEIGHT, "weight"}, {DDPM_EMA, "ema"}};
        const ddpm_tensor *x = model->param[p];
        if (!vectors_find(&v, "training/weight.%s", x->name)) continue;
        const double *distance = vectors_doubles(&v, "training/float32.%s", x->name); /* largest, root mean square */
        size_t count = ddpm_elements(x, 0), where;
        float *value = vectors_alloc(&v, count * sizeof *value);
        double *bound = vectors_alloc(&v, count * sizeof *bound);
        for (int r = 0; r < 2; r++) {
            const double *truth = vectors_doubles(&v, "training/%s.%s", result[r].key, x->name);
            for (size_t i = 0; i < count; i++)
                bound[i] = 16 * distance[0] + 32 * unit * fabs(truth[i]);
            OK(ddpm_model_get(model, result[r].array, x, value));
            double ratio = vectors_worst(count, value, truth, bound, &where);
            if (!(ratio <= 1))
                fail_msg("%s of %s[%zu] after %zu steps: %.9g, torch has %.9g", result[r].key, x->name, where, steps,
                         (double)value[where], truth[where]);
            worst = fmax(worst, ratio);
        }
        compared++;
    }
    assert_int_equal(compared, 8);
    print_message("           worst error of a parameter %.2f of its bound\n", worst);
    ddpm_net_free(net);
    ddpm_model_free(model);
    vectors_close(&v);
    vectors_close(&weights);
}

/* What a backend with memory of its own leaves out, the reference does on copies: three training steps of 5 pictures
 * in micro- batches of 3 and 2, and a drawing from their average, give the same bits as the reference's own. */
static void train_and_draw(const ddpm_device *device, float *weights, float *averages, float *pictures)
{
    enum { CAPACITY = 3, BATCH = 5 };
    vectors v, training;
    vectors_open(&v, VECTORS "unet_lab.safetensors");
    vectors_open(&training, VECTORS "optimiser.safetensors");
    ddpm_model *model;
    ddpm_net *net;
    ddpm_trainer trainer;
    ddpm_schedule schedule;
    make_model(&v, device, DDPM_FOR_TRAINING, &model);
    OK(ddpm_schedule_create(&schedule, NULL));
    OK(ddpm_net_create(&net, model, 8, 8, CAPACITY, 1));
    OK(ddpm_trainer_init(&trainer, net, &schedule, NULL));
    const float *image = vectors_floats(&training, "training/noise"),
                *labels = vectors_floats(&training, "training/labels");
    double loss;
    for (int k = 0; k < 3; k++)
        OK(ddpm_train_step(&trainer, image, labels, BATCH, 1e-3, &loss));
    size_t at = 0;
    for (int p = 0; p < model->params; at += ddpm_elements(model->param[p++], 0)) {
        OK(ddpm_model_get(model, DDPM_WEIGHT, model->param[p], weights + at));
        OK(ddpm_model_get(model, DDPM_EMA, model->param[p], averages + at));
    }
    ddpm_net_free(net);
    ddpm_sample_config config = ddpm_sample_default();
    config.steps = 4;
    config.guidance = 3; /* on views of tensors */
    OK(ddpm_model_use(model, DDPM_EMA));
    OK(ddpm_net_create(&net, model, 8, 8, 4, 0));
    OK(ddpm_sample(net, &schedule, &config, labels, 2, pictures, NULL, NULL));
    ddpm_net_free(net);
    ddpm_model_free(model);
    ddpm_schedule_free(&schedule);
    vectors_close(&training);
    vectors_close(&v);
}

static void test_fallbacks(void **state)
{
    enum { ROOM = 20000, PICTURE = 2 * 3 * 8 * 8 };
    const subject *s = *state;
    static float weights[2][ROOM], averages[2][ROOM], pictures[2][PICTURE];
    train_and_draw(NULL, weights[0], averages[0], pictures[0]);
    train_and_draw(&s->device, weights[1], averages[1], pictures[1]);
    assert_true(memcmp(weights[0], averages[0], sizeof weights[0]) != 0);
    assert_memory_equal(weights[0], weights[1], sizeof weights[0]);
    assert_memory_equal(averages[0], averages[1], sizeof averages[0]);
    assert_memory_equal(pictures[0], pictures[1], sizeof pictures[0]);
}

/* ---- 6. main ---- */

static const char *const networks[] = {"lab",
                                       "plain",
                                       "fourier",
                                       "padding0",
                                       "resnet_resample",
                                       "scale_shift",
                                       "scale_shift_groups",
                                       "embedding",
                                       "narrow_heads",
                                       "fourier_timestep",
                                       "one_level",
                                       "downsample_resnet"};
static const char *const samplers[] = {"ddpm", "ddim"};
static const char *const torch_pictures[] = {"ddim", "ddim_eta", "ddpm"};
static const char *const optimisers[] = {"adam", "clipped", "adamw"};

enum { MOST_TESTS = 256 };
static struct CMUnitTest tests[MOST_TESTS];
static subject subjects[MOST_TESTS];
static char names[MOST_TESTS][96];
static int added;

static void add_test(const char *group, const char *name, CMUnitTestFunction function, const ddpm_backend *backend,
                     ddpm_op op)
{
    if (added >= MOST_TESTS) exit(1);
    snprintf(names[added], sizeof names[added], "%s %s%s%s", group, name, backend ? " on " : "",
             backend ? backend->name : "");
    subjects[added] = (subject){.device = {.backend = backend}, .op = op, .name = name};
    tests[added] = (struct CMUnitTest){names[added], function, backend ? open_device : NULL,
                                       backend ? close_device : NULL, &subjects[added]};
    added++;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "--distance") == 0) {
        paths_file = argv[2];
        figure_file = argv[3];
        add_test("torch", "distance by steps", draw_distances, NULL, 0);
        return _cmocka_run_group_tests("vectors", tests, (size_t)added, NULL, NULL);
    }
    if (argc == 2) cmocka_set_test_filter(argv[1]); /* a pattern of those to run */
    for (int b = 0; b < BACKENDS; b++) {
        const ddpm_backend *backend = backends[b].backend();
        for (int op = 0; op < DDPM_OP_COUNT; op++)
            add_test("operation", ddpm_op_name((ddpm_op)op), test_operation, backend, (ddpm_op)op);
        for (size_t i = 0; i < LENGTH(networks); i++)
            add_test("network", networks[i], test_network, backend, 0);
        for (size_t i = 0; i < LENGTH(samplers); i++)
            add_test("drawing", samplers[i], test_drawing, backend, 0);
        add_test("add_noise", "to tensors", test_add_noise, backend, 0);
        for (size_t i = 0; i < LENGTH(torch_pictures) && backend != shadow_backend(); i++)
            add_test("diffusers' picture", torch_pictures[i], test_torch_picture, backend, 0);
        for (size_t i = 0; i < LENGTH(optimisers); i++)
            add_test("optimiser", optimisers[i], test_optimiser, backend, 0);
        add_test("training", "five steps", test_training, backend, 0);
    }
    add_test("training", "to the reference's bits", test_fallbacks, shadow_backend(), 0);
    add_test("torch", "random numbers", test_torch_numbers, NULL, 0);
    add_test("rates", "EMA and MultiStepLR", test_rates, NULL, 0);
    add_test("vectors", "all belong to an operation", test_no_stray_vectors, NULL, 0);
    return _cmocka_run_group_tests("vectors", tests, (size_t)added, NULL, NULL);
}
