/* tests/test_run.c - a run directory can be relied on: a run that was stopped, killed or out of disk space and resumed
 * ends with the same bits as one that ran through. `test_run N` kills N times instead of three (check_long.sh).
 *
 * Contents: 1 runs to compare   2 stopped and resumed   3 killed   4 refused   5 what stays
 *           6 seeing it learn */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli/run.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "io/model.h"
#include "io/picture.h"
#include "tests/program.h"

/* ---- 1. Runs to compare -------------------------------------------------------------------------------------- */

static int kills = 3;

/* 24 pictures of 8x8, 3 of them held out, three steps an epoch of 8, 8 and 5 pictures, eight epochs; everything that a
 * state could forget is switched on. */
#define SETTINGS                                                                                                       \
    "train @/data --model @/config.json --batch-size 8 --micro-batch 3 --epochs 8 --lr 1e-2 --lr-schedule cosine "     \
    "--warmup 4 --weight-decay 0.1 --cond-drop 0.3 --snr-gamma 5 --held-out 3 --eval-every 2 --save-every 3 "          \
    "--workers 1 "

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

/* In memory where that is possible: how long a disk takes to sync is no subject here. */
static int make_runs(void **state)
{
    if (getenv("TMPDIR") == NULL && access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 1);
    setenv("OMP_NUM_THREADS", "1", 1); /* a network this small gains nothing from more, a busy machine loses by them */
    if (make_folder(state) != 0) return -1;
    make_small_lab();
    assert_runs(SETTINGS "--out @/straight");
    return 0;
}

static void assert_same_file(const char *one, const char *other, const char *name)
{
    unsigned char *a, *b;
    size_t a_size, b_size;
    char path[600];
    snprintf(path, sizeof path, "%s/%s", one, name);
    assert_int_equal(io_read_file(in_folder(path), &a, &a_size), DDPM_OK);
    snprintf(path, sizeof path, "%s/%s", other, name);
    assert_int_equal(io_read_file(in_folder(path), &b, &b_size), DDPM_OK);
    if (a_size != b_size || memcmp(a, b, a_size) != 0) fail_msg("%s and %s differ in %s", one, other, name);
    free(a);
    free(b);
}

/* Weights, moments, average, metrics: all that training makes. */
static void assert_same_run(const char *one, const char *other)
{
    static const char *const file[] = {"metrics.csv",
                                       "latest/unet/diffusion_pytorch_model.safetensors",
                                       "latest/unet_live/diffusion_pytorch_model.safetensors",
                                       "latest/label_encoder/model.safetensors",
                                       "latest/label_encoder_live/model.safetensors",
                                       "latest/optimizer/exp_avg.safetensors",
                                       "latest/optimizer/exp_avg_sq.safetensors",
                                       "latest/model_index.json",
                                       "best/unet/diffusion_pytorch_model.safetensors"};
    for (size_t i = 0; i < sizeof file / sizeof file[0]; i++)
        assert_same_file(one, other, file[i]);
    for (int i = 0; i < 4; i++) {
        static const char *const link[] = {"latest", "best", "training_best", "epoch=7"};
        uint64_t step = cli_run_linked(in_folder(one), link[i]);
        assert_true(step > 0 && step == cli_run_linked(in_folder(other), link[i]));
    }
}

static uint64_t newest(const char *run)
{
    char *path;
    uint64_t step;
    assert_int_equal(io_checkpoint_newest(in_folder(run), &path, &step), DDPM_OK);
    free(path);
    return step;
}

/* Everything that looks like a checkpoint is one: it loads. */
static void assert_readable(const char *run)
{
    ddpm_model_config config;
    ddpm_model *model;
    char *path;
    uint64_t step;
    assert_int_equal(io_checkpoint_newest(in_folder(run), &path, &step), DDPM_OK);
    if (path == NULL) return;
    assert_int_equal(io_model_read_config(path, &config, NULL, NULL), DDPM_OK);
    assert_int_equal(ddpm_model_create(&model, &config, NULL), DDPM_OK);
    assert_int_equal(ddpm_model_alloc(model, DDPM_FOR_TRAINING), DDPM_OK);
    if (io_checkpoint_load(path, model) != DDPM_OK) fail_msg("%s", ddpm_error());
    ddpm_model_free(model);
    free(path);
}

/* ---- 2. Stopped and resumed ---------------------------------------------------------------------------------- */

/* Within an epoch, at its end, and once more. */
static void test_max_steps(void **state)
{
    (void)state;
    assert_runs(SETTINGS "--epochs 8 --out @/stopped --max-time 1e-9");
    assert_has(err, "stopped by --max-time before the first step");
    assert_int_equal(newest("stopped"), 0); /* no time at all: no step, nothing to save */
    assert_runs("train --resume --out @/stopped --max-time 0.0001");
    uint64_t first = newest("stopped");
    assert_true(first >= 1 && first < 24);
    assert_runs("train --resume --out @/stopped --threads 2 --max-time 0.001");
    assert_true(newest("stopped") > first);
    assert_runs("train --resume --out @/stopped --max-time 0 --save-steps 2");
    assert_same_run("straight", "stopped");
    assert_runs("train --resume --out @/stopped"); /* has nothing left to do */
    assert_same_run("straight", "stopped");
    shell("rm -r @/stopped");
}

/* Rows of RUN/timing.csv with its header: a step more, a row more. */
static size_t rows(const char *run)
{
    char name[100];
    unsigned char *text;
    size_t size, lines = 0;
    snprintf(name, sizeof name, "%s/timing.csv", run);
    if (!io_is_file(in_folder(name)) || io_read_file(in_folder(name), &text, &size) != DDPM_OK) return 0;
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    free(text);
    return lines;
}

static void wait_for_rows(const char *run, size_t wanted)
{
    for (int i = 0; i < 6000; i++) {
        if (rows(run) >= wanted) return;
        sleep_ms(10);
    }
    fail_msg("%zu rows instead of %zu within a minute", rows(run), wanted);
}

/* Each twice in quick succession, as timeout(1) sends them; in the second half while pictures are drawn. */
static void test_signals(void **state)
{
    (void)state;
    static const int number[] = {SIGTERM, SIGINT, SIGHUP};
    pid_t child = start(SETTINGS "--out @/signalled --save-steps 2 --sample-every 4");
    for (int i = 0; i < 3; i++) {
        wait_for_rows("signalled", i == 0 ? 2 : rows("signalled") + 1);
        kill(child, number[i]);
        sleep_ms(5);
        kill(child, number[i]);
        int status = finish(child);
        if (status != 0) fail_msg("exit status %d, it said:\n%s", status, err);
        assert_has(out, "/signalled\n");
        child = start("train --resume --out @/signalled");
    }
    assert_int_equal(finish(child), 0);
    assert_same_run("straight", "signalled");
    for (int step = 4; step <= 24; step += 4) {
        char name[100];
        snprintf(name, sizeof name, "signalled/samples/step-%d.png", step);
        assert_picture(name, 8 * 10 + 2, 2 * 10 + 2);
    }
    shell("cp @/signalled/samples/step-24.png @/whole.png; rm @/signalled/samples/step-24.png");
    assert_runs("train --resume --out @/signalled"); /* stopped before it was drawn: it is drawn now */
    assert_has(err, "all 24 steps were done already; a larger --epochs goes on from there");
    shell("cmp @/whole.png @/signalled/samples/step-24.png; rm -r @/signalled");
}

/* Before the first step there is nothing to save, and nothing to wait for. */
static void test_early_signal(void **state)
{
    (void)state;
    shell("rm -f @/stderr"); /* of the run before: what is read below must be this one's */
    pid_t child = start(SETTINGS "--out @/early --model small --resolution 32 --batch-size 16 --micro-batch 16");
    for (int i = 0; i < 6000; i++) { /* until it is about to measure a step, which takes a while */
        unsigned char *text;
        size_t size;
        sleep_ms(10);
        if (io_read_file(in_folder("stderr"), &text, &size) != DDPM_OK) continue;
        int begun = strstr((char *)text, "warning fewer") != NULL;
        free(text);
        if (begun) break;
    }
    kill(child, SIGTERM);
    assert_int_equal(finish(child), 0);
    assert_has(err, "stopped before the first step: there is nothing to save");
    assert_false(io_is_directory(in_folder("early")));
}

/* The reader of a pipe may end before the run does, as tee when a terminal is closed. */
static void test_nobody_reads(void **state)
{
    (void)state;
    char command[1400];
    snprintf(command, sizeof command, "\"%s\" " SETTINGS "--out @/piped 2>&1 | head -n 2 > @/read", program);
    shell(command);
    assert_same_run("straight", "piped");
}

/* ---- 3. Killed ----------------------------------------------------------------------------------------------- */

/* Every second step is saved, so that a kill often meets a save. */
static void test_kill(void **state)
{
    (void)state;
    uint64_t last = 0;
    assert_runs(SETTINGS "--save-steps 2 --out @/killed --max-time 1e-9");
    for (int i = 0; i < kills; i++) {
        pid_t child = start("train --resume --out @/killed --max-time 0");
        uint32_t wait = ddpm_uniform_int((ddpm_address){(uint64_t)getpid(), (uint64_t)i, 0, DDPM_RANDOM_USER}, 1500);
        sleep_ms((long)wait);
        kill(child, SIGKILL);
        finish(child);
        assert_readable("killed");
        assert_true(newest("killed") >= last); /* nothing that was saved is lost */
        last = newest("killed");
    }
    assert_runs("train --resume --out @/killed --max-time 0");
    assert_same_run("straight", "killed");
    shell("! ls -a @/killed | grep -E '^[.](tmp|old|link)-' || exit 1; rm -r @/killed");
}

/* No file may grow beyond 16 KiB: what a full disk looks like, on any machine. */
static void test_full_disk(void **state)
{
    (void)state;
    assert_runs(SETTINGS "--out @/full --max-time 0.0001");
    uint64_t step = newest("full");
    assert_int_equal(run_with("ulimit -f 32;", "train --resume --out @/full --max-time 0"), 1);
    assert_has(err, " is), training goes on: ");
    assert_has(err, "the end, step 24, is not saved; with room for it ddpm train --resume ");
    assert_has(err, "the disk is full");
    assert_int_equal(newest("full"), step);
    assert_readable("full");
    assert_runs("train --resume --out @/full --max-time 0");
    assert_same_run("straight", "full");
}

/* ---- 4. Refused ---------------------------------------------------------------------------------------------- */

static void test_lock(void **state)
{
    (void)state;
    pid_t child = start(SETTINGS "--out @/locked --epochs 1000 --save-steps 1");
    wait_for_rows("locked", 2);
    assert_int_equal(run("train --resume --out @/locked"), 1);
    assert_has(err, "is training this run");
    char holder[40];
    snprintf(holder, sizeof holder, "another process (%ld)", (long)child);
    assert_has(err, holder);
    kill(child, SIGKILL);
    finish(child);
    assert_runs("train --resume --out @/locked --max-time 1e-9"); /* a dead process holds nothing */
}

static void test_changed_settings(void **state)
{
    (void)state;
    assert_fails(1, "train --resume --out @/straight --batch-size 7 --lr 1e-3 --workers 3",
                 "the run has other settings: --batch-size, --lr\n      hint: leave them out");
    assert_fails(1, "train --resume --out @/straight --epochs 9", "other settings: --epochs"); /* the cosine's end */
    assert_fails(1, "train --resume --out @/straight --model tiny --force", "other settings: --model");
    assert_fails(1, "train @/data --out @/straight", "--resume goes on with it");
    assert_fails(1, "train --resume --out @/nowhere", "there is no run to go on with");
    assert_runs("train --resume --out @/straight --batch-size 8 --epochs 8 --cond-drop 0.3"); /* the same: no change */
    assert_runs("train --resume --out @/straight --backend reference");
    assert_has(err, "note    the run was computed by backend cpu, ");
    shell("cp -r @/straight @/forced; cp -r @/data @/fewer; sed -i '1,3d; 4s/^ /{/' @/fewer/train.json");
    assert_fails(1, "train @/fewer --resume --out @/forced", "the data has 21 pictures, the run began with 24");
    assert_runs("train @/data --resume --out @/forced --batch-size 24 --epochs 9 --force");
    assert_has(err, "changed --epochs, --batch-size");
    assert_int_equal(newest("forced"), 25);
    shell("echo '{' > @/forced/step-25/training.json");
    assert_fails(1, "train --resume --out @/forced", "training.json");
    shell("sed 's/\"position\"/\"posture\"/' @/straight/latest/training.json > @/forced/step-25/training.json");
    assert_fails(1, "train --resume --out @/forced", "does not say where the run stands");
}

/* ---- 5. What stays ------------------------------------------------------------------------------------------- */

/* The newest two can be continued from; of the older ones the links' are models, the rest is gone. */
static void test_keep(void **state)
{
    (void)state;
    assert_runs(SETTINGS "--out @/kept --save-steps 1 --keep 2 --max-steps 7");
    assert_true(io_is_file(in_folder("kept/step-7/training.json")));
    assert_true(io_is_file(in_folder("kept/step-6/training.json")));
    assert_false(io_is_directory(in_folder("kept/step-5")));
    assert_true(io_is_file(in_folder("kept/epoch=0/unet/config.json")));
    assert_false(io_is_file(in_folder("kept/epoch=0/training.json")));
    assert_false(io_is_directory(in_folder("kept/epoch=0/optimizer")));
    assert_false(io_is_directory(in_folder("kept/epoch=0/unet_live")));
    assert_runs("train --resume --out @/kept --keep 0 --max-steps 10 --force");
    for (int step = 6; step <= 10; step++) {
        char name[100];
        snprintf(name, sizeof name, "kept/step-%d/optimizer/exp_avg.safetensors", step);
        assert_true(io_is_file(in_folder(name)));
    }
}

/* A model's directory as a source of weights: its own, with other classes, with its configs alone. */
static void test_fine_tune(void **state)
{
    (void)state;
    assert_runs("train @/data --out @/tuned --model @/straight --lr 0 --epochs 1 --batch-size 24 --workers 1");
    assert_has(err, "/straight/step-"); /* what best points at */
    assert_has(err, ": its weights; Adam's moments start at zero");
    assert_same_file("tuned", "straight", "best/unet/diffusion_pytorch_model.safetensors"); /* a rate of 0 */
    shell(
        "mkdir @/two; cp @/data/CLEVR_train_000000_0.png @/two; echo '{\"ball\": 0, \"box\": 1}' > @/two/objects.json; "
        "echo '{\"CLEVR_train_000000_0.png\": [\"box\"]}' > @/two/train.json");
    assert_runs("train @/two --out @/other --model @/straight/best --lr 0 --epochs 1 --batch-size 1 --workers 1");
    assert_has(err, "the data has other classes, so the label encoder is made anew");
    assert_same_file("other", "straight", "best/unet/diffusion_pytorch_model.safetensors");
    assert_fails(1, "train @/two --resume --out @/straight --force", "the data has other classes than the run");
    assert_runs(
        "train @/data --out @/fresh --model @/straight/best/model_index.json --lr 0 --epochs 1 --batch-size 24");
    assert_null(strstr(err, "its weights"));
}

static void test_pixel_unshuffle(void **state)
{
    (void)state;
    assert_runs("train @/data --out @/pixels --model tiny --pixel-unshuffle 4 --resolution 32 --epochs 1 "
                "--batch-size 24 --workers 1");
    assert_has(err, "tiny at 32x32");
    ddpm_model_config config;
    assert_int_equal(io_model_read_config(in_folder("pixels/best"), &config, NULL, NULL), DDPM_OK);
    assert_int_equal(config.pixel_unshuffle, 4);
    assert_int_equal(config.unet.in_channels, 48);
    assert_int_equal(config.unet.out_channels, 48);
    assert_int_equal(config.unet.sample_size[0], 8);
    assert_runs("sample 'red cube' --model @/pixels --steps 1 --n 1 --out @/pixels.png");
    assert_picture("pixels.png", 32, 32);
    assert_fails(1, "train @/data --out @/new --model @/pixels --pixel-unshuffle 2", "its pixel_unshuffle is 4");
}

/* args.json of one run makes another that is the same; what is given goes before it. */
static void test_args(void **state)
{
    (void)state;
    assert_runs("train --args @/straight/args.json --out @/again");
    assert_same_run("straight", "again");
    shell("echo '{\"batch_size\": 24, \"milestones\": [1, 2], \"resolution\": [16, 8], \"seed\": \"9007199254740993\", "
          "\"lr_schedule\": \"constant\", \"image_dir\": null}' > @/some.json");
    assert_runs("train @/data --args @/some.json --model @/config.json --epochs 1 --workers 1 --out @/some");
    assert_has(err, "at 16x8");
    char *text = NULL;
    read_back("some/args.json", &text);
    assert_has(text, "9007199254740993");
    free(text);
    assert_fails(1, "train @/data --args @/data/train.json --out @/new", "train.json: it holds no setting");
    shell("echo '{\"batch_size\": \"many\"}' > @/some.json");
    assert_fails(1, "train @/data --args @/some.json --out @/new", "batch_size: 'many' is not a whole number");
    shell("echo '{\"batch_size\": {}}' > @/some.json");
    assert_fails(1, "train @/data --args @/some.json --out @/new", "batch_size: this is not the kind of value");
}

/* ---- 6. Seeing it learn -------------------------------------------------------------------------------------- */

/* The columns of the last row of metrics.csv, as text. */
static int last_row(const char *run, char *text, size_t size, char **column)
{
    unsigned char *all;
    size_t length;
    char name[100];
    int columns = 0;
    snprintf(name, sizeof name, "%s/metrics.csv", run);
    assert_int_equal(io_read_file(in_folder(name), &all, &length), DDPM_OK);
    all[length - 1] = '\0';
    snprintf(text, size, "%s", strrchr((char *)all, '\n') + 1);
    free(all);
    for (char *at = text; at != NULL; columns++) {
        column[columns] = at;
        at = strchr(at, ',');
        if (at != NULL) *at++ = '\0';
    }
    return columns;
}

/* At a rate of 0 live and averaged weights stay what they were: both held-out losses are equal, the same in every
 * epoch, and both rows of samples/ show the same. For another batch size convolutions may be computed by another
 * algorithm: their results are 1e-6 of the largest value apart (tests/test_cpu.c), some ten of them in a row 1e-5,
 * and so is a mean square. */
static void test_watching(void **state)
{
    (void)state;
    char text[2][600], *column[2][32];
    assert_runs("train @/data --out @/seen --model @/config.json --lr 0 --epochs 2 --batch-size 16 --held-out 8 "
                "--sample-every 2 --show --workers 1");
    assert_runs("train @/data --out @/seen2 --model @/config.json --lr 0 --epochs 1 --batch-size 5 --held-out 8 "
                "--workers 1");
    for (int i = 0; i < 2; i++)
        assert_int_equal(last_row(i == 0 ? "seen" : "seen2", text[i], sizeof text[i], column[i]), 17);
    assert_string_equal(column[0][0], "2"); /* 24 - 8 pictures are one step an epoch */
    assert_string_equal(column[1][0], "4");
    assert_true(strtod(column[0][15], NULL) > 0.5);
    assert_string_equal(column[0][15], column[0][16]);
    double held_out = strtod(column[0][15], NULL);
    assert_true(fabs(strtod(column[1][15], NULL) - held_out) <= 1e-5 * held_out);
    assert_picture("seen/samples/step-2.png", 8 * 10 + 2, 2 * 10 + 2);
    io_picture grid;
    assert_int_equal(io_picture_read(in_folder("seen/samples/step-2.png"), 3, &grid), DDPM_OK);
    for (int y = 0; y < 10; y++)
        assert_memory_equal(grid.pixel + (size_t)y * 82 * 3, grid.pixel + (size_t)(y + 10) * 82 * 3, (size_t)82 * 3);
    io_picture_free(&grid);
    assert_null(strstr(err, "\033[")); /* no terminal, no colours */
    /* Two pictures of 8x8 in a grid are 22x12: six lines of 22 half blocks, the first of the black frame. */
    assert_runs("sample 'red cube' --model @/seen --steps 1 --n 2 --show --out @/shown.png");
    const char *at = strstr(err, "\033[38;2;0;0;0m\033[48;2;0;0;0m\xe2\x96\x80");
    int blocks = 0, lines = 0;
    assert_non_null(at);
    for (const char *c = at; (c = strstr(c, "\xe2\x96\x80")) != NULL; c++)
        blocks++;
    for (const char *c = at; (c = strstr(c, "\033[0m\n")) != NULL; c++)
        lines++;
    assert_true(blocks == 6 * 22 && lines == 6);
}

/* What a run would take is said without making it; so is what runs without --out. */
static void test_dry_run(void **state)
{
    (void)state;
    assert_runs("train @/data --model @/config.json --dry-run --batch-size 10 --epochs 7");
    assert_has(err, "48,939 parameters");
    assert_has(err, "warning fewer than 1,000 pictures");
    assert_has(err, "memory  ");
    assert_has(err, " an epoch of 3 steps; 21 steps to go take ");
    assert_string_equal(out, "");
    assert_runs("train --resume --out @/straight --dry-run");
    assert_has(err, " 0 steps to go take ");
    assert_fails(2, "train @/data", "--out is missing");
    assert_fails(1, "train @/data --dry-run --model @/config.json --held-out 24", "24 pictures are to be held out");
    assert_runs("train @/data --model @/config.json --dry-run --held-out 3 --overfit 8");
    assert_has(err, "data    8 of the 24 pictures are trained on, 3 are held out");
    assert_fails(1, "train @/data --dry-run --model @/config.json --grad-accum 2 --micro-batch 4",
                 "leave one of them out");
    assert_fails(1, "train @/data --dry-run --model @/config.json --grad-accum 9 --batch-size 8",
                 "no more than 8 parts");
}

/* Four pictures learnt by heart: the loss falls where nothing else is to be learnt. */
static void test_overfit(void **state)
{
    (void)state;
    static char text[600], *column[32];
    assert_runs("train @/data --out @/heart --model @/config.json --overfit 4 --batch-size 4 --lr 3e-3 --max-steps 150 "
                "--lr-schedule constant --save-every 1000 --keep 1");
    assert_int_equal(last_row("heart", text, sizeof text, column), 17);
    assert_string_equal(column[0], "150");
    assert_string_equal(column[1], "149");      /* a step an epoch */
    assert_true(strtod(column[3], NULL) < 0.6); /* 1 is the loss of a network that says 0 */
}

/* Each process writes an event file of its own: what TensorBoard reads out of them, tests/parity/run.py asks it. */
static void test_log_dir(void **state)
{
    (void)state;
    assert_runs(SETTINGS "--out @/logged --log-dir @/log --lr-schedule constant --max-steps 2");
    assert_runs("train --resume --out @/logged --log-dir @/log --max-steps 5");
    shell("test $(ls @/log/events.out.tfevents.* | wc -l) = 2");
    shell("test $(cat @/log/events.out.tfevents.* | grep -ao loss/train | wc -l) = 5");
    shell("test $(cat @/log/events.out.tfevents.* | grep -ao grad_norm | wc -l) = 5");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_max_steps),
        cmocka_unit_test(test_signals),
        cmocka_unit_test(test_early_signal),
        cmocka_unit_test(test_nobody_reads),
        cmocka_unit_test(test_kill),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_lock),
        cmocka_unit_test(test_changed_settings),
        cmocka_unit_test(test_keep),
        cmocka_unit_test(test_fine_tune),
        cmocka_unit_test(test_pixel_unshuffle),
        cmocka_unit_test(test_args),
        cmocka_unit_test(test_watching),
        cmocka_unit_test(test_dry_run),
        cmocka_unit_test(test_overfit),
        cmocka_unit_test(test_log_dir),
    };
    if (argc > 1) kills = atoi(argv[1]);
    return cmocka_run_group_tests_name("run", tests, make_runs, remove_folder);
}
