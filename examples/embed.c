/* embed.c - the whole of DDPM in one program: build a tiny model, train it for ten steps, draw four pictures.
 *     cc -O3 -fopenmp examples/embed.c -I. -lm -o embed && ./embed
 * Nothing else is needed: ddpm.h brings its implementation along. */
#define DDPM_IMPLEMENTATION
#include "ddpm.h"
#include <stdio.h>
#include <stdlib.h>

enum { SIZE = 16, BATCH = 8, CLASSES = 2, PIXELS = 3 * SIZE * SIZE };

/* Class 0: a bright disc on the left; class 1: on the right. */
static void draw(float *picture, int label)
{
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < SIZE; y++)
            for (int x = 0; x < SIZE; x++) {
                int dx = x - (label ? 11 : 4), dy = y - 8;
                picture[(c * SIZE + y) * SIZE + x] = dx * dx + dy * dy < 12 ? 0.9f : -0.6f;
            }
}

static void check(ddpm_result result)
{
    if (result == DDPM_OK) return;
    fprintf(stderr, "embed: %s\n", ddpm_error());
    exit(1);
}

int main(void)
{
    static float pictures[BATCH * PIXELS], labels[BATCH * CLASSES];
    ddpm_model_config config = ddpm_model_preset("tiny", CLASSES);
    ddpm_schedule schedule;
    ddpm_trainer trainer;
    ddpm_model *model;
    ddpm_net *net;
    check(ddpm_model_create(&model, &config, NULL));
    check(ddpm_model_alloc(model, DDPM_FOR_TRAINING));
    check(ddpm_model_init(model, 529));
    check(ddpm_schedule_create(&schedule, NULL));
    check(ddpm_net_create(&net, model, SIZE, SIZE, BATCH, 1));
    check(ddpm_trainer_init(&trainer, net, &schedule, NULL));
    for (int i = 0; i < BATCH; i++) {
        draw(pictures + i * PIXELS, i % 2);
        labels[i * CLASSES + i % 2] = 1;
    }
    for (int step = 0; step < 10; step++) {
        double loss;
        check(ddpm_train_step(&trainer, pictures, labels, BATCH, 1e-3, &loss));
        printf("step %d: loss %.4f\n", step, loss);
    }
    ddpm_sample_config how = ddpm_sample_default();
    how.sampler = DDPM_SAMPLER_DDIM;
    how.steps = 20;
    check(ddpm_sample(net, &schedule, &how, labels, 4, pictures, NULL, NULL));
    printf("sampled 4 pictures of %dx%d; the first pixel is %.3f\n", SIZE, SIZE, (double)pictures[0]);
    ddpm_net_free(net), ddpm_schedule_free(&schedule), ddpm_model_free(model);
    return 0;
}
