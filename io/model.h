/* io/model.h - a model on disk is a diffusers directory:
 *     model_index.json                                         class names, picture size, ... (io_model_info)
 *     unet/config.json, unet/diffusion_pytorch_model.safetensors     UNet2DModel.from_pretrained(dir, subfolder="unet")
 *     scheduler/scheduler_config.json                          DDPMScheduler.from_pretrained(dir,
 * subfolder="scheduler")
 *     label_encoder/config.json, label_encoder/model.safetensors     0.weight, 0.bias, 1.weight, 1.bias; only with
 * labels
 *
 * Contents:  1 whole models   2 weights alone */
#ifndef IO_MODEL_H
#define IO_MODEL_H
#include "ddpm.h"
#include "io/config.h"
#include "io/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Whole models ---- */

/* Writes one array of the model (DDPM_EMA for sampling, as diffusers' own training does, or DDPM_WEIGHT), as IO_F32 or
 * IO_F16, with its configs. info's pixel_unshuffle and version are taken from the model and this program. The
 * directory is made as "<directory>.tmp-PID", synced, and renamed into place; a model that stood there is replaced
 * whole, but its evaluators (evaluator/, evaluator_judge/) stay. On failure it still stands there and the new one is
 * removed.
 * DDPM_ERR_ARGUMENT: `directory` holds something that is not part of a model (it would be lost), an array that is not
 * allocated, class names that do not fit the model; DDPM_ERR_RANGE: a weight too large for F16; DDPM_ERR_FILE,
 * _MEMORY. */
ddpm_result io_model_save(const char *directory, const ddpm_model *model, ddpm_array array, io_dtype dtype,
                          const ddpm_schedule_config *schedule, const io_model_info *info);

/* The same files, written into `directory` (made if need be) one by one: for what makes a directory of its own around
 * them and renames that. */
ddpm_result io_model_write(const char *directory, const ddpm_model *model, ddpm_array array, io_dtype dtype,
                           const ddpm_schedule_config *schedule, const io_model_info *info);

/* Reads the configs of a model directory: ours, a diffusers pipeline's, or a UNet2DModel's own (config.json in `path`).
 * What is absent gets its default: no label encoder, ddpm_schedule_default(), io_model_info_default() with the UNet's
 * size. schedule and info may be NULL; both are the caller's to free (io_schedule_config_free, io_model_info_free).
 * DDPM_ERR_FILE: no model there; else as in io/config.h. */
ddpm_result io_model_read_config(const char *path, ddpm_model_config *config, ddpm_schedule_config *schedule,
                                 io_model_info *info);

/* The same with the weights: creates the model on `device` (NULL: reference), allocates `arrays` and DDPM_WEIGHT, and
 * fills DDPM_WEIGHT and, if among `arrays`, DDPM_EMA. On failure *model is NULL and info is empty. */
ddpm_result io_model_load(const char *path, const ddpm_device *device, unsigned arrays, ddpm_model **model,
                          ddpm_schedule_config *schedule, io_model_info *info);

/* Fills DDPM_WEIGHT and, if it is allocated, DDPM_EMA of a model that exists from the model directory `path`, whose
 * network must fit; labels 0 leaves the model's own label encoder and class embedding as they are. For fine-tuning.
 * Errors as in io_weights_load. */
ddpm_result io_model_fill(const char *path, ddpm_model *model, int labels);

/* ---- 2. Weights alone ---- */

/* A model's parameters lie in two files: those of the label encoder ("label_encoder." in front, which the file leaves
 * out), and all others. Adam's moments lie in one, under the model's own names. */
typedef enum io_part { IO_PART_NETWORK, IO_PART_LABEL_ENCODER, IO_PART_ALL } io_part;

/* Fills the given arrays (a mask of 1 << DDPM_WEIGHT, ...; each allocated) with the file's tensors. Every parameter
 * of the part must be there once, in its shape, and nothing else; any dtype is converted. Names of old diffusers
 * versions (attentions.0.query, key, value, proj_attn) are understood.
 * DDPM_ERR_FORMAT, DDPM_ERR_SHAPE name file, tensor and both shapes; arrays may then be partly filled. */
ddpm_result io_weights_load(ddpm_model *model, unsigned arrays, io_part part, const char *path);
/* Writes one array's tensors of the part as IO_F32 or IO_F16; no second copy of the model is held. */
ddpm_result io_weights_save(const ddpm_model *model, ddpm_array array, io_part part, io_dtype dtype, const char *path);

/* One array's networks with their configs: directory/unet<suffix>/ and, with labels, directory/label_encoder<suffix>/,
 * as a model directory has them without a suffix. */
ddpm_result io_networks_write(const char *directory, const char *suffix, const ddpm_model *model, ddpm_array array,
                              io_dtype dtype);

#ifdef __cplusplus
}
#endif
#endif /* IO_MODEL_H */
