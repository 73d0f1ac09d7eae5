/* Signatures: "params: tree{wte: f32[V,C]}, x: i32[B,T], step: i32, config: record".
 *
 * Parsing is by recursive descent, a function a rule, over a cursor that remembers where it stands for the message.
 * Checking binds each named dim where it is first met, in the order of the arguments, and names both places where a
 * later one differs. */
#include <ctype.h>
#include <string.h>

#include "ir/shape_rules.h"
#include "tracer/tracer.h"

/* -- parsing ---------------------------------------------------------------------------------------------------------- */

typedef struct {
    base_arena *arena;
    const char *function, *text, *at;
    bool failed;
} cursor;

static void blanks(cursor *c)
{
    while (isspace((unsigned char)*c->at))
        c->at++;
}

static bool expected(cursor *c, const char *what)
{
    if (!c->failed) {
        blanks(c);
        rax_fail(RAX_MISTAKE, "%s: signature: expected %s at \"%.24s\", column %d", c->function, what,
                 *c->at ? c->at : "the end", (int)(c->at - c->text) + 1);
    }
    c->failed = true;
    return false;
}

static bool accept(cursor *c, const char *token)
{
    blanks(c);
    size_t len = strlen(token);
    if (strncmp(c->at, token, len) != 0)
        return false;
    c->at += len;
    return true;
}

static bool is_name_start(char letter) { return isalpha((unsigned char)letter) || letter == '_'; }

/* A name; with dots, and numbers after them, where it is a leaf's. "" where there is none. */
static const char *name(cursor *c, bool dotted)
{
    blanks(c);
    const char *start = c->at;
    if (is_name_start(*c->at))
        while (isalnum((unsigned char)*c->at) || *c->at == '_' || (dotted && *c->at == '.'))
            c->at++;
    char *text = base_arena_text(c->arena, "%.*s", (int)(c->at - start), start);
    return trace_intern(text);
}

static bool dim(cursor *c, trace_dim *into)
{
    blanks(c);
    if (!isdigit((unsigned char)*c->at)) {
        into->name = name(c, false);
        return *into->name || expected(c, "a dim: a number, a name or _");
    }
    for (; isdigit((unsigned char)*c->at); c->at++) {
        into->dim = 10 * into->dim + (*c->at - '0');
        if (into->dim > IR_MAX_ELEMENTS)
            return expected(c, "a dim of at most 2^40");
    }
    return true;
}

static bool dims(cursor *c, trace_pattern *pattern)
{
    if (accept(c, "..."))
        pattern->open = true;
    if (accept(c, "]"))
        return true;
    if (pattern->open && !accept(c, ","))
        return expected(c, "',' or ']'");
    do {
        if (pattern->rank == IR_MAX_RANK)
            return expected(c, "at most 8 dims");
        if (!dim(c, &pattern->dims[pattern->rank++]))
            return false;
    } while (accept(c, ","));
    return accept(c, "]") || expected(c, "',' or ']'");
}

/* False where none of this name stands here; then nothing is read. */
static bool dtype(cursor *c, ir_dtype *into)
{
    blanks(c);
    size_t len = 0;
    while (isalnum((unsigned char)c->at[len]))
        len++;
    if (!ir_dtype_parse(c->at, len, into))
        return false;
    c->at += len;
    return true;
}

static bool tree(cursor *c, trace_arg *arg)
{
    arg->kind = ARG_TREE;
    if (!accept(c, "{"))
        return true;
    if (accept(c, "}"))
        return true;
    do {
        trace_leaf_pattern *more = ARENA_NEW(c->arena, trace_leaf_pattern, arg->n_leaves + 1);
        if (arg->n_leaves)
            memcpy(more, arg->leaves, sizeof *more * (size_t)arg->n_leaves);
        arg->leaves = more;
        trace_leaf_pattern *leaf = &arg->leaves[arg->n_leaves++];
        leaf->name = name(c, true);
        leaf->pattern.given = true;
        if (!*leaf->name)
            return expected(c, "the name of a leaf");
        if (!accept(c, ":"))
            return expected(c, "':'");
        if (!dtype(c, &leaf->pattern.dtype))
            return expected(c, "f32, f64, bf16, i32 or bool");
        if (!accept(c, "["))
            return expected(c, "'['");
        if (!dims(c, &leaf->pattern))
            return false;
    } while (accept(c, ","));
    return accept(c, "}") || expected(c, "',' or '}'");
}

static bool keyword(cursor *c, const char *word)
{
    blanks(c);
    size_t len = strlen(word);
    if (strncmp(c->at, word, len) != 0 || isalnum((unsigned char)c->at[len]) || c->at[len] == '_')
        return false;
    c->at += len;
    return true;
}

static bool argument(cursor *c, trace_arg *arg)
{
    arg->name = name(c, false);
    if (!*arg->name)
        return expected(c, "the name of an argument");
    if (!accept(c, ":"))
        return expected(c, "':'");
    if (keyword(c, "tree"))
        return tree(c, arg);
    if (keyword(c, "record")) {
        arg->kind = ARG_RECORD;
        return true;
    }
    arg->pattern.given = true;
    if (!dtype(c, &arg->pattern.dtype))
        return expected(c, "tree, record, f32, f64, bf16, i32 or bool");
    if (accept(c, "[")) {
        arg->kind = ARG_TENSOR;
        return dims(c, &arg->pattern);
    }
    arg->kind = ARG_SCALAR;
    return arg->pattern.dtype != IR_BF16 || expected(c, "'[': a scalar is i32, f32, f64 or bool");
}

trace_signature *trace_signature_parse(base_arena *arena, const char *function, const char *text)
{
    cursor c = { arena, function, text, text, false };
    trace_signature *signature = ARENA_NEW(arena, trace_signature, 1);
    blanks(&c);
    if (!*c.at)
        return signature;
    int room = 1;
    for (const char *at = text; *at; at++)
        room += *at == ':';
    signature->args = ARENA_NEW(arena, trace_arg, room);
    do {
        trace_arg *arg = &signature->args[signature->n];
        if (!argument(&c, arg))
            return NULL;
        for (int i = 0; i < signature->n; i++)
            if (signature->args[i].name == arg->name) {
                rax_fail(RAX_MISTAKE, "%s: signature: two arguments are named %s", function, arg->name);
                return NULL;
            }
        signature->n++;
    } while (accept(&c, ","));
    blanks(&c);
    return *c.at && !expected(&c, "',' or the end") ? NULL : signature;
}

/* -- checking --------------------------------------------------------------------------------------------------------- */

/* A named dim and where it was first met. */
typedef struct { const char *name; int64_t dim; int arg; const char *leaf; const ir_type *type; int axis; } binding;
typedef struct { int n, cap; binding *at; } bindings;

static void print_place(base_text *text, const trace_signature *signature, int arg, const char *leaf)
{
    base_text_add(text, "arg %d %s%s%s", arg, signature->args[arg].name, leaf ? "." : "", leaf ? leaf : "");
}

static void print_pattern(base_text *text, const trace_pattern *pattern)
{
    base_text_add(text, "%s[%s", ir_dtype_name(pattern->dtype), pattern->open ? "..." : "");
    for (int i = 0; i < pattern->rank; i++) {
        base_text_add(text, "%s", i || pattern->open ? "," : "");
        if (pattern->dims[i].name)
            base_text_add(text, "%s", pattern->dims[i].name);
        else
            base_text_add(text, "%lld", (long long)pattern->dims[i].dim);
    }
    base_text_add(text, "]");
}

static bool is_any(const trace_dim *dim) { return dim->name && strcmp(dim->name, "_") == 0; }

/* "arg 3 y: i32[8,65] has T=65 on axis 1, where arg 2 x: i32[8,64] has T=64 on axis 1" */
static bool bind(const trace_signature *signature, bindings *known, binding fresh, base_text *why)
{
    for (int i = 0; i < known->n; i++) {
        const binding *first = &known->at[i];
        if (first->name != fresh.name)
            continue;
        if (first->dim == fresh.dim)
            return true;
        print_place(why, signature, fresh.arg, fresh.leaf);
        base_text_add(why, ": ");
        trace_type_print(why, fresh.type);
        base_text_add(why, " has %s=%lld on axis %d, where ", fresh.name, (long long)fresh.dim, fresh.axis);
        print_place(why, signature, first->arg, first->leaf);
        base_text_add(why, ": ");
        trace_type_print(why, first->type);
        base_text_add(why, " has %s=%lld on axis %d", first->name, (long long)first->dim, first->axis);
        return false;
    }
    if (known->n == known->cap) {
        size_t n = (size_t)known->cap, more = n ? 2 * n : 16;
        known->at = base_realloc(known->at, sizeof *known->at * n, sizeof *known->at * more);
        known->cap = (int)more;
    }
    known->at[known->n++] = fresh;
    return true;
}

static bool match(const trace_signature *signature, const trace_pattern *pattern, const ir_type *type, int arg,
                  const char *leaf, bindings *known, base_text *why)
{
    int skipped = type->rank - pattern->rank;
    bool fits = type->dtype == pattern->dtype && skipped >= 0 && (pattern->open || skipped == 0);
    int wrong = -1;
    for (int i = 0; fits && i < pattern->rank; i++)
        if (!pattern->dims[i].name && pattern->dims[i].dim != type->dim[skipped + i]) {
            fits = false;
            wrong = skipped + i;
        }
    if (!fits) {
        print_place(why, signature, arg, leaf);
        base_text_add(why, ": expected ");
        print_pattern(why, pattern);
        base_text_add(why, ", got ");
        trace_type_print(why, type);
        if (wrong >= 0)
            base_text_add(why, ": axis %d has %lld, not %lld", wrong, (long long)type->dim[wrong],
                          (long long)pattern->dims[wrong - skipped].dim);
        else if (type->dtype == pattern->dtype)
            base_text_add(why, ": rank %d, not %d%s", type->rank, pattern->rank, pattern->open ? " or more" : "");
        return false;
    }
    for (int i = 0; i < pattern->rank; i++)
        if (pattern->dims[i].name && !is_any(&pattern->dims[i]) &&
            !bind(signature, known,
                  (binding){ pattern->dims[i].name, type->dim[skipped + i], arg, leaf, type, skipped + i }, why))
            return false;
    return true;
}

static const ir_type *leaf_type(const trace_tree_type *tree, const char *name)
{
    for (int i = 0; i < tree->n; i++)
        if (tree->names[i] == name)
            return tree->types[i];
    return NULL;
}

static bool match_all(const trace_signature *signature, const ir_type *const *types, const trace_tree_type *const *trees,
                      bindings *known, base_text *why)
{
    for (int i = 0; i < signature->n; i++) {
        const trace_arg *arg = &signature->args[i];
        if (arg->kind == ARG_TENSOR && !match(signature, &arg->pattern, types[i], i, NULL, known, why))
            return false;
        for (int j = 0; arg->kind == ARG_TREE && j < arg->n_leaves; j++) {
            const ir_type *type = leaf_type(trees[i], arg->leaves[j].name);
            if (!type) {
                print_place(why, signature, i, NULL);
                base_text_add(why, ": there is no leaf %s in a tree of %d", arg->leaves[j].name, trees[i]->n);
                return false;
            }
            if (!match(signature, &arg->leaves[j].pattern, type, i, arg->leaves[j].name, known, why))
                return false;
        }
    }
    return true;
}

bool trace_signature_check(const trace_signature *signature, const char *function, const ir_type *const *types,
                           const trace_tree_type *const *trees, base_text *why)
{
    bindings known = {0};
    base_text_add(why, "%s: ", function);
    bool fits = match_all(signature, types, trees, &known, why);
    base_free(known.at);
    return fits;
}

ir_type trace_signature_name(const trace_arg *arg, const char *leaf, const ir_type *type)
{
    ir_type named = *type;
    const trace_pattern *pattern = arg->kind == ARG_TENSOR ? &arg->pattern : NULL;
    for (int i = 0; leaf && i < arg->n_leaves; i++)
        if (arg->leaves[i].name == leaf)
            pattern = &arg->leaves[i].pattern;
    for (int i = 0; pattern && i < pattern->rank; i++)
        if (pattern->dims[i].name && !is_any(&pattern->dims[i]))
            named.dim_name[type->rank - pattern->rank + i] = pattern->dims[i].name;
    return named;
}
