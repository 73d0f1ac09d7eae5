/* One decomposition an op: what a composite means, in terms of the other ops. The interpreter runs these, so they are the oracle for
 * every kernel that a backend has of its own. results[i] becomes the node of result i, of the composite's type.
 *
 * Of the arguments of a call at most one makes nodes: C leaves open which comes first, and a graph is to be the same by every compiler. */
#include "ir/composites.h"

#include <math.h>

/* -- shared with the gradients ------------------------------------------------------------------------------------------ */

ir_dtype ir_wide_dtype(ir_dtype dtype) { return dtype == IR_BF16 ? IR_F32 : dtype; }

ir_node *ir_widen(ir_graph *graph, ir_node *x) { return ir_cast(graph, x, ir_wide_dtype(x->type.dtype)); }

ir_node *ir_times(ir_graph *graph, ir_node *x, double factor)
{
    return ir_binary(graph, OP_mul, x, ir_constant_like(graph, x, factor));
}

ir_node *ir_plus(ir_graph *graph, ir_node *x, double term) { return ir_binary(graph, OP_add, x, ir_constant_like(graph, x, term)); }

ir_node *ir_broadcast_last(ir_graph *graph, ir_node *vector, ir_type shape)
{
    return ir_broadcast(graph, vector, ir_type_with_dtype(shape, vector->type.dtype), (int[]){ shape.rank - 1 });
}

static ir_node *back_on(ir_graph *graph, ir_node *reduced, const ir_node *like, int axis)
{
    return ir_broadcast_back(graph, reduced, like->type, 1, &axis);
}

ir_node *ir_mean_last(ir_graph *graph, ir_node *x)
{
    int last = x->type.rank - 1;
    ir_node *sum = ir_reduce_last(graph, OP_reduce_sum, x);
    return back_on(graph, ir_times(graph, sum, 1.0 / (double)MAX(x->type.dim[last], 1)), x, last);
}

ir_softmax_parts ir_softmax_parts_of(ir_graph *graph, ir_node *x, int axis)
{
    ir_softmax_parts parts;
    parts.max = ir_reduce(graph, OP_reduce_max, x, 1, &axis);
    parts.shifted = ir_binary(graph, OP_sub, x, back_on(graph, parts.max, x, axis));
    parts.exp = ir_unary(graph, OP_exp, parts.shifted);
    parts.sum = ir_reduce(graph, OP_reduce_sum, parts.exp, 1, &axis);
    return parts;
}

ir_node *ir_normalised(ir_graph *graph, const ir_softmax_parts *parts, int axis)
{
    ir_node *share = ir_binary(graph, OP_div, ir_constant_like(graph, parts->sum, 1), parts->sum);     /* a division a row */
    return ir_binary(graph, OP_mul, parts->exp, back_on(graph, share, parts->exp, axis));
}

static ir_node *log_sum_exp(ir_graph *graph, const ir_softmax_parts *parts)
{
    return ir_binary(graph, OP_add, parts->max, ir_unary(graph, OP_log, parts->sum));
}

/* logits[...,V], targets[...]: whether the index on the last axis is the target. */
static ir_node *is_target_of(ir_graph *graph, ir_node *targets, ir_type logits)
{
    ir_node *index = ir_iota(graph, ir_type_with_dtype(logits, IR_I32), logits.rank - 1);
    return ir_binary(graph, OP_eq, index, back_on(graph, targets, index, logits.rank - 1));
}

ir_cross_entropy_parts ir_cross_entropy_parts_of(ir_graph *graph, ir_node *logits, ir_node *targets)
{
    ir_cross_entropy_parts parts = { .logits = logits };
    parts.is_target = is_target_of(graph, targets, logits->type);
    parts.softmax = ir_softmax_parts_of(graph, logits, logits->type.rank - 1);
    return parts;
}

static ir_node *cross_entropy_loss(ir_graph *graph, const ir_cross_entropy_parts *parts)
{
    ir_node *hit = ir_select(graph, parts->is_target, parts->logits, ir_constant_like(graph, parts->logits, 0));
    ir_node *target = ir_reduce_last(graph, OP_reduce_sum, hit);
    return ir_binary(graph, OP_sub, log_sum_exp(graph, &parts->softmax), target);
}

ir_node *ir_cross_entropy_gradient(ir_graph *graph, const ir_cross_entropy_parts *parts, ir_node *dloss)
{
    int last = parts->logits->type.rank - 1;
    ir_node *p = ir_normalised(graph, &parts->softmax, last);
    ir_node *difference = ir_select(graph, parts->is_target, ir_plus(graph, p, -1), p);
    return ir_binary(graph, OP_mul, difference, back_on(graph, dloss, p, last));
}

ir_norm_parts ir_norm_parts_of(ir_graph *graph, ir_node *x, double epsilon)
{
    int last = x->type.rank - 1;
    ir_node *centred = ir_binary(graph, OP_sub, x, ir_mean_last(graph, x));
    ir_node *sum = ir_reduce_last(graph, OP_reduce_sum, ir_binary(graph, OP_mul, centred, centred));
    ir_node *variance = ir_times(graph, sum, 1.0 / (double)MAX(x->type.dim[last], 1));
    ir_norm_parts parts;
    parts.rstd = back_on(graph, ir_unary(graph, OP_rsqrt, ir_plus(graph, variance, epsilon)), x, last);
    parts.xhat = ir_binary(graph, OP_mul, centred, parts.rstd);
    return parts;
}

/* (1 + tanh(u))/2 is sigmoid(2u): one exponential, where tanh near 0 needs a polynomial of its own beside it. */
ir_node *ir_gelu_gate(ir_graph *graph, ir_node *x)
{
    ir_node *square = ir_binary(graph, OP_mul, x, x), *slope = ir_times(graph, square, 2 * IR_GELU_SCALE * IR_GELU_CUBIC);
    return ir_unary(graph, OP_sigmoid, ir_binary(graph, OP_mul, x, ir_plus(graph, slope, 2 * IR_GELU_SCALE)));
}

/* -- elementwise and by rows -------------------------------------------------------------------------------------------- */

void decompose_softmax(ir_graph *graph, const ir_node *node, ir_node **results)
{
    int axis = node->attr.axis;
    ir_softmax_parts parts = ir_softmax_parts_of(graph, ir_widen(graph, node->args[0]), axis);
    results[0] = ir_cast(graph, ir_normalised(graph, &parts, axis), node->type.dtype);
}

void decompose_log_softmax(ir_graph *graph, const ir_node *node, ir_node **results)
{
    int axis = node->attr.axis;
    ir_softmax_parts parts = ir_softmax_parts_of(graph, ir_widen(graph, node->args[0]), axis);
    ir_node *log_sum = back_on(graph, ir_unary(graph, OP_log, parts.sum), parts.shifted, axis);
    results[0] = ir_cast(graph, ir_binary(graph, OP_sub, parts.shifted, log_sum), node->type.dtype);
}

/* Each row of y times a vector. */
static ir_node *times_vector(ir_graph *graph, ir_node *y, ir_node *vector)
{
    return ir_binary(graph, OP_mul, y, ir_broadcast_last(graph, ir_widen(graph, vector), y->type));
}

void decompose_layer_norm(ir_graph *graph, const ir_node *node, ir_node **results)
{
    ir_norm_parts parts = ir_norm_parts_of(graph, ir_widen(graph, node->args[0]), node->attr.epsilon);
    ir_node *y = times_vector(graph, parts.xhat, node->args[1]);
    if (node->n_args == 3)
        y = ir_binary(graph, OP_add, y, ir_broadcast_last(graph, ir_widen(graph, node->args[2]), y->type));
    results[0] = ir_cast(graph, y, node->type.dtype);
}

void decompose_rms_norm(ir_graph *graph, const ir_node *node, ir_node **results)
{
    ir_node *x = ir_widen(graph, node->args[0]);
    ir_node *mean_square = ir_mean_last(graph, ir_binary(graph, OP_mul, x, x));
    ir_node *xhat = ir_binary(graph, OP_mul, x, ir_unary(graph, OP_rsqrt, ir_plus(graph, mean_square, node->attr.epsilon)));
    results[0] = ir_cast(graph, times_vector(graph, xhat, node->args[1]), node->type.dtype);
}

void decompose_gelu(ir_graph *graph, const ir_node *node, ir_node **results)
{
    ir_node *x = ir_widen(graph, node->args[0]);
    results[0] = ir_cast(graph, ir_binary(graph, OP_mul, x, ir_gelu_gate(graph, x)), node->type.dtype);
}

void decompose_silu(ir_graph *graph, const ir_node *node, ir_node **results)
{
    ir_node *x = ir_widen(graph, node->args[0]);
    results[0] = ir_cast(graph, ir_binary(graph, OP_mul, x, ir_unary(graph, OP_sigmoid, x)), node->type.dtype);
}

void decompose_one_hot(ir_graph *graph, const ir_node *node, ir_node **results)
{
    results[0] = ir_cast(graph, is_target_of(graph, node->args[0], node->type), node->type.dtype);
}

/* -- losses ------------------------------------------------------------------------------------------------------------- */

void decompose_cross_entropy(ir_graph *graph, const ir_node *node, ir_node **results)
{
    ir_cross_entropy_parts parts = ir_cross_entropy_parts_of(graph, ir_widen(graph, node->args[0]), node->args[1]);
    results[0] = ir_cast(graph, cross_entropy_loss(graph, &parts), node->type.dtype);
}

/* Logits exist for so many rows at a time as fit in this; 16 rows and their multiples suit the tiles of a matrix product. The
 * weight's gradient is read and written once a chunk: with a few hundred rows that is a few percent of the products' time, with
 * few rows most of it. */
int64_t ir_logits_bytes = 256 << 20;
enum { ROW_MULTIPLE = 16 };

/* Chunks of one size, as even as the multiple allows, so that little is left over. */
static int64_t rows_of_chunk(const ir_node *x, const ir_node *weight)
{
    int64_t n = x->type.dim[0], row_bytes = weight->type.dim[0] * ir_dtype_bytes(ir_wide_dtype(x->type.dtype));
    int64_t most = MAX(ir_logits_bytes / MAX(row_bytes, 1), 1);
    if (n <= most)
        return n;
    int64_t rows = base_divide_up(n, base_divide_up(n, most)), rounded = base_round_up(rows, ROW_MULTIPLE);
    return rounded <= most ? rounded : rows;
}

/* x, weight and its transpose, targets, and for the gradient dloss, else NULL; x, targets and dloss for some rows. */
typedef struct { ir_node *x, *weight, *transposed, *targets, *dloss; } loss_operands;
typedef struct { ir_node *loss, *dx, *dweight; } loss_results;

static loss_results loss_of_rows(ir_graph *graph, const loss_operands *in)
{
    ir_dtype dtype = in->x->type.dtype, wide = ir_wide_dtype(dtype);
    loss_results out = {0};
    ir_cross_entropy_parts parts = ir_cross_entropy_parts_of(graph, ir_matmul(graph, in->x, in->transposed, wide), in->targets);
    out.loss = cross_entropy_loss(graph, &parts);
    if (in->dloss) {
        ir_node *dlogits = ir_cast(graph, ir_cross_entropy_gradient(graph, &parts, in->dloss), dtype);
        out.dx = ir_matmul(graph, dlogits, in->weight, wide);
        out.dweight = ir_matmul(graph, ir_swap_last(graph, dlogits), in->x, wide);
    }
    return out;
}

/* Rows from..from+count of x, as chunks of so many rows on a new first axis where rows is not 0. NULL for NULL. */
static ir_node *rows_of(ir_graph *graph, ir_node *x, int64_t from, int64_t count, int64_t rows)
{
    if (!x)
        return NULL;
    ir_type type = x->type;
    if (count != type.dim[0]) {
        type.dim[0] = count;
        type.dim_name[0] = NULL;
        x = ir_slice(graph, x, (int64_t[IR_MAX_RANK]){ from }, type);
    }
    if (rows == 0)
        return x;
    ir_type chunks = { .dtype = type.dtype, .rank = type.rank + 1, .dim = { count / rows, rows } };
    for (int i = 1; i < type.rank; i++)
        chunks.dim[i + 1] = type.dim[i];
    return ir_reshape(graph, x, chunks);
}

static loss_operands operands_of_rows(ir_graph *graph, const loss_operands *in, int64_t from, int64_t count, int64_t rows)
{
    loss_operands part = *in;
    part.x = rows_of(graph, in->x, from, count, rows);
    part.targets = rows_of(graph, in->targets, from, count, rows);
    part.dloss = rows_of(graph, in->dloss, from, count, rows);
    return part;
}

static ir_node *parameter_like(ir_graph *body, const ir_node *x, const char *name) { return x ? ir_parameter(body, x->type, name) : NULL; }

static ir_node *parameter_for_slice(ir_graph *body, const ir_node *x, const char *name)
{
    if (!x)
        return NULL;
    ir_type type = { .dtype = x->type.dtype, .rank = x->type.rank - 1 };
    for (int i = 0; i < type.rank; i++)
        type.dim[i] = x->type.dim[i + 1];
    return ir_parameter(body, type, name);
}

/* The operands that there are, in order; how many. */
static int gather_operands(ir_node **list, int n, ir_node *const *from)
{
    int count = 0;
    for (int i = 0; i < n; i++)
        if (from[i])
            list[count++] = from[i];
    return count;
}

/* One scan over whole chunks: in has its x, targets and dloss stacked by chunk. Loss and dx come stacked; to dweight, the carry, is added. */
static loss_results loss_of_chunks(ir_graph *graph, const loss_operands *in, int64_t rows, ir_node *dweight)
{
    ir_graph *body = ir_graph_new_body(graph, "loss_chunk");
    ir_node *weight = in->dloss ? in->weight : NULL;
    ir_node *sum = parameter_like(body, dweight, "dweight");
    loss_operands inside;
    inside.x = parameter_for_slice(body, in->x, "x");
    inside.targets = parameter_for_slice(body, in->targets, "targets");
    inside.dloss = parameter_for_slice(body, in->dloss, "dloss");
    inside.weight = parameter_like(body, weight, "weight");
    inside.transposed = parameter_like(body, in->transposed, "transposed");
    loss_results piece = loss_of_rows(body, &inside);
    ir_node *carried = sum ? ir_binary(body, OP_add, sum, piece.dweight) : NULL, *made[3], *operands[6];
    ir_set_results(body, gather_operands(made, 3, (ir_node *[]){ carried, piece.loss, piece.dx }), made, NULL);

    ir_attr attr = { .body = body, .count = in->x->type.dim[0], .n_carry = sum != NULL, .n_xs = in->dloss ? 3 : 2 };
    int n = gather_operands(operands, 6, (ir_node *[]){ dweight, in->x, in->targets, in->dloss, weight, in->transposed });
    ir_node *scan = ir_add(graph, OP_scan, n, operands, &attr, NULL);
    int64_t count = attr.count * rows;
    loss_results out = {0};
    if (in->dloss) {
        out.dweight = ir_result(graph, scan, 0);
        ir_node *dx = ir_result(graph, scan, 2);
        out.dx = ir_reshape(graph, dx, ir_type_of(dx->type.dtype, 2, (int64_t[]){ count, dx->type.dim[2] }));
    }
    ir_node *loss = ir_result(graph, scan, attr.n_carry);
    out.loss = ir_reshape(graph, loss, ir_type_of(loss->type.dtype, 1, &count));
    return out;
}

static ir_node *one_after_another(ir_graph *graph, ir_node *a, ir_node *b)
{
    return a ? ir_add(graph, OP_concatenate, 2, (ir_node *[]){ a, b }, &(ir_attr){ .axis = 0 }, NULL) : NULL;
}

/* Chunks of rows by a scan, and before it what is left over as a smaller piece, or a chunk: the weight's gradient begins as that of the
 * first rows, not as zeros that have to be written and read. */
static loss_results linear_cross_entropy(ir_graph *graph, const ir_node *node, ir_node *dloss)
{
    loss_operands in = { node->args[0], node->args[1], ir_swap_last(graph, node->args[1]), node->args[2], dloss };
    int64_t n = in.x->type.dim[0], rows = rows_of_chunk(in.x, in.weight), whole = n / rows * rows;
    if (n <= rows)
        return loss_of_rows(graph, &in);
    int64_t first = n - whole > 0 || !dloss ? n - whole : rows, rest = n - first;
    loss_results head = {0};
    if (first > 0) {
        loss_operands piece = operands_of_rows(graph, &in, 0, first, 0);
        head = loss_of_rows(graph, &piece);
    }
    loss_operands chunks = operands_of_rows(graph, &in, first, rest, rows);
    loss_results out = loss_of_chunks(graph, &chunks, rows, head.dweight);
    if (first > 0) {
        out.loss = one_after_another(graph, head.loss, out.loss);
        out.dx = one_after_another(graph, head.dx, out.dx);
    }
    return out;
}

void decompose_linear_cross_entropy(ir_graph *graph, const ir_node *node, ir_node **results)
{
    results[0] = linear_cross_entropy(graph, node, NULL).loss;
}

void decompose_linear_cross_entropy_vjp(ir_graph *graph, const ir_node *node, ir_node **results)
{
    loss_results out = linear_cross_entropy(graph, node, node->args[3]);
    results[0] = out.loss;
    results[1] = out.dx;
    results[2] = out.dweight;
}

/* -- attention ---------------------------------------------------------------------------------------------------------- */

/* Scores [B,H,T,S], wide: scale q k^T, and -inf where the mask forbids. */
static ir_node *attention_scores(ir_graph *graph, const ir_node *node)
{
    ir_node *q = node->args[0], *k = node->args[1];
    ir_dtype wide = ir_wide_dtype(q->type.dtype);
    ir_node *scores = ir_times(graph, ir_matmul(graph, q, ir_swap_last(graph, k), wide), node->attr.scale);
    if (!node->attr.causal)
        return scores;
    int64_t t = q->type.dim[2], s = k->type.dim[2];
    ir_type square = ir_type_of(IR_I32, 2, (int64_t[]){ t, s });
    ir_node *row = ir_iota(graph, square, 0), *key = ir_iota(graph, square, 1);
    ir_node *sees = ir_binary(graph, OP_le, key, ir_plus(graph, row, (double)(s - t)));
    sees = ir_broadcast(graph, sees, ir_type_with_dtype(scores->type, IR_BOOL), (int[]){ 2, 3 });
    return ir_select(graph, sees, scores, ir_constant_like(graph, scores, -INFINITY));
}

/* x [B,H,T,S] with the dropout mask of the node applied: the same in forward and backward, for it depends on seed, counter and
 * site alone. */
static ir_node *with_dropout(ir_graph *graph, const ir_node *node, ir_node *x)
{
    double p = node->attr.dropout;
    if (p == 0)
        return x;
    ir_attr attr = { .site = node->attr.site, .value = p };
    ir_type mask = ir_type_with_dtype(x->type, IR_BOOL);
    ir_node *keep = ir_add(graph, OP_bernoulli, 2, node->args + node->n_args - 2, &attr, &mask);
    ir_node *zero = ir_constant_like(graph, x, 0);
    return ir_select(graph, keep, ir_times(graph, x, 1 / (1 - p)), zero);
}

void decompose_attention(ir_graph *graph, const ir_node *node, ir_node **results)
{
    ir_node *v = node->args[2];
    ir_dtype dtype = v->type.dtype;
    ir_softmax_parts parts = ir_softmax_parts_of(graph, attention_scores(graph, node), 3);
    ir_node *p = with_dropout(graph, node, ir_normalised(graph, &parts, 3));
    ir_node *out = ir_matmul(graph, ir_cast(graph, p, dtype), v, ir_wide_dtype(dtype));
    results[0] = ir_cast(graph, out, dtype);
    results[1] = log_sum_exp(graph, &parts);
}

/* With p = exp(scores - lse) and p' its dropped-out form, out = p' v. As in FlashAttention (arXiv:2205.14135, B.4), the sum over keys in
 * the gradient of softmax is that of dout * out over D:
 *     dv = p'^T dout        dp = (dout v^T) dropped out        dscores = p (dp - sum(dout * out) + dlse) */
void decompose_attention_vjp(ir_graph *graph, const ir_node *node, ir_node **results)
{
    ir_node *q = node->args[0], *k = node->args[1], *v = node->args[2], *out = node->args[3], *lse = node->args[4], *dout = node->args[5],
            *dlse = node->args[6];
    ir_dtype dtype = q->type.dtype, wide = ir_wide_dtype(dtype);
    ir_node *scores = attention_scores(graph, node);
    ir_node *p = ir_unary(graph, OP_exp, ir_binary(graph, OP_sub, scores, back_on(graph, lse, scores, 3)));
    ir_node *dropped = ir_cast(graph, with_dropout(graph, node, p), dtype);
    results[2] = ir_matmul(graph, ir_swap_last(graph, dropped), dout, wide);

    ir_node *dp = with_dropout(graph, node, ir_matmul(graph, dout, ir_swap_last(graph, v), wide));
    ir_node *wide_out = ir_widen(graph, out), *product = ir_binary(graph, OP_mul, ir_widen(graph, dout), wide_out);
    ir_node *delta = ir_binary(graph, OP_sub, ir_reduce_last(graph, OP_reduce_sum, product), dlse);
    ir_node *dscores = ir_binary(graph, OP_mul, p, ir_binary(graph, OP_sub, dp, back_on(graph, delta, dp, 3)));
    dscores = ir_cast(graph, dscores, dtype);
    results[0] = ir_times(graph, ir_matmul(graph, dscores, k, wide), node->attr.scale);
    results[1] = ir_times(graph, ir_matmul(graph, ir_swap_last(graph, dscores), q, wide), node->attr.scale);
}

/* -- random ------------------------------------------------------------------------------------------------------------- */

static ir_node *random_words(ir_graph *graph, const ir_node *node)
{
    ir_type words = ir_type_with_dtype(node->type, IR_I32);
    return ir_add(graph, OP_random_bits, 2, node->args, &(ir_attr){ .site = node->attr.site }, &words);
}

/* The words as unsigned numbers, without their low `drop` bits. i32 is signed: a negative word w stands for w + 2^32, whose upper bits
 * are floor(w / 2^drop) + 2^(32-drop); and div truncates, so that this floor is (w + 1) / 2^drop - 1. */
static ir_node *upper_bits(ir_graph *graph, ir_node *words, int drop)
{
    ir_node *negative = ir_cast(graph, ir_binary(graph, OP_lt, words, ir_constant_like(graph, words, 0)), IR_I32);
    ir_node *divisor = ir_constant_like(graph, words, (double)(1u << drop));
    ir_node *quotient = ir_binary(graph, OP_div, ir_binary(graph, OP_add, words, negative), divisor);
    return ir_binary(graph, OP_add, quotient, ir_times(graph, negative, (double)((1u << (32 - drop)) - 1)));
}

static ir_dtype random_dtype(const ir_node *node) { return ir_wide_dtype(node->type.dtype); }

/* 24 bits times 2^-24, exact in f32. In bf16 what would round up to 1 becomes the value below it. */
void decompose_random_uniform(ir_graph *graph, const ir_node *node, ir_node **results)
{
    ir_node *bits = upper_bits(graph, random_words(graph, node), 8);
    ir_node *u = ir_cast(graph, ir_times(graph, ir_cast(graph, bits, random_dtype(node)), 0x1p-24), node->type.dtype);
    if (node->type.dtype == IR_BF16)
        u = ir_binary(graph, OP_min, u, ir_constant_like(graph, u, 1 - 0x1p-8));
    results[0] = u;
}

/* By inversion: sqrt(2) erf_inv(2u - 1), where u = (k + 1/2) 2^-23 is never 0 or 1, and 2u - 1 = (2k + 1 - 2^23) 2^-23 exactly. */
void decompose_random_normal(ir_graph *graph, const ir_node *node, ir_node **results)
{
    ir_node *k = upper_bits(graph, random_words(graph, node), 9);
    ir_node *odd = ir_plus(graph, ir_times(graph, k, 2), 1 - 0x1p23);
    ir_node *y = ir_times(graph, ir_cast(graph, odd, random_dtype(node)), 0x1p-23);
    results[0] = ir_cast(graph, ir_times(graph, ir_unary(graph, OP_erf_inv, y), M_SQRT2), node->type.dtype);
}

/* Unsigned comparison by a signed one: both sides less 2^31, which for a word is an addition that wraps. */
void decompose_bernoulli(ir_graph *graph, const ir_node *node, ir_node **results)
{
    double threshold = floor(node->attr.value * 0x1p32);
    if (threshold >= 0x1p32) {
        results[0] = ir_constant(graph, node->type, 0);
        return;
    }
    ir_node *word = ir_plus(graph, random_words(graph, node), -0x1p31);
    results[0] = ir_binary(graph, OP_le, ir_constant_like(graph, word, threshold - 0x1p31), word);
}

/* -- optimizer ---------------------------------------------------------------------------------------------------------- */

static ir_node *times_scalar(ir_graph *graph, ir_node *x, ir_node *scalar)
{
    return ir_binary(graph, OP_mul, x, ir_broadcast_scalar(graph, scalar, x->type));
}

/* 1 - x of a scalar. */
static ir_node *rest_of(ir_graph *graph, ir_node *x) { return ir_binary(graph, OP_sub, ir_constant_like(graph, x, 1), x); }

/* beta old + (1 - beta) new */
static ir_node *moving_mean(ir_graph *graph, ir_node *old, ir_node *new, ir_node *beta)
{
    ir_node *share = times_scalar(graph, new, rest_of(graph, beta));
    return ir_binary(graph, OP_add, times_scalar(graph, old, beta), share);
}

/* w <- w (1 - lr weight_decay) - lr/c1 m / (sqrt(v) / sqrt(c2) + epsilon), where c1 = 1 - beta1^t and c2 = 1 - beta2^t. */
void decompose_adamw(ir_graph *graph, const ir_node *node, ir_node **results)
{
    ir_node *w = node->args[0], *m = node->args[1], *v = node->args[2], *dw = node->args[3], *lr = node->args[4], *beta1 = node->args[5],
            *beta2 = node->args[6], *epsilon = node->args[7], *decay = node->args[8], *c1 = node->args[9], *c2 = node->args[10];
    ir_node *square = ir_binary(graph, OP_mul, dw, dw);
    results[1] = moving_mean(graph, m, dw, beta1);
    results[2] = moving_mean(graph, v, square, beta2);
    ir_node *least = ir_broadcast_scalar(graph, epsilon, w->type), *root = ir_unary(graph, OP_sqrt, results[2]);
    ir_node *denominator = ir_binary(graph, OP_add, times_scalar(graph, root, ir_unary(graph, OP_rsqrt, c2)), least);
    ir_node *step = ir_binary(graph, OP_div, times_scalar(graph, results[1], ir_binary(graph, OP_div, lr, c1)), denominator);
    ir_node *kept = times_scalar(graph, w, rest_of(graph, ir_binary(graph, OP_mul, lr, decay)));
    results[0] = ir_binary(graph, OP_sub, kept, step);
}
