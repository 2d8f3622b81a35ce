/* cli/sampler.c - see cli/sampler.h. */
#include "cli/sampler.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static int default_steps(const ddpm_schedule_config *schedule, ddpm_sampler sampler)
{
    int all = schedule->num_train_timesteps, few = sampler == DDPM_SAMPLER_DDIM ? 50 : 20;
    if (sampler == DDPM_SAMPLER_DDPM) return all;
    if (few < all) return few;
    return sampler == DDPM_SAMPLER_DPMSOLVER ? all - 1 : all; /* it spreads one step more */
}

/* The option's value if it was given, else the model's: both then hold it. */
#define DECIDE(name, option_value, type, model_value)                                                                  \
    do {                                                                                                               \
        if (cli_given_name(option, name))                                                                              \
            (model_value) = (type)(option_value);                                                                      \
        else                                                                                                           \
            (option_value) = (model_value);                                                                            \
    } while (0)

ddpm_sample_config cli_sampler_config(const cli_option *option, cli_sampler *set, cli_model *model)
{
    ddpm_schedule_config *s = &model->schedule.config;
    ddpm_sample_config out = ddpm_sample_default();
    out.sampler = s->scheduler;
    DECIDE("sampler", set->sampler, ddpm_sampler, out.sampler);
    if (set->steps == 0 && out.sampler == s->scheduler) set->steps = model->info.num_inference_steps;
    if (set->steps == 0) set->steps = default_steps(s, out.sampler);
    out.steps = set->steps;
    out.eta = set->eta;
    DECIDE("guidance", set->guidance, double, model->info.guidance_scale);
    out.guidance = set->guidance;
    out.seed = set->seed;
    out.torch_rng = set->rng;
    DECIDE("timestep-spacing", set->spacing, ddpm_spacing, s->timestep_spacing);
    DECIDE("steps-offset", set->steps_offset, int, s->steps_offset);
    DECIDE("clip-sample", set->clip, int, s->clip_sample);
    DECIDE("clip-sample-range", set->clip_range, double, s->clip_sample_range);
    DECIDE("thresholding", set->thresholding, int, s->thresholding);
    DECIDE("dynamic-thresholding-ratio", set->thresholding_ratio, double, s->dynamic_thresholding_ratio);
    DECIDE("sample-max-value", set->max_value, double, s->sample_max_value);
    DECIDE("variance-type", set->variance, ddpm_variance_type, s->variance_type);
    DECIDE("set-alpha-to-one", set->alpha_to_one, int, s->set_alpha_to_one);
    DECIDE("solver-order", set->solver_order, int, s->solver_order);
    DECIDE("solver-type", set->solver_type, ddpm_solver_type, s->solver_type);
    DECIDE("lower-order-final", set->lower_order_final, int, s->lower_order_final);
    DECIDE("euler-at-final", set->euler_at_final, int, s->euler_at_final);
    DECIDE("final-sigmas-type", set->final_sigmas, ddpm_final_sigmas, s->final_sigmas_type);
    DECIDE("lambda-min-clipped", set->lambda_min, double, s->lambda_min_clipped);
    if (isinf(set->lambda_min)) set->lambda_min = -1e3; /* which JSON can say, and no schedule reaches */
    return out;
}

ddpm_result cli_sampler_check(const cli_option *option, const cli_sampler *set)
{
    static const char *const word[] = {"ddpm", "ddim", "dpmsolver++"};
    static const struct {
        const char *name;
        ddpm_sampler of;
    } own[] = {{"variance-type", DDPM_SAMPLER_DDPM},          {"eta", DDPM_SAMPLER_DDIM},
               {"set-alpha-to-one", DDPM_SAMPLER_DDIM},       {"solver-order", DDPM_SAMPLER_DPMSOLVER},
               {"solver-type", DDPM_SAMPLER_DPMSOLVER},       {"lower-order-final", DDPM_SAMPLER_DPMSOLVER},
               {"euler-at-final", DDPM_SAMPLER_DPMSOLVER},    {"final-sigmas-type", DDPM_SAMPLER_DPMSOLVER},
               {"lambda-min-clipped", DDPM_SAMPLER_DPMSOLVER}};
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        if (own[i].of != (ddpm_sampler)set->sampler && cli_given_name(option, own[i].name))
            return ddpm_fail(DDPM_ERR_ARGUMENT,
                             "--%s is of %s, and this draws with %s\n      hint: --sampler %s; or leave it out",
                             own[i].name, word[own[i].of], word[set->sampler], word[own[i].of]);
    return DDPM_OK;
}

const char *cli_sampler_name(ddpm_sampler sampler)
{
    return sampler == DDPM_SAMPLER_DDIM ? "DDIM" : sampler == DDPM_SAMPLER_DPMSOLVER ? "DPM-Solver++" : "DDPM";
}

/* Word number `index` of words separated by '|'. */
static void print_word(const char *words, int index)
{
    while (index-- > 0)
        words += strcspn(words, "|") + 1;
    printf("%.*s", (int)strcspn(words, "|"), words);
}

void cli_schedule_print(const ddpm_schedule_config *s)
{
    static const int ranges[] = {0, 1, 1, 1, 0}; /* squaredcos_cap_v2 and laplace have no beta_start, beta_end */
    printf("%d steps, ", s->num_train_timesteps);
    if (s->trained_betas != NULL)
        printf("trained betas");
    else
        print_word(CLI_BETA_SCHEDULES, (int)s->beta_schedule);
    if (s->trained_betas == NULL && ranges[s->beta_schedule]) printf(" from %g to %g", s->beta_start, s->beta_end);
    if (s->rescale_betas_zero_snr) printf(", zero terminal SNR");
    printf(", predicts ");
    print_word(CLI_PREDICTION_TYPES, (int)s->prediction_type);
    if (s->thresholding)
        printf(", x_0 thresholded at its %g quantile, at most %g", s->dynamic_thresholding_ratio, s->sample_max_value);
    else if (s->clip_sample)
        printf(", x_0 clipped to %g", s->clip_sample_range);
    printf("; %s, ", cli_sampler_name(s->scheduler));
    print_word("leading|linspace|trailing", (int)s->timestep_spacing);
    printf("\n");
}
