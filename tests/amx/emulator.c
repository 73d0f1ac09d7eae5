/* Tile registers for CPUs that have none: so that tests of the level amx run, right though slow, wherever there is AVX512-BF16.
 *
 * To a CPU without AMX its instructions are undefined, and the kernel sends SIGILL. The handler decodes the instruction, does its work on
 * tiles of its own, one set a thread, and steps over it. Linked into every test program; RAX_EMULATED_ISA tells the backend that the level
 * may be asked for by name. What the instructions do follows Intel's Software Developer's Manual, volume 2, the products' order of
 * additions included: sums over even k and over odd k apart, added at the end; subnormals are 0.
 */
#if defined(__x86_64__) && defined(__linux__)

#include <cpuid.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64, COLUMNS = ROW_BYTES / 4 };

/* What LDTILECFG loads, 64 bytes. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} configuration;

typedef struct {
    configuration configured;
    _Alignas(64) uint8_t tile[TILES][ROWS][ROW_BYTES];
} tile_state;

static _Thread_local tile_state tiles;

/* -- decoding ------------------------------------------------------------------------------------------------------------- */

/* VEX.128.pp.0F38.W0 opcode /r: three bytes of prefix, the opcode, ModRM, and of an address SIB and displacement. */
typedef struct {
    int prefix;                                  /* pp: 0 none, 1 66, 2 F3, 3 F2 */
    uint8_t opcode;
    int reg, rm, vvvv;                           /* tiles */
    uint8_t *at;                                 /* the memory operand, NULL for none */
    int64_t stride;                              /* its index register, scaled: of tiles, bytes from row to row */
    int length;
} instruction;

/* By the number that ModRM and SIB have for it. */
static int64_t general_register(const ucontext_t *context, int number)
{
    static const int places[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return context->uc_mcontext.gregs[places[number]];
}

/* The address in ModRM, SIB and displacement, from `code` on. Returns how many bytes they take. */
static int decode_address(const ucontext_t *context, const uint8_t *code, int base_high, int index_high, instruction *in)
{
    int mode = code[0] >> 6, rm = code[0] & 7, length = 1, base = rm;
    int64_t address = 0;
    in->stride = 0;
    if (rm == 4) {
        int sib = code[length++], index = (sib >> 3 & 7) | index_high;
        base = sib & 7;
        if (index != 4)
            in->stride = general_register(context, index) << (sib >> 6);
    }
    int displacement_bytes = mode == 1 ? 1 : mode == 2 || (mode == 0 && base == 5) ? 4 : 0;
    int32_t displacement = 0;
    if (displacement_bytes == 1)
        displacement = (int8_t)code[length];
    else if (displacement_bytes == 4)
        memcpy(&displacement, code + length, 4);
    length += displacement_bytes;
    if (mode == 0 && base == 5 && rm == 5)
        return 0;                                /* relative to the next instruction: no compiler loads tiles so */
    if (!(mode == 0 && base == 5))
        address = general_register(context, base | base_high);
    in->at = (uint8_t *)(address + displacement);
    return length;
}

static int decode(const ucontext_t *context, instruction *in)
{
    const uint8_t *code = (const uint8_t *)context->uc_mcontext.gregs[REG_RIP];
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || code[2] >> 7 != 0 || (code[2] >> 2 & 1) != 0)
        return 0;
    int base_high = code[1] & 0x20 ? 0 : 8, index_high = code[1] & 0x40 ? 0 : 8;
    *in = (instruction){.prefix = code[2] & 3, .opcode = code[3], .reg = code[4] >> 3 & 7, .rm = code[4] & 7, .vvvv = ~code[2] >> 3 & 7};
    int operand = code[4] >> 6 == 3 ? 1 : decode_address(context, code + 4, base_high, index_high, in);
    in->length = operand ? 4 + operand : 0;
    return in->length;
}

/* -- what the instructions do ------------------------------------------------------------------------------------------------ */

static void move_tile(int tile, uint8_t *at, int64_t stride, bool store)
{
    const configuration *c = &tiles.configured;
    if (!store)
        memset(tiles.tile[tile], 0, sizeof tiles.tile[tile]);
    for (int row = 0; row < c->rows[tile]; row++) {
        uint8_t *memory = at + row * stride, *own = tiles.tile[tile][row];
        memcpy(store ? memory : own, store ? own : memory, c->row_bytes[tile]);
    }
}

static inline float without_subnormal(float x) { return x > -0x1p-126f && x < 0x1p-126f ? 0 : x; }

static inline float widened(uint16_t bf16)
{
    uint32_t bits = (uint32_t)bf16 << 16;
    float x;
    memcpy(&x, &bits, 4);
    return without_subnormal(x);
}

/* c += a . b: rows of a's pairs of k by rows of b, each of as many columns' pairs. What lies beyond a tile's columns is zero, and stays so. */
__attribute__((target("avx2,fma"))) static void multiply(int c, int a, int b)
{
    const configuration *shape = &tiles.configured;
    int pairs = shape->row_bytes[a] / 4;
    for (int row = 0; row < ROWS; row++) {
        float even[COLUMNS] = {0}, odd[COLUMNS] = {0}, sums[COLUMNS];
        uint16_t from_a[2 * COLUMNS], from_b[2 * COLUMNS];
        if (row >= shape->rows[c]) {
            memset(tiles.tile[c][row], 0, ROW_BYTES);
            continue;
        }
        memcpy(from_a, tiles.tile[a][row], ROW_BYTES);
        for (int pair = 0; pair < pairs; pair++) {
            memcpy(from_b, tiles.tile[b][pair], ROW_BYTES);
            float first = widened(from_a[2 * pair]), second = widened(from_a[2 * pair + 1]);
            for (int column = 0; column < COLUMNS; column++) {
                even[column] = without_subnormal(__builtin_fmaf(first, widened(from_b[2 * column]), even[column]));
                odd[column] = without_subnormal(__builtin_fmaf(second, widened(from_b[2 * column + 1]), odd[column]));
            }
        }
        memcpy(sums, tiles.tile[c][row], ROW_BYTES);
        for (int column = 0; column < COLUMNS; column++)
            sums[column] = without_subnormal(without_subnormal(sums[column]) + without_subnormal(even[column] + odd[column]));
        memcpy(tiles.tile[c][row], sums, ROW_BYTES);
    }
}

static bool configure(const uint8_t *from)
{
    configuration next;
    memcpy(&next, from, sizeof next);
    if (next.palette > 1)
        return false;
    for (int tile = 0; tile < TILES; tile++)
        if (next.rows[tile] > ROWS || next.row_bytes[tile] > ROW_BYTES || (next.rows[tile] == 0) != (next.row_bytes[tile] == 0))
            return false;                        /* a general protection fault */
    memset(&tiles, 0, sizeof tiles);
    tiles.configured = next;
    return true;
}

/* False: none of AMX's, or none that may be carried out now. */
static bool carry_out(const instruction *in)
{
    enum { NONE, P66, PF3, PF2 };
    bool configured = tiles.configured.palette == 1;
    switch (in->opcode) {
    case 0x49:
        if (in->prefix == NONE && in->at)
            return configure(in->at);
        if (in->prefix == P66 && in->at)
            return memcpy(in->at, &tiles.configured, sizeof tiles.configured) != NULL;
        if (in->prefix == NONE && in->rm == 0 && in->reg == 0)
            return memset(&tiles, 0, sizeof tiles) != NULL;
        if (in->prefix == PF2 && !in->at && configured)
            return memset(tiles.tile[in->reg], 0, sizeof tiles.tile[in->reg]) != NULL;
        return false;
    case 0x4b:
        if (!in->at || !configured || in->prefix == NONE)
            return false;
        move_tile(in->reg, in->at, in->stride, in->prefix == PF3);
        return true;
    case 0x5c:
        if (in->prefix != PF3 || in->at || !configured || in->reg == in->rm || in->reg == in->vvvv || in->rm == in->vvvv)
            return false;
        multiply(in->reg, in->rm, in->vvvv);
        return true;
    }
    return false;
}

/* -- the signal ---------------------------------------------------------------------------------------------------------- */

typedef void handler(int);
static bool is_installed;
static handler *left_to;                         /* who is told of illegal instructions that are not AMX's; NULL: the process ends */

static bool set_handler(int number, handler *plain, void (*detailed)(int, siginfo_t *, void *), struct sigaction *before)
{
    struct sigaction action = {.sa_flags = detailed ? SA_SIGINFO | SA_NODEFER : SA_RESTART};
    if (detailed)
        action.sa_sigaction = detailed;
    else
        action.sa_handler = plain;
    return sigaction(number, &action, before) == 0;
}

static void on_illegal_instruction(int number, siginfo_t *info, void *user)
{
    ucontext_t *context = user;
    instruction in;
    (void)info;
    if (decode(context, &in) && carry_out(&in))
        context->uc_mcontext.gregs[REG_RIP] += in.length;
    else if (left_to)
        left_to(number);
    else
        set_handler(number, SIG_DFL, NULL, NULL);         /* the same instruction once more ends the process */
}

/* cmocka asks for SIGILL at each test: in place of the C library's. */
handler *signal(int number, handler *wanted)
{
    struct sigaction before;
    if (number == SIGILL && is_installed) {
        handler *was = left_to;
        left_to = wanted == SIG_DFL || wanted == SIG_IGN ? NULL : wanted;
        return was ? was : SIG_DFL;
    }
    if (!set_handler(number, wanted, NULL, &before))
        return SIG_ERR;
    return before.sa_flags & SA_SIGINFO ? SIG_DFL : before.sa_handler;
}

__attribute__((constructor)) static void install(void)
{
    unsigned a, b, c, d;
    bool has_tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 22 & 1 && d >> 24 & 1;
    bool has_products = __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 5 & 1;
    if (has_tiles || !has_products)
        return;
    is_installed = set_handler(SIGILL, NULL, on_illegal_instruction, NULL);
    if (is_installed)
        setenv("RAX_EMULATED_ISA", "amx", 1);
}

#else
typedef int nothing_to_emulate;
#endif
