/* The CUDA backend on the stand-in for a GPU, from a graph to its results, against the interpreter: every elementwise op, whole programs,
 * attention and its gradient. Kernels of attention are compiled by NVRTC too, where it is installed. */
#include "tests/backend_programs.h"
#include "tests/cuda_nvrtc.h"
#include "tests/cuda_standin.h"

/* -- running -------------------------------------------------------------------------------------------------------------- */

static void *on_device(const ir_array *x)
{
    size_t bytes = (size_t)ir_type_bytes(&x->type);
    void *memory = cuda_backend.memory_new(bytes);
    assert_non_null(memory);
    assert_true(cuda_backend.upload(memory, x->data, bytes));
    return memory;
}

/* Through the passes and the backend, twice from the same parameters: the second run must give the same bits. */
static ir_array *run_cuda(const ir_graph *graph, const ir_array *params, const cuda_library *nvrtc)
{
    static int compiled;
    int architecture = standin.arch_major < 8 ? 75 : compiled % 2 ? 80 : 90;                 /* by turns: GPT-2's and a golden run's are compiled for both */
    ir_graph *copy = ir_graph_clone(graph);
    ir_pass_options passes = { .verify = true, .keep_composite = cuda_backend.keep_composite };
    ir_run_passes(copy, &passes);
    ir_pass_reports_free(&passes);
    ir_compile_report report = {0};
    ir_executable *e = cuda_backend.compile(copy, &(ir_compile_options){ .name = graph->name, .verify = true }, &report);
    ir_graph_free(copy);
    base_text_free(&report.lines);
    if (!e)
        fail_msg("%s: %s", graph->name, base_error());
    if (nvrtc)
        compile_with_nvrtc(nvrtc, cuda_last_compiler(e), &architecture, 1);
    compiled += nvrtc != NULL;
    ir_array *first = NULL;
    for (int run = 0; run < 2; run++) {
        void **param = room(sizeof *param * (size_t)(graph->n_params + 1)), **result = room(sizeof *result * (size_t)(graph->n_results + 1));
        ir_array *out = arrays_for_results(graph);
        for (int i = 0; i < graph->n_params; i++)
            param[i] = on_device(&params[i]);
        for (int i = 0; i < graph->n_results; i++)
            result[i] = graph->donated[i] >= 0 ? param[graph->donated[i]] : on_device(&out[i]);
        if (!cuda_backend.run(e, param, result))
            fail_msg("%s: %s", graph->name, base_error());
        for (int i = 0; i < graph->n_results; i++) {
            size_t bytes = (size_t)ir_type_bytes(&out[i].type);
            assert_true(cuda_backend.download(out[i].data, result[i], bytes));
            if (first)
                assert_memory_equal(out[i].data, first[i].data, bytes);
            if (graph->donated[i] < 0)
                cuda_backend.memory_free(result[i]);
        }
        for (int i = 0; i < graph->n_params; i++)
            cuda_backend.memory_free(param[i]);
        first = first ? first : out;
    }
    cuda_backend.free(e);
    return first;
}

static void forget(int blocks)
{
    while (made.n > blocks)
        base_free(made.block[--made.n]);
}

static double largest(const ir_array *x)
{
    double most = 0;
    for (int64_t i = 0; i < ir_type_count(&x->type); i++)
        most = fmax(most, fabs(get(x, i)));
    return most;
}

/* rounds: the program computes in bf16, so that errors go by the largest element. */
static void check_program(ir_graph *graph, double tolerance, bool rounds, const cuda_library *nvrtc)
{
    dice d = { 11 };
    ir_array *params = arrays_for_params(graph);
    for (int i = 0; i < graph->n_params; i++)
        fill(&params[i], &d, ir_dtype_is_float(params[i].type.dtype) ? -1 : 0, params[i].type.dtype == IR_I32 ? 6 : params[i].type.dtype == IR_BOOL ? 2 : 1);
    ir_array *expected = run_graph(graph, params), *got = run_cuda(graph, params, nvrtc);
    for (int i = 0; i < graph->n_results; i++) {
        ir_dtype dtype = expected[i].type.dtype;
        double t = dtype == IR_F64 ? 1e-10 : dtype == IR_F32 ? tolerance : dtype == IR_BF16 ? MAX(tolerance, 0.02) : 0;
        compare(graph, i, &got[i], &expected[i], t, rounds ? t * largest(&expected[i]) : t);
    }
}

static void check_graph_text(const char *text, double tolerance, const cuda_library *nvrtc)
{
    int blocks = made.n;
    check_program(graph_of(text), tolerance, false, nvrtc);
    forget(blocks);
}

/* -- tests ------------------------------------------------------------------------------------------------------------------ */

static void test_programs(void **state)
{
    (void)state;
    standin_begin(NULL);
    for (size_t i = 0; i < COUNT_OF(backend_programs); i++)
        check_graph_text(backend_programs[i], 1e-5, NULL);
    standin_end();
}

/* Rows that many positions add to, in order, so that the sums are the interpreter's to the bit; positions in several tiles, and a few; an axis before the rows.
 * Indices go past the last row. */
static void test_scatters(void **state)
{
    (void)state;
    standin_begin(NULL);
    check_graph_text("graph t(%0: f32[5,40], %1: i32[2500], %2: f32[2500,40], %3: i32[7], %4: f32[7,40], %5: f32[3,4,300], %6: i32[1030], %7: f32[3,1030,300], %8: i32[4,3], %9: i32[1025,3],"
                     " %10: i32[1025]) {\n %11: f32[5,40] = scatter_add %0, %1, %2 {axis=0}\n %12: f32[5,40] = scatter_add %0, %3, %4 {axis=0}\n"
                     " %13: f32[3,4,300] = scatter_add %5, %6, %7 {axis=1}\n %14: i32[4,3] = scatter_add %8, %10, %9 {axis=0}\n return %11, %12, %13, %14\n}\n", 0, NULL);
    check_graph_text("graph t(%0: bf16[5,40], %1: i32[2500], %2: bf16[2500,40]) {\n %3: bf16[5,40] = scatter_add %0, %1, %2 {axis=0}\n return %3\n}\n", 0, NULL);
    standin_end();
}

/* All elementwise ops that take a dtype in one graph, over values that are odd. */
static void check_ops(ir_dtype dtype, int64_t n)
{
    static const double odd[] = { 0, -0.0, 1, -1, 0.5, 2, -3, INFINITY, -INFINITY, NAN, 88, -104, 1e10, 3e9, -2147483648.0, 1e-20 };
    int blocks = made.n;
    ir_graph *graph = keep(ir_graph_new("ops"));
    ir_type type = ir_type_of(dtype, 2, (int64_t[]){ 3, n });
    ir_node *x = ir_parameter(graph, type, NULL), *y = ir_parameter(graph, type, NULL), *c = ir_parameter(graph, ir_type_with_dtype(type, IR_BOOL), NULL), *results[2 * IR_OPS];
    int n_results = 0;
    for (ir_op op = 0; op < IR_OPS; op++)
        for (ir_dtype to = IR_F32; to < IR_TUPLE && ir_op_table[op].class == IR_ELEMENTWISE; to++) {
            ir_node *args[] = { op == OP_select ? c : x, op == OP_select ? x : y, y };
            ir_type stated = ir_type_with_dtype(type, to), inferred, *tuple;
            int n_tuple;
            base_text why = {0};
            bool cast = op == OP_cast;
            if ((cast ? to != dtype : to == 0) && ir_infer(graph, op, ir_op_table[op].arity, args, NULL, cast ? &stated : NULL, &inferred, &n_tuple, &tuple, &why))
                results[n_results++] = ir_add(graph, op, ir_op_table[op].arity, args, NULL, cast ? &stated : NULL);
            base_text_free(&why);
        }
    ir_set_results(graph, n_results, results, NULL);
    ir_array *params = arrays_for_params(graph), *expected = arrays_for_results(graph);
    dice d = { 3 };
    for (int i = 0; i < graph->n_params; i++)
        for (int64_t j = 0; j < 3 * n; j++) {
            double value = 8 * roll(&d) - 4;
            bool special = roll(&d) < 0.3 && ir_dtype_is_float(params[i].type.dtype);
            put(&params[i], j, special ? odd[(int)(roll(&d) * COUNT_OF(odd))] : params[i].type.dtype == IR_BOOL ? value > 0 : params[i].type.dtype == IR_I32 ? floor(1000 * value) : value);
        }
    assert_true(ir_interpret(graph, params, expected));
    ir_array *got = run_cuda(graph, params, NULL);
    for (int i = 0; i < n_results; i++) {
        ir_dtype of = expected[i].type.dtype;
        compare(graph, i, &got[i], &expected[i], of == IR_F64 ? 1e-13 : of == IR_F32 ? 6e-7 : of == IR_BF16 ? 0x1p-7 : 0, ir_dtype_is_float(of) ? 1e-37 : 0);
    }
    forget(blocks);
}

static void test_every_op(void **state)
{
    (void)state;
    standin_begin(NULL);
    for (ir_dtype dtype = IR_F32; dtype < IR_TUPLE; dtype++)
        for (int64_t n = 16; n <= 17; n++)
            check_ops(dtype, n);
    standin_end();
}

/* out, lse, and the gradients of q, k, v. */
static char *attention_text(ir_dtype dtype, int batch, int heads, int rows, int keys, int size, bool causal, double dropout, double scale)
{
    const char *d = ir_dtype_name(dtype), *random = dropout > 0 ? ", %5, %6" : "";
    char *q = text_of("[%d,%d,%d,%d]", batch, heads, rows, size), *k = text_of("[%d,%d,%d,%d]", batch, heads, keys, size), *l = text_of("[%d,%d,%d]", batch, heads, rows);
    char *attributes = text_of("{causal=%s, scale=%.17g, dropout=%.17g, site=9}", causal ? "true" : "false", scale, dropout);
    return text_of("graph t(%%0: %s%s, %%1: %s%s, %%2: %s%s, %%3: %s%s, %%4: f32%s, %%5: i32[2], %%6: i32[]) {\n"
                   " %%7: (%s%s, f32%s) = attention %%0, %%1, %%2%s %s\n %%8: %s%s = result %%7 {index=0}\n %%9: f32%s = result %%7 {index=1}\n"
                   " %%10: (f32%s, f32%s, f32%s) = attention_vjp %%0, %%1, %%2, %%8, %%9, %%3, %%4%s %s\n"
                   " %%11: f32%s = result %%10 {index=0}\n %%12: f32%s = result %%10 {index=1}\n %%13: f32%s = result %%10 {index=2}\n return %%8, %%9, %%11, %%12, %%13\n}\n",
                   d, q, d, k, d, k, d, q, l, d, q, l, random, attributes, d, q, l, q, k, k, random, attributes, q, k, k);
}

static void test_attention(void **state)
{
    static const struct { ir_dtype dtype; int batch, heads, rows, keys, size; bool causal; double dropout; int major; bool compile; double scale; } cases[] = {                    /* scale: 0 is 1 / sqrt(size) */
        { IR_F32, 2, 3, 37, 45, 20, true, 0.3, 9, true }, { IR_F32, 1, 2, 64, 64, 64, true, 0, 9, true }, { IR_F32, 1, 1, 5, 70, 128, false, 0, 9, false }, { IR_F32, 2, 1, 1, 1, 1, true, 0, 9, false },
        { IR_BF16, 2, 3, 37, 45, 20, true, 0.3, 9, false }, { IR_BF16, 1, 2, 130, 130, 64, true, 0, 9, true }, { IR_BF16, 1, 1, 65, 34, 128, false, 0.1, 9, true },
        { IR_BF16, 1, 1, 140, 160, 128, true, 0.1, 9, true }, { IR_BF16, 1, 2, 16, 97, 7, true, 0, 9, false }, { IR_BF16, 1, 1, 150, 200, 80, true, 0, 9, true }, { IR_BF16, 1, 1, 130, 150, 64, true, 0.1, 8, true },
        { IR_BF16, 1, 1, 40, 70, 64, true, 0.1, 7, true }, { IR_F32, 1, 1, 40, 50, 64, true, 0, 7, true },
        /* random words shared by lanes, in tiles of one and of two; scores far apart, and of every sign of the scale; heads in two groups, one shorter */
        { IR_BF16, 1, 2, 130, 152, 64, true, 0.1, 9, true }, { IR_BF16, 1, 2, 40, 72, 64, false, 0.2, 9, true }, { IR_F32, 1, 2, 20, 36, 16, true, 0.2, 9, false },
        { IR_BF16, 1, 1, 140, 200, 64, true, 0, 9, false, 2 }, { IR_F32, 1, 1, 20, 90, 16, false, 0, 9, false, 8 }, { IR_BF16, 1, 1, 20, 140, 16, true, 0, 9, false, -2 },
        { IR_F32, 1, 1, 20, 40, 16, true, 0, 9, false, -1e-30 }, { IR_F32, 1, 9, 33, 4096, 64, false, 0, 9, false },
    };
    cuda_library nvrtc;
    bool compiles = nvrtc_is_here(&nvrtc);
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        standin.arch_major = cases[i].major, standin.arch_minor = cases[i].major == 7 ? 5 : 0;
        standin_begin(NULL);
        assert_true(cuda_attention_takes(cases[i].dtype, cases[i].size));
        check_graph_text(attention_text(cases[i].dtype, cases[i].batch, cases[i].heads, cases[i].rows, cases[i].keys, cases[i].size, cases[i].causal, cases[i].dropout,
                                        cases[i].scale != 0 ? cases[i].scale : 1 / sqrt(cases[i].size)),
                         cases[i].dtype == IR_BF16 ? 0.03 : 2e-5, compiles && cases[i].compile ? &nvrtc : NULL);
        standin_end();
    }
    standin.arch_major = 9, standin.arch_minor = 0;
}

/* A graph through the passes and the backend, for what its kernels' texts hold. */
static ir_executable *compiled(const char *text)
{
    ir_graph *graph = graph_of(text);
    ir_pass_options passes = { .keep_composite = cuda_backend.keep_composite };
    ir_compile_report report = {0};
    ir_run_passes(graph, &passes);
    ir_pass_reports_free(&passes);
    ir_executable *e = cuda_backend.compile(graph, &(ir_compile_options){ .name = graph->name }, &report);
    assert_non_null(e);
    base_text_free(&report.lines);
    return e;
}

static int kernels_with(const ir_executable *e, const char *text)
{
    int n = 0;
    for (int i = 0; i < cuda_last_compiler(e)->n_requests; i++)
        n += strstr(cuda_last_compiler(e)->requests[i].text, text) != NULL;
    return n;
}

/* Gradients that are summed up over rows and read by products in bf16 are stored in bf16: where all of them are. */
static void test_narrow_gradients(void **state)
{
    char *q = "[1,2,20,16]", *attributes = "{causal=true, scale=0.25, dropout=0, site=9}";
    (void)state;
    standin_begin(NULL);
    for (int all = 0; all < 2; all++) {
        int blocks = made.n;
        char *text = text_of("graph t(%%0: bf16%s, %%1: bf16%s, %%2: bf16%s, %%3: bf16%s, %%4: f32[1,2,20], %%5: bf16[16,24]) {\n %%7: (bf16%s, f32[1,2,20]) = attention %%0, %%1, %%2 %s\n"
                             " %%8: bf16%s = result %%7 {index=0}\n %%9: f32[1,2,20] = result %%7 {index=1}\n %%10: (f32%s, f32%s, f32%s) = attention_vjp %%0, %%1, %%2, %%8, %%9, %%3, %%4 %s\n"
                             " %%11: f32%s = result %%10 {index=0}\n %%12: f32%s = result %%10 {index=1}\n %%13: f32%s = result %%10 {index=2}\n"
                             " %%15: f32[16] = reduce_sum %%11 {axes=[0,1,2]}\n %%16: f32[16] = reduce_sum %%12 {axes=[0,1,2]}\n %%17: f32[16] = reduce_sum %%13 {axes=[0,1,2]}\n"
                             " %%18: bf16%s = cast %%11\n %%19: bf16%s = cast %%12\n %%20: bf16%s = cast %%13\n %%21: bf16[40,16] = reshape %%18\n %%22: bf16[40,16] = reshape %%19\n"
                             " %%23: bf16[40,16] = reshape %%20\n %%24: f32[40,24] = matmul %%21, %%5\n %%25: f32[40,24] = matmul %%22, %%5\n %%26: f32[40,24] = matmul %%23, %%5\n"
                             " return %%15, %%16, %%17, %%24, %%25, %s\n}\n",
                             q, q, q, q, q, attributes, q, q, q, q, attributes, q, q, q, q, q, q, all ? "%26" : "%26, %13");
        check_graph_text(text, 0.03, NULL);
        ir_executable *e = compiled(text);
        assert_int_equal(kernels_with(e, "A_GRAD_BF16 1") > 0, all);
        cuda_backend.free(e);
        forget(blocks);
    }
    standin_end();
}

/* A power of scalars is computed by one thread, and not by each of a long loop's. */
static void test_scalars(void **state)
{
    const char *text = "graph f(%0: f32[40000], %1: i32[]) { %2: f64[] = cast %1 %3: f64[] = constant {value=0.95} %4: f64[] = pow %3, %2 %5: f32[] = cast %4 %6: f32[40000] = broadcast %5 {axes=[]}"
                       " %7: f32[40000] = mul %0, %6 return %7 }";
    int blocks = made.n, alone = 0, together = 0;
    ir_compile_report report = {0};
    (void)state;
    standin_begin(NULL);
    check_graph_text(text, 1e-6, NULL);
    ir_executable *e = cuda_backend.compile(graph_of(text), &(ir_compile_options){ .name = "f" }, &report);
    assert_non_null(e);
    for (int i = 0; i < cuda_last_compiler(e)->n_requests; i++) {
        bool power = strstr(cuda_last_compiler(e)->requests[i].text, "pow("), wide = strstr(cuda_last_compiler(e)->requests[i].text, "rax_f32x4");
        alone += power && !wide;
        together += power && wide;
    }
    assert_true(alone == 1 && together == 0);
    cuda_backend.free(e);
    base_text_free(&report.lines);
    forget(blocks);
    standin_end();
}

/* What is computed of 120 scalars, of more than fusion joins, is a launch; one of them is updated in place, and its old value read by what comes after. */
static void test_joined_scalars(void **state)
{
    enum { N = 120 };
    int blocks = made.n, launches = standin.launches;
    base_text text = {0};
    (void)state;
    base_text_add(&text, "graph f(%%0: f32[]");
    for (int i = 1; i < N; i++)
        base_text_add(&text, ", %%%d: f32[]", i);
    base_text_add(&text, ") {\n %%%d: f32[] = mul %%0, %%0\n", N);
    for (int i = 1; i < N; i++)
        base_text_add(&text, " %%%d: f32[] = add %%%d, %%%d\n", N + i, N + i - 1, i);
    base_text_add(&text, " %%%d: f32[] = sin %%%d\n %%%d: bf16[] = cast %%%d\n %%%d: f32[] = cast %%%d\n %%%d: f32[] = mul %%%d, %%0\n return %%%d, %%%d -> %%0, %%%d\n}\n", 2 * N, 2 * N - 1, 2 * N + 1,
                  2 * N, 2 * N + 2, 2 * N + 1, 2 * N + 3, 2 * N + 2, 2 * N + 3, 2 * N, 2 * N + 1);
    standin_begin(NULL);
    check_graph_text(text.at, 1e-5, NULL);
    if (!standin_is_device() && standin.launches - launches != 2)
        fail_msg("expected a launch a run, got %d in two", standin.launches - launches);
    standin_end();
    base_text_free(&text);
    forget(blocks);
}

/* A layer with gelu, and its gradients by all operands. */
static ir_graph *gelu_layer(bool bf16, bool bias)
{
    ir_graph *graph = graph_of(text_of("graph layer(%%0: f32[24,16], %%1: f32[16,40], %%2: f32[40], %%3: f32[40,16], %%4: f32[24,16]) {\n"
                                       " %%5: %s[24,16] = cast %%0\n %%6: %s[16,40] = cast %%1\n %%7: %s[40,16] = cast %%3\n %%8: f32[24,40] = matmul %%5, %%6\n"
                                       " %%9: f32[24,40] = broadcast %%2 {axes=[1]}\n %%10: f32[24,40] = add %%8, %%9\n %%11: f32[24,40] = gelu %s\n %%12: %s[24,40] = cast %%11\n"
                                       " %%13: f32[24,16] = matmul %%12, %%7\n %%14: f32[24,16] = mul %%13, %%4\n %%15: f32[24,16] = mul %%14, %%13\n %%16: f32[] = reduce_sum %%15 {axes=[0,1]}\n"
                                       " return %%16\n}\n",
                                       bf16 ? "bf16" : "f32", bf16 ? "bf16" : "f32", bf16 ? "bf16" : "f32", bias ? "%10" : "%8", bf16 ? "bf16" : "f32"));
    ir_node *results[5] = { graph->results[0] };
    ir_gradient(graph, results[0], 4, (ir_node *[]){ graph->params[0], graph->params[1], graph->params[2], graph->params[3] }, results + 1);
    ir_set_results(graph, 5, results, NULL);
    return graph;
}

/* Where cuBLASLt has an epilogue for it the product ends in it, and where it has not, or the card is none for it, a loop does the same. */
static void test_epilogues(void **state)
{
    enum { FORWARD = CUDA_EPILOGUE_GELU | CUDA_EPILOGUE_AUX, BACKWARD = CUDA_EPILOGUE_GELU_GRADIENT | CUDA_EPILOGUE_AUX };
    static const struct { bool bf16, bias; int major, refused, used; } cases[] = {
        { false, true, 9, 0, FORWARD | CUDA_EPILOGUE_BIAS | BACKWARD | CUDA_EPILOGUE_BIAS_GRADIENT }, { false, false, 9, 0, FORWARD | BACKWARD },
        { true, true, 9, 0, FORWARD | CUDA_EPILOGUE_BIAS | BACKWARD | CUDA_EPILOGUE_SUM_A }, { true, false, 9, 0, FORWARD | BACKWARD },
        { true, true, 9, CUDA_EPILOGUE_SUM_A, FORWARD | CUDA_EPILOGUE_BIAS | BACKWARD }, { false, true, 9, CUDA_EPILOGUE_BIAS, 0 }, { true, true, 9, CUDA_EPILOGUE_BIAS, 0 },
        { false, true, 8, 0, 0 }, { true, true, 8, 0, CUDA_EPILOGUE_BIAS }, { true, false, 8, 0, 0 },
        { false, true, 9, CUDA_EPILOGUE_GELU, 0 }, { true, true, 9, CUDA_EPILOGUE_GELU, CUDA_EPILOGUE_BIAS | BACKWARD | CUDA_EPILOGUE_SUM_A },
        { false, true, 9, CUDA_EPILOGUE_GELU_GRADIENT, FORWARD | CUDA_EPILOGUE_BIAS }, { true, true, 9, CUDA_EPILOGUE_GELU_GRADIENT, FORWARD | CUDA_EPILOGUE_BIAS },
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        int blocks = made.n;
        standin.arch_major = cases[i].major;
        standin.refused_epilogue = cases[i].refused;
        standin.epilogues = 0;
        standin_begin(NULL);
        check_program(gelu_layer(cases[i].bf16, cases[i].bias), cases[i].bf16 ? 0.02 : 2e-5, cases[i].bf16, NULL);
        standin_end();
        assert_true(standin_is_device() || (standin.epilogues & ~CUDA_EPILOGUE_NONE) == cases[i].used);
        forget(blocks);
    }
    standin.arch_major = 9;
    standin.refused_epilogue = 0;
}

/* What a layer's products end in, in a process of its own. */
static int epilogues_of(bool bf16, const char *folder, bool tune)
{
    int blocks = made.n;
    standin.epilogues = 0;
    standin_begin_with(&(ir_backend_settings){ .cache_dir = folder, .tune = tune });
    check_program(gelu_layer(bf16, true), bf16 ? 0.02 : 2e-5, bf16, NULL);
    standin_end();
    forget(blocks);
    return standin.epilogues & ~CUDA_EPILOGUE_NONE;
}

static void in_folder(const char *folder, const char *command)
{
    assert_int_equal(system(text_of("cd %s && %s", folder, command)), 0);
}

/* Tuning finds which epilogues take longer than a loop beside the product, on a card that is not for gelu's, too, and every later process goes by it. RAX_PRODUCTS=epilogues does not, nor can
 * who finds the line damaged. */
static void test_tuned_epilogues(void **state)
{
    enum { FORWARD = CUDA_EPILOGUE_GELU | CUDA_EPILOGUE_AUX | CUDA_EPILOGUE_BIAS, BACKWARD = CUDA_EPILOGUE_GELU_GRADIENT | CUDA_EPILOGUE_AUX, FAST = CUDA_EPILOGUE_NONE };
    static const int all[] = { FORWARD | BACKWARD | CUDA_EPILOGUE_BIAS_GRADIENT, FORWARD | BACKWARD | CUDA_EPILOGUE_SUM_A };
    static const struct { bool bf16; int major, slow, used; } cases[] = {
        { false, 9, FAST, FORWARD | BACKWARD | CUDA_EPILOGUE_BIAS_GRADIENT }, { false, 9, CUDA_EPILOGUE_GELU, 0 }, { false, 9, CUDA_EPILOGUE_GELU_GRADIENT, FORWARD },
        { true, 9, CUDA_EPILOGUE_GELU, CUDA_EPILOGUE_BIAS | BACKWARD | CUDA_EPILOGUE_SUM_A }, { true, 9, CUDA_EPILOGUE_SUM_A, FORWARD | BACKWARD },
        { true, 8, FAST, FORWARD | BACKWARD | CUDA_EPILOGUE_SUM_A }, { true, 8, CUDA_EPILOGUE_AUX, CUDA_EPILOGUE_BIAS },
    };
    (void)state;
    if (standin_is_device())
        skip();
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char folder[] = "/tmp/rax-epilogues-XXXXXX";
        bool bf16 = cases[i].bf16;
        assert_non_null(mkdtemp(folder));
        standin.arch_major = cases[i].major;
        standin.slow_epilogue = cases[i].slow;
        epilogues_of(bf16, folder, true);
        standin.slow_epilogue = 0;
        assert_int_equal(epilogues_of(bf16, folder, false), cases[i].used);
        setenv("RAX_PRODUCTS", "epilogues", true);
        assert_int_equal(epilogues_of(bf16, folder, false), all[bf16]);
        unsetenv("RAX_PRODUCTS");
        in_folder(folder, cases[i].slow == FAST ? "! grep -q apart objects/*.table" : "grep -q ' apart ' objects/*.table && sed -i 's/ apart / /' objects/*.table");
        assert_int_equal(epilogues_of(bf16, folder, false), cases[i].major == 9 ? all[bf16] : cases[i].used);
        in_folder("/tmp", text_of("rm -r %s", folder));
    }
    standin.arch_major = 9;
}

/* A row vector and a matrix that are added to a product are cuBLASLt's to add, in f32 and where all is rounded to bf16, in whatever order they are added: no loop is launched but
 * the one that rounds the vector. So, too, where a loop makes the sum on its way to something else (launches -1: what is launched is that, and products end in a vector). Not where the matrix is the other way round. */
static void test_sums(void **state)
{
    static const struct { const char *text; bool bf16; int launches; } cases[] = {
        { "graph f(%0: f32[20,30], %1: f32[30,40], %2: f32[40], %3: f32[20,40]) { %4: f32[20,40] = matmul %0, %1 %5: f32[20,40] = broadcast %2 {axes=[1]} %6: f32[20,40] = add %4, %5"
          " %7: f32[20,40] = add %3, %6 return %7 }", false, 0 },
        { "graph f(%0: f32[20,30], %1: f32[30,40], %2: f32[40], %3: f32[20,40]) { %4: f32[20,40] = matmul %0, %1 %5: f32[20,40] = broadcast %2 {axes=[1]} %6: f32[20,40] = add %3, %5"
          " %7: f32[20,40] = add %6, %4 return %7 }", false, 0 },
        { "graph f(%0: f32[3,20,30], %1: f32[3,30,40], %2: f32[3,20,80]) { %3: f32[3,20,40] = matmul %0, %1 %4: f32[3,20,40] = slice %2 {start=[0,0,8]} %5: f32[3,20,40] = add %4, %3"
          " return %5 }", false, 0 },
        { "graph f(%0: f32[20,30], %1: f32[30,40], %2: f32[40,20]) { %3: f32[20,40] = matmul %0, %1 %4: f32[20,40] = transpose %2 {axes=[1,0]} %5: f32[20,40] = add %4, %3 return %5 }", false, 1 },
        { "graph f(%0: bf16[20,30], %1: bf16[30,40], %2: f32[40]) { %3: f32[20,40] = matmul %0, %1 %4: f32[20,40] = broadcast %2 {axes=[1]} %5: f32[20,40] = add %3, %4"
          " %6: bf16[20,40] = cast %5 return %6 }", true, 1 },
        { "graph f(%0: f32[20,30], %1: f32[30,40], %2: f32[40], %3: f32[20,40], %4: f32[40,20]) { %5: f32[20,40] = matmul %0, %1 %6: f32[20,40] = broadcast %2 {axes=[1]} %7: f32[20,40] = add %5, %6"
          " %8: f32[20,40] = add %3, %7 %9: f32[20,40] = softmax %8 {axis=1} %10: f32[20,20] = matmul %8, %4 %11: f32[20,20] = matmul %9, %4 return %10, %11 }", false, -1 },
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        int launches = standin.launches, products = standin.products;
        standin.epilogues = 0;
        standin_begin(NULL);
        check_graph_text(cases[i].text, cases[i].bf16 ? 0.02 : 1e-5, NULL);
        standin_end();
        assert_true(standin_is_device() || (cases[i].launches < 0 ? (standin.epilogues & CUDA_EPILOGUE_BIAS) != 0
                                                                  : standin.launches - launches == cases[i].launches * (standin.products - products)));
    }
}

/* The list as cuBLASLt gets it is printed, parsed, and run by its own interpreter: an operand's loop has outputs there that no other pass makes. */
static void check_legalised(const char *text)
{
    int blocks = made.n;
    dice d = { 5 };
    base_text printed = {0}, again = {0}, why = {0};
    ir_graph *graph = graph_of(text), *copy = ir_graph_clone(graph);
    ir_pass_options passes = { .verify = true };
    ir_array *params = arrays_for_params(graph), *expected, *got = arrays_for_results(graph);
    void **param = room(sizeof *param * (size_t)graph->n_params), **result = room(sizeof *result * (size_t)graph->n_results);
    for (int i = 0; i < graph->n_params; i++) {
        fill(&params[i], &d, -1, 1);
        param[i] = params[i].data;
    }
    expected = run_graph(graph, params);
    for (int i = 0; i < graph->n_results; i++)
        result[i] = graph->donated[i] >= 0 ? param[graph->donated[i]] : got[i].data;
    ir_run_passes(copy, &passes);
    ir_pass_reports_free(&passes);
    kl_program *list = kl_lower(copy), *parsed;
    cuda_legalise(list, cuda_backend_device());
    kl_plan_memory(list, true);
    kl_print(&printed, list);
    parsed = kl_parse("legalised", printed.at, printed.len);
    if (!parsed || !kl_verify(parsed, &why))
        fail_msg("%s\n%s", parsed ? why.at : base_error(), printed.at);
    kl_print(&again, parsed);
    assert_string_equal(printed.at, again.at);
    assert_true(kl_run(parsed, param, result));
    for (int i = 0; i < graph->n_results; i++) {
        got[i].data = result[i];
        compare(graph, i, &got[i], &expected[i], 1e-5, 1e-5);
    }
    kl_program_free(list);
    kl_program_free(parsed);
    ir_graph_free(copy);
    base_text_free(&printed);
    base_text_free(&again);
    forget(blocks);
}

/* Rows that a product contracts over are summed by it, as they are the rows of one operand or the other, and whether the sum stands before it or behind it; of two sums one, also where each is added to another. Not where something
 * between makes the product of the sum, or of batches, or where cuBLASLt has no algorithm for it: a loop sums then. */
static void test_operand_sums(void **state)
{
#define OPERANDS(x, dy) "graph f(%0: " x "[24,16], %1: " dy "[24,40]) { %2: " x "[16,24] = transpose %0 {axes=[1,0]} %3: " dy "[40,24] = transpose %1 {axes=[1,0]} "
    static const char *by_columns = OPERANDS("f32", "f32") "%4: f32[16,40] = matmul %2, %1 %5: f32[40] = reduce_sum %1 {axes=[0]} return %4, %5 }";
    const struct { const char *text; int refused, used, launches; } cases[] = {
        { by_columns, 0, CUDA_EPILOGUE_SUM_A, 0 },
        { by_columns, CUDA_EPILOGUE_SUM_A, 0, 2 },
        { OPERANDS("f32", "f32") "%5: f32[40] = reduce_sum %1 {axes=[0]} %4: f32[40,16] = matmul %3, %0 return %4, %5 }", 0, CUDA_EPILOGUE_SUM_B, 0 },
        { OPERANDS("bf16", "bf16") "%4: f32[16,40] = matmul %2, %1 %5: f32[24,40] = cast %1 %6: f32[40] = reduce_sum %5 {axes=[0]} return %4, %6 }", 0, CUDA_EPILOGUE_SUM_A, 0 },
        { OPERANDS("bf16", "bf16") "%4: f32[40,16] = matmul %3, %0 %5: f32[24,40] = cast %1 %6: f32[40] = reduce_sum %5 {axes=[0]} return %4, %6 }", 0, CUDA_EPILOGUE_SUM_B, 0 },
        { OPERANDS("f32", "f32") "%4: f32[16,40] = matmul %2, %1 %5: f32[40] = reduce_sum %1 {axes=[0]} %6: f32[16] = reduce_sum %0 {axes=[0]} return %4, %5, %6 }", 0, CUDA_EPILOGUE_SUM_A, 2 },
        { OPERANDS("f32", "f32") "%5: f32[40] = reduce_sum %1 {axes=[0]} %6: f32[40,24] = broadcast %5 {axes=[0]} %7: f32[40,24] = mul %6, %3 %4: f32[40,40] = matmul %7, %1 return %4 }", 0, 0, 3 },
        { "graph f(%0: f32[2,24,16], %1: f32[2,24,40]) { %2: f32[2,16,24] = transpose %0 {axes=[0,2,1]} %3: f32[2,16,40] = matmul %2, %1 %4: f32[40] = reduce_sum %1 {axes=[0,1]} return %3, %4 }", 0, 0, 2 },
        { "graph f(%0: f32[3,24,16], %1: f32[3,24,40], %2: f32[16,40], %3: f32[40]) { %4: (f32[16,40], f32[40]) = scan %2, %3, %0, %1 {count=3, carry=2, xs=2, reverse=false}"
          " graph g(%0: f32[16,40], %1: f32[40], %2: f32[24,16], %3: f32[24,40]) { %4: f32[16,24] = transpose %2 {axes=[1,0]} %5: f32[16,40] = matmul %4, %3 %6: f32[16,40] = add %0, %5"
          " %7: f32[40] = reduce_sum %3 {axes=[0]} %8: f32[40] = add %1, %7 return %6, %8 } %5: f32[16,40] = result %4 {index=0} %6: f32[40] = result %4 {index=1}"
          " return %5 -> %2, %6 -> %3 }", 0, CUDA_EPILOGUE_SUM_A, 3 },
        { "graph f(%0: f32[3,24,16], %1: f32[3,24,40], %2: f32[16,40], %3: f32[40], %4: f32[16]) { %5: (f32[16,40], f32[40], f32[16]) = scan %2, %3, %4, %0, %1 {count=3, carry=3, xs=2, reverse=false}"
          " graph g(%0: f32[16,40], %1: f32[40], %2: f32[16], %3: f32[24,16], %4: f32[24,40]) { %5: f32[16,24] = transpose %3 {axes=[1,0]} %6: f32[16,40] = matmul %5, %4 %7: f32[16,40] = add %0, %6"
          " %8: f32[40] = reduce_sum %4 {axes=[0]} %9: f32[40] = add %1, %8 %10: f32[16] = reduce_sum %3 {axes=[0]} %11: f32[16] = add %2, %10 return %7, %9, %11 }"
          " %6: f32[16,40] = result %5 {index=0} %7: f32[40] = result %5 {index=1} %8: f32[16] = result %5 {index=2} return %6 -> %2, %7 -> %3, %8 -> %4 }", 0, CUDA_EPILOGUE_SUM_A, 9 },
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        int launches = standin.launches;
        standin.refused_epilogue = cases[i].refused;
        standin.epilogues = 0;
        standin_begin(NULL);
        check_graph_text(cases[i].text, 1e-5, NULL);
        if (!standin_is_device() && ((standin.epilogues & ~CUDA_EPILOGUE_NONE) != cases[i].used || standin.launches - launches != 2 * cases[i].launches))
            fail_msg("case %zu: expected epilogue %d and %d launches a run, got %d and %d in two", i, cases[i].used, cases[i].launches, standin.epilogues & ~CUDA_EPILOGUE_NONE, standin.launches - launches);
        check_legalised(cases[i].text);
        standin_end();
    }
    standin.refused_epilogue = 0;
}

/* What several passes along a row read is kept: in registers, in shared memory, or there as much of it as has room. */
static void test_kept_rows(void **state)
{
    static const struct { int columns; const char *kept; } cases[] = { { 40, " h0[ITERATIONS];" }, { 1500, " h0[ITERATIONS];" }, { 5000, " h0[ITERATIONS];" },
                                                                       { 20000, "KEPT = 10 " }, { 40001, "KEPT = 55 " } };
    (void)state;
    standin_begin(NULL);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char text[400];
        int blocks = made.n;
        snprintf(text, sizeof text, "graph f(%%0: f32[3,%d]) { %%1: f32[3,%d] = softmax %%0 {axis=1} %%2: f32[3,%d] = log %%1 %%3: f32[3] = reduce_sum %%1 {axes=[1]} return %%2, %%3 }",
                 cases[i].columns, cases[i].columns, cases[i].columns);
        check_graph_text(text, 1e-5, NULL);
        ir_executable *e = compiled(text);
        assert_true(kernels_with(e, cases[i].kept) > 0 && (kernels_with(e, "rax_rescale_f32") > 0) == (cases[i].columns > 5000));
        cuda_backend.free(e);
        forget(blocks);
    }
    standin_end();
}

/* Reductions whose neighbours in memory lie along the rows, of which there are few: eight rows side by side in a block, where they come in eights; softmax, whose second pass
 * reads what the first has found, and a greatest element's place, which a warp finds. */
static void test_rows_across(void **state)
{
    static const struct { int columns, rows; bool across; } cases[] = { { 100, 16, true }, { 511, 8, true }, { 70, 24, true }, { 40, 16, true }, { 100, 15, false } };
    (void)state;
    standin_begin(NULL);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char text[500];
        int blocks = made.n, c = cases[i].columns, r = cases[i].rows;
        snprintf(text, sizeof text, "graph f(%%0: f32[%d,%d]) { %%1: f32[%d] = reduce_max %%0 {axes=[0]} %%2: f32[%d,%d] = softmax %%0 {axis=0} %%3: i32[%d] = argmax %%0 {axis=0} return %%1, %%2, %%3 }", c, r, r, c, r, r);
        check_graph_text(text, 1e-5, NULL);
        ir_executable *e = compiled(text);
        if ((kernels_with(e, "= rax_across_most_f32") > 0) != cases[i].across)
            fail_msg("[%d,%d]: expected its rows %s", c, r, cases[i].across ? "side by side" : "by warps");
        cuda_backend.free(e);
        forget(blocks);
    }
    standin_end();
}

/* The sum of exp(x - max x) of a long row is made in the pass that finds the maximum: where x falls all along or rises, begins with -infinity, is -infinity, begins with NaN or with infinity; of rows by warps
 * and by blocks. */
static void test_online_sums(void **state)
{
    static const struct { const char *type, *ints, *bools; int columns; } cases[] = {
        { "f32[2,20000]", "i32[2,20000]", "bool[2,20000]", 20000 }, { "f64[2,9001]", "i32[2,9001]", "bool[2,9001]", 9001 }, { "f64[3,1000]", "i32[3,1000]", "bool[3,1000]", 1000 } };
    static const char *const values[] = { "neg %7", "add %7, %7", "select %9, %7, %10", "select %13, %7, %10", "select %9, %7, %11", "select %9, %7, %12" };
    (void)state;
    standin_begin(NULL);
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        for (size_t j = 0; j < COUNT_OF(values); j++) {
            const char *t = cases[i].type, *ints = cases[i].ints, *bools = cases[i].bools;
            int blocks = made.n;
            const char *text = text_of("graph f(%%0: %s, %%1: %s) { %%2: %s = iota {axis=1} %%3: %s = constant {value=0.05} %%4: %s = mul %%2, %%3 %%5: %s = add %%0, %%1 %%7: %s = add %%4, %%5"
                                       " %%6: %s = iota {axis=1} %%8: %s = constant {value=%d} %%9: %s = lt %%8, %%6 %%10: %s = constant {value=-inf} %%11: %s = constant {value=nan}"
                                       " %%12: %s = constant {value=inf} %%13: %s = lt %%6, %%6 %%14: %s = %s %%15: %s = softmax %%14 {axis=1} return %%15 }",
                                       t, t, t, t, t, t, t, ints, ints, cases[i].columns / 3, bools, t, t, t, bools, t, values[j], t);
            check_graph_text(text, 1e-5, NULL);
            ir_executable *e = compiled(text);
            if (!kernels_with(e, "rax_rescale_"))
                fail_msg("%s, %s: expected a sum beside the maximum", t, values[j]);
            cuda_backend.free(e);
            forget(blocks);
        }
    standin_end();
}

/* TF32 where it is asked for: results differ from f32 by its ten bits, and only so. cuBLASLt is asked once a shape. */
static void test_tf32(void **state)
{
    const char *text = "graph f(%0: f32[20,30], %1: f32[30,30], %2: f32[30,30]) { %3: f32[20,30] = matmul %0, %1 %4: f32[20,30] = matmul %3, %2 return %4 }";
    (void)state;
    int questions = standin.questions, tf32 = standin.tf32_products;
    standin_begin(NULL);
    check_graph_text(text, 1e-5, NULL);
    assert_true(standin_is_device() || standin.questions - questions == 1);
    standin_end();
    standin_begin_with(&(ir_backend_settings){ .tf32 = true });
    check_graph_text(text, 2e-2, NULL);
    assert_true(standin_is_device() || standin.questions - questions == 2);
    standin_end();
    assert_true(standin_is_device() || standin.tf32_products - tf32 == 4);
}

/* What a user is told: a device that is too small, and how much of what is missing. */
static void test_too_large(void **state)
{
    (void)state;
    standin_begin("");
    ir_graph *graph = graph_of("graph large(%0: f32[1000000,2], %1: f32[2,1000000]) { %2: f32[1000000,1000000] = matmul %0, %1 %3: f32[1000000,1000000] = tanh %2"
                               " %4: f32[1000000,2] = matmul %3, %0 return %4 }");
    ir_compile_report report = {0};
    assert_null(cuda_backend.compile(graph, &(ir_compile_options){ .name = "large" }, &report));
    assert_non_null(strstr(base_error(), "large: does not fit on the device: "));
    assert_non_null(strstr(base_error(), "MB are free; the largest are of "));
    base_text_free(&report.lines);
    base_error_clear();
    assert_null(cuda_backend.memory_new((size_t)1 << 40));
    assert_non_null(strstr(base_error(), "out of memory: 1099511.6 MB were asked for, "));
    base_error_clear();
    standin_end();
}

/* A small result is read without waiting for a run that was started after it. */
static void test_late_reading(void **state)
{
    (void)state;
    standin_begin(NULL);
    ir_graph *graph = graph_of("graph f(%0: f32[]) { %1: f32[] = add %0, %0 return %1 }");
    ir_compile_report report = {0};
    ir_executable *e = cuda_backend.compile(graph, &(ir_compile_options){ .name = "f", .host_scalars = 1 }, &report);
    assert_non_null(e);
    void *results[2] = { cuda_backend.memory_new(4), cuda_backend.memory_new(4) };
    int waits = standin.early_waits, captures = standin.captures;
    for (int i = 0; i < 8; i++) {
        float x = (float)i, got = -1;
        assert_true(cuda_backend.run(e, (void *[]){ &x }, &results[i % 2]));
        x = 1000;                                  /* read already, or copied */
        if (i > 0) {
            assert_true(cuda_backend.download(&got, results[(i + 1) % 2], 4));
            assert_true(got == 2 * (float)(i - 1));
        }
    }
    assert_true(standin_is_device() || standin.early_waits - waits == 7);
    assert_true(standin_is_device() || standin.captures - captures == 2);
    cuda_backend.memory_free(results[0]);
    cuda_backend.memory_free(results[1]);
    cuda_backend.free(e);
    base_text_free(&report.lines);
    standin_end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        GRAPH_TEST(test_every_op), GRAPH_TEST(test_programs), GRAPH_TEST(test_scatters), GRAPH_TEST(test_attention), GRAPH_TEST(test_narrow_gradients), GRAPH_TEST(test_scalars), GRAPH_TEST(test_joined_scalars), GRAPH_TEST(test_epilogues), GRAPH_TEST(test_tuned_epilogues), GRAPH_TEST(test_sums), GRAPH_TEST(test_operand_sums), GRAPH_TEST(test_kept_rows), GRAPH_TEST(test_rows_across), GRAPH_TEST(test_online_sums), GRAPH_TEST(test_tf32), GRAPH_TEST(test_too_large),
        GRAPH_TEST(test_late_reading),
    };
    return cmocka_run_group_tests_name("the CUDA backend", tests, NULL, NULL);
}
