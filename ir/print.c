/* The text form of a graph, made to be read, compared line by line, and parsed back to the same graph:
 *
 *     graph train_step(%0: f32[64,784] "x", %1: f32[784,256] "params.w1") {      ; mlp.c:9
 *       %2: f32[64,256] = matmul %0, %1                                          ; mlp.c:14
 *       %3: (f32[], f32[64]) = scan %4, %2 {count=64, carry=1, xs=1, reverse=false} graph sum(%0: f32[], %1: f32[256]) {
 *         ...
 *         return %2, %3
 *       }
 *       return %5 "loss", %1 "params.w1" -> %1
 *     }
 *
 * After the semicolon: where the user wrote it, and the pass that made it (`mlp.c:14 by gradient`). A parameter's place is
 * its graph's. Heads and returns of more than a line have one entry a line. A number is as short as parses back to the same bits. */
#include "ir/shape_rules.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 120, COMMENT_COLUMN = 60 };

typedef struct { base_text *out; size_t line_start; } printer;

/* -- words and numbers -------------------------------------------------------------------------------------------------- */

void ir_print_quoted(base_text *out, const char *text)
{
    base_text_add(out, "\"");
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\')
            base_text_add(out, "\\%c", *c);
        else if (*c < 0x20 || *c == 0x7f)
            base_text_add(out, "\\x%02x", *c);
        else
            base_text_bytes(out, c, 1);
    }
    base_text_add(out, "\"");
}

static bool is_word(const char *text)
{
    for (const char *c = text; *c; c++)
        if (!((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || *c == '_' || (c > text && *c >= '0' && *c <= '9')))
            return false;
    return *text != '\0';
}

/* 6 digits where they do, and as many as it takes where not: 9 always do for f32, 17 for f64. */
static void print_float(base_text *out, ir_dtype dtype, double value)
{
    char digits[40];
    if (isnan(value)) {
        base_text_add(out, "nan");
        return;
    }
    for (int n = 6; n <= 17; n++) {
        snprintf(digits, sizeof digits, "%.*g", n, value);
        if (ir_round_to(dtype, strtod(digits, NULL)) == value)
            break;
    }
    base_text_add(out, "%s", digits);
}

static void print_value(base_text *out, ir_dtype dtype, double value)
{
    switch (dtype) {
    case IR_F32:
    case IR_F64:
    case IR_BF16:
    case IR_TUPLE: print_float(out, dtype, value); break;
    case IR_I32: base_text_add(out, "%d", (int)value); break;
    case IR_BOOL: base_text_add(out, "%s", value != 0 ? "true" : "false"); break;
    }
}

/* A NaN of a literal keeps its bits: nan(0xffc00001). */
static void print_element(base_text *out, ir_dtype dtype, const void *data, int64_t i)
{
    uint64_t bits = 0, quiet_nan = 0;
    double value = 0;
    switch (dtype) {
    case IR_F32: {
        float f;
        memcpy(&f, (const char *)data + 4 * i, 4);
        memcpy(&bits, &f, 4);
        value = f;
        quiet_nan = 0x7fc00000;
        break;
    }
    case IR_F64:
        memcpy(&value, (const char *)data + 8 * i, 8);
        memcpy(&bits, &value, 8);
        quiet_nan = 0x7ff8000000000000;
        break;
    case IR_BF16: {
        uint16_t half;
        memcpy(&half, (const char *)data + 2 * i, 2);
        bits = half;
        value = ir_bf16_to_f32(half);
        quiet_nan = 0x7fc0;
        break;
    }
    case IR_I32: {
        int32_t whole;
        memcpy(&whole, (const char *)data + 4 * i, 4);
        value = whole;
        break;
    }
    case IR_BOOL: value = ((const uint8_t *)data)[i]; break;
    case IR_TUPLE: break;
    }
    if (isnan(value) && bits != quiet_nan)
        base_text_add(out, "nan(0x%" PRIx64 ")", bits);
    else
        print_value(out, dtype, value);
}

/* -- attributes --------------------------------------------------------------------------------------------------------- */

/* "{" before the first key, ", " before the others. */
static void print_key(base_text *out, bool *open, const char *key)
{
    base_text_add(out, "%s%s=", *open ? ", " : " {", key);
    *open = true;
}

static void print_attributes(base_text *out, const ir_node *node)
{
    unsigned has = ir_op_table[node->op].attributes;
    const ir_attr *attr = &node->attr;
    bool open = false;
    if (has & ATTR_INDEX) {
        print_key(out, &open, "index");
        base_text_add(out, "%d", attr->index);
    }
    if (has & ATTR_AXIS) {
        print_key(out, &open, "axis");
        base_text_add(out, "%d", attr->axis);
    }
    if (has & ATTR_AXES) {
        print_key(out, &open, "axes");
        base_text_add(out, "[");
        for (int i = 0; i < attr->n_axes; i++)
            base_text_add(out, "%s%d", i ? "," : "", attr->axes[i]);
        base_text_add(out, "]");
    }
    if (has & ATTR_START) {
        print_key(out, &open, "start");
        base_text_add(out, "[");
        for (int i = 0; i < node->type.rank; i++)
            base_text_add(out, "%s%" PRId64, i ? "," : "", attr->start[i]);
        base_text_add(out, "]");
    }
    if (has & ATTR_VALUE) {
        print_key(out, &open, "value");
        print_value(out, node->op == OP_bernoulli ? IR_F64 : node->type.dtype, attr->value);
    }
    if (has & ATTR_DATA) {
        print_key(out, &open, "data");
        base_text_add(out, "[");
        for (int64_t i = 0, n = ir_type_count(&node->type); i < n; i++) {
            base_text_add(out, "%s", i ? "," : "");
            print_element(out, node->type.dtype, attr->data, i);
        }
        base_text_add(out, "]");
    }
    if (has & ATTR_EPSILON) {
        print_key(out, &open, "epsilon");
        print_float(out, IR_F64, attr->epsilon);
    }
    if (has & ATTR_ATTENTION) {
        print_key(out, &open, "causal");
        base_text_add(out, "%s", attr->causal ? "true" : "false");
        print_key(out, &open, "scale");
        print_float(out, IR_F64, attr->scale);
        print_key(out, &open, "dropout");
        print_float(out, IR_F64, attr->dropout);
    }
    if (has & ATTR_SITE) {
        print_key(out, &open, "site");
        base_text_add(out, "%" PRIu32, attr->site);
    }
    if (has & ATTR_SCAN) {
        print_key(out, &open, "count");
        base_text_add(out, "%" PRId64 ", carry=%d, xs=%d, reverse=%s", attr->count, attr->n_carry, attr->n_xs, attr->reverse ? "true" : "false");
    }
    if (open)
        base_text_add(out, "}");
}

/* -- nodes -------------------------------------------------------------------------------------------------------------- */

static void print_result_type(base_text *out, const ir_node *node)
{
    if (node->type.dtype != IR_TUPLE) {
        ir_type_print(out, &node->type);
        return;
    }
    base_text_add(out, "(");
    for (int i = 0; i < node->n_tuple; i++) {
        base_text_add(out, "%s", i ? ", " : "");
        ir_type_print(out, &node->tuple[i]);
    }
    base_text_add(out, ")");
}

static void print_parameter(base_text *out, const ir_node *node)
{
    base_text_add(out, "%%%d: ", node->id);
    ir_type_print(out, &node->type);
    if (node->attr.name) {
        base_text_add(out, " ");
        ir_print_quoted(out, node->attr.name);
    }
}

/* All but body and place. */
static void print_head(base_text *out, const ir_node *node)
{
    base_text_add(out, "%%%d: ", node->id);
    print_result_type(out, node);
    base_text_add(out, " = %s", OP_NAME(node->op));
    for (int i = 0; i < node->n_args; i++)
        base_text_add(out, "%s%%%d", i ? ", " : " ", node->args[i]->id);
    print_attributes(out, node);
}

/* -- lines -------------------------------------------------------------------------------------------------------------- */

static void indent(printer *p, int depth)
{
    p->line_start = p->out->len;
    base_text_add(p->out, "%*s", 2 * depth, "");
}

/* A file's name comes from the user's compiler, or from a text: what would not stay one line, or one comment, is replaced. */
static void end_line(printer *p, ir_place place, const char *born)
{
    if (place.file || born) {
        int column = (int)(p->out->len - p->line_start);
        base_text_add(p->out, "%*s;", MAX(2, COMMENT_COLUMN - column), "");
        if (place.file) {
            base_text_add(p->out, " ");
            for (const char *c = place.file; *c; c++)
                base_text_bytes(p->out, (unsigned char)*c < 0x20 ? "?" : c, 1);
            base_text_add(p->out, ":%d", MAX(0, place.line));
        }
        if (born)
            base_text_add(p->out, " by %s", born);
    }
    base_text_add(p->out, "\n");
}

/* -- graphs ------------------------------------------------------------------------------------------------------------- */

static void print_graph(printer *p, const ir_graph *graph, int depth, ir_place place, const char *born);

static void print_line(printer *p, const ir_node *node, int depth)
{
    indent(p, depth);
    print_head(p->out, node);
    if (!node->attr.body) {
        end_line(p, node->place, node->born);
        return;
    }
    base_text_add(p->out, " ");
    print_graph(p, node->attr.body, depth, node->place, node->born);
}

static void print_params(printer *p, const ir_graph *graph, int depth, ir_place place, const char *born)
{
    base_text line = {0};
    for (int i = 0; i < graph->n_params; i++) {
        base_text_add(&line, "%s", i ? ", " : "");
        print_parameter(&line, graph->params[i]);
    }
    if (p->out->len - p->line_start + line.len <= WIDTH) {
        base_text_add(p->out, "(%s) {", line.at ? line.at : "");
        end_line(p, place, born);
    } else {
        base_text_add(p->out, "(");
        end_line(p, place, born);
        for (int i = 0; i < graph->n_params; i++) {
            indent(p, depth + 2);
            print_parameter(p->out, graph->params[i]);
            base_text_add(p->out, "%s\n", i < graph->n_params - 1 ? "," : "");
        }
        indent(p, depth);
        base_text_add(p->out, ") {\n");
    }
    base_text_free(&line);
}

static void print_one_result(base_text *out, const ir_graph *graph, int i)
{
    base_text_add(out, "%%%d", graph->results[i]->id);
    if (graph->result_names[i]) {
        base_text_add(out, " ");
        ir_print_quoted(out, graph->result_names[i]);
    }
    if (graph->donated[i] >= 0)
        base_text_add(out, " -> %%%d", graph->params[graph->donated[i]]->id);
}

static void print_return(printer *p, const ir_graph *graph, int depth)
{
    base_text line = {0};
    for (int i = 0; i < graph->n_results; i++) {
        base_text_add(&line, "%s", i ? ", " : " ");
        print_one_result(&line, graph, i);
    }
    indent(p, depth);
    if (2 * (size_t)depth + line.len <= WIDTH) {
        base_text_add(p->out, "return%s\n", line.at ? line.at : "");
    } else {
        base_text_add(p->out, "return\n");
        for (int i = 0; i < graph->n_results; i++) {
            indent(p, depth + 1);
            print_one_result(p->out, graph, i);
            base_text_add(p->out, "%s\n", i < graph->n_results - 1 ? "," : "");
        }
    }
    base_text_free(&line);
}

/* Goes on where the line stands; place and born are those of the line. */
static void print_graph(printer *p, const ir_graph *graph, int depth, ir_place place, const char *born)
{
    base_text_add(p->out, "graph ");
    if (is_word(graph->name))
        base_text_add(p->out, "%s", graph->name);
    else
        ir_print_quoted(p->out, graph->name);
    print_params(p, graph, depth, place, born);
    for (const ir_node *n = graph->first; n; n = n->next)
        if (n->op != OP_parameter)
            print_line(p, n, depth + 1);
    print_return(p, graph, depth + 1);
    indent(p, depth);
    base_text_add(p->out, "}\n");
}

void ir_print(base_text *text, const ir_graph *graph)
{
    printer p = { .out = text, .line_start = text->len };
    print_graph(&p, graph, 0, graph->n_params ? graph->params[0]->place : (ir_place){0}, NULL);
}

char *ir_to_text(const ir_graph *graph)
{
    base_text text = {0};
    ir_print(&text, graph);
    return base_text_take(&text);
}
