/* lab/augment.h - small changes to a training picture that leave its labels true, for an evaluator that is to judge
 * generated pictures: mirrored and shifted, out of focus or of half the resolution, brighter or darker, noisy. */
#ifndef LAB_AUGMENT_H
#define LAB_AUGMENT_H
#include "ddpm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lab_augmentation {
    double flip;             /* probability of left for right */
    int shift;               /* pixels at most, each way, edges repeated */
    double halved, blurred;  /* probability of: half the size (means of 2x2) and bilinearly back; [1 2 1]/4 each way */
    double contrast, colour; /* the picture times 1 +- contrast, each channel times 1 +- colour */
    double brightness;       /* added, +- */
    double noisy, noise;     /* probability of normal noise, of standard deviation up to `noise` */
} lab_augmentation;
lab_augmentation lab_augmentation_default(void); /* 0.5; 3; 0.25, 0.25; 0.15, 0.04; 0.1; 0.5, 0.12 */

/* Changes picture (channels,height,width) in [-1,1], to which it is clamped; even height and width. All that is random
 * is addressed by `address`, its purpose and the one above. scratch: as large as the picture,
 * and two planes at least. */
void lab_augment(const lab_augmentation *a, ddpm_address address, int channels, int height, int width,
                 ddpm_real *picture, ddpm_real *scratch);

/* One plane: to[y][x] = from[y + dy][x + dx], left for right if flip, edges repeated; and the adjoint, for gradients:
 * every value is added to the pixel that it came from. `to` must be another plane. */
void lab_move(const ddpm_real *from, int height, int width, int flip, int dx, int dy, ddpm_real *to);
void lab_move_back(const ddpm_real *gradient, int height, int width, int flip, int dx, int dy, ddpm_real *to);

#ifdef __cplusplus
}
#endif
#endif /* LAB_AUGMENT_H */
