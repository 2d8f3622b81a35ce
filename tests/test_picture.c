/* tests/test_picture.c - io/picture and io/plot: against PIL and torchvision: every kind of PNG and JPEG, resize,
 * grids, texts, and files that are broken in every way. The vectors in tests/vectors/picture/ are made by
 * tests/parity/make_picture_vectors.py. With "--write FILE.png" it writes the picture that this script lets PIL read.
 *
 * Contents:  1 helpers   2 decoding   3 broken files   4 writing and texts   5 resize   6 GIF   7 reals and grids   8
 * charts
 *            9 main */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <gif_lib.h>

#include "io/file.h"
#include "io/gif.h"
#include "io/picture.h"
#include "io/plot.h"
#include "io/safetensors.h"

#define VECTORS "tests/vectors/picture/"

/* ---- 1. Helpers ---- */

static void succeeds(ddpm_result result)
{
    if (result) fail_msg("%s", ddpm_error());
}

/* The call failed with `code`, and its message says `text`. */
static void fails(ddpm_result result, ddpm_result code, const char *text)
{
    assert_int_equal(result, code);
    if (!strstr(ddpm_error(), text)) fail_msg("'%s' does not say '%s'", ddpm_error(), text);
}

/* Bytes that look random: noise() of make_picture_vectors.py. */
static io_picture noise(int width, int height, int channels)
{
    io_picture picture;
    succeeds(io_picture_create(width, height, channels, &picture));
    for (uint32_t i = 0; i < (uint32_t)(width * height * channels); i++)
        picture.pixel[i] = (unsigned char)(((i * 2654435761u) ^ (i * 40503u) >> 7) * 2246822519u >> 24);
    return picture;
}

static void make_folder(char *folder, size_t size)
{
    const char *base = getenv("TMPDIR");
    snprintf(folder, size, "%s/test_picture.XXXXXX", base && *base ? base : "/tmp");
    assert_non_null(mkdtemp(folder));
}

/* "folder/name" in a static buffer. */
static const char *in_folder(const char *folder, const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* ---- 2. Decoding ---- */

typedef struct difference {
    int largest;
    double mean;
} difference;

/* The column `without` (-1: none) is passed over. */
static difference compare_without(const io_picture *picture, const io_tensor *expected, int without)
{
    difference d = {0};
    assert_int_equal(picture->height, expected->shape[0]);
    assert_int_equal(picture->width, expected->shape[1]);
    assert_int_equal((size_t)picture->width * (size_t)picture->height * (size_t)picture->channels, expected->elements);
    for (size_t i = 0; i < expected->elements; i++) {
        int column = (int)(i / (size_t)picture->channels % (size_t)picture->width);
        int distance = column == without ? 0 : abs(picture->pixel[i] - expected->data[i]);
        d.largest = distance > d.largest ? distance : d.largest;
        d.mean += distance;
    }
    d.mean /= (double)expected->elements;
    return d;
}

static difference compare(const io_picture *picture, const io_tensor *expected)
{
    return compare_without(picture, expected, -1);
}

/* PNG: equal to the last bit. JPEG: T.81 asks of an inverse cosine transform only that it is within about one level of
 * the exact one (IEEE 1180), so Y, Cb and Cr of two decoders differ by at most 1, after rounded upsampling by 2 in the
 * chromas: B = Y + 1.772 (Cb - 128) by at most 1 + 1.772 * 2, and 1 for rounding: 5. Nearly all pixels are equal or one
 * off, so a mean of 1 catches a decoder that is wrong everywhere by a little. In 4:2:2 files the last column but one is
 * left out: there stb_image swaps the weights 3/4 and 1/4 of its chroma. */
static void test_every_kind_as_pil(void **state)
{
    (void)state;
    io_safetensors vectors;
    succeeds(io_safetensors_open(VECTORS "pixels.safetensors", &vectors));
    int pngs = 0, jpegs = 0;
    for (int i = 0; i < vectors.tensors; i++) {
        const io_tensor *expected = &vectors.tensor[i];
        char path[256];
        int length = (int)(strrchr(expected->name, '.') - expected->name);
        snprintf(path, sizeof path, VECTORS "%.*s", length, expected->name);
        io_picture picture;
        succeeds(io_picture_read(path, expected->dims == 3 ? 3 : 1, &picture));
        int without = strstr(path, "rgb422.jpg") ? picture.width - 2 : -1;
        difference d = compare_without(&picture, expected, without);
        int is_jpeg = strstr(path, ".jpg") != NULL;
        if (d.largest > (is_jpeg ? 5 : 0) || d.mean > 1)
            fail_msg("%s: differs from PIL by %d, on average %g", expected->name, d.largest, d.mean);
        jpegs += is_jpeg;
        pngs += !is_jpeg;
        io_picture_free(&picture);
    }
    io_safetensors_close(&vectors);
    assert_int_equal(pngs, 2 * 35); /* 15 kinds with and without interlace, and 5 more; as RGB and as L */
    assert_int_equal(jpegs, 2 * 8);
}

/* ---- 3. Broken files ---- */

/* Exact length in a block of its own, so that the sanitizer sees a read beyond the end. */
static ddpm_result decode_copy(const unsigned char *data, size_t size)
{
    unsigned char *copy = malloc(size ? size : 1);
    assert_non_null(copy);
    memcpy(copy, data, size);
    io_picture picture;
    ddpm_result result = io_picture_decode(copy, size, "broken", 3, &picture);
    if (result) assert_null(picture.pixel);
    io_picture_free(&picture);
    free(copy);
    return result;
}

static const char *const samples[] = {"rgb8.png",   "palette4_interlaced.png", "graya16.png", "texts.png", "gray.jpg",
                                      "rgb420.jpg", "progressive.jpg",         "restart.jpg"};
enum { SAMPLES = sizeof samples / sizeof *samples };

static void test_cut_short_anywhere(void **state)
{
    (void)state;
    for (int s = 0; s < SAMPLES; s++) {
        unsigned char *data;
        size_t size;
        succeeds(io_read_file(in_folder(VECTORS, samples[s]), &data, &size));
        assert_int_equal(decode_copy(data, size), DDPM_OK);
        for (size_t cut = 0; cut < size; cut += 7)
            assert_int_equal(decode_copy(data, cut), DDPM_ERR_FORMAT);
        assert_int_equal(decode_copy(data, size - 1), DDPM_ERR_FORMAT);
        free(data);
    }
}

/* A changed byte of a PNG is always seen (a CRC finds every error of up to 32 bits in a row). A JPEG has no checksums:
 * it may decode to something else, but must do so within its memory. */
static void test_changed_bytes(void **state)
{
    (void)state;
    for (int s = 0; s < SAMPLES; s++) {
        unsigned char *data;
        size_t size;
        succeeds(io_read_file(in_folder(VECTORS, samples[s]), &data, &size));
        for (size_t i = 0; i < size; i++)
            for (int change = 1; change < 256; change *= 15) {
                data[i] ^= (unsigned char)change;
                ddpm_result result = decode_copy(data, size);
                data[i] ^= (unsigned char)change;
                if (strstr(samples[s], ".png"))
                    assert_int_equal(result, DDPM_ERR_FORMAT);
                else
                    assert_true(result == DDPM_OK || result == DDPM_ERR_FORMAT);
            }
        free(data);
    }
}

static void write_be32(unsigned char *p, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(value >> (24 - 8 * i));
}

/* A PNG of one chunk after another: type, size, data, right checksum. Returns where the next one goes. */
static size_t put_chunk(unsigned char *at, const char *type, const void *data, uint32_t size)
{
    write_be32(at, size);
    memcpy(at + 4, type, 4);
    memcpy(at + 8, data, size);
    uint32_t crc = 0xFFFFFFFFu;
    for (uint32_t i = 4; i < size + 8; i++) {
        crc ^= at[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    write_be32(at + 8 + size, ~crc);
    return size + 12;
}

/* Well-formed files that no decoder should follow. */
static void test_lying_headers(void **state)
{
    (void)state;
    unsigned char file[256] = {137, 'P', 'N', 'G', 13, 10, 26, 10}, header[13] = {0};
    io_picture picture;
    header[8] = 8; /* bits; colour type 0 */
    write_be32(header, 1 << 14);
    write_be32(header + 4, (1 << 12) + 1);
    size_t size = 8 + put_chunk(file + 8, "IHDR", header, 13), after_header = size;
    size += put_chunk(file + size, "IDAT", "x", 1);
    size += put_chunk(file + size, "IEND", "", 0);
    fails(io_picture_decode(file, size, "large.png", 3, &picture), DDPM_ERR_FORMAT,
          "large.png: the PNG file says it has 67125248 pixels");

    write_be32(header, 0);
    put_chunk(file + 8, "IHDR", header, 13);
    fails(io_picture_decode(file, size, "empty.png", 3, &picture), DDPM_ERR_FORMAT,
          "empty.png: cannot decode the PNG file: ");

    write_be32(header, 4);
    write_be32(header + 4, 4);
    put_chunk(file + 8, "IHDR", header, 13);
    fails(io_picture_decode(file, size, "data.png", 3, &picture), DDPM_ERR_FORMAT,
          "data.png: cannot decode the PNG file: ");

    size = after_header + put_chunk(file + after_header, "ABcd", "", 0);
    fails(io_picture_decode(file, size, "unknown.png", 3, &picture), DDPM_ERR_FORMAT, "'ABcd'");
    size = after_header + put_chunk(file + after_header, "IEND", "", 0);
    fails(io_picture_decode(file, size, "none.png", 3, &picture), DDPM_ERR_FORMAT, "none.png: cannot");
    put_chunk(file + 8, "IDAT", header, 13);
    fails(io_picture_decode(file, size, "first.png", 3, &picture), DDPM_ERR_FORMAT, "does not begin with a header");

    /* 17 x 255 Huffman codes: far more than a table holds. */
    unsigned char jpeg[24] = {0xFF, 0xD8, 0xFF, 0xC4, 0, 19};
    memset(jpeg + 7, 255, 16);
    jpeg[23] = 0xFF;
    fails(io_picture_decode(jpeg, sizeof jpeg, "codes.jpg", 3, &picture), DDPM_ERR_FORMAT,
          "codes.jpg: the JPEG file is damaged");
}

static void test_not_a_picture(void **state)
{
    (void)state;
    char folder[256];
    make_folder(folder, sizeof folder);
    io_picture picture;
    fails(io_picture_read(in_folder(folder, "missing.png"), 3, &picture), DDPM_ERR_FILE, "missing.png");
    fails(io_picture_read(folder, 3, &picture), DDPM_ERR_FILE, folder);
    succeeds(io_write_file(in_folder(folder, "empty.png"), "", 0));
    fails(io_picture_read(in_folder(folder, "empty.png"), 3, &picture), DDPM_ERR_FORMAT,
          "empty.png: the file is empty");
    succeeds(io_write_file(in_folder(folder, "text.png"), "not a picture", 13));
    fails(io_picture_read(in_folder(folder, "text.png"), 3, &picture), DDPM_ERR_FORMAT,
          "text.png: is neither a PNG nor");
    fails(io_picture_read(VECTORS "rgb8.png", 2, &picture), DDPM_ERR_ARGUMENT, "2 channels");
    assert_null(picture.pixel);
    char *text;
    fails(io_picture_read_text(in_folder(folder, "text.png"), "seed", &text), DDPM_ERR_FORMAT, "not a PNG");
    fails(io_picture_read_text(in_folder(folder, "missing.png"), "seed", &text), DDPM_ERR_FILE, "missing.png");
    assert_null(text);
    succeeds(io_remove_tree(folder));
}

/* ---- 4. Writing and texts ---- */

static const io_text our_texts[] = {{"seed", "529"},
                                    {"command", "ddpm sample \"red sphere, cyan cube\"\nsecond line"},
                                    {"Title", "Größe ≤ 64 – 雪 🙂"}};

static void text_is(const char *path, const char *keyword, const char *expected)
{
    char *text;
    succeeds(io_picture_read_text(path, keyword, &text));
    if (expected) {
        assert_non_null(text);
        assert_string_equal(text, expected);
    } else {
        assert_null(text);
    }
    free(text);
}

static void round_trip(const char *path, io_picture picture)
{
    succeeds(io_picture_write_png(path, &picture, our_texts, 3));
    io_picture back;
    succeeds(io_picture_read(path, picture.channels, &back));
    assert_int_equal(back.width, picture.width);
    assert_int_equal(back.height, picture.height);
    assert_memory_equal(back.pixel, picture.pixel, (size_t)(picture.width * picture.height * picture.channels));
    io_picture_free(&back);
    io_picture_free(&picture);
}

static void test_write_and_read_back(void **state)
{
    (void)state;
    char folder[256];
    make_folder(folder, sizeof folder);
    const char *path = in_folder(folder, "out.png");
    round_trip(path, noise(37, 21, 3));
    round_trip(path, noise(1, 1, 3));
    round_trip(path, noise(1, 300, 1));
    round_trip(path, noise(320, 240, 3));
    io_picture even; /* long repeats, and pieces that come again after more than the window of 32768 bytes */
    succeeds(io_picture_create(1100, 90, 3, &even));
    round_trip(path, even);
    succeeds(io_picture_create(200, 200, 3, &even));
    for (int i = 0; i < 200 * 200 * 3; i++)
        even.pixel[i] = (unsigned char)(i % 257 * (i % 40000 / 300) + (i % 97 == 0));
    round_trip(path, even);
    for (int i = 0; i < 3; i++)
        text_is(path, our_texts[i].keyword, our_texts[i].text);
    text_is(path, "Seed", NULL);
    text_is(path, "see", NULL);

    /* Bytes that are no UTF-8 count as Latin-1; an empty text is a text; the first of two wins. */
    io_picture picture = noise(3, 3, 3);
    const io_text odd[] = {
        {"latin", "Zo\xeb"}, {"empty", ""}, {"twice", "a"}, {"twice", "b"}, {"surrogate", "\xed\xa0\x80"}};
    succeeds(io_picture_write_png(path, &picture, odd, 5));
    text_is(path, "latin", "Zoë");
    text_is(path, "empty", "");
    text_is(path, "twice", "a");
    text_is(path, "surrogate", "\xc3\xad\xc2\xa0\xc2\x80");
    io_picture_free(&picture);
    succeeds(io_remove_tree(folder));
}

static void test_texts_of_pil(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++)
        text_is(VECTORS "texts.png", our_texts[i].keyword, our_texts[i].text);
    text_is(VECTORS "texts.png", "Author", "Zoë");
    text_is(VECTORS "texts.png", "Comment", NULL);
    char *text;
    fails(io_picture_read_text(VECTORS "texts.png", "packed", &text), DDPM_ERR_UNSUPPORTED, "'packed' is compressed");
}

/* Texts of files cut anywhere: an error, or the text if it comes before the cut. */
static void test_texts_cut_short(void **state)
{
    (void)state;
    unsigned char *data;
    size_t size;
    succeeds(io_read_file(VECTORS "texts.png", &data, &size));
    for (size_t cut = 0; cut < size; cut++) {
        unsigned char *copy = malloc(cut ? cut : 1);
        assert_non_null(copy);
        memcpy(copy, data, cut);
        char *text;
        ddpm_result result = io_picture_find_text(copy, cut, "cut", "Title", &text);
        if (result == DDPM_OK)
            assert_string_equal(text, our_texts[2].text);
        else
            assert_null(text);
        free(text);
        assert_int_equal(io_picture_find_text(copy, cut, "cut", "none", &text), DDPM_ERR_FORMAT);
        free(copy);
    }
    free(data);
    /* An iTXt chunk that ends inside its fields. */
    unsigned char file[128] = {137, 'P', 'N', 'G', 13, 10, 26, 10};
    char *text;
    size = 8 + put_chunk(file + 8, "iTXt", "Title\0\0\0de\0x", 12);
    size += put_chunk(file + size, "IEND", "", 0);
    fails(io_picture_find_text(file, size, "fields.png", "Title", &text), DDPM_ERR_FORMAT,
          "fields.png: the text 'Title' is");
}

static void test_write_errors(void **state)
{
    (void)state;
    char folder[256];
    make_folder(folder, sizeof folder);
    io_picture picture = noise(4, 4, 3), empty = {0};
    fails(io_picture_write_png(in_folder(folder, "none/out.png"), &picture, NULL, 0), DDPM_ERR_FILE, "none/out.png");
    assert_int_equal(io_picture_write_png(folder, &picture, NULL, 0), DDPM_ERR_FILE);
    const char *path = in_folder(folder, "out.png");
    fails(io_picture_write_png(path, &empty, NULL, 0), DDPM_ERR_ARGUMENT, "0 x 0");
    char long_keyword[81];
    memset(long_keyword, 'k', 80);
    long_keyword[80] = 0;
    const char *const bad[] = {"", " seed", "seed ", "a  b", "a\nb", "Größe", long_keyword};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        fails(io_picture_write_png(path, &picture, &(io_text){bad[i], "x"}, 1), DDPM_ERR_ARGUMENT, "keyword");
    assert_false(io_is_file(path));
    io_picture_free(&picture);
    succeeds(io_remove_tree(folder));
}

/* ---- 5. Resize ---- */

typedef ddpm_result resize(const io_picture *in, int width, int height, io_picture *out);

static void compare_resizes(const char *path, int count, resize *resize)
{
    io_safetensors vectors;
    succeeds(io_safetensors_open(path, &vectors));
    assert_int_equal(vectors.tensors, count);
    for (int i = 0; i < vectors.tensors; i++) {
        const io_tensor *expected = &vectors.tensor[i];
        int width, height;
        assert_int_equal(sscanf(expected->name, "%dx%d", &width, &height), 2);
        io_picture in = noise(width, height, (int)expected->shape[2]), out = {0};
        succeeds(resize(&in, (int)expected->shape[1], (int)expected->shape[0], &out));
        difference d = compare(&out, expected);
        if (d.largest != 0) /* the same integers in the same order: no bit may differ */
            fail_msg("%s: differs from PIL by %d, on average %g", expected->name, d.largest, d.mean);
        io_picture_free(&in);
        io_picture_free(&out);
    }
    io_safetensors_close(&vectors);
}

static void test_resize_as_pil(void **state)
{
    (void)state;
    compare_resizes(VECTORS "resize.safetensors", 15, io_picture_resize);
}

static void test_resize_crop_as_torchvision(void **state)
{
    (void)state;
    compare_resizes(VECTORS "crop.safetensors", 10, io_picture_resize_crop);
}

static void test_resize_errors(void **state)
{
    (void)state;
    io_picture in = noise(4, 4, 3), out;
    fails(io_picture_resize(&in, 0, 4, &out), DDPM_ERR_ARGUMENT, "0 x 4");
    fails(io_picture_resize(&in, 1 << 20, 1 << 10, &out), DDPM_ERR_ARGUMENT, "1048576 x 1024");
    assert_null(out.pixel);
    fails(io_picture_resize_crop(&in, 0, 4, &out), DDPM_ERR_ARGUMENT, "0 x 4");
    io_picture_free(&in);
    in = noise(60000, 1, 1); /* to cover 64x64 it would be 3,840,000 wide: more than a picture may be */
    fails(io_picture_resize_crop(&in, 64, 64, &out), DDPM_ERR_ARGUMENT, "3840000 x 64");
    assert_null(out.pixel);
    io_picture_free(&in);
}

/* ---- 6. GIF ---- */

/* What giflib reads back, as RGB, of frame `index`. */
static void expect_frame(const GifFileType *gif, int index, const io_picture *frame, int delay, int within)
{
    const SavedImage *image = &gif->SavedImages[index];
    GraphicsControlBlock control;
    assert_int_equal(image->ImageDesc.Width, frame->width);
    assert_int_equal(image->ImageDesc.Height, frame->height);
    assert_int_equal(DGifSavedExtensionToGCB((GifFileType *)(uintptr_t)gif, index, &control), GIF_OK);
    assert_int_equal(control.DelayTime, delay);
    for (int i = 0; i < frame->width * frame->height; i++) {
        const GifColorType *c = &image->ImageDesc.ColorMap->Colors[image->RasterBits[i]];
        const int got[] = {c->Red, c->Green, c->Blue};
        for (int k = 0; k < 3; k++)
            assert_in_range(abs(got[k] - frame->pixel[frame->channels == 3 ? 3 * i + k : i]), 0, within);
    }
}

/* Few colours are exact. 4096 evenly spread ones are cut into 256 boxes of 8x8x4 cells of 6 bits at most: a colour is
 * at most 31 from its box's mean. Gray has 64 cells of 4 levels: at most 3 from the mean. */
static void test_gif(void **state)
{
    (void)state;
    static const unsigned char bar[] = {255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255};
    char path[] = "/tmp/test_gif_XXXXXX";
    close(mkstemp(path));
    io_picture frame[3];
    succeeds(io_picture_create(64, 64, 3, &frame[0]));
    succeeds(io_picture_create(64, 64, 3, &frame[1]));
    succeeds(io_picture_create(64, 64, 1, &frame[2]));
    for (int i = 0; i < 64 * 64; i++) {
        memcpy(frame[0].pixel + 3 * i, bar + 3 * (i % 4), 3);
        for (int k = 0; k < 3; k++)
            frame[1].pixel[3 * i + k] = (unsigned char)(17 * (i >> 4 * k & 15));
        frame[2].pixel[i] = (unsigned char)(i / 16);
    }
    succeeds(io_gif_write(path, frame, 3, 7, 150, "made by this test"));
    int error;
    GifFileType *gif = DGifOpenFileName(path, &error);
    assert_non_null(gif);
    assert_int_equal(DGifSlurp(gif), GIF_OK);
    assert_int_equal(gif->ImageCount, 3);
    expect_frame(gif, 0, &frame[0], 7, 0);
    expect_frame(gif, 1, &frame[1], 7, 31);
    expect_frame(gif, 2, &frame[2], 150, 3);
    assert_int_equal(gif->SavedImages[0].ExtensionBlockCount, 4); /* for ever, its number, the comment, the delay */
    assert_memory_equal(gif->SavedImages[0].ExtensionBlocks[0].Bytes, "NETSCAPE2.0", 11);
    DGifCloseFile(gif, &error);
    fails(io_gif_write(path, frame, 0, 7, 150, NULL), DDPM_ERR_ARGUMENT, "0 frames");
    fails(io_gif_write(path, frame, 1, -1, 150, NULL), DDPM_ERR_ARGUMENT, "for -1 and 150 hundredths");
    fails(io_gif_write("/dev/full", frame, 1, 1, 1, NULL), DDPM_ERR_FILE, "/dev/full");
    frame[1].height = 32;
    fails(io_gif_write(path, frame, 2, 1, 1, NULL), DDPM_ERR_SHAPE, "frame 1 is 64x32");
    for (int i = 0; i < 3; i++)
        io_picture_free(&frame[i]);
    unlink(path);
}

/* ---- 7. Reals and grids ---- */

static const io_tensor *find(const io_safetensors *vectors, const char *name)
{
    const io_tensor *tensor = io_safetensors_find(vectors, name);
    if (!tensor) fail_msg("no vector '%s'", name);
    return tensor;
}

static ddpm_real *reals(const io_tensor *tensor)
{
    ddpm_real *out = malloc(tensor->elements * sizeof *out);
    float *value = malloc(tensor->elements * sizeof *value);
    assert_non_null(out);
    assert_non_null(value);
    succeeds(io_tensor_floats(tensor, value));
    for (size_t i = 0; i < tensor->elements; i++)
        out[i] = (ddpm_real)value[i];
    free(value);
    return out;
}

/* One rounding after the other in float32, as torch: equal to the last bit. */
static void test_reals_as_torchvision(void **state)
{
    (void)state;
    io_safetensors vectors;
    succeeds(io_safetensors_open(VECTORS "grid.safetensors", &vectors));
    ddpm_real *expected = reals(find(&vectors, "to_real")), out[256 * 3];
    io_picture bytes, back;
    succeeds(io_picture_create(256, 1, 3, &bytes));
    for (int i = 0; i < 256; i++)
        for (int c = 0; c < 3; c++)
            bytes.pixel[3 * i + c] = (unsigned char)(i + c);
    io_picture_to_real(&bytes, out);
    for (int i = 0; i < 256; i++)
        for (int c = 0; c < 3; c++)
            assert_true(out[256 * c + i] == expected[(i + c) % 256]);
    succeeds(io_picture_from_real(out, 3, 1, 256, &back)); /* there and back is the identity */
    assert_memory_equal(back.pixel, bytes.pixel, 256 * 3);
    io_picture_free(&bytes);
    io_picture_free(&back);
    free(expected);

    const io_tensor *levels = find(&vectors, "from_real.out");
    ddpm_real *x = reals(find(&vectors, "from_real.in"));
    succeeds(io_picture_from_real(x, 1, 1, (int)levels->elements, &back));
    assert_memory_equal(back.pixel, levels->data, levels->elements);
    io_picture_free(&back);
    free(x);
    const volatile ddpm_real zero = 0;
    const ddpm_real wild[] = {zero / zero, 1 / zero, -1 / zero};
    succeeds(io_picture_from_real(wild, 1, 1, 3, &back));
    assert_memory_equal(back.pixel, "\x00\xff\x00", 3);
    io_picture_free(&back);
    io_safetensors_close(&vectors);
}

static void test_grids_as_torchvision(void **state)
{
    (void)state;
    io_safetensors vectors;
    succeeds(io_safetensors_open(VECTORS "grid.safetensors", &vectors));
    int grids = 0;
    for (int i = 0; i < vectors.tensors; i++) {
        const io_tensor *in = &vectors.tensor[i];
        int index, per_row, padding, normalize;
        if (sscanf(in->name, "%d.in.%d.%d.%d", &index, &per_row, &padding, &normalize) != 4) continue;
        char name[32];
        snprintf(name, sizeof name, "%d.out", index);
        const int count = (int)in->shape[0], channels = (int)in->shape[1], height = (int)in->shape[2],
                  width = (int)in->shape[3];
        ddpm_real *x = reals(in);
        io_picture grid;
        succeeds(io_make_grid_real(x, count, channels, height, width, per_row, padding, normalize, &grid));
        assert_int_equal(compare(&grid, find(&vectors, name)).largest, 0);
        io_picture_free(&grid);
        if (!normalize) { /* the same from pictures */
            io_picture *picture = calloc((size_t)count, sizeof *picture);
            assert_non_null(picture);
            for (int p = 0; p < count; p++)
                succeeds(io_picture_from_real(x + p * channels * height * width, channels, height, width, &picture[p]));
            succeeds(io_make_grid(picture, count, per_row, padding, &grid));
            assert_int_equal(compare(&grid, find(&vectors, name)).largest, 0);
            io_picture_free(&grid);
            for (int p = 0; p < count; p++)
                io_picture_free(&picture[p]);
            free(picture);
        }
        free(x);
        grids++;
    }
    assert_int_equal(grids, 6);
    io_safetensors_close(&vectors);
}

static void test_grid_errors(void **state)
{
    (void)state;
    io_picture pair[2] = {noise(3, 3, 3), noise(3, 4, 3)}, out;
    fails(io_make_grid(pair, 2, 8, 2, &out), DDPM_ERR_SHAPE, "picture 1 of the grid is 3 x 4");
    fails(io_make_grid(pair, 0, 8, 2, &out), DDPM_ERR_ARGUMENT, "0 pictures");
    fails(io_make_grid(pair, 1, 0, 2, &out), DDPM_ERR_ARGUMENT, "0 a row");
    assert_null(out.pixel);
    io_picture_free(&pair[0]);
    io_picture_free(&pair[1]);
    pair[0] = noise(8000, 8000, 1);
    pair[1] = pair[0];
    fails(io_make_grid(pair, 2, 8, 2, &out), DDPM_ERR_ARGUMENT, "larger than a picture may be");
    io_picture_free(&pair[0]);
}

/* ---- 8. Charts ---- */

/* How many pixels have exactly this colour. */
static int count_color(const io_picture *picture, unsigned color)
{
    int count = 0;
    for (int i = 0; i < picture->width * picture->height; i++) {
        const unsigned char *p = picture->pixel + 3 * i;
        count += ((unsigned)p[0] << 16 | (unsigned)p[1] << 8 | p[2]) == color;
    }
    return count;
}

static void test_chart(void **state)
{
    (void)state;
    double y[100], x[100];
    for (int i = 0; i < 100; i++) {
        x[i] = 10.0 * i;
        y[i] = 1.0 / (1 + i);
    }
    const io_series series[] = {{"first", x, y, 100, 0xFF0000, 9}, {NULL, x, x, 2, 0x0000FF, 0}};
    io_plot plot = {"Loss", "step", "error", series, 1, 0, 0, 0};
    io_picture one, again, two;
    succeeds(io_plot_draw(&plot, &one));
    succeeds(io_plot_draw(&plot, &again));
    assert_int_equal(one.width, 960);
    assert_int_equal(one.height, 540);
    assert_memory_equal(one.pixel, again.pixel, 960 * 540 * 3); /* nothing but the arguments counts */
    assert_memory_equal(one.pixel, "\xff\xff\xff", 3);
    assert_true(count_color(&one, 0xFF0000) > 300); /* a line across more than half of the width */
    assert_int_equal(count_color(&one, 0x0000FF), 0);
    plot.count = 2;
    succeeds(io_plot_draw(&plot, &two));
    assert_true(count_color(&two, 0x0000FF) > 0);
    io_picture_free(&one);
    io_picture_free(&again);
    io_picture_free(&two);
}

/* A horizontal line stands where its value is: y = 1 in a range of 0 to 2 is half way up the frame. */
static void test_chart_places(void **state)
{
    (void)state;
    const double low[] = {0, 0}, high[] = {2, 2}, middle[] = {1, 1};
    const io_series series[] = {
        {NULL, NULL, low, 2, 0xFF0000, 0}, {NULL, NULL, high, 2, 0x00FF00, 0}, {NULL, NULL, middle, 2, 0x0000FF, 0}};
    const unsigned color[] = {0xFF0000, 0x00FF00, 0x0000FF};
    io_picture picture;
    succeeds(io_plot_draw(&(io_plot){.series = series, .count = 3, .width = 400, .height = 300}, &picture));
    double row[3];
    for (int s = 0; s < 3; s++) {
        double sum = 0, count = 0;
        for (int i = 0; i < 400 * 300; i++) {
            const unsigned char *p = picture.pixel + 3 * i;
            if (((unsigned)p[0] << 16 | (unsigned)p[1] << 8 | p[2]) == color[s]) {
                sum += i / 400;
                count++;
            }
        }
        assert_true(count >= 300);
        row[s] = sum / count;
    }
    assert_true(row[0] > row[1]);
    assert_true(row[2] > (row[0] + row[1]) / 2 - 1 && row[2] < (row[0] + row[1]) / 2 + 1); /* rounded to a pixel each */
    io_picture_free(&picture);
}

/* However little a logarithmic axis spans, several lines across the frame tell its values. */
static void test_chart_of_a_short_logarithm(void **state)
{
    (void)state;
    const double span[] = {1.002, 1.1, 1.3, 1.7, 2, 2.6, 3.3, 4, 5, 6.5, 7.9, 9, 12, 20};
    for (size_t i = 0; i < sizeof span / sizeof *span; i++) {
        const double y[] = {1, span[i]};
        const io_series series = {NULL, NULL, y, 2, 0xFF0000, 0};
        io_picture picture;
        succeeds(
            io_plot_draw(&(io_plot){.series = &series, .count = 1, .log_y = 1, .width = 400, .height = 300}, &picture));
        int lines = 0;
        for (int row = 1; row < 300; row++) { /* down a column, the colour of the lines below white */
            const unsigned char *p = picture.pixel + 3 * (row * 400 + 233), *above = p - 3 * 400;
            lines += p[0] == 0xE7 && above[0] == 0xFF;
        }
        assert_true(lines >= 3 && lines <= 13);
        io_picture_free(&picture);
    }
}

/* The mean of the points on either side does not lag behind: that of a ramp is the ramp, but near its ends. */
static void test_chart_mean(void **state)
{
    (void)state;
    double ramp[81];
    for (int i = 0; i <= 80; i++)
        ramp[i] = i;
    io_series series = {NULL, NULL, ramp, 81, 0xFF0000, 0};
    io_plot plot = {.series = &series, .count = 1, .width = 400, .height = 300};
    io_picture line, mean;
    succeeds(io_plot_draw(&plot, &line));
    series.reach = 5;
    succeeds(io_plot_draw(&plot, &mean));
    int red = 0;
    for (int i = 0; i < 400 * 300; i++) {
        const unsigned char *p = line.pixel + 3 * i;
        if (i % 400 < 100 || i % 400 >= 300 || p[0] != 255 || p[1] || p[2]) continue;
        assert_memory_equal(p, mean.pixel + 3 * i, 3);
        red++;
    }
    assert_true(red >= 200);
    io_picture_free(&line);
    io_picture_free(&mean);
}

/* Whatever the numbers are, drawing ends and stays within its memory. */
static void test_chart_of_odd_numbers(void **state)
{
    (void)state;
    const volatile double zero = 0;
    const double odd[][4] = {{5, 5, 5, 5},
                             {zero / zero, 1, 1 / zero, 2},
                             {0, 0, 0, 0},
                             {1e-320, 1, 1e29, -1e29},
                             {1, 1 + 1e-15, 1, 1},
                             {1e-300, 2e-300, 0, 1e-320},
                             {-1e-7, -3e-7, -2e-7, -5e-7}};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
        for (int log_y = 0; log_y < 2; log_y++) {
            const io_series series = {"Größe – 雪, far longer than the chart is wide", NULL, odd[i], 4, 0, 1};
            io_plot plot = {series.name, series.name, series.name, &series, 1, log_y, 240, 160};
            io_picture picture;
            const int empty = log_y && (i == 2 || i == 6);
            assert_int_equal(io_plot_draw(&plot, &picture), empty ? DDPM_ERR_ARGUMENT : DDPM_OK);
            io_picture_free(&picture);
        }
}

static void test_chart_errors(void **state)
{
    (void)state;
    const double y[] = {1, 2};
    io_series series = {"s", NULL, y, 2, 0, 0};
    io_plot plot = {.title = "Loss", .series = &series, .count = 1, .width = 100, .height = 100};
    io_picture picture;
    fails(io_plot_draw(&plot, &picture), DDPM_ERR_ARGUMENT, "'Loss': 100 x 100 pixels");
    plot.width = plot.height = 0;
    series.reach = -1;
    fails(io_plot_draw(&plot, &picture), DDPM_ERR_ARGUMENT, "series 0 has a reach of -1");
    series.reach = 0;
    series.count = 0;
    fails(io_plot_draw(&plot, &picture), DDPM_ERR_ARGUMENT, "no point to draw");
    assert_null(picture.pixel);
}

/* ---- 9. main ---- */

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--write") == 0) {
        io_picture picture = noise(37, 21, 3);
        ddpm_result result = io_picture_write_png(argv[2], &picture, our_texts, 3);
        io_picture_free(&picture);
        return result != DDPM_OK;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kind_as_pil),
        cmocka_unit_test(test_cut_short_anywhere),
        cmocka_unit_test(test_changed_bytes),
        cmocka_unit_test(test_lying_headers),
        cmocka_unit_test(test_not_a_picture),
        cmocka_unit_test(test_write_and_read_back),
        cmocka_unit_test(test_texts_of_pil),
        cmocka_unit_test(test_texts_cut_short),
        cmocka_unit_test(test_write_errors),
        cmocka_unit_test(test_resize_as_pil),
        cmocka_unit_test(test_resize_crop_as_torchvision),
        cmocka_unit_test(test_resize_errors),
        cmocka_unit_test(test_gif),
        cmocka_unit_test(test_reals_as_torchvision),
        cmocka_unit_test(test_grids_as_torchvision),
        cmocka_unit_test(test_grid_errors),
        cmocka_unit_test(test_chart),
        cmocka_unit_test(test_chart_places),
        cmocka_unit_test(test_chart_of_a_short_logarithm),
        cmocka_unit_test(test_chart_mean),
        cmocka_unit_test(test_chart_of_odd_numbers),
        cmocka_unit_test(test_chart_errors),
    };
    return cmocka_run_group_tests_name("picture", tests, NULL, NULL);
}
