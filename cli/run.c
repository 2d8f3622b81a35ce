/* cli/run.c - see cli/run.h.
 *
 * Contents: 1 lock   2 generations and links   3 csv files */
#include "cli/run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/checkpoint.h"
#include "io/file.h"

/* ---- 1. Lock ------------------------------------------------------------------------------------------------- */

ddpm_result cli_run_lock(const char *run, int *file)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    ddpm_result result = DDPM_OK;
    char *path = io_join(run, "lock");
    *file = -1;
    if (path == NULL) return DDPM_ERR_MEMORY;
    int opened = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (opened < 0) {
        result = ddpm_fail(DDPM_ERR_FILE, "%s: cannot write: %s\n      hint: is there room, and the right to?", path,
                           strerror(errno));
    } else if (fcntl(opened, F_SETLK, &lock) == 0) {
        *file = opened;
    } else if (errno == EACCES || errno == EAGAIN) {
        long holder = fcntl(opened, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK ? (long)lock.l_pid : 0;
        result = ddpm_fail(DDPM_ERR_FILE,
                           "%s: another process (%ld) is training this run\n"
                           "      hint: wait for it, stop it (kill %ld saves and ends it), or choose another --out",
                           run, holder, holder);
        close(opened);
    } else { /* a file system without locks: better to train than not to */
        cli_note("note    %s cannot be locked (%s): see to it that no other process trains this run", path,
                 strerror(errno));
        *file = opened;
    }
    free(path);
    return result;
}

void cli_run_unlock(int file)
{
    if (file >= 0) close(file);
}

/* ---- 2. Generations and links -------------------------------------------------------------------------------- */

ddpm_result cli_run_link(const char *run, const char *name, uint64_t step)
{
    ddpm_result result = DDPM_ERR_MEMORY;
    char *target = cli_text("step-%llu", (unsigned long long)step);
    char *temporary = cli_text("%s/.link-%ld", run, (long)getpid());
    char *link = io_join(run, name);
    if (target != NULL && temporary != NULL && link != NULL) {
        unlink(temporary);
        if (symlink(target, temporary) == 0 && rename(temporary, link) == 0)
            result = DDPM_OK;
        else
            result = ddpm_fail(DDPM_ERR_FILE,
                               "%s cannot be made a link to %s: %s\n      hint: does this file system have links?",
                               link, target, strerror(errno));
    }
    free(target);
    free(temporary);
    free(link);
    return result;
}

uint64_t cli_run_linked(const char *run, const char *name)
{
    char target[64] = "", *path = io_join(run, name);
    uint64_t step = 0;
    if (path != NULL && readlink(path, target, sizeof target - 1) > 0) io_checkpoint_step(target, &step);
    free(path);
    return step;
}

typedef struct step_list {
    uint64_t *step;
    size_t count, room;
} step_list;

static ddpm_result add_step(step_list *list, uint64_t step)
{
    if (list->count == list->room) {
        size_t room = 2 * list->room + 16;
        uint64_t *grown = realloc(list->step, room * sizeof *grown);
        if (grown == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for the list of %zu checkpoints", room);
        list->step = grown;
        list->room = room;
    }
    list->step[list->count++] = step;
    return DDPM_OK;
}

static int has_step(const step_list *list, uint64_t step)
{
    int found = 0;
    for (size_t i = 0; list->step != NULL && i < list->count; i++)
        found |= list->step[i] == step;
    return found;
}

static int larger_first(const void *a, const void *b)
{
    uint64_t one = *(const uint64_t *)a, other = *(const uint64_t *)b;
    return one < other ? 1 : one > other ? -1 : 0;
}

/* The generations of a run and the steps that its best and epoch=N links point at, each with the newest first. */
static ddpm_result list_run(const char *run, step_list *generations, step_list *linked)
{
    ddpm_result result = DDPM_OK;
    DIR *directory = opendir(run);
    if (directory == NULL)
        return ddpm_fail(DDPM_ERR_FILE, "%s cannot be read: %s\n      hint: check the path", run, strerror(errno));
    for (struct dirent *entry; result == DDPM_OK && (entry = readdir(directory)) != NULL;) {
        uint64_t step;
        int is_link = strcmp(entry->d_name, "best") == 0 || strncmp(entry->d_name, "epoch=", 6) == 0;
        if (is_link && (step = cli_run_linked(run, entry->d_name)) > 0) result = add_step(linked, step);
        if (io_checkpoint_step(entry->d_name, &step)) result = add_step(generations, step);
    }
    closedir(directory);
    if (generations->count > 0) qsort(generations->step, generations->count, sizeof *generations->step, larger_first);
    return result;
}

/* Renamed before it is removed: a kill in between leaves no half of a generation under its name. */
static ddpm_result remove_generation(const char *run, uint64_t step)
{
    char *path = cli_text("%s/step-%llu", run, (unsigned long long)step);
    char *aside = cli_text("%s/.old-%llu", run, (unsigned long long)step);
    ddpm_result result = path != NULL && aside != NULL ? io_remove_tree(aside) : DDPM_ERR_MEMORY;
    if (result == DDPM_OK && rename(path, aside) != 0)
        result = ddpm_fail(DDPM_ERR_FILE, "%s cannot be renamed: %s\n      hint: check its permissions", path,
                           strerror(errno));
    if (result == DDPM_OK) result = io_remove_tree(aside);
    free(path);
    free(aside);
    return result;
}

static ddpm_result thin_generation(const char *run, uint64_t step)
{
    char *path = cli_text("%s/step-%llu", run, (unsigned long long)step);
    ddpm_result result = path != NULL ? io_checkpoint_thin(path) : DDPM_ERR_MEMORY;
    free(path);
    return result;
}

ddpm_result cli_run_prune(const char *run, int keep)
{
    step_list generations = {0}, linked = {0};
    ddpm_result result = keep > 0 ? list_run(run, &generations, &linked) : DDPM_OK;
    for (size_t i = (size_t)keep; result == DDPM_OK && generations.step != NULL && i < generations.count; i++) {
        uint64_t step = generations.step[i];
        result = (has_step(&linked, step) ? thin_generation : remove_generation)(run, step);
    }
    free(generations.step);
    free(linked.step);
    return result;
}

ddpm_result cli_run_sweep(const char *run)
{
    ddpm_result result = DDPM_OK;
    DIR *directory = opendir(run);
    if (directory == NULL) return DDPM_OK; /* not there yet */
    for (struct dirent *entry; result == DDPM_OK && (entry = readdir(directory)) != NULL;) {
        static const char *const left[] = {".tmp-", ".old-", ".link-"};
        const char *name = entry->d_name;
        int half = strncmp(name, "step-", 5) == 0 && (strstr(name, ".tmp-") != NULL || strstr(name, ".old-") != NULL);
        for (size_t i = 0; i < sizeof left / sizeof left[0]; i++)
            half |= strncmp(name, left[i], strlen(left[i])) == 0;
        if (!half) continue;
        char *path = io_join(run, name);
        result = path != NULL ? io_remove_tree(path) : DDPM_ERR_MEMORY;
        free(path);
    }
    closedir(directory);
    return result;
}

/* ---- 3. CSV files -------------------------------------------------------------------------------------------- */

/* Length of the header and the rows of at most `step`: what of a file a checkpoint of that step knows. Rows come in
 * order; a row that a killed process left unfinished has no end of line. */
static size_t known_length(const char *text, uint64_t step)
{
    const char *at = text, *end = strchr(text, '\n');
    while (end != NULL) {
        at = end + 1;
        end = strchr(at, '\n');
        if (end == NULL || strtoull(at, NULL, 10) > step) break;
    }
    return (size_t)(at - text);
}

static ddpm_result cut_back(const char *path, const char *header, uint64_t step)
{
    unsigned char *text;
    size_t size, length = strlen(header);
    ddpm_result result = io_read_file(path, &text, &size);
    if (result != DDPM_OK) return result;
    if (strncmp((char *)text, header, length) != 0 || text[length] != '\n')
        result = ddpm_fail(DDPM_ERR_FORMAT,
                           "%s: its columns are not those of this program: %s\n"
                           "      hint: move it away, a new one is then begun",
                           path, header);
    size_t known = result == DDPM_OK ? known_length((char *)text, step) : 0;
    if (result == DDPM_OK && known < size) result = io_write_file(path, text, known);
    free(text);
    return result;
}

ddpm_result cli_csv_open(cli_csv *csv, const char *run, const char *name, const char *header, uint64_t step)
{
    *csv = (cli_csv){.file = -1, .path = io_join(run, name)};
    if (csv->path == NULL) return DDPM_ERR_MEMORY;
    int goes_on = step > 0 && io_is_file(csv->path);
    ddpm_result result = goes_on ? cut_back(csv->path, header, step) : DDPM_OK;
    if (result != DDPM_OK) return result;
    csv->file = open(csv->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (goes_on ? 0 : O_TRUNC), 0666);
    if (csv->file < 0)
        return ddpm_fail(DDPM_ERR_FILE, "%s: cannot write: %s\n      hint: is there room, and the right to?", csv->path,
                         strerror(errno));
    return goes_on ? DDPM_OK : cli_csv_add(csv, "%s\n", header);
}

ddpm_result cli_csv_add(cli_csv *csv, const char *format, ...)
{
    char row[1024];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(row, sizeof row, format, arguments);
    va_end(arguments);
    if (length < 0 || length >= (int)sizeof row)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%s: a row of %d characters", csv->path, length);
    if (csv->used + (size_t)length > csv->room) {
        size_t room = 2 * csv->room + sizeof row;
        char *grown = realloc(csv->waiting, room);
        if (grown == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for its rows", csv->path);
        csv->waiting = grown;
        csv->room = room;
    }
    memcpy(csv->waiting + csv->used, row, (size_t)length);
    csv->used += (size_t)length;
    return DDPM_OK;
}

ddpm_result cli_csv_flush(cli_csv *csv, int sync)
{
    while (csv->used > 0) {
        ssize_t written = write(csv->file, csv->waiting, csv->used);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0)
            return ddpm_fail(DDPM_ERR_FILE, "%s: cannot write: %s\n      hint: is the disk full?", csv->path,
                             strerror(errno));
        csv->used -= (size_t)written;
        memmove(csv->waiting, csv->waiting + written, csv->used);
    }
    if (sync && fsync(csv->file) != 0 && errno != EINVAL)
        return ddpm_fail(DDPM_ERR_FILE, "%s: cannot sync: %s\n      hint: is the disk full?", csv->path,
                         strerror(errno));
    return DDPM_OK;
}

void cli_csv_close(cli_csv *csv)
{
    if (csv->file >= 0) close(csv->file);
    free(csv->path);
    free(csv->waiting);
    *csv = (cli_csv){.file = -1};
}
