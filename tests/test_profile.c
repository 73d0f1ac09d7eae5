/* Profiles: kernels are counted as often as they ran, time adds up, events lie in their runs, and nobody pays who has not asked. */
#include "tests/tracer_support.h"

enum { ROWS = 96, TURNS = 5, RUNS = 4 };

/* (x) -> (y): a product, then a loop of TURNS products. */
static void turn(void *context, const rax_tensor *carry, const rax_tensor *x, rax_tensor *next, rax_tensor *y)
{
    (void)context, (void)x, (void)y;
    next[0] = rax_tanh(rax_matmul(carry[0], carry[0]));
}
static void step(rax_args *in, rax_results *out)
{
    rax_tensor x = rax_arg_tensor(in, 0), carry = rax_matmul(x, x);
    rax_scan(turn, NULL, TURNS, 1, &carry, 0, NULL, 0, NULL);
    rax_return_tensor(out, 0, carry);
}

static rax_fn *called(rax_settings settings, int runs, int rows)
{
    settings.quiet = true;
    settings.cache_dir = "";
    if (!rax_configure(&settings))
        fail_msg("%s", rax_error());
    rax_fn *fn = rax_function(step, "step", "x: f32[N,N]");
    rax_tensor x = rax_tensor_new(RAX_F32, RAX_SHAPE(rows, rows)), y = RAX_NO_TENSOR;
    for (int i = 0; i < runs; i++) {
        rax_value args[] = { rax_pass_tensor(x) };
        rax_into results[] = { rax_into_tensor(&y) };
        CALL(fn, args, results);
    }
    rax_tensor_free(x);
    rax_tensor_free(y);
    return fn;
}

static void check_times(const rax_profile *p)
{
    double sum = 0;
    for (int i = 0; i < p->n_kernels; i++) {
        const rax_kernel_profile *k = &p->kernels[i];
        assert_true(k->busy_ms >= 0 && k->idle_ms >= 0);
        assert_true(k->runs > 0 || (k->busy_ms == 0 && k->gflop == 0 && k->mb == 0));
        sum += k->busy_ms + k->idle_ms;
    }
    assert_true(sum > 0);
    assert_true(p->wall_ms > 0);
    if (sum > p->wall_ms * p->threads * 1.001)
        fail_msg("expected kernels within %g ms on %d threads, got %g ms", p->wall_ms, p->threads, sum);
}

static void test_kernels_are_counted(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 3; threads++) {
        rax_fn *fn = called((rax_settings){ .profile = true, .threads = threads }, RUNS, ROWS);
        const rax_profile *p = rax_profile_of(fn, 0);
        int64_t products = 0;
        double gflop = 0;
        assert_non_null(p);
        assert_string_equal(p->function, "step");
        assert_int_equal(p->runs, RUNS - 1);              /* the first is left out */
        assert_true(p->threads >= 1 && p->threads <= threads);
        assert_int_equal(p->n_events, 0);
        for (int i = 0; i < p->n_kernels; i++) {
            const rax_kernel_profile *k = &p->kernels[i];
            if (strncmp(k->name, "matmul", 6) != 0)
                continue;
            products += k->runs;
            gflop += k->gflop;
            assert_string_equal(k->shape, "96x96x96");
            assert_int_equal(k->dtype, RAX_F32);
            assert_non_null(strstr(k->place.file, "test_profile.c"));
            assert_true(*k->how);
        }
        assert_int_equal(products, (RUNS - 1) * (1 + TURNS));
        double least = 2e-9 * ROWS * ROWS * ROWS * (double)products;      /* what follows a product counts beside it */
        assert_true(gflop >= least && gflop < 1.1 * least);
        check_times(p);
        assert_null(rax_profile_of(fn, 1));
        rax_function_free(fn);
        rax_shutdown();
    }
}

static void test_one_run_counts_where_there_is_no_other(void **state)
{
    (void)state;
    rax_fn *fn = called((rax_settings){ .profile = true, .threads = 2 }, 1, ROWS);
    const rax_profile *p = rax_profile_of(fn, 0);
    assert_non_null(p);
    assert_int_equal(p->runs, 1);
    check_times(p);
    rax_function_free(fn);
}

static void test_events(void **state)
{
    (void)state;
    enum { TRACED = 2 };
    rax_fn *fn = called((rax_settings){ .profile = true, .trace_runs = TRACED, .threads = 2 }, RUNS, 256);
    const rax_profile *p = rax_profile_of(fn, 0);
    double last[2] = { 0, 0 };
    int waits = 0;
    int64_t products = 0;
    assert_non_null(p);
    assert_int_equal(p->threads, 2);
    for (int i = 0; i < p->n_events; i++) {
        const rax_profile_event *e = &p->events[i];
        assert_true(e->thread >= 0 && e->thread < 2);
        assert_true(e->kernel >= -1 && e->kernel < p->n_kernels);
        assert_true(e->begin_us >= last[e->thread] && e->end_us >= e->begin_us);          /* of one thread one after another */
        last[e->thread] = e->end_us;
        waits += e->kernel < 0;
        products += e->kernel >= 0 && p->kernels[e->kernel].runs > 0;
    }
    assert_true(waits > 0);
    assert_true(products >= TRACED * (1 + TURNS));
    rax_function_free(fn);
}

static void test_each_program_has_its_own(void **state)
{
    (void)state;
    rax_fn *fn = called((rax_settings){ .profile = true, .threads = 1 }, 3, 32);
    rax_tensor x = rax_tensor_new(RAX_F32, RAX_SHAPE(48, 48)), y = RAX_NO_TENSOR;
    rax_value args[] = { rax_pass_tensor(x) };
    rax_into results[] = { rax_into_tensor(&y) };
    CALL(fn, args, results);
    assert_int_equal(rax_profile_of(fn, 0)->runs, 1);       /* the last called */
    assert_int_equal(rax_profile_of(fn, 1)->runs, 2);
    assert_null(rax_profile_of(fn, 2));
    assert_null(rax_profile_of(fn, -1));
    rax_tensor_free(x);
    rax_tensor_free(y);
    rax_function_free(fn);
}

static void test_nobody_asked(void **state)
{
    (void)state;
    rax_fn *fn = called((rax_settings){0}, 2, 32);
    assert_null(rax_profile_of(fn, 0));
    rax_function_free(fn);
    rax_shutdown();
    fn = called((rax_settings){ .profile = true, .no_jit = true }, 2, 8);
    assert_null(rax_profile_of(fn, 0));
    rax_function_free(fn);
    assert_null(rax_profile_of(NULL, 0));
}

static void check_peak(const char *isa, int threads, rax_peak *peak)
{
    if (!rax_configure(&(rax_settings){ .quiet = true, .isa = isa, .threads = threads }) || !rax_measure_peak(peak))
        fail_msg("%s: %s", isa ? isa : "", rax_error());
    assert_int_equal(peak->threads, threads);
    assert_true(peak->f32_gflops > 0 && peak->bf16_gflops > 0 && peak->read_gbs > 0 && peak->update_gbs > 0);
    rax_shutdown();
}

static void test_peak(void **state)
{
    static const char *const isas[] = { "generic", "avx2", "avx512", "avx512bf16", "amx" };
    rax_peak peak;
    (void)state;
    for (size_t i = 0; i < COUNT(isas); i++) {
        bool has = rax_configure(&(rax_settings){ .quiet = true, .isa = isas[i] });
        rax_shutdown();
        if (has)
            check_peak(isas[i], 1 + (int)i % 2, &peak);
    }
    rax_error_clear();
    assert_true(rax_configure(&(rax_settings){ .quiet = true, .no_jit = true }));
    assert_false(rax_measure_peak(&peak));
    assert_non_null(strstr(rax_error(), "interpreter"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_kernels_are_counted), TEST(test_one_run_counts_where_there_is_no_other), TEST(test_events),
        TEST(test_each_program_has_its_own), TEST(test_nobody_asked), TEST(test_peak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
