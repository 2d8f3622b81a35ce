/* tests/test_events.c - io/events: the bytes of an event file, and what happens when it cannot be written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/events.h"
#include "io/file.h"

static char folder[200];

static int set_up(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.150s/test_events_XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return io_remove_tree(folder) ? -1 : 0;
}

/* Made by tensorboard 2.20's RecordWriter from
 *     Event(wall_time=1700000000.25, file_version="brain.Event:2")
 *     Event(wall_time=1700000001.5, step=300, summary=Summary(value=[Value(tag="loss/train", simple_value=0.125)])) */
static const char expected[] =
    "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe9"
    "2100000000000000017becf60900006040fc54d94110ac022a130a110a0a6c6f73732f747261696e150000003e88aab1de";

static void test_bytes(void **state)
{
    (void)state;
    io_events events;
    assert_int_equal(io_events_open(&events, folder, 1700000000.25), DDPM_OK);
    assert_non_null(strstr(events.path, "/events.out.tfevents.1700000000."));
    assert_int_equal(io_events_scalar(&events, "loss/train", 300, 1700000001.5, 0.125f), DDPM_OK);
    unsigned char *data;
    size_t size; /* read before it is closed: a record is there as soon as the call returns */
    assert_int_equal(io_read_file(events.path, &data, &size), DDPM_OK);
    assert_int_equal(size, sizeof expected / 2);
    for (size_t i = 0; i < size; i++) {
        char hex[3];
        snprintf(hex, sizeof hex, "%02x", data[i]);
        assert_memory_equal(hex, expected + 2 * i, 2);
    }
    free(data);
    assert_int_equal(io_events_close(&events), DDPM_OK);
    assert_int_equal(io_events_close(&events), DDPM_OK);
}

static void test_two_in_one_second(void **state)
{
    (void)state;
    io_events first, second;
    assert_int_equal(io_events_open(&first, folder, 1700000002), DDPM_OK);
    assert_int_equal(io_events_open(&second, folder, 1700000002), DDPM_OK);
    assert_string_not_equal(first.path, second.path);
    assert_int_equal(io_events_close(&first), DDPM_OK);
    assert_int_equal(io_events_close(&second), DDPM_OK);
}

static void test_errors(void **state)
{
    (void)state;
    char path[300], tag[1002];
    snprintf(path, sizeof path, "%s/file", folder);
    assert_int_equal(io_write_file(path, "x", 1), DDPM_OK);
    io_events events;
    assert_int_equal(io_events_open(&events, path, 0), DDPM_ERR_FILE);
    assert_non_null(strstr(ddpm_error(), path));
    assert_null(events.file);
    assert_int_equal(io_events_open(&events, folder, 0), DDPM_OK);
    memset(tag, 'a', sizeof tag);
    tag[1001] = 0;
    assert_int_equal(io_events_scalar(&events, tag, UINT64_MAX, 0, 0), DDPM_ERR_ARGUMENT);
    tag[1000] = 0; /* the longest, with the longest step */
    assert_int_equal(io_events_scalar(&events, tag, UINT64_MAX, 0, 0), DDPM_OK);
    assert_int_equal(io_events_close(&events), DDPM_OK);
    if (access("/dev/full", W_OK) == 0) {
        assert_non_null(events.file = fopen("/dev/full", "wb"));
        assert_non_null(events.path = io_join("/dev", "full"));
        assert_int_equal(io_events_scalar(&events, "a", 1, 0, 0), DDPM_ERR_FILE);
        assert_non_null(strstr(ddpm_error(), "/dev/full"));
        io_events_close(&events);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_two_in_one_second),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests_name("events", tests, set_up, tear_down);
}
