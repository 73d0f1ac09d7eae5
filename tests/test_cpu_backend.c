/* The CPU backend, from a graph to its results, against the interpreter: every elementwise op, whole programs, the same bits for any
 * number of threads, every instruction set, code that is found again. */
#include "tests/graphs.h"

#include <unistd.h>

#include "backend_cpu/backend.h"
#include "ir/kernels.h"
#include "tests/backend_programs.h"

static char cache_dir[] = "/tmp/rax-backend-XXXXXX";
static const char *const all_isas[] = { "generic", "avx2", "avx512", "avx512bf16", "amx" };

static bool configure(const char *isa, int threads, const char *cache)
{
    cpu_machine machine;
    assert_true(cpu_machine_detect(&machine, ""));
    for (cpu_isa i = 0; isa && i < CPU_ISA_COUNT; i++)
        if (!strcmp(cpu_isa_name(i), isa) && i > machine.best_isa)
            return false;
    if (!cpu_backend.configure(&(ir_backend_settings){ .threads = threads, .isa = isa, .cache_dir = cache }))
        fail_msg("%s", base_error());
    cpu_set_grain((cpu_grain){ .task_ns = 500, .shared_ns = 0 });
    return true;
}

/* -- running ------------------------------------------------------------------------------------------------------------- */

typedef struct { ir_array *results; char *lines; } outcome;

static void check_guards(const ir_graph *graph, const ir_array *x)
{
    if (!guards_hold(x->data, (size_t)ir_type_bytes(&x->type)))
        fail_msg("%s: written outside of its memory", graph->name);
}

/* Through the passes and the backend, `times` runs; all must give the same bits. */
static outcome run_backend(const ir_graph *graph, const ir_array *params, int times)
{
    ir_graph *copy = ir_graph_clone(graph);
    ir_pass_options passes = { .verify = true, .keep_composite = cpu_backend.keep_composite };
    ir_run_passes(copy, &passes);
    ir_pass_reports_free(&passes);
    ir_compile_report report = {0};
    ir_executable *e = cpu_backend.compile(copy, &(ir_compile_options){ .name = graph->name, .verify = true, .verbose = 3 }, &report);
    ir_graph_free(copy);
    if (!e)
        fail_msg("%s: %s", graph->name, base_error());
    outcome done = { .lines = text_of("%s", report.lines.at ? report.lines.at : "") };
    base_text_free(&report.lines);
    for (int t = 0; t < times; t++) {
        ir_array *in = room(sizeof *in * (size_t)(graph->n_params + 1)), *out = room(sizeof *out * (size_t)(graph->n_results + 1));
        void **param = room(sizeof *param * (size_t)(graph->n_params + 1)), **result = room(sizeof *result * (size_t)(graph->n_results + 1));
        for (int i = 0; i < graph->n_params; i++)
            param[i] = (in[i] = guarded_copy(&params[i])).data;
        for (int i = 0; i < graph->n_results; i++) {
            ir_array fresh = array_of(graph->results[i]->type);
            memset(fresh.data, 0xff, (size_t)ir_type_bytes(&fresh.type));
            out[i] = graph->donated[i] >= 0 ? in[graph->donated[i]] : guarded_copy(&fresh);
            result[i] = out[i].data;
        }
        assert_true(cpu_backend.run(e, param, result));
        for (int i = 0; i < graph->n_params; i++)
            check_guards(graph, &in[i]);
        for (int i = 0; i < graph->n_results; i++) {
            check_guards(graph, &out[i]);
            if (t > 0)
                assert_memory_equal(out[i].data, done.results[i].data, (size_t)ir_type_bytes(&out[i].type));
        }
        done.results = out;
    }
    cpu_backend.free(e);
    return done;
}

static ir_array *values_for(const ir_graph *graph, uint64_t seed)
{
    dice d = { seed };
    ir_array *params = arrays_for_params(graph);
    for (int i = 0; i < graph->n_params; i++)
        fill(&params[i], &d, ir_dtype_is_float(params[i].type.dtype) ? -1 : 0, params[i].type.dtype == IR_I32 ? 6 : params[i].type.dtype == IR_BOOL ? 2 : 1);
    return params;
}

static void check_graph_text(const char *text, double tolerance)
{
    int blocks = made.n;
    ir_graph *graph = graph_of(text);
    ir_array *params = values_for(graph, 11), *expected = run_graph(graph, params);
    outcome got = run_backend(graph, params, 2);
    for (int i = 0; i < graph->n_results; i++) {
        ir_dtype dtype = expected[i].type.dtype;
        double t = dtype == IR_F64 ? 1e-10 : dtype == IR_F32 ? tolerance : dtype == IR_BF16 ? 0.02 : 0;
        compare(graph, i, &got.results[i], &expected[i], t, t);
    }
    while (made.n > blocks)
        base_free(made.block[--made.n]);
}

/* -- every elementwise op ------------------------------------------------------------------------------------------------- */

/* How an operand of shape [rows, n] lies in memory: as it is, transposed, a row for all, a column for all. */
typedef enum { PLAIN, TRANSPOSED, ROW, COLUMN, LAYOUTS } layout;

static ir_node *operand(ir_graph *graph, ir_dtype dtype, int64_t rows, int64_t n, layout how)
{
    ir_type whole = ir_type_of(dtype, 2, (int64_t[]){ rows, n });
    switch (how) {
    case TRANSPOSED: return ir_transpose(graph, ir_parameter(graph, ir_type_of(dtype, 2, (int64_t[]){ n, rows }), NULL), (int[]){ 1, 0 });
    case ROW:        return ir_broadcast(graph, ir_parameter(graph, ir_type_of(dtype, 1, &n), NULL), whole, (int[]){ 1 });
    case COLUMN:     return ir_broadcast(graph, ir_parameter(graph, ir_type_of(dtype, 1, &rows), NULL), whole, (int[]){ 0 });
    case PLAIN: case LAYOUTS: break;
    }
    return ir_parameter(graph, whole, NULL);
}

static void put_odd_values(ir_array *x, dice *d)
{
    static const double odd[] = { 0, -0.0, 1, -1, 0.5, 2, -3, INFINITY, -INFINITY, NAN, 88, -104, 1e10, 3e9, -2147483648.0, 1e-20 };
    static const double whole[] = { 0, 1, -1, 2, -2147483648.0, 2147483647.0, 7, -7 };
    for (int64_t i = 0, n = ir_type_count(&x->type); i < n; i++) {
        bool special = roll(d) < 0.3;
        double value = 8 * roll(d) - 4;
        if (x->type.dtype == IR_BOOL)
            value = value > 0;
        else if (x->type.dtype == IR_I32)
            value = special ? whole[(int)(roll(d) * COUNT_OF(whole))] : floor(1000 * value);
        else if (special)
            value = odd[(int)(roll(d) * COUNT_OF(odd))];
        put(x, i, value);
    }
}

/* All ops that take this dtype, in one graph: each is a result. */
static void check_ops(ir_dtype dtype, int64_t n, layout how, uint64_t seed)
{
    int blocks = made.n, graphs = made.n_graphs;
    ir_graph *graph = keep(ir_graph_new("ops"));
    ir_node *x = operand(graph, dtype, 3, n, PLAIN), *y = operand(graph, dtype, 3, n, how), *c = operand(graph, IR_BOOL, 3, n, how);
    ir_node *results[2 * IR_OPS];
    int n_results = 0;
    for (ir_op op = 0; op < IR_OPS; op++) {
        if (ir_op_table[op].class != IR_ELEMENTWISE)
            continue;
        ir_node *args[] = { x, y, y };
        if (op == OP_select)
            args[0] = c, args[1] = x;
        for (ir_dtype to = IR_F32; to < IR_TUPLE; to++) {
            ir_type stated = ir_type_of(to, 2, (int64_t[]){ 3, n }), type, *tuple;
            int n_tuple;
            base_text why = {0};
            bool cast = op == OP_cast;
            if (cast ? to != dtype : to == 0)
                if (ir_infer(graph, op, ir_op_table[op].arity, args, NULL, cast ? &stated : NULL, &type, &n_tuple, &tuple, &why))
                    results[n_results++] = ir_add(graph, op, ir_op_table[op].arity, args, NULL, cast ? &stated : NULL);
            base_text_free(&why);
        }
    }
    ir_set_results(graph, n_results, results, NULL);
    ir_array *params = arrays_for_params(graph), *expected = arrays_for_results(graph);
    dice d = { seed };
    for (int i = 0; i < graph->n_params; i++)
        put_odd_values(&params[i], &d);
    assert_true(ir_interpret(graph, params, expected));
    outcome got = run_backend(graph, params, 1);
    for (int i = 0; i < n_results; i++) {
        ir_dtype of = expected[i].type.dtype;
        double tolerance = of == IR_F64 ? 1e-13 : of == IR_F32 ? 6e-7 : of == IR_BF16 ? 0x1p-7 : 0;
        compare(graph, i, &got.results[i], &expected[i], tolerance, ir_dtype_is_float(of) ? 1e-37 : 0);
    }
    while (made.n > blocks)
        base_free(made.block[--made.n]);
    while (made.n_graphs > graphs)
        ir_graph_free(made.graph[--made.n_graphs]);
}

static void test_every_op(void **state)
{
    static const int64_t sizes[] = { 1, 2, 3, 15, 16, 17, 31, 33, 64, 127 };
    (void)state;
    for (size_t isa = 0; isa < COUNT_OF(all_isas); isa++) {
        if (!configure(all_isas[isa], 2, cache_dir))
            continue;
        for (ir_dtype dtype = IR_F32; dtype < IR_TUPLE; dtype++)
            for (size_t i = 0; i < COUNT_OF(sizes); i++)
                for (layout how = 0; how < LAYOUTS; how++)
                    check_ops(dtype, sizes[i], how, 1 + i);
        cpu_backend.shutdown();
    }
}

/* -- programs ---------------------------------------------------------------------------------------------------------------- */

static void test_programs(void **state)
{
    (void)state;
    for (size_t isa = 0; isa < COUNT_OF(all_isas); isa++) {
        if (!configure(all_isas[isa], 2, cache_dir))
            continue;
        for (size_t i = 0; i < COUNT_OF(backend_programs); i++) {
            ir_graph *graph = ir_parse("programs", backend_programs[i], strlen(backend_programs[i]));
            if (!graph)
                fail_msg("%s\n%s", base_error(), backend_programs[i]);
            ir_graph_free(graph);
            check_graph_text(backend_programs[i], 1e-5);
        }
        cpu_backend.shutdown();
    }
}

/* -- products ---------------------------------------------------------------------------------------------------------------- */

static void check_product(ir_dtype dtype, int64_t batch, int64_t m, int64_t n, int64_t k, int transposes)
{
    const char *d = ir_dtype_name(dtype);
    bool a = transposes & 1, b = transposes & 2, c = transposes & 4, bias = transposes & 8;
    char *text = text_of("graph product(%%0: %s[%d,%d,%d], %%1: %s[%d,%d,%d], %%2: %s[%d]) {\n"
                         "  %%3: %s[%d,%d,%d] = transpose %%0 {axes=[0,%s]}\n  %%4: %s[%d,%d,%d] = transpose %%1 {axes=[0,%s]}\n"
                         "  %%5: %s[%d,%d,%d] = matmul %%3, %%4\n  %%6: %s[%d,%d,%d] = transpose %%5 {axes=[%s]}\n"
                         "  %%7: %s[%d,%d,%d] = broadcast %%2 {axes=[2]}\n  %%8: %s[%d,%d,%d] = add %%5, %%7\n  return %%6%s\n}\n",
                         d, (int)batch, (int)(a ? k : m), (int)(a ? m : k), d, (int)batch, (int)(b ? n : k), (int)(b ? k : n), d, (int)n,
                         d, (int)batch, (int)m, (int)k, a ? "2,1" : "1,2", d, (int)batch, (int)k, (int)n, b ? "2,1" : "1,2",
                         d, (int)batch, (int)m, (int)n, d, (int)(c ? n : batch), (int)(c ? m : m), (int)(c ? batch : n), c ? "2,1,0" : "0,1,2",
                         d, (int)batch, (int)m, (int)n, d, (int)batch, (int)m, (int)n, bias ? ", %8" : "");
    check_graph_text(text, 3e-6 * sqrt((double)k));
}

static void test_products(void **state)
{
    static const int64_t shapes[][4] = { { 1, 1, 1, 1 }, { 1, 7, 9, 5 }, { 3, 17, 33, 65 }, { 2, 1, 40, 31 }, { 2, 40, 1, 31 }, { 1, 130, 257, 70 }, { 5, 16, 16, 1 } };
    (void)state;
    static const char *const isas[] = { "generic", "avx2", NULL };
    for (size_t isa = 0; isa < COUNT_OF(isas); isa++) {
        if (!configure(isas[isa], 2, cache_dir))
            continue;
        for (size_t i = 0; i < COUNT_OF(shapes); i++)
            for (int transposes = 0; transposes < 16; transposes++)
                for (ir_dtype dtype = IR_F32; dtype <= IR_BF16; dtype++)
                    check_product(dtype, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], transposes);
        cpu_backend.shutdown();
    }
}

/* -- threads ------------------------------------------------------------------------------------------------------------------ */

static const char training_step[] =
    "graph step(%0: f32[160,48] \"x\", %1: f32[48,200] \"w\", %2: f32[200] \"b\", %3: f32[200,10] \"v\", %4: i32[160] \"y\", %5: i32[2], %6: i32[]) {\n"
    "  %7: f32[160,200] = matmul %0, %1\n  %8: f32[160,200] = broadcast %2 {axes=[1]}\n  %9: f32[160,200] = add %7, %8\n  %10: f32[160,200] = gelu %9\n"
    "  %11: bool[160,200] = bernoulli %5, %6 {value=0.2, site=1}\n  %12: f32[160,200] = constant {value=0}\n  %13: f32[160,200] = select %11, %10, %12\n"
    "  %14: f32[160,10] = matmul %13, %3\n  %15: f32[160] = cross_entropy %14, %4\n  %16: f32[] = reduce_sum %15 {axes=[0]}\n"
    "  %17: f32[160,10] = softmax %14 {axis=1}\n  %18: f32[200,160] = transpose %13 {axes=[1,0]}\n  %19: f32[200,10] = matmul %18, %17\n"
    "  %20: f32[200] = reduce_sum %13 {axes=[0]}\n  %21: f32[200,10] = mul %19, %19\n  %22: f32[] = reduce_sum %21 {axes=[0,1]}\n  return %16, %19, %20, %22, %14\n}\n";

static void test_threads(void **state)
{
    static const int counts[] = { 1, 2, 3, 7 };
    (void)state;
    ir_graph *graph = graph_of(training_step);
    ir_array *params = values_for(graph, 5), *expected = run_graph(graph, params), *first = NULL;
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        assert_true(configure(NULL, counts[i], cache_dir));
        outcome got = run_backend(graph, params, 20);
        for (int r = 0; r < graph->n_results; r++) {
            compare(graph, r, &got.results[r], &expected[r], 1e-5, 1e-4);
            if (first)
                assert_memory_equal(got.results[r].data, first[r].data, (size_t)ir_type_bytes(&got.results[r].type));
        }
        first = first ? first : got.results;
        cpu_backend.shutdown();
    }
}

/* -- code that is found again, programs that do not fit ------------------------------------------------------------------------ */

static void check_code_line(const outcome *got, const char *expected)
{
    if (!strstr(got->lines, expected))
        fail_msg("expected \"%s\" in:\n%s", expected, got->lines);
}

static void test_code_is_found_again(void **state)
{
    static const char form[] = "graph f(%%0: f32[%d,%d], %%1: f32[%d]) { %%2: f32[%d,%d] = broadcast %%1 {axes=[1]} %%3: f32[%d,%d] = add %%0, %%2"
                               " %%4: f32[%d,%d] = softmax %%3 {axis=1}"
                               " %%5: f32[%d] = reduce_sum %%4 {axes=[0]} return %%4, %%5 }";
    char folder[] = "/tmp/rax-backend-XXXXXX", command[64];
    (void)state;
    assert_non_null(mkdtemp(folder));
    for (int start = 0; start < 2; start++) {
        assert_true(configure(NULL, 1, folder));
        for (int i = 0; i < 2; i++) {
            int m = 27 + 20 * i, n = 40 + 33 * i;
            ir_graph *graph = graph_of(text_of(form, m, n, n, m, n, m, n, m, n, n));
            outcome got = run_backend(graph, values_for(graph, 3), 1);
            if (i == 1)
                check_code_line(&got, " 0 not in the process, 0 of these not on disk");
            else if (start == 1)
                check_code_line(&got, " 0 of these not on disk");
            else
                assert_null(strstr(got.lines, " 0 of these not on disk"));
        }
        cpu_backend.shutdown();
    }
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

/* -- programs of one process ------------------------------------------------------------------------------------------------ */

typedef struct { ir_executable *program; ir_graph *graph; void *params[2], *result; size_t bytes; } turn;

static turn turn_new(int n)
{
    turn t = { .graph = graph_of(text_of("graph turn(%%0: f32[%d,64], %%1: f32[64,%d]) { %%2: f32[%d,%d] = matmul %%0, %%1 %%3: f32[%d,%d] = tanh %%2"
                                         " %%4: f32[%d,64] = matmul %%3, %%0 return %%4 }", n, n, n, n, n, n, n)) };
    ir_array *params = values_for(t.graph, 5);
    ir_graph *copy = ir_graph_clone(t.graph);
    ir_compile_report report = {0};
    for (int i = 0; i < 2; i++)
        t.params[i] = params[i].data;
    ir_array result = array_of(t.graph->results[0]->type);
    t.bytes = (size_t)ir_type_bytes(&result.type);
    t.result = result.data;
    t.program = cpu_backend.compile(copy, &(ir_compile_options){ .name = "turn", .verify = true }, &report);
    ir_graph_free(copy);
    base_text_free(&report.lines);
    if (!t.program)
        fail_msg("%s", base_error());
    return t;
}

/* The first run's result, then that it stays the same. */
static void take_turn(turn *t, void **expected)
{
    memset(t->result, 0xff, t->bytes);
    assert_true(cpu_backend.run(t->program, t->params, &t->result));
    if (!*expected)
        *expected = memcpy(room(t->bytes), t->result, t->bytes);
    assert_memory_equal(t->result, *expected, t->bytes);
    memset(t->result, 0xff, t->bytes);
    assert_true(cpu_backend.run_again(t->program));
    assert_memory_equal(t->result, *expected, t->bytes);
}

/* A larger program than those before moves the memory of all. */
static void test_programs_share_memory(void **state)
{
    (void)state;
    void *small_result = NULL, *large_result = NULL;
    assert_true(configure(NULL, 2, cache_dir));
    turn small = turn_new(40);
    take_turn(&small, &small_result);
    turn large = turn_new(1500);
    take_turn(&small, &small_result);
    take_turn(&large, &large_result);
    take_turn(&small, &small_result);
    size_t mapped = base_mapped_bytes();
    turn other = turn_new(1500);
    assert_true(base_mapped_bytes() - mapped < cpu_backend.arena_bytes(other.program) / 2 + 3 * other.bytes);
    take_turn(&other, &large_result);
    take_turn(&large, &large_result);
    cpu_backend.free(large.program);
    cpu_backend.free(other.program);
    take_turn(&small, &small_result);
    cpu_backend.free(small.program);
    cpu_backend.shutdown();
}

static void test_too_large(void **state)
{
    (void)state;
    assert_true(configure(NULL, 1, ""));
    ir_graph *graph = graph_of("graph large(%0: f32[1000000,2], %1: f32[2,1000000]) { %2: f32[1000000,1000000] = matmul %0, %1 %3: f32[1000000,1000000] = tanh %2"
                               " %4: f32[1000000,2] = matmul %3, %0 return %4 }");
    ir_compile_report report = {0};
    assert_null(cpu_backend.compile(graph, &(ir_compile_options){ .name = "large" }, &report));
    assert_non_null(strstr(base_error(), "does not fit"));
    base_text_free(&report.lines);
    base_error_clear();
    cpu_backend.shutdown();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        GRAPH_TEST(test_every_op), GRAPH_TEST(test_programs), GRAPH_TEST(test_products), GRAPH_TEST(test_threads),
        GRAPH_TEST(test_code_is_found_again), GRAPH_TEST(test_programs_share_memory),
        GRAPH_TEST(test_too_large),
    };
    if (!mkdtemp(cache_dir))
        return 1;
    int failed = cmocka_run_group_tests_name("the CPU backend", tests, NULL, NULL);
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", cache_dir);
    return system(command) != 0 ? 1 : failed;
}
