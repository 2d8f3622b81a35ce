/* io/safetensors.h - tensors in a .safetensors file, in and out: 8 bytes with the header's length (little-endian), a
 * JSON header {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {"key": "text"}}, then the
 * data. Nothing in a file is believed: lengths, offsets, shapes and names are checked against each other and the
 * file's size.
 *
 * Source: github.com/huggingface/safetensors, README "Format": names are unique, the data has no holes and no overlaps,
 * the header is at most 100 MB. Hosts are little-endian.
 *
 * Contents:  1 tensors   2 reading   3 writing   4 numbers of 16 bits */
#ifndef IO_SAFETENSORS_H
#define IO_SAFETENSORS_H
#include <stddef.h>
#include <stdint.h>

#include "ddpm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Tensors ---- */

typedef enum io_dtype { IO_F64, IO_F32, IO_F16, IO_BF16, IO_I64, IO_I32, IO_I16, IO_I8, IO_U8, IO_BOOL } io_dtype;
#define IO_MAX_DIMS 8

typedef struct io_tensor {
    const char *name;
    io_dtype dtype;
    int dims;                   /* 0: a scalar */
    int64_t shape[IO_MAX_DIMS]; /* slowest first, as torch prints it */
    size_t elements;            /* product of shape; 1 for a scalar */
    const unsigned char *data;  /* elements * io_dtype_size(dtype) bytes, little-endian, not necessarily aligned */
} io_tensor;

typedef struct io_pair { /* of __metadata__ */
    const char *key, *value;
} io_pair;

const char *io_dtype_name(io_dtype dtype); /* "F32" */
size_t io_dtype_size(io_dtype dtype);      /* bytes of an element */
/* "[512,256]" into `out`, for messages. Returns `out`; 128 characters hold any shape that fits a file, else it is
 * cut. */
const char *io_shape_text(int dims, const int64_t *shape, char *out, size_t size);

/* ---- 2. Reading ---- */

typedef struct io_safetensors {
    io_tensor *tensor; /* sorted by name */
    int tensors;
    io_pair *metadata; /* in the file's order */
    int pairs;
    char *path;
    struct cJSON *header; /* private: owns the names and the metadata */
    void *mapping;        /* private: the file in memory; NULL after io_safetensors_parse */
    size_t mapped;
} io_safetensors;

/* Maps the file into memory and checks its header; tensors' data stays in the file until it is read.
 * DDPM_ERR_FILE, DDPM_ERR_MEMORY; DDPM_ERR_FORMAT names the file, the tensor and what is wrong. On failure *out is
 * empty, and io_safetensors_close on it is harmless. */
ddpm_result io_safetensors_open(const char *path, io_safetensors *out);
/* The same on bytes in memory, which must outlive *out; `name` stands for the path. */
ddpm_result io_safetensors_parse(const unsigned char *bytes, size_t size, const char *name, io_safetensors *out);
void io_safetensors_close(io_safetensors *file);

const io_tensor *io_safetensors_find(const io_safetensors *file, const char *name); /* NULL if there is none */

/* All elements, converted with rounding to nearest even; infinities and NaN stay what they are, a double too large
 * for a float becomes an infinity. BOOL gives 0 or 1. out has tensor->elements entries. */
ddpm_result io_tensor_floats(const io_tensor *tensor, float *out);
ddpm_result io_tensor_doubles(const io_tensor *tensor, double *out);

/* ---- 3. Writing ---- */

/* Writes the tensors (any order, unique names; name, dtype, dims, shape and data are read, elements is not) and `pairs`
 * metadata texts, atomically (io_writer). Header keys are sorted by name, the header is padded to 8 bytes, the data is
 * contiguous with the widest dtypes first, so every tensor is aligned to its elements.
 * DDPM_ERR_ARGUMENT: a name twice or empty or "__metadata__", a negative size; DDPM_ERR_FILE, DDPM_ERR_MEMORY. */
ddpm_result io_safetensors_write(const char *path, const io_tensor *tensor, int tensors, const io_pair *metadata,
                                 int pairs);

/* The same without all data in memory at once: for each tensor, in the file's order, `source` sets *bytes to its data,
 * which need only live until the next call. Anything but DDPM_OK abandons the file. */
typedef ddpm_result (*io_tensor_source)(void *user, const io_tensor *tensor, const void **bytes);
ddpm_result io_safetensors_stream(const char *path, const io_tensor *tensor, int tensors, const io_pair *metadata,
                                  int pairs, io_tensor_source source, void *user);

/* ---- 4. Numbers of 16 bits ---- */

/* IEEE binary16: 1 sign, 5 exponent, 10 mantissa bits. To half: round to nearest even, beyond 65504 (from 65520 on) an
 * infinity, NaN stays NaN. To float: exact, subnormals too. */
uint16_t io_half_from_float(float value);
float io_float_from_half(uint16_t half);
/* bfloat16 is the upper half of a float: exact. */
float io_float_from_bfloat(uint16_t bfloat);

#ifdef __cplusplus
}
#endif
#endif /* IO_SAFETENSORS_H */
