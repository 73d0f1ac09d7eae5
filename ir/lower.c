/* From a graph to a kernel list.
 *
 * cluster.c has said which nodes are computed together, choose_stored.c which are stored, place.c where those lie. What is left is
 * to write each cluster as a loop and each anchor (matmul, attention, scatter, scan, concatenation...) as its kernels, and to put
 * them in an order.
 *
 * That is done in rounds: where a value turns out to be read in a way that only memory allows, it is stored, and the whole graph is
 * lowered again. Each round stores at least one node more, so that the rounds end.
 *
 * Graph results and a scan's carries are first values of their own and then copied to where they belong; coalesce.c drops the copies. */
#include "ir/lower.h"

#include <string.h>

/* -- units ------------------------------------------------------------------------------------------------------------ */

lower_unit *kl_new_unit(lowering *l, int64_t key)
{
    l->units = base_arena_grown(l->scratch, l->units, l->n_units, &l->cap_units, sizeof(lower_unit));
    l->units[l->n_units] = (lower_unit){ .kernels.arena = l->program->arena, .key = key };
    return &l->units[l->n_units++];
}

kl_kernel *kl_new_kernel(lowering *l, kl_sequence *list, kl_kind kind, const ir_node *node, const char *name)
{
    kl_kernel *kernel = ARENA_NEW(l->program->arena, kl_kernel, 1);
    kernel->kind = kind;
    kernel->name = base_arena_text(l->program->arena, "%s", name);
    if (node) {
        kernel->place = node->place;
        if (kernel->place.file)
            kernel->place.file = base_arena_text(l->program->arena, "%s", node->place.file);
    }
    kl_append(list, kernel);
    return kernel;
}

void kl_force(lowering *l, bool *flag)
{
    l->progress |= !*flag;
    *flag = true;
}

void kl_must_store(lowering *l, const ir_node *node, bool dense)
{
    const node_info *info = INFO(l->state, node);
    bool not_enough = info->stored && (!dense || info->keep_dense);
    kl_force(l, &l->forced[node->mark]);
    if (dense)
        kl_force(l, &l->forced_dense[node->mark]);
    if (not_enough)
        kl_force(l, &l->forced_apart[node->mark]);
    l->again = true;
}

node_place kl_new_place(lowering *l, const ir_node *node)
{
    node_place place = { .placed = true, .dense = true };
    place.buffer = kl_add_buffer(l->program, (kl_buffer){ .kind = KL_TEMP, .dtype = node->type.dtype, .count = ir_type_count(&node->type),
                                                          .place = node->place });
    ir_row_major(&node->type, place.stride);
    return place;
}

/* -- a whole graph ------------------------------------------------------------------------------------------------------ */

static void lower_node(lowering *l, ir_node *node)
{
    const node_info *info = INFO(l->state, node);
    if (node->op == OP_result || node->op == OP_parameter || node->op == OP_literal)
        return;
    size_t at = (size_t)(kl_new_unit(l, node->mark) - l->units);
    kl_sequence list = { .arena = l->program->arena };
    if (kl_role_of(node) == ROLE_ANCHOR)
        kl_lower_anchor(l, &list, node);
    else if (info->stored)
        kl_copy_to(l, &list, node, &info->place, true, OP_NAME(node->op));
    l->units[at].kernels = list;
}

static lower_state *new_state(const ir_graph *graph, base_arena *arena)
{
    lower_state *state = ARENA_NEW(arena, lower_state, 1);
    state->graph = graph;
    for (ir_node *node = graph->first; node; node = node->next)
        node->mark = state->n_infos++;
    state->infos = ARENA_NEW(arena, node_info, state->n_infos);
    state->n_clusters = state->n_infos;
    state->clusters = ARENA_NEW(arena, node_cluster *, state->n_clusters);
    return state;
}

/* Nothing is known any more. What the last round had in its arena is gone. */
static void begin_round(lower_state *state)
{
    base_arena_free(state->arena);
    state->arena = base_arena_new();
    for (ir_node *node = state->graph->first; node; node = node->next)
        state->infos[node->mark] = (node_info){ .node = node, .cluster = -1 };
    for (int i = state->n_infos - 1; i >= 0; i--) {
        ir_node *node = state->infos[i].node;
        if (node->op == OP_result) {
            state->infos[i].results = INFO(state, node->args[0])->results;
            INFO(state, node->args[0])->results = node;
        }
        state->clusters[i] = NULL;
    }
}

/* A body's parameter may be a view of memory outside; here it is needed row by row. */
static void copy_parameter(lowering *l, ir_node *node)
{
    node_info *info = INFO(l->state, node);
    node_place place = kl_new_place(l, node);
    lower_unit *u = kl_new_unit(l, UNIT_FIRST);
    info->stored = true;
    kl_copy_to(l, &u->kernels, node, &place, false, "copy");
    info->place = place;
}

void kl_lower_graph(kl_program *program, const ir_graph *graph, const node_place *params, base_arena *scratch,
                        void (*finish)(lowering *l, void *context), void *context, kl_sequence *out)
{
    lowering l = { .program = program, .scratch = scratch };
    lower_state *state = l.state = new_state(graph, scratch);
    int n_nodes = state->n_infos, n_buffers = program->n_buffers, n_repeats = program->n_repeats;
    l.forced = ARENA_NEW(scratch, bool, n_nodes);
    l.forced_dense = ARENA_NEW(scratch, bool, n_nodes);
    l.forced_apart = ARENA_NEW(scratch, bool, n_nodes);
    for (;;) {
        program->n_buffers = n_buffers;
        program->n_repeats = n_repeats;
        begin_round(state);
        l.n_units = l.cap_units = 0;
        l.units = NULL;
        l.again = l.progress = false;
        for (int i = 0; i < n_nodes; i++) {
            node_info *info = &state->infos[i];
            info->stored = l.forced[i];
            info->never_inline = l.forced_apart[i];
            info->keep_dense = l.forced_dense[i] || info->node->op == OP_scatter_add;
            if (info->node->op == OP_parameter)
                info->place = params[info->node->attr.index];
            if (info->node->op == OP_parameter && l.forced_dense[i] && !info->place.dense)
                copy_parameter(&l, info->node);
            if (info->node->op == OP_literal) {
                int64_t bytes = ir_type_bytes(&info->node->type);
                void *data = base_arena_alloc(program->arena, (size_t)bytes);
                memcpy(data, info->node->attr.data, (size_t)bytes);
                info->place = (node_place){ .placed = true, .dense = true };
                info->place.buffer = kl_add_buffer(program, (kl_buffer){ .kind = KL_CONST, .dtype = info->node->type.dtype,
                                                                         .count = ir_type_count(&info->node->type), .data = data });
                ir_row_major(&info->node->type, info->place.stride);
            }
        }
        kl_cluster(state);
        kl_choose_stored(state);
        kl_place(state, program);
        for (ir_node *node = graph->first; node; node = node->next) {
            node_info *info = INFO(state, node);
            if (info->cluster < 0 && (info->stored || kl_role_of(node) == ROLE_ANCHOR))
                lower_node(&l, node);
            else if (info->cluster == (int)node->mark)
                kl_lower_cluster(&l, state->clusters[info->cluster]);
        }
        finish(&l, context);
        if (!l.again)
            break;
        CHECK(l.progress, "graph %s: expected each round of the lowering to store a node more", graph->name);
    }
    base_arena_free(state->arena);
    kl_order_units(&l, out);
}

/* -- the program -------------------------------------------------------------------------------------------------------- */

/* Results go to their memory at the very end: it may be that of a parameter, which everything else has read by then. */
static void end_program(lowering *l, void *context)
{
    const ir_graph *graph = l->state->graph;
    kl_program *program = l->program;
    node_place *via = ARENA_NEW(l->scratch, node_place, graph->n_results);
    lower_unit *u = kl_new_unit(l, UNIT_LAST);
    kl_sequence list = { .arena = program->arena };
    size_t at = (size_t)(u - l->units);
    (void)context;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < graph->n_results; i++) {
            ir_node *node = graph->results[i];
            const ir_node *base = kl_view_base(l->state, node);
            bool stays = node->op == OP_parameter && graph->donated[i] == node->attr.index;
            bool donated = false;
            for (int j = 0; j < graph->n_results && base->op == OP_parameter; j++)
                donated |= graph->donated[j] == base->attr.index;
            if (pass == 0 && donated && !stays) {         /* another result will overwrite what this one reads */
                via[i] = kl_new_place(l, node);
                kl_copy_to(l, &list, node, &via[i], false, "result");
            }
            if (pass == 0)
                continue;
            node_place place = { .placed = true, .dense = true };
            const char *name = graph->result_names[i] ? base_arena_text(program->arena, "%s", graph->result_names[i]) : NULL;
            place.buffer = kl_add_buffer(program, (kl_buffer){ .kind = KL_RESULT, .dtype = node->type.dtype, .count = ir_type_count(&node->type),
                                                               .index = i, .donated = graph->donated[i], .name = name });
            ir_row_major(&node->type, place.stride);
            if (stays)
                continue;
            node_info *info = INFO(l->state, node), saved = *info;
            if (via[i].placed) {
                info->stored = true;
                info->place = via[i];
            }
            kl_copy_to(l, &list, node, &place, false, "result");
            *info = saved;
        }
    }
    l->units[at].kernels = list;
}

kl_program *kl_lower(const ir_graph *graph)
{
    kl_program *program;
    base_arena *arena = base_arena_new(), *scratch = base_arena_new();
    program = ARENA_NEW(arena, kl_program, 1);
    program->arena = arena;
    program->name = base_arena_text(arena, "%s", graph->name);
    program->n_params = graph->n_params;
    program->n_results = graph->n_results;
    node_place *params = ARENA_NEW(scratch, node_place, graph->n_params);
    for (int i = 0; i < graph->n_params; i++) {
        const ir_node *node = graph->params[i];
        params[i] = (node_place){ .placed = true, .dense = true };
        const char *name = node->attr.name ? base_arena_text(arena, "%s", node->attr.name) : NULL;
        params[i].buffer = kl_add_buffer(program, (kl_buffer){ .kind = KL_PARAM, .dtype = node->type.dtype, .count = ir_type_count(&node->type),
                                                               .index = i, .name = name });
        ir_row_major(&node->type, params[i].stride);
    }
    kl_sequence list = { .arena = arena };
    kl_lower_graph(program, graph, params, scratch, end_program, NULL, &list);
    program->kernels = list.at;
    program->n_kernels = list.n;
    base_arena_free(scratch);
    kl_coalesce(program);
    kl_accumulate(program);
    kl_narrow_stores(program, false);
    kl_hoist(program);
    kl_tidy(program);
    return program;
}
