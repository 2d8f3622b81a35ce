/* cli/render.c - ddpm render: draws a data set in the lab's files and names, or the pictures of given label sets. */
#include <stdio.h>

#include "cli/cli.h"
#include "lab/render.h"

static struct {
    const char *out, *labels_file;
    int scenes, size[2], layout;
    uint64_t seed;
} set;

/* clang-format off */
static const cli_option options[] = {
    {"out", "output_dir save_root", CLI_TEXT, "DIR", CLI_REQUIRED,
     "folder to make", &set.out, 0, 0, 0},
    {"scenes", NULL, CLI_INT, "N", "2000",
     "scenes, each of three pictures that grow by one object", &set.scenes, 1, 1e6, 0},
    {"seed", NULL, CLI_SEED, "S", "0", "another seed draws other scenes", &set.seed, 0, 0, 0},
    {"size", NULL, CLI_SIZE, "WxH", "320x240", "pixels of a picture", set.size, 4, 4096, 0},
    {"layout", NULL, CLI_CHOICE, "lists|folders|plain", "lists",
     "the lab's lists; one folder a class, with pictures of one object; or pictures without labels",
     &set.layout, 0, 0, 0},
    {"labels-file", NULL, CLI_TEXT, "FILE", NULL,
     "draw these label sets (as test.json) instead: 0.png, 1.png, ...", &set.labels_file, 0, 0, 0},
    {0},
};
/* clang-format on */

typedef struct drawing {
    cli_progress bar;
    double started;
    int pictures;
} drawing;

static double rate(const drawing *d)
{
    double seconds = cli_seconds() - d->started;
    return seconds > 0 ? d->pictures / seconds : 0;
}

static ddpm_result on_scene(void *user, int done, int total)
{
    drawing *d = user;
    d->bar.total = total;
    d->pictures = done * (set.labels_file != NULL || set.layout == LAB_LAYOUT_FOLDERS ? 1 : LAB_GROWING);
    cli_progress_show(&d->bar, done, "%d pictures, %.1f a second", d->pictures, rate(d));
    return DDPM_OK;
}

static int run(const cli_context *context)
{
    drawing d = {.started = cli_seconds()};
    lab_render_config config = lab_render_default();
    config.out = set.out;
    config.scenes = set.scenes;
    config.seed = set.seed;
    config.width = set.size[0];
    config.height = set.size[1];
    config.threads = context->device.threads;
    config.layout = (lab_layout)set.layout;
    config.labels_file = set.labels_file;
    config.progress = on_scene;
    config.user = &d;
    cli_progress_start(&d.bar, "render", set.scenes);
    ddpm_result result = lab_render(&config);
    cli_progress_clear(&d.bar);
    if (result == DDPM_OK) {
        cli_short duration;
        cli_note("%d pictures of %dx%d in %s, %.1f a second", d.pictures, config.width, config.height,
                 cli_duration(cli_seconds() - d.started, duration), rate(&d));
        printf("%s\n", set.out);
    }
    return cli_exit(result);
}

const cli_command cli_render = {
    "render",
    "--out DIR [--scenes N] [--size WxH] [--layout lists|folders|plain]",
    "draws scenes and writes a data set in the lab's files and names",
    "Files: CLEVR_train_*.png, train.json, objects.json, test.json, new_test.json. The same seed gives the same bytes.",
    options,
    run,
    NULL};
