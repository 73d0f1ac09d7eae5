/* Packing: copies a block of an operand into the order in which the micro-kernel reads it, through the caller's prologue.
 *
 * Which order is best follows from how the operand lies in memory:
 *
 *   A, K side by side       rows:   as it lies. The micro-kernel reads one element of each row at a time, and rows that are
 *                                   near each other in memory serve it as well as panels; so nothing is transposed, and
 *                                   without a prologue nothing is packed at all.
 *   A, rows side by side    panels of as many rows as are whole tiles and whole vectors, copied.
 *   B, columns side by side panels of the tile's columns, copied.
 *   B, K side by side       panels, by transposing squares of as many units as a vector has lanes.
 *
 * With pairs (bf16 for dpbf16ps) the unit of all this is two elements next to each other in K: neighbours already where K
 * lies side by side, else two rows interleaved. A last odd k is paired with zero. */
#include "backend_cpu/gemm_emit.h"

enum { MAX_LANES = 16 };

typedef struct {
    emitter e;
    const cpu_gemm_pack_class *class;
    bool pairs;
    int element_bytes, unit_bytes;               /* as packed */
    value user, source, line_stride, k_stride, batch, line, lines, k, depth, to, to_stride;    /* of cpu_gemm_block */
} packer;

/* -- loads ----------------------------------------------------------------------------------------------------------- */

static LLVMTypeRef memory_type(LLVMContextRef context, ir_dtype dtype)
{
    switch (dtype) {
    case IR_F32:  return LLVMFloatTypeInContext(context);
    case IR_F64:  return LLVMDoubleTypeInContext(context);
    case IR_BF16: return LLVMInt16TypeInContext(context);
    case IR_I32: case IR_BOOL: case IR_TUPLE: break;
    }
    CHECK(false, "expected a floating dtype, got %s", ir_dtype_name(dtype));
    return NULL;
}

value cpu_gemm_load_plain(void *context, const cpu_gemm_source *at)
{
    (void)context;
    const cpu_vector_env *v = at->vector;
    LLVMTypeRef element = memory_type(v->context, at->source_dtype), i32 = LLVMInt32TypeInContext(v->context);
    value lane_stride = at->along_k ? at->k_stride : at->line_stride, one = LLVMConstInt(LLVMTypeOf(at->k), 1, 0);
    value line = LLVMBuildMul(v->builder, at->line, at->along_k || !at->unit_stride ? at->line_stride : one, "");
    value k = LLVMBuildMul(v->builder, at->k, !at->along_k || !at->unit_stride ? at->k_stride : one, "");
    value offset = LLVMBuildAdd(v->builder, line, k, "");
    value pointer = LLVMBuildGEP2(v->builder, element, at->source, &offset, 1, "");
    if (at->unit_stride)
        return cpu_vload(v, element, pointer, at->mask);

    /* Lanes that do not exist read the last one that does. */
    value x = LLVMGetPoison(cpu_vtype(v, element)), last = LLVMBuildSub(v->builder, at->count, one, "");
    value none = LLVMBuildICmp(v->builder, LLVMIntSLT, last, LLVMConstNull(LLVMTypeOf(last)), "");
    value zero = LLVMConstNull(LLVMTypeOf(last));
    if (at->mask)                                /* without a lane, the first element of the operand: it always exists */
        pointer = LLVMBuildSelect(v->builder, none, at->source, pointer, "");
    for (int i = 0; i < v->lanes; i++) {
        value lane = LLVMConstInt(LLVMTypeOf(at->k), (unsigned)i, 0);
        if (at->mask) {
            value within = LLVMBuildICmp(v->builder, LLVMIntSLT, lane, last, "");
            lane = LLVMBuildSelect(v->builder, none, zero, LLVMBuildSelect(v->builder, within, lane, last, ""), "");
        }
        value step = LLVMBuildMul(v->builder, lane, lane_stride, "");
        value y = LLVMBuildLoad2(v->builder, element, LLVMBuildGEP2(v->builder, element, pointer, &step, 1, ""), "");
        x = LLVMBuildInsertElement(v->builder, x, y, LLVMConstInt(i32, (unsigned)i, 0), "");
    }
    return x;
}

/* The elements of the operand from (line, k) on, counted from the block's beginning, as they are packed: f32, f64, or i16 for
 * pairs. Lanes from count on read as zero; count NULL: all exist. */
static value load_lanes(packer *p, value line, value k, value count)
{
    const cpu_gemm_pack_class *class = p->class;
    const cpu_vector_env *v = &p->e.v;
    if (count) {
        value zero = constant(&p->e, 0);
        count = LLVMBuildSelect(v->builder, is_less(&p->e, count, zero), zero, count, "");
    }
    cpu_gemm_source at = {
        .vector = v, .user = p->user, .source = p->source, .line_stride = p->line_stride, .k_stride = p->k_stride,
        .batch = p->batch, .line = iadd(&p->e, p->line, line), .k = iadd(&p->e, p->k, k), .along_k = class->along_k,
        .count = count ? count : constant(&p->e, v->lanes), .mask = count ? cpu_vmask(v, count) : NULL,
        .source_dtype = class->source, .unit_stride = class->unit_stride };
    value x = class->prologue ? class->prologue->load(class->prologue->context, &at) : cpu_gemm_load_plain(NULL, &at);

    LLVMTypeRef type = LLVMTypeOf(x);
    bool half = LLVMGetTypeKind(LLVMGetElementType(type)) == LLVMIntegerTypeKind;
    if (class->dtype == IR_BF16 && !half)
        x = cpu_vbf16_from_f32(v, x), half = true;
    if (half && !p->pairs)
        x = cpu_vf32_from_bf16(v, x);
    if (at.mask)
        x = LLVMBuildSelect(v->builder, at.mask, x, LLVMConstNull(LLVMTypeOf(x)), "");
    return x;
}

static void store_units(packer *p, value x, value to)
{
    LLVMSetAlignment(LLVMBuildStore(p->e.v.builder, x, to), (unsigned)p->element_bytes);
}

/* Emits what work emits once where masks cost nothing, else twice: for blocks in which all lanes exist, and for the last.
 * remaining: how many elements there are from here; full: how many a round of work takes. */
static void with_or_without_masks(packer *p, value remaining, int full, void (*work)(packer *p, value remaining, void *context), void *context)
{
    if (p->e.v.isa >= CPU_AVX512 && p->class->unit_stride) {
        work(p, remaining, context);
        return;
    }
    block all = new_block(&p->e), some = new_block(&p->e), after = new_block(&p->e);
    LLVMBuildCondBr(p->e.v.builder, is_less(&p->e, remaining, constant(&p->e, full)), some, all);
    go_on_at(&p->e, all);
    work(p, NULL, context);
    LLVMBuildBr(p->e.v.builder, after);
    go_on_at(&p->e, some);
    work(p, remaining, context);
    LLVMBuildBr(p->e.v.builder, after);
    go_on_at(&p->e, after);
}

/* -- rows ------------------------------------------------------------------------------------------------------------ */

typedef struct { value line, k; } place;

static void copy_row_lanes(packer *p, value remaining, void *context)
{
    place *at = context;
    value to = advance(&p->e, p->to, imul(&p->e, at->line, p->to_stride));
    to = advance(&p->e, to, imul_constant(&p->e, at->k, p->element_bytes));
    store_units(p, load_lanes(p, at->line, at->k, remaining), to);
}

static void emit_rows(packer *p)
{
    int lanes = p->e.v.lanes;
    counted_loop lines = begin_loop(&p->e, constant(&p->e, 0), p->lines, 1);
    counted_loop depth = begin_loop(&p->e, constant(&p->e, 0), p->depth, lanes);
    with_or_without_masks(p, isub(&p->e, p->depth, depth.i), lanes, copy_row_lanes, &(place){lines.i, depth.i});
    end_loop(&p->e, &depth);
    end_loop(&p->e, &lines);
}

/* -- panels, lines side by side -------------------------------------------------------------------------------------- */

typedef struct { value line; int width, vectors; } panel;

/* The elements of a panel some steps of k further on: rows far apart in memory, which no prefetcher foresees. Addresses
 * beyond the operand do no harm. */
static void prefetch_ahead(packer *p, value line, value k, int lines)
{
    enum { STEPS = 16 };
    const emitter *e = &p->e;
    LLVMTypeRef element = memory_type(e->v.context, p->class->source);
    int bytes = ir_dtype_bytes(p->class->source);
    value row = imul(e, iadd_constant(e, iadd(e, p->k, k), STEPS), p->k_stride);
    value offset = iadd(e, iadd(e, p->line, line), row);
    value at = LLVMBuildGEP2(e->v.builder, element, p->source, &offset, 1, "");
    for (int byte = 0; byte < lines * bytes; byte += 64)
        prefetch(e, advance(e, at, constant(e, byte)));
}

/* Units k, of all lines of a panel. */
static void copy_panel(packer *p, value remaining, void *context)
{
    const emitter *e = &p->e;
    LLVMBuilderRef builder = e->v.builder;
    panel *at = context;
    int step = p->pairs ? 2 : 1, lanes = e->v.lanes;
    value to = advance(e, p->to, imul(e, LLVMBuildSDiv(builder, at->line, constant(e, at->width), ""), p->to_stride));
    value last = isub(e, p->depth, constant(e, 1));

    counted_loop depth = begin_loop(e, constant(e, 0), p->depth, step);
    value unit = p->pairs ? LLVMBuildLShr(builder, depth.i, constant(e, 1), "") : depth.i;
    value row = advance(e, to, imul_constant(e, unit, at->width * p->unit_bytes));
    if (!p->class->prologue)
        prefetch_ahead(p, at->line, depth.i, at->vectors * lanes);
    for (int j = 0; j < at->vectors; j++) {
        value line = iadd_constant(e, at->line, j * lanes), count = remaining ? isub(e, remaining, constant(e, j * lanes)) : NULL;
        value x = load_lanes(p, line, depth.i, count);
        if (p->pairs) {
            value second = iadd_constant(e, depth.i, 1), wide = cpu_vconst(&e->v, x, 0);
            value y = load_lanes(p, line, lesser(e, second, last), count);
            y = LLVMBuildSelect(builder, is_less(e, second, p->depth), y, wide, "");
            LLVMTypeRef i32 = cpu_vtype(&e->v, e->i32);
            value high = LLVMBuildZExt(builder, y, i32, "");
            high = LLVMBuildShl(builder, high, cpu_vconst(&e->v, high, 16), "");
            x = LLVMBuildOr(builder, LLVMBuildZExt(builder, x, i32, ""), high, "");
        }
        store_units(p, x, advance(e, row, constant(e, j * lanes * p->unit_bytes)));
    }
    end_loop(e, &depth);
}

static void emit_panels(packer *p, int width, int vectors)
{
    counted_loop lines = begin_loop(&p->e, constant(&p->e, 0), p->lines, width);
    with_or_without_masks(p, isub(&p->e, p->lines, lines.i), vectors * p->e.v.lanes, copy_panel, &(panel){lines.i, width, vectors});
    end_loop(&p->e, &lines);
}

/* -- panels, K side by side ------------------------------------------------------------------------------------------ */

/* Lanes of a followed by b, by number. */
static value shuffle(const emitter *e, value a, value b, const int *from)
{
    value index[MAX_LANES];
    for (int i = 0; i < e->v.lanes; i++)
        index[i] = LLVMConstInt(e->i32, (unsigned)from[i], 0);
    return LLVMBuildShuffleVector(e->v.builder, a, b, LLVMConstVector(index, (unsigned)e->v.lanes), "");
}

/* rows[i] lane j <-> rows[j] lane i. Step s exchanges bit s of row and lane numbers: of two rows 2^s apart, the blocks of 2^s
 * lanes off the diagonal. log2(lanes) steps of one shuffle a row. */
static void transpose(const emitter *e, value *rows)
{
    int lanes = e->v.lanes;
    for (int s = 1; s < lanes; s *= 2)
        for (int i = 0; i < lanes; i++) {
            if (i & s)
                continue;
            int low[MAX_LANES], high[MAX_LANES];
            for (int j = 0; j < lanes; j++) {
                low[j] = j & s ? lanes + j - s : j;
                high[j] = j & s ? lanes + j : j + s;
            }
            value a = rows[i], b = rows[i + s];
            rows[i] = shuffle(e, a, b, low);
            rows[i + s] = shuffle(e, a, b, high);
        }
}

/* As many units along K as there are lanes, of as many lines. */
static void transpose_square(packer *p, value remaining, void *context)
{
    const emitter *e = &p->e;
    place *at = context;
    int lanes = e->v.lanes, columns = cpu_gemm_tile_of(e->v.isa, p->class->dtype).columns;
    value rows[MAX_LANES], last = isub(e, p->lines, constant(e, 1));
    for (int i = 0; i < lanes; i++) {            /* lines that do not exist repeat the last: nobody looks at their columns */
        value line = lesser(e, iadd_constant(e, at->line, i), last);
        rows[i] = load_lanes(p, line, at->k, remaining);
        if (p->pairs) {
            value more = remaining ? isub(e, remaining, constant(e, lanes)) : NULL;
            value high = load_lanes(p, line, iadd_constant(e, at->k, lanes), more), index[2 * MAX_LANES];
            for (int j = 0; j < 2 * lanes; j++)
                index[j] = LLVMConstInt(e->i32, (unsigned)j, 0);
            value both = LLVMBuildShuffleVector(e->v.builder, rows[i], high, LLVMConstVector(index, 2 * (unsigned)lanes), "");
            rows[i] = LLVMBuildBitCast(e->v.builder, both, cpu_vtype(&e->v, e->i32), "");
        }
    }
    transpose(e, rows);
    value width = constant(e, columns), unit = p->pairs ? LLVMBuildLShr(e->v.builder, at->k, constant(e, 1), "") : at->k;
    value to = advance(e, p->to, imul(e, LLVMBuildSDiv(e->v.builder, at->line, width, ""), p->to_stride));
    to = advance(e, to, imul_constant(e, LLVMBuildSRem(e->v.builder, at->line, width, ""), p->unit_bytes));
    to = advance(e, to, imul_constant(e, unit, columns * p->unit_bytes));
    for (int i = 0; i < lanes; i++)
        store_units(p, rows[i], advance(e, to, constant(e, i * columns * p->unit_bytes)));
}

static void emit_transposed_panels(packer *p)
{
    int lanes = p->e.v.lanes, step = lanes * (p->pairs ? 2 : 1);
    counted_loop lines = begin_loop(&p->e, constant(&p->e, 0), p->lines, lanes);
    counted_loop depth = begin_loop(&p->e, constant(&p->e, 0), p->depth, step);
    with_or_without_masks(p, isub(&p->e, p->depth, depth.i), step, transpose_square, &(place){lines.i, depth.i});
    end_loop(&p->e, &depth);
    end_loop(&p->e, &lines);
}

/* -- the function ---------------------------------------------------------------------------------------------------- */

value cpu_gemm_emit_pack(LLVMModuleRef module, const cpu_gemm_pack_class *class, const char *name)
{
    packer p = {.e = begin_function(module, class->isa, class->dtype, name, "p"), .class = class};
    const emitter *e = &p.e;
    value record = LLVMGetParam(e->function, 0);
    cpu_gemm_unit unit = cpu_gemm_unit_of(class->isa, class->dtype);
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(class->isa, class->dtype);
    p.pairs = unit.k_per_unit == 2;
    p.unit_bytes = unit.bytes;
    p.element_bytes = unit.bytes / unit.k_per_unit;
    p.source = POINTER_FIELD(e, record, cpu_gemm_block, source);
    p.line_stride = FIELD(e, record, cpu_gemm_block, line_stride);
    p.k_stride = FIELD(e, record, cpu_gemm_block, k_stride);
    p.user = POINTER_FIELD(e, record, cpu_gemm_block, user);
    p.batch = FIELD(e, record, cpu_gemm_block, batch);
    p.line = FIELD(e, record, cpu_gemm_block, line);
    p.lines = FIELD(e, record, cpu_gemm_block, lines);
    p.k = FIELD(e, record, cpu_gemm_block, k);
    p.depth = FIELD(e, record, cpu_gemm_block, depth);
    p.to = POINTER_FIELD(e, record, cpu_gemm_block, to);
    p.to_stride = FIELD(e, record, cpu_gemm_block, to_stride);

    if (class->side == CPU_GEMM_A && class->along_k)
        emit_rows(&p);
    else if (class->side == CPU_GEMM_A)
        emit_panels(&p, cpu_gemm_a_panel(class->isa, class->dtype), cpu_gemm_a_panel(class->isa, class->dtype) / tile.lanes);
    else if (class->along_k)
        emit_transposed_panels(&p);
    else
        emit_panels(&p, tile.columns, tile.columns / tile.lanes);
    end_function(&p.e);
    return p.e.function;
}
