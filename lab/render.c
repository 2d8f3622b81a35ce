/* lab/render.c - the scene renderer: a small ray tracer for convex solids on a plane under three disc-shaped lamps, a
 * generator of CLEVR-like scenes, and the writer of data sets. No noise: shadows are sampled with one fixed pattern, so
 * every value is a plain function of the scene, and threads share nothing but the list of scenes still to draw.
 *
 * Contents:  1 vectors            4 lamps and shadows   7 pictures
 *            2 classes            5 shading             8 random scenes
 *            3 solids             6 camera and painter  9 label sets of the tests   10 data sets on disk */
#include "lab/render.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/picture.h"
#include "lab/labels.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* ---- 1. Vectors ----------------------------------------------------------------------------------------------------
 * Only + - * / and sqrt, which IEEE 754 rounds exactly: the same picture on every machine. */

typedef lab_vec3 vec3;

static vec3 vec(float x, float y, float z)
{
    return (vec3){x, y, z};
}

static vec3 add(vec3 a, vec3 b)
{
    return vec(a.x + b.x, a.y + b.y, a.z + b.z);
}

static vec3 sub(vec3 a, vec3 b)
{
    return vec(a.x - b.x, a.y - b.y, a.z - b.z);
}

static vec3 scale(vec3 a, float s)
{
    return vec(a.x * s, a.y * s, a.z * s);
}

static float dot(vec3 a, vec3 b)
{
    return a.x * b.x + a.y * b.y + a.z * b.z;
}

static vec3 cross(vec3 a, vec3 b)
{
    return vec(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x);
}

static vec3 normalize(vec3 a)
{
    return scale(a, 1 / sqrtf(dot(a, a)));
}

static float clamp(float value, float low, float high)
{
    return value < low ? low : value > high ? high : value;
}

/* ---- 2. Classes ---- */

const char *const lab_shape_name[LAB_SHAPES] = {"cube", "sphere", "cylinder"};
const char *const lab_colour_name[LAB_COLOURS] = {"gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"};
const unsigned char lab_colour_srgb[LAB_COLOURS][3] = {/* CLEVR's properties.json */
                                                       {87, 87, 87},  {173, 35, 35},  {42, 75, 215},  {29, 105, 20},
                                                       {129, 74, 25}, {129, 38, 192}, {41, 208, 208}, {255, 238, 51}};

static int shape_of(int class_index)
{
    return class_index / LAB_COLOURS;
}

static int colour_of(int class_index)
{
    return class_index % LAB_COLOURS;
}

/* ---- 3. Solids ------------------------------------------------------------------------------------------------------
 * In an object's own frame: origin at its centre, turned with it. A ray is q + t d; a hit is the smallest t > 0,
 * NO_HIT if there is none. All are convex and rest on the ground, and no ray starts inside one. */

#define SIZE 0.7f /* CLEVR's large size: radius of spheres and cylinders, half height of cylinders */
#define HALF_CUBE (SIZE * 0.70710678f) /* its cube has side SIZE sqrt(2), so that its corners lie on that radius too */
#define BEVEL 0.06f                    /* radius of the rounded edges of cubes and cylinders */
#define NO_HIT INFINITY

static float half_height(int shape)
{
    return shape == LAB_CUBE ? HALF_CUBE : SIZE;
}

/* Squared radius of the ball about the centre that holds the solid. */
static float ball_squared(int shape)
{
    switch (shape) {
    case LAB_CUBE: return 3 * HALF_CUBE * HALF_CUBE;
    case LAB_SPHERE: return SIZE * SIZE;
    default: return 2 * SIZE * SIZE;
    }
}

/* |q + t d|^2 = r^2: a t^2 + 2 b t + c = 0 with a = d.d, b = q.d, c = q.q - r^2; the nearer root. */
static float hit_sphere(vec3 q, vec3 d)
{
    float a = dot(d, d), b = dot(q, d), c = dot(q, q) - SIZE * SIZE;
    float discriminant = b * b - a * c;
    if (discriminant < 0 || b > 0) return NO_HIT;
    return (-b - sqrtf(discriminant)) / a;
}

/* Narrows [*enter, *leave] to the part of a ray with |q + t d| <= h along one axis; 0 if nothing is left. */
static inline int clip_slab(float q, float d, float h, float *enter, float *leave)
{
    if (d == 0) return q >= -h && q <= h;
    float inverse = 1 / d;
    float t0 = (-h - q) * inverse, t1 = (h - q) * inverse;
    float first = t0 < t1 ? t0 : t1, last = t0 < t1 ? t1 : t0;
    if (first > *enter) *enter = first;
    if (last < *leave) *leave = last;
    return *enter <= *leave;
}

/* A cube is the common part of three slabs. */
static float hit_cube(vec3 q, vec3 d)
{
    float enter = 0, leave = NO_HIT;
    if (!clip_slab(q.x, d.x, HALF_CUBE, &enter, &leave) || !clip_slab(q.y, d.y, HALF_CUBE, &enter, &leave) ||
        !clip_slab(q.z, d.z, HALF_CUBE, &enter, &leave))
        return NO_HIT;
    return enter;
}

/* A cylinder is the common part of a slab in z and of x^2 + y^2 <= r^2, a quadratic as for the sphere. */
static float hit_cylinder(vec3 q, vec3 d)
{
    float enter = 0, leave = NO_HIT;
    if (!clip_slab(q.z, d.z, SIZE, &enter, &leave)) return NO_HIT;
    float a = d.x * d.x + d.y * d.y, b = q.x * d.x + q.y * d.y, c = q.x * q.x + q.y * q.y - SIZE * SIZE;
    float discriminant = b * b - a * c;
    if (discriminant < 0 || (a == 0 && c > 0)) return NO_HIT;
    if (a > 0) { /* else the ray is vertical and within the circle */
        float root = sqrtf(discriminant);
        float first = (-b - root) / a, last = (-b + root) / a;
        if (first > enter) enter = first;
        if (last < leave) leave = last;
    }
    return enter <= leave ? enter : NO_HIT;
}

static float hit_solid(int shape, vec3 q, vec3 d)
{
    switch (shape) {
    case LAB_CUBE: return hit_cube(q, d);
    case LAB_SPHERE: return hit_sphere(q, d);
    default: return hit_cylinder(q, d);
    }
}

/* The outward normal at surface point p. Edges are rounded for the light only: the normal points away from the nearest
 * point of the solid shrunk by BEVEL, as it would on a solid with edges of that radius. */
static vec3 solid_normal(int shape, vec3 p)
{
    if (shape == LAB_SPHERE) return normalize(p);
    if (shape == LAB_CUBE) {
        const float inner = HALF_CUBE - BEVEL;
        return normalize(
            vec(p.x - clamp(p.x, -inner, inner), p.y - clamp(p.y, -inner, inner), p.z - clamp(p.z, -inner, inner)));
    }
    const float inner = SIZE - BEVEL;
    float radius = sqrtf(p.x * p.x + p.y * p.y);
    float out = radius > inner ? (radius - inner) / radius : 0;
    return normalize(vec(p.x * out, p.y * out, p.z - clamp(p.z, -inner, inner)));
}

/* Between the world and an object's frame: the turn about the vertical by (cosine, sine) and back. */
static vec3 into_frame(const lab_object *object, vec3 v)
{
    return vec(object->cosine * v.x + object->sine * v.y, object->cosine * v.y - object->sine * v.x, v.z);
}

static vec3 out_of_frame(const lab_object *object, vec3 v)
{
    return vec(object->cosine * v.x - object->sine * v.y, object->cosine * v.y + object->sine * v.x, v.z);
}

static vec3 object_centre(const lab_object *object)
{
    return vec(object->x, object->y, half_height(shape_of(object->class_index)));
}

/* ---- 4. Lamps and shadows -------------------------------------------------------------------------------------------
 * A lamp is a disc that faces the centre of the scene. Its light arrives as from its centre; the disc matters for how
 * much of it a point sees: the visible share of LAMP_SAMPLES points on it. They lie on a sunflower spiral (Vogel 1979),
 * the same for every point of the scene: a shadow's edge of any direction passes them one by one, and one of them is
 * worth about one code of 255 on the ground, so that soft shadows show neither noise nor steps. */

enum { LAMP_SAMPLES = 64 };

static const struct {
    vec3 centre;
    float power; /* irradiance of a face turned to it at distance 1 */
    float radius;
} lamp[LAB_LIGHTS] = {
    {{6.45f, -2.91f, 5.3f}, 42, 0.68f}, /* key */
    {{-4.7f, -4.03f, 5.0f}, 14, 1.0f},  /* fill */
    {{-1.6f, 4.1f, 6.2f}, 11, 0.68f},   /* back */
};

/* All that drawing one scene needs, computed once. */
typedef struct painter {
    const lab_scene *scene;
    int shown;
    vec3 centre[LAB_MAX_OBJECTS], paint[LAB_MAX_OBJECTS]; /* paint: linear reflectance */
    float ball[LAB_MAX_OBJECTS];                          /* radius of the bounding ball */
    vec3 forward, right, up;                              /* of the camera */
    vec3 lamp_point[LAB_LIGHTS][LAMP_SAMPLES];
    float code_edge[255]; /* linear value from which on code i + 1 is nearer than code i */
} painter;

/* Point i of n on the unit disc: radius sqrt((i + 1/2) / n), turned by the golden angle from the point before. */
static void place_lamp(vec3 point[LAMP_SAMPLES], vec3 centre, float radius)
{
    const float golden_cosine = -0.73736888f, golden_sine = 0.67549029f; /* of pi (3 - sqrt 5) */
    vec3 axis = normalize(centre);
    vec3 u = normalize(cross(axis, vec(0, 0, 1))), v = cross(u, axis);
    float cosine = 1, sine = 0;
    for (int i = 0; i < LAMP_SAMPLES; i++) {
        float r = radius * sqrtf(((float)i + 0.5f) / LAMP_SAMPLES);
        point[i] = add(centre, add(scale(u, r * cosine), scale(v, r * sine)));
        float turned = cosine * golden_cosine - sine * golden_sine;
        sine = cosine * golden_sine + sine * golden_cosine;
        cosine = turned;
    }
}

/* 1 if object i may stand between `point` and some part of the lamp: its bounding ball touches the cone from the
 * point to the lamp's disc. Along the axis the ball reaches to `far`, where the cone is radius * far / distance
 * wide. */
static int may_shade(const painter *p, int i, vec3 point, int l, vec3 to_lamp, float distance)
{
    vec3 to_object = sub(p->centre[i], point);
    float along = dot(to_object, to_lamp) / distance;
    float far = along + p->ball[i] + lamp[l].radius;
    if (far < 0) return 0;
    float share = far < distance ? far / distance : 1;
    float reach = p->ball[i] + lamp[l].radius * share;
    return dot(to_object, to_object) - along * along < reach * reach;
}

/* The share of lamp l that `point` sees; `self` is the object it lies on, which, being convex, does not shade itself
 * where it faces the lamp. Looks at samples first, first + stride, ... */
static float visible_share(const painter *p, vec3 point, int self, int l, vec3 to_lamp, float distance, int first,
                           int stride)
{
    int shader[LAB_MAX_OBJECTS], shaders = 0;
    vec3 start[LAB_MAX_OBJECTS];
    for (int i = 0; i < p->shown; i++) {
        if (i == self || !may_shade(p, i, point, l, to_lamp, distance)) continue;
        start[shaders] = into_frame(&p->scene->object[i], sub(point, p->centre[i]));
        shader[shaders++] = i;
    }
    if (shaders == 0) return 1;
    int seen = 0, samples = 0;
    for (int s = first; s < LAMP_SAMPLES; s += stride, samples++) {
        vec3 ray = sub(p->lamp_point[l][s], point);
        int blocked = 0;
        for (int k = 0; k < shaders && !blocked; k++) {
            const lab_object *object = &p->scene->object[shader[k]];
            blocked = hit_solid(shape_of(object->class_index), start[k], into_frame(object, ray)) < 1;
        }
        seen += !blocked;
    }
    return (float)seen / (float)samples;
}

/* ---- 5. Shading -----------------------------------------------------------------------------------------------------
 * light = paint (ambient + sum over lamps of power visible cos(n, l) / distance^2) + highlight
 * highlight = HIGHLIGHT sum of what arrives times cos(n, halfway)^32                      (Lambert 1760; Blinn 1977) */

#define GROUND_PAINT 0.42f
#define OBJECT_PAINT 1.15f /* CLEVR's colours come out a little brighter than painted */
#define AMBIENT 0.16f
#define HIGHLIGHT 0.12f

/* Linear value of an sRGB value in [0,1] (IEC 61966-2-1). u^2.4 = u^2 (u^2)^(1/5); the fifth root by Newton's method
 * from above, y <- (4 y + x / y^4) / 5 (x <= 1, and at least 0.008 here: 20 steps are plenty), which needs no libm. */
static double linear_from_srgb(double c)
{
    if (c <= 0.04045) return c / 12.92;
    double u = (c + 0.055) / 1.055, x = u * u, root = 1;
    for (int i = 0; i < 20; i++)
        root = (4 * root + x / (root * root * root * root)) / 5;
    return x * root;
}

/* The sRGB code nearest to a linear value: how many of the 255 edges lie at or below it. */
static unsigned char srgb_code(const painter *p, float linear)
{
    int low = 0, high = 255;
    while (low < high) {
        int middle = (low + high) / 2;
        if (p->code_edge[middle] <= linear)
            low = middle + 1;
        else
            high = middle;
    }
    return (unsigned char)low;
}

/* cos(n, l) at least 0, with the edge of the lit side softened as a lamp of angular radius `soft` does: the part of
 * its disc above the horizon, to second order. */
static float soft_cosine(float cosine, float soft)
{
    if (cosine >= soft) return cosine;
    if (cosine <= -soft) return 0;
    return (cosine + soft) * (cosine + soft) / (4 * soft);
}

/* What of the sky a surface sees: less where it faces down, less beside an object (ambient occlusion by a ball of
 * radius r at distance d: (r/d)^2 cos, after I. Quilez). */
static float sky_share(const painter *p, vec3 point, vec3 normal, int self)
{
    float share = 0.6f + 0.4f * normal.z;
    for (int i = 0; i < p->shown; i++) {
        if (i == self) continue;
        vec3 to = sub(p->centre[i], point);
        float squared = dot(to, to), toward = dot(normal, to);
        if (toward > 0) share *= 1 - clamp(SIZE * SIZE / squared * toward / sqrtf(squared), 0, 1);
    }
    return share;
}

static vec3 shade(const painter *p, int object, vec3 point, vec3 normal, vec3 ray, int first, int stride)
{
    vec3 paint = object == LAB_GROUND ? vec(GROUND_PAINT, GROUND_PAINT, GROUND_PAINT) : p->paint[object];
    float light = AMBIENT * sky_share(p, point, normal, object), highlight = 0;
    for (int l = 0; l < LAB_LIGHTS; l++) {
        vec3 to_lamp = sub(p->scene->light[l], point);
        float squared = dot(to_lamp, to_lamp), distance = sqrtf(squared);
        float cosine = soft_cosine(dot(normal, to_lamp) / distance, lamp[l].radius / distance);
        if (cosine == 0) continue;
        float arriving = lamp[l].power / squared * visible_share(p, point, object, l, to_lamp, distance, first, stride);
        light += arriving * cosine;
        if (object != LAB_GROUND) {
            float half = clamp(dot(normal, normalize(sub(scale(to_lamp, 1 / distance), ray))), 0, 1);
            for (int i = 0; i < 5; i++) /* half^32 */
                half *= half;
            highlight += arriving * HIGHLIGHT * half;
        }
    }
    return add(scale(paint, light), vec(highlight, highlight, highlight));
}

/* ---- 6. Camera and painter ---- */

#define HALF_FRAME (16.0f / 35.0f) /* half the sensor's width over the focal length */
#define GAZE_HEIGHT 0.2f           /* the camera looks at (0, 0, this) */

static void painter_init(painter *p, const lab_scene *scene, int shown)
{
    p->scene = scene;
    p->shown = shown;
    for (int i = 0; i < shown; i++) {
        int class_index = scene->object[i].class_index;
        const unsigned char *code = lab_colour_srgb[colour_of(class_index)];
        p->centre[i] = object_centre(&scene->object[i]);
        p->ball[i] = sqrtf(ball_squared(shape_of(class_index)));
        p->paint[i] = scale(vec((float)linear_from_srgb(code[0] / 255.0), (float)linear_from_srgb(code[1] / 255.0),
                                (float)linear_from_srgb(code[2] / 255.0)),
                            OBJECT_PAINT);
    }
    p->forward = normalize(sub(vec(0, 0, GAZE_HEIGHT), scene->camera));
    p->right = normalize(cross(p->forward, vec(0, 0, 1)));
    p->up = cross(p->right, p->forward);
    for (int l = 0; l < LAB_LIGHTS; l++)
        place_lamp(p->lamp_point[l], scene->light[l], lamp[l].radius);
    for (int i = 0; i < 255; i++)
        p->code_edge[i] = (float)linear_from_srgb((i + 0.5) / 255);
}

/* The ray through (x, y) of the frame, both in [0,1] from its top left corner. */
static vec3 camera_ray(const painter *p, float x, float y)
{
    float across = (2 * x - 1) * HALF_FRAME, upward = (1 - 2 * y) * HALF_FRAME * 0.75f;
    return normalize(add(p->forward, add(scale(p->right, across), scale(p->up, upward))));
}

/* The first of the objects on a ray from the camera, with its distance (NO_HIT with LAB_GROUND). */
static int first_object(const painter *p, vec3 ray, float *distance)
{
    int nearest = LAB_GROUND;
    *distance = NO_HIT;
    for (int i = 0; i < p->shown; i++) {
        vec3 from = sub(p->scene->camera, p->centre[i]);
        float along = dot(from, ray);
        if (dot(from, from) - along * along > p->ball[i] * p->ball[i]) continue;
        const lab_object *object = &p->scene->object[i];
        float t = hit_solid(shape_of(object->class_index), into_frame(object, from), into_frame(object, ray));
        if (t < *distance) {
            *distance = t;
            nearest = i;
        }
    }
    return nearest;
}

/* The light that arrives along a ray, and the object it comes from. */
static vec3 look(const painter *p, vec3 ray, int first, int stride, int *object)
{
    float t;
    *object = first_object(p, ray, &t);
    vec3 normal = vec(0, 0, 1);
    if (*object == LAB_GROUND) {
        /* The far ground stands in for a sky, which none of our cameras sees. */
        float down = ray.z < -0.01f ? -ray.z : 0.01f;
        t = p->scene->camera.z / down;
    }
    vec3 point = add(p->scene->camera, scale(ray, t));
    if (*object != LAB_GROUND) {
        const lab_object *hit = &p->scene->object[*object];
        vec3 local = into_frame(hit, sub(point, p->centre[*object]));
        normal = out_of_frame(hit, solid_normal(shape_of(hit->class_index), local));
    }
    return shade(p, *object, point, normal, ray, first, stride);
}

/* ---- 7. Pictures ----------------------------------------------------------------------------------------------------
 * One ray through every pixel's centre; then, where a pixel differs from a neighbour in object or visibly in colour,
 * the mean of EDGE_RAYS rays spread over it. */

enum { EDGE_RAYS = 16, EDGE_CONTRAST = 8, MIN_SIDE = 4, MAX_SIDE = 4096 };

static void put_pixel(const painter *p, unsigned char *rgb, vec3 light)
{
    rgb[0] = srgb_code(p, light.x);
    rgb[1] = srgb_code(p, light.y);
    rgb[2] = srgb_code(p, light.z);
}

/* 1 if pixels a and b belong to different objects or differ by more than EDGE_CONTRAST codes. */
static int differ(const unsigned char *rgb, const signed char *id, size_t a, size_t b)
{
    int contrast = 0;
    for (int k = 0; k < 3; k++) {
        int difference = abs(rgb[3 * a + (size_t)k] - rgb[3 * b + (size_t)k]);
        contrast = difference > contrast ? difference : contrast;
    }
    return id[a] != id[b] || contrast > EDGE_CONTRAST;
}

static void mark_edges(const unsigned char *rgb, const signed char *id, size_t width, size_t height,
                       unsigned char *edge)
{
    memset(edge, 0, width * height);
    for (size_t y = 0; y < height; y++) {
        for (size_t x = 0; x < width; x++) {
            size_t here = y * width + x;
            if (x + 1 < width && differ(rgb, id, here, here + 1)) edge[here] = edge[here + 1] = 1;
            if (y + 1 < height && differ(rgb, id, here, here + width)) edge[here] = edge[here + width] = 1;
        }
    }
}

/* The mean over a pixel. Ray i goes through ((i + 1/2) / n, (5 i mod n + 1/2) / n) of it, a lattice that crosses a
 * straight edge of any direction at nearly n different places; together the rays look at every lamp sample. */
static vec3 pixel_mean(const painter *p, int x, int y, float step_x, float step_y)
{
    vec3 sum = vec(0, 0, 0);
    for (int i = 0; i < EDGE_RAYS; i++) {
        float dx = ((float)i + 0.5f) / EDGE_RAYS, dy = ((float)(5 * i % EDGE_RAYS) + 0.5f) / EDGE_RAYS;
        int object;
        vec3 ray = camera_ray(p, ((float)x + dx) * step_x, ((float)y + dy) * step_y);
        sum = add(sum, look(p, ray, i % 4, 4, &object));
    }
    return scale(sum, 1.0f / EDGE_RAYS);
}

ddpm_result lab_scene_draw(const lab_scene *scene, int shown, int width, int height, unsigned char *rgb)
{
    if (shown < 0 || shown > scene->objects || width < MIN_SIDE || width > MAX_SIDE || height < MIN_SIDE ||
        height > MAX_SIDE)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "a scene of %d objects cannot be drawn with %d of them at %dx%d\n"
                         "      hint: width and height go from %d to %d",
                         scene->objects, shown, width, height, MIN_SIDE, MAX_SIDE);
    size_t pixels = (size_t)width * (size_t)height;
    signed char *id = malloc(2 * pixels);
    if (!id) return ddpm_fail(DDPM_ERR_MEMORY, "no memory to draw a picture of %dx%d", width, height);
    unsigned char *edge = (unsigned char *)id + pixels;
    painter p;
    painter_init(&p, scene, shown);
    float step_x = 1 / (float)width, step_y = 1 / (float)height;
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            size_t here = (size_t)y * (size_t)width + (size_t)x;
            int object;
            vec3 ray = camera_ray(&p, ((float)x + 0.5f) * step_x, ((float)y + 0.5f) * step_y);
            put_pixel(&p, rgb + 3 * here, look(&p, ray, 0, 1, &object));
            id[here] = (signed char)object;
        }
    }
    mark_edges(rgb, id, (size_t)width, (size_t)height, edge);
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            size_t here = (size_t)y * (size_t)width + (size_t)x;
            if (edge[here]) put_pixel(&p, rgb + 3 * here, pixel_mean(&p, x, y, step_x, step_y));
        }
    }
    free(id);
    return DDPM_OK;
}

void lab_scene_ids(const lab_scene *scene, int shown, int width, int height, signed char *id)
{
    painter p;
    painter_init(&p, scene, shown);
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            float distance;
            vec3 ray = camera_ray(&p, ((float)x + 0.5f) / (float)width, ((float)y + 0.5f) / (float)height);
            id[(size_t)y * (size_t)width + (size_t)x] = (signed char)first_object(&p, ray, &distance);
        }
    }
}

/* ---- 8. Random scenes ---- */

#define REACH 3.0f         /* centres lie in [-REACH, REACH]^2 */
#define GAP 0.25f          /* between two objects, at least */
#define CAMERA_JITTER 0.5f /* each coordinate, either way */
#define LAMP_JITTER 1.0f

enum { PLACEMENTS = 1000, PLACE_TRIES = 100, PROBE_WIDTH = 320, PROBE_HEIGHT = 240 };
enum { RANDOM_SCENE = DDPM_RANDOM_USER + 1, RANDOM_LABELLED_SCENE, RANDOM_TEST_SETS };

/* Random words one after another from one address. */
typedef struct stream {
    ddpm_address address;
    uint32_t block, word[4];
    int left;
} stream;

static stream stream_at(uint64_t seed, int purpose, uint64_t index)
{
    return (stream){.address = {.seed = seed, .picture = index, .purpose = (uint32_t)purpose}};
}

static uint32_t next_word(stream *s)
{
    if (s->left == 0) {
        ddpm_philox(s->address, s->block++, s->word);
        s->left = 4;
    }
    return s->word[--s->left];
}

static int uniform_below(stream *s, int range)
{
    return (int)(((uint64_t)next_word(s) * (uint64_t)range) >> 32);
}

/* Uniform in [-reach, reach). */
static float uniform_about_zero(stream *s, float reach)
{
    return ((float)(next_word(s) >> 8) / 8388608.0f - 1) * reach;
}

static vec3 jittered(stream *s, vec3 v, float jitter)
{
    float x = uniform_about_zero(s, jitter), y = uniform_about_zero(s, jitter), z = uniform_about_zero(s, jitter);
    return add(v, vec(x, y, z));
}

/* A direction uniform on the circle: a point uniform in the disc, pushed to its rim (von Neumann 1951). */
static void random_turn(stream *s, lab_object *object)
{
    float x, y, squared;
    do {
        x = uniform_about_zero(s, 1);
        y = uniform_about_zero(s, 1);
        squared = x * x + y * y;
    } while (squared > 1 || squared < 0.01f);
    object->cosine = x / sqrtf(squared);
    object->sine = y / sqrtf(squared);
}

static int has_room(const lab_scene *scene, int i)
{
    const float apart = 2 * SIZE + GAP;
    for (int j = 0; j < i; j++) {
        float dx = scene->object[i].x - scene->object[j].x, dy = scene->object[i].y - scene->object[j].y;
        if (dx * dx + dy * dy < apart * apart) return 0;
    }
    return 1;
}

/* Turns, places (the first at the centre), camera and lamps; 0 if an object found no room. */
static int arrange(stream *s, lab_scene *scene)
{
    for (int i = 0; i < scene->objects; i++) {
        lab_object *object = &scene->object[i];
        random_turn(s, object);
        object->x = object->y = 0;
        for (int tries = 0; i > 0; tries++) {
            object->x = uniform_about_zero(s, REACH);
            object->y = uniform_about_zero(s, REACH);
            if (has_room(scene, i)) break;
            if (tries == PLACE_TRIES) return 0;
        }
    }
    scene->camera = jittered(s, vec(7.48f, -6.51f, 5.34f), CAMERA_JITTER);
    for (int l = 0; l < LAB_LIGHTS; l++)
        scene->light[l] = jittered(s, lamp[l].centre, LAMP_JITTER);
    return 1;
}

/* 1 if every object shows LAB_MIN_PIXELS pixels at 320x240 and none touches the frame. Judged with all objects there:
 * with fewer of them an object hides behind fewer others, so the growing pictures keep the rule as well. */
static int all_visible(const lab_scene *scene, signed char *id)
{
    int pixels[LAB_MAX_OBJECTS] = {0};
    lab_scene_ids(scene, scene->objects, PROBE_WIDTH, PROBE_HEIGHT, id);
    for (int y = 0; y < PROBE_HEIGHT; y++) {
        for (int x = 0; x < PROBE_WIDTH; x++) {
            signed char object = id[y * PROBE_WIDTH + x];
            if (object == LAB_GROUND) continue;
            if (x == 0 || y == 0 || x == PROBE_WIDTH - 1 || y == PROBE_HEIGHT - 1) return 0;
            pixels[object]++;
        }
    }
    for (int i = 0; i < scene->objects; i++)
        if (pixels[i] < LAB_MIN_PIXELS) return 0;
    return 1;
}

/* Arranges the objects until they are all visible; the classes stay, so that no class is rarer for hiding more
 * easily. */
static ddpm_result arrange_visibly(stream *s, lab_scene *scene)
{
    signed char *id = malloc(PROBE_WIDTH * PROBE_HEIGHT);
    if (!id) return ddpm_fail(DDPM_ERR_MEMORY, "no memory to place the objects of a scene");
    int done = 0;
    for (int tries = 0; tries < PLACEMENTS && !done; tries++)
        done = arrange(s, scene) && all_visible(scene, id);
    free(id);
    if (!done)
        return ddpm_fail(DDPM_ERR_RANGE,
                         "scene %llu of seed %llu: no way found to place %d objects so that all are visible\n"
                         "      hint: another seed, or fewer objects in a set",
                         (unsigned long long)s->address.picture, (unsigned long long)s->address.seed, scene->objects);
    return DDPM_OK;
}

/* The first words of a random scene's stream: its classes. */
static stream random_scene_stream(uint64_t seed, uint64_t index, int class_index[LAB_GROWING])
{
    stream s = stream_at(seed, RANDOM_SCENE, index);
    unsigned used = 0;
    for (int i = 0; i < LAB_GROWING;) {
        int c = uniform_below(&s, LAB_RENDER_CLASSES);
        if (used & 1u << c) continue;
        used |= 1u << c;
        class_index[i++] = c;
    }
    return s;
}

void lab_scene_classes(uint64_t seed, uint64_t index, int class_index[LAB_GROWING])
{
    random_scene_stream(seed, index, class_index);
}

ddpm_result lab_scene_random(lab_scene *scene, uint64_t seed, uint64_t index)
{
    int class_index[LAB_GROWING];
    stream s = random_scene_stream(seed, index, class_index);
    memset(scene, 0, sizeof *scene);
    for (int i = 0; i < LAB_GROWING; i++)
        scene->object[scene->objects++].class_index = class_index[i];
    return arrange_visibly(&s, scene);
}

ddpm_result lab_scene_of(lab_scene *scene, const int *class_index, int count, uint64_t seed, uint64_t index)
{
    unsigned used = 0;
    memset(scene, 0, sizeof *scene);
    if (count < 1 || count > LAB_MAX_OBJECTS)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "a scene of %d objects cannot be drawn\n      hint: 1 to %d can", count,
                         LAB_MAX_OBJECTS);
    for (int i = 0; i < count; i++) {
        int c = class_index[i];
        if (c < 0 || c >= LAB_RENDER_CLASSES)
            return ddpm_fail(DDPM_ERR_ARGUMENT, "class %d cannot be drawn\n      hint: there are %d", c,
                             LAB_RENDER_CLASSES);
        if (used & 1u << c)
            return ddpm_fail(DDPM_ERR_ARGUMENT,
                             "the label set names '%s %s' twice\n"
                             "      hint: in the lab's pictures no class occurs twice",
                             lab_colour_name[colour_of(c)], lab_shape_name[shape_of(c)]);
        used |= 1u << c;
        scene->object[scene->objects++].class_index = c;
    }
    stream s = stream_at(seed, RANDOM_LABELLED_SCENE, index);
    return arrange_visibly(&s, scene);
}

/* ---- 9. Label sets of the tests -------------------------------------------------------------------------------------
 * Each object of each set is one of the classes used least so far, so that all classes count the same. In new_test
 * every further object shares, by turns, the colour or the shape of the one before it. The seed is fixed: every data
 * set has the same tests, those of data/. */

enum { TEST_SEED = 529 };

typedef enum likeness { ANY, SAME_COLOUR, SAME_SHAPE } likeness;

static int alike(int a, int b, likeness like)
{
    return like == ANY || (like == SAME_COLOUR ? colour_of(a) == colour_of(b) : shape_of(a) == shape_of(b));
}

/* One of the least used classes outside the set and, unless `like` is ANY, like its last class. */
static int pick_class(stream *s, int used[LAB_RENDER_CLASSES], const int *set, int count, likeness like)
{
    int candidate[LAB_RENDER_CLASSES], candidates = 0, least = INT_MAX;
    for (int c = 0; c < LAB_RENDER_CLASSES; c++) {
        int fits = count == 0 || alike(c, set[count - 1], like);
        for (int i = 0; i < count; i++)
            fits = fits && set[i] != c;
        if (!fits || used[c] > least) continue;
        if (used[c] < least) candidates = 0;
        least = used[c];
        candidate[candidates++] = c;
    }
    int chosen = candidate[uniform_below(s, candidates)];
    used[chosen]++;
    return chosen;
}

/* 1 if `sets` holds these classes already, in any order. */
static int is_in(const lab_label_sets *sets, const int *set, int count)
{
    for (int i = 0; i < sets->count; i++) {
        int same = lab_set_size(sets, i) == count;
        for (int k = 0; k < count && same; k++) {
            int found = 0;
            for (int m = sets->start[i]; m < sets->start[i + 1]; m++)
                found = found || sets->label[m] == set[k];
            same = found;
        }
        if (same) return 1;
    }
    return 0;
}

/* Appends sets[n - 1] different sets of n classes for n = 1, 2, 3. `harder`: objects side by side are alike. */
static ddpm_result make_test_sets(const int sets[LAB_GROWING], int harder, lab_label_sets *out)
{
    stream s = stream_at(TEST_SEED, RANDOM_TEST_SETS, (uint64_t)harder);
    int used[LAB_RENDER_CLASSES] = {0};
    for (int size = 1; size <= LAB_GROWING; size++) {
        for (int k = 0; k < sets[size - 1]; k++) {
            int set[LAB_GROWING], used_before[LAB_RENDER_CLASSES];
            memcpy(used_before, used, sizeof used);
            do {
                memcpy(used, used_before, sizeof used);
                for (int i = 0; i < size; i++)
                    set[i] = pick_class(&s, used, set, i, !harder ? ANY : (k + i) % 2 == 0 ? SAME_COLOUR : SAME_SHAPE);
            } while (is_in(out, set, size));
            ddpm_result result = lab_label_sets_add(out, set, size);
            if (result != DDPM_OK) return result;
        }
    }
    return DDPM_OK;
}

/* ---- 10. Data sets on disk ---- */

enum {
    RENDERER = 1,        /* to be raised when the same settings would draw other pictures */
    MAX_SCENES = 1000000 /* six digits in a file name */
};

lab_render_config lab_render_default(void)
{
    return (lab_render_config){.scenes = 2000, .width = 320, .height = 240};
}

/* One run of lab_render, as its threads see it. */
typedef struct job {
    const lab_render_config *config;
    lab_classes classes;
    lab_label_sets sets;    /* of each picture of labels_file; of each whole scene otherwise */
    lab_label_sets test[2]; /* test.json, new_test.json */
    int total;              /* scenes, or pictures of labels_file */
    int done, stopped;
    ddpm_result result; /* the first failure, of whichever thread, with its text */
    char error[1024];
} job;

/* The files' texts are printed to memory first: that fails only for want of memory, which shows once, at the end. */

/* ["red sphere", "cyan cube"] */
static void print_set(FILE *text, const lab_classes *classes, const int *label, int count)
{
    for (int i = 0; i < count; i++)
        fprintf(text, "%s\"%s\"", i > 0 ? ", " : "[", classes->name[label[i]]);
    fputc(']', text);
}

static void print_sets(FILE *text, const lab_classes *classes, const lab_label_sets *sets)
{
    for (int i = 0; i < sets->count; i++) {
        fputs(i > 0 ? ",\n " : "[", text);
        print_set(text, classes, sets->label + sets->start[i], lab_set_size(sets, i));
    }
    fputs("]\n", text);
}

static void print_objects(FILE *text, const job *j)
{
    for (int i = 0; i < j->classes.count; i++)
        fprintf(text, "%s\"%s\": %d", i > 0 ? ", " : "{", j->classes.name[i], i);
    fputs("}\n", text);
}

static void print_train(FILE *text, const job *j)
{
    for (int i = 0; i < j->sets.count; i++) {
        for (int shown = 1; shown <= LAB_GROWING; shown++) {
            fprintf(text, "%s\"CLEVR_train_%06d_%d.png\": ", i + shown > 1 ? ",\n " : "{", i, shown - 1);
            print_set(text, &j->classes, j->sets.label + j->sets.start[i], shown);
        }
    }
    fputs("}\n", text);
}

static void print_settings(FILE *text, const job *j)
{
    const lab_render_config *c = j->config;
    fprintf(text, "{\"renderer\": %d, \"seed\": %llu, \"width\": %d, \"height\": %d, ", RENDERER,
            (unsigned long long)c->seed, c->width, c->height);
    if (!c->labels_file) {
        static const char *const layout[] = {"", ", \"layout\": \"folders\"", ", \"layout\": \"plain\""};
        fprintf(text, "\"scenes\": %d%s}\n", c->scenes, layout[c->layout]);
    } else {
        fputs("\"sets\":\n", text);
        print_sets(text, &j->classes, &j->sets);
        fputs("}\n", text);
    }
}

static void print_test(FILE *text, const job *j)
{
    print_sets(text, &j->classes, &j->test[0]);
}

static void print_new_test(FILE *text, const job *j)
{
    print_sets(text, &j->classes, &j->test[1]);
}

/* What `print` prints, in new memory. */
static ddpm_result print_to_memory(const job *j, void (*print)(FILE *, const job *), char **text, size_t *size)
{
    *text = NULL;
    FILE *memory = open_memstream(text, size);
    if (memory) {
        print(memory, j);
        int failed = ferror(memory);
        if (fclose(memory) == 0 && !failed && *text) return DDPM_OK;
        free(*text);
        *text = NULL;
    }
    return ddpm_fail(DDPM_ERR_MEMORY, "%s: no memory for the text of its JSON files", j->config->out);
}

static ddpm_result write_text(const job *j, const char *name, void (*print)(FILE *, const job *))
{
    char *text, *path = NULL;
    size_t size;
    ddpm_result result = print_to_memory(j, print, &text, &size);
    if (result != DDPM_OK) return result;
    path = io_join(j->config->out, name);
    result = path ? io_write_file(path, text, size) : DDPM_ERR_MEMORY;
    free(path);
    free(text);
    return result;
}

/* DDPM_OK if render.json holds exactly these settings. */
static ddpm_result compare_settings(const job *j, const char *path)
{
    char *wanted;
    unsigned char *found = NULL;
    size_t wanted_size, found_size;
    ddpm_result result = print_to_memory(j, print_settings, &wanted, &wanted_size);
    if (result != DDPM_OK) return result;
    result = io_read_file(path, &found, &found_size);
    if (result == DDPM_OK && (wanted_size != found_size || memcmp(wanted, found, wanted_size) != 0))
        result = ddpm_fail(DDPM_ERR_ARGUMENT,
                           "%s: holds a data set of other settings than seed %llu, %d %s, %dx%d\n"
                           "      hint: they are in %s; choose an empty directory, or delete this one",
                           j->config->out, (unsigned long long)j->config->seed, j->total,
                           j->config->labels_file ? "label sets" : "scenes", j->config->width, j->config->height, path);
    free(found);
    free(wanted);
    return result;
}

/* Refuses a directory with files of ours-to-be that lab_render did not make, or made with other settings. */
static ddpm_result check_directory(const job *j)
{
    static const char *const ours[] = {
        "train.json", "test.json", "new_test.json", "objects.json", "CLEVR_train_000000_0.png", "0.png"};
    const char *out = j->config->out;
    char *path = io_join(out, "render.json");
    if (!path) return DDPM_ERR_MEMORY;
    ddpm_result result = DDPM_OK;
    int made_here = io_is_file(path);
    if (made_here) result = compare_settings(j, path);
    free(path);
    for (size_t i = 0; !made_here && result == DDPM_OK && i < sizeof ours / sizeof *ours; i++) {
        path = io_join(out, ours[i]);
        if (!path) return DDPM_ERR_MEMORY;
        if (io_is_file(path))
            result = ddpm_fail(DDPM_ERR_ARGUMENT,
                               "%s: holds a %s that was not rendered here; nothing was written\n"
                               "      hint: choose an empty directory",
                               out, ours[i]);
        free(path);
    }
    return result;
}

/* Draws the first `shown` objects to a PNG file of the given name in the output directory. */
static ddpm_result write_picture(const job *j, const lab_scene *scene, int index, int shown, const char *name)
{
    char seed[32], number[32], *path = io_join(j->config->out, name);
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)j->config->seed);
    snprintf(number, sizeof number, "%d", index);
    const io_text text[] = {{"seed", seed}, {"scene", number}};
    io_picture picture = {0};
    ddpm_result result = path ? io_picture_create(j->config->width, j->config->height, 3, &picture) : DDPM_ERR_MEMORY;
    if (result == DDPM_OK) result = lab_scene_draw(scene, shown, picture.width, picture.height, picture.pixel);
    if (result == DDPM_OK) result = io_picture_write_png(path, &picture, text, 2);
    io_picture_free(&picture);
    free(path);
    return result;
}

/* All pictures of scene (or label set) `index`. */
static ddpm_result write_scene(const job *j, int index)
{
    char name[64];
    lab_scene scene;
    ddpm_result result;
    if (j->config->labels_file) {
        int first = j->sets.start[index], count = lab_set_size(&j->sets, index);
        result = lab_scene_of(&scene, j->sets.label + first, count, j->config->seed, (uint64_t)index);
        snprintf(name, sizeof name, "%d.png", index);
        return result == DDPM_OK ? write_picture(j, &scene, index, scene.objects, name) : result;
    }
    result = lab_scene_random(&scene, j->config->seed, (uint64_t)index);
    int folders = j->config->layout == LAB_LAYOUT_FOLDERS; /* where a picture has one class, so one object */
    for (int shown = 1; shown <= (folders ? 1 : scene.objects) && result == DDPM_OK; shown++) {
        snprintf(name, sizeof name, "%s%sCLEVR_train_%06d_%d.png",
                 folders ? j->classes.name[scene.object[0].class_index] : "", folders ? "/" : "", index, shown - 1);
        result = write_picture(j, &scene, index, shown, name);
    }
    return result;
}

/* Keeps the first failure for the thread that called lab_render: error texts are a thread's own. */
static void finish_scene(job *j, ddpm_result result)
{
    const lab_render_config *c = j->config;
    if (j->stopped) return;
    if (result == DDPM_OK) {
        j->done++;
        if (c->progress) result = c->progress(c->user, j->done, j->total);
    }
    if (result != DDPM_OK) {
        j->result = result;
        snprintf(j->error, sizeof j->error, "%s", ddpm_error());
        #pragma omp atomic write
        j->stopped = 1;
    }
}

static ddpm_result write_pictures(job *j)
{
    int threads = j->config->threads;
#ifdef _OPENMP
    if (threads == 0) threads = omp_get_max_threads();
#endif
    (void)threads; /* without OpenMP there is one */
    #pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int i = 0; i < j->total; i++) {
        int stopped;
        #pragma omp atomic read
        stopped = j->stopped;
        if (stopped) continue;
        ddpm_result result = write_scene(j, i);
        #pragma omp critical(lab_render_finish)
        finish_scene(j, result);
    }
    return j->result == DDPM_OK ? DDPM_OK : ddpm_fail(j->result, "%s", j->error);
}

/* Class names in the lab's order. */
static ddpm_result name_classes(lab_classes *classes)
{
    char text[LAB_RENDER_CLASSES][32];
    const char *name[LAB_RENDER_CLASSES];
    for (int c = 0; c < LAB_RENDER_CLASSES; c++) {
        snprintf(text[c], sizeof text[c], "%s %s", lab_colour_name[colour_of(c)], lab_shape_name[shape_of(c)]);
        name[c] = text[c];
    }
    return lab_classes_from_names(name, LAB_RENDER_CLASSES, "renderer", classes);
}

/* Reads labels_file, and refuses sets that cannot be drawn before anything is written. */
static ddpm_result read_label_sets(job *j)
{
    const char *path = j->config->labels_file;
    ddpm_result result = lab_label_sets_read(path, &j->classes, 0, &j->sets);
    for (int i = 0; i < j->sets.count && result == DDPM_OK; i++) {
        int count = lab_set_size(&j->sets, i);
        if (count > LAB_MAX_OBJECTS)
            return ddpm_fail(DDPM_ERR_RANGE, "%s: entry %d names %d objects\n      hint: at most %d fit in a scene",
                             path, i, count, LAB_MAX_OBJECTS);
    }
    j->total = j->sets.count;
    return result;
}

/* The classes of every scene, for train.json, and the label sets of the tests. */
static ddpm_result make_label_sets(job *j)
{
    ddpm_result result = DDPM_OK;
    j->total = j->config->scenes;
    for (int i = 0; i < j->total && result == DDPM_OK; i++) {
        int label[LAB_GROWING];
        lab_scene_classes(j->config->seed, (uint64_t)i, label);
        result = lab_label_sets_add(&j->sets, label, LAB_GROWING);
    }
    if (result == DDPM_OK) result = make_test_sets((const int[]){6, 12, 14}, 0, &j->test[0]);
    if (result == DDPM_OK) result = make_test_sets((const int[]){0, 12, 20}, 1, &j->test[1]);
    return result;
}

/* The folders of the classes that occur as a scene's first object. */
static ddpm_result make_class_folders(const job *j)
{
    ddpm_result result = DDPM_OK;
    for (int i = 0; i < j->sets.count && result == DDPM_OK; i++) {
        char *path = io_join(j->config->out, j->classes.name[j->sets.label[j->sets.start[i]]]);
        result = path ? io_make_directory(path) : DDPM_ERR_MEMORY;
        free(path);
    }
    return result;
}

static ddpm_result write_data_set(job *j)
{
    int only_pictures = j->config->labels_file || j->config->layout != LAB_LAYOUT_LISTS;
    ddpm_result result = check_directory(j);
    if (result == DDPM_OK) result = io_make_directory(j->config->out);
    if (result == DDPM_OK && !j->config->labels_file && j->config->layout == LAB_LAYOUT_FOLDERS)
        result = make_class_folders(j);
    if (result == DDPM_OK) result = write_text(j, "render.json", print_settings);
    if (result == DDPM_OK) result = write_pictures(j);
    if (result != DDPM_OK || only_pictures) return result;
    result = write_text(j, "objects.json", print_objects);
    if (result == DDPM_OK) result = write_text(j, "test.json", print_test);
    if (result == DDPM_OK) result = write_text(j, "new_test.json", print_new_test);
    return result == DDPM_OK ? write_text(j, "train.json", print_train) : result;
}

static ddpm_result check_config(const lab_render_config *c)
{
    if (!c->out || !*c->out) return ddpm_fail(DDPM_ERR_ARGUMENT, "no directory to render into\n      hint: --out DIR");
    if (!c->labels_file && (c->scenes < 1 || c->scenes > MAX_SCENES))
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%d scenes cannot be rendered\n      hint: 1 to %d can", c->scenes,
                         MAX_SCENES);
    if (c->width < MIN_SIDE || c->width > MAX_SIDE || c->height < MIN_SIDE || c->height > MAX_SIDE)
        return ddpm_fail(DDPM_ERR_ARGUMENT,
                         "pictures of %dx%d cannot be rendered\n      hint: each side goes from %d to %d", c->width,
                         c->height, MIN_SIDE, MAX_SIDE);
    if (c->threads < 0)
        return ddpm_fail(DDPM_ERR_ARGUMENT, "%d threads cannot render\n      hint: 0 takes all there are", c->threads);
    return DDPM_OK;
}

ddpm_result lab_render(const lab_render_config *config)
{
    job j = {.config = config, .result = DDPM_OK};
    ddpm_result result = check_config(config);
    if (result == DDPM_OK) result = name_classes(&j.classes);
    if (result == DDPM_OK) result = config->labels_file ? read_label_sets(&j) : make_label_sets(&j);
    if (result == DDPM_OK) result = write_data_set(&j);
    lab_label_sets_free(&j.test[0]);
    lab_label_sets_free(&j.test[1]);
    lab_label_sets_free(&j.sets);
    lab_classes_free(&j.classes);
    return result;
}
