/* lab/augment.c - see lab/augment.h. */
#include "lab/augment.h"

#include <string.h>

lab_augmentation lab_augmentation_default(void)
{
    return (lab_augmentation){.flip = 0.5,
                              .shift = 3,
                              .halved = 0.25,
                              .blurred = 0.25,
                              .contrast = 0.15,
                              .colour = 0.04,
                              .brightness = 0.1,
                              .noisy = 0.5,
                              .noise = 0.12};
}

/* What is drawn for a picture, each uniform in [0,1). */
enum { FLIP, SHIFT_X, SHIFT_Y, SOFT, CONTRAST, BRIGHTNESS, NOISY, NOISE, COLOUR, DRAWS = COLOUR + 4 };

static void draw(ddpm_address address, double out[DRAWS])
{
    uint32_t word[4] = {0};
    for (int i = 0; i < DRAWS; i++) {
        if (i % 4 == 0) ddpm_philox(address, (uint32_t)(i / 4), word);
        out[i] = (double)word[i % 4] * 0x1p-32;
    }
}

static int clamped(int i, int count)
{
    return i < 0 ? 0 : i < count ? i : count - 1;
}

/* Where in a plane the moved picture's pixel (y, x) comes from. */
static int source_of(int height, int width, int flip, int dx, int dy, int y, int x)
{
    return clamped(y + dy, height) * width + clamped((flip ? width - 1 - x : x) + dx, width);
}

void lab_move(const ddpm_real *from, int height, int width, int flip, int dx, int dy, ddpm_real *to)
{
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            to[y * width + x] = from[source_of(height, width, flip, dx, dy, y, x)];
}

void lab_move_back(const ddpm_real *gradient, int height, int width, int flip, int dx, int dy, ddpm_real *to)
{
    memset(to, 0, (size_t)(height * width) * sizeof *to);
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            to[source_of(height, width, flip, dx, dy, y, x)] += gradient[y * width + x];
}

/* The plane in rows (or columns): out[i] = (in[i-1] + 2 in[i] + in[i+1]) / 4 */
static void blur_lines(const ddpm_real *from, int lines, int length, int line, int step, ddpm_real *to)
{
    for (int l = 0; l < lines; l++)
        for (int i = 0; i < length; i++) {
            const ddpm_real *in = from + l * line;
            to[l * line + i * step] =
                (in[clamped(i - 1, length) * step] + 2 * in[i * step] + in[clamped(i + 1, length) * step]) / 4;
        }
}

/* Means of 2x2, then bilinear: a pixel lies a quarter of a coarse one from the nearest coarse centre, so it is 9, 3, 3
 * and 1 sixteenths of the four around (interpolate(scale_factor=2, mode="bilinear", align_corners=False)). */
static void halve_and_enlarge(const ddpm_real *from, int height, int width, ddpm_real *coarse, ddpm_real *to)
{
    int h = height / 2, w = width / 2;
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            const ddpm_real *in = from + 2 * y * width + 2 * x;
            coarse[y * w + x] = (in[0] + in[1] + in[width] + in[width + 1]) / 4;
        }
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            const ddpm_real *near = coarse + y / 2 * w, *far = coarse + clamped(y / 2 + (y % 2 ? 1 : -1), h) * w;
            int nx = x / 2, fx = clamped(x / 2 + (x % 2 ? 1 : -1), w);
            to[y * width + x] = (9 * near[nx] + 3 * near[fx] + 3 * far[nx] + far[fx]) / 16;
        }
}

void lab_augment(const lab_augmentation *a, ddpm_address address, int channels, int height, int width,
                 ddpm_real *picture, ddpm_real *scratch)
{
    double u[DRAWS];
    draw(address, u);
    size_t plane = (size_t)height * (size_t)width;
    int dx = (int)(u[SHIFT_X] * (2 * a->shift + 1)) - a->shift, dy = (int)(u[SHIFT_Y] * (2 * a->shift + 1)) - a->shift;
    for (int c = 0; c < channels; c++) {
        ddpm_real *x = picture + (size_t)c * plane;
        lab_move(x, height, width, u[FLIP] < a->flip, dx, dy, scratch);
        memcpy(x, scratch, plane * sizeof *x);
        if (u[SOFT] < a->halved) {
            halve_and_enlarge(scratch, height, width, scratch + plane, x);
        } else if (u[SOFT] < a->halved + a->blurred) {
            blur_lines(x, height, width, width, 1, scratch);
            blur_lines(scratch, width, height, 1, width, x);
        }
        double gain = (1 + a->contrast * (2 * u[CONTRAST] - 1)) * (1 + a->colour * (2 * u[COLOUR + c % 4] - 1));
        double lift = a->brightness * (2 * u[BRIGHTNESS] - 1);
        for (size_t i = 0; i < plane; i++)
            x[i] = (ddpm_real)(gain * (double)x[i] + lift);
    }
    double sigma = u[NOISY] < a->noisy ? a->noise * u[NOISE] : 0;
    address.purpose++;
    if (sigma > 0) ddpm_normals(address, (size_t)channels * plane, scratch);
    for (size_t i = 0; i < (size_t)channels * plane; i++) {
        double v = (double)picture[i] + (sigma > 0 ? sigma * (double)scratch[i] : 0);
        picture[i] = (ddpm_real)(v < -1 ? -1 : v > 1 ? 1 : v);
    }
}
