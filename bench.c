/* bench.c - how fast the machine is, and how much of that the rows and whole steps reach.
 *
 * Contents: 1 a process apart   2 multiply-add peak   3 bandwidth   4 rows   5 whole steps */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- 1. A process apart -----------------------------------------------------------------------------------------
 * A forked process has the memory of this one and none of its threads. */

typedef struct report { /* what it writes into the pipe; `size` bytes of the result follow */
    ddpm_result result;
    char error[512];
} report;

static int write_all(int file, const void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t some = write(file, (const char *)data + done, size - done);
        if (some <= 0) return 0;
        done += (size_t)some;
    }
    return 1;
}

static int read_all(int file, void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t some = read(file, (char *)data + done, size - done);
        if (some <= 0) return 0;
        done += (size_t)some;
    }
    return 1;
}

/* *out, `size` bytes, as work(arg, out) leaves it in a process of its own. */
static ddpm_result run_apart(ddpm_result (*work)(const void *arg, void *out), const void *arg, void *out, size_t size)
{
    int end[2];
    report said = {DDPM_OK, ""};
    if (pipe(end) != 0) return ddpm_fail(DDPM_ERR_BACKEND, "no pipe to a process that measures");
    pid_t child = fork();
    if (child == 0) {
        said.result = work(arg, out);
        snprintf(said.error, sizeof said.error, "%s", ddpm_error());
        _exit(write_all(end[1], &said, sizeof said) && write_all(end[1], out, size) ? 0 : 1);
    }
    close(end[1]);
    int heard = child > 0 && read_all(end[0], &said, sizeof said) && read_all(end[0], out, size);
    close(end[0]);
    if (child > 0) waitpid(child, NULL, 0);
    if (!heard)
        return ddpm_fail(DDPM_ERR_BACKEND,
                         "the process that measures ended without a result\n      hint: was there too "
                         "little memory?");
    return said.result == DDPM_OK ? DDPM_OK : ddpm_fail(said.result, "%s", said.error);
}

/* ---- 2. Multiply-add peak ---------------------------------------------------------------------------------------
 * a_i = a_i x + y on twelve independent vectors: a multiply-add takes four cycles and two can start in each, so eight
 * are in flight and twelve keep the units full; with x and y they fit in sixteen registers. The same loop is compiled
 * for each instruction set. Contraction to one multiply-add is allowed here, and only here. */

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("O2,fp-contract=fast")
#endif
#ifdef __clang__
#define ALLOW_CONTRACTION _Pragma("clang fp contract(fast)")
#else
#define ALLOW_CONTRACTION
#endif

#ifdef __GNUC__
#define VECTOR_TYPE(bytes) typedef float vector __attribute__((vector_size(bytes)))
#else
#define VECTOR_TYPE(bytes) typedef float vector
#endif
enum { PEAK_CHAINS = 12 };
#define EACH_CHAIN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define CHAIN_START(i) vector a##i = zero + (float)i;
#define CHAIN_STEP(i) a##i = a##i * x + y;
#define CHAIN_ADD(i) sum += a##i;

/* Runs `count` rounds and returns the floating-point operations done; what it computes goes to *sink. */
#define DEFINE_PEAK(name, bytes, attribute)                                                                            \
    attribute static double name(long count, volatile float *sink)                                                     \
    {                                                                                                                  \
        ALLOW_CONTRACTION                                                                                              \
        VECTOR_TYPE(bytes);                                                                                            \
        union {                                                                                                        \
            vector all;                                                                                                \
            float one[sizeof(vector) / sizeof(float)];                                                                 \
        } out;                                                                                                         \
        float start = *sink;                                                                                           \
        vector zero = {0};                                                                                             \
        zero = zero + start;                                                                                           \
        vector x = zero + 0.999999f, y = zero + 1e-7f, sum = zero;                                                     \
        EACH_CHAIN(CHAIN_START)                                                                                        \
        for (long k = 0; k < count; k++) {                                                                             \
            EACH_CHAIN(CHAIN_STEP)                                                                                     \
        }                                                                                                              \
        EACH_CHAIN(CHAIN_ADD)                                                                                          \
        out.all = sum;                                                                                                 \
        *sink = out.one[0] * 0;                                                                                        \
        return 2.0 * PEAK_CHAINS * (double)(sizeof(vector) / sizeof(float)) * (double)count;                           \
    }

typedef double (*peak_loop)(long count, volatile float *sink);
#if defined(__GNUC__) && defined(__x86_64__)
DEFINE_PEAK(peak_sse2, 16, )
DEFINE_PEAK(peak_avx2, 32, __attribute__((target("avx2,fma"))))
DEFINE_PEAK(peak_avx512, 64, __attribute__((target("avx512f"))))

static peak_loop choose_peak(const char **isa)
{
    if (__builtin_cpu_supports("avx512f")) return *isa = "avx512", peak_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return *isa = "avx2", peak_avx2;
    return *isa = "sse2", peak_sse2;
}
#else
DEFINE_PEAK(peak_plain, 16, )

static peak_loop choose_peak(const char **isa)
{
#ifdef __aarch64__
    *isa = "neon";
#else
    *isa = "generic";
#endif
    return peak_plain;
}
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif

/* Best of a few rounds of all threads together, in GFLOP/s. */
static double measure_peak(peak_loop loop, int threads)
{
    const long count = 2000000;
    double best = 0;
    for (int round = 0; round < 8; round++) {
        double flops = 0, start = seconds_now();
        #pragma omp parallel num_threads(threads)
        {
            volatile float sink = 0;
            double done = loop(count, &sink);
            #pragma omp critical
            flops += done;
        }
        double gflops = flops / (seconds_now() - start) * 1e-9;
        best = gflops > best ? gflops : best;
    }
#ifndef _OPENMP
    (void)threads;
#endif
    return best;
}

/* ---- 3. Bandwidth -------------------------------------------------------------------------------------------- */

static double measure_triad(float *a, float *b, float *c, long count, int threads)
{
    double best = 0;
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < count; i++) { /* first touch, by the thread that will use it */
        a[i] = 0;
        b[i] = (float)(i & 7);
        c[i] = 1;
    }
    for (int round = 0; round < 8; round++) {
        double start = seconds_now();
        float scale = 0.5f + (float)round;
        #pragma omp parallel for schedule(static) num_threads(threads)
        for (long i = 0; i < count; i++)
            a[i] = b[i] + scale * c[i];
        double gbs = 12.0 * (double)count / (seconds_now() - start) * 1e-9;
        best = gbs > best ? gbs : best;
    }
#ifndef _OPENMP
    (void)threads;
#endif
    return best;
}

static ddpm_result measure_machine(const void *threads, void *result)
{
    const long count = 16L << 20;
    const int *all = threads;
    bench_machine *out = result;
    peak_loop loop = choose_peak(&out->isa);
    out->core_gflops = measure_peak(loop, 1);
    out->peak_gflops = measure_peak(loop, *all);
    float *memory = malloc((size_t)count * 3 * sizeof(float));
    if (memory == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory to measure the bandwidth (192 MiB)");
    out->bandwidth_gbs = measure_triad(memory, memory + count, memory + 2 * count, count, *all);
    free(memory);
    return DDPM_OK;
}

ddpm_result bench_measure_machine(int threads, bench_machine *out)
{
    return run_apart(measure_machine, &threads, out, sizeof *out);
}

/* ---- 4. Rows ------------------------------------------------------------------------------------------------- */

/* A network with host tensors to feed it. */
typedef struct bench_net {
    ddpm_model *model;
    ddpm_net *net;
    ddpm_real *pictures, *timestep, *labels, *prediction;
} bench_net;

static void close_net(bench_net *b)
{
    ddpm_net_free(b->net);
    ddpm_model_free(b->model);
    free(b->pictures);
    free(b->timestep);
    free(b->labels);
    free(b->prediction);
    *b = (bench_net){0};
}

static ddpm_result open_net(bench_net *b, const ddpm_device *device, const ddpm_model_config *config, int batch,
                            unsigned arrays, int training)
{
    *b = (bench_net){0};
    ddpm_result result = ddpm_model_create(&b->model, config, device);
    if (result == DDPM_OK) result = ddpm_model_alloc(b->model, arrays);
    if (result == DDPM_OK) result = ddpm_model_init(b->model, 529);
    if (result == DDPM_OK) result = ddpm_net_create(&b->net, b->model, 0, 0, batch, training);
    if (result == DDPM_OK) {
        size_t each = (size_t)b->net->channels * (size_t)b->net->height * (size_t)b->net->width;
        int width = ddpm_label_width(config);
        b->pictures = calloc((size_t)batch * each, sizeof(ddpm_real));
        b->timestep = calloc((size_t)batch, sizeof(ddpm_real));
        b->labels = calloc((size_t)batch * (size_t)(width > 0 ? width : 1), sizeof(ddpm_real));
        b->prediction = calloc((size_t)batch * each, sizeof(ddpm_real));
        if (b->pictures == NULL || b->timestep == NULL || b->labels == NULL || b->prediction == NULL) {
            result = ddpm_fail(DDPM_ERR_MEMORY, "no memory for a batch of %d pictures", batch);
        } else {
            for (int i = 0; i < batch; i++) {
                ddpm_normals((ddpm_address){.picture = (uint64_t)i, .purpose = DDPM_RANDOM_USER}, each,
                             b->pictures + (size_t)i * each);
                b->timestep[i] = (ddpm_real)(10 + 17 * i % 900);
            }
        }
    }
    if (result != DDPM_OK) close_net(b);
    return result;
}

/* The shape as a person reads it, which also tells rows apart: "128x64x64 -> 256x64x64, 3x3 / 2". */
static void describe_shape(const ddpm_node *node, char *text, size_t room)
{
    const int *in = node->in[0]->shape, *out = node->out->shape;
    int used = snprintf(text, room, "%dx%dx%d", in[1], in[2], in[3]);
    if (memcmp(in + 1, out + 1, 3 * sizeof(int)) != 0)
        used += snprintf(text + used, room - (size_t)used, " -> %dx%dx%d", out[1], out[2], out[3]);
    if (node->op == DDPM_OP_CONV2D) {
        used += snprintf(text + used, room - (size_t)used, ", %dx%d", node->in[1]->shape[2], node->in[1]->shape[3]);
        if (node->attr.conv.stride > 1) snprintf(text + used, room - (size_t)used, " / %d", node->attr.conv.stride);
    } else if (node->op == DDPM_OP_ATTENTION) {
        snprintf(text + used, room - (size_t)used, ", %d heads", node->attr.attention.heads);
    }
}

static double tensor_bytes(const ddpm_tensor *x, int n)
{
    return x != NULL ? (double)ddpm_elements(x, n) * sizeof(ddpm_real) : 0;
}

/* Forward reads every input and writes the output; backward reads the output's gradient and what the table says
 * it reads, and writes the gradients that are wanted. */
static void count_work(bench_row *row, const ddpm_node *node, int n)
{
    static const int reads[DDPM_OP_COUNT] = {
#define DDPM_OP_READS(op, name, reads_of_op) reads_of_op,
        DDPM_OPS(DDPM_OP_READS)};
    row->flops[0] = ddpm_node_flops(node, n, 0);
    row->flops[1] = ddpm_node_flops(node, n, 1);
    row->bytes[0] = row->bytes[1] = tensor_bytes(node->out, n);
    for (int i = 0; i < DDPM_MAX_INPUTS; i++) {
        int picked = node->op == DDPM_OP_EMBEDDING && i == 1; /* reads a row of the table for each picture */
        double bytes = picked ? tensor_bytes(node->out, n) : tensor_bytes(node->in[i], n);
        row->bytes[0] += bytes;
        row->bytes[1] += bytes * ((i < 3 && (reads[node->op] >> i & 1)) + (int)(node->wants >> i & 1));
    }
}

/* Calls the row for about `seconds` and keeps the best time. */
static ddpm_result time_row(ddpm_graph *g, const ddpm_node *node, int backward, double seconds, bench_row *row)
{
    const ddpm_row *rows = g->device->backend->rows;
    ddpm_row_fn call = backward ? rows[node->op].backward : rows[node->op].forward;
    const ddpm_row *known = &ddpm_reference()->rows[node->op];
    row->missing[backward] = call == NULL && (backward ? known->backward : known->forward) != NULL;
    if (call == NULL || node->fused_into != NULL || (backward && node->wants == 0)) return DDPM_OK;
    double begin = seconds_now(), best = 0;
    do {
        double start = seconds_now();
        ddpm_result result = ddpm_graph_run_node(g, node, backward);
        if (result == DDPM_OK && g->device->backend->sync != NULL) result = g->device->backend->sync(g->device->state);
        if (result != DDPM_OK) return result;
        double time = seconds_now() - start;
        best = !row->measured[backward] || time < best ? time : best;
        row->measured[backward] = 1;
    } while (seconds_now() - begin < seconds);
    row->ms[backward] = best * 1e3;
    return DDPM_OK;
}

typedef struct row_list {
    bench_row *row;
    int count, room;
} row_list;

static bench_row *find_row(row_list *list, ddpm_op op, const char *shape)
{
    for (int i = 0; i < list->count; i++)
        if (list->row[i].op == op && (shape == NULL || strcmp(list->row[i].shape, shape) == 0)) return &list->row[i];
    return NULL;
}

static bench_row *add_row(row_list *list, ddpm_op op, const char *shape)
{
    if (list->count == list->room) {
        int room = list->room > 0 ? 2 * list->room : 64;
        bench_row *row = realloc(list->row, (size_t)room * sizeof *row);
        if (row == NULL) {
            ddpm_fail(DDPM_ERR_MEMORY, "no memory for %d rows of the benchmark", room);
            return NULL;
        }
        list->row = row;
        list->room = room;
    }
    bench_row *row = &list->row[list->count++];
    *row = (bench_row){.op = op};
    snprintf(row->shape, sizeof row->shape, "%s", shape);
    return row;
}

/* Times the nodes of a graph that has run forward and backward once. only_new: only operations the list does not know.
 * Gradients are stale while rows run alone; their values do not matter, their memory is real. */
static ddpm_result time_graph(ddpm_graph *g, int n, double seconds, int only_new, row_list *list)
{
    int known = list->count;
    for (int i = 0; i < g->nodes; i++) {
        const ddpm_node *node = g->node[i];
        char shape[80];
        describe_shape(node, shape, sizeof shape);
        bench_row *old = find_row(list, node->op, only_new ? NULL : shape);
        if (old != NULL && only_new && (old - list->row < known || strcmp(old->shape, shape) != 0)) continue;
        if (old != NULL) {
            old->nodes++;
            /* the first of its kind may want no gradient (the first layers): take it from a later one */
            if (old->measured[1] || node->wants == 0) continue;
        }
        bench_row *row = old != NULL ? old : add_row(list, node->op, shape);
        if (row == NULL) return DDPM_ERR_MEMORY;
        if (old == NULL) row->nodes = 1;
        count_work(row, node, n);
        ddpm_result result = row->measured[0] ? DDPM_OK : time_row(g, node, 0, seconds, row);
        if (result == DDPM_OK) result = time_row(g, node, 1, seconds, row);
        if (result != DDPM_OK) return result;
    }
    return DDPM_OK;
}

static ddpm_result time_model(const ddpm_device *device, const ddpm_model_config *config, int batch, double seconds,
                              int only_new, row_list *list)
{
    bench_net b;
    double loss;
    ddpm_result result = open_net(&b, device, config, batch, DDPM_FOR_GRADIENTS, 1);
    if (result != DDPM_OK) return result;
    result = ddpm_loss_gradients(b.net, batch, b.pictures, b.timestep, b.labels, b.pictures, NULL, &loss);
    if (result == DDPM_OK) result = time_graph(b.net->graph, batch, seconds, only_new, list);
    close_net(&b);
    return result;
}

/* What no UNet uses: an evaluator's batch norm and binary cross entropy, and slice; parameters in the host's memory. */
static ddpm_result time_other_rows(const ddpm_device *device, const ddpm_model_config *preset, int batch,
                                   double seconds, row_list *list)
{
    int c = preset->unet.block_out_channels[0], side = preset->unet.sample_size[0];
    ddpm_real *memory = calloc(6 * (size_t)c, sizeof *memory);
    ddpm_graph *g = NULL;
    ddpm_tensor param[4]; /* weight, bias, running mean and variance */
    if (memory == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for the parameters of a batch norm");
    for (int i = 0; i < 4; i++)
        param[i] = (ddpm_tensor){.name = "batch_norm",
                                 .dims = 1,
                                 .shape = {c, 1, 1, 1},
                                 .param = 1,
                                 .trainable = i < 2,
                                 .need_grad = i < 2,
                                 .data = memory + i * c,
                                 .grad = i < 2 ? memory + (4 + i) * c : NULL};
    ddpm_result result = ddpm_graph_create(&g, device, batch, 1);
    if (result == DDPM_OK) {
        ddpm_tensor *x = ddpm_input(g, "x", c, side, side, 1), *target = ddpm_input(g, "target", c / 2, side, side, 0);
        x = ddpm_batch_norm(g, x, &param[0], &param[1], &param[2], &param[3], 1e-5, 0.1);
        x = ddpm_activation(g, ddpm_slice(g, x, 0, c / 2), DDPM_SIGMOID);
        result = ddpm_graph_plan(g, ddpm_bce(g, x, target), NULL, 0);
    }
    if (result == DDPM_OK) result = ddpm_graph_forward(g, batch);
    if (result == DDPM_OK) result = ddpm_graph_backward(g, NULL, NULL, NULL);
    if (result == DDPM_OK) result = time_graph(g, batch, seconds, 1, list);
    ddpm_graph_free(g);
    free(memory);
    return result;
}

/* A small network of the preset's picture size that uses rows the presets leave out. */
static ddpm_model_config uncommon_config(const ddpm_model_config *preset)
{
    ddpm_model_config config = ddpm_model_default();
    ddpm_unet_config *u = &config.unet;
    u->sample_size[0] = preset->unet.sample_size[0] / 2;
    u->sample_size[1] = preset->unet.sample_size[1] / 2;
    u->in_channels = u->out_channels = 3 * 2 * 2;
    u->levels = 3;
    for (int i = 0; i < u->levels; i++) {
        u->block_out_channels[i] = preset->unet.block_out_channels[0];
        u->down_block_types[i] = u->up_block_types[i] = i == 1 ? DDPM_ATTN_BLOCK : DDPM_PLAIN_BLOCK;
    }
    u->layers_per_block = 1;
    u->norm_num_groups = preset->unet.norm_num_groups;
    u->center_input_sample = 1;
    u->time_embedding_type = DDPM_TIME_FOURIER;
    u->resnet_time_scale_shift = DDPM_SHIFT_SCALE_SHIFT;
    u->downsample_type = u->upsample_type = DDPM_RESAMPLE_RESNET;
    u->dropout = 0.1;
    u->class_embed_type = DDPM_CLASS_NONE;
    u->num_class_embeds = 24;
    u->add_attention = 0;
    config.pixel_unshuffle = 2;
    return config;
}

ddpm_result bench_rows(const ddpm_device *device, const char *preset, int batch, double seconds, bench_row **rows,
                       int *count)
{
    row_list list = {0};
    ddpm_model_config config = ddpm_model_preset(preset, 24), uncommon = uncommon_config(&config);
    ddpm_result result = time_model(device, &config, batch, seconds, 0, &list);
    if (result == DDPM_OK) result = time_model(device, &uncommon, batch, seconds, 1, &list);
    if (result == DDPM_OK && device->backend->upload == NULL)
        result = time_other_rows(device, &config, batch, seconds, &list);
    if (result != DDPM_OK) {
        free(list.row);
        return result;
    }
    *rows = list.row;
    *count = list.count;
    return DDPM_OK;
}

/* ---- 5. Whole steps ------------------------------------------------------------------------------------------ */

static double graph_flops(const ddpm_graph *g, int n, int training)
{
    double flops = 0;
    for (int i = 0; i < g->nodes; i++) {
        const ddpm_node *node = g->node[i];
        if (node->op == DDPM_OP_CONV2D || node->op == DDPM_OP_LINEAR || node->op == DDPM_OP_ATTENTION)
            flops += ddpm_node_flops(node, n, 0) + (training ? ddpm_node_flops(node, n, 1) : 0);
    }
    return flops;
}

static double peak_memory_mib(void)
{
    double kibibytes = 0;
    char line[128];
    FILE *file = fopen("/proc/self/status", "r");
    if (file == NULL) return 0;
    while (fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "VmHWM: %lf kB", &kibibytes) == 1) break;
    fclose(file);
    return kibibytes / 1024;
}

static int compare_times(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static ddpm_result one_step(bench_net *b, ddpm_trainer *trainer, const bench_work *work)
{
    double loss;
    if (work->training) return ddpm_train_step(trainer, b->pictures, b->labels, work->batch, 1e-5, &loss);
    return ddpm_predict(b->net, work->batch, b->pictures, b->timestep, b->labels, b->prediction);
}

static ddpm_result time_work(bench_net *b, ddpm_trainer *trainer, const bench_work *work, double seconds,
                             bench_result *out)
{
    enum { MOST = 64, LEAST = 3 };
    double time[MOST];
    int count = 0;
    ddpm_result result = one_step(b, trainer, work); /* warms up */
    for (double start = seconds_now(), spent = 0;
         result == DDPM_OK && count < MOST && (spent < seconds || count < (spent < 4 * seconds ? LEAST : 1)); count++) {
        double begin = seconds_now();
        result = one_step(b, trainer, work);
        time[count] = seconds_now() - begin;
        spent = seconds_now() - start;
    }
    if (result != DDPM_OK) return result;
    qsort(time, (size_t)count, sizeof time[0], compare_times);
    out->ms = (time[(count - 1) / 2] + time[count / 2]) / 2 * 1e3;
    out->repeats = count;
    return DDPM_OK;
}

static ddpm_model_config config_of(const bench_work *work)
{
    ddpm_model_config config = ddpm_model_preset(work->preset, 24);
    ddpm_unet_config *u = &config.unet;
    for (int i = 0; i < u->levels && work->channels > 0; i++)
        u->block_out_channels[i] = (int)(work->channels * u->block_out_channels[i] + 0.5);
    if (work->channels > 0) config.label.embedding_dim = 4 * u->block_out_channels[0]; /* the time embedding's width */
    if (work->size > 0) u->sample_size[0] = u->sample_size[1] = work->size;
    return config;
}

static ddpm_result run_work(const ddpm_device *device, const bench_work *work, double seconds, bench_result *out)
{
    bench_net b;
    ddpm_schedule schedule = {0};
    ddpm_trainer trainer = {0};
    ddpm_model_config config = config_of(work);
    unsigned arrays = work->training ? DDPM_FOR_TRAINING & ~(1u << DDPM_EMA) : DDPM_FOR_INFERENCE;
    int training = work->training ? DDPM_TRAINING | DDPM_SHARE_GRADIENTS : 0;
    ddpm_result result = open_net(&b, device, &config, work->batch, arrays, training);
    if (result != DDPM_OK) return result;
    result = ddpm_schedule_create(&schedule, NULL);
    if (result == DDPM_OK && work->training) result = ddpm_trainer_init(&trainer, b.net, &schedule, NULL);
    if (result == DDPM_OK) result = time_work(&b, &trainer, work, seconds, out);
    if (result == DDPM_OK) {
        out->gflops = graph_flops(b.net->graph, work->batch, work->training) / out->ms * 1e-6;
        out->peak_rss_mib = peak_memory_mib();
    }
    ddpm_schedule_free(&schedule);
    close_net(&b);
    return result;
}

typedef struct job {
    const ddpm_device *device;
    const bench_work *work;
    double seconds;
} job;

/* With a device of its own: the threads of the one that was opened are not in this process. */
static ddpm_result run_job(const void *arg, void *result)
{
    const job *j = arg;
    ddpm_device device;
    const char *isa = j->device->backend == ddpm_reference() ? NULL : ddpm_device_isa(j->device);
    ddpm_result opened = ddpm_device_open(&device, j->device->backend, j->device->threads, isa);
    if (opened != DDPM_OK) return opened;
    opened = run_work(&device, j->work, j->seconds, result);
    ddpm_device_close(&device);
    return opened;
}

ddpm_result bench_run(const ddpm_device *device, const bench_work *work, double seconds, bench_result *out)
{
    job j = {device, work, seconds};
    *out = (bench_result){0};
    if (device->backend->download != NULL) return run_work(device, work, seconds, out); /* a device does not fork */
    return run_apart(run_job, &j, out, sizeof *out);
}
