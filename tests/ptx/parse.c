/* PTX to instructions. A statement is read word by word; names of registers and variables are looked up in the scopes
 * that braces make, from the innermost outwards. Each register gets a slot in its function's file, each constant one,
 * too, so that an instruction's operands are slots and nothing else. What the machine does not know is refused, with
 * its line. */
#include "tests/ptx/machine.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_WORD = 256, MOST_OPERANDS = 16, MOST_SCOPES = 16 };

typedef enum { NAME_REGISTERS, NAME_REGISTER, NAME_ADDRESS } name_kind;
typedef struct {
    name_kind kind;
    char *name;                             /* of NAME_REGISTERS without the number */
    int first_slot, count, bits;
    ptx_space space;
    int64_t address;
    size_t bytes;
} name;

typedef struct { char *name; int at; } label;

typedef struct {
    ptx_module *module;
    const char *at, *begin;
    char word[MOST_WORD];                   /* the next token, "" at the end */
    bool is_number;
    const char *word_at;
    int source_line;
    ptx_function *f;
    name *names;
    int n_names, cap_names, scopes[MOST_SCOPES], n_scopes;
    label *labels, *jumps;
    int n_labels, cap_labels, n_jumps, cap_jumps;
    jmp_buf failed;
    char *why;
} reader;

static _Noreturn void refuse(reader *r, const char *format, ...)
{
    char text[512];
    int line = 1;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (const char *s = r->begin; s < r->word_at; s++)
        line += *s == '\n';
    r->why = malloc(sizeof text + 32);
    sprintf(r->why, "PTX, line %d: %s", line, text);
    longjmp(r->failed, 1);
}

static void *grown(void *at, int n, int *cap, size_t size)
{
    if (n < *cap)
        return at;
    *cap = *cap ? 2 * *cap : 32;
    return realloc(at, size * (size_t)*cap);
}

/* -- words -------------------------------------------------------------------------------------------------------- */

static bool in_word(const char *s)
{
    return isalnum((unsigned char)*s) || strchr("_$%.", *s) != NULL;
}

/* The next token to r->word. Of .loc the line is kept; it ends with its line, as .file does. */
static void next(reader *r)
{
    for (;;) {
        while (isspace((unsigned char)*r->at))
            r->at++;
        if (r->at[0] == '/' && r->at[1] == '/')
            r->at += strcspn(r->at, "\n");
        else if (!strncmp(r->at, ".loc", 4) && isspace((unsigned char)r->at[4])) {
            int file, line;
            if (sscanf(r->at, ".loc %d %d", &file, &line) == 2)
                r->source_line = line;
            r->at += strcspn(r->at, "\n");
        } else if (!strncmp(r->at, ".file", 5))
            r->at += strcspn(r->at, "\n");
        else
            break;
    }
    const char *s = r->word_at = r->at;
    r->is_number = isdigit((unsigned char)*s);
    if (*s == '\0')
        ;
    else if (*s == '"') {
        s++;
        while (*s && *s != '"')
            s++;
        s += *s == '"';
    } else if (in_word(s))
        while (*s && (in_word(s) || (s[0] == ':' && s[1] == ':' && in_word(s + 2)) || (s[0] == ':' && s[-1] == ':')))
            s++;
    else
        s++;
    size_t n = (size_t)(s - r->at);
    if (n >= sizeof r->word)
        refuse(r, "a word of %zu characters", n);
    memcpy(r->word, r->at, n);
    r->word[n] = '\0';
    r->at = s;
}

static bool is(const reader *r, const char *word) { return !strcmp(r->word, word); }
static bool take(reader *r, const char *word) { return is(r, word) ? next(r), true : false; }
static void expect(reader *r, const char *word)
{
    if (!take(r, word))
        refuse(r, "'%s' where '%s' is expected", r->word, word);
}

/* A number's bits: 0f and 0d are floats, of which the width is said. */
static uint64_t number(reader *r)
{
    bool minus = take(r, "-");
    char *end;
    uint64_t bits;
    if (!r->is_number)
        refuse(r, "'%s' where a number is expected", r->word);
    if (r->word[0] == '0' && strchr("fFdD", r->word[1] ? r->word[1] : 'x'))
        bits = strtoull(r->word + 2, &end, 16);
    else {
        size_t n = strlen(r->word);
        if (r->word[n - 1] == 'U')
            r->word[n - 1] = '\0';
        bits = strtoull(r->word, &end, 0);
    }
    if (*end)
        refuse(r, "the number %s", r->word);
    next(r);
    return minus ? -bits : bits;
}

/* -- types -------------------------------------------------------------------------------------------------------- */

static const struct { const char *text; ptx_type type; int bits; } types[] = {
    { "pred", T_PRED, 1 }, { "b8", T_B8, 8 }, { "b16", T_B16, 16 }, { "b32", T_B32, 32 }, { "b64", T_B64, 64 },
    { "u8", T_U8, 8 }, { "u16", T_U16, 16 }, { "u32", T_U32, 32 }, { "u64", T_U64, 64 },
    { "s8", T_S8, 8 }, { "s16", T_S16, 16 }, { "s32", T_S32, 32 }, { "s64", T_S64, 64 },
    { "f32", T_F32, 32 }, { "f64", T_F64, 64 }, { "bf16", T_BF16, 16 }, { "bf16x2", T_BF16X2, 32 },
};
enum { N_TYPES = sizeof types / sizeof types[0] };

static int type_at(const char *text)
{
    for (int i = 0; i < N_TYPES; i++)
        if (!strcmp(types[i].text, text))
            return i;
    return -1;
}

int ptx_bits(ptx_type type)
{
    for (int i = 0; i < N_TYPES; i++)
        if (types[i].type == type)
            return types[i].bits;
    return 0;
}

/* ".b32": its index in the table. */
static int type_word(reader *r)
{
    int i = r->word[0] == '.' ? type_at(r->word + 1) : -1;
    if (i < 0)
        refuse(r, "'%s' where a type is expected", r->word);
    next(r);
    return i;
}

/* -- names -------------------------------------------------------------------------------------------------------- */

static name *add_name(reader *r, name_kind kind, const char *text)
{
    r->names = grown(r->names, r->n_names, &r->cap_names, sizeof *r->names);
    r->names[r->n_names] = (name){ .kind = kind, .name = strdup(text) };
    return &r->names[r->n_names++];
}

static void open_scope(reader *r)
{
    if (r->n_scopes == MOST_SCOPES)
        refuse(r, "more than %d braces", MOST_SCOPES);
    r->scopes[r->n_scopes++] = r->n_names;
}

static void close_scope(reader *r)
{
    int n = r->scopes[--r->n_scopes];
    while (r->n_names > n)
        free(r->names[--r->n_names].name);
}

static int new_slot(ptx_function *f, int bits)
{
    size_t at = f->file_bytes, bytes = SLOT_BYTES(bits);
    f->file_bytes += bytes;
    f->file = realloc(f->file, f->file_bytes);
    memset(f->file + at, 0, bytes);
    return (int)at;
}

static const name *find_name(const reader *r, const char *text, int *slot)
{
    for (int i = r->n_names; i-- > 0;) {
        const name *n = &r->names[i];
        if (n->kind != NAME_REGISTERS) {
            if (!strcmp(n->name, text))
                return *slot = n->first_slot, n;
            continue;
        }
        size_t length = strlen(n->name);
        if (!strncmp(n->name, text, length) && isdigit((unsigned char)text[length])) {
            char *end;
            long k = strtol(text + length, &end, 10);
            if (!*end && k < n->count)
                return *slot = n->first_slot + (int)k * (int)SLOT_BYTES(n->bits), n;
        }
    }
    return NULL;
}

static int special_slot(const char *text)
{
    static const char *const names[] = { "%tid", "%ntid", "%ctaid", "%nctaid" };
    const char *dot = strchr(text, '.');
    if (!strcmp(text, "%laneid"))
        return SPECIAL_SLOT(SPECIAL_LANE);
    for (int i = 0; dot && i < 4; i++)
        if (strlen(names[i]) == (size_t)(dot - text) && !strncmp(names[i], text, strlen(names[i])) && dot[1] >= 'x' && dot[1] <= 'z' && !dot[2])
            return SPECIAL_SLOT(3 * i + dot[1] - 'x');
    return -1;
}

/* A slot that holds the number in every lane. */
static int constant(ptx_function *f, uint64_t value, int bits)
{
    int slot = new_slot(f, bits);
    unsigned char *at = f->file + slot;
    uint32_t all = ALL_LANES, low = (uint32_t)(bits == 16 ? value & 0xffff : value);
    memcpy(at, &all, 4);
    if (bits == 1) {
        low = value ? ALL_LANES : 0;
        memcpy(at + 8, &low, 4);
    } else
        for (int l = 0; l < LANES; l++)
            bits == 64 ? memcpy(at + 8 + 8 * l, &value, 8) : memcpy(at + 8 + 4 * l, &low, 4);
    return slot;
}

/* -- variables ---------------------------------------------------------------------------------------------------- */

static int64_t aligned(int64_t at, int64_t to) { return (at + to - 1) / to * to; }

/* [.align N] .type name [ '[' [count] ']' ] [= { numbers }], in a space whose end is moved. */
static name *variable(reader *r, ptx_space space, int64_t *end)
{
    int64_t align = 0, count = 1;
    if (take(r, ".align"))
        align = (int64_t)number(r);
    int type = type_word(r), size = types[type].bits / 8;
    if (take(r, ".ptr")) {                                         /* what a parameter points to: a promise */
        while (is(r, ".global") || is(r, ".shared") || is(r, ".const") || is(r, ".local"))
            next(r);
        if (take(r, ".align"))
            number(r);
    }
    char text[MOST_WORD];
    strcpy(text, r->word);
    next(r);
    if (take(r, "[")) {
        count = is(r, "]") ? 0 : (int64_t)number(r);
        expect(r, "]");
    }
    *end = aligned(*end, align ? align : size);
    name *n = add_name(r, NAME_ADDRESS, text);
    n->space = space;
    n->address = *end;
    n->bytes = (size_t)(count * size);
    *end += count * size;
    return n;
}

/* Variables of the module that are in global memory lie on this machine as they are; their room is as much as the text
 * is long, so that nothing moves. */
static void global_variable(reader *r)
{
    ptx_module *m = r->module;
    int64_t end = (int64_t)m->globals_bytes;
    name *n = variable(r, SPACE_GLOBAL, &end);
    if ((size_t)end > m->globals_cap)
        refuse(r, "%s is larger than its text", n->name);
    unsigned char *at = m->globals + n->address;
    size_t given = 0;
    if (take(r, "=")) {
        expect(r, "{");
        while (!is(r, "}")) {
            if (given == n->bytes)
                refuse(r, "more values than %s has bytes", n->name);
            at[given++] = (unsigned char)number(r);
            take(r, ",");
        }
        expect(r, "}");
    }
    n->address = (int64_t)(intptr_t)at;
    m->globals_bytes = (size_t)end;
    expect(r, ";");
}

static void registers(reader *r)
{
    int type = type_word(r), bits = types[type].bits < 32 && types[type].bits > 1 ? 16 : types[type].bits;
    do {
        char text[MOST_WORD];
        strcpy(text, r->word);
        next(r);
        name *n = add_name(r, NAME_REGISTER, text);
        n->bits = bits;
        n->count = 1;
        if (take(r, "<")) {
            n->kind = NAME_REGISTERS;
            n->count = (int)number(r);
            expect(r, ">");
        }
        n->first_slot = (int)r->f->file_bytes;
        r->f->file_bytes += SLOT_BYTES(bits) * (size_t)n->count;
        r->f->file = realloc(r->f->file, r->f->file_bytes);
        memset(r->f->file + n->first_slot, 0, r->f->file_bytes - (size_t)n->first_slot);
    } while (take(r, ","));
    expect(r, ";");
}

/* -- instructions ------------------------------------------------------------------------------------------------- */

static const char *const op_names[] = {
#define OP(name, text, class) text,
#include "tests/ptx/ops.def"
#undef OP
};
const char *ptx_op_name(ptx_op op) { return op_names[op]; }

typedef struct { const char *text; int value; } word;
static int word_value(const word *words, const char *text)
{
    for (; words->text; words++)
        if (!strcmp(words->text, text))
            return words->value;
    return -1;
}
static const word compares[] = {
    { "eq", CMP_EQ }, { "ne", CMP_NE }, { "lt", CMP_LT }, { "le", CMP_LE }, { "gt", CMP_GT }, { "ge", CMP_GE },
    { "lo", CMP_LO }, { "ls", CMP_LS }, { "hi", CMP_HI }, { "hs", CMP_HS },
    { "equ", CMP_EQU }, { "neu", CMP_NEU }, { "ltu", CMP_LTU }, { "leu", CMP_LEU }, { "gtu", CMP_GTU }, { "geu", CMP_GEU }, { "num", CMP_NUM }, { "nan", CMP_NAN }, { NULL, 0 }
};
static const word rounds[] = { { "rn", ROUND_NEAREST }, { "rz", ROUND_ZERO }, { "rm", ROUND_DOWN }, { "rp", ROUND_UP }, { NULL, 0 } };
static const word integer_rounds[] = { { "rni", ROUND_NEAREST }, { "rzi", ROUND_ZERO }, { "rmi", ROUND_DOWN }, { "rpi", ROUND_UP }, { NULL, 0 } };
static const word spaces[] = {
    { "global", SPACE_GLOBAL }, { "const", SPACE_GLOBAL }, { "shared", SPACE_SHARED }, { "shared::cta", SPACE_SHARED },
    { "local", SPACE_LOCAL }, { "param", SPACE_PARAM }, { NULL, 0 }
};
static const word halves[] = { { "lo", HALF_LOW }, { "hi", HALF_HIGH }, { "wide", HALF_WIDE }, { NULL, 0 } };
static const word shuffles[] = { { "bfly", SHUFFLE_BFLY }, { "up", SHUFFLE_UP }, { "down", SHUFFLE_DOWN }, { "idx", SHUFFLE_IDX }, { NULL, 0 } };
static const word vectors[] = { { "v2", 2 }, { "v4", 4 }, { "v8", 8 }, { "x1", 1 }, { "x2", 2 }, { "x4", 4 }, { NULL, 0 } };
static const word flags[] = {                                      /* of an instruction, by where they are in it */
    { "ftz", offsetof(ptx_inst, flushes) }, { "sat", offsetof(ptx_inst, saturates) }, { "cc", offsetof(ptx_inst, carries) },
    { "NaN", offsetof(ptx_inst, keeps_nan) }, { "trans", offsetof(ptx_inst, transposes) }, { "to", offsetof(ptx_inst, is_to) },
    { NULL, 0 }
};
/* What changes nothing here: hints to a cache, what holds for all that the machine does, and shapes that are the only ones it knows. */
static const char *const ignored[] = {
    "uni", "sync", "aligned", "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "weak", "volatile", "approx", "full",
    "m16n8k16", "row", "col", "m8n8", "L1::no_allocate", "L1::evict_last", "L1::evict_first", "L1::evict_normal",
    "L1::evict_unchanged", "L2::64B", "L2::128B", "L2::256B",
};

static void modifiers(reader *r, ptx_inst *i, char *mnemonic)
{
    char *rest;
    bool is_first = true;
    for (char *m = strtok_r(mnemonic, ".", &rest); m; m = strtok_r(NULL, ".", &rest), is_first = false) {
        int value;
        if (is_first) {
            for (value = 0; value < N_OPS && strcmp(op_names[value], m); value++)
                ;
            if (value == N_OPS)
                refuse(r, "the instruction %s", m);
            i->op = (ptx_op)value;
        } else if ((value = type_at(m)) >= 0) {
            i->from = i->type;
            i->type = types[value].type;
            if (i->op == OP_cvt && i->from) {                      /* the result's type comes first */
                i->type = i->from;
                i->from = types[value].type;
            }
        } else if (i->op == OP_setp && (value = word_value(compares, m)) >= 0)
            i->compare = (ptx_compare)value;
        else if ((value = word_value(rounds, m)) >= 0)
            i->round = (ptx_round)value;
        else if ((value = word_value(integer_rounds, m)) >= 0)
            i->round = (ptx_round)value, i->to_integer = true;
        else if ((value = word_value(spaces, m)) >= 0) {
            if (i->op != OP_cp || i->space == SPACE_GENERIC)
                i->space = (ptx_space)value;
        } else if ((value = word_value(halves, m)) >= 0)
            i->half = (ptx_half)value;
        else if (i->op == OP_shfl && (value = word_value(shuffles, m)) >= 0)
            i->shuffle = (ptx_shuffle)value;
        else if ((value = word_value(vectors, m)) >= 0)
            i->vector = value;
        else if (i->op == OP_cp && (!strcmp(m, "async") || !strcmp(m, "wait_all")))
            i->waits = !strcmp(m, "wait_all");
        else if (i->op == OP_bar && !strcmp(m, "warp"))
            i->of_warp = true;
        else if ((value = word_value(flags, m)) >= 0)
            *(bool *)((char *)i + value) = true;
        else if (i->op == OP_shf && (!strcmp(m, "l") || !strcmp(m, "r")))
            i->is_right = !strcmp(m, "r");
        else if (i->op == OP_shf && (!strcmp(m, "wrap") || !strcmp(m, "clamp")))
            i->clamps = !strcmp(m, "clamp");
        else {
            bool known = false;
            for (size_t k = 0; k < sizeof ignored / sizeof ignored[0]; k++)
                known |= !strcmp(ignored[k], m);
            if (!known)
                refuse(r, "the modifier .%s of %s", m, op_names[i->op]);
        }
    }
}

/* How wide a constant is that stands as operand k. */
static int constant_bits(const ptx_inst *i, int k)
{
    int bits = ptx_bits(i->type);
    bits = bits == 8 ? 16 : bits;
    switch (i->op) {
    case OP_shl: case OP_shr: return k == 2 ? 32 : bits;
    case OP_bfi:  return k >= 3 ? 32 : bits;
    case OP_mad:  return i->half == HALF_WIDE && k == 3 ? 2 * bits : bits;
    case OP_cvt:  return ptx_bits(i->from) == 8 ? 16 : ptx_bits(i->from);
    case OP_shfl: case OP_bar: case OP_cp: case OP_prmt: return 32;
    default:      return bits;
    }
}

static void add_operand(reader *r, ptx_operand *operands, int *n, ptx_operand operand)
{
    if (*n == MOST_OPERANDS)
        refuse(r, "more than %d operands", MOST_OPERANDS);
    operands[(*n)++] = operand;
}

static void operand(reader *r, ptx_inst *i, ptx_operand *operands, int *n)
{
    int slot;
    if (take(r, "{")) {
        while (!take(r, "}")) {
            operand(r, i, operands, n);
            take(r, ",");
        }
        return;
    }
    if (take(r, "[")) {
        if (i->n_addresses == 2)
            refuse(r, "a third address");
        ptx_address *a = &i->address[i->n_addresses++];
        *a = (ptx_address){ .base = -1 };
        if (r->is_number)
            a->offset = (int64_t)number(r);
        else {
            const name *v = find_name(r, r->word, &slot);
            if (!v)
                refuse(r, "the name %s", r->word);
            next(r);
            if (v->kind == NAME_ADDRESS)
                a->offset = v->address;
            else
                a->base = slot, a->bits = v->bits;
        }
        if (take(r, "+"))
            a->offset += (int64_t)number(r);
        expect(r, "]");
        return;
    }
    bool negated = take(r, "!");
    if (r->is_number || is(r, "-")) {
        int bits = constant_bits(i, *n);
        add_operand(r, operands, n, (ptx_operand){ constant(r->f, number(r), bits), (short)bits, true, false });
    } else if (is(r, "_")) {
        next(r);
        add_operand(r, operands, n, (ptx_operand){ -1, 0, false, false });
    } else if ((slot = special_slot(r->word)) >= 0) {
        next(r);
        add_operand(r, operands, n, (ptx_operand){ slot, 32, true, false });
    } else {
        const name *v = find_name(r, r->word, &slot);
        if (!v)
            refuse(r, "the name %s", r->word);
        next(r);
        if (v->kind == NAME_ADDRESS)
            add_operand(r, operands, n, (ptx_operand){ constant(r->f, (uint64_t)v->address, 64), 64, true, false });
        else
            add_operand(r, operands, n, (ptx_operand){ slot, (short)v->bits, false, negated });
    }
}

static void keep_operands(reader *r, ptx_inst *i, const ptx_operand *operands, int n)
{
    struct chunk { void *next; ptx_operand at[]; } *chunk = malloc(sizeof *chunk + sizeof *operands * (size_t)n);
    chunk->next = r->module->arena;
    r->module->arena = chunk;
    memcpy(chunk->at, operands, sizeof *operands * (size_t)n);
    i->operands = chunk->at;
    i->n_operands = n;
}

static ptx_function *find_function(const ptx_module *m, const char *text)
{
    for (int i = 0; i < m->n; i++)
        if (!strcmp(m->functions[i]->name, text))
            return m->functions[i];
    return NULL;
}

/* call [(result),] name [, (arguments)]: operands are addresses in the space of parameters, i->vector of them results. */
static void call(reader *r, ptx_inst *i, ptx_operand *operands, int *n)
{
    for (; !is(r, ";"); take(r, ",")) {
        if (!take(r, "(")) {
            i->vector = *n;
            i->callee = find_function(r->module, r->word);
            if (!i->callee)
                refuse(r, "a call of %s", r->word);
            next(r);
            continue;
        }
        while (!take(r, ")")) {
            int slot;
            const name *v = find_name(r, r->word, &slot);
            if (!v || v->kind != NAME_ADDRESS || v->space != SPACE_PARAM)
                refuse(r, "%s, which is no parameter of a call", r->word);
            add_operand(r, operands, n, (ptx_operand){ (int)v->address, (short)(8 * v->bytes), false, false });
            next(r);
            take(r, ",");
        }
    }
}

static void instruction(reader *r)
{
    ptx_inst i = { .guard = -1, .line = r->source_line, .text = r->word_at };
    ptx_operand operands[MOST_OPERANDS];
    int n = 0, slot;
    if (take(r, "@")) {
        i.guard_is_negated = take(r, "!");
        const name *v = find_name(r, r->word, &slot);
        if (!v || v->bits != 1)
            refuse(r, "the guard %s", r->word);
        i.guard = slot;
        next(r);
    }
    char mnemonic[MOST_WORD];
    strcpy(mnemonic, r->word);
    modifiers(r, &i, mnemonic);
    next(r);
    if (i.op == OP_bra) {
        r->jumps = grown(r->jumps, r->n_jumps, &r->cap_jumps, sizeof *r->jumps);
        r->jumps[r->n_jumps++] = (label){ strdup(r->word), r->f->n };
        next(r);
    } else if (i.op == OP_call)
        call(r, &i, operands, &n);
    else
        while (!is(r, ";")) {
            operand(r, &i, operands, &n);
            if (!take(r, ",") && !take(r, "|") && !is(r, ";"))
                refuse(r, "'%s' behind an operand", r->word);
        }
    expect(r, ";");
    keep_operands(r, &i, operands, n);
    r->f->code = grown(r->f->code, r->f->n, &r->f->cap, sizeof *r->f->code);
    r->f->code[r->f->n++] = i;
}

/* -- functions ---------------------------------------------------------------------------------------------------- */

static void statement(reader *r)
{
    ptx_function *f = r->f;
    if (take(r, "{"))
        open_scope(r);
    else if (take(r, "}"))
        close_scope(r);
    else if (take(r, ".reg"))
        registers(r);
    else if (take(r, ".shared")) {
        variable(r, SPACE_SHARED, &r->module->shared_bytes);
        expect(r, ";");
    } else if (take(r, ".local")) {
        int64_t end = (int64_t)f->locals_bytes;
        variable(r, SPACE_LOCAL, &end);
        f->locals_bytes = (size_t)end;
        expect(r, ";");
    } else if (take(r, ".param")) {                                /* of a call: behind the function's own */
        int64_t own = (int64_t)(f->params_bytes + f->result_bytes), end = own + (int64_t)f->calls_bytes;
        variable(r, SPACE_PARAM, &end);
        f->calls_bytes = (size_t)(end - own);
        expect(r, ";");
    } else if (take(r, ".pragma")) {
        next(r);
        expect(r, ";");
    } else if (r->at[strspn(r->at, " \t")] == ':') {
        r->labels = grown(r->labels, r->n_labels, &r->cap_labels, sizeof *r->labels);
        r->labels[r->n_labels++] = (label){ strdup(r->word), f->n };
        next(r);
        expect(r, ":");
    } else
        instruction(r);
}

static void resolve_jumps(reader *r)
{
    for (int j = 0; j < r->n_jumps; j++) {
        int k = 0;
        while (k < r->n_labels && strcmp(r->labels[k].name, r->jumps[j].name))
            k++;
        if (k == r->n_labels)
            refuse(r, "no label %s in %s", r->jumps[j].name, r->f->name);
        r->f->code[r->jumps[j].at].target = r->labels[k].at;
    }
    while (r->n_jumps)
        free(r->jumps[--r->n_jumps].name);
    while (r->n_labels)
        free(r->labels[--r->n_labels].name);
}

static void parameters(reader *r, int64_t *end)
{
    expect(r, "(");
    while (!take(r, ")")) {
        expect(r, ".param");
        variable(r, SPACE_PARAM, end);
        take(r, ",");
    }
}

/* .entry name (parameters) directives { ... }  or  .func (result) name (parameters) { ... } or ; */
static void function(reader *r, bool is_entry)
{
    int64_t params_end = 0, end;
    int results_at = r->n_names;
    open_scope(r);
    if (is(r, "("))
        parameters(r, &params_end);                                /* addresses are put behind the parameters' below */
    int n_results = r->n_names - results_at;
    size_t result_bytes = (size_t)params_end;
    ptx_function *f = find_function(r->module, r->word);
    if (!f) {
        ptx_module *m = r->module;
        m->functions = grown(m->functions, m->n, &m->cap, sizeof *m->functions);
        f = m->functions[m->n++] = calloc(1, sizeof *f);
        f->name = strdup(r->word);
        f->module = m;
        f->is_entry = is_entry;
        for (int i = 0; i < N_SPECIAL; i++) {
            uint32_t all = ALL_LANES;
            int slot = new_slot(f, 32);
            memcpy(f->file + slot, &all, 4);
        }
    }
    next(r);
    end = 0;
    if (is(r, "("))
        parameters(r, &end);
    f->params_bytes = (size_t)end;
    f->result_bytes = result_bytes;
    for (int i = 0; i < n_results; i++)
        r->names[results_at + i].address += aligned(end, 8);
    if (n_results)
        f->params_bytes = (size_t)aligned(end, 8);
    for (int i = results_at; i < r->n_names && !is_entry; i++) {
        if (i - results_at == MOST_PARAMS)
            refuse(r, "more than %d parameters of %s", MOST_PARAMS, f->name);
        f->places[i - results_at] = (size_t)r->names[i].address;
    }
    f->most_threads = MOST_THREADS;
    for (;;) {
        bool exact = is(r, ".reqntid");
        if (!exact && !is(r, ".maxntid")) {
            if (!take(r, ".minnctapersm") && !take(r, ".maxnreg"))
                break;
            number(r);
            continue;
        }
        next(r);
        f->most_threads = 1;
        do
            f->most_threads *= (int)number(r);
        while (take(r, ","));
        f->exact_threads = exact ? f->most_threads : 0;
    }
    if (!take(r, ";")) {
        r->f = f;
        f->is_defined = true;
        expect(r, "{");
        int outer = r->n_scopes;
        open_scope(r);
        while (r->n_scopes > outer) {
            if (!r->word[0])
                refuse(r, "the end of the text in %s", f->name);
            statement(r);
        }
        resolve_jumps(r);
    }
    close_scope(r);
}

static void skip_section(reader *r)
{
    while (!is(r, "{"))
        next(r);
    for (int depth = 0;; next(r)) {
        depth += is(r, "{") ? 1 : is(r, "}") ? -1 : 0;
        if (!r->word[0] || depth == 0)
            break;
    }
    next(r);
}

static void module(reader *r)
{
    open_scope(r);
    next(r);
    while (r->word[0]) {
        if (take(r, ".version") || take(r, ".address_size"))
            next(r);
        else if (take(r, ".target"))
            do
                next(r);
            while (take(r, ","));
        else if (take(r, ".visible") || take(r, ".extern") || take(r, ".weak"))
            ;
        else if (take(r, ".section"))
            skip_section(r);
        else if (take(r, ".entry"))
            function(r, true);
        else if (take(r, ".func"))
            function(r, false);
        else if (take(r, ".global") || take(r, ".const"))
            global_variable(r);
        else if (take(r, ".shared")) {
            name *n = variable(r, SPACE_SHARED, &r->module->shared_bytes);
            if (n->bytes == 0)                                     /* an array without a length */
                n->address = DYNAMIC_SHARED;
            expect(r, ";");
        } else
            refuse(r, "'%s'", r->word);
    }
    for (int i = 0; i < r->module->n; i++)
        if (!r->module->functions[i]->is_defined)
            refuse(r, "%s has no body", r->module->functions[i]->name);
}

static bool read_whole(reader *r)
{
    if (setjmp(r->failed))
        return false;
    module(r);
    return true;
}

ptx_module *ptx_read(const char *text, char **why)
{
    ptx_module *m = calloc(1, sizeof *m);
    reader r = { .module = m };
    m->text = strdup(text);
    r.at = r.begin = r.word_at = m->text;
    m->globals_cap = strlen(text);
    m->globals = aligned_alloc(512, (m->globals_cap + 512) & ~(size_t)511);
    bool read = read_whole(&r);
    while (r.n_names)
        free(r.names[--r.n_names].name);
    while (r.n_jumps)
        free(r.jumps[--r.n_jumps].name);
    while (r.n_labels)
        free(r.labels[--r.n_labels].name);
    free(r.names), free(r.jumps), free(r.labels);
    if (read)
        return m;
    *why = r.why;
    ptx_free(m);
    return NULL;
}

void ptx_free(ptx_module *m)
{
    for (int i = 0; i < m->n; i++) {
        free(m->functions[i]->name), free(m->functions[i]->code), free(m->functions[i]->file);
        free(m->functions[i]);
    }
    while (m->arena) {
        void *next;
        memcpy(&next, m->arena, sizeof next);
        free(m->arena);
        m->arena = next;
    }
    free(m->functions), free(m->globals), free(m->text);
    free(m);
}

const ptx_kernel *ptx_find(const ptx_module *m, const char *text)
{
    const ptx_function *f = find_function(m, text);
    return f && f->is_entry ? (const ptx_kernel *)f : NULL;
}
