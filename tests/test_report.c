/* tests/test_report.c - lab/report: what the page holds, what it leaves out, and what is refused. How the page behaves
 * in a browser is tested by tests/parity/check_report.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "io/file.h"
#include "io/picture.h"
#include "lab/report.h"

/* ---- Helpers ---- */

static char folder[200];

static int set_up(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.150s/test_report_XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return io_remove_tree(folder) ? -1 : 0;
}

static const char *in_folder(const char *name) /* the next call's text overwrites it */
{
    static char path[400];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_text(const char *name, const char *text)
{
    assert_int_equal(io_write_file(in_folder(name), text, strlen(text)), DDPM_OK);
}

static void write_png(const char *name, int width, unsigned char value)
{
    unsigned char pixel[3 * 64];
    memset(pixel, value, sizeof pixel);
    io_picture picture = {.width = width, .height = 2, .channels = 3, .pixel = pixel};
    assert_int_equal(io_picture_write_png(in_folder(name), &picture, NULL, 0), DDPM_OK);
}

static ddpm_result write_report(const char *const *name, int count)
{
    static char path[4][400];
    const char *directory[4];
    for (int i = 0; i < count; i++) {
        snprintf(path[i], sizeof path[i], "%s/%s", folder, name[i]);
        directory[i] = path[i];
    }
    lab_report_config config = {directory, count, "two </script> runs", "made by a test", "1"};
    return lab_report_write(&config, in_folder("report.html"));
}

/* The JSON inside the page that was written. */
static cJSON *read_report(void)
{
    unsigned char *page;
    size_t size;
    assert_int_equal(io_read_file(in_folder("report.html"), &page, &size), DDPM_OK);
    static const char before[] = "<script type=\"application/json\" id=\"data\">";
    char *start = strstr((char *)page, before), *end;
    assert_non_null(start);
    start += strlen(before);
    assert_non_null(end = strstr(start, "</script>")); /* the first one: nothing inside may end the element */
    *end = '\0';
    cJSON *json = cJSON_Parse(start);
    assert_non_null(json);
    free(page);
    return json;
}

static const cJSON *at(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (item == NULL) fail_msg("there is no '%s'", name);
    return item;
}

/* ---- Tests ---- */

static void test_run(void **state)
{
    (void)state;
    assert_int_equal(io_make_directory(in_folder("a/samples")), DDPM_OK);
    assert_int_equal(io_make_directory(in_folder("a/test/strips")), DDPM_OK);
    write_text("a/args.json", "{\"lr\": 0.5, \"note\": \"</script><b>\"}");
    /* the second loss is missing, the third not finite; the last row has no end: it is being written */
    write_text("a/metrics.csv", "step,loss,never\n1,4,\n2,,\n3,nan,\n4,1.5,\n5,9");
    write_png("a/samples/step-20.png", 2, 20);
    write_png("a/samples/step-9.png", 2, 9);
    write_text("a/test/results.json",
               "{\"new_test\": {\"accuracy_mean_of_pictures\": {\"value\": 0.5, \"interval\": [0.25, 0.75]},"
               " \"sets\": [{\"labels\": \"red cube\"}, {\"labels\": \"x\"}]}}");
    write_png("a/test/new_test_grid.png", 2, 1);
    write_png("a/test/strips/new_test_0.png", 2, 2);
    assert_int_equal(write_report((const char *const[]){"a/"}, 1), DDPM_OK);

    cJSON *json = read_report();
    assert_string_equal(at(json, "title")->valuestring, "two </script> runs");
    const cJSON *run = at(json, "runs")->child;
    assert_null(run->next);
    assert_string_equal(at(run, "name")->valuestring, "a");
    assert_string_equal(at(at(run, "settings"), "note")->valuestring, "</script><b>");
    const cJSON *metrics = at(run, "metrics"), *loss = at(metrics, "loss");
    assert_false(cJSON_HasObjectItem(metrics, "never"));
    assert_int_equal(cJSON_GetArraySize(at(metrics, "step")), 4);
    assert_int_equal(cJSON_GetArraySize(loss), 4);
    assert_true(cJSON_GetArrayItem(loss, 0)->valuedouble == 4 && cJSON_IsNull(cJSON_GetArrayItem(loss, 1)));
    assert_true(cJSON_IsNull(cJSON_GetArrayItem(loss, 2)) && cJSON_GetArrayItem(loss, 3)->valuedouble == 1.5);
    const cJSON *samples = at(run, "samples");
    assert_int_equal(cJSON_GetArraySize(samples), 2);
    assert_string_equal(at(samples->child, "label")->valuestring, "step-9"); /* by number, not by letter */
    assert_string_equal(at(samples->child->next, "label")->valuestring, "step-20");
    const cJSON *test = at(run, "tests")->child, *strips = at(test, "strips");
    assert_string_equal(at(test, "name")->valuestring, "test, new_test");
    assert_int_equal(cJSON_GetArraySize(strips), 1);
    assert_string_equal(at(strips->child, "labels")->valuestring, "red cube");
    assert_true(strncmp(at(test, "grid")->valuestring, "data:image/png;base64,iVBORw0KGgo", 33) == 0);
    cJSON_Delete(json);
}

/* RFC 4648, 10: files of 0 to 6 bytes, seen through samples/. */
static void test_base64(void **state)
{
    (void)state;
    static const char *const coded[] = {"", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
    assert_int_equal(io_make_directory(in_folder("b/samples")), DDPM_OK);
    for (int i = 0; i < 7; i++) {
        char name[32];
        snprintf(name, sizeof name, "b/samples/%d.png", i);
        assert_int_equal(io_write_file(in_folder(name), "foobar", (size_t)i), DDPM_OK);
    }
    assert_int_equal(write_report((const char *const[]){"b"}, 1), DDPM_OK);
    cJSON *json = read_report();
    const cJSON *sample = at(at(json, "runs")->child, "samples")->child;
    for (int i = 0; i < 7; i++, sample = sample->next)
        assert_string_equal(at(sample, "image")->valuestring + strlen("data:image/png;base64,"), coded[i]);
    cJSON_Delete(json);
}

/* A long run: groups of rows, each by its mean; the mean of all is kept. */
static void test_long_run(void **state)
{
    (void)state;
    enum { ROWS = 5000 };
    char *text = malloc(ROWS * 16 + 16), *end = text;
    assert_non_null(text);
    end += sprintf(end, "step,loss\n");
    for (int i = 0; i < ROWS; i++)
        end += sprintf(end, "%d,%d\n", i + 1, 2 * i + 2);
    assert_int_equal(io_make_directory(in_folder("c")), DDPM_OK);
    write_text("c/metrics.csv", text);
    free(text);
    assert_int_equal(write_report((const char *const[]){"a", "c"}, 2), DDPM_OK);
    cJSON *json = read_report();
    const cJSON *metrics = at(at(json, "runs")->child->next, "metrics");
    const cJSON *step = at(metrics, "step")->child, *loss = at(metrics, "loss")->child;
    int points = cJSON_GetArraySize(at(metrics, "step"));
    assert_in_range(points, 100, 600);
    for (; step != NULL; step = step->next, loss = loss->next)
        assert_true(loss->valuedouble == 2 * step->valuedouble);
    assert_null(loss);
    cJSON_Delete(json);
}

/* A sweep of tests: the figures of all, the pictures of the first eight. */
static void test_many_tests(void **state)
{
    (void)state;
    for (int i = 0; i < 10; i++) {
        char name[64];
        snprintf(name, sizeof name, "sweep/ddim-%d", i);
        assert_int_equal(io_make_directory(in_folder(name)), DDPM_OK);
        snprintf(name, sizeof name, "sweep/ddim-%d/results.json", i);
        write_text(name, "{\"test\": {\"accuracy_mean_of_pictures\": {\"value\": 0.5, \"interval\": [0.25, 0.75]}}}");
        snprintf(name, sizeof name, "sweep/ddim-%d/test_grid.png", i);
        write_png(name, 2, 1);
    }
    assert_int_equal(write_report((const char *const[]){"sweep"}, 1), DDPM_OK);
    cJSON *json = read_report();
    const cJSON *test = at(at(json, "runs")->child, "tests")->child;
    for (int i = 0; i < 10; i++, test = test->next) {
        char name[64];
        snprintf(name, sizeof name, "ddim-%d, test", i);
        assert_string_equal(at(test, "name")->valuestring, name);
        at(test, "results");
        assert_int_equal(cJSON_HasObjectItem(test, "grid"), i < 8);
    }
    assert_null(test);
    cJSON_Delete(json);
}

static void expect_refused(const char *name, ddpm_result code, const char *part)
{
    assert_int_equal(write_report((const char *const[]){name}, 1), code);
    if (strstr(ddpm_error(), part) == NULL) fail_msg("'%s' is not in the error: %s", part, ddpm_error());
}

static void test_refused(void **state)
{
    (void)state;
    assert_int_equal(io_make_directory(in_folder("empty")), DDPM_OK);
    assert_int_equal(io_make_directory(in_folder("odd")), DDPM_OK);
    io_remove_tree(in_folder("report.html"));
    expect_refused("missing", DDPM_ERR_FILE, "missing is not a directory");
    expect_refused("empty", DDPM_ERR_ARGUMENT, "empty holds neither");
    write_text("odd/metrics.csv", "loss\n1\n");
    expect_refused("odd", DDPM_ERR_FORMAT, "first column is 'loss'");
    write_text("odd/metrics.csv", "step,loss\n");
    expect_refused("odd", DDPM_ERR_ARGUMENT, "odd holds neither");
    write_text("odd/args.json", "{");
    expect_refused("odd", DDPM_ERR_FORMAT, "args.json");
    assert_false(io_is_file(in_folder("report.html")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run),        cmocka_unit_test(test_base64),  cmocka_unit_test(test_long_run),
        cmocka_unit_test(test_many_tests), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("report", tests, set_up, tear_down);
}
