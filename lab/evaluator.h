/* lab/evaluator.h - the classifier that judges pictures: torchvision's ResNet18 (He et al. 2016) with
 * fc = Linear(512 width, classes) + Sigmoid, on the core's graph and table, under torchvision's names. It gives every
 * class a probability; the k largest are compared with a picture's k labels (lab/score.h), and their gradient with
 * respect to the picture guides sampling.
 *
 *     lab_evaluator *ev;      lab_evaluator_load("data/mini/evaluator", NULL, &ev);
 *     lab_evaluator_net *net; lab_evaluator_net_create(&net, ev, 32, LAB_SCORING);
 *     lab_evaluator_scores(net, n, pictures, probabilities);
 *     lab_evaluator_net_free(net);  lab_evaluator_free(ev);
 *
 * Contents:  1 evaluators, on disk too   2 its graphs   3 scoring, gradients, training */
#ifndef LAB_EVALUATOR_H
#define LAB_EVALUATOR_H
#include "ddpm.h"
#include "io/config.h"
#include "io/safetensors.h"
#include "lab/labels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Evaluators, on disk too ---------------------------------------------------------------------------------- */

typedef struct lab_evaluator {  /* read only for callers */
    io_evaluator_config config; /* classes, width, size of the pictures */
    lab_classes classes;        /* the same names, to look up */
    ddpm_model *model;          /* conv1.weight, bn1.running_mean, layer1.0.conv1.weight, ..., fc.0.bias */
    char *path;                 /* where it was loaded from; NULL: created */
} lab_evaluator;

/* An evaluator without arrays: ddpm_model_alloc and ddpm_model_init (torchvision's initialisation: He et al. 2015,
 * fan_out) make them. config is copied. DDPM_ERR_ARGUMENT names what cannot be. device NULL: the reference. */
ddpm_result lab_evaluator_create(const io_evaluator_config *config, const ddpm_device *device, lab_evaluator **out);
void lab_evaluator_free(lab_evaluator *ev);

/* Loads DDPM_WEIGHT from a directory with config.json and model.safetensors, or from a .safetensors file with a
 * state_dict of torchvision's: width and number of classes are then read off the shapes, 24 classes are the lab's, the
 * pictures 64x64. DDPM_ERR_UNSUPPORTED for torch's own files, with the line of Python that converts the course's. */
ddpm_result lab_evaluator_load(const char *path, const ddpm_device *device, lab_evaluator **out);
/* Writes config.json and one array as model.safetensors (IO_F32 or IO_F16) into `directory`, made if missing; each file
 * atomically. */
ddpm_result lab_evaluator_save(const char *directory, const lab_evaluator *ev, ddpm_array array, io_dtype dtype);

/* ---- 2. Its graphs ----------------------------------------------------------------------------------------------- */

/* Builds it on x (N,3,S,S) in [-1,1] at the graph's end: (N,classes,1,1) probabilities, of module.train() or
 * module.eval() as the graph is. For graphs of one's own; ddpm_graph_plan reports failures. */
ddpm_tensor *lab_evaluator_build(const lab_evaluator *ev, ddpm_graph *g, ddpm_tensor *x);

typedef enum lab_evaluator_mode {
    LAB_SCORING,  /* forward only, running statistics */
    LAB_GUIDING,  /* and the gradient with respect to the picture */
    LAB_TRAINING, /* batch statistics, gradients of the parameters */
} lab_evaluator_mode;

typedef struct lab_evaluator_net {
    lab_evaluator *ev;
    ddpm_graph *graph;
    lab_evaluator_mode mode;
    ddpm_tensor *picture; /* (N,3,S,S), S = sample_size */
    ddpm_tensor *target;  /* (N,classes,1,1) of 0 and 1; NULL when scoring */
    ddpm_tensor *scores;  /* (N,classes,1,1) */
    ddpm_tensor *loss;    /* (N,1,1,1): binary cross-entropy, summed over the classes; NULL when scoring */
} lab_evaluator_net;
/* A planned graph for up to `capacity` pictures at once. */
ddpm_result lab_evaluator_net_create(lab_evaluator_net **out, lab_evaluator *ev, int capacity, lab_evaluator_mode mode);
void lab_evaluator_net_free(lab_evaluator_net *net);

/* ---- 3. Scoring, gradients, training: n pictures (n,3,S,S) in host memory ---------------------------------------- */

/* scores (n,classes): probabilities. n may exceed the capacity. Any mode but LAB_TRAINING. */
ddpm_result lab_evaluator_scores(const lab_evaluator_net *net, int n, const ddpm_real *pictures, ddpm_real *scores);

/* The score that guides: log p(labels | picture) = sum over classes c of y_c log p_c + (1 - y_c) log(1 - p_c), which is
 * minus the binary cross-entropy, and its gradient with respect to the picture. Unlike the share of hits it has one.
 *   log_p (n); gradient (n,3,S,S); either may be NULL. n may exceed the capacity. LAB_GUIDING. */
ddpm_result lab_evaluator_gradient(const lab_evaluator_net *net, int n, const ddpm_real *pictures,
                                   const ddpm_real *labels, ddpm_real *log_p, ddpm_real *gradient);

/* One step of Adam on the mean binary cross-entropy (torch's BCELoss) of n <= capacity pictures; `steps` of them went
 * before. The model must be allocated DDPM_FOR_TRAINING. LAB_TRAINING. */
ddpm_result lab_evaluator_train_step(const lab_evaluator_net *net, int n, const ddpm_real *pictures,
                                     const ddpm_real *labels, const ddpm_train_config *config, uint64_t steps,
                                     double lr, double *loss);

#ifdef __cplusplus
}
#endif
#endif /* LAB_EVALUATOR_H */
