/* io/gif.c - an animated GIF: see io/gif.h. giflib does the format and its compression; the colours are chosen here.
 *
 * Contents:  1 256 colours: median cut   2 the file */
#include "io/gif.h"

#include <gif_lib.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"

/* ---- 1. 256 colours: median cut (Heckbert 1982) ------------------------------------------------------------------
 * A frame's colours, to 6 bits a channel, are points in a cube. The box with the most pixels times extent is cut in two
 * at the median of its longest axis, until there are 256 boxes. A box's colour is the mean of its pixels. */

enum { BITS = 6, CELLS = 1 << 3 * BITS, COLORS = 256 };

typedef struct cell { /* pixels of one colour to 6 bits */
    uint32_t count, sum[3];
    int code; /* which cell of the cube */
} cell;

typedef struct box { /* cell[first .. first + cells - 1] */
    int first, cells, axis, extent;
    uint64_t pixels;
} box;

typedef struct palette { /* reused from frame to frame: it is large */
    int of_code[CELLS];  /* before the cut, cell of a code, or -1; after it, the colour */
    cell cell[CELLS];
    int cells;
    GifColorType color[COLORS];
} palette;

static int coordinate(int code, int axis)
{
    return code >> axis * BITS & ((1 << BITS) - 1);
}

static const unsigned char *pixel_of(const io_picture *p, size_t i, unsigned char rgb[3])
{
    if (p->channels == 3) return p->pixel + 3 * i;
    rgb[0] = rgb[1] = rgb[2] = p->pixel[i];
    return rgb;
}

static int code_of(const unsigned char *rgb)
{
    enum { DROP = 8 - BITS };
    return rgb[0] >> DROP | rgb[1] >> DROP << BITS | rgb[2] >> DROP << 2 * BITS;
}

static void collect(palette *p, const io_picture *frame)
{
    size_t pixels = (size_t)frame->width * (size_t)frame->height;
    unsigned char gray[3];
    p->cells = 0;
    memset(p->of_code, -1, sizeof p->of_code);
    for (size_t i = 0; i < pixels; i++) {
        const unsigned char *rgb = pixel_of(frame, i, gray);
        int code = code_of(rgb);
        if (p->of_code[code] < 0) {
            p->of_code[code] = p->cells;
            p->cell[p->cells++] = (cell){.code = code};
        }
        cell *c = &p->cell[p->of_code[code]];
        c->count++;
        for (int k = 0; k < 3; k++)
            c->sum[k] += rgb[k];
    }
}

static void measure(const palette *p, box *b)
{
    int low[3] = {1 << BITS, 1 << BITS, 1 << BITS}, high[3] = {-1, -1, -1};
    b->pixels = 0;
    for (int i = b->first; i < b->first + b->cells; i++) {
        b->pixels += p->cell[i].count;
        for (int k = 0; k < 3; k++) {
            int at = coordinate(p->cell[i].code, k);
            low[k] = at < low[k] ? at : low[k];
            high[k] = at > high[k] ? at : high[k];
        }
    }
    b->axis = 0;
    for (int k = 1; k < 3; k++)
        if (high[k] - low[k] > high[b->axis] - low[b->axis]) b->axis = k;
    b->extent = high[b->axis] - low[b->axis];
}

/* By one axis, then by the rest, so that the order does not depend on the library's sort. */
#define COMPARE_ALONG(axis)                                                                                            \
    static int compare_##axis(const void *a, const void *b)                                                            \
    {                                                                                                                  \
        int one = ((const cell *)a)->code, other = ((const cell *)b)->code;                                            \
        int along = coordinate(one, axis) - coordinate(other, axis);                                                   \
        return along ? along : one - other;                                                                            \
    }
COMPARE_ALONG(0)
COMPARE_ALONG(1)
COMPARE_ALONG(2)

/* Cuts a box of at least two cells: `b` keeps the lower half, the result is the upper one. */
static box cut(palette *p, box *b)
{
    static int (*const compare[])(const void *, const void *) = {compare_0, compare_1, compare_2};
    qsort(p->cell + b->first, (size_t)b->cells, sizeof *p->cell, compare[b->axis]);
    uint64_t below = p->cell[b->first].count;
    int lower = 1;
    while (lower < b->cells - 1 && 2 * below < b->pixels)
        below += p->cell[b->first + lower++].count;
    box upper = {.first = b->first + lower, .cells = b->cells - lower};
    b->cells = lower;
    measure(p, b);
    measure(p, &upper);
    return upper;
}

/* The colours of a frame; returns how many. */
static int choose_colors(palette *p, const io_picture *frame)
{
    box boxes[COLORS] = {{0}};
    int count = 1;
    collect(p, frame);
    boxes[0].cells = p->cells;
    measure(p, &boxes[0]);
    for (; count < COLORS; count++) {
        int widest = 0;
        for (int i = 1; i < count; i++)
            if (boxes[i].pixels * (uint64_t)boxes[i].extent > boxes[widest].pixels * (uint64_t)boxes[widest].extent)
                widest = i;
        if (boxes[widest].extent == 0) break; /* every cell has a box to itself */
        boxes[count] = cut(p, &boxes[widest]);
    }
    for (int i = 0; i < count; i++) {
        uint64_t sum[3] = {0};
        for (int c = boxes[i].first; c < boxes[i].first + boxes[i].cells; c++) {
            p->of_code[p->cell[c].code] = i;
            for (int k = 0; k < 3; k++)
                sum[k] += p->cell[c].sum[k];
        }
        uint64_t n = boxes[i].pixels, half = n / 2;
        p->color[i] = (GifColorType){(GifByteType)((sum[0] + half) / n), (GifByteType)((sum[1] + half) / n),
                                     (GifByteType)((sum[2] + half) / n)};
    }
    return count;
}

/* ---- 2. The file ------------------------------------------------------------------------------------------------- */

static int put_bytes(GifFileType *gif, const GifByteType *bytes, int count) /* giflib's OutputFunc */
{
    io_writer *writer = gif->UserData; /* closed after a failure, and giflib still puts its last byte */
    return writer->file && io_writer_put(writer, bytes, (size_t)count) == DDPM_OK ? count : 0;
}

/* The extension that makes programs show it again and again (Netscape 2.0), and the comment. */
static int put_header(GifFileType *gif, const io_picture *frame, const char *comment)
{
    static const GifByteType for_ever[] = {1, 0, 0};
    EGifSetGifVersion(gif, true);
    return EGifPutScreenDesc(gif, frame->width, frame->height, 8, 0, NULL) == GIF_OK &&
           EGifPutExtensionLeader(gif, APPLICATION_EXT_FUNC_CODE) == GIF_OK &&
           EGifPutExtensionBlock(gif, 11, "NETSCAPE2.0") == GIF_OK &&
           EGifPutExtensionBlock(gif, sizeof for_ever, for_ever) == GIF_OK && EGifPutExtensionTrailer(gif) == GIF_OK &&
           (!comment || EGifPutComment(gif, comment) == GIF_OK);
}

static int put_frame(GifFileType *gif, palette *p, const io_picture *frame, int delay, GifByteType *row)
{
    GraphicsControlBlock control = {DISPOSE_DO_NOT, false, delay, NO_TRANSPARENT_COLOR};
    GifByteType extension[4];
    int colors = choose_colors(p, frame), size = 2;
    while (size < colors) /* a colour table's size is a power of two; the rest stays black */
        size *= 2;
    memset(p->color + colors, 0, (size_t)(COLORS - colors) * sizeof *p->color);
    ColorMapObject *map = GifMakeMapObject(size, p->color);
    int good = map && EGifGCBToExtension(&control, extension) == sizeof extension &&
               EGifPutExtension(gif, GRAPHICS_EXT_FUNC_CODE, sizeof extension, extension) == GIF_OK &&
               EGifPutImageDesc(gif, 0, 0, frame->width, frame->height, false, map) == GIF_OK;
    for (int y = 0; good && y < frame->height; y++) {
        unsigned char gray[3];
        for (int x = 0; x < frame->width; x++)
            row[x] =
                (GifByteType)p->of_code[code_of(pixel_of(frame, (size_t)y * (size_t)frame->width + (size_t)x, gray))];
        good = EGifPutLine(gif, row, frame->width) == GIF_OK;
    }
    GifFreeMapObject(map);
    return good;
}

static ddpm_result check(const char *path, const io_picture *frame, int count, int delay, int hold)
{
    enum { MOST = 65535 };
    if (count < 1 || delay < 0 || delay > MOST || hold < 0 || hold > MOST || frame->width > MOST ||
        frame->height > MOST)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "%s: %d frames of %dx%d for %d and %d hundredths of a second are no GIF\n"
                         "      hint: at least one frame; no number above %d",
                         path, count, count > 0 ? frame->width : 0, count > 0 ? frame->height : 0, delay, hold, MOST);
    for (int i = 1; i < count; i++)
        if (frame[i].width != frame[0].width || frame[i].height != frame[0].height)
            return ddpm_fail(DDPM_ERR_SHAPE,
                             "%s: frame %d is %dx%d, frame 0 %dx%d\n      hint: resize them to one size", path, i,
                             frame[i].width, frame[i].height, frame[0].width, frame[0].height);
    return DDPM_OK;
}

static ddpm_result write_gif(const char *path, io_writer *writer, const io_picture *frame, int count, int delay,
                             int hold, const char *comment)
{
    int error = 0;
    palette *p = malloc(sizeof *p);
    GifByteType *row = malloc((size_t)frame->width);
    GifFileType *gif = p && row ? EGifOpen(writer, put_bytes, &error) : NULL;
    int good = gif && put_header(gif, frame, comment);
    for (int i = 0; i < count && good; i++)
        good = put_frame(gif, p, &frame[i], i == count - 1 ? hold : delay, row);
    if (gif) good &= EGifCloseFile(gif, &error) == GIF_OK;
    free(row);
    free(p);
    if (good) return DDPM_OK;
    if (!writer->file) return DDPM_ERR_FILE; /* a put failed, and said why */
    return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory to compress %d frames", path, count);
}

ddpm_result io_gif_write(const char *path, const io_picture *frame, int count, int delay, int hold, const char *comment)
{
    io_writer writer;
    ddpm_result result = check(path, frame, count, delay, hold);
    if (!result) result = io_writer_open(&writer, path);
    if (result) return result;
    result = write_gif(path, &writer, frame, count, delay, hold, comment);
    if (!result) return io_writer_commit(&writer);
    io_writer_abandon(&writer);
    return result;
}
