/* tests/test_dataset.c - lab/dataset: batches against pictures read one by one, the order against ddpm_shuffle, the
 * same bytes for any number of decode threads and any cache, broken pictures, closing at any moment, each error's text.
 * Contents:  1 helpers   2 batches   3 cache and broken pictures   4 the survey   5 the forms of data   6 errors */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/file.h"
#include "io/picture.h"
#include "lab/dataset.h"

/* ---- 1. Helpers -------------------------------------------------------------------------------------------------- */

enum { WIDTH = 5, HEIGHT = 4, PIXELS = 3 * HEIGHT * WIDTH, CLASSES = 5 };

static char folder[200]; /* of the test that is running */

static int make_folder(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.150s/test_dataset_XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return io_remove_tree(folder) ? -1 : 0;
}

static const char *in_folder(const char *name)
{
    static char path[300];
    int length = snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_in_range(length, 1, sizeof path - 1);
    return path;
}

static void write_text(const char *name, const char *text)
{
    assert_int_equal(io_write_file(in_folder(name), text, strlen(text)), DDPM_OK);
}

static void assert_error_has(const char *part)
{
    if (!strstr(ddpm_error(), part)) fail_msg("'%s' is not in the error: %s", part, ddpm_error());
}

/* An 8x6 picture that is different for every index, in folder/name. */
static void write_picture(const char *name, int index)
{
    unsigned char pixel[6 * 8 * 3];
    uint32_t x = (uint32_t)index * 2654435761u + 1;
    for (size_t i = 0; i < sizeof pixel; i++) {
        x = x * 1664525u + 1013904223u;
        pixel[i] = (unsigned char)(x >> 24);
    }
    io_picture picture = {.width = 8, .height = 6, .channels = 3, .pixel = pixel};
    unsigned char *png;
    size_t size;
    assert_int_equal(io_picture_encode_png(&picture, NULL, 0, &png, &size), DDPM_OK);
    FILE *file = fopen(in_folder(name), "wb"); /* not io_write_file: fsync for each would take seconds */
    assert_non_null(file);
    assert_int_equal(fwrite(png, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
    free(png);
}

/* `count` pictures p0.png.. in folder/pictures, their train.json in folder/data, CLASSES classes. Picture i has the
 * classes j for which bit j of i is set. */
static void make_data(const char *data, const char *pictures, int count)
{
    char name[300], *text = malloc((size_t)count * 100 + 8), *end = text;
    assert_non_null(text);
    assert_int_equal(io_make_directory(in_folder(data)), DDPM_OK);
    assert_int_equal(io_make_directory(in_folder(pictures)), DDPM_OK);
    end += sprintf(end, "{");
    for (int i = 0; i < count; i++) {
        end += sprintf(end, "%s\"p%d.png\": [", i ? ",\n" : "", i);
        for (int j = 0, bits = 0; j < CLASSES; j++)
            if (i >> j & 1) end += sprintf(end, "%s\"class %d\"", bits++ ? ", " : "", j);
        end += sprintf(end, "]");
        snprintf(name, sizeof name, "%s/p%d.png", pictures, i);
        write_picture(name, i);
    }
    sprintf(end, "}");
    snprintf(name, sizeof name, "%s/train.json", data);
    write_text(name, text);
    snprintf(name, sizeof name, "%s/objects.json", data);
    write_text(name, "{\"class 0\": 0, \"class 1\": 1, \"class 2\": 2, \"class 3\": 3, \"class 4\": 4}");
    free(text);
}

static lab_dataset_config config_for(const char *data)
{
    static char path[300];
    snprintf(path, sizeof path, "%s", in_folder(data));
    lab_dataset_config config = lab_dataset_default(path);
    config.width = WIDTH;
    config.height = HEIGHT;
    return config;
}

static lab_dataset *open_ok(const lab_dataset_config *config)
{
    lab_dataset *ds;
    if (lab_dataset_open(config, &ds)) fail_msg("%s", ddpm_error());
    return ds;
}

/* A whole epoch in batches of n: pictures (count,3,H,W), labels (count,CLASSES). Checks the batches' sizes. */
static void read_epoch(lab_dataset *ds, uint32_t epoch, int n, ddpm_real *pictures, ddpm_real *labels)
{
    assert_int_equal(lab_dataset_start_epoch(ds, epoch), DDPM_OK);
    for (int done = 0; done < ds->count; done += n) {
        int got, left = ds->count - done;
        if (lab_dataset_next(ds, n, pictures + (size_t)done * PIXELS, labels + (size_t)done * CLASSES, &got))
            fail_msg("%s", ddpm_error());
        assert_int_equal(got, left < n ? left : n);
    }
    int got = -1;
    for (int i = 0; i < 2; i++) { /* and then no more, however often it is asked */
        assert_int_equal(lab_dataset_next(ds, n, pictures, labels, &got), DDPM_OK);
        assert_int_equal(got, 0);
    }
}

/* What picture `index` must be, by another way: read, resized and converted alone. */
static void expect_picture(const lab_dataset *ds, uint32_t index, const ddpm_real *picture, const ddpm_real *labels)
{
    io_picture original, small;
    ddpm_real expected[PIXELS];
    assert_int_equal(io_picture_read(ds->path[index], 3, &original), DDPM_OK);
    assert_int_equal(io_picture_resize(&original, WIDTH, HEIGHT, &small), DDPM_OK);
    io_picture_to_real(&small, expected);
    assert_memory_equal(picture, expected, sizeof expected);
    for (uint32_t j = 0; j < CLASSES; j++)
        assert_true(labels[j] == (ddpm_real)(index >> j & 1));
    io_picture_free(&original);
    io_picture_free(&small);
}

/* ---- 2. Batches -------------------------------------------------------------------------------------------------- */

static void batches_follow_the_shuffle(void **state)
{
    (void)state;
    enum { COUNT = 23 };
    make_data("d", "d", COUNT);
    lab_dataset_config config = config_for("d");
    config.seed = 77;
    lab_dataset *ds = open_ok(&config);
    assert_int_equal(ds->count, COUNT);
    assert_int_equal(ds->classes.count, CLASSES);
    assert_string_equal(lab_dataset_describe(ds), "23 pictures, 5 classes, multi-label, from train.json");
    static ddpm_real pictures[COUNT * PIXELS], labels[COUNT * CLASSES];
    static const uint32_t epochs[] = {0, 1, 7, 0},
                          sizes[] = {7, 23, 100, 1}; /* uneven, exact, larger than all, single */
    for (int e = 0; e < 4; e++) {
        read_epoch(ds, epochs[e], (int)sizes[e], pictures, labels);
        uint32_t order[COUNT], times[COUNT] = {0};
        ddpm_shuffle((ddpm_address){77, 0, epochs[e], DDPM_RANDOM_SHUFFLE}, COUNT, order);
        for (int i = 0; i < COUNT; i++) {
            expect_picture(ds, order[i], pictures + i * PIXELS, labels + i * CLASSES);
            times[order[i]]++;
        }
        for (int i = 0; i < COUNT; i++)
            assert_int_equal(times[i], 1);
    }
    lab_dataset_close(ds);
}

/* 300 pictures: more than the 256 that are decoded ahead, so that slots of the ring are used again. */
static void same_bytes_for_any_workers_and_cache(void **state)
{
    (void)state;
    enum { COUNT = 300, EPOCHS = 2 };
    make_data("d", "d", COUNT);
    static ddpm_real first[EPOCHS][COUNT * PIXELS], first_labels[EPOCHS][COUNT * CLASSES];
    static ddpm_real pictures[COUNT * PIXELS], labels[COUNT * CLASSES];
    static const size_t cache[] = {0, 100 * PIXELS + 1, (size_t)1 << 30}; /* none, 100 pictures, all */
    static const int workers[] = {1, 4, 0};
    for (int c = 0; c < 3; c++)
        for (int w = 0; w < 3; w++) {
            lab_dataset_config config = config_for("d");
            config.workers = workers[w];
            config.cache_bytes = cache[c];
            lab_dataset *ds = open_ok(&config);
            for (uint32_t e = 0; e < EPOCHS; e++) {
                if (!c && !w) {
                    read_epoch(ds, e, 32, first[e], first_labels[e]);
                    continue;
                }
                read_epoch(ds, e, 1 + 50 * w, pictures, labels);
                assert_memory_equal(pictures, first[e], sizeof pictures);
                assert_memory_equal(labels, first_labels[e], sizeof labels);
            }
            lab_dataset_close(ds);
        }
    assert_memory_not_equal(first[0], first[1], sizeof first[0]);
}

static void gets_single_pictures(void **state)
{
    (void)state;
    make_data("d", "d", 9);
    lab_dataset_config config = config_for("d");
    lab_dataset *ds = open_ok(&config);
    ddpm_real picture[PIXELS], labels[CLASSES], batch[9 * PIXELS], batch_labels[9 * CLASSES];
    int got;
    for (int cached = 0; cached < 2; cached++) { /* before and after the epoch, and in its middle */
        for (int i = 8; i >= 0; i--) {
            assert_int_equal(lab_dataset_get(ds, i, picture, labels), DDPM_OK);
            expect_picture(ds, (uint32_t)i, picture, labels);
        }
        uint32_t order[9];
        ddpm_shuffle((ddpm_address){529, 0, 3, DDPM_RANDOM_SHUFFLE}, 9, order);
        assert_int_equal(lab_dataset_start_epoch(ds, 3), DDPM_OK);
        assert_int_equal(lab_dataset_next(ds, 4, batch, batch_labels, &got), DDPM_OK);
        assert_int_equal(lab_dataset_get(ds, (int)order[5], picture, NULL), DDPM_OK);
        assert_int_equal(lab_dataset_next(ds, 5, batch + 4 * PIXELS, batch_labels + 4 * CLASSES, &got), DDPM_OK);
        assert_int_equal(got, 5);
        assert_memory_equal(picture, batch + 5 * PIXELS, sizeof picture);
        for (int i = 0; i < 9; i++)
            expect_picture(ds, order[i], batch + i * PIXELS, batch_labels + i * CLASSES);
    }
    assert_int_equal(lab_dataset_get(ds, 9, picture, labels), DDPM_ERR_RANGE);
    assert_error_has("picture 9 was asked for, the data set has 9");
    assert_int_equal(lab_dataset_get(ds, -1, picture, labels), DDPM_ERR_RANGE);
    lab_dataset_close(ds);
}

static void reads_gray(void **state)
{
    (void)state;
    make_data("d", "d", 3);
    lab_dataset_config config = config_for("d");
    config.channels = 1;
    lab_dataset *ds = open_ok(&config);
    ddpm_real batch[3 * WIDTH * HEIGHT], expected[WIDTH * HEIGHT];
    int got;
    uint32_t order[3];
    ddpm_shuffle((ddpm_address){529, 0, 0, DDPM_RANDOM_SHUFFLE}, 3, order);
    assert_int_equal(lab_dataset_start_epoch(ds, 0), DDPM_OK);
    assert_int_equal(lab_dataset_next(ds, 3, batch, NULL, &got), DDPM_OK);
    io_picture original, small;
    assert_int_equal(io_picture_read(ds->path[order[2]], 1, &original), DDPM_OK);
    assert_int_equal(io_picture_resize(&original, WIDTH, HEIGHT, &small), DDPM_OK);
    io_picture_to_real(&small, expected);
    assert_memory_equal(batch + 2 * WIDTH * HEIGHT, expected, sizeof expected);
    io_picture_free(&original);
    io_picture_free(&small);
    lab_dataset_close(ds);
}

static void finds_pictures_beside(void **state)
{
    (void)state;
    static const char *const place[] = {"a", "b/iclevr", "c/images", "iclevr", "elsewhere"};
    static const char *const data[] = {"a", "b", "c", "e", "f"};
    ddpm_real picture[PIXELS], labels[CLASSES];
    for (int i = 0; i < 5; i++) {
        char explicit_place[300];
        make_data(data[i], place[i], 5);
        snprintf(explicit_place, sizeof explicit_place, "%s", in_folder(place[4]));
        lab_dataset_config config = config_for(data[i]);
        config.image_dir = i == 4 ? explicit_place : NULL;
        lab_dataset *ds = open_ok(&config);
        assert_int_equal(lab_dataset_get(ds, 4, picture, labels), DDPM_OK);
        expect_picture(ds, 4, picture, labels);
        lab_dataset_close(ds);
    }
}

/* The lab's class file has another name in some copies; 1024 classes, one of them on one picture. */
static void takes_object_json_and_1024_classes(void **state)
{
    (void)state;
    make_data("d", "d", 1);
    assert_int_equal(unlink(in_folder("d/objects.json")), 0);
    char *text = malloc(1025 * 32), *end = text;
    assert_non_null(text);
    for (int i = 0; i < 1025; i++)
        end += sprintf(end, "%c\"class %d\": %d", i ? ',' : '{', i, i);
    sprintf(end, "}");
    write_text("d/object.json", text);
    write_text("d/train.json", "{\"p0.png\": [\"class 1023\", \"class 5\"]}");
    lab_dataset_config config = config_for("d");
    lab_dataset *ds;
    assert_int_equal(lab_dataset_open(&config, &ds), DDPM_ERR_FORMAT);
    assert_error_has("1025 classes");
    sprintf(strstr(text, ",\"class 1024\""), "}");
    write_text("d/object.json", text);
    free(text);

    ds = open_ok(&config);
    assert_string_equal(lab_dataset_describe(ds), "1 picture, 1024 classes, multi-label, from train.json");
    ddpm_real picture[PIXELS], labels[1024];
    int got;
    assert_int_equal(lab_dataset_start_epoch(ds, 0), DDPM_OK);
    assert_int_equal(lab_dataset_next(ds, 2, picture, labels, &got), DDPM_OK);
    assert_int_equal(got, 1);
    for (int i = 0; i < 1024; i++)
        assert_true(labels[i] == (i == 5 || i == 1023 ? 1 : 0));
    lab_dataset_close(ds);
}

/* ---- 3. Cache and broken pictures -------------------------------------------------------------------------------- */

/* What is in the cache needs no file any more; what is not does, and says which one. */
static void cache_replaces_the_files(void **state)
{
    (void)state;
    enum { COUNT = 40 };
    make_data("d", "d", COUNT);
    static ddpm_real before[COUNT * PIXELS], after[COUNT * PIXELS], labels[COUNT * CLASSES];
    lab_dataset_config config = config_for("d");
    lab_dataset *all = open_ok(&config);
    config.cache_bytes = 10 * PIXELS + PIXELS - 1; /* 10 pictures, not 11 */
    lab_dataset *ten = open_ok(&config);
    read_epoch(all, 0, 16, before, labels);
    read_epoch(ten, 0, 16, after, labels);
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(unlink(all->path[i]), 0);

    read_epoch(all, 0, 16, after, labels);
    assert_memory_equal(before, after, sizeof before);
    int got;
    assert_int_equal(lab_dataset_start_epoch(ten, 0), DDPM_OK); /* the same order: its first ten pictures are there */
    assert_int_equal(lab_dataset_next(ten, 10, after, labels, &got), DDPM_OK);
    assert_int_equal(got, 10);
    assert_memory_equal(before, after, 10 * PIXELS * sizeof *after);
    assert_int_equal(lab_dataset_next(ten, 1, after, labels, &got), DDPM_ERR_FILE);
    assert_int_equal(got, 0);
    uint32_t order[COUNT];
    ddpm_shuffle((ddpm_address){529, 0, 0, DDPM_RANDOM_SHUFFLE}, COUNT, order);
    assert_error_has(ten->path[order[10]]);
    lab_dataset_close(all);
    lab_dataset_close(ten);
}

static void reports_a_broken_picture(void **state)
{
    (void)state;
    enum { COUNT = 60, BROKEN = 37 };
    make_data("d", "d", COUNT);
    write_text("d/p37.png", "this is no picture");
    static ddpm_real pictures[COUNT * PIXELS], labels[COUNT * CLASSES];
    uint32_t order[COUNT];
    for (int workers = 1; workers <= 4; workers += 3) {
        lab_dataset_config config = config_for("d");
        config.workers = workers;
        lab_dataset *ds = open_ok(&config);
        for (uint32_t epoch = 0; epoch < 3; epoch++) {
            ddpm_shuffle((ddpm_address){529, 0, epoch, DDPM_RANDOM_SHUFFLE}, COUNT, order);
            int good = 0, got;
            while (order[good] != BROKEN)
                good++;
            assert_int_equal(lab_dataset_start_epoch(ds, epoch), DDPM_OK);
            for (int i = 0; i < good / 4; i++) { /* the batches before it are whole */
                assert_int_equal(lab_dataset_next(ds, 4, pictures, labels, &got), DDPM_OK);
                assert_int_equal(got, 4);
            }
            for (int again = 0; again < 2; again++) {
                assert_int_equal(lab_dataset_next(ds, 4, pictures, labels, &got), DDPM_ERR_FORMAT);
                assert_int_equal(got, 0);
                assert_error_has("p37.png");
            }
        }
        assert_int_equal(lab_dataset_get(ds, BROKEN, pictures, labels), DDPM_ERR_FORMAT);
        assert_error_has("p37.png");

        write_picture("d/p37.png", BROKEN); /* mended: the next epoch is whole */
        read_epoch(ds, 1, 7, pictures, labels);
        lab_dataset_close(ds);
        write_text("d/p37.png", "broken again");
    }
}

/* Threads that are waiting for room, decoding, done, or barely started all end. 300 pictures: more than fit ahead. */
static void closes_at_any_moment(void **state)
{
    (void)state;
    enum { COUNT = 300 };
    make_data("d", "d", COUNT);
    static ddpm_real pictures[COUNT * PIXELS], labels[COUNT * CLASSES];
    static const int taken[] = {0, 1, 20, 43, 44, 45, 300}; /* 44 = 300 - 256: all of the rest fits ahead */
    for (int i = 0; i < 14; i++) {
        lab_dataset_config config = config_for("d");
        config.workers = i % 2 ? 5 : 1;
        config.cache_bytes = 0;
        lab_dataset *ds = open_ok(&config);
        int got = 0;
        assert_int_equal(lab_dataset_start_epoch(ds, 0), DDPM_OK);
        if (taken[i / 2]) assert_int_equal(lab_dataset_next(ds, taken[i / 2], pictures, labels, &got), DDPM_OK);
        assert_int_equal(got, taken[i / 2]);
        if (i >= 4) /* or begins anew */
            read_epoch(ds, 1, 100, pictures, labels);
        lab_dataset_close(ds);
    }
    lab_dataset_close(NULL);
}

/* ---- 4. The survey ----------------------------------------------------------------------------------------------- */

static void counts_up(void *user, int done, int total)
{
    int *last = user;
    assert_int_equal(done, *last + 1);
    assert_in_range(done, 1, total);
    *last = done;
}

static void assert_finding(const lab_survey *survey, int index, lab_trouble trouble, const char *name,
                           const char *about)
{
    assert_in_range(index, 0, survey->findings - 1);
    assert_int_equal(survey->finding[index].trouble, trouble);
    assert_non_null(strstr(survey->finding[index].path, name));
    if (!strstr(survey->finding[index].about, about)) fail_msg("'%s'", survey->finding[index].about);
}

static void surveys_the_pictures(void **state)
{
    (void)state;
    enum { COUNT = 300 };
    static ddpm_real before[COUNT * PIXELS], after[COUNT * PIXELS], labels[COUNT * CLASSES];
    make_data("d", "d", COUNT);
    write_text("d/p3.png", "no picture");
    write_picture("d/p290.png", 7);
    write_picture("d/p12.png", 7);
    for (int workers = 1; workers <= 4; workers += 3) {
        lab_dataset_config config = config_for("d");
        config.workers = workers;
        lab_dataset *ds = open_ok(&config);
        lab_survey survey;
        int last = 0;
        assert_int_equal(lab_dataset_survey(ds, counts_up, &last, &survey), DDPM_OK);
        assert_int_equal(last, COUNT);
        assert_int_equal(survey.findings, 3);
        assert_finding(&survey, 0, LAB_UNREADABLE, "/p3.png", "p3.png: ");
        assert_finding(&survey, 1, LAB_DUPLICATE, "/p12.png", "/p7.png");
        assert_finding(&survey, 2, LAB_DUPLICATE, "/p290.png", "/p7.png");
        lab_survey_free(&survey);

        assert_int_equal(ds->count, COUNT - 1); /* and picture 4 stands where the unreadable one was */
        assert_string_equal(lab_dataset_describe(ds), "299 pictures, 5 classes, multi-label, from train.json");
        ddpm_real picture[PIXELS], label[CLASSES], expected[CLASSES] = {0, 0, 1, 0, 0};
        assert_int_equal(lab_dataset_get(ds, 3, picture, label), DDPM_OK);
        assert_memory_equal(label, expected, sizeof label);
        assert_non_null(strstr(ds->path[3], "/p4.png"));
        read_epoch(ds, 1, 32, workers == 1 ? before : after, labels);
        lab_dataset_close(ds);

        config.width = 9; /* all are 8x6: too narrow for this */
        config.cache_bytes = 0;
        ds = open_ok(&config);
        assert_int_equal(lab_dataset_survey(ds, NULL, NULL, &survey), DDPM_OK);
        assert_int_equal(survey.count[LAB_TINY], COUNT - 1);
        assert_finding(&survey, 1, LAB_TINY, "/p0.png", "8x6");
        lab_survey_free(&survey);
        lab_dataset_close(ds);
    }
    assert_memory_equal(before, after, (COUNT - 1) * PIXELS * sizeof *before);
}

/* The cache that a survey leaves gives the same bytes as decoding on the way, and no file is read again. */
static void survey_fills_the_cache(void **state)
{
    (void)state;
    enum { COUNT = 40 };
    static ddpm_real before[COUNT * PIXELS], after[COUNT * PIXELS], labels[COUNT * CLASSES];
    make_data("d", "d", COUNT);
    lab_dataset_config config = config_for("d");
    lab_dataset *ds = open_ok(&config);
    lab_survey survey;
    read_epoch(ds, 2, 16, before, labels);
    assert_int_equal(lab_dataset_survey(ds, NULL, NULL, &survey), DDPM_OK);
    assert_int_equal(survey.findings, 0);
    lab_survey_free(&survey);
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(unlink(ds->path[i]), 0);
    read_epoch(ds, 2, 16, after, labels);
    assert_memory_equal(before, after, sizeof before);
    assert_int_equal(lab_dataset_survey(ds, NULL, NULL, &survey), DDPM_ERR_FORMAT);
    assert_error_has("none of the 40 pictures can be read; the first: ");
    assert_error_has("/p0.png");
    lab_dataset_close(ds);
}

/* ---- 5. The forms of data ---------------------------------------------------------------------------------------- */

/* Opens folder/d and wants this description, and that picture `name` has the caption `caption`. */
static void expect_form(int unconditional, const char *description, const char *name, const char *caption)
{
    lab_dataset_config config = config_for("d");
    config.unconditional = unconditional;
    lab_dataset *ds = open_ok(&config);
    assert_string_equal(lab_dataset_describe(ds), description);
    assert_int_equal(ds->kind == LAB_UNLABELLED, !caption);
    assert_int_equal(ds->classes.count > 0, caption != NULL);
    int index = 0;
    while (index < ds->count && !strstr(ds->path[index], name))
        index++;
    assert_in_range(index, 0, ds->count - 1);
    if (caption) {
        assert_int_equal(ds->labels.count, ds->count);
        char *text = lab_set_caption(&ds->labels, index, &ds->classes);
        assert_string_equal(text, caption);
        free(text);
    }
    static ddpm_real pictures[16 * PIXELS], labels[16 * CLASSES]; /* and all of it can be read */
    int got;
    assert_int_equal(lab_dataset_start_epoch(ds, 0), DDPM_OK);
    assert_int_equal(lab_dataset_next(ds, 16, pictures, labels, &got), DDPM_OK);
    assert_int_equal(got, ds->count);
    lab_dataset_close(ds);
}

static void refuse_form(ddpm_result code, const char *part1, const char *part2)
{
    lab_dataset_config config = config_for("d");
    lab_dataset *ds;
    assert_int_equal(lab_dataset_open(&config, &ds), code);
    assert_null(ds);
    assert_error_has(part1);
    assert_error_has(part2);
    assert_error_has("\n      hint: ");
}

static void pictures_in(const char *below, int count)
{
    char name[300];
    assert_int_equal(io_make_directory(in_folder(below)), DDPM_OK);
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, "%s/p%d.png", below, i);
        write_picture(name, i);
    }
}

static void reads_json_lines(void **state)
{
    (void)state;
    pictures_in("d/images", 3);
    write_text("d/metadata.jsonl", "{\"file_name\": \"p1.png\", \"label\": \"red fox\", \"text\": \"of no use\"}\r\n\n"
                                   "{\"file_name\": \"p2.png\", \"label\": \"cat\"}");
    expect_form(0, "2 pictures, 2 classes, single-label, from metadata.jsonl", "p1.png", "red fox");
    expect_form(1, "2 pictures, unconditional, from metadata.jsonl", "p1.png", NULL);
    write_text("d/metadata.jsonl",
               "{\"file_name\": \"p0.png\", \"label\": 10}\n{\"file_name\": \"p1.png\", \"label\": 2}\n"
               "{\"file_name\": \"p2.png\", \"label\": \"0\"}\n");
    expect_form(0, "3 pictures, 3 classes, single-label, from metadata.jsonl", "p0.png", "10");
    lab_dataset_config config = config_for("d");
    lab_dataset *ds = open_ok(&config);
    assert_string_equal(ds->classes.name[1], "2"); /* by value, not "0", "10", "2" */
    lab_dataset_close(ds);
    write_text("d/metadata.jsonl", "{\"file_name\": \"p0.png\", \"labels\": [\"hat\", \"cat\"]}\n"
                                   "{\"file_name\": \"p1.png\", \"labels\": \" cat , bat\"}\n"
                                   "{\"file_name\": \"p2.png\", \"labels\": []}\n");
    expect_form(0, "3 pictures, 3 classes, multi-label, from metadata.jsonl", "p0.png", "hat, cat");
    expect_form(0, "3 pictures, 3 classes, multi-label, from metadata.jsonl", "p1.png", "cat, bat");
    expect_form(0, "3 pictures, 3 classes, multi-label, from metadata.jsonl", "p2.png", "none");

    static const struct {
        const char *text, *part;
    } wrong[] = {
        {"{\"file_name\": \"p0.png\", \"labels\": [\"cat\", \"cat\"]}", "'p0.png' has the label 'cat' twice"},
        {"{\"file_name\": \"p0.png\", \"label\": \"a\"}\n{\"file_name\": \"p0.png\", \"label\": \"b\"}",
         "listed twice"},
        {"{\"file_name\": \"p0.png\", \"label\": \"a\"}\n{\"file_name\": \"p1.png\", \"labels\": [\"b\"]}",
         "line 2: a set of labels here, and one label before"},
        {"{\"file_name\": \"p0.png\", \"text\": \"a\"}", "line 1: neither label nor labels"},
        {"{\"file_name\": \"p0.png\", \"label\": \"  \"}", "line 1: a label without a name"},
        {"{\"file_name\": \"p0.png\", \"label\": 1.5}",
         "line 1: a label that is neither a name nor a whole number: 1.5"},
        {"{\"file_name\": \"p0.png\", \"label\": \"Cat\"}\n{\"file_name\": \"p1.png\", \"label\": \"cat\"}",
         "are both called 'cat'"},
        {"\n{\"label\": \"a\"}", "line 2: no file_name"},
        {"\n[1, 2", "line 2: "},
        {"", "no pictures are listed"},
        {"{\"file_name\": \"p0.png\", \"labels\": []}", "no picture has a label"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        write_text("d/metadata.jsonl", wrong[i].text);
        refuse_form(DDPM_ERR_FORMAT, "metadata.jsonl", wrong[i].part);
    }
    write_text("d/metadata.jsonl", "{\"file_name\": \"nowhere.png\", \"label\": \"a\"}");
    refuse_form(DDPM_ERR_FILE, "1 of 1 pictures are missing, the first is 'nowhere.png'", "/d/images");
}

static void reads_csv(void **state)
{
    (void)state;
    pictures_in("d", 3);
    write_text("d/metadata.csv", "\xef\xbb\xbf"
                                 "file_name,note,label\r\np0.png,\"a, \"\"b\"\"\r\nc\",\"red, fox\"\r\n"
                                 "p2.png,,cat\r\n");
    expect_form(0, "2 pictures, 2 classes, single-label, from metadata.csv", "p0.png", "red, fox");
    expect_form(1, "2 pictures, unconditional, from metadata.csv", "p0.png", NULL);
    write_text("d/metadata.csv", "labels,file_name\n\"hat,cat\",p0.png\n,p1.png\ncat,p2.png");
    expect_form(0, "3 pictures, 2 classes, multi-label, from metadata.csv", "p0.png", "hat, cat");
    expect_form(0, "3 pictures, 2 classes, multi-label, from metadata.csv", "p1.png", "none");
    static const struct {
        const char *text, *part;
    } wrong[] = {
        {"file_name,label\np0.png,\"a\"b\n", "row 2 has a quote in the wrong place"},
        {"file_name,label\np0.png,\"a", "row 2 has a quote in the wrong place"},
        {"file_name,label\np0.png,a\np1.png,a,b\n", "row 3 has 3 fields, the first line 2"},
        {"file_name,label\np0.png,a\np1.png\n", "row 3 has 1 fields"},
        {"name,label\np0.png,a\n", "no column file_name"},
        {"file_name,text\np0.png,a\n", "neither label nor labels"},
        {"file_name,label\np0.png,\n", "row 2: a label without a name"},
        {"file_name,label\n", "no pictures are listed"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        write_text("d/metadata.csv", wrong[i].text);
        refuse_form(DDPM_ERR_FORMAT, "metadata.csv", wrong[i].part);
    }
    write_text("d/metadata.jsonl", "{\"file_name\": \"p0.png\", \"label\": \"bat\"}"); /* comes first */
    expect_form(0, "1 picture, 1 class, single-label, from metadata.jsonl", "p0.png", "bat");
    make_data("d", "d", 2); /* and train.json before both */
    expect_form(0, "2 pictures, 5 classes, multi-label, from train.json", "p1.png", "class 0");
    assert_int_equal(unlink(in_folder("d/objects.json")), 0);
    expect_form(1, "2 pictures, unconditional, from train.json", "p1.png", NULL); /* needs no classes */
}

static void reads_folders(void **state)
{
    (void)state;
    pictures_in("d", 3);
    write_text("d/notes.txt", "not a picture");
    write_text("d/.hidden.png", "nor this");
    expect_form(0, "3 pictures, unconditional, from a folder of pictures", "p2.png", NULL);
    pictures_in("d/red fox", 2);
    refuse_form(DDPM_ERR_FORMAT, "2 pictures lie in folders, which would be their classes, and 3 do not, as p2.png",
                "--unconditional");
    expect_form(1, "5 pictures, unconditional, from its folders", "red fox/p1.png", NULL);
    for (int i = 0; i < 3; i++) {
        char name[20];
        snprintf(name, sizeof name, "d/p%d.png", i);
        assert_int_equal(unlink(in_folder(name)), 0);
    }
    expect_form(0, "2 pictures, unconditional, from a folder of pictures", "red fox/p1.png", NULL); /* one folder */
    pictures_in("d/cat/more", 1);
    pictures_in("d/cat", 2);
    pictures_in("d/empty", 0);
    expect_form(0, "5 pictures, 2 classes, single-label, from its folders", "red fox/p1.png", "red fox");
    expect_form(0, "5 pictures, 2 classes, single-label, from its folders", "cat/more/p0.png", "cat");
    expect_form(1, "5 pictures, unconditional, from its folders", "cat/p1.png", NULL);
    assert_int_equal(io_make_directory(in_folder("e")), DDPM_OK); /* the classes may lie one folder deeper */
    char inner[300];
    snprintf(inner, sizeof inner, "%s", in_folder("e/train"));
    assert_int_equal(rename(in_folder("d"), inner), 0);
    snprintf(inner, sizeof inner, "%s", in_folder("d"));
    assert_int_equal(rename(in_folder("e"), inner), 0);
    expect_form(0, "5 pictures, 2 classes, single-label, from its folders", "red fox/p1.png", "red fox");
    pictures_in("d/val/cat", 2);
    refuse_form(DDPM_ERR_FORMAT, "the folders train and val are parts of a data set, not classes", "/d/train");
    lab_dataset_config config = config_for("d/train");
    config.image_dir = folder;
    lab_dataset *ds;
    assert_int_equal(lab_dataset_open(&config, &ds), DDPM_ERR_ARGUMENT);
    assert_error_has("there is no list");
    assert_int_equal(io_remove_tree(in_folder("d/train")), DDPM_OK);
    assert_int_equal(io_remove_tree(in_folder("d/val")), DDPM_OK);
    refuse_form(DDPM_ERR_FILE, "no data set here: neither train.json, metadata.jsonl nor metadata.csv, and no pictures",
                "ddpm render --out DIR");
}

/* Sizes that come after opening; a picture's middle. */
static void takes_sizes_later(void **state)
{
    (void)state;
    make_data("d", "d", 4);
    lab_dataset_config config = config_for("d");
    config.width = config.height = 0;
    config.resize = LAB_CROP;
    lab_dataset *ds = open_ok(&config);
    assert_int_equal(lab_dataset_start_epoch(ds, 0), DDPM_ERR_ARGUMENT);
    assert_int_equal(lab_dataset_set_size(ds, 3, 9999, 3), DDPM_ERR_ARGUMENT);
    ddpm_real picture[3 * 8 * 8], expected[3 * 8 * 8];
    static const int sizes[][3] = {{6, 6, 3}, {4, 6, 1}, {8, 2, 3}};
    for (int i = 0; i < 3; i++) {
        const int *s = sizes[i];
        lab_survey survey;
        io_picture original, middle;
        assert_int_equal(lab_dataset_set_size(ds, s[0], s[1], s[2]), DDPM_OK);
        if (i == 1) { /* with and without a cache that the next size must not see */
            assert_int_equal(lab_dataset_survey(ds, NULL, NULL, &survey), DDPM_OK);
            lab_survey_free(&survey);
        }
        assert_int_equal(lab_dataset_get(ds, 2, picture, NULL), DDPM_OK);
        assert_int_equal(io_picture_read(ds->path[2], s[2], &original), DDPM_OK);
        assert_int_equal(io_picture_resize_crop(&original, s[0], s[1], &middle), DDPM_OK);
        io_picture_to_real(&middle, expected);
        assert_memory_equal(picture, expected, (size_t)(s[0] * s[1] * s[2]) * sizeof *picture);
        io_picture_free(&original);
        io_picture_free(&middle);
    }
    lab_dataset_close(ds);
}

/* Every picture is trained on or held out, never both; the held-out ones come in runs of three from all over the
 * list; an epoch that is taken up in its middle goes on as if it had not been left. */
static void divides_and_resumes(void **state)
{
    (void)state;
    enum { COUNT = 50, HELD = 12, TRAINED = COUNT - HELD, MOST = 20 };
    static ddpm_real whole[COUNT * PIXELS], rest[COUNT * PIXELS], labels[COUNT * CLASSES], one[PIXELS];
    make_data("d", "d", COUNT);
    lab_dataset_config config = config_for("d");
    lab_dataset *ds = open_ok(&config);
    assert_true(ds->training == COUNT && ds->held_out == 0);
    assert_int_equal(lab_dataset_divide(ds, HELD, 0), DDPM_OK);
    assert_true(ds->training == TRAINED && ds->held_out == HELD);
    static const int begin[] = {12, 24, 36,
                                47}; /* 17 runs, every fourth; the last one has but two pictures of its own */
    for (int i = 0; i < HELD; i++)
        assert_int_equal(lab_dataset_held_out(ds, i), begin[i / 3] + i % 3);
    int got;
    assert_int_equal(lab_dataset_start_epoch(ds, 1), DDPM_OK);
    assert_int_equal(lab_dataset_next(ds, COUNT, whole, labels, &got), DDPM_OK);
    assert_int_equal(got, TRAINED);
    for (int i = 0; i < HELD; i++) {
        assert_int_equal(lab_dataset_get(ds, lab_dataset_held_out(ds, i), one, labels), DDPM_OK);
        for (int k = 0; k < TRAINED; k++)
            assert_memory_not_equal(one, whole + k * PIXELS, sizeof one);
    }
    assert_int_equal(lab_dataset_resume_epoch(ds, 1, 30), DDPM_OK);
    assert_int_equal(lab_dataset_next(ds, COUNT, rest, labels, &got), DDPM_OK);
    assert_int_equal(got, TRAINED - 30);
    assert_memory_equal(rest, whole + 30 * PIXELS, sizeof *rest * PIXELS * (TRAINED - 30));
    assert_int_equal(lab_dataset_resume_epoch(ds, 1, TRAINED), DDPM_OK);
    assert_int_equal(lab_dataset_next(ds, COUNT, rest, labels, &got), DDPM_OK);
    assert_int_equal(got, 0);
    assert_int_equal(lab_dataset_resume_epoch(ds, 1, TRAINED + 1), DDPM_ERR_RANGE);
    assert_error_has("picture 39 of an epoch was asked for, the data set has 38");
    assert_int_equal(lab_dataset_divide(ds, HELD, MOST), DDPM_OK);
    assert_true(ds->training == MOST && ds->held_out == HELD);
    for (int held = 0; held < COUNT; held++) { /* exactly as many as asked for */
        assert_int_equal(lab_dataset_divide(ds, held, 0), DDPM_OK);
        assert_true(ds->held_out == held && ds->training == COUNT - held);
    }
    assert_int_equal(lab_dataset_divide(ds, COUNT, 0), DDPM_ERR_RANGE);
    lab_dataset_close(ds);
}

/* A picture is mirrored in the epochs that its address says, for any batch, threads and cache. */
static void flips_by_address(void **state)
{
    (void)state;
    enum { COUNT = 60 };
    static ddpm_real plain[COUNT * PIXELS], flipped[COUNT * PIXELS], labels[COUNT * CLASSES];
    make_data("d", "d", COUNT);
    lab_dataset_config config = config_for("d");
    lab_dataset *ds = open_ok(&config);
    int flips = 0, changes = 0;
    for (int variant = 0; variant < 3; variant++) {
        config.random_flip = 1;
        config.workers = 1 + variant;
        config.cache_bytes = variant == 1 ? 0 : (size_t)1 << 20;
        lab_dataset *random = open_ok(&config);
        for (uint32_t epoch = variant == 2 ? 2 : 0; epoch < 3; epoch++) { /* also from the middle, as after a resume */
            uint32_t order[COUNT];
            ddpm_shuffle((ddpm_address){529, 0, epoch, DDPM_RANDOM_SHUFFLE}, COUNT, order);
            read_epoch(ds, epoch, 16, plain, labels);
            read_epoch(random, epoch, 7 + 10 * variant, flipped, labels);
            for (int i = 0; i < COUNT; i++) {
                int flip = (int)ddpm_uniform_int((ddpm_address){529, order[i], epoch, LAB_RANDOM_FLIP}, 2);
                int next = (int)ddpm_uniform_int((ddpm_address){529, order[i], epoch + 1, LAB_RANDOM_FLIP}, 2);
                flips += flip;
                changes += flip != next;
                for (int row = 0; row < 3 * HEIGHT; row++)
                    for (int x = 0; x < WIDTH; x++) {
                        const ddpm_real *at = plain + i * PIXELS + row * WIDTH;
                        assert_true(flipped[i * PIXELS + row * WIDTH + x] == at[flip ? WIDTH - 1 - x : x]);
                    }
            }
        }
        lab_dataset_close(random);
    }
    assert_in_range(flips, 7 * COUNT * 2 / 5, 7 * COUNT * 3 / 5); /* half: of 420, 4 standard deviations are 41 */
    assert_in_range(changes, 7 * COUNT * 2 / 5, 7 * COUNT * 3 / 5);
    lab_dataset_close(ds);
}

/* ---- 6. Errors --------------------------------------------------------------------------------------------------- */

/* Opening folder/d with these files is refused with `code` and a text that has the three parts and a hint. */
static void refuse(const char *train, const char *objects, ddpm_result code, const char *part1, const char *part2,
                   const char *part3)
{
    lab_dataset_config config = config_for("d");
    lab_dataset *ds;
    write_text("d/train.json", train);
    write_text("d/objects.json", objects);
    assert_int_equal(lab_dataset_open(&config, &ds), code);
    assert_null(ds);
    assert_error_has(part1);
    assert_error_has(part2);
    assert_error_has(part3);
    assert_error_has("\n      hint: ");
}

static void refuses_wrong_files(void **state)
{
    (void)state;
    static const char objects[] = "{\"red cube\": 0, \"cyan cube\": 1}";
    make_data("d", "d", 3);
    refuse("{}", objects, DDPM_ERR_FORMAT, "train.json", "the data set is empty", "");
    refuse("[[\"red cube\"]]", objects, DDPM_ERR_FORMAT, "train.json", "not a JSON object", "");
    refuse("{\"p0.png\": [\"red cube\"]", objects, DDPM_ERR_FORMAT, "train.json", "not valid JSON", "");
    refuse("{\"p0.png\": [\"red cube\"], \"p1.png\": [\"cyan cub\"]}", objects, DDPM_ERR_RANGE,
           "train.json: entry 1 (counted from 0), 'p1.png': unknown label 'cyan cub'", "did you mean 'cyan cube'?",
           "There are: red cube, cyan cube");
    refuse("{\"p0.png\": \"red cube\"}", objects, DDPM_ERR_FORMAT, "entry 0", "'p0.png'",
           "not an array of class names");
    refuse("{\"p0.png\": [\"red cube\", \"red cube\"]}", objects, DDPM_ERR_FORMAT, "'p0.png'", "'red cube'", "twice");
    refuse("{\"p0.png\": [], \"p1.png\": [], \"p0.png\": []}", objects, DDPM_ERR_FORMAT, "train.json", "'p0.png'",
           "listed twice");
    refuse("{\"p0.png\": [], \"no.png\": [], \"p1.png\": [], \"nor.png\": []}", objects, DDPM_ERR_FILE,
           "train.json: 2 of 4 pictures are missing, the first is 'no.png'", "/d/iclevr", "/d/../iclevr");
    refuse("{\"no.png\": []}", objects, DDPM_ERR_FILE, "1 of 1 pictures are missing, the first is 'no.png'",
           "/d/images", "");
    refuse("{\"p0.png\": [\"red cube\"]}", "{\"red cube\": 1}", DDPM_ERR_FORMAT, "objects.json", "index 1", "");

    lab_dataset_config config = config_for("d");
    lab_dataset *ds;
    config.image_dir = "/nowhere";
    write_text("d/objects.json", objects);
    assert_int_equal(lab_dataset_open(&config, &ds), DDPM_ERR_FILE);
    assert_error_has("tried /nowhere");
    assert_int_equal(unlink(in_folder("d/objects.json")), 0);
    assert_int_equal(lab_dataset_open(&config, &ds), DDPM_ERR_FILE);
    assert_error_has("objects.json and object.json");
    config = config_for("nothing");
    assert_int_equal(lab_dataset_open(&config, &ds), DDPM_ERR_FILE);
    assert_error_has("nothing: no such folder");
    assert_error_has("ddpm render --out DIR");
}

static void refuses_wrong_calls(void **state)
{
    (void)state;
    make_data("d", "d", 3);
    static const struct {
        int width, height, channels, workers;
        const char *part;
    } wrong[] = {
        {0, 4, 3, 1, "0x4"},
        {4, -1, 3, 1, "4x-1"},
        {4, 8193, 3, 1, "4x8193"},
        {4, 4, 2, 1, "2 channels"},
        {4, 4, 3, -1, "-1 decode threads"},
        {4, 4, 3, 257, "257 decode threads"},
    };
    lab_dataset_config config;
    lab_dataset *ds;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        config = config_for("d");
        config.width = wrong[i].width;
        config.height = wrong[i].height;
        config.channels = wrong[i].channels;
        config.workers = wrong[i].workers;
        assert_int_equal(lab_dataset_open(&config, &ds), DDPM_ERR_ARGUMENT);
        assert_null(ds);
        assert_error_has(wrong[i].part);
    }
    config = lab_dataset_default(NULL);
    assert_int_equal(lab_dataset_open(&config, &ds), DDPM_ERR_ARGUMENT);

    config = config_for("d");
    ds = open_ok(&config);
    ddpm_real pictures[3 * PIXELS];
    int got = 7;
    assert_int_equal(lab_dataset_next(ds, 1, pictures, NULL, &got), DDPM_ERR_ARGUMENT);
    assert_error_has("no epoch was started");
    assert_int_equal(got, 0);
    assert_int_equal(lab_dataset_start_epoch(ds, 0), DDPM_OK);
    assert_int_equal(lab_dataset_next(ds, 0, pictures, NULL, &got), DDPM_ERR_ARGUMENT);
    assert_int_equal(lab_dataset_next(ds, 3, pictures, NULL, &got), DDPM_OK);
    assert_int_equal(got, 3);
    lab_dataset_close(ds);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(batches_follow_the_shuffle),
        TEST(same_bytes_for_any_workers_and_cache),
        TEST(gets_single_pictures),
        TEST(reads_gray),
        TEST(finds_pictures_beside),
        TEST(takes_object_json_and_1024_classes),
        TEST(cache_replaces_the_files),
        TEST(reports_a_broken_picture),
        TEST(closes_at_any_moment),
        TEST(surveys_the_pictures),
        TEST(survey_fills_the_cache),
        TEST(reads_json_lines),
        TEST(reads_csv),
        TEST(reads_folders),
        TEST(takes_sizes_later),
        TEST(flips_by_address),
        TEST(divides_and_resumes),
        TEST(refuses_wrong_files),
        TEST(refuses_wrong_calls),
    };
    return cmocka_run_group_tests_name("dataset", tests, NULL, NULL);
}
