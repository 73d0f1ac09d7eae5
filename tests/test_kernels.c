/* Kernel lists against the interpreter: whatever a graph computes, its kernel list computes too, with memory reused and without, and with
 * NaN wherever nothing is meant to be. Every list is verified, printed, parsed, and printed again. A failure prints the graph and the kernels.
 * What lists look like: test_kernel_text.c. */
#include "tests/kernel_lists.h"

static void check_source(const char *text)
{
    forget();
    check_kernels(graph_of(text), (settings){0});
}

/* -- graphs made here --------------------------------------------------------------------------------------------------- */

static ir_graph *new_graph(void)
{
    forget();
    return keep(ir_graph_new("f"));
}

#define DIMS(...) (int)COUNT_OF(((int64_t[]){ __VA_ARGS__ })), (int64_t[]){ __VA_ARGS__ }
static ir_node *param(ir_graph *graph, ir_dtype dtype, int rank, const int64_t *dim) { return ir_parameter(graph, ir_type_of(dtype, rank, dim), NULL); }

#define RESULTS(graph, ...) ir_set_results(graph, (int)COUNT_OF(((ir_node *[]){ __VA_ARGS__ })), (ir_node *[]){ __VA_ARGS__ }, NULL)
#define ADD(graph, op, attr, ...) ir_add(graph, op, (int)COUNT_OF(((ir_node *[]){ __VA_ARGS__ })), (ir_node *[]){ __VA_ARGS__ }, attr, NULL)

static ir_node *sum_of(ir_graph *graph, ir_node *x)
{
    int axes[IR_MAX_RANK];
    for (int i = 0; i < x->type.rank; i++)
        axes[i] = i;
    return ir_reduce(graph, OP_reduce_sum, x, x->type.rank, axes);
}

/* The results stay, and the gradients of their sum, weighted by parameters, for every float parameter join them. */
static ir_graph *with_gradients(ir_graph *graph)
{
    ir_node *wrt[64], *all[128], *loss = NULL;
    int n = 0, n_results = graph->n_results;
    for (int i = 0; i < graph->n_params; i++)
        if (ir_dtype_is_float(graph->params[i]->type.dtype))
            wrt[n++] = graph->params[i];
    for (int i = 0; i < n_results; i++) {
        ir_node *y = all[i] = graph->results[i];
        if (!ir_dtype_is_float(y->type.dtype))
            continue;
        ir_node *weighted = ir_binary(graph, OP_mul, y, ir_parameter(graph, y->type, NULL));
        ir_node *sum = ir_cast(graph, sum_of(graph, weighted), n ? wrt[0]->type.dtype : IR_F32);
        loss = loss ? ir_binary(graph, OP_add, loss, sum) : sum;
    }
    ir_gradient(graph, loss, n, wrt, all + n_results);
    ir_set_results(graph, n_results + n, all, NULL);
    return graph;
}

static void check(ir_graph *graph) { check_kernels(graph, (settings){0}); }

/* -- ops one by one ----------------------------------------------------------------------------------------------------- */

static void test_elementwise(void **state)
{
    static const int64_t shapes[][4] = { { 0 }, { 1, 1 }, { 1, 37 }, { 2, 3, 5 }, { 3, 2, 1, 7 }, { 1, 0 }, { 2, 4, 0 } };
    (void)state;
    for (int op = 0; op < IR_OPS; op++)
        for (int dtype = 0; dtype < IR_DTYPES; dtype++)
            for (size_t s = 0; s < COUNT_OF(shapes); s++) {
                ir_node *args[3];
                ir_type type, *tuple;
                int n_tuple, n = ir_op_table[op].arity;
                base_text why = {0};
                if (ir_op_table[op].class != IR_ELEMENTWISE || op == OP_cast)
                    continue;
                ir_graph *graph = new_graph();
                for (int i = 0; i < n; i++)
                    args[i] = param(graph, op == OP_select && i == 0 ? IR_BOOL : (ir_dtype)dtype, (int)shapes[s][0], shapes[s] + 1);
                bool fits = ir_infer(graph, (ir_op)op, n, args, NULL, NULL, &type, &n_tuple, &tuple, &why);
                base_text_free(&why);
                if (!fits)
                    continue;
                RESULTS(graph, ir_add(graph, (ir_op)op, n, args, NULL, NULL));
                check_kernels(graph, (settings){ .lo = op == OP_erf_inv ? -0.9 : 0.1, .hi = op == OP_erf_inv ? 0.9 : 2 });
            }
}

static void test_casts(void **state)
{
    (void)state;
    for (int from = 0; from < IR_DTYPES; from++)
        for (int to = 0; to < IR_DTYPES; to++) {
            ir_graph *graph = new_graph();
            ir_node *x = param(graph, (ir_dtype)from, DIMS(3, 11));
            RESULTS(graph, ir_cast(graph, x, (ir_dtype)to), ir_cast(graph, ir_cast(graph, x, (ir_dtype)to), IR_F32));
            check_kernels(graph, (settings){ .lo = -3, .hi = 3 });
        }
}

static void test_reductions(void **state)
{
    static const int64_t shapes[][6] = { { 1, 5 }, { 2, 3, 7 }, { 3, 3, 4, 5 }, { 4, 2, 3, 4, 5 }, { 4, 1, 7, 1, 3 }, { 2, 1, 1 }, { 3, 5, 1, 2 }, { 2, 0, 3 }, { 2, 3, 0 } };
    static const ir_dtype dtypes[] = { IR_F32, IR_F64, IR_BF16, IR_I32 };
    (void)state;
    for (size_t s = 0; s < COUNT_OF(shapes); s++)
        for (size_t d = 0; d < COUNT_OF(dtypes); d++)
            for (int subset = 1; subset < 1 << shapes[s][0]; subset++) {
                int axes[IR_MAX_RANK], n = 0, rank = (int)shapes[s][0];
                for (int i = 0; i < rank; i++)
                    if (subset >> i & 1)
                        axes[n++] = i;
                ir_graph *graph = new_graph();
                ir_node *x = param(graph, dtypes[d], rank, shapes[s] + 1);
                ir_node *sum = ir_reduce(graph, OP_reduce_sum, x, n, axes), *max = ir_reduce(graph, OP_reduce_max, x, n, axes);
                ir_node *centred = ir_binary(graph, OP_sub, x, ir_broadcast_back(graph, max, x->type, n, axes));
                if (n == 1 && x->type.dim[axes[0]] > 0)
                    RESULTS(graph, sum, max, centred, ADD(graph, OP_argmax, (&(ir_attr){ .axis = axes[0] }), x));
                else
                    RESULTS(graph, sum, max, centred);
                check(graph);
            }
}

static void test_sums_of_what_repeats(void **state)
{
    (void)state;
    for (int axis = 0; axis < 3; axis++)
        for (int subset = 1; subset < 8; subset++) {
            ir_graph *graph = new_graph();
            int axes[3], n = 0, at[2], m = 0;
            int64_t dim[] = { 3, 4, 5 }, some[2];
            for (int i = 0; i < 3; i++) {
                if (subset >> i & 1)
                    axes[n++] = i;
                if (i != axis)
                    some[m] = dim[i], at[m++] = i;
            }
            ir_node *x = param(graph, IR_F32, 2, some), *big = ir_broadcast(graph, x, ir_type_of(IR_F32, 3, dim), at);
            ir_node *sine = ir_broadcast(graph, ir_unary(graph, OP_sin, x), big->type, at);
            ir_node *ones = ir_constant_like(graph, big, 1);
            RESULTS(graph, ir_reduce(graph, OP_reduce_sum, big, n, axes), ir_reduce(graph, OP_reduce_sum, sine, n, axes),
                    ir_reduce(graph, OP_reduce_sum, ir_binary(graph, OP_mul, sine, big), n, axes), ir_reduce(graph, OP_reduce_sum, ones, n, axes));
            check(graph);
        }
}

static void test_movement(void **state)
{
    static const char *const texts[] = {
        "graph f(%0: f32[2,3,4]) { %1: f32[4,2,3] = transpose %0 {axes=[2,0,1]} %2: f32[8,3] = reshape %1 %3: f32[8,3] = exp %2 return %3, %2, %1 }",
        "graph f(%0: f32[6,4]) { %1: f32[2,3,4] = reshape %0 %2: f32[3,2,4] = transpose %1 {axes=[1,0,2]} %3: f32[24] = reshape %2 %4: f32[24] = neg %3 return %4 }",
        "graph f(%0: f32[5,7]) { %1: f32[3,4] = slice %0 {start=[1,2]} %2: f32[4,3] = transpose %1 {axes=[1,0]} %3: f32[4,3] = mul %2, %2 return %3, %1 }",
        "graph f(%0: f32[5,7]) { %1: f32[9,8] = pad %0 {start=[2,1], value=0.5} %2: f32[9,8] = exp %1 return %2, %1 }",
        "graph f(%0: f32[5,0]) { %1: f32[5,3] = pad %0 {start=[0,1], value=0.5} return %1 }",
        "graph f(%0: f32[3,2], %1: f32[3,5], %2: f32[3,1]) { %3: f32[3,8] = concatenate %0, %1, %2 {axis=1} %4: f32[3,5] = sin %1"
        " %5: f32[3,7] = concatenate %4, %0 {axis=1} return %3, %5 }",
        "graph f(%0: f32[3,2]) { %1: f32[3,2] = exp %0 %2: f32[3,2] = sin %0 %3: f32[6,2] = concatenate %1, %2 {axis=0} %4: f32[6,2] = neg %3 return %3, %4, %1 }",
        "graph f(%0: f32[3,2]) { %1: f32[3,2] = exp %0 %2: f32[6,2] = concatenate %1, %1 {axis=0} return %2 }",
        "graph f(%0: f32[3,2]) { %1: f32[3,2] = exp %0 %2: f32[2,3] = transpose %1 {axes=[1,0]} %3: f32[4,3] = concatenate %2, %2 {axis=0} return %3 }",
        "graph f(%0: f32[1,3], %1: f32[2,1]) { %2: f32[2,3] = broadcast %0 {axes=[0,1]} %3: f32[2,3] = broadcast %1 {axes=[0,1]} %4: f32[2,3] = add %2, %3 return %4, %2 }",
        "graph f(%0: f32[]) { %1: f32[2,3] = broadcast %0 {axes=[]} %2: f32[6] = reshape %1 return %1, %2 }",
        "graph f(%0: f32[12]) { %1: f32[3,4] = reshape %0 %2: f32[4,3] = transpose %1 {axes=[1,0]} %3: f32[2,6] = reshape %2"
        " %4: f32[6,2] = transpose %3 {axes=[1,0]} %5: f32[12] = reshape %4 %6: f32[12] = add %5, %0 return %6 }",
        "graph f(%0: f32[8]) { %1: f32[6] = slice %0 {start=[1]} %2: f32[2,3] = reshape %1 %3: f32[3,2] = transpose %2 {axes=[1,0]} %4: f32[3,2] = exp %3 return %4 }",
        "graph f() { %0: i32[3,4] = iota {axis=0} %1: i32[3,4] = iota {axis=1} %2: i32[3,4] = mul %0, %1 %3: f32[12] = constant {value=2.5}"
        " %4: bf16[4] = iota {axis=0} return %0, %2, %3, %4 }",
        "graph f() { %0: f32[3] = literal {data=[1,nan,-3]} %1: f32[2,3] = broadcast %0 {axes=[1]} %2: i32[0] = literal {data=[]} return %0, %1, %2 }",
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(texts); i++)
        check_source(texts[i]);
}

static void test_indexing(void **state)
{
    static const char *const texts[] = {
        "graph f(%0: f32[7,5], %1: i32[4]) { %2: f32[4,5] = gather %0, %1 {axis=0} return %2 }",
        "graph f(%0: f32[7,5], %1: i32[2,3]) { %2: f32[7,2,3] = gather %0, %1 {axis=1} %3: f32[7,2,3] = exp %2 return %3, %2 }",
        "graph f(%0: f32[7,5], %1: i32[]) { %2: f32[5] = gather %0, %1 {axis=0} %3: f32[7] = gather %0, %1 {axis=1} return %2, %3 }",
        "graph f(%0: f32[7,5], %1: i32[4]) { %2: f32[7,5] = sin %0 %3: f32[4,5] = gather %2, %1 {axis=0} %4: f32[20] = reshape %3 return %4 }",
        "graph f(%0: f32[7,5], %1: i32[4], %2: i32[3]) { %3: f32[4,5] = gather %0, %1 {axis=0} %4: f32[4,3] = gather %3, %2 {axis=1} %5: f32[4,3] = neg %4 return %5 }",
        "graph f(%0: i32[9], %1: i32[4]) { %2: i32[4] = gather %0, %1 {axis=0} %3: i32[4] = gather %0, %2 {axis=0} return %3 }",
        "graph f(%0: f32[7,5], %1: i32[4], %2: f32[4,5]) { %3: f32[7,5] = scatter_add %0, %1, %2 {axis=0} return %3 }",
        "graph f(%0: f32[7,5], %1: i32[2,2], %2: f32[7,2,2]) { %3: f32[7,5] = scatter_add %0, %1, %2 {axis=1} %4: f32[7,5] = exp %3 return %3, %4 }",
        "graph f(%0: i32[7,5], %1: i32[4], %2: i32[4,5]) { %3: i32[7,5] = scatter_add %0, %1, %2 {axis=0} return %3 -> %0 }",
        "graph f(%1: i32[4], %2: bf16[4,5]) { %0: bf16[7,5] = constant {value=0} %4: bf16[4,5] = exp %2 %3: bf16[7,5] = scatter_add %0, %1, %4 {axis=0} return %3 }",
        "graph f(%0: f32[7,5], %1: i32[], %2: i32[]) { %3: f32[3,2] = dynamic_slice %0, %1, %2 return %3 }",
        "graph f(%0: f32[7,5], %1: i32[], %2: i32[]) { %3: f32[7,2] = dynamic_slice %0, %1, %2 %4: f32[2,7] = transpose %3 {axes=[1,0]}"
        " %5: f32[14] = reshape %4 %6: f32[14] = sin %5 return %6 }",
        "graph f(%0: f32[7,5], %1: i32[], %2: i32[]) { %3: f32[4,5] = dynamic_slice %0, %1, %2 %4: f32[2,3] = dynamic_slice %3, %2, %1"
        " %5: f32[3] = reduce_sum %4 {axes=[0]} return %5 }",
        "graph f(%0: f32[7,5], %1: f32[2,3], %2: i32[], %3: i32[]) { %4: f32[7,5] = update_slice %0, %1, %2, %3 return %4 }",
        "graph f(%0: f32[7,5], %1: f32[2,3], %2: i32[], %3: i32[]) { %4: f32[7,5] = update_slice %0, %1, %2, %3 return %4 -> %0 }",
        "graph f(%0: f32[7,5], %1: f32[2,3], %2: i32[], %3: i32[]) { %5: f32[2,3] = exp %1 %4: f32[7,5] = update_slice %0, %5, %2, %3"
        " %6: f32[5] = reduce_sum %4 {axes=[0]} %7: f32[5] = reduce_sum %0 {axes=[0]} return %4 -> %0, %6, %7 }",
        "graph f(%0: f32[7,5], %1: f32[7,5], %2: i32[], %3: i32[]) { %4: f32[7,5] = update_slice %0, %1, %2, %3 return %4 }",
        "graph f(%0: f32[6], %2: i32[]) { %1: f32[3] = slice %0 {start=[2]} %4: f32[6] = update_slice %0, %1, %2 return %4 -> %0 }",
        "graph f(%0: f32[6], %2: i32[]) { %1: f32[4] = dynamic_slice %0, %2 %5: i32[] = neg %2 %4: f32[6] = update_slice %0, %1, %5 return %4 -> %0 }",
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(texts); i++)
        check_source(texts[i]);
}

static void test_matmul(void **state)
{
    static const char *const texts[] = {
        "graph f(%0: f32[3,4], %1: f32[4,5]) { %2: f32[3,5] = matmul %0, %1 return %2 }",
        "graph f(%0: f32[4,3], %1: f32[5,4]) { %2: f32[3,4] = transpose %0 {axes=[1,0]} %3: f32[4,5] = transpose %1 {axes=[1,0]}"
        " %4: f32[3,5] = matmul %2, %3 %5: f32[3,5] = exp %4 return %5 }",
        "graph f(%0: bf16[2,3,4], %1: bf16[2,4,5]) { %2: bf16[2,3,5] = matmul %0, %1 %3: f32[2,3,5] = matmul %0, %1 return %2, %3 }",
        "graph f(%0: f64[3,4], %1: f64[4]) { %2: f64[4,1] = reshape %1 %3: f64[3,1] = matmul %0, %2 %4: f64[3] = reshape %3 return %4 }",
        "graph f(%0: f32[3,0], %1: f32[0,5], %4: f32[0,3]) { %2: f32[3,5] = matmul %0, %1 %3: f32[0,0] = matmul %4, %0 return %2, %3 }",
        "graph f(%0: f32[3,4], %1: f32[4,5], %2: f32[3,5]) { %3: f32[3,5] = matmul %0, %1 %4: f32[3,5] = add %3, %2 return %4 -> %2 }",
        "graph f(%0: f32[4], %1: f32[4,5]) { %2: f32[3,4] = broadcast %0 {axes=[1]} %3: f32[3,5] = matmul %2, %1 return %3 }",
        "graph f(%1: f32[4,5]) { %2: f32[3,4] = constant {value=0.5} %3: f32[3,5] = matmul %2, %1 return %3 }",
        "graph f(%0: f32[2,6,4], %1: f32[4,9]) { %2: f32[12,4] = reshape %0 %3: f32[12,9] = matmul %2, %1 %4: f32[2,6,9] = reshape %3"
        " %5: f32[2,6,3] = slice %4 {start=[0,0,0]} %6: f32[2,6,3] = slice %4 {start=[0,0,3]} %7: f32[2,3,6] = transpose %6 {axes=[0,2,1]}"
        " %8: f32[2,6,6] = matmul %5, %7 return %8 }",
        "graph f(%0: f32[6,4], %1: f32[4,9]) { %2: f32[4,6] = reshape %0 %3: f32[6,4] = transpose %2 {axes=[1,0]} %4: f32[8,3] = reshape %3"
        " %5: f32[3,8] = transpose %4 {axes=[1,0]} %6: f32[6,4] = reshape %5 %7: f32[6,9] = matmul %6, %1 return %7 }",
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(texts); i++)
        check_source(texts[i]);
}

/* -- composites --------------------------------------------------------------------------------------------------------- */

static void test_norms(void **state)
{
    static const int64_t shapes[][4] = { { 2, 3, 8 }, { 3, 2, 3, 7 }, { 1, 5 }, { 3, 1, 1, 4 }, { 2, 6, 1 } };
    (void)state;
    for (size_t s = 0; s < COUNT_OF(shapes); s++)
        for (int what = 0; what < 6; what++)
            for (ir_dtype dtype = IR_F32; dtype <= IR_BF16; dtype++) {
                ir_graph *graph = new_graph();
                int rank = (int)shapes[s][0];
                ir_node *x = param(graph, dtype, rank, shapes[s] + 1), *y = NULL;
                ir_attr attr = { .epsilon = 1e-5, .axis = what == 4 ? 0 : rank - 1 };
                ir_node *w = what < 3 ? param(graph, dtype, 1, &shapes[s][rank]) : NULL, *b = what == 1 ? param(graph, dtype, 1, &shapes[s][rank]) : NULL;
                switch (what) {
                case 0: y = ADD(graph, OP_layer_norm, &attr, x, w); break;
                case 1: y = ADD(graph, OP_layer_norm, &attr, x, w, b); break;
                case 2: y = ADD(graph, OP_rms_norm, &attr, x, w); break;
                case 3: case 4: y = ADD(graph, OP_softmax, &attr, x); break;
                case 5: y = ADD(graph, OP_log_softmax, &attr, x); break;
                }
                RESULTS(graph, y, ir_unary(graph, OP_neg, y));
                check_kernels(graph, (settings){ .tolerance = 1e-4 });
                if (dtype != IR_BF16 && shapes[s][rank] > 1)
                    check_kernels(with_gradients(graph), (settings){ .tolerance = 1e-4 });
            }
}

static void test_activations(void **state)
{
    static const ir_op ops[] = { OP_gelu, OP_silu };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(ops); i++) {
        ir_graph *graph = new_graph();
        ir_node *x = param(graph, IR_F32, DIMS(6, 4)), *w = param(graph, IR_F32, DIMS(4, 9)), *b = param(graph, IR_F32, DIMS(9));
        ir_node *h = ir_binary(graph, OP_add, ir_matmul(graph, x, w, IR_F32), ir_broadcast(graph, b, ir_type_of(IR_F32, DIMS(6, 9)), (int[]){ 1 }));
        RESULTS(graph, ir_unary(graph, ops[i], h));
        check_kernels(graph, (settings){ .tolerance = 1e-4 });
        check_kernels(with_gradients(graph), (settings){ .tolerance = 1e-4 });
    }
}

static void test_losses(void **state)
{
    (void)state;
    for (int rank = 1; rank <= 3; rank++) {
        ir_graph *graph = new_graph();
        int64_t dim[] = { 3, 4, 11 };
        ir_node *logits = param(graph, IR_F32, rank, dim + 3 - rank), *targets = param(graph, IR_I32, rank - 1, dim + 3 - rank);
        ir_node *loss = ADD(graph, OP_cross_entropy, NULL, logits, targets);
        RESULTS(graph, loss, sum_of(graph, loss));
        check_kernels(graph, (settings){ .tolerance = 1e-4 });
        check_kernels(with_gradients(graph), (settings){ .tolerance = 1e-4 });
    }
    /* The loss in chunks of 16 rows, with rows left over. */
    int64_t usual = ir_logits_bytes, wide = 97;
    ir_logits_bytes = 18 * 4 * wide;
    for (int rows = 31; rows <= 37; rows += 3) {
        ir_graph *graph = new_graph();
        ir_node *x = param(graph, IR_F32, DIMS(rows, 3)), *w = param(graph, IR_F32, DIMS(wide, 3)), *t = param(graph, IR_I32, DIMS(rows));
        ir_node *loss = ADD(graph, OP_linear_cross_entropy, NULL, x, w, t);
        RESULTS(graph, loss, sum_of(graph, loss));
        check_kernels(with_gradients(graph), (settings){ .tolerance = 1e-4 });
    }
    ir_logits_bytes = usual;
    for (int rows = 1; rows < 9; rows += 7) {
        ir_graph *graph = new_graph();
        ir_node *x = param(graph, IR_F32, DIMS(rows, 3)), *w = param(graph, IR_F32, DIMS(7, 3)), *t = param(graph, IR_I32, DIMS(rows));
        ir_node *loss = ADD(graph, OP_linear_cross_entropy, NULL, x, w, t);
        RESULTS(graph, sum_of(graph, loss));
        check_kernels(with_gradients(graph), (settings){ .tolerance = 1e-4 });
    }
}

/* x[B,T,C] w[C,3C], in heads, through attention, and back to [B,T,C]. */
static ir_node *attended(ir_graph *graph, ir_node *x, ir_node *w, int heads, const ir_attr *attr, ir_node *seed, ir_node *counter)
{
    int64_t b = x->type.dim[0], t = x->type.dim[1], c = x->type.dim[2], d = c / heads;
    ir_dtype dtype = x->type.dtype;
    ir_node *flat = ir_reshape(graph, x, ir_type_of(dtype, DIMS(b * t, c)));
    ir_node *qkv = ir_reshape(graph, ir_matmul(graph, flat, w, dtype), ir_type_of(dtype, DIMS(b, t, 3 * c))), *args[5];
    for (int i = 0; i < 3; i++) {
        ir_node *part = ir_slice(graph, qkv, (int64_t[]){ 0, 0, i * c }, ir_type_of(dtype, DIMS(b, t, c)));
        part = ir_reshape(graph, part, ir_type_of(dtype, DIMS(b, t, heads, d)));
        args[i] = ir_transpose(graph, part, (int[]){ 0, 2, 1, 3 });
    }
    args[3] = seed;
    args[4] = counter;
    ir_node *out = ir_result(graph, ir_add(graph, OP_attention, attr->dropout > 0 ? 5 : 3, args, attr, NULL), 0);
    return ir_reshape(graph, ir_transpose(graph, out, (int[]){ 0, 2, 1, 3 }), ir_type_of(dtype, DIMS(b, t, c)));
}

static void test_attention(void **state)
{
    static const struct { int64_t b, t, c; int heads; bool causal; double dropout; ir_dtype dtype; } cases[] = {
        { 2, 5, 6, 2, true, 0, IR_F32 }, { 1, 1, 4, 1, true, 0, IR_F32 }, { 2, 4, 9, 3, false, 0.3, IR_F32 }, { 3, 7, 4, 1, true, 0.5, IR_F32 },
        { 1, 3, 8, 2, true, 0, IR_F64 }, { 2, 5, 6, 2, true, 0.1, IR_BF16 } };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        for (int kept = 0; kept < 2; kept++) {
            ir_graph *graph = new_graph();
            ir_dtype dtype = cases[i].dtype;
            int64_t c = cases[i].c;
            ir_node *x = param(graph, dtype, DIMS(cases[i].b, cases[i].t, c)), *w = param(graph, dtype, DIMS(c, 3 * c)), *v = param(graph, dtype, DIMS(c, c));
            ir_node *seed = param(graph, IR_I32, DIMS(2)), *counter = ir_parameter(graph, ir_scalar(IR_I32), NULL);
            ir_attr attr = { .causal = cases[i].causal, .scale = 0.4, .dropout = cases[i].dropout, .site = 3 };
            ir_node *y = attended(graph, x, w, cases[i].heads, &attr, seed, counter);
            y = ir_matmul(graph, ir_reshape(graph, y, ir_type_of(dtype, DIMS(cases[i].b * cases[i].t, c))), v, dtype);
            RESULTS(graph, y);
            settings s = { .keep_attention = kept, .tolerance = 1e-4 };
            check_kernels(graph, s);
            check_kernels(with_gradients(graph), s);
        }
}

static void test_random(void **state)
{
    (void)state;
    for (int op = 0; op < IR_OPS; op++)
        for (int rank = 0; rank < 4; rank++) {
            if (op != OP_random_bits && op != OP_random_uniform && op != OP_random_normal && op != OP_bernoulli)
                continue;
            ir_graph *graph = new_graph();
            int64_t dim[] = { 3, 5, 7 };
            ir_node *args[] = { param(graph, IR_I32, DIMS(2)), ir_parameter(graph, ir_scalar(IR_I32), NULL) };
            ir_type type = ir_type_of(op == OP_random_bits ? IR_I32 : op == OP_bernoulli ? IR_BOOL : IR_F32, rank, dim);
            ir_node *x = ir_add(graph, (ir_op)op, 2, args, &(ir_attr){ .site = 7, .value = 0.3 }, &type);
            ir_node *again = rank == 3 ? ir_transpose(graph, x, (int[]){ 2, 0, 1 }) : x;
            RESULTS(graph, x, ir_cast(graph, again, IR_F32));
            check(graph);
        }
}

static void test_adamw(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = { { 1, 7 }, { 2, 3, 5 }, { 0 } };
    ir_graph *graph = new_graph();
    ir_node *args[11], *results[9];
    for (int i = 4; i < 11; i++)
        args[i] = ir_parameter(graph, ir_scalar(IR_F32), NULL);
    for (int p = 0; p < 3; p++) {
        for (int i = 0; i < 4; i++)
            args[i] = param(graph, IR_F32, (int)shapes[p][0], shapes[p] + 1);
        ir_node *update = ir_add(graph, OP_adamw, 11, args, NULL, NULL);
        for (int i = 0; i < 3; i++)
            results[3 * p + i] = ir_result(graph, update, i);
    }
    ir_set_results(graph, 9, results, NULL);
    for (int p = 0; p < 3; p++)
        for (int i = 0; i < 3; i++)
            graph->donated[3 * p + i] = 7 + 4 * p + i;
    check_kernels(graph, (settings){ .lo = 0.1, .hi = 0.9 });
}

/* -- scan --------------------------------------------------------------------------------------------------------------- */

static const char *const scans[] = {
    /* a running sum, its steps stacked */
    "graph f(%0: f32[3], %1: f32[5,3]) { %2: (f32[3], f32[5,3]) = scan %0, %1 {count=5, carry=1, xs=1} graph b(%0: f32[3], %1: f32[3]) {"
    " %2: f32[3] = add %0, %1 %3: f32[3] = sin %2 return %2, %3 } %3: f32[3] = result %2 {index=0} %4: f32[5,3] = result %2 {index=1} return %3, %4 }",
    /* the same backwards, and the carry stacked before it is added to */
    "graph f(%0: f32[3], %1: f32[5,3]) { %2: (f32[3], f32[5,3]) = scan %0, %1 {count=5, carry=1, xs=1, reverse=true} graph b(%0: f32[3], %1: f32[3]) {"
    " %2: f32[3] = add %0, %1 return %2, %0 } %3: f32[3] = result %2 {index=0} %4: f32[5,3] = result %2 {index=1} return %3, %4 }",
    /* carries that swap */
    "graph f(%0: f32[3], %1: f32[3]) { %2: (f32[3], f32[3]) = scan %0, %1 {count=4, carry=2} graph b(%0: f32[3], %1: f32[3]) { return %1, %0 }"
    " %3: f32[3] = result %2 {index=0} %4: f32[3] = result %2 {index=1} return %3, %4 }",
    /* Fibonacci */
    "graph f(%0: f32[2], %1: f32[2]) { %2: (f32[2], f32[2], f32[6,2]) = scan %0, %1 {count=6, carry=2} graph b(%0: f32[2], %1: f32[2]) {"
    " %2: f32[2] = add %0, %1 return %1, %2, %0 }"
    " %3: f32[2] = result %2 {index=0} %4: f32[2] = result %2 {index=1} %5: f32[6,2] = result %2 {index=2} return %3, %4, %5 }",
    /* a carry turned round */
    "graph f(%0: f32[3,3]) { %2: (f32[3,3], f32[5,3,3]) = scan %0 {count=5, carry=1} graph b(%0: f32[3,3]) { %1: f32[3,3] = transpose %0 {axes=[1,0]}"
    " %2: f32[3,3] = neg %1 return %2, %1 }"
    " %3: f32[3,3] = result %2 {index=0} %4: f32[5,3,3] = result %2 {index=1} return %3, %4 }",
    /* carries that are views of one another */
    "graph f(%0: f32[2,3], %1: f32[3,2]) { %2: (f32[2,3], f32[3,2]) = scan %0, %1 {count=3, carry=2} graph b(%0: f32[2,3], %1: f32[3,2]) {"
    " %2: f32[3,2] = transpose %0 {axes=[1,0]} %3: f32[2,3] = reshape %1 return %3, %2 }"
    " %3: f32[2,3] = result %2 {index=0} %4: f32[3,2] = result %2 {index=1} return %3, %4 }",
    /* constants, nobody reads the carry, nothing runs */
    "graph f(%0: f32[3], %1: f32[4,3], %5: f32[3]) { %2: (f32[3], f32[4,3]) = scan %0, %1, %5 {count=4, carry=1, xs=1} graph b(%0: f32[3], %1: f32[3], %2: f32[3]) {"
    " %3: f32[3] = add %0, %2 %4: f32[3] = mul %1, %3 return %3, %4 } %4: f32[4,3] = result %2 {index=1} return %4 }",
    "graph f(%0: f32[3], %1: f32[0,3]) { %2: (f32[3], f32[0,3]) = scan %0, %1 {count=0, carry=1, xs=1} graph b(%0: f32[3], %1: f32[3]) {"
    " %2: f32[3] = add %0, %1 return %2, %1 } %3: f32[3] = result %2 {index=0} %4: f32[0,3] = result %2 {index=1} return %3, %4 }",
    /* a carry that stays, one that becomes a constant, ys of a constant and of an operand */
    "graph f(%0: f32[3], %1: f32[3], %5: f32[3]) { %2: (f32[3], f32[3], f32[4], f32[4,3]) = scan %0, %1, %5 {count=4, carry=2} graph b(%0: f32[3], %1: f32[3], %2: f32[3]) {"
    " %3: f32[3] = constant {value=2} %4: f32[] = constant {value=3} return %0, %3, %4, %2 } %3: f32[3] = result %2 {index=0} %4: f32[3] = result %2 {index=1}"
    " %6: f32[4] = result %2 {index=2} %7: f32[4,3] = result %2 {index=3} return %3, %4, %6, %7 }",
    /* one slice of a matrix product a step, accumulated, then read by another scan */
    "graph f(%0: f32[4,3,2], %1: f32[2,5]) { %9: f32[3,5] = constant {value=0} %2: (f32[3,5], f32[4,3,5]) = scan %9, %0, %1 {count=4, carry=1, xs=1}"
    " graph b(%0: f32[3,5], %1: f32[3,2], %2: f32[2,5]) {"
    " %3: f32[3,5] = matmul %1, %2 %4: f32[3,5] = add %0, %3 %5: f32[3,5] = exp %3 return %4, %5 }"
    " %3: f32[3,5] = result %2 {index=0} %4: f32[4,3,5] = result %2 {index=1} %5: f32[5,4,3] = transpose %4 {axes=[2,0,1]} %8: f32[4,3] = constant {value=1}"
    " %6: (f32[4,3], f32[5,4]) = scan %8, %5 {count=5, carry=1, xs=1} graph b(%0: f32[4,3], %1: f32[4,3]) { %2: f32[4,3] = mul %0, %1"
    " %3: f32[4] = reduce_sum %2 {axes=[1]} return %2, %3 }"
    " %10: f32[4,3] = result %6 {index=0} %11: f32[5,4] = result %6 {index=1} return %3, %10, %11 }",
    /* nested: rows of rows */
    "graph f(%0: f32[], %1: f32[3,4]) { %2: (f32[], f32[3,4]) = scan %0, %1 {count=3, carry=1, xs=1} graph b(%0: f32[], %1: f32[4]) {"
    " %2: (f32[], f32[4]) = scan %0, %1 {count=4, carry=1, xs=1} graph c(%0: f32[], %1: f32[]) { %2: f32[] = add %0, %1 %3: f32[] = sin %2 return %2, %3 }"
    " %3: f32[] = result %2 {index=0} %4: f32[4] = result %2 {index=1} return %3, %4 } %3: f32[] = result %2 {index=0} %4: f32[3,4] = result %2 {index=1} return %3, %4 }",
    /* nested, with what the inner one makes of a temporary of the outer body; the inner one backwards */
    "graph f(%0: f32[4], %1: f32[3,5,4]) { %2: (f32[4], f32[3,5,4]) = scan %0, %1 {count=3, carry=1, xs=1} graph b(%0: f32[4], %1: f32[5,4]) {"
    " %5: f32[5,4] = exp %1 %6: f32[4] = neg %0 %2: (f32[4], f32[5,4]) = scan %6, %5, %0 {count=5, carry=1, xs=1, reverse=true} graph c(%0: f32[4], %1: f32[4], %2: f32[4]) {"
    " %3: f32[4] = mul %1, %2 %4: f32[4] = add %0, %3 return %4, %0 }"
    " %3: f32[4] = result %2 {index=0} %4: f32[5,4] = result %2 {index=1} %7: f32[5,4] = add %4, %1 return %3, %7 } %3: f32[4] = result %2 {index=0}"
    " %4: f32[3,5,4] = result %2 {index=1} return %3, %4 }",
    /* xs that is a view: every other axis of a transposed operand */
    "graph f(%0: f32[3], %1: f32[3,5]) { %9: f32[5,3] = transpose %1 {axes=[1,0]} %2: (f32[3], f32[5,3]) = scan %0, %9 {count=5, carry=1, xs=1} graph b(%0: f32[3], %1: f32[3]) {"
    " %2: f32[3] = mul %0, %1 return %2, %1 } %3: f32[3] = result %2 {index=0} %4: f32[5,3] = result %2 {index=1} return %3, %4 }",
    /* an integer carry that counts, slices taken at it, a buffer updated at it */
    "graph f(%0: f32[6,2], %1: i32[]) { %8: f32[6,2] = constant {value=0} %2: (i32[], f32[6,2]) = scan %1, %8, %0 {count=5, carry=2} graph b(%0: i32[],"
    " %1: f32[6,2], %2: f32[6,2]) {"
    " %3: i32[] = constant {value=1} %4: i32[] = constant {value=0} %5: f32[1,2] = dynamic_slice %2, %0, %4 %6: f32[1,2] = exp %5"
    " %7: f32[6,2] = update_slice %1, %6, %0, %4 %8: i32[] = add %0, %3 return %8, %7 }"
    " %3: i32[] = result %2 {index=0} %4: f32[6,2] = result %2 {index=1} return %3, %4 }",
    /* donated through: the carry begins as a parameter and ends as the result that has its memory */
    "graph f(%0: f32[3], %1: f32[5,3]) { %2: (f32[3]) = scan %0, %1 {count=5, carry=1, xs=1} graph b(%0: f32[3], %1: f32[3]) {"
    " %2: f32[3] = add %0, %1 return %2 } %3: f32[3] = result %2 {index=0} return %3 -> %0 }",
    /* two scans in a row over one accumulator */
    "graph f(%0: f32[3], %1: f32[5,3]) { %2: (f32[3]) = scan %0, %1 {count=5, carry=1, xs=1} graph b(%0: f32[3], %1: f32[3]) { %2: f32[3] = add %0, %1"
    " return %2 } %3: f32[3] = result %2 {index=0}"
    " %4: (f32[3], f32[5,3]) = scan %3, %1 {count=5, carry=1, xs=1} graph b(%0: f32[3], %1: f32[3]) { %2: f32[3] = mul %0, %1 return %2, %0 }"
    " %5: f32[3] = result %4 {index=0} %6: f32[5,3] = result %4 {index=1} return %5, %6, %3 }",
};

static void test_scan(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(scans); i++) {
        check_source(scans[i]);
        check(with_gradients(graph_of(scans[i])));
    }
}

/* -- results ------------------------------------------------------------------------------------------------------------ */

static void test_results(void **state)
{
    static const char *const texts[] = {
        "graph f(%0: f32[3]) { return %0 }",
        "graph f(%0: f32[3]) { return %0 -> %0 }",
        "graph f(%0: f32[3]) { return %0, %0 }",
        "graph f(%0: f32[3]) { %1: f32[3] = exp %0 return %1, %1, %0 }",
        "graph f(%0: f32[3], %1: f32[3]) { return %1 -> %0, %0 -> %1 }",
        "graph f(%0: f32[3], %1: f32[3]) { %2: f32[3] = add %0, %1 return %2 -> %0, %0 }",
        "graph f(%0: f32[3], %1: f32[3]) { %2: f32[3] = add %0, %1 %3: f32[3] = exp %0 return %2 -> %0, %3 }",
        "graph f(%0: f32[3], %1: f32[3]) { %2: f32[3] = add %0, %1 %3: f32[3] = sub %0, %1 return %2 -> %0, %3 -> %1 }",
        "graph f(%0: f32[3,3], %1: f32[3,3]) { %2: f32[3,3] = transpose %0 {axes=[1,0]} %3: f32[3,3] = add %2, %1 return %3 -> %0, %2 -> %1 }",
        "graph f(%0: f32[2,3]) { %1: f32[6] = reshape %0 %2: f32[6] = exp %1 %3: f32[2,3] = reshape %2 return %3 -> %0, %2 }",
        "graph f(%0: f32[3,3]) { %1: f32[3,3] = matmul %0, %0 %2: f32[3,3] = matmul %1, %0 return %2 -> %0, %1 }",
        "graph f(%0: f32[4,3], %1: f32[3]) { %2: f32[3] = reduce_sum %0 {axes=[0]} %3: f32[3] = add %2, %1 return %3 -> %1, %2 }",
        ("graph f(%0: f32[4,3], %1: f32[]) { %2: f32[] = reduce_sum %0 {axes=[0,1]} %3: f32[] = add %2, %1 %4: f32[4,3] = broadcast %3 {axes=[]}"
         " %5: f32[4,3] = mul %0, %4 return %5 -> %0, %3 -> %1 }"),
        "graph f(%0: f32[0]) { return %0 }",
        "graph f() { %0: f32[] = constant {value=1} return %0, %0 }",
        "graph f(%0: i32[3]) { %1: f32[3] = cast %0 return %1 -> %0 }",
        "graph f(%0: f32[2,3]) { %1: f32[3,2] = transpose %0 {axes=[1,0]} return %1 -> %0 }",
        "graph f() { return }",
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        ir_graph *graph = ir_parse("test", texts[i], strlen(texts[i]));      /* donation between shapes is for the verifier to refuse */
        if (!graph)
            continue;
        check(keep(graph));
    }
}

int main(void)
{
    base_bug_hook = current_text;
    const struct CMUnitTest tests[] = {
        GRAPH_TEST(test_elementwise), GRAPH_TEST(test_casts), GRAPH_TEST(test_reductions), GRAPH_TEST(test_sums_of_what_repeats),
        GRAPH_TEST(test_movement), GRAPH_TEST(test_indexing), GRAPH_TEST(test_matmul), GRAPH_TEST(test_norms), GRAPH_TEST(test_activations),
        GRAPH_TEST(test_losses), GRAPH_TEST(test_attention), GRAPH_TEST(test_random), GRAPH_TEST(test_adamw), GRAPH_TEST(test_scan),
        GRAPH_TEST(test_results),
    };
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
}
