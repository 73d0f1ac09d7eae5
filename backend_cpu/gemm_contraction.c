/* Products by the generated GEMM (gemm.h): a kl_contraction becomes pieces of code, a plan of blocks, and arguments.
 *
 * How an operand lies decides which packing it gets; what is to be computed of it on the way, or of a finished tile, goes
 * through expressions.c, like a loop's body. So one micro-kernel serves all products of a dtype, one packing all operands that
 * lie alike, and one epilogue all products that end alike, whatever their shapes:
 *
 *     contraction a: load x[384,1]  b: load w[1536,1]  c: gelu(product + load bias[0,1]) -> y[1536,1]
 *
 *     "gemm micro f32"   "gemm pack b f32 ..."   "gemm epilogue f32 ..." with the expressions' key
 *
 * An operand that is a load and no more is read or packed as it lies; a cast between floats on top of that is part of packing.
 * Everything else is a prologue. The arguments of prologues and epilogue lie behind each other in the kernel's; a piece finds
 * them, and the buffers, by its user pointer. */
#include "backend_cpu/contraction.h"
#include "backend_cpu/expressions.h"
#include "backend_cpu/gemm.h"

#include <string.h>

/* -- code with expressions in it --------------------------------------------------------------------------------------- */

/* What a piece's user pointer points to. */
typedef struct { const int64_t *args; char *const *buffers; } fused_user;

/* Expressions over batch..., a row, and along it the lanes. */
typedef struct {
    cpu_expressions *x;
    int n_batch, n_args;
    int batch_arg, extent_arg;               /* the extents of the batch axes, where there are several; of the vector axis */
    bool apart;                              /* lanes that do not exist need places that do */
    double cost;
} fused_code;

static bool is_apart(const cpu_expressions *x)
{
    bool apart = false;
    for (int i = 0; i < x->loop.n_exprs + x->loop.n_outputs; i++)
        apart |= x->views[i].used && x->views[i].lanes == CPU_LANES_APART;
    for (int i = 0; i < x->loop.n_exprs; i++)
        apart |= x->loop.exprs[i].view.n_dynamic > 0;
    return apart;
}

static fused_code *plan_fused(cpu_compiler *c, cpu_plan *plan, const kl_loop *loop)
{
    fused_code *code = ARENA_NEW(c->arena, fused_code, 1);
    int base = plan->n_args;
    code->n_batch = loop->n_axes - 2;
    code->x = cpu_expressions_plan(c, plan, loop, loop->n_axes - 1, loop->n_axes - 1, base);
    code->extent_arg = cpu_arg(c, plan, loop->extent[loop->n_axes - 1]) - base;
    code->batch_arg = plan->n_args - base;
    for (int i = 0; i < code->n_batch; i++)
        cpu_arg(c, plan, loop->extent[i]);
    code->n_args = plan->n_args - base;
    code->apart = is_apart(code->x);
    for (int i = 0; i < loop->n_exprs; i++)
        code->cost += cpu_expression_cost(code->x, i);
    return code;
}

/* One function that is being generated. */
typedef struct { const fused_code *code; cpu_emitter e; base_arena *arena; LLVMValueRef row; } fused_site;

static fused_site begin_site(const fused_code *code) { return (fused_site){ .code = code, .arena = base_arena_new() }; }

static void end_site(fused_site *s)
{
    if (s->e.entry.builder)
        LLVMDisposeBuilder(s->e.entry.builder);
    base_arena_free(s->arena);
}

/* What holds for the whole call goes to the end of the function's first block, in which the fields of its record are read. */
static void begin_entry(fused_site *s, const cpu_vector_env *vector, LLVMValueRef user, LLVMValueRef batch)
{
    LLVMContextRef llvm = vector->context;
    LLVMValueRef function = LLVMGetBasicBlockParent(LLVMGetInsertBlock(vector->builder));
    LLVMBuilderRef b = LLVMCreateBuilderInContext(llvm);
    LLVMTypeRef pointer = LLVMPointerTypeInContext(llvm, 0);
    LLVMPositionBuilderBefore(b, LLVMGetBasicBlockTerminator(LLVMGetEntryBasicBlock(function)));
    s->e.entry = *vector;
    s->e.entry.builder = b;
    cpu_emitter_init(&s->e, s->code->x, s->code->n_args, s->arena);
    LLVMValueRef one = LLVMConstInt(LLVMInt64TypeInContext(llvm), 1, 0);
    s->e.args = LLVMBuildLoad2(b, pointer, user, "");
    s->e.buffers = LLVMBuildLoad2(b, pointer, LLVMBuildGEP2(b, pointer, user, &one, 1, ""), "");
    for (int i = s->code->n_batch - 1; i >= 0; i--) {
        LLVMValueRef extent = i > 0 ? cpu_emit_arg(&s->e, s->code->batch_arg + i) : NULL;
        s->e.index[i] = extent ? LLVMBuildURem(b, batch, extent, "") : batch;
        batch = extent ? LLVMBuildUDiv(b, batch, extent, "") : batch;
    }
}

static void forget_row(cpu_emitter *e)
{
    const cpu_expressions *x = e->plan;
    for (int i = 0; i < x->loop.n_exprs; i++) {
        if (x->depth[i] == CPU_DEPTH_UNIT)
            e->values[i] = (cpu_value){0};
        if (x->depth[i] != CPU_DEPTH_TASK)
            e->unit_at[i] = NULL;
    }
    for (int i = 0; i < x->loop.n_outputs; i++)
        e->unit_at[x->loop.n_exprs + i] = NULL;
    for (int i = 0; i < x->n_sets; i++)
        e->unit_offset[i] = NULL;
}

/* The emitter at a place: a row, and lanes from lane on, those that exist under mask. A row's code goes to where the row is first met. */
static void go_to(fused_site *s, const cpu_vector_env *vector, LLVMValueRef user, LLVMValueRef batch, LLVMValueRef row, LLVMValueRef lane, LLVMValueRef mask)
{
    cpu_emitter *e = &s->e;
    LLVMBuilderRef b = vector->builder;
    if (!e->entry.builder)
        begin_entry(s, vector, user, batch);
    if (s->row != row)
        forget_row(e);
    s->row = row;
    e->unit = e->body = *vector;
    cpu_emitter_next_place(e);
    e->index[s->code->n_batch] = row;
    e->index[s->code->n_batch + 1] = lane;
    e->mask = mask;
    e->last_lane = NULL;
    if (!mask || !s->code->apart)
        return;
    LLVMValueRef one = LLVMConstInt(LLVMTypeOf(lane), 1, 0), zero = LLVMConstInt(LLVMTypeOf(lane), 0, 0);
    LLVMValueRef end = LLVMBuildSub(b, cpu_emit_arg(e, s->code->extent_arg), one, "");
    LLVMValueRef none = LLVMBuildICmp(b, LLVMIntSGT, lane, end, "");
    e->index[s->code->n_batch + 1] = LLVMBuildSelect(b, none, end, lane, "");
    e->last_lane = LLVMBuildSelect(b, none, zero, LLVMBuildSub(b, end, lane, ""), "");
}

/* -- packing ----------------------------------------------------------------------------------------------------------- */

typedef struct { cpu_gemm_pack_class class; fused_code *code; } pack_request;

static LLVMValueRef load_operand(void *context, const cpu_gemm_source *at)
{
    fused_site *s = context;
    const kl_loop *loop = &s->code->x->loop;
    int expr = loop->outputs[0].expr;
    go_to(s, at->vector, at->user, at->batch, at->along_k ? at->line : at->k, at->along_k ? at->k : at->line, at->mask);
    cpu_value x = cpu_eval(&s->e, expr);
    if (x.bits && LLVMGetTypeKind(LLVMTypeOf(x.bits)) == LLVMVectorTypeKind)
        return x.bits;
    return cpu_eval_vector(&s->e, expr);
}

static void emit_pack(const void *context, const cpu_machine *machine, LLVMModuleRef module, const char *name)
{
    const pack_request *request = context;
    cpu_gemm_pack_class class = request->class;
    class.isa = machine->isa;
    if (!request->code) {
        cpu_gemm_emit_pack(module, &class, name);
        return;
    }
    fused_site site = begin_site(request->code);
    class.prologue = &(cpu_gemm_prologue){ &site, load_operand };
    cpu_gemm_emit_pack(module, &class, name);
    end_site(&site);
}

static int request_pack(cpu_compiler *c, const cpu_gemm_pack_class *class, fused_code *code)
{
    pack_request *request = ARENA_NEW(c->arena, pack_request, 1);
    base_text key = {0};
    *request = (pack_request){ *class, code };
    base_text_add(&key, "gemm pack %s %s along %s%s", class->side == CPU_GEMM_A ? "a" : "b", ir_dtype_name(class->dtype),
                  class->along_k ? "k" : "lines", class->unit_stride ? "" : " apart");
    if (code) {
        base_text_add(&key, " of\n");
        cpu_expressions_key(&key, code->x);
    } else if (class->source != class->dtype) {
        base_text_add(&key, " from %s", ir_dtype_name(class->source));
    }
    int squares = class->side == CPU_GEMM_B && class->along_k ? 16 : 2;
    int id = cpu_request_code(c, key.at, (class->unit_stride ? 1 : 16) * (60 + squares * (10 + (code ? 4 * code->cost : 0))), emit_pack, request);
    base_text_free(&key);
    return id;
}

/* -- micro-kernels and epilogue ------------------------------------------------------------------------------------------ */

typedef struct { ir_dtype dtype, c; int narrow; bool direct; } micro_request;      /* narrow: their columns; 0: those of whole vectors; direct: to c */

/* The micro-kernels have names of their own; the function that was asked for does nothing. */
static void emit_micro(const void *context, const cpu_machine *machine, LLVMModuleRef module, const char *name)
{
    const micro_request *request = context;
    LLVMContextRef llvm = LLVMGetModuleContext(module);
    LLVMBuilderRef b = LLVMCreateBuilderInContext(llvm);
    LLVMPositionBuilderAtEnd(b, LLVMAppendBasicBlockInContext(llvm, LLVMAddFunction(module, name, cpu_task_type(module)), ""));
    LLVMBuildRetVoid(b);
    LLVMDisposeBuilder(b);
    if (request->direct)
        cpu_gemm_emit_direct(module, machine->isa, request->dtype, request->c);
    else if (request->narrow)
        cpu_gemm_emit_narrow(module, machine->isa, request->dtype, request->narrow);
    else
        cpu_gemm_emit_micro(module, machine->isa, request->dtype);
}

static int request_micro(cpu_compiler *c, ir_dtype dtype, int narrow)
{
    micro_request *request = ARENA_NEW(c->arena, micro_request, 1);
    const char *columns = narrow ? base_arena_text(c->arena, " x%d", narrow) : "";
    *request = (micro_request){ .dtype = dtype, .narrow = narrow };
    return cpu_request_code(c, base_arena_text(c->arena, "gemm micro %s%s", ir_dtype_name(dtype), columns), narrow ? 500 : 1500, emit_micro, request);
}

static int request_direct(cpu_compiler *c, ir_dtype dtype, ir_dtype to)
{
    micro_request *request = ARENA_NEW(c->arena, micro_request, 1);
    *request = (micro_request){ .dtype = dtype, .c = to, .direct = true };
    return cpu_request_code(c, base_arena_text(c->arena, "gemm micro %s to %s", ir_dtype_name(dtype), ir_dtype_name(to)), 300, emit_micro, request);
}

typedef struct { ir_dtype dtype; fused_code *code; } epilogue_request;

static void finish_element(void *context, const cpu_gemm_place *at, LLVMValueRef sum, LLVMValueRef *columns, LLVMValueRef *rows)
{
    fused_site *s = context;
    const kl_loop *loop = &s->code->x->loop;
    int n = 0;
    (void)rows;
    go_to(s, at->vector, at->user, at->batch, at->row, at->column, at->mask);
    for (int i = 0; i < loop->n_exprs; i++)
        if (loop->exprs[i].kind == KL_PRODUCT)
            s->e.values[i] = (cpu_value){ .value = sum };
    for (int i = 0; i < loop->n_outputs; i++)              /* an output may take the place of what another one reads */
        cpu_eval(&s->e, loop->outputs[i].expr);
    for (int i = 0; i < loop->n_outputs; i++)
        if (loop->outputs[i].kind == KL_STORE)
            cpu_emit_store(&s->e, i, false);
        else
            columns[n++] = cpu_eval_vector(&s->e, loop->outputs[i].expr);
}

static int count_sums(const kl_loop *c)
{
    int n = 0;
    for (int i = 0; i < c->n_outputs; i++)
        n += c->outputs[i].kind != KL_STORE;
    return n;
}

static void emit_epilogue(const void *context, const cpu_machine *machine, LLVMModuleRef module, const char *name)
{
    const epilogue_request *request = context;
    fused_site site = begin_site(request->code);
    cpu_gemm_finish finish = { .context = &site, .column_sums = count_sums(&request->code->x->loop), .element = finish_element };
    cpu_gemm_emit_epilogue(module, machine->isa, request->dtype, &finish, name);
    end_site(&site);
}

static int request_epilogue(cpu_compiler *c, ir_dtype dtype, fused_code *code)
{
    epilogue_request *request = ARENA_NEW(c->arena, epilogue_request, 1);
    base_text key = {0};
    *request = (epilogue_request){ dtype, code };
    base_text_add(&key, "gemm epilogue %s\n", ir_dtype_name(dtype));
    cpu_expressions_key(&key, code->x);
    int id = cpu_request_code(c, key.at, 80 + 24 * code->cost, emit_epilogue, request);
    base_text_free(&key);
    return id;
}

/* -- what it takes ------------------------------------------------------------------------------------------------------- */

bool cpu_gemm_takes_epilogue(const kl_contraction *p)
{
    ir_dtype sum = p->dtype == IR_F64 ? IR_F64 : IR_F32;
    int sums = count_sums(&p->c), row = p->n_batch, column = row + 1;
    int64_t elements = kl_matrices(p) * p->m * p->n;
    for (int i = 0; i < p->c.n_outputs; i++) {
        const kl_output *o = &p->c.outputs[i];
        const kl_expr *e = &p->c.exprs[o->expr];
        if (o->kind == KL_STORE && e->row && p->n != 1 && o->view.stride[column] == 0)
            return false;                                  /* once a row */
        if (o->kind != KL_STORE && (e->dtype != sum || o->view.n_dynamic))
            return false;
        if (o->kind == KL_SUM_ALL && e->row)
            return false;
    }
    return sums <= CPU_GEMM_SUMS && (sums == 0 || elements > 0);
}

/* -- running ------------------------------------------------------------------------------------------------------------- */

typedef struct { int request; fused_code *code; int base, view; } piece;     /* base, view: among the arguments; -1 */

/* A kernel: what its tasks fill with the places of this run. */
typedef struct {
    cpu_gemm gemm;
    piece a, b, epilogue;
    ir_dtype c;                                            /* of what direct stores */
    int micro, narrow, direct;                             /* requests; narrow: where the plan has it; direct: -1 where more than C is made */
    int sum_at[CPU_GEMM_SUMS], touched_at[CPU_GEMM_TOUCHED], workspace_at;
    int64_t chunk[CPU_GEMM_PHASES];                        /* tasks of the product in one task of the kernel */
} product;

static void run_phase(const int64_t *args, char *const *buffers, int64_t task, char *scratch, int phase)
{
    const product *p = (const product *)(uintptr_t)args[0];
    cpu_gemm gemm = p->gemm;
    fused_user a = { args + MAX(p->a.base, 0), buffers }, b = { args + MAX(p->b.base, 0), buffers }, epilogue = { args + p->epilogue.base, buffers };
    gemm.a.user = &a;
    gemm.b.user = &b;
    gemm.user = &epilogue;
    if (p->a.view >= 0)
        gemm.a.at = cpu_pointer(args, buffers, p->a.view);
    if (p->b.view >= 0)
        gemm.b.at = cpu_pointer(args, buffers, p->b.view);
    for (int i = 0; i < gemm.n_touched; i++)
        gemm.touched[i].at = cpu_pointer(args, buffers, p->touched_at[i]);
    for (int i = 0; i < gemm.plan.shape.column_sums; i++)
        gemm.sums[i].to = cpu_pointer(args, buffers, p->sum_at[i]);
    if (p->workspace_at >= 0)
        gemm.workspace = cpu_pointer(args, buffers, p->workspace_at);
    int64_t first = task * p->chunk[phase], end = MIN(first + p->chunk[phase], gemm.plan.tasks[phase]);
    for (int64_t i = first; i < end; i++)
        cpu_gemm_run(&gemm, phase, i, scratch);
}

static void run_first(const int64_t *args, char *const *buffers, int64_t task, char *scratch) { run_phase(args, buffers, task, scratch, 0); }
static void run_second(const int64_t *args, char *const *buffers, int64_t task, char *scratch) { run_phase(args, buffers, task, scratch, 1); }
static void run_third(const int64_t *args, char *const *buffers, int64_t task, char *scratch) { run_phase(args, buffers, task, scratch, 2); }

static void link_product(cpu_plan *plan, const cpu_linked *linked)
{
    product *p = plan->context;
    cpu_gemm_code *code = &p->gemm.code;
    cpu_gemm_find_micro(code, linked->code[p->micro], p->gemm.plan.shape.isa, p->gemm.plan.shape.dtype);
    if (p->gemm.plan.narrow)
        cpu_gemm_find_narrow(code, linked->code[p->narrow], p->gemm.plan.shape.isa, p->gemm.plan.shape.dtype, p->gemm.plan.narrow);
    if (p->direct >= 0)
        cpu_gemm_find_direct(code, linked->code[p->direct], p->gemm.plan.shape.dtype, p->c);
    if (p->a.request >= 0)
        memcpy(&code->pack_a, &linked->address[p->a.request], sizeof(void *));
    if (p->b.request >= 0)
        memcpy(&code->pack_b, &linked->address[p->b.request], sizeof(void *));
    memcpy(&code->epilogue, &linked->address[p->epilogue.request], sizeof(void *));
}

/* -- planning: operands ---------------------------------------------------------------------------------------------------- */

/* An operand: its axes are batch..., line and k, whichever of the two comes last. */
typedef struct { const kl_loop *loop; int line, k; const kl_view *load; cpu_gemm_pack_class class; cpu_gemm_layout layout; } operand;

/* The load that is all of the operand, but for a cast between floats. */
static const kl_expr *plain_load(const kl_loop *loop)
{
    const kl_expr *e = &loop->exprs[loop->outputs[0].expr];
    if (e->kind == KL_OP && e->op == OP_cast && ir_dtype_is_float(e->dtype)) {
        const kl_expr *from = &loop->exprs[e->args[0]];
        bool known = (e->dtype == IR_BF16 && from->dtype == IR_F32) || (e->dtype == IR_F32 && from->dtype == IR_BF16);
        e = known ? from : e;
    }
    return e->kind == KL_LOAD && e->view.n_dynamic == 0 ? e : NULL;
}

/* For how many of the loads neighbours along this axis are neighbours in memory, less those for which they are not. */
static int side_by_side(const kl_loop *loop, int axis)
{
    int n = 0;
    for (int i = 0; i < loop->n_exprs; i++) {
        int64_t stride = loop->exprs[i].view.stride[axis];
        if (loop->exprs[i].kind == KL_LOAD && stride != 0 && loop->extent[axis] > 1)
            n += stride == 1 ? 1 : -1;
    }
    return n;
}

static operand operand_of(const kl_contraction *p, cpu_gemm_side side)
{
    operand o = { .loop = side == CPU_GEMM_A ? &p->a : &p->b, .line = p->n_batch + (side == CPU_GEMM_B), .k = p->n_batch + (side == CPU_GEMM_A) };
    const kl_expr *load = plain_load(o.loop);
    o.class = (cpu_gemm_pack_class){ .dtype = p->dtype, .side = side, .source = load ? load->dtype : p->dtype };
    if (load) {
        int64_t line = load->view.stride[o.line], k = load->view.stride[o.k];
        bool lines_touch = line == 1 || o.loop->extent[o.line] == 1;
        o.load = &load->view;
        o.class.along_k = k == 1 || !lines_touch;
        o.class.unit_stride = k == 1 || lines_touch;
    } else {
        o.class.along_k = side_by_side(o.loop, o.k) >= side_by_side(o.loop, o.line);
    }
    o.layout = (cpu_gemm_layout){ load && load->dtype == p->dtype, o.class.along_k, o.class.unit_stride,
                                  load ? load->view.stride[o.line] * ir_dtype_bytes(load->dtype) : 0 };
    return o;
}

/* The loop with the axis that lanes run along last. */
static kl_loop with_lanes_last(base_arena *arena, const operand *o)
{
    kl_loop loop = *o->loop;
    int last = loop.n_axes - 1;
    loop.exprs = ARENA_NEW(arena, kl_expr, loop.n_exprs);
    memcpy(loop.exprs, o->loop->exprs, sizeof(kl_expr) * (size_t)loop.n_exprs);
    if ((o->class.along_k ? o->k : o->line) == last)
        return loop;
    for (int i = -1; i < loop.n_exprs; i++) {
        int64_t *at = i < 0 ? loop.extent : loop.exprs[i].view.stride, moved = at[last];
        at[last] = at[last - 1];
        at[last - 1] = moved;
    }
    return loop;
}

/* Where the operand is, by its arguments, or the prologue's code. */
static cpu_gemm_operand place_operand(cpu_compiler *c, cpu_plan *plan, operand *o, piece *piece)
{
    cpu_gemm_operand to = { .element_bytes = ir_dtype_bytes(o->class.source) };
    piece->view = piece->base = piece->request = -1;
    if (o->load) {
        piece->view = cpu_arg_view(c, plan, o->load, o->class.source);
        to.line_stride = o->load->stride[o->line];
        to.k_stride = o->load->stride[o->k];
        memcpy(to.batch_stride, o->load->stride, sizeof(int64_t) * (size_t)(o->loop->n_axes - 2));
        return to;
    }
    kl_loop loop = with_lanes_last(c->arena, o);
    piece->base = plan->n_args;
    piece->code = plan_fused(c, plan, &loop);
    o->class.unit_stride = o->layout.unit_stride = !piece->code->apart;
    return to;
}

/* -- planning: C ------------------------------------------------------------------------------------------------------------ */

static void add_touched(cpu_compiler *c, cpu_plan *plan, product *p, const kl_loop *loop, const kl_view *view, ir_dtype dtype)
{
    int column = loop->n_axes - 1, row = column - 1, n = p->gemm.n_touched;
    if (n == CPU_GEMM_TOUCHED || view->n_dynamic || view->stride[column] != 1 || (view->stride[row] == 0 && loop->extent[row] > 1))
        return;
    for (int i = 0; i < n; i++)                            /* one that is read and written is fetched once */
        if (plan->args[p->touched_at[i]] == view->buffer && plan->args[p->touched_at[i] + 1] == view->offset * ir_dtype_bytes(dtype))
            return;
    p->touched_at[n] = cpu_arg_view(c, plan, view, dtype);
    cpu_gemm_operand *to = &p->gemm.touched[p->gemm.n_touched++];
    *to = (cpu_gemm_operand){ .line_stride = view->stride[row], .k_stride = 1, .element_bytes = ir_dtype_bytes(dtype) };
    memcpy(to->batch_stride, view->stride, sizeof(int64_t) * (size_t)row);
}

static void plan_epilogue(cpu_compiler *c, cpu_plan *plan, const kl_loop *loop, product *p)
{
    int sums = 0;
    p->epilogue.base = plan->n_args;
    p->epilogue.code = plan_fused(c, plan, loop);
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *o = &loop->outputs[i];
        ir_dtype dtype = loop->exprs[o->expr].dtype;
        if (o->kind == KL_STORE) {
            add_touched(c, plan, p, loop, &o->view, dtype);
            continue;
        }
        p->sum_at[sums] = cpu_arg_view(c, plan, &o->view, dtype);
        p->gemm.sums[sums++] = (cpu_gemm_sum){ .stride = o->view.stride[loop->n_axes - 1], .accumulate = o->accumulate, .all = o->kind == KL_SUM_ALL };
    }
    for (int i = 0; i < loop->n_exprs; i++)
        if (loop->exprs[i].kind == KL_LOAD)
            add_touched(c, plan, p, loop, &loop->exprs[i].view, loop->exprs[i].dtype);
}

/* Whether the product, rounded perhaps, is stored and nothing more: what micro-kernels can do. */
static bool is_plain_store(const kl_loop *c)
{
    const kl_output *o = &c->outputs[0];
    const kl_expr *e = &c->exprs[o->expr];
    if (c->n_outputs != 1 || o->kind != KL_STORE || o->accumulate)
        return false;
    if (e->kind == KL_OP && e->op == OP_cast && e->dtype == IR_BF16 && c->exprs[e->args[0]].dtype == IR_F32)
        e = &c->exprs[e->args[0]];
    return e->kind == KL_PRODUCT;
}

/* Nanoseconds of a phase on one core: products near the peak, everything else in vectors. */
static double work_of(const product *p, int phase, const cpu_gemm_tile_shape *tile)
{
    const cpu_gemm_shape *s = &p->gemm.plan.shape;
    double elements = (double)s->batch * (double)s->m * (double)s->n, per_ns = 14 * tile->lanes * cpu_gemm_unit_of(s->isa, s->dtype).k_per_unit;
    switch (phase + p->gemm.plan.first_phase) {
    case 0:  return (double)s->batch * (double)s->k * 0.4 *
                    (double)((p->gemm.plan.b_way == CPU_GEMM_SHARED ? s->n : 0) + (p->gemm.plan.a_way == CPU_GEMM_SHARED ? s->m : 0));
    case 1:  return elements * (2 * (double)s->k / per_ns + 0.3 * (2 + p->epilogue.code->cost) / tile->lanes) + 100 * (double)s->batch;
    default: return (double)s->column_sums * (double)s->n * (double)(s->batch * p->gemm.plan.row_tasks);
    }
}

static const char *way_name(cpu_gemm_way way)
{
    static const char *const names[] = { [CPU_GEMM_DIRECT] = "in place", [CPU_GEMM_LOCAL] = "packed", [CPU_GEMM_SHARED] = "packed for all" };
    return names[way];
}

bool cpu_gemm_plan_contraction(cpu_compiler *c, const kl_kernel *kernel, cpu_plan *plan)
{
    static cpu_task *const phases[CPU_GEMM_PHASES] = { run_first, run_second, run_third };
    const kl_contraction *s = &kernel->contraction;
    product *p = ARENA_NEW(c->arena, product, 1);
    cpu_isa isa = c->machine->isa;
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, s->dtype);
    CHECK(cpu_gemm_takes_epilogue(s), "kernel %d: expected an epilogue that a tile can end in", kernel->id);
    cpu_arg(c, plan, (int64_t)(uintptr_t)p);
    operand a = operand_of(s, CPU_GEMM_A), b = operand_of(s, CPU_GEMM_B);
    p->gemm.a = place_operand(c, plan, &a, &p->a);
    p->gemm.b = place_operand(c, plan, &b, &p->b);
    plan_epilogue(c, plan, &s->c, p);

    cpu_gemm_shape shape = { .isa = isa, .dtype = s->dtype, .a = a.layout, .b = b.layout, .column_sums = count_sums(&s->c), .batch = kl_matrices(s),
                             .m = s->m, .n = s->n, .k = s->k };
    p->gemm.batch_axes = s->n_batch;
    for (int i = 0; i < s->n_batch; i++)
        p->gemm.batch[i] = s->batch[i];
    if (shape.batch * s->m * s->n == 0)
        return true;
    p->gemm.plan = cpu_gemm_make_plan(&shape, c->machine, &cpu_gemm_default_tuning);
    const cpu_gemm_plan *g = &p->gemm.plan;
    p->micro = request_micro(c, s->dtype, 0);
    if (g->narrow)
        p->narrow = request_micro(c, s->dtype, g->narrow);
    if (g->a_way != CPU_GEMM_DIRECT)
        p->a.request = request_pack(c, &a.class, p->a.code);
    if (g->b_way != CPU_GEMM_DIRECT)
        p->b.request = request_pack(c, &b.class, p->b.code);
    p->direct = -1;
    if (p->gemm.n_touched == 1 && is_plain_store(&s->c) && !g->has_tiles && g->depth_blocks == 1 && s->m >= tile.heights[0] && s->n >= tile.columns) {
        p->c = s->c.exprs[s->c.outputs[0].expr].dtype;
        p->direct = request_direct(c, s->dtype, p->c);
    }
    p->epilogue.request = request_epilogue(c, s->dtype, p->epilogue.code);
    p->workspace_at = g->workspace_bytes ? cpu_arg_workspace(c, plan, 0) : -1;
    plan->workspace_bytes = g->workspace_bytes;
    plan->scratch_bytes = g->scratch_bytes;
    for (int i = 0; i < g->phases; i++) {
        double work = work_of(p, i, &tile), per_task = work / (double)MAX(g->tasks[i], 1);
        p->chunk[i] = MAX((int64_t)(c->grain.task_ns / MAX(per_task, 1)), 1);
        plan->phases[plan->n_phases++] = (cpu_phase){ .function = -1, .code = phases[i], .tasks = base_divide_up(g->tasks[i], p->chunk[i]), .work = work };
    }
    plan->link = link_product;
    plan->context = p;
    plan->how = base_arena_text(c->arena, "generated %dx%d, a %s, b %s", tile.heights[0], tile.columns, way_name(g->a_way), way_name(g->b_way));
    return true;
}
