/* Text to graph: what print.c writes, and what a person writes in that form. By recursive descent over bytes whose end is
 * known: nothing here relies on a final '\0', and nothing in the text is believed before it is checked, for which the shape
 * rules and the verifier do the larger part.
 *
 * Functions are named for what they read. They return false once the error is set, and so does all that called them. */
#include "ir/lexer.h"
#include "ir/shape_rules.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 32, MAX_ID = 1 << 30 };

/* Nodes by id, in one graph: open addressing, at most half full. */
typedef struct { ir_node **slots; size_t cap, used; } id_map;

typedef struct {
    ir_lexer *p;
    ir_graph *graph;
    id_map map;
    int line;                             /* where the node that is read begins */
    int depth;                            /* bodies around it */
    int place_line;                       /* the last line whose place was read: graph->place and graph->pass have it */
    const char *place_file;               /* the last file of a place, in the arena: most lines have the same */
} scope;

/* A mistake that shows only once all of the node is read, or should have been. */
#define wrong_node(s, ...) ((s)->p->line = (s)->line, ir_lex_wrong((s)->p, __VA_ARGS__))

/* -- ids --------------------------------------------------------------------------------------------------------------- */

static ir_node **id_slot(const id_map *map, int id)
{
    size_t i = (size_t)((uint64_t)id * 0x9e3779b97f4a7c15u >> 32) & (map->cap - 1);
    while (map->slots[i] && map->slots[i]->id != id)
        i = (i + 1) & (map->cap - 1);
    return &map->slots[i];
}

static ir_node *id_find(const id_map *map, int id) { return map->cap ? *id_slot(map, id) : NULL; }

static void id_insert(id_map *map, ir_node *node)
{
    if (2 * (map->used + 1) > map->cap) {
        id_map more = { .cap = MAX((size_t)16, 2 * map->cap), .used = map->used };
        more.slots = base_alloc(sizeof *more.slots * more.cap);
        for (size_t i = 0; i < map->cap; i++)
            if (map->slots[i])
                *id_slot(&more, map->slots[i]->id) = map->slots[i];
        base_free(map->slots);
        *map = more;
    }
    *id_slot(map, node->id) = node;
    map->used++;
}

/* -- types ------------------------------------------------------------------------------------------------------------- */

static bool tensor_type(scope *s, ir_type *type)
{
    ir_lexer *p = s->p;
    const char *text;
    size_t len;
    base_text why = {0};
    *type = (ir_type){0};
    if (!ir_lex_dtype(p, "a type", &type->dtype) || !ir_lex_expect(p, "["))
        return false;
    while (!ir_lex_accept(p, "]")) {
        if (type->rank == IR_MAX_RANK)
            return ir_lex_wrong(p, "a type of more than %d axes", IR_MAX_RANK);
        if (type->rank > 0 && !ir_lex_expect(p, ","))
            return false;
        ir_lex_skip_space(p);
        if (ir_lex_is_word_byte(ir_lex_peek(p), true)) {
            if (!ir_lex_word(p, "the name of a dim", &text, &len) || !ir_lex_expect(p, "="))
                return false;
            type->dim_name[type->rank] = base_arena_text(s->graph->arena, "%.*s", (int)MIN(len, INT_MAX), text);
        }
        if (!ir_lex_integer(p, 0, IR_MAX_ELEMENTS, &type->dim[type->rank]))
            return false;
        type->rank++;
    }
    bool good = ir_type_is_sound(type, &why) || ir_lex_wrong(p, "%s", why.at);
    base_text_free(&why);
    return good;
}

/* A type, or a tuple of types in parentheses, which *types is then in an allocation of the caller's to free. */
static bool result_type(scope *s, ir_type *type, int *n_types, ir_type **types)
{
    base_text list = {0};
    *n_types = 0;
    if (!ir_lex_accept(s->p, "("))
        return tensor_type(s, type);
    while (!ir_lex_accept(s->p, ")")) {
        ir_type next;
        if ((list.len > 0 && !ir_lex_expect(s->p, ",")) || !tensor_type(s, &next)) {
            base_text_free(&list);
            return false;
        }
        base_text_bytes(&list, &next, sizeof next);
    }
    *n_types = (int)(list.len / sizeof **types);
    *types = (ir_type *)(void *)list.at;
    *type = (ir_type){ .dtype = IR_TUPLE };
    return *n_types > 0 || ir_lex_wrong(s->p, "a tuple of nothing");
}

/* -- places ------------------------------------------------------------------------------------------------------------ */

/* The place that the comment of the line where the parser stands tells: `; FILE:LINE`, `; FILE:LINE by PASS` or `; by PASS`. Any other
 * comment is no place. */
static void line_place(scope *s)
{
    ir_graph *graph = s->graph;
    const char *text;
    size_t len, file_len;
    int line;
    if (s->place_line == s->p->line)
        return;
    s->place_line = s->p->line;
    graph->place = (ir_place){0};
    graph->pass = NULL;
    if (!ir_lex_comment(s->p, &text, &len))
        return;

    size_t by = len;                                      /* where a pass's name begins */
    while (by > 0 && (ir_lex_is_word_byte((unsigned char)text[by - 1], false) || text[by - 1] == '-'))
        by--;
    if (by < len && by >= 3 && memcmp(text + by - 3, "by ", 3) == 0 && (by == 3 || text[by - 4] == ' ')) {
        graph->pass = base_arena_text(graph->arena, "%.*s", (int)MIN(len - by, 1000), text + by);
        len = by == 3 ? 0 : by - 4;
    }
    if (!ir_lex_is_place(text, len, &file_len, &line))
        return;
    if (!s->place_file || strlen(s->place_file) != file_len || memcmp(s->place_file, text, file_len) != 0)
        s->place_file = base_arena_text(graph->arena, "%.*s", (int)file_len, text);
    graph->place = (ir_place){ s->place_file, line };
}

/* -- attributes -------------------------------------------------------------------------------------------------------- */

static bool list_of_axes(ir_lexer *p, ir_attr *attr)
{
    if (!ir_lex_expect(p, "["))
        return false;
    while (!ir_lex_accept(p, "]")) {
        if (attr->n_axes == IR_MAX_RANK)
            return ir_lex_wrong(p, "more than %d axes", IR_MAX_RANK);
        if ((attr->n_axes > 0 && !ir_lex_expect(p, ",")) || !ir_lex_small(p, 0, IR_MAX_RANK - 1, &attr->axes[attr->n_axes]))
            return false;
        attr->n_axes++;
    }
    return true;
}

static bool list_of_starts(ir_lexer *p, const ir_type *type, ir_attr *attr)
{
    int n = 0;
    if (!ir_lex_expect(p, "["))
        return false;
    for (; !ir_lex_accept(p, "]"); n++) {
        if (n == type->rank)
            return ir_lex_wrong(p, "more starts than axes: the result has rank %d", type->rank);
        if ((n > 0 && !ir_lex_expect(p, ",")) || !ir_lex_integer(p, 0, IR_MAX_ELEMENTS, &attr->start[n]))
            return false;
    }
    return n == type->rank || ir_lex_wrong(p, "%d starts for a result of rank %d", n, type->rank);
}

static void append_element(base_text *out, ir_dtype dtype, double value, uint64_t nan_bits)
{
    uint64_t bits = nan_bits;
    if (!nan_bits) {
        float f = (float)value;
        int32_t whole = dtype == IR_I32 ? (int32_t)value : value != 0;
        uint16_t half = ir_f32_to_bf16(f);
        switch (dtype) {
        case IR_F32: memcpy(&bits, &f, sizeof f); break;
        case IR_F64: memcpy(&bits, &value, sizeof value); break;
        case IR_BF16: memcpy(&bits, &half, sizeof half); break;
        case IR_I32:
        case IR_BOOL:
        case IR_TUPLE: memcpy(&bits, &whole, sizeof whole); break;
        }
    }
    base_text_bytes(out, &bits, (size_t)ir_dtype_bytes(dtype));       /* the low bytes: the machine is little-endian */
}

static bool list_of_elements(scope *s, const ir_type *type, ir_attr *attr)
{
    ir_lexer *p = s->p;
    base_text data = {0};
    int64_t n = 0, count = ir_type_count(type);
    bool good = ir_lex_expect(p, "[");
    for (; good && !ir_lex_accept(p, "]"); n++) {
        double value;
        uint64_t nan_bits;
        good = n < count || ir_lex_wrong(p, "more than %lld elements", (long long)count);
        good = good && (n == 0 || ir_lex_expect(p, ",")) && ir_lex_value_of(p, type->dtype, &value, &nan_bits);
        if (good)
            append_element(&data, type->dtype, value, nan_bits);
    }
    good = good && (n == count || ir_lex_wrong(p, "%lld elements, expected %lld", (long long)n, (long long)count));
    if (good && n > 0) {
        void *bytes = base_arena_alloc(s->graph->arena, data.len);
        memcpy(bytes, data.at, data.len);
        attr->data = bytes;
    }
    base_text_free(&data);
    return good;
}

/* The keys of the text form, and the attribute that each belongs to. */
enum { KEY_INDEX, KEY_VALUE, KEY_DATA, KEY_AXIS, KEY_AXES, KEY_START, KEY_SITE, KEY_EPSILON, KEY_CAUSAL, KEY_SCALE, KEY_DROPOUT,
       KEY_COUNT, KEY_CARRY, KEY_XS, KEY_REVERSE, KEYS };

static const struct { const char *name; unsigned attribute; } keys[KEYS] = {
    [KEY_INDEX] = { "index", ATTR_INDEX },         [KEY_VALUE] = { "value", ATTR_VALUE },          [KEY_DATA] = { "data", ATTR_DATA },
    [KEY_AXIS] = { "axis", ATTR_AXIS },            [KEY_AXES] = { "axes", ATTR_AXES },             [KEY_START] = { "start", ATTR_START },
    [KEY_SITE] = { "site", ATTR_SITE },            [KEY_EPSILON] = { "epsilon", ATTR_EPSILON },    [KEY_CAUSAL] = { "causal", ATTR_ATTENTION },
    [KEY_SCALE] = { "scale", ATTR_ATTENTION },     [KEY_DROPOUT] = { "dropout", ATTR_ATTENTION },  [KEY_COUNT] = { "count", ATTR_SCAN },
    [KEY_CARRY] = { "carry", ATTR_SCAN },          [KEY_XS] = { "xs", ATTR_SCAN },                 [KEY_REVERSE] = { "reverse", ATTR_SCAN },
};

/* What may be left out is zero or false; attention's site counts where there is dropout. */
static bool is_required(ir_op op, int key)
{
    if (key == KEY_CAUSAL || key == KEY_DROPOUT || key == KEY_CARRY || key == KEY_XS || key == KEY_REVERSE)
        return false;
    return key != KEY_SITE || !(ir_op_table[op].attributes & ATTR_ATTENTION);
}

static bool site_number(scope *s, uint32_t *site)
{
    int64_t wide;
    if (!ir_lex_integer(s->p, 0, UINT32_MAX - 1, &wide))
        return false;
    *site = (uint32_t)wide;
    s->graph->next_site = MAX(s->graph->next_site, *site + 1);
    return true;
}

static bool attribute(scope *s, ir_op op, const ir_type *type, int key, ir_attr *attr)
{
    ir_lexer *p = s->p;
    uint64_t nan_bits;
    switch (key) {
    case KEY_INDEX:   return ir_lex_small(p, 0, INT_MAX, &attr->index);
    case KEY_VALUE:   return ir_lex_value_of(p, op == OP_bernoulli ? IR_F64 : type->dtype, &attr->value, &nan_bits);
    case KEY_DATA:    return list_of_elements(s, type, attr);
    case KEY_AXIS:    return ir_lex_small(p, 0, IR_MAX_RANK - 1, &attr->axis);
    case KEY_AXES:    return list_of_axes(p, attr);
    case KEY_START:   return list_of_starts(p, type, attr);
    case KEY_SITE:    return site_number(s, &attr->site);
    case KEY_EPSILON: return ir_lex_real(p, &attr->epsilon, &nan_bits);
    case KEY_CAUSAL:  return ir_lex_boolean(p, &attr->causal);
    case KEY_SCALE:   return ir_lex_real(p, &attr->scale, &nan_bits);
    case KEY_DROPOUT: return ir_lex_real(p, &attr->dropout, &nan_bits);
    case KEY_COUNT:   return ir_lex_integer(p, 0, IR_MAX_ELEMENTS, &attr->count);
    case KEY_CARRY:   return ir_lex_small(p, 0, INT_MAX, &attr->n_carry);
    case KEY_XS:      return ir_lex_small(p, 0, INT_MAX, &attr->n_xs);
    case KEY_REVERSE: return ir_lex_boolean(p, &attr->reverse);
    }
    base_bug(__FILE__, __LINE__, "attribute: expected a key, got %d", key);
}

static bool attributes(scope *s, ir_op op, const ir_type *type, ir_attr *attr)
{
    ir_lexer *p = s->p;
    unsigned has = ir_op_table[op].attributes;
    bool seen[KEYS] = { false };
    if (ir_lex_accept(p, "{"))
        for (bool first = true; !ir_lex_accept(p, "}"); first = false) {
            const char *text;
            size_t len;
            int key = 0;
            if ((!first && !ir_lex_expect(p, ",")) || !ir_lex_word(p, "the name of an attribute", &text, &len))
                return false;
            while (key < KEYS && !ir_lex_is_word(text, len, keys[key].name))
                key++;
            if (key == KEYS || !(has & keys[key].attribute))
                return ir_lex_wrong(p, "%s has no attribute '%.*s'", OP_NAME(op), (int)MIN(len, 40), text);
            if (seen[key])
                return ir_lex_wrong(p, "'%s' comes twice", keys[key].name);
            seen[key] = true;
            if (!ir_lex_expect(p, "=") || !attribute(s, op, type, key, attr))
                return false;
        }
    for (int key = 0; key < KEYS; key++)
        if (has & keys[key].attribute && !seen[key] && is_required(op, key))
            return wrong_node(s, "%s needs the attribute '%s'", OP_NAME(op), keys[key].name);
    return true;
}

/* -- nodes ------------------------------------------------------------------------------------------------------------- */

static bool fresh_id(scope *s, int *id)
{
    if (!ir_lex_expect(s->p, "%") || !ir_lex_small(s->p, 0, MAX_ID, id))
        return false;
    return !id_find(&s->map, *id) || ir_lex_wrong(s->p, "%%%d comes twice", *id);
}

static bool known_id(scope *s, ir_node **node)
{
    int id;
    if (!ir_lex_expect(s->p, "%") || !ir_lex_small(s->p, 0, MAX_ID, &id))
        return false;
    *node = id_find(&s->map, id);
    return *node || ir_lex_wrong(s->p, "%%%d is not known here", id);
}

static void enter(scope *s, ir_node *node, int id)
{
    node->id = id;
    id_insert(&s->map, node);
    s->graph->next_id = MAX(s->graph->next_id, id + 1);
}

/* The first operand stands on the op's own line: a line of its own begins the next node. */
static bool operands(scope *s, base_text *args)
{
    ir_lex_skip_blanks(s->p);
    if (ir_lex_peek(s->p) != '%')
        return true;
    do {
        ir_node *node;
        if (!known_id(s, &node))
            return false;
        base_text_bytes(args, &node, sizeof node);
    } while (ir_lex_accept(s->p, ","));
    return true;
}

static bool graph_text(ir_lexer *p, ir_graph *graph, int depth);

/* What a node's line says, and what infers from it. */
typedef struct {
    ir_op op;
    base_text args;                       /* ir_node * one after another */
    ir_attr attr;
    ir_type type;
    int n_types;
    ir_type *types;                       /* of a tuple; in an allocation of its own */
} line_parts;

static bool node_parts(scope *s, line_parts *parts)
{
    ir_lexer *p = s->p;
    const char *text;
    size_t len;
    if (!ir_lex_expect(p, ":") || !result_type(s, &parts->type, &parts->n_types, &parts->types) ||
        !ir_lex_expect(p, "=") || !ir_lex_word(p, "an op", &text, &len))
        return false;
    line_place(s);
    if (!ir_op_parse(text, len, &parts->op))
        return ir_lex_wrong(p, "no op is named '%.*s'", (int)MIN(len, 40), text);
    if (parts->op == OP_parameter)
        return ir_lex_wrong(p, "a parameter stands in the graph's head");
    if (parts->n_types > 0 && ir_op_table[parts->op].attributes & (ATTR_VALUE | ATTR_DATA | ATTR_START))
        return ir_lex_wrong(p, "%s has one result", OP_NAME(parts->op));
    if (!operands(s, &parts->args) || !attributes(s, parts->op, &parts->type, &parts->attr))
        return false;
    if (ir_op_table[parts->op].attributes & ATTR_BODY) {
        if (!ir_lex_at_text(p, "graph"))
            return wrong_node(s, "%s needs a body", OP_NAME(parts->op));
        parts->attr.body = ir_graph_new_body(s->graph, "");
        if (!graph_text(p, parts->attr.body, s->depth + 1))
            return false;
        s->graph->next_site = MAX(s->graph->next_site, parts->attr.body->next_site);
    }
    return true;
}

static bool types_agree(scope *s, const line_parts *parts, const ir_type *type, int n_types, const ir_type *types)
{
    base_text text = {0};
    bool agree = parts->n_types == n_types && (n_types > 0 || ir_type_equal(&parts->type, type));
    for (int i = 0; agree && i < n_types; i++)
        agree = ir_type_equal(&parts->types[i], &types[i]);
    if (!agree) {
        for (int i = 0; i < MAX(1, n_types); i++) {
            base_text_add(&text, "%s", i ? ", " : n_types > 0 ? "(" : "");
            ir_type_print(&text, n_types > 0 ? &types[i] : type);
        }
        wrong_node(s, "%s: the result is %s%s, the text states another type", OP_NAME(parts->op), text.at,
                   n_types > 0 ? ")" : "");
    }
    base_text_free(&text);
    return agree;
}

static bool add_node(scope *s, int id, const line_parts *parts)
{
    int n_args = (int)(parts->args.len / sizeof(ir_node *)), n_types = 0;
    ir_node *const *args = (ir_node *const *)(void *)parts->args.at;
    const ir_type *stated = ir_op_table[parts->op].attributes & RESULT_TYPE ? &parts->type : NULL;
    ir_type type, *types = NULL;
    base_text why = {0};
    bool good = ir_infer(s->graph, parts->op, n_args, args, &parts->attr, stated, &type, &n_types, &types, &why) ||
                wrong_node(s, "%s: %s", OP_NAME(parts->op), why.at);
    base_text_free(&why);
    if (!good || !types_agree(s, parts, &type, n_types, types))
        return false;
    ir_node *node = ir_add(s->graph, parts->op, n_args, args, &parts->attr, stated);
    node->type = parts->type;             /* with the names that the text gives, and no others */
    for (int i = 0; i < n_types; i++)
        node->tuple[i] = parts->types[i];
    enter(s, node, id);
    return true;
}

static bool node_line(scope *s)
{
    line_parts parts = {0};
    int id;
    ir_lex_skip_space(s->p);
    s->line = s->p->line;
    bool good = fresh_id(s, &id) && node_parts(s, &parts) && add_node(s, id, &parts);
    base_text_free(&parts.args);
    base_free(parts.types);
    return good;
}

/* -- graphs ------------------------------------------------------------------------------------------------------------ */

static bool head(scope *s)
{
    ir_lexer *p = s->p;
    ir_graph *graph = s->graph;
    const char *text;
    size_t len;
    if (!ir_lex_word(p, "'graph'", &text, &len))
        return false;
    if (!ir_lex_is_word(text, len, "graph"))
        return ir_lex_wrong(p, "expected 'graph', got '%.*s'", (int)MIN(len, 40), text);
    line_place(s);
    ir_lex_skip_space(p);
    if (ir_lex_peek(p) == '"') {
        if (!ir_lex_quoted(p, s->graph->arena, &graph->name))
            return false;
    } else if (!ir_lex_word(p, "the graph's name", &text, &len)) {
        return false;
    } else {
        graph->name = base_arena_text(graph->arena, "%.*s", (int)MIN(len, INT_MAX), text);
    }
    if (!ir_lex_expect(p, "("))
        return false;
    for (bool first = true; !ir_lex_accept(p, ")"); first = false) {
        int id;
        ir_type type;
        const char *name = NULL;
        if ((!first && !ir_lex_expect(p, ",")) || !fresh_id(s, &id) || !ir_lex_expect(p, ":") || !tensor_type(s, &type))
            return false;
        ir_lex_skip_space(p);
        if (ir_lex_peek(p) == '"' && !ir_lex_quoted(p, s->graph->arena, &name))
            return false;
        enter(s, ir_parameter(graph, type, name), id);
    }
    return ir_lex_expect(p, "{");
}

typedef struct { base_text nodes, names, donated; } result_lists;

static bool one_result(scope *s, result_lists *lists)
{
    ir_lexer *p = s->p;
    ir_node *node, *donor;
    const char *name = NULL;
    int donated = -1;
    if (!known_id(s, &node))
        return false;
    ir_lex_skip_space(p);
    if (ir_lex_peek(p) == '"' && !ir_lex_quoted(p, s->graph->arena, &name))
        return false;
    if (ir_lex_accept(p, "->")) {
        if (!known_id(s, &donor))
            return false;
        if (donor->op != OP_parameter)
            return ir_lex_wrong(p, "%%%d is no parameter whose memory a result could take over", donor->id);
        donated = donor->attr.index;
    }
    base_text_bytes(&lists->nodes, &node, sizeof node);
    base_text_bytes(&lists->names, &name, sizeof name);
    base_text_bytes(&lists->donated, &donated, sizeof donated);
    return true;
}

static bool results(scope *s)
{
    result_lists lists = {0};
    bool good = true;
    if (ir_lex_at_text(s->p, "%"))
        do
            good = one_result(s, &lists);
        while (good && ir_lex_accept(s->p, ","));
    if (good) {
        int n = (int)(lists.donated.len / sizeof(int));
        ir_set_results(s->graph, n, (ir_node *const *)(void *)lists.nodes.at, (const char *const *)(void *)lists.names.at);
        if (n > 0)
            memcpy(s->graph->donated, lists.donated.at, lists.donated.len);
    }
    base_text_free(&lists.nodes);
    base_text_free(&lists.names);
    base_text_free(&lists.donated);
    return good;
}

static bool graph_lines(scope *s)
{
    ir_lexer *p = s->p;
    if (!head(s))
        return false;
    while (ir_lex_at_text(p, "%"))
        if (!node_line(s))
            return false;
    if (ir_lex_peek(p) == '}')
        return ir_lex_wrong(p, "expected 'return' before '}'");
    int line = p->line;
    base_text why = {0};
    if (!ir_lex_expect(p, "return") || !results(s) || !ir_lex_expect(p, "}"))
        return false;
    s->graph->place = (ir_place){0};
    s->graph->pass = NULL;
    p->line = line;                       /* what only the whole graph can get wrong is in its results */
    bool good = ir_verify(s->graph, &why) || ir_lex_wrong(p, "%s", why.at);
    base_text_free(&why);
    return good;
}

static bool graph_text(ir_lexer *p, ir_graph *graph, int depth)
{
    scope s = { .p = p, .graph = graph, .depth = depth };
    if (depth > MAX_DEPTH)
        return ir_lex_wrong(p, "bodies within bodies, more than %d deep", MAX_DEPTH);
    bool good = graph_lines(&s);
    base_free(s.map.slots);
    return good;
}

ir_graph *ir_parse(const char *file, const char *text, size_t len)
{
    ir_lexer p = { .file = file, .text = text, .len = len, .line = 1 };
    ir_graph *graph = ir_graph_new("");
    bool good = graph_text(&p, graph, 0);
    if (good) {
        ir_lex_skip_space(&p);
        good = p.at == p.len || ir_lex_wrong(&p, "text after the graph");
    }
    if (good)
        return graph;
    ir_graph_free(graph);
    return NULL;
}
