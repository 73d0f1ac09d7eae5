/* The text form, the shape rules, the verifier and the passes.
 *
 * tests/ir/NAME.rax is one test each: a graph, then sections that say what becomes of it:
 *
 *     === simplify dce ===      the graph after these passes ("passes": the whole list), ids and places aside
 *     === print ===             the text, to the byte
 *     === error ===             the parser's message, without the file's name
 *
 * Where passes are run, the interpreter runs the graph before and after them on the same random operands, and the results
 * are held together. Every graph that is touched is printed, parsed, and printed again. */
#include "ir/ir.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_FILES = 200, MUTATIONS = 4000 };

static uint64_t random_state;
static uint32_t draw(uint32_t below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % below;
}

static char *read_text(const char *path, size_t *len)
{
    FILE *file = fopen(path, "r");
    if (!file)
        fail_msg("%s: cannot be opened", path);
    base_text text = {0};
    char block[4096];
    for (size_t n; (n = fread(block, 1, sizeof block, file)) > 0;)
        base_text_bytes(&text, block, n);
    fclose(file);
    *len = text.len;
    return base_text_take(&text);
}

/* The graph of a file ends where its sections begin. */
static size_t input_length(const char *text)
{
    const char *mark = strstr(text, "\n=== ");
    return mark ? (size_t)(mark + 1 - text) : strlen(text);
}

/* -- every graph --------------------------------------------------------------------------------------------------------- */

static void check_round_trip(const ir_graph *graph)
{
    char *text = ir_to_text(graph);
    ir_graph *again = ir_parse("round-trip", text, strlen(text));
    if (!again)
        fail_msg("%s, of\n%s", base_error(), text);
    char *second = ir_to_text(again);
    assert_string_equal(text, second);
    assert_true(ir_graph_hash(graph) == ir_graph_hash(again));
    ir_graph *clone = ir_graph_clone(again);
    ir_graph_free(again);
    char *third = ir_to_text(clone);
    assert_string_equal(text, third);
    ir_graph_free(clone);
    base_free(text);
    base_free(second);
    base_free(third);
}

static ir_graph *parse(const char *name, const char *text, size_t len)
{
    ir_graph *graph = ir_parse(name, text, len);
    if (!graph)
        fail_msg("%s", base_error());
    check_round_trip(graph);
    return graph;
}

static void move_to_end(ir_graph *graph, ir_node *node)
{
    if (node->mark)
        return;
    node->mark = 1;
    for (int i = 0; i < node->n_args; i++)
        move_to_end(graph, node->args[i]);
    if (node == graph->last)
        return;
    *(node->prev ? &node->prev->next : &graph->first) = node->next;
    node->next->prev = node->prev;
    node->prev = graph->last;
    node->next = NULL;
    graph->last = graph->last->next = node;
}

/* Order, ids, places and makers aside, so that only the program is compared: parameters, then what each result needs in turn
 * and has not been met before, then what no result needs. */
static char *plain_text(ir_graph *graph)
{
    for (ir_node *n = graph->first; n; n = n->next)
        n->mark = 0;
    for (int i = 0; i < graph->n_params; i++)
        move_to_end(graph, graph->params[i]);
    for (int i = 0; i < graph->n_results; i++)
        move_to_end(graph, graph->results[i]);
    for (ir_node *n = graph->first, *next; n; n = next) {
        next = n->next;
        move_to_end(graph, n);
    }
    ir_renumber(graph);
    for (ir_node *n = graph->first; n; n = n->next) {
        n->place = (ir_place){0};
        n->born = NULL;
        for (int i = 0; i < n->type.rank; i++)
            n->type.dim_name[i] = NULL;
    }
    return ir_to_text(graph);
}

/* -- passes ---------------------------------------------------------------------------------------------------------------- */

static void run_on_bodies_too(ir_graph *graph, ir_pass_function *pass)
{
    ir_pass_context context = {0};
    pass(graph, &context);
    base_text_free(&context.note);
    for (ir_node *n = graph->first; n; n = n->next)
        if (n->attr.body)
            run_on_bodies_too(n->attr.body, pass);
}

/* What all passes do to a graph is undone, down to the text. */
static void check_snapshot(const ir_graph *original)
{
    ir_graph *graph = ir_graph_clone(original);
    ir_snapshot *snapshot = ir_snapshot_take(graph);
    char *before = ir_to_text(graph);
    ir_pass_options options = { .verify = true };
    ir_run_passes(graph, &options);
    ir_pass_reports_free(&options);
    ir_snapshot_restore(snapshot);
    char *after = ir_to_text(graph);
    assert_string_equal(before, after);
    base_free(before);
    base_free(after);
    ir_snapshot_free(snapshot);
    ir_graph_free(graph);
}

static void run_passes(ir_graph *graph, const char *names)
{
    static const struct { const char *name; ir_pass_function *pass; } known[] = {
        { "simplify", ir_pass_simplify }, { "cse", ir_pass_cse }, { "dce", ir_pass_dce },
        { "decompose", ir_pass_decompose }, { "merge_loss", ir_pass_merge_loss }, { "narrow", ir_pass_narrow },
    };
    char copy[200];
    snprintf(copy, sizeof copy, "%s", names);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) {
        base_text why = {0};
        size_t i = 0;
        if (strcmp(word, "passes") == 0) {
            check_snapshot(graph);
            ir_pass_options options = { .verify = true };
            ir_run_passes(graph, &options);
            ir_pass_reports_free(&options);
            continue;
        }
        while (i < COUNT_OF(known) && strcmp(known[i].name, word) != 0)
            i++;
        if (i == COUNT_OF(known))
            fail_msg("no pass is named '%s'", word);
        run_on_bodies_too(graph, known[i].pass);
        if (!ir_verify(graph, &why))
            fail_msg("after %s: %s", word, why.at);
        base_text_free(&why);
    }
}

/* A file a pass, each a graph that parses; a report a pass; a folder that cannot be made is an error and no more. */
static void test_dumps(void **state)
{
    static const char text[] = "graph f(%0: f32[2,3]) {\n  %1: f32[2,3] = softmax %0 {axis=1}\n  return %1\n}\n";
    char dir[] = "/tmp/rax-dump-XXXXXX";
    assert_non_null(mkdtemp(dir));
    ir_graph *graph = parse("dumps", text, sizeof text - 1);
    ir_pass_options options = { .verify = true, .dump_dir = dir };
    ir_run_passes(graph, &options);
    assert_true(options.n_reports > 0);
    for (int i = 0; i <= options.n_reports; i++) {
        size_t len;
        base_text path = {0};
        base_text_add(&path, "%s/%02d-%s.rax", dir, i, i ? options.reports[i - 1].name : "trace");
        char *dump = read_text(path.at, &len);
        ir_graph_free(parse(path.at, dump, len));
        assert_int_equal(remove(path.at), 0);
        base_text_free(&path);
        base_free(dump);
    }
    assert_int_equal(options.reports[0].nodes_before, 2);
    assert_int_equal(options.reports[options.n_reports - 1].nodes_after, ir_count_nodes(graph));
    ir_pass_reports_free(&options);
    assert_int_equal(remove(dir), 0);

    base_error_clear();
    options = (ir_pass_options){ .dump_dir = "/dev/null/dumps" };
    ir_run_passes(graph, &options);
    assert_string_equal(base_error(), "/dev/null/dumps: Not a directory");
    ir_pass_reports_free(&options);
    base_error_clear();
    ir_graph_free(graph);
    (void)state;
}

/* -- before and after, by the interpreter ----------------------------------------------------------------------------------- */

static double get(const ir_array *array, int64_t i) { return ir_element(array->type.dtype, array->data, i); }

static void set(const ir_array *array, int64_t i, double value)
{
    switch (array->type.dtype) {
    case IR_F32: ((float *)array->data)[i] = (float)value; break;
    case IR_F64: ((double *)array->data)[i] = value; break;
    case IR_BF16: ((uint16_t *)array->data)[i] = ir_f32_to_bf16((float)value); break;
    case IR_I32: ((int32_t *)array->data)[i] = (int32_t)value; break;
    case IR_BOOL: ((uint8_t *)array->data)[i] = value > 0; break;
    case IR_TUPLE: break;
    }
}

static ir_array *new_arrays(int n, ir_node *const *nodes)
{
    ir_array *arrays = base_alloc(sizeof *arrays * (size_t)n);
    for (int i = 0; i < n; i++)
        arrays[i] = (ir_array){ nodes[i]->type, base_alloc((size_t)ir_type_bytes(&nodes[i]->type)) };
    return arrays;
}

static void free_arrays(ir_array *arrays, int n)
{
    for (int i = 0; i < n; i++)
        base_free(arrays[i].data);
    base_free(arrays);
}

/* Passes may round less or in another order (simplify.c says where): a few units in the last place of values around 1. */
static double tolerance(ir_dtype dtype) { return dtype == IR_F64 ? 1e-12 : dtype == IR_BF16 ? 0.05 : 2e-5; }

static void check_same_results(const char *what, const ir_graph *before, const ir_graph *after)
{
    ir_array *params = new_arrays(before->n_params, before->params);
    ir_array *expected = new_arrays(before->n_results, before->results), *got = new_arrays(after->n_results, after->results);
    for (int i = 0; i < before->n_params; i++)
        for (int64_t j = 0, n = ir_type_count(&params[i].type); j < n; j++)
            set(&params[i], j, params[i].type.dtype == IR_I32 ? draw(4) : (double)draw(2001) / 1000 - 1);
    assert_true(ir_interpret(before, params, expected));
    assert_true(ir_interpret(after, params, got));
    assert_int_equal(before->n_results, after->n_results);
    for (int i = 0; i < before->n_results; i++)
        for (int64_t j = 0, n = ir_type_count(&expected[i].type); j < n; j++) {
            double e = get(&expected[i], j), g = get(&got[i], j), limit = tolerance(expected[i].type.dtype) * MAX(1, fabs(e));
            if (!(e == g || fabs(e - g) <= limit || (isnan(e) && isnan(g))))
                fail_msg("%s: result %d at %lld: expected %.9g, got %.9g, tolerance %g", what, i, (long long)j, e, g, limit);
        }
    free_arrays(params, before->n_params);
    free_arrays(expected, before->n_results);
    free_arrays(got, after->n_results);
}

/* -- files --------------------------------------------------------------------------------------------------------------------- */

static void check_passes(const char *path, const char *passes, const char *input, size_t input_len, const char *expected, size_t expected_len)
{
    ir_graph *before = parse(path, input, input_len), *graph = parse(path, input, input_len), *wanted = parse(path, expected, expected_len);
    run_passes(graph, passes);
    check_round_trip(graph);
    check_same_results(path, before, graph);
    char *got = plain_text(graph), *want = plain_text(wanted);
    if (strcmp(got, want) != 0)
        fail_msg("%s: after %s, expected\n%s\ngot\n%s", path, passes, want, got);
    base_free(got);
    base_free(want);
    ir_graph_free(before);
    ir_graph_free(graph);
    ir_graph_free(wanted);
}

static void check_print(const char *path, const char *input, size_t input_len, const char *expected, size_t expected_len)
{
    ir_graph *graph = parse(path, input, input_len);
    char *got = ir_to_text(graph);
    if (strlen(got) != expected_len || memcmp(got, expected, expected_len) != 0)
        fail_msg("%s: expected\n%.*s\ngot\n%s", path, (int)expected_len, expected, got);
    base_free(got);
    ir_graph_free(graph);
}

/* expected is "LINE: message", as in the file. */
static void check_error(const char *path, const char *input, size_t input_len, const char *expected, size_t expected_len)
{
    base_text message = {0};
    while (expected_len > 0 && expected[expected_len - 1] == '\n')
        expected_len--;
    base_text_add(&message, "%s:%.*s", path, (int)expected_len, expected);
    assert_null(ir_parse(path, input, input_len));
    assert_string_equal(base_error(), message.at);
    base_text_free(&message);
}

static void test_file(void **state)
{
    size_t len;
    const char *path = *state;
    char *text = read_text(path, &len), *mark = strstr(text, "\n=== ");
    if (!mark)
        fail_msg("%s has no section: === PASSES ===", path);
    size_t input_len = input_length(text);
    while (mark) {
        char passes[100];
        assert_int_equal(sscanf(mark, "\n=== %99[^=\n]", passes), 1);
        const char *expected = strchr(mark + 1, '\n') + 1;
        char *end = strstr(expected - 1, "\n=== ");
        size_t expected_len = end ? (size_t)(end + 1 - expected) : strlen(expected);
        random_state = 1;
        if (strncmp(passes, "print ", 6) == 0)
            check_print(path, text, input_len, expected, expected_len);
        else if (strncmp(passes, "error ", 6) == 0)
            check_error(path, text, input_len, expected, expected_len);
        else
            check_passes(path, passes, text, input_len, expected, expected_len);
        mark = end;
    }
    base_free(text);
}

/* -- the op table ---------------------------------------------------------------------------------------------------------------- */

/* tests/ir/every_op.rax is a graph of them all: an op that is added to the table is added there. */
static void test_every_op_in_text(void **state)
{
    size_t len;
    bool seen[IR_OPS] = { [OP_parameter] = true };
    char *text = read_text("tests/ir/every_op.rax", &len);
    ir_graph *graph = parse("tests/ir/every_op.rax", text, input_length(text));
    for (ir_node *n = graph->first; n; n = n->next)
        seen[n->op] = true;
    for (int op = 0; op < IR_OPS; op++)
        if (!seen[op])
            fail_msg("tests/ir/every_op.rax has no %s", OP_NAME(op));
    ir_graph_free(graph);
    base_free(text);
    (void)state;
}

static void test_op_names(void **state)
{
    for (int i = 0; i < IR_OPS; i++) {
        ir_op op;
        assert_true(ir_op_parse(ir_op_table[i].name, strlen(ir_op_table[i].name), &op));
        assert_int_equal(op, i);
        assert_true(ir_op_table[i].help && *ir_op_table[i].help);
        assert_true((ir_op_table[i].decompose != NULL) == (ir_op_table[i].class == IR_COMPOSITE));
    }
    ir_op op;
    assert_false(ir_op_parse("ad", 2, &op));
    assert_false(ir_op_parse("", 0, &op));
    (void)state;
}

/* -- mistakes in one line ---------------------------------------------------------------------------------------------------------- */

static const struct { const char *params, *line, *message; } mistakes[] = {
    { "%0: f32[B=8,T=64,C=384], %1: f32[768,384]", "%2: f32[8,64,384] = matmul %0, %1",
      "matmul: lhs f32[B=8,T=64,C=384] has C=384 on axis 2, rhs f32[768,384] has 768 on axis 0; rhs has 384 on axis 1: transpose(rhs, 1, 0) would fit" },
    { "%0: f32[4,3], %1: f32[4,5]", "%2: f32[3,5] = matmul %0, %1",
      "matmul: lhs f32[4,3] has 3 on axis 1, rhs f32[4,5] has 4 on axis 0; lhs has 4 on axis 0: transpose(lhs, 1, 0) would fit" },
    { "%0: f32[4,3], %1: f32[3,5]", "%2: f32[4,6] = matmul %0, %1", "matmul: result f32[4,6] has 6 on axis 1, product f32[4,5] has 5 on axis 1" },
    { "%0: f32[4,3], %1: f64[3,5]", "%2: f32[4,5] = matmul %0, %1", "matmul: lhs f32[4,3] is f32, rhs f64[3,5] is f64" },
    { "%0: f32[4,3], %1: f32[3,5]", "%2: bf16[4,5] = matmul %0, %1", "matmul: the product of f32 operands is not bf16[4,5]" },
    { "%0: f32[2,4,3], %1: f32[3,3,5]", "%2: f32[2,4,5] = matmul %0, %1", "matmul: lhs f32[2,4,3] has 2 on axis 0, rhs f32[3,3,5] has 3 on axis 0" },
    { "%0: f32[3], %1: f32[3]", "%2: f32[] = matmul %0, %1", "matmul: lhs f32[3] has rank 1, expected at least 2" },
    { "%0: f32[2,3], %1: f32[2,4]", "%2: f32[2,3] = add %0, %1", "add: lhs f32[2,3] has 3 on axis 1, rhs f32[2,4] has 4 on axis 1" },
    { "%0: f32[2], %1: i32[2]", "%2: f32[2] = add %0, %1", "add: lhs f32[2] is f32, rhs i32[2] is i32" },
    { "%0: f32[2]", "%2: f32[2] = add %0", "add: expected 2 operands, got 1" },
    { "%0: bool[2]", "%2: bool[2] = neg %0", "neg: x bool[2] is bool, expected f32, f64, bf16 or i32" },
    { "%0: i32[2]", "%2: i32[2] = exp %0", "exp: x i32[2] is i32, expected f32, f64 or bf16" },
    { "%0: f32[2]", "%2: bool[2] = not %0", "not: x f32[2] is f32, expected bool" },
    { "%0: f32[2]", "%2: i32[3] = cast %0", "cast: x f32[2] has 2 on axis 0, result i32[3] has 3 on axis 0" },
    { "%0: f32[2], %1: f32[2]", "%2: f32[2] = select %0, %1, %1", "select: condition f32[2] is f32, expected bool" },
    { "%0: f32[2,3]", "%2: f32[2] = reduce_sum %0 {axes=[2]}", "reduce_sum: x f32[2,3] has axes 0 to 1, got axis 2" },
    { "%0: f32[2,3]", "%2: f32[] = reduce_sum %0 {axes=[1,0]}", "reduce_sum: axes are to ascend, got 0 after 1" },
    { "%0: f32[]", "%2: i32[] = argmax %0 {axis=0}", "argmax: x f32[] has no axis 0: it is a scalar" },
    { "%0: f32[0]", "%2: i32[] = argmax %0 {axis=0}", "argmax: x f32[0] has 0 on axis 0: nothing has no maximum" },
    { "%0: f32[2,3]", "%2: f32[5] = reshape %0", "reshape: x f32[2,3] has 6 elements, result f32[5] has 5" },
    { "%0: f32[2,3]", "%2: f32[3,2] = transpose %0 {axes=[1,1]}", "transpose: axis 1 comes twice" },
    { "%0: f32[2,3]", "%2: f32[2] = transpose %0 {axes=[0]}", "transpose: x f32[2,3] has rank 2, got 1 axes" },
    { "%0: f32[N=2]", "%2: f32[3] = broadcast %0 {axes=[0]}", "broadcast: x f32[N=2] has N=2 on axis 0, result f32[3] has 3 on axis 0" },
    { "%0: f32[4]", "%2: f32[3] = slice %0 {start=[2]}", "slice: result f32[3] does not lie in x f32[4]: axis 0 from 2" },
    { "%0: f32[4]", "%2: f32[5] = pad %0 {start=[2], value=0}", "pad: x f32[4] does not lie in result f32[5]: axis 0 from 2" },
    { "%0: i32[4]", "%2: i32[5] = pad %0 {start=[0], value=0.5}", "expected ',', got '.'" },
    { "%0: f32[4,2], %1: f32[4,3]", "%2: f32[8,2] = concatenate %0, %1 {axis=0}",
      "concatenate: first f32[4,2] has 2 on axis 1, operand 1 f32[4,3] has 3 on axis 1" },
    { "%0: f32[4], %1: f32[]", "%2: f32[2] = dynamic_slice %0, %1", "dynamic_slice: start f32[] is not i32[]" },
    { "%0: f32[4,2], %1: i32[]", "%2: f32[2,2] = dynamic_slice %0, %1", "dynamic_slice: expected 3 operands, got 2" },
    { "%0: f32[4], %1: f32[5], %2: i32[]", "%3: f32[4] = update_slice %0, %1, %2", "update_slice: update f32[5] does not lie in base f32[4]: axis 0 from 0" },
    { "%0: f32[0,2], %1: i32[3]", "%2: f32[3,2] = gather %0, %1 {axis=0}", "gather: x f32[0,2] has 0 on axis 0: there is nothing to index" },
    { "%0: f32[2,2,2,2,2,2,2], %1: i32[1,1,1]", "%2: f32[2] = gather %0, %1 {axis=0}",
      "gather: x f32[2,2,2,2,2,2,2] by indices i32[1,1,1] would have rank 9, at most 8 is supported" },
    { "%0: f32[4,2], %1: i32[3], %2: f32[3,3]", "%3: f32[4,2] = scatter_add %0, %1, %2 {axis=0}",
      "scatter_add: updates f32[3,3] has 3 on axis 1, base by indices f32[3,2] has 2 on axis 1" },
    { "%0: i32[3], %1: i32[]", "%2: f32[4] = random_uniform %0, %1 {site=0}", "random_uniform: seed i32[3] is not i32[2]" },
    { "%0: i32[2], %1: i32[]", "%2: bool[4] = bernoulli %0, %1 {site=0, value=1.5}", "bernoulli: value 1.5 is no probability" },
    { "%0: f32[4]", "%2: f32[4] = result %0 {index=0}", "result: operand f32[4] is not an op with several results" },
    { "%0: f32[4,8], %1: f32[4]", "%2: f32[4,8] = layer_norm %0, %1 {epsilon=1e-5}", "layer_norm: x f32[4,8] has 8 on axis 1, weight f32[4] has 4 on axis 0" },
    { "%0: f32[4,8], %1: i32[5]", "%2: f32[4] = cross_entropy %0, %1", "cross_entropy: logits f32[4,8] has 4 on axis 0, targets i32[5] has 5 on axis 0" },
    { "%0: f32[1,2,3,4], %1: f32[1,2,2,4]", "%2: (f32[1,2,3,4], f32[1,2,3]) = attention %0, %1, %1 {causal=true, scale=1}",
      "attention: q f32[1,2,3,4] has 3 on axis 2, k f32[1,2,2,4] has 2: the first rows would see no key" },
    { "%0: f32[1,2,3,4]", "%2: (f32[1,2,3,4], f32[1,2,3]) = attention %0, %0, %0 {scale=1, dropout=0.5}", "attention: expected 5 operands, got 3" },
    { "%0: f32[3]", "%2: (f32[3], f32[2,3]) = scan %0 {count=2, carry=1} graph b(%0: f32[4]) { return %0, %0 }",
      "scan: parameter 0 of the body is f32[4], expected f32[3]" },
    { "%0: f32[3]", "%2: (f32[3]) = scan %0 {count=2, carry=0, xs=1} graph b(%0: f32[]) { return %0 }",
      "scan: operand 0 f32[3] does not have count=2 on axis 0" },
    { "%0: f32[3]", "%2: (f32[3]) = scan %0 {count=2, carry=5} graph b(%0: f32[3]) { return %0 }",
      "scan: 5 carries and 0 xs are not among 1 operands" },
    { "%0: f32[3]", "%2: f32[3] = custom_gradient %0, %0 graph b(%0: f32[3]) { return %0 }",
      "custom_gradient: expected a body of 3 parameters and 1 results, got 1 and 1" },
    { "%0: f32[2]", "%2: f32[3] = neg %0", "neg: the result is f32[2], the text states another type" },
    { "%0: f32[2]", "%0: f32[2] = neg %0", "%0 comes twice" },
    { "%0: f32[2]", "%2: f32[2] = neg %7", "%7 is not known here" },
    { "%0: f32[2]", "%2: f32[2] = negate %0", "no op is named 'negate'" },
    { "%0: f32[2]", "%2: f32[2] = neg %0 {axis=1}", "neg has no attribute 'axis'" },
    { "%0: f32[2]", "%2: f32[] = reduce_sum %0", "reduce_sum needs the attribute 'axes'" },
    { "%0: f32[2]", "%2: f32[2] = parameter {index=0}", "a parameter stands in the graph's head" },
    { "%0: f32[2]", "%2: f32[1,1,1,1,1,1,1,1,1] = reshape %0", "a type of more than 8 axes" },
    { "%0: f32[2]", "%2: f32[99999999999999999999] = reshape %0", "an integer of more than 63 bits" },
    { "%0: f32[2]", "%2: f32[1048576,1048577] = broadcast %0 {axes=[0]}", "f32[1048576,1048577] has over 2^40 elements" },
    { "%0: f32[2]", "%2: f32[2] = literal {data=[1]}", "1 elements, expected 2" },
    { "%0: f32[2]", "%2: f32[2] = literal {data=[1,2,3]}", "more than 2 elements" },
    { "%0: f32[2]", "%2: f32[2] = constant {value=one}", "expected a number, got 'one'" },
    { "%0: f32[2]", "%2: bool[2] = constant {value=2}", "expected true or false" },
    { "%0: f32[2]", "%2: (f32[2]) = constant {value=2}", "constant has one result" },
    { "%0: f32[2]", "%2: () = neg %0", "a tuple of nothing" },
    { "%0: u8[2]", "%2: f32[2] = neg %0", "expected f32, f64, bf16, i32 or bool, got 'u8'" },
};

static void test_mistakes(void **state)
{
    for (size_t i = 0; i < COUNT_OF(mistakes); i++) {
        base_text text = {0}, message = {0};
        base_text_add(&text, "graph f(%s) {\n  %s\n  return %%0\n}\n", mistakes[i].params, mistakes[i].line);
        bool in_head = strstr(mistakes[i].params, "u8") != NULL;
        base_text_add(&message, "x.rax:%d: %s", in_head ? 1 : 2, mistakes[i].message);
        assert_null(ir_parse("x.rax", text.at, text.len));
        assert_string_equal(base_error(), message.at);
        base_text_free(&text);
        base_text_free(&message);
    }
    (void)state;
}

/* The dim's name goes with the axis: through products, transposes, reductions, reshapes and elementwise ops. */
static void test_dim_names(void **state)
{
    ir_graph *g = ir_graph_new("names");
    ir_type type = ir_type_of(IR_F32, 3, (int64_t[]){ 2, 3, 4 });
    ir_node *plain = ir_parameter(g, type, "plain");
    type.dim_name[0] = "B";
    type.dim_name[2] = "C";
    ir_node *x = ir_parameter(g, type, "x");
    type = ir_type_of(IR_F32, 3, (int64_t[]){ 2, 4, 5 });
    type.dim_name[2] = "V";
    ir_node *w = ir_parameter(g, type, "w");
    ir_node *y = ir_matmul(g, ir_binary(g, OP_add, plain, x), w, IR_F32);
    ir_node *t = ir_transpose(g, y, (int[]){ 2, 0, 1 });
    ir_node *r = ir_reshape(g, ir_reduce(g, OP_reduce_sum, t, 1, (int[]){ 1 }), ir_type_of(IR_F32, 3, (int64_t[]){ 5, 3, 1 }));
    base_text text = {0};
    ir_type_print(&text, &y->type);
    ir_type_print(&text, &t->type);
    ir_type_print(&text, &r->type);
    assert_string_equal(text.at, "f32[B=2,3,V=5]f32[V=5,B=2,3]f32[V=5,3,1]");
    base_text_free(&text);
    ir_set_results(g, 1, &r, NULL);
    check_round_trip(g);
    ir_graph_free(g);
    (void)state;
}

/* -- the verifier -------------------------------------------------------------------------------------------------------------- */

static ir_graph *small_graph(void)
{
    static const char text[] = "graph f(%0: f32[2], %1: f32[2]) {\n"
                               "  %2: f32[2] = add %0, %1\n"
                               "  %3: f32[2] = mul %2, %1\n"
                               "  return %3 -> %0, %2\n"
                               "}\n";
    return parse("small", text, sizeof text - 1);
}

static void expect_refusal(ir_graph *graph, const char *message)
{
    base_text why = {0};
    assert_false(ir_verify(graph, &why));
    assert_string_equal(why.at, message);
    base_text_free(&why);
    ir_graph_free(graph);
}

static void test_verifier(void **state)
{
    ir_graph *g = small_graph();
    g->results[0]->type.dim[0] = 3;
    expect_refusal(g, "%3 mul: expected type f32[2] with 0 results, got f32[3] with 0");
    g = small_graph();
    g->results[1]->args[0] = g->results[0];
    expect_refusal(g, "%2 add: operand 0, %3, stands after its user");
    g = small_graph();
    g->results[0]->id = 2;
    expect_refusal(g, "expected unique ids, got %2 twice");
    g = small_graph();
    ir_remove(g, g->results[1]);
    expect_refusal(g, "%3 mul: operand 0, %2, is not in the graph");
    g = small_graph();
    ir_graph *other = small_graph();
    g->results[0]->args[1] = other->params[1];
    expect_refusal(g, "%3 mul: operand 1, %1, is not in the graph");
    ir_graph_free(other);
    g = small_graph();
    g->donated[1] = 0;
    expect_refusal(g, "the memory of parameter 0 is taken over twice");
    g = small_graph();
    g->donated[1] = 2;
    expect_refusal(g, "result 1 takes over the memory of parameter 2, and there are 2 parameters");
    g = small_graph();
    g->results[0]->prev = NULL;
    expect_refusal(g, "%3 mul: expected the node before it to be linked to it");
    g = small_graph();
    g->params[1]->attr.index = 0;
    expect_refusal(g, "%1 parameter: expected index 1, got 0");
    (void)state;
}

/* -- hostile text ---------------------------------------------------------------------------------------------------------------- */

/* A block of exactly the text's size, so that the address sanitizer sees the first byte read beyond it. */
static ir_graph *parse_exact(const char *text, size_t len)
{
    char *exact = malloc(len ? len : 1);
    memcpy(exact, text, len);
    ir_graph *graph = ir_parse("hostile", exact, len);
    free(exact);
    if (!graph) {
        assert_true(strncmp(base_error(), "hostile:", 8) == 0);
        assert_null(strchr(base_error(), '\n'));
    }
    return graph;
}

static void test_odd_texts(void **state)
{
    static const char *const texts[] = {
        "", "graph", "graph f", "graph f(", "graph f()", "graph f() {", "graph f() { return", "graph f() { return %", "graph f() { return %0 }",
        "graph f() { return } x", "graph \"", "graph \"\\", "graph \"\\x", "graph \"\\x0", "graph \"\\x00\"() { return }", "graph f(%0: f32[", "graph f(%0: f32[1",
        "graph f(%0: f32[a", "graph f(%0: f32[a=", "graph f(%-1: f32[]) { return }", "graph f(%99999999999999999999999: f32[]) { return }",
        "graph f(%0: f32[]) { %1: f32[] = constant {value=", "graph f(%0: f32[]) { %1: f32[] = constant {", "graph f(%0: f32[]) { %1: f32[] = literal {data=[",
        "graph f(%0: f32[]) { %1: f32[3] = literal {data=[nan(0x", ";", "; x", "graph f() { return } ;", "%%%%", "graph f(%0: f32[]) { return %0 \"a\" ->",
    };
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        ir_graph *graph = parse_exact(texts[i], strlen(texts[i]));
        assert_true((graph != NULL) == (strcmp(texts[i], "graph f() { return } ;") == 0));
        ir_graph_free(graph);
    }
    base_text deep = {0};
    for (int i = 0; i < 100000; i++)
        base_text_add(&deep, "graph f(%%0: f32[2]) { %%1: f32[2] = scan %%0 {count=1, carry=1} ");
    assert_null(parse_exact(deep.at, deep.len));
    base_text_free(&deep);
    (void)state;
}

static void mutate(base_text *text)
{
    static const char *const pieces[] = { "[", "]", "{", "}", "(", ")", "%", ",", "=", "\"", ";", "\n", "0", "1", "-1", "9", "99999999999", "4294967296", "1099511627776",
                                          "f32[", "i32[]", "bool", "axes=[", "axis=7", "start=[", "nan", "inf", "->", "return", "graph", "%0", "%1", "%2", "%3", "result", "add" };
    for (uint32_t n = 1 + draw(3); n > 0 && text->len > 0; n--) {
        uint32_t at = draw((uint32_t)text->len), kind = draw(4), count = 1 + draw(8);
        base_text out = {0};
        const char *piece = pieces[draw(COUNT_OF(pieces))];
        base_text_bytes(&out, text->at, at);
        if (kind == 0) {                                                    /* a byte becomes another */
            char byte = (char)draw(256);
            base_text_bytes(&out, &byte, 1);
            at++;
        } else if (kind == 1) {                                             /* some bytes go */
            at = MIN(at + count, (uint32_t)text->len);
        } else if (kind == 2) {                                             /* a piece of the language comes in */
            base_text_bytes(&out, piece, strlen(piece));
        } else if (text->at[at] >= '0' && text->at[at] <= '9') {            /* a digit becomes another */
            char digit = (char)('0' + draw(10));
            base_text_bytes(&out, &digit, 1);
            at++;
        }
        base_text_bytes(&out, text->at + at, text->len - at);
        base_text_free(text);
        *text = out;
    }
}

static char **paths;
static int n_paths;

/* What still parses is a graph like any other: it goes round, and through all passes. MUTATIONS in the environment asks for more. */
static void test_mutations(void **state)
{
    const char *more = getenv("MUTATIONS");
    long rounds = more ? atol(more) : MUTATIONS;
    int parsed = 0;
    random_state = 42;
    for (long i = 0; i < rounds; i++) {
        size_t len;
        char *file = read_text(paths[draw((uint32_t)n_paths)], &len);
        base_text text = {0};
        base_text_bytes(&text, file, input_length(file));
        mutate(&text);
        ir_graph *graph = parse_exact(text.at ? text.at : "", text.len);
        if (graph) {
            parsed++;
            check_round_trip(graph);
            ir_pass_options options = { .verify = true };
            ir_run_passes(graph, &options);
            ir_pass_reports_free(&options);
            check_round_trip(graph);
            ir_graph_free(graph);
        }
        base_text_free(&text);
        base_free(file);
    }
    assert_true(parsed > rounds / 100);
    (void)state;
}

static void test_no_leaks(void **state)
{
    size_t before = base_alloc_count();
    for (int i = 0; i < n_paths; i++) {
        size_t len;
        char *file = read_text(paths[i], &len);
        ir_graph *graph = ir_parse(paths[i], file, input_length(file));
        if (graph)
            run_passes(graph, "passes");
        ir_graph_free(graph);
        base_free(file);
    }
    assert_int_equal(base_alloc_count(), before);
    (void)state;
}

/* -- all of them ------------------------------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

int main(void)
{
    static const struct CMUnitTest fixed[] = {
        cmocka_unit_test(test_op_names), cmocka_unit_test(test_every_op_in_text), cmocka_unit_test(test_mistakes), cmocka_unit_test(test_dim_names),
        cmocka_unit_test(test_verifier), cmocka_unit_test(test_dumps), cmocka_unit_test(test_odd_texts),
        cmocka_unit_test(test_mutations), cmocka_unit_test(test_no_leaks),
    };
    static struct CMUnitTest tests[COUNT_OF(fixed) + MAX_FILES];
    static char *found[MAX_FILES];
    DIR *dir = opendir("tests/ir");
    if (!dir) {
        fprintf(stderr, "tests/ir: cannot be opened: run from the root of the repository\n");
        return 1;
    }
    for (struct dirent *entry; (entry = readdir(dir)) && n_paths < MAX_FILES;)
        if (strlen(entry->d_name) > 4 && strcmp(entry->d_name + strlen(entry->d_name) - 4, ".rax") == 0) {
            base_text path = {0};
            base_text_add(&path, "tests/ir/%s", entry->d_name);
            found[n_paths++] = base_text_take(&path);
        }
    closedir(dir);
    qsort(found, (size_t)n_paths, sizeof *found, by_name);
    paths = found;
    memcpy(tests, fixed, sizeof fixed);
    for (int i = 0; i < n_paths; i++)
        tests[COUNT_OF(fixed) + (size_t)i] = (struct CMUnitTest){ .name = found[i], .test_func = test_file, .initial_state = found[i] };
    int failed = _cmocka_run_group_tests("ir", tests, COUNT_OF(fixed) + (size_t)n_paths, NULL, NULL);
    for (int i = 0; i < n_paths; i++)
        base_free(found[i]);
    return failed;
}
