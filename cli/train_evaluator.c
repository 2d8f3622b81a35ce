/* cli/train_evaluator.c - ddpm train-evaluator: a data set becomes the classifier that judges (or guides).
 *
 * Contents: 1 options   2 the split   3 batches   4 accuracy   5 epochs   6 the command */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/judge.h"
#include "io/file.h"
#include "lab/augment.h"
#include "lab/dataset.h"

/* ---- 1. Options ---------------------------------------------------------------------------------------------- */

static struct {
    const char *data, *image_dir, *out, *model;
    int epochs, batch_size, held_out, workers, resolution, dtype;
    double lr, width, weight_decay, ema_decay;
    uint64_t seed;
} set;

/* clang-format off */
static const cli_option options[] = {
    {"data", "data_root train_data_dir", CLI_TEXT, "DATA", CLI_REQUIRED,
     "folder with train.json and objects.json", &set.data, 0, 0, 1},
    {"image-dir", NULL, CLI_TEXT, "DIR", "(DATA, or iclevr or images in or beside it)",
     "folder of the pictures", &set.image_dir, 0, 0, 0},
    {"out", "output_dir save_root", CLI_TEXT, "DIR", CLI_REQUIRED,
     "evaluator to make", &set.out, 0, 0, 0},
    {"model", "weight_path weights", CLI_TEXT, "PATH", "(none: PyTorch's initialisation)",
     "evaluator whose weights to begin with, of this width and these classes", &set.model, 0, 0, 0},
    {"width", NULL, CLI_REAL, "R", "0.25",
     "of torchvision's ResNet18: 1 is the course's evaluator, 0.25 has a sixteenth of its weights",
     &set.width, 1.0 / 64, 16, 0},
    {"epochs", "num_epochs num_epoch", CLI_INT, "N", "20", "times over the data", &set.epochs, 1, 1e6, 0},
    {"batch-size", "train_batch_size", CLI_INT, "N", "64",
     "pictures in a step; the last, smaller batch of an epoch is left out", &set.batch_size, 2, 65536, 0},
    {"lr", "learning_rate", CLI_REAL, "R", "2e-3",
     "learning rate of Adam; falls to 0 along a half cosine", &set.lr, 0, 1e6, 0},
    {"weight-decay", NULL, CLI_REAL, "R", "1e-4", "of AdamW", &set.weight_decay, 0, 1, 0},
    {"ema-decay", NULL, CLI_REAL, "R", "0.999",
     "largest decay of the averaged weights, which are what is saved", &set.ema_decay, 0, 1, 0},
    {"held-out", NULL, CLI_INT, "N", "300",
     "scenes kept apart for the accuracy, all pictures of each: the last of the list", &set.held_out, 0, 1e6, 0},
    {"resolution", NULL, CLI_INT, "N", "64", "side of the pictures it sees", &set.resolution, 8, 1024, 0},
    {"dtype", NULL, CLI_CHOICE, "f32|f16", "f32", "numbers of the file; f16 halves it", &set.dtype, 0, 0, 0},
    {"seed", NULL, CLI_SEED, "S", "529", "of weights, order, augmentation", &set.seed, 0, 0, 0},
    {"workers", "num_workers dataloader_num_workers", CLI_INT, "N", "2",
     "threads that decode pictures", &set.workers, 1, 256, 0},
    {0},
};
/* clang-format on */

typedef struct training {
    lab_dataset *data;
    int *index;            /* pictures: those trained on, then those held out */
    int trained, held_out; /* how many of each */
    lab_evaluator *ev;
    lab_evaluator_net *net, *judge;
    ddpm_real *pictures, *labels, *scratch;
    ddpm_train_config config;
    uint64_t step, steps; /* done, in all */
    FILE *metrics;
    cli_progress bar;
    double started;
} training;

static void close_training(training *t)
{
    if (t->metrics != NULL) fclose(t->metrics);
    free(t->pictures);
    free(t->labels);
    free(t->scratch);
    free(t->index);
    lab_evaluator_net_free(t->net);
    lab_evaluator_net_free(t->judge);
    lab_evaluator_free(t->ev);
    lab_dataset_close(t->data);
}

/* ---- 2. The split -------------------------------------------------------------------------------------------- */

typedef struct scene_picture {
    const char *name; /* file name of the picture */
    int length;       /* of the part that names the scene: "CLEVR_train_000341" of CLEVR_train_000341_2.png */
    int index;
} scene_picture;

static int scene_length(const char *name)
{
    const char *dot = strrchr(name, '.'), *mark = strrchr(name, '_');
    int stem = dot != NULL ? (int)(dot - name) : (int)strlen(name);
    if (mark == NULL || mark - name >= stem - 1 || mark == name) return stem;
    return (int)strspn(mark + 1, "0123456789") == stem - (int)(mark + 1 - name) ? (int)(mark - name) : stem;
}

static int by_scene(const void *a, const void *b)
{
    const scene_picture *x = a, *y = b;
    int shorter = x->length < y->length ? x->length : y->length, order = memcmp(x->name, y->name, (size_t)shorter);
    if (order != 0) return order;
    if (x->length != y->length) return x->length < y->length ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static int same_scene(const scene_picture *a, const scene_picture *b)
{
    return a->length == b->length && memcmp(a->name, b->name, (size_t)a->length) == 0;
}

/* Pictures in the order of their scenes' names; the last --held-out scenes are not trained on. A scene's pictures share
 * their objects, so one that is trained on would tell about the others. */
static ddpm_result split(training *t)
{
    int count = t->data->count, scenes = 0, kept = 0;
    scene_picture *list = cli_alloc((size_t)count, sizeof *list);
    t->index = cli_alloc((size_t)count, sizeof *t->index);
    if (list == NULL || t->index == NULL) {
        free(list);
        return DDPM_ERR_MEMORY;
    }
    for (int i = 0; i < count; i++) {
        const char *slash = strrchr(t->data->path[i], '/');
        list[i].name = slash != NULL ? slash + 1 : t->data->path[i];
        list[i].length = scene_length(list[i].name);
        list[i].index = i;
    }
    qsort(list, (size_t)count, sizeof *list, by_scene);
    for (int i = 0; i < count; i++)
        scenes += i == 0 || !same_scene(&list[i - 1], &list[i]);
    for (int i = 0, scene = 0; i < count; i++) {
        scene += i == 0 || !same_scene(&list[i - 1], &list[i]);
        if (scene <= scenes - set.held_out) kept++;
        t->index[i] = list[i].index;
    }
    free(list);
    t->trained = kept;
    t->held_out = count - kept;
    if (kept < set.batch_size)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: %d pictures of %d scenes are left to train on, a batch has %d\n"
                         "      hint: more data, or a smaller --held-out or --batch-size",
                         set.data, kept, scenes, set.batch_size);
    cli_note("data    %s: %d to train on, %d (of %d scenes) held out", lab_dataset_describe(t->data), kept, t->held_out,
             set.held_out < scenes ? set.held_out : scenes);
    return DDPM_OK;
}

/* ---- 3. Batches ---------------------------------------------------------------------------------------------- */

/* Decodes all pictures once, by the data set's own threads; from then on they are in memory. */
static ddpm_result read_pictures(training *t)
{
    cli_progress bar;
    int got = 1, done = 0;
    ddpm_result result = lab_dataset_start_epoch(t->data, 0);
    cli_progress_start(&bar, "read", t->data->count);
    while (result == DDPM_OK && got > 0) {
        result = lab_dataset_next(t->data, 1, t->pictures, t->labels, &got);
        done += got;
        cli_progress_show(&bar, done, "%d of %d pictures", done, t->data->count);
    }
    cli_progress_clear(&bar);
    return result;
}

/* Batch number `batch` of an epoch, in the order given, augmented. */
static ddpm_result next_batch(training *t, const uint32_t *order, int batch, int epoch)
{
    lab_augmentation changes = lab_augmentation_default();
    size_t picture = ddpm_elements(t->net->picture, 1), classes = ddpm_elements(t->net->scores, 1);
    int size = set.resolution;
    for (int i = 0; i < set.batch_size; i++) {
        int index = t->index[order[batch * set.batch_size + i]];
        ddpm_address address = {set.seed, (uint64_t)index, (uint32_t)epoch, DDPM_RANDOM_USER};
        ddpm_real *x = t->pictures + (size_t)i * picture;
        ddpm_result result = lab_dataset_get(t->data, index, x, t->labels + (size_t)i * classes);
        if (result != DDPM_OK) return result;
        lab_augment(&changes, address, 3, size, size, x, t->scratch);
    }
    return DDPM_OK;
}

/* ---- 4. Accuracy --------------------------------------------------------------------------------------------- */

/* Of the pictures held out, by the averaged weights. */
static ddpm_result judge_held_out(training *t, lab_evaluator_net *net, lab_tally *tally)
{
    int capacity = net->graph->capacity;
    size_t picture = ddpm_elements(net->picture, 1), classes = ddpm_elements(net->scores, 1);
    ddpm_real *scores = cli_alloc((size_t)capacity * classes, sizeof *scores);
    ddpm_result result = scores != NULL ? lab_tally_create(tally, (int)classes) : DDPM_ERR_MEMORY;
    for (int first = 0; result == DDPM_OK && first < t->held_out; first += capacity) {
        int n = t->held_out - first < capacity ? t->held_out - first : capacity;
        const int *index = t->index + t->trained + first;
        for (int i = 0; result == DDPM_OK && i < n; i++)
            result = lab_dataset_get(t->data, index[i], t->pictures + (size_t)i * picture, NULL);
        if (result == DDPM_OK) result = lab_evaluator_scores(net, n, t->pictures, scores);
        for (int i = 0; result == DDPM_OK && i < n; i++) {
            const lab_label_sets *sets = &t->data->labels;
            int start = sets->start[index[i]], labels = sets->start[index[i] + 1] - start;
            result = lab_tally_add(tally, scores + (size_t)i * classes, sets->label + start, labels, NULL);
        }
    }
    free(scores);
    return result;
}

/* ---- 5. Epochs ----------------------------------------------------------------------------------------------- */

static ddpm_result end_epoch(training *t, int epoch, double loss, double seconds)
{
    lab_tally tally = {0};
    cli_short duration;
    ddpm_result result = ddpm_model_use(t->ev->model, DDPM_EMA);
    if (result == DDPM_OK) result = judge_held_out(t, t->judge, &tally);
    if (result == DDPM_OK) result = lab_evaluator_save(set.out, t->ev, DDPM_EMA, set.dtype == 1 ? IO_F16 : IO_F32);
    if (result == DDPM_OK) result = ddpm_model_use(t->ev->model, DDPM_WEIGHT);
    if (result == DDPM_OK) {
        double pictures = lab_tally_pictures(&tally).value, objects = lab_tally_objects(&tally).value;
        cli_note("epoch %d: loss %.5f, held out %.4f (mean of pictures), %.4f (pooled objects), %.0f pictures/s, %s",
                 epoch, loss, pictures, objects, t->trained / seconds, cli_duration(seconds, duration));
        fprintf(t->metrics, "%d,%llu,%.9g,%.6f,%.6f,%.3f\n", epoch, (unsigned long long)t->step, loss, pictures,
                objects, cli_seconds() - t->started);
        if (ferror(t->metrics))
            result =
                ddpm_fail(DDPM_ERR_FILE, "%s/metrics.csv cannot be written\n      hint: is the disk full?", set.out);
    }
    lab_tally_free(&tally);
    return result;
}

static ddpm_result train_epoch(training *t, int epoch)
{
    const double pi = 3.14159265358979323846;
    int batches = t->trained / set.batch_size;
    double total = 0, begin = cli_seconds();
    uint32_t *order = cli_alloc((size_t)t->trained, sizeof *order);
    if (order == NULL) return DDPM_ERR_MEMORY;
    ddpm_shuffle((ddpm_address){.seed = set.seed, .step = (uint32_t)epoch, .purpose = DDPM_RANDOM_SHUFFLE},
                 (uint32_t)t->trained, order);
    ddpm_result result = DDPM_OK;
    for (int batch = 0; result == DDPM_OK && batch < batches; batch++) {
        double loss = 0, lr = set.lr / 2 * (1 + cos(pi * (double)t->step / (double)t->steps));
        result = next_batch(t, order, batch, epoch);
        if (result == DDPM_OK)
            result = lab_evaluator_train_step(t->net, set.batch_size, t->pictures, t->labels, &t->config, t->step, lr,
                                              &loss);
        if (result != DDPM_OK) break;
        t->step++;
        total += loss;
        cli_progress_show(&t->bar, (double)t->step, "epoch %d/%d lr %.2e loss %.4f %.0f pictures/s", epoch, set.epochs,
                          lr, total / (batch + 1), (batch + 1) * set.batch_size / (cli_seconds() - begin));
    }
    cli_progress_clear(&t->bar);
    free(order);
    return result == DDPM_OK ? end_epoch(t, epoch, total / batches, cli_seconds() - begin) : result;
}

/* ---- 6. The command ------------------------------------------------------------------------------------------ */

static ddpm_result open_data(training *t)
{
    lab_dataset_config config = lab_dataset_default(set.data);
    config.image_dir = set.image_dir;
    config.width = config.height = set.resolution;
    config.workers = set.workers;
    config.cache_bytes = SIZE_MAX;
    ddpm_result result = lab_dataset_open(&config, &t->data);
    if (result == DDPM_OK && t->data->kind == LAB_UNLABELLED)
        result = ddpm_fail(DDPM_ERR_ARGUMENT,
                           "%s: %s: there is nothing to classify\n"
                           "      hint: a list with labels, or one folder a class",
                           set.data, lab_dataset_describe(t->data));
    return result == DDPM_OK ? split(t) : result;
}

/* Weights, averages and statistics of --model; Adam's moments start at zero. */
static ddpm_result fill_from_model(const cli_context *context, training *t)
{
    lab_evaluator *from;
    ddpm_model *model = t->ev->model;
    ddpm_result result = lab_evaluator_load(set.model, &context->device, &from);
    if (result != DDPM_OK) return result;
    int same = from->classes.count == t->ev->classes.count && from->config.width == t->ev->config.width;
    for (int c = 0; same && c < from->classes.count; c++)
        same = strcmp(from->classes.name[c], t->ev->classes.name[c]) == 0;
    if (!same)
        result = ddpm_fail(DDPM_ERR_ARGUMENT,
                           "%s has width %g and %d classes, which are not those of this training\n"
                           "      hint: --width %g, and data with the same classes",
                           set.model, from->config.width, from->classes.count, from->config.width);
    for (int i = 0; result == DDPM_OK && i < model->params; i++) {
        const ddpm_tensor *p = from->model->param[i];
        ddpm_real *value = cli_alloc(ddpm_elements(p, 1), sizeof *value);
        result = value != NULL ? ddpm_model_get(from->model, DDPM_WEIGHT, p, value) : DDPM_ERR_MEMORY;
        if (result == DDPM_OK) result = ddpm_model_set(model, DDPM_WEIGHT, model->param[i], value);
        if (result == DDPM_OK) result = ddpm_model_set(model, DDPM_EMA, model->param[i], value);
        free(value);
    }
    lab_evaluator_free(from);
    return result;
}

static ddpm_result open_evaluator(const cli_context *context, training *t)
{
    io_evaluator_config config = {t->data->classes.name, t->data->classes.count, set.width, set.resolution};
    cli_short count;
    ddpm_result result = lab_evaluator_create(&config, &context->device, &t->ev);
    if (result == DDPM_OK) result = ddpm_model_alloc(t->ev->model, DDPM_FOR_TRAINING);
    if (result == DDPM_OK) result = ddpm_model_init(t->ev->model, set.seed);
    if (result == DDPM_OK && set.model != NULL) result = fill_from_model(context, t);
    if (result == DDPM_OK) result = lab_evaluator_net_create(&t->net, t->ev, set.batch_size, LAB_TRAINING);
    if (result == DDPM_OK) result = lab_evaluator_net_create(&t->judge, t->ev, set.batch_size, LAB_SCORING);
    if (result != DDPM_OK) return result;
    size_t picture = ddpm_elements(t->net->picture, 1), n = (size_t)set.batch_size;
    t->pictures = cli_alloc(n * picture, sizeof *t->pictures);
    t->scratch = cli_alloc(picture, sizeof *t->scratch);
    t->labels = cli_alloc(n * ddpm_elements(t->net->scores, 1), sizeof *t->labels);
    if (t->pictures == NULL || t->scratch == NULL || t->labels == NULL) return DDPM_ERR_MEMORY;
    t->config = ddpm_train_default();
    t->config.weight_decay = set.weight_decay;
    t->config.ema_decay = set.ema_decay;
    t->steps = (uint64_t)set.epochs * (uint64_t)(t->trained / set.batch_size);
    cli_note("model   ResNet18 of width %g at %dx%d, %s parameters", set.width, set.resolution, set.resolution,
             cli_count(cli_parameters(t->ev->model), count));
    return DDPM_OK;
}

static ddpm_result open_out(training *t)
{
    ddpm_result result = io_make_directory(set.out);
    char *path = result == DDPM_OK ? io_join(set.out, "metrics.csv") : NULL;
    if (result == DDPM_OK && path == NULL) result = DDPM_ERR_MEMORY;
    if (result == DDPM_OK && (t->metrics = fopen(path, "w")) == NULL)
        result = ddpm_fail(DDPM_ERR_FILE, "%s cannot be written\n      hint: is there room, and the right to?", path);
    if (t->metrics != NULL) {
        setvbuf(t->metrics, NULL, _IOLBF, 4096);
        fprintf(t->metrics, "epoch,step,loss,accuracy_pictures,accuracy_objects,seconds\n");
    }
    free(path);
    return result;
}

/* The figures of the file as written, with whatever its numbers were rounded to. */
static ddpm_result report(const cli_context *context, training *t)
{
    lab_evaluator *ev = NULL;
    lab_evaluator_net *net = NULL;
    lab_tally tally = {0};
    ddpm_result result = lab_evaluator_load(set.out, &context->device, &ev);
    if (result == DDPM_OK) result = lab_evaluator_net_create(&net, ev, set.batch_size, LAB_SCORING);
    if (result == DDPM_OK) result = judge_held_out(t, net, &tally);
    if (result == DDPM_OK) {
        printf("%s\n", set.out);
        cli_print_accuracy(&tally);
        cli_print_classes(&tally, &ev->classes);
    }
    lab_tally_free(&tally);
    lab_evaluator_net_free(net);
    lab_evaluator_free(ev);
    return result;
}

static ddpm_result train(const cli_context *context, training *t)
{
    ddpm_result result = open_data(t);
    if (result == DDPM_OK) result = open_evaluator(context, t);
    if (result == DDPM_OK) result = open_out(t);
    if (result == DDPM_OK) result = read_pictures(t);
    t->started = cli_seconds();
    cli_progress_start(&t->bar, "train", (double)t->steps);
    for (int epoch = 0; result == DDPM_OK && epoch < set.epochs; epoch++)
        result = train_epoch(t, epoch);
    return result == DDPM_OK ? report(context, t) : result;
}

static int run(const cli_context *context)
{
    training t = {0};
    int status = cli_exit(train(context, &t));
    close_training(&t);
    return status;
}

const cli_command cli_train_evaluator = {
    "train-evaluator",
    "DATA --out DIR [--width R]",
    "trains the classifier that judges pictures",
    "DIR then holds config.json, model.safetensors and metrics.csv. Training pictures are mirrored, shifted, blurred\n"
    "or halved and enlarged again, changed in brightness and given noise, so that it judges generated ones well.",
    options,
    run,
    NULL};
