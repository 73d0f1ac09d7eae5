/* Files of token ids: 16-bit little-endian numbers and nothing else, as nanoGPT has them. A file is mapped, so that what a
 * run reads of it is all that it costs, and checked once, so that no batch holds an id beyond the embedding. */
#include "data/data.h"
#include "rax.h"

#include <stdio.h>
#include <sys/mman.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token files are read in place, as little-endian numbers");

/* Where the first id out of range is; count where there is none. The highest id of a block is had by a loop without exits,
 * which the compiler turns into vector code. ids begin a page; a block is whole pages, which are given back when they have been looked at: a file may be
 * larger than the machine's memory. */
static size_t first_out_of_range(const uint16_t *ids, size_t count, int vocab_size)
{
    enum { BLOCK = 1 << 19 };

    for (size_t begin = 0; begin < count; begin += BLOCK) {
        size_t end = begin + BLOCK < count ? begin + BLOCK : count;
        uint16_t highest = 0;
        for (size_t i = begin; i < end; i++)
            highest = ids[i] > highest ? ids[i] : highest;
        if (highest < vocab_size) {
            madvise((void *)(ids + begin), 2 * (end - begin), MADV_DONTNEED);
            continue;
        }
        for (size_t i = begin; i < end; i++)
            if (ids[i] >= vocab_size)
                return i;
    }
    return count;
}

data_tokens *data_tokens_open(const char *path, int vocab_size)
{
    data_text file;
    if (!data_map(path, &file))
        return NULL;
    const uint16_t *ids = (const uint16_t *)file.at;
    size_t count = file.len / 2, wrong;

    if (file.len == 0)
        rax_fail(RAX_MISTAKE, "%s: is empty; expected 16-bit token ids", path);
    else if (file.len % 2)
        rax_fail(RAX_MISTAKE, "%s: %zu bytes are not a whole number of 16-bit token ids; is the file truncated?", path,
                 file.len);
    else if ((wrong = first_out_of_range(ids, count, vocab_size)) < count)
        rax_fail(RAX_MISTAKE, "%s: token %zu (byte %zu) is %u, but vocab_size is %d", path, wrong, 2 * wrong,
                 ids[wrong], vocab_size);
    else {
        data_tokens *tokens = rax_alloc(sizeof *tokens);
        *tokens = (data_tokens){ ids, count, data_format("%s", path) };
        return tokens;
    }
    data_unmap(&file);
    return NULL;
}

void data_tokens_close(data_tokens *tokens)
{
    if (!tokens)
        return;
    data_text file = { (const char *)tokens->ids, 2 * tokens->count };
    data_unmap(&file);
    rax_free(tokens->path);
    rax_free(tokens);
}
