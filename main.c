/* main.c - the program `ddpm`: finds the command and its options, opens the backend, runs the command.
 * Only this file and cli/ print or exit: results to stdout, everything else to stderr; exit 0, 1 (failed), 2 (usage).
 *
 * Contents: 1 commands, backends, global options   2 help   3 running a command */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cpu_backend.h"
#include "cuda_backend.h"

/* ---- 1. Commands, backends, global options ------------------------------------------------------------------- */

static const cli_command *const commands[] = {
    &cli_render,          &cli_train,  &cli_sample,  &cli_test,       &cli_eval,
    &cli_train_evaluator, &cli_info,   &cli_predict, &cli_check_grad, &cli_selftest,
    &cli_bench,           &cli_report, &cli_nearest, &cli_explain,    &cli_export,
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

static const struct {
    const char *name;
    const ddpm_backend *(*get)(void); /* NULL: known, not in this build */
} backends[] = {
    {"reference", ddpm_reference},
    {"cpu", ddpm_cpu},
#ifdef DDPM_CUDA /* make cuda */
    {"cuda", ddpm_cuda},
#else
    {"cuda", NULL},
#endif
};

static struct {
    int backend, threads;
    const char *isa;
    int exact;
} global;

/* clang-format off */
static const cli_option global_options[] = {
    {"backend", "device", CLI_CHOICE, "reference|cpu|cuda", "cpu",
     "what computes", &global.backend, 0, 0, 0},
    {"threads", NULL, CLI_INT, "N", "(all the machine has)",
     "threads; results do not depend on it", &global.threads, 1, 4096, 0},
    {"isa", NULL, CLI_TEXT, "SET", "(the widest there is)",
     "instruction set of the cpu backend: baseline, avx2, avx512; operands of products on cuda: fp32, tf32, bf16",
     &global.isa, 0, 0, 0},
    {"exact", NULL, CLI_FLAG, NULL, NULL,
     "convolutions of the cpu backend as plain sums of products, never by Winograd's algorithm: half as fast, less"
     " than half its rounding error; on cuda the same as --isa fp32", &global.exact, 0, 0, 0},
    {0},
};
/* clang-format on */

/* ---- 2. Help ------------------------------------------------------------------------------------------------- */

static void print_commands(FILE *file)
{
    for (int i = 0; i < COMMANDS; i++)
        fprintf(file, "  %-15s %s\n", commands[i]->name, commands[i]->summary);
}

static void print_program_help(FILE *file)
{
    fprintf(file, "usage: ddpm COMMAND ...\n\n"
                  "A conditional DDPM in plain C: draws the objects that a label set names.\n\n");
    print_commands(file);
    fprintf(file, "\n  ddpm COMMAND --help    its options and their defaults\n"
                  "  ddpm --version\n\n"
                  "A first run:\n"
                  "  ddpm render --out runs/scenes --scenes 300 --size 128x96\n"
                  "  ddpm train runs/scenes --model tiny --epochs 20 --out runs/first\n"
                  "  ddpm sample \"red sphere, cyan cube\" --model runs/first --n 8 --out first.png\n");
}

static int find_command(const char *name) /* its index, or -1 */
{
    for (int i = 0; i < COMMANDS; i++)
        if (cli_edit_distance(commands[i]->name, name) == 0) return i;
    return -1;
}

static int unknown_command(const char *name)
{
    int nearest = 0;
    for (int i = 1; i < COMMANDS; i++)
        if (cli_edit_distance(commands[i]->name, name) < cli_edit_distance(commands[nearest]->name, name)) nearest = i;
    fprintf(stderr, "ddpm: unknown command '%s'\n      hint: did you mean '%s'? There are:\n", name,
            commands[nearest]->name);
    print_commands(stderr);
    return CLI_USAGE;
}

static int help_command(const char *name) /* NULL: of the program */
{
    int index = name != NULL ? find_command(name) : -1;
    if (name != NULL && index < 0) return unknown_command(name);
    if (name != NULL)
        cli_print_help(commands[index], global_options);
    else
        print_program_help(stdout);
    return CLI_DONE;
}

/* ---- 3. Running a command ------------------------------------------------------------------------------------ */

/* The command line as typed, arguments with blanks in quotes: it goes into the pictures' text chunks. malloc'ed. */
static char *join_arguments(int argc, char **argv)
{
    size_t size = sizeof "ddpm";
    for (int i = 1; i < argc; i++)
        size += strlen(argv[i]) + 3;
    char *line = cli_alloc(size, 1);
    if (line == NULL) return NULL;
    int used = snprintf(line, size, "ddpm");
    for (int i = 1; i < argc; i++) {
        const char *quote = strpbrk(argv[i], " \t") != NULL ? "\"" : "";
        used += snprintf(line + used, size - (size_t)used, " %s%s%s", quote, argv[i], quote);
    }
    return line;
}

static ddpm_result open_backend(ddpm_device *device)
{
    if (backends[global.backend].get == NULL)
        return ddpm_fail(
            DDPM_ERR_BACKEND,
            "backend '%s' is not in this build\n      hint: make cuda builds it in; --backend %s always is",
            backends[global.backend].name, backends[0].name);
    char exact[64];
    const char *isa = global.isa;
    snprintf(exact, sizeof exact, "%s+exact", isa != NULL ? isa : "");
    if (global.exact && backends[global.backend].get == ddpm_cpu) isa = exact; /* the reference knows nothing else */
    if (global.exact && !strcmp(backends[global.backend].name, "cuda")) isa = "fp32";
    return ddpm_device_open(device, backends[global.backend].get(), global.threads, isa);
}

static int run_command(const cli_command *command, int argc, char **argv)
{
    int help;
    int status = cli_parse(command, global_options, argc - 2, argv + 2, &help);
    if (status != CLI_DONE) return status;
    if (help) return help_command(command->name);
    cli_context context = {.command_line = join_arguments(argc, argv)};
    if (context.command_line == NULL) return cli_exit(DDPM_ERR_MEMORY);
    ddpm_result result = open_backend(&context.device);
    if (result == DDPM_OK) {
        cli_note("ddpm %s: backend %s, %d thread%s, %s", cli_version(), backends[global.backend].name,
                 context.device.threads, context.device.threads == 1 ? "" : "s", ddpm_device_isa(&context.device));
        status = command->run(&context);
        ddpm_device_close(&context.device);
    } else {
        status = cli_exit(result);
    }
    free(context.command_line);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "ddpm: the results could not be written to stdout\n");
        return CLI_FAILED;
    }
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_program_help(stderr);
        return CLI_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) return help_command(NULL);
    if (strcmp(name, "help") == 0) return help_command(argc > 2 ? argv[2] : NULL);
    if (strcmp(name, "--version") == 0) {
        printf("ddpm %s\n", cli_version());
        return CLI_DONE;
    }
    int index = find_command(name);
    return index >= 0 ? run_command(commands[index], argc, argv) : unknown_command(name);
}
