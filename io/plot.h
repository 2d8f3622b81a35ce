/* io/plot.h - line charts as pictures: loss over steps, accuracy over epochs. Anti-aliased lines, ticks at round
 * numbers, a legend; no font file is needed. What is drawn depends on the arguments alone, to the last bit.
 *
 * Contents:  1 what is drawn   2 drawing */
#ifndef IO_PLOT_H
#define IO_PLOT_H

#include "ddpm.h"
#include "io/picture.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. What is drawn ---- */

typedef struct io_series {
    const char *name;    /* in the legend, which is left out where it does not fit; NULL: not there */
    const double *x, *y; /* count points in the order of the line; x NULL: 0, 1, 2, ... */
    int count;
    unsigned color; /* 0xRRGGBB; 0: the next of a palette of eight */
    int reach; /* 0: one line. Else the points as a pale line and, bold, the mean of each with `reach` on either side */
} io_series;

typedef struct io_plot {
    const char *title, *x_label, *y_label; /* ASCII (anything else shows as '?'); NULL: none */
    const io_series *series;
    int count;         /* of series */
    int log_y;         /* 1: logarithmic y; points at or below zero are left out */
    int width, height; /* pixels; 0: 960 x 540; at least 240 x 160 */
} io_plot;

/* ---- 2. Drawing ---- */

/* Draws the chart into a new RGB picture. Points that are not finite (or beyond 1e30) are left out, and the line is
 * broken there. DDPM_ERR_ARGUMENT: no point to draw, a size that is too small, a negative reach;
 * DDPM_ERR_MEMORY. */
ddpm_result io_plot_draw(const io_plot *plot, io_picture *out);

#ifdef __cplusplus
}
#endif
#endif /* IO_PLOT_H */
