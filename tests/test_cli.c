/* tests/test_cli.c - the program as its users meet it: every command run as a process, its exit status, stdout,
 * stderr and files.
 *
 * Contents: 1 help   2 usage errors and aliases   3 the whole way, once for all tests below   4 pictures
 *           5 predict   6 info   7 bad input   8 check-grad, selftest, bench */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "cli/cli.h"
#include "io/file.h"
#include "io/model.h"
#include "io/picture.h"
#include "io/safetensors.h"
#include "lab/evaluator.h"
#include "tests/program.h"

/* ---- 1. Help ------------------------------------------------------------------------------------------------- */

static const cli_command *const commands[] = {
    &cli_render,          &cli_train, &cli_sample,  &cli_test,       &cli_eval,  &cli_nearest, &cli_explain,
    &cli_train_evaluator, &cli_info,  &cli_predict, &cli_check_grad, &cli_bench, &cli_export,  &cli_selftest};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

static void assert_lists_option(const cli_option *o)
{
    char text[100];
    snprintf(text, sizeof text, "--%s", o->name);
    assert_has(out, text);
    if (o->argument != NULL) assert_has(out, o->argument);
    for (const char *alias = o->aliases; alias != NULL && *alias != '\0'; alias += strspn(alias, " ")) {
        snprintf(text, sizeof text, "--%.*s", (int)strcspn(alias, " "), alias);
        assert_has(out, text);
        alias += strcspn(alias, " ");
    }
    if (o->fallback != NULL && o->fallback[0] != '(') {
        snprintf(text, sizeof text, "%s)", o->fallback);
        assert_has(out, text);
    }
}

static void test_help_mentions_every_option(void **state)
{
    (void)state;
    for (int i = 0; i < COMMANDS; i++) {
        char arguments[100];
        snprintf(arguments, sizeof arguments, "%s --help", commands[i]->name);
        assert_runs(arguments);
        assert_string_equal(err, "");
        assert_has(out, commands[i]->usage);
        for (const cli_option *o = commands[i]->option; o->name != NULL; o++)
            assert_lists_option(o);
        assert_has(out, "--backend reference|cpu|cuda");
        assert_has(out, "--threads");
        char *first = strdup(out);
        snprintf(arguments, sizeof arguments, "help %s", commands[i]->name);
        assert_runs(arguments);
        assert_string_equal(out, first);
        free(first);
    }
}

static void test_program_help(void **state)
{
    (void)state;
    assert_runs("--help");
    for (int i = 0; i < COMMANDS; i++)
        assert_has(out, commands[i]->summary);
    assert_runs("help");
    assert_runs("--version");
    assert_has(out, "ddpm ");
    assert_int_equal(run(""), 2);
    assert_string_equal(out, "");
    assert_has(err, "usage: ddpm COMMAND");
}

/* ---- 2. Usage errors and aliases ----------------------------------------------------------------------------- */

static void test_unknown_names(void **state)
{
    (void)state;
    assert_fails(2, "smaple x", "did you mean 'sample'?");
    for (int i = 0; i < COMMANDS; i++)
        assert_has(err, commands[i]->name);
    assert_fails(2, "help check-grda", "did you mean 'check-grad'?");
    assert_fails(2, "train --epoch 3", "unknown option --epoch\n      hint: did you mean --epochs?");
    assert_fails(2, "train --bacth-size=3", "did you mean --batch-size?");
    assert_fails(2, "sample --thread 1", "did you mean --threads?");
    assert_fails(2, "train --num_epoc 3", "did you mean --num_epoch?");
    assert_fails(2, "sample -n 3", "options begin with two dashes: --n");
    assert_has(err, "ddpm sample --help");
    assert_string_equal(out, "");
}

static void test_wrong_values(void **state)
{
    (void)state;
    assert_fails(2, "train --epochs 1e3", "--epochs: '1e3' is not a whole number");
    assert_fails(2, "train --epochs 3x", "is not a whole number");
    assert_fails(2, "train --epochs ' 3'", "is not a whole number");
    assert_fails(2, "train --epochs ''", "is not a whole number");
    assert_fails(2, "train --epochs 0", "is outside 1 to");
    assert_fails(2, "train --epochs 99999999999999999999", "is outside");
    assert_fails(2, "train --lr nan", "--lr: 'nan' is not a number");
    assert_fails(2, "train --lr 1e-4x", "is not a number");
    assert_fails(2, "train --gamma 1.5", "is outside 0 to 1");
    assert_fails(2, "train --seed -1", "is not a whole number");
    assert_fails(2, "train --beta-schedule cosine", "is not one of squaredcos_cap_v2|linear");
    assert_fails(2, "train --milestones 15,x", "is not a whole number");
    assert_fails(2, "train --milestones 15,,20", "is not a whole number");
    assert_fails(2, "render --size 320x", "is not a size");
    assert_fails(2, "render --size 3x3", "is outside 4 to 4096");
    assert_fails(2, "train --epochs", "--epochs needs a value");
    assert_fails(2, "train --out --epochs 3", "--out needs a value");
    assert_fails(2, "sample --strip=1", "--strip takes no value");
    assert_fails(2, "sample red sphere", "unexpected argument 'sphere'");
    assert_fails(2, "sample 'red cube' --labels-file x", "exclude each other");
    assert_fails(2, "train DATA", "--out is missing");
    assert_fails(2, "train --out RUN", "DATA is missing");
    assert_fails(2, "predict --in x --model y", "--out is missing");
    assert_fails(2, "info lab --backend gpu", "is not one of reference|cpu|cuda");
    assert_fails(2, "info lab --threads 0", "is outside 1");
}

/* Every alias of the design, each before a --help that ends the run: an unknown one would be exit status 2. */
static void test_aliases(void **state)
{
    (void)state;
    static const char *const line[] = {
        "train --epochs 3 --num_epochs 3 --num_epoch 3 --num-epoch=3",
        "train --lr 1e-3 --learning_rate 1e-3 --learning-rate=0.1",
        "train --out x --output_dir x --save_root x",
        "train --data x --data-root x --data_root x --train_data_dir x",
        "train --timesteps 10 --time_step 10 --ddpm_num_steps 10",
        "train --beta-schedule linear --ddpm_beta_schedule linear",
        "train --save-every 1 --save_per_epoch 1 --save_model_epochs 1",
        "train --workers 1 --num_workers 1 --dataloader_num_workers 1",
        "train --model tiny --weight_path x --weights x",
        "train --batch_size 3 --batch-size 3",
        "sample --weight_path x --weights x",
        "test --test_type new_test --test-type=test --time_step 10 --data_root x --save_root y",
        "train --backend cuda --device cpu",
        "train --milestones 1,2,3 --lr_schedule constant --max_grad_norm 0 --ema-decay 0.99",
        "train --resolution 32x16 --micro_batch 2",
        "check_grad",
        "sample --seed 18446744073709551615"};
    for (size_t i = 0; i < sizeof line / sizeof line[0]; i++) {
        char arguments[300];
        snprintf(arguments, sizeof arguments, "%s --help", line[i]);
        assert_runs(arguments);
    }
}

static void test_backends(void **state)
{
    (void)state;
    assert_fails(1, "info tiny --backend cuda", "backend 'cuda' is not in this build");
    assert_fails(1, "info tiny --isa mmx", "hint: baseline, avx2, avx512");
    assert_runs("info tiny --backend=cpu --isa baseline");
    assert_has(err, "backend cpu, ");
    assert_has(err, "baseline");
    assert_runs("info tiny --backend reference --threads 1");
    assert_has(err, "backend reference, 1 thread, ");
    assert_null(strstr(out, "backend")); /* stdout holds results only */
}

/* ---- 3. The whole way, once for all tests below -------------------------------------------------------------- */

static void test_render(void **state)
{
    (void)state;
    io_picture picture;
    assert_runs("render --out @/data --scenes 8 --size 64x48 --seed 3");
    assert_has(err, "24 pictures of 64x48");
    assert_has(out, "/data\n");
    assert_int_equal(io_picture_read(in_folder("data/CLEVR_train_000007_2.png"), 3, &picture), DDPM_OK);
    assert_int_equal(picture.width, 64);
    assert_int_equal(picture.height, 48);
    io_picture_free(&picture);
    assert_true(io_is_file(in_folder("data/train.json")));
    assert_fails(1, "render --out @/data --scenes 9 --size 64x48", "hint:");
}

/* Scenes 6 and 7 are held out: 6 pictures of 12 objects. An evaluator of two channels learns nothing in 3 steps, but
 * its figures are those that eval finds for the same pictures. */
static void test_evaluator(void **state)
{
    (void)state;
    assert_runs("train-evaluator @/data --out @/evaluator --epochs 1 --batch-size 6 --held-out 2 --width 0.03125 "
                "--resolution 32 --dtype f16");
    assert_has(err, "24 pictures, 24 classes, multi-label, from train.json: 18 to train on, 6 (of 2 scenes) held out");
    assert_has(err, "epoch 0: loss");
    assert_has(out, "accuracy (mean of pictures): 0.");
    assert_has(out, "accuracy (pooled objects): 0.");
    assert_has(out, "Wilson, 6 pictures)");
    assert_has(out, "Wilson, 12 objects)");
    char *figures = strdup(strstr(out, "accuracy (mean"));
    shell("sed -n '/CLEVR_train_00000[67]/p' @/data/train.json | sed '1s/^/{/;$s/[,}]*$/}/' "
          "> @/two.json");
    assert_runs("eval --images @/data --labels-file @/two.json --evaluator @/evaluator");
    assert_string_equal(out, figures);
    free(figures);
    assert_has(out, "missed               named instead        times");
    assert_runs("render --out @/drawn --labels-file data/test.json --size 32x24");
    assert_runs("eval --images @/drawn --labels-file data/test.json --evaluator @/evaluator");
    assert_has(out, "Wilson, 32 pictures)");
    assert_has(out, "Wilson, 72 objects)");
    assert_fails(1, "eval --images @/drawn --labels-file data/objects.json --evaluator @/evaluator", "hint:");
    assert_fails(1, "eval --images @/data --labels-file data/test.json --evaluator @/evaluator", "0.png");
    assert_fails(1, "eval --images @/data --labels-file data/test.json --evaluator @/data",
                 "train-evaluator makes one");
    assert_fails(1, "train-evaluator @/data --out @/other --held-out 7", "hint:");
    /* Without learning (--lr 0) only the statistics move, and hardly in one epoch. */
    assert_runs(
        "train-evaluator @/data --out @/again --model @/evaluator --lr 0 --epochs 1 --batch-size 6 --held-out 2 "
        "--width 0.03125 --resolution 32");
    lab_evaluator *ev[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(lab_evaluator_load(in_folder(i ? "again" : "evaluator"), NULL, &ev[i]), DDPM_OK);
    const ddpm_tensor *a = ddpm_model_find(ev[0]->model, "fc.0.weight"), *b = ddpm_model_find(ev[1]->model, a->name);
    assert_memory_equal(a->data, b->data, ddpm_elements(a, 1) * sizeof *a->data);
    for (int i = 0; i < 2; i++)
        lab_evaluator_free(ev[i]);
    assert_fails(1, "train-evaluator @/data --out @/other --model @/evaluator --batch-size 6 --held-out 2",
                 "--width 0.03125");
}

/* 24 pictures in batches of 10: steps of 10, 10 and 4. */
static void test_train(void **state)
{
    (void)state;
    assert_runs("train @/data --out @/run --model tiny --resolution 16 --epochs 2 --batch-size 10 --micro-batch 4 "
                "--save-every 2");
    assert_has(err, "24 pictures, 24 classes");
    assert_has(err, "712,419 parameters"); /* 702,499 of the network + 24*64+64 + 64*128+128 of the label encoder */
    assert_has(err, "memory");
    assert_has(err, "epoch 0: loss");
    assert_has(err, "epoch 1: loss");
    assert_has(out, "/run\n");
    for (int i = 0; i < 4; i++) {
        static const char *const link[] = {"best", "latest", "epoch=0", "epoch=1"};
        char name[100], target[100] = "";
        snprintf(name, sizeof name, "run/%s", link[i]);
        assert_true(readlink(in_folder(name), target, sizeof target - 1) > 0);
        assert_int_equal(strncmp(target, "step-", 5), 0); /* relative: a run can be moved */
        snprintf(name, sizeof name, "run/%s/unet/diffusion_pytorch_model.safetensors", link[i]);
        assert_true(io_is_file(in_folder(name)));
    }
    assert_true(io_is_directory(in_folder("run/step-3")) && io_is_directory(in_folder("run/step-6")));
    assert_true(io_is_file(in_folder("run/loss.png")));
}

/* ",a,b,,c..." for the tenths of [0,T), then two commas: no held-out losses. The step's loss, the mean over its
 * pictures, lies between the least and the greatest tenth. */
static void assert_tenths(const char *text, double loss)
{
    double least = 1e9, greatest = 0;
    int columns = 0;
    for (; *text == ','; columns++) {
        char *end;
        double value = strtod(++text, &end);
        if (end != text && value < least) least = value;
        if (end != text && value > greatest) greatest = value;
        text = end;
    }
    assert_int_equal(columns, 12);
    assert_int_equal(*text, '\0');
    assert_true(least <= loss * (1 + 1e-8) && loss <= greatest * (1 + 1e-8)); /* nine digits are written */
}

/* Every file has the step first; what takes time is in a file of its own, so that metrics.csv can be compared. */
static void test_metrics(void **state)
{
    (void)state;
    char *text = NULL;
    read_back("run/metrics.csv", &text);
    char *line = strtok(text, "\n");
    assert_has(line, "step,epoch,lr,loss,grad_norm,loss_t0,");
    int rows = 0;
    for (; (line = strtok(NULL, "\n")) != NULL; rows++) {
        int step, epoch, length;
        double lr, loss, norm;
        assert_int_equal(sscanf(line, "%d,%d,%lf,%lf,%lf%n", &step, &epoch, &lr, &loss, &norm, &length), 5);
        assert_tenths(line + length, loss);
        assert_int_equal(step, rows + 1);
        assert_int_equal(epoch, rows / 3);
        assert_true(lr == 1e-4 && loss > 0 && loss < 10 && norm > 0);
    }
    assert_int_equal(rows, 6);
    read_back("run/timing.csv", &text);
    line = strtok(text, "\n");
    assert_string_equal(line, "step,pictures_per_second,seconds");
    double seconds = 0;
    for (rows = 0; (line = strtok(NULL, "\n")) != NULL; rows++) {
        int step;
        double rate, time;
        assert_int_equal(sscanf(line, "%d,%lf,%lf", &step, &rate, &time), 3);
        assert_true(step == rows + 1 && rate > 0 && time >= seconds);
        seconds = time;
    }
    assert_int_equal(rows, 6);
    free(text);
}

static void test_settings(void **state)
{
    (void)state;
    char *text = NULL;
    read_back("run/args.json", &text);
    cJSON *json = cJSON_Parse(text);
    assert_non_null(json);
    assert_int_equal(cJSON_GetObjectItem(json, "batch_size")->valueint, 10);
    assert_int_equal(cJSON_GetObjectItem(json, "seed")->valueint, 529);
    assert_string_equal(cJSON_GetObjectItem(json, "beta_schedule")->valuestring, "squaredcos_cap_v2");
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(json, "image_dir")));
    assert_non_null(cJSON_GetObjectItem(json, "version"));
    for (const cli_option *o = cli_train.option; o->name != NULL; o++) {
        char key[100];
        snprintf(key, sizeof key, "%s", o->name);
        for (char *c = key; *c != '\0'; c++)
            *c = *c == '-' ? '_' : *c;
        assert_non_null(cJSON_GetObjectItem(json, key));
    }
    cJSON_Delete(json);
    free(text);
}

/* What would change nothing is refused. */
static void test_options_without_effect(void **state)
{
    (void)state;
    static const char *const part[][2] = {
        {"--lr-schedule cosine --gamma 0.5", "--gamma has no effect without --lr-schedule"},
        {"--lr-schedule constant --milestones 3", "--milestones has no effect without"},
        {"--show", "--show has no effect without --sample-every"},
        {"--beta-end 0.03", "no effect on this beta schedule"}};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        char line[200];
        snprintf(line, sizeof line, "train @/data --out @/none --model tiny %s", part[i][0]);
        assert_fails(1, line, part[i][1]);
    }
}

/* class_embed_type null: no label encoder, no class names, pictures of whatever the data shows. */
static void test_unconditional(void **state)
{
    (void)state;
    shell("sed 's/\"identity\"/null/' @/run/best/unet/config.json > @/config.json");
    assert_runs("train @/data --out @/free --model @/config.json --epochs 1 --batch-size 24 --resolution 8");
    assert_has(err, "702,499 parameters");
    assert_runs("sample --model @/free --steps 2 --n 2 --out @/free.png");
    assert_picture("free.png", 2 * 10 + 2, 12);
    assert_fails(1, "sample 'red cube' --model @/free --out @/none.png", "labels mean nothing to this model");
    shell("sed 's/\"num_class_embeds\":.null/\"num_class_embeds\": 9/; s/\"identity\"/null/' "
          "@/run/best/unet/config.json > @/config.json");
    assert_fails(1, "train @/data --out @/new --model @/config.json", "takes one number a picture");
}

/* Own data: a folder a class as the renderer lays it out, three of them, and a broken file in one. */
static void test_folders(void **state)
{
    (void)state;
    assert_runs("render --out @/folders --scenes 40 --size 32x24 --seed 3 --layout folders");
    assert_has(err, "40 pictures of 32x24");
    assert_false(io_is_file(in_folder("folders/train.json")));
    assert_fails(1, "render --out @/folders --scenes 40 --size 32x24 --seed 3", "other settings");
    shell("cd @/folders; mkdir ../few; mv 'red cube' 'cyan sphere' 'gray sphere' ../few; "
          "cp ../few/'red cube'/*_0.png ../few/'cyan sphere'; echo x > ../few/'red cube'/x.jpg");
    assert_runs("train @/few --out @/class --model tiny --resolution 16 --epochs 2 --batch-size 4 --random-flip "
                "--resize crop --cond-drop 0.2");
    assert_has(err, ", 3 classes, single-label, from its folders");
    assert_has(err, "warning 1 picture cannot be read and is left out:\n          ");
    assert_has(err, "x.jpg: ");
    assert_has(err, " the same pixels as another one");
    assert_has(err, "fewer than 1,000 pictures");
    assert_runs("train --resume --out @/class --epochs 3");
    assert_has(err, "epoch 2: loss");
    shell("mkdir @/two; mv @/few/'red cube' @/few/'cyan sphere' @/two");
    assert_runs("train @/two --out @/tuned --model @/class --epochs 1");
    assert_has(err, "the data has other classes, so the label encoder is made anew");
    assert_runs("sample 'red cube' --model @/tuned --steps 2 --out @/tuned.png");
    assert_fails(1, "train @/data --out @/none --model @/class", "the data has label sets");
    shell("rm -r @/few @/two"); /* the model knows its classes */
    assert_runs("sample 'Red Cube' --model @/class --sampler ddim --steps 2 --n 2 --guidance 2 --out @/class.png");
    assert_picture("class.png", 2 * 18 + 2, 20);
    assert_text("class.png", "labels", "red cube");
    assert_fails(1, "sample 'red cub' --model @/class --out @/none.png",
                 "did you mean 'red cube'? There are: cyan sphere, gray sphere, red cube\n");
    assert_fails(1, "sample 'red cube, cyan sphere' --model @/class --out @/none.png", "takes exactly one");
    assert_runs("info @/class/best");
    assert_has(out, "cyan sphere, gray sphere, red cube");
}

static void test_plain_pictures(void **state)
{
    (void)state;
    assert_runs("render --out @/plain --scenes 4 --size 32x24 --seed 3 --layout plain");
    assert_has(err, "12 pictures of 32x24");
    assert_false(io_is_file(in_folder("plain/train.json")));
    assert_runs("train @/plain --out @/gray --model tiny --resolution 40x24 --channels 1 --epochs 1 --batch-size 12");
    assert_has(err, "12 pictures, unconditional, from a folder of pictures");
    assert_has(err, "warning 12 pictures are smaller than asked for and enlarged:");
    assert_has(err, "CLEVR_train_000000_0.png (32x24)\n");
    assert_has(err, "          and 9 more: --dry-run lists all\n");
    assert_runs("train @/plain --model tiny --resolution 40x24 --channels 1 --batch-size 12 --dry-run");
    assert_has(err, "CLEVR_train_000003_2.png (32x24)\n");
    assert_null(strstr(err, " more"));
    assert_runs("sample --model @/gray --steps 2 --out @/gray.png");
    assert_picture("gray.png", 40, 24);
    assert_fails(1, "sample 'red cube' --model @/gray --out @/none.png", "labels mean nothing to this model");
    assert_fails(1, "sample --model @/gray --guidance 2 --out @/none.png", "takes no labels, so guidance 2");
    assert_runs("train @/data --out @/no_labels --model tiny --resolution 16 --unconditional --epochs 1");
    assert_has(err, "24 pictures, unconditional, from train.json");
    assert_fails(1, "train @/plain --out @/none --model tiny --channels 2", "2 channels");
    assert_fails(1, "train @/plain --out @/plain --model tiny", "plain, all pictures of which are learned from");
    assert_fails(1, "train @/plain/ --out @/plain/new/run --model tiny", "plain/new/run lies in ");
    assert_false(io_is_directory(in_folder("plain/new")));
    assert_fails(1, "train @/plain/CLEVR_train_000000_0.png --out @/none --model tiny", "is a file, not a folder");
    assert_fails(1, "train @/plain --out @/none --model @/run/best/unet/config.json", "takes labels, and the data has");
}

/* ---- 4. Pictures --------------------------------------------------------------------------------------------- */

static int pixels_differ(const char *a, const char *b)
{
    io_picture one, two;
    assert_int_equal(io_picture_read(in_folder(a), 3, &one), DDPM_OK);
    assert_int_equal(io_picture_read(in_folder(b), 3, &two), DDPM_OK);
    assert_int_equal(one.width, two.width);
    assert_int_equal(one.height, two.height);
    int differ = memcmp(one.pixel, two.pixel, (size_t)one.width * (size_t)one.height * 3) != 0;
    io_picture_free(&one);
    io_picture_free(&two);
    return differ;
}

static void assert_same_pixels(const char *a, const char *b)
{
    assert_false(pixels_differ(a, b));
}

/* Pictures of 16x16 with 2 pixels between them: a row of n is 18 n + 2 wide. */
static void test_sample(void **state)
{
    (void)state;
    assert_runs(
        "sample 'red sphere, cyan cube' --model @/run --sampler ddim --steps 3 --n 3 --strip --seed 7 --out @/a.png");
    assert_picture("a.png", 3 * 18 + 2, 20);
    assert_picture("a_strip.png", 11 * 18 + 2, 2 * 3 * 18 + 2); /* x_t, and below it the estimates of x_0 */
    assert_text("a.png", "seed", "7");
    assert_text("a.png", "labels", "cyan cube");
    assert_text("a.png", "command", "ddpm sample \"red sphere, cyan cube\"");
    assert_text("a.png", "model", "/run/step-6"); /* what the link best points at */
    assert_has(out, "a.png\n");
    assert_has(out, "a_strip.png\n");
    assert_runs("sample 'red sphere, cyan cube' --model @/run/step-6 --sampler ddim --steps 3 --n 3 --seed 7 "
                "--batch-size 2 --threads 1 "
                "--out @/b.png");
    assert_same_pixels("a.png", "b.png");
    assert_runs("sample --labels-file @/data/test.json --model @/run --steps 2 --n 2 --out-dir @/files --strip");
    assert_picture("files/0.png", 16, 16);
    assert_picture("files/1.png", 16, 16);
    assert_picture("files/strip_1.png", 11 * 18 + 2, 2 * 18 + 2);
    assert_runs("sample 'red sphere' --model @/run/latest --sampler ddim --steps 2 --eta 1 --out @/one.png");
    assert_picture("one.png", 16, 16);
}

/* A schedule from options and from diffusers' file; what the model's file says counts where nothing is given. */
static void test_schedules(void **state)
{
    (void)state;
    static const char trained[] =
        "{\"_class_name\":\"DPMSolverMultistepScheduler\",\"num_train_timesteps\":4,"
        "\"trained_betas\":[0.1,0.2,0.4,0.8],"
        "\"prediction_type\":\"sample\",\"timestep_spacing\":\"trailing\",\"lambda_min_clipped\":-Infinity}";
    assert_fails(1, "train @/data --out @/no --model @/run/best/unet/config.json --zero-snr",
                 "--prediction-type v_prediction");
    assert_fails(1, "train @/data --out @/no --beta-schedule linear --beta-start 0.5 --beta-end 0.1",
                 "with these betas the last x_t holds nothing of x_0");
    assert_fails(2, "train @/data --out @/no --prediction-type flow", "is not one of epsilon|sample|v_prediction");
    assert_runs(
        "train @/data --out @/v --model @/run/best/unet/config.json --resolution 16 --epochs 1 --batch-size 24 "
        "--prediction-type v_prediction --zero-snr --beta-schedule scaled_linear --beta-start 0.001 --beta-end 0.1");
    assert_runs("info @/v");
    assert_has(out,
               "scaled_linear from 0.001 to 0.1, zero terminal SNR, predicts v_prediction, x_0 clipped to 1; DDPM");
    assert_runs("sample 'red sphere' --model @/v --sampler dpmsolver++ --steps 3 --timestep-spacing trailing "
                "--out @/v.png");
    assert_has(err, "3 DPM-Solver++ steps");
    assert_runs("sample 'red sphere' --model @/v --steps 3 --thresholding yes --sample-max-value 2 --timestep-spacing "
                "trailing --variance-type fixed_large --out @/v2.png");
    assert_has(err, "3 DDPM steps");
    assert_true(pixels_differ("v.png", "v2.png"));
    assert_fails(1, "sample 'red sphere' --model @/v --steps 1000 --sampler dpmsolver++ --out @/no.png",
                 "cannot be spread");
    assert_fails(2, "sample --sampler dpmsolver", "is not one of ddpm|ddim|dpmsolver++");
    assert_int_equal(io_write_file(in_folder("scheduler.json"), trained, sizeof trained - 1), DDPM_OK);
    assert_runs("train @/data --out @/trained --model @/run/best/unet/config.json --resolution 16 --epochs 1 "
                "--batch-size 24 --scheduler @/scheduler.json");
    assert_runs("info @/trained");
    assert_has(out, "4 steps, trained betas, predicts sample, x_0 clipped to 1; DPM-Solver++, trailing");
    assert_runs("sample 'red sphere' --model @/trained --out @/t.png");
    assert_has(err, "3 DPM-Solver++ steps"); /* the file's class; one fewer than T */
    assert_fails(1, "train @/data --out @/no --model tiny --scheduler @/nothing.json", "nothing.json");
}

/* Guidance of a model that never saw "no label" is refused; 1 is no guidance; the batch does not matter. */
static void test_guided_sample(void **state)
{
    (void)state;
    static const char draw[] = "--sampler ddim --steps 2 --n 3 --seed 7";
    char command[200];
    assert_fails(1, "sample 'red sphere' --model @/run --steps 2 --guidance 3 --out @/none.png",
                 "trained without label dropout");
    assert_has(err, "--cond-drop");
    assert_fails(1, "test @/data --model @/run --steps 2 --guidance 0 --out @/none", "trained without label dropout");
    shell("cp -r @/run/latest/ @/dropped && "
          "sed -i 's/\"label_dropout\":.*,/\"label_dropout\": 0.1,/' @/dropped/model_index.json");
    const char *const how[] = {"", "--guidance 1", "--guidance 3", "--guidance 3 --batch-size 2", "--guidance 0"};
    for (int i = 0; i < 5; i++) {
        snprintf(command, sizeof command, "sample 'red sphere' --model @/dropped %s %s --out @/g%d.png", draw, how[i],
                 i);
        assert_runs(command);
    }
    assert_same_pixels("g0.png", "g1.png");
    assert_runs(
        "sample 'red sphere' --model @/dropped --rng torch --sampler ddim --steps 2 --n 3 --seed 7 --out @/t3.png");
    assert_runs(
        "sample 'red sphere' --model @/dropped --rng torch --sampler ddim --steps 2 --n 3 --seed 7 --batch-size 2 "
        "--out @/t2.png");
    assert_same_pixels("t3.png", "t2.png"); /* a generator a picture: the batch does not matter here either */
    assert_true(pixels_differ("g0.png", "t3.png"));
    assert_same_pixels("g2.png", "g3.png");
    assert_true(pixels_differ("g0.png", "g2.png") && pixels_differ("g0.png", "g4.png"));
    assert_runs("test @/data --model @/dropped --sampler ddim --steps 1 --guidance_scale 2 --out @/guided");
    assert_picture("guided/test_grid.png", 8 * 18 + 2, 4 * 18 + 2);
}

/* The part of `name` that is picture (column, row) of a grid of 16x16 pictures. */
static io_picture part_of(const char *name, int column, int row)
{
    io_picture grid, part;
    assert_int_equal(io_picture_read(in_folder(name), 3, &grid), DDPM_OK);
    assert_int_equal(io_picture_create(16, 16, 3, &part), DDPM_OK);
    assert_in_range(18 * (column + 1) + 2, 1, grid.width);
    assert_in_range(18 * (row + 1) + 2, 1, grid.height);
    for (int y = 0; y < 16; y++)
        memcpy(part.pixel + (ptrdiff_t)y * 16 * 3,
               grid.pixel + ((ptrdiff_t)(18 * row + 2 + y) * grid.width + 18 * column + 2) * 3, (size_t)16 * 3);
    io_picture_free(&grid);
    return part;
}

/* With ten steps frame k of a strip is x after k of them. What stands below is the network's estimate of x_0: DDIM's
 * last step returns it, so the last two frames below are the picture itself. */
static void test_strip(void **state)
{
    (void)state;
    assert_runs("sample 'red sphere, cyan cube' --model @/run --sampler ddim --steps 10 --seed 7 --strip --gif --out "
                "@/walk.png");
    assert_has(out, "walk_strip.png\n");
    assert_has(out, "walk.gif\n");
    io_picture last, other;
    assert_int_equal(io_picture_read(in_folder("walk.png"), 3, &last), DDPM_OK);
    static const int at[][2] = {{10, 0}, {10, 1}, {9, 1}};
    for (int i = 0; i < 3; i++) {
        other = part_of("walk_strip.png", at[i][0], at[i][1]);
        assert_memory_equal(other.pixel, last.pixel, 16 * 16 * 3);
        io_picture_free(&other);
    }
    other = part_of("walk_strip.png", 0, 0); /* and the first is the noise that the address says */
    ddpm_real noise[3 * 16 * 16];
    io_picture start;
    ddpm_normals((ddpm_address){.seed = 7, .purpose = DDPM_RANDOM_START}, 3 * 16 * 16, noise);
    assert_int_equal(io_picture_from_real(noise, 3, 16, 16, &start), DDPM_OK);
    assert_memory_equal(other.pixel, start.pixel, 16 * 16 * 3);
    io_picture_free(&start);
    io_picture_free(&other);
    io_picture_free(&last);
    unsigned char *gif;
    size_t size;
    assert_int_equal(io_read_file(in_folder("walk.gif"), &gif, &size), DDPM_OK);
    assert_memory_equal(gif, "GIF89a\20\0\20\0", 10); /* 16x16: a lone picture has no frame around it */
    free(gif);
}

/* A job that was stopped goes on: what is there is kept, the rest is what an unbroken job draws. */
static void test_files_go_on(void **state)
{
    (void)state;
    assert_runs("sample 'red sphere' --model @/run --sampler ddim --steps 2 --n 7 --batch-size 3 --out-dir @/whole");
    assert_runs("sample 'red sphere' --model @/run --sampler ddim --steps 2 --n 4 --batch-size 4 --out-dir @/parts");
    shell("rm @/parts/1.png");
    assert_runs("sample 'red sphere' --model @/run --sampler ddim --steps 2 --n 7 --batch-size 4 --out-dir @/parts");
    assert_has(err, "3 of 7 pictures were there already");
    assert_has(out, "parts/1.png\n");
    assert_null(strstr(out, "parts/2.png"));
    for (int i = 0; i < 7; i++) {
        char whole[32], parts[32];
        snprintf(whole, sizeof whole, "whole/%d.png", i);
        snprintf(parts, sizeof parts, "parts/%d.png", i);
        assert_same_pixels(whole, parts);
    }
    assert_runs("sample 'red sphere' --model @/run --sampler ddim --steps 2 --n 7 --gif --out-dir @/parts");
    assert_null(strstr(err, "already")); /* the GIFs were missing */
    assert_true(io_is_file(in_folder("parts/6.gif")));
    assert_fails(1, "sample 'red sphere' --model @/run --sampler ddim --steps 3 --n 7 --out-dir @/parts",
                 "its sampling is 'ddim, 2 steps (leading, offset 0), eta 0, alpha_to_one 1, guidance 1, philox noise");
    /* every option that a picture depends on, alone */
    static const char *const changed[][2] = {
        {"--rng torch", "torch noise"},
        {"--eta 0.5", "eta 0.5"},
        {"--set-alpha-to-one no", "alpha_to_one 0"},
        {"--guidance 0", "guidance 0"},
        {"--timestep-spacing trailing", "(trailing, offset 0)"},
        {"--steps-offset 1", "(leading, offset 1)"},
        {"--clip-sample no",
         "here it is 'ddim, 2 steps (leading, offset 0), eta 0, alpha_to_one 1, guidance 1, philox noise'"},
        {"--clip-sample-range 2", "clipped to 2'"},
        {"--thresholding yes", "thresholded at 0.995 up to 1'"},
        {"--thresholding yes --dynamic-thresholding-ratio 0.9", "thresholded at 0.9 up to 1'"},
        {"--thresholding yes --sample-max-value 2", "thresholded at 0.995 up to 2'"},
        {"--sampler dpmsolver++ --solver-order 1", "order 1, midpoint"},
        {"--sampler dpmsolver++ --solver-type heun", "order 2, heun"},
        {"--sampler dpmsolver++ --lower-order-final no", "lower_order_final 0"},
        {"--sampler dpmsolver++ --euler-at-final yes", "euler_at_final 1"},
        {"--sampler dpmsolver++ --final-sigmas-type sigma_min", "final sigma sigma_min"},
        {"--sampler dpmsolver++ --lambda-min-clipped -5.1", "lambda_min -5.1"},
        {"--sampler ddpm --variance-type fixed_large", "variance fixed_large"},
    };
    for (size_t i = 0; i < sizeof changed / sizeof *changed; i++) {
        char arguments[300];
        int ddim = strstr(changed[i][0], "--sampler") == NULL;
        snprintf(arguments, sizeof arguments,
                 "sample 'red sphere' --model @/run %s --steps 2 --n 7 --out-dir @/parts %s",
                 ddim ? "--sampler ddim" : "", changed[i][0]);
        assert_fails(1, arguments, changed[i][1]);
    }
    assert_fails(1, "sample 'red cube' --model @/run --sampler ddim --steps 2 --n 7 --out-dir @/parts",
                 "its labels is 'red sphere', here it is 'red cube'");
}

/* At a strength of one step in fifty hardly anything happens to the picture; the first frame is the picture with the
 * noise of that step. */
static void test_image(void **state)
{
    (void)state;
    static const char sample[] = "sample 'red sphere' --model @/run --sampler ddim --steps 50 ";
    char arguments[400];
    io_picture start, small, drawn;
    int difference = 0;
    snprintf(arguments, sizeof arguments, "%s--image @/data/CLEVR_train_000003_2.png --strength 0.02 --out @/near.png",
             sample);
    assert_runs(arguments);
    assert_int_equal(io_picture_read(in_folder("data/CLEVR_train_000003_2.png"), 3, &start), DDPM_OK);
    assert_int_equal(io_picture_resize(&start, 16, 16, &small), DDPM_OK);
    assert_int_equal(io_picture_read(in_folder("near.png"), 3, &drawn), DDPM_OK);
    for (int i = 0; i < 16 * 16 * 3; i++)
        difference += abs(small.pixel[i] - drawn.pixel[i]);
    /* t = 0: x_0 is off by sqrt(1/abar - 1) = 0.0064 times eps less its prediction, whose mean size is below 2 here:
     * 0.0128 of 127.5 levels, and half a level of rounding */
    assert_in_range(difference, 1, 16 * 16 * 3 * 5 / 2);
    assert_text("near.png", "sampling", ", the first 49 left out from ");
    io_picture_free(&start);
    io_picture_free(&small);
    io_picture_free(&drawn);
    snprintf(arguments, sizeof arguments, "%s--image @/data/CLEVR_train_000003_2.png --strength 0.01", sample);
    assert_fails(1, arguments, "--strength 0.01 of 50 steps is none\n      hint: 0.02 is one");
    snprintf(arguments, sizeof arguments, "%s--image @/nothing.png", sample);
    assert_fails(1, arguments, "nothing.png");
}

/* Six columns of 16x16 pictures enlarged to 96, and a chart below them. A column's first row is the picture with its
 * noise: nearly the picture at t = 0. */
static void test_explain(void **state)
{
    (void)state;
    assert_runs("explain @/data/CLEVR_train_000003_2.png 'red sphere' --model @/run --sampler ddim --steps 10 "
                "--at 0,20,40,60,80,100 --out @/explain.png");
    assert_has(out, "\n    0     1.0000");
    assert_has(out, "\n  600     ");
    assert_has(out, "\n  900     0.0236  "); /* cos^2(0.909/1.008 pi/2) / cos^2(0.008/1.008 pi/2) = 0.02362 */
    assert_picture("explain.png", 640, 3 * 98 + 2 + 320);
    assert_text("explain.png", "labels", "red sphere");
    assert_runs("explain @/gray.png --model @/gray --sampler ddim --steps 4 --at 50 --out @/explain.png");
    assert_fails(1, "explain @/data/CLEVR_train_000003_2.png 'pink' --model @/run --out @/none.png", "unknown label");
    assert_fails(1, "explain @/gray.png 'red sphere' --model @/gray --out @/none.png", "knows no class names");
    assert_fails(1, "explain @/nothing.png 'red sphere' --model @/run --out @/none.png", "nothing.png");
    assert_fails(1, "explain 'red sphere' --model @/run --out @/none.png",
                 "red sphere: cannot open"); /* not of labels */
    assert_fails(1, "explain @/data/CLEVR_train_000003_2.png --model @/run --out @/none.png",
                 "knows no picture without labels\n      hint: ddpm explain ");
    assert_fails(2, "explain --model @/run", "FILE is missing");
}

/* Two training pictures among drawn ones are found at distance 0, beside themselves; the rest is further away than any
 * two training pictures. */
static void test_nearest(void **state)
{
    (void)state;
    shell("mkdir @/mixed; cp @/whole/*.png @/mixed; cp @/data/CLEVR_train_000003_1.png @/mixed/a.png; "
          "cp @/data/CLEVR_train_000005_0.png @/mixed/b.png; touch @/mixed/strip_0.png");
    assert_runs("nearest @/data @/mixed --out @/nearest.png");
    assert_has(err, "1 of the files in ");
    assert_has(err, "the median of 9 drawn pictures is ");
    assert_has(err, "from the nearest other one (median of 24)");
    char expected[600];
    snprintf(expected, sizeof expected, "0.00 %s/mixed/a.png %s/data/CLEVR_train_000003_1.png\n0.00 ", folder, folder);
    assert_int_equal(strncmp(out, expected, strlen(expected)), 0);
    assert_has(out, "/mixed/b.png ");
    assert_has(out, "/data/CLEVR_train_000005_0.png\n");
    assert_picture("nearest.png", 8 * 18 + 2, 3 * 18 + 2); /* 0.png says how large all are looked at */
    assert_fails(1, "nearest @/data @/nothing", "no such folder");
    assert_fails(2, "nearest @/data", "DIR is missing");
}

static void test_test(void **state)
{
    (void)state;
    assert_runs(
        "test @/data --test-type new_test --model @/run --sampler ddim --steps 1 --batch-size 16 --out @/results");
    assert_picture("results/new_test_grid.png", 8 * 18 + 2, 4 * 18 + 2);
    assert_picture("results/images/new_test/0.png", 16, 16);
    assert_picture("results/images/new_test/31.png", 16, 16);
    assert_picture("results/strips/new_test_31.png", 11 * 18 + 2, 20);
    assert_picture("results/required_strip.png", 11 * 18 + 2, 20);
    assert_text("results/required_strip.png", "labels", "cyan cylinder");
    assert_same_pixels("results/required_strip.png", "results/red_sphere+cyan_cylinder+cyan_cube.png");
    assert_false(io_is_file(in_folder("results/images/new_test/32.png")));
    assert_has(err, "s a picture");
    assert_has(out, "new_test_grid.png");
    assert_has(err, "judged by data/mini/evaluator_judge"); /* the bundled one */
    assert_has(out, "accuracy (mean of pictures): ");
}

/* How many corners of the frame around picture `index` of a grid of pictures of 16x16 are red. */
static int framed(const io_picture *grid, int index)
{
    int red = 0, step = (grid->width - 2) / 8, top = index / 8 * step, left = index % 8 * step;
    for (int i = 0; i < 4; i++) {
        const unsigned char *p =
            grid->pixel + 3 * ((top + (i / 2 ? step : 0)) * grid->width + left + (i % 2 ? step : 0));
        red += p[0] == 255 && p[1] == 32 && p[2] == 32;
    }
    return red;
}

static const cJSON *member(const cJSON *object, const char *name)
{
    const cJSON *found = cJSON_GetObjectItemCaseSensitive(object, name);
    if (found == NULL) fail_msg("results.json has no '%s'", name);
    return found;
}

/* The figures on stdout, those of results.json, those that eval finds in the folder, and the frames all agree. */
static void test_judged_test(void **state)
{
    (void)state;
    cJSON *json;
    io_picture grid;
    char wanted[100];
    const char *run_it = "test --model @/run --sampler ddim --steps 1 --seed 12345678901234567890 --out @/judged "
                         "--evaluator @/evaluator --test-type ";
    for (int i = 0; i < 2; i++) { /* the second adds to what the first wrote */
        char arguments[300];
        snprintf(arguments, sizeof arguments, "%s%s", run_it, i ? "new_test" : "test");
        assert_runs(arguments);
    }
    assert_has(err, "/evaluator");
    char *figures = strdup(strstr(out, "accuracy (mean of pictures): "));
    assert_has(figures, "accuracy (pooled objects): ");
    assert_has(figures, "Wilson, 32 pictures)");
    assert_int_equal(lab_json_read(in_folder("judged/results.json"), &json), DDPM_OK);
    assert_int_equal(cJSON_GetArraySize(json), 2);
    const cJSON *one = member(json, "new_test"), *sets = member(one, "sets"), *settings = member(one, "settings");
    snprintf(wanted, sizeof wanted, "accuracy (mean of pictures): %.4f ",
             member(member(one, "accuracy_mean_of_pictures"), "value")->valuedouble);
    assert_has(figures, wanted);
    snprintf(wanted, sizeof wanted, "accuracy (pooled objects): %.4f ",
             member(member(one, "accuracy_pooled_objects"), "value")->valuedouble);
    assert_has(figures, wanted);
    assert_string_equal(member(settings, "seed")->valuestring, "12345678901234567890");
    assert_int_equal(member(settings, "steps")->valueint, 1);
    assert_string_equal(member(settings, "sampler")->valuestring, "ddim");
    assert_string_equal(member(settings, "backend")->valuestring, "cpu");

    /* eval finds the same in the folder, and frames the same pictures at the size that the judge sees. */
    assert_runs("eval --images @/judged/images/new_test --labels-file data/new_test.json --evaluator @/evaluator "
                "--grid @/judged/eval_grid.png");
    assert_int_equal(strncmp(out, figures, strlen(figures)), 0);
    free(figures);
    assert_picture("judged/eval_grid.png", 8 * 34 + 2, 4 * 34 + 2);
    assert_text("judged/eval_grid.png", "judge", in_folder("evaluator"));

    int hits = 0, objects = 0, missed = 0;
    io_picture evaluated;
    assert_int_equal(io_picture_read(in_folder("judged/new_test_grid.png"), 3, &grid), DDPM_OK);
    assert_int_equal(io_picture_read(in_folder("judged/eval_grid.png"), 3, &evaluated), DDPM_OK);
    assert_int_equal(cJSON_GetArraySize(sets), 32);
    for (int i = 0; i < 32; i++) {
        int h = member(cJSON_GetArrayItem(sets, i), "hits")->valueint;
        int all = member(cJSON_GetArrayItem(sets, i), "objects")->valueint;
        hits += h, objects += all, missed += h < all;
        if (h < all) assert_int_equal(framed(&grid, i) + framed(&evaluated, i), 8);
    }
    io_picture_free(&evaluated);
    io_picture_free(&grid);
    assert_true(missed > 0);
    assert_int_equal(hits, member(one, "hits")->valueint);
    assert_int_equal(objects, member(one, "objects")->valueint);

    const cJSON *hash = member(member(member(one, "evaluator"), "sha256"), "model.safetensors");
    shell("sha256sum @/evaluator/model.safetensors > @/hash");
    size_t size;
    unsigned char *text;
    assert_int_equal(io_read_file(in_folder("hash"), &text, &size), DDPM_OK);
    assert_memory_equal(text, hash->valuestring, 64);
    free(text);
    member(member(member(one, "model"), "sha256"), "unet/diffusion_pytorch_model.safetensors");
    cJSON_Delete(json);

    assert_fails(1, "test --model @/run --steps 1 --out @/judged --evaluator @/nowhere", "train-evaluator makes one");
}

/* Another picture than without a guide, whose opinion and scale are on record; a guide for another size is refused. */
static void test_guide(void **state)
{
    (void)state;
    cJSON *json;
    assert_runs("train-evaluator @/data --out @/guide --epochs 1 --batch-size 6 --held-out 2 --width 0.03125 "
                "--resolution 16 --seed 2");
    assert_runs("test --model @/run --sampler ddim --steps 2 --out @/guided --evaluator @/evaluator --guide @/guide "
                "--guide-scale 500");
    assert_has(out, "accuracy (mean of pictures): ");
    assert_has(out, "by the guide itself, ");
    /* A model that is exported with a guide takes its own, where nothing else is said. */
    assert_runs("export @/run --out @/with_guide --dtype f32 --guide-scale 500");
    shell("cp -r @/guide @/with_guide/evaluator");
    assert_runs("test --model @/with_guide --sampler ddim --steps 2 --out @/own_guide --evaluator @/evaluator");
    assert_has(out, "by the guide itself, ");
    assert_same_pixels("own_guide/test_grid.png", "guided/test_grid.png");
    assert_runs("test --model @/with_guide --sampler ddim --steps 2 --out @/own_guide --evaluator @/evaluator "
                "--guide-scale 0");
    assert_null(strstr(out, "by the guide itself, "));
    assert_int_equal(lab_json_read(in_folder("guided/results.json"), &json), DDPM_OK);
    const cJSON *guide = member(member(json, "test"), "guide");
    assert_true(member(guide, "scale")->valuedouble == 500);
    member(member(guide, "sha256"), "model.safetensors");
    member(member(guide, "accuracy_pooled_objects"), "interval");
    cJSON_Delete(json);
    assert_runs("sample \"red sphere, cyan cube\" --model @/run --sampler ddim --steps 2 --out @/alone.png");
    assert_runs("sample \"red sphere, cyan cube\" --model @/run --sampler ddim --steps 2 --out @/led.png "
                "--guide @/guide --guide-scale 500");
    assert_true(pixels_differ("alone.png", "led.png"));
    assert_fails(1, "sample \"red sphere\" --model @/run --steps 2 --guide @/evaluator", "--resolution 16");
}

/* A guide that has hardly learnt finds nothing, so each picture is drawn as often as allowed, and one of those stays:
 * that of the seed, or of 1000003 or 2000006 more; strips are of the one that stays; batches make no difference. */
static void test_tries(void **state)
{
    (void)state;
    static const char *const seed[] = {"529", "1000532", "2000535"};
    char line[600], name[40];
    assert_runs(
        "sample --labels-file @/data/test.json --model @/run --sampler ddim --steps 2 --n 6 --out-dir @/tried --strip "
        "--guide @/guide --guide-scale 0 --tries 3");
    assert_has(err, "6 of them drawn again, at most 2 times");
    assert_text("tried/0.png", "seed", "529");
    for (int k = 0; k < 3; k++) {
        snprintf(line, sizeof line,
                 "sample --labels-file @/data/test.json --model @/run --sampler ddim --steps 2 --n 6 --out-dir @/try%d "
                 "--seed %s",
                 k, seed[k]);
        assert_runs(line);
    }
    int from[3] = {0};
    for (int i = 0; i < 6; i++) {
        io_picture kept, strip, attempt;
        snprintf(name, sizeof name, "tried/%d.png", i);
        assert_int_equal(io_picture_read(in_folder(name), 3, &kept), DDPM_OK);
        snprintf(name, sizeof name, "tried/strip_%d.png", i);
        assert_int_equal(io_picture_read(in_folder(name), 3, &strip), DDPM_OK);
        for (int k = 0; k < 3; k++) {
            snprintf(name, sizeof name, "try%d/%d.png", k, i);
            assert_int_equal(io_picture_read(in_folder(name), 3, &attempt), DDPM_OK);
            from[k] += memcmp(kept.pixel, attempt.pixel, 3 * 16 * 16) == 0;
            io_picture_free(&attempt);
        }
        assert_int_equal(from[0] + from[1] + from[2], i + 1);
        for (int y = 0; y < 16; y++) /* its last frame, behind ten others, all two pixels apart */
            assert_memory_equal(strip.pixel + 3 * ((y + 2) * strip.width + 2 + 10 * 18),
                                kept.pixel + (ptrdiff_t)3 * 16 * y, 3 * 16);
        io_picture_free(&strip);
        io_picture_free(&kept);
    }
    assert_true(from[1] + from[2] > 0);

    assert_runs(
        "test --model @/run --sampler ddim --steps 2 --out @/tests_tried --evaluator @/evaluator --guide @/guide "
        "--tries 2");
    assert_runs(
        "test --model @/run --sampler ddim --steps 2 --out @/tests_by_one --evaluator @/evaluator --guide @/guide "
        "--tries 2 --batch-size 1");
    assert_same_pixels("tests_tried/test_grid.png", "tests_by_one/test_grid.png");
    assert_same_pixels("tests_tried/required_strip.png", "tests_by_one/required_strip.png");
    /* Exported so, it is done where nothing else is said, and not where nobody is to guide. */
    assert_runs("export @/run --out @/trying --dtype f32 --guide-scale 1 --tries 2");
    shell("cp -r @/guide @/trying/evaluator");
    assert_runs("test --model @/trying --sampler ddim --steps 2 --out @/own_tries --evaluator @/evaluator");
    assert_same_pixels("own_tries/test_grid.png", "tests_tried/test_grid.png");
    cJSON *json;
    assert_int_equal(lab_json_read(in_folder("own_tries/results.json"), &json), DDPM_OK);
    assert_int_equal(member(member(member(json, "test"), "settings"), "tries")->valueint, 2);
    cJSON_Delete(json);
    assert_runs(
        "test --model @/trying --sampler ddim --steps 2 --out @/no_tries --evaluator @/evaluator --guide-scale 0");
    assert_null(strstr(err, "drawn again"));
    assert_true(pixels_differ("no_tries/test_grid.png", "own_tries/test_grid.png"));
    assert_fails(1, "sample \"red sphere\" --model @/run --steps 2 --guide @/evaluator --guide-scale 0 --tries 2",
                 "--resolution 16");
}

/* The lab's fine-tuning: the evaluator's score is part of what is followed, so the weights differ. */
static void test_fine_tuning_on_a_score(void **state)
{
    (void)state;
    size_t size[2];
    unsigned char *weights[2];
    assert_runs("train @/data --model @/run --out @/untaught --epochs 1 --batch-size 10 --micro-batch 4 "
                "--resolution 16");
    assert_runs("train @/data --model @/run --out @/taught --epochs 1 --batch-size 10 --micro-batch 4 --resolution 16 "
                "--beta 0.5 --guide @/guide");
    assert_has(err, ", -log p ");
    for (int i = 0; i < 2; i++)
        assert_int_equal(io_read_file(in_folder(i ? "taught/latest/unet/diffusion_pytorch_model.safetensors"
                                                  : "untaught/latest/unet/diffusion_pytorch_model.safetensors"),
                                      &weights[i], &size[i]),
                         DDPM_OK);
    assert_int_equal(size[0], size[1]);
    assert_memory_not_equal(weights[0], weights[1], size[0]);
    free(weights[0]);
    free(weights[1]);
    assert_fails(1, "train @/data --model @/run --out @/untold --resolution 16 --guide @/evaluator", "--resolution 16");
    assert_false(io_is_directory(in_folder("untold")));
}

/* ---- 5. Predict ---------------------------------------------------------------------------------------------- */

enum { N = 2, SIDE = 16, PIXELS = 3 * SIDE * SIDE, CLASSES = 24 };

typedef struct batch {
    ddpm_real sample[N * PIXELS], target[N * PIXELS], timestep[N], labels[N * CLASSES], prediction[N * PIXELS];
} batch;

static void fill_batch(batch *b)
{
    memset(b, 0, sizeof *b);
    ddpm_normals((ddpm_address){.seed = 1, .purpose = DDPM_RANDOM_USER}, N * PIXELS, b->sample);
    ddpm_normals((ddpm_address){.seed = 2, .purpose = DDPM_RANDOM_USER}, N * PIXELS, b->target);
    b->timestep[0] = 10;
    b->timestep[1] = 700;
    b->labels[3] = b->labels[CLASSES + 5] = b->labels[CLASSES + 20] = 1;
}

static void write_batch(const char *name, batch *b, int labels_per_picture, int side)
{
    static char sample[] = "sample", target[] = "target", timestep[] = "timestep", labels[] = "labels";
    io_tensor tensor[] = {
        {.name = sample, .dtype = IO_F32, .dims = 4, .shape = {N, 3, side, side}, .data = (unsigned char *)b->sample},
        {.name = target, .dtype = IO_F32, .dims = 4, .shape = {N, 3, side, side}, .data = (unsigned char *)b->target},
        {.name = timestep, .dtype = IO_F32, .dims = 1, .shape = {N}, .data = (unsigned char *)b->timestep},
        {.name = labels,
         .dtype = IO_F32,
         .dims = 2,
         .shape = {N, labels_per_picture},
         .data = (unsigned char *)b->labels}};
    assert_int_equal(io_safetensors_write(in_folder(name), tensor, 4, NULL, 0), DDPM_OK);
}

/* The same by the library in this process. The program runs the same code: equal to the bit. */
static void predict_here(batch *b, double *loss)
{
    ddpm_model *model;
    ddpm_net *net;
    io_model_info info;
    assert_int_equal(io_model_load(in_folder("run/best"), NULL, DDPM_FOR_GRADIENTS, &model, NULL, &info), DDPM_OK);
    assert_int_equal(ddpm_net_create(&net, model, SIDE, SIDE, N, 1), DDPM_OK);
    assert_int_equal(ddpm_loss_gradients(net, N, b->sample, b->timestep, b->labels, b->target, b->prediction, loss),
                     DDPM_OK);
    ddpm_net_free(net);
    ddpm_model_free(model);
    io_model_info_free(&info);
}

static void test_predict(void **state)
{
    (void)state;
    static batch b;
    static float value[N * PIXELS];
    double loss;
    io_safetensors file;
    fill_batch(&b);
    write_batch("in.safetensors", &b, CLASSES, SIDE);
    predict_here(&b, &loss);
    assert_runs("predict --backend reference --model @/run --in @/in.safetensors --out @/out.safetensors");
    assert_int_equal(io_safetensors_open(in_folder("out.safetensors"), &file), DDPM_OK);
    assert_int_equal(file.tensors, 1);
    io_safetensors_close(&file);
    assert_runs("predict --backend reference --model @/run --in @/in.safetensors --out @/out.safetensors --grad "
                "--threads 1");
    assert_int_equal(io_safetensors_open(in_folder("out.safetensors"), &file), DDPM_OK);
    assert_int_equal(io_tensor_floats(io_safetensors_find(&file, "prediction"), value), DDPM_OK);
    for (int i = 0; i < N * PIXELS; i++)
        assert_true((ddpm_real)value[i] == b.prediction[i]);
    assert_int_equal(io_tensor_floats(io_safetensors_find(&file, "loss"), value), DDPM_OK);
    assert_true(value[0] == (float)loss);
    const io_tensor *grad = io_safetensors_find(&file, "grad.down_blocks.0.resnets.0.conv1.weight");
    assert_non_null(grad);
    assert_int_equal(grad->dims, 4);
    assert_int_equal(grad->shape[0], 32);
    assert_int_equal(grad->shape[3], 3);
    grad = io_safetensors_find(&file, "grad.label_encoder.0.weight");
    assert_non_null(grad);
    assert_int_equal(grad->shape[0], 64);
    assert_int_equal(grad->shape[1], CLASSES);
    io_safetensors_close(&file);
}

static void test_predict_contradictions(void **state)
{
    (void)state;
    static batch b;
    fill_batch(&b);
    write_batch("bad.safetensors", &b, 23, SIDE);
    assert_fails(1, "predict --model @/run --in @/bad.safetensors --out @/none.safetensors",
                 "tensor 'labels' has shape [2,23], the model and the other tensors need [2,24]");
    write_batch("bad.safetensors", &b, CLASSES, 15);
    assert_fails(1, "predict --model @/run --in @/bad.safetensors --out @/none.safetensors", "15x15 cannot be halved");
    assert_fails(1, "predict --model @/run --in @/out.safetensors --out @/none.safetensors",
                 "there is no tensor 'sample'");
    assert_fails(1, "predict --model @/run --in @/nothing --out @/none.safetensors", "/nothing");
    assert_false(io_is_file(in_folder("none.safetensors")));
}

/* ---- 6. Info ------------------------------------------------------------------------------------------------- */

static void test_info(void **state)
{
    (void)state;
    assert_runs("info lab");
    assert_has(out, "113,708,099 (network 113,673,219, label encoder 34,880)"); /* LAB's figures */
    assert_runs("info tiny --graph --batch 2 --resolution 16");
    assert_has(out, "mid_block.attentions.0");
    assert_has(out, "2x64x8x8");
    assert_runs("info @/run");
    assert_has(out, "metrics     step,epoch");
    assert_has(out, "red sphere");
    assert_runs("info @/run/best --graph --training");
    assert_has(out, "1000 steps, squaredcos_cap_v2");
    assert_has(out, "pictures of 16x16");
    assert_runs("info @/run/best/unet");
    assert_has(out, "702,499");
    assert_runs("info @/run/best/unet/config.json");
    assert_runs("info @/run/best/unet/diffusion_pytorch_model.safetensors");
    assert_has(out, "conv_in.weight");
    assert_has(out, "[32,3,3,3]");
    assert_has(out, "702,499 elements");
    assert_runs("info data/mini/evaluator");
    assert_has(out, "classes     gray cube, red cube");
    assert_has(out, "ResNet18 of width 0.25, pictures of 64x64\n");
    assert_has(out, "parameters  7");
    assert_fails(1, "sample 'red cube' --model data/mini/evaluator --out @/none.png", "is an evaluator");
    assert_runs("info @/a.png");
    assert_has(out, "picture, 56x20");
    assert_has(out, "labels   red sphere, cyan cube");
    assert_runs("info @/data/train.json");
    assert_has(out, "24 pictures");
    assert_runs("info @/data/test.json");
    assert_has(out, "14 with 3 labels");
    assert_runs("info @/data/objects.json");
    assert_has(out, "23  yellow cylinder");
    assert_runs("info @/data/render.json");
    assert_fails(1, "info @/nothing", "there is no such file");
    assert_fails(1, "info @/data", "holds neither a model");
    assert_fails(1, "info @/stdout", "not known from its name");
}

/* ---- 7. Bad input -------------------------------------------------------------------------------------------- */

/* The newest cut short: the message says what to do, and that does it. A path with a space is quoted. */
static void test_damaged_checkpoint(void **state)
{
    (void)state;
    shell("cp -r @/run '@/a run'; cd '@/a run'; for f in $(find step-6 -name '*.safetensors'); do "
          "head -c 200 $f > cut && mv cut $f; done");
    assert_fails(1, "train --resume --out '@/a run' --epochs 3 --force",
                 "/a run/step-6 away, and --resume goes on from the");
    shell("mv '@/a run/step-6' @/away");
    assert_runs("train --resume --out '@/a run' --epochs 3 --force --max-time 0.000001");
    assert_has(err, "to go on: ddpm train --resume --out \"");
    assert_true(io_is_directory(in_folder("a run/step-4")));
    shell("mv '@/a run/step-4/training.json' @/away; head -c 99 @/away/training.json > '@/a run/step-4/training.json'");
    assert_fails(1, "train --resume --out '@/a run'", "/a run/step-4 away, and --resume goes on from the");
}

static void test_run_is_not_overwritten(void **state)
{
    (void)state;
    char *before = NULL, *after = NULL;
    read_back("run/metrics.csv", &before);
    assert_fails(1, "train @/data --out @/run --model tiny --epochs 1", "holds the checkpoints of another run");
    read_back("run/metrics.csv", &after);
    assert_string_equal(before, after);
    assert_fails(1, "train @/data --out @/a.png --model tiny", "is a file");
    free(before);
    free(after);
}

static void test_memory_is_refused(void **state)
{
    (void)state;
    assert_int_equal(run_with("DDPM_MEMORY_LIMIT=50000000", "train @/data --out @/new --model tiny --batch-size 32"),
                     1);
    assert_has(err, "the run needs ");
    assert_has(err, "48 MiB are available");
    const char *fits = strstr(err, "--micro-batch ");
    assert_non_null(fits);
    int most = atoi(fits + strlen("--micro-batch "));
    assert_in_range(most, 1, 31);
    char command[100];
    for (int more = 0; more < 2; more++) { /* so many fit, one more does not */
        snprintf(command, sizeof command, "train @/data --dry-run --model tiny --batch-size 32 --micro-batch %d",
                 most + more);
        assert_int_equal(run_with("DDPM_MEMORY_LIMIT=50000000", command), more);
    }
    assert_false(io_is_directory(in_folder("new")));
    assert_int_equal(
        run_with("DDPM_MEMORY_LIMIT=50000000000", "train @/data --out @/new --model lab --batch-size 4096"), 1);
    assert_has(err, "the run needs ");
    assert_has(err, "--micro-batch ");
    assert_false(io_is_directory(in_folder("new")));
}

static void test_memory_is_refused_to_draw(void **state)
{
    static const char draw[] =
        "sample 'red cube' --model @/run --sampler ddim --steps 1 --n 32 --threads 1 --out @/few.png --batch-size ";
    char command[200];
    (void)state;
    snprintf(command, sizeof command, "%s32", draw);
    assert_int_equal(run_with("DDPM_MEMORY_LIMIT=10000000", command), 1);
    assert_has(err, "to draw 32 pictures at once takes ");
    const char *fits = strstr(err, "--batch-size ");
    assert_non_null(fits);
    int most = atoi(fits + strlen("--batch-size "));
    assert_in_range(most, 1, 31);
    for (int more = 1; more >= 0; more--) { /* so many fit, one more does not */
        snprintf(command, sizeof command, "%s%d", draw, most + more);
        assert_int_equal(run_with("DDPM_MEMORY_LIMIT=10000000", command), more);
    }
    assert_int_equal(run_with("DDPM_MEMORY_LIMIT=1000", command), 1);
    assert_has(err, "no --batch-size fits");
}

static void test_bad_training_data(void **state)
{
    (void)state;
    assert_fails(1, "train @/nothing --out @/new --model tiny", "nothing");
    assert_fails(1, "train @/data --out @/new --model tyni", "--model tyni is neither a preset nor a file");
    assert_fails(1, "train @/data --out @/new --model tiny --resolution 17", "17x17 cannot be halved");
    shell("cp -r @/data @/bad; echo '{}' > @/bad/train.json");
    assert_fails(1, "train @/bad --out @/new --model tiny", "train.json");
    shell("echo '{\"CLEVR_train_000000_0.png\": [\"pink cube\"]}' > @/bad/train.json");
    assert_fails(1, "train @/bad --out @/new --model tiny", "pink cube");
    shell("echo '{\"missing.png\": [\"red cube\"]}' > @/bad/train.json");
    assert_fails(1, "train @/bad --out @/new --model tiny", "missing.png");
    assert_false(io_is_directory(in_folder("new")));
    shell("echo '{\"broken.png\": [\"red cube\"]}' > @/bad/train.json; "
          "head -c 300 @/data/CLEVR_train_000000_0.png > @/bad/broken.png");
    assert_fails(1, "train @/bad --out @/new --model tiny --resolution 16 --epochs 1", "broken.png");
    assert_false(io_is_directory(in_folder("new/latest")));
}

static void test_bad_labels(void **state)
{
    (void)state;
    assert_fails(1, "sample 'red sphere, purple elephant' --model @/run --out @/none.png",
                 "unknown label 'purple elephant'");
    assert_fails(1, "sample --model @/run --out @/none.png", "draws what labels name, and none is given");
    shell("echo '[[\"red cube\"], [\"red cupe\"]]' > @/labels.json");
    assert_fails(1, "sample --labels-file @/labels.json --model @/run --out @/none.png", "red cupe");
    assert_fails(1, "test @/nothing --model @/run --out @/none", "test.json");
    assert_fails(1, "sample 'red cube' --model @/run --steps 2000 --out @/none.png",
                 "2000 sampling steps of a schedule of 1000\n      hint: 1 to 1000");
    assert_fails(1, "sample 'red cube' --model @/run --eta 1 --out @/none.png",
                 "--eta is of ddim, and this draws with ddpm\n      hint: --sampler ddim");
    assert_fails(1, "test --model @/run --sampler ddim --solver-order 1 --out @/none",
                 "--solver-order is of dpmsolver++");
    assert_fails(2, "sample 'red cube' --model @/run --strength 0.5 --out @/none.png", "--strength is of --image");
    assert_fails(2, "sample 'red cube' --model @/run --out-dir @/none --out @/none.png", "exclude each other");
    assert_false(io_is_file(in_folder("none.png")));
}

/* Runs it in @/home, where data/mini is the bundled model. */
static int run_at_home(const char *arguments)
{
    char before[300];
    snprintf(before, sizeof before, "cd \"%s\" &&", in_folder("home"));
    return run_with(before, arguments);
}

/* In F16 half the bytes; with a sampler, steps and guidance that count where nothing else is said. As data/mini it is
 * what is drawn with where no model is named. */
static void test_export(void **state)
{
    (void)state;
    static const char how[] = "--sampler dpmsolver++ --steps 3";
    char command[300];
    size_t size[2];
    unsigned char *bytes;
    shell("mkdir -p @/home/data/mini/evaluator && cp data/test.json @/home/data");
    assert_int_equal(run_at_home("sample 'red cube'"), 1);
    assert_has(err, "no model is given, and the bundled one is not there: ");
    assert_has(err, "make mini");
    assert_int_equal(run_at_home("test --model @/run --sampler ddim --steps 1 --out @/nobody"), 0);
    assert_has(err, "no evaluator");
    assert_null(strstr(out, "accuracy"));

    snprintf(command, sizeof command, "export @/run --out @/exported --dtype f32 %s", how);
    assert_runs(command);
    snprintf(command, sizeof command, "export @/run --out @/home/data/mini %s", how);
    assert_runs(command);
    assert_has(out, "/home/data/mini\n");
    assert_true(io_is_directory(in_folder("home/data/mini/evaluator")));
    for (int i = 0; i < 2; i++) {
        const char *path = in_folder(i ? "home/data/mini/unet/diffusion_pytorch_model.safetensors"
                                       : "exported/unet/diffusion_pytorch_model.safetensors");
        assert_int_equal(io_read_file(path, &bytes, &size[i]), DDPM_OK);
        free(bytes);
    }
    assert_true(size[1] < size[0] * 6 / 10); /* the header stays as long */

    snprintf(command, sizeof command, "sample 'red cube, cyan sphere' --model @/run %s --out @/a.png", how);
    assert_runs(command);
    assert_runs("sample 'red cube, cyan sphere' --model @/exported --out @/b.png");
    assert_has(err, "3 DPM-Solver++ steps");
    assert_same_pixels("a.png", "b.png");
    assert_runs("sample 'red cube' --model @/exported --sampler ddim --out @/b.png");
    assert_has(err, "50 DDIM steps"); /* the 3 were the other sampler's */

    assert_fails(1, "export @/run --out @/never --steps 1001", "--steps 1001: the model's schedule has 1000");
    assert_fails(1, "export @/run --out @/never --guidance 3", "was trained without label dropout, so guidance 3");
    assert_false(io_is_directory(in_folder("never")));
    shell("sed -i 's/\"guidance_scale\":[^,]*/\"guidance_scale\": 3/' @/home/data/mini/model_index.json");
    assert_int_equal(run_at_home("sample 'red cube, cyan sphere'"), 1);
    assert_has(err, "was trained without label dropout, so guidance 3");
    assert_int_equal(run_at_home("sample 'red cube, cyan sphere' --guidance 1"), 0);
    assert_picture("home/sample.png", 16, 16);
    assert_int_equal(run_at_home("test --guidance 1"), 0);
    assert_picture("home/results/test_grid.png", 8 * 18 + 2, 4 * 18 + 2);
    assert_fails(1, "export @/run --out @/data", "would be lost");
    assert_fails(1, "export @/nothing --out @/none", "is not a directory");
}

static void test_bad_models(void **state)
{
    (void)state;
    assert_fails(1, "sample 'red cube' --model @/nothing --out @/none.png", "is not a directory");
    assert_fails(1, "sample 'red cube' --model @/data --out @/none.png", "holds neither a model");
    shell("cp -rL @/run/best @/model; sed -i 's/64/96/' @/model/unet/config.json");
    assert_fails(1, "sample 'red cube' --model @/model --out @/none.png", "has shape");
    shell("rm -r @/model; cp -rL @/run/best @/model; cd @/model/unet; sed -i 's/\"silu\"/\"gelu\"/' config.json");
    assert_fails(1, "sample 'red cube' --model @/model --out @/none.png", "act_fn");
    shell("rm -r @/model; cp -rL @/run/best @/model; cd @/model/unet; n=diffusion_pytorch_model.safetensors; "
          "head -c 50000 ../../run/best/unet/$n > $n");
    assert_fails(1, "sample 'red cube' --model @/model --out @/none.png", "diffusion_pytorch_model.safetensors");
    assert_fails(1, "info @/model/unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors");
    shell("printf '\\377\\377\\377\\377\\377\\377\\377\\177{}' > @/lying.safetensors");
    assert_fails(1, "info @/lying.safetensors", "lying.safetensors");
    assert_fails(1, "predict --model @/run --in @/lying.safetensors --out @/none.safetensors", "lying.safetensors");
}

/* A learning rate that drives the weights to where float32 ends: ten steps in a row are skipped, then the run stops,
 * naming the node, and keeps what it had saved. */
static void test_nan_stops(void **state)
{
    (void)state;
    assert_fails(
        1,
        "train @/data --out @/nan --model tiny --resolution 16 --epochs 30 --batch-size 24 --micro-batch 8 --lr 1e6 "
        "--max-grad-norm 0",
        "10 steps in a row went wrong after step ");
    assert_has(err, "is the first with a value that is not finite");
    assert_has(err, "step 2 is skipped: ");
    assert_true(io_is_file(in_folder("nan/best/unet/config.json")));
    assert_false(io_is_directory(in_folder("nan/step-2")));
}

/* What cannot be written to is refused before the model is read and anything is drawn. */
static void test_output_is_looked_at_first(void **state)
{
    (void)state;
    static const char *const command[] = {
        "sample 'red sphere' --model @/missing --out", "explain @/missing.png --model @/missing --out",
        "nearest @/missing @/missing --out",
        "eval --images @/missing --labels-file @/missing --evaluator @/missing --grid", "bench --growth"};
    char line[300];
    shell("mkdir -p @/folder.png");
    for (size_t i = 0; i < sizeof command / sizeof *command; i++) {
        snprintf(line, sizeof line, "%s @/nowhere/a.png", command[i]);
        assert_fails(1, line, "nowhere/a.png: cannot write: No such file or directory");
        snprintf(line, sizeof line, "%s @/folder.png", command[i]);
        assert_fails(1, line, "folder.png: cannot write: Is a directory");
        snprintf(line, sizeof line, "%s @/a.jpg", command[i]);
        assert_fails(1, line, "a.jpg: a picture is written as PNG");
    }
    assert_fails(1, "predict --model @/missing --in @/missing --out @/nowhere/p.safetensors", "p.safetensors: cannot");
    shell("test -z \"$(find @ -name '*.tmp-*')\"");
    shell("rmdir @/folder.png");
}

/* ---- 8. check-grad, selftest, bench ------------------------------------------------------------------------------ */

static void test_check_grad(void **state)
{
    (void)state;
    assert_fails(2, "check-grad convolution", "there is nothing named 'convolution'");
    assert_has(err, "conv2d");
    assert_runs("check-grad linear");
    assert_has(out, "ok");
    assert_has(out, ", 0 wrong");
}

static void test_selftest(void **state)
{
    (void)state;
    assert_runs("selftest --quick --backend cpu --threads 1");
    assert_has(out, "---- ddpm selftest ----");
    assert_has(out, " cases, 0 wrong, ");
}

static void test_bench(void **state)
{
    (void)state;
    assert_int_equal(run("bench --only nonsense"), 2);
    assert_has(err, "lab_forward_b1");
    assert_runs("bench --json --quick --only tiny_forward_b32");
    cJSON *json = cJSON_Parse(out);
    assert_non_null(json);
    assert_true(cJSON_GetObjectItem(json, "peak_gflops")->valuedouble > 0);
    assert_true(cJSON_GetObjectItem(json, "bandwidth_gbs")->valuedouble > 0);
    assert_true(cJSON_GetObjectItem(json, "threads")->valueint >= 1);
    assert_true(cJSON_IsString(cJSON_GetObjectItem(json, "isa")));
    const cJSON *work = cJSON_GetObjectItem(cJSON_GetObjectItem(json, "work"), "tiny_forward_b32");
    double ms = cJSON_GetObjectItem(work, "ms")->valuedouble, gflops = cJSON_GetObjectItem(work, "gflops")->valuedouble;
    assert_true(ms > 0 && cJSON_GetObjectItem(work, "peak_rss_mib")->valuedouble > 0);
    assert_float_equal(ms * gflops * 1e-3, 32 * 0.583, 0.5); /* GFLOP: 32 pictures of `ddpm info tiny --graph` */
    /* What the file beside the picture knows is drawn, not measured. */
    FILE *csv = fopen(in_folder("growth.csv"), "w");
    static const struct {
        const char *name;
        double value[7];
    } axis[] = {{"batch", {1, 2, 4, 8, 16, 32}}, {"picture", {32, 64, 96, 128}}, {"channels", {0.5, 1, 1.5, 2}}};
    assert_non_null(csv);
    for (int i = 0; i < 3; i++)
        for (int k = 0; axis[i].value[k] > 0; k++)
            for (int train = 0; train < 2; train++)
                fprintf(csv, "tiny,%s,%g,%s,%d,%s,%d,10,1\n", axis[i].name, axis[i].value[k],
                        train ? "train" : "forward", cJSON_GetObjectItem(json, "threads")->valueint,
                        cJSON_GetObjectItem(json, "isa")->valuestring, 1000 + k);
    fclose(csv);
    assert_runs("bench --model tiny --growth @/growth.png");
    assert_has(out, "1003.0 ms");
    assert_picture("growth.png", 3 * 560, 480);
    assert_text("growth.png", "command", "--growth");
    cJSON_Delete(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_help_mentions_every_option),
        cmocka_unit_test(test_program_help),
        cmocka_unit_test(test_unknown_names),
        cmocka_unit_test(test_wrong_values),
        cmocka_unit_test(test_aliases),
        cmocka_unit_test(test_backends),
        cmocka_unit_test(test_render),
        cmocka_unit_test(test_evaluator),
        cmocka_unit_test(test_train),
        cmocka_unit_test(test_metrics),
        cmocka_unit_test(test_unconditional),
        cmocka_unit_test(test_folders),
        cmocka_unit_test(test_plain_pictures),
        cmocka_unit_test(test_settings),
        cmocka_unit_test(test_options_without_effect),
        cmocka_unit_test(test_sample),
        cmocka_unit_test(test_guided_sample),
        cmocka_unit_test(test_schedules),
        cmocka_unit_test(test_strip),
        cmocka_unit_test(test_files_go_on),
        cmocka_unit_test(test_image),
        cmocka_unit_test(test_explain),
        cmocka_unit_test(test_nearest),
        cmocka_unit_test(test_test),
        cmocka_unit_test(test_judged_test),
        cmocka_unit_test(test_guide),
        cmocka_unit_test(test_tries),
        cmocka_unit_test(test_fine_tuning_on_a_score),
        cmocka_unit_test(test_predict),
        cmocka_unit_test(test_predict_contradictions),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_run_is_not_overwritten),
        cmocka_unit_test(test_damaged_checkpoint),
        cmocka_unit_test(test_memory_is_refused),
        cmocka_unit_test(test_memory_is_refused_to_draw),
        cmocka_unit_test(test_bad_training_data),
        cmocka_unit_test(test_bad_labels),
        cmocka_unit_test(test_export),
        cmocka_unit_test(test_bad_models),
        cmocka_unit_test(test_nan_stops),
        cmocka_unit_test(test_output_is_looked_at_first),
        cmocka_unit_test(test_check_grad),
        cmocka_unit_test(test_selftest),
        cmocka_unit_test(test_bench),
    };
    return cmocka_run_group_tests_name("cli", tests, make_folder, remove_folder);
}
