/* What gradient.c offers to the rules of vjp_rules.c and vjp_scan.c. */
#ifndef IR_GRADIENT_H
#define IR_GRADIENT_H

#include "ir/ir.h"

/* As ir_gradient, for any outputs with given cotangents (NULL: zero), but into[i] stays NULL where the cotangent is zero, and only nodes with
 * an id of at least first_id are passed through: older ones are inputs, whatever they are computed from. */
void ir_vjp_since(ir_graph *graph, int first_id, int n_outputs, ir_node *const *outputs, ir_node *const *cotangents,
                  int n, ir_node *const *wrt, ir_node **into);

/* A cotangent as precisely as it is known: of a bf16 one that was rounded from f32, the f32 it was rounded from; any other bf16 widened to f32. */
ir_node *ir_wide_cotangent(ir_graph *graph, ir_node *dy);

ir_node *ir_zeros(ir_graph *graph, ir_type type);

#endif
