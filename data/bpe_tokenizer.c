/* GPT-2's byte-level byte-pair encoding (Radford et al., Language Models are Unsupervised Multitask Learners, 2019).
 *
 *     "it's  late"  ->  words "it" "'s" " " " late"  ->  bytes  ->  merges, lowest rank first  ->  270 338 220 2739
 *
 * A regular expression cuts the text into words. A word begins as a token a byte; then, as long as any two neighbours are in
 * the table of merges, the pair of lowest rank, leftmost first, becomes one token. Text is bytes throughout: what is not
 * valid UTF-8 is a word of its own, which the regular expression does not see.
 *
 * Text repeats its words, so most come from a cache. A word not in it is merged by looking at all pairs again after each
 * merge, which is quadratic and fastest for the words that text has; a long one (a line of dashes, a megabyte of zeros) goes
 * through a heap instead. */
#define PCRE2_CODE_UNIT_WIDTH 8
#define XXH_INLINE_ALL
#include "data/data.h"
#include "rax.h"

#include <cjson/cJSON.h>
#include <pcre2.h>
#include <string.h>
#include <xxhash.h>

/* GPT-2's own expression,  's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+  with \s spelled out
 * as Unicode's White_Space: PCRE2's \s has U+180E besides, which was white space up to Unicode 6.2. */
#define WHITE "\\t-\\r\\x{85}\\p{Z}"
static const char words_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WHITE "\\p{L}\\p{N}]+|[" WHITE "]+(?![^" WHITE "])|[" WHITE "]+";

static const char end_of_text[] = "<|endoftext|>";

/* What a word or a special token at p can depend on is less than this beyond its end: the rest of a <|endoftext|> that would
 * have ended it sooner, or one character that would have made it longer. */
enum { LOOK_AHEAD = 16 };

enum {
    TOKENS_MAX = 65535,              /* ids of merges are 16 bits, and NO_PAIR is no pair of ids */
    MERGES_LOG2 = 17,                /* slots for at most 65,535 merges: never more than half full */
    MERGES_MASK = (1 << MERGES_LOG2) - 1,
    NO_RANK = UINT32_MAX,
    SHORT_WORD = 48,                 /* bytes; up to here the quadratic way is the faster one */
    CACHE_LOG2 = 15,
    CACHED_BYTES = 30,
    CACHED_IDS = 16,
};
#define NO_PAIR UINT32_MAX

typedef struct {
    uint32_t pair;                   /* left << 16 | right; NO_PAIR: the slot is empty */
    uint16_t rank, merged;
} merge;

/* A word and its ids in one cache line. The table is direct-mapped: a word takes the place of another with its hash. */
typedef struct {
    uint8_t len, count;              /* len 0: empty */
    char word[CACHED_BYTES];
    uint16_t ids[CACHED_IDS];
} cached_word;
_Static_assert(sizeof(cached_word) == 64, "a cached word should be a cache line");

struct data_bpe {
    int vocab_size, end_of_text;     /* end_of_text -1: the vocabulary has none */
    data_text *tokens;               /* by id, in `bytes` */
    char *bytes;
    uint16_t byte_id[256];
    merge *merges;                   /* open addressing, linear probing */
    cached_word *cache;
    pcre2_code *words;
    pcre2_match_data *match;
};

/* -- merges ----------------------------------------------------------------------------------------------------------- */

static merge *merge_slot(const data_bpe *bpe, uint32_t pair)
{
    uint32_t i = (uint32_t)((pair * 0x9E3779B97F4A7C15u) >> (64 - MERGES_LOG2));
    while (bpe->merges[i].pair != pair && bpe->merges[i].pair != NO_PAIR)
        i = (i + 1) & MERGES_MASK;
    return &bpe->merges[i];
}

static uint32_t rank_of(const data_bpe *bpe, uint32_t left, uint32_t right)
{
    const merge *m = merge_slot(bpe, left << 16 | right);
    return m->pair == NO_PAIR ? NO_RANK : m->rank;
}

/* ranks[i] is the rank of the pair that begins at i. */
static size_t merge_short(const data_bpe *bpe, data_text word, uint16_t *ids)
{
    uint32_t ranks[SHORT_WORD];
    size_t n = word.len;

    for (size_t i = 0; i < n; i++)
        ids[i] = bpe->byte_id[(uint8_t)word.at[i]];
    for (size_t i = 0; i + 1 < n; i++)
        ranks[i] = rank_of(bpe, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (ranks[i] < ranks[best])
                best = i;
        if (ranks[best] == NO_RANK)
            break;
        ids[best] = merge_slot(bpe, (uint32_t)ids[best] << 16 | ids[best + 1])->merged;
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
        if (best + 1 < n) {
            memmove(ranks + best + 1, ranks + best + 2, (n - best - 2) * sizeof *ranks);
            ranks[best] = rank_of(bpe, ids[best], ids[best + 1]);
        }
        if (best > 0)
            ranks[best - 1] = rank_of(bpe, ids[best - 1], ids[best]);
    }
    return n;
}

/* A binary heap of rank << 32 | position. An entry is stale where the pair now at its position has another rank, and is
 * passed over when it comes up. A merge makes two pairs and uses up one entry, so 2n entries are room enough. */
typedef struct { uint64_t *at; size_t len; } heap;

static void heap_push(heap *h, uint64_t entry)
{
    size_t i = h->len++;
    for (; i > 0 && h->at[(i - 1) / 2] > entry; i = (i - 1) / 2)
        h->at[i] = h->at[(i - 1) / 2];
    h->at[i] = entry;
}

static uint64_t heap_pop(heap *h)
{
    uint64_t top = h->at[0], entry = h->at[--h->len];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < h->len; i = child) {
        if (child + 1 < h->len && h->at[child + 1] < h->at[child])
            child++;
        if (h->at[child] >= entry)
            break;
        h->at[i] = h->at[child];
    }
    h->at[i] = entry;
    return top;
}

typedef struct { uint32_t id, before, after; } link;     /* before, after: positions; GONE: none */
#define GONE UINT32_MAX

static void push_pair(const data_bpe *bpe, heap *h, const link *links, uint32_t left)
{
    if (left == GONE || links[left].after == GONE)
        return;
    uint32_t rank = rank_of(bpe, links[left].id, links[links[left].after].id);
    if (rank != NO_RANK)
        heap_push(h, (uint64_t)rank << 32 | left);
}

static bool merge_long(const data_bpe *bpe, data_text word, data_ids *ids)
{
    if (word.len >= GONE / 2)
        return rax_fail(RAX_MISTAKE, "gpt2 tokenizer: a word of %zu bytes is too long", word.len);
    link *links = rax_try_alloc(word.len * sizeof *links);
    heap h = { rax_try_alloc(2 * word.len * sizeof *h.at), 0 };
    bool ok = links && h.at && data_ids_reserve(ids, word.len);
    if (!ok)
        rax_fail(RAX_FAILURE, "gpt2 tokenizer: no memory for a word of %zu bytes", word.len);

    uint32_t n = ok ? (uint32_t)word.len : 0;
    for (uint32_t i = 0; i < n; i++)
        links[i] = (link){ bpe->byte_id[(uint8_t)word.at[i]], i ? i - 1 : GONE, i + 1 < n ? i + 1 : GONE };
    for (uint32_t i = 0; i < n; i++)
        push_pair(bpe, &h, links, i);
    while (h.len > 0) {
        uint64_t entry = heap_pop(&h);
        uint32_t left = (uint32_t)entry, right = links[left].after;
        if (links[left].id == GONE || right == GONE)
            continue;
        const merge *m = merge_slot(bpe, links[left].id << 16 | links[right].id);
        if (m->pair == NO_PAIR || m->rank != entry >> 32)
            continue;
        links[left].id = m->merged;
        links[left].after = links[right].after;
        links[right].id = GONE;
        if (links[left].after != GONE)
            links[links[left].after].before = left;
        push_pair(bpe, &h, links, links[left].before);
        push_pair(bpe, &h, links, left);
    }
    for (uint32_t i = 0; i < n; i = links[i].after) {        /* position 0 is never merged away; GONE ends it */
        ids->at[ids->len++] = (int32_t)links[i].id;
        if (links[i].after == GONE)
            break;
    }
    rax_free(links);
    rax_free(h.at);
    return ok;
}

static bool encode_word(data_bpe *bpe, data_text word, data_ids *ids)
{
    if (word.len > SHORT_WORD)
        return merge_long(bpe, word, ids);
    if (!data_ids_reserve(ids, SHORT_WORD))
        return false;

    bool can_cache = word.len <= CACHED_BYTES;
    cached_word *slot = NULL;
    if (can_cache) {
        slot = &bpe->cache[XXH3_64bits(word.at, word.len) >> (64 - CACHE_LOG2)];
        if (slot->len == word.len && memcmp(slot->word, word.at, word.len) == 0) {
            for (int i = 0; i < slot->count; i++)
                ids->at[ids->len++] = slot->ids[i];
            return true;
        }
    }
    uint16_t merged[SHORT_WORD];
    size_t n = merge_short(bpe, word, merged);
    for (size_t i = 0; i < n; i++)
        ids->at[ids->len++] = merged[i];
    if (can_cache && n <= CACHED_IDS) {
        slot->len = (uint8_t)word.len;
        slot->count = (uint8_t)n;
        memcpy(slot->word, word.at, word.len);
        memcpy(slot->ids, merged, n * sizeof *merged);
    }
    return true;
}

/* -- words ------------------------------------------------------------------------------------------------------------ */

/* Valid UTF-8 from text.at + *used up to stop, word by word; a word that ends beyond keep is left. */
static bool encode_valid(data_bpe *bpe, data_text text, size_t stop, size_t keep, data_ids *ids, size_t *used)
{
    while (*used < stop) {
        int found = pcre2_match(bpe->words, (PCRE2_SPTR)text.at, stop, *used, PCRE2_NO_UTF_CHECK, bpe->match, NULL);
        if (found < 0)
            return rax_fail(RAX_FAILURE, "gpt2 tokenizer: the expression for words failed at byte %zu (PCRE2 error %d)",
                            *used, found);
        size_t end = pcre2_get_ovector_pointer(bpe->match)[1];
        if (end > keep)
            return true;
        if (!encode_word(bpe, (data_text){ text.at + *used, end - *used }, ids))
            return false;
        *used = end;
    }
    return true;
}

static size_t invalid_run(data_text text)
{
    size_t len = 0;
    uint32_t c;
    while (len < text.len && data_utf8_char((data_text){ text.at + len, text.len - len }, &c) == 0)
        len++;
    return len;
}

bool data_bpe_encode(data_bpe *bpe, data_text text, bool whole, data_ids *ids, size_t *used)
{
    size_t keep = whole ? text.len : text.len > LOOK_AHEAD ? text.len - LOOK_AHEAD : 0;
    size_t special = 0, special_len = sizeof end_of_text - 1;
    bool special_known = false;

    *used = 0;
    while (*used < keep) {
        if (!special_known) {
            const char *at = NULL;
            if (bpe->end_of_text >= 0)
                at = memmem(text.at + *used, text.len - *used, end_of_text, special_len);
            special = at ? (size_t)(at - text.at) : text.len;
            special_known = true;
        }
        if (*used == special) {
            if (!data_ids_reserve(ids, 1))
                return false;
            ids->at[ids->len++] = bpe->end_of_text;
            *used += special_len;
            special_known = false;
            continue;
        }
        size_t before = *used;
        data_text stretch = { text.at + before, special - before };
        size_t valid = data_utf8_valid(stretch);
        if (valid > 0) {
            if (!encode_valid(bpe, text, before + valid, keep, ids, used))
                return false;
            if (*used < before + valid)
                return true;
        } else {
            size_t len = invalid_run(stretch);
            if (before + len > keep)
                return true;
            if (!encode_word(bpe, (data_text){ stretch.at, len }, ids))
                return false;
            *used += len;
        }
    }
    return true;
}

/* -- GPT-2's files ---------------------------------------------------------------------------------------------------- */

/* Both files write bytes as printable characters: a byte that prints in Latin-1 as itself, the 68 others as U+0100, U+0101,
 * and so on in their order. The space is "Ġ", U+0120. Returns the byte of a character, -1 where it stands for none. */
static int byte_of(uint32_t c)
{
    if ((c >= '!' && c <= '~') || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF))
        return (int)c;
    if (c < 0x100)
        return -1;
    uint32_t other = 0x100;
    for (int byte = 0; byte < 256; byte++)
        if ((byte <= ' ' || (byte > '~' && byte <= 0xA0) || byte == 0xAD) && other++ == c)
            return byte;
    return -1;
}

/* Token text as written in the files, to bytes; returns how many, -1 where a character stands for no byte. */
static int64_t bytes_of(data_text written, char *bytes)
{
    int64_t count = 0;

    while (written.len > 0) {
        uint32_t c;
        size_t size = data_utf8_char(written, &c);
        int byte = size ? byte_of(c) : -1;
        if (byte < 0)
            return -1;
        bytes[count++] = (char)byte;
        written.at += size, written.len -= size;
    }
    return count;
}

/* From bytes to id, while the files are read. Slots hold id + 1. */
typedef struct { const data_bpe *bpe; uint32_t *slots; size_t mask; } token_index;

static uint32_t *index_slot(const token_index *index, data_text token)
{
    size_t i = XXH3_64bits(token.at, token.len) & index->mask;
    for (; index->slots[i]; i = (i + 1) & index->mask) {
        data_text other = index->bpe->tokens[index->slots[i] - 1];
        if (other.len == token.len && memcmp(other.at, token.at, token.len) == 0)
            break;
    }
    return &index->slots[i];
}

static bool read_tokens(data_bpe *bpe, token_index *index, const cJSON *object, const char *path, size_t file_len)
{
    int count = cJSON_IsObject(object) ? cJSON_GetArraySize(object) : 0;
    if (count < 256 || count > TOKENS_MAX)
        return rax_fail(RAX_MISTAKE, "%s: expected a JSON object of 256 to %d tokens and their ids", path, TOKENS_MAX);
    bpe->vocab_size = count;
    bpe->tokens = rax_alloc(sizeof *bpe->tokens * (size_t)count);
    bpe->bytes = rax_alloc(file_len);                    /* a byte is never more than the characters that it is written in */
    char *free_bytes = bpe->bytes;

    int number = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, object) {
        number++;
        int64_t len = bytes_of((data_text){ item->string, strlen(item->string) }, free_bytes);
        if (len <= 0)
            return rax_fail(RAX_MISTAKE, "%s: token number %d is empty or has a character that stands for no byte",
                            path, number);
        double id = cJSON_IsNumber(item) ? item->valuedouble : -1;
        if (!(id >= 0 && id < count && id == (int)id))
            return rax_fail(RAX_MISTAKE, "%s: token \"%.40s\": expected an id from 0 to %d", path, item->string, count - 1);
        if (bpe->tokens[(int)id].at)
            return rax_fail(RAX_MISTAKE, "%s: id %d belongs to two tokens, \"%.40s\" is one", path, (int)id, item->string);
        data_text token = { free_bytes, (size_t)len };
        uint32_t *slot = index_slot(index, token);
        if (*slot)
            return rax_fail(RAX_MISTAKE, "%s: token \"%.40s\" is there twice", path, item->string);
        bpe->tokens[(int)id] = token;
        *slot = (uint32_t)id + 1;
        free_bytes += len;
    }
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        uint32_t id = *index_slot(index, (data_text){ &c, 1 });
        if (id == 0)
            return rax_fail(RAX_MISTAKE, "%s: byte 0x%02X has no token", path, byte);
        bpe->byte_id[byte] = (uint16_t)(id - 1);
    }
    bpe->end_of_text = (int)*index_slot(index, (data_text){ end_of_text, sizeof end_of_text - 1 }) - 1;
    return true;
}

/* A line is two tokens with a space between, the lowest rank first; a line that begins with #version may come before. */
static bool read_merges(data_bpe *bpe, const token_index *index, data_text file, const char *path)
{
    char *bytes = rax_alloc(file.len + 1);
    bool ok = true;
    uint32_t rank = 0;

    for (int line_number = 1; ok && file.len > 0; line_number++) {
        const char *end = memchr(file.at, '\n', file.len);
        data_text line = { file.at, end ? (size_t)(end - file.at) : file.len };
        file.at += line.len + (end != NULL), file.len -= line.len + (end != NULL);
        if (line.len > 0 && line.at[line.len - 1] == '\r')
            line.len--;
        if (line.len == 0 || (line_number == 1 && line.len >= 8 && memcmp(line.at, "#version", 8) == 0))
            continue;

        const char *space = memchr(line.at, ' ', line.len);
        size_t left_len = space ? (size_t)(space - line.at) : line.len;
        size_t right_len = space ? line.len - left_len - 1 : 0;
        int64_t left = bytes_of((data_text){ line.at, left_len }, bytes);
        int64_t right = left > 0 && right_len > 0 ? bytes_of((data_text){ space + 1, right_len }, bytes + left) : -1;
        uint32_t left_id = 0, right_id = 0, merged_id = 0;
        if (left > 0 && right > 0) {
            left_id = *index_slot(index, (data_text){ bytes, (size_t)left });
            right_id = *index_slot(index, (data_text){ bytes + left, (size_t)right });
            merged_id = *index_slot(index, (data_text){ bytes, (size_t)(left + right) });
        }
        if (!left_id || !right_id || !merged_id) {
            ok = rax_fail(RAX_MISTAKE, "%s:%d: expected two tokens of the vocabulary that make a third, found '%.*s'", path,
                          line_number, line.len > 60 ? 60 : (int)line.len, line.at);
            break;
        }
        merge *slot = merge_slot(bpe, (left_id - 1) << 16 | (right_id - 1));
        if (slot->pair != NO_PAIR || rank >= TOKENS_MAX) {
            ok = rax_fail(RAX_MISTAKE, "%s:%d: %s", path, line_number,
                          slot->pair != NO_PAIR ? "this merge is there twice" : "too many merges");
            break;
        }
        *slot = (merge){ (left_id - 1) << 16 | (right_id - 1), (uint16_t)rank++, (uint16_t)(merged_id - 1) };
    }
    rax_free(bytes);
    return ok && (rank > 0 || rax_fail(RAX_MISTAKE, "%s: holds no merges", path));
}

static bool compile_words(data_bpe *bpe)
{
    int error;
    PCRE2_SIZE where;

    /* Anchored: every character begins some word, so the search never has to move on. */
    bpe->words = pcre2_compile((PCRE2_SPTR)words_pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED,
                               &error, &where, NULL);
    bpe->match = bpe->words ? pcre2_match_data_create(1, NULL) : NULL;
    if (!bpe->match)
        return rax_fail(RAX_FAILURE, "gpt2 tokenizer: PCRE2 does not compile the expression for words (error %d at %zu)",
                        error, where);
    pcre2_jit_compile(bpe->words, PCRE2_JIT_COMPLETE);   /* where there is no JIT, pcre2_match interprets */
    return true;
}

/* -- what the header promises ----------------------------------------------------------------------------------------- */

data_bpe *data_bpe_new(const char *merges_path, const char *encoder_path)
{
    data_text merges, encoder;
    if (!data_map(merges_path, &merges))
        return NULL;
    if (!data_map(encoder_path, &encoder)) {
        data_unmap(&merges);
        return NULL;
    }
    data_bpe *bpe = rax_alloc(sizeof *bpe);
    bpe->merges = rax_alloc(sizeof *bpe->merges << MERGES_LOG2);
    bpe->cache = rax_alloc(sizeof *bpe->cache << CACHE_LOG2);
    for (int i = 0; i <= MERGES_MASK; i++)
        bpe->merges[i].pair = NO_PAIR;
    token_index index = { bpe, rax_alloc(sizeof *index.slots << MERGES_LOG2), MERGES_MASK };

    cJSON *object = cJSON_ParseWithLength(encoder.at, encoder.len);
    bool ok = object || rax_fail(RAX_MISTAKE, "%s: is not valid JSON", encoder_path);
    ok = ok && read_tokens(bpe, &index, object, encoder_path, encoder.len);
    ok = ok && read_merges(bpe, &index, merges, merges_path);
    ok = ok && compile_words(bpe);

    cJSON_Delete(object);
    rax_free(index.slots);
    data_unmap(&merges);
    data_unmap(&encoder);
    if (!ok) {
        data_bpe_free(bpe);
        return NULL;
    }
    return bpe;
}

void data_bpe_free(data_bpe *bpe)
{
    if (!bpe)
        return;
    pcre2_match_data_free(bpe->match);
    pcre2_code_free(bpe->words);
    rax_free(bpe->tokens);
    rax_free(bpe->bytes);
    rax_free(bpe->merges);
    rax_free(bpe->cache);
    rax_free(bpe);
}

int data_bpe_vocab_size(const data_bpe *bpe) { return bpe->vocab_size; }
int data_bpe_end_of_text(const data_bpe *bpe) { return bpe->end_of_text; }
data_text data_bpe_text(const data_bpe *bpe, int id) { return bpe->tokens[id]; }
