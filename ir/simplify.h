/* What simplify.c shares with the files of its rules. A rule looks at a node and its operands, and returns a node of the same
 * type that computes the same: an older one, or one that it has just added (before the node, with whatever that needs); or
 * NULL where it has nothing to say. What it adds is simplified in its turn. node->mark counts the node's users (0 for nodes
 * that rules have added). */
#ifndef IR_SIMPLIFY_H
#define IR_SIMPLIFY_H

#include "ir/ir.h"

typedef ir_node *ir_rewrite_rule(ir_graph *graph, ir_node *node);

ir_rewrite_rule ir_fold_constants;           /* fold_constants.c */
ir_rewrite_rule ir_simplify_arithmetic;      /* simplify_arithmetic.c */
ir_rewrite_rule ir_simplify_movement;        /* simplify_movement.c */

static inline bool ir_is_value(const ir_node *node, double value) { return node->op == OP_constant && node->attr.value == value; }

#endif
