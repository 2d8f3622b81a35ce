/* tests/test_plan.c - what ddpm_graph_plan decides: which task runs when, what is kept, what is made again, what lies
 * where; and that none of it changes a bit of any result.
 *
 * Contents: 1 networks   2 the plan, replayed   3 the same bits   4 memory   5 main */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <cmocka.h>

#include "cpu_backend.h"
#include "ddpm.h"

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != DDPM_OK) fail_msg("%s", ddpm_error());                                                           \
    } while (0)

/* ---- 1. Networks ---- */

enum { SIDE = 16, BATCH = 3, CLASSES = 4, STEPS = 1 };

/* The rows the lab uses, and those it does not: dropout, resampling resnets, scale_shift, several heads, unshuffle. */
static ddpm_model_config network(int uncommon)
{
    ddpm_model_config c = ddpm_model_preset("tiny", CLASSES);
    c.unet.sample_size[0] = c.unet.sample_size[1] = SIDE;
    if (!uncommon) return c;
    c.unet.dropout = 0.1;
    c.unet.resnet_time_scale_shift = DDPM_SHIFT_SCALE_SHIFT;
    c.unet.downsample_type = c.unet.upsample_type = DDPM_RESAMPLE_RESNET;
    c.unet.down_block_types[0] = c.unet.up_block_types[1] = DDPM_ATTN_BLOCK;
    c.unet.sample_size[0] = c.unet.sample_size[1] = SIDE / 2;
    c.unet.in_channels = c.unet.out_channels = 12;
    c.pixel_unshuffle = 2;
    return c;
}

/* The same backend, but every tensor is kept: nothing is made again. */
static ddpm_result (*plan_first)(ddpm_graph *g);

static ddpm_result plan_to_keep(ddpm_graph *g)
{
    if (plan_first) OK(plan_first(g));
    for (int i = 0; i < g->tensors; i++)
        g->tensor[i]->keep = 1;
    return DDPM_OK;
}

static ddpm_backend keeping(const ddpm_backend *backend)
{
    ddpm_backend copy = *backend;
    plan_first = backend->plan;
    copy.plan = plan_to_keep;
    return copy;
}

/* ---- 2. The plan, replayed ----
 * Every place in memory remembers which tensor was written there last. A task may read only what is still there. */

typedef struct place {
    const void *owner;
    int which;
} place;

typedef struct replay {
    const ddpm_graph *g;
    place *memory; /* of each group of 16 elements: the model's gradients, then the graph's own */
    size_t places;
    const ddpm_task *task;
} replay;

static void each_place(const replay *r, size_t offset, size_t elements, const void *owner, int which, int writes,
                       const char *name)
{
    assert_true(offset != DDPM_NOWHERE && offset % 16 == 0);
    for (size_t i = offset / 16; i < (offset + elements + 15) / 16; i++) {
        if (i >= r->places) fail_msg("'%s' ends beyond the graph's memory", name);
        place *p = &r->memory[i];
        if (!writes && (p->owner != owner || p->which != which))
            fail_msg("'%s' (%s) of '%s' is read after something else was written there", name,
                     which == DDPM_DATA ? "data" : "gradient", r->task ? r->task->node->name : "the caller");
        p->owner = owner, p->which = which;
    }
}

static void use(const replay *r, const ddpm_tensor *x, int which, int writes)
{
    size_t offset = which == DDPM_DATA ? x->offset : x->grad_offset;
    each_place(r, offset, ddpm_elements(x, r->g->capacity), x, which, writes, x->name);
}

static void replay_task(const replay *r)
{
#define READS(op, name, reads) reads,
    static const unsigned reads[] = {DDPM_OPS(READS)};
    const ddpm_node *node = r->task->node;
    int backward = r->task->what == DDPM_BACKWARD;
    if (node->fused_into) return;
    for (int k = 0; k < DDPM_MAX_INPUTS; k++) {
        const ddpm_tensor *x = node->in[k];
        if (x && !x->param && (!backward || reads[node->op] >> k & 1)) use(r, x, DDPM_DATA, 0);
    }
    if (node->aux && backward && reads[node->op] & DDPM_READS_AUX) use(r, node->aux, DDPM_DATA, 0);
    if (node->aux && r->task->what == DDPM_AGAIN) use(r, node->aux, DDPM_DATA, 0);
    if (backward) use(r, node->out, DDPM_GRADIENT, 0);
    if (node->scratch_elements)
        each_place(r, r->task->scratch_offset, node->scratch_elements, r->task, 2, 1, "scratch");
    if (!backward) use(r, node->out, DDPM_DATA, 1);
    if (node->aux && !backward) use(r, node->aux, DDPM_DATA, 1);
    for (int k = 0; k < DDPM_MAX_INPUTS && backward; k++) {
        const ddpm_tensor *x = node->in[k];
        int adds = (int)(node->accumulate >> k & 1);
        if (!(node->wants >> k & 1)) continue;
        if (!x->param) use(r, x, DDPM_GRADIENT, !adds);
        if (x->param && r->g->share) each_place(r, x->offset, ddpm_elements(x, 0), x, DDPM_GRADIENT, !adds, x->name);
    }
    /* and all that was in use at the same time is still there */
    for (int k = 0; k < DDPM_MAX_INPUTS; k++) {
        const ddpm_tensor *x = node->in[k];
        if (x && !x->param && (!backward || reads[node->op] >> k & 1)) use(r, x, DDPM_DATA, 0);
        if (x && !x->param && node->wants >> k & 1 && backward) use(r, x, DDPM_GRADIENT, 0);
    }
    if (backward) use(r, node->out, DDPM_GRADIENT, 0);
    if (backward && node->scratch_elements)
        each_place(r, r->task->scratch_offset, node->scratch_elements, r->task, 2, 0, "scratch");
}

static void own_memory(const replay *r, int writes)
{
    for (int i = 0; i < r->g->nodes; i++) {
        const ddpm_node *node = r->g->node[i];
        if (node->own_elements) each_place(r, node->own_offset, node->own_elements, node, 3, writes, node->name);
    }
}

static void replay_plan(const ddpm_graph *g, const ddpm_model *model)
{
    replay r = {.g = g};
    size_t shared = g->shared_elements;
    assert_true(shared % 16 == 0 && shared <= model->elements + 16);
    r.places = (shared * sizeof(ddpm_real) + g->bytes) / (16 * sizeof(ddpm_real));
    r.memory = calloc(r.places, sizeof *r.memory);
    assert_non_null(r.memory);
    for (int i = 0; i < g->tensors; i++)
        if (g->tensor[i]->input) use(&r, g->tensor[i], DDPM_DATA, 1);
    own_memory(&r, 1);
    for (int i = 0; i < g->tasks; i++) {
        r.task = &g->task[i];
        if (i == g->forwards) use(&r, g->root, DDPM_GRADIENT, 1);
        replay_task(&r);
    }
    r.task = NULL;
    own_memory(&r, 0);
    for (int i = 0; i < g->tensors; i++)
        if (g->tensor[i]->input || g->tensor[i]->keep) use(&r, g->tensor[i], DDPM_DATA, 0);
    for (int p = 0; p < model->params && g->share; p++)
        each_place(&r, model->param[p]->offset, ddpm_elements(model->param[p], 0), model->param[p], DDPM_GRADIENT, 0,
                   model->param[p]->name);
    free(r.memory);
}

static const int modes[] = {0, DDPM_TRAINING, DDPM_TRAINING | DDPM_RECOMPUTE, DDPM_TRAINING | DDPM_SHARE_GRADIENTS,
                            DDPM_TRAINING | DDPM_RECOMPUTE | DDPM_SHARE_GRADIENTS};
enum { MODES = sizeof modes / sizeof *modes };

static void test_replay(void **state)
{
    (void)state;
    for (int k = 0; k < 2 * 2 * MODES; k++) {
        ddpm_model_config config = network(k % 2);
        ddpm_device device;
        ddpm_model *model;
        ddpm_net *net;
        OK(ddpm_device_open(&device, k / 2 % 2 ? ddpm_cpu() : NULL, 2, NULL));
        OK(ddpm_model_create(&model, &config, &device));
        OK(ddpm_net_create(&net, model, 0, 0, BATCH, modes[k / 4]));
        replay_plan(net->graph, model);
        ddpm_net_free(net);
        ddpm_model_free(model);
        ddpm_device_close(&device);
    }
}

/* ---- 3. The same bits ---- */

typedef struct trained {
    float *weights, *gradients, prediction[2 * 3 * SIDE * SIDE];
    size_t elements;
    double loss, loss_of_two;
} trained;

static float *read_array(const ddpm_model *model, ddpm_array array)
{
    float *all = calloc(model->elements, sizeof *all);
    assert_non_null(all);
    for (int p = 0; p < model->params; p++)
        OK(ddpm_model_get(model, array, model->param[p], all + model->param[p]->offset));
    return all;
}

/* Training steps on the whole capacity, then gradients of fewer pictures. */
static trained train(const ddpm_backend *backend, int threads, int side, int uncommon, int mode)
{
    trained out = {0};
    ddpm_model_config config = network(uncommon);
    ddpm_device device;
    ddpm_model *model;
    ddpm_net *net;
    ddpm_schedule schedule;
    ddpm_trainer trainer;
    float pictures[BATCH * 3 * SIDE * SIDE], labels[BATCH * CLASSES] = {1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1},
                                                            time[2] = {3, 700};
    ddpm_normals((ddpm_address){5, 0, 0, DDPM_RANDOM_USER}, sizeof pictures / sizeof *pictures, pictures);
    OK(ddpm_device_open(&device, backend, threads, NULL));
    OK(ddpm_model_create(&model, &config, &device));
    OK(ddpm_model_alloc(model, DDPM_FOR_TRAINING));
    OK(ddpm_model_init(model, 529));
    OK(ddpm_schedule_create(&schedule, NULL));
    OK(ddpm_net_create(&net, model, side, side, BATCH, mode));
    OK(ddpm_trainer_init(&trainer, net, &schedule, NULL));
    for (int step = 0; step < STEPS; step++)
        OK(ddpm_train_step(&trainer, pictures, labels, BATCH, 1e-3, &out.loss));
    out.weights = read_array(model, DDPM_WEIGHT);
    OK(ddpm_loss_gradients(net, 2, pictures, time, labels, pictures + 7, out.prediction, &out.loss_of_two));
    out.gradients = read_array(model, DDPM_GRAD);
    out.elements = model->elements;
    ddpm_net_free(net);
    ddpm_schedule_free(&schedule);
    ddpm_model_free(model);
    ddpm_device_close(&device);
    return out;
}

static void free_trained(trained *t)
{
    free(t->weights), free(t->gradients);
}

static void same_bits(const trained *a, const trained *b)
{
    assert_memory_equal(&a->loss, &b->loss, sizeof a->loss);
    assert_memory_equal(&a->loss_of_two, &b->loss_of_two, sizeof a->loss);
    assert_memory_equal(a->prediction, b->prediction, sizeof a->prediction);
    assert_memory_equal(a->weights, b->weights, a->elements * sizeof(float));
    assert_memory_equal(a->gradients, b->gradients, a->elements * sizeof(float));
}

/* Kept, made again, blocks made again, in the gradients' memory, on one thread and on three: all the same. */
static void test_same_bits(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        const ddpm_backend *backend = k / 2 ? ddpm_cpu() : ddpm_reference();
        int side =
            k / 2 ? SIDE : SIDE / 2; /* large enough for every algorithm of the one, quick enough for the other */
        ddpm_backend copy = keeping(backend);
        trained kept = train(&copy, 1, side, k % 2, DDPM_TRAINING);
        assert_true(kept.loss > 0);
        for (int mode = 1; mode < MODES; mode++) {
            trained other = train(backend, mode % 2 ? 1 : 3, side, k % 2, modes[mode]);
            same_bits(&kept, &other);
            free_trained(&other);
        }
        free_trained(&kept);
    }
}

/* Which nodes run again is a matter of who else reads their output: one convolution of silu(group_norm(x)), by itself;
 * with its input kept; with a sum that reads it too (backward of a sum reads nothing: still made again). */
static void test_who_keeps_what(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        ddpm_graph *g;
        float memory[16 + 8 * 8 * 9] = {0}, gradients[16 + 8 * 8 * 9];
        ddpm_tensor one = {.name = "norm", .dims = 1, .shape = {8, 1, 1, 1}, .param = 1, .trainable = 1};
        one.data = memory, one.grad = gradients;
        ddpm_tensor two = one, weight = {.name = "w", .dims = 4, .shape = {8, 8, 3, 3}, .param = 1, .trainable = 1};
        two.data += 8, two.grad += 8, weight.data = memory + 16, weight.grad = gradients + 16;
        OK(ddpm_graph_create(&g, NULL, 2, k < 3));
        ddpm_tensor *x = ddpm_input(g, "x", 8, 8, 8, 0), *h = ddpm_group_norm(g, x, &one, &two, 2, 1e-5);
        ddpm_tensor *s = ddpm_activation(g, h, DDPM_SILU), *y = ddpm_conv2d(g, s, &weight, NULL, 1, 1, 1);
        if (k == 2) y = ddpm_add(g, y, s, 1);
        OK(ddpm_graph_plan(g, k < 3 ? y : NULL, k == 1 ? &s : &y, 1));
        int again = 0, backward = 0;
        for (int i = g->forwards; i < g->tasks; i++)
            again += g->task[i].what == DDPM_AGAIN, backward += g->task[i].what == DDPM_BACKWARD;
        assert_int_equal(g->forwards, k == 2 ? 4 : 3);
        assert_int_equal(backward, k == 3 ? 0 : g->forwards);
        assert_int_equal(again, k == 0 || k == 2 ? 2 : k == 1 ? 1 : 0); /* silu's backward still wants h */
        ddpm_graph_free(g);
    }
}

/* ---- 4. Memory ---- */

/* Without what a backend keeps of the weights. */
static size_t planned(ddpm_model *model, int capacity, int mode)
{
    ddpm_net *net;
    OK(ddpm_net_create(&net, model, 0, 0, capacity, mode));
    assert_null(net->graph->memory); /* nothing is allocated for this */
    size_t bytes = net->graph->bytes;
    for (int i = 0; i < net->graph->nodes; i++)
        bytes -= (net->graph->node[i]->own_elements * sizeof(ddpm_real) + 63) & ~(size_t)63;
    ddpm_net_free(net);
    return bytes;
}

/* Activations, their gradients and scratch of the lab's model at batch 8. One tensor of its first level has 16 MiB;
 * each mode must save at least what it is for. Inference keeps nothing. */
static void test_memory_of_the_lab_model(void **state)
{
    (void)state;
    ddpm_model_config config = ddpm_model_preset("lab", 24);
    ddpm_device device;
    ddpm_model *model;
    ddpm_backend copy = keeping(ddpm_cpu());
    OK(ddpm_device_open(&device, &copy, 2, NULL));
    OK(ddpm_model_create(&model, &config, &device));
    size_t kept = planned(model, 8, DDPM_TRAINING), bytes[MODES];
    ddpm_model_free(model);
    ddpm_device_close(&device);
    OK(ddpm_device_open(&device, ddpm_cpu(), 2, NULL));
    OK(ddpm_model_create(&model, &config, &device));
    for (int mode = 0; mode < MODES; mode++)
        bytes[mode] = planned(model, 8, modes[mode]);
    ddpm_model_free(model);
    ddpm_device_close(&device);
    print_message("           MiB: inference %zu; training, all kept %zu, default %zu, recompute %zu, shared %zu, "
                  "both %zu\n",
                  bytes[0] >> 20, kept >> 20, bytes[1] >> 20, bytes[2] >> 20, bytes[3] >> 20, bytes[4] >> 20);
    assert_true(bytes[1] < kept - ((size_t)20 << 24)); /* ten normalised pictures, three concats of two */
    assert_true(bytes[2] < bytes[1] - ((size_t)4 << 24));
    assert_true(bytes[3] < bytes[1] / 2 + ((size_t)2 << 24));
    assert_true(bytes[4] < bytes[3]);
    assert_true(bytes[0] < bytes[1] / 2);
}

static void test_sharing_is_refused(void **state)
{
    (void)state;
    ddpm_model_config config = network(0);
    ddpm_model *model;
    ddpm_net *net;
    ddpm_schedule schedule;
    ddpm_trainer trainer;
    static float pictures[(BATCH + 1) * 3 * SIDE * SIDE], labels[(BATCH + 1) * CLASSES];
    OK(ddpm_model_create(&model, &config, NULL));
    OK(ddpm_model_alloc(model, DDPM_FOR_INFERENCE));
    OK(ddpm_schedule_create(&schedule, NULL));
    OK(ddpm_net_create(&net, model, SIDE, SIDE, BATCH, DDPM_TRAINING | DDPM_SHARE_GRADIENTS));
    assert_int_equal(ddpm_graph_forward(net->graph, 1), DDPM_ERR_ARGUMENT);
    assert_non_null(strstr(ddpm_error(), "no gradients"));
    OK(ddpm_model_alloc(model, DDPM_FOR_TRAINING));
    OK(ddpm_trainer_init(&trainer, net, &schedule, NULL));
    assert_int_equal(ddpm_train_step(&trainer, pictures, labels, BATCH + 1, 1e-3, NULL), DDPM_ERR_ARGUMENT);
    assert_non_null(strstr(ddpm_error(), "micro-batches"));
    OK(ddpm_train_step(&trainer, pictures, labels, BATCH, 1e-3, NULL));
    ddpm_net_free(net);
    ddpm_schedule_free(&schedule);
    ddpm_model_free(model);
}

/* A sanitizer's memory is not the program's. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif
#if defined(__linux__) && !defined(SANITIZED)
#define MEASURES_MEMORY
#endif

#ifdef MEASURES_MEMORY
static size_t resident_bytes(void)
{
    unsigned long all, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL) return 0;
    if (fscanf(file, "%lu %lu", &all, &resident) != 2) resident = 0;
    fclose(file);
    return (size_t)resident * 4096;
}
#endif

/* What the plan says is what a step takes: within 5 % and the stacks of two threads. */
static void test_memory_is_what_was_planned(void **state)
{
    (void)state;
#ifdef MEASURES_MEMORY
    enum { MANY = 32, LARGE = 32 };
    ddpm_model_config config = ddpm_model_preset("tiny", CLASSES);
    ddpm_schedule schedule;
    float *pictures = calloc((size_t)MANY * 3 * LARGE * LARGE, sizeof *pictures), labels[MANY * CLASSES] = {0};
    assert_non_null(pictures);
    OK(ddpm_schedule_create(&schedule, NULL));
    for (int mode = 1; mode < MODES; mode++) {
        ddpm_device device;
        ddpm_model *model;
        ddpm_net *net;
        ddpm_trainer trainer;
        OK(ddpm_device_open(&device, ddpm_cpu(), 2, NULL));
        OK(ddpm_model_create(&model, &config, &device));
        OK(ddpm_net_create(&net, model, LARGE, LARGE, MANY, modes[mode]));
        double before = (double)resident_bytes();
        OK(ddpm_model_alloc(model, DDPM_FOR_TRAINING));
        OK(ddpm_trainer_init(&trainer, net, &schedule, NULL));
        OK(ddpm_train_step(&trainer, pictures, labels, MANY, 1e-3, NULL));
        double taken = (double)resident_bytes() - before,
               planned = (double)(model->elements * sizeof(ddpm_real) * DDPM_ARRAYS + net->graph->bytes);
        print_message("           mode %d: %.1f MiB planned, %.1f taken\n", modes[mode], planned / 1048576,
                      taken / 1048576);
        assert_true(before > 0 && taken > 0.95 * planned - 1048576 && taken < 1.05 * planned + 4 * 1048576);
        ddpm_net_free(net);
        ddpm_model_free(model);
        ddpm_device_close(&device);
    }
    ddpm_schedule_free(&schedule);
    free(pictures);
#else
    skip();
#endif
}

/* After the first step no page is touched for the first time: the graph has 1,800 pages, a tensor of its first level
 * 96. What the system does on its own behalf stays below 32. */
static void test_page_faults(void **state)
{
    (void)state;
#ifdef MEASURES_MEMORY
    ddpm_model_config config = network(0);
    ddpm_device device;
    ddpm_model *model;
    ddpm_net *net;
    ddpm_schedule schedule;
    ddpm_trainer trainer;
    enum { FEW = 32, LARGE = 32 };
    struct rusage before, after;
    float *pictures = calloc((size_t)BATCH * 3 * LARGE * LARGE, sizeof *pictures), labels[BATCH * CLASSES] = {0};
    assert_non_null(pictures);
    OK(ddpm_device_open(&device, ddpm_cpu(), 2, NULL));
    OK(ddpm_model_create(&model, &config, &device));
    OK(ddpm_model_alloc(model, DDPM_FOR_TRAINING));
    OK(ddpm_model_init(model, 529));
    OK(ddpm_schedule_create(&schedule, NULL));
    OK(ddpm_net_create(&net, model, LARGE, LARGE, BATCH, DDPM_TRAINING));
    OK(ddpm_trainer_init(&trainer, net, &schedule, NULL));
    for (int step = 1; step <= 4; step++) {
        OK(ddpm_train_step(&trainer, pictures, labels, BATCH, 1e-3, NULL));
        if (step == 1) assert_int_equal(getrusage(RUSAGE_SELF, &before), 0);
    }
    assert_int_equal(getrusage(RUSAGE_SELF, &after), 0);
    print_message("           %ld page faults in steps 2 to 4, %zu pages of activations\n",
                  after.ru_minflt - before.ru_minflt, net->graph->bytes / 4096);
    assert_true(after.ru_minflt - before.ru_minflt < FEW);
    free(pictures);
    ddpm_net_free(net);
    ddpm_schedule_free(&schedule);
    ddpm_model_free(model);
    ddpm_device_close(&device);
#else
    skip();
#endif
}

/* ---- 5. main ---- */

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_is_what_was_planned), /* first: memory that others gave back would not count */
        cmocka_unit_test(test_replay),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_who_keeps_what),
        cmocka_unit_test(test_memory_of_the_lab_model),
        cmocka_unit_test(test_sharing_is_refused),
        cmocka_unit_test(test_page_faults),
    };
    return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
