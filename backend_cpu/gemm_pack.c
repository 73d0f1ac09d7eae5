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
 * Tile registers want A by rows whatever it is in memory: rows side by side are transposed, too.
 *
 * With pairs (bf16 for dpbf16ps) the unit of all this is two elements next to each other in K: neighbours already where K
 * lies side by side, else two rows interleaved. A last odd k is paired with zero, and with tile registers K is filled up to whole
 * tiles. */
#include "backend_cpu/expressions.h"
#include "backend_cpu/gemm_emit.h"

typedef struct {
    emitter e;
    const cpu_gemm_pack_class *class;
    bool pairs, tiles;                           /* tiles: cpu_gemm_has_tiles */
    int element_bytes, unit_bytes;               /* as packed */
    value user, source, line_stride, k_stride, batch, line, lines, k, depth, to, to_stride;    /* of cpu_gemm_block */
    value square;                                /* room for as many vectors as lanes */
} packer;

/* -- loads ----------------------------------------------------------------------------------------------------------- */

static LLVMTypeRef memory_type(LLVMContextRef context, ir_dtype dtype)
{
    CHECK(ir_dtype_is_float(dtype), "expected a floating dtype, got %s", ir_dtype_name(dtype));
    return cpu_memory_type(context, dtype);
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

static value or_zero(packer *p, value mask, value x)
{
    return mask ? LLVMBuildSelect(p->e.v.builder, mask, x, LLVMConstNull(LLVMTypeOf(x)), "") : x;
}

/* The elements of the operand from (line, k) on, counted from the block's beginning, as they are in memory or as the prologue makes them:
 * f32, f64, or i16 that are bf16. Lanes from count on read as zero; count NULL: all exist. v: another number of lanes, for plain loads. */
static value load_as_is(packer *p, const cpu_vector_env *v, value line, value k, value count)
{
    const cpu_gemm_pack_class *class = p->class;
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
    return class->prologue || !class->unit_stride ? or_zero(p, at.mask, x) : x;      /* lanes that are off are loaded as zero */
}

static bool is_half(value x) { return LLVMGetTypeKind(LLVMGetElementType(LLVMTypeOf(x))) == LLVMIntegerTypeKind; }

/* As they are packed: f32, f64, or i16 for pairs. */
static value load_lanes(packer *p, value line, value k, value count)
{
    const cpu_vector_env *v = &p->e.v;
    value x = load_as_is(p, v, line, k, count);
    if (p->class->dtype == IR_BF16 && !is_half(x))
        x = cpu_vbf16_from_f32(v, x);
    return is_half(x) && !p->pairs ? cpu_vf32_from_bf16(v, x) : x;
}

/* Lanes of x, then of y: i16 that are bf16. Two vectors are rounded by one instruction. */
static value joined(packer *p, value x, value y)
{
    const cpu_vector_env *v = &p->e.v;
    value both = cpu_vlanes(v, x, y, 0, 2 * v->lanes);
    return is_half(both) ? both : cpu_vbf16_from_f32(v, both);
}

/* Where two vectors of bf16 are one in memory. */
static bool loads_double(const packer *p) { return !p->class->prologue && p->class->unit_stride && p->class->source == IR_BF16; }

/* Twice as many elements as there are lanes: i16 that are bf16. */
static value load_double(packer *p, value line, value k, value count)
{
    const emitter *e = &p->e;
    int lanes = e->v.lanes;
    cpu_vector_env v = e->v;
    v.lanes *= 2;
    if (loads_double(p))
        return load_as_is(p, &v, line, k, count);
    bool along_k = p->class->along_k;
    value x = load_as_is(p, &e->v, line, k, count), more = count ? isub(e, count, constant(e, lanes)) : NULL;
    value y = load_as_is(p, &e->v, along_k ? line : iadd_constant(e, line, lanes), along_k ? iadd_constant(e, k, lanes) : k, more);
    return joined(p, x, y);
}

/* Up to which k is written. */
static value padded_depth(const packer *p)
{
    const emitter *e = &p->e;
    int step = p->tiles ? CPU_GEMM_TILES_K : 1;
    return LLVMBuildAnd(e->v.builder, iadd_constant(e, p->depth, step - 1), constant(e, -step), "");
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

/* As many elements as there are lanes, or twice as many where those are one vector in memory and as packed. */
static bool copies_double(const packer *p) { return p->pairs && loads_double(p); }

static void copy_row_lanes(packer *p, value remaining, void *context)
{
    place *at = context;
    value to = advance(&p->e, p->to, imul(&p->e, at->line, p->to_stride));
    to = advance(&p->e, to, imul_constant(&p->e, at->k, p->element_bytes));
    store_units(p, copies_double(p) ? load_double(p, at->line, at->k, remaining) : load_lanes(p, at->line, at->k, remaining), to);
}

static void emit_rows(packer *p)
{
    int lanes = p->e.v.lanes * (copies_double(p) ? 2 : 1);
    counted_loop lines = begin_loop(&p->e, constant(&p->e, 0), p->lines, 1);
    counted_loop depth = begin_loop(&p->e, constant(&p->e, 0), padded_depth(p), lanes);
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
    const emitter *e = &p->e;
    enum { AHEAD = 64 };
    LLVMTypeRef element = memory_type(e->v.context, p->class->source);
    int bytes = ir_dtype_bytes(p->class->source);
    value row = imul(e, iadd_constant(e, iadd(e, p->k, k), AHEAD), p->k_stride);
    value offset = iadd(e, iadd(e, p->line, line), row);
    value at = LLVMBuildGEP2(e->v.builder, element, p->source, &offset, 1, "");
    for (int byte = 0; byte < lines * bytes; byte += 64)
        prefetch(e, advance(e, at, constant(e, byte)));
}

/* k and k + 1 of as many lines as there are lanes; unless both are known to exist, the second is zero where it does not. */
static value load_pairs(packer *p, value line, value k, value count, bool exist)
{
    const emitter *e = &p->e;
    LLVMBuilderRef builder = e->v.builder;
    value second = iadd_constant(e, k, 1), last = isub(e, p->depth, constant(e, 1));
    value x = load_as_is(p, &e->v, line, k, count), y = load_as_is(p, &e->v, line, exist ? second : lesser(e, second, last), count);
    if (!exist)
        y = LLVMBuildSelect(builder, is_less(e, second, p->depth), y, LLVMConstNull(LLVMTypeOf(y)), "");
    value both = joined(p, x, y);
    both = cpu_vinterleaved(&e->v, both, LLVMGetPoison(LLVMTypeOf(both)), 1, 0, e->v.lanes, 2 * e->v.lanes);
    return LLVMBuildBitCast(builder, both, cpu_vtype(&e->v, e->i32), "");
}

/* Of twice as many lines, both known to exist: whole vectors of memory are put together by two shuffles. */
static void store_double_pairs(packer *p, value line, value k, value count, value to)
{
    const emitter *e = &p->e;
    int lanes = e->v.lanes, bytes = lanes * p->unit_bytes;
    value x = load_double(p, line, k, count), y = load_double(p, line, iadd_constant(e, k, 1), count);
    for (int half = 0; half < 2; half++) {
        value pairs = cpu_vinterleaved(&e->v, x, y, 1, half * lanes, (2 + half) * lanes, 2 * lanes);
        store_units(p, pairs, advance(e, to, constant(e, half * bytes)));
    }
}

/* The units from k on that are known to exist, or may not, of all lines of a panel. */
static void copy_units(packer *p, const panel *at, value remaining, value to, value k, bool exist)
{
    const emitter *e = &p->e;
    int step = p->pairs ? 2 : 1, lanes = e->v.lanes;
    value unit = p->pairs ? LLVMBuildLShr(e->v.builder, k, constant(e, 1), "") : k;
    value row = advance(e, to, imul_constant(e, unit, at->width * p->unit_bytes));
    for (int i = 0; !p->class->prologue && !p->class->fetched && i < step; i++)
        prefetch_ahead(p, at->line, iadd_constant(e, k, i), at->vectors * lanes);
    for (int j = 0; j < at->vectors; j++) {
        value line = iadd_constant(e, at->line, j * lanes), count = remaining ? isub(e, remaining, constant(e, j * lanes)) : NULL;
        value into = advance(e, row, constant(e, j * lanes * p->unit_bytes));
        if (p->pairs && exist && loads_double(p) && j + 1 < at->vectors)
            store_double_pairs(p, line, k, count, into), j++;
        else
            store_units(p, p->pairs ? load_pairs(p, line, k, count, exist) : load_lanes(p, line, k, count), into);
    }
}

/* All units of all lines of a panel. Pairs that both exist are a loop of their own where that is little code. */
static void copy_panel(packer *p, value remaining, void *context)
{
    const emitter *e = &p->e;
    LLVMBuilderRef builder = e->v.builder;
    panel *at = context;
    int step = p->pairs ? 2 : 1, lanes = e->v.lanes;
    value to = advance(e, p->to, imul(e, LLVMBuildSDiv(builder, at->line, constant(e, at->width), ""), p->to_stride)), from = constant(e, 0);
    if (p->pairs && !p->class->prologue) {
        value whole = LLVMBuildAnd(builder, p->depth, constant(e, -2), "");
        counted_loop pairs = begin_loop(e, from, whole, step);
        copy_units(p, at, remaining, to, pairs.i, true);
        end_loop(e, &pairs);
        from = whole;
    }
    counted_loop depth = begin_loop(e, from, p->depth, step);
    copy_units(p, at, remaining, to, depth.i, !p->pairs);
    end_loop(e, &depth);
    if (!p->tiles)
        return;
    value end = LLVMBuildAnd(builder, iadd_constant(e, p->depth, 1), constant(e, -2), "");
    counted_loop rest = begin_loop(e, end, padded_depth(p), step);
    value zeros = LLVMConstNull(cpu_vtype(&e->v, e->i32));
    value row = advance(e, to, imul_constant(e, LLVMBuildLShr(builder, rest.i, constant(e, 1), ""), at->width * p->unit_bytes));
    for (int j = 0; j < at->vectors; j++)
        store_units(p, zeros, advance(e, row, constant(e, j * lanes * p->unit_bytes)));
    end_loop(e, &rest);
}

static void emit_panels(packer *p, int width, int vectors)
{
    counted_loop lines = begin_loop(&p->e, constant(&p->e, 0), p->lines, width);
    with_or_without_masks(p, isub(&p->e, p->lines, lines.i), vectors * p->e.v.lanes, copy_panel, &(panel){lines.i, width, vectors});
    end_loop(&p->e, &lines);
}

/* -- panels, K side by side ------------------------------------------------------------------------------------------ */

/* As many units along K as there are lanes, of as many lines. */
static void transpose_square(packer *p, value remaining, void *context)
{
    const emitter *e = &p->e;
    place *at = context;
    int lanes = e->v.lanes, columns = cpu_gemm_tile_of(e->v.isa, p->class->dtype).columns;
    value rows[MAX_LANES], last = isub(e, p->lines, constant(e, 1));
    for (int i = 0; i < lanes; i++) {            /* lines that do not exist repeat the last: nobody looks at their columns */
        value line = lesser(e, iadd_constant(e, at->line, i), last);
        rows[i] = p->pairs ? LLVMBuildBitCast(e->v.builder, load_double(p, line, at->k, remaining), cpu_vtype(&e->v, e->i32), "")
                           : load_lanes(p, line, at->k, remaining);
    }
    emit_transpose(e, rows);
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

/* -- rows of A, lines side by side, for tile registers ------------------------------------------------------------------ */

static void store_in_square(packer *p, value unit, value x)
{
    int bytes = p->e.v.lanes * p->unit_bytes;
    LLVMSetAlignment(LLVMBuildStore(p->e.v.builder, x, advance(&p->e, p->square, imul_constant(&p->e, unit, bytes))), (unsigned)bytes);
}

/* As many units as there are lanes, of as many lines: by way of a square in memory, so that a prologue's code is there four times and
 * not twice a unit. Lines and units that do not exist are zero. */
static void transpose_to_rows(packer *p, value remaining, void *context)
{
    const emitter *e = &p->e;
    place *at = context;
    int lanes = e->v.lanes, bytes = lanes * p->unit_bytes;
    LLVMTypeRef vector = cpu_vtype(&e->v, e->i32);
    value rows[MAX_LANES];
    value whole = lesser(e, LLVMBuildLShr(e->v.builder, isub(e, p->depth, at->k), constant(e, 1), ""), constant(e, lanes));
    counted_loop units = begin_loop(e, constant(e, 0), whole, 1);
    value even = iadd(e, at->k, imul_constant(e, units.i, 2));
    for (int i = 0; !p->class->prologue && !p->class->fetched && i < 2; i++)
        prefetch_ahead(p, at->line, iadd_constant(e, even, i), lanes);
    store_in_square(p, units.i, load_pairs(p, at->line, even, remaining, true));
    end_loop(e, &units);
    counted_loop rest = begin_loop(e, whole, constant(e, lanes), 1);
    value k = iadd(e, at->k, imul_constant(e, rest.i, 2)), last = isub(e, p->depth, constant(e, 1));
    value x = load_pairs(p, at->line, lesser(e, k, last), remaining, false);
    store_in_square(p, rest.i, LLVMBuildSelect(e->v.builder, is_less(e, k, p->depth), x, LLVMConstNull(vector), ""));
    end_loop(e, &rest);
    for (int i = 0; i < lanes; i++) {
        rows[i] = LLVMBuildLoad2(e->v.builder, vector, advance(e, p->square, constant(e, i * bytes)), "");
        LLVMSetAlignment(rows[i], (unsigned)bytes);
    }
    emit_transpose(e, rows);
    value to = advance(e, p->to, imul(e, at->line, p->to_stride));
    to = advance(e, to, imul_constant(e, at->k, p->element_bytes));
    for (int i = 0; i < lanes; i++) {
        store_units(p, rows[i], to);
        to = advance(e, to, p->to_stride);
    }
}

/* All lines at one depth before the next: rows of memory are read along, as prefetchers like it. */
static void emit_transposed_rows(packer *p)
{
    int lanes = p->e.v.lanes;
    p->square = LLVMBuildAlloca(p->e.v.builder, LLVMArrayType(cpu_vtype(&p->e.v, p->e.i32), (unsigned)lanes), "");
    LLVMSetAlignment(p->square, 64);
    counted_loop depth = begin_loop(&p->e, constant(&p->e, 0), p->depth, 2 * lanes);
    counted_loop lines = begin_loop(&p->e, constant(&p->e, 0), p->lines, lanes);
    with_or_without_masks(p, isub(&p->e, p->lines, lines.i), lanes, transpose_to_rows, &(place){lines.i, depth.i});
    end_loop(&p->e, &lines);
    end_loop(&p->e, &depth);
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
    p.tiles = cpu_gemm_has_tiles(class->isa, class->dtype);
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
    else if (class->side == CPU_GEMM_A && p.tiles)
        emit_transposed_rows(&p);
    else if (class->side == CPU_GEMM_A)
        emit_panels(&p, cpu_gemm_a_panel(class->isa, class->dtype), cpu_gemm_a_panel(class->isa, class->dtype) / tile.lanes);
    else if (class->along_k)
        emit_transposed_panels(&p);
    else
        emit_panels(&p, tile.columns, tile.columns / tile.lanes);
    end_function(&p.e);
    return p.e.function;
}
