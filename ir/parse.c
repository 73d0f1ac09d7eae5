/* Text to graph: what print.c writes, and what a person writes in that form. By recursive descent over bytes whose end is
 * known: nothing here relies on a final '\0', and nothing in the text is believed before it is checked, for which the shape
 * rules and the verifier do the larger part.
 *
 * Functions are named for what they read. They return false once the error is set, and so does all that called them. */
#include "ir/shape_rules.h"

#include <ctype.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 32, MAX_ID = 1 << 30 };

/* Nodes by id, in one graph: open addressing, at most half full. */
typedef struct { ir_node **slots; size_t cap, used; } id_map;

typedef struct {
    const char *file, *text;
    size_t len, at;
    int line, depth;
    const char *place_file;               /* the last file of a place, in the arena: most lines have the same */
} parser;

typedef struct {
    parser *p;
    ir_graph *graph;
    id_map map;
    int line;                             /* where the node that is read begins */
} scope;

static bool wrong(const parser *p, const char *format, ...) PRINTF_LIKE(2, 3);
static bool wrong(const parser *p, const char *format, ...)
{
    base_text text = {0}, line = {0};
    va_list args;
    va_start(args, format);
    base_text_addv(&text, format, args);
    va_end(args);
    for (const char *c = text.at; *c; c++)                /* a hint has a line of its own; here all is one */
        base_text_add(&line, *c == '\n' ? "; " : (unsigned char)*c < 0x20 ? "?" : "%c", *c);
    base_fail(BASE_MISTAKE, "%s:%d: %s", p->file, p->line, line.at);
    base_text_free(&text);
    base_text_free(&line);
    return false;
}

/* A mistake that shows only once all of the node is read, or should have been. */
#define wrong_node(s, ...) ((s)->p->line = (s)->line, wrong((s)->p, __VA_ARGS__))

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

/* -- bytes and words --------------------------------------------------------------------------------------------------- */

static int peek(const parser *p) { return p->at < p->len ? (unsigned char)p->text[p->at] : -1; }

static void skip_blanks(parser *p)
{
    while (peek(p) == ' ' || peek(p) == '\t')
        p->at++;
}

/* Blanks, comments, ends of lines. */
static void skip_space(parser *p)
{
    for (;;) {
        int c = peek(p);
        if (c == '\n')
            p->line++;
        else if (c == ';') {
            while (peek(p) != -1 && peek(p) != '\n')
                p->at++;
            continue;
        } else if (c != ' ' && c != '\t' && c != '\r')
            return;
        p->at++;
    }
}

static bool at_text(parser *p, const char *text)
{
    skip_space(p);
    size_t n = strlen(text);
    return p->len - p->at >= n && memcmp(p->text + p->at, text, n) == 0;
}

static bool accept(parser *p, const char *text)
{
    if (!at_text(p, text))
        return false;
    p->at += strlen(text);
    return true;
}

static bool expect(parser *p, const char *text)
{
    if (accept(p, text))
        return true;
    if (peek(p) == -1)
        return wrong(p, "expected '%s', got the end", text);
    return wrong(p, isprint(peek(p)) ? "expected '%s', got '%c'" : "expected '%s', got byte %d", text, peek(p));
}

static bool is_word_byte(int c, bool first) { return c == '_' || (c != -1 && c < 128 && (isalpha(c) || (!first && isdigit(c)))); }

/* The word is text[0..*len), within the parser's text. */
static bool word(parser *p, const char *what, const char **text, size_t *len)
{
    skip_space(p);
    size_t start = p->at;
    while (is_word_byte(peek(p), p->at == start))
        p->at++;
    *text = p->text + start;
    *len = p->at - start;
    return *len > 0 || wrong(p, "expected %s", what);
}

static bool is_word(const char *text, size_t len, const char *expected) { return strlen(expected) == len && memcmp(text, expected, len) == 0; }

/* Bytes given as \xHH, \" and \\; a zero byte would end the text and is refused. */
static bool quoted(scope *s, const char **text)
{
    parser *p = s->p;
    base_text out = {0};
    bool good = expect(p, "\"");
    while (good && peek(p) != '"') {
        int c = peek(p);
        if (c == -1 || c == '\n') {
            good = wrong(p, "a name has no closing '\"'");
            break;
        }
        p->at++;
        if (c == '\\') {
            c = peek(p);
            p->at++;
            if (c == 'x' && p->len - MIN(p->at, p->len) >= 2 && isxdigit((unsigned char)p->text[p->at]) &&
                isxdigit((unsigned char)p->text[p->at + 1])) {
                char digits[3] = { p->text[p->at], p->text[p->at + 1], '\0' };
                c = (int)strtol(digits, NULL, 16);
                p->at += 2;
            } else if (c != '"' && c != '\\') {
                p->at--;
                good = wrong(p, "expected \\\", \\\\ or \\xHH in a name");
                break;
            }
        }
        if (c == 0) {
            good = wrong(p, "a zero byte in a name");
            break;
        }
        char byte = (char)c;
        base_text_bytes(&out, &byte, 1);
    }
    if (good) {
        p->at++;
        *text = base_arena_text(s->graph->arena, "%s", out.at ? out.at : "");
    }
    base_text_free(&out);
    return good;
}

/* -- numbers ----------------------------------------------------------------------------------------------------------- */

static bool integer(parser *p, int64_t low, int64_t high, int64_t *value)
{
    skip_space(p);
    bool minus = peek(p) == '-';
    int64_t sum = 0;
    if (minus)
        p->at++;
    if (peek(p) == -1 || !isdigit(peek(p)))
        return wrong(p, "expected an integer");
    for (; peek(p) != -1 && isdigit(peek(p)); p->at++) {
        int digit = peek(p) - '0';
        if (sum > (INT64_MAX - digit) / 10)
            return wrong(p, "an integer of more than 63 bits");
        sum = sum * 10 + digit;
    }
    *value = minus ? -sum : sum;
    return (*value >= low && *value <= high) ||
           wrong(p, "expected %lld to %lld, got %lld", (long long)low, (long long)high, (long long)*value);
}

static bool small(parser *p, int low, int high, int *value)
{
    int64_t wide;
    if (!integer(p, low, high, &wide))
        return false;
    *value = (int)wide;
    return true;
}

static bool boolean(parser *p, bool *value)
{
    const char *text;
    size_t len;
    if (!word(p, "true or false", &text, &len))
        return false;
    *value = is_word(text, len, "true");
    return *value || is_word(text, len, "false") || wrong(p, "expected true or false, got '%.*s'", (int)MIN(len, 40), text);
}

/* A decimal number, inf, nan, or nan(0xBITS), whose bits are the dtype's. */
static bool real(parser *p, double *value, uint64_t *nan_bits)
{
    char digits[64], *end;
    size_t n = 0;
    skip_space(p);
    while (n < sizeof digits - 1 && peek(p) != -1 && (isalnum(peek(p)) || strchr("+-.()", peek(p))) && peek(p) != 0)
        digits[n++] = p->text[p->at++];
    digits[n] = '\0';
    *nan_bits = 0;
    if (strncmp(digits, "nan(0x", 6) == 0) {
        *nan_bits = strtoull(digits + 6, &end, 16);
        *value = NAN;
        return strcmp(end, ")") == 0 || wrong(p, "expected nan(0xBITS), got '%s'", digits);
    }
    *value = strtod(digits, &end);
    return (n > 0 && *end == '\0') || wrong(p, "expected a number, got '%s'", digits);
}

/* A value of the dtype: true, false, a whole number, a real one. */
static bool value_of(parser *p, ir_dtype dtype, double *value, uint64_t *nan_bits)
{
    int64_t whole = 0;
    bool yes = false;
    *nan_bits = 0;
    switch (dtype) {
    case IR_I32:
        if (!integer(p, INT32_MIN, INT32_MAX, &whole))
            return false;
        *value = (double)whole;
        return true;
    case IR_BOOL:
        if (!boolean(p, &yes))
            return false;
        *value = yes;
        return true;
    case IR_F32:
    case IR_F64:
    case IR_BF16:
    case IR_TUPLE: break;
    }
    return real(p, value, nan_bits);
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

/* -- types ------------------------------------------------------------------------------------------------------------- */

static bool tensor_type(scope *s, ir_type *type)
{
    parser *p = s->p;
    const char *text;
    size_t len;
    base_text why = {0};
    *type = (ir_type){0};
    if (!word(p, "a type", &text, &len))
        return false;
    if (!ir_dtype_parse(text, len, &type->dtype))
        return wrong(p, "expected f32, f64, bf16, i32 or bool, got '%.*s'", (int)MIN(len, 40), text);
    if (!expect(p, "["))
        return false;
    while (!accept(p, "]")) {
        if (type->rank == IR_MAX_RANK)
            return wrong(p, "a type of more than %d axes", IR_MAX_RANK);
        if (type->rank > 0 && !expect(p, ","))
            return false;
        skip_space(p);
        if (is_word_byte(peek(p), true)) {
            if (!word(p, "the name of a dim", &text, &len) || !expect(p, "="))
                return false;
            type->dim_name[type->rank] = base_arena_text(s->graph->arena, "%.*s", (int)MIN(len, INT_MAX), text);
        }
        if (!integer(p, 0, IR_MAX_ELEMENTS, &type->dim[type->rank]))
            return false;
        type->rank++;
    }
    bool good = ir_type_is_sound(type, &why) || wrong(p, "%s", why.at);
    base_text_free(&why);
    return good;
}

/* A type, or a tuple of types in parentheses, which *types is then in an allocation of the caller's to free. */
static bool result_type(scope *s, ir_type *type, int *n_types, ir_type **types)
{
    base_text list = {0};
    *n_types = 0;
    if (!accept(s->p, "("))
        return tensor_type(s, type);
    while (!accept(s->p, ")")) {
        ir_type next;
        if ((list.len > 0 && !expect(s->p, ",")) || !tensor_type(s, &next)) {
            base_text_free(&list);
            return false;
        }
        base_text_bytes(&list, &next, sizeof next);
    }
    *n_types = (int)(list.len / sizeof **types);
    *types = (ir_type *)(void *)list.at;
    *type = (ir_type){ .dtype = IR_TUPLE };
    return *n_types > 0 || wrong(s->p, "a tuple of nothing");
}

/* -- places ------------------------------------------------------------------------------------------------------------ */

/* Reads the comment at the end of the line where the parser stands, without moving: `; FILE:LINE`, `; FILE:LINE by PASS` or
 * `; by PASS`. Any other comment is no place. */
static void line_place(scope *s)
{
    parser *p = s->p;
    ir_graph *graph = s->graph;
    size_t at = p->at, end;
    bool in_name = false;
    graph->place = (ir_place){0};
    graph->pass = NULL;
    for (; at < p->len && p->text[at] != '\n' && (in_name || p->text[at] != ';'); at++) {
        if (in_name && p->text[at] == '\\' && at + 1 < p->len && p->text[at + 1] != '\n')
            at++;
        else if (p->text[at] == '"')
            in_name = !in_name;
    }
    if (at >= p->len || p->text[at] != ';')
        return;
    at++;
    const char *newline = memchr(p->text + at, '\n', p->len - at);
    end = newline ? (size_t)(newline - p->text) : p->len;
    if (at < end && p->text[at] == ' ')
        at++;
    while (end > at && isspace((unsigned char)p->text[end - 1]))
        end--;

    size_t by = end;                                      /* where a pass's name begins */
    while (by > at && (is_word_byte((unsigned char)p->text[by - 1], false) || p->text[by - 1] == '-'))
        by--;
    if (by < end && by - at >= 3 && memcmp(p->text + by - 3, "by ", 3) == 0 && (by - at == 3 || p->text[by - 4] == ' ')) {
        graph->pass = base_arena_text(graph->arena, "%.*s", (int)MIN(end - by, 1000), p->text + by);
        end = by - at == 3 ? at : by - 4;
    }
    size_t digits = end;
    while (digits > at && isdigit((unsigned char)p->text[digits - 1]))
        digits--;
    if (digits == end || digits == at || p->text[digits - 1] != ':' || end - digits > 9)
        return;
    size_t len = digits - 1 - at;
    if (len > INT_MAX || memchr(p->text + at, '\0', len))
        return;
    if (!p->place_file || strlen(p->place_file) != len || memcmp(p->place_file, p->text + at, len) != 0)
        p->place_file = base_arena_text(graph->arena, "%.*s", (int)len, p->text + at);
    char number[10] = {0};
    memcpy(number, p->text + digits, end - digits);
    graph->place = (ir_place){ p->place_file, atoi(number) };
}

/* -- attributes -------------------------------------------------------------------------------------------------------- */

static bool list_of_axes(parser *p, ir_attr *attr)
{
    if (!expect(p, "["))
        return false;
    while (!accept(p, "]")) {
        if (attr->n_axes == IR_MAX_RANK)
            return wrong(p, "more than %d axes", IR_MAX_RANK);
        if ((attr->n_axes > 0 && !expect(p, ",")) || !small(p, 0, IR_MAX_RANK - 1, &attr->axes[attr->n_axes]))
            return false;
        attr->n_axes++;
    }
    return true;
}

static bool list_of_starts(parser *p, const ir_type *type, ir_attr *attr)
{
    int n = 0;
    if (!expect(p, "["))
        return false;
    for (; !accept(p, "]"); n++) {
        if (n == type->rank)
            return wrong(p, "more starts than axes: the result has rank %d", type->rank);
        if ((n > 0 && !expect(p, ",")) || !integer(p, 0, IR_MAX_ELEMENTS, &attr->start[n]))
            return false;
    }
    return n == type->rank || wrong(p, "%d starts for a result of rank %d", n, type->rank);
}

static bool list_of_elements(scope *s, const ir_type *type, ir_attr *attr)
{
    parser *p = s->p;
    base_text data = {0};
    int64_t n = 0, count = ir_type_count(type);
    bool good = expect(p, "[");
    for (; good && !accept(p, "]"); n++) {
        double value;
        uint64_t nan_bits;
        good = n < count || wrong(p, "more than %lld elements", (long long)count);
        good = good && (n == 0 || expect(p, ",")) && value_of(p, type->dtype, &value, &nan_bits);
        if (good)
            append_element(&data, type->dtype, value, nan_bits);
    }
    good = good && (n == count || wrong(p, "%lld elements, expected %lld", (long long)n, (long long)count));
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
    [KEY_INDEX]   = { "index",   ATTR_INDEX     }, [KEY_VALUE]  = { "value",  ATTR_VALUE     }, [KEY_DATA]    = { "data",    ATTR_DATA      },
    [KEY_AXIS]    = { "axis",    ATTR_AXIS      }, [KEY_AXES]   = { "axes",   ATTR_AXES      }, [KEY_START]   = { "start",   ATTR_START     },
    [KEY_SITE]    = { "site",    ATTR_SITE      }, [KEY_EPSILON] = { "epsilon", ATTR_EPSILON }, [KEY_CAUSAL]  = { "causal",  ATTR_ATTENTION },
    [KEY_SCALE]   = { "scale",   ATTR_ATTENTION }, [KEY_DROPOUT] = { "dropout", ATTR_ATTENTION }, [KEY_COUNT] = { "count",   ATTR_SCAN      },
    [KEY_CARRY]   = { "carry",   ATTR_SCAN      }, [KEY_XS]     = { "xs",     ATTR_SCAN      }, [KEY_REVERSE] = { "reverse", ATTR_SCAN      },
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
    if (!integer(s->p, 0, UINT32_MAX - 1, &wide))
        return false;
    *site = (uint32_t)wide;
    s->graph->next_site = MAX(s->graph->next_site, *site + 1);
    return true;
}

static bool attribute(scope *s, ir_op op, const ir_type *type, int key, ir_attr *attr)
{
    parser *p = s->p;
    uint64_t nan_bits;
    switch (key) {
    case KEY_INDEX:   return small(p, 0, INT_MAX, &attr->index);
    case KEY_VALUE:   return value_of(p, op == OP_bernoulli ? IR_F64 : type->dtype, &attr->value, &nan_bits);
    case KEY_DATA:    return list_of_elements(s, type, attr);
    case KEY_AXIS:    return small(p, 0, IR_MAX_RANK - 1, &attr->axis);
    case KEY_AXES:    return list_of_axes(p, attr);
    case KEY_START:   return list_of_starts(p, type, attr);
    case KEY_SITE:    return site_number(s, &attr->site);
    case KEY_EPSILON: return real(p, &attr->epsilon, &nan_bits);
    case KEY_CAUSAL:  return boolean(p, &attr->causal);
    case KEY_SCALE:   return real(p, &attr->scale, &nan_bits);
    case KEY_DROPOUT: return real(p, &attr->dropout, &nan_bits);
    case KEY_COUNT:   return integer(p, 0, IR_MAX_ELEMENTS, &attr->count);
    case KEY_CARRY:   return small(p, 0, INT_MAX, &attr->n_carry);
    case KEY_XS:      return small(p, 0, INT_MAX, &attr->n_xs);
    case KEY_REVERSE: return boolean(p, &attr->reverse);
    }
    base_bug(__FILE__, __LINE__, "attribute: expected a key, got %d", key);
}

static bool attributes(scope *s, ir_op op, const ir_type *type, ir_attr *attr)
{
    parser *p = s->p;
    unsigned has = ir_op_table[op].attributes;
    bool seen[KEYS] = { false };
    if (accept(p, "{"))
        for (bool first = true; !accept(p, "}"); first = false) {
            const char *text;
            size_t len;
            int key = 0;
            if ((!first && !expect(p, ",")) || !word(p, "the name of an attribute", &text, &len))
                return false;
            while (key < KEYS && !is_word(text, len, keys[key].name))
                key++;
            if (key == KEYS || !(has & keys[key].attribute))
                return wrong(p, "%s has no attribute '%.*s'", OP_NAME(op), (int)MIN(len, 40), text);
            if (seen[key])
                return wrong(p, "'%s' comes twice", keys[key].name);
            seen[key] = true;
            if (!expect(p, "=") || !attribute(s, op, type, key, attr))
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
    if (!expect(s->p, "%") || !small(s->p, 0, MAX_ID, id))
        return false;
    return !id_find(&s->map, *id) || wrong(s->p, "%%%d comes twice", *id);
}

static bool known_id(scope *s, ir_node **node)
{
    int id;
    if (!expect(s->p, "%") || !small(s->p, 0, MAX_ID, &id))
        return false;
    *node = id_find(&s->map, id);
    return *node || wrong(s->p, "%%%d is not known here", id);
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
    skip_blanks(s->p);
    if (peek(s->p) != '%')
        return true;
    do {
        ir_node *node;
        if (!known_id(s, &node))
            return false;
        base_text_bytes(args, &node, sizeof node);
    } while (accept(s->p, ","));
    return true;
}

static bool graph_text(parser *p, ir_graph *graph);

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
    parser *p = s->p;
    const char *text;
    size_t len;
    if (!expect(p, ":") || !result_type(s, &parts->type, &parts->n_types, &parts->types) || !expect(p, "=") || !word(p, "an op", &text, &len))
        return false;
    line_place(s);
    if (!ir_op_parse(text, len, &parts->op))
        return wrong(p, "no op is named '%.*s'", (int)MIN(len, 40), text);
    if (parts->op == OP_parameter)
        return wrong(p, "a parameter stands in the graph's head");
    if (parts->n_types > 0 && ir_op_table[parts->op].attributes & (ATTR_VALUE | ATTR_DATA | ATTR_START))
        return wrong(p, "%s has one result", OP_NAME(parts->op));
    if (!operands(s, &parts->args) || !attributes(s, parts->op, &parts->type, &parts->attr))
        return false;
    if (ir_op_table[parts->op].attributes & ATTR_BODY) {
        if (!at_text(p, "graph"))
            return wrong_node(s, "%s needs a body", OP_NAME(parts->op));
        parts->attr.body = ir_graph_new_body(s->graph, "");
        if (!graph_text(p, parts->attr.body))
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
        wrong_node(s, "%s: the result is %s%s, the text states another type", OP_NAME(parts->op), text.at, n_types > 0 ? ")" : "");
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
    skip_space(s->p);
    s->line = s->p->line;
    bool good = fresh_id(s, &id) && node_parts(s, &parts) && add_node(s, id, &parts);
    base_text_free(&parts.args);
    base_free(parts.types);
    return good;
}

/* -- graphs ------------------------------------------------------------------------------------------------------------ */

static bool head(scope *s)
{
    parser *p = s->p;
    ir_graph *graph = s->graph;
    const char *text;
    size_t len;
    if (!word(p, "'graph'", &text, &len))
        return false;
    if (!is_word(text, len, "graph"))
        return wrong(p, "expected 'graph', got '%.*s'", (int)MIN(len, 40), text);
    line_place(s);
    skip_space(p);
    if (peek(p) == '"') {
        if (!quoted(s, &graph->name))
            return false;
    } else if (!word(p, "the graph's name", &text, &len)) {
        return false;
    } else {
        graph->name = base_arena_text(graph->arena, "%.*s", (int)MIN(len, INT_MAX), text);
    }
    if (!expect(p, "("))
        return false;
    for (bool first = true; !accept(p, ")"); first = false) {
        int id;
        ir_type type;
        const char *name = NULL;
        if ((!first && !expect(p, ",")) || !fresh_id(s, &id) || !expect(p, ":") || !tensor_type(s, &type))
            return false;
        skip_space(p);
        if (peek(p) == '"' && !quoted(s, &name))
            return false;
        enter(s, ir_parameter(graph, type, name), id);
    }
    return expect(p, "{");
}

typedef struct { base_text nodes, names, donated; } result_lists;

static bool one_result(scope *s, result_lists *lists)
{
    parser *p = s->p;
    ir_node *node, *donor;
    const char *name = NULL;
    int donated = -1;
    if (!known_id(s, &node))
        return false;
    skip_space(p);
    if (peek(p) == '"' && !quoted(s, &name))
        return false;
    if (accept(p, "->")) {
        if (!known_id(s, &donor))
            return false;
        if (donor->op != OP_parameter)
            return wrong(p, "%%%d is no parameter whose memory a result could take over", donor->id);
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
    if (at_text(s->p, "%"))
        do
            good = one_result(s, &lists);
        while (good && accept(s->p, ","));
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
    parser *p = s->p;
    if (!head(s))
        return false;
    while (at_text(p, "%"))
        if (!node_line(s))
            return false;
    if (peek(p) == '}')
        return wrong(p, "expected 'return' before '}'");
    int line = p->line;
    base_text why = {0};
    if (!expect(p, "return") || !results(s) || !expect(p, "}"))
        return false;
    s->graph->place = (ir_place){0};
    s->graph->pass = NULL;
    p->line = line;                       /* what only the whole graph can get wrong is in its results */
    bool good = ir_verify(s->graph, &why) || wrong(p, "%s", why.at);
    base_text_free(&why);
    return good;
}

static bool graph_text(parser *p, ir_graph *graph)
{
    scope s = { .p = p, .graph = graph };
    if (p->depth == MAX_DEPTH)
        return wrong(p, "bodies within bodies, more than %d deep", MAX_DEPTH);
    p->depth++;
    bool good = graph_lines(&s);
    p->depth--;
    base_free(s.map.slots);
    return good;
}

ir_graph *ir_parse(const char *file, const char *text, size_t len)
{
    parser p = { .file = file, .text = text, .len = len, .line = 1 };
    ir_graph *graph = ir_graph_new("");
    bool good = graph_text(&p, graph);
    if (good) {
        skip_space(&p);
        good = p.at == p.len || wrong(&p, "text after the graph");
    }
    if (good)
        return graph;
    ir_graph_free(graph);
    return NULL;
}
