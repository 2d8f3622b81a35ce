/* cli/train.c - ddpm train: a data set and a model's config become a run directory with checkpoints and metrics.
 * Everything that can be refused is refused before the run directory is touched.
 *
 * Contents: 1 options   2 the run's objects   3 memory   4 the run directory   5 checkpoints   6 epochs
 *           7 the command */
#include <cjson/cJSON.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "io/file.h"
#include "io/model.h"
#include "io/plot.h"
#include "lab/dataset.h"

/* ---- 1. Options ---------------------------------------------------------------------------------------------- */

enum { LR_MULTISTEP, LR_CONSTANT };

static struct {
    const char *data, *image_dir, *out, *model;
    int epochs, batch_size, micro_batch, lr_schedule, timesteps, beta_schedule, save_every, workers, resolution[2];
    double lr, gamma, max_grad_norm, ema_decay;
    cli_list milestones;
    uint64_t seed;
} set;

/* clang-format off */
static const cli_option options[] = {
    {"data", "data_root train_data_dir", CLI_TEXT, "DATA", CLI_REQUIRED,
     "folder with train.json and objects.json", &set.data, 0, 0, 1},
    {"image-dir", NULL, CLI_TEXT, "DIR", "(DATA, or iclevr or images in or beside it)",
     "folder of the pictures", &set.image_dir, 0, 0, 0},
    {"out", "output_dir save_root", CLI_TEXT, "RUN", CLI_REQUIRED,
     "run directory to make", &set.out, 0, 0, 0},
    {"model", "weight_path weights", CLI_TEXT, "M", "lab",
     "lab, small, tiny, or a UNet2DModel's config.json", &set.model, 0, 0, 0},
    {"epochs", "num_epochs num_epoch", CLI_INT, "N", "50",
     "times over the data", &set.epochs, 1, 1e6, 0},
    {"batch-size", "train_batch_size", CLI_INT, "N", "32",
     "pictures in a step", &set.batch_size, 1, 65536, 0},
    {"micro-batch", NULL, CLI_INT, "N", "(the whole batch)",
     "pictures computed at once: less memory, the same gradients to rounding", &set.micro_batch, 1, 65536, 0},
    {"lr", "learning_rate", CLI_REAL, "R", "1e-4", "learning rate of Adam", &set.lr, 0, 1e6, 0},
    {"lr-schedule", "lr_scheduler", CLI_CHOICE, "multistep|constant", "multistep",
     "multistep: times --gamma at each of --milestones", &set.lr_schedule, 0, 0, 0},
    {"milestones", NULL, CLI_LIST, "E,E,...", "15,60,150",
     "epochs at which the rate drops", &set.milestones, 1, 1e6, 0},
    {"gamma", NULL, CLI_REAL, "R", "0.1", "what the rate is multiplied by", &set.gamma, 0, 1, 0},
    {"timesteps", "time_step ddpm_num_steps", CLI_INT, "T", "1000",
     "steps of the noise schedule", &set.timesteps, 2, 100000, 0},
    {"beta-schedule", "ddpm_beta_schedule", CLI_CHOICE, "squaredcos_cap_v2|linear", "squaredcos_cap_v2",
     "noise schedule", &set.beta_schedule, 0, 0, 0},
    {"save-every", "save_per_epoch save_model_epochs", CLI_INT, "N", "3",
     "epochs between checkpoints; the best and the last are kept as well", &set.save_every, 1, 1e6, 0},
    {"seed", NULL, CLI_SEED, "S", "529", "of weights, order, noise", &set.seed, 0, 0, 0},
    {"workers", "num_workers dataloader_num_workers", CLI_INT, "N", "2",
     "threads that decode pictures", &set.workers, 1, 256, 0},
    {"resolution", NULL, CLI_SIZE, "N|WxH", "(the model's)",
     "pixels of a picture", set.resolution, 1, 4096, 0},
    {"max-grad-norm", NULL, CLI_REAL, "R", "1.0",
     "gradients are scaled down to this norm; 0: never", &set.max_grad_norm, 0, 1e9, 0},
    {"ema-decay", NULL, CLI_REAL, "R", "0.9999",
     "largest decay of the averaged weights, which are what is saved", &set.ema_decay, 0, 1, 0},
    {0},
};
/* clang-format on */

/* ---- 2. The run's objects ------------------------------------------------------------------------------------ */

typedef struct training {
    lab_dataset *data;
    ddpm_model *model;
    ddpm_net *net;
    ddpm_schedule schedule;
    ddpm_trainer trainer;
    io_model_info info;
    ddpm_real *pictures, *labels; /* one batch */
    FILE *metrics;
    double *x, *y; /* epochs and loss after every step, for the curve */
    int points, room;
    cli_progress bar;
    double started;
    double best;        /* lowest average loss of an epoch so far */
    uint64_t best_step; /* of its checkpoint; 0: none */
    int best_is_extra;  /* saved only for being the best: removed when it no longer is */
} training;

static void close_training(training *t)
{
    if (t->metrics != NULL) fclose(t->metrics);
    free(t->pictures);
    free(t->labels);
    free(t->x);
    free(t->y);
    io_model_info_free(&t->info);
    ddpm_net_free(t->net);
    ddpm_schedule_free(&t->schedule);
    ddpm_model_free(t->model);
    lab_dataset_close(t->data);
}

/* A preset's name, or a UNet's config.json, which gets the lab's label encoder if its class_embed_type is identity. */
static ddpm_result read_model_config(int classes, ddpm_model_config *config)
{
    *config = ddpm_model_preset(set.model, classes);
    if (config->unet.levels > 0) return DDPM_OK;
    if (!io_is_file(set.model))
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "--model %s is neither a preset nor a file\n"
                         "      hint: lab, small, tiny, or a UNet2DModel's config.json",
                         set.model);
    *config = ddpm_model_default();
    ddpm_result result = io_unet_config_read(set.model, &config->unet);
    if (result != DDPM_OK) return result;
    const ddpm_unet_config *u = &config->unet;
    if (u->class_embed_type == DDPM_CLASS_IDENTITY) {
        int width = u->time_embedding_dim > 0 ? u->time_embedding_dim : 4 * u->block_out_channels[0];
        config->label = (ddpm_label_config){.num_classes = classes, .hidden_dim = 64, .embedding_dim = width};
    } else if (u->class_embed_type != DDPM_CLASS_NONE || u->num_class_embeds > 0) {
        return ddpm_fail(
            DDPM_ERR_UNSUPPORTED,
            "%s: its class embedding takes one number a picture, the data has label sets\n"
            "      hint: \"class_embed_type\": \"identity\" adds a label encoder; null with \"num_class_embeds\": "
            "null trains without labels",
            set.model);
    }
    return DDPM_OK;
}

/* The decoder threads need the pictures' size, which is the network's; the network needs the number of classes. */
static ddpm_result open_data(training *t, const ddpm_model_config *config)
{
    lab_dataset_config data = lab_dataset_default(set.data);
    const ddpm_unet_config *u = &config->unet;
    int shuffle = config->pixel_unshuffle > 1 ? config->pixel_unshuffle : 1;
    data.image_dir = set.image_dir;
    data.workers = set.workers;
    data.seed = set.seed;
    data.channels = u->in_channels / (shuffle * shuffle);
    data.width = set.resolution[0] > 0 ? set.resolution[0] : u->sample_size[1] * shuffle;
    data.height = set.resolution[1] > 0 ? set.resolution[1] : u->sample_size[0] * shuffle;
    if (data.width == 0 || data.height == 0)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: sample_size is null: the size of the pictures is not known\n"
                         "      hint: --resolution 64",
                         set.model);
    return lab_dataset_open(&data, &t->data);
}

static int micro_batch(void)
{
    return set.micro_batch > 0 && set.micro_batch < set.batch_size ? set.micro_batch : set.batch_size;
}

/* Everything up to the plan of the network: errors in the input show here, large memory comes later. */
static ddpm_result plan_training(const cli_context *context, training *t)
{
    ddpm_model_config config;
    lab_classes classes = {0};
    ddpm_result result = lab_classes_find(set.data, &classes);
    if (result == DDPM_OK) result = read_model_config(classes.count, &config);
    lab_classes_free(&classes);
    if (result == DDPM_OK) result = open_data(t, &config);
    if (result != DDPM_OK) return result;
    const lab_dataset_config *data = &t->data->config;
    config.unet.sample_size[0] = data->height / (config.pixel_unshuffle > 1 ? config.pixel_unshuffle : 1);
    config.unet.sample_size[1] = data->width / (config.pixel_unshuffle > 1 ? config.pixel_unshuffle : 1);
    result = ddpm_model_create(&t->model, &config, &context->device);
    if (result == DDPM_OK) result = ddpm_net_create(&t->net, t->model, data->height, data->width, micro_batch(), 1);
    return result;
}

static ddpm_result start_training(training *t)
{
    ddpm_schedule_config schedule = ddpm_schedule_default();
    schedule.num_train_timesteps = set.timesteps;
    schedule.beta_schedule = set.beta_schedule == 0 ? DDPM_BETA_SQUAREDCOS_CAP_V2 : DDPM_BETA_LINEAR;
    ddpm_train_config config = ddpm_train_default();
    config.max_grad_norm = set.max_grad_norm;
    config.ema_decay = set.ema_decay;
    config.seed = set.seed;
    size_t picture = (size_t)t->net->channels * (size_t)t->net->height * (size_t)t->net->width;
    if ((t->pictures = cli_alloc((size_t)set.batch_size * picture, sizeof *t->pictures)) == NULL ||
        (t->labels = cli_alloc((size_t)set.batch_size * (size_t)t->data->classes.count, sizeof *t->labels)) == NULL)
        return DDPM_ERR_MEMORY;
    ddpm_result result = ddpm_schedule_create(&t->schedule, &schedule);
    if (result == DDPM_OK) result = ddpm_model_alloc(t->model, DDPM_FOR_TRAINING);
    if (result == DDPM_OK) result = ddpm_model_init(t->model, set.seed);
    if (result == DDPM_OK) result = ddpm_graph_alloc(t->net->graph);
    if (result == DDPM_OK) result = ddpm_trainer_init(&t->trainer, t->net, &t->schedule, &config);
    t->info = io_model_info_default();
    t->info.pixel_unshuffle = t->model->config.pixel_unshuffle;
    t->info.height = t->net->height;
    t->info.width = t->net->width;
    if (result == DDPM_OK && t->model->config.label.num_classes > 0)
        result =
            io_model_info_set_classes(&t->info, (const char *const *)t->data->classes.name, t->data->classes.count);
    return result;
}

/* ---- 3. Memory ----------------------------------------------------------------------------------------------- */

/* One line each about the data, the model and the memory; DDPM_ERR_MEMORY if the run cannot fit. */
static ddpm_result report_plan(const training *t)
{
    const lab_dataset_config *data = &t->data->config;
    double parameters = cli_parameters(t->model);
    double arrays = parameters * sizeof(ddpm_real) * DDPM_ARRAYS, graph = (double)t->net->graph->bytes;
    double picture = (double)data->width * data->height * data->channels, cache = picture * t->data->count;
    if (cache > (double)data->cache_bytes) cache = (double)data->cache_bytes;
    double batch = set.batch_size * (picture + t->data->classes.count) * sizeof(ddpm_real);
    double total = arrays + graph + cache + batch, available = cli_memory_available();
    cli_short number, a, b, c, d, e;
    cli_note("data    %s", lab_dataset_describe(t->data));
    cli_note("model   %s at %dx%d, %s parameters", set.model, data->width, data->height, cli_count(parameters, number));
    cli_note("memory  %s: weights, gradients, moments and average %s, network for %d pictures %s, data %s",
             cli_bytes(total, a), cli_bytes(arrays, b), micro_batch(), cli_bytes(graph, c),
             cli_bytes(cache + batch, d));
    if (available > 0 && total > available)
        return ddpm_fail(DDPM_ERR_MEMORY,
                         "the run needs %s of memory, %s are available\n"
                         "      hint: a smaller --micro-batch (now %d: %s), --resolution or --model",
                         cli_bytes(total, a), cli_bytes(available, e), micro_batch(), cli_bytes(graph, c));
    return DDPM_OK;
}

/* ---- 4. The run directory ------------------------------------------------------------------------------------ */

static ddpm_result refuse_used_directory(void)
{
    DIR *directory = opendir(set.out);
    if (directory == NULL) {
        if (io_is_file(set.out))
            return ddpm_fail(DDPM_ERR_FILE, "%s is a file\n      hint: --out names the directory to make", set.out);
        return DDPM_OK; /* does not exist; other reasons show when it is made */
    }
    int used = 0;
    for (struct dirent *entry;
         !used && (entry = readdir(directory)) != NULL;) /* "step-12.tmp-345" was never finished */
        used = strncmp(entry->d_name, "step-", 5) == 0 && strchr(entry->d_name, '.') == NULL;
    closedir(directory);
    return used ? ddpm_fail(DDPM_ERR_ARGUMENT,
                            "%s holds the checkpoints of another run\n      hint: choose another --out", set.out)
                : DDPM_OK;
}

static ddpm_result write_settings(const cli_context *context, const training *t)
{
    char *path = io_join(set.out, "args.json"), *text = NULL;
    cJSON *object = cJSON_CreateObject();
    int complete = object != NULL && cJSON_AddStringToObject(object, "version", cli_version()) != NULL &&
                   cJSON_AddStringToObject(object, "command_line", context->command_line) != NULL &&
                   cJSON_AddStringToObject(object, "backend", context->device.backend->name) != NULL &&
                   cJSON_AddNumberToObject(object, "threads", context->device.threads) != NULL &&
                   cJSON_AddNumberToObject(object, "parameters", cli_parameters(t->model)) != NULL &&
                   cJSON_AddNumberToObject(object, "pictures", t->data->count) != NULL &&
                   cli_settings_to_json(options, object);
    if (complete) text = cJSON_Print(object);
    ddpm_result result = path == NULL || text == NULL
                             ? ddpm_fail(DDPM_ERR_MEMORY, "no memory to write %s/args.json", set.out)
                             : io_write_file(path, text, strlen(text));
    cJSON_Delete(object);
    free(text);
    free(path);
    return result;
}

static ddpm_result open_run(const cli_context *context, training *t)
{
    ddpm_result result = io_make_directory(set.out);
    if (result == DDPM_OK) result = write_settings(context, t);
    char *path = result == DDPM_OK ? io_join(set.out, "metrics.csv") : NULL;
    if (result == DDPM_OK && path == NULL) result = DDPM_ERR_MEMORY;
    if (result == DDPM_OK && (t->metrics = fopen(path, "w")) == NULL)
        result = ddpm_fail(DDPM_ERR_FILE, "%s cannot be written\n      hint: is there room, and the right to?", path);
    if (result == DDPM_OK) {
        setvbuf(t->metrics, NULL, _IOLBF, 4096); /* a line is there as soon as its step is done */
        fprintf(t->metrics, "step,epoch,lr,loss,grad_norm,pictures_per_second,seconds\n");
    }
    free(path);
    return result;
}

/* ---- 5. Checkpoints ------------------------------------------------------------------------------------------ */

/* RUN/name -> step-N, replaced in one piece: a link under another name, then rename. */
static ddpm_result link_checkpoint(const char *name, uint64_t step)
{
    ddpm_result result = DDPM_ERR_MEMORY;
    char *target = cli_text("step-%llu", (unsigned long long)step);
    char *temporary = cli_text("%s/.link-%ld", set.out, (long)getpid());
    char *link = io_join(set.out, name);
    if (target != NULL && temporary != NULL && link != NULL) {
        unlink(temporary);
        if (symlink(target, temporary) == 0 && rename(temporary, link) == 0)
            result = DDPM_OK;
        else
            result = ddpm_fail(DDPM_ERR_FILE,
                               "%s cannot be made a link to %s\n      hint: does this file system have links?", link,
                               target);
    }
    free(target);
    free(temporary);
    free(link);
    return result;
}

static char *checkpoint_path(uint64_t step)
{
    return cli_text("%s/step-%llu", set.out, (unsigned long long)step);
}

static ddpm_result save_checkpoint(const training *t)
{
    char *path = checkpoint_path(t->trainer.step);
    if (path == NULL) return DDPM_ERR_MEMORY;
    ddpm_result result = io_model_save(path, t->model, DDPM_EMA, IO_F32, &t->schedule.config, &t->info);
    free(path);
    return result == DDPM_OK ? link_checkpoint("latest", t->trainer.step) : result;
}

/* After an epoch: saves it if it is due, the last, or the best so far, and moves the links. A checkpoint that was
 * saved only for being the best goes when a better one has come. */
static ddpm_result end_epoch(training *t, int epoch, double loss)
{
    uint64_t step = t->trainer.step, beaten = t->best_is_extra ? t->best_step : 0;
    int due = epoch % set.save_every == 0 || epoch == set.epochs - 1;
    int best = t->best_step == 0 || loss < t->best;
    if (!due && !best) return DDPM_OK;
    ddpm_result result = save_checkpoint(t);
    if (result == DDPM_OK && due) {
        char name[32];
        snprintf(name, sizeof name, "epoch=%d", epoch);
        result = link_checkpoint(name, step);
    }
    if (result != DDPM_OK || !best) return result;
    result = link_checkpoint("best", step);
    t->best = loss;
    t->best_step = step;
    t->best_is_extra = !due;
    char *old = result == DDPM_OK && beaten > 0 ? checkpoint_path(beaten) : NULL;
    if (old != NULL) result = io_remove_tree(old);
    free(old);
    return result;
}

/* ---- 6. Epochs ----------------------------------------------------------------------------------------------- */

static double learning_rate(int epoch)
{
    if (set.lr_schedule == LR_CONSTANT) return set.lr;
    return ddpm_multistep_lr(set.lr, epoch, set.milestones.value, set.milestones.count, set.gamma);
}

static ddpm_result write_metrics(const training *t, int epoch, double lr, double loss, double rate)
{
    fprintf(t->metrics, "%llu,%d,%.9g,%.9g,%.9g,%.4g,%.3f\n", (unsigned long long)t->trainer.step, epoch, lr, loss,
            t->trainer.grad_norm, rate, cli_seconds() - t->started);
    return ferror(t->metrics)
               ? ddpm_fail(DDPM_ERR_FILE, "%s/metrics.csv cannot be written\n      hint: is the disk full?", set.out)
               : DDPM_OK;
}

static ddpm_result keep_point(training *t, double epochs, double loss)
{
    if (t->points == t->room) {
        int room = t->room > 0 ? 2 * t->room : 1024;
        double *x = realloc(t->x, (size_t)room * sizeof *x), *y = realloc(t->y, (size_t)room * sizeof *y);
        t->x = x != NULL ? x : t->x;
        t->y = y != NULL ? y : t->y;
        if (x == NULL || y == NULL) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for the losses of %d steps", room);
        t->room = room;
    }
    t->x[t->points] = epochs;
    t->y[t->points++] = loss;
    return DDPM_OK;
}

/* RUN/loss.png: every step pale, their running mean bold. */
static ddpm_result draw_curve(const training *t)
{
    io_picture picture = {0};
    double window = t->points < 1000 ? t->points / 20.0 : 50; /* steps */
    io_series loss = {.x = t->x, .y = t->y, .count = t->points, .smooth = window / (1 + window)};
    io_plot plot = {.title = set.out, .x_label = "epochs", .y_label = "loss", .series = &loss, .count = 1, .log_y = 1};
    char *path = io_join(set.out, "loss.png");
    ddpm_result result = path != NULL ? io_plot_draw(&plot, &picture) : DDPM_ERR_MEMORY;
    if (result == DDPM_OK) result = io_picture_write_png(path, &picture, NULL, 0);
    io_picture_free(&picture);
    free(path);
    return result;
}

static ddpm_result train_epoch(training *t, int epoch)
{
    double lr = learning_rate(epoch), total = 0, begin = cli_seconds(), last = begin;
    int pictures = 0, steps = (t->data->count + set.batch_size - 1) / set.batch_size;
    ddpm_result result = lab_dataset_start_epoch(t->data, (uint32_t)epoch);
    for (int step = 1, got; result == DDPM_OK; step++) {
        double loss;
        result = lab_dataset_next(t->data, set.batch_size, t->pictures, t->labels, &got);
        if (result != DDPM_OK || got == 0) break;
        result = ddpm_train_step(&t->trainer, t->pictures, t->net->labels != NULL ? t->labels : NULL, got, lr, &loss);
        if (result != DDPM_OK) break;
        double now = cli_seconds();
        total += loss * got;
        pictures += got;
        result = write_metrics(t, epoch, lr, loss, got / (now - last));
        if (result == DDPM_OK) result = keep_point(t, epoch + (double)step / steps, loss);
        last = now;
        cli_progress_show(&t->bar, epoch + (double)step / steps,
                          "epoch %d/%d step %llu lr %g loss %.4f %.1f pictures/s", epoch, set.epochs,
                          (unsigned long long)t->trainer.step, lr, total / pictures, pictures / (now - begin));
    }
    cli_progress_clear(&t->bar);
    if (result != DDPM_OK) return result;
    cli_short duration;
    double seconds = cli_seconds() - begin;
    cli_note("epoch %d: loss %.5f, lr %g, %.1f pictures/s, %s", epoch, total / pictures, lr, pictures / seconds,
             cli_duration(seconds, duration));
    result = draw_curve(t);
    return result == DDPM_OK ? end_epoch(t, epoch, total / pictures) : result;
}

/* ---- 7. The command ------------------------------------------------------------------------------------------ */

static ddpm_result train(const cli_context *context, training *t)
{
    ddpm_result result = refuse_used_directory();
    if (result == DDPM_OK) result = plan_training(context, t);
    if (result == DDPM_OK) result = report_plan(t);
    if (result == DDPM_OK) result = start_training(t);
    if (result == DDPM_OK) result = open_run(context, t);
    t->started = cli_seconds();
    cli_progress_start(&t->bar, "train", set.epochs);
    for (int epoch = 0; result == DDPM_OK && epoch < set.epochs; epoch++)
        result = train_epoch(t, epoch);
    if (result == DDPM_OK) {
        cli_short duration;
        cli_note("%llu steps in %s, lowest average loss %.5f (step-%llu)", (unsigned long long)t->trainer.step,
                 cli_duration(cli_seconds() - t->started, duration), t->best, (unsigned long long)t->best_step);
        printf("%s\n", set.out);
    }
    return result;
}

static int run(const cli_context *context)
{
    training t = {0};
    ddpm_result result = train(context, &t);
    int status = cli_exit(result);
    close_training(&t);
    return status;
}

const cli_command cli_train = {
    "train",
    "DATA --out RUN [--model lab|small|tiny|CONFIG.json]",
    "trains a model on a data set's pictures and labels",
    "RUN then holds step-N/ (models that diffusers can load), the links latest, best and epoch=N, metrics.csv,\n"
    "loss.png and args.json. The defaults are the lab's recipe.",
    options,
    run};
