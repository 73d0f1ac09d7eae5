/* Programs over rax.h whose results are computed again in plain C: k-means, dropout, products whose leading axes broadcast. */
#include "tests/random_tensors.h"

/* -- k-means -------------------------------------------------------------------------------------------------------------- */

static void k_means_step(rax_args *in, rax_results *out)
{
    rax_tensor points = rax_arg_tensor(in, 0), centres = rax_arg_tensor(in, 1);     /* [N,2], [K,2] */
    int64_t K = rax_dim(centres, 0), N = rax_dim(points, 0);
    rax_tensor away = rax_sub(rax_reshape(points, RAX_SHAPE(N, 1, 2)), centres);
    rax_tensor nearest = rax_argmax(rax_neg(rax_sum(rax_mul(away, away), RAX_AXES(-1))), -1);
    rax_tensor sums = rax_scatter_add(rax_constant(RAX_F32, RAX_SHAPE(K, 2), 0), nearest, points, 0);
    rax_tensor counts = rax_sum(rax_one_hot(nearest, K, RAX_F32), RAX_AXES(0));
    rax_tensor mean = rax_div(sums, rax_reshape(rax_max(counts, rax_constant(RAX_F32, RAX_SCALAR, 1)), RAX_SHAPE(K, 1)));
    rax_tensor empty = rax_reshape(rax_eq(counts, rax_constant(RAX_F32, RAX_SCALAR, 0)), RAX_SHAPE(K, 1));
    rax_return_tensor(out, 0, rax_select(empty, centres, mean));
    rax_return_tensor(out, 1, nearest);
}

static void k_means_in_c(const float *points, int n, float *centres, int k, int *nearest)
{
    float sums[8][2] = { { 0 } };
    int counts[8] = { 0 };
    for (int i = 0; i < n; i++) {
        float best = INFINITY;
        for (int j = 0; j < k; j++) {
            float dx = points[2 * i] - centres[2 * j], dy = points[2 * i + 1] - centres[2 * j + 1], d = dx * dx + dy * dy;
            if (d < best) {
                best = d;
                nearest[i] = j;
            }
        }
        sums[nearest[i]][0] += points[2 * i];
        sums[nearest[i]][1] += points[2 * i + 1];
        counts[nearest[i]]++;
    }
    for (int j = 0; j < k; j++)
        for (int a = 0; a < 2 && counts[j]; a++)
            centres[2 * j + a] = sums[j][a] / (float)counts[j];
}

static void test_k_means_like_plain_c(void **state)
{
    (void)state;
    enum { N = 53, K = 5 };
    D = RAX_F32;
    for (int no_jit = 0; no_jit < 2; no_jit++) {
        assert_true(rax_configure(&(rax_settings){ .quiet = true, .no_jit = no_jit }));
        state_of_noise = 99;
        rax_tensor points = random_tensor(RAX_SHAPE(N, 2), 1), centres = random_tensor(RAX_SHAPE(K, 2), 1), nearest = RAX_NO_TENSOR;
        float expected[K * 2];
        int groups[N];
        memcpy(expected, rax_data(centres), sizeof expected);
        rax_fn *fn = rax_function(k_means_step, "k_means", "points: f32[N,2], centres: f32[K,2]");
        for (int i = 0; i < 6; i++) {
            rax_value args[] = { rax_pass_tensor(points), rax_pass_tensor(centres) };
            rax_into results[] = { rax_into_tensor(&centres), rax_into_tensor(&nearest) };
            CALL(fn, args, results);
            k_means_in_c(rax_data(points), N, expected, K, groups);
            for (int j = 0; j < N; j++)
                assert_int_equal((int)rax_item(nearest, j), groups[j]);
            for (int j = 0; j < 2 * K; j++)
                assert_float_equal(rax_item(centres, j), expected[j], 1e-5);
        }
        rax_function_free(fn);
        rax_tensor_free(points);
        rax_tensor_free(centres);
        rax_tensor_free(nearest);
    }
}

/* -- random numbers and dropout ---------------------------------------------------------------------------------------------- */

static void dropout_step(rax_args *in, rax_results *out)
{
    rax_random random = { rax_seed(11), rax_arg_tensor(in, 1) };
    rax_tensor x = rax_arg_tensor(in, 0), y = rax_dropout(random, rax_mul(x, x), 0.25), dx;
    rax_grad_of(rax_sum(y, RAX_ALL_AXES), 1, &x, &dx);
    rax_return_tensor(out, 0, y);
    rax_return_tensor(out, 1, dx);
    rax_return_tensor(out, 2, rax_normal(random, RAX_SHAPE(500)));
}

static void test_dropout_has_one_mask_forward_and_backward(void **state)
{
    (void)state;
    enum { N = 1000 };
    static double first[N];
    D = RAX_F32;
    for (int no_jit = 0; no_jit < 2; no_jit++) {
        assert_true(rax_configure(&(rax_settings){ .quiet = true, .no_jit = no_jit }));
        state_of_noise = 5;
        rax_tensor x = random_tensor(RAX_SHAPE(N), 1), y = RAX_NO_TENSOR, dx = RAX_NO_TENSOR, normal = RAX_NO_TENSOR;
        rax_fn *fn = rax_function(dropout_step, "dropout", "x: f32[N], counter: i32");
        rax_value args[] = { rax_pass_tensor(x), rax_pass_number(3) };
        rax_into results[] = { rax_into_tensor(&y), rax_into_tensor(&dx), rax_into_tensor(&normal) };
        CALL(fn, args, results);
        int kept = 0;
        double square = 0;
        for (int i = 0; i < N; i++) {
            double v = rax_item(x, i);
            bool keeps = rax_item(y, i) != 0;
            kept += keeps;
            assert_float_equal(rax_item(y, i), (keeps ? v * v / 0.75 : 0), 1e-6);
            assert_float_equal(rax_item(dx, i), (keeps ? 2 * v / 0.75 : 0), 1e-6);
            if (no_jit)
                assert_float_equal(rax_item(y, i), first[i], 1e-6);          /* the compiler's mask is the interpreter's */
            first[i] = rax_item(y, i);
        }
        for (int i = 0; i < 500; i++)
            square += rax_item(normal, i) * rax_item(normal, i) / 500;
        assert_true(kept > 700 && kept < 800 && square > 0.75 && square < 1.25);
        rax_function_free(fn);
        rax_tensor_free(x);
        rax_tensor_free(y);
        rax_tensor_free(dx);
        rax_tensor_free(normal);
    }
}

/* -- matmul in all its shapes -------------------------------------------------------------------------------------------------- */

static rax_shape lhs_shape, rhs_shape;
static void matmul_step(rax_args *in, rax_results *out)
{
    rax_tensor a = rax_reshape(rax_arg_tensor(in, 0), lhs_shape), b = rax_reshape(rax_arg_tensor(in, 1), rhs_shape);
    rax_return_tensor(out, 0, rax_matmul(a, b));
}

static int64_t count_of(rax_shape shape)
{
    int64_t count = 1;
    for (int i = 0; i < shape.rank; i++)
        count *= shape.dim[i];
    return count;
}

/* The element of a batch that a batch of the result reads, where leading axes broadcast. */
static int64_t batch_of(rax_shape operand, rax_shape result, int64_t batch)
{
    int64_t at = 0, step = 1;
    for (int i = result.rank - 3; i >= 0; i--) {
        int own = i - (result.rank - operand.rank);
        if (own >= 0) {
            at += operand.dim[own] == 1 ? 0 : batch % result.dim[i] * step;
            step *= operand.dim[own];
        }
        batch /= result.dim[i];
    }
    return at;
}

static void test_matmul_broadcasts_leading_axes(void **state)
{
    (void)state;
    static const struct { rax_shape a, b, c; } rows[] = {
        { { 2, { 3, 4 } }, { 2, { 4, 5 } }, { 2, { 3, 5 } } },
        { { 3, { 2, 3, 4 } }, { 2, { 4, 5 } }, { 3, { 2, 3, 5 } } },
        { { 4, { 2, 6, 3, 4 } }, { 2, { 4, 1 } }, { 4, { 2, 6, 3, 1 } } },
        { { 2, { 3, 4 } }, { 3, { 2, 4, 5 } }, { 3, { 2, 3, 5 } } },
        { { 3, { 2, 3, 4 } }, { 3, { 2, 4, 5 } }, { 3, { 2, 3, 5 } } },
        { { 3, { 2, 3, 4 } }, { 3, { 1, 4, 5 } }, { 3, { 2, 3, 5 } } },
        { { 3, { 1, 3, 4 } }, { 3, { 2, 4, 5 } }, { 3, { 2, 3, 5 } } },
        { { 4, { 2, 1, 3, 4 } }, { 4, { 1, 3, 4, 5 } }, { 4, { 2, 3, 3, 5 } } },
        { { 4, { 2, 3, 1, 4 } }, { 3, { 3, 4, 2 } }, { 4, { 2, 3, 1, 2 } } },
    };
    D = RAX_F64;
    for (size_t i = 0; i < COUNT(rows); i++) {
        lhs_shape = rows[i].a;
        rhs_shape = rows[i].b;
        rax_tensor a = random_tensor(RAX_SHAPE(count_of(lhs_shape)), 1),
                   b = random_tensor(RAX_SHAPE(count_of(rhs_shape)), 1), c = RAX_NO_TENSOR;
        rax_fn *fn = rax_function(matmul_step, "matmul", "a: f64[_], b: f64[_]");
        rax_value args[] = { rax_pass_tensor(a), rax_pass_tensor(b) };
        rax_into results[] = { rax_into_tensor(&c) };
        CALL(fn, args, results);
        rax_shape shape = rax_shape_of(c);
        assert_int_equal(shape.rank, rows[i].c.rank);
        assert_memory_equal(shape.dim, rows[i].c.dim, sizeof *shape.dim * (size_t)shape.rank);
        int64_t M = shape.dim[shape.rank - 2], N = shape.dim[shape.rank - 1], K = lhs_shape.dim[lhs_shape.rank - 1];
        for (int64_t at = 0; at < rax_count(c); at++) {
            int64_t batch = at / (M * N), m = at / N % M, n = at % N;
            int64_t from_a = batch_of(lhs_shape, shape, batch) * M * K, from_b = batch_of(rhs_shape, shape, batch) * K * N;
            double sum = 0;
            for (int64_t k = 0; k < K; k++)
                sum += rax_item(a, from_a + m * K + k) * rax_item(b, from_b + k * N + n);
            if (!(fabs(sum - rax_item(c, at)) < 1e-12))
                fail_msg("row %d, element %d: expected %.12g, got %.12g", (int)i, (int)at, sum, rax_item(c, at));
        }
        rax_function_free(fn);
        rax_tensor_free(a);
        rax_tensor_free(b);
        rax_tensor_free(c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_k_means_like_plain_c),
        TEST(test_dropout_has_one_mask_forward_and_backward),
        TEST(test_matmul_broadcasts_leading_axes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
