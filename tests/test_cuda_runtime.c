/* What the CUDA backend tells: where time goes, what the device can do, and what is wrong with a driver or a kernel. */
#include "tests/cuda_standin.h"

static ir_executable *compiled(const char *text, int host_scalars)
{
    ir_graph *graph = graph_of(text);
    ir_compile_report report = {0};
    ir_executable *e = cuda_backend.compile(graph, &(ir_compile_options){ .name = graph->name, .host_scalars = host_scalars }, &report);
    base_text_free(&report.lines);
    return e;
}

/* -- profiles ---------------------------------------------------------------------------------------------------------------- */

/* A product, then a loop of three products, each with something behind it that leaves it. */
static const char program[] =
    "graph p(%0: f32[24,24]) { %1: f32[24,24] = matmul %0, %0"
    " %2: (f32[24,24]) = scan %1 {count=3, carry=1} graph turn(%0: f32[24,24]) { %1: f32[24,24] = matmul %0, %0 %2: f32[24,24] = tanh %1 return %2 }"
    " %3: f32[24,24] = result %2 {index=0} %4: f32[24] = reduce_max %3 {axes=[1]} return %3, %4 }";

static void test_profile(void **state)
{
    enum { RUNS = 4, TRACED = 2 };
    (void)state;
    standin_begin(NULL);
    ir_executable *e = compiled(program, 0);
    assert_non_null(e);
    assert_null(cuda_backend.profile_of(e));
    cuda_backend.profile(e, TRACED);
    void *param[] = { cuda_backend.memory_new(24 * 24 * 4) }, *result[] = { cuda_backend.memory_new(24 * 24 * 4), cuda_backend.memory_new(24 * 4) };
    for (int i = 0; i < RUNS; i++)
        assert_true(cuda_backend.run(e, param, result));
    const ir_profile *p = cuda_backend.profile_of(e);
    double busy = 0, flops = 0;
    int64_t products = 0, last = 0;
    assert_non_null(p->device);
    assert_int_equal(p->runs, RUNS - 1);
    for (int i = 0; i < p->n_kernels; i++) {
        const ir_kernel_profile *k = &p->kernels[i];
        assert_true(k->busy_ns >= 0 && k->idle_ns == 0 && (k->runs > 0 || k->busy_ns == 0));
        busy += k->busy_ns;
        flops += k->flops * (double)k->runs;
        products += k->name && strstr(k->name, "matmul") ? k->runs : 0;
    }
    assert_int_equal(products, 4 * (RUNS - 1));
    assert_true(flops >= 4.0 * 2 * 24 * 24 * 24 * (RUNS - 1));
    assert_true(p->wall_ns > 0 && busy <= p->wall_ns * 1.1 && busy >= p->wall_ns * 0.9);      /* a device's clock of events is a coarse one */
    assert_true(p->n_events >= TRACED * 4);
    for (int i = 0; i < p->n_events; i++) {
        assert_true(p->events[i].begin_ns >= last && p->events[i].end_ns >= p->events[i].begin_ns);
        last = p->events[i].begin_ns;
    }
    cuda_backend.memory_free(param[0]);
    cuda_backend.memory_free(result[0]);
    cuda_backend.memory_free(result[1]);
    cuda_backend.free(e);
    standin_end();
}

static void test_peak(void **state)
{
    ir_peak peak;
    (void)state;
    standin_begin(NULL);
    if (!cuda_backend.measure_peak(&peak))
        fail_msg("%s", base_error());
    assert_true(peak.device && peak.threads == 1 && peak.f32_gflops > 0 && peak.bf16_gflops > 0 && peak.read_gbs > 0 && peak.update_gbs > 0);
    standin_end();
}

/* -- tuning ------------------------------------------------------------------------------------------------------------------------ */

/* The algorithm that a product takes in a process of its own. */
static int algorithm_of(const char *cache_dir, bool tune, char digest[64])
{
    standin_use();
    if (!cuda_backend.configure(&(ir_backend_settings){ .cache_dir = cache_dir, .tune = tune }))
        fail_msg("%s", base_error());
    ir_executable *e = compiled("graph p(%0: f32[8,16], %1: f32[16,24]) { %2: f32[8,24] = matmul %0, %1 return %2 }", 0);
    if (!e)
        fail_msg("%s", base_error());
    void *param[] = { cuda_backend.memory_new(8 * 16 * 4), cuda_backend.memory_new(16 * 24 * 4) }, *result[] = { cuda_backend.memory_new(8 * 24 * 4) };
    assert_true(cuda_backend.run(e, param, result) && cuda_backend.wait());
    snprintf(digest, 64, "%s", cuda_backend.tuned());
    cuda_backend.memory_free(param[0]);
    cuda_backend.memory_free(param[1]);
    cuda_backend.memory_free(result[0]);
    cuda_backend.free(e);
    standin_end();
    return standin.algorithm;
}

/* The one line of the table, with a digit of it changed. */
static void damage_table(const char *folder)
{
    char command[256];
    snprintf(command, sizeof command, "sed -i 's/\\t0/\\t1/' %s/objects/products-*.table", folder);
    assert_int_equal(system(command), 0);
}

static void test_tuning(void **state)
{
    char folder[] = "/tmp/rax-tune-XXXXXX", first[64], digest[64], command[64];
    (void)state;
    if (standin_is_device())
        skip();
    assert_non_null(mkdtemp(folder));
    standin.fast_second = true;
    assert_int_equal(algorithm_of(folder, false, digest), 4711);
    assert_string_equal(digest, "");
    assert_int_equal(algorithm_of(folder, true, first), 4712);
    assert_int_equal(strncmp(first, "xxh3:", 5), 0);
    assert_int_equal(algorithm_of(folder, false, digest), 4712);      /* from now on, whoever asks */
    assert_string_equal(digest, first);
    standin.fast_second = false;
    assert_int_equal(algorithm_of(folder, false, digest), 4712);
    damage_table(folder);
    assert_int_equal(algorithm_of(folder, false, digest), 4711);
    assert_string_equal(digest, "");
    snprintf(command, sizeof command, "rm -r %s", folder);
    assert_int_equal(system(command), 0);
}

/* -- what is wrong --------------------------------------------------------------------------------------------------------------- */

static void check_refused(const char *expected)
{
    cuda_library_use(&standin_library);
    assert_false(cuda_backend.configure(&(ir_backend_settings){ .cache_dir = "" }));
    if (!strstr(base_error(), expected) || strchr(base_error(), '\n'))
        fail_msg("expected ...%s..., got %s", expected, base_error());
    base_error_clear();
    standin.driver = 0;
    cuda_library_use(NULL);
}

static void test_driver_too_old(void **state)
{
    (void)state;
    if (standin_is_device())
        skip();
    standin.driver = 11080;
    check_refused("device cuda: the driver is of CUDA 11.8 and too old for NVRTC of CUDA 13.0");
    standin.driver = 12040;
    check_refused("device cuda: the driver is of CUDA 12.4 and too old for NVRTC of CUDA 13.0");
}

/* A compiler that is older than the card: code for an earlier one of its generation runs on it, and where there is none the driver finishes the work. One that is too new for it is refused. */
static void test_other_compilers(void **state)
{
    static const struct { int major, minor, newest, target; bool ptx; } cases[] = { { 8, 9, 0, 86, false }, { 9, 0, 0, 90, false }, { 12, 0, 0, 100, true }, { 10, 3, 0, 100, false },
                                                                                    { 9, 0, 86, 86, true } };
    int major = standin.arch_major, minor = standin.arch_minor;
    (void)state;
    if (standin_is_device())
        skip();
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        standin.arch_major = cases[i].major, standin.arch_minor = cases[i].minor, standin.newest_target = cases[i].newest;
        int taken = standin.ptx_taken;
        standin_begin("");
        const cuda_machine *machine = cuda_device_machine(cuda_backend_device());
        assert_int_equal(machine->target, cases[i].target);
        assert_int_equal(machine->target_is_ptx, cases[i].ptx);
        ir_executable *e = compiled("graph p(%0: f32[8]) { %1: f32[8] = tanh %0 return %1 }", 0);
        assert_non_null(e);
        assert_int_equal(standin.ptx_taken - taken, cases[i].ptx);
        cuda_backend.free(e);
        standin_end();
    }
    standin.arch_major = 7, standin.arch_minor = 0, standin.newest_target = 75;
    check_refused("device cuda: NVRTC of CUDA 13.0 no longer compiles for stand-in, of compute capability 7.0");
    standin.arch_major = major, standin.arch_minor = minor, standin.newest_target = 0;
}

/* cuBLASLt's errors have its own names, not those that the driver has for the same number. */
static void test_blas_errors(void **state)
{
    (void)state;
    assert_true(cuda_blas_ok(0, "cublasLtMatmul"));
    assert_false(cuda_blas_ok(7, "cublasLtMatmul"));
    assert_string_equal(base_error(), "device cuda: cuBLASLt: a value is not taken (status 7 of cublasLtMatmul)");
    base_error_clear();
}

/* The compiler's own words, and where what it was given can be read. */
static void test_refused_kernel(void **state)
{
    base_bytes cubin = {0};
    (void)state;
    standin_begin("");
    const cuda_library *library = cuda_device_library(cuda_backend_device());
    const cuda_machine *machine = cuda_device_machine(cuda_backend_device());
    assert_false(cuda_compile_source(library, "this is no kernel;\n", "refused", machine->target, machine->target_is_ptx, &cubin));
    const char *path = strstr(base_error(), "; its source is in ");
    if (strncmp(base_error(), "NVRTC refuses refused: ", 23) != 0 || !path || strchr(base_error(), '\n'))
        fail_msg("got %s", base_error());
    FILE *file = fopen(path + strlen("; its source is in "), "r");
    char line[64];
    assert_non_null(file);
    assert_non_null(fgets(line, sizeof line, file));
    fclose(file);
    assert_string_equal(line, "this is no kernel;\n");
    base_error_clear();
    standin_end();
}

int main(void)
{
    const struct CMUnitTest tests[] = { GRAPH_TEST(test_profile), GRAPH_TEST(test_peak), GRAPH_TEST(test_tuning), GRAPH_TEST(test_driver_too_old), GRAPH_TEST(test_other_compilers), GRAPH_TEST(test_blas_errors), GRAPH_TEST(test_refused_kernel) };
    return cmocka_run_group_tests_name("the CUDA backend's runtime", tests, NULL, NULL);
}
