/* Vector mathematics against libm in f64: accuracy over the range, special values, and that a lane's result depends on that
 * lane alone. Each ISA that the machine has is tried, with 32, 16, 8, 4 and 1 lanes.
 *
 * The inputs are every n-th f32 bit pattern, so each sign, exponent and kind of mantissa comes up; RAX_TEST_STRIDE=1 is
 * all of them, a few minutes a function. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend_cpu/vector_math.h"

enum { BLOCK = 4096 };                                  /* elements a call */

typedef void block_fn(const void *x, const void *y, void *z);
typedef LLVMValueRef emit_fn(const cpu_vector_env *env, LLVMValueRef x, LLVMValueRef y);

static LLVMValueRef emit_sqrt(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_vsqrt(e, x); }
static LLVMValueRef emit_rsqrt(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_vrsqrt(e, x); }
static LLVMValueRef emit_exp(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_vexp(e, x); }
static LLVMValueRef emit_exp2_below(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y)            /* of the least of x and 127 */
{
    (void)y;
    LLVMValueRef most = cpu_vconst(e, x, 127), above = LLVMBuildFCmp(e->builder, LLVMRealOGT, x, most, "");
    return cpu_vexp2_below(e, LLVMBuildSelect(e->builder, above, most, x, ""));
}
static LLVMValueRef emit_exp2_rough(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y)
{
    (void)y;
    LLVMValueRef most = cpu_vconst(e, x, 127), above = LLVMBuildFCmp(e->builder, LLVMRealOGT, x, most, "");
    return cpu_vexp2_rough(e, LLVMBuildSelect(e->builder, above, most, x, ""));
}
static LLVMValueRef emit_log(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_vlog(e, x); }
static LLVMValueRef emit_tanh(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_vtanh(e, x); }
static LLVMValueRef emit_sigmoid(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_vsigmoid(e, x); }
static LLVMValueRef emit_sin(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_vsin(e, x); }
static LLVMValueRef emit_cos(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_vcos(e, x); }
static LLVMValueRef emit_erf(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_verf(e, x); }
static LLVMValueRef emit_erf_inv(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_verf_inv(e, x); }
static LLVMValueRef emit_pow(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { return cpu_vpow(e, x, y); }
static LLVMValueRef emit_floor(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_vfloor(e, x); }
static LLVMValueRef emit_trunc(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_vtrunc(e, x); }
static LLVMValueRef emit_to_bf16(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_vbf16_from_f32(e, x); }
static LLVMValueRef emit_from_bf16(const cpu_vector_env *e, LLVMValueRef x, LLVMValueRef y) { (void)y; return cpu_vf32_from_bf16(e, x); }

static double exp2_below_f64(double x) { return exp2(x > 127 ? 127 : x); }
static double rsqrt_f64(double x) { return 1 / sqrt(x); }
static double sigmoid_f64(double x) { return 1 / (1 + exp(-x)); }
static double erf_inv_f64(double x)                     /* bisection would do; Newton from the asymptotic start is quicker */
{
    double a = fabs(x);
    if (!(a < 1)) return a == 1 ? copysign(INFINITY, x) : NAN;
    double w = -log1p(-a * a), y = a < 0.7 ? a * 0.886 : sqrt(w - 0.5 * log(w * 0.7853981633974483 + 1e-3) * (w > 1));
    for (int i = 0; i < 60; i++) {
        double error = a < 0.5 ? erf(y) - a : (1 - a) - erfc(y), step = error / (1.1283791670955126 * exp(-y * y));
        step /= 1 + y * step;
        y -= step;
        if (fabs(step) <= 1e-17 * y) break;
    }
    return copysign(y, x);
}

/* One function, its reference, and the error that vector_math.h promises. */
typedef struct { const char *name; emit_fn *emit; double (*reference)(double); double ulp; } function;
static const function functions[] = {
    {"sqrt", emit_sqrt, sqrt, 0.5},
    {"rsqrt", emit_rsqrt, rsqrt_f64, 1.5},
    {"exp", emit_exp, exp, 1.0},
    {"log", emit_log, log, 1.0},
    {"tanh", emit_tanh, tanh, 1.5},
    {"sigmoid", emit_sigmoid, sigmoid_f64, 2.5},
    {"sin", emit_sin, sin, 2.0},
    {"cos", emit_cos, cos, 2.0},
    {"erf", emit_erf, erf, 1.5},
    {"erf_inv", emit_erf_inv, erf_inv_f64, 3.5},
    {"floor", emit_floor, floor, 0},
    {"trunc", emit_trunc, trunc, 0},
    {"exp2_below", emit_exp2_below, exp2_below_f64, 2.5},
    {"exp2_rough", emit_exp2_rough, exp2_below_f64, 2048},         /* 2^-13 of numbers just below a power of two */
};

/* -- compiling ------------------------------------------------------------------------------------------------------- */

enum { F32, F64, BF16 };                                /* BF16: i16 lanes */

/* void name(x, y, z): z[i] = emit(x[i], y[i]) for BLOCK elements, lanes at a time, or with masks where masked. */
static void build(LLVMContextRef context, LLVMModuleRef module, cpu_isa isa, int lanes, int from, int to, bool masked,
                  emit_fn *emit, const char *name)
{
    LLVMTypeRef pointer = LLVMPointerTypeInContext(context, 0), i64 = LLVMInt64TypeInContext(context);
    LLVMTypeRef types[] = {LLVMFloatTypeInContext(context), LLVMDoubleTypeInContext(context), LLVMInt16TypeInContext(context)};
    LLVMTypeRef type = LLVMFunctionType(LLVMVoidTypeInContext(context), (LLVMTypeRef[]){pointer, pointer, pointer}, 3, 0);
    LLVMValueRef f = LLVMAddFunction(module, name, type);
    LLVMBasicBlockRef entry = LLVMAppendBasicBlockInContext(context, f, ""), loop = LLVMAppendBasicBlockInContext(context, f, "");
    LLVMBasicBlockRef exit = LLVMAppendBasicBlockInContext(context, f, "");
    cpu_vector_env env = {context, module, LLVMCreateBuilderInContext(context), isa, lanes};
    int step = masked && lanes > 1 ? lanes - 1 : lanes; /* one lane off: every element comes to every lane but the last */

    LLVMPositionBuilderAtEnd(env.builder, entry);
    LLVMBuildBr(env.builder, loop);
    LLVMPositionBuilderAtEnd(env.builder, loop);
    LLVMValueRef i = LLVMBuildPhi(env.builder, i64, ""), block = LLVMConstInt(i64, BLOCK, 0), mask = NULL;
    if (masked) {
        LLVMValueRef left = LLVMBuildSub(env.builder, block, i, ""), most = LLVMConstInt(i64, (unsigned)step, 0);
        LLVMValueRef few = LLVMBuildICmp(env.builder, LLVMIntULT, left, most, "");
        mask = cpu_vmask(&env, LLVMBuildSelect(env.builder, few, left, most, ""));
    }
    LLVMValueRef x = cpu_vload(&env, types[from], LLVMBuildGEP2(env.builder, types[from], LLVMGetParam(f, 0), &i, 1, ""), mask);
    LLVMValueRef y = cpu_vload(&env, types[from], LLVMBuildGEP2(env.builder, types[from], LLVMGetParam(f, 1), &i, 1, ""), mask);
    cpu_vstore(&env, emit(&env, x, y), LLVMBuildGEP2(env.builder, types[to], LLVMGetParam(f, 2), &i, 1, ""), mask);
    LLVMValueRef next = LLVMBuildAdd(env.builder, i, LLVMConstInt(i64, (unsigned)step, 0), "");
    LLVMAddIncoming(i, (LLVMValueRef[]){LLVMConstInt(i64, 0, 0), next}, (LLVMBasicBlockRef[]){entry, loop}, 2);
    LLVMBuildCondBr(env.builder, LLVMBuildICmp(env.builder, LLVMIntULT, next, block, ""), loop, exit);
    LLVMPositionBuilderAtEnd(env.builder, exit);
    LLVMBuildRetVoid(env.builder);
    LLVMDisposeBuilder(env.builder);
}

typedef struct { cpu_code *code; block_fn *run; } compiled;

static compiled compile(cpu_isa isa, int lanes, int from, int to, bool masked, emit_fn *emit)
{
    cpu_machine machine;
    assert_true(cpu_machine_detect(&machine, cpu_isa_name(isa)));
    cpu_jit *jit = cpu_jit_new(&machine);
    assert_non_null(jit);
    cpu_jit_set_verify(jit, true);
    LLVMContextRef context = LLVMContextCreate();
    LLVMModuleRef module = cpu_jit_module(jit, "vector_math", context);
    build(context, module, isa, lanes, from, to, masked, emit, "run");
    base_bytes object;
    if (!cpu_jit_compile(jit, module, &object))
        fail_msg("%s", base_error());
    compiled c = {cpu_code_load(&object, 1, NULL, 0), NULL};
    if (c.code == NULL)
        fail_msg("%s", base_error());
    void *at = cpu_code_find(c.code, "run");
    memcpy(&c.run, &at, sizeof at);
    base_bytes_free(&object);
    LLVMDisposeModule(module);
    LLVMContextDispose(context);
    cpu_jit_free(jit);
    return c;
}

static cpu_isa own_isa(void)
{
    cpu_machine machine;
    assert_true(cpu_machine_detect(&machine, NULL));
    return machine.own_isa;
}

/* -- accuracy -------------------------------------------------------------------------------------------------------- */

static float from_bits(uint32_t b) { float x; memcpy(&x, &b, 4); return x; }
static uint32_t to_bits(float x) { uint32_t b; memcpy(&b, &x, 4); return b; }

/* |got - exact| in units in the last place of an f32 of exact's size; infinity where one is NaN or infinite and not the other. */
static double ulp_error(float got, double exact)
{
    float rounded = (float)exact;
    if (isnan(exact) || isnan(got))
        return isnan(exact) && isnan(got) ? 0 : INFINITY;
    if (got == rounded && (isinf(got) || got == 0))
        return 0;
    if (isinf(rounded) && !isinf(got))                  /* as if exponents went on */
        return fabs(got - exact) / 0x1p104;
    if (isinf(got))
        return isinf(exact) ? INFINITY : fabs(0x1p128 - fabs(exact)) / 0x1p104;
    int exponent;
    frexp(exact, &exponent);
    return fabs(got - exact) / ldexp(1, MAX(exponent, -125) - 24);
}

static uint32_t stride(uint32_t usual)
{
    const char *text = getenv("RAX_TEST_STRIDE");
    return text != NULL && atoi(text) > 0 ? (uint32_t)atoi(text) : usual;
}

static void check_accuracy(const function *f, cpu_isa isa, int lanes, uint32_t step)
{
    static float x[BLOCK], z[BLOCK];
    compiled c = compile(isa, lanes, F32, F32, false, f->emit);
    double worst = -1, limit = f->ulp;
    float worst_x = 0, worst_z = 0;
    for (uint64_t b = 0; b < 0x100000000u; ) {
        for (int i = 0; i < BLOCK; i++, b += step)
            x[i] = from_bits((uint32_t)b);              /* wraps round at the end */
        c.run(x, x, z);
        for (int i = 0; i < BLOCK; i++) {
            double error = ulp_error(z[i], f->reference((double)x[i]));
            if (error > worst)
                worst = error, worst_x = x[i], worst_z = z[i];
        }
    }
    print_message("# %-8s %-10s %2d lanes: %.3f ulp at %a\n", f->name, cpu_isa_name(isa), lanes, worst, (double)worst_x);
    if (!(worst <= limit))
        fail_msg("%s, %s, %d lanes: x %a (%.9g): expected %a, got %a: %.3f ulp, promised %.1f", f->name, cpu_isa_name(isa), lanes,
                 (double)worst_x, (double)worst_x, f->reference((double)worst_x), (double)worst_z, worst, limit);
    cpu_code_free(c.code);
}

static void accuracy_over_all_floats(void **state)
{
    (void)state;
    for (cpu_isa isa = CPU_GENERIC; isa <= own_isa(); isa++)
        for (size_t i = 0; i < COUNT_OF(functions); i++)
            check_accuracy(&functions[i], isa, isa >= CPU_AVX512 ? 16 : isa == CPU_AVX2 ? 8 : 4, stride(isa == CPU_AVX512 ? 1021 : 4093));
}

static const function *function_of(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(functions); i++)
        if (strcmp(functions[i].name, name) == 0)
            return &functions[i];
    fail_msg("there is no function %s", name);
    return NULL;
}

/* Where errors gather: every float near the joints of the approximations. */
static void accuracy_at_joints(void **state)
{
    (void)state;
    static const struct { const char *name; float at; } joints[] = {
        {"exp", 88.722839f}, {"exp", -87.336548f}, {"exp", -103.97208f}, {"exp", 0.34657359f}, {"exp", 0.021660849f}, {"log", 1},
        {"log", 0.70710678f}, {"log", 0x1p-126f}, {"tanh", 9.02f}, {"tanh", 0.17328680f}, {"tanh", 0.55f}, {"tanh", 1e-4f},
        {"sigmoid", -88}, {"sigmoid", 17}, {"sin", 0.78539816f}, {"sin", 3.1415927f}, {"sin", 16367173.0f * 0x1p72f},
        {"cos", 1.5707964f}, {"cos", 0.78539816f}, {"erf", 1}, {"erf", 3.95f}, {"erf_inv", 0.99663f},
        {"erf_inv", 0.99999994f}, {"erf_inv", 0.5f}, {"exp2_below", 0.5f}, {"exp2_below", -126},
        {"exp2_below", -149.5f}, {"exp2_below", -150}};
    static float x[BLOCK], z[BLOCK];
    for (size_t j = 0; j < COUNT_OF(joints); j++) {
        const function *f = function_of(joints[j].name);
        compiled c = compile(own_isa(), 16, F32, F32, false, f->emit);
        for (int sign = 0; sign < 2; sign++) {
            for (int i = 0; i < BLOCK; i++)
                x[i] = from_bits((to_bits(joints[j].at) + (uint32_t)(i - BLOCK / 2)) ^ ((uint32_t)sign << 31));
            c.run(x, x, z);
            for (int i = 0; i < BLOCK; i++)
                if (!(ulp_error(z[i], f->reference((double)x[i])) <= f->ulp))
                    fail_msg("%s: x %a: expected %a, got %a: %.3f ulp", f->name, (double)x[i], f->reference((double)x[i]),
                             (double)z[i], ulp_error(z[i], f->reference((double)x[i])));
        }
        cpu_code_free(c.code);
    }
}

static const float special[] = {0.0f, -0.0f, 1, -1, 2, -2, 3, -3, 0.5f, -0.5f, 1.5f, -1.5f, 0x1p-149f, -0x1p-149f, 0x1p-126f, 0x1.fffffep127f,
                                -0x1.fffffep127f, 16777215, 16777216, -16777215, 0x1.fffffep-1f, 0x1.000002p0f, 100, -100,
                                INFINITY, -INFINITY, NAN, 88.7f, -103.9f, 7, -7, 1e10f};

static void special_values(void **state)
{
    (void)state;
    static float x[BLOCK], z[BLOCK];
    for (cpu_isa isa = CPU_GENERIC; isa <= own_isa(); isa++)
        for (size_t j = 0; j < COUNT_OF(functions); j++) {
            compiled c = compile(isa, 8, F32, F32, false, functions[j].emit);
            for (int i = 0; i < BLOCK; i++)
                x[i] = special[(size_t)i % COUNT_OF(special)];
            c.run(x, x, z);
            for (int i = 0; i < BLOCK; i++)
                if (!(ulp_error(z[i], functions[j].reference((double)x[i])) <= functions[j].ulp))
                    fail_msg("%s(%a): expected %a, got %a", functions[j].name, (double)x[i], functions[j].reference((double)x[i]), (double)z[i]);
            cpu_code_free(c.code);
        }
}

static uint32_t next_random(uint32_t *state) { return *state = *state * 1664525u + 1013904223u; }

static void pow_is_right(void **state)
{
    (void)state;
    static float x[BLOCK], y[BLOCK], z[BLOCK];
    for (cpu_isa isa = CPU_GENERIC; isa <= own_isa(); isa++) {
        compiled c = compile(isa, isa == CPU_GENERIC ? 4 : 8, F32, F32, false, emit_pow);
        uint32_t seed = 1;
        double worst = 0;
        for (int round = 0; round < 200; round++) {
            for (int i = 0; i < BLOCK; i++) {
                uint32_t a = next_random(&seed), b = next_random(&seed) >> 8;
                if (round == 0) {                       /* every pair of special values */
                    x[i] = special[(size_t)i % COUNT_OF(special)], y[i] = special[(size_t)i / COUNT_OF(special) % COUNT_OF(special)];
                } else if (round < 100) {               /* results all over the range */
                    x[i] = from_bits(a & 0x7fffffff), y[i] = (float)b * 0x1p-24f * 4 - 2;
                } else if (round < 150) {               /* near 1, large powers */
                    x[i] = 1 + ((float)(a >> 8) * 0x1p-24f - 0.5f) * 1e-3f, y[i] = ((float)b * 0x1p-24f - 0.5f) * 3e5f;
                } else {                                /* negative, whole powers */
                    x[i] = -(float)(a >> 8) * 0x1p-20f, y[i] = (float)((int)(b % 60) - 30);
                }
            }
            c.run(x, y, z);
            for (int i = 0; i < BLOCK; i++) {
                double exact = pow((double)x[i], (double)y[i]), error = ulp_error(z[i], exact);
                worst = MAX(worst, error);
                if (!(error <= 0.6))
                    fail_msg("pow(%a, %a), %s: expected %a, got %a: %.3f ulp", (double)x[i], (double)y[i], cpu_isa_name(isa), exact, (double)z[i], error);
            }
        }
        print_message("# pow      %-10s  %.3f ulp\n", cpu_isa_name(isa), worst);
        cpu_code_free(c.code);
    }
}

/* -- the same bits everywhere ---------------------------------------------------------------------------------------- */

static void results_do_not_depend_on_the_lane(void **state)
{
    (void)state;
    static float x[BLOCK], z[5][BLOCK];
    uint32_t seed = 7;
    for (int i = 0; i < BLOCK; i++) {
        uint32_t b = next_random(&seed);
        x[i] = i % 3 ? from_bits(b) : (float)(b >> 8) * 0x1p-22f - 2;          /* of any size; within 2 of 0 */
    }
    for (cpu_isa isa = CPU_GENERIC; isa <= own_isa(); isa++)
        for (size_t j = 0; j < COUNT_OF(functions); j++) {
            int lanes[] = {16, 8, 1, 32, 16};
            for (int k = 0; k < 5; k++) {
                compiled c = compile(isa, lanes[k], F32, F32, k == 4, functions[j].emit);
                c.run(x, x, z[k]);
                cpu_code_free(c.code);
            }
            for (int k = 1; k < 5; k++)
                for (int i = 0; i < BLOCK; i++)
                    if (to_bits(z[k][i]) != to_bits(z[0][i]) && !(isnan(z[k][i]) && isnan(z[0][i])))
                        fail_msg("%s(%a), %s: %a in 16 lanes, %a in %d%s", functions[j].name, (double)x[i], cpu_isa_name(isa),
                                 (double)z[0][i], (double)z[k][i], lanes[k], k == 4 ? ", masked" : "");
        }
}

static void masks_touch_nothing_else(void **state)
{
    (void)state;
    static float x[BLOCK], z[BLOCK + 16];
    for (int lanes = 16; lanes >= 1; lanes = lanes == 1 ? 0 : 1) {
        compiled c = compile(own_isa(), lanes, F32, F32, true, emit_floor);
        for (int i = 0; i < BLOCK + 16; i++)
            z[i] = -7;
        c.run(x, x, z);
        for (int i = 0; i < BLOCK + 16; i++)
            assert_true(z[i] == (i < BLOCK ? 0 : -7));
        cpu_code_free(c.code);
    }
}

/* -- bf16, f64 ------------------------------------------------------------------------------------------------------- */

static uint16_t bf16_of(float x, bool flush)
{
    uint32_t b = to_bits(x);
    if (isnan(x))
        return (uint16_t)(b >> 16 | 0x40);
    if (flush && (b & 0x7fffffff) < 0x800000)
        return (uint16_t)(b >> 16 & 0x8000);
    return (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

static void bf16_conversions(void **state)
{
    (void)state;
    static float x[BLOCK];
    static uint16_t h[BLOCK];
    for (cpu_isa isa = CPU_GENERIC; isa <= own_isa(); isa++)
        for (int lanes = 1; lanes <= 32; lanes *= 2) {
            compiled narrow = compile(isa, lanes, F32, BF16, false, emit_to_bf16), wide = compile(isa, lanes, BF16, F32, false, emit_from_bf16);
            uint32_t step = stride(65521);
            for (uint64_t b = 0; b < 0x100000000u; ) {
                for (int i = 0; i < BLOCK; i++, b += step)
                    x[i] = from_bits(i % 2 ? (uint32_t)b : ((uint32_t)b & 0xffff0000u) | 0x8000u);   /* every other one a tie */
                narrow.run(x, x, h);
                for (int i = 0; i < BLOCK; i++)
                    if (h[i] != bf16_of(x[i], isa >= CPU_AVX512BF16))
                        fail_msg("%s, %d lanes: %a: expected %04x, got %04x", cpu_isa_name(isa), lanes, (double)x[i], bf16_of(x[i], isa >= CPU_AVX512BF16), h[i]);
                wide.run(h, h, x);
                for (int i = 0; i < BLOCK; i++)
                    assert_int_equal(to_bits(x[i]), (uint32_t)h[i] << 16);
            }
            cpu_code_free(narrow.code);
            cpu_code_free(wide.code);
        }
}

static void f64_functions(void **state)
{
    (void)state;
    static double x[BLOCK], z[BLOCK];
    for (size_t j = 0; j < COUNT_OF(functions); j++) {
        compiled c = compile(own_isa(), 8, F64, F64, false, functions[j].emit);
        for (int i = 0; i < BLOCK; i++)
            x[i] = i < (int)COUNT_OF(special) ? (double)special[i] : (i - BLOCK / 2) * (i % 2 ? 0.00048 : 0.02);
        x[100] = 1 - 0x1p-53, x[101] = 0x1p-1000, x[102] = -700.5;
        c.run(x, x, z);
        for (int i = 0; i < BLOCK; i++) {
            double exact = functions[j].reference(x[i]);
            if (!(fabs(z[i] - exact) <= 4e-16 * fabs(exact)) && !(isnan(exact) && isnan(z[i])) && exact != z[i])
                fail_msg("%s(%a): expected %a, got %a", functions[j].name, x[i], exact, z[i]);
        }
        cpu_code_free(c.code);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accuracy_over_all_floats),
        cmocka_unit_test(accuracy_at_joints),
        cmocka_unit_test(special_values),
        cmocka_unit_test(pow_is_right),
        cmocka_unit_test(results_do_not_depend_on_the_lane),
        cmocka_unit_test(masks_touch_nothing_else),
        cmocka_unit_test(bf16_conversions),
        cmocka_unit_test(f64_functions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
