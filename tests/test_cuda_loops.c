/* Loops of the CUDA backend against the kernel list's own interpreter, held to the bit: the kernels' own text is compiled for the CPU and run
 * block by block by the emulator. SEED=n runs that program alone, PROGRAMS=n so many. */
#include "tests/random_loops.h"
#include "tests/cuda_nvrtc.h"
#include "tests/cuda_standin.h"

enum { PROGRAMS = 10, LISTS = 6, COMPILED = 1 };

static char *on_device(const char *guarded, size_t bytes)
{
    char *memory = cuda_backend.memory_new(bytes + 2 * GUARD);
    assert_non_null(memory);
    assert_true(cuda_backend.upload(memory, guarded - GUARD, bytes + 2 * GUARD));
    return memory + GUARD;
}

static void run_on_device(const kl_program *oracle, ir_executable *e, memory *m)
{
    char **params = room(sizeof(char *) * (size_t)(oracle->n_params + 1)), **results = room(sizeof(char *) * (size_t)(oracle->n_results + 1));
    for (int turn = 0; turn < 2; turn++)      /* parameters first: a result may lie in one */
        for (int i = 0; i < oracle->n_buffers; i++) {
            const kl_buffer *b = &oracle->buffers[i];
            size_t bytes = (size_t)(b->count * ir_dtype_bytes(b->dtype));
            if (b->kind == KL_PARAM && turn == 0)
                params[b->index] = on_device(m->params[b->index], bytes);
            else if (b->kind == KL_RESULT && turn == 1)
                results[b->index] = b->donated >= 0 ? params[b->donated] : on_device(m->results[b->index], bytes);
        }
    if (!cuda_backend.run(e, (void *const *)params, (void *const *)results))
        fail_msg("%s", base_error());
    for (int i = 0; i < oracle->n_buffers; i++) {
        const kl_buffer *b = &oracle->buffers[i];
        size_t bytes = (size_t)(b->count * ir_dtype_bytes(b->dtype)) + 2 * GUARD;
        char *host = b->kind == KL_PARAM ? m->params[b->index] : m->results[b->index], *device = b->kind == KL_PARAM ? params[b->index] : results[b->index];
        if (b->kind == KL_RESULT && b->donated >= 0)
            continue;
        assert_true(cuda_backend.download(host - GUARD, device - GUARD, bytes));
        cuda_backend.memory_free(device - GUARD);
    }
}

static void check_cuda(program_maker *make, uint64_t seed, const cuda_library *nvrtc)
{
    int blocks = made.n;
    kl_program *p = make(seed), *oracle = make(seed);
    ir_compile_report report = {0};
    memory got = new_memory(p, seed), expected = new_memory(p, seed);
    kl_plan_memory(oracle, false);
    assert_true(kl_run(oracle, (void *const *)expected.params, (void *const *)expected.results));
    ir_executable *e = cuda_compile_list(p, &(ir_compile_options){ .name = "random", .verify = true }, &report);
    if (!e)
        fail_at(oracle, "SEED=%llu: %s", (unsigned long long)seed, base_error());
    run_on_device(oracle, e, &got);
    compare(oracle, &got, &expected, seed, "cuda", 1);
    if (nvrtc)
        compile_with_nvrtc(nvrtc, cuda_last_compiler(e), (int[]){ seed % 2 ? 90 : 80 }, 1);
    cuda_backend.free(e);
    kl_program_free(oracle);
    base_text_free(&report.lines);
    forget(blocks);
}

/* Launches that it took; of a device's own nobody counts them. */
static int check_programs(program_maker *make, int programs)
{
    const char *seed = getenv("SEED"), *count = getenv("PROGRAMS");
    uint64_t first = seed ? strtoull(seed, NULL, 10) : 1, n = seed ? 1 : count ? strtoull(count, NULL, 10) : (uint64_t)programs;
    cuda_library nvrtc;
    bool compiles = nvrtc_is_here(&nvrtc);
    standin_begin("");
    int launches = standin.launches;
    for (uint64_t i = first; i < first + n; i++)
        check_cuda(make, i, compiles && i - first < COMPILED ? &nvrtc : NULL);
    standin_end();
    return standin_is_device() ? 1 : standin.launches - launches;
}

static void test_random(void **state)
{
    (void)state;
    assert_true(check_programs(random_program, PROGRAMS) > 0);
}

static void test_random_lists(void **state)
{
    (void)state;
    assert_true(check_programs(random_lists, LISTS) > 0);
}

/* -- the update of many parameters ------------------------------------------------------------------------------------------ */

typedef struct { int n; const int64_t *sizes; int n_sizes; } many;
static const many *updated;

static int load_of(writer *w, int buffer)
{
    return add_expr(w, (kl_expr){ .kind = KL_LOAD, .dtype = IR_F32, .view = { .buffer = buffer, .stride = { 1 } } });
}

/* Of each parameter w: sum(g g), then w = w - g in place, and m = m + g. */
static kl_program *update(uint64_t seed)
{
    kl_program *p = new_program(2 * updated->n);
    (void)seed;
    for (int i = 0; i < updated->n; i++) {
        int64_t size = updated->sizes[i % updated->n_sizes];
        writer w = { .program = p, .loop = new_loop(p) };
        *w.loop = (kl_loop){ .n_axes = 1, .extent = { size }, .exprs = w.loop->exprs, .outputs = w.loop->outputs };
        int weight = add_buffer(&w, KL_PARAM, IR_F32, size), moment = add_buffer(&w, KL_PARAM, IR_F32, size), gradient = add_buffer(&w, KL_PARAM, IR_F32, size);
        int norm = add_buffer(&w, KL_RESULT, IR_F32, 1), next[2] = { add_buffer(&w, KL_RESULT, IR_F32, size), add_buffer(&w, KL_RESULT, IR_F32, size) };
        p->buffers[next[0]].donated = p->buffers[weight].index;
        p->buffers[next[1]].donated = p->buffers[moment].index;
        int g = load_of(&w, gradient);
        w.loop->outputs[w.loop->n_outputs++] = (kl_output){ .kind = KL_SUM_ALL, .expr = add_op(&w, OP_mul, IR_F32, 2, g, g, 0), .view.buffer = norm };
        w.loop = new_loop(p);
        *w.loop = (kl_loop){ .n_axes = 1, .extent = { size }, .exprs = w.loop->exprs, .outputs = w.loop->outputs };
        g = load_of(&w, gradient);
        int values[2] = { add_op(&w, OP_sub, IR_F32, 2, load_of(&w, weight), g, 0), add_op(&w, OP_add, IR_F32, 2, load_of(&w, moment), g, 0) };
        for (int j = 0; j < 2; j++)
            w.loop->outputs[w.loop->n_outputs++] = (kl_output){ .kind = KL_STORE, .expr = values[j], .view = { .buffer = next[j], .stride = { 1 } } };
    }
    kl_renumber(p);
    return p;
}

/* One launch for all squares, one for their sums and one for all updates, where every size takes 128-bit accesses. Sizes that do not are launches of their own, by
 * the width that they take; and a table that is longer than a kernel's parameters may be is cut. */
static void test_many_parameters(void **state)
{
    static const int64_t wide[] = { 768, 4, 2304, 12288, 1000, 8 }, odd[] = { 4, 7, 1, 768, 13, 4099, 2, 127, 66, 9001 };
    const struct { many m; int version, launches; } cases[] = {
        { { 2, wide, 6 }, 130, 3 }, { { 3, wide, 6 }, 130, 3 }, { { 31, wide, 6 }, 130, 3 }, { { 149, wide, 6 }, 130, 3 }, { { 400, wide, 6 }, 130, 3 },
        { { 149, wide, 6 }, 120, 6 }, { { 149, odd, 10 }, 130, 7 }, { { 1, odd, 10 }, 130, 3 }, { { 4, odd, 10 }, 130, 5 } };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        standin.nvrtc_version = cases[i].version;
        standin_begin(NULL);
        int launches = standin.launches;
        updated = &cases[i].m;
        check_cuda(update, 7, NULL);
        if (!standin_is_device() && standin.launches - launches != cases[i].launches)
            fail_msg("%d parameters, case %zu: expected %d launches, got %d", cases[i].m.n, i, cases[i].launches, standin.launches - launches);
        standin_end();
    }
    standin.nvrtc_version = 130;
}

/* -- widths ------------------------------------------------------------------------------------------------------------------- */

/* y = x s for a number s in f64, and the sums of b's rows, b in bf16. */
static kl_program *scaled(uint64_t seed)
{
    enum { SIZE = 4096, ROWS = 8 };
    kl_program *p = new_program(2);
    (void)seed;
    writer w = { .program = p, .loop = new_loop(p) };
    *w.loop = (kl_loop){ .n_axes = 1, .extent = { SIZE }, .exprs = w.loop->exprs, .outputs = w.loop->outputs };
    int x = load_of(&w, add_buffer(&w, KL_PARAM, IR_F32, SIZE));
    int s = add_expr(&w, (kl_expr){ .kind = KL_LOAD, .dtype = IR_F64, .view.buffer = add_buffer(&w, KL_PARAM, IR_F64, 1) });
    int y = add_op(&w, OP_mul, IR_F32, 2, x, add_op(&w, OP_cast, IR_F32, 1, s, 0, 0), 0);
    w.loop->outputs[w.loop->n_outputs++] = (kl_output){ .kind = KL_STORE, .expr = y, .view = { .buffer = add_buffer(&w, KL_RESULT, IR_F32, SIZE), .stride = { 1 } } };
    w.loop = new_loop(p);
    *w.loop = (kl_loop){ .n_axes = 2, .n_outer = 1, .extent = { ROWS, SIZE / ROWS }, .exprs = w.loop->exprs, .outputs = w.loop->outputs };
    int b = add_expr(&w, (kl_expr){ .kind = KL_LOAD, .dtype = IR_BF16, .view = { .buffer = add_buffer(&w, KL_PARAM, IR_BF16, SIZE), .stride = { SIZE / ROWS, 1 } } });
    int wide = add_op(&w, OP_cast, IR_F32, 1, b, 0, 0);
    w.loop->outputs[w.loop->n_outputs++] = (kl_output){ .kind = KL_SUM_OUTER, .expr = wide, .view = { .buffer = add_buffer(&w, KL_RESULT, IR_F32, SIZE / ROWS), .stride = { 0, 1 } } };
    kl_renumber(p);
    return p;
}

/* What is read and written along memory is so by 128 bits, whatever is read once or summed up beside it. */
static void test_widths(void **state)
{
    int f32 = 0, bf16 = 0;
    ir_compile_report report = {0};
    (void)state;
    standin_begin("");
    check_cuda(scaled, 5, NULL);
    ir_executable *e = cuda_compile_list(scaled(5), &(ir_compile_options){ .name = "widths", .verify = true }, &report);
    assert_non_null(e);
    const cuda_compiler *compiler = cuda_last_compiler(e);
    for (int i = 0; i < compiler->n_requests; i++) {
        f32 += strstr(compiler->requests[i].text, "*(const rax_f32x4 *)") && strstr(compiler->requests[i].text, "double");
        bf16 += strstr(compiler->requests[i].text, "*(const rax_bf16x8 *)") != NULL;
    }
    assert_true(f32 == 1 && bf16 == 1);
    cuda_backend.free(e);
    base_text_free(&report.lines);
    standin_end();
}

/* -- a row's number in the place of what the row reads ---------------------------------------------------------------------- */

/* A row by a thread, by a warp, and by a block. */
static void test_rows_in_place(void **state)
{
    static const uint64_t columns[] = { 3, 40, 1500, 5000 };
    (void)state;
    standin_begin(NULL);
    for (size_t i = 0; i < COUNT_OF(columns); i++)
        for (int backwards = 0; backwards < 2; backwards++) {
            standin.backwards = backwards;
            check_cuda(negated_rows, columns[i], NULL);
        }
    standin.backwards = false;
    standin_end();
}

int main(void)
{
    const struct CMUnitTest tests[] = { GRAPH_TEST(test_random), GRAPH_TEST(test_random_lists), GRAPH_TEST(test_many_parameters), GRAPH_TEST(test_widths), GRAPH_TEST(test_rows_in_place) };
    return run_random_group("loops of the CUDA backend", tests);
}
