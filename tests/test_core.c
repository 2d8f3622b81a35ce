/* tests/test_core.c - what ddpm.h promises beyond the values of single operations (tests/test_vectors.c) and their
 * gradients (tests/check_grad.c): numbers by address, bits, batches, memory, errors, and that training learns.
 * The network of most tests has 2 levels, 8 and 12 channels, attention, a label encoder for 5 classes, 8x8 pictures.
 * Contents: 1 a network to test with  2 memory  3 random numbers  4 the graph  5 threads  6 batches
 *           7 classifier-free guidance  8 training  9 refused arguments  10 refused configs
 *           11 values that are not finite  12 main */
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ddpm.h"

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != DDPM_OK) fail_msg("%s", ddpm_error());                                                           \
    } while (0)

/* ---- 1. A network to test with ---- */

enum { SIDE = 8, CHANNELS = 3, PICTURE = CHANNELS * SIDE * SIDE, CLASSES = 5, MOST = 8 };

typedef struct kit {
    ddpm_device device;
    ddpm_model *model;
    ddpm_net *net;
    ddpm_schedule schedule;
    ddpm_trainer trainer;
    float picture[MOST * PICTURE], noise[MOST * PICTURE], labels[MOST * CLASSES], t[MOST];
} kit;

static ddpm_model_config small_config(void)
{
    ddpm_model_config c = ddpm_model_default();
    c.unet.sample_size[0] = c.unet.sample_size[1] = SIDE;
    c.unet.levels = 2;
    c.unet.layers_per_block = 1;
    c.unet.block_out_channels[0] = 8;
    c.unet.block_out_channels[1] = 12;
    c.unet.down_block_types[0] = c.unet.up_block_types[1] = DDPM_PLAIN_BLOCK;
    c.unet.down_block_types[1] = c.unet.up_block_types[0] = DDPM_ATTN_BLOCK;
    c.unet.attention_head_dim = 4;
    c.unet.norm_num_groups = 4;
    c.unet.class_embed_type = DDPM_CLASS_IDENTITY;
    c.label = (ddpm_label_config){CLASSES, 6, 32};
    return c;
}

static void fill_data(kit *k)
{
    ddpm_address address = {1, 0, 0, DDPM_RANDOM_USER};
    ddpm_normals(address, MOST * PICTURE, k->noise);
    for (int i = 0; i < MOST * PICTURE; i++)
        k->picture[i] = sinf((float)(i / PICTURE + 1) * 0.01f * (float)(i % PICTURE));
    for (int i = 0; i < MOST; i++)
        k->t[i] = (float)(100 * i + 50);
    for (int i = 0; i < MOST * CLASSES; i++)
        k->labels[i] = i % 3 == 0;
}

/* training 1: with room for gradients, moments and EMA. */
static void open_config(kit *k, const ddpm_model_config *config, int capacity, int training, int threads)
{
    ddpm_schedule_config schedule = ddpm_schedule_default();
    schedule.num_train_timesteps = 1000;
    OK(ddpm_device_open(&k->device, NULL, threads, NULL));
    OK(ddpm_model_create(&k->model, config, &k->device));
    OK(ddpm_model_alloc(k->model, training ? DDPM_FOR_TRAINING : DDPM_FOR_INFERENCE));
    OK(ddpm_model_init(k->model, 529));
    OK(ddpm_net_create(&k->net, k->model, 0, 0, capacity, training));
    OK(ddpm_schedule_create(&k->schedule, &schedule));
    if (training) OK(ddpm_trainer_init(&k->trainer, k->net, &k->schedule, NULL));
    fill_data(k);
}

static kit *open_kit(int capacity, int training, int threads)
{
    kit *k = calloc(1, sizeof *k);
    ddpm_model_config config = small_config();
    assert_non_null(k);
    open_config(k, &config, capacity, training, threads);
    return k;
}

static void close_kit(kit *k)
{
    ddpm_net_free(k->net);
    ddpm_schedule_free(&k->schedule);
    ddpm_model_free(k->model);
    ddpm_device_close(&k->device);
    free(k);
}

/* A failure of that kind whose text holds these words. */
static void check_failure(ddpm_result result, ddpm_result expected, const char *words)
{
    if (result != expected) fail_msg("result %d instead of %d (wanted: '%s')", (int)result, (int)expected, words);
    if (!strstr(ddpm_error(), words)) fail_msg("'%s' does not say '%s'", ddpm_error(), words);
}

/* ---- 2. Memory ---- */

static void test_arena(void **state)
{
    (void)state;
    ddpm_arena arena = {0};
    unsigned char *last = NULL;
    for (size_t bytes = 1; bytes < 200000; bytes = bytes * 3 + 1) {
        unsigned char *memory = ddpm_arena_alloc(&arena, bytes);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % 64, 0);
        for (size_t i = 0; i < bytes; i++)
            assert_int_equal(memory[i], 0);
        memset(memory, 0xA5, bytes);
        if (last) assert_int_equal(*last, 0xA5);
        last = memory;
    }
    char *text = ddpm_arena_string(&arena, "down_blocks.0");
    assert_string_equal(text, "down_blocks.0");
    unsigned char *small[1000]; /* more than one block of them */
    for (int i = 0; i < 1000; i++) {
        small[i] = ddpm_arena_alloc(&arena, 50);
        assert_non_null(small[i]);
        memset(small[i], i & 255, 50);
    }
    for (int i = 0; i < 1000; i++)
        for (int b = 0; b < 50; b++)
            assert_int_equal(small[i][b], i & 255);
    ddpm_arena_free(&arena);
    assert_null(arena.first);
    ddpm_arena_free(&arena);
}

static void test_arena_refuses_the_impossible(void **state)
{
    (void)state;
    static const size_t size[] = {SIZE_MAX, SIZE_MAX - 63, SIZE_MAX / 2 + 1};
    ddpm_arena arena = {0};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        ddpm_fail(DDPM_ERR_ARGUMENT, "something else");
        assert_null(ddpm_arena_alloc(&arena, size[i]));
        check_failure(DDPM_ERR_MEMORY, DDPM_ERR_MEMORY, "out of memory");
    }
    ddpm_arena_free(&arena);
}

static void test_error_text(void **state)
{
    (void)state;
    assert_non_null(ddpm_error());
    assert_int_equal(ddpm_fail(DDPM_ERR_FORMAT, "tensor '%s' has %d values", "a.b", 3), DDPM_ERR_FORMAT);
    assert_string_equal(ddpm_error(), "tensor 'a.b' has 3 values");
    ddpm_fail(DDPM_ERR_FORMAT, "file: %s", ddpm_error()); /* wrapping the last one */
    assert_string_equal(ddpm_error(), "file: tensor 'a.b' has 3 values");
    char lengthy[5000];
    memset(lengthy, 'x', sizeof lengthy - 1);
    lengthy[sizeof lengthy - 1] = 0;
    ddpm_fail(DDPM_ERR_FORMAT, "%s", lengthy);
    assert_true(strlen(ddpm_error()) > 100 && strlen(ddpm_error()) < sizeof lengthy);
}

/* ---- 3. Random numbers ---- */

/* kat_vectors of the authors' Random123 (Salmon et al. 2011): philox 4x32 10. Our counter is (block, step, low half
 * of picture, purpose << 24 | high half of picture), our key the seed. */
static void test_philox_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], answer[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const uint32_t *c = known[i].counter, *key = known[i].key;
        ddpm_address address = {.seed = (uint64_t)key[1] << 32 | key[0],
                                .picture = (uint64_t)(c[3] & 0xffffff) << 32 | c[2],
                                .step = c[1],
                                .purpose = c[3] >> 24};
        uint32_t word[4];
        ddpm_philox(address, c[0], word);
        assert_memory_equal(word, known[i].answer, sizeof word);
    }
}

/* Each part of an address gives another stream: among 4 words, and 2^14 pairs of addresses that differ in one bit,
 * two equal words at one place have a chance of 4 2^14 / 2^32 = 2e-5. */
static void test_streams_differ(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 1 << 7; i++) {
        ddpm_address base = {i * 0x9E3779B97F4A7C15u, i * i, (uint32_t)i * 77, (uint32_t)i % 200};
        uint32_t word[4], other[4];
        ddpm_philox(base, (uint32_t)i, word);
        for (int bit = 0; bit < 64 + 56 + 32 + 8; bit++) {
            ddpm_address address = base;
            if (bit < 64)
                address.seed ^= (uint64_t)1 << bit;
            else if (bit < 120)
                address.picture ^= (uint64_t)1 << (bit - 64);
            else if (bit < 152)
                address.step ^= 1u << (bit - 120);
            else
                address.purpose ^= 1u << (bit - 152);
            ddpm_philox(address, (uint32_t)i, other);
            for (int k = 0; k < 4; k++)
                assert_int_not_equal(word[k], other[k]);
        }
    }
}

static void test_a_stream_has_prefixes(void **state)
{
    (void)state;
    ddpm_address address = {5, 6, 7, DDPM_RANDOM_USER};
    float whole[64], part[65];
    ddpm_normals(address, 64, whole);
    for (size_t count = 0; count <= 64; count++) {
        part[count] = 1234;
        ddpm_normals(address, count, part);
        assert_memory_equal(part, whole, count * sizeof *part);
        assert_true(part[count] == 1234);
    }
}

/* Moments of 2^20 normals, each within 5 standard deviations of its estimate: Var x = 1, Var x^2 = 2, Var x^3 = 15,
 * Var x^4 = 96; and neighbours are uncorrelated, Var x y = 1. */
static void test_normals_are_normal(void **state)
{
    (void)state;
    enum { COUNT = 1 << 20 };
    float *x = malloc(COUNT * sizeof *x);
    assert_non_null(x);
    for (int i = 0; i < 4; i++)
        ddpm_normals((ddpm_address){529, (uint64_t)i, 0, DDPM_RANDOM_NOISE}, COUNT / 4, x + i * (COUNT / 4));
    static const double expected[5] = {0, 1, 0, 3, 0}, variance[5] = {1, 2, 15, 96, 1};
    double sum[5] = {0};
    for (int i = 0; i < COUNT; i++) {
        double v = (double)x[i];
        assert_true(fabs(v) < 5.8);
        for (int m = 0; m < 4; m++)
            sum[m] += pow(v, m + 1);
        sum[4] += v * (double)x[(i + 1) % COUNT];
    }
    for (int m = 0; m < 5; m++)
        assert_true(fabs(sum[m] / COUNT - expected[m]) <= 5 * sqrt(variance[m] / COUNT));
    free(x);
}

/* Against Box-Muller in double on the same words, relative error below 1e-6 of each value. */
static void test_normals_are_accurate(void **state)
{
    (void)state;
    const double pi = 3.14159265358979323846;
    ddpm_address address = {529, 3, 1, DDPM_RANDOM_START};
    double worst = 0;
    for (uint32_t block = 0; block < 1 << 16; block++) {
        uint32_t word[4];
        float value[4];
        address.picture = block;
        ddpm_philox(address, 0, word);
        ddpm_normals(address, 4, value);
        for (int k = 0; k < 4; k += 2) {
            double radius = sqrt(-2 * log(((double)(word[k] >> 8) + 1) / 16777216));
            double angle = 2 * pi * ((double)(word[k + 1] >> 8) / 16777216);
            double right[2] = {radius * cos(angle), radius * sin(angle)};
            for (int j = 0; j < 2; j++) {
                double error = fabs((double)value[k + j] - right[j]);
                if (fabs(right[j]) < 1e-12)
                    assert_true(error < 1e-12); /* cos and sin of double angles miss 0 by 1e-16 */
                else if (error / fabs(right[j]) > worst)
                    worst = error / fabs(right[j]);
            }
        }
    }
    if (!(worst < 1e-6)) fail_msg("relative error %g", worst);
}

/* Counts of 10 values in 2^16 draws: each within 5 standard deviations. Every value lies below the range, however
 * large. */
static void test_uniform_int(void **state)
{
    (void)state;
    enum { DRAWS = 1 << 16 };
    int count[10] = {0};
    for (uint32_t i = 0; i < DRAWS; i++) {
        ddpm_address address = {1, i, 0, DDPM_RANDOM_TIMESTEP};
        uint32_t value = ddpm_uniform_int(address, 10);
        assert_true(value < 10);
        count[value]++;
        assert_int_equal(ddpm_uniform_int(address, 1), 0);
        assert_true(ddpm_uniform_int(address, 0xffffffff) < 0xffffffff);
    }
    for (int i = 0; i < 10; i++)
        assert_true(fabs(count[i] - DRAWS * 0.1) <= 5 * sqrt(DRAWS * 0.1 * 0.9));
}

static void test_shuffle(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {0, 1, 2, 7, 1000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        uint32_t order[1000], seen[1000] = {0};
        ddpm_shuffle((ddpm_address){2, 0, (uint32_t)s, DDPM_RANDOM_SHUFFLE}, sizes[s], order);
        for (uint32_t i = 0; i < sizes[s]; i++) {
            assert_true(order[i] < sizes[s]);
            assert_int_equal(seen[order[i]]++, 0);
        }
    }
    /* Over many epochs each of 6 values is as often at each place: within 5 standard deviations. */
    enum { EPOCHS = 60000 };
    int count[6][6] = {{0}};
    for (uint32_t epoch = 0; epoch < EPOCHS; epoch++) {
        uint32_t order[6];
        ddpm_shuffle((ddpm_address){3, 0, epoch, DDPM_RANDOM_SHUFFLE}, 6, order);
        for (int i = 0; i < 6; i++)
            count[i][order[i]]++;
    }
    for (int i = 0; i < 36; i++)
        assert_true(fabs(count[i / 6][i % 6] - EPOCHS / 6.0) <= 5 * sqrt(EPOCHS * 5 / 36.0));
}

/* ---- 4. The graph ---- */

static void test_operation_names(void **state)
{
    (void)state;
    assert_string_equal(ddpm_op_name(DDPM_OP_CONV2D), "conv2d");
    assert_string_equal(ddpm_op_name(DDPM_OP_BCE), "bce");
    for (int op = 0; op < DDPM_OP_COUNT; op++)
        for (const char *c = ddpm_op_name((ddpm_op)op); *c; c++)
            assert_true((*c >= 'a' && *c <= 'z') || (*c >= '0' && *c <= '9') || *c == '_');
    assert_non_null(ddpm_op_name(DDPM_OP_COUNT));
}

/* A failing builder returns NULL, the ones after it too, and planning returns the first error. */
static void test_builder_errors_stick(void **state)
{
    (void)state;
    ddpm_graph *g;
    OK(ddpm_graph_create(&g, NULL, 2, 0));
    ddpm_tensor *a = ddpm_input(g, "left", 2, 4, 4, 0), *b = ddpm_input(g, "right", 2, 4, 5, 0);
    size_t mark = ddpm_enter(g, "up_blocks.%d", 1);
    ddpm_tensor *c = ddpm_concat(g, a, b);
    ddpm_leave(g, mark);
    assert_null(c);
    assert_null(ddpm_upsample(g, c, 2));
    assert_null(ddpm_pixel_unshuffle(g, a, 3)); /* would be an error of its own */
    assert_null(ddpm_activation(g, a, DDPM_SILU));
    ddpm_result result = ddpm_graph_plan(g, NULL, &c, 1);
    check_failure(result, DDPM_ERR_SHAPE, "up_blocks.1 (concat)");
    check_failure(result, DDPM_ERR_SHAPE, "'left'");
    check_failure(result, DDPM_ERR_SHAPE, "'right'");
    ddpm_graph_free(g);
}

/* Builders that must fail, by number; NULL without an error when there are no more. */
static ddpm_tensor *wrong_builder(int which, ddpm_graph *g, ddpm_tensor *x, ddpm_tensor *y, ddpm_tensor *vector)
{
    static ddpm_tensor four = {.name = "four", .dims = 1, .shape = {4, 1, 1, 1}, .param = 1},
                       three = {.name = "three", .dims = 1, .shape = {3, 1, 1, 1}, .param = 1};
    switch (which) { /* x is (4,4,4), y (3,4,4), vector (4,1,1) */
    case 0: return ddpm_add(g, x, y, 1);
    case 1: return ddpm_add(g, vector, x, 1);
    case 2: return ddpm_concat(g, x, vector);
    case 3: return ddpm_slice(g, x, 2, 3);
    case 4: return ddpm_slice(g, x, -1, 2);
    case 5: return ddpm_mse(g, x, y);
    case 6: return ddpm_bce(g, x, y);
    case 7: return ddpm_attention(g, x, x, y, 1);
    case 8: return ddpm_attention(g, x, x, x, 3);
    case 9: return ddpm_modulate(g, x, vector);
    case 10: return ddpm_affine(g, x, vector, 1, 0);
    case 11: return ddpm_pixel_unshuffle(g, x, 3);
    case 12: return ddpm_pixel_shuffle(g, y, 2);
    case 13: return ddpm_pool(g, x, DDPM_POOL_MAX, 5, 1, 0);
    case 14: return ddpm_pool(g, x, DDPM_POOL_MAX, 2, 1, 2);
    case 15: return ddpm_pool(g, x, DDPM_POOL_MEAN, 2, 0, 0);
    case 16: return ddpm_upsample(g, x, 0);
    case 17: return ddpm_slice(g, x, 1, INT_MAX);
    case 18: return ddpm_pixel_shuffle(g, x, 65536);
    case 19: return ddpm_time_embedding(g, vector, 8, 0, 0);
    case 20: return ddpm_fourier_embedding(g, vector, &four);
    case 21: return ddpm_embedding(g, vector, &four);
    case 22: return ddpm_batch_norm(g, x, &four, &three, &four, &four, 1e-5, 0.1);
    case 23: return ddpm_batch_norm(g, x, &four, &four, &four, &three, 1e-5, 0.1);
    default: return NULL;
    }
}

/* Shapes that do not fit are refused by every builder, as DDPM_ERR_SHAPE, with the name of the place. */
static void test_builders_check_shapes(void **state)
{
    (void)state;
    int which = 0;
    for (ddpm_result result = DDPM_ERR_SHAPE; result != DDPM_OK; which++) {
        ddpm_graph *g;
        OK(ddpm_graph_create(&g, NULL, 2, 0));
        ddpm_tensor *x = ddpm_input(g, "x", 4, 4, 4, 0), *y = ddpm_input(g, "y", 3, 4, 4, 0);
        ddpm_tensor *vector = ddpm_input(g, "vector", 4, 1, 1, 0);
        ddpm_enter(g, "the.place");
        if (wrong_builder(which, g, x, y, vector)) fail_msg("builder %d was accepted", which);
        result = ddpm_graph_plan(g, NULL, NULL, 0);
        if (result != DDPM_OK) check_failure(result, DDPM_ERR_SHAPE, "the.place");
        ddpm_graph_free(g);
    }
    assert_int_equal(which, 25);
}

typedef struct readiness {
    const ddpm_model *model;
    int calls[256];
    float *gradient;
} readiness;

static void note_ready(void *user, ddpm_tensor *param)
{
    readiness *r = user;
    for (int p = 0; p < r->model->params; p++)
        if (r->model->param[p] == param) {
            r->calls[p]++;
            memcpy(r->gradient + param->offset, param->grad, ddpm_elements(param, 0) * sizeof(float));
        }
}

/* Every parameter is reported once, and its gradient does not change after that. */
static void test_gradients_are_reported_when_final(void **state)
{
    (void)state;
    kit *k = open_kit(2, 1, 1);
    readiness r = {.model = k->model, .gradient = calloc(k->model->elements, sizeof(float))};
    assert_non_null(r.gradient);
    assert_true(k->model->params <= 256);
    OK(ddpm_predict(k->net, 2, k->noise, k->t, k->labels, NULL));
    OK(ddpm_model_zero_grad(k->model));
    OK(ddpm_graph_backward(k->net->graph, NULL, note_ready, &r));
    for (int p = 0; p < k->model->params; p++) {
        const ddpm_tensor *x = k->model->param[p];
        assert_int_equal(r.calls[p], 1);
        assert_memory_equal(r.gradient + x->offset, x->grad, ddpm_elements(x, 0) * sizeof(float));
    }
    free(r.gradient);
    close_kit(k);
}

/* Who stores and who adds: y = conv(silu(x), w), z = conv(y + y, w). Backward visits the nodes from the last to the
 * first, so the add's second input is the second writer of y's gradient, and w is final only at the first
 * convolution. */
static void test_first_writer_stores(void **state)
{
    (void)state;
    float value[4] = {1, 2, 3, 4}, gradient[4] = {0};
    ddpm_tensor w = {
        .name = "w", .dims = 4, .shape = {2, 2, 1, 1}, .param = 1, .trainable = 1, .data = value, .grad = gradient};
    ddpm_graph *g;
    OK(ddpm_graph_create(&g, NULL, 1, 1));
    ddpm_tensor *x = ddpm_input(g, "x", 2, 2, 2, 1);
    ddpm_tensor *y = ddpm_conv2d(g, ddpm_activation(g, x, DDPM_SILU), &w, NULL, 1, 0, 0);
    ddpm_tensor *z = ddpm_conv2d(g, ddpm_add(g, y, y, 1), &w, NULL, 1, 0, 0);
    OK(ddpm_graph_plan(g, z, &z, 1));
    assert_int_equal(g->nodes, 4);
    static const unsigned wants[] = {1, 3, 3, 3}, accumulate[] = {0, 2, 2, 2}, final[] = {0, 2, 0, 0};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(g->node[i]->wants, wants[i]);
        assert_int_equal(g->node[i]->accumulate, accumulate[i]);
        assert_int_equal(g->node[i]->final, final[i]);
    }
    ddpm_graph_free(g);
}

/* ---- 5. Threads ---- */

typedef struct record { /* bytes of all results, one after the other */
    unsigned char *data;
    size_t size;
} record;

static void append(record *r, const void *data, size_t size)
{
    r->data = realloc(r->data, r->size + size);
    assert_non_null(r->data);
    memcpy(r->data + r->size, data, size);
    r->size += size;
}

static void append_arrays(record *r, const ddpm_model *model, unsigned arrays)
{
    for (int a = 0; a < DDPM_ARRAYS; a++)
        if (arrays >> a & 1) append(r, model->array[a], model->elements * sizeof(float));
}

static record everything(int threads)
{
    record r = {NULL, 0};
    kit *k = open_kit(3, 1, threads);
    float out[3 * PICTURE];
    double loss;
    assert_true(k->device.threads == threads || k->device.threads == 1); /* 1: built without OpenMP */
    OK(ddpm_predict(k->net, 3, k->noise, k->t, k->labels, out));
    append(&r, out, sizeof out);
    OK(ddpm_loss_gradients(k->net, 3, k->picture, k->t, k->labels, k->noise, out, &loss));
    append(&r, out, sizeof out);
    append(&r, &loss, sizeof loss);
    append_arrays(&r, k->model, 1 << DDPM_GRAD);
    for (int step = 0; step < 3; step++) {
        OK(ddpm_train_step(&k->trainer, k->picture, k->labels, 3, 1e-3, &loss));
        append(&r, &loss, sizeof loss);
        append(&r, &k->trainer.grad_norm, sizeof k->trainer.grad_norm);
    }
    append_arrays(&r, k->model, DDPM_FOR_TRAINING);
    for (int sampler = 0; sampler <= DDPM_SAMPLER_DPMSOLVER; sampler++) {
        ddpm_sample_config config = {(ddpm_sampler)sampler, 2, 0.5, 11, 0, 1, NULL, NULL, 0, 0};
        OK(ddpm_sample(k->net, &k->schedule, &config, k->labels, 3, out, NULL, NULL));
        append(&r, out, sizeof out);
    }
    close_kit(k);
    return r;
}

/* Prediction, gradients, three steps (weights, moments, moving average) and both samplers: the same bits. */
static void test_threads_do_not_matter(void **state)
{
    (void)state;
    record one = everything(1);
    for (int threads = 2; threads <= 3; threads++) {
        record more = everything(threads);
        assert_int_equal(more.size, one.size);
        assert_memory_equal(more.data, one.data, one.size);
        free(more.data);
    }
    free(one.data);
}

/* ---- 6. Batches ---- */

/* A batch of 7 in parts of at most `capacity`. Prediction and loss have the whole batch's bits, since a picture does
 * not see its neighbours. Gradients are sums over M = 7 * 64 pictures and pixels in another order. With u = 2^-24
 * each way
 * of summing errs by at most M u S, S the sum of the magnitudes, which for terms of any sign is about sqrt(M) times
 * their sum's usual size: hence
 *     |g - r| <= 2 M u sqrt(M) rms = 1.2e-3 rms
 * with rms of the tensor, but at least a hundredth of that of all: a gradient that cancels to zero is as uncertain as
 * its terms are large. A picture lost or counted twice changes g by about rms / sqrt(7). */
static void test_micro_batches_add_up(void **state)
{
    (void)state;
    enum { N = 7 };
    static const int capacities[] = {7, 3, 2, 1};
    const double pixels = N * SIDE * SIDE, share = 2 * pixels * sqrt(pixels) * 0x1p-24;
    float *whole = NULL, first_out[N * PICTURE], out[N * PICTURE];
    double whole_loss = 0, loss, all = 0;
    for (size_t c = 0; c < sizeof capacities / sizeof *capacities; c++) {
        kit *k = open_kit(capacities[c], 1, 1);
        OK(ddpm_loss_gradients(k->net, N, k->picture, k->t, k->labels, k->noise, out, &loss));
        const float *grad = k->model->array[DDPM_GRAD];
        if (c == 0) {
            whole = malloc(k->model->elements * sizeof *whole);
            assert_non_null(whole);
            memcpy(whole, grad, k->model->elements * sizeof *whole);
            memcpy(first_out, out, sizeof out);
            whole_loss = loss;
            double squares = 0; /* the loss is the mean of all squared errors, and double here */
            for (int i = 0; i < N * PICTURE; i++)
                squares += pow((double)out[i] - (double)k->noise[i], 2);
            assert_true(fabs(loss / (squares / (N * PICTURE)) - 1) <
                        0x1p-22); /* each picture's sum is rounded to float */
            for (size_t i = 0; i < k->model->elements; i++)
                all += (double)grad[i] * (double)grad[i];
            all = sqrt(all / (double)k->model->elements);
        }
        assert_memory_equal(out, first_out, sizeof out);
        assert_true(loss == whole_loss);
        for (int p = 0; p < k->model->params; p++) {
            const ddpm_tensor *x = k->model->param[p];
            size_t count = ddpm_elements(x, 0);
            double rms = 0;
            for (size_t i = 0; i < count; i++)
                rms += (double)whole[x->offset + i] * (double)whole[x->offset + i];
            rms = fmax(sqrt(rms / (double)count), 0.01 * all);
            for (size_t i = 0; i < count; i++) {
                double error = fabs((double)grad[x->offset + i] - (double)whole[x->offset + i]);
                if (!(error <= share * rms))
                    fail_msg("capacity %d, '%s': error %g of %g", capacities[c], x->name, error, rms);
            }
        }
        close_kit(k);
    }
    free(whole);
}

/* A training step is the same whatever the capacity: same noise, same t, same loss. */
static void test_training_noise_ignores_capacity(void **state)
{
    (void)state;
    double loss[3];
    for (int c = 0; c < 3; c++) {
        kit *k = open_kit(c == 0 ? 5 : c, 1, 1);
        OK(ddpm_train_step(&k->trainer, k->picture, k->labels, 5, 1e-3, &loss[c]));
        assert_int_equal(k->trainer.step, 1);
        assert_int_equal(k->trainer.picture, 5);
        close_kit(k);
    }
    assert_true(loss[0] == loss[1] && loss[0] == loss[2]);
}

/* Picture i of a batch of 4, and drawn alone in networks of other capacities, to the bit: no row mixes pictures. */
static void test_samples_ignore_the_batch(void **state)
{
    (void)state;
    static const int capacities[] = {1, 3};
    for (int sampler = 0; sampler <= DDPM_SAMPLER_DPMSOLVER; sampler++) {
        ddpm_sample_config config = {(ddpm_sampler)sampler, 5, 0.3, 77, 1000, 1, NULL, NULL, 0, 0};
        float together[4 * PICTURE], alone[PICTURE];
        kit *k = open_kit(4, 0, 1);
        OK(ddpm_sample(k->net, &k->schedule, &config, k->labels, 4, together, NULL, NULL));
        close_kit(k);
        for (size_t c = 0; c < 2; c++) {
            k = open_kit(capacities[c], 0, 1);
            for (int i = 0; i < 4; i++) {
                config.first_picture = 1000 + (uint64_t)i;
                OK(ddpm_sample(k->net, &k->schedule, &config, k->labels + i * CLASSES, 1, alone, NULL, NULL));
                assert_memory_equal(alone, together + i * PICTURE, sizeof alone);
            }
            config.first_picture = 1000;
            close_kit(k);
        }
        assert_memory_not_equal(together, together + PICTURE, PICTURE * sizeof(float));
    }
}

static ddpm_result count_calls(void *user, ddpm_net *net, int done, int steps)
{
    int *calls = user;
    (void)net;
    assert_int_equal(done, *calls);
    assert_int_equal(steps, 6);
    ++*calls;
    return done == 3 ? ddpm_fail(DDPM_STOPPED, "enough") : DDPM_OK;
}

static void test_sampling_can_be_stopped(void **state)
{
    (void)state;
    kit *k = open_kit(1, 0, 1);
    ddpm_sample_config config = {DDPM_SAMPLER_DDIM, 6, 0, 1, 0, 1, NULL, NULL, 0, 0};
    float out[PICTURE] = {9};
    int calls = 0;
    assert_int_equal(ddpm_sample(k->net, &k->schedule, &config, k->labels, 1, out, count_calls, &calls), DDPM_STOPPED);
    assert_int_equal(calls, 4);
    assert_true(out[0] == 9);
    close_kit(k);
}

typedef struct way { /* net->sample at each call, of one picture */
    float at[3][PICTURE];
    int first, calls;
} way;

static ddpm_result keep_way(void *user, ddpm_net *net, int done, int steps)
{
    way *w = user;
    (void)steps;
    assert_int_equal(done, w->first + w->calls);
    return ddpm_download(net->model->device, net->sample, DDPM_DATA, 1, w->at[w->calls++]);
}

/* With 20 steps of which 18 are left out: x_t is the start picture with the noise of its address, and the first step is
 * what its coefficients say, of first order in DPM-Solver++ too (its order 1 gives them), the second one as always.
 * x_t: |start| <= 1 and |eps| < 5.8, two products and a sum in float: at most 3 roundings of 2^-24 (1 + 5.8).
 * A step: 5 products and sums of values below 16 in float, and x_0, one of them, is 1/sqrt(abar) < 1.1 times as
 * wrong. */
static void test_starts_from_a_picture(void **state)
{
    (void)state;
    enum { STEPS = 20, SKIP = 18 };
    float start[PICTURE], out[PICTURE], eps[PICTURE], prediction[PICTURE];
    for (int i = 0; i < PICTURE; i++)
        start[i] = (float)(i % 17) / 8 - 1;
    for (int sampler = 0; sampler <= DDPM_SAMPLER_DPMSOLVER; sampler++) {
        ddpm_sample_config config = ddpm_sample_default();
        ddpm_normals((ddpm_address){77, 1000, 0, DDPM_RANDOM_START}, PICTURE, eps);
        config.sampler = (ddpm_sampler)sampler;
        config.steps = STEPS;
        config.seed = 77;
        config.first_picture = 1000;
        config.start = start;
        config.skip = SKIP;
        kit *k = open_kit(1, 0, 1);
        way w = {.first = SKIP};
        int t[STEPS];
        k->schedule.config.solver_order = 2;
        k->schedule.config.euler_at_final = k->schedule.config.lower_order_final = 0;
        OK(ddpm_sample(k->net, &k->schedule, &config, k->labels, 1, out, keep_way, &w));
        assert_int_equal(w.calls, 3);
        assert_memory_equal(w.at[2], out, sizeof out);
        OK(ddpm_timesteps(&k->schedule, config.sampler, STEPS, t));
        double abar = (double)k->schedule.alpha_bar[t[SKIP]];
        for (int i = 0; i < PICTURE; i++)
            assert_float_equal(w.at[0][i], sqrt(abar) * (double)start[i] + sqrt(1 - abar) * (double)eps[i],
                               3 * 6.8 * 0x1p-24);

        k->schedule.config.solver_order = 1;
        ddpm_step_terms terms = ddpm_step_coefficients(&k->schedule, config.sampler, t, STEPS, SKIP, 0);
        const float time = (float)t[SKIP];
        OK(ddpm_predict(k->net, 1, w.at[0], &time, k->labels, prediction));
        ddpm_normals((ddpm_address){77, 1000, SKIP, DDPM_RANDOM_STEP}, PICTURE, eps);
        for (int i = 0; i < PICTURE; i++) {
            double x = (double)w.at[0][i], p = (double)prediction[i];
            double image = terms.x0_sample * x + terms.x0_prediction * p;
            if (terms.clamp > 0)
                image = image < -terms.clamp ? -terms.clamp : image > terms.clamp ? terms.clamp : image;
            double next = terms.image * image + terms.sample * x + terms.prediction * p + terms.noise * (double)eps[i];
            assert_float_equal(w.at[1][i], next, 10 * 16 * 1.1 * 0x1p-24);
        }
        close_kit(k);
    }
    kit *k = open_kit(1, 0, 1);
    ddpm_sample_config config = ddpm_sample_default();
    config.steps = 5;
    config.skip = 1;
    assert_int_equal(ddpm_sample(k->net, &k->schedule, &config, k->labels, 1, out, NULL, NULL), DDPM_ERR_ARGUMENT);
    assert_non_null(strstr(ddpm_error(), "1 of 5 sampling steps cannot be left out when starting from noise"));
    config.start = start;
    config.skip = 5;
    assert_int_equal(ddpm_sample(k->net, &k->schedule, &config, k->labels, 1, out, NULL, NULL), DDPM_ERR_ARGUMENT);
    config.skip = 4;
    OK(ddpm_sample(k->net, &k->schedule, &config, k->labels, 1, out, NULL, NULL));
    close_kit(k);
}

/* ---- 7. Classifier-free guidance ---- */

enum { GUIDED = 3 };

typedef struct guided { /* the kit's own network draws; `plain`, of the same weights, says what it should have drawn */
    kit *k;
    ddpm_net *plain;
    ddpm_sample_config config;
    float x[GUIDED * PICTURE];
    double worst;
} guided;

/* One step from the last x_t, from two predictions: eps_none + G (eps_label - eps_none) and the sampler's terms in
 * double. Float rounds each prediction's coefficient, eps, x_0 and the terms' coefficients: gamma(16) of the absolute
 * terms. Labels, "none" or G taken wrongly err by a share of eps itself. */
static ddpm_result check_guided_step(void *user, ddpm_net *net, int done, int steps)
{
    guided *d = user;
    float labelled[GUIDED * PICTURE], none[GUIDED * PICTURE], z[GUIDED * PICTURE], next[GUIDED * PICTURE], time[GUIDED];
    const float zeros[GUIDED * CLASSES] = {0};
    if (done) {
        int t[8];
        OK(ddpm_timesteps(&d->k->schedule, d->config.sampler, steps, t));
        ddpm_step_terms c =
            ddpm_step_coefficients(&d->k->schedule, d->config.sampler, t, steps, done - 1, d->config.eta);
        for (int i = 0; i < GUIDED; i++)
            time[i] = (float)t[done - 1];
        OK(ddpm_predict(d->plain, GUIDED, d->x, time, d->k->labels, labelled));
        OK(ddpm_predict(d->plain, GUIDED, d->x, time, zeros, none));
        OK(ddpm_download(&d->k->device, net->noise, DDPM_DATA, GUIDED, z));
        OK(ddpm_download(&d->k->device, net->sample, DDPM_DATA, GUIDED, next));
        for (int i = 0; i < GUIDED * PICTURE; i++) {
            double a = (double)none[i], b = (double)labelled[i], g = d->config.guidance, eps = a + g * (b - a),
                   size = fabs((1 - g) * a) + fabs(g * b), x = (double)d->x[i];
            double x0 = c.x0_sample * x + c.x0_prediction * eps, clamped = fmin(fmax(x0, -c.clamp), c.clamp);
            double wanted = c.image * clamped + c.sample * x + c.prediction * eps + c.noise * (double)z[i];
            double mass = fabs(c.image) * (fabs(c.x0_sample * x) + fabs(c.x0_prediction) * size) + fabs(c.sample * x) +
                          fabs(c.prediction) * size + fabs(c.noise * (double)z[i]);
            double error = fabs((double)next[i] - wanted) / (16 * 0x1p-24 * mass);
            if (!(error <= 1))
                fail_msg("guidance %g, step %d, element %d: %.9g instead of %.9g", g, done, i, (double)next[i], wanted);
            d->worst = fmax(d->worst, error);
        }
    }
    return ddpm_download(&d->k->device, net->sample, DDPM_DATA, GUIDED, d->x);
}

static void test_guidance(void **state)
{
    (void)state;
    static const double scales[] = {3, 1.5, 0.25, -1, 0, 1};
    guided d = {.k = open_kit(2 * GUIDED, 0, 1)};
    float out[GUIDED * PICTURE];
    OK(ddpm_net_create(&d.plain, d.k->model, 0, 0, GUIDED, 0));
    for (int sampler = 0; sampler < DDPM_SAMPLER_DPMSOLVER; sampler++)
        for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
            d.config = (ddpm_sample_config){(ddpm_sampler)sampler, 4, 0.5, 7, 100, scales[i], NULL, NULL, 0, 0};
            OK(ddpm_sample(d.k->net, &d.k->schedule, &d.config, d.k->labels, GUIDED, out, check_guided_step, &d));
            assert_memory_equal(out, d.x, sizeof out);
        }
    print_message("           worst error %.2f of its bound\n", d.worst);
    ddpm_net_free(d.plain);
    close_kit(d.k);
}

/* Guidance 1 has the bits of a drawing without, guidance 0 those of a drawing of "no label", whatever the capacity;
 * and with guidance, too, a picture does not depend on its batch. */
static void test_guidance_at_its_ends(void **state)
{
    (void)state;
    kit *k = open_kit(GUIDED, 0, 1), *wide = open_kit(2 * GUIDED, 0, 1);
    float one[GUIDED * PICTURE], two[GUIDED * PICTURE], labels[GUIDED * CLASSES] = {0}, none[CLASSES] = {0, 0, 1, 0, 0};
    ddpm_sample_config config = ddpm_sample_default();
    config.steps = 3;
    OK(ddpm_sample(k->net, &k->schedule, &config, k->labels, GUIDED, one, NULL, NULL));
    config.guidance = 1;
    OK(ddpm_sample(wide->net, &k->schedule, &config, k->labels, GUIDED, two, NULL, NULL));
    assert_memory_equal(one, two, sizeof one);
    for (int other = 0; other < 2; other++) { /* zeros, then a multi-hot of its own */
        config.guidance = 1;
        config.none = NULL;
        for (int i = 0; other && i < GUIDED; i++)
            memcpy(labels + i * CLASSES, none, sizeof none);
        OK(ddpm_sample(k->net, &k->schedule, &config, labels, GUIDED, one, NULL, NULL));
        config.guidance = 0;
        config.none = other ? none : NULL;
        OK(ddpm_sample(k->net, &k->schedule, &config, k->labels, GUIDED, two, NULL, NULL));
        assert_memory_equal(one, two, sizeof one);
    }
    config.guidance = 3;
    OK(ddpm_sample(wide->net, &k->schedule, &config, k->labels, GUIDED, one, NULL, NULL));
    assert_memory_not_equal(one, two, sizeof one);
    for (int i = 0; i < GUIDED; i++) {
        config.first_picture = (uint64_t)i;
        OK(ddpm_sample(k->net, &k->schedule, &config, k->labels + i * CLASSES, 1, two, NULL, NULL));
        assert_memory_equal(one + i * PICTURE, two, PICTURE * sizeof *two);
    }
    close_kit(wide);
    close_kit(k);
}

/* Class indices have no zeros that could mean "no label": the last class is made to. */
static void test_guidance_of_class_indices(void **state)
{
    (void)state;
    kit *k = calloc(1, sizeof *k);
    assert_non_null(k);
    ddpm_model_config config = small_config();
    config.unet.class_embed_type = DDPM_CLASS_NONE;
    config.unet.num_class_embeds = CLASSES;
    config.label = (ddpm_label_config){0, 0, 0};
    open_config(k, &config, 2, 0, 1);
    float one[PICTURE], two[PICTURE], label = 1, none = CLASSES - 1;
    ddpm_sample_config sample = ddpm_sample_default();
    sample.steps = 3;
    sample.guidance = 2;
    check_failure(ddpm_sample(k->net, &k->schedule, &sample, &label, 1, one, NULL, NULL), DDPM_ERR_ARGUMENT, "`none`");
    sample.none = &none;
    OK(ddpm_sample(k->net, &k->schedule, &sample, &label, 1, one, NULL, NULL));
    OK(ddpm_sample(k->net, &k->schedule, &sample, &none, 1, two, NULL, NULL)); /* eps of both is the same */
    assert_memory_not_equal(one, two, sizeof one);
    sample.guidance = 0;
    OK(ddpm_sample(k->net, &k->schedule, &sample, &label, 1, one, NULL, NULL));
    for (int i = 0; i < PICTURE; i++) /* 2 eps - eps: as exact as eps */
        assert_true(one[i] == two[i]);
    close_kit(k);
}

static void test_guidance_refused(void **state)
{
    (void)state;
    kit *k = open_kit(3, 0, 1);
    float out[MOST * PICTURE];
    ddpm_sample_config config = ddpm_sample_default();
    config.steps = 1;
    config.guidance = 3;
    OK(ddpm_sample(k->net, &k->schedule, &config, k->labels, 1, out, NULL, NULL));
    check_failure(ddpm_sample(k->net, &k->schedule, &config, k->labels, 2, out, NULL, NULL), DDPM_ERR_ARGUMENT,
                  "guidance 3 runs 2 pictures as 4, the network was built for 3");
    config.guidance = (double)NAN;
    check_failure(ddpm_sample(k->net, &k->schedule, &config, k->labels, 1, out, NULL, NULL), DDPM_ERR_ARGUMENT,
                  "finite");
    close_kit(k);
    k = calloc(1, sizeof *k);
    assert_non_null(k);
    ddpm_model_config free_of_labels = small_config();
    free_of_labels.unet.class_embed_type = DDPM_CLASS_NONE;
    free_of_labels.label = (ddpm_label_config){0, 0, 0};
    open_config(k, &free_of_labels, 4, 0, 1);
    config.guidance = 2;
    check_failure(ddpm_sample(k->net, &k->schedule, &config, NULL, 1, out, NULL, NULL), DDPM_ERR_ARGUMENT, "labels");
    close_kit(k);
}

/* ---- 8. Training ---- */

static void test_learning_rate(void **state)
{
    (void)state;
    static const int milestones[] = {30, 60};
    static const struct {
        int epoch;
        double factor;
    } known[] = {{0, 1}, {29, 1}, {30, 0.1}, {59, 0.1}, {60, 0.01}, {1000, 0.01}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_true(fabs(ddpm_multistep_lr(0.3, known[i].epoch, milestones, 2, 0.1) / (0.3 * known[i].factor) - 1) <
                    1e-15);
    assert_true(ddpm_multistep_lr(0.3, 99, NULL, 0, 0.1) == 0.3);
}

/* diffusers 0.42, get_cosine_schedule_with_warmup(optimizer, 4, 20).lr_lambdas[0]: the same formula in double. */
static void test_cosine_factor(void **state)
{
    static const struct {
        uint64_t step;
        double factor;
    } known[] = {{0, 0},
                 {1, 0.25},
                 {3, 0.75},
                 {4, 1},
                 {5, 0.9903926402016152},
                 {11, 0.5975451610080642},
                 {12, 0.5},
                 {19, 0.009607359798384785},
                 {20, 0},
                 {1000, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        assert_true(fabs(ddpm_cosine_factor(known[i].step, 4, 20) - known[i].factor) < 1e-15);
    assert_true(ddpm_cosine_factor(0, 0, 0) == 1 && ddpm_cosine_factor(77, 0, 0) == 1);
    assert_true(ddpm_cosine_factor(3, 4, 0) == 0.75 && ddpm_cosine_factor(4, 4, 0) == 1);
    assert_true(ddpm_cosine_factor(4, 4, 4) == 0);
}

/* The share of pictures whose labels go, and that a picture's fate is its own: not its batch's. */
static void test_label_dropout(void **state)
{
    enum { N = 20000, WIDTH = 3 };
    static ddpm_real all[N * WIDTH], parts[N * WIDTH];
    int dropped = 0;
    (void)state;
    for (int i = 0; i < N * WIDTH; i++)
        all[i] = parts[i] = 1;
    ddpm_drop_labels((ddpm_address){.seed = 3, .picture = 5}, 0.1, 7, N, WIDTH, all);
    for (int first = 0; first < N; first += 32)
        ddpm_drop_labels((ddpm_address){.seed = 3, .picture = 5 + (uint64_t)first}, 0.1, 7, 32, WIDTH,
                         parts + (size_t)first * WIDTH);
    assert_memory_equal(all, parts, sizeof all);
    for (int i = 0; i < N; i++) {
        const ddpm_real *label = all + (size_t)i * WIDTH;
        assert_true((label[0] == 1 || label[0] == 7) && label[1] == label[0] && label[2] == label[0]);
        dropped += label[0] == 7;
    }
    assert_true(abs(dropped - N / 10) < 5 * 43); /* standard deviation sqrt(N p (1-p)) = 42.4 */
    ddpm_drop_labels((ddpm_address){.seed = 3}, 0, 9, N, WIDTH, all);
    for (int i = 0; i < N * WIDTH; i++)
        assert_true(all[i] != 9);
    ddpm_drop_labels((ddpm_address){.seed = 3}, 1, 9, N, WIDTH, all);
    for (int i = 0; i < N * WIDTH; i++)
        assert_true(all[i] == 9);
}

static void test_ema_decay(void **state)
{
    (void)state;
    assert_true(ddpm_ema_decay(0, 0.9999) == 0);
    assert_true(ddpm_ema_decay(1, 0.9999) == 0);
    assert_true(ddpm_ema_decay(2, 0.9999) == 2.0 / 11);
    assert_true(ddpm_ema_decay(101, 0.9999) == 101.0 / 110);
    assert_true(ddpm_ema_decay(100000, 0.9999) == 0.9999);
    assert_true(ddpm_ema_decay((uint64_t)1 << 60, 0.5) == 0.5);
}

/* torch's bounds: U(+-1/sqrt(fan_in)) for a convolution, 1 and 0 for a norm. */
static void test_initial_weights(void **state)
{
    (void)state;
    kit *k = open_kit(1, 1, 1);
    const ddpm_tensor *conv = ddpm_model_find(k->model, "down_blocks.0.resnets.0.conv1.weight");
    const ddpm_tensor *weight = ddpm_model_find(k->model, "conv_norm_out.weight"),
                      *bias = ddpm_model_find(k->model, "conv_norm_out.bias");
    assert_non_null(conv);
    assert_non_null(weight);
    assert_non_null(bias);
    assert_null(ddpm_model_find(k->model, "no.such.weight"));
    float value[8 * 8 * 9], bound = 1 / sqrtf(8 * 9);
    double sum = 0, square = 0;
    OK(ddpm_model_get(k->model, DDPM_WEIGHT, conv, value));
    for (int i = 0; i < 8 * 8 * 9; i++) {
        assert_true(fabsf(value[i]) <= bound);
        sum += (double)value[i];
        square += (double)(value[i] * value[i]);
    }
    /* 576 of U(-b,b): variance b^2/3 and, of its estimate, (1/5 - 1/9) b^4; 5 standard deviations */
    double b = (double)bound;
    assert_true(fabs(sum / 576) < 5 * b * sqrt(1.0 / 3 / 576));
    assert_true(fabs(square / 576 - b * b / 3) < 5 * b * b * sqrt((1.0 / 5 - 1.0 / 9) / 576));
    OK(ddpm_model_get(k->model, DDPM_EMA, weight, value));
    for (int i = 0; i < 8; i++)
        assert_true(value[i] == 1);
    OK(ddpm_model_get(k->model, DDPM_WEIGHT, bias, value));
    for (int i = 0; i < 8; i++)
        assert_true(value[i] == 0);
    assert_memory_equal(k->model->array[DDPM_WEIGHT], k->model->array[DDPM_EMA], k->model->elements * sizeof(float));
    close_kit(k);
}

/* 80 steps on one batch: noise and t still vary from step to step, yet the loss falls from about 1, a prediction of
 * nothing, to well under half: the network must tell the noise from the few pictures it has seen. */
static void test_training_learns(void **state)
{
    (void)state;
    enum { STEPS = 80 };
    kit *k = open_kit(8, 1, 1);
    double loss, early = 0, late = 0;
    for (int step = 0; step < STEPS; step++) {
        OK(ddpm_train_step(&k->trainer, k->picture, k->labels, 8, 4e-3, &loss));
        assert_true(isfinite(k->trainer.grad_norm) && k->trainer.grad_norm > 0);
        if (step < 5) early += loss / 5;
        if (step >= STEPS - 10) late += loss / 10;
    }
    if (!(late < 0.5 * early)) fail_msg("loss %g at first, %g in the end", early, late);
    assert_int_equal(k->trainer.step, STEPS);
    close_kit(k);
}

/* A run that stops after two steps and goes on in a new trainer from its arrays and counters has the other's bits. */
static void test_resumed_training_is_the_same(void **state)
{
    (void)state;
    record r[2] = {{NULL, 0}, {NULL, 0}};
    for (int stopped = 0; stopped < 2; stopped++) {
        kit *k = open_kit(4, 1, 1);
        for (int step = 0; step < 4; step++) {
            if (stopped && step == 2) {
                kit *next = open_kit(3, 1, 1); /* the capacity may even differ: it holds no history */
                ddpm_net_free(next->net);
                OK(ddpm_net_create(&next->net, next->model, 0, 0, 4, 1));
                OK(ddpm_trainer_init(&next->trainer, next->net, &next->schedule, NULL));
                for (int a = 0; a < DDPM_ARRAYS; a++)
                    for (int p = 0; p < k->model->params; p++) {
                        float *value = malloc(ddpm_elements(k->model->param[p], 0) * sizeof *value);
                        assert_non_null(value);
                        OK(ddpm_model_get(k->model, (ddpm_array)a, k->model->param[p], value));
                        OK(ddpm_model_set(next->model, (ddpm_array)a, next->model->param[p], value));
                        free(value);
                    }
                next->trainer.step = k->trainer.step;
                next->trainer.picture = k->trainer.picture;
                close_kit(k);
                k = next;
            }
            OK(ddpm_train_step(&k->trainer, k->picture, k->labels, 4, 1e-3, NULL));
        }
        append_arrays(&r[stopped], k->model, DDPM_FOR_TRAINING);
        close_kit(k);
    }
    assert_memory_equal(r[0].data, r[1].data, r[0].size);
    free(r[0].data);
    free(r[1].data);
}

/* diffusers' compute_snr (training_utils.py) and the weights that its training script makes of it, gamma 5: float32. */
static void test_snr_weights(void **state)
{
    static const int t[] = {0, 100, 300, 500, 900, 999};
    static const double epsilon[] = {0.000206538622, 0.146279842, 1, 1, 1, 1},
                        v[] = {0.000206530094, 0.142121926, 0.785632491, 0.492285043, 0.0236161053, 2.42873499e-09};
    (void)state;
    ddpm_schedule s;
    OK(ddpm_schedule_create(&s, NULL));
    for (int i = 0; i < 6; i++) {
        /* snr from float32's 1 - abar: a relative 2^-24 / (1 - abar), with 4.1e-5 at t = 0 */
        double room = 0x1p-23 / (1 - (double)s.alpha_bar[t[i]]) + 1e-6;
        s.config.prediction_type = DDPM_PREDICTS_EPSILON;
        assert_true(fabs(ddpm_snr_weight(&s, t[i], 5) / epsilon[i] - 1) < room);
        s.config.prediction_type = DDPM_PREDICTS_V;
        assert_true(fabs(ddpm_snr_weight(&s, t[i], 5) / v[i] - 1) < room);
        assert_true(ddpm_snr_weight(&s, t[i], 0) == 1);
    }
    s.alpha_bar[999] = 0; /* zero terminal SNR */
    s.config.prediction_type = DDPM_PREDICTS_EPSILON;
    assert_true(ddpm_snr_weight(&s, 999, 5) == 1);
    s.config.prediction_type = DDPM_PREDICTS_V;
    assert_true(ddpm_snr_weight(&s, 999, 5) == 0);
    ddpm_schedule_free(&s);
}

/* The gradient of n pictures is the weighted mean of those of each, the loss likewise; a step leaves every picture's
 * own loss and t with the trainer. */
static void test_weighted_loss(void **state)
{
    enum { N = 3 };
    (void)state;
    double losses[N] = {0}, loss, sum = 0, weight[N];
    int t[N];
    record one[N] = {{NULL, 0}}, all = {NULL, 0};
    kit *k = open_kit(2, 1, 1); /* micro-batches of 2 and 1 */
    for (int i = 0; i < N; i++) {
        k->trainer.picture = (uint64_t)i;
        OK(ddpm_train_step(&k->trainer, k->picture + (size_t)i * PICTURE, k->labels + (size_t)i * CLASSES, 1, 0,
                           &loss));
        append_arrays(&one[i], k->model, DDPM_FOR_GRADIENTS & ~(unsigned)DDPM_FOR_INFERENCE);
    }
    k->trainer.picture = 0;
    k->trainer.config.snr_gamma = 5;
    k->trainer.picture_loss = losses;
    k->trainer.picture_t = t;
    OK(ddpm_train_step(&k->trainer, k->picture, k->labels, N, 0, &loss));
    append_arrays(&all, k->model, DDPM_FOR_GRADIENTS & ~(unsigned)DDPM_FOR_INFERENCE);
    for (int i = 0; i < N; i++) {
        ddpm_address address = {k->trainer.config.seed, (uint64_t)i, 0, DDPM_RANDOM_TIMESTEP};
        assert_int_equal(t[i], ddpm_uniform_int(address, 1000));
        weight[i] = ddpm_snr_weight(&k->schedule, t[i], 5);
        sum += weight[i] * losses[i] / N;
    }
    assert_true(weight[0] < 1 || weight[1] < 1 || weight[2] < 1);
    assert_true(fabs(loss - sum) < 1e-12 * sum);
    size_t count = all.size / sizeof(float);
    const float *got = (const float *)all.data, *part[N];
    double largest = 0, worst = 0;
    for (int i = 0; i < N; i++)
        part[i] = (const float *)one[i].data;
    for (size_t e = 0; e < count; e++) {
        double wanted = 0;
        for (int i = 0; i < N; i++)
            wanted += weight[i] * (double)part[i][e] / N;
        largest = fmax(largest, fabs(wanted));
        worst = fmax(worst, fabs((double)got[e] - wanted));
    }
    /* Sums of at most a thousand float terms in another order: 2^-24 sqrt(1000) = 2e-6 of the largest. */
    assert_true(largest > 0 && worst < 1e-5 * largest);
    for (int i = 0; i < N; i++)
        free(one[i].data);
    free(all.data);
    close_kit(k);
}

/* The same figures for any number of pictures at once; what training the same pictures at the same t and noise says. */
static void test_evaluate(void **state)
{
    enum { N = 3 };
    (void)state;
    double at_once[N], each[N], trained[N] = {0};
    int t[N];
    kit *k = open_kit(2, 1, 1);
    k->trainer.picture_loss = trained;
    k->trainer.picture_t = t;
    k->trainer.picture = 7;
    OK(ddpm_train_step(&k->trainer, k->picture, k->labels, N, 0, NULL));
    ddpm_address first = {k->trainer.config.seed, 7, 0, DDPM_RANDOM_NOISE};
    OK(ddpm_evaluate(k->net, &k->schedule, first, k->picture, k->labels, t, N, at_once));
    for (int i = 0; i < N; i++) {
        ddpm_address address = first;
        address.picture += (uint64_t)i;
        OK(ddpm_evaluate(k->net, &k->schedule, address, k->picture + (size_t)i * PICTURE,
                         k->labels + (size_t)i * CLASSES, t + i, 1, each + i));
        assert_true(each[i] == at_once[i] && each[i] == trained[i] && each[i] > 0);
    }
    t[1] = 1000;
    check_failure(ddpm_evaluate(k->net, &k->schedule, first, k->picture, k->labels, t, N, each), DDPM_ERR_RANGE,
                  "outside [0,1000)");
    check_failure(ddpm_evaluate(k->net, &k->schedule, first, k->picture, NULL, t, N, each), DDPM_ERR_ARGUMENT,
                  "labels");
    first.step = 5; /* and no failure leaves anything of its address to the training that goes on */
    check_failure(ddpm_evaluate(k->net, &k->schedule, first, k->picture, k->labels, t, N, each), DDPM_ERR_RANGE,
                  "outside [0,1000)");
    k->trainer.picture = 7;
    OK(ddpm_train_step(&k->trainer, k->picture, k->labels, N, 0, NULL));
    for (int i = 0; i < N; i++)
        assert_true(trained[i] == at_once[i]);
    close_kit(k);
}

/* ---- 9. Refused arguments ---- */

static void test_capacity_must_be_positive(void **state)
{
    (void)state;
    ddpm_graph *g;
    check_failure(ddpm_graph_create(&g, NULL, 0, 0), DDPM_ERR_ARGUMENT, "capacity");
    assert_null(g);
    kit *k = open_kit(1, 0, 1);
    ddpm_net *net;
    check_failure(ddpm_net_create(&net, k->model, 0, 0, 0, 0), DDPM_ERR_ARGUMENT, "capacity");
    assert_null(net);
    check_failure(ddpm_net_create(&net, k->model, 0, 0, -3, 0), DDPM_ERR_ARGUMENT, "capacity");
    close_kit(k);
}

static void test_sizes_must_halve(void **state)
{
    (void)state;
    static const int wrong[][2] = {{7, 8}, {8, 9}, {-2, 8}, {1, 1}};
    kit *k = open_kit(1, 0, 1);
    ddpm_net *net;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        check_failure(ddpm_net_create(&net, k->model, wrong[i][0], wrong[i][1], 1, 0), DDPM_ERR_SHAPE, "halved");
        assert_null(net);
    }
    OK(ddpm_net_create(&net, k->model, 10, 6, 1, 0)); /* neither square nor a power of two */
    assert_int_equal(net->height, 10);
    assert_int_equal(net->width, 6);
    ddpm_net_free(net);
    close_kit(k);
    ddpm_model_config any = small_config(); /* no size of its own: the smallest, of what is not given */
    ddpm_model *model;
    any.unet.sample_size[0] = any.unet.sample_size[1] = 0;
    OK(ddpm_model_create(&model, &any, NULL));
    for (int given = 0; given < 2; given++) {
        OK(ddpm_net_create(&net, model, given ? 12 : 0, given ? 0 : 12, 1, 0));
        assert_int_equal(net->height, given ? 12 : 2);
        assert_int_equal(net->width, given ? 2 : 12);
        ddpm_net_free(net);
    }
    ddpm_model_free(model);
}

static void test_batch_must_fit(void **state)
{
    (void)state;
    kit *k = open_kit(2, 1, 1);
    float out[3 * PICTURE];
    static const int wrong[] = {-1, 0, 3};
    for (int i = 0; i < 3; i++) {
        check_failure(ddpm_predict(k->net, wrong[i], k->noise, k->t, k->labels, out), DDPM_ERR_ARGUMENT, "1 to 2");
        check_failure(ddpm_sample(k->net, &k->schedule, NULL, k->labels, wrong[i], out, NULL, NULL), DDPM_ERR_ARGUMENT,
                      "1 to 2");
        check_failure(ddpm_graph_forward(k->net->graph, wrong[i]), DDPM_ERR_ARGUMENT, "1 to 2");
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(ddpm_train_step(&k->trainer, k->picture, k->labels, wrong[i], 1e-3, NULL), DDPM_ERR_ARGUMENT);
        assert_int_equal(ddpm_loss_gradients(k->net, wrong[i], k->picture, k->t, k->labels, k->noise, NULL, NULL),
                         DDPM_ERR_ARGUMENT);
    }
    close_kit(k);
}

static void test_labels_must_be_given(void **state)
{
    (void)state;
    kit *k = open_kit(2, 1, 1);
    float out[2 * PICTURE];
    check_failure(ddpm_predict(k->net, 2, k->noise, k->t, NULL, out), DDPM_ERR_ARGUMENT, "labels");
    check_failure(ddpm_sample(k->net, &k->schedule, NULL, NULL, 2, out, NULL, NULL), DDPM_ERR_ARGUMENT, "labels");
    check_failure(ddpm_train_step(&k->trainer, k->picture, NULL, 2, 1e-3, NULL), DDPM_ERR_ARGUMENT, "labels");
    check_failure(ddpm_loss_gradients(k->net, 2, k->picture, k->t, NULL, k->noise, NULL, NULL), DDPM_ERR_ARGUMENT,
                  "labels");
    close_kit(k);
}

static void test_embedding_labels_must_exist(void **state)
{
    (void)state;
    ddpm_model_config config = small_config();
    config.label = (ddpm_label_config){0, 0, 0};
    config.unet.class_embed_type = DDPM_CLASS_NONE;
    config.unet.num_class_embeds = 3;
    kit *k = calloc(1, sizeof *k);
    assert_non_null(k);
    open_config(k, &config, 2, 0, 1);
    assert_int_equal(ddpm_label_width(&config), 1);
    float out[2 * PICTURE];
    const float right[2] = {0, 2}, wrong[][2] = {{0, 3}, {-1, 0}, {0, 0.5f}, {NAN, 0}, {INFINITY, 0}, {1e20f, 0}};
    OK(ddpm_predict(k->net, 2, k->noise, k->t, right, out));
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        check_failure(ddpm_predict(k->net, 2, k->noise, k->t, wrong[i], out), DDPM_ERR_RANGE, "class label");
    close_kit(k);
}

static void test_timesteps_must_exist(void **state)
{
    (void)state;
    kit *k = open_kit(2, 1, 1);
    float before[2 * PICTURE], after[2 * PICTURE];
    OK(ddpm_graph_alloc(k->net->graph));
    OK(ddpm_upload(&k->device, k->net->sample, DDPM_DATA, 2, k->noise));
    OK(ddpm_download(&k->device, k->net->sample, DDPM_DATA, 2, before));
    check_failure(ddpm_add_noise(k->net, &k->schedule, (int[]){3, 1000}, 2), DDPM_ERR_RANGE, "t[1] = 1000");
    check_failure(ddpm_add_noise(k->net, &k->schedule, (int[]){-1, 5}, 2), DDPM_ERR_RANGE, "t[0] = -1");
    assert_int_equal(ddpm_add_noise(k->net, &k->schedule, (int[]){1, 2, 3}, 3), DDPM_ERR_ARGUMENT);
    OK(ddpm_download(&k->device, k->net->sample, DDPM_DATA, 2, after));
    assert_memory_equal(before, after, sizeof before);
    OK(ddpm_add_noise(k->net, &k->schedule, (int[]){0, 999}, 2));
    close_kit(k);
}

static void test_steps_must_exist(void **state)
{
    (void)state;
    kit *k = open_kit(1, 0, 1);
    int t[1000];
    float out[PICTURE];
    static const int wrong[] = {0, -1, 1001, INT_MAX};
    for (int i = 0; i < 4; i++)
        check_failure(ddpm_timesteps(&k->schedule, DDPM_SAMPLER_DDPM, wrong[i], t), DDPM_ERR_RANGE, "steps");
    for (int i = 1; i < 4; i++) { /* 0 means T */
        ddpm_sample_config config = {DDPM_SAMPLER_DDPM, wrong[i], 0, 1, 0, 1, NULL, NULL, 0, 0};
        check_failure(ddpm_sample(k->net, &k->schedule, &config, k->labels, 1, out, NULL, NULL), DDPM_ERR_RANGE,
                      "steps");
    }
    OK(ddpm_timesteps(&k->schedule, DDPM_SAMPLER_DDPM, 1000, t));
    for (int i = 0; i < 1000; i++)
        assert_int_equal(t[i], 999 - i);
    OK(ddpm_timesteps(&k->schedule, DDPM_SAMPLER_DDPM, 3, t));
    assert_int_equal(t[0], 666);
    assert_int_equal(t[2], 0);
    ddpm_schedule s;
    ddpm_schedule_config config = ddpm_schedule_default();
    config.num_train_timesteps = 1;
    check_failure(ddpm_schedule_create(&s, &config), DDPM_ERR_ARGUMENT, "num_train_timesteps");
    ddpm_schedule_free(&s);
    close_kit(k);
}

static void test_training_needs_its_arrays(void **state)
{
    (void)state;
    kit *k = open_kit(1, 0, 1);
    ddpm_trainer trainer;
    ddpm_net *net;
    float out[PICTURE], value[PICTURE];
    check_failure(ddpm_trainer_init(&trainer, k->net, &k->schedule, NULL), DDPM_ERR_ARGUMENT, "without a loss");
    check_failure(ddpm_loss_gradients(k->net, 1, k->picture, k->t, k->labels, k->noise, out, NULL), DDPM_ERR_ARGUMENT,
                  "training");
    OK(ddpm_net_create(&net, k->model, 0, 0, 1, 1));
    check_failure(ddpm_trainer_init(&trainer, net, &k->schedule, NULL), DDPM_ERR_ARGUMENT, "ddpm_model_alloc");
    check_failure(ddpm_loss_gradients(net, 1, k->picture, k->t, k->labels, k->noise, out, NULL), DDPM_ERR_ARGUMENT,
                  "ddpm_model_alloc");
    check_failure(ddpm_model_zero_grad(k->model), DDPM_ERR_ARGUMENT, "gradients");
    check_failure(ddpm_model_use(k->model, DDPM_EMA), DDPM_ERR_ARGUMENT, "moving average");
    check_failure(ddpm_model_use(k->model, DDPM_GRAD), DDPM_ERR_ARGUMENT, "");
    check_failure(ddpm_model_get(k->model, DDPM_EMA, k->model->param[0], value), DDPM_ERR_ARGUMENT,
                  k->model->param[0]->name);
    check_failure(ddpm_model_set(k->model, DDPM_MOMENT1, k->model->param[0], value), DDPM_ERR_ARGUMENT,
                  "not allocated");
    ddpm_net_free(net);
    close_kit(k);
}

/* Neither a step without a batch nor a wait without a step, twice over: the weights would move again. */
static void test_parts_of_a_step_in_turn(void **state)
{
    (void)state;
    kit *k = open_kit(2, 1, 1);
    double loss;
    check_failure(ddpm_train_wait(&k->trainer, &loss), DDPM_ERR_ARGUMENT, "ddpm_train_start");
    check_failure(ddpm_train_start(&k->trainer, 1e-3), DDPM_ERR_ARGUMENT, "ddpm_train_batch");
    OK(ddpm_train_batch(&k->trainer, k->picture, k->labels, 2));
    OK(ddpm_train_start(&k->trainer, 1e-3));
    OK(ddpm_train_wait(&k->trainer, &loss));
    check_failure(ddpm_train_wait(&k->trainer, &loss), DDPM_ERR_ARGUMENT, "ddpm_train_start");
    check_failure(ddpm_train_start(&k->trainer, 1e-3), DDPM_ERR_ARGUMENT, "ddpm_train_batch");
    assert_true(k->trainer.step == 1 && k->trainer.picture == 2);
    close_kit(k);
}

/* A network that makes 6 channels of 3 predicts, and has gradients; it is no model of noise. */
static void test_other_output_channels(void **state)
{
    (void)state;
    ddpm_model_config config = small_config();
    config.unet.out_channels = 2 * CHANNELS;
    kit *k = calloc(1, sizeof *k);
    assert_non_null(k);
    open_config(k, &config, 2, 0, 1);
    ddpm_net *net;
    float out[4 * PICTURE];
    double loss;
    OK(ddpm_predict(k->net, 2, k->noise, k->t, k->labels, out));
    check_failure(ddpm_sample(k->net, &k->schedule, NULL, k->labels, 1, out, NULL, NULL), DDPM_ERR_SHAPE,
                  "out_channels");
    check_failure(ddpm_add_noise(k->net, &k->schedule, (int[]){1, 2}, 2), DDPM_ERR_SHAPE, "out_channels");
    OK(ddpm_model_alloc(k->model, DDPM_FOR_TRAINING));
    OK(ddpm_net_create(&net, k->model, 0, 0, 2, 1));
    OK(ddpm_loss_gradients(net, 2, k->noise, k->t, k->labels, out, NULL, &loss));
    assert_true(loss == 0); /* the target is what it predicts */
    ddpm_result result = ddpm_trainer_init(&k->trainer, net, &k->schedule, NULL);
    if (result == DDPM_OK) result = ddpm_train_step(&k->trainer, k->picture, k->labels, 2, 1e-3, NULL);
    check_failure(result, DDPM_ERR_SHAPE, "out_channels");
    ddpm_net_free(net);
    close_kit(k);
}

/* Dropout belongs to training steps: prediction and sampling on the network that trains are those of one that does
 * not. */
static void test_no_dropout_outside_training(void **state)
{
    (void)state;
    ddpm_model_config config = small_config();
    config.unet.dropout = 0.5;
    ddpm_sample_config sample = {DDPM_SAMPLER_DDIM, 3, 0, 5, 0, 1, NULL, NULL, 0, 0};
    float out[2][4 * PICTURE], prediction[2 * PICTURE];
    for (int training = 0; training < 2; training++) {
        kit *k = calloc(1, sizeof *k);
        assert_non_null(k);
        open_config(k, &config, 2, training, 1);
        OK(ddpm_predict(k->net, 2, k->noise, k->t, k->labels, out[training]));
        OK(ddpm_sample(k->net, &k->schedule, &sample, k->labels, 2, out[training] + 2 * PICTURE, NULL, NULL));
        if (training) {
            double loss[2];
            for (int i = 0; i < 2; i++)
                OK(ddpm_loss_gradients(k->net, 2, k->noise, k->t, k->labels, k->picture, prediction, &loss[i]));
            assert_memory_not_equal(prediction, out[training], sizeof prediction); /* here it is on, */
            assert_true(loss[0] == loss[1]); /* and the same for the same address */
        }
        close_kit(k);
    }
    assert_memory_equal(out[0], out[1], sizeof out[0]);
}

static void test_weights_must_be_there(void **state)
{
    (void)state;
    ddpm_model_config config = small_config();
    ddpm_model *model;
    ddpm_net *net;
    kit *k = open_kit(1, 0, 1); /* for its data */
    float out[PICTURE];
    OK(ddpm_model_create(&model, &config, NULL));
    OK(ddpm_net_create(&net, model, 0, 0, 1, 0));
    check_failure(ddpm_predict(net, 1, k->noise, k->t, k->labels, out), DDPM_ERR_ARGUMENT, "weights");
    check_failure(ddpm_sample(net, &k->schedule, NULL, k->labels, 1, out, NULL, NULL), DDPM_ERR_ARGUMENT, "weights");
    ddpm_net_free(net);
    ddpm_model_free(model);
    close_kit(k);
}

/* ---- 10. Refused configs: the text names the field ---- */

/* clang-format off */
#define EDIT(name, statement) static void edit_##name(ddpm_model_config *c) { statement; }
EDIT(levels_0, c->unet.levels = 0)
EDIT(levels_9, c->unet.levels = 9)
EDIT(groups, c->unet.norm_num_groups = 5)
EDIT(groups_0, c->unet.norm_num_groups = 0)
EDIT(attn_groups, c->unet.attn_norm_num_groups = 7)
EDIT(head_dim, c->unet.attention_head_dim = 13)
EDIT(layers, c->unet.layers_per_block = 0)
EDIT(layers_65, c->unet.layers_per_block = 65)
EDIT(dropout, c->unet.dropout = 1.5)
EDIT(dropout_nan, c->unet.dropout = (double)NAN)
EDIT(eps, c->unet.norm_eps = -1e-5)
EDIT(padding, c->unet.downsample_padding = 2)
EDIT(scale, c->unet.mid_block_scale_factor = 0)
EDIT(channels, c->unet.block_out_channels[1] = 0)
EDIT(in_channels, c->unet.in_channels = c->unet.out_channels = 0)
EDIT(out_channels, c->unet.out_channels = 0)
EDIT(unshuffle, c->pixel_unshuffle = 2) /* 3 channels are no multiple of 4 */
EDIT(sample_size, c->unet.sample_size[1] = 7)
EDIT(sample_size_minus, c->unet.sample_size[0] = -8)
EDIT(embedding_dim, c->label.embedding_dim = 31)
EDIT(hidden_dim, c->label.hidden_dim = 0)
EDIT(freq_shift, c->unet.freq_shift = c->unet.block_out_channels[0] / 2)
EDIT(class_type, c->unet.class_embed_type = DDPM_CLASS_TIMESTEP)
EDIT(time_dim, c->unet.time_embedding_dim = -4)
EDIT(classes, c->unet.num_class_embeds = -1)
EDIT(preset, *c = ddpm_model_preset("enormous", 3))
/* clang-format on */

static void test_wrong_configs(void **state)
{
    (void)state;
    static const struct {
        void (*edit)(ddpm_model_config *c);
        ddpm_result result;
        const char *words;
    } wrong[] = {
        {edit_levels_0, DDPM_ERR_ARGUMENT, "levels"},
        {edit_levels_9, DDPM_ERR_ARGUMENT, "levels"},
        {edit_groups, DDPM_ERR_SHAPE, "norm_num_groups"},
        {edit_groups_0, DDPM_ERR_ARGUMENT, "norm_num_groups"},
        {edit_attn_groups, DDPM_ERR_SHAPE, "mid_block.attentions.0.group_norm"},
        {edit_head_dim, DDPM_ERR_SHAPE, "attention_head_dim"},
        {edit_layers, DDPM_ERR_ARGUMENT, "layers_per_block"},
        {edit_layers_65, DDPM_ERR_ARGUMENT, "layers_per_block"},
        {edit_dropout, DDPM_ERR_ARGUMENT, "dropout"},
        {edit_dropout_nan, DDPM_ERR_ARGUMENT, "dropout"},
        {edit_eps, DDPM_ERR_ARGUMENT, "norm_eps"},
        {edit_padding, DDPM_ERR_ARGUMENT, "downsample_padding"},
        {edit_scale, DDPM_ERR_ARGUMENT, "mid_block_scale_factor"},
        {edit_channels, DDPM_ERR_ARGUMENT, "block_out_channels[1]"},
        {edit_in_channels, DDPM_ERR_ARGUMENT, "in_channels"},
        {edit_out_channels, DDPM_ERR_ARGUMENT, "out_channels"},
        {edit_unshuffle, DDPM_ERR_SHAPE, "pixel_unshuffle"},
        {edit_sample_size, DDPM_ERR_SHAPE, "halved"},
        {edit_sample_size_minus, DDPM_ERR_ARGUMENT, "sample_size"},
        {edit_embedding_dim, DDPM_ERR_SHAPE, "embedding_dim"},
        {edit_hidden_dim, DDPM_ERR_ARGUMENT, "hidden_dim"},
        {edit_freq_shift, DDPM_ERR_ARGUMENT, "freq_shift"},
        {edit_class_type, DDPM_ERR_SHAPE, "identity"},
        {edit_time_dim, DDPM_ERR_ARGUMENT, "time_embedding_dim"},
        {edit_classes, DDPM_ERR_ARGUMENT, "num_class_embeds"},
        {edit_preset, DDPM_ERR_ARGUMENT, "levels"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        ddpm_model_config config = small_config();
        ddpm_model *model = (ddpm_model *)&config; /* anything but NULL */
        wrong[i].edit(&config);
        ddpm_result result = ddpm_model_create(&model, &config, NULL);
        if (result == DDPM_OK) fail_msg("config %zu (%s) was accepted", i, wrong[i].words);
        check_failure(result, wrong[i].result, wrong[i].words);
        assert_null(model);
    }
}

static void test_presets(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int levels, size;
    } preset[] = {{"lab", 6, 64}, {"small", 4, 32}, {"tiny", 2, 32}};
    for (size_t i = 0; i < sizeof preset / sizeof *preset; i++)
        for (int classes = 0; classes <= 24; classes += 24) {
            ddpm_model_config config = ddpm_model_preset(preset[i].name, classes);
            ddpm_model *model;
            assert_int_equal(config.unet.levels, preset[i].levels);
            assert_int_equal(config.unet.sample_size[0], preset[i].size);
            assert_int_equal(ddpm_label_width(&config), classes);
            OK(ddpm_model_create(&model, &config, NULL));
            assert_int_equal(ddpm_model_find(model, "label_encoder.0.weight") != NULL, classes > 0);
            ddpm_model_free(model);
        }
}

/* ---- 11. Values that are not finite ---- */

/* A step that cannot be taken names the first node that went wrong and leaves weights, moments and moving average as
 * they were. */
static void check_step_refused(kit *k, const char *words)
{
    record before = {NULL, 0}, after = {NULL, 0};
    unsigned kept = DDPM_FOR_TRAINING & ~(1u << DDPM_GRAD);
    append_arrays(&before, k->model, kept);
    uint64_t step = k->trainer.step, picture = k->trainer.picture;
    check_failure(ddpm_train_step(&k->trainer, k->picture, k->labels, 4, 1e-3, NULL), DDPM_ERR_NONFINITE, words);
    append_arrays(&after, k->model, kept);
    assert_memory_equal(before.data, after.data, before.size);
    assert_int_equal(k->trainer.step, step);
    assert_int_equal(k->trainer.picture, picture);
    free(before.data);
    free(after.data);
}

static void set_all(kit *k, const char *name, float value, float others, int index)
{
    const ddpm_tensor *x = ddpm_model_find(k->model, name);
    assert_non_null(x);
    size_t count = ddpm_elements(x, 0);
    float *data = malloc(count * sizeof *data);
    assert_non_null(data);
    OK(ddpm_model_get(k->model, DDPM_WEIGHT, x, data));
    for (size_t i = 0; i < count; i++)
        if (index < 0 || (size_t)index == i)
            data[i] = value;
        else if (!isnan(others))
            data[i] = others;
    OK(ddpm_model_set(k->model, DDPM_WEIGHT, x, data));
    free(data);
}

static void test_first_bad_node_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *weight, *node;
        float value;
    } planted[] = {
        {"down_blocks.1.resnets.0.conv1.weight", "'down_blocks.1.resnets.0.conv1' (conv2d)", NAN},
        {"conv_in.weight", "'conv_in' (conv2d)", INFINITY},
        {"mid_block.attentions.0.to_v.bias", "'mid_block.attentions.0.to_v' (linear)", -INFINITY},
        {"up_blocks.0.upsamplers.0.conv.weight", "'up_blocks.0.upsamplers.0.conv' (conv2d)",
         3e38f}, /* finite; its sums are not */
        {"up_blocks.1.resnets.1.norm2.bias", "'up_blocks.1.resnets.1.norm2' (group_norm)", NAN},
        {"label_encoder.1.weight", "'label_encoder.1' (linear)", NAN},
    };
    for (size_t i = 0; i < sizeof planted / sizeof *planted; i++) {
        kit *k = open_kit(3, 1, 1);
        OK(ddpm_train_step(&k->trainer, k->picture, k->labels, 4, 1e-3, NULL)); /* so that there are moments */
        set_all(k, planted[i].weight, planted[i].value, NAN, -1);
        check_step_refused(k, planted[i].node);
        close_kit(k);
    }
}

static void test_bad_pictures_are_refused(void **state)
{
    (void)state;
    kit *k = open_kit(3, 1, 1);
    k->picture[PICTURE + 5] = NAN;
    check_step_refused(k, "conv_in");
    check_step_refused(k, "picture 1");
    k->picture[PICTURE + 5] = 0;
    OK(ddpm_train_step(&k->trainer, k->picture, k->labels, 4, 1e-3, NULL)); /* nothing is left behind */
    close_kit(k);
}

/* The loss is finite, a gradient is not: conv_out gives 1e18 with a weight of 0 on a channel that is 1e30, so that
 * d loss/d weight = 2e18 / 192 1e30 overflows. */
static void test_bad_gradient_is_named(void **state)
{
    (void)state;
    kit *k = open_kit(4, 1, 1);
    set_all(k, "conv_out.bias", 1e18f, 0, 0);
    set_all(k, "conv_norm_out.bias", 1e30f, NAN, 2);
    set_all(k, "conv_out.weight", 0, NAN, -1);
    check_step_refused(k, "'conv_out.weight'");
    close_kit(k);
}

/* ---- 12. Main ---- */

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_arena_refuses_the_impossible),
        cmocka_unit_test(test_error_text),
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_streams_differ),
        cmocka_unit_test(test_a_stream_has_prefixes),
        cmocka_unit_test(test_normals_are_normal),
        cmocka_unit_test(test_normals_are_accurate),
        cmocka_unit_test(test_uniform_int),
        cmocka_unit_test(test_shuffle),
        cmocka_unit_test(test_operation_names),
        cmocka_unit_test(test_builder_errors_stick),
        cmocka_unit_test(test_builders_check_shapes),
        cmocka_unit_test(test_gradients_are_reported_when_final),
        cmocka_unit_test(test_first_writer_stores),
        cmocka_unit_test(test_threads_do_not_matter),
        cmocka_unit_test(test_micro_batches_add_up),
        cmocka_unit_test(test_training_noise_ignores_capacity),
        cmocka_unit_test(test_samples_ignore_the_batch),
        cmocka_unit_test(test_sampling_can_be_stopped),
        cmocka_unit_test(test_starts_from_a_picture),
        cmocka_unit_test(test_guidance),
        cmocka_unit_test(test_guidance_at_its_ends),
        cmocka_unit_test(test_guidance_of_class_indices),
        cmocka_unit_test(test_guidance_refused),
        cmocka_unit_test(test_learning_rate),
        cmocka_unit_test(test_cosine_factor),
        cmocka_unit_test(test_label_dropout),
        cmocka_unit_test(test_ema_decay),
        cmocka_unit_test(test_initial_weights),
        cmocka_unit_test(test_training_learns),
        cmocka_unit_test(test_resumed_training_is_the_same),
        cmocka_unit_test(test_snr_weights),
        cmocka_unit_test(test_weighted_loss),
        cmocka_unit_test(test_evaluate),
        cmocka_unit_test(test_capacity_must_be_positive),
        cmocka_unit_test(test_sizes_must_halve),
        cmocka_unit_test(test_batch_must_fit),
        cmocka_unit_test(test_labels_must_be_given),
        cmocka_unit_test(test_embedding_labels_must_exist),
        cmocka_unit_test(test_timesteps_must_exist),
        cmocka_unit_test(test_steps_must_exist),
        cmocka_unit_test(test_training_needs_its_arrays),
        cmocka_unit_test(test_parts_of_a_step_in_turn),
        cmocka_unit_test(test_weights_must_be_there),
        cmocka_unit_test(test_other_output_channels),
        cmocka_unit_test(test_no_dropout_outside_training),
        cmocka_unit_test(test_wrong_configs),
        cmocka_unit_test(test_presets),
        cmocka_unit_test(test_first_bad_node_is_named),
        cmocka_unit_test(test_bad_pictures_are_refused),
        cmocka_unit_test(test_bad_gradient_is_named),
    };
    return cmocka_run_group_tests_name("core", tests, NULL, NULL);
}
