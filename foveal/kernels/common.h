/* What the C sources of the kernels share: numbers, and the pool of threads (foveal_kernels.c has it). */
#ifndef FOVEAL_COMMON_H
#define FOVEAL_COMMON_H

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))
#define UNROLL _Pragma("GCC unroll 16")

/* Instruction sets: a function with one of these is compiled for it, and called where the machine has it. */
#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
/* Keep a sum where it is: left alone, gcc adds integers up as a tree and spills its leaves, at half the speed. */
#define HOLD(x) __asm__("" : "+x"(x))
#elif defined(__aarch64__) && defined(__clang__)
#define DOTPROD __attribute__((target("dotprod")))
#elif defined(__aarch64__)
#define DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

enum { GROUP = 32 }; /* numbers that share a scale */
enum { DONE = 0, NOT_FINITE = 1, TOO_LARGE = 2, BAD_ARGUMENT = 3 };
enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INT8 = 3 };

/* ---------------------------------------------------------------- numbers */

INLINE uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
INLINE float float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* To the nearest integer, halves to the even one, for |x| < 2^22: the addition itself rounds, and vectorises anywhere. */
INLINE float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

INLINE float from_bfloat16(uint16_t h) { return float_of((uint32_t)h << 16); }

/* Exact for every finite value, subnormals too; the caller rules out infinities and NaN. */
INLINE float from_float16(uint16_t h) {
    float magnitude = float_of((uint32_t)(h & 0x7fff) << 13) * 0x1p112f;
    return float_of(bits_of(magnitude) | (uint32_t)(h & 0x8000) << 16);
}

/* Round to nearest even; what is too large becomes infinity (0x7c00). */
INLINE uint16_t to_float16(float x) {
    uint32_t u = bits_of(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude < 0x38800000) /* below 2^-14: a multiple of 2^-24 */
        return (uint16_t)(sign | (uint32_t)nearest(float_of(magnitude) * 0x1p24f));
    magnitude += 0xfff + (magnitude >> 13 & 1);
    uint32_t half = (magnitude - (112u << 23)) >> 13;
    return (uint16_t)(sign | (half > 0x7c00 ? 0x7c00 : half));
}

/* Round to nearest even, as torch does; the caller rules out NaN. */
INLINE uint16_t to_bfloat16(float x) { return (uint16_t)((bits_of(x) + 0x7fff + (bits_of(x) >> 16 & 1)) >> 16); }

/* e^x within 2e-7 of its value: x = n ln 2 + f, a Taylor polynomial of f, and n put into the exponent. The polynomial is
 * added up in pairs: one term after the other would take twice as long, each waiting for the last. */
INLINE float exponential_within(float x) { /* -87 to 88 */
    float n = nearest(x * 1.44269504f);
    float f = (x - n * 0.693359375f) + n * 2.12194440e-4f, square = f * f;
    float a = 1.0f / 2 + f * (1.0f / 6), b = 1.0f / 24 + f * (1.0f / 120), c = 1.0f / 720 + f * (1.0f / 5040);
    float p = (1.0f + f) + square * (a + square * (b + square * c));
    return p * float_of((uint32_t)((int32_t)n + 127) << 23);
}

INLINE float exponential(float x) { return exponential_within(x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x); }

/* The larger of x and a number below zero, the smaller of x and one above: floats of one sign order as integers do, signed ones
 * for the second. Of comparisons of floats gcc 12 makes branches, and of these twice the work. */
INLINE float at_least(float x, float low) { return float_of(bits_of(x) < bits_of(low) ? bits_of(x) : bits_of(low)); }
INLINE float at_most(float x, float high) {
    int32_t a = (int32_t)bits_of(x), b = (int32_t)bits_of(high);
    return float_of((uint32_t)(a < b ? a : b));
}

/* 1 + e^x, by which a logistic function divides; NaN becomes a number, which what is divided still knows. */
INLINE float one_and_exponential(float x) { return 1.0f + exponential_within(at_most(at_least(x, -87.0f), 88.0f)); }

/* x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, which is x times a logistic function. */
INLINE float gelu(float x) {
    x = x < -1e4f ? -1e4f : x; /* what is further down is zero as well, and its cube would overflow */
    return x / one_and_exponential(-1.59576912f * (x + 0.044715f * x * x * x));
}

/* ---------------------------------------------------------------- threads */

typedef void part_fn(const void *job, int64_t part);

/* Do all parts of a job, on all threads of the pool. */
void run(part_fn *fn, const void *job, int64_t parts);

/* The instruction set in use: 0 is portable C, 1 on x86 AVX2, 2 AVX-512 (which has AVX2 as well); elsewhere Arm's. */
EXPORT int foveal_get_path(void);

/* ---------------------------------------------------------------- the cache of keys and values (cache.c)
 *
 * Jobs of one sequence and layer; strides are in elements. A part of the first is a key-value head, of the second CACHE_ROWS
 * rows of a head.
 */

enum { MOST_SHARED = 32, MOST_DIM = 256, CACHE_ROWS = 64 };

struct attend_job {
    const float *q;
    const void *keys, *values;
    const uint16_t *key_scales, *value_scales;
    int type;
    int64_t heads, kv_heads, positions, dim, key_stride, value_stride, key_scale_stride, value_scale_stride;
    float scale;
    float *out;
};

struct cache_job {
    const float *x;
    int64_t rows, heads, dim, row_stride, head_stride;
    int8_t *codes;
    uint16_t *scales;
    int64_t code_stride, scale_stride;
    atomic_int *status;
};

void attend_head(const void *job, int64_t kv_head);
void quantise_cache(const void *job, int64_t part);

#endif
