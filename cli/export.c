/* cli/export.c - ddpm export: a run's model alone, as one gives it to others: in half the bytes, and with the sampler,
 * the steps and the guidance that suit it, which `ddpm sample` then takes where nothing else is asked for. */
#include <stdio.h>

#include "cli/draw.h"
#include "cli/sampler.h"
#include "io/model.h"

static struct {
    const char *model, *out;
    int dtype;
    double guide_scale;
    int tries;
} set;
static cli_sampler draw_with;

/* clang-format off */
enum { STEPS };
static const cli_option options[] = {
    [STEPS] = {"steps", "num_inference_steps", CLI_INT, "N", "(as it is; 0 for another sampler)",
     "of the sampler; 0: its usual number", &draw_with.steps, 0, 100000, 0},
    {"sampler", NULL, CLI_CHOICE, "ddpm|ddim|dpmsolver++", "(as it is)",
     "what it is drawn with: the class of its scheduler_config.json", &draw_with.sampler, 0, 0, 0},
    {"guidance", "guidance_scale", CLI_REAL, "G", "(as it is)",
     "classifier-free guidance; 1 is without", &draw_with.guidance, -100, 100, 0},
    {"guide-scale", NULL, CLI_REAL, "S", "(as it is)",
     "how strongly the evaluator in DIR/evaluator guides; 0: not at all", &set.guide_scale, 0, 1e6, 0},
    {"tries", NULL, CLI_INT, "N", "(as it is)",
     "how often a picture may be drawn in which that evaluator does not find its labels", &set.tries, 1, 1000, 0},
    {"timestep-spacing", NULL, CLI_CHOICE, "leading|linspace|trailing", "(as it is)",
     "which of the model's T steps are taken", &draw_with.spacing, 0, 0, 0},
    {"lambda-min-clipped", NULL, CLI_REAL, "R", "(as it is)",
     "dpmsolver++: start where log(alpha/sigma) is at least this: -5.1 for squaredcos_cap_v2", &draw_with.lambda_min,
     -1e3, 1e3, 0},
    {"dtype", NULL, CLI_CHOICE, "f16|f32", "f16",
     "numbers of the weights; f16 halves the files and rounds to 11 bits", &set.dtype, 0, 0, 0},
    {"model", "weight_path weights", CLI_TEXT, "PATH", CLI_REQUIRED,
     "a run (its best checkpoint) or a model directory", &set.model, 0, 0, 1},
    {"out", "output_dir", CLI_TEXT, "DIR", CLI_REQUIRED,
     "model directory to make; evaluators in it stay", &set.out, 0, 0, 0},
    {0},
};
/* clang-format on */

static ddpm_result export_model(const cli_context *context, cli_model *model)
{
    ddpm_result result = cli_model_open(context, set.model, DDPM_FOR_INFERENCE, model);
    if (result != DDPM_OK) return result;
    ddpm_schedule_config *schedule = &model->schedule.config;
    int steps = draw_with.steps, most = schedule->num_train_timesteps;
    ddpm_sample_config draw = cli_sampler_config(options, &draw_with, model);
    if (steps > most)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "--steps %d: the model's schedule has %d\n      hint: at most so many",
                         steps, most);
    if ((result = cli_check_guidance(model, draw.guidance)) != DDPM_OK) return result;
    if (cli_given(&options[STEPS]) || draw.sampler != schedule->scheduler) model->info.num_inference_steps = steps;
    model->info.guidance_scale = draw.guidance;
    if (cli_given_name(options, "guide-scale")) model->info.guide_scale = set.guide_scale;
    if (cli_given_name(options, "tries")) model->info.tries = set.tries;
    schedule->scheduler = draw.sampler;
    return io_model_save(set.out, model->model, DDPM_WEIGHT, set.dtype == 0 ? IO_F16 : IO_F32, schedule, &model->info);
}

static int run(const cli_context *context)
{
    cli_model model = {0};
    ddpm_result result = export_model(context, &model);
    if (result == DDPM_OK) {
        cli_short count;
        cli_note("%s, %s parameters as %s", model.path, cli_count(cli_parameters(model.model), count),
                 set.dtype == 0 ? "F16" : "F32");
        printf("%s\n", set.out);
    }
    cli_model_close(&model);
    return cli_exit(result);
}

const cli_command cli_export = {
    "export",
    "RUN --out DIR [--dtype f16]",
    "writes a run's model alone, in half the bytes, with the sampler that suits it",
    "The directory is diffusers': UNet2DModel.from_pretrained(DIR, subfolder=\"unet\") reads it.",
    options,
    run,
    NULL};
