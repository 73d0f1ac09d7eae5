/* Random programs, their kernel lists against the interpreter.
 *
 * The operands are small integers, and the programs add, multiply, compare, move, sum and take remainders, so that all arithmetic is exact in
 * f32, f64 and i32: what differs is a wrong kernel, not a rounding. SEED=n runs that program alone, PROGRAMS=n so many. */
#include "tests/kernel_lists.h"

enum { PROGRAMS = 400, MOST_NODES = 96, MOST_ELEMENTS = 600, MOST_RANK = 5 };

/* products: a third of the ops are, so that much follows on products. */
typedef struct { dice dice; ir_graph *graph; ir_node *nodes[MOST_NODES]; int n, depth; bool products; } writer;

static int draw(writer *w, int below) { return (int)(roll(&w->dice) * below); }

static void keep_node(writer *w, ir_node *node)
{
    if (w->n < MOST_NODES && node->type.rank <= MOST_RANK && ir_type_count(&node->type) <= MOST_ELEMENTS)
        w->nodes[w->n++] = node;
}

/* -- operands ----------------------------------------------------------------------------------------------------------- */

static ir_type random_type(writer *w)
{
    static const int64_t dims[] = { 1, 1, 2, 3, 4, 5, 6, 7, 8, 12, 0 };
    static const ir_dtype dtypes[] = { IR_F32, IR_F64, IR_I32 };
    int64_t dim[IR_MAX_RANK];
    int rank = draw(w, 4);
    for (int i = 0; i < rank; i++)
        dim[i] = dims[draw(w, draw(w, 20) ? (int)COUNT_OF(dims) - 1 : (int)COUNT_OF(dims))];
    return ir_type_of(dtypes[draw(w, 3)], rank, dim);
}

/* Mostly a recent one, so that chains grow. */
static ir_node *any(writer *w)
{
    int recent = MIN(w->n, 5);
    return w->nodes[draw(w, 2) ? w->n - 1 - draw(w, recent) : draw(w, w->n)];
}

static ir_node *any_of_rank(writer *w, int rank)
{
    for (int i = 0; i < 20; i++) {
        ir_node *x = any(w);
        if (x->type.rank >= rank && x->type.dtype != IR_BOOL)
            return x;
    }
    return NULL;
}

/* A node of that type: one that there is, one of the elements it takes in another order, or a constant. */
static ir_node *any_like(writer *w, const ir_type *type)
{
    ir_node *found[MOST_NODES];
    int n = 0;
    for (int i = 0; i < w->n; i++)
        if (w->nodes[i]->type.dtype == type->dtype && ir_type_count(&w->nodes[i]->type) == ir_type_count(type) &&
            (ir_type_equal(&w->nodes[i]->type, type) || draw(w, 3) == 0))
            found[n++] = w->nodes[i];
    if (n == 0 || draw(w, 5) == 0)
        return ir_constant(w->graph, *type, type->dtype == IR_BOOL ? draw(w, 2) : draw(w, 5) - 2);
    return ir_reshape(w->graph, found[draw(w, n)], *type);
}

static ir_node *small_again(writer *w, ir_node *x)
{
    return x->type.dtype == IR_BOOL ? x : ir_binary(w->graph, OP_rem, x, ir_constant_like(w->graph, x, 7));
}

static ir_node *any_index(writer *w, int64_t count)
{
    ir_type type = count == 0 ? ir_scalar(IR_I32) : ir_type_of(IR_I32, 1, &count);
    return any_like(w, &type);
}

/* -- ops ---------------------------------------------------------------------------------------------------------------- */

static ir_node *random_elementwise(writer *w)
{
    static const ir_op binary[] = { OP_add, OP_sub, OP_mul, OP_max, OP_min };
    ir_graph *g = w->graph;
    ir_node *x = any(w);
    if (x->type.dtype == IR_BOOL)
        return ir_cast(g, ir_unary(g, OP_not, x), IR_F32);
    switch (draw(w, 6)) {
    case 0:
        return ir_unary(g, draw(w, 2) ? OP_neg : OP_abs, x);
    case 1: {
        ir_node *y = any_like(w, &x->type);
        return ir_select(g, ir_binary(g, draw(w, 2) ? OP_lt : OP_eq, x, y), y, any_like(w, &x->type));
    }
    case 2:
        return ir_cast(g, x, draw(w, 2) ? IR_F64 : draw(w, 2) ? IR_F32 : IR_I32);
    case 3:
        return ir_binary(g, OP_le, x, any_like(w, &x->type));
    default:
        return small_again(w, ir_binary(g, binary[draw(w, COUNT_OF(binary))], x, any_like(w, &x->type)));
    }
}

static ir_node *random_broadcast(writer *w)
{
    ir_node *x = any(w);
    ir_type type = { .dtype = x->type.dtype };
    int axes[IR_MAX_RANK], i = 0;
    while (type.rank < MOST_RANK && (i < x->type.rank || draw(w, 2))) {
        bool old = i < x->type.rank && (draw(w, 3) || MOST_RANK - type.rank <= x->type.rank - i);
        if (old) {
            axes[i] = type.rank;
            type.dim[type.rank++] = x->type.dim[i] == 1 && draw(w, 2) ? 1 + draw(w, 4) : x->type.dim[i];
            i++;
        } else {
            type.dim[type.rank++] = 1 + draw(w, 4);
        }
    }
    return i == x->type.rank ? ir_broadcast(w->graph, x, type, axes) : x;
}

static ir_node *random_transpose(writer *w)
{
    ir_node *x = any(w);
    int perm[IR_MAX_RANK];
    for (int i = 0; i < x->type.rank; i++) {
        int at = draw(w, i + 1);
        perm[i] = perm[at];
        perm[at] = i;
    }
    return ir_transpose(w->graph, x, perm);
}

static ir_node *random_reshape(writer *w)
{
    ir_node *x = any(w);
    ir_type type = { .dtype = x->type.dtype };
    int64_t left = ir_type_count(&x->type);
    if (left == 0)
        return x;
    while (type.rank < MOST_RANK - 1 && (left > 1 || draw(w, 3) == 0)) {
        int64_t dim = 1 + draw(w, (int)left);
        while (left % dim != 0)
            dim--;
        type.dim[type.rank++] = dim;
        left /= dim;
    }
    if (left > 1)
        type.dim[type.rank++] = left;
    return ir_reshape(w->graph, x, type);
}

static ir_node *random_slice(writer *w)
{
    ir_node *x = any(w);
    ir_type type = x->type;
    int64_t start[IR_MAX_RANK];
    for (int i = 0; i < type.rank; i++) {
        start[i] = draw(w, 2) ? 0 : draw(w, (int)type.dim[i] + 1);
        type.dim[i] = draw(w, 2) ? type.dim[i] - start[i] : draw(w, (int)(type.dim[i] - start[i]) + 1);
    }
    return ir_slice(w->graph, x, start, type);
}

static ir_node *random_pad(writer *w)
{
    ir_node *x = any(w);
    ir_attr attr = { .value = x->type.dtype == IR_BOOL ? 1 : draw(w, 3) };
    ir_type type = x->type;
    for (int i = 0; i < type.rank; i++) {
        attr.start[i] = draw(w, 3);
        type.dim[i] += attr.start[i] + draw(w, 3);
    }
    return ir_add(w->graph, OP_pad, 1, &x, &attr, &type);
}

static ir_node *random_concatenate(writer *w)
{
    ir_node *args[3] = { any(w) };
    int n = 2 + draw(w, 2), axis;
    if (args[0]->type.rank == 0)
        return args[0];
    axis = draw(w, args[0]->type.rank);
    for (int i = 1; i < n; i++) {
        ir_type type = args[0]->type;
        type.dim[axis] = draw(w, 3) ? type.dim[axis] : 1 + draw(w, 3);
        args[i] = draw(w, 4) ? any_like(w, &type) : args[0];
    }
    return ir_add(w->graph, OP_concatenate, n, args, &(ir_attr){ .axis = axis }, NULL);
}

static ir_node *random_reduction(writer *w)
{
    ir_node *x = any_of_rank(w, 1);
    int axes[IR_MAX_RANK], n = 0;
    if (!x)
        return any(w);
    int axis = draw(w, x->type.rank), way = draw(w, 5);
    if (way == 0 && x->type.dim[axis] > 0)
        return ir_add(w->graph, OP_argmax, 1, &x, &(ir_attr){ .axis = axis }, NULL);
    for (int i = 0; i < x->type.rank; i++)
        if (way == 1 ? i <= axis : way == 2 ? i >= axis : draw(w, 2))
            axes[n++] = i;
    ir_node *y = small_again(w, ir_reduce(w->graph, draw(w, 3) ? OP_reduce_sum : OP_reduce_max, x, n, axes));
    if (draw(w, 3))
        return y;
    return small_again(w, ir_binary(w->graph, OP_sub, x, ir_broadcast_back(w->graph, y, x->type, n, axes)));
}

static ir_node *random_matmul(writer *w)
{
    ir_node *x = any_of_rank(w, 2);
    if (!x || x->type.dtype == IR_I32)
        return any(w);
    ir_type type = x->type;
    type.dim[type.rank - 2] = x->type.dim[type.rank - 1];
    type.dim[type.rank - 1] = draw(w, 2) ? x->type.dim[type.rank - 2] : 1 + draw(w, 4);
    ir_node *y = draw(w, 2) && type.dim[type.rank - 1] == x->type.dim[type.rank - 2] ? ir_swap_last(w->graph, x) : any_like(w, &type);
    return small_again(w, ir_matmul(w->graph, x, y, x->type.dtype));
}

static ir_node *random_indexing(writer *w)
{
    ir_node *x = any_of_rank(w, 1), *args[3 + IR_MAX_RANK];
    if (!x)
        return any(w);
    int axis = draw(w, x->type.rank);
    ir_type part = x->type;
    switch (draw(w, 4)) {
    case 0:
        if (x->type.dim[axis] == 0)
            return x;
        args[0] = x;
        args[1] = any_index(w, draw(w, 5));
        return ir_add(w->graph, OP_gather, 2, args, &(ir_attr){ .axis = axis }, NULL);
    case 1:
        if (x->type.dim[axis] == 0)
            return x;
        part.dim[axis] = 1 + draw(w, 5);
        args[0] = x;
        args[1] = any_index(w, part.dim[axis]);
        args[2] = any_like(w, &part);
        return small_again(w, ir_add(w->graph, OP_scatter_add, 3, args, &(ir_attr){ .axis = axis }, NULL));
    case 2:
        args[0] = x;
        for (int i = 0; i < x->type.rank; i++) {
            part.dim[i] = draw(w, 2) ? part.dim[i] : draw(w, (int)part.dim[i] + 1);
            args[1 + i] = any_index(w, 0);
        }
        return ir_add(w->graph, OP_dynamic_slice, 1 + x->type.rank, args, NULL, &part);
    default:
        args[0] = x;
        for (int i = 0; i < x->type.rank; i++) {
            part.dim[i] = draw(w, 2) ? part.dim[i] : draw(w, (int)part.dim[i] + 1);
            args[2 + i] = any_index(w, 0);
        }
        args[1] = any_like(w, &part);
        return ir_add(w->graph, OP_update_slice, 2 + x->type.rank, args, NULL, NULL);
    }
}

static ir_node *random_leaf(writer *w)
{
    ir_type type = random_type(w);
    if (type.rank > 0 && draw(w, 2))
        return ir_iota(w->graph, type, draw(w, type.rank));
    ir_node *args[] = { any_index(w, 2), any_index(w, 0) };
    type.dtype = IR_I32;
    return small_again(w, ir_add(w->graph, OP_random_bits, 2, args, &(ir_attr){ .site = (uint32_t)draw(w, 3) }, &type));
}

static void write_nodes(writer *w, int steps);

/* Carries, slices and constants of nodes that there are; a random body. Adds its results one by one. */
static void random_scan(writer *w)
{
    ir_graph *body = ir_graph_new_body(w->graph, "body");
    writer inside = { .dice = { w->dice.state ^ 77 }, .graph = body, .depth = w->depth + 1, .products = w->products };
    int n_carry = draw(w, 3), n_xs = draw(w, 3), n_const = draw(w, 3), n = 0, n_results = 0;
    ir_node *args[8], *results[8];
    int64_t count = 1 + draw(w, 4);
    for (; n < n_carry; n++)
        args[n] = any(w);
    for (; n < n_carry + n_xs; n++) {
        ir_node *x = any(w);
        ir_type type = { .dtype = x->type.dtype, .rank = x->type.rank + 1, .dim = { count } };
        for (int i = 0; i < x->type.rank; i++)
            type.dim[i + 1] = x->type.dim[i];
        args[n] = any_like(w, &type);
    }
    for (; n < n_carry + n_xs + n_const; n++)
        args[n] = any(w);
    for (int i = 0; i < n; i++) {
        const ir_type *whole = &args[i]->type;
        bool slice = i >= n_carry && i < n_carry + n_xs;
        ir_type type = ir_type_of(whole->dtype, whole->rank - slice, whole->dim + slice);
        keep_node(&inside, ir_parameter(body, type, NULL));
    }
    if (inside.n == 0)
        return;
    write_nodes(&inside, 1 + draw(w, 8));
    for (; n_results < n_carry; n_results++)
        results[n_results] = draw(w, 6) ? any_like(&inside, &body->params[n_results]->type) : body->params[n_results];
    for (int i = draw(w, 3); i > 0; i--)
        results[n_results++] = any(&inside);
    if (n_results == 0)
        return;
    ir_set_results(body, n_results, results, NULL);
    ir_attr attr = { .body = body, .count = count, .n_carry = n_carry, .n_xs = n_xs, .reverse = draw(w, 3) == 0 };
    ir_node *scan = ir_add(w->graph, OP_scan, n, args, &attr, NULL);
    for (int i = 0; i < n_results; i++)
        if (draw(w, 5))
            keep_node(w, ir_result(w->graph, scan, i));
}

static void write_nodes(writer *w, int steps)
{
    for (int i = 0; i < steps; i++)
        switch (w->products && draw(w, 3) == 0 ? 12 : draw(w, 16)) {
        case 0: case 1: case 2: case 3: keep_node(w, random_elementwise(w)); break;
        case 4: case 5: keep_node(w, random_reduction(w)); break;
        case 6: keep_node(w, random_broadcast(w)); break;
        case 7: keep_node(w, random_transpose(w)); break;
        case 8: keep_node(w, random_reshape(w)); break;
        case 9: keep_node(w, random_slice(w)); break;
        case 10: keep_node(w, draw(w, 2) ? random_pad(w) : random_leaf(w)); break;
        case 11: keep_node(w, random_concatenate(w)); break;
        case 12: keep_node(w, random_matmul(w)); break;
        case 13: case 14: keep_node(w, random_indexing(w)); break;
        case 15:
            if (w->depth < 2)
                random_scan(w);
            break;
        }
}

static ir_graph *random_graph(uint64_t seed, bool products)
{
    writer w = { .dice = { seed * 1000003 }, .graph = keep(ir_graph_new("random")), .products = products };
    ir_node *results[6];
    int n_params = 2 + draw(&w, 4), n = 1 + draw(&w, 5);
    for (int i = 0; i < n_params; i++) {
        ir_type type = random_type(&w);
        while (ir_type_count(&type) > MOST_ELEMENTS)
            type = random_type(&w);
        keep_node(&w, ir_parameter(w.graph, type, NULL));
    }
    write_nodes(&w, 4 + draw(&w, 24));
    for (int i = 0; i < n; i++)
        results[i] = any(&w);
    ir_set_results(w.graph, n, results, NULL);
    for (int i = 0; i < n; i++)                           /* donations, each parameter once */
        for (int j = 0; j < n_params; j++) {
            bool taken = false;
            for (int k = 0; k < i; k++)
                taken |= w.graph->donated[k] == j;
            if (!taken && ir_type_equal(&results[i]->type, &w.graph->params[j]->type) && draw(&w, 2))
                w.graph->donated[i] = j;
        }
    return w.graph;
}

static void check_programs(bool products)
{
    const char *seed = getenv("SEED"), *programs = getenv("PROGRAMS");
    uint64_t first = seed ? strtoull(seed, NULL, 10) : 0, n = seed ? 1 : programs ? strtoull(programs, NULL, 10) : PROGRAMS;
    for (uint64_t i = first; i < first + n; i++) {
        forget();
        current_name = text_of("SEED=%llu", (unsigned long long)i);
        check_kernels(random_graph(i, products), (settings){ .lo = -4, .hi = 5, .whole = true, .seed = i });
    }
}

static void test_random_programs(void **state) { (void)state; check_programs(false); }
static void test_random_products(void **state) { (void)state; check_programs(true); }

int main(void)
{
    base_bug_hook = current_text;
    const struct CMUnitTest tests[] = { GRAPH_TEST(test_random_programs), GRAPH_TEST(test_random_products) };
    return cmocka_run_group_tests_name("kernels of random programs", tests, NULL, NULL);
}
