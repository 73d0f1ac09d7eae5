/* Whether graphs are one graph: by a hash of all that their text says, but for places; and whether nodes have equal attributes, bodies by
 * that hash. What is equal here may stand for the other: cse merges by it, and the tracer finds a program that is compiled already. */
#include "ir/ir.h"

#include <math.h>
#include <string.h>

/* -- hashes ------------------------------------------------------------------------------------------------------------- */

static uint64_t mixed_bytes(uint64_t hash, const void *bytes, size_t n)
{
    for (uint64_t word = 0; n > 0; word = 0) {
        size_t part = MIN(n, sizeof word);
        memcpy(&word, bytes, part);
        hash = ir_mixed(hash, word);
        bytes = (const char *)bytes + part;
        n -= part;
    }
    return hash;
}

static uint64_t mixed_double(uint64_t hash, double value) { return isnan(value) ? ir_mixed(hash, 1) : mixed_bytes(hash, &value, sizeof value); }

static uint64_t mixed_text(uint64_t hash, const char *text)
{
    size_t len = text ? strlen(text) : SIZE_MAX;
    return text ? mixed_bytes(ir_mixed(hash, len), text, len) : ir_mixed(hash, len);
}

static uint64_t mixed_type(uint64_t hash, const ir_type *type)
{
    hash = ir_mixed(hash, (uint64_t)type->dtype << 32 ^ (uint64_t)type->rank);
    for (int i = 0; i < type->rank; i++)
        hash = mixed_text(ir_mixed(hash, (uint64_t)type->dim[i]), type->dim_name[i]);
    return hash;
}

/* Of what the op has. Names of parameters are attributes, bodies graphs. */
static uint64_t mixed_attributes(uint64_t hash, const ir_node *node)
{
    unsigned has = ir_op_table[node->op].attributes;
    const ir_attr *a = &node->attr;
    if (has & ATTR_INDEX)
        hash = ir_mixed(hash, (uint64_t)a->index);
    if (has & ATTR_NAME)
        hash = mixed_text(hash, a->name);
    if (has & ATTR_VALUE)
        hash = mixed_double(hash, a->value);
    if (has & ATTR_DATA)
        hash = mixed_bytes(hash, a->data, (size_t)ir_type_bytes(&node->type));
    if (has & ATTR_AXIS)
        hash = ir_mixed(hash, (uint64_t)a->axis);
    for (int i = 0; has & ATTR_AXES && i < a->n_axes; i++)
        hash = ir_mixed(hash, (uint64_t)a->axes[i]);
    if (has & ATTR_AXES)
        hash = ir_mixed(hash, (uint64_t)a->n_axes);
    for (int i = 0; has & ATTR_START && i < node->type.rank; i++)
        hash = ir_mixed(hash, (uint64_t)a->start[i]);
    if (has & ATTR_SITE)
        hash = ir_mixed(hash, a->site);
    if (has & ATTR_SCAN)
        hash = ir_mixed(ir_mixed(ir_mixed(hash, (uint64_t)a->count), (uint64_t)a->n_carry << 32 ^ (uint64_t)a->n_xs), a->reverse);
    if (has & ATTR_EPSILON)
        hash = mixed_double(hash, a->epsilon);
    if (has & ATTR_ATTENTION)
        hash = mixed_double(mixed_double(ir_mixed(hash, a->causal), a->scale), a->dropout);
    return a->body ? ir_mixed(hash, ir_graph_hash(a->body)) : hash;
}

uint64_t ir_graph_hash(const ir_graph *graph)
{
    uint64_t hash = mixed_text(ir_mixed(0, (uint64_t)graph->n_params), graph->name);
    for (const ir_node *n = graph->first; n; n = n->next) {
        hash = mixed_type(ir_mixed(hash, (uint64_t)n->op << 32 ^ (uint64_t)n->id), &n->type);
        for (int i = 0; i < n->n_tuple; i++)
            hash = mixed_type(hash, &n->tuple[i]);
        for (int i = 0; i < n->n_args; i++)
            hash = ir_mixed(hash, (uint64_t)n->args[i]->id);
        hash = mixed_attributes(ir_mixed(hash, (uint64_t)n->n_args), n);
    }
    for (int i = 0; i < graph->n_results; i++)
        hash = mixed_text(ir_mixed(hash, (uint64_t)graph->results[i]->id << 32 ^ (uint32_t)graph->donated[i]), graph->result_names[i]);
    return hash ^ hash >> 32;
}

/* -- equality ------------------------------------------------------------------------------------------------------------ */

/* Bit for bit: 0 and -0 differ, a NaN equals itself. */
static bool same_double(double a, double b) { return memcmp(&a, &b, sizeof a) == 0; }

static bool same_text(const char *a, const char *b) { return a == b || (a && b && strcmp(a, b) == 0); }

static bool same_body(const ir_graph *a, const ir_graph *b)
{
    if (a == b || !a || !b)
        return a == b;
    return ir_graph_hash(a) == ir_graph_hash(b);
}

bool ir_attr_equal(ir_op op, const ir_attr *a, const ir_attr *b, const ir_type *type)
{
    unsigned has = ir_op_table[op].attributes;
    if (has & ATTR_INDEX && a->index != b->index)
        return false;
    if (has & ATTR_NAME && !same_text(a->name, b->name))
        return false;
    if (has & ATTR_VALUE && !same_double(a->value, b->value))
        return false;
    if (has & ATTR_DATA && a->data != b->data && (!a->data || !b->data || memcmp(a->data, b->data, (size_t)ir_type_bytes(type)) != 0))
        return false;
    if (has & ATTR_AXIS && a->axis != b->axis)
        return false;
    if (has & ATTR_AXES && (a->n_axes != b->n_axes || memcmp(a->axes, b->axes, sizeof *a->axes * (size_t)a->n_axes) != 0))
        return false;
    if (has & ATTR_START && memcmp(a->start, b->start, sizeof *a->start * (size_t)type->rank) != 0)
        return false;
    if (has & ATTR_SITE && a->site != b->site)
        return false;
    if (has & ATTR_SCAN && (a->count != b->count || a->n_carry != b->n_carry || a->n_xs != b->n_xs || a->reverse != b->reverse))
        return false;
    if (has & ATTR_EPSILON && !same_double(a->epsilon, b->epsilon))
        return false;
    if (has & ATTR_ATTENTION && (a->causal != b->causal || !same_double(a->scale, b->scale) || !same_double(a->dropout, b->dropout)))
        return false;
    return !(has & ATTR_BODY) || same_body(a->body, b->body);
}
