/* cli/plot.h - a run's losses as a picture: every step in gray, their moving average in blue, loss on a
 * logarithmic axis. */
#ifndef DDPM_CLI_PLOT_H
#define DDPM_CLI_PLOT_H

#include "ddpm.h"

/* Writes a PNG of 640x360. loss: of each of `count` steps, positive and finite; per_epoch: steps of an epoch, for
 * the axis below.
 * DDPM_ERR_FILE, DDPM_ERR_MEMORY; nothing is written for count 0. */
ddpm_result cli_plot_loss(const char *path, const float *loss, int count, int per_epoch);

#endif
