/* Static arguments, by use and by observation; the compile cache. Each test states how often the step is to be
 * compiled and traced, and checks every result. */
#include "tests/tracer_support.h"

typedef struct { int n_layer; float scale; double decay; bool twice; const char *activation; int64_t step; int unused; } settings;
static const rax_field fields[] = {
    RAX_FIELD(settings, n_layer, INT), RAX_FIELD(settings, scale, FLOAT),     RAX_FIELD(settings, decay, DOUBLE),
    RAX_FIELD(settings, twice, BOOL),  RAX_FIELD(settings, activation, TEXT), RAX_FIELD(settings, step, INT64),
    RAX_FIELD(settings, unused, INT),
};
static const rax_record_type record_type = RAX_RECORD(settings, fields);
static const settings plain = {
    .n_layer = 2, .scale = 3, .decay = 0.5, .twice = false, .activation = "none", .step = 1, .unused = 9
};

/* One function under test: x is f32[2] {1, 2}, its result's first element is looked at. */
typedef struct { rax_fn *fn; rax_tensor x, y; } bench;

static bench bench_new(rax_step *step, const char *signature)
{
    bench b = { .fn = rax_function(step, "step", signature), .x = F32(1, 2) };
    assert_non_null(b.fn);
    return b;
}

static void bench_free(bench *b)
{
    rax_function_free(b->fn);
    rax_tensor_free(b->x);
    rax_tensor_free(b->y);
}

static void with_record(bench *b, settings config, double expected)
{
    rax_value args[] = { rax_pass_tensor(b->x), rax_pass_record(&config, &record_type) };
    rax_into results[] = { rax_into_tensor(&b->y) };
    CALL(b->fn, args, results);
    assert_float_equal(rax_item(b->y, 0), expected, 1e-6);
}

static void with_number(bench *b, double number, double expected)
{
    rax_value args[] = { rax_pass_tensor(b->x), rax_pass_number(number) };
    rax_into results[] = { rax_into_tensor(&b->y) };
    CALL(b->fn, args, results);
    assert_float_equal(rax_item(b->y, 0), expected, 1e-6);
}

static void expect_counts(const bench *b, int compilations, int traces, const char *last_miss)
{
    rax_fn_stats stats = rax_stats(b->fn);
    if (stats.compilations != compilations || stats.traces != traces || strcmp(stats.last_miss, last_miss) != 0)
        fail_msg("expected %d compilations, %d traces, last miss \"%s\"; got %d, %d, \"%s\"", compilations, traces, last_miss,
                 (int)stats.compilations, (int)stats.traces, stats.last_miss);
}

/* -- records as C values --------------------------------------------------------------------------------------------------- */

static void loop_step(rax_args *in, rax_results *out)
{
    rax_tensor x = rax_arg_tensor(in, 0);
    const settings *config = rax_arg_record(in, 1);
    for (int i = 0; i < config->n_layer; i++)
        x = rax_scale(x, config->scale);
    if (strcmp(config->activation, "neg") == 0)
        x = rax_neg(x);
    rax_return_tensor(out, 0, x);
}

static void test_a_record_that_decides_a_loop(void **state)
{
    (void)state;
    bench b = bench_new(loop_step, "x: f32[N], config: record");
    settings config = plain;
    with_record(&b, config, 9);
    with_record(&b, config, 9);
    expect_counts(&b, 1, 1, "");
    config.n_layer = 3;
    with_record(&b, config, 27);
    expect_counts(&b, 2, 2, "arg 1 config.n_layer: 2 → 3");
    config.n_layer = 2;
    with_record(&b, config, 9);                     /* back: a hit */
    expect_counts(&b, 2, 2, "arg 1 config.n_layer: 2 → 3");
    config.activation = "neg";
    with_record(&b, config, -9);
    expect_counts(&b, 3, 3, "arg 1 config.activation: \"none\" → \"neg\"");
    char same_text[] = "neg";
    config.activation = same_text;                  /* text is compared by content */
    with_record(&b, config, -9);
    same_text[0] = 'N';                             /* and kept by it */
    with_record(&b, config, 9);
    config.activation = NULL;
    config.activation = "neg";
    with_record(&b, config, -9);
    assert_int_equal(rax_stats(b.fn).compilations, 3);
    bench_free(&b);
}

static void test_a_field_that_nothing_depends_on(void **state)
{
    (void)state;
    bench b = bench_new(loop_step, "x: f32[N], config: record");
    settings config = plain;
    for (config.unused = 0; config.unused < 10; config.unused++)
        with_record(&b, config, 9);
    assert_int_equal(rax_stats(b.fn).compilations, 1);
    config.n_layer = 1;
    with_record(&b, config, 3);
    config.unused = 0;
    config.n_layer = 2;
    with_record(&b, config, 9);
    assert_int_equal(rax_stats(b.fn).compilations, 2);
    bench_free(&b);
}

static void test_a_field_that_is_always_new_pushes_nothing_out(void **state)
{
    (void)state;
    bench b = bench_new(loop_step, "x: f32[N], config: record");
    settings config = plain;
    config.n_layer = 1;
    with_record(&b, config, 3);
    config.n_layer = 2;
    for (config.unused = 0; config.unused < 200; config.unused++)
        with_record(&b, config, 9);
    config = plain;
    config.n_layer = 1;
    with_record(&b, config, 3);
    assert_int_equal(rax_stats(b.fn).compilations, 2);
    bench_free(&b);
}

static void threshold_step(rax_args *in, rax_results *out)
{
    const settings *config = rax_arg_record(in, 1);
    rax_tensor x = rax_arg_tensor(in, 0);
    rax_return_tensor(out, 0, config->step < 5 ? x : rax_neg(x));
}

static void test_a_field_read_through_a_threshold(void **state)
{
    (void)state;
    bench b = bench_new(threshold_step, "x: f32[N], config: record");
    settings config = plain;
    for (config.step = 0; config.step < 10; config.step++)
        with_record(&b, config, config.step < 5 ? 1 : -1);
    assert_int_equal(rax_stats(b.fn).compilations, 2);
    bench_free(&b);
}

/* -- fields as tensors ----------------------------------------------------------------------------------------------------- */

static void field_step(rax_args *in, rax_results *out)
{
    rax_tensor x = rax_arg_tensor(in, 0);
    const settings *config = rax_arg_record(in, 1);
    for (int i = 0; i < config->n_layer; i++)
        x = rax_mul(x, rax_arg_field(in, 1, "scale"));
    rax_return_tensor(out, 0, x);
}

static void test_a_field_taken_as_a_tensor(void **state)
{
    (void)state;
    bench b = bench_new(field_step, "x: f32[N], config: record");
    settings config = plain;
    for (int i = 0; i < 5; i++)
        with_record(&b, config, 9);
    expect_counts(&b, 1, 1, "");
    config.scale = 4;
    with_record(&b, config, 16);                    /* it varies: once more, dynamic, with experiments */
    assert_int_equal(rax_stats(b.fn).compilations, 2);
    int64_t traces = rax_stats(b.fn).traces;
    for (int i = 5; i < 20; i++) {
        config.scale = (float)i;
        with_record(&b, config, i * i);
    }
    expect_counts(&b, 2, (int)traces, "arg 1 config.scale: 3 → 4");
    config.scale = 3;
    with_record(&b, config, 9);                     /* the first value again */
    config.n_layer = 1;
    with_record(&b, config, 3);                     /* static all the same */
    config.scale = 7;
    with_record(&b, config, 7);
    assert_int_equal(rax_stats(b.fn).compilations, 3);
    bench_free(&b);
}

static void scaled_step(rax_args *in, rax_results *out)
{
    rax_tensor x = rax_scale(rax_arg_tensor(in, 0), rax_arg_number(in, 1));
    rax_return_tensor(out, 0, rax_mul(x, rax_arg_field(in, 2, "scale")));
}

/* A first call that is refused is none: fields that it had not come to are not taken to have changed since, and to vary. */
static void test_a_first_call_that_is_refused(void **state)
{
    (void)state;
    bench b = bench_new(scaled_step, "x: f32[N], n: i32, config: record");
    rax_tensor longer = F32(1, 2, 3), to_longer = RAX_NO_TENSOR;
    settings config = plain;
    rax_value args[] = { rax_pass_tensor(b.x), rax_pass_number(1.5), rax_pass_record(&config, &record_type) };
    rax_into results[] = { rax_into_tensor(&b.y) }, others[] = { rax_into_tensor(&to_longer) };
    assert_false(rax_call(b.fn, args, results));
    assert_non_null(strstr(rax_error(), "step: arg 1 n: 1.5 is no i32"));
    args[1] = rax_pass_number(1);
    CALL(b.fn, args, results);
    args[0] = rax_pass_tensor(longer);
    CALL(b.fn, args, others);
    config.scale = 4;                               /* for the first time: the constant that it was so far is another */
    CALL(b.fn, args, others);
    assert_float_equal(rax_item(to_longer, 0), 4, 0);
    assert_int_equal(rax_stats(b.fn).misses, 3);
    rax_tensor_free(longer);
    rax_tensor_free(to_longer);
    bench_free(&b);
}

static void only_field_step(rax_args *in, rax_results *out)
{
    rax_return_tensor(out, 0, rax_mul(rax_arg_tensor(in, 0), rax_arg_field(in, 1, "scale")));
}

static void test_a_record_that_is_never_handed_out(void **state)
{
    (void)state;
    bench b = bench_new(only_field_step, "x: f32[N], config: record");
    settings config = plain;
    with_record(&b, config, 3);
    config.n_layer = 77;                            /* nobody can have read it */
    with_record(&b, config, 3);
    expect_counts(&b, 1, 1, "");
    config.scale = 5;
    with_record(&b, config, 5);
    expect_counts(&b, 2, 2, "arg 1 config.scale: 3 → 5");
    config.scale = 6;
    with_record(&b, config, 6);
    expect_counts(&b, 2, 2, "arg 1 config.scale: 3 → 5");
    bench_free(&b);
}

/* Taken as a tensor, and read as a C value as well. */
static void both_step(rax_args *in, rax_results *out)
{
    rax_tensor x = rax_arg_tensor(in, 0);
    const settings *config = rax_arg_record(in, 1);
    rax_tensor y = rax_mul(x, rax_arg_field(in, 1, "scale"));
    rax_return_tensor(out, 0, rax_scale(y, config->scale));
}

static void test_a_field_taken_and_needed(void **state)
{
    (void)state;
    bench b = bench_new(both_step, "x: f32[N], config: record");
    settings config = plain;
    with_record(&b, config, 9);
    config.scale = 4;
    with_record(&b, config, 16);
    config.scale = 3;
    with_record(&b, config, 9);
    config.scale = 4;
    with_record(&b, config, 16);
    assert_int_equal(rax_stats(b.fn).compilations, 2);
    bench_free(&b);
}

/* DESIGN's own case: the C value only decides whether there is a decay at all. */
static void decay_step(rax_args *in, rax_results *out)
{
    rax_tensor x = rax_arg_tensor(in, 0);
    const settings *config = rax_arg_record(in, 1);
    if (config->decay > 0)
        x = rax_sub(x, rax_mul(x, rax_arg_field(in, 1, "decay")));
    else
        x = rax_scale(x, 100);
    rax_return_tensor(out, 0, x);
}

static void test_a_field_taken_and_compared_with_zero(void **state)
{
    (void)state;
    bench b = bench_new(decay_step, "x: f32[N], config: record");
    settings config = plain;
    with_record(&b, config, 0.5);
    for (int i = 1; i < 5; i++) {
        config.decay = 0.1 * i;
        with_record(&b, config, 1 - 0.1 * i);
    }
    config.decay = 0;
    with_record(&b, config, 100);
    config.decay = 0.25;
    with_record(&b, config, 0.75);
    config.decay = -1;
    with_record(&b, config, 100);
    assert_int_equal(rax_stats(b.fn).compilations, 3);     /* constant; dynamic with decay; without */
    bench_free(&b);
}

static void test_a_field_that_changes_back_and_forth(void **state)
{
    (void)state;
    bench taken = bench_new(field_step, "x: f32[N], config: record"), read = bench_new(loop_step, "x: f32[N], config: record");
    settings config = plain;
    for (int i = 0; i < 10; i++) {
        config.scale = i % 2 ? 5 : 3;
        with_record(&taken, config, i % 2 ? 25 : 9);
        with_record(&read, config, i % 2 ? 25 : 9);
    }
    assert_int_equal(rax_stats(taken.fn).compilations, 2);
    assert_int_equal(rax_stats(read.fn).compilations, 2);
    bench_free(&taken);
    bench_free(&read);
}

static void text_step(rax_args *in, rax_results *out)
{
    rax_return_tensor(out, 0, rax_mul(rax_arg_tensor(in, 0), rax_arg_field(in, 1, "activation")));
}
static void no_field_step(rax_args *in, rax_results *out)
{
    rax_return_tensor(out, 0, rax_mul(rax_arg_tensor(in, 0), rax_arg_field(in, 1, "scales")));
}

static void test_fields_that_make_no_tensor(void **state)
{
    (void)state;
    rax_step *steps[] = { text_step, no_field_step };
    const char *messages[] = { "rax_arg_field: config.activation is text, and no tensor can be made of it",
                               "rax_arg_field: settings has no field scales" };
    for (int i = 0; i < 2; i++) {
        bench b = bench_new(steps[i], "x: f32[N], config: record");
        settings config = plain;
        rax_value args[] = { rax_pass_tensor(b.x), rax_pass_record(&config, &record_type) };
        rax_into results[] = { rax_into_tensor(&b.y) };
        assert_false(rax_call(b.fn, args, results));
        assert_non_null(strstr(rax_error(), messages[i]));
        bench_free(&b);
    }
}

/* -- scalars ------------------------------------------------------------------------------------------------------------------ */

static void dynamic_scalar_step(rax_args *in, rax_results *out)
{
    rax_return_tensor(out, 0, rax_mul(rax_arg_tensor(in, 0), rax_arg_tensor(in, 1)));
}
static void static_scalar_step(rax_args *in, rax_results *out)
{
    rax_return_tensor(out, 0, rax_scale(rax_arg_tensor(in, 0), rax_arg_number(in, 1)));
}
static void unused_scalar_step(rax_args *in, rax_results *out) { rax_return_tensor(out, 0, rax_arg_tensor(in, 0)); }

static void test_scalars(void **state)
{
    (void)state;
    bench dynamic = bench_new(dynamic_scalar_step, "x: f32[N], lr: f32"),
          fixed = bench_new(static_scalar_step, "x: f32[N], n: i32"),
          unused = bench_new(unused_scalar_step, "x: f32[N], n: f64");
    for (int i = 0; i < 6; i++) {
        with_number(&dynamic, 0.5 * i, 0.5 * i);
        with_number(&fixed, i % 2, i % 2);
        with_number(&unused, i, 1);
    }
    expect_counts(&dynamic, 1, 1, "");
    expect_counts(&fixed, 2, 2, "arg 1 n: 0 → 1");
    expect_counts(&unused, 1, 1, "");
    rax_value args[] = { rax_pass_tensor(fixed.x), rax_pass_number(1.5) };
    rax_into results[] = { rax_into_tensor(&fixed.y) };
    assert_false(rax_call(fixed.fn, args, results));
    assert_non_null(strstr(rax_error(), "step: arg 1 n: 1.5 is no i32"));
    with_number(&fixed, 0, 0);                      /* what failed has left nothing behind */
    with_number(&fixed, 1, 1);
    bench_free(&dynamic);
    bench_free(&fixed);
    bench_free(&unused);
}

/* -- shapes ------------------------------------------------------------------------------------------------------------------- */

static void first_step(rax_args *in, rax_results *out) { rax_return_tensor(out, 0, rax_sum(rax_arg_tensor(in, 0), RAX_AXES(0))); }

static void test_another_shape_and_back(void **state)
{
    (void)state;
    rax_tensor small = F32(1, 2, 3), large = F32(1, 2, 3, 4), sum = RAX_NO_TENSOR;
    rax_fn *fn = rax_function(first_step, "sum", "x: f32[N]");
    rax_into results[] = { rax_into_tensor(&sum) };
    for (int i = 0; i < 6; i++) {
        rax_value args[] = { rax_pass_tensor(i % 2 ? large : small) };
        CALL(fn, args, results);
        assert_float_equal(rax_item(sum, 0), (i % 2 ? 10 : 6), 0);
    }
    rax_fn_stats stats = rax_stats(fn);
    assert_int_equal(stats.compilations, 2);
    assert_int_equal(stats.hits, 4);
    assert_string_equal(stats.last_miss, "arg 0 x: f32[3] → f32[4]");
    rax_function_free(fn);
    rax_tensor_free(small);
    rax_tensor_free(large);
    rax_tensor_free(sum);
}

static void tree_step(rax_args *in, rax_results *out)
{
    rax_return_tensor(out, 0, rax_sum(rax_get(rax_arg_tree(in, 0), "w"), RAX_AXES(0)));
}

static void test_trees_that_differ(void **state)
{
    (void)state;
    rax_tree one = rax_tree_new(), two = rax_tree_new(), other = rax_tree_new();
    assert_true(rax_tree_add(one, F32(1), "w") && rax_tree_add(two, F32(2), "w") && rax_tree_add(two, F32(5), "b") &&
                rax_tree_add(other, F32(3, 4), "w"));
    rax_tree order[] = { one, two, other, one, two, other };
    const double sums[] = { 1, 2, 7, 1, 2, 7 };
    const char *misses[] = { "", "arg 0 params: 1 → 2 leaves", "arg 0 params.w: f32[1] → f32[2]" };
    rax_fn *fn = rax_function(tree_step, "sum", "params: tree");
    rax_tensor sum = RAX_NO_TENSOR;
    rax_into results[] = { rax_into_tensor(&sum) };
    for (int i = 0; i < 6; i++) {
        rax_value args[] = { rax_pass_tree(order[i]) };
        CALL(fn, args, results);
        assert_float_equal(rax_item(sum, 0), sums[i], 0);
        if (i == 0 || i == 1)
            assert_string_equal(rax_stats(fn).last_miss, misses[i]);
    }
    assert_int_equal(rax_stats(fn).compilations, 3);
    rax_function_free(fn);
    rax_tree_free(one);
    rax_tree_free(two);
    rax_tree_free(other);
    rax_tensor_free(sum);
}

static void test_the_cache_is_bounded(void **state)
{
    (void)state;
    bench b = bench_new(static_scalar_step, "x: f32[N], n: i32");
    for (int i = 0; i < 100; i++)
        with_number(&b, i, i);
    with_number(&b, 99, 99);
    with_number(&b, 50, 50);
    assert_int_equal(rax_stats(b.fn).compilations, 100);
    with_number(&b, 1, 1);                          /* long gone */
    assert_int_equal(rax_stats(b.fn).compilations, 101);
    bench_free(&b);
}

/* -- what is said -------------------------------------------------------------------------------------------------------------- */

static void train_like_step(rax_args *in, rax_results *out)
{
    const settings *model = rax_arg_record(in, 5);
    rax_tensor x = rax_add(rax_arg_tensor(in, 2), rax_arg_tensor(in, 4));
    for (int i = 0; i < model->n_layer; i++)
        x = rax_mul(x, rax_arg_field(in, 6, "scale"));
    rax_return_tensor(out, 0, x);
}

static void test_the_line_a_compiled_function(void **state)
{
    (void)state;
    rax_tree params = rax_tree_new(), moments = rax_tree_new();
    rax_tensor x = F32(1, 2), y = F32(3), z = RAX_NO_TENSOR;
    settings model = plain, optimizer = plain;
    rax_fn *fn = rax_function(
        train_like_step, "train_step",
        "params: tree, opt_state: tree, x: f32[B], y: f32[_], step: f32, model_config: record, optimizer: record");
    rax_into results[] = { rax_into_tensor(&z) };
    assert_true(rax_configure(NULL));
    capture_stderr();
    for (int i = 0; i < 5; i++) {
        rax_value args[] = { rax_pass_tree(params),
                             rax_pass_tree(moments),
                             rax_pass_tensor(x),
                             rax_pass_tensor(y),
                             rax_pass_number(i),
                             rax_pass_record(&model, &record_type),
                             rax_pass_record(&optimizer, &record_type) };
        model.n_layer = 2 + i / 4;
        if (!rax_call(fn, args, results))
            fprintf(stderr, "%s\n", rax_error());
    }
    char *said = captured();
    assert_string_equal(said, "[RAX] JIT-compiling 'train_step' with static_argnums=[5, 6]\n"
                              "[RAX] compiling 'train_step' again: arg 5 model_config.n_layer: 2 → 3\n");
    base_free(said);
    rax_function_free(fn);
    rax_tree_free(params);
    rax_tree_free(moments);
    rax_tensor_free(x);
    rax_tensor_free(y);
    rax_tensor_free(z);
}

static void test_one_warning_of_a_leaf_that_varies(void **state)
{
    (void)state;
    bench b = bench_new(loop_step, "x: f32[N], config: record");
    settings config = plain;
    assert_true(rax_configure(NULL));
    capture_stderr();
    for (config.n_layer = 1; config.n_layer < 9; config.n_layer++)
        with_record(&b, config, pow(3, config.n_layer));
    char *said = captured();
    const char *warning = strstr(
        said,
        "[RAX] warning: 'step' was compiled 3 more times because config.n_layer varies: it is read as a C value at ");
    assert_non_null(warning);
    assert_non_null(strstr(warning, "tests/test_static_args.c:"));
    assert_null(strstr(warning + strlen("[RAX] warning"), "warning"));
    base_free(said);
    bench_free(&b);
}

static void test_the_compile_trace(void **state)
{
    (void)state;
    rax_settings verbose = { .verbose = 1, .no_jit = true };
    assert_true(rax_configure(&verbose));
    bench b = bench_new(field_step, "x: f32[N], config: record");
    settings config = plain;
    capture_stderr();
    with_record(&b, config, 9);
    config.scale = 4;
    with_record(&b, config, 16);
    config.scale = 5;
    with_record(&b, config, 25);
    bench_free(&b);
    char *said = captured();
    static const char *const lines[] = {
        "[RAX] JIT-compiling 'step' with static_argnums=[1]\n",
        "[RAX]   arg 0 x: f32[N=2]: dynamic\n",
        "[RAX]   arg 1 config: record settings\n",
        "[RAX]     n_layer, decay, twice, activation, step, unused: static: read as a C value at tests/test_static_args.c:",
        "[RAX]     scale: static so far: taken as a tensor, constant while it stays the same at tests/test_static_args.c:",
        "[RAX]   trace ",
        "[RAX]   cse ",
        "[RAX] step: arg 1 config.scale varies and is taken as a tensor: it is dynamic from now on\n",
        "[RAX] compiling 'step' again: arg 1 config.scale: 3 → 4\n",
        "[RAX]     scale: dynamic: taken as a tensor at tests/test_static_args.c:",
        "[RAX] step: 3 calls, 1 hits, 2 compilations",
        "[RAX] step: checking took ",
        "[RAX] step: arg 1 config.scale changed 2 times\n",
    };
    const char *at = said;
    for (size_t i = 0; i < COUNT(lines); i++) {
        const char *found = strstr(at, lines[i]);
        if (!found)
            fail_msg("expected \"%s\" after the line before it in:\n%s", lines[i], said);
        at = found;
    }
    base_free(said);
}

/* Two programs in turn, eight calls: of each return a line is told once, and each time from level 2 on. */
static void test_returning_is_told_once(void **state)
{
    (void)state;
    for (int level = 1; level <= 2; level++) {
        assert_true(rax_configure(&(rax_settings){ .verbose = level, .no_jit = true }));
        bench b = bench_new(loop_step, "x: f32[N], config: record");
        settings config = plain;
        capture_stderr();
        for (int i = 0; i < 8; i++) {
            config.n_layer = 2 + i % 2;
            with_record(&b, config, pow(3, config.n_layer));
        }
        char *said = captured();
        int told = 0;
        for (const char *at = said; (at = strstr(at, "[RAX] step: back to a program that is compiled\n")) != NULL; at++)
            told++;
        assert_int_equal(told, level == 1 ? 2 : 6);
        base_free(said);
        bench_free(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_record_that_decides_a_loop),
        TEST(test_a_field_that_nothing_depends_on),
        TEST(test_a_field_that_is_always_new_pushes_nothing_out),
        TEST(test_a_field_read_through_a_threshold),
        TEST(test_a_field_taken_as_a_tensor),
        TEST(test_a_first_call_that_is_refused),
        TEST(test_a_record_that_is_never_handed_out),
        TEST(test_a_field_taken_and_needed),
        TEST(test_a_field_taken_and_compared_with_zero),
        TEST(test_a_field_that_changes_back_and_forth),
        TEST(test_fields_that_make_no_tensor),
        TEST(test_scalars),
        TEST(test_another_shape_and_back),
        TEST(test_trees_that_differ),
        TEST(test_the_cache_is_bounded),
        TEST(test_the_line_a_compiled_function),
        TEST(test_one_warning_of_a_leaf_that_varies),
        TEST(test_the_compile_trace),
        TEST(test_returning_is_told_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
