/* Texts with mistakes in them: graphs and kernel lists of which lines were deleted, doubled or exchanged, numbers changed, words put in
 * the place of others. Each is refused in one line, or is legal, and then the interpreter, the kernel list's own and the CPU backend run it
 * inside its memory and agree. SEED=n tries that text alone, TEXTS=n so many. */
#include <unistd.h>

#include "tests/kernel_lists.h"

#include "backend_cpu/backend.h"

enum { TEXTS = 4000, COMPILED = 120, MOST_ELEMENTS = 200000, MOST_LINES = 400 };

/* -- texts to begin with ------------------------------------------------------------------------------------------------- */

static const char *const graphs[] = {
    "graph step(%0: f32[5,12] \"x\", %1: f32[12,7] \"w\", %2: f32[7], %3: i32[5]) {\n %4: f32[5,7] = matmul %0, %1\n %5: f32[5,7] = broadcast %2 {axes=[1]}\n"
    " %6: f32[5,7] = add %4, %5\n %7: f32[5,7] = gelu %6\n %8: f32[5] = cross_entropy %7, %3\n %9: f32[] = reduce_sum %8 {axes=[0]}\n"
    " %10: f32[12,5] = transpose %0 {axes=[1,0]}\n %11: f32[12,7] = matmul %10, %7\n %12: f32[12,7] = sub %1, %11\n return %9, %12 -> %1\n}\n",
    "graph norm(%0: f32[5,33], %1: f32[33], %2: f32[33]) {\n %3: f32[5,33] = layer_norm %0, %1, %2 {epsilon=1e-5}\n %4: f32[5,33] = softmax %3 {axis=1}\n"
    " %5: f32[33] = reduce_sum %4 {axes=[0]}\n %6: i32[5] = argmax %4 {axis=1}\n return %4, %5, %6\n}\n",
    "graph rows(%0: f32[11,20], %1: i32[2,4], %2: f32[2,4,20], %3: i32[]) {\n %4: f32[2,4,20] = gather %0, %1 {axis=0}\n %5: f32[2,4,20] = mul %4, %2\n"
    " %6: f32[11,20] = scatter_add %0, %1, %5 {axis=0}\n %7: f32[3,7] = dynamic_slice %6, %3, %3\n %8: f32[6,12] = pad %7 {start=[2,3], value=0.5}\n"
    " %9: f32[12,12] = concatenate %8, %8 {axis=0}\n %10: f32[2,7] = slice %9 {start=[1,2]}\n return %6, %9, %10\n}\n",
    "graph scan(%0: f32[4,8], %1: f32[5,4,8], %2: f32[8,8]) {\n %3: (f32[4,8], f32[5,4,8]) = scan %0, %1, %2 {count=5, carry=1, xs=1, reverse=true}"
    " graph body(%0: f32[4,8], %1: f32[4,8], %2: f32[8,8]) {\n  %3: f32[4,8] = matmul %0, %2\n  %4: f32[4,8] = add %3, %1\n  %5: f32[4,8] = tanh %4\n"
    "  return %5, %4\n }\n %4: f32[4,8] = result %3 {index=0}\n %5: f32[5,4,8] = result %3 {index=1}\n return %4, %5\n}\n",
    "graph heads(%0: f32[2,3,9,4], %1: f32[2,3,9,4], %2: f32[2,3,9,4]) {\n %3: (f32[2,3,9,4], f32[2,3,9]) = attention %0, %1, %2 {causal=true, scale=0.5}\n"
    " %4: f32[2,3,9,4] = result %3 {index=0}\n %5: f32[2,9,3,4] = transpose %4 {axes=[0,2,1,3]}\n %6: f32[18,12] = reshape %5\n return %6\n}\n",
    "graph types(%0: bf16[6,10], %1: f64[10], %2: i32[10], %3: bool[6,10]) {\n %4: f64[6,10] = cast %0\n %5: f64[6,10] = broadcast %1 {axes=[1]}\n"
    " %6: f64[6,10] = max %4, %5\n %7: i32[6,10] = broadcast %2 {axes=[1]}\n %8: f64[6,10] = cast %7\n %9: f64[6,10] = select %3, %6, %8\n"
    " %10: f64[10,6] = transpose %9 {axes=[1,0]}\n %11: f64[6,6] = matmul %9, %10\n return %9, %11\n}\n",
};

/* -- mistakes ------------------------------------------------------------------------------------------------------------- */

static int draw(dice *d, int below) { return (int)(roll(d) * below); }

static void mistake_in_lines(dice *d, base_text *out, const char *text)
{
    const char *line[MOST_LINES + 1];
    int n = 0, order[MOST_LINES + 1], kept = 0;
    for (const char *at = text; *at && n < MOST_LINES; n++) {
        line[n] = at;
        at += strcspn(at, "\n");
        at += *at == '\n';
        line[n + 1] = at;
    }
    int a = draw(d, n), b = draw(d, n), way = draw(d, 3);
    for (int i = 0; i < n; i++) {
        if (way == 0 && i == a)
            continue;
        order[kept++] = way == 1 && i == a ? b : way == 1 && i == b ? a : i;
        if (way == 2 && i == a)
            order[kept++] = b;
    }
    for (int i = 0; i < kept; i++)
        base_text_bytes(out, line[order[i]], (size_t)(line[order[i] + 1] - line[order[i]]));
}

static bool is_in_word(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; }

/* One word, a number mostly, becomes another: one of the text's own, or a number that may be too large. */
static void mistake_in_word(dice *d, base_text *out, const char *text)
{
    static const char *const others[] = { "0", "1", "2", "3", "4", "7", "8", "16", "64", "-1", "100000", "2147483647", "4294967296", "9223372036854775807", "nan", "1e300" };
    size_t len = strlen(text), from[2], to[2];
    for (int k = 0; k < 2; k++) {
        size_t at = (size_t)draw(d, (int)len);
        for (int tries = 0; tries < 40 && !(k == 0 && tries < 20 ? text[at] >= '0' && text[at] <= '9' : is_in_word(text[at])); tries++)
            at = (size_t)draw(d, (int)len);
        for (from[k] = at; from[k] > 0 && is_in_word(text[from[k] - 1]); from[k]--)
            ;
        for (to[k] = at; to[k] < len && is_in_word(text[to[k]]); to[k]++)
            ;
    }
    base_text_bytes(out, text, from[0]);
    if (draw(d, 2))
        base_text_add(out, "%s", others[draw(d, COUNT_OF(others))]);
    else
        base_text_bytes(out, text + from[1], to[1] - from[1]);
    base_text_bytes(out, text + to[0], len - to[0]);
}

static char *with_mistakes(dice *d, const char *text)
{
    char *now = text_of("%s", text);
    for (int n = 1 + draw(d, 2); n > 0 && *now; n--) {
        base_text out = {0};
        (draw(d, 3) ? mistake_in_word : mistake_in_lines)(d, &out, now);
        now = text_of("%s", out.at ? out.at : "");
        base_text_free(&out);
    }
    return now;
}

static void check_refusal(const char *text)
{
    const char *why = base_error();
    if (!why || !*why || strchr(why, '\n'))
        fail_msg("%s\nrefused with: %s", text, why ? why : "nothing");
    base_error_clear();
}

/* -- graphs ---------------------------------------------------------------------------------------------------------------- */

/* What a mistake made too large to be run in a moment; int64_t throughout, for dims may be anything. */
static double elements_of(const ir_graph *graph)
{
    double sum = 0;
    for (const ir_node *n = graph->first; n; n = n->next) {
        double count = 1;
        for (int i = 0; i < n->type.rank; i++)
            count *= (double)n->type.dim[i];
        for (int i = 0; n->op == OP_matmul && i < 1; i++)
            count *= (double)n->args[0]->type.dim[n->args[0]->type.rank - 1];
        sum += n->op == OP_scan ? (double)MAX(n->attr.count, 1) * elements_of(n->attr.body) : count;
    }
    return sum;
}

static void test_graphs(void **state)
{
    const char *seed = getenv("SEED"), *texts = getenv("TEXTS");
    uint64_t first = seed ? strtoull(seed, NULL, 10) : 0, n = seed ? 1 : texts ? strtoull(texts, NULL, 10) : TEXTS;
    int ran = 0;
    (void)state;
    for (uint64_t i = first; i < first + n; i++) {
        dice d = { i };
        forget();
        char *text = with_mistakes(&d, graphs[i % COUNT_OF(graphs)]);
        ir_graph *graph = ir_parse("mistakes", text, strlen(text));
        if (!graph) {
            check_refusal(text);
            continue;
        }
        keep(graph);
        current_name = text_of("SEED=%llu", (unsigned long long)i);
        if (elements_of(graph) > MOST_ELEMENTS)
            continue;
        check_kernels(graph, (settings){ .lo = -1, .hi = 1, .seed = i, .tolerance = 1e-4 });
        ran++;
    }
    assert_true(seed || ran > 0);
}

/* -- kernel lists ----------------------------------------------------------------------------------------------------------- */

static double work_of_loop(const kl_loop *loop)
{
    double work = 1;
    for (int i = 0; i < loop->n_axes; i++)
        work *= (double)loop->extent[i];
    return work * (loop->n_exprs + 1);
}

static double work_of(kl_kernel *const *kernels, int n)
{
    double work = 0;
    for (int i = 0; i < n; i++) {
        const kl_kernel *k = kernels[i];
        const kl_contraction *c = &k->contraction;
        const kl_attention *a = k->attention;
        const kl_scatter *s = &k->scatter;
        switch (k->kind) {
        case KL_LOOP:        work += work_of_loop(&k->loop); break;
        case KL_LIST:
            for (int j = 0; j < k->list.n; j++)
                work += work_of_loop(&k->list.loops[j]);
            break;
        case KL_CONTRACTION: work += work_of_loop(&c->a) + work_of_loop(&c->b) + work_of_loop(&c->c) * (1 + (double)c->k); break;
        case KL_ATTENTION:   work += (double)a->batch * (double)a->heads * (double)a->rows * (double)a->keys * (double)(a->head_dim + 1); break;
        case KL_SCATTER:     work += (double)s->pre * (double)s->positions * (double)s->post; break;
        case KL_REPEAT:      work += (double)k->repeat.count * (1 + work_of(k->repeat.body, k->repeat.n_body)); break;
        }
    }
    return work;
}

static bool is_small(const kl_program *p)
{
    double elements = work_of(p->kernels, p->n_kernels);
    for (int i = 0; i < p->n_buffers; i++)
        elements += (double)p->buffers[i].count;
    return elements <= MOST_ELEMENTS * 10.0 && p->n_params <= 64 && p->n_results <= 64;
}

/* Memory for all parameters and results, those that no buffer names too. */
typedef struct { void *params[64], *results[64]; void *guarded[256]; size_t bytes[256]; int n; } memory;

static void *guarded(memory *m, size_t bytes)
{
    m->bytes[m->n] = bytes;
    return m->guarded[m->n++] = guarded_room(bytes);
}

static memory new_memory(const kl_program *p, uint64_t seed)
{
    memory m = {0};
    dice d = { seed };
    for (int kind = KL_PARAM; kind <= KL_RESULT; kind++)
        for (int i = 0; i < p->n_buffers; i++) {
            const kl_buffer *b = &p->buffers[i];
            if ((int)b->kind != kind || m.n == 256)
                continue;
            void **at = kind == KL_PARAM ? &m.params[b->index] : &m.results[b->index];
            if (b->kind == KL_RESULT && b->donated >= 0)
                *at = m.params[b->donated];
            if (*at)
                continue;
            ir_array x = { .type.dtype = b->dtype, .data = *at = guarded(&m, (size_t)(b->count * ir_dtype_bytes(b->dtype))) };
            for (int64_t j = 0; j < b->count; j++)
                put(&x, j, b->dtype == IR_BOOL ? roll(&d) < 0.5 : ir_dtype_is_float(b->dtype) ? 2 * roll(&d) - 1 : floor(7 * roll(&d)) - 1);
        }
    return m;
}

static void check_memory(const memory *m, const char *text)
{
    for (int i = 0; i < m->n; i++)
        if (!guards_hold(m->guarded[i], m->bytes[i]))
            fail_msg("%s\nwritten outside of its memory", text);
}

/* Two buffers of one parameter or result with sizes of their own are no program of anybody's: memory is by index. */
static bool is_plain(const kl_program *p)
{
    int param[64] = {0}, result[64] = {0};
    for (int i = 0; i < p->n_buffers; i++) {
        const kl_buffer *b = &p->buffers[i];
        if ((b->kind == KL_PARAM && param[b->index]++) || (b->kind == KL_RESULT && result[b->index]++))
            return false;
    }
    for (int i = 0; i < p->n_buffers; i++) {
        const kl_buffer *b = &p->buffers[i];
        for (int j = 0; b->kind == KL_RESULT && b->donated >= 0 && j < p->n_buffers; j++)
            if (p->buffers[j].kind == KL_PARAM && p->buffers[j].index == b->donated && (p->buffers[j].count != b->count || p->buffers[j].dtype != b->dtype))
                return false;
        if (b->kind == KL_RESULT && b->donated >= 0 && !param[b->donated])
            return false;
    }
    return true;
}

/* NaN is what the oracle finds in temporaries where nobody wrote: what is computed of that may be anything. */
static void compare_memory(const kl_program *p, const memory *got, const memory *expected, const char *text)
{
    for (int i = 0; i < p->n_buffers; i++) {
        const kl_buffer *b = &p->buffers[i];
        if (b->kind != KL_RESULT)
            continue;
        ir_array x = { .type.dtype = b->dtype, .data = got->results[b->index] }, y = { .type.dtype = b->dtype, .data = expected->results[b->index] };
        double most = 1, tolerance = tolerance_of(b->dtype, 1e-3);
        for (int64_t j = 0; j < b->count; j++)
            most = isfinite(get(&y, j)) ? fmax(most, fabs(get(&y, j))) : most;
        for (int64_t j = 0; j < b->count; j++)
            if (ir_dtype_is_float(b->dtype) && !isnan(get(&y, j)) && !is_near(get(&x, j), get(&y, j), tolerance * most))
                fail_msg("%s\nresult %d, element %lld: expected %g, got %g", text, b->index, (long long)j, get(&y, j), get(&x, j));
    }
}

static char *list_of(int which)
{
    kl_program *program = lowered(graph_of(graphs[which]), true);
    kl_fuse_epilogues(program);
    kl_list_loops(program, 0);
    char *text = kernels_text(program);
    kl_program_free(program);
    return text;
}

static void test_kernel_lists(void **state)
{
    const char *seed = getenv("SEED"), *texts = getenv("TEXTS");
    uint64_t first = seed ? strtoull(seed, NULL, 10) : 0, n = seed ? 1 : texts ? strtoull(texts, NULL, 10) : TEXTS;
    int ran = 0, compiled = 0;
    base_text why = {0};
    (void)state;
    if (!cpu_backend.configure(&(ir_backend_settings){ .threads = 2, .cache_dir = "" }))
        fail_msg("%s", base_error());
    for (uint64_t i = first; i < first + n; i++) {
        dice d = { i };
        forget();
        char *text = with_mistakes(&d, list_of((int)(i % COUNT_OF(graphs))));
        kl_program *p = kl_parse("mistakes", text, strlen(text));
        if (!p) {
            check_refusal(text);
            continue;
        }
        base_text_free(&why);
        bool legal = kl_verify(p, &why);
        if (!legal && (!why.at || !*why.at || strchr(why.at, '\n')))
            fail_msg("%s\nrefused with: %s", text, why.at ? why.at : "nothing");
        if (!legal || !is_small(p) || !is_plain(p)) {
            kl_program_free(p);
            continue;
        }
        current_name = text_of("SEED=%llu\n%s", (unsigned long long)i, text);
        memory expected = new_memory(p, i), got = new_memory(p, i);
        kl_plan_memory(p, true);
        assert_true(kl_run(p, expected.params, expected.results));
        check_memory(&expected, current_name);
        ran++;
        if (seed || texts || compiled < COMPILED) {
            compiled++;
            ir_compile_report report = {0};
            kl_program *again = kl_parse("mistakes", text, strlen(text));
            ir_executable *e = cpu_compile_list(again, &(ir_compile_options){ .name = "mistakes", .verify = true }, &report);
            base_text_free(&report.lines);
            if (!e)
                fail_msg("%s\n%s", current_name, base_error());
            assert_true(cpu_backend.run(e, got.params, got.results));
            cpu_backend.free(e);
            check_memory(&got, current_name);
            compare_memory(p, &got, &expected, current_name);
        }
        kl_program_free(p);
    }
    cpu_backend.shutdown();
    base_text_free(&why);
    assert_true(seed || (ran > 0 && compiled > 0));
}

int main(void)
{
    base_bug_hook = current_text;
    const struct CMUnitTest tests[] = { GRAPH_TEST(test_graphs), GRAPH_TEST(test_kernel_lists) };
    return cmocka_run_group_tests_name("texts with mistakes", tests, NULL, NULL);
}
