/* lab/score.c - see lab/score.h. */
#include "lab/score.h"

#include <math.h>
#include <stdlib.h>

ddpm_result lab_tally_create(lab_tally *tally, int classes)
{
    size_t n = classes > 0 ? (size_t)classes : 1;
    *tally = (lab_tally){.classes = classes};
    tally->present = calloc(n, sizeof *tally->present);
    tally->found = calloc(n, sizeof *tally->found);
    tally->taken = calloc(n * n, sizeof *tally->taken);
    if (tally->present != NULL && tally->found != NULL && tally->taken != NULL) return DDPM_OK;
    lab_tally_free(tally);
    return ddpm_fail(DDPM_ERR_MEMORY, "no memory to count hits of %d classes", classes);
}

void lab_tally_free(lab_tally *tally)
{
    free(tally->present);
    free(tally->found);
    free(tally->taken);
    *tally = (lab_tally){0};
}

static int among(const int *label, int labels, int class_index)
{
    for (int i = 0; i < labels; i++)
        if (label[i] == class_index) return 1;
    return 0;
}

/* How many classes score higher, the first of equals counting as higher. */
static int rank(const lab_tally *tally, const ddpm_real *scores, int c)
{
    int higher = 0;
    for (int i = 0; i < tally->classes; i++)
        higher += scores[i] > scores[c] || (i < c && scores[i] == scores[c]);
    return higher;
}

/* The class of that rank at or after *from which is (or is not) a label; *from moves behind it. -1: none. */
static int next_ranked(const lab_tally *tally, const ddpm_real *scores, const int *label, int labels, int is_label,
                       int *from)
{
    for (; *from < tally->classes; ++*from)
        for (int c = 0; c < tally->classes; c++)
            if (rank(tally, scores, c) == *from && among(label, labels, c) == is_label) {
                ++*from;
                return c;
            }
    return -1;
}

ddpm_result lab_tally_add(lab_tally *tally, const ddpm_real *scores, const int *label, int labels, int *hits)
{
    int found = 0;
    for (int i = 0; i < labels; i++)
        if (label[i] < 0 || label[i] >= tally->classes || among(label, i, label[i]))
            return ddpm_fail(DDPM_ERR_RANGE, "label %d of a picture is %s", label[i],
                             label[i] < 0 || label[i] >= tally->classes ? "no class" : "there twice");
    for (int c = 0; c < tally->classes; c++)
        if (isnan(scores[c]))
            return ddpm_fail(DDPM_ERR_NONFINITE,
                             "the score of class %d is not a number\n"
                             "      hint: are the evaluator's weights those of its config?",
                             c);
    for (int i = 0; i < labels; i++) {
        int hit = rank(tally, scores, label[i]) < labels;
        tally->present[label[i]]++;
        tally->found[label[i]] += hit;
        found += hit;
    }
    int missed_from = labels, wrong_from = 0; /* ranks: missed labels lie behind the k highest */
    for (int i = found; i < labels; i++) {
        int missed = next_ranked(tally, scores, label, labels, 1, &missed_from);
        int wrong = next_ranked(tally, scores, label, labels, 0, &wrong_from);
        tally->taken[missed * tally->classes + wrong]++;
    }
    tally->pictures += labels > 0;
    tally->objects += labels;
    tally->hits += found;
    tally->ratios += labels > 0 ? (double)found / labels : 0;
    if (hits != NULL) *hits = found;
    return DDPM_OK;
}

/* centre = (p + z^2/2n) / (1 + z^2/n),  half width = z sqrt(p (1 - p)/n + z^2/4n^2) / (1 + z^2/n) */
lab_accuracy lab_wilson(double hits, double trials)
{
    const double z = 1.959963984540054; /* the normal distribution's 97.5% point */
    if (!(trials > 0)) return (lab_accuracy){0, 0, 1};
    double p = hits / trials, spread = z * z / trials;
    double centre = (p + spread / 2) / (1 + spread);
    double half = z * sqrt(fmax(p * (1 - p), 0) / trials + spread / (4 * trials)) / (1 + spread);
    return (lab_accuracy){p, fmax(centre - half, 0), fmin(centre + half, 1)};
}

lab_accuracy lab_tally_pictures(const lab_tally *tally)
{
    return lab_wilson(tally->ratios, tally->pictures);
}

lab_accuracy lab_tally_objects(const lab_tally *tally)
{
    return lab_wilson(tally->hits, tally->objects);
}
