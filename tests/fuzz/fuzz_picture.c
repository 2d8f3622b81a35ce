/* tests/fuzz/fuzz_picture.c - any bytes as a picture file: decoding and the walk over PNG chunks may refuse them, but
 * must stay within their memory, and a picture that comes out must be whole. Checksums are made right first, or nothing
 * would get past them. With FUZZ_STANDALONE it replays the pictures in tests/vectors/picture and a fixed series of
 * changes to each.
 *
 * Contents:  1 the target   2 the standalone program */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/picture.h"
#include "tests/fuzz/standalone.h"

/* ---- 1. The target ---- */

static uint32_t read_u32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Rewrites the checksum of every chunk of a PNG that is whole. */
static void repair_checksums(uint8_t *data, size_t size)
{
    if (size < 8 || data[0] != 137) return;
    for (size_t at = 8; size - at >= 12 && read_u32(data + at) <= size - at - 12; at += read_u32(data + at) + 12) {
        const size_t end = at + 8 + read_u32(data + at);
        uint32_t crc = 0xFFFFFFFFu;
        for (size_t i = at + 4; i < end; i++) {
            crc ^= data[i];
            for (int bit = 0; bit < 8; bit++)
                crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        }
        for (int i = 0; i < 4; i++)
            data[end + (size_t)i] = (uint8_t)(~crc >> (24 - 8 * i));
    }
}

/* Does a header, or what could be one, ask for more than 2^18 pixels? Right, but too slow to do a million times. */
static int is_large(const uint8_t *data, size_t size)
{
    if (size >= 24 && data[0] == 137) return (uint64_t)read_u32(data + 16) * read_u32(data + 20) > 1 << 18;
    for (size_t i = 0; i + 9 <= size; i++)
        if (data[i] == 0xFF && data[i + 1] >= 0xC0 && data[i + 1] <= 0xC2 &&
            (read_u32(data + i + 5) >> 16) * (read_u32(data + i + 5) & 0xFFFF) > 1 << 18)
            return 1;
    return 0;
}

/* Reads every pixel, so that the sanitizer sees whether it is there. */
static void look_at(io_picture *picture)
{
    unsigned sum = 0;
    for (int i = 0; i < picture->width * picture->height * picture->channels; i++)
        sum += picture->pixel[i];
    io_picture small;
    if (!io_picture_resize(picture, 1 + (int)(sum % 9), 7, &small)) io_picture_free(&small);
    io_picture_free(picture);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const keywords[] = {"seed", "Title", "Author", "packed"};
    if (size == 0 || is_large(data, size)) return 0;
    uint8_t *copy = malloc(size);
    if (!copy) return 0;
    memcpy(copy, data, size);
    repair_checksums(copy, size);
    io_picture picture;
    if (!io_picture_decode(copy, size, "fuzz", size % 2 ? 1 : 3, &picture)) look_at(&picture);
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++) {
        char *text;
        if (!io_picture_find_text(copy, size, "fuzz", keywords[i], &text)) free(text);
    }
    free(copy);
    return 0;
}

/* ---- 2. The standalone program ---- */

#ifdef FUZZ_STANDALONE
int main(void)
{
    static const char *const kinds[] = {"rgb8.png",
                                        "rgb16_interlaced.png",
                                        "palette4_short.png",
                                        "palette1_interlaced.png",
                                        "gray2.png",
                                        "graya16.png",
                                        "rgba8_interlaced.png",
                                        "gray16.png",
                                        "texts.png",
                                        "gray.jpg",
                                        "rgb444.jpg",
                                        "rgb422.jpg",
                                        "rgb420.jpg",
                                        "progressive.jpg",
                                        "progressive_gray.jpg",
                                        "restart.jpg",
                                        "cmyk.jpg"};
    enum { SEEDS = sizeof kinds / sizeof *kinds };
    fuzz_seed seed[SEEDS] = {0};
    unsigned char *data[SEEDS] = {0};
    int failed = 0;
    for (int i = 0; i < SEEDS && !failed; i++) {
        char path[128];
        snprintf(path, sizeof path, "tests/vectors/picture/%s", kinds[i]);
        failed = io_read_file(path, &data[i], &seed[i].size) != DDPM_OK;
        if (failed) fprintf(stderr, "%s\n", ddpm_error());
        seed[i].data = data[i];
    }
    failed = failed || fuzz_standalone(seed, SEEDS, 5000);
    for (int i = 0; i < SEEDS; i++)
        free(data[i]);
    return failed;
}
#endif
