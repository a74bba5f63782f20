/* Block-quantised linear algebra for CPUs, and a step of decoding that calls it.
 *
 * Read this first.
 *
 * Weights. A matrix W (N rows, K columns) is cut into blocks of 16 rows and 32 columns. The 32 columns of one row in one
 * block are a group: they share one float16 scale, and a weight is scale * q with q a small integer. A block's bytes are
 * ordered for the dot-product instructions, which multiply four neighbouring bytes of one operand with four of another and
 * add the four products into a 32-bit lane: columns are taken four at a time (a quad), and one quad of all 16 rows is 64
 * bytes, so lane i of a vector belongs to row i from the first load to the last store and nothing is ever summed across
 * lanes.
 *
 *     8 bits: 8 vectors a block, byte = q + 128, q in -127..127
 *     4 bits: 4 vectors a block, nibble = q + 8, q in -8..7; vector j holds quad j low and quad j + 4 high
 *
 * Activations. Rows of float32 become 8 bits on the way in: per group of 32 a float scale and the sum of the codes. The
 * sum undoes the offset of the weights: sum((q + 128) a) - 128 sum(a) = sum(q a). Up to eight rows (a tile) are kept
 * side by side group by group, [group][row][32], because a register tile of 16 weight rows and 8 activation rows reads
 * them in this order; the last tile of a batch is as narrow as it must be, so one row is simply a row.
 *
 * One product of a block with a tile: int32 sums inside the group (exact, whatever the instruction set), then one
 * multiplication by both scales into float32 sums. Each output is made by one thread in one order: the number of threads
 * cannot change a bit.
 *
 * The file in order: the pool of threads, loops any compiler can vectorise (written once, compiled for each instruction
 * set), tiles by hand for each instruction set, the choice among them, the exported functions, and one of these that calls
 * the others: a step of decoding. Beside it: numbers and what is shared (common.h), the cache and one token's attention to
 * it (cache.c), the attention of many queries (attention.c).
 */
#define _GNU_SOURCE
#include "common.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

enum { LANES = 16, TILE = 8 };

/* ---------------------------------------------------------------- threads
 *
 * One pool for the process. A job is a function and a number of parts; the caller and the workers take parts from a common
 * counter until none is left, so a worker that another process holds up costs one part at most. Workers look for the next
 * job for some microseconds (a model calls often), then sleep. A second caller, from another thread, finds the pool busy
 * and does all its parts alone: slower for it, never wrong, and never more threads than were asked for.
 */

enum { MOST_THREADS = 256, SPINS = 1500 };

static struct {
    pthread_mutex_t busy; /* held by the caller whose job it is */
    pthread_mutex_t lock; /* protects what follows; the atomics may be looked at without it */
    pthread_cond_t wake, done;
    atomic_uint generation; /* grows by one a job */
    atomic_int active;      /* workers inside the present job */
    atomic_llong next;      /* the next part to take */
    part_fn *fn;
    const void *job;
    int64_t parts;
    int open, helpers, started, at_fork;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static atomic_int threads = 1;

INLINE void breathe(void) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_parts(part_fn *fn, const void *job, int64_t parts) {
    for (int64_t part; (part = atomic_fetch_add(&pool.next, 1)) < parts;) fn(job, part);
}

static void *worker(void *number) {
    unsigned seen = 0; /* a job may have been opened before this thread ran: it looks at the state, not at the change */
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load(&pool.generation) == seen; i++) breathe();
        pthread_mutex_lock(&pool.lock);
        while (atomic_load(&pool.generation) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
        seen = atomic_load(&pool.generation);
        int join = pool.open && (int)(intptr_t)number < pool.helpers;
        part_fn *fn = pool.fn;
        const void *job = pool.job;
        int64_t parts = pool.parts;
        if (join) atomic_fetch_add(&pool.active, 1);
        pthread_mutex_unlock(&pool.lock);
        if (!join) continue;
        take_parts(fn, job, parts);
        pthread_mutex_lock(&pool.lock);
        if (atomic_fetch_sub(&pool.active, 1) == 1) pthread_cond_signal(&pool.done);
        pthread_mutex_unlock(&pool.lock);
    }
    return NULL;
}

/* A child of fork has this thread only: forget the others, whatever they held; the next job starts new ones. */
static void forget_workers(void) {
    pool.busy = pool.lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    pool.wake = pool.done = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    atomic_store(&pool.active, 0);
    atomic_store(&pool.generation, 0);
    pool.open = pool.started = 0;
}

static void start_workers(int wanted) {
    if (!pool.at_fork) pool.at_fork = pthread_atfork(NULL, NULL, forget_workers) == 0;
    sigset_t all, before; /* signals are for the threads of the program, not for these */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 1 << 20);
    pthread_t thread;
    while (pool.started < wanted && !pthread_create(&thread, &attributes, worker, (void *)(intptr_t)pool.started))
        pool.started++;
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void run(part_fn *fn, const void *job, int64_t parts) {
    int helpers = (int)least(atomic_load(&threads), parts) - 1;
    if (helpers < 1 || pthread_mutex_trylock(&pool.busy)) {
        for (int64_t part = 0; part < parts; part++) fn(job, part);
        return;
    }
    if (pool.started < helpers) start_workers(helpers);
    pthread_mutex_lock(&pool.lock);
    pool.fn = fn, pool.job = job, pool.parts = parts, pool.helpers = helpers, pool.open = 1;
    atomic_store(&pool.next, 0);
    atomic_fetch_add(&pool.generation, 1);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    take_parts(fn, job, parts);
    pthread_mutex_lock(&pool.lock);
    pool.open = 0; /* who has not come by now need not come */
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < SPINS && atomic_load(&pool.active); i++) breathe();
    pthread_mutex_lock(&pool.lock);
    while (atomic_load(&pool.active)) pthread_cond_wait(&pool.done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.busy);
}

/* ---------------------------------------------------------------- jobs: what the parts work on */

struct activations { /* T rows as tiles; see the top */
    int8_t *codes;
    float *scales;
    int32_t *sums;
};

struct quantise_job {
    const float *x, *norm; /* norm: weights of an RMSNorm to go through first, or NULL */
    float eps;
    int64_t rows, columns, stride, groups;
    struct activations out;
    atomic_int *status;
};

struct pack_job {
    const void *weight;
    const float *importance; /* of each column's error, or NULL: all alike */
    int type, bits;
    int64_t rows, columns, stride, groups;
    uint8_t *codes;
    uint16_t *scales;
    atomic_int *status;
};

typedef void tile_fn(const uint8_t *codes, const uint16_t *scales, int64_t groups, const int8_t *a, const float *a_scales,
                     const int32_t *a_sums, int width, float *out);

/* Some groups of a row block of 8 bits, taken apart once for many tiles; see the tiles of AVX2. */
enum { SLICE = 16, MOST_TOKENS = 256, MOST_SUMS = 1024 }; /* groups: what fits the first cache; a chunk; tokens x blocks a part */

struct panel {
    uint8_t size[SLICE][LANES * GROUP], sign[SLICE][LANES * GROUP];
    int32_t below[SLICE][LANES];
    float scales[SLICE][LANES];
};

typedef void open_fn(const uint8_t *codes, const uint16_t *scales, int64_t groups, struct panel *panel);
typedef void panel_fn(const struct panel *panel, int64_t groups, const int8_t *a, const float *a_scales, int width, float *out);

struct product_job {
    tile_fn *tile;
    open_fn *open; /* with `panel`: instead of `tile`, where there are more tokens than a tile; or NULL */
    panel_fn *panel;
    int64_t block_bytes;
    const uint8_t *codes, *up_codes; /* up: the second matrix of a SwiGLU, or NULL */
    const uint16_t *scales, *up_scales;
    struct activations a;
    int64_t rows, groups, tokens;            /* N, K / 32, T */
    int64_t blocks, grain, spans, chunk;     /* row blocks, row blocks a part, parts a chunk, tokens a chunk */
    const float *bias;
    int add;  /* to what is in out already */
    int gelu; /* of the result, in its tanh form */
    float *out;
    int64_t stride;
};

struct turn_job {
    const float *x, *weight, *cosines, *sines;
    float eps;
    int64_t tokens, heads, dim;
    float *out;
};

/* ---------------------------------------------------------------- loops for any compiler
 *
 * Plain C over short fixed lengths, always inlined; the macro EACH_TARGET at the end compiles them for each instruction
 * set. No fused multiply-add, no reordering: all instruction sets give the same bits.
 */

/* Quantise one group; what lies beyond `count` is zero. */
INLINE int quantise_group(const float *x, int64_t count, int8_t *codes, float *scale, int32_t *sum) {
    float v[GROUP] = {0};
    if (count >= GROUP) memcpy(v, x, sizeof v);
    else memcpy(v, x, (size_t)count * 4);
    uint32_t top = 0; /* floats without sign order as integers do, with infinity and NaN above all */
    for (int i = 0; i < GROUP; i++) {
        uint32_t magnitude = bits_of(v[i]) & 0x7fffffff;
        top = magnitude > top ? magnitude : top;
    }
    if (top >= 0x7f800000) return NOT_FINITE;
    float amax = float_of(top);
    int none = amax < 0x1p-100f; /* so small that its inverse would overflow */
    float inverse = none ? 0.0f : 127.0f / amax;
    *scale = none ? 0.0f : amax / 127.0f;
    int32_t total = 0;
    for (int i = 0; i < GROUP; i++) {
        int32_t code = (int32_t)nearest(v[i] * inverse);
        codes[i] = (int8_t)code;
        total += code;
    }
    *sum = total;
    return DONE;
}

/* 1 / sqrt(mean of squares + eps), summed in 16 lanes that are then added in order. */
INLINE float inverse_rms(const float *x, int64_t columns, float eps) {
    float lanes[LANES] = {0}, sum = 0;
    int64_t k = 0;
    for (; k + LANES <= columns; k += LANES)
        for (int i = 0; i < LANES; i++) lanes[i] += x[k + i] * x[k + i];
    for (int i = 0; k + i < columns; i++) lanes[i] += x[k + i] * x[k + i];
    for (int i = 0; i < LANES; i++) sum += lanes[i];
    return 1.0f / sqrtf(sum / (float)columns + eps);
}

INLINE void quantise_part(const void *context, int64_t part) { /* one tile of rows */
    const struct quantise_job *job = context;
    int64_t first = part * TILE, width = least(TILE, job->rows - first), groups = job->groups;
    for (int64_t t = 0; t < width; t++) {
        const float *x = job->x + (first + t) * job->stride;
        float r = job->norm ? inverse_rms(x, job->columns, job->eps) : 0;
        for (int64_t g = 0; g < groups; g++) {
            int64_t at = first * groups + g * width + t, count = least(GROUP, job->columns - g * GROUP);
            const float *group = x + g * GROUP;
            float normed[GROUP];
            if (job->norm) {
                const float *norm = job->norm + g * GROUP;
                if (count == GROUP) for (int i = 0; i < GROUP; i++) normed[i] = group[i] * r * norm[i];
                else for (int i = 0; i < count; i++) normed[i] = group[i] * r * norm[i];
                group = normed;
            }
            int status = quantise_group(group, count, job->out.codes + at * GROUP, job->out.scales + at, job->out.sums + at);
            if (status) atomic_store(job->status, status);
        }
    }
}

INLINE void turn_part(const void *context, int64_t part) { /* the heads of TILE tokens */
    const struct turn_job *job = context;
    int64_t half = job->dim / 2;
    for (int64_t t = part * TILE, end = least(t + TILE, job->tokens); t < end; t++) {
        const float *c = job->cosines + t * half, *s = job->sines + t * half, *w = job->weight;
        for (int64_t h = 0; h < job->heads; h++) {
            int64_t at = (t * job->heads + h) * job->dim;
            const float *x = job->x + at;
            float *out = job->out + at, r = inverse_rms(x, job->dim, job->eps);
            for (int64_t i = 0; i < half; i++) {
                float a = x[i] * r * w[i], b = x[half + i] * r * w[half + i];
                out[i] = a * c[i] - b * s[i];
                out[half + i] = b * c[i] + a * s[i];
            }
        }
    }
}

/* Read 32 weights as float32, zeros beyond `count`; 0 if one is not finite. */
INLINE int read_weights(const void *from, int type, int64_t at, int64_t count, float *v) {
    for (int i = 0; i < GROUP; i++) v[i] = 0;
    int full = count >= GROUP;
    if (type == FLOAT32) {
        memcpy(v, (const float *)from + at, full ? GROUP * 4 : (size_t)count * 4);
    } else {
        uint16_t h[GROUP] = {0};
        memcpy(h, (const uint16_t *)from + at, full ? GROUP * 2 : (size_t)count * 2);
        if (type == BFLOAT16) {
            for (int i = 0; i < GROUP; i++) v[i] = from_bfloat16(h[i]);
        } else {
            uint16_t top = 0;
            for (int i = 0; i < GROUP; i++) {
                uint16_t magnitude = h[i] & 0x7fff;
                top = magnitude > top ? magnitude : top;
                v[i] = from_float16(h[i]);
            }
            if (top >= 0x7c00) return 0;
        }
    }
    uint32_t top = 0;
    for (int i = 0; i < GROUP; i++) {
        uint32_t magnitude = bits_of(v[i]) & 0x7fffffff;
        top = magnitude > top ? magnitude : top;
    }
    return top < 0x7f800000;
}

/* Scales that err least, for one group of 16 rows side by side, v (GROUP, LANES): sum(importance (v - scale q)^2).
 *
 * To put the value furthest from zero at the end of the range is not best for the other 31: a few places for it are tried, none
 * beyond the end, since a value that is far out often meets inputs that are large. Each place gives codes q, for given codes the
 * best scale is sum(v q) / sum(q q), and the error is then smaller by sum(v q)^2 / sum(q q). Four bits reach one further down
 * than up: there the furthest value is made negative. Sums run over columns in order, a row to a lane.
 *
 * Eight bits are searched only for a caller who says what columns weigh: without that the furthest value lies at 127, as in caches
 * and in the base of adapters, and packing is not bound by the search.
 */
static const float places8[] = {127.0f, 125.0f, 123.0f}, places4[] = {-8.0f, -7.6f, -7.2f};

INLINE void choose_scales(const float *v, const float *importance, int bits, const float *furthest, float *scale) {
    const float *places = bits == 8 ? places8 : places4, top = bits == 8 ? 127.0f : 7.0f, bottom = bits == 8 ? -127.0f : -8.0f;
    int count = bits == 8 ? sizeof places8 / 4 : sizeof places4 / 4;
    float best[LANES] = {0};
    for (int i = 0; i < LANES; i++) scale[i] = 0;
    for (int c = 0; c < count; c++) {
        float inverse[LANES], vq[LANES] = {0}, qq[LANES] = {0};
        for (int i = 0; i < LANES; i++) /* what is this near to zero has no scale in float16 */
            inverse[i] = furthest[i] > -0x1p-30f && furthest[i] < 0x1p-30f ? 0.0f : places[c] / furthest[i];
        for (int k = 0; k < GROUP; k++) {
            float weight = importance[k];
            for (int i = 0; i < LANES; i++) {
                float q = nearest(v[k * LANES + i] * inverse[i]);
                q = q < bottom ? bottom : q > top ? top : q;
                float weighed = weight * q;
                vq[i] += weighed * v[k * LANES + i];
                qq[i] += weighed * q;
            }
        }
        for (int i = 0; i < LANES; i++) {
            float fit = qq[i] == 0.0f ? 0.0f : vq[i] / qq[i], gain = vq[i] * fit;
            scale[i] = gain > best[i] ? fit : scale[i];
            best[i] = gain > best[i] ? gain : best[i];
        }
    }
}

INLINE void pack_part(const void *context, int64_t block) { /* 16 rows */
    const struct pack_job *job = context;
    int bits = job->bits;
    int64_t block_bytes = bits == 8 ? 512 : 256;
    float bottom = bits == 8 ? -127.0f : -8.0f, top = bits == 8 ? 127.0f : 7.0f;
    for (int64_t g = 0; g < job->groups; g++) {
        uint8_t *codes = job->codes + (block * job->groups + g) * block_bytes;
        uint16_t *scales = job->scales + (block * job->groups + g) * LANES;
        int64_t count = least(GROUP, job->columns - g * GROUP);
        float v[GROUP * LANES] ALIGNED, importance[GROUP], scale[LANES] ALIGNED, furthest[LANES] ALIGNED = {0};
        for (int k = 0; k < GROUP; k++) importance[k] = job->importance && k < count ? job->importance[g * GROUP + k] : 1.0f;
        for (int row = 0; row < LANES; row++) {
            int64_t n = block * LANES + row;
            float x[GROUP] = {0};
            if (n < job->rows && !read_weights(job->weight, job->type, n * job->stride + g * GROUP, count, x)) {
                atomic_store(job->status, NOT_FINITE);
                return;
            }
            for (int k = 0; k < GROUP; k++) v[k * LANES + row] = x[k];
        }
        for (int i = 0; i < LANES; i++) {
            float high = 0, low = 0;
            for (int k = 0; k < GROUP; k++) {
                high = v[k * LANES + i] > high ? v[k * LANES + i] : high;
                low = v[k * LANES + i] < low ? v[k * LANES + i] : low;
            }
            furthest[i] = high > -low ? high : bits == 8 ? -low : low;
        }
        if (bits == 4 || job->importance) choose_scales(v, importance, bits, furthest, scale);
        else for (int i = 0; i < LANES; i++) scale[i] = furthest[i] / 127.0f;
        for (int i = 0; i < LANES; i++) {
            float plain = furthest[i] / (bits == 8 ? 127.0f : -8.0f);
            if ((to_float16(plain) & 0x7fff) == 0x7c00) {
                atomic_store(job->status, TOO_LARGE);
                return;
            }
            scale[i] = scale[i] > 65504.0f ? 65504.0f : scale[i] < -65504.0f ? -65504.0f : scale[i];
            scales[i] = to_float16(scale[i]);
            scale[i] = from_float16(scales[i]);
            scale[i] = scale[i] == 0.0f ? 0.0f : 1.0f / scale[i];
        }
        uint8_t q[GROUP * LANES] ALIGNED;
        for (int k = 0; k < GROUP; k++)
            for (int i = 0; i < LANES; i++) {
                float y = nearest(v[k * LANES + i] * scale[i]);
                y = y < bottom ? bottom : y > top ? top : y;
                q[k * LANES + i] = (uint8_t)((int32_t)y + (bits == 8 ? 128 : 8));
            }
        if (bits == 4)
            for (int k = 0; k < GROUP / 2 * LANES; k++) q[k] = (uint8_t)(q[k] | q[k + GROUP / 2 * LANES] << 4);
        for (int k = 0; k < block_bytes / LANES; k++)
            for (int i = 0; i < LANES; i++) codes[k / 4 * 64 + i * 4 + k % 4] = q[k * LANES + i];
    }
}

/* Products of one row block with a tile, made (width, LANES), to where they belong. */
INLINE void finish_tile(const struct product_job *job, int64_t row, int64_t token, int width, int second, float *made) {
    int64_t count = least(LANES, job->rows - row);
    float bias[LANES] = {0};
    if (job->bias) {
        memcpy(bias, job->bias + row, (size_t)count * 4);
        for (int t = 0; t < width; t++) for (int i = 0; i < LANES; i++) made[t * LANES + i] += bias[i];
    }
    if (job->gelu) for (int i = 0; i < width * LANES; i++) made[i] = gelu(made[i]);
    for (int t = 0; t < width; t++, made += LANES) {
        float *out = job->out + (token + t) * job->stride + row;
        if (job->add) for (int i = 0; i < count; i++) made[i] += out[i];
        if (second) {
            float gate[LANES] = {0};
            memcpy(gate, out, (size_t)count * 4);
            for (int i = 0; i < LANES; i++) made[i] *= gate[i] / one_and_exponential(-gate[i]);
        }
        if (count == LANES) memcpy(out, made, LANES * 4);
        else memcpy(out, made, (size_t)count * 4);
    }
}

/* Ask for what will be written: one line of each row of a tile. */
INLINE void fetch_outputs(const struct product_job *job, int64_t row, int64_t token, int width) {
    for (int t = 0; t < width; t++) __builtin_prefetch(job->out + (token + t) * job->stride + row, 1);
}

/* A span of row blocks, opened, times a chunk of tokens. A slice of groups at a time goes through all blocks, so that its
 * activations stay in the core's second cache however many columns there are; sums wait in `made` (blocks, tokens, LANES).
 * While a slice of a block is multiplied the next one is asked for, a few lines a tile: all at once they would queue. */
INLINE void open_span(const struct product_job *job, const uint8_t *codes, const uint16_t *scales, int64_t first_block,
                      int64_t last_block, int64_t first_token, int64_t last_token, int second) {
    const int64_t groups = job->groups, tokens = last_token - first_token, lines = SLICE * LANES * GROUP / 64;
    struct panel panel ALIGNED;
    float made[MOST_SUMS * LANES] ALIGNED;
    memset(made, 0, (size_t)((last_block - first_block) * tokens) * LANES * 4);
    for (int64_t g = 0; g < groups; g += SLICE) {
        int64_t count = least(SLICE, groups - g);
        for (int64_t block = first_block; block < last_block; block++) {
            int64_t at = block * groups + g, asked = 0;
            int64_t next = block + 1 < last_block ? at + groups : first_block * groups + g + SLICE;
            job->open(codes + at * job->block_bytes, scales + at * LANES, count, &panel);
            for (int64_t token = first_token; token < last_token; token += TILE) {
                int width = (int)least(TILE, job->tokens - token);
                int64_t from = token * groups + g * width;
                float *tile = made + ((block - first_block) * tokens + token - first_token) * LANES;
                for (int64_t end = lines * (token + width - first_token) / tokens; asked < end; asked++)
                    __builtin_prefetch(codes + next * job->block_bytes + asked * 64, 0, 2);
                if (g + SLICE >= groups) fetch_outputs(job, block * LANES, token, width);
                job->panel(&panel, count, job->a.codes + from * GROUP, job->a.scales + from, width, tile);
                if (g + SLICE >= groups) finish_tile(job, block * LANES, token, width, second, tile);
            }
        }
    }
}

/* A span of row blocks times a chunk of tokens, which stays in the cache of the core while the weights of the span pass by:
 * with all its columns, or, opened, a slice of them. A SwiGLU goes through the span of the gate first, then through that of the
 * other matrix: to change between the two at every block costs an eighth of the memory's speed. */
INLINE void product_part(const void *context, int64_t part) {
    const struct product_job *job = context;
    int64_t first_token = part / job->spans * job->chunk, last_token = least(first_token + job->chunk, job->tokens);
    int64_t first_block = part % job->spans * job->grain, last_block = least(first_block + job->grain, job->blocks);
    int64_t groups = job->groups;
    for (int second = 0; second <= (job->up_codes != NULL); second++) {
        const uint8_t *codes = second ? job->up_codes : job->codes;
        const uint16_t *scales = second ? job->up_scales : job->scales;
        if (job->open) {
            open_span(job, codes, scales, first_block, last_block, first_token, last_token, second);
            continue;
        }
        for (int64_t block = first_block; block < last_block; block++) {
            for (int64_t token = first_token; token < last_token; token += TILE) {
                int width = (int)least(TILE, job->tokens - token);
                float made[TILE * LANES] ALIGNED;
                job->tile(codes + block * groups * job->block_bytes, scales + block * groups * LANES, groups,
                          job->a.codes + token * groups * GROUP, job->a.scales + token * groups, job->a.sums + token * groups, width,
                          made);
                finish_tile(job, block * LANES, token, width, second, made);
            }
        }
    }
}

#define EACH_TARGET(name, target)                                                                          \
    target static void quantise_##name(const void *job, int64_t part) { quantise_part(job, part); }        \
    target static void pack_##name(const void *job, int64_t part) { pack_part(job, part); }                \
    target static void product_##name(const void *job, int64_t part) { product_part(job, part); }          \
    target static void turn_##name(const void *job, int64_t part) { turn_part(job, part); }

/* ---------------------------------------------------------------- tiles: portable C */

typedef int32_t ints __attribute__((vector_size(16))); /* four rows; gcc and clang lower these to what there is */
typedef float floats __attribute__((vector_size(16)));

INLINE void tile_portable(int bits, const uint8_t *codes, const uint16_t *scales, int64_t groups, const int8_t *a,
                          const float *a_scales, const int32_t *a_sums, int width, float *out) {
    (void)a_sums;
    memset(out, 0, (size_t)width * LANES * 4);
    for (int64_t g = 0; g < groups; g++) {
        floats q[4][GROUP]; /* [quarter of the 16 rows][column]: floats hold these integers, below 2^19 in sum, exactly */
        for (int i = 0; i < 4; i++)
            for (int vector = 0; vector < (bits == 8 ? 8 : 4); vector++) {
                ints w; /* the lowest byte is the first column of a quad: little-endian machines only */
                memcpy(&w, codes + vector * 64 + i * 16, 16);
                UNROLL for (int c = 0; c < 4; c++, w >>= 8) {
                    if (bits == 8) q[i][vector * 4 + c] = __builtin_convertvector((w & 255) - 128, floats);
                    else q[i][vector * 4 + c] = __builtin_convertvector((w & 15) - 8, floats);
                    if (bits == 4) q[i][vector * 4 + c + 16] = __builtin_convertvector((w >> 4 & 15) - 8, floats);
                }
            }
        for (int t = 0; t < width; t++) {
            floats sum[4] = {{0}};
            UNROLL for (int c = 0; c < GROUP; c++) {
                float x = a[t * GROUP + c];
                floats four = {x, x, x, x};
                UNROLL for (int i = 0; i < 4; i++) sum[i] += q[i][c] * four;
            }
            for (int i = 0; i < LANES; i++)
                out[t * LANES + i] += sum[i / 4][i % 4] * (from_float16(scales[i]) * a_scales[t]);
        }
        codes += bits == 8 ? 512 : 256, scales += LANES;
        a += width * GROUP, a_scales += width;
    }
}

static void tile8_portable(const uint8_t *codes, const uint16_t *scales, int64_t groups, const int8_t *a, const float *a_scales,
                           const int32_t *a_sums, int width, float *out) {
    tile_portable(8, codes, scales, groups, a, a_scales, a_sums, width, out);
}
static void tile4_portable(const uint8_t *codes, const uint16_t *scales, int64_t groups, const int8_t *a, const float *a_scales,
                           const int32_t *a_sums, int width, float *out) {
    tile_portable(4, codes, scales, groups, a, a_scales, a_sums, width, out);
}
EACH_TARGET(portable, )

/* The vector tiles below are written for a number of rows the compiler knows, so that their sums stay in registers; this
 * walks a tile of any width in steps of four, two and one. */
#define WALK(name, target, inner, bits)                                                                                   \
    target static void name(const uint8_t *codes, const uint16_t *scales, int64_t groups, const int8_t *a,               \
                            const float *a_scales, const int32_t *a_sums, int width, float *out) {                       \
        int t = 0;                                                                                                        \
        for (; t + 4 <= width; t += 4)                                                                                    \
            inner(bits, 4, codes, scales, groups, a + t * GROUP, a_scales + t, a_sums + t, width, out + t * LANES);       \
        for (; t + 2 <= width; t += 2)                                                                                    \
            inner(bits, 2, codes, scales, groups, a + t * GROUP, a_scales + t, a_sums + t, width, out + t * LANES);       \
        if (t < width) inner(bits, 1, codes, scales, groups, a + t * GROUP, a_scales + t, a_sums + t, width, out + t * LANES); \
    }

#if defined(__x86_64__)
INLINE int32_t four_bytes(const int8_t *a) { int32_t x; memcpy(&x, a, 4); return x; }

/* How far ahead of the product the weights are asked for; two pages hide the memory's delay behind one row's work. */
enum { AHEAD = 4096 };

/* ---------------------------------------------------------------- tiles: AVX-512 with VNNI
 *
 * One instruction multiplies 64 unsigned bytes of weights with a quad of activations repeated 16 times and adds into 16
 * sums. Eight rows of activations: 8 integer and 8 float sums in registers, and 64 of these instructions a block for 9
 * loads of weights and scales.
 */
AVX512 INLINE void tile_avx512(const int bits, const int count, const uint8_t *codes, const uint16_t *scales, int64_t groups,
                               const int8_t *a, const float *a_scales, const int32_t *a_sums, int width, float *out) {
    const __m512i low = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
    const int block_bytes = bits == 8 ? 512 : 256;
    __m512 sum[TILE];
    UNROLL for (int t = 0; t < count; t++) sum[t] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        __m512i part[TILE];
        UNROLL for (int t = 0; t < count; t++) /* minus the offset times the sum of the activations */
            part[t] = _mm512_sub_epi32(zero, _mm512_slli_epi32(_mm512_set1_epi32(a_sums[t]), bits == 8 ? 7 : 3));
        if (count <= 2) UNROLL for (int i = 0; i < block_bytes / 64; i++)
            _mm_prefetch((const char *)codes + AHEAD + 64 * i, _MM_HINT_T0);
        UNROLL for (int quad = 0; quad < 8; quad++) {
            __m512i w = _mm512_loadu_si512(codes + 64 * (bits == 8 ? quad : quad % 4));
            if (bits == 4) w = _mm512_and_si512(quad < 4 ? w : _mm512_srli_epi16(w, 4), low);
            UNROLL for (int t = 0; t < count; t++)
                part[t] = _mm512_dpbusd_epi32(part[t], w, _mm512_set1_epi32(four_bytes(a + t * GROUP + quad * 4)));
        }
        __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
        UNROLL for (int t = 0; t < count; t++)
            sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[t]), _mm512_mul_ps(scale, _mm512_set1_ps(a_scales[t])), sum[t]);
        codes += block_bytes, scales += LANES;
        a += width * GROUP, a_scales += width, a_sums += width;
    }
    UNROLL for (int t = 0; t < count; t++) _mm512_storeu_ps(out + t * LANES, sum[t]);
}

/* Every width has its own code: the weights are then read once, however few rows there are. */
#define WIDTHS(name, bits)                                                                                        \
    AVX512 static void name(const uint8_t *codes, const uint16_t *scales, int64_t groups, const int8_t *a,        \
                            const float *a_scales, const int32_t *a_sums, int width, float *out) {                \
        switch (width) {                                                                                          \
        case 1: tile_avx512(bits, 1, codes, scales, groups, a, a_scales, a_sums, 1, out); break;                  \
        case 2: tile_avx512(bits, 2, codes, scales, groups, a, a_scales, a_sums, 2, out); break;                  \
        case 3: tile_avx512(bits, 3, codes, scales, groups, a, a_scales, a_sums, 3, out); break;                  \
        case 4: tile_avx512(bits, 4, codes, scales, groups, a, a_scales, a_sums, 4, out); break;                  \
        case 5: tile_avx512(bits, 5, codes, scales, groups, a, a_scales, a_sums, 5, out); break;                  \
        case 6: tile_avx512(bits, 6, codes, scales, groups, a, a_scales, a_sums, 6, out); break;                  \
        case 7: tile_avx512(bits, 7, codes, scales, groups, a, a_scales, a_sums, 7, out); break;                  \
        case 8: tile_avx512(bits, 8, codes, scales, groups, a, a_scales, a_sums, 8, out); break;                  \
        }                                                                                                         \
    }
WIDTHS(tile8_avx512, 8)
WIDTHS(tile4_avx512, 4)
EACH_TARGET(avx512, AVX512)

/* ---------------------------------------------------------------- tiles: AVX2
 *
 * Its instruction (maddubs) adds pairs of unsigned-times-signed products in 16 bits and saturates at 32767. Four bits:
 * at most 15 * 127 * 2 a pair, and eight of them, 30480, still fit, so a whole group is summed in 16 bits. Eight bits:
 * 255 * 127 * 2 does not fit, so the sign moves over to the activation, and |q| a, at most 127 * 127 * 2 = 32258, fits.
 * (Two times four bits instead, low + 16 * high, was no faster on Zen 4.)
 */

AVX2 INLINE void tile_avx2(const int bits, const int count, const uint8_t *codes, const uint16_t *scales, int64_t groups,
                           const int8_t *a, const float *a_scales, const int32_t *a_sums, int width, float *out) {
    const __m256i low = _mm256_set1_epi8(15), top = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
    const int block_bytes = bits == 8 ? 512 : 256;
    __m256 sum[2][4]; /* [half of the 16 rows][token] */
    UNROLL for (int i = 0; i < 2 * count; i++) sum[i & 1][i >> 1] = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        __m256i part[2][4];
        UNROLL for (int i = 0; i < 2 * count; i++) part[i & 1][i >> 1] = _mm256_setzero_si256();
        if (bits == 8 || width <= 2) UNROLL for (int i = 0; i < block_bytes / 64; i++) /* in 8 bits only few rows come here */
            _mm_prefetch((const char *)codes + AHEAD + 64 * i, _MM_HINT_T0);
        UNROLL for (int quad = 0; quad < 8; quad++) {
            UNROLL for (int half = 0; half < 2; half++) {
                const uint8_t *from = codes + 64 * (bits == 8 ? quad : quad % 4) + 32 * half;
                __m256i w = _mm256_loadu_si256((const __m256i *)from), size = w;
                if (bits == 4) w = _mm256_and_si256(quad < 4 ? w : _mm256_srli_epi16(w, 4), low);
                else w = _mm256_xor_si256(w, top), size = _mm256_abs_epi8(w);
                UNROLL for (int t = 0; t < count; t++) {
                    __m256i four = _mm256_set1_epi32(four_bytes(a + t * GROUP + quad * 4));
                    if (bits == 4)
                        part[half][t] = _mm256_add_epi16(part[half][t], _mm256_maddubs_epi16(w, four));
                    else
                        part[half][t] = _mm256_add_epi32(
                            part[half][t], _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_sign_epi8(four, w)), ones));
                    HOLD(part[half][t]);
                }
            }
        }
        UNROLL for (int half = 0; half < 2; half++) {
            __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scales + 8 * half)));
            UNROLL for (int t = 0; t < count; t++) {
                __m256i whole = part[half][t];
                if (bits == 4) whole = _mm256_sub_epi32(_mm256_madd_epi16(whole, ones), _mm256_set1_epi32(8 * a_sums[t]));
                sum[half][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_mul_ps(scale, _mm256_set1_ps(a_scales[t])),
                                               sum[half][t]);
            }
        }
        codes += block_bytes, scales += LANES;
        a += width * GROUP, a_scales += width, a_sums += width;
    }
    UNROLL for (int i = 0; i < 2 * count; i++) _mm256_storeu_ps(out + (i >> 1) * LANES + (i & 1) * 8, sum[i & 1][i >> 1]);
}
WALK(tile8_avx2, AVX2, tile_avx2, 8)
WALK(tile4_avx2, AVX2, tile_avx2, 4)
EACH_TARGET(avx2, AVX2)

/* Eight bits for many tiles. Moving the sign (psignb) has two of the four vector units to choose from, which the products
 * want as well; an exclusive or has all four. a ^ -1 is -a - 1, so with s = -1 where q < 0 and 0 elsewhere
 *     q a = |q| (a ^ s) + |q| where q < 0,
 * and the second term is no matter of a: |q|, s and the sum of |q| below zero are made once, for a slice of the groups that
 * stays in the first cache, and every tile of a chunk is multiplied with them. The next slice is asked for meanwhile.
 * The same integers, the same order: the same bits as the tiles above.
 */
AVX2 static void open_avx2(const uint8_t *codes, const uint16_t *scales, int64_t groups, struct panel *panel) {
    const __m256i top = _mm256_set1_epi8(-128), zero = _mm256_setzero_si256();
    for (int64_t g = 0; g < groups; g++, codes += LANES * GROUP, scales += LANES) {
        UNROLL for (int half = 0; half < 2; half++) {
            __m256i below = zero;
            UNROLL for (int at = 32 * half; at < LANES * GROUP; at += 64) {
                __m256i w = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(codes + at)), top);
                __m256i size = _mm256_abs_epi8(w), sign = _mm256_cmpgt_epi8(zero, w);
                _mm256_store_si256((__m256i *)(panel->size[g] + at), size);
                _mm256_store_si256((__m256i *)(panel->sign[g] + at), sign);
                below = _mm256_sub_epi16(below, _mm256_maddubs_epi16(size, sign));
            }
            _mm256_store_si256((__m256i *)(panel->below[g] + 8 * half), _mm256_madd_epi16(below, _mm256_set1_epi16(1)));
            __m128i narrow = _mm_loadu_si128((const __m128i *)(scales + 8 * half));
            _mm256_store_ps(panel->scales[g] + 8 * half, _mm256_cvtph_ps(narrow));
        }
    }
}

AVX2 INLINE void panel_rows(const int count, const struct panel *panel, int64_t groups, const int8_t *a, const float *a_scales,
                            int width, float *out) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 sum[2][4]; /* as in tile_avx2 */
    UNROLL for (int i = 0; i < 2 * count; i++) sum[i & 1][i >> 1] = _mm256_load_ps(out + (i >> 1) * LANES + (i & 1) * 8);
    for (int64_t g = 0; g < groups; g++, a += width * GROUP, a_scales += width) {
        __m256i part[2][4];
        UNROLL for (int i = 0; i < 2 * count; i++)
            part[i & 1][i >> 1] = _mm256_load_si256((const __m256i *)(panel->below[g] + 8 * (i & 1)));
        UNROLL for (int quad = 0; quad < 8; quad++) {
            UNROLL for (int half = 0; half < 2; half++) {
                __m256i size = _mm256_load_si256((const __m256i *)(panel->size[g] + 64 * quad + 32 * half));
                __m256i sign = _mm256_load_si256((const __m256i *)(panel->sign[g] + 64 * quad + 32 * half));
                UNROLL for (int t = 0; t < count; t++) {
                    __m256i four = _mm256_xor_si256(_mm256_set1_epi32(four_bytes(a + t * GROUP + quad * 4)), sign);
                    part[half][t] = _mm256_add_epi32(part[half][t], _mm256_madd_epi16(_mm256_maddubs_epi16(size, four), ones));
                    HOLD(part[half][t]);
                }
            }
        }
        UNROLL for (int i = 0; i < 2 * count; i++) {
            __m256 scale = _mm256_mul_ps(_mm256_load_ps(panel->scales[g] + 8 * (i & 1)), _mm256_set1_ps(a_scales[i >> 1]));
            sum[i & 1][i >> 1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[i & 1][i >> 1]), scale, sum[i & 1][i >> 1]);
        }
    }
    UNROLL for (int i = 0; i < 2 * count; i++) _mm256_store_ps(out + (i >> 1) * LANES + (i & 1) * 8, sum[i & 1][i >> 1]);
}

AVX2 static void panel_avx2(const struct panel *panel, int64_t groups, const int8_t *a, const float *a_scales, int width,
                            float *out) {
    int t = 0;
    for (; t + 4 <= width; t += 4) panel_rows(4, panel, groups, a + t * GROUP, a_scales + t, width, out + t * LANES);
    for (; t + 2 <= width; t += 2) panel_rows(2, panel, groups, a + t * GROUP, a_scales + t, width, out + t * LANES);
    if (t < width) panel_rows(1, panel, groups, a + t * GROUP, a_scales + t, width, out + t * LANES);
}
#endif

/* ---------------------------------------------------------------- tiles: Arm with dot products
 *
 * NEVER RUN: written beside the others by the same rules, but no Arm machine was at hand. Signed times signed, four rows a
 * vector; the offset is taken off the weights, so no correction is needed. (The matrix instructions of i8mm want pairs of
 * rows eight columns deep, another layout, and are not used.)
 */
#if defined(__aarch64__)
DOTPROD INLINE void tile_dotprod(const int bits, const int count, const uint8_t *codes, const uint16_t *scales, int64_t groups,
                                 const int8_t *a, const float *a_scales, const int32_t *a_sums, int width, float *out) {
    (void)a_sums;
    float32x4_t sum[4][4]; /* [quarter of the 16 rows][token] */
    UNROLL for (int i = 0; i < 4 * count; i++) sum[i & 3][i >> 2] = vdupq_n_f32(0);
    for (int64_t g = 0; g < groups; g++) {
        int32x4_t part[4][4];
        UNROLL for (int i = 0; i < 4 * count; i++) part[i & 3][i >> 2] = vdupq_n_s32(0);
        UNROLL for (int quad = 0; quad < 8; quad++) {
            UNROLL for (int i = 0; i < 4; i++) {
                uint8x16_t w = vld1q_u8(codes + 64 * (bits == 8 ? quad : quad % 4) + 16 * i);
                if (bits == 4) w = quad < 4 ? vandq_u8(w, vdupq_n_u8(15)) : vshrq_n_u8(w, 4);
                int8x16_t q = vreinterpretq_s8_u8(vsubq_u8(w, vdupq_n_u8(bits == 8 ? 128 : 8)));
                UNROLL for (int t = 0; t < count; t++) {
                    int32_t four;
                    memcpy(&four, a + t * GROUP + quad * 4, 4);
                    part[i][t] = vdotq_s32(part[i][t], q, vreinterpretq_s8_s32(vdupq_n_s32(four)));
                }
            }
        }
        UNROLL for (int i = 0; i < 4; i++) {
            float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(scales + 4 * i)));
            UNROLL for (int t = 0; t < count; t++)
                sum[i][t] = vfmaq_f32(sum[i][t], vcvtq_f32_s32(part[i][t]), vmulq_n_f32(scale, a_scales[t]));
        }
        codes += bits == 8 ? 512 : 256, scales += LANES;
        a += width * GROUP, a_scales += width;
    }
    UNROLL for (int i = 0; i < 4 * count; i++) vst1q_f32(out + (i >> 2) * LANES + (i & 3) * 4, sum[i & 3][i >> 2]);
}
WALK(tile8_dotprod, DOTPROD, tile_dotprod, 8)
WALK(tile4_dotprod, DOTPROD, tile_dotprod, 4)
EACH_TARGET(dotprod, DOTPROD)
#endif

/* ---------------------------------------------------------------- the choice of a path */

struct path {
    const char *name;
    tile_fn *tile8, *tile4;
    part_fn *quantise, *pack, *product, *turn;
    open_fn *open8; /* or NULL */
    panel_fn *panel8;
};
#define PATH(name, ...) \
    {#name, tile8_##name, tile4_##name, quantise_##name, pack_##name, product_##name, turn_##name, __VA_ARGS__}

static const struct path paths[] = { /* slowest first */
    PATH(portable, NULL, NULL),
#if defined(__x86_64__)
    PATH(avx2, open_avx2, panel_avx2), PATH(avx512, NULL, NULL),
#elif defined(__aarch64__)
    PATH(dotprod, NULL, NULL),
#endif
};
enum { PATHS = sizeof paths / sizeof paths[0] };

static int present(int path) {
    if (path <= 0 || path >= PATHS) return path == 0;
#if defined(__x86_64__)
    unsigned a, b, c, d, b7, c7, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0;
    unsigned needed = 1u << 12 | 1u << 28 | 1u << 29; /* FMA, AVX, F16C */
    if ((c & needed) != needed || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0)); /* which registers the system saves */
    if (path == 1) return (low & 6) == 6 && (b7 >> 5 & 1);
    unsigned wide = 1u << 5 | 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* AVX2, AVX-512 F, DQ, BW, VL */
    return (low & 0xe6) == 0xe6 && (b7 & wide) == wide && (c7 >> 11 & 1); /* VNNI */
#elif defined(__aarch64__) && defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1; /* ASIMDDP */
#elif defined(__aarch64__) && defined(__APPLE__)
    return 1;
#else
    return 0;
#endif
}

static atomic_int chosen = -1;

static const struct path *path(void) {
    int index = atomic_load(&chosen);
    if (index < 0) {
        for (index = PATHS - 1; !present(index);) index--;
        atomic_store(&chosen, index);
    }
    return &paths[index];
}

/* ---------------------------------------------------------------- plans: a job, and how it is cut into parts */

struct matrix {
    const uint8_t *codes;
    const uint16_t *scales;
    const float *bias; /* or NULL */
    int64_t bits, rows, columns;
};

/* Prepare out (tokens, rows) = a W^T (+ bias), or with `up` a SwiGLU; return the number of parts. */
static int64_t plan_product(struct product_job *job, const struct path *p, const struct matrix *w, const struct matrix *up,
                            struct activations a, int64_t tokens, float *out, int64_t stride) {
    const int64_t cache = 384 << 10; /* what a chunk may hold */
    *job = (struct product_job){.tile = w->bits == 8 ? p->tile8 : p->tile4, .open = w->bits == 8 && tokens > TILE ? p->open8 : NULL,
                                .panel = p->panel8, .block_bytes = w->bits == 8 ? 512 : 256,
                                .codes = w->codes, .scales = w->scales, .a = a, .rows = w->rows,
                                .groups = (w->columns + GROUP - 1) / GROUP, .tokens = tokens, .bias = w->bias,
                                .out = out, .stride = stride};
    if (up) job->up_codes = up->codes, job->up_scales = up->scales;
    /* Opened weights pass slice by slice, and a chunk is as long as its sums allow; others meet a chunk with all its columns. */
    int64_t tile_bytes = job->groups * (GROUP + 8) * TILE;
    int64_t most_tokens = job->open ? MOST_TOKENS : TILE * least(64, tile_bytes < cache ? cache / tile_bytes : 1);
    int64_t chunks = (tokens + most_tokens - 1) / most_tokens;
    job->chunk = ((tokens + chunks - 1) / chunks + TILE - 1) / TILE * TILE;
    job->blocks = (job->rows + LANES - 1) / LANES;
    /* A part should be long, above all for few tokens: what is fetched ahead at its end is another thread's. And a small
     * share of the whole: a thread that is held up keeps the others waiting for one part. */
    int64_t count = atomic_load(&threads), long_enough = (tokens > TILE ? 64 << 10 : 256 << 10) / (job->groups * job->block_bytes);
    int64_t share = job->blocks / (16 * count), most = job->blocks / (4 * count);
    job->grain = long_enough < share ? share : least(long_enough, most);
    if (job->open) job->grain = least(job->grain, MOST_SUMS / job->chunk);
    if (job->grain < 1) job->grain = 1;
    job->spans = (job->blocks + job->grain - 1) / job->grain;
    return job->spans * ((tokens + job->chunk - 1) / job->chunk);
}

/* x (rows, columns) to tiles; see foveal_quantise_rows. */
static void quantise_rows(const struct path *p, const float *x, const float *norm, float eps, int64_t rows, int64_t columns,
                          int64_t stride, struct activations out, atomic_int *status) {
    struct quantise_job job = {x, norm, eps, rows, columns, stride, (columns + GROUP - 1) / GROUP, out, status};
    run(p->quantise, &job, (rows + TILE - 1) / TILE);
}

/* ---------------------------------------------------------------- exported
 *
 * All return a status; pointers are the caller's, strides are in elements, T may be 0. The Python side checks shapes.
 */

EXPORT int foveal_interface(void) { return 7; } /* to be raised when a signature or a layout changes */

/* The name of path `index`, NULL past the last; an empty name where this machine lacks it. */
EXPORT const char *foveal_path_name(int index) { return index < 0 || index >= PATHS ? NULL : present(index) ? paths[index].name : ""; }
EXPORT int foveal_get_path(void) { return (int)(path() - paths); }
EXPORT int foveal_set_path(int index) {
    if (!present(index)) return BAD_ARGUMENT;
    atomic_store(&chosen, index);
    return DONE;
}

EXPORT int foveal_get_threads(void) { return atomic_load(&threads); }
EXPORT int foveal_set_threads(int count) {
    if (count < 1 || count > MOST_THREADS) return BAD_ARGUMENT;
    atomic_store(&threads, count);
    return DONE;
}

/* weight (rows, columns) -> codes, scales; importance (columns) of what errors in a column cost, or NULL. */
EXPORT int foveal_pack(const void *weight, int type, int bits, int64_t rows, int64_t columns, int64_t stride,
                       const float *importance, uint8_t *codes, uint16_t *scales) {
    if ((bits != 8 && bits != 4) || type < FLOAT32 || type > FLOAT16) return BAD_ARGUMENT;
    atomic_int status = DONE;
    struct pack_job job = {weight, importance, type, bits, rows, columns, stride, (columns + GROUP - 1) / GROUP, codes, scales, &status};
    run(path()->pack, &job, (rows + LANES - 1) / LANES);
    return atomic_load(&status);
}

/* Rows `ids` of a packed weight as float32, out (count, columns): an embedding. */
EXPORT int foveal_take_rows(int bits, const uint8_t *codes, const uint16_t *scales, int64_t rows, int64_t columns,
                            const int64_t *ids, int64_t count, float *out) {
    int64_t groups = (columns + GROUP - 1) / GROUP, block_bytes = bits == 8 ? 512 : 256, offset = bits == 8 ? 128 : 8;
    if (bits != 8 && bits != 4) return BAD_ARGUMENT;
    for (int64_t i = 0; i < count; i++, out += columns) {
        if (ids[i] < 0 || ids[i] >= rows) return BAD_ARGUMENT;
        const uint8_t *block = codes + ids[i] / LANES * groups * block_bytes + ids[i] % LANES * 4;
        const uint16_t *scale = scales + ids[i] / LANES * groups * LANES + ids[i] % LANES;
        for (int64_t k = 0; k < columns; k++) {
            int64_t quad = k % GROUP / 4, high = bits == 4 && quad >= 4;
            uint8_t code = block[k / GROUP * block_bytes + (high ? quad - 4 : quad) * 64 + k % 4];
            int32_t q = (int32_t)(bits == 8 ? code : high ? code >> 4 : code & 15) - (int32_t)offset;
            out[k] = (float)q * from_float16(scale[k / GROUP * LANES]);
        }
    }
    return DONE;
}

/* x (rows, columns) -> tiles. With `norm`, each row first goes through an RMSNorm with these weights. */
EXPORT int foveal_quantise_rows(const float *x, const float *norm, float eps, int64_t rows, int64_t columns, int64_t stride,
                                int8_t *codes, float *scales, int32_t *sums) {
    atomic_int status = DONE;
    quantise_rows(path(), x, norm, eps, rows, columns, stride, (struct activations){codes, scales, sums}, &status);
    return atomic_load(&status);
}

/* out (T, rows) = x W^T (+ bias), or GELU of that; with a second matrix silu(x W^T) * (x U^T). */
EXPORT int foveal_matmul(int bits, const uint8_t *codes, const uint16_t *scales, const uint8_t *up_codes,
                         const uint16_t *up_scales, int64_t rows, int64_t columns, const int8_t *a, const float *a_scales,
                         const int32_t *a_sums, int64_t tokens, const float *bias, int gelu, float *out, int64_t stride) {
    if (bits != 8 && bits != 4) return BAD_ARGUMENT;
    if (rows < 1 || columns < 1 || tokens < 1) return rows < 0 || columns < 1 || tokens < 0 ? BAD_ARGUMENT : DONE;
    struct matrix weight = {codes, scales, bias, bits, rows, columns}, up = {up_codes, up_scales, NULL, bits, rows, columns};
    struct activations in = {(int8_t *)a, (float *)a_scales, (int32_t *)a_sums};
    struct product_job job;
    int64_t parts = plan_product(&job, path(), &weight, up_codes ? &up : NULL, in, tokens, out, stride);
    job.gelu = gelu;
    run(path()->product, &job, parts);
    return DONE;
}

/* Heads of queries or keys, x (tokens, heads, dim): RMSNorm of each, then its two halves turned by cosines and sines
 * (tokens, dim / 2). out (tokens, heads, dim). */
EXPORT int foveal_turn(const float *x, const float *weight, float eps, const float *cosines, const float *sines, int64_t tokens,
                       int64_t heads, int64_t dim, float *out) {
    if (dim < 2 || dim % 2) return BAD_ARGUMENT;
    struct turn_job job = {x, weight, cosines, sines, eps, tokens, heads, dim, out};
    run(path()->turn, &job, (tokens + TILE - 1) / TILE);
    return DONE;
}

/* ---------------------------------------------------------------- exported: a step of decoding
 *
 * One new token of each of some sequences through all layers of a dense decoder, in one call. Called layer by layer from
 * Python, the products of a step take two thirds of its time, and between them the other threads fall asleep.
 * The same functions in the same order as the calls above: the same bits.
 */

struct layer { /* as the Python side lays it out; matrices without codes are not there */
    const float *input_norm, *post_norm, *q_norm, *k_norm;
    struct matrix q, k, v, o, gate, up, down;
};

struct decoder {
    int64_t layers, hidden, inner, heads, kv_heads, dim; /* inner: the widest MLP */
    float eps, scale;                                    /* of norms, of scores */
};

/* The cache of one sequence: where layer 0 has its keys and values; strides in elements. A layer's keys are
 * (kv_heads, capacity, dim), of which `length` rows are filled in; this step fills the next. */
struct cached {
    char *keys, *values;
    uint16_t *key_scales, *value_scales; /* of INT8 */
    int64_t type, layer_stride, head_stride, scale_layer_stride, scale_head_stride, length;
};

struct several_jobs { /* products of one input, so that threads wait for each other once */
    const struct path *path;
    struct product_job jobs[3];
    int64_t parts[3];
};

static void several_part(const void *context, int64_t part) {
    const struct several_jobs *several = context;
    int i = 0;
    while (part >= several->parts[i]) part -= several->parts[i++];
    several->path->product(&several->jobs[i], part);
}

struct attends {
    const struct attend_job *jobs;
    int64_t kv_heads;
};

static void attends_part(const void *context, int64_t part) {
    const struct attends *attends = context;
    attend_head(attends->jobs + part / attends->kv_heads, part % attends->kv_heads);
}

/* Put a token's keys or values (kv_heads, dim) behind what a layer of a sequence's cache has. */
static int append(const struct decoder *d, const float *rows, char *to, uint16_t *scales, const struct cached *c) {
    int64_t at = c->length * d->dim;
    if (c->type == INT8) {
        atomic_int status = DONE;
        struct cache_job job = {rows, 1, d->kv_heads, d->dim, 0, d->dim, (int8_t *)to + at,
                                scales + c->length * ((d->dim + GROUP - 1) / GROUP), c->head_stride, c->scale_head_stride, &status};
        for (int64_t head = 0; head < d->kv_heads; head++) quantise_cache(&job, head); /* too little to wake others for */
        return atomic_load(&status);
    }
    for (int64_t head = 0; head < d->kv_heads; head++, rows += d->dim, at += c->head_stride) {
        if (c->type == FLOAT32) memcpy((float *)to + at, rows, (size_t)d->dim * 4);
        else for (int64_t i = 0; i < d->dim; i++) ((uint16_t *)to)[at + i] = to_bfloat16(rows[i]);
    }
    return DONE;
}

struct scratch { /* of one step */
    float *q, *k, *v, *heads, *inner; /* (tokens, ...) */
    struct activations a;
    struct attend_job *attends;
};

/* Bytes of scratch for a step, or, where `base` is given, cut it up. */
static int64_t cut_scratch(const struct decoder *d, int64_t tokens, char *base, struct scratch *s) {
    int64_t query = d->heads * d->dim, key = d->kv_heads * d->dim, widest = d->hidden > d->inner ? d->hidden : d->inner;
    widest = (query > widest ? query : widest) + GROUP;
    void *places[9];
    int64_t sizes[9] = {4 * query, 4 * key, 4 * key, 4 * query, 4 * d->inner, widest, widest / 8, widest / 8, sizeof(struct attend_job)};
    int64_t total = 0;
    for (int i = 0; i < 9; i++) {
        places[i] = base + total;
        total += (tokens * sizes[i] + 63) / 64 * 64;
    }
    if (base)
        *s = (struct scratch){places[0], places[1], places[2], places[3], places[4], {places[5], places[6], places[7]}, places[8]};
    return total;
}

static void product(const struct path *p, const struct matrix *w, const struct matrix *up, struct activations a, int64_t tokens,
                    int add, float *out) {
    struct product_job job;
    int64_t parts = plan_product(&job, p, w, up, a, tokens, out, w->rows);
    job.add = add;
    run(p->product, &job, parts);
}

static int attention(const struct path *p, const struct decoder *d, const struct layer *l, int64_t index, int64_t tokens,
                     const float *cosines, const float *sines, const struct cached *caches, const struct scratch *s) {
    struct several_jobs several = {.path = p};
    int64_t parts = 0;
    parts += several.parts[0] = plan_product(&several.jobs[0], p, &l->q, NULL, s->a, tokens, s->q, l->q.rows);
    parts += several.parts[1] = plan_product(&several.jobs[1], p, &l->k, NULL, s->a, tokens, s->k, l->k.rows);
    parts += several.parts[2] = plan_product(&several.jobs[2], p, &l->v, NULL, s->a, tokens, s->v, l->v.rows);
    run(several_part, &several, parts);
    struct turn_job q = {s->q, l->q_norm, cosines, sines, d->eps, tokens, d->heads, d->dim, s->q};
    struct turn_job k = {s->k, l->k_norm, cosines, sines, d->eps, tokens, d->kv_heads, d->dim, s->k};
    run(p->turn, &q, (tokens + TILE - 1) / TILE);
    run(p->turn, &k, (tokens + TILE - 1) / TILE);
    for (int64_t t = 0; t < tokens; t++) {
        const struct cached *c = caches + t;
        int64_t size = c->type == FLOAT32 ? 4 : c->type == BFLOAT16 ? 2 : 1;
        char *keys = c->keys + index * c->layer_stride * size, *values = c->values + index * c->layer_stride * size;
        uint16_t *key_scales = NULL, *value_scales = NULL;
        if (c->type == INT8)
            key_scales = c->key_scales + index * c->scale_layer_stride, value_scales = c->value_scales + index * c->scale_layer_stride;
        int status = append(d, s->k + t * l->k.rows, keys, key_scales, c);
        if (!status) status = append(d, s->v + t * l->v.rows, values, value_scales, c);
        if (status) return status;
        s->attends[t] = (struct attend_job){
            s->q + t * l->q.rows, keys, values, key_scales, value_scales, (int)c->type, d->heads, d->kv_heads, c->length + 1, d->dim,
            c->head_stride, c->head_stride, c->scale_head_stride, c->scale_head_stride,
            d->scale, s->heads + t * l->q.rows};
    }
    struct attends attends = {s->attends, d->kv_heads};
    run(attends_part, &attends, tokens * d->kv_heads);
    return DONE;
}

/* Bytes of scratch that `foveal_step` needs for so many tokens. */
EXPORT int64_t foveal_step_scratch(const struct decoder *d, int64_t tokens) { return cut_scratch(d, tokens, NULL, NULL); }

/* x (tokens, hidden) through all layers, in place; cosines, sines (tokens, dim / 2); one cache a token, which has room.
 * After an error x and the row of the caches that is being filled hold anything. */
EXPORT int foveal_step(const struct decoder *d, const struct layer *layers, int64_t tokens, float *x, const float *cosines,
                       const float *sines, const struct cached *caches, char *scratch) {
    if (d->kv_heads < 1 || d->heads % d->kv_heads || d->heads / d->kv_heads > MOST_SHARED || d->dim < 2 || d->dim % 2 ||
        d->dim > MOST_DIM || tokens < 1)
        return BAD_ARGUMENT;
    const struct path *p = path();
    struct scratch s = {0};
    cut_scratch(d, tokens, scratch, &s);
    atomic_int bad = DONE;
    for (int64_t i = 0; i < d->layers; i++) {
        const struct layer *l = layers + i;
        quantise_rows(p, x, l->input_norm, d->eps, tokens, d->hidden, d->hidden, s.a, &bad);
        int status = attention(p, d, l, i, tokens, cosines, sines, caches, &s);
        if (status) return status;
        quantise_rows(p, s.heads, NULL, 0, tokens, l->o.columns, l->o.columns, s.a, &bad);
        product(p, &l->o, NULL, s.a, tokens, 1, x);
        quantise_rows(p, x, l->post_norm, d->eps, tokens, d->hidden, d->hidden, s.a, &bad);
        product(p, &l->gate, &l->up, s.a, tokens, 0, s.inner);
        quantise_rows(p, s.inner, NULL, 0, tokens, l->down.columns, l->down.columns, s.a, &bad);
        product(p, &l->down, NULL, s.a, tokens, 1, x);
        if (atomic_load(&bad)) return atomic_load(&bad);
    }
    return DONE;
}

struct read_job {
    const uint64_t *words;
    int64_t count, part;
    atomic_ullong *sum;
};

static void read_part(const void *context, int64_t part) {
    const struct read_job *job = context;
    const uint64_t *words = job->words + part * job->part;
    uint64_t lanes[LANES] = {0};
    for (int64_t at = 0, end = least(job->part, job->count - part * job->part); at + LANES <= end; at += LANES)
        for (int i = 0; i < LANES; i++) lanes[i] ^= words[at + i];
    for (int i = 1; i < LANES; i++) lanes[0] ^= lanes[i];
    atomic_fetch_xor(job->sum, lanes[0]);
}

/* Read memory and do nothing else: the yardstick of a matrix-vector product. */
EXPORT int foveal_read(const uint64_t *words, int64_t count) {
    atomic_ullong sum = 0;
    struct read_job job = {words, count, 8192, &sum};
    run(read_part, &job, (count + job.part - 1) / job.part);
    return DONE;
}
