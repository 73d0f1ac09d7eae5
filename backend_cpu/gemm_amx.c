/* The micro-kernel for bf16 on CPUs with tile registers (AMX): 32x32 of C in four tiles of 16x16 f32, each step of 32 k by four TDPBF16PS.
 *
 *     tiles 4, 5    A: 16 rows of 16 units, as they lie         units are pairs of k, 4 bytes
 *     tiles 6, 7    B: 16 units of 16 columns, pairs interleaved, of a panel of 32 columns
 *     tiles 0..3    C: rows of A's first tile, then of its second
 *
 * A step takes 64 cycles in the multiplier and loads 4 KB: more than the second-level cache gives in that time beside everything else, so
 * that one operand, the panel of B, should lie in the first-level cache while the rows of A go by (gemm.c: depth of blocks).
 *
 * How many rows and columns a tile has stands in the configuration, which the driver loads once a task (cpu_gemm_code.configure): the same
 * code does for the last rows of a block, under a configuration of fewer. K beyond the last unit is zero in both packed operands. */
#include "backend_cpu/gemm_emit.h"

#include <string.h>

enum { ROWS = 16, UNITS = 16, UNIT_BYTES = 4, TILE_ROW_BYTES = 64, C_ROW_BYTES = 128, FIRST_A = 4, FIRST_B = 6 };

static value tile_number(const emitter *e, int tile) { return LLVMConstInt(LLVMInt8TypeInContext(e->v.context), (unsigned)tile, 0); }

static void call(const emitter *e, const char *intrinsic, value *args, unsigned n)
{
    value function = LLVMGetIntrinsicDeclaration(e->v.module, LLVMLookupIntrinsicID(intrinsic, strlen(intrinsic)), NULL, 0);
    LLVMBuildCall2(e->v.builder, LLVMGlobalGetValueType(function), function, args, n, "");
}

static void load_tile(const emitter *e, int tile, value at, value stride)
{
    call(e, "llvm.x86.tileloadd64", (value[]){tile_number(e, tile), at, stride}, 3);
}

static void multiply_tiles(const emitter *e, int c, int a, int b)
{
    call(e, "llvm.x86.tdpbf16ps", (value[]){tile_number(e, c), tile_number(e, a), tile_number(e, b)}, 3);
}

/* Of the tile of C at row block i, column block j. */
static value c_at(const emitter *e, value tile, int i, int j)
{
    return advance(e, tile, constant(e, i * ROWS * C_ROW_BYTES + j * TILE_ROW_BYTES));
}

static void emit_tile(LLVMModuleRef module, cpu_isa isa, int height, int vectors)
{
    char name[32];
    emitter e = begin_function(module, isa, IR_BF16, cpu_gemm_micro_name(name, IR_BF16, height, vectors * ROWS), "ipiipipipi");
    LLVMBuilderRef builder = e.v.builder;
    value f = e.function, units = LLVMGetParam(f, 0), a = LLVMGetParam(f, 1), a_row = LLVMGetParam(f, 2);
    value b = LLVMGetParam(f, 4), b_unit = LLVMGetParam(f, 5), tile = LLVMGetParam(f, 6);
    value resume = LLVMGetParam(f, 7), soon = LLVMGetParam(f, 8), soon_step = LLVMGetParam(f, 9);
    int rows = height / ROWS;
    block reload = new_block(&e), clear = new_block(&e), loop = new_block(&e), end = new_block(&e);

    LLVMBuildCondBr(builder, LLVMBuildICmp(builder, LLVMIntNE, resume, constant(&e, 0), ""), reload, clear);
    go_on_at(&e, reload);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++)
            load_tile(&e, 2 * i + j, c_at(&e, tile, i, j), constant(&e, C_ROW_BYTES));
    LLVMBuildBr(builder, loop);
    go_on_at(&e, clear);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++)
            call(&e, "llvm.x86.tilezero", (value[]){tile_number(&e, 2 * i + j)}, 1);
    LLVMBuildBr(builder, loop);

    go_on_at(&e, loop);
    value left = LLVMBuildPhi(builder, e.i64, ""), pa = LLVMBuildPhi(builder, e.pointer, ""), pb = LLVMBuildPhi(builder, e.pointer, "");
    value ps = LLVMBuildPhi(builder, e.pointer, "");
    value second = advance(&e, pa, imul_constant(&e, a_row, ROWS));
    for (int j = 0; j < vectors; j++)
        load_tile(&e, FIRST_B + j, advance(&e, pb, constant(&e, j * TILE_ROW_BYTES)), b_unit);
    for (int i = 0; i < rows; i++) {
        load_tile(&e, FIRST_A + i, i ? second : pa, a_row);
        for (int j = 0; j < vectors; j++)
            multiply_tiles(&e, 2 * i + j, FIRST_A + i, FIRST_B + j);
    }
    value next_soon = ps;
    for (int i = 0; i < CPU_GEMM_TILES_SOON; i++) {
        prefetch(&e, next_soon);
        next_soon = advance(&e, next_soon, soon_step);
    }
    value fewer = isub(&e, left, constant(&e, UNITS)), next_a = advance(&e, pa, constant(&e, UNITS * UNIT_BYTES));
    value next_b = advance(&e, pb, imul_constant(&e, b_unit, UNITS));
    LLVMBuildCondBr(builder, LLVMBuildICmp(builder, LLVMIntSGT, fewer, constant(&e, 0), ""), loop, end);
    block from[] = {reload, clear, loop};
    LLVMAddIncoming(left, (value[]){units, units, fewer}, from, 3);
    LLVMAddIncoming(pa, (value[]){a, a, next_a}, from, 3);
    LLVMAddIncoming(pb, (value[]){b, b, next_b}, from, 3);
    LLVMAddIncoming(ps, (value[]){soon, soon, next_soon}, from, 3);

    go_on_at(&e, end);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++)
            call(&e, "llvm.x86.tilestored64", (value[]){tile_number(&e, 2 * i + j), c_at(&e, tile, i, j), constant(&e, C_ROW_BYTES)}, 3);
    end_function(&e);
}

void cpu_gemm_emit_amx(LLVMModuleRef module, cpu_isa isa)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, IR_BF16);
    for (int h = 0; h < tile.n_heights; h++)
        for (int vectors = 1; vectors <= 2; vectors++)
            emit_tile(module, isa, tile.heights[h], vectors);

    emitter e = begin_function(module, isa, IR_BF16, CPU_GEMM_CONFIGURE, "p");
    call(&e, "llvm.x86.ldtilecfg", (value[]){LLVMGetParam(e.function, 0)}, 1);
    end_function(&e);
    e = begin_function(module, isa, IR_BF16, CPU_GEMM_RELEASE, "");
    call(&e, "llvm.x86.tilerelease", NULL, 0);
    end_function(&e);
}
