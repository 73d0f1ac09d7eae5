/* Constants at compile time. Most constants are splats, one value all over, and stay so through elementwise ops, movement and
 * reductions, whatever their size; small literals are computed element by element. Both by the interpreter's own functions,
 * so that a folded graph gives the bits that the unfolded one would have given there. */
#include "ir/simplify.h"

#include <math.h>
#include <string.h>

/* A literal of more elements is left to the machine: folding is for axes, seeds, tables of a few entries. */
enum { SMALL = 64 };

/* -- splats and literals ------------------------------------------------------------------------------------------------ */

/* A constant where all elements have the same bits (but for a NaN with a payload, which a constant would lose), else NULL. */
static ir_node *as_splat(ir_graph *graph, const ir_type *type, const void *data)
{
    size_t size = (size_t)ir_dtype_bytes(type->dtype);
    int64_t count = ir_type_count(type);
    for (int64_t i = 1; i < count; i++)
        if (memcmp(data, (const char *)data + (size_t)i * size, size) != 0)
            return NULL;
    double value = count > 0 ? ir_element(type->dtype, data, 0) : 0;
    return isnan(value) ? NULL : ir_constant(graph, *type, value);
}

static ir_node *as_literal(ir_graph *graph, const ir_type *type, const void *data)
{
    ir_node *splat = as_splat(graph, type, data);
    if (splat)
        return splat;
    size_t bytes = (size_t)ir_type_bytes(type);
    void *copy = base_arena_alloc(graph->arena, bytes);
    memcpy(copy, data, bytes);
    return ir_add(graph, OP_literal, 0, NULL, &(ir_attr){ .data = copy }, type);
}

/* -- by the interpreter ------------------------------------------------------------------------------------------------- */

/* The node's result from constants and literals of at most SMALL elements, computed as the type given for it: where the
 * operands are splats, a scalar stands for all. bytes has room for SMALL elements of 8 bytes. */
static void compute(const ir_node *node, bool as_scalars, ir_type result, void *bytes)
{
    ir_array arrays[3], out = { result, bytes };
    const ir_array *args[3];
    _Alignas(8) char data[3][SMALL * 8];
    for (int i = 0; i < node->n_args; i++) {
        const ir_node *arg = node->args[i];
        ir_type type = as_scalars ? ir_scalar(arg->type.dtype) : arg->type;
        arrays[i] = (ir_array){ type, data[i] };
        args[i] = &arrays[i];
        ir_op_table[arg->op].reference(arg, NULL, &arrays[i]);
    }
    ir_op_table[node->op].reference(node, args, &out);
}

static bool all_operands_are(const ir_node *node, bool (*test)(const ir_node *))
{
    for (int i = 0; i < node->n_args; i++)
        if (!test(node->args[i]))
            return false;
    return node->n_args > 0;
}

static bool is_splat(const ir_node *node) { return node->op == OP_constant; }

static bool is_small(const ir_node *node)
{
    return (node->op == OP_constant || node->op == OP_literal) && ir_type_count(&node->type) <= SMALL;
}

/* An op of few constant elements, whatever it does, so long as one function of the interpreter does it. */
static ir_node *fold_small(ir_graph *graph, ir_node *node)
{
    ir_class class = ir_op_table[node->op].class;
    _Alignas(8) char bytes[SMALL * 8];
    if (class == IR_RANDOM || !ir_op_table[node->op].reference || node->n_args > 3 || !all_operands_are(node, is_small) ||
        ir_type_count(&node->type) > SMALL)
        return NULL;
    compute(node, false, node->type, bytes);
    return as_literal(graph, &node->type, bytes);
}

static ir_node *fold_elementwise(ir_graph *graph, ir_node *node)
{
    _Alignas(8) char bytes[8];
    if (ir_op_table[node->op].class != IR_ELEMENTWISE || !all_operands_are(node, is_splat))
        return NULL;
    compute(node, true, ir_scalar(node->type.dtype), bytes);
    return ir_constant(graph, node->type, ir_element(node->type.dtype, bytes, 0));
}

/* -- splats through what only moves or sums them -------------------------------------------------------------------------- */

static ir_node *splat_of_first(ir_graph *graph, ir_node *node)
{
    return is_splat(node->args[0]) ? ir_constant(graph, node->type, node->args[0]->attr.value) : NULL;
}

static ir_node *fold_pad(ir_graph *graph, ir_node *node)
{
    const ir_node *x = node->args[0];
    if (!is_splat(x) || memcmp(&x->attr.value, &node->attr.value, sizeof(double)) != 0)
        return NULL;
    return ir_constant(graph, node->type, node->attr.value);
}

static ir_node *fold_concatenate(ir_graph *graph, ir_node *node)
{
    for (int i = 0; i < node->n_args; i++)
        if (!is_splat(node->args[i]) || memcmp(&node->args[i]->attr.value, &node->args[0]->attr.value, sizeof(double)) != 0)
            return NULL;
    return ir_constant(graph, node->type, node->args[0]->attr.value);
}

static int64_t reduced_count(const ir_node *node)
{
    int64_t count = 1;
    for (int i = 0; i < node->attr.n_axes; i++)
        count *= node->args[0]->type.dim[node->attr.axes[i]];
    return count;
}

/* n equal terms are n times the term: in i32 exactly, wrapping; for floats rounded once. */
static ir_node *fold_reduce_sum(ir_graph *graph, ir_node *node)
{
    int64_t count = reduced_count(node);
    if (count == 0)
        return ir_constant(graph, node->type, 0);
    if (!is_splat(node->args[0]))
        return NULL;
    double value = node->args[0]->attr.value;
    if (node->type.dtype == IR_I32)
        return ir_constant(graph, node->type, (int32_t)((uint32_t)count * (uint32_t)(int32_t)value));
    return ir_constant(graph, node->type, value * (double)count);
}

static ir_node *fold_reduce_max(ir_graph *graph, ir_node *node) { return reduced_count(node) > 0 ? splat_of_first(graph, node) : NULL; }

static ir_node *fold_literal(ir_graph *graph, ir_node *node) { return as_splat(graph, &node->type, node->attr.data); }

static ir_node *fold_reshape(ir_graph *graph, ir_node *node)
{
    const ir_node *x = node->args[0];
    if (x->op == OP_literal)
        return ir_add(graph, OP_literal, 0, NULL, &x->attr, &node->type);
    return splat_of_first(graph, node);
}

static ir_rewrite_rule *const fold_rules[IR_OPS] = {
    [OP_literal] = fold_literal,         [OP_reshape] = fold_reshape,           [OP_transpose] = splat_of_first,
    [OP_broadcast] = splat_of_first,     [OP_slice] = splat_of_first,           [OP_dynamic_slice] = splat_of_first,
    [OP_gather] = splat_of_first,        [OP_pad] = fold_pad,                   [OP_concatenate] = fold_concatenate,
    [OP_reduce_sum] = fold_reduce_sum,   [OP_reduce_max] = fold_reduce_max,
};

ir_node *ir_fold_constants(ir_graph *graph, ir_node *node)
{
    ir_node *folded = fold_elementwise(graph, node);
    if (!folded && fold_rules[node->op])
        folded = fold_rules[node->op](graph, node);
    return folded ? folded : fold_small(graph, node);
}
