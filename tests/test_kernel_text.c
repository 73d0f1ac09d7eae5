/* Kernel lists by what they look like: the lists of tests/kernels word for word, text that is damaged, which loops become one kernel, the
 * memory that a list takes and what it costs. What lists compute: test_kernels.c. */
#include "tests/kernel_lists.h"

#include <dirent.h>

/* -- as text ------------------------------------------------------------------------------------------------------------ */

/* tests/kernels/NAME.rax is a graph and the kernel list that is to come of it, `=== kernels ===` between them; `=== kernels attention ===`
 * where attention is a kernel, `=== kernels listed ===` where loops of one form are, `=== kernels fused ===` with epilogues, and casts folded. UPDATE=1 writes the lists anew. */
static void check_file(const char *path)
{
    base_text text = {0};
    char piece[4096];
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    for (size_t n; (n = fread(piece, 1, sizeof piece, file)) > 0;)
        base_text_bytes(&text, piece, n);
    fclose(file);
    char *section = strstr(text.at, "\n=== "), *list = section ? strchr(section + 1, '\n') : NULL;
    if (!list)
        fail_msg("%s: no section === kernels ===", path);
    bool attention = strncmp(section, "\n=== kernels attention ===", 26) == 0, listed = strncmp(section, "\n=== kernels listed ===", 23) == 0,
         fused = strncmp(section, "\n=== kernels fused ===", 22) == 0;
    forget();
    ir_graph *graph = ir_parse(path, text.at, (size_t)(section - text.at));
    if (!graph)
        fail_msg("%s", base_error());
    keep(graph);
    check_kernels(graph, (settings){ .keep_attention = attention, .tolerance = 1e-4, .lo = 0.1, .hi = 0.9 });
    kl_program *program = lowered(graph, attention);
    if (fused)
        fuse(program);
    if (listed)
        kl_list_loops(program, 0);
    kl_plan_memory(program, true);
    const char *got = kernels_text(program);
    kl_program_free(program);
    if (getenv("UPDATE")) {
        file = fopen(path, "w");
        assert_non_null(file);
        fprintf(file, "%.*s\n%s", (int)(list - text.at), text.at, got);
        fclose(file);
    } else if (strcmp(list + 1, got)) {
        fprintf(stderr, "%s: expected\n%s\ngot\n%s\n", path, list + 1, got);
        fail_msg("%s: another kernel list", path);
    }
    base_text_free(&text);
}

static void test_files(void **state)
{
    DIR *dir = opendir("tests/kernels");
    (void)state;
    if (!dir)
        fail_msg("tests/kernels: cannot be opened: run from the root of the repository");
    for (struct dirent *entry; (entry = readdir(dir));) {
        char path[512];
        snprintf(path, sizeof path, "tests/kernels/%s", entry->d_name);
        if (strstr(entry->d_name, ".rax"))
            check_file(path);
    }
    closedir(dir);
}

static const char running_sums[] =
    "graph f(%0: f32[3], %1: f32[5,3]) { %2: (f32[3], f32[5,3]) = scan %0, %1 {count=5, carry=1, xs=1} graph b(%0: f32[3], %1: f32[3]) {"
    " %2: f32[3] = add %0, %1 %3: f32[3] = sin %2 return %2, %3 } %3: f32[3] = result %2 {index=0} %4: f32[5,3] = result %2 {index=1} return %3, %4 }";

static const char updates[] =
    "graph f(%0: f32[8], %1: f32[2,6], %2: f32[8], %3: f32[2,6], %4: f32[]) {"
    " %5: f32[8] = broadcast %4 {axes=[]} %6: f32[8] = mul %2, %5 %7: f32[8] = sub %0, %6"
    " %8: f32[2,6] = broadcast %4 {axes=[]} %9: f32[2,6] = mul %3, %8 %10: f32[2,6] = sub %1, %9 return %7 -> %0, %10 -> %1 }";

/* Whatever stands in the text, parsing ends in a list that may be run, or in an error. */
static void bombard(ir_graph *graph, bool listed)
{
    static const char bytes[] = "0123456789-[]|,+*=ebkr {}\n\"%";
    dice d = { 5 };
    kl_program *program = lowered(graph, false);
    if (listed)
        kl_list_loops(program, 0);
    kl_plan_memory(program, true);
    const char *text = kernels_text(program);
    size_t len = strlen(text);
    kl_program_free(program);
    for (size_t n = 0; n <= len; n++) {                   /* exactly n bytes: what is read behind them the sanitizer finds */
        char *part = base_alloc(n);
        memcpy(part, text, n);
        kl_program_free(kl_parse("part", part, n));
        base_free(part);
    }
    for (int i = 0; i < 4000; i++) {
        char *copy = base_alloc(len);
        memcpy(copy, text, len);
        for (int j = 0; j < 1 + i % 3; j++)
            copy[(size_t)(roll(&d) * (double)len)] = bytes[(size_t)(roll(&d) * (double)(sizeof bytes - 1))];
        kl_program_free(kl_parse("changed", copy, len));
        base_free(copy);
    }
}

static void test_hostile_text(void **state)
{
    (void)state;
    forget();
    bombard(graph_of(running_sums), false);
    forget();
    bombard(graph_of(updates), true);
}

/* -- lists of loops ----------------------------------------------------------------------------------------------------- */

static int count_kind(const kl_program *program, kl_kind kind)
{
    int n = 0;
    for (int i = 0; i < program->n_kernels; i++)
        n += program->kernels[i]->kind == kind;
    return n;
}

/* What depends on another of its form stays apart from it, and what depends on something between stays behind that. */
static void test_lists(void **state)
{
    static const struct { const char *text; int lists, loops; } cases[] = {
        { "graph f(%0: f32[8], %1: f32[5,7]) { %2: f32[8] = exp %0 %3: f32[5,7] = exp %1 return %2, %3 }", 1, 0 },
        { "graph f(%0: f32[8], %1: f32[9]) { %2: f32[8] = exp %0 %3: f32[9] = log %1 return %2, %3 }", 0, 2 },
        { "graph f(%0: f32[8,3], %1: f32[3,3]) { %2: f32[8,3] = exp %0 %3: f32[8,3] = matmul %2, %1 %4: f32[8,3] = exp %3 return %2, %4 }", 0, 2 },
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        forget();
        ir_graph *graph = graph_of(cases[i].text);
        check_kernels(graph, (settings){0});
        kl_program *program = lowered(graph, false);
        kl_list_loops(program, 0);
        assert_int_equal(count_kind(program, KL_LIST), cases[i].lists);
        assert_int_equal(count_kind(program, KL_LOOP), cases[i].loops);
        kl_program_free(program);
    }
}

/* A temporary that lives with another of its form anyway is made with it, where that is asked for and it is no larger; one that would live at
 * the peak is not. The arena is what it was. */
static void test_early_lists(void **state)
{
    static const char together[] =
        "graph f(%0: f32[64,200], %1: f32[200,200], %2: f32[200,200]) { %3: f32[200,200] = exp %1 %4: f32[64,200] = matmul %0, %3"
        " %5: f32[200,200] = exp %2 %6: f32[64,200] = matmul %4, %5 %7: f32[200,200] = matmul %3, %5 return %6, %7 }";
    static const char apart[] =
        "graph f(%0: f32[64,200], %1: f32[200,200], %2: f32[200,200], %3: f32[200,900], %4: f32[900,200]) { %5: f32[200,200] = exp %1"
        " %6: f32[64,200] = matmul %0, %5 %7: f32[64,900] = matmul %6, %3 %8: f32[64,200] = matmul %7, %4 %9: f32[200,200] = exp %2"
        " %10: f32[64,200] = matmul %8, %9 return %10 }";
    const struct { const char *text; int64_t early; int lists; } cases[] = { { together, 0, 0 }, { together, 100000, 0 }, { together, 160000, 1 }, { apart, 160000, 0 } };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        forget();
        base_text why = {0};
        kl_program *program = lowered(graph_of(cases[i].text), false), *plain = lowered(graph_of(cases[i].text), false);
        kl_list_loops(program, cases[i].early);
        kl_plan_memory(program, true);
        kl_plan_memory(plain, true);
        assert_int_equal(count_kind(program, KL_LIST), cases[i].lists);
        assert_true(kl_verify(program, &why) && program->memory.arena_bytes == plain->memory.arena_bytes);
        kl_program_free(program);
        kl_program_free(plain);
    }
}

/* A list whose loops touch each other's memory is none. */
static void test_lists_are_apart(void **state)
{
    static const struct { const char *also, *why; } cases[] = {
        { "b1[1], 2, b3[1]", NULL },
        { "b1[1], 2, b2[1]", "one loop of the list writes what another one touches" },
        { "b2[1], 2, b3[1]", "one loop of the list writes what another one touches" },
        { "b1[0], 2, b3[1]", "is of another form" },
        { "b1[1], 2, b3[2]", "reaches" },
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        base_text text = {0};
        base_text_add(&text, "kernels \"f\" arena 0 workspace 0 {\n b0: f32[8] param 0\n b1: f32[8] param 1\n b2: f32[8] result 0\n b3: f32[8] result 1\n"
                             "k0: list \"mul\" [| 8]\n e0: f32 = load b0[1]\n e1: f32 row = value 3\n e2: f32 = mul e0, e1\n store b2[1] = e2\n"
                             "also [| 8] %s\n}\n", cases[i].also);
        kl_program *program = kl_parse("list", text.at, text.len);
        if (!program != (cases[i].why != NULL) || (cases[i].why && !strstr(base_error(), cases[i].why)))
            fail_msg("%s: expected %s, got %s", text.at, cases[i].why ? cases[i].why : "a list", program ? "a list" : base_error());
        kl_program_free(program);
        base_text_free(&text);
    }
}

/* -- memory and cost ---------------------------------------------------------------------------------------------------- */

/* A chain of values of one size needs two places. */
static void test_memory(void **state)
{
    base_text text = {0};
    (void)state;
    forget();
    kl_program *program = lowered(graph_of("graph f(%0: f32[8,100], %1: f32[100,100]) {"
        " %2: f32[8,100] = matmul %0, %1 %3: f32[8,100] = matmul %2, %1 %4: f32[8,100] = matmul %3, %1 %5: f32[8,100] = matmul %4, %1 return %5 }"), false);
    kl_plan_memory(program, false);
    assert_int_equal(program->memory.arena_bytes, 3 * 3200);
    kl_plan_memory(program, true);
    assert_int_equal(program->memory.arena_bytes, 2 * 3200);
    assert_int_equal(program->memory.live_bytes, 2 * 3200);
    assert_int_equal(program->memory.temps_bytes, 3 * 3200);
    kl_print_memory(&text, program);
    assert_non_null(strstr(text.at, "peak in kernel"));
    base_text_free(&text);
    kl_program_free(program);
}

static void test_costs(void **state)
{
    double flops, bytes;
    (void)state;
    forget();
    kl_program *program = lowered(graph_of("graph f(%0: f32[8,16], %1: f32[16,32]) { %2: f32[8,32] = matmul %0, %1 return %2 }"), false);
    kl_cost(program, program->kernels[0], &flops, &bytes);
    assert_true(flops == 2 * 8 * 16 * 32 && bytes == 4 * (8 * 16 + 16 * 32 + 8 * 32));
    kl_program_free(program);
}

int main(void)
{
    base_bug_hook = current_text;
    const struct CMUnitTest tests[] = {
        GRAPH_TEST(test_files), GRAPH_TEST(test_hostile_text), GRAPH_TEST(test_lists), GRAPH_TEST(test_early_lists), GRAPH_TEST(test_lists_are_apart),
        GRAPH_TEST(test_memory), GRAPH_TEST(test_costs),
    };
    return cmocka_run_group_tests_name("kernel text", tests, NULL, NULL);
}
