/* What graph.c, parse.c and verify.c share of the shape rules: inference into an arena of the caller's choice, and the bound
 * on sizes that keeps every later product of dims within int64_t. */
#ifndef IR_SHAPE_RULES_H
#define IR_SHAPE_RULES_H

#include "ir/ir.h"

/* No tensor has more elements than this, counting a dim of 0 as 1. */
#define IR_MAX_ELEMENTS ((int64_t)1 << 40)

/* Rank, dims and their product within bounds, a dtype that has elements. False with the reason. */
bool ir_type_is_sound(const ir_type *type, base_text *why);

/* ir_infer with the tuple in the given arena. Reads nothing out of bounds whatever the attributes say, so long as the operands
 * are nodes whose own types were accepted here, and bodies were verified. */
bool ir_infer_in(base_arena *arena, ir_op op, int n_args, ir_node *const *args, const ir_attr *attr, const ir_type *stated,
                 ir_type *type, int *n_tuple, ir_type **tuple, base_text *why);

/* The value as the dtype holds it: 0.1 in f32 is 0.1f. NaNs lose sign and payload. i32 and bool: as given. */
double ir_round_to(ir_dtype dtype, double value);

#endif
