/* Gradients against central finite differences in f64, and gradients of gradients likewise. The cases come beside the op table: an op with a
 * gradient rule and without a case fails. */
#include "tests/graphs.h"

/* -- the method --------------------------------------------------------------------------------------------------------- */

/* A literal of the type with values of the dice, so that each element of a result has its own share in a loss. */
static ir_node *weights_for(ir_graph *graph, ir_type type, dice *d)
{
    ir_array values = array_of(type);
    fill(&values, d, 0.5, 1.5);
    ir_attr attr = { .data = values.data };
    return ir_add(graph, OP_literal, 0, NULL, &attr, &type);
}

/* The sum of all elements of the float nodes, each times a weight. */
static ir_node *weighted_sum(ir_graph *graph, int n, ir_node *const *nodes, dice *d)
{
    ir_node *sum = ir_constant(graph, ir_scalar(IR_F64), 0);
    for (int i = 0; i < n; i++) {
        if (nodes[i]->type.dtype != IR_F64)
            continue;
        int axes[IR_MAX_RANK];
        for (int a = 0; a < nodes[i]->type.rank; a++)
            axes[a] = a;
        ir_node *products = ir_binary(graph, OP_mul, nodes[i], weights_for(graph, nodes[i]->type, d));
        sum = ir_binary(graph, OP_add, sum, ir_reduce(graph, OP_reduce_sum, products, nodes[i]->type.rank, axes));
    }
    return sum;
}

enum { MOST_PARAMS = 16 };

/* Results of the graph: the loss, its gradients by each parameter, the second loss (a weighted sum of the gradients), its gradients. */
static int add_gradients(ir_graph *graph, dice *d)
{
    ir_node *into[2 * MOST_PARAMS + 2];
    int n = graph->n_params;
    assert_true(n <= MOST_PARAMS);
    into[0] = weighted_sum(graph, graph->n_results, graph->results, d);
    ir_gradient(graph, into[0], n, graph->params, into + 1);
    into[n + 1] = weighted_sum(graph, n, into + 1, d);
    ir_gradient(graph, into[n + 1], n, graph->params, into + n + 2);
    ir_set_results(graph, 2 * n + 2, into, NULL);
    return n;
}

/* Losses at params with element `at` of parameter i moved by step. */
static void losses_at(ir_program *losses, ir_array *params, int i, int64_t at, double step, double loss[2])
{
    ir_array results[] = { { ir_scalar(IR_F64), &loss[0] }, { ir_scalar(IR_F64), &loss[1] } };
    double x = get(&params[i], at);
    put(&params[i], at, x + step);
    assert_true(ir_run(losses, params, results));
    put(&params[i], at, x);
}

/* Five points, error of the fourth order: with step 1e-3 both it and the rounding of the losses stay near 1e-11. */
static void slopes(ir_program *losses, ir_array *params, int i, int64_t at, double slope[2])
{
    const double step = 1e-3;
    double near[2][2], far[2][2];
    losses_at(losses, params, i, at, step, near[0]);
    losses_at(losses, params, i, at, -step, near[1]);
    losses_at(losses, params, i, at, 2 * step, far[0]);
    losses_at(losses, params, i, at, -2 * step, far[1]);
    for (int order = 0; order < 2; order++)
        slope[order] = (8 * (near[0][order] - near[1][order]) - (far[0][order] - far[1][order])) / (12 * step);
}

static void check_gradients(const char *label, const char *text, double lo, double hi)
{
    enum { MOST_ELEMENTS = 60 };
    dice d = { 2 };                     /* a seed by which no two operands of max lie within a step of each other */
    ir_graph *graph = graph_of(text);
    int n = add_gradients(graph, &d);
    ir_array *params = arrays_for_params(graph);
    for (int i = 0; i < n; i++)
        fill(&params[i], &d, lo, hi);
    ir_array *results = run_graph(graph, params);

    ir_graph *optimised = keep(ir_graph_clone(graph));
    ir_pass_options options = { .verify = true };
    ir_run_passes(optimised, &options);
    ir_pass_reports_free(&options);
    ir_array *again = run_graph(optimised, params);
    for (int i = 0; i < graph->n_results; i++)
        for (int64_t at = 0; at < ir_type_count(&results[i].type); at++)
            assert_near(get(&again[i], at), get(&results[i], at), 1e-12, "%s: result %d after the passes\n# %s\n", label, i, text);

    ir_node *both[] = { graph->results[0], graph->results[n + 1] };
    ir_graph *forward = keep(ir_graph_clone(graph));
    ir_node *clones[2];
    for (int i = 0; i < 2; i++)
        for (ir_node *node = forward->first; node; node = node->next)
            if (node->id == both[i]->id)
                clones[i] = node;
    ir_set_results(forward, 2, clones, NULL);
    ir_program *losses = ir_prepare(forward);
    for (int i = 0; i < n; i++) {
        int64_t count = ir_type_count(&params[i].type), stride = 1 + count / MOST_ELEMENTS;
        for (int64_t at = 0; at < count && params[i].type.dtype == IR_F64; at += stride) {
            double slope[2];
            slopes(losses, params, i, at, slope);
            for (int order = 0; order < 2; order++)
                assert_near(get(&results[order * (n + 1) + 1 + i], at), slope[order], 1e-7,
                            "%s: gradient %d of parameter %d, element %lld\n# %s\n", label, order + 1, i, (long long)at, text);
        }
    }
    ir_program_free(losses);
}

/* -- the cases ---------------------------------------------------------------------------------------------------------- */

/* SHAPE in a text stands for each of these in turn. Operands are uniform in lo..hi. */
static const char *const shapes[] = { "", "1", "7", "3,5", "2,1,3" };

typedef struct { ir_op op; double lo, hi; const char *text; } gradient_case;

#define UNARY(name, lo, hi) \
    { OP_##name, lo, hi, "graph t(%0: f64[SHAPE]) {\n %1: f64[SHAPE] = " #name " %0\n return %1\n}\n" }
#define BINARY(name, lo, hi) \
    { OP_##name, lo, hi, "graph t(%0: f64[SHAPE], %1: f64[SHAPE]) {\n %2: f64[SHAPE] = " #name " %0, %1\n return %2\n}\n" }, \
    { OP_##name, lo, hi, "graph t(%0: f64[SHAPE]) {\n %1: f64[SHAPE] = " #name " %0, %0\n return %1\n}\n" }

static const gradient_case cases[] = {
    UNARY(neg, -2, 2), UNARY(abs, 0.1, 2), UNARY(abs, -2, -0.1), UNARY(exp, -2, 2), UNARY(log, 0.3, 2), UNARY(sqrt, 0.3, 2),
    UNARY(rsqrt, 0.3, 2), UNARY(tanh, -2, 2), UNARY(sigmoid, -3, 3), UNARY(sin, -3, 3), UNARY(cos, -3, 3), UNARY(erf, -1.5, 1.5),
    UNARY(erf_inv, -0.7, 0.7), UNARY(cast, -2, 2),
    BINARY(add, -2, 2), BINARY(sub, -2, 2), BINARY(mul, -2, 2), BINARY(div, 0.5, 2), BINARY(pow, 0.5, 2), BINARY(max, -2, 2),
    BINARY(min, -2, 2),
    { OP_select, -2, 2, "graph t(%0: f64[SHAPE], %1: f64[SHAPE], %2: f64[SHAPE]) {\n %3: bool[SHAPE] = lt %0, %1\n"
                        " %4: f64[SHAPE] = select %3, %1, %2\n return %4\n}\n" },

    { OP_reduce_sum, -2, 2, "graph t(%0: f64[2,3,5]) {\n %1: f64[2,5] = reduce_sum %0 {axes=[1]}\n %2: f64[2,5] = mul %1, %1\n return %2\n}\n" },
    { OP_reduce_sum, -2, 2, "graph t(%0: f64[2,3,1]) {\n %1: f64[3] = reduce_sum %0 {axes=[0,2]}\n %2: f64[3] = exp %1\n return %2\n}\n" },
    { OP_reduce_sum, -2, 2, "graph t(%0: f64[7]) {\n %1: f64[] = reduce_sum %0 {axes=[0]}\n %2: f64[] = sin %1\n return %2\n}\n" },
    { OP_reduce_max, -2, 2, "graph t(%0: f64[2,3,5]) {\n %1: f64[3] = reduce_max %0 {axes=[0,2]}\n %2: f64[3] = mul %1, %1\n return %2\n}\n" },
    { OP_reduce_max, -2, 2, "graph t(%0: f64[4,1]) {\n %1: f64[4] = reduce_max %0 {axes=[1]}\n %2: f64[4] = exp %1\n return %2\n}\n" },

    { OP_matmul, -1, 1, "graph t(%0: f64[3,5], %1: f64[5,7]) {\n %2: f64[3,7] = matmul %0, %1\n %3: f64[3,7] = tanh %2\n return %3\n}\n" },
    { OP_matmul, -1, 1, "graph t(%0: f64[2,1,3,1], %1: f64[2,1,1,2]) {\n %2: f64[2,1,3,2] = matmul %0, %1\n %3: f64[2,1,3,2] = exp %2\n"
                        " return %3\n}\n" },
    { OP_matmul, -1, 1, "graph t(%0: f64[3,3]) {\n %1: f64[3,3] = matmul %0, %0\n return %1\n}\n" },

    { OP_reshape, -2, 2, "graph t(%0: f64[6,1]) {\n %1: f64[2,3] = reshape %0\n %2: f64[2,3] = exp %1\n return %2\n}\n" },
    { OP_transpose, -2, 2, "graph t(%0: f64[2,3,4]) {\n %1: f64[4,2,3] = transpose %0 {axes=[2,0,1]}\n %2: f64[4,2,3] = exp %1\n return %2\n}\n" },
    { OP_broadcast, -2, 2, "graph t(%0: f64[3,1]) {\n %1: f64[2,3,4] = broadcast %0 {axes=[1,2]}\n %2: f64[2,3,4] = exp %1\n return %2\n}\n" },
    { OP_broadcast, -2, 2, "graph t(%0: f64[]) {\n %1: f64[5] = broadcast %0 {axes=[]}\n %2: f64[5] = exp %1\n return %2\n}\n" },
    { OP_broadcast, -2, 2, "graph t(%0: f64[3]) {\n %1: f64[3] = broadcast %0 {axes=[0]}\n %2: f64[3] = exp %1\n return %2\n}\n" },
    { OP_broadcast, -2, 2, "graph t(%0: f64[1]) {\n %1: f64[1,4] = broadcast %0 {axes=[0]}\n %2: f64[1,4] = exp %1\n return %2\n}\n" },
    { OP_slice, -2, 2, "graph t(%0: f64[4,5]) {\n %1: f64[2,3] = slice %0 {start=[1,2]}\n %2: f64[2,3] = exp %1\n return %2\n}\n" },
    { OP_pad, -2, 2, "graph t(%0: f64[2,3]) {\n %1: f64[4,5] = pad %0 {start=[2,1], value=0.5}\n %2: f64[4,5] = exp %1\n return %2\n}\n" },
    { OP_concatenate, -2, 2, "graph t(%0: f64[2,3], %1: f64[2,1]) {\n %2: f64[2,7] = concatenate %0, %1, %0 {axis=1}\n"
                             " %3: f64[2,7] = exp %2\n return %3\n}\n" },
    { OP_dynamic_slice, -2, 2, "graph t(%0: f64[4,5]) {\n %1: i32[] = constant {value=1}\n %2: i32[] = constant {value=9}\n"
                               " %3: f64[2,3] = dynamic_slice %0, %1, %2\n %4: f64[2,3] = exp %3\n return %4\n}\n" },
    { OP_update_slice, -2, 2, "graph t(%0: f64[4,5], %1: f64[2,3]) {\n %2: i32[] = constant {value=1}\n %3: i32[] = constant {value=-4}\n"
                              " %4: f64[4,5] = update_slice %0, %1, %2, %3\n %5: f64[4,5] = exp %4\n return %5\n}\n" },

    /* Indices repeat, and lie outside. */
    { OP_gather, -2, 2, "graph t(%0: f64[2,4,3]) {\n %1: i32[2,3] = literal {data=[3,1,1,-5,9,0]}\n %2: f64[2,2,3,3] = gather %0, %1 {axis=1}\n"
                        " %3: f64[2,2,3,3] = exp %2\n return %3\n}\n" },
    { OP_gather, -2, 2, "graph t(%0: f64[4]) {\n %1: i32[] = constant {value=2}\n %2: f64[] = gather %0, %1 {axis=0}\n"
                        " %3: f64[] = exp %2\n return %3\n}\n" },
    { OP_scatter_add, -2, 2, "graph t(%0: f64[4,2], %1: f64[5,2]) {\n %2: i32[5] = literal {data=[3,1,1,-5,9]}\n"
                             " %3: f64[4,2] = scatter_add %0, %2, %1 {axis=0}\n %4: f64[4,2] = exp %3\n return %4\n}\n" },

    { OP_softmax, -2, 2, "graph t(%0: f64[2,3,5]) {\n %1: f64[2,3,5] = softmax %0 {axis=1}\n return %1\n}\n" },
    { OP_softmax, -2, 2, "graph t(%0: f64[1]) {\n %1: f64[1] = softmax %0 {axis=0}\n return %1\n}\n" },
    { OP_log_softmax, -2, 2, "graph t(%0: f64[3,7]) {\n %1: f64[3,7] = log_softmax %0 {axis=1}\n return %1\n}\n" },
    { OP_layer_norm, -2, 2, "graph t(%0: f64[2,3,5], %1: f64[5], %2: f64[5]) {\n %3: f64[2,3,5] = layer_norm %0, %1, %2 {epsilon=1e-05}\n"
                            " return %3\n}\n" },
    { OP_layer_norm, -2, 2, "graph t(%0: f64[7], %1: f64[7]) {\n %2: f64[7] = layer_norm %0, %1 {epsilon=0.1}\n return %2\n}\n" },
    { OP_layer_norm, -2, 2, "graph t(%0: f64[2,1], %1: f64[1], %2: f64[1]) {\n %3: f64[2,1] = layer_norm %0, %1, %2 {epsilon=1}\n return %3\n}\n" },
    { OP_rms_norm, -2, 2, "graph t(%0: f64[2,3,5], %1: f64[5]) {\n %2: f64[2,3,5] = rms_norm %0, %1 {epsilon=1e-05}\n return %2\n}\n" },
    { OP_rms_norm, -2, 2, "graph t(%0: f64[5]) {\n %1: f64[5] = rms_norm %0, %0 {epsilon=0.1}\n return %1\n}\n" },
    UNARY(gelu, -3, 3), UNARY(silu, -3, 3),
    { OP_cross_entropy, -2, 2, "graph t(%0: f64[5,7]) {\n %1: i32[5] = literal {data=[0,6,3,-1,7]}\n %2: f64[5] = cross_entropy %0, %1\n"
                               " return %2\n}\n" },
    { OP_cross_entropy, -2, 2, "graph t(%0: f64[7]) {\n %1: i32[] = constant {value=2}\n %2: f64[] = cross_entropy %0, %1\n return %2\n}\n" },
    { OP_linear_cross_entropy, -1, 1, "graph t(%0: f64[5,3], %1: f64[7,3]) {\n %2: i32[5] = literal {data=[0,6,3,-1,3]}\n"
                                      " %3: f64[5] = linear_cross_entropy %0, %1, %2\n return %3\n}\n" },
    { OP_linear_cross_entropy_vjp, -1, 1, "graph t(%0: f64[3,2], %1: f64[5,2], %2: f64[3]) {\n %3: i32[3] = literal {data=[0,4,3]}\n"
                                          " %4: (f64[3], f64[3,2], f64[5,2]) = linear_cross_entropy_vjp %0, %1, %3, %2\n"
                                          " %5: f64[3] = result %4 {index=0}\n %6: f64[3,2] = result %4 {index=1}\n"
                                          " %7: f64[5,2] = result %4 {index=2}\n return %5, %6, %7\n}\n" },
    { OP_attention, -1, 1, "graph t(%0: f64[2,1,3,2], %1: f64[2,1,3,2], %2: f64[2,1,3,2]) {\n"
                           " %3: (f64[2,1,3,2], f64[2,1,3]) = attention %0, %1, %2 {causal=true, scale=0.7, dropout=0, site=0}\n"
                           " %4: f64[2,1,3,2] = result %3 {index=0}\n %5: f64[2,1,3] = result %3 {index=1}\n return %4, %5\n}\n" },
    { OP_attention, -1, 1, "graph t(%0: f64[1,2,2,3], %1: f64[1,2,5,3], %2: f64[1,2,5,3]) {\n"
                           " %3: i32[2] = literal {data=[1,2]}\n %4: i32[] = constant {value=3}\n"
                           " %5: (f64[1,2,2,3], f64[1,2,2]) = attention %0, %1, %2, %3, %4 {causal=true, scale=1.5, dropout=0.4, site=7}\n"
                           " %6: f64[1,2,2,3] = result %5 {index=0}\n return %6\n}\n" },
    { OP_attention, -1, 1, "graph t(%0: f64[1,1,4,1], %1: f64[1,1,2,1], %2: f64[1,1,2,1]) {\n"
                           " %3: (f64[1,1,4,1], f64[1,1,4]) = attention %0, %1, %2 {causal=false, scale=1, dropout=0, site=0}\n"
                           " %4: f64[1,1,4] = result %3 {index=1}\n return %4\n}\n" },
    { OP_attention_vjp, -1, 1, "graph t(%0: f64[1,1,2,2], %1: f64[1,1,3,2], %2: f64[1,1,3,2], %3: f64[1,1,2,2], %4: f64[1,1,2],\n"
                               "        %5: f64[1,1,2,2], %6: f64[1,1,2]) {\n"
                               " %7: i32[2] = literal {data=[1,2]}\n %8: i32[] = constant {value=3}\n"
                               " %9: (f64[1,1,2,2], f64[1,1,3,2], f64[1,1,3,2]) = attention_vjp %0, %1, %2, %3, %4, %5, %6, %7, %8"
                               " {causal=true, scale=0.5, dropout=0.3, site=2}\n"
                               " %10: f64[1,1,2,2] = result %9 {index=0}\n %11: f64[1,1,3,2] = result %9 {index=1}\n"
                               " %12: f64[1,1,3,2] = result %9 {index=2}\n return %10, %11, %12\n}\n" },
    { OP_adamw, 0.2, 0.8, "graph t(%0: f64[3], %1: f64[3], %2: f64[3], %3: f64[3], %4: f64[], %5: f64[], %6: f64[], %7: f64[], %8: f64[],\n"
                          "        %9: f64[], %10: f64[]) {\n"
                          " %11: (f64[3], f64[3], f64[3]) = adamw %0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10\n"
                          " %12: f64[3] = result %11 {index=0}\n %13: f64[3] = result %11 {index=1}\n %14: f64[3] = result %11 {index=2}\n"
                          " return %12, %13, %14\n}\n" },
    { OP_result, -2, 2, "graph t(%0: f64[], %1: f64[3]) {\n"
                        " %2: (f64[], f64[3]) = scan %0, %1 {count=3, carry=1, xs=1, reverse=false} graph sum(%0: f64[], %1: f64[]) {\n"
                        "  %2: f64[] = mul %0, %1\n  return %2, %0\n }\n"
                        " %3: f64[] = result %2 {index=0}\n %4: f64[3] = result %2 {index=1}\n return %3, %4\n}\n" },

    /* The true gradient, spelled by the user: of exp(a) b it is dy y and dy exp(a). */
    { OP_custom_gradient, -1, 1, "graph t(%0: f64[SHAPE], %1: f64[SHAPE]) {\n %2: f64[SHAPE] = exp %0\n %3: f64[SHAPE] = mul %2, %1\n"
                                 " %4: f64[SHAPE] = custom_gradient %3, %0, %1 graph b(%0: f64[SHAPE], %1: f64[SHAPE], %2: f64[SHAPE], %3: f64[SHAPE]) {\n"
                                 "  %4: f64[SHAPE] = mul %3, %2\n  %5: f64[SHAPE] = exp %0\n  %6: f64[SHAPE] = mul %3, %5\n  return %4, %6\n }\n"
                                 " return %4\n}\n" },

    /* A recurrent cell h' = tanh(h w + x), whose ys are h' h'. */
    { OP_scan, -1, 1, "graph t(%0: f64[2,3], %1: f64[4,2,3], %2: f64[3,3]) {\n"
                      " %3: (f64[2,3], f64[4,2,3]) = scan %0, %1, %2 {count=4, carry=1, xs=1, reverse=false}"
                      " graph cell(%0: f64[2,3], %1: f64[2,3], %2: f64[3,3]) {\n"
                      "  %3: f64[2,3] = matmul %0, %2\n  %4: f64[2,3] = add %3, %1\n  %5: f64[2,3] = tanh %4\n  %6: f64[2,3] = mul %5, %5\n"
                      "  return %5, %6\n }\n"
                      " %4: f64[2,3] = result %3 {index=0}\n %5: f64[4,2,3] = result %3 {index=1}\n return %4, %5\n}\n" },
    /* Backwards; an integer carry counts and selects; the ys alone are used; one x is a mask without a gradient. */
    { OP_scan, -1, 1, "graph t(%0: f64[2], %1: f64[3,2], %2: f64[]) {\n %3: i32[] = constant {value=0}\n %4: bool[3] = literal {data=[true,false,true]}\n"
                      " %5: (f64[2], i32[], f64[3,2]) = scan %0, %3, %1, %4, %2 {count=3, carry=2, xs=2, reverse=true}"
                      " graph cell(%0: f64[2], %1: i32[], %2: f64[2], %3: bool[], %4: f64[]) {\n"
                      "  %5: i32[] = constant {value=1}\n  %6: i32[] = add %1, %5\n  %7: f64[] = cast %6\n  %8: f64[] = mul %7, %4\n"
                      "  %9: f64[2] = broadcast %8 {axes=[]}\n  %10: f64[2] = mul %0, %9\n  %11: bool[2] = broadcast %3 {axes=[]}\n"
                      "  %12: f64[2] = select %11, %10, %0\n  %13: f64[2] = mul %12, %2\n  %14: f64[2] = sin %13\n  return %14, %6, %13\n }\n"
                      " %6: f64[3,2] = result %5 {index=2}\n return %6\n}\n" },
    /* A scan in a scan, which shares a constant with it, and carries that swap. */
    { OP_scan, -1, 1, "graph t(%0: f64[], %1: f64[], %2: f64[2,3], %3: f64[]) {\n"
                      " %4: (f64[], f64[], f64[2]) = scan %0, %1, %2, %3 {count=2, carry=2, xs=1, reverse=false}"
                      " graph outer(%0: f64[], %1: f64[], %2: f64[3], %3: f64[]) {\n"
                      "  %4: (f64[], f64[3]) = scan %0, %2, %3 {count=3, carry=1, xs=1, reverse=false} graph inner(%0: f64[], %1: f64[], %2: f64[]) {\n"
                      "   %3: f64[] = mul %0, %1\n   %4: f64[] = add %3, %2\n   %5: f64[] = sin %4\n   return %5, %3\n  }\n"
                      "  %5: f64[] = result %4 {index=0}\n  %6: f64[] = mul %1, %3\n  %7: f64[] = add %5, %6\n  return %1, %7, %5\n }\n"
                      " %5: f64[] = result %4 {index=0}\n %6: f64[] = result %4 {index=1}\n %7: f64[2] = result %4 {index=2}\n"
                      " return %5, %6, %7\n}\n" },
    /* One iteration; a carry that the body hands on as it is; a carry that is an x. */
    { OP_scan, -1, 1, "graph t(%0: f64[2], %1: f64[2], %2: f64[1,2]) {\n"
                      " %3: (f64[2], f64[2]) = scan %0, %1, %2 {count=1, carry=2, xs=1, reverse=false} graph cell(%0: f64[2], %1: f64[2], %2: f64[2]) {\n"
                      "  return %0, %2\n }\n"
                      " %4: f64[2] = result %3 {index=0}\n %5: f64[2] = result %3 {index=1}\n %6: f64[2] = mul %4, %5\n return %6\n}\n" },
};

static char *with_shape(const char *text, const char *shape)
{
    base_text out = {0};
    for (const char *c = text; *c;)
        if (strncmp(c, "SHAPE", 5) == 0) {
            base_text_add(&out, "%s", shape);
            c += 5;
        } else {
            base_text_bytes(&out, c++, 1);
        }
    char *copy = text_of("%s", out.at);
    base_text_free(&out);
    return copy;
}

static void run_case(const gradient_case *c)
{
    bool any_shape = strstr(c->text, "SHAPE") != NULL;
    for (size_t i = 0; i < (any_shape ? COUNT_OF(shapes) : 1); i++)
        check_gradients(OP_NAME(c->op), with_shape(c->text, shapes[i]), c->lo, c->hi);
}

static void every_op_with_a_rule_has_a_case(void **state)
{
    (void)state;
    for (int op = 0; op < IR_OPS; op++) {
        bool has_case = false;
        for (size_t i = 0; i < COUNT_OF(cases); i++)
            has_case |= (int)cases[i].op == op;
        if (has_case != (ir_op_table[op].vjp != NULL))
            fail_msg("%s: has %s rule, and %s case", OP_NAME(op), ir_op_table[op].vjp ? "a" : "no", has_case ? "a" : "no");
    }
}

static void run_class(ir_class class)
{
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        if (ir_op_table[cases[i].op].class == class)
            run_case(&cases[i]);
}

static void elementwise(void **state) { (void)state; run_class(IR_ELEMENTWISE); }
static void reductions(void **state) { (void)state; run_class(IR_REDUCTION); }
static void contraction(void **state) { (void)state; run_class(IR_CONTRACTION); }
static void movement(void **state) { (void)state; run_class(IR_MOVEMENT); }
static void indexing(void **state) { (void)state; run_class(IR_INDEXING); }
static void control(void **state) { (void)state; run_class(IR_CONTROL); }
static void composites(void **state) { (void)state; run_class(IR_COMPOSITE); }

/* -- what finite differences do not see ---------------------------------------------------------------------------------- */

/* Gradients of the first result by all parameters, as the only results. */
static ir_array *gradients_of(const char *text, ir_array **params, dice *d)
{
    ir_graph *graph = graph_of(text);
    ir_node *into[MOST_PARAMS];
    ir_gradient(graph, graph->results[0], graph->n_params, graph->params, into);
    ir_set_results(graph, graph->n_params, into, NULL);
    *params = arrays_for_params(graph);
    for (int i = 0; i < graph->n_params; i++)
        fill(&(*params)[i], d, -2, 2);
    return run_graph(graph, *params);
}

static void ties_share(void **state)
{
    (void)state;
    ir_array *params, *dx = gradients_of("graph t(%0: f64[]) {\n %1: f64[4] = broadcast %0 {axes=[]}\n %2: f64[4] = max %1, %1\n"
                                         " %3: f64[] = reduce_max %2 {axes=[0]}\n return %3\n}\n", &params, &(dice){ 1 });
    assert_near(get(&dx[0], 0), 1, 1e-15, "all shares together\n");

    ir_graph *graph = graph_of("graph t() {\n %0: f64[3] = literal {data=[2,1,2]}\n %1: f64[] = reduce_max %0 {axes=[0]}\n return %1\n}\n");
    ir_node *literal = graph->first, *into;
    ir_gradient(graph, graph->results[0], 1, &literal, &into);
    ir_set_results(graph, 1, &into, NULL);
    ir_array *shares = run_graph(graph, NULL);
    for (int i = 0; i < 3; i++)
        assert_near(get(&shares[0], i), i == 1 ? 0 : 0.5, 0, "share %d\n", i);
}

static void abs_and_pow_at_zero(void **state)
{
    (void)state;
    ir_graph *graph = graph_of("graph t() {\n %0: f64[] = constant {value=0}\n %1: f64[] = constant {value=0}\n %2: f64[] = abs %0\n"
                               " %3: f64[] = pow %0, %1\n %4: f64[] = add %2, %3\n return %4\n}\n");
    ir_node *zeros[] = { graph->first, graph->first->next }, *into[2];
    ir_gradient(graph, graph->results[0], 2, zeros, into);
    ir_set_results(graph, 2, into, NULL);
    ir_array *dx = run_graph(graph, NULL);
    assert_near(get(&dx[0], 0), 0, 0, "d(|x| + x^0)\n");
    assert_near(get(&dx[1], 0), 0, 0, "d(0^y)\n");
}

static void nothing_flows_where_nothing_should(void **state)
{
    (void)state;
    ir_array *params, *dx = gradients_of(
        "graph t(%0: f64[], %1: f64[], %2: i32[], %3: f64[3]) {\n %4: f64[] = stop_gradient %0\n %5: f64[] = floor %0\n %6: f64[] = mul %4, %1\n"
        " %7: f64[] = add %6, %5\n %8: f64[] = cast %2\n %9: f64[] = add %7, %8\n return %9\n}\n", &params, &(dice){ 1 });
    assert_near(get(&dx[0], 0), 0, 0, "through stop_gradient and floor\n");
    assert_near(get(&dx[1], 0), get(&params[0], 0), 0, "beside stop_gradient\n");
    assert_int_equal(dx[2].type.dtype, IR_I32);
    assert_near(get(&dx[2], 0), 0, 0, "to an i32\n");
    for (int i = 0; i < 3; i++)
        assert_near(get(&dx[3], i), 0, 0, "to what the loss does not depend on\n");
}

static void custom_gradient_replaces(void **state)
{
    (void)state;
    ir_array *params, *dx = gradients_of(
        "graph t(%0: f64[], %1: f64[]) {\n %2: f64[] = mul %0, %1\n"
        " %3: f64[] = custom_gradient %2, %0 graph b(%0: f64[], %1: f64[], %2: f64[]) {\n"
        "  %3: f64[] = constant {value=7}\n  %4: f64[] = mul %3, %2\n  return %4\n }\n"
        " %5: f64[] = constant {value=2}\n %6: f64[] = mul %3, %5\n return %6\n}\n", &params, &(dice){ 1 });
    assert_near(get(&dx[0], 0), 14, 0, "the body's answer times dy\n");
    assert_near(get(&dx[1], 0), 0, 0, "what y was made of receives nothing\n");
}

/* By h = x x and by x itself: the second counts the way through h. */
static void wrt_may_depend_on_each_other(void **state)
{
    (void)state;
    ir_graph *graph = graph_of("graph t(%0: f64[]) {\n %1: f64[] = mul %0, %0\n %2: f64[] = mul %1, %0\n return %2\n}\n");
    ir_node *wrt[] = { graph->params[0], graph->params[0]->next }, *into[2];
    ir_gradient(graph, graph->results[0], 2, wrt, into);
    ir_set_results(graph, 2, into, NULL);
    double x = 3;
    ir_array *dx = run_graph(graph, &(ir_array){ ir_scalar(IR_F64), &x });
    assert_near(get(&dx[0], 0), 27, 0, "d(x^3) by x\n");
    assert_near(get(&dx[1], 0), 3, 0, "d(h x) by h\n");
}

/* Gradients of f32 weights that are cast to bf16 on their way keep f32's digits: through moves, and where two uses add up. */
static void mixed_precision_keeps_digits(void **state)
{
    (void)state;
    dice d = { 5 };
    ir_array *params, *dx = gradients_of(
        "graph t(%0: f32[3,4], %1: f32[5,4]) {\n %2: bf16[3,4] = cast %0\n %3: bf16[5,4] = cast %1\n %4: bf16[4,5] = transpose %3 {axes=[1,0]}\n"
        " %5: f32[3,5] = matmul %2, %4\n %6: bf16[2,4] = slice %3 {start=[1,0]}\n %7: bf16[4,2] = transpose %6 {axes=[1,0]}\n"
        " %8: f32[3,2] = matmul %2, %7\n %9: f32[] = reduce_sum %5 {axes=[0,1]}\n %10: f32[] = reduce_sum %8 {axes=[0,1]}\n"
        " %11: f32[] = add %9, %10\n return %11\n}\n", &params, &d);
    bool needs_f32 = false;
    for (int j = 0; j < 5; j++)
        for (int c = 0; c < 4; c++) {
            double sum = 0;
            for (int i = 0; i < 3; i++)
                sum += (double)ir_bf16_to_f32(ir_f32_to_bf16((float)get(&params[0], i * 4 + c))) * (j == 1 || j == 2 ? 2 : 1);
            assert_near(get(&dx[1], j * 4 + c), sum, 1e-6, "dw[%d,%d]\n", j, c);
            needs_f32 |= fabs(ir_bf16_to_f32(ir_f32_to_bf16((float)sum)) - sum) > 1e-4;
        }
    assert_true(needs_f32);
    assert_int_equal(dx[1].type.dtype, IR_F32);
}

/* The same for a weight that is a constant of a scan: the sum over iterations is f32. */
static void mixed_precision_in_scan(void **state)
{
    (void)state;
    dice d = { 6 };
    ir_array *params, *dx = gradients_of(
        "graph t(%0: f32[16,2,3], %1: f32[3,2]) {\n %2: bf16[3,2] = cast %1\n %3: f32[] = constant {value=0}\n"
        " %4: (f32[]) = scan %3, %0, %2 {count=16, carry=1, xs=1, reverse=false} graph b(%0: f32[], %1: f32[2,3], %2: bf16[3,2]) {\n"
        "  %3: bf16[2,3] = cast %1\n  %4: f32[2,2] = matmul %3, %2\n  %5: f32[] = reduce_sum %4 {axes=[0,1]}\n  %6: f32[] = add %0, %5\n"
        "  return %6\n }\n"
        " %5: f32[] = result %4 {index=0}\n return %5\n}\n", &params, &d);
    for (int c = 0; c < 3; c++) {
        double sum = 0;
        for (int i = 0; i < 32; i++)
            sum += ir_bf16_to_f32(ir_f32_to_bf16((float)get(&params[0], i * 3 + c)));
        assert_near(get(&dx[1], c * 2), sum, 1e-6, "dw[%d]\n", c);
    }
}

/* Dropout drops the same weights in the backward pass: with v = 1 and dout = 1, out counts the weights that are kept, and so do the
 * columns of dv. */
static void masks_are_the_same_backwards(void **state)
{
    (void)state;
    ir_graph *graph = graph_of(
        "graph t(%0: f64[1,2,8,4], %1: f64[1,2,8,4], %2: f64[1,2,8,4]) {\n %3: i32[2] = literal {data=[11,12]}\n %4: i32[] = constant {value=3}\n"
        " %5: (f64[1,2,8,4], f64[1,2,8]) = attention %0, %1, %2, %3, %4 {causal=true, scale=1, dropout=0.5, site=9}\n"
        " %6: f64[1,2,8,4] = result %5 {index=0}\n %7: f64[] = reduce_sum %6 {axes=[0,1,2,3]}\n return %7\n}\n");
    ir_node *dv, *results[2];
    ir_gradient(graph, graph->results[0], 1, &graph->params[2], &dv);
    results[0] = graph->results[0]->args[0];
    results[1] = dv;
    ir_set_results(graph, 2, results, NULL);
    ir_array *params = arrays_for_params(graph);
    dice d = { 3 };
    for (int i = 0; i < 2; i++)
        fill(&params[i], &d, -1, 1);
    for (int64_t i = 0; i < ir_type_count(&params[2].type); i++)
        put(&params[2], i, 1);
    ir_array *out = run_graph(graph, params);
    double forward = 0, backward = 0;
    for (int64_t i = 0; i < ir_type_count(&out[0].type); i++) {
        forward += get(&out[0], i);
        backward += get(&out[1], i);
    }
    assert_near(forward, backward, 1e-12, "kept weights\n");
    assert_true(fabs(forward - 2 * 8 * 4) > 1e-3);              /* something was dropped */
}

/* A third derivative, for good measure: of sin it is -cos. */
static void third_derivative(void **state)
{
    (void)state;
    ir_graph *graph = graph_of("graph t(%0: f64[]) {\n %1: f64[] = sin %0\n return %1\n}\n");
    ir_node *y = graph->results[0];
    for (int i = 0; i < 3; i++)
        ir_gradient(graph, y, 1, graph->params, &y);
    ir_set_results(graph, 1, &y, NULL);
    double x = 0.3;
    ir_array *dx = run_graph(graph, &(ir_array){ ir_scalar(IR_F64), &x });
    assert_near(get(&dx[0], 0), -cos(0.3), 1e-15, "sin'''\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op_with_a_rule_has_a_case),
        GRAPH_TEST(elementwise), GRAPH_TEST(reductions), GRAPH_TEST(contraction), GRAPH_TEST(movement), GRAPH_TEST(indexing),
        GRAPH_TEST(control), GRAPH_TEST(composites),
        GRAPH_TEST(ties_share), GRAPH_TEST(abs_and_pow_at_zero), GRAPH_TEST(nothing_flows_where_nothing_should),
        GRAPH_TEST(custom_gradient_replaces), GRAPH_TEST(wrt_may_depend_on_each_other), GRAPH_TEST(mixed_precision_keeps_digits),
        GRAPH_TEST(mixed_precision_in_scan), GRAPH_TEST(masks_are_the_same_backwards), GRAPH_TEST(third_derivative),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
