/* tests/test_io.c - io/file, io/safetensors, io/config, io/model: round trips, every way a file can lie, and that
 * nothing is ever half written. Rows of a table are one case each; a failure names its row.
 * Contents:  1 helpers   2 files   3 numbers of 16 bits   4 safetensors   5 lying headers   6 configs   7 models */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <float.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/config.h"
#include "io/file.h"
#include "io/json.h"
#include "io/model.h"
#include "io/safetensors.h"
#include "io/sha256.h"

/* ---- 1. Helpers ------------------------------------------------------------------------------------------------ */

static char folder[200];
static ddpm_arena paths;

static int set_up(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.150s/test_io_XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    ddpm_arena_free(&paths);
    return io_remove_tree(folder) ? -1 : 0;
}

/* folder/name, in memory that lives as long as the tests. */
static const char *in_folder(const char *name)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    const char *kept = ddpm_arena_string(&paths, path);
    assert_non_null(kept);
    return kept;
}

static void assert_ok(ddpm_result result)
{
    if (result) fail_msg("error %d: %s", result, ddpm_error());
}

/* Every error names what it is about and says a way out. */
static void assert_refused(const char *row, ddpm_result result, ddpm_result code, const char *part)
{
    if (result != code) fail_msg("%s: result %d instead of %d (%s)", row, result, code, ddpm_error());
    if (!strstr(ddpm_error(), part) || !strstr(ddpm_error(), "hint: "))
        fail_msg("%s: '%s' or the hint is not in the error: %s", row, part, ddpm_error());
}

static const char *write_text(const char *name, const char *text)
{
    const char *path = in_folder(name);
    assert_ok(io_write_file(path, text, strlen(text)));
    return path;
}

static void assert_holds(const char *path, const char *text)
{
    unsigned char *data;
    size_t size;
    assert_ok(io_read_file(path, &data, &size));
    assert_string_equal((char *)data, text);
    assert_int_equal(size, strlen(text));
    free(data);
}

/* Entries of a directory, without "." and ".." . */
static int count_entries(const char *path)
{
    DIR *directory = opendir(path);
    int count = -2;
    assert_non_null(directory);
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

/* As a full disk: files cannot grow beyond `bytes`; 0 lifts that again. */
static void limit_file_size(rlim_t bytes)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes ? bytes : limit.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* ---- 2. Files -------------------------------------------------------------------------------------------------- */

static void files_round_trip(void **state)
{
    (void)state;
    unsigned char *data, bytes[5] = {0, 1, 255, 0, 7};
    size_t size;
    const char *path = in_folder("a");
    assert_ok(io_write_file(path, bytes, sizeof bytes));
    assert_ok(io_read_file(path, &data, &size));
    assert_int_equal(size, 5);
    assert_memory_equal(data, bytes, 5);
    assert_int_equal(data[5], 0);
    free(data);
    assert_ok(io_write_file(path, "", 0)); /* replaces it */
    assert_holds(path, "");
    io_writer writer;
    assert_ok(io_writer_open(&writer, path));
    assert_ok(io_writer_put(&writer, "two ", 4));
    assert_holds(path, ""); /* not before the commit */
    assert_ok(io_writer_put(&writer, "pieces", 6));
    assert_ok(io_writer_commit(&writer));
    assert_holds(path, "two pieces");
    assert_ok(io_writer_open(&writer, path));
    io_writer_abandon(&writer);
    io_writer_abandon(&writer);
    assert_refused("closed", io_writer_put(&writer, "x", 1), DDPM_ERR_ARGUMENT, "closed");
    assert_holds(path, "two pieces");
    assert_int_equal(count_entries(folder), 1); /* no temporary stays */
    assert_ok(io_remove_tree(path));
}

static void files_without_a_size(void **state)
{
    (void)state;
    unsigned char *data;
    size_t size;
    assert_ok(io_read_file("/proc/self/status", &data, &size)); /* stat says 0 bytes */
    assert_true(size > 100 && strstr((char *)data, "Pid:"));
    free(data);
}

static void file_errors(void **state)
{
    (void)state;
    unsigned char *data;
    size_t size;
    const char *file = write_text("f", "x");
    assert_refused("missing", io_read_file(in_folder("no"), &data, &size), DDPM_ERR_FILE, "No such file");
    assert_null(data);
    assert_refused("directory", io_read_file(folder, &data, &size), DDPM_ERR_FILE, "Is a directory");
    assert_refused("below a file", io_read_file(in_folder("f/x"), &data, &size), DDPM_ERR_FILE, "Not a directory");
    assert_refused("write a directory", io_write_file(folder, "x", 1), DDPM_ERR_FILE, "Is a directory");
    assert_refused("write below nothing", io_write_file(in_folder("no/x"), "x", 1), DDPM_ERR_FILE, in_folder("no/x"));
    assert_refused("write a device", io_write_file("/dev/null", "x", 1), DDPM_ERR_FILE, "not a regular file");
    assert_refused("mkdir over a file", io_make_directory(in_folder("f/x")), DDPM_ERR_FILE,
                   "/f: cannot make the directory: File exists\n      hint: this is a file");
    assert_ok(io_remove_tree(file));
}

/* As a user who is not root: permissions do not bind root. */
static void unreadable_file(void **state)
{
    (void)state;
    const char *path = write_text("secret", "x");
    assert_int_equal(chmod(path, 0), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        unsigned char *data;
        size_t size;
        io_safetensors file;
        int bad = !geteuid() && (setgid(65534) || setuid(65534));
        bad |= io_read_file(path, &data, &size) != DDPM_ERR_FILE || !strstr(ddpm_error(), "ermission");
        bad |= io_safetensors_open(path, &file) != DDPM_ERR_FILE || !strstr(ddpm_error(), "ermission");
        bad |= io_write_file(in_folder("secret/x"), "x", 1) != DDPM_ERR_FILE;
        _exit(bad);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_ok(io_remove_tree(path));
}

static void full_disk(void **state)
{
    (void)state;
    static char block[100000];
    const char *path = write_text("kept", "old");
    limit_file_size(50000);
    ddpm_result result = io_write_file(path, block, sizeof block);
    limit_file_size(0);
    assert_refused("full disk", result, DDPM_ERR_FILE, "free some space");
    assert_holds(path, "old");
    limit_file_size(2); /* small enough to stay in the buffer until the commit */
    result = io_write_file(path, "new text", 8);
    limit_file_size(0);
    assert_refused("full at the commit", result, DDPM_ERR_FILE, "free some space");
    assert_holds(path, "old");
    assert_int_equal(count_entries(folder), 1);
    assert_ok(io_remove_tree(path));
}

static void directories(void **state)
{
    (void)state;
    assert_ok(io_make_directory(in_folder("a/b/c/")));
    assert_ok(io_make_directory(in_folder("a/b")));
    assert_true(io_is_directory(in_folder("a/b/c")) && !io_is_file(in_folder("a/b/c")));
    write_text("a/b/file", "x");
    assert_int_equal(symlink(folder, in_folder("a/link")), 0);
    assert_ok(io_make_directory(in_folder("new")));
    write_text("new/here", "y");
    char *left = io_beside(in_folder("a/"), "old"); /* as a killed process may leave one behind */
    assert_non_null(left);
    assert_ok(io_make_directory(left));
    char *file = io_join(left, "file");
    assert_non_null(file);
    assert_ok(io_write_file(file, "z", 1));
    free(file);
    free(left);
    assert_ok(io_replace_directory(in_folder("new"), in_folder("a"))); /* a link in `a` goes, what it points at stays */
    assert_holds(in_folder("a/here"), "y");
    assert_false(io_is_directory(in_folder("new")));
    assert_int_equal(count_entries(folder), 1);
    assert_refused("nothing to put there", io_replace_directory(in_folder("new"), in_folder("a")), DDPM_ERR_FILE,
                   "No such file");
    assert_holds(in_folder("a/here"), "y");
    write_text("file", "z");
    assert_refused("a file is no directory", io_replace_directory(in_folder("a"), in_folder("file")), DDPM_ERR_FILE,
                   "file");
    assert_holds(in_folder("file"), "z");
    assert_ok(io_remove_tree(in_folder("a")));
    assert_ok(io_remove_tree(in_folder("a")));
    assert_ok(io_remove_tree(in_folder("file")));
    char *joined = io_join("a/", "b"), *bare = io_join("", "b");
    assert_string_equal(joined, "a/b");
    assert_string_equal(bare, "b");
    free(joined);
    free(bare);
}

/* ---- 3. Numbers of 16 bits --------------------------------------------------------------------------------------- */

/* The value of a finite 16-bit number from its fields: (-1)^sign 2^(e - bias) 1.m, and 2^(1 - bias) 0.m for e = 0. */
static double decode(uint16_t bits, int mantissa_bits, int bias)
{
    int mantissa = bits & ((1 << mantissa_bits) - 1),
        exponent = bits >> mantissa_bits & ((1 << (15 - mantissa_bits)) - 1);
    double value = exponent ? ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits)
                            : ldexp(mantissa, 1 - bias - mantissa_bits);
    return bits >> 15 ? -value : value;
}

static void halves_decode(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        float half = io_float_from_half((uint16_t)i), bfloat = io_float_from_bfloat((uint16_t)i);
        int special = (i >> 10 & 31) == 31, bspecial = (i >> 7 & 255) == 255;
        if (special ? (i & 1023 ? !isnan(half) : half != (i >> 15 ? -INFINITY : INFINITY))
                    : (double)half != decode((uint16_t)i, 10, 15))
            fail_msg("half %04x gives %g", (unsigned)i, (double)half);
        if (bspecial ? (i & 127 ? !isnan(bfloat) : bfloat != (i >> 15 ? -INFINITY : INFINITY))
                     : (double)bfloat != decode((uint16_t)i, 7, 127))
            fail_msg("bfloat %04x gives %g", (unsigned)i, (double)bfloat);
        if (!signbit(half) != !(i >> 15) || !signbit(bfloat) != !(i >> 15))
            fail_msg("%04x loses its sign", (unsigned)i);
    }
}

/* Rounding is a monotone staircase: it is right everywhere if it is right at each half, at each midpoint between
 * neighbours and one float to either side of it. All 31744 steps, both signs. 65504's upper neighbour is taken as
 * 65536. */
static void halves_encode(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 0x7c00; i++) {
        double low = decode((uint16_t)i, 10, 15), high = i == 0x7bff ? 65536 : decode((uint16_t)(i + 1), 10, 15);
        float middle = (float)((low + high) / 2); /* exact: 12 bits */
        uint32_t even = i & 1 ? i + 1 : i;
        for (uint32_t sign = 0; sign < 2; sign++) {
            float s = sign ? -1.0f : 1.0f;
            uint32_t got[4] = {io_half_from_float(s * (float)low), io_half_from_float(s * nextafterf(middle, 0)),
                               io_half_from_float(s * middle), io_half_from_float(s * nextafterf(middle, INFINITY))};
            uint32_t wanted[4] = {i, i, even, i + 1};
            for (int k = 0; k < 4; k++)
                if (got[k] != (wanted[k] | sign << 15))
                    fail_msg("near half %04x, case %d: %04x", (unsigned)i, k, (unsigned)got[k]);
        }
    }
    assert_int_equal(io_half_from_float(INFINITY), 0x7c00);
    assert_int_equal(io_half_from_float(-FLT_MAX), 0xfc00);
    assert_int_equal(io_half_from_float(FLT_TRUE_MIN), 0);
    uint32_t smallest_nan = 0x7f800001;
    float nan;
    memcpy(&nan, &smallest_nan, sizeof nan);
    assert_true(isnan(io_float_from_half(io_half_from_float(nan))));
}

/* ---- 4. Safetensors ---------------------------------------------------------------------------------------------- */

static void check_values(const io_safetensors *file, const char *name, io_dtype dtype, int count, const double *value)
{
    const io_tensor *tensor = io_safetensors_find(file, name);
    double doubles[8];
    float floats[8];
    assert_non_null(tensor);
    assert_int_equal(tensor->dtype, dtype);
    assert_int_equal(tensor->elements, count);
    assert_ok(io_tensor_doubles(tensor, doubles));
    assert_ok(io_tensor_floats(tensor, floats));
    for (int i = 0; i < count; i++) {
        float rounded = (float)value[i];
        if (isnan(value[i]) ? !isnan(doubles[i]) || !isnan(floats[i]) : doubles[i] != value[i] || floats[i] != rounded)
            fail_msg("%s[%d] is %g and %g instead of %g", name, i, doubles[i], (double)floats[i], value[i]);
    }
}

/* What tests/parity/make_io_vectors.py wrote. */
static void check_every_dtype(const io_safetensors *file)
{
    check_values(file, "f64", IO_F64, 4,
                 (double[]){1.0 / 3, -1e-300, 1e300, 1 + 0x1p-24}); /* 1e300: infinity as a float; a tie */
    check_values(file, "f32", IO_F32, 5, (double[]){1.5, -0x1p-149, FLT_MAX, -INFINITY, NAN});
    check_values(file, "f16", IO_F16, 5, (double[]){1.5, -0x1p-24, 65504, -INFINITY, NAN});
    check_values(file, "bf16", IO_BF16, 5, (double[]){1.5, -0x1p-133, 0x1.fep127, -INFINITY, NAN});
    check_values(file, "i64", IO_I64, 1, (double[]){-0x1p40});
    check_values(file, "i32", IO_I32, 2, (double[]){-0x1p31, 0x1p31 - 1});
    check_values(file, "i16", IO_I16, 2, (double[]){-32768, 32767});
    check_values(file, "i8", IO_I8, 2, (double[]){-128, 127});
    check_values(file, "u8", IO_U8, 2, (double[]){0, 255});
    check_values(file, "bool", IO_BOOL, 2, (double[]){0, 1});
    check_values(file, "empty", IO_F32, 0, NULL);
    assert_int_equal(file->tensors, 11);
    assert_int_equal(io_safetensors_find(file, "i64")->dims, 0);
    assert_int_equal(io_safetensors_find(file, "f64")->shape[1], 2);
    assert_null(io_safetensors_find(file, "f3"));
    assert_null(io_safetensors_find(file, "zzz"));
}

static void every_dtype(void **state)
{
    (void)state;
    io_safetensors file;
    const char *copy = in_folder("copy.safetensors");
    assert_ok(io_safetensors_open("tests/vectors/io_dtypes.safetensors", &file));
    check_every_dtype(&file);
    assert_int_equal(file.pairs, 1);
    assert_ok(io_safetensors_write(copy, file.tensor, file.tensors, file.metadata, file.pairs));
    io_safetensors_close(&file);
    assert_ok(io_safetensors_open(copy, &file));
    check_every_dtype(&file);
    assert_int_equal(file.pairs, 1);
    assert_string_equal(file.metadata[0].key, "text");
    assert_string_equal(file.metadata[0].value, "\xc3\xa9 \"\n");
    for (int i = 0; i < file.tensors; i++) /* the file in memory starts at a page */
        assert_int_equal((uintptr_t)file.tensor[i].data % io_dtype_size(file.tensor[i].dtype), 0);
    io_safetensors_close(&file);
    io_safetensors_close(&file);
    assert_ok(io_remove_tree(copy));
}

/* Every shorter and every longer version of a whole file is refused. */
static void truncated(void **state)
{
    (void)state;
    unsigned char *data;
    size_t size;
    io_safetensors file;
    assert_ok(io_read_file("tests/vectors/io_dtypes.safetensors", &data, &size));
    for (size_t length = 0; length <= size; length++) {
        unsigned char *part = malloc(length + 1); /* exactly as long, for AddressSanitizer */
        assert_non_null(part);
        memcpy(part, data, length);
        ddpm_result result = io_safetensors_parse(part, length, "part", &file);
        if (length < size) assert_refused("shorter", result, DDPM_ERR_FORMAT, "part: ");
        assert_int_equal(result, length < size ? DDPM_ERR_FORMAT : DDPM_OK);
        io_safetensors_close(&file);
        free(part);
    }
    assert_refused("longer", io_safetensors_parse(data, size + 1, "part", &file), DDPM_ERR_FORMAT,
                   "belong to no tensor");
    free(data);
}

/* A quadratic reader or writer would take minutes here. */
static void many_tensors(void **state)
{
    (void)state;
    enum { COUNT = 200000, LENGTH = 12 };
    const char *path = in_folder("many.safetensors");
    io_tensor *tensor = calloc(COUNT, sizeof *tensor);
    char *names = malloc(COUNT * LENGTH);
    io_safetensors file;
    assert_true(tensor && names);
    for (int i = 0; i < COUNT; i++) {
        snprintf(names + i * LENGTH, LENGTH, "t.%d", (int)((int64_t)i * 7919 % COUNT));
        tensor[i] = (io_tensor){.name = names + i * LENGTH,
                                .dtype = IO_U8,
                                .dims = 1,
                                .shape = {1},
                                .data = (unsigned char *)names + i * LENGTH};
    }
    assert_ok(io_safetensors_write(path, tensor, COUNT, NULL, 0));
    assert_ok(io_safetensors_open(path, &file));
    assert_int_equal(file.tensors, COUNT);
    for (int i = 0; i < COUNT; i++)
        assert_non_null(io_safetensors_find(&file, tensor[i].name));
    io_safetensors_close(&file);
    free(tensor);
    free(names);
    assert_ok(io_remove_tree(path));
}

static void writing_refuses(void **state)
{
    (void)state;
    const char *path = in_folder("bad.safetensors");
    const unsigned char data[8] = {0};
    io_tensor good = {.name = "a", .dtype = IO_U8, .dims = 1, .shape = {8}, .data = data};
    io_tensor pair[2] = {good, good}, bad = good;
    assert_refused("twice", io_safetensors_write(path, pair, 2, NULL, 0), DDPM_ERR_ARGUMENT, "'a'");
    bad.name = "";
    assert_refused("no name", io_safetensors_write(path, &bad, 1, NULL, 0), DDPM_ERR_ARGUMENT, "name");
    bad.name = "__metadata__";
    assert_refused("reserved", io_safetensors_write(path, &bad, 1, NULL, 0), DDPM_ERR_ARGUMENT, "__metadata__");
    bad = good;
    bad.shape[0] = -1;
    assert_refused("negative", io_safetensors_write(path, &bad, 1, NULL, 0), DDPM_ERR_ARGUMENT, "negative");
    bad.dims = 9;
    assert_refused("nine dimensions", io_safetensors_write(path, &bad, 1, NULL, 0), DDPM_ERR_ARGUMENT, "'a'");
    static unsigned char large[100000];
    io_tensor block = {.name = "block", .dtype = IO_U8, .dims = 1, .shape = {sizeof large}, .data = large};
    limit_file_size(50000);
    ddpm_result result = io_safetensors_write(path, &block, 1, NULL, 0);
    limit_file_size(0);
    assert_refused("full disk", result, DDPM_ERR_FILE, "free some space");
    assert_int_equal(count_entries(folder), 0);
}

static void open_errors(void **state)
{
    (void)state;
    io_safetensors file;
    assert_refused("missing", io_safetensors_open(in_folder("no"), &file), DDPM_ERR_FILE, "No such file");
    assert_refused("directory", io_safetensors_open(folder, &file), DDPM_ERR_FILE, "directory");
    const char *path = write_text("empty", "");
    assert_refused("empty", io_safetensors_open(path, &file), DDPM_ERR_FORMAT, "shorter than the 8 bytes");
    io_safetensors_close(&file);
    assert_ok(io_remove_tree(path));
}

/* ---- 5. Lying headers -------------------------------------------------------------------------------------------- */

#define TENSOR(name, dtype, shape, offsets)                                                                            \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define ONE(dtype, shape, offsets) "{" TENSOR("a.b", dtype, shape, offsets) "}"

/* clang-format off */
static const struct lie {
    const char *row, *header;
    size_t data;      /* bytes behind the header */
    const char *part; /* of the error; NULL: this one is true */
} lies[] = {
    {"true", ONE("F32", "[2,1]", "[0,8]"), 8, NULL},
    {"padded", ONE("F32", "[2]", "[0,8]") "   ", 8, NULL},
    {"nothing", "{}", 0, NULL},
    {"metadata alone", "{\"__metadata__\":{\"format\":\"pt\"}}", 0, NULL},
    {"offsets not in the order of names", "{" TENSOR("a", "U8", "[1]", "[1,2]") "," TENSOR("b", "U8", "[1]",
     "[0,1]") "}", 2, NULL},
    {"empty tensors between", "{" TENSOR("a", "U8", "[0]", "[1,1]") "," TENSOR("b", "U8", "[1]", "[0,1]") "}", 1, NULL},
    {"eight dimensions", ONE("U8", "[1,1,1,1,1,1,1,1]", "[0,1]"), 1, NULL},
    {"no header", "", 0, "not a JSON object"},
    {"not JSON", "{\"a.b\":", 0, "not a JSON object"},
    {"a list", "[]", 0, "not a JSON object"},
    {"a pickle", "\x80\x02}q", 0, "not a JSON object"},
    {"text behind the object", "{} x", 0, "not a JSON object"},
    {"tensor is a number", "{\"a.b\":1}", 0, "'a.b': its entry"},
    {"tensor is null", "{\"a.b\":null}", 0, "'a.b': its entry"},
    {"no dtype", "{\"a.b\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     "'a.b': dtype, shape or data_offsets is missing"},
    {"no shape", "{\"a.b\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4,
     "'a.b': dtype, shape or data_offsets is missing"},
    {"no offsets", "{\"a.b\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "'a.b': dtype, shape or data_offsets is missing"},
    {"unknown field", "{\"a.b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"c\":1}}", 4,
     "'a.b': field 'c' is unknown"},
    {"field twice", "{\"a.b\":{\"dtype\":\"F32\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     "'shape' is there twice"},
    {"unknown dtype", ONE("F8_E4M3", "[1]", "[0,1]"), 1, "'a.b': dtype is \"F8_E4M3\"; accepted: F64"},
    {"dtype in lower case", ONE("f32", "[1]", "[0,4]"), 4, "dtype is \"f32\""},
    {"dtype is a number", "{\"a.b\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype is 1"},
    {"negative side", ONE("F32", "[-1]", "[0,4]"), 4, "'a.b': shape is [-1]"},
    {"fractional side", ONE("F32", "[1.5]", "[0,6]"), 6, "shape is [1.5]"},
    {"side is a text", ONE("F32", "[\"1\"]", "[0,4]"), 4, "shape is [\"1\"]"},
    {"side beyond 2^53", ONE("U8", "[9007199254740994]", "[0,4]"), 4, "shape is"},
    {"side is infinite", ONE("U8", "[1e999]", "[0,4]"), 4, "shape is"},
    {"shape is a number", ONE("F32", "1", "[0,4]"), 4, "shape is 1"},
    {"nine dimensions", ONE("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, "at most 8"},
    {"product overflows to a small number", ONE("U8", "[4294967296,4294967296]",
     "[0,0]"), 0, "more elements than memory"},
    {"bytes overflow", ONE("F64", "[2305843009213693952]", "[0,0]"), 0, "shape is"},
    {"bytes overflow by the product", ONE("F64", "[2147483648,1073741824]", "[0,0]"), 0, "more elements than memory"},
    {"size too small", ONE("F32", "[2]", "[0,4]"), 4, "'a.b': shape [2] of F32 needs 8 bytes, data_offsets give it 4"},
    {"size too large", ONE("F32", "[1]", "[0,8]"), 8, "needs 4 bytes"},
    {"scalar of the wrong size", ONE("I64", "[]", "[0,4]"), 4, "shape [] of I64 needs 8 bytes"},
    {"end before begin", ONE("F32", "[1]", "[4,0]"), 4, "data_offsets is [4,0]"},
    {"negative offset", ONE("F32", "[1]", "[-4,0]"), 4, "data_offsets is [-4,0]"},
    {"fractional offset", ONE("F32", "[1]", "[0,4.5]"), 4, "data_offsets is [0,4.5]"},
    {"one offset", ONE("F32", "[1]", "[4]"), 4, "data_offsets is [4]"},
    {"three offsets", ONE("F32", "[1]", "[0,4,8]"), 8, "data_offsets is [0,4,8]"},
    {"beyond the end", ONE("F32", "[2]", "[0,8]"), 7, "'a.b': data_offsets end at byte 8, but the file holds 7"},
    {"far beyond the end", ONE("U8", "[4503599627370496]", "[0,4503599627370496]"), 7, "the file is truncated"},
    {"bytes left over", ONE("F32", "[1]", "[0,4]"), 5, "belong to no tensor"},
    {"data without tensors", "{}", 1, "belong to no tensor"},
    {"hole at the start", ONE("F32", "[1]", "[4,8]"), 8, "'a.b': bytes before its data"},
    {"hole between", "{" TENSOR("a", "U8", "[1]", "[0,1]") "," TENSOR("b", "U8", "[1]", "[2,3]") "}",
     3, "'b': bytes before"},
    {"overlap", "{" TENSOR("a", "U8", "[2]", "[0,2]") "," TENSOR("b", "U8", "[2]", "[1,3]") "}",
     3, "'b': its data overlaps that of 'a'"},
    {"the same bytes twice", "{" TENSOR("a", "U8", "[2]", "[0,2]") "," TENSOR("b", "U8", "[2]", "[0,2]") "}",
     2, "overlaps"},
    {"name twice", "{" TENSOR("a", "U8", "[1]", "[0,1]") "," TENSOR("a", "U8", "[1]", "[1,2]") "}",
     2, "'a': the name is there twice"},
    {"metadata is a list", "{\"__metadata__\":[]}", 0, "__metadata__"},
    {"metadata holds a number", "{\"__metadata__\":{\"a\":1}}", 0, "__metadata__"},
    {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__"},
};
/* clang-format on */

static void lying_headers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        const struct lie *lie = &lies[i];
        uint64_t length = strlen(lie->header);
        size_t size = sizeof length + (size_t)length + lie->data;
        unsigned char *bytes = calloc(size, 1);
        io_safetensors file;
        assert_non_null(bytes);
        memcpy(bytes, &length, sizeof length);
        memcpy(bytes + sizeof length, lie->header, (size_t)length);
        ddpm_result result = io_safetensors_parse(bytes, size, "weights/x.safetensors", &file);
        if (lie->part) {
            assert_refused(lie->row, result, DDPM_ERR_FORMAT, lie->part);
            assert_refused(lie->row, result, DDPM_ERR_FORMAT, "weights/x.safetensors: ");
            assert_null(file.tensor);
        } else if (result)
            fail_msg("%s: refused: %s", lie->row, ddpm_error());
        io_safetensors_close(&file);
        free(bytes);
    }
}

static void lying_lengths(void **state)
{
    (void)state;
    static const struct {
        uint64_t length;
        const char *part;
    } rows[] = {{3, "the file ends before"}, {100000000, "the file ends before"}, {100000001, "the limit"},
                {UINT64_MAX, "the limit"},   {UINT64_MAX - 7, "the limit"},       {INT64_MAX, "the limit"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        unsigned char bytes[10] = {0};
        io_safetensors file;
        memcpy(bytes, &rows[i].length, 8);
        memcpy(bytes + 8, "{}", 2);
        assert_refused("length", io_safetensors_parse(bytes, sizeof bytes, "x", &file), DDPM_ERR_FORMAT, rows[i].part);
    }
}

/* ---- 6. Configs -------------------------------------------------------------------------------------------------- */

static ddpm_result parse_unet(const char *text, ddpm_unet_config *out)
{
    return io_unet_config_parse(text, strlen(text), "unet/config.json", out);
}

static ddpm_result parse_schedule(const char *text, ddpm_schedule_config *out)
{
    return io_schedule_config_parse(text, strlen(text), "scheduler_config.json", out);
}

/* Member by member: padding has no value. */
static void assert_same_unet(const ddpm_unet_config *a, const ddpm_unet_config *b)
{
    assert_memory_equal(a->sample_size, b->sample_size, sizeof a->sample_size);
    assert_int_equal(a->in_channels, b->in_channels);
    assert_int_equal(a->out_channels, b->out_channels);
    assert_int_equal(a->center_input_sample, b->center_input_sample);
    assert_int_equal(a->time_embedding_type, b->time_embedding_type);
    assert_int_equal(a->time_embedding_dim, b->time_embedding_dim);
    assert_true(a->freq_shift == b->freq_shift);
    assert_int_equal(a->flip_sin_to_cos, b->flip_sin_to_cos);
    assert_int_equal(a->levels, b->levels);
    for (int i = 0; i < a->levels; i++) {
        assert_int_equal(a->down_block_types[i], b->down_block_types[i]);
        assert_int_equal(a->up_block_types[i], b->up_block_types[i]);
        assert_int_equal(a->block_out_channels[i], b->block_out_channels[i]);
    }
    assert_int_equal(a->mid_block_type, b->mid_block_type);
    assert_int_equal(a->layers_per_block, b->layers_per_block);
    assert_true(a->mid_block_scale_factor == b->mid_block_scale_factor);
    assert_int_equal(a->downsample_padding, b->downsample_padding);
    assert_int_equal(a->downsample_type, b->downsample_type);
    assert_int_equal(a->upsample_type, b->upsample_type);
    assert_true(a->dropout == b->dropout);
    assert_int_equal(a->attention_head_dim, b->attention_head_dim);
    assert_int_equal(a->norm_num_groups, b->norm_num_groups);
    assert_int_equal(a->attn_norm_num_groups, b->attn_norm_num_groups);
    assert_true(a->norm_eps == b->norm_eps);
    assert_int_equal(a->resnet_time_scale_shift, b->resnet_time_scale_shift);
    assert_int_equal(a->add_attention, b->add_attention);
    assert_int_equal(a->class_embed_type, b->class_embed_type);
    assert_int_equal(a->num_class_embeds, b->num_class_embeds);
}

/* Every field away from its default. */
static const char *const unusual_text =
    "{\"_class_name\":\"UNet2DModel\",\"_name_or_path\":\"x\",\"sample_size\":[16,8],\"in_channels\":2,"
    "\"out_channels\":5,"
    "\"center_input_sample\":true,\"time_embedding_type\":\"fourier\",\"time_embedding_dim\":48,\"freq_shift\":0.3,"
    "\"flip_sin_to_cos\":false,\"down_block_types\":[\"AttnDownBlock2D\",\"DownBlock2D\"],"
    "\"up_block_types\":[\"UpBlock2D\",\"AttnUpBlock2D\"],\"block_out_channels\":[8,12],\"mid_block_type\":null,"
    "\"layers_per_block\":3,\"mid_block_scale_factor\":1.4142135623730951,\"downsample_padding\":0,"
    "\"downsample_type\":\"resnet\","
    "\"upsample_type\":\"resnet\",\"dropout\":0.1,\"act_fn\":\"swish\",\"attention_head_dim\":null,"
    "\"norm_num_groups\":4,"
    "\"attn_norm_num_groups\":2,\"norm_eps\":1e-06,\"resnet_time_scale_shift\":\"scale_shift\",\"add_attention\":false,"
    "\"class_embed_type\":\"identity\",\"num_class_embeds\":7,\"num_train_timesteps\":null}";
/* clang-format off */
static const ddpm_unet_config unusual = {
    .sample_size = {16, 8}, .in_channels = 2, .out_channels = 5, .center_input_sample = 1,
    .time_embedding_type = DDPM_TIME_FOURIER,
    .time_embedding_dim = 48, .freq_shift = 0.3, .flip_sin_to_cos = 0, .levels = 2,
    .down_block_types = {DDPM_ATTN_BLOCK, DDPM_PLAIN_BLOCK}, .up_block_types = {DDPM_PLAIN_BLOCK, DDPM_ATTN_BLOCK},
    .block_out_channels = {8, 12}, .mid_block_type = 0, .layers_per_block = 3,
    .mid_block_scale_factor = 1.4142135623730951,
    .downsample_padding = 0, .downsample_type = DDPM_RESAMPLE_RESNET, .upsample_type = DDPM_RESAMPLE_RESNET,
    .dropout = 0.1,
    .attention_head_dim = 0, .norm_num_groups = 4, .attn_norm_num_groups = 2, .norm_eps = 1e-6,
    .resnet_time_scale_shift = DDPM_SHIFT_SCALE_SHIFT, .add_attention = 0, .class_embed_type = DDPM_CLASS_IDENTITY,
    .num_class_embeds = 7};
/* clang-format on */

static void unet_config_values(void **state)
{
    (void)state;
    ddpm_unet_config config, standard = ddpm_model_default().unet;
    assert_ok(parse_unet("{}", &config));
    assert_same_unet(&config, &standard);
    assert_ok(parse_unet(unusual_text, &config));
    assert_same_unet(&config, &unusual);
    assert_ok(parse_unet("{\"sample_size\":64}", &config));
    assert_true(config.sample_size[0] == 64 && config.sample_size[1] == 64);
    assert_ok(parse_unet("{\"sample_size\":null}", &config));
    assert_true(config.sample_size[0] == 0 && config.sample_size[1] == 0);
    assert_ok(parse_unet("{\"norm_num_groups\":16.0,\"act_fn\":\"silu\",\"_anything\":[{}]} \n", &config));
    assert_int_equal(config.norm_num_groups, 16);
    assert_ok(io_unet_config_read("tests/vectors/io_unet/config.json", &config)); /* as diffusers writes it */
    assert_int_equal(config.sample_size[0], 8);
    assert_int_equal(config.sample_size[1], 4);
    assert_int_equal(config.levels, 2);
    assert_int_equal(config.block_out_channels[1], 8);
    assert_int_equal(config.down_block_types[1], DDPM_ATTN_BLOCK);
    assert_int_equal(config.up_block_types[1], DDPM_PLAIN_BLOCK);
    assert_int_equal(config.class_embed_type, DDPM_CLASS_TIMESTEP);
    assert_true(config.norm_eps == 1e-6 && config.freq_shift == 1);
}

static void unet_config_round_trip(void **state)
{
    (void)state;
    const char *path = in_folder("config.json");
    ddpm_unet_config made[3] = {ddpm_model_default().unet, unusual, ddpm_model_preset("lab", 24).unet}, read;
    made[0].norm_eps = nextafter(1e-5, 1); /* all 17 digits */
    for (int i = 0; i < 3; i++) {
        assert_ok(io_unet_config_write(path, &made[i]));
        assert_ok(io_unet_config_read(path, &read));
        assert_same_unet(&read, &made[i]);
    }
    made[0].dropout = 2; /* what could not be read back is not written */
    assert_refused("dropout 2", io_unet_config_write(path, &made[0]), DDPM_ERR_ARGUMENT, "dropout is 2");
    made[0].dropout = NAN;
    assert_refused("dropout nan", io_unet_config_write(path, &made[0]), DDPM_ERR_ARGUMENT, "dropout");
    made[0].dropout = 0;
    made[0].class_embed_type = (ddpm_class_type)3;
    assert_refused("no such type", io_unet_config_write(path, &made[0]), DDPM_ERR_ARGUMENT, "class_embed_type");
    assert_ok(io_unet_config_read(path, &read));
    assert_same_unet(&read, &made[2]);
    assert_ok(io_remove_tree(path));
}

typedef struct refusal {
    const char *text;
    ddpm_result code;
    const char *part; /* of the error: field, value, or what is accepted */
} refusal;

static void unet_config_refusals(void **state)
{
    (void)state;
    /* clang-format off */
    static const refusal rows[] = {
        {"", DDPM_ERR_FORMAT, "not valid JSON at line 1, column 1"},
        {"{\n\"dropout\": 0.1,\n}", DDPM_ERR_FORMAT, "line 3"},
        {"{} {}", DDPM_ERR_FORMAT, "not valid JSON"},
        {"[]", DDPM_ERR_FORMAT, "not a JSON object"},
        {"null", DDPM_ERR_FORMAT, "not a JSON object"},
        {"{\"dropout\":0,\"dropout\":0}", DDPM_ERR_FORMAT, "'dropout' is there twice"},
        {"{\"cross_attention_dim\":768}", DDPM_ERR_UNSUPPORTED, "'cross_attention_dim' with value 768 is unknown"},
        {"{\"Dropout\":0}", DDPM_ERR_UNSUPPORTED, "'Dropout'"},
        {"{\"\":0}", DDPM_ERR_UNSUPPORTED, "''"},
        {"{\"act_fn\":\"gelu\"}", DDPM_ERR_UNSUPPORTED, "act_fn is \"gelu\" (a string); accepted: \"silu\""},
        {"{\"num_train_timesteps\":1000}", DDPM_ERR_UNSUPPORTED,
         "num_train_timesteps is 1000 (a number); accepted: null"},
        {"{\"time_embedding_type\":\"learned\"}", DDPM_ERR_UNSUPPORTED, "accepted: \"positional\", \"fourier\""},
        {"{\"time_embedding_type\":null}", DDPM_ERR_ARGUMENT, "time_embedding_type is null"},
        {"{\"mid_block_type\":\"UNetMidBlock2DCrossAttn\"}", DDPM_ERR_UNSUPPORTED,
         "accepted: null, \"UNetMidBlock2D\""},
        {"{\"class_embed_type\":\"projection\"}", DDPM_ERR_UNSUPPORTED, "accepted: null, \"timestep\", \"identity\""},
        {"{\"resnet_time_scale_shift\":\"ada_group\"}", DDPM_ERR_UNSUPPORTED, "\"scale_shift\""},
        {"{\"downsample_type\":\"pool\"}", DDPM_ERR_UNSUPPORTED, "accepted: \"conv\", \"resnet\""},
        {"{\"upsample_type\":1}", DDPM_ERR_ARGUMENT, "upsample_type is 1 (a number)"},
        {"{\"downsample_padding\":2}", DDPM_ERR_ARGUMENT, "a whole number from 0 to 1"},
        {"{\"down_block_types\":[\"DownBlock2D\",\"SkipDownBlock2D\",\"DownBlock2D\",\"DownBlock2D\"]}",
         DDPM_ERR_UNSUPPORTED,
         "down_block_types is \"SkipDownBlock2D\" (a string); accepted: a list of \"DownBlock2D\", \"AttnDown"},
        {"{\"up_block_types\":[\"DownBlock2D\"]}", DDPM_ERR_UNSUPPORTED, "a list of \"UpBlock2D\", \"AttnUpBlock2D\""},
        {"{\"up_block_types\":\"UpBlock2D\"}", DDPM_ERR_ARGUMENT, "up_block_types"},
        {"{\"up_block_types\":[1]}", DDPM_ERR_ARGUMENT, "up_block_types is 1"},
        {"{\"block_out_channels\":[]}", DDPM_ERR_ARGUMENT, "block_out_channels is []"},
        {"{\"block_out_channels\":[1,2,3,4,5,6,7,8,9]}", DDPM_ERR_UNSUPPORTED,
         "block_out_channels has 9 entries; accepted: at most 8"},
        {"{\"block_out_channels\":[64,0]}", DDPM_ERR_ARGUMENT, "block_out_channels is 0"},
        {"{\"block_out_channels\":[64,128]}", DDPM_ERR_ARGUMENT,
         "block_out_channels has 2 entries, down_block_types 4, up_block_types 4"},
        {"{\"layers_per_block\":\"2\"}", DDPM_ERR_ARGUMENT,
         "layers_per_block is \"2\" (a string); accepted: a whole number"},
        {"{\"layers_per_block\":0}", DDPM_ERR_ARGUMENT, "layers_per_block is 0"},
        {"{\"layers_per_block\":[2,2]}", DDPM_ERR_ARGUMENT, "layers_per_block is [2,2]"},
        {"{\"in_channels\":2.5}", DDPM_ERR_ARGUMENT, "in_channels is 2.5"},
        {"{\"in_channels\":-3}", DDPM_ERR_ARGUMENT, "in_channels is -3"},
        {"{\"in_channels\":1e300}", DDPM_ERR_ARGUMENT, "in_channels is 1e+300"},
        {"{\"in_channels\":null}", DDPM_ERR_ARGUMENT, "in_channels is null"},
        {"{\"attention_head_dim\":0}", DDPM_ERR_ARGUMENT, "accepted: a whole number from 1 to 1048576, or null"},
        {"{\"norm_num_groups\":null}", DDPM_ERR_ARGUMENT, "norm_num_groups is null"},
        {"{\"sample_size\":\"64\"}", DDPM_ERR_ARGUMENT, "sample_size is \"64\""},
        {"{\"sample_size\":[64]}", DDPM_ERR_ARGUMENT, "a pair [height, width]"},
        {"{\"sample_size\":[64,64,64]}", DDPM_ERR_ARGUMENT, "sample_size is [64,64,64]"},
        {"{\"sample_size\":[64,null]}", DDPM_ERR_ARGUMENT, "sample_size is [64,null]"},
        {"{\"sample_size\":0}", DDPM_ERR_ARGUMENT, "sample_size is 0"},
        {"{\"dropout\":1.5}", DDPM_ERR_ARGUMENT, "dropout is 1.5 (a number); accepted: a number from 0 to 1"},
        {"{\"dropout\":true}", DDPM_ERR_ARGUMENT, "dropout is true"},
        {"{\"norm_eps\":1e999}", DDPM_ERR_ARGUMENT, "norm_eps"},
        {"{\"norm_eps\":-1e-5}", DDPM_ERR_ARGUMENT, "norm_eps is -1e-05"},
        {"{\"add_attention\":1}", DDPM_ERR_ARGUMENT, "add_attention is 1 (a number); accepted: true, false"},
        {"{\"flip_sin_to_cos\":\"true\"}", DDPM_ERR_ARGUMENT, "flip_sin_to_cos is \"true\" (a string)"},
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ddpm_unet_config config = unusual;
        ddpm_result result = parse_unet(rows[i].text, &config);
        assert_refused(rows[i].text, result, rows[i].code, rows[i].part);
        assert_refused(rows[i].text, result, rows[i].code, "unet/config.json: ");
        assert_same_unet(&config, &unusual);
    }
    ddpm_unet_config config;
    static const char zero[] = "{}\0{}";
    assert_refused("a 0 byte", io_unet_config_parse(zero, sizeof zero - 1, "x", &config), DDPM_ERR_FORMAT,
                   "not valid JSON");
    assert_refused("missing", io_unet_config_read(in_folder("no"), &config), DDPM_ERR_FILE, "No such file");
}

/* Written and read again: every field, for each scheduler those it has. */
static void other_schedule_configs(const char *path)
{
    static const double betas[] = {0.1 + 0.2, 1e-4, 1};
    ddpm_schedule_config config, other = ddpm_schedule_default();
    other.num_train_timesteps = 3;
    other.beta_schedule = DDPM_BETA_SCALED_LINEAR;
    other.beta_start = 0.1 + 0.2;
    other.beta_end = 0.5;
    other.clip_sample = 0;
    other.clip_sample_range = 2.5;
    other.trained_betas = betas;
    other.rescale_betas_zero_snr = 1;
    other.prediction_type = DDPM_PREDICTS_V;
    other.thresholding = 1;
    other.dynamic_thresholding_ratio = 0.75;
    other.sample_max_value = 3.5;
    other.timestep_spacing = DDPM_SPACING_TRAILING;
    other.steps_offset = 1;
    other.variance_type = DDPM_FIXED_LARGE;
    other.set_alpha_to_one = 0;
    other.solver_order = 1;
    other.solver_type = DDPM_SOLVER_HEUN;
    other.lower_order_final = 0;
    other.euler_at_final = 1;
    other.final_sigmas_type = DDPM_FINAL_SIGMA_MIN;
    for (int kind = 0; kind <= DDPM_SAMPLER_DPMSOLVER; kind++) {
        int ddpm = kind == DDPM_SAMPLER_DDPM, ddim = kind == DDPM_SAMPLER_DDIM, solver = !ddpm && !ddim;
        other.scheduler = (ddpm_sampler)kind;
        other.lambda_min_clipped = ddim ? -5.1 : -(double)INFINITY;
        assert_ok(io_schedule_config_write(path, &other));
        assert_ok(io_schedule_config_read(path, &config));
        assert_int_equal(config.scheduler, kind);
        assert_int_equal(config.num_train_timesteps, 3);
        assert_int_equal(config.beta_schedule, DDPM_BETA_SCALED_LINEAR);
        assert_true(config.beta_start == 0.1 + 0.2 && config.beta_end == 0.5);
        assert_memory_equal(config.trained_betas, betas, sizeof betas);
        assert_true(config.rescale_betas_zero_snr && config.prediction_type == DDPM_PREDICTS_V && config.thresholding &&
                    config.dynamic_thresholding_ratio == 0.75 && config.sample_max_value == 3.5 &&
                    config.timestep_spacing == DDPM_SPACING_TRAILING && config.steps_offset == 1);
        assert_true(config.clip_sample == solver && config.clip_sample_range == (solver ? 1 : 2.5));
        assert_int_equal(config.variance_type, ddpm ? DDPM_FIXED_LARGE : DDPM_FIXED_SMALL);
        assert_int_equal(config.set_alpha_to_one, !ddim);
        assert_int_equal(config.solver_order, solver ? 1 : 2);
        assert_int_equal(config.solver_type, solver ? DDPM_SOLVER_HEUN : DDPM_SOLVER_MIDPOINT);
        assert_true(config.lower_order_final == !solver && config.euler_at_final == solver);
        assert_int_equal(config.final_sigmas_type, solver ? DDPM_FINAL_SIGMA_MIN : DDPM_FINAL_SIGMA_ZERO);
        assert_true(isinf(config.lambda_min_clipped) && config.lambda_min_clipped < 0);
        io_schedule_config_free(&config);
        assert_null(config.trained_betas);
    }
    other.lambda_min_clipped = -5.1;
    assert_ok(io_schedule_config_write(path, &other));
    assert_ok(io_schedule_config_read(path, &config));
    assert_true(config.lambda_min_clipped == -5.1);
    io_schedule_config_free(&config);
    other.beta_schedule = DDPM_BETA_LAPLACE; /* not DPMSolverMultistepScheduler's */
    assert_int_equal(io_schedule_config_write(path, &other), DDPM_ERR_ARGUMENT);
    other.scheduler = (ddpm_sampler)3;
    assert_int_equal(io_schedule_config_write(path, &other), DDPM_ERR_ARGUMENT);
    assert_ok(io_remove_tree(path));
    static const char solver[] = "{\"_class_name\":\"DPMSolverMultistepScheduler\",\"lambda_min_clipped\":-Infinity,"
                                 "\"_note\":\"-Infinity \\\" -Infinity\"}";
    assert_ok(parse_schedule(solver, &config));
    assert_int_equal(config.timestep_spacing, DDPM_SPACING_LINSPACE); /* this class's default */
    assert_true(isinf(config.lambda_min_clipped));
}

static void schedule_configs(void **state)
{
    (void)state;
    ddpm_schedule_config config, standard = ddpm_schedule_default();
    assert_ok(parse_schedule("{}", &config)); /* diffusers' default */
    assert_int_equal(config.beta_schedule, DDPM_BETA_LINEAR);
    assert_int_equal(config.num_train_timesteps, 1000);
    assert_true(config.beta_start == 1e-4 && config.beta_end == 0.02 && config.clip_sample == 1 &&
                config.clip_sample_range == 1);
    assert_ok(io_schedule_config_read("tests/vectors/io_unet/scheduler_config.json", &config));
    assert_int_equal(config.beta_schedule, DDPM_BETA_SQUAREDCOS_CAP_V2);
    assert_int_equal(config.num_train_timesteps, 500);
    assert_ok(io_schedule_config_read("tests/vectors/io_unet/ddim/scheduler_config.json", &config));
    assert_int_equal(config.clip_sample, 0);
    assert_ok(
        parse_schedule("{\"dynamic_thresholding_ratio\":0.5,\"sample_max_value\":7,\"thresholding\":false}", &config));

    const char *path = in_folder("scheduler_config.json");
    assert_ok(io_schedule_config_write(path, &standard));
    assert_ok(io_schedule_config_read(path, &config));
    assert_int_equal(config.beta_schedule, standard.beta_schedule);
    other_schedule_configs(path);

    /* clang-format off */
    static const refusal rows[] = {
        {"{\"beta_schedule\":\"exp\"}", DDPM_ERR_UNSUPPORTED, "beta_schedule is \"exp\""},
        {"{\"_class_name\":\"DDIMScheduler\",\"beta_schedule\":\"sigmoid\"}", DDPM_ERR_UNSUPPORTED, "\"sigmoid\""},
        {"{\"_class_name\":\"EulerDiscreteScheduler\"}", DDPM_ERR_UNSUPPORTED,
         "_class_name is \"EulerDiscreteScheduler\"; accepted: \"DDPMScheduler\""},
        {"{\"_class_name\":7}", DDPM_ERR_UNSUPPORTED, "_class_name is 7"},
        {"{\"prediction_type\":\"flow_prediction\"}", DDPM_ERR_UNSUPPORTED, "accepted: \"epsilon\", \"sample\""},
        {"{\"thresholding\":1}", DDPM_ERR_ARGUMENT, "thresholding is 1"},
        {"{\"variance_type\":\"learned\"}", DDPM_ERR_UNSUPPORTED, "variance_type is \"learned\""},
        {"{\"variance_type\":\"learned_range\"}", DDPM_ERR_UNSUPPORTED, "variance_type is \"learned_range\""},
        {"{\"variance_type\":\"fixed_large_log\"}", DDPM_ERR_UNSUPPORTED, "variance_type is \"fixed_large_log\""},
        {"{\"timestep_spacing\":\"karras\"}", DDPM_ERR_UNSUPPORTED, "timestep_spacing"},
        {"{\"steps_offset\":-1}", DDPM_ERR_ARGUMENT, "steps_offset is -1"},
        {"{\"trained_betas\":[0.1,0.2]}", DDPM_ERR_ARGUMENT,
         "trained_betas has 2 numbers, num_train_timesteps is 1000"},
        {"{\"trained_betas\":[]}", DDPM_ERR_ARGUMENT, "trained_betas is []"},
        {"{\"trained_betas\":[0.1,\"x\"]}", DDPM_ERR_ARGUMENT, "a list of numbers from 0 to 1, or null"},
        {"{\"trained_betas\":[0.1,1.5]}", DDPM_ERR_ARGUMENT, "trained_betas is 1.5"},
        {"{\"trained_betas\":[0.1,0.2],\"num_train_timesteps\":2,\"x\":1}", DDPM_ERR_UNSUPPORTED, "'x'"},
        {"{\"rescale_betas_zero_snr\":0}", DDPM_ERR_ARGUMENT, "rescale_betas_zero_snr"},
        {"{\"algorithm_type\":\"dpmsolver++\"}", DDPM_ERR_UNSUPPORTED, "'algorithm_type'"},
        {"{\"_class_name\":\"DPMSolverMultistepScheduler\",\"algorithm_type\":\"sde-dpmsolver++\"}",
         DDPM_ERR_UNSUPPORTED, "algorithm_type is \"sde-dpmsolver++\""},
        {"{\"_class_name\":\"DPMSolverMultistepScheduler\",\"solver_order\":3}", DDPM_ERR_ARGUMENT,
         "solver_order is 3"},
        {"{\"_class_name\":\"DPMSolverMultistepScheduler\",\"solver_type\":\"bh2\"}", DDPM_ERR_UNSUPPORTED,
         "solver_type"},
        {"{\"_class_name\":\"DPMSolverMultistepScheduler\",\"use_karras_sigmas\":true}", DDPM_ERR_UNSUPPORTED,
         "use_karras_sigmas is true; accepted: false"},
        {"{\"sample_max_value\":\"1\"}", DDPM_ERR_ARGUMENT, "sample_max_value is \"1\" (a string); accepted: a number"},
        {"{\"num_train_timesteps\":0}", DDPM_ERR_ARGUMENT, "num_train_timesteps is 0"},
        {"{\"num_train_timesteps\":null}", DDPM_ERR_ARGUMENT, "num_train_timesteps is null"},
        {"{\"beta_end\":2}", DDPM_ERR_ARGUMENT, "beta_end is 2"},
        {"{\"clip_sample\":\"yes\"}", DDPM_ERR_ARGUMENT, "clip_sample"},
        {"{\"clip_sample_range\":0}", DDPM_ERR_ARGUMENT,
         "clip_sample_range is 0 (a number); accepted: a number above 0"},
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_refused(rows[i].text, parse_schedule(rows[i].text, &config), rows[i].code, rows[i].part);
}

static void label_configs(void **state)
{
    (void)state;
    const char *path = in_folder("label.json");
    ddpm_label_config config = {24, 64, 512}, read;
    assert_ok(io_label_config_write(path, &config));
    assert_ok(io_label_config_read(path, &read));
    assert_true(read.num_classes == 24 && read.hidden_dim == 64 && read.embedding_dim == 512);
    config.hidden_dim = 0;
    assert_refused("hidden_dim 0", io_label_config_write(path, &config), DDPM_ERR_ARGUMENT, "hidden_dim is 0");
    static const char text[] = "{\"num_classes\":24,\"embedding_dim\":512}";
    assert_refused("missing", io_label_config_parse(text, sizeof text - 1, "x", &read), DDPM_ERR_FORMAT,
                   "'hidden_dim' is missing");
    assert_ok(io_remove_tree(path));
}

static void model_infos(void **state)
{
    (void)state;
    static const char *const names[] = {"red cube", "\"gr\xc3\xbcn\"\\", ""};
    const char *path = in_folder("model_index.json");
    io_model_info info = io_model_info_default(), read;
    assert_ok(io_model_info_set_classes(&info, names, 3));
    info.none_class = 2;
    info.label_dropout = 0.1;
    info.pixel_unshuffle = 2;
    info.height = 48;
    info.width = 64;
    info.num_inference_steps = 25;
    info.guidance_scale = 2.5;
    info.guide_scale = 3.5;
    info.tries = 4;
    assert_ok(io_model_info_write(path, &info));
    assert_ok(io_model_info_read(path, &read));
    assert_int_equal(read.classes, 3);
    for (int i = 0; i < 3; i++)
        assert_string_equal(read.class_name[i], names[i]);
    assert_true(read.none_class == 2 && read.label_dropout == 0.1 && read.pixel_unshuffle == 2 && read.height == 48 &&
                read.width == 64 && read.num_inference_steps == 25 && read.guidance_scale == 2.5 &&
                read.guide_scale == 3.5 && read.tries == 4);
    assert_int_equal(read.version, IO_MODEL_VERSION);
    io_model_info_free(&read);
    io_model_info_free(&info);
    io_model_info_free(&info);
    assert_ok(io_model_info_write(path, &info));
    assert_ok(io_model_info_read(path, &read));
    assert_true(read.classes == 0 && read.none_class == -1 && read.height == 0);
    assert_true(read.num_inference_steps == 0 && read.guidance_scale == 1 && read.guide_scale == 0 && read.tries == 1);
    io_model_info_free(&read);
    assert_ok(io_remove_tree(path));

    /* clang-format off */
    static const refusal rows[] = {
        {"{\"class_names\":[\"a\",1]}", DDPM_ERR_ARGUMENT, "class_names is 1 (a number); accepted: a list of strings"},
        {"{\"class_names\":\"a\"}", DDPM_ERR_ARGUMENT, "class_names is \"a\""},
        {"{\"class_names\":[\"a\"],\"class_names\":[\"a\"]}", DDPM_ERR_FORMAT, "'class_names' is there twice"},
        {"{\"class_names\":[\"a\"],\"version\":2}", DDPM_ERR_ARGUMENT, "version is 2"},
        {"{\"vae\":[\"diffusers\",\"AutoencoderKL\"]}", DDPM_ERR_UNSUPPORTED, "'vae'"},
        {"{\"unet\":[\"diffusers\",\"UNet2DConditionModel\"]}", DDPM_ERR_UNSUPPORTED,
         "unet is [\"diffusers\",\"UNet2DConditionModel\"]"},
        {"{\"label_dropout\":-0.1}", DDPM_ERR_ARGUMENT, "label_dropout"},
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_refused(rows[i].text, io_model_info_parse(rows[i].text, strlen(rows[i].text), "x", &read), rows[i].code,
                       rows[i].part);
    static const char pipeline[] =
        "{\"_class_name\":\"DDIMPipeline\",\"_diffusers_version\":\"0.1.0\","
        "\"scheduler\":[\"diffusers\",\"DDIMScheduler\"],\"unet\":[\"diffusers\",\"UNet2DModel\"]}";
    assert_ok(io_model_info_parse(pipeline, sizeof pipeline - 1, "x", &read));
    io_model_info_free(&read);
}

/* ---- 7. Models --------------------------------------------------------------------------------------------------- */

/* 8x8 pictures, two classes, about 3,000 parameters. */
static ddpm_model_config tiny(void)
{
    ddpm_model_config config = ddpm_model_preset("tiny", 2);
    config.unet.sample_size[0] = config.unet.sample_size[1] = 8;
    config.unet.block_out_channels[0] = 4;
    config.unet.block_out_channels[1] = 8;
    config.unet.norm_num_groups = 2;
    config.label.embedding_dim = 16;
    config.label.hidden_dim = 3;
    return config;
}

static ddpm_model *make_model(const ddpm_model_config *config, uint64_t seed)
{
    ddpm_model *model;
    assert_ok(ddpm_model_create(&model, config, NULL));
    assert_ok(ddpm_model_alloc(model, DDPM_FOR_TRAINING));
    assert_ok(ddpm_model_init(model, seed));
    return model;
}

static io_model_info two_classes(void)
{
    static const char *const names[] = {"red cube", "cyan sphere"};
    io_model_info info = io_model_info_default();
    assert_ok(io_model_info_set_classes(&info, names, 2));
    info.label_dropout = 0.25;
    info.height = info.width = 8;
    return info;
}

/* All parameters of two arrays are the same, or what `through` (a rounding) makes of the first is the second. */
static void assert_same_weights(const ddpm_model *a, ddpm_array array_a, const ddpm_model *b, ddpm_array array_b,
                                int through_half)
{
    assert_int_equal(a->params, b->params);
    for (int i = 0; i < a->params; i++) {
        size_t count = ddpm_elements(a->param[i], 1);
        ddpm_real *x = malloc(2 * count * sizeof *x), *y = x + count;
        assert_non_null(x);
        assert_string_equal(a->param[i]->name, b->param[i]->name);
        assert_ok(ddpm_model_get(a, array_a, a->param[i], x));
        assert_ok(ddpm_model_get(b, array_b, b->param[i], y));
        for (size_t k = 0; k < count && through_half; k++)
            x[k] = io_float_from_half(io_half_from_float((float)x[k]));
        assert_memory_equal(x, y, count * sizeof *x);
        free(x);
    }
}

static void save_tiny(const char *directory, const ddpm_model *model, io_dtype dtype)
{
    ddpm_schedule_config schedule = ddpm_schedule_default();
    io_model_info info = two_classes();
    schedule.num_train_timesteps = 77;
    assert_ok(io_model_save(directory, model, DDPM_EMA, dtype, &schedule, &info));
    io_model_info_free(&info);
}

static void model_round_trip(void **state)
{
    (void)state;
    const char *directory = in_folder("model");
    ddpm_model_config config = tiny();
    ddpm_model *model = make_model(&config, 1), *read;
    ddpm_schedule_config schedule;
    io_model_info info;
    static const io_dtype dtypes[] = {IO_F32, IO_F16};
    for (int i = 0; i < 2; i++) { /* the second replaces the first */
        save_tiny(directory, model, dtypes[i]);
        assert_int_equal(count_entries(folder), 1);
        assert_int_equal(count_entries(directory), 4);
        assert_ok(io_model_load(directory, NULL, DDPM_FOR_TRAINING, &read, &schedule, &info));
        assert_same_unet(&read->config.unet, &config.unet);
        assert_true(read->config.label.num_classes == 2 && read->config.label.hidden_dim == 3 &&
                    read->config.label.embedding_dim == 16);
        assert_same_weights(model, DDPM_EMA, read, DDPM_WEIGHT, dtypes[i] == IO_F16);
        assert_same_weights(model, DDPM_EMA, read, DDPM_EMA, dtypes[i] == IO_F16);
        assert_int_equal(schedule.num_train_timesteps, 77);
        assert_int_equal(info.classes, 2);
        assert_string_equal(info.class_name[1], "cyan sphere");
        assert_true(info.height == 8 && info.label_dropout == 0.25 && info.none_class == -1);
        io_model_info_free(&info);
        ddpm_model_free(read);
    }
    assert_ok(io_model_load(directory, NULL, 0, &read, NULL, NULL)); /* the weights come anyway */
    assert_null(read->array[DDPM_EMA]);
    assert_same_weights(model, DDPM_WEIGHT, read, DDPM_WEIGHT, 1);
    ddpm_model_free(read);
    ddpm_model_free(model);
    assert_ok(io_remove_tree(directory));
}

/* A UNet2DModel that diffusers saved, in half precision, alone in its directory. */
static void model_of_diffusers(void **state)
{
    (void)state;
    ddpm_model *model;
    ddpm_schedule_config schedule;
    io_model_info info;
    io_safetensors file;
    assert_ok(io_model_load("tests/vectors/io_unet", NULL, DDPM_FOR_INFERENCE, &model, &schedule, &info));
    assert_int_equal(schedule.num_train_timesteps, 500);
    assert_true(info.classes == 0 && info.height == 8 && info.width == 4);
    assert_ok(io_safetensors_open("tests/vectors/io_unet/diffusion_pytorch_model.safetensors", &file));
    assert_int_equal(file.tensors, model->params);
    const ddpm_tensor *param = ddpm_model_find(model, "down_blocks.1.attentions.0.to_out.0.weight");
    float wanted[64];
    ddpm_real got[64];
    assert_non_null(param);
    assert_int_equal(ddpm_elements(param, 1), 64);
    assert_ok(io_tensor_floats(io_safetensors_find(&file, param->name), wanted));
    assert_ok(ddpm_model_get(model, DDPM_WEIGHT, param, got));
    for (int i = 0; i < 64; i++)
        assert_true((float)got[i] == wanted[i]);
    io_safetensors_close(&file);
    ddpm_model_free(model);
    io_model_info_free(&info);
}

/* Changes the tensors of a model's UNet file: what `edit` leaves of them is written back. */
typedef int (*editor)(io_tensor *tensor, int tensors);
static ddpm_result load_edited(const ddpm_model *model, editor edit, ddpm_model **read)
{
    const char *directory = in_folder("edited"), *path = in_folder("edited/unet/diffusion_pytorch_model.safetensors");
    io_safetensors file;
    save_tiny(directory, model, IO_F32);
    assert_ok(io_safetensors_open(path, &file));
    io_tensor *tensor = calloc((size_t)file.tensors + 1, sizeof *tensor); /* room for one more */
    assert_non_null(tensor);
    memcpy(tensor, file.tensor, (size_t)file.tensors * sizeof *tensor);
    assert_ok(
        io_safetensors_write(path, tensor, edit(tensor, file.tensors), NULL, 0)); /* the mapping keeps the old data */
    free(tensor);
    io_safetensors_close(&file);
    ddpm_result result = io_model_load(directory, NULL, 0, read, NULL, NULL);
    assert_ok(io_remove_tree(directory));
    return result;
}

static io_tensor *named(io_tensor *tensor, int tensors, const char *name)
{
    for (int i = 0; i < tensors; i++)
        if (!strcmp(tensor[i].name, name)) return &tensor[i];
    fail_msg("no tensor '%s'", name);
    return NULL;
}

static int rename_attention(io_tensor *tensor, int tensors)
{
    static char names[64][128];
    static const char *const pairs[][2] = {
        {".to_q.", ".query."}, {".to_k.", ".key."}, {".to_v.", ".value."}, {".to_out.0.", ".proj_attn."}};
    int renamed = 0;
    for (int i = 0; i < tensors; i++)
        for (int k = 0; k < 4; k++) {
            const char *at = strstr(tensor[i].name, pairs[k][0]);
            if (!at) continue;
            assert_true(renamed < 64);
            snprintf(names[renamed], sizeof names[0], "%.*s%s%s", (int)(at - tensor[i].name), tensor[i].name,
                     pairs[k][1], at + strlen(pairs[k][0]));
            tensor[i].name = names[renamed++];
            break;
        }
    assert_true(renamed >= 8); /* 4 weights and 4 biases an attention */
    return tensors;
}

static int leave_one_out(io_tensor *tensor, int tensors)
{
    *named(tensor, tensors, "conv_in.bias") = tensor[tensors - 1];
    return tensors - 1;
}

static int add_one(io_tensor *tensor, int tensors)
{
    tensor[tensors] = *named(tensor, tensors, "conv_in.bias");
    tensor[tensors].name = "conv_in.more";
    return tensors + 1;
}

static int add_old_name(io_tensor *tensor, int tensors)
{
    tensor[tensors] = *named(tensor, tensors, "mid_block.attentions.0.to_q.bias");
    tensor[tensors].name = "mid_block.attentions.0.query.bias";
    return tensors + 1;
}

static int flatten(io_tensor *tensor, int tensors)
{
    io_tensor *weight = named(tensor, tensors, "mid_block.attentions.0.to_q.weight");
    weight->dims = 1;
    weight->shape[0] = (int64_t)weight->elements;
    return tensors;
}

static int transpose(io_tensor *tensor, int tensors)
{
    io_tensor *weight = named(tensor, tensors, "conv_out.weight");
    int64_t first = weight->shape[0];
    weight->shape[0] = weight->shape[1];
    weight->shape[1] = first;
    return tensors;
}

static void edited_weights(void **state)
{
    (void)state;
    ddpm_model_config config = tiny();
    ddpm_model *model = make_model(&config, 2), *read;
    assert_ok(load_edited(model, rename_attention, &read));
    assert_same_weights(model, DDPM_EMA, read, DDPM_WEIGHT, 0);
    ddpm_model_free(read);
    static const struct {
        editor edit;
        ddpm_result code;
        const char *part, *also;
    } rows[] = {
        {leave_one_out, DDPM_ERR_FORMAT, "tensor 'conv_in.bias' is missing (1 in all)", "block_out_channels"},
        {add_one, DDPM_ERR_FORMAT, "tensor 'conv_in.more' has no place", "unet/diffusion_pytorch_model.safetensors: "},
        {add_old_name, DDPM_ERR_FORMAT, "is there under its old name as well", "mid_block.attentions.0."},
        {flatten, DDPM_ERR_SHAPE, "'mid_block.attentions.0.to_q.weight' has shape [64], the config needs [8,8]",
         "(4,8)"},
        {transpose, DDPM_ERR_SHAPE, "'conv_out.weight' has shape [4,3,3,3], the config needs [3,4,3,3]",
         "another config"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ddpm_result result = load_edited(model, rows[i].edit, &read);
        assert_refused(rows[i].part, result, rows[i].code, rows[i].part);
        assert_refused(rows[i].part, result, rows[i].code, rows[i].also);
        assert_null(read);
    }
    ddpm_model_free(model);
}

/* Another UNet's config beside the weights. */
static void contradicting_configs(void **state)
{
    (void)state;
    const char *directory = in_folder("model"), *path = in_folder("model/unet/config.json");
    ddpm_model_config config = tiny();
    ddpm_model *model = make_model(&config, 8), *read;
    save_tiny(directory, model, IO_F32);
    config.unet.layers_per_block = 2;
    assert_ok(io_unet_config_write(path, &config.unet));
    ddpm_result result = io_model_load(directory, NULL, 0, &read, NULL, NULL);
    assert_refused("more layers", result, DDPM_ERR_SHAPE, "tensor 'up_blocks.0.");
    assert_refused("more layers", result, DDPM_ERR_SHAPE, "layers_per_block 2");
    config = tiny();
    config.unet.block_out_channels[1] = 16;
    assert_ok(io_unet_config_write(path, &config.unet));
    result = io_model_load(directory, NULL, 0, &read, NULL, NULL);
    assert_refused("wider", result, DDPM_ERR_SHAPE, ", the config needs [16");
    config = tiny();
    config.unet.mid_block_type = 0;
    assert_ok(io_unet_config_write(path, &config.unet));
    result = io_model_load(directory, NULL, 0, &read, NULL, NULL);
    assert_refused("no mid block", result, DDPM_ERR_FORMAT, "tensor 'mid_block.");
    config = tiny();
    config.unet.time_embedding_dim =
        32; /* the label encoder's 16 do not fit: the core's refusal, with the file's name */
    assert_ok(io_unet_config_write(path, &config.unet));
    result = io_model_load(directory, NULL, 0, &read, NULL, NULL);
    assert_true(result != DDPM_OK && strstr(ddpm_error(), path) && strstr(ddpm_error(), "embedding_dim"));
    assert_null(read);
    ddpm_model_free(model);
    assert_ok(io_remove_tree(directory));
}

/* Files of a model that are broken or not there. */
static void broken_directories(void **state)
{
    (void)state;
    static const struct {
        const char *file, *text; /* written over one of the model's files; NULL: removed */
        ddpm_result code;
        const char *part;
    } rows[] = {
        {"unet/config.json", NULL, DDPM_ERR_FILE, "unet/config.json: cannot open"},
        {"unet/diffusion_pytorch_model.safetensors", NULL, DDPM_ERR_FILE,
         "diffusion_pytorch_model.safetensors: there is no such file"},
        {"unet/diffusion_pytorch_model.safetensors", "hello world", DDPM_ERR_FORMAT, "not a readable safetensors file"},
        {"label_encoder/config.json", NULL, DDPM_ERR_FILE, "label_encoder/config.json: cannot open"},
        {"label_encoder/model.safetensors", NULL, DDPM_ERR_FILE, "label_encoder/model.safetensors: cannot open"},
        {"label_encoder/config.json", "{\"num_classes\":2,\"hidden_dim\":5,\"embedding_dim\":16}", DDPM_ERR_SHAPE,
         "hidden_dim 5"},
        {"label_encoder/config.json", "{\"num_classes\":3,\"hidden_dim\":3,\"embedding_dim\":16}", DDPM_ERR_FORMAT,
         "2 class names"},
        {"scheduler/scheduler_config.json", NULL, DDPM_ERR_FILE, "scheduler_config.json: cannot open"},
        {"scheduler/scheduler_config.json", "{", DDPM_ERR_FORMAT, "scheduler_config.json: not valid JSON"},
        {"model_index.json", "{\"none_class\":2}", DDPM_ERR_FORMAT, "none_class is 2"},
    };
    const char *directory = in_folder("broken");
    ddpm_model_config config = tiny();
    ddpm_model *model = make_model(&config, 3), *read;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char name[100];
        snprintf(name, sizeof name, "broken/%s", rows[i].file);
        save_tiny(directory, model, IO_F32);
        assert_ok(io_remove_tree(in_folder(name)));
        if (rows[i].text) write_text(name, rows[i].text);
        assert_refused(rows[i].part, io_model_load(directory, NULL, 0, &read, NULL, NULL), rows[i].code, rows[i].part);
        assert_null(read);
    }
    ddpm_model_free(model);
    assert_ok(io_remove_tree(directory));
    assert_refused("no directory", io_model_load(directory, NULL, 0, &read, NULL, NULL), DDPM_ERR_FILE,
                   "no such directory");
    assert_refused("empty", io_model_load(folder, NULL, 0, &read, NULL, NULL), DDPM_ERR_FILE, "holds no model");
    assert_refused("a file", io_model_load("tests/vectors/io_dtypes.safetensors", NULL, 0, &read, NULL, NULL),
                   DDPM_ERR_FILE, "is a file");
}

static void saving_refuses(void **state)
{
    (void)state;
    const char *directory = in_folder("model"), *foreign = in_folder("foreign");
    ddpm_model_config config = tiny();
    ddpm_model *model = make_model(&config, 4), *other = make_model(&config, 5), *read;
    ddpm_schedule_config schedule = ddpm_schedule_default();
    io_model_info info = two_classes();
    save_tiny(directory, model, IO_F32);

    limit_file_size(5000); /* less than the weights */
    ddpm_result result = io_model_save(directory, other, DDPM_WEIGHT, IO_F32, &schedule, &info);
    limit_file_size(0);
    assert_refused("full disk", result, DDPM_ERR_FILE, "free some space");

    ddpm_real large = 1e6f;
    ddpm_real *weights = calloc(4 * 27, sizeof *weights);
    assert_non_null(weights);
    weights[5] = large;
    assert_ok(ddpm_model_set(other, DDPM_WEIGHT, ddpm_model_find(other, "conv_in.weight"), weights));
    free(weights);
    result = io_model_save(directory, other, DDPM_WEIGHT, IO_F16, &schedule, &info);
    assert_refused("too large for F16", result, DDPM_ERR_RANGE, "'conv_in.weight' holds 1e+06");
    result = io_model_save(directory, other, DDPM_WEIGHT, IO_I8, &schedule, &info);
    assert_refused("I8", result, DDPM_ERR_ARGUMENT, "accepted: F32, F16");

    info.classes = 1;
    result = io_model_save(directory, other, DDPM_WEIGHT, IO_F32, &schedule, &info);
    assert_refused("one name", result, DDPM_ERR_ARGUMENT, "1 class names");
    info.classes = 2;
    assert_ok(io_make_directory(foreign));
    write_text("foreign/thesis.txt", "x");
    result = io_model_save(foreign, other, DDPM_WEIGHT, IO_F32, &schedule, &info);
    assert_refused("something else there", result, DDPM_ERR_ARGUMENT, "'thesis.txt'");
    assert_holds(in_folder("foreign/thesis.txt"), "x");
    write_text("file", "y");
    assert_refused("a file there", io_model_save(in_folder("file"), other, DDPM_WEIGHT, IO_F32, &schedule, &info),
                   DDPM_ERR_FILE, "file");
    assert_holds(in_folder("file"), "y");

    assert_int_equal(count_entries(folder), 3); /* model, foreign, file: no temporary stays */
    assert_ok(io_model_load(directory, NULL, 0, &read, NULL, NULL));
    assert_same_weights(model, DDPM_EMA, read, DDPM_WEIGHT, 0);
    ddpm_model_free(read);
    ddpm_model_free(model);
    ddpm_model_free(other);
    io_model_info_free(&info);
    assert_ok(io_remove_tree(directory));
    assert_ok(io_remove_tree(foreign));
    assert_ok(io_remove_tree(in_folder("file")));
}

/* An optimiser's moments travel the same way: any array, in and out. */
static void any_array(void **state)
{
    (void)state;
    const char *path = in_folder("moment1.safetensors");
    ddpm_model_config config = tiny();
    ddpm_model *model = make_model(&config, 6), *read = make_model(&config, 7);
    assert_ok(io_weights_save(model, DDPM_WEIGHT, IO_PART_NETWORK, IO_F32, path));
    assert_ok(io_weights_load(read, 1u << DDPM_MOMENT1, IO_PART_NETWORK, path));
    const ddpm_tensor *param = ddpm_model_find(model, "conv_in.weight");
    ddpm_real a[108], b[108];
    assert_ok(ddpm_model_get(model, DDPM_WEIGHT, param, a));
    assert_ok(ddpm_model_get(read, DDPM_MOMENT1, ddpm_model_find(read, "conv_in.weight"), b));
    assert_memory_equal(a, b, sizeof a);
    assert_ok(ddpm_model_get(read, DDPM_WEIGHT, ddpm_model_find(read, "conv_in.weight"), b));
    assert_memory_not_equal(a, b, sizeof a);
    ddpm_model_free(model);
    ddpm_model_free(read);
    assert_ok(io_remove_tree(path));
}

/* FIPS 180-4's examples (NIST's "SHA256.pdf"), the empty message, a million letters, and every length around a block's
 * end against itself in pieces of a file. */
static void hashes(void **state)
{
    (void)state;
    static const struct {
        const char *text, *hash;
    } known[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    io_sha256_text got, again;
    for (int i = 0; i < 3; i++) {
        io_sha256(known[i].text, strlen(known[i].text), got);
        assert_string_equal(got, known[i].hash);
    }
    enum { MILLION = 1000000 };
    char *text = malloc(MILLION);
    assert_non_null(text);
    memset(text, 'a', MILLION);
    io_sha256(text, MILLION, got);
    assert_string_equal(got, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    const char *path = in_folder("hashed");
    assert_int_equal(io_write_file(path, text, MILLION), DDPM_OK);
    assert_int_equal(io_sha256_file(path, again), DDPM_OK);
    assert_string_equal(got, again);
    /* The hash of the 130 hashes of messages of 0 to 129 letters: Python's hashlib. */
    char all[130 * 64];
    for (size_t length = 0; length < 130; length++) {
        io_sha256(text, length, got);
        memcpy(all + 64 * length, got, 64);
    }
    io_sha256(all, sizeof all, got);
    assert_string_equal(got, "c665ed20ef30f158e90c7e921d8182bc0943c4b087a82f64a18d417bcdfadce7");
    free(text);
    assert_int_equal(io_remove_tree(path), DDPM_OK); /* other tests count what lies there */
    assert_int_equal(io_sha256_file(path, got), DDPM_ERR_FILE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hashes),
        cmocka_unit_test(files_round_trip),
        cmocka_unit_test(files_without_a_size),
        cmocka_unit_test(file_errors),
        cmocka_unit_test(unreadable_file),
        cmocka_unit_test(full_disk),
        cmocka_unit_test(directories),
        cmocka_unit_test(halves_decode),
        cmocka_unit_test(halves_encode),
        cmocka_unit_test(every_dtype),
        cmocka_unit_test(truncated),
        cmocka_unit_test(many_tensors),
        cmocka_unit_test(writing_refuses),
        cmocka_unit_test(open_errors),
        cmocka_unit_test(lying_headers),
        cmocka_unit_test(lying_lengths),
        cmocka_unit_test(unet_config_values),
        cmocka_unit_test(unet_config_round_trip),
        cmocka_unit_test(unet_config_refusals),
        cmocka_unit_test(schedule_configs),
        cmocka_unit_test(label_configs),
        cmocka_unit_test(model_infos),
        cmocka_unit_test(model_round_trip),
        cmocka_unit_test(model_of_diffusers),
        cmocka_unit_test(edited_weights),
        cmocka_unit_test(contradicting_configs),
        cmocka_unit_test(broken_directories),
        cmocka_unit_test(saving_refuses),
        cmocka_unit_test(any_array),
    };
    return cmocka_run_group_tests_name("io", tests, set_up, tear_down);
}
