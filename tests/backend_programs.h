/* Programs that the tests of every backend run: a few ops each, of the sorts that lowering treats differently; and how results are compared. */
#ifndef TESTS_BACKEND_PROGRAMS_H
#define TESTS_BACKEND_PROGRAMS_H

#include "tests/graphs.h"

#include <math.h>

static const char *const backend_programs[] = {
    "graph norm(%0: f32[5,33], %1: f32[33], %2: f32[33]) { %3: f32[5,33] = layer_norm %0, %1, %2 {epsilon=1e-5} %4: f32[5,33] = softmax %3 {axis=1}"
    " %5: f32[5,33] = log_softmax %0 {axis=0} return %3, %4, %5 }",
    "graph sums(%0: f32[7,6,19]) { %1: f32[6,19] = reduce_sum %0 {axes=[0]} %2: f32[7,19] = reduce_sum %0 {axes=[1]} %3: f32[7,6] = reduce_max %0 {axes=[2]}"
    " %4: f32[] = reduce_sum %0 {axes=[0,1,2]} %5: f32[6] = reduce_sum %0 {axes=[0,2]} %6: i32[7,19] = argmax %0 {axis=1} %7: f32[19] = reduce_max %0 {axes=[0,1]}"
    " return %1, %2, %3, %4, %5, %6, %7 }",
    "graph spread(%0: f32[3]) { %1: f32[3,4] = broadcast %0 {axes=[0]} %2: f32[3,4] = exp %1 %3: f32[] = reduce_sum %2 {axes=[0,1]} return %3, %2 }",
    "graph loss(%0: f32[9,65], %1: i32[9]) { %2: f32[9] = cross_entropy %0, %1 %3: f32[] = reduce_sum %2 {axes=[0]} return %3 }",
    "graph rows(%0: f32[11,20], %1: i32[2,4]) { %2: f32[2,4,20] = gather %0, %1 {axis=0} %3: f32[2,4,20] = tanh %2 %4: f32[11,2,4] = gather %0, %1 {axis=1} return %3, %4 }",
    "graph add_rows(%0: f32[6,8], %1: i32[9], %2: f32[9,8]) { %3: f32[6,8] = scatter_add %0, %1, %2 {axis=0} return %3 }",
    "graph pieces(%0: f32[4,10], %1: i32[], %2: i32[]) { %3: f32[2,7] = dynamic_slice %0, %1, %2 %4: f32[2,7] = exp %3 %5: f32[4,10] = update_slice %0, %4, %2, %1"
    " %6: f32[6,12] = pad %3 {start=[3,2], value=0.5} %7: f32[8,10] = concatenate %0, %5 {axis=0} return %5, %6, %7 }",
    "graph random(%0: i32[2], %1: i32[]) { %2: f32[5,13] = random_uniform %0, %1 {site=3} %3: bool[6,11] = bernoulli %0, %1 {value=0.3, site=4}"
    " %4: f32[21] = random_normal %0, %1 {site=5} %5: i32[130] = random_bits %0, %1 {site=6} return %2, %3, %4, %5 }",
    "graph moved(%0: f32[6,5,7]) { %1: f32[7,6,5] = transpose %0 {axes=[2,0,1]} %2: f32[7,30] = reshape %1 %3: f32[7,30] = gelu %2"
    " %4: f32[30] = reduce_sum %3 {axes=[0]} return %3, %4 }",
    "graph wide(%0: bf16[9,40], %1: bf16[40,17]) { %2: bf16[9,17] = matmul %0, %1 %3: f32[9,17] = matmul %0, %1 %4: bf16[9,17] = gelu %2 %5: f32[9,17] = cast %4"
    " %6: f32[9,17] = add %3, %5 return %2, %3, %4, %6 }",
    "graph halves(%0: f64[9,40], %1: f64[40,17]) { %2: f64[9,17] = matmul %0, %1 %3: f64[9,17] = softmax %2 {axis=1} %4: f64[17] = reduce_sum %3 {axes=[0]} return %2, %3, %4 }",
    "graph outer(%0: i32[300,5]) { %1: i32[5] = reduce_sum %0 {axes=[0]} %2: i32[300] = reduce_sum %0 {axes=[1]} %3: i32[] = reduce_sum %0 {axes=[0,1]} return %1, %2, %3 }",
    "graph steps(%0: f32[4,8], %1: f32[5,4,8], %2: f32[8,8]) { %3: (f32[4,8], f32[5,4,8]) = scan %0, %1, %2 {count=5, carry=1, xs=1, reverse=true}"
    " graph step(%0: f32[4,8], %1: f32[4,8], %2: f32[8,8]) { %3: f32[4,8] = matmul %0, %2 %4: f32[4,8] = add %3, %1 %5: f32[4,8] = tanh %4 return %5, %4 }"
    " %4: f32[4,8] = result %3 {index=0} %5: f32[5,4,8] = result %3 {index=1} return %4, %5 }",
    "graph update(%0: f32[40], %1: f32[40], %2: f32[]) { %3: f32[40] = mul %0, %1 %4: f32[] = reduce_sum %3 {axes=[0]} %5: f32[40] = broadcast %4 {axes=[]}"
    " %6: f32[40] = sub %0, %5 %7: f32[] = add %2, %4 return %6 -> %0, %7 -> %2 }",
    "graph nothing(%0: f32[0,4], %1: f32[3,0], %2: f32[0,5]) { %3: f32[4] = reduce_sum %0 {axes=[0]} %4: f32[3,5] = matmul %1, %2 %5: f32[0,4] = exp %0 return %3, %4, %5 }",
    "graph heads(%0: f32[2,3,21,16], %1: f32[2,3,21,16], %2: f32[2,3,21,16]) { %3: (f32[2,3,21,16], f32[2,3,21]) = attention %0, %1, %2 {causal=true, scale=0.25}"
    " %4: f32[2,3,21,16] = result %3 {index=0} %5: f32[2,3,21] = result %3 {index=1} return %4, %5 }",
};

/* |got - expected| <= relative * |expected| + least. */
static void compare(const ir_graph *graph, int result, const ir_array *got, const ir_array *expected, double relative, double least)
{
    for (int64_t i = 0, n = ir_type_count(&expected->type); i < n; i++) {
        double a = get(got, i), b = get(expected, i);
        if ((isnan(a) && isnan(b)) || a == b || fabs(a - b) <= relative * fabs(b) + least)
            continue;
        char *text = ir_to_text(graph);
        fprintf(stderr, "%s", text);
        base_free(text);
        fail_msg("%s: result %d, element %lld: expected %.9g, got %.9g", graph->name, result, (long long)i, b, a);
    }
}

#endif
