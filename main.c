/* main.c - the program `ddpm`: finds the command and its options, opens the backend, runs the command.
 * Only this file and cli/ print or exit: results to stdout, everything else to stderr; exit 0, 1 (failed), 2 (usage).
 *
 * Contents: 1 commands, backends, global options   2 help   3 ranks   4 running a command */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "cli/cli.h"
#include "comm/comm.h"
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
                  "The bundled model draws at once:\n"
                  "  ddpm sample \"red sphere, cyan cube\"\n\n"
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

/* ---- 3. Ranks ------------------------------------------------------------------------------------------------ */

/* What the options ask for cannot be had: a usage error, or CLI_DONE. gpus makes cuda the backend. */
static int check_ranks(const cli_command *command, cli_ranks wanted)
{
    int cuda = strcmp(backends[global.backend].name, "cuda") == 0, given = cli_given(&global_options[0]);
    if (wanted.processes > 0 && wanted.gpus > 0)
        return cli_usage_error(command->name, "%s: --gpus starts a process for each GPU; --ranks would start others",
                               command->name);
    if (wanted.gpus > 0 && given && !cuda)
        return cli_usage_error(command->name, "%s: --gpus is for --backend cuda, not %s", command->name,
                               backends[global.backend].name);
    if (wanted.processes > 1 && cuda)
        return cli_usage_error(command->name, "%s: --ranks shares work among processors; for GPUs it is --gpus %d",
                               command->name, wanted.processes);
    for (int i = 0; wanted.gpus > 0 && i < (int)(sizeof backends / sizeof backends[0]); i++)
        if (strcmp(backends[i].name, "cuda") == 0) global.backend = i;
    return CLI_DONE;
}

/* Those that mpirun started, or as many as the options say. */
static ddpm_result find_ranks(const cli_command *command, cli_ranks wanted, ddpm_comm **comm, comm_ending *ending)
{
    int processes = wanted.gpus > 0 ? wanted.gpus : wanted.processes, started = comm_mpirun_size();
    *comm = comm_alone();
    if (started > 1 && command->ranks == NULL)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s under mpirun: %d processes would do the same work\n"
                         "      hint: without mpirun; ddpm train can be shared",
                         command->name, started);
    if (started > 1 && processes > 0)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "mpirun has started %d ranks already\n"
                         "      hint: leave out --ranks and --gpus; GPUs are --backend cuda here",
                         started);
    if (wanted.gpus > 0 && backends[global.backend].get == NULL)
        return ddpm_fail(DDPM_ERR_BACKEND,
                         "--gpus %d: backend 'cuda' is not in this build\n"
                         "      hint: make cuda builds it in; --ranks %d shares the work among as many "
                         "processes without a GPU",
                         wanted.gpus, wanted.gpus);
#ifndef DDPM_NCCL
    if (strcmp(backends[global.backend].name, "cuda") == 0 && (wanted.gpus > 1 || started > 1))
        return ddpm_fail(DDPM_ERR_BACKEND, "more than one GPU needs NCCL, which is not in this build\n"
                                           "      hint: install libnccl-dev, or set NCCL_HOME to a folder with "
                                           "include/nccl.h and lib/libnccl.so.2, then make cuda");
#endif
#ifdef DDPM_MPI
    if (started > 1) return comm_mpi(comm);
#else
    if (started > 1)
        return ddpm_fail(DDPM_ERR_BACKEND,
                         "mpirun has started %d processes, and MPI is not in this build\n"
                         "      hint: make mpi builds it in; --ranks %d needs no mpirun on one machine",
                         started, started);
#endif
    return processes > 1 ? comm_local(processes, comm, ending) : DDPM_OK;
}

/* What the process that looked after the ranks has to say. A rank that failed by itself has said why. */
static int report_ending(const comm_ending *ending)
{
    if (ending->status > 128)
        cli_note(
            "ddpm: rank %d (process %ld) was killed by signal %d (%s), and the run ends with it\n"
            "      hint: what was saved is there: the same command with --resume goes on from it. Signal 9 is what "
            "a machine without memory sends, too",
            ending->rank, ending->process, ending->status - 128, strsignal(ending->status - 128));
    return ending->status > CLI_USAGE ? CLI_FAILED : ending->status;
}

/* Ranks on one machine divide its processors, unless mpirun has bound each to its own. */
static int threads_of_rank(const ddpm_comm *comm)
{
    int threads = global.threads;
#ifdef _OPENMP
    if (threads == 0 && comm->local_size > 1 && omp_get_num_procs() == sysconf(_SC_NPROCESSORS_ONLN))
        threads = (omp_get_max_threads() + comm->local_size - 1) / comm->local_size;
#else
    (void)comm;
#endif
    return threads;
}

/* ---- 4. Running a command ------------------------------------------------------------------------------------ */

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
        const char *quote = cli_quote(argv[i]);
        used += snprintf(line + used, size - (size_t)used, " %s%s%s", quote, argv[i], quote);
    }
    return line;
}

/* This rank's, and the GPUs' own way to add gradients. */
static ddpm_result open_backend(ddpm_device *device, ddpm_comm **comm)
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
    ddpm_result result = DDPM_OK;
#ifdef DDPM_NCCL
    int gpus = strcmp(backends[global.backend].name, "cuda") == 0 && (*comm)->size > 1;
    if (gpus) result = comm_choose_gpu(*comm);
#endif
    if (result == DDPM_OK)
        result = ddpm_device_open(device, backends[global.backend].get(), threads_of_rank(*comm), isa);
    result = comm_agree(*comm, result, NULL, 0);
#ifdef DDPM_NCCL
    if (gpus && result == DDPM_OK) result = comm_nccl(comm, *comm, ddpm_cuda_stream(device));
#endif
    return result;
}

/* In each rank. */
static int run_as_rank(const cli_command *command, cli_context *context)
{
    char ranks[80] = "";
    int status;
    cli_set_quiet(context->comm->rank > 0);
    ddpm_result result = open_backend(&context->device, &context->comm);
    const ddpm_device *device = &context->device;
    if (result == DDPM_OK) {
        if (context->comm->size > 1)
            snprintf(ranks, sizeof ranks, ", each of %d ranks (%s)", context->comm->size, context->comm->name);
        cli_note("ddpm %s: backend %s, %d thread%s, %s%s", cli_version(), backends[global.backend].name,
                 device->threads, device->threads == 1 ? "" : "s", ddpm_device_isa(device), ranks);
        status = command->run(context);
    } else {
        status = cli_exit_rank(context->comm, result);
    }
    int failed = status != CLI_DONE && !context->comm->agreed;
    context->comm->close(context->comm, failed);
    ddpm_device_close(&context->device);
    return status;
}

static int run_command(const cli_command *command, int argc, char **argv)
{
    int help;
    comm_ending ending = {.rank = -1};
    int status = cli_parse(command, global_options, argc - 2, argv + 2, &help);
    if (status != CLI_DONE) return status;
    if (help) return help_command(command->name);
    cli_ranks wanted = {0};
    if (command->ranks != NULL) wanted = command->ranks();
    if ((status = check_ranks(command, wanted)) != CLI_DONE) return status;
    cli_context context = {.command_line = join_arguments(argc, argv)};
    if (context.command_line == NULL) return cli_exit(DDPM_ERR_MEMORY);
    ddpm_result result = find_ranks(command, wanted, &context.comm, &ending);
    if (result != DDPM_OK)
        status = cli_exit(result);
    else
        status = context.comm != NULL ? run_as_rank(command, &context) : report_ending(&ending);
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
