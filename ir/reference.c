/* The interpreter's leaves, elementwise ops and reductions. Each elementwise op is one row: an expression over x and y, from which
 * a plain loop a dtype is made. bf16 is computed in f32 and rounded once; i32 is computed in uint32_t, where overflow wraps.
 * (Movement and indexing are in reference_movement.c, the matrix product in reference_matmul.c, random bits in philox.c.)
 *
 * A result may have its operand's memory, so a loop reads element i before it writes element i, and no other. */
#include "ir/ir.h"

#include <math.h>
#include <string.h>
#include <tgmath.h>                                         /* exp(x) is expf where x is a float */

static _Noreturn void no_loop(const ir_node *node, ir_dtype dtype)
{
    base_bug(__FILE__, __LINE__, "%%%d %s: the interpreter has no loop for %s", node->id, OP_NAME(node->op), ir_dtype_name(dtype));
}

/* -- values ------------------------------------------------------------------------------------------------------------ */

static int32_t divided(int32_t x, int32_t y) { return y == 0 ? 0 : y == -1 ? (int32_t)(0u - (uint32_t)x) : x / y; }
static int32_t remainder_of(int32_t x, int32_t y) { return y == 0 || y == -1 ? 0 : x % y; }

/* x with erf(x) = y. A start within 3e-3 (Winitzki's approximation), then Halley steps on erf, or on erfc near the ends, where 1 - |y| has
 * the digits that y has lost; each step triples the correct ones. */
static double erf_inv(double y)
{
    if (!(fabs(y) < 1))
        return fabs(y) == 1 ? copysign(INFINITY, y) : NAN;
    const double a = 0.147;
    double rest = 1 - fabs(y), log_rest = log1p(-y * y), b = 2 / (M_PI * a) + log_rest / 2;
    double x = sqrt(sqrt(b * b - log_rest / a) - b);
    for (int i = 0; i < 3; i++) {
        double error = rest < 0.5 ? rest - erfc(x) : erf(x) - fabs(y);
        double slope = M_2_SQRTPI * exp(-x * x), step = error / slope;
        x -= step / (1 + x * step);
    }
    return copysign(x, y);
}

/* -- elementwise ------------------------------------------------------------------------------------------------------- */

typedef void loop1(const void *xs, void *zs, int64_t n);
typedef void loop2(const void *xs, const void *ys, void *zs, int64_t n);

#define AS_IS(value)  (value)
#define FROM_BF16     ir_bf16_to_f32
#define TO_BF16       ir_f32_to_bf16

#define LOOP1(name, in, LOAD, value, out, STORE, expression)                                \
    static void name(const void *xs, void *zs, int64_t n)                                   \
    {                                                                                       \
        const in *from = xs;                                                                \
        out *to = zs;                                                                       \
        for (int64_t i = 0; i < n; i++) {                                                   \
            const value x = (value)LOAD(from[i]);                                           \
            to[i] = (out)STORE(expression);                                                 \
        }                                                                                   \
    }
#define LOOP2(name, in, LOAD, value, out, STORE, expression)                                \
    static void name(const void *xs, const void *ys, void *zs, int64_t n)                   \
    {                                                                                       \
        const in *lhs = xs, *rhs = ys;                                                      \
        out *to = zs;                                                                       \
        for (int64_t i = 0; i < n; i++) {                                                   \
            const value x = (value)LOAD(lhs[i]), y = (value)LOAD(rhs[i]);                   \
            to[i] = (out)STORE(expression);                                                 \
        }                                                                                   \
    }

#define FLOATS1(name, expression)                                                           \
    LOOP1(name##_f32, float, AS_IS, float, float, AS_IS, expression)                        \
    LOOP1(name##_f64, double, AS_IS, double, double, AS_IS, expression)                     \
    LOOP1(name##_bf16, uint16_t, FROM_BF16, float, uint16_t, TO_BF16, expression)
#define FLOATS2(name, expression)                                                           \
    LOOP2(name##_f32, float, AS_IS, float, float, AS_IS, expression)                        \
    LOOP2(name##_f64, double, AS_IS, double, double, AS_IS, expression)                     \
    LOOP2(name##_bf16, uint16_t, FROM_BF16, float, uint16_t, TO_BF16, expression)
#define WRAPPED1(name, expression) LOOP1(name##_i32, uint32_t, AS_IS, uint32_t, uint32_t, AS_IS, expression)
#define WRAPPED2(name, expression) LOOP2(name##_i32, uint32_t, AS_IS, uint32_t, uint32_t, AS_IS, expression)
#define SIGNED1(name, expression)  LOOP1(name##_i32, int32_t, AS_IS, int32_t, int32_t, AS_IS, expression)
#define SIGNED2(name, expression)  LOOP2(name##_i32, int32_t, AS_IS, int32_t, int32_t, AS_IS, expression)
#define BOOLS2(name, expression)   LOOP2(name##_bool, uint8_t, AS_IS, uint8_t, uint8_t, AS_IS, expression)

#define FLOAT_ROW(name) [IR_F32] = name##_f32, [IR_F64] = name##_f64, [IR_BF16] = name##_bf16

FLOATS1(neg, -x)                              WRAPPED1(neg, 0u - x)
FLOATS1(abs, fabs(x))                         WRAPPED1(abs, x >> 31 ? 0u - x : x)
FLOATS1(sign, x > 0 ? 1 : x < 0 ? -1 : x)     SIGNED1(sign, (x > 0) - (x < 0))
FLOATS1(floor, floor(x))
FLOATS1(exp, exp(x))
FLOATS1(log, log(x))
FLOATS1(sqrt, sqrt(x))
FLOATS1(rsqrt, 1 / sqrt(x))
FLOATS1(tanh, tanh(x))
FLOATS1(sigmoid, 1 / (1 + exp(-x)))
FLOATS1(sin, sin(x))
FLOATS1(cos, cos(x))
FLOATS1(erf, erf(x))
FLOATS1(erf_inv, erf_inv(x))
LOOP1(not_bool, uint8_t, AS_IS, uint8_t, uint8_t, AS_IS, !x)

static loop1 *const unary_loops[IR_OPS][IR_DTYPES] = {
    [OP_neg]     = { FLOAT_ROW(neg),  [IR_I32] = neg_i32 },
    [OP_abs]     = { FLOAT_ROW(abs),  [IR_I32] = abs_i32 },
    [OP_sign]    = { FLOAT_ROW(sign), [IR_I32] = sign_i32 },
    [OP_floor]   = { FLOAT_ROW(floor) },
    [OP_exp]     = { FLOAT_ROW(exp) },
    [OP_log]     = { FLOAT_ROW(log) },
    [OP_sqrt]    = { FLOAT_ROW(sqrt) },
    [OP_rsqrt]   = { FLOAT_ROW(rsqrt) },
    [OP_tanh]    = { FLOAT_ROW(tanh) },
    [OP_sigmoid] = { FLOAT_ROW(sigmoid) },
    [OP_sin]     = { FLOAT_ROW(sin) },
    [OP_cos]     = { FLOAT_ROW(cos) },
    [OP_erf]     = { FLOAT_ROW(erf) },
    [OP_erf_inv] = { FLOAT_ROW(erf_inv) },
    [OP_not]     = { [IR_BOOL] = not_bool },
};

/* Of max and min: a NaN on the left is taken by x != x, one on the right because no comparison with it is true. */
FLOATS2(add, x + y)                           WRAPPED2(add, x + y)
FLOATS2(sub, x - y)                           WRAPPED2(sub, x - y)
FLOATS2(mul, x * y)                           WRAPPED2(mul, x * y)
FLOATS2(div, x / y)                           SIGNED2(div, divided(x, y))
FLOATS2(rem, fmod(x, y))                      SIGNED2(rem, remainder_of(x, y))
FLOATS2(pow, pow(x, y))
FLOATS2(max, x > y || x != x ? x : y)         SIGNED2(max, x > y ? x : y)
FLOATS2(min, x < y || x != x ? x : y)         SIGNED2(min, x < y ? x : y)
BOOLS2(and, x & y)
BOOLS2(or, x | y)

static loop2 *const binary_loops[IR_OPS][IR_DTYPES] = {
    [OP_add] = { FLOAT_ROW(add), [IR_I32] = add_i32 },
    [OP_sub] = { FLOAT_ROW(sub), [IR_I32] = sub_i32 },
    [OP_mul] = { FLOAT_ROW(mul), [IR_I32] = mul_i32 },
    [OP_div] = { FLOAT_ROW(div), [IR_I32] = div_i32 },
    [OP_rem] = { FLOAT_ROW(rem), [IR_I32] = rem_i32 },
    [OP_pow] = { FLOAT_ROW(pow) },
    [OP_max] = { FLOAT_ROW(max), [IR_I32] = max_i32 },
    [OP_min] = { FLOAT_ROW(min), [IR_I32] = min_i32 },
    [OP_and] = { [IR_BOOL] = and_bool },
    [OP_or]  = { [IR_BOOL] = or_bool },
};

#define COMPARE(name, expression)                                                           \
    LOOP2(name##_f32, float, AS_IS, float, uint8_t, AS_IS, expression)                      \
    LOOP2(name##_f64, double, AS_IS, double, uint8_t, AS_IS, expression)                    \
    LOOP2(name##_bf16, uint16_t, FROM_BF16, float, uint8_t, AS_IS, expression)              \
    LOOP2(name##_i32, int32_t, AS_IS, int32_t, uint8_t, AS_IS, expression)                  \
    LOOP2(name##_bool, uint8_t, AS_IS, uint8_t, uint8_t, AS_IS, expression)
COMPARE(eq, x == y)
COMPARE(ne, x != y)
COMPARE(lt, x < y)
COMPARE(le, x <= y)

static loop2 *const compare_loops[IR_OPS][IR_DTYPES] = {
    [OP_eq] = { FLOAT_ROW(eq), [IR_I32] = eq_i32, [IR_BOOL] = eq_bool },
    [OP_ne] = { FLOAT_ROW(ne), [IR_I32] = ne_i32, [IR_BOOL] = ne_bool },
    [OP_lt] = { FLOAT_ROW(lt), [IR_I32] = lt_i32, [IR_BOOL] = lt_bool },
    [OP_le] = { FLOAT_ROW(le), [IR_I32] = le_i32, [IR_BOOL] = le_bool },
};

/* f64 and i32 go to bf16 by way of f32, and so may round twice. */
#define CAST_TO_BF16(x) ir_f32_to_bf16((float)(x))
#define CAST_TO_BOOL(x) ((x) != 0)
#define CAST_FROM(name, in, LOAD, value)                                                    \
    LOOP1(name##_to_f32, in, LOAD, value, float, AS_IS, x)                                  \
    LOOP1(name##_to_f64, in, LOAD, value, double, AS_IS, x)                                 \
    LOOP1(name##_to_bf16, in, LOAD, value, uint16_t, CAST_TO_BF16, x)                       \
    LOOP1(name##_to_i32, in, LOAD, value, int32_t, ir_f64_to_i32, x)                               \
    LOOP1(name##_to_bool, in, LOAD, value, uint8_t, CAST_TO_BOOL, x)
#define CAST_ROW(name) { [IR_F32] = name##_to_f32, [IR_F64] = name##_to_f64, [IR_BF16] = name##_to_bf16, \
                         [IR_I32] = name##_to_i32, [IR_BOOL] = name##_to_bool }
CAST_FROM(f32, float, AS_IS, float)
CAST_FROM(f64, double, AS_IS, double)
CAST_FROM(bf16, uint16_t, FROM_BF16, float)
CAST_FROM(i32, int32_t, AS_IS, int32_t)
CAST_FROM(bool, uint8_t, AS_IS, uint8_t)

static loop1 *const cast_loops[IR_DTYPES][IR_DTYPES] = {    /* from, to */
    [IR_F32] = CAST_ROW(f32), [IR_F64] = CAST_ROW(f64), [IR_BF16] = CAST_ROW(bf16),
    [IR_I32] = CAST_ROW(i32), [IR_BOOL] = CAST_ROW(bool),
};

void ref_unary(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    loop1 *loop = unary_loops[node->op][args[0]->type.dtype];
    if (!loop)
        no_loop(node, args[0]->type.dtype);
    loop(args[0]->data, result->data, ir_type_count(&result->type));
}

void ref_cast(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    (void)node;
    cast_loops[args[0]->type.dtype][result->type.dtype](args[0]->data, result->data, ir_type_count(&result->type));
}

static void run_loop2(const ir_node *node, loop2 *const (*loops)[IR_DTYPES], const ir_array *const *args, ir_array *result)
{
    loop2 *loop = loops[node->op][args[0]->type.dtype];
    if (!loop)
        no_loop(node, args[0]->type.dtype);
    loop(args[0]->data, args[1]->data, result->data, ir_type_count(&result->type));
}

void ref_binary(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    run_loop2(node, binary_loops, args, result);
}

void ref_compare(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    run_loop2(node, compare_loops, args, result);
}

#define SELECT(type)                                                                        \
    for (int64_t i = 0; i < count; i++)                                                     \
        ((type *)result->data)[i] = condition[i] ? ((const type *)args[1]->data)[i] : ((const type *)args[2]->data)[i];

void ref_select(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    const uint8_t *condition = args[0]->data;
    int64_t count = ir_type_count(&result->type);
    switch (result->type.dtype) {
    case IR_F32: case IR_I32: SELECT(uint32_t) break;
    case IR_F64:              SELECT(uint64_t) break;
    case IR_BF16:             SELECT(uint16_t) break;
    case IR_BOOL:             SELECT(uint8_t) break;
    case IR_TUPLE:            no_loop(node, IR_TUPLE);
    }
}

/* -- leaves ------------------------------------------------------------------------------------------------------------ */

#define FILL(type, expression)                                                              \
    do {                                                                                    \
        type *to = result->data, fill = expression;                                         \
        for (int64_t i = 0; i < count; i++)                                                 \
            to[i] = fill;                                                                   \
    } while (0)

void ref_constant(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    (void)args;
    double value = node->attr.value;
    int64_t count = ir_type_count(&result->type);
    switch (result->type.dtype) {
    case IR_F32:   FILL(float, (float)value); break;
    case IR_F64:   FILL(double, value); break;
    case IR_BF16:  FILL(uint16_t, ir_f32_to_bf16((float)value)); break;
    case IR_I32:   FILL(int32_t, ir_f64_to_i32(value)); break;
    case IR_BOOL:  FILL(uint8_t, value != 0); break;
    case IR_TUPLE: no_loop(node, IR_TUPLE);
    }
}

void ref_literal(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    (void)args;
    if (ir_type_bytes(&result->type) > 0)
        memcpy(result->data, node->attr.data, (size_t)ir_type_bytes(&result->type));
}

/* Along the axis the index counts up to dim and begins again; after it, elements repeat. */
#define COUNT_UP(type, STORE)                                                               \
    for (int64_t at = 0, index = 0; at < count; index = index + 1 < dim ? index + 1 : 0)    \
        for (int64_t i = 0; i < inner; i++)                                                 \
            ((type *)result->data)[at++] = (type)STORE(index);

void ref_iota(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    (void)args;
    int64_t stride[IR_MAX_RANK], count = ir_type_count(&result->type), dim = result->type.dim[node->attr.axis];
    ir_row_major(&result->type, stride);
    int64_t inner = stride[node->attr.axis];
    switch (result->type.dtype) {
    case IR_F32:  COUNT_UP(float, AS_IS) break;
    case IR_F64:  COUNT_UP(double, AS_IS) break;
    case IR_BF16: COUNT_UP(uint16_t, CAST_TO_BF16) break;
    case IR_I32:  COUNT_UP(int32_t, AS_IS) break;
    case IR_BOOL: case IR_TUPLE: no_loop(node, result->type.dtype);
    }
}

/* -- reductions -------------------------------------------------------------------------------------------------------- */

/* The operand as rows: its axes, neighbours of one kind merged, the last one apart. A row is summed to one element where it is
 * reduced, else added to others element by element. */
typedef struct {
    int64_t row, row_is_reduced;
    int n_kept, n_reduced;
    int64_t kept_dim[IR_MAX_RANK], kept_stride[IR_MAX_RANK], reduced_dim[IR_MAX_RANK], reduced_stride[IR_MAX_RANK];
    int64_t n_outer, n_inner;                                  /* the products of the two lists of dims */
} reduction;

static reduction reduction_of(const ir_type *type, int n_axes, const int *axes)
{
    bool reduced[IR_MAX_RANK] = { false };
    int64_t dim[IR_MAX_RANK], stride[IR_MAX_RANK];
    reduction r = { .row = 1, .row_is_reduced = 1, .n_outer = 1, .n_inner = 1 };
    for (int i = 0; i < n_axes; i++)
        reduced[axes[i]] = true;
    int n = 0;
    int64_t step = 1;
    bool kind[IR_MAX_RANK];
    for (int i = type->rank - 1; i >= 0; i--) {                /* groups from the last to the first */
        if (type->dim[i] == 1)
            continue;
        if (n > 0 && kind[n - 1] == reduced[i])
            dim[n - 1] *= type->dim[i];
        else
            dim[n] = type->dim[i], stride[n] = step, kind[n++] = reduced[i];
        step *= type->dim[i];
    }
    if (n > 0)
        r.row = dim[0], r.row_is_reduced = kind[0];
    for (int i = n - 1; i > 0; i--)
        if (kind[i])
            r.reduced_dim[r.n_reduced] = dim[i], r.reduced_stride[r.n_reduced++] = stride[i], r.n_inner *= dim[i];
        else
            r.kept_dim[r.n_kept] = dim[i], r.kept_stride[r.n_kept++] = stride[i], r.n_outer *= dim[i];
    return r;
}

/* Where the i-th index of a row-major list of dims is, by the strides. */
static int64_t strided_offset(int64_t i, int n, const int64_t *dim, const int64_t *stride)
{
    int64_t offset = 0;
    for (int axis = n - 1; axis >= 0; i /= dim[axis--])
        offset += i % dim[axis] * stride[axis];
    return offset;
}

/* Sums are kept in f64 (in int64_t for i32, then wrapped), eight beside each other along a row: far more exact than what is held against
 * this oracle. */
enum { LANES = 8, BLOCK = 512 };
#define SUM_OF(a, x) (a) + (x)
#define MAX_OF(a, x) (x) > (a) || (x) != (x) ? (x) : (a)

#define REDUCE(name, storage, LOAD, wide, STORE, JOIN, first)                                                    \
    static void name(const reduction *r, const void *xs, void *zs)                                               \
    {                                                                                                            \
        const storage *from = xs;                                                                                \
        storage *to = zs;                                                                                        \
        int64_t kept = r->row_is_reduced ? 1 : r->row;                                                           \
        for (int64_t o = 0; o < r->n_outer; o++) {                                                               \
            const storage *area = from + strided_offset(o, r->n_kept, r->kept_dim, r->kept_stride);              \
            for (int64_t j0 = 0; j0 < kept; j0 += BLOCK) {                                                       \
                int64_t n = MIN(BLOCK, kept - j0);                                                               \
                wide sum[BLOCK];                                                                                 \
                for (int64_t j = 0; j < MAX(n, LANES); j++)                                                      \
                    sum[j] = first;                                                                              \
                for (int64_t i = 0; i < r->n_inner; i++) {                                                       \
                    const storage *row = area + strided_offset(i, r->n_reduced, r->reduced_dim, r->reduced_stride); \
                    if (r->row_is_reduced) {                                                                     \
                        for (int64_t j = 0; j < r->row; j++) {                                                   \
                            const wide x = LOAD(row[j]);                                                         \
                            sum[j % LANES] = JOIN(sum[j % LANES], x);                                            \
                        }                                                                                        \
                    } else {                                                                                     \
                        for (int64_t j = 0; j < n; j++) {                                                        \
                            const wide x = LOAD(row[j0 + j]);                                                    \
                            sum[j] = JOIN(sum[j], x);                                                            \
                        }                                                                                        \
                    }                                                                                            \
                }                                                                                                \
                for (int64_t j = 1; r->row_is_reduced && j < LANES; j++)                                         \
                    sum[0] = JOIN(sum[0], sum[j]);                                                               \
                for (int64_t j = 0; j < n; j++)                                                                  \
                    to[o * kept + j0 + j] = (storage)STORE(sum[j]);                                              \
            }                                                                                                    \
        }                                                                                                        \
    }

REDUCE(sum_f32, float, AS_IS, double, AS_IS, SUM_OF, 0)
REDUCE(sum_f64, double, AS_IS, double, AS_IS, SUM_OF, 0)
REDUCE(sum_bf16, uint16_t, FROM_BF16, double, CAST_TO_BF16, SUM_OF, 0)
REDUCE(sum_i32, int32_t, AS_IS, int64_t, (uint32_t), SUM_OF, 0)
REDUCE(max_over_f32, float, AS_IS, float, AS_IS, MAX_OF, -INFINITY)
REDUCE(max_over_f64, double, AS_IS, double, AS_IS, MAX_OF, -INFINITY)
REDUCE(max_over_bf16, uint16_t, FROM_BF16, float, TO_BF16, MAX_OF, -INFINITY)
REDUCE(max_over_i32, int32_t, AS_IS, int32_t, AS_IS, MAX_OF, INT32_MIN)

static void (*const reduce_loops[IR_OPS][IR_DTYPES])(const reduction *, const void *, void *) = {
    [OP_reduce_sum] = { FLOAT_ROW(sum), [IR_I32] = sum_i32 },
    [OP_reduce_max] = { FLOAT_ROW(max_over), [IR_I32] = max_over_i32 },
};

void ref_reduce(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    reduction r = reduction_of(&args[0]->type, node->attr.n_axes, node->attr.axes);
    if (!reduce_loops[node->op][result->type.dtype])
        no_loop(node, result->type.dtype);
    reduce_loops[node->op][result->type.dtype](&r, args[0]->data, result->data);
}

/* The first NaN counts as the maximum, as in reduce_max. */
#define ARGMAX(type, LOAD, value)                                                           \
    for (int64_t o = 0; o < count; o++) {                                                   \
        const type *x = (const type *)args[0]->data + o / inner * dim * inner + o % inner;  \
        int64_t best = 0;                                                                   \
        for (int64_t i = 1; i < dim; i++) {                                                 \
            const value a = LOAD(x[best * inner]), b = LOAD(x[i * inner]);                  \
            if (a == a && (b > a || b != b))                                                \
                best = i;                                                                   \
        }                                                                                   \
        ((int32_t *)result->data)[o] = (int32_t)best;                                       \
    }

void ref_argmax(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    int64_t stride[IR_MAX_RANK], count = ir_type_count(&result->type), dim = args[0]->type.dim[node->attr.axis];
    ir_row_major(&args[0]->type, stride);
    int64_t inner = stride[node->attr.axis];
    switch (args[0]->type.dtype) {
    case IR_F32:  ARGMAX(float, AS_IS, float) break;
    case IR_F64:  ARGMAX(double, AS_IS, double) break;
    case IR_BF16: ARGMAX(uint16_t, FROM_BF16, float) break;
    case IR_I32:  ARGMAX(int32_t, AS_IS, int32_t) break;
    case IR_BOOL: case IR_TUPLE: no_loop(node, args[0]->type.dtype);
    }
}
