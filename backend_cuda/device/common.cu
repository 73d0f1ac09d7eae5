/* What every generated kernel begins with. CUDA C that is C as well: the tests compile the same text for the CPU, where RAX_EMULATED is defined
 * and the names of the first section come from the emulator. So: no templates, no references, no overloads. */

/* -- the machine ------------------------------------------------------------------------------------------------------- */

#ifndef RAX_EMULATED
#define RAX_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define RAX_DEVICE static __device__ __forceinline__
#if __CUDACC_VER_MAJOR__ > 11 || (__CUDACC_VER_MAJOR__ == 11 && __CUDACC_VER_MINOR__ >= 7)
#define RAX_CONSTANT const __grid_constant__
#else
#define RAX_CONSTANT const
#endif
#define RAX_SHARED __shared__
#define RAX_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define RAX_ALIGN(bytes) __align__(bytes)
#define RAX_UNROLL _Pragma("unroll")
#define RAX_UNROLL_4 _Pragma("unroll 4")
#define rax_block_wait() __syncthreads()
#define rax_warp_wait() __syncwarp()
#define rax_shuffle_f32(value, mask) __shfl_xor_sync(0xffffffffu, value, mask)
#define rax_shuffle_f64(value, mask) __shfl_xor_sync(0xffffffffu, value, mask)
#define rax_shuffle_i32(value, mask) __shfl_xor_sync(0xffffffffu, value, mask)
#define rax_bits_of_f32(value) __float_as_uint(value)
#define rax_f32_of_bits(bits) __uint_as_float(bits)
#define rax_multiply_high(a, b) __umulhi(a, b)
#endif

typedef unsigned short rax_u16;
typedef unsigned int rax_u32;
typedef long long rax_i64;
typedef unsigned long long rax_u64;

#define RAX_INFINITY rax_f32_of_bits(0x7f800000u)
#define RAX_NAN      rax_f32_of_bits(0x7fc00000u)

/* Vectors of memory: one access where a vector has up to 16 bytes. */
#define RAX_VECTOR(name, type, count, bytes) typedef struct RAX_ALIGN(bytes) { type v[count]; } name
RAX_VECTOR(rax_f32x2, float, 2, 8);
RAX_VECTOR(rax_f32x4, float, 4, 16);
RAX_VECTOR(rax_f32x8, float, 8, 16);
RAX_VECTOR(rax_f64x2, double, 2, 16);
RAX_VECTOR(rax_f64x4, double, 4, 16);
RAX_VECTOR(rax_f64x8, double, 8, 16);
RAX_VECTOR(rax_i32x2, int, 2, 8);
RAX_VECTOR(rax_i32x4, int, 4, 16);
RAX_VECTOR(rax_i32x8, int, 8, 16);
RAX_VECTOR(rax_bf16x2, rax_u16, 2, 4);
RAX_VECTOR(rax_bf16x4, rax_u16, 4, 8);
RAX_VECTOR(rax_bf16x8, rax_u16, 8, 16);
RAX_VECTOR(rax_twox1, rax_u32, 1, 4);             /* of two in bf16 */
RAX_VECTOR(rax_twox2, rax_u32, 2, 8);
RAX_VECTOR(rax_twox4, rax_u32, 4, 16);
RAX_VECTOR(rax_boolx2, unsigned char, 2, 2);
RAX_VECTOR(rax_boolx4, unsigned char, 4, 4);
RAX_VECTOR(rax_boolx8, unsigned char, 8, 8);

/* -- values ------------------------------------------------------------------------------------------------------------ */

/* bf16 in registers is the f32 that it is equal to. */
RAX_DEVICE float rax_from_bf16(rax_u16 x) { return rax_f32_of_bits((rax_u32)x << 16); }
RAX_DEVICE rax_u16 rax_to_bf16(float x)
{
#if !defined RAX_EMULATED && __CUDA_ARCH__ >= 800
    rax_u16 rounded;                                          /* one instruction in place of six; a NaN is 0x7fff */
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
    return rounded;
#else
    rax_u32 bits = rax_bits_of_f32(x);
    return x != x ? (rax_u16)(bits >> 16 | 0x40) : (rax_u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
}
RAX_DEVICE float rax_round_bf16(float x) { return rax_from_bf16(rax_to_bf16(x)); }
/* Two at once, the first in the lower half. */
RAX_DEVICE rax_u32 rax_two_to_bf16(float x, float y)
{
#if !defined RAX_EMULATED && __CUDA_ARCH__ >= 800
    rax_u32 two;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(y), "f"(x));
    return two;
#else
    return rax_to_bf16(x) | (rax_u32)rax_to_bf16(y) << 16;
#endif
}

/* 2^x as the card has it, to 2 units in the last place; below 2^-126 it is 0. */
RAX_DEVICE float rax_exp2(float x)
{
#if !defined RAX_EMULATED
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

/* exp(x), x being no more than 0, as below a row's greatest element: within 2e-7 of 1, if not of the result, for x log2(e) is rounded (by 7e-8 of it, and |x| exp(x) is no
 * more than 0.37). Three instructions, where expf has eight. */
RAX_DEVICE float rax_exp_below_f32(float x)
{
#if !defined RAX_EMULATED
    return rax_exp2(x * 1.44269504f);
#else
    return expf(x);
#endif
}
RAX_DEVICE double rax_exp_below_f64(double x) { return exp(x); }

#define RAX_FLOATS(type, name, c)                                                                                \
    RAX_DEVICE type rax_max_##name(type x, type y) { return x > y || x != x ? x : y; }                           \
    RAX_DEVICE type rax_min_##name(type x, type y) { return x < y || x != x ? x : y; }                           \
    RAX_DEVICE type rax_sign_##name(type x) { return x > 0 ? 1 : x < 0 ? -1 : x; }                               \
    RAX_DEVICE type rax_sigmoid_##name(type x) { return 1 / (1 + exp##c(-x)); }                                  \
    RAX_DEVICE type rax_sum_##name(type x, type y) { return x + y; }                                             \
    /* A sum of exp(x - from) as one of exp(x - to), to being no less: what was below -infinity, which is NaN, is nothing below a number. */ \
    RAX_DEVICE type rax_rescale_##name(type sum, type from, type to)                                             \
    {                                                                                                            \
        return from == to ? sum : from == -(type)RAX_INFINITY ? 0 : sum * rax_exp_below_##name(from - to);            \
    }                                                                                                            \
    RAX_DEVICE int rax_i32_of_##name(type x)                                                                     \
    {                                                                                                            \
        return x != x ? 0 : x >= (type)2147483648.0 ? 2147483647 : x <= (type)-2147483648.0 ? -2147483647 - 1 : (int)x; \
    }
RAX_FLOATS(float, f32, f)
RAX_FLOATS(double, f64, )

/* The greatest along a row, NaN where there is one; which of 0 and -0 depends on how the row is shared out. */
RAX_DEVICE float rax_most_f32(float x, float y)
{
#if !defined RAX_EMULATED && __CUDA_ARCH__ >= 800
    float most;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(x), "f"(y));
    return most;
#else
    return rax_max_f32(x, y);
#endif
}

/* x with erf(x) = y: a start within 3e-3 (Winitzki), then Halley steps, on erfc near the ends. */
RAX_DEVICE double rax_erf_inv_f64(double y)
{
    double size = fabs(y), rest = 1 - size, log_rest = log1p(-y * y), b = 4.3307467508027 + log_rest / 2;
    double x = sqrt(sqrt(b * b - log_rest / 0.147) - b);
    if (!(size < 1))
        return size == 1 ? (y > 0 ? (double)RAX_INFINITY : -(double)RAX_INFINITY) : (double)RAX_NAN;
    for (int i = 0; i < 3; i++) {
        double error = rest < 0.5 ? rest - erfc(x) : erf(x) - size;
        double step = error / (1.1283791670955126 * exp(-x * x));
        x -= step / (1 + x * step);
    }
    return y < 0 ? -x : x;
}
RAX_DEVICE float rax_erf_inv_f32(float y) { return (float)rax_erf_inv_f64((double)y); }

RAX_DEVICE int rax_add_i32(int x, int y) { return (int)((rax_u32)x + (rax_u32)y); }
RAX_DEVICE int rax_sub_i32(int x, int y) { return (int)((rax_u32)x - (rax_u32)y); }
RAX_DEVICE int rax_mul_i32(int x, int y) { return (int)((rax_u32)x * (rax_u32)y); }
RAX_DEVICE int rax_div_i32(int x, int y) { return y == 0 ? 0 : y == -1 ? rax_sub_i32(0, x) : x / y; }
RAX_DEVICE int rax_rem_i32(int x, int y) { return y == 0 || y == -1 ? 0 : x % y; }
RAX_DEVICE int rax_max_i32(int x, int y) { return x > y ? x : y; }
RAX_DEVICE int rax_min_i32(int x, int y) { return x < y ? x : y; }
RAX_DEVICE int rax_abs_i32(int x) { return x < 0 ? rax_sub_i32(0, x) : x; }
RAX_DEVICE int rax_sign_i32(int x) { return (x > 0) - (x < 0); }
#define rax_sum_i32 rax_add_i32
#define rax_most_i32 rax_max_i32
#define rax_most_f64 rax_max_f64

/* A dynamic index: moved to the nearest in range. */
RAX_DEVICE rax_i64 rax_clamp(int x, rax_i64 limit) { return x < 0 ? 0 : x > limit ? limit : x; }

/* -- random words: Philox4x32-10 ----------------------------------------------------------------------------------------- */

typedef struct { rax_u32 word[4]; } rax_words;
RAX_DEVICE rax_words rax_philox(rax_u64 block, rax_u32 site, rax_u32 step, rax_u32 k0, rax_u32 k1)
{
    rax_u32 c0 = (rax_u32)block, c1 = (rax_u32)(block >> 32), c2 = site, c3 = step;
    rax_words words;
    RAX_UNROLL
    for (int round = 0; round < 10; round++) {
        rax_u32 high0 = rax_multiply_high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        rax_u32 high2 = rax_multiply_high(0xCD9E8D57u, c2), low2 = 0xCD9E8D57u * c2;
        c0 = high2 ^ c1 ^ k0;
        c1 = low2;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    words.word[0] = c0, words.word[1] = c1, words.word[2] = c2, words.word[3] = c3;
    return words;
}
RAX_DEVICE rax_u32 rax_word(rax_u64 element, rax_u32 site, rax_u32 step, rax_u32 k0, rax_u32 k1)
{
    rax_words words = rax_philox(element >> 2, site, step, k0, k1);
    return (element & 2) ? ((element & 1) ? words.word[3] : words.word[2]) : ((element & 1) ? words.word[1] : words.word[0]);
}

/* -- reductions in a warp and in a block ----------------------------------------------------------------------------------- */

/* All lanes get the result, combined in one order for any launch: butterflies, whose operations commute. shared has room for a value a warp. A block's is
 * what its warps leave and, after a wait, take. */
#define RAX_REDUCTION(name, type, suffix, identity)                                                              \
    RAX_DEVICE type rax_warp_##name##_##suffix(type x)                                                           \
    {                                                                                                            \
        for (int mask = 16; mask; mask >>= 1)                                                                    \
            x = rax_##name##_##suffix(x, rax_shuffle_##suffix(x, mask));                                         \
        return x;                                                                                                \
    }                                                                                                            \
    RAX_DEVICE void rax_leave_##name##_##suffix(type x, void *shared)                                            \
    {                                                                                                            \
        if ((threadIdx.x & 31) == 0)                                                                             \
            ((type *)shared)[threadIdx.x >> 5] = x;                                                              \
    }                                                                                                            \
    RAX_DEVICE type rax_take_##name##_##suffix(const void *shared)                                               \
    {                                                                                                            \
        int lane = threadIdx.x & 31, warps = (blockDim.x + 31) >> 5;                                             \
        return rax_warp_##name##_##suffix(lane < warps ? ((const type *)shared)[lane] : (identity));             \
    }                                                                                                            \
    RAX_DEVICE type rax_block_##name##_##suffix(type x, void *shared)                                            \
    {                                                                                                            \
        x = rax_warp_##name##_##suffix(x);                                                                       \
        rax_block_wait();                                                                                        \
        rax_leave_##name##_##suffix(x, shared);                                                                  \
        rax_block_wait();                                                                                        \
        return rax_take_##name##_##suffix(shared);                                                               \
    }                                                                                                            \
    /* Of every groups-th thread. shared has room for a value a thread. */                                       \
    RAX_DEVICE type rax_across_##name##_##suffix(type x, void *shared, int groups)                               \
    {                                                                                                            \
        const type *of = (const type *)shared + threadIdx.x % groups;                                            \
        rax_block_wait();                                                                                        \
        ((type *)shared)[threadIdx.x] = x;                                                                       \
        rax_block_wait();                                                                                        \
        x = of[0];                                                                                               \
        for (int i = groups; i < (int)blockDim.x; i += groups)                                                   \
            x = rax_##name##_##suffix(x, of[i]);                                                                 \
        return x;                                                                                                \
    }
RAX_REDUCTION(sum, float, f32, 0)
RAX_REDUCTION(sum, double, f64, 0)
RAX_REDUCTION(sum, int, i32, 0)
RAX_REDUCTION(most, float, f32, -RAX_INFINITY)
RAX_REDUCTION(most, double, f64, -(double)RAX_INFINITY)
RAX_REDUCTION(most, int, i32, -2147483647 - 1)

/* The first of the greatest, where NaN is greatest of all: at < 0 is nothing yet. */
#define RAX_ARGMAX(type, suffix)                                                                                 \
    typedef struct { type value; int at; } rax_best_##suffix;                                                    \
    RAX_DEVICE rax_best_##suffix rax_better_##suffix(rax_best_##suffix a, rax_best_##suffix b)                   \
    {                                                                                                            \
        int a_nan = a.value != a.value, b_nan = b.value != b.value;                                              \
        int takes_b = a.at < 0 || (b.at >= 0 && (b_nan != a_nan ? b_nan : b_nan || b.value == a.value ? b.at < a.at : b.value > a.value)); \
        return takes_b ? b : a;                                                                                  \
    }                                                                                                            \
    RAX_DEVICE rax_best_##suffix rax_warp_argmax_##suffix(rax_best_##suffix x)                                   \
    {                                                                                                            \
        for (int mask = 16; mask; mask >>= 1) {                                                                  \
            rax_best_##suffix other;                                                                             \
            other.value = rax_shuffle_##suffix(x.value, mask);                                                   \
            other.at = rax_shuffle_i32(x.at, mask);                                                              \
            x = rax_better_##suffix(x, other);                                                                   \
        }                                                                                                        \
        return x;                                                                                                \
    }                                                                                                            \
    RAX_DEVICE rax_best_##suffix rax_block_argmax_##suffix(rax_best_##suffix x, void *shared)                    \
    {                                                                                                            \
        rax_best_##suffix *warp = (rax_best_##suffix *)shared, best;                                             \
        int warps = (blockDim.x + 31) >> 5;                                                                      \
        x = rax_warp_argmax_##suffix(x);                                                                         \
        rax_block_wait();                                                                                        \
        if ((threadIdx.x & 31) == 0)                                                                             \
            warp[threadIdx.x >> 5] = x;                                                                          \
        rax_block_wait();                                                                                        \
        best = warp[0];                                                                                          \
        for (int i = 1; i < warps; i++)                                                                          \
            best = rax_better_##suffix(best, warp[i]);                                                           \
        return best;                                                                                             \
    }
RAX_ARGMAX(float, f32)
RAX_ARGMAX(double, f64)
RAX_ARGMAX(int, i32)

/* V neighbours of a place. */
#define EACH RAX_UNROLL for (int j = 0; j < V; j++)
