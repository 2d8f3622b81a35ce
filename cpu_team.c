/* cpu_team.c - threads that wait for each other, spinning briefly and then asleep (cpu_team.h). */
#include "cpu_team.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* How often a waiting thread looks before it sleeps: about 50 microseconds, what waking it up would cost. On a machine
 * that has other work it does not look at all: the one it waits for may not be running, and the time it spins away is
 * taken from the whole program (measured with eight runnable threads a core, a small network's forward: 17 ms asleep,
 * 60 to 95 ms spinning for 50 microseconds). Linux tells: there our threads wait for a processor. */
enum { LOOKS = 2000, RUNS = 32 };                             /* looked into every RUNS rows, */
static const double WINDOW = 0.1, PAUSE = 0.5, DELAYED = 0.1; /* after so many seconds; no spinning for so many, if so
                                                                    large a share of them was waited for a processor */

struct cpu_team {
    atomic_int count, arrived, asleep, looks;
    int runs, spins;     /* so far; may it spin: are there processors enough */
    double delay;        /* seconds that the first thread waited for a processor, */
    double time, resume; /* until this time; when to look again */
    atomic_uint round;   /* of the barrier: counts up when all have come */
    pthread_mutex_t sleep, use;
    pthread_cond_t wake;
    ddpm_result (*work)(void *arg); /* NULL: the end */
    void *arg;
    struct place {
        cpu_team *team;
        pthread_t thread;
    } place[]; /* of thread i; the first is whoever runs the team */
};

static _Thread_local struct member {
    cpu_team *team; /* NULL: alone */
    int index;
} self;

int cpu_team_index(void)
{
    return self.index;
}

int cpu_team_count(void)
{
    return self.team != NULL ? self.team->count : 1;
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* some 40 cycles; `yield` takes one */
#endif
}

/* The last to come begins a new round. No wake-up is lost: either a sleeper, which counts itself before it looks at the
 * round once more, sees the new one, or the last to come, which looks at the count after it began the round, sees the
 * sleeper, and can then take the mutex only when that one waits. */
static void wait_for_all(cpu_team *t)
{
    unsigned round = atomic_load(&t->round);
    if (atomic_fetch_add(&t->arrived, 1) + 1 == t->count) {
        atomic_store(&t->arrived, 0);
        atomic_store(&t->round, round + 1);
        if (atomic_load(&t->asleep) > 0) {
            pthread_mutex_lock(&t->sleep);
            pthread_cond_broadcast(&t->wake);
            pthread_mutex_unlock(&t->sleep);
        }
        return;
    }
    for (int i = 0, looks = atomic_load_explicit(&t->looks, memory_order_relaxed); i < looks; i++) {
        if (atomic_load_explicit(&t->round, memory_order_acquire) != round) return;
        relax();
    }
    pthread_mutex_lock(&t->sleep);
    atomic_fetch_add(&t->asleep, 1);
    while (atomic_load(&t->round) == round)
        pthread_cond_wait(&t->wake, &t->sleep);
    atomic_fetch_sub(&t->asleep, 1);
    pthread_mutex_unlock(&t->sleep);
}

void cpu_team_barrier(void)
{
    if (self.team != NULL) wait_for_all(self.team);
}

static void *serve(void *arg)
{
    struct place *own = arg;
    cpu_team *t = own->team;
    self.team = t, self.index = (int)(own - t->place);
    for (;;) {
        wait_for_all(t);
        if (t->work == NULL) return NULL;
        (void)t->work(t->arg);
        wait_for_all(t);
    }
}

ddpm_result cpu_team_open(cpu_team **out, int threads)
{
    size_t bytes = sizeof(cpu_team) + (size_t)threads * sizeof(struct place);
    cpu_team *t = *out = calloc(1, bytes);
    if (t == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "out of memory: %zu bytes refused", bytes);
    pthread_mutex_init(&t->sleep, NULL);
    pthread_mutex_init(&t->use, NULL);
    pthread_cond_init(&t->wake, NULL);
    /* Threads wait for the whole team, whose size is known only when the last of them has been made. */
    t->spins = threads <= sysconf(_SC_NPROCESSORS_ONLN);
    t->looks = t->spins ? LOOKS : 0;
    t->count = threads;
    int made = 1;
    for (; made < threads; made++) {
        t->place[made].team = t;
        if (pthread_create(&t->place[made].thread, NULL, serve, &t->place[made]) != 0) break;
    }
    t->count = made;
    /* A thread that is still starting may hold a lock of the C library or of a sanitizer; whoever forks then (bench,
     * ranks) would leave it locked in the child for ever. */
    while (atomic_load(&t->arrived) < made - 1)
        sched_yield();
    return DDPM_OK;
}

void cpu_team_close(cpu_team *t)
{
    if (t == NULL) return;
    t->work = NULL;
    wait_for_all(t);
    for (int i = 1; i < t->count; i++)
        pthread_join(t->place[i].thread, NULL);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->use);
    pthread_mutex_destroy(&t->sleep);
    free(t);
}

/* Seconds that this thread has been ready and not running; -1 where the system does not say. */
static double delay_so_far(void)
{
    char text[100];
    unsigned long long delay;
    int file = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    if (file < 0) return -1;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    text[size > 0 ? size : 0] = '\0';
    return sscanf(text, "%*s %llu", &delay) == 1 ? 1e-9 * (double)delay : -1; /* nanoseconds run, delayed; slices */
}

/* Is the machine busy with other things? How threads wait changes with it, and no result. */
static void look_around(cpu_team *t)
{
    struct timespec now;
    if (!t->spins || ++t->runs % RUNS != 0) return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double time = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec, delay;
    if (time < t->resume || time < t->time + WINDOW || (delay = delay_so_far()) < 0) return;
    int busy = delay - t->delay > DELAYED * (time - t->time);
    if (t->time > 0) atomic_store(&t->looks, busy ? 0 : LOOKS);
    if (t->time > 0 && busy) t->resume = time + PAUSE;
    t->delay = delay;
    t->time = time;
}

ddpm_result cpu_team_run(cpu_team *t, ddpm_result (*work)(void *arg), void *arg)
{
    struct member before = self;
    if (t->count == 1 || pthread_mutex_trylock(&t->use) != 0) {
        self = (struct member){NULL, 0};
        ddpm_result result = work(arg);
        self = before;
        return result;
    }
    look_around(t);
    t->work = work, t->arg = arg;
    self = (struct member){t, 0};
    wait_for_all(t);
    ddpm_result result = work(arg);
    wait_for_all(t);
    self = before;
    pthread_mutex_unlock(&t->use);
    return result;
}
