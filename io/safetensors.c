/* io/safetensors.c - see io/safetensors.h.
 *
 * Contents:  1 numbers of 16 bits   2 dtypes and shapes   3 the header, checked   4 files   5 conversion   6 writing */
#include "io/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/file.h"
#include "io/json.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors data is little-endian; this host is not"
#endif

enum { MAX_HEADER = 100 * 1000 * 1000 };           /* the reference implementation's limit */
static const int64_t MAX_EXACT = INT64_C(1) << 53; /* cJSON's numbers are doubles */

/* ---- 1. Numbers of 16 bits ------------------------------------------------------------------------------------- */

static float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t io_half_from_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) /* NaN: the payload's upper bits, and quiet so that it cannot become an infinity */
        return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) /* 65520, halfway between 65504 and 65536: rounds to infinity */
        return (uint16_t)(sign | 0x7c00u);
    /* A half's unit in the last place is `shift` bits above the float's. Below 2^-14 halves are subnormal: the
     * mantissa with its implicit one moves right one bit more for each exponent, and all of it is rounded away below
     * 2^-25. */
    uint32_t exponent = magnitude >> 23, mantissa, shift;
    if (exponent >= 113) { /* 2^-14 and above; the exponent field stays in front, so a carry moves into it */
        mantissa = magnitude - (UINT32_C(112) << 23);
        shift = 13;
    } else if (exponent >= 102) {
        mantissa = (magnitude & 0x7fffffu) | 0x800000u;
        shift = 126 - exponent;
    } else
        return (uint16_t)sign;
    uint32_t kept = mantissa >> shift, lost = mantissa & ((UINT32_C(1) << shift) - 1),
             half = UINT32_C(1) << (shift - 1);
    if (lost > half || (lost == half && (kept & 1))) kept++;
    return (uint16_t)(sign | kept);
}

float io_float_from_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31u, mantissa = half & 0x3ffu;
    if (exponent == 31) return float_of_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float subnormal = (float)mantissa * 0x1p-24f; /* exact: 10 bits times a power of two */
    return sign ? -subnormal : subnormal;
}

float io_float_from_bfloat(uint16_t bfloat)
{
    return float_of_bits((uint32_t)bfloat << 16);
}

/* ---- 2. Dtypes and shapes -------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    [IO_F64] = {"F64", 8}, [IO_F32] = {"F32", 4},   [IO_F16] = {"F16", 2}, [IO_BF16] = {"BF16", 2},
    [IO_I64] = {"I64", 8}, [IO_I32] = {"I32", 4},   [IO_I16] = {"I16", 2}, [IO_I8] = {"I8", 1},
    [IO_U8] = {"U8", 1},   [IO_BOOL] = {"BOOL", 1},
};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

const char *io_dtype_name(io_dtype dtype)
{
    return dtypes[dtype].name;
}

size_t io_dtype_size(io_dtype dtype)
{
    return dtypes[dtype].size;
}

const char *io_shape_text(int dims, const int64_t *shape, char *out, size_t size)
{
    size_t used = 0;
    snprintf(out, size, "[");
    for (int i = 0; i <= dims && (used = strlen(out)) + 1 < size; i++) {
        if (i == dims)
            snprintf(out + used, size - used, "]");
        else
            snprintf(out + used, size - used, "%s%lld", i ? "," : "", (long long)shape[i]);
    }
    return out;
}

/* Number of elements and of bytes; 0 if they overflow. Everything that exists stays far below SIZE_MAX / 2. */
static int measure(const io_tensor *tensor, size_t *elements, size_t *bytes)
{
    size_t limit = SIZE_MAX / 2 / io_dtype_size(tensor->dtype), count = 1;
    for (int i = 0; i < tensor->dims; i++) {
        uint64_t side = (uint64_t)tensor->shape[i];
        if (side && count > limit / side) return 0;
        count *= (size_t)side;
    }
    *elements = count;
    *bytes = count * io_dtype_size(tensor->dtype);
    return 1;
}

/* ---- 3. The header, checked ------------------------------------------------------------------------------------ */

static ddpm_result no_memory(const char *path)
{
    ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for its header\n      hint: close other programs", path);
    return DDPM_ERR_MEMORY;
}

static ddpm_result bad_file(const io_safetensors *file, const char *what)
{
    return ddpm_fail(DDPM_ERR_FORMAT,
                     "%s: not a readable safetensors file: %s\n"
                     "      hint: was it downloaded or copied completely, and is it safetensors at all?",
                     file->path, what);
}

static ddpm_result bad_tensor(const io_safetensors *file, const char *name, const char *what)
{
    return ddpm_fail(DDPM_ERR_FORMAT,
                     "%s: tensor '%.200s': %s\n"
                     "      hint: the file's header is damaged or not written by a safetensors library",
                     file->path, name, what);
}

typedef struct extent { /* where a tensor's data lies, from the end of the header */
    uint64_t begin, end;
    const char *name;
} extent;

static int read_dtype(const cJSON *value, io_dtype *out)
{
    for (int i = 0; cJSON_IsString(value) && i < DTYPES; i++)
        if (!strcmp(value->valuestring, dtypes[i].name)) {
            *out = (io_dtype)i;
            return 1;
        }
    return 0;
}

/* The entries of `value`, an array of at most `room` whole numbers >= 0; their number, or -1. */
static int read_numbers(const cJSON *value, int room, int64_t *out)
{
    if (!cJSON_IsArray(value)) return -1;
    int count = 0;
    for (const cJSON *item = value->child; item; item = item->next)
        if (count == room || !io_json_integer(item, 0, MAX_EXACT, &out[count++])) return -1;
    return count;
}

static ddpm_result bad_field(const io_safetensors *file, const io_tensor *tensor, const cJSON *field,
                             const char *accepted)
{
    char text[96];
    return ddpm_fail(
        DDPM_ERR_FORMAT, "%s: tensor '%.200s': %s is %s; accepted: %s\n      hint: %s", file->path, tensor->name,
        field->string, io_json_text(field, text, sizeof text), accepted,
        "the file's header is damaged, or the tensor has to be converted in Python first (tensor.float())");
}

/* One member of the header: name and {"dtype", "shape", "data_offsets"}, each once and nothing else. */
static ddpm_result read_tensor(const io_safetensors *file, const cJSON *item, io_tensor *tensor, extent *where)
{
    enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4 };
    int seen = 0;
    int64_t offset[2] = {0};
    tensor->name = item->string;
    *where = (extent){0};
    if (!cJSON_IsObject(item)) return bad_tensor(file, tensor->name, "its entry in the header is not an object");
    for (const cJSON *field = item->child; field; field = field->next) {
        int which = !strcmp(field->string, "dtype")          ? DTYPE
                    : !strcmp(field->string, "shape")        ? SHAPE
                    : !strcmp(field->string, "data_offsets") ? OFFSETS
                                                             : 0;
        if (!which || seen & which)
            return ddpm_fail(DDPM_ERR_FORMAT, "%s: tensor '%.200s': field '%.60s' is %s\n      hint: %s", file->path,
                             tensor->name, field->string, which ? "there twice" : "unknown",
                             "a tensor has a dtype, a shape and data_offsets; the file's header is damaged");
        seen |= which;
        if (which == DTYPE && !read_dtype(field, &tensor->dtype))
            return bad_field(file, tensor, field, "F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL");
        if (which == SHAPE && (tensor->dims = read_numbers(field, IO_MAX_DIMS, tensor->shape)) < 0)
            return bad_field(file, tensor, field, "a list of at most 8 whole numbers, none negative");
        if (which == OFFSETS && (read_numbers(field, 2, offset) != 2 || offset[0] > offset[1]))
            return bad_field(file, tensor, field, "two whole numbers, 0 <= begin <= end");
    }
    if (seen != (DTYPE | SHAPE | OFFSETS))
        return bad_tensor(file, tensor->name, "dtype, shape or data_offsets is missing");
    *where = (extent){(uint64_t)offset[0], (uint64_t)offset[1], tensor->name};
    return DDPM_OK;
}

/* The data a tensor claims must be there, and be as long as its shape says. */
static ddpm_result check_extent(const io_safetensors *file, io_tensor *tensor, const extent *where, size_t data_size)
{
    char shape[128];
    size_t bytes;
    io_shape_text(tensor->dims, tensor->shape, shape, sizeof shape);
    if (!measure(tensor, &tensor->elements, &bytes))
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: tensor '%.200s': shape %s has more elements than memory has addresses\n      hint: %s",
                         file->path, tensor->name, shape, "the file's header is damaged");
    if (where->end - where->begin != bytes)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: tensor '%.200s': shape %s of %s needs %zu bytes, data_offsets give it %llu\n"
                         "      hint: the file's header is damaged",
                         file->path, tensor->name, shape, io_dtype_name(tensor->dtype), bytes,
                         (unsigned long long)(where->end - where->begin));
    if (where->end > data_size)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: tensor '%.200s': data_offsets end at byte %llu, but the file holds %zu bytes of data\n"
                         "      hint: the file is truncated: download or copy it again",
                         file->path, tensor->name, (unsigned long long)where->end, data_size);
    return DDPM_OK;
}

static int by_begin(const void *a, const void *b)
{
    const extent *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const io_tensor *)a)->name, ((const io_tensor *)b)->name);
}

/* Sorted, the extents must cover the data from first to last byte, each once. */
static ddpm_result check_cover(const io_safetensors *file, extent *where, size_t data_size)
{
    uint64_t covered = 0;
    qsort(where, (size_t)file->tensors, sizeof *where, by_begin);
    for (int i = 0; i < file->tensors; i++) {
        if (where[i].begin < covered)
            return ddpm_fail(DDPM_ERR_FORMAT, "%s: tensor '%.200s': its data overlaps that of '%.200s'\n      hint: %s",
                             file->path, where[i].name, where[i - 1].name, "the file's header is damaged");
        if (where[i].begin > covered)
            return bad_tensor(file, where[i].name, "bytes before its data belong to no tensor");
        covered = where[i].end;
    }
    return covered == data_size ? DDPM_OK : bad_file(file, "bytes at its end belong to no tensor");
}

static ddpm_result read_metadata(io_safetensors *file, const cJSON *object)
{
    if (!cJSON_IsObject(object) || file->metadata)
        return bad_file(file, "__metadata__ is not an object of texts, or there twice");
    file->metadata = calloc((size_t)cJSON_GetArraySize(object) + 1, sizeof *file->metadata);
    if (!file->metadata) return no_memory(file->path);
    for (const cJSON *item = object->child; item; item = item->next) {
        if (!cJSON_IsString(item)) return bad_file(file, "__metadata__ holds something that is not a text");
        file->metadata[file->pairs++] = (io_pair){item->string, item->valuestring};
    }
    return DDPM_OK;
}

static ddpm_result read_header(io_safetensors *file, const unsigned char *data, size_t data_size)
{
    size_t room = (size_t)cJSON_GetArraySize(file->header);
    file->tensor = calloc(room + 1, sizeof *file->tensor);
    extent *where = malloc((room + 1) * sizeof *where);
    ddpm_result result = DDPM_OK;
    if (!file->tensor || !where) result = no_memory(file->path);
    for (const cJSON *item = file->header->child; item && !result; item = item->next) {
        if (!strcmp(item->string, "__metadata__")) {
            result = read_metadata(file, item);
            continue;
        }
        io_tensor *tensor = &file->tensor[file->tensors];
        extent *extents = &where[file->tensors++];
        result = read_tensor(file, item, tensor, extents);
        if (!result) result = check_extent(file, tensor, extents, data_size);
        if (!result) tensor->data = data + extents->begin;
    }
    if (!result) {
        qsort(file->tensor, (size_t)file->tensors, sizeof *file->tensor, by_name);
        for (int i = 1; i < file->tensors && !result; i++)
            if (!strcmp(file->tensor[i - 1].name, file->tensor[i].name))
                result = bad_tensor(file, file->tensor[i].name, "the name is there twice");
    }
    if (!result) result = check_cover(file, where, data_size);
    free(where);
    return result;
}

/* ---- 4. Files -------------------------------------------------------------------------------------------------- */

/* Splits the file into length, header and data, and parses the header from a copy that ends in a 0 byte. */
static ddpm_result parse(io_safetensors *file, const unsigned char *bytes, size_t size)
{
    uint64_t length;
    char text[128];
    if (size < sizeof length) return bad_file(file, "it is shorter than the 8 bytes of its header's length");
    memcpy(&length, bytes, sizeof length);
    if (length > MAX_HEADER || length > size - sizeof length) {
        snprintf(text, sizeof text, "its header claims %llu bytes, %s", (unsigned long long)length,
                 length > MAX_HEADER ? "the limit is 100000000" : "the file ends before");
        return bad_file(file, text);
    }
    const unsigned char *start = bytes + sizeof length;
    char *copy = malloc((size_t)length + 1);
    if (!copy) return no_memory(file->path);
    memcpy(copy, start, (size_t)length);
    copy[length] = 0;
    file->header = io_json_parse(copy, (size_t)length, file->path);
    free(copy);
    if (!cJSON_IsObject(file->header)) return bad_file(file, "its header is not a JSON object");
    return read_header(file, start + length, size - sizeof length - (size_t)length);
}

static ddpm_result begin(io_safetensors *file, const char *path)
{
    *file = (io_safetensors){0};
    size_t size = strlen(path) + 1;
    file->path = malloc(size);
    if (!file->path) return no_memory(path);
    memcpy(file->path, path, size);
    return DDPM_OK;
}

ddpm_result io_safetensors_parse(const unsigned char *bytes, size_t size, const char *name, io_safetensors *out)
{
    ddpm_result result = begin(out, name);
    if (!result) result = parse(out, bytes, size);
    if (result) io_safetensors_close(out);
    return result;
}

/* Maps the whole file, privately and read-only: pages come from the disk when tensors are read, and no copy is held. */
static ddpm_result map(io_safetensors *file)
{
    const char *action = "open";
    struct stat status;
    int descriptor = open(file->path, O_RDONLY | O_CLOEXEC), failed = descriptor < 0 || fstat(descriptor, &status);
    if (!failed && !S_ISREG(status.st_mode)) {
        close(descriptor);
        return ddpm_fail(DDPM_ERR_FILE, "%s: cannot read: %s\n      hint: name a .safetensors file", file->path,
                         S_ISDIR(status.st_mode) ? "it is a directory" : "it is not a regular file");
    }
    if (!failed && (uintmax_t)status.st_size > SIZE_MAX / 2) {
        errno = EFBIG;
        failed = 1;
    }
    if (!failed && status.st_size > 0) { /* an empty file cannot be mapped; parse() says what is wrong with it */
        action = "read";
        void *mapping = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        failed = mapping == MAP_FAILED;
        if (!failed) {
            file->mapping = mapping;
            file->mapped = (size_t)status.st_size;
        }
    }
    ddpm_result result = DDPM_OK;
    if (failed)
        result = ddpm_fail(errno == ENOMEM ? DDPM_ERR_MEMORY : DDPM_ERR_FILE,
                           "%s: cannot %s: %s\n      hint: check the %s", file->path, action, strerror(errno),
                           errno == ENOENT ? "spelling of the path" : "file's permissions (ls -l)");
    if (descriptor >= 0) close(descriptor);
    return result;
}

ddpm_result io_safetensors_open(const char *path, io_safetensors *out)
{
    ddpm_result result = begin(out, path);
    if (!result) result = map(out);
    if (!result) result = parse(out, out->mapping, out->mapped);
    if (result) io_safetensors_close(out);
    return result;
}

void io_safetensors_close(io_safetensors *file)
{
    if (file->mapping) munmap(file->mapping, file->mapped);
    cJSON_Delete(file->header);
    free(file->tensor);
    free(file->metadata);
    free(file->path);
    *file = (io_safetensors){0};
}

static int name_against_tensor(const void *name, const void *tensor)
{
    return strcmp(name, ((const io_tensor *)tensor)->name);
}

const io_tensor *io_safetensors_find(const io_safetensors *file, const char *name)
{
    if (!file->tensors) return NULL;
    return bsearch(name, file->tensor, (size_t)file->tensors, sizeof *file->tensor, name_against_tensor);
}

/* ---- 5. Conversion --------------------------------------------------------------------------------------------- */

/* out[i] = element i as `real` (float or double). Data may lie at any address, hence memcpy, which compiles to a
 * load. */
#define CONVERT(type, expression)                                                                                      \
    for (size_t i = 0; i < count; i++) {                                                                               \
        type x;                                                                                                        \
        memcpy(&x, data + i * sizeof x, sizeof x);                                                                     \
        out[i] = (expression);                                                                                         \
    }                                                                                                                  \
    break
#define CONVERT_ALL(real)                                                                                              \
    const unsigned char *data = tensor->data;                                                                          \
    size_t count = tensor->elements;                                                                                   \
    switch (tensor->dtype) {                                                                                           \
    case IO_F64: CONVERT(double, (real)x);                                                                             \
    case IO_F32: CONVERT(float, x);                                                                                    \
    case IO_F16: CONVERT(uint16_t, io_float_from_half(x));                                                             \
    case IO_BF16: CONVERT(uint16_t, io_float_from_bfloat(x));                                                          \
    case IO_I64: CONVERT(int64_t, (real)x);                                                                            \
    case IO_I32: CONVERT(int32_t, (real)x);                                                                            \
    case IO_I16: CONVERT(int16_t, x);                                                                                  \
    case IO_I8: CONVERT(int8_t, x);                                                                                    \
    case IO_U8: CONVERT(uint8_t, x);                                                                                   \
    case IO_BOOL: CONVERT(uint8_t, x != 0);                                                                            \
    default: return ddpm_fail(DDPM_ERR_ARGUMENT, "tensor '%s' has no dtype\n      hint: set it", tensor->name);        \
    }                                                                                                                  \
    return DDPM_OK

ddpm_result io_tensor_floats(const io_tensor *tensor, float *out)
{
    CONVERT_ALL(float);
}

ddpm_result io_tensor_doubles(const io_tensor *tensor, double *out)
{
    CONVERT_ALL(double);
}

/* ---- 6. Writing ------------------------------------------------------------------------------------------------ */

typedef struct placed { /* a tensor and where its data goes, from the end of the header */
    const io_tensor *tensor;
    uint64_t offset;
    size_t bytes;
} placed;

static int placed_by_name(const void *a, const void *b)
{
    return by_name(((const placed *)a)->tensor, ((const placed *)b)->tensor);
}

/* Widest elements first, then by name: from an aligned start every tensor is then aligned to its own elements. */
static int placed_by_width(const void *a, const void *b)
{
    size_t x = io_dtype_size(((const placed *)a)->tensor->dtype), y = io_dtype_size(((const placed *)b)->tensor->dtype);
    return x != y ? (x > y ? -1 : 1) : placed_by_name(a, b);
}

static ddpm_result check_tensor(const char *path, const io_tensor *tensor, size_t *bytes)
{
    size_t elements;
    int fits = tensor->name && *tensor->name && strcmp(tensor->name, "__metadata__") && (int)tensor->dtype >= 0 &&
               (int)tensor->dtype < DTYPES && tensor->dims >= 0 && tensor->dims <= IO_MAX_DIMS;
    for (int i = 0; fits && i < tensor->dims; i++)
        fits = tensor->shape[i] >= 0;
    if (!fits || !measure(tensor, &elements, bytes))
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: tensor '%s' cannot be written: its name, dtype or shape is not one\n"
                         "      hint: names are not empty, sizes not negative, at most %d dimensions",
                         path, tensor->name ? tensor->name : "", IO_MAX_DIMS);
    return DDPM_OK;
}

/* Gives each tensor its place; leaves `place` sorted by name, so that a name that occurs twice stands beside itself. */
static ddpm_result place_tensors(const char *path, const io_tensor *tensor, int tensors, placed *place)
{
    uint64_t offset = 0;
    for (int i = 0; i < tensors; i++) {
        place[i].tensor = &tensor[i];
        ddpm_result result = check_tensor(path, &tensor[i], &place[i].bytes);
        if (result) return result;
    }
    qsort(place, (size_t)tensors, sizeof *place, placed_by_width);
    for (int i = 0; i < tensors; i++) {
        place[i].offset = offset;
        offset += place[i].bytes;
    }
    qsort(place, (size_t)tensors, sizeof *place, placed_by_name);
    for (int i = 1; i < tensors; i++)
        if (!placed_by_name(&place[i - 1], &place[i]))
            return ddpm_fail(DDPM_ERR_ARGUMENT,
                             "%s: two tensors are named '%s'\n      hint: names in a file are unique", path,
                             place[i].tensor->name);
    return DDPM_OK;
}

/* Adds a tensor to the header's tree; 0 without memory. */
static int add_entry(cJSON *header, const placed *place)
{
    const io_tensor *tensor = place->tensor;
    cJSON *entry = cJSON_AddObjectToObject(header, tensor->name);
    cJSON *dtype = entry ? cJSON_AddStringToObject(entry, "dtype", io_dtype_name(tensor->dtype)) : NULL;
    cJSON *shape = dtype ? cJSON_AddArrayToObject(entry, "shape") : NULL;
    cJSON *range = shape ? cJSON_AddArrayToObject(entry, "data_offsets") : NULL;
    int added = range != NULL;
    for (int i = 0; added && i < tensor->dims; i++)
        added = cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)tensor->shape[i]));
    return added && cJSON_AddItemToArray(range, cJSON_CreateNumber((double)place->offset)) &&
           cJSON_AddItemToArray(range, cJSON_CreateNumber((double)(place->offset + place->bytes)));
}

/* The header's text, malloc'ed by cJSON; NULL without memory. */
static char *header_text(const placed *place, int tensors, const io_pair *metadata, int pairs)
{
    cJSON *header = cJSON_CreateObject(), *texts = NULL;
    int made = header && (!pairs || (texts = cJSON_AddObjectToObject(header, "__metadata__")));
    for (int i = 0; made && i < pairs; i++)
        made = cJSON_AddStringToObject(texts, metadata[i].key, metadata[i].value) != NULL;
    for (int i = 0; made && i < tensors; i++)
        made = add_entry(header, &place[i]);
    char *text = made ? cJSON_PrintUnformatted(header) : NULL;
    cJSON_Delete(header);
    return text;
}

static ddpm_result put_header(io_writer *writer, const char *path, const char *text)
{
    size_t used = strlen(text), padding = -used % 8;
    uint64_t length = used + padding;
    if (length > MAX_HEADER)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%s: its header would be over 100 MB\n      hint: write several files",
                         path);
    ddpm_result result = io_writer_put(writer, &length, sizeof length);
    if (!result) result = io_writer_put(writer, text, used);
    if (!result) result = io_writer_put(writer, "        ", padding);
    return result;
}

static ddpm_result put_data(io_writer *writer, const placed *place, int tensors, io_tensor_source source, void *user)
{
    for (int i = 0; i < tensors; i++) {
        const void *bytes = place[i].tensor->data;
        ddpm_result result = source ? source(user, place[i].tensor, &bytes) : DDPM_OK;
        if (!result) result = io_writer_put(writer, bytes, place[i].bytes);
        if (result) return result;
    }
    return DDPM_OK;
}

ddpm_result io_safetensors_stream(const char *path, const io_tensor *tensor, int tensors, const io_pair *metadata,
                                  int pairs, io_tensor_source source, void *user)
{
    io_writer writer = {0};
    char *text = NULL;
    placed *place = malloc(((size_t)tensors + 1) * sizeof *place);
    ddpm_result result = place ? place_tensors(path, tensor, tensors, place) : no_memory(path);
    if (!result && !(text = header_text(place, tensors, metadata, pairs))) result = no_memory(path);
    if (!result) result = io_writer_open(&writer, path);
    if (!result) result = put_header(&writer, path, text);
    if (!result) {
        qsort(place, (size_t)tensors, sizeof *place, placed_by_width); /* back to the data's order */
        result = put_data(&writer, place, tensors, source, user);
    }
    if (!result) result = io_writer_commit(&writer);
    io_writer_abandon(&writer);
    cJSON_free(text);
    free(place);
    return result;
}

ddpm_result io_safetensors_write(const char *path, const io_tensor *tensor, int tensors, const io_pair *metadata,
                                 int pairs)
{
    return io_safetensors_stream(path, tensor, tensors, metadata, pairs, NULL, NULL);
}
