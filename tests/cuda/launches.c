/* tests/cuda/launches.c - what a training step of the lab's UNet asks of a GPU, for `make cuda-report`: every row's
 * launches, as the emulated GPU notes them without running any (CUDA_ON_CPU_LAUNCHES=FILE), and after them the row's
 * own line, "row OP PASS FLOP BYTES". BYTES is the least it can move: each tensor that it needs, once. Then of several
 * GPUs "bucket ELEMENTS", for each stretch of gradients that they add up at a time, in this order.
 *
 *     CUDA_ON_CPU_LAUNCHES=FILE launches PICTURES
 */
#include <stdio.h>
#include <stdlib.h>

#include "comm/comm.h"
#include "cuda_backend.h"
#include "tests/cuda_on_cpu.h"

#define READS(op, name, reads) reads,
static const int reads_of[] = {DDPM_OPS(READS)};

static double bytes_of(const ddpm_tensor *x, int n)
{
    return x ? (double)ddpm_elements(x, n) * sizeof(float) : 0;
}

static double least_bytes(const ddpm_node *node, int n, int backward)
{
    int reads = backward ? reads_of[node->op] : DDPM_READS_0 | DDPM_READS_1 | DDPM_READS_2;
    double bytes = bytes_of(node->out, n);
    for (int k = 0; k < DDPM_MAX_INPUTS; k++) {
        if (k < 3 && reads >> k & 1) bytes += bytes_of(node->in[k], n);
        if (backward && node->wants >> k & 1) bytes += bytes_of(node->in[k], n) * (1 + (node->accumulate >> k & 1));
    }
    return bytes;
}

static ddpm_result run_rows(ddpm_graph *g, FILE *file)
{
    ddpm_result result = ddpm_graph_alloc(g);
    g->n = g->capacity;
    for (int i = 0; i < g->tasks && result == DDPM_OK; i++) {
        const ddpm_node *node = g->task[i].node;
        int backward = g->task[i].what == DDPM_BACKWARD;
        if (node->fused_into) continue;
        result = ddpm_graph_run_node(g, node, backward);
        fprintf(file, "row %s %s %.9g %.9g\n", ddpm_op_name(node->op), backward ? "backward" : "forward",
                ddpm_node_flops(node, g->n, backward), least_bytes(node, g->n, backward));
        fflush(file);
    }
    return result;
}

static ddpm_result run_update(ddpm_model *model, ddpm_graph *g, FILE *file)
{
    const int arrays = 9; /* reads w, gradient, both moments, average; writes all but the gradient */
    ddpm_result result = model->device->backend->update(model, &g->step);
    fprintf(file, "row update update %d %.9g\n", 0, arrays * (double)model->elements * sizeof(float));
    return result;
}

static FILE *buckets;

static ddpm_result note_bucket(ddpm_comm *comm, comm_kind kind, void *values, size_t count)
{
    (void)comm, (void)values;
    if (kind == COMM_GRADIENTS) fprintf(buckets, "bucket %zu\n", count);
    return DDPM_OK;
}

/* A step of two ranks, as far as its sums go. */
static ddpm_result run_sums(ddpm_model *model, FILE *file)
{
    ddpm_comm two = *comm_alone();
    comm_reducer *reducer;
    double loss = 0;
    two.size = 2, two.all_reduce = note_bucket;
    buckets = file;
    ddpm_result result = comm_reducer_create(&reducer, &two, model, COMM_BUCKET);
    if (result != DDPM_OK) return result;
    const ddpm_ranks *ranks = comm_reducer_ranks(reducer);
    result = ranks->finish(ranks->user, DDPM_OK, &loss);
    comm_reducer_free(reducer);
    return result;
}

int main(int argc, char **argv)
{
    const char *path = getenv("CUDA_ON_CPU_LAUNCHES");
    ddpm_device device = {NULL, NULL, 0};
    ddpm_model *model = NULL;
    ddpm_net *net = NULL;
    ddpm_model_config config = ddpm_model_preset("lab", 24);
    FILE *file = path ? fopen(path, "a") : NULL;
    if (argc != 2 || !file) {
        fprintf(stderr, "usage: CUDA_ON_CPU_LAUNCHES=FILE launches PICTURES\n");
        return 2;
    }
    cuda_on_cpu_device(80, (size_t)900 << 30);
    ddpm_result result = ddpm_device_open(&device, ddpm_cuda(), 1, "tf32");
    if (result == DDPM_OK) result = ddpm_model_create(&model, &config, &device);
    if (result == DDPM_OK) result = ddpm_model_alloc(model, DDPM_FOR_TRAINING);
    if (result == DDPM_OK) result = ddpm_net_create(&net, model, 64, 64, atoi(argv[1]), DDPM_TRAINING);
    if (result == DDPM_OK) result = run_rows(net->graph, file);
    if (result == DDPM_OK) result = run_update(model, net->graph, file);
    if (result == DDPM_OK) result = run_sums(model, file);
    if (result == DDPM_OK) fprintf(file, "memory %zu %zu\n", net->graph->bytes, model->elements);
    if (result != DDPM_OK) fprintf(stderr, "launches: %s\n", ddpm_error());
    fclose(file);
    ddpm_net_free(net);
    ddpm_model_free(model);
    ddpm_device_close(&device);
    return result != DDPM_OK;
}
