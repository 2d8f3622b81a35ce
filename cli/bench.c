/* cli/bench.c - ddpm bench: what bench.h measures, as tables for people or one JSON object.
 *
 * Contents: 1 options   2 tables   3 JSON   4 growth   5 the command */
#include "bench.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "io/file.h"
#include "io/plot.h"

/* ---- 1. Options ---------------------------------------------------------------------------------------------- */

static struct {
    int json, model, quick, batch;
    const char *only, *growth;
} set;
enum { MODEL_TINY, MODEL_SMALL, MODEL_LAB, MODEL_ANY };

/* clang-format off */
static const cli_option options[] = {
    {"json", NULL, CLI_FLAG, NULL, NULL,
     "one JSON object with the machine and all the work listed below", &set.json, 0, 0, 0},
    {"only", NULL, CLI_TEXT, "NAME", "(none)",
     "only this work, or only the rows of this operation", &set.only, 0, 0, 0},
    {"model", NULL, CLI_CHOICE, "tiny|small|lab|any", "any",
     "whose shapes; any: rows of lab, steps of all", &set.model, 0, 0, 0},
    {"batch", NULL, CLI_INT, "N", "1",
     "pictures that the rows run with", &set.batch, 1, 4096, 0},
    {"growth", NULL, CLI_TEXT, "OUT.png", "(none)",
     "instead: how time grows with batch, picture and channels, as a chart; what is in OUT.csv is not measured again",
     &set.growth, 0, 0, 0},
    {"quick", NULL, CLI_FLAG, NULL, NULL,
     "less time for each figure, and rows of tiny", &set.quick, 0, 0, 0},
    {0},
};
/* clang-format on */

/* clang-format off */
static const bench_work works[] = {
    {"lab_forward_b1", "lab", 1, 0, 0, 0},        {"lab_forward_b8", "lab", 8, 0, 0, 0},
    {"lab_train_b4", "lab", 4, 1, 0, 0},          {"lab_train_b8", "lab", 8, 1, 0, 0},
    {"small_forward_b32", "small", 32, 0, 0, 0},  {"small_train_b32", "small", 32, 1, 0, 0},
    {"tiny_forward_b32", "tiny", 32, 0, 0, 0},    {"tiny_train_b32", "tiny", 32, 1, 0, 0},
};
/* clang-format on */
enum { WORKS = sizeof works / sizeof works[0], JSON_WORKS = 6 }; /* the JSON form has the first six */

static const char *const model_name[] = {"tiny", "small", "lab"};

/* ---- 2. Tables ----------------------------------------------------------------------------------------------- */

/* Operations that do little arithmetic a byte are judged by bandwidth. */
static int computes(ddpm_op op)
{
    return op == DDPM_OP_CONV2D || op == DDPM_OP_LINEAR || op == DDPM_OP_ATTENTION;
}

static void print_side(const bench_row *row, int side, const bench_machine *machine)
{
    if (!row->measured[side]) {
        printf(" %10s %14s %5s", row->missing[side] ? "no row" : "-", "", "");
        return;
    }
    double per_ns = 1e-6 / row->ms[side];
    if (computes(row->op))
        printf(" %10.3f %7.2f GFLOP/s %3.0f%%", row->ms[side], row->flops[side] * per_ns,
               100 * row->flops[side] * per_ns / machine->peak_gflops);
    else
        printf(" %10.3f %7.2f GB/s    %3.0f%%", row->ms[side], row->bytes[side] * per_ns,
               100 * row->bytes[side] * per_ns / machine->bandwidth_gbs);
}

static void print_rows(const bench_row *row, int count, const bench_machine *machine)
{
    printf("%-17s %-38s %5s %10s %15s %4s %10s %15s %4s\n", "operation", "shape of one picture", "nodes", "forward ms",
           "", "peak", "backward", "", "peak");
    for (int op = 0; op < DDPM_OP_COUNT; op++)
        for (int i = 0; i < count; i++)
            if ((int)row[i].op == op) {
                printf("%-17s %-38s %5d", ddpm_op_name(row[i].op), row[i].shape, row[i].nodes);
                print_side(&row[i], 0, machine);
                print_side(&row[i], 1, machine);
                printf("\n");
            }
    printf("peak: of the multiply-add peak, or of memory's bandwidth; above 100%% the tensors stayed in the caches\n");
}

/* Is the backend's choice of an algorithm right? Beside each 3x3 convolution of stride 1 the same without Winograd. */
static void print_choices(const bench_row *row, int count, const bench_row *exact, int exact_count)
{
    printf("\n3x3 convolutions as the backend chooses, beside plain sums of products (--exact)\n"
           "%-38s %10s %10s %7s %10s %10s"
           " %7s\n",
           "shape of one picture", "forward ms", "exact", "ratio", "backward", "exact", "ratio");
    for (int i = 0; i < count; i++)
        for (int j = 0; j < exact_count; j++) {
            if (row[i].op != DDPM_OP_CONV2D || exact[j].op != DDPM_OP_CONV2D ||
                strcmp(row[i].shape, exact[j].shape) != 0 || strstr(row[i].shape, "3x3") == NULL ||
                strchr(row[i].shape, '/') != NULL)
                continue;
            printf("%-38s", row[i].shape);
            for (int side = 0; side < 2; side++)
                if (row[i].measured[side])
                    printf(" %10.3f %10.3f %6.2f%c", row[i].ms[side], exact[j].ms[side],
                           exact[j].ms[side] / row[i].ms[side], exact[j].ms[side] < 0.9 * row[i].ms[side] ? '!' : ' ');
            printf("\n");
        }
    printf("ratio: above 1 the choice is the faster one; !: it was not\n");
}

static ddpm_result bench_choices(const cli_context *context, const char *preset, double seconds, const bench_row *row,
                                 int count)
{
    const ddpm_device *device = &context->device;
    ddpm_device exact;
    bench_row *other;
    char isa[64];
    int others;
    if (strcmp(device->backend->name, "cpu") != 0 || strstr(ddpm_device_isa(device), "+exact") != NULL) return DDPM_OK;
    snprintf(isa, sizeof isa, "%s+exact", ddpm_device_isa(device));
    ddpm_result result = ddpm_device_open(&exact, device->backend, device->threads, isa);
    if (result != DDPM_OK) return result;
    result = bench_rows(&exact, preset, set.batch, seconds, &other, &others);
    if (result == DDPM_OK) {
        print_choices(row, count, other, others);
        free(other);
    }
    ddpm_device_close(&exact);
    return result;
}

static void print_missing(const ddpm_device *device)
{
    const ddpm_row *rows = device->backend->rows;
    int missing = 0;
    for (int op = 0; op < DDPM_OP_COUNT; op++)
        if (!rows || rows[op].forward == NULL)
            printf("%s %s", missing++ == 0 ? "rows this backend leaves to the reference:" : ",",
                   ddpm_op_name((ddpm_op)op));
    printf(missing > 0 ? "\n" : "");
}

static ddpm_result bench_row_table(const cli_context *context, const bench_machine *machine)
{
    const char *preset = set.model != MODEL_ANY ? model_name[set.model] : set.quick ? "tiny" : "lab";
    bench_row *row;
    int count, kept = 0;
    double seconds = set.quick ? 0.005 : 0.05;
    ddpm_result result = bench_rows(&context->device, preset, set.batch, seconds, &row, &count);
    if (result != DDPM_OK) return result;
    for (int i = 0; i < count; i++)
        if (set.only == NULL || cli_edit_distance(set.only, ddpm_op_name(row[i].op)) == 0) row[kept++] = row[i];
    printf("\nrows at the shapes of '%s', batch %d (peak: of multiply-adds, or of memory, which caches exceed)\n",
           preset, set.batch);
    print_rows(row, kept, machine);
    print_missing(&context->device);
    if (set.only == NULL || cli_edit_distance(set.only, ddpm_op_name(DDPM_OP_CONV2D)) == 0)
        result = bench_choices(context, preset, seconds, row, kept);
    free(row);
    return result;
}

static double work_seconds(void)
{
    return set.quick ? 1 : 5;
}

static ddpm_result bench_work_table(const cli_context *context, const bench_machine *machine)
{
    printf("\nwhole steps\n%-20s %12s %10s %6s %14s\n", "work", "ms (median)", "GFLOP/s", "peak", "memory, MiB");
    for (int i = 0; i < WORKS; i++) {
        int wanted = set.model != MODEL_ANY ? strcmp(works[i].preset, model_name[set.model]) == 0
                                            : !set.quick || strcmp(works[i].preset, "tiny") == 0;
        if (set.only != NULL ? strcmp(set.only, works[i].name) != 0 : !wanted) continue;
        bench_result r;
        ddpm_result result = bench_run(&context->device, &works[i], work_seconds(), &r);
        if (result != DDPM_OK) return result;
        printf("%-20s %12.1f %10.2f %5.1f%% %14.0f\n", works[i].name, r.ms, r.gflops,
               100 * r.gflops / machine->peak_gflops, r.peak_rss_mib);
        fflush(stdout);
    }
    return DDPM_OK;
}

/* ---- 3. JSON ------------------------------------------------------------------------------------------------- */

static ddpm_result out_of_memory(void)
{
    return ddpm_fail(DDPM_ERR_MEMORY, "no memory for the benchmark's results");
}

static ddpm_result add_work(const cli_context *context, const bench_work *work, cJSON *list)
{
    bench_result r;
    ddpm_result result = bench_run(&context->device, work, work_seconds(), &r);
    if (result != DDPM_OK) return result;
    cJSON *entry = cJSON_AddObjectToObject(list, work->name);
    if (entry == NULL || cJSON_AddNumberToObject(entry, "ms", r.ms) == NULL ||
        cJSON_AddNumberToObject(entry, "gflops", r.gflops) == NULL ||
        cJSON_AddNumberToObject(entry, "peak_rss_mib", r.peak_rss_mib) == NULL)
        return out_of_memory();
    return DDPM_OK;
}

static ddpm_result print_json(const cli_context *context, const bench_machine *machine, cJSON *all)
{
    cJSON *list;
    if (all == NULL || cJSON_AddNumberToObject(all, "peak_gflops", machine->peak_gflops) == NULL ||
        cJSON_AddNumberToObject(all, "bandwidth_gbs", machine->bandwidth_gbs) == NULL ||
        cJSON_AddNumberToObject(all, "threads", context->device.threads) == NULL ||
        cJSON_AddStringToObject(all, "isa", ddpm_device_isa(&context->device)) == NULL ||
        (list = cJSON_AddObjectToObject(all, "work")) == NULL)
        return out_of_memory();
    for (int i = 0; i < WORKS; i++) {
        int wanted = set.only != NULL ? strcmp(set.only, works[i].name) == 0 : i < JSON_WORKS;
        if (set.only == NULL && set.model != MODEL_ANY) wanted = strcmp(works[i].preset, model_name[set.model]) == 0;
        ddpm_result result = wanted ? add_work(context, &works[i], list) : DDPM_OK;
        if (result != DDPM_OK) return result;
    }
    char *text = cJSON_Print(all);
    if (text == NULL) return out_of_memory();
    printf("%s\n", text);
    free(text);
    return DDPM_OK;
}

/* ---- 4. Growth ----------------------------------------------------------------------------------------------- */

/* One panel for each axis: forward and training step of the model, one of its sizes varied; and in pale what the direct
 * convolution's multiply-adds would take at the machine's peak. */
static const struct {
    const char *name, *title;
    int batch;       /* where it does not vary */
    double value[6]; /* 0: the end */
} axes[] = {
    {"batch", "batch, at the model's own picture size", 0, {1, 2, 4, 8, 16, 32}},
    {"picture", "height and width of the picture, batch 4", 4, {32, 64, 96, 128}},
    {"channels", "channels, times the model's, batch 4", 4, {0.5, 1, 1.5, 2}},
};
enum { AXES = sizeof axes / sizeof axes[0], POINTS = 6, PANEL_WIDTH = 560, PANEL_HEIGHT = 480 };

typedef struct growth {
    char *csv, *text; /* the file's path, and what is in it so far */
} growth;

/* The line of this point if it has been measured: same model, threads and instruction set. */
static int known_point(const growth *g, const char *key, bench_result *out)
{
    for (const char *line = g->text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, strlen(key)) == 0)
            return sscanf(line + strlen(key), "%lf,%lf,%lf", &out->ms, &out->gflops, &out->peak_rss_mib) == 3;
    }
    return 0;
}

static ddpm_result measure_point(const cli_context *context, growth *g, const bench_work *work, const char *key,
                                 bench_result *out)
{
    if (known_point(g, key, out)) return DDPM_OK;
    ddpm_result result = bench_run(&context->device, work, set.quick ? 0.1 : 2, out);
    if (result != DDPM_OK) return result;
    char *text = cli_text("%s%s%.6g,%.6g,%.6g\n", g->text, key, out->ms, out->gflops, out->peak_rss_mib);
    if (text == NULL) return DDPM_ERR_MEMORY;
    free(g->text);
    g->text = text;
    return io_write_file(g->csv, g->text, strlen(g->text));
}

static ddpm_result draw_axis(const cli_context *context, const bench_machine *machine, growth *g, int axis,
                             io_picture *panel)
{
    const char *model = model_name[set.model == MODEL_ANY ? MODEL_LAB : set.model];
    double y[4][POINTS]; /* forward, training step; the same at the multiply-add peak */
    int count = 0;
    for (; count < POINTS && axes[axis].value[count] > 0; count++)
        for (int training = 0; training < 2; training++) {
            double value = axes[axis].value[count];
            bench_work work = {"growth",
                               model,
                               axis == 0 ? (int)value : axes[axis].batch,
                               training,
                               axis == 1 ? (int)value : 0,
                               axis == 2 ? value : 0};
            bench_result r = {0};
            char key[160];
            snprintf(key, sizeof key, "%s,%s,%g,%s,%d,%s,", model, axes[axis].name, value,
                     training ? "train" : "forward", context->device.threads, ddpm_device_isa(&context->device));
            ddpm_result result = measure_point(context, g, &work, key, &r);
            if (result != DDPM_OK) return result;
            printf("%s %-8s %-5g %-8s %10.1f ms %8.1f GFLOP/s %5.1f%% of the peak %8.0f MiB\n", model, axes[axis].name,
                   value, training ? "train" : "forward", r.ms, r.gflops, 100 * r.gflops / machine->peak_gflops,
                   r.peak_rss_mib);
            fflush(stdout);
            y[training][count] = r.ms;
            y[2 + training][count] = r.ms * r.gflops / machine->peak_gflops;
        }
    const double *x = axes[axis].value;
    const io_series series[] = {/* one legend serves all panels */
                                {axis == 0 ? "training step" : NULL, x, y[1], count, 0x2060C0, 0},
                                {axis == 0 ? "at the peak" : NULL, x, y[3], count, 0xA8C0E8, 0},
                                {axis == 0 ? "forward" : NULL, x, y[0], count, 0xC04020, 0},
                                {axis == 0 ? "at the peak" : NULL, x, y[2], count, 0xE8B8A8, 0}};
    const io_plot plot = {model, axes[axis].title, "milliseconds", series, 4, 1, PANEL_WIDTH, PANEL_HEIGHT};
    return io_plot_draw(&plot, panel);
}

/* The panels side by side. */
static ddpm_result bench_growth(const cli_context *context, const bench_machine *machine)
{
    io_picture all = {0}, panel = {0};
    size_t row = (size_t)PANEL_WIDTH * 3, size = 0;
    size_t stem = strlen(set.growth) - strlen(".png");
    growth g = {cli_text("%.*s.csv", (int)stem, set.growth), NULL};
    unsigned char *old = NULL;
    ddpm_result result = g.csv == NULL ? DDPM_ERR_MEMORY : DDPM_OK;
    if (result == DDPM_OK && io_is_file(g.csv)) result = io_read_file(g.csv, &old, &size);
    if (result == DDPM_OK)
        g.text = cli_text("%s", old != NULL ? (const char *)old
                                            : "model,axis,value,work,threads,isa,ms,gflops,peak_rss_mib\n");
    if (result == DDPM_OK && g.text == NULL) result = DDPM_ERR_MEMORY;
    if (result == DDPM_OK) result = io_picture_create(AXES * PANEL_WIDTH, PANEL_HEIGHT, 3, &all);
    for (int axis = 0; axis < AXES && result == DDPM_OK; axis++) {
        result = draw_axis(context, machine, &g, axis, &panel);
        for (size_t y = 0; y < PANEL_HEIGHT && result == DDPM_OK; y++)
            memcpy(all.pixel + (y * AXES + (size_t)axis) * row, panel.pixel + y * row, row);
        io_picture_free(&panel);
    }
    const io_text text = {"command", context->command_line};
    if (result == DDPM_OK) result = io_picture_write_png(set.growth, &all, &text, 1);
    io_picture_free(&all);
    free(old);
    free(g.csv);
    free(g.text);
    return result;
}

/* ---- 5. The command ------------------------------------------------------------------------------------------ */

static const bench_work *find_work(const char *name)
{
    for (int i = 0; i < WORKS; i++)
        if (strcmp(works[i].name, name) == 0) return &works[i];
    return NULL;
}

static int is_operation(const char *name)
{
    for (int op = 0; op < DDPM_OP_COUNT; op++)
        if (cli_edit_distance(name, ddpm_op_name((ddpm_op)op)) == 0) return 1;
    return 0;
}

static ddpm_result bench(const cli_context *context)
{
    bench_machine machine;
    ddpm_result result = set.growth != NULL ? cli_can_write_png(set.growth) : DDPM_OK;
    if (result == DDPM_OK) result = bench_measure_machine(context->device.threads, &machine);
    if (result != DDPM_OK) return result;
    if (set.growth != NULL) return bench_growth(context, &machine);
    if (set.json) {
        cJSON *all = cJSON_CreateObject();
        result = print_json(context, &machine, all);
        cJSON_Delete(all);
        return result;
    }
    printf("machine: multiply-add peak %.1f GFLOP/s on %d thread%s, %.1f on one (%s); triad %.1f GB/s\n",
           machine.peak_gflops, context->device.threads, context->device.threads == 1 ? "" : "s", machine.core_gflops,
           machine.isa, machine.bandwidth_gbs);
    fflush(stdout);
    if (set.only == NULL || find_work(set.only) != NULL) result = bench_work_table(context, &machine);
    fflush(stdout);
    if (result == DDPM_OK && (set.only == NULL || is_operation(set.only))) result = bench_row_table(context, &machine);
    return result;
}

static int run(const cli_context *context)
{
    if (set.only != NULL && find_work(set.only) == NULL && (set.json || !is_operation(set.only))) {
        fprintf(stderr, "ddpm: bench: --only: there is no work '%s'. There are:", set.only);
        for (int i = 0; i < WORKS; i++)
            fprintf(stderr, " %s", works[i].name);
        for (int op = 0; op < DDPM_OP_COUNT && !set.json; op++)
            fprintf(stderr, " %s", ddpm_op_name((ddpm_op)op));
        fprintf(stderr, "\n");
        return CLI_USAGE;
    }
    return cli_exit(bench(context));
}

const cli_command cli_bench = {
    "bench",
    "[--json] [--only NAME] [--model tiny|small|lab|any] [--batch N] [--quick] [--growth OUT.png]",
    "measures the operations and whole steps beside the machine's peak",
    "Work: lab_forward_b1, lab_forward_b8, lab_train_b4, lab_train_b8, small_forward_b32, small_train_b32,\n"
    "tiny_forward_b32, tiny_train_b32. --json without --only runs the first six.",
    options,
    run,
    NULL};
