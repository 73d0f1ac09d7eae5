/* What the tests of graphs share: a graph from text, arrays with values, a run. Everything that a test makes here is freed by
 * graphs_done, which also looks for what was left behind. */
#ifndef TESTS_GRAPHS_H
#define TESTS_GRAPHS_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "ir/ir.h"

#define MAYBE_UNUSED __attribute__((unused))

/* -- what is to be freed ------------------------------------------------------------------------------------------------ */

static struct { void *block[8192]; int n; ir_graph *graph[1024]; int n_graphs; size_t blocks_before; } made;

MAYBE_UNUSED static int graphs_begin(void **state)
{
    (void)state;
    made.n = made.n_graphs = 0;
    made.blocks_before = base_alloc_count();
    base_error_clear();
    return 0;
}

MAYBE_UNUSED static int graphs_done(void **state)
{
    (void)state;
    for (int i = 0; i < made.n; i++)
        base_free(made.block[i]);
    for (int i = 0; i < made.n_graphs; i++)
        ir_graph_free(made.graph[i]);
    made.n = made.n_graphs = 0;
    if (base_alloc_count() == made.blocks_before)
        return 0;
    print_message("# %zu blocks were not freed\n", base_alloc_count() - made.blocks_before);
    return 1;
}

#define GRAPH_TEST(function) cmocka_unit_test_setup_teardown(function, graphs_begin, graphs_done)

MAYBE_UNUSED static void *room(size_t bytes)
{
    assert_true(made.n < (int)COUNT_OF(made.block));
    return made.block[made.n++] = base_alloc(bytes);
}

MAYBE_UNUSED static ir_graph *keep(ir_graph *graph)
{
    assert_true(made.n_graphs < (int)COUNT_OF(made.graph));
    return made.graph[made.n_graphs++] = graph;
}

/* -- graphs ------------------------------------------------------------------------------------------------------------- */

MAYBE_UNUSED static ir_graph *graph_of(const char *text)
{
    ir_graph *graph = ir_parse("test", text, strlen(text));
    if (!graph)
        fail_msg("%s\n%s", base_error(), text);
    return keep(graph);
}

MAYBE_UNUSED PRINTF_LIKE(1, 2) static char *text_of(const char *format, ...)
{
    base_text text = {0};
    va_list args;
    va_start(args, format);
    base_text_addv(&text, format, args);
    va_end(args);
    char *copy = room(text.len + 1);
    memcpy(copy, text.at, text.len + 1);
    base_text_free(&text);
    return copy;
}

/* Legal, and the same graph after printing and parsing. */
MAYBE_UNUSED static void check_graph(ir_graph *graph)
{
    base_text why = {0};
    char *text = ir_to_text(graph);
    if (!ir_verify(graph, &why))
        fail_msg("%s\n%s", why.at, text);
    ir_graph *again = ir_parse("printed", text, strlen(text));
    if (!again)
        fail_msg("%s\n%s", base_error(), text);
    char *second = ir_to_text(again);
    assert_string_equal(text, second);
    ir_graph_free(again);
    base_free(text);
    base_free(second);
}

/* -- arrays ------------------------------------------------------------------------------------------------------------- */

MAYBE_UNUSED static ir_array array_of(ir_type type) { return (ir_array){ type, room((size_t)ir_type_bytes(&type)) }; }

MAYBE_UNUSED static double get(const ir_array *x, int64_t i) { return ir_element(x->type.dtype, x->data, i); }

MAYBE_UNUSED static void put(ir_array *x, int64_t i, double value)
{
    switch (x->type.dtype) {
    case IR_F32:   ((float *)x->data)[i] = (float)value; return;
    case IR_F64:   ((double *)x->data)[i] = value; return;
    case IR_BF16:  ((uint16_t *)x->data)[i] = ir_f32_to_bf16((float)value); return;
    case IR_I32:   ((int32_t *)x->data)[i] = (int32_t)value; return;
    case IR_BOOL:  ((uint8_t *)x->data)[i] = value != 0; return;
    case IR_TUPLE: break;
    }
    fail_msg("a tuple has no elements");
}

/* Values from a generator of the tests' own, so that they are the same everywhere. */
typedef struct { uint64_t state; } dice;

MAYBE_UNUSED static double roll(dice *d)             /* uniform in [0, 1) */
{
    d->state += 0x9e3779b97f4a7c15;
    uint64_t z = d->state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

MAYBE_UNUSED static void fill(ir_array *x, dice *d, double lo, double hi)
{
    for (int64_t i = 0, n = ir_type_count(&x->type); i < n; i++)
        put(x, i, lo + (hi - lo) * roll(d));
}

/* Memory with a margin on both sides that nobody has a reason to write. */
enum { GUARD = 256 };

MAYBE_UNUSED static void *guarded_room(size_t bytes)
{
    char *memory = room(bytes + 2 * GUARD);
    memset(memory, 0xa5, bytes + 2 * GUARD);
    return memory + GUARD;
}

MAYBE_UNUSED static bool guards_hold(const void *at, size_t bytes)
{
    const unsigned char *inside = at;
    for (int i = 1; i <= GUARD; i++)
        if (inside[-i] != 0xa5 || inside[bytes + (size_t)i - 1] != 0xa5)
            return false;
    return true;
}

MAYBE_UNUSED static ir_array guarded_copy(const ir_array *x)
{
    size_t bytes = (size_t)ir_type_bytes(&x->type);
    return (ir_array){ x->type, memcpy(guarded_room(bytes), x->data, bytes) };
}

MAYBE_UNUSED static ir_array *arrays_for_params(const ir_graph *graph)
{
    ir_array *arrays = room(sizeof *arrays * (size_t)graph->n_params);
    for (int i = 0; i < graph->n_params; i++)
        arrays[i] = array_of(graph->params[i]->type);
    return arrays;
}

MAYBE_UNUSED static ir_array *arrays_for_results(const ir_graph *graph)
{
    ir_array *arrays = room(sizeof *arrays * (size_t)graph->n_results);
    for (int i = 0; i < graph->n_results; i++)
        arrays[i] = array_of(graph->results[i]->type);
    return arrays;
}

MAYBE_UNUSED static ir_array *run_graph(ir_graph *graph, const ir_array *params)
{
    ir_array *results = arrays_for_results(graph);
    check_graph(graph);
    if (!ir_interpret(graph, params, results))
        fail_msg("%s", base_error());
    return results;
}

/* The operands' values in the text as literals, or none. */
MAYBE_UNUSED static ir_array *run_text(const char *text) { return run_graph(graph_of(text), NULL); }

/* |got - expected| <= tolerance * max(1, |expected|); NaN where NaN is expected. */
MAYBE_UNUSED static bool is_near(double got, double expected, double tolerance)
{
    if (isnan(expected) || isnan(got))
        return isnan(expected) && isnan(got);
    if (isinf(expected) || isinf(got))
        return expected == got;
    return fabs(got - expected) <= tolerance * fmax(1, fabs(expected));
}

#define assert_near(got, expected, tolerance, ...)                                                                    \
    do {                                                                                                              \
        double got_ = (got), expected_ = (expected);                                                                  \
        if (!is_near(got_, expected_, tolerance)) {                                                                   \
            print_message("# " __VA_ARGS__);                                                                          \
            fail_msg(": expected %.12g, got %.12g, off by %.3g, tolerance %.3g", expected_, got_, got_ - expected_,   \
                     (double)(tolerance));                                                                            \
        }                                                                                                             \
    } while (0)

#endif
