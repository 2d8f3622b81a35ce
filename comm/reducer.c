/* comm/reducer.c - a model's gradients as buckets: stretches of its flat array, the last one first, since backward
 * makes gradients from the last parameter to the first. Every rank begins them in this order, whatever the order of
 * its own. */
#include "comm/comm.h"

#include <stdlib.h>

typedef struct bucket {
    size_t first, end;       /* elements of the array */
    int parameters, missing; /* trainable ones in it; whose gradients backward has not made yet */
} bucket;

struct comm_reducer {
    ddpm_ranks ranks;
    ddpm_comm *comm;
    ddpm_model *model;
    bucket *bucket;
    int buckets, begun; /* of this step */
    ddpm_result result; /* the first failure to begin one */
};

static void begin_next(comm_reducer *r)
{
    const bucket *b = &r->bucket[r->begun++];
    ddpm_real *gradients = r->model->array[DDPM_GRAD];
    if (r->result == DDPM_OK && b->parameters > 0)
        r->result = r->comm->all_reduce(r->comm, COMM_GRADIENTS, gradients + b->first, b->end - b->first);
}

static void gradient_is_ready(void *user, ddpm_tensor *param)
{
    comm_reducer *r = user;
    int i = 0;
    while (param->offset < r->bucket[i].first)
        i++;
    r->bucket[i].missing--;
    while (r->begun < r->buckets && r->bucket[r->begun].missing == 0)
        begin_next(r);
}

/* A rank without pictures, or one that failed half-way, begins here what the others wait for. */
static ddpm_result finish_step(void *user, ddpm_result result, double *total)
{
    comm_reducer *r = user;
    while (r->begun < r->buckets)
        begin_next(r);
    for (int i = 0; i < r->buckets; i++)
        r->bucket[i].missing = r->bucket[i].parameters;
    r->begun = 0;
    if (r->result == DDPM_OK) r->result = r->comm->wait(r->comm);
    return r->result == DDPM_OK ? comm_agree(r->comm, result, total, 1) : r->result;
}

ddpm_result comm_reducer_create(comm_reducer **out, ddpm_comm *comm, ddpm_model *model, size_t size)
{
    comm_reducer *r = *out = calloc(1, sizeof *r);
    if (r != NULL) r->bucket = calloc((size_t)model->params + 1, sizeof *r->bucket);
    if (r == NULL || r->bucket == NULL) {
        free(r);
        *out = NULL;
        return ddpm_fail(DDPM_ERR_MEMORY, "no memory for %d buckets of gradients", model->params);
    }
    r->comm = comm;
    r->model = model;
    r->ranks = (ddpm_ranks){comm->rank, comm->size, gradient_is_ready, finish_step, r};
    size_t end = model->elements;
    for (int p = model->params - 1; p >= 0; p--) {
        bucket *b = &r->bucket[r->buckets];
        b->parameters += model->param[p]->trainable;
        b->missing = b->parameters;
        b->first = model->param[p]->offset;
        b->end = end;
        if (end - b->first < size && p > 0) continue;
        end = b->first;
        r->buckets++;
    }
    return DDPM_OK;
}

void comm_reducer_free(comm_reducer *r)
{
    if (r == NULL) return;
    free(r->bucket);
    free(r);
}

const ddpm_ranks *comm_reducer_ranks(const comm_reducer *r)
{
    return &r->ranks;
}

int comm_reducer_buckets(const comm_reducer *r)
{
    return r->buckets;
}
