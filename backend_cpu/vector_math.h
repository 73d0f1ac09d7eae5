/* Vector code for elementwise mathematics, emitted through an LLVM builder.
 *
 * A value is a vector of any number of lanes, or a scalar; its type alone says which, and whether it is f32 or f64. bf16 is
 * an i16 in memory and f32 in registers. Every function emits straight-line code at the builder's place, without calls (f32),
 * and the result of a lane depends on nothing but that lane and the ISA: a masked tail gives the bits of the main loop.
 *
 * The whole range is handled: infinities, NaN, denormals, overflow and underflow, as C99's Annex F has them; only the sign and
 * payload of a NaN are unspecified. f64 is there for tests and gradients of tests: one call to libm a lane.
 *
 * Greatest error found, in units in the last place, against f64 (tests/test_vector_math.c walks the range and holds these):
 *
 *     exp 1.0   log 1.0   tanh 1.5   sigmoid 2.5   sin, cos 2.0   erf 1.5   erf_inv 3.5   pow 0.6   sqrt 0.5   rsqrt 1.5
 */
#ifndef CPU_VECTOR_MATH_H
#define CPU_VECTOR_MATH_H

#include <llvm-c/Core.h>

#include "backend_cpu/runtime.h"

typedef struct {
    LLVMContextRef context;
    LLVMModuleRef module;
    LLVMBuilderRef builder;
    cpu_isa isa;
    int lanes;                  /* of the vectors that cpu_vtype, cpu_vsplat, cpu_vmask and cpu_vload make */
} cpu_vector_env;

/* C leaves open in which order the arguments of a call are evaluated. Where more than one of them emits code each has a name before the
 * call, so that a kernel is the same code whatever compiler rax was built by. */

/* -- vectors.c: types, constants, access ------------------------------------------------------------------------------- */

LLVMTypeRef cpu_vtype(const cpu_vector_env *env, LLVMTypeRef element);                 /* the element itself for one lane */
LLVMTypeRef cpu_vlike(LLVMValueRef x, LLVMTypeRef element);                            /* of as many lanes as x has */
LLVMValueRef cpu_vsplat(const cpu_vector_env *env, LLVMValueRef scalar);
LLVMValueRef cpu_vconst(const cpu_vector_env *env, LLVMValueRef like, double value);   /* of like's type, floating or integer */

/* n lanes of x followed by those of y: from lane `first` on; or in turn so many neighbours from lane a on and from lane b on: run 1, a 0, b 4, n 8 of
 * vectors of 4: x0 y0 x1 y1 x2 y2 x3 y3. */
LLVMValueRef cpu_vlanes(const cpu_vector_env *env, LLVMValueRef x, LLVMValueRef y, int first, int n);
LLVMValueRef cpu_vinterleaved(const cpu_vector_env *env, LLVMValueRef x, LLVMValueRef y, int run, int a, int b, int n);

/* Lanes 0..count-1 are on; count is an i64 >= 0, and may be more than there are lanes. */
LLVMValueRef cpu_vmask(const cpu_vector_env *env, LLVMValueRef count);
/* Elements side by side in memory, aligned as one element. mask NULL: all lanes. Lanes that are off read as 0 and touch no memory. */
LLVMValueRef cpu_vload(const cpu_vector_env *env, LLVMTypeRef element, LLVMValueRef pointer, LLVMValueRef mask);
void cpu_vstore(const cpu_vector_env *env, LLVMValueRef value, LLVMValueRef pointer, LLVMValueRef mask);
/* Elements anywhere, by a vector of pointers; otherwise the same. Scattered lanes of one place: the last one stays. */
LLVMValueRef cpu_vgather(const cpu_vector_env *env, LLVMTypeRef element, LLVMValueRef pointers, LLVMValueRef mask);
void cpu_vscatter(const cpu_vector_env *env, LLVMValueRef value, LLVMValueRef pointers, LLVMValueRef mask);
/* The sum of the lanes of an f32 or f64 vector, halves added to halves: an order fixed by the number of lanes, a power of two. */
LLVMValueRef cpu_vsum(const cpu_vector_env *env, LLVMValueRef x);

/* -- vectors.c: arithmetic --------------------------------------------------------------------------------------------- */

/* a*b + c, rounded once where the ISA has a fused multiply-add, twice on generic x86. */
LLVMValueRef cpu_vfma(const cpu_vector_env *env, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c);

/* Round to nearest, ties to even; NaN stays NaN. x: f32, result: i16 lanes. From CPU_AVX512BF16 on the instruction is used, which
 * takes and gives denormals as 0. */
LLVMValueRef cpu_vbf16_from_f32(const cpu_vector_env *env, LLVMValueRef x);
LLVMValueRef cpu_vbf16_from_two(const cpu_vector_env *env, LLVMValueRef low, LLVMValueRef high);    /* the lanes of low, then those of high */
/* sum + a0*b0 + a1*b1, of pairs of bf16: bits of as many lanes of i32, or twice as many of i16. Subnormals count as 0. From CPU_AVX512BF16 on,
 * of 16 lanes or 8. */
LLVMValueRef cpu_vdot_pairs(const cpu_vector_env *env, LLVMValueRef a, LLVMValueRef b, LLVMValueRef sum);
LLVMValueRef cpu_vf32_from_bf16(const cpu_vector_env *env, LLVMValueRef x);            /* i16 lanes; exact */

LLVMValueRef cpu_vabs(const cpu_vector_env *env, LLVMValueRef x);
LLVMValueRef cpu_vfloor(const cpu_vector_env *env, LLVMValueRef x);
LLVMValueRef cpu_vtrunc(const cpu_vector_env *env, LLVMValueRef x);
LLVMValueRef cpu_vcopysign(const cpu_vector_env *env, LLVMValueRef magnitude, LLVMValueRef sign);

/* -- vector_math.c: functions, f32 and f64 ----------------------------------------------------------------------------- */

LLVMValueRef cpu_vsqrt(const cpu_vector_env *env, LLVMValueRef x);                     /* rounded correctly */
LLVMValueRef cpu_vrsqrt(const cpu_vector_env *env, LLVMValueRef x);                    /* 1/sqrt(x), both rounded correctly */
LLVMValueRef cpu_vexp(const cpu_vector_env *env, LLVMValueRef x);
LLVMValueRef cpu_vexp2_below(const cpu_vector_env *env, LLVMValueRef x);               /* 2^x for x < 127.5, within 2.5 ulp: shorter than exp */
LLVMValueRef cpu_vexp2_rough(const cpu_vector_env *env, LLVMValueRef x);               /* the same within 2^-13, for what is rounded to bf16 */
LLVMValueRef cpu_vlog(const cpu_vector_env *env, LLVMValueRef x);
LLVMValueRef cpu_vtanh(const cpu_vector_env *env, LLVMValueRef x);
LLVMValueRef cpu_vsigmoid(const cpu_vector_env *env, LLVMValueRef x);                  /* 1/(1 + exp(-x)) */
LLVMValueRef cpu_vsin(const cpu_vector_env *env, LLVMValueRef x);                      /* of any x: 3e38 is reduced exactly */
LLVMValueRef cpu_vcos(const cpu_vector_env *env, LLVMValueRef x);
LLVMValueRef cpu_verf(const cpu_vector_env *env, LLVMValueRef x);
LLVMValueRef cpu_verf_inv(const cpu_vector_env *env, LLVMValueRef x);                  /* erf_inv(±1) = ±inf; NaN beyond */
LLVMValueRef cpu_vpow(const cpu_vector_env *env, LLVMValueRef x, LLVMValueRef y);      /* C's pow, all its special cases */

#endif
