/* cli/plot.c - the loss curve of a run; see cli/plot.h.
 *
 * Contents: 1 points, lines, text   2 axes   3 curves */
#include "cli/plot.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/picture.h"

enum { WIDTH = 640, HEIGHT = 360, LEFT = 56, RIGHT = 624, TOP = 24, BOTTOM = 324 };

typedef struct chart {
    io_picture picture;
    double steps;     /* of the whole x axis */
    double low, high; /* of the y axis, log10 */
} chart;

typedef struct colour {
    unsigned char r, g, b;
} colour;
static const colour black = {40, 40, 40}, grid = {225, 225, 225}, pale = {190, 200, 215}, blue = {30, 80, 170};

/* ---- 1. Points, lines, text ---------------------------------------------------------------------------------- */

static void point(chart *c, int x, int y, colour ink)
{
    if (x < 0 || x >= WIDTH || y < 0 || y >= HEIGHT) return;
    unsigned char *p = c->picture.pixel + 3 * ((size_t)y * WIDTH + (size_t)x);
    p[0] = ink.r, p[1] = ink.g, p[2] = ink.b;
}

static void rectangle(chart *c, int x0, int y0, int x1, int y1, colour ink)
{
    for (int y = y0; y <= y1; y++)
        for (int x = x0; x <= x1; x++)
            point(c, x, y, ink);
}

/* Glyphs of 3x5 pixels drawn twice as large: a row is three bits, the top row highest. */
static unsigned glyph(char letter)
{
    static const struct {
        char letter;
        unsigned rows;
    } font[] = {
        {'0', 075557}, {'1', 026227}, {'2', 071747}, {'3', 071717}, {'4', 055711}, {'5', 074717}, {'6', 074757},
        {'7', 071111}, {'8', 075757}, {'9', 075717}, {'.', 000002}, {'L', 044447}, {'O', 075557}, {'S', 074717},
        {'E', 074647}, {'P', 075744}, {'C', 074447}, {'H', 055755}, {'e', 007647}, {'-', 000700},
    };
    for (size_t i = 0; i < sizeof font / sizeof font[0]; i++)
        if (font[i].letter == letter) return font[i].rows;
    return 0;
}

static void text(chart *c, int x, int y, const char *line)
{
    for (; *line != '\0'; line++, x += 8)
        for (int bit = 0; bit < 15; bit++)
            if (glyph(*line) >> (14 - bit) & 1)
                rectangle(c, x + 2 * (bit % 3), y + 2 * (bit / 3), x + 2 * (bit % 3) + 1, y + 2 * (bit / 3) + 1, black);
}

/* ---- 2. Axes ------------------------------------------------------------------------------------------------- */

static int x_of(const chart *c, double step)
{
    return LEFT + (int)lround(step / c->steps * (RIGHT - LEFT));
}

static int y_of(const chart *c, double loss)
{
    return BOTTOM - (int)lround((log10(loss) - c->low) / (c->high - c->low) * (BOTTOM - TOP));
}

/* Lines at 1, 2 and 5 times the powers of ten. */
static void loss_axis(chart *c)
{
    static const double digit[] = {1, 2, 5};
    for (int power = (int)floor(c->low); power <= (int)ceil(c->high); power++)
        for (int i = 0; i < 3; i++) {
            double loss = digit[i] * pow(10, power);
            if (log10(loss) < c->low - 1e-9 || log10(loss) > c->high + 1e-9) continue;
            char label[16];
            snprintf(label, sizeof label, loss < 1e6 && loss > 9e-4 ? "%g" : "%.0e", loss);
            int y = y_of(c, loss);
            rectangle(c, LEFT, y, RIGHT, y, grid);
            text(c, LEFT - 6 - 8 * (int)strlen(label), y - 5, label);
        }
    text(c, LEFT, TOP - 18, "LOSS");
}

/* At most ten marks, at whole epochs. */
static void epoch_axis(chart *c, int per_epoch)
{
    int epochs = (int)(c->steps / per_epoch), every = 1;
    static const int factor[] = {2, 5, 10};
    for (int scale = 1, i = 0; epochs / every > 10; i++) {
        every = scale * factor[i % 3];
        scale *= i % 3 == 2 ? 10 : 1;
    }
    for (int epoch = 0; epoch <= epochs; epoch += every) {
        char label[16];
        snprintf(label, sizeof label, "%d", epoch);
        int x = x_of(c, (double)epoch * per_epoch);
        rectangle(c, x, BOTTOM, x, BOTTOM + 4, black);
        text(c, x - 4 * (int)strlen(label) + 1, BOTTOM + 9, label);
    }
    text(c, RIGHT - 40, BOTTOM + 23, "EPOCH");
    rectangle(c, LEFT, TOP, LEFT, BOTTOM, black);
    rectangle(c, LEFT, BOTTOM, RIGHT, BOTTOM, black);
}

/* ---- 3. Curves ----------------------------------------------------------------------------------------------- */

/* Every step is a dot; where several fall into one column of pixels, they run together to a bar. */
static void step_dots(chart *c, const float *loss, int count)
{
    int size = count < 200;
    for (int i = 0; i < count; i++) {
        int x = x_of(c, i + 1), y = y_of(c, loss[i]);
        rectangle(c, x - size, y - size, x, y, pale);
    }
}

/* The mean of the last twentieth of the steps, as a line two pixels wide. */
static void average_line(chart *c, const float *loss, int count)
{
    int window = 1 + count / 20, old_x = 0, old_y = 0;
    double sum = 0;
    for (int i = 0; i < count; i++) {
        sum += loss[i] - (i >= window ? loss[i - window] : 0);
        int x = x_of(c, i + 1), y = y_of(c, sum / (i < window ? i + 1 : window));
        if (i == 0) old_x = x, old_y = y;
        for (int k = 0, n = abs(y - old_y) + x - old_x; k <= n; k++) {
            int at_x = old_x + (n > 0 ? (x - old_x) * k / n : 0), at_y = old_y + (n > 0 ? (y - old_y) * k / n : 0);
            rectangle(c, at_x, at_y, at_x, at_y + 1, blue);
        }
        old_x = x, old_y = y;
    }
}

ddpm_result cli_plot_loss(const char *path, const float *loss, int count, int per_epoch)
{
    chart c = {.steps = count > 0 ? count : 1, .low = 300, .high = -300};
    for (int i = 0; i < count; i++) {
        c.low = fmin(c.low, log10((double)loss[i]));
        c.high = fmax(c.high, log10((double)loss[i]));
    }
    if (count < 1) return DDPM_OK;
    c.low -= 0.05;
    c.high = fmax(c.high + 0.05, c.low + 0.5);
    ddpm_result result = io_picture_create(WIDTH, HEIGHT, 3, &c.picture);
    if (result != DDPM_OK) return result;
    memset(c.picture.pixel, 255, (size_t)WIDTH * HEIGHT * 3);
    loss_axis(&c);
    step_dots(&c, loss, count);
    average_line(&c, loss, count);
    epoch_axis(&c, per_epoch);
    result = io_picture_write_png(path, &c.picture, NULL, 0);
    io_picture_free(&c.picture);
    return result;
}
