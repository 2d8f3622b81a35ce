/* comm/comm.h - several processes ("ranks") that train one model together: they add up their gradients, and now and
 * then wait for each other. Four functions behind one struct, and a file for each way to fill it:
 *
 *     comm.c   one rank alone: every sum is there already
 *     local.c  ranks on this machine, started here, adding through memory that they share; no library
 *     mpi.c    ranks that mpirun starts, on any number of machines             (make mpi)
 *     nccl.c   gradients of GPUs by NCCL, everything else by one of the above  (make cuda)
 *
 *     comm_local(2, &comm, &ending);                                  // from here on two processes run this
 *     comm_reducer_create(&reducer, comm, model, COMM_BUCKET);        // reducer.c
 *     trainer.ranks = comm_reducer_ranks(reducer);                    // ddpm_train_step then is all ranks' step
 *
 * Sums are made in the order of the ranks, or by NCCL in its ring's: the same bits on every rank, and in every run
 * with as many ranks. Contents: 1 the interface   2 ways to fill it   3 agreement   4 gradients   5 for the files
 * here */
#ifndef COMM_COMM_H
#define COMM_COMM_H
#include "ddpm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. The interface -------------------------------------------------------------------------------------------- */

typedef enum comm_kind {
    COMM_GRADIENTS, /* ddpm_real in the backend's memory */
    COMM_DOUBLES    /* double in the host's */
} comm_kind;

/* All ranks make the same calls in the same order, from one thread each. After a failure the run is over. */
typedef struct ddpm_comm ddpm_comm;
struct ddpm_comm {
    int rank, size;             /* 0 <= rank < size */
    int local_rank, local_size; /* among those on this machine */
    int agreed;       /* the last comm_agree found a failure, which every rank knows of: nobody need be told */
    const char *name; /* "processes", "MPI", "NCCL and MPI"; for people */
    /* Begins to replace `count` values by their sums over all ranks; they are touched until `wait` is back. */
    ddpm_result (*all_reduce)(ddpm_comm *comm, comm_kind kind, void *values, size_t count);
    /* All sums that were begun are there (on a GPU: for whatever its stream is given next). */
    ddpm_result (*wait)(ddpm_comm *comm);
    /* Until all ranks are here, asleep, however long one of them takes. */
    ddpm_result (*barrier)(ddpm_comm *comm);
    /* failed: this rank gives up on its own, so that the others must be ended. */
    void (*close)(ddpm_comm *comm, int failed);
};

/* ---- 2. Ways to fill it ------------------------------------------------------------------------------------------ */

ddpm_comm *comm_alone(void); /* rank 0 of 1; nothing to close */

typedef struct comm_ending { /* of ranks that were started here */
    int status;              /* 0, or the exit status of the first that failed; 128 + signal if one killed it */
    int rank;                /* which it was; -1: none */
    long process;            /* and its number */
} comm_ending;
/* Starts `size` processes, 2 to 256, each a copy of this one, which return with their comm. The process that called
 * looks after them: it passes on SIGINT, SIGTERM and SIGHUP, and when one rank dies ends the others; it returns with
 * *out NULL when all have ended. To be called before anything that a copy cannot have: threads, locks, a GPU.
 * DDPM_ERR_BACKEND, DDPM_ERR_MEMORY. */
ddpm_result comm_local(int size, ddpm_comm **out, comm_ending *ending);

/* The processes that mpirun started. In a program that was built with MPI alone. DDPM_ERR_BACKEND. */
ddpm_result comm_mpi(ddpm_comm **out);
/* How many processes mpirun has started, from its environment: 0 if this is none of them. */
int comm_mpirun_size(void);

/* Gradients by NCCL, one GPU a rank; everything else by `host`, which it owns from then on. stream: the backend's, on
 * which gradients are made and read. In a program that was built with CUDA and NCCL alone. DDPM_ERR_BACKEND. */
ddpm_result comm_nccl(ddpm_comm **out, ddpm_comm *host, void *stream);
/* Leaves this process the GPU of its local rank, before CUDA looks for any. DDPM_ERR_ARGUMENT: it has none left. */
ddpm_result comm_choose_gpu(const ddpm_comm *comm);

/* ---- 3. Agreement ------------------------------------------------------------------------------------------------ */

/* The same result on every rank: DDPM_OK if all bring that, else the failure of one of them with its text ("rank 1:
 * ..."); DDPM_ERR_NONFINITE only if nobody has another. values: `count` more to be summed on the way. */
ddpm_result comm_agree(ddpm_comm *comm, ddpm_result result, double *values, int count);
/* Are all ranks about to do the same? DDPM_ERR_ARGUMENT if they do not bring the same text. */
ddpm_result comm_same(ddpm_comm *comm, const char *text);

/* ---- 4. Gradients ------------------------------------------------------------------------------------------------ */

/* The model's gradients, from its last parameter to its first, in buckets of about COMM_BUCKET elements, each of which
 * is begun to be summed as soon as backward has made all of it. */
typedef struct comm_reducer comm_reducer;
enum { COMM_BUCKET = 1 << 20 };
ddpm_result comm_reducer_create(comm_reducer **out, ddpm_comm *comm, ddpm_model *model, size_t size);
void comm_reducer_free(comm_reducer *reducer); /* NULL is allowed */
const ddpm_ranks *comm_reducer_ranks(const comm_reducer *reducer);
int comm_reducer_buckets(const comm_reducer *reducer);

/* ---- 5. For the files here --------------------------------------------------------------------------------------- */

size_t comm_width(comm_kind kind); /* bytes of a value */
/* to[i] = from[0][i] + from[1][i] + ..., in this order; to may be one of them. */
void comm_add(comm_kind kind, size_t count, int size, const void *const *from, void *to);
/* comm_part(count, k, size): where part k of `count` values begins, k = size: where the last ends. */
size_t comm_part(size_t count, int k, int size);

/* A thread that makes sums one after the other while the caller goes on: all_reduce and wait for who has a function
 * that returns with the sum. */
typedef ddpm_result (*comm_sum)(ddpm_comm *comm, comm_kind kind, void *values, size_t count);
typedef struct comm_worker comm_worker;
ddpm_result comm_worker_open(comm_worker **out, ddpm_comm *comm, comm_sum sum);
void comm_worker_close(comm_worker *worker); /* NULL is allowed */
ddpm_result comm_worker_begin(comm_worker *worker, comm_kind kind, void *values, size_t count);
ddpm_result comm_worker_wait(comm_worker *worker);

#ifdef __cplusplus
}
#endif
#endif
