/* io/plot.c - line charts as pictures (see io/plot.h). Everything is drawn as coverage, a number in [0,1] a pixel,
 * which is then mixed with what lies below; so lines of one series that cross do not add up, and edges are smooth.
 *
 * Contents:  1 canvas   2 letters   3 ranges and ticks   4 frame   5 lines   6 legend   7 io_plot_draw */
#include "io/plot.h"

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __GNUC__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include <stb/stb_easy_font.h>
#ifdef __GNUC__
#pragma GCC diagnostic pop
#endif

enum { WHITE = 0xFFFFFF, INK = 0x30343B, FAINT_INK = 0x6B717B, FRAME = 0xA9AFB8, GRID = 0xE7E9ED };

/* ---- 1. Canvas -------------------------------------------------------------------------------------------------- */

typedef struct canvas {
    io_picture picture;
    float *cover;                    /* (height, width): coverage of what is being drawn; zero between drawings */
    double left, right, top, bottom; /* the frame, in pixels */
} canvas;

/* pixel = pixel + (color - pixel) amount */
static void mix(canvas *c, int x, int y, unsigned color, double amount)
{
    if (x < 0 || y < 0 || x >= c->picture.width || y >= c->picture.height) return;
    unsigned char *pixel = c->picture.pixel + ((size_t)y * (size_t)c->picture.width + (size_t)x) * 3;
    for (int i = 0; i < 3; i++) {
        double to = color >> (16 - 8 * i) & 255;
        pixel[i] = (unsigned char)(pixel[i] + (to - pixel[i]) * amount + 0.5);
    }
}

static void fill(canvas *c, int left, int top, int right, int bottom, unsigned color, double amount)
{
    for (int y = top; y < bottom; y++)
        for (int x = left; x < right; x++)
            mix(c, x, y, color, amount);
}

/* Covers a segment of a line `width` pixels wide with round ends. A pixel whose centre is at distance d from the
 * segment is covered by clamp(width / 2 + 1/2 - d, 0, 1). */
static void cover_segment(canvas *c, double x0, double y0, double x1, double y1, double width)
{
    const double reach = width / 2 + 1, dx = x1 - x0, dy = y1 - y0, square = dx * dx + dy * dy;
    const int first_x = (int)fmax(0, floor(fmin(x0, x1) - reach)), first_y = (int)fmax(0, floor(fmin(y0, y1) - reach));
    const int last_x = (int)fmin(c->picture.width - 1, ceil(fmax(x0, x1) + reach));
    const int last_y = (int)fmin(c->picture.height - 1, ceil(fmax(y0, y1) + reach));
    for (int y = first_y; y <= last_y; y++) {
        for (int x = first_x; x <= last_x; x++) {
            const double px = x + 0.5 - x0, py = y + 0.5 - y0;
            const double t = square > 0 ? fmin(1, fmax(0, (px * dx + py * dy) / square)) : 0;
            const double amount = fmin(1, width / 2 + 0.5 - hypot(px - t * dx, py - t * dy));
            float *cover = c->cover + (size_t)y * (size_t)c->picture.width + (size_t)x;
            if (amount > *cover) *cover = (float)amount;
        }
    }
}

/* Mixes in what has been covered, and clears it. */
static void paint(canvas *c, unsigned color, double amount)
{
    float *cover = c->cover;
    for (int y = 0; y < c->picture.height; y++)
        for (int x = 0; x < c->picture.width; x++, cover++)
            if (*cover > 0) {
                mix(c, x, y, color, *cover * amount);
                *cover = 0;
            }
}

/* ---- 2. Letters -------------------------------------------------------------------------------------------------
 * stb_easy_font's letters are made of bars one unit thick. Each is drawn as a line with round ends, `scale` pixels a
 * unit. */
enum { LONGEST_TEXT = 120, CAPITAL = 7 /* height of a capital, in units */ };

/* What the font has: 32..126. Longer texts are cut. */
static void plain_text(const char *text, char out[LONGEST_TEXT + 1])
{
    int length = 0;
    for (; text && *text && length < LONGEST_TEXT; text++)
        if (((unsigned char)*text & 0xC0) != 0x80) /* one '?' for a letter of several bytes */
            out[length++] = *text >= 32 && *text <= 126 ? *text : '?';
    out[length] = 0;
}

static double text_width(const char *text, double scale)
{
    char plain[LONGEST_TEXT + 1];
    plain_text(text, plain);
    return stb_easy_font_width(plain) * scale;
}

/* Draws `text` with its capitals' top left corner at (x, y); align 0, 0.5, 1: x is its left end, middle, right end. */
static void draw_text(canvas *c, double x, double y, double align, double scale, unsigned color, const char *text)
{
    struct {
        float x, y, z;
        unsigned char color[4];
    } corner[LONGEST_TEXT * 12 * 4];
    char plain[LONGEST_TEXT + 1];
    plain_text(text, plain);
    x = floor(x - align * text_width(text, scale) + 0.5);
    y = floor(y + 0.5);
    const int bars = stb_easy_font_print(0, 0, plain, NULL, corner, (int)sizeof corner);
    const double half = scale / 2;
    for (int i = 0; i < bars; i++)
        cover_segment(c, x + corner[4 * i].x * scale + half, y + corner[4 * i].y * scale + half,
                      x + corner[4 * i + 2].x * scale - half, y + corner[4 * i + 2].y * scale - half, 0.95 * scale);
    paint(c, color, 1);
}

/* ---- 3. Ranges and ticks ---------------------------------------------------------------------------------------- */

typedef struct axis {
    double low, high; /* what the frame's ends stand for; logarithms to base 10 if `logarithmic` */
    int logarithmic;
    double step; /* between ticks; 0 on a logarithmic axis long enough for 1, 2, 5 times powers of ten */
} axis;

static double x_of(const io_series *series, int i)
{
    return series->x ? series->x[i] : i;
}

static int is_drawable(const io_plot *plot, double x, double y)
{
    return fabs(x) <= 1e30 && fabs(y) <= 1e30 && (!plot->log_y || y > 0); /* NaN compares false */
}

/* The smallest of 1, 2, 5 times a power of ten that is at least `step`. */
static double nice_step(double step)
{
    const double power = pow(10, floor(log10(step)));
    const double digit = step / power;
    return power * (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10);
}

/* A range that is a point gets a width. */
static void widen(axis *a)
{
    if (a->high - a->low > fmax(1e-30, 1e-12 * fmax(fabs(a->low), fabs(a->high)))) return;
    const double margin = a->logarithmic ? 0.5 : fabs(a->low) > 1e-30 ? 0.1 * fabs(a->low) : 1;
    a->low -= margin;
    a->high += margin;
}

/* Decades of a logarithmic axis that see too few of 1, 2, 5 times powers of ten: their ticks are evenly spaced. */
#define SHORT 0.9

/* The ranges of all points; y is rounded outward to ticks, or by a margin on a logarithmic axis. 0 if there are
 * none. */
static int find_axes(const io_plot *plot, axis *across, axis *up)
{
    *across = *up = (axis){.low = INFINITY, .high = -INFINITY};
    up->logarithmic = plot->log_y;
    for (int s = 0; s < plot->count; s++) {
        for (int i = 0; i < plot->series[s].count; i++) {
            const double x = x_of(&plot->series[s], i), y = plot->series[s].y[i], v = plot->log_y ? log10(y) : y;
            if (!is_drawable(plot, x, y)) continue;
            across->low = fmin(across->low, x);
            across->high = fmax(across->high, x);
            up->low = fmin(up->low, v);
            up->high = fmax(up->high, v);
        }
    }
    if (across->low > across->high) return 0;
    widen(across);
    widen(up);
    across->step = nice_step((across->high - across->low) / 8);
    const double height = up->high - up->low;
    if (up->logarithmic) {
        up->low -= 0.04 * height;
        up->high += 0.04 * height;
        if (height < SHORT) up->step = nice_step((pow(10, up->high) - pow(10, up->low)) / 6);
    } else {
        up->step = nice_step(height / 6);
        up->low = floor(up->low / up->step + 1e-9) * up->step;
        up->high = ceil(up->high / up->step - 1e-9) * up->step;
    }
    return 1;
}

static double pixel_x(const canvas *c, const axis *a, double x)
{
    return c->left + (x - a->low) / (a->high - a->low) * (c->right - c->left);
}

static double pixel_y(const canvas *c, const axis *a, double y)
{
    const double v = a->logarithmic ? log10(y) : y;
    return c->bottom - (v - a->low) / (a->high - a->low) * (c->bottom - c->top);
}

enum { MOST_TICKS = 40 };

/* The values that get a tick, into tick[]; returns how many: multiples of the step; without one powers of ten and, with
 * less than three of them in sight, also 2 and 5 times them. */
static int find_ticks(const axis *a, double tick[MOST_TICKS])
{
    int count = 0;
    if (a->step > 0) {
        const double low = a->logarithmic ? pow(10, a->low) : a->low,
                     high = a->logarithmic ? pow(10, a->high) : a->high;
        const double first = ceil(low / a->step - 1e-6);
        for (int i = 0; i < MOST_TICKS && (first + i) * a->step <= high + 1e-6 * a->step; i++)
            tick[count++] = (first + i) * a->step;
        return count;
    }
    const int decades = (int)(floor(a->high) - ceil(a->low)) + 1, every = 1 + decades / 8;
    for (int decade = (int)floor(a->low); decade <= a->high && count + 3 <= MOST_TICKS; decade++) {
        for (int digit = 1; digit <= 5; digit = digit == 1 ? 2 : digit + 3) {
            const double value = digit * pow(10, decade);
            const int shown = digit == 1 ? decade % every == 0 : decades < 3;
            if (shown && log10(value) >= a->low && log10(value) <= a->high) tick[count++] = value;
        }
    }
    return count;
}

/* "0.25": as many decimals as the step has; "%g" where that would be long. */
static void tick_text(const axis *a, double value, char *out, size_t size)
{
    const double step = a->step > 0 ? a->step : value,
                 largest = a->logarithmic ? value : fmax(fabs(a->low), fabs(a->high));
    const int decimals = (int)fmax(0, ceil(-log10(step) - 1e-9));
    if (largest >= 1e7 || decimals > 5)
        snprintf(out, size, "%.4g", fabs(value) < 1e-9 * step ? 0 : value);
    else
        snprintf(out, size, "%.*f", decimals, fabs(value) < 1e-9 * step ? 0 : value);
}

/* ---- 4. Frame --------------------------------------------------------------------------------------------------- */

enum { TEXT = 2, TITLE = 3, GAP = 12 }; /* pixels a unit of letters; between things */

/* Room for title, labels and ticks around the frame. */
static void lay_out(canvas *c, const io_plot *plot, const axis *up)
{
    double tick[MOST_TICKS], widest = 0;
    for (int i = find_ticks(up, tick) - 1; i >= 0; i--) {
        char text[32];
        tick_text(up, tick[i], text, sizeof text);
        widest = fmax(widest, text_width(text, TEXT));
    }
    const int has_title = plot->title && *plot->title, has_x = plot->x_label && *plot->x_label;
    const int has_y = plot->y_label && *plot->y_label;
    c->left = floor(2 * GAP + widest);
    c->right = c->picture.width - 2 * GAP;
    c->top = 2 * GAP + (has_title ? TITLE * CAPITAL + GAP : 0) + (has_y ? TEXT * CAPITAL + GAP : 0);
    c->bottom = c->picture.height - 2 * GAP - TEXT * CAPITAL - (has_x ? TEXT * CAPITAL + GAP : 0);
}

static void draw_frame(canvas *c, const io_plot *plot, const axis *across, const axis *up)
{
    double tick[MOST_TICKS];
    char text[32];
    const int left = (int)c->left, right = (int)c->right, top = (int)c->top, bottom = (int)c->bottom;
    for (int i = find_ticks(up, tick) - 1; i >= 0; i--) {
        const int y = (int)floor(pixel_y(c, up, tick[i]) + 0.5);
        fill(c, left, y, right, y + 1, GRID, 1);
        tick_text(up, tick[i], text, sizeof text);
        draw_text(c, left - GAP, y - TEXT * CAPITAL / 2.0, 1, TEXT, FAINT_INK, text);
    }
    for (int i = find_ticks(across, tick) - 1; i >= 0; i--) {
        const int x = (int)floor(pixel_x(c, across, tick[i]) + 0.5);
        fill(c, x, top, x + 1, bottom, GRID, 1);
        fill(c, x, bottom, x + 1, bottom + 5, FRAME, 1);
        tick_text(across, tick[i], text, sizeof text);
        const double half = text_width(text, TEXT) / 2;
        draw_text(c, fmin(x, c->picture.width - half - 2), bottom + GAP, 0.5, TEXT, FAINT_INK, text);
    }
    fill(c, left, bottom, right + 1, bottom + 1, FRAME, 1);
    double y = 2 * GAP - 4;
    if (plot->title && *plot->title) {
        draw_text(c, left, y, 0, TITLE, INK, plot->title);
        y += TITLE * CAPITAL + GAP + 4;
    }
    draw_text(c, left, y, 0, TEXT, FAINT_INK, plot->y_label);
    draw_text(c, right, bottom + 2 * GAP + TEXT * CAPITAL, 1, TEXT, FAINT_INK, plot->x_label);
}

/* ---- 5. Lines --------------------------------------------------------------------------------------------------- */

/* Wong, Nature Methods 8, 441 (2011) picks colours that the colour-blind can tell apart; these are in that spirit. */
static unsigned color_of(const io_plot *plot, int series)
{
    static const unsigned palette[8] = {0x2563C9, 0xE0702A, 0x2A9D6F, 0xC23B4E, 0x7D55B8, 0x12A0B5, 0xB08A1E, 0x5B6470};
    return plot->series[series].color ? plot->series[series].color : palette[series % 8];
}

/* Covers the line through the points, or through the mean of each with `reach` points on either side. */
static void cover_line(canvas *c, const io_plot *plot, const io_series *series, const axis *across, const axis *up,
                       int reach, double width)
{
    double last_x = 0, last_y = 0;
    for (int i = 0, joined = 0; i < series->count; i++) {
        const double x = x_of(series, i);
        if (!is_drawable(plot, x, series->y[i])) {
            joined = 0;
            continue;
        }
        double sum = 0;
        int summed = 0;
        for (int k = i > reach ? i - reach : 0; k < series->count && k - i <= reach; k++) {
            if (!is_drawable(plot, x_of(series, k), series->y[k])) continue;
            sum += series->y[k];
            summed++;
        }
        const double to_x = pixel_x(c, across, x), to_y = pixel_y(c, up, sum / summed);
        cover_segment(c, joined ? last_x : to_x, joined ? last_y : to_y, to_x, to_y, width);
        last_x = to_x;
        last_y = to_y;
        joined = 1;
    }
}

static void draw_lines(canvas *c, const io_plot *plot, const axis *across, const axis *up)
{
    for (int s = 0; s < plot->count; s++) {
        if (plot->series[s].reach > 0) {
            cover_line(c, plot, &plot->series[s], across, up, 0, 1.2);
            paint(c, color_of(plot, s), 0.28);
        }
    }
    for (int s = 0; s < plot->count; s++) {
        cover_line(c, plot, &plot->series[s], across, up, plot->series[s].reach, 2.6);
        paint(c, color_of(plot, s), 1);
    }
}

/* ---- 6. Legend -------------------------------------------------------------------------------------------------- */

/* How many pixels of a rectangle are coloured (frame, grid and letters are nearly gray). */
static int count_colored(const canvas *c, int left, int top, int right, int bottom)
{
    int count = 0;
    for (int y = top; y < bottom; y++) {
        for (int x = left; x < right; x++) {
            const unsigned char *p = c->picture.pixel + ((size_t)y * (size_t)c->picture.width + (size_t)x) * 3;
            count += abs(p[0] - p[1]) > 20 || abs(p[1] - p[2]) > 20;
        }
    }
    return count;
}

/* A box in the corner of the frame where it hides least: upper right, lower right, upper left, lower left. */
static void draw_legend(canvas *c, const io_plot *plot)
{
    enum { line = TEXT * CAPITAL + 10, mark = 26 };
    double widest = 0;
    int names = 0;
    for (int s = 0; s < plot->count; s++) {
        if (plot->series[s].name && *plot->series[s].name) {
            widest = fmax(widest, text_width(plot->series[s].name, TEXT));
            names++;
        }
    }
    const int width = (int)widest + mark + 3 * GAP, height = names * line + GAP + 2;
    if (!names || width > c->right - c->left - 2 * GAP || height > c->bottom - c->top - 2 * GAP) return;
    int left = 0, top = 0, least = INT_MAX;
    for (int corner = 0; corner < 4; corner++) {
        const int x = (int)(corner < 2 ? c->right - GAP - width : c->left + GAP);
        const int y = (int)(corner % 2 ? c->bottom - GAP - height : c->top + GAP);
        const int hidden = count_colored(c, x, y, x + width, y + height);
        if (hidden < least) {
            least = hidden;
            left = x;
            top = y;
        }
    }
    fill(c, left, top, left + width, top + height, WHITE, 0.85);
    for (int s = 0, row = 0; s < plot->count; s++) {
        if (!plot->series[s].name || !*plot->series[s].name) continue;
        const int y = top + GAP + row++ * line;
        const double middle = y + TEXT * CAPITAL / 2 + 0.5;
        cover_segment(c, left + GAP, middle, left + GAP + mark, middle, 3.4);
        paint(c, color_of(plot, s), 1);
        draw_text(c, left + 2 * GAP + mark, y, 0, TEXT, INK, plot->series[s].name);
    }
}

/* ---- 7. io_plot_draw -------------------------------------------------------------------------------------------- */

ddpm_result io_plot_draw(const io_plot *plot, io_picture *out)
{
    const int width = plot->width ? plot->width : 960, height = plot->height ? plot->height : 540;
    const char *title = plot->title ? plot->title : "";
    *out = (io_picture){0};
    if (width < 240 || height < 160)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "plot '%s': %d x %d pixels are too few\n      hint: at least 240 x 160",
                         title, width, height);
    for (int s = 0; s < plot->count; s++)
        if (plot->series[s].reach < 0)
            return ddpm_fail(DDPM_ERR_ARGUMENT, "plot '%s': series %d has a reach of %d\n      hint: 0 is no mean",
                             title, s, plot->series[s].reach);
    axis across, up;
    if (!find_axes(plot, &across, &up))
        return ddpm_fail(DDPM_ERR_ARGUMENT, "plot '%s': there is no point to draw\n      hint: points must be finite%s",
                         title, plot->log_y ? ", and y positive on a logarithmic axis" : "");
    canvas c = {0};
    ddpm_result result = io_picture_create(width, height, 3, &c.picture);
    if (result) return result;
    c.cover = calloc((size_t)width * (size_t)height, sizeof *c.cover);
    if (!c.cover) {
        io_picture_free(&c.picture);
        return ddpm_fail(DDPM_ERR_MEMORY, "plot '%s': no memory for %d x %d pixels", title, width, height);
    }
    memset(c.picture.pixel, 255, (size_t)width * (size_t)height * 3);
    lay_out(&c, plot, &up);
    draw_frame(&c, plot, &across, &up);
    draw_lines(&c, plot, &across, &up);
    draw_legend(&c, plot);
    free(c.cover);
    *out = c.picture;
    return DDPM_OK;
}
