/* io/config.h - configurations on disk: diffusers' config.json of a UNet2DModel and scheduler_config.json of a
 * DDPMScheduler, DDIMScheduler or DPMSolverMultistepScheduler, our label encoder's config.json, an evaluator's, and
 * model_index.json. Reading is strict: a field that would change the result and is not implemented is an error, never
 * ignored.
 *
 * The rules of reading. A field left out has diffusers' default (UNet2DModel.__init__, DDPMScheduler.__init__ of
 * diffusers 0.42). Fields that begin with "_" pass. Fields that are known but have one meaning here pass at that
 * value. Otherwise:
 *   DDPM_ERR_UNSUPPORTED  an unknown field, or a value that diffusers may know and this program does not
 *   DDPM_ERR_ARGUMENT     a value of the wrong type or out of its range
 *   DDPM_ERR_FORMAT       not JSON, a field there twice, a needed field missing
 * each naming file, field, value and what is accepted. The output is unchanged then.
 *
 * For each kind: _read from a file, _parse from text in memory (text[size] must be a 0 byte; `name` is for messages),
 * and _write, atomically, with all fields. */
#ifndef IO_CONFIG_H
#define IO_CONFIG_H
#include <stddef.h>

#include "ddpm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* UNet2DModel. Written so that UNet2DModel.from_pretrained and from_config take it. */
ddpm_result io_unet_config_read(const char *path, ddpm_unet_config *out);
ddpm_result io_unet_config_parse(const char *text, size_t size, const char *name, ddpm_unet_config *out);
ddpm_result io_unet_config_write(const char *path, const ddpm_unet_config *config);

/* _class_name says of which scheduler (none: DDPMScheduler): config->scheduler. A field left out has that class's
 * default, so beta_schedule is then "linear", unlike ddpm_schedule_default(). Written are the fields of the class, so
 * that its from_pretrained takes the file. What was read is freed with io_schedule_config_free (trained_betas). */
void io_schedule_config_free(ddpm_schedule_config *config);
ddpm_result io_schedule_config_read(const char *path, ddpm_schedule_config *out);
ddpm_result io_schedule_config_parse(const char *text, size_t size, const char *name, ddpm_schedule_config *out);
ddpm_result io_schedule_config_write(const char *path, const ddpm_schedule_config *config);

/* {"num_classes", "hidden_dim", "embedding_dim"}: all three must be there. */
ddpm_result io_label_config_read(const char *path, ddpm_label_config *out);
ddpm_result io_label_config_parse(const char *text, size_t size, const char *name, ddpm_label_config *out);
ddpm_result io_label_config_write(const char *path, const ddpm_label_config *config);

/* model_index.json: what a model knows beyond its networks. A diffusers pipeline's own index (DDPMPipeline,
 * DDIMPipeline) is accepted: it has none of our fields, which then keep the values of io_model_info_default. */
typedef struct io_model_info {
    char **class_name;       /* owned, by io_model_info_free */
    int classes;             /* 0: names unknown */
    int none_class;          /* the class that stands for "no label"; -1: an all-zero multi-hot does */
    double label_dropout;    /* share of the training pictures whose labels were replaced by "none", 0 to 1 */
    int pixel_unshuffle;     /* ddpm_model_config's; 1: none */
    int height, width;       /* of a picture; 0: unknown */
    int num_inference_steps; /* how it is drawn best, with the sampler of its scheduler_config.json: steps (0: that */
    double guidance_scale;   /* sampler's usual number), classifier-free guidance (1: none), and how strongly the */
    double guide_scale;      /* evaluator in evaluator/ guides (0: not at all); how often, from 1, a picture may be */
    int tries;               /* drawn in which that evaluator does not find its labels */
    int version;             /* of this directory's form: IO_MODEL_VERSION; a higher one is refused */
} io_model_info;
enum { IO_MODEL_VERSION = 1 };
io_model_info io_model_info_default(void);
void io_model_info_free(io_model_info *info);
/* Copies `classes` names into info (replacing what was there); DDPM_ERR_MEMORY leaves it unchanged. */
ddpm_result io_model_info_set_classes(io_model_info *info, const char *const *class_name, int classes);
ddpm_result io_model_info_read(const char *path, io_model_info *out);
ddpm_result io_model_info_parse(const char *text, size_t size, const char *name, io_model_info *out);
/* version is written as IO_MODEL_VERSION. */
ddpm_result io_model_info_write(const char *path, const io_model_info *info);

/* An evaluator's config.json: torchvision's ResNet18 with fc = Linear(.., classes) + Sigmoid. */
typedef struct io_evaluator_config {
    char **class_name; /* owned, by io_evaluator_config_free */
    int classes;       /* at least 1 */
    double width;      /* of torchvision's channels (64, 128, 256, 512): 1, or 0.25 for (16, 32, 64, 128) */
    int sample_size;   /* side of the square pictures it was trained on */
} io_evaluator_config;
void io_evaluator_config_free(io_evaluator_config *config);
ddpm_result io_evaluator_config_read(const char *path, io_evaluator_config *out);
ddpm_result io_evaluator_config_parse(const char *text, size_t size, const char *name, io_evaluator_config *out);
ddpm_result io_evaluator_config_write(const char *path, const io_evaluator_config *config);

#ifdef __cplusplus
}
#endif
#endif /* IO_CONFIG_H */
