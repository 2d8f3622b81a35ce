/* cli/train.c - ddpm train: a data set and a model's config become a run directory with checkpoints and metrics, or a
 * run that was stopped goes on. Everything that can be refused is refused before the run directory is touched.
 *
 * Contents: 1 options   2 the run's objects   3 the model   4 the data and the network   5 the data's troubles, memory
 *           6 settings of a resumed run   7 state: training.json   8 the run directory   9 checkpoints
 *           10 what ranks know of each other   11 steps   12 epochs   13 the command */
#include <cjson/cJSON.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cli/judge.h"
#include "cli/run.h"
#include "cli/sampler.h"
#include "cli/watch.h"
#include "io/checkpoint.h"
#include "io/events.h"
#include "io/file.h"
#include "io/json.h"
#include "io/model.h"
#include "io/plot.h"
#include "lab/dataset.h"
#include "lab/teacher.h"

/* ---- 1. Options ---------------------------------------------------------------------------------------------- */

enum { LR_MULTISTEP, LR_CONSTANT, LR_COSINE };

static struct {
    const char *data, *image_dir, *out, *model, *args, *guide, *scheduler, *log_dir;
    int epochs, batch_size, micro_batch, recompute, lr_schedule, warmup, timesteps, beta_schedule, prediction_type,
        zero_snr, save_every, save_steps, keep, max_steps, workers, pixel_unshuffle, resolution[2], resize, channels,
        random_flip, unconditional, resume, force, grad_accum, overfit, held_out, eval_every, sample_every, show,
        dry_run, ranks, gpus;
    double lr, gamma, beta, weight_decay, max_grad_norm, ema_decay, cond_drop, snr_gamma, save_minutes, max_time,
        beta_start, beta_end;
    cli_list milestones;
    uint64_t seed;
} set;

/* clang-format off */
static const cli_option options[] = {
    {"data", "data_root train_data_dir", CLI_TEXT, "DATA", "(required; a run that is resumed knows it)",
     "folder with train.json and objects.json, or metadata.jsonl or .csv, or one folder a class, or pictures alone",
     &set.data, 0, 0, 1},
    {"image-dir", NULL, CLI_TEXT, "DIR", "(DATA, or iclevr or images in or beside it)",
     "folder of a list's pictures", &set.image_dir, 0, 0, 0},
    {"unconditional", NULL, CLI_FLAG, NULL, NULL,
     "leave labels aside, whatever the data has", &set.unconditional, 0, 0, 0},
    {"out", "output_dir save_root", CLI_TEXT, "RUN", "(required)",
     "run directory to make, or to go on with", &set.out, 0, 0, 0},
    {"model", "weight_path weights", CLI_TEXT, "M", "(small; on a GPU lab)",
     "lab, small, tiny, a UNet2DModel's config.json, a model_index.json, or, to fine-tune it, a model or run",
     &set.model, 0, 0, 0},
    {"pixel-unshuffle", NULL, CLI_INT, "R", "(the model's; 1: none)",
     "the network sees R x R pixels as channels of one: a picture R times as large for the same work",
     &set.pixel_unshuffle, 1, 64, 0},
    {"epochs", "num_epochs num_epoch", CLI_INT, "N", "50",
     "times over the data", &set.epochs, 1, 1e6, 0},
    {"max-steps", "max_train_steps", CLI_INT, "N", "(no limit)",
     "ends after so many steps; without --epochs, whatever number of epochs that takes", &set.max_steps, 1, 2e9, 0},
    {"max-time", NULL, CLI_REAL, "MINUTES", "(no limit)",
     "saves and ends after so long; --resume goes on", &set.max_time, 0, 1e9, 0},
    {"batch-size", "train_batch_size", CLI_INT, "N", "32",
     "pictures in a step, of all ranks together", &set.batch_size, 1, 65536, 0},
    {"ranks", NULL, CLI_INT, "N", "(1, or as mpirun says)",
     "processes that share each step's pictures; the same weights to rounding", &set.ranks, 1, 256, 0},
    {"gpus", NULL, CLI_INT, "N", "(as --backend says)",
     "GPUs of this machine that do, a process for each; mpirun is for more machines (make mpi)", &set.gpus, 1, 256, 0},
    {"micro-batch", NULL, CLI_INT, "N", "(the whole batch)",
     "pictures a rank computes at once: less memory, the same gradients to rounding", &set.micro_batch, 1, 65536, 0},
    {"recompute", NULL, CLI_FLAG, NULL, NULL,
     "keep only what leaves each block: less memory, the same bits, a part of forward twice", &set.recompute, 0, 0, 0},
    {"grad-accum", "gradient_accumulation_steps", CLI_INT, "K", "1",
     "compute a batch in K parts: as --micro-batch with a K-th of it", &set.grad_accum, 1, 65536, 0},
    {"lr", "learning_rate", CLI_REAL, "R", "1e-4", "learning rate of Adam", &set.lr, 0, 1e6, 0},
    {"lr-schedule", "lr_scheduler", CLI_CHOICE, "multistep|constant|cosine", "multistep",
     "multistep: times --gamma at each of --milestones; cosine: to 0 at the last step", &set.lr_schedule, 0, 0, 0},
    {"warmup", "lr_warmup_steps", CLI_INT, "STEPS", "0",
     "steps over which the rate rises from 0", &set.warmup, 0, 1e9, 0},
    {"milestones", NULL, CLI_LIST, "E,E,...", "15,60,150",
     "epochs at which the rate drops", &set.milestones, 1, 1e6, 0},
    {"gamma", NULL, CLI_REAL, "R", "0.1", "what the rate is multiplied by", &set.gamma, 0, 1, 0},
    {"weight-decay", "adam_weight_decay", CLI_REAL, "R", "0",
     "decoupled from the gradient (AdamW)", &set.weight_decay, 0, 1e3, 0},
    {"cond-drop", "label_dropout", CLI_REAL, "P", "0",
     "share of the pictures whose labels are left out, so that sample --guidance can be used: 0.1 is usual",
     &set.cond_drop, 0, 1, 0},
    {"beta", NULL, CLI_REAL, "R", "(0; 1 with --guide)",
     "fine-tuning on an evaluator's score: R times abar_t (-log p(labels | x_0)) a class is added to the loss",
     &set.beta, 0, 1e6, 0},
    {"guide", NULL, CLI_TEXT, "PATH", "(none; with --beta the model's evaluator/, else the bundled one)",
     "that evaluator; who judges the result should be another one", &set.guide, 0, 0, 0},
    {"snr-gamma", NULL, CLI_REAL, "G", "(off)",
     "weigh the loss by min-SNR with this gamma: 5 is usual", &set.snr_gamma, 0, 1e9, 0},
    {"timesteps", "time_step ddpm_num_steps", CLI_INT, "T", "1000",
     "steps of the noise schedule", &set.timesteps, 2, 100000, 0},
    {"beta-schedule", "ddpm_beta_schedule", CLI_CHOICE, CLI_BETA_SCHEDULES, "squaredcos_cap_v2",
     "noise schedule", &set.beta_schedule, 0, 0, 0},
    {"beta-start", NULL, CLI_REAL, "R", "0.0001", "of linear, scaled_linear and sigmoid", &set.beta_start, 0, 1, 0},
    {"beta-end", NULL, CLI_REAL, "R", "0.02", "of the same", &set.beta_end, 0, 1, 0},
    {"prediction-type", NULL, CLI_CHOICE, CLI_PREDICTION_TYPES, "epsilon",
     "what the network learns to say: the noise, x_0, or v = sqrt(abar) eps - sqrt(1 - abar) x_0",
     &set.prediction_type, 0, 0, 0},
    {"zero-snr", "rescale_betas_zero_snr", CLI_FLAG, NULL, NULL,
     "betas rescaled so that nothing of x_0 is left at the last t; not for epsilon", &set.zero_snr, 0, 0, 0},
    {"scheduler", NULL, CLI_TEXT, "FILE", "(none)",
     "a scheduler_config.json of diffusers for the whole schedule, trained_betas too; the options above go before it",
     &set.scheduler, 0, 0, 0},
    {"save-every", "save_per_epoch save_model_epochs", CLI_INT, "N", "3",
     "epochs between checkpoints; the best and the last are kept as well", &set.save_every, 1, 1e6, 0},
    {"save-steps", "checkpointing_steps", CLI_INT, "N", "(only after epochs)",
     "steps between checkpoints, also within an epoch", &set.save_steps, 1, 2e9, 0},
    {"save-minutes", NULL, CLI_REAL, "MINUTES", "(only after epochs)",
     "time between checkpoints, also within an epoch", &set.save_minutes, 0, 1e9, 0},
    {"keep", "checkpoints_total_limit", CLI_INT, "N", "2",
     "newest checkpoints that can be continued from; of older ones the best and epoch=N stay as models; 0: all stay",
     &set.keep, 0, 1e6, 0},
    {"sample-every", NULL, CLI_INT, "STEPS", "(never)",
     "steps between pictures in RUN/samples, of the same noise and labels: live weights above, averaged ones below",
     &set.sample_every, 1, 2e9, 0},
    {"show", NULL, CLI_FLAG, NULL, NULL,
     "show those pictures in the terminal as well", &set.show, 0, 0, 0},
    {"held-out", NULL, CLI_INT, "N", "0",
     "pictures that are not trained on: their loss, at fixed t and noise, stands in metrics.csv", &set.held_out, 0, 1e9,
     0},
    {"eval-every", NULL, CLI_INT, "N", "1",
     "epochs between held-out losses", &set.eval_every, 1, 1e6, 0},
    {"overfit", NULL, CLI_INT, "N", "(off)",
     "train on the first N pictures alone: a model that cannot learn those by heart has an error", &set.overfit, 1, 1e9,
     0},
    {"dry-run", NULL, CLI_FLAG, NULL, NULL,
     "say what the run would take, parameters, memory, time, and end", &set.dry_run, 0, 0, 0},
    {"resume", NULL, CLI_FLAG, NULL, NULL,
     "go on with RUN where it was stopped, with its settings", &set.resume, 0, 0, 0},
    {"force", NULL, CLI_FLAG, NULL, NULL,
     "resume although a setting or the data has changed", &set.force, 0, 0, 0},
    {"args", NULL, CLI_TEXT, "FILE", "(none)",
     "settings for what is not given here: the args.json of another run", &set.args, 0, 0, 0},
    {"seed", NULL, CLI_SEED, "S", "529", "of weights, order, noise", &set.seed, 0, 0, 0},
    {"workers", "num_workers dataloader_num_workers", CLI_INT, "N", "2",
     "threads that decode pictures", &set.workers, 1, 256, 0},
    {"resolution", NULL, CLI_SIZE, "N|WxH", "(the model's)",
     "pixels of a picture", set.resolution, 1, 4096, 0},
    {"resize", NULL, CLI_CHOICE, "squeeze|crop", "squeeze",
     "of pictures of another aspect: all of them, squeezed, or their middle", &set.resize, 0, 0, 0},
    {"random-flip", NULL, CLI_FLAG, NULL, NULL,
     "mirror half of the pictures left to right, others in every epoch", &set.random_flip, 0, 0, 0},
    {"channels", NULL, CLI_INT, "1|3", "(the model's)",
     "gray or colour", &set.channels, 1, 3, 0},
    {"max-grad-norm", NULL, CLI_REAL, "R", "1.0",
     "gradients are scaled down to this norm; 0: never", &set.max_grad_norm, 0, 1e9, 0},
    {"ema-decay", NULL, CLI_REAL, "R", "0.9999",
     "largest decay of the averaged weights, which are what is saved", &set.ema_decay, 0, 1, 0},
    {"log-dir", "logging_dir", CLI_TEXT, "DIR", "(none)",
     "also writes loss, lr and grad_norm there for TensorBoard", &set.log_dir, 0, 0, 0},
    {0},
};
/* clang-format on */

static int is_given(const char *name)
{
    return cli_given_name(options, name);
}

/* ---- 2. The run's objects ------------------------------------------------------------------------------------ */

enum { MAX_BAD_STEPS = 10 }; /* in a row, that are skipped because a loss or gradient was not finite */

enum { TENTHS = 10 }; /* of [0,T), for the losses by t */

typedef struct training {
    ddpm_comm *comm; /* the ranks; number 0 alone writes */
    comm_reducer *reducer;
    lab_dataset *data;
    ddpm_model *model;
    ddpm_net *net;
    ddpm_schedule schedule;
    ddpm_trainer trainer;
    io_model_info info;
    char *guide_path;     /* of the evaluator in the model that is fine-tuned */
    lab_evaluator *guide; /* of --beta */
    lab_teacher *teacher; /* the same at work */
    char *source;         /* a directory that weights come from: a generation, or a model to fine-tune */
    int new_labels;       /* its label encoder does not fit the data's classes */
    cJSON *args, *saved;  /* --args FILE; training.json of the generation that is resumed */
    cli_samples samples;
    double *losses; /* of the pictures of a step, and their t */
    int *timesteps;
    double held_out[2];               /* its loss with the live weights and with the averaged ones; NaN: not taken */
    double step_seconds;              /* measured before the first step */
    ddpm_real *pictures, *labels;     /* the batch that is read, */
    ddpm_real *others, *other_labels; /* and the one that is trained on meanwhile: they change places */
    int lock;
    cli_csv metrics, timing;
    io_events events; /* --log-dir */
    cli_progress bar;
    double started, last_save, last_curve; /* cli_seconds() */
    double earlier;                        /* seconds that the run took before it was resumed */
    double first_picture;                  /* of this process */

    /* Where the run stands: with the trainer's counters and the arrays this is all that a checkpoint holds. */
    int epoch, position; /* pictures of the epoch that are done */
    double loss_sum;     /* of the epoch so far: loss times pictures */
    int loss_pictures;
    double best;                        /* lowest average loss of an epoch so far */
    uint64_t best_step;                 /* of its checkpoint; 0: none */
    int bad_steps;                      /* in a row, up to now */
    int save_due;                       /* --save-minutes have passed */
    const char *reason;                 /* why the run ends before its last epoch; NULL: it does not */
    double tenth[2 * TENTHS];           /* of the last step, by t: sums of its pictures' losses, and their numbers */
    uint64_t tried_step;                /* of the last attempt at one */
    uint64_t saved_step, saved_picture; /* of the newest checkpoint */
} training;

static void close_training(training *t)
{
    cli_csv_close(&t->metrics);
    cli_csv_close(&t->timing);
    io_events_close(&t->events);
    cli_run_unlock(t->lock);
    cli_samples_free(&t->samples);
    free(t->losses);
    free(t->timesteps);
    free(t->pictures);
    free(t->labels);
    free(t->others);
    free(t->other_labels);
    free(t->source);
    free(t->guide_path);
    cJSON_Delete(t->args);
    cJSON_Delete(t->saved);
    lab_teacher_free(t->teacher);
    lab_evaluator_free(t->guide);
    comm_reducer_free(t->reducer);
    io_model_info_free(&t->info);
    ddpm_net_free(t->net);
    io_schedule_config_free(&t->schedule.config);
    ddpm_schedule_free(&t->schedule);
    ddpm_model_free(t->model);
    lab_dataset_close(t->data);
}

static volatile sig_atomic_t signalled, underway, others_tell; /* rank 0 says why all end */
static double signalled_at;

/* The first signal asks for a save and an end after the step in progress. One that comes a second or more later kills
 * as usual; one that comes at once is the same again, as `timeout` and batch systems send it to the process and to its
 * group. Before the first step there is nothing to save. */
static void note_signal(int number)
{
    static const char early[] = "\nstopped before the first step: there is nothing to save\n";
    if (!underway) {
        if (!others_tell && write(STDERR_FILENO, early, sizeof early - 1) < 0) _exit(CLI_FAILED);
        _exit(CLI_DONE);
    }
    if (signalled == 0) {
        signalled_at = cli_seconds();
        signalled = number;
    } else if (cli_seconds() - signalled_at > 1) {
        signal(number, SIG_DFL);
        raise(number);
    }
}

/* SIGHUP counts unless nohup has it ignored. A file that may not grow (ulimit -f) is an error like a full disk, not a
 * signal; and that nobody reads the output any longer (a pipe to a tee that has ended) is no reason to stop. */
static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = note_signal, .sa_flags = SA_RESTART}, hangup;
    sigfillset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, NULL);
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
}

/* ---- 3. The model -------------------------------------------------------------------------------------------- */

/* What the lab adds to a UNet with class_embed_type identity. */
static ddpm_label_config label_encoder(const ddpm_unet_config *u, int classes)
{
    int width = u->time_embedding_dim > 0 ? u->time_embedding_dim : 4 * u->block_out_channels[0];
    return (ddpm_label_config){.num_classes = classes, .hidden_dim = 64, .embedding_dim = width};
}

/* A preset's network takes labels as the data has them: sets through the lab's label encoder; one class a picture
 * through an Embedding of one class more, which stands for "no label"; or none. */
static ddpm_model_config preset_for(const lab_dataset *data)
{
    ddpm_model_config config = ddpm_model_preset(set.model, data->kind == LAB_MULTI_LABEL ? data->classes.count : 0);
    int r = config.pixel_unshuffle = set.pixel_unshuffle > 0 ? set.pixel_unshuffle : 1;
    if (data->kind == LAB_ONE_CLASS) config.unet.num_class_embeds = data->classes.count + 1;
    config.unet.in_channels *= r * r;
    config.unet.out_channels *= r * r;
    return config;
}

/* What a network takes must be what the data has. */
static ddpm_result check_labels(const char *path, const ddpm_unet_config *u, const lab_dataset *data)
{
    int takes_labels = u->class_embed_type != DDPM_CLASS_NONE || u->num_class_embeds > 0;
    if (takes_labels && data->kind == LAB_UNLABELLED)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: takes labels, and the data has none (%s)\n"
                         "      hint: \"class_embed_type\": null with \"num_class_embeds\": null trains without",
                         path, lab_dataset_describe(data));
    if (u->class_embed_type == DDPM_CLASS_TIMESTEP || (u->num_class_embeds > 0 && data->kind == LAB_MULTI_LABEL))
        return ddpm_fail(
            DDPM_ERR_UNSUPPORTED,
            "%s: its class embedding takes one number a picture, the data has label sets\n"
            "      hint: \"class_embed_type\": \"identity\" adds a label encoder; null with \"num_class_embeds\": "
            "null trains without labels",
            path);
    return DDPM_OK;
}

/* A UNet's config.json, which gets the lab's label encoder if its class_embed_type is identity. */
static ddpm_result read_unet_config(const lab_dataset *data, ddpm_model_config *config)
{
    *config = ddpm_model_default();
    ddpm_result result = io_unet_config_read(set.model, &config->unet);
    if (result == DDPM_OK) result = check_labels(set.model, &config->unet, data);
    if (result != DDPM_OK) return result;
    const ddpm_unet_config *u = &config->unet;
    config->pixel_unshuffle = set.pixel_unshuffle > 0 ? set.pixel_unshuffle : 1;
    if (u->class_embed_type == DDPM_CLASS_IDENTITY) config->label = label_encoder(u, data->classes.count);
    if (u->num_class_embeds > 0 && u->num_class_embeds < data->classes.count)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: num_class_embeds is %d, the data has %d classes\n"
                         "      hint: %d leaves one for \"no label\", which guidance needs",
                         set.model, u->num_class_embeds, data->classes.count, data->classes.count + 1);
    return DDPM_OK;
}

static int same_classes(const io_model_info *info, const lab_classes *classes)
{
    int same = info->classes == classes->count;
    for (int i = 0; same && i < classes->count; i++)
        same = strcmp(info->class_name[i], classes->name[i]) == 0;
    return same;
}

/* The configs of a model directory. Where the data has other classes what takes the labels is made anew. */
static ddpm_result read_directory(training *t, const char *path, ddpm_model_config *config,
                                  ddpm_schedule_config *schedule)
{
    const lab_classes *classes = &t->data->classes;
    ddpm_unet_config *u = &config->unet;
    ddpm_result result = io_model_read_config(path, config, schedule, &t->info);
    if (result == DDPM_OK) result = check_labels(path, u, t->data);
    if (result != DDPM_OK) return result;
    if (set.pixel_unshuffle > 0 && set.pixel_unshuffle != config->pixel_unshuffle)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%s: its pixel_unshuffle is %d\n      hint: leave out --pixel-unshuffle",
                         path, config->pixel_unshuffle);
    int encoder = u->class_embed_type == DDPM_CLASS_IDENTITY;
    if (!encoder && u->num_class_embeds == 0) return DDPM_OK;
    t->new_labels = (encoder && config->label.num_classes == 0) || !same_classes(&t->info, classes);
    if (!t->new_labels) return DDPM_OK;
    t->info.none_class = -1;
    if (!encoder)
        u->num_class_embeds = classes->count + 1;
    else if (config->label.num_classes > 0)
        config->label.num_classes = classes->count;
    else
        config->label = label_encoder(u, classes->count);
    return DDPM_OK;
}

/* model_index.json stands for the configs of its directory, the weights being made anew. */
static ddpm_result read_index(training *t, ddpm_model_config *config, ddpm_schedule_config *schedule)
{
    const char *slash = strrchr(set.model, '/');
    char *directory = slash != NULL ? cli_text("%.*s", (int)(slash - set.model), set.model) : cli_text(".");
    ddpm_result result = directory != NULL ? read_directory(t, directory, config, schedule) : DDPM_ERR_MEMORY;
    free(directory);
    return result;
}

static int ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

/* --model: a preset, a config.json, a model_index.json, or a model or run to fine-tune; or a generation to go on with.
 * *schedule is changed where the model says what its noise schedule is. */
static ddpm_result read_model_config(training *t, ddpm_model_config *config, ddpm_schedule_config *schedule)
{
    if (t->saved != NULL) return read_directory(t, t->source, config, schedule);
    *config = preset_for(t->data);
    if (config->unet.levels > 0) return DDPM_OK;
    if (io_is_directory(set.model)) {
        t->source = cli_find_model(set.model);
        return t->source != NULL ? read_directory(t, t->source, config, schedule) : DDPM_ERR_FILE;
    }
    if (!io_is_file(set.model))
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "--model %s is neither a preset nor a file or directory\n"
                         "      hint: lab, small, tiny, a UNet2DModel's config.json, or a model or run to fine-tune",
                         set.model);
    if (ends_with(set.model, "model_index.json")) return read_index(t, config, schedule);
    return read_unet_config(t->data, config);
}

/* ---- 4. The data and the network ----------------------------------------------------------------------------- */

static ddpm_result open_data(training *t)
{
    lab_dataset_config data = lab_dataset_default(set.data);
    data.image_dir = set.image_dir;
    data.unconditional = set.unconditional;
    data.width = data.height = 0; /* the model says */
    data.resize = set.resize == 0 ? LAB_SQUEEZE : LAB_CROP;
    data.random_flip = set.random_flip;
    data.workers = set.workers;
    data.seed = set.seed;
    return lab_dataset_open(&data, &t->data);
}

/* Size and channels of the pictures: the model's, unless --resolution and --channels change both. */
static ddpm_result fit_pictures(training *t, ddpm_model_config *config)
{
    ddpm_unet_config *u = &config->unet;
    int factor = config->pixel_unshuffle > 1 ? config->pixel_unshuffle : 1;
    int width = set.resolution[0] > 0 ? set.resolution[0] : u->sample_size[1] * factor;
    int height = set.resolution[1] > 0 ? set.resolution[1] : u->sample_size[0] * factor;
    if (width == 0 || height == 0)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: sample_size is null: the size of the pictures is not known\n"
                         "      hint: --resolution 64",
                         set.model);
    if (set.channels > 0) u->in_channels = u->out_channels = set.channels * factor * factor;
    u->sample_size[0] = height / factor;
    u->sample_size[1] = width / factor;
    return lab_dataset_set_size(t->data, width, height, u->in_channels / (factor * factor));
}

/* Two ways to say one thing: they must not contradict each other, or the batch. */
static ddpm_result check_parts(void)
{
    if (set.grad_accum > 1 && set.micro_batch > 0)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "--grad-accum %d and --micro-batch %d both say how a batch is divided\n"
                         "      hint: leave one of them out",
                         set.grad_accum, set.micro_batch);
    if (set.grad_accum > set.batch_size)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "--grad-accum %d: a batch of %d pictures has no more than %d parts\n"
                         "      hint: --batch-size is what a step learns from, all parts together",
                         set.grad_accum, set.batch_size, set.batch_size);
    return DDPM_OK;
}

/* An option that would change nothing is refused. */
static ddpm_result check_effects(void)
{
    const struct {
        const char *name, *of;
        int has_effect;
    } part[] = {{"milestones", "--lr-schedule multistep", set.lr_schedule == LR_MULTISTEP},
                {"gamma", "--lr-schedule multistep", set.lr_schedule == LR_MULTISTEP},
                {"show", "--sample-every STEPS", set.sample_every > 0}};
    for (size_t i = 0; i < sizeof part / sizeof part[0]; i++)
        if (!part[i].has_effect && is_given(part[i].name))
            return ddpm_fail(DDPM_ERR_ARGUMENT,
                             "--%s has no effect without %s\n      hint: leave out the one, or add the other",
                             part[i].name, part[i].of);
    return DDPM_OK;
}

/* Pictures of a step that a rank has at most. */
static int rank_batch(const training *t)
{
    return (set.batch_size + t->comm->size - 1) / t->comm->size;
}

static int micro_batch(const training *t)
{
    int whole = rank_batch(t), part = (whole + set.grad_accum - 1) / set.grad_accum;
    if (set.micro_batch > 0) part = set.micro_batch;
    return part < whole ? part : whole;
}

/* Without micro-batches gradients need not add up, and their memory serves activations first. */
static int training_mode(const training *t)
{
    return DDPM_TRAINING | (set.recompute ? DDPM_RECOMPUTE : 0) |
           (micro_batch(t) == rank_batch(t) ? DDPM_SHARE_GRADIENTS : 0);
}

/* Options that were given go before what the model says. */
static ddpm_result choose_schedule(const training *t, ddpm_schedule_config *schedule)
{
    int all = t->source == NULL && !ends_with(set.model, "model_index.json") && set.scheduler == NULL;
    ddpm_schedule_config read;
    if (t->saved != NULL) return DDPM_OK;
    ddpm_result result = set.scheduler != NULL ? io_schedule_config_read(set.scheduler, &read) : DDPM_OK;
    if (result != DDPM_OK) return result;
    if (set.scheduler != NULL) {
        io_schedule_config_free(schedule);
        *schedule = read;
    }
    if (all || is_given("timesteps")) schedule->num_train_timesteps = set.timesteps;
    if (all || is_given("beta-schedule")) schedule->beta_schedule = (ddpm_beta_schedule)set.beta_schedule;
    if (all || is_given("beta-start")) schedule->beta_start = set.beta_start;
    if (all || is_given("beta-end")) schedule->beta_end = set.beta_end;
    if (all || is_given("prediction-type")) schedule->prediction_type = (ddpm_prediction_type)set.prediction_type;
    if (all || is_given("zero-snr")) schedule->rescale_betas_zero_snr = set.zero_snr;
    if (is_given("timesteps") || is_given("beta-schedule")) io_schedule_config_free(schedule); /* its trained_betas */
    int has_range =
        schedule->beta_schedule != DDPM_BETA_SQUAREDCOS_CAP_V2 && schedule->beta_schedule != DDPM_BETA_LAPLACE;
    if (!has_range && (is_given("beta-start") || is_given("beta-end")))
        return ddpm_fail(DDPM_ERR_ARGUMENT, "--beta-start and --beta-end have no effect on this beta schedule\n"
                                            "      hint: leave them out, or --beta-schedule linear");
    return DDPM_OK;
}

/* Everything up to the plan of the network: errors in the input show here, large memory comes later. */
static ddpm_result plan_training(const cli_context *context, training *t)
{
    ddpm_model_config config;
    ddpm_schedule_config *schedule = &t->schedule.config; /* closing frees its trained_betas */
    *schedule = ddpm_schedule_default();
    ddpm_result result = open_data(t);
    if (result == DDPM_OK) result = read_model_config(t, &config, schedule);
    if (result == DDPM_OK) result = fit_pictures(t, &config);
    if (result != DDPM_OK) return result;
    const lab_dataset_config *data = &t->data->config;
    result = ddpm_model_create(&t->model, &config, &context->device);
    if (result == DDPM_OK)
        result = ddpm_net_create(&t->net, t->model, data->height, data->width, micro_batch(t), training_mode(t));
    if (result == DDPM_OK && set.sample_every > 0 && t->comm->rank == 0)
        result = cli_samples_create(&t->samples, t->model, data->height, data->width);
    if (result == DDPM_OK) result = choose_schedule(t, schedule);
    if (result == DDPM_OK) {
        ddpm_schedule_config chosen = *schedule;
        result = ddpm_schedule_create(&t->schedule, &chosen);
    }
    if (result == DDPM_OK && schedule->prediction_type == DDPM_PREDICTS_EPSILON &&
        t->schedule.alpha_bar[schedule->num_train_timesteps - 1] == 0)
        result = ddpm_fail(DDPM_ERR_ARGUMENT,
                           "with these betas%s the last x_t holds nothing of x_0, so that no eps can lead to it\n"
                           "      hint: --prediction-type v_prediction, or smaller betas",
                           schedule->rescale_betas_zero_snr ? " and --zero-snr" : "");
    if (result == DDPM_OK && set.cond_drop > 0 && t->net->labels == NULL)
        result = ddpm_fail(DDPM_ERR_ARGUMENT, "--cond-drop leaves out labels, and this model takes none\n"
                                              "      hint: leave out --cond-drop");
    int embeds = config.unet.num_class_embeds;
    if (embeds > t->data->classes.count && t->info.none_class < 0) t->info.none_class = t->data->classes.count;
    if (result == DDPM_OK && set.cond_drop > 0 && embeds > 0 && t->info.none_class < 0)
        result =
            ddpm_fail(DDPM_ERR_ARGUMENT,
                      "%s: num_class_embeds %d leaves no class to stand for \"no label\", which --cond-drop needs\n"
                      "      hint: %d does",
                      set.model, embeds, embeds + 1);
    return result;
}

/* --beta: an evaluator takes part in the training. */
static ddpm_result open_teacher(const cli_context *context, training *t)
{
    if (set.guide != NULL && set.beta == 0 && !is_given("beta")) set.beta = 1;
    if (set.beta > 0 &&
        set.guide == NULL) { /* found now, it is a setting: the checkpoints have no evaluator of their own */
        set.guide = t->guide_path = cli_find_evaluator(t->source, "evaluator");
        if (set.guide == NULL) return DDPM_ERR_FILE;
    }
    if (set.guide == NULL || set.beta == 0) return DDPM_OK;
    ddpm_result result = lab_evaluator_load(set.guide, &context->device, &t->guide);
    if (result != DDPM_OK) return result;
    result = lab_teacher_create(&t->teacher, t->guide, &t->data->classes, &t->schedule, set.beta, micro_batch(t));
    if (result == DDPM_OK) result = lab_teacher_fits(t->teacher, t->net);
    t->net->pull = lab_teacher_pull;
    t->net->teacher = t->teacher;
    return result;
}

/* A checkpoint that cannot be read is not the end of a run. */
static ddpm_result cannot_go_on(const training *t, ddpm_result result)
{
    if (result == DDPM_OK || result == DDPM_ERR_MEMORY || t->source == NULL) return result;
    char *said = cli_text("%s", ddpm_error()), *hint = said != NULL ? strstr(said, "\n      hint:") : NULL;
    if (hint != NULL) *hint = '\0';
    if (said != NULL)
        ddpm_fail(result, "%s\n      hint: move %s away, and --resume goes on from the checkpoint before it", said,
                  t->source);
    free(said);
    return result;
}

/* Weights: PyTorch's initialisation, over which goes what the source has. */
static ddpm_result fill_model(training *t)
{
    ddpm_result result = ddpm_model_init(t->model, set.seed);
    if (result != DDPM_OK || t->source == NULL) return result;
    return t->saved != NULL ? cannot_go_on(t, io_checkpoint_load(t->source, t->model))
                            : io_model_fill(t->source, t->model, !t->new_labels);
}

/* Steps on noise at a learning rate of 0, before the weights are filled: the time of one. The first also pays for
 * memory that is touched for the first time; where steps are short a second one is taken. */
static ddpm_result measure_step(training *t, const ddpm_train_config *config)
{
    ddpm_trainer trainer;
    int n = micro_batch(t);
    size_t picture = (size_t)t->net->channels * (size_t)t->net->height * (size_t)t->net->width;
    for (int i = 0; i < n; i++)
        ddpm_normals((ddpm_address){.picture = (uint64_t)i, .purpose = DDPM_RANDOM_USER}, picture,
                     t->pictures + (size_t)i * picture);
    ddpm_result result = ddpm_model_init(t->model, set.seed);
    if (result == DDPM_OK) result = ddpm_trainer_init(&trainer, t->net, &t->schedule, config);
    double seconds = 0;
    for (int i = 0; i < 2 && result == DDPM_OK && seconds < 1; i++) {
        double begin = cli_seconds();
        result = ddpm_train_step(&trainer, t->pictures, t->net->labels != NULL ? t->labels : NULL, n, 0, NULL);
        seconds = cli_seconds() - begin;
    }
    if (t->teacher != NULL) t->teacher->log_p = t->teacher->pictures = 0;
    t->step_seconds = seconds * rank_batch(t) / n;
    return result;
}

static ddpm_result divide_data(const training *t)
{
    ddpm_result result = lab_dataset_divide(t->data, set.held_out, set.overfit);
    int all = t->data->count, training = t->data->training, held_out = t->data->held_out;
    if (result == DDPM_OK && training < all)
        cli_note("data    %d of the %d pictures are trained on, %d are held out", training, all, held_out);
    return result;
}

static ddpm_result start_training(training *t)
{
    ddpm_train_config config = ddpm_train_default();
    config.weight_decay = set.weight_decay;
    config.snr_gamma = set.snr_gamma;
    config.max_grad_norm = set.max_grad_norm;
    config.ema_decay = set.ema_decay;
    config.seed = set.seed;
    size_t picture = (size_t)t->net->channels * (size_t)t->net->height * (size_t)t->net->width;
    size_t batch = (size_t)set.batch_size, width = (size_t)t->data->classes.count + 1;
    if ((t->pictures = cli_alloc(batch * picture, sizeof *t->pictures)) == NULL ||
        (t->others = cli_alloc(batch * picture, sizeof *t->others)) == NULL ||
        (t->labels = cli_alloc(batch * width, sizeof *t->labels)) == NULL ||
        (t->other_labels = cli_alloc(batch * width, sizeof *t->other_labels)) == NULL)
        return DDPM_ERR_MEMORY;
    if ((t->losses = cli_alloc((size_t)set.batch_size, sizeof *t->losses)) == NULL ||
        (t->timesteps = cli_alloc((size_t)set.batch_size, sizeof *t->timesteps)) == NULL)
        return DDPM_ERR_MEMORY;
    ddpm_result result = ddpm_model_alloc(t->model, DDPM_FOR_TRAINING);
    if (result == DDPM_OK) result = ddpm_graph_alloc(t->net->graph);
    if (result == DDPM_OK) result = measure_step(t, &config);
    if (result == DDPM_OK) result = fill_model(t);
    if (result == DDPM_OK) result = ddpm_trainer_init(&t->trainer, t->net, &t->schedule, &config);
    if (result == DDPM_OK && t->comm->size > 1) {
        lab_dataset_share(t->data, set.batch_size, t->comm->rank, t->comm->size);
        result = comm_reducer_create(&t->reducer, t->comm, t->model, COMM_BUCKET);
        if (result == DDPM_OK) t->trainer.ranks = comm_reducer_ranks(t->reducer);
    }
    t->trainer.picture_loss = t->losses;
    t->trainer.picture_t = t->timesteps;
    t->trainer.step = t->saved_step;
    t->trainer.picture = t->saved_picture;
    t->info.pixel_unshuffle = t->model->config.pixel_unshuffle;
    t->info.height = t->net->height;
    t->info.width = t->net->width;
    t->info.label_dropout = set.cond_drop;
    if (result == DDPM_OK && t->net->labels != NULL)
        result =
            io_model_info_set_classes(&t->info, (const char *const *)t->data->classes.name, t->data->classes.count);
    return result;
}

static int steps_of_epoch(const training *t)
{
    return (t->data->training + set.batch_size - 1) / set.batch_size;
}

/* Steps of the whole run, where the cosine ends. */
static uint64_t planned_steps(const training *t)
{
    uint64_t steps = (uint64_t)set.epochs * (uint64_t)steps_of_epoch(t), most = (uint64_t)set.max_steps;
    return most > 0 && most < steps ? most : steps;
}

/* Epochs in which those steps end. */
static int planned_epochs(const training *t)
{
    uint64_t each = (uint64_t)steps_of_epoch(t);
    return (int)((planned_steps(t) + each - 1) / each);
}

/* ---- 5. The data's troubles, memory -------------------------------------------------------------------------- */

enum { FEW = 1000, SHOWN = 3 }; /* pictures below which a model learns them by heart; names shown of each trouble */

static void list_troubles(const lab_survey *survey)
{
    static const char *const what[][2] = {
        {"picture cannot be read and is left out", "pictures cannot be read and are left out"},
        {"picture is smaller than asked for and enlarged", "pictures are smaller than asked for and enlarged"},
        {"picture has the same pixels as another one", "pictures have the same pixels as another one"}};
    int next = 0;
    for (int k = 0; k < LAB_TROUBLES; k++) {
        int count = survey->count[k], shown = count > SHOWN + 1 && !set.dry_run ? SHOWN : count;
        if (count > 0) cli_note("warning %d %s:", count, what[k][count > 1]);
        for (int i = 0; i < shown; i++) {
            const lab_finding *f = &survey->finding[next + i];
            if (k == LAB_UNREADABLE)
                cli_note("          %s", f->about); /* begins with the path */
            else
                cli_note("          %s (%s)", f->path, f->about);
        }
        if (count > shown) cli_note("          and %d more: --dry-run lists all", count - shown);
        next += count;
    }
}

static void on_surveyed(void *user, int done, int total)
{
    cli_progress *bar = user;
    bar->total = total;
    cli_progress_show(bar, done, "%d of %d", done, total);
}

/* Looks at every picture, so that nothing about them comes up in the night. */
static ddpm_result survey_data(const training *t)
{
    cli_progress bar;
    lab_survey survey;
    cli_progress_start(&bar, "pictures", t->data->count);
    ddpm_result result = lab_dataset_survey(t->data, on_surveyed, &bar, &survey);
    cli_progress_clear(&bar);
    if (result != DDPM_OK) return result;
    list_troubles(&survey);
    if (survey.count[LAB_UNREADABLE] > 0) cli_note("data    %s", lab_dataset_describe(t->data));
    lab_survey_free(&survey);
    cli_short few;
    if (t->data->count < FEW)
        cli_note(
            "warning fewer than %s pictures: the model may learn them by heart instead of what they have in common",
            cli_count(FEW, few));
    return DDPM_OK;
}

/* One line each about the data, the model and the memory; DDPM_ERR_MEMORY if the run cannot fit. */
static ddpm_result report_plan(const training *t)
{
    const lab_dataset_config *data = &t->data->config;
    double parameters = cli_parameters(t->model);
    double arrays = parameters * sizeof(ddpm_real) * DDPM_ARRAYS, graph = (double)t->net->graph->bytes;
    double picture = (double)data->width * data->height * data->channels, cache = picture * t->data->count;
    if (cache > (double)data->cache_bytes) cache = (double)data->cache_bytes;
    double batch = 2.0 * set.batch_size * (picture + t->data->classes.count) * sizeof(ddpm_real); /* two */
    double drawing = t->samples.net != NULL ? (double)t->samples.net->graph->bytes : 0;
    int apart = t->model->device->backend->room != NULL; /* from the pictures */
    double total = arrays + graph + drawing + (apart ? batch / 2 : cache + batch), available;
    ddpm_result result = cli_room(t->model->device, &available);
    if (!apart) available /= t->comm->local_size; /* ranks share the machine's, each has a device of its own */
    cli_short number, a, b, c, d, e;
    cli_note("data    %s", lab_dataset_describe(t->data));
    cli_note("model   %s at %dx%d, %s parameters", set.model, data->width, data->height, cli_count(parameters, number));
    if (t->saved == NULL && t->source != NULL)
        cli_note("from    %s: its weights%s; Adam's moments start at zero", t->source,
                 t->new_labels ? "; the data has other classes, so the label encoder is made anew" : "");
    cli_note("memory  %s%s: weights, gradients, moments and average %s, network for %d picture%s %s, data %s%s",
             cli_bytes(total, a), apart ? " of the device" : "", cli_bytes(arrays, b), micro_batch(t),
             micro_batch(t) == 1 ? "" : "s", cli_bytes(graph, c), cli_bytes(apart ? batch / 2 : cache + batch, d),
             apart ? " at a time" : "");
    if (result != DDPM_OK || available <= 0 || total <= available) return result;
    int fits = cli_largest_batch(t->model, t->net->height, t->net->width, 1, training_mode(t) & ~DDPM_SHARE_GRADIENTS,
                                 micro_batch(t), 0, available - (total - graph));
    cli_short largest;
    snprintf(largest, sizeof largest, fits > 0 ? "--micro-batch %d fits" : "no --micro-batch fits", fits);
    return ddpm_fail(DDPM_ERR_MEMORY,
                     "the run needs %s of memory%s, %s are available\n"
                     "      hint: %s (now %d: %s); --recompute, a smaller --resolution or --model need less",
                     cli_bytes(total, a), t->comm->size > 1 ? " a rank" : "", cli_bytes(available, e), largest,
                     micro_batch(t), cli_bytes(graph, c));
}

/* What the run will take, from the step that was measured. */
static void report_time(const training *t)
{
    double steps = fmax(0, (double)planned_steps(t) - (double)t->saved_step), left = steps * t->step_seconds;
    time_t end = time(NULL) + (time_t)left;
    char when[40] = "";
    struct tm local;
    cli_short number, epoch, whole;
    if (localtime_r(&end, &local) != NULL) strftime(when, sizeof when, "%Y-%m-%d %H:%M", &local);
    cli_note("time    %.2g s a step, %s an epoch of %d step%s; %s %s %s, to %s", t->step_seconds,
             cli_duration(t->step_seconds * steps_of_epoch(t), epoch), steps_of_epoch(t),
             steps_of_epoch(t) == 1 ? "" : "s", cli_count(steps, number),
             steps == 1 ? "step to go takes" : "steps to go take", cli_duration(left, whole), when);
}

/* ---- 6. Settings of a resumed run ---------------------------------------------------------------------------- */

/* On resuming, these may differ from the run's settings: they do not change what is computed. With the cosine schedule
 * the end of the run does. */
static const char *const free_settings[] = {"data",         "image-dir",    "out",     "max-time",  "save-every",
                                            "save-steps",   "save-minutes", "keep",    "resume",    "force",
                                            "args",         "workers",      "epochs",  "max-steps", "show",
                                            "sample-every", "dry-run",      "log-dir", "ranks",     "gpus"};
/* And these are what the network is: another one cannot go on with its weights. */
static const char *const fixed_settings[] = {"model",         "pixel-unshuffle", "resolution",    "channels",
                                             "unconditional", "timesteps",       "beta-schedule", "beta-start",
                                             "beta-end",      "prediction-type", "zero-snr",      "scheduler"};

static int is_among(const char *name, const char *const *list, size_t count)
{
    int found = 0;
    for (size_t i = 0; i < count; i++)
        found |= strcmp(name, list[i]) == 0;
    return found;
}
#define AMONG(name, list) is_among(name, list, sizeof(list) / sizeof(list)[0])

/* The run's settings, which by now are taken, and what was given: a difference that matters is refused. */
static ddpm_result compare_settings(const cJSON *settings)
{
    char changed[400] = "";
    size_t used = 0;
    int fixed = 0;
    for (const cli_option *o = options; o->name != NULL; o++) {
        int ends = strcmp(o->name, "epochs") == 0 || strcmp(o->name, "max-steps") == 0;
        int is_free = AMONG(o->name, free_settings) && !(ends && set.lr_schedule == LR_COSINE);
        if (is_free || !cli_given(o) || !cli_setting_differs(o, settings) || used > 300) continue;
        used += (size_t)snprintf(changed + used, sizeof changed - used, "%s--%s", used > 0 ? ", " : "", o->name);
        fixed |= AMONG(o->name, fixed_settings);
    }
    if (used == 0) return DDPM_OK;
    if (fixed)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: the run has other settings: %s\n"
                         "      hint: leave them out; --model %s --out NEW trains its model on with others",
                         set.out, changed, set.out);
    if (set.force) {
        cli_note("changed %s: the run goes on with other settings than it began with", changed);
        return DDPM_OK;
    }
    return ddpm_fail(DDPM_ERR_ARGUMENT,
                     "%s: the run has other settings: %s\n"
                     "      hint: leave them out; or --force: it then goes on with the new ones",
                     set.out, changed);
}

/* But for what is this call's alone. */
static ddpm_result take_settings(const cJSON *settings, const char *path)
{
    int resume = set.resume, force = set.force, dry_run = set.dry_run, ranks = set.ranks, gpus = set.gpus;
    const char *wrong = cli_settings_from_json(options, settings);
    set.resume = resume;
    set.force = force;
    set.dry_run = dry_run;
    set.ranks = ranks;
    set.gpus = gpus;
    if (wrong == NULL) return DDPM_OK;
    return ddpm_fail(DDPM_ERR_FORMAT,
                     "%s: %s\n      hint: mend it, or give that option; --args wants a run's args.json", path, wrong);
}

static ddpm_result read_args(training *t, const char *path)
{
    ddpm_result result = io_json_read(path, &t->args);
    return result == DDPM_OK ? take_settings(t->args, path) : result;
}

/* Finds what --resume goes on with. A run that was killed before its first checkpoint starts again with its settings;
 * so --resume may be given always. */
static ddpm_result find_generation(training *t)
{
    uint64_t step;
    if (!io_is_directory(set.out)) return DDPM_OK;
    ddpm_result result = t->comm->rank == 0 ? cli_run_lock(set.out, &t->lock) : DDPM_OK;
    if (result == DDPM_OK) result = io_checkpoint_newest(set.out, &t->source, &step);
    if (result != DDPM_OK) return result;
    char *path = t->source != NULL ? io_join(t->source, "training.json") : io_join(set.out, "args.json");
    if (path == NULL) return DDPM_ERR_MEMORY;
    const cJSON *settings = NULL;
    if (t->source != NULL) {
        result = cannot_go_on(t, io_json_read(path, &t->saved));
        settings = cJSON_GetObjectItemCaseSensitive(t->saved, "settings");
    } else if (io_is_file(path)) {
        result = io_json_read(path, &t->args);
        settings = t->args;
    }
    if (result == DDPM_OK && settings != NULL) result = take_settings(settings, path);
    if (result == DDPM_OK && settings != NULL) result = compare_settings(settings);
    free(path);
    return result;
}

/* ---- 7. State: training.json --------------------------------------------------------------------------------- */

static char *describe_state(const training *t)
{
    cJSON *object = cJSON_CreateObject(), *settings = cJSON_CreateObject();
    char *text = NULL;
    if (object != NULL && settings != NULL && cli_settings_to_json(options, settings) &&
        cJSON_AddNumberToObject(object, "version", 1) != NULL &&
        cJSON_AddNumberToObject(object, "step", (double)t->trainer.step) != NULL &&
        cJSON_AddNumberToObject(object, "pictures", (double)t->trainer.picture) != NULL &&
        cJSON_AddNumberToObject(object, "epoch", t->epoch) != NULL &&
        cJSON_AddNumberToObject(object, "position", t->position) != NULL &&
        cJSON_AddNumberToObject(object, "loss_sum", t->loss_sum) != NULL &&
        cJSON_AddNumberToObject(object, "loss_pictures", t->loss_pictures) != NULL &&
        cJSON_AddNumberToObject(object, "best_loss", t->best) != NULL &&
        cJSON_AddNumberToObject(object, "best_step", (double)t->best_step) != NULL &&
        cJSON_AddNumberToObject(object, "bad_steps", t->bad_steps) != NULL &&
        cJSON_AddNumberToObject(object, "data_pictures", t->data->count) != NULL &&
        cJSON_AddStringToObject(object, "backend", t->model->device->backend->name) != NULL &&
        cJSON_AddStringToObject(object, "instruction_set", ddpm_device_isa(t->model->device)) != NULL &&
        cJSON_AddNumberToObject(object, "ranks", t->comm->size) != NULL) {
        cJSON_AddItemToObject(object, "settings", settings);
        settings = NULL;
        text = cJSON_Print(object);
    }
    cJSON_Delete(object);
    cJSON_Delete(settings);
    if (text == NULL) ddpm_fail(DDPM_ERR_MEMORY, "no memory to write %s/training.json", set.out);
    return text;
}

/* They have a say in the last bits. */
static void compare_backend(const training *t)
{
    const ddpm_device *device = t->model->device;
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(t->saved, "backend");
    const cJSON *isa = cJSON_GetObjectItemCaseSensitive(t->saved, "instruction_set");
    const cJSON *number = cJSON_GetObjectItemCaseSensitive(t->saved, "ranks");
    int ranks = cJSON_IsNumber(number) ? number->valueint : 1;
    if (!cJSON_IsString(name) || !cJSON_IsString(isa)) return;
    if (strcmp(name->valuestring, device->backend->name) == 0 &&
        strcmp(isa->valuestring, ddpm_device_isa(device)) == 0 && ranks == t->comm->size)
        return;
    cli_note("note    the run was computed by backend %s, %s, %d rank%s: it goes on, but perhaps not to the same bits",
             name->valuestring, isa->valuestring, ranks, ranks == 1 ? "" : "s");
}

static int take_integer(const cJSON *object, const char *name, double high, int64_t *out)
{
    return io_json_integer(cJSON_GetObjectItemCaseSensitive(object, name), 0, (int64_t)high, out);
}

static ddpm_result read_state(training *t)
{
    int64_t version, step, picture, epoch, position, pictures, best_step, bad_steps, count;
    const cJSON *loss = cJSON_GetObjectItemCaseSensitive(t->saved, "loss_sum");
    const cJSON *best = cJSON_GetObjectItemCaseSensitive(t->saved, "best_loss");
    const cJSON *saved = t->saved;
    if (!take_integer(saved, "version", 1, &version) || !take_integer(saved, "step", 0x1p52, &step) ||
        !take_integer(saved, "pictures", 0x1p52, &picture) || !take_integer(saved, "epoch", 1e9, &epoch) ||
        !take_integer(saved, "position", 2e9, &position) || !take_integer(saved, "loss_pictures", 2e9, &pictures) ||
        !take_integer(saved, "best_step", 0x1p52, &best_step) ||
        !take_integer(saved, "bad_steps", MAX_BAD_STEPS, &bad_steps) ||
        !take_integer(saved, "data_pictures", 2e9, &count) || !cJSON_IsNumber(loss) || !cJSON_IsNumber(best))
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s/training.json does not say where the run stands\n"
                         "      hint: was it edited? Move that directory away to go on from the one before it",
                         t->source);
    if (count != t->data->count && !set.force)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: the data has %d pictures, the run began with %lld\n"
                         "      hint: --force goes on with the next epoch; --model %s --out NEW trains on",
                         set.out, t->data->count, (long long)count, set.out);
    if (t->new_labels)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: the data has other classes than the run\n"
                         "      hint: --model %s --out NEW fine-tunes its model with a new label encoder",
                         set.out, set.out);
    compare_backend(t);
    t->saved_step = (uint64_t)step;
    t->saved_picture = (uint64_t)picture;
    t->epoch = (int)epoch;
    t->position = (int)position;
    t->loss_sum = loss->valuedouble;
    t->loss_pictures = (int)pictures;
    t->best = best->valuedouble;
    t->best_step = (uint64_t)best_step;
    t->bad_steps = (int)bad_steps;
    if (count != t->data->count && t->position > 0) {
        t->epoch++;
        t->position = t->loss_pictures = 0;
        t->loss_sum = 0;
    }
    return DDPM_OK;
}

/* ---- 8. The run directory ------------------------------------------------------------------------------------ */

static ddpm_result refuse_used_directory(void)
{
    char *path = NULL;
    uint64_t step;
    if (io_is_file(set.out))
        return ddpm_fail(DDPM_ERR_FILE, "%s is a file\n      hint: --out names the directory to make", set.out);
    if (!io_is_directory(set.out)) return DDPM_OK; /* does not exist; other reasons show when it is made */
    ddpm_result result = io_checkpoint_newest(set.out, &path, &step);
    if (result == DDPM_OK && path != NULL)
        result = ddpm_fail(DDPM_ERR_ARGUMENT,
                           "%s holds the checkpoints of another run\n"
                           "      hint: --resume goes on with it; or choose another --out",
                           set.out);
    free(path);
    return result;
}

static int same_place(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* 1 if `path`, which need not be there yet, is the folder or lies in it. */
static int lies_in(const char *path, const char *folder)
{
    char place[4096];
    struct stat wanted, root, here;
    size_t used = (size_t)snprintf(place, sizeof place, "%s", path);
    if (used >= sizeof place || stat(folder, &wanted) != 0 || stat("/", &root) != 0) return 0;
    while (stat(place, &here) != 0) { /* what it will be made in */
        char *slash = strrchr(place, '/');
        if (strcmp(place, ".") == 0) return 0;
        if (slash != NULL)
            slash[slash == place] = '\0';
        else
            memcpy(place, ".", sizeof ".");
    }
    for (used = strlen(place); !same_place(&here, &wanted); used += 3) {
        if (same_place(&here, &root) || used + sizeof "/.." > sizeof place) return 0;
        memcpy(place + used, "/..", sizeof "/..");
        if (stat(place, &here) != 0) return 0;
    }
    return 1;
}

/* Pictures that a run writes must not be found among those that it learns from. */
static ddpm_result refuse_place_in_data(const training *t)
{
    if (t->data->listed || !lies_in(set.out, set.data)) return DDPM_OK;
    return ddpm_fail(DDPM_ERR_ARGUMENT,
                     "%s lies in %s, all pictures of which are learned from: the run's own would be among them\n"
                     "      hint: --out beside the data",
                     set.out, set.data);
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

/* Seconds in the last row of timing.csv: the clock of a resumed run goes on. */
static double last_seconds(const training *t)
{
    unsigned char *text;
    size_t size;
    double seconds = 0;
    if (io_read_file(t->timing.path, &text, &size) != DDPM_OK) return 0;
    while (size > 0 && text[size - 1] == '\n')
        text[--size] = '\0';
    const char *comma = strrchr((char *)text, ',');
    if (comma != NULL) seconds = strtod(comma + 1, NULL);
    free(text);
    return seconds;
}

static int due_epoch(int epoch)
{
    return epoch % set.save_every == 0 || epoch == set.epochs - 1;
}

/* latest, best, epoch=N: what the state says, so that a run that was killed before it made them has them again. */
static ddpm_result link_generation(const training *t)
{
    uint64_t step = t->trainer.step;
    ddpm_result result = cli_run_link(set.out, "latest", step);
    if (result == DDPM_OK && t->best_step == step) result = cli_run_link(set.out, "best", step);
    if (result == DDPM_OK && t->best_step == step) result = cli_run_link(set.out, "training_best", step);
    if (result == DDPM_OK && t->position == 0 && t->epoch > 0 && due_epoch(t->epoch - 1)) {
        char name[32];
        snprintf(name, sizeof name, "epoch=%d", t->epoch - 1);
        result = cli_run_link(set.out, name, step);
    }
    return result;
}

/* loss_tK: mean of the step's pictures whose t is in the K-th tenth of [0,T), empty if there is none. */
static const char metrics_header[] =
    "step,epoch,lr,loss,grad_norm,loss_t0,loss_t1,loss_t2,loss_t3,loss_t4,loss_t5,loss_t6,loss_t7,loss_t8,loss_t9,"
    "held_out,held_out_ema";

static ddpm_result open_run(const cli_context *context, training *t)
{
    ddpm_result result = io_make_directory(set.out);
    if (result == DDPM_OK && t->lock < 0) result = cli_run_lock(set.out, &t->lock);
    if (result == DDPM_OK) result = cli_run_sweep(set.out);
    if (result == DDPM_OK) result = write_settings(context, t);
    if (result == DDPM_OK && t->saved != NULL) result = link_generation(t);
    if (result == DDPM_OK) result = cli_csv_open(&t->metrics, set.out, "metrics.csv", metrics_header, t->saved_step);
    if (result == DDPM_OK)
        result = cli_csv_open(&t->timing, set.out, "timing.csv", "step,pictures_per_second,seconds", t->saved_step);
    if (result == DDPM_OK && t->saved_step > 0) t->earlier = last_seconds(t);
    if (result == DDPM_OK && set.log_dir != NULL) result = io_events_open(&t->events, set.log_dir, (double)time(NULL));
    return result;
}

/* ---- 9. Checkpoints ------------------------------------------------------------------------------------------ */

static ddpm_result save_checkpoint(training *t)
{
    char *state = describe_state(t);
    if (state == NULL) return DDPM_ERR_MEMORY;
    ddpm_result result = cli_csv_flush(&t->metrics, 1);
    if (result == DDPM_OK) result = cli_csv_flush(&t->timing, 1);
    if (result == DDPM_OK)
        result = io_checkpoint_save(set.out, t->trainer.step, t->model, &t->schedule.config, &t->info, state);
    if (result == DDPM_OK) result = link_generation(t);
    if (result == DDPM_OK) t->saved_step = t->trainer.step;
    if (result == DDPM_OK) result = cli_run_prune(set.out, set.keep);
    free(state);
    t->last_save = cli_seconds();
    t->tried_step = t->trainer.step;
    return result;
}

/* A save that fails costs a message: the checkpoint before it is still there, and the next may find room. */
static ddpm_result try_to_save(training *t)
{
    ddpm_result result = save_checkpoint(t);
    if (result != DDPM_ERR_FILE) return result;
    cli_progress_clear(&t->bar);
    cli_note("ddpm: step %llu is not saved (step-%llu is), training goes on: %s", (unsigned long long)t->trainer.step,
             (unsigned long long)t->saved_step, ddpm_error());
    return DDPM_OK;
}

/* RUN/loss.png from metrics.csv: every step pale, the mean of those around it bold. */
static ddpm_result draw_curve(const training *t)
{
    unsigned char *text = NULL;
    size_t size, rows = 0;
    ddpm_result result = io_read_file(t->metrics.path, &text, &size);
    if (result != DDPM_OK) return result;
    for (size_t i = 0; i < size; i++)
        rows += text[i] == '\n';
    double *x = cli_alloc(2 * rows + 1, sizeof *x), *y = x != NULL ? x + rows : NULL;
    int points = 0;
    for (const char *line = strchr((char *)text, '\n'); x != NULL && line != NULL && line[1] != '\0';
         line = strchr(line + 1, '\n')) {
        double step;
        if (sscanf(line + 1, "%lf,%*d,%*f,%lf", &step, &y[points]) == 2)
            x[points++] = step * set.batch_size / t->data->training;
    }
    io_series loss = {.x = x, .y = y, .count = points, .reach = points < 2000 ? points / 40 : 50};
    io_plot plot = {.title = set.out, .x_label = "epochs", .y_label = "loss", .series = &loss, .count = 1, .log_y = 1};
    io_picture picture = {0};
    char *path = io_join(set.out, "loss.png");
    result = x == NULL || path == NULL ? DDPM_ERR_MEMORY : points == 0 ? DDPM_OK : io_plot_draw(&plot, &picture);
    if (result == DDPM_OK && points > 0) result = io_picture_write_png(path, &picture, NULL, 0);
    io_picture_free(&picture);
    free(path);
    free(x);
    free(text);
    return result;
}

/* A picture is not worth a run: one that cannot be made costs a message. */
static void show_curve(training *t)
{
    t->last_curve = cli_seconds();
    if (draw_curve(t) == DDPM_OK) return;
    cli_progress_clear(&t->bar);
    cli_note("ddpm: %s", ddpm_error());
}

/* ---- 10. What ranks know of each other ------------------------------------------------------------------------- */

/* Why this rank would end the run before its last epoch: the one that all come to is t->reason. */
enum { BY_INTERRUPT, BY_TERMINATE, BY_HANGUP, BY_STEPS, BY_TIME, REASONS };

static int save_is_due(const training *t)
{
    return (set.save_steps > 0 && t->trainer.step % (uint64_t)set.save_steps == 0) ||
           (set.save_minutes > 0 && cli_seconds() - t->last_save >= 60 * set.save_minutes);
}

/* After a step, and before an epoch: clocks and signals are each rank's own, what follows from them is not. Sums
 * t->tenth on the way; agrees on `result`. */
static ddpm_result look_around(training *t, ddpm_result result)
{
    static const char *const name[REASONS] = {"Ctrl-C", "SIGTERM", "SIGHUP (the terminal was closed)", "--max-steps",
                                              "--max-time"};
    enum { VALUES = REASONS + 1 + 2 * TENTHS };
    double value[VALUES] = {0}, *tenth = value + REASONS + 1;
    value[BY_INTERRUPT] = signalled == SIGINT;
    value[BY_TERMINATE] = signalled == SIGTERM;
    value[BY_HANGUP] = signalled == SIGHUP;
    value[BY_STEPS] = set.max_steps > 0 && t->trainer.step >= (uint64_t)set.max_steps;
    value[BY_TIME] = set.max_time > 0 && cli_seconds() - t->started >= 60 * set.max_time;
    value[REASONS] = t->comm->rank == 0 && save_is_due(t);
    memcpy(tenth, t->tenth, sizeof t->tenth);
    result = comm_agree(t->comm, result, value, VALUES);
    t->reason = NULL;
    for (int k = REASONS - 1; k >= 0; k--)
        if (value[k] > 0) t->reason = name[k];
    t->save_due = value[REASONS] > 0;
    memcpy(t->tenth, tenth, sizeof t->tenth);
    return result;
}

/* Rank 0 does it, however long it takes; the others wait asleep, and get its result. */
static ddpm_result alone(training *t, ddpm_result (*work)(training *))
{
    ddpm_result result = t->comm->rank == 0 ? work(t) : DDPM_OK;
    ddpm_result met = t->comm->barrier(t->comm);
    return met == DDPM_OK ? comm_agree(t->comm, result, NULL, 0) : met;
}

/* ---- 11. Steps ----------------------------------------------------------------------------------------------- */

static double learning_rate(const training *t)
{
    uint64_t warmup = (uint64_t)set.warmup, total = set.lr_schedule == LR_COSINE ? planned_steps(t) : 0;
    double rate = set.lr;
    if (set.lr_schedule == LR_MULTISTEP)
        rate = ddpm_multistep_lr(set.lr, t->epoch, set.milestones.value, set.milestones.count, set.gamma);
    return rate * ddpm_cosine_factor(t->trainer.step, warmup, total);
}

/* A step whose loss or gradient is not finite is left out: one picture with a rare t may do that, a model that has
 * come apart does it every time. */
static ddpm_result skip_step(training *t, int pictures)
{
    t->trainer.picture += (uint64_t)pictures; /* their noise is not drawn again */
    cli_progress_clear(&t->bar);
    if (++t->bad_steps >= MAX_BAD_STEPS) {
        char text[1024];
        snprintf(text, sizeof text, "%s", ddpm_error());
        return ddpm_fail(DDPM_ERR_NONFINITE, "%d steps in a row went wrong after step %llu: %s", t->bad_steps,
                         (unsigned long long)t->trainer.step, text);
    }
    cli_note("step %llu is skipped: %.*s", (unsigned long long)t->trainer.step + 1, (int)strcspn(ddpm_error(), "\n"),
             ddpm_error());
    return DDPM_OK;
}

/* Losses of this rank's pictures, `count` from `first` on. */
static void sort_losses(training *t, int first, int count)
{
    int T = t->schedule.config.num_train_timesteps;
    for (int i = first; i < first + count; i++) {
        int tenth = (int)((int64_t)TENTHS * t->timesteps[i] / T);
        t->tenth[tenth] += t->losses[i];
        t->tenth[TENTHS + tenth]++;
    }
}

/* ",value" for each tenth of [0,T) and the two held-out losses; nothing behind the comma where there is none. */
static void describe_losses(const training *t, char *text, size_t size)
{
    size_t used = 0;
    for (int k = 0; k < TENTHS + 2; k++) {
        int there = k < TENTHS ? t->tenth[TENTHS + k] > 0 : !isnan(t->held_out[k - TENTHS]);
        double value = k < TENTHS ? t->tenth[k] / (there ? t->tenth[TENTHS + k] : 1) : t->held_out[k - TENTHS];
        used += (size_t)snprintf(text + used, size - used, there ? ",%.9g" : ",", value);
    }
}

/* The same numbers for TensorBoard. They can be had from metrics.csv: a failure ends them, not the run. */
static void write_events(training *t, double lr, double loss)
{
    if (t->events.file == NULL) return;
    double now = (double)time(NULL);
    uint64_t step = t->trainer.step;
    ddpm_result result = io_events_scalar(&t->events, "loss/train", step, now, (float)loss);
    if (result == DDPM_OK) result = io_events_scalar(&t->events, "lr", step, now, (float)lr);
    if (result == DDPM_OK) result = io_events_scalar(&t->events, "grad_norm", step, now, (float)t->trainer.grad_norm);
    if (result == DDPM_OK) return;
    cli_progress_clear(&t->bar);
    cli_note("ddpm: no more events for TensorBoard: %s", ddpm_error());
    io_events_close(&t->events);
}

static ddpm_result write_metrics(training *t, double lr, double loss, int pictures, double seconds)
{
    char losses[300];
    unsigned long long step = t->trainer.step;
    write_events(t, lr, loss);
    describe_losses(t, losses, sizeof losses);
    ddpm_result result =
        cli_csv_add(&t->metrics, "%llu,%d,%.9g,%.9g,%.9g%s\n", step, t->epoch, lr, loss, t->trainer.grad_norm, losses);
    if (result == DDPM_OK)
        result = cli_csv_add(&t->timing, "%llu,%.4g,%.3f\n", step, pictures / seconds,
                             t->earlier + cli_seconds() - t->started);
    if (result == DDPM_OK && (cli_csv_flush(&t->metrics, 0) != DDPM_OK || cli_csv_flush(&t->timing, 0) != DDPM_OK) &&
        t->metrics.used < 1000) { /* said at first, not at every step */
        cli_progress_clear(&t->bar);
        cli_note("ddpm: %s (the rows wait in memory)", ddpm_error());
    }
    return result;
}

/* Labels from the data as the network takes them: multi-hot, or one class's index. */
static ddpm_result fit_labels(const training *t, int n)
{
    if (t->model->config.unet.num_class_embeds == 0) return DDPM_OK;
    return lab_class_labels(t->labels, n, t->data->classes.count, t->info.none_class, t->labels);
}

static int held_out_is_due(const training *t)
{
    return t->data->held_out > 0 && t->position >= t->data->training && t->epoch % set.eval_every == 0;
}

/* Both losses of the held-out pictures, batch by batch. */
static ddpm_result take_held_out(training *t)
{
    size_t picture = (size_t)t->net->channels * (size_t)t->net->height * (size_t)t->net->width;
    size_t classes = (size_t)t->data->classes.count;
    int total = t->data->held_out;
    double sum[2] = {0};
    ddpm_result result = DDPM_OK;
    for (int first = 0; result == DDPM_OK && first < total; first += set.batch_size) {
        int n = total - first < set.batch_size ? total - first : set.batch_size;
        for (int i = 0; result == DDPM_OK && i < n; i++)
            result = lab_dataset_get(t->data, lab_dataset_held_out(t->data, first + i),
                                     t->pictures + (size_t)i * picture, t->labels + (size_t)i * classes);
        if (result == DDPM_OK) result = fit_labels(t, n);
        for (int k = 0; result == DDPM_OK && k < 2; k++)
            result = cli_held_out_add(t->net, &t->schedule, set.seed, k == 0 ? DDPM_WEIGHT : DDPM_EMA, t->pictures,
                                      t->net->labels != NULL ? t->labels : NULL, first, n, total, &sum[k]);
    }
    for (int k = 0; result == DDPM_OK && k < 2; k++)
        t->held_out[k] = sum[k] / total;
    return result;
}

/* Reads this rank's part of the next batch of the epoch, before which `ahead` pictures are in the works, and hands it
 * over: *n pictures have all ranks together, none at the epoch's end. The batch in the works keeps its place. */
static ddpm_result read_batch(training *t, int ahead, int *n)
{
    ddpm_real *pictures = t->others, *labels = t->other_labels;
    int left = t->data->training - t->position - ahead, first, got = 0;
    *n = left < set.batch_size ? left : set.batch_size;
    if (*n == 0) return DDPM_OK;
    int count = ddpm_part(*n, t->comm->rank, t->comm->size, &first);
    t->others = t->pictures, t->other_labels = t->labels;
    t->pictures = pictures, t->labels = labels;
    ddpm_result result = count > 0 ? lab_dataset_next(t->data, count, t->pictures, t->labels, &got) : DDPM_OK;
    if (result != DDPM_OK) return result;
    ddpm_address address = {.seed = set.seed, .picture = t->trainer.picture + (uint64_t)(ahead + first)};
    if (set.cond_drop > 0) ddpm_drop_labels(address, set.cond_drop, 0, got, t->data->classes.count, t->labels);
    if (result == DDPM_OK && got > 0) result = fit_labels(t, got);
    if (result != DDPM_OK) return result;
    return ddpm_train_batch(&t->trainer, t->pictures, t->net->labels != NULL ? t->labels : NULL, *n);
}

/* A step on the *n pictures that have been read; while the device is at it, the next ones are. */
static ddpm_result train_step(training *t, int *n)
{
    double loss = 0, lr = learning_rate(t), begin = cli_seconds();
    int pictures = *n, first, count = ddpm_part(pictures, t->comm->rank, t->comm->size, &first);
    ddpm_result result = ddpm_train_start(&t->trainer, lr), read = DDPM_OK;
    if (result == DDPM_OK) read = read_batch(t, pictures, n);
    if (result == DDPM_OK) result = ddpm_train_wait(&t->trainer, &loss);
    int skipped = result == DDPM_ERR_NONFINITE;
    if (skipped) result = comm_agree(t->comm, skip_step(t, pictures), NULL, 0);
    if (result != DDPM_OK) return result;
    t->position += pictures;
    memset(t->tenth, 0, sizeof t->tenth);
    if (!skipped) sort_losses(t, first, count);
    double seconds = cli_seconds() - begin;
    result = look_around(t, read);
    if (result != DDPM_OK || skipped) return result;
    t->bad_steps = 0;
    t->loss_sum += loss * pictures;
    t->loss_pictures += pictures;
    t->held_out[0] = t->held_out[1] = NAN;
    if (held_out_is_due(t)) result = alone(t, take_held_out);
    return result == DDPM_OK && t->comm->rank == 0 ? write_metrics(t, lr, loss, pictures, seconds) : result;
}

static double average_loss(const training *t)
{
    return t->loss_pictures > 0 ? t->loss_sum / t->loss_pictures : 0;
}

static void show_progress(training *t)
{
    double now = cli_seconds();
    double pictures = (double)t->trainer.picture - t->first_picture;
    cli_progress_show(&t->bar, (double)t->trainer.step, "epoch %d/%d step %llu lr %g loss %.4f %.1f pictures/s",
                      t->epoch, planned_epochs(t), (unsigned long long)t->trainer.step, learning_rate(t),
                      average_loss(t), pictures / (now - t->started));
}

static ddpm_result stop_if_signalled(void *user, ddpm_net *net, int done, int steps)
{
    (void)user, (void)net, (void)done, (void)steps;
    return signalled ? DDPM_STOPPED : DDPM_OK;
}

static int samples_are_due(const training *t)
{
    uint64_t step = t->trainer.step;
    return set.sample_every > 0 && step > 0 && step % (uint64_t)set.sample_every == 0 && t->bad_steps == 0;
}

/* RUN/samples/step-N.png. A picture is not worth a run: one that cannot be written costs a message. Nor
 * is it worth waiting for: a signal leaves it out, and the run that is resumed draws it first, if it is `missing`. */
static ddpm_result draw_picture(training *t, int missing)
{
    uint64_t step = t->trainer.step;
    char *directory = io_join(set.out, "samples");
    char *path = cli_text("%s/samples/step-%llu.png", set.out, (unsigned long long)step);
    ddpm_result result = directory != NULL && path != NULL ? io_make_directory(directory) : DDPM_ERR_MEMORY;
    cli_progress_clear(&t->bar);
    if (result == DDPM_OK && !(missing && io_is_file(path)))
        result = cli_samples_draw(&t->samples, &t->schedule, set.seed, stop_if_signalled, path, set.show);
    if (result == DDPM_ERR_FILE) cli_note("ddpm: %s", ddpm_error());
    if (result == DDPM_ERR_FILE || result == DDPM_STOPPED) result = DDPM_OK;
    free(directory);
    free(path);
    return result;
}

static ddpm_result draw_samples(training *t)
{
    return draw_picture(t, 0);
}

static ddpm_result draw_missing(training *t)
{
    return draw_picture(t, 1);
}

/* Labels of pictures from all over the data. */
static ddpm_result choose_samples(training *t)
{
    size_t classes = (size_t)t->data->classes.count, width = (size_t)ddpm_label_width(&t->model->config);
    ddpm_result result = DDPM_OK;
    if (t->samples.net == NULL || t->net->labels == NULL) return DDPM_OK;
    for (int i = 0; result == DDPM_OK && i < CLI_SAMPLES; i++) {
        int index = (int)((int64_t)i * t->data->count / CLI_SAMPLES);
        result = lab_multi_hot(&t->data->labels, index, 1, (int)classes, t->labels);
        if (result == DDPM_OK) result = fit_labels(t, 1);
        memcpy(t->samples.labels + (size_t)i * width, t->labels, width * sizeof *t->labels);
    }
    return result;
}

/* ---- 12. Epochs ---------------------------------------------------------------------------------------------- */

/* Of an epoch that is done: what is due, the last, or the best so far. */
static ddpm_result keep_epoch(training *t)
{
    if (cli_seconds() - t->last_curve >= 30) show_curve(t);
    return due_epoch(t->epoch - 1) || t->best_step == t->trainer.step ? try_to_save(t) : DDPM_OK;
}

static ddpm_result keep_due(training *t)
{
    return t->tried_step != t->trainer.step && save_is_due(t) ? try_to_save(t) : DDPM_OK;
}

static ddpm_result keep_end(training *t)
{
    ddpm_result result = t->saved_step != t->trainer.step ? save_checkpoint(t) : DDPM_OK;
    if (result != DDPM_OK)
        cli_note("the end, step %llu, is not saved; with room for it ddpm train --resume --out %s%s%s goes on from "
                 "step %llu",
                 (unsigned long long)t->trainer.step, cli_quote(set.out), set.out, cli_quote(set.out),
                 (unsigned long long)t->saved_step);
    if (result == DDPM_OK) show_curve(t);
    return result;
}

/* What the evaluator of --beta thought of the epoch's pictures. */
static ddpm_result describe_score(training *t, cli_short score)
{
    double value[2] = {0};
    score[0] = '\0';
    if (t->teacher == NULL) return DDPM_OK;
    value[0] = t->teacher->log_p;
    value[1] = t->teacher->pictures;
    t->teacher->log_p = t->teacher->pictures = 0;
    ddpm_result result = comm_agree(t->comm, DDPM_OK, value, 2);
    if (result == DDPM_OK && value[1] > 0) snprintf(score, sizeof(cli_short), ", -log p %.4f", -value[0] / value[1]);
    return result;
}

/* Counts the epoch as done, of which this process did what came after `begin` and the first `before` pictures. */
static ddpm_result end_epoch(training *t, double begin, int before)
{
    double loss = average_loss(t), seconds = cli_seconds() - begin;
    int best = t->loss_pictures > 0 && (t->best_step == 0 || loss < t->best);
    cli_short duration, score;
    cli_progress_clear(&t->bar);
    ddpm_result result = describe_score(t, score);
    cli_note("epoch %d: loss %.5f%s, lr %g, %.1f pictures/s, %s", t->epoch, loss, score, learning_rate(t),
             (t->loss_pictures - before) / seconds, cli_duration(seconds, duration));
    t->epoch++;
    t->position = t->loss_pictures = 0;
    t->loss_sum = 0;
    if (best) {
        t->best = loss;
        t->best_step = t->trainer.step;
    }
    return result == DDPM_OK ? alone(t, keep_epoch) : result;
}

static ddpm_result train_epoch(training *t)
{
    double begin = cli_seconds();
    ddpm_result result = lab_dataset_resume_epoch(t->data, (uint32_t)t->epoch, t->position);
    int pictures = 0, before = t->loss_pictures;
    if (result == DDPM_OK) result = read_batch(t, 0, &pictures);
    result = comm_agree(t->comm, result, NULL, 0);
    while (result == DDPM_OK && t->position < t->data->training && t->reason == NULL) {
        result = train_step(t, &pictures);
        if (result != DDPM_OK) break;
        show_progress(t);
        if (samples_are_due(t)) {
            result = alone(t, draw_samples);
            memset(t->tenth, 0, sizeof t->tenth);
            if (result == DDPM_OK) result = look_around(t, result); /* it may have taken long */
        }
        if (result != DDPM_OK) break;
        if (t->position < t->data->training && t->reason == NULL && t->save_due) result = alone(t, try_to_save);
    }
    return result == DDPM_OK && t->position >= t->data->training ? end_epoch(t, begin, before) : result;
}

static ddpm_result train_epochs(training *t)
{
    underway = 1;
    t->started = t->last_save = cli_seconds();
    t->first_picture = (double)t->trainer.picture;
    cli_progress_start(&t->bar, "train", (double)planned_steps(t));
    ddpm_result result = samples_are_due(t) ? alone(t, draw_missing) : DDPM_OK;
    if (result == DDPM_OK) result = look_around(t, result);
    while (result == DDPM_OK && t->epoch < set.epochs && t->reason == NULL) {
        result = train_epoch(t);
        if (result == DDPM_OK) result = alone(t, keep_due);
        if (result == DDPM_OK) result = look_around(t, result);
    }
    cli_progress_clear(&t->bar);
    return result == DDPM_OK ? alone(t, keep_end) : result;
}

/* ---- 13. The command ----------------------------------------------------------------------------------------- */

/* Before anything large is allocated: where the run stands, if it goes on. */
static ddpm_result find_run(training *t)
{
    if (!set.resume) return set.dry_run ? DDPM_OK : refuse_used_directory();
    ddpm_result result = find_generation(t);
    if (result != DDPM_OK) return result;
    if (t->saved == NULL && set.data == NULL)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%s: there is no run to go on with\n      hint: check the path after --out",
                         set.out);
    if (t->saved == NULL) cli_note("run     %s has no checkpoint yet: it starts from the beginning", set.out);
    return DDPM_OK;
}

static void report_end(const training *t)
{
    const char *reason = t->epoch < set.epochs ? t->reason : NULL;
    unsigned long long step = t->trainer.step;
    cli_short duration;
    cli_duration(cli_seconds() - t->started, duration);
    int idle = (double)t->trainer.picture == t->first_picture,
        stopped = reason != NULL && strcmp(reason, "--max-steps") != 0;
    if (stopped && step == 0)
        cli_note("stopped by %s before the first step", reason);
    else if (stopped)
        cli_note("stopped by %s and saved as step-%llu after %s; to go on: ddpm train --resume --out %s%s%s", reason,
                 step, duration, cli_quote(set.out), set.out, cli_quote(set.out));
    else if (idle)
        cli_note("all %llu step%s done already; a larger --%s goes on from there", step, step == 1 ? " was" : "s were",
                 reason != NULL ? "max-steps" : "epochs");
    else if (t->best_step > 0)
        cli_note("%llu step%s in %s, lowest average loss %.5f (step-%llu)", step, step == 1 ? "" : "s", duration,
                 t->best, (unsigned long long)t->best_step);
    else
        cli_note("%llu step%s in %s", step, step == 1 ? "" : "s", duration);
    printf("%s\n", set.out);
}

/* Up to the first step; everything that can be refused. */
static ddpm_result prepare(const cli_context *context, training *t)
{
    ddpm_result result = set.args != NULL ? read_args(t, set.args) : DDPM_OK;
    if (set.model == NULL) set.model = strcmp(context->device.backend->name, "cuda") == 0 ? "lab" : "small";
    if (result == DDPM_OK) result = find_run(t);
    if (set.max_steps > 0 && !is_given("epochs") && t->args == NULL && t->saved == NULL) set.epochs = 1000000;
    if (result == DDPM_OK && t->saved == NULL) result = check_parts();
    if (result == DDPM_OK && t->saved == NULL) result = check_effects();
    if (result == DDPM_OK) result = plan_training(context, t);
    if (result == DDPM_OK && t->saved == NULL && !set.dry_run) result = refuse_place_in_data(t);
    if (result == DDPM_OK) result = open_teacher(context, t);
    if (result == DDPM_OK) result = report_plan(t);
    if (result == DDPM_OK) result = survey_data(t);
    if (result == DDPM_OK && t->saved != NULL) result = read_state(t);
    if (result == DDPM_OK) result = divide_data(t);
    if (result == DDPM_OK) result = start_training(t);
    if (result == DDPM_OK) result = choose_samples(t);
    return result;
}

/* Ranks that differ in any of this would each train something else. */
static ddpm_result compare_ranks(const training *t)
{
    cli_short parameters;
    char *text =
        cli_text("ddpm %s on %s, %s; %s; %s parameters; step %llu", cli_version(), t->model->device->backend->name,
                 ddpm_device_isa(t->model->device), lab_dataset_describe(t->data),
                 cli_count(cli_parameters(t->model), parameters), (unsigned long long)t->saved_step);
    ddpm_result result = text != NULL ? comm_same(t->comm, text) : DDPM_ERR_MEMORY;
    free(text);
    return result;
}

static ddpm_result train(const cli_context *context, training *t)
{
    others_tell = t->comm->rank > 0;
    if (!set.dry_run) catch_signals();
    ddpm_result result = comm_agree(t->comm, prepare(context, t), NULL, 0);
    if (result == DDPM_OK) result = compare_ranks(t);
    if (result == DDPM_OK) report_time(t);
    if (result != DDPM_OK || set.dry_run) return result;
    if (t->comm->rank == 0) result = open_run(context, t);
    result = comm_agree(t->comm, result, NULL, 0);
    if (result == DDPM_OK) result = train_epochs(t);
    if (result == DDPM_OK && t->comm->rank == 0) report_end(t);
    return result;
}

static int run(const cli_context *context)
{
    training t = {.comm = context->comm, .lock = -1, .metrics = {.file = -1}, .timing = {.file = -1}};
    if (set.out == NULL && (set.resume || !set.dry_run))
        return cli_usage_error("train", "train: --out is missing\n      usage: ddpm train %s", cli_train.usage);
    if (set.data == NULL && !set.resume && set.args == NULL)
        return cli_usage_error("train", "train: DATA is missing\n      usage: ddpm train %s", cli_train.usage);
    t.info = io_model_info_default();
    ddpm_result result = train(context, &t);
    int status = cli_exit_rank(t.comm, result);
    close_training(&t);
    return status;
}

static cli_ranks ranks(void)
{
    return (cli_ranks){.processes = set.ranks, .gpus = set.gpus};
}

const cli_command cli_train = {
    "train",
    "DATA --out RUN [--model lab|small|tiny|CONFIG.json|MODEL] [--resume]",
    "trains a model on a data set's pictures and labels",
    "RUN then holds step-N/ (models that diffusers can load), the links latest, best and epoch=N, metrics.csv,\n"
    "loss.png and args.json. The defaults are the lab's recipe, with a smaller model where there is no GPU (the lab's\n"
    "is --model lab). Ctrl-C, SIGTERM or a closed terminal saves and ends; ddpm train --resume --out RUN goes on, to\n"
    "the same bits as if it had not been stopped.",
    options,
    run,
    ranks};
