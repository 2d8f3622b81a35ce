/* tests/test_mini.c - the bundled model, data/mini, draws what it is asked for: on every instruction set this processor
 * has, the hits that data/mini/results.json records (scripts/mini.sh wrote it), minus two. Instruction sets add in
 * other orders, so their pictures differ a little, and an object at the edge of the judge's decision may tip.
 *
 * Contents: 1 results.json   2 tests   3 main */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "cpu_backend.h"
#include "ddpm.h"
#include "io/json.h"
#include "lab/labels.h"
#include "tests/program.h"

/* ---- 1. results.json --------------------------------------------------------------------------------------------- */

enum { TIPPED = 2 };

typedef struct outcome {
    int hits, objects;
    char weights[65]; /* SHA-256 of the network's file */
} outcome;

static const cJSON *member(const cJSON *object, const char *name)
{
    const cJSON *found = cJSON_GetObjectItemCaseSensitive(object, name);
    if (found == NULL) fail_msg("results.json has no '%s'", name);
    return found;
}

static outcome outcome_of(const char *path)
{
    cJSON *json;
    if (lab_json_read(path, &json) != DDPM_OK) fail_msg("%s", ddpm_error());
    const cJSON *test = member(json, "test");
    outcome o = {.hits = member(test, "hits")->valueint, .objects = member(test, "objects")->valueint};
    const cJSON *hashes = member(member(test, "model"), "sha256");
    snprintf(o.weights, sizeof o.weights, "%s",
             member(hashes, "unet/diffusion_pytorch_model.safetensors")->valuestring);
    cJSON_Delete(json);
    return o;
}

/* ---- 2. Tests ---------------------------------------------------------------------------------------------------- */

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

static void check_isa(const char *isa)
{
    ddpm_device device;
    if (ddpm_device_open(&device, ddpm_cpu(), 1, isa) != DDPM_OK) skip(); /* this processor lacks it */
    ddpm_device_close(&device);
#ifdef SANITIZED
    skip(); /* 32 pictures take minutes there: the plain run draws them */
#endif
    char arguments[200];
    outcome wanted = outcome_of("data/mini/results.json");
    snprintf(arguments, sizeof arguments, "test --isa %s --out @/%s", isa, isa);
    assert_runs(arguments);
    snprintf(arguments, sizeof arguments, "%s/results.json", isa);
    outcome got = outcome_of(in_folder(arguments));
    assert_string_equal(got.weights, wanted.weights);
    assert_int_equal(got.objects, wanted.objects);
    if (got.hits < wanted.hits - TIPPED)
        fail_msg("%s: %d of %d objects, results.json has %d", isa, got.hits, got.objects, wanted.hits);
}

static void test_baseline(void **state)
{
    (void)state;
    check_isa("baseline");
}

static void test_avx2(void **state)
{
    (void)state;
    check_isa("avx2");
}

static void test_avx512(void **state)
{
    (void)state;
    check_isa("avx512");
}

/* Bare, as the README has it: no model, no option. */
static void test_bare_sample(void **state)
{
    (void)state;
    assert_runs("sample \"red sphere, cyan cube\" --out @/bare.png");
    assert_picture("bare.png", 64, 64);
    assert_text("bare.png", "labels", "red sphere, cyan cube");
}

/* ---- 3. main ----------------------------------------------------------------------------------------------------- */

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_baseline),
        cmocka_unit_test(test_avx2),
        cmocka_unit_test(test_avx512),
        cmocka_unit_test(test_bare_sample),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
