/* comm/comm.c - one rank alone, what ranks agree on, and the thread that makes their sums.
 *
 * Contents: 1 alone   2 agreement   3 sums   4 the worker */
#include "comm/comm.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* ---- 1. Alone ---------------------------------------------------------------------------------------------------- */

static ddpm_result nothing_to_add(ddpm_comm *comm, comm_kind kind, void *values, size_t count)
{
    (void)comm, (void)kind, (void)values, (void)count;
    return DDPM_OK;
}

static ddpm_result nobody_to_wait_for(ddpm_comm *comm)
{
    (void)comm;
    return DDPM_OK;
}

static void nothing_to_close(ddpm_comm *comm, int failed)
{
    (void)comm, (void)failed;
}

ddpm_comm *comm_alone(void)
{
    static ddpm_comm alone = {.size = 1,
                              .local_size = 1,
                              .name = "alone",
                              .all_reduce = nothing_to_add,
                              .wait = nobody_to_wait_for,
                              .barrier = nobody_to_wait_for,
                              .close = nothing_to_close};
    return &alone;
}

int comm_mpirun_size(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}; /* OpenMPI's, MPICH's */
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *size = getenv(names[i]);
        if (size != NULL) return atoi(size); /* NOLINT(cert-err34-c): no number is 0 */
    }
    return 0;
}

/* ---- 2. Agreement ------------------------------------------------------------------------------------------------ */

static ddpm_result sum_doubles(ddpm_comm *comm, double *values, size_t count)
{
    ddpm_result result = comm->all_reduce(comm, COMM_DOUBLES, values, count);
    return result == DDPM_OK ? comm->wait(comm) : result;
}

/* The text of rank `from`'s error, on every rank: the others add zeros. */
static ddpm_result share_error(ddpm_comm *comm, int from, ddpm_result code)
{
    enum { LONGEST = 1024 };
    double letter[LONGEST] = {0};
    char text[LONGEST + 1] = "";
    const char *own = ddpm_error();
    for (int i = 0; comm->rank == from && i < LONGEST && own[i] != '\0'; i++)
        letter[i] = (double)(unsigned char)own[i];
    ddpm_result result = sum_doubles(comm, letter, LONGEST);
    if (result != DDPM_OK) return result;
    for (int i = 0; i < LONGEST; i++)
        text[i] = (char)(unsigned char)letter[i];
    if (from == 0) return ddpm_fail(code, "%s", text);
    return ddpm_fail(code, "rank %d: %s", from, text);
}

ddpm_result comm_agree(ddpm_comm *comm, ddpm_result result, double *values, int count)
{
    comm->agreed = 0;
    if (comm->size == 1) return result;
    size_t ranks = (size_t)comm->size, own = (size_t)comm->rank, more = (size_t)count;
    double *all = calloc(more + ranks, sizeof *all); /* the values, then each rank's result */
    if (all == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory to agree with %d ranks", comm->size);
    if (more > 0) memcpy(all, values, more * sizeof *all);
    all[more + own] = (double)result;
    ddpm_result sent = sum_doubles(comm, all, more + ranks), chosen = DDPM_OK;
    if (more > 0 && sent == DDPM_OK) memcpy(values, all, more * sizeof *all);
    int from = 0;
    for (int k = 0; sent == DDPM_OK && k < comm->size; k++) {
        ddpm_result code = (ddpm_result)(int)all[more + (size_t)k];
        if (code == DDPM_OK || (chosen != DDPM_OK && (chosen != DDPM_ERR_NONFINITE || code == chosen))) continue;
        chosen = code;
        from = k;
    }
    free(all);
    if (sent != DDPM_OK || chosen == DDPM_OK) return sent;
    comm->agreed = 1;
    return share_error(comm, from, chosen);
}

ddpm_result comm_same(ddpm_comm *comm, const char *text)
{
    if (comm->size == 1) return DDPM_OK;
    uint64_t hash = UINT64_C(14695981039346656037); /* FNV-1a (Fowler, Noll, Vo) */
    for (const char *c = text; *c != '\0'; c++)
        hash = (hash ^ (unsigned char)*c) * UINT64_C(1099511628211);
    double *all = calloc((size_t)comm->size, sizeof *all);
    if (all == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory to compare with %d ranks", comm->size);
    all[comm->rank] = (double)(hash >> 12); /* 52 bits: exact */
    ddpm_result result = sum_doubles(comm, all, (size_t)comm->size);
    int other = 0;
    for (int k = comm->size - 1; result == DDPM_OK && k > 0; k--)
        if (all[k] != all[0]) other = k;
    if (other > 0 && comm->rank == other) ddpm_fail(DDPM_ERR_ARGUMENT, "%s", text);
    free(all);
    if (result != DDPM_OK || other == 0) return result;
    result = share_error(comm, other, DDPM_ERR_ARGUMENT); /* what it has */
    char theirs[512];
    strncpy(theirs, ddpm_error(), sizeof theirs - 1);
    theirs[sizeof theirs - 1] = '\0';
    comm->agreed = 1;
    return result != DDPM_ERR_ARGUMENT
               ? result
               : ddpm_fail(
                     DDPM_ERR_ARGUMENT,
                     "the ranks do not have the same before them: rank %d: %s; %s\n"
                     "      hint: the same program, options, data and run for all of them, on a shared file system",
                     comm->rank, text, theirs);
}

/* ---- 3. Sums ----------------------------------------------------------------------------------------------------- */

size_t comm_width(comm_kind kind)
{
    return kind == COMM_GRADIENTS ? sizeof(ddpm_real) : sizeof(double);
}

#define ADD(type)                                                                                                      \
    for (size_t i = 0; i < count; i++) {                                                                               \
        type sum = ((const type *)from[0])[i];                                                                         \
        for (int k = 1; k < size; k++)                                                                                 \
            sum += ((const type *)from[k])[i];                                                                         \
        ((type *)to)[i] = sum;                                                                                         \
    }

void comm_add(comm_kind kind, size_t count, int size, const void *const *from, void *to)
{
    if (kind == COMM_GRADIENTS)
        ADD(ddpm_real)
    else
        ADD(double)
}

size_t comm_part(size_t count, int k, int size)
{
    return count / (size_t)size * (size_t)k + count % (size_t)size * (size_t)k / (size_t)size;
}

/* ---- 4. The worker ----------------------------------------------------------------------------------------------- */

enum { JOBS = 256 }; /* that may wait */

typedef struct job {
    comm_kind kind;
    void *values;
    size_t count;
} job;

struct comm_worker {
    ddpm_comm *comm;
    comm_sum sum;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    job job[JOBS];
    size_t begun, done; /* job i is at i % JOBS */
    int closing;
    ddpm_result result; /* the first failure, after which nothing is done any more; and its text */
    char text[512];
};

static void *work(void *of)
{
    comm_worker *w = of;
    pthread_mutex_lock(&w->lock);
    for (;;) {
        while (w->done == w->begun && !w->closing)
            pthread_cond_wait(&w->changed, &w->lock);
        if (w->done == w->begun) break;
        job next = w->job[w->done % JOBS];
        int failed = w->result != DDPM_OK;
        pthread_mutex_unlock(&w->lock);
        ddpm_result result = failed ? DDPM_OK : w->sum(w->comm, next.kind, next.values, next.count);
        pthread_mutex_lock(&w->lock);
        if (result != DDPM_OK) {
            w->result = result;
            strncpy(w->text, ddpm_error(), sizeof w->text - 1);
        }
        w->done++;
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

ddpm_result comm_worker_open(comm_worker **out, ddpm_comm *comm, comm_sum sum)
{
    comm_worker *w = *out = calloc(1, sizeof *w);
    if (w == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for a thread that adds gradients");
    w->comm = comm;
    w->sum = sum;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    if (pthread_create(&w->thread, NULL, work, w) == 0) return DDPM_OK;
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
    *out = NULL;
    return ddpm_fail(DDPM_ERR_MEMORY, "the system refuses a thread that adds gradients\n      hint: ulimit -u");
}

void comm_worker_close(comm_worker *w)
{
    if (w == NULL) return;
    pthread_mutex_lock(&w->lock);
    w->closing = 1;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

ddpm_result comm_worker_begin(comm_worker *w, comm_kind kind, void *values, size_t count)
{
    pthread_mutex_lock(&w->lock);
    while (w->begun - w->done == JOBS)
        pthread_cond_wait(&w->changed, &w->lock);
    w->job[w->begun++ % JOBS] = (job){kind, values, count};
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    return DDPM_OK;
}

ddpm_result comm_worker_wait(comm_worker *w)
{
    pthread_mutex_lock(&w->lock);
    while (w->done < w->begun)
        pthread_cond_wait(&w->changed, &w->lock);
    ddpm_result result = w->result;
    pthread_mutex_unlock(&w->lock);
    return result == DDPM_OK ? DDPM_OK : ddpm_fail(result, "%s", w->text);
}
