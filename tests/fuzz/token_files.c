/* The files that data is read from: tokens, a tokenizer's description, merges and a vocabulary (the bytes up to the first '\0' and those
 * behind it). What is read of any of them can be used. */
#include "tests/fuzz/fuzz.h"

#include "data/data.h"
#include "rax.h"

static void be_silent(const char *line) { (void)line; }

static void use(data_tokenizer *tokenizer)
{
    static const char sample[] = "the quick\n\303\251 \xff<|endoftext|>";
    data_ids ids = { 0 };
    if (tokenizer && data_encode(tokenizer, (data_text){ sample, sizeof sample - 1 }, &ids)) {
        size_t len;
        char *back = data_decode(tokenizer, ids.at, ids.len, &len);
        FUZZ_CHECK(back && len == sizeof sample - 1 && memcmp(back, sample, len) == 0, "%s: other bytes come back", data_tokenizer_name(tokenizer));
        rax_free(back);
    } else {
        FUZZ_CHECK(*rax_error(), "refused without a word");
    }
    rax_error_clear();
    data_ids_free(&ids);
    data_tokenizer_free(tokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    fuzz_file whole = fuzz_open(bytes, count);
    data_tokens *tokens = data_tokens_open(whole.path, 50257);
    for (size_t i = 0; tokens && i < tokens->count; i++)
        FUZZ_CHECK(tokens->ids[i] < 50257, "token %zu is %d", i, tokens->ids[i]);
    rax_error_clear();
    data_tokens_close(tokens);

    data_places places = { .cache_folder = "/proc/none", .offline = true, .say = be_silent };
    use(data_tokenizer_load(whole.path, &places));
    fuzz_close(&whole);

    const uint8_t *zero = count > 0 ? memchr(bytes, 0, count) : NULL;
    if (zero) {
        fuzz_file merges = fuzz_open(bytes, (size_t)(zero - bytes)), encoder = fuzz_open(zero + 1, count - 1 - (size_t)(zero - bytes));
        use(data_tokenizer_gpt2_files(merges.path, encoder.path));
        fuzz_close(&merges);
        fuzz_close(&encoder);
    }
    return 0;
}
