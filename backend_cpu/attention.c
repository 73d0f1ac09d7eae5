/* The plan of attention: blocks and tasks by shape, scratch, arguments, and the code that is asked for. One piece of
 * code serves all shapes: what is compiled in is the ISA, the dtype, and whether there is dropout. */
#include "backend_cpu/attention.h"

#include <llvm-c/Core.h>
#include <math.h>
#include <string.h>

enum {
    KEY_BLOCK = 128,             /* keys: with W queries 16 KB of scores, that stay in the first-level cache; */
    BACKWARD_KEY_BLOCK = 256,    /* there, q and dout are transposed once more for every block */
    BACKWARD_ELEMENTS = 1 << 14, /* of k, v, dk, dv, at most: all four stay in the second-level cache */
    TASK_ROWS = 256,             /* of queries, at most: k and v are packed again for every task */
    LEAST_TASK_ROWS = 64,
    FORWARD_TASKS = 64,          /* as many are wanted, for threads to share evenly */
    BACKWARD_TASKS = 8,          /* fewer heads than this are split by keys */
    IN_PLACE_PANELS = 2,         /* rows far apart push each other out of the first-level cache: more panels are worth a copy */
    GROUPS = 16                  /* of heads, at least, where there are more heads than that */
};

/* -- the code ---------------------------------------------------------------------------------------------------------- */

typedef enum { MICRO, TRANSPOSE, ROWS, INTERLEAVE, ACROSS, SOFTMAX, CLOSE, STORE, STORE_ACROSS, GRADIENT, DOTS, KEEP, N_PIECES } piece_id;

/* cost in LLVM instructions, roughly. forward, backward: who needs it. */
static const struct {
    const char *name;
    double cost;
    bool forward, backward;
    cpu_attention_emit *emit;
} pieces[N_PIECES] = {
    [MICRO]      = { "gemm micro",            1500, true,  true,  NULL },
    [TRANSPOSE]  = { "attention transpose",   400,  true,  true,  NULL },
    [ROWS]       = { "attention rows",        60,   true,  true,  NULL },
    [INTERLEAVE] = { "attention interleave",  150,  true,  true,  NULL },
    [ACROSS]     = { "attention across",      300,  true,  true,  NULL },
    [SOFTMAX]    = { "attention softmax",     600,  true,  false, cpu_attention_emit_softmax },
    [CLOSE]      = { "attention close",       150,  true,  false, cpu_attention_emit_close },
    [STORE]      = { "attention store",       100,  true,  true,  cpu_attention_emit_store },
    [STORE_ACROSS] = { "attention store across", 200, true, true, cpu_attention_emit_store_across },
    [GRADIENT]   = { "attention gradient",    500,  false, true,  cpu_attention_emit_gradient },
    [DOTS]       = { "attention dots",        80,   false, true,  cpu_attention_emit_dots },
    [KEEP]       = { "attention keep",        500,  true,  true,  cpu_attention_emit_keep },
};

typedef struct { piece_id id; cpu_attention_class class; } piece_request;

/* The micro-kernels have names of their own; the function that was asked for does nothing. */
static void emit_micro(const void *context, const cpu_machine *machine, LLVMModuleRef module, const char *name)
{
    const piece_request *request = context;
    LLVMContextRef llvm = LLVMGetModuleContext(module);
    LLVMBuilderRef builder = LLVMCreateBuilderInContext(llvm);
    LLVMPositionBuilderAtEnd(
        builder, LLVMAppendBasicBlockInContext(llvm, LLVMAddFunction(module, name, cpu_task_type(module)), ""));
    LLVMBuildRetVoid(builder);
    LLVMDisposeBuilder(builder);
    cpu_gemm_emit_micro(module, machine->isa, request->class.dtype);
}

static void emit_packing(const void *context, const cpu_machine *machine, LLVMModuleRef module, const char *name)
{
    const piece_request *request = context;
    cpu_gemm_pack_class class = {
        .isa = machine->isa, .dtype = request->class.dtype, .side = request->id == ROWS || request->id == ACROSS ? CPU_GEMM_A : CPU_GEMM_B,
        .along_k = request->id != INTERLEAVE && request->id != ACROSS, .unit_stride = true, .source = request->class.dtype,
        .fetched = true };
    cpu_gemm_emit_pack(module, &class, name);
}

static void emit_piece(const void *context, const cpu_machine *machine, LLVMModuleRef module, const char *name)
{
    const piece_request *request = context;
    pieces[request->id].emit(module, machine->isa, &request->class, name);
}

static bool needs(const cpu_attention *a, piece_id id)
{
    if (id == INTERLEAVE && (a->unit.k_per_unit == 1 || (a->tiles && !a->shape.backward)))
        return false;
    if ((id == ACROSS || id == STORE_ACROSS) ? !a->tiles : id == STORE && a->tiles && !a->shape.backward)
        return false;
    if (id == KEEP && a->shape.dropout == 0)
        return false;
    return a->shape.backward ? pieces[id].backward : pieces[id].forward;
}

static void request_code(cpu_compiler *compiler, cpu_attention *a, int *requests)
{
    const kl_attention *s = &a->shape;
    for (int id = 0; id < N_PIECES; id++) {
        requests[id] = -1;
        if (!needs(a, id))
            continue;
        piece_request *request = ARENA_NEW(compiler->arena, piece_request, 1);
        *request = (piece_request){id, {.dtype = s->dtype, .stored = s->dtype}};
        const char *dtype = ir_dtype_name(s->dtype), *more = "";
        if ((id == STORE || id == STORE_ACROSS) && s->backward)
            request->class.stored = s->grad_dtype,
            more = base_arena_text(compiler->arena, " to %s", ir_dtype_name(s->grad_dtype));
        else if (id == STORE || id == STORE_ACROSS)
            more = base_arena_text(compiler->arena, " to %s", dtype);
        if ((id == SOFTMAX || id == GRADIENT) && s->dropout > 0)
            request->class.dropout = true, more = " dropout";
        const char *key = base_arena_text(compiler->arena, "%s %s%s", pieces[id].name, dtype, more);
        cpu_emit *emit = id == MICRO ? emit_micro : pieces[id].emit ? emit_piece : emit_packing;
        requests[id] = cpu_request_code(compiler, key, pieces[id].cost, emit, request);
    }
}

typedef struct { cpu_attention *a; int requests[N_PIECES]; } link_context;

static void link_pieces(cpu_plan *plan, const cpu_linked *linked)
{
    const link_context *context = plan->context;
    cpu_attention *a = context->a;
    cpu_gemm_find_micro(&a->code.products, linked->code[context->requests[MICRO]], a->isa, a->shape.dtype);
    void *to[N_PIECES] = {
        [TRANSPOSE] = &a->code.transpose, [ROWS] = &a->code.rows,   [INTERLEAVE] = &a->code.interleave,
        [ACROSS] = &a->code.across,       [STORE_ACROSS] = &a->code.store_across,
        [SOFTMAX] = &a->code.softmax,     [CLOSE] = &a->code.close, [STORE] = &a->code.store,
        [GRADIENT] = &a->code.gradient,   [DOTS] = &a->code.dots,   [KEEP] = &a->code.keep};
    for (int id = TRANSPOSE; id < N_PIECES; id++)
        if (context->requests[id] >= 0)
            memcpy(to[id], &linked->address[context->requests[id]], sizeof(void *));
}

/* -- the plan ---------------------------------------------------------------------------------------------------------- */

static void plan_blocks(cpu_attention *a)
{
    const kl_attention *s = &a->shape;
    int64_t width = a->tile.columns, unit = a->unit.k_per_unit, units = base_divide_up(s->head_dim, unit),
            heads = MAX(s->batch * s->heads, 1);
    int64_t key_block = KEY_BLOCK;
    if (s->backward)
        key_block = MIN(BACKWARD_KEY_BLOCK, MAX(BACKWARD_ELEMENTS / MAX(s->head_dim, 1), 2 * width) / 2 * 2);
    a->key_block = MIN(key_block, base_round_up(MAX(s->keys, 1), 2));
    if (a->tiles)
        a->key_block = base_round_up(a->key_block, CPU_GEMM_TILES_K);
    a->across_bytes = a->key_block * a->element_bytes + 64;      /* rows not in the same sets of the cache */
    a->panels = base_divide_up(s->rows, width);
    a->head_panels = base_divide_up(s->head_dim, width);
    a->row_bytes = base_round_up(s->head_dim, a->tile.lanes * unit) / unit * a->unit.bytes;
    a->transposed_bytes = base_round_up(units, a->tile.lanes) * width * a->unit.bytes;
    a->sums_bytes = width * width * a->sum_bytes;

    int64_t wanted = base_divide_up(a->panels, base_divide_up(FORWARD_TASKS, heads)), least = MAX(LEAST_TASK_ROWS / width, 1);
    a->task_panels = MAX(MIN(wanted, TASK_ROWS / width), least);
    a->row_tasks = base_divide_up(a->panels, a->task_panels);

    /* By whole units; and k is read as B, too, where those are single. */
    a->keys_in_place = !a->tiles && a->unit.bytes == a->element_bytes * (int)unit && s->head_dim % (unit == 2 ? unit : a->tile.lanes) == 0 &&
                       (s->backward ? a->panels : a->task_panels) <= IN_PLACE_PANELS;

    a->group = MAX(MIN(heads / GROUPS, s->heads), 1);
    while (s->heads % a->group != 0)
        a->group--;

    int64_t key_blocks = base_divide_up(s->keys, a->key_block),
            splits = heads >= BACKWARD_TASKS ? 1 : base_divide_up(BACKWARD_TASKS, heads);
    a->split_blocks = MAX(base_divide_up(key_blocks, splits), 1);
    a->splits = MAX(base_divide_up(key_blocks, a->split_blocks), 1);
}

static cpu_attention_tensor add_tensor(cpu_compiler *compiler, cpu_plan *plan, const kl_view *view, ir_dtype dtype)
{
    cpu_attention_tensor t = {.arg = -1};
    if (view->buffer < 0)
        return t;
    t.arg = cpu_arg_view(compiler, plan, view, dtype);
    for (int i = 0; i < 4; i++)
        t.stride[i] = view->stride[i];
    return t;
}

/* Nanoseconds on one core: products at half of what it can. Backward has five of them for forward's two. */
static double work_of(const cpu_attention *a)
{
    const kl_attention *s = &a->shape;
    double pairs = (double)s->rows * ((double)s->keys - (s->causal ? (double)s->rows / 2 : 0));
    double flops = (double)(s->batch * s->heads) * pairs * (double)s->head_dim * (s->backward ? 10 : 4);
    return flops / (4 * (double)a->tile.lanes);
}

bool cpu_plan_attention(cpu_compiler *compiler, const kl_kernel *kernel, cpu_plan *plan)
{
    const kl_attention *s = kernel->attention;
    link_context *context = ARENA_NEW(compiler->arena, link_context, 1);
    cpu_attention *a = context->a = ARENA_NEW(compiler->arena, cpu_attention, 1);
    ir_dtype wide = s->dtype == IR_F64 ? IR_F64 : IR_F32;
    a->shape = *s;
    a->isa = compiler->machine->isa;
    a->tile = cpu_gemm_tile_of(a->isa, s->dtype);
    a->unit = cpu_gemm_unit_of(a->isa, s->dtype);
    a->tiles = cpu_gemm_has_tiles(a->isa, s->dtype);
    a->sum_bytes = ir_dtype_bytes(wide);
    a->element_bytes = ir_dtype_bytes(s->dtype);
    a->grad_bytes = s->backward ? ir_dtype_bytes(s->grad_dtype) : 0;
    a->keep_scale = 1 / (1 - s->dropout);
    a->threshold = (uint32_t)floor(s->dropout * 0x1p32);
    plan_blocks(a);

    cpu_arg(compiler, plan, (int64_t)(intptr_t)a);
    const struct { cpu_attention_tensor *to; const kl_view *view; ir_dtype dtype; bool there; } views[] = {
        { &a->q, &s->q, s->dtype, true }, { &a->k, &s->k, s->dtype, true }, { &a->v, &s->v, s->dtype, true },
        { &a->out, &s->out, s->dtype, true }, { &a->lse, &s->lse, wide, true },
        { &a->dout, &s->dout, s->dtype, s->backward }, { &a->dlse, &s->dlse, wide, s->backward },
        { &a->dq, &s->dq, s->grad_dtype, s->backward }, { &a->dk, &s->dk, s->grad_dtype, s->backward },
        { &a->dv, &s->dv, s->grad_dtype, s->backward },
        { &a->seed, &s->seed, IR_I32, s->dropout > 0 }, { &a->counter, &s->counter, IR_I32, s->dropout > 0 },
    };
    for (size_t i = 0; i < COUNT_OF(views); i++)
        if (views[i].there)
            *views[i].to = add_tensor(compiler, plan, views[i].view, views[i].dtype);

    int64_t heads = s->batch * s->heads, groups = base_divide_up(heads, a->group);
    plan->phases[plan->n_phases++] = (cpu_phase){
        .function = -1, .code = s->backward ? cpu_attention_backward : cpu_attention_forward,
        .tasks = groups * (s->backward ? a->splits : a->row_tasks), .work = work_of(a) };
    plan->scratch_bytes = s->backward ? cpu_attention_backward_scratch(a) : cpu_attention_forward_scratch(a);
    if (s->backward && a->splits > 1) {
        a->workspace = cpu_arg_workspace(compiler, plan, 0);
        plan->workspace_bytes = cpu_attention_backward_workspace(a);
        plan->phases[plan->n_phases++] = (cpu_phase){
            .function = -1, .code = cpu_attention_add_splits, .tasks = heads * a->panels,
            .work = (double)cpu_attention_backward_workspace(a) / 4 };
    }
    request_code(compiler, a, context->requests);
    plan->link = link_pieces;
    plan->context = context;
    plan->how = base_arena_text(compiler->arena, "tiles %dx%d, %lld keys a block", (int)a->tile.columns, a->tile.heights[0],
                                (long long)a->key_block);
    return true;
}
