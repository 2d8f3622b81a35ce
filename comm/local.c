/* comm/local.c - ranks on one machine: a process starts copies of itself and looks after them; they add gradients in
 * memory that they share. Nothing here needs a library, so that --gpus and --ranks work without MPI.
 *
 * Contents: 1 the shared memory   2 meeting   3 sums   4 a rank's comm   5 starting ranks, looking after them */
#define _DEFAULT_SOURCE 1 /* MAP_ANONYMOUS */
#include "comm/comm.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- 1. The shared memory ---------------------------------------------------------------------------------------- */

enum { MOST_RANKS = 256, SLOT = 4 << 20 }; /* bytes; a larger sum is made in pieces */

typedef struct shared {
    pthread_mutex_t lock;
    pthread_cond_t all_here;
    int waiting;
    unsigned meeting;         /* how many there have been */
    _Alignas(64) char slot[]; /* one of each rank, for what it brings, and one for the sums */
} shared;

typedef struct local {
    ddpm_comm comm;
    shared *memory;
    size_t bytes;
    pid_t starter; /* the process that looks after the ranks */
    comm_worker *worker;
} local;

static size_t bytes_for(int size)
{
    return sizeof(shared) + ((size_t)size + 1) * SLOT;
}

static shared *share_memory(int size)
{
    shared *memory = mmap(NULL, bytes_for(size), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        ddpm_fail(DDPM_ERR_MEMORY, "no memory that %d ranks can share: %s\n      hint: fewer ranks", size,
                  strerror(errno));
        return NULL;
    }
    pthread_mutexattr_t mutex;
    pthread_condattr_t condition;
    pthread_mutexattr_init(&mutex);
    pthread_condattr_init(&condition);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&memory->lock, &mutex);
    pthread_cond_init(&memory->all_here, &condition);
    pthread_mutexattr_destroy(&mutex);
    pthread_condattr_destroy(&condition);
    return memory;
}

/* ---- 2. Meeting -------------------------------------------------------------------------------------------------- */

/* All ranks come here before one goes on. A rank that died is no concern of this: the starter ends the others. That it
 * is still there is looked at before each meeting, and every second of a long one. */
static ddpm_result meet(const local *l)
{
    shared *m = l->memory;
    int alone = 0;
    pthread_mutex_lock(&m->lock);
    unsigned meeting = m->meeting;
    if (++m->waiting == l->comm.size) {
        m->waiting = 0;
        m->meeting++;
        pthread_cond_broadcast(&m->all_here);
    }
    while (m->meeting == meeting && !(alone = getppid() != l->starter)) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec++;
        pthread_cond_timedwait(&m->all_here, &m->lock, &until);
    }
    pthread_mutex_unlock(&m->lock);
    return alone ? ddpm_fail(DDPM_ERR_BACKEND,
                             "the process that started the ranks (%ld) has ended\n"
                             "      hint: to stop a run, kill that one: it saves and ends",
                             (long)l->starter)
                 : DDPM_OK;
}

/* ---- 3. Sums ----------------------------------------------------------------------------------------------------- */

/* Each rank lays down what it brings, adds up its part of everybody's, and takes the parts that the others added. */
static ddpm_result sum_slots(ddpm_comm *comm, comm_kind kind, void *values, size_t count)
{
    const local *l = (const local *)comm;
    size_t width = comm_width(kind), most = SLOT / width;
    char *slot = l->memory->slot, *sums = slot + (size_t)comm->size * SLOT;
    for (size_t at = 0; at < count; at += most) {
        size_t n = count - at < most ? count - at : most;
        size_t first = comm_part(n, comm->rank, comm->size), end = comm_part(n, comm->rank + 1, comm->size);
        const void *from[MOST_RANKS];
        for (int k = 0; k < comm->size; k++)
            from[k] = slot + (size_t)k * SLOT + first * width;
        memcpy(slot + (size_t)comm->rank * SLOT, (char *)values + at * width, n * width);
        ddpm_result result = meet(l);
        if (result != DDPM_OK) return result;
        comm_add(kind, end - first, comm->size, from, sums + first * width);
        if ((result = meet(l)) != DDPM_OK) return result;
        memcpy((char *)values + at * width, sums, n * width);
    }
    return DDPM_OK;
}

/* ---- 4. A rank's comm -------------------------------------------------------------------------------------------- */

static ddpm_result local_wait(ddpm_comm *comm)
{
    return comm_worker_wait(((local *)comm)->worker);
}

static ddpm_result local_all_reduce(ddpm_comm *comm, comm_kind kind, void *values, size_t count)
{
    if (kind == COMM_GRADIENTS) return comm_worker_begin(((local *)comm)->worker, kind, values, count);
    ddpm_result result = local_wait(comm); /* a few numbers are not worth waking a thread */
    return result == DDPM_OK ? sum_slots(comm, kind, values, count) : result;
}

static ddpm_result local_barrier(ddpm_comm *comm)
{
    ddpm_result result = local_wait(comm);
    return result == DDPM_OK ? meet((local *)comm) : result;
}

static void local_close(ddpm_comm *comm, int failed)
{
    local *l = (local *)comm;
    if (failed) return; /* its thread may wait for ranks that will not come: the end of the process ends it */
    comm_worker_close(l->worker);
    munmap(l->memory, l->bytes);
    free(l);
}

static ddpm_result become_rank(int rank, int size, pid_t starter, shared *memory, ddpm_comm **out)
{
    local *l = calloc(1, sizeof *l);
    if (l == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for rank %d", rank);
    l->comm = (ddpm_comm){.rank = rank,
                          .size = size,
                          .local_rank = rank,
                          .local_size = size,
                          .name = "processes",
                          .all_reduce = local_all_reduce,
                          .wait = local_wait,
                          .barrier = local_barrier,
                          .close = local_close};
    l->memory = memory;
    l->bytes = bytes_for(size);
    l->starter = starter;
    ddpm_result result = comm_worker_open(&l->worker, &l->comm, sum_slots);
    if (result == DDPM_OK)
        *out = &l->comm;
    else
        free(l);
    return result;
}

/* ---- 5. Starting ranks, looking after them ----------------------------------------------------------------------- */

enum {
    LOOK = 20,
    GRACE = 3000,
    PATIENCE = 30000
}; /* ms: how often to look; that the others have to end by themselves after a failure */

static void note_ending(comm_ending *ending, int rank, pid_t process, int status)
{
    int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    if (code != 0 && ending->rank < 0) *ending = (comm_ending){code, rank, (long)process};
}

static volatile sig_atomic_t signalled;

static void note_signal(int number)
{
    signalled = number;
}

static void send_all(const pid_t *rank, int size, int number)
{
    for (int k = 0; k < size; k++)
        if (rank[k] > 0) kill(rank[k], number);
}

/* Until all have ended. One that ended well has nothing more to give; one that did not takes the others with it: at
 * once if it was killed, for it can have told nobody. */
static void look_after(pid_t *rank, int size, comm_ending *ending)
{
    int left = size, waited = 0;
    while (left > 0) {
        nanosleep(&(struct timespec){0, LOOK * 1000000}, NULL);
        int number = signalled, status;
        signalled = 0;
        if (number != 0) send_all(rank, size, number);
        for (int k = 0; k < size; k++) {
            if (rank[k] <= 0 || waitpid(rank[k], &status, WNOHANG) != rank[k]) continue;
            note_ending(ending, k, rank[k], status);
            rank[k] = 0;
            left--;
        }
        if (left < size) waited++; /* whose last step was the others' last, too */
        int failed = ending->rank >= 0;
        if (ending->status > 128 || waited >= (failed ? GRACE : PATIENCE) / LOOK) send_all(rank, size, SIGKILL);
    }
}

/* Each rank is a process group of its own, so that Ctrl-C comes here and from here to each, once. */
static ddpm_result start_ranks(int size, shared *memory, pid_t *rank, const sigset_t *before, ddpm_comm **out)
{
    pid_t starter = getpid();
    for (int k = 0; k < size; k++) {
        rank[k] = fork();
        if (rank[k] == 0) {
            setpgid(0, 0);
            sigprocmask(SIG_SETMASK, before, NULL);
            return become_rank(k, size, starter, memory, out);
        }
        if (rank[k] > 0) continue;
        ddpm_fail(DDPM_ERR_BACKEND, "rank %d of %d cannot be started: %s\n      hint: fewer ranks; ulimit -u", k, size,
                  strerror(errno));
        while (--k >= 0) {
            kill(rank[k], SIGKILL);
            waitpid(rank[k], NULL, 0);
        }
        return DDPM_ERR_BACKEND;
    }
    return DDPM_OK;
}

ddpm_result comm_local(int size, ddpm_comm **out, comm_ending *ending)
{
    *out = NULL;
    *ending = (comm_ending){.rank = -1};
    if (size < 2 || size > MOST_RANKS)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%d ranks\n      hint: 2 to %d", size, MOST_RANKS);
    shared *memory = share_memory(size);
    if (memory == NULL) return DDPM_ERR_MEMORY;
    pid_t rank[MOST_RANKS] = {0}, starter = getpid();
    struct sigaction pass_on = {.sa_handler = note_signal}, interrupt, terminate, hangup;
    sigset_t signals, before;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);
    sigprocmask(SIG_BLOCK, &signals, &before);
    ddpm_result result = start_ranks(size, memory, rank, &before, out);
    if (getpid() != starter) return result;
    sigaction(SIGINT, &pass_on, &interrupt);
    sigaction(SIGTERM, &pass_on, &terminate);
    sigaction(SIGHUP, NULL, &hangup);
    if (hangup.sa_handler != SIG_IGN) sigaction(SIGHUP, &pass_on, NULL);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (result == DDPM_OK) look_after(rank, size, ending);
    sigaction(SIGINT, &interrupt, NULL);
    sigaction(SIGTERM, &terminate, NULL);
    sigaction(SIGHUP, &hangup, NULL);
    munmap(memory, bytes_for(size));
    return result;
}
