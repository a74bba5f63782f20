/* Attention of many queries at once: inside frames, for the vision encoder, every query with every key in both directions; and
 * of a prompt's window, for the decoder, where a query sees the keys up to its own place and several heads share their keys.
 *
 * Both products, queries with keys and weights with values, are made of 16-bit integers. The instruction for these (vpmaddwd:
 * two neighbouring products and their sum in 32 bits) does twice as many a cycle as float32's multiply-add, the sums are exact,
 * and so the instruction set, the number of threads and how rows are cut into parts cannot change a bit.
 *
 * Numbers. A query or a key, after its turn, is a row of 16-bit codes and one float scale. Two rows of length (the root of the
 * sum of squares) 46300 or less have a product below 2^31: the scale is as fine as that length and the code's 32767 allow. An
 * error is then some 1e-5 of the product of both lengths, whatever outliers there are; no groups are needed. Values: codes up to
 * 16383, with a scale for every channel of every block of KEYS rows. The softmax's weights of a block, relative to its largest,
 * become codes that sum to 130,964 or less, so that sums over values stay below 2^31 as well; in the end it is the codes' sum
 * that is divided by, so that weights sum to one.
 *
 * Layout. Keys and values of a block and a head lie in panels of 16 columns (keys; channels of values), in each of which pairs
 * along the summed axis (channels; keys) are neighbours: a vector is eight columns of one pair, and one pair of a query or of
 * weights is repeated in all of it.
 *
 * In order: keys and values are packed, a part for each block of keys and head; then queries attend, a part for up to ROWS
 * queries of a head, over the blocks of keys of their frame with the softmax kept running.
 */
#define _GNU_SOURCE
#include "common.h"

enum { KEYS = 128, ROWS = 24, TALL = 6, PANEL = 16, FOUR = 32, AHEAD = 8 }; /* TALL: rows of a register tile */

struct frames_job {
    const float *q;               /* rows of heads side by side, (P, heads, dim), `stride` from row to row */
    const float *k, *v;           /* `stride` from row to row as well, `head_stride` from head to head */
    const float *cosines, *sines; /* (P, dim / 2): turn queries and keys by these first; or NULL */
    int64_t stride, head_stride, heads, kv_heads, dim;
    const int64_t *blocks;  /* (B, 2): first row and number of rows of every block of keys */
    const int64_t *queries; /* (Q, 5): first row and number of rows, first and last + 1 block of keys to be seen, and how many
                             * keys of the last one the first query sees: all see these, or, if causal, each one more */
    int64_t count;          /* of what is cut into parts: blocks, or groups of queries */
    int64_t first_block;
    int causal;
    float scale;
    int16_t *keys, *values;           /* (B, kv_heads, key_codes), (B, kv_heads, value_codes); see sizes */
    float *key_scales, *value_scales; /* (B, kv_heads, KEYS), (B, kv_heads, channels) */
    float *out;                       /* (P, heads, dim) */
    int64_t out_stride;
    atomic_int *status;
};

/* Codes of a block: `pairs` of channels for KEYS keys; KEYS / 2 pairs of keys for all channels, rounded up to panels. */
struct sizes {
    int64_t pairs, channels, key_codes, value_codes;
};

INLINE struct sizes sizes_of(int64_t dim) {
    int64_t pairs = (dim + 1) / 2, channels = (dim + PANEL - 1) / PANEL * PANEL;
    return (struct sizes){pairs, channels, KEYS * 2 * pairs, KEYS * channels};
}

/* The softmax of a tile's rows so far. A score times `unit` is an exponent of two; what was summed up to a block is multiplied
 * with `keep`, and what the block adds with `add`. */
struct running {
    float unit[TALL], peak[TALL], total[TALL], keep[TALL], add[TALL];
};

/* The three steps for a tile of `rows` queries and a block of keys, made by hand for an instruction set.
 * score: a panel of keys, (rows, PANEL) scores to rows of KEYS. weigh: KEYS scores a row, of which `count` are seen by the first
 * row and `more` more by each one after it, to codes of their weights. gather: weights times a panel of values, to sums of rows
 * `stride` apart. */
struct steps {
    void (*score)(int rows, const int16_t *q, int64_t stride, const int16_t *keys, const float *scales, int64_t pairs, float *out);
    void (*weigh)(int rows, float (*score)[KEYS], int64_t count, int more, int fresh, struct running *at, int16_t (*weight)[KEYS]);
    void (*gather)(int rows, const int16_t (*weight)[KEYS], const int16_t *values, const float *scales, int64_t pairs,
                   const struct running *at, float *sum, int64_t stride);
};

/* ---------------------------------------------------------------- loops for any compiler */

#define P1 0.693124193f /* of the polynomial of fourth degree that is nearest to 2^f for f from -1/2 to 1/2, and 1 at 0 */
#define P2 0.240240987f
#define P3 0.0559064318f
#define P4 0.0095828489f

/* 2^x within 3e-6 of its value for x up to 0; exactly 1 for 0. What is below -120 counts as that. */
INLINE float power(float x) {
    x = x > -120.0f ? x : -120.0f;
    float shifted = x + 12582912.0f, f = x - (shifted - 12582912.0f); /* its lowest bits are the nearest integer */
    float p = (1.0f + f * P1) + f * f * ((P2 + f * P3) + f * f * P4);
    return float_of(bits_of(p) + (bits_of(shifted) << 23));
}

/* Rows of one head lie a page apart or more, where no processor looks ahead by itself: ask for the row that many after this. */
INLINE void fetch(const float *x, int64_t stride, int64_t dim) {
    for (int64_t i = 0; i < dim; i += 16) __builtin_prefetch(x + AHEAD * stride + i);
}

/* A row of `dim` numbers, turned if there are tables, and zeros to `padded`. */
INLINE void turned(const float *x, const float *cosine, const float *sine, int64_t dim, int64_t padded, float *out) {
    if (cosine) {
        int64_t half = dim / 2;
        for (int64_t i = 0; i < half; i++) {
            out[i] = x[i] * cosine[i] - x[half + i] * sine[i];
            out[half + i] = x[half + i] * cosine[i] + x[i] * sine[i];
        }
    } else {
        memcpy(out, x, (size_t)dim * 4);
    }
    for (int64_t i = dim; i < padded; i++) out[i] = 0;
}

/* Codes of a row of `padded` numbers, a multiple of 16, and its scale; see the top for how fine they are. */
INLINE int quantise_row(const float *x, int64_t padded, int16_t *codes, float *scale) {
    uint32_t most[PANEL] = {0}, top = 0; /* floats without sign order as integers do, with infinity and NaN above all */
    for (int64_t k = 0; k < padded; k += PANEL)
        for (int i = 0; i < PANEL; i++) {
            uint32_t magnitude = bits_of(x[k + i]) & 0x7fffffff;
            most[i] = magnitude > most[i] ? magnitude : most[i];
        }
    for (int i = 0; i < PANEL; i++) top = most[i] > top ? most[i] : top;
    if (top >= 0x7f800000) return NOT_FINITE;
    float amax = float_of(top), small = amax < 0x1p-100f ? 0.0f : 1.0f / amax; /* else the inverse could overflow */
    float squares[PANEL] = {0}, sum = 0;
    for (int64_t k = 0; k < padded; k += PANEL)
        for (int i = 0; i < PANEL; i++) squares[i] += (x[k + i] * small) * (x[k + i] * small);
    for (int i = 0; i < PANEL; i++) sum += squares[i];
    float largest = sum > 0.0f ? 46300.0f / sqrtf(sum) : 0.0f;
    largest = largest < 32767.0f ? largest : 32767.0f;
    *scale = largest > 0.0f ? amax / largest : 0.0f;
    float inverse = largest * small;
    for (int64_t k = 0; k < padded; k += PANEL)
        for (int i = 0; i < PANEL; i++) codes[k + i] = (int16_t)(int32_t)nearest(x[k + i] * inverse);
    return DONE;
}

/* Pack a block of keys and values of one head. */
INLINE void pack_block(const struct frames_job *job, int64_t part) {
    const struct sizes size = sizes_of(job->dim);
    const int64_t block = job->first_block + part / job->kv_heads, head = part % job->kv_heads, at = block * job->kv_heads + head;
    const int64_t first = job->blocks[2 * block], count = job->blocks[2 * block + 1], dim = job->dim, padded = size.channels;
    int16_t *keys = job->keys + at * size.key_codes, *values = job->values + at * size.value_codes;
    float *key_scales = job->key_scales + at * KEYS, *value_scales = job->value_scales + at * size.channels;
    const int64_t whole = (count + PANEL - 1) / PANEL * PANEL, half = dim / 2;
    ALIGNED float row[MOST_DIM];
    ALIGNED int16_t codes[MOST_DIM] = {0}, next[MOST_DIM] = {0};
    for (int64_t s = 0; s < whole; s++) {
        int16_t *to = keys + s / PANEL * PANEL * 2 * size.pairs + s % PANEL * 2;
        key_scales[s] = 0;
        if (s < count) {
            const float *tables[2] = {NULL, NULL};
            if (job->cosines) tables[0] = job->cosines + (first + s) * half, tables[1] = job->sines + (first + s) * half;
            const float *x = job->k + (first + s) * job->stride + head * job->head_stride;
            fetch(x, job->stride, dim);
            turned(x, tables[0], tables[1], dim, padded, row);
            if (quantise_row(row, padded, codes, key_scales + s)) {
                atomic_store(job->status, NOT_FINITE);
                return;
            }
        } else {
            memset(codes, 0, sizeof codes);
        }
        for (int64_t i = 0; i < size.pairs; i++) memcpy(to + i * 2 * PANEL, codes + 2 * i, 4);
    }
    const float *v = job->v + first * job->stride + head * job->head_stride;
    uint32_t most[MOST_DIM] = {0}, top = 0;
    for (int64_t s = 0; s < count; s++) {
        fetch(v + s * job->stride, job->stride, dim);
        for (int64_t i = 0; i < dim; i++) {
            uint32_t magnitude = bits_of(v[s * job->stride + i]) & 0x7fffffff;
            most[i] = magnitude > most[i] ? magnitude : most[i];
        }
    }
    for (int64_t i = 0; i < dim; i++) top = most[i] > top ? most[i] : top;
    if (top >= 0x7f800000) {
        atomic_store(job->status, NOT_FINITE);
        return;
    }
    for (int64_t i = 0; i < padded; i++) { /* row: now the inverse of each channel's scale */
        float amax = float_of(most[i]);
        int none = amax < 0x1p-100f;
        row[i] = none ? 0.0f : 16383.0f / amax;
        value_scales[i] = none ? 0.0f : amax / 16383.0f;
    }
    memset(codes, 0, sizeof codes);
    for (int64_t s = 0; s < count; s += 2) {
        const float *x = v + s * job->stride;
        for (int64_t i = 0; i < dim; i++) codes[i] = (int16_t)(int32_t)nearest(x[i] * row[i]);
        if (s + 1 < count) for (int64_t i = 0; i < dim; i++) next[i] = (int16_t)(int32_t)nearest(x[job->stride + i] * row[i]);
        else memset(next, 0, sizeof next);
        for (int64_t panel = 0; panel < padded; panel += PANEL) {
            int16_t *to = values + panel * KEYS + s * PANEL, both[2 * PANEL];
            for (int i = 0; i < PANEL; i++) both[2 * i] = codes[panel + i], both[2 * i + 1] = next[panel + i];
            memcpy(to, both, sizeof both);
        }
    }
}

/* Fold a block into a row's softmax: its largest score and the sum of its weights, of which 1 is the largest. Return what
 * weights are multiplied with to become codes; see the top. */
INLINE float fold(struct running *at, int r, int fresh, float top, float sum) {
    float most = 130900.0f / sum, peak = fresh || top > at->peak[r] ? top : at->peak[r];
    most = most < 32767.0f ? most : 32767.0f;
    float share = power((top - peak) * at->unit[r]);
    at->keep[r] = fresh ? 0.0f : power((at->peak[r] - peak) * at->unit[r]);
    at->add[r] = share / most;
    at->peak[r] = peak;
    return most;
}

/* How many scores are weighed: those that are real, and what fills the last run of FOUR vectors, which weighs nothing. */
INLINE int64_t filled(int64_t count) { return (count + FOUR - 1) / FOUR * FOUR; }

INLINE void fill(float *score, int64_t count, int64_t whole, float with) {
    for (int64_t s = count; s < whole; s++) score[s] = with;
}

/* Some queries of one head over the blocks of keys they see. A panel meets all of them before the next one does, so that it is
 * in the first cache however long heads are. */
INLINE void attend_rows(const struct frames_job *job, int64_t part, const struct steps *steps) {
    const struct sizes size = sizes_of(job->dim);
    const int64_t head = part / job->count, kv_head = head / (job->heads / job->kv_heads);
    const int64_t *group = job->queries + part % job->count * 5;
    const int64_t first = group[0], count = group[1], dim = job->dim, padded = size.channels, half = dim / 2;
    ALIGNED int16_t q[ROWS * MOST_DIM], weight[ROWS][KEYS];
    ALIGNED float sum[ROWS * MOST_DIM], score[ROWS][KEYS], row[MOST_DIM];
    struct running running[ROWS / TALL] = {0};
    for (int64_t t = 0; t < count; t++) {
        const float *tables[2] = {NULL, NULL};
        if (job->cosines) tables[0] = job->cosines + (first + t) * half, tables[1] = job->sines + (first + t) * half;
        fetch(job->q + (first + t) * job->stride + head * dim, job->stride, dim);
        turned(job->q + (first + t) * job->stride + head * dim, tables[0], tables[1], dim, padded, row);
        float scale = 0;
        if (quantise_row(row, padded, q + t * padded, &scale)) {
            atomic_store(job->status, NOT_FINITE);
            return;
        }
        running[t / TALL].unit[t % TALL] = scale * job->scale * 1.44269504f;
    }
    memset(sum, 0, (size_t)(count * padded) * 4);
    for (int64_t block = group[2]; block < group[3]; block++) {
        const int last = block + 1 == group[3], more = last && job->causal;
        const int64_t at = block * job->kv_heads + kv_head, seen = last ? group[4] : job->blocks[2 * block + 1];
        const int16_t *keys = job->keys + at * size.key_codes, *values = job->values + at * size.value_codes;
        const float *key_scales = job->key_scales + at * KEYS, *value_scales = job->value_scales + at * size.channels;
        for (int64_t s = 0; s < seen + more * (count - 1); s += PANEL)
            for (int64_t t = 0; t < count; t += TALL) {
                int rows = (int)least(TALL, count - t);
                if (s < seen + more * (t + rows - 1))
                    steps->score(rows, q + t * padded, padded, keys + s * 2 * size.pairs, key_scales + s, size.pairs, score[t] + s);
            }
        for (int64_t t = 0; t < count; t += TALL)
            steps->weigh((int)least(TALL, count - t), score + t, seen + more * t, more, block == group[2], running + t / TALL,
                         weight + t);
        for (int64_t c = 0; c < padded; c += PANEL)
            for (int64_t t = 0; t < count; t += TALL) {
                int rows = (int)least(TALL, count - t);
                steps->gather(rows, weight + t, values + c * KEYS, value_scales + c, (seen + more * (t + rows - 1) + 1) / 2,
                              running + t / TALL, sum + t * padded + c, padded);
            }
    }
    for (int64_t t = 0; t < count; t++) {
        float *out = job->out + (first + t) * job->out_stride + head * dim, inverse = 1.0f / running[t / TALL].total[t % TALL];
        for (int64_t i = 0; i < dim; i++) out[i] = sum[t * padded + i] * inverse;
    }
}

/* ---------------------------------------------------------------- steps: portable C */

/* out (PANEL) = the sum over pairs of a (2 pairs) times a panel. */
INLINE void dot_panel(const int16_t *a, const int16_t *panel, int64_t pairs, int32_t *out) {
    int32_t sum[PANEL] = {0};
    for (int64_t p = 0; p < pairs; p++, panel += 2 * PANEL)
        for (int i = 0; i < PANEL; i++) sum[i] += (int32_t)a[2 * p] * panel[2 * i] + (int32_t)a[2 * p + 1] * panel[2 * i + 1];
    memcpy(out, sum, sizeof sum);
}

static void score_portable(int rows, const int16_t *q, int64_t stride, const int16_t *keys, const float *scales, int64_t pairs,
                           float *out) {
    for (int r = 0; r < rows; r++, q += stride, out += KEYS) {
        int32_t sum[PANEL];
        dot_panel(q, keys, pairs, sum);
        for (int i = 0; i < PANEL; i++) out[i] = (float)sum[i] * scales[i];
    }
}

static void weigh_portable(int rows, float (*score)[KEYS], int64_t count, int more, int fresh, struct running *at,
                           int16_t (*weight)[KEYS]) {
    const int64_t whole = filled(count + more * (rows - 1));
    for (int r = 0; r < rows; r++, count += more) {
        float *x = score[r], top = x[0], part[FOUR] = {0};
        fill(x, count, whole, x[0]);
        for (int64_t s = 1; s < count; s++) top = x[s] > top ? x[s] : top;
        for (int64_t s = 0; s < whole; s++) x[s] = power((x[s] - top) * at->unit[r]);
        fill(x, count, whole, 0);
        for (int64_t s = 0; s < whole; s++) part[s % FOUR] += x[s];
        for (int half = FOUR / 2; half; half /= 2)
            for (int i = 0; i < half; i++) part[i] += part[i + half];
        float most = fold(at, r, fresh, top, part[0]);
        int32_t all = 0; /* of what weights were rounded to, so that they sum to one */
        for (int64_t s = 0; s < whole; s++) all += weight[r][s] = (int16_t)(int32_t)nearest(x[s] * most);
        at->total[r] = at->total[r] * at->keep[r] + (float)all * at->add[r];
    }
}

static void gather_portable(int rows, const int16_t (*weight)[KEYS], const int16_t *values, const float *scales, int64_t pairs,
                            const struct running *at, float *sum, int64_t stride) {
    for (int r = 0; r < rows; r++, sum += stride) {
        int32_t made[PANEL];
        dot_panel(weight[r], values, pairs, made);
        for (int i = 0; i < PANEL; i++) sum[i] = sum[i] * at->keep[r] + (float)made[i] * (scales[i] * at->add[r]);
    }
}

static const struct steps portable = {score_portable, weigh_portable, gather_portable};
static void pack_portable(const void *job, int64_t part) { pack_block(job, part); }
static void attend_portable(const void *job, int64_t part) { attend_rows(job, part, &portable); }

/* ---------------------------------------------------------------- steps: AVX2
 *
 * Two vectors of a panel times six rows are twelve sums in registers; the other four hold the panel, a repeated pair and a
 * product. No fused multiply-add: the same bits as above, and Zen 3 adds and multiplies in units of their own.
 */
#if defined(__x86_64__)

AVX2 INLINE void dot_rows(const int rows, const int16_t *a, int64_t stride, const int16_t *panel, int64_t pairs, __m256i (*sum)[2]) {
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    for (int64_t p = 0; p < pairs; p++, panel += 2 * PANEL) {
        __m256i low = _mm256_load_si256((const __m256i *)panel), high = _mm256_load_si256((const __m256i *)(panel + PANEL));
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, a + r * stride + 2 * p, 4);
            __m256i x = _mm256_set1_epi32(pair);
            sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(low, x));
            HOLD(sum[r][0]);
            sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(high, x));
            HOLD(sum[r][1]);
        }
    }
}

AVX2 INLINE void score_rows(const int rows, const int16_t *q, int64_t stride, const int16_t *keys, const float *scales,
                            int64_t pairs, float *out) {
    __m256i sum[TALL][2];
    dot_rows(rows, q, stride, keys, pairs, sum);
    UNROLL for (int i = 0; i < 2 * rows; i++)
        _mm256_store_ps(out + i / 2 * KEYS + i % 2 * 8,
                        _mm256_mul_ps(_mm256_cvtepi32_ps(sum[i / 2][i % 2]), _mm256_load_ps(scales + i % 2 * 8)));
}

AVX2 INLINE void gather_rows(const int rows, const int16_t (*weight)[KEYS], const int16_t *values, const float *scales,
                             int64_t pairs, const struct running *at, float *sum, int64_t stride) {
    __m256i made[TALL][2];
    dot_rows(rows, weight[0], KEYS, values, pairs, made);
    UNROLL for (int i = 0; i < 2 * rows; i++) {
        float *to = sum + i / 2 * stride + i % 2 * 8;
        __m256 scale = _mm256_mul_ps(_mm256_load_ps(scales + i % 2 * 8), _mm256_set1_ps(at->add[i / 2]));
        _mm256_store_ps(to, _mm256_add_ps(_mm256_mul_ps(_mm256_load_ps(to), _mm256_set1_ps(at->keep[i / 2])),
                                          _mm256_mul_ps(_mm256_cvtepi32_ps(made[i / 2][i % 2]), scale)));
    }
}

AVX2 static void score_avx2(int rows, const int16_t *q, int64_t stride, const int16_t *keys, const float *scales, int64_t pairs,
                            float *out) {
    switch (rows) {
    case 1: score_rows(1, q, stride, keys, scales, pairs, out); break;
    case 2: score_rows(2, q, stride, keys, scales, pairs, out); break;
    case 3: score_rows(3, q, stride, keys, scales, pairs, out); break;
    case 4: score_rows(4, q, stride, keys, scales, pairs, out); break;
    case 5: score_rows(5, q, stride, keys, scales, pairs, out); break;
    case 6: score_rows(6, q, stride, keys, scales, pairs, out); break;
    }
}

AVX2 static void gather_avx2(int rows, const int16_t (*weight)[KEYS], const int16_t *values, const float *scales, int64_t pairs,
                             const struct running *at, float *sum, int64_t stride) {
    switch (rows) {
    case 1: gather_rows(1, weight, values, scales, pairs, at, sum, stride); break;
    case 2: gather_rows(2, weight, values, scales, pairs, at, sum, stride); break;
    case 3: gather_rows(3, weight, values, scales, pairs, at, sum, stride); break;
    case 4: gather_rows(4, weight, values, scales, pairs, at, sum, stride); break;
    case 5: gather_rows(5, weight, values, scales, pairs, at, sum, stride); break;
    case 6: gather_rows(6, weight, values, scales, pairs, at, sum, stride); break;
    }
}

AVX2 INLINE __m256 power8(__m256 x) { /* as `power` */
    const __m256 magic = _mm256_set1_ps(12582912.0f);
    x = _mm256_max_ps(x, _mm256_set1_ps(-120.0f));
    __m256 shifted = _mm256_add_ps(x, magic), f = _mm256_sub_ps(x, _mm256_sub_ps(shifted, magic)), square = _mm256_mul_ps(f, f);
    __m256 a = _mm256_add_ps(_mm256_set1_ps(1.0f), _mm256_mul_ps(f, _mm256_set1_ps(P1)));
    __m256 b = _mm256_add_ps(_mm256_set1_ps(P2), _mm256_mul_ps(f, _mm256_set1_ps(P3)));
    b = _mm256_add_ps(b, _mm256_mul_ps(square, _mm256_set1_ps(P4)));
    __m256i p = _mm256_castps_si256(_mm256_add_ps(a, _mm256_mul_ps(square, b)));
    return _mm256_castsi256_ps(_mm256_add_epi32(p, _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}

AVX2 static void weigh_avx2(int rows, float (*score)[KEYS], int64_t count, int more, int fresh, struct running *at,
                            int16_t (*weight)[KEYS]) {
    const int64_t whole = filled(count + more * (rows - 1));
    for (int r = 0; r < rows; r++, count += more) {
        float *x = score[r];
        fill(x, count, whole, x[0]);
        __m256 most[4], part[4]; /* four sums: one after the other they would wait for each other */
        UNROLL for (int i = 0; i < 4; i++) most[i] = _mm256_load_ps(x + 8 * i), part[i] = _mm256_setzero_ps();
        for (int64_t s = FOUR; s < whole; s += FOUR)
            UNROLL for (int i = 0; i < 4; i++) most[i] = _mm256_max_ps(most[i], _mm256_load_ps(x + s + 8 * i));
        most[0] = _mm256_max_ps(_mm256_max_ps(most[0], most[1]), _mm256_max_ps(most[2], most[3]));
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(most[0]), _mm256_extractf128_ps(most[0], 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        float top = _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
        __m256 tops = _mm256_set1_ps(top), unit = _mm256_set1_ps(at->unit[r]);
        for (int64_t s = 0; s < whole; s += FOUR)
            UNROLL for (int i = 0; i < 4; i++)
                _mm256_store_ps(x + s + 8 * i,
                                power8(_mm256_mul_ps(_mm256_sub_ps(_mm256_load_ps(x + s + 8 * i), tops), unit)));
        fill(x, count, whole, 0);
        for (int64_t s = 0; s < whole; s += FOUR)
            UNROLL for (int i = 0; i < 4; i++) part[i] = _mm256_add_ps(part[i], _mm256_load_ps(x + s + 8 * i));
        part[0] = _mm256_add_ps(_mm256_add_ps(part[0], part[2]), _mm256_add_ps(part[1], part[3]));
        four = _mm_add_ps(_mm256_castps256_ps128(part[0]), _mm256_extractf128_ps(part[0], 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        float sum = _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
        __m256 codes = _mm256_set1_ps(fold(at, r, fresh, top, sum));
        __m256i all = _mm256_setzero_si256();
        for (int64_t s = 0; s < whole; s += 2 * 8) {
            __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(x + s), codes));
            __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(x + s + 8), codes));
            __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
            _mm256_store_si256((__m256i *)(weight[r] + s), both);
            all = _mm256_add_epi32(all, _mm256_madd_epi16(both, _mm256_set1_epi16(1)));
        }
        __m128i few = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
        few = _mm_add_epi32(few, _mm_shuffle_epi32(few, 0x4e));
        few = _mm_add_epi32(few, _mm_shuffle_epi32(few, 0xb1));
        at->total[r] = at->total[r] * at->keep[r] + (float)_mm_cvtsi128_si32(few) * at->add[r];
    }
}

static const struct steps avx2 = {score_avx2, weigh_avx2, gather_avx2};
AVX2 static void pack_avx2(const void *job, int64_t part) { pack_block(job, part); }
AVX2 static void attend_avx2(const void *job, int64_t part) { attend_rows(job, part, &avx2); }
#endif

/* ---------------------------------------------------------------- exported */

#if defined(__x86_64__) /* elsewhere the compiler's vectors of the portable loops have to do */
static int native(void) { return foveal_get_path() > 0; /* AVX-512 has AVX2 as well */ }
#endif

EXPORT int foveal_frames_sizes(int64_t dim, int64_t *sizes) { /* codes of keys, of values, scales of keys, of values */
    if (dim < 1 || dim > MOST_DIM) return BAD_ARGUMENT;
    struct sizes size = sizes_of(dim);
    sizes[0] = size.key_codes, sizes[1] = size.value_codes, sizes[2] = KEYS, sizes[3] = size.channels;
    return DONE;
}

/* Keys and values, rows of heads, to codes: `count` blocks from block `first` on. Strides are in elements. */
EXPORT int foveal_frames_pack(const float *k, const float *v, int64_t stride, int64_t head_stride, int64_t kv_heads, int64_t dim,
                              const float *cosines, const float *sines, const int64_t *blocks, int64_t first, int64_t count,
                              int16_t *keys, int16_t *values, float *key_scales, float *value_scales) {
    atomic_int status = DONE;
    struct frames_job job = {.k = k, .v = v, .cosines = cosines, .sines = sines, .stride = stride, .head_stride = head_stride,
                             .kv_heads = kv_heads, .dim = dim, .blocks = blocks, .first_block = first, .keys = keys,
                             .values = values, .key_scales = key_scales, .value_scales = value_scales, .status = &status};
    if (kv_heads < 1 || dim < 1 || dim > MOST_DIM || (cosines && dim % 2)) return BAD_ARGUMENT;
#if defined(__x86_64__)
    if (native()) run(pack_avx2, &job, count * kv_heads);
    else
#endif
    run(pack_portable, &job, count * kv_heads);
    return atomic_load(&status);
}

/* Groups of queries over packed blocks; see frames_job for `queries` and `causal`. */
EXPORT int foveal_frames_attend(const float *q, int64_t stride, int64_t heads, int64_t kv_heads, int64_t dim,
                                const float *cosines, const float *sines, const int64_t *blocks, const int64_t *queries,
                                int64_t count, int causal, float scale, const int16_t *keys, const int16_t *values,
                                const float *key_scales, const float *value_scales, float *out, int64_t out_stride) {
    atomic_int status = DONE;
    struct frames_job job = {.q = q, .cosines = cosines, .sines = sines, .stride = stride, .heads = heads, .kv_heads = kv_heads,
                             .dim = dim, .blocks = blocks, .queries = queries, .count = count, .causal = causal, .scale = scale,
                             .keys = (int16_t *)keys, .values = (int16_t *)values, .key_scales = (float *)key_scales,
                             .value_scales = (float *)value_scales, .out = out, .out_stride = out_stride, .status = &status};
    if (kv_heads < 1 || heads % kv_heads || dim < 1 || dim > MOST_DIM || (cosines && dim % 2)) return BAD_ARGUMENT;
#if defined(__x86_64__)
    if (native()) run(attend_avx2, &job, count * heads);
    else
#endif
    run(attend_portable, &job, count * heads);
    return atomic_load(&status);
}
