/* Random programs before and after the passes, held together bit for bit (but for the sign of a zero).
 *
 * The operands are small integers in f64 or i32, and the programs add, subtract, compare, move, sum and multiply by powers of
 * two, so that all arithmetic is exact: what differs is a wrong rule, not a rounding. A failure prints its seed and the
 * program; SEED=n runs that one alone, PROGRAMS=n so many. */
#include "ir/ir.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { PROGRAMS = 2000, MAX_NODES = 64, STEPS = 16, MAX_DIM = 3 };

static uint64_t state;
static int draw(int below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int)((state >> 33) % (uint64_t)below);
}

/* -- programs ---------------------------------------------------------------------------------------------------------------- */

typedef struct { ir_graph *graph; ir_node *nodes[MAX_NODES]; int n; ir_node *start; } program;

static void keep(program *p, ir_node *node)
{
    if (p->n < MAX_NODES && node->type.rank <= 4 && ir_type_count(&node->type) <= 400)
        p->nodes[p->n++] = node;
}

/* Mostly a recent one, so that chains grow. */
static ir_node *any(program *p) { return p->nodes[draw(2) ? p->n - 1 - draw(p->n < 4 ? p->n : 4) : draw(p->n)]; }

static ir_node *any_like(program *p, const ir_node *x)
{
    static const double values[] = { 0, 1, -1, 2, 4 };
    ir_node *found[MAX_NODES];
    int n = 0;
    for (int i = 0; i < p->n; i++)
        if (ir_type_equal(&p->nodes[i]->type, &x->type))
            found[n++] = p->nodes[i];
    return n > 0 && draw(3) ? found[draw(n)] : ir_constant_like(p->graph, x, values[draw(COUNT_OF(values))]);
}

static ir_type random_type(ir_dtype dtype)
{
    int64_t dim[IR_MAX_RANK];
    int rank = draw(4);
    for (int i = 0; i < rank; i++)
        dim[i] = 1 + draw(MAX_DIM);
    return ir_type_of(dtype, rank, dim);
}

static ir_node *random_elementwise(program *p, ir_node *x)
{
    static const ir_op ops[] = { OP_add, OP_add, OP_sub, OP_max, OP_min };
    static const double factors[] = { 1, -1, 2, 0.5, 0 };
    ir_graph *g = p->graph;
    switch (draw(6)) {
    case 0: return ir_unary(g, OP_neg, x);
    case 1: return ir_unary(g, OP_abs, x);
    case 2: {
        double factor = factors[draw(x->type.dtype == IR_I32 ? 3 : COUNT_OF(factors))];
        ir_node *c = ir_constant_like(g, x, factor);
        return draw(2) ? ir_binary(g, OP_mul, x, c) : ir_binary(g, OP_mul, c, x);
    }
    case 3: {
        ir_node *condition = ir_binary(g, draw(2) ? OP_lt : OP_eq, x, any_like(p, x));
        if (draw(3) == 0)
            condition = ir_unary(g, OP_not, condition);
        return ir_select(g, condition, x, any_like(p, x));
    }
    default: {
        ir_node *y = any_like(p, x);
        return draw(2) ? ir_binary(g, ops[draw(COUNT_OF(ops))], x, y) : ir_binary(g, ops[draw(COUNT_OF(ops))], y, x);
    }
    }
}

static ir_node *random_reshape(program *p, ir_node *x)
{
    ir_type type = ir_scalar(x->type.dtype);
    int64_t left = ir_type_count(&x->type);
    while (left > 1 && type.rank < 4) {
        int64_t dim = 1 + draw(MAX_DIM);
        if (left % dim == 0) {
            type.dim[type.rank++] = dim;
            left /= dim;
        }
    }
    if (left > 1)
        type.dim[type.rank++] = left;
    return ir_reshape(p->graph, x, type);
}

static ir_node *random_transpose(program *p, ir_node *x)
{
    int perm[IR_MAX_RANK];
    for (int i = 0; i < x->type.rank; i++) {
        int j = draw(i + 1);
        perm[i] = perm[j];
        perm[j] = i;
    }
    return ir_transpose(p->graph, x, perm);
}

static ir_node *random_broadcast(program *p, ir_node *x)
{
    ir_type type = { .dtype = x->type.dtype };
    int axes[IR_MAX_RANK];
    for (int i = 0; i <= x->type.rank; i++) {
        while (type.rank < 4 && draw(3) == 0)
            type.dim[type.rank++] = 1 + draw(MAX_DIM);
        if (i < x->type.rank) {
            axes[i] = type.rank;
            type.dim[type.rank++] = x->type.dim[i] == 1 ? 1 + draw(MAX_DIM) : x->type.dim[i];
        }
    }
    return ir_broadcast(p->graph, x, type, axes);
}

static ir_node *random_slice(program *p, ir_node *x)
{
    ir_type type = x->type;
    ir_node *args[1 + IR_MAX_RANK] = { x };
    int64_t start[IR_MAX_RANK];
    for (int i = 0; i < type.rank; i++) {
        start[i] = draw((int)type.dim[i]);
        type.dim[i] = 1 + draw((int)(type.dim[i] - start[i]));
        args[1 + i] = draw(2) ? p->start : ir_constant(p->graph, ir_scalar(IR_I32), draw(6) - 1);
    }
    return draw(4) ? ir_slice(p->graph, x, start, type) : ir_add(p->graph, OP_dynamic_slice, 1 + type.rank, args, NULL, &type);
}

static ir_node *pad_to(program *p, ir_node *x, const ir_type *type, const int64_t *start, double value)
{
    ir_attr attr = { .value = value };
    memcpy(attr.start, start, sizeof *start * (size_t)type->rank);
    return ir_add(p->graph, OP_pad, 1, &x, &attr, type);
}

static ir_node *random_pad(program *p, ir_node *x)
{
    ir_type type = x->type;
    int64_t start[IR_MAX_RANK] = { 0 };
    for (int i = 0; i < type.rank; i++) {
        start[i] = draw(2);
        type.dim[i] += start[i] + draw(2);
    }
    return pad_to(p, x, &type, start, draw(3) == 0);
}

/* The gradient of a split, its parts in any order. */
static ir_node *random_split(program *p, ir_node *x)
{
    if (x->type.rank == 0)
        return x;
    ir_node *parts[MAX_DIM + 8], *sum = NULL;
    int axis = draw(x->type.rank), n = 0;
    int64_t dim = x->type.dim[axis];
    for (int64_t at = 0; at < dim && n < (int)COUNT_OF(parts); n++) {
        int64_t start[IR_MAX_RANK] = { 0 }, take = 1 + draw((int)(dim - at));
        ir_type type = x->type;
        start[axis] = at;
        type.dim[axis] = take;
        parts[n] = pad_to(p, ir_unary(p->graph, OP_neg, ir_slice(p->graph, x, start, type)), &x->type, start, 0);
        at += take;
    }
    while (n > 0) {
        int i = draw(n);
        sum = sum ? ir_binary(p->graph, OP_add, sum, parts[i]) : parts[i];
        parts[i] = parts[--n];
    }
    return sum;
}

static ir_node *random_concatenate(program *p, ir_node *x)
{
    ir_node *parts[3];
    if (x->type.rank == 0)
        return x;
    int n = 1 + draw(3);
    for (int i = 0; i < n; i++)
        parts[i] = draw(2) ? x : any_like(p, x);
    return ir_add(p->graph, OP_concatenate, n, parts, &(ir_attr){ .axis = draw(x->type.rank) }, NULL);
}

static ir_node *random_reduce(program *p, ir_node *x)
{
    int axes[IR_MAX_RANK], n = 0;
    for (int i = 0; i < x->type.rank; i++)
        if (draw(2))
            axes[n++] = i;
    return ir_reduce(p->graph, draw(2) ? OP_reduce_sum : OP_reduce_max, x, n, axes);
}

static ir_node *random_matmul(program *p, ir_node *x)
{
    if (x->type.rank < 2 || x->type.dtype != IR_F64)
        return x;
    ir_node *y = ir_matmul(p->graph, x, ir_swap_last(p->graph, any_like(p, x)), IR_F64);
    if (draw(2))
        y = ir_swap_last(p->graph, y);
    /* Brought back to small numbers, so that a chain of products stays exact. */
    return ir_binary(p->graph, OP_min, ir_binary(p->graph, OP_max, y, ir_constant_like(p->graph, y, -8)),
                     ir_constant_like(p->graph, y, 8));
}

static void step(program *p)
{
    ir_node *x = any(p);
    switch (draw(12)) {
    case 0: case 1: case 2: keep(p, random_elementwise(p, x)); break;
    case 3: keep(p, random_reshape(p, x)); break;
    case 4: keep(p, random_transpose(p, x)); break;
    case 5: keep(p, random_broadcast(p, x)); break;
    case 6: keep(p, random_slice(p, x)); break;
    case 7: keep(p, random_pad(p, x)); break;
    case 8: keep(p, random_concatenate(p, x)); break;
    case 9: keep(p, random_reduce(p, x)); break;
    case 10: keep(p, random_split(p, x)); break;
    case 11: keep(p, random_matmul(p, x)); break;
    }
}

static ir_graph *random_program(void)
{
    program p = { .graph = ir_graph_new("random") };
    for (int i = 0; i < 4; i++)
        keep(&p, ir_parameter(p.graph, random_type(i < 3 ? IR_F64 : IR_I32), NULL));
    p.start = ir_parameter(p.graph, ir_scalar(IR_I32), "start");
    for (int i = 0; i < STEPS; i++)
        step(&p);
    ir_node *results[] = { p.nodes[p.n - 1], p.nodes[p.n - 2], any(&p) };
    ir_set_results(p.graph, COUNT_OF(results), results, NULL);
    return p.graph;
}

/* -- before and after ---------------------------------------------------------------------------------------------------------- */

static double get(const ir_array *array, int64_t i)
{
    return array->type.dtype == IR_I32 ? ((int32_t *)array->data)[i] : ((double *)array->data)[i];
}

static void check_program(uint64_t seed)
{
    state = seed * 0x9e3779b97f4a7c15 + 1;
    ir_graph *before = random_program(), *after = ir_graph_clone(before);
    ir_pass_options options = { .verify = true };
    ir_run_passes(after, &options);
    ir_pass_reports_free(&options);

    ir_array params[8], expected[3], got[3];
    for (int i = 0; i < before->n_params; i++) {
        params[i] = (ir_array){ before->params[i]->type, base_alloc((size_t)ir_type_bytes(&before->params[i]->type)) };
        for (int64_t j = 0, n = ir_type_count(&params[i].type); j < n; j++) {
            int value = draw(7) - 3;
            if (params[i].type.dtype == IR_I32)
                ((int32_t *)params[i].data)[j] = value;
            else
                ((double *)params[i].data)[j] = value;
        }
    }
    for (int i = 0; i < before->n_results; i++) {
        ir_type type = before->results[i]->type;
        expected[i] = (ir_array){ type, base_alloc((size_t)ir_type_bytes(&type)) };
        got[i] = (ir_array){ type, base_alloc((size_t)ir_type_bytes(&type)) };
    }
    assert_true(ir_interpret(before, params, expected));
    assert_true(ir_interpret(after, params, got));
    for (int i = 0; i < before->n_results; i++)
        for (int64_t j = 0, n = ir_type_count(&expected[i].type); j < n; j++)
            if (!(get(&expected[i], j) == get(&got[i], j))) {
                char *first = ir_to_text(before), *second = ir_to_text(after);
                fprintf(stderr, "SEED=%llu: result %d at %lld: expected %.17g, got %.17g\n%s\n%s\n",
                        (unsigned long long)seed, i, (long long)j,
                        get(&expected[i], j), get(&got[i], j), first, second);
                fail();
            }
    for (int i = 0; i < before->n_params; i++)
        base_free(params[i].data);
    for (int i = 0; i < before->n_results; i++) {
        base_free(expected[i].data);
        base_free(got[i].data);
    }
    ir_graph_free(before);
    ir_graph_free(after);
}

static void test_random_programs(void **unused)
{
    const char *one = getenv("SEED"), *many = getenv("PROGRAMS");
    uint64_t n = many ? strtoull(many, NULL, 10) : PROGRAMS;
    if (one)
        check_program(strtoull(one, NULL, 10));
    else
        for (uint64_t seed = 0; seed < n; seed++)
            check_program(seed);
    (void)unused;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_random_programs) };
    return cmocka_run_group_tests_name("ir_random", tests, NULL, NULL);
}
