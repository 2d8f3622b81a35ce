/* tests/test_ranks.c - several processes train one model (comm/): the same weights as one alone, to rounding; the same
 * bits in every run of as many ranks, stopped and resumed or not; and one that dies ends the run, not its checkpoints.
 *
 * Contents: 1 sums and agreement   2 one rank and three   3 runs   4 dying   5 refused */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "comm/comm.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "tests/program.h"

/* ---- 1. Sums and agreement --------------------------------------------------------------------------------------- */

/* Runs `work` in ranks and wants each to return 0: a rank cannot use cmocka's assertions. */
static void in_ranks(int size, int (*work)(ddpm_comm *comm))
{
    ddpm_comm *comm;
    comm_ending ending;
    assert_int_equal(comm_local(size, &comm, &ending), DDPM_OK);
    if (comm != NULL) {
        int status = work(comm);
        comm->close(comm, status != 0);
        _exit(status);
    }
    if (ending.rank >= 0) fail_msg("rank %d: check %d failed", ending.rank, ending.status);
}

static float brought(int rank, size_t i)
{
    return (float)ddpm_uniform_int((ddpm_address){7, i, (uint32_t)rank, DDPM_RANDOM_USER}, 1u << 24) * 1e-3f;
}

/* Bit for bit (b0 + b1) + b2, whatever the count: none, fewer than ranks, more than the shared memory takes at once;
 * several begun before the first is waited for. */
static int add(ddpm_comm *comm)
{
    static const size_t count[] = {0, 1, 2, 1000, (4 << 20) / 4 + 77};
    enum { SUMS = sizeof count / sizeof count[0] };
    float *values[SUMS];
    for (size_t k = 0; k < SUMS; k++) {
        if ((values[k] = malloc((count[k] + 1) * sizeof(float))) == NULL) return 10;
        for (size_t i = 0; i < count[k]; i++)
            values[k][i] = brought(comm->rank, i);
        if (comm->all_reduce(comm, COMM_GRADIENTS, values[k], count[k]) != DDPM_OK) return 11;
    }
    if (comm->wait(comm) != DDPM_OK) return 12;
    for (size_t k = 0; k < SUMS; k++) {
        for (size_t i = 0; i < count[k]; i += 1 + i / 100) {
            float sum = brought(0, i);
            for (int rank = 1; rank < comm->size; rank++)
                sum += brought(rank, i);
            if (memcmp(&sum, &values[k][i], sizeof sum) != 0) return 13;
        }
        free(values[k]);
    }
    return comm->barrier(comm) == DDPM_OK ? 0 : 14;
}

static void test_sums(void **state)
{
    (void)state;
    in_ranks(3, add);
}

static int agree(ddpm_comm *comm)
{
    double value[2] = {1, comm->rank};
    if (comm_agree(comm, DDPM_OK, value, 2) != DDPM_OK || value[0] != 3 || value[1] != 3 || comm->agreed) return 10;
    ddpm_result own = comm->rank == 0 ? DDPM_ERR_NONFINITE : comm->rank == 2 ? DDPM_ERR_FORMAT : DDPM_OK;
    ddpm_fail(own, "what %d says", comm->rank);
    if (comm_agree(comm, own, NULL, 0) != DDPM_ERR_FORMAT || !comm->agreed) return 11;
    if (strcmp(ddpm_error(), "rank 2: what 2 says") != 0) return 12;
    if (comm_agree(comm, comm->rank == 0 ? DDPM_ERR_NONFINITE : DDPM_OK, NULL, 0) != DDPM_ERR_NONFINITE) return 13;
    if (comm_agree(comm, DDPM_OK, NULL, 0) != DDPM_OK || comm->agreed) return 14;
    if (comm_same(comm, "one text") != DDPM_OK) return 15;
    if (comm_same(comm, comm->rank == 1 ? "another" : "one text") != DDPM_ERR_ARGUMENT) return 16;
    return comm->rank == 0 && strstr(ddpm_error(), "rank 0: one text; rank 1: another") == NULL ? 17 : 0;
}

static void test_agreement(void **state)
{
    (void)state;
    in_ranks(3, agree);
}

/* ---- 2. One rank and three --------------------------------------------------------------------------------------- */

/* 50 steps of 7 pictures, but every fifth of 2: then one of three ranks has none.
 *
 * How far apart may they end? Let u = 2^-24, G the largest norm of a gradient, W the largest weight, n the steps. With
 * Adam's eps at 1 its step m / (sqrt(v) + 1) is smooth: a change d of every gradient moves it by at most
 * lr (1 + |m|) d <= lr C d, C = 1 + G.
 *   rounding of the weights, once a step in each run:  n u W
 *   gradients at equal weights: a picture's activations do not depend on its batch, so that only the order of a sum
 * over
 *     N = 7 x 64 pixels differs; rounding grows as sqrt(N), and so does the sum of N terms of either sign fall behind
 * that
 *     of their sizes: together N u G a step:  n lr C N u G
 *   each difference then feeds back through the Hessian H: a factor of at most (1 + lr C H)^n < e^2 while C H < 40.
 * What is wrong in a sum (a picture twice, another's noise, a part weighed by its own number) changes the gradient by a
 * good part of itself. The test also trains with one picture less a step, the least of these, and wants to see that. */
enum { STEPS = 50, MOST = 7, SIZE = 8 };
static const double rate = 1e-3;

typedef struct outcome {
    float *weight;
    size_t count;
    double norm; /* largest of a gradient */
} outcome;

static int train_model(ddpm_comm *comm, int share, int fewer, outcome *end)
{
    ddpm_model_config config = ddpm_model_preset("tiny", 3);
    config.unet.block_out_channels[0] = 8;
    config.unet.block_out_channels[1] = 16;
    config.unet.norm_num_groups = config.unet.attn_norm_num_groups = 4;
    config.label.embedding_dim = 32;
    ddpm_device device;
    ddpm_model *model;
    ddpm_net *net;
    ddpm_schedule schedule;
    ddpm_trainer trainer;
    comm_reducer *reducer = NULL;
    ddpm_train_config recipe = ddpm_train_default();
    recipe.eps = 1;
    recipe.max_grad_norm = 0;
    int capacity = share ? (MOST + comm->size - 1) / comm->size : 2;
    if (ddpm_device_open(&device, NULL, 1, NULL) || ddpm_model_create(&model, &config, &device) ||
        ddpm_model_alloc(model, DDPM_FOR_TRAINING) || ddpm_model_init(model, 1) ||
        ddpm_schedule_create(&schedule, NULL) ||
        ddpm_net_create(&net, model, SIZE, SIZE, capacity, DDPM_TRAINING | (share ? DDPM_SHARE_GRADIENTS : 0)) ||
        ddpm_trainer_init(&trainer, net, &schedule, &recipe))
        return 10;
    if (comm->size > 1) {
        if (comm_reducer_create(&reducer, comm, model, 2000) || comm_reducer_buckets(reducer) < 5) return 11;
        trainer.ranks = comm_reducer_ranks(reducer);
    }
    enum { PICTURE = 3 * SIZE * SIZE };
    float picture[MOST * PICTURE], label[MOST * 3];
    *end = (outcome){.count = model->elements};
    for (int step = 0; step < STEPS; step++) {
        int n = step % 5 == 4 ? 2 : MOST, first;
        int count = ddpm_part(n, comm->rank, comm->size, &first);
        for (int i = 0; i < count; i++) {
            ddpm_address at = {3, trainer.picture + (uint64_t)(first + i), 0, DDPM_RANDOM_USER};
            ddpm_normals(at, PICTURE, picture + (size_t)i * PICTURE);
            for (int k = 0; k < 3; k++)
                label[3 * i + k] = k == (first + i) % 3;
        }
        if (ddpm_train_step(&trainer, picture, label, n - fewer, rate, NULL)) return 12;
        trainer.picture += (uint64_t)fewer;
        if (trainer.grad_norm > end->norm) end->norm = trainer.grad_norm;
    }
    if ((end->weight = calloc(end->count, sizeof(float))) == NULL) return 13;
    for (int p = 0; p < model->params; p++) /* between them lies what nobody reads */
        if (ddpm_model_get(model, DDPM_WEIGHT, model->param[p], end->weight + model->param[p]->offset)) return 14;
    comm_reducer_free(reducer);
    ddpm_net_free(net);
    ddpm_schedule_free(&schedule);
    ddpm_model_free(model);
    ddpm_device_close(&device);
    return 0;
}

static int shared_gradients;

/* Rank 0 leaves its weights in a file; all must have the same bits. */
static int train_together(ddpm_comm *comm)
{
    outcome end;
    int status = train_model(comm, shared_gradients, 0, &end);
    if (status != 0) return status;
    uint64_t hash = 1;
    for (size_t i = 0; i < end.count; i++) {
        uint32_t bits;
        memcpy(&bits, &end.weight[i], sizeof bits);
        hash = (hash ^ bits) * UINT64_C(1099511628211);
    }
    char text[40];
    snprintf(text, sizeof text, "%llx", (unsigned long long)hash);
    if (comm_same(comm, text) != DDPM_OK) return 20;
    if (comm->rank == 0 && io_write_file(in_folder("weights"), end.weight, end.count * sizeof(float))) return 21;
    free(end.weight);
    return 0;
}

static double largest_difference(const float *a, const float *b, size_t count)
{
    double most = 0;
    for (size_t i = 0; i < count; i++) {
        double difference = (double)a[i] - (double)b[i];
        if (difference < 0) difference = -difference;
        if (!(difference <= most)) most = isnan(difference) ? INFINITY : difference;
    }
    return most;
}

static void test_same_weights(void **state)
{
    (void)state;
    for (shared_gradients = 0; shared_gradients < 2; shared_gradients++) {
        outcome one, fewer;
        size_t size;
        float *three, *zeros;
        in_ranks(3, train_together);
        assert_int_equal(io_read_file(in_folder("weights"), (unsigned char **)&three, &size), DDPM_OK);
        assert_int_equal(train_model(comm_alone(), shared_gradients, 0, &one), 0);
        assert_int_equal(train_model(comm_alone(), shared_gradients, 1, &fewer), 0);
        assert_int_equal(size, one.count * sizeof(float));
        assert_non_null(zeros = calloc(one.count, sizeof *zeros));
        double u = 0x1p-24, largest = largest_difference(one.weight, zeros, one.count);
        double bound = 7.4 * STEPS * u * (largest + rate * (1 + one.norm) * MOST * SIZE * SIZE * one.norm);
        double apart = largest_difference(one.weight, three, one.count);
        double seen = largest_difference(one.weight, fewer.weight, one.count);
        print_message("# apart %.2e, bound %.2e; a picture less: %.2e\n", apart, bound, seen);
        assert_true(apart <= bound);
        assert_true(seen > 2 * bound);
        free(one.weight);
        free(fewer.weight);
        free(three);
        free(zeros);
    }
}

/* ---- 3. Runs ----------------------------------------------------------------------------------------------------- */

/* 21 pictures in epochs of 8, 8 and 5, four of each. */
#define SETTINGS                                                                                                       \
    "train @/data --model @/config.json --batch-size 8 --epochs 4 --lr 1e-2 --cond-drop 0.3 --held-out 3 "             \
    "--random-flip --workers 1 --threads 1 "

static int make_runs(void **state)
{
    if (getenv("TMPDIR") == NULL && access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 1);
    setenv("OMP_NUM_THREADS", "1", 1);
    unsetenv("OMPI_COMM_WORLD_SIZE");
    if (make_folder(state) != 0) return -1;
    make_small_lab();
    assert_runs(SETTINGS "--out @/two --ranks 2 --sample-every 5");
    assert_has(err, "each of 2 ranks (processes)");
    assert_string_equal(out + strlen(out) - 5, "/two\n");
    return 0;
}

static void assert_same_file(const char *one, const char *other, const char *name)
{
    char command[600];
    snprintf(command, sizeof command, "cmp @/%s/%s @/%s/%s", one, name, other, name);
    shell(command);
}

static void test_resumed(void **state)
{
    (void)state;
    assert_true(io_is_file(in_folder("two/samples/step-5.png")));
    assert_runs(SETTINGS "--out @/again --ranks 2 --max-steps 5");
    assert_runs("train --resume --out @/again --ranks 2 --max-steps 12");
    assert_null(strstr(err, "not to the same bits"));
    assert_same_file("two", "again", "metrics.csv");
    assert_same_file("two", "again", "latest/unet_live/diffusion_pytorch_model.safetensors");
    assert_same_file("two", "again", "latest/optimizer/exp_avg.safetensors");
    assert_runs("train --resume --out @/again --epochs 5 --max-steps 13"); /* alone */
    assert_has(err, "2 ranks: it goes on, but perhaps not to the same bits");
}

/* The loss of a first step comes before any update: sums of 8 x 192 squares in floats and doubles, relative error below
 * 2^-24 x 11 roots, 1e-5 with the network's own. */
static void test_first_loss(void **state)
{
    (void)state;
    assert_runs(SETTINGS "--out @/one --max-steps 1");
    shell(
        "paste -d, @/one/metrics.csv @/two/metrics.csv | awk -F, 'NR == 2 { d = ($4 - $21) / $4; e = ($5 - $22) / $5; "
        "exit !(NF == 34 && d * d < 1e-10 && e * e < 1e-10) }'");
}

/* ---- 4. Dying ---------------------------------------------------------------------------------------------------- */

static void wait_for_file(const char *name)
{
    for (int i = 0; i < 6000; i++) {
        if (io_is_file(in_folder(name))) return;
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    fail_msg("%s is not there after a minute", name);
}

/* The processes that `starter` started, rank 0 first. */
static int find_ranks(pid_t starter, long *rank, int most)
{
    char command[80], line[40];
    int found = 0;
    snprintf(command, sizeof command, "pgrep -P %ld | sort -n", (long)starter);
    FILE *file = popen(command, "r"); /* NOLINT(cert-env33-c) */
    assert_non_null(file);
    while (found < most && fgets(line, sizeof line, file) != NULL)
        rank[found++] = strtol(line, NULL, 10);
    pclose(file);
    return found;
}

static void test_killed_rank(void **state)
{
    (void)state;
    char text[100];
    for (int victim = 0; victim < 2; victim++) {
        long rank[2] = {0};
        shell("rm -rf @/killed");
        pid_t starter = start(SETTINGS "--out @/killed --ranks 2 --epochs 100000 --save-steps 2 --keep 0");
        wait_for_file("killed/latest/training.json");
        assert_int_equal(find_ranks(starter, rank, 2), 2);
        kill((pid_t)rank[victim], SIGKILL);
        assert_int_equal(finish(starter), 1);
        snprintf(text, sizeof text, "ddpm: rank %d (process %ld) was killed by signal 9", victim, rank[victim]);
        assert_has(err, text);
        assert_has(err, "--resume goes on from it");
        assert_int_not_equal(kill((pid_t)rank[1 - victim], 0), 0); /* nobody is left */
        assert_runs("train --resume --out @/killed --ranks 2 --max-time 0.001");
    }
}

static void test_signals(void **state)
{
    (void)state;
    static const int number[] = {SIGTERM, SIGINT};
    static const char *const word[] = {"stopped by SIGTERM and saved", "stopped by Ctrl-C and saved"};
    for (int i = 0; i < 2; i++) {
        shell("rm -rf @/stopped");
        pid_t starter = start(SETTINGS "--out @/stopped --ranks 2 --epochs 100000 --save-steps 2");
        wait_for_file("stopped/latest/training.json");
        kill(starter, number[i]);
        assert_int_equal(finish(starter), 0);
        assert_has(err, word[i]);
    }
}

/* Whoever started the ranks is gone: they end as well, and say so. */
static void test_killed_starter(void **state)
{
    (void)state;
    long rank[2] = {0};
    pid_t starter = start(SETTINGS "--out @/orphans --ranks 2 --epochs 100000 --save-steps 2");
    wait_for_file("orphans/latest/training.json");
    assert_int_equal(find_ranks(starter, rank, 2), 2);
    kill(starter, SIGKILL);
    assert_int_equal(finish(starter), -SIGKILL);
    for (int i = 0; i < 1000 && (kill((pid_t)rank[0], 0) == 0 || kill((pid_t)rank[1], 0) == 0); i++)
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    read_back("stderr", &err);
    assert_has(err, "has ended");
}

/* ---- 5. Refused -------------------------------------------------------------------------------------------------- */

static void test_refused(void **state)
{
    (void)state;
    assert_fails(2, SETTINGS "--out @/new --ranks 2 --gpus 2", "--gpus starts a process for each GPU");
    assert_fails(2, SETTINGS "--out @/new --gpus 2 --backend cpu", "--gpus is for --backend cuda, not cpu");
    assert_fails(2, SETTINGS "--out @/new --ranks 0", "--ranks");
    assert_fails(1, SETTINGS "--out @/new --gpus 3", "--ranks 3 shares the work"); /* a build without CUDA */
    assert_fails(1, "train @/nothing --out @/new --ranks 3", "nothing");           /* said once, not by every rank */
    const char *first = strstr(err, "ddpm: ");
    assert_non_null(first);
    assert_null(strstr(first + 1, "ddpm: "));
    assert_int_equal(run_with("OMPI_COMM_WORLD_SIZE=2", "sample 'red cube'"), 1);
    assert_has(err, "2 processes would do the same work");
    assert_int_equal(run_with("OMPI_COMM_WORLD_SIZE=2", SETTINGS "--out @/new --ranks 2"), 1);
    assert_has(err, "mpirun has started 2 ranks already");
    assert_false(io_is_directory(in_folder("new")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums),    cmocka_unit_test(test_agreement),      cmocka_unit_test(test_same_weights),
        cmocka_unit_test(test_resumed), cmocka_unit_test(test_first_loss),     cmocka_unit_test(test_killed_rank),
        cmocka_unit_test(test_signals), cmocka_unit_test(test_killed_starter), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, make_runs, remove_folder);
}
