/* Philox4x32-10 in vectors: the bits of ir_philox (ir/philox.c), a block of four words a lane.
 *
 * Where neighbours in memory are neighbours in number, which is nearly always, lanes are neighbouring blocks, and their words are
 * interleaved into the order of the elements: 64 elements for ten rounds on AVX-512. Otherwise each lane computes the block of its element,
 * and takes one word of four. */
#include "backend_cpu/expressions.h"

enum { ROUNDS = 10 };

/* Both halves of x * factor, unsigned. In pairs of lanes: a 64-bit lane holds two of 32, and its product reads the lower;
 * the upper is shifted down for a product of its own. */
static void multiply(const cpu_vector_env *env, LLVMValueRef x, uint32_t factor, LLVMValueRef *high, LLVMValueRef *low)
{
    LLVMBuilderRef b = env->builder;
    LLVMTypeRef type = LLVMTypeOf(x), i64 = LLVMInt64TypeInContext(env->context);
    *low = LLVMBuildMul(b, x, cpu_vconst(env, x, factor), "");
    bool pairs = LLVMGetTypeKind(type) == LLVMVectorTypeKind && LLVMGetVectorSize(type) % 2 == 0;
    if (!pairs) {
        LLVMTypeRef wide = cpu_vlike(x, i64);
        LLVMValueRef product = LLVMBuildZExt(b, x, wide, "");
        product = LLVMBuildMul(b, product, cpu_vconst(env, product, factor), "");
        *high = LLVMBuildTrunc(b, LLVMBuildLShr(b, product, cpu_vconst(env, product, 32), ""), type, "");
        return;
    }
    LLVMValueRef two = LLVMBuildBitCast(b, x, LLVMVectorType(i64, LLVMGetVectorSize(type) / 2), "");
    LLVMValueRef half = cpu_vconst(env, two, 32), f = cpu_vconst(env, two, factor), lower = cpu_vconst(env, two, 0xffffffffu);
    LLVMValueRef even = LLVMBuildMul(b, LLVMBuildAnd(b, two, lower, ""), f, "");
    LLVMValueRef odd = LLVMBuildMul(b, LLVMBuildLShr(b, two, half, ""), f, "");
    even = LLVMBuildLShr(b, even, half, "");
    odd = LLVMBuildAnd(b, odd, LLVMBuildNot(b, lower, ""), "");
    *high = LLVMBuildBitCast(b, LLVMBuildOr(b, even, odd, ""), type, "");
}

/* Philox4x32-10: key low, high; counter (block low, block high, site, step). All i32, vectors or scalars of one type. */
static void emit_philox(const cpu_vector_env *env, LLVMValueRef key[2], LLVMValueRef counter[4], LLVMValueRef word[4])
{
    LLVMBuilderRef b = env->builder;
    LLVMValueRef c[4] = { counter[0], counter[1], counter[2], counter[3] }, k[2] = { key[0], key[1] };
    for (int round = 0; round < ROUNDS; round++) {
        LLVMValueRef high0, low0, high1, low1;
        multiply(env, c[0], 0xD2511F53u, &high0, &low0);
        multiply(env, c[2], 0xCD9E8D57u, &high1, &low1);
        c[0] = LLVMBuildXor(b, LLVMBuildXor(b, high1, c[1], ""), k[0], "");
        c[2] = LLVMBuildXor(b, LLVMBuildXor(b, high0, c[3], ""), k[1], "");
        c[1] = low1;
        c[3] = low0;
        k[0] = LLVMBuildAdd(b, k[0], cpu_vconst(env, k[0], 0x9E3779B9u), "");
        k[1] = LLVMBuildAdd(b, k[1], cpu_vconst(env, k[1], 0xBB67AE85u), "");
    }
    for (int i = 0; i < 4; i++)
        word[i] = c[i];
}

static LLVMValueRef spread(const cpu_vector_env *env, LLVMValueRef x, bool vector)
{
    return vector && LLVMGetTypeKind(LLVMTypeOf(x)) != LLVMVectorTypeKind ? cpu_vsplat(env, x) : x;
}

LLVMValueRef cpu_emit_random_at(const cpu_vector_env *env, LLVMValueRef element, LLVMValueRef key[2], LLVMValueRef site, LLVMValueRef step)
{
    LLVMBuilderRef b = env->builder;
    LLVMTypeRef i32 = cpu_vlike(element, LLVMInt32TypeInContext(env->context));
    bool vector = LLVMGetTypeKind(LLVMTypeOf(element)) == LLVMVectorTypeKind;
    LLVMValueRef block = LLVMBuildLShr(b, element, cpu_vconst(env, element, 2), "");
    LLVMValueRef low = LLVMBuildTrunc(b, block, i32, "");
    LLVMValueRef high = LLVMBuildTrunc(b, LLVMBuildLShr(b, block, cpu_vconst(env, element, 32), ""), i32, "");
    LLVMValueRef keys[2] = { spread(env, key[0], vector), spread(env, key[1], vector) }, word[4];
    LLVMValueRef counter[4] = { low, high, spread(env, site, vector), spread(env, step, vector) };
    emit_philox(env, keys, counter, word);
    LLVMValueRef which = LLVMBuildAnd(b, LLVMBuildTrunc(b, element, i32, ""), cpu_vconst(env, low, 3), "");
    LLVMValueRef x = word[0];
    for (int i = 1; i < 4; i++)
        x = LLVMBuildSelect(b, LLVMBuildICmp(b, LLVMIntEQ, which, cpu_vconst(env, low, i), ""), word[i], x, "");
    return x;
}

/* Blocks of `run` neighbours from x and from y in turn: run 1, first 0 of lanes 4: x0 y0 x1 y1. */
static LLVMValueRef interleave(const cpu_vector_env *env, LLVMValueRef x, LLVMValueRef y, int run, int first)
{
    return cpu_vinterleaved(env, x, y, run, first, first + env->lanes, env->lanes);
}

void cpu_emit_random_run(const cpu_vector_env *env, LLVMValueRef block, LLVMValueRef key[2], LLVMValueRef site, LLVMValueRef step, LLVMValueRef words[4])
{
    LLVMBuilderRef b = env->builder;
    LLVMTypeRef i32 = LLVMInt32TypeInContext(env->context), i64 = LLVMInt64TypeInContext(env->context);
    CHECK(env->lanes >= 2, "expected vectors of at least two lanes, got %d", env->lanes);
    LLVMValueRef blocks = LLVMBuildAdd(b, cpu_vsplat(env, block), cpu_lane_numbers(env, i64), "");
    LLVMValueRef low = LLVMBuildTrunc(b, blocks, cpu_vtype(env, i32), "");
    LLVMValueRef high = LLVMBuildTrunc(b, LLVMBuildLShr(b, blocks, cpu_vconst(env, blocks, 32), ""), cpu_vtype(env, i32), "");
    LLVMValueRef keys[2] = { spread(env, key[0], true), spread(env, key[1], true) }, word[4];
    LLVMValueRef counter[4] = { low, high, spread(env, site, true), spread(env, step, true) };
    emit_philox(env, keys, counter, word);
    int half = env->lanes / 2;
    LLVMValueRef a[2] = { interleave(env, word[0], word[1], 1, 0), interleave(env, word[0], word[1], 1, half) };
    LLVMValueRef c[2] = { interleave(env, word[2], word[3], 1, 0), interleave(env, word[2], word[3], 1, half) };
    for (int i = 0; i < 2; i++) {
        if (env->lanes == 2) {                              /* a pair is a vector */
            words[2 * i] = a[i];
            words[2 * i + 1] = c[i];
        } else {
            words[2 * i] = interleave(env, a[i], c[i], 2, 0);
            words[2 * i + 1] = interleave(env, a[i], c[i], 2, half);
        }
    }
}
