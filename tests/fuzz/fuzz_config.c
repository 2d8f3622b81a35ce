/* tests/fuzz/fuzz_config.c - any text as each kind of configuration: an error or a config that can be written, never
 * a crash. */
#include <stdlib.h>
#include <string.h>

#include "io/config.h"
#include "tests/fuzz/standalone.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ddpm_unet_config unet;
    ddpm_schedule_config schedule;
    ddpm_label_config label;
    io_model_info info;
    io_evaluator_config evaluator;
    char *text = malloc(size + 1);
    if (!text) return 0;
    memcpy(text, data, size);
    text[size] = 0; /* the parsers' condition */
    if (!io_unet_config_parse(text, size, "input", &unet) && (unet.levels < 1 || unet.levels > DDPM_MAX_LEVELS))
        abort();
    if (!io_schedule_config_parse(text, size, "input", &schedule)) {
        if (schedule.num_train_timesteps < 1) abort();
        io_schedule_config_free(&schedule);
    }
    if (!io_label_config_parse(text, size, "input", &label) && label.num_classes < 1) abort();
    if (!io_model_info_parse(text, size, "input", &info)) {
        for (int i = 0; i < info.classes; i++)
            if (strlen(info.class_name[i]) > size) abort();
        io_model_info_free(&info);
    }
    if (!io_evaluator_config_parse(text, size, "input", &evaluator)) {
        if (evaluator.classes < 1 || !(evaluator.width > 0)) abort();
        io_evaluator_config_free(&evaluator);
    }
    free(text);
    return 0;
}

#ifdef FUZZ_STANDALONE
int main(void)
{
#define SEED(text)                                                                                                     \
    {                                                                                                                  \
        text, sizeof text - 1                                                                                          \
    }
    static const fuzz_seed seed[] = {
        SEED("{}"),
        SEED("{\"_class_name\":\"ResNet18\",\"width\":0.25,\"sample_size\":64,\"class_names\":[\"a\",\"b\"]}"),
        SEED("{\"sample_size\":[8,4],\"block_out_channels\":[4,8],"
             "\"down_block_types\":[\"DownBlock2D\",\"AttnDownBlock2D\"],"
             "\"up_block_types\":[\"AttnUpBlock2D\",\"UpBlock2D\"],"
             "\"class_embed_type\":null,\"norm_eps\":1e-6,\"act_fn\":\"silu\"}"),
        SEED("{\"_class_name\":\"DDPMScheduler\",\"beta_schedule\":\"linear\",\"clip_sample\":true,"
             "\"trained_betas\":null,"
             "\"steps_offset\":0,\"sample_max_value\":1.0,\"num_train_timesteps\":500}"),
        SEED("{\"num_classes\":24,\"hidden_dim\":64,\"embedding_dim\":512}"),
        SEED("{\"unet\":[\"diffusers\",\"UNet2DModel\"],"
             "\"class_names\":[\"red cube\",\"gr\\u00fcn\"],\"none_class\":null,"
             "\"label_dropout\":0.1,\"height\":64,\"width\":64,\"pixel_unshuffle\":1,\"version\":1}"),
    };
    return fuzz_standalone(seed, sizeof seed / sizeof *seed, 20000);
}
#endif
