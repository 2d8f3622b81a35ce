/* lab/render.h - draws the lab's data set: matte cubes, spheres and cylinders in eight colours on a lit gray ground,
 * after CLEVR's published scene generator (Johnson et al. 2017) as the lab's i-CLEVR pictures show it; ray traced on
 * the CPU. A scene is a value that anyone can draw at any size; lab_render() writes a whole data set in the lab's own
 * files.
 *     lab_render_config config = lab_render_default();      // 2000 scenes of three pictures, 320x240
 *     config.out = "iclevr";  config.seed = 7;
 *     lab_render(&config);                                  // iclevr/train.json, objects.json, ...,
 * CLEVR_train_000000_0.png
 * Everything is addressed by (seed, scene index): the same bytes for any number of threads and in any order.
 *
 * Contents:  1 classes   2 scenes   3 data sets on disk */
#ifndef LAB_RENDER_H
#define LAB_RENDER_H
#include <stdint.h>

#include "ddpm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Classes: class = shape * 8 + colour, the lab's order ("gray cube" is 0, "yellow cylinder" 23) ---- */

enum { LAB_CUBE, LAB_SPHERE, LAB_CYLINDER, LAB_SHAPES };
enum { LAB_COLOURS = 8, LAB_RENDER_CLASSES = LAB_SHAPES * LAB_COLOURS };

extern const char *const lab_shape_name[LAB_SHAPES];
extern const char *const lab_colour_name[LAB_COLOURS];
extern const unsigned char lab_colour_srgb[LAB_COLOURS][3]; /* of the paint, before light falls on it */

/* ---- 2. Scenes ----
 * World units are CLEVR's: z is up, the ground is z = 0, the first object stands at the origin, the camera some 11
 * away. */

enum {
    LAB_GROWING = 3,     /* pictures a random scene grows through: 1, 2, 3 objects */
    LAB_MAX_OBJECTS = 6, /* more would seldom all be visible */
    LAB_LIGHTS = 3,      /* key, fill, back */
    LAB_GROUND = -1,     /* in lab_scene_ids: no object */
    LAB_MIN_PIXELS = 200 /* CLEVR's rule: pixels that every object shows at least, at 320x240 */
};

typedef struct lab_vec3 {
    float x, y, z;
} lab_vec3;

typedef struct lab_object {
    int class_index;
    float x, y;         /* where its axis meets the ground; it rests on it */
    float cosine, sine; /* of its turn about the vertical */
} lab_object;

typedef struct lab_scene {
    lab_object object[LAB_MAX_OBJECTS];
    int objects;
    lab_vec3 camera;            /* looks at the centre, horizon level, 35 mm lens on a 32 mm sensor of 4:3 */
    lab_vec3 light[LAB_LIGHTS]; /* centres of the lamps */
} lab_scene;

/* Scene `index` of the endless data set `seed`: three different classes, uniform over all such triples; then places,
 * turns, jitter of the camera and of the lamps, drawn again until every object shows LAB_MIN_PIXELS and none is cut
 * by the frame. Does not depend on any picture size. index < 2^56.
 * DDPM_ERR_RANGE if 1000 placements were not enough (nearly every one is); DDPM_ERR_MEMORY. */
ddpm_result lab_scene_random(lab_scene *scene, uint64_t seed, uint64_t index);

/* The classes alone of that scene, in the order in which it grows: quick. */
void lab_scene_classes(uint64_t seed, uint64_t index, int class_index[LAB_GROWING]);

/* A scene with the classes given, 1 <= count <= LAB_MAX_OBJECTS, all different, the first at the centre; else as
 * lab_scene_random, from another stream of numbers. DDPM_ERR_ARGUMENT, DDPM_ERR_RANGE (also: no room for so many). */
ddpm_result lab_scene_of(lab_scene *scene, const int *class_index, int count, uint64_t seed, uint64_t index);

/* Draws the first `shown` objects of a scene into rgb, (height, width, 3) bytes of sRGB, rows from the top. The frame
 * is always the 4:3 view: another aspect is squeezed, as the lab's 64x64 pictures are. 4 <= width, height <= 4096.
 * DDPM_ERR_ARGUMENT; DDPM_ERR_MEMORY (2 bytes a pixel). */
ddpm_result lab_scene_draw(const lab_scene *scene, int shown, int width, int height, unsigned char *rgb);

/* Which of the first `shown` objects is seen at each pixel's centre: id (height, width), an index or LAB_GROUND. */
void lab_scene_ids(const lab_scene *scene, int shown, int width, int height, signed char *id);

/* ---- 3. Data sets on disk ---- */

typedef enum lab_layout {
    LAB_LAYOUT_LISTS,   /* the lab's: all pictures in one folder, train.json and objects.json say what they show */
    LAB_LAYOUT_FOLDERS, /* a folder a class, "red cube"/CLEVR_train_%06d_0.png: of each scene the one-object picture */
    LAB_LAYOUT_PLAIN    /* the pictures alone */
} lab_layout;

typedef struct lab_render_config {
    const char *out;   /* directory, made if missing */
    int scenes;        /* of three pictures each; ignored with labels_file */
    lab_layout layout; /* ignored with labels_file */
    uint64_t seed;
    int width, height;
    int threads; /* 0: all that OpenMP offers; never changes a byte */
    const char
        *labels_file; /* NULL: random scenes; else a file of test.json's form: one picture a set, 0.png, 1.png, ... */
    /* After each scene, `done` of `total`, one thread at a time. Anything but DDPM_OK ends the run with that result. */
    ddpm_result (*progress)(void *user, int done, int total);
    void *user;
} lab_render_config;

lab_render_config lab_render_default(void); /* 2000 scenes, seed 0, 320x240, all threads */

/* Writes the data set, in the lab's own names and forms:
 *     CLEVR_train_%06d_%d.png  scene, 0..2: a scene growing by one object; PNG text chunks "seed" and "scene"
 *     train.json               {"CLEVR_train_000000_0.png": ["red cube"], ...}; written last: its presence means
 * complete     objects.json             {"gray cube": 0, ..., "yellow cylinder": 23}
 *     test.json, new_test.json 32 label sets each, the same for every seed: 6, 12 and 14 sets of 1, 2 and 3 objects,
 * every                              class three times; 12 and 20 sets of 2 and 3, each object sharing colour or
 * shape with the                              one before it
 *     render.json              the settings
 * Of the other layouts: the pictures and render.json only.
 * With labels_file: the pictures 0.png, ... and render.json only.
 * A directory that holds a data set of other settings, or one that this program did not make, is refused
 * (DDPM_ERR_ARGUMENT) and left as it is; the same settings again write the same bytes again.
 * Also DDPM_ERR_FILE, DDPM_ERR_FORMAT (of labels_file), DDPM_ERR_MEMORY. */
ddpm_result lab_render(const lab_render_config *config);

#ifdef __cplusplus
}
#endif
#endif /* LAB_RENDER_H */
