/* cli/report.c - ddpm report: runs and tests as one page (see lab/report.h). */
#include <stdio.h>
#include <time.h>

#include "cli/cli.h"
#include "lab/report.h"

static struct {
    cli_texts runs;
    const char *out, *title;
} set;

/* clang-format off */
static const cli_option options[] = {
    {"runs", NULL, CLI_TEXTS, "RUN...", CLI_REQUIRED,
     "runs of ddpm train, outputs of ddpm test, or runs that hold such outputs", &set.runs, 0, 0, 1},
    {"out", "output", CLI_TEXT, "FILE.html", "report.html", "file to write", &set.out, 0, 0, 0},
    {"title", NULL, CLI_TEXT, "TEXT", "(the first run's path)", "heading of the page", &set.title, 0, 0, 0},
    {0},
};
/* clang-format on */

static int run(const cli_context *context)
{
    char made[512], day[32] = "";
    time_t now = time(NULL);
    struct tm local;
    if (localtime_r(&now, &local) != NULL) strftime(day, sizeof day, "%Y-%m-%d %H:%M", &local);
    snprintf(made, sizeof made, "made %s by: %s", day, context->command_line);
    lab_report_config config = {.directory = set.runs.value,
                                .directories = set.runs.count,
                                .title = set.title != NULL ? set.title : set.runs.value[0],
                                .made = made,
                                .version = cli_version()};
    ddpm_result result = lab_report_write(&config, set.out);
    if (result == DDPM_OK) printf("%s\n", set.out);
    return cli_exit(result);
}

const cli_command cli_report = {
    "report",
    "RUN... [--out report.html]",
    "runs and tests as one page: settings, curves, samples, accuracy",
    "One HTML file with everything inside: it opens without a network, on a phone, on paper. A run is a directory of\n"
    "ddpm train; what ddpm test wrote counts as well, also when it lies inside a run (--out RUN/test).",
    options,
    run,
    NULL};
