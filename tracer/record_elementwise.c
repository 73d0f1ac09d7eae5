/* Constants, elementwise ops, reductions. Binary ops align shapes at their last axes: a `broadcast` goes before the
 * operand that is smaller, so that in the graph both have one shape. */
#include <string.h>

#include "tracer/tracer.h"

/* -- constants -------------------------------------------------------------------------------------------------------- */

/* The graph to add to; NULL and an error outside a step, or where the type is unsound. */
static ir_graph *graph_for(rax_place place, const char *op, rax_dtype dtype, rax_shape shape, ir_type *type)
{
    base_text why = {0};
    if (!trace_current) {
        trace_error(place, op, "ops are recorded inside a step that rax_call runs, and this is outside of any");
        return NULL;
    }
    bool sound = trace_type_from(dtype, shape, type, &why);
    if (!sound)
        trace_error(place, op, "%s", why.at);
    base_text_free(&why);
    return sound ? trace_graph(place) : NULL;
}

rax_tensor rax_constant_at(rax_place place, rax_dtype dtype, rax_shape shape, double value)
{
    ir_type type;
    if (!graph_for(place, "constant", dtype, shape, &type))
        return trace_value(NULL);
    return trace_value(trace_add(place, "constant", OP_constant, 0, NULL, &(ir_attr){ .value = value }, &type));
}

rax_tensor rax_literal_at(rax_place place, rax_dtype dtype, rax_shape shape, const void *elements)
{
    ir_type type;
    ir_graph *graph = graph_for(place, "literal", dtype, shape, &type);
    if (!graph)
        return trace_value(NULL);
    if (!elements) {
        trace_error(place, "literal", "no elements are given");
        return trace_value(NULL);
    }
    size_t bytes = (size_t)ir_type_bytes(&type);
    void *copy = base_arena_alloc(graph->arena, bytes ? bytes : 1);
    memcpy(copy, elements, bytes);
    for (size_t i = 0; dtype == RAX_BOOL && i < bytes; i++)
        ((uint8_t *)copy)[i] = ((uint8_t *)copy)[i] != 0;
    return trace_value(trace_add(place, "literal", OP_literal, 0, NULL, &(ir_attr){ .data = copy }, &type));
}

rax_tensor rax_iota_at(rax_place place, rax_dtype dtype, rax_shape shape, int axis)
{
    ir_type type;
    if (!graph_for(place, "iota", dtype, shape, &type))
        return trace_value(NULL);
    ir_attr attr = { .axis = axis < 0 ? axis + type.rank : axis };
    return trace_value(trace_add(place, "iota", OP_iota, 0, NULL, &attr, &type));
}

/* -- unary ------------------------------------------------------------------------------------------------------------ */

rax_tensor rax_unary_at(rax_place place, const char *name, rax_tensor x)
{
    ir_op op;
    CHECK(ir_op_parse(name, strlen(name), &op) && ir_op_table[op].arity == 1 && !ir_op_table[op].attributes,
          "rax_unary_at: expected an op of one operand and no attributes, got %s", name);
    ir_node *node = trace_operand(place, name, "x", x);
    return trace_value(trace_add(place, name, op, 1, &node, NULL, NULL));
}

rax_tensor rax_cast_at(rax_place place, rax_tensor x, rax_dtype dtype)
{
    ir_node *node = trace_operand(place, "cast", "x", x);
    if (!node || node->type.dtype == (ir_dtype)dtype)
        return trace_value(node);
    if ((unsigned)dtype > RAX_BOOL) {
        trace_error(place, "cast", "there is no dtype %d", (int)dtype);
        return trace_value(NULL);
    }
    ir_type type = ir_type_with_dtype(node->type, (ir_dtype)dtype);
    return trace_value(trace_add(place, "cast", OP_cast, 1, &node, NULL, &type));
}

/* -- binary ----------------------------------------------------------------------------------------------------------- */

rax_tensor rax_binary_at(rax_place place, const char *name, rax_tensor lhs, rax_tensor rhs)
{
    static const char *const names[] = { "lhs", "rhs" };
    ir_node *nodes[] = { trace_operand(place, name, "lhs", lhs), trace_operand(place, name, "rhs", rhs) };
    ir_type type;
    if (!nodes[0] || !nodes[1] || !trace_same_dtype(place, name, nodes[0], nodes[1], "lhs", "rhs") ||
        !trace_common_shape(place, name, 2, nodes, names, 0, &type))
        return trace_value(NULL);
    ir_graph *graph = trace_graph(place);
    for (int i = 0; i < 2; i++)
        nodes[i] = trace_broadcast(nodes[i], &type);
    bool turned = strcmp(name, "gt") == 0 || strcmp(name, "ge") == 0;         /* a > b is b < a */
    const char *row = !turned ? name : name[1] == 't' ? "lt" : "le";
    ir_op op;
    CHECK(graph && ir_op_parse(row, strlen(row), &op) && ir_op_table[op].arity == 2 && !ir_op_table[op].attributes,
          "rax_binary_at: expected an op of two operands and no attributes, got %s", name);
    ir_node *operands[] = { nodes[turned], nodes[!turned] };
    return trace_value(trace_add(place, name, op, 2, operands, NULL, NULL));
}

/* x op a C number. */
static rax_tensor with_number(rax_place place, const char *name, ir_op op, rax_tensor x, double number)
{
    ir_node *node = trace_operand(place, name, "x", x);
    if (!node)
        return trace_value(NULL);
    ir_node *constant = trace_add(place, name, OP_constant, 0, NULL, &(ir_attr){ .value = number }, &node->type);
    return trace_value(trace_add(place, name, op, 2, (ir_node *[]){ node, constant }, NULL, NULL));
}

rax_tensor rax_scale_at(rax_place place, rax_tensor x, double factor)
{
    return with_number(place, "scale", OP_mul, x, factor);
}
rax_tensor rax_shift_at(rax_place place, rax_tensor x, double addend)
{
    return with_number(place, "shift", OP_add, x, addend);
}

rax_tensor rax_select_at(rax_place place, rax_tensor condition, rax_tensor yes, rax_tensor no)
{
    static const char *const names[] = { "condition", "yes", "no" };
    ir_node *nodes[] = { trace_operand(place, "select", "condition", condition), trace_operand(place, "select", "yes", yes),
                         trace_operand(place, "select", "no", no) };
    ir_type type;
    if (!nodes[0] || !nodes[1] || !nodes[2] || !trace_same_dtype(place, "select", nodes[1], nodes[2], "yes", "no") ||
        !trace_common_shape(place, "select", 3, nodes, names, 0, &type))
        return trace_value(NULL);
    trace_graph(place);
    for (int i = 0; i < 3; i++)
        nodes[i] = trace_broadcast(nodes[i], &type);
    return trace_value(trace_add(place, "select", OP_select, 3, nodes, NULL, NULL));
}

/* -- reductions ------------------------------------------------------------------------------------------------------- */

/* Axes as the graph wants them: from 0, ascending, each once. */
static bool settle_axes(rax_place place, const char *op, const ir_node *x, const rax_axes *axes, ir_attr *attr)
{
    bool wanted[IR_MAX_RANK] = { false };
    bool all = axes->n < 0;
    if (axes->n > RAX_MAX_RANK)
        return trace_error(place, op, "at most %d axes, got %d", RAX_MAX_RANK, axes->n);
    for (int i = 0; i < axes->n; i++) {
        int axis = axes->axis[i];
        if (!trace_axis(place, op, x, &axis))
            return false;
        if (wanted[axis])
            return trace_error(place, op, "axis %d comes twice", axis);
        wanted[axis] = true;
    }
    for (int i = 0; i < x->type.rank; i++)
        if (all || wanted[i])
            attr->axes[attr->n_axes++] = i;
    return true;
}

rax_tensor rax_reduce_at(rax_place place, const char *kind, rax_tensor x, rax_axes axes, bool keep)
{
    bool is_max = strcmp(kind, "max") == 0, is_mean = strcmp(kind, "mean") == 0;
    const char *name = is_max ? "reduce_max" : kind;
    ir_attr attr = {0};
    ir_node *node = trace_operand(place, name, "x", x);
    if (!node || !settle_axes(place, name, node, &axes, &attr))
        return trace_value(NULL);
    if (is_mean && !ir_dtype_is_float(node->type.dtype)) {
        trace_error(place, name, "x is %s, expected f32, f64 or bf16", ir_dtype_name(node->type.dtype));
        return trace_value(NULL);
    }
    ir_type kept = node->type;
    int64_t count = 1;
    for (int i = 0; i < attr.n_axes; i++) {
        count *= kept.dim[attr.axes[i]];
        kept.dim[attr.axes[i]] = 1;
        kept.dim_name[attr.axes[i]] = NULL;
    }
    ir_node *result = trace_add(place, name, is_max ? OP_reduce_max : OP_reduce_sum, 1, &node, &attr, NULL);
    if (result && is_mean && count != 1)
        result = ir_binary(trace_graph(place), OP_mul, result,
                           ir_constant_like(trace_graph(place), result, 1.0 / (double)count));
    if (result && keep)
        result = ir_reshape(trace_graph(place), result, kept);
    return trace_value(result);
}

rax_tensor rax_argmax_at(rax_place place, rax_tensor x, int axis)
{
    ir_node *node = trace_operand(place, "argmax", "x", x);
    if (!node || !trace_axis(place, "argmax", node, &axis))
        return trace_value(NULL);
    return trace_value(trace_add(place, "argmax", OP_argmax, 1, &node, &(ir_attr){ .axis = axis }, NULL));
}
