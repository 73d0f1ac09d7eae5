/* Random training steps over rax.h, of the shapes that vectors, tiles and chunks have tails in: the compiler against the interpreter.
 *
 * A step draws a chain of ops from its seed, takes the gradient of a loss of some of their results, and moves its parameters in place, by at most the rate.
 * Values stay near 1, so that a step is not chaotic and both orders of a sum agree to a few roundings; what jumps (comparisons, maxima)
 * is drawn in f64 alone, where a rounding does not decide it. A failure prints its seed and the program; SEED=n runs that one alone,
 * PROGRAMS=n so many. */
#include "tests/tracer_support.h"

enum { PROGRAMS = 80, PARAMS = 4, OPS = 14, MOST_VALUES = 64, MOST_ELEMENTS = 20000, MOST_RANK = 4, STEPS = 3 };

static uint64_t seed, state_of_lot;
static rax_dtype D;                                 /* of the program that runs now */
static bool told;                                   /* print what is drawn */

static int draw(int below)
{
    state_of_lot = state_of_lot * 6364136223846793005u + 1442695040888963407u;
    return (int)((state_of_lot >> 33) % (uint64_t)below);
}

static double noise(void) { return draw(1 << 20) / (double)(1 << 19) - 1; }

static int64_t draw_dim(void)
{
    static const int dims[] = { 1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 32, 33, 64, 65, 97, 130 };
    return dims[draw((int)COUNT(dims))];
}

static rax_shape draw_shape(int rank)
{
    rax_shape shape = { .rank = rank };
    int64_t count = 1;
    for (int i = 0; i < rank; i++) {
        int64_t dim = draw_dim();
        if (count * dim > MOST_ELEMENTS / 4)
            dim = 1 + draw(4);
        shape.dim[i] = dim;
        count *= dim;
    }
    return shape;
}

static rax_tensor random_tensor(rax_dtype dtype, rax_shape shape)
{
    rax_tensor tensor = rax_tensor_new(dtype, shape);
    void *data = rax_data(tensor);
    for (int64_t i = 0; i < rax_count(tensor); i++)
        if (dtype == RAX_F64) ((double *)data)[i] = noise();
        else if (dtype == RAX_F32) ((float *)data)[i] = (float)noise();
        else ((int32_t *)data)[i] = draw(1000);
    return tensor;
}

/* -- the values of a step ------------------------------------------------------------------------------------------------- */

typedef struct { rax_tensor value[MOST_VALUES]; int n; rax_tree params; rax_random random; } pool;

static void say(const char *op, rax_tensor x)
{
    if (!told)
        return;
    fprintf(stderr, "  %s: [", op);
    for (int i = 0; i < rax_rank(x); i++)
        fprintf(stderr, "%s%d", i ? "," : "", (int)rax_dim(x, i));
    fprintf(stderr, "]\n");
}

static void keep(pool *p, const char *op, rax_tensor x)
{
    say(op, x);
    if (p->n < MOST_VALUES && rax_rank(x) <= MOST_RANK && rax_count(x) <= MOST_ELEMENTS && rax_count(x) > 0)
        p->value[p->n++] = x;
}

/* Mostly a recent one, so that chains grow. */
static rax_tensor any(pool *p)
{
    int recent = p->n < 4 ? p->n : 4;
    return p->value[draw(2) ? p->n - 1 - draw(recent) : draw(p->n)];
}

static rax_tensor any_of_rank(pool *p, int least)
{
    for (int tries = 0; tries < 8; tries++) {
        rax_tensor x = any(p);
        if (rax_rank(x) >= least)
            return x;
    }
    rax_tensor x = any(p);
    rax_shape shape = { .rank = least };
    for (int i = 0; i < least; i++)
        shape.dim[i] = i ? 1 : rax_count(x);
    return rax_reshape(x, shape);
}

/* A value of this shape: one of as many elements, or one that is cut, padded or repeated. */
static rax_tensor of_shape(pool *p, rax_shape shape)
{
    int64_t count = 1;
    for (int i = 0; i < shape.rank; i++)
        count *= shape.dim[i];
    for (int i = p->n - 1; i >= 0; i--)
        if (rax_count(p->value[i]) == count && draw(3))
            return rax_reshape(p->value[i], shape);
    rax_tensor x = rax_reshape(any(p), RAX_SHAPE(-1));
    int64_t have = rax_count(x);
    if (have > count)
        x = rax_slice(x, 0, draw((int)(have - count) + 1), count);
    else if (have < count && draw(2))
        x = rax_pad(x, 0, 0, count - have, 0.5);
    else if (have < count) {
        int64_t copies = (count + have - 1) / have;
        x = rax_slice(rax_reshape(rax_broadcast(x, RAX_SHAPE(copies, have)), RAX_SHAPE(-1)), 0, 0, count);
    }
    return rax_reshape(x, shape);
}

/* -- ops ------------------------------------------------------------------------------------------------------------------ */

static rax_tensor squares(rax_tensor x) { return rax_mul(x, x); }
static rax_tensor bounded(rax_tensor x) { return rax_mul(x, rax_rsqrt(rax_shift(squares(x), 1))); }

static void draw_unary(pool *p)
{
    rax_tensor x = any(p);
    switch (draw(14)) {
    case 0: keep(p, "tanh", rax_tanh(x)); break;
    case 1: keep(p, "sigmoid", rax_sigmoid(x)); break;
    case 2: keep(p, "sin", rax_sin(x)); break;
    case 3: keep(p, "cos", rax_cos(rax_scale(x, 0.5))); break;
    case 4: keep(p, "gelu", rax_gelu(x)); break;
    case 5: keep(p, "silu", rax_silu(x)); break;
    case 6: keep(p, "exp of tanh", rax_exp(rax_tanh(x))); break;
    case 7: keep(p, "sqrt", rax_sqrt(rax_shift(squares(x), 0.5))); break;
    case 8: keep(p, "rsqrt", rax_rsqrt(rax_shift(squares(x), 0.5))); break;
    case 9: keep(p, "log", rax_log(rax_shift(squares(x), 0.7))); break;
    case 10: keep(p, "erf", rax_erf(x)); break;
    case 11: keep(p, "neg, shift", rax_shift(rax_neg(x), 0.25)); break;
    case 12: keep(p, "pow", rax_pow(rax_shift(rax_abs(rax_tanh(x)), 0.5), rax_constant(D, RAX_SCALAR, 1.5))); break;
    case 13: keep(p, "no gradient", rax_tanh(rax_stop_gradient(x))); break;
    }
}

/* y broadcasts to x, or x and y both do. */
static void draw_binary(pool *p)
{
    rax_tensor x = any(p), y;
    rax_shape shape = rax_shape_of(x);
    int cut = shape.rank ? draw(shape.rank + 1) : 0;
    rax_shape other = { .rank = shape.rank - cut };
    for (int i = 0; i < other.rank; i++)
        other.dim[i] = draw(4) ? shape.dim[i + cut] : 1;
    y = of_shape(p, other);
    if (draw(4) == 0 && shape.rank && shape.dim[shape.rank - 1] > 1)        /* x repeats too */
        x = rax_slice(x, -1, draw((int)shape.dim[shape.rank - 1]), 1);
    switch (draw(5)) {
    case 0: keep(p, "add", rax_scale(rax_add(x, y), 0.6)); break;
    case 1: keep(p, "sub", rax_sub(y, x)); break;
    case 2: keep(p, "mul", rax_mul(x, rax_tanh(y))); break;
    case 3: keep(p, "div", rax_div(x, rax_shift(squares(y), 1))); break;
    case 4:
        if (D == RAX_F64 && draw(2))
            keep(p, "max, min", rax_max(rax_min(x, rax_shift(y, 0.5)), rax_shift(y, -0.5)));
        else if (D == RAX_F64)
            keep(p, "select", rax_select(rax_lt(x, y), rax_scale(x, 0.5), rax_sin(y)));
        else
            keep(p, "add", rax_add(rax_scale(x, 0.5), y));
        break;
    }
}

static void draw_reduction(pool *p)
{
    rax_tensor x = any_of_rank(p, 1);
    int rank = rax_rank(x), n = 0;
    rax_axes axes = { 0 };
    int64_t terms = 1;
    for (int i = 0; i < rank; i++)
        if (draw(2)) {
            axes.axis[n++] = i;
            terms *= rax_dim(x, i);
        }
    axes.n = n;
    if (!n)
        return;
    bool keeps = draw(2);
    switch (draw(D == RAX_F64 ? 3 : 2)) {
    case 0: keep(p, "sum", rax_scale(keeps ? rax_sum_keep(x, axes) : rax_sum(x, axes), 1 / sqrt((double)terms))); break;
    case 1: keep(p, "mean", keeps ? rax_mean_keep(x, axes) : rax_mean(x, axes)); break;
    case 2: keep(p, "max", keeps ? rax_reduce_max_keep(x, axes) : rax_reduce_max(x, axes)); break;
    }
}

static void draw_product(pool *p)
{
    rax_tensor x = any_of_rank(p, 2);
    int rank = rax_rank(x);
    if (draw(3) == 0)
        x = rax_swap(x, -1, -2);
    int64_t K = rax_dim(x, -1);
    rax_shape other = { .rank = draw(2) ? 2 : rank };
    for (int i = 0; i < other.rank; i++)
        other.dim[i] = i < other.rank - 2 ? (draw(3) ? rax_dim(x, i) : 1) : i == other.rank - 2 ? K : draw_dim();
    rax_tensor y;
    if (draw(2)) {                                      /* stored the other way round */
        int64_t N = other.dim[other.rank - 1];
        other.dim[other.rank - 1] = K;
        other.dim[other.rank - 2] = N;
        y = rax_swap(of_shape(p, other), -1, -2);
    } else
        y = of_shape(p, other);
    keep(p, "matmul", rax_scale(rax_matmul(x, y), 1 / sqrt((double)K)));
}

static void draw_rows(pool *p)                              /* along an axis */
{
    rax_tensor x = any_of_rank(p, 1);
    int axis = draw(rax_rank(x));
    rax_shape last = { .rank = 1, .dim = { rax_dim(x, -1) } };
    switch (draw(5)) {
    case 0: keep(p, "softmax", rax_scale(rax_softmax(x, axis), (double)rax_dim(x, axis) / 2)); break;
    case 1: keep(p, "log_softmax", rax_scale(rax_log_softmax(x, axis), 0.3)); break;
    case 2: keep(p, "layer_norm", rax_layer_norm(x, of_shape(p, last), draw(2) ? of_shape(p, last) : RAX_NO_TENSOR, 0.1)); break;
    case 3: keep(p, "rms_norm", rax_rms_norm(x, of_shape(p, last), 0.1)); break;
    case 4: {
        rax_shape rows = rax_shape_of(x);
        rows.rank--;
        rax_tensor targets = rax_iota(RAX_I32, RAX_SHAPE(rax_count(x) / rax_dim(x, -1)), 0);
        targets = rax_rem(rax_mul(targets, rax_constant(RAX_I32, RAX_SCALAR, 7)), rax_constant(RAX_I32, RAX_SCALAR, (double)rax_dim(x, -1)));
        keep(p, "cross_entropy", rax_scale(rax_cross_entropy(x, rax_reshape(targets, rows)), 0.3));
        break;
    }
    }
}

static void draw_movement(pool *p)
{
    rax_tensor x = any_of_rank(p, 1);
    int rank = rax_rank(x), axis = draw(rank);
    int64_t dim = rax_dim(x, axis);
    rax_tensor start = rax_rem(p->random.counter, rax_constant(RAX_I32, RAX_SCALAR, (double)dim));
    switch (draw(9)) {
    case 0: keep(p, "swap", rax_swap(x, axis, draw(rank))); break;
    case 1: {
        rax_shape shape = { .rank = 2, .dim = { dim, rax_count(x) / dim } };
        keep(p, "reshape", rax_reshape(x, shape));
        break;
    }
    case 2: {
        int64_t length = 1 + draw((int)dim);
        keep(p, "slice", rax_slice(x, axis, draw((int)(dim - length) + 1), length));
        break;
    }
    case 3: keep(p, "pad", rax_pad(x, axis, draw(3), draw(4), 0.5)); break;
    case 4: {
        rax_tensor parts[3] = { x, rax_sin(x), x };
        keep(p, "concatenate", rax_concatenate(2 + draw(2), parts, axis));
        break;
    }
    case 5: keep(p, "dynamic_slice", rax_dynamic_slice(x, axis, start, 1 + draw((int)dim))); break;
    case 6: {
        rax_shape part = rax_shape_of(x);
        part.dim[axis] = 1 + draw((int)dim);
        keep(p, "update_slice", rax_update_slice(x, rax_tanh(of_shape(p, part)), axis, start));
        break;
    }
    case 7: {
        rax_shape shape = rax_shape_of(x);
        if (rank < MOST_RANK) {
            for (int i = rank; i > 0; i--)
                shape.dim[i] = shape.dim[i - 1];
            shape.dim[0] = 1 + draw(3);
            shape.rank++;
        }
        keep(p, "broadcast", rax_broadcast(x, shape));
        break;
    }
    case 8: {
        rax_axes axes = { .n = rank };
        int turn = draw(rank);
        for (int i = 0; i < rank; i++)
            axes.axis[i] = (i + turn) % rank;
        keep(p, "transpose", rax_transpose_at(RAX_HERE, x, axes));
        break;
    }
    }
}

static void draw_indexing(pool *p)
{
    rax_tensor x = any_of_rank(p, 1);
    int axis = draw(rax_rank(x));
    int64_t dim = rax_dim(x, axis), n = 1 + draw(40);
    rax_tensor ids = rax_add(rax_mul(rax_iota(RAX_I32, RAX_SHAPE(n), 0), rax_constant(RAX_I32, RAX_SCALAR, 1 + draw(5))), p->random.counter);
    ids = rax_rem(ids, rax_constant(RAX_I32, RAX_SCALAR, (double)dim));
    rax_shape updates = rax_shape_of(x);
    updates.dim[axis] = n;
    switch (draw(3)) {
    case 0: keep(p, "gather", rax_gather(x, ids, axis)); break;
    case 1: keep(p, "scatter_add", rax_scatter_add(x, ids, rax_scale(of_shape(p, updates), 0.3), axis)); break;
    case 2: keep(p, "one_hot", rax_add(rax_scale(rax_one_hot(ids, draw_dim(), D), 0.5), rax_mean(any(p), RAX_ALL_AXES))); break;
    }
}

static void draw_attention(pool *p)
{
    int64_t B = 1 + draw(2), H = 1 + draw(3), T = draw_dim(), S = draw(2) ? T : T + draw(20), W = 1 + draw(33);
    if (B * H * S * W > MOST_ELEMENTS)
        return;
    rax_attention_options options = { .causal = draw(2), .dropout = D == RAX_F32 && draw(3) == 0 ? 0.2 : 0, .random = p->random };
    rax_tensor q = of_shape(p, RAX_SHAPE(B, H, T, W)), k = of_shape(p, RAX_SHAPE(B, H, S, W)), v = of_shape(p, RAX_SHAPE(B, H, S, W));
    keep(p, "attention", rax_attention(q, k, v, options));
}

static void draw_random(pool *p)
{
    rax_tensor x = any(p);
    if (draw(2))
        keep(p, "dropout", rax_dropout(p->random, x, 0.2));
    else
        keep(p, "add noise", rax_add(x, rax_cast(rax_scale(rax_uniform(p->random, rax_shape_of(x)), 0.5), D)));
}

typedef struct { rax_tensor weight, outer; } cell_context;
static void cell(void *context, const rax_tensor *carry, const rax_tensor *x, rax_tensor *next, rax_tensor *y)
{
    cell_context *c = context;
    rax_tensor h = rax_scale(rax_matmul(carry[0], c->weight), 1 / sqrt((double)rax_dim(c->weight, 0)));
    next[0] = rax_tanh(rax_add(rax_add(h, x[0]), c->outer));
    next[1] = rax_add(carry[1], rax_mean(next[0], RAX_ALL_AXES));
    y[0] = rax_mul(next[0], x[0]);
}

static void draw_scan(pool *p)
{
    int64_t count = 1 + draw(6), N = 1 + draw(12), C = draw_dim();
    cell_context context = { of_shape(p, RAX_SHAPE(C, C)), of_shape(p, RAX_SHAPE(C)) };
    if (C * C > MOST_ELEMENTS || count * N * C > MOST_ELEMENTS)
        return;
    rax_tensor xs[] = { of_shape(p, RAX_SHAPE(count, N, C)) }, ys[1];
    rax_tensor carry[] = { of_shape(p, RAX_SHAPE(N, C)), rax_constant(D, RAX_SCALAR, 0) };
    rax_scan(cell, &context, count, 2, carry, 1, xs, 1, ys);
    keep(p, "scan, carry", carry[0]);
    keep(p, "scan, sum", carry[1]);
    keep(p, "scan, stacked", ys[0]);
}

static void draw_op(pool *p)
{
    static void (*const ops[])(pool *) = {
        draw_unary, draw_unary, draw_unary, draw_binary, draw_binary, draw_binary, draw_reduction, draw_product, draw_product, draw_rows,
        draw_rows, draw_movement, draw_movement, draw_indexing, draw_attention, draw_random, draw_scan,
    };
    ops[draw((int)COUNT(ops))](p);
}

/* -- a step ---------------------------------------------------------------------------------------------------------------- */

/* (params, x, counter, lr) -> (params, loss, one of the values) */
static void step(rax_args *in, rax_results *out)
{
    rax_tree params = rax_arg_tree(in, 0), next = rax_tree_like(params);
    rax_tensor x = rax_arg_tensor(in, 1), lr = rax_arg_tensor(in, 3);
    pool p = { .params = params, .random = { rax_seed(seed), rax_arg_tensor(in, 2) } };
    state_of_lot = seed * 1000003 + 17;
    for (int i = 0; i < rax_tree_size(params); i++)
        keep(&p, rax_leaf_name(params, i), rax_leaf(params, i));
    keep(&p, "x", x);
    int first = p.n;
    for (int i = 0; i < OPS; i++)
        draw_op(&p);
    rax_tensor loss = rax_mean(squares(rax_leaf(params, 0)), RAX_ALL_AXES);
    for (int i = first; i < p.n; i++)
        if (i == p.n - 1 || draw(3) == 0)
            loss = rax_add(loss, rax_mean(squares(p.value[i]), RAX_ALL_AXES));
    rax_tree grads = rax_grad(loss, params);
    if (draw(4) == 0) {                                     /* a penalty on the gradient: a second derivative */
        rax_tensor penalty = rax_constant(D, RAX_SCALAR, 0);
        for (int i = 0; i < rax_tree_size(params); i++)
            penalty = rax_add(penalty, rax_sum(squares(rax_leaf(grads, i)), RAX_ALL_AXES));
        grads = rax_grad(rax_add(loss, rax_scale(penalty, 0.1)), params);
    }
    for (int i = 0; i < rax_tree_size(params); i++)
        rax_set_leaf(next, i, rax_sub(rax_leaf(params, i), rax_mul(lr, bounded(rax_leaf(grads, i)))));
    rax_return_tree(out, 0, next);
    rax_return_tensor(out, 1, loss);
    rax_return_tensor(out, 2, any(&p));
}

typedef struct { rax_tree params; rax_tensor loss, value; double losses[STEPS]; } outcome;

static outcome run(bool no_jit, int threads)
{
    assert_true(rax_configure(&(rax_settings){ .quiet = true, .no_jit = no_jit, .threads = threads }));
    outcome result = { rax_tree_new(), RAX_NO_TENSOR, RAX_NO_TENSOR, {0} };
    state_of_lot = seed * 7919 + 1;
    for (int i = 0; i < PARAMS; i++)
        rax_tree_add(result.params, random_tensor(D, draw_shape(i < 2 ? 2 : draw(MOST_RANK))), "p%d", i);
    rax_tensor x = random_tensor(D, draw_shape(1 + draw(3)));
    rax_fn *fn = rax_function(step, "step", D == RAX_F64 ? "params: tree, x: f64[...], counter: i32, lr: f64" : "params: tree, x: f32[...], counter: i32, lr: f32");
    for (int i = 0; i < STEPS; i++) {
        rax_value args[] = { rax_pass_tree(result.params), rax_pass_tensor(x), rax_pass_number(i + 3), rax_pass_number(0.01) };
        rax_into results[] = { rax_into_tree(&result.params), rax_into_tensor(&result.loss), rax_into_tensor(&result.value) };
        if (!rax_call(fn, args, results))
            fail_msg("SEED=%d: %s", (int)seed, rax_error());
        told = false;
        result.losses[i] = rax_item(result.loss, 0);
    }
    rax_function_free(fn);
    rax_tensor_free(x);
    return result;
}

static void outcome_free(outcome *o)
{
    rax_tree_free(o->params);
    rax_tensor_free(o->loss);
    rax_tensor_free(o->value);
}

/* To the greatest of an array's elements, what is lost in sums of both signs being as large as their terms. */
static bool near(rax_tensor got, rax_tensor expected, double tolerance, const char *what)
{
    double most = 1e-3, worst = 0;
    int64_t at = 0;
    for (int64_t i = 0; i < rax_count(expected); i++) {
        double a = rax_item(got, i), b = rax_item(expected, i);
        most = fmax(most, fabs(b));
        double apart = a == b || (isnan(a) && isnan(b)) ? 0 : fabs(a - b);
        if (!(apart <= worst)) {
            worst = apart;
            at = i;
        }
    }
    if (worst <= tolerance * most)
        return true;
    fprintf(stderr, "SEED=%d (%s): %s, element %d of %d: compiled %.9g, interpreted %.9g, %.2g of the greatest\n", (int)seed, rax_dtype_name(D), what,
            (int)at, (int)rax_count(expected), rax_item(got, at), rax_item(expected, at), worst / most);
    return false;
}

static bool same_bits(rax_tensor a, rax_tensor b)
{
    return memcmp(rax_data(a), rax_data(b), (size_t)rax_count(a) * rax_dtype_bytes(rax_dtype_of(a))) == 0;
}

static bool agrees(void)
{
    D = seed % 3 ? RAX_F64 : RAX_F32;
    double tolerance = D == RAX_F64 ? 1e-9 : 2e-3;
    outcome expected = run(true, 1), got = run(false, 2), alone = run(false, 1);
    bool good = near(got.value, expected.value, tolerance, "value");
    for (int i = 0; i < STEPS && good; i++)
        if (!(fabs(got.losses[i] - expected.losses[i]) <= tolerance * (1 + fabs(expected.losses[i])))) {
            fprintf(stderr, "SEED=%d (%s): loss %d: compiled %.9g, interpreted %.9g\n", (int)seed, rax_dtype_name(D), i, got.losses[i], expected.losses[i]);
            good = false;
        }
    bool same = same_bits(got.value, alone.value);
    for (int i = 0; i < PARAMS && good; i++) {
        good = near(rax_leaf(got.params, i), rax_leaf(expected.params, i), tolerance, rax_leaf_name(expected.params, i));
        same &= same_bits(rax_leaf(got.params, i), rax_leaf(alone.params, i));
    }
    if (!same)
        fprintf(stderr, "SEED=%d (%s): one thread gives other bits than two\n", (int)seed, rax_dtype_name(D));
    outcome_free(&expected);
    outcome_free(&got);
    outcome_free(&alone);
    return good && same;
}

static void test_random_steps(void **state)
{
    (void)state;
    const char *one = getenv("SEED"), *many = getenv("PROGRAMS");
    int bad = 0;
    for (uint64_t s = one ? (uint64_t)atoll(one) : 1, last = one ? s : s + (uint64_t)(many ? atoi(many) : PROGRAMS) - 1; s <= last; s++) {
        seed = s;
        told = one != NULL;
        if (!agrees())
            bad++;
    }
    assert_int_equal(bad, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_random_steps, count_blocks, expect_no_leak),
    };
    return cmocka_run_group_tests_name("random training steps", tests, NULL, NULL);
}
