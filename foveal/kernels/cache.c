/* The cache of keys and values: its rows in 8 bits, and the attention of one token to it.
 *
 * A key-value head's keys are rows behind one another, and so are its values: float32, bfloat16, or 8-bit codes with a float16
 * scale for every GROUP numbers. All query heads that share a head of the cache read it together, POSITIONS rows of keys and then
 * as many of values at a time, with the softmax kept running: every byte is read from memory once, and that is what a token
 * after a long prompt waits for.
 *
 * Loops are plain C over short fixed lengths, compiled for each instruction set by the macro EACH_TARGET; without fused
 * multiply-add and without reordering, so that all give the same bits.
 */
#define _GNU_SOURCE
#include "common.h"

enum { POSITIONS = 64, TOGETHER = 4, ROWS_AHEAD = 16 };

/* ---------------------------------------------------------------- loops for any compiler */

/* One row of the cache to 8 bits, a float16 scale a group. */
INLINE int quantise_cache_row(const float *x, int64_t dim, int8_t *codes, uint16_t *scales) {
    for (int64_t from = 0; from < dim; from += GROUP) {
        float v[GROUP] = {0};
        int64_t count = least(GROUP, dim - from);
        if (count == GROUP) memcpy(v, x + from, sizeof v);
        else memcpy(v, x + from, (size_t)count * 4);
        uint32_t top = 0; /* as in quantise_group */
        for (int i = 0; i < GROUP; i++) {
            uint32_t magnitude = bits_of(v[i]) & 0x7fffffff;
            top = magnitude > top ? magnitude : top;
        }
        if (top >= 0x7f800000) return NOT_FINITE;
        uint16_t half = to_float16(float_of(top) / 127.0f);
        if (half == 0x7c00) return TOO_LARGE;
        *scales++ = half;
        float scale = from_float16(half), inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
        int8_t made[GROUP];
        for (int i = 0; i < GROUP; i++) { /* a scale that was rounded down would make 128 of the largest */
            float y = v[i] * inverse;
            made[i] = (int8_t)(int32_t)nearest(y < -127.0f ? -127.0f : y > 127.0f ? 127.0f : y);
        }
        if (count == GROUP) memcpy(codes + from, made, sizeof made);
        else memcpy(codes + from, made, (size_t)count);
    }
    return DONE;
}

/* A span of rows of the cache, in each of some heads; see foveal_quantise_cache. */
INLINE void cache_part(const void *context, int64_t part) {
    const struct cache_job *job = context;
    int64_t groups = (job->dim + GROUP - 1) / GROUP, head = part % job->heads, first = part / job->heads * CACHE_ROWS;
    for (int64_t at = first; at < least(first + CACHE_ROWS, job->rows); at++) {
        int status = quantise_cache_row(job->x + at * job->row_stride + head * job->head_stride, job->dim,
                                        job->codes + head * job->code_stride + at * job->dim,
                                        job->scales + head * job->scale_stride + at * groups);
        if (status) {
            atomic_store(job->status, status);
            return;
        }
    }
}

/* Eight numbers; gcc and clang lower these to the vectors there are (gcc 12 does sixteen badly). */
typedef float float8s __attribute__((vector_size(32), may_alias));
typedef float float8s_anywhere __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t words8 __attribute__((vector_size(32)));
typedef int32_t words8_anywhere __attribute__((vector_size(32), aligned(1), may_alias));
typedef float float4s __attribute__((vector_size(16)));

/* A quarter of group `g` of a row of the cache, eight numbers. Narrow numbers are cut out of 32-bit words by shifts, which every
 * instruction set has, and so come in another order: see `place`. */
INLINE void quarter(const int type, const char *row, int64_t g, const int i, float8s *to) {
    if (type == FLOAT32) {
        *to = *(const float8s_anywhere *)(row + 4 * (g * GROUP + 8 * i));
    } else {
        words8 pairs = *(const words8_anywhere *)(row + 2 * (g * GROUP + i / 2 * 16));
        *to = (float8s)(i % 2 ? pairs & (int32_t)0xffff0000 : pairs << 16);
    }
}

/* Where number i of a row stands among the quarters of its groups. */
INLINE int64_t place(const int type, int64_t i) {
    int64_t in = i % GROUP;
    if (type == BFLOAT16) in = in / 16 * 16 + in % 2 * 8 + in % 16 / 2;
    return i / GROUP * GROUP + in;
}

/* A row of the cache that can be read in whole groups: itself, or, where it ends inside one, a copy with zeros behind it. */
INLINE const char *whole_row(const char *row, int64_t dim, int64_t size, char *copy) {
    if (dim % GROUP == 0) return row;
    for (int64_t i = 0; i < dim * size; i++) copy[i] = row[i];
    return copy;
}

/* Ask for the row that many rows after this one. */
INLINE void fetch_ahead(const char *row, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + ROWS_AHEAD * bytes + at);
}

struct span { /* up to POSITIONS rows of keys, or of values, of one key-value head */
    const char *rows;
    const uint16_t *scales; /* of INT8 */
    int64_t count, dim, groups;
};

INLINE int64_t size_of(const int type) { return type == FLOAT32 ? 4 : type == BFLOAT16 ? 2 : 1; }

INLINE float sum_of(const float8s *x) {
    float4s low, high;
    memcpy(&low, x, 16), memcpy(&high, (const char *)x + 16, 16);
    low += high;
    return (low[0] + low[2]) + (low[1] + low[3]);
}

/* Scores of some query heads, q (heads, groups * GROUP), with a span of keys. */
INLINE void score_span(const int type, const int heads, const struct span *keys, const float *q, float (*score)[POSITIONS]) {
    const int64_t padded = keys->groups * GROUP, bytes = keys->dim * size_of(type);
    ALIGNED char copy[4 * MOST_DIM];
    if (keys->dim % GROUP) memset(copy, 0, sizeof copy);
    for (int64_t s = 0; s < keys->count; s++) {
        fetch_ahead(keys->rows + s * bytes, bytes);
        const char *row = whole_row(keys->rows + s * bytes, keys->dim, size_of(type), copy);
        float8s sum[2] = {{0}};
        for (int64_t g = 0; g < keys->groups; g++) {
            float8s k[4];
            UNROLL for (int i = 0; i < 4; i++) quarter(type, row, g, i, k + i);
            UNROLL for (int r = 0; r < heads; r++) {
                const float8s *with = (const float8s *)(q + r * padded + g * GROUP);
                sum[r] += (with[0] * k[0] + with[1] * k[1]) + (with[2] * k[2] + with[3] * k[3]);
            }
        }
        UNROLL for (int r = 0; r < heads; r++) score[r][s] = sum_of(sum + r);
    }
}

/* Add a span of values, each times its score, to sums (heads, groups * GROUP): TOGETHER values at a time, so that sums are
 * loaded and stored once for these. */
INLINE void add_span(const int type, const int heads, const struct span *values, float (*score)[POSITIONS], float *sum) {
    const int64_t padded = values->groups * GROUP, bytes = values->dim * size_of(type);
    static const ALIGNED char none[4 * MOST_DIM];
    ALIGNED char copies[TOGETHER][4 * MOST_DIM];
    if (values->dim % GROUP) memset(copies, 0, sizeof copies);
    for (int64_t s = 0; s < values->count; s += TOGETHER) {
        const char *rows[TOGETHER];
        UNROLL for (int j = 0; j < TOGETHER; j++) {
            const char *row = values->rows + (s + j) * bytes;
            fetch_ahead(row, bytes);
            rows[j] = s + j < values->count ? whole_row(row, values->dim, size_of(type), copies[j]) : none;
        }
        for (int64_t g = 0; g < values->groups; g++) {
            UNROLL for (int i = 0; i < 4; i++) {
                float8s v[TOGETHER];
                UNROLL for (int j = 0; j < TOGETHER; j++) quarter(type, rows[j], g, i, v + j);
                UNROLL for (int r = 0; r < heads; r++) {
                    const float *w = score[r] + s;
                    float8s *to = (float8s *)(sum + r * padded + g * GROUP) + i;
                    *to += (w[0] * v[0] + w[1] * v[1]) + (w[2] * v[2] + w[3] * v[3]);
                }
            }
        }
    }
}

/* A cache of 8 bits is not made wide: queries, and the softmax's weights times the scales of values, become 16-bit codes, and
 * their products with the cache's codes are summed as integers, a group of a key or a span of values at a time. The two steps for
 * up to two heads are made by hand for an instruction set; all give the same bits.
 * score: q (heads, MOST_DIM) codes with one scale a head. add: codes (heads, groups, POSITIONS) of weights, zeros behind the last,
 * and what one is worth in each group, to sums (heads, groups * GROUP). */
struct code_steps {
    void (*score)(int heads, const struct span *keys, const int16_t (*q)[MOST_DIM], const float *q_scales,
                  float (*score)[POSITIONS]);
    void (*add)(int heads, const struct span *values, const int16_t (*codes)[MOST_DIM / GROUP][POSITIONS],
                const float (*worth)[MOST_DIM / GROUP], float *sum);
};

/* What numbers up to `most` are multiplied with to become 16-bit codes; 0 for what is so small that the inverse overflowed. */
INLINE float code_unit(float most) { return most < 0x1p-100f ? 0.0f : 32767.0f / most; }

/* A query of `dim` numbers to codes, zeros behind them; return what one is worth. */
INLINE float query_codes(const float *q, int64_t dim, float scale, int16_t *codes) {
    float most = 0;
    for (int64_t i = 0; i < dim; i++) {
        float magnitude = float_of(bits_of(q[i]) & 0x7fffffff);
        most = magnitude > most ? magnitude : most;
    }
    float unit = code_unit(most);
    memset(codes, 0, 2 * MOST_DIM);
    for (int64_t i = 0; i < dim; i++) codes[i] = (int16_t)(int32_t)nearest(q[i] * unit);
    return unit == 0.0f ? 0.0f : most / 32767.0f * scale;
}

/* The weights of a span, each times the scales of its value, to codes. */
INLINE void weight_codes(const struct span *values, const float *score, int16_t (*codes)[POSITIONS], float *worth) {
    float scales[POSITIONS * MOST_DIM / GROUP];
    for (int64_t i = 0; i < values->count * values->groups; i++) scales[i] = from_float16(values->scales[i]);
    for (int64_t g = 0; g < values->groups; g++) {
        float weight[POSITIONS] = {0}, lanes[8] = {0}, most = 0;
        for (int64_t s = 0; s < values->count; s++) weight[s] = score[s] * scales[s * values->groups + g];
        for (int s = 0; s < POSITIONS; s += 8)
            for (int i = 0; i < 8; i++) {
                float magnitude = float_of(bits_of(weight[s + i]) & 0x7fffffff);
                lanes[i] = magnitude > lanes[i] ? magnitude : lanes[i];
            }
        for (int i = 0; i < 8; i++) most = lanes[i] > most ? lanes[i] : most;
        float unit = code_unit(most);
        for (int s = 0; s < POSITIONS; s++) codes[g][s] = (int16_t)(int32_t)nearest(weight[s] * unit);
        worth[g] = unit == 0.0f ? 0.0f : most / 32767.0f;
    }
}

/* The same for any number of heads: two at a time, so that what is cut out of a row serves both. */
#define BY_HEADS(call)                               \
    do {                                             \
        int64_t r = 0;                               \
        for (; r + 2 <= shared; r += 2) { call(2); } \
        if (r < shared) { call(1); }                 \
    } while (0)

/* One key-value head and all query heads that share it: every key and value is read from memory once. The softmax is kept
 * running: `peak` is the largest score so far, and what was summed under a smaller one is scaled down when it grows. */
INLINE void attend_typed(const int type, const struct attend_job *job, int64_t head, const struct code_steps *steps) {
    const int64_t shared = job->heads / job->kv_heads, dim = job->dim, groups = (dim + GROUP - 1) / GROUP, padded = groups * GROUP;
    const int64_t bytes = dim * size_of(type);
    const char *keys = (const char *)job->keys + head * job->key_stride * size_of(type);
    const char *values = (const char *)job->values + head * job->value_stride * size_of(type);
    const uint16_t *key_scales = type == INT8 ? job->key_scales + head * job->key_scale_stride : NULL;
    const uint16_t *value_scales = type == INT8 ? job->value_scales + head * job->value_scale_stride : NULL;
    ALIGNED float q[MOST_SHARED * MOST_DIM], sum[MOST_SHARED * MOST_DIM];
    float score[MOST_SHARED][POSITIONS], peak[MOST_SHARED], total[MOST_SHARED];
    ALIGNED int16_t q_codes[MOST_SHARED][MOST_DIM], codes[2][MOST_DIM / GROUP][POSITIONS]; /* of INT8 */
    float q_scales[MOST_SHARED], worth[2][MOST_DIM / GROUP];
    memset(q, 0, (size_t)(shared * padded) * 4);
    memset(sum, 0, (size_t)(shared * padded) * 4);
    for (int64_t r = 0; r < shared; r++) {
        const float *own = job->q + (head * shared + r) * dim;
        if (type == INT8) q_scales[r] = query_codes(own, dim, job->scale, q_codes[r]);
        else for (int64_t i = 0; i < dim; i++) q[r * padded + place(type, i)] = own[i] * job->scale;
        peak[r] = -INFINITY;
        total[r] = 0;
    }
    for (int64_t first = 0; first < job->positions; first += POSITIONS) {
        int64_t count = least(POSITIONS, job->positions - first);
        struct span k = {keys + first * bytes, type == INT8 ? key_scales + first * groups : NULL, count, dim, groups};
        struct span v = {values + first * bytes, type == INT8 ? value_scales + first * groups : NULL, count, dim, groups};
#define SCORE(heads)                                                                                           \
    if (type == INT8) steps->score(heads, &k, (const int16_t(*)[MOST_DIM])q_codes + r, q_scales + r, score + r); \
    else score_span(type, heads, &k, q + r * padded, score + r)
        BY_HEADS(SCORE);
#undef SCORE
        for (int64_t r = 0; r < shared; r++) {
            float top = peak[r], most[8], part[8] = {0}; /* in eight lanes: one after the other they would wait for each other */
            for (int64_t s = count; s < POSITIONS; s++) score[r][s] = -INFINITY;
            for (int i = 0; i < 8; i++) most[i] = top;
            for (int s = 0; s < POSITIONS; s += 8)
                for (int i = 0; i < 8; i++) most[i] = score[r][s + i] > most[i] ? score[r][s + i] : most[i];
            for (int i = 0; i < 8; i++) top = most[i] > top ? most[i] : top;
            if (top > peak[r]) {
                float shrink = first ? exponential(peak[r] - top) : 0.0f;
                total[r] *= shrink;
                for (int64_t i = 0; i < padded; i++) sum[r * padded + i] *= shrink;
                peak[r] = top;
            }
            for (int s = 0; s < POSITIONS; s++) score[r][s] = exponential(score[r][s] - top);
            for (int64_t s = count; s < POSITIONS; s++) score[r][s] = 0;
            for (int s = 0; s < POSITIONS; s += 8)
                for (int i = 0; i < 8; i++) part[i] += score[r][s + i];
            for (int i = 0; i < 8; i++) total[r] += part[i];
        }
#define ADD(heads)                                                                                                           \
    if (type == INT8) {                                                                                                      \
        for (int i = 0; i < heads; i++) weight_codes(&v, score[r + i], codes[i], worth[i]);                                  \
        steps->add(heads, &v, (const int16_t(*)[MOST_DIM / GROUP][POSITIONS])codes, (const float(*)[MOST_DIM / GROUP])worth, \
                   sum + r * padded);                                                                                        \
    } else add_span(type, heads, &v, score + r, sum + r * padded)
        BY_HEADS(ADD);
#undef ADD
    }
    for (int64_t r = 0; r < shared; r++)
        for (int64_t i = 0; i < dim; i++) job->out[(head * shared + r) * dim + i] = sum[r * padded + place(type, i)] / total[r];
}

INLINE void attend_part(const void *context, int64_t head, const struct code_steps *steps) {
    const struct attend_job *job = context;
    if (job->type == FLOAT32) attend_typed(FLOAT32, job, head, NULL);
    else if (job->type == BFLOAT16) attend_typed(BFLOAT16, job, head, NULL);
    else attend_typed(INT8, job, head, steps);
}

/* ---------------------------------------------------------------- a cache of 8 bits: portable C */

static void score_codes(int heads, const struct span *keys, const int16_t (*q)[MOST_DIM], const float *q_scales,
                        float (*score)[POSITIONS]) {
    char copy[MOST_DIM] = {0};
    for (int64_t s = 0; s < keys->count; s++) {
        const int8_t *row = (const int8_t *)whole_row(keys->rows + s * keys->dim, keys->dim, 1, copy);
        for (int r = 0; r < heads; r++) {
            float8s sum = {0};
            for (int64_t g = 0; g < keys->groups; g++) {
                const int8_t *k = row + g * GROUP;
                const int16_t *with = q[r] + g * GROUP;
                float scale = from_float16(keys->scales[s * keys->groups + g]);
                for (int i = 0; i < 8; i++) {
                    int32_t low = with[2 * i] * k[2 * i] + with[2 * i + 1] * k[2 * i + 1];
                    int32_t high = with[2 * i + 16] * k[2 * i + 16] + with[2 * i + 17] * k[2 * i + 17];
                    sum[i] += (float)(low + high) * scale;
                }
            }
            score[r][s] = sum_of(&sum) * q_scales[r];
        }
    }
}

static void add_codes(int heads, const struct span *values, const int16_t (*codes)[MOST_DIM / GROUP][POSITIONS],
                      const float (*worth)[MOST_DIM / GROUP], float *sum) {
    for (int r = 0; r < heads; r++)
        for (int64_t i = 0; i < values->dim; i++) {
            int32_t all = 0;
            for (int64_t s = 0; s < values->count; s++)
                all += codes[r][i / GROUP][s] * ((const int8_t *)values->rows)[s * values->dim + i];
            sum[r * values->groups * GROUP + i] += (float)all * worth[r][i / GROUP];
        }
}

static const struct code_steps any_steps = {score_codes, add_codes};

/* ---------------------------------------------------------------- a cache of 8 bits: AVX2, which AVX-512 has as well */

#if defined(__x86_64__)

AVX2 INLINE void score_heads(const int heads, const struct span *keys, const int16_t (*q)[MOST_DIM], const float *q_scales,
                             float (*score)[POSITIONS]) {
    char copy[MOST_DIM] = {0};
    float scales[POSITIONS * MOST_DIM / GROUP];
    for (int64_t i = 0; i < keys->count * keys->groups; i++) scales[i] = from_float16(keys->scales[i]);
    for (int64_t s = 0; s < keys->count; s++) {
        fetch_ahead(keys->rows + s * keys->dim, keys->dim);
        const char *row = whole_row(keys->rows + s * keys->dim, keys->dim, 1, copy);
        __m256 sum[2];
        UNROLL for (int r = 0; r < heads; r++) sum[r] = _mm256_setzero_ps();
        for (int64_t g = 0; g < keys->groups; g++) {
            __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(row + g * GROUP)));
            __m256i high = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(row + g * GROUP + 16)));
            __m256 scale = _mm256_set1_ps(scales[s * keys->groups + g]);
            UNROLL for (int r = 0; r < heads; r++) {
                const __m256i *with = (const __m256i *)(q[r] + g * GROUP);
                __m256i both = _mm256_add_epi32(_mm256_madd_epi16(low, _mm256_load_si256(with)),
                                                _mm256_madd_epi16(high, _mm256_load_si256(with + 1)));
                sum[r] = _mm256_add_ps(sum[r], _mm256_mul_ps(_mm256_cvtepi32_ps(both), scale));
            }
        }
        UNROLL for (int r = 0; r < heads; r++) score[r][s] = sum_of((const float8s *)(sum + r)) * q_scales[r];
    }
}

AVX2 INLINE void add_heads(const int heads, const struct span *values, const int16_t (*codes)[MOST_DIM / GROUP][POSITIONS],
                           const float (*worth)[MOST_DIM / GROUP], float *sum) {
    const int64_t dim = values->dim, padded = values->groups * GROUP;
    char copies[2][MOST_DIM] = {{0}};
    static const char none[MOST_DIM];
    for (int64_t g = 0; g < values->groups; g++) {
        __m256i all[2][4];
        UNROLL for (int i = 0; i < 4 * heads; i++) all[i / 4][i % 4] = _mm256_setzero_si256();
        for (int64_t s = 0; s < values->count; s += 2) {
            const char *row = values->rows + s * dim, *next = s + 1 < values->count ? row + dim : none;
            if (g == 0) fetch_ahead(row, 2 * dim);
            if (dim % GROUP) row = whole_row(row, dim, 1, copies[0]), next = next == none ? none : whole_row(next, dim, 1, copies[1]);
            __m256i a = _mm256_loadu_si256((const __m256i *)(row + g * GROUP));
            __m256i b = _mm256_loadu_si256((const __m256i *)(next + g * GROUP));
            __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b), v[4];
            v[0] = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(low)), v[1] = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(high));
            v[2] = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(low, 1)), v[3] = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(high, 1));
            UNROLL for (int r = 0; r < heads; r++) {
                int32_t pair;
                memcpy(&pair, codes[r][g] + s, 4);
                UNROLL for (int i = 0; i < 4; i++)
                    all[r][i] = _mm256_add_epi32(all[r][i], _mm256_madd_epi16(v[i], _mm256_set1_epi32(pair)));
            }
        }
        UNROLL for (int i = 0; i < 4 * heads; i++) {
            float *to = sum + i / 4 * padded + g * GROUP + i % 4 * 8;
            __m256 one = _mm256_set1_ps(worth[i / 4][g]);
            _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), _mm256_mul_ps(_mm256_cvtepi32_ps(all[i / 4][i % 4]), one)));
        }
    }
}

AVX2 static void score_codes_avx2(int heads, const struct span *keys, const int16_t (*q)[MOST_DIM], const float *q_scales,
                                  float (*score)[POSITIONS]) {
    if (heads == 2) score_heads(2, keys, q, q_scales, score);
    else score_heads(1, keys, q, q_scales, score);
}

AVX2 static void add_codes_avx2(int heads, const struct span *values, const int16_t (*codes)[MOST_DIM / GROUP][POSITIONS],
                                const float (*worth)[MOST_DIM / GROUP], float *sum) {
    if (heads == 2) add_heads(2, values, codes, worth, sum);
    else add_heads(1, values, codes, worth, sum);
}

static const struct code_steps avx2_steps = {score_codes_avx2, add_codes_avx2};
#endif

/* ---------------------------------------------------------------- the choice of an instruction set */

#define EACH_TARGET(name, target, steps)                                                                \
    target static void attend_##name(const void *job, int64_t part) { attend_part(job, part, &steps); } \
    target static void cache_##name(const void *job, int64_t part) { cache_part(job, part); }

EACH_TARGET(portable, , any_steps)
#if defined(__x86_64__)
EACH_TARGET(avx2, AVX2, avx2_steps)
EACH_TARGET(avx512, AVX512, avx2_steps)
static part_fn *const attends[] = {attend_portable, attend_avx2, attend_avx512};
static part_fn *const quantises[] = {cache_portable, cache_avx2, cache_avx512};
#elif defined(__aarch64__)
EACH_TARGET(dotprod, DOTPROD, any_steps)
static part_fn *const attends[] = {attend_portable, attend_dotprod};
static part_fn *const quantises[] = {cache_portable, cache_dotprod};
#else
static part_fn *const attends[] = {attend_portable};
static part_fn *const quantises[] = {cache_portable};
#endif

void attend_head(const void *job, int64_t kv_head) { attends[foveal_get_path()](job, kv_head); }
void quantise_cache(const void *job, int64_t part) { quantises[foveal_get_path()](job, part); }

/* ---------------------------------------------------------------- exported */

/* One token's attention: q (heads, dim) over keys and values (kv_heads, positions, dim), the last two axes dense;
 * for INT8 float16 scales (kv_heads, positions, groups of 32 of dim). out (heads, dim). */
EXPORT int foveal_attend(const float *q, const void *keys, const void *values, int type, const uint16_t *key_scales,
                         const uint16_t *value_scales, int64_t heads, int64_t kv_heads, int64_t positions, int64_t dim,
                         int64_t key_stride, int64_t value_stride, int64_t key_scale_stride, int64_t value_scale_stride,
                         float scale, float *out) {
    if (kv_heads < 1 || heads % kv_heads || heads / kv_heads > MOST_SHARED || dim < 1 || dim > MOST_DIM || positions < 1)
        return BAD_ARGUMENT;
    if (type == FLOAT16 || type < FLOAT32 || type > INT8 || (type == INT8 && (!key_scales || !value_scales))) return BAD_ARGUMENT;
    struct attend_job job = {q, keys, values, key_scales, value_scales, type, heads, kv_heads, positions, dim, key_stride,
                             value_stride, key_scale_stride, value_scale_stride, scale, out};
    run(attends[foveal_get_path()], &job, kv_heads);
    return DONE;
}

/* Keys or values to 8 bits: x (heads, rows, dim), dim dense -> codes (heads, rows, dim), float16 scales (heads, rows, groups of
 * 32), of both the last two axes dense. */
EXPORT int foveal_quantise_cache(const float *x, int64_t heads, int64_t rows, int64_t dim, int64_t head_stride,
                                 int64_t row_stride, int8_t *codes, uint16_t *scales, int64_t code_stride,
                                 int64_t scale_stride) {
    if (heads < 0 || rows < 0 || dim < 1) return BAD_ARGUMENT;
    atomic_int status = DONE;
    struct cache_job job = {x, rows, heads, dim, row_stride, head_stride, codes, scales, code_stride, scale_stride, &status};
    run(quantises[foveal_get_path()], &job, (rows + CACHE_ROWS - 1) / CACHE_ROWS * heads);
    return atomic_load(&status);
}
