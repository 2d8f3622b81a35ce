/* tests/test_render.c - the scene renderer: same bytes for any threads and order, the forms of its files, every object
 * visible with its own colour, occlusion, shadows, freedom from noise, and what it refuses.
 *
 * Contents:  1 helpers   2 scenes   3 pictures   4 data sets   5 label files   6 refusals */
#include <math.h>
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

#include "io/file.h"
#include "io/picture.h"
#include "lab/render.h"

/* ---- 1. Helpers ---- */

static char root[256]; /* everything is written below it */

static int make_root(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/ddpm-render-XXXXXX", base ? base : "/tmp");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    (void)state;
    return io_remove_tree(root) == DDPM_OK ? 0 : -1;
}

/* root/directory/name; the result lives until the eighth call after. */
static const char *below(const char *directory, const char *name)
{
    static char path[8][512];
    static int turn;
    char *here = path[turn++ % 8];
    snprintf(here, sizeof path[0], "%s/%s%s%s", root, directory, *name ? "/" : "", name);
    return here;
}

static void ok(ddpm_result result)
{
    if (result != DDPM_OK) fail_msg("%s", ddpm_error());
}

/* `result` must be `code`, and the error must speak of `word`. */
static void fails(ddpm_result result, ddpm_result code, const char *word)
{
    assert_int_equal(result, code);
    if (!strstr(ddpm_error(), word)) fail_msg("the error does not say '%s': %s", word, ddpm_error());
}

static void assert_same_file(const char *a, const char *b)
{
    unsigned char *x, *y;
    size_t nx, ny;
    ok(io_read_file(a, &x, &nx));
    ok(io_read_file(b, &y, &ny));
    assert_int_equal(nx, ny);
    assert_memory_equal(x, y, nx);
    free(x);
    free(y);
}

static void write_text(const char *path, const char *text)
{
    ok(io_write_file(path, text, strlen(text)));
}

static cJSON *read_json(const char *path)
{
    unsigned char *text;
    size_t size;
    ok(io_read_file(path, &text, &size));
    cJSON *json = cJSON_ParseWithOpts((const char *)text, NULL, 1);
    assert_non_null(json);
    free(text);
    return json;
}

static int class_of_name(const char *name)
{
    for (int c = 0; c < LAB_RENDER_CLASSES; c++) {
        char text[64];
        snprintf(text, sizeof text, "%s %s", lab_colour_name[c % LAB_COLOURS], lab_shape_name[c / LAB_COLOURS]);
        if (strcmp(text, name) == 0) return c;
    }
    fail_msg("'%s' is no class", name);
    return -1;
}

/* The classes of a JSON array of names, all different. */
static int read_set(const cJSON *array, int *class_index)
{
    int count = 0;
    assert_true(cJSON_IsArray(array));
    const cJSON *item;
    cJSON_ArrayForEach (item, array) {
        assert_true(cJSON_IsString(item));
        assert_in_range(count, 0, LAB_MAX_OBJECTS - 1);
        class_index[count] = class_of_name(item->valuestring);
        for (int i = 0; i < count; i++)
            assert_int_not_equal(class_index[i], class_index[count]);
        count++;
    }
    return count;
}

static lab_render_config small(const char *directory)
{
    static char out[4][512]; /* a test uses up to three at a time */
    static int turn;
    char *here = out[turn++ % 4];
    snprintf(here, sizeof out[0], "%s", below(directory, ""));
    lab_render_config config = lab_render_default();
    config.out = here;
    config.scenes = 5;
    config.seed = 11;
    config.width = 48;
    config.height = 36;
    return config;
}

static void picture_name(char name[64], int scene, int k)
{
    snprintf(name, 64, "CLEVR_train_%06d_%d.png", scene, k);
}

/* ---- 2. Scenes ---- */

/* Each class is in a scene with probability 3/24. Over n scenes its count is binomial: mean n/8, deviation
 * sqrt(n (1/8) (7/8)). None of 24 may lie 5 deviations off (chance 1.4e-5; the seed is fixed). First places alone:
 * n/24. */
static void classes_are_uniform(void **state)
{
    (void)state;
    enum { SCENES = 100000 };
    int any[LAB_RENDER_CLASSES] = {0}, first[LAB_RENDER_CLASSES] = {0};
    for (int i = 0; i < SCENES; i++) {
        int c[LAB_GROWING];
        lab_scene_classes(1, (uint64_t)i, c);
        assert_true(c[0] != c[1] && c[0] != c[2] && c[1] != c[2]);
        for (int k = 0; k < LAB_GROWING; k++) {
            assert_in_range(c[k], 0, LAB_RENDER_CLASSES - 1);
            any[c[k]]++;
        }
        first[c[0]]++;
    }
    for (int c = 0; c < LAB_RENDER_CLASSES; c++) {
        assert_true(fabs(any[c] - SCENES / 8.0) < 5 * sqrt(SCENES * 7 / 64.0));
        assert_true(fabs(first[c] - SCENES / 24.0) < 5 * sqrt(SCENES * 23 / 576.0));
    }
}

/* The generator's rules: the first object at the centre, centres in [-3,3]^2, sizes 0.7 and gaps of 0.25 (centres 1.65
 * apart), turns of length 1, all objects with 200 pixels in each growing picture, none cut by the frame. */
static void scenes_keep_the_rules(void **state)
{
    (void)state;
    enum { W = 320, H = 240, SCENES = 60 };
    signed char *id = malloc(W * H);
    assert_non_null(id);
    for (int i = 0; i < SCENES; i++) {
        lab_scene s;
        ok(lab_scene_random(&s, 2, (uint64_t)i));
        int c[LAB_GROWING];
        lab_scene_classes(2, (uint64_t)i, c);
        assert_int_equal(s.objects, LAB_GROWING);
        assert_true(s.object[0].x == 0 && s.object[0].y == 0);
        for (int k = 0; k < s.objects; k++) {
            const lab_object *o = &s.object[k];
            assert_int_equal(o->class_index, c[k]);
            assert_true(fabsf(o->x) <= 3 && fabsf(o->y) <= 3);
            assert_true(fabsf(o->cosine * o->cosine + o->sine * o->sine - 1) <
                        1e-6f); /* two roundings of 6e-8, squared */
            for (int j = 0; j < k; j++)
                assert_true(hypotf(o->x - s.object[j].x, o->y - s.object[j].y) > 1.65f - 1e-5f);
        }
        for (int shown = 1; shown <= s.objects; shown++) {
            int pixels[LAB_MAX_OBJECTS] = {0};
            lab_scene_ids(&s, shown, W, H, id);
            for (int p = 0; p < W * H; p++) {
                assert_in_range(id[p] + 1, 0, shown);
                if (id[p] == LAB_GROUND) continue;
                pixels[id[p]]++;
                assert_true(p % W != 0 && p % W != W - 1 && p / W != 0 && p / W != H - 1);
            }
            for (int k = 0; k < shown; k++)
                assert_true(pixels[k] >= LAB_MIN_PIXELS);
        }
    }
    free(id);
}

/* Two equal balls that do not touch lie on either side of a plane, the nearer one on the camera's side: where both
 * could be seen, the one with the nearer centre must be. Shown alone (the second as the first of another scene) tells
 * where. */
static void nearer_spheres_hide_farther_ones(void **state)
{
    (void)state;
    enum { W = 160, H = 120 };
    static signed char both[W * H], first[W * H], second[W * H];
    int overlaps = 0;
    for (int i = 0; i < 60; i++) {
        lab_scene s;
        ok(lab_scene_of(&s, (const int[]){9, 10}, 2, 3, (uint64_t)i)); /* red sphere, blue sphere */
        float away[2];
        for (int k = 0; k < 2; k++)
            away[k] = hypotf(s.camera.x - s.object[k].x, s.camera.y - s.object[k].y); /* centres are equally high */
        lab_scene swapped = s;
        swapped.object[0] = s.object[1];
        lab_scene_ids(&s, 2, W, H, both);
        lab_scene_ids(&s, 1, W, H, first);
        lab_scene_ids(&swapped, 1, W, H, second);
        for (int p = 0; p < W * H; p++) {
            int in_first = first[p] != LAB_GROUND, in_second = second[p] != LAB_GROUND;
            int expected = in_first && in_second ? (away[0] < away[1] ? 0 : 1)
                           : in_first            ? 0
                           : in_second           ? 1
                                                 : LAB_GROUND;
            assert_int_equal(both[p], expected);
            overlaps += in_first && in_second;
        }
    }
    assert_true(overlaps > 100);
}

/* ---- 3. Pictures ---- */

/* The paint whose hue is nearest to that of an sRGB colour; gray below a saturation of 0.15 (gray's own is 0, the
 * least of the others, cyan's and brown's, 0.8). Light scales a colour and highlights add white: neither moves the
 * hue. */
static double hue(const double c[3])
{
    double high = fmax(c[0], fmax(c[1], c[2])), low = fmin(c[0], fmin(c[1], c[2])), span = high - low;
    if (span < 0.15 * high) return -1;
    double h = high == c[0] ? (c[1] - c[2]) / span : high == c[1] ? 2 + (c[2] - c[0]) / span : 4 + (c[0] - c[1]) / span;
    return h < 0 ? h + 6 : h;
}

static int nearest_paint(const double c[3])
{
    double mine = hue(c), best_distance = 7;
    int best = 0; /* gray */
    for (int k = 1; k < LAB_COLOURS && mine >= 0; k++) {
        double paint[3] = {lab_colour_srgb[k][0], lab_colour_srgb[k][1], lab_colour_srgb[k][2]};
        double distance = fabs(mine - hue(paint));
        distance = fmin(distance, 6 - distance);
        if (distance < best_distance) {
            best_distance = distance;
            best = k;
        }
    }
    return best;
}

static void objects_show_their_colour(void **state)
{
    (void)state;
    enum { W = 96, H = 72 };
    static unsigned char rgb[W * H * 3];
    static signed char id[W * H];
    int seen[LAB_RENDER_CLASSES] = {0};
    for (int i = 0; i < 50; i++) {
        lab_scene s;
        ok(lab_scene_random(&s, 4, (uint64_t)i));
        ok(lab_scene_draw(&s, s.objects, W, H, rgb));
        lab_scene_ids(&s, s.objects, W, H, id);
        for (int k = 0; k < s.objects; k++) {
            double sum[3] = {0};
            for (int p = 0; p < W * H; p++)
                for (int q = 0; q < 3 && id[p] == k; q++)
                    sum[q] += rgb[3 * p + q];
            assert_int_equal(nearest_paint(sum), s.object[k].class_index % LAB_COLOURS);
            seen[s.object[k].class_index]++;
        }
    }
    for (int c = 0; c < LAB_RENDER_CLASSES; c++)
        assert_true(seen[c] > 0);
}

/* A new object takes light from the ground and gives none: no ground pixel grows brighter (by more than the one code
 * that a mean over edge rays and a pixel's centre can differ in), over all scenes many grow clearly darker. Shadows
 * are gray. And the ground is brighter near the camera than far away. */
static void shadows_darken_the_ground(void **state)
{
    (void)state;
    enum { W = 96, H = 72 };
    static unsigned char before[W * H * 3], after[W * H * 3];
    static signed char id[W * H];
    int darker = 0;
    for (int i = 0; i < 20; i++) {
        lab_scene s;
        ok(lab_scene_random(&s, 5, (uint64_t)i));
        ok(lab_scene_draw(&s, 1, W, H, before));
        ok(lab_scene_draw(&s, 2, W, H, after));
        lab_scene_ids(&s, 2, W, H, id);
        int near = 0, far = 0;
        for (int y = 1; y < H - 1; y++) {
            for (int x = 1; x < W - 1; x++) {
                int p = y * W + x, clear = 1; /* clear: no object in the pixel or beside it */
                for (int n = 0; n < 9; n++)
                    clear = clear && id[p + (n / 3 - 1) * W + n % 3 - 1] == LAB_GROUND;
                if (!clear) continue;
                assert_true(after[3 * p] == after[3 * p + 1] && after[3 * p] == after[3 * p + 2]);
                assert_true(after[3 * p] <= before[3 * p] + 1);
                darker += after[3 * p] < before[3 * p] - 15;
            }
        }

        for (int x = 0; x < W; x++) {
            far += before[3 * (H / 8 * W + x)];
            near += before[3 * ((H - 1) * W + x)];
        }
        assert_true(near > far + 40 * W);
    }
    assert_true(darker > 20 * 10); /* in a single scene the shadow may lie behind its object */
}

/* Second differences along rows of clear ground: rounding to codes alone gives an rms of sqrt((1 + 4 + 1) / 12) =
 * 0.71, noise of 2 codes would give sqrt(6) 2 = 4.9; the shadows' own curvature is small at this size. */
static void ground_has_no_noise(void **state)
{
    (void)state;
    enum { W = 320, H = 240, CLEAR = 4 };
    unsigned char *rgb = malloc(W * H * 3);
    signed char *id = malloc(W * H);
    assert_true(rgb && id);
    double sum = 0;
    int count = 0;
    for (int i = 0; i < 3; i++) {
        lab_scene s;
        ok(lab_scene_random(&s, 6, (uint64_t)i));
        ok(lab_scene_draw(&s, s.objects, W, H, rgb));
        lab_scene_ids(&s, s.objects, W, H, id);
        for (int y = 0; y < H; y++) {
            for (int x = CLEAR; x < W - CLEAR; x++) {
                int p = y * W + x, clear = 1;
                for (int d = -CLEAR; d <= CLEAR; d++)
                    clear = clear && id[p + d] == LAB_GROUND;
                double second = rgb[3 * (p - 1)] - 2.0 * rgb[3 * p] + rgb[3 * (p + 1)];
                sum += clear ? second * second : 0;
                count += clear;
            }
        }
    }
    assert_true(count > 100000);
    assert_true(sqrt(sum / count) < 1.2);
    free(rgb);
    free(id);
}

/* A picture drawn at 64x64 must look like the 320x240 one resized as the lab does. The triangle filter is two pixels
 * wide, the drawn pixel one, so edges differ; the mean over a picture must stay within 3 codes. */
static void small_pictures_match_resized_ones(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        lab_scene s;
        io_picture large, drawn, resized;
        ok(lab_scene_random(&s, 7, (uint64_t)i));
        ok(io_picture_create(320, 240, 3, &large));
        ok(io_picture_create(64, 64, 3, &drawn));
        ok(lab_scene_draw(&s, s.objects, 320, 240, large.pixel));
        ok(lab_scene_draw(&s, s.objects, 64, 64, drawn.pixel));
        ok(io_picture_resize(&large, 64, 64, &resized));
        double sum = 0;
        for (int p = 0; p < 64 * 64 * 3; p++)
            sum += abs(drawn.pixel[p] - resized.pixel[p]);
        assert_true(sum / (64 * 64 * 3) < 3);
        io_picture_free(&large);
        io_picture_free(&drawn);
        io_picture_free(&resized);
    }
}

static void impossible_scenes_are_refused(void **state)
{
    (void)state;
    lab_scene s;
    unsigned char rgb[3 * 16];
    fails(lab_scene_of(&s, (const int[]){1, 1}, 2, 0, 0), DDPM_ERR_ARGUMENT, "red cube");
    fails(lab_scene_of(&s, (const int[]){24}, 1, 0, 0), DDPM_ERR_ARGUMENT, "24");
    fails(lab_scene_of(&s, (const int[]){-1}, 1, 0, 0), DDPM_ERR_ARGUMENT, "-1");
    fails(lab_scene_of(&s, (const int[]){0, 1, 2, 3, 4, 5, 6}, 7, 0, 0), DDPM_ERR_ARGUMENT, "7");
    fails(lab_scene_of(&s, NULL, 0, 0, 0), DDPM_ERR_ARGUMENT, "0");
    ok(lab_scene_of(&s, (const int[]){0, 9, 18, 3, 12, 21}, LAB_MAX_OBJECTS, 0, 0));
    ok(lab_scene_draw(&s, 0, 4, 4, rgb));
    fails(lab_scene_draw(&s, 7, 4, 4, rgb), DDPM_ERR_ARGUMENT, "7");
    fails(lab_scene_draw(&s, 1, 3, 4, rgb), DDPM_ERR_ARGUMENT, "3x4");
    fails(lab_scene_draw(&s, 1, 4, 4097, rgb), DDPM_ERR_ARGUMENT, "4097");
}

/* ---- 4. Data sets ---- */

static ddpm_result count_scenes(void *user, int done, int total)
{
    int *calls = user;
    ++*calls;
    assert_int_equal(done, *calls);
    assert_int_equal(total, 5);
    return DDPM_OK;
}

/* One thread, three threads, the same settings again, and scenes drawn by hand in reverse order: the same bytes. */
static void same_bytes_for_any_threads_and_order(void **state)
{
    (void)state;
    static const char *const json[] = {"train.json", "test.json", "new_test.json", "objects.json", "render.json"};
    lab_render_config one = small("one"), three = small("three");
    int calls = 0;
    one.threads = 1;
    three.threads = 3;
    three.progress = count_scenes;
    three.user = &calls;
    ok(lab_render(&one));
    ok(lab_render(&three));
    assert_int_equal(calls, 5);
    for (int again = 0; again < 2; again++) {
        for (size_t i = 0; i < sizeof json / sizeof *json; i++)
            assert_same_file(below("one", json[i]), below("three", json[i]));
        for (int i = 4; i >= 0; i--) {
            lab_scene s;
            ok(lab_scene_random(&s, one.seed, (uint64_t)i));
            for (int k = 0; k < LAB_GROWING; k++) {
                char name[64];
                unsigned char rgb[48 * 36 * 3];
                io_picture p;
                picture_name(name, i, k);
                assert_same_file(below("one", name), below("three", name));
                ok(io_picture_read(below("one", name), 3, &p));
                ok(lab_scene_draw(&s, k + 1, 48, 36, rgb));
                assert_memory_equal(p.pixel, rgb, sizeof rgb);
                io_picture_free(&p);
            }
        }
        three.progress = NULL;
        ok(lab_render(&three)); /* over itself */
    }
    char *text;
    ok(io_picture_read_text(below("one", "CLEVR_train_000003_1.png"), "seed", &text));
    assert_string_equal(text, "11");
    free(text);
    ok(io_picture_read_text(below("one", "CLEVR_train_000003_1.png"), "scene", &text));
    assert_string_equal(text, "3");
    free(text);
}

static void files_have_the_labs_form(void **state)
{
    (void)state;
    lab_render_config config = small("form");
    ok(lab_render(&config));
    cJSON *objects = read_json(below("form", "objects.json")), *train = read_json(below("form", "train.json"));
    assert_int_equal(cJSON_GetArraySize(objects), LAB_RENDER_CLASSES);
    int index = 0;
    const cJSON *item;
    cJSON_ArrayForEach (item, objects) {
        assert_int_equal(class_of_name(item->string), index);
        assert_int_equal(item->valueint, index++);
    }
    assert_int_equal(cJSON_GetArraySize(train), 3 * config.scenes);
    index = 0;
    cJSON_ArrayForEach (item, train) {
        char name[64];
        int set[LAB_MAX_OBJECTS], drawn[LAB_GROWING];
        picture_name(name, index / 3, index % 3);
        assert_string_equal(item->string, name);
        lab_scene_classes(config.seed, (uint64_t)(index / 3), drawn);
        assert_int_equal(read_set(item, set), index % 3 + 1);
        assert_memory_equal(set, drawn, sizeof(int) * (size_t)(index % 3 + 1));
        io_picture p;
        ok(io_picture_read(below("form", name), 3, &p));
        assert_true(p.width == config.width && p.height == config.height);
        io_picture_free(&p);
        index++;
    }
    cJSON_Delete(objects);
    cJSON_Delete(train);
}

/* 32 sets each with the lab's counts, none twice; in test every class three times, in new_test 3 or 4 times (84 / 24)
 * give or take one, and each object shares colour or shape with the one before. The files in data/ are these. */
static void test_files_have_the_labs_form(void **state)
{
    (void)state;
    lab_render_config config = small("tests");
    config.scenes = 1;
    config.seed = 99; /* must not matter */
    ok(lab_render(&config));
    static const char *const file[2] = {"test.json", "new_test.json"};
    static const int expected[2][LAB_GROWING] = {{6, 12, 14}, {0, 12, 20}};
    for (int f = 0; f < 2; f++) {
        cJSON *json = read_json(below("tests", file[f]));
        int sizes[LAB_GROWING] = {0}, used[LAB_RENDER_CLASSES] = {0}, sets = 0;
        unsigned seen[32];
        const cJSON *item;
        assert_int_equal(cJSON_GetArraySize(json), 32);
        cJSON_ArrayForEach (item, json) {
            int set[LAB_MAX_OBJECTS], count = read_set(item, set);
            assert_in_range(count, 1, LAB_GROWING);
            sizes[count - 1]++;
            unsigned mask = 0;
            for (int i = 0; i < count; i++) {
                used[set[i]]++;
                mask |= 1u << set[i];
                if (f == 1 && i > 0)
                    assert_true(set[i] / LAB_COLOURS == set[i - 1] / LAB_COLOURS ||
                                set[i] % LAB_COLOURS == set[i - 1] % LAB_COLOURS);
            }
            for (int i = 0; i < sets; i++)
                assert_int_not_equal(mask, seen[i]);
            seen[sets++] = mask;
        }
        assert_memory_equal(sizes, expected[f], sizeof sizes);
        for (int c = 0; c < LAB_RENDER_CLASSES; c++)
            assert_in_range(used[c], f == 0 ? 3 : 2, f == 0 ? 3 : 5);
        cJSON_Delete(json);
    }
    assert_same_file(below("tests", "test.json"), "data/test.json");
    assert_same_file(below("tests", "new_test.json"), "data/new_test.json");
    assert_same_file(below("tests", "objects.json"), "data/objects.json");
}

static ddpm_result stop_after_two(void *user, int done, int total)
{
    (void)user;
    (void)total;
    return done == 2 ? ddpm_fail(DDPM_STOPPED, "stopped by the test") : DDPM_OK;
}

/* A run that was stopped lacks train.json, and the same settings finish it. */
static void progress_can_stop_a_run(void **state)
{
    (void)state;
    lab_render_config config = small("stopped");
    config.progress = stop_after_two;
    fails(lab_render(&config), DDPM_STOPPED, "by the test");
    assert_false(io_is_file(below("stopped", "train.json")));
    config.progress = NULL;
    ok(lab_render(&config));
    assert_true(io_is_file(below("stopped", "train.json")));
}

/* ---- 5. Label files ---- */

static void label_files_are_drawn_exactly(void **state)
{
    (void)state;
    static const int set[3][3] = {{9, 22, 6}, {23}, {0, 12}};
    static const int count[3] = {3, 1, 2};
    write_text(below("", "sets.json"), "[[\"red sphere\", \"cyan cylinder\", \"cyan cube\"], [\"yellow cylinder\"], "
                                       "[\"gray cube\", \"brown sphere\"]]");
    lab_render_config config = small("labelled");
    config.labels_file = below("", "sets.json");
    ok(lab_render(&config));
    for (int i = 0; i < 3; i++) {
        char name[64];
        unsigned char rgb[48 * 36 * 3];
        signed char id[48 * 36];
        lab_scene s;
        io_picture p;
        snprintf(name, sizeof name, "%d.png", i);
        ok(lab_scene_of(&s, set[i], count[i], config.seed, (uint64_t)i));
        assert_int_equal(s.objects, count[i]);
        ok(lab_scene_draw(&s, s.objects, 48, 36, rgb));
        ok(io_picture_read(below("labelled", name), 3, &p));
        assert_memory_equal(p.pixel, rgb, sizeof rgb);
        io_picture_free(&p);
        lab_scene_ids(&s, s.objects, 48, 36, id);
        for (int k = 0; k < count[i]; k++) {
            assert_int_equal(s.object[k].class_index, set[i][k]);
            assert_non_null(memchr(id, k, sizeof id));
        }
    }
    assert_false(io_is_file(below("labelled", "3.png")));
    assert_false(io_is_file(below("labelled", "train.json")));
    write_text(below("", "sets.json"), "[[\"red sphere\"]]"); /* other sets, same directory */
    fails(lab_render(&config), DDPM_ERR_ARGUMENT, "other settings");
}

static void bad_label_files_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *word;
    } bad[] = {
        {"[[\"red cube\"], [\"pink sphere\"]]", "pink sphere"},
        {"[[\"red cube\"], [\"red cube\", \"red cube\"]]", "entry 1"},
        {"[[\"red cube\", \"red sphere\", \"red cylinder\", \"blue cube\", \"blue sphere\", \"blue cylinder\", "
         "\"gray cube\"]]",
         "7 objects"},
        {"[[]]", "entry 0"},
        {"[]", "label sets"},
        {"[[\"red cube\"", "bad.json"},
    };
    lab_render_config config = small("never");
    config.labels_file = below("", "bad.json");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_text(below("", "bad.json"), bad[i].text);
        assert_int_not_equal(lab_render(&config), DDPM_OK);
        assert_non_null(strstr(ddpm_error(), bad[i].word));
        assert_non_null(strstr(ddpm_error(), "bad.json"));
    }
    config.labels_file = below("", "missing.json");
    fails(lab_render(&config), DDPM_ERR_FILE, "missing.json");
    assert_false(io_is_directory(below("never", ""))); /* nothing was written */
}

/* ---- 6. Refusals ---- */

static void other_data_sets_are_left_alone(void **state)
{
    (void)state;
    lab_render_config first = small("kept");
    first.scenes = 1;
    ok(lab_render(&first));
    for (int i = 0; i < 4; i++) {
        lab_render_config other = first;
        other.seed += i == 0;
        other.scenes += i == 1;
        other.width += i == 2;
        other.height += i == 3;
        fails(lab_render(&other), DDPM_ERR_ARGUMENT, "other settings");
    }
    ok(lab_render(&first));

    ok(io_make_directory(below("course", "")));
    write_text(below("course", "train.json"), "{}");
    lab_render_config config = small("course");
    fails(lab_render(&config), DDPM_ERR_ARGUMENT, "train.json");
    assert_false(io_is_file(below("course", "render.json")));
    unsigned char *text;
    size_t size;
    ok(io_read_file(below("course", "train.json"), &text, &size));
    assert_string_equal((const char *)text, "{}");
    free(text);
}

static void bad_settings_are_refused(void **state)
{
    (void)state;
    lab_render_config config = small("bad");
    config.scenes = 0;
    fails(lab_render(&config), DDPM_ERR_ARGUMENT, "0 scenes");
    config = small("bad");
    config.width = 2;
    fails(lab_render(&config), DDPM_ERR_ARGUMENT, "2x36");
    config = small("bad");
    config.threads = -1;
    fails(lab_render(&config), DDPM_ERR_ARGUMENT, "-1 threads");
    config = small("bad");
    config.out = NULL;
    fails(lab_render(&config), DDPM_ERR_ARGUMENT, "directory");
    write_text(below("", "file"), "");
    config = small("file/below");
    fails(lab_render(&config), DDPM_ERR_FILE, "file");
    assert_false(io_is_directory(below("bad", "")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(classes_are_uniform),
        cmocka_unit_test(scenes_keep_the_rules),
        cmocka_unit_test(nearer_spheres_hide_farther_ones),
        cmocka_unit_test(objects_show_their_colour),
        cmocka_unit_test(shadows_darken_the_ground),
        cmocka_unit_test(ground_has_no_noise),
        cmocka_unit_test(small_pictures_match_resized_ones),
        cmocka_unit_test(impossible_scenes_are_refused),
        cmocka_unit_test(same_bytes_for_any_threads_and_order),
        cmocka_unit_test(files_have_the_labs_form),
        cmocka_unit_test(test_files_have_the_labs_form),
        cmocka_unit_test(progress_can_stop_a_run),
        cmocka_unit_test(label_files_are_drawn_exactly),
        cmocka_unit_test(bad_label_files_are_refused),
        cmocka_unit_test(other_data_sets_are_left_alone),
        cmocka_unit_test(bad_settings_are_refused),
    };
    return cmocka_run_group_tests_name("render", tests, make_root, remove_root);
}
