/* io/checkpoint.h - a generation of a run, RUN/step-N/: a model directory (io/model.h, the EMA weights: what is sampled
 * from) and beside it what continuing needs:
 *     unet_live/, label_encoder_live/                          the weights that are being trained, with their configs
 *     optimizer/exp_avg.safetensors, exp_avg_sq.safetensors    Adam's moments, every parameter under its name
 *     training.json                                            where the run stands, in its maker's words
 * A directory with training.json can be continued from; without it, it is a model like any other. */
#ifndef IO_CHECKPOINT_H
#define IO_CHECKPOINT_H
#include "ddpm.h"
#include "io/config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Writes RUN/step-N for N = step, all of the model's arrays but the gradients, as RUN/.tmp-N: every file synced, then
 * renamed, so that a step-N that can be seen is whole, whenever the process or the machine stops. One that stood there
 * is replaced. On failure .tmp-N is removed.
 *   training  the text of training.json
 *   DDPM_ERR_FILE, _MEMORY; DDPM_ERR_ARGUMENT: an array that is not allocated. */
ddpm_result io_checkpoint_save(const char *run, uint64_t step, const ddpm_model *model,
                               const ddpm_schedule_config *schedule, const io_model_info *info, const char *training);

/* Fills weights, moments and EMA of a model that was created from the directory's configs (io_model_read_config) and
 * allocated DDPM_FOR_TRAINING. Errors as in io_weights_load: arrays may then be partly filled. */
ddpm_result io_checkpoint_load(const char *directory, ddpm_model *model);

/* The path of the newest generation of a run that can be continued from, in *path (free() it; NULL if there is none),
 * its number in *step. DDPM_ERR_FILE: the run cannot be read; DDPM_ERR_MEMORY. */
ddpm_result io_checkpoint_newest(const char *run, char **path, uint64_t *step);

/* "step-123" -> 1 and 123; anything else -> 0. */
int io_checkpoint_step(const char *name, uint64_t *step);

/* Takes from a generation what only continuing needs: a model directory stays. */
ddpm_result io_checkpoint_thin(const char *directory);

#ifdef __cplusplus
}
#endif
#endif /* IO_CHECKPOINT_H */
