/* Elementary functions as straight-line vector code.
 *
 * Each function reduces its argument to a small interval, evaluates a polynomial there, and undoes the reduction; what a
 * branch would do, a select does. The polynomials are minimax in relative error of the function, fitted by Remez exchange in
 * 50 digits and then rounded to f32; beside each stands the error before rounding. Where f32 could only be right with
 * pairs of numbers (pow, the reduction of sin and cos), the arithmetic is f64: half the lanes, a third of the instructions.
 *
 * Two idioms recur. Adding 1.5 * 2^23 to a small f32 rounds it to an integer and leaves that integer in the low bits of the
 * sum, which NaN and infinity survive where a conversion to integer would be undefined. And select(x < a, a, x) clamps and
 * keeps NaN, for the comparison is false; it is one instruction on x86. */
#include "backend_cpu/vector_words.h"

#include <math.h>

/* -- arithmetic ------------------------------------------------------------------------------------------------------ */

static value sub(env *e, value a, value b) { return LLVMBuildFSub(e->builder, a, b, ""); }
static value divide(env *e, value a, value b) { return LLVMBuildFDiv(e->builder, a, b, ""); }
static value isub(env *e, value a, value b) { return LLVMBuildSub(e->builder, a, b, ""); }
static value times(env *e, value x, double factor) { return mul(e, x, real(LLVMTypeOf(x), factor)); }
static value plus(env *e, value x, double term) { return add(e, x, real(LLVMTypeOf(x), term)); }
static value shift_signed(env *e, value x, int n) { return LLVMBuildAShr(e->builder, x, bits(LLVMTypeOf(x), (uint64_t)n), ""); }

static value at_least(env *e, value x, double low)         /* NaN stays */
{
    value bound = real(LLVMTypeOf(x), low);
    return choose(e, compare(e, LLVMRealOLT, x, bound), bound, x);
}

static value at_most(env *e, value x, double high)
{
    value bound = real(LLVMTypeOf(x), high);
    return choose(e, compare(e, LLVMRealOGT, x, bound), bound, x);
}

/* c[0] + c[1]*x + ... by Horner's rule: the shortest code, and kernels have other lanes to fill its latency. */
static value polynomial(env *e, value x, const double *c, int n)
{
    LLVMTypeRef type = LLVMTypeOf(x);
    value sum = real(type, c[n - 1]);
    for (int i = n - 2; i >= 0; i--)
        sum = cpu_vfma(e, sum, x, real(type, c[i]));
    return sum;
}
#define POLYNOMIAL(e, x, c) polynomial((e), (x), (c), (int)COUNT_OF(c))

/* -- f64: libm, lane by lane ------------------------------------------------------------------------------------------ */

static value libm(env *e, const char *name, value *args, int n)
{
    LLVMTypeRef f64 = LLVMDoubleTypeInContext(e->context), i32 = LLVMInt32TypeInContext(e->context);
    LLVMTypeRef type = LLVMFunctionType(f64, (LLVMTypeRef[]){f64, f64}, (unsigned)n, 0);
    value function = LLVMGetNamedFunction(e->module, name);
    if (function == NULL)
        function = LLVMAddFunction(e->module, name, type);
    if (LLVMGetTypeKind(LLVMTypeOf(args[0])) != LLVMVectorTypeKind)
        return LLVMBuildCall2(e->builder, type, function, args, (unsigned)n, "");
    value result = LLVMGetPoison(LLVMTypeOf(args[0]));
    for (int i = 0; i < lanes_of(args[0]); i++) {
        value lane = LLVMConstInt(i32, (unsigned)i, 0), at[2];
        for (int j = 0; j < n; j++)
            at[j] = LLVMBuildExtractElement(e->builder, args[j], lane, "");
        value y = LLVMBuildCall2(e->builder, type, function, at, (unsigned)n, "");
        result = LLVMBuildInsertElement(e->builder, result, y, lane, "");
    }
    return result;
}

static value libm1(env *e, const char *name, value x) { return libm(e, name, &x, 1); }

/* -- exp, sigmoid, tanh ---------------------------------------------------------------------------------------------- */

/* ln 2 in two parts; the first has 9 bits, so that its product with an exponent is exact without a fused multiply-add. */
static const double ln2_high = 0x1.63p-1, ln2_low = -0x1.bd0106p-13;
static const double round_f32 = 0x1.8p23;                  /* see the top of the file */

/* y = n*ln2 + r with |r| <= ln2/2, n being the integer in the low bits of n_bits. */
typedef struct { value n_bits, r; } exponent_split;

static exponent_split split_exponent(env *e, value y)
{
    LLVMTypeRef f32 = LLVMTypeOf(y);
    exponent_split s;
    value shifted = cpu_vfma(e, y, real(f32, 0x1.715476p0), real(f32, round_f32));
    s.n_bits = bitcast(e, shifted, i32_like(e, y));
    value n = plus(e, shifted, -round_f32);
    s.r = cpu_vfma(e, n, real(f32, -ln2_high), y);
    s.r = cpu_vfma(e, n, real(f32, -ln2_low), s.r);
    return s;
}

/* p * 2^n, rounded once, for |n| <= 252: in two factors, so that neither leaves the range of exponents. */
static value scale_by_exponent(env *e, value p, value n_bits)
{
    LLVMTypeRef i32 = LLVMTypeOf(n_bits), f32 = LLVMTypeOf(p);
    value n = isub(e, n_bits, bits(i32, 0x4b400000));      /* the bits of round_f32 */
    value half = shift_signed(e, n, 1), rest = isub(e, n, half);
    value low = bitcast(e, shift_left(e, iadd(e, half, bits(i32, 127)), 23), f32);
    value high = bitcast(e, shift_left(e, iadd(e, rest, bits(i32, 127)), 23), f32);
    return mul(e, mul(e, p, low), high);
}

/* AVX-512: p * 2^floor(n), rounded once, for any n. */
static value scalef(env *e, value p, value n)
{
    value all = LLVMConstInt(LLVMInt16TypeInContext(e->context), 0xffff, 0);
    value as_is = LLVMConstInt(LLVMInt32TypeInContext(e->context), 4, 0);
    return call_on(e, "llvm.x86.avx512.mask.scalef.ps.512", NULL, 0, (value[]){p, n, p, all, as_is}, 5);
}

/* exp(r) = 1 + r + r^2 q(r) on |r| <= ln2/2: 2^-28.2; on |r| <= ln2/32: 2^-29.2. */
static const double exp_q[] = {0x1.fffffcp-2, 0x1.55548ap-3, 0x1.555916p-5, 0x1.123fc6p-7, 0x1.6a1a8cp-10};
static const double exp_q_near[] = {0x1.00021ep-1, 0x1.55559ap-3};

/* AVX-512: 2^(index/16), of which index has 4 bits, rounded; and what that leaves out. */
static value sixteenths(env *e, value index, bool rest)
{
    value entry[16];
    for (int i = 0; i < 16; i++) {
        double power = exp2(i / 16.0), rounded = (double)(float)power;
        entry[i] = LLVMConstReal(LLVMFloatTypeInContext(e->context), rest ? power - rounded : rounded);
    }
    return call_on(e, "llvm.x86.avx512.permvar.sf.512", NULL, 0, (value[]){LLVMConstVector(entry, 16), index}, 2);
}

static value exp2_sixteenths(env *e, value index, value none) { (void)none; return sixteenths(e, index, false); }
static value exp2_sixteenths_rest(env *e, value index, value none) { (void)none; return sixteenths(e, index, true); }

/* AVX-512: x = n*ln2 + r, n a multiple of 1/16, 2^n by exponent and tables. What multiplies bounds vector code, and that is two instructions less than
 * in the way below. */
static value exp_by_table(env *e, value x)
{
    LLVMTypeRef f32 = LLVMTypeOf(x);
    value shifted = cpu_vfma(e, x, real(f32, 0x1.715476p0), real(f32, round_f32 / 16)), index = bitcast(e, shifted, i32_like(e, x));
    value n = plus(e, shifted, -round_f32 / 16);
    value r = cpu_vfma(e, n, real(f32, -ln2_high), x);
    r = cpu_vfma(e, n, real(f32, -ln2_low), r);
    value t = cpu_vby_16_lanes(e, exp2_sixteenths, index, NULL), rest = cpu_vby_16_lanes(e, exp2_sixteenths_rest, index, NULL);
    value r2 = mul(e, r, r), p = cpu_vfma(e, r2, POLYNOMIAL(e, r, exp_q_near), r);
    return cpu_vby_16_lanes(e, scalef, add(e, t, cpu_vfma(e, t, p, rest)), n);
}

/* For -104 <= x <= 89, and NaN. */
static value exp_within(env *e, value x)
{
    if (e->isa >= CPU_AVX512)
        return exp_by_table(e, x);
    exponent_split s = split_exponent(e, x);
    value r2 = mul(e, s.r, s.r), p = cpu_vfma(e, r2, POLYNOMIAL(e, s.r, exp_q), s.r);
    return scale_by_exponent(e, plus(e, p, 1), s.n_bits);
}

value cpu_vexp(env *e, value x)
{
    if (is_f64(x))
        return libm1(e, "exp", x);
    return exp_within(e, at_most(e, at_least(e, x, -104), 89));      /* exp(-104) rounds to 0, exp(89) to infinity */
}

/* 2^f by polynomials, without the accurate reduction of exp: of f, |f| <= 1/2, within 2^-23.4 and 2^-13.7; and of f, 0 <= f <= 1, within
 * 2^-29 and 2^-13.5. */
static const double exp2_near[] = {1, 0x1.62e42ap-1, 0x1.ebf9bcp-3, 0x1.c6b752p-5, 0x1.3cea88p-7, 0x1.5bba18p-10};
static const double exp2_near_rough[] = {0.9999280735393679, 0.6932609854607087, 0.24261112219343306, 0.055171669057768505};
static const double exp2_above[] = {1, 0.6931470444433256, 0.24022930555223293, 0.05548528061859608, 0.009675451567073255, 0.0012467846444336823, 0.0002161291496144282};
static const double exp2_above_rough[] = {1, 0.6951167864172784, 0.22764499119559342, 0.07706704199883592};

/* AVX-512: x - floor(x), the difference rounded towards -inf; 0 of infinities. */
static value fraction(env *e, value x, value none)
{
    (void)none;
    value all = LLVMConstInt(LLVMInt16TypeInContext(e->context), 0xffff, 0);
    value to_floor = LLVMConstInt(LLVMInt32TypeInContext(e->context), 9, 0), as_is = LLVMConstInt(LLVMInt32TypeInContext(e->context), 4, 0);
    return call_on(e, "llvm.x86.avx512.mask.reduce.ps.512", NULL, 0, (value[]){x, to_floor, x, all, as_is}, 5);
}

static value exp2_of(env *e, value x, bool rough)
{
    if (is_f64(x))
        return libm1(e, "exp2", x);
    if (e->isa >= CPU_AVX512) {
        value f = cpu_vby_16_lanes(e, fraction, x, NULL);
        return cpu_vby_16_lanes(e, scalef, rough ? POLYNOMIAL(e, f, exp2_above_rough) : POLYNOMIAL(e, f, exp2_above), x);
    }
    x = at_least(e, x, -150);                              /* 2^-150 rounds to 0 */
    value shifted = plus(e, x, round_f32), f = sub(e, x, plus(e, shifted, -round_f32));
    value p = rough ? POLYNOMIAL(e, f, exp2_near_rough) : POLYNOMIAL(e, f, exp2_near);
    return scale_by_exponent(e, p, bitcast(e, shifted, i32_like(e, x)));
}

value cpu_vexp2_below(env *e, value x) { return exp2_of(e, x, false); }
value cpu_vexp2_rough(env *e, value x) { return exp2_of(e, x, true); }

value cpu_vsigmoid(env *e, value x)
{
    value one = real(LLVMTypeOf(x), 1), below = LLVMBuildFNeg(e->builder, cpu_vabs(e, x), "");
    value t = is_f64(x) ? libm1(e, "exp", below) : exp_within(e, at_least(e, below, -104));  /* never overflows, so small results survive */
    value above = compare(e, LLVMRealOGE, x, real(LLVMTypeOf(x), 0));
    value numerator = choose(e, above, one, t);
    return divide(e, numerator, add(e, one, t));
}

/* tanh(x) = x + x^3 P(x^2) on |x| <= 0.55: 2^-29.8. Beyond, 1 - 2/(exp(2|x|) + 1), which would cancel nearer to 0. */
static const double tanh_p[] = {-0x1.55554ap-2, 0x1.110d26p-3, -0x1.b9287ap-5, 0x1.593d06p-6, -0x1.9b3044p-8};

value cpu_vtanh(env *e, value x)
{
    if (is_f64(x))
        return libm1(e, "tanh", x);
    LLVMTypeRef f32 = LLVMTypeOf(x);
    value one = real(f32, 1), a = cpu_vabs(e, x), x2 = mul(e, x, x);
    value x3 = mul(e, x2, a), near = cpu_vfma(e, x3, POLYNOMIAL(e, x2, tanh_p), a);
    value far = sub(e, one, divide(e, real(f32, 2), plus(e, exp_within(e, at_most(e, add(e, a, a), 89)), 1)));
    return cpu_vcopysign(e, choose(e, compare(e, LLVMRealOLT, a, real(f32, 0.55)), near, far), x);
}

/* -- log, sqrt ------------------------------------------------------------------------------------------------------- */

/* log(1+f) = f - f^2/2 + f^3 P(f), sqrt(1/2) <= 1+f < sqrt(2): 2^-30.3. */
static const double log_p[] = {0x1.555548p-2, -0x1.000006p-2, 0x1.99a4b6p-3, -0x1.555c4ep-3, 0x1.233768p-3,
                               -0x1.fc2206p-4, 0x1.e6f06ap-4, -0x1.de3c16p-4, 0x1.1457acp-4};

value cpu_vlog(env *e, value x)
{
    if (is_f64(x))
        return libm1(e, "log", x);
    LLVMTypeRef i32 = i32_like(e, x), f32 = LLVMTypeOf(x);
    value zero = real(f32, 0), infinity = real(f32, INFINITY);

    value denormal = compare(e, LLVMRealOLT, x, real(f32, 0x1p-126));
    value normal = choose(e, denormal, times(e, x, 0x1p23), x);
    value b = isub(e, bitcast(e, normal, i32), bits(i32, 0x3f3504f3));         /* the bits of sqrt(1/2) */
    value n = LLVMBuildSIToFP(e->builder, shift_signed(e, b, 23), f32, "");
    n = sub(e, n, choose(e, denormal, real(f32, 23), zero));
    value f = plus(e, bitcast(e, iadd(e, and(e, b, bits(i32, 0x7fffff)), bits(i32, 0x3f3504f3)), f32), -1);

    value f2 = mul(e, f, f), f3 = mul(e, f2, f), p = POLYNOMIAL(e, f, log_p);
    value small = cpu_vfma(e, f3, p, times(e, n, ln2_low));
    value y = add(e, f, cpu_vfma(e, f2, real(f32, -0.5), small));
    y = cpu_vfma(e, n, real(f32, ln2_high), y);

    y = choose(e, compare(e, LLVMRealOEQ, x, infinity), infinity, y);
    y = choose(e, compare(e, LLVMRealOEQ, x, zero), real(f32, -INFINITY), y);
    return choose(e, compare(e, LLVMRealULT, x, zero), real(f32, NAN), y);      /* NaN too is "unordered or less" */
}

value cpu_vsqrt(env *e, value x) { return call1(e, "llvm.sqrt", x); }
value cpu_vrsqrt(env *e, value x) { return divide(e, real(LLVMTypeOf(x), 1), cpu_vsqrt(e, x)); }

/* -- sin, cos -------------------------------------------------------------------------------------------------------- */

/* 2/pi in binary: word i has the bits of weights 2^-(32i+1) to 2^-(32i+32). */
static const uint32_t two_over_pi[] = {0xa2f9836e, 0x4e441529, 0xfc2757d1, 0xf534ddc0, 0xdb629599, 0x3c439041,
                                       0xfe5163ab, 0xdebbc561, 0xb7246e3a};

/* n bits of 2/pi, of weights 2^-from down, as a number: exact, or rounded to 53 bits from the first that is 1. */
static double two_over_pi_bits(int from, int n)
{
    double sum = 0;
    for (int i = from; i < from + n; i++)
        if (two_over_pi[(i - 1) / 32] >> (31 - (i - 1) % 32) & 1)
            sum += ldexp(1, -i);
    return sum;
}

/* For each exponent of an f32 x, the bits of 2/pi that decide x * 2/pi modulo 4: those above give whole multiples of 4 with
 * every bit of x, those far below nothing that is seen. First the leading 29 (times 24 bits of x: exact in f64), then the rest,
 * 53 bits after as many zeros as there happen to be (Payne and Hanek, "Radian reduction for trigonometric functions", 1983). Of infinity and NaN: NaN. */
static value reduction_table(env *e)
{
    enum { LEADING = 29, TRAILING = 120 };
    const char *name = "cpu_two_over_pi";
    value table = LLVMGetNamedGlobal(e->module, name);
    if (table != NULL)
        return table;
    LLVMTypeRef f64 = LLVMDoubleTypeInContext(e->context), type = LLVMArrayType(f64, 512);
    value entry[512];
    for (int exponent = 0; exponent < 256; exponent++) {
        int last_bit = MAX(exponent, 1) - 127 - 23;        /* the weight of the last bit of x is 2^last_bit */
        int from = MAX(last_bit - 1, 1);                   /* 2^-from * 2^last_bit = 2: the first that is not a multiple of 4 */
        double high = two_over_pi_bits(from, LEADING), low = two_over_pi_bits(from + LEADING, TRAILING);
        entry[2 * exponent] = LLVMConstReal(f64, exponent == 255 ? NAN : high);
        entry[2 * exponent + 1] = LLVMConstReal(f64, exponent == 255 ? NAN : low);
    }
    table = LLVMAddGlobal(e->module, type, name);
    LLVMSetInitializer(table, LLVMConstArray(f64, entry, 512));
    LLVMSetGlobalConstant(table, 1);
    LLVMSetLinkage(table, LLVMInternalLinkage);
    LLVMSetAlignment(table, 64);
    return table;
}

/* table[index], table[index + 1] for each lane. */
static void gather_pair(env *e, value table, value index, value *first, value *second)
{
    LLVMTypeRef f64 = LLVMDoubleTypeInContext(e->context), i32 = LLVMInt32TypeInContext(e->context);
    LLVMTypeRef type = f64_like(e, index);
    int n = lanes_of(index);
    bool vector = LLVMGetTypeKind(type) == LLVMVectorTypeKind;
    *first = *second = LLVMGetPoison(type);
    for (int i = 0; i < n; i++) {
        value lane = LLVMConstInt(i32, (unsigned)i, 0), one = LLVMConstInt(i32, 1, 0);
        value at = vector ? LLVMBuildExtractElement(e->builder, index, lane, "") : index;
        value pointer = LLVMBuildGEP2(e->builder, f64, table, &at, 1, "");
        value a = LLVMBuildLoad2(e->builder, f64, pointer, "");
        value b = LLVMBuildLoad2(e->builder, f64, LLVMBuildGEP2(e->builder, f64, pointer, &one, 1, ""), "");
        *first = vector ? LLVMBuildInsertElement(e->builder, *first, a, lane, "") : a;
        *second = vector ? LLVMBuildInsertElement(e->builder, *second, b, lane, "") : b;
    }
}

/* sin(r) = r + r^3 S(r^2), 2^-28.0; cos(r) = 1 - r^2/2 + r^4 C(r^2), 2^-33.0; |r| <= pi/4. */
static const double sin_s[] = {-0x1.555546p-3, 0x1.11073p-7, -0x1.994062p-13};
static const double cos_c[] = {0x1.55554ap-5, -0x1.6c0c28p-10, 0x1.99e86ap-16};

/* sin(x + quarters * pi/2). */
static value sine(env *e, value x, int quarters)
{
    LLVMTypeRef i32 = i32_like(e, x), f32 = LLVMTypeOf(x), f64 = f64_like(e, x);
    value b = bitcast(e, x, i32);
    value index = and(e, shift_right(e, b, 22), bits(i32, 0x1fe));             /* twice the exponent */
    value high, low;
    gather_pair(e, reduction_table(e), index, &high, &low);

    /* x * 2/pi = 4j + n + f, |f| <= 1/2; the first product and the first difference are exact. */
    value wide = LLVMBuildFPExt(e->builder, x, f64, "");
    value product = mul(e, wide, high);
    value shifted = plus(e, cpu_vfma(e, wide, low, product), 0x1.8p52);
    value f = cpu_vfma(e, wide, low, sub(e, product, plus(e, shifted, -0x1.8p52)));
    value r = LLVMBuildFPTrunc(e->builder, times(e, f, 0x1.921fb54442d18p0), f32, "");
    value n = LLVMBuildTrunc(e->builder, bitcast(e, shifted, i64_like(e, x)), i32, "");
    n = iadd(e, n, bits(i32, (uint64_t)quarters));

    value r2 = mul(e, r, r), r3 = mul(e, r2, r), r4 = mul(e, r2, r2);
    value s = cpu_vfma(e, r3, POLYNOMIAL(e, r2, sin_s), r);
    value c = cpu_vfma(e, r2, real(f32, -0.5), real(f32, 1));
    c = cpu_vfma(e, r4, POLYNOMIAL(e, r2, cos_c), c);
    value odd = LLVMBuildICmp(e->builder, LLVMIntNE, and(e, n, bits(i32, 1)), bits(i32, 0), "");
    value sign = shift_left(e, and(e, n, bits(i32, 2)), 30);
    value y = LLVMBuildXor(e->builder, bitcast(e, choose(e, odd, c, s), i32), sign, "");
    return bitcast(e, y, f32);
}

value cpu_vsin(env *e, value x) { return is_f64(x) ? libm1(e, "sin", x) : sine(e, x, 0); }
value cpu_vcos(env *e, value x) { return is_f64(x) ? libm1(e, "cos", x) : sine(e, x, 1); }

/* -- erf, erf_inv ---------------------------------------------------------------------------------------------------- */

/* erf(x) = x + x P(x^2) on |x| <= 1: 2^-29.6. erf(x) = 1 - exp(-x Q(x)) on 1 <= x <= 3.95, where it rounds to 1: 2^-32.9. */
static const double erf_p[] = {0x1.06eba8p-3, -0x1.81273ep-2, 0x1.ce2cf8p-4, -0x1.b7f90ep-6, 0x1.5405b2p-8,
                               -0x1.a3f7p-11, 0x1.496a32p-14};
static const double erf_q[] = {0x1.20ebb4p0, 0x1.45563ep-1, 0x1.b0b756p-4, -0x1.79e7ap-6, 0x1.9f015ap-9,
                               -0x1.174696p-13, -0x1.ef0ca8p-16, 0x1.e8fc1ep-19};

value cpu_verf(env *e, value x)
{
    if (is_f64(x))
        return libm1(e, "erf", x);
    LLVMTypeRef f32 = LLVMTypeOf(x);
    value a = cpu_vabs(e, x), t = at_most(e, a, 3.95);
    value inner = cpu_vfma(e, a, POLYNOMIAL(e, mul(e, a, a), erf_p), a);
    value q = LLVMBuildFNeg(e->builder, mul(e, t, POLYNOMIAL(e, t, erf_q)), "");
    value outer = sub(e, real(f32, 1), exp_within(e, q));     /* q >= -18 */
    return cpu_vcopysign(e, choose(e, compare(e, LLVMRealOLT, a, real(f32, 1)), inner, outer), x);
}

/* erf_inv(x)/x is smooth in w = -log(1 - x^2) near 0 and in sqrt(w) far out (M. Giles, "Approximating the erfinv function",
 * 2010): in w - 2.5 up to w = 5, 2^-27.4; in sqrt(w) - 3 from there to the last f32 before 1, 2^-26.7. */
static const double erf_inv_near[] = {1.5014093592820081, 0.24664028615867886, -0.004177386781769762, -0.0012527418904865206,
                                      0.00021834444014202093, -4.9633408662741365e-06, -3.4627050135729943e-06,
                                      4.6616918489868385e-07, 2.3232670511315195e-08, -8.790952519064518e-09};
static const double erf_inv_far[] = {2.8329768005894347, 1.001674976771742, 0.009445329182918927, -0.007637452765683235,
                                     0.005686589448260865, -0.0035966238379948274, 0.001486131973589445,
                                     -5.826168945635271e-05, -0.00031042713227746334, 0.00011671389658003156};

/* erf_inv(x)/x by the polynomials, in the type of x and w. */
static value erf_inv_ratio(env *e, value w)
{
    value near = POLYNOMIAL(e, plus(e, w, -2.5), erf_inv_near);
    value far = POLYNOMIAL(e, plus(e, cpu_vsqrt(e, w), -3), erf_inv_far);
    return choose(e, compare(e, LLVMRealOLT, w, real(LLVMTypeOf(w), 5)), near, far);
}

/* f64: from there, or beyond the last f32 from the leading term of erfc, three of Halley's steps, each of which triples the
 * number of digits. The distance to x is taken between complements where x is near 1. */
static value erf_inv_f64(env *e, value x, value w)
{
    LLVMTypeRef f64 = LLVMTypeOf(x);
    value one = real(f64, 1), a = cpu_vabs(e, x);
    value beyond = cpu_vsqrt(e, sub(e, w, times(e, libm1(e, "log", times(e, w, 0x1.921fb54442d18p-1)), 0.5)));
    value within = mul(e, a, erf_inv_ratio(e, w));
    value y = choose(e, compare(e, LLVMRealOLT, w, real(f64, 16)), within, beyond);
    for (int i = 0; i < 3; i++) {
        value slope = times(e, libm1(e, "exp", LLVMBuildFNeg(e->builder, mul(e, y, y), "")), 0x1.20dd750429b6dp0);
        value low = sub(e, libm1(e, "erf", y), a), rest = sub(e, one, a), high = sub(e, rest, libm1(e, "erfc", y));
        value error = choose(e, compare(e, LLVMRealOLT, a, real(f64, 0.5)), low, high);
        value step = divide(e, error, slope);
        y = sub(e, y, divide(e, step, cpu_vfma(e, y, step, one)));
    }
    return cpu_vcopysign(e, y, x);
}

value cpu_verf_inv(env *e, value x)
{
    LLVMTypeRef type = LLVMTypeOf(x);
    value one = real(type, 1), a = cpu_vabs(e, x);
    value less = sub(e, one, x), more = add(e, one, x);
    value w = LLVMBuildFNeg(e->builder, cpu_vlog(e, mul(e, less, more)), "");
    value y = is_f64(x) ? erf_inv_f64(e, x, w) : mul(e, x, erf_inv_ratio(e, w));
    value edge = cpu_vcopysign(e, real(type, INFINITY), x);
    y = choose(e, compare(e, LLVMRealOEQ, a, one), edge, y);
    return choose(e, compare(e, LLVMRealUGT, a, one), real(type, NAN), y);
}

/* -- pow ------------------------------------------------------------------------------------------------------------- */

/* log2(m) = s L(s^2) with s = (m-1)/(m+1), sqrt(1/2) <= m < sqrt(2): 2^-45.1. 2^f on |f| <= 1/2: 2^-34.5. Both in f64. */
static const double log2_l[] = {2.88539008177785, 0.9617966941134967, 0.5770779423162554, 0.4122092576494812,
                                0.31990546675864745, 0.2829036360087232};
static const double exp2_p[] = {0.9999999999616195, 0.6931471807286739, 0.240226511987671, 0.055504103529335824,
                                0.00961802717126343, 0.001333392278801133, 0.00015469317736313087, 1.5201914724324862e-05};

/* log2|x| of an f32, in f64, where no f32 is denormal; -inf of 0, inf of inf, NaN of NaN. */
static value log2_wide(env *e, value magnitude)
{
    LLVMTypeRef f64 = LLVMTypeOf(magnitude), i64 = i64_like(e, magnitude), i32 = i32_like(e, magnitude);
    const uint64_t root_half = 0x3fe6a09e667f3bcd;
    value b = isub(e, bitcast(e, magnitude, i64), bits(i64, root_half));
    value n = LLVMBuildTrunc(e->builder, shift_right(e, b, 32), i32, "");      /* no 64-bit shift by sign before AVX-512 */
    n = LLVMBuildSIToFP(e->builder, shift_signed(e, n, 20), f64, "");
    value m = bitcast(e, iadd(e, and(e, b, bits(i64, 0xfffffffffffff)), bits(i64, root_half)), f64);
    value less = plus(e, m, -1), more = plus(e, m, 1), s = divide(e, less, more);
    value y = cpu_vfma(e, s, POLYNOMIAL(e, mul(e, s, s), log2_l), n);
    y = choose(e, compare(e, LLVMRealOEQ, magnitude, real(f64, 0)), real(f64, -INFINITY), y);
    value finite = compare(e, LLVMRealOLT, magnitude, real(f64, INFINITY));    /* false for NaN too */
    return choose(e, finite, y, magnitude);
}

value cpu_vpow(env *e, value x, value y)
{
    if (is_f64(x))
        return libm(e, "pow", (value[]){x, y}, 2);
    LLVMTypeRef f32 = LLVMTypeOf(x), f64 = f64_like(e, x), i32 = i32_like(e, x), i64 = i64_like(e, x);
    value a = cpu_vabs(e, x), zero = real(f32, 0), one = real(f32, 1), infinity = real(f32, INFINITY);

    value exponent = LLVMBuildFPExt(e->builder, y, f64, "");
    value power = mul(e, exponent, log2_wide(e, LLVMBuildFPExt(e->builder, a, f64, "")));
    power = at_most(e, at_least(e, power, -200), 200);
    value shifted = plus(e, power, 0x1.8p52);
    value p = POLYNOMIAL(e, sub(e, power, plus(e, shifted, -0x1.8p52)), exp2_p);
    value two_n = bitcast(e, shift_left(e, iadd(e, bitcast(e, shifted, i64), bits(i64, 1023)), 52), f64);
    value z = LLVMBuildFPTrunc(e->builder, mul(e, p, two_n), f32, "");         /* overflow and underflow happen here */

    /* The sign of x comes through odd y; a negative x has no other real power than whole ones. */
    value half = times(e, y, 0.5);
    value whole = compare(e, LLVMRealOEQ, cpu_vtrunc(e, y), y);
    value odd = and(e, whole, compare(e, LLVMRealUNE, cpu_vtrunc(e, half), half));
    value sign = and(e, bitcast(e, x, i32), bits(i32, 0x80000000));
    sign = choose(e, odd, sign, bits(i32, 0));
    z = bitcast(e, or(e, bitcast(e, z, i32), sign), f32);
    value negative = compare(e, LLVMRealOLT, x, zero), below = and(e, negative, compare(e, LLVMRealOLT, a, infinity));
    value no_root = and(e, below, compare(e, LLVMRealONE, cpu_vtrunc(e, y), y));
    z = choose(e, no_root, real(f32, NAN), z);

    value y_is_zero = compare(e, LLVMRealOEQ, y, zero), always_one = or(e, y_is_zero, compare(e, LLVMRealOEQ, x, one));
    value a_is_one = compare(e, LLVMRealOEQ, a, one), unit = and(e, a_is_one, compare(e, LLVMRealOEQ, cpu_vabs(e, y), infinity));
    return choose(e, or(e, always_one, unit), one, z);
}
