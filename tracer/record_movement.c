/* Products, movement, indexing, random. */
#include <math.h>
#include <string.h>

#include "tracer/tracer.h"

/* -- products --------------------------------------------------------------------------------------------------------- */

/* What the shape rule has against the product, with the hint in the words of rax.h: rax_transpose for transpose. */
static void refuse_product(rax_place place, ir_node *const *operands)
{
    ir_graph *graph = trace_graph(place);
    ir_type type, *tuple;
    int n_tuple;
    base_text why = {0}, message = {0};
    bool fits = ir_infer(graph, OP_matmul, 2, operands, NULL, &operands[0]->type, &type, &n_tuple, &tuple, &why);
    CHECK(!fits, "matmul: expected its shape rule to refuse it");
    const char *hint = strstr(why.at, ": transpose(");
    if (hint)
        base_text_add(&message, "%.*s: rax_%s", (int)(hint - why.at), why.at, hint + 2);
    trace_error(place, "matmul", "%s", hint ? message.at : why.at);
    base_text_free(&why);
    base_text_free(&message);
}

/* x with axes first..first+n-1 as one. */
static ir_type joined(const ir_type *x, int first, int n)
{
    ir_type type = { .dtype = x->dtype };
    for (int i = 0; i < x->rank; i++) {
        if (i > first && i < first + n) {
            type.dim[type.rank - 1] *= x->dim[i];
            type.dim_name[type.rank - 1] = NULL;
        } else {
            type.dim_name[type.rank] = x->dim_name[i];
            type.dim[type.rank++] = x->dim[i];
        }
    }
    return type;
}

/* A matrix on the right serves all leading axes of the left at once: they and M are the rows of one product.
 * Broadcasting the matrix would copy the weights, and sum their gradients over the copies. */
static ir_node *product_of_rows(ir_graph *graph, ir_node *lhs, ir_node *rhs, ir_dtype dtype)
{
    int rank = lhs->type.rank;
    ir_node *rows = ir_reshape(graph, lhs, joined(&lhs->type, 0, rank - 1));
    ir_node *product = ir_matmul(graph, rows, rhs, dtype);
    ir_type type = ir_type_with_dtype(lhs->type, dtype);
    type.dim[rank - 1] = rhs->type.dim[1];
    type.dim_name[rank - 1] = rhs->type.dim_name[1];
    return ir_reshape(graph, product, type);
}

/* Leading axes broadcast to those of both. NULL and an error where they do not. */
static ir_node *batched_product(rax_place place, ir_node **nodes, ir_dtype dtype)
{
    static const char *const names[] = { "lhs", "rhs" };
    ir_node *whole[2];
    ir_type batch;
    if (!trace_common_shape(place, "matmul", 2, nodes, names, 2, &batch))
        return NULL;
    for (int i = 0; i < 2; i++) {
        ir_type type = batch;
        for (int from = nodes[i]->type.rank - 2; from < nodes[i]->type.rank; from++) {
            type.dim_name[type.rank] = nodes[i]->type.dim_name[from];
            type.dim[type.rank++] = nodes[i]->type.dim[from];
        }
        whole[i] = trace_broadcast(nodes[i], &type);
    }
    return ir_matmul(trace_graph(place), whole[0], whole[1], dtype);
}

static bool leading_count_is_one(const ir_type *type)
{
    for (int i = 0; i < type->rank - 2; i++)
        if (type->dim[i] != 1)
            return false;
    return true;
}

rax_tensor rax_matmul_at(rax_place place, rax_tensor a, rax_tensor b, bool result_f32)
{
    ir_node *nodes[] = { trace_operand(place, "matmul", "lhs", a), trace_operand(place, "matmul", "rhs", b) };
    if (!nodes[0] || !nodes[1] || !trace_same_dtype(place, "matmul", nodes[0], nodes[1], "lhs", "rhs"))
        return trace_value(NULL);
    ir_graph *graph = trace_graph(place);
    const ir_type *lhs = &nodes[0]->type, *rhs = &nodes[1]->type;
    if (!ir_dtype_is_float(lhs->dtype)) {
        trace_error(place, "matmul", "lhs and rhs are %s, expected f32, f64 or bf16", ir_dtype_name(lhs->dtype));
        return trace_value(NULL);
    }
    if (lhs->rank < 2 || rhs->rank < 2 || lhs->dim[lhs->rank - 1] != rhs->dim[rhs->rank - 2]) {
        refuse_product(place, nodes);
        return trace_value(NULL);
    }
    ir_dtype dtype = result_f32 && lhs->dtype == IR_BF16 ? IR_F32 : lhs->dtype;
    if (rhs->rank > 2 && rhs->rank <= lhs->rank && leading_count_is_one(rhs)) {
        nodes[1] = ir_reshape(graph, nodes[1], joined(rhs, 0, rhs->rank - 1));
        rhs = &nodes[1]->type;
    }
    if (rhs->rank == 2)
        return trace_value(lhs->rank == 2 ? ir_matmul(graph, nodes[0], nodes[1], dtype)
                                          : product_of_rows(graph, nodes[0], nodes[1], dtype));
    return trace_value(batched_product(place, nodes, dtype));
}

/* -- movement --------------------------------------------------------------------------------------------------------- */

static bool sound(rax_place place, const char *op, rax_dtype dtype, rax_shape shape, ir_type *type)
{
    base_text why = {0};
    bool is_sound = trace_type_from(dtype, shape, type, &why);
    if (!is_sound)
        trace_error(place, op, "%s", why.at);
    base_text_free(&why);
    return is_sound;
}

rax_tensor rax_reshape_at(rax_place place, rax_tensor x, rax_shape shape)
{
    ir_node *node = trace_operand(place, "reshape", "x", x);
    if (!node)
        return trace_value(NULL);
    int rest = -1;
    int64_t known = 1, count = ir_type_count(&node->type);
    for (int i = 0; i < shape.rank && i < RAX_MAX_RANK; i++) {
        if (shape.dim[i] == -1 && rest >= 0) {
            trace_error(place, "reshape", "axes %d and %d are both -1", rest, i);
            return trace_value(NULL);
        }
        if (shape.dim[i] == -1)
            rest = i;
        else if (shape.dim[i] >= 0 && __builtin_mul_overflow(known, shape.dim[i], &known))
            known = INT64_MAX;
    }
    if (rest >= 0)
        shape.dim[rest] = known > 0 ? count / known : 0;
    ir_type type;
    if (!sound(place, "reshape", (rax_dtype)node->type.dtype, shape, &type))
        return trace_value(NULL);
    if (ir_type_equal(&type, &node->type))
        return trace_value(node);
    return trace_value(trace_add(place, "reshape", OP_reshape, 1, &node, NULL, &type));
}

rax_tensor rax_transpose_at(rax_place place, rax_tensor x, rax_axes axes)
{
    ir_node *node = trace_operand(place, "transpose", "x", x);
    ir_attr attr = { .n_axes = axes.n };
    if (!node)
        return trace_value(NULL);
    for (int i = 0; i < axes.n && i < RAX_MAX_RANK; i++) {
        int axis = axes.axis[i];
        if (!trace_axis(place, "transpose", node, &axis))
            return trace_value(NULL);
        attr.axes[i] = axis;
    }
    return trace_value(trace_add(place, "transpose", OP_transpose, 1, &node, &attr, NULL));
}

rax_tensor rax_swap_at(rax_place place, rax_tensor x, int a, int b)
{
    ir_node *node = trace_operand(place, "swap", "x", x);
    if (!node || !trace_axis(place, "swap", node, &a) || !trace_axis(place, "swap", node, &b))
        return trace_value(NULL);
    if (a == b)
        return trace_value(node);
    ir_attr attr = { .n_axes = node->type.rank };
    for (int i = 0; i < node->type.rank; i++)
        attr.axes[i] = i == a ? b : i == b ? a : i;
    return trace_value(trace_add(place, "swap", OP_transpose, 1, &node, &attr, NULL));
}

rax_tensor rax_broadcast_at(rax_place place, rax_tensor x, rax_shape shape)
{
    ir_node *node = trace_operand(place, "broadcast", "x", x);
    ir_type type;
    if (!node || !sound(place, "broadcast", (rax_dtype)node->type.dtype, shape, &type))
        return trace_value(NULL);
    if (type.rank < node->type.rank) {
        trace_error(place, "broadcast", "x has rank %d, the shape only %d", node->type.rank, type.rank);
        return trace_value(NULL);
    }
    if (ir_shape_equal(&type, &node->type))
        return trace_value(node);
    if (node->op == OP_constant && node->type.rank == 0)
        return trace_value(ir_constant(trace_graph(place), type, node->attr.value));
    ir_attr attr = { .n_axes = node->type.rank };
    for (int i = 0; i < attr.n_axes; i++)
        attr.axes[i] = type.rank - attr.n_axes + i;
    return trace_value(trace_add(place, "broadcast", OP_broadcast, 1, &node, &attr, &type));
}

rax_tensor rax_slice_at(rax_place place, rax_tensor x, int axis, int64_t start, int64_t length)
{
    ir_node *node = trace_operand(place, "slice", "x", x);
    if (!node || !trace_axis(place, "slice", node, &axis))
        return trace_value(NULL);
    ir_type type = node->type;
    if (length < 0 || start < 0 || start > type.dim[axis] || length > type.dim[axis] - start) {
        base_text text = {0};
        ir_type_print(&text, &type);
        base_text_add(&text, " has ");
        trace_dim_print(&text, &type, axis);
        trace_error(place, "slice", "x %s, there is no part of %lld from %lld", text.at, (long long)length,
                    (long long)start);
        base_text_free(&text);
        return trace_value(NULL);
    }
    if (length == type.dim[axis])
        return trace_value(node);
    ir_attr attr = {0};
    attr.start[axis] = start;
    type.dim[axis] = length;
    type.dim_name[axis] = NULL;
    return trace_value(trace_add(place, "slice", OP_slice, 1, &node, &attr, &type));
}

rax_tensor rax_pad_at(rax_place place, rax_tensor x, int axis, int64_t before, int64_t after, double value)
{
    ir_node *node = trace_operand(place, "pad", "x", x);
    if (!node || !trace_axis(place, "pad", node, &axis))
        return trace_value(NULL);
    if (before < 0 || after < 0 || before > INT32_MAX || after > INT32_MAX) {
        trace_error(place, "pad", "%lld before and %lld after: expected 0 to 2^31-1 (rax_slice takes away)",
                    (long long)before, (long long)after);
        return trace_value(NULL);
    }
    ir_attr attr = { .value = value };
    ir_type type = node->type;
    attr.start[axis] = before;
    type.dim[axis] += before + after;
    type.dim_name[axis] = NULL;
    return trace_value(trace_add(place, "pad", OP_pad, 1, &node, &attr, &type));
}

rax_tensor rax_concatenate_at(rax_place place, int n, const rax_tensor *xs, int axis)
{
    ir_node **nodes = base_alloc(sizeof *nodes * (size_t)MAX(n, 0));
    ir_node *result = NULL;
    bool whole = true;
    for (int i = 0; i < n; i++)
        whole = (nodes[i] = trace_operand(place, "concatenate", "an operand", xs[i])) && whole;
    if (n <= 0)
        trace_error(place, "concatenate", "expected at least one tensor, got %d", n);
    else if (whole && trace_axis(place, "concatenate", nodes[0], &axis))
        result = n == 1 ? nodes[0]
                        : trace_add(place, "concatenate", OP_concatenate, n, nodes, &(ir_attr){ .axis = axis }, NULL);
    base_free(nodes);
    return trace_value(result);
}

/* A start for each axis: the given one on axis, 0 on the others. */
static int starts(ir_graph *graph, int rank, int axis, ir_node *start, ir_node **into)
{
    ir_node *zero = rank > 1 ? trace_scalar(graph, IR_I32, 0) : NULL;
    for (int i = 0; i < rank; i++)
        into[i] = i == axis ? start : zero;
    return rank;
}

rax_tensor rax_dynamic_slice_at(rax_place place, rax_tensor x, int axis, rax_tensor start, int64_t length)
{
    ir_node *operands[1 + IR_MAX_RANK] = { trace_operand(place, "dynamic_slice", "x", x) };
    ir_node *at = trace_operand(place, "dynamic_slice", "start", start);
    if (!operands[0] || !at || !trace_axis(place, "dynamic_slice", operands[0], &axis))
        return trace_value(NULL);
    ir_type type = operands[0]->type;
    type.dim[axis] = length;
    type.dim_name[axis] = NULL;
    int n = 1 + starts(trace_graph(place), type.rank, axis, at, operands + 1);
    return trace_value(trace_add(place, "dynamic_slice", OP_dynamic_slice, n, operands, NULL, &type));
}

rax_tensor rax_update_slice_at(rax_place place, rax_tensor base, rax_tensor update, int axis, rax_tensor start)
{
    ir_node *operands[2 + IR_MAX_RANK] = { trace_operand(place, "update_slice", "base", base),
                                           trace_operand(place, "update_slice", "update", update) };
    ir_node *at = trace_operand(place, "update_slice", "start", start);
    if (!operands[0] || !operands[1] || !at || !trace_axis(place, "update_slice", operands[0], &axis))
        return trace_value(NULL);
    const ir_type *whole = &operands[0]->type, *part = &operands[1]->type;
    for (int i = 0; part->rank == whole->rank && i < whole->rank; i++)
        if (i != axis && part->dim[i] != whole->dim[i]) {
            base_text text = {0};
            base_text_add(&text, "base ");
            ir_type_print(&text, whole);
            base_text_add(&text, " has ");
            trace_dim_print(&text, whole, i);
            base_text_add(&text, ", update ");
            ir_type_print(&text, part);
            base_text_add(&text, " has ");
            trace_dim_print(&text, part, i);
            trace_error(place, "update_slice", "%s", text.at);
            base_text_free(&text);
            return trace_value(NULL);
        }
    int n = 2 + starts(trace_graph(place), whole->rank, axis, at, operands + 2);
    return trace_value(trace_add(place, "update_slice", OP_update_slice, n, operands, NULL, NULL));
}

/* -- indexing --------------------------------------------------------------------------------------------------------- */

rax_tensor rax_gather_at(rax_place place, rax_tensor x, rax_tensor indices, int axis)
{
    ir_node *operands[] = { trace_operand(place, "gather", "x", x), trace_operand(place, "gather", "indices", indices) };
    if (!operands[0] || !operands[1] || !trace_axis(place, "gather", operands[0], &axis))
        return trace_value(NULL);
    return trace_value(trace_add(place, "gather", OP_gather, 2, operands, &(ir_attr){ .axis = axis }, NULL));
}

rax_tensor rax_scatter_add_at(rax_place place, rax_tensor base, rax_tensor indices, rax_tensor updates, int axis)
{
    ir_node *operands[] = { trace_operand(place, "scatter_add", "base", base),
                            trace_operand(place, "scatter_add", "indices", indices),
                            trace_operand(place, "scatter_add", "updates", updates) };
    if (!operands[0] || !operands[1] || !operands[2] || !trace_axis(place, "scatter_add", operands[0], &axis))
        return trace_value(NULL);
    return trace_value(trace_add(place, "scatter_add", OP_scatter_add, 3, operands, &(ir_attr){ .axis = axis }, NULL));
}

rax_tensor rax_one_hot_at(rax_place place, rax_tensor indices, int64_t depth, rax_dtype dtype)
{
    ir_node *node = trace_operand(place, "one_hot", "indices", indices);
    if (!node)
        return trace_value(NULL);
    ir_type type = ir_type_with_dtype(node->type, (ir_dtype)dtype);
    if (type.rank == IR_MAX_RANK) {
        trace_error(place, "one_hot", "indices have rank %d, and one more axis is too many", type.rank);
        return trace_value(NULL);
    }
    type.dim_name[type.rank] = NULL;
    type.dim[type.rank++] = depth;
    return trace_value(trace_add(place, "one_hot", OP_one_hot, 1, &node, NULL, &type));
}

/* -- random ----------------------------------------------------------------------------------------------------------- */

rax_tensor rax_seed_at(rax_place place, uint64_t seed)
{
    uint32_t words[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) };
    return rax_literal_at(place, RAX_I32, RAX_SHAPE(2), words);
}

rax_tensor rax_random_at(rax_place place, const char *name, rax_random random, rax_shape shape, double p_false)
{
    ir_op op;
    ir_type type;
    CHECK(ir_op_parse(name, strlen(name), &op) && op != OP_random_bits && ir_op_table[op].attributes & ATTR_SITE,
          "rax_random_at: expected a random op, got %s", name);
    ir_node *operands[] = { trace_operand(place, name, "seed", random.seed),
                            trace_operand(place, name, "counter", random.counter) };
    if (!operands[0] || !operands[1] || !sound(place, name, op == OP_bernoulli ? RAX_BOOL : RAX_F32, shape, &type))
        return trace_value(NULL);
    ir_attr attr = { .site = trace_current->next_site++, .value = op == OP_bernoulli ? p_false : 0 };
    return trace_value(trace_add(place, name, op, 2, operands, &attr, &type));
}

rax_tensor rax_dropout_at(rax_place place, rax_random random, rax_tensor x, double p)
{
    ir_node *node = trace_operand(place, "dropout", "x", x);
    if (!node)
        return trace_value(NULL);
    if (!(p >= 0 && p < 1)) {
        trace_error(place, "dropout", "p is to be at least 0 and below 1, got %g", p);
        return trace_value(NULL);
    }
    if (p == 0)
        return x;
    rax_tensor keep = rax_random_at(place, "bernoulli", random, rax_shape_of(x), p);
    rax_tensor scaled = rax_scale_at(place, x, 1 / (1 - p));
    return rax_select_at(place, keep, scaled, rax_constant_at(place, (rax_dtype)node->type.dtype, rax_shape_of(x), 0));
}
