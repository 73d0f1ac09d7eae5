/* What the decompositions of composites and their gradients have in common. A gradient recomputes the forward's sub-expressions
 * instead of storing them; because both make them by these functions they are equal node by node, and CSE merges them. */
#ifndef IR_COMPOSITES_H
#define IR_COMPOSITES_H

#include "ir/ir.h"

/* bf16 is computed in f32: the dtype of sums, and x in it. */
ir_dtype ir_wide_dtype(ir_dtype dtype);
ir_node *ir_widen(ir_graph *graph, ir_node *x);

/* Each operand of shape[..., C] kind: a scalar constant, or a vector for the last axis, in x's dtype and of x's shape. */
ir_node *ir_times(ir_graph *graph, ir_node *x, double factor);
ir_node *ir_plus(ir_graph *graph, ir_node *x, double term);
ir_node *ir_broadcast_last(ir_graph *graph, ir_node *vector, ir_type shape);
ir_node *ir_mean_last(ir_graph *graph, ir_node *x);                       /* over the last axis, broadcast back to x's shape */

/* exp(x - max) and what it is made of; max and sum lack the axis. */
typedef struct { ir_node *max, *shifted, *exp, *sum; } ir_softmax_parts;
ir_softmax_parts ir_softmax_parts_of(ir_graph *graph, ir_node *x, int axis);
ir_node *ir_normalised(ir_graph *graph, const ir_softmax_parts *parts, int axis);             /* exp / sum */

/* Of wide logits: what the loss is made of, and its gradient by the logits (softmax - one_hot) * dloss. */
typedef struct { ir_node *logits, *is_target; ir_softmax_parts softmax; } ir_cross_entropy_parts;
ir_cross_entropy_parts ir_cross_entropy_parts_of(ir_graph *graph, ir_node *logits, ir_node *targets);
ir_node *ir_cross_entropy_gradient(ir_graph *graph, const ir_cross_entropy_parts *parts, ir_node *dloss);

/* Over the last axis of a wide x: xhat = (x - mean) rstd, both of x's shape. */
typedef struct { ir_node *rstd, *xhat; } ir_norm_parts;
ir_norm_parts ir_norm_parts_of(ir_graph *graph, ir_node *x, double epsilon);

/* What gelu multiplies x by: sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), of a wide x. */
#define IR_GELU_SCALE 0.79788456080286535588
#define IR_GELU_CUBIC 0.044715
ir_node *ir_gelu_gate(ir_graph *graph, ir_node *x);

#endif
