/* tests/cuda/bf16_curve.c - what `--isa bf16` does to training, without a GPU: the small model trained twice on the
 * same pictures, noise and order, once with float32 products and once with their operands rounded to bfloat16, as
 * cuda_backend.cu rounds them: of forward x and w, of backward dy with w and dy with x, in convolutions and linear
 * layers. Sums, weights, statistics, softmax, losses and Adam stay float32 there and here.
 *
 *     bf16_curve STEPS BATCH OUT.csv OUT.png          `make bf16` writes docs/bf16.csv and docs/bf16.png
 *
 * Contents: 1 products with rounded operands   2 the backend   3 two models   4 main */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_backend.h"
#include "io/picture.h"
#include "io/plot.h"
#include "lab/render.h"

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        ddpm_result try_result = (call);                                                                               \
        if (try_result != DDPM_OK) return try_result;                                                                  \
    } while (0)

/* ---- 1. Products with rounded operands -------------------------------------------------------------------------
 * The cpu backend computes the product of one node in a graph of that node alone, whose operands are copies. */

typedef struct product {
    ddpm_device *cpu;
    ddpm_graph *g;
    ddpm_tensor *x, *y, w;
    float *held; /* what is on its way into the graph or out of it */
} product;

/* To the nearest of 8 significant bits, ties to even: __float2bfloat16. */
static float to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7FFFFFFFu) <= 0x7F800000u) u = (u + 0x7FFFu + (u >> 16 & 1)) & 0xFFFF0000u;
    memcpy(&f, &u, sizeof f);
    return f;
}

static void operand(int rounded, size_t count, const float *from, float *to)
{
    for (size_t i = 0; i < count; i++)
        to[i] = rounded ? to_bf16(from[i]) : from[i];
}

static ddpm_result make_product(const ddpm_graph *whole, ddpm_device *cpu, ddpm_node *node)
{
    const ddpm_tensor *x = node->in[0], *w = node->in[1];
    product *p = calloc(1, sizeof *p);
    if (!p) return ddpm_fail(DDPM_ERR_MEMORY, "out of memory");
    node->plan = p;
    size_t most = ddpm_elements(x, whole->capacity), y_count = ddpm_elements(node->out, whole->capacity);
    p->cpu = cpu;
    p->held = malloc((most > y_count ? most : y_count) * sizeof *p->held);
    p->w = *w;
    p->w.data = malloc(ddpm_elements(w, 0) * sizeof *p->w.data);
    p->w.grad = malloc(ddpm_elements(w, 0) * sizeof *p->w.grad);
    p->w.version = NULL;
    if (!p->held || !p->w.data || !p->w.grad) return ddpm_fail(DDPM_ERR_MEMORY, "out of memory");
    TRY(ddpm_graph_create(&p->g, cpu, whole->capacity, DDPM_TRAINING));
    p->x = ddpm_input(p->g, "x", x->shape[1], x->shape[2], x->shape[3], (int)(node->wants & 1));
    p->y = node->op == DDPM_OP_LINEAR ? ddpm_linear(p->g, p->x, &p->w, NULL)
                                      : ddpm_conv2d(p->g, p->x, &p->w, NULL, node->attr.conv.stride,
                                                    node->attr.conv.pad_start, node->attr.conv.pad_end);
    TRY(ddpm_graph_plan(p->g, p->y, &p->y, 1));
    return ddpm_graph_alloc(p->g);
}

static int rounds(const ddpm_graph *g); /* does this backend? */

static ddpm_result product_forward(const ddpm_graph *g, const ddpm_node *node)
{
    product *p = node->plan;
    size_t count = ddpm_elements(node->out, g->n), plane = count / (size_t)(g->n * node->out->shape[1]);
    operand(rounds(g), ddpm_elements(node->in[0], g->n), node->in[0]->data, p->held);
    operand(rounds(g), ddpm_elements(node->in[1], 0), node->in[1]->data, p->w.data);
    TRY(ddpm_upload(p->cpu, p->x, DDPM_DATA, g->n, p->held));
    TRY(ddpm_graph_forward(p->g, g->n));
    TRY(ddpm_download(p->cpu, p->y, DDPM_DATA, g->n, node->out->data));
    for (size_t i = 0; node->in[2] && i < count / plane; i++)
        for (size_t k = 0; k < plane; k++)
            node->out->data[i * plane + k] += node->in[2]->data[i % (size_t)node->out->shape[1]];
    return DDPM_OK;
}

static ddpm_result product_backward(const ddpm_graph *g, const ddpm_node *node)
{
    product *p = node->plan;
    size_t count = ddpm_elements(node->out, g->n), plane = count / (size_t)(g->n * node->out->shape[1]);
    size_t channels = (size_t)node->out->shape[1], weights = ddpm_elements(node->in[1], 0);
    operand(rounds(g), count, node->out->grad, p->held);
    memset(p->w.grad, 0, weights * sizeof *p->w.grad);
    TRY(ddpm_graph_backward(p->g, p->held, NULL, NULL));
    for (size_t i = 0; i < weights && node->wants & 2; i++)
        node->in[1]->grad[i] += p->w.grad[i];
    for (size_t c = 0; c < channels && node->wants & 4; c++) {
        double total = 0;
        for (size_t n = 0; n < (size_t)g->n; n++)
            for (size_t i = 0; i < plane; i++)
                total += (double)node->out->grad[(n * channels + c) * plane + i];
        node->in[2]->grad[c] += (float)total;
    }
    if (!(node->wants & 1)) return DDPM_OK;
    float *dx = node->in[0]->grad;
    TRY(ddpm_download(p->cpu, p->x, DDPM_GRADIENT, g->n, p->held));
    for (size_t i = 0; i < ddpm_elements(node->in[0], g->n); i++)
        dx[i] = (node->accumulate & 1 ? dx[i] : 0) + p->held[i];
    return DDPM_OK;
}

/* ---- 2. The backend: the reference's, but for these two rows ----------------------------------------------------- */

static ddpm_device cpu_device;

static ddpm_result plan(ddpm_graph *g)
{
    for (int i = 0; i < g->nodes; i++)
        if (g->node[i]->op == DDPM_OP_CONV2D || g->node[i]->op == DDPM_OP_LINEAR)
            TRY(make_product(g, &cpu_device, g->node[i]));
    return DDPM_OK;
}

static void unplan(ddpm_graph *g)
{
    for (int i = 0; i < g->nodes; i++) {
        product *p = g->node[i]->plan;
        if (!p) continue;
        ddpm_graph_free(p->g);
        free(p->w.data);
        free(p->w.grad);
        free(p->held);
        free(p);
    }
}

static ddpm_row rows[DDPM_OP_COUNT];
static ddpm_backend exact = {.name = "float32 products", .rows = rows, .plan = plan, .unplan = unplan};
static ddpm_backend rounding = {.name = "bfloat16 products", .rows = rows, .plan = plan, .unplan = unplan};

static int rounds(const ddpm_graph *g)
{
    return g->device->backend == &rounding;
}

/* ---- 3. Two models ----------------------------------------------------------------------------------------------- */

enum { SIZE = 32, PICTURE = 3 * SIZE * SIZE, CLASSES = LAB_RENDER_CLASSES };

typedef struct run {
    ddpm_device device;
    ddpm_model *model;
    ddpm_net *net;
    ddpm_trainer trainer;
    double *loss;
} run;

static ddpm_result open_run(run *r, const ddpm_backend *backend, const ddpm_schedule *schedule, int batch, int steps)
{
    ddpm_model_config config = ddpm_model_preset("small", CLASSES);
    r->loss = calloc((size_t)steps, sizeof *r->loss);
    if (!r->loss) return ddpm_fail(DDPM_ERR_MEMORY, "out of memory");
    TRY(ddpm_device_open(&r->device, backend, 0, NULL));
    TRY(ddpm_model_create(&r->model, &config, &r->device));
    TRY(ddpm_model_alloc(r->model, DDPM_FOR_TRAINING));
    TRY(ddpm_model_init(r->model, 529));
    TRY(ddpm_net_create(&r->net, r->model, SIZE, SIZE, batch, DDPM_TRAINING));
    return ddpm_trainer_init(&r->trainer, r->net, schedule, NULL);
}

static void close_run(run *r)
{
    ddpm_net_free(r->net);
    ddpm_model_free(r->model);
    ddpm_device_close(&r->device);
    free(r->loss);
}

/* Scenes of one, two and three objects, none of them twice. */
static ddpm_result draw_batch(int step, int batch, float *pictures, float *labels)
{
    unsigned char rgb[PICTURE];
    memset(labels, 0, (size_t)batch * CLASSES * sizeof *labels);
    for (int i = 0; i < batch; i++) {
        lab_scene scene;
        uint64_t index = (uint64_t)step * (uint64_t)batch + (uint64_t)i;
        int shown = 1 + (int)(index % LAB_GROWING);
        TRY(lab_scene_random(&scene, 1, index));
        TRY(lab_scene_draw(&scene, shown, SIZE, SIZE, rgb));
        const io_picture picture = {.width = SIZE, .height = SIZE, .channels = 3, .pixel = rgb};
        io_picture_to_real(&picture, pictures + (size_t)i * PICTURE);
        for (int k = 0; k < shown; k++)
            labels[i * CLASSES + scene.object[k].class_index] = 1;
    }
    return DDPM_OK;
}

static ddpm_result write_results(const run r[2], int steps, int batch, const char *csv, const char *png)
{
    FILE *file = fopen(csv, "w");
    if (!file) return ddpm_fail(DDPM_ERR_FILE, "%s cannot be written", csv);
    fprintf(file, "step,fp32,bf16\n");
    for (int i = 0; i < steps; i++)
        fprintf(file, "%d,%.9g,%.9g\n", i + 1, r[0].loss[i], r[1].loss[i]);
    if (fclose(file)) return ddpm_fail(DDPM_ERR_FILE, "%s cannot be written", csv);
    char title[100];
    snprintf(title, sizeof title, "small model, %d pictures a step: products in bf16", batch);
    const io_series series[] = {{"fp32", NULL, r[0].loss, steps, 0x2060C0, 15},
                                {"bf16", NULL, r[1].loss, steps, 0xC04020, 15}};
    const io_plot plot = {title, "step", "loss", series, 2, 1, 0, 0};
    io_picture picture = {0};
    ddpm_result result = io_plot_draw(&plot, &picture);
    if (result == DDPM_OK) result = io_picture_write_png(png, &picture, NULL, 0);
    io_picture_free(&picture);
    return result;
}

static ddpm_result compare(run r[2], int steps, int batch, const char *csv, const char *png)
{
    ddpm_schedule schedule = {0};
    float *pictures = malloc((size_t)batch * PICTURE * sizeof *pictures),
          *labels = malloc((size_t)batch * CLASSES * sizeof *labels);
    ddpm_result result = pictures && labels ? ddpm_schedule_create(&schedule, NULL) : DDPM_ERR_MEMORY;
    if (result == DDPM_OK) result = open_run(&r[0], &exact, &schedule, batch, steps);
    if (result == DDPM_OK) result = open_run(&r[1], &rounding, &schedule, batch, steps);
    for (int step = 0; step < steps && result == DDPM_OK; step++) {
        result = draw_batch(step, batch, pictures, labels);
        for (int k = 0; k < 2 && result == DDPM_OK; k++)
            result = ddpm_train_step(&r[k].trainer, pictures, labels, batch, 1e-4, &r[k].loss[step]);
        if (result == DDPM_OK && (step + 1) % 10 == 0)
            fprintf(stderr, "step %d: %.5f in float32, %.5f in bf16\n", step + 1, r[0].loss[step], r[1].loss[step]);
    }
    if (result == DDPM_OK) result = write_results(r, steps, batch, csv, png);
    ddpm_schedule_free(&schedule);
    free(pictures);
    free(labels);
    return result;
}

/* ---- 4. main ----------------------------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    run r[2] = {{.loss = NULL}, {.loss = NULL}};
    if (argc != 5 || atoi(argv[1]) < 1 || atoi(argv[2]) < 1) {
        fprintf(stderr, "usage: bf16_curve STEPS BATCH OUT.csv OUT.png\n");
        return 2;
    }
    memcpy(rows, ddpm_reference()->rows, sizeof rows);
    rows[DDPM_OP_CONV2D] = rows[DDPM_OP_LINEAR] = (ddpm_row){product_forward, product_backward};
    ddpm_result result = ddpm_device_open(&cpu_device, ddpm_cpu(), 0, NULL);
    if (result == DDPM_OK) result = compare(r, atoi(argv[1]), atoi(argv[2]), argv[3], argv[4]);
    if (result != DDPM_OK) fprintf(stderr, "bf16_curve: %s\n", ddpm_error());
    close_run(&r[0]);
    close_run(&r[1]);
    ddpm_device_close(&cpu_device);
    return result != DDPM_OK;
}
