/* lab/teacher.h - an evaluator that has a say in what a diffusion model draws, through the gradient of its score
 * log p(labels | picture) (lab_evaluator_gradient): while sampling (classifier guidance) and while training (the lab's
 * fine-tuning, whose own score, a count of hits, has a gradient of zero).
 *
 * The evaluator knows pictures, not noise, so it is asked about the estimate of x_0, and what that says about x_t is
 *     grad_x_t log p(y | x_t)  =  (d x_0 / d x_t)^T grad_x_0 log p(y | x_0),      d x_0 / d x_t ~ sqrt(abar_t),
 * the slope of E[x_0 | x_t] for pixels of unit variance, in place of the UNet's own Jacobian. Classifier guidance
 * (Dhariwal & Nichol 2021, algorithm 2) then is
 *     eps  <-  eps - s sqrt(1 - abar_t) grad_x_t log p,   that is,   x_0  <-  x_0 + s (1 - abar_t) grad_x_0 log p,
 * bounded at every t, and kept in [-clip_sample_range, clip_sample_range] where the schedule clips x_0: a sampler that
 * clips afterwards loses a part of the move whose other part, in eps, stays, and the picture goes the other way.
 * A gradient may please the evaluator that it is from and nobody else. So in each step it looks from another place:
 * the picture is mirrored or not and moved by some pixels, at random, as its training pictures were (lab/augment.h);
 * over the steps only what holds for all of these adds up (expectation over transformation: Athalye et al. 2018).
 * Whoever guides must not judge: that takes a second evaluator. */
#ifndef LAB_TEACHER_H
#define LAB_TEACHER_H
#include "ddpm.h"
#include "lab/evaluator.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lab_teacher {
    lab_evaluator_net *net; /* LAB_GUIDING */
    const ddpm_schedule *schedule;
    double scale;     /* of guidance: s; of training: beta, the weight of -log p a class beside the squared error */
    int classes;      /* of the model's multi-hot */
    int *class_index; /* the evaluator's class of each */
    const ddpm_real *wanted; /* (n,classes): what to guide towards; NULL: the network's labels. The caller sets it */
    double log_p;            /* of training: sum over the labelled pictures since the caller set it to 0, */
    int pictures;            /* and how many they were */
    ddpm_real *labels, *sample, *prediction, *image, *gradient; /* room for the evaluator's capacity */
} lab_teacher;

/* classes: the model's; each must be one of the evaluator's (DDPM_ERR_RANGE names the first that is not). capacity:
 * pictures at once. Evaluator and schedule must outlive it. */
ddpm_result lab_teacher_create(lab_teacher **out, lab_evaluator *ev, const lab_classes *classes,
                               const ddpm_schedule *schedule, double scale, int capacity);
void lab_teacher_free(lab_teacher *teacher);
/* Can it teach this network? DDPM_ERR_SHAPE: its pictures are of another size; DDPM_ERR_ARGUMENT: other labels;
 * DDPM_ERR_UNSUPPORTED, of training: the network does not predict eps. The two below check for themselves. */
ddpm_result lab_teacher_fits(const lab_teacher *teacher, const ddpm_net *net);

/* Picture k of a batch, (3,size,size), as the guide sees it in this step of sampling: mirrored or not and moved by up
 * to LAB_VIEW_SHIFT pixels each way, edges repeated; drawn at {seed, first_picture + k, index, LAB_RANDOM_VIEW}. back:
 * the adjoint, for gradients: every value is added to the pixel that it came from. scratch: size^2. */
enum { LAB_VIEW_SHIFT = 3, LAB_RANDOM_VIEW = DDPM_RANDOM_USER + 5 };
void lab_teacher_view(const ddpm_step *step, int k, int size, ddpm_real *picture, ddpm_real *scratch, int back);

/* For ddpm_net's guide and pull, with the lab_teacher as `teacher`. Pictures without labels are left alone. n may not
 * exceed the capacity. Errors as of lab_teacher_fits.
 * guide: as above, whatever the network predicts: its output is moved so that the estimate of x_0 moves.
 * pull: adds the gradient of  beta sum abar_t (-log p(y | x_0)) / (n classes),  x_0 = (x_t - sqrt(1 - abar) eps) /
 *       sqrt(abar): the weight abar_t leaves out what the evaluator cannot see yet. For networks that predict eps. */
ddpm_result lab_teacher_guide(void *teacher, ddpm_net *net, const ddpm_step_terms *terms, int t, int n);
ddpm_result lab_teacher_pull(void *teacher, ddpm_net *net, int n, double elements);

/* How sure it is of one drawn picture (3,size,size), clamped to [-1,1]: log p(labels | picture), labels (classes) of
 * the model's, as the mean over the picture, its mirror image, and both moved by two pixels and one. At LAB_RECOGNISED
 * and above a picture need not be drawn again. */
#define LAB_RECOGNISED (-0.1) /* p = 0.9: of what this lets through, few are wrong to a judge (docs/RESULTS.md) */
ddpm_result lab_teacher_opinion(lab_teacher *teacher, const ddpm_real *picture, const ddpm_real *labels, double *log_p);

#ifdef __cplusplus
}
#endif
#endif /* LAB_TEACHER_H */
