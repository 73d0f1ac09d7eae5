/* The shape rules' own interface.
 *
 *   infer.c                    calls a rule: what it may rely on is checked before, its answer after
 *   shape_rules.c              one rule for each name in the shape column of ops.def
 *   shape_rules_composite.c    those of the composites
 *   shape_checks.c             reasons, checks that give them, names of dims
 */
#ifndef IR_SHAPE_RULES_H
#define IR_SHAPE_RULES_H

#include "ir/ir.h"

/* -- infer.c ---------------------------------------------------------------------------------------------------------- */

/* No tensor has more elements than this, counting a dim of 0 as 1, so that no product of dims overflows. */
#define IR_MAX_ELEMENTS ((int64_t)1 << 40)

/* Rank, dims, their product and their names within bounds, a dtype that has elements. False with the reason. */
bool ir_type_is_sound(const ir_type *type, base_text *why);

/* ir_infer with the tuple in the given arena. Reads nothing out of bounds whatever the attributes say, so long as the operands
 * are nodes whose own types were accepted here, and bodies were verified. */
bool ir_infer_in(base_arena *arena, ir_op op, int n_args, ir_node *const *args, const ir_attr *attr, const ir_type *stated,
                 ir_type *type, int *n_tuple, ir_type **tuple, base_text *why);

/* The value as the dtype holds it: 0.1 in f32 is 0.1f. NaNs lose sign and payload. i32 and bool: as given. */
double ir_round_to(ir_dtype dtype, double value);

/* -- shape_checks.c: for rules ---------------------------------------------------------------------------------------- */

/* Adds a reason and returns false. The format has %T for a const ir_type *, %D for a const ir_type * and an axis (its dim with
 * its name), %l for an int64_t, and %d, %s, %f as ever. */
bool ir_because(base_text *why, const char *format, ...);

const ir_type *ir_arg_type(const ir_node *node, int arg);

/* True, or false with the reason, in which operands have the names given. */
bool ir_has_args(const ir_node *node, int low, int high, base_text *why);
bool ir_same_dtype(const char *a_name, const ir_type *a, const char *b_name, const ir_type *b, base_text *why);
bool ir_same_rank(const char *a_name, const ir_type *a, const char *b_name, const ir_type *b, base_text *why);
bool ir_same_dim(const char *a_name, const ir_type *a, int a_axis, const char *b_name, const ir_type *b, int b_axis, base_text *why);
bool ir_same_shape(const char *a_name, const ir_type *a, const char *b_name, const ir_type *b, base_text *why);
bool ir_same_type(const char *a_name, const ir_type *a, const char *b_name, const ir_type *b, base_text *why);
bool ir_is_rank(const char *name, const ir_type *type, int rank, base_text *why);
bool ir_is_dtype(const char *name, const ir_type *type, ir_dtype dtype, base_text *why);
bool ir_is_float(const char *name, const ir_type *type, base_text *why);
bool ir_is_number(const char *name, const ir_type *type, base_text *why);
bool ir_is_scalar_i32(const char *name, const ir_type *type, base_text *why);
bool ir_is_seed_and_counter(const ir_type *seed, const ir_type *counter, base_text *why);
bool ir_has_axis(const char *name, const ir_type *type, int axis, base_text *why);
bool ir_axes_ascend(const char *name, const ir_type *type, const ir_attr *attr, base_text *why);

/* An axis without a name takes that of another; all axes; the type without some of its axes, which ascend. */
void ir_borrow_name(ir_type *to, int to_axis, const ir_type *from, int from_axis);
void ir_borrow_names(ir_type *to, const ir_type *from);
void ir_drop_axes(ir_type *type, const ir_type *from, int n_axes, const int *axes);

#endif
