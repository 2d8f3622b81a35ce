/* tests/test_labels.c - lab/labels: class files, label sets, multi-hot vectors, names back, and every error's text.
 * Contents:  1 helpers   2 classes   3 label sets   4 multi-hot, names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/file.h"
#include "lab/labels.h"

/* ---- 1. Helpers -------------------------------------------------------------------------------------------------- */

static char folder[200];
static lab_classes six;

static int set_up(void **state)
{
    (void)state;
    static const char *const name[] = {"gray cube",   "red cube",   "cyan cube",
                                       "gray sphere", "red sphere", "cyan sphere"};
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.150s/test_labels_XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(folder) && !lab_classes_from_names(name, 6, "six", &six) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    lab_classes_free(&six);
    return io_remove_tree(folder) ? -1 : 0;
}

/* folder/name; the next call's text overwrites it. */
static const char *in_folder(const char *name)
{
    static char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static const char *write_text(const char *name, const char *text)
{
    const char *path = in_folder(name);
    assert_int_equal(io_write_file(path, text, strlen(text)), DDPM_OK);
    return path;
}

static void assert_error_has(const char *part)
{
    if (!strstr(ddpm_error(), part)) fail_msg("'%s' is not in the error: %s", part, ddpm_error());
}

/* The text of a class file with classes "class 0" .. "class n-1", written backwards. */
static const char *write_many(const char *name, int n)
{
    char *text = malloc((size_t)n * 32 + 8), *end = text;
    assert_non_null(text);
    end += sprintf(end, "{");
    for (int i = n - 1; i >= 0; i--)
        end += sprintf(end, "\"class %d\": %d%s", i, i, i ? ",\n" : "");
    sprintf(end, "}");
    const char *path = write_text(name, text);
    free(text);
    return path;
}

/* ---- 2. Classes -------------------------------------------------------------------------------------------------- */

static void reads_classes(void **state)
{
    (void)state;
    lab_classes c;
    const char *path = write_text("c.json", "{\"red cube\": 1, \"gray cube\": 0, \"Cyan Sphere\": 2}\n");
    assert_int_equal(lab_classes_read(path, &c), DDPM_OK);
    assert_int_equal(c.count, 3);
    assert_string_equal(c.name[0], "gray cube");
    assert_string_equal(c.name[1], "red cube");
    assert_string_equal(c.name[2], "Cyan Sphere");
    assert_int_equal(lab_class_index(&c, "RED cube"), 1);
    assert_int_equal(lab_class_index(&c, "cyan sphere"), 2);
    assert_int_equal(lab_class_index(&c, "cyan"), -1);
    assert_int_equal(lab_class_index(&c, ""), -1);
    lab_classes_free(&c);
    assert_null(c.name);
}

static void searches_class_file(void **state)
{
    (void)state;
    lab_classes c;
    assert_int_equal(lab_classes_find(folder, &c), DDPM_ERR_FILE);
    assert_error_has(folder);
    assert_error_has("objects.json and object.json");
    assert_error_has("hint:");

    write_text("object.json", "{\"a\": 0, \"b\": 1}");
    assert_int_equal(lab_classes_find(folder, &c), DDPM_OK);
    assert_int_equal(c.count, 2);
    lab_classes_free(&c);

    write_text("objects.json", "{\"a\": 0, \"b\": 1, \"c\": 2}"); /* comes first */
    assert_int_equal(lab_classes_find(folder, &c), DDPM_OK);
    assert_int_equal(c.count, 3);
    lab_classes_free(&c);

    write_text("objects.json", "{\"a\": 0"); /* a broken one is an error: no silent step to object.json */
    assert_int_equal(lab_classes_find(folder, &c), DDPM_ERR_FORMAT);
    assert_error_has("objects.json");
    assert_null(c.name);
}

static void refuses_wrong_classes(void **state)
{
    (void)state;
    static const struct {
        const char *text, *error[3];
    } wrong[] = {
        {"{}", {"0 classes", "1 to 1024"}},
        {"[\"a\", \"b\"]", {"not a JSON object"}},
        {"{\"a\": 0, \"b\": 2, \"c\": 2}", {"'b' and 'c' both have index 2", "none has index 1"}},
        {"{\"a\": 0, \"b\": 3, \"c\": 1}", {"'b' has index 3", "none has index 2", "0 to 2"}},
        {"{\"a\": -1, \"b\": 0}", {"'a' has index -1", "none has index 1"}},
        {"{\"a\": 1, \"b\": 2}", {"'b' has index 2", "none has index 0"}},
        {"{\"a\": 0.5}", {"'a' has index 0.5", "none has index 0"}},
        {"{\"a\": 1e30}", {"'a' has index 1e+30"}},
        {"{\"a\": \"0\"}", {"'a' has index \"0\""}},
        {"{\"a\": {\"b\": 0}}", {"'a' has index {\"b\":0}"}},
        {"{\"a\": 0, \"A\": 1}", {"both called", "upper and lower case"}},
        {"{\"a\": 0, \"a\": 1}", {"classes", "both called 'a'"}},
        {"{\"\": 1, \"a\": 0}", {"class 1 has no name"}},
        {"{\"a\": 0,\n \"b\" 1}", {"line 2"}},
        {"", {"not valid JSON"}},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        lab_classes c;
        assert_int_equal(lab_classes_read(write_text("wrong.json", wrong[i].text), &c), DDPM_ERR_FORMAT);
        assert_null(c.name);
        assert_error_has("wrong.json");
        assert_error_has("hint:");
        for (int k = 0; k < 3 && wrong[i].error[k]; k++)
            assert_error_has(wrong[i].error[k]);
    }
    lab_classes c;
    assert_int_equal(lab_classes_read(in_folder("absent.json"), &c), DDPM_ERR_FILE);
}

static void takes_1024_classes(void **state)
{
    (void)state;
    lab_classes c;
    assert_int_equal(lab_classes_read(write_many("many.json", 1024), &c), DDPM_OK);
    assert_int_equal(c.count, 1024);
    for (int i = 0; i < 1024; i++)
        assert_int_equal(lab_class_index(&c, c.name[i]), i);
    assert_string_equal(c.name[1023], "class 1023");
    lab_classes_free(&c);
    assert_int_equal(lab_classes_read(write_many("many.json", 1025), &c), DDPM_ERR_FORMAT);
    assert_error_has("1025 classes");
}

/* ---- 3. Label sets ----------------------------------------------------------------------------------------------- */

static void assert_set(const lab_label_sets *sets, int set, const char *caption)
{
    char *text = lab_set_caption(sets, set, &six);
    assert_non_null(text);
    assert_string_equal(text, caption);
    free(text);
}

static void reads_label_sets(void **state)
{
    (void)state;
    lab_label_sets s;
    const char *path = write_text("test.json", "[[\"gray cube\"],\n [\"Red Sphere\", \"cyan cube\"], [\"red cube\"]]");
    assert_int_equal(lab_label_sets_read(path, &six, 0, &s), DDPM_OK);
    assert_int_equal(s.count, 3);
    assert_set(&s, 0, "gray cube");
    assert_set(&s, 1, "red sphere, cyan cube");
    assert_set(&s, 2, "red cube");
    lab_label_sets_free(&s);

    path = write_text("test.json", "[[\"gray cube\"], []]");
    assert_int_equal(lab_label_sets_read(path, &six, 1, &s), DDPM_OK);
    assert_int_equal(s.count, 2);
    assert_set(&s, 1, "none");
    lab_label_sets_free(&s);
    assert_int_equal(lab_label_sets_read(path, &six, 0, &s), DDPM_ERR_ARGUMENT);
    assert_error_has("entry 1");
    assert_null(s.start);
}

static void refuses_wrong_label_sets(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        ddpm_result code;
        const char *error[3];
    } wrong[] = {
        {"[[\"red cube\"], [\"gray cube\", \"red spere\"]]",
         DDPM_ERR_RANGE,
         {"sets.json: entry 1 (counted from 0): unknown label 'red spere'",
          "hint: did you mean 'red sphere'? There are: gray cube, red cube, cyan cube, gray sphere, red sphere, cyan"}},
        {"[[\"red cube\", \"gray cube\", \"RED cube\"]]",
         DDPM_ERR_FORMAT,
         {"entry 0", "'RED cube' stands there twice"}},
        {"[\"red cube\"]", DDPM_ERR_FORMAT, {"entry 0", "not an array of class names"}},
        {"[[\"red cube\"], [3]]", DDPM_ERR_FORMAT, {"entry 1", "not a string"}},
        {"{\"red cube\": 1}", DDPM_ERR_FORMAT, {"not an array of label sets"}},
        {"[]", DDPM_ERR_FORMAT, {"not an array of label sets"}},
        {"[[\"red cube\"],", DDPM_ERR_FORMAT, {"not valid JSON"}},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        lab_label_sets s;
        assert_int_equal(lab_label_sets_read(write_text("sets.json", wrong[i].text), &six, 0, &s), wrong[i].code);
        assert_null(s.start);
        assert_null(s.label);
        assert_error_has("sets.json");
        assert_error_has("hint:");
        for (int k = 0; k < 3 && wrong[i].error[k]; k++)
            assert_error_has(wrong[i].error[k]);
    }
}

static void reads_text(void **state)
{
    (void)state;
    lab_label_sets s = {0};
    assert_int_equal(lab_label_sets_add_text(&s, &six, "red sphere, cyan cube", 0), DDPM_OK);
    assert_int_equal(lab_label_sets_add_text(&s, &six, "  GRAY Cube\t", 0), DDPM_OK);
    assert_int_equal(lab_label_sets_add_text(&s, &six, " \n", 1), DDPM_OK);
    assert_int_equal(lab_label_sets_add_text(&s, &six, "cyan sphere,red cube", 0), DDPM_OK);

    static const struct {
        const char *text;
        ddpm_result code;
        const char *error;
    } wrong[] = {
        {"", DDPM_ERR_ARGUMENT, "label set \"\": no label in the set"},
        {" ", DDPM_ERR_ARGUMENT, "no label in the set"},
        {"red cube,, cyan cube", DDPM_ERR_ARGUMENT, "nothing between two commas"},
        {"red cube,", DDPM_ERR_ARGUMENT, "nothing between two commas"},
        {"red cube, red ball", DDPM_ERR_RANGE, "label set \"red cube, red ball\": unknown label 'red ball'"},
        {"red cube, Red Cube", DDPM_ERR_FORMAT, "'Red Cube' stands there twice"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(lab_label_sets_add_text(&s, &six, wrong[i].text, 0), wrong[i].code);
        assert_error_has(wrong[i].error);
        assert_error_has("hint:");
    }
    assert_int_equal(s.count, 4); /* failures left it alone */
    assert_set(&s, 0, "red sphere, cyan cube");
    assert_set(&s, 1, "gray cube");
    assert_set(&s, 2, "none");
    assert_set(&s, 3, "cyan sphere, red cube");
    lab_label_sets_free(&s);
}

static void reads_large_file(void **state)
{
    (void)state;
    enum { SETS = 20000 };
    char *text = malloc(SETS * 64 + 8), *end = text;
    assert_non_null(text);
    *end++ = '[';
    for (int i = 0; i < SETS; i++) /* three different classes of 1024 */
        end += sprintf(end, "[\"class %d\",\"CLASS %d\",\"class %d\"]%s", i % 1000, i % 1000 + 7, i % 1000 + 24,
                       i < SETS - 1 ? "," : "]");
    lab_classes c;
    lab_label_sets s;
    assert_int_equal(lab_classes_read(write_many("many.json", 1024), &c), DDPM_OK);
    assert_int_equal(lab_label_sets_read(write_text("large.json", text), &c, 0, &s), DDPM_OK);
    assert_int_equal(s.count, SETS);
    for (int i = 0; i < SETS; i++) {
        assert_int_equal(s.start[i], 3 * i);
        assert_int_equal(s.label[3 * i], i % 1000);
        assert_int_equal(s.label[3 * i + 1], i % 1000 + 7);
        assert_int_equal(s.label[3 * i + 2], i % 1000 + 24);
    }
    assert_int_equal(s.start[SETS], 3 * SETS);
    lab_label_sets_free(&s);
    lab_classes_free(&c);
    free(text);
}

static void takes_a_set_of_all_classes(void **state)
{
    (void)state;
    char *text = malloc(1024 * 16), *end = text;
    assert_non_null(text);
    for (int i = 0; i < 1024; i++)
        end += sprintf(end, "%sclass %d", i ? ", " : "", i);
    lab_classes c;
    lab_label_sets s = {0};
    assert_int_equal(lab_classes_read(write_many("many.json", 1024), &c), DDPM_OK);
    assert_int_equal(lab_label_sets_add_text(&s, &c, text, 0), DDPM_OK);
    assert_int_equal(s.start[1], 1024);
    char *caption = lab_set_caption(&s, 0, &c);
    assert_string_equal(caption, text);
    char *file = lab_set_file_name(&s, 0, &c);
    assert_int_equal(strlen(file), 200);
    free(file);
    free(caption);
    sprintf(end, ", class 3"); /* and one more is one twice */
    assert_int_equal(lab_label_sets_add_text(&s, &c, text, 0), DDPM_ERR_FORMAT);
    lab_label_sets_free(&s);
    lab_classes_free(&c);
    free(text);
}

/* ---- 4. Multi-hot, names ----------------------------------------------------------------------------------------- */

static void makes_multi_hot(void **state)
{
    (void)state;
    lab_label_sets s = {0};
    assert_int_equal(lab_label_sets_add(&s, (int[]){1}, 1), DDPM_OK);
    assert_int_equal(lab_label_sets_add(&s, (int[]){5, 0}, 2), DDPM_OK);
    assert_int_equal(lab_label_sets_add(&s, NULL, 0), DDPM_OK);
    ddpm_real out[18];
    memset(out, 0x55, sizeof out);
    static const ddpm_real expected[18] = {0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};
    assert_int_equal(lab_multi_hot(&s, 0, 3, 6, out), DDPM_OK);
    assert_memory_equal(out, expected, sizeof out);
    assert_int_equal(lab_multi_hot(&s, 1, 2, 6, out), DDPM_OK);
    assert_memory_equal(out, expected + 6, 12 * sizeof *out);
    assert_int_equal(lab_multi_hot(&s, 3, 0, 6, out), DDPM_OK);

    assert_int_equal(lab_multi_hot(&s, 0, 3, 5, out), DDPM_ERR_RANGE); /* class 5 of 5 */
    assert_error_has("label set 1 holds class 5, there are 5 classes");
    assert_int_equal(lab_multi_hot(&s, 1, 3, 6, out), DDPM_ERR_RANGE);
    assert_error_has("3 label sets from 1 on were asked for, there are 3");
    assert_int_equal(lab_multi_hot(&s, -1, 1, 6, out), DDPM_ERR_RANGE);
    assert_int_equal(lab_multi_hot(&s, INT32_MAX, INT32_MAX, 6, out), DDPM_ERR_RANGE);
    lab_label_sets_free(&s);
}

/* A name with a comma is taken whole; 1000 names do not fit in an error. */
static void takes_names_with_commas(void **state)
{
    (void)state;
    enum { COUNT = 1000 };
    static char text[COUNT][32];
    const char *name[COUNT];
    lab_classes c;
    lab_label_sets s = {0};
    for (int i = 0; i < COUNT; i++) {
        snprintf(text[i], sizeof text[i], "bird, kind %d", i);
        name[i] = text[i];
    }
    assert_int_equal(lab_classes_from_names(name, COUNT, "names", &c), DDPM_OK);
    assert_int_equal(lab_label_sets_add_text(&s, &c, " Bird, kind 999", 0), DDPM_OK);
    assert_int_equal(s.start[1], 1);
    assert_int_equal(s.label[0], 999);
    assert_int_equal(lab_label_sets_add_text(&s, &c, "bird", 0), DDPM_ERR_RANGE);
    assert_error_has("did you mean 'bird, kind 0'? There are: bird, kind 0, bird, kind 1, ");
    assert_error_has(", ... (1000 in all)");
    lab_label_sets_free(&s);
    lab_classes_free(&c);
}

static void makes_class_labels(void **state)
{
    (void)state;
    ddpm_real hot[3 * 4] = {0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0}, index[3], several[2 * 2] = {1, 0, 1, 1};
    assert_int_equal(lab_class_labels(hot, 3, 4, 4, index), DDPM_OK);
    assert_true(index[0] == 2 && index[1] == 4 && index[2] == 0);
    assert_int_equal(lab_class_labels(hot, 3, 4, -1, index), DDPM_ERR_RANGE);
    assert_error_has("picture 1 has no class");
    assert_int_equal(lab_class_labels(several, 2, 2, 2, index), DDPM_ERR_RANGE);
    assert_error_has("picture 1 has several classes");
    assert_int_equal(lab_class_labels(hot, 3, 4, 4, hot), DDPM_OK); /* in place */
    assert_true(hot[0] == 2 && hot[1] == 4 && hot[2] == 0);
}

static void makes_file_names(void **state)
{
    (void)state;
    static const char *const name[] = {"red sphere", "a/../b", "caf\xc3\xa9"};
    lab_classes c;
    lab_label_sets s = {0};
    assert_int_equal(lab_classes_from_names(name, 3, "names", &c), DDPM_OK);
    assert_int_equal(lab_label_sets_add(&s, (int[]){0, 1, 2}, 3), DDPM_OK);
    assert_int_equal(lab_label_sets_add(&s, NULL, 0), DDPM_OK);
    char *text = lab_set_file_name(&s, 0, &c);
    assert_string_equal(text, "red_sphere+a____b+caf__");
    free(text);
    text = lab_set_file_name(&s, 1, &c);
    assert_string_equal(text, "none");
    free(text);
    lab_label_sets_free(&s);
    lab_classes_free(&c);
}

static void finds_nearest(void **state)
{
    (void)state;
    static const char *const flag[] = {"--epochs", "--lr", "--batch-size", "--out", "--seed"};
    assert_int_equal(lab_nearest("--epoch", flag, 5), 0);
    assert_int_equal(lab_nearest("--BATCHSIZE", flag, 5), 2);
    assert_int_equal(lab_nearest("--sede", flag, 5), 4);
    assert_int_equal(lab_nearest("--lr", flag, 5), 1);
    assert_int_equal(lab_nearest("", flag, 5), 1); /* the shortest */
    assert_int_equal(lab_nearest("x", flag, 0), -1);
    /* kitten -> sitting is 3 edits, kitten -> mitts 3 (the first wins), kitten -> kitchen 2 */
    assert_int_equal(lab_nearest("kitten", (const char *const[]){"sitting", "mitts"}, 2), 0);
    assert_int_equal(lab_nearest("kitten", (const char *const[]){"sitting", "mitts", "kitchen"}, 3), 2);
    char longest[400];
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    assert_int_equal(lab_nearest(longest, (const char *const[]){"b", longest}, 2), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(searches_class_file), /* first: the folder is still empty */
        cmocka_unit_test(reads_classes),
        cmocka_unit_test(refuses_wrong_classes),
        cmocka_unit_test(takes_1024_classes),
        cmocka_unit_test(reads_label_sets),
        cmocka_unit_test(refuses_wrong_label_sets),
        cmocka_unit_test(reads_text),
        cmocka_unit_test(reads_large_file),
        cmocka_unit_test(takes_a_set_of_all_classes),
        cmocka_unit_test(makes_multi_hot),
        cmocka_unit_test(takes_names_with_commas),
        cmocka_unit_test(makes_class_labels),
        cmocka_unit_test(makes_file_names),
        cmocka_unit_test(finds_nearest),
    };
    return cmocka_run_group_tests_name("labels", tests, set_up, tear_down);
}
