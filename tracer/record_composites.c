/* Composite ops: one node each, which a backend keeps or has decomposed. */
#include <math.h>
#include <string.h>

#include "tracer/tracer.h"

rax_tensor rax_along_at(rax_place place, const char *name, rax_tensor x, int axis)
{
    ir_op op;
    CHECK(ir_op_parse(name, strlen(name), &op) && ir_op_table[op].arity == 1 && ir_op_table[op].attributes == ATTR_AXIS,
          "rax_along_at: expected an op of one operand and an axis, got %s", name);
    ir_node *node = trace_operand(place, name, "x", x);
    if (!node || !trace_axis(place, name, node, &axis))
        return trace_value(NULL);
    return trace_value(trace_add(place, name, op, 1, &node, &(ir_attr){ .axis = axis }, NULL));
}

/* -- norms ------------------------------------------------------------------------------------------------------------ */

rax_tensor rax_layer_norm_at(rax_place place, rax_tensor x, rax_tensor weight, rax_tensor bias, double epsilon)
{
    int n = rax_is_tensor(bias) ? 3 : 2;
    ir_node *operands[3] = { trace_operand(place, "layer_norm", "x", x),
                             trace_operand(place, "layer_norm", "weight", weight) };
    if (n == 3)
        operands[2] = trace_operand(place, "layer_norm", "bias", bias);
    return trace_value(trace_add(place, "layer_norm", OP_layer_norm, n, operands, &(ir_attr){ .epsilon = epsilon }, NULL));
}

rax_tensor rax_rms_norm_at(rax_place place, rax_tensor x, rax_tensor weight, double epsilon)
{
    ir_node *operands[] = { trace_operand(place, "rms_norm", "x", x), trace_operand(place, "rms_norm", "weight", weight) };
    return trace_value(trace_add(place, "rms_norm", OP_rms_norm, 2, operands, &(ir_attr){ .epsilon = epsilon }, NULL));
}

/* -- losses ----------------------------------------------------------------------------------------------------------- */

rax_tensor rax_cross_entropy_at(rax_place place, rax_tensor logits, rax_tensor targets)
{
    ir_node *operands[] = { trace_operand(place, "cross_entropy", "logits", logits),
                            trace_operand(place, "cross_entropy", "targets", targets) };
    return trace_value(trace_add(place, "cross_entropy", OP_cross_entropy, 2, operands, NULL, NULL));
}

rax_tensor rax_linear_cross_entropy_at(rax_place place, rax_tensor x, rax_tensor weight, rax_tensor targets)
{
    const char *name = "linear_cross_entropy";
    ir_node *operands[] = { trace_operand(place, name, "x", x), trace_operand(place, name, "weight", weight),
                            trace_operand(place, name, "targets", targets) };
    return trace_value(trace_add(place, name, OP_linear_cross_entropy, 3, operands, NULL, NULL));
}

/* -- attention -------------------------------------------------------------------------------------------------------- */

rax_tensor rax_attention_at(rax_place place, rax_tensor q, rax_tensor k, rax_tensor v, rax_attention_options options)
{
    ir_node *operands[5] = { trace_operand(place, "attention", "q", q), trace_operand(place, "attention", "k", k),
                             trace_operand(place, "attention", "v", v) };
    ir_attr attr = { .causal = options.causal, .scale = options.scale, .dropout = options.dropout };
    int n = 3;
    if (!operands[0] || !operands[1] || !operands[2])
        return trace_value(NULL);
    if (attr.scale == 0 && operands[0]->type.rank > 0)
        attr.scale = 1 / sqrt((double)MAX(operands[0]->type.dim[operands[0]->type.rank - 1], 1));
    if (attr.dropout > 0) {
        operands[n++] = trace_operand(place, "attention", "random.seed", options.random.seed);
        operands[n++] = trace_operand(place, "attention", "random.counter", options.random.counter);
        attr.site = trace_current->next_site++;
    }
    ir_node *both = trace_add(place, "attention", OP_attention, n, operands, &attr, NULL);
    return trace_value(both ? ir_result(trace_graph(place), both, 0) : NULL);
}

/* -- optimizers ------------------------------------------------------------------------------------------------------- */

void rax_adamw_at(rax_place place, rax_tensor *w, rax_tensor *m, rax_tensor *v, rax_tensor g, rax_adamw_options options)
{
    const char *name = "adamw";
    ir_node *operands[11] = { trace_operand(place, name, "w", *w), trace_operand(place, name, "m", *m),
                              trace_operand(place, name, "v", *v), trace_operand(place, name, "g", g) };
    ir_node *both = NULL;
    ir_node *lr = trace_operand(place, name, "lr", options.lr);
    ir_node *correction1 = trace_operand(place, name, "correction1", options.correction1);
    ir_node *correction2 = trace_operand(place, name, "correction2", options.correction2);
    if (operands[0] && lr && correction1 && correction2) {
        ir_graph *graph = trace_graph(place);
        double numbers[] = { options.beta1, options.beta2, options.epsilon, options.weight_decay };
        ir_dtype dtype = ir_dtype_is_float(operands[0]->type.dtype) ? operands[0]->type.dtype : IR_F32;
        operands[4] = lr;
        for (int i = 0; i < 4; i++)
            operands[5 + i] = trace_scalar(graph, dtype, numbers[i]);
        operands[9] = correction1;
        operands[10] = correction2;
        both = trace_add(place, name, OP_adamw, 11, operands, NULL, NULL);
    }
    *w = trace_value(both ? ir_result(trace_graph(place), both, 0) : NULL);
    *m = trace_value(both ? ir_result(trace_graph(place), both, 1) : NULL);
    *v = trace_value(both ? ir_result(trace_graph(place), both, 2) : NULL);
}
