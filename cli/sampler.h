/* cli/sampler.h - the options that say how pictures are drawn, the same for every command that draws: rows for its
 * table, and what they mean for a model. Where an option is left out the model's scheduler_config.json decides.
 *
 * Contents: 1 rows   2 meaning */
#ifndef DDPM_CLI_SAMPLER_H
#define DDPM_CLI_SAMPLER_H
#include "cli/cli.h"

/* ---- 1. Rows ------------------------------------------------------------------------------------------------- */

typedef struct cli_sampler {
    int sampler, steps, spacing, steps_offset, variance, clip, thresholding, alpha_to_one;
    int solver_order, solver_type, lower_order_final, euler_at_final, final_sigmas;
    double eta, guidance, clip_range, thresholding_ratio, max_value, lambda_min;
    uint64_t seed;
    int rng;
} cli_sampler;

/* `set` is a cli_sampler that outlives the table. */
/* clang-format off */
#define CLI_SAMPLER_ROWS(set) \
    {"seed", NULL, CLI_SEED, "S", "529", "of the noise", &(set).seed, 0, 0, 0}, \
    {"rng", NULL, CLI_CHOICE, "philox|torch", "philox", \
     "torch: noise as PyTorch's on the CPU, picture i with manual_seed(S + i): the pictures of diffusers", \
     &(set).rng, 0, 0, 0}, \
    {"sampler", "algorithm_type", CLI_CHOICE, "ddpm|ddim|dpmsolver++", "(the model's, ddpm)", \
     "ancestral; DDIM; DPM-Solver++ (2M), good in 20 steps", &(set).sampler, 0, 0, 0}, \
    {"steps", "time_step num_inference_steps ddpm_num_inference_steps", CLI_INT, "N", \
     "(the model's; ddpm: all, 1000; ddim: 50; dpmsolver++: 20)", "steps of denoising", &(set).steps, 1, 100000, 0}, \
    {"eta", NULL, CLI_REAL, "R", "0", "of DDIM: 0 is deterministic, 1 as noisy as DDPM", &(set).eta, 0, 1, 0}, \
    {"guidance", "guidance_scale", CLI_REAL, "G", "(the model's, 1)", \
     "eps_none + G (eps_label - eps_none): 1 is without, 3 draws the labels more clearly", \
     &(set).guidance, -100, 100, 0}, \
    {"timestep-spacing", NULL, CLI_CHOICE, "leading|linspace|trailing", "(the model's, leading)", \
     "which of the model's T steps are taken", &(set).spacing, 0, 0, 0}, \
    {"steps-offset", NULL, CLI_INT, "N", "(the model's, 0)", "added to every t of leading spacing", \
     &(set).steps_offset, 0, 1e6, 0}, \
    {"clip-sample", NULL, CLI_CHOICE, "no|yes", "(the model's, yes)", \
     "clip each step's estimate of x_0; not in dpmsolver++", &(set).clip, 0, 0, 0}, \
    {"clip-sample-range", NULL, CLI_REAL, "R", "(the model's, 1)", "to [-R, R]", &(set).clip_range, 1e-6, 1e6, 0}, \
    {"thresholding", NULL, CLI_CHOICE, "no|yes", "(the model's, no)", \
     "clip to a quantile of each picture's own |x_0| instead, and divide by it", &(set).thresholding, 0, 0, 0}, \
    {"dynamic-thresholding-ratio", NULL, CLI_REAL, "R", "(the model's, 0.995)", \
     "that quantile", &(set).thresholding_ratio, 0, 1, 0}, \
    {"sample-max-value", NULL, CLI_REAL, "R", "(the model's, 1)", "at most this", &(set).max_value, 0, 1e6, 0}, \
    {"variance-type", NULL, CLI_CHOICE, "fixed_small|fixed_small_log|fixed_large", "(the model's, fixed_small)", \
     "of ddpm's noise", &(set).variance, 0, 0, 0}, \
    {"set-alpha-to-one", NULL, CLI_CHOICE, "no|yes", "(the model's, yes)", \
     "ddim: the last step ends at no noise, not at that of t = 0", &(set).alpha_to_one, 0, 0, 0}, \
    {"solver-order", NULL, CLI_INT, "1|2", "(the model's, 2)", "of dpmsolver++, as the next five", \
     &(set).solver_order, 1, 2, 0}, \
    {"solver-type", NULL, CLI_CHOICE, "midpoint|heun", "(the model's, midpoint)", \
     "of its second order", &(set).solver_type, 0, 0, 0}, \
    {"lower-order-final", NULL, CLI_CHOICE, "no|yes", "(the model's, yes)", \
     "first order at the end of fewer than 15 steps", &(set).lower_order_final, 0, 0, 0}, \
    {"euler-at-final", NULL, CLI_CHOICE, "no|yes", "(the model's, no)", \
     "first order at the end of any number", &(set).euler_at_final, 0, 0, 0}, \
    {"final-sigmas-type", NULL, CLI_CHOICE, "zero|sigma_min", "(the model's, zero)", \
     "the last step ends at no noise, or at that of t = 0", &(set).final_sigmas, 0, 0, 0}, \
    {"lambda-min-clipped", NULL, CLI_REAL, "R", "(the model's, -infinity)", \
     "start where log(alpha/sigma) is at least this: -5.1 for squaredcos_cap_v2", &(set).lambda_min, -1e3, 1e3, 0}
/* clang-format on */

/* ---- 2. Meaning ---------------------------------------------------------------------------------------------- */

/* What to draw with. What was given of `option`, the command's table, goes into the model's schedule, and what was not
 * from there into *set, so that settings written down are those that counted. */
ddpm_sample_config cli_sampler_config(const cli_option *option, cli_sampler *set, cli_model *model);
/* After that: DDPM_ERR_ARGUMENT if an option was given that the sampler does not have. */
ddpm_result cli_sampler_check(const cli_option *option, const cli_sampler *set);
const char *cli_sampler_name(ddpm_sampler sampler); /* "DDPM", "DDIM", "DPM-Solver++" */
/* Words of scheduler_config.json, in the order of the enum, separated by '|'. */
#define CLI_BETA_SCHEDULES "squaredcos_cap_v2|linear|scaled_linear|sigmoid|laplace"
#define CLI_PREDICTION_TYPES "epsilon|sample|v_prediction"
/* "1000 steps, linear from 0.0001 to 0.02, predicts epsilon, x_0 clipped to 1": for people. */
void cli_schedule_print(const ddpm_schedule_config *schedule);

#endif
