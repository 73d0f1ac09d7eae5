/* The interpreter: runs a graph plainly, node by node, with the reference functions of the op table. It is the oracle that compiled
 * programs are held against, and what --no-jit trains with.
 *
 * A graph is prepared once: copied, its composites decomposed, dead nodes left out, and each value given a number and the step
 * that reads it last. A run then allocates a value when its step comes and frees it after its last reader. A reader that works in place
 * (elementwise ops, update_slice, scatter_add, reshapes) takes over the memory of an operand that it is the last to read: the carries
 * of a scan are updated without being copied. Some of what is freed is kept for a value of the same size: layers, iterations
 * and runs repeat, and a fresh page costs as much as the op that writes it.
 *
 *     %2 = mul %0, %1        value 2 = new memory            parameters are borrowed: never written, never freed
 *     %3 = add %2, %0        value 3 takes value 2's         its last reader
 *     return %3              copied to results[0]
 */
#include "ir/ir.h"

#include <limits.h>
#include <string.h>

/* A value's memory. Who owns it frees it. */
typedef struct { void *data; bool owned; int64_t bytes; } block;

typedef struct {
    const ir_node *node;
    int *arg;                          /* values, by operand */
    int value, n_values;               /* what it makes: one value, or a tuple's */
    ir_program *body;                  /* scan's */
} step;

struct ir_program {
    ir_graph *graph;                   /* owned by the program of the whole graph, NULL in those of bodies */
    int n_steps, n_values, n_params, n_results, most_args;
    step *steps;
    const ir_type **type;              /* by value */
    int *last_reader;                  /* by value: a step; the step that makes it where there is none, NEVER for results */
    int *param, *result;               /* values */
    int n_spare;
    int64_t spare_bytes;
    block *spare;                      /* free memory for values to come; room for n_values */
};

enum { NEVER = INT_MAX, MOST_SPARE_BYTES = 256 << 20 };

/* -- preparing --------------------------------------------------------------------------------------------------------- */

static void decompose_all(ir_graph *graph)
{
    ir_pass_context context = {0};
    ir_pass_decompose(graph, &context);
    base_text_free(&context.note);
    for (ir_node *n = graph->first; n; n = n->next)
        if (n->attr.body)
            decompose_all(n->attr.body);
}

/* mark: 1 for nodes that a result needs, else 0. */
static void mark_live(ir_graph *graph)
{
    for (ir_node *n = graph->first; n; n = n->next)
        n->mark = 0;
    for (int i = 0; i < graph->n_results; i++)
        graph->results[i]->mark = 1;
    for (ir_node *n = graph->last; n; n = n->prev)
        for (int i = 0; n->mark && i < n->n_args; i++)
            n->args[i]->mark = 1;
}

static ir_program *prepare(ir_graph *graph);

/* From here on mark is the number of a node's (first) value. A `result` is the value of its tuple that it picks. */
static void prepare_step(ir_program *program, ir_node *node)
{
    if (node->op == OP_result) {
        node->mark = node->args[0]->mark + node->attr.index;
        return;
    }
    int n = node->type.dtype == IR_TUPLE ? node->n_tuple : 1, value = program->n_values;
    node->mark = value;
    program->n_values += n;
    for (int i = 0; i < n; i++)
        program->type[value + i] = node->type.dtype == IR_TUPLE ? &node->tuple[i] : &node->type;
    if (node->op == OP_parameter) {
        program->param[node->attr.index] = value;
        program->last_reader[value] = -1;
        return;
    }
    step *s = &program->steps[program->n_steps];
    s->node = node;
    s->value = value;
    s->n_values = n;
    s->arg = base_alloc(sizeof *s->arg * (size_t)node->n_args);
    for (int i = 0; i < node->n_args; i++) {
        s->arg[i] = (int)node->args[i]->mark;
        program->last_reader[s->arg[i]] = program->n_steps;
    }
    for (int i = 0; i < n; i++)
        program->last_reader[value + i] = program->n_steps;
    if (node->op == OP_scan)
        s->body = prepare(node->attr.body);
    program->most_args = MAX(program->most_args, node->n_args);
    program->n_steps++;
}

static ir_program *prepare(ir_graph *graph)
{
    ir_program *program = base_alloc(sizeof *program);
    int nodes = 0, values = 0;
    for (ir_node *n = graph->first; n; n = n->next) {
        nodes++;
        values += MAX(1, n->n_tuple);
    }
    program->steps = base_alloc(sizeof *program->steps * (size_t)nodes);
    program->type = base_alloc(sizeof *program->type * (size_t)values);
    program->last_reader = base_alloc(sizeof *program->last_reader * (size_t)values);
    program->n_params = graph->n_params;
    program->param = base_alloc(sizeof *program->param * (size_t)graph->n_params);
    program->n_results = graph->n_results;
    program->result = base_alloc(sizeof *program->result * (size_t)graph->n_results);

    mark_live(graph);
    for (ir_node *n = graph->first; n; n = n->next)
        if (n->mark || n->op == OP_parameter)
            prepare_step(program, n);
    for (int i = 0; i < graph->n_results; i++) {
        program->result[i] = (int)graph->results[i]->mark;
        program->last_reader[program->result[i]] = NEVER;
    }
    program->spare = base_alloc(sizeof *program->spare * (size_t)program->n_values);
    return program;
}

ir_program *ir_prepare(const ir_graph *graph)
{
    ir_graph *copy = ir_graph_clone(graph);
    decompose_all(copy);
    ir_program *program = prepare(copy);
    program->graph = copy;
    return program;
}

/* -- memory ------------------------------------------------------------------------------------------------------------ */

static void free_spare(ir_program *program)
{
    while (program->n_spare > 0)
        base_free(program->spare[--program->n_spare].data);
    program->spare_bytes = 0;
}

static bool allocate(ir_program *program, const ir_node *node, const ir_type *type, block *block)
{
    int64_t bytes = ir_type_bytes(type);
    for (int i = 0; i < program->n_spare; i++)
        if (program->spare[i].bytes == bytes) {
            *block = program->spare[i];
            program->spare[i] = program->spare[--program->n_spare];
            program->spare_bytes -= bytes;
            return true;
        }
    block->data = base_try_alloc((size_t)bytes);
    if (!block->data && program->n_spare > 0) {
        free_spare(program);
        block->data = base_try_alloc((size_t)bytes);
    }
    block->owned = block->data != NULL;
    block->bytes = bytes;
    return block->owned || base_fail(BASE_FAILURE, "interpreter: memory for %%%d %s: %lld bytes were refused", node->id,
                                     OP_NAME(node->op), (long long)bytes);
}

static void release(ir_program *program, block *block)
{
    if (block->owned && program->n_spare < program->n_values && program->spare_bytes + block->bytes <= MOST_SPARE_BYTES) {
        program->spare[program->n_spare++] = *block;
        program->spare_bytes += block->bytes;
    } else if (block->owned) {
        base_free(block->data);
    }
    block->data = NULL;
    block->owned = false;
}

/* How many of its first operands the op may work in place of. Where it reads others after it has begun to write, these must be other
 * values. */
static int in_place_operands(const ir_node *node)
{
    if (ir_op_table[node->op].class == IR_ELEMENTWISE)
        return node->n_args;
    bool first = node->op == OP_reshape || node->op == OP_stop_gradient || node->op == OP_custom_gradient ||
                 node->op == OP_update_slice || node->op == OP_scatter_add;
    return first ? 1 : 0;
}

static int count_operand(const step *s, int value)
{
    int count = 0;
    for (int i = 0; i < s->node->n_args; i++)
        count += s->arg[i] == value;
    return count;
}

/* Takes over an operand's memory for the step's value, where that can be. */
static bool take_over(const ir_program *program, int at, block *blocks)
{
    const step *s = &program->steps[at];
    bool elementwise = ir_op_table[s->node->op].class == IR_ELEMENTWISE;
    for (int i = 0; i < in_place_operands(s->node); i++) {
        int v = s->arg[i];
        if (blocks[v].owned && program->last_reader[v] == at && (elementwise || count_operand(s, v) == 1) &&
            ir_type_bytes(program->type[v]) == ir_type_bytes(&s->node->type)) {
            blocks[s->value] = blocks[v];
            blocks[v].owned = false;                    /* still read, at the same place */
            return true;
        }
    }
    return false;
}

/* -- running ----------------------------------------------------------------------------------------------------------- */

static bool run(ir_program *program, block *params, block *results);

/* The body's parameters for iteration i: carries are handed over, slices and constants lent. */
static void lend_operands(const ir_program *program, const step *s, const block *blocks, int64_t i, block *params)
{
    const ir_attr *attr = &s->node->attr;
    for (int j = attr->n_carry; j < s->node->n_args; j++) {
        bool is_slice = j < attr->n_carry + attr->n_xs;
        int64_t offset = is_slice ? i * (ir_type_bytes(program->type[s->arg[j]]) / attr->count) : 0;
        params[j] = (block){ .data = (char *)blocks[s->arg[j]].data + offset };
    }
}

/* What the body returned: carries for the next iteration, copied only where they are not the body's to give; ys into their slices. */
static bool take_results(ir_program *program, const step *s, block *blocks, int64_t i, block *results)
{
    const ir_attr *attr = &s->node->attr;
    bool done = true;
    for (int j = 0; j < s->n_values; j++) {
        size_t bytes = (size_t)ir_type_bytes(program->type[s->value + j]);
        if (j >= attr->n_carry) {
            bytes /= (size_t)attr->count;
            memcpy((char *)blocks[s->value + j].data + (size_t)i * bytes, results[j].data, bytes);
        } else if (!results[j].owned) {
            const void *lent = results[j].data;
            done = done && allocate(program, s->node, program->type[s->value + j], &results[j]);
            if (results[j].owned)
                memcpy(results[j].data, lent, bytes);
        }
    }
    for (int j = 0; j < s->n_values; j++)
        if (j < attr->n_carry && done)
            blocks[s->value + j] = results[j];
        else
            release(s->body, &results[j]);
    return done;
}

static bool run_scan(ir_program *program, int at, block *blocks)
{
    const step *s = &program->steps[at];
    const ir_node *node = s->node;
    const ir_attr *attr = &node->attr;
    block *params = base_alloc(sizeof *params * (size_t)node->n_args), *results = base_alloc(sizeof *results * (size_t)s->n_values);
    bool done = true;
    for (int j = 0; done && j < s->n_values; j++) {     /* carries begin as copies of the operands, or as the operands themselves */
        block *first = j < attr->n_carry ? &blocks[s->arg[j]] : NULL;
        if (first && first->owned && program->last_reader[s->arg[j]] == at && count_operand(s, s->arg[j]) == 1) {
            blocks[s->value + j] = *first;
            first->owned = false;
        } else {
            done = allocate(program, node, program->type[s->value + j], &blocks[s->value + j]);
            if (done && first)
                memcpy(blocks[s->value + j].data, first->data, (size_t)ir_type_bytes(program->type[s->value + j]));
        }
    }
    for (int64_t n = 0; done && n < attr->count; n++) {
        int64_t i = attr->reverse ? attr->count - 1 - n : n;
        for (int j = 0; j < attr->n_carry; j++) {
            params[j] = blocks[s->value + j];
            blocks[s->value + j].owned = false;
        }
        lend_operands(program, s, blocks, i, params);
        done = run(s->body, params, results) && take_results(program, s, blocks, i, results);
    }
    free_spare(s->body);
    base_free(params);
    base_free(results);
    return done;
}

static bool run_step(ir_program *program, int at, block *blocks, ir_array *arrays, const ir_array **args)
{
    const step *s = &program->steps[at];
    if (s->node->op == OP_scan)
        return run_scan(program, at, blocks);
    for (int i = 0; i < s->node->n_args; i++)
        arrays[i] = (ir_array){ *program->type[s->arg[i]], blocks[s->arg[i]].data };
    if (!take_over(program, at, blocks) && !allocate(program, s->node, &s->node->type, &blocks[s->value]))
        return false;
    void (*reference)(const ir_node *, const ir_array *const *, ir_array *) = ir_op_table[s->node->op].reference;
    CHECK(reference, "%%%d %s: expected an op with a reference function", s->node->id, OP_NAME(s->node->op));
    ir_array result = { s->node->type, blocks[s->value].data };
    reference(s->node, args, &result);
    return true;
}

/* Frees the parameters that are owned, whether it succeeds or not. A result that is owned is the caller's; another is lent, and lives
 * as long as the parameters, or as the result before it that is the same value. */
static bool run(ir_program *program, block *params, block *results)
{
    block *blocks = base_alloc(sizeof *blocks * (size_t)program->n_values);
    ir_array *arrays = base_alloc(sizeof *arrays * (size_t)program->most_args);
    const ir_array **args = base_alloc(sizeof *args * (size_t)program->most_args);
    for (int i = 0; i < program->most_args; i++)
        args[i] = &arrays[i];
    for (int i = 0; i < program->n_params; i++)
        blocks[program->param[i]] = params[i];

    bool done = true;
    for (int at = 0; done && at < program->n_steps; at++) {
        const step *s = &program->steps[at];
        done = run_step(program, at, blocks, arrays, args);
        for (int i = 0; i < s->node->n_args; i++)
            if (program->last_reader[s->arg[i]] == at)
                release(program, &blocks[s->arg[i]]);
        for (int i = 0; i < s->n_values; i++)
            if (program->last_reader[s->value + i] == at)
                release(program, &blocks[s->value + i]);
    }
    for (int i = 0; done && i < program->n_results; i++) {
        results[i] = blocks[program->result[i]];
        blocks[program->result[i]].owned = false;
    }
    for (int i = 0; i < program->n_values; i++)
        release(program, &blocks[i]);
    base_free(blocks);
    base_free(arrays);
    base_free(args);
    return done;
}

bool ir_run(ir_program *program, const ir_array *params, ir_array *results)
{
    block *lent = base_alloc(sizeof *lent * (size_t)program->n_params), *made = base_alloc(sizeof *made * (size_t)program->n_results);
    for (int i = 0; i < program->n_params; i++)
        lent[i] = (block){ .data = params[i].data };
    bool done = run(program, lent, made);
    for (int i = 0; done && i < program->n_results; i++)
        memmove(results[i].data, made[i].data, (size_t)ir_type_bytes(program->type[program->result[i]]));
    for (int i = 0; done && i < program->n_results; i++)
        release(program, &made[i]);
    base_free(lent);
    base_free(made);
    return done;
}

void ir_program_free(ir_program *program)
{
    if (!program)
        return;
    for (int i = 0; i < program->n_steps; i++) {
        base_free(program->steps[i].arg);
        ir_program_free(program->steps[i].body);
    }
    base_free(program->steps);
    base_free(program->type);
    base_free(program->last_reader);
    base_free(program->param);
    base_free(program->result);
    free_spare(program);
    base_free(program->spare);
    ir_graph_free(program->graph);
    base_free(program);
}

bool ir_interpret(const ir_graph *graph, const ir_array *params, ir_array *results)
{
    ir_program *program = ir_prepare(graph);
    bool done = ir_run(program, params, results);
    ir_program_free(program);
    return done;
}
