/* tests/cuda/test_cuda.c - cuda_backend.cu on the emulated GPU (tests/cuda_on_cpu.h), plain and checked: every row
 * against the reference's, in several orders of threads, blocks and streams, in every precision; noise to the bit;
 * training, sampling and a checkpoint's way from one backend to the other. The vectors from PyTorch are
 * test_vectors.c's.
 *
 * Contents: 1 help   2 rows   3 noise, combinations   4 a small network   5 steps that are repeated   6 devices
 *           7 main */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cuda_backend.h"
#include "ddpm.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "tests/cuda_on_cpu.h"
#include "tests/selftest.h"

/* ---- 1. Help ---- */

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != DDPM_OK) fail_msg("%s", ddpm_error());                                                           \
    } while (0)

enum { FORWARD_ORDER = 0, BACKWARD_ORDER = 1, SHUFFLED = 529 };

static void no_mistakes(void)
{
    char text[600];
    int count = cuda_on_cpu_mistakes(text, sizeof text);
    if (count) fail_msg("%d mistakes; the first: %s", count, text);
}

/* After each test: the emulation saw no mistake, all device memory was given back. */
static int end_of_test(void **state)
{
    (void)state;
    cuda_on_cpu_order(FORWARD_ORDER);
    cuda_on_cpu_device(80, (size_t)8 << 30);
    no_mistakes();
    assert_int_equal(cuda_on_cpu_buffers(), 0);
    return 0;
}

/* ---- 2. Rows ---- */

typedef struct tally {
    double worst;
    int cases;
} tally;

static void judge(void *user, const selftest_result *r)
{
    tally *t = user;
    no_mistakes();
    if (!(r->worst <= 1))
        fail_msg("%s %s: %s is %.3g times its bound off", ddpm_op_name(r->op), r->shape, r->tensor, r->worst);
    t->worst = fmax(t->worst, r->worst);
    t->cases++;
}

static void run_rows(const char *isa, double product_unit, unsigned order)
{
    ddpm_device device;
    tally t = {0, 0};
    cuda_on_cpu_order(order);
    OK(ddpm_device_open(&device, ddpm_cuda(), 1, isa));
    OK(selftest_run(&device, getenv("DDPM_TEST_FULL") ? SELFTEST_FULL : SELFTEST_SMALL, product_unit, judge, &t));
    ddpm_device_close(&device);
    print_message("           %d cases, worst error %.2f of its bound\n", t.cases, t.worst);
}

/* The checks cost six times the run: there, one order and fewer steps, unless all is asked for. */
static int all(void)
{
    return !cuda_on_cpu_checked() || getenv("DDPM_TEST_FULL") != NULL;
}

static void test_rows(void **state)
{
    (void)state;
    run_rows("fp32", 0, FORWARD_ORDER);
    run_rows("fp32", 0, BACKWARD_ORDER);
}
static void test_rows_shuffled(void **state)
{
    (void)state;
    run_rows("fp32", 0, SHUFFLED);
}
static void test_rows_tf32(void **state)
{
    (void)state;
    run_rows("tf32", 0x1p-11, BACKWARD_ORDER);
}
static void test_rows_bf16(void **state)
{
    (void)state;
    run_rows("bf16", 0x1p-8, SHUFFLED);
}

/* ---- 3. Noise, combinations ---- */

static void test_normals(void **state)
{
    enum { N = 3, C = 5, H = 7, W = 9, PICTURE = C * H * W };
    (void)state;
    ddpm_device device;
    ddpm_graph *g;
    OK(ddpm_device_open(&device, ddpm_cuda(), 1, NULL));
    OK(ddpm_graph_create(&g, &device, N, 0));
    ddpm_tensor *x = ddpm_input(g, "x", C, H, W, 0);
    OK(ddpm_graph_plan(g, NULL, &x, 1));
    OK(ddpm_graph_alloc(g));
    g->n = N;
    ddpm_address address = {0x123456789ABCDEFu, ((uint64_t)1 << 40) + 6, 17, DDPM_RANDOM_STEP};
    float got[N * PICTURE], wanted[PICTURE];
    g->step.seed = address.seed, g->step.first_picture = address.picture, g->step.index = address.step;
    OK(device.backend->normal(g, x, DDPM_RANDOM_STEP));
    OK(ddpm_download(&device, x, DDPM_DATA, N, got));
    for (int n = 0; n < N; n++, address.picture++) {
        ddpm_normals(address, PICTURE, wanted);
        assert_memory_equal(got + n * PICTURE, wanted, sizeof wanted);
    }
    ddpm_graph_free(g);
    ddpm_device_close(&device);
}

/* ---- 4. A small network ----
 * Convolutions with and without stride, shortcuts, attention, label encoder, dropout: (8,16) channels at 8x8. */

enum { CAPACITY = 3, CLASSES = 5, SIZE = 8, PICTURE = 3 * SIZE * SIZE, PICTURES = 7 };

typedef struct trained {
    double loss[20], grad_norm[20];
    float *weights, *average; /* in the order of the parameters */
    size_t count;
    float pictures[CAPACITY * PICTURE];
} trained;

static void free_trained(trained *t)
{
    free(t->weights);
    free(t->average);
}

static ddpm_model_config small_config(void)
{
    ddpm_model_config c = ddpm_model_preset("tiny", CLASSES);
    c.unet.sample_size[0] = c.unet.sample_size[1] = SIZE;
    c.unet.block_out_channels[0] = 8, c.unet.block_out_channels[1] = 16;
    c.unet.norm_num_groups = 4;
    c.unet.dropout = 0.1;
    c.label.embedding_dim = 32;
    return c;
}

static float *gather(const ddpm_model *model, ddpm_array array, size_t *count)
{
    float *all = calloc(model->elements, sizeof *all);
    assert_non_null(all);
    *count = 0;
    for (int p = 0; p < model->params; p++) {
        OK(ddpm_model_get(model, array, model->param[p], all + *count));
        *count += ddpm_elements(model->param[p], 0);
    }
    return all;
}

typedef struct lab { /* a network ready to train */
    ddpm_device device;
    ddpm_model *model;
    ddpm_net *net;
    ddpm_schedule schedule;
    ddpm_trainer trainer;
} lab;

static void open_shared_lab(lab *l, const ddpm_backend *backend, const char *isa, int training)
{
    ddpm_model_config config = small_config();
    OK(ddpm_device_open(&l->device, backend, 1, isa));
    OK(ddpm_model_create(&l->model, &config, &l->device));
    OK(ddpm_model_alloc(l->model, DDPM_FOR_TRAINING));
    OK(ddpm_model_init(l->model, 1));
    OK(ddpm_schedule_create(&l->schedule, NULL));
    OK(ddpm_net_create(&l->net, l->model, SIZE, SIZE, CAPACITY, training));
    OK(ddpm_trainer_init(&l->trainer, l->net, &l->schedule, NULL));
}

static void open_lab(lab *l, const ddpm_backend *backend, const char *isa)
{
    open_shared_lab(l, backend, isa, DDPM_TRAINING);
}

static void close_lab(lab *l)
{
    ddpm_net_free(l->net);
    ddpm_schedule_free(&l->schedule);
    ddpm_model_free(l->model);
    ddpm_device_close(&l->device);
}

typedef struct batch {
    float pictures[PICTURES * PICTURE], labels[PICTURES * CLASSES];
} batch;

static void draw_batch(int step, batch *b)
{
    ddpm_normals((ddpm_address){9, (uint64_t)step, 0, DDPM_RANDOM_USER}, PICTURES * PICTURE, b->pictures);
    for (int i = 0; i < PICTURES * PICTURE; i++)
        b->pictures[i] = b->pictures[i] / 6;
    for (int i = 0; i < PICTURES * CLASSES; i++)
        b->labels[i] = (float)((i * 7 + step) % 3 == 0);
}

/* 7 pictures: two micro-batches of 3 and one of 1 */
static void train(lab *l, int from, int to, trained *out)
{
    batch b;
    for (int step = from; step < to; step++) {
        draw_batch(step, &b);
        OK(ddpm_train_step(&l->trainer, b.pictures, b.labels, PICTURES, 1e-3, &out->loss[step]));
        out->grad_norm[step] = l->trainer.grad_norm;
    }
}

static void take(lab *l, trained *out)
{
    out->weights = gather(l->model, DDPM_WEIGHT, &out->count);
    out->average = gather(l->model, DDPM_EMA, &out->count);
}

static void draw(lab *l, trained *out)
{
    float labels[CAPACITY * CLASSES] = {1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1};
    ddpm_sample_config sample = ddpm_sample_default();
    sample.steps = 4;
    OK(ddpm_model_use(l->model, DDPM_EMA));
    OK(ddpm_sample(l->net, &l->schedule, &sample, labels, CAPACITY, out->pictures, NULL, NULL));
}

static trained train_and_draw(const ddpm_backend *backend, const char *isa, unsigned order, int steps)
{
    lab l;
    trained t = {.count = 0};
    cuda_on_cpu_order(order);
    open_lab(&l, backend, isa);
    train(&l, 0, steps, &t);
    take(&l, &t);
    draw(&l, &t);
    close_lab(&l);
    no_mistakes();
    return t;
}

static double largest_difference(const float *a, const float *b, size_t count)
{
    double most = 0;
    for (size_t i = 0; i < count; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) most = isnan(d) ? INFINITY : d;
    }
    return most;
}

/* A network's own float32 error is about 2^-20 of its values (test_vectors.c). Adam turns an error of a gradient that
 * is itself near zero into one of the step's size, so single weights may differ by the sum of all steps' rates; that is
 * the bound of each weight. Losses are means over all, hence the same to 1e-4 of themselves after 20 steps of 1e-3
 * (1e-5 at the first, before any update), and pictures drawn to 1e-2 of their range. */
static void compare_training(const trained *a, const trained *b, int steps)
{
    assert_true(fabs(a->loss[0] - b->loss[0]) <= 1e-5 * b->loss[0]);
    assert_true(fabs(a->grad_norm[0] - b->grad_norm[0]) <= 1e-4 * b->grad_norm[0]);
    for (int i = 0; i < steps; i++)
        if (!(fabs(a->loss[i] - b->loss[i]) <= 1e-4 * b->loss[i]))
            fail_msg("step %d: loss %.9g and %.9g", i, a->loss[i], b->loss[i]);
    double weights = largest_difference(a->weights, b->weights, a->count),
           pictures = largest_difference(a->pictures, b->pictures, CAPACITY * PICTURE);
    print_message("           loss %.6f and %.6f; weights differ by %.2g, pictures by %.2g\n", a->loss[steps - 1],
                  b->loss[steps - 1], weights, pictures);
    assert_true(weights <= 2e-3 * steps);
    assert_true(pictures <= 1e-2);
}

static void test_training(void **state)
{
    (void)state;
    const int steps = all() ? 20 : 2;
    trained reference = train_and_draw(ddpm_reference(), NULL, 0, steps),
            forward = train_and_draw(ddpm_cuda(), "fp32", FORWARD_ORDER, steps);
    compare_training(&forward, &reference, steps);
    /* any order: the same bits */
    trained shuffled = train_and_draw(ddpm_cuda(), "fp32", SHUFFLED, 2),
            again = train_and_draw(ddpm_cuda(), "fp32", BACKWARD_ORDER, 2);
    assert_memory_equal(shuffled.weights, again.weights, shuffled.count * sizeof(float));
    assert_memory_equal(shuffled.average, again.average, shuffled.count * sizeof(float));
    assert_memory_equal(shuffled.pictures, again.pictures, sizeof again.pictures);
    free_trained(&reference), free_trained(&forward), free_trained(&shuffled), free_trained(&again);
}

/* Where a gradient's memory held activations before, what is left between parameters counts in no norm. */
static void test_shared_gradients(void **state)
{
    (void)state;
    lab l;
    batch b;
    trained t[2] = {{.count = 0}, {.count = 0}};
    for (int k = 0; k < 2; k++) {
        open_shared_lab(&l, ddpm_cuda(), "fp32", DDPM_TRAINING | (k ? DDPM_SHARE_GRADIENTS : 0));
        for (int step = 0; step < 3; step++) {
            draw_batch(step, &b);
            OK(ddpm_train_step(&l.trainer, b.pictures, b.labels, CAPACITY, 1e-3, &t[k].loss[step]));
            t[k].grad_norm[step] = l.trainer.grad_norm;
        }
        take(&l, &t[k]);
        close_lab(&l);
    }
    no_mistakes();
    for (int step = 0; step < 3; step++)
        if (t[0].grad_norm[step] != t[1].grad_norm[step])
            fail_msg("step %d: %.9g, shared %.9g", step, t[0].grad_norm[step], t[1].grad_norm[step]);
    assert_memory_equal(t[0].weights, t[1].weights, t[0].count * sizeof(float));
    free_trained(&t[0]), free_trained(&t[1]);
}

/* By a checkpoint on disk. */
static void hand_over(const lab *from, lab *to)
{
    char run[] = "/tmp/ddpm_cuda_XXXXXX", *newest;
    uint64_t step;
    io_model_info info = io_model_info_default();
    assert_non_null(mkdtemp(run));
    OK(io_checkpoint_save(run, from->trainer.step, from->model, &from->schedule.config, &info, "{}"));
    OK(io_checkpoint_newest(run, &newest, &step));
    OK(io_checkpoint_load(newest, to->model));
    OK(io_remove_tree(run));
    free(newest);
    to->trainer.step = step;
    to->trainer.picture = from->trainer.picture;
}

static void test_resumed_by_the_other(void **state)
{
    enum { HALF = 3, STEPS = 6 };
    (void)state;
    const ddpm_backend *first[2] = {ddpm_cuda(), ddpm_reference()};
    trained whole = train_and_draw(ddpm_reference(), NULL, 0, STEPS);
    for (int k = 0; k < 2; k++) {
        lab a, b;
        trained t = {.count = 0};
        open_lab(&a, first[k], k ? NULL : "fp32");
        open_lab(&b, first[1 - k], k ? "fp32" : NULL);
        train(&a, 0, HALF, &t);
        hand_over(&a, &b);
        train(&b, HALF, STEPS, &t);
        take(&b, &t);
        draw(&b, &t);
        close_lab(&a), close_lab(&b);
        compare_training(&t, &whole, STEPS);
        free_trained(&t);
    }
    free_trained(&whole);
}

/* A gradient that is not finite: an error that names it, and the weights as they were. */
static void test_skipped_update(void **state)
{
    (void)state;
    lab l;
    trained t = {.count = 0};
    float pictures[PICTURES * PICTURE] = {0}, labels[PICTURES * CLASSES] = {0};
    open_lab(&l, ddpm_cuda(), NULL);
    train(&l, 0, 1, &t);
    take(&l, &t);
    pictures[5] = NAN;
    assert_int_equal(ddpm_train_step(&l.trainer, pictures, labels, PICTURES, 1e-3, NULL), DDPM_ERR_NONFINITE);
    const ddpm_tensor *last = l.model->param[l.model->params - 1];
    float *value = calloc(ddpm_elements(last, 0), sizeof *value);
    value[0] = INFINITY;
    OK(ddpm_model_set(l.model, DDPM_GRAD, last, value));
    OK(ddpm_model_use(l.model, DDPM_WEIGHT));
    assert_int_equal(ddpm_update(l.model, &l.net->graph->step), DDPM_ERR_NONFINITE);
    assert_non_null(strstr(ddpm_error(), last->name));
    trained after = {.count = 0};
    take(&l, &after);
    assert_memory_equal(t.weights, after.weights, t.count * sizeof(float));
    assert_memory_equal(t.average, after.average, t.count * sizeof(float));
    free(value);
    free_trained(&t), free_trained(&after);
    close_lab(&l);
}

/* ---- 5. Steps that are repeated ---- */

enum { REPEATED = 4 };

/* Each batch is handed over while the device is at the one before; lr, Adam's corrections, t and noise are new in each
 * step. Then pictures are drawn twice, the second time by what the first one recorded. stalls: most that the host
 * waited in a step, but for the wait at its end, from the third step on: by then each kind of micro-batch has been
 * recorded. */
static trained train_ahead(int repeat, const char *isa, unsigned order, unsigned long *stalls, unsigned long *waits)
{
    lab l;
    trained t = {.count = 0};
    batch b[2];
    cuda_on_cpu_order(order);
    if (!repeat) setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
    open_lab(&l, ddpm_cuda(), isa);
    unsetenv("CUDA_LAUNCH_BLOCKING");
    *stalls = *waits = 0;
    draw_batch(0, &b[0]);
    OK(ddpm_train_batch(&l.trainer, b[0].pictures, b[0].labels, PICTURES));
    for (int step = 0; step < REPEATED; step++) {
        unsigned long begin = cuda_on_cpu_stalls();
        OK(ddpm_train_start(&l.trainer, 1e-3 / (1 + step)));
        draw_batch(step + 1, &b[(step + 1) % 2]);
        OK(ddpm_train_batch(&l.trainer, b[(step + 1) % 2].pictures, b[(step + 1) % 2].labels, PICTURES));
        unsigned long middle = cuda_on_cpu_stalls();
        OK(ddpm_train_wait(&l.trainer, &t.loss[step]));
        if (step >= 2 && middle - begin > *stalls) *stalls = middle - begin;
        if (step >= 2 && cuda_on_cpu_stalls() - middle > *waits) *waits = cuda_on_cpu_stalls() - middle;
        t.grad_norm[step] = l.trainer.grad_norm;
    }
    take(&l, &t);
    draw(&l, &t);
    draw(&l, &t);
    close_lab(&l);
    no_mistakes();
    return t;
}

static void test_repeated_steps(void **state)
{
    (void)state;
    unsigned long stalls, waits;
    trained plain = train_ahead(0, "fp32", FORWARD_ORDER, &stalls, &waits);
    for (unsigned order = FORWARD_ORDER; order <= BACKWARD_ORDER; order++) {
        trained repeated = train_ahead(1, "fp32", order, &stalls, &waits);
        assert_int_equal(stalls, 0);
        assert_int_equal(waits, 1);
        assert_memory_equal(repeated.loss, plain.loss, REPEATED * sizeof *plain.loss);
        assert_memory_equal(repeated.grad_norm, plain.grad_norm, REPEATED * sizeof *plain.grad_norm);
        assert_memory_equal(repeated.weights, plain.weights, plain.count * sizeof(float));
        assert_memory_equal(repeated.average, plain.average, plain.count * sizeof(float));
        assert_memory_equal(repeated.pictures, plain.pictures, sizeof plain.pictures);
        free_trained(&repeated);
    }
    free_trained(&plain);
}

/* Within a sampling step the host waits for nothing and copies nothing, guided or not, whatever the sampler. */
static ddpm_result note_stalls(void *user, ddpm_net *net, int done, int steps)
{
    unsigned long *stalls = user;
    (void)net, (void)steps;
    if (done == 0) stalls[0] = cuda_on_cpu_stalls();
    stalls[1] = cuda_on_cpu_stalls() - stalls[0];
    return DDPM_OK;
}

static void test_repeated_sampling(void **state)
{
    static const struct {
        ddpm_sampler sampler;
        double guidance;
    } kinds[] = {{DDPM_SAMPLER_DDPM, 1}, {DDPM_SAMPLER_DDIM, 3}, {DDPM_SAMPLER_DPMSOLVER, 1}};
    (void)state;
    lab l, plain;
    float labels[CLASSES] = {1, 0, 1}, pictures[PICTURE], wanted[PICTURE];
    open_lab(&l, ddpm_cuda(), "fp32");
    setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
    open_lab(&plain, ddpm_cuda(), "fp32");
    unsetenv("CUDA_LAUNCH_BLOCKING");
    for (int i = 0; i < 2 * 3; i++) {
        unsigned long stalls[2];
        ddpm_sample_config c = ddpm_sample_default();
        c.sampler = kinds[i % 3].sampler, c.guidance = kinds[i % 3].guidance, c.steps = 3, c.seed = (uint64_t)i;
        OK(ddpm_sample(plain.net, &plain.schedule, &c, labels, 1, wanted, NULL, NULL));
        OK(ddpm_sample(l.net, &l.schedule, &c, labels, 1, pictures, note_stalls, stalls));
        assert_memory_equal(pictures, wanted, sizeof wanted);
        assert_int_equal(stalls[1], 0);
    }
    close_lab(&l), close_lab(&plain);
}

/* ---- 6. Devices ---- */

static void test_devices(void **state)
{
    (void)state;
    ddpm_device device;
    cuda_on_cpu_device(0, 0);
    assert_int_equal(ddpm_device_open(&device, ddpm_cuda(), 1, NULL), DDPM_ERR_BACKEND);
    assert_non_null(strstr(ddpm_error(), "no device"));
    cuda_on_cpu_device(75, (size_t)1 << 30);
    assert_int_equal(ddpm_device_open(&device, ddpm_cuda(), 1, "bf16"), DDPM_ERR_ARGUMENT);
    assert_int_equal(ddpm_device_open(&device, ddpm_cuda(), 1, "fp8"), DDPM_ERR_ARGUMENT);
    OK(ddpm_device_open(&device, ddpm_cuda(), 1, NULL));
    assert_non_null(strstr(ddpm_device_isa(&device), "fp32"));
    ddpm_device_close(&device);
    cuda_on_cpu_device(90, (size_t)1 << 20);
    OK(ddpm_device_open(&device, ddpm_cuda(), 1, NULL));
    assert_non_null(strstr(ddpm_device_isa(&device), "tf32"));
    assert_non_null(strstr(ddpm_device_isa(&device), "driver"));
    void *memory;
    size_t room;
    OK(device.backend->room(device.state, &room));
    assert_in_range(room, (size_t)1 << 19, (size_t)1 << 20);
    assert_int_equal(device.backend->alloc(device.state, (size_t)2 << 20, &memory), DDPM_ERR_MEMORY);
    assert_non_null(strstr(ddpm_error(), "device memory"));
    ddpm_device_close(&device);
}

/* An error of a kernel is found when the host waits: it names what was asked for since; or, where each operation is
 * waited for, that one. */
static void fail_to_train(int steps_before, int blocking, const char *const *wanted)
{
    lab l;
    batch b;
    trained t = {.count = 0};
    draw_batch(0, &b);
    if (blocking) setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
    open_lab(&l, ddpm_cuda(), "fp32");
    train(&l, 0, steps_before, &t);
    cuda_on_cpu_fail("attention_query_backward");
    assert_int_equal(ddpm_train_step(&l.trainer, b.pictures, b.labels, PICTURES, 1e-3, NULL), DDPM_ERR_BACKEND);
    for (; *wanted; wanted++)
        if (!strstr(ddpm_error(), *wanted)) fail_msg("no \"%s\" in: %s", *wanted, ddpm_error());
    close_lab(&l);
    unsetenv("CUDA_LAUNCH_BLOCKING");
    cuda_on_cpu_fail(NULL);
}

static void test_errors(void **state)
{
    static const char *const rows[] = {"while waiting for node ", " before it, from node 0, ",
                                       "cudaErrorIllegalAddress", "CUDA_LAUNCH_BLOCKING", NULL},
                             *const step[] = {"the recorded step 'train 1, last, ",
                                              "pictures from 20 on, or one of the 2 before it, from ",
                                              "the recorded step 'train 3, first, ", "pictures from 14 on", NULL},
                             *const one[] = {"cuda: node ", "' (attention), (3,16,4,4) -> (3,16,4,4): ", NULL};
    (void)state;
    ddpm_device device;
    fail_to_train(0, 0, rows);
    fail_to_train(2, 0, step);
    fail_to_train(0, 1, one);
    OK(ddpm_device_open(&device, ddpm_cuda(), 1, "fp32"));
    cuda_on_cpu_fail("convolve");
    assert_int_equal(selftest_run(&device, SELFTEST_SMALL, 0, judge, NULL), DDPM_ERR_BACKEND);
    assert_non_null(strstr(ddpm_error(), "selftest, conv2d (1,3,8,8) -> 24 3,1,1,1: cuda: "));
    ddpm_device_close(&device);
    cuda_on_cpu_fail(NULL);
}

/* ---- 7. main ---- */

#define TEST(f) cmocka_unit_test_teardown(f, end_of_test)

int main(int argc, char **argv) /* [TEST]: a pattern of those to run */
{
    const struct CMUnitTest tests[] = {
        TEST(test_devices),          TEST(test_normals),   TEST(test_skipped_update),
        TEST(test_rows_shuffled),    TEST(test_rows_tf32), TEST(test_training),
        TEST(test_shared_gradients), TEST(test_rows_bf16), TEST(test_errors),
    };
    const struct CMUnitTest more[] = {TEST(test_rows), TEST(test_resumed_by_the_other), TEST(test_repeated_steps),
                                      TEST(test_repeated_sampling)};
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    int failed = cmocka_run_group_tests_name("cuda backend", tests, NULL, NULL);
    if (all()) failed += cmocka_run_group_tests_name("cuda backend, all", more, NULL, NULL);
    return failed;
}
