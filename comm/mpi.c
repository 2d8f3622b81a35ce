/* comm/mpi.c - ranks that mpirun starts, on one machine or many. `make mpi` builds it in.
 *
 * MPI may add in any order (MPI-4.1, 6.9.1, only recommends one), so it is used to carry the values alone: each rank
 * gets everybody's part k of them, adds in the order of the ranks, and all gather the parts. That is the traffic of a
 * ring, 2 (size - 1) / size of the values, and the same bits as comm/local.c.
 *
 * MPI waits spinning. Ranks here share their processors with what computes, so they look, and sleep in between. */
#include "comm/comm.h"

#include <mpi.h>
#include <stdlib.h>
#include <time.h>

/* ---- Waiting ----------------------------------------------------------------------------------------------------- */

static void until_done(MPI_Request *request, long nanoseconds)
{
    for (int done = 0;;) {
        MPI_Test(request, &done, MPI_STATUS_IGNORE); /* errors end the run: MPI_ERRORS_ARE_FATAL */
        if (done) return;
        nanosleep(&(struct timespec){0, nanoseconds}, NULL);
    }
}
enum { SHORT = 20000, LONG = 2000000 };

/* ---- Sums -------------------------------------------------------------------------------------------------------- */

enum { PIECE = 1 << 20 }; /* values that travel at once */

typedef struct mpi {
    ddpm_comm comm;
    comm_worker *worker;
    int *count, *start, *part_count, *part_start; /* (size): of the parts; of my part from each rank */
    const void **from;                            /* (size) */
    char *received;                               /* my part from each rank */
} mpi;

static ddpm_result sum_by_parts(ddpm_comm *comm, comm_kind kind, void *values, size_t count)
{
    mpi *m = (mpi *)comm;
    size_t width = comm_width(kind);
    MPI_Datatype type = width == sizeof(float) ? MPI_FLOAT : MPI_DOUBLE;
    for (size_t at = 0; at < count; at += PIECE) {
        size_t n = count - at < PIECE ? count - at : PIECE;
        char *piece = (char *)values + at * width;
        int own = (int)(comm_part(n, comm->rank + 1, comm->size) - comm_part(n, comm->rank, comm->size));
        for (int k = 0; k < comm->size; k++) {
            m->start[k] = (int)comm_part(n, k, comm->size);
            m->count[k] = (int)comm_part(n, k + 1, comm->size) - m->start[k];
            m->part_start[k] = k * own;
            m->part_count[k] = own;
            m->from[k] = m->received + (size_t)m->part_start[k] * width;
        }
        MPI_Request request;
        MPI_Ialltoallv(piece, m->count, m->start, type, m->received, m->part_count, m->part_start, type, MPI_COMM_WORLD,
                       &request);
        until_done(&request, SHORT);
        comm_add(kind, (size_t)own, comm->size, m->from, piece + (size_t)m->start[comm->rank] * width);
        MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, piece, m->count, m->start, type, MPI_COMM_WORLD, &request);
        until_done(&request, SHORT);
    }
    return DDPM_OK;
}

/* ---- The comm ---------------------------------------------------------------------------------------------------- */

static ddpm_result mpi_wait(ddpm_comm *comm)
{
    return comm_worker_wait(((mpi *)comm)->worker);
}

/* MPI_THREAD_SERIALIZED: the caller's thread calls MPI only while the worker has nothing to do. */
static ddpm_result mpi_all_reduce(ddpm_comm *comm, comm_kind kind, void *values, size_t count)
{
    if (kind == COMM_GRADIENTS) return comm_worker_begin(((mpi *)comm)->worker, kind, values, count);
    ddpm_result result = mpi_wait(comm);
    return result == DDPM_OK ? sum_by_parts(comm, kind, values, count) : result;
}

static ddpm_result mpi_barrier(ddpm_comm *comm)
{
    MPI_Request request;
    ddpm_result result = mpi_wait(comm);
    if (result != DDPM_OK) return result;
    MPI_Ibarrier(MPI_COMM_WORLD, &request);
    until_done(&request, LONG);
    return DDPM_OK;
}

static void mpi_close(ddpm_comm *comm, int failed)
{
    mpi *m = (mpi *)comm;
    if (failed) MPI_Abort(MPI_COMM_WORLD, 1);
    comm_worker_close(m->worker);
    MPI_Finalize();
    free(m->count);
    free(m->from);
    free(m->received);
    free(m);
}

ddpm_result comm_mpi(ddpm_comm **out)
{
    int provided, rank, size, local_rank, local_size;
    MPI_Comm machine;
    *out = NULL;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS ||
        provided < MPI_THREAD_SERIALIZED)
        return ddpm_fail(DDPM_ERR_BACKEND, "this MPI has no MPI_THREAD_SERIALIZED\n      hint: OpenMPI 3 or later has");
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
    MPI_Comm_rank(machine, &local_rank);
    MPI_Comm_size(machine, &local_size);
    MPI_Comm_free(&machine);
    mpi *m = calloc(1, sizeof *m);
    size_t ranks = (size_t)size;
    if (m != NULL) {
        m->comm = (ddpm_comm){.rank = rank,
                              .size = size,
                              .local_rank = local_rank,
                              .local_size = local_size,
                              .name = "MPI",
                              .all_reduce = mpi_all_reduce,
                              .wait = mpi_wait,
                              .barrier = mpi_barrier,
                              .close = mpi_close};
        m->count = calloc(4 * ranks, sizeof *m->count);
        m->from = calloc(ranks, sizeof *m->from);
        m->received = malloc((PIECE + ranks) * sizeof(double));
    }
    if (m == NULL || m->count == NULL || m->from == NULL || m->received == NULL) MPI_Abort(MPI_COMM_WORLD, 1);
    m->start = m->count + ranks;
    m->part_count = m->start + ranks;
    m->part_start = m->part_count + ranks;
    ddpm_result result = comm_worker_open(&m->worker, &m->comm, sum_by_parts);
    if (result != DDPM_OK) MPI_Abort(MPI_COMM_WORLD, 1);
    *out = &m->comm;
    return result;
}
