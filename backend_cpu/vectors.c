/* Vectors of any number of lanes: constants, memory with and without a mask, lanes that change places, sums over lanes, bf16. An
 * instruction that there is for some numbers of lanes alone is brought to the others, so that a tail has the bits of the main loop. */
#include "backend_cpu/vector_words.h"

/* -- types, constants, access ---------------------------------------------------------------------------------------- */

LLVMTypeRef cpu_vtype(env *e, LLVMTypeRef element)
{
    return e->lanes == 1 ? element : LLVMVectorType(element, (unsigned)e->lanes);
}

LLVMTypeRef cpu_vlike(value x, LLVMTypeRef element)
{
    LLVMTypeRef type = LLVMTypeOf(x);
    return LLVMGetTypeKind(type) == LLVMVectorTypeKind ? LLVMVectorType(element, LLVMGetVectorSize(type)) : element;
}

value cpu_vsplat(env *e, value scalar)
{
    if (e->lanes == 1)
        return scalar;
    LLVMTypeRef type = cpu_vtype(e, LLVMTypeOf(scalar)), i32 = LLVMInt32TypeInContext(e->context);
    value first = LLVMBuildInsertElement(e->builder, LLVMGetPoison(type), scalar, LLVMConstInt(i32, 0, 0), "");
    return LLVMBuildShuffleVector(e->builder, first, LLVMGetPoison(type),
                                  LLVMConstNull(LLVMVectorType(i32, (unsigned)e->lanes)), "");
}

value cpu_vconst(env *e, value like, double x)
{
    (void)e;
    LLVMTypeRef type = LLVMTypeOf(like);
    bool whole = LLVMGetTypeKind(element_of(type)) == LLVMIntegerTypeKind;
    return whole ? bits(type, (uint64_t)(int64_t)x) : real(type, x);
}

value cpu_vmask(env *e, value count)
{
    LLVMTypeRef i32 = LLVMInt32TypeInContext(e->context), i64 = LLVMTypeOf(count);
    value all = LLVMConstInt(i64, (unsigned)e->lanes, 0);
    value some = LLVMBuildICmp(e->builder, LLVMIntULT, count, all, "");
    value on = LLVMBuildTrunc(e->builder, LLVMBuildSelect(e->builder, some, count, all, ""), i32, "");
    value index[64];
    CHECK(e->lanes <= (int)COUNT_OF(index), "expected at most %zu lanes, got %d", COUNT_OF(index), e->lanes);
    for (int i = 0; i < e->lanes; i++)
        index[i] = LLVMConstInt(i32, (unsigned)i, 0);
    value lane = e->lanes == 1 ? index[0] : LLVMConstVector(index, (unsigned)e->lanes);
    return LLVMBuildICmp(e->builder, LLVMIntULT, lane, cpu_vsplat(e, on), "");
}

/* The alignment an element of this type has in memory. */
static unsigned bytes_of(LLVMTypeRef element)
{
    switch (LLVMGetTypeKind(element)) {
    case LLVMFloatTypeKind:   return 4;
    case LLVMDoubleTypeKind:  return 8;
    case LLVMIntegerTypeKind: return (LLVMGetIntTypeWidth(element) + 7) / 8;
    default: CHECK(false, "expected an element of f32, f64 or an integer"); return 0;
    }
}

/* Masked access takes vectors only: a scalar goes as a vector of one. */
static value widen(env *e, value x)
{
    if (LLVMGetTypeKind(LLVMTypeOf(x)) == LLVMVectorTypeKind)
        return x;
    value zero = LLVMConstInt(LLVMInt32TypeInContext(e->context), 0, 0);
    return LLVMBuildInsertElement(e->builder, LLVMGetPoison(LLVMVectorType(LLVMTypeOf(x), 1)), x, zero, "");
}

/* llvm.masked.load, .store, .gather or .scatter. Up to LLVM 21 the alignment is an argument after the pointer (a vector of them), which
 * is argument number `pointer` of args; from 22 on an attribute of the pointer. */
static value masked_access(env *e, const char *name, LLVMTypeRef type, value *args, unsigned pointer, unsigned align)
{
    LLVMTypeRef types[] = {type, LLVMTypeOf(args[pointer])}, i32 = LLVMInt32TypeInContext(e->context);
    value function = LLVMGetIntrinsicDeclaration(e->module, LLVMLookupIntrinsicID(name, strlen(name)), types, 2);
    LLVMTypeRef function_type = LLVMGlobalGetValueType(function);
    if (LLVMCountParamTypes(function_type) == 4) {
        value four[4];
        for (unsigned i = 0; i < 4; i++)
            four[i] = i <= pointer ? args[i] : i == pointer + 1 ? LLVMConstInt(i32, align, 0) : args[i - 1];
        return LLVMBuildCall2(e->builder, function_type, function, four, 4, "");
    }
    value made = LLVMBuildCall2(e->builder, function_type, function, args, 3, "");
    LLVMAttributeRef attribute = LLVMCreateEnumAttribute(e->context, LLVMGetEnumAttributeKindForName("align", 5), align);
    LLVMAddCallSiteAttribute(made, pointer + 1, attribute);      /* 0 is the result */
    return made;
}

value cpu_vload(env *e, LLVMTypeRef element, value pointer, value mask)
{
    LLVMTypeRef i32 = LLVMInt32TypeInContext(e->context);
    if (mask == NULL) {
        value x = LLVMBuildLoad2(e->builder, cpu_vtype(e, element), pointer, "");
        LLVMSetAlignment(x, bytes_of(element));
        return x;
    }
    LLVMTypeRef type = LLVMVectorType(element, (unsigned)e->lanes);
    value args[] = {pointer, widen(e, mask), LLVMConstNull(type)};
    value x = masked_access(e, "llvm.masked.load", type, args, 0, bytes_of(element));
    return e->lanes == 1 ? LLVMBuildExtractElement(e->builder, x, LLVMConstInt(i32, 0, 0), "") : x;
}

void cpu_vstore(env *e, value x, value pointer, value mask)
{
    unsigned align = bytes_of(element_of(LLVMTypeOf(x)));
    if (mask == NULL) {
        LLVMSetAlignment(LLVMBuildStore(e->builder, x, pointer), align);
        return;
    }
    x = widen(e, x);
    value args[] = {x, pointer, widen(e, mask)};
    masked_access(e, "llvm.masked.store", LLVMTypeOf(x), args, 1, align);
}

static value all_lanes(env *e) { return cpu_vsplat(e, LLVMConstInt(LLVMInt1TypeInContext(e->context), 1, 0)); }

value cpu_vgather(env *e, LLVMTypeRef element, value pointers, value mask)
{
    LLVMTypeRef type = cpu_vtype(e, element);
    value args[] = {pointers, mask ? mask : all_lanes(e), LLVMConstNull(type)};
    return masked_access(e, "llvm.masked.gather", type, args, 0, bytes_of(element));
}

void cpu_vscatter(env *e, value x, value pointers, value mask)
{
    value args[] = {x, pointers, mask ? mask : all_lanes(e)};
    masked_access(e, "llvm.masked.scatter", LLVMTypeOf(x), args, 1, bytes_of(element_of(LLVMTypeOf(x))));
}

value cpu_vlanes(env *e, value x, value y, int first, int n) { return cpu_vinterleaved(e, x, y, n, first, first, n); }

value cpu_vinterleaved(env *e, value x, value y, int run, int a, int b, int n)
{
    LLVMTypeRef i32 = LLVMInt32TypeInContext(e->context);
    value index[64];
    CHECK(n <= 64, "expected at most 64 lanes, got %d", n);
    for (int i = 0; i < n; i++)
        index[i] = LLVMConstInt(i32, (unsigned)((i / run % 2 ? b : a) + i / (2 * run) * run + i % run), 0);
    return LLVMBuildShuffleVector(e->builder, x, y, LLVMConstVector(index, (unsigned)n), "");
}

/* A vector of `full` lanes that begins with those of x, and the first n of such a one: for instructions that there are for some numbers of lanes alone. */
static value filled(env *e, value x, int full)
{
    value index[64], wide = widen(e, x);
    for (int i = 0; i < full; i++)
        index[i] = LLVMConstInt(LLVMInt32TypeInContext(e->context), (unsigned)(i < lanes_of(x) ? i : 0), 0);
    return LLVMBuildShuffleVector(e->builder, wide, LLVMGetPoison(LLVMTypeOf(wide)), LLVMConstVector(index, (unsigned)full), "");
}

static value first_lanes(env *e, value y, int n)
{
    if (n == 1)
        return LLVMBuildExtractElement(e->builder, y, LLVMConstInt(LLVMInt32TypeInContext(e->context), 0, 0), "");
    return cpu_vlanes(e, y, LLVMGetPoison(LLVMTypeOf(y)), 0, n);
}

value cpu_vby_16_lanes(env *e, of_16_lanes *instruction, value x, value y)
{
    int n = lanes_of(x);
    if (n == 16)
        return instruction(e, x, y);
    if (n < 16)
        return first_lanes(e, instruction(e, filled(e, x, 16), y ? filled(e, y, 16) : NULL), n);
    CHECK(n % 32 == 0, "expected up to 16 lanes or a multiple of 32, got %d", n);
    value low_x = cpu_vlanes(e, x, x, 0, n / 2), low_y = y ? cpu_vlanes(e, y, y, 0, n / 2) : NULL;
    value high_x = cpu_vlanes(e, x, x, n / 2, n / 2), high_y = y ? cpu_vlanes(e, y, y, n / 2, n / 2) : NULL;
    value low = cpu_vby_16_lanes(e, instruction, low_x, low_y), high = cpu_vby_16_lanes(e, instruction, high_x, high_y);
    return cpu_vlanes(e, low, high, 0, n);
}

value cpu_vsum(env *e, value x)
{
    for (int n = lanes_of(x); n > 1; n /= 2) {
        CHECK(n % 2 == 0, "expected a power of two of lanes, got %d", lanes_of(x));
        value none = LLVMGetPoison(LLVMTypeOf(x));
        value low = cpu_vlanes(e, x, none, 0, n / 2), high = cpu_vlanes(e, x, none, n / 2, n / 2);
        x = LLVMBuildFAdd(e->builder, low, high, "");
    }
    if (LLVMGetTypeKind(LLVMTypeOf(x)) != LLVMVectorTypeKind)
        return x;
    return LLVMBuildExtractElement(e->builder, x, LLVMConstInt(LLVMInt32TypeInContext(e->context), 0, 0), "");
}

/* -- arithmetic ------------------------------------------------------------------------------------------------------ */

value cpu_vfma(env *e, value a, value b, value c)
{
#if defined(__x86_64__)
    if (e->isa == CPU_GENERIC)                             /* llvm.fma would call fmaf once a lane */
        return add(e, mul(e, a, b), c);
#endif
    return call(e, "llvm.fma", (value[]){a, b, c}, 3);
}

value cpu_vabs(env *e, value x) { return call1(e, "llvm.fabs", x); }
value cpu_vfloor(env *e, value x) { return call1(e, "llvm.floor", x); }
value cpu_vtrunc(env *e, value x) { return call1(e, "llvm.trunc", x); }
value cpu_vcopysign(env *e, value magnitude, value sign)
{
    return call(e, "llvm.copysign", (value[]){magnitude, sign}, 2);
}

/* -- bf16 ------------------------------------------------------------------------------------------------------------ */

/* vcvtneps2bf16 by its intrinsic, which every LLVM from 15 on has, though of different types: 16 lanes of i16 in 15, of
 * bfloat from 16 on. A plain fptrunc to bfloat is not usable: LLVM 15 cannot select it. */
static value native_bf16(env *e, value x, int n)
{
    const char *name = n == 16 ? "llvm.x86.avx512bf16.cvtneps2bf16.512" : "llvm.x86.avx512bf16.cvtneps2bf16.256";
    value y = call_on(e, name, NULL, 0, &x, 1);
    return bitcast(e, y, LLVMVectorType(LLVMInt16TypeInContext(e->context), (unsigned)n));
}

value cpu_vbf16_from_f32(env *e, value x)
{
    int n = lanes_of(x);
    if (e->isa >= CPU_AVX512BF16) {                        /* always by the instruction, so that tails agree on denormals */
        if (n == 8 || n == 16)
            return native_bf16(e, x, n);
        if (n < 16)
            return first_lanes(e, native_bf16(e, filled(e, x, n < 8 ? 8 : 16), n < 8 ? 8 : 16), n);
        CHECK(n % 2 == 0, "expected up to 16 lanes of f32 or an even number, got %d", n);
        value none = LLVMGetPoison(LLVMTypeOf(x)), low = cpu_vlanes(e, x, none, 0, n / 2);
        return cpu_vbf16_from_two(e, low, cpu_vlanes(e, x, none, n / 2, n / 2));
    }
    /* Adding 0x7fff, and 1 more where the half that stays is odd, carries into it exactly when rounding goes up. */
    LLVMTypeRef i32 = i32_like(e, x);
    value b = bitcast(e, x, i32);
    value odd = and(e, shift_right(e, b, 16), bits(i32, 1));
    value rounded = iadd(e, b, iadd(e, odd, bits(i32, 0x7fff)));
    value quiet = or(e, b, bits(i32, 0x400000));
    value y = shift_right(e, choose(e, compare(e, LLVMRealUNO, x, x), quiet, rounded), 16);
    return LLVMBuildTrunc(e->builder, y, i16_like(e, x), "");
}

value cpu_vbf16_from_two(env *e, value low, value high)
{
    int n = lanes_of(low);
    if (e->isa >= CPU_AVX512BF16 && n == 16) {
        value y = call_on(e, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", NULL, 0, (value[]){high, low}, 2);
        return bitcast(e, y, LLVMVectorType(LLVMInt16TypeInContext(e->context), 32));
    }
    value first = cpu_vbf16_from_f32(e, low), second = cpu_vbf16_from_f32(e, high);
    return cpu_vlanes(e, first, second, 0, 2 * n);
}

/* The intrinsic takes vectors of i32 up to LLVM 19, of bfloat later. */
value cpu_vdot_pairs(env *e, value a, value b, value sum)
{
    const char *name = lanes_of(sum) == 16 ? "llvm.x86.avx512bf16.dpbf16ps.512" : "llvm.x86.avx512bf16.dpbf16ps.256";
    value function = LLVMGetIntrinsicDeclaration(e->module, LLVMLookupIntrinsicID(name, strlen(name)), NULL, 0);
    LLVMTypeRef type = LLVMGlobalGetValueType(function), parameters[3];
    LLVMGetParamTypes(type, parameters);
    value args[] = {sum, bitcast(e, a, parameters[1]), bitcast(e, b, parameters[2])};
    return LLVMBuildCall2(e->builder, type, function, args, 3, "");
}

value cpu_vf32_from_bf16(env *e, value x)
{
    value wide = shift_left(e, LLVMBuildZExt(e->builder, x, i32_like(e, x), ""), 16);
    return bitcast(e, wide, f32_like(e, x));
}
