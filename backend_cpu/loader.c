/* Object code -> functions in memory: a linker of relocatable ELF files for x86-64, as small as what LLVM emits for kernels
 * allows.
 *
 * LLVM's ORC would do this (cpu_code_load_orc in jit.c, which other architectures use and which the tests hold this file
 * against), but a start that finds all its objects in the cache would load LLVM for nothing else: opening the library costs
 * some 17 ms and linking through ORC some hundred microseconds an object, where the work here takes a few.
 *
 * All objects of a call become one block of pages,
 *
 *     code                  sections that execute, then stubs       read, execute
 *     constants             sections that do neither, then the GOT  read
 *     data                  sections that are written, zeroes       read, write
 *
 * so that they reach each other by 32-bit offsets. What lies outside (libc, libm) may be farther away than that: each symbol
 * of an object that is called outside or read through the GOT has a slot there that holds its address, and a stub that jumps
 * by it.
 *
 * Objects come from a file that may be damaged: each offset, size and index is checked before use, and a bad one is an error. */
#include "backend_cpu/runtime.h"

#include <math.h>
#include <string.h>

/* -- the C library ---------------------------------------------------------------------------------------------------- */

/* What LLVM calls on its own, for large copies and for mathematics that the level has no instruction for, and what kernels
 * may call by name. bfloat16 has no function here, as its calling convention differs between releases of LLVM: levels
 * without the instruction are to convert by integer arithmetic. */
#define F32_AND_F64(name) { #name "f", (void *)name##f }, { #name, (void *)name }

static const cpu_symbol runtime_functions[] = {
    { "memcpy", (void *)memcpy }, { "memmove", (void *)memmove }, { "memset", (void *)memset }, { "memcmp", (void *)memcmp },
    F32_AND_F64(fma), F32_AND_F64(fmod), F32_AND_F64(sqrt),
    F32_AND_F64(floor), F32_AND_F64(ceil), F32_AND_F64(trunc), F32_AND_F64(round), F32_AND_F64(rint), F32_AND_F64(nearbyint),
    F32_AND_F64(fmin), F32_AND_F64(fmax), F32_AND_F64(ldexp),
    F32_AND_F64(exp), F32_AND_F64(exp2), F32_AND_F64(expm1), F32_AND_F64(log), F32_AND_F64(log2), F32_AND_F64(log10),
    F32_AND_F64(log1p), F32_AND_F64(pow), F32_AND_F64(sin), F32_AND_F64(cos), F32_AND_F64(tan), F32_AND_F64(asin),
    F32_AND_F64(acos), F32_AND_F64(atan), F32_AND_F64(atan2), F32_AND_F64(sinh), F32_AND_F64(cosh), F32_AND_F64(tanh),
    F32_AND_F64(erf), F32_AND_F64(erfc),
};

const cpu_symbol *cpu_runtime_functions(int *n)
{
    *n = COUNT_OF(runtime_functions);
    return runtime_functions;
}

/* -- either loader ---------------------------------------------------------------------------------------------------- */

void *cpu_code_find(const cpu_code *code, const char *name) { return code->find(code, name); }
size_t cpu_code_bytes(const cpu_code *code) { return code->bytes; }

void cpu_code_free(cpu_code *code)
{
    if (code)
        code->free(code);
}

#if !(defined(__x86_64__) && defined(__ELF__))

cpu_code *cpu_code_load(const base_bytes *objects, int n, const cpu_symbol *externals, int n_externals)
{
    return cpu_code_load_orc(objects, n, externals, n_externals);
}

#else

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* A block is at most 1 GB, so that sums of checked sizes cannot wrap and PC-relative offsets inside it always fit. */
enum { STUB_BYTES = 8, SLOT_BYTES = 8, MAX_ALIGN = 4096 };
static const uint64_t max_block = 1u << 30;

static void *runtime_function(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(runtime_functions); i++)
        if (strcmp(runtime_functions[i].name, name) == 0)
            return runtime_functions[i].address;
    return NULL;
}

typedef enum { CODE, CONSTANTS, DATA, GROUPS, NOT_LOADED = GROUPS } group;

typedef struct { group group; uint64_t offset; } place;       /* in its group, and after layout in the block */

typedef struct {
    int number;                                               /* for messages */
    const unsigned char *file;
    size_t size;
    Elf64_Ehdr header;
    place *places;                                            /* one a section */
    uint64_t symbols_at;                                      /* the symbol table in the file, already checked */
    uint32_t n_symbols;
    const char *names;                                        /* ends in '\0' */
    uint64_t names_size;
    int32_t *slots;                                           /* one a symbol: of the GOT and the stubs, -1: none */
} object;

typedef struct { const char *name; unsigned char *address; bool weak; } definition;

typedef struct {
    cpu_code code;                                            /* first: what callers see */
    unsigned char *block;
    definition *definitions;                                  /* sorted by name */
    size_t n_definitions;
    char *names;                                              /* of the definitions, copied from the objects */
} elf_code;

typedef struct {
    elf_code *result;
    object *objects;
    int n;
    const cpu_symbol *externals;
    int n_externals;
    uint64_t group_size[GROUPS], group_start[GROUPS];
    uint64_t stubs_at, slots_at;                              /* in the block */
    int32_t n_slots;
} linker;

/* -- reading an object ------------------------------------------------------------------------------------------------ */

static bool damaged(const object *o, const char *what)
{
    return base_fail(BASE_FAILURE, "object %d of %zu bytes: %s", o->number, o->size, what);
}

static bool in_file(const object *o, uint64_t at, uint64_t size) { return at <= o->size && size <= o->size - at; }

/* Entries may lie at any address of a file: they are copied out, never pointed to. */
static Elf64_Shdr section_at(const object *o, unsigned i)
{
    Elf64_Shdr s;
    memcpy(&s, o->file + o->header.e_shoff + (uint64_t)i * sizeof s, sizeof s);
    return s;
}

static Elf64_Sym symbol_at(const object *o, uint32_t i)
{
    Elf64_Sym s;
    memcpy(&s, o->file + o->symbols_at + (uint64_t)i * sizeof s, sizeof s);
    return s;
}

static Elf64_Rela relocation_at(const object *o, const Elf64_Shdr *table, uint64_t i)
{
    Elf64_Rela r;
    memcpy(&r, o->file + table->sh_offset + i * sizeof r, sizeof r);
    return r;
}

static const char *name_of(const object *o, const Elf64_Sym *s) { return o->names + s->st_name; }

static bool read_header(object *o)
{
    if (o->size < sizeof o->header)
        return damaged(o, "shorter than an ELF header");
    memcpy(&o->header, o->file, sizeof o->header);
    const Elf64_Ehdr *h = &o->header;
    if (memcmp(h->e_ident, ELFMAG, SELFMAG) != 0 || h->e_ident[EI_CLASS] != ELFCLASS64 || h->e_ident[EI_DATA] != ELFDATA2LSB)
        return damaged(o, "expected a 64-bit little-endian ELF file");
    if (h->e_type != ET_REL || h->e_machine != EM_X86_64)
        return damaged(o, "expected a relocatable object for x86-64");
    if (h->e_shentsize != sizeof(Elf64_Shdr) || h->e_shnum == 0 ||
        !in_file(o, h->e_shoff, (uint64_t)h->e_shnum * sizeof(Elf64_Shdr)))
        return damaged(o, "the section table does not lie in the file");
    return true;
}

static bool read_symbol_table(object *o, const Elf64_Shdr *s)
{
    if (o->names)
        return damaged(o, "expected one symbol table");
    if (s->sh_entsize != sizeof(Elf64_Sym) || !in_file(o, s->sh_offset, s->sh_size))
        return damaged(o, "the symbol table does not lie in the file");
    if (s->sh_link >= o->header.e_shnum)
        return damaged(o, "the symbol table has no names");
    Elf64_Shdr names = section_at(o, s->sh_link);
    if (names.sh_type != SHT_STRTAB || names.sh_size == 0 || !in_file(o, names.sh_offset, names.sh_size) ||
        o->file[names.sh_offset + names.sh_size - 1] != '\0')
        return damaged(o, "the names of symbols do not lie in the file");
    o->symbols_at = s->sh_offset;
    o->n_symbols = (uint32_t)(s->sh_size / sizeof(Elf64_Sym));
    o->names = (const char *)o->file + names.sh_offset;
    o->names_size = names.sh_size;
    return true;
}

/* Reserves room of a group of the block. */
static bool reserve(linker *l, group g, uint64_t size, uint64_t align, uint64_t *offset)
{
    uint64_t at = (l->group_size[g] + align - 1) & ~(align - 1);
    if (size > max_block || at + size > max_block)
        return base_fail(BASE_FAILURE, "objects of more than %llu MB", (unsigned long long)max_block >> 20);
    *offset = at;
    l->group_size[g] = at + size;
    return true;
}

static bool place_section(linker *l, object *o, unsigned i, const Elf64_Shdr *s)
{
    o->places[i].group = NOT_LOADED;
    if (!(s->sh_flags & SHF_ALLOC))
        return true;
    if (s->sh_flags & SHF_TLS)
        return damaged(o, "thread-local data is not supported");
    if (s->sh_type == SHT_INIT_ARRAY || s->sh_type == SHT_FINI_ARRAY)
        return damaged(o, "constructors are not supported");
    if ((s->sh_flags & SHF_EXECINSTR) && (s->sh_flags & SHF_WRITE))
        return damaged(o, "a section both executes and is written");
    if (s->sh_type != SHT_NOBITS && !in_file(o, s->sh_offset, s->sh_size))
        return damaged(o, "a section does not lie in the file");
    uint64_t align = MAX(s->sh_addralign, (uint64_t)1);
    if (align > MAX_ALIGN || (align & (align - 1)) != 0)
        return damaged(o, "expected an alignment of 1, 2, 4 ... 4096");
    group g = s->sh_flags & SHF_EXECINSTR ? CODE : s->sh_flags & SHF_WRITE ? DATA : CONSTANTS;
    o->places[i].group = g;
    return reserve(l, g, s->sh_size, align, &o->places[i].offset);
}

static bool check_symbol(const object *o, const Elf64_Sym *s)
{
    int type = ELF64_ST_TYPE(s->st_info);
    if (s->st_name >= o->names_size)
        return damaged(o, "the name of a symbol does not lie in the file");
    if (type == STT_TLS || type == STT_GNU_IFUNC || s->st_shndx == SHN_COMMON)
        return base_fail(BASE_FAILURE, "object %d: symbol %s is of a kind that is not supported", o->number, name_of(o, s));
    if (s->st_shndx == SHN_UNDEF || s->st_shndx == SHN_ABS)
        return true;
    if (s->st_shndx >= o->header.e_shnum)
        return damaged(o, "a symbol is of no section");
    if (o->places[s->st_shndx].group != NOT_LOADED && s->st_value > section_at(o, s->st_shndx).sh_size)
        return damaged(o, "a symbol does not lie in its section");
    return true;
}

/* Relocation tables of loaded sections, in file order: true while there is one; *i goes on from section to section. */
static bool next_relocations(const object *o, unsigned *i, Elf64_Shdr *table)
{
    for (; *i < o->header.e_shnum; ++*i) {
        *table = section_at(o, *i);
        if ((table->sh_type == SHT_RELA || table->sh_type == SHT_REL) && table->sh_info < o->header.e_shnum &&
            o->places[table->sh_info].group != NOT_LOADED) {
            ++*i;
            return true;
        }
    }
    return false;
}

static bool is_by_slot(const object *o, uint32_t type, uint32_t symbol)
{
    switch (type) {
    case R_X86_64_GOTPCREL:
    case R_X86_64_GOTPCRELX:
    case R_X86_64_REX_GOTPCRELX:
        return true;
    case R_X86_64_PLT32:
        return symbol_at(o, symbol).st_shndx == SHN_UNDEF;
    default:
        return false;
    }
}

static bool scan_relocations(linker *l, object *o)
{
    Elf64_Shdr table;
    for (unsigned section = 0; next_relocations(o, &section, &table); ) {
        Elf64_Shdr target = section_at(o, table.sh_info);
        if (table.sh_type != SHT_RELA || table.sh_entsize != sizeof(Elf64_Rela) ||
            !in_file(o, table.sh_offset, table.sh_size))
            return damaged(o, "a relocation table does not lie in the file");
        if (target.sh_type == SHT_NOBITS)
            return damaged(o, "a relocation of zeroes");
        for (uint64_t i = 0; i < table.sh_size / sizeof(Elf64_Rela); i++) {
            Elf64_Rela r = relocation_at(o, &table, i);
            uint32_t symbol = ELF64_R_SYM(r.r_info), type = ELF64_R_TYPE(r.r_info);
            uint64_t width = type == R_X86_64_64 || type == R_X86_64_PC64 ? 8 : type == R_X86_64_NONE ? 0 : 4;
            if (symbol >= o->n_symbols || r.r_offset > target.sh_size || width > target.sh_size - r.r_offset)
                return damaged(o, "a relocation does not lie in its section");
            if (is_by_slot(o, type, symbol) && o->slots[symbol] < 0)
                o->slots[symbol] = l->n_slots++;
        }
    }
    return true;
}

static bool read_object(linker *l, object *o)
{
    if (!read_header(o))
        return false;
    unsigned n = o->header.e_shnum;
    o->places = base_alloc(sizeof(place) * n);
    for (unsigned i = 0; i < n; i++) {
        Elf64_Shdr s = section_at(o, i);
        if (!place_section(l, o, i, &s) || (s.sh_type == SHT_SYMTAB && !read_symbol_table(o, &s)))
            return false;
    }
    o->slots = base_alloc(sizeof(int32_t) * MAX(o->n_symbols, 1u));
    for (uint32_t i = 0; i < o->n_symbols; i++) {
        Elf64_Sym s = symbol_at(o, i);
        o->slots[i] = -1;
        if (!check_symbol(o, &s))
            return false;
    }
    return scan_relocations(l, o);
}

/* -- layout ----------------------------------------------------------------------------------------------------------- */

static bool map_block(linker *l)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), end = 0;
    if (!reserve(l, CODE, (uint64_t)l->n_slots * STUB_BYTES, 64, &l->stubs_at) ||
        !reserve(l, CONSTANTS, (uint64_t)l->n_slots * SLOT_BYTES, 64, &l->slots_at))
        return false;
    for (int g = 0; g < GROUPS; g++) {
        l->group_start[g] = end;
        end += (l->group_size[g] + page - 1) & ~(page - 1);
    }
    end = MAX(end, page);                                     /* no kernel at all is a program too */
    l->stubs_at += l->group_start[CODE];
    l->slots_at += l->group_start[CONSTANTS];
    for (int i = 0; i < l->n; i++)
        for (unsigned s = 0; s < l->objects[i].header.e_shnum; s++)
            if (l->objects[i].places[s].group != NOT_LOADED)
                l->objects[i].places[s].offset += l->group_start[l->objects[i].places[s].group];

    void *block = mmap(NULL, end, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED)
        return base_fail(BASE_FAILURE, "%llu bytes for code: %s", (unsigned long long)end, strerror(errno));
    l->result->block = block;
    l->result->code.bytes = end;
    return true;
}

static void copy_sections(linker *l, const object *o)
{
    for (unsigned i = 0; i < o->header.e_shnum; i++) {
        Elf64_Shdr s = section_at(o, i);
        if (o->places[i].group != NOT_LOADED && s.sh_type != SHT_NOBITS && s.sh_size > 0)
            memcpy(l->result->block + o->places[i].offset, o->file + s.sh_offset, s.sh_size);
    }
}

/* -- symbols ---------------------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const definition *)a)->name, ((const definition *)b)->name);
}

static const definition *find_definition(const elf_code *code, const char *name)
{
    definition key = { .name = name };
    return bsearch(&key, code->definitions, code->n_definitions, sizeof key, by_name);
}

static bool is_definition(const object *o, const Elf64_Sym *s)
{
    return ELF64_ST_BIND(s->st_info) != STB_LOCAL && *name_of(o, s) && s->st_shndx != SHN_UNDEF && s->st_shndx != SHN_ABS &&
           o->places[s->st_shndx].group != NOT_LOADED;
}

/* What the objects define, sorted. Of weak definitions of one name any may be taken: they say the same. */
static bool collect_definitions(linker *l)
{
    elf_code *code = l->result;
    size_t count = 0, name_bytes = 0;
    for (int i = 0; i < l->n; i++)
        for (uint32_t k = 0; k < l->objects[i].n_symbols; k++) {
            Elf64_Sym s = symbol_at(&l->objects[i], k);
            if (is_definition(&l->objects[i], &s)) {
                count++;
                name_bytes += strlen(name_of(&l->objects[i], &s)) + 1;
            }
        }
    code->definitions = base_alloc(sizeof(definition) * MAX(count, (size_t)1));
    char *name = code->names = base_alloc(name_bytes);
    for (int i = 0; i < l->n; i++)
        for (uint32_t k = 0; k < l->objects[i].n_symbols; k++) {
            const object *o = &l->objects[i];
            Elf64_Sym s = symbol_at(o, k);
            if (!is_definition(o, &s))
                continue;
            code->definitions[code->n_definitions++] = (definition){
                .name = strcpy(name, name_of(o, &s)),
                .address = code->block + o->places[s.st_shndx].offset + s.st_value,
                .weak = ELF64_ST_BIND(s.st_info) == STB_WEAK };
            name += strlen(name) + 1;
        }
    qsort(code->definitions, count, sizeof(definition), by_name);

    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        definition *last = kept ? &code->definitions[kept - 1] : NULL, *next = &code->definitions[i];
        if (!last || strcmp(last->name, next->name) != 0)
            code->definitions[kept++] = *next;
        else if (!last->weak && !next->weak)
            return base_fail(BASE_FAILURE, "objects define %s twice", next->name);
        else if (last->weak)
            *last = *next;
    }
    code->n_definitions = kept;
    return true;
}

static bool symbol_address(const linker *l, const object *o, uint32_t index, uint64_t *address)
{
    Elf64_Sym s = symbol_at(o, index);
    *address = 0;
    if (index == 0)
        return true;
    if (s.st_shndx == SHN_ABS) {
        *address = s.st_value;
        return true;
    }
    if (s.st_shndx != SHN_UNDEF) {
        if (o->places[s.st_shndx].group == NOT_LOADED)
            return damaged(o, "a relocation against a section that is not loaded");
        *address = (uint64_t)(uintptr_t)l->result->block + o->places[s.st_shndx].offset + s.st_value;
        return true;
    }
    const char *name = name_of(o, &s);
    const definition *d = find_definition(l->result, name);
    if (d)
        *address = (uint64_t)(uintptr_t)d->address;
    for (int i = 0; !*address && i < l->n_externals; i++)
        if (strcmp(l->externals[i].name, name) == 0)
            *address = (uint64_t)(uintptr_t)l->externals[i].address;
    if (!*address)
        *address = (uint64_t)(uintptr_t)runtime_function(name);
    if (!*address && ELF64_ST_BIND(s.st_info) != STB_WEAK)
        return base_fail(BASE_FAILURE, "object %d: nothing defines %s", o->number, name);
    return true;
}

/* -- relocation ------------------------------------------------------------------------------------------------------- */

static bool fill_slots(linker *l, const object *o)
{
    for (uint32_t i = 0; i < o->n_symbols; i++) {
        uint64_t address;
        if (o->slots[i] < 0)
            continue;
        if (!symbol_address(l, o, i, &address))
            return false;
        uint64_t slot = l->slots_at + (uint64_t)o->slots[i] * SLOT_BYTES, stub = l->stubs_at + (uint64_t)o->slots[i] * STUB_BYTES;
        int32_t offset = (int32_t)(slot - (stub + 6));
        unsigned char jump[STUB_BYTES] = { 0xff, 0x25, 0, 0, 0, 0, 0xcc, 0xcc };      /* jmp *offset(%rip); int3; int3 */
        memcpy(jump + 2, &offset, 4);
        memcpy(l->result->block + slot, &address, 8);
        memcpy(l->result->block + stub, jump, sizeof jump);
    }
    return true;
}

/* S + A, S + A - P and so on, as the psABI for x86-64 has them (S: the symbol, A: the addend, P: the place). */
static bool relocate(linker *l, const object *o, unsigned char *at, const Elf64_Rela *r)
{
    uint32_t symbol = ELF64_R_SYM(r->r_info), type = ELF64_R_TYPE(r->r_info);
    uint64_t block = (uint64_t)(uintptr_t)l->result->block, place = (uint64_t)(uintptr_t)at, target;
    bool fits = true;
    uint64_t value = 0;

    if (type == R_X86_64_NONE)
        return true;
    if (is_by_slot(o, type, symbol))
        target = block + (type == R_X86_64_PLT32 ? l->stubs_at + (uint64_t)o->slots[symbol] * STUB_BYTES
                                                 : l->slots_at + (uint64_t)o->slots[symbol] * SLOT_BYTES);
    else if (!symbol_address(l, o, symbol, &target))
        return false;
    target += (uint64_t)r->r_addend;

    switch (type) {
    case R_X86_64_64:
        memcpy(at, &target, 8);
        return true;
    case R_X86_64_PC64:
        value = target - place;
        memcpy(at, &value, 8);
        return true;
    case R_X86_64_32:
        value = target;
        fits = value <= UINT32_MAX;
        break;
    case R_X86_64_32S:
        value = target;
        fits = (int64_t)value == (int32_t)value;
        break;
    case R_X86_64_PC32:
    case R_X86_64_PLT32:
    case R_X86_64_GOTPCREL:
    case R_X86_64_GOTPCRELX:
    case R_X86_64_REX_GOTPCRELX:
        value = target - place;
        fits = (int64_t)value == (int32_t)value;
        break;
    default:
        return base_fail(BASE_FAILURE, "object %d: relocation type %u is not supported", o->number, type);
    }
    if (!fits) {
        Elf64_Sym s = symbol_at(o, symbol);
        return base_fail(BASE_FAILURE, "object %d: symbol %s is out of reach of a 32-bit relocation", o->number, name_of(o, &s));
    }
    memcpy(at, &value, 4);
    return true;
}

static bool relocate_object(linker *l, const object *o)
{
    Elf64_Shdr table;
    for (unsigned section = 0; next_relocations(o, &section, &table); ) {
        unsigned char *base = l->result->block + o->places[table.sh_info].offset;
        for (uint64_t i = 0; i < table.sh_size / sizeof(Elf64_Rela); i++) {
            Elf64_Rela r = relocation_at(o, &table, i);
            if (!relocate(l, o, base + r.r_offset, &r))
                return false;
        }
    }
    return true;
}

static bool protect(linker *l)
{
    static const int modes[GROUPS] = { PROT_READ | PROT_EXEC, PROT_READ, PROT_READ | PROT_WRITE };
    for (int g = 0; g < DATA; g++) {
        uint64_t size = l->group_start[g + 1] - l->group_start[g];
        if (size && mprotect(l->result->block + l->group_start[g], size, modes[g]) != 0)
            return base_fail(BASE_FAILURE, "the system refuses memory to execute code in: %s", strerror(errno));
    }
    return true;
}

/* -- perf ------------------------------------------------------------------------------------------------------------- */

/* With RAX_PERF set, /tmp/perf-PID.map names the functions for `perf report`. */
static void write_perf_map(const linker *l)
{
    const char *wanted = getenv("RAX_PERF");
    if (!wanted || !*wanted || strcmp(wanted, "0") == 0)
        return;
    char path[64];
    snprintf(path, sizeof path, "/tmp/perf-%ld.map", (long)getpid());
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
    FILE *file = fd >= 0 ? fdopen(fd, "a") : NULL;
    if (!file)
        return;
    for (int i = 0; i < l->n; i++)
        for (uint32_t k = 0; k < l->objects[i].n_symbols; k++) {
            const object *o = &l->objects[i];
            Elf64_Sym s = symbol_at(o, k);
            uint64_t address;
            if (ELF64_ST_TYPE(s.st_info) == STT_FUNC && s.st_shndx != SHN_UNDEF && symbol_address(l, o, k, &address))
                fprintf(file, "%llx %llx %s\n", (unsigned long long)address, (unsigned long long)s.st_size, name_of(o, &s));
        }
    fclose(file);
}

/* -- what the header promises ----------------------------------------------------------------------------------------- */

static void *elf_find(const cpu_code *code, const char *name)
{
    const definition *d = find_definition((const elf_code *)code, name);
    return d ? d->address : NULL;
}

static void elf_free(cpu_code *code)
{
    elf_code *c = (elf_code *)code;
    if (c->block)
        munmap(c->block, c->code.bytes);
    base_free(c->definitions);
    base_free(c->names);
    base_free(c);
}

static bool link_objects(linker *l)
{
    for (int i = 0; i < l->n; i++)
        if (!read_object(l, &l->objects[i]))
            return false;
    if (!map_block(l) || !collect_definitions(l))
        return false;
    for (int i = 0; i < l->n; i++)
        copy_sections(l, &l->objects[i]);
    for (int i = 0; i < l->n; i++)
        if (!fill_slots(l, &l->objects[i]) || !relocate_object(l, &l->objects[i]))
            return false;
    if (!protect(l))
        return false;
    write_perf_map(l);
    return true;
}

cpu_code *cpu_code_load(const base_bytes *objects, int n, const cpu_symbol *externals, int n_externals)
{
    linker l = { .n = n, .externals = externals, .n_externals = n_externals };
    l.objects = base_alloc(sizeof(object) * (size_t)MAX(n, 1));
    l.result = base_alloc(sizeof(elf_code));
    l.result->code.find = elf_find;
    l.result->code.free = elf_free;
    for (int i = 0; i < n; i++) {
        l.objects[i].number = i;
        l.objects[i].file = objects[i].at;
        l.objects[i].size = objects[i].size;
    }

    bool linked = link_objects(&l);
    for (int i = 0; i < n; i++) {
        base_free(l.objects[i].places);
        base_free(l.objects[i].slots);
    }
    base_free(l.objects);
    if (linked)
        return &l.result->code;
    elf_free(&l.result->code);
    return NULL;
}

#endif
