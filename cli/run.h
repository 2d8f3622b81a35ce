/* cli/run.h - a run directory that is being written: its lock, its links, which generations stay, its csv files.
 *
 * Contents: 1 lock   2 generations and links   3 csv files */
#ifndef DDPM_CLI_RUN_H
#define DDPM_CLI_RUN_H

#include "cli/cli.h"

/* ---- 1. Lock ------------------------------------------------------------------------------------------------- */

/* Takes RUN/lock for this process (a POSIX record lock: the system lets go of it when the process ends, however it
 * ends, so a dead process's lock is simply free). *file: for cli_run_unlock. DDPM_ERR_FILE names the process that
 * holds it. */
ddpm_result cli_run_lock(const char *run, int *file);
void cli_run_unlock(int file);

/* ---- 2. Generations and links -------------------------------------------------------------------------------- */

/* RUN/name -> step-N, replaced in one piece; N of what `name` points at, 0 if it is no such link. */
ddpm_result cli_run_link(const char *run, const char *name, uint64_t step);
uint64_t cli_run_linked(const char *run, const char *name);
/* The newest `keep` generations stay as they are (0: all). Of the older ones those that are linked as best or epoch=N
 * stay as models that cannot be continued from, the others go. */
ddpm_result cli_run_prune(const char *run, int keep);
/* Removes what a killed process left half-written. */
ddpm_result cli_run_sweep(const char *run);

/* ---- 3. CSV files -------------------------------------------------------------------------------------------- */

/* Rows whose first column is the step. A row that cannot be written (a full disk) waits in memory for the next try. */
typedef struct cli_csv { /* start from {.file = -1} */
    int file;
    char *path, *waiting;
    size_t used, room;
} cli_csv;
/* Makes RUN/name with this header, or, for step > 0, goes on after the last row of at most this step and drops those
 * beyond. DDPM_ERR_FORMAT: the file there has another header. */
ddpm_result cli_csv_open(cli_csv *csv, const char *run, const char *name, const char *header, uint64_t step);
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
ddpm_result
cli_csv_add(cli_csv *csv, const char *format, ...);
/* Writes what waits; sync: down to the disk. */
ddpm_result cli_csv_flush(cli_csv *csv, int sync);
void cli_csv_close(cli_csv *csv);

#endif
