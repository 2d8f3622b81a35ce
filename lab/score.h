/* lab/score.h - the lab's accuracy: of a picture with k labels, the k classes that an evaluator scores highest are
 * compared with them. Both averages, their 95% intervals, hits per class, and what was taken for what.
 *
 *     lab_tally tally;  lab_tally_create(&tally, 24);
 *     for (each picture) lab_tally_add(&tally, scores, label, labels, NULL);
 *     lab_accuracy a = lab_tally_pictures(&tally);     // a.value, a.low, a.high
 *     lab_tally_free(&tally);
 */
#ifndef LAB_SCORE_H
#define LAB_SCORE_H
#include "ddpm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lab_tally {
    int classes;
    int pictures, objects, hits;
    double ratios;        /* sum of each picture's share of hits */
    int *present, *found; /* (classes): how often it was to be seen, and was among the k highest */
    int *taken;           /* (classes, classes): [a][b] times class a was missed and b named in its place */
} lab_tally;

ddpm_result lab_tally_create(lab_tally *tally, int classes);
void lab_tally_free(lab_tally *tally);

/* Adds a picture: scores (classes), its label[0..labels-1], all different, in [0,classes). hits: the number of labels
 * among the `labels` highest scores (of equal scores the first class counts as higher); may be NULL. Missed and wrongly
 * named classes are paired in the order of their scores. Without labels a picture is not counted. DDPM_ERR_RANGE: a
 * label outside, or there twice; DDPM_ERR_NONFINITE: a score that is NaN. */
ddpm_result lab_tally_add(lab_tally *tally, const ddpm_real *scores, const int *label, int labels, int *hits);

typedef struct lab_accuracy {
    double value, low, high; /* 0 with the interval [0,1] when nothing was counted */
} lab_accuracy;

/* Wilson's 95% interval (Wilson 1927) of `hits` successes in `trials`; hits may be a sum of shares in [0,1], whose
 * variance is at most that of a coin of the same mean: the interval is then on the safe side. */
lab_accuracy lab_wilson(double hits, double trials);
/* The mean over pictures of each one's share of hits: the figure of the original's test program. */
lab_accuracy lab_tally_pictures(const lab_tally *tally);
/* All hits over all objects: the score of the evaluator's own program. */
lab_accuracy lab_tally_objects(const lab_tally *tally);

#ifdef __cplusplus
}
#endif
#endif /* LAB_SCORE_H */
