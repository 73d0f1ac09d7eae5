/* Trees: ordered lists of named tensors. A tree of arrays keeps their data pointers side by side, for a call to copy,
 * and its type interned, for a call to compare. Inside a step a tree holds values of the trace, and belongs to it.
 *
 * Bodies are kept like those of tensors. A leaf's generation counts its tree's
 * donations in, so that one addition makes a handle of every leaf out of date. */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "tracer/tracer.h"

/* -- bodies ----------------------------------------------------------------------------------------------------------- */

static trace_pool bodies = { .lock = PTHREAD_MUTEX_INITIALIZER, .bytes = sizeof(rax_tree_body) };

rax_tree_body *trace_tree_new(trace *owner)
{
    rax_tree_body *tree = trace_pool_take(&bodies);
    uint32_t generation = tree->generation;
    *tree = (rax_tree_body){ .used = true, .is_value = owner != NULL, .generation = generation, .owner = owner };
    if (owner) {
        tree->next = owner->trees;
        owner->trees = tree;
    }
    return tree;
}

/* Handles so far are out of date. Leaves that are arrays are freed; values belong to the trace. */
void trace_tree_body_free(rax_tree_body *tree)
{
    for (int i = 0; !tree->is_value && i < tree->n; i++) {
        trace_body_lose(tree->leaves[i], LOST_FREED, (rax_place){0});
        trace_body_free(tree->leaves[i]);
    }
    base_free(tree->names);
    base_free(tree->leaves);
    base_free(tree->data);
    tree->lost = tree->is_value ? LOST_TRACE_OVER : LOST_FREED;
    tree->generation++;
    tree->used = false;
    trace_pool_give(&bodies, tree);
}

void trace_trees_free(void) { trace_pool_free(&bodies); }

rax_tree_body *trace_tree(rax_tree tree, base_text *why)
{
    rax_tree_body *body = tree.at;
    if (!body) {
        base_text_add(why, "is no tree (RAX_NO_TREE)");
        return NULL;
    }
    if (body->used && body->generation == tree.generation)
        return body;
    trace_add_loss(why, body->lost, body->lost_at, "belonged to");
    return NULL;
}

void trace_tree_append(rax_tree_body *tree, const char *interned, rax_tensor_body *leaf)
{
    static atomic_uint_fast64_t layouts;
    if (tree->n == tree->cap) {
        size_t n = (size_t)tree->cap, more = n ? 2 * n : 8;
        tree->names = base_realloc(tree->names, sizeof *tree->names * n, sizeof *tree->names * more);
        tree->leaves = base_realloc(tree->leaves, sizeof *tree->leaves * n, sizeof *tree->leaves * more);
        tree->data = base_realloc(tree->data, sizeof *tree->data * n, sizeof *tree->data * more);
        tree->cap = (int)more;
    }
    tree->names[tree->n] = interned;
    tree->leaves[tree->n] = leaf;
    tree->data[tree->n++] = leaf ? leaf->data : NULL;
    tree->layout = atomic_fetch_add_explicit(&layouts, 1, memory_order_relaxed) + 1;
    tree->type = NULL;
}

const trace_tree_type *trace_tree_type_of(rax_tree_body *tree)
{
    if (!tree->type) {
        const ir_type **types = base_alloc(sizeof *types * (size_t)tree->n);
        for (int i = 0; i < tree->n; i++)
            types[i] = tree->leaves[i]->type;
        tree->type = trace_intern_tree(tree->n, tree->names, types);
        base_free(types);
    }
    return tree->type;
}

/* Takes the array; a handle of it stays good. */
static void take(rax_tree_body *tree, const char *interned, rax_tensor_body *leaf)
{
    leaf->tree = tree;
    leaf->generation -= tree->donations;
    trace_tree_append(tree, interned, leaf);
}

rax_tree_body *trace_tree_of_arrays(const trace_tree_type *type)
{
    rax_tree_body *tree = trace_tree_new(NULL);
    for (int i = 0; i < type->n; i++) {
        rax_tensor_body *leaf = trace_array_new(type->types[i]);
        if (!leaf) {
            trace_tree_body_free(tree);
            return NULL;
        }
        take(tree, type->names[i], leaf);
    }
    tree->type = type;
    return tree;
}

/* -- errors ----------------------------------------------------------------------------------------------------------- */

/* Inside a step the step's, else the thread's. Frees why. */
static bool fail_because(rax_place place, const char *function, base_text *why)
{
    trace_error(place, function, "%s", why->at);
    base_text_free(why);
    return false;
}

static rax_tree_body *tree_of(const char *function, rax_tree tree)
{
    base_text why = {0}, message = {0};
    rax_tree_body *body = trace_tree(tree, &why);
    if (!body) {
        base_text_add(&message, "the tree %s", why.at);
        fail_because((rax_place){0}, function, &message);
    }
    base_text_free(&why);
    return body;
}

/* -- rax.h ------------------------------------------------------------------------------------------------------------ */

/* A name as printf makes it; longer ones than any tensor has are refused by cutting them. */
enum { NAME_BYTES = 512 };
#define FORMAT_NAME(into, format)                           \
    char into[NAME_BYTES];                                  \
    do {                                                    \
        va_list args_;                                      \
        va_start(args_, format);                            \
        vsnprintf(into, sizeof into, format, args_);        \
        va_end(args_);                                      \
    } while (0)

static int find(const rax_tree_body *tree, const char *name)
{
    const char *interned = trace_intern_find(name);
    for (int i = 0; interned && i < tree->n; i++)
        if (tree->names[i] == interned)
            return i;
    return -1;
}

rax_tree rax_tree_new(void) { return trace_tree_handle(trace_tree_new(trace_current)); }

void rax_tree_free(rax_tree tree)
{
    if (!rax_is_tree(tree))
        return;
    rax_tree_body *body = tree_of("rax_tree_free", tree);
    if (body && !body->is_value)
        trace_tree_body_free(body);
}

bool rax_tree_add(rax_tree tree, rax_tensor tensor, const char *name, ...)
{
    FORMAT_NAME(full, name);
    base_text why = {0}, message = {0};
    rax_tree_body *body = tree_of("rax_tree_add", tree);
    if (!body || (!rax_is_tensor(tensor) && *rax_error()))
        return false;                           /* why there is no tensor is told already */
    rax_tensor_body *leaf = trace_body(tensor, &why);
    if (!leaf)
        base_text_add(&message, "%s %s", full, why.at);
    else if ((leaf->kind == TENSOR_VALUE) != body->is_value)
        base_text_add(&message, "%s is %s, and the tree was made %s", full,
                      leaf->kind == TENSOR_VALUE ? "a value of a step" : "an array",
                      body->is_value ? "inside a step" : "outside of any step");
    else if (leaf->tree)
        base_text_add(&message, "%s belongs to a tree already", full);
    else if (find(body, full) >= 0)
        base_text_add(&message, "%s is in the tree already", full);
    else if (body->is_value)
        trace_tree_append(body, trace_intern(full), leaf);
    else
        take(body, trace_intern(full), leaf);
    base_text_free(&why);
    return !message.len || fail_because((rax_place){0}, "rax_tree_add", &message);
}

int rax_tree_size(rax_tree tree)
{
    rax_tree_body *body = tree_of("rax_tree_size", tree);
    return body ? body->n : 0;
}

/* Whether the tree has a leaf of this index. */
static rax_tree_body *indexed(const char *function, rax_tree tree, int index)
{
    rax_tree_body *body = tree_of(function, tree);
    if (body && index >= 0 && index < body->n)
        return body;
    base_text message = {0};
    if (body) {
        base_text_add(&message, "there is no leaf %d in a tree of %d", index, body->n);
        fail_because((rax_place){0}, function, &message);
    }
    return NULL;
}

static rax_tensor leaf_handle(rax_place place, const char *function, const rax_tree_body *tree, int index)
{
    if (tree->leaves[index])
        return trace_handle(tree->leaves[index]);
    trace_error(place, function, "leaf %s is not set yet", tree->names[index]);
    return trace_value(NULL);
}

rax_tensor rax_leaf(rax_tree tree, int index)
{
    rax_tree_body *body = indexed("rax_leaf", tree, index);
    return body ? leaf_handle((rax_place){0}, "rax_leaf", body, index) : trace_current ? trace_value(NULL) : RAX_NO_TENSOR;
}

const char *rax_leaf_name(rax_tree tree, int index)
{
    rax_tree_body *body = indexed("rax_leaf_name", tree, index);
    return body ? body->names[index] : "";
}

/* The name in the tree that has most of its first and last letters in common, for "did you mean". */
static const char *nearest_name(const rax_tree_body *tree, const char *name)
{
    const char *best = NULL;
    size_t most = 0, len = strlen(name);
    for (int i = 0; i < tree->n; i++) {
        const char *other = tree->names[i];
        size_t n = strlen(other), head = 0, tail = 0;
        while (head < len && head < n && name[head] == other[head])
            head++;
        while (tail < len - head && tail < n - head && name[len - 1 - tail] == other[n - 1 - tail])
            tail++;
        if (head + tail > most && 2 * (head + tail) >= len) {
            most = head + tail;
            best = other;
        }
    }
    return best;
}

rax_tensor rax_get_at(rax_place place, rax_tree tree, const char *name, ...)
{
    FORMAT_NAME(full, name);
    rax_tree_body *body = tree_of("rax_get", tree);
    int index = body ? find(body, full) : -1;
    if (index >= 0)
        return leaf_handle(place, "rax_get", body, index);
    base_text message = {0};
    if (body) {
        const char *near = nearest_name(body, full);
        base_text_add(&message, "there is no leaf %s in a tree of %d", full, body->n);
        if (near)
            base_text_add(&message, "\n%s is there", near);
        fail_because(place, "rax_get", &message);
    }
    return trace_current ? trace_value(NULL) : RAX_NO_TENSOR;
}

bool rax_has(rax_tree tree, const char *name, ...)
{
    FORMAT_NAME(full, name);
    rax_tree_body *body = tree_of("rax_has", tree);
    return body && find(body, full) >= 0;
}

rax_tree rax_tree_like(rax_tree tree)
{
    rax_tree_body *body = tree_of("rax_tree_like", tree);
    if (!body)
        return trace_current ? rax_tree_new() : RAX_NO_TREE;
    if (!body->is_value) {
        rax_tree_body *zeros = trace_tree_of_arrays(trace_tree_type_of(body));
        return zeros ? trace_tree_handle(zeros) : RAX_NO_TREE;
    }
    rax_tree_body *empty = trace_tree_new(trace_current);
    for (int i = 0; i < body->n; i++)
        trace_tree_append(empty, body->names[i], NULL);
    return trace_tree_handle(empty);
}

void rax_set_leaf_at(rax_place place, rax_tree tree, int index, rax_tensor tensor)
{
    rax_tree_body *body = indexed("rax_set_leaf", tree, index);
    base_text why = {0}, message = {0};
    if (!body)
        return;
    rax_tensor_body *leaf = trace_body(tensor, &why);
    if (!body->is_value)
        base_text_add(&message, "the tree is of arrays: their elements are at rax_data");
    else if (!leaf)
        base_text_add(&message, "the tensor for %s %s", body->names[index], why.at);
    else if (leaf->kind != TENSOR_VALUE)
        base_text_add(&message, "the tensor for %s is an array, not a value of the step", body->names[index]);
    else
        body->leaves[index] = leaf;
    if (message.len)
        fail_because(place, "rax_set_leaf", &message);
    base_text_free(&why);
}
