/* io/picture.h - pictures: PNG and JPEG in, PNG out with texts in it, the resize of PIL, the grid of torchvision.
 * A picture is 8 bits a channel, rows from the top, channels interleaved; the network's form is planes of reals in
 * [-1,1]. Nothing here keeps state: every function may run in many threads at once on different pictures.
 *
 * Contents:  1 the picture   2 reading   3 writing, texts   4 resizing   5 to and from reals   6 grids */
#ifndef IO_PICTURE_H
#define IO_PICTURE_H
#include <stddef.h>

#include "ddpm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. The picture ---- */

typedef struct io_picture {
    int width, height, channels; /* channels: 1 gray, 3 RGB */
    unsigned char *pixel;        /* height * width * channels bytes */
} io_picture;

/* The most pixels a picture may have, 2^26 (8192 x 8192): a header that says more is refused before anything is
 * decoded. */
#define IO_PICTURE_MAX_PIXELS (1 << 26)

/* A black picture. DDPM_ERR_ARGUMENT for a size or channels (1, 3) that cannot be, DDPM_ERR_MEMORY. Like all functions
 * below that fill `out`: after a failure *out is all zero, and what it held before is not freed. */
ddpm_result io_picture_create(int width, int height, int channels, io_picture *out);
/* Frees the pixels and zeroes the struct; harmless on one that is all zero. */
void io_picture_free(io_picture *picture);

/* ---- 2. Reading ---- */

/* Reads a PNG or JPEG file as `channels` 3 or 1: PIL's Image.open(path).convert("RGB") or .convert("L").
 * All PNG kinds (palette, 1 to 16 bits, gray, alpha, interlaced) and JPEG (baseline and progressive; gray, YCbCr,
 * CMYK). Alpha is dropped, not blended, as convert does. Of 16 bits the upper 8 count (PIL does so for colour, but
 * clips 16-bit gray to white, which is of no use). L = (19595 R + 38470 G + 7471 B + 2^15) / 2^16 (ITU-R 601-2, PIL's
 * integers). A JPEG's pixels differ from libjpeg's by a few levels: the standard leaves the last bits of the cosine
 * transform open; and in 4:2:2 files stb_image gives the last column but one too much of its right neighbour's colour.
 * DDPM_ERR_FILE: cannot be read. DDPM_ERR_FORMAT: not a picture, cut short, a checksum that does not fit, no sense in
 * it, more than IO_PICTURE_MAX_PIXELS. DDPM_ERR_MEMORY. */
ddpm_result io_picture_read(const char *path, int channels, io_picture *out);
/* The same from memory; `name` is what an error calls it. */
ddpm_result io_picture_decode(const unsigned char *data, size_t size, const char *name, int channels, io_picture *out);

/* ---- 3. Writing, texts ---- */

typedef struct io_text {
    const char *keyword; /* 1 to 79 ASCII characters, no blank at either end or doubled: "seed", "command" */
    const char *text;    /* UTF-8 */
} io_text;

/* Writes a PNG, atomically (io_write_file), with `texts` texts in it: pure ASCII as a tEXt chunk, other UTF-8 as iTXt;
 * bytes that are no UTF-8 go into tEXt and count as Latin-1. PIL shows them as Image.open(path).text.
 * DDPM_ERR_ARGUMENT: an empty picture or a bad keyword. DDPM_ERR_FILE, DDPM_ERR_MEMORY. */
ddpm_result io_picture_write_png(const char *path, const io_picture *picture, const io_text *text, int texts);
/* The same to memory: *png (free() it) and its size. */
ddpm_result io_picture_encode_png(const io_picture *picture, const io_text *text, int texts, unsigned char **png,
                                  size_t *size);

/* The text under `keyword` in a PNG file, as UTF-8 in new memory (free() it), or NULL if there is none: the first one
 * in the file. tEXt and uncompressed iTXt; a compressed one is DDPM_ERR_UNSUPPORTED. DDPM_ERR_FORMAT: not a PNG, or a
 * damaged one. */
ddpm_result io_picture_read_text(const char *path, const char *keyword, char **out);
/* The same from memory. */
ddpm_result io_picture_find_text(const unsigned char *data, size_t size, const char *name, const char *keyword,
                                 char **out);

/* ---- 4. Resizing ---- */

/* PIL's in.resize((width, height), Image.BILINEAR), and so torchvision's Resize(antialias=True) on PIL pictures: a
 * triangle filter that widens when it shrinks a picture. Aspect is squeezed. Equal to the last bit to Pillow 13; older
 * ones always shrink the width first, also where only the height shrinks, and differ there by at most 1.
 * DDPM_ERR_ARGUMENT, DDPM_ERR_MEMORY. */
ddpm_result io_picture_resize(const io_picture *in, int width, int height, io_picture *out);

/* torchvision's Resize(N) and CenterCrop(N) for width = height = N: the picture is resized to the smallest size of its
 * aspect (rounded down) that covers width x height, and the middle is taken. DDPM_ERR_ARGUMENT (also: an aspect so
 * extreme that it would pass IO_PICTURE_MAX_PIXELS), DDPM_ERR_MEMORY. */
ddpm_result io_picture_resize_crop(const io_picture *in, int width, int height, io_picture *out);

/* ---- 5. To and from reals ---- */

/* out (channels, height, width) = (v / 255 - 0.5) / 0.5: torchvision's ToTensor and Normalize(0.5, 0.5). */
void io_picture_to_real(const io_picture *in, ddpm_real *out);
/* x (channels, height, width) in [-1,1] -> bytes: floor(255 clamp(x / 2 + 0.5, 0, 1) + 0.5), as diffusers' pipelines
 * and torchvision's save_image. NaN becomes 0. DDPM_ERR_ARGUMENT, DDPM_ERR_MEMORY. */
ddpm_result io_picture_from_real(const ddpm_real *chw, int channels, int height, int width, io_picture *out);

/* ---- 6. Grids ---- */

/* torchvision.utils.make_grid: pictures of one size in rows of `per_row` (8), `padding` (2) black pixels around and
 * between them. Fewer pictures than per_row make one narrower row; a single picture is returned as it is, without
 * padding. The grid has 3 channels; gray is repeated. DDPM_ERR_SHAPE: sizes that differ; DDPM_ERR_ARGUMENT,
 * DDPM_ERR_MEMORY. */
ddpm_result io_make_grid(const io_picture *picture, int count, int per_row, int padding, io_picture *out);

/* The same from reals (count, channels, height, width). normalize 0: values are in [-1,1], as in io_picture_from_real.
 * normalize 1: make_grid(normalize=True): the least value of all becomes black and the largest white,
 * (x - low) / max(high - low, 1e-5). */
ddpm_result io_make_grid_real(const ddpm_real *nchw, int count, int channels, int height, int width, int per_row,
                              int padding, int normalize, io_picture *out);

#ifdef __cplusplus
}
#endif
#endif /* IO_PICTURE_H */
