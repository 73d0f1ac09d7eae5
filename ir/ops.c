/* The op table in memory. The functions that its rows name live in shape_rules*.c, vjp_*.c, composites.c and reference*.c; they are
 * declared here, from the rows themselves, and nowhere else. */
#include "ir/ir.h"

#include <string.h>

/* -- declarations ------------------------------------------------------------------------------------------------------ */

/* A composite's reference is its decomposition; the other classes have a function of the interpreter. */
#define DECOMPOSE(f) void f(ir_graph *graph, const ir_node *node, ir_node **results);
#define REFERENCE(f) void f(const ir_node *node, const ir_array *const *args, ir_array *result);
#define DECLARE_LEAF(f)        REFERENCE(f)
#define DECLARE_ELEMENTWISE(f) REFERENCE(f)
#define DECLARE_REDUCTION(f)   REFERENCE(f)
#define DECLARE_CONTRACTION(f) REFERENCE(f)
#define DECLARE_MOVEMENT(f)    REFERENCE(f)
#define DECLARE_INDEXING(f)    REFERENCE(f)
#define DECLARE_RANDOM(f)      REFERENCE(f)
#define DECLARE_CONTROL(f)     REFERENCE(f)
#define DECLARE_COMPOSITE(f)   DECOMPOSE(f)

#define OP(name, arity, class, attributes, shape, vjp, reference, help)      \
    bool shape(const ir_node *node, ir_type *type, base_text *why);          \
    void vjp(ir_vjp *context);                                               \
    DECLARE_##class(reference)
#include "ir/ops.def"
#undef OP

/* -- the table --------------------------------------------------------------------------------------------------------- */

#define no_vjp   NULL
#define ref_none NULL

#define FUNCTION_LEAF(f)        .reference = f
#define FUNCTION_ELEMENTWISE(f) .reference = f
#define FUNCTION_REDUCTION(f)   .reference = f
#define FUNCTION_CONTRACTION(f) .reference = f
#define FUNCTION_MOVEMENT(f)    .reference = f
#define FUNCTION_INDEXING(f)    .reference = f
#define FUNCTION_RANDOM(f)      .reference = f
#define FUNCTION_CONTROL(f)     .reference = f
#define FUNCTION_COMPOSITE(f)   .decompose = f

const ir_op_info ir_op_table[IR_OPS] = {
#define OP(op, arity_, class_, attributes_, shape_, vjp_, function, help_)                                     \
    [OP_##op] = { .name = #op, .arity = arity_, .class = IR_##class_, .attributes = attributes_, .shape = shape_, \
                  .vjp = vjp_, FUNCTION_##class_(function), .help = help_ },
#include "ir/ops.def"
#undef OP
};

bool ir_op_parse(const char *name, size_t len, ir_op *op)
{
    for (int i = 0; i < IR_OPS; i++)
        if (strlen(ir_op_table[i].name) == len && memcmp(ir_op_table[i].name, name, len) == 0) {
            *op = (ir_op)i;
            return true;
        }
    return false;
}
