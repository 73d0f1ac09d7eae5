/* What vectors.c and vector_math.c write their code with: one word an instruction. Not for others. */
#ifndef CPU_VECTOR_WORDS_H
#define CPU_VECTOR_WORDS_H

#include <string.h>

#include "backend_cpu/vector_math.h"

typedef LLVMValueRef value;
typedef const cpu_vector_env env;

/* -- types and constants ---------------------------------------------------------------------------------------------- */

static inline LLVMTypeRef element_of(LLVMTypeRef type)
{
    return LLVMGetTypeKind(type) == LLVMVectorTypeKind ? LLVMGetElementType(type) : type;
}

static inline int lanes_of(value x)
{
    LLVMTypeRef type = LLVMTypeOf(x);
    return LLVMGetTypeKind(type) == LLVMVectorTypeKind ? (int)LLVMGetVectorSize(type) : 1;
}

static inline LLVMTypeRef f32_like(env *e, value x) { return cpu_vlike(x, LLVMFloatTypeInContext(e->context)); }
static inline LLVMTypeRef f64_like(env *e, value x) { return cpu_vlike(x, LLVMDoubleTypeInContext(e->context)); }
static inline LLVMTypeRef i16_like(env *e, value x) { return cpu_vlike(x, LLVMInt16TypeInContext(e->context)); }
static inline LLVMTypeRef i32_like(env *e, value x) { return cpu_vlike(x, LLVMInt32TypeInContext(e->context)); }
static inline LLVMTypeRef i64_like(env *e, value x) { return cpu_vlike(x, LLVMInt64TypeInContext(e->context)); }

static inline bool is_f64(value x) { return LLVMGetTypeKind(element_of(LLVMTypeOf(x))) == LLVMDoubleTypeKind; }

static inline value const_of(LLVMTypeRef type, value scalar)
{
    if (LLVMGetTypeKind(type) != LLVMVectorTypeKind)
        return scalar;
    unsigned n = LLVMGetVectorSize(type);
    value all[64];
    CHECK(n <= COUNT_OF(all), "expected a vector of at most %zu lanes, got %u", COUNT_OF(all), n);
    for (unsigned i = 0; i < n; i++)
        all[i] = scalar;
    return LLVMConstVector(all, n);
}

static inline value real(LLVMTypeRef type, double x) { return const_of(type, LLVMConstReal(element_of(type), x)); }
static inline value bits(LLVMTypeRef type, uint64_t x) { return const_of(type, LLVMConstInt(element_of(type), x, 0)); }

/* -- instructions ----------------------------------------------------------------------------------------------------- */

/* Intrinsics that are overloaded on several types: their names carry all of them. */
static inline value call_on(env *e, const char *name, LLVMTypeRef *types, int n_types, value *args, int n)
{
    unsigned id = LLVMLookupIntrinsicID(name, strlen(name));
    CHECK(id, "expected LLVM to know the intrinsic %s", name);
    value function = LLVMGetIntrinsicDeclaration(e->module, id, types, (size_t)n_types);
    return LLVMBuildCall2(e->builder, LLVMGlobalGetValueType(function), function, args, (unsigned)n, "");
}

static inline value call(env *e, const char *intrinsic, value *args, int n)
{
    LLVMTypeRef type = LLVMTypeOf(args[0]);
    return call_on(e, intrinsic, &type, 1, args, n);
}

static inline value add(env *e, value a, value b) { return LLVMBuildFAdd(e->builder, a, b, ""); }
static inline value mul(env *e, value a, value b) { return LLVMBuildFMul(e->builder, a, b, ""); }
static inline value iadd(env *e, value a, value b) { return LLVMBuildAdd(e->builder, a, b, ""); }
static inline value and(env *e, value a, value b) { return LLVMBuildAnd(e->builder, a, b, ""); }
static inline value or(env *e, value a, value b) { return LLVMBuildOr(e->builder, a, b, ""); }
static inline value bitcast(env *e, value x, LLVMTypeRef type) { return LLVMBuildBitCast(e->builder, x, type, ""); }
static inline value compare(env *e, LLVMRealPredicate how, value a, value b) { return LLVMBuildFCmp(e->builder, how, a, b, ""); }
static inline value choose(env *e, value which, value a, value b) { return LLVMBuildSelect(e->builder, which, a, b, ""); }
static inline value call1(env *e, const char *name, value x) { return call(e, name, &x, 1); }
static inline value shift_left(env *e, value x, int n) { return LLVMBuildShl(e->builder, x, bits(LLVMTypeOf(x), (uint64_t)n), ""); }
static inline value shift_right(env *e, value x, int n) { return LLVMBuildLShr(e->builder, x, bits(LLVMTypeOf(x), (uint64_t)n), ""); }

/* -- vectors.c -------------------------------------------------------------------------------------------------------- */

/* An instruction of 16 lanes on x and y (or on x alone, y NULL) of any number of lanes, so that all numbers have its bits. */
typedef value of_16_lanes(env *e, value x, value y);
value cpu_vby_16_lanes(env *e, of_16_lanes *instruction, value x, value y);

#endif
