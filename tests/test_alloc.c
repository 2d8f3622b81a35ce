/* tests/test_alloc.c - what only a private copy of the core can show (ddpm.h with its own DDPM_MALLOC): every
 * allocation of a whole life, from creating a model to sampling from it, is made to fail in turn; and log and sine
 * of every argument.
 * Contents: 1 the core with an allocator that fails  2 every failure  3 log and sine  4 main */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

/* ---- 1. The core with an allocator that fails ---- */

static int allowed, live; /* allocations that still succeed, negative: all; allocations not freed */

static void *failing_malloc(size_t bytes)
{
    if (allowed == 0 || bytes > SIZE_MAX / 4) return NULL;
    allowed -= allowed > 0;
    void *memory = malloc(bytes);
    if (memory) live++;
    return memory;
}

static void counting_free(void *memory)
{
    if (memory) live--;
    free(memory);
}

#ifdef __GNUC__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#define DDPM_MALLOC failing_malloc
#define DDPM_FREE counting_free
#define DDPM_API static
#define DDPM_IMPLEMENTATION
#include "ddpm.h"
#ifdef __GNUC__
#pragma GCC diagnostic pop
#endif

/* ---- 2. Every failure ---- */

/* A backend with memory of its own and nothing else: every row, combination and update goes by way of copies on the
 * host. */
static ddpm_result distant_alloc(void *state, size_t bytes, void **out)
{
    (void)state;
    *out = failing_malloc(bytes);
    if (!*out) return ddpm_fail(DDPM_ERR_MEMORY, "distant: out of memory");
    memset(*out, 0, bytes);
    return DDPM_OK;
}

static void distant_free(void *state, void *memory)
{
    (void)state;
    counting_free(memory);
}

static ddpm_result distant_upload(void *state, ddpm_tensor *x, int which, int n, const ddpm_real *host)
{
    (void)state;
    memcpy(which == DDPM_DATA ? x->data : x->grad, host, ddpm_elements(x, n) * sizeof *host);
    return DDPM_OK;
}

static ddpm_result distant_download(void *state, const ddpm_tensor *x, int which, int n, ddpm_real *host)
{
    (void)state;
    memcpy(host, which == DDPM_DATA ? x->data : x->grad, ddpm_elements(x, n) * sizeof *host);
    return DDPM_OK;
}

static const ddpm_backend distant = {.name = "distant",
                                     .alloc = distant_alloc,
                                     .free = distant_free,
                                     .upload = distant_upload,
                                     .download = distant_download};

enum { SIDE = 4, PICTURE = 3 * SIDE * SIDE, BATCH = 2, CLASSES = 3 };

typedef struct life {
    ddpm_device device;
    ddpm_model *model;
    ddpm_schedule schedule;
    ddpm_net *net;
    float picture[BATCH * PICTURE];
} life;

static ddpm_model_config small_config(void)
{
    ddpm_model_config c = ddpm_model_default();
    c.unet.sample_size[0] = c.unet.sample_size[1] = SIDE;
    c.unet.levels = 1;
    c.unet.layers_per_block = 1;
    c.unet.block_out_channels[0] = 4;
    c.unet.down_block_types[0] = DDPM_PLAIN_BLOCK;
    c.unet.up_block_types[0] = DDPM_ATTN_BLOCK;
    c.unet.mid_block_type = 0;
    c.unet.norm_num_groups = 2;
    c.unet.attention_head_dim = 2;
    c.unet.dropout = 0.1;
    c.unet.class_embed_type = DDPM_CLASS_IDENTITY;
    c.label = (ddpm_label_config){CLASSES, 4, 16};
    return c;
}

/* Creates, allocates, initialises, trains a step, looks for NaN, computes gradients, samples. */
static ddpm_result live_through(life *l)
{
    static const float labels[BATCH * CLASSES] = {1, 0, 0, 0, 1, 1}, t[BATCH] = {10, 20};
    ddpm_model_config config = small_config();
    ddpm_sample_config sample = ddpm_sample_default();
    sample.steps = 1;
    sample.guidance = 2;
    ddpm_trainer trainer;
    double loss;
    ddpm_normals((ddpm_address){1, 0, 0, DDPM_RANDOM_USER}, BATCH * PICTURE, l->picture);
    TRY(ddpm_model_create(&l->model, &config, &l->device));
    TRY(ddpm_model_alloc(l->model, DDPM_FOR_TRAINING));
    TRY(ddpm_model_init(l->model, 1));
    TRY(ddpm_net_create(&l->net, l->model, 0, 0, 2, 1));
    TRY(ddpm_schedule_create(&l->schedule, NULL));
    TRY(ddpm_trainer_init(&trainer, l->net, &l->schedule, NULL));
    TRY(ddpm_train_step(&trainer, l->picture, labels, BATCH, 1e-3, &loss));
    TRY(ddpm_graph_find_nonfinite(l->net->graph));
    TRY(ddpm_loss_gradients(l->net, 1, l->picture, t, labels, l->picture, NULL, &loss));
    TRY(ddpm_graph_backward(l->net->graph, NULL, NULL, NULL));
    return ddpm_sample(l->net, &l->schedule, &sample, labels, 1, l->picture, NULL, NULL);
}

/* The first k allocations succeed and the next one fails, for every k until none fails. The error is one of memory
 * and has a text, nothing stays allocated, and what the caller must free can be freed. */
static void check_every_failure(const ddpm_backend *backend)
{
    int failures = 0;
    for (ddpm_result result = DDPM_ERR_MEMORY; result != DDPM_OK; failures++) {
        life l = {.device = {backend, NULL, 1}};
        ddpm_fail(DDPM_OK, "nothing happened");
        live = 0;
        allowed = failures;
        result = live_through(&l);
        allowed = -1;
        ddpm_net_free(l.net);
        ddpm_schedule_free(&l.schedule);
        ddpm_model_free(l.model);
        if (live != 0) fail_msg("failure %d: %d allocations are not freed", failures, live);
        if (result != DDPM_OK && (result != DDPM_ERR_MEMORY || !strstr(ddpm_error(), "memory")))
            fail_msg("failure %d: result %d, '%s'", failures, (int)result, ddpm_error());
    }
    print_message("           %d failures\n", failures - 1);
    assert_true(failures > 30);
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    check_every_failure(ddpm_reference());
}

static void test_every_allocation_of_a_backend_may_fail(void **state)
{
    (void)state;
    check_every_failure(&distant);
}

/* Sizes near the largest: no sum on the way to the allocator wraps around and gets a small block. */
static void test_huge_sizes(void **state)
{
    (void)state;
    ddpm_arena arena = {0};
    for (size_t short_of = 0; short_of < 300; short_of++) {
        live = 0;
        allowed = -1;
        assert_null(ddpm_arena_alloc(&arena, SIZE_MAX - short_of));
        assert_null(ddpm_arena_alloc(&arena, SIZE_MAX / 2 - short_of));
        assert_null(aligned_alloc_zero(SIZE_MAX - short_of));
        assert_int_equal(live, 0);
        assert_non_null(strstr(ddpm_error(), "memory"));
    }
    ddpm_arena_free(&arena);
}

/* A failed step can be taken again: it then gives what it would have given at once. */
static void test_a_failed_step_can_be_repeated(void **state)
{
    (void)state;
    static const float labels[BATCH * CLASSES] = {0, 1};
    float *weights[2];
    for (int failing = 0; failing < 2; failing++) {
        life l = {.device = {ddpm_reference(), NULL, 1}};
        ddpm_model_config config = small_config();
        ddpm_trainer trainer;
        ddpm_normals((ddpm_address){1, 0, 0, DDPM_RANDOM_USER}, BATCH * PICTURE, l.picture);
        allowed = -1;
        assert_int_equal(ddpm_model_create(&l.model, &config, &l.device), DDPM_OK);
        assert_int_equal(ddpm_model_alloc(l.model, DDPM_FOR_TRAINING), DDPM_OK);
        assert_int_equal(ddpm_model_init(l.model, 1), DDPM_OK);
        assert_int_equal(ddpm_net_create(&l.net, l.model, 0, 0, 2, 1), DDPM_OK);
        assert_int_equal(ddpm_schedule_create(&l.schedule, NULL), DDPM_OK);
        assert_int_equal(ddpm_trainer_init(&trainer, l.net, &l.schedule, NULL), DDPM_OK);
        for (int k = 0; failing; k++) {
            allowed = k;
            if (ddpm_train_step(&trainer, l.picture, labels, BATCH, 1e-3, NULL) == DDPM_OK) break;
            assert_int_equal(trainer.step, 0);
        }
        allowed = -1;
        if (!failing) assert_int_equal(ddpm_train_step(&trainer, l.picture, labels, BATCH, 1e-3, NULL), DDPM_OK);
        weights[failing] = malloc(l.model->elements * sizeof(float));
        assert_non_null(weights[failing]);
        memcpy(weights[failing], l.model->array[DDPM_WEIGHT], l.model->elements * sizeof(float));
        if (failing) assert_memory_equal(weights[0], weights[1], l.model->elements * sizeof(float));
        ddpm_net_free(l.net);
        ddpm_schedule_free(&l.schedule);
        ddpm_model_free(l.model);
    }
    free(weights[0]);
    free(weights[1]);
}

/* The first step allocates what all others use: they succeed when nothing can be allocated any more. */
static void test_later_steps_allocate_nothing(void **state)
{
    (void)state;
    static const float labels[(BATCH + 1) * CLASSES] = {0, 1};
    static float pictures[(BATCH + 1) * PICTURE];
    for (int share = 0; share < 2; share++) {
        life l = {.device = {ddpm_reference(), NULL, 1}};
        ddpm_model_config config = small_config();
        ddpm_trainer trainer;
        int n = share ? BATCH : BATCH + 1; /* in micro-batches, where there are such */
        allowed = -1;
        assert_int_equal(ddpm_model_create(&l.model, &config, &l.device), DDPM_OK);
        assert_int_equal(ddpm_model_alloc(l.model, DDPM_FOR_TRAINING), DDPM_OK);
        assert_int_equal(ddpm_model_init(l.model, 1), DDPM_OK);
        assert_int_equal(ddpm_net_create(&l.net, l.model, 0, 0, BATCH, share ? 1 | DDPM_SHARE_GRADIENTS : 1), DDPM_OK);
        assert_int_equal(ddpm_schedule_create(&l.schedule, NULL), DDPM_OK);
        assert_int_equal(ddpm_trainer_init(&trainer, l.net, &l.schedule, NULL), DDPM_OK);
        assert_int_equal(ddpm_train_step(&trainer, pictures, labels, n, 1e-3, NULL), DDPM_OK);
        allowed = 0;
        for (int step = 2; step <= 4; step++)
            assert_int_equal(ddpm_train_step(&trainer, pictures, labels, n, 1e-3, NULL), DDPM_OK);
        ddpm_net_free(l.net);
        ddpm_schedule_free(&l.schedule);
        ddpm_model_free(l.model);
    }
}

/* ---- 3. Log and sine of every argument: all are multiples of 2^-24 ---- */

/* The result is rounded to float at least once, u = 2^-24, and its few terms before that: 6 u, relative. */
static void test_log_of_everything(void **state)
{
    (void)state;
    double worst = 0;
    for (uint32_t i = 1; i <= 1 << 24; i += i < 1 << 12 || i > (1 << 24) - (1 << 12) ? 1 : 61) {
        double right = log((double)i * 0x1p-24), value = (double)log_unit((float)i * 0x1p-24f);
        double error = right != 0 ? fabs(value / right - 1) : fabs(value);
        if (!(error <= worst)) worst = isnan(error) ? INFINITY : error;
    }
    if (!(worst <= 6 * 0x1p-24)) fail_msg("relative error %g", worst);
}

static void test_sine_of_everything(void **state)
{
    (void)state;
    const double turn = 2 * 3.14159265358979323846;
    double worst = 0;
    for (uint32_t i = 0; i < 1 << 24; i += 61) {
        float cosine, sine;
        cos_sin_turn((float)i * 0x1p-24f, &cosine, &sine);
        double right[2] = {cos(turn * i * 0x1p-24), sin(turn * i * 0x1p-24)}, value[2] = {(double)cosine, (double)sine};
        for (int k = 0; k < 2; k++) {
            if (fabs(right[k]) < 1e-12)
                assert_true(value[k] == 0); /* a quarter turn, exactly */
            else if (!(fabs(value[k] / right[k] - 1) <= worst))
                worst = fabs(value[k] / right[k] - 1);
        }
        assert_true(fabs(value[0] * value[0] + value[1] * value[1] - 1) < 12 * 0x1p-24);
    }
    float cosine, sine;
    for (int quarter = 0; quarter < 4; quarter++) {
        static const float right[4][2] = {{1, 0}, {0, 1}, {-1, 0}, {0, -1}};
        cos_sin_turn((float)quarter / 4, &cosine, &sine);
        assert_true(cosine == right[quarter][0] && sine == right[quarter][1]);
    }
    if (!(worst <= 6 * 0x1p-24)) fail_msg("relative error %g", worst);
}

/* ---- 4. Main ---- */

/* Thousands of lives of a tiny network: starting threads would take most of the time. */
static int one_thread(void **state)
{
    ddpm_device device;
    (void)state;
    return ddpm_device_open(&device, NULL, 1, NULL) == DDPM_OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(test_every_allocation_of_a_backend_may_fail),
        cmocka_unit_test(test_huge_sizes),
        cmocka_unit_test(test_a_failed_step_can_be_repeated),
        cmocka_unit_test(test_later_steps_allocate_nothing),
        cmocka_unit_test(test_log_of_everything),
        cmocka_unit_test(test_sine_of_everything),
    };
    return cmocka_run_group_tests_name("alloc", tests, one_thread, NULL);
}
