/* cli/console.c - errors, progress and numbers as people read them.
 *
 * Contents: 1 errors   2 progress   3 numbers   4 the machine */
#include "cli/cli.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "io/file.h"

/* ---- 1. Errors ----------------------------------------------------------------------------------------------- */

#ifndef DDPM_VERSION /* the Makefile gives what git calls this version */
#define DDPM_VERSION "0.2"
#endif

const char *cli_version(void)
{
    return DDPM_VERSION;
}

int cli_exit(ddpm_result result)
{
    if (result == DDPM_OK) return CLI_DONE;
    fprintf(stderr, "ddpm: %s\n", ddpm_error());
    return CLI_FAILED;
}

int cli_exit_rank(const ddpm_comm *comm, ddpm_result result)
{
    if (result == DDPM_OK || comm->rank == 0) return cli_exit(result);
    if (!comm->agreed) fprintf(stderr, "ddpm: rank %d: %s\n", comm->rank, ddpm_error());
    return CLI_FAILED;
}

static int is_quiet;

void cli_set_quiet(int quiet)
{
    is_quiet = quiet;
}

void cli_note(const char *format, ...)
{
    if (is_quiet) return;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

void *cli_alloc(size_t count, size_t size)
{
    void *memory = calloc(count > 0 ? count : 1, size);
    if (memory == NULL)
        ddpm_fail(DDPM_ERR_MEMORY, "no memory for %zu x %zu bytes\n      hint: a smaller batch or picture needs less",
                  count, size);
    return memory;
}

ddpm_result cli_can_write_png(const char *path)
{
    size_t length = strlen(path);
    if (length <= 4 || strcasecmp(path + length - 4, ".png") != 0)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: a picture is written as PNG, and this name does not end in .png\n      hint: %s.png",
                         path, path);
    return io_can_write(path);
}

char *cli_text(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    char *text = cli_alloc((size_t)(length < 0 ? 0 : length) + 1, 1);
    if (text != NULL && length > 0) {
        va_start(arguments, format);
        vsnprintf(text, (size_t)length + 1, format, arguments);
        va_end(arguments);
    }
    return text;
}

const char *cli_quote(const char *word)
{
    return strpbrk(word, " \t") != NULL ? "\"" : "";
}

/* ---- 2. Progress --------------------------------------------------------------------------------------------- */

static const double redraw_seconds = 0.1, line_seconds = 5; /* a bar on a terminal; lines elsewhere */

double cli_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void cli_progress_start(cli_progress *progress, const char *label, double total)
{
    *progress = (cli_progress){.label = label, .total = total, .begun = -1, .terminal = isatty(STDERR_FILENO)};
    progress->shown = progress->terminal ? 0 : cli_seconds();
}

static int terminal_width(void)
{
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 40 ? size.ws_col : 80;
}

static void draw_bar(const cli_progress *progress, double share, const char *rest)
{
    char line[512], bar[32];
    int width = terminal_width(), cells = width >= 100 ? 24 : 12;
    for (int i = 0; i < cells; i++)
        bar[i] = i < (int)(share * cells) ? '#' : '.';
    bar[cells] = '\0';
    int limit = width < (int)sizeof line ? width : (int)sizeof line;
    snprintf(line, (size_t)limit, "%s [%s] %3d%%  %s", progress->label, bar, (int)(100 * share), rest);
    fprintf(stderr, "\r\033[K%s", line);
    fflush(stderr);
}

void cli_progress_show(cli_progress *progress, double done, const char *format, ...)
{
    double now = cli_seconds(), share = progress->total > 0 ? done / progress->total : 1;
    if (is_quiet) return;
    if (progress->begun < 0) {
        progress->begun = done;
        progress->started = now;
    }
    if (now - progress->shown < (progress->terminal ? redraw_seconds : line_seconds)) return;
    progress->shown = now;
    char rest[256], left[48] = "";
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(rest, sizeof rest, format, arguments);
    va_end(arguments);
    if (done > progress->begun && share < 1) {
        double rate = (done - progress->begun) / (now - progress->started);
        cli_short duration;
        snprintf(left, sizeof left, "%s left  ", cli_duration((progress->total - done) / rate, duration));
    }
    char all[320]; /* the time comes first: a narrow terminal cuts off the end */
    snprintf(all, sizeof all, "%s%s", left, rest);
    if (progress->terminal)
        draw_bar(progress, share, all);
    else
        fprintf(stderr, "%s %d%%  %s\n", progress->label, (int)(100 * share), all);
}

void cli_progress_clear(cli_progress *progress)
{
    if (progress->terminal && !is_quiet) fprintf(stderr, "\r\033[K");
}

/* ---- 3. Numbers ---------------------------------------------------------------------------------------------- */

const char *cli_bytes(double bytes, cli_short out)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int u = 0;
    for (; bytes >= 1024 && u < 4; u++)
        bytes /= 1024;
    snprintf(out, sizeof(cli_short), u > 0 && bytes < 10 ? "%.1f %s" : "%.0f %s", bytes, unit[u]);
    return out;
}

const char *cli_duration(double seconds, cli_short out)
{
    if (seconds < 60)
        snprintf(out, sizeof(cli_short), seconds < 10 ? "%.1f s" : "%.0f s", seconds);
    else if (seconds < 3600)
        snprintf(out, sizeof(cli_short), "%d min %02d s", (int)seconds / 60, (int)seconds % 60);
    else if (seconds < 1e7)
        snprintf(out, sizeof(cli_short), "%d h %02d min", (int)(seconds / 3600), (int)(seconds / 60) % 60);
    else
        snprintf(out, sizeof(cli_short), "%.0f days", seconds / 86400);
    return out;
}

const char *cli_count(double count, cli_short out)
{
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%.0f", count), to = 0;
    for (int i = 0; i < length && to < (int)sizeof(cli_short) - 2; i++) {
        if (i > 0 && (length - i) % 3 == 0) out[to++] = ',';
        out[to++] = digits[i];
    }
    out[to] = '\0';
    return out;
}

/* ---- 4. The machine ------------------------------------------------------------------------------------------ */

double cli_memory_available(void)
{
    const char *limit = getenv("DDPM_MEMORY_LIMIT");
    if (limit != NULL) return strtod(limit, NULL);
    double kibibytes = 0;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "r");
    if (file == NULL) return 0;
    while (fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "MemAvailable: %lf kB", &kibibytes) == 1) break;
    fclose(file);
    return kibibytes * 1024;
}
