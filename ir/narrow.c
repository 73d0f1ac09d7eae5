/* A value that is only read in a narrower type is stored in it. A cast is where someone asked for it, mostly at a product's operand; what
 * moves elements in between keeps it from the loop or the product that makes the value, and the wide one goes to memory:
 *
 *     %2: f32[8,12] = matmul %0, %1                        %2: f32[8,12] = matmul %0, %1
 *     %3: f32[8,4] = slice %2 {start=[0,0]}                %3: bf16[8,12] = cast %2
 *     %4: f32[8,8] = slice %2 {start=[0,4]}                %4: bf16[8,4] = slice %3 {start=[0,0]}
 *     %5: bf16[8,4] = cast %3                              %5: bf16[8,8] = slice %3 {start=[0,4]}
 *     %6: bf16[8,8] = cast %4
 *
 * A cast to fewer bytes moves before reshapes, transposes and slices that are read by such casts alone; before a slice only where the
 * slices of a value take all of it, so that nothing is cast for nobody. A cast that had widened the value goes with it. Every value that
 * is left keeps its bits. What nobody reads any more is left to dce. */
#include "ir/ir.h"

enum { NOBODY = IR_TUPLE, SEVERAL = IR_TUPLE + 1 };     /* no type that a value is read in */

/* By mark, of nodes that this pass has not made: theirs is MADE. read_as: the type to which all readers narrow it; sliced: elements that
 * slices take of it; narrow: in that type. */
enum { MADE = -1 };
typedef struct { int read_as; int64_t sliced; ir_node *narrow; } reading;

static bool moves(const ir_node *n) { return n->op == OP_reshape || n->op == OP_transpose || n->op == OP_slice; }

static bool narrows(const ir_node *n)
{
    ir_dtype from = n->op == OP_cast ? n->args[0]->type.dtype : IR_TUPLE, to = n->type.dtype;
    return n->op == OP_cast && ir_dtype_is_float(from) && ir_dtype_is_float(to) && ir_dtype_bytes(to) < ir_dtype_bytes(from);
}

static void read_all(ir_graph *graph, reading *all)
{
    for (ir_node *n = graph->last; n; n = n->prev) {
        int as = narrows(n) ? (int)n->type.dtype : moves(n) ? all[n->mark].read_as : SEVERAL;
        for (int i = 0; i < n->n_args; i++) {
            reading *arg = &all[n->args[i]->mark];
            arg->read_as = arg->read_as == NOBODY ? as : arg->read_as == as || as == NOBODY ? arg->read_as : SEVERAL;
            arg->sliced += n->op == OP_slice ? ir_type_count(&n->type) : 0;
        }
    }
}

/* Whether the cast of x may stand before it. */
static bool can_follow(const reading *all, const ir_node *x, ir_dtype to)
{
    if (x->mark == MADE || !moves(x) || all[x->mark].read_as != (int)to)
        return false;
    if (x->op != OP_slice)
        return true;
    const ir_node *from = x->args[0];
    return from->mark != MADE && all[from->mark].read_as == (int)to && all[from->mark].sliced >= ir_type_count(&from->type);
}

static ir_node *narrow(ir_graph *graph, reading *all, ir_node *x, ir_dtype to);

static ir_node *new_narrow(ir_graph *graph, reading *all, ir_node *x, ir_dtype to)
{
    if (!can_follow(all, x, to))
        return ir_cast(graph, x, to);
    ir_node *from = narrow(graph, all, x->args[0], to);
    if (x->op == OP_reshape)
        return ir_reshape(graph, from, ir_type_with_dtype(x->type, to));
    if (x->op == OP_transpose)
        return ir_transpose(graph, from, x->attr.axes);
    return ir_slice(graph, from, x->attr.start, ir_type_with_dtype(x->type, to));
}

/* x in the narrower type: what a cast had widened, or made before graph->before. */
static ir_node *narrow(ir_graph *graph, reading *all, ir_node *x, ir_dtype to)
{
    if (x->op == OP_cast && x->args[0]->type.dtype == to && !narrows(x))
        return x->args[0];
    ir_node *known = x->mark == MADE ? NULL : all[x->mark].narrow;
    if (known && known->type.dtype == to)
        return known;
    ir_node *made = new_narrow(graph, all, x, to);
    made->mark = MADE;
    if (x->mark != MADE)
        all[x->mark].narrow = made;
    return made;
}

void ir_pass_narrow(ir_graph *graph, ir_pass_context *context)
{
    int moved = 0, n_nodes = 0;
    for (ir_node *n = graph->first; n; n = n->next)
        n->mark = n_nodes++;
    reading *all = base_alloc(sizeof *all * (size_t)MAX(n_nodes, 1));
    for (int i = 0; i < n_nodes; i++)
        all[i] = (reading){ .read_as = NOBODY };
    for (int i = 0; i < graph->n_results; i++)
        all[graph->results[i]->mark].read_as = SEVERAL;
    read_all(graph, all);

    ir_node *before = graph->before;
    ir_place place = graph->place;
    for (ir_node *n = graph->first; n; n = n->next) {
        for (int i = 0; i < n->n_args; i++)
            n->args[i] = n->args[i]->note;
        n->note = n;
        if (!narrows(n) || !can_follow(all, n->args[0], n->type.dtype))
            continue;
        graph->before = n;
        graph->place = n->place;
        n->note = narrow(graph, all, n->args[0], n->type.dtype);
        moved++;
    }
    for (int i = 0; i < graph->n_results; i++)
        graph->results[i] = graph->results[i]->note;
    graph->before = before;
    graph->place = place;
    base_free(all);
    if (moved)
        base_text_add(&context->note, "%d cast%s moved", moved, moved > 1 ? "s" : "");
}
