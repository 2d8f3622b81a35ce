/* cpu_team.h - the threads of the CPU backend. They work on one row of the operation table together, each calling the
 * same function; between rows they wait, spinning for some microseconds and then asleep.
 *
 * OpenMP would do, but its runtimes wait either spinning for milliseconds, which multiplies a step's time as soon as
 * anything else runs, or asleep at once, which costs a wake-up at every row; and the choice is made before main(). */
#ifndef CPU_TEAM_H
#define CPU_TEAM_H
#include "ddpm.h"

typedef struct cpu_team cpu_team;

/* A team of `threads`, the caller's included. Where the system refuses threads it is smaller. DDPM_ERR_MEMORY. */
ddpm_result cpu_team_open(cpu_team **out, int threads);
void cpu_team_close(cpu_team *team); /* NULL is allowed */

/* Calls work(arg) on every thread of the team and waits for all; returns what the calling thread's call returned, and
 * so only that one may fail. While another thread has the team, the caller works alone: results may not depend on how
 * many there are. */
ddpm_result cpu_team_run(cpu_team *team, ddpm_result (*work)(void *arg), void *arg);

/* Inside work: which thread this is, of how many; elsewhere 0 of 1. */
int cpu_team_index(void);
int cpu_team_count(void);
/* Inside work, called by all: no thread goes on before all have come here; what was written is then seen by all. */
void cpu_team_barrier(void);

#endif
