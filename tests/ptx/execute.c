/* What an instruction does to the lanes of a warp: one switch over ops, in it one over types. Floats are this
 * machine's, which rounds as IEEE 754 says, as a GPU does; what PTX lets be approximate (ex2, rcp, ...) is exact to the
 * last place or so. mma adds in f64 and rounds once: a GPU's order of additions is not specified. */
#include "tests/ptx/machine.h"

#include <fenv.h>
#include <math.h>
#include <string.h>

#define EACH for (int l = 0; l < LANES; l++) if (mask >> l & 1)

/* -- registers ---------------------------------------------------------------------------------------------------- */

static uint32_t *written(unsigned char *file, const ptx_operand *o) { return (uint32_t *)(file + o->slot); }
static void *lanes(unsigned char *file, const ptx_operand *o) { return file + o->slot + 8; }

/* Compilers compute ahead of what decides whether it is needed: of a register that was not written comes one that counts
 * as not written. Lanes of which an operand so far is none are m->undefined. */
static void *source(ptx_machine *m, unsigned char *file, const ptx_inst *i, int k, uint32_t mask)
{
    const ptx_operand *o = &i->operands[k];
    if (k >= i->n_operands || o->slot < 0)
        ptx_fail(m, -1, "operand %d is missing", k);
    m->undefined |= mask & ~*written(file, o);
    return lanes(file, o);
}

/* Of what goes to memory, to other lanes' sums, or decides where to go on. */
static void *defined_source(ptx_machine *m, unsigned char *file, const ptx_inst *i, int k, uint32_t mask)
{
    void *at = source(m, file, i, k, mask);
    if (m->undefined)
        ptx_fail(m, __builtin_ctz(m->undefined), "operand %d was not written", k);
    return at;
}

static void *result(ptx_machine *m, unsigned char *file, const ptx_inst *i, int k, uint32_t mask)
{
    const ptx_operand *o = &i->operands[k];
    if (k >= i->n_operands || o->is_constant)
        ptx_fail(m, -1, "operand %d is no register", k);
    *written(file, o) = (*written(file, o) & ~mask) | (mask & ~m->undefined);
    return lanes(file, o);
}

static uint32_t predicate(ptx_machine *m, unsigned char *file, const ptx_inst *i, int k, uint32_t mask)
{
    uint32_t value;
    memcpy(&value, source(m, file, i, k, mask), 4);
    return i->operands[k].is_negated ? ~value : value;
}

static void set_predicate(ptx_machine *m, unsigned char *file, const ptx_inst *i, int k, uint32_t mask, uint32_t value)
{
    uint32_t *at = result(m, file, i, k, mask);
    *at = (*at & ~mask) | (value & mask);
}

uint32_t ptx_guarded(ptx_machine *m, const ptx_inst *i, uint32_t mask, const unsigned char *file)
{
    if (i->guard < 0)
        return mask;
    uint32_t is_written, value;
    memcpy(&is_written, file + i->guard, 4);
    memcpy(&value, file + i->guard + 8, 4);
    if (mask & ~is_written)
        ptx_fail(m, __builtin_ctz(mask & ~is_written), "its guard was not written");
    return mask & (i->guard_is_negated ? ~value : value);
}

/* A lane of a register of 16, 32 or 64 bits. */
static uint64_t get(const void *at, int bits, int lane)
{
    uint64_t value = 0;
    bits == 64 ? memcpy(&value, (const char *)at + 8 * lane, 8) : memcpy(&value, (const char *)at + 4 * lane, 4);
    return bits == 16 ? value & 0xffff : value;
}
static void put(void *at, int bits, int lane, uint64_t value)
{
    value = bits == 16 ? value & 0xffff : value;
    bits == 64 ? memcpy((char *)at + 8 * lane, &value, 8) : memcpy((char *)at + 4 * lane, &value, 4);
}

/* -- maps over lanes ---------------------------------------------------------------------------------------------- */

/* T: of the value; S: as it lies in a lane. */
#define MAP1(T, S, expression)                                                                                           \
    do {                                                                                                                 \
        const S *pa = source(m, file, i, 1, mask);                                                                       \
        S *pd = result(m, file, i, 0, mask);                                                                             \
        EACH { T a = (T)pa[l]; pd[l] = (S)(T)(expression); }                                                             \
    } while (0)
#define MAP2(T, S, expression)                                                                                           \
    do {                                                                                                                 \
        const S *pa = source(m, file, i, 1, mask), *pb = source(m, file, i, 2, mask);                                    \
        S *pd = result(m, file, i, 0, mask);                                                                             \
        EACH { T a = (T)pa[l], b = (T)pb[l]; pd[l] = (S)(T)(expression); }                                               \
    } while (0)
#define MAP3(T, S, expression)                                                                                           \
    do {                                                                                                                 \
        const S *pa = source(m, file, i, 1, mask), *pb = source(m, file, i, 2, mask), *pc = source(m, file, i, 3, mask); \
        S *pd = result(m, file, i, 0, mask);                                                                             \
        EACH { T a = (T)pa[l], b = (T)pb[l], c = (T)pc[l]; pd[l] = (S)(T)(expression); }                                 \
    } while (0)

#define UNKNOWN ptx_fail(m, -1, "%s is not known for this type or this modifier", ptx_op_name(i->op))

/* Of integers alone, of unsigned ones where the sign does not matter. */
#define BY_WIDTH(MAP, expression)                                                                                        \
    switch (ptx_bits(i->type)) {                                                                                         \
    case 16: MAP(uint16_t, uint32_t, expression); break;                                                                 \
    case 32: MAP(uint32_t, uint32_t, expression); break;                                                                 \
    case 64: MAP(uint64_t, uint64_t, expression); break;                                                                 \
    default: UNKNOWN;                                                                                                    \
    }
#define BY_SIGN(MAP, expression)                                                                                         \
    switch (i->type) {                                                                                                   \
    case T_S16: MAP(int16_t, uint32_t, expression); break;                                                               \
    case T_S32: MAP(int32_t, uint32_t, expression); break;                                                               \
    case T_S64: MAP(int64_t, uint64_t, expression); break;                                                               \
    default: BY_WIDTH(MAP, expression)                                                                                   \
    }
#define IS_FLOAT (i->type == T_F32 || i->type == T_F64)
#define BY_FLOAT(MAP, of_f32, of_f64)                                                                                    \
    switch (i->type) {                                                                                                   \
    case T_F32: MAP(float, float, of_f32); break;                                                                        \
    case T_F64: MAP(double, double, of_f64); break;                                                                      \
    default: UNKNOWN;                                                                                                    \
    }

/* Subnormals to zeros of their sign. */
static float flushed(const ptx_inst *i, float x) { return i->flushes && fpclassify(x) == FP_SUBNORMAL ? copysignf(0, x) : x; }
static float finished(const ptx_inst *i, float x)
{
    x = flushed(i, x);
    return !i->saturates ? x : x != x ? 0 : x < 0 ? 0 : x > 1 ? 1 : x;
}
#define F1 flushed(i, a)
#define F2 flushed(i, b)
#define F3 flushed(i, c)

static const int rounding[] = { [ROUND_NEAREST] = FE_TONEAREST, [ROUND_ZERO] = FE_TOWARDZERO, [ROUND_DOWN] = FE_DOWNWARD, [ROUND_UP] = FE_UPWARD };

static double reciprocal_seed(double x)
{
    double seed = 1 / (fpclassify(x) == FP_SUBNORMAL ? copysign(0, x) : x);
    uint64_t bits;
    memcpy(&bits, &seed, 8);
    bits &= 0xffffffff00000000;                                    /* rcp.approx.ftz.f64 has no more */
    memcpy(&seed, &bits, 8);
    return seed;
}

/* -- arithmetic --------------------------------------------------------------------------------------------------- */

static uint64_t high_of(uint64_t a, uint64_t b, ptx_type type)
{
    switch (type) {
    case T_S16: return (uint64_t)(((int64_t)(int16_t)a * (int16_t)b) >> 16);
    case T_U16: return (uint16_t)a * (uint64_t)(uint16_t)b >> 16;
    case T_S32: return (uint64_t)(((int64_t)(int32_t)a * (int32_t)b) >> 32);
    case T_U32: return (uint32_t)a * (uint64_t)(uint32_t)b >> 32;
    case T_S64: return (uint64_t)(((__int128)(int64_t)a * (int64_t)b) >> 64);
    default:    return (uint64_t)(((unsigned __int128)a * b) >> 64);
    }
}

static uint64_t extended(uint64_t value, ptx_type type)
{
    switch (type) {
    case T_S8:  return (uint64_t)(int64_t)(int8_t)value;
    case T_S16: return (uint64_t)(int64_t)(int16_t)value;
    case T_S32: return (uint64_t)(int64_t)(int32_t)value;
    case T_U8: case T_B8:   return (uint8_t)value;
    case T_U16: case T_B16: return (uint16_t)value;
    case T_U32: case T_B32: return (uint32_t)value;
    default:    return value;
    }
}

/* mul and mad of integers: the low or the high half, or both. */
static void multiply(ptx_machine *m, const ptx_inst *i, uint32_t mask, unsigned char *file, uint32_t *carry)
{
    int bits = ptx_bits(i->type), wide = i->half == HALF_WIDE ? 2 * bits : bits;
    bool adds = i->op == OP_mad || i->op == OP_madc;
    const void *a = source(m, file, i, 1, mask), *b = source(m, file, i, 2, mask), *c = adds ? source(m, file, i, 3, mask) : NULL;
    uint32_t carried = 0;
    if (i->half == HALF_NONE || (adds && i->half == HALF_HIGH && bits == 64))
        UNKNOWN;
    void *d = result(m, file, i, 0, mask);
    EACH {
        uint64_t x = get(a, bits, l), y = get(b, bits, l), z = adds ? get(c, wide, l) : 0;
        uint64_t product = i->half == HALF_HIGH ? high_of(x, y, i->type) : extended(x, i->type) * extended(y, i->type);
        if (wide == 32)
            product = (uint32_t)product;
        uint64_t sum = product + z + (i->op == OP_madc ? *carry >> l & 1 : 0);
        carried |= (uint32_t)(sum >> 32 & 1) << l;
        put(d, wide, l, sum);
    }
    if (i->carries && wide != 32)
        UNKNOWN;
    if (i->carries)
        *carry = (*carry & ~mask) | carried;
}

/* div and rem of integers. By 0 is not specified: an error. */
static void divide(ptx_machine *m, const ptx_inst *i, uint32_t mask, unsigned char *file)
{
    int bits = ptx_bits(i->type);
    bool is_signed = i->type == T_S16 || i->type == T_S32 || i->type == T_S64;
    const void *a = source(m, file, i, 1, mask), *b = source(m, file, i, 2, mask);
    void *d = result(m, file, i, 0, mask);
    EACH {
        uint64_t x = extended(get(a, bits, l), i->type), y = extended(get(b, bits, l), i->type), quotient;
        if (m->undefined >> l & 1)
            y = 1;
        if (y == 0)
            ptx_fail(m, l, "a division by 0");
        quotient = !is_signed ? x / y : y == ~(uint64_t)0 ? 0 - x : (uint64_t)((int64_t)x / (int64_t)y);
        put(d, bits, l, i->op == OP_div ? quotient : x - quotient * y);
    }
}

/* add, sub, addc, subc of 32 bits with a carry. */
static void add_with_carry(ptx_machine *m, const ptx_inst *i, uint32_t mask, unsigned char *file, uint32_t *carry)
{
    if (ptx_bits(i->type) != 32)
        UNKNOWN;
    const uint32_t *a = source(m, file, i, 1, mask), *b = source(m, file, i, 2, mask);
    uint32_t *d = result(m, file, i, 0, mask), carried = 0;
    bool subtracts = i->op == OP_sub || i->op == OP_subc, takes = i->op == OP_addc || i->op == OP_subc;
    EACH {
        uint64_t in = takes ? *carry >> l & 1 : 0, x = a[l], y = b[l], sum = subtracts ? x - y - in : x + y + in;
        carried |= (uint32_t)(sum >> 32 & 1) << l;
        d[l] = (uint32_t)sum;
    }
    if (i->carries)
        *carry = (*carry & ~mask) | carried;
}

/* Of two floats the one that is a number, or with .NaN NaN; -0 is less than +0. */
static double least(const ptx_inst *i, double a, double b)
{
    if (a != a || b != b)
        return i->keeps_nan ? NAN : a != a ? b : a;
    return a == b ? (signbit(a) ? a : b) : a < b ? a : b;
}
static double most(const ptx_inst *i, double a, double b)
{
    if (a != a || b != b)
        return i->keeps_nan ? NAN : a != a ? b : a;
    return a == b ? (signbit(a) ? b : a) : a > b ? a : b;
}

static uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t value = 0;
    for (int k = 0; k < 4; k++) {
        uint32_t s = selector >> (4 * k) & 15, byte = (uint32_t)(bytes >> (8 * (s & 7))) & 0xff;
        value |= (s & 8 ? (byte & 0x80 ? 0xff : 0) : byte) << (8 * k);
    }
    return value;
}

static uint32_t funnelled(const ptx_inst *i, uint32_t low, uint32_t high, uint32_t by)
{
    uint64_t both = (uint64_t)high << 32 | low;
    by = i->clamps ? (by > 32 ? 32 : by) : by & 31;
    return i->is_right ? (uint32_t)(both >> by) : (uint32_t)(both << by >> 32);
}

static uint64_t with_field(uint64_t a, uint64_t b, uint32_t at, uint32_t length, int bits)
{
    at &= 0xff, length &= 0xff;
    if (at >= (uint32_t)bits || length == 0)
        return b;
    uint64_t field = length >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << length) - 1;
    return (b & ~(field << at)) | ((a & field) << at);
}

/* Shifts of more than the width leave nothing, or signs. */
static void shift(ptx_machine *m, const ptx_inst *i, uint32_t mask, unsigned char *file)
{
    int bits = ptx_bits(i->type);
    const void *a = source(m, file, i, 1, mask);
    const uint32_t *by = source(m, file, i, 2, mask);
    void *d = result(m, file, i, 0, mask);
    bool is_signed = i->type == T_S16 || i->type == T_S32 || i->type == T_S64;
    EACH {
        uint32_t n = by[l] > 63 ? 63 : by[l];
        uint64_t value = get(a, bits, l);
        if (i->op == OP_shl)
            value = n >= (uint32_t)bits || by[l] > 63 ? 0 : value << n;
        else if (is_signed)
            value = (uint64_t)((int64_t)extended(value, i->type) >> n);
        else
            value = by[l] > 63 ? 0 : value >> n;
        put(d, bits, l, value);
    }
}

/* -- comparisons -------------------------------------------------------------------------------------------------- */

#define COMPARE(T, S)                                                                                                    \
    do {                                                                                                                 \
        const S *pa = source(m, file, i, 1, mask), *pb = source(m, file, i, 2, mask);                                    \
        EACH { T a = (T)pa[l], b = (T)pb[l]; less |= (uint32_t)(a < b) << l, equal |= (uint32_t)(a == b) << l, more |= (uint32_t)(a > b) << l; } \
    } while (0)

static void compare(ptx_machine *m, const ptx_inst *i, uint32_t mask, unsigned char *file)
{
    uint32_t less = 0, equal = 0, more = 0, is;
    switch (i->type) {
    case T_B16: case T_U16: COMPARE(uint16_t, uint32_t); break;
    case T_B32: case T_U32: COMPARE(uint32_t, uint32_t); break;
    case T_B64: case T_U64: COMPARE(uint64_t, uint64_t); break;
    case T_S16: COMPARE(int16_t, uint32_t); break;
    case T_S32: COMPARE(int32_t, uint32_t); break;
    case T_S64: COMPARE(int64_t, uint64_t); break;
    case T_F32: COMPARE(float, float); break;
    case T_F64: COMPARE(double, double); break;
    default: UNKNOWN;
    }
    uint32_t number = less | equal | more, nan = ~number;          /* of integers all are numbers */
    if (i->flushes || i->n_operands != 3)
        UNKNOWN;
    switch (i->compare) {
    case CMP_EQ:  is = equal; break;
    case CMP_NE:  is = less | more; break;
    case CMP_LT: case CMP_LO: is = less; break;
    case CMP_LE: case CMP_LS: is = less | equal; break;
    case CMP_GT: case CMP_HI: is = more; break;
    case CMP_GE: case CMP_HS: is = more | equal; break;
    case CMP_EQU: is = equal | nan; break;
    case CMP_NEU: is = less | more | nan; break;
    case CMP_LTU: is = less | nan; break;
    case CMP_LEU: is = less | equal | nan; break;
    case CMP_GTU: is = more | nan; break;
    case CMP_GEU: is = more | equal | nan; break;
    case CMP_NUM: is = number; break;
    case CMP_NAN: is = nan; break;
    default: UNKNOWN;
    }
    set_predicate(m, file, i, 0, mask, is);
}

/* and (decisive is 0) and or (ALL_LANES) of predicates: one operand that decides is enough. */
static void combine(ptx_machine *m, const ptx_inst *i, uint32_t mask, unsigned char *file, uint32_t decisive)
{
    uint32_t a = predicate(m, file, i, 1, mask), a_missing = m->undefined;
    m->undefined = 0;
    uint32_t b = predicate(m, file, i, 2, mask), b_missing = m->undefined;
    uint32_t decided = (~(a ^ decisive) & ~a_missing) | (~(b ^ decisive) & ~b_missing);
    m->undefined = (a_missing | b_missing) & ~decided & mask;
    set_predicate(m, file, i, 0, mask, (decided & decisive) | (~decided & ~decisive));
}

/* -- conversions -------------------------------------------------------------------------------------------------- */

/* bf16 of a float, to nearest even; NaN is 0x7fff. */
static uint16_t bf16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static float of_bf16(uint32_t half)
{
    uint32_t bits = half << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static bool is_signed_type(ptx_type t) { return t == T_S8 || t == T_S16 || t == T_S32 || t == T_S64; }
static bool is_integer_type(ptx_type t) { return is_signed_type(t) || t == T_U8 || t == T_U16 || t == T_U32 || t == T_U64; }

/* To the nearest of the type's range; NaN is 0. */
static uint64_t integer_of(double x, ptx_type type, ptx_round round)
{
    int bits = ptx_bits(type);
    x = round == ROUND_ZERO ? trunc(x) : round == ROUND_DOWN ? floor(x) : round == ROUND_UP ? ceil(x) : nearbyint(x);
    if (x != x)
        return 0;
    if (is_signed_type(type)) {
        double end = ldexp(1, bits - 1);
        return x >= end ? ((uint64_t)1 << (bits - 1)) - 1 : x < -end ? (uint64_t)1 << (bits - 1) : (uint64_t)(int64_t)x;
    }
    double end = ldexp(1, bits);
    return x >= end ? (bits == 64 ? ~(uint64_t)0 : ((uint64_t)1 << bits) - 1) : x <= 0 ? 0 : (uint64_t)x;
}

/* Floats of the value, which is one, or an integer. */
static uint64_t float_bits(const ptx_inst *i, uint64_t value, double x, bool is_float)
{
    uint64_t bits = 0;
    if (i->to_integer)
        x = i->round == ROUND_ZERO ? trunc(x) : i->round == ROUND_DOWN ? floor(x) : i->round == ROUND_UP ? ceil(x) : nearbyint(x);
    fesetround(rounding[i->round]);
    if (i->type == T_F32) {
        volatile float f = is_float ? (float)x : is_signed_type(i->from) ? (float)(int64_t)value : (float)value;
        float done = finished(i, f);
        memcpy(&bits, &done, 4);
    } else {
        volatile double d = is_float ? x : is_signed_type(i->from) ? (double)(int64_t)value : (double)value;
        memcpy(&bits, (const double *)&d, 8);
    }
    fesetround(FE_TONEAREST);
    return bits;
}

static void convert(ptx_machine *m, const ptx_inst *i, uint32_t mask, unsigned char *file)
{
    bool from_float = i->from == T_F32 || i->from == T_F64, to_float = i->type == T_F32 || i->type == T_F64;
    const void *a = source(m, file, i, 1, mask), *b = i->type == T_BF16X2 ? source(m, file, i, 2, mask) : NULL;
    int from_bits = i->operands[1].bits, bits = i->operands[0].bits;
    bool to_bf16 = (i->type == T_BF16 || i->type == T_BF16X2) && i->from == T_F32 && i->round == ROUND_NEAREST && !i->saturates;
    if (!to_bf16 && !((is_integer_type(i->type) || to_float) && (is_integer_type(i->from) || from_float)))
        UNKNOWN;
    void *d = result(m, file, i, 0, mask);
    EACH {
        uint64_t value = get(a, from_bits, l);
        float f32;
        double x = 0;
        if (i->from == T_F32)
            memcpy(&f32, &value, 4), x = flushed(i, f32);
        else if (from_float)
            memcpy(&x, &value, 8);
        else
            value = extended(value, i->from);
        if (i->type == T_BF16X2)
            value = (uint32_t)bf16_of((float)x) << 16 | bf16_of(((const float *)b)[l]);
        else if (to_bf16)
            value = bf16_of((float)x);
        else if (to_float)
            value = float_bits(i, value, x, from_float);
        else if (from_float)
            value = integer_of(x, i->type, i->round);
        else if (i->saturates)
            UNKNOWN;
        put(d, bits, l, extended(value, to_float || to_bf16 ? T_B64 : i->type));
    }
}

/* -- moves -------------------------------------------------------------------------------------------------------- */

/* A register of another, of an address, or of two halves, and two of one. */
static void move(ptx_machine *m, const ptx_inst *i, uint32_t mask, unsigned char *file)
{
    if (i->type == T_PRED) {
        set_predicate(m, file, i, 0, mask, predicate(m, file, i, 1, mask));
        return;
    }
    int bits = ptx_bits(i->type);
    if (i->n_operands == 2) {
        const void *a = source(m, file, i, 1, mask);
        int from_bits = i->operands[1].bits;
        void *d = result(m, file, i, 0, mask);
        EACH put(d, bits, l, get(a, from_bits, l));
    } else if (i->n_operands == 3 && i->operands[0].bits == bits) {
        const void *low = source(m, file, i, 1, mask), *high = source(m, file, i, 2, mask);
        void *d = result(m, file, i, 0, mask);
        EACH put(d, bits, l, get(low, bits / 2, l) | get(high, bits / 2, l) << bits / 2);
    } else if (i->n_operands == 3) {
        const void *a = source(m, file, i, 2, mask);
        for (int half = 0; half < 2; half++)
            if (i->operands[half].slot >= 0) {
                void *d = result(m, file, i, half, mask);
                EACH put(d, bits / 2, l, get(a, bits, l) >> (half * bits / 2));
            }
    } else
        UNKNOWN;
}

static void convert_address(ptx_machine *m, const ptx_inst *i, uint32_t mask, unsigned char *file)
{
    static const uint64_t windows[N_SPACES] = { [SPACE_SHARED] = WINDOW_SHARED, [SPACE_LOCAL] = WINDOW_LOCAL, [SPACE_PARAM] = WINDOW_PARAM };
    const uint64_t *a = source(m, file, i, 1, mask);
    uint64_t *d = result(m, file, i, 0, mask), window = windows[i->space];
    if (ptx_bits(i->type) != 64)
        UNKNOWN;
    EACH {
        if (i->is_to && (a[l] & WINDOW_MASK) != window)
            ptx_fail(m, l, "an address of another space");
        d[l] = i->is_to ? a[l] & ~window : a[l] | window;
    }
}

/* -- memory ------------------------------------------------------------------------------------------------------- */

static void addresses(ptx_machine *m, const ptx_inst *i, int k, uint32_t mask, unsigned char *file, uint64_t *address)
{
    const ptx_address *a = &i->address[k];
    if (k >= i->n_addresses)
        ptx_fail(m, -1, "address %d is missing", k);
    const void *base = NULL;
    if (a->base >= 0) {
        ptx_operand o = { .slot = a->base };
        if (mask & ~*written(file, &o))
            ptx_fail(m, __builtin_ctz(mask & ~*written(file, &o)), "its address was not written");
        base = lanes(file, &o);
    }
    EACH address[l] = (base ? get(base, a->bits, l) : 0) + (uint64_t)a->offset;
}

static void transfer(ptx_machine *m, const ptx_frame *frame, const ptx_inst *i, uint32_t mask, unsigned char *file)
{
    int bytes = ptx_bits(i->type) / 8, n = i->vector ? i->vector : 1;
    bool writes = i->op == OP_st;
    uint64_t address[LANES];
    unsigned char *at[LANES];
    if (i->n_operands != n || bytes * n > 16)
        UNKNOWN;
    addresses(m, i, 0, mask, file, address);
    ptx_access(m, frame, mask, i->space, address, bytes * n, writes, at);
    for (int k = 0; k < n; k++) {
        int bits = i->operands[k].bits;
        void *reg = writes ? defined_source(m, file, i, k, mask) : result(m, file, i, k, mask);
        EACH {
            uint64_t value = 0;
            if (writes)
                value = get(reg, bits, l), memcpy(at[l] + k * bytes, &value, (size_t)bytes);
            else
                memcpy(&value, at[l] + k * bytes, (size_t)bytes), put(reg, bits, l, extended(value, i->type));
        }
    }
}

static void copy_async(ptx_machine *m, const ptx_inst *i, uint32_t mask, unsigned char *file)
{
    if (i->waits) {
        ptx_copies_wait(m, mask);
        return;
    }
    uint64_t to[LANES], from[LANES];
    const uint32_t *bytes = defined_source(m, file, i, 0, mask), *there = i->n_operands > 1 ? defined_source(m, file, i, 1, mask) : bytes;
    addresses(m, i, 0, mask, file, to);
    addresses(m, i, 1, mask, file, from);
    ptx_copy_later(m, mask, to, from, (int)bytes[__builtin_ctz(mask)], there);
}

/* Lane 8 j + r has the address of row r of matrix j: 8 x 8 of 16 bits each. Lane l gets of row l/4 the elements 2(l%4)
 * and the next; of the transposed matrix as well. */
static void load_matrices(ptx_machine *m, const ptx_frame *frame, const ptx_inst *i, uint32_t mask, unsigned char *file)
{
    uint64_t address[LANES];
    unsigned char *at[LANES];
    if (i->type != T_B16 || i->vector != 4 || i->n_operands != 4 || i->space != SPACE_SHARED)
        UNKNOWN;
    addresses(m, i, 0, mask, file, address);
    ptx_access(m, frame, mask, SPACE_SHARED, address, 16, false, at);
    for (int j = 0; j < 4; j++) {
        uint32_t *d = result(m, file, i, j, mask);
        EACH {
            uint16_t pair[2];
            for (int e = 0; e < 2; e++) {
                int row = l / 4, column = 2 * (l % 4) + e;
                memcpy(&pair[e], i->transposes ? at[8 * j + column] + 2 * row : at[8 * j + row] + 2 * column, 2);
            }
            d[l] = pair[0] | (uint32_t)pair[1] << 16;
        }
    }
}

/* -- a warp together ---------------------------------------------------------------------------------------------- */

/* D = A B + C, A 16 x 16 by rows, B 16 x 8 by columns. Where in a lane's registers an element lies: "PTX ISA", Matrix
 * Fragments for mma.m16n8k16. */
static void multiply_matrices(ptx_machine *m, const ptx_inst *i, uint32_t mask, unsigned char *file)
{
    float a[16][16], b[16][8], c[16][8];
    if (!strstr(i->text, ".m16n8k16.row.col.f32.bf16.bf16.f32") || i->n_operands != 14)
        UNKNOWN;
    for (int l = 0; l < LANES; l++) {
        int group = l / 4, in_group = l % 4;
        for (int k = 0; k < 8; k++) {
            int row = k < 2 || (k >= 4 && k < 6) ? group : group + 8, column = 2 * in_group + (k & 1) + (k < 4 ? 0 : 8);
            const uint32_t *word = defined_source(m, file, i, 4 + k / 2, mask);
            a[row][column] = of_bf16(k & 1 ? word[l] >> 16 : word[l] & 0xffff);
        }
        for (int k = 0; k < 4; k++) {
            int row = 2 * in_group + (k & 1) + (k < 2 ? 0 : 8);
            const uint32_t *word = defined_source(m, file, i, 8 + k / 2, mask);
            b[row][group] = of_bf16(k & 1 ? word[l] >> 16 : word[l] & 0xffff);
            c[k < 2 ? group : group + 8][2 * in_group + (k & 1)] = ((const float *)defined_source(m, file, i, 10 + k, mask))[l];
        }
    }
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 8; column++) {
            double sum = c[row][column];
            for (int k = 0; k < 16; k++)
                sum += (double)a[row][k] * b[k][column];
            c[row][column] = (float)sum;
        }
    for (int k = 0; k < 4; k++) {
        float *d = result(m, file, i, k, mask);
        for (int l = 0; l < LANES; l++)
            d[l] = c[k < 2 ? l / 4 : l / 4 + 8][2 * (l % 4) + (k & 1)];
    }
}

static void shuffle(ptx_machine *m, const ptx_inst *i, uint32_t mask, unsigned char *file)
{
    bool has_predicate = i->n_operands == 6;
    int first = has_predicate;
    const uint32_t *a = source(m, file, i, first + 1, mask), nowhere = m->undefined;
    m->undefined = 0;
    const uint32_t *b = defined_source(m, file, i, first + 2, mask), *c = defined_source(m, file, i, first + 3, mask);
    const uint32_t *members = defined_source(m, file, i, first + 4, mask);
    uint32_t moved[LANES] = {0}, in_range = 0;
    EACH {
        int segment = (int)(c[l] >> 8 & 31), clamp = (int)(c[l] & 31), by = (int)(b[l] & 31), from;
        int least_lane = l & segment, most_lane = (l & segment) | (clamp & ~segment);
        switch (i->shuffle) {
        case SHUFFLE_UP:   from = l - by; in_range |= (uint32_t)(from >= most_lane) << l; break;
        case SHUFFLE_DOWN: from = l + by; in_range |= (uint32_t)(from <= most_lane) << l; break;
        case SHUFFLE_BFLY: from = l ^ by; in_range |= (uint32_t)(from <= most_lane) << l; break;
        default:           from = least_lane | (by & ~segment); in_range |= (uint32_t)(from <= most_lane) << l;
        }
        from = in_range >> l & 1 ? from : l;
        if (!(members[l] >> l & 1) || !(mask >> from & 1) || !(members[l] >> from & 1))
            ptx_fail(m, l, "shfl from lane %d, which is not there", from);
        moved[l] = a[from];
        m->undefined |= (nowhere >> from & 1) << l;
    }
    uint32_t *d = result(m, file, i, 0, mask);
    EACH d[l] = moved[l];
    if (has_predicate)
        set_predicate(m, file, i, 1, mask, in_range);
}

/* -- all of it ---------------------------------------------------------------------------------------------------- */

static void fused(ptx_machine *m, const ptx_inst *i, uint32_t mask, unsigned char *file)
{
    fesetround(rounding[i->round]);
    BY_FLOAT(MAP3, finished(i, fmaf(F1, F2, F3)), fma(a, b, c))
    fesetround(FE_TONEAREST);
}

void ptx_execute(ptx_machine *m, const ptx_frame *frame, const ptx_inst *i, uint32_t mask, unsigned char *file)
{
    uint32_t *carry = &m->warp->carry;
    m->undefined = 0;
    if (i->round != ROUND_NEAREST && i->op != OP_fma && i->op != OP_cvt)
        UNKNOWN;
    switch (i->op) {
    case OP_add:
        if (i->carries) add_with_carry(m, i, mask, file, carry);
        else if (IS_FLOAT) BY_FLOAT(MAP2, finished(i, F1 + F2), a + b)
        else BY_WIDTH(MAP2, a + b)
        break;
    case OP_sub:
        if (i->carries) add_with_carry(m, i, mask, file, carry);
        else if (IS_FLOAT) BY_FLOAT(MAP2, finished(i, F1 - F2), a - b)
        else BY_WIDTH(MAP2, a - b)
        break;
    case OP_addc: case OP_subc: add_with_carry(m, i, mask, file, carry); break;
    case OP_mul:
        if (IS_FLOAT) BY_FLOAT(MAP2, finished(i, F1 * F2), a * b)
        else multiply(m, i, mask, file, carry);
        break;
    case OP_mad:
        if (IS_FLOAT) fused(m, i, mask, file);
        else multiply(m, i, mask, file, carry);
        break;
    case OP_madc: multiply(m, i, mask, file, carry); break;
    case OP_fma:  fused(m, i, mask, file); break;
    case OP_div:
        if (IS_FLOAT) BY_FLOAT(MAP2, finished(i, F1 / F2), a / b)
        else divide(m, i, mask, file);
        break;
    case OP_rem:  divide(m, i, mask, file); break;
    case OP_abs:
        if (IS_FLOAT) BY_FLOAT(MAP1, fabsf(F1), fabs(a))
        else BY_SIGN(MAP1, a > 0 ? (uint64_t)a : 0 - (uint64_t)a)
        break;
    case OP_neg:
        if (IS_FLOAT) BY_FLOAT(MAP1, -F1, -a)
        else BY_WIDTH(MAP1, 0 - a)
        break;
    case OP_min:
        if (IS_FLOAT) BY_FLOAT(MAP2, (float)least(i, F1, F2), least(i, a, b))
        else BY_SIGN(MAP2, a < b ? a : b)
        break;
    case OP_max:
        if (IS_FLOAT) BY_FLOAT(MAP2, (float)most(i, F1, F2), most(i, a, b))
        else BY_SIGN(MAP2, a > b ? a : b)
        break;
    case OP_sqrt:  BY_FLOAT(MAP1, finished(i, sqrtf(F1)), sqrt(a)) break;
    case OP_rsqrt: BY_FLOAT(MAP1, finished(i, 1 / sqrtf(F1)), 1 / sqrt(a)) break;
    case OP_rcp:   BY_FLOAT(MAP1, finished(i, 1 / F1), i->flushes ? reciprocal_seed(a) : 1 / a) break;
    case OP_ex2:   BY_FLOAT(MAP1, finished(i, exp2f(F1)), exp2(a)) break;
    case OP_lg2:   BY_FLOAT(MAP1, finished(i, log2f(F1)), log2(a)) break;
    case OP_tanh:  BY_FLOAT(MAP1, tanhf(a), tanh(a)) break;
    case OP_copysign: BY_FLOAT(MAP2, copysignf(b, a), copysign(b, a)) break;          /* the sign of the first */
    case OP_and:
        if (i->type == T_PRED) combine(m, i, mask, file, 0);
        else BY_WIDTH(MAP2, a & b)
        break;
    case OP_or:
        if (i->type == T_PRED) combine(m, i, mask, file, ALL_LANES);
        else BY_WIDTH(MAP2, a | b)
        break;
    case OP_xor:
        if (i->type == T_PRED) set_predicate(m, file, i, 0, mask, predicate(m, file, i, 1, mask) ^ predicate(m, file, i, 2, mask));
        else BY_WIDTH(MAP2, a ^ b)
        break;
    case OP_not:
        if (i->type == T_PRED) set_predicate(m, file, i, 0, mask, ~predicate(m, file, i, 1, mask));
        else BY_WIDTH(MAP1, ~a)
        break;
    case OP_shl: case OP_shr: shift(m, i, mask, file); break;
    case OP_shf:  MAP3(uint32_t, uint32_t, funnelled(i, a, b, c)); break;
    case OP_prmt: MAP3(uint32_t, uint32_t, permuted(a, b, c)); break;
    case OP_bfi: {
        int bits = ptx_bits(i->type);
        const void *a = source(m, file, i, 1, mask), *b = source(m, file, i, 2, mask);
        const uint32_t *at = source(m, file, i, 3, mask), *length = source(m, file, i, 4, mask);
        void *d = result(m, file, i, 0, mask);
        EACH put(d, bits, l, with_field(get(a, bits, l), get(b, bits, l), at[l], length[l], bits));
        break;
    }
    case OP_clz: case OP_popc: {
        int bits = ptx_bits(i->type);
        const void *a = source(m, file, i, 1, mask);
        uint32_t *d = result(m, file, i, 0, mask);
        EACH {
            uint64_t x = get(a, bits, l);
            d[l] = (uint32_t)(i->op == OP_popc ? __builtin_popcountll(x) : x ? __builtin_clzll(x) - (64 - bits) : bits);
        }
        break;
    }
    case OP_setp: compare(m, i, mask, file); break;
    case OP_selp: {
        int bits = i->operands[0].bits;
        uint32_t first = predicate(m, file, i, 3, mask);
        const void *a = source(m, file, i, 1, mask & first), *b = source(m, file, i, 2, mask & ~first);
        void *d = result(m, file, i, 0, mask);
        EACH put(d, bits, l, get(first >> l & 1 ? a : b, bits, l));
        break;
    }
    case OP_mov:  move(m, i, mask, file); break;
    case OP_cvt:  convert(m, i, mask, file); break;
    case OP_cvta: convert_address(m, i, mask, file); break;
    case OP_ld: case OP_st: transfer(m, frame, i, mask, file); break;
    case OP_cp:   copy_async(m, i, mask, file); break;
    case OP_ldmatrix: load_matrices(m, frame, i, mask, file); break;
    case OP_mma:  multiply_matrices(m, i, mask, file); break;
    case OP_shfl: shuffle(m, i, mask, file); break;
    case OP_bar: case OP_bra: case OP_call: case OP_ret: case OP_exit: case OP_trap: case N_OPS:
        UNKNOWN;
    }
}
