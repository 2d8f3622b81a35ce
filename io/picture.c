/* io/picture.c - pictures in and out of files, and what is done to them on the way (see io/picture.h).
 * The stb libraries decode and encode. They trust their input further than we do, so a walk over the file's own
 * structure comes first: lengths, checksums, the end mark. What they allocate starts at zero, so a broken file cannot
 * show old memory.
 *
 * Contents:  1 stb   2 the picture   3 PNG chunks   4 JPEG segments   5 reading   6 writing   7 texts
 *            8 resizing   9 to and from reals   10 grids */
#include "io/picture.h"

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"

/* ---- 1. stb ----------------------------------------------------------------------------------------------------- */

#ifdef __GNUC__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wcast-qual"
#endif
#ifdef __clang__ /* broken JPEGs make stb shift by more than 31 and overflow sums: wrong pixels, nothing worse */
#pragma clang attribute push(__attribute__((no_sanitize("shift", "signed-integer-overflow"))), apply_to = function)
#endif
#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_MALLOC(size) calloc(1, size) /* a damaged JPEG leaves blocks unwritten */
#define STBI_REALLOC(memory, size) realloc(memory, size)
#define STBI_FREE(memory) free(memory)
#define STBI_ASSERT(condition) ((void)0) /* a bad file is an error, never an abort */
#include <stb/stb_image.h>
#ifdef __clang__
#pragma clang attribute pop
#endif
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBI_WRITE_NO_STDIO
#define STBIW_ASSERT(condition) ((void)0)
#include <stb/stb_image_write.h>
#ifdef __GNUC__
#pragma GCC diagnostic pop
#endif

/* ---- 2. The picture --------------------------------------------------------------------------------------------- */

ddpm_result io_picture_create(int width, int height, int channels, io_picture *out)
{
    *out = (io_picture){0};
    if (width < 1 || height < 1 || (int64_t)width * height > IO_PICTURE_MAX_PIXELS)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "a picture of %d x %d pixels is not possible\n      hint: both sides at least 1, "
                         "and at most %d pixels in all",
                         width, height, IO_PICTURE_MAX_PIXELS);
    if (channels != 1 && channels != 3)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "a picture cannot have %d channels\n      hint: 1 (gray) or 3 (RGB)",
                         channels);
    unsigned char *pixel = calloc((size_t)width * (size_t)height, (size_t)channels);
    if (!pixel)
        return ddpm_fail(DDPM_ERR_MEMORY, "no memory for a picture of %d x %d x %d bytes", width, height, channels);
    *out = (io_picture){.width = width, .height = height, .channels = channels, .pixel = pixel};
    return DDPM_OK;
}

void io_picture_free(io_picture *picture)
{
    free(picture->pixel);
    *picture = (io_picture){0};
}

/* ---- 3. PNG chunks ----------------------------------------------------------------------------------------------
 * A PNG (W3C Portable Network Graphics, 2nd ed., section 5) is 8 bytes of signature and then chunks: length (4, big
 * endian), type (4), data, CRC-32 of type and data (4). IHDR comes first, IEND last. */

static const unsigned char png_signature[8] = {137, 'P', 'N', 'G', '\r', '\n', 26, '\n'};

typedef struct crc_table {
    uint32_t entry[256];
} crc_table;

typedef struct png_chunk {
    const unsigned char *data;
    size_t size;
    char type[5];
} png_chunk;

static uint32_t read_u32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void write_u32(unsigned char *p, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(value >> (24 - 8 * i));
}

/* entry[n] = the polynomial n x^32 mod the CRC polynomial 0xEDB88320, bits reversed (PNG specification, annex D). */
static void crc_init(crc_table *table)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xEDB88320u ^ c >> 1 : c >> 1;
        table->entry[n] = c;
    }
}

static uint32_t crc32_of(const crc_table *table, const unsigned char *data, size_t size)
{
    uint32_t c = 0xFFFFFFFFu;
    for (size_t i = 0; i < size; i++)
        c = table->entry[(c ^ data[i]) & 255] ^ c >> 8;
    return ~c;
}

static int is_png(const unsigned char *data, size_t size)
{
    return size >= sizeof png_signature && memcmp(data, png_signature, sizeof png_signature) == 0;
}

/* The chunk at *position, which moves past it. */
static ddpm_result png_next(const unsigned char *data, size_t size, const char *name, const crc_table *table,
                            size_t *position, png_chunk *chunk)
{
    size_t left = size - *position;
    if (left < 12 || read_u32(data + *position) > left - 12)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: the PNG file is cut short: it ends inside a chunk, at byte %zu\n"
                         "      hint: copy or make the file again",
                         name, size);
    const unsigned char *start = data + *position;
    chunk->size = read_u32(start);
    chunk->data = start + 8;
    memcpy(chunk->type, start + 4, 4);
    chunk->type[4] = 0;
    for (int i = 0; i < 4; i++)
        if (!((chunk->type[i] >= 'a' && chunk->type[i] <= 'z') || (chunk->type[i] >= 'A' && chunk->type[i] <= 'Z')))
            return ddpm_fail(DDPM_ERR_FORMAT,
                             "%s: the PNG file is damaged: no chunk type at byte %zu\n"
                             "      hint: copy or make the file again",
                             name, *position + 4);
    if (crc32_of(table, start + 4, chunk->size + 4) != read_u32(chunk->data + chunk->size))
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: the PNG file is damaged: wrong checksum in chunk '%s' at byte %zu\n"
                         "      hint: copy or make the file again",
                         name, chunk->type, *position);
    *position += chunk->size + 12;
    return DDPM_OK;
}

/* Walks to IEND. *palette is where a palette's chunk starts, or 0; *pixels is the picture's size. Two things stb would
 * stumble over are refused here: an unknown critical chunk (upper-case first letter), whose name it writes into a
 * static, and pixel data that begins with an empty chunk, to which it applies pointer arithmetic before there is any
 * memory. */
static ddpm_result png_check(const unsigned char *data, size_t size, const char *name, size_t *palette,
                             uint64_t *pixels)
{
    crc_table table;
    crc_init(&table);
    *palette = 0;
    int begun = 0;
    for (size_t position = sizeof png_signature;;) {
        size_t start = position;
        png_chunk chunk = {0};
        ddpm_result result = png_next(data, size, name, &table, &position, &chunk);
        if (result) return result;
        if (start == sizeof png_signature && (strcmp(chunk.type, "IHDR") != 0 || chunk.size != 13))
            return ddpm_fail(DDPM_ERR_FORMAT,
                             "%s: the PNG file is damaged: it does not begin with a header\n"
                             "      hint: copy or make the file again",
                             name);
        if (start == sizeof png_signature) *pixels = (uint64_t)read_u32(chunk.data) * read_u32(chunk.data + 4);
        if (strcmp(chunk.type, "IEND") == 0) return DDPM_OK;
        if (strcmp(chunk.type, "PLTE") == 0) {
            *palette = start;
        } else if (strcmp(chunk.type, "IDAT") == 0) {
            if (!begun && chunk.size == 0)
                return ddpm_fail(DDPM_ERR_FORMAT,
                                 "%s: the PNG file has an empty first IDAT chunk\n"
                                 "      hint: convert it with another program first",
                                 name);
            begun = 1;
        } else if (chunk.type[0] < 'a' && strcmp(chunk.type, "IHDR") != 0) {
            return ddpm_fail(DDPM_ERR_FORMAT,
                             "%s: the PNG file has a chunk '%s', which no PNG standard knows\n"
                             "      hint: convert it with another program first",
                             name, chunk.type);
        }
    }
}

/* A copy of the file whose palette has all 256 entries, the missing ones black as in PIL: stb looks up indices beyond a
 * short palette in memory that was never written. NULL without memory. */
static unsigned char *png_fill_palette(const unsigned char *data, size_t size, size_t palette, size_t *new_size)
{
    size_t used = read_u32(data + palette), missing = 768 - used, end = palette + 8 + used;
    unsigned char *copy = calloc(1, size + missing);
    if (!copy) return NULL;
    memcpy(copy, data, end);
    memcpy(copy + end + missing, data + end, size - end);
    write_u32(copy + palette, 768); /* the checksum is now wrong: stb does not look, and png_check has */
    *new_size = size + missing;
    return copy;
}

/* ---- 4. JPEG segments -------------------------------------------------------------------------------------------
 * A JPEG (ITU-T T.81, annex B) is markers FF xx, most followed by a length (2, big endian, counting itself) and data;
 * after SOS (DA) come coded bytes in which FF 00 is a plain FF and FF D0..D7 are restarts. FF D9 ends it. */

static int is_jpeg(const unsigned char *data, size_t size)
{
    return size >= 3 && data[0] == 0xFF && data[1] == 0xD8 && data[2] == 0xFF;
}

/* Huffman tables (B.2.4.2): a class and number, how many codes have 1..16 bits, the symbols. stb writes past its tables
 * beyond 256 codes and takes the 256th for a flag; 8-bit JPEG needs at most 176. */
static int jpeg_huffman_fits(const unsigned char *data, size_t size)
{
    while (size > 0) {
        if (size < 17) return 0;
        size_t codes = 0;
        for (int i = 1; i <= 16; i++)
            codes += data[i];
        if (codes > 255 || codes > size - 17) return 0;
        data += 17 + codes;
        size -= 17 + codes;
    }
    return 1;
}

/* Walks to the end mark: a file cut anywhere has none (stb would fill the rest with gray). *pixels is the size that the
 * frame's header (C0 to C2: precision 1, height 2, width 2) gives, 0 without one. */
static ddpm_result jpeg_check(const unsigned char *data, size_t size, const char *name, uint64_t *pixels)
{
    size_t position = 2;
    int coded = 0; /* inside coded bytes */
    *pixels = 0;
    while (position + 1 < size) {
        if (data[position] != 0xFF) {
            if (!coded)
                return ddpm_fail(DDPM_ERR_FORMAT,
                                 "%s: the JPEG file is damaged: no marker at byte %zu\n"
                                 "      hint: copy or make the file again",
                                 name, position);
            position++;
            continue;
        }
        int marker = data[position + 1];
        if (marker == 0xD9) return DDPM_OK;
        if (marker == 0xFF) { /* a fill byte */
            position++;
            continue;
        }
        if (coded && (marker == 0 || (marker >= 0xD0 && marker <= 0xD7))) {
            position += 2;
            continue;
        }
        size_t left = size - position - 2;
        size_t length = left < 2 ? 0 : (size_t)data[position + 2] << 8 | data[position + 3];
        if (length > left || left < 2) break;
        if (length < 2 || (marker == 0xC4 && !jpeg_huffman_fits(data + position + 4, length - 2)))
            return ddpm_fail(DDPM_ERR_FORMAT,
                             "%s: the JPEG file is damaged: bad segment %02X at byte %zu\n"
                             "      hint: copy or make the file again",
                             name, (unsigned)marker, position);
        if (marker >= 0xC0 && marker <= 0xC2 && length >= 7)
            *pixels = (uint64_t)(read_u32(data + position + 5) >> 16) * (read_u32(data + position + 5) & 0xFFFF);
        coded = marker == 0xDA;
        position += 2 + length;
    }
    return ddpm_fail(DDPM_ERR_FORMAT,
                     "%s: the JPEG file is cut short: no end mark in its %zu bytes\n"
                     "      hint: copy or make the file again",
                     name, size);
}

/* ---- 5. Reading ------------------------------------------------------------------------------------------------- */

/* stb's `from` channels (gray, gray+alpha, RGB, RGBA) to 1 or 3. */
static void convert_channels(const unsigned char *in, int from, unsigned char *out, int to, size_t pixels)
{
    for (size_t i = 0; i < pixels; i++, in += from, out += to) {
        const unsigned char r = in[0], g = in[from < 3 ? 0 : 1], b = in[from < 3 ? 0 : 2];
        if (to == 3) {
            out[0] = r;
            out[1] = g;
            out[2] = b;
        } else {
            out[0] = from < 3 ? r : (unsigned char)((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16);
        }
    }
}

/* Decodes a file whose structure has been checked, and so its size before stb allocates anything. */
static ddpm_result decode(const unsigned char *data, size_t size, const char *name, uint64_t pixels, int channels,
                          io_picture *out)
{
    const char *kind = is_png(data, size) ? "PNG" : "JPEG";
    if (pixels > IO_PICTURE_MAX_PIXELS)
        return ddpm_fail(DDPM_ERR_FORMAT,
                         "%s: the %s file says it has %llu pixels, more than %d\n      hint: make a smaller "
                         "picture of it first",
                         name, kind, (unsigned long long)pixels, IO_PICTURE_MAX_PIXELS);
    int width, height, from;
    stbi__g_failure_reason = "outofmem"; /* where stb fails without a word, it lacks memory; */
    unsigned char *pixel = stbi_load_from_memory(data, (int)size, &width, &height, &from, 0);
    const char *reason = stbi_failure_reason(); /* and so it does where it does not know this first mark */
    if (!pixel && (strcmp(reason, "outofmem") == 0 || strcmp(reason, "unknown image type") == 0))
        return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory to decode the %s file", name, kind);
    if (!pixel)
        return ddpm_fail(DDPM_ERR_FORMAT, "%s: cannot decode the %s file: %s\n      hint: copy or make the file again",
                         name, kind, reason);
    if (from == channels) {
        *out = (io_picture){.width = width, .height = height, .channels = channels, .pixel = pixel};
        return DDPM_OK;
    }
    ddpm_result result = io_picture_create(width, height, channels, out);
    if (!result) convert_channels(pixel, from, out->pixel, channels, (size_t)width * (size_t)height);
    stbi_image_free(pixel);
    return result;
}

ddpm_result io_picture_decode(const unsigned char *data, size_t size, const char *name, int channels, io_picture *out)
{
    *out = (io_picture){0};
    if (channels != 1 && channels != 3)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: a picture cannot be read as %d channels\n      hint: 1 (gray) or 3 (RGB)", name,
                         channels);
    if (size == 0)
        return ddpm_fail(DDPM_ERR_FORMAT, "%s: the file is empty\n      hint: a PNG or JPEG picture is needed", name);
    if (size > INT_MAX - 768)
        return ddpm_fail(DDPM_ERR_FORMAT, "%s: a picture file of %zu bytes is too large\n      hint: at most 2 GiB",
                         name, size);
    uint64_t pixels = 0;
    size_t palette = 0;
    ddpm_result result;
    if (is_png(data, size))
        result = png_check(data, size, name, &palette, &pixels);
    else if (is_jpeg(data, size))
        result = jpeg_check(data, size, name, &pixels);
    else
        result = ddpm_fail(DDPM_ERR_FORMAT,
                           "%s: is neither a PNG nor a JPEG picture\n      hint: convert it first; the "
                           "file's content counts, not its name",
                           name);
    if (result) return result;
    if (!palette || read_u32(data + palette) >= 768) return decode(data, size, name, pixels, channels, out);
    unsigned char *filled = png_fill_palette(data, size, palette, &size);
    if (!filled) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for the picture", name);
    result = decode(filled, size, name, pixels, channels, out);
    free(filled);
    return result;
}

ddpm_result io_picture_read(const char *path, int channels, io_picture *out)
{
    *out = (io_picture){0};
    unsigned char *data;
    size_t size;
    ddpm_result result = io_read_file(path, &data, &size);
    if (result) return result;
    result = io_picture_decode(data, size, path, channels, out);
    free(data);
    return result;
}

/* ---- 6. Writing ------------------------------------------------------------------------------------------------- */

/* Is every byte sequence UTF-8 (RFC 3629: shortest form, no surrogates, at most U+10FFFF)? */
static int is_utf8(const char *text)
{
    static const uint32_t least[4] = {0, 0x80, 0x800, 0x10000};
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        int more = *p < 0x80 ? 0 : *p >> 5 == 6 ? 1 : *p >> 4 == 14 ? 2 : *p >> 3 == 30 ? 3 : -1;
        if (more < 0) return 0;
        uint32_t code = more ? *p & (0x3Fu >> more) : *p;
        p++;
        for (int i = 0; i < more; i++, p++) {
            if (*p >> 6 != 2) return 0;
            code = code << 6 | (*p & 0x3Fu);
        }
        if (code < least[more] || (code >= 0xD800 && code <= 0xDFFF) || code > 0x10FFFF) return 0;
    }
    return 1;
}

static int is_ascii(const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        if (*p > 126) return 0;
    return 1;
}

/* Section 11.3.4.2: 1 to 79 printable characters, no blank first, last or twice in a row. */
static int keyword_fits(const char *keyword)
{
    size_t length = strlen(keyword);
    if (length < 1 || length > 79 || keyword[0] == ' ' || keyword[length - 1] == ' ' || strstr(keyword, "  ")) return 0;
    for (size_t i = 0; i < length; i++)
        if (keyword[i] < 32 || keyword[i] > 126) return 0;
    return 1;
}

/* One text chunk: tEXt is keyword 0 text; iTXt is keyword 0, no compression (0 0), no language 0, no translation 0,
 * text. Writes it to `out` unless that is NULL; returns its size. */
static size_t put_text(const crc_table *table, const io_text *text, unsigned char *out)
{
    int international = !is_ascii(text->text) && is_utf8(text->text);
    size_t keyword = strlen(text->keyword) + 1, length = strlen(text->text), fields = international ? 4 : 0;
    size_t size = keyword + fields + length;
    if (out) {
        write_u32(out, (uint32_t)size);
        memcpy(out + 4, international ? "iTXt" : "tEXt", 4);
        memcpy(out + 8, text->keyword, keyword);
        memset(out + 8 + keyword, 0, fields);
        memcpy(out + 8 + keyword + fields, text->text, length);
        write_u32(out + 8 + size, crc32_of(table, out + 4, size + 4));
    }
    return size + 12;
}

ddpm_result io_picture_encode_png(const io_picture *picture, const io_text *text, int texts, unsigned char **png,
                                  size_t *size)
{
    enum { header = 8 + 12 + 13 }; /* signature and IHDR: the texts come right after */
    *png = NULL;
    *size = 0;
    if (!picture->pixel || picture->width < 1 || picture->height < 1 ||
        (picture->channels != 1 && picture->channels != 3))
        return ddpm_fail(DDPM_ERR_ARGUMENT, "a picture of %d x %d pixels and %d channels cannot be written as PNG",
                         picture->width, picture->height, picture->channels);
    crc_table table;
    crc_init(&table);
    size_t added = 0;
    for (int i = 0; i < texts; i++) {
        if (!keyword_fits(text[i].keyword))
            return ddpm_fail(DDPM_ERR_ARGUMENT,
                             "'%s' cannot be the keyword of a text in a PNG file\n      hint: 1 to 79 "
                             "printable ASCII characters, no blank at the ends",
                             text[i].keyword);
        if (strlen(text[i].text) > INT_MAX / 2)
            return ddpm_fail(DDPM_ERR_ARGUMENT, "the text '%s' is too long for a PNG file", text[i].keyword);
        added += put_text(&table, &text[i], NULL);
    }
    int plain_size = 0;
    unsigned char *plain =
        stbi_write_png_to_mem(picture->pixel, 0, picture->width, picture->height, picture->channels, &plain_size);
    unsigned char *grown = plain ? realloc(plain, (size_t)plain_size + added) : NULL;
    if (!grown) {
        free(plain);
        return ddpm_fail(DDPM_ERR_MEMORY, "no memory to encode a picture of %d x %d pixels", picture->width,
                         picture->height);
    }
    memmove(grown + header + added, grown + header, (size_t)plain_size - header);
    unsigned char *at = grown + header;
    for (int i = 0; i < texts; i++)
        at += put_text(&table, &text[i], at);
    *png = grown;
    *size = (size_t)plain_size + added;
    return DDPM_OK;
}

ddpm_result io_picture_write_png(const char *path, const io_picture *picture, const io_text *text, int texts)
{
    unsigned char *png;
    size_t size;
    ddpm_result result = io_picture_encode_png(picture, text, texts, &png, &size);
    if (!result) result = io_write_file(path, png, size);
    free(png);
    return result;
}

/* ---- 7. Texts --------------------------------------------------------------------------------------------------- */

/* `size` bytes up to the first 0, in new memory; Latin-1 becomes UTF-8. NULL without memory. */
static char *copy_text(const unsigned char *data, size_t size, int latin1)
{
    char *out = malloc(2 * size + 1), *to = out;
    for (size_t i = 0; out && i < size && data[i]; i++) {
        if (latin1 && data[i] >= 0x80) {
            *to++ = (char)(0xC0 | data[i] >> 6);
            *to++ = (char)(0x80 | (data[i] & 0x3F));
        } else {
            *to++ = (char)data[i];
        }
    }
    if (out) *to = 0;
    return out;
}

/* Where the text of an iTXt chunk starts: after keyword 0 flag method language 0 translation 0; 0 if it is
 * malformed. */
static size_t itxt_text(const png_chunk *chunk, size_t after_keyword)
{
    size_t at = after_keyword + 2;
    for (int field = 0; field < 2; field++) {
        const unsigned char *end = at < chunk->size ? memchr(chunk->data + at, 0, chunk->size - at) : NULL;
        if (!end) return 0;
        at = (size_t)(end - chunk->data) + 1;
    }
    return at;
}

ddpm_result io_picture_find_text(const unsigned char *data, size_t size, const char *name, const char *keyword,
                                 char **out)
{
    *out = NULL;
    if (!is_png(data, size)) return ddpm_fail(DDPM_ERR_FORMAT, "%s: is not a PNG picture, so it holds no texts", name);
    crc_table table;
    crc_init(&table);
    size_t length = strlen(keyword) + 1; /* with the 0 that ends it in the chunk too */
    png_chunk chunk = {0};
    for (size_t position = sizeof png_signature; !*out;) {
        ddpm_result result = png_next(data, size, name, &table, &position, &chunk);
        if (result || strcmp(chunk.type, "IEND") == 0) return result;
        int latin1 = strcmp(chunk.type, "tEXt") == 0, utf8 = strcmp(chunk.type, "iTXt") == 0;
        int compressed = strcmp(chunk.type, "zTXt") == 0;
        if ((!latin1 && !utf8 && !compressed) || chunk.size < length || memcmp(chunk.data, keyword, length) != 0)
            continue;
        if (compressed || (utf8 && chunk.size > length && chunk.data[length] != 0))
            return ddpm_fail(DDPM_ERR_UNSUPPORTED, "%s: the text '%s' is compressed, which is not read here", name,
                             keyword);
        size_t start = latin1 ? length : itxt_text(&chunk, length);
        if (!start) return ddpm_fail(DDPM_ERR_FORMAT, "%s: the text '%s' is damaged", name, keyword);
        *out = copy_text(chunk.data + start, chunk.size - start, latin1);
        if (!*out) return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for the text '%s'", name, keyword);
    }
    return DDPM_OK;
}

ddpm_result io_picture_read_text(const char *path, const char *keyword, char **out)
{
    *out = NULL;
    unsigned char *data;
    size_t size;
    ddpm_result result = io_read_file(path, &data, &size);
    if (result) return result;
    result = io_picture_find_text(data, size, path, keyword, out);
    free(data);
    return result;
}

/* ---- 8. Resizing ------------------------------------------------------------------------------------------------
 * Along one axis, with scale s = in / out, the pixel x of the result is centred at c = (x + 1/2) s in the old one, and
 *
 *     y(x) = sum_j w_j v(j),   w_j = max(0, 1 - |j + 1/2 - c| / f) / (sum of them),   f = max(s, 1)
 *
 * a triangle as wide as two new pixels when shrinking, two old ones when growing. One axis after the other, rounded to
 * bytes between. The weights are integers, w 2^22: so PIL does it (Pillow, src/libImaging/Resample.c), and integers
 * make the result the same everywhere. */
enum { WEIGHT_BITS = 22 };

typedef struct resize_axis {
    int taps;        /* room for weights a pixel */
    int *first;      /* (out): the first old pixel that counts */
    int *count;      /* (out): how many count */
    int32_t *weight; /* (out, taps) */
} resize_axis;

static void resize_axis_free(resize_axis *axis)
{
    free(axis->first);
    free(axis->count);
    free(axis->weight);
}

/* The weights of one new pixel; `exact` is room for them as doubles. */
static void resize_weights(resize_axis *axis, int in, double scale, int x, double *exact)
{
    const double spread = scale > 1 ? scale : 1, center = (x + 0.5) * scale;
    int first = (int)(center - spread + 0.5), end = (int)(center + spread + 0.5);
    first = first < 0 ? 0 : first;
    end = end > in ? in : end;
    double sum = 0;
    for (int j = first; j < end; j++) {
        double distance = fabs((j - center + 0.5) * (1 / spread));
        exact[j - first] = distance < 1 ? 1 - distance : 0;
        sum += exact[j - first];
    }
    for (int j = 0; j < end - first; j++)
        axis->weight[(size_t)x * (size_t)axis->taps + (size_t)j] = (int32_t)(0.5 + exact[j] / sum * (1 << WEIGHT_BITS));
    axis->first[x] = first;
    axis->count[x] = end - first;
}

/* 0 without memory. */
static int resize_axis_init(resize_axis *axis, int in, int out)
{
    const double scale = (double)in / out;
    axis->taps = (int)ceil(scale > 1 ? scale : 1) * 2 + 1;
    axis->first = calloc((size_t)out, sizeof *axis->first);
    axis->count = calloc((size_t)out, sizeof *axis->count);
    axis->weight = calloc((size_t)out * (size_t)axis->taps, sizeof *axis->weight);
    double *exact = calloc((size_t)axis->taps, sizeof *exact);
    int ok = axis->first && axis->count && axis->weight && exact;
    for (int x = 0; ok && x < out; x++)
        resize_weights(axis, in, scale, x, exact);
    free(exact);
    return ok;
}

static unsigned char to_byte(int32_t sum)
{
    sum >>= WEIGHT_BITS; /* never negative: weights and pixels are not */
    return (unsigned char)(sum > 255 ? 255 : sum);
}

/* in (height, in width, channels) -> out (height, width, channels). */
static void resize_rows(const resize_axis *axis, const io_picture *in, io_picture *out)
{
    const size_t channels = (size_t)in->channels;
    for (size_t y = 0; y < (size_t)in->height; y++) {
        const unsigned char *row = in->pixel + y * (size_t)in->width * channels;
        unsigned char *to = out->pixel + y * (size_t)out->width * channels;
        for (size_t x = 0; x < (size_t)out->width; x++) {
            const int32_t *weight = axis->weight + x * (size_t)axis->taps;
            const unsigned char *v = row + (size_t)axis->first[x] * channels;
            int32_t sum[3] = {1 << (WEIGHT_BITS - 1), 1 << (WEIGHT_BITS - 1), 1 << (WEIGHT_BITS - 1)};
            if (channels == 3) {
                for (int j = 0; j < axis->count[x]; j++, v += 3) {
                    sum[0] += weight[j] * v[0];
                    sum[1] += weight[j] * v[1];
                    sum[2] += weight[j] * v[2];
                }
            } else {
                for (int j = 0; j < axis->count[x]; j++)
                    sum[0] += weight[j] * v[j];
            }
            for (size_t c = 0; c < channels; c++)
                *to++ = to_byte(sum[c]);
        }
    }
}

/* in (in height, width * channels) -> out (height, width * channels); `sum` is room for one row. */
static void resize_columns(const resize_axis *axis, const io_picture *in, io_picture *out, int32_t *sum)
{
    const size_t length = (size_t)in->width * (size_t)in->channels;
    for (size_t y = 0; y < (size_t)out->height; y++) {
        for (size_t i = 0; i < length; i++)
            sum[i] = 1 << (WEIGHT_BITS - 1);
        for (int j = 0; j < axis->count[y]; j++) {
            const int32_t weight = axis->weight[y * (size_t)axis->taps + (size_t)j];
            const unsigned char *row = in->pixel + (size_t)(axis->first[y] + j) * length;
            for (size_t i = 0; i < length; i++)
                sum[i] += weight * row[i];
        }
        for (size_t i = 0; i < length; i++)
            out->pixel[y * length + i] = to_byte(sum[i]);
    }
}

/* With all memory at hand but the weights and a row of sums. */
static ddpm_result resize_with(resize_axis *across, resize_axis *down, int columns_first, const io_picture *in,
                               io_picture *middle, io_picture *out)
{
    int32_t *sum =
        malloc((size_t)(in->width > out->width ? in->width : out->width) * (size_t)in->channels * sizeof *sum);
    if (!sum || !resize_axis_init(across, in->width, out->width) || !resize_axis_init(down, in->height, out->height)) {
        free(sum);
        return ddpm_fail(DDPM_ERR_MEMORY, "no memory to resize a picture from %d x %d to %d x %d", in->width,
                         in->height, out->width, out->height);
    }
    if (columns_first) {
        resize_columns(down, in, middle, sum);
        resize_rows(across, middle, out);
    } else {
        resize_rows(across, in, middle);
        resize_columns(down, middle, out, sum);
    }
    free(sum);
    return DDPM_OK;
}

ddpm_result io_picture_resize(const io_picture *in, int width, int height, io_picture *out)
{
    resize_axis across = {0}, down = {0};
    io_picture middle = {0};
    ddpm_result result = io_picture_create(width, height, in->channels, out);
    /* Pillow 13's rule for the order; before it, rows came first always, which here and there makes a difference of
     * 1. */
    const int shorter = in->height - height, narrower = in->width - width;
    const int columns_first = shorter > 0 && shorter > 2 * narrower;
    if (!result)
        result = io_picture_create(columns_first ? in->width : width, columns_first ? height : in->height, in->channels,
                                   &middle);
    if (!result) result = resize_with(&across, &down, columns_first, in, &middle, out);
    if (result) io_picture_free(out);
    io_picture_free(&middle);
    resize_axis_free(&across);
    resize_axis_free(&down);
    return result;
}

/* (whole - part) / 2, halves to the even neighbour: torchvision's int(round(... / 2.0)). */
static int centre_offset(int whole, int part)
{
    int twice = whole - part, half = twice / 2;
    return half + (twice & half & 1);
}

/* The part of `in` from (left, top) on that `out` has room for. */
static void copy_part(const io_picture *in, int left, int top, io_picture *out)
{
    size_t channels = (size_t)in->channels, row = (size_t)out->width * channels;
    for (int y = 0; y < out->height; y++)
        memcpy(out->pixel + (size_t)y * row,
               in->pixel + ((size_t)(top + y) * (size_t)in->width + (size_t)left) * channels, row);
}

ddpm_result io_picture_resize_crop(const io_picture *in, int width, int height, io_picture *out)
{
    int64_t covering[2] = {width, height}; /* the longer side follows from the aspect */
    io_picture resized;
    ddpm_result result = io_picture_create(width, height, in->channels, out);
    if (result) return result;
    if ((int64_t)in->width * height > (int64_t)width * in->height)
        covering[0] = (int64_t)in->width * height / in->height;
    else
        covering[1] = (int64_t)in->height * width / in->width;
    for (int i = 0; i < 2; i++) /* more is refused below, and an int holds it */
        covering[i] = covering[i] > IO_PICTURE_MAX_PIXELS ? IO_PICTURE_MAX_PIXELS + 1 : covering[i];
    result = io_picture_resize(in, (int)covering[0], (int)covering[1], &resized);
    if (!result)
        copy_part(&resized, centre_offset(resized.width, width), centre_offset(resized.height, height), out);
    else
        io_picture_free(out);
    io_picture_free(&resized);
    return result;
}

/* ---- 9. To and from reals --------------------------------------------------------------------------------------- */

void io_picture_to_real(const io_picture *in, ddpm_real *out)
{
    const size_t pixels = (size_t)in->width * (size_t)in->height, channels = (size_t)in->channels;
    ddpm_real real[256];
    for (int v = 0; v < 256; v++)
        real[v] = ((ddpm_real)v / 255 - (ddpm_real)0.5) / (ddpm_real)0.5;
    for (size_t c = 0; c < channels; c++)
        for (size_t i = 0; i < pixels; i++)
            out[c * pixels + i] = real[in->pixel[i * channels + c]];
}

/* y in [0,1] -> floor(255 y + 1/2); what lies outside is clamped, NaN is 0. */
static unsigned char byte_of(ddpm_real y)
{
    return !(y > 0) ? 0 : y >= 1 ? 255 : (unsigned char)(y * 255 + (ddpm_real)0.5);
}

/* Bytes of (x - low) / span. */
static ddpm_result picture_of(const ddpm_real *chw, int channels, int height, int width, ddpm_real low, ddpm_real span,
                              io_picture *out)
{
    ddpm_result result = io_picture_create(width, height, channels, out);
    const size_t pixels = (size_t)out->width * (size_t)out->height, planes = (size_t)out->channels;
    for (size_t c = 0; c < planes; c++)
        for (size_t i = 0; i < pixels; i++)
            out->pixel[i * planes + c] = byte_of((chw[c * pixels + i] - low) / span);
    return result;
}

ddpm_result io_picture_from_real(const ddpm_real *chw, int channels, int height, int width, io_picture *out)
{
    return picture_of(chw, channels, height, width, -1, 2, out); /* (x + 1) / 2 */
}

/* ---- 10. Grids -------------------------------------------------------------------------------------------------- */

/* Copies `in`, gray repeated, to column x and row y of the RGB picture `out`. */
static void paste(const io_picture *in, int x, int y, io_picture *out)
{
    for (int row = 0; row < in->height; row++)
        convert_channels(in->pixel + (size_t)row * (size_t)in->width * (size_t)in->channels, in->channels,
                         out->pixel + ((size_t)(y + row) * (size_t)out->width + (size_t)x) * 3, 3, (size_t)in->width);
}

ddpm_result io_make_grid(const io_picture *picture, int count, int per_row, int padding, io_picture *out)
{
    *out = (io_picture){0};
    if (count < 1 || per_row < 1 || padding < 0 || padding > 4096)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "a grid of %d pictures, %d a row, %d pixels apart is not possible", count,
                         per_row, padding);
    const int width = picture->width, height = picture->height;
    for (int i = 1; i < count; i++)
        if (picture[i].width != width || picture[i].height != height || picture[i].channels != picture->channels)
            return ddpm_fail(DDPM_ERR_SHAPE,
                             "picture %d of the grid is %d x %d with %d channels, the first is %d x %d with "
                             "%d\n      hint: resize them to one size first",
                             i, picture[i].width, picture[i].height, picture[i].channels, width, height,
                             picture->channels);
    const int columns = count < per_row ? count : per_row, rows = (count + columns - 1) / columns;
    const int edge = count == 1 ? 0 : padding;
    const int64_t whole_width = (int64_t)columns * (width + edge) + edge,
                  whole_height = (int64_t)rows * (height + edge) + edge;
    if (whole_width * whole_height > IO_PICTURE_MAX_PIXELS)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "a grid of %d pictures of %d x %d pixels is larger than a picture may be (%d pixels)"
                         "\n      hint: make several grids",
                         count, width, height, IO_PICTURE_MAX_PIXELS);
    ddpm_result result = io_picture_create((int)whole_width, (int)whole_height, 3, out);
    for (int i = 0; !result && i < count; i++)
        paste(&picture[i], i % columns * (width + edge) + edge, i / columns * (height + edge) + edge, out);
    return result;
}

/* The least and the largest of `count` values; NaN is passed over. */
static void find_range(const ddpm_real *x, size_t count, ddpm_real *low, ddpm_real *high)
{
    *low = *high = 0;
    for (size_t i = 0, seen = 0; i < count; i++) {
        if (x[i] != x[i]) continue;
        *low = !seen || x[i] < *low ? x[i] : *low;
        *high = !seen || x[i] > *high ? x[i] : *high;
        seen = 1;
    }
}

ddpm_result io_make_grid_real(const ddpm_real *nchw, int count, int channels, int height, int width, int per_row,
                              int padding, int normalize, io_picture *out)
{
    *out = (io_picture){0};
    if (count < 1 || (channels != 1 && channels != 3) || height < 1 || width < 1)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "no grid can be made of %d pictures of %d x %d pixels and %d channels",
                         count, width, height, channels);
    const size_t size = (size_t)channels * (size_t)height * (size_t)width;
    ddpm_real low = -1, high = 1;
    if (normalize) find_range(nchw, (size_t)count * size, &low, &high);
    const ddpm_real span = high - low > (ddpm_real)1e-5 ? high - low : (ddpm_real)1e-5;
    io_picture *picture = calloc((size_t)count, sizeof *picture);
    if (!picture) return ddpm_fail(DDPM_ERR_MEMORY, "no memory for a grid of %d pictures", count);
    ddpm_result result = DDPM_OK;
    for (int i = 0; !result && i < count; i++)
        result = picture_of(nchw + (size_t)i * size, channels, height, width, low, span, &picture[i]);
    if (!result) result = io_make_grid(picture, count, per_row, padding, out);
    for (int i = 0; i < count; i++)
        io_picture_free(&picture[i]);
    free(picture);
    return result;
}
