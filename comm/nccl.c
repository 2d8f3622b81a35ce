/* comm/nccl.c - the gradients of GPUs, added by NCCL on a stream of their own while the backend's goes on with
 * backward. Few numbers, waiting and agreement go by way of the host: nobody waits inside NCCL while another rank
 * samples or saves. Events alone connect the two streams, so that nothing here keeps the host waiting. Never run on
 * a GPU. */
#include "comm/comm.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct nccl {
    ddpm_comm comm;
    ddpm_comm *host;
    ncclComm_t ranks;
    cudaStream_t compute, sums;
    cudaEvent_t made, added; /* on the one, on the other */
    char name[64];
} nccl;

static ddpm_result cuda_failed(cudaError_t error, const char *what)
{
    return ddpm_fail(DDPM_ERR_BACKEND, "nccl: %s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

static ddpm_result nccl_failed(const nccl *n, ncclResult_t error, const char *what)
{
    return ddpm_fail(DDPM_ERR_BACKEND, "nccl: rank %d: %s: %s (%s)\n      hint: NCCL_DEBUG=INFO in the environment",
                     n->comm.rank, what, ncclGetErrorString(error), ncclGetLastError(n->ranks));
}

/* `later` goes on when `earlier` has done what it was given so far. */
static ddpm_result follow(cudaStream_t later, cudaEvent_t event, cudaStream_t earlier)
{
    cudaError_t error = cudaEventRecord(event, earlier);
    if (error == cudaSuccess) error = cudaStreamWaitEvent(later, event, 0);
    return error == cudaSuccess ? DDPM_OK : cuda_failed(error, "between two streams");
}

static ddpm_result nccl_all_reduce(ddpm_comm *comm, comm_kind kind, void *values, size_t count)
{
    nccl *n = (nccl *)comm;
    if (kind == COMM_DOUBLES) return n->host->all_reduce(n->host, kind, values, count);
    ddpm_result result = follow(n->sums, n->made, n->compute);
    if (result != DDPM_OK) return result;
    ncclResult_t error = ncclAllReduce(values, values, count, ncclFloat, ncclSum, n->ranks, n->sums);
    return error == ncclSuccess ? DDPM_OK : nccl_failed(n, error, "a sum of gradients");
}

static ddpm_result nccl_wait(ddpm_comm *comm)
{
    nccl *n = (nccl *)comm;
    ncclResult_t error = ncclSuccess;
    ddpm_result result = follow(n->compute, n->added, n->sums);
    if (result == DDPM_OK) result = n->host->wait(n->host);
    if (result == DDPM_OK && (ncclCommGetAsyncError(n->ranks, &error) != ncclSuccess || error != ncclSuccess))
        result = nccl_failed(n, error, "while adding gradients");
    return result;
}

static ddpm_result nccl_barrier(ddpm_comm *comm)
{
    nccl *n = (nccl *)comm;
    return n->host->barrier(n->host);
}

static void nccl_close(ddpm_comm *comm, int failed)
{
    nccl *n = (nccl *)comm;
    if (n->ranks != NULL) (void)(failed ? ncclCommAbort(n->ranks) : ncclCommDestroy(n->ranks));
    if (n->made != NULL) (void)cudaEventDestroy(n->made);
    if (n->added != NULL) (void)cudaEventDestroy(n->added);
    if (n->sums != NULL) (void)cudaStreamDestroy(n->sums);
    n->host->close(n->host, failed);
    free(n);
}

/* Rank 0's id for the group, to all ranks: the others add zeros. */
static ddpm_result share_id(nccl *n, ncclUniqueId *id)
{
    double byte[sizeof *id] = {0};
    ncclResult_t error = ncclSuccess;
    memset(id, 0, sizeof *id);
    if (n->comm.rank == 0) error = ncclGetUniqueId(id);
    for (size_t i = 0; n->comm.rank == 0 && i < sizeof *id; i++)
        byte[i] = (double)(unsigned char)id->internal[i];
    ddpm_result result = error == ncclSuccess ? DDPM_OK : nccl_failed(n, error, "an id for the ranks");
    result = comm_agree(n->host, result, NULL, 0);
    if (result == DDPM_OK) result = n->host->all_reduce(n->host, COMM_DOUBLES, byte, sizeof *id);
    if (result == DDPM_OK) result = n->host->wait(n->host);
    for (size_t i = 0; i < sizeof *id; i++)
        id->internal[i] = (char)(unsigned char)byte[i];
    return result;
}

static ddpm_result join(nccl *n)
{
    ncclUniqueId id;
    ddpm_result result = share_id(n, &id);
    if (result != DDPM_OK) return result;
    ncclResult_t error = ncclCommInitRank(&n->ranks, n->comm.size, id, n->comm.rank);
    if (error != ncclSuccess) return nccl_failed(n, error, "joining the ranks");
    cudaError_t failed = cudaStreamCreateWithFlags(&n->sums, cudaStreamNonBlocking);
    if (failed == cudaSuccess) failed = cudaEventCreateWithFlags(&n->made, cudaEventDisableTiming);
    if (failed == cudaSuccess) failed = cudaEventCreateWithFlags(&n->added, cudaEventDisableTiming);
    return failed == cudaSuccess ? DDPM_OK : cuda_failed(failed, "a stream for gradients");
}

ddpm_result comm_nccl(ddpm_comm **out, ddpm_comm *host, void *stream)
{
    nccl *n = calloc(1, sizeof *n);
    *out = NULL;
    if (n == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for NCCL");
    snprintf(n->name, sizeof n->name, "NCCL and %s", host->name);
    n->comm = *host;
    n->comm.name = n->name;
    n->comm.all_reduce = nccl_all_reduce;
    n->comm.wait = nccl_wait;
    n->comm.barrier = nccl_barrier;
    n->comm.close = nccl_close;
    n->host = host;
    n->compute = (cudaStream_t)stream;
    setenv("NCCL_ALGO", "Ring", 0); /* the order of its sums does not depend on the moment */
    ddpm_result result = comm_agree(host, join(n), NULL, 0);
    if (result == DDPM_OK)
        *out = &n->comm;
    else
        free(n); /* the run is over; host stays the caller's */
    return result;
}

ddpm_result comm_choose_gpu(const ddpm_comm *comm)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES"), *at = visible;
    char chosen[128];
    snprintf(chosen, sizeof chosen, "%d", comm->local_rank);
    for (int k = 0; at != NULL && *at != '\0' && k < comm->local_rank; k++) {
        at = strchr(at, ',');
        if (at != NULL) at++;
    }
    if (visible != NULL && (at == NULL || *at == '\0'))
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "CUDA_VISIBLE_DEVICES=%s has no GPU for rank %d\n      hint: name %d, or fewer --gpus",
                         visible, comm->local_rank, comm->local_size);
    if (at != NULL) snprintf(chosen, sizeof chosen, "%.*s", (int)strcspn(at, ","), at);
    setenv("CUDA_VISIBLE_DEVICES", chosen, 1);
    return DDPM_OK;
}
