/* Gradients, one rule an op: given the cotangent dy of a node's result, the cotangents of its operands. A rule sets dx[i] where wanted[i], or
 * leaves it NULL for zero; it adds plain nodes and leaves tidying to simplify, CSE and DCE. What it recomputes of the forward pass is made by
 * the functions that the forward's decomposition uses (composites.h), so that CSE finds the two equal.
 *
 * dx[i] may be f32 where operand i is bf16: gradient.c rounds it, and says why. dy is of the node's type, but f32 for bf16 at ops that
 * only move values. (scan's rule is in vjp_scan.c.) */
#include "ir/composites.h"
#include "ir/gradient.h"

#include <math.h>

static ir_node *x_of(const ir_vjp *c) { return c->node->args[0]; }
static ir_node *y_of(const ir_vjp *c) { return c->node; }
static ir_node *mul(ir_vjp *c, ir_node *a, ir_node *b) { return ir_binary(c->graph, OP_mul, a, b); }

/* -- elementwise -------------------------------------------------------------------------------------------------------- */

void vjp_neg(ir_vjp *c) { c->dx[0] = ir_unary(c->graph, OP_neg, c->dy); }
void vjp_abs(ir_vjp *c) { c->dx[0] = mul(c, c->dy, ir_unary(c->graph, OP_sign, x_of(c))); }
void vjp_exp(ir_vjp *c) { c->dx[0] = mul(c, c->dy, y_of(c)); }
void vjp_log(ir_vjp *c) { c->dx[0] = ir_binary(c->graph, OP_div, c->dy, x_of(c)); }
void vjp_sqrt(ir_vjp *c) { c->dx[0] = ir_binary(c->graph, OP_div, ir_times(c->graph, c->dy, 0.5), y_of(c)); }

/* -1/2 x^(-3/2) */
void vjp_rsqrt(ir_vjp *c)
{
    ir_node *cube = mul(c, mul(c, y_of(c), y_of(c)), y_of(c));
    c->dx[0] = mul(c, ir_times(c->graph, c->dy, -0.5), cube);
}

static ir_node *one_minus(ir_vjp *c, ir_node *x) { return ir_binary(c->graph, OP_sub, ir_constant_like(c->graph, x, 1), x); }

void vjp_tanh(ir_vjp *c) { c->dx[0] = mul(c, c->dy, one_minus(c, mul(c, y_of(c), y_of(c)))); }
void vjp_sigmoid(ir_vjp *c) { c->dx[0] = mul(c, c->dy, mul(c, y_of(c), one_minus(c, y_of(c)))); }
void vjp_sin(ir_vjp *c) { c->dx[0] = mul(c, c->dy, ir_unary(c->graph, OP_cos, x_of(c))); }

void vjp_cos(ir_vjp *c)
{
    ir_node *sine = ir_unary(c->graph, OP_sin, x_of(c));
    c->dx[0] = mul(c, ir_unary(c->graph, OP_neg, c->dy), sine);
}

static ir_node *square(ir_vjp *c, ir_node *x) { return mul(c, x, x); }

/* 2/sqrt(pi) exp(-x^2) */
void vjp_erf(ir_vjp *c)
{
    ir_node *slope = ir_unary(c->graph, OP_exp, ir_unary(c->graph, OP_neg, square(c, x_of(c))));
    c->dx[0] = mul(c, c->dy, ir_times(c->graph, slope, M_2_SQRTPI));
}

/* sqrt(pi)/2 exp(y^2) */
void vjp_erf_inv(ir_vjp *c)
{
    ir_node *slope = ir_unary(c->graph, OP_exp, square(c, y_of(c)));
    c->dx[0] = mul(c, c->dy, ir_times(c->graph, slope, 1 / M_2_SQRTPI));
}

/* The cotangent keeps the digits it came with: see gradient.c. */
void vjp_cast(ir_vjp *c)
{
    ir_dtype from = x_of(c)->type.dtype;
    c->dx[0] = ir_cast(c->graph, from == IR_BF16 ? c->dy : ir_wide_cotangent(c->graph, c->dy), from);
}

void vjp_add(ir_vjp *c) { c->dx[0] = c->dx[1] = c->dy; }

void vjp_sub(ir_vjp *c)
{
    c->dx[0] = c->dy;
    if (c->wanted[1])
        c->dx[1] = ir_unary(c->graph, OP_neg, c->dy);
}

void vjp_mul(ir_vjp *c)
{
    for (int i = 0; i < 2; i++)
        if (c->wanted[i])
            c->dx[i] = mul(c, c->dy, c->node->args[1 - i]);
}

/* d(l/r) = dl/r - (l/r) dr/r */
void vjp_div(ir_vjp *c)
{
    ir_node *by_rhs = ir_binary(c->graph, OP_div, c->dy, c->node->args[1]);
    c->dx[0] = by_rhs;
    if (c->wanted[1])
        c->dx[1] = ir_unary(c->graph, OP_neg, mul(c, by_rhs, y_of(c)));
}

/* d(l^r) = r l^(r-1) dl + l^r log(l) dr. The first is 0 where r is, also at l = 0; the second counts only where l > 0. */
void vjp_pow(ir_vjp *c)
{
    ir_graph *g = c->graph;
    ir_node *lhs = c->node->args[0], *rhs = c->node->args[1];
    ir_node *zero = ir_constant_like(g, rhs, 0), *one = ir_constant_like(g, rhs, 1);
    if (c->wanted[0]) {
        ir_node *is_zero = ir_binary(g, OP_eq, rhs, zero);
        ir_node *power = ir_select(g, is_zero, one, ir_binary(g, OP_sub, rhs, one));
        c->dx[0] = mul(c, c->dy, mul(c, rhs, ir_binary(g, OP_pow, lhs, power)));
    }
    if (c->wanted[1]) {
        ir_node *is_positive = ir_binary(g, OP_lt, zero, lhs);
        ir_node *log = ir_unary(g, OP_log, ir_select(g, is_positive, lhs, one));
        c->dx[1] = mul(c, c->dy, mul(c, y_of(c), log));
    }
}

/* 1 where a is the one that was taken, 1/2 at a tie. */
static void share_extreme(ir_vjp *c, bool max)
{
    ir_graph *g = c->graph;
    ir_node *lhs = c->node->args[0], *rhs = c->node->args[1];
    ir_node *tie = ir_binary(g, OP_eq, lhs, rhs), *half = ir_times(g, c->dy, 0.5), *zero = ir_constant_like(g, c->dy, 0);
    ir_node *left = max ? ir_binary(g, OP_lt, rhs, lhs) : ir_binary(g, OP_lt, lhs, rhs);
    if (c->wanted[0])
        c->dx[0] = ir_select(g, tie, half, ir_select(g, left, c->dy, zero));
    if (c->wanted[1])
        c->dx[1] = ir_select(g, tie, half, ir_select(g, left, zero, c->dy));
}

void vjp_max(ir_vjp *c) { share_extreme(c, true); }
void vjp_min(ir_vjp *c) { share_extreme(c, false); }

void vjp_select(ir_vjp *c)
{
    ir_node *condition = c->node->args[0], *zero = ir_constant_like(c->graph, c->dy, 0);
    if (c->wanted[1])
        c->dx[1] = ir_select(c->graph, condition, c->dy, zero);
    if (c->wanted[2])
        c->dx[2] = ir_select(c->graph, condition, zero, c->dy);
}

/* -- reductions and contraction ------------------------------------------------------------------------------------------ */

static ir_node *back_on_x(ir_vjp *c, ir_node *reduced)
{
    return ir_broadcast_back(c->graph, reduced, x_of(c)->type, c->node->attr.n_axes, c->node->attr.axes);
}

void vjp_reduce_sum(ir_vjp *c) { c->dx[0] = back_on_x(c, c->dy); }

void vjp_reduce_max(ir_vjp *c)
{
    ir_graph *g = c->graph;
    ir_node *x = x_of(c), *is_max = ir_binary(g, OP_eq, x, back_on_x(c, y_of(c)));
    ir_dtype wide = ir_wide_dtype(x->type.dtype);
    ir_node *ties = ir_reduce(g, OP_reduce_sum, ir_cast(g, is_max, wide), c->node->attr.n_axes, c->node->attr.axes);
    ir_node *share = back_on_x(c, ir_binary(g, OP_div, ir_widen(g, c->dy), ties));
    c->dx[0] = ir_select(g, is_max, share, ir_constant_like(g, share, 0));
}

/* da = dy b^T, db = a^T dy. Of bf16 operands the cotangent is bf16 too, and the products are f32. */
void vjp_matmul(ir_vjp *c)
{
    ir_graph *g = c->graph;
    ir_node *a = c->node->args[0], *b = c->node->args[1];
    ir_dtype dtype = a->type.dtype, wide = ir_wide_dtype(dtype);
    ir_node *dy = ir_cast(g, c->dy, dtype);
    if (c->wanted[0])
        c->dx[0] = ir_matmul(g, dy, ir_swap_last(g, b), wide);
    if (c->wanted[1])
        c->dx[1] = ir_matmul(g, ir_swap_last(g, a), dy, wide);
}

/* -- movement: zeros and results take dy's dtype, see gradient.c --------------------------------------------------------- */

static ir_type as_dy(const ir_vjp *c, const ir_node *x) { return ir_type_with_dtype(x->type, c->dy->type.dtype); }

void vjp_reshape(ir_vjp *c) { c->dx[0] = ir_reshape(c->graph, c->dy, as_dy(c, x_of(c))); }

void vjp_transpose(ir_vjp *c)
{
    int inverse[IR_MAX_RANK];
    for (int i = 0; i < c->node->attr.n_axes; i++)
        inverse[c->node->attr.axes[i]] = i;
    c->dx[0] = ir_transpose(c->graph, c->dy, inverse);
}

/* The sum over the axes along which x repeats: those it lacks, and those where it has dim 1 and the result does not. */
void vjp_broadcast(ir_vjp *c)
{
    const ir_type *x = &x_of(c)->type, *y = &c->node->type;
    bool stays[IR_MAX_RANK] = { false };
    int axes[IR_MAX_RANK], n = 0;
    for (int i = 0; i < x->rank; i++)
        stays[c->node->attr.axes[i]] = x->dim[i] == y->dim[c->node->attr.axes[i]];
    for (int i = 0; i < y->rank; i++)
        if (!stays[i])
            axes[n++] = i;
    ir_node *sum = n > 0 ? ir_reduce(c->graph, OP_reduce_sum, c->dy, n, axes) : c->dy;
    c->dx[0] = ir_reshape(c->graph, sum, as_dy(c, x_of(c)));
}

static ir_node *padded(ir_vjp *c, ir_node *part, const int64_t *start, ir_type whole)
{
    ir_attr attr = { .value = 0 };
    for (int i = 0; i < whole.rank; i++)
        attr.start[i] = start[i];
    return ir_add(c->graph, OP_pad, 1, &part, &attr, &whole);
}

void vjp_slice(ir_vjp *c) { c->dx[0] = padded(c, c->dy, c->node->attr.start, as_dy(c, x_of(c))); }
void vjp_pad(ir_vjp *c) { c->dx[0] = ir_slice(c->graph, c->dy, c->node->attr.start, as_dy(c, x_of(c))); }

void vjp_concatenate(ir_vjp *c)
{
    int axis = c->node->attr.axis;
    int64_t start[IR_MAX_RANK] = { 0 };
    for (int i = 0; i < c->node->n_args; i++) {
        ir_node *x = c->node->args[i];
        if (c->wanted[i])
            c->dx[i] = ir_slice(c->graph, c->dy, start, as_dy(c, x));
        start[axis] += x->type.dim[axis];
    }
}

/* base with update written at the starts, which are operands first..., of the node. */
static ir_node *updated(ir_vjp *c, ir_node *base, ir_node *update, int first)
{
    ir_node *operands[IR_MAX_RANK + 2] = { base, update };
    for (int i = 0; i < base->type.rank; i++)
        operands[i + 2] = c->node->args[first + i];
    return ir_add(c->graph, OP_update_slice, base->type.rank + 2, operands, NULL, NULL);
}

void vjp_dynamic_slice(ir_vjp *c) { c->dx[0] = updated(c, ir_zeros(c->graph, as_dy(c, x_of(c))), c->dy, 1); }

void vjp_update_slice(ir_vjp *c)
{
    ir_node *update = c->node->args[1];
    ir_type part = as_dy(c, update);
    if (c->wanted[0])
        c->dx[0] = updated(c, c->dy, ir_zeros(c->graph, part), 2);
    if (c->wanted[1]) {
        ir_node *operands[IR_MAX_RANK + 1] = { c->dy };
        for (int i = 0; i < part.rank; i++)
            operands[i + 1] = c->node->args[i + 2];
        c->dx[1] = ir_add(c->graph, OP_dynamic_slice, part.rank + 1, operands, NULL, &part);
    }
}

void vjp_gather(ir_vjp *c)
{
    ir_node *operands[] = { ir_zeros(c->graph, as_dy(c, x_of(c))), c->node->args[1], c->dy };
    c->dx[0] = ir_add(c->graph, OP_scatter_add, 3, operands, &(ir_attr){ .axis = c->node->attr.axis }, NULL);
}

void vjp_scatter_add(ir_vjp *c)
{
    c->dx[0] = c->dy;
    if (c->wanted[2])
        c->dx[2] = ir_add(c->graph, OP_gather, 2, (ir_node *[]){ c->dy, c->node->args[1] }, &(ir_attr){ .axis = c->node->attr.axis }, NULL);
}

/* -- control ------------------------------------------------------------------------------------------------------------ */

/* gradient.c adds it to the cotangent of the tuple's result INDEX. */
void vjp_result(ir_vjp *c) { c->dx[0] = c->dy; }

/* BODY(x1..xn, y, dy) -> (dx1..dxn) in the place of y's own gradient. */
void vjp_custom_gradient(ir_vjp *c)
{
    int n = c->node->n_args - 1;
    ir_node **operands = base_alloc(sizeof *operands * (size_t)(n + 2)), **dx = base_alloc(sizeof *dx * (size_t)n);
    for (int i = 0; i < n; i++)
        operands[i] = c->node->args[i + 1];
    operands[n] = y_of(c);
    operands[n + 1] = c->dy;
    ir_inline(c->graph, c->node->attr.body, operands, dx);
    for (int i = 0; i < n; i++)
        c->dx[i + 1] = dx[i];
    base_free(operands);
    base_free(dx);
}

/* -- composites --------------------------------------------------------------------------------------------------------- */

/* By the rules of what it is made of. An operand that comes twice is one input of the decomposition: its whole cotangent is that of the
 * first place. */
void vjp_decompose(ir_vjp *c)
{
    const ir_node *node = c->node;
    int n_outputs = MAX(1, node->n_tuple), n = 0, first_id = c->graph->next_id;
    ir_node **outputs = base_alloc(sizeof *outputs * (size_t)n_outputs), **wrt = base_alloc(sizeof *wrt * (size_t)node->n_args),
            **into = base_alloc(sizeof *into * (size_t)node->n_args);
    int *place = base_alloc(sizeof *place * (size_t)node->n_args);
    for (int i = 0; i < node->n_args; i++) {
        bool is_first = true;
        for (int j = 0; j < i; j++)
            is_first = is_first && node->args[j] != node->args[i];
        if (c->wanted[i] && is_first) {
            wrt[n] = node->args[i];
            place[n++] = i;
        }
    }
    ir_op_table[node->op].decompose(c->graph, node, outputs);
    ir_vjp_since(c->graph, first_id, n_outputs, outputs, c->dys ? c->dys : &c->dy, n, wrt, into);
    for (int i = 0; i < n; i++)
        c->dx[place[i]] = into[i];
    base_free(outputs);
    base_free(wrt);
    base_free(into);
    base_free(place);
}

/* y (dy - sum(dy y)) */
void vjp_softmax(ir_vjp *c)
{
    ir_graph *g = c->graph;
    int axis = c->node->attr.axis;
    ir_node *dy = ir_wide_cotangent(g, c->dy);
    ir_softmax_parts parts = ir_softmax_parts_of(g, ir_widen(g, x_of(c)), axis);
    ir_node *y = ir_normalised(g, &parts, axis);
    ir_node *sum = ir_reduce(g, OP_reduce_sum, mul(c, dy, y), 1, &axis);
    c->dx[0] = mul(c, y, ir_binary(g, OP_sub, dy, ir_broadcast_back(g, sum, y->type, 1, &axis)));
}

/* dy - softmax(x) sum(dy) */
void vjp_log_softmax(ir_vjp *c)
{
    ir_graph *g = c->graph;
    int axis = c->node->attr.axis;
    ir_node *dy = ir_wide_cotangent(g, c->dy);
    ir_softmax_parts parts = ir_softmax_parts_of(g, ir_widen(g, x_of(c)), axis);
    ir_node *p = ir_normalised(g, &parts, axis), *sum = ir_reduce(g, OP_reduce_sum, dy, 1, &axis);
    c->dx[0] = ir_binary(g, OP_sub, dy, mul(c, p, ir_broadcast_back(g, sum, p->type, 1, &axis)));
}

/* The sum over all axes but the last. */
static ir_node *column_sums(ir_vjp *c, ir_node *x)
{
    int axes[IR_MAX_RANK];
    for (int i = 0; i < x->type.rank - 1; i++)
        axes[i] = i;
    return x->type.rank > 1 ? ir_reduce(c->graph, OP_reduce_sum, x, x->type.rank - 1, axes) : x;
}

/* With dxhat = dy weight: dx = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)), dweight = sum(dy xhat), dbias = sum(dy). */
void vjp_layer_norm(ir_vjp *c)
{
    ir_graph *g = c->graph;
    ir_node *dy = ir_wide_cotangent(g, c->dy);
    ir_norm_parts parts = ir_norm_parts_of(g, ir_widen(g, x_of(c)), c->node->attr.epsilon);
    if (c->wanted[0]) {
        ir_node *dxhat = mul(c, dy, ir_broadcast_last(g, ir_widen(g, c->node->args[1]), dy->type));
        ir_node *along = mul(c, parts.xhat, ir_mean_last(g, mul(c, dxhat, parts.xhat)));
        ir_node *rest = ir_binary(g, OP_sub, ir_binary(g, OP_sub, dxhat, ir_mean_last(g, dxhat)), along);
        c->dx[0] = mul(c, parts.rstd, rest);
    }
    if (c->wanted[1])
        c->dx[1] = column_sums(c, mul(c, dy, parts.xhat));
    if (c->node->n_args == 3 && c->wanted[2])
        c->dx[2] = column_sums(c, dy);
}

/* Of x s with s = sigmoid(v): s + x s (1 - s) v', where v' = 2 sqrt(2/pi) (1 + 3 * 0.044715 x^2) */
void vjp_gelu(ir_vjp *c)
{
    ir_graph *g = c->graph;
    ir_node *x = ir_widen(g, x_of(c)), *dy = ir_wide_cotangent(g, c->dy), *s = ir_gelu_gate(g, x);
    ir_node *slope = ir_plus(g, ir_times(g, mul(c, x, x), 6 * IR_GELU_CUBIC * IR_GELU_SCALE), 2 * IR_GELU_SCALE);
    ir_node *y = mul(c, x, s), *bend = mul(c, mul(c, y, one_minus(c, s)), slope);
    c->dx[0] = mul(c, dy, ir_binary(g, OP_add, s, bend));
}

void vjp_cross_entropy(ir_vjp *c)
{
    ir_graph *g = c->graph;
    ir_cross_entropy_parts parts = ir_cross_entropy_parts_of(g, ir_widen(g, x_of(c)), c->node->args[1]);
    c->dx[0] = ir_cross_entropy_gradient(g, &parts, ir_wide_cotangent(g, c->dy));
}

/* The loss comes out of it a second time, without being computed a second time: see merge_loss.c. */
void vjp_linear_cross_entropy(ir_vjp *c)
{
    ir_node *const *in = c->node->args;
    ir_node *all = ir_add(c->graph, OP_linear_cross_entropy_vjp, 4, (ir_node *[]){ in[0], in[1], in[2], c->dy }, NULL, NULL);
    for (int i = 0; i < 2; i++)
        if (c->wanted[i])
            c->dx[i] = ir_result(c->graph, all, i + 1);
}

void vjp_attention(ir_vjp *c)
{
    ir_graph *g = c->graph;
    ir_node *const *in = c->node->args;
    ir_node *out = ir_result(g, c->node, 0), *lse = ir_result(g, c->node, 1);
    ir_node *dout = c->dys[0] ? c->dys[0] : ir_zeros(g, out->type), *dlse = c->dys[1] ? c->dys[1] : ir_zeros(g, lse->type);
    ir_node *operands[9] = { in[0], in[1], in[2], out, lse, dout, dlse };
    int n = 7;
    for (int i = 3; i < c->node->n_args; i++)
        operands[n++] = in[i];
    ir_node *all = ir_add(g, OP_attention_vjp, n, operands, &c->node->attr, NULL);
    for (int i = 0; i < 3; i++)
        if (c->wanted[i])
            c->dx[i] = ir_result(g, all, i);
}
