/* Tokenizers of text: what is encoded decodes to the same bytes, at once or in parts. The first byte says where the text is cut in two:
 * the characters are those of the first part; the merges know all bytes. */
#include "tests/fuzz/fuzz.h"

#include "data/data.h"
#include "rax.h"

static void encode(data_tokenizer *tokenizer, data_text text, size_t cut, bool all)
{
    data_ids ids = { 0 }, parts = { 0 };
    size_t used = 0, used_rest = 0, len;
    if (data_encode(tokenizer, text, &ids)) {
        char *back = data_decode(tokenizer, ids.at, ids.len, &len);
        FUZZ_CHECK(back && len == text.len && (len == 0 || memcmp(back, text.at, len) == 0), "%s: %zu bytes come back as %zu", data_tokenizer_name(tokenizer), text.len, len);
        FUZZ_CHECK(data_encode_part(tokenizer, (data_text){ text.at, cut }, &parts, &used) && used <= cut, "%s: a part of what can be encoded cannot",
                   data_tokenizer_name(tokenizer));
        data_text rest = { text.at + used, text.len - used };
        FUZZ_CHECK(data_encode(tokenizer, rest, &parts), "%s: the rest cannot be encoded", data_tokenizer_name(tokenizer));
        FUZZ_CHECK(parts.len == ids.len && (ids.len == 0 || memcmp(parts.at, ids.at, ids.len * sizeof *ids.at) == 0),
                   "%s: cut at %zu, the ids are others", data_tokenizer_name(tokenizer), cut);
        rax_free(back);
    } else {
        FUZZ_CHECK(!all && *rax_error(), "%s: refused: %s", data_tokenizer_name(tokenizer), rax_error());
        data_encode_part(tokenizer, text, &parts, &used_rest);
    }
    rax_error_clear();
    data_ids_free(&ids);
    data_ids_free(&parts);
}

/* A vocabulary of our own: the bytes in GPT-2's spelling, some merges, the special token. */
static data_tokenizer *new_bpe(void)
{
    static const char *const merges[][2] = { { "t", "h" }, { "th", "e" }, { "\304\240", "the" }, { "a", "a" }, { "aa", "aa" },
                                             { "\304\240", "\304\240" }, { "\303\203", "\302\251" }, { "'", "s" } };
    enum { MERGES = sizeof merges / sizeof merges[0] };
    char json[16384] = "{", list[512] = "#version: 0.2\n";
    size_t n = 1;
    for (int b = 0, other = 256; b < 256; b++) {
        int c = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174 ? b : other++;
        n += (size_t)snprintf(json + n, sizeof json - n, "\"\\u%04x\": %d, ", c, b);
    }
    for (int i = 0; i < MERGES; i++) {
        n += (size_t)snprintf(json + n, sizeof json - n, "\"%s%s\": %d, ", merges[i][0], merges[i][1], 256 + i);
        sprintf(list + strlen(list), "%s %s\n", merges[i][0], merges[i][1]);
    }
    n += (size_t)snprintf(json + n, sizeof json - n, "\"<|endoftext|>\": %d}", 256 + MERGES);
    fuzz_file merges_file = fuzz_open(list, strlen(list)), encoder = fuzz_open(json, n);
    data_tokenizer *bpe = data_tokenizer_gpt2_files(merges_file.path, encoder.path);
    FUZZ_CHECK(bpe, "%s", rax_error());
    fuzz_close(&merges_file);
    fuzz_close(&encoder);
    return bpe;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    static data_tokenizer *bpe;
    if (!bpe)
        bpe = new_bpe();
    if (count == 0)
        return 0;
    data_text text = { (const char *)bytes + 1, count - 1 };
    size_t cut = text.len * bytes[0] / 255;
    encode(bpe, text, cut, true);
    data_text first = { text.at, cut };
    data_tokenizer *chars = data_tokenizer_char(&first, 1);
    if (chars)
        encode(chars, text, cut, cut == text.len);
    rax_error_clear();
    data_tokenizer_free(chars);
    return 0;
}
